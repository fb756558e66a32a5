//! The pager: the one thread of a node that runs the coherence engine and the network.
//!
//! Everything that must not wait for a vCPU happens here, and nothing here waits for one: faults and
//! requests arrive through `slots`, messages through QUIC, and what might block (stopping a stub,
//! creating a thread, a host call) is handed to other threads of the runtime, which answer through
//! [`Remote`]. All signals are blocked, and no guest address is dereferenced.

mod alarm;
mod counters;
mod delay;
pub(crate) mod peers;
mod readahead;
mod recorder;
mod requests;
pub(crate) mod wire;

use crate::image::{NodeImage, PAGE_BYTES};
use crate::view::{Protection, View};
use crate::{clock, control, slots, stub};
use alarm::Alarm;
use bytes::Bytes;
use counters::Faults;
use dsm::{Body, Config, Effect, Engine, Initial, NodeId, PageId, State};
use peers::Peer;
use readahead::Readahead;
use recorder::Recorder;
use span_api::guest::{FromGuest, Setup, Stats};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use tokio::io::unix::AsyncFd;
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

/// The host gives the pager this much of a processor at a time. It never needs more, and who asks
/// for little runs before those who want to compute: else a fault waits for their turns to end.
const SLICE_NS: u64 = 100_000;

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

/// The way back to the pager for other threads.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inbox(Arc<Mutex<Vec<Remote>>>);

impl Inbox {
    pub(crate) fn post(&self, message: Remote) {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .push(message);
        slots::wake_pager();
    }

    fn take(&self) -> Vec<Remote> {
        std::mem::take(
            &mut self
                .0
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner()),
        )
    }
}

/// What the tasks on the pager's thread share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) me: u16,
    pub(crate) nodes: usize,
    pub(crate) clock_differs: Cell<bool>,
    alarm: Rc<Alarm>,
    peers: Vec<Peer>,
    pager: RefCell<Pager>,
}

impl Shared {
    pub(crate) fn peer(&self, node: u16) -> Peer {
        self.peers[usize::from(node)].clone()
    }
}

#[derive(Debug)]
pub(crate) struct Pager {
    me: u16,
    image: NodeImage,
    engine: Engine<Bytes>,
    view: View,
    peers: Vec<Peer>,
    inbox: Inbox,
    /// Node of each CPU.
    placement: Vec<u16>,
    /// Host thread of each CPU of this node.
    threads: HashMap<u16, i32>,
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
    memory_pages: u32,
    faults: Faults,
    recorder: Recorder,
    /// CPUs by the slots of their threads.
    cpu_of_slot: HashMap<u32, u16>,
    kicker: mpsc::Sender<KickJob>,
    workers: mpsc::Sender<Work>,
    stats: Stats,
    pages_held: u64,
    lost: bool,
}

#[derive(Debug)]
enum Ticket {
    /// A request that one peer answers.
    Slot(u32),
    /// A drop of virtual memory: this many peers are still to answer.
    VmDrop {
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

fn eventfd() -> std::io::Result<OwnedFd> {
    // SAFETY: a new descriptor, owned by the result.
    unsafe {
        let fd = libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        if fd < 0 {
            Err(std::io::Error::last_os_error())
        } else {
            Ok(OwnedFd::from_raw_fd(fd))
        }
    }
}

/// Watched for edges: each write, and each time the timer goes off, is an event of its own, so that
/// nothing need be read from it.
fn watch<T: AsRawFd>(fd: T) -> std::io::Result<AsyncFd<T>> {
    // SAFETY: the descriptor is owned by the result, and nobody closes it before.
    unsafe { AsyncFd::register(fd) }.map_err(|error| error.into_parts().1)
}

/// What the main thread and the pager tell each other while the guest comes up.
#[derive(Debug)]
pub(crate) struct Meeting {
    pub(crate) bound: mpsc::Sender<u16>,
    pub(crate) peers: tokio::sync::oneshot::Receiver<Vec<SocketAddr>>,
    pub(crate) connected: mpsc::Sender<()>,
}

/// The pager's thread.
pub(crate) fn run(setup: Setup, image: NodeImage, view: View, inbox: Inbox, meeting: Meeting) {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => control::fail(&format!("no event loop: {error}")),
    };
    let local = tokio::task::LocalSet::new();
    let result: Result<(), peers::PeerError> = local.block_on(&runtime, async {
        let wake = watch(eventfd()?)?;
        slots::set_wake_fd(wake.get_ref().as_raw_fd());
        let shared = Rc::new(Shared::new(&setup, image, view, inbox)?);
        let timer = watch(shared.alarm.clone())?;
        ask_for_short_slices();
        let endpoint = peers::bind(&setup)?;
        let _ = meeting.bound.send(endpoint.local_addr()?.port());
        let Ok(addresses) = meeting.peers.await else {
            return Ok(());
        };
        peers::connect_all(&shared, &endpoint, &addresses).await?;
        let _ = meeting.connected.send(());
        tokio::task::spawn_local(peers::refuse_more(endpoint));
        if shared.clock_differs.get() {
            tokio::task::spawn_local(discipline_clock(shared.clone()));
        }

        let mut requests = Vec::new();
        loop {
            let next = shared.pager.borrow_mut().turn(&mut requests);
            shared.alarm.set(next);
            tokio::select! {
                ready = wake.readable() => ready?.clear_ready(),
                ready = timer.readable() => {
                    ready?.clear_ready();
                    shared.alarm.has_gone_off();
                }
            }
        }
    });
    if let Err(error) = result {
        control::fail(&format!("node-to-node network: {error}"));
    }
}

/// Where the host cannot do it, faults wait a little longer on a busy host.
fn ask_for_short_slices() {
    /// `struct sched_attr` in its first version.
    #[repr(C)]
    #[derive(Default)]
    struct SchedAttr {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let attributes = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy: libc::SCHED_OTHER as u32,
        // SAFETY: no pointers.
        nice: unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) },
        runtime: SLICE_NS,
        ..SchedAttr::default()
    };
    // SAFETY: passes a local.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}

