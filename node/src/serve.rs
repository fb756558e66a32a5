//! The daemon: conversations with coordinators elsewhere, over QUIC.
//!
//! A connection of a coordinator has two streams, each beginning with a byte that says which: the link, on which
//! both sides first prove that they know the token, and, for the first node of a guest, the session. That of
//! another daemon has one, for frames between switches ([`crate::switch`]). What a
//! peer does wrong ends its connection and is logged; guests of other connections are not touched.

use crate::Failure;
use crate::artefacts::Cache;
use crate::directory::{LockedDirectory, remove_abandoned};
use crate::link::{Link, chain};
use crate::process::adopt_orphans;
use crate::supervise::{self, Host, Outcome, Over, Session};
use crate::switch::peers::{self, Linker, Switches};
use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream, ServerConfig, VarInt};
use span_api::auth::{PROOF_BYTES, Role, Token};
use span_api::guest::{Export, Kind};
use span_api::link::{
    CLOSE_BUSY, CLOSE_DONE, CLOSE_PROTOCOL, CLOSE_STOPPING, CLOSE_TOKEN, Hello, STREAM_LINK,
    STREAM_SESSION, STREAM_SWITCH,
};
use span_api::tls::Identity;
use std::ffi::{OsStr, OsString};
use std::fs::DirBuilder;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::timeout;

/// Connections at one time, each at most one node of one guest.
const CONNECTIONS_MAX: usize = 256;

/// Longest wait for a new peer to prove that it knows the token.
const PROOF_MS_MAX: u64 = 5000;

/// Longest wait for a peer to close its connection, having got everything that was sent.
const FAREWELL_MS_MAX: u64 = 500;

/// Longest wait for connections to end when the daemon was asked to stop.
const STOP_MS_MAX: u64 = 1500;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Address to listen on, as IP:PORT; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    listen: String,
    /// File with the token that coordinators must know
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// Where kernels sent by coordinators are kept [default: $XDG_CACHE_HOME/span or ~/.cache/span]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Directory or SQLite database that guests may mount; as often as wanted [default: none]. With
    /// owners=mapped, owners, modes and kinds of files are the guest's and kept in extended attributes
    #[arg(long, value_name = "DIR[,ro][,owners=mapped]|sqlite:FILE[,ro]")]
    export: Vec<OsString>,
    /// Another daemon with the same token, as HOST:PORT, with which this one has its guests' switches in common;
    /// as often as wanted. One side of two is enough
    #[arg(long, value_name = "ADDR")]
    switch_peer: Vec<String>,
}

