//! Operations, executed on the node that owns what they are about.
//!
//! Used by the wrappers for this node's own descriptors and paths, and by [`super::serve`] for other
//! nodes. Input and output are buffers that the host may see. An operation that does not
//! [need a host stack](Op::needs_host_stack) shows the host nothing else: no object on the stack it
//! runs on, which may be guest memory. `Work::tmp` is there for the structures of system calls.
//!
//! Arguments and input may come from a peer: lengths and strings are checked here, once.

mod dir;
mod file;
mod path;
mod socket;
mod tty;

use super::env::{self, Env, errno};
use super::export;
use super::wire::ARGS;
use core::ffi::{CStr, c_char};

macro_rules! ops {
    ($($name:ident = $number:literal),* $(,)?) => {
        /// What a request asks for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u16)]
        pub(super) enum Op { $($name = $number),* }

        impl Op {
            pub(super) fn from_u16(number: u16) -> Option<Op> {
                match number {
                    $($number => Some(Op::$name),)*
                    _ => None,
                }
            }

            #[cfg(test)]
            pub(super) const ALL: &[Op] = &[$(Op::$name),*];
        }
    };
}

ops! {
    Read = 1, Pread = 2, Write = 3, Pwrite = 4, Seek = 5, Close = 6, Sync = 7, Truncate = 8,
    Allocate = 9, Mode = 10, Owner = 11, Stat = 12, Times = 13, Control = 14, Lock = 15, Ioctl = 16,
    Duplicate = 17, DuplicateTo = 18, Entries = 19, Kind = 20, Epoll = 21, Poll = 22,
    PathOpen = 32, PathStat = 33, PathStatx = 34, PathStatfs = 35, PathAccess = 36, PathReadlink = 37,
    PathMkdir = 38, PathRmdir = 39, PathUnlink = 40, PathMknod = 41, PathMode = 42, PathOwner = 43,
    PathTruncate = 44, PathTimes = 45, PathLink = 46, PathSymlink = 47, PathRename = 48,
    PathChdir = 49, PathGetcwd = 50, PathMkstemp = 51,
    DirOpen = 64, DirRead = 65, DirSeek = 66, DirClose = 67,
    Socket = 80, Bind = 81, Connect = 82, Listen = 83, Accept = 84, Shutdown = 85, Option = 86,
    Send = 87, Receive = 88,
    IsTty = 96, TtyGet = 97, TtySet = 98, TtyGetGroup = 99, TtySetGroup = 100, PtyGrant = 101,
    PtyUnlock = 102, PtyName = 103,
}

impl Op {
    /// Is the owner of what it is about found by a path?
    pub(super) fn is_on_path(self) -> bool {
        (Op::PathOpen as u16..=Op::DirOpen as u16).contains(&(self as u16))
    }

    /// Does libc, or the implementation here, show objects on its own stack to the host?
    pub(super) fn needs_host_stack(self) -> bool {
        matches!(
            self,
            Op::PathMkstemp
                | Op::DirOpen
                | Op::DirRead
                | Op::DirSeek
                | Op::DirClose
                | Op::IsTty
                | Op::TtyGet
                | Op::TtySet
                | Op::TtyGetGroup
                | Op::TtySetGroup
                | Op::PtyGrant
                | Op::PtyUnlock
                | Op::PtyName
        )
    }
}

/// One operation with its data. `args[0]` is the descriptor where there is one.
#[derive(Clone, Copy)]
pub(super) struct Work {
    pub(super) op: Op,
    pub(super) args: [i64; ARGS],
    pub(super) input: *const u8,
    pub(super) input_len: usize,
    pub(super) output: *mut u8,
    pub(super) output_cap: usize,
    /// `slot::TMP_BYTES`, page aligned.
    pub(super) tmp: *mut u8,
}

/// How it went. `errno` counts if `result` is negative; `output_len` bytes of output are valid.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    pub(super) result: i64,
    pub(super) errno: i32,
    pub(super) output_len: usize,
}

impl Done {
    /// The result of a libc call, whose errno is still there.
    pub(super) fn of(result: i64) -> Done {
        Done {
            result,
            errno: if result < 0 { errno() } else { 0 },
            output_len: 0,
        }
    }

    /// The same, for a call that filled `len` bytes of output if it succeeded.
    pub(super) fn with_output(result: i64, len: usize) -> Done {
        let mut done = Done::of(result);
        if result >= 0 {
            done.output_len = len;
        }
        done
    }

    /// The same, for a call that made a descriptor.
    pub(super) fn descriptor(env: &Env, fd: i32) -> Done {
        Done::of(env.handle(fd).into())
    }

    pub(super) fn error(errno: i32) -> Done {
        Done {
            result: -1,
            errno,
            output_len: 0,
        }
    }
}

impl Work {
    pub(super) fn fd(&self) -> i32 {
        self.args[0] as i32
    }

    pub(super) fn int(&self, index: usize) -> i32 {
        self.args.get(index).copied().unwrap_or(0) as i32
    }

    /// A length from the arguments, no more than the output holds.
    fn output_len(&self, index: usize) -> usize {
        let asked = self.args.get(index).copied().unwrap_or(0);
        usize::try_from(asked).unwrap_or(0).min(self.output_cap)
    }

    /// The input from `at` on as a structure.
    pub(super) fn struct_at<T>(&self, at: usize) -> Option<*const T> {
        let fits = self.input_len.checked_sub(at)? >= size_of::<T>();
        let here = self.input.wrapping_add(at).cast::<T>();
        (fits && here.is_aligned()).then_some(here)
    }

    /// The output as one structure.
    pub(super) fn output_struct<T>(&self) -> Option<*mut T> {
        let here = self.output.cast::<T>();
        (self.output_cap >= size_of::<T>() && here.is_aligned()).then_some(here)
    }

    /// The string that starts at `at` in the input, and where the next thing starts.
    pub(super) fn text_at(&self, at: usize) -> Option<(&CStr, usize)> {
        let rest = self.input_len.checked_sub(at)?;
        let start = self.input.wrapping_add(at);
        // SAFETY: the maker of the work guarantees `input_len` readable bytes at `input`.
        let bytes = unsafe { core::slice::from_raw_parts(start, rest) };
        let text = CStr::from_bytes_until_nul(bytes).ok()?;
        Some((text, at + text.count_bytes() + 1))
    }

    fn string_at(&self, at: usize) -> Option<(*const c_char, usize)> {
        let (text, next) = self.text_at(at)?;
        Some((text.as_ptr(), next))
    }

    /// The string that is all of the input.
    fn string(&self) -> Option<*const c_char> {
        let (text, end) = self.string_at(0)?;
        (end == self.input_len).then_some(text)
    }
}

/// Context: signal (unless the operation needs a host stack).
pub(super) fn exec(env: &Env, work: &Work) -> Done {
    if let Some(done) = export::exec_on_held(env, work) {
        return done;
    }
    let done = match work.op as u16 {
        0..32 => file::exec(env, work),
        32..64 => export::exec(env, work).map_or_else(|| path::exec(env, work), Some),
        64..80 => dir::exec(work),
        80..96 => socket::exec(env, work),
        _ => tty::exec(work),
    };
    done.unwrap_or(Done::error(libc::EINVAL))
}

/// Epoll instances of this process, in the order of their making: the one that the interrupt
/// controller waits on, and the one of the SIGIO helper thread.
pub(super) use file::{EPOLL_IRQ, EPOLL_SIGIO};
pub(super) use file::{KIND_MESSAGES, KIND_SEEKABLE};
pub(super) use socket::{ALIGN, Received};

fn set_errno(value: i32) {
    env::set_errno(value);
}
