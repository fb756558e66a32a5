//! A deterministic network of engines with a model of memory under each, and checks after every
//! step. Everything that happens follows from one seed.

use crate::params::{Params, Plant, Rng};
use dsm::{Access, Body, Config, Effect, Engine, Initial, Kind, Message, NodeId, PageId, State};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::hash::{DefaultHasher, Hash};

const RETRANSMIT_NS: u64 = 1_000_000;
const RETRANSMIT_NS_MAX: u64 = 8_000_000;
/// No request waits longer. With 20 % loss a transaction of 8 nodes can need many rounds, and 24
/// of them can queue up.
const GRANT_NS_MAX: u64 = 20_000_000_000;

#[derive(Clone, Debug)]
enum Event {
    Deliver {
        to: NodeId,
        from: NodeId,
        message: Message<u64>,
    },
    Protected {
        node: NodeId,
        page: PageId,
        state: State,
    },
    /// The thread runs: for the first time, after a grant, or with its next access.
    Run {
        node: NodeId,
        thread: u32,
    },
    /// The thread makes its access, or faults.
    Access {
        node: NodeId,
        thread: u32,
    },
    Timeout {
        node: NodeId,
    },
}

#[derive(Clone, Debug)]
struct Thread {
    left: u32,
    /// The pages of the next access, all needed at once; empty before it is chosen.
    want: Vec<(PageId, Access)>,
    asked_ns: Option<u64>,
    /// A grant has been received for this page and not been reported as resumed.
    resume: Option<PageId>,
}

struct Node {
    engine: Engine<u64>,
    /// What the pages hold.
    memory: Vec<u64>,
    /// What the threads can really do, whatever the engine believes.
    mapped: Vec<State>,
    filled: Vec<u32>,
    threads: Vec<Thread>,
    protecting: Vec<bool>,
    /// Memory when the last change of protection was ordered.
    snapshot: Vec<u64>,
    timeout_ns: Option<u64>,
}

/// What one run did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub events: u64,
    pub accesses: u64,
    pub faults: u64,
    /// Faults after a grant: another page of the same access, or one lost again.
    pub refaults: u64,
    pub messages: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub wait_ns_max: u64,
    pub migratory_grants: u64,
    pub local_upgrades: u64,
    pub zeros: u64,
}

pub(crate) struct Sim {
    params: Params,
    rng: Rng,
    now_ns: u64,
    order: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    nodes: Vec<Node>,
    /// Last version written to each page.
    written: Vec<u64>,
    versions: u64,
    trace: bool,
    tokens: u32,

    last_arrival_ns: BTreeMap<(NodeId, NodeId), u64>,
    pub totals: Totals,
    /// Of everything that happens, for those who want to compare.
    pub(crate) digest: Option<DefaultHasher>,
}

impl Sim {
    pub(crate) fn new(params: Params) -> Sim {
        let mut rng = Rng::new(params.seed);
        let homes: Vec<(PageId, NodeId)> = (0..params.pages)
            .map(|p| (PageId(p), NodeId(rng.below(u64::from(params.nodes)) as u16)))
            .collect();
        let initial: Vec<(PageId, Initial)> = (0..params.pages)
            .map(|p| {
                let node = NodeId(rng.below(u64::from(params.nodes)) as u16);
                let untouched = params.untouched && rng.percent(70);
                let initial = if untouched {
                    Initial::Untouched
                } else {
                    Initial::Owned(node)
                };
                (PageId(p), initial)
            })
            .collect();
        let nodes = (0..params.nodes)
            .map(|me| {
                let mut config = Config::new(NodeId(me), params.nodes, params.pages);
                config.homes = homes.clone();
                config.initial = initial.clone();
                config.hold_ns = params.hold_ns;
                config.hold_ns_max = params.hold_ns_max;
                config.migratory = params.migratory;
                config.retransmit_ns = (params.loss_percent > 0).then_some(RETRANSMIT_NS);
                config.retransmit_ns_max = RETRANSMIT_NS_MAX;
                let engine = Engine::new(config).expect("a valid configuration");
                let pages = params.pages as usize;
                let mapped = (0..params.pages).map(|p| engine.state(PageId(p))).collect();
                let thread = Thread {
                    left: params.accesses,
                    want: Vec::new(),
                    asked_ns: None,
                    resume: None,
                };
                Node {
                    engine,
                    memory: vec![0; pages],
                    mapped,
                    filled: vec![0; pages],
                    threads: vec![thread; params.threads as usize],
                    protecting: vec![false; pages],
                    snapshot: vec![0; pages],
                    timeout_ns: None,
                }
            })
            .collect();
        let mut sim = Sim {
            rng,
            now_ns: 0,
            order: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            nodes,
            written: vec![0; params.pages as usize],
            versions: 0,
            trace: std::env::var_os("DSM_TRACE").is_some(),
            tokens: 0,
            last_arrival_ns: BTreeMap::new(),
            totals: Totals::default(),
            digest: None,
            params,
        };
        for node in 0..sim.params.nodes {
            for thread in 0..sim.params.threads {
                let at_ns = sim.delay_ns(1_000);
                sim.schedule(
                    at_ns,
                    Event::Run {
                        node: NodeId(node),
                        thread,
                    },
                );
            }
        }
        sim
    }

