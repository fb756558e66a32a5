//! What vCPU threads note for the profile, besides what they ask the pager anyway: where a user process
//! gets a page mapped. The kernel fetches such a page by an address of its own, before it says for whom.
//!
//! Off, it costs one relaxed load for each mapping.

use crate::slots::{self, SLOTS};
use span_api::profile::UserPage;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering::*, fence};

static ON: AtomicBool = AtomicBool::new(false);

const NONE: u32 = u32::MAX;

/// The last page that a thread mapped for a user process. `frame` is written last, and is `NONE` while
/// the rest changes.
#[derive(Debug)]
struct Mapped {
    frame: AtomicU32,
    stub_pid: AtomicI32,
    address: AtomicU64,
}

static MAPPED: [Mapped; SLOTS] = [const {
    Mapped {
        frame: AtomicU32::new(NONE),
        stub_pid: AtomicI32::new(0),
        address: AtomicU64::new(0),
    }
}; SLOTS];

pub(crate) fn turn(on: bool) {
    ON.store(on, Relaxed);
}

pub(crate) fn is_on() -> bool {
    ON.load(Relaxed)
}

/// The calling thread maps a page for a user process. Context: local stack.
pub(crate) fn mapped(frame: u32, stub_pid: i32, address: u64) {
    let mapped = &MAPPED[slots::mine()];
    mapped.frame.store(NONE, Relaxed);
    fence(Release);
    mapped.stub_pid.store(stub_pid, Relaxed);
    mapped.address.store(address, Relaxed);
    mapped.frame.store(frame, Release);
}

/// What a slot's thread mapped last, if it was this page.
pub(crate) fn last_mapped(slot: u32, frame: u32) -> Option<UserPage> {
    let mapped = MAPPED.get(slot as usize)?;
    if mapped.frame.load(Acquire) != frame {
        return None;
    }
    let page = UserPage {
        stub_pid: mapped.stub_pid.load(Relaxed),
        address: mapped.address.load(Relaxed),
    };
    fence(Acquire);
    (mapped.frame.load(Relaxed) == frame).then_some(page)
}
