//! The switch of guests with local nodes: a process of its own for each user and name.
//!
//! Its address is an abstract one, which goes away with whoever listens at it: nothing is left behind, however
//! the process ends, and whoever finds nobody there starts one. The first guest's agent listens and passes the
//! socket on, so that others can come at once. Each port has a connection:
//!
//! 1. the agent sends its greeting with the switch's end of a port;
//! 2. the switch answers with its own, and from then on with how many frames it had to drop, as 8 bytes;
//! 3. the connection ends when the port does, and for the last one when the process does: who waits for that
//!    leaves nothing running.

use super::{DevicePort, Switch, pair};
use crate::Failure;
use crate::link::Sender;
use crate::process::inherit;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    UnixAddr, accept4, bind, connect, getsockopt, listen, recv, recvmsg, send, sendmsg, socket,
    sockopt,
};
use span_api::link::{BUILD_ID, FromAgent};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::process::Command;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

/// Longest wait for a switch to answer, and of a new one for its first port.
const ANSWER_MS_MAX: u64 = 5000;

/// How often a switch may be found to be ending before there is one that stays.
const TRIES_MAX: u32 = 100;

/// Longest wait for a port, or the process, to be gone.
const END_MS_MAX: u64 = 500;

/// How often a guest is told of dropped frames.
const DROPPED_INTERVAL: Duration = Duration::from_secs(1);

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// Longest message between an agent and a switch.
const MESSAGE_BYTES_MAX: usize = 256;

/// Between agents and switches of one user, of whatever build.
fn greeting() -> String {
    format!("span-switch 1 {BUILD_ID}")
}

fn address(name: &str) -> nix::Result<UnixAddr> {
    let user = nix::unistd::getuid();
    UnixAddr::new_abstract(format!("span-switch-{user}-{name}").as_bytes())
}

/// Whoever it is at the other end, it is this user: anybody can take an abstract address.
fn check_user(socket: &OwnedFd) -> Result<(), String> {
    match getsockopt(socket, sockopt::PeerCredentials) {
        Ok(peer) if peer.uid() == nix::unistd::getuid().as_raw() => Ok(()),
        Ok(peer) => Err(format!("its address is taken by user {}", peer.uid())),
        Err(error) => Err(error.to_string()),
    }
}

fn watched(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
    nix::fcntl::fcntl(&socket, flags)?;
    // SAFETY: an `OwnedFd` keeps its descriptor open, and the same, as long as it lives.
    unsafe { AsyncFd::register(socket) }.map_err(Into::into)
}

/// A device's place at a switch.
#[derive(Debug)]
pub(crate) struct Membership(JoinHandle<()>);

impl Membership {
    pub(crate) fn new(task: JoinHandle<()>) -> Self {
        Self(task)
    }

    /// Waits until the port is gone, its device being so; if it was the last, until the process is.
    pub(crate) async fn end(self) {
        let _ = timeout(Duration::from_millis(END_MS_MAX), self.0).await;
    }
}

/// Connects device `unit` with the switch `name`, which is started if nobody has: the device's end of a port.
/// An error is one line.
pub(crate) async fn join(
    name: &str,
    unit: u8,
    sender: &Sender,
) -> Result<(OwnedFd, Membership), String> {
    for _ in 0..TRIES_MAX {
        let control = match find(name)? {
            Some(control) => control,
            None => continue,
        };
        let (port, device) = pair().map_err(|error| error.to_string())?;
        let Some(control) = greet(control, port).await? else {
            continue;
        };
        let follow = follow(control, name.to_string(), unit, sender.clone());
        return Ok((device, Membership::new(tokio::spawn(follow))));
    }
    Err("it ends again and again".into())
}

/// Connects to a switch, starting it if there is none; nothing if it went away meanwhile.
fn find(name: &str) -> Result<Option<OwnedFd>, String> {
    let line = |error: nix::errno::Errno| error.to_string();
    let address = address(name).map_err(line)?;
    let new = || {
        let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
        socket(family, kind, SockFlag::SOCK_CLOEXEC, None).map_err(line)
    };
    let control = new()?;
    match connect(control.as_raw_fd(), &address) {
        Ok(()) => {
            check_user(&control)?;
            return Ok(Some(control));
        }
        Err(nix::errno::Errno::ECONNREFUSED) => {}
        Err(error) => return Err(line(error)),
    }
    let listener = new()?;
    match bind(listener.as_raw_fd(), &address) {
        Ok(()) => {}
        // Somebody else begins at the same time.
        Err(nix::errno::Errno::EADDRINUSE) => return Ok(None),
        Err(error) => return Err(line(error)),
    }
    let backlog = Backlog::new(BACKLOG).map_err(line)?;
    listen(&listener, backlog).map_err(line)?;
    start(name, listener).map_err(|error| format!("it cannot be started: {error}"))?;
    Ok(None)
}

fn start(name: &str, listener: OwnedFd) -> io::Result<()> {
    let fd = listener.as_raw_fd();
    let mut command = Command::new(std::env::current_exe()?);
    // It may outlive this process, whose output somebody reads to its end.
    command
        .args(["switch", name, "--listen-fd", &fd.to_string()])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: the closure runs between fork and exec and makes only system calls that are
    // async-signal-safe, without allocating.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setsid()?;
            inherit(fd)
        });
    }
    let mut child = command.spawn()?;
    tokio::spawn(async move { child.wait().await });
    Ok(())
}

