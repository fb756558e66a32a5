//! Consoles and serial lines of a guest: what is at their other ends (`--append con1=…`), and whoever is attached to
//! one by `coordinator console NAME LINE`.
//!
//! All see what is written there, and each may type. Credit is given at once: who does not keep up is detached rather
//! than allowed to hold up the guest or the others, and what is typed and not read is lost, as on any serial line.

use crate::failure::Failure;
use crate::network::port;
use crate::options::Place;
use crate::session::{Sessions, locked};
use crate::stdio::Pipe;
use serde::{Deserialize, Serialize};
use span_api::guest::{LINE_FD_FIRST, descriptor_handle};
use span_api::line::{Channel, Line};
use span_api::link::ToAgent;
use span_api::session::{FromInit, ToInit, WindowSize};
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, watch};

/// Messages waiting for one who is attached, of at most 4 KiB each; and of them.
const ATTACHED_MESSAGES_MAX: usize = 256;
const ASKED_MESSAGES_MAX: usize = 16;

/// Recent output shown to who attaches, in bytes.
const RECENT_BYTES_MAX: usize = 4096;

/// Who is attached to one line.
const ATTACHED_MAX: usize = 32;

/// `sun_path` of the host, without its NUL.
const SOCKET_BYTES_MAX: usize = 107;

const ALLOWED: &str =
    "allowed are console, unix:PATH, port:[ADDRESS:]PORT, pty, pts, null and tty:PATH";

/// The lines that are not the kernel's own business.
pub(crate) type Wanted = BTreeMap<Line, Channel>;

/// Takes the words that are about lines out of what the user appended, as far as they are not for the kernel.
pub(crate) fn wanted(appended: &mut Vec<Vec<u8>>, first: &Place) -> Result<Wanted, Failure> {
    let default = Line::all().filter(|line| line.is_default());
    let mut all: Wanted = default.map(|line| (line, Channel::Console)).collect();
    let mut single: BTreeMap<Line, Option<Channel>> = BTreeMap::new();
    let mut failure = None;
    appended.retain(|bytes| {
        let word = String::from_utf8_lossy(bytes).into_owned();
        let Some((lines, value)) = about(&word) else {
            return true;
        };
        let refused = |why: &str| Failure::usage(format!("--append {word}: {why}"));
        let channel = match channel(value, first) {
            Ok(channel) => channel,
            Err(why) => {
                failure.get_or_insert(refused(&why));
                return true;
            }
        };
        let kernel = channel.is_none();
        match lines {
            // One is more than all, whichever comes first: so the kernel has it.
            Lines::One(line) => _ = single.insert(line, channel),
            Lines::All { serial } => {
                if matches!(channel, Some(Channel::Unix { .. } | Channel::Port { .. })) {
                    failure.get_or_insert(refused("one socket cannot be that of all lines"));
                    return true;
                }
                all.retain(|line, _| line.is_serial() != serial);
                if let Some(channel) = channel {
                    let lines = Line::all().filter(|line| line.is_serial() == serial);
                    all.extend(lines.map(|line| (line, channel.clone())));
                }
            }
        }
        kernel
    });
    if let Some(failure) = failure {
        return Err(failure);
    }
    for (line, channel) in single {
        match channel {
            Some(channel) => _ = all.insert(line, channel),
            None => _ = all.remove(&line),
        }
    }
    Ok(all)
}

/// Kernel arguments for lines that an agent has the other ends of.
pub(crate) fn arguments(wanted: &Wanted) -> impl Iterator<Item = Vec<u8>> {
    wanted.keys().map(|line| {
        let fd = descriptor_handle(0, LINE_FD_FIRST + i32::from(line.index()));
        format!("{line}=fd:{fd}").into_bytes()
    })
}

enum Lines {
    One(Line),
    All { serial: bool },
}

/// The lines that a word is about, and the channel that it gives them.
fn about(word: &str) -> Option<(Lines, &str)> {
    let (key, value) = word.split_once('=')?;
    let lines = match key {
        "con" => Lines::All { serial: false },
        "ssl" => Lines::All { serial: true },
        _ => Lines::One(Line::parse(key)?),
    };
    Some((lines, value))
}

