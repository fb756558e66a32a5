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
use std::time::Duration;

use crate::error::{At, Error, Result};

const TICK: Duration = Duration::from_millis(200);
const TAIL_LINES: usize = 25;

/// Runs `command` to its end. `on_tick` gets each line of its output, and `None` while it is quiet.
pub(crate) fn logged(
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
    loop {
        match lines.recv_timeout(TICK) {
            Ok(line) => {
                written = written.and_then(|()| writeln!(log_file, "{line}"));
                on_tick(Some(&line));
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
