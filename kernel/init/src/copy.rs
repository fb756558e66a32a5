//! `span-copy`: the guest's end of `coordinator cp`.
//!
//! `span-copy out PATH…` writes a stream with what is at these paths to stdout, `span-copy in any|directory|file
//! PATH` puts what a stream on stdin contains at this path ([`span_api::copy`]). Errors are a line each, which
//! begins with the path.

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use span_api::copy::{CopyError, Into, receive, send};
use std::{
    ffi::{OsStr, c_int},
    io::{self, Read, Write},
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

/// Signals with which a copy is ended: the coordinator hangs up, the guest ends.
const SIGNALS: [Signal; 4] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGPIPE,
];

/// Returns the exit code.
pub(crate) fn run(arguments: &[&[u8]]) -> c_int {
    let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    let mut complete = true;
    let mut report = |error: CopyError| {
        let _ = writeln!(io::stderr(), "{error}");
        complete = false;
    };
    let result = match arguments {
        [b"out", sources @ ..] if !sources.is_empty() => {
            let sources: Vec<PathBuf> = sources.iter().map(|source| path(source)).collect();
            send(&sources, io::stdout().lock(), &mut report)
        }
        [b"in", b"any", destination] => take(&path(destination), Into::Any),
        [b"in", b"directory", destination] => take(&path(destination), Into::Directory),
        [b"in", b"file", destination] => take(&path(destination), Into::File),
        _ => {
            let _ = writeln!(io::stderr(), "this is the guest's end of `coordinator cp`");
            return 2;
        }
    };
    if let Err(error) = result {
        report(error);
    }
    c_int::from(!complete)
}

fn take(destination: &Path, into: Into) -> Result<(), CopyError> {
    receive(Input { signals: watch() }, destination, into)
}

/// Has signals read instead of ending this process, which has files to clear away. Without (which a kernel of
/// ours does not do) they end it as ever.
fn watch() -> Option<SignalFd> {
    let set = SigSet::from_iter(SIGNALS);
    let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC).ok()?;
    set.thread_block().ok()?;
    Some(signals)
}

/// Stdin, which breaks off at a signal.
struct Input {
    signals: Option<SignalFd>,
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let stdin = io::stdin();
        if let Some(signals) = &self.signals {
            let mut fds = [
                PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            if fds[1].any().unwrap_or(false) {
                // Not `Interrupted`, after which readers try again.
                return Err(io::Error::other("the copy was interrupted"));
            }
        }
        // Not `Stdin`'s own buffer, which `poll` knows nothing of.
        Ok(nix::unistd::read(stdin.as_fd(), buffer)?)
    }
}
