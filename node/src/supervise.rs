//! One node of one guest: obtains what the guest process needs, starts it, relays between it and the
//! coordinator, and cleans up.
//!
//! The main loop ([`run`]) only reads the coordinator's messages and never waits for the guest process:
//! a guest process that hangs cannot keep the coordinator from ending it. What the guest process says
//! and logs goes to the coordinator by tasks of their own, so that it can wait for the coordinator
//! without holding up the loop.

use crate::artefacts::{Artefacts, Cache};
use crate::directory::Directory;
use crate::lines::Lines;
use crate::link::{Link, Sender, chain};
use crate::network::{Behind, Networks};
use crate::process::{Change, Process, Start};
use crate::switch::peers::Switches;
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use span_api::codec;
use span_api::guest::{Export, FromGuest, Kind, Setup, ToGuest};
use span_api::line::check_argument;
use span_api::link::{CHUNK_BYTES_MAX, FromAgent, Hello, Spawn, ToAgent};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Messages waiting for the guest process. It reads them at once unless something is wrong with it.
const GUEST_QUEUE_MESSAGES_MAX: usize = 16;

/// Longest wait for a session stream that the coordinator opened beside the link.
const SESSION_MS_MAX: u64 = 5000;

/// Longest wait for the first word of a guest process: one of another version may wait for the agent's.
const HELLO_MS_MAX: u64 = 10_000;

/// Longest wait for the last words of a guest process that is gone, and for them to be taken.
const DRAIN_MS_MAX: u64 = 200;

/// Where the session channel of the first node comes from.
#[derive(Debug)]
pub(crate) enum Session {
    /// A socket inherited from the coordinator, if this is the first node.
    Inherited(Option<OwnedFd>),
    /// Delivered once the coordinator has opened the stream for it.
    Stream(oneshot::Receiver<OwnedFd>),
}

/// The surroundings of one conversation.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) session: Session,
    /// Where artefacts of coordinators elsewhere are kept; a local agent uses the coordinator's files.
    pub(crate) cache: Option<Cache>,
    /// Where the guest process may work, for a daemon; a local agent works in the run directory.
    pub(crate) work: Option<PathBuf>,
    /// What a guest may mount of this host, for a daemon; a local agent leaves it to its coordinator.
    pub(crate) exports: Option<Vec<Export>>,
    /// The switches of a daemon; those of local agents are processes.
    pub(crate) switches: Option<Switches>,
    /// Memory with the queues of uplinks, which only nodes of the coordinator's own host share.
    pub(crate) uplinks: Option<OwnedFd>,
    /// Becomes true when this process was asked to stop.
    pub(crate) stopping: watch::Receiver<bool>,
}

/// Why a conversation is over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Over {
    #[error("ended by the coordinator")]
    End,
    #[error("the coordinator is gone: {0}")]
    Lost(String),
    #[error("{0}")]
    Failed(String),
    #[error("stopped")]
    Stopped,
}

/// How a conversation went.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) over: Over,
    /// The run directory that the coordinator named.
    pub(crate) run_directory: Option<PathBuf>,
}

/// Serves one conversation to its end. When this returns, the guest process and everything it left
/// is gone.
pub(crate) async fn run(mut link: Link, mut host: Host) -> Outcome {
    let artefacts = Artefacts::new(host.cache.take());
    let mut node = Node {
        artefacts,
        guest: None,
        run_directory: None,
    };
    let mut stopping = host.stopping.clone();
    let over = loop {
        let message = tokio::select! {
            message = link.next() => message,
            _ = stopping.wait_for(|stopping| *stopping) => break Over::Stopped,
        };
        let handled = match message {
            Ok(ToAgent::End) => break Over::End,
            Ok(message) => node.handle(message, &mut host, &link.sender()).await,
            Err(error) => break Over::Lost(chain(&error)),
        };
        if let Err(line) = handled {
            break Over::Failed(line);
        }
    };

    let sender = link.sender();
    let report = async {
        // A coordinator that does not read must not keep the guest process alive.
        if let Over::Failed(line) = &over {
            let _ = sender.send(FromAgent::Failed(line.clone())).await;
        } else if let Over::Stopped = &over {
            let line = "its daemon was stopped".to_string();
            let _ = sender.send(FromAgent::Failed(line)).await;
        }
    };
    let _ = timeout(Duration::from_millis(DRAIN_MS_MAX), report).await;
    if let Some(guest) = node.guest.take() {
        guest.end().await;
    }
    let _ = timeout(
        Duration::from_millis(DRAIN_MS_MAX),
        sender.send(FromAgent::Ended),
    )
    .await;
    drop(sender);
    link.close().await;
    Outcome {
        over,
        run_directory: node.run_directory,
    }
}

