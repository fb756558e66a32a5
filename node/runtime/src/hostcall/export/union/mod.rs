//! Several directories, of any nodes, at one mount point: what is read is the first's that has it, what is changed is
//! changed in all.
//!
//! The guest asks for `span://union/NODE:/directory+NODE:/directory//path`. The first member's node executes it and asks
//! the others' as it is asked itself, so each decides what it exports.
//!
//! **Reading** goes from member to member: on to the next where a member has no such file or cannot be reached. A
//! directory has what any of them has.
//!
//! **Changing** begins with the first that can be reached. If that one refuses, nothing has happened, and its error is the call's. If
//! another refuses what one before it has done, the call fails with that error, though the rest of the members have done it:
//! they differ from now on. Whoever is not as the others is *degraded*: the log names it, and it is read from last. That
//! a member has no such file is no refusal where another has it: before it is written to, it gets a copy, and before
//! something is made in a directory that it lacks, the directory.
//!
//! Changes are made one after another, so that all members see them in one order. What waits for other nodes here does
//! not keep them from being answered: a node has more threads for their calls than calls that wait.

mod ask;
mod file;
mod members;

use super::listing::lock;
use super::{opened, paths, split};
use crate::hostcall::env::Env;
use crate::hostcall::exec::{Done, Op, Work};
use ask::{Call, LOOK};
use members::{Union, parts};
use std::ffi::CStr;
use std::sync::Arc;

pub(super) use members::first_node;

pub(super) const NAME: &[u8] = b"union";

/// Executes an operation on a path of a union.
pub(super) fn run(env: &Env, work: &Work) -> Result<Done, i32> {
    let (path, second) = paths(work).ok_or(libc::EINVAL)?;
    let parts_of = |path: &CStr| {
        let (name, rest) = split(path.to_bytes())?;
        let (members, path) = parts(rest)?;
        (name == NAME).then(|| (members.to_vec(), path.to_vec()))
    };
    let (members, path) = parts_of(path).ok_or(libc::EINVAL)?;
    let second = match second.map(parts_of) {
        None => None,
        Some(Some((others, path))) if others == members => Some(path),
        Some(_) => return Err(libc::EXDEV),
    };
    on_union(
        env,
        work,
        &Union::of(env, &members)?,
        &path,
        second.as_deref(),
    )
}

fn on_union(
    env: &Env,
    work: &Work,
    union: &Arc<Union>,
    path: &[u8],
    second: Option<&[u8]>,
) -> Result<Done, i32> {
    let mut call = Call::new(work.op, work.args, work.output_cap);
    match work.op {
        Op::PathOpen => {
            let opened = union.open(env, path, work.args)?;
            Ok(opened::hand_out(env, opened))
        }
        Op::PathStat | Op::PathStatx | Op::PathStatfs | Op::PathAccess | Op::PathReadlink => {
            let (_, result, output) = union.read(env, call, path)?;
            let len = output.len().min(work.output_cap);
            // SAFETY: the work's output has room for as many.
            unsafe { work.output.copy_from_nonoverlapping(output.as_ptr(), len) };
            let mut done = Done::of(0);
            (done.result, done.output_len) = (result, len);
            Ok(done)
        }
        Op::PathMkdir | Op::PathMknod | Op::PathSymlink => {
            let says = match work.op {
                Op::PathSymlink => {
                    let (says, _) = work.text_at(0).ok_or(libc::EINVAL)?;
                    // Marked as no path of the union.
                    Some([b"=", says.to_bytes()].concat())
                }
                _ => None,
            };
            let names: Vec<&[u8]> = says.as_deref().into_iter().chain([path]).collect();
            let _changes = lock(&union.changes);
            union.change(env, "making a file", |at| {
                let make = || union.on_path(env, at, call, &names);
                union.making(env, at, path, make).map(drop)
            })?;
            Ok(Done::of(0))
        }
        _ => {
            let times = size_of::<[libc::timespec; 2]>();
            // SAFETY: the maker of the work guarantees that many bytes.
            let input = unsafe { std::slice::from_raw_parts(work.input, work.input_len) };
            if work.op == Op::PathTimes {
                call.before = input.get(..times).ok_or(libc::EINVAL)?;
            }
            let names: Vec<&[u8]> = [path].into_iter().chain(second).collect();
            let what = match work.op {
                Op::PathRmdir | Op::PathUnlink => "removing a file",
                Op::PathRename | Op::PathLink => "renaming a file",
                _ => "changing a file",
            };
            let _changes = lock(&union.changes);
            union.change(env, what, |at| {
                let act = || union.on_path(env, at, call, &names);
                match second {
                    // Where it has what is renamed, but not where it goes.
                    Some(to) => match act() {
                        Err(libc::ENOENT) if union.on_path(env, at, LOOK, &[path]).is_ok() => {
                            union.making(env, at, to, act).map(drop)
                        }
                        answer => answer.map(drop),
                    },
                    None => act().map(drop),
                }
            })?;
            Ok(Done::of(0))
        }
    }
}
