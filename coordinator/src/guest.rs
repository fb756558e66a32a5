//! One guest from its start to its end.
//!
//! Everything that happens arrives as an [`Event`] in one bounded queue and is handled here, one after
//! the other: the start (a [`Phase`] at a time, as [`span_api::guest`] orders it), the time the guest
//! runs, and its end ([`ending`]).

mod counters;
mod ending;
mod hosts;
mod links;
mod messages;
mod profile;
mod silence;

pub(crate) use ending::Ending;
pub(crate) use profile::{Profiled, Subject};

use crate::artefacts::Contents;
use crate::certificates::Certificates;
use crate::control::Request;
use crate::failure::{Failure, one_line};
use crate::lines::Hub;
use crate::link::{self, Connected, Link, Lost, Target};
use crate::local;
use crate::output::{Log, Progress};
use crate::plan::Plan;
use crate::remote::Remote;
use crate::rundir::RunDirectory;
use crate::session::{InitEvent, Session, Sessions};
use crate::stdio::{self, Ended};
use crate::terminal;
use counters::Wanted;
use ending::Cause;
use span_api::guest::{HaltKind, Paging, Setup, Stats, ToGuest};
use span_api::host::Host;
use span_api::link::{FromAgent, Spawn, ToAgent};
use span_api::session::Command;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

/// Events waiting to be handled.
const EVENTS_MAX: usize = 256;

/// Longest time a guest may take to boot. A busy machine with one core boots 64 CPUs in less.
const BOOT_MS_MAX: u64 = 300_000;

/// Longest wait for a kernel to stop whose init said that it ends the guest.
const HALT_MS_MAX: u64 = 1500;

/// Longest wait for CPUs to be reported once init runs: by then the kernel has brought up all it can.
const CPUS_MS_MAX: u64 = 2000;

#[derive(Debug)]
pub(crate) enum Event {
    Connected {
        node: usize,
        result: Box<Connected>,
    },
    Agent {
        node: usize,
        message: FromAgent,
    },
    AgentLost {
        node: usize,
        reason: Lost,
    },
    Init(InitEvent),
    /// The command or shell of `up` ended.
    Command(Ended),
    Signal(i32),
    Request(Request),
}

/// How far a guest has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Agents are being reached, and start guest processes.
    Connect,
    /// Runtimes map memory and bind their sockets.
    Map,
    /// Runtimes connect to each other.
    Meet,
    Boot,
    Running,
    Ending,
}

/// What is done with the guest once it is ready.
#[derive(Debug)]
pub(crate) enum Foreground {
    /// The guest lives as long as this session.
    Session {
        command: Command,
        options: stdio::Options,
    },
    /// Somebody is told, and the guest lives on.
    Detached(oneshot::Sender<()>),
    /// The same within this process, which goes on to show the kernel log.
    Driven(oneshot::Sender<()>),
}

#[derive(Debug, Default)]
struct Node {
    link: Option<Link>,
    host: Option<Host>,
    /// Where its runtime listens for its peers.
    address: Option<IpAddr>,
    port: Option<u16>,
    /// How its runtime protects pages.
    paging: Option<Paging>,
    connected: bool,
    /// Its agent has said its last word.
    ended: bool,
    /// It went without a last word.
    lost: bool,
    /// Its guest process.
    pid: Option<i32>,
    /// Host threads of its virtual CPUs.
    cpus: BTreeMap<u16, i32>,
    stats: Option<Stats>,
    silence: silence::Silence,
}

