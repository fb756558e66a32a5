//! Wrappers of calls on descriptors: data, position, attributes.

use super::call::{Job, by_value, refuse};
use super::env::{self, Env, Place, fail};
use super::exec::{KIND_MESSAGES, KIND_SEEKABLE, Op};
use super::export;
use super::wire::DATA_MAX;
use core::ffi::{c_int, c_long, c_ulong, c_void};
use libc::{iovec, off64_t, size_t, ssize_t};

/// Long transfers go in pieces of this size.
const CHUNK: usize = 64 * 1024;

/// As in the kernel.
const IOVECS_MAX: usize = 1024;

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_read(fd: c_int, buf: *mut c_void, len: size_t) -> ssize_t {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::read(fd, buf, len) };
    };
    match env.place(fd) {
        // SAFETY: as above; the buffer is no guest memory.
        Place::Here(fd) if !env.guest(buf, len) => unsafe { libc::read(fd, buf, len) },
        place => read_into(env, place, Op::Read, &mut Cursor::one(buf, len), len, 0),
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_pread64(
    fd: c_int,
    buf: *mut c_void,
    len: size_t,
    offset: off64_t,
) -> ssize_t {
    let Some(env) = env::for_fd(fd) else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::pread64(fd, buf, len, offset) };
    };
    match env.place(fd) {
        // SAFETY: as above; the buffer is no guest memory.
        Place::Here(fd) if !env.guest(buf, len) && !export::is_held(fd) => unsafe {
            libc::pread64(fd, buf, len, offset)
        },
        place => read_into(
            env,
            place,
            Op::Pread,
            &mut Cursor::one(buf, len),
            len,
            offset,
        ),
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_write(fd: c_int, buf: *const c_void, len: size_t) -> ssize_t {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::write(fd, buf, len) };
    };
    match env.place(fd) {
        // SAFETY: as above; the buffer is no guest memory.
        Place::Here(fd) if !env.guest(buf, len) => unsafe { libc::write(fd, buf, len) },
        place => write_from(
            env,
            place,
            Op::Write,
            &mut Cursor::one(buf.cast_mut(), len),
            len,
            0,
        ),
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_pwrite64(
    fd: c_int,
    buf: *const c_void,
    len: size_t,
    offset: off64_t,
) -> ssize_t {
    let Some(env) = env::for_fd(fd) else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::pwrite64(fd, buf, len, offset) };
    };
    match env.place(fd) {
        // SAFETY: as above; the buffer is no guest memory.
        Place::Here(fd) if !env.guest(buf, len) && !export::is_held(fd) => unsafe {
            libc::pwrite64(fd, buf, len, offset)
        },
        place => {
            let mut from = Cursor::one(buf.cast_mut(), len);
            write_from(env, place, Op::Pwrite, &mut from, len, offset)
        }
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_readv(fd: c_int, iov: *const iovec, count: c_int) -> ssize_t {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::readv(fd, iov, count) };
    };
    match Cursor::many(iov, count) {
        Some((mut to, len)) => read_into(env, env.place(fd), Op::Read, &mut to, len, 0),
        None => fail(libc::EINVAL) as ssize_t,
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_writev(fd: c_int, iov: *const iovec, count: c_int) -> ssize_t {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::writev(fd, iov, count) };
    };
    match Cursor::many(iov, count) {
        Some((mut from, len)) => write_from(env, env.place(fd), Op::Write, &mut from, len, 0),
        None => fail(libc::EINVAL) as ssize_t,
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_preadv64(
    fd: c_int,
    iov: *const iovec,
    count: c_int,
    offset: off64_t,
) -> ssize_t {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::preadv64(fd, iov, count, offset) };
    };
    match Cursor::many(iov, count) {
        Some((mut to, len)) => read_into(env, env.place(fd), Op::Pread, &mut to, len, offset),
        None => fail(libc::EINVAL) as ssize_t,
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_pwritev64(
    fd: c_int,
    iov: *const iovec,
    count: c_int,
    offset: off64_t,
) -> ssize_t {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::pwritev64(fd, iov, count, offset) };
    };
    match Cursor::many(iov, count) {
        Some((mut from, len)) => write_from(env, env.place(fd), Op::Pwrite, &mut from, len, offset),
        None => fail(libc::EINVAL) as ssize_t,
    }
}

