//! Operations on terminals of this node. libc implements them with structures on its own stack, so
//! all of them run on a host stack.

use super::{Done, Op, Work};
use core::ffi::CStr;

pub(super) fn exec(work: &Work) -> Option<Done> {
    let fd = work.fd();
    // SAFETY: all of them: libc calls on structures checked to lie in the work's buffers.
    let done = unsafe {
        match work.op {
            // 1 or 0; the errno of a 0 is passed on, too.
            Op::IsTty => {
                let tty = libc::isatty(fd);
                Done {
                    errno: super::errno(),
                    ..Done::of(tty.into())
                }
            }
            Op::TtyGet => {
                let termios = work.output_struct::<libc::termios>()?;
                Done::with_output(
                    libc::tcgetattr(fd, termios).into(),
                    size_of::<libc::termios>(),
                )
            }
            Op::TtySet => {
                let termios = work.struct_at::<libc::termios>(0)?;
                Done::of(libc::tcsetattr(fd, work.int(1), termios).into())
            }
            Op::TtyGetGroup => Done::of(libc::tcgetpgrp(fd).into()),
            Op::TtySetGroup => Done::of(libc::tcsetpgrp(fd, work.int(1)).into()),
            Op::PtyGrant => Done::of(libc::grantpt(fd).into()),
            Op::PtyUnlock => Done::of(libc::unlockpt(fd).into()),
            Op::PtyName => {
                let error = libc::ptsname_r(fd, work.output.cast(), work.output_cap);
                if error != 0 {
                    return Some(Done::error(error));
                }
                let len = CStr::from_ptr(work.output.cast()).count_bytes() + 1;
                Done::with_output(0, len)
            }
            _ => return None,
        }
    };
    Some(done)
}
