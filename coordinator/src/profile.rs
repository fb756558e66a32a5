//! `profile`: where the faults come from that ask another node.
//!
//! Nodes tell each of them ([`crate::control`]); here they are kept ([`recording`]), given the names that
//! the kernel's file has ([`symbols`]), brought together ([`findings`]) and written down.

mod findings;
mod html;
mod recording;
mod symbols;
mod text;
mod trace;
mod uses;

use crate::artefacts::FileId;
use crate::cli::{ProfileOptions, UpOptions};
use crate::control::{Ask, Client, Told};
use crate::failure::{EXIT_FAILED, Failure};
use crate::guest::{Event, Foreground, Subject};
use crate::output::say;
use crate::plan::Plan;
use crate::reach::put;
use crate::rundir::{Base, RunDirectory};
use crate::stdio::{self, Ended};
use crate::terminal;
use crate::up::{self, Started};
use findings::Findings;
use recording::Recording;
use span_api::session::Command;
use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use symbols::Symbols;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

const SECONDS_DEFAULT: u64 = 10;

/// Where findings go, besides the terminal.
#[derive(Debug)]
pub(crate) struct Files {
    json: Option<(PathBuf, File)>,
    trace: Option<(PathBuf, File)>,
    html: Option<(PathBuf, File)>,
}

impl Files {
    /// Before anything is measured: a file that cannot be written is not found out too late.
    pub(crate) fn create(options: &ProfileOptions) -> Result<Self, Failure> {
        let create = |option: &str, path: &Option<PathBuf>| {
            let Some(path) = path else { return Ok(None) };
            match File::create(path) {
                Ok(file) => Ok(Some((path.clone(), file))),
                Err(error) => {
                    let path = path.display();
                    Err(Failure::usage(format!("{option} {path}: {error}")))
                }
            }
        };
        Ok(Self {
            json: create("--json", &options.json)?,
            trace: create("--trace", &options.trace)?,
            html: create("--html", &options.html)?,
        })
    }

    fn write(
        self,
        recording: &Recording,
        symbols: &Symbols,
        findings: &Findings,
    ) -> Result<(), Failure> {
        into(self.json, |file| {
            serde_json::to_writer(&mut *file, findings)?;
            writeln!(file)
        })?;
        into(self.trace, |file| trace::write(file, recording, symbols))?;
        into(self.html, |file| {
            file.write_all(html::report(findings, recording).as_bytes())
        })
    }
}

