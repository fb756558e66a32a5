//! A guest to call the wrappers from: memory whose pages come when they are touched and go at any
//! time, a stack in it, and a filter that ends the process when a system call is shown an address of
//! it. Two nodes: the requests of node 1 are served in place.

use crate::hostcall::env::{Env, install};
use crate::hostcall::{serve, slot};
use core::cell::Cell;
use core::ffi::c_void;
use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, Once};

/// The upper half of every guest address; no other address or value in the tests has it.
const UPPER: u32 = 0x0000_5a5a;
const BASE: usize = (UPPER as usize) << 32;
const BYTES: usize = 256 << 20;
const PAGE: usize = 4096;
const STACK_BYTES: usize = 64 * 1024;
const SIGNAL_STACK_BYTES: usize = 128 * 1024;

static PID: AtomicI32 = AtomicI32::new(0);
static ALLOTTED: AtomicUsize = AtomicUsize::new(0);
pub(super) static FORWARDED: AtomicUsize = AtomicUsize::new(0);
pub(super) static NOTED: AtomicUsize = AtomicUsize::new(0);

pub(super) const CLOCK_OFFSET_NS: i64 = 5_000_000_001;

/// What a panic on a guest stack said: printing it there would show that stack to the host.
static SAID: Mutex<String> = Mutex::new(String::new());

thread_local! {
    static NODE: Cell<u16> = const { Cell::new(0) };
    static IN_GUEST: Cell<bool> = const { Cell::new(false) };
}

static ENV: Env = Env {
    node: || NODE.get(),
    is_guest: |at, len| at < BASE + BYTES && at.saturating_add(len) > BASE,
    forward: |owner, request, reply| {
        FORWARDED.fetch_add(1, Ordering::Relaxed);
        let asking = NODE.replace(owner);
        let mut answer = Vec::new();
        serve(request, &mut answer);
        NODE.set(asking);
        reply[..answer.len()].copy_from_slice(&answer);
        answer.len()
    },
    clock_offset_ns: || if NODE.get() == 0 { 0 } else { CLOCK_OFFSET_NS },
    log: |_| {
        NOTED.fetch_add(1, Ordering::Relaxed);
    },
};

extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: what the kernel passes to a handler of SIGSEGV.
    unsafe {
        let saved = *libc::__errno_location();
        let at = (*info).si_addr() as usize;
        let registers = &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let stack = registers[libc::REG_RSP as usize] as usize;
        if !(BASE..BASE + BYTES).contains(&at) {
            libc::signal(signal, libc::SIG_DFL);
            return;
        }
        // A child that shares memory runs on a slot's stack by design.
        if slot::holds(stack) && libc::getpid() == PID.load(Ordering::Relaxed) {
            let text = b"guest memory touched on a host stack\n";
            libc::write(2, text.as_ptr().cast(), text.len());
            libc::abort();
        }
        let page = core::ptr::with_exposed_provenance_mut::<c_void>(at & !(PAGE - 1));
        if libc::mprotect(page, PAGE, libc::PROT_READ | libc::PROT_WRITE) != 0 {
            libc::abort();
        }
        *libc::__errno_location() = saved;
    }
}

extern "C" fn on_filtered(_: i32, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: siginfo of SIGSYS: the system call's number follows the address.
    unsafe {
        let number = info.cast::<i32>().add(6).read();
        // Without allocation: this may be inside one.
        let mut text = *b"system call 000 was shown a guest address\n";
        for (digit, power) in [(12, 100), (13, 10), (14, 1)] {
            text[digit] = b'0' + (number / power % 10) as u8;
        }
        libc::write(2, text.as_ptr().cast(), text.len());
        libc::abort();
    }
}

fn set_up() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: a new mapping at an address that nothing else uses, and handlers for signals that
        // no other test uses.
        unsafe {
            let at = core::ptr::with_exposed_provenance_mut(BASE);
            let flags = libc::MAP_PRIVATE
                | libc::MAP_ANONYMOUS
                | libc::MAP_NORESERVE
                | libc::MAP_FIXED_NOREPLACE;
            assert_eq!(libc::mmap(at, BYTES, libc::PROT_NONE, flags, -1, 0), at);
            let handlers: [(i32, usize); 2] = [
                (libc::SIGSEGV, on_fault as *const () as usize),
                (libc::SIGSYS, on_filtered as *const () as usize),
            ];
            for (signal, handler) in handlers {
                let mut action: libc::sigaction = core::mem::zeroed();
                action.sa_sigaction = handler;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
                assert_eq!(libc::sigaction(signal, &action, core::ptr::null_mut()), 0);
            }
        }
        // What the tests themselves allocate comes from the main heap: for others, libc looks at the
        // number of processors and at the memory policy, with buffers on the stack.
        // SAFETY: a parameter of the allocator.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
        PID.store(std::process::id() as i32, Ordering::Relaxed);
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if IN_GUEST.get() {
                SAID.lock().unwrap().push_str(&format!("{panic}\n"));
            } else {
                before(panic);
            }
        }));
        install(&ENV).unwrap();
    });
}

