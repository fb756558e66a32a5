//! One session: a command in the guest, its streams, and the credit of each direction.

use crate::{
    channel::Channel,
    spawn::{self, Process, Streams},
};
use nix::unistd::{Pid, tcgetpgrp};
use span_api::session::{DATA_BYTES_MAX, Exit, FromInit, WINDOW_BYTES, WindowSize};
use std::{
    collections::VecDeque,
    fs::File,
    io::{ErrorKind, Read, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

/// Input passed on is acknowledged in portions of at least this, unless none is left.
const CREDIT_BYTES: u32 = WINDOW_BYTES / 4;

/// Upper bound of what a pseudo terminal holds between the command and this side, in bytes: the
/// kernel's limits for a terminal's buffers, rounded up.
const TERMINAL_BYTES_MAX: usize = 128 * 1024;

/// The coordinator broke the rules of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("session {0}: input beyond the window")]
    InputBeyondWindow(u32),
    #[error("session {0}: credit for output that was not sent")]
    CreditBeyondOutput(u32),
    #[error("session {0}: started twice")]
    StartedTwice(u32),
}

/// One of a session's descriptors, to poll for and to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Port {
    Report,
    Input,
    Output(Source),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Stdout,
    Stderr,
}

#[derive(Debug)]
pub(crate) struct Session {
    id: u32,
    pid: Pid,
    /// The command's name, for messages.
    name: Vec<u8>,
    /// Present until it is known whether the command could be started.
    report: Option<File>,
    input: Input,
    stdout: Option<Output>,
    stderr: Option<Output>,
    /// The pseudo terminal's own side, for its size and its foreground process group.
    terminal: Option<OwnedFd>,
    /// Output sent and not yet acknowledged.
    unacknowledged: u32,
    exit: Option<Exit>,
}

#[derive(Debug)]
struct Input {
    /// Absent once the command cannot read any more.
    to: Option<File>,
    waiting: VecDeque<u8>,
    ended: bool,
    /// Whether what was last written ended a line, which matters for a terminal's end of file.
    at_line_start: bool,
    /// Received and not yet acknowledged, including what waits.
    unacknowledged: u32,
}

#[derive(Debug)]
struct Output {
    from: File,
    /// Once the command has ended: how much may at most be its own, the rest being of processes
    /// it left behind.
    left: Option<usize>,
}

impl Session {
    pub(crate) fn new(id: u32, name: Vec<u8>, process: Process) -> nix::Result<Session> {
        let Process {
            pid,
            report,
            streams,
        } = process;
        let output = |fd: OwnedFd| {
            Some(Output {
                from: File::from(fd),
                left: None,
            })
        };
        let (input, stdout, stderr, terminal) = match streams {
            Streams::Pipes {
                stdin,
                stdout,
                stderr,
            } => (stdin, output(stdout), output(stderr), None),
            Streams::Terminal { master } => {
                let duplicate = || {
                    master.try_clone().map_err(|error| {
                        nix::Error::from_raw(error.raw_os_error().unwrap_or(libc::EMFILE))
                    })
                };
                (duplicate()?, output(duplicate()?), None, Some(master))
            }
        };
        Ok(Session {
            id,
            pid,
            name,
            report: Some(File::from(report)),
            input: Input {
                to: Some(File::from(input)),
                waiting: VecDeque::new(),
                ended: false,
                at_line_start: true,
                unacknowledged: 0,
            },
            stdout,
            stderr,
            terminal,
            unacknowledged: 0,
            exit: None,
        })
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// The descriptors that have something to do, each with whether it is for writing.
    pub(crate) fn interests(&self, channel_full: bool) -> Vec<(Port, BorrowedFd<'_>, bool)> {
        let mut interests = Vec::with_capacity(4);
        if let Some(report) = &self.report {
            interests.push((Port::Report, report.as_fd(), false));
        }
        if let Some(to) = &self.input.to
            && !self.input.waiting.is_empty()
        {
            interests.push((Port::Input, to.as_fd(), true));
        }
        if !channel_full && self.output_room() > 0 {
            for (source, output) in [
                (Source::Stdout, &self.stdout),
                (Source::Stderr, &self.stderr),
            ] {
                if let Some(output) = output {
                    interests.push((Port::Output(source), output.from.as_fd(), false));
                }
            }
        }
        interests
    }

    /// Does what a descriptor is ready for. A reported failure to start ends the session: then the
    /// result says so.
    pub(crate) fn serve(&mut self, port: Port, channel: &mut Channel) -> Option<FromInit> {
        match port {
            Port::Report => return self.read_report(),
            Port::Input => self.write_input(channel),
            Port::Output(source) => self.read_output(source, channel),
        }
        None
    }

    /// The process has ended: from now on only what it wrote before counts.
    pub(crate) fn set_exit(&mut self, exit: Exit) {
        self.exit = Some(exit);
        self.input.to = None;
        let is_terminal = self.terminal.is_some();
        for output in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            output.left = Some(match is_terminal {
                true => TERMINAL_BYTES_MAX,
                false => readable_bytes(output.from.as_fd()),
            });
        }
    }

