//! The coordinator with real agents, daemons and sockets, and a stand-in for the guest process
//! (`examples/fake-linux.rs`): everything but the kernel. Each test works in a directory of its own and
//! checks in the end that no process, socket or file of it is left.

mod daemons;
mod detached;
mod ends;
mod input;
mod namespaces;
mod peers;
mod profile;
mod running;
mod stats;
mod support;
mod terminals;
