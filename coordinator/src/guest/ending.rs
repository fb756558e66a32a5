//! How a guest ends: the causes, which of several is told, and what is done until nothing is left.
//!
//! The loss of a node is often only what follows from a cause that arrives a moment later on another
//! way: a panic ends a process, a powered-off kernel closes its session channel. So a loss waits a
//! moment for a better explanation.

use super::{Event, Guest, Phase};
use crate::failure::{EXIT_FAILED, EXIT_NODE_LOST, EXIT_PANIC};
use crate::options::Place;
use crate::rundir::RunDirectory;
use span_api::guest::HaltKind;
use span_api::line::Channel;
use span_api::link::{FromAgent, ToAgent};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

/// Longest wait for a guest to power off: after its command, and when somebody waits for the end.
const POWER_OFF_MS_MAX: u64 = 2000;
const POWER_OFF_ASKED_MS_MAX: u64 = 1000;

/// Longest wait for agents to say that everything of their node is gone.
const AGENTS_MS_MAX: u64 = 1000;

/// Why a guest ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cause {
    /// The command of `up` ended, or could not be started.
    Command {
        code: u8,
        line: Option<String>,
    },
    Signal(i32),
    Down,
    Halted(HaltKind),
    Panicked {
        node: Option<String>,
        text: String,
    },
    /// One line.
    Failed(String),
    Lost {
        node: String,
        reason: String,
    },
    /// Nothing was heard of a node for too long. What could explain it has had the time to be told.
    Silent {
        node: String,
        reason: String,
    },
    /// A node says that it lost another.
    PeerLost {
        node: String,
        reason: String,
    },
    /// The session channel ended.
    Broken(String),
}

/// How a guest ended.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) code: u8,
    pub(crate) line: Option<String>,
    /// Dropped, it removes what the guest leaves last.
    pub(crate) run: RunDirectory,
}

impl Cause {
    /// How long this cause waits for a better one, in milliseconds; 0 is a cause in itself.
    fn grace_ms(&self) -> u64 {
        match self {
            Self::Silent { .. } => 50,
            Self::Lost { .. } => 200,
            Self::PeerLost { .. } => 200,
            // An orderly end closes the channel too, and its message takes the longer way.
            Self::Broken(_) => 1200,
            _ => 0,
        }
    }

    /// Whether the kernel is in a state to power off in order.
    fn is_orderly(&self) -> bool {
        matches!(self, Self::Command { .. } | Self::Signal(_) | Self::Down)
    }

    fn code(&self) -> u8 {
        match self {
            Self::Command { code, .. } => *code,
            Self::Signal(signal) => 128 + *signal as u8,
            // What the signal that asks for the same would give.
            Self::Down => 128 + libc::SIGTERM as u8,
            Self::Halted(_) => 0,
            Self::Panicked { .. } => EXIT_PANIC,
            Self::Failed(_) | Self::Broken(_) => EXIT_FAILED,
            Self::Lost { .. } | Self::Silent { .. } | Self::PeerLost { .. } => EXIT_NODE_LOST,
        }
    }

    fn line(&self) -> Option<String> {
        match self {
            Self::Command { line, .. } => line.clone(),
            Self::Signal(signal) => {
                let name = nix::sys::signal::Signal::try_from(*signal)
                    .map_or_else(|_| format!("signal {signal}"), |known| known.to_string());
                Some(format!("ended by {name}"))
            }
            Self::Down => Some("taken down by `coordinator down`".into()),
            Self::Halted(HaltKind::PowerOff) => Some("the guest powered off".into()),
            Self::Halted(HaltKind::Halt) => Some("the guest halted".into()),
            Self::Halted(HaltKind::Restart) => {
                Some("the guest asked for a restart; start it again with `coordinator up`".into())
            }
            Self::Panicked {
                node: Some(node),
                text,
            } => Some(format!("the guest panicked on node {node}: {text}")),
            Self::Panicked { node: None, text } => Some(format!("the guest panicked: {text}")),
            Self::Failed(line) => Some(line.clone()),
            Self::Broken(line) => Some(format!("the guest cannot be talked to: {line}")),
            Self::Lost { node, reason }
            | Self::Silent { node, reason }
            | Self::PeerLost { node, reason } => Some(format!("node {node} was lost: {reason}")),
        }
    }
}

