//! The control socket of a guest, in its run directory: how other invocations of this program reach the
//! coordinator of a running guest.
//!
//! A connection begins with a greeting of each side, then carries one [`Ask`]. After [`Ask::Session`],
//! [`Ask::Console`] and [`Ask::Line`] it carries a session's messages in both directions, with the session's own flow
//! control from end to end.

mod links;
mod profile;

pub(crate) use links::Prober;
pub(crate) use profile::Told;

use crate::console::Console;
use crate::failure::Failure;
use crate::guest::{Event, Profiled, Subject};
use crate::lines::{Hub, LineStatus};
use crate::links::show::All;
use crate::links::{Change, Ways};
use crate::rundir::CONTROL_SOCKET;
use crate::session::{Session, Sessions};
use crate::status::Status;
use crate::stdio::Pipe;
use serde::{Deserialize, Serialize};
use span_api::codec;
use span_api::guest::{LinkStats, Probed};
use span_api::line::Line;
use span_api::link::Hello;
use span_api::profile::{Faults, Profiling};
use span_api::session::{FromInit, ToInit, WindowSize};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;

/// Connections served at one time.
const CONNECTIONS_MAX: usize = 128;

/// Messages of a session waiting between its two ends.
const QUEUE_MESSAGES_MAX: usize = 16;

/// Longest wait for a greeting, or for what should be answered at once.
const ANSWER_MS_MAX: u64 = 5000;

/// What another invocation asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ask {
    Status,
    Down,
    Session,
    Console {
        size: WindowSize,
    },
    /// A line, and how large the terminal of who asks is.
    Line {
        line: Line,
        size: Option<WindowSize>,
    },
    /// All lines.
    Lines,
    /// Answered with [`Answer::Profiling`], then with [`Answer::Faults`] until whoever asks says
    /// [`Ask::Enough`] and gets the rest, with what is known of the guest by then, or the guest ends; last comes
    /// [`Answer::Done`].
    Profile,
    Enough,
    /// Answered with [`Answer::Uplinks`], [`Answer::Links`] for each node, then [`Answer::Done`].
    Links,
    Link {
        ways: Ways,
        one_way: bool,
        change: Change,
    },
    /// Answered with [`Answer::Probed`]. As often as whoever asks likes.
    Probe {
        from: u16,
        to: u16,
        bytes: u32,
    },
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Status(Box<Status>),
    Profiling(Box<Subject>),
    Lines(Vec<LineStatus>),
    Faults {
        node: u16,
        faults: Faults,
    },
    /// Their names.
    Uplinks(Vec<String>),
    Links {
        name: String,
        stats: Vec<LinkStats>,
    },
    Probed(Probed),
    /// It is being done, or the session may begin.
    Done,
    /// One line.
    Refused(String),
}

/// What is asked of the guest itself.
#[derive(Debug)]
pub(crate) enum Request {
    Status(oneshot::Sender<Status>),
    /// Begins to profile.
    Profile(oneshot::Sender<Result<Profiled, String>>),
    Profiling(Profiling),
    /// What is profiled, as far as it is known by now.
    Subject(oneshot::Sender<Subject>),
    Links(oneshot::Sender<All>),
    Link {
        ways: Ways,
        one_way: bool,
        change: Change,
        reply: oneshot::Sender<Result<(), String>>,
    },
    Probe {
        from: usize,
        to: usize,
        bytes: u32,
        reply: oneshot::Sender<Probed>,
    },
    Down,
}

/// What the server of a control socket hands out.
#[derive(Debug, Clone)]
struct Server {
    events: mpsc::Sender<Event>,
    ready: watch::Receiver<Option<Sessions>>,
    console: Arc<Console>,
    lines: Hub,
}

/// Starts to serve the control socket in `directory`.
pub(crate) fn serve(
    directory: &Path,
    events: mpsc::Sender<Event>,
    ready: watch::Receiver<Option<Sessions>>,
    lines: Hub,
) -> io::Result<()> {
    let path = directory.join(CONTROL_SOCKET);
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600))?;
    let server = Server {
        events,
        ready,
        console: Arc::default(),
        lines,
    };
    tokio::spawn(async move {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        // Taken before a connection is: one more waits in the socket's own queue.
        while let Ok(permit) = permits.clone().acquire_owned().await {
            let Ok((stream, _)) = listener.accept().await else {
                continue;
            };
            let server = server.clone();
            tokio::spawn(async move {
                // Who asked wrongly, or went away, has nothing to be told.
                let _ = server.converse(stream).await;
                drop(permit);
            });
        }
    });
    Ok(())
}

