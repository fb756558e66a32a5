//! Processes, threads, libc's streams and the resolver.

use super::guest::{errno, memory, on_both, place, run, seal, text};
use crate::hostcall::{fd::*, proc::*, slot, sock::*, stdio::*, syscall::*};
use core::ffi::{c_char, c_int, c_void};
use core::ptr;

struct Child {
    fd: c_int,
    argv: *const *const c_char,
    path: *const c_char,
}

/// What `run_helper`'s child does: reports on a socket, then becomes another program.
extern "C" fn child(arg: *mut c_void) -> c_int {
    // SAFETY: the parent's structure, in shared memory, while it waits.
    unsafe {
        let child = &*arg.cast::<Child>();
        let byte = memory(1);
        byte.write(b'c');
        __wrap_write(child.fd, byte.cast(), 1);
        __wrap_close(child.fd);
        if !child.path.is_null() {
            __wrap_execv(child.path, child.argv);
        }
        // exit would run the test process's own exit functions.
        __wrap_syscall(libc::SYS_exit, 33, 0, 0, 0, 0, 0) as c_int
    }
}

fn spawn(path: *const c_char, args: &[&str]) -> (c_int, u8) {
    let fds = place([-1_i32; 2]);
    let vector = memory((args.len() + 1) * 8).cast::<*const c_char>();
    // SAFETY: guest memory of these sizes.
    unsafe {
        assert_eq!(
            __wrap_socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, fds.cast()),
            0
        );
        for (index, arg) in args.iter().enumerate() {
            vector.add(index).write(text(arg));
        }
        vector.add(args.len()).write(ptr::null());
        let arg = place(Child {
            fd: (*fds)[1],
            argv: vector,
            path,
        });
        let stack = memory(4096).wrapping_add(4096);
        seal();
        let pid = __wrap_clone(
            child,
            stack.cast(),
            libc::CLONE_VM | libc::SIGCHLD,
            arg.cast(),
        );
        assert!(pid > 0, "{}", errno());
        let byte = memory(1);
        assert_eq!(__wrap_close((*fds)[1]), 0);
        seal();
        assert_eq!(__wrap_read((*fds)[0], byte.cast(), 1), 1);
        let status = place(-1);
        seal();
        assert_eq!(__wrap_waitpid(pid, status, libc::__WALL), pid);
        __wrap_close((*fds)[0]);
        (*status, *byte)
    }
}

#[test]
fn helpers_run_and_are_waited_for() {
    on_both(|_| {
        let (status, byte) = spawn(ptr::null(), &[]);
        assert_eq!((libc::WEXITSTATUS(status), byte), (33, b'c'));
        // Other tests' threads take slots too, but not during each of these.
        let took_nothing = (0..20).filter(|_| {
            let free = slot::free();
            let (status, byte) = spawn(text("/bin/sh"), &["sh", "-c", "exit 7"]);
            assert_eq!((libc::WEXITSTATUS(status), byte), (7, b'c'));
            slot::free() >= free
        });
        assert_ne!(took_nothing.count(), 0, "every exec takes a slot with it");
        let (status, _) = spawn(text("/nonexistent"), &["x"]);
        assert_eq!(libc::WEXITSTATUS(status), 33);
        let none = ptr::null_mut();
        assert_eq!(
            (__wrap_clone(child, none, libc::SIGCHLD, none), errno()),
            (-1, libc::ENOSYS)
        );
        assert_eq!((__wrap_fork(), errno()), (-1, libc::ENOSYS));
        assert_eq!(
            (__wrap_waitpid(-1, place(0), libc::WNOHANG), errno()),
            (-1, libc::ECHILD)
        );
    });
}

extern "C" fn thread(arg: *mut c_void) -> *mut c_void {
    // SAFETY: the test's word.
    unsafe { arg.cast::<u64>().write(99) };
    arg
}

#[test]
fn threads_and_limits() {
    run(0, || {
        // SAFETY: zero is a valid value of all of them.
        unsafe {
            let (handle, word) = (place(0 as libc::pthread_t), place(0_u64));
            seal();
            assert_eq!(
                __wrap_pthread_create(handle, ptr::null(), thread, word.cast()),
                0
            );
            assert_eq!(libc::pthread_join(*handle, ptr::null_mut()), 0);
            assert_eq!(*word, 99);
            let limit = place(core::mem::zeroed::<libc::rlimit64>());
            seal();
            assert_eq!(__wrap_getrlimit64(libc::RLIMIT_NOFILE, limit), 0);
            assert!((*limit).rlim_cur > 0);
            seal();
            assert_eq!(__wrap_setrlimit64(libc::RLIMIT_NOFILE, limit), 0);
            let name = place(core::mem::zeroed::<libc::utsname>());
            seal();
            assert_eq!(__wrap_uname(name), 0);
            assert_eq!((*name).sysname[0] as u8, b'L');
        }
    });
}

