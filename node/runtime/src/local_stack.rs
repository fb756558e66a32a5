//! Running code where it cannot meet a missing page.
//!
//! A vCPU thread's stack is guest memory: any push may fault, and the fault handler needs the
//! thread's request slot and waits for the pager. Code that holds a lock the pager takes, or that is
//! in the middle of a request, therefore runs on a stack of this process's own, with all signals but
//! the faults' blocked. So it neither faults nor is it interrupted, and one such stack per thread is
//! enough.
//!
//! Context: any thread, also inside a signal handler. No allocation, no lock, no panic.

use std::arch::asm;
use std::cell::Cell;

type Function = extern "C" fn(u64, u64, u64, u64) -> u64;

const STACK_BYTES: usize = 256 * 1024;

/// All signals but SIGSEGV and SIGBUS: without these the next missing page would end the process.
static ALL_BUT_FAULTS: u64 = !((1 << (libc::SIGSEGV - 1)) | (1 << (libc::SIGBUS - 1)));

thread_local! {
    static STACK_TOP: Cell<usize> = const { Cell::new(0) };
    static OLD_MASK: Cell<u64> = const { Cell::new(0) };
    static ACTIVE: Cell<bool> = const { Cell::new(false) };
}

fn stack_top() -> usize {
    let top = STACK_TOP.get();
    if top != 0 {
        return top;
    }
    // SAFETY: a fresh private mapping; nothing else knows of it.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            STACK_BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        crate::control::die("no memory for a thread's own stack");
    }
    let top = base as usize + STACK_BYTES;
    STACK_TOP.set(top);
    top
}

fn set_mask(mask: *const u64, old: *mut u64) {
    // SAFETY: both point to statics or thread-locals of this process, of the size given.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, mask, old, 8) };
}

/// Calls `f` with four words on the thread's own stack, signals blocked.
pub(crate) fn call(f: Function, a: u64, b: u64, c: u64, d: u64) -> u64 {
    if ACTIVE.get() {
        return f(a, b, c, d);
    }
    set_mask(&ALL_BUT_FAULTS, OLD_MASK.with(Cell::as_ptr));
    let result = switch(f, a, b, c, d);
    set_mask(OLD_MASK.with(Cell::as_ptr), std::ptr::null_mut());
    result
}

/// The same where signals are blocked already: a signal stack is too small for some.
pub(crate) fn call_in_handler(f: Function, a: u64, b: u64, c: u64, d: u64) -> u64 {
    if ACTIVE.get() {
        return f(a, b, c, d);
    }
    switch(f, a, b, c, d)
}

unsafe extern "C" {
    /// pthread_setcancelstate(3)
    fn pthread_setcancelstate(state: i32, old: *mut i32) -> i32;
}

/// Of glibc's <pthread.h>.
const PTHREAD_CANCEL_DISABLE: i32 = 1;

/// Runs on the thread's own stack. Only here is it true that nothing can miss a page: until then and from then
/// on the caller's stack is in use.
extern "C" fn active(a: u64, b: u64, c: u64, d: u64, f: Function) -> u64 {
    let mut cancelable = 0;
    ACTIVE.set(true);
    // The kernel ends its helper threads by pthread_cancel(3): not while they have a lock.
    // SAFETY: passes a local.
    unsafe { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &raw mut cancelable) };
    let result = f(a, b, c, d);
    // SAFETY: puts back what it was.
    unsafe { pthread_setcancelstate(cancelable, std::ptr::null_mut()) };
    ACTIVE.set(false);
    result
}

fn switch(f: Function, a: u64, b: u64, c: u64, d: u64) -> u64 {
    let top = stack_top();
    let result: u64;
    // SAFETY: `top` is the end of a mapping of STACK_BYTES that only this thread uses, and only
    // here: ACTIVE and the blocked signals keep a second call from starting on it. r12 is
    // preserved by the callee, and the stack pointer is restored from it.
    unsafe {
        asm!(
            "mov r12, rsp",
            "mov rsp, {top}",
            "call {active}",
            "mov rsp, r12",
            top = in(reg) top,
            active = sym active,
            inout("r8") f => _,
            inout("rdi") a => _,
            inout("rsi") b => _,
            inout("rdx") c => _,
            inout("rcx") d => _,
            lateout("rax") result,
            out("r12") _,
            clobber_abi("C"),
        );
    }
    result
}
