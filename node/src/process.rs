//! The guest process: started so that it cannot outlive this one, and ended so that nothing that came
//! from it outlives it.
//!
//! The guest process leads a session, hence a process group, of its own. The stub processes it makes
//! are members of that group and ask to be killed when it ends; this process adopts them
//! (`PR_SET_CHILD_SUBREAPER`), kills the whole group and reaps every member, so that after
//! [`Process::end`] the group is known to be empty.
#![allow(unsafe_code)]

use crate::lines::Lines;
use crate::network::Networks;
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use span_api::guest::{GUEST_FD_ENV, LINE_FDS_ENV, NET_FDS_ENV, UPLINKS_FD_ENV};
use span_api::link::ProcessEnd;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};
use tokio::time::{Instant, sleep, timeout_at};

/// Longest wait for killed processes to be gone.
const REAP_MS_MAX: u64 = 1000;

/// Longest time that a guest process may be stopped by a signal. Its peers would give it up a little
/// later, without knowing why.
const STOPPED_MS_MAX: u64 = 1000;

/// Environment that a guest process gets from this one: what its host half may look at.
const ENVIRONMENT_KEPT: [&str; 6] = [
    "PATH",
    "HOME",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "RUST_BACKTRACE",
    "LANG",
];

/// Prefix of further variables that a guest process gets: settings of its runtime.
const ENVIRONMENT_PREFIX: &str = "SPAN_";

/// Makes this process the parent of every orphan below it.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    nix::sys::prctl::set_child_subreaper(true).map_err(io::Error::from)
}

/// A running or ended guest process that has not been reaped.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
    /// Tells that a child was stopped, continued or ended.
    changes: Signals,
}

/// What a guest process did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Ended,
    Stopped(Signal),
}

/// What a guest process is started with.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    pub(crate) program: &'a Path,
    pub(crate) arguments: &'a [Vec<u8>],
    pub(crate) directory: &'a Path,
    /// The host's CPUs that it may run on, if not all.
    pub(crate) cpus: Option<CpuSet>,
    /// Where its libraries are, if not beside it.
    pub(crate) libraries: Option<&'a Path>,
    /// Its socket to this process.
    pub(crate) guest: OwnedFd,
    /// Its session channel, on the first node.
    pub(crate) session: Option<OwnedFd>,
    /// Of its network devices.
    pub(crate) networks: &'a Networks,
    /// Of its lines, on the first node.
    pub(crate) lines: &'a Lines,
    /// Memory with the queues of uplinks.
    pub(crate) uplinks: Option<OwnedFd>,
    /// Where its stdout and stderr go.
    pub(crate) output: OwnedFd,
}

