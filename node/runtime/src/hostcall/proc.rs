//! Wrappers of calls on processes and threads.

use super::call::refuse;
use super::env::{self, fail};
use super::slot::{Frame, Nesting, Slot};
use super::umask;
use super::wire::REQUEST_MAX;
use crate::sticky;
use core::ffi::{c_char, c_int, c_uint, c_void};
use core::ptr;
use libc::{pid_t, pthread_attr_t, pthread_t, rlimit64, utsname};

/// A child that shares memory, and only such a one: it runs on a host stack while this thread waits
/// for it to exec or exit.
///
/// - The caller's stack would be guest memory (`run_helper` allocates it from the kernel).
/// - The child shares this thread's thread-local storage and errno, so it must not run beside it.
///   `run_helper` waits for the exec anyway, by reading from a socket.
/// - A child with a copy of the memory would fault on guest pages that nobody fetches for it.
#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_clone(
    run: extern "C" fn(*mut c_void) -> c_int,
    stack: *mut c_void,
    flags: c_int,
    arg: *mut c_void,
) -> c_int {
    sticky::free();
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::clone(run, stack, flags, arg) };
    };
    if flags & libc::CLONE_VM == 0 {
        let what = format_args!("clone of a helper process with its own memory");
        return refuse(env, libc::ENOSYS, what) as c_int;
    }
    // The thread's own slot stays free for the child.
    let Some(slot) = Slot::extra() else {
        return fail(libc::EAGAIN) as c_int;
    };
    let before = Nesting::save();
    // SAFETY: the stack is nobody else's until the child has gone, which is when clone returns.
    let child =
        unsafe { libc::clone(run, slot.stack_top().cast(), flags | libc::CLONE_VFORK, arg) };
    before.restore();
    child
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_fork() -> pid_t {
    match env::active() {
        // SAFETY: the image's own fork, with one thread.
        None => unsafe { libc::fork() },
        Some(env) => refuse(env, libc::ENOSYS, format_args!("fork")) as pid_t,
    }
}

/// Strings and vectors for an exec, laid out in a slot's request buffer.
pub(super) struct ExecArea {
    slot: Slot,
    used: usize,
}

impl ExecArea {
    pub(super) fn new() -> Option<ExecArea> {
        Some(ExecArea {
            slot: Slot::claim()?,
            used: 0,
        })
    }

    fn allot(&mut self, len: usize) -> Option<*mut u8> {
        let at = self.used;
        self.used = at.checked_add(len)?.checked_next_multiple_of(8)?;
        (self.used <= REQUEST_MAX).then(|| self.slot.request().wrapping_add(at))
    }

    /// # Safety
    /// `text` must be a string.
    pub(super) unsafe fn string(&mut self, text: *const c_char) -> Option<*const c_char> {
        // SAFETY: the caller promised a string; a copy never takes more than the buffer.
        unsafe {
            let len = libc::strnlen(text, REQUEST_MAX);
            let to = self.allot(len + 1)?;
            to.copy_from_nonoverlapping(text.cast(), len);
            to.add(len).write(0);
            Some(to.cast())
        }
    }

