//! Agents of nodes on this machine: child processes at the other end of a socket.
#![allow(unsafe_code)]

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use span_api::guest::UPLINK_QUEUE_BYTES;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Longest wait for an agent that was told to end.
const END_MS_MAX: u64 = 500;

/// A child process that ends when its socket does.
#[derive(Debug)]
pub(crate) struct Agent {
    child: Child,
}

/// A started agent and the ways to it.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) agent: Agent,
    pub(crate) link: UnixStream,
    /// The session channel, whose other end the agent hands on to the guest process.
    pub(crate) session: Option<UnixStream>,
}

/// Memory that local nodes share, with two queues for each of so many uplinks, if there are any.
pub(crate) fn uplinks(uplinks: usize) -> io::Result<Option<OwnedFd>> {
    if uplinks == 0 {
        return Ok(None);
    }
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let memory = memfd_create(c"span-uplinks", flags)?;
    ftruncate(&memory, (2 * uplinks * UPLINK_QUEUE_BYTES) as libc::off_t)?;
    // Whoever has it mapped relies on its being there.
    fcntl(
        &memory,
        FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL),
    )?;
    Ok(Some(memory))
}

/// Starts an agent, which complains to `log`; an error is one line.
pub(crate) fn start(
    program: &Path,
    log: &File,
    first: bool,
    uplinks: Option<&OwnedFd>,
) -> Result<Local, String> {
    let failed = |error: io::Error| format!("{} cannot be started: {error}", program.display());
    let (link, agent_link) = pair().map_err(failed)?;
    let (session, agent_session) = match first.then(pair).transpose().map_err(failed)? {
        Some((ours, theirs)) => (Some(ours), Some(theirs)),
        None => (None, None),
    };
    let mut arguments = vec![
        "agent".into(),
        format!("--link-fd={}", agent_link.as_raw_fd()),
    ];
    if let Some(session) = &agent_session {
        arguments.push(format!("--session-fd={}", session.as_raw_fd()));
    }
    if let Some(uplinks) = uplinks {
        arguments.push(format!("--uplinks-fd={}", uplinks.as_raw_fd()));
    }
    let inherited = [
        Some(agent_link.as_raw_fd()),
        agent_session.as_ref().map(AsRawFd::as_raw_fd),
        uplinks.map(AsRawFd::as_raw_fd),
    ];
    let agent = Agent::start(program, &arguments, log, inherited).map_err(failed)?;
    Ok(Local {
        agent,
        link,
        session,
    })
}

/// Starts a process that removes `run_directory` should this one be killed. For guests without a node
/// here, whose agents would do it.
pub(crate) fn start_janitor(
    program: &Path,
    log: &File,
    run_directory: &Path,
) -> io::Result<(Agent, UnixStream)> {
    let (link, agent_link) = pair()?;
    let mut directory = std::ffi::OsString::from("--run-directory=");
    directory.push(run_directory);
    let arguments = [
        "janitor".into(),
        format!("--link-fd={}", agent_link.as_raw_fd()).into(),
        directory,
    ];
    let inherited = [Some(agent_link.as_raw_fd()), None, None];
    let agent = Agent::start(program, &arguments, log, inherited)?;
    Ok((agent, link))
}

impl Agent {
    fn start(
        program: &Path,
        arguments: &[impl AsRef<std::ffi::OsStr>],
        log: &File,
        inherited: [Option<RawFd>; 3],
    ) -> io::Result<Self> {
        let mut command = Command::new(program);
        // Nothing of ours: whoever waits for the end of our output must not wait for its end.
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.try_clone()?);
        // Dropped before it got a guest process, an agent has nothing to clean up.
        command.kill_on_drop(true);
        // SAFETY: the closure runs between fork and exec and makes only system calls that are
        // async-signal-safe, without allocating.
        unsafe {
            command.pre_exec(move || {
                // Signals of the terminal are for the coordinator, which ends its guest in order.
                nix::unistd::setsid()?;
                inherited.iter().flatten().try_for_each(|fd| inherit(*fd))
            });
        }
        Ok(Self {
            child: command.spawn()?,
        })
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits until the agent, having been told to end, is gone; kills it if it does not end, and at once
    /// if it is `lost`.
    pub(crate) async fn end(mut self, lost: bool) {
        let longest = Duration::from_millis(if lost { 0 } else { END_MS_MAX });
        if timeout(longest, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

/// Whether the host would let a child run: one that has ended is none, and one that is stopped, by a signal or a
/// debugger, waits for somebody.
pub(crate) fn may_run(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // The name, in parentheses, may be anything.
    let state = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.trim_start().chars().next());
    state.is_some_and(|state| !matches!(state, 'T' | 't' | 'Z' | 'X'))
}

fn pair() -> io::Result<(UnixStream, StdUnixStream)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs))
}

/// Lets `fd` survive the exec, in the child only.
fn inherit(fd: RawFd) -> io::Result<()> {
    // SAFETY: F_SETFD takes an integer; `fd` is open, its owner lives until the spawn is over.
    match unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