#[derive(Debug)]
struct Node {
    artefacts: Artefacts,
    guest: Option<Guest>,
    run_directory: Option<PathBuf>,
}

impl Node {
    /// Handles one message; an error is one line that ends the conversation.
    async fn handle(
        &mut self,
        message: ToAgent,
        host: &mut Host,
        sender: &Sender,
    ) -> Result<(), String> {
        match message {
            ToAgent::Heartbeat | ToAgent::End => Ok(()),
            ToAgent::Offer(offer) => {
                let need = self.artefacts.offer(offer)?;
                sender.send(FromAgent::Need(need)).await.map_err(|_| gone())
            }
            ToAgent::Chunk { kind, data } => {
                if self.artefacts.chunk(kind, &data)? {
                    sender
                        .send(FromAgent::Need(Vec::new()))
                        .await
                        .map_err(|_| gone())?;
                }
                Ok(())
            }
            ToAgent::Spawn(spawn) => {
                if self.guest.is_some() {
                    return Err("asked to start a second guest process".into());
                }
                self.run_directory = spawn.run_directory.as_deref().map(path);
                let guest = Guest::start(*spawn, &self.artefacts, host, sender.clone()).await?;
                let pid = guest.pid;
                self.guest = Some(guest);
                sender
                    .send(FromAgent::Spawned { pid })
                    .await
                    .map_err(|_| gone())
            }
            ToAgent::Guest(message) => match &self.guest {
                Some(guest) => guest.send(message),
                None => Err("got a message for a guest process that was not started".into()),
            },
            ToAgent::Line { line, data } => {
                if let Some(guest) = &mut self.guest {
                    guest.lines.typed(line, data, sender);
                }
                Ok(())
            }
        }
    }
}

fn gone() -> String {
    "the coordinator is gone".into()
}

/// A started guest process with its relays.
#[derive(Debug)]
struct Guest {
    pid: i32,
    messages: mpsc::Sender<ToGuest>,
    /// Dropped to have the process ended.
    keep: oneshot::Sender<()>,
    supervisor: JoinHandle<()>,
    behind: Behind,
    lines: Lines,
    _directory: Directory,
}

impl Guest {
    async fn start(
        spawn: Spawn,
        artefacts: &Artefacts,
        host: &mut Host,
        sender: Sender,
    ) -> Result<Self, String> {
        let index = spawn.setup.node;
        if usize::from(index) >= spawn.setup.nodes.len() {
            return Err(format!(
                "asked to start node {index} of {}",
                spawn.setup.nodes.len()
            ));
        }
        if let Some(exports) = &host.exports {
            check_exported(&spawn.disks, exports)?;
        }
        check_readable(&spawn.readable)?;
        let cpus = affinity(&spawn.host_cpus)?;
        if index == 0 {
            let mut arguments = spawn.arguments.iter();
            arguments.try_for_each(|argument| check_argument(argument))?;
        }
        let base = match (&host.work, &spawn.run_directory) {
            (Some(work), _) => work.clone(),
            (None, Some(directory)) => path(directory),
            (None, None) => return Err("asked to work without a directory".into()),
        };
        let directory = Directory::create(base.join(format!("node-{index}")))
            .map_err(|error| format!("{} cannot be made: {error}", base.display()))?;
        let files = artefacts.place(directory.path())?;

        let first = index == 0;
        let session = if first {
            Some(session(&mut host.session).await?)
        } else {
            None
        };
        let mut arguments = Vec::with_capacity(spawn.arguments.len() + 1);
        if first && let Some(initramfs) = &files.initramfs {
            let mut argument = b"initrd=".to_vec();
            argument.extend(initramfs.clone().into_os_string().into_vec());
            arguments.push(argument);
        }
        arguments.extend(spawn.arguments);

        let setup = |error: std::io::Error| format!("the guest process cannot be set up: {error}");
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(setup)?;
        ours.set_nonblocking(true).map_err(setup)?;
        let (reader, writer) = UnixStream::from_std(ours).map_err(setup)?.into_split();
        let (log_reader, log_writer) = std::io::pipe().map_err(setup)?;
        let log = pipe::Receiver::from_owned_fd(log_reader.into()).map_err(setup)?;

        let networks = Networks::open(
            spawn.networks,
            directory.path(),
            &log_writer,
            &sender,
            host.switches.as_ref(),
        )
        .await?;
        let mut lines = Lines::open(spawn.lines, &sender).await?;
        let process = Process::start(Start {
            program: &files.linux,
            arguments: &arguments,
            directory: directory.path(),
            cpus,
            libraries: files.libraries.as_deref(),
            guest: theirs.into(),
            session,
            networks: &networks,
            lines: &lines,
            uplinks: host.uplinks.take(),
            output: log_writer.into(),
        })
        .map_err(|error| format!("{} cannot be started: {error}", files.linux.display()))?;
        lines.inherited();
        let pid = process.pid();
        tracing::debug!(
            "guest {} node {index}: guest process {pid} started",
            spawn.guest
        );

        let patient = spawn.setup.patient;
        let (messages, queue) = mpsc::channel(GUEST_QUEUE_MESSAGES_MAX);
        tokio::spawn(to_guest(writer, queue));
        let relays = [
            tokio::spawn(from_guest(
                reader,
                Setup {
                    any_disk: host.exports.is_none(),
                    exports: host.exports.clone().unwrap_or(spawn.setup.exports),
                    ..spawn.setup
                },
                messages.clone(),
                sender.clone(),
            )),
            tokio::spawn(from_log(log, sender.clone())),
        ];
        let (keep, kept) = oneshot::channel();
        let supervisor = tokio::spawn(supervise(process, relays, kept, sender, patient));
        Ok(Self {
            pid,
            messages,
            keep,
            supervisor,
            behind: networks.into_behind(),
            lines,
            _directory: directory,
        })
    }

