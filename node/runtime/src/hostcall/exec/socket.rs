//! Operations on sockets of this node.

use super::{Done, Op, Work};
use crate::hostcall::env::{Env, Place};
use crate::hostcall::umask;
use core::ptr;

/// Layout of an `Op::Receive` output: the two lengths and the flags that the kernel gave back, then
/// name, control data and data at the offsets that the capacities in the request imply.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Received {
    pub(crate) name_len: u32,
    pub(crate) control_len: u32,
    pub(crate) flags: i32,
    pub(crate) zero: u32,
}

/// Control data starts with a `cmsghdr`, so everything before it is rounded up to this.
pub(crate) const ALIGN: usize = 8;

pub(super) fn exec(env: &Env, work: &Work) -> Option<Done> {
    let fd = work.fd();
    let address: *const libc::sockaddr = work.input.cast();
    let address_len = work.input_len as libc::socklen_t;
    // SAFETY: all of them: libc calls on buffers of the work within their lengths, or without any.
    let done = unsafe {
        match work.op {
            Op::Socket => {
                Done::descriptor(env, libc::socket(work.int(0), work.int(1), work.int(2)))
            }
            Op::Bind => {
                umask::restrict_socket(fd);
                Done::of(libc::bind(fd, address, address_len).into())
            }
            Op::Connect => Done::of(libc::connect(fd, address, address_len).into()),
            Op::Listen => Done::of(libc::listen(fd, work.int(1)).into()),
            Op::Accept => accept(env, work),
            Op::Shutdown => Done::of(libc::shutdown(fd, work.int(1)).into()),
            Op::Option => option(work),
            Op::Send => send(env, work)?,
            Op::Receive => receive(env, work)?,
            _ => return None,
        }
    };
    Some(done)
}

/// The output is the peer's address, empty if none was asked for.
fn accept(env: &Env, work: &Work) -> Done {
    let len = work.tmp.cast::<libc::socklen_t>();
    let wanted = work.output_cap != 0;
    // SAFETY: `tmp` holds the length, the output the address.
    let fd = unsafe {
        len.write(work.output_cap as libc::socklen_t);
        libc::accept(
            work.fd(),
            if wanted {
                work.output.cast()
            } else {
                ptr::null_mut()
            },
            if wanted { len } else { ptr::null_mut() },
        )
    };
    let mut done = Done::descriptor(env, fd);
    if done.result >= 0 && wanted {
        // SAFETY: written above, and by the kernel since.
        done.output_len = (unsafe { len.read() } as usize).min(work.output_cap);
    }
    done
}

/// `args`: descriptor, level, name. A filter program travels as its instructions.
fn option(work: &Work) -> Done {
    let (level, name) = (work.int(1), work.int(2));
    let mut value = work.input.cast::<libc::c_void>();
    let mut len = work.input_len;
    if (level, name) == (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER) {
        let program = work.tmp.cast::<libc::sock_fprog>();
        // SAFETY: `tmp` is large enough; the kernel reads `len` instructions, which the input holds.
        unsafe {
            program.write(libc::sock_fprog {
                len: (work.input_len / size_of::<libc::sock_filter>()) as u16,
                filter: work.input.cast_mut().cast(),
            });
        }
        value = program.cast();
        len = size_of::<libc::sock_fprog>();
    }
    // SAFETY: `value` points to `len` bytes.
    Done::of(unsafe { libc::setsockopt(work.fd(), level, name, value, len as u32) }.into())
}

struct Parts {
    header: *mut libc::msghdr,
    iovec: *mut libc::iovec,
}

/// A message header and one vector in `tmp`.
fn parts(work: &Work) -> Parts {
    let header = work.tmp.cast::<libc::msghdr>();
    let iovec = work
        .tmp
        .wrapping_add(size_of::<libc::msghdr>().next_multiple_of(16))
        .cast();
    // SAFETY: `tmp` has room for both and is aligned; all zero is a valid msghdr.
    unsafe {
        header.write_bytes(0, 1);
        (*header).msg_iov = iovec;
        (*header).msg_iovlen = 1;
    }
    Parts { header, iovec }
}

