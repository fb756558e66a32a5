//! The stub processes of this node, and which frames they map.
//!
//! A guest process runs in a host process of its own on each node that runs it, its *stub*. A stub's
//! mappings are a TLB: an entry may be dropped at any time, and a fault makes it again. When another
//! node takes a frame, every stub that maps it has to drop it before the protocol goes on: the
//! reverse map says which, the addresses are queued for the stub, and the stub is stopped if it
//! runs. The vCPU that resumes it has it execute the queue first.
//!
//! The race between stopping and resuming is decided on one word that the vCPU, the stub and the
//! runtime share (`FUTEX_*` in the kernel's `stub-data.h`): a vCPU first announces that it will
//! enter, then reads what there is to synchronise, then enters if nobody has taken the announcement
//! back.
//!
//! Lock: [`TABLE`], taken by the pager and by vCPU threads, the latter on their own stack
//! (`local_stack`). Nothing is waited for while it is held.

use crate::image::PAGE_BYTES;
use crate::view::Protection;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::*};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

/// Processes of the guest that can have a stub on one node at a time.
pub(crate) const STUBS_MAX: usize = 4096;

/// Page of a slot with the kernel's `struct mm_id`; the stub's data follows.
const ID_BYTES: usize = PAGE_BYTES;

const IN_CHILD: u32 = 0;
const IN_KERNEL: u32 = 1;
const ENTERING: u32 = 2;

/// `UM_PROT_*` of the kernel.
const PROT_WRITE: i32 = 2;

pub(crate) static KICKS: AtomicU64 = AtomicU64::new(0);
pub(crate) static FAULTS: AtomicU64 = AtomicU64::new(0);

/// The arena of slots, set once.
#[derive(Debug)]
struct Arena {
    base: usize,
    slot_bytes: usize,
    data_bytes: usize,
    /// Where the slots' data lies in the memory file.
    file_offset: usize,
    futex_offset: usize,
    fd: RawFd,
    /// Protection of each frame in the guest view, for vCPU threads to read under [`TABLE`].
    frames: Box<[AtomicU8]>,
}

static ARENA: OnceLock<Arena> = OnceLock::new();
static TABLE: OnceLock<Mutex<Table>> = OnceLock::new();

#[derive(Debug, Default)]
struct Stub {
    used: bool,
    mapped: bool,
    pid: i32,
    frames: BTreeMap<u64, u32>,
    /// Addresses to drop before the stub runs again.
    pending: Vec<u64>,
}

#[derive(Debug)]
struct Table {
    stubs: Vec<Stub>,
    free: Vec<u16>,
    reverse: HashMap<u32, Vec<(u16, u64)>>,
}

fn arena() -> &'static Arena {
    ARENA
        .get()
        .expect("stub arena is set up before the kernel runs")
}

fn table() -> MutexGuard<'static, Table> {
    let table = TABLE
        .get()
        .expect("stub table is set up before the kernel runs");
    table
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Bytes that the slots need in the memory file.
pub(crate) fn file_bytes(data_bytes: usize) -> usize {
    STUBS_MAX * data_bytes
}

/// Reserves the arena. `frames` says how the view is protected at the start.
pub(crate) fn set_up(
    fd: RawFd,
    file_offset: usize,
    data_bytes: usize,
    futex_offset: usize,
    frames: impl Iterator<Item = Protection>,
) -> std::io::Result<()> {
    let slot_bytes = ID_BYTES + data_bytes;
    // SAFETY: a fresh mapping where the host likes.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            slot_bytes * STUBS_MAX,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    let arena = Arena {
        base: base as usize,
        slot_bytes,
        data_bytes,
        file_offset,
        futex_offset,
        fd,
        frames: frames
            .map(|protection| AtomicU8::new(protection as u8))
            .collect(),
    };
    ARENA.set(arena).expect("set up once");
    let stubs = (0..STUBS_MAX).map(|_| Stub::default()).collect();
    let free = (0..STUBS_MAX as u16).rev().collect();
    TABLE
        .set(Mutex::new(Table {
            stubs,
            free,
            reverse: HashMap::new(),
        }))
        .expect("set up once");
    Ok(())
}

impl Arena {
    fn slot(&self, index: u16) -> usize {
        self.base + usize::from(index) * self.slot_bytes
    }

    /// The slot an address names; `None` for one that is no slot.
    fn index(&self, slot: u64) -> Option<u16> {
        let offset = (slot as usize).checked_sub(self.base)?;
        let index = offset / self.slot_bytes;
        (offset % self.slot_bytes == 0 && index < STUBS_MAX).then_some(index as u16)
    }

    fn futex(&self, index: u16) -> &'static AtomicU32 {
        let at = self.slot(index) + ID_BYTES + self.futex_offset;
        // SAFETY: lies in the arena, which is never unmapped, and is aligned (`offsetof`).
        unsafe { AtomicU32::from_ptr(at as *mut u32) }
    }
}

