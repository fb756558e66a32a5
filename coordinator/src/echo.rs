//! Lines shown on stderr by a thread of their own, so that a reader who stopped reading (a pager, a
//! stopped terminal) does not stop the coordinator, whose nodes elsewhere would take it for dead.
//!
//! What waits is bounded; lines beyond are counted and not shown. The log file has them all.

use crate::session::locked;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Lines waiting to be shown, in bytes.
const WAITING_BYTES_MAX: usize = 4 << 20;

/// Longest wait for the last lines to be shown.
const FINISH_MS_MAX: u64 = 200;

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<String>,
    bytes: usize,
    dropped: u64,
    closed: bool,
    done: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// The way to stderr. Dropped, it waits a moment for the last lines.
#[derive(Debug)]
pub(crate) struct Echo {
    shared: Arc<Shared>,
}

impl Echo {
    pub(crate) fn new() -> Self {
        Self::to(io::stderr())
    }

    fn to(out: impl Write + Send + 'static) -> Self {
        let shared = Arc::<Shared>::default();
        let showing = shared.clone();
        std::thread::spawn(move || showing.show(out));
        Self { shared }
    }

    /// Shows a line some time soon.
    pub(crate) fn line(&self, line: String) {
        let mut queue = locked(&self.shared.queue);
        if queue.bytes + line.len() > WAITING_BYTES_MAX {
            queue.dropped += 1;
            return;
        }
        let dropped = std::mem::take(&mut queue.dropped);
        if dropped > 0 {
            queue
                .lines
                .push_back(format!("({dropped} lines are not shown here)"));
        }
        queue.bytes += line.len();
        queue.lines.push_back(line);
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn show(&self, mut out: impl Write) {
        loop {
            let mut queue = locked(&self.queue);
            while queue.lines.is_empty() && !queue.closed {
                queue = self
                    .changed
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            let lines = std::mem::take(&mut queue.lines);
            if lines.is_empty() {
                queue.done = true;
                self.changed.notify_all();
                return;
            }
            drop(queue);
            for line in lines {
                // A reader who went away misses nothing; the others must get on.
                let _ = out.write_all(format!("{line}\n").as_bytes());
                let mut queue = locked(&self.queue);
                queue.bytes = queue.bytes.saturating_sub(line.len());
            }
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let mut queue = locked(&self.shared.queue);
        queue.closed = true;
        self.shared.changed.notify_all();
        let longest = Duration::from_millis(FINISH_MS_MAX);
        let _ = self
            .shared
            .changed
            .wait_timeout_while(queue, longest, |queue| !queue.done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_reader_that_stops_reading_stops_nobody() {
        let (mut reader, writer) = io::pipe().unwrap();
        let echo = Echo::to(writer);
        let line = "x".repeat(999);
        for _ in 0..3 * WAITING_BYTES_MAX / line.len() {
            echo.line(line.clone());
        }
        drop(echo);
        let mut text = vec![0; WAITING_BYTES_MAX];
        reader.read_exact(&mut text).unwrap();
    }

    #[test]
    fn lines_left_out_are_counted() {
        let (mut reader, writer) = io::pipe().unwrap();
        let echo = Echo::to(writer);
        // The writer is stuck in the first line, which no pipe takes whole.
        echo.line("a".repeat(1 << 20));
        while !locked(&echo.shared.queue).lines.is_empty() {
            std::thread::yield_now();
        }
        echo.line("b".repeat(WAITING_BYTES_MAX - (1 << 20)));
        echo.line("c".into());
        echo.line("d".into());
        let mut text = vec![0; (1 << 20) + 1];
        reader.read_exact(&mut text).unwrap();
        while locked(&echo.shared.queue).bytes == WAITING_BYTES_MAX {
            std::thread::yield_now();
        }
        echo.line("e".into());
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        drop(echo);
        assert!(
            reading
                .join()
                .unwrap()
                .ends_with("b\n(2 lines are not shown here)\ne\n")
        );
    }
}
