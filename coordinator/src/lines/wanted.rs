//! What `--append` says about lines: which are there, and what is at the other end of each.

use super::descriptors::{self, Descriptors};
use super::window::Emulator;
use crate::failure::Failure;
use crate::network::port;
use crate::options::Place;
use span_api::guest::{LINE_FD_FIRST, descriptor_handle};
use span_api::line::{Channel, Line, check_terminals};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `sun_path` of the host, without its NUL.
const SOCKET_BYTES_MAX: usize = 107;

const ALLOWED: &str = "allowed are console, unix:PATH, port:[ADDRESS:]PORT, pty, pts, null, tty:PATH, fd:IN[,OUT] and xterm";

/// What is at the other end of a line, beside `coordinator console`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Other {
    /// What the first node's agent holds.
    Agent(Channel),
    /// Descriptors of this process.
    Descriptors(Descriptors),
    /// A terminal emulator that this process starts.
    Window,
}

impl Other {
    /// What an agent has to know of it.
    pub(crate) fn channel(&self) -> Channel {
        match self {
            Self::Agent(channel) => channel.clone(),
            Self::Descriptors(_) | Self::Window => Channel::Console,
        }
    }
}

impl std::fmt::Display for Other {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Agent(channel) => channel.fmt(f),
            Self::Descriptors(descriptors) => descriptors.fmt(f),
            Self::Window => f.write_str("xterm"),
        }
    }
}

/// The lines that are not the kernel's own business.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) lines: BTreeMap<Line, Other>,
    /// For those that are windows.
    pub(crate) emulator: Emulator,
}

impl Wanted {
    /// Takes the words that are about lines out of what the user appended, as far as they are not for the kernel.
    pub(crate) fn new(appended: &mut Vec<Vec<u8>>, first: &Place) -> Result<Self, Failure> {
        let default = Line::all().filter(|line| line.is_default());
        let console = || Other::Agent(Channel::Console);
        let mut all: BTreeMap<Line, Other> = default.map(|line| (line, console())).collect();
        let mut single: BTreeMap<Line, Option<Other>> = BTreeMap::new();
        let mut emulator = Emulator::default();
        let mut failure = None;
        appended.retain(|bytes| {
            let word = String::from_utf8_lossy(bytes).into_owned();
            let refused = |why: &str| Failure::usage(format!("--append {word}: {why}"));
            if let Some(value) = word.strip_prefix("xterm=") {
                match Emulator::parse(value) {
                    Ok(found) => emulator = found,
                    Err(why) => _ = failure.get_or_insert(refused(&why)),
                }
                return false;
            }
            let Some((lines, value)) = about(&word) else {
                return true;
            };
            let other = match other(value, first) {
                Ok(other) => other,
                Err(why) => {
                    failure.get_or_insert(refused(&why));
                    return true;
                }
            };
            let kernel = other.is_none();
            match lines {
                // One is more than all, whichever comes first: so the kernel has it.
                Lines::One(line) => _ = single.insert(line, other),
                Lines::All { serial } => {
                    let what = match other {
                        Some(Other::Agent(Channel::Unix { .. } | Channel::Port { .. })) => "socket",
                        Some(Other::Descriptors(_)) => "descriptor",
                        Some(Other::Window) => "window",
                        _ => "",
                    };
                    if !what.is_empty() {
                        let why = format!("one {what} cannot be that of all lines");
                        failure.get_or_insert(refused(&why));
                        return true;
                    }
                    all.retain(|line, _| line.is_serial() != serial);
                    if let Some(other) = other {
                        let lines = Line::all().filter(|line| line.is_serial() == serial);
                        all.extend(lines.map(|line| (line, other.clone())));
                    }
                }
            }
            kernel
        });
        if let Some(failure) = failure {
            return Err(failure);
        }
        for (line, other) in single {
            match other {
                Some(other) => _ = all.insert(line, other),
                None => _ = all.remove(&line),
            }
        }
        let wanted = Self {
            lines: all,
            emulator,
        };
        wanted.check()?;
        Ok(wanted)
    }

