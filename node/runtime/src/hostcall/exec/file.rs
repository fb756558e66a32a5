//! Operations on a descriptor of this node.

use super::{Done, Op, Work};
use crate::hostcall::env::Env;
use core::sync::atomic::{AtomicI32, Ordering};

/// The epoll instance of the interrupt controller on this node, -1 before there is one.
pub(crate) static EPOLL_IRQ: AtomicI32 = AtomicI32::new(-1);
/// The epoll instance of the helper thread that turns readiness into SIGIO.
pub(crate) static EPOLL_SIGIO: AtomicI32 = AtomicI32::new(-1);

/// What [`Op::Kind`] answers: may transfers be split, and may a read be continued?
pub(crate) const KIND_STREAM: i64 = 0;
pub(crate) const KIND_SEEKABLE: i64 = 1;
pub(crate) const KIND_MESSAGES: i64 = 2;

pub(super) fn exec(env: &Env, work: &Work) -> Option<Done> {
    let fd = work.fd();
    let out = work.output;
    // SAFETY: all of them: libc calls on buffers of the work, within the lengths its maker
    // guarantees, or without any.
    let done = unsafe {
        match work.op {
            Op::Read => {
                let n = libc::read(fd, out.cast(), work.output_len(1));
                Done::with_output(n as i64, n.max(0) as usize)
            }
            Op::Pread => {
                let n = libc::pread64(fd, out.cast(), work.output_len(1), work.args[2]);
                Done::with_output(n as i64, n.max(0) as usize)
            }
            Op::Write => Done::of(libc::write(fd, work.input.cast(), work.input_len) as i64),
            Op::Pwrite => {
                let n = libc::pwrite64(fd, work.input.cast(), work.input_len, work.args[2]);
                Done::of(n as i64)
            }
            Op::Seek => Done::of(libc::lseek64(fd, work.args[1], work.int(2))),
            Op::Close => {
                for instance in [&EPOLL_IRQ, &EPOLL_SIGIO] {
                    // A reboot closes them and makes them anew.
                    let _ = instance.compare_exchange(fd, -1, Ordering::AcqRel, Ordering::Relaxed);
                }
                Done::of(libc::close(fd).into())
            }
            Op::Sync if work.int(1) != 0 => Done::of(libc::fdatasync(fd).into()),
            Op::Sync => Done::of(libc::fsync(fd).into()),
            Op::Truncate => Done::of(libc::ftruncate64(fd, work.args[1]).into()),
            Op::Allocate => {
                Done::of(libc::fallocate64(fd, work.int(1), work.args[2], work.args[3]).into())
            }
            Op::Mode => Done::of(libc::fchmod(fd, work.int(1) as u32).into()),
            Op::Owner => Done::of(libc::fchown(fd, work.int(1) as u32, work.int(2) as u32).into()),
            Op::Stat => {
                let stat = work.output_struct::<libc::stat64>()?;
                Done::with_output(libc::fstat64(fd, stat).into(), size_of::<libc::stat64>())
            }
            Op::Times => {
                let times = work.struct_at::<[libc::timespec; 2]>(0)?;
                // The path is null: the descriptor's own file. libc refuses that.
                Done::of(libc::syscall(
                    libc::SYS_utimensat,
                    fd,
                    0usize,
                    times,
                    0usize,
                ))
            }
            Op::Control => control(env, work),
            Op::Lock => lock(work)?,
            Op::Ioctl => ioctl(work)?,
            Op::Duplicate => Done::descriptor(env, libc::dup(fd)),
            Op::DuplicateTo => Done::descriptor(env, libc::dup2(fd, work.int(1))),
            Op::Entries => {
                let n = libc::syscall(libc::SYS_getdents64, fd, out, work.output_len(1));
                Done::with_output(n, n.max(0) as usize)
            }
            Op::Kind => kind(work),
            Op::Epoll => epoll(work),
            Op::Poll => poll(work)?,
            _ => return None,
        }
    };
    Some(done)
}

fn control(env: &Env, work: &Work) -> Done {
    let command = work.int(1);
    let arg = match command {
        // Signals of a descriptor go to the process that has it, whoever asks.
        // SAFETY: getpid has no conditions.
        libc::F_SETOWN => i64::from(unsafe { libc::getpid() }),
        _ => work.args[2],
    };
    // SAFETY: the wrappers send the commands whose argument is no pointer, and the kernel checks
    // pointers: nothing here is dereferenced in user mode.
    let result = unsafe { libc::syscall(libc::SYS_fcntl, work.fd(), command, arg) };
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => Done::descriptor(env, result as i32),
        _ => Done::of(result),
    }
}

