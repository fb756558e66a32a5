//! A virtual ethernet between guests (`--net switch:NAME`): a switch with a port for each network device.
//!
//! A port is one end of a socket on which each message is a frame; the guest process has the other, and its
//! end is the port's. What a port does not take at once waits in a bounded queue and is dropped
//! beyond that: a guest that does not read harms nobody but itself. A frame is copied once, by the host.
//!
//! Guests with local nodes meet in a process of its own, one for each user and name ([`process`]), which
//! outlives the guest that started it but not the last of its ports. A daemon has its switches in itself, and
//! links with those of other daemons ([`peers`]).
#![allow(unsafe_code)]

pub(crate) mod peers;
pub(crate) mod process;
mod table;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt,
};
use span_api::switch::Message;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use table::{PortId, Table, To};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, watch};

/// Longest frame: the longest there can be of any device.
const FRAME_BYTES_MAX: usize = 65_535 + table::HEADER_BYTES + 4;

/// What a port's socket holds, if the host allows it, in bytes.
const SOCKET_BYTES: usize = 1 << 20;

/// What waits for a port beyond that: a burst of one connection.
const QUEUE_FRAMES_MAX: usize = 512;
const QUEUE_BYTES_MAX: usize = 4 << 20;

/// Frames taken of one port before others have their turn.
const TURN_FRAMES_MAX: usize = 64;

/// Ports of one switch.
const PORTS_MAX: usize = 1024;

/// A switch. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Switch(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    table: Table,
    ports: BTreeMap<PortId, Port>,
    next: PortId,
}

#[derive(Debug)]
struct Port {
    kind: Kind,
    /// Frames that it did not take.
    dropped: watch::Sender<u64>,
}

#[derive(Debug)]
enum Kind {
    Device(Device),
    Peer(Peer),
}

/// The same switch of another daemon. It has told all others itself.
#[derive(Debug)]
struct Peer {
    name: String,
    messages: mpsc::Sender<Message>,
}

#[derive(Debug)]
struct Device {
    socket: Arc<AsyncFd<OwnedFd>>,
    queue: VecDeque<Vec<u8>>,
    queue_bytes: usize,
    /// Something waits.
    waiting: Arc<Notify>,
}

/// A port of a device, as long as the device is there.
#[derive(Debug)]
pub(crate) struct DevicePort {
    id: PortId,
    switch: Switch,
    socket: Arc<AsyncFd<OwnedFd>>,
    waiting: Arc<Notify>,
    pub(crate) dropped: watch::Receiver<u64>,
}

/// Both ends of a port: the switch's, and the guest's.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    for end in [&ours, &theirs] {
        // The host cuts it to what it allows.
        setsockopt(end, sockopt::SndBuf, &SOCKET_BYTES)?;
    }
    Ok((ours, theirs))
}

impl Switch {
    /// A port for the device at the other end of `socket`.
    pub(crate) fn device(&self, socket: OwnedFd) -> io::Result<DevicePort> {
        nix::fcntl::fcntl(
            &socket,
            nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
        )?;
        // SAFETY: an `OwnedFd` keeps its descriptor open, and the same, as long as it lives.
        let socket = Arc::new(unsafe { AsyncFd::register(socket) }?);
        let waiting = Arc::new(Notify::new());
        let device = Device {
            socket: socket.clone(),
            queue: VecDeque::new(),
            queue_bytes: 0,
            waiting: waiting.clone(),
        };
        let (id, dropped) = self
            .add(Kind::Device(device))
            .ok_or_else(|| io::Error::other(format!("it has {PORTS_MAX} ports already")))?;
        Ok(DevicePort {
            id,
            switch: self.clone(),
            socket,
            waiting,
            dropped,
        })
    }

    /// A port for the same switch elsewhere.
    fn peer(&self, name: String, messages: mpsc::Sender<Message>) -> Option<PortId> {
        self.add(Kind::Peer(Peer { name, messages }))
            .map(|(id, _)| id)
    }

    fn add(&self, kind: Kind) -> Option<(PortId, watch::Receiver<u64>)> {
        let mut state = self.state();
        if state.ports.len() >= PORTS_MAX {
            return None;
        }
        let (dropped, seen) = watch::channel(0);
        let id = state.next;
        state.next += 1;
        state.ports.insert(id, Port { kind, dropped });
        Some((id, seen))
    }

    fn remove(&self, id: PortId) {
        let mut state = self.state();
        state.ports.remove(&id);
        state.table.forget(id);
    }

    /// Whether there is a device on it.
    pub(crate) fn is_used(&self) -> bool {
        let state = self.state();
        let mut ports = state.ports.values();
        ports.any(|port| matches!(port.kind, Kind::Device(_)))
    }