/// One `--switch-peer`.
fn check_peer(value: &str) -> Result<(), Failure> {
    let valid = value.rsplit_once(':').is_some_and(|(host, port)| {
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let host = !host.is_empty() && host.chars().all(|c| c.is_ascii_graphic());
        host && digits && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    match valid {
        true => Ok(()),
        false => Err(Failure::usage(format!(
            "--switch-peer {value:?}: must be HOST:PORT with a port from 1 to 65535"
        ))),
    }
}

/// One `--export`.
fn export(value: &OsStr) -> Result<Export, Failure> {
    let wrong = |why: &dyn std::fmt::Display| {
        Failure::usage(format!("--export {}: {why}", value.display()))
    };
    let (what, read_only, mapped) = Export::options(value.as_bytes());
    let (kind, directory) = Kind::split(what);
    let kind = span_api::guest::kind(kind, mapped).map_err(|why| wrong(&why))?;
    let path = Path::new(OsStr::from_bytes(directory));
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return Err(wrong(
            &"must be an absolute directory without .., or sqlite: and such a file; \
              ,ro and for a directory ,owners=mapped may follow",
        ));
    }
    match kind {
        Kind::Sqlite => span_api::guest::check_database(path).map_err(|why| wrong(&why))?,
        _ => std::fs::read_dir(path)
            .map(drop)
            .map_err(|error| wrong(&error))?,
    }
    Ok(Export {
        kind,
        directory: directory.to_vec(),
        read_only,
    })
}

/// All of them. One that must not be changed cannot lie in one that may: who renames a directory on its way changes it
/// by another name.
fn exports(values: &[OsString]) -> Result<Vec<Export>, Failure> {
    let mut exports: Vec<Export> = Vec::new();
    for value in values {
        let new = export(value)?;
        for old in &exports {
            let clash = |inner: &Export, outer: &Export| {
                inner.read_only && !outer.read_only && outer.holds(inner)
            };
            if new.kind != old.kind && new.holds(old) && old.holds(&new) {
                return Err(Failure::usage(format!(
                    "--export {}: is exported with other owners already",
                    value.display()
                )));
            }
            if clash(&new, old) || clash(old, &new) {
                let writable = [&new, old].map(|one| String::from_utf8_lossy(&one.directory));
                return Err(Failure::usage(format!(
                    "--export {}: of {} and {} one lies in the other, which may be changed",
                    value.display(),
                    writable[0],
                    writable[1]
                )));
            }
        }
        exports.push(new);
    }
    Ok(exports)
}

/// What all connections share.
#[derive(Debug)]
struct Daemon {
    identity: Identity<ServerConfig>,
    token: Token,
    cache: Cache,
    work: LockedDirectory,
    exports: Vec<Export>,
    switches: Switches,
    stopping: watch::Receiver<bool>,
}

/// Serves until a signal asks to stop; then ends every guest process first.
pub(crate) async fn run(options: Options) -> Result<(), Failure> {
    let listen: SocketAddr = options.listen.parse().map_err(|_| {
        Failure::usage(format!(
            "--listen {}: must be IP:PORT, as 0.0.0.0:7000",
            options.listen
        ))
    })?;
    let token = Token::read(&options.token_file).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|source| format!(": {source}"));
        let file = options.token_file.display();
        Failure::usage(format!(
            "--token-file {file}: {error}{}",
            cause.unwrap_or_default()
        ))
    })?;
    let exports = exports(&options.export)?;
    options
        .switch_peer
        .iter()
        .try_for_each(|peer| check_peer(peer))?;
    let state = state_directory(options.state_dir)?;
    let failed = |error: &dyn std::fmt::Display| {
        Failure::failed(format!("{} cannot be used: {error}", state.display()))
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&state)
        .map_err(|error| failed(&error))?;
    let state = state.canonicalize().map_err(|error| failed(&error))?;
    let cache = Cache::open(state.join("artefacts")).map_err(|error| failed(&error))?;
    sweep(&state);
    let work = LockedDirectory::create(state.join(format!("run-{}", std::process::id())))
        .map_err(|error| failed(&error))?;

    let mut terminate = signal(SignalKind::terminate()).map_err(|error| failed(&error))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| failed(&error))?;
    adopt_orphans().map_err(|error| failed(&error))?;

    let identity = Identity::daemon()
        .map_err(|error| Failure::failed(format!("no certificate can be made: {error}")))?;
    let endpoint = Endpoint::server(identity.config.clone(), listen)
        .map_err(|error| Failure::failed(format!("--listen {listen}: {error}")))?;
    let address = endpoint.local_addr().map_err(|error| failed(&error))?;
    // For whoever started this with port 0.
    println!("listening on {address}");
    tracing::info!("listening on {address}");

    let switches = Switches::new().map_err(|error| failed(&error))?;
    let linker = Rc::new(Linker {
        switches: switches.clone(),
        identity: Identity::coordinator()
            .map_err(|error| Failure::failed(format!("no certificate can be made: {error}")))?,
        token: token.clone(),
    });
    let (stop, stopping) = watch::channel(false);
    let daemon = Rc::new(Daemon {
        identity,
        token,
        cache,
        work,
        exports,
        switches,
        stopping: stopping.clone(),
    });
    LocalSet::new()
        .run_until(async {
            let mut connections = JoinSet::new();
            let mut links = JoinSet::new();
            for peer in options.switch_peer {
                let (linker, stopping) = (linker.clone(), stopping.clone());
                links.spawn_local(async move { linker.keep(&peer, stopping).await });
            }
            loop {
                tokio::select! {
                    incoming = endpoint.accept() => match incoming {
                        Some(incoming) => accept(incoming, &daemon, &mut connections),
                        None => break,
                    },
                    Some(_) = connections.join_next() => {}
                    _ = terminate.recv() => break,
                    _ = interrupt.recv() => break,
                }
            }
            tracing::info!("stopping");
            let _ = stop.send(true);
            let all = async {
                while connections.join_next().await.is_some() {}
                while links.join_next().await.is_some() {}
            };
            let _ = timeout(Duration::from_millis(STOP_MS_MAX), all).await;
        })
        .await;
    endpoint.close(
        VarInt::from_u32(CLOSE_STOPPING),
        b"the daemon is being stopped",
    );
    let _ = timeout(Duration::from_millis(STOP_MS_MAX), endpoint.wait_idle()).await;
    Ok(())
}

