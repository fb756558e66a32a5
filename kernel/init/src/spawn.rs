//! Starts a session's command: its environment, its streams, and what stops it from starting.

use crate::{accounts::Account, root};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl, open},
    pty::{OpenptyResult, Winsize, openpty},
    sched::{CpuSet, sched_setaffinity},
    sys::signal::{
        SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask,
    },
    sys::stat::Mode,
    unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2, setsid, write},
};
use span_api::session::{Command, WindowSize};
use std::{
    ffi::{CStr, CString},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_TERM: &[u8] = b"linux";

/// Exit codes of a command that could not be started, as shells have them.
pub(crate) const NOT_FOUND: i32 = 127;
pub(crate) const NOT_EXECUTABLE: i32 = 126;

/// A started process and this side of its streams, all of them non-blocking.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    /// Ends when the program runs; before that, the number of the error that stopped it.
    pub(crate) report: OwnedFd,
    pub(crate) streams: Streams,
}

#[derive(Debug)]
pub(crate) enum Streams {
    Pipes {
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    Terminal {
        master: OwnedFd,
    },
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    #[error("an argument, a variable or the directory contains a zero byte")]
    ZeroByte(#[from] std::ffi::NulError),
    #[error("the command has no name")]
    NoName,
    #[error("no such CPU")]
    Cpus(#[source] nix::Error),
    #[error("the streams could not be made")]
    Streams(#[source] nix::Error),
    #[error("no new process")]
    Fork(#[source] nix::Error),
}

/// A command made ready, so that nothing can fail for lack of memory between fork and exec.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// Paths to try in turn.
    programs: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    directory: CString,
    cpus: Option<CpuSet>,
}

pub(crate) fn prepare(command: &Command, account: &Account) -> Result<Prepared, SpawnError> {
    let mut env = command.env.clone();
    let is_shell = command.argv.is_empty();
    add_defaults(&mut env, account, is_shell);

    let (programs, argv) = match command.argv.first() {
        Some(name) if name.is_empty() => return Err(SpawnError::NoName),
        Some(name) => (candidates(name, &env), command.argv.clone()),
        None => {
            let shells: Vec<Vec<u8>> = account
                .shell
                .iter()
                .cloned()
                .chain([b"/bin/sh".to_vec()])
                .collect();
            let base = shells[0]
                .rsplit(|byte| *byte == b'/')
                .next()
                .unwrap_or(b"sh");
            // The leading dash makes it a login shell.
            let name = [b"-", base].concat();
            (shells, vec![name])
        }
    };
    let strings = |list: Vec<Vec<u8>>| {
        list.into_iter()
            .map(CString::new)
            .collect::<Result<Vec<_>, _>>()
    };
    let variable = |(name, value): (Vec<u8>, Vec<u8>)| [name, value].join(&b'=');
    Ok(Prepared {
        programs: strings(programs)?,
        argv: strings(argv)?,
        env: strings(env.into_iter().map(variable).collect())?,
        directory: CString::new(command.directory.clone())?,
        cpus: cpu_set(&command.cpus).map_err(SpawnError::Cpus)?,
    })
}

fn cpu_set(cpus: &[u16]) -> nix::Result<Option<CpuSet>> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set((*cpu).into())?;
    }
    Ok(Some(set).filter(|_| !cpus.is_empty()))
}

fn add_defaults(env: &mut Vec<(Vec<u8>, Vec<u8>)>, account: &Account, is_shell: bool) {
    let mut default = |name: &[u8], value: &[u8]| {
        if !env.iter().any(|(given, _)| given == name) {
            env.push((name.to_vec(), value.to_vec()));
        }
    };
    let path = format!("{}:{DEFAULT_PATH}", root::PROGRAM_DIRECTORY);
    default(b"PATH", path.as_bytes());
    default(b"HOME", &account.home);
    default(b"TERM", DEFAULT_TERM);
    if is_shell {
        default(b"SHELL", account.shell.as_deref().unwrap_or(b"/bin/sh"));
        default(b"USER", &account.name);
        default(b"LOGNAME", &account.name);
    }
}

/// Where `execvp` would look for the program.
fn candidates(name: &[u8], env: &[(Vec<u8>, Vec<u8>)]) -> Vec<Vec<u8>> {
    if name.contains(&b'/') {
        return vec![name.to_vec()];
    }
    let path = env
        .iter()
        .find(|(given, _)| given == b"PATH")
        .map_or(&b""[..], |(_, path)| path);
    path.split(|byte| *byte == b':')
        .map(|directory| match directory {
            b"" => name.to_vec(),
            _ => [directory, name].join(&b'/'),
        })
        .collect()
}

pub(crate) fn spawn(
    prepared: &Prepared,
    terminal: Option<WindowSize>,
) -> Result<Process, SpawnError> {
    let (report, child_report) = pipe2(OFlag::O_CLOEXEC).map_err(SpawnError::Streams)?;
    let (streams, child_streams) = match terminal {
        Some(size) => open_terminal(size),
        None => open_pipes(),
    }
    .map_err(SpawnError::Streams)?;
    set_nonblocking(report.as_fd()).map_err(SpawnError::Streams)?;

    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    match unsafe { fork() }.map_err(SpawnError::Fork)? {
        ForkResult::Parent { child } => Ok(Process {
            pid: child,
            report,
            streams,
        }),
        ForkResult::Child => {
            let error = run(prepared, &child_streams);
            let _ = write(&child_report, &(error as i32).to_ne_bytes());
            // SAFETY: `_exit` takes no pointer, and ends the child without the parent's clean-up.
            unsafe { libc::_exit(NOT_FOUND) }
        }
    }
}

/// The message and exit code for the error number that [`Process::report`] gave.
pub(crate) fn explain(prepared_for: &[u8], error: nix::Error) -> (i32, String) {
    let name = String::from_utf8_lossy(prepared_for);
    match error {
        nix::Error::ENOENT | nix::Error::ENOTDIR => (NOT_FOUND, format!("{name}: not found")),
        error => (NOT_EXECUTABLE, format!("{name}: {}", error.desc())),
    }
}

enum ChildStreams {
    Pipes {
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    Terminal {
        slave: OwnedFd,
    },
}

fn open_pipes() -> nix::Result<(Streams, ChildStreams)> {
    let (child_stdin, stdin) = pipe2(OFlag::O_CLOEXEC)?;
    let (stdout, child_stdout) = pipe2(OFlag::O_CLOEXEC)?;
    let (stderr, child_stderr) = pipe2(OFlag::O_CLOEXEC)?;
    // An end of a pipe is non-blocking by itself: the command's ends stay as it expects them.
    for ours in [&stdin, &stdout, &stderr] {
        set_nonblocking(ours.as_fd())?;
    }
    Ok((
        Streams::Pipes {
            stdin,
            stdout,
            stderr,
        },
        ChildStreams::Pipes {
            stdin: child_stdin,
            stdout: child_stdout,
            stderr: child_stderr,
        },
    ))
}

fn open_terminal(size: WindowSize) -> nix::Result<(Streams, ChildStreams)> {
    let size = winsize(size);
    let OpenptyResult { master, slave } = openpty(&size, None)?;
    for fd in [&master, &slave] {
        fcntl(fd, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    }
    set_nonblocking(master.as_fd())?;
    Ok((
        Streams::Terminal { master },
        ChildStreams::Terminal { slave },
    ))
}

fn winsize(size: WindowSize) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// Opens a line for its size only.
pub(crate) fn open_line(device: &str) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    open(device, flags, Mode::empty())
}

/// Gives a terminal a size, which its programs are told. One that is gone needs none.
pub(crate) fn resize(terminal: BorrowedFd<'_>, size: WindowSize) {
    // SAFETY: TIOCSWINSZ reads one `winsize`, which lives across the call.
    unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &winsize(size)) };
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

/// Becomes the command; returns what prevented it. Runs in the child.
fn run(prepared: &Prepared, streams: &ChildStreams) -> nix::Error {
    match enter(prepared, streams) {
        Ok(()) => exec(prepared),
        Err(error) => error,
    }
}

fn enter(prepared: &Prepared, streams: &ChildStreams) -> nix::Result<()> {
    setsid()?;
    if let Some(cpus) = &prepared.cpus {
        sched_setaffinity(Pid::from_raw(0), cpus)?;
    }
    match streams {
        ChildStreams::Pipes {
            stdin,
            stdout,
            stderr,
        } => {
            // All of them are above 2: process 1 keeps 0 to 2 open.
            dup2_stdin(stdin)?;
            dup2_stdout(stdout)?;
            dup2_stderr(stderr)?;
        }
        ChildStreams::Terminal { slave } => {
            // SAFETY: TIOCSCTTY takes an integer, no pointer.
            let result = unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) };
            nix::Error::result(result)?;
            dup2_stdin(slave)?;
            dup2_stdout(slave)?;
            dup2_stderr(slave)?;
        }
    }
    if nix::unistd::chdir(prepared.directory.as_c_str()).is_err() {
        nix::unistd::chdir("/")?;
    }
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of this process.
    unsafe { sigaction(Signal::SIGPIPE, &default) }?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

/// Tries every candidate as `execvp` does: one that may not be run counts only if none can be.
fn exec(prepared: &Prepared) -> nix::Error {
    let mut outcome = nix::Error::ENOENT;
    for program in &prepared.programs {
        match execve(program, &prepared.argv, &prepared.env) {
            nix::Error::ENOENT | nix::Error::ENOTDIR => {}
            nix::Error::EACCES => outcome = nix::Error::EACCES,
            nix::Error::ENOEXEC => return exec_script(prepared, program),
            error => return error,
        }
    }
    outcome
}

/// A text without an interpreter line is the shell's.
fn exec_script(prepared: &Prepared, program: &CStr) -> nix::Error {
    let shell = c"/bin/sh";
    let arguments = prepared.argv.iter().skip(1).map(CString::as_c_str);
    let argv: Vec<&CStr> = [shell, program].into_iter().chain(arguments).collect();
    match execve(shell, &argv, &prepared.env) {
        nix::Error::ENOENT => nix::Error::ENOEXEC,
        error => error,
    }
}

fn execve(program: &CStr, argv: &[impl AsRef<CStr>], env: &[CString]) -> nix::Error {
    match nix::unistd::execve(program, argv, env) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        Account {
            name: b"root".to_vec(),
            home: b"/root".to_vec(),
            shell: Some(b"/bin/zsh".to_vec()),
        }
    }

