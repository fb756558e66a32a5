//! How a vCPU thread asks the pager for something and waits for it.
//!
//! Each thread that ever faults or makes a request owns one slot of a static array, so that a
//! request needs no allocation and no lock: it is written to the slot, the slot's bit is set in
//! [`READY`], and the pager woken through an eventfd. The thread sleeps on the slot's futex.
//!
//! The pager never waits for a vCPU thread, so whatever locks of the kernel's the thread holds, it
//! is woken.
//!
//! Context: signal, or `local_stack`. No allocation, no lock, no panic.

use crate::{clock, local_stack};
use std::cell::Cell;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::*};

/// Threads of a guest process that may touch guest memory: vCPUs and the kernel's helper threads.
pub(crate) const SLOTS: usize = 256;

/// What is asked for; the arguments are in the slot.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// address, is_write, instruction
    Fault,
    /// address, page and whether it is written to (lowest bit), instruction: map a page of kernel
    /// virtual memory
    VmMap,
    /// start, end: drop mappings of kernel virtual memory on all nodes
    VmDrop,
    /// cpu, signal mask: create a vCPU's thread on its node
    StartCpu,
    /// cpu, thread id: this thread is that vCPU
    CpuStarted,
    /// cpu: until `CpuRun` for it
    CpuWait,
    /// cpu: release its thread
    CpuRun,
    /// node, slot address: until the stub has left user mode
    StubKick,
    /// node, slot address: end the stub
    StubKill,
    /// node, request address, request length, reply address (of `CALL_REPLY_BYTES`)
    HostCall,
}

const OPS: [Op; 10] = [
    Op::Fault,
    Op::VmMap,
    Op::VmDrop,
    Op::StartCpu,
    Op::CpuStarted,
    Op::CpuWait,
    Op::CpuRun,
    Op::StubKick,
    Op::StubKill,
    Op::HostCall,
];

const IDLE: u32 = 0;
const WAITING: u32 = 1;
const DONE: u32 = 2;

#[derive(Debug)]
struct Slot {
    state: AtomicU32,
    op: AtomicU32,
    args: [AtomicU64; 4],
    result: AtomicU64,
    /// When the thread last ran again after an answer, on the host's clock.
    resumed_ns: AtomicU64,
}

static SLOT: [Slot; SLOTS] = [const {
    Slot {
        state: AtomicU32::new(IDLE),
        op: AtomicU32::new(0),
        args: [const { AtomicU64::new(0) }; 4],
        result: AtomicU64::new(0),
        resumed_ns: AtomicU64::new(0),
    }
}; SLOTS];

static TAKEN: AtomicU32 = AtomicU32::new(0);
static READY: [AtomicU64; SLOTS / 64] = [const { AtomicU64::new(0) }; SLOTS / 64];
static WAKE_FD: AtomicI32 = AtomicI32::new(-1);

thread_local! {
    static MINE: Cell<u32> = const { Cell::new(u32::MAX) };
}

/// The eventfd that wakes the pager; set before there is a request.
pub(crate) fn set_wake_fd(fd: i32) {
    WAKE_FD.store(fd, Release);
}

/// Context: signal.
pub(crate) fn wake_pager() {
    static ONE: u64 = 1;
    // SAFETY: writes eight bytes from a static to a descriptor that lives as long as the process.
    unsafe { libc::write(WAKE_FD.load(Acquire), (&raw const ONE).cast(), 8) };
}

/// The calling thread's slot.
pub(crate) fn mine() -> usize {
    let mut index = MINE.get();
    if index == u32::MAX {
        index = TAKEN.fetch_add(1, Relaxed);
        if index as usize >= SLOTS {
            crate::control::die("too many threads touch guest memory");
        }
        MINE.set(index);
    }
    index as usize
}

extern "C" fn publish_and_wait(op: u64, a: u64, b: u64, c: u64) -> u64 {
    let index = mine();
    let slot = &SLOT[index];
    slot.op.store(op as u32, Relaxed);
    slot.args[0].store(a, Relaxed);
    slot.args[1].store(b, Relaxed);
    slot.args[2].store(c, Relaxed);
    slot.state.store(WAITING, Relaxed);
    READY[index / 64].fetch_or(1 << (index % 64), AcqRel);
    wake_pager();
    while slot.state.load(Acquire) == WAITING {
        // SAFETY: waits on a word of a static.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                slot.state.as_ptr(),
                libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                WAITING,
                std::ptr::null::<libc::timespec>(),
            )
        };
    }
    slot.resumed_ns.store(clock::host_ns(), Relaxed);
    // Release: whoever sees the thread running sees since when.
    slot.state.store(IDLE, Release);
    slot.result.load(Relaxed)
}

/// Asks the pager and waits for the answer. Context: any thread, also in a signal handler.
pub(crate) fn request(op: Op, a: u64, b: u64, c: u64) -> u64 {
    local_stack::call(publish_and_wait, op as u64, a, b, c)
}

/// The same from the fault handler, which has a stack of this process's and all signals blocked.
pub(crate) fn request_in_handler(op: Op, a: u64, b: u64, c: u64) -> u64 {
    publish_and_wait(op as u64, a, b, c)
}

/// As [`request`], with a fourth argument.
pub(crate) fn request4(op: Op, a: u64, b: u64, c: u64, d: u64) -> u64 {
    // Only this thread writes its slot, and a signal handler in between restores nothing: host
    // calls, the only users, have signals blocked already.
    SLOT[mine()].args[3].store(d, Relaxed);
    request(op, a, b, c)
}

/// What a slot asks for, for the pager.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    pub slot: u32,
    pub op: Op,
    pub args: [u64; 4],
}

/// Takes the requests that have come in since the last call.
pub(crate) fn take(into: &mut Vec<Request>) {
    for (word, ready) in READY.iter().enumerate() {
        let mut bits = ready.swap(0, AcqRel);
        while bits != 0 {
            let index = word * 64 + bits.trailing_zeros() as usize;
            bits &= bits - 1;
            let slot = &SLOT[index];
            into.push(Request {
                slot: index as u32,
                op: OPS[slot.op.load(Relaxed) as usize],
                args: std::array::from_fn(|i| slot.args[i].load(Relaxed)),
            });
        }
    }
}

/// Answers a request. Called by the pager only.
pub(crate) fn complete(slot: u32, result: u64) {
    let slot = &SLOT[slot as usize];
    slot.result.store(result, Relaxed);
    slot.state.store(DONE, Release);
    // SAFETY: wakes waiters on a word of a static.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            slot.state.as_ptr(),
            libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
            1,
        )
    };
}

/// Since when the thread has been running after its last answer; `None` if it has not run yet.
pub(crate) fn resumed_at(slot: u32) -> Option<u64> {
    let slot = &SLOT[slot as usize];
    (slot.state.load(Acquire) != DONE).then(|| slot.resumed_ns.load(Relaxed))
}
