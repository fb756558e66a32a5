//! A directory whose files have owners, modes and kinds of the guest's, so that an ordinary user can hold a root file
//! system in it.
//!
//! What the host's file does not say is kept in one extended attribute of the file's, [`RECORD`]: it is renamed,
//! linked and removed with it, is written at once or not at all, and is nothing that the guest sees. A file without it
//! belongs to root and has the host's mode. The host's file stays the user's, who may read and write it whatever its mode
//! is for the guest. Devices, pipes and sockets are empty files, a symbolic link is a file with what it says: only
//! files and directories have such attributes. Those that somebody made on the host are what they are, and root's.

use super::directory::{Directory, Last, STEADY, checked, link, owned, proc_path, statx_of};
use super::listing::{NAME_AT, lock};
use super::opened::{Held, Opened};
use super::tree::Tree;
use crate::hostcall::env::Env;
use crate::hostcall::exec::{Done, Op, Work};
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

const RECORD: &CStr = c"user.span";
const RECORD_BYTES_MAX: usize = 256;

/// hostfs gives new files to who makes them. A bit of statx(2)'s attributes that no file system has.
const ATTRIBUTE_MAPPED: u64 = 1 << 62;

/// What of a mode is the guest's.
const RIGHTS: u32 = 0o7777;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    mode: u32,
    user: u32,
    group: u32,
    major: u32,
    minor: u32,
}

impl Record {
    /// Of a file that has none.
    fn of(statx: &libc::statx) -> Self {
        Self {
            mode: statx.stx_mode.into(),
            user: 0,
            group: 0,
            major: statx.stx_rdev_major,
            minor: statx.stx_rdev_minor,
        }
    }

    fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// For who reads the attribute on the host.
    fn text(&self) -> String {
        let Self {
            mode,
            user,
            group,
            major,
            minor,
        } = self;
        format!("mode={mode:o} uid={user} gid={group} rdev={major}:{minor}")
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(text).ok()?.split(' ');
        let mut word = |name: &str| words.next()?.strip_prefix(name)?.strip_prefix('=');
        let record = Self {
            mode: u32::from_str_radix(word("mode")?, 8).ok()?,
            user: word("uid")?.parse().ok()?,
            group: word("gid")?.parse().ok()?,
            major: 0,
            minor: 0,
        };
        let (major, minor) = word("rdev")?.split_once(':')?;
        Some(Self {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            ..record
        })
    }

    /// Of the host's file. The user can always read and write it; what others may is as the guest says.
    fn host_mode(&self) -> u32 {
        match self.kind() {
            libc::S_IFREG => self.mode & 0o777 | 0o600,
            libc::S_IFDIR => self.mode & 0o777 | 0o700,
            _ => 0o600,
        }
    }
}

/// Whether what a descriptor is of can have a record.
fn keeps(statx: &libc::statx) -> bool {
    matches!(
        u32::from(statx.stx_mode) & libc::S_IFMT,
        libc::S_IFREG | libc::S_IFDIR
    )
}

fn load(fd: RawFd, statx: &libc::statx) -> Result<Option<Record>, i32> {
    if !keeps(statx) {
        return Ok(None);
    }
    let path = proc_path(fd)?;
    let mut text = [0; RECORD_BYTES_MAX];
    // SAFETY: passes strings and a local with its length.
    let n = unsafe {
        let to = text.as_mut_ptr().cast();
        libc::getxattr(path.as_ptr(), RECORD.as_ptr(), to, text.len())
    };
    match checked(n as i64) {
        Ok(n) => match Record::parse(text.get(..n as usize).unwrap_or_default()) {
            Some(record) => Ok(Some(record)),
            // Somebody else wrote it.
            None => Err(libc::EIO),
        },
        Err(libc::ENODATA) => Ok(None),
        Err(error) => Err(error),
    }
}

fn store(fd: RawFd, record: &Record) -> Result<(), i32> {
    let (path, text) = (proc_path(fd)?, record.text());
    // SAFETY: passes strings and text with its length.
    checked(unsafe {
        let from = text.as_ptr().cast();
        libc::setxattr(path.as_ptr(), RECORD.as_ptr(), from, text.len(), 0)
    })?;
    Ok(())
}

