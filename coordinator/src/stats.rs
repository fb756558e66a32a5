//! `stats`: what the nodes of a guest count, once or for as long as it runs.
//!
//! Every sample is an answer of the guest's coordinator to the question that `status` asks, too; rates
//! are differences of two answers.

mod figures;
mod text;
mod view;

use crate::control::Client;
use crate::failure::Failure;
use crate::output::say;
use crate::reach::{put, to_json};
use crate::rundir::is_running;
use crate::terminal;
use figures::{Interval, Sample};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, sleep};
use view::{Key, Screen, View};

/// Longest time from when a coordinator answers no more until nothing of its guest is left.
const END_MS_MAX: u64 = 3000;
const END_POLL_MS: u64 = 20;

/// Samples that were taken and not shown yet.
const SAMPLES_MAX: usize = 1;

type Sampled = Result<Sample, Failure>;

/// Shows a guest's figures once, or at each interval until it ends.
pub(crate) async fn run(
    name: String,
    directory: PathBuf,
    every: Option<Duration>,
    json: bool,
) -> Result<u8, Failure> {
    let first = sample(&name, &directory).await?;
    let Some(every) = every else {
        let text = match json {
            true => to_json(&first.json())?,
            false => text::table(&first),
        };
        return put(&text).map(|_| 0);
    };
    let screen = !json && io::stdout().is_terminal() && !terminal::is_dumb();
    let mut samples = take(name.clone(), directory, first.status.pid, every);
    let quit = match screen {
        true => show(first, &mut samples, every).await?,
        false => write(first, &mut samples, json).await?,
    };
    Ok(quit.unwrap_or_else(|| {
        say(&format!("guest {name} ended"));
        0
    }))
}

async fn sample(name: &str, directory: &Path) -> Sampled {
    let status = Client::connect(name, directory).await?.status().await?;
    Ok(Sample::now(status))
}

/// Takes samples until the guest has ended. The channel is closed then.
fn take(name: String, directory: PathBuf, pid: u32, every: Duration) -> mpsc::Receiver<Sampled> {
    let (sender, samples) = mpsc::channel(SAMPLES_MAX);
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval_at(Instant::now() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let sampled = match sample(&name, &directory).await {
                // Another guest, which has got the name since.
                Ok(sample) if sample.status.pid != pid => return,
                Err(_) if ends(&directory).await => return,
                sampled => sampled,
            };
            let failed = sampled.is_err();
            if sender.send(sampled).await.is_err() || failed {
                return;
            }
        }
    });
    samples
}

/// Whether a guest whose coordinator did not answer is ending.
async fn ends(directory: &Path) -> bool {
    let deadline = Instant::now() + Duration::from_millis(END_MS_MAX);
    while is_running(directory) {
        if Instant::now() >= deadline {
            return false;
        }
        sleep(Duration::from_millis(END_POLL_MS)).await;
    }
    true
}

/// As lines, or as JSON; the exit code, if it is not the guest's end that ends it.
async fn write(
    mut then: Sample,
    samples: &mut mpsc::Receiver<Sampled>,
    json: bool,
) -> Result<Option<u8>, Failure> {
    while let Some(now) = samples.recv().await {
        let now = now?;
        let interval = Interval {
            then: &then,
            now: &now,
        };
        let text = match json {
            true => to_json(&interval.json())?,
            false => text::lines(interval),
        };
        if !put(&text)? {
            return Ok(Some(0));
        }
        then = now;
    }
    Ok(None)
}

/// The same on the terminal.
async fn show(
    first: Sample,
    samples: &mut mpsc::Receiver<Sampled>,
    every: Duration,
) -> Result<Option<u8>, Failure> {
    let failed = |error| Failure::cannot("the terminal cannot be used", error);
    let mut signals = Signals::new().map_err(failed)?;
    let mut screen = Screen::enter().map_err(failed)?;
    let mut keys = view::keys();
    let mut view = View::new(first.status.nodes.len(), every);
    let (mut then, mut now) = (first.clone(), first);
    loop {
        let interval = Interval {
            then: &then,
            now: &now,
        };
        screen.draw(&view, interval).map_err(failed)?;
        tokio::select! {
            sampled = samples.recv() => match sampled {
                Some(sampled) => {
                    then = std::mem::replace(&mut now, sampled?);
                    view.add(Interval { then: &then, now: &now });
                }
                None => return Ok(None),
            },
            key = keys.recv() => match key {
                // Without keys there is no terminal any more.
                None | Some(Key::Quit) => return Ok(Some(0)),
                Some(key) => view.scroll(key),
            },
            number = signals.next() => return Ok(Some(128 + number)),
        }
    }
}

/// Signals that ask for the end, and would leave the terminal as it is.
struct Signals([(u8, Signal); 3]);

impl Signals {
    fn new() -> io::Result<Self> {
        let watched = |number: i32| -> io::Result<_> {
            Ok((number as u8, signal(SignalKind::from_raw(number))?))
        };
        let [hangup, interrupt, terminate] =
            [libc::SIGHUP, libc::SIGINT, libc::SIGTERM].map(watched);
        Ok(Self([hangup?, interrupt?, terminate?]))
    }

    async fn next(&mut self) -> u8 {
        let [(hangup, a), (interrupt, b), (terminate, c)] = &mut self.0;
        tokio::select! {
            _ = a.recv() => *hangup,
            _ = b.recv() => *interrupt,
            _ = c.recv() => *terminate,
        }
    }
}
