//! A random network: what happens next, and when, follows from one seed.

use crate::ledger::Ledger;
use crate::params::{Params, Rng, Sharing};
use crate::script::Recorder;
use crate::step::{Breach, Event, Rule, Step, Want};
use crate::world::{Phase, World};
use dsm::{Access, Message, NodeId, PageId, State};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::hash::{DefaultHasher, Hash};

/// Pages that `Params::hot_percent` goes to.
const HOT_PAGES: u64 = 4;
/// Pages that are asked for ahead at once.
const AHEAD_PAGES: u32 = 8;

/// Something to happen.
#[derive(Clone, Debug)]
enum Next<const W: usize> {
    /// The thread runs: for the first time, after a grant, or with its next access.
    Run {
        node: NodeId,
        thread: u32,
    },
    /// It comes to its access.
    Access {
        node: NodeId,
        thread: u32,
    },
    /// The engine's deadline, unless a sooner one has taken its place.
    Timeout {
        node: NodeId,
    },
    Step(Step<W>),
}

/// What one run did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub steps: u64,
    pub accesses: u64,
    pub faults: u64,
    /// Faults after a grant: another page of the same access, or one lost again.
    pub refaults: u64,
    /// Pages asked for before a thread needed them.
    pub ahead: u64,
    pub messages: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub crashes: u64,
    /// Threads that wait for a node that is gone.
    pub stranded: u64,
    pub wait_ns_max: u64,
    pub migratory_grants: u64,
    pub local_upgrades: u64,
    pub zeros: u64,
    /// Copies dropped, pages given back, and those granted again by their homes.
    pub dropped: u64,
    pub given_back: u64,
    pub kept_grants: u64,
    /// Requests that had to wait for room.
    pub starved: u64,
}

impl Totals {
    /// Of several runs.
    pub fn add(&mut self, other: &Totals) {
        let Totals {
            steps,
            accesses,
            faults,
            refaults,
            ahead,
            messages,
            lost,
            duplicated,
            crashes,
            stranded,
            wait_ns_max,
            migratory_grants,
            local_upgrades,
            zeros,
            dropped,
            given_back,
            kept_grants,
            starved,
        } = other;
        self.steps += steps;
        self.accesses += accesses;
        self.faults += faults;
        self.refaults += refaults;
        self.ahead += ahead;
        self.messages += messages;
        self.lost += lost;
        self.duplicated += duplicated;
        self.crashes += crashes;
        self.stranded += stranded;
        self.wait_ns_max = self.wait_ns_max.max(*wait_ns_max);
        self.migratory_grants += migratory_grants;
        self.local_upgrades += local_upgrades;
        self.zeros += zeros;
        self.dropped += dropped;
        self.given_back += given_back;
        self.kept_grants += kept_grants;
        self.starved += starved;
    }
}

#[derive(Debug)]
pub struct Sim<const W: usize = 1> {
    params: Params,
    grant_ns_max: u64,
    rng: Rng,
    now_ns: u64,
    /// Numbers what is scheduled, so that the order of what is due at once is certain.
    order: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    scheduled: BTreeMap<u64, Next<W>>,
    world: World<W>,
    /// The soonest wake-up that is scheduled for each engine.
    timeouts: Vec<Option<u64>>,
    /// Requests that wait for a grant: since when, whose.
    waiting: BTreeSet<(u64, NodeId, u32)>,
    /// Threads that are not finished, and may still finish.
    unfinished: BTreeSet<(NodeId, u32)>,
    /// Steps at which a node stops, the next one last.
    crashes: Vec<(u64, NodeId)>,
    last_arrival_ns: BTreeMap<(NodeId, NodeId), u64>,
    trace: bool,
    recorder: Option<Recorder<W>>,
    totals: Totals,
    /// Of each fault, for those who want to know.
    pub ledger: Option<Ledger<W>>,
    /// Of everything that happens, for those who want to compare.
    pub digest: Option<DefaultHasher>,
}