    /// Whether descriptors and windows can be had.
    fn check(&self) -> Result<(), Failure> {
        let refused = |line: &Line, other: &Other, why: String| {
            Failure::usage(format!("--append {line}={other}: {why}"))
        };
        for (line, other) in &self.lines {
            if *other == Other::Window {
                let checked = self.emulator.check();
                checked.map_err(|why| refused(line, other, why))?;
            }
        }
        let all = self.lines.iter().filter_map(|(line, other)| match other {
            Other::Descriptors(descriptors) => Some((line, other, descriptors)),
            _ => None,
        });
        let mut taken = descriptors::Taken::default();
        for (line, other, descriptors) in all {
            let checked = taken.add(descriptors);
            checked.map_err(|why| refused(line, other, why))?;
        }
        taken
            .keep()
            .map_err(|error| Failure::cannot("descriptors cannot be kept", error))
    }

    pub(crate) fn channels(&self) -> Vec<(Line, Channel)> {
        let lines = self.lines.iter();
        lines
            .map(|(line, other)| (*line, other.channel()))
            .collect()
    }

    /// Kernel arguments for lines that an agent has the other ends of.
    pub(crate) fn arguments(&self) -> impl Iterator<Item = Vec<u8>> {
        self.lines.keys().map(|line| {
            let fd = descriptor_handle(0, LINE_FD_FIRST + i32::from(line.index()));
            format!("{line}=fd:{fd}").into_bytes()
        })
    }
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

/// What a value says that is at the other end; nothing if it is the kernel's. An error is why there is none.
fn other(value: &str, first: &Place) -> Result<Option<Other>, String> {
    let (kind, rest) = match value.split_once(':') {
        Some((kind, rest)) => (kind, Some(rest)),
        None => (value, None),
    };
    let agent = |channel| Ok(Some(Other::Agent(channel)));
    if value.split(',').any(|part| part.starts_with("fd:")) {
        return Ok(Some(Other::Descriptors(Descriptors::parse(value)?)));
    }
    if value.contains(',') && !value.starts_with("unix:") {
        let known = |part: &str| part == "null" || part == "none" || part.starts_with("tty:");
        return match value.split(',').all(known) {
            true => kernels(value, first),
            false => Err("channels for input and output apart are null, tty:PATH or fd:N".into()),
        };
    }
    match (kind, rest) {
        ("console", None) => agent(Channel::Console),
        ("pty" | "pts", None) => agent(Channel::Terminal),
        ("xterm", None) => Ok(Some(Other::Window)),
        ("null" | "none", None) | ("tty", Some(_)) => kernels(value, first),
        ("unix", Some(path)) => {
            socket(Path::new(path), first)?;
            let path = path.as_bytes().to_vec();
            agent(Channel::Unix { path })
        }
        ("port", Some(text)) => {
            let (address, number) = text.rsplit_once(':').unwrap_or(("127.0.0.1", text));
            let address: Option<IpAddr> = match address {
                "" => Some(Ipv4Addr::LOCALHOST.into()),
                address => address.trim_matches(['[', ']']).parse().ok(),
            };
            match (address, port(number)) {
                (Some(address), Some(number)) => agent(Channel::Port {
                    address: SocketAddr::new(address, number),
                }),
                _ => Err("a port is [ADDRESS:]PORT, from 1 to 65535".into()),
            }
        }
        _ => Err(ALLOWED.into()),
    }
}

/// A channel that the kernel opens by itself. It would do so only when somebody uses the line.
fn kernels(value: &str, first: &Place) -> Result<Option<Other>, String> {
    // Elsewhere the node's agent looks.
    if *first == Place::Local {
        check_terminals(value)?;
    }
    Ok(None)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, IntoRawFd};

    fn words(words: &[&str]) -> Result<(BTreeMap<Line, Other>, Vec<String>), Failure> {
        let mut appended = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        let wanted = Wanted::new(&mut appended, &Place::Local)?;
        let left = appended
            .into_iter()
            .map(|word| String::from_utf8(word).unwrap());
        Ok((wanted.lines, left.collect()))
    }

    fn line(name: &str) -> Line {
        Line::parse(name).unwrap()
    }

