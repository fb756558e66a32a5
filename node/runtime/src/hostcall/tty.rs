//! Wrappers of calls on terminals.

use super::call::{Job, by_value};
use super::env::{self, fail};
use super::exec::Op;
use super::slot::Slot;
use core::cell::UnsafeCell;
use core::ffi::{c_char, c_int, c_void};
use core::ptr;
use libc::termios;

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_isatty(fd: c_int) -> c_int {
    match env::active() {
        // SAFETY: no pointers.
        None => unsafe { libc::isatty(fd) },
        Some(env) => by_value(env, env.place(fd), Op::IsTty, [0; 4]).max(0) as c_int,
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_tcgetattr(fd: c_int, to: *mut termios) -> c_int {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::tcgetattr(fd, to) };
    };
    let place = env.place(fd);
    let args = [place.raw().into(), 0, 0, 0, 0, 0];
    let Some(mut job) = Job::new(env, Op::TtyGet, args) else {
        return -1;
    };
    job.want(size_of::<termios>());
    let result = job.run(place.node(env));
    if result >= 0 {
        // SAFETY: the caller passed a structure to fill.
        unsafe { job.take(to.cast(), size_of::<termios>()) };
    }
    result as c_int
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_tcsetattr(fd: c_int, when: c_int, new: *const termios) -> c_int {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::tcsetattr(fd, when, new) };
    };
    let place = env.place(fd);
    let args = [place.raw().into(), when.into(), 0, 0, 0, 0];
    let Some(mut job) = Job::new(env, Op::TtySet, args) else {
        return -1;
    };
    // SAFETY: the caller passed a structure.
    unsafe { job.put(new.cast(), size_of::<termios>()) };
    job.run(place.node(env)) as c_int
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_tcgetpgrp(fd: c_int) -> libc::pid_t {
    match env::active() {
        // SAFETY: no pointers.
        None => unsafe { libc::tcgetpgrp(fd) },
        Some(env) => by_value(env, env.place(fd), Op::TtyGetGroup, [0; 4]) as libc::pid_t,
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_tcsetpgrp(fd: c_int, group: libc::pid_t) -> c_int {
    match env::active() {
        // SAFETY: no pointers.
        None => unsafe { libc::tcsetpgrp(fd, group) },
        Some(env) => {
            by_value(env, env.place(fd), Op::TtySetGroup, [group.into(), 0, 0, 0]) as c_int
        }
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_grantpt(fd: c_int) -> c_int {
    match env::active() {
        // SAFETY: no pointers.
        None => unsafe { libc::grantpt(fd) },
        Some(env) => by_value(env, env.place(fd), Op::PtyGrant, [0; 4]) as c_int,
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_unlockpt(fd: c_int) -> c_int {
    match env::active() {
        // SAFETY: no pointers.
        None => unsafe { libc::unlockpt(fd) },
        Some(env) => by_value(env, env.place(fd), Op::PtyUnlock, [0; 4]) as c_int,
    }
}

const PTY_NAME_MAX: usize = 64;

struct Name(UnsafeCell<[u8; PTY_NAME_MAX]>);

thread_local! {
    static PTY_NAME: Name = const { Name(UnsafeCell::new([0; PTY_NAME_MAX])) };
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_ptsname(fd: c_int) -> *mut c_char {
    let Some(env) = env::active() else {
        // SAFETY: no pointers.
        return unsafe { libc::ptsname(fd) };
    };
    let place = env.place(fd);
    let args = [place.raw().into(), 0, 0, 0, 0, 0];
    let Some(mut job) = Job::new(env, Op::PtyName, args) else {
        return ptr::null_mut();
    };
    job.want(PTY_NAME_MAX - 1);
    if job.run(place.node(env)) < 0 {
        return ptr::null_mut();
    }
    PTY_NAME.with(|name| {
        let to: *mut u8 = name.0.get().cast();
        // SAFETY: the buffer is this thread's; one byte is left for the NUL.
        unsafe {
            let len = job.take(to, PTY_NAME_MAX - 1);
            to.add(len).write(0);
        }
        to.cast()
    })
}

/// The pair belongs to the node that makes it: the image uses one to test the host, and closes it.
#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_openpty(
    master: *mut c_int,
    slave: *mut c_int,
    name: *mut c_char,
    attributes: *const c_void,
    window: *const c_void,
) -> c_int {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::openpty(master, slave, name, attributes.cast(), window.cast()) };
    };
    if !name.is_null() || !attributes.is_null() || !window.is_null() {
        let what = format_args!("openpty with a name or attributes");
        return super::call::refuse(env, libc::ENOSYS, what) as c_int;
    }
    let Some(slot) = Slot::claim() else {
        return fail(libc::ENOMEM) as c_int;
    };
    let pair: *mut c_int = slot.reply().cast();
    let (result, error) = slot.on_host_stack(move || {
        let null = ptr::null_mut();
        // SAFETY: both places are in the slot.
        let result = unsafe {
            libc::openpty(
                pair,
                pair.add(1),
                null,
                null.cast_const().cast(),
                null.cast_const().cast(),
            )
        };
        (result, env::errno())
    });
    if result != 0 {
        return fail(error) as c_int;
    }
    // SAFETY: the caller passed places for the two, libc filled the slot's.
    unsafe {
        master.write(env.handle(pair.read()));
        slave.write(env.handle(pair.add(1).read()));
    }
    0
}
