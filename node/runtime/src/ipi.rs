//! Inter-processor interrupts.
//!
//! A vCPU thread posts an interrupt and goes on; the pager sends it to the node of the target, whose
//! pager queues the signal to the vCPU's thread. Interrupts of one kind to one CPU that have not been
//! sent yet are one, as on hardware: their handlers look for work, they do not count.
//!
//! [`post`]'s context: signal.

use crate::slots;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

/// The kernel's vectors (`UML_IPI_*`) are below this.
const VECTORS: u32 = 32;

static POSTED: [AtomicU32; span_api::CPUS_MAX] = [const { AtomicU32::new(0) }; span_api::CPUS_MAX];
static TARGETS: AtomicU64 = AtomicU64::new(0);

/// Posts an interrupt; 0, or `-EINVAL` for a CPU or vector that does not exist.
pub(crate) fn post(cpu: i32, vector: i32) -> i32 {
    let (Some(posted), 0..=31) = (POSTED.get(cpu as usize), vector) else {
        return -libc::EINVAL;
    };
    posted.fetch_or(1 << vector, AcqRel);
    TARGETS.fetch_or(1 << cpu, AcqRel);
    slots::wake_pager();
    0
}

/// Takes what has been posted since the last call.
pub(crate) fn take(mut send: impl FnMut(u16, u32)) {
    let mut targets = TARGETS.swap(0, AcqRel);
    while targets != 0 {
        let cpu = targets.trailing_zeros();
        targets &= targets - 1;
        let vectors = POSTED[cpu as usize].swap(0, AcqRel);
        for vector in (0..VECTORS).filter(|vector| vectors & (1 << vector) != 0) {
            send(cpu as u16, vector);
        }
    }
}

/// `siginfo_t` as `rt_tgsigqueueinfo` wants it for a signal with a value.
#[repr(C)]
struct SignalInfo {
    signal: i32,
    errno: i32,
    code: i32,
    pad: i32,
    pid: i32,
    uid: u32,
    value: u64,
    rest: [u64; 12],
}

/// Queues the vCPU's interrupt signal to its thread.
pub(crate) fn queue_signal(thread: i32, signal: i32, vector: u32) {
    // SAFETY: no arguments.
    let (pid, uid) = unsafe { (libc::getpid(), libc::getuid()) };
    let info = SignalInfo {
        signal,
        errno: 0,
        code: libc::SI_QUEUE,
        pad: 0,
        pid,
        uid,
        value: u64::from(vector),
        rest: [0; 12],
    };
    // SAFETY: passes a local of the size of `siginfo_t`.
    unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, thread, signal, &info) };
}