impl Process {
    /// Starts the guest process. Must be called on the main thread, which lives as long as this
    /// process does: the guest process is killed when the thread that started it ends.
    pub(crate) fn start(start: Start<'_>) -> io::Result<Self> {
        let guest_fd = start.guest.as_raw_fd();
        let session_fd = start.session.as_ref().map(AsRawFd::as_raw_fd);
        let mut device_fds = start.networks.descriptors();
        device_fds.extend(start.lines.descriptors());
        let uplinks_fd = start.uplinks.as_ref().map(AsRawFd::as_raw_fd);
        device_fds.extend(uplinks_fd);
        let cpus = start.cpus;
        let parent = nix::unistd::getpid();
        // From before there is a child whose changes could be missed.
        let changes = signal(SignalKind::child())?;

        let mut command = Command::new(start.program);
        command.arg0("linux");
        if let Some(fd) = session_fd {
            command.arg(format!("span.chan={fd}"));
        }
        command
            .args(
                start
                    .arguments
                    .iter()
                    .map(|argument| OsStr::from_bytes(argument)),
            )
            .current_dir(start.directory)
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| keeps_variable(name)))
            .envs(
                start
                    .libraries
                    .map(|libraries| ("LD_LIBRARY_PATH", libraries)),
            )
            .env(GUEST_FD_ENV, guest_fd.to_string())
            .env(NET_FDS_ENV, start.networks.variable())
            .env(LINE_FDS_ENV, start.lines.variable())
            .env(
                UPLINKS_FD_ENV,
                uplinks_fd.map_or_else(String::new, |fd| fd.to_string()),
            )
            .stdin(Stdio::null())
            .stdout(start.output.try_clone()?)
            .stderr(start.output);
        // SAFETY: the closure runs between fork and exec and makes only system calls that are
        // async-signal-safe, without allocating; `prepare` keeps to that.
        unsafe {
            command.pre_exec(move || {
                prepare(parent, guest_fd, session_fd)?;
                if let Some(cpus) = &cpus {
                    sched_setaffinity(Pid::from_raw(0), cpus)?;
                }
                device_fds.iter().try_for_each(|fd| inherit(*fd))
            });
        }
        let child = command.spawn()?;
        drop((start.guest, start.session, start.uplinks));

        let pid = Pid::from_raw(child.id() as i32);
        match pidfd_open(pid).and_then(watch) {
            Ok(pidfd) => Ok(Self {
                pid,
                pidfd,
                changes,
            }),
            Err(error) => {
                let _ = killpg(pid, Signal::SIGKILL);
                let _ = waitpid(pid, None);
                Err(error)
            }
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Waits until the process has ended, or has been stopped for too long. May be cancelled.
    pub(crate) async fn change(&mut self) -> Change {
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WCONTINUED | WaitPidFlag::WNOHANG;
        let mut stopped: Option<(Signal, Instant)> = None;
        loop {
            match waitid(Id::Pid(self.pid), flags) {
                Ok(WaitStatus::Stopped(_, signal)) => {
                    let until = Instant::now() + Duration::from_millis(STOPPED_MS_MAX);
                    stopped = Some((signal, until));
                }
                Ok(WaitStatus::Continued(_)) => stopped = None,
                // Another child changed, or this one has ended.
                Ok(_) | Err(_) => {}
            }
            if let Some((signal, until)) = stopped
                && until <= Instant::now()
            {
                return Change::Stopped(signal);
            }
            let changed = async {
                match stopped {
                    Some((_, until)) => _ = timeout_at(until, self.changes.recv()).await,
                    None => _ = self.changes.recv().await,
                }
            };
            tokio::select! {
                // A pidfd becomes readable when its process ends, and stays so.
                _ = self.pidfd.readable() => return Change::Ended,
                () = changed => {}
            }
        }
    }

    /// Kills the process, if it still runs, and everything it left in its process group, and waits
    /// until all of them are gone.
    pub(crate) async fn end(self) -> ProcessEnd {
        // The leader is not reaped yet, so its number cannot mean another group.
        let _ = killpg(self.pid, Signal::SIGKILL);
        let _ = self.pidfd.readable().await;
        let end = match waitpid(self.pid, None) {
            Ok(WaitStatus::Exited(_, code)) => ProcessEnd::Code(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => ProcessEnd::Signal(signal as i32),
            // Nobody else waits for it, so this cannot be; the process is gone in any case.
            Ok(_) | Err(_) => ProcessEnd::Signal(Signal::SIGKILL as i32),
        };
        reap_group(self.pid).await;
        end
    }
}

/// Reaps what is left of a killed group whose leader has been reaped. The number stays taken while
/// there is any member.
async fn reap_group(group: Pid) {
    let deadline = Instant::now() + Duration::from_millis(REAP_MS_MAX);
    let members = Pid::from_raw(-group.as_raw());
    loop {
        match waitpid(members, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => {}
            Ok(_) => continue,
            Err(Errno::EINTR) => continue,
            // No child of ours is in the group, but one may be about to become ours.
            Err(_) if killpg(group, None).is_err() => return,
            Err(_) => {}
        }
        // One made after the first signal was sent.
        let _ = killpg(group, Signal::SIGKILL);
        if Instant::now() >= deadline {
            tracing::warn!("process group {group} is not gone after {REAP_MS_MAX} ms");
            return;
        }
        sleep(Duration::from_millis(2)).await;
    }
}

fn keeps_variable(name: &OsStr) -> bool {
    ENVIRONMENT_KEPT.iter().any(|kept| name == *kept)
        || name.as_bytes().starts_with(ENVIRONMENT_PREFIX.as_bytes())
}

/// What the child does to itself before it becomes the guest process.
///
/// Context: between fork and exec; nothing here may allocate or lock.
fn prepare(parent: Pid, guest: RawFd, session: Option<RawFd>) -> io::Result<()> {
    nix::unistd::setsid()?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if nix::unistd::getppid() != parent {
        return Err(io::Error::from(Errno::ESRCH));
    }
    // The kernel disables address randomisation for itself by executing itself again. Doing it here
    // saves that, and constructors of its libraries run once.
    // SAFETY: `personality` takes no pointers.
    let persona = unsafe { libc::personality(0xffff_ffff) };
    // SAFETY: as above.
    unsafe {
        libc::personality(persona as libc::c_ulong | libc::ADDR_NO_RANDOMIZE as libc::c_ulong)
    };
    // A core of the guest's whole memory, in a directory that is about to be removed, helps nobody.
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0)?;
    inherit(guest)?;
    session.map_or(Ok(()), inherit)
}

/// Lets `fd` survive the exec, in the child only.
///
/// Context: between fork and exec.
pub(crate) fn inherit(fd: RawFd) -> io::Result<()> {
    // SAFETY: F_SETFD takes an integer; `fd` is open, its owner lives until the spawn is over.
    match unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps its descriptor open, and the same, as long as it lives.
    unsafe { AsyncFd::register(pidfd) }.map_err(Into::into)
}

fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes integers and returns a new descriptor, which nobody else owns.
    unsafe {
        match libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd as RawFd)),
        }
    }
}
