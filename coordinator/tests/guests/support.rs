//! A place to run guests in, and what is asked of them.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// Everything must be gone this soon after what ends it.
pub(crate) const END_MS_MAX: u64 = 2000;

/// Longest wait for something that takes milliseconds.
const WAIT_MS_MAX: u64 = 20_000;

/// A directory with the programs, as the build puts them beside each other, and with room for run
/// directories. Dropped, it checks that nothing is left.
pub(crate) struct Place {
    directory: tempfile::TempDir,
}

fn built(name: &str) -> PathBuf {
    let beside = Path::new(env!("CARGO_BIN_EXE_coordinator"))
        .parent()
        .unwrap();
    let path = beside.join(name);
    assert!(
        path.exists(),
        "{} is not built: cargo build -p node",
        path.display()
    );
    path
}

/// A second name for a file, or a copy where that cannot be.
pub(crate) fn put(from: &Path, to: &Path) {
    fs::hard_link(from, to)
        .or_else(|_| fs::copy(from, to).map(drop))
        .unwrap();
}

impl Place {
    pub(crate) fn new() -> Self {
        // Whoever runs the tests in the background may ignore it, and what is started inherits that.
        // SAFETY: no handler is involved.
        unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
        let directory = tempfile::Builder::new()
            .prefix("span-test-")
            .tempdir()
            .unwrap();
        let place = Self { directory };
        put(
            Path::new(env!("CARGO_BIN_EXE_coordinator")),
            &place.path("coordinator"),
        );
        put(&built("node"), &place.path("node"));
        put(&built("examples/fake-linux"), &place.path("linux"));
        fs::write(place.path("libnode.so"), "no library").unwrap();
        fs::write(place.path("initramfs.cpio"), "no archive").unwrap();
        fs::create_dir(place.path("runtime")).unwrap();
        fs::set_permissions(place.path("runtime"), PermissionsExt::from_mode(0o700)).unwrap();
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file that only its owner can read.
    pub(crate) fn secret(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, contents).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        path
    }

