//! The engine of one node: checks what comes in, hands it to the right side, and turns what the
//! two sides say into effects.

use crate::config::{Config, ConfigError, HomeMap, Initial, initial, validate};
use crate::directory::{Directory, HomeCounters, View};
use crate::holder::{Holder, HolderCounters};
use crate::message::{Kind, Message, ProtocolError};
use crate::orders::{Order, Orders};
use crate::types::{Access, Body, NodeId, NodeSet, PageId, State};
use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

/// What the runtime has to do, in the order in which [`Engine::poll_effect`] yields it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect<B, const W: usize = 1> {
    /// Send `message` to another node. With `attach_page`, put the page's bytes into the body
    /// first (`Zero` if they all are), read through the private alias; no local mapping can
    /// change them between this effect and the next one for the page.
    Send {
        to: NodeId,
        message: Message<B, W>,
        attach_page: bool,
    },
    /// Write these bytes to the page through the private alias. The guest cannot see the page.
    Fill { page: PageId, body: Body<B> },
    /// Give every local mapping of the page the rights of this state, then call
    /// [`Engine::protected`]. At most one is under way per page.
    Protect { page: PageId, state: State },
    /// The access that this waiter asked for is allowed now.
    Granted { page: PageId, waiter: u32 },
    /// The bytes of the page are of no use here, unless [`Engine::keeps`] says so by the time they
    /// are dropped. Comes only with [`Config::foreign_max`].
    Discard { page: PageId },
    /// The directory of this node and its own pages contradict each other, because some peer
    /// lied earlier. Coherence is lost: the guest must end.
    Failed { error: ProtocolError },
}

/// Numbers since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    pub holder: HolderCounters,
    pub home: HomeCounters,
    pub messages_in: u64,
    pub messages_out: u64,
    /// Messages refused with a [`ProtocolError`].
    pub refused: u64,
}

/// The coherence engine of one node. The crate documentation says how to drive it.
///
/// Copies and hashes are for model checkers; what is merely counted is no part of the hash.
#[derive(Clone, Hash, Debug)]
pub struct Engine<B, const W: usize = 1> {
    me: NodeId,
    nodes: u16,
    epoch: u32,
    homes: HomeMap,
    holder: Holder<W>,
    directory: Directory<W>,
    lost: NodeSet<W>,
    orders: Orders<B, W>,
    /// The directory's.
    outbox: Orders<B, W>,
    /// Messages of this node to itself.
    local: VecDeque<Message<B, W>>,
    effects: VecDeque<Effect<B, W>>,
    traffic: Traffic,
}

#[derive(Clone, Copy, Default, Debug)]
struct Traffic {
    messages_in: u64,
    messages_out: u64,
    refused: u64,
}

impl Hash for Traffic {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl<B, const W: usize> Engine<B, W> {
    /// # Errors
    /// When the configuration contradicts itself.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let homes = validate(&config, NodeSet::<W>::NODES_MAX)?;
        let mine = Initial::Owned(config.me);
        let states = (0..config.pages)
            .map(
                |page| match initial(&config, &homes, PageId(page)) == mine {
                    true => State::Modified,
                    false => State::Invalid,
                },
            )
            .collect();
        Ok(Engine {
            me: config.me,
            nodes: config.nodes,
            epoch: config.epoch,
            holder: Holder::new(&config, homes.clone(), states),
            directory: Directory::new(&config, &homes),
            homes,
            lost: NodeSet::EMPTY,
            orders: Orders::new(),
            outbox: Orders::new(),
            local: VecDeque::new(),
            effects: VecDeque::new(),
            traffic: Traffic::default(),
        })
    }

    /// A local thread has faulted on `page`. `waiter`, the thread's token, comes back in
    /// [`Effect::Granted`], at once if the page is here. Each call is answered by exactly one `Granted`.
    ///
    /// # Panics
    /// When the page lies outside guest memory.
    pub fn request(&mut self, now_ns: u64, page: PageId, access: Access, waiter: u32) {
        self.check_local(page);
        self.holder.forget_holds(now_ns);
        self.holder
            .request(now_ns, page, access, waiter, &mut self.orders);
        self.settle(now_ns);
    }

    /// A thread that was granted the page has been running again since `since_ns`, from when the
    /// hold time counts: call it once for each `Granted`, or the page stays for the longest hold
    /// time. It matters only while [`Engine::poll_timeout`] names a deadline; late calls are
    /// harmless.
    ///
    /// # Panics
    /// When the page lies outside guest memory.
    pub fn resumed(&mut self, now_ns: u64, page: PageId, since_ns: u64) {
        self.check_local(page);
        self.holder
            .resumed(now_ns, page, since_ns, &mut self.orders);
        self.holder.forget_holds(now_ns);
        self.settle(now_ns);
    }

