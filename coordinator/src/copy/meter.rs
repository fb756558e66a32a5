//! How far a copy has come, for who watches a terminal.

use crate::terminal;
use crate::units;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// What takes less is not worth a line.
const SHOWN_AFTER: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Meter {
    begin: Instant,
    bytes: u64,
    wanted: bool,
    shown: bool,
}

impl Meter {
    pub(super) fn new() -> Self {
        Self {
            begin: Instant::now(),
            bytes: 0,
            wanted: io::stderr().is_terminal() && !terminal::is_dumb(),
            shown: false,
        }
    }

    pub(super) fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    pub(super) fn show(&mut self) {
        let elapsed = self.begin.elapsed();
        if !self.wanted || elapsed < SHOWN_AFTER {
            return;
        }
        let rate = self.bytes as f64 / elapsed.as_secs_f64();
        let (bytes, rate) = (units::bytes(self.bytes as f64), units::bytes(rate));
        let _ = write!(io::stderr(), "\r\x1b[K{bytes}, {rate}/s");
        self.shown = true;
    }

    /// Makes room for other lines.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
