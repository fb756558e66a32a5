//! Operations on paths of this node.

use super::{Done, Op, Work, set_errno};
use crate::hostcall::env::Env;
use crate::hostcall::umask;
use core::ffi::{CStr, c_char};

const EMPTY: &CStr = c"";

pub(super) fn exec(env: &Env, work: &Work) -> Option<Done> {
    let mode = work.int(0) as u32;
    // SAFETY: all of them: the strings and structures were checked to lie in the work's buffers.
    let done = unsafe {
        match work.op {
            Op::PathOpen => {
                let mode = umask::own(work.int(1) as u32);
                let fd = libc::open64(work.string()?, work.int(0), mode);
                Done::descriptor(env, fd)
            }
            Op::PathStat => {
                let stat = work.output_struct::<libc::stat64>()?;
                let result = libc::stat64(work.string()?, stat);
                Done::with_output(result.into(), size_of::<libc::stat64>())
            }
            Op::PathStatx => {
                let path = if work.input_len == 0 {
                    EMPTY.as_ptr()
                } else {
                    work.string()?
                };
                let statx = work.output_struct::<libc::statx>()?;
                let result = libc::statx(work.fd(), path, work.int(1), work.int(2) as u32, statx);
                Done::with_output(result.into(), size_of::<libc::statx>())
            }
            Op::PathStatfs => {
                let statfs = work.output_struct::<libc::statfs64>()?;
                let result = libc::statfs64(work.string()?, statfs);
                Done::with_output(result.into(), size_of::<libc::statfs64>())
            }
            Op::PathAccess => Done::of(libc::access(work.string()?, work.int(0)).into()),
            Op::PathReadlink => {
                let n = libc::readlink(work.string()?, work.output.cast(), work.output_cap);
                Done::with_output(n as i64, n.max(0) as usize)
            }
            Op::PathMkdir => Done::of(libc::mkdir(work.string()?, umask::own(mode)).into()),
            Op::PathRmdir => Done::of(libc::rmdir(work.string()?).into()),
            Op::PathUnlink => Done::of(libc::unlink(work.string()?).into()),
            Op::PathMknod => {
                let (mode, device) = (umask::own(mode), work.args[1] as u64);
                Done::of(libc::mknod(work.string()?, mode, device).into())
            }
            Op::PathMode => Done::of(libc::chmod(work.string()?, mode).into()),
            Op::PathOwner => Done::of(libc::chown(work.string()?, mode, work.int(1) as u32).into()),
            Op::PathTruncate => Done::of(libc::truncate64(work.string()?, work.args[0]).into()),
            Op::PathTimes => {
                let times = work.struct_at::<[libc::timespec; 2]>(0)?;
                let (path, end) = work.string_at(size_of::<[libc::timespec; 2]>())?;
                if end != work.input_len {
                    return None;
                }
                Done::of(libc::syscall(
                    libc::SYS_utimensat,
                    libc::AT_FDCWD,
                    path,
                    times,
                    0usize,
                ))
            }
            Op::PathLink => {
                let (from, to) = two(work)?;
                Done::of(libc::link(from, to).into())
            }
            Op::PathSymlink => {
                let (from, to) = two(work)?;
                Done::of(libc::symlink(from, to).into())
            }
            Op::PathRename => {
                let (from, to) = two(work)?;
                let here = libc::AT_FDCWD;
                Done::of(libc::syscall(
                    libc::SYS_renameat2,
                    here,
                    from,
                    here,
                    to,
                    work.int(0),
                ))
            }
            Op::PathChdir => Done::of(libc::chdir(work.string()?).into()),
            Op::PathGetcwd => getcwd(work),
            Op::PathMkstemp => mkstemp(env, work)?,
            _ => return None,
        }
    };
    Some(done)
}

fn two(work: &Work) -> Option<(*const c_char, *const c_char)> {
    let (first, next) = work.string_at(0)?;
    let (second, end) = work.string_at(next)?;
    (end == work.input_len).then_some((first, second))
}

/// The system call, because libc's function falls back to walking directories with buffers of its own.
fn getcwd(work: &Work) -> Done {
    // SAFETY: the output buffer has the length given.
    let n = unsafe { libc::syscall(libc::SYS_getcwd, work.output, work.output_cap) };
    Done::with_output(n, n.max(0) as usize)
}

/// The output is the template with the letters filled in.
fn mkstemp(env: &Env, work: &Work) -> Option<Done> {
    work.string()?;
    if work.output_cap < work.input_len {
        return None;
    }
    // SAFETY: distinct buffers, the output at least as long, and the input ends in a NUL.
    let fd = unsafe {
        work.output
            .copy_from_nonoverlapping(work.input, work.input_len);
        set_errno(0);
        libc::mkstemp(work.output.cast())
    };
    let mut done = Done::descriptor(env, fd);
    if done.result >= 0 {
        done.output_len = work.input_len;
    }
    Some(done)
}