fn accept(incoming: Incoming, daemon: &Rc<Daemon>, connections: &mut JoinSet<()>) {
    let peer = incoming.remote_address();
    if connections.len() >= CONNECTIONS_MAX {
        tracing::warn!("{peer}: refused, {CONNECTIONS_MAX} connections are served already");
        incoming.refuse();
        return;
    }
    let daemon = daemon.clone();
    connections.spawn_local(async move {
        match incoming.await {
            Ok(connection) => serve(connection, peer, &daemon).await,
            Err(error) => tracing::warn!("{peer}: dropped: {error}"),
        }
    });
}

/// Why a peer did not get as far as a conversation.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("wrong token")]
    Token,
    #[error("no proof of the token within {PROOF_MS_MAX} ms")]
    Late,
    #[error("{0}")]
    Protocol(String),
}

async fn serve(connection: Connection, peer: SocketAddr, daemon: &Daemon) {
    let admitted = timeout(
        Duration::from_millis(PROOF_MS_MAX),
        admit(&connection, daemon),
    );
    let (kind, writer, reader) = match admitted.await.unwrap_or(Err(Refused::Late)) {
        Ok(admitted) => admitted,
        Err(refused) => {
            tracing::warn!("{peer}: dropped: {refused}");
            let code = match refused {
                Refused::Token => CLOSE_TOKEN,
                Refused::Late | Refused::Protocol(_) => CLOSE_PROTOCOL,
            };
            connection.close(VarInt::from_u32(code), refused.to_string().as_bytes());
            return;
        }
    };
    if kind == STREAM_SWITCH {
        let stopping = daemon.stopping.clone();
        return peers::serve(&daemon.switches, &connection, reader, writer, stopping).await;
    }
    tracing::info!("{peer}: connected");
    let hello = Hello::new(connection.local_ip().map(|address| address.to_canonical()));
    let link = match Link::open(reader, writer, hello, true).await {
        Ok(link) => link,
        Err(error) => {
            tracing::warn!("{peer}: dropped: {}", chain(&error));
            // The greeting that tells the other side why must arrive before the connection ends.
            let _ = timeout(Duration::from_millis(FAREWELL_MS_MAX), connection.closed()).await;
            connection.close(VarInt::from_u32(CLOSE_PROTOCOL), b"");
            return;
        }
    };
    let outcome = converse(&connection, link, daemon).await;
    match &outcome.over {
        Over::End | Over::Stopped => tracing::info!("{peer}: {}", outcome.over),
        Over::Lost(_) | Over::Failed(_) => tracing::warn!("{peer}: {}", outcome.over),
    }
    // The coordinator closes the connection once it has read the end of the link.
    let _ = timeout(Duration::from_millis(FAREWELL_MS_MAX), connection.closed()).await;
    connection.close(VarInt::from_u32(CLOSE_DONE), b"");
}