/// What the guest sees of what a descriptor is of.
fn look(fd: RawFd, flags: i32, mask: u32) -> Result<libc::statx, i32> {
    let mut statx = statx_of(fd, flags, mask | libc::STATX_TYPE | libc::STATX_MODE)?;
    let record = load(fd, &statx)?.unwrap_or(Record::of(&statx));
    statx.stx_mode = record.mode as u16;
    (statx.stx_uid, statx.stx_gid) = (record.user, record.group);
    (statx.stx_rdev_major, statx.stx_rdev_minor) = (record.major, record.minor);
    statx.stx_attributes |= ATTRIBUTE_MAPPED;
    Ok(statx)
}

/// Records are read, changed and written under one lock.
static RECORDS: Mutex<()> = Mutex::new(());

fn change(fd: RawFd, change: impl FnOnce(&mut Record)) -> Result<(), i32> {
    let _lock = lock(&RECORDS);
    let statx = statx_of(fd, 0, libc::STATX_BASIC_STATS)?;
    let mut record = load(fd, &statx)?.unwrap_or(Record::of(&statx));
    let before = record;
    change(&mut record);
    if !keeps(&statx) {
        // There is no place to keep it.
        return match record == before {
            true => Ok(()),
            false => Err(libc::EPERM),
        };
    }
    store(fd, &record)?;
    let mode = record.host_mode();
    if u32::from(statx.stx_mode) & RIGHTS != mode {
        let path = proc_path(fd)?;
        // SAFETY: passes a string.
        checked(unsafe { libc::chmod(path.as_ptr(), mode) })?;
    }
    Ok(())
}

fn set_mode(fd: RawFd, mode: u32) -> Result<(), i32> {
    change(fd, |record| record.mode = record.kind() | mode & RIGHTS)
}

fn set_owner(fd: RawFd, user: u32, group: u32) -> Result<(), i32> {
    const AS_IT_IS: u32 = u32::MAX;
    change(fd, |record| {
        if user != AS_IT_IS {
            record.user = user;
        }
        if group != AS_IT_IS {
            record.group = group;
        }
    })
}

#[derive(Debug)]
pub(super) struct Mapped(Directory);

impl Mapped {
    pub(super) fn open(path: &Path, read_only: bool) -> Result<Self, String> {
        let said = |error: i32| std::io::Error::from_raw_os_error(error).to_string();
        let directory = Directory::open(path).map_err(said)?;
        if !read_only {
            let path =
                CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
            let probe = c"user.span.probe";
            // SAFETY: passes strings.
            let set = checked(unsafe {
                let set = libc::setxattr(path.as_ptr(), probe.as_ptr(), path.as_ptr().cast(), 1, 0);
                libc::removexattr(path.as_ptr(), probe.as_ptr());
                set
            });
            set.map_err(|error| {
                format!(
                    "owners=mapped needs extended attributes (user.*) there: {}",
                    said(error)
                )
            })?;
        }
        Ok(Self(directory))
    }

    /// Calls; if the user lacks a right to what is the user's own, gives that and calls again: the guest decides what
    /// who may do.
    fn allowed<T>(&self, path: &Path, call: impl Fn() -> Result<T, i32>) -> Result<T, i32> {
        match call() {
            Err(libc::EACCES) => {
                let mut ways: Vec<&Path> = path.ancestors().collect();
                ways.reverse();
                for way in ways {
                    match self.0.itself(way) {
                        Ok(file) => change_to_use(file.as_raw_fd())?,
                        Err(libc::ENOENT) => break,
                        Err(error) => return Err(error),
                    }
                }
                call()
            }
            result => result,
        }
    }

