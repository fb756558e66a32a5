//! The sessions of a guest over its one session channel ([`span_api::session`]).
//!
//! [`Sessions`] gives out numbers and sorts what comes back. Output waits in a queue of its session,
//! whose length the window bounds: an init that sends more than it was given credit for is at fault. So
//! a session nobody reads holds up nobody else.

use crate::guest::Event;
use crate::stdio::Pipe;
use span_api::PROTOCOL_VERSION;
use span_api::codec;
use span_api::guest::HaltKind;
use span_api::line::Line;
use span_api::session::{FromInit, SESSIONS_MAX, ToInit, WINDOW_BYTES, WindowSize};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc};

/// Messages to the guest waiting to be written.
const QUEUE_MESSAGES_MAX: usize = 16;

/// Chunks of one session's output are put together up to this length, in bytes.
const JOINED_BYTES_MAX: usize = 16 * 1024;

/// What init says about the guest as a whole.
#[derive(Debug)]
pub(crate) enum InitEvent {
    Ready {
        kernel: String,
        cpus: u32,
    },
    /// All processes of the guest are about to be terminated.
    Ending(HaltKind),
    /// One line.
    Failed(String),
    /// The channel ended or was misused; one line.
    Broken(String),
}

#[derive(Debug, Clone)]
pub(crate) struct Sessions {
    to_init: mpsc::Sender<ToInit>,
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    next: u32,
    open: HashMap<u32, Entry>,
    closed: bool,
}

