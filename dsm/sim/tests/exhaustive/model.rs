//! A world and the network between its nodes as one state that can be hashed, for the model
//! checker to take every step that is possible.

use dsm::{Message, NodeId, PageId};
use dsm_sim::{Breach, Event, Phase, Rule, Shape, Step, Want, World};
use stateright::{Model, Property};
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Deadlines: a hold ends at 1, a retransmission is due at the end of time. It is always 0
/// otherwise, so that the same situation is the same state however long it took.
pub(crate) const HOLD_NS: u64 = 1;
pub(crate) const RETRANSMIT_NS: u64 = u64::MAX;
/// More steps than any configuration here needs to finish.
const STEPS_MAX: usize = 2_000;

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
    pub(crate) shape: Shape,
    pub(crate) network: Network,
    /// What each thread does: node, thread, accesses.
    pub(crate) programs: Vec<(NodeId, u32, Vec<Want>)>,
    /// What nodes give up, once each, at any time.
    pub(crate) evictions: Vec<(NodeId, PageId)>,
}

type Packet = (NodeId, NodeId, Message<u64>);

#[derive(Clone, Hash, Debug)]
#[expect(
    clippy::derived_hash_with_manual_eq,
    reason = "equal means that the hashes are equal"
)]
pub(crate) struct Situation {
    world: World,
    /// Messages under way: to, from, message.
    network: BTreeSet<Packet>,
    /// Of `Setup::evictions`, those that are still to come.
    evictions: Vec<(NodeId, PageId)>,
    /// What went wrong; nothing follows that.
    broken: Option<Breach>,
}

/// The checker itself compares by fingerprint; engines have no equality of their own.
impl PartialEq for Situation {
    fn eq(&self, other: &Situation) -> bool {
        let fingerprint = |situation: &Situation| {
            let mut hasher = DefaultHasher::new();
            situation.hash(&mut hasher);
            hasher.finish()
        };
        fingerprint(self) == fingerprint(other)
    }
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Move {
    Step(Step),
    /// Delivers it, and it is no longer under way.
    Deliver(Packet),
    /// Delivers it and leaves a copy under way.
    Duplicate(Packet),
    Lose(Packet),
}

impl Model for Setup {
    type State = Situation;
    type Action = Move;

    fn init_states(&self) -> Vec<Situation> {
        vec![Situation {
            world: World::new(&self.shape),
            network: BTreeSet::new(),
            evictions: self.evictions.clone(),
            broken: None,
        }]
    }

    fn actions(&self, now: &Situation, moves: &mut Vec<Move>) {
        if now.broken.is_some() {
            return;
        }
        let mut step = |step| moves.push(Move::Step(step));
        for (node, thread, program) in &self.programs {
            let (node, thread) = (*node, *thread);
            let me = &now.world.node(node).threads[thread as usize];
            match me.phase {
                Phase::Running | Phase::Resumed => {
                    if let Some(want) = program.get(me.made as usize) {
                        let want = want.clone();
                        step(Step::Access { node, thread, want });
                    }
                }
                Phase::Granted { .. } => step(Step::Resume { node, thread }),
                Phase::Waiting { .. } => {}
            }
        }
        for &(node, page) in &now.evictions {
            step(Step::Evict { node, page });
        }
        for (node, state) in (0..).map(NodeId).zip(&now.world.nodes) {
            for page in (0..self.shape.pages).map(PageId) {
                if state.is_protecting(page) {
                    step(Step::Protected { node, page });
                }
            }
            // The hold time outlasts the way of a granted thread to its access.
            let on_its_way = |phase| matches!(phase, Phase::Granted { .. } | Phase::Resumed);
            let held = state.threads.iter().any(|t| on_its_way(t.phase));
            match state.engine.poll_timeout() {
                Some(HOLD_NS) if held => {}
                Some(_) => step(Step::Timeout { node }),
                None => {}
            }
        }
        for packet in &now.network {
            moves.push(Move::Deliver(packet.clone()));
            if self.network != Network::Unordered {
                moves.push(Move::Duplicate(packet.clone()));
            }
            if self.network == Network::Lossy {
                moves.push(Move::Lose(packet.clone()));
            }
        }
    }

