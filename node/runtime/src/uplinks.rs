//! Queues of uplinks: what the links of several nodes of this host have in common.
//!
//! A queue is the time at which it is free, on the host's clock, in memory that the nodes' guest processes share. Whoever
//! sends takes his turn behind those before him by moving that time. Nobody waits for anybody, and a node that is killed
//! leaves nothing behind but a time that comes.

use span_api::guest::{UPLINK_QUEUE_BYTES, UPLINKS_FD_ENV};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

static QUEUES: OnceLock<&'static [Queue]> = OnceLock::new();

/// One direction of an uplink.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Queue {
    /// When the last message is on its way whole.
    free_ns: AtomicU64,
}

const _: () = assert!(size_of::<Queue>() == UPLINK_QUEUE_BYTES);

impl Queue {
    /// Takes a turn for a message that takes the wire so long: when it is on its way whole.
    pub(crate) fn take(&self, now_ns: u64, takes_ns: u64) -> u64 {
        let after = |free_ns: u64| free_ns.max(now_ns).saturating_add(takes_ns);
        // Each attempt that fails is another node's that has not.
        let mut free_ns = self.free_ns.load(Relaxed);
        while let Err(taken_ns) =
            self.free_ns
                .compare_exchange_weak(free_ns, after(free_ns), Relaxed, Relaxed)
        {
            free_ns = taken_ns;
        }
        after(free_ns)
    }
}

/// Maps the queues, if the agent has passed any on; an error is one line. To be called before there are other threads.
pub(crate) fn map() -> Result<(), String> {
    let value = std::env::var(UPLINKS_FD_ENV).unwrap_or_default();
    if value.is_empty() {
        return Ok(());
    }
    let fd: i32 = value
        .parse()
        .ok()
        .filter(|fd| *fd > 2)
        .ok_or_else(|| format!("{UPLINKS_FD_ENV}: {value:?} is no descriptor"))?;
    // SAFETY: the agent passed the descriptor on to this process for nothing else.
    let file = unsafe { File::from_raw_fd(fd) };
    let failed = |error| format!("the memory of uplinks: {error}");
    let bytes = file.metadata().map_err(failed)?.len() as usize;
    // SAFETY: a new mapping, of a file that is open.
    let memory = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if memory == libc::MAP_FAILED {
        return Err(failed(std::io::Error::last_os_error()));
    }
    // SAFETY: the mapping stays, is aligned to pages, and has room for as many; the coordinator has sealed the file against
    // becoming shorter. Any bits are a queue, and whoever else has the memory changes it by atomic operations only.
    let queues =
        unsafe { std::slice::from_raw_parts(memory.cast::<Queue>(), bytes / UPLINK_QUEUE_BYTES) };
    QUEUES.set(queues).expect("mapped once");
    Ok(())
}

/// The queue with a number, if there is one.
pub(crate) fn queue(number: u16) -> Option<&'static Queue> {
    QUEUES.get()?.get(usize::from(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_follow_each_other_and_none_is_given_twice() {
        const THREADS: u64 = 4;
        const TURNS: u64 = 10_000;
        let queue = Queue::default();
        let mut all: Vec<u64> = std::thread::scope(|scope| {
            let turns = || (0..TURNS).map(|_| queue.take(5, 3)).collect::<Vec<u64>>();
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(turns)).collect();
            let turns = threads.into_iter().map(|thread| thread.join());
            turns.flat_map(|turns| turns.expect("it ends")).collect()
        });
        all.sort_unstable();
        let expected: Vec<u64> = (1..=THREADS * TURNS).map(|turn| 5 + 3 * turn).collect();
        assert_eq!(all, expected);
        // Free time is gone.
        assert_eq!(queue.take(1_000_000, 3), 1_000_003);
    }
}