#[test]
fn system_calls_by_number() {
    on_both(|_| {
        // SAFETY: no conditions.
        let (pid, tid) = unsafe { (libc::getpid(), libc::gettid()) };
        assert_eq!(
            __wrap_syscall(libc::SYS_getpid, 0, 0, 0, 0, 0, 0),
            i64::from(pid)
        );
        assert_eq!(
            __wrap_syscall(libc::SYS_gettid, 0, 0, 0, 0, 0, 0),
            i64::from(tid)
        );
        assert_eq!(
            (__wrap_syscall(libc::SYS_sysinfo, 0, 0, 0, 0, 0, 0), errno()),
            (-1, libc::ENOSYS)
        );
        let word = place(5_u32);
        seal();
        let wake = libc::FUTEX_WAKE as usize;
        let woken = __wrap_syscall(libc::SYS_futex, word as usize, wake, 1, 0, 0, 0);
        assert_eq!(woken, 0, "{}", errno());
        seal();
        let wait = libc::FUTEX_WAIT as usize;
        assert_eq!(
            __wrap_syscall(libc::SYS_futex, word as usize, wait, 6, 0, 0, 0),
            -1
        );
        assert_eq!(errno(), libc::EAGAIN);
        // SAFETY: zero is a valid message.
        let msg = place(unsafe { core::mem::zeroed::<libc::msghdr>() });
        let result = __wrap_syscall(libc::SYS_sendmsg, 0xfffff, msg as usize, 0, 0, 0, 0);
        assert_eq!((result, errno()), (-1, libc::EBADF));
    });
}

#[test]
fn files_are_read_by_line() {
    run(0, || {
        // SAFETY: libc's line reading with all its places in guest memory.
        unsafe {
            let (path, mode) = (text("/proc/cpuinfo"), text("r"));
            seal();
            let file = __wrap_fopen64(path, mode);
            assert!(!file.is_null());
            let (line, len) = (place(ptr::null_mut::<c_char>()), place(0_usize));
            let mut flags = false;
            seal();
            while __wrap___getdelim(line, len, b'\n'.into(), file) > 0 {
                flags |= core::ffi::CStr::from_ptr(*line)
                    .to_bytes()
                    .starts_with(b"flags");
            }
            libc::free((*line).cast());
            assert!(flags);
            assert_eq!(__wrap_fclose(file), 0);
            assert!(__wrap_fopen64(text("/nonexistent"), mode).is_null());
            assert_eq!(errno(), libc::ENOENT);
        }
    });
}

#[test]
fn text_is_written() {
    unsafe extern "C" {
        static stderr: *mut libc::FILE;
    }
    run(1, || {
        let line = text("fwrite and printf of the host-call tests\n");
        seal();
        // SAFETY: libc's own stream.
        assert_eq!(__wrap_fwrite(line.cast(), 41, 1, unsafe { stderr }), 1);
        seal();
        assert_eq!(
            __wrap_printf(text("%.*s %s"), 6, line as usize, line as usize, 0, 0),
            48
        );
    });
}

#[test]
fn names_are_resolved() {
    run(1, || {
        let result = place(ptr::null_mut::<libc::addrinfo>());
        // SAFETY: zero are valid hints; the result is libc's.
        unsafe {
            let hints = place(core::mem::zeroed::<libc::addrinfo>());
            (*hints).ai_socktype = libc::SOCK_DGRAM;
            (*hints).ai_flags = libc::AI_NUMERICHOST;
            let (host, port) = (text("127.0.0.1"), text("80"));
            seal();
            assert_eq!(__wrap_getaddrinfo(host, port, hints, result), 0);
            assert_eq!((**result).ai_family, libc::AF_INET);
            libc::freeaddrinfo(*result);
            let bad = text("not an address");
            assert_eq!(
                __wrap_getaddrinfo(bad, port, hints, result),
                libc::EAI_NONAME
            );
        }
    });
}
