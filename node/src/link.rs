//! One conversation with a coordinator: tasks that turn a byte stream into messages and back.
//!
//! Both directions are bounded queues. When the coordinator does not keep up, [`Sender::send`] waits,
//! which in the end holds up the guest process that logs too much, not this process's memory.

use span_api::codec;
use span_api::link::{FromAgent, HEARTBEAT_INTERVAL_MS, HEARTBEAT_LOST_MS, Hello, ToAgent};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Messages waiting in each direction.
const QUEUE_MESSAGES_MAX: usize = 32;

/// Longest wait for the other side's first message.
const HELLO_MS_MAX: u64 = 5000;

/// Longest wait for the last messages to be taken by the transport.
const FLUSH_MS_MAX: u64 = 500;

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("the stream ended")]
    End,
    #[error("nothing was heard for {HEARTBEAT_LOST_MS} ms")]
    Silence,
    #[error(transparent)]
    Hello(#[from] span_api::link::HelloError),
    #[error("no greeting within {HELLO_MS_MAX} ms")]
    NoHello,
    #[error(transparent)]
    Codec(#[from] codec::CodecError),
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line = format!("{line}: {cause}");
        source = cause.source();
    }
    line
}

/// What a peer said, fit to be shown on one line.
pub(crate) fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

pub(crate) type Sender = mpsc::Sender<FromAgent>;

#[derive(Debug)]
pub(crate) struct Link {
    incoming: mpsc::Receiver<Result<ToAgent, LinkError>>,
    outgoing: Sender,
    writer: JoinHandle<()>,
}

impl Link {
    /// Exchanges greetings and starts the conversation. With `heartbeats`, a silent peer is a lost one.
    pub(crate) async fn open(
        mut reader: impl AsyncRead + Unpin + Send + 'static,
        mut writer: impl AsyncWrite + Unpin + Send + 'static,
        hello: Hello,
        heartbeats: bool,
    ) -> Result<Self, LinkError> {
        // Said before the other's is judged, so that it can tell its user about the difference.
        codec::write_async(&mut writer, &hello).await?;
        let theirs: Hello = timeout(
            Duration::from_millis(HELLO_MS_MAX),
            codec::read_async(&mut reader),
        )
        .await
        .map_err(|_| LinkError::NoHello)??
        .ok_or(LinkError::End)?;
        theirs.check()?;

        let (incoming_sender, incoming) = mpsc::channel(QUEUE_MESSAGES_MAX);
        let (outgoing, outgoing_receiver) = mpsc::channel(QUEUE_MESSAGES_MAX);
        tokio::spawn(read(reader, incoming_sender, heartbeats));
        let writer = tokio::spawn(write(writer, outgoing_receiver));
        Ok(Self {
            incoming,
            outgoing,
            writer,
        })
    }

    /// The next message that is not a heartbeat.
    pub(crate) async fn next(&mut self) -> Result<ToAgent, LinkError> {
        self.incoming.recv().await.unwrap_or(Err(LinkError::End))
    }

    pub(crate) fn sender(&self) -> Sender {
        self.outgoing.clone()
    }

    /// Ends the conversation once everything sent has been taken by the transport.
    pub(crate) async fn close(self) {
        let Self {
            incoming,
            outgoing,
            writer,
        } = self;
        drop((incoming, outgoing));
        let _ = timeout(Duration::from_millis(FLUSH_MS_MAX), writer).await;
    }
}

async fn read(
    mut reader: impl AsyncRead + Unpin,
    incoming: mpsc::Sender<Result<ToAgent, LinkError>>,
    heartbeats: bool,
) {
    loop {
        let frame = codec::read_async(&mut reader);
        let frame = if heartbeats {
            match timeout(Duration::from_millis(HEARTBEAT_LOST_MS), frame).await {
                Ok(frame) => frame,
                Err(_) => {
                    let _ = incoming.send(Err(LinkError::Silence)).await;
                    return;
                }
            }
        } else {
            frame.await
        };
        let message = match frame {
            Ok(Some(ToAgent::Heartbeat)) => continue,
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(LinkError::End),
            Err(error) => Err(error.into()),
        };
        let last = message.is_err();
        if incoming.send(message).await.is_err() || last {
            return;
        }
    }
}

async fn write(mut writer: impl AsyncWrite + Unpin, mut outgoing: mpsc::Receiver<FromAgent>) {
    let interval = Duration::from_millis(HEARTBEAT_INTERVAL_MS);
    loop {
        let message = match timeout(interval, outgoing.recv()).await {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(_) => FromAgent::Heartbeat,
        };
        // The reader notices the end of the stream too, and with the reason.
        if codec::write_async(&mut writer, &message).await.is_err() {
            return;
        }
    }
    let _ = writer.shutdown().await;
}
