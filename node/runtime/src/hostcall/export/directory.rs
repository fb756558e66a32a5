//! A directory of the host's, and nothing beside it.
//!
//! Each call resolves its path anew, from the directory's own descriptor, by openat2(2) with `RESOLVE_BENEATH`. So
//! neither `..`, nor a symbolic link, nor a directory that is renamed at the same time leads out. The guest follows
//! symbolic links itself, in its own name space; here the last part of a path is never followed.

use super::super::env::errno;
use super::super::umask;
use super::opened::Opened;
use super::sqlite;
use super::tree::Tree;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

#[derive(Debug)]
pub(super) struct Directory {
    at: OwnedFd,
    /// Whether paths must not lead out of it.
    confines: bool,
}

/// Opening does not wait for pipes. The guest opens regular files and directories: if one was exchanged for a pipe or a
/// terminal, nothing waits for it, and it does not become this process's terminal.
pub(super) const STEADY: i32 = libc::O_NONBLOCK | libc::O_NOCTTY;

pub(super) fn owned(fd: i64) -> Result<OwnedFd, i32> {
    match i32::try_from(fd) {
        // SAFETY: the caller has just got the descriptor from the host.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(errno()),
    }
}

/// The result of a call of libc's, whose errno is still there.
pub(super) fn checked(result: impl Into<i64>) -> Result<i64, i32> {
    match result.into() {
        result if result < 0 => Err(errno()),
        result => Ok(result),
    }
}

fn c_string(path: &Path) -> Result<CString, i32> {
    let bytes = match path.as_os_str().as_bytes() {
        [] => b".",
        bytes => bytes,
    };
    CString::new(bytes).map_err(|_| libc::EINVAL)
}

/// Opens something beneath a directory, wherever its names lead by now.
fn open_beneath(from: RawFd, path: &CStr, flags: i32, mode: u32) -> Result<OwnedFd, i32> {
    /// What changes at the same time is looked at again, but not for ever.
    const TRIES: u32 = 64;
    // SAFETY: a structure of numbers.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    // The kernel refuses a mode that means nothing.
    if flags & libc::O_CREAT != 0 {
        how.mode = (mode & 0o7777).into();
    }
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
    let mut result = Err(libc::EAGAIN);
    for _ in 0..TRIES {
        // SAFETY: passes a string and a local of the size that is given.
        result = owned(unsafe {
            libc::syscall(
                libc::SYS_openat2,
                from,
                path.as_ptr(),
                &raw const how,
                size_of_val(&how),
            )
        });
        if !matches!(result, Err(libc::EAGAIN)) {
            break;
        }
    }
    // What lies outside is not exported.
    result.map_err(|error| match error {
        libc::EXDEV => libc::EPERM,
        error => error,
    })
}

/// The last name of a path, and the directory that it is in.
#[derive(Debug)]
pub(super) struct Last {
    directory: OwnedFd,
    name: CString,
}

impl Last {
    pub(super) fn at(&self) -> RawFd {
        self.directory.as_raw_fd()
    }

    pub(super) fn name(&self) -> &CStr {
        &self.name
    }
}

/// A path to what a descriptor is of, for calls that take no such descriptor. It leads there alone.
pub(super) fn proc_path(fd: RawFd) -> Result<CString, i32> {
    CString::new(format!("/proc/self/fd/{fd}")).map_err(|_| libc::EINVAL)
}

pub(super) fn statx_of(fd: RawFd, flags: i32, mask: u32) -> Result<libc::statx, i32> {
    // SAFETY: a structure of numbers.
    let mut statx: libc::statx = unsafe { std::mem::zeroed() };
    let flags = flags | libc::AT_EMPTY_PATH;
    // SAFETY: passes a string and a local.
    checked(unsafe { libc::statx(fd, c"".as_ptr(), flags, mask, &raw mut statx) })?;
    Ok(statx)
}

/// Links a file under a second name, or with flags renames it. The two may lie in different directories.
pub(super) fn link(
    here: &Directory,
    from: &Path,
    there: &Directory,
    to: &Path,
    flags: Option<u32>,
) -> Result<(), i32> {
    let (from, to) = (here.last(from)?, there.last(to)?);
    let (old, new) = (from.name.as_ptr(), to.name.as_ptr());
    // SAFETY: passes strings.
    checked(unsafe {
        match flags {
            None => libc::linkat(from.at(), old, to.at(), new, 0).into(),
            Some(flags) => libc::syscall(libc::SYS_renameat2, from.at(), old, to.at(), new, flags),
        }
    })?;
    Ok(())
}

impl Directory {
    pub(super) fn open(path: &Path) -> Result<Self, i32> {
        let text = CString::new(path.as_os_str().as_bytes()).map_err(|_| libc::EINVAL)?;
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        // SAFETY: passes a string.
        let at = owned(unsafe { libc::open(text.as_ptr(), flags) }.into())?;
        Ok(Self { at, confines: true })
    }

    /// Paths may leave it, by symbolic links.
    pub(super) fn that_leads_anywhere(self) -> Self {
        Self {
            confines: false,
            ..self
        }
    }

    /// A symbolic link is not followed, unless it may lead anywhere.
    pub(super) fn open_inside(&self, path: &Path, flags: i32, mode: u32) -> Result<OwnedFd, i32> {
        if flags & libc::O_PATH == 0 && sqlite::holds_any() {
            self.refuse_databases(path)?;
        }
        let (from, inside) = (self.at.as_raw_fd(), c_string(path)?);
        if self.confines {
            return open_beneath(from, &inside, flags | libc::O_NOFOLLOW, mode);
        }
        let (flags, mode) = (flags | libc::O_CLOEXEC, umask::own(mode));
        // SAFETY: passes a string.
        owned(unsafe { libc::openat(from, inside.as_ptr(), flags, mode) }.into())
    }

