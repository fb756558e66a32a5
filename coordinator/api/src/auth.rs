//! How a coordinator and a daemon authenticate each other with a shared token. Pure: no sockets.
//!
//! The transport is QUIC with mutual TLS 1.3, but there is no authority both sides could trust: each
//! makes a self-signed certificate anew (the daemon when it starts, the coordinator for each guest) and
//! accepts any from its peer. TLS then gives a private channel to *somebody*. Who that is, the first
//! messages on the channel settle: each side sends
//!
//! ```text
//! HMAC-SHA256(token, role ‖ exporter ‖ SHA-256(coordinator's certificate) ‖ SHA-256(daemon's certificate))
//! ```
//!
//! where `role` differs for the two directions, so that a proof cannot be sent back to its maker, and
//! `exporter` is keying material that TLS derives for this connection alone (RFC 5705, RFC 8446 §7.5).
//! Somebody in the middle has two connections with two exporters and two certificates of their own, so
//! that a proof made for one is worthless on the other; and a proof from an earlier connection is
//! worthless on a new one. The coordinator proves first: a daemon tells strangers nothing, not even
//! whether a guess was close (the comparison takes constant time). Nothing else is read from a peer
//! before its proof was right.
//!
//! What remains: somebody who lets a coordinator connect to them gets one proof, from which a *guessable*
//! token could be searched for offline. Tokens shorter than [`TOKEN_BYTES_MIN`] are refused; make one
//! with `head -c 32 /dev/urandom | base64`.

use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Shortest token, in bytes.
pub const TOKEN_BYTES_MIN: usize = 16;

/// Longest token, in bytes.
pub const TOKEN_BYTES_MAX: usize = 4096;

/// Length of a proof and of the exporter, in bytes.
pub const PROOF_BYTES: usize = 32;

/// Label of the keying material exported from TLS.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-span-token";

/// Application protocol of the QUIC connection. It names no version: the handshake that follows does,
/// with a better message than TLS could give.
pub const ALPN: &[u8] = b"span";

/// Why a token file was refused.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("cannot be read")]
    Io(#[from] std::io::Error),
    #[error("is not a regular file")]
    NotAFile,
    #[error("can be read by others (mode {0:03o}): only its owner may, as after chmod 600")]
    Readable(u32),
    #[error("belongs to user {0}: it must be yours")]
    Owner(u32),
    #[error("holds {0} bytes: a token has {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX}")]
    Length(usize),
}

/// The shared secret. Not printable, so that no log shows it.
#[derive(Clone)]
pub struct Token(Vec<u8>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Who made a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Coordinator,
    Daemon,
}

/// What a proof is bound to: one connection between two certificates.
#[derive(Debug, Clone)]
pub struct Binding {
    pub exporter: [u8; PROOF_BYTES],
    pub coordinator_certificate: [u8; 32],
    pub daemon_certificate: [u8; 32],
}

impl Token {
    /// Takes a token file's contents; white space at the end does not count.
    pub fn parse(contents: &[u8]) -> Result<Self, TokenError> {
        let token = contents.trim_ascii_end();
        if (TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&token.len()) {
            Ok(Self(token.to_vec()))
        } else {
            Err(TokenError::Length(token.len()))
        }
    }

    /// Reads a token file, which must be readable by its owner only.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(TokenError::NotAFile);
        }
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(TokenError::Readable(mode));
        }
        let own = std::fs::metadata("/proc/self")?.uid();
        if metadata.uid() != own {
            return Err(TokenError::Owner(metadata.uid()));
        }
        let mut contents = Vec::new();
        file.take(TOKEN_BYTES_MAX as u64 + 64)
            .read_to_end(&mut contents)?;
        Self::parse(&contents)
    }

    /// The proof that `role` sends on the connection described by `binding`.
    pub fn proof(&self, role: Role, binding: &Binding) -> [u8; PROOF_BYTES] {
        let role: &[u8] = match role {
            Role::Coordinator => b"span coordinator\0",
            Role::Daemon => b"span daemon\0",
        };
        hmac_sha256(
            &self.0,
            &[
                role,
                &binding.exporter,
                &binding.coordinator_certificate,
                &binding.daemon_certificate,
            ],
        )
    }

    /// Whether `proof` is the one `role` must send, in time that does not depend on where it differs.
    pub fn accepts(&self, role: Role, binding: &Binding, proof: &[u8; PROOF_BYTES]) -> bool {
        let expected = self.proof(role, binding);
        let difference = expected
            .iter()
            .zip(proof)
            .fold(0, |sum, (a, b)| sum | (a ^ b));
        std::hint::black_box(difference) == 0
    }
}

/// SHA-256 of a certificate's DER.
pub fn fingerprint(certificate: &[u8]) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

/// HMAC (RFC 2104) over the concatenation of `parts`. Written out because the `hmac` crate would be one
/// more dependency of everything that speaks these messages, for these lines.
fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    const BLOCK_BYTES: usize = 64;
    let mut block = [0u8; BLOCK_BYTES];
    if key.len() > BLOCK_BYTES {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let mut inner = Sha256::new_with_prefix(block.map(|byte| byte ^ 0x36));
    for part in parts {
        inner.update(part);
    }
    let mut outer = Sha256::new_with_prefix(block.map(|byte| byte ^ 0x5c));
    outer.update(inner.finalize());
    outer.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn binding() -> Binding {
        Binding {
            exporter: [1; 32],
            coordinator_certificate: [2; 32],
            daemon_certificate: [3; 32],
        }
    }

    #[test]
    fn hmac_agrees_with_rfc_4231() {
        assert_eq!(
            hex(&hmac_sha256(&[0x0b; 20], &[b"Hi ", b"There"])),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
        let text = b"Test Using Larger Than Block-Size Key - Hash Key First";
        assert_eq!(
            hex(&hmac_sha256(&[0xaa; 131], &[text])),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }

    #[test]
    fn a_proof_holds_for_its_token_role_and_connection_only() {
        let token = Token::parse(b"0123456789abcdef\n").unwrap();
        let proof = token.proof(Role::Coordinator, &binding());
        assert!(token.accepts(Role::Coordinator, &binding(), &proof));
        assert!(!token.accepts(Role::Daemon, &binding(), &proof));
        let other = Token::parse(b"0123456789abcdeg").unwrap();
        assert!(!other.accepts(Role::Coordinator, &binding(), &proof));
        for change in [
            |b: &mut Binding| b.exporter[31] ^= 1,
            |b: &mut Binding| b.coordinator_certificate[0] ^= 1,
            |b: &mut Binding| b.daemon_certificate[0] ^= 1,
        ] {
            let mut elsewhere = binding();
            change(&mut elsewhere);
            assert!(!token.accepts(Role::Coordinator, &elsewhere, &proof));
        }
    }

    #[test]
    fn a_token_has_a_sensible_length() {
        assert!(matches!(
            Token::parse(b"fifteen bytes..\n\n"),
            Err(TokenError::Length(15))
        ));
        assert!(Token::parse(b"sixteen bytes...").is_ok());
        assert!(matches!(
            Token::parse(&[b'x'; 4097]),
            Err(TokenError::Length(4097))
        ));
    }
}
