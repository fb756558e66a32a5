//! SIGINT and SIGTERM end a run in order: what it has started is ended, and its files are removed.

use crate::error::{Error, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: libc::c_int) {
    INTERRUPTED.store(true, Relaxed);
}

pub(crate) fn watch() -> Result<()> {
    let action = SigAction::new(
        SigHandler::Handler(note),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler does nothing but store to an atomic.
        unsafe { sigaction(signal, &action) }
            .map_err(|error| Error::Failed(format!("{signal}: {error}")))?;
    }
    Ok(())
}

/// An error as soon as the run has been told to end.
pub(crate) fn check() -> Result<()> {
    if INTERRUPTED.load(Relaxed) {
        Err(Error::Interrupted)
    } else {
        Ok(())
    }
}
