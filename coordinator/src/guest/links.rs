//! Links while the guest runs: changes of what they cost, and probes.

use super::ending::Cause;
use super::{Guest, Phase};
use crate::links::{Change, Ways};
use span_api::guest::{Link, PROBE_BYTES_MAX, Probed, ToGuest};
use span_api::link::ToAgent;
use std::collections::{BTreeMap, VecDeque};
use tokio::sync::oneshot;

/// Who waits until links are as wanted.
type Waiting = oneshot::Sender<Result<(), String>>;

#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Answers of nodes that are still to come.
    due: usize,
    waiting: Vec<Waiting>,
}

/// Who waits for probes, by the nodes that send and get them.
pub(super) type Probes = BTreeMap<(usize, u16), VecDeque<oneshot::Sender<Probed>>>;

impl Guest {
    fn may_change_links(&self) -> Result<(), String> {
        match self.phase {
            Phase::Boot | Phase::Running => Ok(()),
            Phase::Ending => Err("the guest is ending".into()),
            _ => Err("the guest is starting".into()),
        }
    }

    /// In both directions, unless it is to be one way.
    pub(super) fn change_links(
        &mut self,
        ways: Ways,
        one_way: bool,
        change: Change,
        reply: Waiting,
    ) -> Result<(), Cause> {
        let changed = self
            .may_change_links()
            .and_then(|()| self.changed(ways, one_way, change));
        let changed = match changed {
            Ok(changed) => changed,
            Err(line) => {
                let _ = reply.send(Err(line));
                return Ok(());
            }
        };
        // A message for each node: of an uplink there are more links than messages may wait.
        let mut messages: BTreeMap<usize, Vec<(u16, Link)>> = BTreeMap::new();
        for (from, to, link) in changed {
            self.plan.links.set(from, to, link);
            messages.entry(from).or_default().push((to as u16, link));
            self.link_changes.due += 1;
        }
        for (from, links) in messages {
            self.send(from, ToAgent::Guest(ToGuest::Links(links)))?;
        }
        self.link_changes.waiting.push(reply);
        Ok(())
    }

    /// Links as they are to be: from which node, to which.
    fn changed(
        &self,
        ways: Ways,
        one_way: bool,
        change: Change,
    ) -> Result<Vec<(usize, usize, Link)>, String> {
        let links = &self.plan.links;
        let (nodes, uplinks) = (self.nodes.len(), &links.uplinks);
        let changed = |(from, to): (usize, usize)| {
            let link = links.get(from, to);
            let link = match ways {
                Ways::Pair(..) => change.apply_to_pair(link, uplinks),
                Ways::Uplink(_) => change.apply(link),
            };
            link.map(|link| (from, to, link))
        };
        match ways {
            Ways::Pair(from, to) => {
                let (from, to) = (usize::from(from), usize::from(to));
                if from >= nodes || to >= nodes || from == to {
                    return Err("the guest has no such link".into());
                }
                let directions = [(from, to), (to, from)];
                let directions = directions.iter().take(2 - usize::from(one_way));
                directions.copied().map(changed).collect()
            }
            Ways::Uplink(number) if usize::from(number) < uplinks.len() => links
                .through(number.into(), !one_way)
                .map(changed)
                .collect(),
            Ways::Uplink(_) => Err("the guest has no such uplink".into()),
        }
    }

    /// A node has changed a link.
    pub(super) fn link_set(&mut self) {
        let changes = &mut self.link_changes;
        changes.due = changes.due.saturating_sub(1);
        if changes.due == 0 {
            for reply in changes.waiting.drain(..) {
                let _ = reply.send(Ok(()));
            }
        }
    }

    pub(super) fn probe(
        &mut self,
        from: usize,
        to: usize,
        bytes: u32,
        reply: oneshot::Sender<Probed>,
    ) -> Result<(), Cause> {
        let nodes = self.nodes.len();
        let exists = from < nodes && to < nodes && from != to;
        if !exists || bytes > PROBE_BYTES_MAX || self.phase != Phase::Running {
            // Dropped, it is refused.
            return Ok(());
        }
        let node = to as u16;
        self.probes
            .entry((from, node))
            .or_default()
            .push_back(reply);
        self.send(from, ToAgent::Guest(ToGuest::Probe { node, bytes }))
    }

    pub(super) fn probed(&mut self, node: usize, probed: Probed) {
        let waiting = self.probes.get_mut(&(node, probed.node));
        if let Some(reply) = waiting.and_then(VecDeque::pop_front) {
            // Who asked may have gone away.
            let _ = reply.send(probed);
        }
    }
}
