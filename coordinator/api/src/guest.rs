//! Node agent ↔ the runtime (`libnode.so`) inside the guest process it started.
//!
//! The agent starts `linux` with one end of a stream socket, whose descriptor number is in the
//! environment variable [`GUEST_FD_ENV`]. Order of a start:
//!
//! 1. the runtime sends [`crate::link::Hello`], which the agent checks before it says anything, and
//!    [`FromGuest::Host`], with which the coordinator makes sure that the hosts are alike;
//! 2. agent sends [`ToGuest::Setup`]; the runtime maps memory, binds its UDP socket and answers
//!    [`FromGuest::Bound`];
//! 3. the coordinator collects all nodes' addresses and has every agent send [`ToGuest::Peers`]; the
//!    runtimes connect to each other, each answers [`FromGuest::Connected`];
//! 4. when all are connected, every agent sends [`ToGuest::Start`]: the first node boots the kernel,
//!    the others wait to be given virtual CPUs. [`FromGuest::CpuOnline`] comes once per virtual CPU.
//!
//! The conversation ends with [`ToGuest::Terminate`], with the end of the stream (the agent died: the
//! runtime exits at once), or with [`FromGuest::Halted`], [`FromGuest::Panicked`] or
//! [`FromGuest::Failed`], after which the guest process has nothing more to do and is ended by its agent.

use crate::histogram::Histogram;
use crate::host::Host;
use crate::profile::{Faults, Profiling};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Names the descriptor of the agent's socket in the guest process's environment. Without it the
/// kernel runs as plain single-process UML.
pub const GUEST_FD_ENV: &str = "SPAN_GUEST_FD";

/// Names the descriptors that a guest process inherits for network devices, in its environment: for each
/// device `UNIT:FD`, or `UNIT:FD:KEPT` with one that only has to stay open. Separated by commas.
pub const NET_FDS_ENV: &str = "SPAN_NET_FDS";

/// The descriptor of network device 0 in the guest process of its node; device 1 has the next, and so
/// on. The kernel's arguments name them, and are the same for all nodes: so the numbers are fixed.
pub const NET_FD_FIRST: i32 = 512;

/// Most network devices that `--net` makes.
pub const NET_DEVICES_MAX: usize = 8;

/// Names the descriptors that the first node's guest process inherits for its lines: for each `INDEX:FD`,
/// separated by commas.
pub const LINE_FDS_ENV: &str = "SPAN_LINE_FDS";

/// The descriptor of the first line there; that with index 1 has the next, and so on.
pub const LINE_FD_FIRST: i32 = 544;

/// Names the descriptor of the memory in which nodes on one host have the queues of uplinks, in the environment of their
/// guest processes. There are [`UPLINK_QUEUE_BYTES`] for each queue.
pub const UPLINKS_FD_ENV: &str = "SPAN_UPLINKS_FD";

/// So that nodes which use different queues have no cache line in common.
pub const UPLINK_QUEUE_BYTES: usize = 64;

/// What the kernel calls a descriptor of a node.
pub fn descriptor_handle(node: u16, fd: i32) -> i32 {
    i32::from(node) << 20 | fd
}

/// One node of the guest, in the order of `--nodes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    pub name: String,
    /// Virtual CPUs that run on this node; node 0 has CPU 0, and numbers go up node by node.
    pub cpus: Vec<u16>,
    /// Guest memory whose home is this node, in bytes: a multiple of the page size.
    pub memory_bytes: u64,
    /// Most guest memory that this node holds, its own part included; `None`: any amount.
    pub limit_bytes: Option<u64>,
}

/// Room that a node with a limit has at least, beside its own part of guest memory.
pub const ROOM_BYTES_MIN: u64 = 16 << 20;

/// Longest latency of a link.
pub const LINK_LATENCY_NS_MAX: u64 = 1_000_000_000;

/// Least and greatest bandwidth of a link that has one, in bits per second.
pub const LINK_BANDWIDTH_BPS_MIN: u64 = 10_000;
pub const LINK_BANDWIDTH_BPS_MAX: u64 = 1_000_000_000_000;

/// Most packets of a link that may be lost, of a million.
pub const LINK_LOSS_PPM_MAX: u32 = 500_000;

/// What it costs to send to another node, on top of what the network takes: one direction of a link. All that is
/// sent there pays: pages, interrupts, host calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Every message leaves this much later.
    pub latency_ns: u64,
    /// ... or up to this much sooner or later still; not more than the latency.
    pub jitter_ns: u64,
    /// Messages leave one after the other, each as long as its bits take; 0: as fast as the network takes them.
    pub bandwidth_bps: u64,
    /// How many packets of a million are lost, and sent again.
    pub loss_ppm: u32,
    /// Nothing arrives.
    pub cut: bool,
    /// The queue that it stands in with other links, whose messages and its own leave one after the other: one direction of
    /// an uplink. All links of a queue have one bandwidth. `None`: a queue of its own.
    pub queue: Option<u16>,
}

