//! The faults of a guest's nodes, for whoever profiles it.
//!
//! One at a time does. He asks for faults, and every node answers each question once, so that no more
//! answers wait for him than there are nodes.

use super::ending::Cause;
use super::{Guest, Phase};
use crate::artefacts::FileId;
use serde::{Deserialize, Serialize};
use span_api::guest::{NodeSpec, ToGuest};
use span_api::link::ToAgent;
use span_api::profile::{Faults, Profiling};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use tokio::sync::{mpsc, oneshot};

/// What is profiled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) nodes: Vec<NodeSpec>,
    /// Path of the kernel's file, and which file that was when the guest started.
    pub(crate) kernel: Vec<u8>,
    pub(crate) kernel_id: FileId,
    /// By CPU, of those that are up: what is added to the address of a per-CPU variable to get that CPU's.
    pub(crate) variables: BTreeMap<u16, u64>,
}

/// What is told, by node.
#[derive(Debug)]
pub(crate) struct Profiled {
    pub(crate) subject: Subject,
    pub(crate) faults: mpsc::Receiver<(usize, Faults)>,
}

#[derive(Debug, Default)]
pub(super) struct Profile {
    sender: Option<mpsc::Sender<(usize, Faults)>>,
    /// Who waits for the boot to begin.
    waiting: Option<oneshot::Sender<Result<Profiled, String>>>,
    /// Answers that are still to come.
    due: usize,
}

impl Guest {
    /// A guest that has not begun to boot is profiled from when it does.
    pub(super) fn begin_profile(
        &mut self,
        reply: oneshot::Sender<Result<Profiled, String>>,
    ) -> Result<(), Cause> {
        let waits = |waiting: &oneshot::Sender<_>| !waiting.is_closed();
        let busy = self.profile.due > 0 || self.profile.waiting.as_ref().is_some_and(waits) || {
            let sender = self.profile.sender.as_ref();
            sender.is_some_and(|sender| !sender.is_closed())
        };
        let refusal = match self.phase {
            Phase::Ending => "the guest is ending",
            _ if busy => "the guest is being profiled already",
            Phase::Boot | Phase::Running => return self.profile_now(reply),
            _ => {
                self.profile.waiting = Some(reply);
                return Ok(());
            }
        };
        let _ = reply.send(Err(refusal.into()));
        Ok(())
    }

    /// The nodes are about to be told to boot.
    pub(super) fn profile_boot(&mut self) -> Result<(), Cause> {
        match self.profile.waiting.take() {
            Some(reply) => self.profile_now(reply),
            None => Ok(()),
        }
    }

    fn profile_now(
        &mut self,
        reply: oneshot::Sender<Result<Profiled, String>>,
    ) -> Result<(), Cause> {
        let (sender, faults) = mpsc::channel(self.nodes.len());
        self.profile.sender = Some(sender);
        let subject = self.subject();
        let _ = reply.send(Ok(Profiled { subject, faults }));
        self.ask_faults(Profiling::Start)
    }

    pub(super) fn subject(&self) -> Subject {
        Subject {
            name: self.run.name().to_string(),
            nodes: self.plan.nodes.clone(),
            kernel: self.plan.files.linux.as_os_str().as_bytes().to_vec(),
            kernel_id: self.plan.files.linux_id,
            variables: self.variables.clone(),
        }
    }

    pub(super) fn ask_faults(&mut self, what: Profiling) -> Result<(), Cause> {
        self.profile.due += self.nodes.len();
        self.send_all(&ToAgent::Guest(ToGuest::Profile(what)))
    }

    pub(super) fn told_faults(&mut self, node: usize, faults: Faults) {
        // A node that answers what it was not asked tells nothing.
        let Some(due) = self.profile.due.checked_sub(1) else {
            return;
        };
        self.profile.due = due;
        if let Some(sender) = &self.profile.sender {
            // Who asked may have gone away.
            let _ = sender.try_send((node, faults));
        }
    }
}
