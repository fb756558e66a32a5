//! Requests and replies of host calls between nodes.
//!
//! Little endian, fixed layout; all nodes are x86-64 Linux, so structures of system calls travel as
//! they are. Request: operation `u16`, zero `u16`, input length `u32`, reply capacity `u32`, zero
//! `u32`, six arguments `i64`, input. Reply: result `i64`, errno `i32`, output length `u32`, output.

use super::exec::Op;

/// Data that one request or reply carries at most: 64 KiB, and room for the headers of a full-sized
/// segmentation-offload frame.
pub(super) const DATA_MAX: usize = 64 * 1024 + 256;

pub(super) const REQUEST_HEADER: usize = 64;
pub(super) const REPLY_HEADER: usize = 16;

/// Longest request, in bytes.
pub const REQUEST_MAX: usize = REQUEST_HEADER + DATA_MAX;
/// Longest reply, in bytes.
pub const REPLY_MAX: usize = REPLY_HEADER + DATA_MAX;

pub(super) const ARGS: usize = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) op: Op,
    pub(super) args: [i64; ARGS],
    pub(super) input_len: usize,
    pub(super) output_cap: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) result: i64,
    pub(super) errno: i32,
    pub(super) output_len: usize,
}

fn put<const N: usize>(to: &mut [u8], at: usize, bytes: [u8; N]) {
    if let Some(cells) = to.get_mut(at..at + N) {
        cells.copy_from_slice(&bytes);
    }
}

fn get<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at + N)?.try_into().ok()
}

impl Request {
    pub(super) fn encode(&self) -> [u8; REQUEST_HEADER] {
        let mut header = [0; REQUEST_HEADER];
        put(&mut header, 0, (self.op as u16).to_le_bytes());
        put(&mut header, 4, (self.input_len as u32).to_le_bytes());
        put(&mut header, 8, (self.output_cap as u32).to_le_bytes());
        for (index, arg) in self.args.iter().enumerate() {
            put(&mut header, 16 + 8 * index, arg.to_le_bytes());
        }
        header
    }

    /// `None` if a peer that speaks this protocol cannot have sent it.
    pub(super) fn decode(request: &[u8]) -> Option<(Request, &[u8])> {
        let op = Op::from_u16(u16::from_le_bytes(get(request, 0)?))?;
        let zero = u16::from_le_bytes(get(request, 2)?) != 0 || get::<4>(request, 12)? != [0; 4];
        let input_len = u32::from_le_bytes(get(request, 4)?) as usize;
        let output_cap = u32::from_le_bytes(get(request, 8)?) as usize;
        let mut args = [0; ARGS];
        for (index, arg) in args.iter_mut().enumerate() {
            *arg = i64::from_le_bytes(get(request, 16 + 8 * index)?);
        }
        let input = request.get(REQUEST_HEADER..)?;
        if zero || input.len() != input_len || input_len > DATA_MAX || output_cap > DATA_MAX {
            return None;
        }
        Some((
            Request {
                op,
                args,
                input_len,
                output_cap,
            },
            input,
        ))
    }
}

impl Reply {
    pub(super) fn encode(&self) -> [u8; REPLY_HEADER] {
        let mut header = [0; REPLY_HEADER];
        put(&mut header, 0, self.result.to_le_bytes());
        put(&mut header, 8, self.errno.to_le_bytes());
        put(&mut header, 12, (self.output_len as u32).to_le_bytes());
        header
    }

    /// `None` if this is no answer to a request with `output_cap`.
    pub(super) fn decode(reply: &[u8], output_cap: usize) -> Option<Reply> {
        let result = i64::from_le_bytes(get(reply, 0)?);
        let errno = i32::from_le_bytes(get(reply, 8)?);
        let output_len = u32::from_le_bytes(get(reply, 12)?) as usize;
        let fits = output_len <= output_cap && reply.len() == REPLY_HEADER + output_len;
        (fits && (0..4096).contains(&errno)).then_some(Reply {
            result,
            errno,
            output_len,
        })
    }
}

/// Whether a peer can have sent the request; if so, it says the same when it is written again.
#[cfg(any(test, fuzzing))]
pub(crate) fn check_request(bytes: &[u8]) -> bool {
    let Some((request, input)) = Request::decode(bytes) else {
        return false;
    };
    assert_eq!([&request.encode()[..], input].concat(), bytes);
    true
}

/// The same for a reply to a request with room for as much as it has.
#[cfg(any(test, fuzzing))]
pub(crate) fn check_reply(bytes: &[u8]) {
    let room = bytes.len().saturating_sub(REPLY_HEADER);
    if let Some(reply) = Reply::decode(bytes, room) {
        assert_eq!(reply.output_len, room);
        assert_eq!(reply.encode()[..], bytes[..REPLY_HEADER]);
        assert!(room == 0 || Reply::decode(bytes, room - 1).is_none());
    }
}

/// A request that makes sense, as far as one can tell before it is carried out.
#[cfg(test)]
pub(crate) fn a_request(op: u16, input: &[u8]) -> Vec<u8> {
    let ops = Op::ALL;
    let request = Request {
        op: ops[usize::from(op) % ops.len()],
        args: [i64::from(op); ARGS],
        input_len: input.len(),
        output_cap: DATA_MAX,
    };
    [&request.encode()[..], input].concat()
}
