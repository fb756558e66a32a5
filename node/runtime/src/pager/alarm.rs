//! The timer of the pager's loop.

use crate::clock;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Shortest wait of the timer; zero would disarm it.
const TIMER_NS_MIN: u64 = 1_000;

#[derive(Debug)]
pub(super) struct Alarm {
    timer: OwnedFd,
    /// When it will go off, 0 if it is not set.
    at_ns: u64,
    /// It was set well before.
    was_far: bool,
}

/// Who waits for a timer that goes off sooner than this may not even have gone to sleep.
const FAR_NS: u64 = 10_000;

impl Alarm {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            timer: timerfd()?,
            at_ns: 0,
            was_far: false,
        })
    }

    /// Goes off at `next`, or sooner if it was set to already: most deadlines are over, or have been
    /// put off, before they are reached, and setting it costs a system call.
    pub(super) fn set(&mut self, next: Option<u64>) {
        let Some(at_ns) = next else { return };
        if self.at_ns == 0 || at_ns < self.at_ns {
            self.at_ns = at_ns;
            let wait_ns = at_ns.saturating_sub(clock::host_ns());
            self.was_far = wait_ns >= FAR_NS;
            arm(&self.timer, wait_ns);
        }
    }

    /// How much later whoever waited for it runs, if he had the time to sleep.
    pub(super) fn has_gone_off(&mut self) -> Option<u64> {
        let at_ns = std::mem::take(&mut self.at_ns);
        (self.was_far && at_ns > 0).then(|| clock::host_ns().saturating_sub(at_ns))
    }
}

impl AsRawFd for Alarm {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

fn arm(timer: &OwnedFd, wait_ns: u64) {
    let wait_ns = wait_ns.max(TIMER_NS_MIN);
    let spec = libc::itimerspec {
        it_interval: libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        it_value: libc::timespec {
            tv_sec: (wait_ns / 1_000_000_000) as i64,
            tv_nsec: (wait_ns % 1_000_000_000) as i64,
        },
    };
    // SAFETY: passes a local.
    unsafe { libc::timerfd_settime(timer.as_raw_fd(), 0, &spec, std::ptr::null_mut()) };
}

fn timerfd() -> std::io::Result<OwnedFd> {
    // SAFETY: a new descriptor, owned by the result.
    unsafe {
        let fd = libc::timerfd_create(
            libc::CLOCK_MONOTONIC,
            libc::TFD_NONBLOCK | libc::TFD_CLOEXEC,
        );
        if fd < 0 {
            Err(std::io::Error::last_os_error())
        } else {
            Ok(OwnedFd::from_raw_fd(fd))
        }
    }
}
