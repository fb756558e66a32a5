//! Wrappers of calls on signals. Whatever mask passes through, SIGSEGV and SIGBUS stay open: with
//! them blocked, the next touch of an absent guest page would end the process.

use super::env::{self, Env, Place, fail};
use super::slot::{FAULT_SIGNALS, Frame, LIBC_SIGNALS, Slot, sigprocmask_raw};
use core::ffi::{c_int, c_void};
use core::ptr;
use libc::{pthread_t, sighandler_t, sigset_t, stack_t};

/// Signal sets as the system calls take them: one word.
fn word(set: *const sigset_t) -> *const u64 {
    set.cast()
}

/// Sets the mask: 0 or an errno. Called at every change of the interrupt flag, so it is one system
/// call and no more.
fn change_mask(how: c_int, set: *const sigset_t, old: *mut sigset_t) -> c_int {
    let frame = Frame::claim();
    let (new_copy, old_copy) = (frame.at::<u64>(0), frame.at::<u64>(8));
    let new = if set.is_null() {
        ptr::null()
    } else {
        // SAFETY: the wrapper's caller passed a set.
        let mut mask = unsafe { word(set).read() };
        if how != libc::SIG_UNBLOCK {
            mask &= !(FAULT_SIGNALS | LIBC_SIGNALS);
        }
        // SAFETY: the frame has room.
        unsafe { new_copy.write(mask) };
        new_copy.cast_const()
    };
    let before = if old.is_null() {
        ptr::null_mut()
    } else {
        old_copy
    };
    // SAFETY: null, or words of the frame.
    let result = unsafe { sigprocmask_raw(how, new, before) };
    if result == 0 && !old.is_null() {
        // SAFETY: the caller passed a set to fill; libc leaves the rest of it alone, too.
        unsafe { old.cast::<u64>().write(old_copy.read()) };
    }
    -result as c_int
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_sigprocmask(
    how: c_int,
    set: *const sigset_t,
    old: *mut sigset_t,
) -> c_int {
    if env::active().is_none() {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::sigprocmask(how, set, old) };
    }
    match change_mask(how, set, old) {
        0 => 0,
        error => fail(error) as c_int,
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_pthread_sigmask(
    how: c_int,
    set: *const sigset_t,
    old: *mut sigset_t,
) -> c_int {
    if env::active().is_none() {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::pthread_sigmask(how, set, old) };
    }
    change_mask(how, set, old)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_sigsuspend(set: *const sigset_t) -> c_int {
    if env::active().is_none() {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::sigsuspend(set) };
    }
    let frame = Frame::claim();
    let copy = frame.at::<sigset_t>(0);
    // SAFETY: the caller passed a set, the frame has room for one.
    unsafe {
        copy.write(set.read());
        copy.cast::<u64>()
            .write(word(set).read() & !(FAULT_SIGNALS | LIBC_SIGNALS));
        libc::sigsuspend(copy)
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_sigaction(
    signal: c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> c_int {
    if env::active().is_none() {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::sigaction(signal, new, old) };
    }
    let Some(slot) = Slot::claim() else {
        return fail(libc::ENOMEM) as c_int;
    };
    let new_copy: *mut libc::sigaction = slot.request().cast();
    let old_copy: *mut libc::sigaction = slot.reply().cast();
    let (set, get) = (!new.is_null(), !old.is_null());
    if set {
        // SAFETY: the caller passed an action, the slot has room for one.
        unsafe {
            new_copy.write(new.read());
            adjust(signal, &mut *new_copy);
        }
    }
    let (result, error) = slot.on_host_stack(move || {
        // SAFETY: null, or structures in the slot.
        let result = unsafe {
            libc::sigaction(
                signal,
                if set { new_copy } else { ptr::null_mut() },
                if get { old_copy } else { ptr::null_mut() },
            )
        };
        (result, env::errno())
    });
    if result != 0 {
        return fail(error) as c_int;
    }
    if get {
        // SAFETY: the caller passed a structure to fill, libc filled the slot's.
        unsafe { old.write(old_copy.read()) };
    }
    0
}

/// No handler may run with the fault signals blocked, and their own handlers nest: handling a guest
/// exception touches guest memory.
fn adjust(signal: c_int, action: &mut libc::sigaction) {
    let mask = (&raw mut action.sa_mask).cast::<u64>();
    // SAFETY: a signal set starts with the word that the system call takes.
    unsafe { mask.write(mask.read() & !FAULT_SIGNALS) };
    let handled = !matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN);
    if handled && matches!(signal, libc::SIGSEGV | libc::SIGBUS) {
        action.sa_flags |= libc::SA_NODEFER | libc::SA_ONSTACK;
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_signal(signal: c_int, handler: sighandler_t) -> sighandler_t {
    if env::active().is_none() {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::signal(signal, handler) };
    }
    let Some(slot) = Slot::claim() else {
        return fail(libc::ENOMEM) as sighandler_t;
    };
    let (old, error) = slot.on_host_stack(move || {
        // SAFETY: the handler is the image's.
        let old = unsafe { libc::signal(signal, handler) };
        (old, env::errno())
    });
    if old == libc::SIG_ERR {
        env::set_errno(error);
    }
    old
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_sigaltstack(new: *const stack_t, old: *mut stack_t) -> c_int {
    if env::active().is_none() {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::sigaltstack(new, old) };
    }
    let frame = Frame::claim();
    let (new_copy, old_copy) = (frame.at::<stack_t>(0), frame.at::<stack_t>(64));
    // SAFETY: the caller's structures are null or there; the frame has room for two.
    unsafe {
        if !new.is_null() {
            new_copy.write(new.read());
        }
        let result = libc::sigaltstack(
            if new.is_null() { ptr::null() } else { new_copy },
            if old.is_null() {
                ptr::null_mut()
            } else {
                old_copy
            },
        );
        if result == 0 && !old.is_null() {
            old.write(old_copy.read());
        }
        result
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_signalfd(fd: c_int, set: *const sigset_t, flags: c_int) -> c_int {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::signalfd(fd, set, flags) };
    };
    let Place::Here(fd) = env.place(fd) else {
        return fail(libc::EBADF) as c_int;
    };
    let frame = Frame::claim();
    let copy = frame.at::<sigset_t>(0);
    // SAFETY: the caller passed a set, the frame has room for one.
    unsafe {
        copy.write(set.read());
        env.handle(libc::signalfd(fd, copy, flags))
    }
}

unsafe extern "C" {
    fn pthread_sigqueue(thread: pthread_t, signal: c_int, value: *mut c_void) -> c_int;
}

/// libc builds the siginfo on its own stack.
#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_pthread_sigqueue(
    thread: pthread_t,
    signal: c_int,
    value: *mut c_void,
) -> c_int {
    match env::active() {
        // SAFETY: the caller's thread, which runs.
        None => unsafe { pthread_sigqueue(thread, signal, value) },
        Some(env) => queue(env, thread, signal, value as usize),
    }
}

fn queue(_: &'static Env, thread: pthread_t, signal: c_int, value: usize) -> c_int {
    let Some(slot) = Slot::claim() else {
        return libc::EAGAIN;
    };
    slot.on_host_stack(move || {
        // SAFETY: the caller's thread, which runs; the value is passed through.
        unsafe { pthread_sigqueue(thread, signal, ptr::with_exposed_provenance_mut(value)) }
    })
}
