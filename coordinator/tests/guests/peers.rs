//! Peers that misbehave towards a daemon: their connection is dropped and logged, the guests live.

use crate::support::{Daemon, Place, TOKEN, wait_until};
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream};
use span_api::auth::{PROOF_BYTES, Role, Token};
use span_api::codec;
use span_api::guest::ToGuest;
use span_api::link::{
    Artefact, ArtefactKind, ArtefactSource, FromAgent, Hello, STREAM_LINK, STREAM_SESSION, ToAgent,
};
use span_api::tls::Identity;
use std::time::Duration;

/// A connection that got as far as both proofs.
struct Admitted {
    writer: SendStream,
    reader: RecvStream,
    connection: Connection,
    _endpoint: Endpoint,
}

async fn connect(daemon: &Daemon) -> (Endpoint, Connection, Identity<ClientConfig>) {
    let identity = Identity::coordinator().unwrap();
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = daemon.address.parse().unwrap();
    let connection = endpoint
        .connect_with(identity.config.clone(), address, "x")
        .unwrap()
        .await
        .unwrap();
    (endpoint, connection, identity)
}

async fn admitted(daemon: &Daemon) -> Admitted {
    let (endpoint, connection, identity) = connect(daemon).await;
    let token = Token::parse(TOKEN.as_bytes()).unwrap();
    let binding = identity.binding(&connection).unwrap();
    let (mut writer, mut reader) = connection.open_bi().await.unwrap();
    let proof = token.proof(Role::Coordinator, &binding);
    writer
        .write_all(&[&[STREAM_LINK], proof.as_slice()].concat())
        .await
        .unwrap();
    let mut proof = [0; PROOF_BYTES];
    reader.read_exact(&mut proof).await.unwrap();
    assert!(token.accepts(Role::Daemon, &binding, &proof));
    Admitted {
        writer,
        reader,
        connection,
        _endpoint: endpoint,
    }
}

impl Admitted {
    async fn send(&mut self, message: &impl serde::Serialize) {
        codec::write_async(&mut self.writer, message).await.unwrap();
    }

    async fn greet(&mut self) {
        self.send(&Hello::new(None)).await;
        codec::read_async::<Hello>(&mut self.reader)
            .await
            .unwrap()
            .unwrap();
    }

    /// What the daemon says before it ends the conversation.
    async fn last_words(&mut self) -> Vec<FromAgent> {
        let mut words = Vec::new();
        while let Ok(Some(message)) = codec::read_async(&mut self.reader).await {
            words.push(message);
        }
        words
    }
}

#[tokio::test]
async fn misbehaving_peers_are_dropped_and_guests_live() {
    let place = Place::new();
    let token = place.secret("token", TOKEN);
    let daemon = Daemon::start(&place, "d", &token);
    let words = format!(
        "--nodes a,b={} --token-file {} -- cat",
        daemon.address,
        token.display()
    );
    let mut up = place.up(&words);

    // Not QUIC at all.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for length in [1, 20, 1200, 9000] {
        socket
            .send_to(&vec![0xa5; length], &daemon.address)
            .unwrap();
    }

    // A proof of another connection, and the proof that the daemon itself would send.
    let (endpoint, connection, identity) = connect(&daemon).await;
    let (_other_endpoint, other, other_identity) = connect(&daemon).await;
    let good = Token::parse(TOKEN.as_bytes()).unwrap();
    let elsewhere = good.proof(Role::Coordinator, &other_identity.binding(&other).unwrap());
    refused(&connection, &elsewhere).await;
    drop(endpoint);
    let (_endpoint, connection, _) = connect(&daemon).await;
    let mirrored = good.proof(
        Role::Daemon,
        &identity.binding(&other).unwrap_or_else(|| unreachable!()),
    );
    refused(&connection, &mirrored).await;

    // Truncated: the stream ends within a frame.
    let mut peer = admitted(&daemon).await;
    peer.writer.write_all(&[10, 0, 0, 0, 1, 2]).await.unwrap();
    peer.writer.finish().unwrap();
    peer.connection.closed().await;

    // Oversized.
    let mut peer = admitted(&daemon).await;
    peer.greet().await;
    peer.writer
        .write_all(&u32::MAX.to_le_bytes())
        .await
        .unwrap();
    assert!(matches!(
        peer.last_words().await[..],
        [.., FromAgent::Ended]
    ));

    // Unknown.
    let mut peer = admitted(&daemon).await;
    peer.greet().await;
    peer.writer
        .write_all(&[4, 0, 0, 0, 200, 1, 2, 3])
        .await
        .unwrap();
    assert!(matches!(
        peer.last_words().await[..],
        [.., FromAgent::Ended]
    ));

    // Of another version.
    let mut peer = admitted(&daemon).await;
    let mut hello = Hello::new(None);
    hello.protocol += 1;
    peer.send(&hello).await;
    let theirs = codec::read_async::<Hello>(&mut peer.reader)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(theirs.check(), Ok(()));
    peer.connection.closed().await;

    // In the wrong order, or with a file of the daemon's own machine.
    for message in [
        ToAgent::Guest(ToGuest::Start),
        ToAgent::Chunk {
            kind: ArtefactKind::Linux,
            data: vec![1],
        },
        ToAgent::Offer(vec![Artefact {
            kind: ArtefactKind::Linux,
            source: ArtefactSource::Path(b"/bin/sh".to_vec()),
        }]),
        ToAgent::Offer(vec![Artefact {
            kind: ArtefactKind::Linux,
            source: ArtefactSource::Content {
                sha256: [0; 32],
                bytes: u64::MAX,
            },
        }]),
    ] {
        let mut peer = admitted(&daemon).await;
        peer.greet().await;
        peer.send(&message).await;
        let words = peer.last_words().await;
        assert!(
            matches!(words[..], [.., FromAgent::Failed(_), FromAgent::Ended]),
            "{words:?}"
        );
    }

    // A stream of an unknown kind.
    let mut peer = admitted(&daemon).await;
    peer.greet().await;
    let (mut stream, _) = peer.connection.open_bi().await.unwrap();
    stream.write_all(&[STREAM_SESSION + 1]).await.unwrap();
    peer.connection.closed().await;

    // Silent, while alive as far as QUIC is concerned.
    let mut peer = admitted(&daemon).await;
    peer.greet().await;
    let silent = tokio::time::timeout(Duration::from_millis(2000), peer.last_words()).await;
    assert!(matches!(
        silent.expect("dropped in time")[..],
        [.., FromAgent::Ended]
    ));

    for part in [
        "wrong token",
        "longer than",
        "does not decode",
        "another version",
        "unknown kind",
        "wrong way",
        "nothing was heard",
    ] {
        wait_until(&format!("{part} in the log"), || {
            daemon.log().contains(part)
        });
    }
    up.type_in("alive\n");
    assert_eq!(up.end().stdout, "alive\n");
    wait_until("only the daemon is left", || {
        place.processes() == [daemon.pid()]
    });
    daemon.stop();
}

/// Sends a proof that must not be accepted.
async fn refused(connection: &Connection, proof: &[u8; PROOF_BYTES]) {
    let (mut writer, mut reader) = connection.open_bi().await.unwrap();
    writer
        .write_all(&[&[STREAM_LINK], proof.as_slice()].concat())
        .await
        .unwrap();
    assert!(reader.read_exact(&mut [0; 1]).await.is_err());
}
