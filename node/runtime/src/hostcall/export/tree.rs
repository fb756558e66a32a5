//! What a path of hostfs's can lead to: the host's half of a file system, behind one trait.

use super::opened::Opened;
use std::ffi::CStr;
use std::fmt::Debug;
use std::path::Path;

/// A tree of files. Paths are relative to its root, without `.` and `..`; an empty one is the root itself. Errors are
/// the host's numbers. No call follows a symbolic link at the end of a path. What is called has been checked to be
/// allowed: a tree that is exported for reading only is not asked to change.
///
/// Runs on a host stack or on a thread of the runtime's: it may allocate, and wait for the host.
pub(super) trait Tree: Debug + Send + Sync {
    /// The descriptor is what the guest's kernel works on from then on.
    fn open(&self, path: &Path, flags: i32, mode: u32) -> Result<Opened, i32>;
    /// `flags` say how exact it has to be, as statx(2) has them.
    fn stat(&self, path: &Path, flags: i32, mask: u32) -> Result<libc::statx, i32>;
    fn statfs(&self, path: &Path) -> Result<libc::statfs64, i32>;
    fn access(&self, path: &Path, wanted: i32) -> Result<(), i32>;
    fn read_link(&self, path: &Path, to: &mut [u8]) -> Result<usize, i32>;
    fn make_directory(&self, path: &Path, mode: u32) -> Result<(), i32>;
    fn remove_directory(&self, path: &Path) -> Result<(), i32>;
    fn unlink(&self, path: &Path) -> Result<(), i32>;
    fn make_node(&self, path: &Path, mode: u32, device: u64) -> Result<(), i32>;
    fn set_mode(&self, path: &Path, mode: u32) -> Result<(), i32>;
    fn set_owner(&self, path: &Path, user: u32, group: u32) -> Result<(), i32>;
    fn truncate(&self, path: &Path, len: i64) -> Result<(), i32>;
    /// Of the last access and the last change.
    fn set_times(&self, path: &Path, times: &[libc::timespec; 2]) -> Result<(), i32>;
    fn symlink(&self, path: &Path, says: &CStr) -> Result<(), i32>;
    fn link(&self, from: &Path, to: &Path) -> Result<(), i32>;
    fn rename(&self, from: &Path, to: &Path, flags: u32) -> Result<(), i32>;

    /// A tree that is a directory of the host's, and no more. Two such may share a file system.
    fn directory(&self) -> Option<&super::Directory> {
        None
    }
}

/// The same in the older structure.
pub(super) fn stat64(from: &libc::statx) -> libc::stat64 {
    // SAFETY: a structure of numbers.
    let mut to: libc::stat64 = unsafe { std::mem::zeroed() };
    to.st_dev = libc::makedev(from.stx_dev_major, from.stx_dev_minor);
    to.st_ino = from.stx_ino;
    to.st_mode = from.stx_mode.into();
    to.st_nlink = from.stx_nlink.into();
    to.st_uid = from.stx_uid;
    to.st_gid = from.stx_gid;
    to.st_rdev = libc::makedev(from.stx_rdev_major, from.stx_rdev_minor);
    to.st_size = from.stx_size as i64;
    to.st_blksize = from.stx_blksize.into();
    to.st_blocks = from.stx_blocks as i64;
    (to.st_atime, to.st_atime_nsec) = (from.stx_atime.tv_sec, from.stx_atime.tv_nsec.into());
    (to.st_mtime, to.st_mtime_nsec) = (from.stx_mtime.tv_sec, from.stx_mtime.tv_nsec.into());
    (to.st_ctime, to.st_ctime_nsec) = (from.stx_ctime.tv_sec, from.stx_ctime.tv_nsec.into());
    to
}
