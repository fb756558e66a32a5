//! What this process's user lets files of its own not have (umask(2)).
//!
//! hostfs's files are the guest's: their modes have been through the umask of the guest's program, and the host must
//! take no more from them. So the process has none from [`take`] on, and what it makes for itself is masked here.
//!
//! Nothing here allocates or waits.

use core::ffi::c_int;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Says that there is a mask to give back. No mode has this bit.
const TAKEN: u32 = 1 << 31;

static MASK: AtomicU32 = AtomicU32::new(0);

/// Takes the mask from the process; once, before the kernel runs.
pub(crate) fn take() {
    // SAFETY: no pointers.
    MASK.store(unsafe { libc::umask(0) } | TAKEN, Relaxed);
}

/// For a program that this process's child is about to become.
pub(super) fn give_back() {
    let mask = MASK.load(Relaxed);
    if mask & TAKEN != 0 {
        // SAFETY: no pointers.
        unsafe { libc::umask(mask & !TAKEN) };
    }
}

/// The mode of a file that this process makes for itself.
pub(super) fn own(mode: u32) -> u32 {
    mode & !MASK.load(Relaxed)
}

/// Before a socket gets a name, which has the socket's mode.
pub(super) fn restrict_socket(fd: c_int) {
    // SAFETY: no pointers. Sockets that have no names in file systems have modes all the same; an error is bind's, too.
    unsafe { libc::fchmod(fd, own(0o777)) };
}