impl Table {
    fn forget(&mut self, index: u16, va: u64) {
        let Some(frame) = self.stubs[usize::from(index)].frames.remove(&va) else {
            return;
        };
        if let Some(users) = self.reverse.get_mut(&frame) {
            users.retain(|user| *user != (index, va));
            if users.is_empty() {
                self.reverse.remove(&frame);
            }
        }
    }

    fn forget_range(&mut self, index: u16, start: u64, end: u64) {
        let stub = &self.stubs[usize::from(index)];
        let gone: Vec<u64> = stub.frames.range(start..end).map(|(va, _)| *va).collect();
        for va in gone {
            self.forget(index, va);
        }
    }
}

// What vCPU threads call, through `local_stack`.

/// A slot's address, or 0 if there is none left or the host has no memory for it.
pub(crate) extern "C" fn alloc(_: u64, _: u64, _: u64, _: u64) -> u64 {
    let arena = arena();
    let mut table = table();
    let Some(index) = table.free.pop() else {
        return 0;
    };
    let at = arena.slot(index);
    let stub = &mut table.stubs[usize::from(index)];
    if !stub.mapped {
        // SAFETY: replaces this slot's part of the arena, which nobody uses yet.
        let data = unsafe {
            libc::mmap(
                (at + ID_BYTES) as *mut _,
                arena.data_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED,
                arena.fd,
                (arena.file_offset + usize::from(index) * arena.data_bytes) as i64,
            )
        };
        if data == libc::MAP_FAILED {
            table.free.push(index);
            return 0;
        }
        stub.mapped = true;
    }
    stub.used = true;
    stub.pid = 0;
    // SAFETY: the slot belongs to the caller from here on, and to nobody before.
    unsafe { std::ptr::write_bytes(at as *mut u8, 0, arena.slot_bytes) };
    at as u64
}

pub(crate) extern "C" fn started(slot: u64, pid: u64, _: u64, _: u64) -> u64 {
    if let Some(index) = arena().index(slot) {
        table().stubs[usize::from(index)].pid = pid as i32;
    }
    0
}

pub(crate) extern "C" fn free(slot: u64, _: u64, _: u64, _: u64) -> u64 {
    let Some(index) = arena().index(slot) else {
        return 0;
    };
    let mut table = table();
    table.forget_range(index, 0, u64::MAX);
    let stub = &mut table.stubs[usize::from(index)];
    if std::mem::take(&mut stub.used) {
        stub.pending = Vec::new();
        stub.pid = 0;
        table.free.push(index);
    }
    0
}

/// Registers a mapping; answers the protection it may have now, 0 if the frame is not here.
pub(crate) extern "C" fn map(slot: u64, va: u64, phys: u64, prot: u64) -> u64 {
    let arena = arena();
    let (Some(index), frame) = (arena.index(slot), (phys as usize / PAGE_BYTES) as u32) else {
        return 0;
    };
    let mut table = table();
    table.forget(index, va);
    // Memory of another kind (the image's constants, an iomem region) is nobody's to take.
    let Some(state) = arena.frames.get(frame as usize) else {
        return prot;
    };
    let allowed = match state.load(Relaxed) {
        state if state == Protection::None as u8 => return 0,
        state if state == Protection::Read as u8 => prot & !(PROT_WRITE as u64),
        _ => prot,
    };
    let stub = &mut table.stubs[usize::from(index)];
    stub.frames.insert(va, frame);
    table.reverse.entry(frame).or_default().push((index, va));
    allowed
}

pub(crate) extern "C" fn unmap(slot: u64, va: u64, len: u64, _: u64) -> u64 {
    if let Some(index) = arena().index(slot) {
        table().forget_range(index, va, va.saturating_add(len));
    }
    0
}

/// The next address the stub has to drop, 0 if there is none.
pub(crate) extern "C" fn drain(slot: u64, _: u64, _: u64, _: u64) -> u64 {
    match arena().index(slot) {
        Some(index) => table().stubs[usize::from(index)].pending.pop().unwrap_or(0),
        None => 0,
    }
}

pub(crate) fn data_offset(data: u64) -> u64 {
    let arena = arena();
    match arena.index(data - ID_BYTES as u64) {
        Some(index) => (arena.file_offset + usize::from(index) * arena.data_bytes) as u64,
        None => crate::control::die("the kernel named a stub that does not exist"),
    }
}

// What the pager calls.

/// Notes how the view is protected, before or after it is: when less is allowed, before the
/// mappings are collected; when more, after the contents are in place.
pub(crate) fn set_frame(frame: u32, protection: Protection) {
    arena().frames[frame as usize].store(protection as u8, Relaxed);
}