#[derive(Debug)]
pub(crate) struct Guest {
    plan: Plan,
    run: RunDirectory,
    log: Log,
    progress: Progress,
    started: SystemTime,
    phase: Phase,
    nodes: Vec<Node>,
    foreground: Option<Foreground>,
    session: Option<Session>,
    sessions: Option<Sessions>,
    /// What others may use once the guest runs.
    ready: watch::Sender<Option<Sessions>>,
    lines: Hub,
    kernel: Option<String>,
    /// Init said that it ends the guest.
    halting: Option<HaltKind>,
    /// CPUs that init counted.
    cpus_online: u32,
    deadline: Instant,
    status_requests: Vec<counters::Wanted>,
    status_deadline: Option<Instant>,
    ask_deadline: Instant,
    profile: profile::Profile,
    link_changes: links::Changes,
    probes: links::Probes,
    /// By CPU: how far its variables are from their model in the kernel's file.
    variables: BTreeMap<u16, u64>,
    connecting: JoinSet<()>,
    events: mpsc::Receiver<Event>,
    sender: mpsc::Sender<Event>,
}

impl Guest {
    pub(crate) fn new(plan: Plan, run: RunDirectory, log: Log, foreground: Foreground) -> Self {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let ready = watch::Sender::new(None);
        Self {
            lines: Hub::new(&plan.lines, ready.subscribe()),
            nodes: plan.nodes.iter().map(|_| Node::default()).collect(),
            plan,
            run,
            log,
            progress: Progress::new(),
            started: SystemTime::now(),
            phase: Phase::Connect,
            foreground: Some(foreground),
            session: None,
            sessions: None,
            ready,
            kernel: None,
            halting: None,
            cpus_online: 0,
            deadline: Instant::now() + Duration::from_millis(BOOT_MS_MAX),
            status_requests: Vec::new(),
            status_deadline: None,
            ask_deadline: Instant::now(),
            profile: profile::Profile::default(),
            link_changes: links::Changes::default(),
            probes: links::Probes::default(),
            variables: BTreeMap::new(),
            connecting: JoinSet::new(),
            events,
            sender,
        }
    }

    /// Where events of this guest go.
    pub(crate) fn events(&self) -> mpsc::Sender<Event> {
        self.sender.clone()
    }

    /// Holds the guest's sessions from when it is ready.
    pub(crate) fn ready(&self) -> watch::Receiver<Option<Sessions>> {
        self.ready.subscribe()
    }

    pub(crate) fn lines(&self) -> Hub {
        self.lines.clone()
    }

    /// Starts the guest, and serves it to its end. When this returns, nothing of it is left but its run
    /// directory, which goes away with the ending.
    pub(crate) async fn run(mut self) -> Ending {
        let cause = match self.connect() {
            Ok(()) => self.live().await,
            Err(failure) => Cause::Failed(failure.line),
        };
        self.end(cause).await
    }

    async fn live(&mut self) -> Cause {
        loop {
            let result = match self.next_event().await {
                Some(event) => self.handle(event).and_then(|()| self.advance()),
                None => self.overdue(),
            };
            if let Err(cause) = result {
                return self.settle(cause).await;
            }
        }
    }

    /// The next event, or `None` when something is overdue.
    async fn next_event(&mut self) -> Option<Event> {
        let deadline = match self.phase {
            Phase::Running if self.halting.is_none() => None,
            _ => Some(self.deadline),
        };
        let all = [deadline, self.status_deadline, self.asks_at()];
        match all.into_iter().flatten().min() {
            None => self.events.recv().await,
            Some(deadline) => timeout_at(deadline, self.events.recv())
                .await
                .ok()
                .flatten(),
        }
    }

    fn overdue(&mut self) -> Result<(), Cause> {
        let now = Instant::now();
        if self.status_deadline.is_some_and(|deadline| deadline <= now) {
            self.answer_status();
        }
        if self.asks_at().is_some_and(|deadline| deadline <= now) {
            self.ask_all()?;
        }
        if self.deadline > now {
            return Ok(());
        }
        if let Some(kind) = self.halting {
            return Err(Cause::Halted(kind));
        }
        if self.phase >= Phase::Running {
            return Ok(());
        }
        let stage = match self.phase {
            Phase::Connect => "its nodes did not start",
            Phase::Map => "its nodes did not map its memory",
            Phase::Meet => "its nodes did not connect to each other",
            _ if self.kernel.is_some() => {
                let (reported, all) = (self.cpus_reported(), self.plan.cpus());
                let online = reported.min(self.cpus_online as usize);
                return Err(Cause::Failed(format!(
                    "only {online} of {all} CPUs came online"
                )));
            }
            _ => "it did not boot",
        };
        Err(Cause::Failed(format!(
            "{stage} within {} s",
            BOOT_MS_MAX / 1000
        )))
    }

