//! How a vCPU thread asks the pager for something and waits for it.
//!
//! Each thread that ever faults or makes a request owns one slot of a static array: what it asks for, the
//! answer, and how it waits. The thread itself takes the request to the pager ([`pager::ask`]), on a stack of
//! this process's own with all signals but the faults' blocked, and then sleeps on the slot's futex or reads
//! the network.
//!
//! The pager never waits for a vCPU thread, so whatever locks of the kernel's the thread holds, it
//! is woken.
//!
//! Context: signal, or `local_stack`.

use crate::{clock, local_stack, pager, spin};
use std::cell::Cell;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::*};

/// Threads of a guest process that may touch guest memory: vCPUs and the kernel's helper threads.
pub(crate) const SLOTS: usize = 256;

/// What is asked for; the arguments are in the slot.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// address, is_write, instruction
    Fault,
    /// address, is_write, whether it is noted for whom: a page that a user process needs
    UserPage,
    /// address, page and whether it is written to (lowest bit), instruction: map a page of kernel
    /// virtual memory
    VmMap,
    /// start, end: drop mappings of kernel virtual memory on all nodes
    VmDrop,
    /// until what other nodes have sent so far has arrived
    Settle,
    /// cpu, signal mask: create a vCPU's thread on its node
    StartCpu,
    /// cpu, thread id, where its per-CPU variables are: this thread is that vCPU
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

const OPS: [Op; 12] = [
    Op::Fault,
    Op::UserPage,
    Op::VmMap,
    Op::VmDrop,
    Op::Settle,
    Op::StartCpu,
    Op::CpuStarted,
    Op::CpuWait,
    Op::CpuRun,
    Op::StubKick,
    Op::StubKill,
    Op::HostCall,
];

impl Op {
    /// The thread that asks may read the network until it is answered. Else others would wait for
    /// pages as long as it waits for something that need not come soon.
    pub(crate) fn is_answered_soon(self) -> bool {
        !matches!(self, Op::CpuWait | Op::HostCall)
    }
}

/// The thread has asked for nothing.
const IDLE: u32 = 0;
/// It asks, or reads what has come: it has the pager's lock, and sees the answer without being woken.
const ASKING: u32 = 1;
/// It sleeps on the slot's futex.
const SLEEPING: u32 = 2;
/// It waits for the network.
const POLLING: u32 = 3;
/// It is answered.
const DONE: u32 = 4;

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

/// Wakes the thread that waits for the network; there is one at a time.
static POLL_WAKE: AtomicI32 = AtomicI32::new(-1);

thread_local! {
    static MINE: Cell<u32> = const { Cell::new(u32::MAX) };
}

/// Sets up what [`poll`] needs; before there is a request.
pub(crate) fn set_up() -> std::io::Result<()> {
    // SAFETY: a new descriptor, which lives as long as the process.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    POLL_WAKE.store(fd, Release);
    Ok(())
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

extern "C" fn ask_and_wait(op: u64, a: u64, b: u64, c: u64) -> u64 {
    let index = mine();
    let slot = &SLOT[index];
    slot.op.store(op as u32, Relaxed);
    slot.args[0].store(a, Relaxed);
    slot.args[1].store(b, Relaxed);
    slot.args[2].store(c, Relaxed);
    slot.state.store(ASKING, Relaxed);
    pager::ask(index as u32);
    slot.resumed_ns.store(clock::host_ns(), Relaxed);
    // Release: whoever sees the thread running sees since when.
    slot.state.store(IDLE, Release);
    slot.result.load(Relaxed)
}

/// Asks the pager and waits for the answer. Context: any thread, also in a signal handler.
pub(crate) fn request(op: Op, a: u64, b: u64, c: u64) -> u64 {
    local_stack::call(ask_and_wait, op as u64, a, b, c)
}

/// The same from the fault handler, which has all signals blocked.
pub(crate) fn request_in_handler(op: Op, a: u64, b: u64, c: u64) -> u64 {
    local_stack::call_in_handler(ask_and_wait, op as u64, a, b, c)
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

/// What the slot asks for.
pub(crate) fn request_in(slot: u32) -> Request {
    let from = &SLOT[slot as usize];
    Request {
        slot,
        op: OPS[from.op.load(Relaxed) as usize],
        args: std::array::from_fn(|i| from.args[i].load(Relaxed)),
    }
}

// How the slot's thread waits. It says so while it has the pager's lock, under which it is answered as well.

pub(crate) fn will_sleep(slot: u32) {
    SLOT[slot as usize].state.store(SLEEPING, Relaxed);
}

pub(crate) fn will_poll(slot: u32) {
    SLOT[slot as usize].state.store(POLLING, Relaxed);
}

/// The thread is back from [`poll`].
pub(crate) fn is_awake(slot: u32) {
    let state = &SLOT[slot as usize].state;
    // Not if it was answered meanwhile.
    let _ = state.compare_exchange(POLLING, ASKING, Relaxed, Relaxed);
}

pub(crate) fn is_answered(slot: u32) -> bool {
    SLOT[slot as usize].state.load(Acquire) == DONE
}

/// Waits for the answer, without the pager's lock.
pub(crate) fn sleep(slot: u32) {
    let state = &SLOT[slot as usize].state;
    while state.load(Acquire) == SLEEPING {
        // SAFETY: waits on a word of a static.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                state.as_ptr(),
                libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                SLEEPING,
                std::ptr::null::<libc::timespec>(),
            )
        };
    }
}

