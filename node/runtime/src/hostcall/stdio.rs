//! Wrappers of calls on libc's streams, and of the resolver. Streams are this process's own.
//!
//! Text for standard output and error is put together in a slot and written at once: libc's unbuffered
//! stderr would hand the caller's memory to the host.

use super::call::refuse;
use super::env::{self, Env, errno, fail};
use super::slot::Slot;
use super::wire::DATA_MAX;
use core::ffi::{c_char, c_int, c_void};
use core::ptr;
use libc::{FILE, addrinfo, size_t, ssize_t};

unsafe extern "C" {
    static stdout: *mut FILE;
    static stderr: *mut FILE;
    fn vsnprintf(buf: *mut c_char, len: size_t, format: *const c_char, list: *mut c_void) -> c_int;
    fn vfprintf(stream: *mut FILE, format: *const c_char, list: *mut c_void) -> c_int;
    fn __getdelim(
        line: *mut *mut c_char,
        len: *mut size_t,
        delimiter: c_int,
        stream: *mut FILE,
    ) -> ssize_t;
}

/// The descriptor of a standard stream.
fn standard(stream: *mut FILE) -> Option<c_int> {
    // SAFETY: libc sets both before the image starts and nobody changes them.
    let (out, err) = unsafe { (stdout, stderr) };
    if stream == out {
        Some(1)
    } else if stream == err {
        Some(2)
    } else {
        None
    }
}

/// Writes all `len` bytes at `from`, which the host may see; false if it cannot.
fn write_all(fd: c_int, from: *const u8, len: usize) -> bool {
    let mut done = 0;
    while done < len {
        // SAFETY: `len` bytes are readable.
        let n = unsafe { libc::write(fd, from.wrapping_add(done).cast(), len - done) };
        if n <= 0 && errno() != libc::EINTR {
            return false;
        }
        done += n.max(0) as usize;
    }
    true
}

/// Writes what a formatting function put into a slot, and returns its count.
fn print(fd: c_int, slot: &Slot, n: c_int) -> c_int {
    let len = usize::try_from(n).unwrap_or(0).min(DATA_MAX - 1);
    if n >= 0 && !write_all(fd, slot.request(), len) {
        return -1;
    }
    n
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_vfprintf(
    stream: *mut FILE,
    format: *const c_char,
    list: *mut c_void,
) -> c_int {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { vfprintf(stream, format, list) };
    };
    let Some(fd) = standard(stream) else {
        return refuse(env, libc::EBADF, format_args!("vfprintf to a file")) as c_int;
    };
    let Some(slot) = Slot::claim() else {
        return fail(libc::ENOMEM) as c_int;
    };
    // SAFETY: the slot has room; format and arguments are the caller's, read in user mode.
    let n = unsafe { vsnprintf(slot.request().cast(), DATA_MAX, format, list) };
    print(fd, &slot, n)
}

/// Variadic in C. On x86-64 the first five integer arguments after the format come in registers, and
/// the image passes no more, nor floating point.
#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_printf(
    format: *const c_char,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
) -> c_int {
    if env::active().is_none() {
        // SAFETY: the caller's arguments; those it did not pass are not read.
        return unsafe { libc::printf(format, a, b, c, d, e) };
    }
    let Some(slot) = Slot::claim() else {
        return fail(libc::ENOMEM) as c_int;
    };
    // SAFETY: as above; the slot has room.
    let n = unsafe { libc::snprintf(slot.request().cast(), DATA_MAX, format, a, b, c, d, e) };
    print(1, &slot, n)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_perror(prefix: *const c_char) {
    if env::active().is_none() {
        // SAFETY: the caller's string.
        return unsafe { libc::perror(prefix) };
    }
    let error = errno();
    if let Some(slot) = Slot::claim() {
        let format = c"%s: %s\n".as_ptr();
        // SAFETY: the slot has room; the strings are the caller's and libc's.
        let n = unsafe {
            let text = libc::strerror(error);
            libc::snprintf(slot.request().cast(), DATA_MAX, format, prefix, text)
        };
        print(2, &slot, n);
    }
    env::set_errno(error);
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_fwrite(
    from: *const c_void,
    size: size_t,
    count: size_t,
    stream: *mut FILE,
) -> size_t {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::fwrite(from, size, count, stream) };
    };
    let Some(fd) = standard(stream) else {
        refuse(env, libc::EBADF, format_args!("fwrite to a file"));
        return 0;
    };
    let Some(slot) = Slot::claim() else { return 0 };
    let len = size.saturating_mul(count);
    let mut done = 0;
    while done < len {
        let piece = (len - done).min(DATA_MAX);
        // SAFETY: the caller passed `len` bytes; the slot has room for a piece.
        unsafe {
            let from = from.cast::<u8>().add(done);
            slot.request().copy_from_nonoverlapping(from, piece);
        }
        if !write_all(fd, slot.request(), piece) {
            return done / size;
        }
        done += piece;
    }
    count
}

