//! Descriptors that the guest has open and that are more than a file of the host's: what is done to one is asked of
//! its tree first.
//!
//! They are descriptors of this process as others are, of a file that stands for what is behind them. Most are not
//! among them, and cost a look at one bit.

use super::super::env::{self, Env};
use super::super::exec::{Done, Op, Work};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

/// What is behind a descriptor.
pub(super) trait Held: Debug + Send + Sync {
    /// Does what is asked of the descriptor; `None` leaves it to the file that stands there.
    fn exec(&self, env: &Env, work: &Work) -> Option<Done>;
}

/// What a tree opens: a descriptor, and what is behind it if that is more than the file.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) fd: OwnedFd,
    pub(super) held: Option<Arc<dyn Held>>,
}

impl From<OwnedFd> for Opened {
    fn from(fd: OwnedFd) -> Self {
        Self { fd, held: None }
    }
}

const BITS: usize = 1 << env::NODE_SHIFT;

static IS_HELD: [AtomicU64; BITS / 64] = [const { AtomicU64::new(0) }; BITS / 64];
static HELD: RwLock<BTreeMap<i32, Arc<dyn Held>>> = RwLock::new(BTreeMap::new());

fn bit(fd: i32) -> Option<(&'static AtomicU64, u64)> {
    let fd = usize::try_from(fd).ok()?;
    Some((IS_HELD.get(fd / 64)?, 1 << (fd % 64)))
}

/// Context: signal.
pub(in super::super) fn is_held(fd: i32) -> bool {
    bit(fd).is_some_and(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
}

/// Whether an operation is about such a descriptor. Context: signal.
pub(in super::super) fn concerns(work: &Work) -> bool {
    match work.op {
        Op::PathStatx => work.input_len == 0 && is_held(work.fd()),
        Op::DuplicateTo => is_held(work.fd()) || is_held(work.int(1)),
        op => (op as u16) < Op::PathOpen as u16 && is_held(work.fd()),
    }
}

fn find(fd: i32) -> Option<Arc<dyn Held>> {
    let table = HELD.read().unwrap_or_else(|error| error.into_inner());
    table.get(&fd).cloned()
}

fn put(fd: i32, held: Option<Arc<dyn Held>>) -> Option<Arc<dyn Held>> {
    let mut table = HELD.write().unwrap_or_else(|error| error.into_inner());
    let (word, bit) = bit(fd)?;
    match held {
        Some(held) => {
            word.fetch_or(bit, Ordering::AcqRel);
            table.insert(fd, held)
        }
        None => {
            word.fetch_and(!bit, Ordering::AcqRel);
            table.remove(&fd)
        }
    }
}

/// Hands a descriptor to the guest.
pub(super) fn hand_out(env: &Env, opened: Opened) -> Done {
    let fd = opened.fd.into_raw_fd();
    if let Some(held) = opened.held {
        put(fd, Some(held));
    }
    let done = Done::descriptor(env, fd);
    if done.result < 0 {
        // It had no place in a handle, and is closed.
        drop(put(fd, None));
    }
    done
}

/// Executes an operation on such a descriptor; `None` for one on another.
pub(in super::super) fn exec(env: &Env, work: &Work) -> Option<Done> {
    if !concerns(work) {
        return None;
    }
    let fd = work.fd();
    let held = find(fd);
    match work.op {
        Op::Close => {
            // Before the number can be another's. What is behind it ends when the last of its descriptors does.
            drop((put(fd, None), held));
            // SAFETY: no pointers; the descriptor is the guest's.
            Some(Done::of(unsafe { libc::close(fd) }.into()))
        }
        Op::DuplicateTo => {
            let to = work.int(1);
            // SAFETY: no pointers; both are the guest's.
            let result = unsafe { libc::dup2(fd, to) };
            if result < 0 {
                return Some(Done::of(-1));
            }
            drop(put(to, held));
            Some(Done::descriptor(env, result))
        }
        _ => held?.exec(env, work),
    }
}