    /// A vector of strings that ends in a null; a null vector stays null.
    ///
    /// # Safety
    /// `vector` must be null or such a vector.
    pub(super) unsafe fn vector(
        &mut self,
        vector: *const *const c_char,
    ) -> Option<*const *const c_char> {
        if vector.is_null() {
            return Some(vector);
        }
        // SAFETY: the caller promised a vector that ends; `allot` bounds the copy.
        unsafe {
            let mut count = 0;
            while count < REQUEST_MAX && !vector.add(count).read().is_null() {
                count += 1;
            }
            let to: *mut *const c_char = self.allot((count + 1) * size_of::<usize>())?.cast();
            for index in 0..count {
                to.add(index).write(self.string(vector.add(index).read())?);
            }
            to.add(count).write(ptr::null());
            Some(to)
        }
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_execve(
    path: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
) -> c_int {
    umask::give_back();
    if env::active().is_none() {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::execve(path, argv, envp) };
    }
    let Some(mut area) = ExecArea::new() else {
        return fail(libc::ENOMEM) as c_int;
    };
    // SAFETY: the caller passed a path and vectors; the copies are theirs, in the slot.
    unsafe {
        match (area.string(path), area.vector(argv), area.vector(envp)) {
            (Some(path), Some(argv), Some(envp)) => libc::execve(path, argv, envp),
            _ => fail(libc::E2BIG) as c_int,
        }
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_execv(path: *const c_char, argv: *const *const c_char) -> c_int {
    exec_with(libc::execv, path, argv)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_execvp(path: *const c_char, argv: *const *const c_char) -> c_int {
    exec_with(libc::execvp, path, argv)
}

type Exec = unsafe extern "C" fn(*const c_char, *const *const c_char) -> c_int;

fn exec_with(exec: Exec, path: *const c_char, argv: *const *const c_char) -> c_int {
    umask::give_back();
    if env::active().is_none() {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { exec(path, argv) };
    }
    let Some(mut area) = ExecArea::new() else {
        return fail(libc::ENOMEM) as c_int;
    };
    // SAFETY: the caller passed a path and a vector; the copies are theirs, in the slot.
    unsafe {
        match (area.string(path), area.vector(argv)) {
            (Some(path), Some(argv)) => exec(path, argv),
            _ => fail(libc::E2BIG) as c_int,
        }
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_waitpid(pid: pid_t, status: *mut c_int, options: c_int) -> pid_t {
    if status.is_null() || env::active().is_none() {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::waitpid(pid, status, options) };
    }
    let frame = Frame::claim();
    let copy = frame.at::<c_int>(0);
    // SAFETY: the frame has room, and the caller passed a place for the status.
    unsafe {
        copy.write(0);
        let child = libc::waitpid(pid, copy, options);
        if child > 0 {
            status.write(copy.read());
        }
        child
    }
}

/// Both of its callers in the image block all signals around it, which the new thread inherits; that
/// is also what it would inherit from here.
#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_pthread_create(
    thread: *mut pthread_t,
    attr: *const pthread_attr_t,
    run: extern "C" fn(*mut c_void) -> *mut c_void,
    arg: *mut c_void,
) -> c_int {
    sticky::free();
    if env::active().is_none() {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::pthread_create(thread, attr, run, arg) };
    }
    let Some(slot) = Slot::claim() else {
        return libc::EAGAIN;
    };
    let copy: *mut pthread_t = slot.reply().cast();
    let result = slot.on_host_stack(move || {
        // SAFETY: the place for the thread is in the slot; the rest is the caller's, for the thread.
        unsafe { libc::pthread_create(copy, attr, run, arg) }
    });
    if result == 0 {
        // SAFETY: the caller passed a place for the thread, libc filled the slot's.
        unsafe { thread.write(copy.read()) };
    }
    result
}

/// On a host stack because the first cancellation loads the unwinder, with file buffers on the stack.
#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_pthread_cancel(thread: pthread_t) -> c_int {
    if env::active().is_none() {
        // SAFETY: the caller's thread.
        return unsafe { libc::pthread_cancel(thread) };
    }
    let Some(slot) = Slot::claim() else {
        return libc::EAGAIN;
    };
    // SAFETY: the caller's thread.
    slot.on_host_stack(move || unsafe { libc::pthread_cancel(thread) })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_getrlimit64(resource: c_uint, to: *mut rlimit64) -> c_int {
    if env::active().is_none() {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::getrlimit64(resource, to) };
    }
    let frame = Frame::claim();
    let copy = frame.at::<rlimit64>(0);
    // SAFETY: the frame has room, and the caller passed a structure to fill.
    unsafe {
        let result = libc::getrlimit64(resource, copy);
        if result == 0 {
            to.write(copy.read());
        }
        result
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_setrlimit64(resource: c_uint, new: *const rlimit64) -> c_int {
    if env::active().is_none() {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::setrlimit64(resource, new) };
    }
    let frame = Frame::claim();
    let copy = frame.at::<rlimit64>(0);
    // SAFETY: the frame has room, and the caller passed a limit.
    unsafe {
        copy.write(new.read());
        libc::setrlimit64(resource, copy)
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_uname(to: *mut utsname) -> c_int {
    if env::active().is_none() {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::uname(to) };
    }
    let Some(slot) = Slot::claim() else {
        return fail(libc::ENOMEM) as c_int;
    };
    let copy: *mut utsname = slot.reply().cast();
    // SAFETY: the slot has room, and the caller passed a structure to fill.
    unsafe {
        let result = libc::uname(copy);
        if result == 0 {
            to.copy_from_nonoverlapping(copy, 1);
        }
        result
    }
}
