//! Memory of the boundary's own that system calls may see: frames, slots and host stacks.
//!
//! A wrapper runs on a kernel stack, which is guest memory, so not even its locals may be shown to
//! the host. It claims either
//! - a [`Frame`]: 256 bytes of thread-local storage, for small structures and hot calls, or
//! - a [`Slot`]: a request and a reply buffer of 64 KiB and a stack, from a pool mapped at start.
//!
//! Both are claimed and released in last-in-first-out order by a thread and the signal handlers that
//! interrupt it. That is all the exclusion they need, and why signals may stay open around most
//! calls. UML does not preempt the kernel, so a wrapper is never left for another task half-way.
//!
//! A child made by vfork shares its parent's thread-local storage while the parent waits: it nests
//! like a handler. What it has not released when it execs, [`Nesting`] restores.

use super::wire::{REPLY_MAX, REQUEST_MAX};
use core::cell::{Cell, UnsafeCell};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering, compiler_fence};
use std::io;

const FRAMES: usize = 16;
pub(super) const FRAME_BYTES: usize = 256;

/// One for each thread that makes host calls (64 virtual CPUs, helpers), and some for nesting.
const SLOTS: usize = 160;
const PAGE: usize = 4096;
/// The resolver is the deepest thing that runs there.
const STACK_BYTES: usize = 256 * 1024;
const BUFFER_BYTES: usize = REQUEST_MAX.next_multiple_of(PAGE);
const _: () = assert!(REPLY_MAX <= BUFFER_BYTES);
const REQUEST_AT: usize = STACK_BYTES;
const REPLY_AT: usize = REQUEST_AT + BUFFER_BYTES;
const TAIL_AT: usize = REPLY_AT + BUFFER_BYTES;
const SLOT_BYTES: usize = TAIL_AT + PAGE;

/// Room for system-call structures beside the two buffers, in a slot's last page.
pub(super) const TMP_BYTES: usize = 1024;

const NONE: usize = usize::MAX;

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// The signals of the fault handler, without which no thread may touch guest memory.
pub(super) const FAULT_SIGNALS: u64 = bit(libc::SIGSEGV) | bit(libc::SIGBUS);

/// glibc's own signals (cancellation, set*id), which no mask may hold back.
pub(super) const LIBC_SIGNALS: u64 = bit(32) | bit(33);

/// In a static, because the host reads it and a constant would be put on the stack.
static HOST_STACK_MASK: u64 = !(FAULT_SIGNALS | LIBC_SIGNALS);

static BASE: AtomicUsize = AtomicUsize::new(0);
static TAKEN: [AtomicBool; SLOTS] = [const { AtomicBool::new(false) }; SLOTS];

#[repr(C, align(16))]
struct FrameBytes(UnsafeCell<[u8; FRAME_BYTES]>);

struct Thread {
    frames: [FrameBytes; FRAMES],
    depth: Cell<usize>,
    slot: Cell<usize>,
    busy: Cell<bool>,
}

thread_local! {
    // Without initialiser or destructor: reaching it in a signal handler is an address computation.
    static THREAD: Thread = const {
        Thread {
            frames: [const { FrameBytes(UnsafeCell::new([0; FRAME_BYTES])) }; FRAMES],
            depth: Cell::new(0),
            slot: Cell::new(NONE),
            busy: Cell::new(false),
        }
    };
}

