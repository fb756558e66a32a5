//! The daemon's side of the authenticated transport ([`span_api::auth`] says how and why).

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{IdleTimeout, ServerConfig, TransportConfig, VarInt};
use rustls::DigitallySignedStruct;
use rustls::DistinguishedName;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use span_api::auth::{ALPN, Binding, EXPORTER_LABEL, PROOF_BYTES, fingerprint};
use std::sync::Arc;
use std::time::Duration;

/// Connections that say nothing for this long are dropped; the link's own heartbeat is stricter.
const IDLE_MS_MAX: u64 = 5000;

/// The link and the session.
const STREAMS_MAX: u32 = 2;

#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) config: ServerConfig,
    fingerprint: [u8; 32],
}

impl Identity {
    /// Makes a certificate anew.
    pub(crate) fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let certified = rcgen::generate_simple_self_signed(["span-node".to_string()])?;
        let certificate: CertificateDer<'static> = certified.cert.der().clone();
        let fingerprint = fingerprint(&certificate);
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der())?;

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(AnyClient::new(&provider)))
            .with_single_cert(vec![certificate], key)?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        // No resumption: a resumed connection has no certificates to bind the proof to.
        tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;

        let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
        let mut transport = TransportConfig::default();
        transport
            .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .datagram_receive_buffer_size(None)
            .max_idle_timeout(Some(IdleTimeout::try_from(Duration::from_millis(
                IDLE_MS_MAX,
            ))?));
        config.transport_config(Arc::new(transport));
        Ok(Self {
            config,
            fingerprint,
        })
    }

    /// What proofs on `connection` must be bound to.
    pub(crate) fn binding(&self, connection: &quinn::Connection) -> Option<Binding> {
        let mut exporter = [0; PROOF_BYTES];
        connection
            .export_keying_material(&mut exporter, EXPORTER_LABEL, b"")
            .ok()?;
        let identity = connection.peer_identity()?;
        let certificates = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        Some(Binding {
            exporter,
            coordinator_certificate: fingerprint(certificates.first()?),
            daemon_certificate: self.fingerprint,
        })
    }
}

/// Accepts any certificate whose key the peer holds: the token decides who it is.
#[derive(Debug)]
struct AnyClient {
    algorithms: WebPkiSupportedAlgorithms,
}

impl AnyClient {
    fn new(provider: &CryptoProvider) -> Self {
        Self {
            algorithms: provider.signature_verification_algorithms,
        }
    }
}

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