/// A position in the caller's memory: one buffer, or a vector of them.
pub(super) struct Cursor {
    here: *mut u8,
    left: usize,
    next: *const iovec,
    vectors_left: usize,
}

impl Cursor {
    pub(super) fn one(buf: *mut c_void, len: usize) -> Cursor {
        Cursor {
            here: buf.cast(),
            left: len,
            next: core::ptr::null(),
            vectors_left: 0,
        }
    }

    /// The cursor and the total length; `None` if the kernel would refuse the vector.
    pub(super) fn many(iov: *const iovec, count: c_int) -> Option<(Cursor, usize)> {
        let count = usize::try_from(count)
            .ok()
            .filter(|&count| count <= IOVECS_MAX)?;
        let mut total = 0_usize;
        for index in 0..count {
            // SAFETY: the wrapper's caller promised `count` vectors.
            let len = unsafe { (*iov.add(index)).iov_len };
            total = total
                .checked_add(len)
                .filter(|&total| total <= isize::MAX as usize)?;
        }
        let cursor = Cursor {
            here: core::ptr::null_mut(),
            left: 0,
            next: iov,
            vectors_left: count,
        };
        Some((cursor, total))
    }

    /// The next piece, at most `max` bytes; `None` at the end.
    fn piece(&mut self, max: usize) -> Option<(*mut u8, usize)> {
        while self.left == 0 {
            self.vectors_left = self.vectors_left.checked_sub(1)?;
            // SAFETY: `many` was given that many vectors.
            let vector = unsafe { &*self.next };
            self.here = vector.iov_base.cast();
            self.left = vector.iov_len;
            self.next = self.next.wrapping_add(1);
        }
        let (at, len) = (self.here, self.left.min(max));
        self.here = self.here.wrapping_add(len);
        self.left -= len;
        Some((at, len))
    }

    /// Moves `len` bytes from `from` to the caller.
    pub(super) fn fill(&mut self, mut from: *const u8, mut len: usize) {
        while len != 0 {
            let Some((to, piece)) = self.piece(len) else {
                return;
            };
            // SAFETY: the caller's buffers are as long as it said; `from` has `len` bytes.
            unsafe { to.copy_from_nonoverlapping(from, piece) };
            from = from.wrapping_add(piece);
            len -= piece;
        }
    }

    /// Appends the caller's next `len` bytes to a job's input.
    pub(super) fn drain(&mut self, job: &mut Job, len: usize) {
        let mut left = len.min(job.input_room());
        while left != 0 {
            let Some((from, piece)) = self.piece(left) else {
                return;
            };
            // SAFETY: the caller's buffers are as long as it said, and there is room.
            unsafe { job.input_end().copy_from_nonoverlapping(from, piece) };
            job.added(piece);
            left -= piece;
        }
    }
}

/// May the transfer be cut in pieces? Asked only for those that do not fit one.
fn kind(env: &'static Env, place: Place) -> i64 {
    match Job::new(env, Op::Kind, [place.raw().into(), 0, 0, 0, 0, 0]) {
        Some(mut job) => job.run(place.node(env)),
        None => -1,
    }
}

