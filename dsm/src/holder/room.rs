//! Room for pages of other homes, where a node must not hold as many as it likes.
//!
//! A page takes room from the request for it until it is neither here nor asked for. When there is
//! little left, pages are evicted: in the order in which they came, but for those that were asked for
//! again meanwhile, which get a second turn. When there is none, requests wait for it, in order.

use super::{Holder, Order, Orders, Timer};
use crate::message::{Kind, Message};
use crate::types::{Body, PageId, RequestId, State};
use std::collections::VecDeque;

/// This much of the room is kept free, so that faults need not wait for evictions: an eighth, but no
/// more pages than this.
const SPARE_MAX: u32 = 512;
const SPARE_SHARE: u32 = 8;

/// Pages that are looked at for one that was not used lately, before any other will do.
const SECOND_TURNS_MAX: usize = 64;

/// Pages evicted at a time: what is said about them then travels together.
const TOGETHER_MAX: u32 = 32;

const LISTED: u8 = 1;
const USED_AGAIN: u8 = 2;

#[derive(Clone, Hash, Debug)]
pub(super) struct Room {
    max: u32,
    spare: u32,
    taken: u32,
    /// Evictions under way.
    leaving: u32,
    /// What has taken room, perhaps not any more; the oldest first, each page once.
    order: VecDeque<PageId>,
    marks: Vec<u8>,
    /// Pages that threads wait for.
    waiting: VecDeque<PageId>,
}

impl Room {
    pub(super) fn new(max: u32, pages: u32) -> Room {
        Room {
            max,
            spare: (max / SPARE_SHARE).min(SPARE_MAX),
            taken: 0,
            leaving: 0,
            order: VecDeque::new(),
            marks: vec![0; pages as usize],
            waiting: VecDeque::new(),
        }
    }

    pub(super) fn take(&mut self, page: PageId) {
        self.taken += 1;
        let mark = &mut self.marks[page.0 as usize];
        if *mark & LISTED != 0 {
            *mark |= USED_AGAIN;
            return;
        }
        *mark = LISTED;
        self.order.push_back(page);
    }

    pub(super) fn leave(&mut self) {
        self.taken -= 1;
    }

    pub(super) fn taken(&self) -> u32 {
        self.taken
    }

    pub(super) fn used(&mut self, page: PageId) {
        let mark = &mut self.marks[page.0 as usize];
        if *mark & LISTED != 0 {
            *mark |= USED_AGAIN;
        }
    }

    pub(super) fn free(&self) -> u32 {
        let taken = self.taken + self.waiting.len() as u32;
        self.max.saturating_sub(taken)
    }

    fn is_full(&self) -> bool {
        self.taken >= self.max
    }

    /// Whether more must be evicted than are on the way out.
    fn is_wanting(&self) -> bool {
        self.taken + self.waiting.len() as u32 > self.max - self.spare + self.leaving
    }
}

/// This node's request to be rid of a page.
#[derive(Clone, Copy, Hash, Debug)]
pub(super) struct Evict {
    pub(super) seq: u64,
    pub(super) retry_ns: u64,
}

impl<const W: usize> Holder<W> {
    fn is_foreign(&self, page: PageId) -> bool {
        self.homes.home(page) != self.me
    }

    /// Whether a request for the page may be made: takes the room for it, or waits for some.
    pub(super) fn take_room(&mut self, page: PageId) -> bool {
        if self.room.is_none() || self.held(page) != State::Invalid || !self.is_foreign(page) {
            return true;
        }
        let (Some(room), Some(active)) = (&mut self.room, self.active.get_mut(&page)) else {
            unreachable!("looked at above, and the caller's")
        };
        let is_next = active.starved && room.waiting.front() == Some(&page);
        if room.is_full() || !(is_next || room.waiting.is_empty()) {
            if !active.starved {
                active.starved = true;
                room.waiting.push_back(page);
                self.counters.starved += 1;
            }
            return false;
        }
        if is_next {
            active.starved = false;
            room.waiting.pop_front();
        }
        room.take(page);
        true
    }

