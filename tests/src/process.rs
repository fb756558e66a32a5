//! Child processes with a time limit, whose output is collected.

use crate::report;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const POLL_MS: u64 = 5;

/// How a process ended.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code, or 128 and the signal.
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
    /// When the end was seen.
    pub at: Instant,
}

impl Outcome {
    /// Output as text, without the last newline.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_string()
    }

    /// Expects this exit code; shows what was said otherwise.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            code,
            "exit code\nstdout: {}\nstderr: {}",
            self.text(),
            self.stderr
        );
        self
    }
}

/// A running process; killed when dropped.
#[derive(Debug)]
pub struct Spawned {
    child: Child,
    what: String,
    stdin: Option<ChildStdin>,
    stdout: Collector,
    stderr: Collector,
    ended: bool,
}

impl Spawned {
    pub fn start(command: &mut Command) -> Self {
        let what = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{what} cannot be started: {error}"));
        let stdout = Collector::start(child.stdout.take().expect("a pipe"));
        let stderr = Collector::start(child.stderr.take().expect("a pipe"));
        Self {
            stdin: child.stdin.take(),
            child,
            what,
            stdout,
            stderr,
            ended: false,
        }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("signalling a child");
    }

    /// Writes from a thread of its own, and closes the pipe.
    pub fn feed(&mut self, input: Vec<u8>) {
        if let Some(mut stdin) = self.stdin.take() {
            // A reader that ends early is no fault of the writer's.
            std::thread::spawn(move || _ = stdin.write_all(&input));
        }
    }

    /// Writes to its stdin, which stays open.
    #[track_caller]
    pub fn write(&mut self, input: &str) {
        let stdin = self.stdin.as_mut().expect("its stdin is open");
        stdin.write_all(input.as_bytes()).expect("writing to stdin");
    }

    /// What was written to stdout so far.
    pub fn stdout(&self) -> Vec<u8> {
        self.stdout.data.lock().expect("no panic").clone()
    }

    /// What was written to stderr so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.data.lock().expect("no panic")).into_owned()
    }

    /// Waits for `word` on stdout.
    #[track_caller]
    pub fn wait_for(&mut self, word: &str, limit: Duration) {
        self.wait_for_word(word, limit, |spawned| {
            String::from_utf8_lossy(&spawned.stdout()).into_owned()
        });
    }

    /// Waits for `word` on stderr.
    #[track_caller]
    pub fn wait_for_said(&mut self, word: &str, limit: Duration) {
        self.wait_for_word(word, limit, Self::stderr);
    }

    #[track_caller]
    fn wait_for_word(&mut self, word: &str, limit: Duration, text: impl Fn(&Self) -> String) {
        let deadline = Instant::now() + limit;
        while !text(self).contains(word) {
            let status = self.child.try_wait().expect("waiting for a child");
            assert!(
                status.is_none() && Instant::now() < deadline,
                "no {word:?} within {limit:?} ({status:?}) from {}",
                self.so_far()
            );
            std::thread::sleep(Duration::from_millis(POLL_MS));
        }
    }

    /// What this is and what it said, and how the guests are.
    fn so_far(&self) -> String {
        format!(
            "{}\nstdout: {}\nstderr: {}{}",
            self.what,
            String::from_utf8_lossy(&self.stdout()),
            self.stderr(),
            report::guests()
        )
    }

    /// Waits for the end.
    ///
    /// # Panics
    ///
    /// If there is none within `limit`.
    #[track_caller]
    pub fn wait(self, limit: Duration) -> Outcome {
        match self.try_wait(limit) {
            Ok(outcome) => outcome,
            Err(spawned) => panic!("no end within {limit:?} of {}", spawned.so_far()),
        }
    }

    /// Waits for the end; an error if there is none within `limit`.
    pub fn try_wait(mut self, limit: Duration) -> Result<Outcome, Box<Self>> {
        drop(self.stdin.take());
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("waiting for a child") {
                break status;
            }
            if Instant::now() >= deadline {
                return Err(Box::new(self));
            }
            std::thread::sleep(Duration::from_millis(POLL_MS));
        };
        let at = Instant::now();
        self.ended = true;
        Ok(Outcome {
            code: code(status),
            stdout: self.stdout.finish(),
            stderr: String::from_utf8_lossy(&self.stderr.finish()).into_owned(),
            at,
        })
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Waits until `done`; false if it is not within `limit`.
pub fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !done() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(POLL_MS));
    }
    true
}

fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

#[derive(Debug)]
struct Collector {
    data: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    fn start(mut from: impl Read + Send + 'static) -> Self {
        let data = Arc::new(Mutex::new(Vec::new()));
        let into = data.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                into.lock().expect("no panic").extend(&buffer[..count]);
            }
        });
        Self {
            data,
            thread: Some(thread),
        }
    }

    /// Everything, once the pipe is closed: a process left behind that still holds it is found by
    /// whoever looks for those, and must not hang the test before that.
    fn finish(&mut self) -> Vec<u8> {
        if let Some(thread) = self.thread.take()
            && wait_until(Duration::from_secs(2), || thread.is_finished())
        {
            let _ = thread.join();
        }
        std::mem::take(&mut self.data.lock().expect("no panic"))
    }
}

/// The process that started another one.
#[track_caller]
pub fn parent(pid: i32) -> i32 {
    let stat = crate::text(format!("/proc/{pid}/stat"));
    let fields = stat.rsplit_once(") ").expect("a name").1;
    let parent = fields.split(' ').nth(1).expect("a parent");
    parent.parse().expect("a number")
}
