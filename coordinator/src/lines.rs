//! Consoles and serial lines of a guest: what is at their other ends (`--append con1=…`), and whoever is attached to
//! one by `coordinator console NAME LINE`.
//!
//! All see what is written there, and each may type. Credit is given at once: who does not keep up is detached rather
//! than allowed to hold up the guest or the others, and what is typed and not read is lost, as on any serial line.

mod descriptors;
mod ends;
mod wanted;
mod window;

use crate::backlog;
use crate::session::{Sessions, locked};
use crate::stdio::Pipe;
pub(crate) use ends::Ends;
use serde::{Deserialize, Serialize};
use span_api::line::Line;
use span_api::link::ToAgent;
use span_api::session::{FromInit, ToInit, WindowSize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, watch};
use wanted::Other;
pub(crate) use wanted::Wanted;

/// Messages of one who is attached.
const ASKED_MESSAGES_MAX: usize = 16;

/// Recent output shown to who attaches, in bytes.
const RECENT_BYTES_MAX: usize = 4096;

/// Who is attached to one line.
const ATTACHED_MAX: usize = 32;

/// How a line is, for `console --list`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LineStatus {
    pub(crate) name: String,
    /// In the guest.
    pub(crate) device: String,
    pub(crate) channel: String,
    pub(crate) attached: usize,
}

/// The lines of a running guest, and who is attached to them. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Hub(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    lines: Mutex<BTreeMap<Line, Attachments>>,
    /// To the first node's agent, once that is there.
    agent: watch::Sender<Option<mpsc::Sender<ToAgent>>>,
    sessions: watch::Receiver<Option<Sessions>>,
}

#[derive(Debug)]
struct Attachments {
    other: Other,
    /// Of the host's terminal that is its other end.
    terminal: Option<String>,
    recent: VecDeque<u8>,
    attached: Vec<backlog::Sender<FromInit>>,
    /// Of whom so many have a terminal.
    sized: usize,
}

impl Hub {
    pub(crate) fn new(wanted: &Wanted, sessions: watch::Receiver<Option<Sessions>>) -> Self {
        let lines = wanted.lines.iter().map(|(line, other)| {
            let attachments = Attachments {
                other: other.clone(),
                terminal: None,
                recent: VecDeque::new(),
                attached: Vec::new(),
                sized: 0,
            };
            (*line, attachments)
        });
        Self(Arc::new(Shared {
            lines: Mutex::new(lines.collect()),
            agent: watch::channel(None).0,
            sessions,
        }))
    }

    /// Where what is typed goes.
    pub(crate) fn connect(&self, agent: mpsc::Sender<ToAgent>) {
        self.0.agent.send_replace(Some(agent));
    }

    /// Waits until lines can be attached to.
    async fn connected(&self) {
        let mut agent = self.0.agent.subscribe();
        // Its sender is in here.
        let _ = agent.wait_for(Option::is_some).await;
    }

    /// Waits until the guest is ready.
    async fn ready(&self) {
        let mut sessions = self.0.sessions.clone();
        let _ = sessions.wait_for(Option::is_some).await;
    }

    /// Shows what was written to a line to all who are attached.
    pub(crate) fn output(&self, line: Line, data: Vec<u8>) {
        if let Some(line) = locked(&self.0.lines).get_mut(&line) {
            line.recent.extend(&data);
            let excess = line.recent.len().saturating_sub(RECENT_BYTES_MAX);
            line.recent.drain(..excess);
            let message = FromInit::Stdout { id: 0, data };
            line.attached
                .retain(|attached| attached.send(message.clone()).is_ok());
        }
    }

    pub(crate) fn terminal(&self, line: Line, path: &[u8]) {
        if let Some(line) = locked(&self.0.lines).get_mut(&line) {
            let path = crate::failure::one_line(&String::from_utf8_lossy(path));
            line.terminal = Some(path);
        }
    }

    pub(crate) fn status(&self) -> Vec<LineStatus> {
        let mut lines = locked(&self.0.lines);
        let status = lines.iter_mut().map(|(line, attachments)| {
            attachments
                .attached
                .retain(|attached| !attached.is_closed());
            LineStatus {
                name: line.name(),
                device: line.device(),
                channel: match &attachments.terminal {
                    Some(path) => format!("{}:{path}", attachments.other),
                    None => attachments.other.to_string(),
                },
                attached: attachments.attached.len(),
            }
        });
        status.collect()
    }

    /// Attaches somebody, whose terminal has this size if there is one. An error is one line.
    pub(crate) fn attach(&self, line: Line, size: Option<WindowSize>) -> Result<Pipe, String> {
        let agent = self.0.agent.borrow().clone();
        let agent = agent.ok_or("the guest is not running yet")?;
        let (attached, output) = backlog::new();
        let (to_init, asked) = mpsc::channel(ASKED_MESSAGES_MAX);
        {
            let mut lines = locked(&self.0.lines);
            let Some(known) = lines.get_mut(&line) else {
                return Err(format!(
                    "line {line} has nobody at its other end; `--append {line}=console` has it attached to"
                ));
            };
            known.attached.retain(|attached| !attached.is_closed());
            if known.attached.len() >= ATTACHED_MAX {
                return Err(format!("{ATTACHED_MAX} are attached to {line} already"));
            }
            let data: Vec<u8> = known.recent.iter().copied().collect();
            if !data.is_empty() {
                let _ = attached.send(FromInit::Stdout { id: 0, data });
            }
            known.attached.push(attached.clone());
            known.sized += usize::from(size.is_some());
        }
        // The only strong one is the line's: who is detached sees the end.
        let attached = attached.downgrade();
        tokio::spawn(self.clone().pass_on(line, size, asked, agent, attached));
        let from_init = output.into_pipe();
        Ok(Pipe { to_init, from_init })
    }

    /// Passes on what one of those attached does.
    async fn pass_on(
        self,
        line: Line,
        size: Option<WindowSize>,
        mut asked: mpsc::Receiver<ToInit>,
        agent: mpsc::Sender<ToAgent>,
        attached: backlog::WeakSender<FromInit>,
    ) {
        self.resize(line, size);
        while let Some(message) = asked.recv().await {
            match message {
                ToInit::Stdin { data, .. } => {
                    let bytes = data.len() as u32;
                    if agent.send(ToAgent::Line { line, data }).await.is_err() {
                        break;
                    }
                    if let Some(attached) = attached.upgrade() {
                        let _ = attached.send(FromInit::Credit { id: 0, bytes });
                    }
                }
                ToInit::Resize { size: new, .. } if size.is_some() => self.resize(line, Some(new)),
                // Who has nowhere to write it to any more leaves.
                ToInit::Signal { .. } => break,
                // Credit was given already; who leaves leaves the line as it is.
                _ => {}
            }
        }
        let left = attached.upgrade();
        if let Some(known) = locked(&self.0.lines).get_mut(&line) {
            known.attached.retain(|other| {
                let same = left.as_ref().is_some_and(|left| other.same_backlog(left));
                !same && !other.is_closed()
            });
            known.sized -= usize::from(size.is_some());
            if size.is_some() && known.sized == 0 {
                self.tell_size(line, None);
            }
        }
    }

    fn resize(&self, line: Line, size: Option<WindowSize>) {
        // Who has no terminal leaves the size as it is.
        if size.is_some() {
            self.tell_size(line, size);
        }
    }

    fn tell_size(&self, line: Line, size: Option<WindowSize>) {
        if let Some(sessions) = &*self.0.sessions.borrow() {
            sessions.resize_line(line, size);
        }
    }
}
