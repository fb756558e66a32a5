//! The loop of process 1: the channel, the sessions' streams, and signals.

use crate::{
    accounts::{self, Account},
    channel::{Channel, ChannelError},
    ending::{Ending, Progress},
    kmsg,
    session::{Port, Session, Violation},
    spawn,
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        reboot::set_cad_enabled,
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use span_api::{
    line::Line,
    session::{Command, Exit, FromInit, SESSIONS_MAX, ToInit, WindowSize},
};
use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
};

/// Signals that process 1 takes: children that ended, and requests to end the guest.
const SIGNALS: [Signal; 6] = [
    Signal::SIGCHLD,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGPWR,
];

#[derive(Debug)]
pub(crate) struct Server {
    channel: Channel,
    account: Account,
    sessions: BTreeMap<u32, Session>,
    progress: Option<Progress>,
    lines: BTreeMap<Line, Sized>,
}

/// A line that somebody with a terminal is attached to.
#[derive(Debug)]
struct Sized {
    size: WindowSize,
    /// It is held open: a line that nobody has open has no size.
    device: OwnedFd,
}

/// What the coordinator does not get away with.
#[derive(Debug, thiserror::Error)]
enum PeerError {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error(transparent)]
    Violation(#[from] Violation),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ready {
    Channel,
    Signals,
    Session(u32, Port),
    /// A line that was hung up.
    Line(Line),
}

impl Server {
    pub(crate) fn new(channel: Channel) -> Server {
        Server {
            channel,
            account: accounts::superuser(),
            sessions: BTreeMap::new(),
            progress: None,
            lines: BTreeMap::new(),
        }
    }

    /// Serves until the guest is to end; returns how.
    pub(crate) fn run(mut self) -> Ending {
        let signals = match take_signals() {
            Ok(signals) => signals,
            Err(error) => {
                kmsg::error(&format!("taking signals failed: {error}"));
                return Ending::PowerOff;
            }
        };
        loop {
            for ready in self.wait(&signals) {
                match ready {
                    Ready::Channel => self.receive(),
                    Ready::Signals => self.take_signals(&signals),
                    Ready::Session(id, port) => self.serve(id, port),
                    Ready::Line(line) => self.reopen_line(line),
                }
            }
            let alone = self.reap();
            self.drain();
            if let Err(error) = self.channel.flush() {
                self.lose_channel(&error.into());
            }
            if let Some(progress) = &mut self.progress {
                let sent = self.channel.is_closed()
                    || (self.sessions.is_empty() && !self.channel.has_output());
                if let Some(ending) = progress.advance(alone, sent) {
                    return ending;
                }
            }
        }
    }

    /// Waits until something is to be done, and says what.
    fn wait(&self, signals: &SignalFd) -> Vec<Ready> {
        let mut targets = vec![Ready::Signals];
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if !self.channel.is_closed() {
            let mut events = PollFlags::POLLIN;
            events.set(PollFlags::POLLOUT, self.channel.has_output());
            targets.push(Ready::Channel);
            fds.push(PollFd::new(self.channel.as_fd(), events));
        }
        for (id, session) in &self.sessions {
            for (port, fd, writing) in session.interests(self.channel.is_full()) {
                let events = if writing {
                    PollFlags::POLLOUT
                } else {
                    PollFlags::POLLIN
                };
                targets.push(Ready::Session(*id, port));
                fds.push(PollFd::new(fd, events));
            }
        }
        for (line, sized) in &self.lines {
            targets.push(Ready::Line(*line));
            // What is typed there is not for this process.
            fds.push(PollFd::new(sized.device.as_fd(), PollFlags::empty()));
        }
        let timeout = match &self.progress {
            // Rounded up, lest the last fraction of a millisecond be spent spinning.
            Some(progress) => u16::try_from(progress.remaining().as_millis() + 1)
                .map_or(PollTimeout::MAX, PollTimeout::from),
            None => PollTimeout::NONE,
        };
        if let Err(error) = poll(&mut fds, timeout)
            && error != nix::Error::EINTR
        {
            kmsg::error(&format!("poll failed: {error}"));
        }
        let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        targets
            .into_iter()
            .zip(&fds)
            .filter(|(_, fd)| ready(fd))
            .map(|(target, _)| target)
            .collect()
    }

    fn receive(&mut self) {
        let result = self
            .channel
            .receive()
            .map_err(PeerError::from)
            .and_then(|open| {
                while let Some(message) = self.channel.next()? {
                    self.take(message)?;
                }
                Ok(open)
            });
        match result {
            Ok(true) => {}
            Ok(false) => {
                self.channel.close();
                self.end(Ending::PowerOff);
            }
            Err(error) => self.lose_channel(&error),
        }
    }