async fn discipline_clock(shared: Rc<Shared>) {
    let mut tick = tokio::time::interval(std::time::Duration::from_secs(1));
    loop {
        tick.tick().await;
        let mut pager = shared.pager.borrow_mut();
        let ticket = pager.ticket(Ticket::Clock {
            sent_ns: clock::host_ns(),
        });
        pager.send(0, Frame::ClockPing { ticket });
    }
}

impl Shared {
    fn new(setup: &Setup, image: NodeImage, view: View, inbox: Inbox) -> std::io::Result<Shared> {
        let nodes = setup.nodes.len();
        let peers: Vec<Peer> = setup.links.iter().map(Peer::new).collect();
        let pager = Pager::new(setup, image, view, inbox, peers.clone());
        Ok(Shared {
            me: setup.node,
            nodes,
            clock_differs: Cell::new(false),
            alarm: Rc::new(Alarm::new()?),
            peers,
            pager: RefCell::new(pager),
        })
    }
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

impl Pager {
    fn new(setup: &Setup, image: NodeImage, view: View, inbox: Inbox, peers: Vec<Peer>) -> Pager {
        let me = setup.node;
        let memory_pages = (image.memory_size / PAGE_BYTES) as u32;
        let mut config = Config::new(NodeId(me), setup.nodes.len() as u16, memory_pages);
        config.homes = homes(setup);
        // The node that boots touches most of memory first.
        config.initial = vec![(PageId(0), Initial::Owned(NodeId(0)))];
        config.hold_ns = HOLD_NS;
        config.hold_ns_max = HOLD_NS_MAX;
        // QUIC neither loses nor forgets.
        config.retransmit_ns = None;
        config.migratory = true;
        let engine = match Engine::new(config) {
            Ok(engine) => engine,
            Err(error) => control::fail(&format!("memory of the nodes: {error}")),
        };
        let mut placement = Vec::new();
        for (node, spec) in setup.nodes.iter().enumerate() {
            placement.extend(spec.cpus.iter().map(|_| node as u16));
        }
        Pager {
            me,
            image,
            engine,
            view,
            peers,
            placement,
            threads: HashMap::new(),
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
            memory_pages,
            faults: Faults::default(),
            recorder: Recorder::default(),
            cpu_of_slot: HashMap::new(),
            kicker: requests::start_kicker(inbox.clone()),
            workers: requests::start_workers(inbox.clone(), image),
            inbox,
            stats: Stats::default(),
            pages_held: if me == 0 { u64::from(memory_pages) } else { 0 },
            lost: false,
        }
    }

    /// Does what has come in; the time at which there is something to do again.
    fn turn(&mut self, requests: &mut Vec<slots::Request>) -> Option<u64> {
        self.deliver_ipis();
        // First: a thread that asks again has been running.
        self.notice_resumed();
        slots::take(requests);
        for request in requests.drain(..) {
            self.handle_request(request);
        }
        for message in self.inbox.take() {
            self.handle_remote(message);
        }
        self.next()
    }

    /// Does what is due; the time at which there is something to do again.
    fn next(&mut self) -> Option<u64> {
        let now = clock::host_ns();
        self.do_put_off(now);
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
        if let Some(at) = self.put_off.iter().map(|(_, _, until)| *until).min() {
            earlier(at);
        }
        next
    }

    pub(crate) fn handle_frame(
        shared: &Shared,
        from: u16,
        frame: Frame,
        bytes: usize,
    ) -> Result<(), String> {
        let mut pager = shared.pager.borrow_mut();
        pager.stats.bytes_received += bytes as u64;
        pager.handle(from, frame)?;
        pager.notice_resumed();
        shared.alarm.set(pager.next());
        Ok(())
    }

    pub(crate) fn peer_lost(shared: &Shared, node: u16, reason: String) {
        let mut pager = shared.pager.borrow_mut();
        if !std::mem::replace(&mut pager.lost, true) {
            pager.engine.node_lost(NodeId(node));
            control::send(&FromGuest::PeerLost { node, reason });
        }
    }

    pub(crate) fn send(&mut self, node: u16, frame: Frame) {
        let peer = &self.peers[usize::from(node)];
        let outbox = match frame {
            Frame::HostCall { .. } | Frame::HostReply { .. } => &peer.calls,
            _ => &peer.pages,
        };
        self.stats.bytes_sent += outbox.push(frame);
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
        if self.view.protection(page) != protection
            && let Err(error) = self.view.protect(page, protection)
        {
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