    /// A new file with a record from its first moment on.
    fn make(&self, path: &Path, record: &Record, content: &[u8]) -> Result<(), i32> {
        let last = self.allowed(path, || self.0.last(path))?;
        let flags = libc::O_WRONLY | libc::O_CLOEXEC;
        let unnamed = || {
            // SAFETY: passes a string.
            owned(
                unsafe { libc::openat(last.at(), c".".as_ptr(), flags | libc::O_TMPFILE, 0o600) }
                    .into(),
            )
        };
        match self.allowed(path, unnamed) {
            Ok(file) => {
                fill(&file, record, content)?;
                let from = proc_path(file.as_raw_fd())?;
                let (follow, cwd) = (libc::AT_SYMLINK_FOLLOW, libc::AT_FDCWD);
                // SAFETY: passes strings.
                checked(unsafe {
                    libc::linkat(cwd, from.as_ptr(), last.at(), last.name().as_ptr(), follow)
                })?;
                Ok(())
            }
            Err(libc::EOPNOTSUPP | libc::EISDIR) => named(&last, flags, record, content),
            Err(error) => Err(error),
        }
    }
}

/// Where the file system has no files without a name.
fn named(last: &Last, flags: i32, record: &Record, content: &[u8]) -> Result<(), i32> {
    let flags = flags | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
    // SAFETY: passes a string.
    let file =
        owned(unsafe { libc::openat(last.at(), last.name().as_ptr(), flags, 0o600) }.into())?;
    fill(&file, record, content).inspect_err(|_| {
        // SAFETY: passes a string.
        unsafe { libc::unlinkat(last.at(), last.name().as_ptr(), 0) };
    })
}

fn fill(file: &OwnedFd, record: &Record, content: &[u8]) -> Result<(), i32> {
    // SAFETY: passes a slice with its length.
    let n = checked(unsafe {
        libc::write(file.as_raw_fd(), content.as_ptr().cast(), content.len()) as i64
    })?;
    if n as usize != content.len() {
        return Err(libc::ENOSPC);
    }
    store(file.as_raw_fd(), record)
}

/// Keeps the mode that the guest sees, and lets the user read and write.
fn change_to_use(fd: RawFd) -> Result<(), i32> {
    let statx = statx_of(fd, 0, libc::STATX_BASIC_STATS)?;
    // SAFETY: no conditions.
    let mine = statx.stx_uid == unsafe { libc::geteuid() };
    match mine && keeps(&statx) {
        true => change(fd, |_| {}),
        false => Ok(()),
    }
}

/// A file that the guest has open.
#[derive(Debug)]
struct MappedFile;

impl Held for MappedFile {
    fn exec(&self, _: &Env, work: &Work) -> Option<Done> {
        let fd = work.fd();
        let done = match work.op {
            Op::PathStatx => {
                let flags = work.int(1) & libc::AT_STATX_SYNC_TYPE;
                look(fd, flags, work.int(2) as u32).and_then(|statx| super::give(work, statx))
            }
            Op::Mode => set_mode(fd, work.int(1) as u32).map(|()| Done::of(0)),
            Op::Owner => {
                set_owner(fd, work.int(1) as u32, work.int(2) as u32).map(|()| Done::of(0))
            }
            Op::Entries => Ok(entries(fd, work)),
            _ => return None,
        };
        Some(done.unwrap_or_else(Done::error))
    }
}

/// What looks like a file may be something else: what it is, is for who looks at it itself.
fn entries(fd: RawFd, work: &Work) -> Done {
    const KIND_AT: usize = NAME_AT - 1;
    // SAFETY: passes the work's output with its length.
    let n = unsafe { libc::syscall(libc::SYS_getdents64, fd, work.output, work.output_cap) };
    let done = Done::with_output(n, n.max(0) as usize);
    // SAFETY: the host has filled that many bytes.
    let mut rest = unsafe { std::slice::from_raw_parts_mut(work.output, done.output_len) };
    while rest.len() > NAME_AT {
        if rest[KIND_AT] == libc::DT_REG {
            rest[KIND_AT] = libc::DT_UNKNOWN;
        }
        let len = usize::from(u16::from_ne_bytes([rest[16], rest[17]]));
        rest = rest.get_mut(len.max(1)..).unwrap_or_default();
    }
    done
}

impl Tree for Mapped {
    fn open(&self, path: &Path, flags: i32, mode: u32) -> Result<Opened, i32> {
        let open = || {
            self.0
                .open_inside(path, flags | STEADY, mode & 0o777 | 0o600)
        };
        let fd = self.allowed(path, open)?;
        Ok(Opened {
            fd,
            held: Some(Arc::new(MappedFile)),
        })
    }

