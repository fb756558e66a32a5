//! The messages that Span's processes exchange, and how those on different machines reach and trust each
//! other ([`auth`], [`tls`]), and how files travel within a session ([`mod@copy`]); nothing else.
//!
//! Four conversations, one module each:
//!
//! * [`link`]: coordinator ↔ node agent, over an inherited socket (local node) or QUIC (`node serve`);
//! * [`guest`]: node agent ↔ `libnode.so` inside the guest process, over an inherited socket;
//! * [`session`]: coordinator ↔ the guest's first process, a byte stream that the agent of the first
//!   node relays untouched into the guest's `/dev/span`;
//! * [`switch`]: daemon ↔ daemon, over QUIC: frames between guests.
//!
//! All of them are length-prefixed frames ([`codec`]): a `u32` length in little endian, then a bincode
//! body. A frame longer than [`codec::FRAME_BYTES_MAX`] or one that does not decode is an error of the
//! peer, never a panic here.

#[cfg(feature = "auth")]
pub mod auth;
pub mod codec;
#[cfg(feature = "copy")]
pub mod copy;
pub mod guest;
pub mod histogram;
pub mod host;
pub mod line;
pub mod link;
pub mod profile;
pub mod session;
pub mod switch;
#[cfg(feature = "tls")]
pub mod tls;

/// Bumped whenever a message changes: peers that disagree refuse each other at the handshake.
pub const PROTOCOL_VERSION: u32 = 1;

/// Most virtual CPUs of one guest (`CONFIG_NR_CPUS` of the kernel).
pub const CPUS_MAX: usize = 64;

/// Most nodes of one guest: a node has at least one CPU.
pub const NODES_MAX: usize = CPUS_MAX;