impl Link {
    /// Whether each value is one that a link may have.
    pub fn is_possible(&self) -> bool {
        let bandwidths = LINK_BANDWIDTH_BPS_MIN..=LINK_BANDWIDTH_BPS_MAX;
        self.latency_ns <= LINK_LATENCY_NS_MAX
            && self.jitter_ns <= self.latency_ns
            && (self.bandwidth_bps == 0 || bandwidths.contains(&self.bandwidth_bps))
            && self.loss_ppm <= LINK_LOSS_PPM_MAX
    }
}

/// What has been sent to another node, and what that has cost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStats {
    /// What it costs now.
    pub link: Link,
    pub messages: u64,
    pub bytes: u64,
    /// Messages of which a packet was lost.
    pub lost: u64,
    /// Datagrams that were not sent because the link was cut.
    pub dropped: u64,
    /// What has come the other way.
    pub arrived: ArrivalStats,
}

/// What has come from another node that had to wait, as the node counts that it came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrivalStats {
    /// Messages that had to wait, how long they should have in all, and how long they did.
    pub delayed: u64,
    pub planned_ns: u64,
    pub added_ns: u64,
    /// How long each did.
    pub added: Histogram,
    /// How far off that was, of those no longer than a page: bulk takes as long as the network does, in any case.
    pub error: Histogram,
}

/// Longest probe.
pub const PROBE_BYTES_MAX: u32 = 64 << 20;

/// When something was sent to a node and back, on the guest's clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    pub node: u16,
    pub sent_ns: u64,
    /// All of it was there.
    pub arrived_ns: u64,
    /// The answer was here.
    pub answered_ns: u64,
}

/// How a node protects the pages of guest memory that it does not have, or must not write to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Paging {
    /// What the host has that is faster.
    #[default]
    Auto,
    Mprotect,
    Uffd,
}

/// What is behind a path that a node exports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    #[default]
    Directory,
    /// A directory whose files have owners, modes and kinds of the guest's, kept beside them.
    Mapped,
    /// A SQLite database.
    Sqlite,
}

/// What stands before the path of a database.
pub const SQLITE: &[u8] = b"sqlite:";

/// Names of places in which no node can be.
pub const RESERVED: [&str; 2] = ["sqlite", "union"];

impl Kind {
    /// The kind of `[sqlite:]PATH`, and the path.
    pub fn split(value: &[u8]) -> (Self, &[u8]) {
        match value.strip_prefix(SQLITE) {
            Some(path) => (Self::Sqlite, path),
            None => (Self::Directory, value),
        }
    }

    pub fn is_directory(self) -> bool {
        self != Self::Sqlite
    }
}

/// A directory of a node's host, or a database there, that the guest may mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    pub kind: Kind,
    /// Absolute.
    pub directory: Vec<u8>,
    pub read_only: bool,
}

impl Export {
    /// Whether `other` is the same directory or one below it, by their names.
    pub fn holds(&self, other: &Export) -> bool {
        self.kind.is_directory() == other.kind.is_directory()
            && path(&other.directory).starts_with(path(&self.directory))
    }

    /// Reads what may follow the path of one: `,ro` and `,owners=mapped`, in any order. Gives back what stands before.
    pub fn options(value: &[u8]) -> (&[u8], bool, bool) {
        let (mut rest, mut read_only, mut mapped) = (value, false, false);
        loop {
            if let Some(before) = rest.strip_suffix(b",ro") {
                (rest, read_only) = (before, true);
            } else if let Some(before) = rest.strip_suffix(b",owners=mapped") {
                (rest, mapped) = (before, true);
            } else {
                return (rest, read_only, mapped);
            }
        }
    }

    /// The path as the guest names it after the node's name.
    pub fn name(&self) -> Vec<u8> {
        match self.kind {
            Kind::Sqlite => [SQLITE, &self.directory].concat(),
            _ => self.directory.clone(),
        }
    }
}

/// Why a kind and an option do not go together; checked where a user says so.
pub fn kind(kind: Kind, mapped: bool) -> Result<Kind, &'static str> {
    match (kind, mapped) {
        (Kind::Sqlite, true) => Err("owners=mapped is for directories"),
        (Kind::Directory, true) => Ok(Kind::Mapped),
        (kind, _) => Ok(kind),
    }
}

