//! The pager: the coherence engine and the network of a node, behind one lock.
//!
//! Whoever has something for it takes the lock, says it, and sends what follows from it: a vCPU thread that
//! faults, a thread of the runtime that has done some work. Whoever waits for an answer from the network
//! reads the network itself, if nobody does yet ([`ask`]); else a thread of the pager's own does ([`run`]), which
//! has the timers, too ([`drive`], [`turns`]). So a fault costs a switch of context here and one at the other node.
//!
//! Nothing here waits for a vCPU: what might block (stopping a stub, creating a thread, a host call) is
//! handed to other threads, which answer by [`tell`]. Whoever has the lock has all signals but the faults'
//! blocked, is on a stack of this process's own, and dereferences no guest address.

mod alarm;
mod arrival;
mod chains;
mod counters;
mod delay;
mod discard;
mod drive;
mod net;
mod probe;
mod readahead;
mod recorder;
mod requests;
mod turns;
pub(crate) mod wire;

pub(crate) use drive::{Meeting, ask, call, interrupt, run, tell};

use crate::image::{NodeImage, PAGE_BYTES};
use crate::ipi::Sender;
use crate::view::{Protection, View};
use crate::{clock, control, slots, stub};
use bytes::Bytes;
use chains::Chains;
use counters::Faults;
use discard::Loose;
use drive::Watch;
use dsm::{Body, Config, Effect, Engine, Initial, NodeId, PageId, State};
use net::{Net, NetError, News};
use readahead::Readahead;
use recorder::Recorder;
use span_api::guest::{FromGuest, NodeSpec, Setup, Stats};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::mpsc;
use wire::Frame;

/// A granted page stays this long after the faulting thread runs again: one instruction's time,
/// with room for the host's scheduler.
const HOLD_NS: u64 = 20_000;

/// ... and this long at most, if the thread does not get to run.
const HOLD_NS_MAX: u64 = 4_000_000;

/// Waits for pages that were asked for before any thread needs them.
const NOBODY: u32 = u32::MAX;

/// How often to look whether a thread that was granted a page has resumed, while others wait for it.
const RESUME_POLL_NS: u64 = 50_000;

/// How often the first node's clock is asked for.
const CLOCK_EVERY_NS: u64 = 1_000_000_000;

/// The node that boots.
const FIRST: u16 = 0;

/// What other threads of the runtime tell the pager.
#[derive(Debug)]
pub(crate) enum Remote {
    /// Every stub has let go of the page.
    Released(u32),
    /// Complete a local request, or answer a peer's.
    Answer(Asker, u64),
    HostReply(u16, u64, Vec<u8>),
    Asked(control::Question),
}

/// Who waits for something that was handed on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Asker {
    Slot(u32),
    Peer { node: u16, ticket: u64 },
}

#[derive(Debug)]
pub(crate) struct Pager {
    me: u16,
    nodes: u16,
    sender: Sender,
    image: NodeImage,
    engine: Engine<Bytes>,
    view: View,
    net: Net,
    watch: Watch,
    /// When the first node's clock is asked for next, where that is another host's.
    clock_due_ns: Option<u64>,
    /// Node of each CPU.
    placement: Vec<u16>,
    /// Host thread of each CPU of this node.
    threads: HashMap<u16, i32>,
    /// Nodes that may have run a CPU. The first node knows: it lets them.
    runs: Vec<bool>,
    /// CPUs whose thread waits to be released, or that were released before it waited.
    cpu_waiting: HashMap<u16, u32>,
    cpu_released: Vec<u16>,
    /// Requests of this node's that wait for peers, by ticket.
    tickets: HashMap<u64, Ticket>,
    ticket_next: u64,
    /// Kernel virtual memory mapped here, both ways.
    vm: BTreeMap<u64, u32>,
    vm_of_page: HashMap<u32, Vec<u64>>,
    /// `VmMap` requests that wait for their page: slot to address.
    vm_waiting: HashMap<u32, u64>,
    /// Pages granted to threads that have not resumed yet: page, slot.
    granted: Vec<(u32, u32)>,
    /// Protections put off because a stub is about to use the page: page, state, until.
    put_off: Vec<(u32, State, u64)>,
    readahead: Readahead,
    chains: Chains,
    memory_pages: u32,
    faults: Faults,
    recorder: Recorder,
    /// CPUs by the slots of their threads.
    cpu_of_slot: HashMap<u32, u16>,
    kicker: mpsc::Sender<KickJob>,
    workers: mpsc::Sender<Work>,
    stats: Stats,
    loose: Loose,
    foreign_max: Option<u32>,
    pages_held: u64,
    lost: bool,
}