fn lock(work: &Work) -> Option<Done> {
    let from = work.struct_at::<libc::flock64>(0)?;
    let to = work.output_struct::<libc::flock64>()?;
    // SAFETY: both were checked to lie in the work's buffers; fcntl changes only `to`.
    let result = unsafe {
        to.write(from.read());
        libc::syscall(libc::SYS_fcntl, work.fd(), work.int(1), to)
    };
    Some(Done::with_output(result, size_of::<libc::flock64>()))
}

/// `args[2]` is the argument if it is a value; otherwise input and output are what it points to.
fn ioctl(work: &Work) -> Option<Done> {
    let request = work.args[1];
    let by_value = work.input_len == 0 && work.output_cap == 0;
    let arg = if by_value {
        work.args[2]
    } else if work.input_len <= work.output_cap {
        // SAFETY: input and output are distinct buffers of at least these lengths.
        unsafe {
            work.output
                .copy_from_nonoverlapping(work.input, work.input_len)
        };
        work.output as i64
    } else {
        work.input as i64
    };
    // SAFETY: the argument is a value, or a buffer of the size that the wrapper's table gives for
    // this request; the system call checks it as any user pointer.
    let result = unsafe { libc::syscall(libc::SYS_ioctl, work.fd(), request, arg) };
    Some(Done::with_output(result, work.output_cap))
}

fn kind(work: &Work) -> Done {
    let stat = work.tmp.cast::<libc::stat64>();
    // SAFETY: `tmp` is large enough and aligned for all that is put there.
    let format = unsafe {
        if libc::fstat64(work.fd(), stat) != 0 {
            return Done::of(-1);
        }
        (*stat).st_mode & libc::S_IFMT
    };
    let kind = match format {
        libc::S_IFREG | libc::S_IFBLK => KIND_SEEKABLE,
        libc::S_IFSOCK => {
            let value = work.tmp.cast::<libc::c_int>();
            let len = work.tmp.wrapping_add(64).cast::<libc::socklen_t>();
            // SAFETY: as above.
            let stream = unsafe {
                value.write(0);
                len.write(size_of::<libc::c_int>() as libc::socklen_t);
                libc::getsockopt(
                    work.fd(),
                    libc::SOL_SOCKET,
                    libc::SO_TYPE,
                    value.cast(),
                    len,
                ) == 0
                    && value.read() == libc::SOCK_STREAM
            };
            if stream { KIND_STREAM } else { KIND_MESSAGES }
        }
        _ => KIND_STREAM,
    };
    Done {
        result: kind,
        errno: 0,
        output_len: 0,
    }
}

/// `args`: descriptor, operation, events, data, which instance (1: the SIGIO helper's).
fn epoll(work: &Work) -> Done {
    let instance = if work.args[4] == 1 {
        &EPOLL_SIGIO
    } else {
        &EPOLL_IRQ
    };
    let event = work.tmp.cast::<libc::epoll_event>();
    // SAFETY: `tmp` is large enough; the data word is opaque to this node.
    let result = unsafe {
        event.write(libc::epoll_event {
            events: work.int(2) as u32,
            u64: work.args[3] as u64,
        });
        libc::epoll_ctl(
            instance.load(Ordering::Acquire),
            work.int(1),
            work.fd(),
            event,
        )
    };
    Done::of(result.into())
}

/// `args[1]` is the timeout in milliseconds; input and output are arrays of `pollfd`.
fn poll(work: &Work) -> Option<Done> {
    let fds = work.output.cast::<libc::pollfd>();
    if work.input_len != work.output_cap
        || !work.input_len.is_multiple_of(size_of::<libc::pollfd>())
    {
        return None;
    }
    let count = work.input_len / size_of::<libc::pollfd>();
    // SAFETY: distinct buffers of the same length, checked above.
    let result = unsafe {
        work.output
            .copy_from_nonoverlapping(work.input, work.input_len);
        libc::poll(fds, count as libc::nfds_t, work.int(1))
    };
    Some(Done::with_output(result.into(), work.output_cap))
}
