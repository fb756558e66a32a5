//! Engines, the memory under them and the network between them, as one state that can be hashed.

use dsm::{Access, Body, Config, Effect, Engine, Initial, Kind, Message, NodeId, PageId, State};
use stateright::{Model, Property};
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

const PAGE: PageId = PageId(0);
/// Deadlines: a hold ends at 1, a retransmission is due at the end of time. It is always 0
/// otherwise, so that the same situation is the same state however long it took.
const HOLD_NS: u64 = 1;
const RETRANSMIT_NS: u64 = u64::MAX;
/// More steps than any configuration here needs to finish.
const STEPS_MAX: usize = 1_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Network {
    /// Each message arrives once, in any order.
    Unordered,
    /// ... any number of times, at least once.
    Duplicating,
    /// ... or never. Nodes repeat what they wait for.
    Lossy,
}

#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) home: u16,
    pub(crate) initial: Initial,
    /// What the thread of each node does.
    pub(crate) programs: Vec<Vec<Access>>,
    pub(crate) migratory: bool,
    pub(crate) network: Network,
    /// Planted: `protected` is called at once when mappings are to be lowered.
    pub(crate) early: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Thread {
    Running,
    /// For a grant.
    Waiting,
    /// Granted, but not running yet.
    Granted,
    /// Running again, and about to make the access that it was granted.
    Resumed,
}

#[derive(Clone, Hash, Debug)]
struct Node {
    engine: Engine<u8>,
    memory: u8,
    /// What the thread can really do.
    mapped: State,
    protecting: Option<State>,
    thread: Thread,
    /// Accesses made.
    made: usize,
}

type Packet = (usize, usize, Message<u8>);

#[derive(Clone, Hash, Debug)]
#[expect(
    clippy::derived_hash_with_manual_eq,
    reason = "equal means that the hashes are equal"
)]
pub(crate) struct World {
    nodes: Vec<Node>,
    /// Messages under way: to, from, message.
    network: BTreeSet<Packet>,
    /// The last version written to the page.
    written: u8,
    /// What went wrong.
    broken: Option<String>,
}

/// The checker itself compares by fingerprint; engines have no equality of their own.
impl PartialEq for World {
    fn eq(&self, other: &World) -> bool {
        let fingerprint = |world: &World| {
            let mut hasher = DefaultHasher::new();
            world.hash(&mut hasher);
            hasher.finish()
        };
        fingerprint(self) == fingerprint(other)
    }
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Step {
    Access(usize),
    Resume(usize),
    Protected(usize),
    Timeout(usize),
    Deliver(Packet),
    /// Delivers it and leaves a copy under way.
    Duplicate(Packet),
    Lose(Packet),
}

impl Model for Setup {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let nodes = (0..self.programs.len() as u16).map(|me| {
            let mut config = Config::new(NodeId(me), self.programs.len() as u16, 1);
            config.homes = vec![(PAGE, NodeId(self.home))];
            config.initial = vec![(PAGE, self.initial)];
            (config.hold_ns, config.hold_ns_max) = (HOLD_NS, HOLD_NS);
            config.migratory = self.migratory;
            config.retransmit_ns = (self.network == Network::Lossy).then_some(RETRANSMIT_NS);
            config.retransmit_ns_max = RETRANSMIT_NS;
            let engine = Engine::new(config).expect("a valid configuration");
            Node {
                mapped: engine.state(PAGE),
                engine,
                memory: 0,
                protecting: None,
                thread: Thread::Running,
                made: 0,
            }
        });
        vec![World {
            nodes: nodes.collect(),
            network: BTreeSet::new(),
            written: 0,
            broken: None,
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.broken.is_some() {
            return;
        }
        for (id, node) in world.nodes.iter().enumerate() {
            match node.thread {
                Thread::Running if node.made == self.programs[id].len() => {}
                Thread::Running | Thread::Resumed => steps.push(Step::Access(id)),
                Thread::Granted => steps.push(Step::Resume(id)),
                Thread::Waiting => {}
            }
            if node.protecting.is_some() {
                steps.push(Step::Protected(id));
            }
            // The hold time outlasts the way of a granted thread to its access.
            let held = matches!(node.thread, Thread::Granted | Thread::Resumed);
            match node.engine.poll_timeout() {
                Some(HOLD_NS) if held => {}
                Some(_) => steps.push(Step::Timeout(id)),
                None => {}
            }
        }
        for packet in &world.network {
            steps.push(Step::Deliver(packet.clone()));
            if self.network != Network::Unordered {
                steps.push(Step::Duplicate(packet.clone()));
            }
            if self.network == Network::Lossy {
                steps.push(Step::Lose(packet.clone()));
            }
        }
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut world = world.clone();
        world.step(self, step);
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("coherent", |_, world: &World| world.broken.is_none()),
            Property::always("can still finish", |setup: &Setup, world: &World| {
                setup.early || world.finishes(setup)
            }),
            Property::sometimes("finishes", |setup: &Setup, world: &World| {
                setup.early || world.is_finished(setup)
            }),
        ]
    }
}

impl World {
    fn step(&mut self, setup: &Setup, step: Step) {
        let id = match step {
            Step::Access(id) => {
                self.access(setup, id);
                id
            }
            Step::Resume(id) => {
                self.nodes[id].thread = Thread::Resumed;
                self.nodes[id].engine.resumed(0, PAGE, 0);
                id
            }
            Step::Protected(id) => {
                let node = &mut self.nodes[id];
                let state = node.protecting.take().expect("enabled");
                let lowers = state < node.mapped;
                node.mapped = state;
                if !(setup.early && lowers) {
                    node.engine.protected(0, PAGE);
                }
                id
            }
            Step::Timeout(id) => {
                let engine = &mut self.nodes[id].engine;
                let at_ns = engine.poll_timeout().expect("enabled");
                engine.handle_timeout(at_ns);
                id
            }
            Step::Deliver(packet) => {
                self.network.remove(&packet);
                self.deliver(packet)
            }
            Step::Duplicate(packet) => self.deliver(packet),
            Step::Lose(packet) => {
                self.network.remove(&packet);
                return;
            }
        };
        self.drain(setup, id);
        self.check();
    }