    /// Every mapping of the page has the rights that [`Effect::Protect`] asked for.
    ///
    /// # Panics
    /// Without such an effect under way: an acknowledgement that cannot be trusted would break
    /// coherence silently.
    pub fn protected(&mut self, now_ns: u64, page: PageId) {
        self.check_local(page);
        self.holder.protected(now_ns, page, &mut self.orders);
        self.settle(now_ns);
    }

    /// A message from another node. Duplicates and messages out of order are fine.
    ///
    /// # Errors
    /// When no correct peer sends this; nothing has changed then, except that requests of others
    /// waiting for the same page may have moved on. The node to blame is the one in the error.
    pub fn handle_message(
        &mut self,
        now_ns: u64,
        from: NodeId,
        message: Message<B, W>,
    ) -> Result<(), ProtocolError> {
        self.traffic.messages_in += 1;
        self.holder.forget_holds(now_ns);
        let result = self
            .check_remote(from, &message)
            .and_then(|()| self.deliver(now_ns, from, message));
        self.traffic.refused += u64::from(result.is_err());
        self.settle(now_ns);
        result
    }

    /// Call it when [`Engine::poll_timeout`] has passed.
    pub fn handle_timeout(&mut self, now_ns: u64) {
        self.holder.forget_holds(now_ns);
        self.holder.handle_timeout(now_ns, &mut self.orders);
        self.directory.handle_timeout(now_ns, &mut self.outbox);
        self.settle(now_ns);
    }

    /// When [`Engine::handle_timeout`] is to be called next, on the caller's clock. Ask again
    /// after every other call.
    pub fn poll_timeout(&self) -> Option<u64> {
        let soonest = [self.holder.poll_timeout(), self.directory.poll_timeout()];
        soonest.into_iter().flatten().min()
    }

    /// The next thing to do. Call it until it returns `None`, after every other call.
    pub fn poll_effect(&mut self) -> Option<Effect<B, W>> {
        self.effects.pop_front()
    }

    /// The node is gone: nothing is sent to it any more and whatever still comes from it is an
    /// error. Pages that only it held are lost, so the guest cannot go on for long.
    pub fn node_lost(&mut self, node: NodeId) {
        if node.0 < self.nodes {
            self.lost = self.lost.with(node);
        }
    }

    /// What this node holds of a page. While a [`Effect::Protect`] is under way this is the
    /// lower of the states before and after it: what a mapping made now may allow.
    ///
    /// # Panics
    /// When the page lies outside guest memory.
    pub fn state(&self, page: PageId) -> State {
        self.check_local(page);
        self.holder.state(page)
    }

    /// Gives the page up, so that there is room for another: the home takes it back. Whether that
    /// was begun: not, if the page is of this home, not here, or in use. With
    /// [`Config::foreign_max`] it happens by itself.
    ///
    /// # Panics
    /// When the page lies outside guest memory.
    pub fn evict(&mut self, now_ns: u64, page: PageId) -> bool {
        self.check_local(page);
        let can = self.holder.can_evict(page);
        if can {
            self.holder.evict(now_ns, page, &mut self.orders);
            self.settle(now_ns);
        }
        can
    }

    /// Whether this node must not lose the bytes of a page.
    ///
    /// # Panics
    /// When the page lies outside guest memory.
    pub fn keeps(&self, page: PageId) -> bool {
        self.check_local(page);
        self.holder.keeps(page) || self.directory(page).is_some_and(|view| view.kept)
    }

    /// Pages of other homes that take room here, of [`Config::foreign_max`]; 0 without.
    pub fn foreign(&self) -> u32 {
        self.holder.foreign().map_or(0, |(taken, _)| taken)
    }

    /// How many more there is room for; `None`: any number.
    pub fn room(&self) -> Option<u32> {
        self.holder.foreign().map(|(_, free)| free)
    }

    /// The home of a page.
    ///
    /// # Panics
    /// When the page lies outside guest memory.
    pub fn home(&self, page: PageId) -> NodeId {
        self.check_local(page);
        self.homes.home(page)
    }

    /// What the directory says of a page; `None` if this node is not its home. For diagnostics.
    ///
    /// # Panics
    /// When the page lies outside guest memory.
    pub fn directory(&self, page: PageId) -> Option<View<W>> {
        let mine = self.home(page) == self.me;
        mine.then(|| self.directory.view(self.homes.slot(page), page))
    }

    /// Bytes of the directory: for the pages of this home, and for what it knows of each node. Pages that something
    /// is going on with take some more.
    pub fn directory_bytes(&self) -> (usize, usize) {
        self.directory.bytes()
    }

    /// Nothing is under way: no request, no transaction at this home, no effect to poll.
    pub fn is_idle(&self) -> bool {
        self.effects.is_empty() && self.holder.is_idle() && self.directory.is_idle()
    }

