//! Threads that the host does not run.

use std::fs;
use std::ptr;

/// Threads that are kept from running until this is dropped, by whoever made it. Unlike a stopped process, nobody is told
/// of it: to everybody else it is as if the host had no time for them.
#[derive(Debug)]
pub struct Held(Vec<i32>);

impl Held {
    #[track_caller]
    pub fn threads(threads: &[i32]) -> Self {
        for thread in threads {
            for request in [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT] {
                let nothing = ptr::null_mut::<libc::c_void>();
                // SAFETY: neither request reads or writes memory.
                let result = unsafe { libc::ptrace(request, *thread, nothing, nothing) };
                let error = std::io::Error::last_os_error();
                assert_eq!(result, 0, "holding thread {thread}: {error}");
            }
            // SAFETY: passes no memory.
            let stopped = unsafe { libc::waitpid(*thread, ptr::null_mut(), libc::__WALL) };
            assert_eq!(stopped, *thread, "a thread that does not stop");
        }
        Self(threads.to_vec())
    }

    /// All threads of a process.
    #[track_caller]
    pub fn process(pid: i32) -> Self {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
        let threads: Vec<i32> = threads
            .map(|thread| thread.expect("a thread").file_name())
            .map(|name| name.to_str().and_then(|name| name.parse().ok()))
            .map(|thread| thread.expect("a number"))
            .collect();
        Self::threads(&threads)
    }

    /// A signal with a value for a process, for when its first thread runs again.
    #[track_caller]
    pub fn queue(&self, pid: i32, signal: i32, value: usize) {
        let value = libc::sigval {
            sival_ptr: ptr::without_provenance_mut(value),
        };
        // SAFETY: passes no memory.
        let result = unsafe { libc::sigqueue(pid, signal, value) };
        assert_eq!(result, 0, "queueing signal {signal} for process {pid}");
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // The first one's end is seen last.
        for thread in self.0.iter().rev() {
            let nothing = ptr::null_mut::<libc::c_void>();
            // SAFETY: passes no signal.
            let result = unsafe { libc::ptrace(libc::PTRACE_DETACH, *thread, nothing, nothing) };
            if result != 0 {
                // It was killed meanwhile, and its parent waits for its end.
                // SAFETY: passes no memory.
                unsafe { libc::waitpid(*thread, ptr::null_mut(), libc::__WALL | libc::WNOHANG) };
            }
        }
    }
}