impl Server {
    async fn converse(self, stream: UnixStream) -> Result<(), codec::CodecError> {
        let (mut reader, mut writer) = stream.into_split();
        codec::write_async(&mut writer, &Hello::new(None)).await?;
        let greeting = codec::read_async::<Hello>(&mut reader);
        let Ok(greeting) = timeout(Duration::from_millis(ANSWER_MS_MAX), greeting).await else {
            return Ok(());
        };
        if greeting?.is_none_or(|hello| hello.check().is_err()) {
            return Ok(());
        }
        let Some(ask) = codec::read_async::<Ask>(&mut reader).await? else {
            return Ok(());
        };
        match ask {
            Ask::Status => {
                let (reply, status) = oneshot::channel();
                let _ = self
                    .events
                    .send(Event::Request(Request::Status(reply)))
                    .await;
                let answer = match status.await {
                    Ok(status) => Answer::Status(Box::new(status)),
                    Err(_) => Answer::Refused("the guest is ending".into()),
                };
                codec::write_async(&mut writer, &answer).await
            }
            Ask::Profile => profile::serve(&self.events, reader, writer).await,
            // Only while a profile is told.
            Ask::Enough => Ok(()),
            Ask::Links => links::tell(&self.events, writer).await,
            ask @ (Ask::Link { .. } | Ask::Probe { .. }) => {
                links::serve(&self.events, ask, reader, writer).await
            }
            Ask::Down => {
                let _ = self.events.send(Event::Request(Request::Down)).await;
                codec::write_async(&mut writer, &Answer::Done).await
            }
            Ask::Session => match self.session().await {
                Ok(session) => {
                    codec::write_async(&mut writer, &Answer::Done).await?;
                    relay(session.into_pipe(), reader, writer).await;
                    Ok(())
                }
                Err(line) => codec::write_async(&mut writer, &Answer::Refused(line)).await,
            },
            Ask::Lines => {
                let answer = Answer::Lines(self.lines.status());
                codec::write_async(&mut writer, &answer).await
            }
            Ask::Line { line, size } => match self.lines.attach(line, size) {
                Ok(pipe) => {
                    codec::write_async(&mut writer, &Answer::Done).await?;
                    relay(pipe, reader, writer).await;
                    Ok(())
                }
                Err(why) => codec::write_async(&mut writer, &Answer::Refused(why)).await,
            },
            Ask::Console { size } => {
                let mut ready = self.ready.clone();
                let sessions = ready
                    .wait_for(Option::is_some)
                    .await
                    .ok()
                    .and_then(|s| s.clone());
                let attached = match sessions {
                    Some(sessions) => self.console.attach(&sessions, size),
                    None => Err("the guest is ending".into()),
                };
                match attached {
                    Ok(pipe) => {
                        codec::write_async(&mut writer, &Answer::Done).await?;
                        relay(pipe, reader, writer).await;
                        Ok(())
                    }
                    Err(line) => codec::write_async(&mut writer, &Answer::Refused(line)).await,
                }
            }
        }
    }

    /// A new session, once the guest is up.
    async fn session(&self) -> Result<Session, String> {
        let mut ready = self.ready.clone();
        let sessions = ready
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|s| s.clone());
        sessions.ok_or("the guest is ending")?.open()
    }
}

/// Passes a session's messages on until either side is done.
async fn relay(mut pipe: Pipe, mut reader: OwnedReadHalf, mut writer: OwnedWriteHalf) {
    let to_init = pipe.to_init;
    let asking = async {
        while let Ok(Some(message)) = codec::read_async::<ToInit>(&mut reader).await {
            // How a session ended is still to be answered when nothing can be sent to it any more.
            let _ = to_init.send(message).await;
        }
    };
    let answering = async {
        while let Some(message) = pipe.from_init.recv().await {
            if codec::write_async(&mut writer, &message).await.is_err() {
                return;
            }
        }
    };
    // Either side going away ends both: the session is dropped, which hangs up on its command.
    tokio::select! {
        () = asking => {}
        () = answering => {}
    }
}

/// A connection to the coordinator of a running guest.
#[derive(Debug)]
pub(crate) struct Client {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    name: String,
}

