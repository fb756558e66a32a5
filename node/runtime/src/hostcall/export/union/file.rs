//! Files and directories of a union that are open.

use super::ask::{Answer, CHUNK, Call, ask, close, has_not, node_of_handle, on_handle};
use super::members::Union;
use crate::hostcall::env::{self, Env};
use crate::hostcall::exec::{Done, Op, Work};
use crate::hostcall::export::directory::owned;
use crate::hostcall::export::listing::{Entry, NAME_AT, Source, lock};
use crate::hostcall::export::opened::{Held, Opened};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// A file or directory that is open in those members that have it.
#[derive(Debug)]
pub(super) struct File {
    pub(super) union: Arc<Union>,
    pub(super) handles: Vec<(usize, i64)>,
    pub(super) path: Vec<u8>,
}

impl File {
    pub(super) fn stand_in(self) -> Result<Opened, i32> {
        // SAFETY: passes a string.
        let fd = unsafe { libc::memfd_create(c"span-union".as_ptr(), libc::MFD_CLOEXEC) };
        Ok(Opened {
            fd: owned(fd.into())?,
            held: Some(Arc::new(self)),
        })
    }

    fn ask(&self, env: &Env, (_, handle): (usize, i64), work: &Work) -> Answer {
        // SAFETY: the maker of the work guarantees that many bytes.
        let input = unsafe { std::slice::from_raw_parts(work.input, work.input_len) };
        let input = if work.input_len == 0 { b"" } else { input };
        let call = Call::new(work.op, on_handle(handle, work.args), work.output_cap);
        ask(env, node_of_handle(handle), call, input)
    }

    fn read(&self, env: &Env, work: &Work) -> Result<Done, i32> {
        let mut error = libc::EIO;
        let degraded = |(at, _): &&(usize, i64)| self.union.members[*at].degraded.load(Relaxed);
        let sound = self.handles.iter().filter(|handle| !degraded(handle));
        for handle in sound.chain(self.handles.iter().filter(degraded)) {
            match self.ask(env, *handle, work) {
                Ok((result, output)) => {
                    let len = output.len().min(work.output_cap);
                    // SAFETY: the work's output has room for as many.
                    unsafe { work.output.copy_from_nonoverlapping(output.as_ptr(), len) };
                    let mut done = Done::of(0);
                    (done.result, done.output_len) = (result, len);
                    return Ok(done);
                }
                Err(other) => {
                    error = other;
                    self.union.degrade(env, handle.0, "reading a file", other);
                }
            }
        }
        Err(error)
    }

    fn write(&self, env: &Env, work: &Work) -> Result<Done, i32> {
        let _changes = lock(&self.union.changes);
        let mut first = None;
        let mut failed = None;
        for handle in &self.handles {
            match (self.ask(env, *handle, work), first) {
                (Ok((result, _)), None) => first = Some(result),
                (Ok((result, _)), Some(wanted)) if result == wanted => {}
                (Ok(_), _) => {
                    self.union
                        .degrade(env, handle.0, "writing to a file", libc::EIO);
                    failed = failed.or(Some(libc::EIO));
                }
                // Nothing has happened yet, and the member is there.
                (Err(error), None) if error != libc::EHOSTUNREACH => return Err(error),
                (Err(error), _) => {
                    self.union
                        .degrade(env, handle.0, "writing to a file", error);
                    failed = failed.or(Some(error));
                }
            }
        }
        match (failed, first) {
            (Some(error), _) => Err(error),
            (None, Some(result)) => {
                let mut done = Done::of(0);
                done.result = result;
                Ok(done)
            }
            (None, None) => Err(libc::EIO),
        }
    }
}

impl Held for File {
    fn exec(&self, env: &Env, work: &Work) -> Option<Done> {
        let done = match work.op {
            Op::Pread | Op::PathStatx | Op::Stat => self.read(env, work),
            Op::Pwrite
            | Op::Sync
            | Op::Truncate
            | Op::Allocate
            | Op::Mode
            | Op::Owner
            | Op::Times => self.write(env, work),
            _ => Err(libc::EOPNOTSUPP),
        };
        Some(done.unwrap_or_else(Done::error))
    }
}

impl Source for File {
    fn entries(&self) -> Result<Vec<Entry>, i32> {
        let env = env::any().ok_or(libc::EIO)?;
        let mut names = BTreeSet::new();
        let mut entries = Vec::new();
        for (at, _) in &self.handles {
            // Anew, so that a directory can be listed more than once.
            let open = Call::new(
                Op::PathOpen,
                [i64::from(libc::O_RDONLY | libc::O_DIRECTORY), 0, 0, 0, 0, 0],
                0,
            );
            let handle = match self.union.on_path(env, *at, open, &[&self.path]) {
                Ok((handle, _)) => handle,
                Err(error) if has_not(error) => continue,
                Err(error) => return Err(error),
            };
            let result = list(env, handle, |entry| {
                if names.insert(entry.name.clone()) {
                    entries.push(entry);
                }
            });
            close(env, handle);
            result?;
        }
        Ok(entries)
    }

    fn exec(&self, env: &Env, work: &Work) -> Option<Done> {
        Held::exec(self, env, work)
    }
}

fn list(env: &Env, handle: i64, mut each: impl FnMut(Entry)) -> Result<(), i32> {
    loop {
        let args = on_handle(handle, [0, CHUNK as i64, 0, 0, 0, 0]);
        let (_, bytes) = ask(
            env,
            node_of_handle(handle),
            Call::new(Op::Entries, args, CHUNK),
            b"",
        )?;
        if bytes.is_empty() {
            return Ok(());
        }
        let mut rest = &bytes[..];
        while rest.len() > NAME_AT {
            let len = usize::from(u16::from_ne_bytes([rest[16], rest[17]]));
            let record = rest.get(..len.max(NAME_AT)).ok_or(libc::EIO)?;
            let mut inode = [0; 8];
            inode.copy_from_slice(&record[..8]);
            let name = record[NAME_AT..].split(|byte| *byte == 0).next();
            each(Entry {
                inode: u64::from_ne_bytes(inode),
                kind: record[NAME_AT - 1],
                name: name.unwrap_or_default().to_vec(),
            });
            rest = &rest[len.max(NAME_AT)..];
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if let Some(env) = env::any() {
            for (_, handle) in &self.handles {
                close(env, *handle);
            }
        }
    }
}
