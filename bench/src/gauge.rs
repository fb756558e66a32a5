//! The other end of the gauge (`programs/`): runs it, reads its lines, answers its marks.

use crate::error::{Error, Result};
use crate::interrupt;
use crate::setting::GAUGE_MAX;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A coordinator that is told to end takes its guest down meanwhile.
const END_MAX: Duration = Duration::from_secs(5);
/// How much of what a failed program said is shown.
const TAIL_LINES_MAX: usize = 12;

/// What a gauge has measured.
#[derive(Debug)]
pub(crate) struct Outcome {
    title: String,
    /// From the start of the command to the gauge's first line.
    pub(crate) up: Duration,
    samples: BTreeMap<String, Vec<f64>>,
}

impl Outcome {
    /// Samples of this name, in nanoseconds; there is at least one.
    pub(crate) fn samples(&self, name: &str) -> Result<Vec<f64>> {
        let samples = self.samples.get(name).filter(|samples| !samples.is_empty());
        samples
            .cloned()
            .ok_or_else(|| Error::Failed(format!("{}: it measured no {name}", self.title)))
    }
}

/// A line of a gauge's; see its source.
#[derive(Debug, PartialEq)]
enum Line<'a> {
    Up,
    End,
    Samples(&'a str, Vec<f64>),
    Mark(&'a str),
    /// Of somebody else, as a kernel.
    Other,
}

fn parse(line: &str) -> std::result::Result<Line<'_>, String> {
    let line = line.trim_end();
    match line.split_once(' ') {
        Some(("!", "up")) => Ok(Line::Up),
        Some(("!", "end")) => Ok(Line::End),
        Some(("?", mark)) => Ok(Line::Mark(mark)),
        Some(("=", rest)) => {
            let mut words = rest.split(' ');
            let name = words.next().unwrap_or_default();
            let values: std::result::Result<Vec<f64>, _> = words.map(str::parse).collect();
            match values {
                Ok(values)
                    if values
                        .iter()
                        .all(|value| value.is_finite() && *value >= 0.0)
                        && !name.is_empty() =>
                {
                    Ok(Line::Samples(name, values))
                }
                _ => Err(format!("not samples: {line}")),
            }
        }
        _ => Ok(Line::Other),
    }
}

#[derive(Debug)]
pub(crate) struct Gauge {
    title: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Receiver<(Instant, String)>,
    stderr: Option<JoinHandle<String>>,
    /// The last lines that were not the gauge's.
    others: Vec<String>,
    ended: bool,
}

impl Gauge {
    /// Runs it to its end; `title` names it in errors.
    pub(crate) fn run(title: &str, command: Command) -> Result<Outcome> {
        Self::run_with_marks(title, command, |mark| {
            Err(Error::Failed(format!("{title}: unexpected mark: {mark}")))
        })
    }

    pub(crate) fn run_with_marks(
        title: &str,
        command: Command,
        mut on_mark: impl FnMut(&str) -> Result<()>,
    ) -> Result<Outcome> {
        let started = Instant::now();
        let mut gauge = Self::start(title, command)?;
        let mut up = None;
        let mut ended = false;
        let mut samples: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        while let Some((at, line)) = gauge.line(started + GAUGE_MAX)? {
            match parse(&line).map_err(|why| gauge.failed(&why))? {
                Line::Up => up = Some(at - started),
                Line::End => ended = true,
                Line::Samples(name, values) => {
                    samples.entry(name.into()).or_default().extend(values);
                }
                Line::Mark(mark) => {
                    on_mark(mark)?;
                    gauge.proceed()?;
                }
                Line::Other => gauge.others.push(line),
            }
        }
        match (gauge.end()?, up, ended) {
            (0, Some(up), true) => Ok(Outcome {
                title: title.into(),
                up,
                samples,
            }),
            (code, ..) => Err(gauge.failed(&format!("it ended early, with exit code {code}"))),
        }
    }

