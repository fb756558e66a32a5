//! The shared shell of a guest: one session on a pseudo terminal, started when somebody first attaches,
//! seen and typed at by everybody who is attached, and there until it ends.
//!
//! Its output gets credit at once: whoever is attached and does not keep up is detached rather than
//! allowed to hold up the others.

use crate::backlog;
use crate::environment;
use crate::session::{Session, Sessions, locked, output_bytes};
use crate::stdio::Pipe;
use span_api::session::{Command, FromInit, ToInit, WINDOW_BYTES, WindowSize};
use std::collections::VecDeque;
use std::sync::Mutex;
use tokio::sync::mpsc;

/// What the attached have asked, waiting for the shell.
const ASKED_MESSAGES_MAX: usize = 16;

/// Recent output shown to who attaches, in bytes.
const RECENT_BYTES_MAX: usize = 4096;

/// Attached terminals.
const ATTACHED_MAX: usize = 32;

#[derive(Debug, Default)]
pub(crate) struct Console {
    /// To the shell, if one runs.
    shell: Mutex<Option<mpsc::Sender<Asked>>>,
}

#[derive(Debug)]
enum Asked {
    Attach {
        attached: backlog::Sender<FromInit>,
        size: WindowSize,
    },
    Message {
        from: backlog::Sender<FromInit>,
        message: ToInit,
    },
}

impl Console {
    /// Attaches a terminal, starting the shell if none runs. An error is one line.
    pub(crate) fn attach(&self, sessions: &Sessions, size: WindowSize) -> Result<Pipe, String> {
        let (attached, output) = backlog::new();
        let (to_init, mut messages) = mpsc::channel(ASKED_MESSAGES_MAX);
        let shell = {
            let mut shell = locked(&self.shell);
            let running = match shell.as_ref().filter(|running| !running.is_closed()) {
                Some(running) => running.clone(),
                None => start(sessions.open()?, size),
            };
            let attach = Asked::Attach {
                attached: attached.clone(),
                size,
            };
            running
                .try_send(attach)
                .map_err(|_| "the console is busy".to_string())?;
            shell.insert(running).clone()
        };
        // The only strong one is the shell's: who is detached sees the end.
        let attached = attached.downgrade();
        tokio::spawn(async move {
            while let Some(message) = messages.recv().await {
                let Some(from) = attached.upgrade() else {
                    return;
                };
                if shell.send(Asked::Message { from, message }).await.is_err() {
                    return;
                }
            }
        });
        let from_init = output.into_pipe();
        Ok(Pipe { to_init, from_init })
    }
}

fn start(session: Session, size: WindowSize) -> mpsc::Sender<Asked> {
    let (sender, asked) = mpsc::channel(ASKED_MESSAGES_MAX);
    let shell = Shell {
        session,
        attached: Vec::new(),
        recent: VecDeque::new(),
        credit: WINDOW_BYTES,
        held: None,
    };
    tokio::spawn(shell.run(asked, size));
    sender
}

#[derive(Debug)]
struct Shell {
    session: Session,
    attached: Vec<backlog::Sender<FromInit>>,
    recent: VecDeque<u8>,
    /// How much more may be typed.
    credit: u32,
    /// What was typed beyond that, and by whom.
    held: Option<(backlog::Sender<FromInit>, Vec<u8>)>,
}

impl Shell {
    async fn run(mut self, mut asked: mpsc::Receiver<Asked>, size: WindowSize) {
        let command = Command {
            argv: Vec::new(),
            env: environment::for_command(),
            directory: b"/".to_vec(),
            cpus: Vec::new(),
            terminal: Some(size),
        };
        if self
            .session
            .send(ToInit::Start { id: 0, command })
            .await
            .is_err()
        {
            return;
        }
        loop {
            tokio::select! {
                message = self.session.next() => match message {
                    Some(message) => {
                        if self.answer(message).await.is_err() {
                            return;
                        }
                    }
                    None => return,
                },
                Some(asked) = asked.recv(), if self.held.is_none() => {
                    if self.ask(asked).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Shows a message to all; an error ends the console.
    async fn answer(&mut self, message: FromInit) -> Result<(), String> {
        if let FromInit::Credit { bytes, .. } = message {
            self.credit = self.credit.saturating_add(bytes).min(WINDOW_BYTES);
            return match self.held.take() {
                Some((from, data)) => self.typed(from, data).await,
                None => Ok(()),
            };
        }
        if let FromInit::Stdout { data, .. } = &message {
            self.recent.extend(data);
            let excess = self.recent.len().saturating_sub(RECENT_BYTES_MAX);
            self.recent.drain(..excess);
        }
        self.attached
            .retain(|attached| attached.send(message.clone()).is_ok());
        let ended = matches!(
            message,
            FromInit::Exited { .. } | FromInit::StartFailed { .. }
        );
        if ended {
            return Err("the shell ended".into());
        }
        self.session
            .send(ToInit::Credit {
                id: 0,
                bytes: output_bytes(&message),
            })
            .await
    }

    async fn ask(&mut self, asked: Asked) -> Result<(), String> {
        match asked {
            Asked::Attach { attached, size } => {
                self.attached.retain(|known| !known.is_closed());
                if self.attached.len() >= ATTACHED_MAX {
                    return Ok(());
                }
                let data: Vec<u8> = self.recent.iter().copied().collect();
                if !data.is_empty() {
                    let _ = attached.send(FromInit::Stdout { id: 0, data });
                }
                self.attached.push(attached);
                self.session.send(ToInit::Resize { id: 0, size }).await
            }
            Asked::Message {
                from,
                message: ToInit::Stdin { data, .. },
            } => self.typed(from, data).await,
            Asked::Message {
                message: message @ (ToInit::Resize { .. } | ToInit::Signal { .. }),
                ..
            } => self.session.send(message).await,
            // Credit was given already, and the shell outlives the end of one's input.
            Asked::Message { .. } => Ok(()),
        }
    }

    /// Passes on what somebody typed, as soon as the shell takes it.
    async fn typed(
        &mut self,
        from: backlog::Sender<FromInit>,
        data: Vec<u8>,
    ) -> Result<(), String> {
        let bytes = data.len() as u32;
        if bytes > self.credit {
            self.held = Some((from, data));
            return Ok(());
        }
        self.credit -= bytes;
        // Who does not take it is about to be detached.
        let _ = from.send(FromInit::Credit { id: 0, bytes });
        self.session.send(ToInit::Stdin { id: 0, data }).await
    }
}
