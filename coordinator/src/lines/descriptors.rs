//! Lines whose other ends are descriptors that this process was started with (`ssl0=fd:5`).
//!
//! They stay in this process, which sees all that is written to a line anyway: none of a guest's processes has them,
//! and the guest's nodes may be anywhere. Reads and writes may block for as long as the other side likes, so each
//! direction has a thread of its own.
#![allow(unsafe_code)]

use super::Hub;
use crate::backlog::{self, Refused};
use crate::stdio::Pipe;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use span_api::line::Line;
use span_api::session::{DATA_BYTES_MAX, FromInit, ToInit};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long the end of a guest waits for the rest of them to be read.
const REST_MS_MAX: u64 = 500;

const SYNTAX: &str = "descriptors are fd:IN[,OUT], where null is none for a direction";

/// Descriptors of this process, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Descriptors {
    input: Option<RawFd>,
    output: Option<RawFd>,
}

impl Descriptors {
    /// `fd:IN`, which is both, `fd:IN,OUT`, `fd:IN,fd:OUT`, and `null` for either.
    pub(super) fn parse(value: &str) -> Result<Self, String> {
        let one = |text: &str| match text {
            "null" | "none" => Ok(None),
            text => {
                let number = text.strip_prefix("fd:").unwrap_or(text);
                let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
                let number = number.parse::<RawFd>().ok().filter(|_| digits);
                number.map(Some).ok_or_else(|| SYNTAX.to_string())
            }
        };
        let (input, output) = match value.split_once(',') {
            Some((input, output)) => (one(input)?, one(output)?),
            None => (one(value)?, one(value)?),
        };
        Ok(Self { input, output })
    }
}

impl std::fmt::Display for Descriptors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.input, self.output) {
            (Some(input), Some(output)) if input == output => write!(f, "fd:{input}"),
            (Some(input), Some(output)) => write!(f, "fd:{input},{output}"),
            (Some(input), None) => write!(f, "fd:{input},null"),
            (None, Some(output)) => write!(f, "null,fd:{output}"),
            (None, None) => f.write_str("null"),
        }
    }
}

/// What all lines of a guest have taken.
#[derive(Debug, Default)]
pub(super) struct Taken(BTreeSet<RawFd>);

impl Taken {
    /// Checks the descriptors of one more line; an error is why it cannot have them.
    pub(super) fn add(&mut self, line: &Descriptors) -> Result<(), String> {
        if let Some(input) = line.input {
            check(input, OFlag::O_WRONLY, "reading")?;
        }
        if let Some(output) = line.output {
            check(output, OFlag::O_RDONLY, "writing")?;
        }
        let own: BTreeSet<RawFd> = line.input.into_iter().chain(line.output).collect();
        if let Some(twice) = own.intersection(&self.0).next() {
            return Err(format!("descriptor {twice} is another line's already"));
        }
        self.0.extend(own);
        Ok(())
    }

    /// Keeps them from whatever this process starts.
    pub(super) fn keep(self) -> io::Result<()> {
        for number in self.0 {
            // SAFETY: `add` found it open, and nothing in this process closes it before `take`.
            let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
            fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        Ok(())
    }
}

/// Whether this process was started with descriptor `number`, and it is not open in the mode `not` alone.
fn check(number: RawFd, not: OFlag, what: &str) -> Result<(), String> {
    if number <= 2 {
        return Err("0, 1 and 2 are this command's own; allowed are 3 and above".into());
    }
    let closed = || {
        format!("descriptor {number} is not open; this command has to be started with it (N<>FILE)")
    };
    // SAFETY: whether it is open is what the call says; it is not used if it is not.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl(descriptor, FcntlArg::F_GETFD).map_err(|_| closed())?;
    // What this program opens itself is closed by exec, what it was started with cannot be.
    if FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC) {
        return Err(closed());
    }
    let kind = fstat(descriptor).map_err(|_| closed())?.st_mode;
    if SFlag::from_bits_truncate(kind) & SFlag::S_IFMT == SFlag::S_IFDIR {
        return Err(format!("descriptor {number} is a directory"));
    }
    let flags = fcntl(descriptor, FcntlArg::F_GETFL).map_err(|_| closed())?;
    let flags = OFlag::from_bits_truncate(flags);
    if flags & OFlag::O_ACCMODE == not || flags.contains(OFlag::O_PATH) {
        return Err(format!("descriptor {number} is not open for {what}"));
    }
    Ok(())
}

/// A line that has its descriptors.
#[derive(Debug)]
pub(super) struct Served {
    task: JoinHandle<()>,
    ending: watch::Sender<()>,
    written: JoinHandle<()>,
    /// Of a terminal, as it was.
    settings: Option<(OwnedFd, Termios)>,
}

