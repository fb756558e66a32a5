//! Programs that the build runs: their output goes to a log file, their failure becomes an error
//! that names the log and shows its end.
//!
//! A child's stdin is the lock file (empty, so it reads like /dev/null): the build lock is then held
//! until the last child is gone, even if this process is killed before its children are.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::error::{At, Error, Result};

const TICK: Duration = Duration::from_millis(200);
const TAIL_LINES: usize = 25;

/// Runs `command` to its end. `on_tick` gets each line of its output, and `None` while it is quiet.
pub(crate) fn logged(
    stage: &str,
    command: Command,
    lock: &File,
    log: &Path,
    on_tick: impl FnMut(Option<&str>),
) -> Result<()> {
    logged_within(Duration::MAX, stage, command, lock, log, on_tick)
}

/// The same, and ends it with all its descendants once it has been quiet for so long.
pub(crate) fn logged_within(
    quiet_max: Duration,
    stage: &str,
    mut command: Command,
    lock: &File,
    log: &Path,
    mut on_tick: impl FnMut(Option<&str>),
) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut log_file = File::create(log).at("create", log)?;
    let spawn_error = |source| Error::Spawn {
        program: program.clone(),
        source,
    };
    let (reader, writer) = std::io::pipe().map_err(spawn_error)?;
    command
        .stdin(lock.try_clone().map_err(spawn_error)?)
        .stdout(writer.try_clone().map_err(spawn_error)?)
        .stderr(writer);
    let mut child = command.spawn().map_err(spawn_error)?;
    // The command keeps the pipe's write ends; without this the reader below never sees the end.
    drop(command);

    let (sender, lines) = mpsc::channel();
    let pump = std::thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(|l| l.ok()) {
            let line = String::from_utf8_lossy(&line).into_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let mut written = Ok(());
    let mut heard = Instant::now();
    loop {
        match lines.recv_timeout(TICK) {
            Ok(line) => {
                heard = Instant::now();
                written = written.and_then(|()| writeln!(log_file, "{line}"));
                on_tick(Some(&line));
            }
            Err(RecvTimeoutError::Timeout) if heard.elapsed() > quiet_max => {
                let line = format!("ended: nothing was heard of it for {quiet_max:?}");
                written = written.and_then(|()| writeln!(log_file, "{line}"));
                on_tick(Some(&line));
                end_tree(child.id());
                heard = Instant::now();
            }
            Err(RecvTimeoutError::Timeout) => on_tick(None),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait().map_err(spawn_error)?;
    let _ = pump.join();
    written.at("write", log)?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Failed {
        stage: stage.to_owned(),
        status: status.to_string(),
        log: log.to_path_buf(),
        tail: tail(log),
    })
}

/// Ends a process and all that it and its descendants have started: the parent first, so that it starts no more.
fn end_tree(pid: u32) {
    let children = children_of(pid);
    // SIGKILL by number, as kill(1) takes it: this program has no other use for a crate with signals.
    let _ = output(Command::new("kill").args(["-9", &pid.to_string()]));
    for child in children {
        end_tree(child);
    }
}

fn children_of(pid: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|child| parent_of(*child) == Some(pid))
        .collect()
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which may contain anything: state and parent.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// Runs a short program and returns what it printed; failure is the caller's to judge.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Spawn { program, source })
}

fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    last.iter().map(|line| format!("\n    {line}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quiet_for_too_long_is_ended_with_its_children() {
        let directory = std::env::temp_dir().join(format!("span-quiet-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let lock = File::open("/dev/null").expect("it exists");
        let mut command = Command::new("sh");
        // The shell's child has the pipe, too: only if both end does the output end, and this return.
        command.args(["-c", "sleep 1000 & echo $!; wait"]);
        let mut said = Vec::new();
        let quiet = Duration::from_millis(500);
        let log = directory.join("log");
        let result = logged_within(quiet, "a test", command, &lock, &log, |line| {
            said.extend(line.map(str::to_owned));
        });
        assert!(matches!(result, Err(Error::Failed { .. })), "{result:?}");
        assert!(said[0].parse::<u32>().is_ok(), "{said:?}");
        assert!(said[1].starts_with("ended: nothing was heard"), "{said:?}");
        std::fs::remove_dir_all(directory).expect("it is ours");
    }
}