#[derive(Debug)]
enum Ticket {
    /// A request that one peer answers.
    Slot(u32),
    /// All others were asked: this many are still to answer.
    All {
        slot: u32,
        missing: usize,
    },
    HostCall {
        slot: u32,
        reply: u64,
        capacity: usize,
    },
    Clock {
        sent_ns: u64,
    },
    /// A node was sent something for the agent.
    Probe {
        node: u16,
        sent_ns: u64,
    },
}

/// Stubs to wait for, then whom to tell.
#[derive(Debug)]
struct KickJob {
    kicks: Vec<stub::Kick>,
    then: KickThen,
}

#[derive(Debug)]
enum KickThen {
    Released(u32),
    Answer(Asker),
}

/// Work that may block.
#[derive(Debug)]
enum Work {
    CreateCpu {
        cpu: u16,
        sigset: u64,
        asker: Asker,
    },
    KillStub(u64),
    HostCall {
        node: u16,
        ticket: u64,
        request: Bytes,
    },
}

/// Each node is home of its part of memory; the first also of the image, which lies before.
fn homes(setup: &Setup) -> Vec<(PageId, NodeId)> {
    let mut first = 0;
    let mut homes = Vec::new();
    for (node, spec) in setup.nodes.iter().enumerate() {
        if spec.memory_bytes > 0 || node == 0 {
            homes.push((PageId(first), NodeId(node as u16)));
        }
        first += (spec.memory_bytes / PAGE_BYTES as u64) as u32;
    }
    homes
}

/// The pages that a node is home of, but for the image, which the node that boots has.
fn own_pages(setup: &Setup, image: &NodeImage, node: usize) -> Range<u32> {
    let pages = |nodes: &[NodeSpec]| -> u32 {
        let bytes: u64 = nodes.iter().map(|node| node.memory_bytes).sum();
        (bytes / PAGE_BYTES as u64) as u32
    };
    let image_end = ((image.reserved - image.start) / PAGE_BYTES) as u32;
    let end = pages(&setup.nodes[..=node]).max(image_end);
    match node {
        0 => 0..end,
        _ => pages(&setup.nodes[..node]).max(image_end)..end,
    }
}

/// Where in another node's part the node that boots writes before that one has a CPU, in pages from its
/// beginning: what is known of the node, its CPUs' variables and the first of its struct pages; then what
/// the kernel allocates there for tasks and variables to come. Found by looking; a part that begins
/// otherwise costs a message for each such page, as one that is lent in vain does when it is used.
const LENT: [Range<u32>; 2] = [0..0x80, 0x800..0x8c0];

/// Who has which pages when the guest starts, in order. That is whoever is home of them, so that what a node
/// allocates in its own part it need not ask for; but for what is lent to the node that boots.
pub(crate) fn owners(setup: &Setup, image: &NodeImage) -> Vec<(Range<u32>, u16)> {
    let mut owners = Vec::new();
    // A node with a limit has room for a part of the others' pages only.
    let lends = setup.nodes.iter().all(|node| node.limit_bytes.is_none());
    for node in 0..setup.nodes.len() {
        let mut own = own_pages(setup, image, node);
        let first = own.start;
        for lent in LENT.iter().filter(|_| lends && node != 0) {
            let from = (first + lent.start).min(own.end);
            let to = (first + lent.end).min(own.end);
            owners.push((own.start..from, node as u16));
            owners.push((from..to, 0));
            own.start = to;
        }
        owners.push((own, node as u16));
    }
    owners.retain(|(pages, _)| !pages.is_empty());
    owners
}

/// What a node has of that.
pub(crate) fn owned(owners: &[(Range<u32>, u16)], node: u16) -> Vec<Range<u32>> {
    let mine = owners.iter().filter(|(_, owner)| *owner == node);
    mine.map(|(pages, _)| pages.clone()).collect()
}

