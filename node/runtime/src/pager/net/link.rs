//! One connection: two streams in each direction, one for pages, interrupts and their like, and one for
//! host calls, so that bulk data does not hold up a fault.
//!
//! On each stream both sides first say who they are ([`Frame::Hello`]), on the second only who opened it.

use super::{Introduction, NetError, News, put};
use crate::pager::arrival::{Arrivals, Seen, Stamp};
use crate::pager::delay::{self, Wire};
use crate::pager::wire::{self, Frame, HEADER_BYTES};
use crate::{clock, spin, uplinks};
use bytes::{Bytes, BytesMut};
use quinn_proto::{Connection, Dir, Event, StreamEvent, StreamId, Transmit};
use quinn_udp::UdpSocketState;
use span_api::guest::{Link as Cost, LinkStats};
use std::collections::VecDeque;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

/// Frames of host calls, and all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channel {
    Pages,
    Calls,
}

const CHANNELS: [Channel; 2] = [Channel::Pages, Channel::Calls];

/// Datagrams of one size sent with one call.
const SEGMENTS_MAX: usize = 10;

#[derive(Debug)]
struct Stream {
    id: StreamId,
    /// The other side has said who it is.
    introduced: bool,
    /// The beginning of a frame.
    received: BytesMut,
    /// What is due and not written yet.
    due: VecDeque<Bytes>,
}

#[derive(Debug)]
pub(super) struct Link {
    pub(super) connection: Connection,
    /// Who is at the other end: known from the start if it was connected to from here.
    pub(super) node: Option<u16>,
    opened_here: bool,
    streams: Vec<Stream>,
    /// Where frames wait until they leave.
    wire: Wire<(Bytes, Option<Bytes>), { CHANNELS.len() }>,
    /// It was cut, and is to be healed before.
    lost_at: Option<Instant>,
    /// Where those of the other side wait until their time has come.
    arrivals: Arrivals<Received, { CHANNELS.len() }>,
    /// What the socket had no room for.
    unsent: Option<(Transmit, Vec<u8>)>,
    /// Its other side has shown a certificate of this guest's.
    connected: bool,
    /// Nothing of it is passed on any more.
    pub(super) given_up: bool,
}

impl Link {
    pub(super) fn new(connection: Connection, node: Option<u16>) -> Self {
        Self {
            connection,
            node,
            opened_here: node.is_some(),
            streams: Vec::new(),
            wire: Wire::new(0),
            lost_at: None,
            arrivals: Arrivals::new(),
            unsent: None,
            connected: false,
            given_up: false,
        }
    }

    /// It was opened by the other side, which has not said yet who it is.
    pub(super) fn is_new(&self) -> bool {
        self.connected && self.node.is_none() && !self.given_up
    }

    /// Both streams are there.
    pub(super) fn complete(&self) -> bool {
        self.streams.len() == CHANNELS.len() && self.streams.iter().all(|stream| stream.introduced)
    }

    /// It is the one to its node.
    pub(super) fn begin(&mut self, cost: Cost, seed: u64, cut_max: Option<Duration>) {
        self.wire = Wire::new(seed);
        self.set_cost(cost, cut_max);
    }

    /// What it costs from now on, and for how long it may be cut.
    pub(super) fn set_cost(&mut self, cost: Cost, cut_max: Option<Duration>) {
        match (self.wire.link().cut, cost.cut) {
            (false, true) => self.lost_at = cut_max.map(|cut_max| Instant::now() + cut_max),
            (true, false) => {
                self.lost_at = None;
                // QUIC has tried in vain ever less often: it would not try again for about as long as the cut was.
                self.connection.ping();
            }
            _ => {}
        }
        self.wire.set(cost, cost.queue.and_then(uplinks::queue));
    }

    /// When its nodes have lost each other, since it is cut.
    pub(super) fn lost_at(&self) -> Option<Instant> {
        self.lost_at.filter(|_| !self.given_up)
    }

    /// Of what is sent, and of what has come.
    pub(super) fn stats(&self) -> LinkStats {
        LinkStats {
            arrived: self.arrivals.stats().clone(),
            ..self.wire.stats().clone()
        }
    }

    pub(super) fn give_up(&mut self, now: Instant, code: u8, why: &'static str) {
        self.given_up = true;
        self.connection
            .close(now, code.into(), Bytes::from_static(why.as_bytes()));
    }

    /// Turns away who has connected without need; the guest lives.
    pub(super) fn refuse(&mut self, now: Instant, why: &'static str) {
        let from = self.connection.remote_address();
        eprintln!("span: connection from {from} refused: {why}");
        self.give_up(now, 1, why);
    }

