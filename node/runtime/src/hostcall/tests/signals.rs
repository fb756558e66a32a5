//! Signals, clocks and timers, and handlers that call wrappers inside wrappers.

use super::guest::{self, CLOCK_OFFSET_NS, errno, memory, on_both, place, run, seal, text};
use crate::hostcall::{fd::*, fs::*, sig::*, slot, time::*};
use core::cell::Cell;
use core::ffi::c_void;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use libc::sigset_t;

fn set(signals: &[i32]) -> *mut sigset_t {
    // SAFETY: libc's functions on a set in guest memory.
    unsafe {
        let set = place(core::mem::zeroed::<sigset_t>());
        for &signal in signals {
            libc::sigaddset(set, signal);
        }
        set
    }
}

fn has(set: *const sigset_t, signal: i32) -> bool {
    // SAFETY: a set.
    unsafe { libc::sigismember(set, signal) == 1 }
}

#[test]
fn no_mask_blocks_the_fault_signals() {
    on_both(|_| {
        let all = set(&(1..65).collect::<Vec<_>>());
        let (before, now) = (set(&[]), set(&[]));
        seal();
        assert_eq!(__wrap_sigprocmask(libc::SIG_SETMASK, all, before), 0);
        seal();
        assert_eq!(__wrap_sigprocmask(libc::SIG_BLOCK, all, now), 0);
        assert_eq!(__wrap_pthread_sigmask(libc::SIG_BLOCK, ptr::null(), now), 0);
        for signal in [libc::SIGALRM, libc::SIGIO, libc::SIGRTMIN(), 64] {
            assert!(has(now, signal), "{signal}");
        }
        for signal in [libc::SIGSEGV, libc::SIGBUS, 32, 33] {
            assert!(!has(now, signal), "{signal}");
        }
        assert_eq!(
            __wrap_sigprocmask(libc::SIG_UNBLOCK, set(&[libc::SIGIO]), ptr::null_mut()),
            0
        );
        __wrap_sigprocmask(0, ptr::null(), now);
        assert!(!has(now, libc::SIGIO) && has(now, libc::SIGALRM));
        assert_eq!(
            (__wrap_sigprocmask(77, all, ptr::null_mut()), errno()),
            (-1, libc::EINVAL)
        );
        assert_eq!(
            __wrap_pthread_sigmask(77, all, ptr::null_mut()),
            libc::EINVAL
        );
        assert_eq!(
            __wrap_sigprocmask(libc::SIG_SETMASK, before, ptr::null_mut()),
            0
        );
    });
}

#[test]
fn actions_are_set_and_read() {
    extern "C" fn handler(_: i32) {}
    run(0, || {
        // SAFETY: zero is a valid action.
        unsafe {
            let signal = libc::SIGURG;
            let new = place(core::mem::zeroed::<libc::sigaction>());
            let old = place(core::mem::zeroed::<libc::sigaction>());
            (*new).sa_sigaction = handler as *const () as usize;
            libc::sigfillset(&raw mut (*new).sa_mask);
            seal();
            assert_eq!(__wrap_sigaction(signal, new, old), 0);
            assert_eq!((*old).sa_sigaction, libc::SIG_DFL);
            seal();
            assert_eq!(__wrap_sigaction(signal, ptr::null(), old), 0);
            assert_eq!((*old).sa_sigaction, handler as *const () as usize);
            assert!(has(&raw const (*old).sa_mask, libc::SIGALRM));
            assert!(!has(&raw const (*old).sa_mask, libc::SIGSEGV));
            assert_eq!(
                __wrap_signal(signal, libc::SIG_IGN),
                handler as *const () as usize
            );
            assert_eq!(__wrap_signal(signal, libc::SIG_DFL), libc::SIG_IGN);
            assert_eq!(
                (__wrap_sigaction(999, new, old), errno()),
                (-1, libc::EINVAL)
            );
            assert_eq!(
                (__wrap_signal(999, libc::SIG_DFL), errno()),
                (libc::SIG_ERR, libc::EINVAL)
            );

            let stack = place(core::mem::zeroed::<libc::stack_t>());
            seal();
            assert_eq!(__wrap_sigaltstack(ptr::null(), stack), 0);
            assert!((*stack).ss_size > 0);
            seal();
            assert_eq!(__wrap_sigaltstack(stack, ptr::null_mut()), 0);
        }
    });
}

