//! The first process of a Span guest, and the guest's end of the session protocol.
//!
//! As process 1 it sets up the root file system that the kernel command line asks for
//! ([`root`]), tells the coordinator over `/dev/span` that the guest is ready, and then serves
//! sessions ([`server`]): commands started in the guest, whose streams travel over that one
//! channel ([`span_api::session`]). It reaps every orphan, and ends the guest in order
//! ([`ending`]): when the coordinator asks for it, when the channel ends, or when a process
//! signals it as `poweroff`, `halt` and `reboot` do.
//!
//! One thread, one `poll` loop, no blocking call on behalf of a session: a command that does not
//! read its input and a user who does not read its output hold up only themselves. Memory per
//! session is bounded by the protocol's credit windows.
//!
//! Started under another name it is that command ([`applets`]): the ways to end the guest, and the
//! few programs that make a guest without any root file system usable.

#![cfg_attr(not(test), no_main)]

mod accounts;
mod applets;
mod channel;
mod cmdline;
mod copy;
mod ending;
mod kmsg;
mod network;
mod root;
mod server;
mod session;
mod spawn;

use ending::Ending;
use nix::sys::signal::{SigHandler, Signal, signal};
use span_api::{PROTOCOL_VERSION, session::FromInit};
use std::{error::Error, ffi::c_int, os::unix::ffi::OsStrExt, path::Path};

/// The C entry point: what Rust does before its own `main` ends a process that has neither open
/// standard streams nor a `/dev/null`, and the kernel starts process 1 like that when there is no
/// console that can be opened.
// SAFETY: the name is the C library's, and nothing else in this program defines it.
#[cfg_attr(not(test), unsafe(no_mangle))]
extern "C" fn main(_argc: c_int, _argv: *const *const std::ffi::c_char) -> c_int {
    if std::process::id() == 1 {
        return ending::finish(first_process());
    }
    let arguments: Vec<Vec<u8>> = std::env::args_os()
        .map(|argument| argument.as_bytes().to_vec())
        .collect();
    applets::run(&arguments)
}

/// Everything between the kernel's hand-over and the end; returns how the guest is to end.
fn first_process() -> Ending {
    // SAFETY: ignoring a signal runs no code. The reader of a session's input may be gone.
    let ignored = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) };
    if let Err(error) = ignored.map_err(std::io::Error::from) {
        kmsg::error(&chain(&error));
    }
    if let Err(error) = root::mount_kernel_file_systems() {
        kmsg::error(&chain(&error));
        return Ending::PowerOff;
    }
    let mut channel = match channel::Channel::open(Path::new("/dev/span")) {
        Ok(channel) => channel,
        Err(error) => {
            kmsg::error(&format!("{}; the kernel needs span.chan=", chain(&error)));
            return Ending::PowerOff;
        }
    };
    if let Err(error) = root::set_up() {
        let line = chain(&error);
        kmsg::error(&line);
        channel.send(&FromInit::Failed(line));
        channel.flush_within(ending::FLUSH_MS_MAX);
        return Ending::PowerOff;
    }
    let (kernel, cpus) = system();
    channel.send(&FromInit::Ready {
        version: PROTOCOL_VERSION,
        kernel,
        cpus,
    });
    server::Server::new(channel).run()
}

fn system() -> (String, u32) {
    let kernel = match nix::sys::utsname::uname() {
        Ok(names) => names.release().to_string_lossy().into_owned(),
        Err(_) => String::new(),
    };
    // SAFETY: `sysconf` takes no pointer.
    let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    (kernel, u32::try_from(online).unwrap_or(1))
}

/// An error and its causes in one line.
fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