    /// Runs until every thread has made its accesses and the network is quiet.
    pub(crate) fn run(&mut self) {
        while let Some(Reverse((at_ns, order))) = self.queue.pop() {
            assert!(at_ns >= self.now_ns);
            self.now_ns = at_ns;
            self.totals.events += 1;
            assert!(
                self.totals.events < self.params.events_max,
                "no end: livelock"
            );
            let event = self.events.remove(&order).expect("scheduled");
            if let Some(digest) = &mut self.digest {
                format!("{at_ns} {event:?}").hash(digest);
            }
            if self.trace {
                println!("{:>9} {event:?}", self.now_ns);
            }
            self.step(event);
            self.check();
        }
        self.check_end();
    }

    fn schedule(&mut self, at_ns: u64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse((at_ns, self.order)));
        self.events.insert(self.order, event);
    }

    fn node(&mut self, node: NodeId) -> &mut Node {
        &mut self.nodes[node.0 as usize]
    }

    fn step(&mut self, event: Event) {
        let now_ns = self.now_ns;
        let node = match event {
            Event::Deliver { to, from, message } => {
                let result = self.node(to).engine.handle_message(now_ns, from, message);
                assert_eq!(result, Ok(()), "a correct peer's message was refused");
                to
            }
            Event::Protected { node, page, state } => {
                let early = self.params.plant == Plant::EarlyProtected;
                let model = self.node(node);
                model.mapped[page.0 as usize] = state;
                if model.protecting[page.0 as usize] {
                    model.protecting[page.0 as usize] = false;
                    model.engine.protected(now_ns, page);
                } else {
                    assert!(early);
                }
                node
            }
            Event::Run { node, thread } => {
                self.run_thread(node, thread);
                node
            }
            Event::Access { node, thread } => {
                self.access(node, thread);
                node
            }
            Event::Timeout { node } => {
                self.node(node).timeout_ns = None;
                self.node(node).engine.handle_timeout(now_ns);
                node
            }
        };
        self.drain(node);
        let model = self.node(node);
        let wanted = model.engine.poll_timeout();
        if let Some(at_ns) = wanted
            && model.timeout_ns.is_none_or(|set| at_ns < set)
        {
            model.timeout_ns = Some(at_ns);
            self.schedule(at_ns.max(now_ns), Event::Timeout { node });
        }
    }

    /// The thread runs: it says so if it was granted something, and comes to its access later.
    fn run_thread(&mut self, id: NodeId, thread: u32) {
        let now_ns = self.now_ns;
        let access_ns = self.delay_ns(self.params.access_ns_max);
        let node = self.node(id);
        if let Some(page) = node.threads[thread as usize].resume.take() {
            node.engine.resumed(now_ns, page, now_ns);
        }
        self.schedule(now_ns + access_ns, Event::Access { node: id, thread });
    }

    fn choose(&mut self) -> Vec<(PageId, Access)> {
        let pages = u64::from(self.params.pages);
        let first = self.rng.below(pages);
        let mut want = vec![first];
        if pages > 1 && self.rng.percent(self.params.pair_percent) {
            want.push((first + self.rng.range(1, pages - 1)) % pages);
        }
        let access = |rng: &mut Rng, percent| match rng.percent(percent) {
            true => Access::Write,
            false => Access::Read,
        };
        want.iter()
            .map(|&p| {
                (
                    PageId(p as u32),
                    access(&mut self.rng, self.params.write_percent),
                )
            })
            .collect()
    }

    fn access(&mut self, id: NodeId, thread: u32) {
        let now_ns = self.now_ns;
        let think_ns = self.delay_ns(self.params.think_ns_max);
        let me = &self.node(id).threads[thread as usize];
        let (left, fresh) = (me.left, me.want.is_empty());
        if left == 0 {
            return;
        }
        let want = if fresh {
            self.choose()
        } else {
            me.want.clone()
        };
        let node = &mut self.nodes[id.0 as usize];
        let missing = want
            .iter()
            .find(|(p, access)| !node.mapped[p.0 as usize].allows(*access));
        let me = &mut node.threads[thread as usize];
        if let Some(&(page, access)) = missing {
            assert!(
                me.asked_ns.is_none(),
                "a thread with one request ran before the grant"
            );
            me.asked_ns = Some(now_ns);
            me.want = want;
            self.totals.refaults += u64::from(!fresh);
            self.totals.faults += 1;
            let mut token = thread;
            if self.params.anonymous {
                self.tokens += 1;
                token += self.params.threads * (dsm::WAITERS_MAX + self.tokens);
            }
            node.engine.request(now_ns, page, access, token);
            return;
        }
        me.want.clear();
        me.left -= 1;
        self.totals.accesses += 1;
        for (page, access) in want {
            let index = page.0 as usize;
            assert_eq!(
                node.memory[index], self.written[index],
                "I2: {id} has a stale {page}"
            );
            if access == Access::Write {
                self.versions += 1;
                node.memory[index] = self.versions;
                self.written[index] = self.versions;
            }
        }
        self.schedule(now_ns + think_ns, Event::Run { node: id, thread });
    }

    fn delay_ns(&mut self, max_ns: u64) -> u64 {
        if self.params.regular {
            max_ns
        } else {
            self.rng.below(max_ns + 1)
        }
    }

    fn drain(&mut self, id: NodeId) {
        while let Some(effect) = self.node(id).engine.poll_effect() {
            match effect {
                Effect::Send {
                    to,
                    message,
                    attach_page,
                } => {
                    self.send(id, to, message, attach_page);
                }
                Effect::Fill { page, body } => self.fill(id, page, body),
                Effect::Protect { page, state } => self.protect(id, page, state),
                Effect::Granted { page, waiter } => self.granted(id, page, waiter),
                Effect::Failed { error } => panic!("{id} failed: {error}"),
            }
        }
    }

    fn send(&mut self, from: NodeId, to: NodeId, mut message: Message<u64>, attach_page: bool) {
        let index = message.page.0 as usize;
        let node = &self.nodes[from.0 as usize];
        if attach_page {
            let early = self.params.plant == Plant::EarlyBytes;
            message.body = match if early {
                node.snapshot[index]
            } else {
                node.memory[index]
            } {
                0 => Body::Zero,
                version => Body::Full(version),
            };
        }
        let allowed = match message.kind {
            Kind::InvalidateAck => State::Invalid,
            Kind::Grant { state, .. } if attach_page && state.is_sole() => State::Invalid,
            // Read-only mappings are all alike.
            Kind::Grant { .. } if attach_page => State::Exclusive,
            _ => State::Modified,
        };
        let mapped = node.mapped[index];
        if self.params.plant == Plant::Nothing {
            assert!(
                mapped <= allowed,
                "I3: {from} answers while mapped {mapped:?}: {message:?}"
            );
        }
        self.totals.messages += 1;
        let mut copies = 1;
        if self.rng.percent(self.params.loss_percent) {
            self.totals.lost += 1;
            copies = 0;
        } else if self.rng.percent(self.params.duplicate_percent) {
            self.totals.duplicated += 1;
            copies = 1 + self.rng.range(1, 3);
        }
        for _ in 0..copies {
            // Now and then something arrives very late.
            let far = if self.params.ordered || !self.rng.percent(3) {
                1
            } else {
                500
            };
            let delay_ns = self.delay_ns(self.params.delay_ns_max * far);
            let mut at_ns = self.now_ns + delay_ns;
            if self.params.ordered {
                let last = self.last_arrival_ns.entry((from, to)).or_insert(0);
                at_ns = at_ns.max(*last);
                *last = at_ns;
            }
            self.schedule(
                at_ns,
                Event::Deliver {
                    to,
                    from,
                    message: message.clone(),
                },
            );
        }
    }

    fn fill(&mut self, id: NodeId, page: PageId, body: Body<u64>) {
        let plant = self.params.plant;
        let node = self.node(id);
        let index = page.0 as usize;
        assert_eq!(
            node.mapped[index],
            State::Invalid,
            "I3: {id} fills {page} while it is mapped"
        );
        node.filled[index] += 1;
        if plant == Plant::SkipFill && node.filled[index] > 1 {
            return;
        }
        node.memory[index] = match body {
            Body::Full(version) => version,
            Body::Zero => 0,
            Body::None => panic!("a fill with nothing"),
        };
    }

    fn protect(&mut self, id: NodeId, page: PageId, state: State) {
        let delay_ns = self.delay_ns(self.params.protect_ns_max);
        let early = self.params.plant == Plant::EarlyProtected;
        let now_ns = self.now_ns;
        let node = self.node(id);
        let index = page.0 as usize;
        assert!(
            !node.protecting[index],
            "two changes of protection for {page} at {id}"
        );
        node.snapshot[index] = node.memory[index];
        let lowers = state < node.mapped[index];
        if lowers && early {
            node.engine.protected(now_ns, page);
        } else if delay_ns == 0 {
            node.mapped[index] = state;
            node.engine.protected(now_ns, page);
            return;
        } else {
            node.protecting[index] = true;
        }
        self.schedule(
            now_ns + delay_ns,
            Event::Protected {
                node: id,
                page,
                state,
            },
        );
    }

    fn granted(&mut self, id: NodeId, page: PageId, waiter: u32) {
        let delay_ns = self.delay_ns(self.params.resume_ns_max);
        let thread_id = waiter % self.params.threads;
        let now_ns = self.now_ns;
        let thread = &mut self.node(id).threads[thread_id as usize];
        let asked_ns = thread.asked_ns.take().expect("granted without a request");
        assert!(
            thread.want.iter().any(|w| w.0 == page),
            "granted another page"
        );
        thread.resume = Some(page);
        self.totals.wait_ns_max = self.totals.wait_ns_max.max(now_ns - asked_ns);
        self.schedule(
            now_ns + delay_ns,
            Event::Run {
                node: id,
                thread: thread_id,
            },
        );
    }

    /// After every step: one writer or many readers, and nobody waits for ever.
    fn check(&self) {
        for page in 0..self.params.pages as usize {
            // An exclusive owner that becomes a reader keeps its mapping, so `Exclusive` among
            // the mappings proves nothing; the engine's own state does.
            let count = |is: &dyn Fn(&Node) -> bool| self.nodes.iter().filter(|n| is(n)).count();
            let readers = count(&|n| n.mapped[page] >= State::Shared);
            let writers = count(&|n| n.mapped[page] == State::Modified);
            let owners = count(&|n| n.engine.state(PageId(page as u32)).is_sole());
            assert!(
                writers == 0 || readers == 1,
                "I1: page {page}: a writer among {readers}"
            );
            assert!(owners <= 1, "I1: page {page} has {owners} owners");
            self.check_directory(PageId(page as u32));
        }
        for node in &self.nodes {
            for thread in &node.threads {
                let waits_ns = thread.asked_ns.map_or(0, |at| self.now_ns - at);
                assert!(waits_ns < GRANT_NS_MAX, "I8: a request was not granted");
            }
        }
    }

    /// I6: between transactions the directory knows exactly who has what.
    fn check_directory(&self, page: PageId) {
        let views = self.nodes.iter().filter_map(|n| n.engine.directory(page));
        for view in views.filter(|v| v.busy.is_none()) {
            for (id, node) in self.nodes.iter().enumerate() {
                let id = NodeId(id as u16);
                let state = node.engine.state(page);
                let agrees = match state {
                    State::Invalid => view.owner != Some(id) && !view.sharers.contains(id),
                    State::Shared => view.owner.is_none() && view.sharers.contains(id),
                    State::Exclusive | State::Modified => view.owner == Some(id),
                };
                assert!(
                    agrees,
                    "I6: {id} has {page} {state:?}, the home says {view:?}"
                );
            }
        }
    }

    /// Nothing is left over, and every page is still somewhere.
    fn check_end(&mut self) {
        for (id, node) in self.nodes.iter().enumerate() {
            assert!(
                node.engine.is_idle(),
                "node {id} is not idle at the end: {:?}",
                node.engine
            );
            for thread in &node.threads {
                assert_eq!(thread.left, 0, "a thread at node {id} never finished");
            }
        }
        for page in 0..self.params.pages as usize {
            let holders = self
                .nodes
                .iter()
                .filter(|n| n.mapped[page] >= State::Shared);
            for node in holders {
                assert_eq!(node.memory[page], self.written[page], "I2: at the end");
            }
        }
        for node in &self.nodes {
            let counters = node.engine.counters();
            self.totals.migratory_grants += counters.home.migratory_grants;
            self.totals.local_upgrades += counters.holder.local_upgrades;
            self.totals.zeros += counters.holder.zeros_in;
        }
    }
}
