//! The home's side: one directory entry per home page, one transaction per page at a time, the
//! rest waiting in order of arrival.

mod entry;

use crate::config::{Config, HomeMap, initial};
use crate::message::{Kind, Message, ProtocolError};
use crate::orders::{Order, Orders};
use crate::planted::Planted;
use crate::table::{Answer, Ask, home};
use crate::timers::Timers;
use crate::types::{Access, Body, NodeId, NodeSet, PageId, RequestId, State};
use entry::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};

/// A request waiting for its turn.
#[derive(Clone, Copy, Hash, Debug)]
struct Queued {
    request: RequestId,
    ask: Ask,
    have_copy: bool,
    urgency: u16,
}

/// Where the page comes from, or goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum By {
    Supplier(NodeId),
    /// The home itself grants a page of zeroes.
    Zero,
    /// ... the page that it keeps.
    Kept,
    /// ... what the requester has already.
    Upgrade,
    /// The requester drops its copy, and gives it back if there is no other.
    Recall {
        page: bool,
    },
}

/// Who was told what on behalf of the current request; kept for retransmission.
#[derive(Clone, Copy, Hash, Debug)]
struct Plan<const W: usize> {
    by: By,
    invalidate: NodeSet<W>,
    /// The requester's, afterwards.
    state: State,
}

#[derive(Clone, Hash, Debug)]
struct Transaction<const W: usize> {
    txn: u64,
    current: Queued,
    plan: Plan<W>,
    /// The highest of all requests for the page.
    urgency: u16,
    retry_ns: u64,
    /// At most one per node, see `enqueue`.
    queue: VecDeque<Queued>,
}

/// The directory's entry for a page, for diagnostics.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct View<const W: usize = 1> {
    pub owner: Option<NodeId>,
    pub sharers: NodeSet<W>,
    pub migratory: bool,
    /// The home has the bytes, whether or not it is a sharer.
    pub kept: bool,
    /// The request of the current transaction.
    pub busy: Option<RequestId>,
    /// Requests behind it.
    pub waiting: usize,
}

/// Counted at the home.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HomeCounters {
    pub transactions: u64,
    /// Requests that had to wait for another transaction on the page.
    pub queued: u64,
    pub zero_grants: u64,
    /// Grants of pages that had been given back.
    pub kept_grants: u64,
    /// Copies dropped, and pages given back, because their nodes needed room.
    pub dropped: u64,
    pub given_back: u64,
    pub upgrades: u64,
    pub forwards: u64,
    pub invalidates: u64,
    pub migratory_grants: u64,
    pub classified: u64,
    pub declassified: u64,
    /// Messages about a request more urgent than the current one.
    pub hurries: u64,
    pub retransmits: u64,
    /// Duplicates and late arrivals.
    pub stale: u64,
}

impl Hash for HomeCounters {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

#[derive(Clone, Hash, Debug)]
pub(crate) struct Directory<const W: usize> {
    me: NodeId,
    epoch: u32,
    migratory: bool,
    /// Whether to say which bytes are of no use any more.
    discards: bool,
    retransmit_ns: Option<u64>,
    retransmit_ns_max: u64,
    entries: Vec<Entry<W>>,
    busy: BTreeMap<PageId, Transaction<W>>,
    /// Transactions under way; the smallest is the floor that stale messages lie below.
    outstanding: BTreeSet<u64>,
    next_txn: u64,
    /// Per requester: everything below is over.
    floors: Vec<u64>,
    /// Per requester: what is over although not below the floor.
    completed: Vec<BTreeSet<u64>>,
    timers: Timers<()>,
    planted: Planted,
    pub(crate) counters: HomeCounters,
}

impl<const W: usize> Directory<W> {
    pub(crate) fn new(config: &Config, homes: &HomeMap) -> Directory<W> {
        let entries = homes
            .pages_of(config.me)
            .map(|page| Entry::new(initial(config, homes, page)))
            .collect();
        Directory {
            me: config.me,
            epoch: config.epoch,
            migratory: config.migratory,
            discards: config.foreign_max.is_some(),
            retransmit_ns: config.retransmit_ns,
            retransmit_ns_max: config.retransmit_ns_max,
            entries,
            busy: BTreeMap::new(),
            outstanding: BTreeSet::new(),
            next_txn: 1,
            floors: vec![0; config.nodes as usize],
            completed: vec![BTreeSet::new(); config.nodes as usize],
            timers: Timers::new(),
            planted: config.planted,
            counters: HomeCounters::default(),
        }
    }