    /// After the command has ended: sends the rest of its output as far as credit and the channel
    /// allow. Returns the session's last message once all is sent.
    pub(crate) fn drain(&mut self, channel: &mut Channel) -> Option<FromInit> {
        let exit = self.exit?;
        if let Some(failure) = self.read_report() {
            return Some(failure);
        }
        for source in [Source::Stdout, Source::Stderr] {
            while self.output(source).is_some() && self.output_room() > 0 && !channel.is_full() {
                self.read_output(source, channel);
            }
        }
        let drained = self.stdout.is_none() && self.stderr.is_none();
        drained.then_some(FromInit::Exited { id: self.id, exit })
    }

    pub(crate) fn take_input(
        &mut self,
        data: &[u8],
        channel: &mut Channel,
    ) -> Result<(), Violation> {
        let unacknowledged = self.input.unacknowledged as usize + data.len();
        if data.len() > DATA_BYTES_MAX || unacknowledged > WINDOW_BYTES as usize {
            return Err(Violation::InputBeyondWindow(self.id));
        }
        self.input.unacknowledged = unacknowledged as u32;
        if !self.input.ended {
            self.input.waiting.extend(data);
        }
        self.write_input(channel);
        Ok(())
    }

    pub(crate) fn end_input(&mut self, channel: &mut Channel) {
        if !self.input.ended {
            self.input.ended = true;
            self.write_input(channel);
        }
    }

    pub(crate) fn take_credit(&mut self, bytes: u32) -> Result<(), Violation> {
        let rest = self.unacknowledged.checked_sub(bytes);
        self.unacknowledged = rest.ok_or(Violation::CreditBeyondOutput(self.id))?;
        Ok(())
    }

    pub(crate) fn resize(&self, size: WindowSize) {
        if let Some(terminal) = &self.terminal {
            // One that is gone is about to be seen as its end.
            spawn::resize(terminal.as_fd(), size);
        }
    }

    /// Delivers a signal to the foreground process group. Whoever is gone needs none.
    pub(crate) fn signal(&self, signal: i32) {
        // Until the process is reaped its number cannot have been given to another.
        if self.exit.is_some() || signal <= 0 {
            return;
        }
        // By number: nix has no real-time signals.
        // SAFETY: `kill` takes no pointer, and refuses numbers that are no signals.
        unsafe {
            if libc::kill(-self.foreground().as_raw(), signal) < 0 {
                // Between fork and setsid the group does not exist yet.
                libc::kill(self.pid.as_raw(), signal);
            }
        }
    }

    /// Tells the processes of a terminal that it is gone: shells ignore SIGTERM.
    pub(crate) fn hang_up(&self) {
        if self.terminal.is_some() {
            self.signal(libc::SIGHUP);
        }
    }

