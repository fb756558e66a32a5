//! A guest of a plain, single-process kernel, with the test in the place of the coordinator.

use crate::initramfs;
use span_api::{
    codec,
    session::{Command, DATA_BYTES_MAX, Exit, FromInit, ToInit, WINDOW_BYTES, WindowSize},
};
use std::{
    fs::{self, File},
    io::Write,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Child, ExitStatus, Stdio},
    sync::Once,
    time::{Duration, Instant},
};

/// A message that has not come after this long will not come.
const MESSAGE_S_MAX: u64 = 30;

pub(crate) struct Guest {
    child: Child,
    channel: UnixStream,
    directory: tempfile::TempDir,
    pub(crate) kernel: String,
    pub(crate) cpus: u32,
    pub(crate) boot_ms: u128,
    next_id: u32,
}

/// What a command did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Exit code, or 128 and the signal.
    pub(crate) code: i32,
}

impl Outcome {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("text")
    }
}

/// The kernel to test with, or `None` with a line that says why the test is skipped.
pub(crate) fn kernel() -> Option<String> {
    let kernel = std::env::var("SPAN_TEST_KERNEL").ok();
    if kernel.is_none() {
        static SAID: Once = Once::new();
        // Not `eprintln`, which the test runner keeps to itself.
        SAID.call_once(|| {
            let line = "skipped: SPAN_TEST_KERNEL does not name a kernel (a `linux` binary)";
            let _ = writeln!(std::io::stderr(), "{line}");
        });
    }
    kernel
}

/// The words a shell would make of `text`, for commands without quotes.
pub(crate) fn words(text: &str) -> Vec<Vec<u8>> {
    text.split_whitespace()
        .map(|word| word.as_bytes().to_vec())
        .collect()
}

pub(crate) fn sh(script: &str) -> Vec<Vec<u8>> {
    ["sh", "-c", script]
        .map(|word| word.as_bytes().to_vec())
        .to_vec()
}

pub(crate) fn command(argv: Vec<Vec<u8>>) -> Command {
    Command {
        argv,
        env: Vec::new(),
        directory: b"/".to_vec(),
        cpus: Vec::new(),
        terminal: None,
    }
}

pub(crate) fn terminal_command(argv: Vec<Vec<u8>>, rows: u16, columns: u16) -> Command {
    Command {
        cpus: Vec::new(),
        terminal: Some(WindowSize { rows, columns }),
        ..command(argv)
    }
}

impl Guest {
    /// Boots to the first message and expects it to be `Ready`.
    pub(crate) fn boot(kernel: &str, options: &[&str]) -> Guest {
        let started = Instant::now();
        let mut guest = Guest::start(kernel, options);
        match guest.next() {
            Some(FromInit::Ready {
                version,
                kernel,
                cpus,
            }) => {
                assert_eq!(version, span_api::PROTOCOL_VERSION);
                guest.boot_ms = started.elapsed().as_millis();
                guest.kernel = kernel;
                guest.cpus = cpus;
            }
            other => panic!("expected Ready, not {other:?}"),
        }
        guest
    }

    pub(crate) fn start(kernel: &str, options: &[&str]) -> Guest {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| directory.path().join(name).display().to_string();
        fs::write(path("initrd"), initramfs::bytes()).expect("writing the initramfs");
        let log = File::create(path("log")).expect("creating the log");
        let (channel, theirs) = UnixStream::pair().expect("a socket pair");
        channel
            .set_read_timeout(Some(Duration::from_secs(MESSAGE_S_MAX)))
            .expect("a timeout");
        let theirs = OwnedFd::from(theirs);
        let fd = theirs.as_raw_fd();
        let mut program = std::process::Command::new(kernel);
        program
            .args([
                "mem=256M",
                "ncpus=2",
                "seccomp=on",
                "con=null",
                "con0=null,fd:2",
                "ssl=null",
            ])
            .arg(format!("initrd={}", path("initrd")))
            .arg(format!("uml_dir={}", path("")))
            .arg(format!("span.chan={fd}"))
            .args(options)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("duplicating the log"))
            .stderr(log);
        // SAFETY: both calls may be made between fork and exec, and take no pointer to memory
        // that the parent could change.
        unsafe {
            program.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                match libc::fcntl(fd, libc::F_SETFD, 0) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let child = program.spawn().expect("the kernel starts");
        Guest {
            child,
            channel,
            directory,
            kernel: String::new(),
            cpus: 0,
            boot_ms: 0,
            next_id: 1,
        }
    }

