//! The transport between a coordinator and a daemon: QUIC with a certificate on both sides that the
//! other side takes for nothing but a key ([`crate::auth`] says how each learns who the other is).

use crate::auth::{ALPN, Binding, EXPORTER_LABEL, PROOF_BYTES, Role, fingerprint};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use std::sync::Arc;
use std::time::Duration;

/// Connections that say nothing for this long are dropped; the link's own heartbeat is stricter.
const IDLE_MS_MAX: u64 = 5000;

/// What a daemon takes: the link and the session.
const STREAMS_MAX: u32 = 2;

/// Why there is no identity.
pub type Error = Box<dyn std::error::Error>;

/// One side's certificate, made anew, and its settings.
#[derive(Debug, Clone)]
pub struct Identity<C> {
    pub config: C,
    role: Role,
    fingerprint: [u8; 32],
}

impl Identity<ClientConfig> {
    pub fn coordinator() -> Result<Self, Error> {
        let made = Certificate::new("span-coordinator")?;
        let mut tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyPeer::new()))
            .with_client_auth_cert(vec![made.certificate], made.key)?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        // No resumption: a resumed connection has no certificates to bind the proof to.
        tls.resumption = rustls::client::Resumption::disabled();
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
        config.transport_config(transport(0)?);
        Ok(Self {
            config,
            role: Role::Coordinator,
            fingerprint: made.fingerprint,
        })
    }
}

impl Identity<ServerConfig> {
    pub fn daemon() -> Result<Self, Error> {
        let made = Certificate::new("span-node")?;
        let mut tls = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(AnyPeer::new()))
            .with_single_cert(vec![made.certificate], made.key)?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        // No resumption, as on the other side.
        tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
        config.transport_config(transport(STREAMS_MAX)?);
        Ok(Self {
            config,
            role: Role::Daemon,
            fingerprint: made.fingerprint,
        })
    }
}

impl<C> Identity<C> {
    /// What proofs on `connection` must be bound to.
    pub fn binding(&self, connection: &quinn::Connection) -> Option<Binding> {
        let mut exporter = [0; PROOF_BYTES];
        connection
            .export_keying_material(&mut exporter, EXPORTER_LABEL, b"")
            .ok()?;
        let identity = connection.peer_identity()?;
        let certificates = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        let theirs = fingerprint(certificates.first()?);
        let (coordinator_certificate, daemon_certificate) = match self.role {
            Role::Coordinator => (self.fingerprint, theirs),
            Role::Daemon => (theirs, self.fingerprint),
        };
        Some(Binding {
            exporter,
            coordinator_certificate,
            daemon_certificate,
        })
    }
}

struct Certificate {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    fingerprint: [u8; 32],
}

impl Certificate {
    fn new(name: &str) -> Result<Self, Error> {
        let certified = rcgen::generate_simple_self_signed([name.to_string()])?;
        let certificate: CertificateDer<'static> = certified.cert.der().clone();
        Ok(Self {
            fingerprint: fingerprint(&certificate),
            key: PrivateKeyDer::try_from(certified.signing_key.serialize_der())?,
            certificate,
        })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Settings of a side on which the other may open this many streams.
fn transport(streams_max: u32) -> Result<Arc<TransportConfig>, Error> {
    let mut transport = TransportConfig::default();
    let idle = IdleTimeout::try_from(Duration::from_millis(IDLE_MS_MAX))?;
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(streams_max))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(idle));
    Ok(Arc::new(transport))
}

/// Accepts any certificate whose key the peer holds: the token decides who it is.
#[derive(Debug)]
struct AnyPeer {
    algorithms: WebPkiSupportedAlgorithms,
}

impl AnyPeer {
    fn new() -> Self {
        Self {
            algorithms: provider().signature_verification_algorithms,
        }
    }

    fn verify_tls13(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }
}

fn not_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::Error::General("only TLS 1.3 is spoken here".into()))
}

impl ServerCertVerifier for AnyPeer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        not_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_tls13(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for AnyPeer {
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
        not_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_tls13(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
