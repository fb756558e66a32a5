//! The small vocabulary every module speaks: identifiers, states, node sets.

use std::fmt;

/// Most nodes one guest can have: their sets are one machine word, in memory and in messages.
pub const NODES_MAX: u16 = NodeSet::<1>::NODES_MAX;

/// Most nodes that an [`crate::Engine`] can be made for, with sets of 16 words: the simulator looks at what comes of
/// as many.
pub const NODES_MAX_WIDEST: u16 = 1024;

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

/// A set of nodes, one bit each, in `W` words.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeSet<const W: usize = 1>(pub [u64; W]);

impl<const W: usize> NodeSet<W> {
    /// Most nodes that there can be.
    pub const NODES_MAX: u16 = {
        assert!(0 < W && W * 64 <= NODES_MAX_WIDEST as usize);
        W as u16 * 64
    };

    pub const EMPTY: NodeSet<W> = NodeSet([0; W]);

    pub fn of(node: NodeId) -> NodeSet<W> {
        NodeSet::EMPTY.with(node)
    }

    pub fn contains(self, node: NodeId) -> bool {
        node.0 < Self::NODES_MAX && self.0[word(node)] & bit(node) != 0
    }

    #[must_use]
    pub fn with(mut self, node: NodeId) -> NodeSet<W> {
        self.0[word(node)] |= bit(node);
        self
    }

    #[must_use]
    pub fn without(mut self, node: NodeId) -> NodeSet<W> {
        self.0[word(node)] &= !bit(node);
        self
    }

    pub fn is_empty(self) -> bool {
        self.0 == [0; W]
    }

    pub fn is_subset(self, of: NodeSet<W>) -> bool {
        self.0.iter().zip(of.0).all(|(mine, of)| mine & !of == 0)
    }

    pub fn len(self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    pub fn first(self) -> Option<NodeId> {
        self.iter().next()
    }

    /// In ascending order.
    pub fn iter(self) -> impl Iterator<Item = NodeId> {
        let words = (0..).zip(self.0);
        words.flat_map(|(word, mut bits): (u16, u64)| {
            std::iter::from_fn(move || {
                let lowest = (bits != 0).then(|| bits.trailing_zeros() as u16)?;
                bits &= bits - 1;
                Some(NodeId(word * 64 + lowest))
            })
        })
    }
}

impl<const W: usize> Default for NodeSet<W> {
    fn default() -> Self {
        NodeSet::EMPTY
    }
}

fn word(node: NodeId) -> usize {
    usize::from(node.0 / 64)
}

fn bit(node: NodeId) -> u64 {
    1 << (node.0 % 64)
}