    fn handle(&mut self, event: Event) -> Result<(), Cause> {
        match event {
            Event::Connected { node, result } => self.connected(node, *result),
            Event::Agent { node, message } => self.agent(node, message),
            Event::AgentLost { node, reason } => {
                self.log.finish(node);
                if std::mem::replace(&mut self.nodes[node].ended, true) {
                    return Ok(());
                }
                self.nodes[node].lost = true;
                match self.lost(node, reason.to_string()) {
                    Cause::Lost { node, reason: line } if reason.is_silence() => {
                        Err(Cause::Silent { node, reason: line })
                    }
                    cause => Err(cause),
                }
            }
            Event::Init(InitEvent::Ready { kernel, cpus }) => {
                self.kernel = Some(one_line(&kernel));
                self.cpus_online = cpus;
                self.deadline = Instant::now() + Duration::from_millis(CPUS_MS_MAX);
                Ok(())
            }
            Event::Init(InitEvent::Ending(kind)) => {
                self.halting = Some(kind);
                self.deadline = Instant::now() + Duration::from_millis(HALT_MS_MAX);
                Ok(())
            }
            // What follows from the guest's own end is not its cause.
            Event::Init(InitEvent::Broken(_)) | Event::Command(_) if self.halting.is_some() => {
                Ok(())
            }
            Event::Init(InitEvent::Failed(line)) => Err(Cause::Failed(one_line(&line))),
            Event::Init(InitEvent::Broken(line)) => Err(Cause::Broken(line)),
            Event::Command(Ended::Code(code)) => Err(Cause::Command { code, line: None }),
            Event::Command(Ended::NotStarted(code, line)) => Err(Cause::Command {
                code,
                line: Some(one_line(&line)),
            }),
            Event::Command(Ended::Detached) => Err(Cause::Command {
                code: 0,
                line: None,
            }),
            Event::Command(Ended::Lost) => Err(Cause::Broken(
                "the command ended without an exit code".into(),
            )),
            Event::Signal(signal) => Err(Cause::Signal(signal)),
            Event::Request(Request::Status(reply)) => self.request_status(Wanted::Status(reply)),
            Event::Request(Request::Links(reply)) => self.request_status(Wanted::Links(reply)),
            Event::Request(Request::Link {
                ways,
                one_way,
                change,
                reply,
            }) => self.change_links(ways, one_way, change, reply),
            Event::Request(Request::Probe {
                from,
                to,
                bytes,
                reply,
            }) => self.probe(from, to, bytes, reply),
            Event::Request(Request::Profile(reply)) => self.begin_profile(reply),
            Event::Request(Request::Profiling(what)) => self.ask_faults(what),
            Event::Request(Request::Subject(reply)) => {
                let _ = reply.send(self.subject());
                Ok(())
            }
            Event::Request(Request::Down) => Err(Cause::Down),
        }
    }

    /// Goes on to the next phase when everything the present one waits for has come.
    fn advance(&mut self) -> Result<(), Cause> {
        loop {
            let all = |done: fn(&Node) -> bool| self.nodes.iter().all(done);
            match self.phase {
                Phase::Connect if all(|node| node.pid.is_some()) => {
                    let nodes = self.nodes.len();
                    let plural = if nodes == 1 { "" } else { "s" };
                    self.progress
                        .stage("connect", &format!("{nodes} node{plural}"));
                    self.phase = Phase::Map;
                }
                Phase::Map if all(|node| node.host.is_some() && node.port.is_some()) => {
                    let addresses = self
                        .nodes
                        .iter()
                        .filter_map(|node| Some(SocketAddr::new(node.address?, node.port?)));
                    let peers = ToGuest::Peers(addresses.collect());
                    self.send_all(&ToAgent::Guest(peers))?;
                    self.phase = Phase::Meet;
                }
                Phase::Meet if all(|node| node.connected) => {
                    let mib = self.plan.memory_bytes() >> 20;
                    self.progress.stage("map memory", &format!("{mib} MiB"));
                    self.profile_boot()?;
                    self.send_all(&ToAgent::Guest(ToGuest::Start))?;
                    self.phase = Phase::Boot;
                }
                Phase::Boot if self.cpus_complete() => self.booted()?,
                _ => return Ok(()),
            }
        }
    }