/// Registers a port; nothing if the switch is ending.
async fn greet(control: OwnedFd, port: OwnedFd) -> Result<Option<AsyncFd<OwnedFd>>, String> {
    let fds = [port.as_raw_fd()];
    let greeting = greeting();
    let sent = sendmsg::<()>(
        control.as_raw_fd(),
        &[IoSlice::new(greeting.as_bytes())],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    );
    if sent.is_err() {
        return Ok(None);
    }
    let control = watched(control).map_err(|error| error.to_string())?;
    let answer = timeout(Duration::from_millis(ANSWER_MS_MAX), message(&control)).await;
    match answer.map_err(|_| format!("it does not answer within {ANSWER_MS_MAX} ms"))? {
        None => Ok(None),
        Some(answer) if answer == greeting.as_bytes() => Ok(Some(control)),
        Some(answer) => Err(String::from_utf8_lossy(&answer).into_owned()),
    }
}

/// The next message; nothing at the end.
async fn message(control: &AsyncFd<OwnedFd>) -> Option<Vec<u8>> {
    loop {
        let mut ready = control.readable().await.ok()?;
        let mut buffer = [0; MESSAGE_BYTES_MAX];
        match recv(
            control.get_ref().as_raw_fd(),
            &mut buffer,
            MsgFlags::empty(),
        ) {
            Ok(0) => return None,
            Ok(bytes) => return Some(buffer[..bytes].to_vec()),
            Err(nix::errno::Errno::EAGAIN) => ready.clear_ready(),
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}

/// Tells the guest's log what a switch has to say.
async fn follow(control: AsyncFd<OwnedFd>, name: String, unit: u8, sender: Sender) {
    while let Some(message) = message(&control).await {
        if let Ok(dropped) = message.try_into().map(u64::from_le_bytes) {
            let line = super::dropped_line(unit, &name, dropped);
            // Not to wait: this is to notice the end.
            let _ = sender.try_send(FromAgent::Log(line));
        }
    }
}

/// The process: serves ports until there are none.
pub(crate) async fn run(name: &str, listen_fd: RawFd) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::failed(format!("switch {name}: {error}"));
    // SAFETY: F_SETFD takes an integer and fails on a number that is no open descriptor.
    if listen_fd <= 2 || unsafe { libc::fcntl(listen_fd, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(Failure::usage(format!(
            "descriptor {listen_fd} was not inherited"
        )));
    }
    // SAFETY: it is open, checked above, and was inherited for this.
    let listener = watched(unsafe { OwnedFd::from_raw_fd(listen_fd) }).map_err(failed)?;
    let switch = Switch::default();
    let mut ports = JoinSet::new();
    // The first one is on its way.
    let first = timeout(Duration::from_millis(ANSWER_MS_MAX), accept(&listener)).await;
    if let Ok(control) = first {
        ports.spawn(serve(control.map_err(failed)?, switch.clone()));
    }
    while !ports.is_empty() {
        tokio::select! {
            control = accept(&listener) => {
                let control = control.map_err(failed)?;
                ports.spawn(serve(control, switch.clone()));
            }
            _ = ports.join_next() => {}
        }
    }
    // Who connects from here on is refused, or finds the connection closed, and starts another.
    Ok(())
}

async fn accept(listener: &AsyncFd<OwnedFd>) -> io::Result<OwnedFd> {
    loop {
        let mut ready = listener.readable().await?;
        match accept4(listener.get_ref().as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            // SAFETY: a new descriptor, which nobody else owns.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            Err(nix::errno::Errno::EAGAIN) => ready.clear_ready(),
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::ECONNABORTED) => {}
            // Descriptors that are in use now will not always be.
            Err(nix::errno::Errno::EMFILE | nix::errno::Errno::ENFILE) => {
                sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// One connection: its port, from beginning to end. Who asks wrongly is told, or not listened to.
async fn serve(control: OwnedFd, switch: Switch) {
    if check_user(&control).is_err() {
        return;
    }
    let Ok(control) = watched(control) else {
        return;
    };
    let registered = timeout(
        Duration::from_millis(ANSWER_MS_MAX),
        register(&control, &switch),
    );
    let port = match registered.await {
        Ok(Ok(port)) => port,
        Ok(Err(line)) => return answer(&control, line.as_bytes()),
        Err(_) => return,
    };
    answer(&control, greeting().as_bytes());
    let mut dropped = port.dropped.clone();
    let tell = async {
        while dropped.changed().await.is_ok() {
            let frames = *dropped.borrow_and_update();
            answer(&control, &frames.to_le_bytes());
            sleep(DROPPED_INTERVAL).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = port.serve() => {}
        () = tell => {}
    }
}

/// Says something to an agent, which is not waited for.
fn answer(control: &AsyncFd<OwnedFd>, message: &[u8]) {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let _ = send(control.get_ref().as_raw_fd(), message, flags);
}

/// Reads a greeting and the port that comes with it; an error is one line.
async fn register(control: &AsyncFd<OwnedFd>, switch: &Switch) -> Result<DevicePort, String> {
    let (bytes, port) = loop {
        let mut ready = control
            .readable()
            .await
            .map_err(|error| error.to_string())?;
        match greeted(control.get_ref()) {
            Ok(greeted) => break greeted,
            Err(nix::errno::Errno::EAGAIN) => ready.clear_ready(),
            Err(error) => return Err(error.to_string()),
        }
    };
    if bytes != greeting().as_bytes() {
        return Err("it belongs to guests of another build".into());
    }
    let port = port.ok_or("no port came with the greeting")?;
    switch.device(port).map_err(|error| error.to_string())
}

fn greeted(control: &OwnedFd) -> nix::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut buffer = [0; MESSAGE_BYTES_MAX];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let (bytes, mut fds) = {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(control.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        let mut fds = Vec::new();
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = part {
                for fd in received {
                    // SAFETY: a new descriptor, which nobody else owns.
                    fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
        }
        (message.bytes, fds)
    };
    Ok((buffer[..bytes].to_vec(), fds.pop()))
}
