//! What the user sees on stderr, and the kernel log.

use crate::echo::Echo;
use crate::failure::one_line;
use crate::rundir::{LOG_FILE, OLD_LOG_FILE};
use crate::terminal;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The log is set aside as `log.old` at this size, and what was set aside before is dropped.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// Longest line of the kernel log; a longer one is broken.
const LINE_BYTES_MAX: usize = 4096;

/// One line per stage of a start, with the time since the beginning.
#[derive(Debug)]
pub(crate) struct Progress {
    begin: Instant,
    dim: (&'static str, &'static str),
}

impl Progress {
    pub(crate) fn new() -> Self {
        let colour = io::stderr().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && !terminal::is_dumb();
        Self {
            begin: Instant::now(),
            dim: if colour {
                ("\x1b[2m", "\x1b[0m")
            } else {
                ("", "")
            },
        }
    }

    pub(crate) fn stage(&self, stage: &str, detail: &str) {
        let seconds = self.begin.elapsed().as_secs_f64();
        let (dim, plain) = self.dim;
        // The user may have closed stderr; the guest is none the worse for it.
        let _ = writeln!(
            io::stderr(),
            "{stage:<12} {detail:<24} {dim}{seconds:6.2} s{plain}"
        );
    }
}

/// Prints one line for the user.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "coordinator: {line}");
}

/// The kernel log: each node's lines, marked with its name.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    bytes: u64,
    echo: Option<Echo>,
    nodes: Vec<NodeLog>,
    panic: Option<String>,
}

#[derive(Debug)]
struct NodeLog {
    name: String,
    /// A line that is not complete yet.
    line: Vec<u8>,
}

impl Log {
    pub(crate) fn create(directory: &Path, names: &[&str], echo: bool) -> io::Result<Self> {
        let nodes = names.iter().map(|name| NodeLog {
            name: name.to_string(),
            line: Vec::new(),
        });
        let path = directory.join(LOG_FILE);
        Ok(Self {
            file: open(&path)?,
            path,
            bytes: 0,
            echo: echo.then(Echo::new),
            nodes: nodes.collect(),
            panic: None,
        })
    }

    /// The file, for others that log.
    pub(crate) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// No longer shows lines on stderr.
    pub(crate) fn quiet(&mut self) {
        self.echo = None;
    }

    /// The message of a panic that was logged. A guest process that could not report its panic
    /// otherwise has logged it first.
    pub(crate) fn panic(&self) -> Option<&str> {
        self.panic.as_deref()
    }

    pub(crate) fn add(&mut self, node: usize, data: &[u8]) {
        let Some(log) = self.nodes.get_mut(node) else {
            return;
        };
        let mut lines = std::mem::take(&mut log.line);
        lines.extend_from_slice(data);
        let mut rest = lines.as_slice();
        while let Some(end) = line_end(rest) {
            self.line(node, rest[..end].trim_ascii_end());
            rest = &rest[end..];
        }
        self.nodes[node].line = rest.to_vec();
    }

    /// Writes a line of this program's about a node.
    pub(crate) fn note(&mut self, node: usize, text: &str) {
        self.line(node, format!("span: {text}").as_bytes());
    }

    /// Writes what came without an end of line.
    pub(crate) fn finish(&mut self, node: usize) {
        if let Some(log) = self.nodes.get_mut(node) {
            let line = std::mem::take(&mut log.line);
            if !line.is_empty() {
                self.line(node, &line);
            }
        }
    }

    fn line(&mut self, node: usize, line: &[u8]) {
        const PANIC: &str = "Kernel panic - not syncing: ";
        let text = String::from_utf8_lossy(line);
        if self.panic.is_none()
            && let Some((_, message)) = text.split_once(PANIC)
        {
            self.panic = Some(one_line(message));
        }
        let name = &self.nodes[node].name;
        let line = format!("{name}: {text}\n");
        if self.bytes + line.len() as u64 > LOG_BYTES_MAX {
            let _ = fs::rename(&self.path, self.path.with_file_name(OLD_LOG_FILE));
            if let Ok(file) = open(&self.path) {
                self.file = file;
                self.bytes = 0;
            }
        }
        // A full file system must not end the guest.
        if self.file.write_all(line.as_bytes()).is_ok() {
            self.bytes += line.len() as u64;
        }
        if let Some(echo) = &self.echo {
            let printable: String = line
                .trim_end()
                .chars()
                .filter(|c| !c.is_control() || *c == '\t')
                .collect();
            echo.line(printable);
        }
    }
}

fn line_end(data: &[u8]) -> Option<usize> {
    match data.iter().position(|byte| *byte == b'\n') {
        Some(end) if end < LINE_BYTES_MAX => Some(end + 1),
        _ if data.len() >= LINE_BYTES_MAX => Some(LINE_BYTES_MAX),
        _ => None,
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together_per_node_and_marked() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = Log::create(directory.path(), &["a", "b"], false).unwrap();
        log.add(0, b"Linux ver");
        log.add(1, b"up\r\nKernel panic - not syncing: no in");
        log.add(0, b"sion\n\nlast");
        log.add(1, b"it found\n");
        log.finish(0);
        let text = fs::read_to_string(directory.path().join(LOG_FILE)).unwrap();
        assert_eq!(
            text,
            "b: up\na: Linux version\na: \nb: Kernel panic - not syncing: no init found\na: last\n"
        );
        assert_eq!(log.panic(), Some("no init found"));
    }

    #[test]
    fn an_endless_line_is_broken_and_a_long_log_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = Log::create(directory.path(), &["a"], false).unwrap();
        for _ in 0..(LOG_BYTES_MAX / 65536 + 1) {
            log.add(0, &[b'x'; 65536]);
        }
        let bytes = |name: &str| fs::metadata(directory.path().join(name)).unwrap().len();
        assert!(bytes(LOG_FILE) < LOG_BYTES_MAX / 2);
        assert!(bytes(OLD_LOG_FILE) <= LOG_BYTES_MAX);
        assert!(log.nodes[0].line.len() < LINE_BYTES_MAX);
    }
}
