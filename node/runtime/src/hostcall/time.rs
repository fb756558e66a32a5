//! Wrappers of calls on clocks and timers.

use super::env::{self, fail};
use super::slot::{Frame, Slot};
use super::wire::DATA_MAX;
use core::ffi::{c_int, c_uint, c_void};
use core::ptr;
use libc::{clockid_t, itimerspec, size_t, ssize_t, timer_t, timespec};

const NSEC_PER_SEC: i64 = 1_000_000_000;

/// The monotonic clock is the guest's: this host's plus this node's offset.
#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_clock_gettime(clock: clockid_t, to: *mut timespec) -> c_int {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::clock_gettime(clock, to) };
    };
    let frame = Frame::claim();
    let copy = frame.at::<timespec>(0);
    // SAFETY: the frame has room.
    let (result, mut time) = unsafe { (libc::clock_gettime(clock, copy), copy.read()) };
    drop(frame);
    if result != 0 {
        return result;
    }
    if clock == libc::CLOCK_MONOTONIC {
        let offset_ns = (env.clock_offset_ns)();
        if offset_ns != 0 {
            let ns = time.tv_nsec.wrapping_add(offset_ns);
            time.tv_sec = time.tv_sec.wrapping_add(ns.div_euclid(NSEC_PER_SEC));
            time.tv_nsec = ns.rem_euclid(NSEC_PER_SEC);
        }
    }
    // SAFETY: the caller passed a structure to fill.
    unsafe { to.write(time) };
    0
}

/// Relative times only, which no clock offset changes.
#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_timer_settime(
    timer: timer_t,
    flags: c_int,
    new: *const itimerspec,
    old: *mut itimerspec,
) -> c_int {
    if env::active().is_none() {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::timer_settime(timer, flags, new, old) };
    }
    let frame = Frame::claim();
    let (new_copy, old_copy) = (frame.at::<itimerspec>(0), frame.at::<itimerspec>(64));
    // SAFETY: the caller's structures are there (the old one perhaps not); the frame has room.
    unsafe {
        new_copy.write(new.read());
        let before = if old.is_null() {
            ptr::null_mut()
        } else {
            old_copy
        };
        let result = libc::timer_settime(timer, flags, new_copy, before);
        if result == 0 && !old.is_null() {
            old.write(old_copy.read());
        }
        result
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_timer_create(
    clock: clockid_t,
    event: *mut libc::sigevent,
    timer: *mut timer_t,
) -> c_int {
    if env::active().is_none() {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::timer_create(clock, event, timer) };
    }
    let Some(slot) = Slot::claim() else {
        return fail(libc::EAGAIN) as c_int;
    };
    let event_copy: *mut libc::sigevent = slot.request().cast();
    let timer_copy: *mut timer_t = slot.reply().cast();
    let given = !event.is_null();
    if given {
        // SAFETY: the caller passed an event, the slot has room for one.
        unsafe { event_copy.write(event.read()) };
    }
    let (result, error) = slot.on_host_stack(move || {
        // SAFETY: null, or structures in the slot.
        let result = unsafe {
            let event = if given { event_copy } else { ptr::null_mut() };
            libc::timer_create(clock, event, timer_copy)
        };
        (result, env::errno())
    });
    if result != 0 {
        return fail(error) as c_int;
    }
    // SAFETY: the caller passed a place for the timer, libc filled the slot's.
    unsafe { timer.write(timer_copy.read()) };
    0
}

/// The system call that libc makes for `sleep`: the image's start-up check has a filter wait for
/// exactly that one.
#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_sleep(seconds: c_uint) -> c_uint {
    if env::active().is_none() {
        // SAFETY: no pointers.
        return unsafe { libc::sleep(seconds) };
    }
    let frame = Frame::claim();
    let time = frame.at::<timespec>(0);
    // SAFETY: the frame has room.
    unsafe {
        time.write(timespec {
            tv_sec: seconds.into(),
            tv_nsec: 0,
        });
        match libc::clock_nanosleep(libc::CLOCK_REALTIME, 0, time, time) {
            0 => 0,
            _ => (*time).tv_sec as c_uint,
        }
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_getrandom(buf: *mut c_void, len: size_t, flags: c_uint) -> ssize_t {
    let guest = env::active().is_some_and(|env| env.guest(buf, len));
    if !guest {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::getrandom(buf, len, flags) };
    }
    let Some(slot) = Slot::claim() else {
        return fail(libc::EAGAIN) as ssize_t;
    };
    // SAFETY: the slot has room for what is asked for, the caller for what comes.
    unsafe {
        let n = libc::getrandom(slot.reply().cast(), len.min(DATA_MAX), flags);
        let given = usize::try_from(n).unwrap_or(0);
        buf.cast::<u8>()
            .copy_from_nonoverlapping(slot.reply(), given);
        n
    }
}