impl Served {
    /// Takes the descriptors and passes on what comes at either end, complaining to `log`. To be called once.
    pub(super) fn start(
        hub: Hub,
        line: Line,
        descriptors: Descriptors,
        log: File,
    ) -> io::Result<Self> {
        // SAFETY: `Taken` has seen to it that they are open and no other line's, and nothing else in this
        // process knows of them.
        let own = |number: RawFd| unsafe { File::from_raw_fd(number) };
        let input = descriptors.input.map(own);
        let output = match (&input, descriptors.output) {
            (Some(both), output) if output == descriptors.input => Some(both.try_clone()?),
            (_, output) => output.map(own),
        };
        let settings = match input.as_ref().or(output.as_ref()) {
            Some(end) => raw(end)?,
            None => None,
        };
        let (typed, keys) = mpsc::channel(1);
        if let Some(input) = input {
            let log = log.try_clone()?;
            std::thread::Builder::new()
                .name(format!("{line} in"))
                .spawn(move || read(input, typed, line, log))?;
        }
        let (waiting, chunks) = backlog::new();
        let (done, written) = tokio::sync::oneshot::channel::<()>();
        let (complaints, (ending, end)) = (log.try_clone()?, watch::channel(()));
        std::thread::Builder::new()
            .name(format!("{line} out"))
            .spawn(move || {
                write(output, chunks, line, complaints);
                drop(done);
            })?;
        Ok(Self {
            task: tokio::spawn(serve(hub, line, keys, waiting, (log, end))),
            ending,
            written: tokio::spawn(async move { _ = written.await }),
            settings,
        })
    }

    /// Waits a little until what the guest wrote is written.
    pub(super) async fn end(self) {
        drop(self.ending);
        let _ = self.task.await;
        let _ = timeout(Duration::from_millis(REST_MS_MAX), self.written).await;
        if let Some((terminal, settings)) = self.settings {
            let _ = tcsetattr(terminal, SetArg::TCSANOW, &settings);
        }
    }
}

/// Has a terminal pass on everything as it is; what it did before, if it is one.
fn raw(end: &File) -> io::Result<Option<(OwnedFd, Termios)>> {
    let Ok(settings) = tcgetattr(end) else {
        return Ok(None);
    };
    let mut changed = settings.clone();
    cfmakeraw(&mut changed);
    tcsetattr(end, SetArg::TCSANOW, &changed)?;
    Ok(Some((end.as_fd().try_clone_to_owned()?, settings)))
}

fn complain(mut log: &File, line: Line, what: &str) {
    let _ = writeln!(log, "span: {line}: {what}");
}

/// Attached to the line as anybody is, for as long as the guest runs.
async fn serve(
    hub: Hub,
    line: Line,
    mut keys: mpsc::Receiver<Vec<u8>>,
    waiting: backlog::Sender<Vec<u8>>,
    (log, mut ending): (File, watch::Receiver<()>),
) {
    tokio::select! {
        () = hub.connected() => {}
        _ = ending.changed() => return,
    }
    let Ok(Pipe {
        to_init,
        mut from_init,
    }) = hub.attach(line, None)
    else {
        return complain(&log, line, "nobody more can be attached");
    };
    // An agent that has yet to make the line's ends has nowhere to put what is typed.
    let mut ready = std::pin::pin!(hub.ready());
    let (mut is_ready, mut typing, mut losing) = (false, true, false);
    let mut show = |message| {
        if let FromInit::Stdout { data, .. } = message {
            let lost = waiting.send(data) == Err(Refused::Full);
            if lost && !losing {
                complain(&log, line, "output is lost, nobody reads it");
            }
            losing = lost;
        }
    };
    loop {
        tokio::select! {
            message = from_init.recv() => match message {
                Some(message) => show(message),
                None => return,
            },
            _ = ending.changed() => {
                while let Ok(message) = from_init.try_recv() {
                    show(message);
                }
                return;
            }
            () = &mut ready, if !is_ready => is_ready = true,
            data = keys.recv(), if typing && is_ready => match data {
                Some(data) => {
                    if to_init.send(ToInit::Stdin { id: 0, data }).await.is_err() {
                        return;
                    }
                }
                None => typing = false,
            }
        }
    }
}

fn read(mut input: File, typed: mpsc::Sender<Vec<u8>>, line: Line, log: File) {
    let mut buffer = [0; DATA_BYTES_MAX];
    loop {
        match retried(&mut input, PollFlags::POLLIN, |input| {
            input.read(&mut buffer)
        }) {
            Ok(0) => return,
            Ok(bytes) => {
                if typed.blocking_send(buffer[..bytes].to_vec()).is_err() {
                    return;
                }
            }
            Err(error) => return complain(&log, line, &format!("no more input: {error}")),
        }
    }
}

fn write(output: Option<File>, mut chunks: backlog::Receiver<Vec<u8>>, line: Line, log: File) {
    let Some(mut output) = output else {
        return;
    };
    while let Some(chunk) = chunks.blocking_recv() {
        let mut rest = chunk.as_slice();
        while !rest.is_empty() {
            match retried(&mut output, PollFlags::POLLOUT, |output| output.write(rest)) {
                Ok(0) => return,
                Ok(bytes) => rest = &rest[bytes..],
                Err(error) => return complain(&log, line, &format!("no more output: {error}")),
            }
        }
    }
}

/// Makes a call that waits, also where whoever shares the descriptor wants calls that do not.
fn retried(
    file: &mut File,
    ready: PollFlags,
    mut call: impl FnMut(&mut File) -> io::Result<usize>,
) -> io::Result<usize> {
    loop {
        match call(file) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                match poll(&mut [PollFd::new(file.as_fd(), ready)], PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            result => return result,
        }
    }
}