/// A channel that an agent holds; nothing if it is the kernel's. An error is why there is none.
fn channel(value: &str, first: &Place) -> Result<Option<Channel>, String> {
    let (kind, rest) = match value.split_once(':') {
        Some((kind, rest)) => (kind, Some(rest)),
        None => (value, None),
    };
    if value.contains(',') && !value.starts_with("unix:") {
        let known = |part: &str| part == "null" || part == "none" || part.starts_with("tty:");
        return match value.split(',').all(known) {
            true => Ok(None),
            false => Err("channels for input and output apart are null or tty:PATH".into()),
        };
    }
    match (kind, rest) {
        ("console", None) => Ok(Some(Channel::Console)),
        ("pty" | "pts", None) => Ok(Some(Channel::Terminal)),
        ("null" | "none", None) | ("tty", Some(_)) => Ok(None),
        ("unix", Some(path)) => {
            socket(Path::new(path), first)?;
            let path = path.as_bytes().to_vec();
            Ok(Some(Channel::Unix { path }))
        }
        ("port", Some(text)) => {
            let (address, number) = text.rsplit_once(':').unwrap_or(("127.0.0.1", text));
            let address: Option<IpAddr> = match address {
                "" => Some(Ipv4Addr::LOCALHOST.into()),
                address => address.trim_matches(['[', ']']).parse().ok(),
            };
            match (address, port(number)) {
                (Some(address), Some(number)) => Ok(Some(Channel::Port {
                    address: SocketAddr::new(address, number),
                })),
                _ => Err("a port is [ADDRESS:]PORT, from 1 to 65535".into()),
            }
        }
        ("xterm", _) => Err(
            "a guest starts no programs of yours; run `coordinator console NAME LINE` in an xterm"
                .into(),
        ),
        ("fd", _) => Err("a node's process has no descriptors of yours; use unix:PATH".into()),
        _ => Err(ALLOWED.into()),
    }
}

/// Whether a socket may be made there, as far as that can be seen from here.
fn socket(path: &Path, first: &Place) -> Result<(), String> {
    let bytes = path.as_os_str().as_bytes();
    if !path.is_absolute() || bytes.len() > SOCKET_BYTES_MAX {
        return Err(format!(
            "a socket's path is absolute and of at most {SOCKET_BYTES_MAX} bytes"
        ));
    }
    if *first != Place::Local {
        return Ok(());
    }
    if path.symlink_metadata().is_ok() {
        return Err("there is something of this name already".into());
    }
    match path.parent().map(std::fs::metadata) {
        Some(Ok(parent)) if parent.is_dir() => Ok(()),
        Some(Err(error)) => Err(format!("its directory: {error}")),
        _ => Err("it is in no directory".into()),
    }
}

/// How a line is, for `console --list`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LineStatus {
    pub(crate) name: String,
    /// In the guest.
    pub(crate) device: String,
    pub(crate) channel: String,
    pub(crate) attached: usize,
}

/// The lines of a running guest, and who is attached to them. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Hub(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    lines: Mutex<BTreeMap<Line, Attachments>>,
    /// To the first node's agent, once that is there.
    agent: watch::Sender<Option<mpsc::Sender<ToAgent>>>,
    sessions: watch::Receiver<Option<Sessions>>,
}

#[derive(Debug)]
struct Attachments {
    channel: Channel,
    /// Of the host's terminal that is its other end.
    terminal: Option<String>,
    recent: VecDeque<u8>,
    attached: Vec<mpsc::Sender<FromInit>>,
    /// Of whom so many have a terminal.
    sized: usize,
}

impl Hub {
    pub(crate) fn new(wanted: &Wanted, sessions: watch::Receiver<Option<Sessions>>) -> Self {
        let lines = wanted.iter().map(|(line, channel)| {
            let attachments = Attachments {
                channel: channel.clone(),
                terminal: None,
                recent: VecDeque::new(),
                attached: Vec::new(),
                sized: 0,
            };
            (*line, attachments)
        });
        Self(Arc::new(Shared {
            lines: Mutex::new(lines.collect()),
            agent: watch::channel(None).0,
            sessions,
        }))
    }