    #[test]
    fn lines_are_consoles_unless_it_is_said_otherwise() {
        let (wanted, left) = words(&["quiet"]).unwrap();
        assert_eq!(wanted.len(), 16);
        let console = Other::Agent(Channel::Console);
        assert!(wanted.values().all(|other| *other == console));
        assert_eq!(left, ["quiet"]);
        let wanted = Wanted::new(&mut Vec::new(), &Place::Local).unwrap();
        let arguments: Vec<Vec<u8>> = wanted.arguments().collect();
        assert_eq!(arguments[0], b"con0=fd:544");
        assert_eq!(arguments[8], b"ssl0=fd:560");

        let (wanted, left) =
            words(&["con1=tty:/dev/tty", "con=null", "ssl20=pty", "con2=pts"]).unwrap();
        assert_eq!(left, ["con1=tty:/dev/tty", "con=null"]);
        assert_eq!(wanted.len(), 10);
        assert_eq!(wanted[&line("ssl20")], Other::Agent(Channel::Terminal));
        assert_eq!(wanted[&line("con2")], Other::Agent(Channel::Terminal));
        assert_eq!(words(&["con=console"]).unwrap().0.len(), 24);
        assert_eq!(words(&["con3=null,tty:/dev/tty"]).unwrap().0.len(), 15);
        // Another host's are looked at there.
        let mut appended = vec![b"con3=tty:/nonexistent".to_vec()];
        let elsewhere = Place::Remote("host:1".into());
        assert!(Wanted::new(&mut appended, &elsewhere).is_ok());
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
            ("con=xterm", "one window cannot be"),
            ("con1=xterm:5", "allowed are console"),
            ("xterm=", "PROGRAM[,TITLE-OPTION,EXEC-OPTION]"),
            ("ssl=fd:3", "one descriptor cannot be"),
            ("con0=null,fd:1", "are this command's own"),
            ("con0=fd:987654", "descriptor 987654 is not open"),
            ("con0=fd:x", "fd:IN[,OUT]"),
            ("con0=fd:3,4,5", "fd:IN[,OUT]"),
            ("con0=fd:3,pty", "fd:IN[,OUT]"),
            ("con0=null,pty", "null, tty:PATH or fd:N"),
            ("con0=", "allowed are console"),
            ("con0=pty:x", "allowed are console"),
            ("con0=tty", "allowed are console"),
            (
                "con3=tty:/nonexistent",
                "con3=tty:/nonexistent: /nonexistent: No such",
            ),
            ("con3=tty:/dev/null", "/dev/null is no terminal"),
            (
                "ssl1=null,tty:/proc/version",
                "/proc/version is no terminal",
            ),
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

    #[test]
    fn descriptors_are_those_that_this_process_was_given() {
        let opened = |path, write| {
            let mut options = std::fs::OpenOptions::new();
            options.read(true).write(write).open(path).unwrap()
        };
        // Not inherited: it goes away with exec.
        let own = opened("/dev/null", true);
        let inherited = |file: &std::fs::File| nix::unistd::dup(file).unwrap().into_raw_fd();
        let both = inherited(&own);
        let reads = inherited(&opened("/dev/null", false));
        let directory = inherited(&opened("/", false));
        for (word, part) in [
            (format!("con0=fd:{}", own.as_raw_fd()), "is not open"),
            (format!("con0=fd:{reads}"), "is not open for writing"),
            (format!("con0=fd:{directory},null"), "is a directory"),
        ] {
            let failure = words(&[&word]).unwrap_err();
            assert!(failure.line.contains(part), "{word}: {}", failure.line);
        }
        let twice = [format!("con0=fd:{both}"), format!("ssl3=fd:{reads},{both}")];
        let failure = words(&[&twice[0], &twice[1]]).unwrap_err();
        assert!(failure.line.contains("another line's"), "{}", failure.line);
        let (wanted, left) = words(&[&twice[1]]).unwrap();
        assert_eq!(left, Vec::<String>::new());
        assert_eq!(
            wanted[&line("ssl3")].to_string(),
            format!("fd:{reads},{both}")
        );
        // Kept, and so not for those whom this process starts: a second time it is none that was inherited.
        assert!(words(&[&twice[1]]).is_err());
        let (wanted, _) = words(&[&format!("con0=null,fd:{}", inherited(&own))]).unwrap();
        assert!(wanted[&line("con0")].to_string().starts_with("null,fd:"));
    }
}