pub(crate) fn frame(frame: u32) -> Protection {
    match arena().frames[frame as usize].load(Relaxed) {
        0 => Protection::None,
        1 => Protection::Read,
        _ => Protection::ReadWrite,
    }
}

/// Pages that a stub is about to use: each thread's last, and until when they are kept for it.
static HELD_PAGE: [AtomicU32; crate::slots::SLOTS] =
    [const { AtomicU32::new(u32::MAX) }; crate::slots::SLOTS];
static HELD_UNTIL: [AtomicU64; crate::slots::SLOTS] =
    [const { AtomicU64::new(0) }; crate::slots::SLOTS];

/// A page that a guest process faulted on is kept this long: mapping it and resuming the stub takes
/// two turns of the host's scheduler.
const HELD_NS: u64 = 300_000;

/// Keeps a page for the stub that the calling thread will resume. Context: local stack.
pub(crate) fn hold(page: u32, slot: usize, now_ns: u64) {
    FAULTS.fetch_add(1, Relaxed);
    HELD_UNTIL[slot].store(now_ns + HELD_NS, Relaxed);
    HELD_PAGE[slot].store(page, Release);
}

/// Whether a stub could map the page for the access. A hint: another node may take it at any time.
pub(crate) fn is_here(page: u32, is_write: bool) -> bool {
    frame(page)
        >= if is_write {
            Protection::ReadWrite
        } else {
            Protection::Read
        }
}

/// Until when a stub needs the page, on the host's clock.
pub(crate) fn held_until(page: u32) -> Option<u64> {
    let holders = HELD_PAGE.iter().zip(&HELD_UNTIL);
    let held = holders.filter(|(held, _)| held.load(Acquire) == page);
    held.map(|(_, until)| until.load(Relaxed)).max()
}

/// Queues the frame's mappings for removal; the stubs that have to be stopped for that.
pub(crate) fn take_frame(frame: u32) -> Vec<Kick> {
    let mut table = table();
    let Some(users) = table.reverse.remove(&frame) else {
        return Vec::new();
    };
    let mut kicks: Vec<Kick> = Vec::new();
    for (index, va) in users {
        let stub = &mut table.stubs[usize::from(index)];
        stub.frames.remove(&va);
        stub.pending.push(va);
        if !kicks.iter().any(|kick| kick.index == index) {
            kicks.push(Kick {
                index,
                pid: stub.pid,
            });
        }
    }
    drop(table);
    kicks.retain(|kick| !kick.try_stop());
    kicks
}

/// The kick for a flush; `None` if the stub is not running, or no longer there.
pub(crate) fn kick(slot: u64) -> Option<Kick> {
    let index = arena().index(slot)?;
    let kick = Kick {
        index,
        pid: table().stubs[usize::from(index)].pid,
    };
    (!kick.try_stop()).then_some(kick)
}

/// A stub that has been told to stop and may not have done so yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kick {
    index: u16,
    pid: i32,
}

impl Kick {
    /// Takes an announced entry back, or interrupts the stub; true once it is out.
    fn try_stop(self) -> bool {
        let futex = arena().futex(self.index);
        loop {
            match futex.load(SeqCst) {
                ENTERING => {
                    if futex
                        .compare_exchange(ENTERING, IN_KERNEL, SeqCst, SeqCst)
                        .is_ok()
                    {
                        return true;
                    }
                }
                IN_CHILD if self.pid > 0 => {
                    KICKS.fetch_add(1, Relaxed);
                    // SAFETY: a signal to a process of this node's; a stub that has just ended is
                    // a zombie until its slot is freed, so the number is not another's.
                    if unsafe { libc::kill(self.pid, libc::SIGALRM) } != 0 {
                        return true;
                    }
                    return futex.load(SeqCst) != IN_CHILD;
                }
                _ => return true,
            }
        }
    }

    /// Waits until the stub is out. It needs nothing but a host CPU for that. Not for the pager.
    pub(crate) fn wait(self) {
        /// After this the stub is looked at again, in case it has died.
        const LOOK_AGAIN: Duration = Duration::from_millis(100);
        let futex = arena().futex(self.index);
        let mut asked = Instant::now();
        while futex.load(SeqCst) == IN_CHILD {
            let timeout = libc::timespec {
                tv_sec: 0,
                tv_nsec: 20_000_000,
            };
            // SAFETY: waits on a word of the arena; the stub wakes all waiters.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    futex.as_ptr(),
                    libc::FUTEX_WAIT,
                    IN_CHILD,
                    &timeout,
                )
            };
            if asked.elapsed() > LOOK_AGAIN {
                asked = Instant::now();
                // SAFETY: as in `try_stop`.
                if unsafe { libc::kill(self.pid, libc::SIGALRM) } != 0 {
                    return;
                }
            }
        }
    }
}
