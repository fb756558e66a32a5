//! The host-call boundary: every libc function through which the kernel image reaches its host.
//!
//! **Purpose.** The image's C host half (`arch/um/os-Linux`, the `*_user.c` files) calls libc with
//! pointers into guest memory and with descriptors that mean something on one node only. Guest memory
//! may be absent here, and a system call that is given a pointer into an absent page fails with
//! EFAULT instead of faulting. So no system call may see a guest address, and a call on a descriptor
//! or a path must run on the node that owns it.
//!
//! **Mechanism.** The image is linked with `--wrap SYM` for the symbols that `kernel/host-calls.txt`
//! classes as `forward` or `bounce`; this module exports the `__wrap_SYM`. A wrapper copies what it
//! is given into memory of its own ([`slot`]), runs the call here or on the owner ([`call`],
//! [`exec`], [`serve`]), and copies the result back.
//!
//! **Guarantees.** Return value and errno are libc's. Guest memory is touched by user-mode copies
//! only, on the caller's stack, with SIGSEGV and SIGBUS open. Nothing here allocates, locks or logs on
//! a virtual CPU's thread, except that [`env::note`] hands single lines to the runtime. Malformed
//! requests of peers get an error reply.
//!
//! **Cost.** Before [`install`] (one node, or plain UML) one load and a jump. After it, a call without
//! guest pointers on a local descriptor costs a range check; a copied call a slot claim and the copy;
//! calls whose libc implementation puts its own stack objects into system calls run on a stack of the
//! slot with signals blocked: two system calls more.
//!
//! Descriptors that the guest sees are handles: `node << 20 | descriptor` ([`env::Place`]).

mod call;
mod env;
mod exec;
mod export;
mod fd;
mod fs;
mod poll;
mod proc;
mod serve;
mod sig;
mod slot;
mod sock;
mod stdio;
mod syscall;
#[cfg(test)]
mod tests;
mod time;
mod tty;
mod umask;
mod wire;

pub use env::{Env, install, install_for_hostfs, set_paths_local, share_fd};
pub(crate) use export::set_up as export;
pub use serve::serve;
pub(crate) use umask::take as take_umask;
#[cfg(test)]
pub(crate) use wire::a_request;
pub use wire::{REPLY_MAX, REQUEST_MAX};
#[cfg(any(test, fuzzing))]
pub(crate) use wire::{check_reply, check_request};
