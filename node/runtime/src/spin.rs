//! Waiting without sleeping, as long as nobody else wants the processor.
//!
//! What a node waits for while pages move comes within some microseconds, far less than it takes the host to
//! put a processor to sleep and to wake it up again. But the processor may be needed by whoever is to bring it:
//! each look gives way to others, and if somebody else did run, there is no more looking.

use crate::clock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Giving way takes longer than this only if somebody else ran meanwhile.
const ALONE_NS: u64 = 4_000;

/// How long it is looked before whoever waits sleeps: as a rule the answer, or the next message, comes sooner.
const MOST_NS: u64 = 200_000;

/// What other nodes send may come that soon.
static PAYS: AtomicBool = AtomicBool::new(true);

/// No other node answers sooner than this: links may be slow on purpose.
pub(crate) fn pays(answer_ns_min: u64) {
    PAYS.store(answer_ns_min < MOST_NS, Relaxed);
}

/// Whoever has had nothing to do for so long sleeps, even where other nodes answer as soon as they can.
pub(crate) fn would_have_slept(idle_ns: u64) -> bool {
    idle_ns > MOST_NS
}

/// Looks until `ready`, for a moment at most; whether it is.
pub(crate) fn until(mut ready: impl FnMut() -> bool) -> bool {
    if !PAYS.load(Relaxed) {
        return ready();
    }
    let began_ns = clock::host_ns();
    let mut now_ns = began_ns;
    while now_ns - began_ns < MOST_NS {
        if ready() {
            return true;
        }
        let before_ns = clock::host_ns();
        // SAFETY: no arguments.
        unsafe { libc::sched_yield() };
        now_ns = clock::host_ns();
        if now_ns - before_ns > ALONE_NS {
            return false;
        }
    }
    false
}

/// Looks until `ready`, or until it is that late; whether it is ready. For times so near that whoever sleeps until
/// then is woken later. Gives way to others, and goes on after them.
pub(crate) fn up_to(at_ns: u64, mut ready: impl FnMut() -> bool) -> bool {
    while clock::host_ns() < at_ns {
        if ready() {
            return true;
        }
        // SAFETY: no arguments.
        unsafe { libc::sched_yield() };
    }
    false
}
