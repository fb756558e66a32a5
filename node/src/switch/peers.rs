//! The switches of a daemon, and its links with other daemons' (`--switch-peer`).
//!
//! Daemons that are linked have the switches that both have a device on in common. What came by a link goes to
//! devices only, never on to another daemon: so frames cannot go round in circles, and daemons that are
//! to have a switch in common are linked with each other, each pair by one link, whichever side made it.

use super::process::Membership;
use super::{Switch, dropped_line, pair};
use crate::link::{Sender, chain};
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream, VarInt};
use span_api::auth::{PROOF_BYTES, Role, Token};
use span_api::codec;
use span_api::link::{
    CLOSE_DONE, CLOSE_PROTOCOL, FromAgent, HEARTBEAT_INTERVAL_MS, HEARTBEAT_LOST_MS, Hello,
    STREAM_SWITCH,
};
use span_api::switch::{DaemonId, Greeting, Message, SWITCHES_MAX, is_name};
use span_api::tls::Identity;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

/// Frames that wait for a link.
const LINK_FRAMES_MAX: usize = 256;

/// Longest time to reach a daemon and to be greeted.
const CONNECT_MS_MAX: u64 = 5000;

/// How long a daemon that cannot be reached is left alone.
const RETRY_MS: u64 = 1000;

/// How often a guest is told of dropped frames.
const DROPPED_INTERVAL: Duration = Duration::from_secs(1);

/// All switches of a daemon. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Switches(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    id: DaemonId,
    board: Mutex<Board>,
    /// What the board has, for those who tell it to others.
    names: watch::Sender<Vec<String>>,
}

#[derive(Debug, Default)]
struct Board {
    switches: BTreeMap<String, Switch>,
    links: BTreeMap<DaemonId, Link>,
}

/// A link with another daemon.
#[derive(Debug)]
struct Link {
    connection: Connection,
    /// The daemon that connected.
    maker: DaemonId,
    messages: mpsc::Sender<Message>,
    /// What the other one has.
    theirs: BTreeSet<String>,
    ports: BTreeMap<String, u64>,
}

impl Switches {
    pub(crate) fn new() -> std::io::Result<Self> {
        let mut id = DaemonId::default();
        std::fs::File::open("/dev/urandom")?.read_exact(&mut id)?;
        Ok(Self(Arc::new(Shared {
            id,
            board: Mutex::default(),
            names: watch::channel(Vec::new()).0,
        })))
    }