/// New guest memory, page aligned, absent.
pub(super) fn memory(len: usize) -> *mut u8 {
    let at = ALLOTTED.fetch_add(len.next_multiple_of(PAGE), Ordering::Relaxed);
    assert!(at + len <= BYTES);
    core::ptr::with_exposed_provenance_mut(BASE + at)
}

/// Takes all guest memory away, also that which is in use: it comes back when it is touched.
pub(super) fn seal() {
    let at = core::ptr::with_exposed_provenance_mut(BASE);
    // SAFETY: the guest's mapping; contents stay.
    let result = unsafe { libc::mprotect(at, BYTES, libc::PROT_NONE) };
    assert_eq!(result, 0);
}

/// A `T` in guest memory.
pub(super) fn place<T>(value: T) -> *mut T {
    let at: *mut T = memory(size_of::<T>()).cast();
    // SAFETY: newly allotted, aligned to a page.
    unsafe { at.write(value) };
    at
}

/// A string in guest memory.
pub(super) fn text(value: &str) -> *const libc::c_char {
    let at = memory(value.len() + 1);
    // SAFETY: newly allotted, one byte longer.
    unsafe {
        at.copy_from_nonoverlapping(value.as_ptr(), value.len());
        at.add(value.len()).write(0);
    }
    at.cast()
}

pub(super) fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// How many arguments system calls have, where it is not six: what is in the other registers is left
/// over from anything. Calls that are about addresses, not what is there, count as having none.
const ARITY: &[(u8, &[i64])] = &[
    (
        0,
        &[
            libc::SYS_mmap,
            libc::SYS_mprotect,
            libc::SYS_munmap,
            libc::SYS_madvise,
            libc::SYS_futex,
            libc::SYS_brk,
            libc::SYS_rt_sigreturn,
            libc::SYS_getpid,
            libc::SYS_gettid,
            libc::SYS_getuid,
            libc::SYS_geteuid,
            libc::SYS_sched_yield,
            libc::SYS_exit,
            libc::SYS_exit_group,
        ],
    ),
    (
        1,
        &[
            libc::SYS_close,
            libc::SYS_dup,
            libc::SYS_fsync,
            libc::SYS_fdatasync,
            libc::SYS_chdir,
            libc::SYS_rmdir,
            libc::SYS_unlink,
            libc::SYS_uname,
            libc::SYS_epoll_create1,
            libc::SYS_epoll_create,
            libc::SYS_timer_delete,
        ],
    ),
    (
        2,
        &[
            libc::SYS_access,
            libc::SYS_chmod,
            libc::SYS_fchmod,
            libc::SYS_mkdir,
            libc::SYS_link,
            libc::SYS_symlink,
            libc::SYS_rename,
            libc::SYS_truncate,
            libc::SYS_ftruncate,
            libc::SYS_statfs,
            libc::SYS_dup2,
            libc::SYS_listen,
            libc::SYS_shutdown,
            libc::SYS_getcwd,
            libc::SYS_kill,
            libc::SYS_sigaltstack,
            libc::SYS_rt_sigsuspend,
            libc::SYS_clock_gettime,
            libc::SYS_memfd_create,
            libc::SYS_eventfd2,
            libc::SYS_clone3,
            libc::SYS_clone,
            libc::SYS_nanosleep,
            libc::SYS_set_robust_list,
        ],
    ),
    (
        3,
        &[
            libc::SYS_read,
            libc::SYS_write,
            libc::SYS_open,
            libc::SYS_lseek,
            libc::SYS_ioctl,
            libc::SYS_readv,
            libc::SYS_writev,
            libc::SYS_poll,
            libc::SYS_fcntl,
            libc::SYS_fchown,
            libc::SYS_chown,
            libc::SYS_mknod,
            libc::SYS_readlink,
            libc::SYS_getdents64,
            libc::SYS_socket,
            libc::SYS_bind,
            libc::SYS_connect,
            libc::SYS_accept,
            libc::SYS_sendmsg,
            libc::SYS_recvmsg,
            libc::SYS_execve,
            libc::SYS_tgkill,
            libc::SYS_close_range,
            libc::SYS_getrandom,
            libc::SYS_timer_create,
            libc::SYS_sched_getaffinity,
        ],
    ),
    (
        4,
        &[
            libc::SYS_openat,
            libc::SYS_newfstatat,
            libc::SYS_pread64,
            libc::SYS_pwrite64,
            libc::SYS_rt_sigaction,
            libc::SYS_rt_sigprocmask,
            libc::SYS_rt_tgsigqueueinfo,
            libc::SYS_socketpair,
            libc::SYS_epoll_ctl,
            libc::SYS_epoll_wait,
            libc::SYS_signalfd4,
            libc::SYS_timer_settime,
            libc::SYS_clock_nanosleep,
            libc::SYS_wait4,
            libc::SYS_fallocate,
            libc::SYS_prlimit64,
            libc::SYS_utimensat,
            libc::SYS_mknodat,
            libc::SYS_readlinkat,
            libc::SYS_rseq,
        ],
    ),
    (
        5,
        &[
            libc::SYS_statx,
            libc::SYS_renameat2,
            libc::SYS_execveat,
            libc::SYS_setsockopt,
            libc::SYS_getsockopt,
            libc::SYS_prctl,
        ],
    ),
];

