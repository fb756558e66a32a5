//! `dsm-sim`: runs the protocol in a random network, or from a script.

use clap::{Parser, Subcommand};
use dsm_sim::script::{Recorder, Script, Unfit};
use dsm_sim::{Options, Sim};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

#[derive(Parser)]
#[command(about = "Simulates the coherence protocol and checks it after every step")]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// A random network.
    Run {
        #[command(flatten)]
        options: Options,
        /// Write everything that happens to this file.
        #[arg(long)]
        script: Option<PathBuf>,
        /// Print everything that happens.
        #[arg(long)]
        trace: bool,
    },
    /// What a script says.
    Replay { script: PathBuf },
    /// Print the shortest script that ends in the same breach.
    Shrink { script: PathBuf },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Verb::Run {
            options,
            script,
            trace,
        } => run(&options, script.as_deref(), trace),
        Verb::Replay { script } => replay(&script),
        Verb::Shrink { script } => shrink(&script),
    };
    match done {
        Ok(code) => code,
        Err(line) => {
            eprintln!("dsm-sim: {line}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options, script: Option<&Path>, trace: bool) -> Result<ExitCode, String> {
    println!("{}", options.headline()?);
    let again = options.command();
    let (hook, said) = (std::panic::take_hook(), again.clone());
    // An engine that panics has failed as well.
    std::panic::set_hook(Box::new(move |panic| {
        hook(panic);
        eprintln!("replay: {said}");
    }));
    let mut problem = None;
    let mut sim = Sim::recorded(options.params()?, |shape| {
        let path = script?;
        let recorder = File::create(path).and_then(|file| Recorder::new(shape, Box::new(file)));
        match recorder {
            Ok(recorder) => Some(recorder),
            Err(error) => {
                problem = Some(format!("{}: {error}", path.display()));
                None
            }
        }
    });
    if let Some(problem) = problem {
        return Err(problem);
    }
    if trace {
        sim.trace();
    }
    let start = Instant::now();
    let result = sim.run();
    let (seconds, totals) = (start.elapsed().as_secs_f64(), sim.totals());
    println!("{totals:?}");
    let rate = totals.steps as f64 / seconds * 60.0 / 1e6;
    println!("{seconds:.1} s, {rate:.1} million steps a minute");
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(breach) => {
            eprintln!("broken after {} steps: {breach}", totals.steps);
            eprintln!("replay: {again}");
            if script.is_none() {
                eprintln!("as a script: {again} --script FILE, then dsm-sim shrink FILE");
            }
            Ok(ExitCode::FAILURE)
        }
    }
}

fn read(path: &Path) -> Result<Script, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Script::parse(&text).map_err(|e| format!("{}: {e}", path.display()))
}

fn replay(path: &Path) -> Result<ExitCode, String> {
    let script = read(path)?;
    let outcome = script
        .replay(Unfit::Refuse)
        .map_err(|e| format!("{}: {e}", path.display()))?;
    match outcome.breach {
        None => {
            println!("clean after {} steps", outcome.steps);
            Ok(ExitCode::SUCCESS)
        }
        Some(breach) => {
            eprintln!("broken after {} steps: {breach}", outcome.steps);
            Ok(ExitCode::FAILURE)
        }
    }
}

fn shrink(path: &Path) -> Result<ExitCode, String> {
    let script = read(path)?;
    let shrunk = script.shrunk();
    if shrunk.expect.is_none() {
        return Err(format!("{}: nothing is broken", path.display()));
    }
    print!("{shrunk}");
    eprintln!("{} of {} steps", shrunk.len(), script.len());
    Ok(ExitCode::SUCCESS)
}