    /// A `Get` or an `Evict`. `from` and the page have been checked to exist, and the page to live here.
    pub(crate) fn get<B>(
        &mut self,
        now_ns: u64,
        slot: usize,
        from: NodeId,
        message: &Message<B, W>,
        out: &mut Orders<B, W>,
    ) -> Result<(), ProtocolError> {
        let (ask, have_copy, urgency) = match message.kind {
            Kind::Get {
                access,
                have_copy,
                urgency,
            } => match access {
                Access::Read => (Ask::Read, have_copy, urgency),
                Access::Write => (Ask::Write, have_copy, urgency),
            },
            Kind::Evict => (Ask::Evict, true, 0),
            _ => unreachable!("dispatched by kind"),
        };
        let page = message.page;
        self.check_requester(from, message)?;
        self.raise_floor(from, message.floor);
        let seq = message.request.seq;
        let node = from.0 as usize;
        if seq < self.floors[node] || self.completed[node].contains(&seq) {
            self.counters.stale += 1;
            return Ok(());
        }
        let get = Queued {
            request: message.request,
            ask,
            have_copy,
            urgency,
        };
        if self.busy.contains_key(&page) {
            return self.enqueue(page, from, get, message, out);
        }
        self.begin(now_ns, slot, page, get, VecDeque::new(), out)
    }

    /// A `Done`. `is_here` says that this node itself has the page.
    pub(crate) fn done<B>(
        &mut self,
        now_ns: u64,
        slot: usize,
        from: NodeId,
        message: Message<B, W>,
        is_here: bool,
        out: &mut Orders<B, W>,
    ) -> Result<(), ProtocolError> {
        let Kind::Done { state, clean } = message.kind else {
            unreachable!("dispatched by kind")
        };
        let page = message.page;
        self.check_requester(from, &message)?;
        if message.txn == 0 || message.txn >= self.next_txn {
            return Err(refuse(&message, from, "no such transaction"));
        }
        self.raise_floor(from, message.floor);
        let Some(transaction) = self.busy.get(&page).filter(|t| t.txn == message.txn) else {
            self.counters.stale += 1;
            return Ok(());
        };
        if transaction.current.request != message.request {
            return Err(refuse(
                &message,
                from,
                "not the request of this transaction",
            ));
        }
        // An owner that never wrote turns a grant of Exclusive into one of Shared.
        let planned = transaction.plan.state;
        if state != planned && (planned, state) != (State::Exclusive, State::Shared) {
            return Err(refuse(&message, from, "not the state that was granted"));
        }
        if state == State::Shared
            && planned == State::Exclusive
            && self.entries[slot].owner().is_none()
        {
            return Err(refuse(&message, from, "shared with nobody"));
        }
        let gives_back = transaction.plan.by == By::Recall { page: true };
        if gives_back == message.body.is_none() {
            return Err(refuse(
                &message,
                from,
                "a page that was not recalled, or none",
            ));
        }
        // I3: it will be filled in.
        if gives_back && is_here {
            return Err(refuse(&message, from, "gives back a page that is here"));
        }
        let Some(transaction) = self.busy.remove(&page) else {
            unreachable!("found above")
        };
        if gives_back {
            out.push_back(Order::Fill {
                page,
                body: message.body,
            });
        }
        self.commit(slot, page, &transaction, state, clean, out);
        self.outstanding.remove(&transaction.txn);
        self.timers.clear(page, ());
        let seq = message.request.seq;
        if seq >= self.floors[from.0 as usize] {
            self.completed[from.0 as usize].insert(seq);
        }
        self.next_in_queue(now_ns, slot, page, transaction.queue, out)
    }

    pub(crate) fn poll_timeout(&self) -> Option<u64> {
        self.timers.next()
    }

    /// Repeats what the current transactions have said, for those whose time has come.
    pub(crate) fn handle_timeout<B>(&mut self, now_ns: u64, out: &mut Orders<B, W>) {
        for (page, ()) in self.timers.expired(now_ns) {
            let Some(transaction) = self.busy.get_mut(&page) else {
                continue;
            };
            transaction.retry_ns = transaction
                .retry_ns
                .saturating_mul(2)
                .min(self.retransmit_ns_max);
            self.timers
                .set(page, (), now_ns.saturating_add(transaction.retry_ns));
            self.counters.retransmits += 1;
            self.announce(page, out);
        }
    }

    /// What is known of a page.
    pub(crate) fn view(&self, slot: usize, page: PageId) -> View<W> {
        let entry = &self.entries[slot];
        View {
            owner: entry.owner(),
            sharers: entry.sharers,
            migratory: entry.migratory,
            kept: entry.kept,
            busy: self.busy.get(&page).map(|t| t.current.request),
            waiting: self.busy.get(&page).map_or(0, |t| t.queue.len()),
        }
    }