    pub(crate) fn coordinator(&self) -> Command {
        let mut command = Command::new(self.path("coordinator"));
        command
            .env("XDG_RUNTIME_DIR", self.path("runtime"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("NO_COLOR", "1")
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the coordinator to its end.
    pub(crate) fn run<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Ran {
        self.coordinator().args(arguments).output().unwrap().into()
    }

    /// Runs the coordinator to its end, with words separated by white space as arguments.
    pub(crate) fn words(&self, words: &str) -> Ran {
        self.run(words.split_whitespace())
    }

    /// Starts `up`, and waits until the guest is ready.
    pub(crate) fn up(&self, words: &str) -> Up {
        let arguments: Vec<&str> = words.split_whitespace().collect();
        let mut child = self
            .coordinator()
            .arg("up")
            .args(arguments)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let mut said = Vec::new();
        while !said.windows(6).any(|part| part == b"\nready") {
            let mut byte = [0];
            if stderr.read(&mut byte).unwrap() == 0 {
                panic!("not ready: {}", String::from_utf8_lossy(&said));
            }
            said.push(byte[0]);
        }
        Up {
            child,
            said,
            stderr,
        }
    }

    /// Starts a guest with `--detach`.
    pub(crate) fn detached(&self, words: &str) -> String {
        let ran = self.words(&format!("up --detach {words}"));
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.stdout.trim_end().to_string()
    }

    /// `status --json` of the only guest, or of the one of this name.
    pub(crate) fn status(&self, name: &str) -> serde_json::Value {
        let ran = self.words(&format!("status --json {name}"));
        assert_eq!(ran.code, 0, "{ran:?}");
        serde_json::from_str(&ran.stdout).unwrap()
    }

    /// Processes that run a program of this place, or in a directory of it.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let here = self.directory.path();
        let leads_here =
            |link: PathBuf| fs::read_link(link).is_ok_and(|target| target.starts_with(here));
        fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
            .filter(|(_, path)| leads_here(path.join("exe")) || leads_here(path.join("cwd")))
            .map(|(pid, _)| pid)
            .collect()
    }

    /// Run directories, and the directory of all.
    pub(crate) fn left(&self) -> Vec<PathBuf> {
        fs::read_dir(self.path("runtime"))
            .unwrap()
            .flatten()
            .map(|entry| entry.path())
            .collect()
    }

    /// Waits until nothing of any guest is left, but no longer than may be since `since`.
    pub(crate) fn gone_since(&self, since: Instant) {
        loop {
            let (processes, left) = (self.processes(), self.left());
            if processes.is_empty() && left.is_empty() {
                return;
            }
            let shown: Vec<_> = processes
                .iter()
                .map(|pid| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default())
                .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
                .collect();
            assert!(
                since.elapsed() < Duration::from_millis(END_MS_MAX),
                "left after {END_MS_MAX} ms: {processes:?} {shown:?} {left:?}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for pid in self.processes() {
                kill(pid, libc::SIGKILL);
            }
            return;
        }
        self.gone_since(Instant::now());
    }
}

/// How a program ended and what it said.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// What it said itself, besides progress.
    pub(crate) fn lines(&self) -> Vec<&str> {
        let own = |line: &&str| line.starts_with("coordinator: ") || line.starts_with("node: ");
        self.stderr.lines().filter(own).collect()
    }

    /// The one line that it said itself.
    pub(crate) fn line(&self) -> &str {
        match self.lines().as_slice() {
            [line] => line,
            _ => panic!("not one line: {self:?}"),
        }
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: code(output.status),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

fn code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| -status.signal().unwrap_or(0))
}

/// A guest that is up, with the coordinator in the foreground.
pub(crate) struct Up {
    pub(crate) child: Child,
    said: Vec<u8>,
    stderr: std::process::ChildStderr,
}

impl Up {
    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Waits for the coordinator's end.
    pub(crate) fn end(mut self) -> Ran {
        drop(self.child.stdin.take());
        self.wait()
    }

    /// Waits for the coordinator's end with stdin left open.
    pub(crate) fn wait(mut self) -> Ran {
        let mut stdout = Vec::new();
        if let Some(mut out) = self.child.stdout.take() {
            out.read_to_end(&mut stdout).unwrap();
        }
        self.stderr.read_to_end(&mut self.said).unwrap();
        let status = self.child.wait().unwrap();
        Ran {
            code: code(status),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&self.said).into_owned(),
        }
    }

    pub(crate) fn type_in(&mut self, text: &str) {
        self.child
            .stdin
            .as_mut()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }
}

pub(crate) fn kill(pid: i32, signal: i32) {
    // SAFETY: takes integers.
    unsafe { libc::kill(pid, signal) };
}

/// The process whose child this is.
pub(crate) fn parent(pid: i64) -> i32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .unwrap();
    line.trim().parse().unwrap()
}

/// Waits until something is so.
pub(crate) fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !so() {
        assert!(
            begin.elapsed() < Duration::from_millis(WAIT_MS_MAX),
            "never: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A `node serve` process.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) address: String,
    log: PathBuf,
}

impl Daemon {
    /// Starts a daemon of its own name, with its own state, on a free port of this machine.
    pub(crate) fn start(place: &Place, name: &str, token: &Path) -> Self {
        let log = place.path(&format!("{name}.log"));
        let mut child = Command::new(place.path("node"))
            .args(["serve", "--listen", "127.0.0.1:0", "--token-file"])
            .arg(token)
            .arg("--state-dir")
            .arg(place.path(&format!("{name}.state")))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
        let address = line
            .trim()
            .strip_prefix("listening on ")
            .expect(&line)
            .to_string();
        Self {
            child,
            address,
            log,
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Asks it to stop, and waits until it has.
    pub(crate) fn stop(mut self) {
        kill(self.pid(), libc::SIGTERM);
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) const TOKEN: &str = "correct horse battery staple\n";
