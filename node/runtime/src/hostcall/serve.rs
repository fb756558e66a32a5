//! Host calls for other nodes.

use super::env::{self, active};
use super::exec::{Done, Work, exec};
use super::export;
use super::slot::TMP_BYTES;
use super::wire::{DATA_MAX, REPLY_HEADER, Reply, Request};

/// Whether to execute a request may take answers of other nodes': it must not take a thread that those wait for.
pub fn waits_for_others(request: &[u8]) -> bool {
    let Some((request, input)) = Request::decode(request) else {
        return false;
    };
    let nothing = std::ptr::null_mut();
    export::waits_for_others(&Work {
        op: request.op,
        args: request.args,
        input: input.as_ptr(),
        input_len: request.input_len,
        output: nothing,
        output_cap: 0,
        tmp: nothing,
    })
}

/// Executes one request of a peer and puts the answer into `reply`, whatever the request is: one that
/// makes no sense is answered with EINVAL.
///
/// For a thread that is no virtual CPU's: it allocates, and may block as long as the call does. It
/// touches no guest memory.
pub fn serve(request: &[u8], reply: &mut Vec<u8>) {
    reply.clear();
    // Words, so that structures in both are aligned.
    let mut output = Vec::new();
    let done = match (active(), Request::decode(request)) {
        (Some(env), Some((request, input))) => {
            let mut aligned = vec![0_u64; input.len().div_ceil(8)];
            let mut tmp = vec![0_u64; TMP_BYTES / 8];
            output = vec![0_u64; request.output_cap.min(DATA_MAX).div_ceil(8)];
            let input_copy: *mut u8 = aligned.as_mut_ptr().cast();
            // SAFETY: the vector has at least as many bytes.
            unsafe { input_copy.copy_from_nonoverlapping(input.as_ptr(), input.len()) };
            env::set_errno(0);
            exec(
                env,
                &Work {
                    op: request.op,
                    args: request.args,
                    input: input_copy,
                    input_len: request.input_len,
                    output: output.as_mut_ptr().cast(),
                    output_cap: request.output_cap,
                    tmp: tmp.as_mut_ptr().cast(),
                },
            )
        }
        _ => Done::error(libc::EINVAL),
    };
    let output_len = done.output_len.min(output.len() * 8);
    reply.reserve(REPLY_HEADER + output_len);
    let header = Reply {
        result: done.result,
        errno: done.errno,
        output_len,
    };
    reply.extend_from_slice(&header.encode());
    // SAFETY: the output has that many bytes, all of them initialised.
    let bytes = unsafe { core::slice::from_raw_parts(output.as_ptr().cast::<u8>(), output_len) };
    reply.extend_from_slice(bytes);
}
