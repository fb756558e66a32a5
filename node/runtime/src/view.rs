//! Guest memory: one file, mapped twice.
//!
//! The *guest view* is what the kernel uses; each page of it is protected as the coherence protocol
//! says. The *alias* is always readable and writable, and only the runtime uses it: a page is filled
//! through the alias before the view exposes it.
//!
//! Protection is by `mprotect`. It splits host mappings, of which a process may have
//! `vm.max_map_count`. A page may always be protected more than its state allows, at the price of a
//! local fault, so under pressure whole stretches of the view are closed and opened again page by
//! page as they are used.

use crate::image::{NodeImage, PAGE_BYTES};
use dsm::State;
use std::io;
use std::os::fd::RawFd;

/// Pages closed at a time when the host's mappings run out.
const COLLAPSE_PAGES: usize = 1024;

/// Mappings left to everything else in the process: stacks, libraries, heaps, stub slots.
const OTHER_MAPPINGS: usize = 6000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Protection {
    None = 0,
    Read = 1,
    ReadWrite = 2,
}

impl Protection {
    pub(crate) fn of(state: State) -> Protection {
        match state {
            State::Invalid => Protection::None,
            State::Shared | State::Exclusive => Protection::Read,
            State::Modified => Protection::ReadWrite,
        }
    }

    pub(crate) fn host_flags(self) -> i32 {
        match self {
            Protection::None => libc::PROT_NONE,
            Protection::Read => libc::PROT_READ,
            Protection::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        }
    }

    /// The same for kernel virtual memory. Modules lie in it, and the port's page tables do not tell
    /// code from data there: it is executable, as upstream has it.
    pub(crate) fn host_flags_vm(self) -> i32 {
        match self {
            Protection::None => libc::PROT_NONE,
            Protection::Read | Protection::ReadWrite => self.host_flags() | libc::PROT_EXEC,
        }
    }
}

#[derive(Debug)]
pub(crate) struct View {
    fd: RawFd,
    start: usize,
    alias: usize,
    protections: Vec<Protection>,
    /// Neighbouring pages with different protection: the mappings the view costs.
    borders: usize,
    borders_max: usize,
    collapse_next: usize,
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn map(
    addr: usize,
    len: usize,
    flags: i32,
    fixed: i32,
    fd: RawFd,
    offset: usize,
) -> io::Result<usize> {
    // SAFETY: fixed mappings are only made over the guest ranges of `NodeImage`, which the kernel
    // gives up to the runtime before it runs; others go where the host likes.
    let at = unsafe {
        libc::mmap(
            addr as *mut _,
            len,
            flags,
            libc::MAP_SHARED | libc::MAP_NORESERVE | fixed,
            fd,
            offset as i64,
        )
    };
    if at == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(at as usize)
    }
}

