//! The wrappers as kernel code meets them: every pointer and the stack itself are guest memory that
//! is absent at first, and a system call that is shown a guest address ends the process.

mod files;
mod guest;
mod process;
mod protocol;
mod signals;
mod streams;
