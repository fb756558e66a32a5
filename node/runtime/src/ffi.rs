//! What the kernel calls: `arch/um/include/shared/node.h`, which documents each function.
//!
//! No pointer that comes in leads to guest memory, unless a function says so.

use crate::image::{self, NodeImage, PAGE_BYTES};
use crate::ipi::Call;
use crate::profile::{self, NodeUser};
use crate::slots::{self, Op};
use crate::{clock, control, ipi, local_stack, pager, start, sticky, stub};
use span_api::guest::{FromGuest, HaltKind};
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_ulonglong, c_void};
use std::io::Write;

const FAULT_FOREIGN: c_int = 0;
const FAULT_DONE: c_int = 1;
const FAULT_VM: c_int = 2;

/// # Safety
/// Both pointers lead to variables of the caller's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn node_join(self_: *mut c_int, memory_size: *mut c_ulonglong) -> c_int {
    let Some(setup) = start::join() else { return 0 };
    // SAFETY: the caller's promise.
    unsafe {
        *self_ = c_int::from(setup.node);
        *memory_size = setup.nodes.iter().map(|node| node.memory_bytes).sum();
    }
    setup.nodes.len() as c_int
}

/// # Safety
/// `image` describes this process truthfully, and nobody uses the ranges it names.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn node_map(image: *const NodeImage) {
    // SAFETY: the caller's promise.
    start::map(unsafe { *image });
}