    fn send(&self, message: ToGuest) -> Result<(), String> {
        match self.messages.try_send(message) {
            // A guest process that closed its socket is about to be reported as ended.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err("the guest process does not read its messages".into())
            }
        }
    }

    async fn end(self) {
        drop(self.keep);
        let _ = self.supervisor.await;
        self.behind.end().await;
    }
}

/// Reports the end of the process, after everything it said; ends it when `kept` is dropped. A process
/// that was stopped is reported to be lost, unless this is patient.
async fn supervise(
    mut process: Process,
    relays: [JoinHandle<()>; 2],
    mut kept: oneshot::Receiver<()>,
    sender: Sender,
    patient: bool,
) {
    let change = loop {
        let change = tokio::select! {
            change = process.change() => Some(change),
            _ = &mut kept => None,
        };
        match change {
            Some(Change::Stopped(_)) if patient => {}
            change => break change,
        }
    };
    if let Some(Change::Stopped(signal)) = change {
        let line = format!("its guest process was stopped by {signal}");
        let report = async {
            let _ = sender.send(FromAgent::Failed(line)).await;
            std::future::pending().await
        };
        tokio::select! {
            () = report => {}
            _ = &mut kept => {}
        }
    }
    let end = process.end().await;
    for relay in relays {
        let abort = relay.abort_handle();
        if timeout(Duration::from_millis(DRAIN_MS_MAX), relay)
            .await
            .is_err()
        {
            abort.abort();
        }
    }
    if change == Some(Change::Ended) {
        let _ = sender.send(FromAgent::Exited(end)).await;
    }
}

async fn to_guest(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<ToGuest>) {
    while let Some(message) = queue.recv().await {
        if let Err(error) = codec::write_async(&mut writer, &message).await {
            tracing::debug!("the guest process takes no more messages: {error}");
            return;
        }
    }
}

/// Sets the guest process up if it is of this build, and relays what it says.
async fn from_guest(
    mut reader: OwnedReadHalf,
    setup: Setup,
    messages: mpsc::Sender<ToGuest>,
    sender: Sender,
) {
    match hello(&mut reader).await {
        Ok(true) => {}
        Ok(false) => return,
        Err(line) => {
            let _ = sender.send(FromAgent::Guest(FromGuest::Failed(line))).await;
            return;
        }
    }
    // Nothing else is sent before it has answered.
    let _ = messages.send(ToGuest::Setup(Box::new(setup))).await;
    drop(messages);
    loop {
        let message = match codec::read_async::<FromGuest>(&mut reader).await {
            Ok(Some(message)) => FromAgent::Guest(message),
            Ok(None) => return,
            // The process ended within a message.
            Err(codec::CodecError::Io(_)) => return,
            Err(error) => {
                let line = format!("the guest process sent a bad message: {error}");
                let _ = sender.send(FromAgent::Guest(FromGuest::Failed(line))).await;
                return;
            }
        };
        if sender.send(message).await.is_err() {
            return;
        }
    }
}

