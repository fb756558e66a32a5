//! `libnode.so`: the runtime inside a guest process.
//!
//! **Purpose.** Lets one Linux kernel run in several processes: the kernel's image and memory are kept
//! coherent between them, and its virtual CPUs, interrupts, user processes and host calls work
//! wherever a CPU is.
//!
//! **Mechanism.** The kernel (User-Mode Linux) is linked against this library and calls it through the
//! functions in [`ffi`]. A page that is not here faults; the fault is handled below the kernel by
//! asking the pager, which runs the protocol of the crate `dsm` over QUIC.
//! DESIGN.md beside this crate has the thread map, the signal table, the lock order and the address
//! map.
//!
//! **Guarantees.** No thread of the runtime ever waits for a thread of the kernel's, so no lock of the
//! kernel's can stop the protocol. No host call sees a guest address.
//!
//! **Cost.** Nothing in a guest on one node: the library then only reports the guest's end.
//!
//! Unsafe code is opened here because this crate is the border to a C program and to the host's memory
//! management; each use names what it relies on.

mod clock;
mod control;
pub mod ffi;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod host;
pub mod hostcall;
mod image;
mod ipi;
mod local_stack;
mod network;
mod pager;
mod profile;
mod slots;
mod spin;
mod start;
mod sticky;
mod stub;
mod uplinks;
mod view;

/// Starts a thread of the runtime. It blocks all signals: those are the kernel's.
fn thread(name: &str, body: impl FnOnce() + Send + 'static) {
    let blocked = || {
        // SAFETY: both are locals, and the calls only change this thread's mask.
        unsafe {
            let mut all = std::mem::zeroed();
            let mut old = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut old);
            old
        }
    };
    // The new thread inherits the mask, so that not even its first instruction can be interrupted.
    let old = blocked();
    let started = std::thread::Builder::new()
        .name(name.to_string())
        .spawn(body);
    // SAFETY: restores what was read above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &old, std::ptr::null_mut()) };
    if let Err(error) = started {
        control::fail(&format!("starting the thread {name}: {error}"));
    }
}
