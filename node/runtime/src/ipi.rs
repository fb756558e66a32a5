//! Inter-processor interrupts.
//!
//! A vCPU thread has the pager send an interrupt to the node of the target, whose pager queues the signal to
//! that vCPU's thread.

use crate::{local_stack, pager};

/// The kernel's vectors (`UML_IPI_*`) are below this.
const VECTORS: i32 = 32;

/// Sends an interrupt; 0, or `-EINVAL` for a CPU or vector that does not exist. Context: any.
pub(crate) fn send(cpu: i32, vector: i32) -> i32 {
    extern "C" fn interrupt(cpu: u64, vector: u64, _: u64, _: u64) -> u64 {
        pager::interrupt(cpu as u16, vector as u32);
        0
    }
    if !(0..span_api::CPUS_MAX as i32).contains(&cpu) || !(0..VECTORS).contains(&vector) {
        return -libc::EINVAL;
    }
    local_stack::call(interrupt, cpu as u64, vector as u64, 0, 0);
    0
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