impl Guest {
    /// Waits, if need be, for a better explanation than `cause`.
    pub(super) async fn settle(&mut self, mut cause: Cause) -> Cause {
        let begin = Instant::now();
        loop {
            let grace = Duration::from_millis(cause.grace_ms());
            let Ok(Some(event)) = timeout_at(begin + grace, self.events.recv()).await else {
                break;
            };
            if let Err(other) = self.handle(event)
                && other.grace_ms() < cause.grace_ms()
            {
                cause = other;
            }
        }
        // A guest process that dies of a panic may have had no time but to log it.
        match (cause.grace_ms(), self.log.panic()) {
            (1.., Some(text)) => Cause::Panicked {
                node: None,
                text: text.to_string(),
            },
            _ => cause,
        }
    }

    /// Ends everything, in order where that is possible.
    pub(super) async fn end(mut self, cause: Cause) -> Ending {
        let booted = self.phase == Phase::Running;
        self.phase = Phase::Ending;
        self.connecting.abort_all();
        // Who waits for counters is not kept waiting until the end.
        self.answer_status();
        if booted && cause.is_orderly() {
            self.power_off(&cause).await;
        }
        self.end_agents().await;

        let mut links = JoinSet::new();
        for node in &mut self.nodes {
            if let Some(link) = node.link.take() {
                links.spawn(link.end(node.lost));
            }
        }
        links.join_all().await;
        self.remove_sockets();
        self.answer_status();
        Ending {
            code: cause.code(),
            line: cause.line(),
            run: self.run,
        }
    }

    /// Has init end everything and power off, and waits until the kernel has.
    async fn power_off(&mut self, cause: &Cause) {
        let longest = match cause {
            Cause::Command { .. } => POWER_OFF_MS_MAX,
            _ => POWER_OFF_ASKED_MS_MAX,
        };
        let asked = self
            .sessions
            .as_ref()
            .is_some_and(|sessions| sessions.power_off());
        if !asked {
            return;
        }
        let deadline = Instant::now() + Duration::from_millis(longest);
        while let Ok(Some(event)) = timeout_at(deadline, self.events.recv()).await {
            let impatient = matches!(event, Event::Signal(_));
            match self.late(event) {
                // Asked a second time.
                _ if impatient => return,
                // Whatever ended it, there is nothing left to power off.
                Err(
                    Cause::Halted(_)
                    | Cause::Panicked { .. }
                    | Cause::Lost { .. }
                    | Cause::Silent { .. },
                ) => return,
                _ => {}
            }
        }
    }

    /// Removes sockets of lines that an agent made which was killed.
    pub(super) fn remove_sockets(&self) {
        if self.plan.places[0] != Place::Local || self.nodes[0].pid.is_none() {
            return;
        }
        for (_, channel) in self.plan.lines.channels() {
            if let Channel::Unix { path } = channel {
                let _ = std::fs::remove_file(OsStr::from_bytes(&path));
            }
        }
    }

    /// Has all agents end their guest processes, and waits until they have.
    async fn end_agents(&mut self) {
        for node in &self.nodes {
            if let Some(link) = &node.link {
                let _ = link.messages.try_send(ToAgent::End);
            }
        }
        let deadline = Instant::now() + Duration::from_millis(AGENTS_MS_MAX);
        while self
            .nodes
            .iter()
            .any(|node| node.link.is_some() && !node.ended)
        {
            match timeout_at(deadline, self.events.recv()).await {
                Ok(Some(event)) => _ = self.late(event),
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Handles an event of a guest that is ending.
    fn late(&mut self, event: Event) -> Result<(), Cause> {
        match event {
            Event::Agent {
                node,
                message: FromAgent::Ended,
            } => {
                self.nodes[node].ended = true;
                Ok(())
            }
            // Not wanted any more; without its link the agent ends by itself.
            Event::Connected { .. } => Ok(()),
            event => self.handle(event),
        }
    }
}
