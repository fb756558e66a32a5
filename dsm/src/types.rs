//! The small vocabulary every module speaks: identifiers, states, node sets.

use std::fmt;

/// Most nodes one guest can have; [`NodeSet`] is one machine word.
pub const NODES_MAX: u16 = 64;

/// A node of the guest, `0..nodes`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(pub u16);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

/// A page of guest memory, `0..pages`, counted from the start of the shared range.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PageId(pub u32);

impl fmt::Display for PageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{:#x}", self.0)
    }
}

/// What a local fault asks for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Access {
    Read = 0,
    Write = 1,
}

/// What this node holds of a page. The order is the order of rights.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum State {
    /// Not mapped anywhere on this node.
    Invalid = 0,
    /// Mapped read-only; other nodes may hold it as well.
    Shared = 1,
    /// Mapped read-only; no other node holds it, so the first write needs no message.
    Exclusive = 2,
    /// Mapped read-write; no other node holds it.
    Modified = 3,
}

impl State {
    /// Whether a node in this state may make the access at once.
    pub fn allows(self, access: Access) -> bool {
        match access {
            Access::Read => self >= State::Shared,
            Access::Write => self == State::Modified,
        }
    }

    /// Whether the state is one that only a single node can be in.
    pub fn is_sole(self) -> bool {
        self >= State::Exclusive
    }
}

/// The page contents that travel with a grant; `B` is the runtime's handle for the bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Body<B> {
    /// The receiver's copy is current (an upgrade), or the message carries no page.
    None,
    /// The page is all zero.
    Zero,
    /// The whole page.
    Full(B),
}

impl<B> Body<B> {
    pub fn is_none(&self) -> bool {
        matches!(self, Body::None)
    }
}

/// A request, named by the node that made it and that node's own counter. Never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId {
    pub node: NodeId,
    pub seq: u64,
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.node, self.seq)
    }
}

/// A set of nodes, one bit each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct NodeSet(pub u64);

impl NodeSet {
    pub const EMPTY: NodeSet = NodeSet(0);

    pub fn of(node: NodeId) -> NodeSet {
        NodeSet(1 << node.0)
    }

    pub fn contains(self, node: NodeId) -> bool {
        node.0 < NODES_MAX && self.0 & (1 << node.0) != 0
    }

    #[must_use]
    pub fn with(self, node: NodeId) -> NodeSet {
        NodeSet(self.0 | 1 << node.0)
    }

    #[must_use]
    pub fn without(self, node: NodeId) -> NodeSet {
        NodeSet(self.0 & !(1 << node.0))
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn is_subset(self, of: NodeSet) -> bool {
        self.0 & !of.0 == 0
    }

    pub fn len(self) -> u32 {
        self.0.count_ones()
    }

    pub fn first(self) -> Option<NodeId> {
        (self.0 != 0).then(|| NodeId(self.0.trailing_zeros() as u16))
    }

    pub fn iter(self) -> impl Iterator<Item = NodeId> {
        (0..NODES_MAX)
            .map(NodeId)
            .filter(move |n| self.contains(*n))
    }
}
