//! Wrappers of calls on paths and directories, and of the stat family.

use super::call::{Job, on_path};
use super::env::{self, Env, Place, fail, set_errno};
use super::exec::Op;
use super::umask;
use core::cell::UnsafeCell;
use core::ffi::{c_char, c_int, c_uint, c_void};
use core::ptr;
use libc::{dirent64, mode_t, off64_t, size_t, ssize_t, timeval};

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    match env::for_path(path) {
        // SAFETY: the caller's arguments, as they are.
        None => unsafe { libc::open64(path, flags, umask::own(mode)) },
        Some(env) => path_call(env, Op::PathOpen, [flags.into(), mode.into()], path),
    }
}

/// A call on one path that gives back a number only.
fn path_call(env: &'static Env, op: Op, args: [i64; 2], path: *const c_char) -> c_int {
    let [a, b] = args;
    // SAFETY: the wrapper's caller passed a path, as the libc function wants.
    unsafe { on_path(env, op, [a, b, 0, 0, 0, 0], path, 0) }.0 as c_int
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_access(path: *const c_char, mode: c_int) -> c_int {
    match env::for_path(path) {
        // SAFETY: the caller's arguments, as they are.
        None => unsafe { libc::access(path, mode) },
        Some(env) => path_call(env, Op::PathAccess, [mode.into(), 0], path),
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_mkdir(path: *const c_char, mode: mode_t) -> c_int {
    match env::for_path(path) {
        // SAFETY: the caller's arguments, as they are.
        None => unsafe { libc::mkdir(path, umask::own(mode)) },
        Some(env) => path_call(env, Op::PathMkdir, [mode.into(), 0], path),
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_rmdir(path: *const c_char) -> c_int {
    match env::for_path(path) {
        // SAFETY: the caller's arguments, as they are.
        None => unsafe { libc::rmdir(path) },
        Some(env) => path_call(env, Op::PathRmdir, [0; 2], path),
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_unlink(path: *const c_char) -> c_int {
    match env::for_path(path) {
        // SAFETY: the caller's arguments, as they are.
        None => unsafe { libc::unlink(path) },
        Some(env) => path_call(env, Op::PathUnlink, [0; 2], path),
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_mknod(path: *const c_char, mode: mode_t, dev: u64) -> c_int {
    match env::for_path(path) {
        // SAFETY: the caller's arguments, as they are.
        None => unsafe { libc::mknod(path, umask::own(mode), dev) },
        Some(env) => path_call(env, Op::PathMknod, [mode.into(), dev as i64], path),
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_chmod(path: *const c_char, mode: mode_t) -> c_int {
    match env::for_path(path) {
        // SAFETY: the caller's arguments, as they are.
        None => unsafe { libc::chmod(path, mode) },
        Some(env) => path_call(env, Op::PathMode, [mode.into(), 0], path),
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_chown(
    path: *const c_char,
    user: libc::uid_t,
    group: libc::gid_t,
) -> c_int {
    match env::for_path(path) {
        // SAFETY: the caller's arguments, as they are.
        None => unsafe { libc::chown(path, user, group) },
        Some(env) => path_call(env, Op::PathOwner, [user.into(), group.into()], path),
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_truncate64(path: *const c_char, len: off64_t) -> c_int {
    match env::for_path(path) {
        // SAFETY: the caller's arguments, as they are.
        None => unsafe { libc::truncate64(path, len) },
        Some(env) => path_call(env, Op::PathTruncate, [len, 0], path),
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_chdir(path: *const c_char) -> c_int {
    match env::active() {
        // SAFETY: the caller's arguments, as they are.
        None => unsafe { libc::chdir(path) },
        Some(env) => path_call(env, Op::PathChdir, [0; 2], path),
    }
}

fn two_paths(
    env: &'static Env,
    op: Op,
    from: *const c_char,
    to: *const c_char,
    flags: c_uint,
) -> c_int {
    let Some(mut job) = Job::new(env, op, [flags.into(), 0, 0, 0, 0, 0]) else {
        return -1;
    };
    // SAFETY: the wrapper's caller passed paths, as the libc function wants.
    if !unsafe { job.put_path(from) && job.put_path(to) } {
        return -1;
    }
    job.run_on_owner() as c_int
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_link(from: *const c_char, to: *const c_char) -> c_int {
    match env::for_path(from) {
        // SAFETY: the caller's arguments, as they are.
        None => unsafe { libc::link(from, to) },
        Some(env) => two_paths(env, Op::PathLink, from, to, 0),
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_symlink(from: *const c_char, to: *const c_char) -> c_int {
    match env::for_path(to) {
        // SAFETY: the caller's arguments, as they are.
        None => unsafe { libc::symlink(from, to) },
        Some(env) => two_paths(env, Op::PathSymlink, from, to, 0),
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_rename(from: *const c_char, to: *const c_char) -> c_int {
    match env::for_path(from) {
        // SAFETY: the caller's arguments, as they are.
        None => unsafe { libc::rename(from, to) },
        Some(env) => rename_with_flags(env, from, to, 0),
    }
}

pub(super) fn rename_with_flags(
    env: &'static Env,
    from: *const c_char,
    to: *const c_char,
    flags: c_uint,
) -> c_int {
    two_paths(env, Op::PathRename, from, to, flags)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_readlink(
    path: *const c_char,
    buf: *mut c_char,
    len: size_t,
) -> ssize_t {
    let Some(env) = env::for_path(path) else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::readlink(path, buf, len) };
    };
    // SAFETY: the caller passed a path and `len` bytes to fill.
    unsafe {
        let (n, job) = on_path(env, Op::PathReadlink, [0; 6], path, len);
        if let Some(job) = job.filter(|_| n >= 0) {
            job.take(buf.cast(), len);
        }
        n as ssize_t
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_getcwd(buf: *mut c_char, len: size_t) -> *mut c_char {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::getcwd(buf, len) };
    };
    // The variant that allocates is not for kernel code.
    if buf.is_null() {
        set_errno(libc::EINVAL);
        return buf;
    }
    let Some(mut job) = Job::new(env, Op::PathGetcwd, [0; 6]) else {
        return ptr::null_mut();
    };
    job.want(len);
    if job.run(env.path_owner()) < 0 {
        return ptr::null_mut();
    }
    // SAFETY: the caller's buffer has `len` bytes.
    unsafe { job.take(buf.cast(), len) };
    buf
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_mkstemp64(template: *mut c_char) -> c_int {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::mkstemp(template) };
    };
    // SAFETY: the caller passed a string that is to be changed in place.
    unsafe {
        let (fd, job) = on_path(
            env,
            Op::PathMkstemp,
            [0; 6],
            template,
            super::call::PATH_MAX,
        );
        if let Some(job) = job.filter(|_| fd >= 0) {
            job.take(template.cast(), super::call::PATH_MAX);
        }
        fd as c_int
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_stat64(path: *const c_char, to: *mut libc::stat64) -> c_int {
    let Some(env) = env::for_path(path) else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::stat64(path, to) };
    };
    path_to_struct(env, Op::PathStat, path, to)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_statfs64(path: *const c_char, to: *mut libc::statfs64) -> c_int {
    let Some(env) = env::for_path(path) else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::statfs64(path, to) };
    };
    path_to_struct(env, Op::PathStatfs, path, to)
}

fn path_to_struct<T>(env: &'static Env, op: Op, path: *const c_char, to: *mut T) -> c_int {
    // SAFETY: the wrapper's caller passed a path and a structure to fill.
    unsafe {
        let (result, job) = on_path(env, op, [0; 6], path, size_of::<T>());
        if let Some(job) = job.filter(|_| result >= 0) {
            job.take(to.cast(), size_of::<T>());
        }
        result as c_int
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_fstat64(fd: c_int, to: *mut libc::stat64) -> c_int {
    const LEN: usize = size_of::<libc::stat64>();
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::fstat64(fd, to) };
    };
    let place = env.place(fd);
    if let Place::Here(fd) = place
        && !env.guest(to, LEN)
    {
        // SAFETY: as above; the structure is no guest memory.
        return unsafe { libc::fstat64(fd, to) };
    }
    let args = [place.raw().into(), 0, 0, 0, 0, 0];
    let Some(mut job) = Job::new(env, Op::Stat, args) else {
        return -1;
    };
    job.want(LEN);
    let result = job.run(place.node(env));
    if result >= 0 {
        // SAFETY: the caller passed a structure to fill.
        unsafe { job.take(to.cast(), LEN) };
    }
    result as c_int
}

/// With a path, the path's owner answers (hostfs passes absolute ones); without, the descriptor's.
#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_statx(
    fd: c_int,
    path: *const c_char,
    flags: c_int,
    mask: c_uint,
    to: *mut libc::statx,
) -> c_int {
    let Some(env) = env::for_path(path).or_else(|| env::for_fd(fd)) else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::statx(fd, path, flags, mask, to) };
    };
    let place = env.place(fd);
    let args = [place.raw().into(), flags.into(), mask.into(), 0, 0, 0];
    let Some(mut job) = Job::new(env, Op::PathStatx, args) else {
        return -1;
    };
    let first = if path.is_null() {
        0
    } else {
        // SAFETY: the caller passed a path, perhaps an empty one.
        unsafe { path.read() }
    };
    let node = place.node(env);
    if first != 0 {
        // SAFETY: as above.
        if !unsafe { job.put_path(path) } {
            return -1;
        }
    }
    job.want(size_of::<libc::statx>());
    let result = match first as u8 {
        b'/' => job.run_on_owner(),
        0 => job.run(node),
        _ if fd < 0 => job.run_on_owner(),
        _ => job.run(node),
    };
    if result >= 0 {
        // SAFETY: the caller passed a structure to fill.
        unsafe { job.take(to.cast(), size_of::<libc::statx>()) };
    }
    result as c_int
}

/// Appends the two times as the system call wants them; false with errno set if they are no times.
fn put_times(job: &mut Job, times: *const timeval) -> bool {
    const USEC_PER_SEC: i64 = 1_000_000;
    let mut specs = [libc::timespec {
        tv_sec: 0,
        tv_nsec: libc::UTIME_NOW,
    }; 2];
    if !times.is_null() {
        for (index, spec) in specs.iter_mut().enumerate() {
            // SAFETY: the wrapper's caller passed two times.
            let time = unsafe { times.add(index).read() };
            if !(0..USEC_PER_SEC).contains(&time.tv_usec) {
                set_errno(libc::EINVAL);
                return false;
            }
            spec.tv_sec = time.tv_sec;
            spec.tv_nsec = time.tv_usec * 1000;
        }
    }
    // SAFETY: the array is this function's.
    unsafe { job.put(specs.as_ptr().cast(), size_of_val(&specs)) }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_futimes(fd: c_int, times: *const timeval) -> c_int {
    let Some(env) = env::for_fd(fd) else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::futimes(fd, times) };
    };
    let place = env.place(fd);
    let args = [place.raw().into(), 0, 0, 0, 0, 0];
    let Some(mut job) = Job::new(env, Op::Times, args) else {
        return -1;
    };
    if !put_times(&mut job, times) {
        return -1;
    }
    job.run(place.node(env)) as c_int
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_utimes(path: *const c_char, times: *const timeval) -> c_int {
    let Some(env) = env::for_path(path) else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::utimes(path, times) };
    };
    let Some(mut job) = Job::new(env, Op::PathTimes, [0; 6]) else {
        return -1;
    };
    // SAFETY: the caller passed a path.
    if !put_times(&mut job, times) || !unsafe { job.put_path(path) } {
        return -1;
    }
    job.run_on_owner() as c_int
}

/// utimensat(2) as hostfs calls it: on a descriptor, or on a path without one.
pub(super) fn set_times(
    env: &'static Env,
    fd: c_int,
    path: *const c_char,
    times: *const libc::timespec,
) -> c_int {
    let place = env.place(fd);
    let args = [place.raw().into(), 0, 0, 0, 0, 0];
    let op = match path.is_null() {
        true => Op::Times,
        false => Op::PathTimes,
    };
    let Some(mut job) = Job::new(env, op, args) else {
        return -1;
    };
    // SAFETY: the caller passed two times, and perhaps a path.
    unsafe {
        if !job.put(times.cast(), size_of::<[libc::timespec; 2]>()) {
            return -1;
        }
        if path.is_null() {
            return job.run(place.node(env)) as c_int;
        }
        match job.put_path(path) {
            true => job.run_on_owner() as c_int,
            false => -1,
        }
    }
}

/// The stream that the guest sees is a number of its owner's table; nobody looks behind it. No pointer has this bit.
const STREAM: usize = 1 << 62;

/// As [`env::for_path`], for what came of a path.
fn for_stream(stream: *mut c_void) -> Option<&'static Env> {
    let ours = || (stream as usize & STREAM != 0).then(env::any).flatten();
    env::active().or_else(ours)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_opendir(path: *const c_char) -> *mut c_void {
    let Some(env) = env::for_path(path) else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::opendir(path) }.cast();
    };
    // SAFETY: the caller passed a path.
    let (number, job) = unsafe { on_path(env, Op::DirOpen, [0; 6], path, 0) };
    ptr::without_provenance_mut(match job {
        Some(job) if number >= 0 => STREAM | (usize::from(job.node()) << 48) | number as usize,
        _ => 0,
    })
}

fn dir_job(env: &'static Env, op: Op, stream: *mut c_void, position: i64) -> Option<(Job, u16)> {
    let number = (stream as usize & ((1 << 48) - 1)) as i64;
    let node = ((stream as usize & !STREAM) >> 48) as u16;
    Some((Job::new(env, op, [number, position, 0, 0, 0, 0])?, node))
}

struct Entry(UnsafeCell<[u64; size_of::<dirent64>().div_ceil(8)]>);

thread_local! {
    // What `readdir` hands out: outside the slot, which the next call may use.
    static ENTRY: Entry =
        const { Entry(UnsafeCell::new([0; size_of::<dirent64>().div_ceil(8)])) };
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_readdir64(stream: *mut c_void) -> *mut dirent64 {
    let Some(env) = for_stream(stream) else {
        // SAFETY: without an environment, streams are libc's.
        return unsafe { libc::readdir64(stream.cast()) };
    };
    let Some((mut job, node)) = dir_job(env, Op::DirRead, stream, 0) else {
        return ptr::null_mut();
    };
    job.want(size_of::<dirent64>());
    if job.run(node) <= 0 {
        return ptr::null_mut();
    }
    ENTRY.with(|entry| {
        let to: *mut u8 = entry.0.get().cast();
        // SAFETY: the buffer is this thread's and has room; signal handlers list no directories.
        unsafe { job.take(to, size_of::<dirent64>()) };
        to.cast()
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_seekdir(stream: *mut c_void, position: libc::c_long) {
    match for_stream(stream) {
        // SAFETY: without an environment, streams are libc's.
        None => unsafe { libc::seekdir(stream.cast(), position) },
        Some(env) => {
            if let Some((mut job, node)) = dir_job(env, Op::DirSeek, stream, position) {
                job.run(node);
            }
        }
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_closedir(stream: *mut c_void) -> c_int {
    let Some(env) = for_stream(stream) else {
        // SAFETY: without an environment, streams are libc's.
        return unsafe { libc::closedir(stream.cast()) };
    };
    match dir_job(env, Op::DirClose, stream, 0) {
        Some((mut job, node)) => job.run(node) as c_int,
        None => -1,
    }
}

/// The executable and sealable memory of the stub binary: private to the node.
#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_memfd_create(name: *const c_char, flags: c_uint) -> c_int {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::memfd_create(name, flags) };
    };
    let Some(slot) = super::slot::Slot::claim() else {
        return fail(libc::ENOMEM) as c_int;
    };
    let copy: *mut c_char = slot.request().cast();
    // SAFETY: the caller passed a string; a longer one than fits is refused by the kernel anyway.
    unsafe {
        let len = libc::strnlen(name, 255);
        copy.copy_from_nonoverlapping(name, len);
        copy.add(len).write(0);
        env.handle(libc::memfd_create(copy, flags))
    }
}

/// Directory entries as the kernel lays them out, many at a time.
pub(super) fn entries(env: &'static Env, fd: c_int, buf: *mut u8, len: usize) -> i64 {
    let place = env.place(fd);
    let args = [place.raw().into(), len as i64, 0, 0, 0, 0];
    let Some(mut job) = Job::new(env, Op::Entries, args) else {
        return -1;
    };
    job.want(len);
    let n = job.run(place.node(env));
    if n > 0 {
        // SAFETY: the caller's buffer has `len` bytes.
        unsafe { job.take(buf, len) };
    }
    n
}
