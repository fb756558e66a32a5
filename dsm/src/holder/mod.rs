//! The side of a node that wants or holds pages: local faults, the grants that answer them, and
//! what the homes ask it to give up.
//!
//! This module has the entry points and the steps that follow from them; [`own`] is about this
//! node's requests, [`remote`] about those of others, [`room`] about pages that are to leave.

mod own;
mod parts;
mod remote;
mod room;

use self::parts::{Part, Parts, Seen};
use self::room::{Evict, Room};
use crate::config::{Config, HomeMap};
use crate::message::{Message, ProtocolError};
use crate::orders::{Order, Orders};
use crate::planted::Planted;
use crate::progress::Progress;
use crate::table::{Event, holder};
use crate::timers::Timers;
use crate::types::{Access, NodeId, NodeSet, PageId, RequestId, State};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Timer {
    /// A remote request has waited long enough.
    Job,
    /// Ask the home again.
    Retry,
}

/// A `Forward`, an `Invalidate` or a `Recall` to be carried out.
#[derive(Clone, Copy, Hash, Debug)]
struct Job<const W: usize> {
    event: Event,
    request: RequestId,
    txn: u64,
    floor: u64,
    acks: NodeSet<W>,
    urgency: u16,
    arrived_ns: u64,
}

/// What a grant said.
#[derive(Clone, Copy, Hash, Debug)]
struct Granted<const W: usize> {
    txn: u64,
    state: State,
    acks: NodeSet<W>,
    clean: bool,
}

/// This node's own request for a page.
#[derive(Clone, Copy, Hash, Debug)]
struct Pending<const W: usize> {
    seq: u64,
    access: Access,
    grant: Option<Granted<W>>,
    /// The transaction that the acknowledgements name.
    acks_txn: u64,
    acked: NodeSet<W>,
    retry_ns: u64,
}

#[derive(Clone, Copy, Hash, Debug)]
enum Change<const W: usize> {
    /// `done`: the transaction to end; `None` when the node owned the page already.
    Raise {
        to: State,
        done: Option<Granted<W>>,
    },
    Lower(Job<W>),
}

/// A page about which something is going on.
#[derive(Clone, Hash, Debug, Default)]
struct Active<const W: usize> {
    waiters: VecDeque<(Access, u32)>,
    pending: Option<Pending<W>>,
    /// Never at the same time as a request for the page.
    evict: Option<Evict>,
    /// The request for it waits for room.
    starved: bool,
    change: Option<Change<W>>,
    job: Option<Job<W>>,
    /// Granted, but not yet resumed.
    unresumed: u32,
    /// Pages that a granted thread needs together with this one.
    linked: Vec<PageId>,
    /// No job before this time, within the bound of `Job::arrived_ns`.
    hold_until_ns: u64,
}

impl<const W: usize> Active<W> {
    fn is_idle(&self, now_ns: u64) -> bool {
        self.waiters.is_empty()
            && self.pending.is_none()
            && self.evict.is_none()
            && self.change.is_none()
            && self.job.is_none()
            && self.hold_until_ns <= now_ns
    }
}

/// Counted at the node whose threads fault and whose copies are taken away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HolderCounters {
    pub read_faults: u64,
    pub write_faults: u64,
    /// Faults that found the page here already.
    pub hits: u64,
    /// Requests sent for a page that was not here.
    pub misses: u64,
    /// Requests sent to write to a page that was here for reading.
    pub upgrades: u64,
    /// First writes to an exclusive page, without a message.
    pub local_upgrades: u64,
    pub bodies_in: u64,
    pub zeros_in: u64,
    /// Grants sent with the page attached.
    pub pages_out: u64,
    pub invalidated: u64,
    /// Requests to be rid of a page, and what came of them: without the page and with it.
    pub evictions: u64,
    pub evicted_copies: u64,
    pub evicted_pages: u64,
    /// Requests that had to wait for room.
    pub starved: u64,
    /// Remote requests that had to wait for a local user of the page.
    pub deferred: u64,
    pub retransmits: u64,
    /// Duplicates and late arrivals.
    pub stale: u64,
}