impl View {
    /// Replaces the kernel's data by the coherent one: with the contents of the image on the node
    /// that boots, closed on the others.
    pub(crate) fn new(image: &NodeImage, file_bytes: usize, boots: bool) -> io::Result<View> {
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"span-memory".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is ours.
        check(unsafe { libc::ftruncate(fd, file_bytes as i64) })?;
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let alias = map(0, file_bytes, rw, 0, fd, 0)?;

        let copy = |from: usize, to: usize| {
            // SAFETY: source and length lie in the image, the destination in the alias of the same
            // range; the alias is new, so they do not overlap.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    from as *const u8,
                    (alias + from - image.start) as *mut u8,
                    to - from,
                )
            };
        };
        // Text and constants are not coherent, but stubs map two pages of them: the stub code and
        // the zero page.
        copy(image.start, image.local_start);
        if boots {
            copy(image.shared_start, image.shared_end);
        }

        let initial = if boots {
            Protection::ReadWrite
        } else {
            Protection::None
        };
        let mut protections = vec![Protection::Read; image.memory_size / PAGE_BYTES];
        let ranges = [
            (image.shared_start, image.shared_end),
            (image.reserved, image.start + image.memory_size),
        ];
        for (from, to) in ranges {
            map(
                from,
                to - from,
                initial.host_flags(),
                libc::MAP_FIXED,
                fd,
                from - image.start,
            )?;
            // SAFETY: as above. Guest memory has no place in a core dump, and stubs are made by
            // vfork, so children do not need it.
            check(unsafe { libc::madvise(from as *mut _, to - from, libc::MADV_DONTDUMP) })?;
            let pages = (from - image.start) / PAGE_BYTES..(to - image.start) / PAGE_BYTES;
            protections[pages].fill(initial);
        }
        Ok(View {
            fd,
            start: image.start,
            alias,
            protections,
            borders: 0,
            borders_max: max_map_count().saturating_sub(OTHER_MAPPINGS),
            collapse_next: (image.reserved - image.start) / PAGE_BYTES,
        })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.fd
    }

    pub(crate) fn protection(&self, page: u32) -> Protection {
        self.protections[page as usize]
    }

    /// The page's bytes as they are now. The engine asks only while no mapping is writable.
    pub(crate) fn read(&self, page: u32) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_BYTES];
        // SAFETY: the page lies in the alias; no vCPU can write to it, as its protection has been
        // lowered on every mapping (`dsm::Effect::Send`).
        unsafe {
            std::ptr::copy_nonoverlapping(
                (self.alias + page as usize * PAGE_BYTES) as *const u8,
                bytes.as_mut_ptr(),
                PAGE_BYTES,
            )
        };
        bytes
    }

    /// Replaces the page's bytes; `None`: zeroes.
    pub(crate) fn fill(&self, page: u32, bytes: Option<&[u8]>) {
        let to = (self.alias + page as usize * PAGE_BYTES) as *mut u8;
        // SAFETY: the page lies in the alias and is not mapped anywhere else (`dsm::Effect::Fill`);
        // `bytes` is one page long, which the wire decoding has checked.
        unsafe {
            match bytes {
                Some(bytes) => {
                    assert_eq!(bytes.len(), PAGE_BYTES);
                    std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, PAGE_BYTES);
                }
                None => std::ptr::write_bytes(to, 0, PAGE_BYTES),
            }
        }
    }

    /// Changes the protection of a page of the view.
    pub(crate) fn protect(&mut self, page: u32, protection: Protection) -> io::Result<()> {
        let page = page as usize;
        if self.protections[page] == protection {
            return Ok(());
        }
        if protection != Protection::None && self.borders >= self.borders_max {
            self.collapse()?;
        }
        // SAFETY: the page lies in the view, and the runtime alone protects it.
        check(unsafe {
            libc::mprotect(
                (self.start + page * PAGE_BYTES) as *mut _,
                PAGE_BYTES,
                protection.host_flags(),
            )
        })?;
        let before = self.borders_around(page);
        self.protections[page] = protection;
        self.borders = self.borders + self.borders_around(page) - before;
        Ok(())
    }

    fn borders_around(&self, page: usize) -> usize {
        let differs = |a: usize, b: usize| {
            matches!(
                (self.protections.get(a), self.protections.get(b)),
                (Some(x), Some(y)) if x != y
            )
        };
        usize::from(page > 0 && differs(page - 1, page)) + usize::from(differs(page, page + 1))
    }

    /// Closes the next stretch that costs more mappings than a closed one.
    fn collapse(&mut self) -> io::Result<()> {
        let first_free = self.collapse_next;
        let mut from = first_free;
        loop {
            let to = (from + COLLAPSE_PAGES).min(self.protections.len());
            let inside = self.protections[from..to]
                .windows(2)
                .filter(|pair| pair[0] != pair[1])
                .count();
            let next = if to == self.protections.len() {
                self.heap_first()
            } else {
                to
            };
            if inside > 2 {
                // SAFETY: the stretch lies in the view.
                check(unsafe {
                    libc::mprotect(
                        (self.start + from * PAGE_BYTES) as *mut _,
                        (to - from) * PAGE_BYTES,
                        libc::PROT_NONE,
                    )
                })?;
                let edges = |view: &View| {
                    usize::from(from > 0 && view.protections[from - 1] != view.protections[from])
                        + usize::from(
                            to < view.protections.len()
                                && view.protections[to - 1] != view.protections[to],
                        )
                };
                let before = inside + edges(self);
                self.protections[from..to].fill(Protection::None);
                self.borders = self.borders + edges(self) - before;
                self.collapse_next = next;
                return Ok(());
            }
            from = next;
            if from == first_free {
                return Ok(());
            }
        }
    }

    /// First page of allocatable memory: stretches before it hold the image.
    fn heap_first(&self) -> usize {
        (crate::image::reserved() - self.start) / PAGE_BYTES
    }
}

fn max_map_count() -> usize {
    std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(65530)
}