#[test]
fn queued_signals_arrive_with_their_value() {
    on_both(|node| {
        let signal = libc::SIGRTMIN() + 5;
        let blocked = set(&[signal]);
        assert_eq!(
            __wrap_sigprocmask(libc::SIG_BLOCK, blocked, ptr::null_mut()),
            0
        );
        seal();
        let fd = __wrap_signalfd(-1, blocked, libc::SFD_NONBLOCK);
        assert_eq!(fd >> 20, i32::from(node));
        // SAFETY: this thread runs.
        let me = unsafe { libc::pthread_self() };
        let value = ptr::without_provenance_mut::<c_void>(42);
        assert_eq!(__wrap_pthread_sigqueue(me, signal, value), 0);
        // SAFETY: zero is a valid value.
        let info = place(unsafe { core::mem::zeroed::<libc::signalfd_siginfo>() });
        seal();
        assert_eq!(__wrap_read(fd, info.cast(), 128), 128);
        // SAFETY: filled by the read.
        unsafe { assert_eq!(((*info).ssi_signo as i32, (*info).ssi_int), (signal, 42)) };
        assert_eq!(
            (__wrap_read(fd, info.cast(), 128), errno()),
            (-1, libc::EAGAIN)
        );
        __wrap_close(fd);
    });
}

#[test]
fn clocks_have_the_nodes_offset() {
    on_both(|node| {
        // SAFETY: zero is a valid time.
        let (mine, host) = unsafe {
            (
                place(core::mem::zeroed::<libc::timespec>()),
                &mut core::mem::zeroed(),
            )
        };
        let ns = |time: &libc::timespec| time.tv_sec * 1_000_000_000 + time.tv_nsec;
        for clock in [libc::CLOCK_MONOTONIC, libc::CLOCK_REALTIME] {
            seal();
            assert_eq!(__wrap_clock_gettime(clock, mine), 0);
            // SAFETY: both were filled; the second in user mode (vDSO).
            let difference = unsafe {
                libc::clock_gettime(clock, host);
                assert!((0..1_000_000_000).contains(&(*mine).tv_nsec));
                ns(&*mine) - ns(host)
            };
            let offset = if node == 1 && clock == libc::CLOCK_MONOTONIC {
                CLOCK_OFFSET_NS
            } else {
                0
            };
            assert!((difference - offset).abs() < 1_000_000_000, "{difference}");
        }
        assert_eq!(
            (__wrap_clock_gettime(999, mine), errno()),
            (-1, libc::EINVAL)
        );
        let bytes = memory(4096);
        seal();
        assert_eq!(__wrap_getrandom(bytes.cast(), 4096, 0), 4096);
        // SAFETY: filled above.
        let random = unsafe { core::slice::from_raw_parts(bytes, 4096) };
        assert!(random.iter().any(|&byte| byte != 0));
        assert_eq!(__wrap_sleep(0), 0);
    });
}

static TICKS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static PIPE: Cell<[i32; 2]> = const { Cell::new([-1; 2]) };
    static BUFFER: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// Interrupt-time kernel code: it calls wrappers of every kind, inside whatever was interrupted.
extern "C" fn on_tick(_: i32) {
    let saved = errno();
    let [from, to] = PIPE.get();
    let buffer = BUFFER.get();
    // SAFETY: guest memory of this thread's handler.
    unsafe {
        buffer.write_bytes(0xcd, 200);
        assert_eq!(__wrap_write(to, buffer.cast(), 200), 200);
        assert_eq!(__wrap_read(from, buffer.cast(), 200), 200);
        let time = buffer.cast::<libc::timespec>();
        assert_eq!(__wrap_clock_gettime(libc::CLOCK_MONOTONIC, time), 0);
        let mask = buffer.add(512).cast::<sigset_t>();
        assert_eq!(__wrap_sigprocmask(libc::SIG_BLOCK, ptr::null(), mask), 0);
        assert!(has(mask, libc::SIGALRM) && !has(mask, libc::SIGSEGV));
        let stat = buffer.add(1024).cast::<libc::stat64>();
        assert_eq!(__wrap_fstat64(from, stat), 0);
        assert_eq!((*stat).st_mode & libc::S_IFMT, libc::S_IFIFO);
    }
    TICKS.fetch_add(1, Ordering::Relaxed);
    crate::hostcall::env::set_errno(saved);
}

