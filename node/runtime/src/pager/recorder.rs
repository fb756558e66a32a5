//! The faults of a node, one by one, while somebody profiles the guest.
//!
//! They are kept in a queue of bounded length until they are collected; what there is no room for is
//! counted. Who gave a page is learnt from the messages that arrive for it.

use super::Pager;
use super::counters::{Ended, Via};
use crate::image::PAGE_BYTES;
use crate::{clock, control, profile};
use dsm::Kind;
use span_api::guest::FromGuest;
use span_api::profile::{BATCH_FAULTS_MAX, Fault, Faults, Profiling, Through};
use std::collections::{HashMap, VecDeque};

/// Faults that wait to be collected: more than a node has in a second.
const FAULTS_MAX: usize = 1 << 16;

#[derive(Debug, Default)]
pub(super) struct Recorder {
    on: bool,
    faults: VecDeque<Fault>,
    dropped: u64,
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
        let Some(ended) = ended else { return };
        if self.faults.len() == FAULTS_MAX {
            self.dropped += 1;
            return;
        }
        let user = (ended.touch.through == Via::User).then(|| profile::fetched_for(slot));
        self.faults.push_back(Fault {
            began_ns: clock::guest_ns() - ended.waited_ns,
            waited_ns: ended.waited_ns,
            kind: ended.kind,
            page,
            address: ended.touch.address + user.map_or(0, |user| user.address % PAGE_BYTES as u64),
            through: match ended.touch.through {
                Via::Vmalloc => Through::Vmalloc,
                Via::Linear | Via::User => Through::Linear,
            },
            instruction: user.map_or(ended.touch.instruction, |user| user.instruction),
            cpu,
            from,
            user,
        });
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
        let ready = self.faults.len();
        let count = ready.min(BATCH_FAULTS_MAX);
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
    use crate::profile::NodeUser;
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
                through: Via::Linear,
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
        profile::fetch_for(
            slot as usize,
            NodeUser {
                process: 99,
                address: 0x7123,
                instruction: 0x40,
                name: [b'p' as _; 16],
            },
        );
        let mut for_user = ended(0x5000);
        for_user.as_mut().expect("given").touch.through = Via::User;
        recorder.ended(slot, 5, Some(3), for_user);
        recorder.ended(slot, 6, Some(3), ended(0x6000));
        // Within the node.
        recorder.ended(slot, 7, Some(3), None);

        let told = recorder.asked(Profiling::Stop);
        let faults: Vec<_> = told
            .faults
            .iter()
            .map(|f| (f.page, f.from, f.cpu))
            .collect();
        assert_eq!(faults, [(5, Some(2), Some(3)), (6, Some(1), Some(3))]);
        let [first, second] = &told.faults[..] else {
            panic!("{told:?}")
        };
        let user = UserPage {
            process: 99,
            name: [b'p'; 16],
            address: 0x7123,
            instruction: 0x40,
        };
        assert_eq!(first.user, Some(user));
        assert_eq!((first.address, first.instruction), (0x5123, 0x40));
        assert_eq!(second.user, None);
        assert_eq!((second.address, second.instruction), (0x6000, 7));
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
