//! What a link costs on top of what the network takes: a message leaves when its time has come.
//!
//! The wait is a timer of the host's, so a delayed message costs no processor.

use super::alarm::Alarm;
use super::watch;
use crate::clock;
use std::cell::RefCell;
use std::collections::VecDeque;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

/// For one waiter.
#[derive(Debug)]
pub(super) struct Timer(AsyncFd<Alarm>);

impl Timer {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self(watch(Alarm::new()?)?))
    }

    async fn wait_until(&self, due_ns: u64) -> std::io::Result<()> {
        self.0.get_ref().set(Some(due_ns));
        self.0.readable().await?.clear_ready();
        self.0.get_ref().has_gone_off();
        Ok(())
    }
}

/// A queue whose entries can be taken out, in order, once they are due.
#[derive(Debug)]
pub(super) struct Delayed<T> {
    latency_ns: u64,
    queue: RefCell<VecDeque<(u64, T)>>,
    filled: Notify,
}

impl<T> Delayed<T> {
    pub(super) fn new(latency_ns: u64) -> Self {
        Self {
            latency_ns,
            queue: RefCell::default(),
            filled: Notify::new(),
        }
    }

    pub(super) fn push(&self, entry: T) {
        // Without a latency nobody looks at the clock.
        let due_ns = match self.latency_ns {
            0 => 0,
            latency_ns => clock::host_ns() + latency_ns,
        };
        self.queue.borrow_mut().push_back((due_ns, entry));
        self.filled.notify_one();
    }

    /// Waits until an entry is due, then takes all that are, but no more than `most`.
    pub(super) async fn take(&self, timer: &Timer, most: usize) -> std::io::Result<Vec<T>> {
        loop {
            let next = self.queue.borrow().front().map(|(due_ns, _)| *due_ns);
            match next {
                None => self.filled.notified().await,
                Some(0) => return Ok(self.due(0, most)),
                Some(due_ns) => {
                    let now_ns = clock::host_ns();
                    if due_ns <= now_ns {
                        return Ok(self.due(now_ns, most));
                    }
                    timer.wait_until(due_ns).await?;
                }
            }
        }
    }

    fn due(&self, now_ns: u64, most: usize) -> Vec<T> {
        let mut queue = self.queue.borrow_mut();
        let due = queue.iter().take(most);
        let count = due.take_while(|(due_ns, _)| *due_ns <= now_ns).count();
        queue.drain(..count).map(|(_, entry)| entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(work: impl Future<Output = std::io::Result<()>>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime
            .expect("an event loop")
            .block_on(work)
            .expect("a timer");
    }

    #[test]
    fn without_a_latency_all_is_due_at_once() {
        run(async {
            let (queue, timer) = (Delayed::new(0), Timer::new()?);
            (0..5).for_each(|entry| queue.push(entry));
            assert_eq!(queue.take(&timer, 3).await?, [0, 1, 2]);
            assert_eq!(queue.take(&timer, 3).await?, [3, 4]);
            Ok(())
        });
    }

    #[test]
    fn entries_leave_in_order_and_not_before_their_time() {
        run(async {
            let latency_ns = 3_000_000;
            let (queue, timer) = (Delayed::new(latency_ns), Timer::new()?);
            let began_ns = clock::host_ns();
            queue.push(1);
            queue.push(2);
            let first = queue.take(&timer, 8).await?;
            assert!(clock::host_ns() >= began_ns + latency_ns);
            queue.push(3);
            let mut all = first;
            while all.len() < 3 {
                all.extend(queue.take(&timer, 8).await?);
            }
            assert_eq!(all, [1, 2, 3]);
            assert!(clock::host_ns() >= began_ns + 2 * latency_ns);
            Ok(())
        });
    }
}
