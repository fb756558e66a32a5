//! Nodes that do not answer. All are asked for their counters all the time, and who has not answered for a while is
//! named in the log.
//!
//! A node of this host may be silent as long as it likes: the host may be too busy for it, and whoever froze its
//! process, or debugs it, may let it go on. The others wait for its pages meanwhile, and the user for them: he is told
//! whom they wait for.

use super::ending::Cause;
use super::{Guest, Phase};
use span_api::guest::ToGuest;
use span_api::link::ToAgent;
use std::time::Duration;
use tokio::time::Instant;

/// How often nodes are asked.
const ASK_MS: u64 = 1000;

/// Shortest silence that is logged. Once it is, the log says so again each time that it has doubled.
const SILENT_MS_MIN: u64 = 1500;

/// What is expected of a node.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// Since when it owes an answer.
    since: Option<Instant>,
    /// Somebody wants to know what it counts from now on, and not when it was asked.
    again: bool,
    /// How long it was silent when that was last logged.
    logged: Option<Duration>,
}

impl Silence {
    pub(super) fn is_over(&self) -> bool {
        self.since.is_none()
    }

    pub(super) fn lasts(&self) -> Option<Duration> {
        self.since.map(|since| since.elapsed())
    }
}

impl Guest {
    /// When nodes are asked next.
    pub(super) fn asks_at(&self) -> Option<Instant> {
        matches!(self.phase, Phase::Boot | Phase::Running).then_some(self.ask_deadline)
    }

    /// Asks all nodes that owe no answer, and logs who does.
    pub(super) fn ask_all(&mut self) -> Result<(), Cause> {
        self.ask_deadline = Instant::now() + Duration::from_millis(ASK_MS);
        for node in 0..self.nodes.len() {
            let silence = &mut self.nodes[node].silence;
            let least = match silence.logged {
                Some(logged) => logged * 2,
                None => Duration::from_millis(SILENT_MS_MIN),
            };
            match silence.lasts() {
                None => self.ask(node)?,
                Some(lasts) if lasts >= least => {
                    silence.logged = Some(lasts);
                    let process = match self.nodes[node].pid {
                        Some(pid) => format!("process {pid}"),
                        None => "a process".into(),
                    };
                    let seconds = lasts.as_secs_f64();
                    self.log.note(
                        node,
                        &format!("this node, {process}, has not answered for {seconds:.0} s and is waited for"),
                    );
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Has a node say what it counts now.
    pub(super) fn ask_anew(&mut self, node: usize) -> Result<(), Cause> {
        // One that owes an answer is asked when it has given that: what is said to one that is slow must not pile up.
        match self.nodes[node].silence.is_over() {
            true => self.ask(node),
            false => {
                self.nodes[node].silence.again = true;
                Ok(())
            }
        }
    }

    /// A node has answered; false if it was asked once more.
    pub(super) fn answered(&mut self, node: usize) -> Result<bool, Cause> {
        let silence = std::mem::take(&mut self.nodes[node].silence);
        if let (Some(_), Some(lasted)) = (silence.logged, silence.lasts()) {
            let seconds = lasted.as_secs_f64();
            self.log.note(
                node,
                &format!("this node answers again, after {seconds:.1} s"),
            );
        }
        if silence.again {
            self.ask(node)?;
        }
        Ok(!silence.again)
    }

    fn ask(&mut self, node: usize) -> Result<(), Cause> {
        self.nodes[node].silence.since = Some(Instant::now());
        self.send(node, ToAgent::Guest(ToGuest::Stats))
    }
}
