//! The agent of a local node: one conversation over an inherited socket.
#![allow(unsafe_code)]

use crate::Failure;
use crate::directory::remove_abandoned;
use crate::link::{Link, chain};
use crate::process::adopt_orphans;
use crate::supervise::{self, Host, Over, Session};
use span_api::link::Hello;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// Longest wait for a dead coordinator's lock to be released: its streams end, and its locks, in the
/// order of its descriptors.
const ABANDONED_MS_MAX: u64 = 500;

/// Serves the coordinator at the other end of `link_fd` until it ends the conversation or dies.
pub(crate) async fn run(
    link_fd: RawFd,
    session_fd: Option<RawFd>,
    uplinks_fd: Option<RawFd>,
) -> Result<(), Failure> {
    let stream = stream(link_fd)?;
    let session = session_fd.map(inherited).transpose()?;
    let uplinks = uplinks_fd.map(inherited).transpose()?;
    adopt_orphans()
        .map_err(|error| Failure::failed(format!("orphans cannot be adopted: {error}")))?;

    let (reader, writer) = stream.into_split();
    let link = Link::open(reader, writer, Hello::new(None), false)
        .await
        .map_err(|error| {
            Failure::failed(format!("the coordinator was refused: {}", chain(&error)))
        })?;
    let (_running, stopping) = watch::channel(false);
    let host = Host {
        session: Session::Inherited(session),
        cache: None,
        work: None,
        exports: None,
        switches: None,
        uplinks,
        stopping,
    };
    let outcome = supervise::run(link, host).await;
    if let (Over::Lost(_), Some(directory)) = (&outcome.over, outcome.run_directory) {
        remove_run_directory(&directory).await;
    }
    Ok(())
}

/// Does for a guest without local nodes what its agents would do: removes its run directory if the
/// coordinator dies. An orderly coordinator says a byte before it closes the stream.
pub(crate) async fn janitor(link_fd: RawFd, run_directory: &Path) -> Result<(), Failure> {
    let mut stream = stream(link_fd)?;
    if !matches!(stream.read(&mut [0; 1]).await, Ok(1)) {
        remove_run_directory(run_directory).await;
    }
    Ok(())
}

async fn remove_run_directory(directory: &Path) {
    let deadline = Instant::now() + Duration::from_millis(ABANDONED_MS_MAX);
    while Instant::now() < deadline {
        match remove_abandoned(directory) {
            // Another agent of the guest may hold it, being about to remove it.
            Ok(false) => sleep(Duration::from_millis(10)).await,
            Ok(true) => {
                // The directory of all guests, unless there are others.
                if let Some(all) = directory.parent() {
                    let _ = std::fs::remove_dir(all);
                }
                return;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                tracing::warn!("{} cannot be removed: {error}", directory.display());
                return;
            }
        }
    }
}

fn stream(fd: RawFd) -> Result<UnixStream, Failure> {
    let stream = StdUnixStream::from(inherited(fd)?);
    stream
        .set_nonblocking(true)
        .and_then(|()| UnixStream::from_std(stream))
        .map_err(|error| Failure::usage(format!("descriptor {fd} is not a socket: {error}")))
}

/// Takes over a descriptor named on the command line, and keeps it from being inherited further.
fn inherited(fd: RawFd) -> Result<OwnedFd, Failure> {
    // SAFETY: F_SETFD takes an integer and fails on a number that is no open descriptor.
    if fd <= 2 || unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(Failure::usage(format!("descriptor {fd} was not inherited")));
    }
    // SAFETY: `fd` is open, checked above, and was inherited for this; nothing else here uses numbers
    // of descriptors.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
