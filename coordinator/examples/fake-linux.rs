//! Stands in for the guest process in the tests of coordinator and node: speaks
//! [`span_api::guest`] like the runtime, meets its peers over UDP, and on the first node speaks
//! [`span_api::session`] like the guest's init, running commands on the host.
//!
//! It looks at `fake.…` kernel arguments: `fake.hang=hello|connect|boot` stops there, `fake.cpus=N` brings up
//! fewer CPUs, `fake.stub` starts a process that must not outlive it, `fake.build=ID` is of another
//! build, `fake.host=N:cpu|xsave|much` has node N on a host of another kind, `fake.answers=FILE` answers
//! questions only once there is that file.
//! Commands that begin with `fake-` make things happen that a test cannot make happen from outside.

use span_api::PROTOCOL_VERSION;
use span_api::codec;
use span_api::guest::{FromGuest, GUEST_FD_ENV, HaltKind, Paging, Setup, Stats, ToGuest, Waits};
use span_api::host::{FEATURES, Host, Xsave, XsavePart};
use span_api::link::Hello;
use span_api::profile::{Fault, FaultKind, Faults, Profiling, Through};
use span_api::session::{Command, Exit, FromInit, ToInit, WINDOW_BYTES};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Stdio, exit};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// What a kernel of ours contains; the coordinator looks for it.
static MARKER: &[u8] = b"libnode.so\0";

/// A descriptor whose number was handed down, owned by nothing else.
fn inherited(fd: i32) -> OwnedFd {
    // SAFETY: the number comes from the process that started this one, which left it open for this;
    // F_SETFD takes an integer.
    unsafe {
        libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        OwnedFd::from_raw_fd(fd)
    }
}

fn argument(name: &str) -> Option<String> {
    std::env::args().find_map(|argument| argument.strip_prefix(name).map(String::from))
}

