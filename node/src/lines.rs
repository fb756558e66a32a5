//! The host's ends of the guest's consoles and serial lines.
//!
//! The guest process has a socket for each, of which this is the other side, so that a line outlives whoever is at
//! it. It is no terminal: for the size of one the kernel would have a process wait that belongs to no node. The
//! guest's first process is told of sizes. What a program writes there goes to the coordinator, and to whoever is connected by
//! the channel that was asked for; what any of them types goes to the guest. Nobody of them can hold up the guest:
//! who does not read is disconnected, and a coordinator that stands still misses what does not fit into a
//! buffer.
#![allow(unsafe_code)]

use crate::link::Sender;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use span_api::line::{Channel, Line};
use span_api::link::FromAgent;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

/// Bytes read of a line at once.
const CHUNK_BYTES: usize = 4096;

/// What waits for the coordinator, of each line.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;

/// How long a line waits for a coordinator that does not read, once that is full.
const STALLED_MS_MAX: u64 = 1000;

/// Chunks that wait for somebody who is connected, and for the guest.
const WAITING_CHUNKS_MAX: usize = 64;

/// Connections to one line.
const CONNECTIONS_MAX: usize = 32;

/// Both sides of a terminal of the host, raw.
#[derive(Debug)]
struct Terminal {
    master: AsyncFd<OwnedFd>,
    /// Kept, too, lest the other side come to an end.
    _slave: OwnedFd,
    path: String,
}

impl Terminal {
    fn open() -> io::Result<Self> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags | OFlag::O_NONBLOCK)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let path = ptsname_r(&master)?;
        let slave = open(path.as_str(), flags, Mode::empty())?;
        let mut settings = tcgetattr(&slave)?;
        cfmakeraw(&mut settings);
        tcsetattr(&slave, SetArg::TCSANOW, &settings)?;
        Ok(Self {
            master: watched(master.into())?,
            _slave: slave,
            path,
        })
    }
}

