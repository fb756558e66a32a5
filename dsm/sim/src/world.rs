//! Engines with a model of memory under each, and the checks. What happens next, and when, is the
//! caller's to say: the random scheduler, a script, or the model checker.

use crate::step::{Breach, Event, Plant, Rule, Shape, Step, Want, breach};
use dsm::{
    Access, Body, Effect, Engine, Kind, Message, NodeId, NodeSet, PageId, State, WAITERS_MAX,
};
use std::hash::{Hash, Hasher};

/// The token of a page that was asked for ahead, as in the runtime.
const NOBODY: u32 = u32::MAX;
/// What a page holds that was thrown away: no write has this number.
const DISCARDED: u64 = u64::MAX;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Phase {
    Running,
    Waiting {
        page: PageId,
        since_ns: u64,
    },
    /// Granted, but not running yet.
    Granted {
        page: PageId,
    },
    /// Running again, and about to make the access that it was granted.
    Resumed,
}

#[derive(Clone, Hash, Debug)]
pub struct Thread {
    pub phase: Phase,
    /// What it waits for; empty between accesses.
    pub want: Want,
    /// Accesses made.
    pub made: u32,
}

#[derive(Clone, Hash, Debug)]
pub struct Node<const W: usize = 1> {
    pub engine: Engine<u64, W>,
    pub threads: Vec<Thread>,
    pub alive: bool,
    /// Whom this node takes for lost.
    pub lost: NodeSet<W>,
    /// What the pages hold: the number of the last write to each that this node has seen.
    memory: Vec<u64>,
    /// What the threads can really do, whatever the engine believes.
    mapped: Vec<State>,
    /// Changes under way.
    protecting: Vec<Option<State>>,
    /// Which pages have room for their bytes, in a world with a limit.
    frames: Vec<bool>,
    /// Of those, pages of other homes.
    foreign: u32,
    /// To be dropped, unless they are of use by then.
    loose: Vec<PageId>,
    /// For [`Plant::SkipFill`] and [`Plant::EarlyBytes`] only.
    filled: Vec<bool>,
    snapshot: Vec<u64>,
}

impl<const W: usize> Node<W> {
    pub fn mapped(&self, page: PageId) -> State {
        self.mapped[page.0 as usize]
    }

    pub fn is_protecting(&self, page: PageId) -> bool {
        self.protecting[page.0 as usize].is_some()
    }
}

/// Who has a page how, one bit per node: what makes the checks after a step cheap. It follows from
/// the nodes, so it is no part of the hash.
#[derive(Clone, Copy, Default, Debug)]
struct Holding<const W: usize> {
    /// By the mappings.
    readable: NodeSet<W>,
    writable: NodeSet<W>,
    /// By the engines.
    shared: NodeSet<W>,
    sole: NodeSet<W>,
}

#[derive(Clone, Debug, Default)]
struct Index<const W: usize>(Vec<Holding<W>>);