#[derive(Debug)]
struct Entry {
    queue: Arc<Queue>,
    /// Nobody wants the output any more.
    abandoned: bool,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    messages: VecDeque<FromInit>,
    /// Output sent by init for which it has not got credit back.
    unacknowledged: u64,
    ended: bool,
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sessions {
    /// Starts to serve a session channel.
    pub(crate) fn start(
        reader: impl AsyncRead + Unpin + Send + 'static,
        writer: impl AsyncWrite + Unpin + Send + 'static,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let (to_init, messages) = mpsc::channel(QUEUE_MESSAGES_MAX);
        let sessions = Self {
            to_init,
            table: Arc::default(),
        };
        tokio::spawn(write(writer, messages));
        let reading = sessions.clone();
        tokio::spawn(async move {
            let line = reading.read(reader, &events).await;
            reading.close();
            let _ = events.send(Event::Init(InitEvent::Broken(line))).await;
        });
        sessions
    }

    /// A new session; an error is one line.
    pub(crate) fn open(&self) -> Result<Session, String> {
        let mut table = locked(&self.table);
        if table.closed {
            return Err("the guest has ended".into());
        }
        if table.open.len() >= SESSIONS_MAX {
            return Err(format!("the guest runs {SESSIONS_MAX} sessions already"));
        }
        let id = table.next;
        table.next = table.next.wrapping_add(1);
        let queue = Arc::new(Queue::default());
        table.open.insert(
            id,
            Entry {
                queue: queue.clone(),
                abandoned: false,
            },
        );
        Ok(Session {
            id,
            queue,
            sessions: self.clone(),
            started: AtomicBool::new(false),
        })
    }

    /// Asks init to end the guest, after what it is still to be told; false if it is gone.
    pub(crate) fn power_off(&self) -> bool {
        self.send_later(ToInit::PowerOff);
        !self.to_init.is_closed()
    }

    /// Tells the size of a line's terminal, or that there is none any more.
    pub(crate) fn resize_line(&self, line: Line, size: Option<WindowSize>) {
        self.send_later(ToInit::LineSize { line, size });
    }

    /// Sends without waiting: who reads from init, or has to end it, must not wait until init reads.
    fn send_later(&self, message: ToInit) {
        if let Err(mpsc::error::TrySendError::Full(message)) = self.to_init.try_send(message) {
            let to_init = self.to_init.clone();
            tokio::spawn(async move { to_init.send(message).await });
        }
    }

    fn close(&self) {
        let mut table = locked(&self.table);
        table.closed = true;
        for entry in table.open.values() {
            locked(&entry.queue.waiting).ended = true;
            entry.queue.arrived.notify_one();
        }
        table.open.clear();
    }

    /// Sorts messages until the channel ends; returns why it did.
    async fn read(
        &self,
        mut reader: impl AsyncRead + Unpin,
        events: &mpsc::Sender<Event>,
    ) -> String {
        loop {
            let message = match codec::read_async::<FromInit>(&mut reader).await {
                Ok(Some(message)) => message,
                Ok(None) => return "the session channel was closed".into(),
                Err(error) => return format!("bad message from the guest's init: {error}"),
            };
            let event = match message {
                FromInit::Ready { version, .. } if version != PROTOCOL_VERSION => {
                    InitEvent::Failed(format!(
                        "its init is of another version: {version}, here {PROTOCOL_VERSION}"
                    ))
                }
                FromInit::Ready { kernel, cpus, .. } => InitEvent::Ready { kernel, cpus },
                FromInit::Ending(kind) => InitEvent::Ending(kind),
                FromInit::Failed(line) => InitEvent::Failed(line),
                message => {
                    match self.deliver(message) {
                        Ok(None) => {}
                        Ok(Some(credit)) => self.send_later(credit),
                        Err(line) => return line,
                    }
                    continue;
                }
            };
            if events.send(Event::Init(event)).await.is_err() {
                return "the coordinator is ending".into();
            }
        }
    }

    /// Hands a message to its session. For a session that nobody reads, returns the credit due.
    fn deliver(&self, message: FromInit) -> Result<Option<ToInit>, String> {
        let id = session_id(&message);
        let mut table = locked(&self.table);
        let Some(entry) = table.open.get(&id) else {
            return Err(format!(
                "the guest's init spoke of session {id}, which does not exist"
            ));
        };
        let last = matches!(
            message,
            FromInit::Exited { .. } | FromInit::StartFailed { .. }
        );
        if entry.abandoned {
            if last {
                table.open.remove(&id);
            }
            let bytes = output_bytes(&message);
            return Ok((bytes > 0).then_some(ToInit::Credit { id, bytes }));
        }
        {
            let mut waiting = locked(&entry.queue.waiting);
            waiting.unacknowledged += u64::from(output_bytes(&message));
            if waiting.unacknowledged > u64::from(WINDOW_BYTES) {
                return Err(format!(
                    "the guest's init sent more than the window of session {id}"
                ));
            }
            waiting.push(message);
            waiting.ended |= last;
        }
        entry.queue.arrived.notify_one();
        if last {
            table.open.remove(&id);
        }
        Ok(None)
    }
}

impl Waiting {
    fn push(&mut self, message: FromInit) {
        // Tiny chunks are put together: what bounds bytes then bounds messages too.
        match (self.messages.back_mut(), &message) {
            (Some(FromInit::Stdout { data: last, .. }), FromInit::Stdout { data, .. })
            | (Some(FromInit::Stderr { data: last, .. }), FromInit::Stderr { data, .. })
                if last.len() + data.len() <= JOINED_BYTES_MAX =>
            {
                last.extend_from_slice(data);
            }
            (Some(FromInit::Credit { bytes: last, .. }), FromInit::Credit { bytes, .. }) => {
                *last = last.saturating_add(*bytes);
            }
            _ => self.messages.push_back(message),
        }
    }
}

fn session_id(message: &FromInit) -> u32 {
    match message {
        FromInit::Stdout { id, .. }
        | FromInit::Stderr { id, .. }
        | FromInit::Credit { id, .. }
        | FromInit::Exited { id, .. }
        | FromInit::StartFailed { id, .. } => *id,
        FromInit::Ready { .. } | FromInit::Failed(_) | FromInit::Ending(_) => u32::MAX,
    }
}

/// How much of the window a message takes.
pub(crate) fn output_bytes(message: &FromInit) -> u32 {
    match message {
        FromInit::Stdout { data, .. } | FromInit::Stderr { data, .. } => data.len() as u32,
        _ => 0,
    }
}

async fn write(mut writer: impl AsyncWrite + Unpin, mut messages: mpsc::Receiver<ToInit>) {
    while let Some(message) = messages.recv().await {
        // The reader notices the end of the channel too.
        if codec::write_async(&mut writer, &message).await.is_err() {
            return;
        }
    }
}

/// One session. Dropped before it ended, its command is hung up on.
#[derive(Debug)]
pub(crate) struct Session {
    id: u32,
    queue: Arc<Queue>,
    sessions: Sessions,
    started: AtomicBool,
}

impl Session {
    /// Sends a message about this session, whatever session it names.
    pub(crate) async fn send(&self, message: ToInit) -> Result<(), String> {
        let id = self.id;
        let message = match message {
            ToInit::Start { command, .. } => {
                self.started.store(true, Ordering::Relaxed);
                ToInit::Start { id, command }
            }
            ToInit::Stdin { data, .. } => ToInit::Stdin { id, data },
            ToInit::StdinEnd { .. } => ToInit::StdinEnd { id },
            ToInit::Resize { size, .. } => ToInit::Resize { id, size },
            ToInit::Signal { signal, .. } => ToInit::Signal { id, signal },
            ToInit::LineSize { .. } => return Err("a session is no line".into()),
            ToInit::PowerOff => return Err("a session cannot power the guest off".into()),
            ToInit::Credit { bytes, .. } => {
                let mut waiting = locked(&self.queue.waiting);
                waiting.unacknowledged = waiting
                    .unacknowledged
                    .checked_sub(u64::from(bytes))
                    .ok_or("got credit for bytes that were not sent")?;
                ToInit::Credit { id, bytes }
            }
        };
        self.sessions
            .to_init
            .send(message)
            .await
            .map_err(|_| "the guest has ended".into())
    }

