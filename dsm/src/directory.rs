//! The home's side: one directory entry per home page, one transaction per page at a time, the
//! rest waiting in order of arrival.

use crate::config::{Config, HomeMap, Initial, initial};
use crate::message::{Kind, Message, ProtocolError};
use crate::planted::Planted;
use crate::table::{Answer, Holders, home};
use crate::timers::Timers;
use crate::types::{Access, Body, NodeId, NodeSet, PageId, RequestId, State};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};

const NO_NODE: u16 = u16::MAX;

/// 16 bytes: a node is home to millions of pages.
#[derive(Clone, Copy, Hash, Debug)]
struct Entry {
    sharers: NodeSet,
    owner: u16,
    /// The node whose read was the last transaction, if that was a read.
    last_reader: u16,
    migratory: bool,
}

const _: () = assert!(size_of::<Entry>() <= 16);

impl Entry {
    fn new(initial: Initial) -> Entry {
        let owner = match initial {
            Initial::Owned(node) => node.0,
            Initial::Untouched => NO_NODE,
        };
        Entry {
            sharers: NodeSet::EMPTY,
            owner,
            last_reader: NO_NODE,
            migratory: false,
        }
    }

    fn holders(&self, requester: NodeId) -> Holders {
        if self.owner == requester.0 {
            Holders::RequesterOwns
        } else if self.owner != NO_NODE && self.migratory {
            Holders::MigratoryOwner
        } else if self.owner != NO_NODE {
            Holders::Owner
        } else if self.sharers.contains(requester) {
            Holders::OthersAndRequester
        } else if !self.sharers.is_empty() {
            Holders::Others
        } else {
            Holders::Nobody
        }
    }
}

/// A request waiting for its turn.
#[derive(Clone, Copy, Hash, Debug)]
struct Queued {
    request: RequestId,
    access: Access,
    have_copy: bool,
    urgency: u16,
}

/// Who was told what on behalf of the current request; kept for retransmission.
#[derive(Clone, Copy, Hash, Debug)]
struct Plan {
    /// `None`: the home itself grants, with `Zero` or without a body.
    supplier: Option<NodeId>,
    invalidate: NodeSet,
    state: State,
    upgrade: bool,
}

#[derive(Clone, Hash, Debug)]
struct Transaction {
    txn: u64,
    current: Queued,
    plan: Plan,
    /// The highest of all requests for the page.
    urgency: u16,
    retry_ns: u64,
    /// At most one per node, see `enqueue`.
    queue: VecDeque<Queued>,
}