    fn take(&mut self, message: ToInit) -> Result<(), Violation> {
        // A message for an unknown session crossed with that session's last one.
        match message {
            ToInit::Start { id, command } => return self.start(id, &command),
            ToInit::Stdin { id, data } => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.take_input(&data, &mut self.channel)?;
                }
            }
            ToInit::StdinEnd { id } => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.end_input(&mut self.channel);
                }
            }
            ToInit::Credit { id, bytes } => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.take_credit(bytes)?;
                }
            }
            ToInit::Resize { id, size } => {
                if let Some(session) = self.sessions.get(&id) {
                    session.resize(size);
                }
            }
            ToInit::Signal { id, signal } => {
                if let Some(session) = self.sessions.get(&id) {
                    session.signal(signal);
                }
            }
            ToInit::LineSize { line, size } => self.resize_line(line, size),
            ToInit::PowerOff => self.end(Ending::PowerOff),
        }
        Ok(())
    }

    fn resize_line(&mut self, line: Line, size: Option<WindowSize>) {
        let Some(size) = size else {
            self.lines.remove(&line);
            return;
        };
        match self.lines.get_mut(&line) {
            Some(sized) => {
                sized.size = size;
                spawn::resize(sized.device.as_fd(), size);
            }
            None => self.open_line(line, size),
        }
    }

    fn open_line(&mut self, line: Line, size: WindowSize) {
        match spawn::open_line(&line.device()) {
            Ok(device) => {
                spawn::resize(device.as_fd(), size);
                self.lines.insert(line, Sized { size, device });
            }
            Err(error) => kmsg::error(&format!("opening {} failed: {error}", line.device())),
        }
    }

    /// The end of a session on a line closes it for all who have it open. The next session is to find the size.
    fn reopen_line(&mut self, line: Line) {
        if let Some(sized) = self.lines.remove(&line) {
            self.open_line(line, sized.size);
        }
    }

    fn start(&mut self, id: u32, command: &Command) -> Result<(), Violation> {
        if self.sessions.contains_key(&id) {
            return Err(Violation::StartedTwice(id));
        }
        let result = if self.progress.is_some() {
            Err("the guest is about to end".to_string())
        } else if self.sessions.len() >= SESSIONS_MAX {
            Err(format!("there are {SESSIONS_MAX} sessions already"))
        } else {
            self.spawn(id, command)
        };
        match result {
            Ok(session) => {
                self.sessions.insert(id, session);
            }
            Err(message) => {
                let code = spawn::NOT_EXECUTABLE;
                self.channel
                    .send(&FromInit::StartFailed { id, code, message });
            }
        }
        Ok(())
    }

    fn spawn(&self, id: u32, command: &Command) -> Result<Session, String> {
        let name = command
            .argv
            .first()
            .cloned()
            .unwrap_or_else(|| b"login shell".to_vec());
        spawn::prepare(command, &self.account)
            .and_then(|prepared| spawn::spawn(&prepared, command.terminal))
            .and_then(|process| Session::new(id, name, process).map_err(spawn::SpawnError::Streams))
            .map_err(|error| crate::chain(&error))
    }

    fn serve(&mut self, id: u32, port: Port) {
        // A message before it in the same round may have ended the session.
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if let Some(last) = session.serve(port, &mut self.channel) {
            self.sessions.remove(&id);
            self.channel.send(&last);
        }
    }

    fn take_signals(&mut self, signals: &SignalFd) {
        while let Ok(Some(info)) = signals.read_signal() {
            if let Some(ending) = Ending::of_signal(&info) {
                self.end(ending);
            }
        }
    }

    /// Takes leave of every child that has ended, whosesoever it was. Returns whether none is left.
    fn reap(&mut self) -> bool {
        loop {
            let mut status = 0;
            // Not nix's: it has no name for the end by a real-time signal.
            // SAFETY: `waitpid` writes one `int`, which lives across the call.
            let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
            match nix::Error::result(pid) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(nix::Error::EINTR) => continue,
                // Orphans become children of process 1, so without children it is alone.
                Err(_) => return true,
            }
            let exit = match libc::WIFSIGNALED(status) {
                true => Exit::Signal(libc::WTERMSIG(status)),
                false => Exit::Code(libc::WEXITSTATUS(status)),
            };
            let ended = |session: &&mut Session| session.pid().as_raw() == pid;
            if let Some(session) = self.sessions.values_mut().find(ended) {
                session.set_exit(exit);
            }
        }
    }

    fn drain(&mut self) {
        let channel = &mut self.channel;
        self.sessions
            .retain(|_, session| match session.drain(channel) {
                Some(last) => {
                    channel.send(&last);
                    false
                }
                None => true,
            });
    }

    fn lose_channel(&mut self, error: &PeerError) {
        kmsg::error(&crate::chain(error));
        self.channel.close();
        self.end(Ending::PowerOff);
    }

    /// Begins to end the guest; the first request counts.
    fn end(&mut self, ending: Ending) {
        if self.progress.is_none() {
            // Before anything that follows from it is reported.
            self.channel.send(&FromInit::Ending(ending.kind()));
            self.sessions.values().for_each(Session::hang_up);
            self.progress = Some(Progress::begin(ending));
        }
    }
}

fn take_signals() -> nix::Result<SignalFd> {
    let set: SigSet = SIGNALS.into_iter().collect();
    set.thread_block()?;
    // Ctrl-Alt-Del becomes a SIGINT to process 1. A kernel without it has nothing to turn off.
    let _ = set_cad_enabled(false);
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}
