//! The surroundings of a test: directories of its own, and the check that nothing is left in them.

use crate::TEST_S_MAX;
use crate::leftovers::{adopt_orphans, descendants, files_below, mounts, sockets_below};
use crate::process::wait_until;
use crate::product::program;
use crate::report::Deadline;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// Where programs are looked up, here and in guests: what the distribution installed, and no more.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process that was told to end may take this long to be gone from the process table.
const GONE_MS_MAX: u64 = 500;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Who runs the guests of a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Whoever runs the tests.
    Caller,
    /// A user and group of these numbers; the caller must be root.
    User(u32),
}

/// What the processes of a world find around them.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    directory: PathBuf,
    owner: Owner,
}

#[derive(Debug)]
pub struct World {
    directory: tempfile::TempDir,
    surroundings: Surroundings,
    mounts: BTreeSet<String>,
    _deadline: Deadline,
    _alone: MutexGuard<'static, ()>,
}

impl Surroundings {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(crate) fn command(&self, name: &str) -> Command {
        let mut command = Command::new(program(name));
        self.surround(&mut command);
        command
    }

    fn surround(&self, command: &mut Command) {
        use std::os::unix::process::CommandExt;
        command
            .env_clear()
            .env("PATH", PATH)
            .env("LC_ALL", "C.UTF-8")
            .env("NO_COLOR", "1")
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .current_dir("/");
        if let Owner::User(id) = self.owner {
            command.uid(id).gid(id);
        }
    }
}

impl World {
    pub fn new() -> Self {
        Self::of(Owner::Caller)
    }

    pub fn of(owner: Owner) -> Self {
        Self::make(owner, Duration::from_secs(TEST_S_MAX))
    }

    /// For a test that takes longer than others.
    pub fn lasting(limit: Duration) -> Self {
        Self::make(Owner::Caller, limit)
    }

    fn make(owner: Owner, limit: Duration) -> Self {
        let alone = ONE_AT_A_TIME
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        adopt_orphans();
        let directory = tempfile::Builder::new()
            .prefix("span-world-")
            // Not in /tmp: a guest has one of its own, and is to find the files of the test.
            .tempdir_in("/var/tmp")
            .expect("a temporary directory");
        let surroundings = Surroundings {
            directory: directory.path().to_path_buf(),
            owner,
        };
        let world = Self {
            directory,
            _deadline: Deadline::start(surroundings.clone(), limit),
            surroundings,
            mounts: mounts(),
            _alone: alone,
        };
        for name in ["run", "home", "tmp", "work"] {
            let path = world.path(name);
            fs::create_dir(&path).expect("a directory");
            fs::set_permissions(&path, Permissions::from_mode(0o700)).expect("permissions");
            if let Owner::User(id) = owner {
                std::os::unix::fs::chown(&path, Some(id), Some(id)).expect("root");
            }
        }
        fs::set_permissions(world.directory.path(), Permissions::from_mode(0o755))
            .expect("permissions");
        world
    }

    /// A path in this world; `work` is for files of the test itself.
    pub fn path(&self, name: &str) -> PathBuf {
        self.surroundings.path(name)
    }

    /// Writes a file into `work`.
    pub fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path("work").join(name);
        fs::write(&path, contents).expect("writing a file");
        path
    }

    /// Compiles a C program that runs anywhere, also as the only program there is; if that fails,
    /// what the compiler says.
    pub fn compile(&self, name: &str, source: &str) -> Result<PathBuf, String> {
        let source = self.file(&format!("{name}.c"), source);
        let program = source.with_extension("");
        let done = Command::new("gcc")
            .args(["-O2", "-static", "-pthread", "-o"])
            .arg(&program)
            .arg(&source)
            .output()
            .map_err(|error| format!("gcc cannot be started: {error}"))?;
        if done.status.success() {
            Ok(program)
        } else {
            let said = String::from_utf8_lossy(&done.stderr);
            Err(format!("{name}.c does not compile:\n{}", said.trim_end()))
        }
    }

    /// A program of the product that lives in this world.
    pub fn command(&self, name: &str) -> Command {
        self.surroundings.command(name)
    }

    /// Gives `command` this world's directories and owner, and nothing of the caller's.
    pub fn surround(&self, command: &mut Command) {
        self.surroundings.surround(command);
    }

    /// What guests left: one line each.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found: Vec<String> = descendants(std::process::id() as i32)
            .iter()
            .map(|process| format!("process {} {}", process.pid, process.command))
            .collect();
        for name in ["run", "home", "tmp"] {
            let files = files_below(&self.path(name));
            found.extend(files.iter().map(|path| format!("file {}", path.display())));
        }
        found.extend(
            sockets_below(self.directory.path())
                .iter()
                .map(|line| format!("socket {line}")),
        );
        found.extend(
            mounts()
                .difference(&self.mounts)
                .map(|mount| format!("mount {mount}")),
        );
        found
    }

    /// Expects that nothing is left within `limit`.
    #[track_caller]
    pub fn assert_clean_within(&self, limit: Duration) {
        if !wait_until(limit, || self.leftovers().is_empty()) {
            panic!("left after {limit:?}:\n{}", self.leftovers().join("\n"));
        }
    }

    #[track_caller]
    pub fn assert_clean(&self) {
        self.assert_clean_within(Duration::from_millis(GONE_MS_MAX));
    }

    pub fn root(&self) -> &Path {
        self.directory.path()
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A failed test leaves its guest; the next one starts with none. Only what this process
        // started is below it.
        for _ in 0..20 {
            let left = descendants(std::process::id() as i32);
            if left.is_empty() {
                break;
            }
            for process in left {
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