    fn command(argv: &[&str], env: &[(&str, &str)]) -> Command {
        Command {
            argv: argv
                .iter()
                .map(|argument| argument.as_bytes().to_vec())
                .collect(),
            env: env
                .iter()
                .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
                .collect(),
            directory: b"/".to_vec(),
            cpus: Vec::new(),
            terminal: None,
        }
    }

    fn texts(strings: &[CString]) -> Vec<&str> {
        strings
            .iter()
            .map(|string| string.to_str().unwrap())
            .collect()
    }

    #[test]
    fn the_path_is_searched_as_execvp_does() {
        let prepared = prepare(&command(&["ls"], &[("PATH", "/a::/b")]), &account()).unwrap();
        assert_eq!(texts(&prepared.programs), ["/a/ls", "ls", "/b/ls"]);
        let prepared = prepare(&command(&["./ls"], &[("PATH", "/a")]), &account()).unwrap();
        assert_eq!(texts(&prepared.programs), ["./ls"]);
    }

    #[test]
    fn defaults_do_not_replace_what_is_given() {
        let prepared = prepare(&command(&["ls"], &[("TERM", "vt100")]), &account()).unwrap();
        let env = texts(&prepared.env);
        assert!(env.contains(&"TERM=vt100") && env.contains(&"HOME=/root"));
        assert_eq!(
            env.iter()
                .filter(|variable| variable.starts_with("TERM="))
                .count(),
            1
        );
    }

    #[test]
    fn no_command_is_a_login_shell() {
        let prepared = prepare(&command(&[], &[]), &account()).unwrap();
        assert_eq!(texts(&prepared.programs), ["/bin/zsh", "/bin/sh"]);
        assert_eq!(texts(&prepared.argv), ["-zsh"]);
    }

    #[test]
    fn what_cannot_be_a_c_string_is_refused() {
        assert!(matches!(
            prepare(&command(&["a\0b"], &[]), &account()),
            Err(SpawnError::ZeroByte(_))
        ));
        assert!(matches!(
            prepare(&command(&[""], &[]), &account()),
            Err(SpawnError::NoName)
        ));
    }

    #[test]
    fn errors_map_to_the_codes_of_shells() {
        assert_eq!(
            explain(b"x", nix::Error::ENOENT),
            (127, "x: not found".to_string())
        );
        assert_eq!(explain(b"x", nix::Error::EACCES).0, 126);
    }
}
