//! The guest's monotonic clock.
//!
//! All nodes show the clock of the first. On the same host that is the same clock; elsewhere the
//! offset is estimated from round trips (half of the shortest), and no node's clock is ever behind
//! what a message that reached it was stamped with: an effect never precedes its cause.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

static OFFSET_NS: AtomicI64 = AtomicI64::new(0);

/// What to add to this host's monotonic clock. Context: signal.
pub(crate) fn offset_ns() -> i64 {
    OFFSET_NS.load(Relaxed)
}

/// This host's monotonic clock.
pub(crate) fn host_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a local of a runtime thread.
    unsafe { host_ns_by(&mut now) }
}

/// The same, with the host shown no memory but `now`: for threads whose stack is the guest's.
///
/// # Safety
/// Nobody else writes to `now` meanwhile.
pub(crate) unsafe fn host_ns_by(now: *mut libc::timespec) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        libc::clock_gettime(libc::CLOCK_MONOTONIC, now);
        (*now).tv_sec as u64 * 1_000_000_000 + (*now).tv_nsec as u64
    }
}

/// The guest's clock.
pub(crate) fn guest_ns() -> u64 {
    host_ns().wrapping_add_signed(offset_ns())
}

/// A message stamped `clock_ns` has arrived.
pub(crate) fn not_before(clock_ns: u64) {
    let behind = clock_ns as i64 - guest_ns() as i64;
    if behind > 0 {
        OFFSET_NS.fetch_add(behind, Relaxed);
    }
}

/// The first node's clock was `theirs_ns` between two readings of this host's clock. The offset
/// only grows: the guest's clock must not go back.
pub(crate) fn measured(sent_ns: u64, theirs_ns: u64, received_ns: u64) {
    let middle = sent_ns + (received_ns - sent_ns) / 2;
    let offset = theirs_ns as i64 - middle as i64;
    OFFSET_NS.fetch_max(offset, Relaxed);
}

/// First estimate, before the guest has read the clock here: taken as it is.
pub(crate) fn start_from(offset_ns: i64) {
    OFFSET_NS.store(offset_ns, Relaxed);
}

/// Identifies the host's clock: nodes with the same value need no offset.
pub(crate) fn boot_identity() -> u64 {
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let offsets = std::fs::read("/proc/self/timens_offsets").unwrap_or_default();
    // FNV-1a: any difference must show, nobody has a reason to forge it.
    boot.iter()
        .chain(&offsets)
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
}