/// Reads the greeting of the guest process; false if it ended instead. An error is one line.
async fn hello(reader: &mut OwnedReadHalf) -> Result<bool, String> {
    let greeting = codec::read_async::<Hello>(reader);
    match timeout(Duration::from_millis(HELLO_MS_MAX), greeting).await {
        Ok(Ok(Some(hello))) => match hello.check() {
            Ok(()) => Ok(true),
            Err(error) => Err(format!("its libnode.so is {error}")),
        },
        Ok(Ok(None) | Err(codec::CodecError::Io(_))) => Ok(false),
        Ok(Err(error)) => Err(format!("its libnode.so is no part of Span: {error}")),
        Err(_) => Err(format!(
            "its libnode.so is another version: no greeting within {HELLO_MS_MAX} ms"
        )),
    }
}

async fn from_log(mut log: pipe::Receiver, sender: Sender) {
    let mut buffer = vec![0; CHUNK_BYTES_MAX];
    while let Ok(bytes @ 1..) = log.read(&mut buffer).await {
        if sender
            .send(FromAgent::Log(buffer[..bytes].to_vec()))
            .await
            .is_err()
        {
            return;
        }
    }
}

async fn session(session: &mut Session) -> Result<OwnedFd, String> {
    match session {
        Session::Inherited(fd) => fd
            .take()
            .ok_or("no session channel was inherited".to_string()),
        Session::Stream(stream) => timeout(Duration::from_millis(SESSION_MS_MAX), stream)
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or("the coordinator opened no session stream".to_string()),
    }
}

/// Says early what the guest's kernel would find out: the runtime has the last word.
fn check_exported(disks: &[Vec<u8>], exports: &[Export]) -> Result<(), String> {
    for disk in disks {
        let file = Export {
            kind: Kind::Directory,
            directory: disk.clone(),
            read_only: true,
        };
        if !exports.iter().any(|export| export.holds(&file)) {
            return Err(format!(
                "{} is in no directory that this node exports",
                path(disk).display()
            ));
        }
    }
    Ok(())
}

/// The host's CPUs that the guest process is to run on: of those that this process may.
fn affinity(wanted: &[u16]) -> Result<Option<CpuSet>, String> {
    if wanted.is_empty() {
        return Ok(None);
    }
    let refused = |error: Errno| format!("the host's CPUs cannot be chosen: {error}");
    let allowed = sched_getaffinity(Pid::from_raw(0)).map_err(refused)?;
    let mut cpus = CpuSet::new();
    for &cpu in wanted {
        let cpu = usize::from(cpu);
        if !allowed.is_set(cpu).unwrap_or(false) {
            return Err(format!(
                "CPU {cpu} of the host is none that it may run on; those are {}",
                ranges(&allowed)
            ));
        }
        cpus.set(cpu).map_err(refused)?;
    }
    Ok(Some(cpus))
}

/// As `0-3,8`.
fn ranges(cpus: &CpuSet) -> String {
    let has = |cpu: usize| cpus.is_set(cpu).unwrap_or(false);
    let mut ranges: Vec<String> = Vec::new();
    let mut next = 0;
    while let Some(first) = (next..CpuSet::count()).find(|cpu| has(*cpu)) {
        next = (first..).find(|cpu| !has(*cpu)).unwrap_or(first + 1);
        ranges.push(match next - 1 {
            last if last == first => first.to_string(),
            last => format!("{first}-{last}"),
        });
    }
    ranges.join(",")
}

fn check_readable(paths: &[Vec<u8>]) -> Result<(), String> {
    for path in paths.iter().map(|bytes| path(bytes)) {
        let opened = std::fs::metadata(&path).and_then(|metadata| {
            if metadata.is_dir() {
                std::fs::read_dir(&path).map(drop)
            } else {
                std::fs::File::open(&path).map(drop)
            }
        });
        opened.map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    }
    Ok(())
}

pub(crate) fn path(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(bytes)).to_path_buf()
}