impl<const W: usize> Sim<W> {
    /// # Panics
    /// When the parameters make no valid configuration.
    pub fn new(params: Params) -> Sim<W> {
        Sim::recorded(params, |_| None)
    }

    /// ... with a recorder for everything that happens.
    ///
    /// # Panics
    /// When the parameters make no valid configuration.
    pub fn recorded(
        params: Params,
        recorder: impl FnOnce(&crate::Shape) -> Option<Recorder<W>>,
    ) -> Sim<W> {
        let mut rng = Rng::new(params.seed);
        let shape = params.shape(&mut rng);
        let ids = || (0..params.nodes).map(NodeId);
        let threads = ids().flat_map(|n| (0..params.threads).map(move |t| (n, t)));
        let mut sim = Sim {
            grant_ns_max: params.grant_ns_max(),
            now_ns: 0,
            order: 0,
            queue: BinaryHeap::new(),
            scheduled: BTreeMap::new(),
            world: World::new(&shape),
            timeouts: vec![None; usize::from(params.nodes)],
            waiting: BTreeSet::new(),
            unfinished: threads.collect(),
            crashes: crashes(&params, &mut rng),
            last_arrival_ns: BTreeMap::new(),
            trace: false,
            recorder: recorder(&shape),
            totals: Totals::default(),
            ledger: None,
            digest: None,
            rng,
            params,
        };
        for (node, thread) in sim.unfinished.clone() {
            let at_ns = sim.delay_ns(1_000);
            sim.schedule(at_ns, Next::Run { node, thread });
        }
        sim
    }

    /// Prints everything that happens.
    pub fn trace(&mut self) {
        self.trace = true;
    }

    /// Of the nodes' directories together, see [`dsm::Engine::directory_bytes`].
    pub fn directory_bytes(&self) -> (usize, usize) {
        let nodes = self.world.nodes.iter();
        nodes.fold((0, 0), |(pages, requesters), node| {
            let (more_pages, more_requesters) = node.engine.directory_bytes();
            (pages + more_pages, requesters + more_requesters)
        })
    }

    pub fn totals(&self) -> Totals {
        let mut totals = self.totals;
        for node in &self.world.nodes {
            let counters = node.engine.counters();
            totals.migratory_grants += counters.home.migratory_grants;
            totals.local_upgrades += counters.holder.local_upgrades;
            totals.zeros += counters.holder.zeros_in;
            totals.dropped += counters.holder.evicted_copies;
            totals.given_back += counters.holder.evicted_pages;
            totals.kept_grants += counters.home.kept_grants;
            totals.starved += counters.holder.starved;
        }
        totals
    }

    /// Runs until every thread has made its accesses and the network is quiet. After a crash,
    /// until every thread is finished or waits for what is gone.
    ///
    /// # Errors
    /// At the first broken promise.
    pub fn run(&mut self) -> Result<(), Breach> {
        while let Some(Reverse((at_ns, order))) = self.queue.pop() {
            self.now_ns = at_ns;
            if self.totals.steps >= self.params.steps_max {
                let what = format!("no end after {} steps", self.totals.steps);
                return Err(Breach {
                    rule: Rule::Granted,
                    what,
                });
            }
            self.crash()?;
            let Some(next) = self.scheduled.remove(&order) else {
                unreachable!("scheduled with its number")
            };
            match next {
                Next::Run { node, thread } => self.run_thread(node, thread)?,
                Next::Access { node, thread } => self.access(node, thread)?,
                Next::Timeout { node } => self.timeout(node)?,
                Next::Step(step) => self.step(step)?,
            }
            self.check_waiting()?;
            if self.totals.crashes > 0 && self.unfinished.is_empty() {
                break;
            }
        }
        self.check_end()
    }