/// Opens files of this node: the image reads processor features this way.
#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_fopen64(path: *const c_char, mode: *const c_char) -> *mut FILE {
    const MODE_MAX: usize = 16;
    if env::active().is_none() {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::fopen64(path, mode) };
    }
    let copied = Slot::claim().and_then(|slot| {
        let path_copy = copy(path, slot.request(), super::call::PATH_MAX)?;
        let mode_copy = copy(mode, slot.reply(), MODE_MAX)?;
        Some((slot, path_copy, mode_copy))
    });
    let Some((slot, path, mode)) = copied else {
        fail(libc::ENAMETOOLONG);
        return ptr::null_mut();
    };
    let (file, error) = slot.on_host_stack(move || {
        // SAFETY: strings in the slot.
        (unsafe { libc::fopen64(path, mode) }, errno())
    });
    if file.is_null() {
        env::set_errno(error);
    }
    file
}

/// Copies a string of less than `max` bytes, null as null.
fn copy(text: *const c_char, to: *mut u8, max: usize) -> Option<*const c_char> {
    if text.is_null() {
        return Some(text);
    }
    // SAFETY: the wrapper's caller passed a string; `to` has `max` bytes.
    unsafe {
        let len = libc::strnlen(text, max);
        if len == max {
            return None;
        }
        to.copy_from_nonoverlapping(text.cast(), len + 1);
    }
    Some(to.cast())
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap___getdelim(
    line: *mut *mut c_char,
    len: *mut size_t,
    delimiter: c_int,
    stream: *mut FILE,
) -> ssize_t {
    if env::active().is_none() {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { __getdelim(line, len, delimiter, stream) };
    }
    let Some(slot) = Slot::claim() else {
        return fail(libc::ENOMEM) as ssize_t;
    };
    let line_copy: *mut *mut c_char = slot.reply().cast();
    let len_copy: *mut size_t = slot.tmp().cast();
    // SAFETY: the caller's line (libc's own memory) and length, through copies in the slot.
    unsafe {
        line_copy.write(line.read());
        len_copy.write(len.read());
        let (n, error) = slot
            .on_host_stack(move || (__getdelim(line_copy, len_copy, delimiter, stream), errno()));
        line.write(line_copy.read());
        len.write(len_copy.read());
        if n < 0 {
            env::set_errno(error);
        }
        n
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_fclose(stream: *mut FILE) -> c_int {
    if env::active().is_none() {
        // SAFETY: the caller's stream.
        return unsafe { libc::fclose(stream) };
    }
    let Some(slot) = Slot::claim() else {
        return fail(libc::ENOMEM) as c_int;
    };
    // SAFETY: the caller's stream.
    slot.on_host_stack(move || unsafe { libc::fclose(stream) })
}

/// Resolves with this node's resolver. The result is libc's own memory.
#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_getaddrinfo(
    host: *const c_char,
    service: *const c_char,
    hints: *const addrinfo,
    result: *mut *mut addrinfo,
) -> c_int {
    let Some(env) = env::active() else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::getaddrinfo(host, service, hints, result) };
    };
    resolve(env, host, service, hints, result).unwrap_or(libc::EAI_MEMORY)
}

fn resolve(
    _: &'static Env,
    host: *const c_char,
    service: *const c_char,
    hints: *const addrinfo,
    result: *mut *mut addrinfo,
) -> Option<c_int> {
    const NAME_MAX: usize = 1024;
    let slot = Slot::claim()?;
    let host = copy(host, slot.request(), NAME_MAX)?;
    let service = copy(service, slot.request().wrapping_add(NAME_MAX), NAME_MAX)?;
    let mut hints_copy: *mut addrinfo = ptr::null_mut();
    if !hints.is_null() {
        hints_copy = slot.tmp().cast();
        // SAFETY: the caller passed hints, the slot has room.
        unsafe { hints_copy.write(hints.read()) };
    }
    let found: *mut *mut addrinfo = slot.reply().cast();
    let code = slot.on_host_stack(move || {
        // SAFETY: strings and structures in the slot.
        unsafe { libc::getaddrinfo(host, service, hints_copy, found) }
    });
    if code == 0 {
        // SAFETY: the caller passed a place for the result, libc filled the slot's.
        unsafe { result.write(found.read()) };
    }
    Some(code)
}