fn watched(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    fcntl(&descriptor, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    // SAFETY: an `OwnedFd` keeps its descriptor open, and the same, as long as it lives.
    unsafe { AsyncFd::register(descriptor) }.map_err(io::Error::from)
}

/// Reads what has come.
async fn read(master: &AsyncFd<OwnedFd>) -> io::Result<Vec<u8>> {
    let mut buffer = [0; CHUNK_BYTES];
    loop {
        let mut ready = master.readable().await?;
        match nix::unistd::read(master.get_ref(), &mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => return Ok(buffer[..bytes].to_vec()),
            Err(nix::errno::Errno::EAGAIN) => ready.clear_ready(),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Writes some of `data`; how much.
async fn write(master: &AsyncFd<OwnedFd>, data: &[u8]) -> io::Result<usize> {
    loop {
        let mut ready = master.writable().await?;
        match nix::unistd::write(master.get_ref(), data) {
            Ok(bytes) => return Ok(bytes),
            Err(nix::errno::Errno::EAGAIN) => ready.clear_ready(),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// All lines of a guest.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    lines: BTreeMap<Line, Held>,
    sockets: Vec<PathBuf>,
}

#[derive(Debug)]
struct Held {
    /// The guest's end, until the guest's process has it.
    guest: Option<OwnedFd>,
    typed: mpsc::Sender<Vec<u8>>,
    /// Something typed was lost, and that was said.
    losing: bool,
    task: JoinHandle<()>,
}

enum Listener {
    None,
    Unix(UnixListener),
    Port(TcpListener),
}

impl Lines {
    /// Makes the ends of all lines; an error is one line.
    pub(crate) async fn open(
        wanted: Vec<(Line, Channel)>,
        sender: &Sender,
    ) -> Result<Self, String> {
        let mut lines = Self::default();
        for (line, channel) in wanted {
            let failed = |error: io::Error| format!("line {line}={channel}: {error}");
            let (ours, guest) = UnixStream::pair().map_err(failed)?;
            let ours = watched(ours.into()).map_err(failed)?;
            let mut other = None;
            let listener = match &channel {
                Channel::Console => Listener::None,
                Channel::Unix { path } => {
                    let path = crate::supervise::path(path);
                    let listener = UnixListener::bind(&path).map_err(failed)?;
                    lines.sockets.push(path.clone());
                    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600))
                        .map_err(failed)?;
                    Listener::Unix(listener)
                }
                Channel::Port { address } => {
                    Listener::Port(TcpListener::bind(address).await.map_err(failed)?)
                }
                Channel::Terminal => {
                    let host = Terminal::open().map_err(failed)?;
                    let path = std::ffi::OsString::from(&host.path).into_vec();
                    let _ = sender.send(FromAgent::LineTerminal { line, path }).await;
                    other = Some(host);
                    Listener::None
                }
            };
            let (typed, input) = mpsc::channel(WAITING_CHUNKS_MAX);
            let end = End {
                line,
                sender: sender.clone(),
                connected: Vec::new(),
                output: VecDeque::new(),
            };
            let task = tokio::spawn(end.serve(ours, listener, other, typed.clone(), input));
            let held = Held {
                guest: Some(guest.into()),
                typed,
                losing: false,
                task,
            };
            lines.lines.insert(line, held);
        }
        Ok(lines)
    }

    /// Value of [`span_api::guest::LINE_FDS_ENV`].
    pub(crate) fn variable(&self) -> String {
        let ends = self
            .ends()
            .map(|(line, end)| format!("{}:{end}", line.index()));
        ends.collect::<Vec<_>>().join(",")
    }

    /// What is to be inherited.
    pub(crate) fn descriptors(&self) -> Vec<RawFd> {
        self.ends().map(|(_, end)| end).collect()
    }

    fn ends(&self) -> impl Iterator<Item = (Line, RawFd)> {
        let lines = self.lines.iter();
        lines.filter_map(|(line, held)| Some((*line, held.guest.as_ref()?.as_raw_fd())))
    }

    /// The guest's process has its ends.
    pub(crate) fn inherited(&mut self) {
        for held in self.lines.values_mut() {
            held.guest = None;
        }
    }

    /// Passes on what somebody typed. The guest may not read it for as long as it likes: this does not wait.
    pub(crate) fn typed(&mut self, line: Line, data: Vec<u8>, sender: &Sender) {
        let Some(held) = self.lines.get_mut(&line) else {
            return;
        };
        let lost = held.typed.try_send(data).is_err();
        if lost && !held.losing {
            let said = format!("span: {line}: what is typed is lost, the guest does not read it\n");
            let _ = sender.try_send(FromAgent::Log(said.into_bytes()));
        }
        held.losing = lost;
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        for held in self.lines.values() {
            held.task.abort();
        }
        for path in &self.sockets {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Somebody who is connected.
struct Connected {
    chunks: mpsc::Sender<Vec<u8>>,
    task: AbortHandle,
}

/// This side of one line.
struct End {
    line: Line,
    sender: Sender,
    connected: Vec<Connected>,
    /// For the coordinator.
    output: VecDeque<u8>,
}

impl End {
    async fn serve(
        mut self,
        ours: AsyncFd<OwnedFd>,
        listener: Listener,
        other: Option<Terminal>,
        typed: mpsc::Sender<Vec<u8>>,
        mut input: mpsc::Receiver<Vec<u8>>,
    ) {
        let mut connections = JoinSet::new();
        if let Some(other) = other {
            let (chunks, output) = mpsc::channel(WAITING_CHUNKS_MAX);
            let task = connections.spawn(bridge(other, output, typed.clone()));
            self.connected.push(Connected { chunks, task });
        }
        let sender = self.sender.clone();
        let mut pending: Vec<u8> = Vec::new();
        let mut stalled: Option<Instant> = None;
        loop {
            let full = self.output.len() >= OUTPUT_BYTES_MAX;
            let until = match (full, stalled) {
                (false, _) => None,
                (true, Some(until)) => Some(until),
                (true, None) => Some(Instant::now() + Duration::from_millis(STALLED_MS_MAX)),
            };
            stalled = until;
            let waiting = until.filter(|until| *until > Instant::now());
            tokio::select! {
                chunk = read(&ours), if waiting.is_none() => match chunk {
                    Ok(chunk) => {
                        self.put(chunk);
                        // They are on this thread.
                        tokio::task::yield_now().await;
                    }
                    Err(_) => return,
                },
                () = async {
                    if let Some(until) = waiting {
                        sleep_until(until).await;
                    }
                }, if waiting.is_some() => {}
                permit = sender.reserve(), if !self.output.is_empty() => {
                    let Ok(permit) = permit else { return };
                    let bytes = self.output.len().min(CHUNK_BYTES);
                    let (line, data) = (self.line, self.output.drain(..bytes).collect());
                    permit.send(FromAgent::Line { line, data });
                    stalled = None;
                }
                Some(data) = input.recv(), if pending.is_empty() => pending = data,
                written = write(&ours, &pending), if !pending.is_empty() => match written {
                    Ok(bytes) => _ = pending.drain(..bytes),
                    Err(_) => return,
                },
                connection = accept(&listener), if self.connected.len() < CONNECTIONS_MAX => {
                    if let Some((reader, writer)) = connection {
                        let (chunks, output) = mpsc::channel(WAITING_CHUNKS_MAX);
                        let relay = relay(reader, writer, output, typed.clone());
                        let task = connections.spawn(relay);
                        self.connected.push(Connected { chunks, task });
                    }
                }
                Some(_) = connections.join_next() => {
                    self.connected.retain(|one| !one.chunks.is_closed());
                }
            }
        }
    }

    fn put(&mut self, chunk: Vec<u8>) {
        // Who does not keep up is disconnected.
        self.connected.retain(|one| {
            let taken = one.chunks.try_send(chunk.clone()).is_ok();
            if !taken {
                one.task.abort();
            }
            taken
        });
        self.output.extend(chunk);
        let excess = self.output.len().saturating_sub(OUTPUT_BYTES_MAX);
        // At most one chunk is more than there is room for while it does not stall.
        if excess > CHUNK_BYTES {
            self.output.drain(..excess);
        }
    }
}

type Reader = Box<dyn AsyncRead + Unpin + Send>;
type Writer = Box<dyn AsyncWrite + Unpin + Send>;

async fn accept(listener: &Listener) -> Option<(Reader, Writer)> {
    let accepted = match listener {
        Listener::None => std::future::pending().await,
        Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
            let (reader, writer) = stream.into_split();
            (Box::new(reader) as Reader, Box::new(writer) as Writer)
        }),
        Listener::Port(listener) => listener.accept().await.map(|(stream, _)| {
            let (reader, writer) = stream.into_split();
            (Box::new(reader) as Reader, Box::new(writer) as Writer)
        }),
    };
    if accepted.is_err() {
        // Of descriptors, say; they will not always be in use.
        sleep(Duration::from_millis(100)).await;
    }
    accepted.ok()
}

/// Serves one connection until either side is done with it.
async fn relay(
    mut reader: Reader,
    mut writer: Writer,
    mut output: mpsc::Receiver<Vec<u8>>,
    typed: mpsc::Sender<Vec<u8>>,
) {
    let out = async {
        while let Some(chunk) = output.recv().await {
            if writer.write_all(&chunk).await.is_err() {
                return;
            }
        }
    };
    let into = async {
        let mut buffer = [0; CHUNK_BYTES];
        while let Ok(bytes @ 1..) = reader.read(&mut buffer).await {
            if typed.send(buffer[..bytes].to_vec()).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = out => {}
        () = into => {}
    }
}

/// Serves a terminal of the host, where nobody may be.
async fn bridge(
    terminal: Terminal,
    mut output: mpsc::Receiver<Vec<u8>>,
    typed: mpsc::Sender<Vec<u8>>,
) {
    loop {
        tokio::select! {
            chunk = output.recv() => {
                let Some(chunk) = chunk else { return };
                // What it has no room for is lost.
                let _ = nix::unistd::write(terminal.master.get_ref(), &chunk);
            }
            data = read(&terminal.master) => {
                let Ok(data) = data else { return };
                if typed.send(data).await.is_err() {
                    return;
                }
            }
        }
    }
}
