//! Connections to the other nodes: QUIC with mutual TLS, certificates of this guest's own authority.
//!
//! Each pair of nodes has one connection, opened by the one with the higher index, and on it two
//! streams in each direction: one for pages, interrupts and their like, and one for host calls, so
//! that bulk data does not hold up a fault.

use super::delay::{Delayed, Timer};
use super::wire::{self, Frame, HEADER_BYTES};
use super::{Pager, Shared};
use crate::clock;
use bytes::Bytes;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use span_api::guest::{Link, Setup};
use std::cell::OnceCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// A peer that says nothing for this long is lost. Its runtime answers keep-alives even while its
/// CPUs are busy.
const IDLE: Duration = Duration::from_millis(1500);
const KEEP_ALIVE: Duration = Duration::from_millis(300);

/// Frames written with one call.
const BATCH_FRAMES: usize = 16;

/// Socket buffers: a burst of pages must not be dropped between two turns of the pager.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// A page and its header in one datagram, where the path has room for that, as loopback and jumbo
/// frames do. Batches of larger ones would not fit into what the host sends with one call.
const DATAGRAM_BYTES_MAX: u16 = 4400;

#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerError {
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    #[error("{0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    #[error("{0}")]
    NoCipher(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Connect(#[from] quinn::ConnectError),
    #[error("{0}")]
    Connection(#[from] quinn::ConnectionError),
    #[error("{0}")]
    Write(#[from] quinn::WriteError),
    #[error("{0}")]
    Read(#[from] quinn::ReadExactError),
    #[error("{0}")]
    Wire(#[from] wire::WireError),
    #[error("{0}")]
    Protocol(&'static str),
}

/// Frames on their way to one peer. What is queued is bounded by the requests that threads wait for,
/// each of which has one outstanding.
#[derive(Debug)]
pub(crate) struct Outbox(Delayed<(Bytes, Option<Bytes>)>);

impl Outbox {
    fn new(link: &Link) -> Self {
        Self(Delayed::new(link.latency_ns))
    }

    pub(crate) fn push(&self, frame: Frame) -> u64 {
        let (header, payload) = wire::encode(frame, clock::guest_ns());
        let bytes = header.len() + payload.as_ref().map_or(0, Bytes::len);
        self.0.push((header, payload));
        bytes as u64
    }

    async fn write(self: Rc<Self>, mut stream: SendStream) -> Result<(), PeerError> {
        let timer = Timer::new()?;
        loop {
            let frames = self.0.take(&timer, BATCH_FRAMES).await?;
            let parts = frames
                .into_iter()
                .flat_map(|(header, payload)| [Some(header), payload]);
            let mut batch: Vec<Bytes> = parts.flatten().collect();
            stream.write_all_chunks(&mut batch).await?;
        }
    }
}

/// Both outboxes of one peer, and the connection that they are sent on once there is one.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) pages: Rc<Outbox>,
    pub(crate) calls: Rc<Outbox>,
    connection: Rc<OnceCell<Connection>>,
}

impl Peer {
    pub(crate) fn new(link: &Link) -> Self {
        Self {
            pages: Rc::new(Outbox::new(link)),
            calls: Rc::new(Outbox::new(link)),
            connection: Rc::default(),
        }
    }

    /// Datagrams that were lost, and whose contents were sent again.
    pub(crate) fn datagrams_lost(&self) -> u64 {
        let stats = self.connection.get().map(Connection::stats);
        stats.map_or(0, |stats| stats.path.lost_packets)
    }
}

fn transport() -> Arc<quinn::TransportConfig> {
    let mut transport = quinn::TransportConfig::default();
    let idle = quinn::IdleTimeout::try_from(IDLE).expect("a short time");
    let mut acks = quinn::AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(10u32.into());
    let mut mtu = quinn::MtuDiscoveryConfig::default();
    mtu.upper_bound(DATAGRAM_BYTES_MAX);
    transport
        .initial_mtu(1452)
        .mtu_discovery_config(Some(mtu))
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .send_fairness(false)
        .stream_receive_window((8u32 << 20).into())
        .receive_window((32u32 << 20).into())
        .send_window(32 << 20)
        .max_concurrent_uni_streams(0u8.into())
        .max_concurrent_bidi_streams(2u8.into())
        .ack_frequency_config(Some(acks));
    Arc::new(transport)
}

/// Binds this node's socket.
pub(crate) fn bind(setup: &Setup) -> Result<Endpoint, PeerError> {
    let authority = CertificateDer::from(setup.authority.clone());
    let chain = vec![CertificateDer::from(setup.certificate.clone())];
    let key = PrivatePkcs8KeyDer::from(setup.key.clone());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority)?;
    let roots = Arc::new(roots);
    let provider = Arc::new(rustls::crypto::CryptoProvider {
        cipher_suites: vec![rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256],
        ..rustls::crypto::ring::default_provider()
    });
    let tls13 = &[&rustls::version::TLS13];

    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        roots.clone(),
        provider.clone(),
    )
    .build()?;
    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(tls13)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key.clone_key().into())?;
    server.alpn_protocols = vec![b"span".to_vec()];
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(tls13)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key.into())?;
    client.alpn_protocols = vec![b"span".to_vec()];

    let mut server = quinn::ServerConfig::with_crypto(Arc::new(
        quinn::crypto::rustls::QuicServerConfig::try_from(server)?,
    ));
    server.transport_config(transport());
    let mut client = quinn::ClientConfig::new(Arc::new(
        quinn::crypto::rustls::QuicClientConfig::try_from(client)?,
    ));
    client.transport_config(transport());

    let socket = std::net::UdpSocket::bind(SocketAddr::new(setup.bind, 0))?;
    grow_buffers(&socket);
    let mut endpoint = Endpoint::new(
        quinn::EndpointConfig::default(),
        Some(server),
        socket,
        Arc::new(quinn::TokioRuntime),
    )?;
    endpoint.set_default_client_config(client);
    Ok(endpoint)
}

/// As large as the host allows an ordinary user.
fn grow_buffers(socket: &std::net::UdpSocket) {
    use std::os::fd::AsRawFd;
    let bytes = SOCKET_BUFFER_BYTES as i32;
    for option in [libc::SO_RCVBUF, libc::SO_SNDBUF] {
        // SAFETY: passes an integer of the size given.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const bytes).cast(),
                size_of_val(&bytes) as u32,
            )
        };
    }
}

