//! The coherence protocol of Span.
//!
//! **Purpose.** Keeps the pages of guest memory coherent over the nodes of one guest: a page has
//! one writer or many readers, and a reader sees the last write. [`Engine`] is one node's part of
//! that. It has no clock, socket, thread, random source or unsafe code: the runtime passes in
//! the time and the messages, and carries out the [`Effect`]s.
//!
//! **Mechanism.** A directory protocol with write-invalidate. Each page has a home, which knows
//! its owner or its readers and runs one transaction per page at a time; requests wait there in
//! order of arrival. The node that has the page sends it directly to the one that asked, and
//! readers acknowledge an invalidate directly to it. PROTOCOL.md has the messages, the sequences
//! and the invariants I1 to I10; [`table`] has every transition.
//!
//! **Order of use**, from one thread:
//!
//! 1. [`Engine::new`] with the same [`Config`] on every node apart from `me`.
//! 2. Call [`Engine::request`] for a fault, [`Engine::resumed`] when the thread runs again,
//!    [`Engine::handle_message`] for a message, [`Engine::protected`] when mappings have changed,
//!    [`Engine::handle_timeout`] when [`Engine::poll_timeout`] has passed.
//! 3. After each of these, call [`Engine::poll_effect`] until it returns `None`, and carry the
//!    effects out in that order. `protected` may be called between two of them.
//!
//! Duties of the runtime that the engine cannot check:
//!
//! - `protected` means that *every* local mapping has changed: the guest view, aliases of it, and
//!   user address spaces, on all processors. Only then does the engine acknowledge or send.
//! - The bytes of a page stay readable through the private alias after the page has become
//!   invalid, until the next [`Effect::Fill`] of that page; a lost message is answered again from
//!   there. Only over a transport that neither loses nor repeats may they be dropped, once the
//!   message they were attached to has been filled, and then only while [`Engine::keeps`] denies that
//!   they are needed: [`Effect::Discard`] says when it is worth asking.
//! - [`Effect::Send`] with `attach_page` is filled when it is polled, not later.
//! - A thread uses the same waiter token, below [`WAITERS_MAX`], for all its requests, so that one
//!   that needs several contended pages at once can be told from several threads.
//! - The node to distrust after a [`ProtocolError`] is the one that the error names. It can be
//!   another than the sender: a request that waited is refused when its turn comes.
//!
//! [`State::Exclusive`] appears only for pages that start as [`Initial::Untouched`] and with
//! [`Config::migratory`]. It is mapped read-only; the first write faults, and is granted after a
//! local [`Effect::Protect`] without a message. The step from `Exclusive` to `Shared` changes no
//! mapping and comes without `Protect`.
//!
//! **Guarantees.** Sequential consistency for whole pages. Every request is granted if every node
//! answers and messages arrive eventually; loss, duplication and reordering are tolerated. Remote
//! nonsense is a [`ProtocolError`], not a panic. Two runs with the same input do the same.
//!
//! A guest has at most [`NODES_MAX`] nodes, whose sets are one word. `Engine<B, W>` is the same engine with sets of `W`
//! words, for simulations of more.
//!
//! **Cost.** One byte per page, 16 bytes more at the home (8 more for each further word of a set), and an ordered map for the pages that
//! something is going on with. A miss takes three messages from fault to grant (two if the home
//! has the page or asks for it) and one more that nobody waits for; both engines together spend
//! about 2 µs of processor time on it. Two engines with 2^20 pages each take 20 MB and 28 ms to
//! make.

#![forbid(unsafe_code)]

mod config;
mod directory;
mod engine;
mod holder;
mod message;
mod orders;
mod planted;
mod progress;
pub mod table;
mod timers;
mod types;

pub use config::{Config, ConfigError, Initial};
pub use directory::{HomeCounters, View};
pub use engine::{Counters, Effect, Engine};
pub use holder::HolderCounters;
pub use message::{Kind, Message, ProtocolError};
pub use planted::Planted;
pub use progress::WAITERS_MAX;
pub use types::{
    Access, Body, NODES_MAX, NODES_MAX_WIDEST, NodeId, NodeSet, PageId, RequestId, State,
};
