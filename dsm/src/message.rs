//! What nodes say to each other, and what they may get wrong.

use crate::types::{Access, Body, NodeId, NodeSet, PageId, RequestId, State};

/// One protocol message. PROTOCOL.md has the table of who sends which to whom.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Message<B, const W: usize = 1> {
    /// Incarnation of the guest's membership ([`crate::Config::epoch`]); others are refused.
    pub epoch: u32,
    pub page: PageId,
    /// The request this message belongs to; the correlation id of the whole fault.
    pub request: RequestId,
    /// The home's transaction number; 0 in `Get` and `Evict`, which come before there is one.
    pub txn: u64,
    /// Everything of the same kind below this number is over, so a message about it is stale.
    /// `Get`, `Evict`, `Done`: the requester's oldest outstanding sequence number.
    /// `Forward`, `Invalidate`, `Recall`, `Grant`: the home's oldest outstanding transaction.
    /// `InvalidateAck`, `Hurry`: 0.
    pub floor: u64,
    pub kind: Kind<W>,
    /// Anything but `Body::None` only in `Grant`, and in the `Done` that gives a page back.
    pub body: Body<B>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind<const W: usize = 1> {
    /// Requester to home: I need this page.
    Get {
        access: Access,
        /// The requester holds a current copy, so an upgrade needs no body.
        have_copy: bool,
        /// The rank of the requester's thread among those that lose pages they need together;
        /// 0 for none of them. See PROTOCOL.md, forward progress.
        urgency: u16,
    },
    /// Home to the node that supplies the page: lower yourself, then grant it to the requester.
    Forward {
        /// The state the requester is to have.
        state: State,
        /// Passed on in the `Grant`.
        acks: NodeSet<W>,
        /// The highest of all requests waiting for the page.
        urgency: u16,
    },
    /// Home to a sharer: drop your copy, then acknowledge to the requester.
    Invalidate {
        /// As in `Forward`.
        urgency: u16,
    },
    /// Home to the nodes of a `Forward`, `Invalidate` or `Recall` that may be putting it off:
    /// somebody more urgent waits behind it.
    Hurry { urgency: u16 },
    /// Supplier (or home) to requester: the page is yours once these nodes have acknowledged.
    Grant {
        state: State,
        acks: NodeSet<W>,
        /// The supplier held the page exclusively and never wrote to it.
        clean: bool,
    },
    /// Sharer to requester: no mapping of the page is left on this node.
    InvalidateAck,
    /// Requester to home: the transaction is over. In state `Invalid` it answers a `Recall`.
    Done { state: State, clean: bool },
    /// Requester to home: I need the room that this page takes.
    Evict,
    /// Home to the requester of an `Evict`, when its turn has come: drop your copy.
    Recall {
        /// Nobody else has the page: give it back.
        page: bool,
        /// As in `Forward`.
        urgency: u16,
    },
}

impl<const W: usize> Kind<W> {
    pub fn name(&self) -> &'static str {
        match self {
            Kind::Get { .. } => "Get",
            Kind::Forward { .. } => "Forward",
            Kind::Invalidate { .. } => "Invalidate",
            Kind::Hurry { .. } => "Hurry",
            Kind::Grant { .. } => "Grant",
            Kind::InvalidateAck => "InvalidateAck",
            Kind::Done { .. } => "Done",
            Kind::Evict => "Evict",
            Kind::Recall { .. } => "Recall",
        }
    }
}

/// A message that no correct peer can have sent. The connection is not worth keeping; the engine
/// itself is unharmed unless the error says that the page is lost.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum ProtocolError {
    #[error("{0} is not a node of this guest")]
    UnknownNode(NodeId),
    #[error("{0} was lost and may not speak again")]
    LostNode(NodeId),
    #[error("message of epoch {got}, this is epoch {want}")]
    WrongEpoch { got: u32, want: u32 },
    #[error("{0} lies outside guest memory")]
    UnknownPage(PageId),
    #[error("{kind} for {page} from {from}: {why}")]
    Unexpected {
        kind: &'static str,
        page: PageId,
        from: NodeId,
        why: &'static str,
    },
}