    /// Connects device `unit` with the switch `name`: the device's end of a port. An error is one line.
    pub(crate) fn join(
        &self,
        name: &str,
        unit: u8,
        sender: &Sender,
    ) -> Result<(OwnedFd, Membership), String> {
        let line = |error: std::io::Error| error.to_string();
        let (ours, theirs) = pair().map_err(line)?;
        let port = {
            let mut board = self.board();
            if board.switches.len() >= SWITCHES_MAX && !board.switches.contains_key(name) {
                return Err(format!("its daemon has {SWITCHES_MAX} switches already"));
            }
            let switch = board.switches.entry(name.to_string()).or_default().clone();
            let port = switch.device(ours);
            self.tell(&mut board);
            port.map_err(line)?
        };
        let (switches, name, sender) = (self.clone(), name.to_string(), sender.clone());
        let serve = async move {
            let mut dropped = port.dropped.clone();
            let tell = async {
                while dropped.changed().await.is_ok() {
                    let line = dropped_line(unit, &name, *dropped.borrow_and_update());
                    // Not to wait: this is to notice the end.
                    let _ = sender.try_send(FromAgent::Log(line));
                    sleep(DROPPED_INTERVAL).await;
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = port.serve() => {}
                () = tell => {}
            }
            drop(port);
            switches.tell(&mut switches.board());
        };
        Ok((theirs, Membership::new(tokio::spawn(serve))))
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.0.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets switches without devices, and tells all links what there is.
    fn tell(&self, board: &mut Board) {
        board.switches.retain(|_, switch| switch.is_used());
        let Board { switches, links } = board;
        for link in links.values_mut() {
            link.match_ports(switches);
        }
        let names: Vec<String> = switches.keys().cloned().collect();
        self.0.names.send_if_modified(|known| {
            let changed = *known != names;
            *known = names;
            changed
        });
    }

    /// Adds a link, of which there is one with each daemon: that of the daemon with the smaller number, if both
    /// have made one. An error is one line.
    fn add(&self, daemon: DaemonId, link: Link) -> Result<(), String> {
        let mut board = self.board();
        if let Some(old) = board.links.get(&daemon) {
            let first = self.0.id.min(daemon);
            if old.maker == link.maker || link.maker != first {
                return Err(LINKED.into());
            }
            old.connection
                .close(VarInt::from_u32(CLOSE_DONE), LINKED.as_bytes());
            self.remove(&mut board, daemon);
        }
        board.links.insert(daemon, link);
        self.tell(&mut board);
        Ok(())
    }

    fn remove(&self, board: &mut Board, daemon: DaemonId) {
        if let Some(link) = board.links.remove(&daemon) {
            for (name, port) in link.ports {
                if let Some(switch) = board.switches.get(&name) {
                    switch.remove(port);
                }
            }
        }
    }

    /// Serves a link until it ends. An error is one line.
    async fn serve(
        &self,
        connection: &Connection,
        mut reader: RecvStream,
        mut writer: SendStream,
        made_here: bool,
    ) -> Result<(), String> {
        let greeting = Greeting {
            hello: Hello::new(None),
            daemon: self.0.id,
        };
        let exchange = async {
            codec::write_async(&mut writer, &greeting).await?;
            codec::read_async::<Greeting>(&mut reader).await
        };
        let theirs = timeout(Duration::from_millis(CONNECT_MS_MAX), exchange)
            .await
            .map_err(|_| format!("it said nothing within {CONNECT_MS_MAX} ms"))?
            .map_err(|error| chain(&error))?
            .ok_or("it ended the conversation")?;
        theirs.hello.check().map_err(|error| error.to_string())?;
        if theirs.daemon == self.0.id {
            return Err("it is this daemon itself".into());
        }
        let (messages, queue) = mpsc::channel(LINK_FRAMES_MAX);
        let link = Link {
            connection: connection.clone(),
            maker: if made_here { self.0.id } else { theirs.daemon },
            messages: messages.clone(),
            theirs: BTreeSet::new(),
            ports: BTreeMap::new(),
        };
        self.add(theirs.daemon, link)?;
        tracing::info!("{}: switches are linked", connection.remote_address());
        let result = tokio::select! {
            result = self.read(reader, theirs.daemon) => result,
            result = write(writer, queue, self.0.names.subscribe()) => result,
        };
        let mut board = self.board();
        // Another one may have taken its place.
        let own = |link: &Link| link.messages.same_channel(&messages);
        if board.links.get(&theirs.daemon).is_some_and(own) {
            self.remove(&mut board, theirs.daemon);
        }
        result
    }

    async fn read(&self, mut reader: RecvStream, daemon: DaemonId) -> Result<(), String> {
        loop {
            let message = codec::read_async::<Message>(&mut reader);
            let message = timeout(Duration::from_millis(HEARTBEAT_LOST_MS), message)
                .await
                .map_err(|_| format!("nothing was heard for {HEARTBEAT_LOST_MS} ms"))?
                .map_err(|error| chain(&error))?;
            match message {
                None => return Ok(()),
                Some(Message::Heartbeat) => {}
                Some(Message::Names(names)) => {
                    if names.len() > SWITCHES_MAX || !names.iter().all(|name| is_name(name)) {
                        return Err("it has switches that there cannot be".into());
                    }
                    let Board { switches, links } = &mut *self.board();
                    if let Some(link) = links.get_mut(&daemon) {
                        link.theirs = names.into_iter().collect();
                        link.match_ports(switches);
                    }
                }
                Some(Message::Frame { switch, data }) => {
                    let board = self.board();
                    let link = board.links.get(&daemon);
                    let port = link.and_then(|link| link.ports.get(&switch));
                    // Otherwise it was sent before that was known there.
                    if let (Some(port), Some(switch)) = (port, board.switches.get(&switch)) {
                        switch.forward(*port, &data, Instant::now());
                    }
                }
            }
        }
    }
}

const LINKED: &str = "these daemons are linked already";

impl Link {
    /// Gives each switch that both have a port, and those that not both have any more none.
    fn match_ports(&mut self, switches: &BTreeMap<String, Switch>) {
        let theirs = &self.theirs;
        self.ports.retain(|name, port| {
            let switch = switches.get(name);
            let common = switch.is_some() && theirs.contains(name);
            if let (Some(switch), false) = (switch, common) {
                switch.remove(*port);
            }
            common
        });
        for (name, switch) in switches {
            if self.theirs.contains(name)
                && !self.ports.contains_key(name)
                && let Some(port) = switch.peer(name.clone(), self.messages.clone())
            {
                self.ports.insert(name.clone(), port);
            }
        }
    }
}

async fn write(
    mut writer: SendStream,
    mut queue: mpsc::Receiver<Message>,
    mut names: watch::Receiver<Vec<String>>,
) -> Result<(), String> {
    let interval = Duration::from_millis(HEARTBEAT_INTERVAL_MS);
    names.mark_changed();
    loop {
        let message = tokio::select! {
            biased;
            Ok(()) = names.changed() => Message::Names(names.borrow_and_update().clone()),
            Some(message) = queue.recv() => message,
            () = sleep(interval) => Message::Heartbeat,
        };
        codec::write_async(&mut writer, &message)
            .await
            .map_err(|error| chain(&error))?;
    }
}

/// Serves a link that another daemon has made, until it ends.
pub(crate) async fn serve(
    switches: &Switches,
    connection: &Connection,
    reader: RecvStream,
    writer: SendStream,
    mut stopping: watch::Receiver<bool>,
) {
    let peer = connection.remote_address();
    tokio::select! {
        result = switches.serve(connection, reader, writer, false) => match result {
            Ok(()) => tracing::info!("{peer}: switches are linked no more"),
            Err(line) => {
                tracing::info!("{peer}: switches are linked no more: {line}");
                connection.close(VarInt::from_u32(CLOSE_PROTOCOL), line.as_bytes());
            }
        },
        _ = stopping.wait_for(|stopping| *stopping) => {}
    }
    connection.close(VarInt::from_u32(CLOSE_DONE), b"");
}

/// What linking with other daemons needs.
#[derive(Debug)]
pub(crate) struct Linker {
    pub(crate) switches: Switches,
    pub(crate) identity: Identity<ClientConfig>,
    pub(crate) token: Token,
}

impl Linker {
    /// Keeps a link with the daemon at `address` (HOST:PORT) until this one is to stop.
    pub(crate) async fn keep(&self, address: &str, mut stopping: watch::Receiver<bool>) {
        let mut said = String::new();
        let keep = async {
            loop {
                let line = match self.link(address).await {
                    Ok(()) => "it ended the conversation".into(),
                    Err(line) => line,
                };
                // Once for each reason: it is tried again and again.
                if line != said {
                    tracing::warn!("--switch-peer {address}: {line}");
                    said = line;
                }
                sleep(Duration::from_millis(RETRY_MS)).await;
            }
        };
        tokio::select! {
            () = keep => {}
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
    }

    async fn link(&self, address: &str) -> Result<(), String> {
        let failed = |error: &dyn std::fmt::Display| format!("it cannot be reached: {error}");
        let mut peers: Vec<SocketAddr> = tokio::net::lookup_host(address)
            .await
            .map_err(|error| failed(&error))?
            .collect();
        peers.sort_by_key(SocketAddr::is_ipv6);
        let peer = *peers.first().ok_or("it has no address")?;
        let any: SocketAddr = match peer {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => ([0u16; 8], 0).into(),
        };
        let endpoint = Endpoint::client(any).map_err(|error| failed(&error))?;
        let reach = async {
            let connection = endpoint
                .connect_with(self.identity.config.clone(), peer, "span-node")
                .map_err(|error| failed(&error))?
                .await
                .map_err(|error| failed(&error))?;
            let (writer, reader) = self.prove(&connection).await?;
            Ok::<_, String>((connection, reader, writer))
        };
        let (connection, reader, writer) = timeout(Duration::from_millis(CONNECT_MS_MAX), reach)
            .await
            .map_err(|_| format!("it does not answer within {CONNECT_MS_MAX} ms"))??;
        let result = self.switches.serve(&connection, reader, writer, true).await;
        // What the other side says is better than that the stream has ended.
        let result = match (result, connection.close_reason()) {
            (Err(_), Some(quinn::ConnectionError::ApplicationClosed(close)))
                if !close.reason.is_empty() =>
            {
                Err(crate::link::shown(&close.reason))
            }
            (result, _) => result,
        };
        connection.close(VarInt::from_u32(CLOSE_DONE), b"");
        endpoint.wait_idle().await;
        result
    }

    async fn prove(&self, connection: &Connection) -> Result<(SendStream, RecvStream), String> {
        let binding = self
            .identity
            .binding(connection)
            .ok_or("it showed no certificate")?;
        let refused = |_: &dyn std::fmt::Display| match connection.close_reason() {
            Some(quinn::ConnectionError::ApplicationClosed(close)) => {
                crate::link::shown(&close.reason)
            }
            _ => "it ended the conversation".to_string(),
        };
        let (mut writer, mut reader) = connection
            .open_bi()
            .await
            .map_err(|error| refused(&error))?;
        let proof = self.token.proof(Role::Coordinator, &binding);
        let first = [&[STREAM_SWITCH], proof.as_slice()].concat();
        writer
            .write_all(&first)
            .await
            .map_err(|error| refused(&error))?;
        let mut proof = [0; PROOF_BYTES];
        reader
            .read_exact(&mut proof)
            .await
            .map_err(|error| refused(&error))?;
        match self.token.accepts(Role::Daemon, &binding, &proof) {
            true => Ok((writer, reader)),
            false => Err("it does not know the token".into()),
        }
    }
}
