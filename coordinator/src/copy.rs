//! `cp`: files into and out of a guest.
//!
//! The guest's end is a command of its first process (`span-copy`), in a session of its own: so a copy has the
//! session's flow control, and holds up nobody else. What travels is a stream of [`span_api::copy`], which a
//! thread here makes or takes apart, because files block.
//!
//! A signal ends the copy in order: both sides notice that the stream broke off, and clear away what they have
//! of it.

mod meter;
mod sides;

use crate::cli::Target;
use crate::control::{Ask, Client};
use crate::failure::{Failure, one_line};
use crate::output::say;
use crate::reach::find;
use crate::stdio::{Pipe, exit_code};
use meter::Meter;
use sides::{Copy, From};
use span_api::copy::{CopyError, Into, receive, receive_contents, send, send_file};
use span_api::session::{Command, DATA_BYTES_MAX, FromInit, ToInit, WINDOW_BYTES};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};

/// Something was not copied, and a line said what.
const EXIT_INCOMPLETE: u8 = 1;

/// Chunks of a stream that wait to be sent.
const CHUNKS_MAX: usize = 2;

/// Longest wait for the guest to clear away a copy that was broken off.
const CLEAR_MS_MAX: u64 = 2000;

/// How often progress is shown.
const SHOW_INTERVAL_MS: u64 = 200;

/// Longest line that the guest says.
const LINE_BYTES_MAX: usize = 8192;

pub(crate) async fn run(paths: &[OsString]) -> Result<u8, Failure> {
    let copy = Copy::parse(paths)?;
    let (guest, argv) = match &copy {
        Copy::In {
            guest, path, into, ..
        } => {
            let into: &[u8] = match into {
                Into::Any => b"any",
                Into::Directory => b"directory",
                Into::File => b"file",
            };
            (guest, vec![b"in".to_vec(), into.to_vec(), path.clone()])
        }
        Copy::Out { guest, paths, .. } => {
            let out = std::iter::once(b"out".to_vec());
            (guest, out.chain(paths.iter().cloned()).collect())
        }
    };
    let (name, directory) = find(&Target {
        name: guest.clone(),
    })?;
    // Before there is anything to clear away: until here a signal just ends this.
    let stream = match &copy {
        Copy::In {
            from: From::Stdin,
            path,
            ..
        } => Some(spool(path)?),
        _ => None,
    };
    let mut signals = Signals::new().map_err(|error| Failure::cannot("signals", error))?;
    let pipe = Client::connect(&name, &directory)
        .await?
        .session(Ask::Session)
        .await?;
    let command = Command {
        argv: [vec![b"span-copy".to_vec()], argv].concat(),
        // The guest's own: it knows where its commands are.
        env: Vec::new(),
        directory: b"/".to_vec(),
        cpus: Vec::new(),
        terminal: None,
    };
    let transfer = Transfer {
        name,
        pipe,
        meter: Meter::new(),
        said: Vec::new(),
        complete: true,
    };
    transfer.send(ToInit::Start { id: 0, command }).await;
    match copy {
        Copy::In { from, .. } => {
            let source = match (from, stream) {
                (From::Paths(paths), _) => Source::Paths(paths),
                (From::Stdin, Some((file, name))) => Source::File(file, name),
                (From::Stdin, None) => return Err(Failure::failed("stdin was not read")),
            };
            transfer.copy_in(source, &mut signals).await
        }
        Copy::Out { to, into, .. } => transfer.copy_out(to, into, &mut signals).await,
    }
}

/// Reads stdin to its end: how long it is has to be known before it can be sent.
fn spool(path: &[u8]) -> Result<(File, OsString), Failure> {
    let path = Path::new(OsStr::from_bytes(path));
    let Some(name) = path.file_name() else {
        return Err(Failure::usage(format!(
            "{}: stdin needs the name of a file",
            path.display()
        )));
    };
    let failed = |error: io::Error| Failure::cannot("stdin", error);
    let mut file = tempfile::tempfile().map_err(failed)?;
    io::copy(&mut io::stdin().lock(), &mut file).map_err(failed)?;
    file.rewind().map_err(failed)?;
    Ok((file, name.to_owned()))
}

/// What is copied into a guest.
enum Source {
    Paths(Vec<PathBuf>),
    File(File, OsString),
}

/// Signals that end a copy.
struct Signals([(Signal, u8); 3]);

impl Signals {
    fn new() -> io::Result<Self> {
        let of = |kind: SignalKind| -> io::Result<(Signal, u8)> {
            Ok((signal(kind)?, kind.as_raw_value() as u8))
        };
        Ok(Self([
            of(SignalKind::interrupt())?,
            of(SignalKind::terminate())?,
            of(SignalKind::hangup())?,
        ]))
    }