/// Maps the pool. Pages of slots that nobody claims are never touched.
pub(super) fn prepare() -> io::Result<()> {
    if BASE.load(Ordering::Acquire) != 0 {
        return Ok(());
    }
    // SAFETY: a new anonymous mapping at an address of the host's choice.
    let base = unsafe {
        libc::mmap(
            core::ptr::null_mut(),
            SLOTS * SLOT_BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    for index in 0..SLOTS {
        // SAFETY: the lowest page of a slot's stack, inside the mapping just made and unused so far.
        let guard =
            unsafe { libc::mprotect(base.byte_add(index * SLOT_BYTES), PAGE, libc::PROT_NONE) };
        if guard != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    BASE.store(base as usize, Ordering::Release);
    Ok(())
}

/// A few words that the host may see. Context: signal.
pub(super) struct Frame {
    at: *mut u8,
}

impl Frame {
    pub(super) fn claim() -> Frame {
        THREAD.with(|thread| {
            let depth = thread.depth.get();
            let Some(frame) = thread.frames.get(depth) else {
                // Deeper than signals can nest: the state of this thread is lost.
                // SAFETY: ends the process.
                unsafe { libc::abort() }
            };
            thread.depth.set(depth + 1);
            // A handler that runs from here on takes the next frame.
            compiler_fence(Ordering::SeqCst);
            Frame {
                at: frame.0.get().cast(),
            }
        })
    }

    /// A place for a `T`, `offset` bytes into the frame.
    pub(super) fn at<T>(&self, offset: usize) -> *mut T {
        debug_assert!(
            offset + size_of::<T>() <= FRAME_BYTES && offset.is_multiple_of(align_of::<T>())
        );
        self.at.wrapping_add(offset).cast()
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        THREAD.with(|thread| thread.depth.set(thread.depth.get() - 1));
    }
}

/// Buffers and a stack that the host may see. Context: signal.
pub(super) struct Slot {
    index: usize,
    /// The thread keeps its first slot for good, so that claiming it is no atomic operation.
    own: bool,
}

impl Slot {
    /// `None` when the pool is used up.
    pub(super) fn claim() -> Option<Slot> {
        THREAD.with(|thread| {
            if thread.busy.get() {
                return Slot::extra();
            }
            thread.busy.set(true);
            compiler_fence(Ordering::SeqCst);
            if thread.slot.get() == NONE {
                match take() {
                    Some(index) => thread.slot.set(index),
                    None => {
                        thread.busy.set(false);
                        return None;
                    }
                }
            }
            Some(Slot {
                index: thread.slot.get(),
                own: true,
            })
        })
    }

    /// A slot that leaves the thread's own one free.
    pub(super) fn extra() -> Option<Slot> {
        Some(Slot {
            index: take()?,
            own: false,
        })
    }

    fn base(&self) -> *mut u8 {
        let base = BASE.load(Ordering::Acquire) + self.index * SLOT_BYTES;
        core::ptr::with_exposed_provenance_mut(base)
    }

    /// [`REQUEST_MAX`] bytes, page aligned.
    pub(super) fn request(&self) -> *mut u8 {
        self.base().wrapping_add(REQUEST_AT)
    }

    /// [`REPLY_MAX`] bytes, page aligned.
    pub(super) fn reply(&self) -> *mut u8 {
        self.base().wrapping_add(REPLY_AT)
    }

    /// [`TMP_BYTES`] bytes, page aligned.
    pub(super) fn tmp(&self) -> *mut u8 {
        self.base().wrapping_add(TAIL_AT)
    }

    pub(super) fn stack_top(&self) -> *mut u8 {
        self.base().wrapping_add(STACK_BYTES)
    }

    /// Runs `call` on the slot's stack with all signals blocked but those of the fault handler.
    ///
    /// For libc functions that show objects on their own stack to the host. `call` must not touch
    /// guest memory: a fault there would restart the alternate signal stack at its top, and this may
    /// be a handler that runs on it. Being `'static` it cannot borrow from the caller's stack.
    pub(super) fn on_host_stack<R: Copy + 'static>(&self, call: impl FnOnce() -> R + 'static) -> R {
        struct Parcel<F, R> {
            call: Option<F>,
            result: Option<R>,
        }

        extern "C" fn run<F: FnOnce() -> R, R>(parcel: *mut Parcel<F, R>) {
            // SAFETY: `on_host_stack` passes the parcel it placed in the slot, which outlives this.
            let parcel = unsafe { &mut *parcel };
            if let Some(call) = parcel.call.take() {
                parcel.result = Some(call());
            }
        }

        fn enter<F: FnOnce() -> R, R: Copy>(slot: &Slot, call: F) -> R {
            let top = (slot.stack_top() as usize - size_of::<Parcel<F, R>>()) & !63;
            let parcel: *mut Parcel<F, R> = core::ptr::with_exposed_provenance_mut(top);
            let mask: *mut u64 = slot.tmp().wrapping_add(TMP_BYTES).cast();
            let run: extern "C" fn(*mut Parcel<F, R>) = run::<F, R>;
            // SAFETY: the parcel lies in this slot's stack, which only the claimer uses, above the
            // stack pointer that `run` starts with; 64-byte alignment suffices for both.
            unsafe {
                parcel.write(Parcel {
                    call: Some(call),
                    result: None,
                })
            };
            set_mask(&raw const HOST_STACK_MASK, mask);
            // SAFETY: switches to a stack that nobody else uses, calls a function that does not
            // unwind, and switches back; r12 is preserved by the callee and named as clobbered.
            unsafe {
                core::arch::asm!(
                    "mov r12, rsp",
                    "mov rsp, rdi",
                    "call {run}",
                    "mov rsp, r12",
                    run = in(reg) run,
                    in("rdi") parcel,
                    out("r12") _,
                    clobber_abi("C"),
                );
            }
            set_mask(mask, core::ptr::null_mut());
            // SAFETY: `run` has returned, so the parcel is this function's again.
            match unsafe { (*parcel).result } {
                Some(result) => result,
                // SAFETY: cannot happen (`run` always stores a result); ends the process.
                None => unsafe { libc::abort() },
            }
        }

        enter(self, call)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        if self.own {
            THREAD.with(|thread| thread.busy.set(false));
        } else if let Some(taken) = TAKEN.get(self.index) {
            taken.store(false, Ordering::Release);
        }
    }
}

/// Does the address lie in a slot?
#[cfg(test)]
pub(super) fn holds(at: usize) -> bool {
    let base = BASE.load(Ordering::Acquire);
    (base..base + SLOTS * SLOT_BYTES).contains(&at)
}

/// How many slots nobody has, and will not have, until somebody claims them.
#[cfg(test)]
pub(super) fn free() -> usize {
    TAKEN
        .iter()
        .filter(|taken| !taken.load(Ordering::Acquire))
        .count()
}

fn take() -> Option<usize> {
    if BASE.load(Ordering::Acquire) == 0 {
        return None;
    }
    TAKEN.iter().position(|taken| {
        taken
            .compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    })
}

/// What this thread has claimed, to undo what a vfork child took with it.
pub(super) struct Nesting {
    depth: usize,
    busy: bool,
}

impl Nesting {
    pub(super) fn save() -> Nesting {
        THREAD.with(|thread| Nesting {
            depth: thread.depth.get(),
            busy: thread.busy.get(),
        })
    }

    pub(super) fn restore(self) {
        THREAD.with(|thread| {
            thread.depth.set(self.depth);
            thread.busy.set(self.busy);
        });
    }
}

/// Sets the thread's signal mask without touching errno or the caller's stack.
fn set_mask(new: *const u64, old: *mut u64) {
    // SAFETY: both point to eight bytes of this module's (or `old` is null).
    unsafe { sigprocmask_raw(libc::SIG_SETMASK, new, old) };
}

/// The system call itself: 0 or a negative errno.
///
/// # Safety
/// `new` and `old` are null or point to eight bytes that the host may see.
pub(super) unsafe fn sigprocmask_raw(how: i32, new: *const u64, old: *mut u64) -> i64 {
    let result: i64;
    // SAFETY: rt_sigprocmask reads and writes the eight bytes the caller vouches for; the
    // instruction clobbers rcx and r11 only.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") libc::SYS_rt_sigprocmask => result,
            in("rdi") i64::from(how),
            in("rsi") new,
            in("rdx") old,
            in("r10") 8usize,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}
