//! Consoles and serial lines of the guest, whose other ends the first node's agent has.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

/// The kernel's consoles, and its serial lines.
const CONSOLES: u8 = 16;
const SERIAL_LINES: u8 = 64;

/// Those of either kind that a guest has unless it is said otherwise.
const DEFAULT_OF_KIND: u8 = 8;

/// A console or serial line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Line(u8);

/// What is at the host's end of a line, beside `coordinator console`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Channel {
    /// Nothing.
    Console,
    /// A unix socket that anybody of this user may connect to, as many as want to.
    Unix { path: Vec<u8> },
    /// The same at a TCP port.
    Port { address: SocketAddr },
    /// A pseudo terminal of the host.
    Terminal,
}

impl std::fmt::Display for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Console => f.write_str("console"),
            Self::Unix { path } => write!(f, "unix:{}", String::from_utf8_lossy(path)),
            Self::Port { address } => write!(f, "port:{address}"),
            Self::Terminal => f.write_str("pty"),
        }
    }
}

impl Line {
    /// `con0`, `ssl1` and so on.
    pub fn parse(name: &str) -> Option<Self> {
        let (first, count, number) = match (name.strip_prefix("con"), name.strip_prefix("ssl")) {
            (Some(number), _) => (0, CONSOLES, number),
            (_, Some(number)) => (CONSOLES, SERIAL_LINES, number),
            _ => return None,
        };
        let number = number.parse::<u8>().ok()?;
        let line = Self(first + number);
        (number < count && line.name() == name).then_some(line)
    }

    /// All of the kernel's lines.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..CONSOLES + SERIAL_LINES).map(Self)
    }

    /// Whether a guest has it unless it is said otherwise.
    pub fn is_default(self) -> bool {
        let number = if self.is_serial() {
            self.0 - CONSOLES
        } else {
            self.0
        };
        number < DEFAULT_OF_KIND
    }

    pub fn is_serial(self) -> bool {
        self.0 >= CONSOLES
    }

    /// Its place among all lines.
    pub fn index(self) -> u8 {
        self.0
    }

    pub fn from_index(index: u8) -> Option<Self> {
        (index < CONSOLES + SERIAL_LINES).then_some(Self(index))
    }

    /// What the kernel calls it on its command line.
    pub fn name(self) -> String {
        match self.is_serial() {
            false => format!("con{}", self.0),
            true => format!("ssl{}", self.0 - CONSOLES),
        }
    }

    /// Its device in the guest.
    pub fn device(self) -> String {
        match self.is_serial() {
            false => format!("/dev/tty{}", self.0),
            true => format!("/dev/ttyS{}", self.0 - CONSOLES),
        }
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

/// Whether the terminals of this host that a channel of the kernel's own names (`tty:PATH`, one for each direction)
/// can be some. They are not opened: that has effects on a serial line.
pub fn check_terminals(channel: &str) -> Result<(), String> {
    let parts = channel.split(',');
    // A host that does not tell has whatever device is named tried.
    let drivers = std::fs::read_to_string("/proc/tty/drivers").ok();
    let drives = |device| match &drivers {
        Some(drivers) => is_driven(drivers, libc::major(device), libc::minor(device)),
        None => true,
    };
    for path in parts.filter_map(|part| part.strip_prefix("tty:")) {
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.file_type().is_char_device() && drives(metadata.rdev()) => {}
            Ok(_) => return Err(format!("{path} is no terminal")),
            Err(error) => return Err(format!("{path}: {error}")),
        }
    }
    Ok(())
}

/// Whether a device of this number is one of those drivers' that `/proc/tty/drivers` lists: a name, `/dev/` and how its
/// terminals begin, the major number, one minor number or the first and the last, and what else is known of it.
fn is_driven(drivers: &str, major: u32, minor: u32) -> bool {
    let number = |text: &str| text.parse::<u32>().ok();
    drivers.lines().any(|line| {
        // A name may be of several words.
        let words: Vec<&str> = line.split_whitespace().collect();
        words.windows(3).any(|words| {
            let (first, last) = words[2].split_once('-').unwrap_or((words[2], words[2]));
            words[0].starts_with("/dev/")
                && number(words[1]) == Some(major)
                && number(first).is_some_and(|first| first <= minor)
                && number(last).is_some_and(|last| last >= minor)
        })
    })
}

/// The same of one of the kernel's arguments, whatever it is about.
pub fn check_argument(argument: &[u8]) -> Result<(), String> {
    let argument = String::from_utf8_lossy(argument);
    match argument.split_once('=') {
        Some((key, channel)) if ["con", "ssl"].contains(&key) || Line::parse(key).is_some() => {
            check_terminals(channel).map_err(|why| format!("{argument}: {why}"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_names_of_the_kernel() {
        for line in Line::all() {
            assert_eq!(Line::parse(&line.name()), Some(line));
            assert_eq!(Line::from_index(line.index()), Some(line));
        }
        let device = |name| Line::parse(name).map(Line::device);
        assert_eq!(device("con0").as_deref(), Some("/dev/tty0"));
        assert_eq!(device("ssl63").as_deref(), Some("/dev/ttyS63"));
        for bad in [
            "", "con", "con16", "ssl64", "con01", "con+1", "ssl-1", "tty0", "con300",
        ] {
            assert_eq!(Line::parse(bad), None, "{bad}");
        }
        assert_eq!(Line::from_index(80), None);
        assert_eq!(Line::all().filter(|line| line.is_default()).count(), 16);
    }

    #[test]
    fn terminals_are_devices_that_are_there() {
        for good in ["tty:/dev/tty", "null,tty:/dev/tty", "fd:5", "null"] {
            assert_eq!(check_terminals(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("tty:/nonexistent", "/nonexistent: No such file"),
            (
                "tty:/dev/tty,tty:/nonexistent",
                "/nonexistent: No such file",
            ),
            ("tty:/dev/null", "/dev/null is no terminal"),
            ("tty:/proc/version", "/proc/version is no terminal"),
            ("tty:", "No such file"),
        ] {
            let said = check_terminals(bad).unwrap_err();
            assert!(said.contains(why), "{bad}: {said}");
            for key in ["con", "ssl", "con3", "ssl63"] {
                let said = check_argument(format!("{key}={bad}").as_bytes()).unwrap_err();
                assert!(said.starts_with(&format!("{key}={bad}: ")), "{said}");
            }
        }
        assert_eq!(check_argument(b"quiet"), Ok(()));
        let drivers = "/dev/tty             /dev/tty        5       0 system:/dev/tty\n\
                       usb serial           /dev/ttyUSB   188 0-511 serial\n";
        for (major, minor, driven) in [
            (5, 0, true),
            (5, 1, false),
            (188, 0, true),
            (188, 511, true),
            (188, 512, false),
            (1, 3, false),
        ] {
            assert_eq!(is_driven(drivers, major, minor), driven, "{major}:{minor}");
        }
        assert_eq!(check_argument(b"console=tty:/nonexistent"), Ok(()));
    }
}