impl<const W: usize> Hash for Index<W> {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

#[derive(Clone, Hash, Debug)]
pub struct World<const W: usize = 1> {
    pub nodes: Vec<Node<W>>,
    /// Last version written to each page.
    written: Vec<u64>,
    versions: u64,
    tokens: u32,
    plant: Plant,
    inline_protect: bool,
    anonymous: bool,
    check_answers: bool,
    foreign_max: Option<u32>,
    keep_bytes: bool,
    index: Index<W>,
    touched: Vec<(NodeId, PageId)>,
    events: Vec<Event<W>>,
}

impl<const W: usize> World<W> {
    /// # Panics
    /// When the shape makes no valid configuration.
    pub fn new(shape: &Shape) -> World<W> {
        let pages = shape.pages as usize;
        let is = |plant| if shape.plant == plant { pages } else { 0 };
        let thread = Thread {
            phase: Phase::Running,
            want: Vec::new(),
            made: 0,
        };
        let node = |me| {
            let engine = match Engine::new(shape.config(NodeId(me))) {
                Ok(engine) => engine,
                Err(error) => panic!("{error}"),
            };
            Node {
                mapped: (0..shape.pages).map(|p| engine.state(PageId(p))).collect(),
                frames: (0..shape.pages)
                    .map(|p| engine.state(PageId(p)) != State::Invalid)
                    .collect(),
                foreign: engine.foreign(),
                loose: Vec::new(),
                engine,
                threads: vec![thread.clone(); shape.threads as usize],
                alive: true,
                lost: NodeSet::EMPTY,
                memory: vec![0; pages],
                protecting: vec![None; pages],
                filled: vec![false; is(Plant::SkipFill)],
                snapshot: vec![0; is(Plant::EarlyBytes)],
            }
        };
        let mut world = World {
            nodes: (0..shape.nodes).map(node).collect(),
            written: vec![0; pages],
            versions: 0,
            tokens: 0,
            plant: shape.plant,
            inline_protect: shape.inline_protect,
            anonymous: shape.anonymous,
            check_answers: shape.check_answers,
            foreign_max: shape.foreign_max,
            keep_bytes: shape.keep_bytes,
            index: Index(vec![Holding::default(); pages]),
            touched: Vec::new(),
            events: Vec::new(),
        };
        for page in (0..shape.pages).map(PageId) {
            for node in (0..shape.nodes).map(NodeId) {
                world.reindex(node, page);
            }
        }
        world
    }

    pub fn node(&self, node: NodeId) -> &Node<W> {
        &self.nodes[usize::from(node.0)]
    }

    fn node_mut(&mut self, node: NodeId) -> &mut Node<W> {
        &mut self.nodes[usize::from(node.0)]
    }

    /// What came of the steps since the last call.
    pub fn take_events(&mut self) -> Vec<Event<W>> {
        std::mem::take(&mut self.events)
    }

    /// Does it, and checks every page that it concerned. A node that has stopped does nothing.
    ///
    /// # Errors
    /// When a promise of the protocol is broken. The world must not be used any further.
    pub fn step(&mut self, now_ns: u64, step: Step<W>) -> Result<(), Breach> {
        let node = step.node();
        if !self.node(node).alive {
            return Ok(());
        }
        // Late enough for a page to be of use again.
        if matches!(step, Step::Access { .. } | Step::Timeout { .. }) {
            self.discard(node);
        }
        match step {
            Step::Access { thread, want, .. } => self.access(now_ns, node, thread, want)?,
            Step::Ahead { page, access, .. } => {
                let engine = &mut self.node_mut(node).engine;
                engine.request(now_ns, page, access, NOBODY);
                self.touched.push((node, page));
            }
            Step::Evict { page, .. } => {
                self.node_mut(node).engine.evict(now_ns, page);
                self.touched.push((node, page));
            }
            Step::Resume { thread, .. } => self.resume(now_ns, node, thread),
            Step::Protected { page, .. } => self.protected(now_ns, node, page),
            Step::Timeout { .. } => self.node_mut(node).engine.handle_timeout(now_ns),
            Step::Deliver { from, message, .. } => self.deliver(now_ns, node, from, message)?,
            Step::Crash { .. } => self.node_mut(node).alive = false,
            Step::Lost { lost, .. } => {
                let node = self.node_mut(node);
                node.lost = node.lost.with(lost);
                node.engine.node_lost(lost);
            }
        }
        self.drain(now_ns, node)?;
        self.check_room(node)?;
        while let Some((node, page)) = self.touched.pop() {
            self.reindex(node, page);
            self.check(page)?;
        }
        Ok(())
    }