impl Client {
    pub(crate) async fn connect(name: &str, directory: &Path) -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::failed(format!(
                "the coordinator of {name} cannot be reached: {error}"
            ))
        };
        let stream = UnixStream::connect(directory.join(CONTROL_SOCKET))
            .await
            .map_err(|error| failed(&error))?;
        let (mut reader, mut writer) = stream.into_split();
        codec::write_async(&mut writer, &Hello::new(None))
            .await
            .map_err(|error| failed(&error))?;
        let greeting = codec::read_async::<Hello>(&mut reader);
        let hello = timeout(Duration::from_millis(ANSWER_MS_MAX), greeting)
            .await
            .map_err(|_| failed(&"it does not answer"))?
            .map_err(|error| failed(&error))?
            .ok_or_else(|| failed(&"it ended"))?;
        hello
            .check()
            .map_err(|error| Failure::failed(format!("the coordinator of {name} is {error}")))?;
        Ok(Self {
            reader,
            writer,
            name: name.to_string(),
        })
    }

    async fn ask(&mut self, ask: Ask) -> Result<Answer, Failure> {
        let gone = |_| Failure::failed(format!("the coordinator of {} went away", self.name));
        codec::write_async(&mut self.writer, &ask)
            .await
            .map_err(gone)?;
        self.next().await
    }

    async fn next(&mut self) -> Result<Answer, Failure> {
        let gone = |_| Failure::failed(format!("the coordinator of {} went away", self.name));
        match codec::read_async(&mut self.reader).await.map_err(gone)? {
            Some(Answer::Refused(line)) => Err(Failure::failed(line)),
            Some(answer) => Ok(answer),
            None => Err(Failure::failed(format!(
                "the coordinator of {} went away",
                self.name
            ))),
        }
    }

    pub(crate) async fn status(mut self) -> Result<Status, Failure> {
        match self.ask(Ask::Status).await? {
            Answer::Status(status) => Ok(*status),
            _ => Err(Failure::failed("the coordinator gave a wrong answer")),
        }
    }

    pub(crate) async fn lines(mut self) -> Result<Vec<LineStatus>, Failure> {
        match self.ask(Ask::Lines).await? {
            Answer::Lines(lines) => Ok(lines),
            _ => Err(Failure::failed("the coordinator gave a wrong answer")),
        }
    }

    /// Asks for the guest's end.
    pub(crate) async fn down(mut self) -> Result<(), Failure> {
        self.ask(Ask::Down).await.map(drop)
    }

    /// Asks to be told faults.
    pub(crate) async fn profile(mut self) -> Result<(Subject, Told), Failure> {
        match self.ask(Ask::Profile).await? {
            Answer::Profiling(subject) => Ok((*subject, Told::new(self.reader, self.writer))),
            _ => Err(Failure::failed("the coordinator gave a wrong answer")),
        }
    }

    /// What the guest's links cost.
    pub(crate) async fn links(self) -> Result<All, Failure> {
        links::told(self).await
    }

    /// Changes links; returns when it is so.
    pub(crate) async fn change_links(
        mut self,
        ways: Ways,
        one_way: bool,
        change: Change,
    ) -> Result<(), Failure> {
        let ask = Ask::Link {
            ways,
            one_way,
            change,
        };
        self.ask(ask).await.map(drop)
    }

    /// For as many probes as wanted.
    pub(crate) fn prober(self) -> Prober {
        Prober::new(self)
    }

    /// Asks for a session ([`Ask::Session`], [`Ask::Console`] or [`Ask::Line`]) and returns its messages.
    pub(crate) async fn session(mut self, ask: Ask) -> Result<Pipe, Failure> {
        self.ask(ask).await?;
        let Self {
            mut reader,
            mut writer,
            ..
        } = self;
        let (to_init, mut asked) = mpsc::channel::<ToInit>(QUEUE_MESSAGES_MAX);
        let (answers, from_init) = mpsc::channel::<FromInit>(QUEUE_MESSAGES_MAX);
        tokio::spawn(async move {
            while let Some(message) = asked.recv().await {
                if codec::write_async(&mut writer, &message).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            while let Ok(Some(message)) = codec::read_async(&mut reader).await {
                if answers.send(message).await.is_err() {
                    return;
                }
            }
        });
        Ok(Pipe { to_init, from_init })
    }
}