    /// The exit code with which a shell reports the signal that came.
    async fn next(&mut self) -> u8 {
        let [(first, a), (second, b), (third, c)] = &mut self.0;
        let number = tokio::select! {
            _ = first.recv() => *a,
            _ = second.recv() => *b,
            _ = third.recv() => *c,
        };
        128 + number
    }
}

fn interrupted(code: u8) -> Failure {
    Failure {
        code,
        line: "interrupted; nothing was copied".into(),
    }
}

/// One copy that is under way.
struct Transfer {
    name: String,
    pipe: Pipe,
    meter: Meter,
    /// What the guest has said of a line.
    said: Vec<u8>,
    complete: bool,
}

impl Transfer {
    async fn send(&self, message: ToInit) {
        // That the guest is gone is received too.
        let _ = self.pipe.to_init.send(message).await;
    }

    fn report(&mut self, line: &str) {
        self.meter.clear();
        say(&one_line(line));
        self.complete = false;
    }

    /// Takes what the guest says on stderr: lines that begin with a path of its.
    async fn listen(&mut self, data: &[u8]) {
        self.said.extend_from_slice(data);
        let bytes = data.len() as u32;
        self.send(ToInit::Credit { id: 0, bytes }).await;
        while let Some(end) = self.said.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.said.drain(..=end).collect();
            let line = format!("{}:{}", self.name, String::from_utf8_lossy(&line));
            self.report(&line);
        }
        if self.said.len() > LINE_BYTES_MAX {
            self.said.clear();
        }
    }

    /// What the end of the guest's command means.
    fn end(&mut self, message: Option<FromInit>) -> Result<u8, Failure> {
        self.meter.clear();
        match message {
            Some(FromInit::Exited { exit, .. }) => match exit_code(exit) {
                0 if self.complete => Ok(0),
                // It was said.
                0 | 1 if !self.complete => Ok(EXIT_INCOMPLETE),
                code => Err(Failure::failed(format!(
                    "the copy ended in guest {} with exit code {code}",
                    self.name
                ))),
            },
            Some(FromInit::StartFailed { message, .. }) => Err(Failure::failed(one_line(&message))),
            _ => Err(Failure::failed(format!(
                "the session ended with guest {}",
                self.name
            ))),
        }
    }

    async fn copy_in(mut self, source: Source, signals: &mut Signals) -> Result<u8, Failure> {
        let (chunks, mut made) = mpsc::channel(CHUNKS_MAX);
        let (reports, mut reported) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            let to = Chunks {
                to: chunks,
                waiting: Vec::with_capacity(DATA_BYTES_MAX),
            };
            let report = |error: CopyError| _ = reports.send(error.to_string());
            let result = match source {
                Source::Paths(paths) => send(&paths, to, report),
                Source::File(mut file, name) => send_file(&mut file, &name, to),
            };
            if let Err(error) = result {
                report(error);
            }
        });
        let mut credit = WINDOW_BYTES;
        let mut held: Option<Vec<u8>> = None;
        let mut open = true;
        let mut show = interval(Duration::from_millis(SHOW_INTERVAL_MS));
        show.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if held
                .as_ref()
                .is_some_and(|data| data.len() <= credit as usize)
                && let Some(data) = held.take()
            {
                credit -= data.len() as u32;
                self.meter.add(data.len());
                self.send(ToInit::Stdin { id: 0, data }).await;
            }
            tokio::select! {
                message = self.pipe.from_init.recv() => match message {
                    Some(FromInit::Credit { bytes, .. }) => {
                        credit = credit.saturating_add(bytes).min(WINDOW_BYTES);
                    }
                    Some(FromInit::Stderr { data, .. }) => self.listen(&data).await,
                    Some(FromInit::Stdout { data, .. }) => {
                        let bytes = data.len() as u32;
                        self.send(ToInit::Credit { id: 0, bytes }).await;
                    }
                    Some(FromInit::Ready { .. } | FromInit::Failed(_) | FromInit::Ending(_)) => {}
                    end => {
                        while let Ok(line) = reported.try_recv() {
                            self.report(&line);
                        }
                        return self.end(end);
                    }
                },
                Some(line) = reported.recv() => self.report(&line),
                data = made.recv(), if held.is_none() && open => match data {
                    Some(data) => held = Some(data),
                    None => {
                        open = false;
                        self.send(ToInit::StdinEnd { id: 0 }).await;
                    }
                },
                _ = show.tick() => self.meter.show(),
                code = signals.next() => {
                    self.meter.clear();
                    self.send(ToInit::StdinEnd { id: 0 }).await;
                    let cleared = timeout(Duration::from_millis(CLEAR_MS_MAX), self.cleared());
                    return match cleared.await {
                        Ok(()) => Err(interrupted(code)),
                        Err(_) => Err(Failure {
                            code,
                            line: "interrupted; the guest has not cleared the copy away yet".into(),
                        }),
                    };
                }
            }
        }
    }

    /// Waits for the guest's command to end, whatever it says.
    async fn cleared(&mut self) {
        while let Some(message) = self.pipe.from_init.recv().await {
            if matches!(
                message,
                FromInit::Exited { .. } | FromInit::StartFailed { .. }
            ) {
                return;
            }
        }
    }

    async fn copy_out(
        mut self,
        to: Option<PathBuf>,
        into: Into,
        signals: &mut Signals,
    ) -> Result<u8, Failure> {
        // The window bounds what waits here: credit is given for what was taken.
        let (data, arrived) = std::sync::mpsc::channel();
        let (taken, mut credits) = mpsc::unbounded_channel();
        let (result, mut done) = oneshot::channel();
        std::thread::spawn(move || {
            let from = Arrivals {
                from: arrived,
                now: Vec::new(),
                at: 0,
                taken,
            };
            let received = match to {
                Some(path) => receive(from, &path, into),
                None => receive_contents(from, &mut io::stdout().lock()),
            };
            let _ = result.send(received.map_err(|error| error.to_string()));
        });
        let mut data = Some(data);
        let mut ended = None;
        let mut settled = false;
        let mut broken = None;
        let mut show = interval(Duration::from_millis(SHOW_INTERVAL_MS));
        show.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while ended.is_none() || !settled {
            tokio::select! {
                message = self.pipe.from_init.recv(), if ended.is_none() => match message {
                    Some(FromInit::Stdout { data: more, .. }) => {
                        self.meter.add(more.len());
                        let bytes = more.len() as u32;
                        let wanted = data.as_ref().is_some_and(|data| data.send(more).is_ok());
                        if !wanted {
                            self.send(ToInit::Credit { id: 0, bytes }).await;
                        }
                    }
                    Some(FromInit::Stderr { data, .. }) => self.listen(&data).await,
                    Some(
                        FromInit::Credit { .. }
                        | FromInit::Ready { .. }
                        | FromInit::Failed(_)
                        | FromInit::Ending(_),
                    ) => {}
                    end => {
                        data = None;
                        ended = Some(end);
                    }
                },
                Some(bytes) = credits.recv() => self.send(ToInit::Credit { id: 0, bytes }).await,
                received = &mut done, if !settled => {
                    settled = true;
                    match received {
                        Ok(Ok(())) => {}
                        Ok(Err(line)) if ended.is_some() => broken = Some(line),
                        Ok(Err(line)) => {
                            self.report(&line);
                            return Ok(EXIT_INCOMPLETE);
                        }
                        Err(_) => return Err(Failure::failed("the copy ended without a result")),
                    }
                }
                _ = show.tick() => self.meter.show(),
                code = signals.next() => {
                    self.meter.clear();
                    drop(data);
                    let in_place = settled || matches!((&mut done).await, Ok(Ok(())));
                    return match in_place {
                        true => Ok(0),
                        false => Err(interrupted(code)),
                    };
                }
            }
        }
        let code = self.end(ended.flatten())?;
        match broken {
            None => Ok(code),
            Some(line) => {
                // What the guest said is the reason, if it said something.
                if self.complete {
                    self.report(&line);
                }
                Ok(EXIT_INCOMPLETE)
            }
        }
    }
}