    /// What it takes: for pages, and for what it knows of requesters.
    pub(crate) fn bytes(&self) -> (usize, usize) {
        let requester = size_of::<u64>() + size_of::<BTreeSet<u64>>();
        let completed: usize = self.completed.iter().map(BTreeSet::len).sum();
        (
            self.entries.len() * size_of::<Entry<W>>(),
            self.floors.len() * requester + completed * size_of::<u64>(),
        )
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.busy.is_empty()
    }

    fn check_requester<B>(
        &self,
        from: NodeId,
        message: &Message<B, W>,
    ) -> Result<(), ProtocolError> {
        if message.request.node != from {
            return Err(refuse(message, from, "the request is another node's"));
        }
        if message.request.seq == 0 {
            return Err(refuse(message, from, "request number 0"));
        }
        Ok(())
    }

    fn raise_floor(&mut self, from: NodeId, floor: u64) {
        let node = from.0 as usize;
        if floor > self.floors[node] {
            self.floors[node] = floor;
            self.completed[node] = self.completed[node].split_off(&floor);
        }
    }

    fn enqueue<B>(
        &mut self,
        page: PageId,
        from: NodeId,
        get: Queued,
        message: &Message<B, W>,
        out: &mut Orders<B, W>,
    ) -> Result<(), ProtocolError> {
        let Some(transaction) = self.busy.get_mut(&page) else {
            unreachable!("busy page")
        };
        let known = |q: &Queued| q.request == get.request;
        if known(&transaction.current) || transaction.queue.iter().any(known) {
            self.counters.stale += 1;
            return Ok(());
        }
        // One request per node and page bounds the queue. The next one can overtake the `Done` of
        // the current one, so `current` does not count.
        if transaction.queue.iter().any(|q| q.request.node == from) {
            return Err(refuse(message, from, "two requests for one page"));
        }
        transaction.queue.push_back(get);
        self.counters.queued += 1;
        if get.urgency > transaction.urgency {
            transaction.urgency = get.urgency;
            self.hurry(page, out);
        }
        Ok(())
    }

    fn next_in_queue<B>(
        &mut self,
        now_ns: u64,
        slot: usize,
        page: PageId,
        mut queue: VecDeque<Queued>,
        out: &mut Orders<B, W>,
    ) -> Result<(), ProtocolError> {
        match queue.pop_front() {
            Some(get) => self.begin(now_ns, slot, page, get, queue, out),
            None => Ok(()),
        }
    }

    /// Starts the transaction of `get`; the page is not busy.
    fn begin<B>(
        &mut self,
        now_ns: u64,
        slot: usize,
        page: PageId,
        get: Queued,
        queue: VecDeque<Queued>,
        out: &mut Orders<B, W>,
    ) -> Result<(), ProtocolError> {
        let Some(plan) = self.plan(slot, &get) else {
            // Refusing one request must not strand those behind it.
            self.next_in_queue(now_ns, slot, page, queue, out)?;
            return Err(ProtocolError::Unexpected {
                kind: match get.ask {
                    Ask::Read | Ask::Write => "Get",
                    Ask::Evict => "Evict",
                },
                page,
                from: get.request.node,
                why: "the directory says that the node holds the page",
            });
        };
        let txn = self.next_txn;
        self.next_txn += 1;
        self.outstanding.insert(txn);
        self.counters.transactions += 1;
        let retry_ns = self.retransmit_ns.unwrap_or(0);
        let urgency = queue.iter().map(|q| q.urgency).fold(get.urgency, u16::max);
        if self.retransmit_ns.is_some() {
            self.timers.set(page, (), now_ns.saturating_add(retry_ns));
        }
        self.busy.insert(
            page,
            Transaction {
                txn,
                current: get,
                plan,
                urgency,
                retry_ns,
                queue,
            },
        );
        self.announce(page, out);
        Ok(())
    }

    fn plan(&mut self, slot: usize, get: &Queued) -> Option<Plan<W>> {
        let entry = self.entries[slot];
        let requester = get.request.node;
        let others = entry.sharers.without(requester);
        let supplier = || {
            if entry.owner().is_some() {
                return entry.owner();
            }
            // The home's own copy saves a message; else any copy is as good.
            if others.contains(self.me) {
                Some(self.me)
            } else {
                others.first()
            }
        };
        let counters = &mut self.counters;
        let (by, invalidate, state) = match home(entry.holders(requester), get.ask) {
            Answer::Zero(state) => {
                counters.zero_grants += 1;
                (By::Zero, NodeSet::EMPTY, state)
            }
            Answer::Keep(state) => {
                counters.kept_grants += 1;
                (By::Kept, NodeSet::EMPTY, state)
            }
            // A sharer that claims to have no copy has lost it; nobody else can be asked to
            // believe that, since it may be the only one.
            Answer::Upgrade if !get.have_copy => return None,
            Answer::Upgrade => {
                counters.upgrades += 1;
                (By::Upgrade, others, State::Modified)
            }
            Answer::Forward(state) => {
                counters.forwards += 1;
                counters.migratory_grants += u64::from(state == State::Exclusive);
                (By::Supplier(supplier()?), NodeSet::EMPTY, state)
            }
            Answer::ForwardAndInvalidate(state) => {
                let supplier = supplier()?;
                counters.forwards += 1;
                (By::Supplier(supplier), others.without(supplier), state)
            }
            Answer::Recall { page } => {
                counters.dropped += u64::from(!page);
                counters.given_back += u64::from(page);
                (By::Recall { page }, NodeSet::EMPTY, State::Invalid)
            }
            Answer::Refuse => return None,
        };
        counters.invalidates += u64::from(invalidate.len());
        Some(Plan {
            by,
            invalidate,
            state,
        })
    }

