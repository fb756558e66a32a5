//! How connections are made: QUIC with mutual TLS, certificates of this guest's own authority.

use super::NetError;
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    AckFrequencyConfig, ClientConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig,
    ServerConfig, TransportConfig, congestion::CubicConfig,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use span_api::guest::Setup;
use std::sync::Arc;
use std::time::Duration;

/// A peer on another host that says nothing for this long is lost, and so is one behind a link that has been cut for as
/// long. Its runtime answers keep-alives even while its CPUs are busy.
pub(super) const IDLE: Duration = Duration::from_millis(1500);
const KEEP_ALIVE: Duration = Duration::from_millis(300);

/// A page and its header in one datagram, where the path has room for that, as loopback and jumbo
/// frames do. Batches of larger ones would not fit into what the host sends with one call.
const DATAGRAM_BYTES_MAX: u16 = 4400;

/// What may be on its way before anything was acknowledged. QUIC's own 14 KiB are fewer datagrams than
/// are acknowledged at once: a node that asks for a run of pages right after the start, or after a
/// while without traffic, would wait for the acknowledgement that the other one puts off for 25 ms.
const WINDOW_BYTES_INITIAL: u64 = 256 << 10;

pub(super) struct Configs {
    pub(super) endpoint: Arc<EndpointConfig>,
    pub(super) far: Ends,
    pub(super) near: Ends,
}

/// Both ends of connections to peers of one kind.
pub(super) struct Ends {
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: ClientConfig,
}

pub(super) fn configs(setup: &Setup) -> Result<Configs, NetError> {
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

    let server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server)?));
    let client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(client)?));
    let ends = |idle: Option<Duration>| {
        let transport = transport(idle);
        let (mut server, mut client) = (server.clone(), client.clone());
        server.transport_config(transport.clone());
        client.transport_config(transport);
        Ends {
            server: Arc::new(server),
            client,
        }
    };
    let mut endpoint = EndpointConfig::default();
    endpoint
        .max_udp_payload_size(DATAGRAM_BYTES_MAX)
        .map_err(|_| NetError::Protocol("a datagram is too long for QUIC"))?;
    Ok(Configs {
        endpoint: Arc::new(endpoint),
        far: ends((!setup.patient).then_some(IDLE)),
        // Silent only when this host does not let it run. Its end is seen by its agent.
        near: ends(None),
    })
}

fn transport(idle: Option<Duration>) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    let idle = idle.map(|idle| IdleTimeout::try_from(idle).expect("a short time"));
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(10u32.into());
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(DATAGRAM_BYTES_MAX);
    let mut congestion = CubicConfig::default();
    congestion.initial_window(WINDOW_BYTES_INITIAL);
    transport
        .congestion_controller_factory(Arc::new(congestion))
        .initial_mtu(1452)
        .mtu_discovery_config(Some(mtu))
        .max_idle_timeout(idle)
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