/// A stream that is sent in chunks.
struct Chunks {
    to: mpsc::Sender<Vec<u8>>,
    waiting: Vec<u8>,
}

impl Write for Chunks {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let bytes = data.len().min(DATA_BYTES_MAX - self.waiting.len());
        self.waiting.extend_from_slice(&data[..bytes]);
        if self.waiting.len() == DATA_BYTES_MAX {
            self.flush()?;
        }
        Ok(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        let next = Vec::with_capacity(DATA_BYTES_MAX);
        let chunk = std::mem::replace(&mut self.waiting, next);
        if chunk.is_empty() {
            return Ok(());
        }
        self.to
            .blocking_send(chunk)
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// A stream that arrives in chunks.
struct Arrivals {
    from: std::sync::mpsc::Receiver<Vec<u8>>,
    now: Vec<u8>,
    at: usize,
    /// Told how much was taken.
    taken: mpsc::UnboundedSender<u32>,
}

impl Read for Arrivals {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.now.len() {
            let Ok(next) = self.from.recv() else {
                return Ok(0);
            };
            let _ = self.taken.send(next.len() as u32);
            (self.now, self.at) = (next, 0);
        }
        let bytes = buffer.len().min(self.now.len() - self.at);
        buffer[..bytes].copy_from_slice(&self.now[self.at..self.at + bytes]);
        self.at += bytes;
        Ok(bytes)
    }
}