    fn cpus_reported(&self) -> usize {
        self.nodes.iter().map(|node| node.cpus.len()).sum()
    }

    fn cpus_complete(&self) -> bool {
        let all = self.plan.cpus();
        self.kernel.is_some() && self.cpus_online as usize == all && self.cpus_reported() == all
    }

    fn booted(&mut self) -> Result<(), Cause> {
        let kernel = self.kernel.as_deref().unwrap_or_default();
        self.progress.stage("boot", &format!("Linux {kernel}"));
        let cpus = self.plan.cpus();
        self.progress
            .stage("cpus online", &format!("{cpus}/{cpus}"));
        self.progress.stage("ready", self.run.name());
        self.phase = Phase::Running;
        let _ = self.ready.send(self.sessions.clone());
        match self.foreground.take() {
            None => {}
            Some(Foreground::Detached(ready)) => {
                self.log.quiet();
                let _ = ready.send(());
            }
            Some(Foreground::Driven(ready)) => _ = ready.send(()),
            Some(Foreground::Session { command, options }) => {
                let session = self.session.take().ok_or_else(|| {
                    Cause::Failed("the first node brought no session channel".into())
                })?;
                let (pipe, events) = (session.into_pipe(), self.events());
                tokio::spawn(async move {
                    let mut command = command;
                    // The terminal may have changed while the guest booted.
                    command.terminal = command.terminal.map(|_| terminal::size());
                    let ended = stdio::run(pipe, Some(command), options).await;
                    let _ = events.send(Event::Command(ended)).await;
                });
            }
        }
        Ok(())
    }

    /// Starts to reach all agents at the same time.
    fn connect(&mut self) -> Result<(), Failure> {
        let files = Arc::new(self.plan.files.clone());
        let log = self
            .log
            .file()
            .map_err(|error| Failure::cannot("the log", error))?;
        let log = Arc::new(log);
        let (contents, remote) = match self.plan.token.take() {
            Some(token) if self.plan.has_remote() => (
                Some(Arc::new(Contents::read(&files)?)),
                Some(Arc::new(Remote::new(token).map_err(Failure::failed)?)),
            ),
            _ => (None, None),
        };
        let uplinks = local::uplinks(self.plan.links.uplinks.len())
            .map_err(|error| Failure::cannot("the memory of uplinks", error))?
            .map(Arc::new);
        for (node, place) in self.plan.places.iter().enumerate() {
            let target = Target {
                node,
                place: place.clone(),
                files: files.clone(),
                log: log.clone(),
                uplinks: uplinks.clone(),
                contents: contents.clone(),
                remote: remote.clone(),
            };
            let events = self.sender.clone();
            self.connecting.spawn(async move {
                let result = link::connect(target, events.clone()).await;
                let _ = events
                    .send(Event::Connected {
                        node,
                        result: Box::new(result),
                    })
                    .await;
            });
        }
        Ok(())
    }

    fn connected(&mut self, node: usize, result: Connected) -> Result<(), Cause> {
        let (link, stream) = result.map_err(|line| {
            let (name, place) = (self.name(node), &self.plan.places[node]);
            Cause::Failed(format!("node {name} ({place}) {line}"))
        })?;
        if node == 0 {
            self.lines.connect(link.typed.clone());
        }
        self.nodes[node].link = Some(link);
        if let Some(stream) = stream {
            let sessions = Sessions::start(stream.reader, stream.writer, self.sender.clone());
            self.session = Some(sessions.open().map_err(Cause::Failed)?);
            self.sessions = Some(sessions);
        }
        if self.nodes.iter().all(|node| node.link.is_some()) {
            self.spawn()?;
        }
        Ok(())
    }