fn main() {
    std::hint::black_box(MARKER);
    let fd = std::env::var(GUEST_FD_ENV)
        .expect("started by an agent")
        .parse()
        .unwrap();
    let mut agent = UnixStream::from(inherited(fd));
    eprintln!(
        "Linux version 0.0.0-fake, arguments {:?}",
        std::env::args().collect::<Vec<_>>()
    );
    // What UML leaves in its directory.
    if argument("umid=").is_some() {
        std::fs::create_dir("uml").unwrap();
        std::fs::write("uml/pid", std::process::id().to_string()).unwrap();
    }
    if argument("fake.stub").is_some() {
        let mut stub = std::process::Command::new("sleep");
        // SAFETY: only async-signal-safe calls between fork and exec.
        unsafe {
            stub.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        // Whoever adopts it reaps it.
        #[allow(clippy::zombie_processes)]
        stub.arg("1000").spawn().unwrap();
    }

    if argument("fake.hang=").as_deref() == Some("hello") {
        std::thread::park();
    }
    let mut hello = Hello::new(None);
    if let Some(build) = argument("fake.build=") {
        hello.build = build;
    }
    codec::write(&mut agent, &hello).unwrap();
    // That of another build would not understand what follows.
    let Ok(Some(ToGuest::Setup(setup))) = codec::read(&mut agent) else {
        std::thread::park();
        unreachable!("ended by its agent");
    };
    let host = Box::new(host(setup.node));
    codec::write(&mut agent, &FromGuest::Host(host)).unwrap();
    assert!(!setup.certificate.is_empty() && !setup.key.is_empty());
    let socket = UdpSocket::bind((setup.bind, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    let replies = Arc::new(Mutex::new(agent.try_clone().unwrap()));
    say(
        &replies,
        FromGuest::Bound {
            port,
            paging: Paging::Mprotect,
        },
    );
    let Some(ToGuest::Peers(peers)) = codec::read(&mut agent).unwrap() else {
        panic!("no peers")
    };
    if argument("fake.hang=").as_deref() == Some("connect") {
        std::thread::park();
    }
    meet(&socket, &setup, &peers);
    say(&replies, FromGuest::Connected);
    let Some(ToGuest::Start) = codec::read(&mut agent).unwrap() else {
        panic!("no start")
    };

    let cpus_max = argument("fake.cpus=").map_or(u16::MAX, |number| number.parse().unwrap());
    let node = setup.node;
    for cpu in setup.nodes[usize::from(node)]
        .cpus
        .iter()
        .filter(|cpu| **cpu < cpus_max)
    {
        let tid = std::process::id() as i32 + i32::from(*cpu);
        say(
            &replies,
            FromGuest::CpuOnline {
                cpu: *cpu,
                tid,
                variables: 0,
            },
        );
    }
    if argument("fake.hang=").as_deref() == Some("boot") {
        std::thread::park();
    }
    if node == 0 {
        let channel = argument("span.chan=").expect("a channel").parse().unwrap();
        let cpus = setup
            .nodes
            .iter()
            .map(|node| node.cpus.len())
            .sum::<usize>();
        let init = Init {
            channel: Arc::new(Mutex::new(UnixStream::from(inherited(channel)))),
            agent: replies.clone(),
            sessions: Arc::default(),
        };
        std::thread::spawn(move || init.run(cpus.min(cpus_max.into()) as u32));
    }
    let mut asked = 0;
    while let Some(message) = codec::read(&mut agent).unwrap() {
        match message {
            ToGuest::Stats => {
                eprintln!("asked for counters");
                asked += 1;
                while argument("fake.answers=").is_some_and(|file| !Path::new(&file).exists()) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                let mut waits = Waits::default();
                (0..asked).for_each(|_| waits.read.record(30_000));
                let stats = Stats {
                    faults_read: 1,
                    faults_write: 2,
                    faults_upgrade: 3,
                    faults_local: 4,
                    pages_in: 5 + u64::from(node),
                    pages_out: 6,
                    bytes_sent: 4096 * asked,
                    retries: 7,
                    resident_pages: 2560,
                    waits,
                    ..Stats::default()
                };
                say(&replies, FromGuest::Stats(Box::new(stats)));
            }
            ToGuest::Profile(what) => say(&replies, FromGuest::Faults(faults(node, what))),
            ToGuest::Links(links) => {
                for _ in links {
                    say(&replies, FromGuest::LinkSet);
                }
            }
            ToGuest::Terminate => exit(0),
            other => panic!("{other:?}"),
        }
    }
    exit(1);
}

/// A fault for each question, and the end of the profile has one that was dropped.
fn faults(node: u16, what: Profiling) -> Faults {
    let fault = Fault {
        began_ns: 1_000_000_000,
        waited_ns: 50_000,
        kind: FaultKind::Write,
        page: 5,
        address: 0x5000 + 64 * u64::from(node),
        through: Through::Linear,
        instruction: 0,
        cpu: Some(node),
        from: Some(1 - node.min(1)),
        user: None,
    };
    Faults {
        faults: vec![fault],
        dropped: u64::from(what == Profiling::Stop),
        more: false,
    }
}

fn host(node: u16) -> Host {
    let mut host = Host {
        page_bytes: 4096,
        stack_end: 0x7fff_ffff_f000,
        features: FEATURES.map(|word| word.mask()),
        xsave: Xsave {
            components: 7,
            bytes: 832,
            parts: vec![XsavePart {
                component: 2,
                offset: 576,
                bytes: 256,
            }],
        },
    };
    let different = argument("fake.host=").and_then(|value| {
        let (other, what) = value.split_once(':').unwrap();
        (other == node.to_string()).then(|| what.to_string())
    });
    match different.as_deref() {
        None => {}
        Some("cpu") => host.features[0] = 0,
        Some("xsave") => host.xsave.bytes += 64,
        Some("much") => host.xsave.parts = vec![host.xsave.parts[0]; 1000],
        Some(other) => panic!("{other}"),
    }
    host
}

fn say(agent: &Mutex<UnixStream>, message: FromGuest) {
    codec::write(&mut *agent.lock().unwrap(), &message).unwrap();
}

/// Hears from every peer, so that an address that does not work is found.
fn meet(socket: &UdpSocket, setup: &Setup, peers: &[SocketAddr]) {
    assert_eq!(peers.len(), setup.nodes.len());
    socket
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    let me = setup.node as u8;
    let mut heard = vec![false; peers.len()];
    heard[usize::from(me)] = true;
    let mut buffer = [0; 2];
    // Three more rounds, for peers that have not heard from here yet.
    let mut rounds_left = 3;
    while rounds_left > 0 {
        for peer in peers {
            socket.send_to(&[me], peer).unwrap();
        }
        while let Ok((1, from)) = socket.recv_from(&mut buffer) {
            let index = usize::from(buffer[0]);
            assert_eq!(
                peers[index], from,
                "node {index} speaks from where it says it listens"
            );
            heard[index] = true;
        }
        if heard.iter().all(|heard| *heard) {
            rounds_left -= 1;
        }
    }
}

type Credit = Arc<(Mutex<u64>, Condvar)>;

struct Running {
    pid: i32,
    stdin: Option<std::sync::mpsc::Sender<Vec<u8>>>,
    credit: Credit,
    terminal: Option<File>,
}

#[derive(Clone)]
struct Init {
    channel: Arc<Mutex<UnixStream>>,
    agent: Arc<Mutex<UnixStream>>,
    sessions: Arc<Mutex<HashMap<u32, Running>>>,
}

impl Init {
    fn say(&self, message: FromInit) {
        let _ = codec::write(&mut *self.channel.lock().unwrap(), &message);
    }

    fn run(&self, cpus: u32) {
        let kernel = "0.0.0-fake".to_string();
        self.say(FromInit::Ready {
            version: PROTOCOL_VERSION,
            kernel,
            cpus,
        });
        let mut reader = self.channel.lock().unwrap().try_clone().unwrap();
        while let Ok(Some(message)) = codec::read::<ToInit>(&mut reader) {
            match message {
                ToInit::Start { id, command } => self.start(id, command),
                ToInit::LineSize { .. } => {}
                ToInit::PowerOff => self.halt(HaltKind::PowerOff),
                ToInit::Stdin { id, data } => {
                    if let Some(session) = self.sessions.lock().unwrap().get(&id)
                        && let Some(stdin) = &session.stdin
                    {
                        let _ = stdin.send(data);
                    }
                }
                ToInit::StdinEnd { id } => {
                    if let Some(session) = self.sessions.lock().unwrap().get_mut(&id) {
                        session.stdin = None;
                    }
                }
                ToInit::Credit { id, bytes } => {
                    if let Some(session) = self.sessions.lock().unwrap().get(&id) {
                        *session.credit.0.lock().unwrap() += u64::from(bytes);
                        session.credit.1.notify_all();
                    }
                }
                ToInit::Resize { id, size } => {
                    if let Some(session) = self.sessions.lock().unwrap().get(&id)
                        && let Some(terminal) = &session.terminal
                    {
                        resize(terminal, size.rows, size.columns);
                    }
                }
                ToInit::Signal { id, signal } => {
                    if let Some(session) = self.sessions.lock().unwrap().get(&id) {
                        // SAFETY: takes integers; the group is the command's own.
                        unsafe { libc::kill(-session.pid, signal) };
                    }
                }
            }
        }
    }

    fn halt(&self, kind: HaltKind) {
        for session in self.sessions.lock().unwrap().values() {
            // SAFETY: takes integers; the group is the command's own.
            unsafe { libc::kill(-session.pid, libc::SIGKILL) };
        }
        eprintln!("reboot: fake {kind:?}");
        say(&self.agent, FromGuest::Halted(kind));
        std::thread::park();
    }

    /// Events that a test asks for.
    fn fake(&self, words: &[String]) -> bool {
        let word = |index: usize| words.get(index).cloned().unwrap_or_default();
        match word(0).as_str() {
            "fake-halt" => self.halt(match word(1).as_str() {
                "restart" => HaltKind::Restart,
                "halt" => HaltKind::Halt,
                _ => HaltKind::PowerOff,
            }),
            "fake-ending" => {
                self.say(FromInit::Ending(HaltKind::Restart));
                for session in self.sessions.lock().unwrap().values() {
                    // SAFETY: takes integers; the group is the command's own.
                    unsafe { libc::kill(-session.pid, libc::SIGTERM) };
                }
                // In which the end of the commands is reported.
                std::thread::sleep(Duration::from_millis(300));
                if word(1) != "stuck" {
                    self.halt(HaltKind::Restart);
                }
            }
            "fake-panic" => {
                eprintln!("Kernel panic - not syncing: {}", word(1));
                say(&self.agent, FromGuest::Panicked(word(1)));
                std::thread::park();
            }
            "fake-silent-panic" => {
                eprintln!("Kernel panic - not syncing: {}", word(1));
                std::process::abort();
            }
            "fake-fail" => say(&self.agent, FromGuest::Failed(word(1))),
            "fake-garbage" => {
                let _ = self.agent.lock().unwrap().write_all(&[0xff; 64]);
            }
            "fake-init-garbage" => {
                let _ = self.channel.lock().unwrap().write_all(&[0xff; 64]);
            }
            "fake-peer-lost" => {
                let reason = "no answer".to_string();
                say(
                    &self.agent,
                    FromGuest::PeerLost {
                        node: word(1).parse().unwrap(),
                        reason,
                    },
                );
            }
            "fake-log" => {
                for number in 0..word(1).parse::<u32>().unwrap() {
                    eprintln!("line {number} {}", "x".repeat(60));
                }
                return false;
            }
            _ => return false,
        }
        true
    }

    fn start(&self, id: u32, command: Command) {
        let words: Vec<String> = command
            .argv
            .iter()
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        if self.fake(&words) {
            return;
        }
        let argv = match words.first().map(String::as_str) {
            None => vec![b"/bin/sh".to_vec()],
            Some("fake-log") => vec![b"true".to_vec()],
            Some("span-pages") => vec![b"sed".to_vec(), b"s/ *$/ slab fake/".to_vec()],
            Some(_) => command.argv.clone(),
        };
        let mut process = std::process::Command::new(std::ffi::OsString::from_vec(argv[0].clone()));
        process.args(
            argv[1..]
                .iter()
                .map(|word| std::ffi::OsString::from_vec(word.clone())),
        );
        let text = |bytes: &Vec<u8>| std::ffi::OsString::from_vec(bytes.clone());
        process.env_clear().envs(
            command
                .env
                .iter()
                .map(|(name, value)| (text(name), text(value))),
        );
        process.current_dir(text(&command.directory));
        let terminal = command.terminal.map(|size| {
            let pty = nix::pty::openpty(None, None).unwrap();
            let master = File::from(pty.master);
            resize(&master, size.rows, size.columns);
            (master, pty.slave)
        });
        match &terminal {
            Some((_, slave)) => {
                let stdio = || Stdio::from(slave.try_clone().unwrap());
                process.stdin(stdio()).stdout(stdio()).stderr(stdio());
            }
            None => {
                process
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped());
            }
        }
        let on_terminal = terminal.is_some();
        // SAFETY: only async-signal-safe calls between fork and exec.
        unsafe {
            process.pre_exec(move || {
                libc::setsid();
                if on_terminal {
                    libc::ioctl(0, libc::TIOCSCTTY, 0);
                }
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let mut child = match process.spawn() {
            Ok(child) => child,
            Err(error) => {
                let message = format!("{}: {error}", words[0]);
                return self.say(FromInit::StartFailed {
                    id,
                    code: 127,
                    message,
                });
            }
        };
        drop(process);

        let credit: Credit = Arc::new((Mutex::new(u64::from(WINDOW_BYTES)), Condvar::new()));
        let (stdin_sender, stdin) = std::sync::mpsc::channel::<Vec<u8>>();
        let master = terminal.map(|(master, _slave)| master);
        let mut to_child: Box<dyn Write + Send> = match &master {
            Some(master) => Box::new(master.try_clone().unwrap()),
            None => Box::new(child.stdin.take().unwrap()),
        };
        let mut outputs: Vec<(bool, Box<dyn Read + Send>)> = Vec::new();
        match &master {
            Some(master) => outputs.push((false, Box::new(master.try_clone().unwrap()))),
            None => {
                outputs.push((false, Box::new(child.stdout.take().unwrap())));
                outputs.push((true, Box::new(child.stderr.take().unwrap())));
            }
        }
        let running = Running {
            pid: child.id() as i32,
            stdin: Some(stdin_sender),
            credit: credit.clone(),
            terminal: master,
        };
        self.sessions.lock().unwrap().insert(id, running);

        let init = self.clone();
        std::thread::spawn(move || {
            for data in stdin {
                let bytes = data.len() as u32;
                let _ = to_child.write_all(&data).and_then(|()| to_child.flush());
                init.say(FromInit::Credit { id, bytes });
            }
        });
        let relays: Vec<_> = outputs
            .into_iter()
            .map(|(stderr, output)| {
                let (init, credit) = (self.clone(), credit.clone());
                std::thread::spawn(move || init.relay(id, stderr, output, &credit))
            })
            .collect();
        let init = self.clone();
        std::thread::spawn(move || {
            let status = child.wait().unwrap();
            for relay in relays {
                relay.join().unwrap();
            }
            init.sessions.lock().unwrap().remove(&id);
            let exit = match status.code() {
                Some(code) => Exit::Code(code),
                None => Exit::Signal(status.signal().unwrap_or(0)),
            };
            init.say(FromInit::Exited { id, exit });
        });
    }

    fn relay(&self, id: u32, stderr: bool, mut output: impl Read, credit: &Credit) {
        let mut buffer = vec![0; 32 * 1024];
        // A pseudo terminal whose other side is closed gives an error.
        while let Ok(bytes @ 1..) = output.read(&mut buffer) {
            let mut available = credit.0.lock().unwrap();
            while *available < bytes as u64 {
                available = credit.1.wait(available).unwrap();
            }
            *available -= bytes as u64;
            drop(available);
            let data = buffer[..bytes].to_vec();
            self.say(match stderr {
                true => FromInit::Stderr { id, data },
                false => FromInit::Stdout { id, data },
            });
        }
    }
}

fn resize(terminal: &File, rows: u16, columns: u16) {
    use std::os::fd::AsRawFd;
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one `winsize`, from one that lives through the call.
    unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &size) };
}
