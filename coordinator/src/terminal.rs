//! The user's terminal: raw mode, restored however the program ends, and its size.

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use span_api::session::WindowSize;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

/// Settings to go back to, as long as the terminal is raw.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Whether stdin and stdout are a terminal, so that a shell can be had on it.
pub(crate) fn interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Whether the terminal only shows lines.
pub(crate) fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// A terminal in raw mode; restored when dropped.
#[derive(Debug)]
pub(crate) struct Raw(());

impl Raw {
    pub(crate) fn enter() -> io::Result<Self> {
        let saved = tcgetattr(io::stdin().as_fd())?;
        let mut raw = saved.clone();
        cfmakeraw(&mut raw);
        // A panic aborts without dropping anything.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            hook(info);
        }));
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &raw)?;
        Ok(Self(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Undoes [`Raw::enter`]; does nothing where there is nothing to undo.
pub(crate) fn restore() {
    if let Some(saved) = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // Not TCSADRAIN: that waits for a terminal that may be gone.
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &saved);
    }
}

/// Size of the terminal; 24 by 80 where there is none.
pub(crate) fn size() -> WindowSize {
    nix::ioctl_read_bad!(window_size, libc::TIOCGWINSZ, libc::winsize);
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    #[allow(unsafe_code)]
    // SAFETY: TIOCGWINSZ writes one `winsize`, to one that lives through the call.
    let known = unsafe { window_size(libc::STDOUT_FILENO, &mut size) }.is_ok();
    if known && size.ws_row > 0 && size.ws_col > 0 {
        WindowSize {
            rows: size.ws_row,
            columns: size.ws_col,
        }
    } else {
        WindowSize {
            rows: 24,
            columns: 80,
        }
    }
}
