//! What a node counts, and how long its faults wait. All of it happens under the pager's lock, so that
//! counting costs an addition.

use super::Pager;
use crate::{control, stub};
use dsm::{Access, State};
use span_api::guest::{FromGuest, Stats};
use span_api::profile::FaultKind;
use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;

/// What a fault needs of another node; `None` if this one has it.
pub(super) fn kind(held: State, access: Access) -> Option<FaultKind> {
    match (held.allows(access), held, access) {
        (true, ..) | (false, State::Exclusive, _) => None,
        (false, _, Access::Read) => Some(FaultKind::Read),
        (false, State::Shared, Access::Write) => Some(FaultKind::Upgrade),
        (false, _, Access::Write) => Some(FaultKind::Write),
    }
}

/// How a page was come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Via {
    Linear,
    Vmalloc,
    /// For a user process that has been noted, see [`crate::profile`].
    User,
}

/// What was accessed, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Touch {
    pub(super) address: u64,
    pub(super) instruction: u64,
    pub(super) through: Via,
}

#[derive(Debug, Clone, Copy)]
struct Began {
    at_ns: u64,
    kind: Option<FaultKind>,
    touch: Touch,
}

/// A fault that has waited for another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) kind: FaultKind,
    pub(super) waited_ns: u64,
    pub(super) touch: Touch,
}

/// Faults that threads wait in, by slot.
#[derive(Debug, Default)]
pub(super) struct Faults(HashMap<u32, Began>);

impl Faults {
    pub(super) fn began(
        &mut self,
        slot: u32,
        at_ns: u64,
        kind: Option<FaultKind>,
        touch: Touch,
        stats: &mut Stats,
    ) {
        *match kind {
            None => &mut stats.faults_local,
            Some(FaultKind::Read) => &mut stats.faults_read,
            Some(FaultKind::Write) => &mut stats.faults_write,
            Some(FaultKind::Upgrade) => &mut stats.faults_upgrade,
        } += 1;
        self.0.insert(slot, Began { at_ns, kind, touch });
    }

    /// The thread goes on; what it was, if it waited for another node.
    pub(super) fn ended(&mut self, slot: u32, now_ns: u64, stats: &mut Stats) -> Option<Ended> {
        let Began { at_ns, kind, touch } = self.0.remove(&slot)?;
        let waited_ns = now_ns - at_ns;
        stats.fault_wait_ns += waited_ns;
        let kind = kind?;
        let waits = match kind {
            FaultKind::Read => &mut stats.waits.read,
            FaultKind::Write => &mut stats.waits.write,
            FaultKind::Upgrade => &mut stats.waits.upgrade,
        };
        waits.record(waited_ns);
        Some(Ended {
            kind,
            waited_ns,
            touch,
        })
    }
}

impl Pager {
    pub(super) fn report_stats(&mut self) {
        let engine = self.engine.counters();
        let lost = self.net.datagrams_lost();
        let links = self.net.link_stats();
        let stats = &mut self.stats;
        stats.resident_pages = self.pages_held;
        stats.memory_bytes = self.view.host_bytes();
        stats.foreign_pages = u64::from(self.engine.foreign());
        stats.foreign_pages_max = u64::from(self.foreign_max.unwrap_or(0));
        stats.evicted_copies = engine.holder.evicted_copies;
        stats.evicted_pages = engine.holder.evicted_pages;
        stats.room_waits = engine.holder.starved;
        stats.stub_kicks = stub::KICKS.load(Relaxed);
        stats.stub_faults = stub::FAULTS.load(Relaxed);
        stats.retries = engine.holder.retransmits + engine.home.retransmits + lost;
        control::send(&FromGuest::Stats(Box::new(Stats {
            links,
            ..stats.clone()
        })));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(slot: u32) -> Touch {
        Touch {
            address: u64::from(slot) << 12,
            instruction: 7,
            through: Via::Linear,
        }
    }

    #[test]
    fn a_fault_is_counted_and_timed_as_what_it_needs() {
        let (mut faults, mut stats) = (Faults::default(), Stats::default());
        for (slot, held, access) in [
            (0, State::Invalid, Access::Read),
            (1, State::Invalid, Access::Write),
            (2, State::Shared, Access::Write),
            (3, State::Shared, Access::Read),
            (4, State::Exclusive, Access::Write),
        ] {
            faults.began(slot, 1_000, kind(held, access), touch(slot), &mut stats);
        }
        let counted = (
            stats.faults_read,
            stats.faults_write,
            stats.faults_upgrade,
            stats.faults_local,
        );
        assert_eq!(counted, (1, 1, 1, 2));
        // Before it has ended, it has no time.
        assert_eq!(stats.waits.remote().count(), 0);
        for (slot, end_ns) in [
            (0, 11_000),
            (1, 21_000),
            (2, 31_000),
            (3, 2_000),
            (4, 2_000),
        ] {
            let ended = faults.ended(slot, end_ns, &mut stats);
            let remote = (slot < 3).then(|| (end_ns - 1_000, touch(slot)));
            assert_eq!(ended.map(|ended| (ended.waited_ns, ended.touch)), remote);
        }
        let waits = &stats.waits;
        let longest = (
            waits.read.max_ns(),
            waits.write.max_ns(),
            waits.upgrade.max_ns(),
        );
        assert_eq!(longest, (10_000, 20_000, 30_000));
        assert_eq!(
            waits.remote().count(),
            3,
            "those within the node are no remote ones"
        );
        assert_eq!(stats.fault_wait_ns, 62_000);
        // A slot that waits for something else.
        assert_eq!(faults.ended(0, 99_000, &mut stats), None);
        assert_eq!(stats.fault_wait_ns, 62_000);
    }
}