    fn deliver(&mut self, (to, from, message): Packet) -> usize {
        let from = NodeId(from as u16);
        if let Err(error) = self.nodes[to].engine.handle_message(0, from, message) {
            self.broken = Some(error.to_string());
        }
        to
    }

    fn access(&mut self, setup: &Setup, id: usize) {
        let node = &mut self.nodes[id];
        let access = setup.programs[id][node.made];
        if !node.mapped.allows(access) {
            node.thread = Thread::Waiting;
            node.engine.request(0, PAGE, access, 0);
            return;
        }
        node.thread = Thread::Running;
        node.made += 1;
        if node.memory != self.written {
            self.broken = Some(format!(
                "I2: n{id} sees {}, not {}",
                node.memory, self.written
            ));
        }
        if access == Access::Write {
            self.written += 1;
            node.memory = self.written;
        }
    }

    fn drain(&mut self, setup: &Setup, id: usize) {
        while let Some(effect) = self.nodes[id].engine.poll_effect() {
            let node = &mut self.nodes[id];
            match effect {
                Effect::Send {
                    to,
                    message,
                    attach_page,
                } => {
                    self.send(id, usize::from(to.0), message, attach_page);
                }
                Effect::Fill { body, .. } => {
                    if node.mapped != State::Invalid {
                        self.broken = Some(format!("I3: n{id} fills a page that it has mapped"));
                    }
                    node.memory = match body {
                        Body::Full(version) => version,
                        Body::Zero | Body::None => 0,
                    };
                }
                Effect::Protect { state, .. } => {
                    node.protecting = Some(state);
                    if setup.early && state < node.mapped {
                        node.engine.protected(0, PAGE);
                    }
                }
                Effect::Granted { .. } => node.thread = Thread::Granted,
                Effect::Failed { error } => self.broken = Some(error.to_string()),
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, mut message: Message<u8>, attach_page: bool) {
        let Node { mapped, memory, .. } = self.nodes[from];
        if attach_page {
            message.body = match memory {
                0 => Body::Zero,
                version => Body::Full(version),
            };
        }
        let too_early = match message.kind {
            Kind::InvalidateAck => mapped != State::Invalid,
            Kind::Grant { state, .. } if attach_page && state.is_sole() => mapped != State::Invalid,
            Kind::Grant { .. } if attach_page => mapped == State::Modified,
            _ => false,
        };
        if too_early {
            self.broken = Some(format!(
                "I3: n{from} answers while it has the page {mapped:?}"
            ));
        }
        self.network.insert((to, from, message));
    }

    fn check(&mut self) {
        let count = |is: &dyn Fn(&Node) -> bool| self.nodes.iter().filter(|n| is(n)).count();
        let writers = count(&|n| n.mapped == State::Modified);
        let readers = count(&|n| n.mapped >= State::Shared);
        let owners = count(&|n| n.engine.state(PAGE).is_sole());
        if (writers > 0 && readers > 1) || owners > 1 {
            self.broken = Some(format!(
                "I1: {writers} writers, {readers} readers, {owners} owners"
            ));
        }
        let views = self.nodes.iter().filter_map(|n| n.engine.directory(PAGE));
        for view in views.filter(|v| v.busy.is_none()) {
            for (id, node) in self.nodes.iter().enumerate() {
                let id = NodeId(id as u16);
                let (owns, shares) = (view.owner == Some(id), view.sharers.contains(id));
                let agrees = match node.engine.state(PAGE) {
                    State::Invalid => !owns && !shares,
                    State::Shared => !owns && shares,
                    State::Exclusive | State::Modified => owns,
                };
                if !agrees {
                    self.broken = Some(format!("I6: {view:?}, but {node:?}"));
                }
            }
        }
    }

    fn is_finished(&self, setup: &Setup) -> bool {
        self.network.is_empty()
            && self
                .nodes
                .iter()
                .zip(&setup.programs)
                .all(|(node, program)| {
                    let current = node.mapped == State::Invalid || node.memory == self.written;
                    node.made == program.len() && node.engine.is_idle() && current
                })
    }

    /// I8: with no further loss everything comes to an end. In a state without a step this says
    /// that all is done.
    fn finishes(&self, setup: &Setup) -> bool {
        let mut world = self.clone();
        let mut steps = Vec::new();
        let mut repeated = 0;
        for _ in 0..STEPS_MAX {
            if world.broken.is_some() || world.is_finished(setup) {
                return world.broken.is_none();
            }
            steps.clear();
            setup.actions(&world, &mut steps);
            steps.retain(|s| !matches!(s, Step::Duplicate(_) | Step::Lose(_)));
            // Repeating is for when nothing else can happen.
            let repeats = |s: &Step| match s {
                Step::Timeout(id) => world.nodes[*id].engine.poll_timeout() != Some(HOLD_NS),
                _ => false,
            };
            let first = steps.iter().position(|s| !repeats(s));
            if steps.is_empty() {
                return false;
            }
            repeated += usize::from(first.is_none());
            let step = steps[first.unwrap_or(repeated % steps.len())].clone();
            world.step(setup, step);
        }
        false
    }
}
