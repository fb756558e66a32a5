//! One host call of a virtual CPU: gather the input, run it here or on its owner, hand back the
//! output.

use super::env::{Env, Place, fail, set_errno};
use super::exec::{Done, Op, Work, exec};
use super::export;
use super::slot::Slot;
use super::wire::{self, ARGS, DATA_MAX, REPLY_HEADER, REQUEST_HEADER, REQUEST_MAX};
use core::ffi::c_char;

/// Longest path, with its NUL, as in the kernel.
pub(super) const PATH_MAX: usize = 4096;

/// A call in a slot. The input is gathered behind the room for a request's header, so that
/// forwarding copies nothing again. Context: signal.
pub(super) struct Job {
    env: &'static Env,
    slot: Slot,
    work: Work,
    output_len: usize,
    node: u16,
}

impl Job {
    /// `None` with errno set if there is no slot.
    pub(super) fn new(env: &'static Env, op: Op, args: [i64; ARGS]) -> Option<Job> {
        let Some(slot) = Slot::claim() else {
            set_errno(libc::ENOMEM);
            return None;
        };
        let work = Work {
            op,
            args,
            input: slot.request().wrapping_add(REQUEST_HEADER),
            input_len: 0,
            output: slot.reply().wrapping_add(REPLY_HEADER),
            output_cap: 0,
            tmp: slot.tmp(),
        };
        Some(Job {
            env,
            slot,
            work,
            output_len: 0,
            node: 0,
        })
    }

    /// Where the next input goes.
    pub(super) fn input_end(&self) -> *mut u8 {
        self.work.input.cast_mut().wrapping_add(self.work.input_len)
    }

    pub(super) fn input_room(&self) -> usize {
        DATA_MAX - self.work.input_len
    }

    /// Counts `len` bytes that were written at [`Job::input_end`].
    pub(super) fn added(&mut self, len: usize) {
        self.work.input_len = (self.work.input_len + len).min(DATA_MAX);
    }

    /// Appends `len` bytes; false if they do not fit.
    ///
    /// # Safety
    /// `from` must be readable over `len` bytes, as the wrapper's caller promised to libc.
    pub(super) unsafe fn put(&mut self, from: *const u8, len: usize) -> bool {
        if len > self.input_room() {
            return false;
        }
        // SAFETY: the room was checked; the slot is distinct from anything the caller has.
        unsafe { self.input_end().copy_from_nonoverlapping(from, len) };
        self.work.input_len += len;
        true
    }

    /// Pads the input to a multiple of `align`.
    pub(super) fn pad(&mut self, align: usize) {
        let padded = self.work.input_len.next_multiple_of(align).min(DATA_MAX);
        let len = padded - self.work.input_len;
        // SAFETY: inside the input buffer.
        unsafe { self.input_end().write_bytes(0, len) };
        self.work.input_len = padded;
    }

    /// Appends a path with its NUL; false with errno set if it is too long or no pointer at all.
    ///
    /// # Safety
    /// `path` must be null or a string.
    pub(super) unsafe fn put_path(&mut self, path: *const c_char) -> bool {
        if path.is_null() {
            set_errno(libc::EFAULT);
            return false;
        }
        // SAFETY: the caller promised a string; this and the copy touch guest memory in user mode.
        let len = unsafe { libc::strnlen(path, PATH_MAX) };
        // SAFETY: as above; the NUL is there if the length is below the limit.
        if len == PATH_MAX || !unsafe { self.put(path.cast(), len + 1) } {
            set_errno(libc::ENAMETOOLONG);
            return false;
        }
        true
    }

    /// Asks for up to `len` bytes of output.
    pub(super) fn want(&mut self, len: usize) {
        self.work.output_cap = len.min(DATA_MAX);
    }

    pub(super) fn set_arg(&mut self, index: usize, value: i64) {
        if let Some(arg) = self.work.args.get_mut(index) {
            *arg = value;
        }
    }

    /// Starts the input anew, for the next part of a long transfer.
    pub(super) fn clear_input(&mut self) {
        self.work.input_len = 0;
    }

    /// Runs the call on `node`; sets errno if it failed, and returns its result.
    pub(super) fn run(&mut self, node: u16) -> i64 {
        self.node = node;
        let done = if node == (self.env.node)() {
            self.run_here()
        } else {
            self.forward(node)
        };
        self.output_len = done.output_len;
        if done.errno != 0 {
            set_errno(done.errno);
        }
        done.result
    }

