//! The faults of a node, one by one, while somebody profiles the guest.
//!
//! They are kept in a queue of bounded length until they are collected; what there is no room for is
//! counted. Who gave a page is learnt from the messages that arrive for it, and for which user process
//! it was, from what its thread maps next.

use super::Pager;
use super::counters::Ended;
use crate::{clock, control, profile};
use dsm::Kind;
use span_api::guest::FromGuest;
use span_api::profile::{BATCH_FAULTS_MAX, Fault, Faults, Profiling, Through};
use std::collections::{HashMap, VecDeque};

/// Faults that wait to be collected: more than a node has in a second.
const FAULTS_MAX: usize = 1 << 16;

/// A fault is told this long after its end at the earliest, when what it was for is known.
const SETTLE_NS: u64 = 10_000_000;

#[derive(Debug, Default)]
pub(super) struct Recorder {
    on: bool,
    faults: VecDeque<Fault>,
    /// How many have been taken out of the queue.
    told: u64,
    dropped: u64,
    /// The last fault of each slot, counted from the first.
    last: HashMap<u32, u64>,
    /// Who gave pages that are under way.
    givers: HashMap<u32, u16>,
}

impl Recorder {
    /// A message about a page that may be waited for.
    pub(super) fn heard(&mut self, from: u16, page: u32, kind: Kind) {
        if !self.on {
            return;
        }
        match kind {
            Kind::Grant { .. } => {
                self.givers.insert(page, from);
            }
            Kind::InvalidateAck => {
                self.givers.entry(page).or_insert(from);
            }
            _ => {}
        }
    }

    /// Nobody waits for the page.
    pub(super) fn unneeded(&mut self, page: u32) {
        self.givers.remove(&page);
    }

    /// A thread goes on; `ended` if it has waited for another node.
    pub(super) fn ended(&mut self, slot: u32, page: u32, cpu: Option<u16>, ended: Option<Ended>) {
        if !self.on {
            return;
        }
        let from = self.givers.remove(&page);
        self.settle(slot);
        let Some(ended) = ended else { return };
        if self.faults.len() == FAULTS_MAX {
            self.dropped += 1;
            self.last.remove(&slot);
            return;
        }
        self.last.insert(slot, self.told + self.faults.len() as u64);
        self.faults.push_back(Fault {
            began_ns: clock::guest_ns() - ended.waited_ns,
            waited_ns: ended.waited_ns,
            kind: ended.kind,
            page,
            address: ended.touch.address,
            through: match ended.touch.vmalloc {
                true => Through::Vmalloc,
                false => Through::Linear,
            },
            instruction: ended.touch.instruction,
            cpu,
            from,
            user: None,
        });
    }

    /// For whom the slot's last fault was, if that is known by now.
    fn settle(&mut self, slot: u32) {
        let index = self.last.get(&slot).and_then(|n| n.checked_sub(self.told));
        if let Some(fault) = index.and_then(|index| self.faults.get_mut(index as usize)) {
            fault.user = fault
                .user
                .or_else(|| profile::last_mapped(slot, fault.page));
        }
    }

    fn turn(&mut self, on: bool) {
        self.on = on;
        profile::turn(on);
        self.givers.clear();
    }

    fn asked(&mut self, what: Profiling) -> Faults {
        match what {
            Profiling::Start => {
                *self = Self::default();
                self.turn(true);
            }
            Profiling::Collect => {}
            Profiling::Stop => self.turn(false),
        }
        let slots: Vec<u32> = self.last.keys().copied().collect();
        slots.into_iter().for_each(|slot| self.settle(slot));
        // What ended last was pushed last.
        let young_ns = clock::guest_ns().saturating_sub(SETTLE_NS);
        let settled = |fault: &Fault| !self.on || fault.began_ns + fault.waited_ns <= young_ns;
        let ready = self.faults.partition_point(settled);
        let count = ready.min(BATCH_FAULTS_MAX);
        self.told += count as u64;
        Faults {
            faults: self.faults.drain(..count).collect(),
            dropped: std::mem::take(&mut self.dropped),
            more: ready > count,
        }
    }
}

impl Pager {
    pub(super) fn report_faults(&mut self, what: Profiling) {
        control::send(&FromGuest::Faults(self.recorder.asked(what)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pager::counters::Touch;
    use crate::slots;
    use dsm::{NodeSet, State};
    use span_api::profile::{FaultKind, UserPage};

    fn ended(address: u64) -> Option<Ended> {
        Some(Ended {
            kind: FaultKind::Write,
            waited_ns: 1000,
            touch: Touch {
                address,
                instruction: 7,
                vmalloc: false,
            },
        })
    }

    fn grant() -> Kind {
        Kind::Grant {
            state: State::Shared,
            acks: NodeSet::EMPTY,
            clean: false,
        }
    }

    #[test]
    fn a_fault_is_told_once_with_who_gave_the_page_and_for_whom() {
        let mut recorder = Recorder::default();
        let slot = slots::mine() as u32;
        recorder.ended(slot, 1, Some(3), ended(0x1000));
        assert_eq!(recorder.asked(Profiling::Start), Faults::default());

        recorder.heard(1, 5, Kind::InvalidateAck);
        recorder.heard(2, 5, grant());
        recorder.heard(1, 5, Kind::InvalidateAck);
        recorder.heard(1, 6, Kind::InvalidateAck);
        recorder.ended(slot, 5, Some(3), ended(0x5000));
        profile::mapped(5, 99, 0x7000);
        recorder.ended(slot, 6, Some(3), ended(0x6000));
        profile::mapped(8, 99, 0x8000);
        // Within the node.
        recorder.ended(slot, 7, Some(3), None);
        // What has just ended is not settled.
        assert_eq!(recorder.asked(Profiling::Collect), Faults::default());

        let told = recorder.asked(Profiling::Stop);
        let faults: Vec<_> = told
            .faults
            .iter()
            .map(|f| (f.page, f.from, f.cpu))
            .collect();
        assert_eq!(faults, [(5, Some(2), Some(3)), (6, Some(1), Some(3))]);
        let user = UserPage {
            stub_pid: 99,
            address: 0x7000,
        };
        assert_eq!(told.faults[0].user, Some(user));
        assert_eq!(told.faults[1].user, None, "another page was mapped since");
        recorder.ended(slot, 1, Some(3), ended(0x1000));
        assert_eq!(recorder.asked(Profiling::Collect), Faults::default());
    }

    #[test]
    fn what_there_is_no_room_for_is_counted_and_answers_are_bounded() {
        let mut recorder = Recorder::default();
        recorder.asked(Profiling::Start);
        for n in 0..FAULTS_MAX + 10 {
            recorder.ended(200, n as u32, None, ended(n as u64));
        }
        let mut told = recorder.asked(Profiling::Stop);
        assert_eq!(told.dropped, 10);
        let mut pages: Vec<u32> = Vec::new();
        loop {
            assert!(told.faults.len() <= BATCH_FAULTS_MAX);
            pages.extend(told.faults.iter().map(|fault| fault.page));
            if !told.more {
                break;
            }
            told = recorder.asked(Profiling::Collect);
            assert_eq!(told.dropped, 0);
        }
        assert!(pages.into_iter().eq(0..FAULTS_MAX as u32));
    }
}