/// Connects to all nodes with a lower index and waits for those with a higher one.
pub(crate) async fn connect_all(
    shared: &Rc<Shared>,
    endpoint: &Endpoint,
    addresses: &[SocketAddr],
) -> Result<(), PeerError> {
    let me = usize::from(shared.me);
    for (node, address) in addresses.iter().enumerate().take(me) {
        let connection = endpoint.connect(*address, &format!("node-{node}"))?.await?;
        open(shared, connection, node as u16).await?;
    }
    let mut missing = addresses.len() - me - 1;
    while missing > 0 {
        let Some(incoming) = endpoint.accept().await else {
            return Err(PeerError::Protocol("the socket was closed"));
        };
        // Whoever has no certificate of this guest's is turned away, and the guest lives.
        match incoming.await {
            Ok(connection) => {
                accept(shared, connection).await?;
                missing -= 1;
            }
            Err(error) => eprintln!("span: connection refused: {error}"),
        }
    }
    Ok(())
}

/// Turns away whoever comes later.
pub(crate) async fn refuse_more(endpoint: Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        let from = incoming.remote_address();
        match incoming.await {
            Ok(connection) => {
                eprintln!("span: connection from {from} refused: all nodes are here");
                connection.close(1u8.into(), b"all nodes are here");
            }
            Err(error) => eprintln!("span: connection from {from} refused: {error}"),
        }
    }
}

