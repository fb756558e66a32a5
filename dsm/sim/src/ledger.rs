//! What each fault of a run cost.

use dsm::{Body, Message, NodeId, NodeSet, RequestId};
use std::collections::BTreeMap;

/// Of a message without the page and with sets of one word, as the runtime sends them
/// (`node/runtime/src/pager/wire.rs`), without what QUIC adds.
pub(crate) const HEADER_BYTES: usize = 64;
pub(crate) const PAGE_BYTES: usize = 4096;

/// Messages are those between nodes; what a node tells itself costs nothing.
#[derive(Clone, Debug)]
pub struct Ledger<const W: usize = 1> {
    /// By the request that they belong to.
    messages: BTreeMap<RequestId, u32>,
    bytes: u64,
    /// Of the faults that had to wait, in the order in which they were granted.
    waits_ns: Vec<u64>,
    /// Whom each node has sent something.
    peers: Vec<NodeSet<W>>,
}

impl<const W: usize> Ledger<W> {
    pub fn new(nodes: u16) -> Ledger<W> {
        Ledger {
            messages: BTreeMap::new(),
            bytes: 0,
            waits_ns: Vec::new(),
            peers: vec![NodeSet::EMPTY; usize::from(nodes)],
        }
    }

    pub(crate) fn sent(&mut self, to: NodeId, from: NodeId, message: &Message<u64, W>) {
        *self.messages.entry(message.request).or_default() += 1;
        let page = match message.body {
            Body::None | Body::Zero => 0,
            Body::Full(_) => PAGE_BYTES,
        };
        // The header has a field for a set, whatever the message.
        let header = HEADER_BYTES + (W - 1) * size_of::<u64>();
        self.bytes += (header + page) as u64;
        let peers = &mut self.peers[usize::from(from.0)];
        *peers = peers.with(to);
    }

    pub(crate) fn granted(&mut self, wait_ns: u64) {
        // One that the node could grant itself.
        if wait_ns > 0 {
            self.waits_ns.push(wait_ns);
        }
    }

    /// Faults that another node had a part in.
    pub fn faults(&self) -> usize {
        self.messages.len()
    }

    pub fn messages(&self) -> u64 {
        self.messages.values().map(|count| u64::from(*count)).sum()
    }

    /// Of the fault that took most.
    pub fn messages_max(&self) -> u32 {
        self.messages.values().copied().max().unwrap_or(0)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Of the faults that had to wait, in ascending order.
    pub fn waits_ns(&self) -> Vec<u64> {
        let mut waits = self.waits_ns.clone();
        waits.sort_unstable();
        waits
    }

    /// How many others a node has sent something, on average.
    pub fn peers(&self) -> f64 {
        let all: u32 = self.peers.iter().map(|peers| peers.len()).sum();
        f64::from(all) / self.peers.len() as f64
    }
}
