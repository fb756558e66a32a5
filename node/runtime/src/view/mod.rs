//! Guest memory: one file, mapped twice.
//!
//! The *guest view* is what the kernel uses; each page of it is protected as the coherence protocol
//! says. The *alias* is always readable and writable, and only the runtime uses it: a page is filled
//! through the alias before the view exposes it.
//!
//! There are two engines for the protection: [`mprotect`], which every host has, and [`uffd`]. Either may
//! protect a page more than was asked for, at the price of a local fault ([`View::admit`]).

mod mprotect;
mod uffd;

use crate::image::{NodeImage, PAGE_BYTES};
use dsm::State;
use mprotect::Mprotect;
use span_api::guest::Paging;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use uffd::Uffd;

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
    engine: Engine,
    /// Where a page that the file lacks is no fault, but zero: addresses.
    unnoticed: Vec<Range<usize>>,
}

#[derive(Debug)]
enum Engine {
    Mprotect(Mprotect),
    Uffd(Uffd),
}

impl Engine {
    fn new(paging: Paging, start: usize, heap_first: usize) -> io::Result<Self> {
        let mprotect = || Engine::Mprotect(Mprotect::new(start, heap_first));
        match paging {
            Paging::Mprotect => Ok(mprotect()),
            Paging::Uffd => Ok(Engine::Uffd(Uffd::open()?)),
            Paging::Auto => Ok(Uffd::open().map_or_else(|_| mprotect(), Engine::Uffd)),
        }
    }

    /// What the host is told of the whole view.
    fn host_flags(&self, initial: Protection) -> i32 {
        match self {
            Engine::Mprotect(_) => initial.host_flags(),
            Engine::Uffd(_) => Protection::ReadWrite.host_flags(),
        }
    }
}