    /// Puts a frame into the queue; its length.
    pub(super) fn send(&mut self, channel: Channel, frame: Frame) -> u64 {
        let (header, payload) = wire::encode(frame, clock::guest_ns());
        let bytes = (HEADER_BYTES + payload.as_ref().map_or(0, Bytes::len)) as u64;
        let now_ns = match self.wire.is_free(channel as usize) {
            true => 0,
            false => clock::host_ns(),
        };
        self.wire
            .push(now_ns, channel as usize, bytes, |planned_ns| {
                (header.delayed(planned_ns), payload)
            });
        bytes
    }

    /// When a frame leaves that has to wait.
    pub(super) fn leaves_ns(&self) -> Option<u64> {
        self.wire.leaves_ns().filter(|_| !self.given_up)
    }

    /// When the time of a frame has come that has been received.
    pub(super) fn due_ns(&self) -> Option<u64> {
        self.arrivals.due_ns().filter(|_| !self.given_up)
    }

    /// Takes in frames whose time has come.
    pub(super) fn take_due(&mut self, now_ns: u64, news: &mut VecDeque<News>) {
        let Some(from) = self.node.filter(|_| !self.given_up) else {
            return;
        };
        while let Some(received) = self.arrivals.take(now_ns) {
            news.push_back(News::Frame { from, received });
        }
    }

    /// Takes what the connection has to tell.
    pub(super) fn digest(
        &mut self,
        me: &Introduction,
        asleep_ns: Option<u64>,
        news: &mut VecDeque<News>,
    ) -> Result<(), NetError> {
        while let Some(event) = self.connection.poll() {
            match event {
                Event::Connected => {
                    self.connected = true;
                    if self.opened_here {
                        self.open(me)?;
                    }
                }
                Event::Stream(StreamEvent::Opened { dir: Dir::Bi }) if !self.given_up => {
                    while let Some(id) = self.connection.streams().accept(Dir::Bi) {
                        self.add(id);
                        self.read(self.streams.len() - 1, me, asleep_ns, news)?;
                    }
                }
                Event::Stream(StreamEvent::Readable { id }) if !self.given_up => {
                    if let Some(index) = self.streams.iter().position(|stream| stream.id == id) {
                        self.read(index, me, asleep_ns, news)?;
                    }
                }
                Event::ConnectionLost { reason } => return Err(reason.into()),
                _ => {}
            }
        }
        Ok(())
    }

    fn add(&mut self, id: StreamId) {
        self.streams.push(Stream {
            id,
            introduced: false,
            received: BytesMut::new(),
            due: VecDeque::new(),
        });
    }

    /// Opens the next stream. For the other side it exists once something was sent on it.
    fn open(&mut self, me: &Introduction) -> Result<(), NetError> {
        let id = self.connection.streams().open(Dir::Bi);
        self.add(id.ok_or(NetError::Protocol("the peer allows no more streams"))?);
        let hello = match self.streams.len() {
            1 => {
                me.sent_ns.set(clock::host_ns());
                wire::encode(me.hello(), clock::host_ns()).0
            }
            _ => wire::encode(me.hello(), clock::guest_ns()).0,
        };
        if let Some(stream) = self.streams.last_mut() {
            stream.due.push_back(hello.delayed(0));
        }
        Ok(())
    }

