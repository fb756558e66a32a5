//! Links to the agents of a guest's nodes: how each is reached, and the tasks that turn its stream into
//! messages and back.

use crate::artefacts::{Contents, Files};
use crate::failure::one_line;
use crate::guest::Event;
use crate::local::{self, Agent};
use crate::options::Place;
use crate::remote::{self, Remote};
use span_api::codec::{self, CodecError};
use span_api::link::{
    Artefact, CHUNK_BYTES_MAX, CLOSE_DONE, FromAgent, HEARTBEAT_INTERVAL_MS, HEARTBEAT_LOST_MS,
    Hello, ToAgent,
};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// Messages waiting to be written to one agent. Files wait for room; everything else that a coordinator
/// ever has to say at one time is much less: the steps of the start, one question, the end.
const QUEUE_MESSAGES_MAX: usize = 32;

/// The same of what is typed at lines.
const TYPED_MESSAGES_MAX: usize = 8;

/// Longest wait for an agent's greeting.
const HELLO_MS_MAX: u64 = 5000;

/// Longest wait for the last packets to a daemon.
const CLOSE_MS_MAX: u64 = 200;

pub(crate) type Reader = Box<dyn AsyncRead + Unpin + Send>;
pub(crate) type Writer = Box<dyn AsyncWrite + Unpin + Send>;

/// A node's agent, ready to start its guest process.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) messages: mpsc::Sender<ToAgent>,
    /// For what is typed at lines, which waits for room and behind everything else.
    pub(crate) typed: mpsc::Sender<ToAgent>,
    /// The agent's process, on this machine.
    pub(crate) agent: Option<Agent>,
    pub(crate) remote: Option<RemoteEnd>,
}

/// Both ends of the way to a node elsewhere.
#[derive(Debug)]
pub(crate) struct RemoteEnd {
    /// Address at which the daemon's machine is reached.
    pub(crate) theirs: IpAddr,
    /// Address of this machine on that way.
    pub(crate) ours: IpAddr,
    pub(crate) connection: quinn::Connection,
    pub(crate) endpoint: quinn::Endpoint,
}

/// The session channel of the first node.
pub(crate) struct SessionStream {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
}

impl std::fmt::Debug for SessionStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionStream").finish_non_exhaustive()
    }
}

/// What [`connect`] brings; an error is one line.
pub(crate) type Connected = Result<(Link, Option<SessionStream>), String>;

/// Why nothing more comes from an agent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    #[error("nothing was heard of it for {HEARTBEAT_LOST_MS} ms")]
    Silence,
    #[error("its agent ended")]
    End,
    #[error("its agent sent a bad message: {0}")]
    Codec(String),
}

impl Lost {
    pub(crate) fn is_silence(&self) -> bool {
        matches!(self, Self::Silence)
    }
}

/// What connecting needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) node: usize,
    pub(crate) place: Place,
    pub(crate) files: Arc<Files>,
    /// Where a local agent's complaints go.
    pub(crate) log: Arc<File>,
    /// Memory with the queues of uplinks, for local nodes.
    pub(crate) uplinks: Option<Arc<OwnedFd>>,
    /// For nodes elsewhere.
    pub(crate) contents: Option<Arc<Contents>>,
    pub(crate) remote: Option<Arc<Remote>>,
}

impl Link {
    /// Tells a daemon that nothing more will come, and waits until it was told.
    /// An agent that is `lost` is not waited for.
    pub(crate) async fn end(self, lost: bool) {
        drop((self.messages, self.typed));
        if let Some(agent) = self.agent {
            agent.end(lost).await;
        }
        if let Some(remote) = self.remote {
            remote
                .connection
                .close(quinn::VarInt::from_u32(CLOSE_DONE), b"");
            let idle = remote.endpoint.wait_idle();
            let _ = timeout(Duration::from_millis(CLOSE_MS_MAX), idle).await;
        }
    }
}

impl Target {
    fn first(&self) -> bool {
        self.node == 0
    }
}

