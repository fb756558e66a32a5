//! `coordinator up`.

use crate::cli::UpOptions;
use crate::control;
use crate::detach::Waiting;
use crate::environment;
use crate::failure::Failure;
use crate::guest::{Event, Foreground, Guest};
use crate::lines::Ends;
use crate::local;
use crate::output::{Log, say};
use crate::plan::Plan;
use crate::rundir::{Base, LOG_FILE, RunDirectory};
use crate::stdio;
use crate::terminal;
use span_api::session::Command;
use std::os::unix::ffi::OsStringExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

/// Boots a guest, does with it what was asked, and takes it down; returns the exit code. With `waiting`,
/// the process that was called returns when the guest is ready.
pub(crate) async fn run(
    options: UpOptions,
    plan: Plan,
    run: RunDirectory,
    waiting: Option<Waiting>,
) -> Result<u8, Failure> {
    let (foreground, detached) = match waiting {
        Some(waiting) => {
            let (sender, ready) = oneshot::channel();
            (Foreground::Detached(sender), Some((waiting, ready)))
        }
        None => (session(&options, &plan), None),
    };
    let (name, log) = (run.name().to_string(), run.path().join(LOG_FILE));
    let started = Started::new(options.verbose, plan, run, foreground)?;
    if let Some((waiting, ready)) = detached {
        tokio::spawn(waiting.watch(name, log, ready, started.events()));
    }
    started.run().await
}

/// A guest of this process, with all that belongs to it, before it boots.
pub(crate) struct Started {
    guest: Guest,
    janitor: Option<(local::Agent, UnixStream)>,
    ends: Ends,
}

impl Started {
    pub(crate) fn new(
        verbose: bool,
        plan: Plan,
        run: RunDirectory,
        foreground: Foreground,
    ) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::cannot(run.path().display(), error);
        let names: Vec<&str> = plan.nodes.iter().map(|node| node.name.as_str()).collect();
        let log = Log::create(run.path(), &names, verbose).map_err(failed)?;
        let janitor = match plan.has_local() {
            true => None,
            false => {
                let log = log.file().map_err(failed)?;
                Some(local::start_janitor(&plan.files.node, &log, run.path()).map_err(failed)?)
            }
        };
        let path = run.path().to_path_buf();
        let (lines, file) = (plan.lines.clone(), log.file().map_err(failed)?);
        let name = run.name().to_string();
        let guest = Guest::new(plan, run, log, foreground);
        control::serve(&path, guest.events(), guest.ready(), guest.lines())
            .map_err(|error| Failure::cannot(path.display(), error))?;
        watch_signals(&guest.events())
            .map_err(|error| Failure::cannot("signals cannot be watched", error))?;
        let ends = Ends::start(&lines, &guest.lines(), &name, &guest.ready(), &file)
            .map_err(|error| Failure::cannot("lines cannot be served", error))?;
        Ok(Self {
            guest,
            janitor,
            ends,
        })
    }

    pub(crate) fn events(&self) -> mpsc::Sender<Event> {
        self.guest.events()
    }

    /// The guest from its boot to its end; the exit code.
    pub(crate) async fn run(self) -> Result<u8, Failure> {
        let ending = self.guest.run().await;
        self.ends.end().await;
        terminal::restore();
        if let Some(line) = &ending.line {
            say(line);
        }
        if let Some((janitor, mut link)) = self.janitor {
            let _ = link.write_all(&[0]).await;
            drop(link);
            janitor.end(false).await;
        }
        drop(ending.run);
        Ok(ending.code)
    }
}

/// The command that was given; else a shell, on the user's terminal if there is one.
fn session(options: &UpOptions, plan: &Plan) -> Foreground {
    let shell = options.argv.is_empty() && terminal::interactive();
    let terminal = shell || (options.tty && terminal::interactive());
    let mut command = command(options, plan, terminal);
    if command.argv.is_empty() && !shell {
        command.argv = vec![b"sh".to_vec()];
    }
    let options = stdio::Options {
        raw: terminal,
        detach_key: false,
        leave_at_end: false,
    };
    Foreground::Session { command, options }
}

/// The command as it is given to the guest.
pub(crate) fn command(options: &UpOptions, plan: &Plan, terminal: bool) -> Command {
    let argv = options.argv.iter().cloned().map(OsStringExt::into_vec);
    let here = std::env::current_dir().ok().filter(|_| plan.host_root);
    Command {
        argv: argv.collect(),
        env: environment::for_command(),
        directory: here.map_or(b"/".to_vec(), |path| path.into_os_string().into_vec()),
        cpus: Vec::new(),
        terminal: terminal.then(terminal::size),
    }
}

/// Turns signals that ask for the end into events.
fn watch_signals(events: &mpsc::Sender<Event>) -> std::io::Result<()> {
    for kind in [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ] {
        let mut stream = signal(kind)?;
        let events = events.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                let _ = events.send(Event::Signal(kind.as_raw_value())).await;
            }
        });
    }
    // A coordinator stopped by Ctrl-Z would be a lost one to its nodes elsewhere. Watched, the signal
    // does nothing, and unlike one that is ignored it is not so for child processes.
    let mut stop = signal(SignalKind::from_raw(libc::SIGTSTP))?;
    tokio::spawn(async move { while stop.recv().await.is_some() {} });
    Ok(())
}

/// Takes the guest's name.
pub(crate) fn prepare(plan: &Plan) -> Result<RunDirectory, Failure> {
    Base::of_this_user().create(plan.name.as_deref())
}
