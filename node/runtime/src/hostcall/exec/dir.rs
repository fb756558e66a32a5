//! Directory streams of this node, by number.
//!
//! Number = generation and index into a fixed table, so that a number that was closed, or that a
//! peer made up, names nothing.

use super::{Done, Op, Work, set_errno};
use crate::hostcall::env::errno;
use crate::hostcall::export;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::os::fd::{AsRawFd, IntoRawFd};

/// hostfs keeps a stream open while it lists a directory, so this bounds listings at one time.
const STREAMS: usize = 1024;

struct Stream {
    /// Null when free.
    dir: AtomicPtr<libc::DIR>,
    generation: AtomicU32,
    /// 1 while a call uses the stream: libc's own lock would not survive a close meanwhile.
    using: AtomicU32,
}

static STREAMS_TABLE: [Stream; STREAMS] = [const {
    Stream {
        dir: AtomicPtr::new(core::ptr::null_mut()),
        generation: AtomicU32::new(0),
        using: AtomicU32::new(0),
    }
}; STREAMS];

/// Where the search for a free entry starts, so that generations go round slowly.
static NEXT: AtomicU64 = AtomicU64::new(0);

pub(super) fn exec(work: &Work) -> Option<Done> {
    match work.op {
        Op::DirOpen => open(work),
        Op::DirRead => with(work, |dir| read(work, dir)),
        Op::DirSeek => with(work, |dir| {
            // SAFETY: a live stream that `with` holds.
            unsafe { libc::seekdir(dir, work.args[1]) };
            Done::of(0)
        }),
        Op::DirClose => Some(close(work)),
        _ => None,
    }
}

/// A placeholder that marks an entry as taken before its stream is known.
fn reserved() -> *mut libc::DIR {
    core::ptr::dangling_mut::<u64>().cast()
}

fn open(work: &Work) -> Option<Done> {
    let path = work.string()?;
    let start = NEXT.fetch_add(1, Ordering::Relaxed) as usize;
    let free = (0..STREAMS)
        .map(|step| (start + step) % STREAMS)
        .find(|&index| {
            STREAMS_TABLE.get(index).is_some_and(|stream| {
                let null = core::ptr::null_mut();
                stream
                    .dir
                    .compare_exchange(null, reserved(), Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
            })
        });
    let Some((index, stream)) = free.and_then(|i| Some((i, STREAMS_TABLE.get(i)?))) else {
        return Some(Done::error(libc::EMFILE));
    };
    let dir = match export::open_directory(work) {
        // SAFETY: `path` is a string in the work's input.
        None => unsafe { libc::opendir(path) },
        Some(Ok(fd)) => {
            // SAFETY: the stream takes the descriptor, which nobody else has; `fd` lets go of it below.
            let dir = unsafe { libc::fdopendir(fd.as_raw_fd()) };
            if !dir.is_null() {
                let _ = fd.into_raw_fd();
            }
            dir
        }
        Some(Err(error)) => {
            stream.dir.store(core::ptr::null_mut(), Ordering::Release);
            return Some(Done::error(error));
        }
    };
    let done = Done::of(if dir.is_null() {
        -1
    } else {
        // Never 0, which would be a null pointer to the guest.
        i64::from(stream.generation.load(Ordering::Acquire)) << 16 | (index as i64 + 1)
    });
    stream.dir.store(dir, Ordering::Release);
    Some(done)
}

fn entry(number: i64) -> Option<&'static Stream> {
    let index = usize::try_from(number & 0xffff).ok()?.checked_sub(1)?;
    let stream = STREAMS_TABLE.get(index)?;
    let generation = i64::from(stream.generation.load(Ordering::Acquire));
    (generation == number >> 16).then_some(stream)
}

/// Takes the stream of this number for one call.
fn hold(number: i64) -> Result<(&'static Stream, *mut libc::DIR), i32> {
    let stream = entry(number).ok_or(libc::EBADF)?;
    if stream
        .using
        .compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed)
        .is_err()
    {
        return Err(libc::EBUSY);
    }
    let dir = stream.dir.load(Ordering::Acquire);
    // Closed, and perhaps opened anew, before it was taken?
    if entry(number).is_none() || dir.is_null() || dir == reserved() {
        stream.using.store(0, Ordering::Release);
        return Err(libc::EBADF);
    }
    Ok((stream, dir))
}

fn with(work: &Work, call: impl FnOnce(*mut libc::DIR) -> Done) -> Option<Done> {
    Some(match hold(work.args[0]) {
        Ok((stream, dir)) => {
            let done = call(dir);
            stream.using.store(0, Ordering::Release);
            done
        }
        Err(error) => Done::error(error),
    })
}

fn close(work: &Work) -> Done {
    match hold(work.args[0]) {
        Ok((stream, dir)) => {
            stream.generation.fetch_add(1, Ordering::AcqRel);
            // SAFETY: a live stream, held, whose number has just become void.
            let done = Done::of(unsafe { libc::closedir(dir) }.into());
            // In this order: who finds the entry free must find it unused, too.
            stream.using.store(0, Ordering::Release);
            stream.dir.store(core::ptr::null_mut(), Ordering::Release);
            done
        }
        Err(error) => Done::error(error),
    }
}

/// The output is the entry as libc lays it out. Result 1, or 0 at the end.
fn read(work: &Work, dir: *mut libc::DIR) -> Done {
    set_errno(0);
    // SAFETY: a live stream that the caller holds.
    let entry = unsafe { libc::readdir64(dir) };
    if entry.is_null() {
        return match errno() {
            0 => Done::of(0),
            error => Done::error(error),
        };
    }
    // SAFETY: libc's entry has `d_reclen` bytes and stays until the next call on this stream.
    unsafe {
        let len = usize::from((*entry).d_reclen).min(work.output_cap);
        work.output.copy_from_nonoverlapping(entry.cast(), len);
        Done::with_output(1, len)
    }
}