/// Reaches a node's agent and brings it all files it lacks. From then on its messages arrive as events.
/// An error is one line.
pub(crate) async fn connect(
    target: Target,
    events: mpsc::Sender<Event>,
) -> Result<(Link, Option<SessionStream>), String> {
    let (mut reader, mut writer, session, agent, reached): Parts = match &target.place {
        Place::Local => {
            let uplinks = target.uplinks.as_deref();
            let local = local::start(&target.files.node, &target.log, target.first(), uplinks)?;
            let session = local.session.map(|stream| {
                let (reader, writer) = stream.into_split();
                SessionStream {
                    reader: Box::new(reader),
                    writer: Box::new(writer),
                }
            });
            let (reader, writer) = local.link.into_split();
            (
                Box::new(reader),
                Box::new(writer),
                session,
                Some(local.agent),
                None,
            )
        }
        Place::Remote(address) => {
            let remote = target.remote.as_ref().ok_or("there is no token")?;
            let reached = remote::connect(remote, address, target.first()).await?;
            let end = RemoteEnd {
                theirs: reached.theirs,
                ours: reached.ours,
                connection: reached.connection,
                endpoint: reached.endpoint,
            };
            (
                Box::new(reached.reader),
                Box::new(reached.writer),
                reached.session,
                None,
                Some(end),
            )
        }
    };

    let exchange = async {
        codec::write_async(&mut writer, &Hello::new(None)).await?;
        codec::read_async::<Hello>(&mut reader).await
    };
    let hello = timeout(Duration::from_millis(HELLO_MS_MAX), exchange)
        .await
        .map_err(|_| format!("did not answer within {HELLO_MS_MAX} ms"))?
        .map_err(|error| format!("is no node of Span: {}", chain(&error)))?
        .ok_or("ended before it said anything")?;
    hello.check().map_err(|error| format!("is {error}"))?;

    let offer = match &target.contents {
        Some(contents) if reached.is_some() => contents.offer(target.first()),
        _ => target.files.offer_paths(target.first()),
    };
    let (messages, queue) = mpsc::channel(QUEUE_MESSAGES_MAX);
    let (typed, at_lines) = mpsc::channel(TYPED_MESSAGES_MAX);
    let (answers, mut answer) = mpsc::channel(1);
    tokio::spawn(write(writer, queue, at_lines));
    let pid = agent.as_ref().and_then(Agent::pid);
    tokio::spawn(read(reader, target.node, pid, answers, events));
    provide(offer, target.contents.as_deref(), &messages, &mut answer).await?;

    // The daemon knows best at which of its addresses it is reached.
    let remote = reached.map(|end| RemoteEnd {
        theirs: hello.address.unwrap_or(end.theirs),
        ..end
    });
    Ok((
        Link {
            messages,
            typed,
            agent,
            remote,
        },
        session,
    ))
}

type Parts = (
    Reader,
    Writer,
    Option<SessionStream>,
    Option<Agent>,
    Option<RemoteEnd>,
);

/// Offers files, sends those that the agent lacks, and waits until it has all of them.
async fn provide(
    offer: Vec<Artefact>,
    contents: Option<&Contents>,
    messages: &mpsc::Sender<ToAgent>,
    answers: &mut mpsc::Receiver<FromAgent>,
) -> Result<(), String> {
    let gone = || "went away while it was being set up".to_string();
    let mut answer = async || match answers.recv().await {
        Some(FromAgent::Need(need)) => Ok(need),
        Some(FromAgent::Failed(line)) => Err(one_line(&line)),
        Some(_) | None => Err(gone()),
    };
    messages
        .send(ToAgent::Offer(offer))
        .await
        .map_err(|_| gone())?;
    let need = answer().await?;
    if need.is_empty() {
        return Ok(());
    }
    for kind in need {
        let contents = contents.ok_or("asked for files that it can reach itself")?;
        for chunk in contents.data(kind).chunks(CHUNK_BYTES_MAX) {
            let data = chunk.to_vec();
            messages
                .send(ToAgent::Chunk { kind, data })
                .await
                .map_err(|_| gone())?;
        }
    }
    match answer().await?.as_slice() {
        [] => Ok(()),
        [kind, ..] => Err(format!("asked for {} a second time", kind.file_name())),
    }
}

/// Turns frames into events; what answers an offer goes to who made it. `pid` is a local agent's: as long as the host is
/// only too busy to run it, it is not lost.
async fn read(
    mut reader: Reader,
    node: usize,
    pid: Option<u32>,
    answers: mpsc::Sender<FromAgent>,
    events: mpsc::Sender<Event>,
) {
    let mut answers = Some(answers);
    let reason = loop {
        let mut frame = pin!(codec::read_async::<FromAgent>(&mut reader));
        let silence = Duration::from_millis(HEARTBEAT_LOST_MS);
        let message = loop {
            match timeout(silence, frame.as_mut()).await {
                Err(_) if pid.is_some_and(local::may_run) => {}
                result => break result,
            }
        };
        let message = match message {
            Err(_) => break Lost::Silence,
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None) | Err(CodecError::Io(_))) => break Lost::End,
            Ok(Err(error)) => break Lost::Codec(chain(&error)),
        };
        match (message, &answers) {
            (FromAgent::Heartbeat, _) => {}
            (message @ (FromAgent::Need(_) | FromAgent::Failed(_)), Some(answer)) => {
                let last = matches!(&message, FromAgent::Need(need) if need.is_empty());
                if answer.send(message).await.is_err() {
                    return;
                }
                if last {
                    answers = None;
                }
            }
            (message, _) => {
                if events.send(Event::Agent { node, message }).await.is_err() {
                    return;
                }
            }
        }
    };
    if answers.is_some() {
        // Who waits for an answer sees that none comes, and says so.
        return;
    }
    let _ = events.send(Event::AgentLost { node, reason }).await;
}

async fn write(
    mut writer: Writer,
    mut queue: mpsc::Receiver<ToAgent>,
    mut typed: mpsc::Receiver<ToAgent>,
) {
    let interval = Duration::from_millis(HEARTBEAT_INTERVAL_MS);
    loop {
        let message = tokio::select! {
            biased;
            message = queue.recv() => match message {
                Some(message) => message,
                None => break,
            },
            Some(message) = typed.recv() => message,
            () = sleep(interval) => ToAgent::Heartbeat,
        };
        // The reader notices the end of the stream too, and with the reason.
        if codec::write_async(&mut writer, &message).await.is_err() {
            return;
        }
    }
    let _ = writer.shutdown().await;
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line = format!("{line}: {cause}");
        source = cause.source();
    }
    one_line(&line)
}
