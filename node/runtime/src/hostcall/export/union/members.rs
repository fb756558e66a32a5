//! The members of a union, what is read from them and what is changed in them.

use super::ask::{Answer, Call, LOOK, STATX_ARGS, ask, close, copy, has_not, on_handle, statx_of};
use super::file::File;
use crate::hostcall::env::Env;
use crate::hostcall::exec::Op;
use crate::hostcall::export::listing::{self, lock};
use crate::hostcall::export::opened::Opened;
use crate::hostcall::export::{SCHEME, is_reserved, node_of};
use crate::hostcall::wire::ARGS;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// More would not fit a path.
const MEMBERS_MAX: usize = 16;
/// Unions that are remembered, with what is known of their members.
const UNIONS_MAX: usize = 256;

static UNIONS: Mutex<BTreeMap<Vec<u8>, Arc<Union>>> = Mutex::new(BTreeMap::new());

#[derive(Debug)]
pub(super) struct Member {
    node: u16,
    /// As the user calls it.
    name: String,
    /// What stands before a path in it.
    prefix: Vec<u8>,
    pub(super) degraded: AtomicBool,
}

#[derive(Debug)]
pub(super) struct Union {
    pub(super) members: Vec<Member>,
    /// One change at a time.
    pub(super) changes: Mutex<()>,
}

/// The text that names the members, and the path in them. Context: signal.
pub(super) fn parts(rest: &[u8]) -> Option<(&[u8], &[u8])> {
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
pub(in super::super) fn first_node(rest: &[u8]) -> &[u8] {
    let members = parts(rest).map_or(rest, |(members, _)| members);
    let first = members.split(|byte| *byte == b'+').next();
    member(first.unwrap_or_default()).0
}

fn text(error: i32) -> std::io::Error {
    std::io::Error::from_raw_os_error(error)
}

impl Union {
    /// The first time, which is when it is mounted, all of its members have to be there: one that is not would never have
    /// what the others have.
    pub(super) fn of(env: &Env, members: &[u8]) -> Result<Arc<Self>, i32> {
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
            let plain = directory.first() == Some(&b'/') && !is_reserved(node);
            let prefix = [SCHEME, node, b"/", directory].concat();
            let again = all.iter().any(|member| member.prefix == prefix);
            if !plain || again || all.len() == MEMBERS_MAX {
                return Err(libc::EINVAL);
            }
            all.push(Member {
                node: node_of(node)?,
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

    pub(super) fn degrade(&self, env: &Env, at: usize, what: &str, error: i32) {
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

    pub(super) fn on_path(&self, env: &Env, at: usize, call: Call<'_>, names: &[&[u8]]) -> Answer {
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
    pub(super) fn read(
        &self,
        env: &Env,
        call: Call<'_>,
        path: &[u8],
    ) -> Result<(usize, i64, Vec<u8>), i32> {
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
    pub(super) fn change(
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
    pub(super) fn making(
        &self,
        env: &Env,
        at: usize,
        path: &[u8],
        act: impl Fn() -> Answer,
    ) -> Answer {
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

    pub(super) fn open(
        self: &Arc<Self>,
        env: &Env,
        path: &[u8],
        args: [i64; ARGS],
    ) -> Result<Opened, i32> {
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
