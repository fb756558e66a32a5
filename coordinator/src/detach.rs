//! `--detach`: the process that was called returns when the guest is ready; a child goes on.
//!
//! The child is made before anything else is, so that it alone owns what a guest consists of. Until the
//! guest is ready it uses the caller's stderr, and ends if the caller goes away; then it lets go of both.
#![allow(unsafe_code)]

use crate::failure::EXIT_FAILED;
use crate::guest::Event;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, setsid};
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot};

/// Longest name and line end that the child reports, in bytes.
const REPORT_BYTES_MAX: u64 = 256;

/// The child's end of the way to the caller.
#[derive(Debug)]
pub(crate) struct Waiting {
    caller: UnixStream,
}

/// Which of the two processes this is.
#[derive(Debug)]
pub(crate) enum Side {
    /// The caller's, with the exit code of the program.
    Caller(u8),
    Child(Waiting),
}

/// Splits this process. Must be called while it has one thread.
pub(crate) fn split() -> io::Result<Side> {
    let (caller, child) = UnixStream::pair()?;
    // SAFETY: this process has one thread, so the child may do everything.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(caller);
            // Signals of the caller's terminal are not for the guest.
            setsid()?;
            Ok(Side::Child(Waiting { caller: child }))
        }
        ForkResult::Parent { child: pid } => {
            drop(child);
            let mut name = String::new();
            let _ = caller.take(REPORT_BYTES_MAX).read_to_string(&mut name);
            if name.ends_with('\n') {
                let _ = io::stdout().write_all(name.as_bytes());
                return Ok(Side::Caller(0));
            }
            // It ends without a guest, and said why.
            match waitpid(pid, None) {
                Ok(WaitStatus::Exited(_, code)) => Ok(Side::Caller(code as u8)),
                _ => Ok(Side::Caller(EXIT_FAILED)),
            }
        }
    }
}

impl Waiting {
    /// Waits until the guest is ready and then reports its name and lets go of the caller; has the guest
    /// ended if the caller goes away before.
    pub(crate) async fn watch(
        self,
        name: String,
        log: PathBuf,
        ready: oneshot::Receiver<()>,
        events: mpsc::Sender<Event>,
    ) {
        let stream = self.caller.set_nonblocking(true);
        let Ok(mut caller) = stream.and_then(|()| tokio::net::UnixStream::from_std(self.caller))
        else {
            return;
        };
        tokio::select! {
            ready = ready => {
                if ready.is_ok() {
                    // The caller's stdio may be a pipe that somebody reads to its end.
                    let _ = let_go(&log);
                    let _ = tokio::io::AsyncWriteExt::write_all(
                        &mut caller, format!("{name}\n").as_bytes()).await;
                }
            }
            _ = caller.read_u8() => {
                let _ = events.send(Event::Signal(libc::SIGHUP)).await;
            }
        }
    }
}

/// Has stdin come from nowhere, and what is still said go to the log.
fn let_go(log: &std::path::Path) -> io::Result<()> {
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    let log = OpenOptions::new().append(true).open(log)?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&log)?;
    Ok(())
}
