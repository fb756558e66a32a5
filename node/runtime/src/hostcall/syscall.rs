//! Wrapper of libc's `syscall`: the numbers that the image uses, and no others.

use super::call::refuse;
use super::env::{self, Env, fail};
use super::proc::ExecArea;
use super::slot::Slot;
use core::ffi::{c_char, c_int, c_long, c_uint};
use libc::{sock_filter, sock_fprog};

/// How often a futex call on a guest page is tried again after that page was taken away between the
/// touch and the call.
const FUTEX_TRIES: usize = 1000;

/// Variadic in C; on x86-64 an argument that was not passed is a register that is not looked at, and
/// the seventh a word of the caller's stack.
#[unsafe(no_mangle)]
pub(super) extern "C" fn __wrap_syscall(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    let env = match number {
        libc::SYS_renameat2 => env::for_path(ptr(b)),
        libc::SYS_getdents64 => env::for_fd(a as c_int),
        libc::SYS_utimensat if b == 0 => env::for_fd(a as c_int),
        libc::SYS_utimensat => env::for_path(ptr(b)),
        _ => env::active(),
    };
    let Some(env) = env else {
        // SAFETY: the caller's arguments, as they are.
        return unsafe { libc::syscall(number, a, b, c, d, e, f) };
    };
    match number {
        libc::SYS_getpid
        | libc::SYS_gettid
        | libc::SYS_tgkill
        | libc::SYS_exit
        | libc::SYS_exit_group
        | libc::SYS_close_range => {
            // SAFETY: values only.
            unsafe { libc::syscall(number, a, b, c) }
        }
        libc::SYS_futex => futex(env, a, b, c, d, e, f),
        libc::SYS_sendmsg => super::sock::__wrap_sendmsg(a as c_int, ptr(b), c as c_int) as c_long,
        libc::SYS_renameat2 if a as c_int == libc::AT_FDCWD && c as c_int == libc::AT_FDCWD => {
            super::fs::rename_with_flags(env, ptr(b), ptr(d), e as c_uint).into()
        }
        libc::SYS_utimensat => super::fs::set_times(env, a as c_int, ptr(b), ptr(c)).into(),
        libc::SYS_getdents64 => super::fs::entries(env, a as c_int, ptr::<u8>(b).cast_mut(), c),
        libc::SYS_execveat => execveat(env, a as c_int, ptr(b), ptr(c), ptr(d), e as c_int),
        libc::SYS_seccomp => seccomp(env, a, b, ptr(c)),
        _ => refuse(
            env,
            libc::ENOSYS,
            format_args!("system call {number}: not known"),
        ),
    }
}

fn ptr<T>(at: usize) -> *const T {
    core::ptr::with_exposed_provenance(at)
}

/// On a word that only this node knows, as it is. A word in guest memory (a stub's) must be present
/// when the host looks at it: it is touched first, and again if it was taken away meanwhile.
fn futex(env: &'static Env, at: usize, op: usize, val: usize, d: usize, e: usize, f: usize) -> i64 {
    let guest = env.guest(ptr::<u32>(at), size_of::<u32>());
    let mut tries = FUTEX_TRIES;
    loop {
        if guest {
            // A write, because waking may need a writable mapping; as an instruction, because the
            // compiler knows that an atomic or with 0 need not write.
            // SAFETY: the caller's futex word, whose value stays.
            unsafe {
                core::arch::asm!("lock or dword ptr [{}], 0", in(reg) at, options(nostack));
            }
        }
        // SAFETY: the word is the caller's, and the other arguments are values or null in the image.
        let result = unsafe { libc::syscall(libc::SYS_futex, at, op, val, d, e, f) };
        tries -= 1;
        if result >= 0 || !guest || env::errno() != libc::EFAULT || tries == 0 {
            return result;
        }
    }
}

/// The stub binary, by descriptor.
fn execveat(
    env: &'static Env,
    fd: c_int,
    path: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
    flags: c_int,
) -> c_long {
    let super::env::Place::Here(fd) = env.place(fd) else {
        return refuse(
            env,
            libc::EBADF,
            format_args!("execveat of {fd:#x} of another node"),
        );
    };
    let Some(mut area) = ExecArea::new() else {
        return fail(libc::ENOMEM);
    };
    // SAFETY: the caller passed a path and vectors; the copies are theirs, in a slot.
    unsafe {
        match (area.string(path), area.vector(argv), area.vector(envp)) {
            (Some(path), Some(argv), Some(envp)) => {
                libc::syscall(libc::SYS_execveat, fd, path, argv, envp, flags)
            }
            _ => fail(libc::E2BIG),
        }
    }
}

fn seccomp(env: &'static Env, operation: usize, flags: usize, program: *const sock_fprog) -> i64 {
    const INSTRUCTIONS_MAX: usize = 4096;
    if !env.guest(program, size_of::<sock_fprog>()) {
        // SAFETY: the caller's arguments, none of them in guest memory.
        return unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, program) };
    }
    let Some(slot) = Slot::claim() else {
        return fail(libc::ENOMEM);
    };
    let copy: *mut sock_fprog = slot.tmp().cast();
    let filter: *mut sock_filter = slot.request().cast();
    // SAFETY: the caller passed a program of `len` instructions; the slot has room for them.
    unsafe {
        let len = usize::from((*program).len);
        if len > INSTRUCTIONS_MAX {
            return fail(libc::EINVAL);
        }
        filter.copy_from_nonoverlapping((*program).filter, len);
        copy.write(sock_fprog {
            len: len as u16,
            filter,
        });
        libc::syscall(libc::SYS_seccomp, operation, flags, copy)
    }
}
