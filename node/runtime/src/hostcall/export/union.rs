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

use super::super::env::Env;
use super::super::exec::{Done, Op, Work, exec};
use super::super::slot::TMP_BYTES;
use super::super::wire::{ARGS, REPLY_HEADER, REQUEST_HEADER, Reply, Request};
use super::directory::owned;
use super::listing::{self, Entry, NAME_AT, Source, lock};
use super::opened::{Held, Opened};
use super::{SCHEME, paths, split};
use crate::hostcall::env::{self, FD_MASK, NODE_SHIFT};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

pub(super) const NAME: &[u8] = b"union";

/// More would not fit a path.
const MEMBERS_MAX: usize = 16;
/// What is copied at a time.
const CHUNK: usize = 64 * 1024;
/// Unions that are remembered, with what is known of their members.
const UNIONS_MAX: usize = 256;

static UNIONS: Mutex<BTreeMap<Vec<u8>, Arc<Union>>> = Mutex::new(BTreeMap::new());

#[derive(Debug)]
struct Member {
    node: u16,
    /// As the user calls it.
    name: String,
    /// What stands before a path in it.
    prefix: Vec<u8>,
    degraded: AtomicBool,
}

#[derive(Debug)]
struct Union {
    members: Vec<Member>,
    /// One change at a time.
    changes: Mutex<()>,
}

/// The text that names the members, and the path in them. Context: signal.
fn parts(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = rest.strip_prefix(b"/")?;
    // The root itself has no path behind its slash.
    match rest.windows(2).rposition(|two| two == b"//") {
        Some(end) => Some((rest.get(..end)?, rest.get(end + 1..)?)),
        None => Some((rest.strip_suffix(b"/")?, b"/")),
    }
}

/// Node and directory of a member. Context: signal.
fn member(text: &[u8]) -> (&[u8], &[u8]) {
    match text.iter().position(|byte| b":/".contains(byte)) {
        Some(end) if text[end] == b':' => (&text[..end], &text[end + 1..]),
        _ => (b"", text),
    }
}

/// The node of the first member. Context: signal.
pub(super) fn first_node(rest: &[u8]) -> &[u8] {
    let members = parts(rest).map_or(rest, |(members, _)| members);
    let first = members.split(|byte| *byte == b'+').next();
    member(first.unwrap_or_default()).0
}

/// What a member answers.
type Answer = Result<(i64, Vec<u8>), i32>;

/// What a call takes along.
#[derive(Debug, Clone, Copy)]
struct Call<'c> {
    op: Op,
    args: [i64; ARGS],
    /// Before the paths.
    before: &'c [u8],
    output: usize,
}

impl Call<'_> {
    fn new(op: Op, args: [i64; ARGS], output: usize) -> Self {
        Self {
            op,
            args,
            before: b"",
            output,
        }
    }
}