    fn access(&mut self, now_ns: u64, id: NodeId, thread: u32, want: Want) -> Result<(), Breach> {
        let threads = self.node(id).threads.len() as u32;
        let mut token = thread;
        let anonymous = self.anonymous;
        let node = &mut self.nodes[usize::from(id.0)];
        let missing = want
            .iter()
            .find(|(p, access)| !node.mapped[p.0 as usize].allows(*access));
        let state = &mut node.threads[thread as usize];
        if let Some(&(page, access)) = missing {
            assert!(
                matches!(state.phase, Phase::Running | Phase::Resumed),
                "a thread that waits cannot fault"
            );
            state.phase = Phase::Waiting {
                page,
                since_ns: now_ns,
            };
            state.want = want;
            if anonymous {
                self.tokens += 1;
                token += threads * (WAITERS_MAX + self.tokens);
            }
            node.engine.request(now_ns, page, access, token);
            self.touched.push((id, page));
            self.events.push(Event::Faulted { node: id, thread });
            return Ok(());
        }
        state.want.clear();
        state.phase = Phase::Running;
        state.made += 1;
        for (page, access) in want {
            let index = page.0 as usize;
            let (sees, last) = (node.memory[index], self.written[index]);
            if sees != last {
                let what = format!("{id} sees write {sees} of {page}, the last was {last}");
                return breach(Rule::LastWrite, what);
            }
            if access == Access::Write {
                self.versions += 1;
                node.memory[index] = self.versions;
                self.written[index] = self.versions;
            }
            self.touched.push((id, page));
        }
        self.events.push(Event::Made { node: id, thread });
        Ok(())
    }

    fn resume(&mut self, now_ns: u64, id: NodeId, thread: u32) {
        let node = self.node_mut(id);
        let state = &mut node.threads[thread as usize];
        if let Phase::Granted { page } = state.phase {
            state.phase = Phase::Resumed;
            node.engine.resumed(now_ns, page, now_ns);
            self.touched.push((id, page));
        }
    }

    fn protected(&mut self, now_ns: u64, id: NodeId, page: PageId) {
        let early = self.plant == Plant::EarlyProtected;
        let node = self.node_mut(id);
        let index = page.0 as usize;
        // With the planted bug a second change can have taken the first one's place.
        let Some(state) = node.protecting[index].take() else {
            assert!(early, "{id} has no change of {page} under way");
            return;
        };
        let lowers = state < node.mapped[index];
        node.mapped[index] = state;
        if !(early && lowers) {
            node.engine.protected(now_ns, page);
        }
        self.touched.push((id, page));
    }

    fn deliver(
        &mut self,
        now_ns: u64,
        to: NodeId,
        from: NodeId,
        message: Message<u64, W>,
    ) -> Result<(), Breach> {
        let page = message.page;
        self.touched.push((to, page));
        let node = self.node_mut(to);
        let gone = node.lost.contains(from);
        match node.engine.handle_message(now_ns, from, message) {
            Ok(()) if gone => breach(Rule::Refused, format!("{to} listens to lost {from}")),
            Err(error) if !gone => breach(Rule::Refused, format!("at {to}: {error}")),
            _ => Ok(()),
        }
    }

    fn drain(&mut self, now_ns: u64, id: NodeId) -> Result<(), Breach> {
        while let Some(effect) = self.node_mut(id).engine.poll_effect() {
            match effect {
                Effect::Send {
                    to,
                    message,
                    attach_page,
                } => self.send(id, to, message, attach_page)?,
                Effect::Fill { page, body } => self.fill(id, page, &body)?,
                Effect::Protect { page, state } => self.protect(now_ns, id, page, state),
                Effect::Granted {
                    page,
                    waiter: NOBODY,
                } => {
                    self.touched.push((id, page));
                    self.node_mut(id).engine.resumed(now_ns, page, now_ns);
                }
                Effect::Granted { page, waiter } => self.granted(id, page, waiter),
                Effect::Discard { page } => self.node_mut(id).loose.push(page),
                Effect::Failed { error } => {
                    return breach(Rule::Refused, format!("at {id} itself: {error}"));
                }
            }
        }
        Ok(())
    }

