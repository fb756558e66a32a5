//! Wrappers of calls on sockets. Sockets belong to the node that owns paths; pairs, which connect the
//! kernel with its helpers and stubs, to the node that makes them.

use super::call::{Job, by_value, refuse};
use super::env::{self, Env, Place, fail};
use super::exec::{ALIGN, Op, Received};
use super::fd::Cursor;
use super::slot::Frame;
use super::umask;
use super::wire::DATA_MAX;
use core::ffi::{c_int, c_uint, c_void};
use core::ptr;
use libc::{mmsghdr, msghdr, size_t, sockaddr, socklen_t, ssize_t, timespec};

/// Longest address and longest control data that are passed on, in bytes.
const NAME_MAX: usize = 1024;
const CONTROL_MAX: usize = 4096;

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    let Some(env) = env::active() else {
        // SAFETY: no pointers.
        return unsafe { libc::socket(domain, kind, protocol) };
    };
    let args = [domain.into(), kind.into(), protocol.into(), 0, 0, 0];
    match Job::new(env, Op::Socket, args) {
        Some(mut job) => job.run(env.path_owner()) as c_int,
        None => -1,
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_socketpair(
    domain: c_int,
    kind: c_int,
    protocol: c_int,
    pair: *mut c_int,
) -> c_int {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::socketpair(domain, kind, protocol, pair) };
    };
    let frame = Frame::claim();
    let copy = frame.at::<c_int>(0);
    // SAFETY: the frame has room for two descriptors, and so has the caller.
    unsafe {
        let result = libc::socketpair(domain, kind, protocol, copy);
        if result == 0 {
            let (one, other) = (env.handle(copy.read()), env.handle(copy.add(1).read()));
            if one < 0 || other < 0 {
                return -1;
            }
            pair.write(one);
            pair.add(1).write(other);
        }
        result
    }
}