/// Has a node do something, this one or another.
fn ask(env: &Env, node: u16, call: Call<'_>, input: &[u8]) -> Answer {
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
fn has_not(error: i32) -> bool {
    matches!(error, libc::ENOENT | libc::ENOTDIR | libc::EHOSTUNREACH)
}

fn text(error: i32) -> std::io::Error {
    std::io::Error::from_raw_os_error(error)
}

impl Union {
    /// The first time, which is when it is mounted, all of its members have to be there: one that is not would never have
    /// what the others have.
    fn of(env: &Env, members: &[u8]) -> Result<Arc<Self>, i32> {
        if let Some(union) = lock(&UNIONS).get(members) {
            return Ok(union.clone());
        }
        let union = Arc::new(Self::parse(members)?);
        for at in 0..union.members.len() {
            let (_, statx) = union.on_path(env, at, LOOK, &[b"/"])?;
            let mode = statx_of(&statx).map_or(0, |statx| u32::from(statx.stx_mode));
            match mode & libc::S_IFMT {
                libc::S_IFDIR => {}
                libc::S_IFLNK => return Err(libc::ELOOP),
                _ => return Err(libc::ENOTDIR),
            }
        }
        let mut unions = lock(&UNIONS);
        if let Some(union) = unions.get(members) {
            return Ok(union.clone());
        }
        if unions.len() < UNIONS_MAX {
            unions.insert(members.to_vec(), union.clone());
        }
        Ok(union)
    }

    fn parse(members: &[u8]) -> Result<Self, i32> {
        let mut all: Vec<Member> = Vec::new();
        for text in members.split(|byte| *byte == b'+') {
            let (node, directory) = member(text);
            // Databases have rules of their own, and a union of unions would wait for itself.
            let plain = directory.first() == Some(&b'/') && !super::is_reserved(node);
            let prefix = [SCHEME, node, b"/", directory].concat();
            let again = all.iter().any(|member| member.prefix == prefix);
            if !plain || again || all.len() == MEMBERS_MAX {
                return Err(libc::EINVAL);
            }
            all.push(Member {
                node: super::node_of(node)?,
                name: String::from_utf8_lossy(text).into_owned(),
                prefix,
                degraded: AtomicBool::new(false),
            });
        }
        match all.len() {
            0 | 1 => Err(libc::EINVAL),
            _ => Ok(Self {
                members: all,
                changes: Mutex::new(()),
            }),
        }
    }

    /// In the order in which they are read.
    fn readable(&self) -> impl Iterator<Item = usize> {
        let degraded = |at: &usize| self.members[*at].degraded.load(Relaxed);
        let sound = (0..self.members.len()).filter(move |at| !degraded(at));
        sound.chain((0..self.members.len()).filter(degraded))
    }

    fn degrade(&self, env: &Env, at: usize, what: &str, error: i32) {
        if let Some(member) = self.members.get(at)
            && !member.degraded.swap(true, Relaxed)
        {
            let why = text(error);
            (env.log)(&format!(
                "union: {} is degraded: {what}: {why}",
                member.name
            ));
        }
    }

    fn on_path(&self, env: &Env, at: usize, call: Call<'_>, names: &[&[u8]]) -> Answer {
        let member = self.members.get(at).ok_or(libc::EINVAL)?;
        let mut input = call.before.to_vec();
        for name in names {
            match name.first() {
                // A path in the union; what a symbolic link says is another thing.
                Some(b'/') => input.extend([&member.prefix, *name].concat()),
                _ => input.extend_from_slice(&name[1..]),
            }
            input.push(0);
        }
        ask(env, member.node, call, &input)
    }

    /// Asks one after the other until one has it.
    fn read(&self, env: &Env, call: Call<'_>, path: &[u8]) -> Result<(usize, i64, Vec<u8>), i32> {
        let mut error = libc::ENOENT;
        for at in self.readable() {
            match self.on_path(env, at, call, &[path]) {
                Ok((result, output)) => return Ok((at, result, output)),
                Err(libc::EHOSTUNREACH) => {
                    self.degrade(env, at, "is not reached", libc::EHOSTUNREACH);
                    error = if error == libc::ENOENT {
                        libc::EHOSTUNREACH
                    } else {
                        error
                    };
                }
                Err(other) if has_not(other) => error = other,
                Err(other) => return Err(other),
            }
        }
        Err(error)
    }

    /// Has all of them do something.
    fn change(
        &self,
        env: &Env,
        what: &str,
        mut act: impl FnMut(usize) -> Result<(), i32>,
    ) -> Result<(), i32> {
        let (mut done, mut missed, mut failed) = (false, None, None);
        for at in self.readable() {
            match act(at) {
                Ok(()) => done = true,
                Err(error) if has_not(error) => {
                    missed = missed.or(Some(error));
                    if error == libc::EHOSTUNREACH {
                        self.degrade(env, at, what, error);
                        failed = failed.or(Some(error));
                    }
                }
                // Nothing has happened yet.
                Err(error) if !done => return Err(error),
                Err(error) => {
                    self.degrade(env, at, what, error);
                    failed = failed.or(Some(error));
                }
            }
        }
        match (failed, done) {
            (Some(error), _) => Err(error),
            (None, true) => Ok(()),
            (None, false) => Err(missed.unwrap_or(libc::ENOENT)),
        }
    }

    /// Makes the directories above a path in a member, as another has them.
    fn make_way(&self, env: &Env, at: usize, path: &[u8]) -> Result<(), i32> {
        let ends = path
            .iter()
            .enumerate()
            .filter(|(at, byte)| *at > 0 && **byte == b'/');
        for (end, _) in ends {
            let above = &path[..end];
            if self.on_path(env, at, LOOK, &[above]).is_ok() {
                continue;
            }
            let (_, _, statx) = self.read(env, LOOK, above)?;
            let mode = statx_of(&statx).map_or(0o755, |statx| statx.stx_mode & 0o7777);
            let make = Call::new(Op::PathMkdir, [mode.into(), 0, 0, 0, 0, 0], 0);
            self.on_path(env, at, make, &[above])?;
        }
        Ok(())
    }

    /// Makes something, in a directory that is made first where it is not.
    fn making(&self, env: &Env, at: usize, path: &[u8], act: impl Fn() -> Answer) -> Answer {
        match act() {
            Err(libc::ENOENT) => {
                self.make_way(env, at, path)?;
                // That the member itself is not there is no excuse.
                act().map_err(|error| match error {
                    libc::ENOENT => libc::EIO,
                    error => error,
                })
            }
            answer => answer,
        }
    }

    /// Opens a file in one member; to write, with what another has in it if it is not there.
    fn open_in(
        &self,
        env: &Env,
        at: usize,
        path: &[u8],
        args: [i64; ARGS],
        source: Option<(u16, i64)>,
    ) -> Result<i64, i32> {
        let call = Call::new(Op::PathOpen, args, 0);
        let open = |call| self.on_path(env, at, call, &[path]);
        match open(call) {
            Ok((handle, _)) => Ok(handle),
            Err(libc::ENOENT) if args[0] as i32 & libc::O_CREAT != 0 => {
                Ok(self.making(env, at, path, || open(call))?.0)
            }
            Err(libc::ENOENT) => {
                let source = source.ok_or(libc::ENOENT)?;
                // Another has it: that it is not here is no excuse from now on.
                self.copy_to(env, at, path, source)
                    .map_err(|error| match error {
                        libc::ENOENT => libc::EIO,
                        error => error,
                    })
            }
            Err(error) => Err(error),
        }
    }

    /// Makes a file as another member has it.
    fn copy_to(
        &self,
        env: &Env,
        at: usize,
        path: &[u8],
        (node, from): (u16, i64),
    ) -> Result<i64, i32> {
        let mut args = on_handle(from, STATX_ARGS);
        args[1] = libc::AT_EMPTY_PATH.into();
        let (_, statx) = ask(env, node, Call { args, ..LOOK }, b"")?;
        let statx = statx_of(&statx).ok_or(libc::EIO)?;
        let flags = i64::from(libc::O_CREAT | libc::O_EXCL | libc::O_RDWR);
        let mode = i64::from(statx.stx_mode & 0o7777);
        let create = Call::new(Op::PathOpen, [flags, mode, 0, 0, 0, 0], 0);
        let make = || self.on_path(env, at, create, &[path]);
        let (to, _) = self.making(env, at, path, make)?;
        let there = self.members[at].node;
        copy(env, (node, from), (there, to)).inspect_err(|_| close(env, to))?;
        Ok(to)
    }

    fn open(self: &Arc<Self>, env: &Env, path: &[u8], args: [i64; ARGS]) -> Result<Opened, i32> {
        let flags = args[0] as i32;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY
            || flags & (libc::O_CREAT | libc::O_TRUNC) != 0;
        let mut file = File {
            union: self.clone(),
            handles: Vec::new(),
            path: path.to_vec(),
        };
        if !writes {
            let (first, _, statx) = self.read(env, LOOK, path)?;
            let mode = statx_of(&statx).map_or(0, |statx| u32::from(statx.stx_mode));
            if mode & libc::S_IFMT == libc::S_IFDIR {
                for at in self.readable() {
                    match self.open_in(env, at, path, args, None) {
                        Ok(handle) => file.handles.push((at, handle)),
                        Err(error) if has_not(error) => {}
                        Err(error) => return Err(error),
                    }
                }
                return listing::open(file);
            }
            let handle = self.open_in(env, first, path, args, None)?;
            file.handles.push((first, handle));
            return file.stand_in();
        }
        let _changes = lock(&self.changes);
        let mut source = None;
        // What one of them has is what all of them get.
        if flags & libc::O_CREAT == 0 {
            let (first, ..) = self.read(env, LOOK, path)?;
            let read = [i64::from(libc::O_RDONLY), 0, 0, 0, 0, 0];
            let handle = self.open_in(env, first, path, read, None)?;
            source = Some((self.members[first].node, handle));
        }
        let opened = self.change(env, "opening a file", |at| {
            let handle = self.open_in(env, at, path, args, source)?;
            file.handles.push((at, handle));
            Ok(())
        });
        if let Some((_, handle)) = source {
            close(env, handle);
        }
        // Its descriptors are closed where it fails.
        opened?;
        file.stand_in()
    }
}

const STATX_ARGS: [i64; ARGS] = [
    -1,
    libc::AT_SYMLINK_NOFOLLOW as i64,
    (libc::STATX_BASIC_STATS | libc::STATX_BTIME) as i64,
    0,
    0,
    0,
];

fn statx_of(bytes: &[u8]) -> Option<libc::statx> {
    let fits = bytes.len() == size_of::<libc::statx>();
    // SAFETY: as many bytes as the structure of numbers has; they need not be aligned.
    fits.then(|| unsafe { bytes.as_ptr().cast::<libc::statx>().read_unaligned() })
}

/// The arguments of an operation on a descriptor that a member's node gave.
fn on_handle(handle: i64, mut args: [i64; ARGS]) -> [i64; ARGS] {
    args[0] = handle & i64::from(FD_MASK);
    args
}

fn node_of_handle(handle: i64) -> u16 {
    (handle >> NODE_SHIFT) as u16
}

fn close(env: &Env, handle: i64) {
    let call = Call::new(Op::Close, on_handle(handle, [0; ARGS]), 0);
    let _ = ask(env, node_of_handle(handle), call, b"");
}

fn copy(env: &Env, from: (u16, i64), to: (u16, i64)) -> Result<(), i32> {
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

/// A file or directory that is open in those members that have it.
#[derive(Debug)]
struct File {
    union: Arc<Union>,
    handles: Vec<(usize, i64)>,
    path: Vec<u8>,
}

impl File {
    fn stand_in(self) -> Result<Opened, i32> {
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
            Ok(super::opened::hand_out(env, opened))
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

const LOOK: Call<'static> = Call {
    op: Op::PathStatx,
    args: STATX_ARGS,
    before: b"",
    output: size_of::<libc::statx>(),
};