/// Ends the process at a system call with a guest address among its arguments.
fn filter() {
    let op = |code: u32, k: u32, jt: usize, jf: usize| libc::sock_filter {
        code: code as u16,
        jt: u8::try_from(jt).unwrap(),
        jf: u8::try_from(jf).unwrap(),
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let numbers: usize = ARITY.iter().map(|(_, numbers)| numbers.len()).sum();
    // The number, the table, two steps for each argument from the last to the first, two ends.
    let checks = 1 + numbers;
    let allow = checks + 12;
    let mut program = vec![op(load, 0, 0, 0)];
    for (arity, numbers) in ARITY {
        for &number in *numbers {
            let target = checks + 2 * (6 - usize::from(*arity));
            program.push(op(equal, number as u32, target - program.len() - 1, 0));
        }
    }
    for arg in (0..6).rev() {
        program.push(op(load, 16 + 8 * arg + 4, 0, 0));
        program.push(op(equal, UPPER, allow - program.len(), 0));
    }
    program.push(op(libc::BPF_RET, libc::SECCOMP_RET_ALLOW, 0, 0));
    program.push(op(libc::BPF_RET, libc::SECCOMP_RET_TRAP, 0, 0));
    let prog = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: a complete filter program, for this thread only.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        assert_eq!(libc::syscall(libc::SYS_seccomp, mode, 0, &prog), 0);
    }
}

/// Runs `body` as kernel code of `node`: on a stack in guest memory, under the filter.
pub(super) fn run(node: u16, body: impl FnOnce() + Send) {
    struct Parcel<F>(Option<F>, std::thread::Result<()>);

    extern "C" fn enter<F: FnOnce()>(parcel: *mut Parcel<F>) {
        // SAFETY: the caller's parcel, which waits for this to return.
        let parcel = unsafe { &mut *parcel };
        if let Some(body) = parcel.0.take() {
            parcel.1 = catch_unwind(AssertUnwindSafe(body));
        }
    }

    fn switch<F: FnOnce()>(body: F) -> std::thread::Result<()> {
        let top = memory(STACK_BYTES).wrapping_add(STACK_BYTES);
        let mut parcel = Parcel(Some(body), Ok(()));
        let run: extern "C" fn(*mut Parcel<F>) = enter::<F>;
        // SAFETY: switches to a stack that is this thread's alone, and back.
        unsafe {
            core::arch::asm!(
                "mov r12, rsp", "mov rsp, {top}", "call {run}", "mov rsp, r12",
                top = in(reg) top, run = in(reg) run, in("rdi") &raw mut parcel,
                out("r12") _, clobber_abi("C"),
            );
        }
        parcel.1
    }

    set_up();
    let result = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                NODE.set(node);
                let mut signal_stack = vec![0_u8; SIGNAL_STACK_BYTES];
                let stack = libc::stack_t {
                    ss_sp: signal_stack.as_mut_ptr().cast(),
                    ss_flags: 0,
                    ss_size: SIGNAL_STACK_BYTES,
                };
                let mut before = stack;
                // SAFETY: the stack lives until it is taken back below.
                unsafe { assert_eq!(libc::sigaltstack(&stack, &mut before), 0) };
                filter();
                IN_GUEST.set(true);
                let result = switch(body);
                IN_GUEST.set(false);
                // SAFETY: what was set before.
                unsafe { assert_eq!(libc::sigaltstack(&before, core::ptr::null_mut()), 0) };
                result
            })
            .join()
    });
    if let Err(panic) = result.and_then(|inner| inner) {
        eprintln!("{}", SAID.lock().unwrap());
        resume_unwind(panic);
    }
}

/// Runs `body` on both nodes: first the one that owns everything, then the one that forwards.
pub(super) fn on_both(body: impl Fn(u16) + Sync) {
    for node in [0, 1] {
        run(node, || body(node));
    }
}