impl Pager {
    fn new(setup: &Setup, image: NodeImage, view: View) -> Result<Pager, NetError> {
        let me = setup.node;
        let memory_pages = (image.memory_size / PAGE_BYTES) as u32;
        let mut config = Config::new(NodeId(me), setup.nodes.len() as u16, memory_pages);
        config.homes = homes(setup);
        let owners = owners(setup, &image);
        config.initial = owners
            .iter()
            .map(|(pages, owner)| (PageId(pages.start), Initial::Owned(NodeId(*owner))))
            .collect();
        config.hold_ns = HOLD_NS;
        config.hold_ns_max = HOLD_NS_MAX;
        // QUIC neither loses nor forgets.
        config.retransmit_ns = None;
        config.migratory = true;
        config.foreign_max = discard::foreign_max(setup, &image);
        let foreign_max = config.foreign_max;
        let engine = match Engine::new(config) {
            Ok(engine) => engine,
            Err(error) => control::fail(&format!("memory of the nodes: {error}")),
        };
        let mut placement = Vec::new();
        for (node, spec) in setup.nodes.iter().enumerate() {
            placement.extend(spec.cpus.iter().map(|_| node as u16));
        }
        let net = Net::bind(setup)?;
        Ok(Pager {
            me,
            nodes: setup.nodes.len() as u16,
            sender: Sender::this_process(),
            image,
            engine,
            view,
            watch: Watch::new(&net)?,
            net,
            clock_due_ns: None,
            placement,
            threads: HashMap::new(),
            runs: vec![me != FIRST; setup.nodes.len()],
            cpu_waiting: HashMap::new(),
            cpu_released: Vec::new(),
            tickets: HashMap::new(),
            ticket_next: 1,
            vm: BTreeMap::new(),
            vm_of_page: HashMap::new(),
            vm_waiting: HashMap::new(),
            granted: Vec::new(),
            put_off: Vec::new(),
            readahead: Readahead::default(),
            chains: Chains::default(),
            memory_pages,
            faults: Faults::default(),
            recorder: Recorder::default(),
            cpu_of_slot: HashMap::new(),
            kicker: requests::start_kicker(),
            workers: requests::start_workers(image),
            stats: Stats::default(),
            loose: Loose::default(),
            foreign_max,
            pages_held: owned(&owners, me)
                .iter()
                .map(|pages| pages.len() as u64)
                .sum(),
            lost: false,
        })
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Frame { from, received } => {
                clock::not_before(received.clock_ns);
                self.stats.bytes_received += received.bytes as u64;
                if let Err(reason) = self.handle(from, received.frame) {
                    self.net.drop_peer(from);
                    self.peer_lost(from, reason);
                }
                // Threads that were granted a page by it may ask again before all is heard.
                self.drain_effects();
            }
            News::Lost { node, reason } => self.peer_lost(node, reason),
        }
    }

    /// Does what is due; the time at which there is something to do again.
    fn do_what_is_due(&mut self) -> Option<u64> {
        let now = clock::host_ns();
        self.do_put_off(now);
        if self.clock_due_ns.is_some_and(|at| at <= now) {
            self.clock_due_ns = Some(now + CLOCK_EVERY_NS);
            let ticket = self.ticket(Ticket::Clock { sent_ns: now });
            self.send(0, Frame::ClockPing { ticket });
        }
        if self.engine.poll_timeout().is_some_and(|at| at <= now) {
            self.engine.handle_timeout(now);
        }
        self.drain_effects();

        let waiting = self.engine.poll_timeout();
        let mut next = waiting;
        let mut earlier = |at: u64| next = Some(next.map_or(at, |next| next.min(at)));
        if waiting.is_some() && !self.granted.is_empty() {
            earlier(now + RESUME_POLL_NS);
        }
        if let Some(at) = self.clock_due_ns {
            earlier(at);
        }
        if let Some(at) = self.put_off.iter().map(|(_, _, until)| *until).min() {
            earlier(at);
        }
        next
    }

    fn peer_lost(&mut self, node: u16, reason: String) {
        if !std::mem::replace(&mut self.lost, true) {
            self.engine.node_lost(NodeId(node));
            control::send(&FromGuest::PeerLost { node, reason });
        }
    }

    fn send(&mut self, node: u16, frame: Frame) {
        self.stats.bytes_sent += self.net.send(node, frame);
    }

    fn ticket(&mut self, waits: Ticket) -> u64 {
        let ticket = self.ticket_next;
        self.ticket_next += 1;
        self.tickets.insert(ticket, waits);
        ticket
    }

    /// Threads that were granted a page and run again start its hold time.
    fn notice_resumed(&mut self) {
        let now = clock::host_ns();
        let engine = &mut self.engine;
        self.granted.retain(|(page, slot)| {
            let since = slots::resumed_at(*slot);
            if let Some(since) = since {
                engine.resumed(now, PageId(*page), since);
            }
            since.is_none()
        });
    }

    fn drain_effects(&mut self) {
        while let Some(effect) = self.engine.poll_effect() {
            match effect {
                Effect::Send {
                    to,
                    mut message,
                    attach_page,
                } => {
                    if attach_page {
                        message.body = self.page_body(message.page.0);
                        self.stats.pages_out += 1;
                    }
                    self.send(to.0, Frame::Page(message));
                }
                Effect::Fill { page, body } => {
                    self.stats.pages_in += 1;
                    match body {
                        Body::Full(bytes) => self.view.fill(page.0, Some(&bytes)),
                        Body::Zero => self.view.fill(page.0, None),
                        Body::None => {}
                    }
                }
                Effect::Protect { page, state } => self.protect(page.0, state),
                Effect::Granted { page, waiter } => self.grant(page.0, waiter),
                Effect::Discard { page } => self.discard(page.0),
                Effect::Failed { error } => control::fail(&format!("coherence: {error}")),
            }
        }
    }

    fn page_body(&self, page: u32) -> Body<Bytes> {
        let bytes = self.view.read(page);
        if bytes.iter().all(|byte| *byte == 0) {
            Body::Zero
        } else {
            Body::Full(bytes.into())
        }
    }

    fn do_put_off(&mut self, now: u64) {
        let mut i = 0;
        while i < self.put_off.len() {
            let (page, state, until) = self.put_off[i];
            if until <= now {
                self.put_off.swap_remove(i);
                self.protect_now(page, state);
            } else {
                i += 1;
            }
        }
    }

    /// Gives every mapping of the page the rights of the state.
    fn protect(&mut self, page: u32, state: State) {
        let lowers = Protection::of(state) != Protection::ReadWrite;
        match stub::held_until(page) {
            // A stub that never gets to make its access would fault for ever.
            Some(until) if lowers && until > clock::host_ns() => {
                self.put_off.push((page, state, until));
            }
            _ => self.protect_now(page, state),
        }
    }

    fn protect_now(&mut self, page: u32, state: State) {
        let protection = Protection::of(state);
        let before = stub::frame(page);
        if let Err(error) = self.view.protect(page, protection) {
            control::fail(&format!("protecting guest memory: {error}"));
        }
        for va in self.vm_of_page.get(&page).into_iter().flatten() {
            requests::protect_vm(*va, protection);
        }
        stub::set_frame(page, protection);
        match (before, protection) {
            (Protection::None, Protection::None) => {}
            (Protection::None, _) => self.pages_held += 1,
            (_, Protection::None) => self.pages_held -= 1,
            _ => {}
        }
        if protection < before {
            if protection == Protection::None {
                self.stats.invalidations += 1;
            }
            let kicks = stub::take_frame(page);
            if !kicks.is_empty() {
                let _ = self.kicker.send(KickJob {
                    kicks,
                    then: KickThen::Released(page),
                });
                return;
            }
        }
        self.engine.protected(clock::host_ns(), PageId(page));
    }

    /// The waiter's access is allowed; the view may still be closed, to save host mappings.
    fn grant(&mut self, page: u32, slot: u32) {
        if slot == NOBODY {
            let now = clock::host_ns();
            self.engine.resumed(now, PageId(page), now);
            self.recorder.unneeded(page);
            return;
        }
        let protection = Protection::of(self.engine.state(PageId(page)));
        if let Err(error) = self.view.admit(page, protection) {
            control::fail(&format!("protecting guest memory: {error}"));
        }
        let ended = self.faults.ended(slot, clock::host_ns(), &mut self.stats);
        let cpu = self.cpu_of_slot.get(&slot).copied();
        self.recorder.ended(slot, page, cpu, ended);
        let result = match self.vm_waiting.remove(&slot) {
            Some(va) => self.map_vm(va, page, protection),
            None => 1,
        };
        self.granted.push((page, slot));
        slots::complete(slot, result);
    }
}