impl Hash for HolderCounters {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

#[derive(Clone, Hash, Debug)]
pub(crate) struct Holder<const W: usize> {
    me: NodeId,
    homes: HomeMap,
    epoch: u32,
    hold_ns: u64,
    hold_ns_max: u64,
    retransmit_ns: Option<u64>,
    retransmit_ns_max: u64,
    states: Vec<State>,
    active: BTreeMap<PageId, Active<W>>,
    /// Sequence numbers of `Active::pending`; the smallest is the floor.
    outstanding: BTreeSet<u64>,
    next_seq: u64,
    parts: Parts,
    timers: Timers<Timer>,
    progress: Progress,
    /// Ends of hold times nobody waits for; they only free memory and wake nobody.
    holds: Timers<()>,
    room: Option<Room>,
    planted: Planted,
    pub(crate) counters: HolderCounters,
}

impl<const W: usize> Holder<W> {
    pub(crate) fn new(config: &Config, homes: HomeMap, states: Vec<State>) -> Holder<W> {
        let room = config.foreign_max.map(|max| {
            let mut room = Room::new(max, config.pages);
            let here = |page: &PageId| states[page.0 as usize] != State::Invalid;
            let foreign = |page: &PageId| homes.home(*page) != config.me;
            let pages = (0..config.pages).map(PageId);
            pages
                .filter(|p| here(p) && foreign(p))
                .for_each(|page| room.take(page));
            room
        });
        Holder {
            me: config.me,
            homes,
            epoch: config.epoch,
            hold_ns: config.hold_ns,
            hold_ns_max: config.hold_ns_max,
            retransmit_ns: config.retransmit_ns,
            retransmit_ns_max: config.retransmit_ns_max,
            states,
            active: BTreeMap::new(),
            outstanding: BTreeSet::new(),
            next_seq: 1,
            parts: Parts::new(config.nodes),
            timers: Timers::new(),
            progress: Progress::default(),
            holds: Timers::new(),
            room,
            planted: config.planted,
            counters: HolderCounters::default(),
        }
    }

    /// What the mappings may be used for: while they are being lowered that is already the lower
    /// state, while they are being raised still the one before.
    pub(crate) fn state(&self, page: PageId) -> State {
        let held = self.held(page);
        match self.active.get(&page).and_then(|a| a.change.as_ref()) {
            Some(Change::Lower(job)) => holder(held, job.event).next,
            _ => held,
        }
    }

    fn held(&self, page: PageId) -> State {
        self.states[page.0 as usize]
    }

    /// Whether the bytes of the page are of use to this node, apart from what its directory says.
    pub(crate) fn keeps(&self, page: PageId) -> bool {
        let filled = |active: &Active<W>| {
            active.change.is_some() || active.pending.is_some_and(|p| p.grant.is_some())
        };
        self.held(page) != State::Invalid || self.active.get(&page).is_some_and(filled)
    }

    /// Pages of other homes that take room here, and for how many more there is some.
    pub(crate) fn foreign(&self) -> Option<(u32, u32)> {
        let room = self.room.as_ref()?;
        Some((room.taken(), room.free()))
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.outstanding.is_empty() && self.timers.next().is_none()
    }

    /// A local fault.
    pub(crate) fn request<B>(
        &mut self,
        now_ns: u64,
        page: PageId,
        access: Access,
        waiter: u32,
        out: &mut Orders<B, W>,
    ) {
        match access {
            Access::Read => self.counters.read_faults += 1,
            Access::Write => self.counters.write_faults += 1,
        }
        let allowed = self.held(page).allows(access);
        let active = self.active.entry(page).or_default();
        let here = allowed && active.change.is_none();
        self.counters.hits += u64::from(here);
        if let Some(room) = self.room.as_mut().filter(|_| here) {
            room.used(page);
        }
        self.progress.requested(waiter, page, access, here);

        active.waiters.push_back((access, waiter));
        self.advance(now_ns, page, out);
    }

    /// A granted thread has been running since `since_ns`.
    pub(crate) fn resumed<B>(
        &mut self,
        now_ns: u64,
        page: PageId,
        since_ns: u64,
        out: &mut Orders<B, W>,
    ) {
        let Some(active) = self.active.get_mut(&page) else {
            return;
        };
        active.unresumed = active.unresumed.saturating_sub(1);
        let mut used = vec![page];
        if active.unresumed == 0 {
            used.append(&mut active.linked);
        }
        let until_ns = since_ns.min(now_ns).saturating_add(self.hold_ns);
        for page in used {
            let Some(active) = self.active.get_mut(&page) else {
                continue;
            };
            if active.unresumed == 0 && active.hold_until_ns > until_ns {
                active.hold_until_ns = until_ns;
                self.holds.set(page, (), until_ns);
            }
            self.advance(now_ns, page, out);
        }
    }