fn read_into(
    env: &'static Env,
    place: Place,
    op: Op,
    to: &mut Cursor,
    len: usize,
    offset: i64,
) -> ssize_t {
    let first = if len <= DATA_MAX { len } else { CHUNK };
    // Only a file may be asked for more: elsewhere that could wait for what never comes.
    let seekable = len <= DATA_MAX || op == Op::Pread || kind(env, place) == KIND_SEEKABLE;
    let Some(mut job) = Job::new(env, op, [place.raw().into(), 0, 0, 0, 0, 0]) else {
        return -1;
    };
    let mut done = 0;
    let mut chunk = first;
    loop {
        job.set_arg(1, chunk as i64);
        job.set_arg(2, offset.wrapping_add(done as i64));
        job.want(chunk);
        let n = job.run(place.node(env));
        if n < 0 {
            return if done == 0 { -1 } else { done as ssize_t };
        }
        let (from, n) = job.output();
        to.fill(from, n);
        done += n;
        if n < chunk || done >= len || !seekable {
            return done as ssize_t;
        }
        chunk = (len - done).min(CHUNK);
    }
}

pub(super) fn write_from(
    env: &'static Env,
    place: Place,
    op: Op,
    from: &mut Cursor,
    len: usize,
    offset: i64,
) -> ssize_t {
    if len > DATA_MAX && op == Op::Write && kind(env, place) == KIND_MESSAGES {
        return fail(libc::EMSGSIZE) as ssize_t;
    }
    let Some(mut job) = Job::new(env, op, [place.raw().into(), 0, 0, 0, 0, 0]) else {
        return -1;
    };
    let mut done = 0;
    let mut chunk = if len <= DATA_MAX { len } else { CHUNK };
    loop {
        job.clear_input();
        from.drain(&mut job, chunk);
        job.set_arg(2, offset.wrapping_add(done as i64));
        let n = job.run(place.node(env));
        if n < 0 {
            return if done == 0 { -1 } else { done as ssize_t };
        }
        done += n as usize;
        if (n as usize) < chunk || done >= len {
            return done as ssize_t;
        }
        chunk = (len - done).min(CHUNK);
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_lseek64(fd: c_int, offset: off64_t, whence: c_int) -> off64_t {
    match env::for_fd(fd) {
        Some(env) => by_value(env, env.place(fd), Op::Seek, [offset, whence.into(), 0, 0]),
        // SAFETY: no pointers.
        None => unsafe { libc::lseek64(fd, offset, whence) },
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_close(fd: c_int) -> c_int {
    match env::for_fd(fd) {
        Some(env) => by_value(env, env.place(fd), Op::Close, [0; 4]) as c_int,
        // SAFETY: no pointers; the descriptor is the caller's.
        None => unsafe { libc::close(fd) },
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_fsync(fd: c_int) -> c_int {
    match env::for_fd(fd) {
        Some(env) => by_value(env, env.place(fd), Op::Sync, [0; 4]) as c_int,
        // SAFETY: no pointers.
        None => unsafe { libc::fsync(fd) },
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_fdatasync(fd: c_int) -> c_int {
    match env::for_fd(fd) {
        Some(env) => by_value(env, env.place(fd), Op::Sync, [1, 0, 0, 0]) as c_int,
        // SAFETY: no pointers.
        None => unsafe { libc::fdatasync(fd) },
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_ftruncate64(fd: c_int, len: off64_t) -> c_int {
    match env::for_fd(fd) {
        Some(env) => by_value(env, env.place(fd), Op::Truncate, [len, 0, 0, 0]) as c_int,
        // SAFETY: no pointers.
        None => unsafe { libc::ftruncate64(fd, len) },
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_fallocate64(
    fd: c_int,
    mode: c_int,
    offset: off64_t,
    len: off64_t,
) -> c_int {
    match env::for_fd(fd) {
        Some(env) => by_value(
            env,
            env.place(fd),
            Op::Allocate,
            [mode.into(), offset, len, 0],
        ) as c_int,
        // SAFETY: no pointers.
        None => unsafe { libc::fallocate64(fd, mode, offset, len) },
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_fchmod(fd: c_int, mode: libc::mode_t) -> c_int {
    match env::for_fd(fd) {
        Some(env) => by_value(env, env.place(fd), Op::Mode, [mode.into(), 0, 0, 0]) as c_int,
        // SAFETY: no pointers.
        None => unsafe { libc::fchmod(fd, mode) },
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_fchown(fd: c_int, user: libc::uid_t, group: libc::gid_t) -> c_int {
    match env::for_fd(fd) {
        Some(env) => {
            let args = [user.into(), group.into(), 0, 0];
            by_value(env, env.place(fd), Op::Owner, args) as c_int
        }
        // SAFETY: no pointers.
        None => unsafe { libc::fchown(fd, user, group) },
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_dup(fd: c_int) -> c_int {
    match env::for_fd(fd) {
        Some(env) => by_value(env, env.place(fd), Op::Duplicate, [0; 4]) as c_int,
        // SAFETY: no pointers.
        None => unsafe { libc::dup(fd) },
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_dup2(old: c_int, new: c_int) -> c_int {
    let Some(env) = env::for_fd(old).or_else(|| env::for_fd(new)) else {
        // SAFETY: no pointers.
        return unsafe { libc::dup2(old, new) };
    };
    let (from, to) = (env.place(old), env.place(new));
    if from.node(env) != to.node(env) {
        let what = format_args!("dup2 of descriptor {old:#x} onto {new:#x} of another node");
        return refuse(env, libc::EBADF, what) as c_int;
    }
    by_value(env, from, Op::DuplicateTo, [to.raw().into(), 0, 0, 0]) as c_int
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_fcntl64(fd: c_int, command: c_int, arg: c_long) -> c_int {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::fcntl(fd, command, arg) };
    };
    let place = env.place(fd);
    let lock = matches!(
        command,
        libc::F_GETLK
            | libc::F_SETLK
            | libc::F_SETLKW
            | libc::F_OFD_GETLK
            | libc::F_OFD_SETLK
            | libc::F_OFD_SETLKW
    );
    // Their caller passes none: what stands in its place may look like anything.
    let arg = match command {
        libc::F_GETFD | libc::F_GETFL | libc::F_GETOWN | libc::F_GETPIPE_SZ => 0,
        _ => arg,
    };
    if !lock {
        if env.guest(arg as *const u8, 1) {
            let what = format_args!("fcntl {command} with a pointer");
            return refuse(env, libc::EINVAL, what) as c_int;
        }
        return by_value(env, place, Op::Control, [command.into(), arg, 0, 0]) as c_int;
    }
    let args = [place.raw().into(), command.into(), 0, 0, 0, 0];
    let Some(mut job) = Job::new(env, Op::Lock, args) else {
        return -1;
    };
    let (lock, len) = (arg as *mut u8, size_of::<libc::flock64>());
    // SAFETY: these commands take a pointer to a `struct flock`, which the kernel updates.
    unsafe {
        job.put(lock, len);
        job.want(len);
        let result = job.run(place.node(env));
        if result >= 0 {
            job.take(lock, len);
        }
        result as c_int
    }
}

/// Bytes that a request reads and writes through its pointer; `None` for what is not known, (0, 0)
/// for an argument by value.
fn ioctl_sizes(request: u32) -> Option<(usize, usize)> {
    const INT: usize = size_of::<c_int>();
    const WINDOW: usize = size_of::<libc::winsize>();
    const IFREQ: usize = size_of::<libc::ifreq>();
    /// The kernel's `struct termios`.
    const TERMIOS: usize = 36;
    const TUNSETVNETHDRSZ: u32 = 0x4004_54d8;
    const TUNSETOFFLOAD: u32 = 0x4004_54d0;
    const TUNGETFEATURES: u32 = 0x8004_54cf;
    const TUNSETIFF: u32 = 0x4004_54ca;
    const TUNGETIFF: u32 = 0x8004_54d2;
    const BLKGETSIZE: u32 = 0x1260;
    const BLKSSZGET: u32 = 0x1268;
    const BLKGETSIZE64: u32 = 0x8008_1272;
    Some(match libc::Ioctl::from(request) {
        libc::TIOCGWINSZ => (0, WINDOW),
        libc::TIOCSWINSZ => (WINDOW, 0),
        libc::TCGETS => (0, TERMIOS),
        libc::TCSETS | libc::TCSETSW | libc::TCSETSF => (TERMIOS, 0),
        libc::FIONREAD | libc::TIOCOUTQ | libc::TIOCGPGRP | libc::TIOCGPTN => (0, INT),
        libc::TIOCMGET | libc::TIOCGSID => (0, INT),
        libc::FIONBIO | libc::FIOASYNC | libc::TIOCSPGRP | libc::TIOCSPTLCK => (INT, 0),
        libc::TIOCSCTTY | libc::TIOCNOTTY | libc::TCSBRK | libc::TCXONC | libc::TCFLSH => (0, 0),
        libc::FIOCLEX | libc::FIONCLEX => (0, 0),
        libc::SIOCGIFNAME | libc::SIOCGIFINDEX | libc::SIOCGIFFLAGS => (IFREQ, IFREQ),
        libc::SIOCSIFFLAGS | libc::SIOCGIFMTU | libc::SIOCGIFHWADDR => (IFREQ, IFREQ),
        _ => match request {
            TUNSETIFF | TUNGETIFF => (IFREQ, IFREQ),
            TUNSETVNETHDRSZ => (INT, 0),
            TUNGETFEATURES => (0, INT),
            TUNSETOFFLOAD => (0, 0),
            BLKGETSIZE | BLKGETSIZE64 => (0, 8),
            BLKSSZGET => (0, INT),
            _ => return None,
        },
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_ioctl(fd: c_int, request: c_ulong, arg: *mut u8) -> c_int {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::ioctl(fd, request, arg) };
    };
    let place = env.place(fd);
    let sizes = ioctl_sizes(request as u32);
    let pointer = env.guest(arg, 1);
    if let Place::Here(fd) = place
        && !pointer
    {
        // SAFETY: the argument is a value, or a pointer that the host may see.
        return unsafe { libc::ioctl(fd, request, arg) };
    }
    let Some((input, output)) = sizes else {
        let what = format_args!("ioctl {request:#x} on descriptor {fd:#x}: not known");
        return refuse(env, libc::ENOTTY, what) as c_int;
    };
    let args = [place.raw().into(), request as i64, arg as i64, 0, 0, 0];
    let Some(mut job) = Job::new(env, Op::Ioctl, args) else {
        return -1;
    };
    // SAFETY: the request is one that takes a pointer to that many bytes.
    unsafe {
        job.put(arg, input);
        job.want(output);
        let result = job.run(place.node(env));
        if result >= 0 {
            job.take(arg, output);
        }
        result as c_int
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_mmap64(
    at: *mut c_void,
    len: size_t,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: off64_t,
) -> *mut c_void {
    let place = env::active().map(|env| (env, env.place(fd)));
    match place {
        // SAFETY: addresses are values here; the caller's arguments otherwise.
        None => unsafe { libc::mmap64(at, len, protection, flags, fd, offset) },
        // SAFETY: as above.
        Some((_, Place::Here(fd))) => unsafe {
            libc::mmap64(at, len, protection, flags, fd, offset)
        },
        Some((env, Place::There(..))) => {
            let what = format_args!("mmap of descriptor {fd:#x} of another node");
            refuse(env, libc::ENODEV, what);
            libc::MAP_FAILED
        }
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_eventfd(initial: libc::c_uint, flags: c_int) -> c_int {
    // SAFETY: no pointers.
    let fd = unsafe { libc::eventfd(initial, flags) };
    env::active().map_or(fd, |env| env.handle(fd))
}