    fn send(
        &mut self,
        from: NodeId,
        to: NodeId,
        mut message: Message<u64, W>,
        attach_page: bool,
    ) -> Result<(), Breach> {
        let index = message.page.0 as usize;
        let node = self.node(from);
        if attach_page {
            let bytes = match self.plant {
                Plant::EarlyBytes => node.snapshot[index],
                _ => node.memory[index],
            };
            message.body = match bytes {
                0 => Body::Zero,
                version => Body::Full(version),
            };
        }
        let allowed = match message.kind {
            Kind::InvalidateAck => State::Invalid,
            Kind::Done {
                state: State::Invalid,
                ..
            } => State::Invalid,
            Kind::Grant { state, .. } if attach_page && state.is_sole() => State::Invalid,
            // Read-only mappings are all alike.
            Kind::Grant { .. } if attach_page => State::Exclusive,
            _ => State::Modified,
        };
        let mapped = node.mapped[index];
        if self.check_answers && mapped > allowed {
            let (kind, page) = (message.kind.name(), message.page);
            let what = format!("{from} sends {kind} for {page} while it has it {mapped:?}");
            return breach(Rule::AnswerAfterMapping, what);
        }
        self.touched.push((from, message.page));
        self.events.push(Event::Sent { to, from, message });
        Ok(())
    }

    fn fill(&mut self, id: NodeId, page: PageId, body: &Body<u64>) -> Result<(), Breach> {
        let plant = self.plant;
        let node = self.node_mut(id);
        let index = page.0 as usize;
        let new = !std::mem::replace(&mut node.frames[index], true);
        node.foreign += u32::from(new && node.engine.home(page) != id);
        if node.mapped[index] != State::Invalid {
            let what = format!("{id} fills {page}, which it has mapped");
            return breach(Rule::AnswerAfterMapping, what);
        }
        if plant == Plant::SkipFill && std::mem::replace(&mut node.filled[index], true) {
            return Ok(());
        }
        node.memory[index] = match body {
            Body::Full(version) => *version,
            Body::Zero => 0,
            Body::None => {
                return breach(Rule::LastWrite, format!("{id} fills {page} with nothing"));
            }
        };
        Ok(())
    }

    /// Drops bytes that are of no use, so that whoever uses them after all is found out. That comes
    /// some time after the engine has said so.
    fn discard(&mut self, id: NodeId) {
        let (keep_bytes, early) = (self.keep_bytes, self.plant == Plant::EarlyDiscard);
        let node = &mut self.nodes[usize::from(id.0)];
        for page in std::mem::take(&mut node.loose) {
            let index = page.0 as usize;
            if (node.engine.keeps(page) && !early) || !node.frames[index] {
                continue;
            }
            node.frames[index] = false;
            node.foreign -= u32::from(node.engine.home(page) != id);
            if !keep_bytes {
                node.memory[index] = DISCARDED;
            }
            self.touched.push((id, page));
        }
    }

    /// I11
    fn check_room(&self, id: NodeId) -> Result<(), Breach> {
        let node = self.node(id);
        let loose = |page: &&PageId| node.engine.home(**page) != id;
        let frames = node
            .foreign
            .saturating_sub(node.loose.iter().filter(loose).count() as u32);
        match self.foreign_max {
            Some(max) if frames > max || node.engine.foreign() > max => {
                let taken = node.engine.foreign();
                let what = format!("{id} has {frames} pages of others, {taken} of {max} taken");
                breach(Rule::Room, what)
            }
            _ => Ok(()),
        }
    }

    fn protect(&mut self, now_ns: u64, id: NodeId, page: PageId, state: State) {
        let (plant, inline) = (self.plant, self.inline_protect);
        self.touched.push((id, page));
        let node = self.node_mut(id);
        let index = page.0 as usize;
        if plant == Plant::EarlyBytes {
            node.snapshot[index] = node.memory[index];
        }
        let early = plant == Plant::EarlyProtected && state < node.mapped[index];
        if inline && !early {
            node.mapped[index] = state;
            node.engine.protected(now_ns, page);
            return;
        }
        let before = node.protecting[index].replace(state);
        assert!(
            before.is_none() || plant == Plant::EarlyProtected,
            "two changes of protection for {page} at {id}"
        );
        if early {
            node.engine.protected(now_ns, page);
        }
        self.events.push(Event::Protecting { node: id, page });
    }