/// Data stays intact while timer interrupts call wrappers in the middle of wrappers, and while all
/// guest memory, the stack included, is taken away again and again.
#[test]
fn wrappers_nest_in_handlers() {
    static DONE: AtomicBool = AtomicBool::new(false);
    const ROUNDS: usize = 3000;
    let free = slot::free();
    let (from, to) = std::io::pipe().unwrap();
    use std::os::fd::AsRawFd;
    let fds = [from.as_raw_fd(), to.as_raw_fd()];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            run(0, guest::seal);
            while !DONE.load(Ordering::Relaxed) {
                guest::seal();
                std::thread::sleep(std::time::Duration::from_micros(50));
            }
        });
        let rounds = |node: u16| {
            PIPE.set(fds);
            BUFFER.set(memory(8192));
            // SAFETY: zero is a valid value of all of them.
            unsafe {
                let action = place(core::mem::zeroed::<libc::sigaction>());
                (*action).sa_sigaction = on_tick as *const () as usize;
                (*action).sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
                assert_eq!(__wrap_sigaction(libc::SIGALRM, action, ptr::null_mut()), 0);
                let event = place(core::mem::zeroed::<libc::sigevent>());
                (*event).sigev_notify = libc::SIGEV_THREAD_ID;
                (*event).sigev_signo = libc::SIGALRM;
                (*event).sigev_notify_thread_id = libc::gettid();
                let timer = place(core::mem::zeroed::<libc::timer_t>());
                seal();
                assert_eq!(__wrap_timer_create(libc::CLOCK_MONOTONIC, event, timer), 0);
                let period = libc::timespec {
                    tv_sec: 0,
                    tv_nsec: 150_000,
                };
                let times = place(libc::itimerspec {
                    it_interval: period,
                    it_value: period,
                });
                let old = place(core::mem::zeroed::<libc::itimerspec>());
                assert_eq!(__wrap_timer_settime(*timer, 0, times, old), 0);

                let fd = __wrap_open64(text("/tmp"), libc::O_RDWR | libc::O_TMPFILE, 0o600);
                let (out, back) = (memory(70_000), memory(70_000));
                let stat = place(core::mem::zeroed::<libc::stat64>());
                let mask = set(&[]);
                for round in 0..ROUNDS {
                    let len = 1 + round * 23 % 70_000;
                    out.write_bytes(round as u8, len);
                    assert_eq!(__wrap_pwrite64(fd, out.cast(), len, 0), len as isize);
                    assert_eq!(__wrap_pread64(fd, back.cast(), len, 0), len as isize);
                    let bytes = core::slice::from_raw_parts(back, len);
                    assert!(
                        bytes.iter().all(|&byte| byte == round as u8),
                        "round {round}"
                    );
                    assert_eq!(__wrap_fstat64(fd, stat), 0);
                    assert_eq!((*stat).st_mode & libc::S_IFMT, libc::S_IFREG);
                    let name = libc::SIGUSR1 + (round as i32 & 1) * 2;
                    assert_eq!(
                        __wrap_sigprocmask(libc::SIG_BLOCK, set_one(mask, name), ptr::null_mut()),
                        0
                    );
                    assert_eq!(
                        __wrap_sigprocmask(libc::SIG_UNBLOCK, mask, ptr::null_mut()),
                        0
                    );
                    assert_eq!(
                        (__wrap_access(text_at(back, node), 0), errno()),
                        (-1, libc::ENOENT)
                    );
                }
                (*times).it_value.tv_nsec = 0;
                assert_eq!(__wrap_timer_settime(*timer, 0, times, ptr::null_mut()), 0);
                libc::timer_delete(*timer);
                __wrap_close(fd);
            }
        };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| on_both(rounds)));
        DONE.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    assert!(TICKS.load(Ordering::Relaxed) > 100);
    // Each thread keeps one; what nested ones took is back. Other tests' threads take theirs, too.
    assert!(slot::free() + 40 > free, "{} of {free}", slot::free());
}

fn set_one(set: *mut sigset_t, signal: i32) -> *mut sigset_t {
    // SAFETY: a set in guest memory.
    unsafe {
        libc::sigemptyset(set);
        libc::sigaddset(set, signal);
    }
    set
}

fn text_at(at: *mut u8, node: u16) -> *const libc::c_char {
    let name = b"/nonexistent/0\0";
    // SAFETY: guest memory longer than the name.
    unsafe {
        at.copy_from_nonoverlapping(name.as_ptr(), name.len());
        at.add(13).write(b'0' + node as u8);
    }
    at.cast()
}
