//! What a person sees on stderr: one line a stage with the time since the start, and a live count
//! inside long stages (rewritten in place on a terminal, a line now and then elsewhere).

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const REDRAW: Duration = Duration::from_millis(100);
const LINE_EVERY: Duration = Duration::from_secs(10);
const DETAIL_CHARS_MAX: usize = 48;

#[derive(Debug)]
pub(crate) struct Progress {
    start: Instant,
    terminal: bool,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Progress {
            start: Instant::now(),
            terminal: std::io::stderr().is_terminal(),
        }
    }

    pub(crate) fn stage(&self, text: impl AsRef<str>) {
        eprintln!("{} {}", self.stamp(), text.as_ref());
    }

    /// A counter for one long stage; `label` comes first on its lines.
    pub(crate) fn counter<'a>(&'a self, label: &'a str) -> Counter<'a> {
        Counter {
            progress: self,
            label,
            shown: Instant::now(),
            drawn: false,
        }
    }

    fn stamp(&self) -> String {
        format!("[{:6.1}s]", self.start.elapsed().as_secs_f32())
    }
}

#[derive(Debug)]
pub(crate) struct Counter<'a> {
    progress: &'a Progress,
    label: &'a str,
    shown: Instant,
    drawn: bool,
}

impl Counter<'_> {
    /// Shows `count` if it is time to; call it as often as you like.
    pub(crate) fn show(&mut self, count: &str, detail: &str) {
        let every = if self.progress.terminal {
            REDRAW
        } else {
            LINE_EVERY
        };
        if self.shown.elapsed() < every {
            return;
        }
        self.shown = Instant::now();
        let stamp = self.progress.stamp();
        if self.progress.terminal {
            let detail: String = detail.chars().take(DETAIL_CHARS_MAX).collect();
            eprint!("\r{stamp} {}: {count}  {detail}\x1b[K", self.label);
            let _ = std::io::stderr().flush();
            self.drawn = true;
        } else {
            eprintln!("{stamp} {}: {count}", self.label);
        }
    }
}

impl Drop for Counter<'_> {
    fn drop(&mut self) {
        if self.drawn {
            eprint!("\r\x1b[K");
        }
    }
}