/// When a message is due that has come before its time, and when to wake for it, if there is time to sleep.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Awaited {
    pub(crate) due_ns: u64,
    pub(crate) wakes_ns: Option<u64>,
}

/// Whether somebody slept who waited.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Slept {
    pub(crate) since_ns: Option<u64>,
    /// How much later he ran than he was to be woken, if it was time.
    pub(crate) late_ns: Option<u64>,
}

/// Waits until the socket has something, the thread is answered, or a message is due, without the pager's lock.
pub(crate) fn poll(socket: RawFd, until: Option<Awaited>) -> Slept {
    let wake = POLL_WAKE.load(Acquire);
    let readable = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut fds = [readable(socket), readable(wake)];
    let mut poll = |timeout: Option<u64>| {
        let timeout = timeout.map(|ns| libc::timespec {
            tv_sec: (ns / 1_000_000_000) as i64,
            tv_nsec: (ns % 1_000_000_000) as i64,
        });
        let timeout = timeout
            .as_ref()
            .map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: passes locals.
        unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as _, timeout, std::ptr::null()) > 0 }
    };
    let mut slept = Slept::default();
    match until {
        None => {
            if !spin::until(|| poll(Some(0))) {
                slept.since_ns = Some(clock::host_ns());
                poll(None);
            }
        }
        Some(Awaited {
            due_ns,
            wakes_ns: None,
        }) => {
            spin::up_to(due_ns, || poll(Some(0)));
        }
        Some(Awaited {
            due_ns,
            wakes_ns: Some(wakes_ns),
        }) => {
            let is_due = || clock::host_ns() >= due_ns;
            if !spin::until(|| poll(Some(0)) || is_due()) {
                slept = sleep_until(wakes_ns, |left_ns| poll(Some(left_ns)));
            }
        }
    }
    if fds[1].revents != 0 {
        let mut count = 0u64;
        // SAFETY: reads eight bytes into a local.
        unsafe { libc::read(wake, (&raw mut count).cast(), size_of_val(&count)) };
    }
    slept
}

/// Sleeps, unless something comes, until it is time.
fn sleep_until(at_ns: u64, mut sleep: impl FnMut(u64) -> bool) -> Slept {
    /// Shorter waits are over before anybody sleeps.
    const WAIT_NS_MIN: u64 = 10_000;
    /// As good as none, which cannot be asked for.
    const SLACK_NS: libc::c_ulong = 1;

    let now_ns = clock::host_ns();
    let left_ns = at_ns.saturating_sub(now_ns);
    if left_ns < WAIT_NS_MIN {
        return Slept::default();
    }
    // SAFETY: concerns this thread's timers, which the host else joins with others'.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, SLACK_NS) };
    let interrupted = sleep(left_ns);
    Slept {
        since_ns: Some(now_ns),
        late_ns: (!interrupted).then(|| clock::host_ns().saturating_sub(at_ns)),
    }
}

/// Answers a request. Only with the pager's lock.
pub(crate) fn complete(slot: u32, result: u64) {
    static ONE: u64 = 1;
    let slot = &SLOT[slot as usize];
    slot.result.store(result, Relaxed);
    match slot.state.swap(DONE, AcqRel) {
        // SAFETY: wakes waiters on a word of a static.
        SLEEPING => unsafe {
            libc::syscall(
                libc::SYS_futex,
                slot.state.as_ptr(),
                libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
                1,
            );
        },
        // SAFETY: writes eight bytes from a static to a descriptor that lives as long as the process.
        POLLING => unsafe {
            libc::write(POLL_WAKE.load(Acquire), (&raw const ONE).cast(), 8);
        },
        _ => {}
    }
}

/// Since when the thread has been running after its last answer; `None` if it has not run yet.
pub(crate) fn resumed_at(slot: u32) -> Option<u64> {
    let slot = &SLOT[slot as usize];
    (slot.state.load(Acquire) != DONE).then(|| slot.resumed_ns.load(Relaxed))
}