    fn refuse_databases(&self, path: &Path) -> Result<(), i32> {
        let file = match self.itself(path) {
            Err(libc::ENOENT) => return Ok(()),
            file => file?,
        };
        match sqlite::holds(&statx_of(file.as_raw_fd(), 0, libc::STATX_INO)?) {
            true => Err(libc::EBUSY),
            false => Ok(()),
        }
    }

    /// The thing itself, whatever it is.
    pub(super) fn itself(&self, path: &Path) -> Result<OwnedFd, i32> {
        self.open_inside(path, libc::O_PATH, 0)
    }

    /// For calls that want a name in a directory.
    pub(super) fn last(&self, path: &Path) -> Result<Last, i32> {
        let above = path.parent().unwrap_or(Path::new(""));
        let name = path.file_name().map(Path::new);
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        Ok(Last {
            directory: open_beneath(self.at.as_raw_fd(), &c_string(above)?, flags, 0)?,
            name: c_string(name.unwrap_or(Path::new("")))?,
        })
    }
}

impl Tree for Directory {
    fn open(&self, path: &Path, flags: i32, mode: u32) -> Result<Opened, i32> {
        Ok(self.open_inside(path, flags | STEADY, mode)?.into())
    }

    fn stat(&self, path: &Path, flags: i32, mask: u32) -> Result<libc::statx, i32> {
        statx_of(self.itself(path)?.as_raw_fd(), flags, mask)
    }

    fn statfs(&self, path: &Path) -> Result<libc::statfs64, i32> {
        let file = self.itself(path)?;
        // SAFETY: a structure of numbers.
        let mut statfs: libc::statfs64 = unsafe { std::mem::zeroed() };
        // SAFETY: passes a local.
        checked(unsafe { libc::fstatfs64(file.as_raw_fd(), &raw mut statfs) })?;
        Ok(statfs)
    }

    fn access(&self, path: &Path, wanted: i32) -> Result<(), i32> {
        let file = self.itself(path)?;
        let (fd, none, flags) = (file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH);
        // SAFETY: passes a string.
        checked(unsafe { libc::syscall(libc::SYS_faccessat2, fd, none, wanted, flags) })?;
        Ok(())
    }

    fn read_link(&self, path: &Path, to: &mut [u8]) -> Result<usize, i32> {
        let link = self.itself(path)?;
        let (fd, none) = (link.as_raw_fd(), c"".as_ptr());
        // SAFETY: passes a string and a slice with its length.
        let n = unsafe { libc::readlinkat(fd, none, to.as_mut_ptr().cast(), to.len()) };
        Ok(checked(n as i64)? as usize)
    }

    fn make_directory(&self, path: &Path, mode: u32) -> Result<(), i32> {
        let last = self.last(path)?;
        // SAFETY: passes a string.
        checked(unsafe { libc::mkdirat(last.at(), last.name.as_ptr(), mode) })?;
        Ok(())
    }

    fn remove_directory(&self, path: &Path) -> Result<(), i32> {
        let last = self.last(path)?;
        // SAFETY: passes a string.
        checked(unsafe { libc::unlinkat(last.at(), last.name.as_ptr(), libc::AT_REMOVEDIR) })?;
        Ok(())
    }

    fn unlink(&self, path: &Path) -> Result<(), i32> {
        let last = self.last(path)?;
        // SAFETY: passes a string.
        checked(unsafe { libc::unlinkat(last.at(), last.name.as_ptr(), 0) })?;
        Ok(())
    }

    fn make_node(&self, path: &Path, mode: u32, device: u64) -> Result<(), i32> {
        let last = self.last(path)?;
        // SAFETY: passes a string.
        checked(unsafe { libc::mknodat(last.at(), last.name.as_ptr(), mode, device) })?;
        Ok(())
    }

    fn set_mode(&self, path: &Path, mode: u32) -> Result<(), i32> {
        let file = self.itself(path)?;
        // There is no call for a descriptor like this before Linux 6.6.
        let path = proc_path(file.as_raw_fd())?;
        // SAFETY: passes a string.
        checked(unsafe { libc::chmod(path.as_ptr(), mode) })?;
        Ok(())
    }

    fn set_owner(&self, path: &Path, user: u32, group: u32) -> Result<(), i32> {
        let file = self.itself(path)?;
        let (fd, none, flags) = (file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH);
        // SAFETY: passes a string.
        checked(unsafe { libc::fchownat(fd, none, user, group, flags) })?;
        Ok(())
    }

    fn truncate(&self, path: &Path, len: i64) -> Result<(), i32> {
        let file = self.open_inside(path, libc::O_WRONLY | STEADY, 0)?;
        // SAFETY: no pointers.
        checked(unsafe { libc::ftruncate64(file.as_raw_fd(), len) })?;
        Ok(())
    }

    fn set_times(&self, path: &Path, times: &[libc::timespec; 2]) -> Result<(), i32> {
        let last = self.last(path)?;
        let (times, flags) = (times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW);
        // SAFETY: passes a string and two times.
        checked(unsafe { libc::utimensat(last.at(), last.name.as_ptr(), times, flags) })?;
        Ok(())
    }

    fn symlink(&self, path: &Path, says: &CStr) -> Result<(), i32> {
        let last = self.last(path)?;
        // SAFETY: passes strings.
        checked(unsafe { libc::symlinkat(says.as_ptr(), last.at(), last.name.as_ptr()) })?;
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> Result<(), i32> {
        link(self, from, self, to, None)
    }

    fn rename(&self, from: &Path, to: &Path, flags: u32) -> Result<(), i32> {
        link(self, from, self, to, Some(flags))
    }

    fn directory(&self) -> Option<&Directory> {
        Some(self)
    }
}
