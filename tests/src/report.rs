//! What is said of the guests when a test waits in vain, and the end of a test that waits for ever.

use crate::leftovers::descendants;
use crate::process::Spawned;
use crate::world::Surroundings;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// Longest wait for a guest to say how it is.
const STATUS_S_MAX: u64 = 5;

/// How much of the end of a kernel log is shown, in bytes.
const LOG_BYTES_MAX: usize = 6000;

/// Time for a test to fail whose processes have been ended.
const FAIL_S_MAX: u64 = 20;

/// The world of the test that runs, if it has made one.
static WORLD: Mutex<Option<Surroundings>> = Mutex::new(None);

/// Status and kernel log of every guest in the world of the test that runs.
pub(crate) fn guests() -> String {
    let world = WORLD.lock().unwrap_or_else(|e| e.into_inner()).clone();
    let mut report = String::new();
    let Some(world) = world else { return report };
    let runs = fs::read_dir(world.path("run").join("span"));
    for run in runs.into_iter().flatten().flatten() {
        let name = run.file_name().to_string_lossy().into_owned();
        // In this order: what a guest that is gone left is removed when its status is asked for.
        let log = tail(&run.path().join("log"));
        let status = status(&world, &name);
        let _ = write!(
            report,
            "\nguest {name}: {status}\nits kernel log ends:\n{log}"
        );
    }
    report
}

fn status(world: &Surroundings, name: &str) -> String {
    let mut command = world.command("coordinator");
    command.args(["status", "--json", name]);
    let asked = Spawned::start(&mut command);
    match asked.try_wait(Duration::from_secs(STATUS_S_MAX)) {
        Ok(outcome) => format!("{} {}", outcome.text(), outcome.stderr),
        Err(_) => format!("says nothing within {STATUS_S_MAX} s"),
    }
}

fn tail(path: &Path) -> String {
    match fs::read(path) {
        Ok(log) => {
            let end = &log[log.len().saturating_sub(LOG_BYTES_MAX)..];
            String::from_utf8_lossy(end).into_owned()
        }
        Err(error) => error.to_string(),
    }
}

/// Ends the test that made it if it is still there after its time.
#[derive(Debug)]
pub(crate) struct Deadline {
    /// Dropped when the test is over.
    _over: mpsc::Sender<()>,
}

impl Deadline {
    pub(crate) fn start(world: Surroundings, limit: Duration) -> Self {
        *WORLD.lock().unwrap_or_else(|e| e.into_inner()) = Some(world);
        let test = std::thread::current().name().unwrap_or("?").to_string();
        let (over, waiting) = mpsc::channel();
        std::thread::spawn(move || {
            if waiting.recv_timeout(limit) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            eprintln!("{test} is not over after {limit:?}{}", guests());
            // What it waits for ends, and so should the test.
            for process in descendants(std::process::id() as i32) {
                eprintln!("ended: process {} {}", process.pid, process.command);
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
            }
            let left = Duration::from_secs(FAIL_S_MAX);
            if waiting.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
                eprintln!("{test} does not end: no more tests of this kind are run");
                std::process::exit(101);
            }
        });
        Self { _over: over }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        *WORLD.lock().unwrap_or_else(|e| e.into_inner()) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::World;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::process::Command;
    use std::time::Instant;

    #[test]
    fn a_test_that_waits_for_ever_ends() {
        let world = World::lasting(Duration::from_millis(300));
        let begin = Instant::now();
        let mut sleeps = Command::new("sleep").arg("1000").spawn().expect("sleep");
        let status = sleeps.wait().expect("waiting for a child");
        assert!(!status.success());
        assert!(begin.elapsed() < Duration::from_secs(FAIL_S_MAX));
        world.assert_clean();
    }

    #[test]
    fn who_waits_in_vain_is_told_about_the_guests() {
        let world = World::new();
        let run = world.path("run/span/one");
        fs::create_dir_all(&run).expect("a directory");
        fs::write(run.join("log"), "the last words").expect("writing a file");
        let mut sleeps = Spawned::start(Command::new("sleep").arg("1000"));
        let limit = Duration::from_millis(100);
        let failed = catch_unwind(AssertUnwindSafe(|| sleeps.wait_for("never", limit)));
        let text = failed.expect_err("a time limit");
        let text = text.downcast::<String>().expect("a message");
        assert!(text.contains("sleep"), "{text}");
        assert!(
            text.contains("guest one") && text.contains("the last words"),
            "{text}"
        );
    }
}
