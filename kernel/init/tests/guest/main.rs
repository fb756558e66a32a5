//! span-init in a real guest: a plain kernel in one process, and the session protocol over its
//! `/dev/span`. `SPAN_TEST_KERNEL` names the kernel.

mod endings;
mod harness;
mod initramfs;
mod roots;
mod sessions;