    /// The page has become invalid.
    pub(super) fn leave_room(&mut self, page: PageId) {
        if self.room.is_none() || !self.is_foreign(page) {
            return;
        }
        // One that was lost while its upgrade was under way comes back.
        let comes_back = self.active.get(&page).is_some_and(|a| a.pending.is_some());
        if let Some(room) = self.room.as_mut().filter(|_| !comes_back) {
            room.leave();
        }
    }

    /// An eviction is over.
    pub(super) fn evicted(&mut self) {
        if let Some(room) = &mut self.room {
            room.leaving = room.leaving.saturating_sub(1);
        }
    }

    /// Lets those in who wait for room, and sees to it that there is some for the next ones.
    pub(super) fn make_room<B>(&mut self, now_ns: u64, out: &mut Orders<B, W>) {
        while let Some(room) = &self.room
            && !room.is_full()
            && let Some(&page) = room.waiting.front()
        {
            self.start_request(now_ns, page, out);
            let next = self.room.as_ref().and_then(|room| room.waiting.front());
            assert!(next != Some(&page), "there is room for it");
        }
        while let Some(room) = self.room.as_ref().filter(|room| room.is_wanting()) {
            for _ in 0..TOGETHER_MAX.min(room.spare + 1) {
                let Some(page) = self.oldest() else { return };
                self.evict(now_ns, page, out);
                if let Some(room) = &mut self.room {
                    room.leaving += 1;
                }
            }
        }
    }

    /// The next page to evict, if there is one.
    fn oldest(&mut self) -> Option<PageId> {
        let mut room = self.room.take()?;
        let mut found = None;
        let looked_at_max = match room.waiting.is_empty() {
            true => 2 * SECOND_TURNS_MAX,
            // Somebody waits: everything is looked at.
            false => room.order.len() + SECOND_TURNS_MAX,
        };
        for looked_at in 0..looked_at_max {
            let Some(page) = room.order.pop_front() else {
                break;
            };
            let mark = &mut room.marks[page.0 as usize];
            let state = self.held(page);
            let active = self.active.get(&page);
            if state == State::Invalid && active.is_none_or(|a| a.pending.is_none()) {
                *mark = 0;
                continue;
            }
            let again = *mark & USED_AGAIN != 0 && looked_at < SECOND_TURNS_MAX;
            *mark = LISTED;
            room.order.push_back(page);
            if !again && self.can_evict(page) {
                found = Some(page);
                break;
            }
        }
        self.room = Some(room);
        found
    }

    /// Whether the page is here and nothing goes on with it.
    pub(crate) fn can_evict(&self, page: PageId) -> bool {
        let quiet = |active: &super::Active<W>| {
            active.waiters.is_empty()
                && active.pending.is_none()
                && active.evict.is_none()
                && active.change.is_none()
                && active.job.is_none()
        };
        self.held(page) != State::Invalid
            && self.is_foreign(page)
            && self.active.get(&page).is_none_or(quiet)
    }

    /// Asks the home to take the page back. Until it is recalled it stays as it is.
    pub(crate) fn evict<B>(&mut self, now_ns: u64, page: PageId, out: &mut Orders<B, W>) {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.outstanding.insert(seq);
        self.counters.evictions += 1;
        let retry_ns = self.retransmit_ns.unwrap_or(0);
        self.active.entry(page).or_default().evict = Some(Evict { seq, retry_ns });
        if self.retransmit_ns.is_some() {
            self.timers
                .set(page, Timer::Retry, now_ns.saturating_add(retry_ns));
        }
        self.send_evict(page, seq, out);
    }

    pub(super) fn send_evict<B>(&self, page: PageId, seq: u64, out: &mut Orders<B, W>) {
        let message = Message {
            epoch: self.epoch,
            page,
            request: RequestId { node: self.me, seq },
            txn: 0,
            floor: self.floor(),
            kind: Kind::Evict,
            body: Body::None,
        };
        out.push_back(Order::Send {
            to: self.homes.home(page),
            message,
            attach_page: false,
        });
    }
}