fn with_address(
    env: &'static Env,
    op: Op,
    fd: c_int,
    address: *const sockaddr,
    len: socklen_t,
) -> c_int {
    let place = env.place(fd);
    let Some(mut job) = Job::new(env, op, [place.raw().into(), 0, 0, 0, 0, 0]) else {
        return -1;
    };
    // SAFETY: the wrapper's caller passed an address of `len` bytes.
    if len as usize > NAME_MAX || !unsafe { job.put(address.cast(), len as usize) } {
        return fail(libc::EINVAL) as c_int;
    }
    job.run(place.node(env)) as c_int
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_bind(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int {
    match env::active() {
        None => {
            umask::restrict_socket(fd);
            // SAFETY: the caller's arguments, as they are.
            unsafe { libc::bind(fd, address, len) }
        }
        Some(env) => with_address(env, Op::Bind, fd, address, len),
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_connect(
    fd: c_int,
    address: *const sockaddr,
    len: socklen_t,
) -> c_int {
    match env::active() {
        // SAFETY: the caller's arguments, as they are.
        None => unsafe { libc::connect(fd, address, len) },
        Some(env) => with_address(env, Op::Connect, fd, address, len),
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_listen(fd: c_int, backlog: c_int) -> c_int {
    match env::active() {
        // SAFETY: no pointers.
        None => unsafe { libc::listen(fd, backlog) },
        Some(env) => by_value(env, env.place(fd), Op::Listen, [backlog.into(), 0, 0, 0]) as c_int,
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_shutdown(fd: c_int, how: c_int) -> c_int {
    match env::active() {
        // SAFETY: no pointers.
        None => unsafe { libc::shutdown(fd, how) },
        Some(env) => by_value(env, env.place(fd), Op::Shutdown, [how.into(), 0, 0, 0]) as c_int,
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_accept(
    fd: c_int,
    address: *mut sockaddr,
    len: *mut socklen_t,
) -> c_int {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::accept(fd, address, len) };
    };
    let place = env.place(fd);
    let args = [place.raw().into(), 0, 0, 0, 0, 0];
    let Some(mut job) = Job::new(env, Op::Accept, args) else {
        return -1;
    };
    let wanted = !address.is_null() && !len.is_null();
    let cap = if wanted {
        // SAFETY: the caller's length.
        (unsafe { len.read() }) as usize
    } else {
        0
    };
    job.want(cap.min(NAME_MAX));
    let new = job.run(place.node(env));
    if new >= 0 && wanted {
        // SAFETY: the caller's address has `cap` bytes.
        unsafe { len.write(job.take(address.cast(), cap) as socklen_t) };
    }
    new as c_int
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::setsockopt(fd, level, name, value, len) };
    };
    let place = env.place(fd);
    let args = [place.raw().into(), level.into(), name.into(), 0, 0, 0];
    let Some(mut job) = Job::new(env, Op::Option, args) else {
        return -1;
    };
    let (mut value, mut len) = (value.cast::<u8>(), len as usize);
    if (level, name) == (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER) {
        // The program is behind a pointer in the value: send the program itself.
        // SAFETY: this option's value is a filter program.
        let program = unsafe { value.cast::<libc::sock_fprog>().read() };
        value = program.filter.cast();
        len = usize::from(program.len) * size_of::<libc::sock_filter>();
    }
    // SAFETY: the caller's value has `len` bytes.
    if !unsafe { job.put(value, len) } {
        return fail(libc::EINVAL) as c_int;
    }
    job.run(place.node(env)) as c_int
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_sendmsg(fd: c_int, msg: *const msghdr, flags: c_int) -> ssize_t {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::sendmsg(fd, msg, flags) };
    };
    // SAFETY: the caller passed a message.
    send(env, fd, unsafe { &*msg }, flags)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_sendto(
    fd: c_int,
    buf: *const c_void,
    len: size_t,
    flags: c_int,
    address: *const sockaddr,
    address_len: socklen_t,
) -> ssize_t {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::sendto(fd, buf, len, flags, address, address_len) };
    };
    let mut vector = libc::iovec {
        iov_base: buf.cast_mut(),
        iov_len: len,
    };
    send(
        env,
        fd,
        &one_vector(&mut vector, address.cast_mut(), address_len),
        flags,
    )
}

/// A header around one vector, for code that reads it in user mode only.
fn one_vector(vector: &mut libc::iovec, name: *mut sockaddr, name_len: socklen_t) -> msghdr {
    // SAFETY: all zero is a valid message header.
    let mut msg: msghdr = unsafe { core::mem::zeroed() };
    msg.msg_iov = vector;
    msg.msg_iovlen = 1;
    msg.msg_name = name.cast();
    msg.msg_namelen = if name.is_null() { 0 } else { name_len };
    msg
}

/// One call sends one message.
fn send(env: &'static Env, fd: c_int, msg: &msghdr, flags: c_int) -> ssize_t {
    let place = env.place(fd);
    let Some((mut data, len)) = Cursor::many(msg.msg_iov, msg.msg_iovlen as c_int) else {
        return fail(libc::EINVAL) as ssize_t;
    };
    let name_len = if msg.msg_name.is_null() {
        0
    } else {
        msg.msg_namelen as usize
    };
    let control_len = if msg.msg_control.is_null() {
        0
    } else {
        msg.msg_controllen
    };
    if name_len > NAME_MAX || control_len > CONTROL_MAX {
        return fail(libc::EINVAL) as ssize_t;
    }
    let args = [
        place.raw().into(),
        flags.into(),
        name_len as i64,
        control_len as i64,
        0,
        0,
    ];
    let Some(mut job) = Job::new(env, Op::Send, args) else {
        return -1;
    };
    // SAFETY: the caller's message has a name and control data of these lengths.
    unsafe {
        job.put(msg.msg_name.cast(), name_len);
        job.pad(ALIGN);
        job.put(msg.msg_control.cast(), control_len);
        job.pad(ALIGN);
    }
    if len > job.input_room() {
        return fail(libc::EMSGSIZE) as ssize_t;
    }
    if let Place::There(node, _) = place
        && control_len != 0
        && !rights_on(env, msg, node)
    {
        let what = format_args!("descriptors of different nodes in a message on {fd:#x}");
        return refuse(env, libc::EBADF, what) as ssize_t;
    }
    data.drain(&mut job, len);
    job.run(place.node(env)) as ssize_t
}

/// Do all descriptors in the message's control data belong to `node`?
fn rights_on(env: &Env, msg: &msghdr, node: u16) -> bool {
    // SAFETY: the macros and the bound keep within the control data that the caller described.
    unsafe {
        let end = msg.msg_control as usize + msg.msg_controllen;
        let mut part = libc::CMSG_FIRSTHDR(msg);
        while !part.is_null() {
            let stop = (part as usize).saturating_add((*part).cmsg_len).min(end);
            let mut cell = libc::CMSG_DATA(part).cast::<i32>();
            while (*part).cmsg_type == libc::SCM_RIGHTS && cell as usize + 4 <= stop {
                if env.place(cell.read_unaligned()).node(env) != node {
                    return false;
                }
                cell = cell.add(1);
            }
            part = libc::CMSG_NXTHDR(msg, part);
        }
    }
    true
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_recvmsg(fd: c_int, msg: *mut msghdr, flags: c_int) -> ssize_t {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::recvmsg(fd, msg, flags) };
    };
    // SAFETY: the caller passed a message to fill.
    receive(env, fd, unsafe { &mut *msg }, flags)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_recvfrom(
    fd: c_int,
    buf: *mut c_void,
    len: size_t,
    flags: c_int,
    address: *mut sockaddr,
    address_len: *mut socklen_t,
) -> ssize_t {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::recvfrom(fd, buf, len, flags, address, address_len) };
    };
    let wanted = !address.is_null() && !address_len.is_null();
    let cap = if wanted {
        // SAFETY: the caller's length.
        unsafe { address_len.read() }
    } else {
        0
    };
    let mut vector = libc::iovec {
        iov_base: buf,
        iov_len: len,
    };
    let name = if wanted { address } else { ptr::null_mut() };
    let mut msg = one_vector(&mut vector, name, cap);
    let n = receive(env, fd, &mut msg, flags);
    if n >= 0 && wanted {
        // SAFETY: as above.
        unsafe { address_len.write(msg.msg_namelen) };
    }
    n
}

/// One call receives one message, of which [`DATA_MAX`] bytes at most.
fn receive(env: &'static Env, fd: c_int, msg: &mut msghdr, flags: c_int) -> ssize_t {
    let place = env.place(fd);
    let Some((mut data, len)) = Cursor::many(msg.msg_iov, msg.msg_iovlen as c_int) else {
        return fail(libc::EINVAL) as ssize_t;
    };
    let name_cap = if msg.msg_name.is_null() {
        0
    } else {
        (msg.msg_namelen as usize).min(NAME_MAX)
    };
    let control_cap = if msg.msg_control.is_null() {
        0
    } else {
        msg.msg_controllen.min(CONTROL_MAX)
    };
    let name_at = size_of::<Received>();
    let control_at = name_at + name_cap.next_multiple_of(ALIGN);
    let data_at = control_at + control_cap.next_multiple_of(ALIGN);
    let data_cap = len.min(DATA_MAX - data_at);
    let args = [
        place.raw().into(),
        flags.into(),
        name_cap as i64,
        control_cap as i64,
        data_cap as i64,
        0,
    ];
    let Some(mut job) = Job::new(env, Op::Receive, args) else {
        return -1;
    };
    job.want(data_at + data_cap);
    let n = job.run(place.node(env));
    if n < 0 {
        return -1;
    }
    let (output, output_len) = job.output();
    if output_len < data_at {
        return fail(libc::EIO) as ssize_t;
    }
    // SAFETY: the output starts with `Received`, aligned; name, control data and data follow at the
    // offsets computed above, which `output_len` covers; the caller's buffers have those capacities.
    unsafe {
        let received = output.cast::<Received>().read();
        let name_len = (received.name_len as usize).min(name_cap);
        let control_len = (received.control_len as usize).min(control_cap);
        msg.msg_name
            .cast::<u8>()
            .copy_from_nonoverlapping(output.add(name_at), name_len);
        msg.msg_control
            .cast::<u8>()
            .copy_from_nonoverlapping(output.add(control_at), control_len);
        data.fill(output.add(data_at), (output_len - data_at).min(data_cap));
        msg.msg_namelen = received.name_len;
        msg.msg_controllen = control_len;
        msg.msg_flags = received.flags;
    }
    n as ssize_t
}

/// Messages one by one. What fails after the first ends the batch and is met by the next call.
#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_sendmmsg(
    fd: c_int,
    batch: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
) -> c_int {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::sendmmsg(fd, batch, count, flags) };
    };
    for index in 0..count {
        // SAFETY: the caller passed `count` messages.
        let entry = unsafe { &mut *batch.add(index as usize) };
        let n = send(env, fd, &entry.msg_hdr, flags);
        if n < 0 {
            return if index == 0 { -1 } else { index as c_int };
        }
        entry.msg_len = n as c_uint;
    }
    count as c_int
}

/// As [`__wrap_sendmmsg`]; the timeout is not looked at (the network driver passes none).
#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_recvmmsg(
    fd: c_int,
    batch: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::recvmmsg(fd, batch, count, flags, timeout) };
    };
    for index in 0..count {
        // SAFETY: the caller passed `count` messages to fill.
        let entry = unsafe { &mut *batch.add(index as usize) };
        let wait = if flags & libc::MSG_WAITFORONE != 0 && index > 0 {
            libc::MSG_DONTWAIT
        } else {
            0
        };
        let n = receive(
            env,
            fd,
            &mut entry.msg_hdr,
            (flags & !libc::MSG_WAITFORONE) | wait,
        );
        if n < 0 {
            return if index == 0 { -1 } else { index as c_int };
        }
        entry.msg_len = n as c_uint;
    }
    count as c_int
}
