//! What a link costs on top of what the network takes: a message leaves when its time has come.

use crate::clock;
use std::collections::VecDeque;

/// A queue whose entries can be taken out, in order, once they are due.
#[derive(Debug)]
pub(super) struct Delayed<T> {
    latency_ns: u64,
    queue: VecDeque<(u64, T)>,
}

impl<T> Delayed<T> {
    pub(super) fn new(latency_ns: u64) -> Self {
        Self {
            latency_ns,
            queue: VecDeque::new(),
        }
    }

    pub(super) fn push(&mut self, entry: T) {
        // Without a latency nobody looks at the clock.
        let due_ns = match self.latency_ns {
            0 => 0,
            latency_ns => clock::host_ns() + latency_ns,
        };
        self.queue.push_back((due_ns, entry));
    }

    /// When the next entry is due that was delayed.
    pub(super) fn due_ns(&self) -> Option<u64> {
        let (due_ns, _) = self.queue.front()?;
        Some(*due_ns)
    }

    /// The next entry, if it is due.
    pub(super) fn take(&mut self) -> Option<T> {
        match self.due_ns()? {
            0 => {}
            due_ns if due_ns <= clock::host_ns() => {}
            _ => return None,
        }
        self.queue.pop_front().map(|(_, entry)| entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_latency_all_is_due_at_once() {
        let mut queue = Delayed::new(0);
        (0..3).for_each(|entry| queue.push(entry));
        let all: Vec<i32> = std::iter::from_fn(|| queue.take()).collect();
        assert_eq!(all, [0, 1, 2]);
        assert_eq!(queue.due_ns(), None);
    }

    #[test]
    fn entries_leave_in_order_and_not_before_their_time() {
        let latency_ns = 3_000_000;
        let mut queue = Delayed::new(latency_ns);
        let began_ns = clock::host_ns();
        queue.push(1);
        queue.push(2);
        let due_ns = queue.due_ns().expect("something waits");
        assert!(due_ns >= began_ns + latency_ns);
        let mut all = Vec::new();
        while all.len() < 2 {
            all.extend(queue.take());
            assert!(all.is_empty() || clock::host_ns() >= due_ns);
            std::thread::yield_now();
        }
        assert_eq!(all, [1, 2]);
    }
}