    /// Has all guest processes started. Only now is it known where each will listen.
    fn spawn(&mut self) -> Result<(), Cause> {
        let certificates = Certificates::new(self.run.name(), self.nodes.len())
            .map_err(|failure| Cause::Failed(failure.line))?;
        let here = self.own_address();
        let arguments = self.arguments();
        let mut messages = Vec::new();
        for (index, certificate) in certificates.nodes.into_iter().enumerate() {
            let remote = self.nodes[index]
                .link
                .as_ref()
                .and_then(|link| link.remote.as_ref());
            let bind = remote.map_or(here, |remote| remote.theirs);
            let local = remote.is_none();
            self.nodes[index].address = Some(bind);
            messages.push(ToAgent::Spawn(Box::new(Spawn {
                guest: self.run.name().to_string(),
                arguments: arguments.clone(),
                readable: self.plan.readable[index].clone(),
                disks: self.plan.disks[index].clone(),
                host_cpus: self.plan.host_cpus[index].clone(),
                run_directory: local.then(|| self.run.path().as_os_str().as_bytes().to_vec()),
                setup: Setup {
                    node: index as u16,
                    nodes: self.plan.nodes.clone(),
                    links: self.plan.links.of_node(index),
                    link_seed: self.plan.links.seed,
                    paging: self.plan.paging,
                    patient: self.plan.patient,
                    exports: self.plan.exports[index].clone(),
                    any_disk: local,
                    bind,
                    authority: certificates.authority.clone(),
                    certificate: certificate.certificate,
                    key: certificate.key,
                },
                networks: self.plan.networks.of_node(index),
                lines: match index {
                    0 => self.plan.lines.channels(),
                    _ => Vec::new(),
                },
            })));
        }
        for (index, message) in messages.into_iter().enumerate() {
            self.send(index, message)?;
        }
        Ok(())
    }

    /// The address at which runtimes on this machine are reached by the others.
    fn own_address(&self) -> IpAddr {
        let ways = || {
            let links = self.nodes.iter().filter_map(|node| node.link.as_ref());
            links
                .filter_map(|link| link.remote.as_ref())
                .map(|remote| remote.ours)
        };
        // A loopback address is of no use to nodes elsewhere, the other way round it is.
        ways()
            .find(|address| !address.is_loopback())
            .or_else(|| ways().next())
            .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// The kernel's arguments, the same for all nodes.
    fn arguments(&self) -> Vec<Vec<u8>> {
        let mut arguments = self.plan.arguments.clone();
        arguments.push(format!("span.name={}", self.run.name()).into_bytes());
        // Relative to the directory where the agent has the guest process work, and removes with it.
        arguments.push(b"uml_dir=.".to_vec());
        arguments.push(b"umid=uml".to_vec());
        arguments.extend(self.plan.appended.iter().cloned());
        arguments
    }

    fn send(&self, node: usize, message: ToAgent) -> Result<(), Cause> {
        let Some(link) = &self.nodes[node].link else {
            return Ok(());
        };
        match link.messages.try_send(message) {
            // That it ended is about to be reported, with the reason.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(self.lost(node, "its agent takes no messages".into()))
            }
        }
    }

    fn send_all(&self, message: &ToAgent) -> Result<(), Cause> {
        (0..self.nodes.len()).try_for_each(|node| self.send(node, message.clone()))
    }

    fn lost(&self, node: usize, reason: String) -> Cause {
        Cause::Lost {
            node: self.name(node).to_string(),
            reason,
        }
    }

    fn name(&self, node: usize) -> &str {
        &self.plan.nodes[node].name
    }
}