    pub fn counters(&self) -> Counters {
        Counters {
            holder: self.holder.counters,
            home: self.directory.counters,
            messages_in: self.traffic.messages_in,
            messages_out: self.traffic.messages_out,
            refused: self.traffic.refused,
        }
    }

    fn check_local(&self, page: PageId) {
        assert!(
            self.homes.contains(page),
            "{page} lies outside guest memory"
        );
    }

    fn check_remote(&self, from: NodeId, message: &Message<B, W>) -> Result<(), ProtocolError> {
        let exists = |node: NodeId| node.0 < self.nodes;
        let unexpected = |why| {
            let (kind, page) = (message.kind.name(), message.page);
            Err(ProtocolError::Unexpected {
                kind,
                page,
                from,
                why,
            })
        };
        if !exists(from) || from == self.me {
            return Err(ProtocolError::UnknownNode(from));
        }
        if self.lost.contains(from) {
            return Err(ProtocolError::LostNode(from));
        }
        if message.epoch != self.epoch {
            return Err(ProtocolError::WrongEpoch {
                got: message.epoch,
                want: self.epoch,
            });
        }
        if !self.homes.contains(message.page) {
            return Err(ProtocolError::UnknownPage(message.page));
        }
        if !exists(message.request.node) {
            return Err(ProtocolError::UnknownNode(message.request.node));
        }
        let acks = match message.kind {
            Kind::Forward { acks, .. } | Kind::Grant { acks, .. } => acks,
            _ => NodeSet::EMPTY,
        };
        if acks.iter().any(|node| !exists(node)) {
            return unexpected("names nodes that do not exist");
        }
        let carries = matches!(
            message.kind,
            Kind::Grant { .. }
                | Kind::Done {
                    state: State::Invalid,
                    ..
                }
        );
        if !carries && !message.body.is_none() {
            return unexpected("carries a page");
        }
        Ok(())
    }

    /// Hands a message to the side it is for; `from` may be this node.
    fn deliver(
        &mut self,
        now_ns: u64,
        from: NodeId,
        message: Message<B, W>,
    ) -> Result<(), ProtocolError> {
        let page = message.page;
        match message.kind {
            Kind::Get { .. } | Kind::Evict | Kind::Done { .. }
                if self.homes.home(page) != self.me =>
            {
                let kind = message.kind.name();
                Err(ProtocolError::Unexpected {
                    kind,
                    page,
                    from,
                    why: "this is not its home",
                })
            }
            Kind::Get { .. } | Kind::Evict => {
                let slot = self.homes.slot(page);
                self.directory
                    .get(now_ns, slot, from, &message, &mut self.outbox)
            }
            Kind::Done { .. } => {
                let slot = self.homes.slot(page);
                let is_here = self.holder.keeps(page);
                self.directory
                    .done(now_ns, slot, from, message, is_here, &mut self.outbox)
            }
            Kind::Forward { .. } | Kind::Invalidate { .. } | Kind::Recall { .. } => {
                self.holder.job(now_ns, from, &message, &mut self.orders)
            }
            Kind::Hurry { urgency } => {
                self.holder
                    .hurry(now_ns, from, &message, urgency, &mut self.orders)
            }
            Kind::Grant { .. } => self.holder.grant(from, message, &mut self.orders),
            Kind::InvalidateAck => self.holder.invalidate_ack(from, &message, &mut self.orders),
        }
    }

    /// Turns what both sides have said into effects, delivering local messages on the way. It
    /// ends: each message to itself is a step of a transaction, and the queue of transactions is
    /// bounded.
    fn settle(&mut self, now_ns: u64) {
        loop {
            while let Some(order) = self.orders.pop_front() {
                self.carry_out(order);
            }
            while let Some(order) = self.outbox.pop_front() {
                self.carry_out(order);
            }
            let Some(message) = self.local.pop_front() else {
                return;
            };
            if let Err(error) = self.deliver(now_ns, self.me, message) {
                self.effects.push_back(Effect::Failed { error });
            }
        }
    }

    fn carry_out(&mut self, order: Order<B, W>) {
        match order {
            Order::Send {
                to,
                message,
                attach_page,
            } => self.send(to, message, attach_page),
            Order::Fill { page, body } => self.effects.push_back(Effect::Fill { page, body }),
            Order::Protect { page, state } => {
                self.effects.push_back(Effect::Protect { page, state });
            }
            Order::Granted { page, waiter } => {
                self.effects.push_back(Effect::Granted { page, waiter });
            }
            Order::Discard { page } => self.effects.push_back(Effect::Discard { page }),
        }
    }

    fn send(&mut self, to: NodeId, message: Message<B, W>, attach_page: bool) {
        if to == self.me {
            assert!(!attach_page, "I4: nobody supplies itself");
            self.local.push_back(message);
        } else if !self.lost.contains(to) {
            self.traffic.messages_out += 1;
            self.effects.push_back(Effect::Send {
                to,
                message,
                attach_page,
            });
        }
    }
}