    /// Passes on a frame that came by a port.
    fn forward(&self, from: PortId, frame: &[u8], now: Instant) {
        let state = &mut *self.state();
        // It came when the port was gone.
        let Some(port) = state.ports.get(&from) else {
            return;
        };
        let from_peer = matches!(port.kind, Kind::Peer(_));
        match state.table.forward(from, frame, now) {
            To::Nobody => {}
            To::Port(to) => {
                if let Some(port) = state.ports.get_mut(&to) {
                    port.send(frame, from_peer);
                }
            }
            To::All => {
                for (to, port) in &mut state.ports {
                    if *to != from {
                        port.send(frame, from_peer);
                    }
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Port {
    fn send(&mut self, frame: &[u8], from_peer: bool) {
        let taken = match &mut self.kind {
            // Whatever way daemons are linked, nothing goes round in circles.
            Kind::Peer(_) if from_peer => true,
            Kind::Peer(peer) => peer.send(frame),
            Kind::Device(device) => device.send(frame),
        };
        if !taken {
            self.dropped.send_modify(|dropped| *dropped += 1);
        }
    }
}

impl Peer {
    /// False if there is no room for it.
    fn send(&self, frame: &[u8]) -> bool {
        let message = Message::Frame {
            switch: self.name.clone(),
            data: frame.to_vec(),
        };
        self.messages.try_send(message).is_ok()
    }
}

impl Device {
    /// False if there is no room for it.
    fn send(&mut self, frame: &[u8]) -> bool {
        if self.queue.is_empty() {
            match put(&self.socket, frame) {
                Ok(()) => return true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The device is gone, or about to be.
                Err(_) => return true,
            }
        }
        let bytes = self.queue_bytes + frame.len();
        if self.queue.len() >= QUEUE_FRAMES_MAX || bytes > QUEUE_BYTES_MAX {
            return false;
        }
        self.queue_bytes = bytes;
        self.queue.push_back(frame.to_vec());
        self.waiting.notify_one();
        true
    }

    /// Sends what waits; false if some still does.
    fn flush(&mut self) -> bool {
        while let Some(frame) = self.queue.front() {
            match put(&self.socket, frame) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Ok(()) | Err(_) => {}
            }
            self.queue_bytes -= frame.len();
            self.queue.pop_front();
        }
        true
    }
}

fn put(socket: &AsyncFd<OwnedFd>, frame: &[u8]) -> io::Result<()> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    send(socket.get_ref().as_raw_fd(), frame, flags)?;
    Ok(())
}

impl DevicePort {
    /// Serves the port until its device is gone.
    pub(crate) async fn serve(&self) {
        tokio::select! {
            () = self.take() => {}
            () = self.give() => {}
        }
    }

    /// Takes frames of the device.
    async fn take(&self) {
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        loop {
            let Ok(mut ready) = self.socket.readable().await else {
                return;
            };
            let now = Instant::now();
            for _ in 0..TURN_FRAMES_MAX {
                let fd = self.socket.get_ref().as_raw_fd();
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
                match recv(fd, &mut buffer, flags) {
                    Ok(0) => return,
                    Ok(bytes) => {
                        // One that is longer is no frame of a device.
                        if let Some(frame) = buffer.get(..bytes) {
                            self.switch.forward(self.id, frame, now);
                        }
                    }
                    Err(nix::errno::Errno::EAGAIN) => {
                        ready.clear_ready();
                        break;
                    }
                    Err(nix::errno::Errno::EINTR) => {}
                    Err(_) => return,
                }
            }
            drop(ready);
            tokio::task::yield_now().await;
        }
    }

    /// Gives the device what waits for it.
    async fn give(&self) {
        loop {
            self.waiting.notified().await;
            while !self.flush() {
                let Ok(mut ready) = self.socket.writable().await else {
                    return;
                };
                if !self.flush() {
                    ready.clear_ready();
                }
            }
        }
    }

    fn flush(&self) -> bool {
        match self.switch.state().ports.get_mut(&self.id) {
            Some(Port {
                kind: Kind::Device(device),
                ..
            }) => device.flush(),
            _ => true,
        }
    }
}

impl Drop for DevicePort {
    fn drop(&mut self) {
        self.switch.remove(self.id);
    }
}

/// A line for the guest's log about frames that were dropped.
pub(crate) fn dropped_line(unit: u8, name: &str, frames: u64) -> Vec<u8> {
    format!("span: vec{unit}: switch {name} had to drop {frames} frames for it so far\n")
        .into_bytes()
}
