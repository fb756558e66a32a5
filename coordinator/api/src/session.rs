//! Coordinator ↔ the guest's first process (`span-init`), over `/dev/span`.
//!
//! One byte stream carries any number of sessions, each one command in the guest with its standard
//! streams. Flow is controlled by credit: the sender of stream data may have at most
//! [`WINDOW_BYTES`] bytes of one direction of one session unacknowledged, and the receiver returns
//! credit as it passes bytes on. So a command that does not read its input, or a user who does not
//! read its output, holds up nobody else.

use crate::guest::HaltKind;
use crate::line::Line;
use serde::{Deserialize, Serialize};

/// Unacknowledged bytes a sender may have in flight per session and direction (stdout and stderr
/// together count as one direction).
pub const WINDOW_BYTES: u32 = 256 * 1024;

/// Longest data of one message.
pub const DATA_BYTES_MAX: usize = 32 * 1024;

/// Sessions at one time.
pub const SESSIONS_MAX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    pub rows: u16,
    pub columns: u16,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Command {
    /// Program and arguments, as bytes; empty: the user's login shell, else `/bin/sh`.
    pub argv: Vec<Vec<u8>>,
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Working directory; `/` where it does not exist.
    pub directory: Vec<u8>,
    /// Where it may run; empty: on all CPUs.
    pub cpus: Vec<u16>,
    /// With a size: run on a pseudo terminal of that size, whose output comes as `Stdout`.
    pub terminal: Option<WindowSize>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToInit {
    Start {
        id: u32,
        command: Command,
    },
    Stdin {
        id: u32,
        data: Vec<u8>,
    },
    StdinEnd {
        id: u32,
    },
    /// The receiver passed on `bytes` more bytes of the session's output.
    Credit {
        id: u32,
        bytes: u32,
    },
    Resize {
        id: u32,
        size: WindowSize,
    },
    /// Deliver a signal (its Linux number) to the session's foreground process group.
    Signal {
        id: u32,
        signal: i32,
    },
    /// The terminal at the other end of a line has this size; without one there is none any more.
    LineSize {
        line: Line,
        size: Option<WindowSize>,
    },
    /// End all processes, flush and unmount file systems, and power off.
    PowerOff,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromInit {
    /// First message, once the root file system is in place.
    Ready {
        version: u32,
        kernel: String,
        cpus: u32,
    },
    /// The root file system could not be set up; one line. The guest powers off.
    Failed(String),
    Stdout {
        id: u32,
        data: Vec<u8>,
    },
    Stderr {
        id: u32,
        data: Vec<u8>,
    },
    Credit {
        id: u32,
        bytes: u32,
    },
    /// All output of the session has been sent before this.
    Exited {
        id: u32,
        exit: Exit,
    },
    /// The command could not be started: 127 not found, 126 not executable, and one line.
    StartFailed {
        id: u32,
        code: i32,
        message: String,
    },
    /// The guest is about to end: all its processes are terminated. Comes before every message that
    /// follows from that.
    Ending(HaltKind),
}