    fn granted(&mut self, id: NodeId, page: PageId, waiter: u32) {
        let node = self.node_mut(id);
        let thread = waiter % node.threads.len() as u32;
        let state = &mut node.threads[thread as usize];
        let since_ns = match state.phase {
            Phase::Waiting {
                page: asked,
                since_ns,
            } if asked == page => since_ns,
            other => panic!("{id}.{thread} is granted {page} while it is {other:?}"),
        };
        state.phase = Phase::Granted { page };
        self.touched.push((id, page));
        self.events.push(Event::Granted {
            node: id,
            thread,
            since_ns,
        });
    }

    fn reindex(&mut self, id: NodeId, page: PageId) {
        let node = &self.nodes[usize::from(id.0)];
        let (mapped, state) = (node.mapped[page.0 as usize], node.engine.state(page));
        let holding = &mut self.index.0[page.0 as usize];
        let put = |set: &mut NodeSet<W>, is| *set = if is { set.with(id) } else { set.without(id) };
        put(&mut holding.readable, mapped >= State::Shared);
        put(&mut holding.writable, mapped == State::Modified);
        put(&mut holding.shared, state == State::Shared);
        put(&mut holding.sole, state.is_sole());
    }

    /// I1, I2 and I6 for one page.
    fn check(&self, page: PageId) -> Result<(), Breach> {
        let holding = self.index.0[page.0 as usize];
        let Holding {
            readable,
            writable,
            shared,
            sole,
        } = holding;
        // An exclusive owner that becomes a reader keeps its mapping, so `Exclusive` among the
        // mappings proves nothing; the engines' own states do.
        if (!writable.is_empty() && readable.len() > 1)
            || sole.len() > 1
            || (!sole.is_empty() && !shared.is_empty())
        {
            return breach(Rule::SingleWriter, format!("{page}: {holding:?}"));
        }
        let last = self.written[page.0 as usize];
        for node in readable.iter() {
            let sees = self.node(node).memory[page.0 as usize];
            if sees != last {
                let what = format!("{node} shows write {sees} of {page}, the last was {last}");
                return breach(Rule::LastWrite, what);
            }
        }
        let home = self.nodes[0].engine.home(page);
        let Some(view) = self.node(home).engine.directory(page) else {
            return breach(Rule::Directory, format!("{home} is not home to {page}"));
        };
        if view.busy.is_none() && view.kept {
            let keeps = self.node(home).memory[page.0 as usize];
            if keeps != last || !self.node(home).frames[page.0 as usize] {
                let what = format!("{home} keeps write {keeps} of {page}, the last was {last}");
                return breach(Rule::LastWrite, what);
            }
        }
        let owner = view.owner.map_or(NodeSet::EMPTY, NodeSet::of);
        if view.busy.is_none() && (owner != sole || view.sharers != shared) {
            return breach(
                Rule::Directory,
                format!("{page}: {view:?}, but {holding:?}"),
            );
        }
        Ok(())
    }

    /// The same for every page, whatever was touched: the quick checks must not have missed any.
    ///
    /// # Errors
    /// When a promise of the protocol is broken.
    pub fn check_everything(&mut self) -> Result<(), Breach> {
        for page in (0..self.written.len() as u32).map(PageId) {
            for node in (0..self.nodes.len() as u16).map(NodeId) {
                self.reindex(node, page);
            }
            self.check(page)?;
        }
        Ok(())
    }

    /// Whether a request for this page may wait for ever: a node that is gone is its home, has it,
    /// or has a request for it under way.
    pub fn is_stranded(&self, page: PageId) -> bool {
        let gone = |node: NodeId| !self.node(node).alive;
        let home = self.nodes[0].engine.home(page);
        let view = self.node(home).engine.directory(page);
        gone(home)
            || view.is_some_and(|view| {
                let part = view.owner.into_iter().chain(view.busy.map(|r| r.node));
                part.chain(view.sharers.iter()).any(gone)
            })
    }
}
