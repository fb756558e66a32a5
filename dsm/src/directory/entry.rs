//! What a home knows of one page.

use crate::config::Initial;
use crate::table::Holders;
use crate::types::{NodeId, NodeSet};

const NO_NODE: u16 = u16::MAX;

/// 16 bytes: a node is home to millions of pages.
#[derive(Clone, Copy, Hash, Debug)]
pub(super) struct Entry<const W: usize> {
    pub(super) sharers: NodeSet<W>,
    owner: u16,
    /// The node whose read was the last transaction, if that was a read.
    last_reader: u16,
    pub(super) migratory: bool,
    /// This node keeps the bytes, whether or not it is one of the sharers.
    pub(super) kept: bool,
}

const _: () = assert!(size_of::<Entry<1>>() <= 16);

impl<const W: usize> Entry<W> {
    pub(super) fn new(initial: Initial) -> Entry<W> {
        let owner = match initial {
            Initial::Owned(node) => node.0,
            Initial::Untouched => NO_NODE,
        };
        Entry {
            sharers: NodeSet::EMPTY,
            owner,
            last_reader: NO_NODE,
            migratory: false,
            kept: false,
        }
    }

    pub(super) fn owner(&self) -> Option<NodeId> {
        (self.owner != NO_NODE).then_some(NodeId(self.owner))
    }

    pub(super) fn holders(&self, requester: NodeId) -> Holders {
        if self.owner == requester.0 {
            Holders::RequesterOwns
        } else if self.owner != NO_NODE && self.migratory {
            Holders::MigratoryOwner
        } else if self.owner != NO_NODE {
            Holders::Owner
        } else if self.sharers == NodeSet::of(requester) && !self.kept {
            Holders::RequesterAlone
        } else if self.sharers.contains(requester) {
            Holders::OthersAndRequester
        } else if !self.sharers.is_empty() {
            Holders::Others
        } else if self.kept {
            Holders::Kept
        } else {
            Holders::Nobody
        }
    }

    /// Whether an upgrade by this node makes the page one that migrates.
    pub(super) fn seems_to_migrate(&self, requester: NodeId) -> bool {
        !self.migratory && self.last_reader == requester.0 && self.sharers.len() == 2
    }

    pub(super) fn own(&mut self, node: NodeId) {
        self.owner = node.0;
        self.sharers = NodeSet::EMPTY;
        self.last_reader = NO_NODE;
        self.kept = false;
    }

    /// An owner stays as a reader.
    pub(super) fn make_shared(&mut self) {
        if let Some(owner) = self.owner() {
            self.sharers = NodeSet::of(owner);
            self.owner = NO_NODE;
        }
    }

    pub(super) fn share(&mut self, node: NodeId) {
        self.sharers = self.sharers.with(node);
        self.last_reader = node.0;
    }

    /// The node has dropped its copy, if it had one.
    pub(super) fn drop_copy(&mut self, node: NodeId) {
        self.sharers = self.sharers.without(node);
        self.last_reader = NO_NODE;
    }

    /// The only one who had the page has given it back.
    pub(super) fn give_back(&mut self) {
        *self = Entry {
            kept: true,
            ..Entry::new(Initial::Untouched)
        };
    }
}
