//! Lines in the kernel log: the first process has no other place to report to.

use std::{
    fs::OpenOptions,
    io::{ErrorKind, Read, Write},
    os::unix::fs::OpenOptionsExt,
};

/// The longest record that the kernel gives out.
const RECORD_BYTES_MAX: usize = 8192;

/// The last line of the log that begins like this.
pub(crate) fn last(start: &str) -> Option<String> {
    let mut kmsg = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")
        .ok()?;
    let mut record = [0; RECORD_BYTES_MAX];
    let mut found = None;
    loop {
        match kmsg.read(&mut record) {
            Ok(0) => return found,
            Ok(length) => {
                let text = String::from_utf8_lossy(&record[..length]);
                // `level,number,time,flags;line`, and lines with properties.
                let line = text
                    .split_once(';')
                    .and_then(|(_, text)| text.lines().next());
                let line = line.filter(|line| line.starts_with(start));
                found = line.map(String::from).or(found);
            }
            // Records were overwritten meanwhile.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(_) => return found,
        }
    }
}

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
