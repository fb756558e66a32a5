//! `dsm-sim`: runs the protocol in a random network, or from a script.

use clap::{Parser, Subcommand};
use dsm::NODES_MAX_WIDEST;
use dsm_sim::curve::{self, Work};
use dsm_sim::script::{Recorder, Script, Unfit};
use dsm_sim::{Options, Sim};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Up to what a guest may have, and beyond.
const CURVE_NODES: [u16; 10] = [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];

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
    /// What a fault costs as nodes become more: the same work in networks of so many nodes.
    Curve {
        #[arg(long, value_name = "N,N...", value_delimiter = ',', default_values_t = CURVE_NODES,
              value_parser = clap::value_parser!(u16).range(2..=i64::from(NODES_MAX_WIDEST)))]
        nodes: Vec<u16>,
        /// Everything that happens follows from it.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Print JSON instead of a table.
        #[arg(long)]
        json: bool,
        /// Write a plot to this file.
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
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
        Verb::Curve {
            nodes,
            seed,
            json,
            svg,
        } => curve(nodes, seed, json, svg.as_deref()),
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
    let mut sim: Sim = Sim::recorded(options.params()?, |shape| {
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

fn curve(
    mut nodes: Vec<u16>,
    seed: u64,
    json: bool,
    svg: Option<&Path>,
) -> Result<ExitCode, String> {
    nodes.sort_unstable();
    nodes.dedup();
    let mut points = Vec::new();
    for work in Work::ALL {
        for &nodes in &nodes {
            let start = Instant::now();
            match curve::point(work, seed, nodes) {
                Ok(point) => {
                    let (name, seconds) = (work.name(), start.elapsed().as_secs_f64());
                    eprintln!(
                        "{name}, {nodes} nodes: {seconds:.1} s, {} steps",
                        point.steps
                    );
                    points.push(point);
                }
                Err(breach) => {
                    eprintln!("{}, {nodes} nodes: {breach}", work.name());
                    let again = "cargo run --release -p dsm-sim -- curve";
                    eprintln!("again: {again} --seed {seed} --nodes {nodes}");
                    return Ok(ExitCode::FAILURE);
                }
            }
        }
    }
    if json {
        let text = serde_json::to_string_pretty(&points).map_err(|error| error.to_string())?;
        println!("{text}");
    } else {
        println!("seed {seed}, commit {}", dsm_sim::commit());
        print!("{}", curve::table(&points));
    }
    if let Some(path) = svg {
        let plot = curve::plot(&points).map_err(|error| error.to_string())?;
        std::fs::write(path, plot).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
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
