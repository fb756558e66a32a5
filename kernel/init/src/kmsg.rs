//! Lines in the kernel log: the first process has no other place to report to.

use std::{fs::OpenOptions, io::Write};

pub(crate) fn error(line: &str) {
    write(3, line);
}

pub(crate) fn warning(line: &str) {
    write(4, line);
}

fn write(level: u8, line: &str) {
    // One write is one record; a control character would break it up or hide what follows.
    let clean: String = line
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let record = format!("<{level}>span-init: {clean}\n");
    let logged = OpenOptions::new()
        .write(true)
        .open("/dev/kmsg")
        .and_then(|mut kmsg| kmsg.write_all(record.as_bytes()));
    if logged.is_err() {
        // Before devtmpfs is mounted there is only the console the kernel opened, if any.
        let _ = std::io::stderr().write_all(record.as_bytes());
    }
}
