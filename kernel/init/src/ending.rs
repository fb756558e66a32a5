//! How a guest ends: every process is told, then killed; what was written is flushed; then the
//! kernel is asked to stop.

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        reboot::{RebootMode, reboot},
        signal::{Signal, kill},
        signalfd::siginfo,
    },
    unistd::{Pid, sync},
};
use span_api::guest::HaltKind;
use std::{
    ffi::c_int,
    fs,
    time::{Duration, Instant},
};

/// Time for processes to end by themselves after SIGTERM, in milliseconds.
const TERMINATE_MS_MAX: u64 = 300;

/// Time for killed processes to be gone, in milliseconds.
const KILL_MS_MAX: u64 = 500;

/// Time for the coordinator to take what is still to be sent, in milliseconds.
pub(crate) const FLUSH_MS_MAX: u64 = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    PowerOff,
    Halt,
    Restart,
}

impl Ending {
    /// What a signal to process 1 asks for, after the convention of sysvinit and busybox.
    pub(crate) fn of_signal(info: &siginfo) -> Option<Ending> {
        match Signal::try_from(info.ssi_signo as i32).ok()? {
            Signal::SIGUSR1 => Some(Ending::Halt),
            Signal::SIGUSR2 | Signal::SIGPWR => Some(Ending::PowerOff),
            // SIGINT is what the kernel sends for Ctrl-Alt-Del.
            Signal::SIGTERM | Signal::SIGINT => Some(Ending::Restart),
            _ => None,
        }
    }

    /// The signal to process 1 that asks for this.
    pub(crate) fn signal(self) -> Signal {
        match self {
            Ending::PowerOff => Signal::SIGUSR2,
            Ending::Halt => Signal::SIGUSR1,
            Ending::Restart => Signal::SIGTERM,
        }
    }

    /// How the coordinator calls this.
    pub(crate) fn kind(self) -> HaltKind {
        match self {
            Ending::PowerOff => HaltKind::PowerOff,
            Ending::Halt => HaltKind::Halt,
            Ending::Restart => HaltKind::Restart,
        }
    }

    /// Asks the kernel to stop at once; returns only if it refuses.
    pub(crate) fn now(self) -> nix::Error {
        let mode = match self {
            Ending::PowerOff => RebootMode::RB_POWER_OFF,
            Ending::Halt => RebootMode::RB_HALT_SYSTEM,
            Ending::Restart => RebootMode::RB_AUTOBOOT,
        };
        match reboot(mode) {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Terminating,
    Killing,
    Flushing,
}

/// An ending under way. The server goes on serving streams meanwhile, so that what processes write
/// last still arrives.
#[derive(Debug)]
pub(crate) struct Progress {
    ending: Ending,
    stage: Stage,
    deadline: Instant,
}

impl Progress {
    pub(crate) fn begin(ending: Ending) -> Progress {
        signal_all(Signal::SIGTERM);
        // A stopped process would not notice.
        signal_all(Signal::SIGCONT);
        Progress::at(ending, Stage::Terminating, TERMINATE_MS_MAX)
    }

    fn at(ending: Ending, stage: Stage, limit_ms: u64) -> Progress {
        let deadline = Instant::now() + Duration::from_millis(limit_ms);
        Progress {
            ending,
            stage,
            deadline,
        }
    }

    /// Goes on if it is time to. `alone`: no other process is left; `sent`: nothing is left to be
    /// sent. Returns the ending when all that remains is [`finish`].
    pub(crate) fn advance(&mut self, alone: bool, sent: bool) -> Option<Ending> {
        if self.stage == Stage::Terminating && (alone || self.is_late()) {
            signal_all(Signal::SIGKILL);
            *self = Progress::at(self.ending, Stage::Killing, KILL_MS_MAX);
        }
        if self.stage == Stage::Killing && (alone || self.is_late()) {
            *self = Progress::at(self.ending, Stage::Flushing, FLUSH_MS_MAX);
        }
        (self.stage == Stage::Flushing && (sent || self.is_late())).then_some(self.ending)
    }

    /// Time until [`Progress::advance`] has something to do at the latest.
    pub(crate) fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn is_late(&self) -> bool {
        Instant::now() >= self.deadline
    }
}

fn signal_all(signal: Signal) {
    // Process 1 itself is exempt; an error means that nobody is there.
    let _ = kill(Pid::from_raw(-1), signal);
}

/// Flushes and unmounts file systems and stops the kernel. Returns only if the kernel refuses.
pub(crate) fn finish(ending: Ending) -> c_int {
    sync();
    unmount_all();
    let error = ending.now();
    crate::kmsg::error(&format!("the kernel refused to stop: {error}"));
    1
}

fn unmount_all() {
    let mounts = fs::read("/proc/self/mounts").unwrap_or_default();
    for target in mount_points(&mounts).rev() {
        if !["/", "/proc", "/sys", "/dev"].contains(&target.as_str()) {
            let _ = umount2(target.as_str(), MntFlags::UMOUNT_NOFOLLOW);
        }
    }
    // Process 1 runs from it, so this is as far as it goes.
    let _ = mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
        None::<&str>,
    );
}

/// The second field of each line, with the kernel's octal escapes resolved.
fn mount_points(mounts: &[u8]) -> impl DoubleEndedIterator<Item = String> {
    mounts.split(|byte| *byte == b'\n').filter_map(|line| {
        let field = line.split(|byte| *byte == b' ').nth(1)?;
        Some(String::from_utf8_lossy(&unescape(field)).into_owned())
    })
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        let octal = match (byte, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        if octal.is_some() {
            rest = &after[3..];
        }
        plain.push(octal.unwrap_or(*byte));
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        let mounts = b"none / overlay rw 0 0\na /mnt/a\\040b ext4 rw 0 0\n\nshort\n";
        assert_eq!(mount_points(mounts).collect::<Vec<_>>(), ["/", "/mnt/a b"]);
        assert_eq!(unescape(b"x\\04"), b"x\\04");
    }

    #[test]
    fn every_ending_has_a_signal_of_its_own() {
        for ending in [Ending::PowerOff, Ending::Halt, Ending::Restart] {
            // SAFETY: all zeros is a valid `siginfo`.
            let mut info: siginfo = unsafe { std::mem::zeroed() };
            info.ssi_signo = ending.signal() as u32;
            assert_eq!(Ending::of_signal(&info), Some(ending));
        }
    }
}