    /// Where what is typed goes.
    pub(crate) fn connect(&self, agent: mpsc::Sender<ToAgent>) {
        self.0.agent.send_replace(Some(agent));
    }

    /// Shows what was written to a line to all who are attached.
    pub(crate) fn output(&self, line: Line, data: Vec<u8>) {
        if let Some(line) = locked(&self.0.lines).get_mut(&line) {
            line.recent.extend(&data);
            let excess = line.recent.len().saturating_sub(RECENT_BYTES_MAX);
            line.recent.drain(..excess);
            let message = FromInit::Stdout { id: 0, data };
            line.attached
                .retain(|attached| attached.try_send(message.clone()).is_ok());
        }
    }

    pub(crate) fn terminal(&self, line: Line, path: &[u8]) {
        if let Some(line) = locked(&self.0.lines).get_mut(&line) {
            let path = crate::failure::one_line(&String::from_utf8_lossy(path));
            line.terminal = Some(path);
        }
    }

    pub(crate) fn status(&self) -> Vec<LineStatus> {
        let mut lines = locked(&self.0.lines);
        let status = lines.iter_mut().map(|(line, attachments)| {
            attachments
                .attached
                .retain(|attached| !attached.is_closed());
            LineStatus {
                name: line.name(),
                device: line.device(),
                channel: match &attachments.terminal {
                    Some(path) => format!("{}:{path}", attachments.channel),
                    None => attachments.channel.to_string(),
                },
                attached: attachments.attached.len(),
            }
        });
        status.collect()
    }

    /// Attaches somebody, whose terminal has this size if there is one. An error is one line.
    pub(crate) fn attach(&self, line: Line, size: Option<WindowSize>) -> Result<Pipe, String> {
        let agent = self.0.agent.borrow().clone();
        let agent = agent.ok_or("the guest is not running yet")?;
        let (attached, from_init) = mpsc::channel(ATTACHED_MESSAGES_MAX);
        let (to_init, asked) = mpsc::channel(ASKED_MESSAGES_MAX);
        {
            let mut lines = locked(&self.0.lines);
            let Some(known) = lines.get_mut(&line) else {
                return Err(format!(
                    "line {line} has nobody at its other end; `--append {line}=console` has it attached to"
                ));
            };
            known.attached.retain(|attached| !attached.is_closed());
            if known.attached.len() >= ATTACHED_MAX {
                return Err(format!("{ATTACHED_MAX} are attached to {line} already"));
            }
            let data: Vec<u8> = known.recent.iter().copied().collect();
            if !data.is_empty() {
                let _ = attached.try_send(FromInit::Stdout { id: 0, data });
            }
            known.attached.push(attached.clone());
            known.sized += usize::from(size.is_some());
        }
        // The only strong one is the line's: who is detached sees the end.
        let attached = attached.downgrade();
        tokio::spawn(self.clone().pass_on(line, size, asked, agent, attached));
        Ok(Pipe { to_init, from_init })
    }

    /// Passes on what one of those attached does.
    async fn pass_on(
        self,
        line: Line,
        size: Option<WindowSize>,
        mut asked: mpsc::Receiver<ToInit>,
        agent: mpsc::Sender<ToAgent>,
        attached: mpsc::WeakSender<FromInit>,
    ) {
        self.resize(line, size);
        while let Some(message) = asked.recv().await {
            match message {
                ToInit::Stdin { data, .. } => {
                    let bytes = data.len() as u32;
                    if agent.send(ToAgent::Line { line, data }).await.is_err() {
                        break;
                    }
                    if let Some(attached) = attached.upgrade() {
                        let _ = attached.try_send(FromInit::Credit { id: 0, bytes });
                    }
                }
                ToInit::Resize { size: new, .. } if size.is_some() => self.resize(line, Some(new)),
                // Who has nowhere to write it to any more leaves.
                ToInit::Signal { .. } => break,
                // Credit was given already; who leaves leaves the line as it is.
                _ => {}
            }
        }
        let left = attached.upgrade();
        if let Some(known) = locked(&self.0.lines).get_mut(&line) {
            known.attached.retain(|other| {
                let same = left.as_ref().is_some_and(|left| other.same_channel(left));
                !same && !other.is_closed()
            });
            known.sized -= usize::from(size.is_some());
            if size.is_some() && known.sized == 0 {
                self.tell_size(line, None);
            }
        }
    }

