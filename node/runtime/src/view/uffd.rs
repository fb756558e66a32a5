//! Protection by userfaultfd: an access that is not allowed is a SIGBUS.
//!
//! The view stays one mapping; each page of it is there or not, and write-protected or not. A page that is not
//! there but in the memory file is a *minor* fault, one that is not even in the file a *missing* one. Nobody
//! reads events: the thread that faulted gets the signal. Only accesses from user space are told of, for which
//! a process needs no privilege; the host's kernel gets EFAULT, as from a mapping without rights.
//!
//! Values and structures are those of Linux's `include/uapi/linux/userfaultfd.h`.

use super::{check, map, memory_file};
use crate::image::PAGE_BYTES;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const USER_MODE_ONLY: i32 = 1;
const API: u64 = 0xaa;

const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const FEATURE_SIGBUS: u64 = 1 << 7;
const FEATURE_MINOR_SHMEM: u64 = 1 << 10;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;

const REGISTER_MISSING: u64 = 1 << 0;
const REGISTER_WP: u64 = 1 << 1;
const REGISTER_MINOR: u64 = 1 << 2;

const CONTINUE_DONTWAKE: u64 = 1 << 0;
/// Older headers do not have it.
const CONTINUE_WP: u64 = 1 << 1;
const WRITEPROTECT_WP: u64 = 1 << 0;
const WRITEPROTECT_DONTWAKE: u64 = 1 << 1;

#[repr(C)]
#[derive(Debug)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
#[derive(Debug)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Debug)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Debug)]
struct Continue {
    range: Range,
    mode: u64,
    mapped: i64,
}

#[repr(C)]
#[derive(Debug)]
struct WriteProtect {
    range: Range,
    mode: u64,
}

nix::ioctl_readwrite!(uffdio_api, 0xaa, 0x3f, Api);
nix::ioctl_readwrite!(uffdio_register, 0xaa, 0x00, Register);
nix::ioctl_readwrite!(uffdio_writeprotect, 0xaa, 0x06, WriteProtect);
nix::ioctl_readwrite!(uffdio_continue, 0xaa, 0x07, Continue);

#[derive(Debug)]
pub(super) struct Uffd(OwnedFd);

impl Uffd {
    /// An error says that the host lacks something.
    pub(super) fn open() -> io::Result<Self> {
        // SAFETY: a new descriptor, owned by the result.
        let fd = unsafe {
            let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
            let fd = libc::syscall(libc::SYS_userfaultfd, flags) as i32;
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        let mut api = Api {
            api: API,
            features: FEATURE_PAGEFAULT_FLAG_WP
                | FEATURE_MISSING_SHMEM
                | FEATURE_SIGBUS
                | FEATURE_MINOR_SHMEM
                | FEATURE_WP_HUGETLBFS_SHMEM,
            ioctls: 0,
        };
        // SAFETY: passes a local of the right type.
        unsafe { uffdio_api(fd.as_raw_fd(), &mut api) }?;
        let uffd = Self(fd);
        uffd.try_out()?;
        Ok(uffd)
    }

    /// That a page can be exposed for reading only is no feature that the host names.
    fn try_out(&self) -> io::Result<()> {
        let file = memory_file(PAGE_BYTES)?;
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let addr = map(0, PAGE_BYTES, rw, 0, file.as_raw_fd(), 0)?;
        let result = self.register(addr, addr + PAGE_BYTES, true).and_then(|()| {
            let byte = [1];
            // SAFETY: writes a local to a file of this function's.
            let written = unsafe { libc::pwrite(file.as_raw_fd(), byte.as_ptr().cast(), 1, 0) };
            match written {
                1 => self.expose(addr, true).map(|_| ()),
                _ => Err(io::Error::last_os_error()),
            }
        });
        // SAFETY: mapped above, and nobody else knows of it.
        check(unsafe { libc::munmap(addr as *mut _, PAGE_BYTES) })?;
        result
    }

    /// From now on pages of the range are protected, by signals; with `missing` also those that nothing was
    /// ever written to.
    pub(super) fn register(&self, from: usize, to: usize, missing: bool) -> io::Result<()> {
        let mut mode = REGISTER_WP | REGISTER_MINOR;
        if missing {
            mode |= REGISTER_MISSING;
        }
        let mut register = Register {
            range: range(from, to - from),
            mode,
            ioctls: 0,
        };
        // SAFETY: passes a local of the right type.
        unsafe { uffdio_register(self.0.as_raw_fd(), &mut register) }?;
        Ok(())
    }

    /// Maps the page that the memory file has for the address, unless it is mapped; whether there is one.
    pub(super) fn expose(&self, addr: usize, read_only: bool) -> io::Result<bool> {
        let mut mode = CONTINUE_DONTWAKE;
        if read_only {
            mode |= CONTINUE_WP;
        }
        loop {
            let mut request = Continue {
                range: range(addr, PAGE_BYTES),
                mode,
                mapped: 0,
            };
            // SAFETY: passes a local of the right type. Exposes a page of a registered range, whose
            // contents are those of the memory file.
            match unsafe { uffdio_continue(self.0.as_raw_fd(), &mut request) } {
                Ok(_) | Err(nix::Error::EEXIST) => return Ok(true),
                Err(nix::Error::EFAULT) => return Ok(false),
                // Somebody changes the process's mappings.
                Err(nix::Error::EAGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether a page, if it is mapped, may only be read.
    pub(super) fn set_read_only(&self, addr: usize, read_only: bool) -> io::Result<()> {
        let mode = match read_only {
            true => WRITEPROTECT_WP,
            // Nobody is to be woken, but the host knows that itself for the other.
            false => WRITEPROTECT_DONTWAKE,
        };
        loop {
            let mut request = WriteProtect {
                range: range(addr, PAGE_BYTES),
                mode,
            };
            // SAFETY: passes a local of the right type.
            match unsafe { uffdio_writeprotect(self.0.as_raw_fd(), &mut request) } {
                Ok(_) => return Ok(()),
                Err(nix::Error::EAGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Unmaps the page; the memory file keeps its contents.
    pub(super) fn close(&self, addr: usize) -> io::Result<()> {
        // SAFETY: a page of a shared mapping, which is a fault from now on.
        check(unsafe { libc::madvise(addr as *mut _, PAGE_BYTES, libc::MADV_DONTNEED) })
    }
}

fn range(from: usize, len: usize) -> Range {
    Range {
        start: from as u64,
        len: len as u64,
    }
}