#[unsafe(no_mangle)]
pub extern "C" fn node_serve() -> ! {
    loop {
        // SAFETY: sleeps; this thread has nothing to do any more.
        unsafe { libc::pause() };
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn node_memory_fd() -> c_int {
    start::memory_fd()
}

thread_local! {
    /// What faulted in kernel virtual memory: the kernel looks up its page before it asks for it.
    static VM_INSTRUCTION: Cell<u64> = const { Cell::new(0) };
}

/// Context: signal.
#[unsafe(no_mangle)]
pub extern "C" fn node_page_fault(addr: c_ulong, is_write: c_int, ip: c_ulong) -> c_int {
    let addr = addr as usize;
    if image::is_shared(addr) {
        slots::request_in_handler(Op::Fault, addr as u64, is_write as u64, ip);
        FAULT_DONE
    } else if image::is_vm(addr) {
        VM_INSTRUCTION.set(ip);
        FAULT_VM
    } else {
        FAULT_FOREIGN
    }
}

/// `user` may lie in guest memory, as the stack that this is called on does.
///
/// # Safety
/// `user` leads to a variable of the caller's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn node_user_page(addr: c_ulong, is_write: c_int, user: *const NodeUser) {
    let noted = profile::is_on();
    if noted {
        // SAFETY: the caller's promise.
        profile::fetch_for(slots::mine(), unsafe { *user });
    }
    local_stack::call(fetch_user_page, addr, is_write as u64, noted.into(), 0);
}

extern "C" fn fetch_user_page(addr: u64, is_write: u64, noted: u64, _: u64) -> u64 {
    // The image's constants are mapped by processes, too, and no other node's to take.
    if image::is_shared(addr as usize) {
        let page = image::page_of(addr as usize);
        if !stub::is_here(page, is_write != 0) {
            slots::request(Op::UserPage, addr, is_write, noted);
        }
        stub::hold(page, slots::mine(), clock::host_ns());
    }
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn node_of_cpu(cpu: c_int) -> c_int {
    start::node_of_cpu(cpu)
}

#[unsafe(no_mangle)]
pub extern "C" fn node_start_cpu(cpu: c_int, sigset: c_ulonglong) -> c_int {
    slots::request(Op::StartCpu, cpu as u64, sigset, 0) as c_int
}

#[unsafe(no_mangle)]
pub extern "C" fn node_cpu_started(cpu: c_int, variables: c_ulong) {
    name_thread(cpu);
    // SAFETY: no arguments.
    let thread = unsafe { libc::gettid() };
    if start::memory_fd() < 0 {
        // A guest on one node has no pager.
        local_stack::call(report_cpu, cpu as u64, thread as u64, variables, 0);
    } else {
        slots::request(Op::CpuStarted, cpu as u64, thread as u64, variables);
    }
}

/// Else it has the name of whoever made it. Context: the thread's first stack, which is the host's.
fn name_thread(cpu: c_int) {
    let mut name = [0u8; 16];
    if write!(&mut name[..15], "span-cpu-{cpu}").is_ok() {
        // SAFETY: a local that ends with a zero.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    }
}

extern "C" fn report_cpu(cpu: u64, thread: u64, variables: u64, _: u64) -> u64 {
    control::send(&FromGuest::CpuOnline {
        cpu: cpu as u16,
        tid: thread as i32,
        variables,
    });
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn node_cpu_wait(cpu: c_int) {
    slots::request(Op::CpuWait, cpu as u64, 0, 0);
}

#[unsafe(no_mangle)]
pub extern "C" fn node_cpu_run(cpu: c_int) {
    slots::request(Op::CpuRun, cpu as u64, 0, 0);
}

#[unsafe(no_mangle)]
pub extern "C" fn node_send_ipi(cpu: c_int, vector: c_int) -> c_int {
    ipi::send(cpu, vector)
}

#[unsafe(no_mangle)]
pub extern "C" fn node_call(
    cpu: c_int,
    from: c_int,
    kind: c_int,
    data: *mut c_void,
    function: *mut c_void,
    info: *mut c_void,
) {
    let who = cpu as u64 | (from as u64) << 16 | (kind as u64) << 32;
    local_stack::call(post_call, who, data as u64, function as u64, info as u64);
}

extern "C" fn post_call(who: u64, data: u64, function: u64, info: u64) -> u64 {
    let call = Call {
        kind: (who >> 32) as u32,
        from: u32::from((who >> 16) as u16),
        data,
        function,
        info,
    };
    pager::call(who as u16, call);
    0
}

/// # Safety
/// `call` leads to a variable of the caller's, in memory of this process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn node_take_call(cpu: c_int, call: *mut Call) -> c_int {
    local_stack::call(take_call, cpu as u64, call as u64, 0, 0) as c_int
}

extern "C" fn take_call(cpu: u64, into: u64, _: u64, _: u64) -> u64 {
    let Some(call) = ipi::take_call(cpu as u16) else {
        return 0;
    };
    // SAFETY: `node_take_call`'s caller passes a variable of its own.
    unsafe { *(into as *mut Call) = call };
    1
}

/// Context: any; what it passes to the host lies in this library.
#[unsafe(no_mangle)]
pub extern "C" fn node_pause(turn: c_uint) {
    /// What is waited for happens within a few instructions, or takes a page from another node.
    const TURNS_SPINNING: usize = 4;
    const SPINS: usize = 50;
    const fn micros(us: i64) -> libc::timespec {
        libc::timespec {
            tv_sec: 0,
            tv_nsec: us * 1000,
        }
    }
    static SLEEPS: [libc::timespec; 4] = [micros(20), micros(50), micros(100), micros(200)];

    match (turn as usize).checked_sub(TURNS_SPINNING) {
        None => (0..SPINS).for_each(|_| std::hint::spin_loop()),
        Some(turn) => {
            let sleep = &SLEEPS[turn.min(SLEEPS.len() - 1)];
            // SAFETY: reads a static; an interrupt may end the sleep, and the caller looks again.
            unsafe { libc::syscall(libc::SYS_nanosleep, sleep, std::ptr::null::<u8>()) };
        }
    }
}

/// Context: signal.
#[unsafe(no_mangle)]
pub extern "C" fn node_vm_map(addr: c_ulong, phys: c_ulong, is_write: c_int) -> c_int {
    let page = phys / PAGE_BYTES as u64;
    let page_and_write = page << 1 | u64::from(is_write != 0);
    slots::request_in_handler(Op::VmMap, addr, page_and_write, VM_INSTRUCTION.get()) as c_int
}

#[unsafe(no_mangle)]
pub extern "C" fn node_vm_drop(start: c_ulong, end: c_ulong) {
    slots::request(Op::VmDrop, start, end, 0);
}

/// Context: any.
#[unsafe(no_mangle)]
pub extern "C" fn node_settle() {
    slots::request(Op::Settle, 0, 0, 0);
}

#[unsafe(no_mangle)]
pub extern "C" fn node_stub_alloc() -> *mut c_void {
    local_stack::call(stub::alloc, 0, 0, 0, 0) as *mut c_void
}

#[unsafe(no_mangle)]
pub extern "C" fn node_stub_started(slot: *mut c_void, pid: c_int) {
    local_stack::call(stub::started, slot as u64, pid as u64, 0, 0);
}

#[unsafe(no_mangle)]
pub extern "C" fn node_stub_free(slot: *mut c_void) {
    local_stack::call(stub::free, slot as u64, 0, 0, 0);
}

#[unsafe(no_mangle)]
pub extern "C" fn node_stub_kill(node: c_int, slot: *mut c_void) {
    slots::request(Op::StubKill, node as u64, slot as u64, 0);
}

#[unsafe(no_mangle)]
pub extern "C" fn node_stub_offset(data: *mut c_void) -> c_ulonglong {
    stub::data_offset(data as u64)
}

#[unsafe(no_mangle)]
pub extern "C" fn node_stub_map(
    slot: *mut c_void,
    addr: c_ulong,
    phys: c_ulong,
    prot: c_int,
) -> c_int {
    local_stack::call(stub::map, slot as u64, addr, phys, prot as u64) as c_int
}

#[unsafe(no_mangle)]
pub extern "C" fn node_stub_unmap(slot: *mut c_void, addr: c_ulong, len: c_ulong) {
    local_stack::call(stub::unmap, slot as u64, addr, len, 0);
}

#[unsafe(no_mangle)]
pub extern "C" fn node_stub_drain(slot: *mut c_void) -> c_ulong {
    local_stack::call(stub::drain, slot as u64, 0, 0, 0)
}

#[unsafe(no_mangle)]
pub extern "C" fn node_stub_turn(pid: c_int, cpu: c_int) -> c_int {
    sticky::turn_begins(pid, cpu)
}

#[unsafe(no_mangle)]
pub extern "C" fn node_stub_turned() {
    sticky::turn_ends();
}

#[unsafe(no_mangle)]
pub extern "C" fn node_idle() {
    sticky::free();
}

#[unsafe(no_mangle)]
pub extern "C" fn node_stub_kick(node: c_int, slot: *mut c_void) {
    slots::request(Op::StubKick, node as u64, slot as u64, 0);
}

extern "C" fn report_halt(kind: u64, _: u64, _: u64, _: u64) -> u64 {
    let kind = match kind {
        0 => HaltKind::PowerOff,
        1 => HaltKind::Halt,
        _ => HaltKind::Restart,
    };
    control::report_end(&FromGuest::Halted(kind))
}

#[unsafe(no_mangle)]
pub extern "C" fn node_halt(kind: c_int) -> ! {
    local_stack::call(report_halt, kind as u64, 0, 0, 0);
    unreachable!("the report does not return")
}

extern "C" fn report_panic(text: u64, _: u64, _: u64, _: u64) -> u64 {
    // SAFETY: `node_panic`'s caller passes a C string that stays.
    let text = unsafe { CStr::from_ptr(text as *const c_char) };
    control::report_end(&FromGuest::Panicked(
        text.to_string_lossy().trim().to_string(),
    ))
}

#[unsafe(no_mangle)]
pub extern "C" fn node_panic(text: *const c_char) -> ! {
    local_stack::call(report_panic, text as u64, 0, 0, 0);
    unreachable!("the report does not return")
}
