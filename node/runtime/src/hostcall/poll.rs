//! Wrappers of calls that wait for descriptors. They wait with the caller's signal mask: interrupts
//! are what they wait for.

use super::call::{Job, refuse};
use super::env::{self, Env, Place, fail};
use super::exec::{EPOLL_IRQ, EPOLL_SIGIO, Op};
use super::slot::{FRAME_BYTES, Frame, Slot};
use super::wire::DATA_MAX;
use core::ffi::c_int;
use core::sync::atomic::{AtomicI32, Ordering};
use libc::{epoll_event, nfds_t, pollfd};

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_poll(fds: *mut pollfd, count: nfds_t, timeout_ms: c_int) -> c_int {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::poll(fds, count, timeout_ms) };
    };
    let count = count as usize;
    let node = match owner(env, fds, count) {
        Some(node) => node,
        None => {
            let what = format_args!("poll of descriptors of several nodes");
            return refuse(env, libc::ENOSYS, what) as c_int;
        }
    };
    let bytes = count.saturating_mul(size_of::<pollfd>());
    if node != (env.node)() {
        return there(env, node, fds, bytes, timeout_ms);
    }
    if bytes > FRAME_BYTES {
        let what = format_args!("poll of {count} descriptors");
        return refuse(env, libc::EINVAL, what) as c_int;
    }
    let frame = Frame::claim();
    let copy = frame.at::<pollfd>(0);
    // SAFETY: the caller's array has `count` elements, and the frame has room for them.
    unsafe {
        for index in 0..count {
            let mut entry = fds.add(index).read();
            entry.fd = env.place(entry.fd).raw();
            copy.add(index).write(entry);
        }
        let ready = libc::poll(copy, count as nfds_t, timeout_ms);
        if ready >= 0 {
            for index in 0..count {
                (*fds.add(index)).revents = (*copy.add(index)).revents;
            }
        }
        ready
    }
}

/// The one node that has all these descriptors.
fn owner(env: &Env, fds: *const pollfd, count: usize) -> Option<u16> {
    let mut node = None;
    for index in 0..count {
        // SAFETY: the caller's array has `count` elements.
        let fd = unsafe { (*fds.add(index)).fd };
        let its = env.place(fd).node(env);
        // Negative ones are skipped by poll.
        if fd >= 0 && *node.get_or_insert(its) != its {
            return None;
        }
    }
    Some(node.unwrap_or_else(env.node))
}

fn there(env: &'static Env, node: u16, fds: *mut pollfd, bytes: usize, timeout_ms: c_int) -> c_int {
    let args = [0, timeout_ms.into(), 0, 0, 0, 0];
    let Some(mut job) = Job::new(env, Op::Poll, args) else {
        return -1;
    };
    if bytes > job.input_room() {
        return fail(libc::EINVAL) as c_int;
    }
    let copy: *mut pollfd = job.input_end().cast();
    // SAFETY: `bytes` is the size of the caller's array, and there is room for it; a job's input
    // starts aligned.
    unsafe {
        for index in 0..bytes / size_of::<pollfd>() {
            let mut entry = fds.add(index).read();
            entry.fd = env.place(entry.fd).raw();
            copy.add(index).write(entry);
        }
    }
    job.added(bytes);
    job.want(bytes);
    let ready = job.run(node);
    let (output, len) = job.output();
    // SAFETY: the output is an array of the same length.
    unsafe {
        for index in 0..len / size_of::<pollfd>() {
            (*fds.add(index)).revents = (*output.cast::<pollfd>().add(index)).revents;
        }
    }
    ready as c_int
}

/// Which of the two instances a node has this is: see [`epoll_role`].
#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_epoll_create(size: c_int) -> c_int {
    // SAFETY: no pointers.
    let fd = unsafe { libc::epoll_create(size) };
    let Some(env) = env::active() else { return fd };
    if fd >= 0 {
        epoll_role(env).store(fd, Ordering::Release);
    }
    env.handle(fd)
}

/// The image makes an instance for its interrupt controller first, while it boots or, on other nodes,
/// sets up; and one for the SIGIO helper when a driver first needs that, on whatever node.
fn epoll_role(env: &Env) -> &'static AtomicI32 {
    let first = EPOLL_IRQ.load(Ordering::Acquire) < 0;
    if first && ((env.node)() == 0 || env::paths_local()) {
        &EPOLL_IRQ
    } else {
        &EPOLL_SIGIO
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_epoll_wait(
    instance: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout_ms: c_int,
) -> c_int {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::epoll_wait(instance, events, max, timeout_ms) };
    };
    let Place::Here(instance) = env.place(instance) else {
        let what = format_args!("epoll_wait on instance {instance:#x} of another node");
        return refuse(env, libc::EBADF, what) as c_int;
    };
    let bytes = usize::try_from(max)
        .unwrap_or(0)
        .saturating_mul(size_of::<epoll_event>());
    if !env.guest(events, bytes) {
        // SAFETY: as above; the array is no guest memory.
        return unsafe { libc::epoll_wait(instance, events, max, timeout_ms) };
    }
    let Some(slot) = Slot::claim().filter(|_| bytes <= DATA_MAX) else {
        return fail(libc::EINVAL) as c_int;
    };
    let copy: *mut epoll_event = slot.reply().cast();
    // SAFETY: the slot has room for `max` events, the caller's array too.
    unsafe {
        let ready = libc::epoll_wait(instance, copy, max, timeout_ms);
        events.copy_from_nonoverlapping(copy, usize::try_from(ready).unwrap_or(0));
        ready
    }
}

/// Interrupts of a descriptor are raised on its owner, so it enters the owner's instance.
#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_epoll_ctl(
    instance: c_int,
    operation: c_int,
    fd: c_int,
    event: *mut epoll_event,
) -> c_int {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::epoll_ctl(instance, operation, fd, event) };
    };
    let place = env.place(fd);
    let mine = env.place(instance);
    let (events, data) = if event.is_null() {
        (0, 0)
    } else {
        // SAFETY: the caller's event; it is packed, so its address may be any.
        let event = unsafe { event.read_unaligned() };
        (event.events, event.u64)
    };
    if let (Place::Here(fd), Place::Here(instance)) = (place, mine)
        && instance >= 0
    {
        let frame = Frame::claim();
        let copy = frame.at::<epoll_event>(0);
        // SAFETY: the frame has room for one event.
        return unsafe {
            copy.write(epoll_event { events, u64: data });
            libc::epoll_ctl(instance, operation, fd, copy)
        };
    }
    let sigio = mine.raw() >= 0 && mine.raw() == EPOLL_SIGIO.load(Ordering::Acquire);
    let args = [
        place.raw().into(),
        operation.into(),
        events.into(),
        data as i64,
        i64::from(sigio),
        0,
    ];
    match Job::new(env, Op::Epoll, args) {
        Some(mut job) => job.run(place.node(env)) as c_int,
        None => -1,
    }
}