    /// Runs a call on paths on the node that they are of.
    pub(super) fn run_on_owner(&mut self) -> i64 {
        match export::owner(&self.work) {
            None => self.run(self.env.path_owner()),
            Some(Ok(node)) => self.run(node),
            Some(Err(error)) => fail(error),
        }
    }

    /// Where the call ran last.
    pub(super) fn node(&self) -> u16 {
        self.node
    }

    fn run_here(&self) -> Done {
        let (env, work) = (self.env, self.work);
        if work.op.needs_host_stack() || export::concerns(&work) || export::is_about_held(&work) {
            self.slot.on_host_stack(move || exec(env, &work))
        } else {
            exec(env, &work)
        }
    }

    fn forward(&self, node: u16) -> Done {
        let Work {
            op,
            args,
            input_len,
            output_cap,
            ..
        } = self.work;
        let header = wire::Request {
            op,
            args,
            input_len,
            output_cap,
        }
        .encode();
        let request = self.slot.request();
        let reply = self.slot.reply();
        // SAFETY: the header's room in front of the input.
        unsafe { request.copy_from_nonoverlapping(header.as_ptr(), REQUEST_HEADER) };
        let forward = self.env.forward;
        self.slot.on_host_stack(move || {
            let request_len = (REQUEST_HEADER + input_len).min(REQUEST_MAX);
            // SAFETY: two distinct buffers of this slot, at least as long as the lengths say.
            let (request, reply) = unsafe {
                (
                    core::slice::from_raw_parts(request, request_len),
                    core::slice::from_raw_parts_mut(reply, REPLY_HEADER + output_cap),
                )
            };
            let len = forward(node, request, reply);
            match wire::Reply::decode(reply.get(..len).unwrap_or_default(), output_cap) {
                Some(wire::Reply {
                    result,
                    errno,
                    output_len,
                }) => Done {
                    result,
                    errno,
                    output_len,
                },
                None if op.is_on_path() => Done::error(libc::EHOSTUNREACH),
                None => Done::error(libc::EIO),
            }
        })
    }

    /// The output of the call that ran last: a pointer into the slot, and its length.
    pub(super) fn output(&self) -> (*const u8, usize) {
        (self.work.output, self.output_len)
    }

    /// Copies up to `cap` bytes of the output to the caller; returns how many.
    ///
    /// # Safety
    /// `to` must be writable over `cap` bytes, as the wrapper's caller promised to libc.
    pub(super) unsafe fn take(&self, to: *mut u8, cap: usize) -> usize {
        let len = self.output_len.min(cap);
        // SAFETY: the output holds `len` bytes; the slot is distinct from anything the caller has.
        unsafe { to.copy_from_nonoverlapping(self.work.output, len) };
        len
    }
}

/// A call whose arguments are all values. Here it needs no slot.
pub(super) fn by_value(env: &'static Env, place: Place, op: Op, rest: [i64; 4]) -> i64 {
    let [a, b, c, d] = rest;
    let args = [place.raw().into(), a, b, c, d, 0];
    let none = core::ptr::null_mut();
    let work = Work {
        op,
        args,
        input: none,
        input_len: 0,
        output: none,
        output_cap: 0,
        tmp: none,
    };
    match place {
        Place::Here(_) if !op.needs_host_stack() && !export::is_about_held(&work) => {
            let done = exec(env, &work);
            if done.errno != 0 {
                set_errno(done.errno);
            }
            done.result
        }
        _ => match Job::new(env, op, args) {
            Some(mut job) => job.run(place.node(env)),
            None => -1,
        },
    }
}

/// A call on one path: the result, and the job for its output.
///
/// # Safety
/// `path` must be null or a string.
pub(super) unsafe fn on_path(
    env: &'static Env,
    op: Op,
    args: [i64; ARGS],
    path: *const c_char,
    want: usize,
) -> (i64, Option<Job>) {
    let Some(mut job) = Job::new(env, op, args) else {
        return (-1, None);
    };
    // SAFETY: as the caller promised.
    if !unsafe { job.put_path(path) } {
        return (-1, None);
    }
    job.want(want);
    let result = job.run_on_owner();
    (result, Some(job))
}

/// A refusal that the guest should not meet: says so and fails with `error`.
#[cold]
pub(super) fn refuse(env: &'static Env, error: i32, what: core::fmt::Arguments<'_>) -> i64 {
    super::env::note(env, what);
    fail(error)
}