/// The directory's entry for a page, for diagnostics.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct View {
    pub owner: Option<NodeId>,
    pub sharers: NodeSet,
    pub migratory: bool,
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
pub(crate) struct Directory {
    me: NodeId,
    epoch: u32,
    migratory: bool,
    retransmit_ns: Option<u64>,
    retransmit_ns_max: u64,
    entries: Vec<Entry>,
    busy: BTreeMap<PageId, Transaction>,
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

pub(crate) type Outbox<B> = VecDeque<(NodeId, Message<B>)>;

impl Directory {
    pub(crate) fn new(config: &Config, homes: &HomeMap) -> Directory {
        let entries = homes
            .pages_of(config.me)
            .map(|page| Entry::new(initial(config, homes, page)))
            .collect();
        Directory {
            me: config.me,
            epoch: config.epoch,
            migratory: config.migratory,
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

    /// A `Get`. `from` and the page have been checked to exist, and the page to live here.
    pub(crate) fn get<B>(
        &mut self,
        now_ns: u64,
        slot: usize,
        from: NodeId,
        message: &Message<B>,
        out: &mut Outbox<B>,
    ) -> Result<(), ProtocolError> {
        let Kind::Get {
            access,
            have_copy,
            urgency,
        } = message.kind
        else {
            unreachable!("dispatched by kind")
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
            access,
            have_copy,
            urgency,
        };
        if self.busy.contains_key(&page) {
            return self.enqueue(page, from, get, message, out);
        }
        self.begin(now_ns, slot, page, get, VecDeque::new(), out)
    }

    /// A `Done`.
    pub(crate) fn done<B>(
        &mut self,
        now_ns: u64,
        slot: usize,
        from: NodeId,
        message: &Message<B>,
        out: &mut Outbox<B>,
    ) -> Result<(), ProtocolError> {
        let Kind::Done { state, clean } = message.kind else {
            unreachable!("dispatched by kind")
        };
        let page = message.page;
        self.check_requester(from, message)?;
        if message.txn == 0 || message.txn >= self.next_txn {
            return Err(refuse(message, from, "no such transaction"));
        }
        self.raise_floor(from, message.floor);
        let Some(transaction) = self.busy.get(&page).filter(|t| t.txn == message.txn) else {
            self.counters.stale += 1;
            return Ok(());
        };
        if transaction.current.request != message.request {
            return Err(refuse(message, from, "not the request of this transaction"));
        }
        // An owner that never wrote turns a grant of Exclusive into one of Shared.
        let planned = transaction.plan.state;
        if state != planned && (planned, state) != (State::Exclusive, State::Shared) {
            return Err(refuse(message, from, "not the state that was granted"));
        }
        if state == State::Shared
            && planned == State::Exclusive
            && self.entries[slot].owner == NO_NODE
        {
            return Err(refuse(message, from, "shared with nobody"));
        }
        let Some(transaction) = self.busy.remove(&page) else {
            unreachable!("found above")
        };
        self.commit(slot, &transaction, state, clean);
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
    pub(crate) fn handle_timeout<B>(&mut self, now_ns: u64, out: &mut Outbox<B>) {
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
    pub(crate) fn view(&self, slot: usize, page: PageId) -> View {
        let entry = &self.entries[slot];
        View {
            owner: (entry.owner != NO_NODE).then_some(NodeId(entry.owner)),
            sharers: entry.sharers,
            migratory: entry.migratory,
            busy: self.busy.get(&page).map(|t| t.current.request),
            waiting: self.busy.get(&page).map_or(0, |t| t.queue.len()),
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.busy.is_empty()
    }

    fn check_requester<B>(&self, from: NodeId, message: &Message<B>) -> Result<(), ProtocolError> {
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
        message: &Message<B>,
        out: &mut Outbox<B>,
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
        out: &mut Outbox<B>,
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
        out: &mut Outbox<B>,
    ) -> Result<(), ProtocolError> {
        let Some(plan) = self.plan(slot, &get) else {
            // Refusing one request must not strand those behind it.
            self.next_in_queue(now_ns, slot, page, queue, out)?;
            return Err(ProtocolError::Unexpected {
                kind: "Get",
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

    fn plan(&mut self, slot: usize, get: &Queued) -> Option<Plan> {
        let entry = self.entries[slot];
        let requester = get.request.node;
        let others = entry.sharers.without(requester);
        let supplier = || {
            if entry.owner != NO_NODE {
                return Some(NodeId(entry.owner));
            }
            // The home's own copy saves a message; else any copy is as good.
            if others.contains(self.me) {
                Some(self.me)
            } else {
                others.first()
            }
        };
        let counters = &mut self.counters;
        let plan = match home(entry.holders(requester), get.access) {
            Answer::Zero(state) => {
                counters.zero_grants += 1;
                Plan {
                    supplier: None,
                    invalidate: NodeSet::EMPTY,
                    state,
                    upgrade: false,
                }
            }
            // A sharer that claims to have no copy has lost it; nobody else can be asked to
            // believe that, since it may be the only one.
            Answer::Upgrade if !get.have_copy => return None,
            Answer::Upgrade => {
                counters.upgrades += 1;
                counters.invalidates += u64::from(others.len());
                Plan {
                    supplier: None,
                    invalidate: others,
                    state: State::Modified,
                    upgrade: true,
                }
            }
            Answer::Forward(state) => {
                counters.forwards += 1;
                counters.migratory_grants += u64::from(state == State::Exclusive);
                Plan {
                    supplier: supplier(),
                    invalidate: NodeSet::EMPTY,
                    state,
                    upgrade: false,
                }
            }
            Answer::ForwardAndInvalidate(state) => {
                let supplier = supplier()?;
                let invalidate = others.without(supplier);
                counters.forwards += 1;
                counters.invalidates += u64::from(invalidate.len());
                Plan {
                    supplier: Some(supplier),
                    invalidate,
                    state,
                    upgrade: false,
                }
            }
            Answer::Refuse => return None,
        };
        Some(plan)
    }

    /// Says everything that the current transaction of a page has to say, for the first time or
    /// again.
    fn announce<B>(&self, page: PageId, out: &mut Outbox<B>) {
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
        match plan.supplier {
            Some(supplier) => {
                assert!(supplier != requester, "I4: nobody supplies itself");
                out.push_back((
                    supplier,
                    message(
                        Kind::Forward {
                            state,
                            acks,
                            urgency,
                        },
                        Body::None,
                    ),
                ));
            }
            None => {
                let body = if plan.upgrade { Body::None } else { Body::Zero };
                let grant = Kind::Grant {
                    state,
                    acks,
                    clean: false,
                };
                out.push_back((requester, message(grant, body)));
            }
        }
        for sharer in acks.iter() {
            out.push_back((sharer, message(Kind::Invalidate { urgency }, Body::None)));
        }
    }

    /// Tells those who may be putting the current transaction off who waits behind it.
    fn hurry<B>(&mut self, page: PageId, out: &mut Outbox<B>) {
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
        for node in plan.supplier.into_iter().chain(plan.invalidate.iter()) {
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
            out.push_back((node, message));
        }
    }

    /// The requester has the page: the directory follows.
    fn commit(&mut self, slot: usize, transaction: &Transaction, state: State, clean: bool) {
        let entry = &mut self.entries[slot];
        let requester = transaction.current.request.node;
        if transaction.plan.upgrade
            && self.migratory
            && !entry.migratory
            && entry.last_reader == requester.0
            && entry.sharers.len() == 2
        {
            entry.migratory = true;
            self.counters.classified += 1;
        }
        if clean && entry.migratory {
            entry.migratory = false;
            self.counters.declassified += 1;
        }
        entry.last_reader = NO_NODE;
        if state.is_sole() {
            entry.owner = requester.0;
            entry.sharers = NodeSet::EMPTY;
            return;
        }
        if entry.owner != NO_NODE {
            entry.sharers = NodeSet::of(NodeId(entry.owner));
            entry.owner = NO_NODE;
        }
        if self.planted.lost_sharer()
            && let Some(lost) = entry.sharers.first()
        {
            entry.sharers = entry.sharers.without(lost);
        }
        entry.sharers = entry.sharers.with(requester);
        entry.last_reader = requester.0;
    }
}

fn refuse<B>(message: &Message<B>, from: NodeId, why: &'static str) -> ProtocolError {
    ProtocolError::Unexpected {
        kind: message.kind.name(),
        page: message.page,
        from,
        why,
    }
}