    fn read(
        &mut self,
        index: usize,
        me: &Introduction,
        asleep_ns: Option<u64>,
        news: &mut VecDeque<News>,
    ) -> Result<(), NetError> {
        let stream = &mut self.streams[index];
        let mut received = self.connection.recv_stream(stream.id);
        let mut chunks = received
            .read(true)
            .map_err(|_| NetError::Protocol("a stream was closed"))?;
        let ended = loop {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) => stream.received.extend_from_slice(&chunk.bytes),
                Ok(None) => break true,
                Err(quinn_proto::ReadError::Blocked) => break false,
                Err(quinn_proto::ReadError::Reset(_)) => break true,
            }
        };
        // Whatever is to be sent is asked for after this anyway.
        let _ = chunks.finalize();
        loop {
            let stream = &mut self.streams[index];
            let Some(received) = next_frame(&mut stream.received)? else {
                break;
            };
            if !stream.introduced {
                self.introduced(index, me, &received)?;
                continue;
            }
            let Some(from) = self.node else { break };
            match received.planned_ns == 0 && self.arrivals.is_empty(index) {
                true => news.push_back(News::Frame { from, received }),
                false => self.put(index, received, asleep_ns),
            }
        }
        if ended {
            return Err(NetError::Protocol("a stream ended"));
        }
        Ok(())
    }

    /// Keeps a frame until its time has come.
    fn put(&mut self, channel: usize, received: Received, asleep_ns: Option<u64>) {
        let stamp = Stamp {
            sent_ns: received.clock_ns,
            planned_ns: received.planned_ns,
            bytes: received.bytes,
        };
        let host_ns = clock::host_ns();
        // What was sent last takes this long to get there, and what answers it leaves so much later.
        let there_ns = self.wire.link().latency_ns;
        let ahead_ns = delay::ahead_ns(received.planned_ns, received.bytes as u64);
        let delays_ns = there_ns.saturating_add(received.planned_ns - ahead_ns);
        let slept_ns = host_ns.saturating_sub(delays_ns);
        let slept = |since_ns: u64| since_ns + spin::sleeps_early_ns() < slept_ns;
        let seen = Seen {
            host_ns,
            guest_ns: clock::guest_ns(),
            slept: asleep_ns.is_some_and(slept),
        };
        self.arrivals.put(channel, stamp, seen, received);
    }

    /// The first frame of a stream has come.
    fn introduced(
        &mut self,
        index: usize,
        me: &Introduction,
        received: &Received,
    ) -> Result<(), NetError> {
        let Frame::Hello { node, boot } = received.frame else {
            return Err(NetError::Protocol("a peer did not introduce itself"));
        };
        match self.node {
            Some(expected) if expected != node => {
                return Err(NetError::Protocol("a peer is not who it should be"));
            }
            None if node <= me.node || usize::from(node) >= me.nodes => {
                return Err(NetError::Protocol(
                    "a node with an impossible index connected",
                ));
            }
            _ => {}
        }
        self.node = Some(node);
        self.streams[index].introduced = true;
        if boot != me.boot {
            self.arrivals.clocks_differ();
        }
        match (self.opened_here, index) {
            (true, 0) => {
                me.met(node, boot, received.clock_ns);
                self.open(me)?;
                // The other side has nothing to say on it but answers.
                self.streams[1].introduced = true;
            }
            (false, 0) => {
                let (hello, _) = wire::encode(me.hello(), clock::guest_ns());
                self.streams[0].due.push_back(hello.delayed(0));
            }
            _ => {}
        }
        Ok(())
    }

    /// Gives the connection what is due, as far as it has room.
    pub(super) fn write(&mut self) -> Result<(), NetError> {
        if self.given_up {
            return Ok(());
        }
        for (channel, stream) in self.streams.iter_mut().enumerate() {
            while let Some((header, payload)) = self.wire.take(channel, clock::host_ns) {
                stream.due.push_back(header);
                stream.due.extend(payload);
            }
            while !stream.due.is_empty() {
                let mut send = self.connection.send_stream(stream.id);
                match send.write_chunks(stream.due.make_contiguous()) {
                    Ok(written) => drop(stream.due.drain(..written.chunks)),
                    Err(quinn_proto::WriteError::Blocked) => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

impl Link {
    /// Sends what the connection has to send; whether the socket took everything.
    pub(super) fn transmit(
        &mut self,
        now: Instant,
        socket: &UdpSocket,
        state: &UdpSocketState,
    ) -> bool {
        let segments = state.max_gso_segments().min(SEGMENTS_MAX);
        loop {
            let next = self.unsent.take().or_else(|| {
                let mut contents = Vec::new();
                let transmit = self
                    .connection
                    .poll_transmit(now, segments, &mut contents)?;
                Some((transmit, contents))
            });
            let Some((transmit, contents)) = next else {
                return true;
            };
            if self.wire.link().cut {
                let segment_bytes = transmit.segment_size.unwrap_or(transmit.size).max(1);
                let datagrams = transmit.size.div_ceil(segment_bytes);
                self.wire.dropped(datagrams as u64);
                continue;
            }
            if put(socket, state, &transmit, &contents).is_err() {
                self.unsent = Some((transmit, contents));
                return false;
            }
        }
    }
}

/// A frame as it came.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) frame: Frame,
    /// The sender's clock.
    pub(crate) clock_ns: u64,
    /// By how much the link delays it.
    pub(crate) planned_ns: u64,
    pub(crate) bytes: usize,
}

fn next_frame(from: &mut BytesMut) -> Result<Option<Received>, NetError> {
    let Some(bytes) = from.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let header = wire::header(bytes);
    let bytes = HEADER_BYTES + header.payload_len()?;
    if from.len() < bytes {
        return Ok(None);
    }
    let payload = from.split_to(bytes).freeze().slice(HEADER_BYTES..);
    Ok(Some(Received {
        frame: wire::decode(&header, payload)?,
        clock_ns: header.clock_ns(),
        planned_ns: header.planned_ns(),
        bytes,
    }))
}