    /// The next message; `None` at the end of the stream.
    pub(crate) fn next(&mut self) -> Option<FromInit> {
        match codec::read(&mut self.channel) {
            Ok(message) => message,
            // The kernel ended without reading everything.
            Err(codec::CodecError::Io(error))
                if error.kind() == std::io::ErrorKind::ConnectionReset =>
            {
                None
            }
            Err(error) => panic!("no message: {error} ({error:?})"),
        }
    }

    pub(crate) fn send(&mut self, message: &ToInit) {
        codec::write(&mut self.channel, message).expect("the message is taken");
    }

    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        self.channel.write_all(bytes).expect("the bytes are taken");
    }

    pub(crate) fn close_channel(&mut self) {
        self.channel
            .shutdown(std::net::Shutdown::Both)
            .expect("the channel closes");
    }

    pub(crate) fn begin(&mut self, command: Command) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        self.send(&ToInit::Start { id, command });
        id
    }

    /// Runs a command to its end with this input, returning credit for its output at once.
    pub(crate) fn run_with(&mut self, command: Command, input: &[u8]) -> Outcome {
        let id = self.begin(command);
        let mut outcome = Outcome::default();
        let mut rest = input;
        let mut window = WINDOW_BYTES as usize;
        let mut ended = false;
        loop {
            while !rest.is_empty() && window > 0 {
                let (data, after) = rest.split_at(rest.len().min(window).min(DATA_BYTES_MAX));
                self.send(&ToInit::Stdin {
                    id,
                    data: data.to_vec(),
                });
                window -= data.len();
                rest = after;
            }
            if rest.is_empty() && !ended {
                self.send(&ToInit::StdinEnd { id });
                ended = true;
            }
            match self.next().expect("the guest still runs") {
                FromInit::Stdout { id: from, data } if from == id => {
                    self.send(&ToInit::Credit {
                        id,
                        bytes: data.len() as u32,
                    });
                    outcome.stdout.extend_from_slice(&data);
                }
                FromInit::Stderr { id: from, data } if from == id => {
                    self.send(&ToInit::Credit {
                        id,
                        bytes: data.len() as u32,
                    });
                    outcome.stderr.extend_from_slice(&data);
                }
                FromInit::Credit { id: from, bytes } if from == id => window += bytes as usize,
                FromInit::Exited { id: from, exit } if from == id => {
                    outcome.code = code(exit);
                    return outcome;
                }
                FromInit::StartFailed {
                    id: from,
                    code,
                    message,
                } if from == id => {
                    outcome.code = code;
                    outcome.stderr = message.into_bytes();
                    return outcome;
                }
                FromInit::Ending(_) => {}
                other => panic!("expected something of session {id}, not {other:?}"),
            }
        }
    }

    pub(crate) fn run(&mut self, argv: Vec<Vec<u8>>) -> Outcome {
        self.run_with(command(argv), b"")
    }

    /// Reads a session's output until it contains `text`; returns all of it.
    pub(crate) fn expect_output(&mut self, id: u32, text: &str) -> String {
        let mut output = Vec::new();
        loop {
            match self.next().expect("the guest still runs") {
                FromInit::Stdout { id: from, data } if from == id => {
                    self.send(&ToInit::Credit {
                        id,
                        bytes: data.len() as u32,
                    });
                    output.extend_from_slice(&data);
                }
                FromInit::Credit { .. } => {}
                other => panic!("expected output, not {other:?} after {output:?}"),
            }
            let so_far = String::from_utf8_lossy(&output);
            if so_far.contains(text) {
                return so_far.into_owned();
            }
        }
    }

    /// Skips output and credit until the session has ended.
    pub(crate) fn expect_exit(&mut self, id: u32) -> i32 {
        loop {
            match self.next().expect("the guest still runs") {
                FromInit::Exited { id: from, exit } if from == id => return code(exit),
                FromInit::StartFailed { .. } | FromInit::Exited { .. } => {
                    panic!("another session ended")
                }
                _ => {}
            }
        }
    }

    /// Waits for the kernel to end by itself; panics when it takes longer than `limit`.
    pub(crate) fn expect_end(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "the guest did not end within {limit:?}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the guest in order and returns the kernel's log.
    pub(crate) fn power_off(mut self) -> String {
        self.send(&ToInit::PowerOff);
        while self.next().is_some() {}
        assert!(self.expect_end(Duration::from_secs(2)).success());
        self.log()
    }

    pub(crate) fn log(&self) -> String {
        let log = fs::read(self.directory.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }
}

pub(crate) fn code(exit: Exit) -> i32 {
    match exit {
        Exit::Code(code) => code,
        Exit::Signal(signal) => 128 + signal,
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the kernel's log ---\n{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