/// A memory file of this process's own.
fn memory_file(bytes: usize) -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string; a new descriptor, owned by the result.
    let fd = unsafe {
        let fd = libc::memfd_create(c"span-memory".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: the descriptor is ours.
    check(unsafe { libc::ftruncate(fd.as_raw_fd(), bytes as i64) })?;
    Ok(fd)
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
    /// Replaces the kernel's data by the coherent one. Pages of `own` are open, others closed; the node
    /// that boots has the image, with its contents, among its own.
    pub(crate) fn new(
        image: &NodeImage,
        file_bytes: usize,
        own: &[Range<u32>],
        paging: Paging,
    ) -> io::Result<View> {
        let heap_first = (image.reserved - image.start) / PAGE_BYTES;
        let engine = Engine::new(paging, image.start, heap_first)?;
        let file = File::from(memory_file(file_bytes)?);
        let fd = file.as_raw_fd();
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let alias = map(0, file_bytes, rw, 0, fd, 0)?;

        let copy = |from: usize, to: usize| {
            // SAFETY: the range lies in the image, which is in memory and which nothing writes to
            // before the kernel runs.
            let bytes = unsafe { std::slice::from_raw_parts(from as *const u8, to - from) };
            // Through the alias the host would make each page by a fault, zeroed first.
            file.write_all_at(bytes, (from - image.start) as u64)
        };
        // Text and constants are not coherent, and nobody looks for them in the file but stubs, which
        // map a page of code and the zero page.
        copy(image.stub_code, image.stub_code + PAGE_BYTES)?;
        let page_of = |addr: usize| (addr - image.start) / PAGE_BYTES;
        let is_own = |from: usize| {
            let page = page_of(from) as u32;
            own.iter().any(|pages| pages.contains(&page))
        };
        if is_own(image.shared_start) {
            copy(image.shared_start, image.shared_end)?;
        }

        let mut unnoticed = Vec::new();
        let mut protections = vec![Protection::Read; image.memory_size / PAGE_BYTES];
        let end = image.start + image.memory_size;
        let border =
            |page: u32| (image.start + page as usize * PAGE_BYTES).clamp(image.reserved, end);
        let borders = own.iter().flat_map(|pages| [pages.start, pages.end]);
        let mut borders: Vec<usize> = borders.map(border).chain([image.reserved, end]).collect();
        borders.sort_unstable();
        let memory = borders.windows(2).map(|pair| (pair[0], pair[1]));
        let ranges = memory.chain([(image.shared_start, image.shared_end)]);
        for (from, to) in ranges.filter(|(from, to)| from < to) {
            let initial = match is_own(from) {
                true => Protection::ReadWrite,
                false => Protection::None,
            };
            map(
                from,
                to - from,
                engine.host_flags(initial),
                libc::MAP_FIXED,
                fd,
                from - image.start,
            )?;
            // SAFETY: as above. Guest memory has no place in a core dump, and stubs are made by
            // vfork, so children do not need it.
            check(unsafe { libc::madvise(from as *mut _, to - from, libc::MADV_DONTDUMP) })?;
            if let Engine::Uffd(uffd) = &engine {
                // A page of one's own that nothing was written to yet is zero.
                uffd.register(from, to, initial == Protection::None)?;
                if initial != Protection::None {
                    unnoticed.push(from..to);
                }
            }
            protections[page_of(from)..page_of(to)].fill(initial);
        }
        Ok(View {
            // It stays open as long as the process lives.
            fd: file.into_raw_fd(),
            start: image.start,
            alias,
            protections,
            engine,
            unnoticed,
        })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.fd
    }

    /// How pages are protected.
    pub(crate) fn paging(&self) -> Paging {
        match self.engine {
            Engine::Mprotect(_) => Paging::Mprotect,
            Engine::Uffd(_) => Paging::Uffd,
        }
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

    /// What the memory file takes of the host's memory.
    pub(crate) fn host_bytes(&self) -> u64 {
        // SAFETY: a structure of numbers, which the call fills in.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: passes a local; the descriptor is the view's.
        match check(unsafe { libc::fstat(self.fd, &mut stat) }) {
            Ok(()) => stat.st_blocks as u64 * 512,
            Err(_) => 0,
        }
    }

    /// Gives the memory of closed pages back to the host, and with it what they held.
    pub(crate) fn discard(&mut self, pages: Range<u32>) -> io::Result<()> {
        // The host makes pages that the file lacks by itself, unless somebody waits for that.
        for range in std::mem::take(&mut self.unnoticed) {
            if let Engine::Uffd(uffd) = &self.engine {
                uffd.register(range.start, range.end, true)?;
            }
        }
        let bytes = |page: u32| i64::from(page) * PAGE_BYTES as i64;
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: the file is the view's; the pages are mapped for nobody (`dsm::Effect::Discard`).
        check(unsafe {
            libc::fallocate(
                self.fd,
                mode,
                bytes(pages.start),
                bytes(pages.end - pages.start),
            )
        })
    }

    /// Changes the protection of a page of the view.
    pub(crate) fn protect(&mut self, page: u32, protection: Protection) -> io::Result<()> {
        let page = page as usize;
        let before = self.protections[page];
        if before == protection {
            return Ok(());
        }
        if let Engine::Mprotect(engine) = &mut self.engine {
            return engine.protect(&mut self.protections, page, protection);
        }
        let Engine::Uffd(uffd) = &self.engine else {
            return Ok(());
        };
        let addr = self.start + page * PAGE_BYTES;
        match (before, protection) {
            (_, Protection::None) => {
                self.touch(page);
                uffd.close(addr)?;
            }
            (Protection::None, _) => self.expose(page, protection)?,
            (_, Protection::Read) => uffd.set_read_only(addr, true)?,
            (_, Protection::ReadWrite) => uffd.set_read_only(addr, false)?,
        }
        self.protections[page] = protection;
        Ok(())
    }

    /// A thread is to have access to the page as it is protected: makes it so, if it is not.
    pub(crate) fn admit(&mut self, page: u32, protection: Protection) -> io::Result<()> {
        match self.protections[page as usize] == protection {
            // The host may have taken the page from the view, to swap it out.
            true => self.expose(page as usize, protection),
            false => self.protect(page, protection),
        }
    }

    fn expose(&self, page: usize, protection: Protection) -> io::Result<()> {
        let Engine::Uffd(uffd) = &self.engine else {
            return Ok(());
        };
        if protection == Protection::None {
            return Ok(());
        }
        let addr = self.start + page * PAGE_BYTES;
        while !uffd.expose(addr, protection == Protection::Read)? {
            self.touch(page);
        }
        Ok(())
    }

    /// Sees to it that the file has the page: one that it lacks would be made by the host, unasked.
    fn touch(&self, page: usize) {
        // SAFETY: reads a byte of the alias.
        unsafe { ((self.alias + page * PAGE_BYTES) as *const u8).read_volatile() };
    }
}

#[cfg(test)]
mod tests;
