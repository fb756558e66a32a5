//! Calls on a union's members, each executed by the node that has it.

use crate::hostcall::env::{self, Env, FD_MASK, NODE_SHIFT};
use crate::hostcall::exec::{Op, Work, exec};
use crate::hostcall::slot::TMP_BYTES;
use crate::hostcall::wire::{ARGS, REPLY_HEADER, REQUEST_HEADER, Reply, Request};

/// What is copied at a time.
pub(super) const CHUNK: usize = 64 * 1024;

/// What a member answers.
pub(super) type Answer = Result<(i64, Vec<u8>), i32>;

/// What a call takes along.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'c> {
    pub(super) op: Op,
    pub(super) args: [i64; ARGS],
    /// Before the paths.
    pub(super) before: &'c [u8],
    pub(super) output: usize,
}

impl Call<'_> {
    pub(super) fn new(op: Op, args: [i64; ARGS], output: usize) -> Self {
        Self {
            op,
            args,
            before: b"",
            output,
        }
    }
}

/// Has a node do something, this one or another.
pub(super) fn ask(env: &Env, node: u16, call: Call<'_>, input: &[u8]) -> Answer {
    let Call {
        op, args, output, ..
    } = call;
    if node == (env.node)() {
        // Words, so that structures in them are aligned.
        let mut words = vec![0_u64; input.len().div_ceil(8)];
        let mut to = vec![0_u64; output.div_ceil(8)];
        let mut tmp = vec![0_u64; TMP_BYTES / 8];
        let from: *mut u8 = words.as_mut_ptr().cast();
        // SAFETY: the vector has at least as many bytes.
        unsafe { from.copy_from_nonoverlapping(input.as_ptr(), input.len()) };
        env::set_errno(0);
        let work = Work {
            op,
            args,
            input: from,
            input_len: input.len(),
            output: to.as_mut_ptr().cast(),
            output_cap: output,
            tmp: tmp.as_mut_ptr().cast(),
        };
        let done = exec(env, &work);
        if done.result < 0 {
            return Err(done.errno);
        }
        let len = done.output_len.min(output);
        // SAFETY: the vector has that many bytes, all of them initialised.
        let bytes = unsafe { std::slice::from_raw_parts(to.as_ptr().cast::<u8>(), len) };
        return Ok((done.result, bytes.to_vec()));
    }
    let header = Request {
        op,
        args,
        input_len: input.len(),
        output_cap: output,
    };
    let request = [&header.encode()[..], input].concat();
    debug_assert_eq!(request.len(), REQUEST_HEADER + input.len());
    let mut reply = vec![0; REPLY_HEADER + output];
    let len = (env.forward)(node, &request, &mut reply);
    reply.truncate(len);
    match Reply::decode(&reply, output) {
        None => Err(libc::EHOSTUNREACH),
        Some(answer) if answer.result < 0 => Err(answer.errno),
        Some(answer) => Ok((answer.result, reply.split_off(REPLY_HEADER))),
    }
}

/// Whether a member has nothing to say to this, and the next is to be asked.
pub(super) fn has_not(error: i32) -> bool {
    matches!(error, libc::ENOENT | libc::ENOTDIR | libc::EHOSTUNREACH)
}

pub(super) const STATX_ARGS: [i64; ARGS] = [
    -1,
    libc::AT_SYMLINK_NOFOLLOW as i64,
    (libc::STATX_BASIC_STATS | libc::STATX_BTIME) as i64,
    0,
    0,
    0,
];

pub(super) fn statx_of(bytes: &[u8]) -> Option<libc::statx> {
    let fits = bytes.len() == size_of::<libc::statx>();
    // SAFETY: as many bytes as the structure of numbers has; they need not be aligned.
    fits.then(|| unsafe { bytes.as_ptr().cast::<libc::statx>().read_unaligned() })
}

/// The arguments of an operation on a descriptor that a member's node gave.
pub(super) fn on_handle(handle: i64, mut args: [i64; ARGS]) -> [i64; ARGS] {
    args[0] = handle & i64::from(FD_MASK);
    args
}

pub(super) fn node_of_handle(handle: i64) -> u16 {
    (handle >> NODE_SHIFT) as u16
}

pub(super) fn close(env: &Env, handle: i64) {
    let call = Call::new(Op::Close, on_handle(handle, [0; ARGS]), 0);
    let _ = ask(env, node_of_handle(handle), call, b"");
}

pub(super) fn copy(env: &Env, from: (u16, i64), to: (u16, i64)) -> Result<(), i32> {
    let mut at = 0;
    loop {
        let args = on_handle(from.1, [0, CHUNK as i64, at, 0, 0, 0]);
        let (_, bytes) = ask(env, from.0, Call::new(Op::Pread, args, CHUNK), b"")?;
        if bytes.is_empty() {
            return Ok(());
        }
        let args = on_handle(to.1, [0, 0, at, 0, 0, 0]);
        let (n, _) = ask(env, to.0, Call::new(Op::Pwrite, args, 0), &bytes)?;
        if n != bytes.len() as i64 {
            return Err(libc::EIO);
        }
        at += n;
    }
}

pub(super) const LOOK: Call<'static> = Call {
    op: Op::PathStatx,
    args: STATX_ARGS,
    before: b"",
    output: size_of::<libc::statx>(),
};