    fn start(title: &str, mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| Error::Failed(format!("{title}: it cannot be started: {error}")))?;
        let (sender, stdout) = channel();
        if let Some(pipe) = child.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(pipe)
                    .split(b'\n')
                    .map_while(|line| line.ok())
                {
                    let line = String::from_utf8_lossy(&line).into_owned();
                    if sender.send((Instant::now(), line)).is_err() {
                        break;
                    }
                }
            });
        }
        let stderr = child.stderr.take().map(|mut pipe| {
            std::thread::spawn(move || {
                let mut said = Vec::new();
                let _ = pipe.read_to_end(&mut said);
                String::from_utf8_lossy(&said).into_owned()
            })
        });
        Ok(Self {
            title: title.into(),
            stdin: child.stdin.take(),
            child,
            stdout,
            stderr,
            others: Vec::new(),
            ended: false,
        })
    }

    /// The next line of its stdout and when it came; `None` at the end.
    fn line(&mut self, deadline: Instant) -> Result<Option<(Instant, String)>> {
        loop {
            interrupt::check()?;
            match self.stdout.recv_timeout(LOOK_EVERY) {
                Ok(line) => return Ok(Some(line)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.failed(&format!("it did not end within {GAUGE_MAX:?}")));
                }
            }
        }
    }

    fn proceed(&mut self) -> Result<()> {
        let answered = self.stdin.as_mut().map(|stdin| {
            stdin.write_all(b"\n")?;
            stdin.flush()
        });
        match answered {
            Some(Ok(())) => Ok(()),
            _ => Err(self.failed("it does not read its stdin")),
        }
    }

    /// Its exit code, or 128 and the signal, once its stdout has ended.
    fn end(&mut self) -> Result<i32> {
        use std::os::unix::process::ExitStatusExt;
        self.stdin.take();
        let status = self.wait(END_MAX)?;
        Ok(status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    }

    fn wait(&mut self, limit: Duration) -> Result<std::process::ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => {
                    self.ended = true;
                    return Ok(status);
                }
                Ok(None) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Ok(None) => {
                    let title = &self.title;
                    return Err(Error::Failed(format!("{title}: it does not end")));
                }
                Err(error) => return Err(Error::Failed(format!("{}: {error}", self.title))),
            }
        }
    }

    fn stop(&mut self) {
        if self.ended {
            return;
        }
        self.stdin.take();
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        if self.wait(END_MAX).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            self.ended = true;
        }
    }

    /// An error with what the program said; it is over then.
    fn failed(&mut self, why: &str) -> Error {
        self.stop();
        // Whatever it left running may hold the pipe for as long as it likes.
        let stderr = self
            .stderr
            .take()
            .filter(|thread| span_tests::wait_until(END_MAX, || thread.is_finished()))
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default();
        let said: Vec<&str> = self
            .others
            .iter()
            .map(String::as_str)
            .chain(stderr.lines())
            .collect();
        let tail = &said[said.len().saturating_sub(TAIL_LINES_MAX)..];
        let mut text = format!("{}: {why}", self.title);
        for line in tail {
            text.push_str("\n  ");
            text.push_str(line.trim_end());
        }
        Error::Failed(text)
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart() {
        assert_eq!(parse("! up\r"), Ok(Line::Up));
        assert_eq!(parse("! end"), Ok(Line::End));
        assert_eq!(parse("? begin read"), Ok(Line::Mark("begin read")));
        assert_eq!(
            parse("= getppid 1 2.5"),
            Ok(Line::Samples("getppid", vec![1.0, 2.5]))
        );
        for other in ["", "random: crng init done", "=", "!"] {
            assert_eq!(parse(other), Ok(Line::Other));
        }
        for broken in ["= x 1 y", "= x -1", "= x inf", "=  1"] {
            assert!(parse(broken).is_err(), "{broken}");
        }
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_gauge_is_read_to_its_end() {
        let mut marks = Vec::new();
        let script =
            "echo '! up'; echo '? begin x'; read l; echo '= x 1 2'; echo '= x 3'; echo '! end'";
        let outcome = Gauge::run_with_marks("it", shell(script), |mark| {
            marks.push(mark.to_owned());
            Ok(())
        });
        let outcome = outcome.unwrap();
        assert_eq!(outcome.samples("x").unwrap(), [1.0, 2.0, 3.0]);
        assert_eq!(marks, ["begin x"]);
        let missing = outcome.samples("y").unwrap_err().to_string();
        assert_eq!(missing, "it: it measured no y");
    }

    #[test]
    fn a_gauge_that_fails_is_reported_with_what_it_said() {
        for (script, said) in [
            ("echo '! up'; echo why >&2; exit 3", "exit code 3\n  why"),
            ("echo '! up'; echo panic", "exit code 0\n  panic"),
            ("echo '! up'; echo '= x y'", "not samples: = x y"),
            ("echo '? begin x'; read l", "unexpected mark"),
            ("kill -9 $$", "exit code 137"),
        ] {
            let error = Gauge::run("it", shell(script)).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
