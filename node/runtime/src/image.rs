//! The address map of a guest process, as far as coherence goes.
//!
//! Written once by [`set`], before a second thread runs, and read from signal handlers.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

pub(crate) const PAGE_BYTES: usize = 4096;

/// `struct node_image` of `arch/um/include/shared/node.h`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct NodeImage {
    pub start: usize,
    pub local_start: usize,
    pub shared_start: usize,
    pub shared_end: usize,
    pub reserved: usize,
    pub memory_size: usize,
    pub vm_start: usize,
    pub vm_end: usize,
    pub stub_code: usize,
    pub stub_futex: usize,
    pub stub_data_size: usize,
    pub ipi_signal: i32,
    pub call_vector: i32,
    pub create_cpu: extern "C" fn(cpu: i32, sigset: u64) -> i32,
    pub kill_stub: extern "C" fn(slot: usize),
}

impl NodeImage {
    /// Whether the kernel, or a module of its, may have code at the address.
    pub(crate) fn is_code(&self, addr: u64) -> bool {
        let addr = addr as usize;
        (self.start..self.local_start).contains(&addr)
            || (self.vm_start..self.vm_end).contains(&addr)
    }

    /// Whether the kernel may have data at the address.
    pub(crate) fn is_data(&self, addr: u64) -> bool {
        let addr = addr as usize;
        (self.shared_start..self.shared_end).contains(&addr)
            || (self.reserved..self.start + self.memory_size).contains(&addr)
            || (self.vm_start..self.vm_end).contains(&addr)
    }
}

static START: AtomicUsize = AtomicUsize::new(0);
static SHARED_START: AtomicUsize = AtomicUsize::new(0);
static SHARED_END: AtomicUsize = AtomicUsize::new(0);
static RESERVED: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);
static VM_START: AtomicUsize = AtomicUsize::new(0);
static VM_END: AtomicUsize = AtomicUsize::new(0);

pub(crate) fn set(image: &NodeImage) {
    START.store(image.start, Relaxed);
    SHARED_START.store(image.shared_start, Relaxed);
    SHARED_END.store(image.shared_end, Relaxed);
    RESERVED.store(image.reserved, Relaxed);
    END.store(image.start + image.memory_size, Relaxed);
    VM_START.store(image.vm_start, Relaxed);
    VM_END.store(image.vm_end, Relaxed);
}

/// Whether the address lies in memory that pages are moved of. Context: signal.
pub(crate) fn is_shared(addr: usize) -> bool {
    (SHARED_START.load(Relaxed)..SHARED_END.load(Relaxed)).contains(&addr)
        || (RESERVED.load(Relaxed)..END.load(Relaxed)).contains(&addr)
}

/// Whether the address lies in kernel virtual memory. Context: signal.
pub(crate) fn is_vm(addr: usize) -> bool {
    (VM_START.load(Relaxed)..VM_END.load(Relaxed)).contains(&addr)
}

/// Whether any byte of the range may be absent from this node. Context: signal.
pub(crate) fn touches_guest(addr: usize, len: usize) -> bool {
    let last = addr.saturating_add(len.max(1) - 1);
    addr < VM_END.load(Relaxed)
        && last >= SHARED_START.load(Relaxed)
        && END.load(Relaxed) != 0
        && (is_shared(addr)
            || is_shared(last)
            || is_vm(addr)
            || is_vm(last)
            || (addr < RESERVED.load(Relaxed) && last >= END.load(Relaxed)))
}

/// The page an address of the image or of physical memory lies in. Context: signal.
pub(crate) fn page_of(addr: usize) -> u32 {
    ((addr - START.load(Relaxed)) / PAGE_BYTES) as u32
}
