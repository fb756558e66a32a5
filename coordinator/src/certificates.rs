//! The certificates with which the node runtimes of one guest know each other: an authority made for
//! this guest alone, whose key is forgotten once every node has its certificate.

use crate::failure::Failure;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// DER throughout; keys are PKCS#8.
#[derive(Debug)]
pub(crate) struct Certificates {
    pub(crate) authority: Vec<u8>,
    pub(crate) nodes: Vec<NodeCertificate>,
}

pub(crate) struct NodeCertificate {
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: Vec<u8>,
}

impl std::fmt::Debug for NodeCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeCertificate").finish_non_exhaustive()
    }
}

impl Certificates {
    /// Makes an authority and a certificate named `node-<index>` for each of `nodes`.
    pub(crate) fn new(guest: &str, nodes: usize) -> Result<Self, Failure> {
        Self::make(guest, nodes)
            .map_err(|error| Failure::cannot("certificates cannot be made", error))
    }

    fn make(guest: &str, nodes: usize) -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::new(Vec::new())?;
        params
            .distinguished_name
            .push(DnType::CommonName, format!("span guest {guest}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate()?;
        let authority = params.self_signed(&key)?.der().to_vec();
        let issuer = Issuer::new(params, key);

        let node = |index: usize| {
            let name = format!("node-{index}");
            let mut params = CertificateParams::new(vec![name.clone()])?;
            params.distinguished_name.push(DnType::CommonName, name);
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ];
            let key = KeyPair::generate()?;
            let certificate = params.signed_by(&key, &issuer)?.der().to_vec();
            Ok(NodeCertificate {
                certificate,
                key: key.serialize_der(),
            })
        };
        Ok(Self {
            authority,
            nodes: (0..nodes).map(node).collect::<Result<_, rcgen::Error>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{RootCertStore, client::WebPkiServerVerifier};
    use std::sync::Arc;

    fn accepts(authority: &[u8], certificate: &[u8], name: &'static str) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(authority.to_vec())).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .unwrap()
            .verify_server_cert(
                &CertificateDer::from(certificate.to_vec()),
                &[],
                &ServerName::try_from(name).unwrap(),
                &[],
                UnixTime::now(),
            )
            .is_ok()
    }

    #[test]
    fn a_certificate_is_good_for_its_node_of_its_guest() {
        let guest = Certificates::new("one", 2).unwrap();
        let other = Certificates::new("one", 2).unwrap();
        assert!(accepts(
            &guest.authority,
            &guest.nodes[0].certificate,
            "node-0"
        ));
        assert!(accepts(
            &guest.authority,
            &guest.nodes[1].certificate,
            "node-1"
        ));
        assert!(!accepts(
            &guest.authority,
            &guest.nodes[1].certificate,
            "node-0"
        ));
        assert!(!accepts(
            &guest.authority,
            &other.nodes[0].certificate,
            "node-0"
        ));
    }
}
