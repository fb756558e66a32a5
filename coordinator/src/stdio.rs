//! This process's stdin, stdout and stderr as the far ends of a session's.
//!
//! Reading stdin and writing stdout may block for as long as the other side likes, so each has a thread
//! of its own; both are abandoned when the program ends. Credit is given for output when it has been
//! written, so that a user who does not read holds up the command, and memory stays bounded. Lines and the shared shell
//! do not wait for credit: no more of them is taken than a window has room for.

use crate::terminal::{self, Raw};
use span_api::session::{Command, DATA_BYTES_MAX, Exit, FromInit, ToInit, WINDOW_BYTES};
use std::io::{self, Read, Write};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Ctrl-]
const DETACH_KEY: u8 = 0x1d;

/// Chunks of stdin read ahead.
const READ_AHEAD_MAX: usize = 2;

/// A session's messages, wherever they come from and go to. Numbers of sessions in them mean nothing.
#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) to_init: mpsc::Sender<ToInit>,
    pub(crate) from_init: mpsc::Receiver<FromInit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Options {
    /// The user's terminal is passed on: raw, with changes of its size.
    pub(crate) raw: bool,
    /// Ctrl-] leaves the session.
    pub(crate) detach_key: bool,
    /// The end of stdin leaves the session instead of being passed on.
    pub(crate) leave_at_end: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The command ended with this exit code.
    Code(u8),
    /// It could not be started: exit code and line.
    NotStarted(u8, String),
    Detached,
    /// The other side went away.
    Lost,
}

/// Starts `command`, if there is one to start, and passes streams on until the session ends.
pub(crate) async fn run(mut pipe: Pipe, command: Option<Command>, options: Options) -> Ended {
    let raw = if options.raw { Raw::enter().ok() } else { None };
    // What cannot be sent any more needs no answer here: how the session ended is still to be received.
    if let Some(command) = command {
        let _ = pipe.to_init.send(ToInit::Start { id: 0, command }).await;
    }
    let mut resized = signal(SignalKind::window_change()).ok();
    let (mut input, mut input_credit) = (read_input(), WINDOW_BYTES);
    let mut input_open = true;
    let (output, mut written) = write_output();
    let mut broken = false;
    let mut unwritten: u32 = 0;
    // Input that has not got credit yet.
    let mut held: Option<Vec<u8>> = None;

    let ended = loop {
        let sendable = held
            .as_ref()
            .is_some_and(|data| data.len() <= input_credit as usize);
        if sendable && let Some(data) = held.take() {
            input_credit -= data.len() as u32;
            let _ = pipe.to_init.send(ToInit::Stdin { id: 0, data }).await;
        }
        tokio::select! {
            message = pipe.from_init.recv(), if unwritten <= WINDOW_BYTES => match message {
                Some(FromInit::Credit { bytes, .. }) => {
                    input_credit = input_credit.saturating_add(bytes).min(WINDOW_BYTES);
                }
                Some(FromInit::Stdout { data, .. }) => {
                    unwritten += data.len() as u32;
                    let _ = output.send(Output { stderr: false, data });
                }
                Some(FromInit::Stderr { data, .. }) => {
                    unwritten += data.len() as u32;
                    let _ = output.send(Output { stderr: true, data });
                }
                Some(FromInit::Exited { exit, .. }) => break Ended::Code(exit_code(exit)),
                Some(FromInit::StartFailed { code, message, .. }) => {
                    break Ended::NotStarted(code as u8, message);
                }
                Some(FromInit::Ready { .. } | FromInit::Failed(_) | FromInit::Ending(_)) => {}
                None => break Ended::Lost,
            },
            Some(report) = written.recv() => {
                unwritten -= report.bytes;
                if report.failed && !broken {
                    // What a local command would get, whose reader went away.
                    broken = true;
                    let signal = libc::SIGPIPE;
                    let _ = pipe.to_init.send(ToInit::Signal { id: 0, signal }).await;
                }
                let credit = ToInit::Credit { id: 0, bytes: report.bytes };
                let _ = pipe.to_init.send(credit).await;
            },
            data = input.recv(), if held.is_none() && input_open => match data {
                Some(data) => {
                    let key = data.iter().position(|byte| *byte == DETACH_KEY);
                    if options.detach_key && let Some(key) = key {
                        let data = data[..key].to_vec();
                        let _ = pipe.to_init.send(ToInit::Stdin { id: 0, data }).await;
                        break Ended::Detached;
                    }
                    held = Some(data);
                }
                None if options.leave_at_end => break Ended::Detached,
                None => {
                    input_open = false;
                    let _ = pipe.to_init.send(ToInit::StdinEnd { id: 0 }).await;
                }
            },
            Some(()) = async { resized.as_mut()?.recv().await }, if options.raw => {
                let size = terminal::size();
                let _ = pipe.to_init.send(ToInit::Resize { id: 0, size }).await;
            }
        }
    };
    // The thread ends once it has written what is left.
    drop(output);
    while written.recv().await.is_some() {}
    drop(raw);
    ended
}

/// The code with which a shell reports this end.
pub(crate) fn exit_code(exit: Exit) -> u8 {
    match exit {
        Exit::Code(code) => code as u8,
        Exit::Signal(signal) => 128u8.wrapping_add(signal as u8),
    }
}

fn read_input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD_MAX);
    std::thread::spawn(move || {
        let mut buffer = vec![0; DATA_BYTES_MAX];
        // Not locked, nor buffered: nobody else reads.
        let mut stdin = io::stdin();
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(bytes) => {
                    if sender.blocking_send(buffer[..bytes].to_vec()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    receiver
}

#[derive(Debug)]
struct Output {
    stderr: bool,
    data: Vec<u8>,
}

#[derive(Debug)]
struct Written {
    bytes: u32,
    failed: bool,
}

/// Starts the writer. The window bounds what waits in its queues: no more output comes before what was
/// written has got its credit.
fn write_output() -> (
    mpsc::UnboundedSender<Output>,
    mpsc::UnboundedReceiver<Written>,
) {
    let (sender, mut receiver) = mpsc::unbounded_channel::<Output>();
    let (report, written) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        while let Some(output) = receiver.blocking_recv() {
            let result = match output.stderr {
                true => io::stderr().write_all(&output.data),
                false => {
                    let mut stdout = io::stdout().lock();
                    stdout.write_all(&output.data).and_then(|()| stdout.flush())
                }
            };
            let bytes = output.data.len() as u32;
            if report
                .send(Written {
                    bytes,
                    failed: result.is_err(),
                })
                .is_err()
            {
                return;
            }
        }
    });
    (sender, written)
}