    /// Says everything that the current transaction of a page has to say, for the first time or
    /// again.
    fn announce<B>(&self, page: PageId, out: &mut Orders<B, W>) {
        let Some(transaction) = self.busy.get(&page) else {
            unreachable!("busy page")
        };
        let Transaction {
            txn,
            current,
            plan,
            urgency,
            ..
        } = transaction;
        let requester = current.request.node;
        let message = |kind, body| Message {
            epoch: self.epoch,
            page,
            request: current.request,
            txn: *txn,
            floor: self.outstanding.first().copied().unwrap_or(self.next_txn),
            kind,
            body,
        };
        let (state, acks, urgency) = (plan.state, plan.invalidate, *urgency);
        assert!(
            !acks.contains(requester),
            "I4: the requester keeps its copy"
        );
        let mut send = |to, kind, body, attach_page| {
            out.push_back(Order::Send {
                to,
                message: message(kind, body),
                attach_page,
            });
        };
        let grant = Kind::Grant {
            state,
            acks,
            clean: false,
        };
        match plan.by {
            By::Supplier(supplier) => {
                assert!(supplier != requester, "I4: nobody supplies itself");
                let kind = Kind::Forward {
                    state,
                    acks,
                    urgency,
                };
                send(supplier, kind, Body::None, false);
            }
            By::Zero => send(requester, grant, Body::Zero, false),
            By::Upgrade => send(requester, grant, Body::None, false),
            // What this node keeps, it need not send to itself.
            By::Kept => send(requester, grant, Body::None, requester != self.me),
            By::Recall { page } => {
                let kind = Kind::Recall { page, urgency };
                send(requester, kind, Body::None, false);
            }
        }
        for sharer in acks.iter() {
            send(sharer, Kind::Invalidate { urgency }, Body::None, false);
        }
    }

    /// Tells those who may be putting the current transaction off who waits behind it.
    fn hurry<B>(&mut self, page: PageId, out: &mut Orders<B, W>) {
        let Some(transaction) = self.busy.get(&page) else {
            unreachable!("busy page")
        };
        let Transaction {
            txn,
            current,
            plan,
            urgency,
            ..
        } = transaction;
        let first = match plan.by {
            By::Supplier(supplier) => Some(supplier),
            By::Recall { .. } => Some(current.request.node),
            By::Zero | By::Kept | By::Upgrade => None,
        };
        for node in first.into_iter().chain(plan.invalidate.iter()) {
            let message = Message {
                epoch: self.epoch,
                page,
                request: current.request,
                txn: *txn,
                floor: 0,
                kind: Kind::Hurry { urgency: *urgency },
                body: Body::None,
            };
            self.counters.hurries += 1;
            out.push_back(Order::Send {
                to: node,
                message,
                attach_page: false,
            });
        }
    }

    /// The requester has the page, or has let go of it: the directory follows.
    fn commit<B>(
        &mut self,
        slot: usize,
        page: PageId,
        transaction: &Transaction<W>,
        state: State,
        clean: bool,
        out: &mut Orders<B, W>,
    ) {
        let entry = &mut self.entries[slot];
        let requester = transaction.current.request.node;
        match transaction.plan.by {
            By::Recall { page: true } => return entry.give_back(),
            By::Recall { page: false } => return entry.drop_copy(requester),
            By::Upgrade if self.migratory && entry.seems_to_migrate(requester) => {
                entry.migratory = true;
                self.counters.classified += 1;
            }
            _ => {}
        }
        if clean && entry.migratory {
            entry.migratory = false;
            self.counters.declassified += 1;
        }
        if state.is_sole() {
            let kept = entry.kept;
            entry.own(requester);
            if kept && self.discards {
                out.push_back(Order::Discard { page });
            }
            return;
        }
        entry.make_shared();
        if self.planted.lost_sharer()
            && let Some(lost) = entry.sharers.first()
        {
            entry.sharers = entry.sharers.without(lost);
        }
        entry.share(requester);
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