/// `args`: descriptor, flags, length of the name, length of the control data. Input: name and control
/// data, each padded to [`ALIGN`], then the data. Descriptors in the control data are handles.
fn send(env: &Env, work: &Work) -> Option<Done> {
    let name_len = usize::try_from(work.args[2]).ok()?;
    let control_len = usize::try_from(work.args[3]).ok()?;
    let control_at = name_len.checked_next_multiple_of(ALIGN)?;
    let data_at = control_at.checked_add(control_len.checked_next_multiple_of(ALIGN)?)?;
    let data_len = work.input_len.checked_sub(data_at)?;
    let Parts { header, iovec } = parts(work);
    // SAFETY: header and vector as `parts` made them; offsets and lengths lie in the input. The
    // input is the boundary's own copy of the message, so its descriptors may be rewritten.
    unsafe {
        let input = work.input.cast_mut();
        iovec.write(libc::iovec {
            iov_base: input.add(data_at).cast(),
            iov_len: data_len,
        });
        if name_len != 0 {
            (*header).msg_name = input.cast();
            (*header).msg_namelen = name_len as u32;
        }
        if control_len != 0 {
            (*header).msg_control = input.add(control_at).cast();
            (*header).msg_controllen = control_len;
            if !rights(header, |handle| match env.place(handle) {
                Place::Here(fd) => Some(fd),
                Place::There(..) => None,
            }) {
                return Some(Done::error(libc::EBADF));
            }
        }
        Some(Done::of(
            libc::sendmsg(work.fd(), header, work.int(1)) as i64
        ))
    }
}

/// `args`: descriptor, flags, capacity of the name, of the control data, of the data.
fn receive(env: &Env, work: &Work) -> Option<Done> {
    let name_cap = usize::try_from(work.args[2]).ok()?;
    let control_cap = usize::try_from(work.args[3]).ok()?;
    let data_cap = usize::try_from(work.args[4]).ok()?;
    let name_at = size_of::<Received>();
    let control_at = name_at.checked_add(name_cap.checked_next_multiple_of(ALIGN)?)?;
    let data_at = control_at.checked_add(control_cap.checked_next_multiple_of(ALIGN)?)?;
    let received = work.output_struct::<Received>()?;
    if data_at.checked_add(data_cap)? > work.output_cap {
        return None;
    }
    let Parts { header, iovec } = parts(work);
    // SAFETY: header and vector as `parts` made them; offsets and lengths lie in the output.
    unsafe {
        iovec.write(libc::iovec {
            iov_base: work.output.add(data_at).cast(),
            iov_len: data_cap,
        });
        if name_cap != 0 {
            (*header).msg_name = work.output.add(name_at).cast();
            (*header).msg_namelen = name_cap as u32;
        }
        if control_cap != 0 {
            (*header).msg_control = work.output.add(control_at).cast();
            (*header).msg_controllen = control_cap;
        }
        let n = libc::recvmsg(work.fd(), header, work.int(1));
        let done = Done::of(n as i64);
        if n < 0 {
            return Some(done);
        }
        rights(header, |fd| Some(env.handle(fd)));
        received.write(Received {
            name_len: (*header).msg_namelen,
            control_len: (*header).msg_controllen as u32,
            flags: (*header).msg_flags,
            zero: 0,
        });
        Some(Done {
            output_len: data_at + (n as usize).min(data_cap),
            ..done
        })
    }
}

/// Replaces every descriptor in the SCM_RIGHTS parts of a message; false if one has no replacement.
///
/// # Safety
/// The header's control data must be valid for reads and writes over its length.
unsafe fn rights(header: *mut libc::msghdr, map: impl Fn(i32) -> Option<i32>) -> bool {
    // SAFETY: the macros stay inside the control data; lengths are checked against its end.
    unsafe {
        let end = (*header).msg_control as usize + (*header).msg_controllen;
        let mut part = libc::CMSG_FIRSTHDR(header);
        while !part.is_null() {
            let data = libc::CMSG_DATA(part);
            let stop = (part as usize).saturating_add((*part).cmsg_len).min(end);
            if ((*part).cmsg_level, (*part).cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let mut cell = data.cast::<i32>();
                while (cell as usize) + size_of::<i32>() <= stop {
                    match map(cell.read_unaligned()) {
                        Some(fd) => cell.write_unaligned(fd),
                        None => return false,
                    }
                    cell = cell.add(1);
                }
            }
            part = libc::CMSG_NXTHDR(header, part);
        }
    }
    true
}
