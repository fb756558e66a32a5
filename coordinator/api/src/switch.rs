//! Daemon ↔ daemon: what the switches of one pass on to those of the other.
//!
//! The transport is the first stream of a QUIC connection, after both sides proved that they know the token
//! ([`crate::auth`]; who connects proves what a coordinator would). Each side sends one [`Greeting`], then the
//! [`Message::Names`] of its switches, now and whenever they change, and frames of those that both have. A
//! [`Message::Heartbeat`] comes when there is nothing else for [`crate::link::HEARTBEAT_INTERVAL_MS`].

use crate::link::Hello;
use serde::{Deserialize, Serialize};

/// Longest name of a switch.
pub const NAME_BYTES_MAX: usize = 32;

/// Switches of one daemon.
pub const SWITCHES_MAX: usize = 256;

/// Tells a daemon from all others since it was started.
pub type DaemonId = [u8; 16];

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Greeting {
    pub hello: Hello,
    pub daemon: DaemonId,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Message {
    Heartbeat,
    /// All switches of the sender that have a device.
    Names(Vec<String>),
    /// A frame that came from one of the sender's own devices.
    Frame {
        switch: String,
        data: Vec<u8>,
    },
}

/// Whether this can be a switch's name.
pub fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(allowed)
}