/// Settles who the peer is: nothing else is read from it before its proof was right.
async fn admit(
    connection: &Connection,
    daemon: &Daemon,
) -> Result<(u8, SendStream, RecvStream), Refused> {
    let protocol = |error: &dyn std::fmt::Display| Refused::Protocol(error.to_string());
    let binding = daemon
        .identity
        .binding(connection)
        .ok_or_else(|| Refused::Protocol("no certificate".into()))?;
    let (mut writer, mut reader) = connection
        .accept_bi()
        .await
        .map_err(|error| protocol(&error))?;
    let mut first = [0; 1 + PROOF_BYTES];
    reader
        .read_exact(&mut first)
        .await
        .map_err(|error| protocol(&error))?;
    let [kind, proof @ ..] = &first;
    let known = [STREAM_LINK, STREAM_SWITCH].contains(kind);
    if !known || !daemon.token.accepts(Role::Coordinator, &binding, proof) {
        return Err(Refused::Token);
    }
    let proof = daemon.token.proof(Role::Daemon, &binding);
    writer
        .write_all(&proof)
        .await
        .map_err(|error| protocol(&error))?;
    Ok((*kind, writer, reader))
}

async fn converse(connection: &Connection, link: Link, daemon: &Daemon) -> Outcome {
    let (session_sender, session) = oneshot::channel();
    let relay = tokio::task::spawn_local(relay_session(connection.clone(), session_sender));
    let work = match work_directory(daemon.work.path()) {
        Ok(work) => work,
        Err(error) => {
            let line = format!("no directory can be made: {error}");
            return Outcome {
                over: Over::Failed(line),
                run_directory: None,
            };
        }
    };
    let host = Host {
        session: Session::Stream(session),
        cache: Some(daemon.cache.clone()),
        work: Some(work.path().to_path_buf()),
        exports: Some(daemon.exports.clone()),
        switches: Some(daemon.switches.clone()),
        uplinks: None,
        stopping: daemon.stopping.clone(),
    };
    let outcome = supervise::run(link, host).await;
    relay.abort();
    outcome
}

/// Connects the session stream, should one come, with the socket that the guest process gets.
async fn relay_session(connection: Connection, session: oneshot::Sender<OwnedFd>) {
    let Ok((mut writer, mut reader)) = connection.accept_bi().await else {
        return;
    };
    let mut kind = [0];
    if reader.read_exact(&mut kind).await.is_err() || kind != [STREAM_SESSION] {
        tracing::warn!(
            "{}: dropped: a stream of an unknown kind",
            connection.remote_address()
        );
        connection.close(
            VarInt::from_u32(CLOSE_PROTOCOL),
            b"a stream of an unknown kind",
        );
        return;
    }
    let pair = std::os::unix::net::UnixStream::pair().and_then(|(ours, theirs)| {
        ours.set_nonblocking(true)?;
        Ok((UnixStream::from_std(ours)?, theirs))
    });
    let (ours, theirs) = match pair {
        Ok(pair) => pair,
        Err(error) => {
            tracing::warn!("no session channel can be made: {error}");
            connection.close(
                VarInt::from_u32(CLOSE_BUSY),
                b"no session channel can be made",
            );
            return;
        }
    };
    if session.send(theirs.into()).is_err() {
        return;
    }
    let (mut from_guest, mut to_guest) = ours.into_split();
    let out = async {
        let _ = tokio::io::copy(&mut from_guest, &mut writer).await;
        let _ = writer.finish();
    };
    let into = async {
        let _ = tokio::io::copy(&mut reader, &mut to_guest).await;
        let _ = to_guest.shutdown().await;
    };
    tokio::join!(out, into);
}

fn work_directory(base: &Path) -> std::io::Result<crate::directory::Directory> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    crate::directory::Directory::create(base.join(number.to_string()))
}

fn state_directory(option: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    option
        .or_else(|| absolute("XDG_CACHE_HOME").map(|path| path.join("span")))
        .or_else(|| absolute("HOME").map(|path| path.join(".cache/span")))
        .ok_or_else(|| {
            Failure::usage("--state-dir is needed: there is neither XDG_CACHE_HOME nor HOME")
        })
}

/// Removes what daemons left that were killed.
fn sweep(state: &Path) {
    let Ok(entries) = std::fs::read_dir(state) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(b"run-") {
            let _ = remove_abandoned(&entry.path());
        }
    }
}
