//! Daemons on other machines, over QUIC.

use crate::link::SessionStream;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use span_api::auth::{PROOF_BYTES, Role, Token};
use span_api::link::{CLOSE_TOKEN, STREAM_LINK, STREAM_SESSION};
use span_api::tls::Identity;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;
use tokio::time::timeout;

/// Longest time to look a daemon up, and to reach it and to be admitted.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Addresses of one name that are tried, each for its share of the time.
const ADDRESSES_MAX: usize = 4;

/// What reaching daemons needs.
#[derive(Debug)]
pub(crate) struct Remote {
    identity: Identity<ClientConfig>,
    token: Token,
}

impl Remote {
    pub(crate) fn new(token: Token) -> Result<Self, String> {
        let identity = Identity::coordinator()
            .map_err(|error| format!("no certificate can be made: {error}"))?;
        Ok(Self { identity, token })
    }
}

/// A daemon that admitted this coordinator.
pub(crate) struct Reached {
    pub(crate) reader: RecvStream,
    pub(crate) writer: SendStream,
    pub(crate) session: Option<SessionStream>,
    pub(crate) endpoint: Endpoint,
    pub(crate) connection: Connection,
    pub(crate) ours: IpAddr,
    pub(crate) theirs: IpAddr,
}

/// Connects to a daemon and has both sides prove that they know the token. With `session`, opens the
/// stream for the session channel too. An error is one line.
pub(crate) async fn connect(
    remote: &Remote,
    address: &str,
    session: bool,
) -> Result<Reached, String> {
    let unusable = |error: &dyn std::fmt::Display| format!("has no usable address: {error}");
    let mut peers: Vec<SocketAddr> = timeout(CONNECT_MAX, tokio::net::lookup_host(address))
        .await
        .map_err(|error| unusable(&error))?
        .map_err(|error| unusable(&error))?
        .collect();
    // A name often has an address of each kind, of which the daemon listens on one.
    peers.sort_by_key(SocketAddr::is_ipv6);
    peers.dedup();
    peers.truncate(ADDRESSES_MAX);
    let share = CONNECT_MAX / peers.len().max(1) as u32;
    let mut last = "has no usable address".to_string();
    for peer in peers {
        match timeout(share, reach(remote, peer, session)).await {
            Ok(Ok(reached)) => return Ok(reached),
            Ok(Err(line)) => last = line,
            Err(_) => last = format!("does not answer within {} s", share.as_secs_f32()),
        }
    }
    Err(last)
}

async fn reach(remote: &Remote, peer: SocketAddr, session: bool) -> Result<Reached, String> {
    let ours = route(peer).map_err(|error| format!("cannot be reached: {error}"))?;
    let endpoint = Endpoint::client(SocketAddr::new(ours, 0))
        .map_err(|error| format!("cannot be reached: {error}"))?;
    let connection = endpoint
        .connect_with(remote.identity.config.clone(), peer, "span-node")
        .map_err(|error| format!("cannot be reached: {error}"))?
        .await
        .map_err(|error| format!("cannot be reached: {}", describe(&error)))?;

    let (writer, reader) = prove(remote, &connection).await?;
    let session = match session {
        true => Some(open_session(&connection).await?),
        false => None,
    };
    Ok(Reached {
        reader,
        writer,
        session,
        endpoint,
        connection,
        ours,
        theirs: peer.ip(),
    })
}

async fn prove(
    remote: &Remote,
    connection: &Connection,
) -> Result<(SendStream, RecvStream), String> {
    let binding = remote
        .identity
        .binding(connection)
        .ok_or("showed no certificate")?;
    let refused = |error: &dyn std::fmt::Display| match connection.close_reason() {
        Some(reason) => describe(&reason),
        None => format!("ended the conversation: {error}"),
    };
    let (mut writer, mut reader) = connection
        .open_bi()
        .await
        .map_err(|error| refused(&error))?;
    let proof = remote.token.proof(Role::Coordinator, &binding);
    let first = [&[STREAM_LINK], proof.as_slice()].concat();
    writer
        .write_all(&first)
        .await
        .map_err(|error| refused(&error))?;
    let mut proof = [0; PROOF_BYTES];
    reader
        .read_exact(&mut proof)
        .await
        .map_err(|error| refused(&error))?;
    if !remote.token.accepts(Role::Daemon, &binding, &proof) {
        return Err("does not know the token of --token-file".into());
    }
    Ok((writer, reader))
}

async fn open_session(connection: &Connection) -> Result<SessionStream, String> {
    let failed = |error: &dyn std::fmt::Display| format!("took no session stream: {error}");
    let (mut writer, reader) = connection.open_bi().await.map_err(|error| failed(&error))?;
    writer
        .write_all(&[STREAM_SESSION])
        .await
        .map_err(|error| failed(&error))?;
    Ok(SessionStream {
        reader: Box::new(reader),
        writer: Box::new(writer),
    })
}

/// This machine's address on the way to `peer`.
fn route(peer: SocketAddr) -> io::Result<IpAddr> {
    let any: SocketAddr = match peer {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    // Connecting a datagram socket sends nothing; it only looks for the way.
    let socket = UdpSocket::bind(any)?;
    socket.connect(peer)?;
    Ok(socket.local_addr()?.ip())
}

fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close)
            if close.error_code == quinn::VarInt::from_u32(CLOSE_TOKEN) =>
        {
            "refused the token of --token-file".into()
        }
        ConnectionError::ApplicationClosed(close) => {
            format!(
                "ended the conversation: {}",
                String::from_utf8_lossy(&close.reason)
            )
        }
        ConnectionError::TimedOut => "does not answer".into(),
        other => other.to_string(),
    }
}