/// Whether a file says that it is a SQLite database, by its first bytes; an empty one is one, too.
pub fn check_database(path: &Path) -> Result<(), String> {
    use std::io::Read;
    const MAGIC: &[u8; 16] = b"SQLite format 3\0";
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    if !file
        .metadata()
        .map_err(|error| error.to_string())?
        .is_file()
    {
        return Err("is no file".into());
    }
    let mut first = Vec::new();
    file.take(MAGIC.len() as u64)
        .read_to_end(&mut first)
        .map_err(|error| error.to_string())?;
    match first.is_empty() || first == MAGIC {
        true => Ok(()),
        false => Err("is no SQLite database".into()),
    }
}

fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// Everything a runtime must know before it can meet its peers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setup {
    /// This node's index in `nodes`.
    pub node: u16,
    pub nodes: Vec<NodeSpec>,
    /// From this node to each of `nodes`.
    pub links: Vec<Link>,
    /// What chance decides on links follows from it.
    pub link_seed: u64,
    pub paging: Paging,
    /// Whether nodes that do not answer are waited for, since a debugger may have stopped them.
    pub patient: bool,
    /// What the guest may mount of this node's host: its agent has the last word.
    pub exports: Vec<Export>,
    /// Whether any file of this node's host may be a disk, not only one that is exported; likewise.
    pub any_disk: bool,
    /// Address to bind the QUIC socket to; the port is the kernel's choice.
    pub bind: IpAddr,
    /// DER: the guest's own certificate authority, and this node's certificate and PKCS#8 key. A
    /// node's certificate carries the name `node-<index>`.
    pub authority: Vec<u8>,
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToGuest {
    Setup(Box<Setup>),
    /// Where every node's runtime listens, in the order of `Setup::nodes`.
    Peers(Vec<SocketAddr>),
    Start,
    /// Answered by [`FromGuest::Stats`].
    Stats,
    /// Answered by [`FromGuest::Faults`].
    Profile(Profiling),
    /// What the links to nodes cost from now on; answered by a [`FromGuest::LinkSet`] for each.
    Links(Vec<(u16, Link)>),
    /// Send that many bytes to a node, without any a mere question; answered by [`FromGuest::Probed`].
    Probe {
        node: u16,
        bytes: u32,
    },
    Terminate,
}

/// Counters of one node since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Faults that needed another node, by what was asked for.
    pub faults_read: u64,
    pub faults_write: u64,
    pub faults_upgrade: u64,
    /// Faults that this node could satisfy by itself.
    pub faults_local: u64,
    /// Pages asked for before they were needed.
    pub pages_ahead: u64,
    pub pages_in: u64,
    pub pages_out: u64,
    pub invalidations: u64,
    /// Faults of user processes on frames that were not here.
    pub stub_faults: u64,
    pub stub_kicks: u64,
    pub ipis_sent: u64,
    pub ipis_received: u64,
    /// Host calls executed here for another node, and sent elsewhere.
    pub host_calls_served: u64,
    pub host_calls_forwarded: u64,
    /// To and from other nodes, in messages.
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// What had to be sent again: messages of the protocol, and datagrams that the network lost.
    pub retries: u64,
    /// Guest pages that hold valid data on this node.
    pub resident_pages: u64,
    /// What the node's memory file takes of its host's memory.
    pub memory_bytes: u64,
    /// Pages that are other nodes' own, where their number is limited, and how many there may be.
    pub foreign_pages: u64,
    pub foreign_pages_max: u64,
    /// Pages given up for want of room: copies that others have, and pages given back to their nodes.
    pub evicted_copies: u64,
    pub evicted_pages: u64,
    /// Requests that waited until there was room.
    pub room_waits: u64,
    /// Total time vCPU threads waited in faults, in nanoseconds.
    pub fault_wait_ns: u64,
    pub waits: Waits,
    /// To each node of a guest on several.
    pub links: Vec<LinkStats>,
}

/// How long faults that needed another node waited, by what was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waits {
    pub read: Histogram,
    pub write: Histogram,
    pub upgrade: Histogram,
}

impl Waits {
    /// Of all kinds.
    pub fn remote(&self) -> Histogram {
        let mut all = self.read.clone();
        all.add(&self.write);
        all.add(&self.upgrade);
        all
    }
}

/// How the guest's kernel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HaltKind {
    PowerOff,
    Halt,
    Restart,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromGuest {
    Host(Box<Host>),
    Bound {
        port: u16,
        /// What protects pages; `Auto` where there are none to protect.
        paging: Paging,
    },
    Connected,
    CpuOnline {
        cpu: u16,
        tid: i32,
        /// What is added to the address of a per-CPU variable to get this CPU's.
        variables: u64,
    },
    Stats(Box<Stats>),
    Faults(Faults),
    LinkSet,
    Probed(Probed),
    Halted(HaltKind),
    /// The guest kernel panicked on this node; the text of the panic.
    Panicked(String),
    /// The connection to this peer is gone.
    PeerLost {
        node: u16,
        reason: String,
    },
    /// The runtime cannot go on; one line for the user.
    Failed(String),
}