async fn open(shared: &Rc<Shared>, connection: Connection, node: u16) -> Result<(), PeerError> {
    let hello = Frame::Hello {
        node: shared.me,
        boot: clock::boot_identity(),
    };
    let peer = shared.peer(node);
    let (mut send, mut recv) = connection.open_bi().await?;
    let (bytes, _) = wire::encode(hello, clock::host_ns());
    send.write_all(&bytes).await?;
    let sent_ns = clock::host_ns();
    let _ = peer.connection.set(connection.clone());
    let (boot, clock_ns) = read_hello(&mut recv, Some(node)).await?.1;
    if node == 0 && boot != clock::boot_identity() {
        let received_ns = clock::host_ns();
        let middle = sent_ns + (received_ns - sent_ns) / 2;
        clock::start_from(clock_ns as i64 - middle as i64);
        shared.clock_differs.set(true);
    }
    run(shared, &connection, peer.pages, send, recv, node);
    let (mut send, recv) = connection.open_bi().await?;
    // A stream exists for the other side once something was sent on it.
    let (bytes, _) = wire::encode(
        Frame::Hello {
            node: shared.me,
            boot: 0,
        },
        clock::guest_ns(),
    );
    send.write_all(&bytes).await?;
    run(shared, &connection, peer.calls, send, recv, node);
    Ok(())
}

async fn accept(shared: &Rc<Shared>, connection: Connection) -> Result<(), PeerError> {
    let (mut send, mut recv) = connection.accept_bi().await?;
    let node = read_hello(&mut recv, None).await?.0;
    if node <= shared.me || usize::from(node) >= shared.nodes {
        return Err(PeerError::Protocol(
            "a node with an impossible index connected",
        ));
    }
    let peer = shared.peer(node);
    let _ = peer.connection.set(connection.clone());
    let hello = Frame::Hello {
        node: shared.me,
        boot: clock::boot_identity(),
    };
    let (bytes, _) = wire::encode(hello, clock::guest_ns());
    send.write_all(&bytes).await?;
    run(shared, &connection, peer.pages, send, recv, node);
    let (send, mut recv) = connection.accept_bi().await?;
    read_hello(&mut recv, Some(node)).await?;
    run(shared, &connection, peer.calls, send, recv, node);
    Ok(())
}

async fn read_hello(
    recv: &mut RecvStream,
    expected: Option<u16>,
) -> Result<(u16, (u64, u64)), PeerError> {
    let Received {
        frame, clock_ns, ..
    } = read_frame(recv).await?;
    match frame {
        Frame::Hello { node, boot } if expected.is_none_or(|want| want == node) => {
            Ok((node, (boot, clock_ns)))
        }
        _ => Err(PeerError::Protocol("a peer did not introduce itself")),
    }
}

struct Received {
    frame: Frame,
    /// The sender's clock.
    clock_ns: u64,
    bytes: usize,
}

async fn read_frame(recv: &mut RecvStream) -> Result<Received, PeerError> {
    let mut bytes = [0; HEADER_BYTES];
    recv.read_exact(&mut bytes).await?;
    let header = wire::header(&bytes);
    let mut payload = vec![0; header.payload_len()?];
    if !payload.is_empty() {
        recv.read_exact(&mut payload).await?;
    }
    let bytes = HEADER_BYTES + payload.len();
    Ok(Received {
        frame: wire::decode(&header, payload.into())?,
        clock_ns: header.clock_ns(),
        bytes,
    })
}

/// Moves frames of one stream in both directions until the connection ends.
fn run(
    shared: &Rc<Shared>,
    connection: &Connection,
    outbox: Rc<Outbox>,
    send: SendStream,
    mut recv: RecvStream,
    node: u16,
) {
    let lost = move |shared: Rc<Shared>, connection: Connection, error: PeerError| {
        let reason = match connection.close_reason() {
            Some(reason) => reason.to_string(),
            None => error.to_string(),
        };
        connection.close(2u8.into(), b"unusable");
        Pager::peer_lost(&shared, node, reason);
    };
    let (to, of) = (shared.clone(), connection.clone());
    tokio::task::spawn_local(async move {
        if let Err(error) = outbox.write(send).await {
            lost(to, of, error);
        }
    });
    let (to, of) = (shared.clone(), connection.clone());
    tokio::task::spawn_local(async move {
        loop {
            match read_frame(&mut recv).await {
                Ok(Received {
                    frame,
                    clock_ns,
                    bytes,
                }) => {
                    clock::not_before(clock_ns);
                    if let Err(reason) = Pager::handle_frame(&to, node, frame, bytes) {
                        of.close(2u8.into(), b"unusable");
                        return Pager::peer_lost(&to, node, reason);
                    }
                }
                Err(error) => return lost(to, of, error),
            }
        }
    });
}
