//! Inter-processor interrupts.
//!
//! A vCPU thread has the pager send an interrupt to the node of the target, whose pager queues the signal to
//! that vCPU's thread.
//!
//! A call of a function on another node's CPU goes along with its interrupt: whoever is interrupted need
//! not fetch a page to find out what to do, nor whoever waits one to see that it is done.

use crate::{local_stack, pager};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

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

/// The last of `enum node_call_kind`.
pub(crate) const CALL_KIND_MAX: u32 = 2;

/// `struct node_call` of the kernel's: what is to be done on a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Call {
    /// `enum node_call_kind`, which means something to the kernel only.
    pub(crate) kind: u32,
    /// The CPU that asks.
    pub(crate) from: u32,
    /// A `call_single_data_t`.
    pub(crate) data: u64,
    pub(crate) function: u64,
    pub(crate) info: u64,
}

/// For each of this node's CPUs.
static CALLS: [Mutex<VecDeque<Call>>; span_api::CPUS_MAX] =
    [const { Mutex::new(VecDeque::new()) }; span_api::CPUS_MAX];

fn calls(cpu: u16) -> MutexGuard<'static, VecDeque<Call>> {
    CALLS[usize::from(cpu)]
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

/// For a CPU of this node's, before it is interrupted.
pub(crate) fn bring_call(cpu: u16, call: Call) {
    calls(cpu).push_back(call);
}

/// The next for a CPU of this node's. Context: local stack.
pub(crate) fn take_call(cpu: u16) -> Option<Call> {
    calls(cpu).pop_front()
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

/// Who sends signals: this process, also where a child that is about to become a stub drives the pager for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sender {
    pid: i32,
    uid: u32,
}

impl Sender {
    pub(crate) fn this_process() -> Self {
        // SAFETY: no arguments.
        let (pid, uid) = unsafe { (libc::getpid(), libc::getuid()) };
        Self { pid, uid }
    }
}

/// Queues the vCPU's interrupt signal to its thread.
pub(crate) fn queue_signal(sender: Sender, thread: i32, signal: i32, vector: u32) {
    let Sender { pid, uid } = sender;
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
