//! Coordinator ↔ node agent.
//!
//! The transport is an inherited unix stream socket (a node on this machine) or the first stream of a
//! QUIC connection to `node serve`, after both sides proved that they know the token ([`crate::auth`]).
//! Order of a conversation:
//!
//! 1. each side sends one [`Hello`] and checks the other's;
//! 2. the coordinator sends [`ToAgent::Offer`]; an agent that lacks some of it answers
//!    [`FromAgent::Need`] and gets it in [`ToAgent::Chunk`]s; once it has all, it sends an empty `Need`;
//! 3. [`ToAgent::Spawn`] starts the guest process, answered by [`FromAgent::Spawned`]; from then on
//!    [`ToAgent::Guest`] and [`FromAgent::Guest`] carry the conversation of [`crate::guest`];
//! 4. [`FromAgent::Exited`] comes when the guest process is gone, after everything it said and logged;
//! 5. [`ToAgent::End`] ends the guest process and removes what the agent made for it; the agent answers
//!    [`FromAgent::Ended`] and closes the stream. The end of the stream without it means that the
//!    coordinator died, and the agent does the same.
//!
//! Each side sends a `Heartbeat` every [`HEARTBEAT_INTERVAL_MS`]; a side that hears nothing for
//! [`HEARTBEAT_LOST_MS`] gives the other up. A local agent relies on the end of its stream instead, so
//! that a coordinator stopped by its user keeps its guest.

use crate::PROTOCOL_VERSION;
use crate::guest::{FromGuest, Setup, ToGuest};
use crate::line::{Channel, Line};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

pub const HEARTBEAT_INTERVAL_MS: u64 = 500;
pub const HEARTBEAT_LOST_MS: u64 = 1500;

/// Longest data of one [`ToAgent::Chunk`] or [`FromAgent::Log`].
pub const CHUNK_BYTES_MAX: usize = 64 * 1024;

/// CPUs of a host are numbered up to this.
pub const HOST_CPU_MAX: u16 = 1023;

/// Longest artefact that an agent accepts.
pub const ARTEFACT_BYTES_MAX: u64 = 1 << 30;

/// What the sources of the messages were when this was built: two builds that could misunderstand
/// each other differ in it even if nobody thought of [`PROTOCOL_VERSION`].
pub const BUILD_ID: &str = env!("SPAN_API_BUILD_ID");

/// First byte of each stream of a QUIC connection: what the stream is for.
pub const STREAM_LINK: u8 = 0;
pub const STREAM_SESSION: u8 = 1;
pub const STREAM_SWITCH: u8 = 2;

/// Codes with which a daemon closes a connection.
pub const CLOSE_DONE: u32 = 0;
pub const CLOSE_TOKEN: u32 = 1;
pub const CLOSE_PROTOCOL: u32 = 2;
pub const CLOSE_STOPPING: u32 = 3;
pub const CLOSE_BUSY: u32 = 4;

/// First message of both sides. Its encoding never changes, so that peers of different versions can
/// at least say so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub magic: [u8; 4],
    pub protocol: u32,
    pub build: String,
    /// From a daemon: its own address as this connection reaches it.
    pub address: Option<IpAddr>,
}

/// Why the other side's [`Hello`] was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    #[error("not a Span process")]
    Magic,
    #[error("another version: protocol {theirs}, here {PROTOCOL_VERSION}")]
    Protocol { theirs: u32 },
    #[error("another version: build {theirs}, here {BUILD_ID}")]
    Build { theirs: String },
}

impl Hello {
    const MAGIC: [u8; 4] = *b"SPAN";

    pub fn new(address: Option<IpAddr>) -> Self {
        Self {
            magic: Self::MAGIC,
            protocol: PROTOCOL_VERSION,
            build: BUILD_ID.to_string(),
            address,
        }
    }

