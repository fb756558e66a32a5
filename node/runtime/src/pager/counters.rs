//! What a node counts, and how long its faults wait. All of it happens on the pager's thread, so that
//! counting costs an addition.

use super::Pager;
use crate::{control, stub};
use dsm::{Access, State};
use span_api::guest::{FromGuest, Stats};
use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;

/// What a fault needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing that this node does not have.
    Local,
    Read,
    Write,
    Upgrade,
}

impl Kind {
    fn of(held: State, access: Access) -> Self {
        match (held.allows(access), held, access) {
            (true, ..) | (false, State::Exclusive, _) => Self::Local,
            (false, _, Access::Read) => Self::Read,
            (false, State::Shared, Access::Write) => Self::Upgrade,
            (false, _, Access::Write) => Self::Write,
        }
    }
}

/// Faults that threads wait in, by slot: when each began, and what it needs.
#[derive(Debug, Default)]
pub(super) struct Faults(HashMap<u32, (u64, Kind)>);

impl Faults {
    pub(super) fn began(
        &mut self,
        slot: u32,
        now_ns: u64,
        held: State,
        access: Access,
        stats: &mut Stats,
    ) {
        let kind = Kind::of(held, access);
        *match kind {
            Kind::Local => &mut stats.faults_local,
            Kind::Read => &mut stats.faults_read,
            Kind::Write => &mut stats.faults_write,
            Kind::Upgrade => &mut stats.faults_upgrade,
        } += 1;
        self.0.insert(slot, (now_ns, kind));
    }

    pub(super) fn ended(&mut self, slot: u32, now_ns: u64, stats: &mut Stats) {
        let Some((began_ns, kind)) = self.0.remove(&slot) else {
            return;
        };
        let waited_ns = now_ns - began_ns;
        stats.fault_wait_ns += waited_ns;
        match kind {
            Kind::Local => {}
            Kind::Read => stats.waits.read.record(waited_ns),
            Kind::Write => stats.waits.write.record(waited_ns),
            Kind::Upgrade => stats.waits.upgrade.record(waited_ns),
        }
    }
}

impl Pager {
    pub(super) fn report_stats(&mut self) {
        let engine = self.engine.counters();
        let lost: u64 = self.peers.iter().map(|peer| peer.datagrams_lost()).sum();
        let stats = &mut self.stats;
        stats.resident_pages = self.pages_held;
        stats.stub_kicks = stub::KICKS.load(Relaxed);
        stats.stub_faults = stub::FAULTS.load(Relaxed);
        stats.retries = engine.holder.retransmits + engine.home.retransmits + lost;
        control::send(&FromGuest::Stats(Box::new(stats.clone())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            faults.began(slot, 1_000, held, access, &mut stats);
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
            faults.ended(slot, end_ns, &mut stats);
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
        faults.ended(0, 99_000, &mut stats);
        assert_eq!(stats.fault_wait_ns, 62_000);
    }
}