    /// The mappings of the page have been changed as ordered.
    pub(crate) fn protected<B>(&mut self, now_ns: u64, page: PageId, out: &mut Orders<B, W>) {
        let change = self.active.get_mut(&page).and_then(|a| a.change.take());
        match change {
            None => panic!("protected({page}) without Effect::Protect"),
            Some(Change::Lower(job)) => {
                let row = holder(self.held(page), job.event);
                self.answer(page, row, &job, out);
            }
            Some(Change::Raise { to, done }) => {
                self.states[page.0 as usize] = to;
                self.grant_waiters(now_ns, page, out);
                if let Some(granted) = done {
                    self.finish(page, &granted, out);
                }
            }
        }
        self.advance(now_ns, page, out);
    }

    pub(crate) fn poll_timeout(&self) -> Option<u64> {
        self.timers.next()
    }

    pub(crate) fn handle_timeout<B>(&mut self, now_ns: u64, out: &mut Orders<B, W>) {
        for (page, timer) in self.timers.expired(now_ns) {
            match timer {
                Timer::Job => self.advance(now_ns, page, out),
                Timer::Retry => self.ask_again(now_ns, page, out),
            }
        }
    }

    /// Frees what only waited for its hold time to pass.
    pub(crate) fn forget_holds(&mut self, now_ns: u64) {
        for (page, ()) in self.holds.expired(now_ns) {
            self.forget_if_idle(now_ns, page);
        }
    }

    /// Does whatever has become possible for a page. Every entry point ends here.
    fn advance<B>(&mut self, now_ns: u64, page: PageId, out: &mut Orders<B, W>) {
        self.grant_waiters(now_ns, page, out);
        self.start_job(now_ns, page, out);
        self.start_request(now_ns, page, out);
        self.forget_if_idle(now_ns, page);
        if self.room.is_some() {
            self.make_room(now_ns, out);
        }
    }

    /// Wakes the waiters whose access is allowed, and starts the hold time.
    fn grant_waiters<B>(&mut self, now_ns: u64, page: PageId, out: &mut Orders<B, W>) {
        let state = self.held(page);
        let Some(active) = self.active.get_mut(&page) else {
            return;
        };
        if active.change.is_some() {
            return;
        }
        let mut granted = Vec::new();
        active.waiters.retain(|&(access, waiter)| {
            let allowed = state.allows(access);
            if allowed {
                granted.push((access, waiter));
            }
            !allowed
        });
        for (access, waiter) in granted {
            out.push_back(Order::Granted { page, waiter });
            self.hold(now_ns, page);
            let (states, active) = (&self.states, &self.active);
            let changes = |page: &PageId| {
                active
                    .get(page)
                    .is_some_and(|a: &Active<W>| a.change.is_some())
            };
            let here =
                |page: PageId, access| states[page.0 as usize].allows(access) && !changes(&page);
            let linked = self.progress.granted(waiter, page, access, here);
            for other in &linked {
                self.hold(now_ns, *other);
            }
            let Some(active) = self.active.get_mut(&page) else {
                unreachable!("held above")
            };
            active.unresumed += 1;
            for other in linked {
                if !active.linked.contains(&other) {
                    active.linked.push(other);
                }
            }
        }
    }

    /// Keeps a page for a thread that has not run yet.
    fn hold(&mut self, now_ns: u64, page: PageId) {
        let active = self.active.entry(page).or_default();
        active.hold_until_ns = now_ns.saturating_add(self.hold_ns_max);
        self.holds.set(page, (), active.hold_until_ns);
    }

    fn forget_if_idle(&mut self, now_ns: u64, page: PageId) {
        if self.active.get(&page).is_some_and(|a| a.is_idle(now_ns)) {
            self.active.remove(&page);
            self.holds.clear(page, ());
        }
    }
}

fn refuse<B, const W: usize>(
    message: &Message<B, W>,
    from: NodeId,
    why: &'static str,
) -> ProtocolError {
    ProtocolError::Unexpected {
        kind: message.kind.name(),
        page: message.page,
        from,
        why,
    }
}