    /// Whether the sender speaks exactly what this side speaks.
    pub fn check(&self) -> Result<(), HelloError> {
        if self.magic != Self::MAGIC {
            return Err(HelloError::Magic);
        }
        if self.protocol != PROTOCOL_VERSION {
            return Err(HelloError::Protocol {
                theirs: self.protocol,
            });
        }
        if self.build != BUILD_ID {
            // Printed to a terminal: keep what a peer can put there short and harmless.
            let theirs = self
                .build
                .chars()
                .filter(char::is_ascii_graphic)
                .take(40)
                .collect();
            return Err(HelloError::Build { theirs });
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ArtefactKind {
    Linux,
    Libnode,
    Initramfs,
}

impl ArtefactKind {
    pub const ALL: [Self; 3] = [Self::Linux, Self::Libnode, Self::Initramfs];

    /// Name of its file; `linux` finds `libnode.so` beside itself.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Libnode => "libnode.so",
            Self::Initramfs => "initramfs.cpio",
        }
    }
}

/// Where an agent gets an artefact from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ArtefactSource {
    /// A file of this machine; only for a local agent.
    Path(Vec<u8>),
    /// The contents with this SHA-256, of this many bytes.
    Content { sha256: [u8; 32], bytes: u64 },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artefact {
    pub kind: ArtefactKind,
    pub source: ArtefactSource,
}

/// What an agent needs to start its guest process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spawn {
    /// Name of the guest, for directories and messages.
    pub guest: String,
    /// Kernel arguments. The agent puts the program's name before them and, on the first node,
    /// `initrd=` and `span.chan=`, which only it knows.
    pub arguments: Vec<Vec<u8>>,
    /// Files and directories that must be readable on this node.
    pub readable: Vec<Vec<u8>>,
    /// Files of this node that are to be disks: a daemon has them below directories that it exports.
    pub disks: Vec<Vec<u8>>,
    /// The run directory of the guest; only for a local agent, which works below it and removes it
    /// when the coordinator died without doing so.
    pub run_directory: Option<Vec<u8>>,
    pub setup: Setup,
    /// CPUs of the node's host that the guest process may run on; none: all that the agent may.
    pub host_cpus: Vec<u16>,
    /// Network devices whose other end is on this node.
    pub networks: Vec<Network>,
    /// Lines whose other end is to be held; of the first node only.
    pub lines: Vec<(Line, Channel)>,
}

/// A network device of the guest: `vec<unit>` there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub unit: u8,
    pub kind: NetworkKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkKind {
    /// What the node's user may reach, through a helper program.
    User {
        addresses: UserAddresses,
        mtu: u16,
        forwards: Vec<Forward>,
    },
    /// A tap interface of the node's host.
    Tap { name: String },
    /// Other devices of the switch of this name: of this user's guests on the node's machine; of its daemon's,
    /// and of those that it is linked with.
    Switch { name: String },
}

/// Addresses of the network between a guest and its helper, a /24. The helper gives the device
/// `device` by DHCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserAddresses {
    pub network: Ipv4Addr,
}

impl UserAddresses {
    pub const PREFIX_BITS: u8 = 24;

    fn host(self, number: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.network.octets();
        Ipv4Addr::new(a, b, c, number)
    }

    /// The host, loopback included.
    pub fn gateway(self) -> Ipv4Addr {
        self.host(2)
    }

    pub fn name_server(self) -> Ipv4Addr {
        self.host(3)
    }

    pub fn device(self) -> Ipv4Addr {
        self.host(15)
    }
}

/// A port of the host that leads to one of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    pub protocol: Protocol,
    pub host: SocketAddrV4,
    pub guest_port: u16,
}

impl std::fmt::Display for Forward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (protocol, host) = (self.protocol.name(), self.host);
        write!(f, "{protocol}:{host}-:{}", self.guest_port)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToAgent {
    Heartbeat,
    Offer(Vec<Artefact>),
    /// The next bytes of a needed artefact; artefacts come whole, in the order of `Need`.
    Chunk {
        kind: ArtefactKind,
        data: Vec<u8>,
    },
    Spawn(Box<Spawn>),
    Guest(ToGuest),
    /// Something typed at a line.
    Line {
        line: Line,
        data: Vec<u8>,
    },
    End,
}

/// How the guest process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessEnd {
    Code(i32),
    Signal(i32),
}

impl std::fmt::Display for ProcessEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with {code}"),
            Self::Signal(signal) => write!(f, "was killed by signal {signal}"),
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromAgent {
    Heartbeat,
    Need(Vec<ArtefactKind>),
    Spawned {
        pid: i32,
    },
    Guest(FromGuest),
    /// Bytes of the guest process's stdout and stderr.
    Log(Vec<u8>),
    /// What a program of the guest wrote to a line.
    Line {
        line: Line,
        data: Vec<u8>,
    },
    /// The host's terminal that is the other end of a line.
    LineTerminal {
        line: Line,
        path: Vec<u8>,
    },
    Exited(ProcessEnd),
    /// The agent cannot go on with this guest; one line for the user.
    Failed(String),
    Ended,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_of_this_build_is_accepted() {
        assert_eq!(Hello::new(None).check(), Ok(()));
    }

    #[test]
    fn a_hello_of_another_version_build_or_program_is_refused() {
        let mut hello = Hello::new(None);
        hello.protocol += 1;
        assert_eq!(
            hello.check(),
            Err(HelloError::Protocol {
                theirs: PROTOCOL_VERSION + 1
            })
        );
        let mut hello = Hello::new(None);
        hello.build = "\x1b[2Jother".into();
        assert_eq!(
            hello.check(),
            Err(HelloError::Build {
                theirs: "[2Jother".into()
            })
        );
        let mut hello = Hello::new(None);
        hello.magic = *b"HTTP";
        assert_eq!(hello.check(), Err(HelloError::Magic));
    }
}