    fn stat(&self, path: &Path, flags: i32, mask: u32) -> Result<libc::statx, i32> {
        let file = self.allowed(path, || self.0.itself(path))?;
        look(file.as_raw_fd(), flags, mask)
    }

    fn statfs(&self, path: &Path) -> Result<libc::statfs64, i32> {
        self.0.statfs(path)
    }

    /// The guest's kernel decides by what it sees of the file.
    fn access(&self, path: &Path, _wanted: i32) -> Result<(), i32> {
        self.stat(path, 0, libc::STATX_BASIC_STATS).map(drop)
    }

    fn read_link(&self, path: &Path, to: &mut [u8]) -> Result<usize, i32> {
        let link = self.allowed(path, || self.0.itself(path))?;
        let statx = statx_of(link.as_raw_fd(), 0, libc::STATX_BASIC_STATS)?;
        match load(link.as_raw_fd(), &statx)? {
            Some(record) if record.kind() == libc::S_IFLNK => {}
            _ => return self.0.read_link(path, to),
        }
        let file = self.0.open_inside(path, libc::O_RDONLY | STEADY, 0)?;
        // SAFETY: passes a slice with its length.
        let n = unsafe { libc::pread64(file.as_raw_fd(), to.as_mut_ptr().cast(), to.len(), 0) };
        Ok(checked(n as i64)? as usize)
    }

    fn make_directory(&self, path: &Path, mode: u32) -> Result<(), i32> {
        self.allowed(path, || self.0.make_directory(path, mode & 0o777 | 0o700))
    }

    fn remove_directory(&self, path: &Path) -> Result<(), i32> {
        self.allowed(path, || self.0.remove_directory(path))
    }

    fn unlink(&self, path: &Path) -> Result<(), i32> {
        self.allowed(path, || self.0.unlink(path))
    }

    fn make_node(&self, path: &Path, mode: u32, device: u64) -> Result<(), i32> {
        let record = Record {
            mode,
            user: 0,
            group: 0,
            major: libc::major(device),
            minor: libc::minor(device),
        };
        self.make(path, &record, b"")
    }

    fn set_mode(&self, path: &Path, mode: u32) -> Result<(), i32> {
        let file = self.allowed(path, || self.0.itself(path))?;
        set_mode(file.as_raw_fd(), mode)
    }

    fn set_owner(&self, path: &Path, user: u32, group: u32) -> Result<(), i32> {
        let file = self.allowed(path, || self.0.itself(path))?;
        set_owner(file.as_raw_fd(), user, group)
    }

    fn truncate(&self, path: &Path, len: i64) -> Result<(), i32> {
        self.allowed(path, || self.0.truncate(path, len))
    }

    fn set_times(&self, path: &Path, times: &[libc::timespec; 2]) -> Result<(), i32> {
        self.allowed(path, || self.0.set_times(path, times))
    }

    fn symlink(&self, path: &Path, says: &CStr) -> Result<(), i32> {
        let record = Record {
            mode: libc::S_IFLNK | 0o777,
            user: 0,
            group: 0,
            major: 0,
            minor: 0,
        };
        self.make(path, &record, says.to_bytes())
    }

    fn link(&self, from: &Path, to: &Path) -> Result<(), i32> {
        let here = &self.0;
        self.allowed(to, || link(here, from, here, to, None))
    }

    fn rename(&self, from: &Path, to: &Path, flags: u32) -> Result<(), i32> {
        let here = &self.0;
        let rename = || link(here, from, here, to, Some(flags));
        self.allowed(from, || self.allowed(to, rename))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_is_written() {
        let record = Record {
            mode: libc::S_IFBLK | 0o4755,
            user: 1000,
            group: u32::MAX - 1,
            major: 259,
            minor: 1 << 19,
        };
        assert_eq!(
            record.text(),
            "mode=64755 uid=1000 gid=4294967294 rdev=259:524288"
        );
        assert_eq!(Record::parse(record.text().as_bytes()), Some(record));
        for text in [
            "",
            "mode=8 uid=0 gid=0 rdev=0:0",
            "mode=100644 uid=0 gid=0",
            "uid=0",
        ] {
            assert_eq!(Record::parse(text.as_bytes()), None, "{text}");
        }
    }
}
