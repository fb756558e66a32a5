//! The conversation with the node agent, and the ends of a guest process.
//!
//! A guest process ends when its agent says so, or when the agent is gone. Whatever happens in
//! between (a panic of the guest's kernel, a lost peer, a failure here) is reported, and the process
//! then stands still until it is ended: other nodes may still read from it.

use crate::uplinks;
use span_api::guest::{FromGuest, GUEST_FD_ENV, Link, PROBE_BYTES_MAX, Probed, Setup, ToGuest};
use span_api::link::Hello;
use span_api::profile::{Faults, Profiling};
use span_api::{codec, guest};
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, OnceLock};

static WRITER: OnceLock<Mutex<UnixStream>> = OnceLock::new();
static READER: OnceLock<Mutex<UnixStream>> = OnceLock::new();

/// What the agent may ask while the guest runs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Question {
    Stats,
    Profile(Profiling),
    /// What the link to a node costs from now on.
    Link(u16, Link),
    /// What the link to a node takes for so many bytes.
    Probe(u16, u32),
}

/// The answer of a node that has no pages to move.
pub(crate) fn answer_nothing(question: Question) {
    send(&match question {
        Question::Stats => FromGuest::Stats(Box::default()),
        Question::Profile(_) => FromGuest::Faults(Faults::default()),
        Question::Link(..) => FromGuest::LinkSet,
        Question::Probe(node, _) => FromGuest::Probed(Probed {
            node,
            ..Probed::default()
        }),
    });
}

/// The socket to the agent, if there is one.
pub(crate) fn connect() -> bool {
    let Ok(value) = std::env::var(GUEST_FD_ENV) else {
        return false;
    };
    let Ok(fd) = value.parse() else {
        die("the agent's socket is not a number")
    };
    // SAFETY: the agent passes the descriptor on to this process for nothing else.
    let reader = unsafe { UnixStream::from_raw_fd(fd) };
    let Ok(mut writer) = reader.try_clone() else {
        die("the agent's socket can't be used")
    };
    // An agent that is gone is noticed by the reader.
    let _ = codec::write(&mut writer, &Hello::new(None));
    WRITER.set(Mutex::new(writer)).expect("connected once");
    READER.set(Mutex::new(reader)).expect("connected once");
    true
}

/// Tells the agent; an agent that is gone is noticed by [`serve`].
pub(crate) fn send(message: &FromGuest) {
    let Some(writer) = WRITER.get() else { return };
    let mut writer = writer
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let _ = codec::write(&mut *writer, message);
}

fn receive() -> ToGuest {
    let mut reader = READER
        .get()
        .expect("connected")
        .lock()
        .unwrap_or_else(|e| e.into_inner());
    match codec::read(&mut *reader) {
        Ok(Some(message)) => message,
        Ok(None) => exit(0),
        Err(error) => fail(&format!("message from the agent: {error}")),
    }
}

pub(crate) fn receive_setup() -> Setup {
    match receive() {
        ToGuest::Setup(setup) => check(*setup),
        ToGuest::Terminate => exit(0),
        _ => fail("the agent did not begin with the set-up"),
    }
}

fn check(setup: Setup) -> Setup {
    let nodes = setup.nodes.len();
    let cpus: Vec<u16> = setup
        .nodes
        .iter()
        .flat_map(|node| node.cpus.iter().copied())
        .collect();
    let numbered = cpus
        .iter()
        .enumerate()
        .all(|(i, cpu)| usize::from(*cpu) == i);
    if nodes == 0 || nodes > span_api::NODES_MAX || usize::from(setup.node) >= nodes {
        fail("the set-up names no possible node");
    }
    if !numbered || cpus.is_empty() || cpus.len() > span_api::CPUS_MAX {
        fail("the set-up does not number the CPUs from 0, node by node");
    }
    if setup.links.len() != nodes || !setup.links.iter().all(is_possible) {
        fail("the set-up does not say what the links to the nodes cost");
    }
    if setup.nodes.iter().any(|node| node.memory_bytes % 4096 != 0) {
        fail("the set-up splits a page between nodes");
    }
    setup
}

/// Whether a link may be so, and the queue that it stands in is here.
fn is_possible(link: &Link) -> bool {
    link.is_possible()
        && link
            .queue
            .is_none_or(|queue| uplinks::queue(queue).is_some())
}

pub(crate) fn receive_peers(nodes: usize) -> Vec<SocketAddr> {
    match receive() {
        ToGuest::Peers(peers) if peers.len() == nodes => peers,
        ToGuest::Terminate => exit(0),
        _ => fail("the agent did not name the peers"),
    }
}

/// Waits for the start. Questions may come at any time: whoever profiles a boot asks before it begins.
pub(crate) fn receive_start(ask: impl Fn(Question)) {
    loop {
        match receive() {
            ToGuest::Start => return,
            ToGuest::Terminate => exit(0),
            ToGuest::Stats => ask(Question::Stats),
            ToGuest::Profile(what) => ask(Question::Profile(what)),
            _ => fail("the agent did not say to start"),
        }
    }
}

/// Serves the agent for the rest of the process's life, on a thread of its own. `nodes` is how many there are.
pub(crate) fn serve(nodes: usize, ask: impl Fn(Question) + Send + 'static) {
    let is_node = move |node: u16| usize::from(node) < nodes;
    crate::thread("span-control", move || {
        loop {
            match receive() {
                ToGuest::Stats => ask(Question::Stats),
                ToGuest::Profile(what) => ask(Question::Profile(what)),
                ToGuest::Links(links)
                    if links
                        .iter()
                        .all(|(node, link)| is_node(*node) && is_possible(link)) =>
                {
                    for (node, link) in links {
                        ask(Question::Link(node, link));
                    }
                }
                ToGuest::Probe { node, bytes } if is_node(node) && bytes <= PROBE_BYTES_MAX => {
                    ask(Question::Probe(node, bytes));
                }
                ToGuest::Terminate => exit(0),
                message => fail(&format!("unexpected message from the agent: {message:?}")),
            }
        }
    });
}

/// Without destructors or exit handlers: threads of the guest's are still running.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// Reports the guest's end and stands still until the agent ends the process.
pub(crate) fn report_end(message: &FromGuest) -> ! {
    send(message);
    loop {
        // SAFETY: sleeps; signals have been blocked by the caller or end the process.
        unsafe { libc::pause() };
    }
}

/// Reports that the runtime can't go on.
pub(crate) fn fail(line: &str) -> ! {
    let _ = writeln!(std::io::stderr(), "span: {line}");
    if WRITER.get().is_none() {
        exit(1);
    }
    report_end(&guest::FromGuest::Failed(line.to_string()))
}

/// The same for where nothing can be allocated. Context: signal.
pub(crate) fn die(line: &'static str) -> ! {
    // SAFETY: writes statics to standard error, then ends the process.
    unsafe {
        libc::write(2, line.as_ptr().cast(), line.len());
        libc::write(2, c"\n".as_ptr().cast(), 1);
    }
    exit(1)
}
