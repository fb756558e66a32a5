//! Engines driven by hand, one message at a time. Page 0 is everything these tests need.

use dsm::{
    Access, Body, Config, Effect, Engine, Initial, Kind, Message, NodeId, NodeSet, PageId,
    ProtocolError, RequestId, State,
};

pub(crate) const PAGE: PageId = PageId(0);
pub(crate) const HOLD_NS: u64 = 1_000;
pub(crate) const HOLD_NS_MAX: u64 = 100_000;

pub(crate) fn n(node: u16) -> NodeId {
    NodeId(node)
}

pub(crate) fn set(nodes: &[u16]) -> NodeSet {
    nodes
        .iter()
        .fold(NodeSet::EMPTY, |set, node| set.with(n(*node)))
}

/// Five nodes, one page.
pub(crate) fn config(me: u16, home: u16, initial: Initial) -> Config {
    let mut config = Config::new(n(me), 5, 1);
    config.homes = vec![(PAGE, n(home))];
    config.initial = vec![(PAGE, initial)];
    config.hold_ns = HOLD_NS;
    config.hold_ns_max = HOLD_NS_MAX;
    config.migratory = true;
    config.retransmit_ns = None;
    config
}

/// One engine and the time.
pub(crate) struct Node {
    pub(crate) engine: Engine<u64>,
    pub(crate) now_ns: u64,
}

impl Node {
    pub(crate) fn new(config: Config) -> Node {
        Node {
            engine: Engine::new(config).expect("a valid configuration"),
            now_ns: 0,
        }
    }

    /// Node 0, which is not the home (node 1 is), holding the page in this state, with nobody
    /// using it any more.
    pub(crate) fn holding(state: State) -> Node {
        let owner = if state == State::Modified { 0 } else { 1 };
        let mut node = Node::new(config(0, 1, Initial::Owned(n(owner))));
        if matches!(state, State::Shared | State::Exclusive) {
            node.request(Access::Read);
            node.sent();
            node.tell(1, grant(request(0, 1), 1, state, &[], Body::Full(7)))
                .expect("a grant");
            assert!(matches!(node.next(), Some(Effect::Fill { .. })));
            node.protect(state);
            assert_eq!(
                node.next(),
                Some(Effect::Granted {
                    page: PAGE,
                    waiter: 9
                })
            );
            assert!(matches!(node.sent(), (_, Kind::Done { .. })));
            node.engine.resumed(node.now_ns, PAGE, node.now_ns);
            node.now_ns += HOLD_NS;
        }
        assert_eq!(node.engine.state(PAGE), state);
        node
    }

    pub(crate) fn request(&mut self, access: Access) {
        self.engine.request(self.now_ns, PAGE, access, 9);
    }

    pub(crate) fn resumed(&mut self) {
        self.engine.resumed(self.now_ns, PAGE, self.now_ns);
    }

    pub(crate) fn tell(&mut self, from: u16, message: Message<u64>) -> Result<(), ProtocolError> {
        self.engine.handle_message(self.now_ns, n(from), message)
    }

    pub(crate) fn next(&mut self) -> Option<Effect<u64>> {
        self.engine.poll_effect()
    }

    pub(crate) fn silent(&mut self) {
        assert_eq!(self.next(), None);
    }

    /// The next effect is this change of protection; carries it out.
    pub(crate) fn protect(&mut self, state: State) {
        assert_eq!(self.next(), Some(Effect::Protect { page: PAGE, state }));
        self.silent();
        self.engine.protected(self.now_ns, PAGE);
    }

    /// The next effect is a message without a page.
    pub(crate) fn sent(&mut self) -> (u16, Kind) {
        let (to, message, attach_page) = self.sent_message();
        assert!(!attach_page);
        (to, message.kind)
    }

    /// The next effect is a message with the page.
    pub(crate) fn supplied(&mut self) -> (u16, Kind) {
        let (to, message, attach_page) = self.sent_message();
        assert!(attach_page);
        (to, message.kind)
    }

    pub(crate) fn sent_message(&mut self) -> (u16, Message<u64>, bool) {
        match self.next() {
            Some(Effect::Send {
                to,
                message,
                attach_page,
            }) => (to.0, message, attach_page),
            other => panic!("no message but {other:?}"),
        }
    }

    pub(crate) fn timeout(&mut self) {
        self.now_ns = self.engine.poll_timeout().expect("a deadline");
        self.engine.handle_timeout(self.now_ns);
    }
}

pub(crate) fn request(node: u16, seq: u64) -> RequestId {
    RequestId { node: n(node), seq }
}

pub(crate) fn message(request: RequestId, txn: u64, kind: Kind) -> Message<u64> {
    Message {
        epoch: 0,
        page: PAGE,
        request,
        txn,
        floor: 1,
        kind,
        body: Body::None,
    }
}

pub(crate) fn get(node: u16, seq: u64, access: Access, have_copy: bool) -> Message<u64> {
    let mut message = message(
        request(node, seq),
        0,
        Kind::Get {
            access,
            have_copy,
            urgency: 0,
        },
    );
    message.floor = seq;
    message
}

pub(crate) fn forward(to: RequestId, txn: u64, state: State, acks: &[u16]) -> Message<u64> {
    message(
        to,
        txn,
        Kind::Forward {
            state,
            acks: set(acks),
            urgency: 0,
        },
    )
}

pub(crate) fn invalidate(to: RequestId, txn: u64) -> Message<u64> {
    message(to, txn, Kind::Invalidate { urgency: 0 })
}

pub(crate) fn evict(node: u16, seq: u64) -> Message<u64> {
    message(request(node, seq), 0, Kind::Evict)
}

pub(crate) fn recall(to: RequestId, txn: u64, page: bool) -> Message<u64> {
    message(to, txn, Kind::Recall { page, urgency: 0 })
}

/// The end of an eviction, with the page or without.
pub(crate) fn returned(from: RequestId, txn: u64, body: Body<u64>) -> Message<u64> {
    Message {
        body,
        ..done(from, txn, State::Invalid)
    }
}

pub(crate) fn ack(to: RequestId, txn: u64) -> Message<u64> {
    message(to, txn, Kind::InvalidateAck)
}

pub(crate) fn grant(
    to: RequestId,
    txn: u64,
    state: State,
    acks: &[u16],
    body: Body<u64>,
) -> Message<u64> {
    let kind = Kind::Grant {
        state,
        acks: set(acks),
        clean: false,
    };
    Message {
        body,
        ..message(to, txn, kind)
    }
}

pub(crate) fn done(from: RequestId, txn: u64, state: State) -> Message<u64> {
    let mut message = message(
        from,
        txn,
        Kind::Done {
            state,
            clean: false,
        },
    );
    message.floor = from.seq + 1;
    message
}