    fn schedule(&mut self, at_ns: u64, next: Next<W>) {
        self.order += 1;
        self.queue.push(Reverse((at_ns, self.order)));
        self.scheduled.insert(self.order, next);
    }

    fn step(&mut self, step: Step<W>) -> Result<(), Breach> {
        let now_ns = self.now_ns;
        self.totals.steps += 1;
        if let Some(digest) = &mut self.digest {
            format!("{now_ns} {step:?}").hash(digest);
        }
        if self.trace {
            println!("{now_ns:>9} {step:?}");
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.step(now_ns, &step);
        }
        let node = step.node();
        self.world.step(now_ns, step)?;
        for event in self.world.take_events() {
            self.follow_up(event);
        }
        let set = &mut self.timeouts[usize::from(node.0)];
        let node_state = self.world.node(node);
        if let Some(at_ns) = node_state.engine.poll_timeout()
            && node_state.alive
            && set.is_none_or(|set| at_ns < set)
        {
            let at_ns = at_ns.max(now_ns);
            *set = Some(at_ns);
            self.schedule(at_ns, Next::Timeout { node });
        }
        Ok(())
    }

    /// Schedules what comes of a step.
    fn follow_up(&mut self, event: Event<W>) {
        let now_ns = self.now_ns;
        match event {
            Event::Sent { to, from, message } => {
                if let Some(recorder) = &mut self.recorder {
                    recorder.sent(to, from, &message);
                }
                self.send(to, from, &message);
            }
            Event::Protecting { node, page } => {
                let at_ns = now_ns + self.delay_ns(self.params.protect_ns_max);
                self.schedule(at_ns, Next::Step(Step::Protected { node, page }));
            }
            Event::Granted {
                node,
                thread,
                since_ns,
            } => {
                self.waiting.remove(&(since_ns, node, thread));
                if let Some(ledger) = &mut self.ledger {
                    ledger.granted(now_ns - since_ns);
                }
                self.totals.wait_ns_max = self.totals.wait_ns_max.max(now_ns - since_ns);
                let at_ns = now_ns + self.delay_ns(self.params.resume_ns_max);
                self.schedule(at_ns, Next::Run { node, thread });
            }
            Event::Made { node, thread } => {
                self.totals.accesses += 1;
                self.evict(node);
                let at_ns = now_ns + self.delay_ns(self.params.think_ns_max);
                self.schedule(at_ns, Next::Run { node, thread });
            }
            Event::Faulted { node, thread } => {
                self.totals.faults += 1;
                self.waiting.insert((now_ns, node, thread));
                self.ask_ahead(node, thread);
            }
        }
    }

    /// The node gives up some page, if it has it.
    fn evict(&mut self, node: NodeId) {
        let percent = self.params.evict_percent;
        if percent > 0 && self.rng.percent(percent) {
            let page = PageId(self.rng.below(u64::from(self.params.pages)) as u32);
            let at_ns = self.now_ns + self.delay_ns(self.params.think_ns_max);
            self.schedule(at_ns, Next::Step(Step::Evict { node, page }));
        }
    }

    /// The thread runs: it says so if it was granted something, and comes to its access later.
    fn run_thread(&mut self, node: NodeId, thread: u32) -> Result<(), Breach> {
        let access_ns = self.delay_ns(self.params.access_ns_max);
        let phase = self.world.node(node).threads[thread as usize].phase;
        if matches!(phase, Phase::Granted { .. }) {
            self.step(Step::Resume { node, thread })?;
        }
        self.schedule(self.now_ns + access_ns, Next::Access { node, thread });
        Ok(())
    }

