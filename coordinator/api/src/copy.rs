//! Files on their way between the guest and a host: a tar stream, made by [`send`] on one side and taken apart
//! by [`receive`] on the other.
//!
//! What arrives is put together in a directory of its own beside the destination, and moved into place when all
//! of it is there. So neither a broken stream nor a full disk leaves half a file under its final name, and
//! nothing a stream says can lead out of the destination: names that are absolute or contain `..`, and
//! names below a link, are refused.
//!
//! Contents, permissions, times of change and links are kept, holes in files too. Owners are not, nor set-user-ID
//! and its like: a copy belongs to who makes it.

mod receive;
mod send;
#[cfg(test)]
mod tests;

pub use receive::{receive, receive_contents};
pub use send::{send, send_file};

use std::error::Error;
use std::io;
use std::path::Path;

/// How directories are named in which copies are put together. They are never copied themselves: the guest may
/// see the very directory that a copy of it is being put into.
const STAGING_PREFIX: &str = ".span-copy.";

/// What a destination means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Into {
    /// One thing: its new name, or the directory to put it into.
    Any,
    /// The directory to put everything into.
    Directory,
    /// The new name of one file.
    File,
}

/// Why something was not copied; one line.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct CopyError {
    what: String,
    why: String,
}

impl CopyError {
    fn new(what: &Path, why: impl std::fmt::Display) -> Self {
        Self {
            what: what.display().to_string(),
            why: why.to_string(),
        }
    }

    fn io(what: &Path) -> impl Fn(io::Error) -> Self {
        move |error| Self::new(what, cause(&error))
    }
}

/// What an error comes from in the end.
fn cause(error: &io::Error) -> String {
    let mut last: &dyn Error = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
