//! Connections to the other nodes: QUIC, driven by whoever has the pager's lock.
//!
//! Each pair of nodes has one connection, opened by the one with the higher index. Nothing here waits: the
//! socket is read when it has something, and what it has no room for is kept until it has.

mod link;
mod tls;

pub(crate) use link::Received;

use super::arrival::Lead;
use super::delay;
use super::wire::{self, Frame};
use crate::clock;
use bytes::BytesMut;
use link::{Channel, Link};
use quinn_proto::{
    ConnectionError, ConnectionHandle, DatagramEvent, EcnCodepoint, Endpoint, Incoming, Transmit,
};
use quinn_udp::{RecvMeta, UdpSocketState};
use span_api::guest::{Link as Cost, LinkStats, Setup};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};
use tls::Ends;

/// Socket buffers: a burst of pages must not be dropped between two turns of the pager.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// What is received with one call: batches of datagrams, each as long as the host joins them to.
const BATCHES: usize = 4;
const BATCH_BYTES: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum NetError {
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    #[error("{0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    #[error("{0}")]
    NoCipher(#[from] quinn_proto::crypto::rustls::NoInitialCipherSuite),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Connect(#[from] quinn_proto::ConnectError),
    #[error("{0}")]
    Connection(#[from] quinn_proto::ConnectionError),
    #[error("{0}")]
    Write(#[from] quinn_proto::WriteError),
    #[error("{0}")]
    Wire(#[from] wire::WireError),
    #[error("{0}")]
    Protocol(&'static str),
}

/// What this node says of itself, and what it learns of the first node's clock by that.
#[derive(Debug)]
pub(super) struct Introduction {
    node: u16,
    nodes: usize,
    boot: u64,
    /// When the first node was last asked.
    sent_ns: Cell<u64>,
    /// The first node's host has another clock.
    clock_differs: Cell<bool>,
}

impl Introduction {
    fn hello(&self) -> Frame {
        Frame::Hello {
            node: self.node,
            boot: self.boot,
        }
    }

    /// A node that was asked has answered.
    fn met(&self, node: u16, boot: u64, clock_ns: u64) {
        if node == 0 && boot != self.boot {
            let (sent_ns, received_ns) = (self.sent_ns.get(), clock::host_ns());
            let middle = sent_ns + (received_ns - sent_ns) / 2;
            clock::start_from(clock_ns as i64 - middle as i64);
            self.clock_differs.set(true);
        }
    }
}

/// What the network has brought.
#[derive(Debug)]
pub(crate) enum News {
    Frame {
        from: u16,
        received: Received,
    },
    /// The connection to a node is gone.
    Lost {
        node: u16,
        reason: String,
    },
}

/// When there is something to do.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Due {
    /// Something that may be a little late.
    pub(crate) timer_ns: Option<u64>,
    /// The time of a message that has come before it.
    pub(crate) message_ns: Option<u64>,
}

pub(crate) struct Net {
    me: Introduction,
    /// Of the links to the nodes.
    costs: Vec<Cost>,
    seed: u64,
    lead: Lead,
    /// Since when whoever reads the socket had been asleep.
    asleep_ns: Option<u64>,
    endpoint: Endpoint,
    /// This node's address: whoever has the same is on the same host.
    address: IpAddr,
    far: Ends,
    near: Ends,
    /// How long a link may be cut.
    cut_max: Option<Duration>,
    /// A timer of QUIC's may be over.
    timers_due: bool,
    socket: UdpSocket,
    state: UdpSocketState,
    links: BTreeMap<usize, Link>,
    /// The connection to each node, once both of its streams are there.
    peers: Vec<Option<usize>>,
    /// Connections that have something to do.
    touched: BTreeSet<usize>,
    news: VecDeque<News>,
    buffer: Box<[u8]>,
    /// The socket has no room.
    blocked: bool,
    began: (Instant, u64),
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Net").field("links", &self.links).finish()
    }
}

impl Net {
    /// Binds this node's socket.
    pub(crate) fn bind(setup: &Setup) -> Result<Self, NetError> {
        let configs = tls::configs(setup)?;
        let socket = UdpSocket::bind(SocketAddr::new(setup.bind, 0))?;
        let state = UdpSocketState::new((&socket).into())?;
        // As large as the host allows an ordinary user.
        let _ = state.set_send_buffer_size((&socket).into(), SOCKET_BUFFER_BYTES);
        let _ = state.set_recv_buffer_size((&socket).into(), SOCKET_BUFFER_BYTES);
        let nodes = setup.nodes.len();
        Ok(Self {
            me: Introduction {
                node: setup.node,
                nodes,
                boot: clock::boot_identity(),
                sent_ns: Cell::new(0),
                clock_differs: Cell::new(false),
            },
            costs: setup.links.clone(),
            seed: setup.link_seed,
            lead: Lead::default(),
            asleep_ns: None,
            endpoint: Endpoint::new(
                configs.endpoint,
                Some(configs.far.server.clone()),
                !state.may_fragment(),
                None,
            ),
            address: setup.bind,
            far: configs.far,
            near: configs.near,
            cut_max: (!setup.patient).then_some(tls::IDLE),
            timers_due: false,
            socket,
            state,
            links: BTreeMap::new(),
            peers: vec![None; nodes],
            touched: BTreeSet::new(),
            news: VecDeque::new(),
            buffer: vec![0; BATCHES * BATCH_BYTES].into(),
            blocked: false,
            began: (Instant::now(), clock::host_ns()),
        })
    }

    pub(crate) fn port(&self) -> Result<u16, NetError> {
        Ok(self.socket.local_addr()?.port())
    }

    /// Connects to all nodes with a lower index; those with a higher one connect to this one.
    pub(crate) fn meet(&mut self, addresses: &[SocketAddr]) -> Result<(), NetError> {
        for (node, address) in addresses.iter().enumerate().take(self.me.node.into()) {
            let name = format!("node-{node}");
            let client = self.ends(address.ip()).client.clone();
            let (handle, connection) =
                self.endpoint
                    .connect(Instant::now(), client, *address, &name)?;
            let link = Link::new(connection, Some(node as u16));
            self.links.insert(handle.0, link);
            self.touched.insert(handle.0);
        }
        Ok(())
    }

    /// How connections to somebody at that address are made.
    fn ends(&self, address: IpAddr) -> &Ends {
        match address == self.address {
            true => &self.near,
            false => &self.far,
        }
    }

    /// All nodes are connected.
    pub(crate) fn complete(&self) -> bool {
        let connected = self.peers.iter().filter(|peer| peer.is_some()).count();
        connected + 1 == self.me.nodes
    }

    pub(crate) fn clock_differs(&self) -> bool {
        self.me.clock_differs.get()
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// When there is something to do again.
    pub(crate) fn due(&mut self) -> Due {
        let (began, began_ns) = self.began;
        let time_ns = |at: Instant| {
            let since = at.saturating_duration_since(began);
            began_ns + since.as_nanos() as u64
        };
        let mut due = Due::default();
        for link in self.links.values_mut() {
            earlier(
                &mut due.timer_ns,
                link.connection.poll_timeout().map(time_ns),
            );
            earlier(&mut due.timer_ns, link.lost_at().map(time_ns));
            earlier(&mut due.timer_ns, link.leaves_ns());
            earlier(&mut due.message_ns, link.due_ns());
        }
        due
    }

    /// When to wake whoever is to take in a message whose time comes then; none if it is too soon to sleep.
    pub(crate) fn wakes_ns(&self, message_ns: u64) -> Option<u64> {
        self.lead.before(message_ns, clock::host_ns())
    }

    /// Whoever was to be woken in time for a message ran so much later.
    pub(crate) fn late(&mut self, late_ns: u64) {
        self.lead.learn(late_ns);
    }

    /// What the link to a node costs from now on.
    pub(crate) fn set_cost(&mut self, node: u16, cost: Cost) {
        self.costs[usize::from(node)] = cost;
        if let Some(handle) = self.peers[usize::from(node)]
            && let Some(link) = self.links.get_mut(&handle)
        {
            link.set_cost(cost, self.cut_max);
            self.touched.insert(handle);
        }
    }

    /// Nothing that is sent is answered sooner than this.
    pub(crate) fn answer_ns_min(&self) -> u64 {
        let me = usize::from(self.me.node);
        let others = self
            .costs
            .iter()
            .enumerate()
            .filter(|(node, _)| *node != me);
        2 * others
            .map(|(_, cost)| cost.latency_ns - cost.jitter_ns)
            .min()
            .unwrap_or(0)
    }

    /// Of the links to all nodes.
    pub(crate) fn link_stats(&self) -> Vec<LinkStats> {
        let stats = |peer: &Option<usize>| {
            let link = peer.and_then(|handle| self.links.get(&handle));
            link.map(Link::stats).unwrap_or_default()
        };
        self.peers.iter().map(stats).collect()
    }

    /// Does what is due by now, but for what depends on what has been received.
    pub(crate) fn handle_timeouts(&mut self) {
        self.timers_due = true;
        let now = Instant::now();
        let now_ns = clock::host_ns();
        for (handle, link) in &mut self.links {
            if link.leaves_ns().is_some_and(|at_ns| at_ns <= now_ns) {
                self.touched.insert(*handle);
            }
            link.take_due(now_ns, &mut self.news);
        }
        self.digest(now);
    }

    /// A frame for a node; its length.
    pub(crate) fn send(&mut self, node: u16, frame: Frame) -> u64 {
        let channel = match frame {
            Frame::HostCall { .. } | Frame::HostReply { .. } => Channel::Calls,
            // Bulk goes where bulk does.
            Frame::Probe { ref payload, .. } if !payload.is_empty() => Channel::Calls,
            _ => Channel::Pages,
        };
        // Nothing is sent before all nodes are connected, and after one is lost nothing matters.
        let Some(handle) = self.peers[usize::from(node)] else {
            return 0;
        };
        self.touched.insert(handle);
        match self.links.get_mut(&handle) {
            Some(link) => link.send(channel, frame),
            None => 0,
        }
    }

    pub(crate) fn next(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    /// Datagrams that were lost, and whose contents were sent again.
    pub(crate) fn datagrams_lost(&self) -> u64 {
        let lost = |link: &Link| link.connection.stats().path.lost_packets;
        self.links.values().map(lost).sum()
    }

    /// Takes in what has arrived, for somebody who had been asleep since `asleep_ns`.
    pub(crate) fn receive(&mut self, asleep_ns: Option<u64>) -> std::io::Result<()> {
        let now = Instant::now();
        self.asleep_ns = asleep_ns;
        let mut buffer = std::mem::take(&mut self.buffer);
        loop {
            let mut metas = [RecvMeta::default(); BATCHES];
            let mut slices = buffer.chunks_mut(BATCH_BYTES).map(IoSliceMut::new);
            let mut slices: [IoSliceMut<'_>; BATCHES] =
                std::array::from_fn(|_| slices.next().expect("as many as there is room for"));
            let count = match self
                .state
                .recv((&self.socket).into(), &mut slices, &mut metas)
            {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                // What a peer's host says of a datagram that it got, not of this socket.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => continue,
                Err(error) => {
                    self.buffer = buffer;
                    return Err(error);
                }
            };
            for (meta, slice) in metas.iter().zip(&slices).take(count) {
                for datagram in slice[..meta.len].chunks(meta.stride.max(1)) {
                    self.take(now, meta, BytesMut::from(datagram));
                }
            }
            // Whatever came since is announced again.
            if count < BATCHES {
                break;
            }
        }
        self.buffer = buffer;
        if std::mem::take(&mut self.timers_due) {
            self.handle_silence(now);
        }
        self.digest(now);
        self.asleep_ns = None;
        Ok(())
    }

    /// What QUIC does when it has heard nothing for a while. Not before all that has come was read: whoever was not let
    /// run for long would take the others for silent.
    fn handle_silence(&mut self, now: Instant) {
        let mut lost = Vec::new();
        for (handle, link) in &mut self.links {
            if link.connection.poll_timeout().is_some_and(|at| at <= now) {
                link.connection.handle_timeout(now);
                self.touched.insert(*handle);
            }
            if link.lost_at().is_some_and(|at| at <= now) {
                lost.push(*handle);
            }
        }
        for handle in lost {
            self.lost(now, handle, &ConnectionError::TimedOut.into());
        }
    }

    fn take(&mut self, now: Instant, meta: &RecvMeta, datagram: BytesMut) {
        let ecn = meta.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8));
        let mut response = Vec::new();
        let event = self
            .endpoint
            .handle(now, meta.addr, meta.dst_ip, ecn, datagram, &mut response);
        match event {
            None => {}
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(link) = self.links.get_mut(&handle.0) {
                    link.connection.handle_event(event);
                    self.touched.insert(handle.0);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.accept(now, incoming),
            Some(DatagramEvent::Response(transmit)) => self.respond(&transmit, &response),
        }
    }

    fn accept(&mut self, now: Instant, incoming: Incoming) {
        let mut response = Vec::new();
        let server = self.ends(incoming.remote_address().ip()).server.clone();
        let accepted = self
            .endpoint
            .accept(incoming, now, &mut response, Some(server));
        match accepted {
            Ok((handle, connection)) => {
                self.links.insert(handle.0, Link::new(connection, None));
                self.touched.insert(handle.0);
            }
            Err(error) => {
                eprintln!("span: connection refused: {}", error.cause);
                if let Some(transmit) = error.response {
                    self.respond(&transmit, &response);
                }
            }
        }
    }

    /// A lost answer is asked for again.
    fn respond(&self, transmit: &Transmit, contents: &[u8]) {
        let _ = put(&self.socket, &self.state, transmit, contents);
    }

    /// Lets connections that have something to do tell what they have to.
    fn digest(&mut self, now: Instant) {
        for handle in self.touched.clone() {
            self.exchange(handle);
            let all_here = self.complete();
            let Some(link) = self.links.get_mut(&handle) else {
                continue;
            };
            let result = link.digest(&self.me, self.asleep_ns, &mut self.news);
            if link.is_new() && all_here {
                link.refuse(now, "all nodes are here");
            }
            match result {
                Ok(()) if !link.given_up => self.welcome(now, handle),
                Ok(()) => {}
                Err(error) => self.lost(now, handle, &error),
            }
        }
    }

    /// Takes a complete connection for the one to its node.
    fn welcome(&mut self, now: Instant, handle: usize) {
        let Some(link) = self.links.get_mut(&handle) else {
            return;
        };
        let Some(node) = link.node.filter(|_| link.complete()) else {
            return;
        };
        let peer = &mut self.peers[usize::from(node)];
        match *peer {
            Some(known) if known != handle => {
                link.refuse(now, "this node is here");
            }
            Some(_) => {}
            None => {
                *peer = Some(handle);
                let seed = delay::seed(self.seed, self.me.node, node);
                link.begin(self.costs[usize::from(node)], seed, self.cut_max);
            }
        }
    }

    fn lost(&mut self, now: Instant, handle: usize, error: &NetError) {
        let Some(link) = self.links.get_mut(&handle) else {
            return;
        };
        if link.given_up {
            return;
        }
        link.give_up(now, 2, "unusable");
        let expected = link.node.filter(|node| {
            // Who is connected to from here, or is known already.
            *node < self.me.node || self.peers[usize::from(*node)] == Some(handle)
        });
        match expected {
            Some(node) => self.news.push_back(News::Lost {
                node,
                reason: error.to_string(),
            }),
            // Whoever has no certificate of this guest's is turned away, and the guest lives.
            None => eprintln!("span: connection refused: {error}"),
        }
    }

    /// The connection to a node is of no use any more.
    pub(crate) fn drop_peer(&mut self, node: u16) {
        if let Some(handle) = self.peers[usize::from(node)]
            && let Some(link) = self.links.get_mut(&handle)
        {
            link.give_up(Instant::now(), 2, "unusable");
            self.touched.insert(handle);
        }
    }

    /// What connections and the endpoint have to say to each other.
    fn exchange(&mut self, handle: usize) {
        let Some(link) = self.links.get_mut(&handle) else {
            return;
        };
        while let Some(event) = link.connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(ConnectionHandle(handle), event) {
                link.connection.handle_event(event);
            }
        }
    }

    /// Sends what there is to send, as far as the socket has room.
    pub(crate) fn transmit(&mut self) {
        let now = Instant::now();
        self.blocked = false;
        for handle in std::mem::take(&mut self.touched) {
            let Some(link) = self.links.get_mut(&handle) else {
                continue;
            };
            if let Err(error) = link.write() {
                self.lost(now, handle, &error);
            }
            let Some(link) = self.links.get_mut(&handle) else {
                continue;
            };
            if !link.transmit(now, &self.socket, &self.state) {
                self.blocked = true;
                self.touched.insert(handle);
            }
            // What it had to tell, it has told.
            let ended = link.connection.is_drained();
            self.exchange(handle);
            if ended {
                self.links.remove(&handle);
            }
        }
    }
}

fn earlier(time_ns: &mut Option<u64>, other_ns: Option<u64>) {
    *time_ns = time_ns.iter().copied().chain(other_ns).min();
}

/// Passes datagrams on to the host; only a socket without room is an error.
fn put(
    socket: &UdpSocket,
    state: &UdpSocketState,
    transmit: &Transmit,
    contents: &[u8],
) -> std::io::Result<()> {
    let ecn = transmit.ecn.map(|ecn| ecn as u8);
    let transmit = quinn_udp::Transmit {
        destination: transmit.destination,
        ecn: ecn.and_then(quinn_udp::EcnCodepoint::from_bits),
        contents: &contents[..transmit.size],
        segment_size: transmit.segment_size,
        src_ip: transmit.src_ip,
    };
    state.send(socket.into(), &transmit)
}

impl AsRawFd for Net {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests;