    /// What follows the page that the thread waits for, as far as it is not here.
    fn ask_ahead(&mut self, node: NodeId, thread: u32) {
        let percent = self.params.ahead_percent;
        if percent == 0 || !self.rng.percent(percent) {
            return;
        }
        let me = self.world.node(node);
        let state = &me.threads[thread as usize];
        let (Phase::Waiting { page, .. }, Some(&(_, access))) = (state.phase, state.want.first())
        else {
            return;
        };
        let end = self.params.pages.min(page.0 + 1 + AHEAD_PAGES);
        let missing: Vec<PageId> = (page.0 + 1..end)
            .map(PageId)
            .filter(|page| me.engine.state(*page) == State::Invalid)
            .collect();
        for page in missing {
            self.totals.ahead += 1;
            let step = Step::Ahead { node, page, access };
            self.schedule(self.now_ns, Next::Step(step));
        }
    }

    fn timeout(&mut self, node: NodeId) -> Result<(), Breach> {
        let set = &mut self.timeouts[usize::from(node.0)];
        if *set != Some(self.now_ns) {
            return Ok(());
        }
        *set = None;
        self.step(Step::Timeout { node })
    }

    fn access(&mut self, node: NodeId, thread: u32) -> Result<(), Breach> {
        let me = &self.world.node(node).threads[thread as usize];
        let over = self.totals.steps >= self.params.steps;
        let fresh = me.want.is_empty();
        if fresh && (me.made == self.params.accesses || over) {
            self.unfinished.remove(&(node, thread));
            return Ok(());
        }
        let want = if fresh {
            self.choose(node)
        } else {
            me.want.clone()
        };
        self.step(Step::Access { node, thread, want })?;
        let phase = self.world.node(node).threads[thread as usize].phase;
        let faulted = matches!(phase, Phase::Waiting { .. } | Phase::Granted { .. });
        self.totals.refaults += u64::from(faulted && !fresh);
        Ok(())
    }

    fn choose(&mut self, node: NodeId) -> Want {
        if self.params.sharing != Sharing::Drawn {
            return vec![self.choose_of_part(node)];
        }
        let pages = u64::from(self.params.pages);
        let hot = self.params.hot_percent > 0 && self.rng.percent(self.params.hot_percent);
        let among = if hot { pages.min(HOT_PAGES) } else { pages };
        let first = self.rng.below(among);
        let mut pages_wanted = vec![first];
        if among > 1 && self.rng.percent(self.params.pair_percent) {
            pages_wanted.push((first + self.rng.range(1, among - 1)) % among);
        }
        let access = |rng: &mut Rng, percent| match rng.percent(percent) {
            true => Access::Write,
            false => Access::Read,
        };
        let pages = pages_wanted.iter();
        pages
            .map(|&p| {
                (
                    PageId(p as u32),
                    access(&mut self.rng, self.params.write_percent),
                )
            })
            .collect()
    }

    fn choose_of_part(&mut self, node: NodeId) -> (PageId, Access) {
        let (nodes, pages) = (self.params.nodes, u64::from(self.params.pages));
        let among = match self.params.sharing {
            Sharing::Neighbours(degree) => {
                let back = self.rng.below(u64::from(degree.min(nodes))) as u16;
                let home = (node.0 + nodes - back) % nodes;
                self.params.first_page(home)..self.params.first_page(home + 1)
            }
            Sharing::Drawn | Sharing::Anywhere | Sharing::OneWriter => 0..pages as u32,
        };
        let page = PageId(among.start + self.rng.below(among.len() as u64) as u32);
        let writes = match self.params.sharing {
            Sharing::OneWriter => node.0 == nodes - 1,
            _ => self.rng.percent(self.params.write_percent),
        };
        let access = if writes { Access::Write } else { Access::Read };
        (page, access)
    }

    fn delay_ns(&mut self, max_ns: u64) -> u64 {
        if self.params.regular {
            max_ns
        } else {
            self.rng.below(max_ns + 1)
        }
    }