    fn next_state(&self, now: &Situation, step: Move) -> Option<Situation> {
        let mut next = now.clone();
        next.make(step);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn holds(now: &Situation, rules: &[Rule]) -> bool {
            !now.broken.as_ref().is_some_and(|b| rules.contains(&b.rule))
        }
        vec![
            Property::always("I1: single writer", |_, now: &Situation| {
                holds(now, &[Rule::SingleWriter])
            }),
            Property::always("I2: readers see the last write", |_, now: &Situation| {
                holds(now, &[Rule::LastWrite])
            }),
            Property::always("I3, I6: no invalidate is lost", |_, now: &Situation| {
                holds(now, &[Rule::AnswerAfterMapping, Rule::Directory])
            }),
            Property::always("I11: room for what may be here", |_, now: &Situation| {
                holds(now, &[Rule::Room])
            }),
            Property::always("nothing correct is refused", |_, now: &Situation| {
                holds(now, &[Rule::Refused])
            }),
            // From every state the end can be reached, so every fair run reaches it: there are
            // finitely many states, and none from which there is no way.
            Property::always(
                "I8: every request is granted",
                |setup: &Setup, now: &Situation| now.broken.is_some() || now.finishes(setup),
            ),
            Property::sometimes("finishes", |setup: &Setup, now: &Situation| {
                now.is_finished(setup)
            }),
        ]
    }
}

impl Situation {
    fn make(&mut self, next: Move) {
        let deliver = |(to, from, message)| Step::Deliver { to, from, message };
        let step = match next {
            Move::Step(step) => step,
            Move::Deliver(packet) => {
                self.network.remove(&packet);
                deliver(packet)
            }
            Move::Duplicate(packet) => deliver(packet),
            Move::Lose(packet) => {
                self.network.remove(&packet);
                return;
            }
        };
        if let Step::Evict { node, page } = step {
            self.evictions.retain(|e| *e != (node, page));
        }
        let now_ns = match step {
            Step::Timeout { node } => self.world.node(node).engine.poll_timeout().unwrap_or(0),
            _ => 0,
        };
        if let Err(breach) = self.world.step(now_ns, step) {
            self.broken = Some(breach);
            return;
        }
        for event in self.world.take_events() {
            if let Event::Sent { to, from, message } = event {
                self.network.insert((to, from, message));
            }
        }
    }

    fn is_finished(&self, setup: &Setup) -> bool {
        let made = |(node, thread, program): &(NodeId, u32, Vec<Want>)| {
            self.world.node(*node).threads[*thread as usize].made as usize == program.len()
        };
        self.broken.is_none()
            && self.network.is_empty()
            && self.evictions.is_empty()
            && self.world.nodes.iter().all(|n| n.engine.is_idle())
            && setup.programs.iter().all(made)
    }

    /// Whether there is a way from here to the end: without further loss, and repeating things
    /// only when nothing else can happen.
    fn finishes(&self, setup: &Setup) -> bool {
        let mut now = self.clone();
        let mut moves = Vec::new();
        let mut repeated = 0;
        for _ in 0..STEPS_MAX {
            if now.broken.is_some() || now.is_finished(setup) {
                return now.broken.is_none();
            }
            moves.clear();
            setup.actions(&now, &mut moves);
            moves.retain(|m| !matches!(m, Move::Duplicate(_) | Move::Lose(_)));
            let repeats = |m: &Move| match m {
                Move::Step(Step::Timeout { node }) => {
                    now.world.node(*node).engine.poll_timeout() != Some(HOLD_NS)
                }
                _ => false,
            };
            if moves.is_empty() {
                return false;
            }
            let first = moves.iter().position(|m| !repeats(m));
            repeated += usize::from(first.is_none());
            let next = moves.swap_remove(first.unwrap_or(repeated % moves.len()));
            now.make(next);
        }
        false
    }
}