fn into(
    file: Option<(PathBuf, File)>,
    write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<(), Failure> {
    let Some((path, file)) = file else {
        return Ok(());
    };
    let mut file = BufWriter::new(file);
    write(&mut file)
        .and_then(|()| file.flush())
        .map_err(|error| Failure::cannot(path.display(), error))
}

/// That a boot is to be profiled means that there has to be one.
pub(crate) fn no_boot() -> Failure {
    Failure::usage(
        "--boot: a guest that runs has booted; a new one needs --nodes or --topology, and a command",
    )
}

/// Refuses options of `up` that make no sense for a guest that is profiled.
pub(crate) fn check(up: &UpOptions) -> Result<(), Failure> {
    if up.detach {
        return Err(Failure::usage("--detach: a profile ends with its command"));
    }
    if up.argv.is_empty() {
        return Err(Failure::usage(
            "--nodes: a new guest is profiled with a command; give one behind --",
        ));
    }
    Ok(())
}

/// Profiles a guest that runs.
pub(crate) async fn running(
    guest: Option<String>,
    seconds: Option<Duration>,
    files: Files,
) -> Result<u8, Failure> {
    let (name, directory) = Base::of_this_user().find(guest.as_deref())?;
    let seconds = seconds.unwrap_or(Duration::from_secs(SECONDS_DEFAULT));
    let mut interrupted = signal(SignalKind::interrupt())
        .map_err(|error| Failure::cannot("signals cannot be watched", error))?;
    let (subject, told) = Client::connect(&name, &directory).await?.profile().await?;
    say(&format!(
        "profiling {name} for {} s; Ctrl-C ends it earlier",
        seconds.as_secs_f64()
    ));
    let until = async {
        tokio::select! {
            () = sleep(seconds) => {}
            _ = interrupted.recv() => {}
        }
    };
    let mut recording = record(subject, told, until).await;
    recording.uses = uses::of(&recording, &name, &directory).await;
    let text = finish(recording, files)?;
    put(&text).map(|_| 0)
}

/// Records until `enough`, or the guest's end.
async fn record(subject: Subject, mut told: Told, enough: impl Future<Output = ()>) -> Recording {
    let mut recording = Recording::new(subject);
    let began = Instant::now();
    let mut goes_on = true;
    tokio::pin!(enough);
    while goes_on {
        tokio::select! {
            more = recording.take(&mut told) => goes_on = more,
            () = &mut enough => break,
        }
    }
    recording.seconds = began.elapsed().as_secs_f64();
    if goes_on {
        told.enough().await;
        while recording.take(&mut told).await {}
    }
    if let Some(subject) = told.subject() {
        recording.subject = subject;
    }
    recording
}

/// Writes the files; the report for the terminal.
fn finish(recording: Recording, files: Files) -> Result<String, Failure> {
    let kernel = Path::new(OsStr::from_bytes(&recording.subject.kernel));
    let copies = recording.subject.variables.clone().into_iter().collect();
    let symbols = named(kernel, recording.subject.kernel_id, copies);
    let findings = Findings::new(&recording, symbols.as_ref().map_err(String::clone));
    let none = Symbols::default();
    files.write(&recording, symbols.as_ref().unwrap_or(&none), &findings)?;
    Ok(text::report(&findings))
}

/// The symbols of the kernel that runs.
fn named(kernel: &Path, id: FileId, copies: Vec<(u16, u64)>) -> Result<Symbols, String> {
    let failed = |why: String| format!("{}: {why}", kernel.display());
    let now = File::open(kernel).and_then(|file| FileId::of(&file));
    match now {
        Ok(now) if now == id => Symbols::read(kernel, copies).map_err(failed),
        Ok(_) => Err(failed("it has changed since the guest started".into())),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Boots a guest, profiles a command in it from its start to its end, or from the `boot` on, and takes the guest down.
pub(crate) async fn command(
    options: UpOptions,
    boot: bool,
    plan: Plan,
    run: RunDirectory,
    files: Files,
) -> Result<u8, Failure> {
    let (name, directory) = (run.name().to_string(), run.path().to_path_buf());
    let command = up::command(&options, &plan, options.tty && terminal::interactive());
    let (sender, ready) = oneshot::channel();
    let started = Started::new(options.verbose, plan, run, Foreground::Driven(sender))?;
    let events = started.events();
    let is_ready = Cell::new(false);
    let ready = async {
        is_ready.set(ready.await.is_ok());
        is_ready.get()
    };
    let measured = async {
        let measured = match boot {
            true => measure(&name, &directory, command, ready).await,
            false if ready.await => measure(&name, &directory, command, async { true }).await,
            false => return None,
        };
        // A guest that does not get ready says itself why.
        if !is_ready.get() {
            return None;
        }
        let how = match &measured {
            Ok((_, how)) => how.clone(),
            Err(_) => Ended::Code(EXIT_FAILED),
        };
        // One that has ended already needs no reason to.
        let _ = events.send(Event::Command(how)).await;
        Some(measured)
    };
    let (code, measured) = tokio::join!(started.run(), measured);
    if let Some(measured) = measured {
        say_on_stderr(&finish(measured?.0, files)?);
    }
    code
}

/// Records, from when the guest boots or at once, has the command run in a guest that is `ready`, and ends when it has ended.
async fn measure(
    name: &str,
    directory: &Path,
    command: Command,
    ready: impl Future<Output = bool>,
) -> Result<(Recording, Ended), Failure> {
    let (subject, told) = Client::connect(name, directory).await?.profile().await?;
    let options = stdio::Options {
        raw: command.terminal.is_some(),
        detach_key: false,
        leave_at_end: false,
    };
    let (over, done) = oneshot::channel::<()>();
    let session = async move {
        // Dropped at the end, whatever that is.
        let _over = over;
        if !ready.await {
            return Err(Failure::failed("the guest is ending"));
        }
        let session = Client::connect(name, directory).await?;
        let pipe = session.session(Ask::Session).await?;
        Ok(stdio::run(pipe, Some(command), options).await)
    };
    let recorded = record(subject, told, async { _ = done.await });
    let (how, mut recording) = tokio::join!(session, recorded);
    let how = how?;
    recording.uses = uses::of(&recording, name, directory).await;
    Ok((recording, how))
}

/// The command has stdout to itself.
fn say_on_stderr(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}