    fn send(&mut self, to: NodeId, from: NodeId, message: &Message<u64, W>) {
        self.totals.messages += 1;
        if let Some(ledger) = &mut self.ledger {
            ledger.sent(to, from, message);
        }
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
            let spread_ns = self.params.delay_ns_max * far - self.params.delay_ns_min;
            let delay_ns = self.params.delay_ns_min + self.delay_ns(spread_ns);
            let mut at_ns = self.now_ns + delay_ns;
            if self.params.ordered {
                let last = self.last_arrival_ns.entry((from, to)).or_insert(0);
                at_ns = at_ns.max(*last);
                *last = at_ns;
            }
            let message = message.clone();
            self.schedule(at_ns, Next::Step(Step::Deliver { to, from, message }));
        }
    }

    /// A node stops, if it is time, and the others learn of it one by one.
    fn crash(&mut self) -> Result<(), Breach> {
        let Some((_, lost)) = self.crashes.pop_if(|(at, _)| *at <= self.totals.steps) else {
            return Ok(());
        };
        self.totals.crashes += 1;
        self.unfinished.retain(|(node, _)| *node != lost);
        self.waiting.retain(|(_, node, _)| *node != lost);
        self.step(Step::Crash { node: lost })?;
        for node in (0..self.params.nodes).map(NodeId).filter(|n| *n != lost) {
            let at_ns = self.now_ns + self.delay_ns(self.params.lost_ns_max);
            self.schedule(at_ns, Next::Step(Step::Lost { node, lost }));
        }
        Ok(())
    }

    /// I8: nobody waits for ever, unless it is for a node that is gone.
    fn check_waiting(&mut self) -> Result<(), Breach> {
        let oldest = self.waiting.first().copied();
        match oldest.filter(|w| self.now_ns - w.0 > self.grant_ns_max) {
            None => Ok(()),
            Some((since_ns, node, thread)) => self.strand(since_ns, node, thread),
        }
    }

    fn strand(&mut self, since_ns: u64, node: NodeId, thread: u32) -> Result<(), Breach> {
        let phase = self.world.node(node).threads[thread as usize].phase;
        let stranded = match phase {
            // Pages that cannot be given back to a node that is gone keep the room they take.
            Phase::Waiting { .. } if self.params.foreign_max.is_some() => self.totals.crashes > 0,
            Phase::Waiting { page, .. } => self.world.is_stranded(page),
            _ => false,
        };
        if !stranded {
            let what = format!("{node}.{thread} is {phase:?} at {} ns", self.now_ns);
            return Err(Breach {
                rule: Rule::Granted,
                what,
            });
        }
        self.totals.stranded += 1;
        self.waiting.remove(&(since_ns, node, thread));
        self.unfinished.remove(&(node, thread));
        Ok(())
    }

    /// Nothing is left over, and the quick checks have not missed anything.
    fn check_end(&mut self) -> Result<(), Breach> {
        while let Some((since_ns, node, thread)) = self.waiting.first().copied() {
            self.strand(since_ns, node, thread)?;
        }
        let idle = self.world.nodes.iter().all(|n| n.engine.is_idle());
        if self.totals.crashes == 0 && !(idle && self.unfinished.is_empty()) {
            let what = format!("at the end: {:?} unfinished, idle {idle}", self.unfinished);
            return Err(Breach {
                rule: Rule::Granted,
                what,
            });
        }
        self.world.check_everything()
    }
}

/// Early enough to happen: an access takes a step at least.
fn crashes(params: &Params, rng: &mut Rng) -> Vec<(u64, NodeId)> {
    let threads = u64::from(params.nodes) * u64::from(params.threads);
    let steps = params
        .steps
        .min(threads.saturating_mul(u64::from(params.accesses)));
    let mut nodes: Vec<NodeId> = (0..params.nodes).map(NodeId).collect();
    let mut crashes: Vec<(u64, NodeId)> = (0..params.crashes.min(params.nodes - 1))
        .map(|_| {
            let node = nodes.swap_remove(rng.below(nodes.len() as u64) as usize);
            (rng.range(steps / 2, steps), node)
        })
        .collect();
    crashes.sort_by_key(|c| Reverse(c.0));
    crashes
}