    fn resize(&self, line: Line, size: Option<WindowSize>) {
        // Who has no terminal leaves the size as it is.
        if size.is_some() {
            self.tell_size(line, size);
        }
    }

    fn tell_size(&self, line: Line, size: Option<WindowSize>) {
        if let Some(sessions) = &*self.0.sessions.borrow() {
            sessions.resize_line(line, size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Result<(Wanted, Vec<String>), Failure> {
        let mut appended = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        let wanted = wanted(&mut appended, &Place::Local)?;
        let left = appended
            .into_iter()
            .map(|word| String::from_utf8(word).unwrap());
        Ok((wanted, left.collect()))
    }

    fn line(name: &str) -> Line {
        Line::parse(name).unwrap()
    }

    #[test]
    fn lines_are_consoles_unless_it_is_said_otherwise() {
        let (wanted, left) = words(&["quiet"]).unwrap();
        assert_eq!(wanted.len(), 16);
        assert!(wanted.values().all(|channel| *channel == Channel::Console));
        assert_eq!(left, ["quiet"]);
        let arguments: Vec<Vec<u8>> = arguments(&wanted).collect();
        assert_eq!(arguments[0], b"con0=fd:544");
        assert_eq!(arguments[8], b"ssl0=fd:560");

        let (wanted, left) =
            words(&["con1=tty:/dev/x", "con=null", "ssl20=pty", "con2=pts"]).unwrap();
        assert_eq!(left, ["con1=tty:/dev/x", "con=null"]);
        assert_eq!(wanted.len(), 10);
        assert_eq!(wanted[&line("ssl20")], Channel::Terminal);
        assert_eq!(wanted[&line("con2")], Channel::Terminal);
        assert_eq!(words(&["con=console"]).unwrap().0.len(), 24);
        assert_eq!(words(&["con3=null,tty:/x"]).unwrap().0.len(), 15);
    }

    #[test]
    fn sockets_have_addresses() {
        let (wanted, left) = words(&[
            "ssl0=port:9000",
            "ssl1=port:0.0.0.0:1",
            "con0=unix:/tmp/none,x",
        ])
        .unwrap();
        assert_eq!(left, Vec::<String>::new());
        let shown = |name| wanted[&line(name)].to_string();
        assert_eq!(shown("ssl0"), "port:127.0.0.1:9000");
        assert_eq!(shown("ssl1"), "port:0.0.0.0:1");
        assert_eq!(shown("con0"), "unix:/tmp/none,x");
    }

    #[test]
    fn channels_that_cannot_be_are_named() {
        for (word, part) in [
            ("con1=xterm", "`coordinator console NAME LINE` in an xterm"),
            ("ssl=fd:3", "no descriptors of yours"),
            ("con0=null,fd:1", "null or tty:PATH"),
            ("con0=", "allowed are console"),
            ("con0=pty:x", "allowed are console"),
            ("con0=tty", "allowed are console"),
            ("ssl0=port:", "from 1 to 65535"),
            ("ssl0=port:0", "from 1 to 65535"),
            ("ssl0=port:host:9", "from 1 to 65535"),
            ("con0=unix:x", "absolute"),
            ("con0=unix:/proc/version", "already"),
            ("con0=unix:/nonexistent/x", "No such file"),
            ("con=unix:/tmp/none", "cannot be that of all"),
            ("ssl=port:9000", "cannot be that of all"),
        ] {
            let failure = words(&[word]).unwrap_err();
            assert_eq!(failure.code, 2);
            assert!(failure.line.contains(part), "{word}: {}", failure.line);
        }
    }
}