    /// The next message about this session; `None` when the guest ended. May be cancelled.
    pub(crate) async fn next(&self) -> Option<FromInit> {
        loop {
            {
                let mut waiting = locked(&self.queue.waiting);
                if let Some(message) = waiting.messages.pop_front() {
                    return Some(message);
                }
                if waiting.ended {
                    return None;
                }
            }
            self.queue.arrived.notified().await;
        }
    }
}

impl Session {
    /// Makes two queues of it; the session is dropped when their other ends are.
    pub(crate) fn into_pipe(self) -> Pipe {
        let (to_init, mut asked) = mpsc::channel(QUEUE_MESSAGES_MAX);
        let (answers, from_init) = mpsc::channel(QUEUE_MESSAGES_MAX);
        tokio::spawn(async move {
            let asking = async {
                while let Some(message) = asked.recv().await {
                    // How it ended is still to be received when nothing can be sent any more.
                    let _ = self.send(message).await;
                }
            };
            let answering = async {
                while let Some(message) = self.next().await {
                    if answers.send(message).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = asking => {}
                () = answering => {}
            }
        });
        Pipe { to_init, from_init }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        const SIGHUP: i32 = 1;
        let id = self.id;
        let mut table = locked(&self.sessions.table);
        if !self.started.load(Ordering::Relaxed) {
            table.open.remove(&id);
        }
        let Some(entry) = table.open.get_mut(&id) else {
            return;
        };
        entry.abandoned = true;
        let unread: u32 = {
            let mut waiting = locked(&self.queue.waiting);
            waiting.messages.clear();
            waiting.unacknowledged as u32
        };
        let to_init = self.sessions.to_init.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let farewell = [
                    ToInit::StdinEnd { id },
                    ToInit::Signal { id, signal: SIGHUP },
                    ToInit::Credit { id, bytes: unread },
                ];
                for message in farewell {
                    let _ = to_init.send(message).await;
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use span_api::session::Exit;
    use tokio::io::DuplexStream;

    fn start() -> (Sessions, DuplexStream, mpsc::Receiver<Event>) {
        let (ours, init) = tokio::io::duplex(1 << 20);
        let (reader, writer) = tokio::io::split(ours);
        let (sender, events) = mpsc::channel(16);
        (Sessions::start(reader, writer, sender), init, events)
    }

    async fn broken(events: &mut mpsc::Receiver<Event>) -> String {
        match events.recv().await {
            Some(Event::Init(InitEvent::Broken(line))) => line,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn an_unread_session_holds_up_no_other() {
        let (sessions, mut init, _events) = start();
        let (unread, read) = (sessions.open().unwrap(), sessions.open().unwrap());
        for _ in 0..WINDOW_BYTES / 16 {
            let chunk = FromInit::Stdout {
                id: 0,
                data: vec![b'x'; 16],
            };
            codec::write_async(&mut init, &chunk).await.unwrap();
        }
        let exited = FromInit::Exited {
            id: 1,
            exit: Exit::Code(3),
        };
        codec::write_async(&mut init, &exited).await.unwrap();
        assert!(matches!(
            read.next().await,
            Some(FromInit::Exited {
                exit: Exit::Code(3),
                ..
            })
        ));
        assert!(read.next().await.is_none());
        let messages = locked(&unread.queue.waiting).messages.len() as u32;
        assert!(
            messages <= WINDOW_BYTES / JOINED_BYTES_MAX as u32 + 1,
            "{messages}"
        );
    }

    #[tokio::test]
    async fn more_than_the_window_is_an_error_of_the_guest() {
        let (sessions, mut init, mut events) = start();
        let session = sessions.open().unwrap();
        for _ in 0..=WINDOW_BYTES / 32768 {
            let chunk = FromInit::Stdout {
                id: 0,
                data: vec![b'x'; 32768],
            };
            codec::write_async(&mut init, &chunk).await.unwrap();
        }
        assert!(broken(&mut events).await.contains("more than the window"));
        while session.next().await.is_some() {}
        assert!(sessions.open().is_err());
    }

    #[tokio::test]
    async fn a_dropped_session_is_hung_up_on_and_drained() {
        let (sessions, mut init, _events) = start();
        drop(sessions.open().unwrap());
        assert!(locked(&sessions.table).open.is_empty());
        let session = sessions.open().unwrap();
        session.started.store(true, Ordering::Relaxed);
        drop(session);
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(
                codec::read_async::<ToInit>(&mut init)
                    .await
                    .unwrap()
                    .unwrap(),
            );
        }
        assert!(matches!(seen[1], ToInit::Signal { id: 1, signal: 1 }));
        let chunk = FromInit::Stdout {
            id: 1,
            data: vec![b'x'; 100],
        };
        codec::write_async(&mut init, &chunk).await.unwrap();
        let credit = codec::read_async::<ToInit>(&mut init).await.unwrap();
        assert!(matches!(credit, Some(ToInit::Credit { id: 1, bytes: 100 })));
    }

    #[tokio::test]
    async fn power_off_is_asked_for_behind_whatever_waits() {
        let (sessions, mut init, _events) = start();
        let chunk = || ToInit::Stdin {
            id: 0,
            data: vec![b'x'; 64 * 1024],
        };
        // An init that does not read for a moment.
        while sessions.to_init.try_send(chunk()).is_ok() {
            tokio::task::yield_now().await;
        }
        assert!(sessions.power_off());
        loop {
            let message = codec::read_async::<ToInit>(&mut init).await.unwrap();
            match message.unwrap() {
                ToInit::Stdin { .. } => {}
                ToInit::PowerOff => return,
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn garbage_and_unknown_sessions_break_the_channel() {
        use tokio::io::AsyncWriteExt;
        let (_sessions, mut init, mut events) = start();
        init.write_all(&[0xff; 8]).await.unwrap();
        assert!(broken(&mut events).await.contains("bad message"));
        let (_sessions, mut init, mut events) = start();
        let credit = FromInit::Credit { id: 7, bytes: 1 };
        codec::write_async(&mut init, &credit).await.unwrap();
        assert!(broken(&mut events).await.contains("session 7"));
    }
}