    fn foreground(&self) -> Pid {
        let group = self
            .terminal
            .as_ref()
            .and_then(|terminal| tcgetpgrp(terminal).ok());
        group.filter(|group| group.as_raw() > 0).unwrap_or(self.pid)
    }

    fn read_report(&mut self) -> Option<FromInit> {
        let report = self.report.as_mut()?;
        let mut number = [0; 4];
        match report.read(&mut number) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Ok(4) => {
                let error = nix::Error::from_raw(i32::from_ne_bytes(number));
                let (code, message) = spawn::explain(&self.name, error);
                Some(FromInit::StartFailed {
                    id: self.id,
                    code,
                    message,
                })
            }
            _ => {
                self.report = None;
                None
            }
        }
    }

    fn output(&mut self, source: Source) -> &mut Option<Output> {
        match source {
            Source::Stdout => &mut self.stdout,
            Source::Stderr => &mut self.stderr,
        }
    }

    fn output_room(&self) -> usize {
        (WINDOW_BYTES - self.unacknowledged) as usize
    }

    fn read_output(&mut self, source: Source, channel: &mut Channel) {
        let id = self.id;
        let room = self.output_room().min(DATA_BYTES_MAX);
        if room == 0 {
            // The other stream has used up the credit meanwhile.
            return;
        }
        let slot = self.output(source);
        let Some(output) = slot else { return };
        let mut data = vec![0; room.min(output.left.unwrap_or(room))];
        match output.from.read(&mut data) {
            Ok(n) if n > 0 => {
                output.left = output.left.map(|left| left - n);
                data.truncate(n);
                self.unacknowledged += n as u32;
                channel.send(&match source {
                    Source::Stdout => FromInit::Stdout { id, data },
                    Source::Stderr => FromInit::Stderr { id, data },
                });
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Nothing more can be the ended command's.
            Err(error) if error.kind() == ErrorKind::WouldBlock && output.left.is_some() => {
                *slot = None;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // The end; that of a pseudo terminal is EIO.
            Ok(_) | Err(_) => *slot = None,
        }
    }

    fn write_input(&mut self, channel: &mut Channel) {
        let is_terminal = self.terminal.is_some();
        let input = &mut self.input;
        while !input.waiting.is_empty() {
            let Some(to) = &mut input.to else {
                input.waiting.clear();
                break;
            };
            let (data, _) = input.waiting.as_slices();
            match to.write(data) {
                Ok(n) => {
                    input.at_line_start = data[..n].last() == Some(&b'\n');
                    input.waiting.drain(..n);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Nobody reads any more.
                Err(_) => input.to = None,
            }
        }
        if input.ended && input.waiting.is_empty() {
            match &mut input.to {
                Some(to) if is_terminal => send_end_of_file(to, input.at_line_start),
                _ => {}
            }
            input.to = None;
        }
        let passed_on = input.unacknowledged - input.waiting.len() as u32;
        if passed_on >= CREDIT_BYTES || (passed_on > 0 && input.waiting.is_empty()) {
            input.unacknowledged -= passed_on;
            channel.send(&FromInit::Credit {
                id: self.id,
                bytes: passed_on,
            });
        }
    }
}

/// A terminal cannot be half closed: its end of input is a character, if it is in that mode.
fn send_end_of_file(to: &mut File, at_line_start: bool) {
    use nix::sys::termios::{LocalFlags, SpecialCharacterIndices, tcgetattr};
    let Ok(settings) = tcgetattr(&*to) else {
        return;
    };
    if !settings.local_flags.contains(LocalFlags::ICANON) {
        return;
    }
    let end = settings.control_chars[SpecialCharacterIndices::VEOF as usize];
    // In the middle of a line the first one only hands over what there is.
    let ends = [end, end];
    let _ = to.write(&ends[usize::from(at_line_start)..]);
}

fn readable_bytes(fd: BorrowedFd<'_>) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one `int`, which lives across the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &mut bytes) };
    match nix::Error::result(result) {
        Ok(_) => usize::try_from(bytes).unwrap_or(0),
        Err(_) => 0,
    }
}
