//! Benchmarks of Span, as ratios measured in one run: against upstream's kernel of the same version and
//! configuration, and against what this machine takes to move a page between two processes.
//!
//! One small program, the gauge (`programs/`), does the work on every side and times it; this one runs both
//! sides in turns, so that what else the machine does falls on both, and compares. `README.md` has what
//! each figure means.
//!
//! Exit codes: 0 measured (whatever the figures), 1 something failed, 2 the command line is wrong or
//! something to measure is missing, 130 interrupted.

mod error;
mod figures;
mod gauge;
mod interrupt;
mod measure;
mod qemu;
mod samples;
mod setting;

use clap::{Parser, ValueEnum};
use error::{Error, Result};
use figures::{Figure, Report};
use setting::{Effort, Setting};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(
    name = "bench",
    about = "Measures Span against upstream's kernel and this machine's floors, in one run",
    after_help = "SPAN_BIN and SPAN_UPSTREAM name the directories with the product and with upstream's \
                  kernel (else target/span and target/span-upstream)."
)]
struct Cli {
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Fewer repetitions and smaller loops: a look, not a result
    #[arg(long)]
    quick: bool,
    /// Write plots of the groups that have one to this directory: scale.svg, numa-faults.svg, numa-placement.svg
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// How often each side is run, in turns [default: 5, or 2 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    repetitions: Option<u32>,
    /// Check the command line and do nothing
    #[arg(long, hide = true)]
    check: bool,
    /// Measure these groups only
    #[arg(value_enum, value_name = "GROUP")]
    groups: Vec<Group>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// Boot to the first program, on one node and on three
    Boot,
    /// Faults on pages that another node has
    Remote,
    /// Faults of a fork+exec and of a pipe round trip between nodes
    Counts,
    /// Calls and locks between CPUs of two nodes, inside the kernel
    Kernel,
    /// What it costs two nodes to be profiled
    Profile,
    /// System calls, processes and memory on one node
    Single,
    /// Faults of three nodes that have nothing to do with each other
    Rest,
    /// Files of the host's
    Hostfs,
    /// Both ways to protect guest memory
    Engines,
    /// What slow links cost, against what they are to cost
    Links,
    /// Memory of other nodes in the topologies that come with the program, against what these say
    Topologies,
    /// Programs in guests with NUMA nodes and without, and work near its memory
    Numa,
    /// More and more nodes
    Scale,
    /// A disk that is a file of the host's
    Ubd,
    /// A stream from and to the host
    Net,
}

impl Group {
    fn is_wanted(self, cli: &Cli) -> bool {
        cli.groups.is_empty() || cli.groups.contains(&self)
    }

    fn measure(self, setting: &Setting) -> Result<Vec<Figure>> {
        match self {
            Self::Boot => measure::boot::measure(setting),
            Self::Remote => measure::remote::measure(setting),
            Self::Counts => measure::counts::measure(setting),
            Self::Kernel => measure::kernel::measure(setting),
            Self::Profile => measure::profile::measure(setting),
            Self::Single => measure::single::measure(setting),
            Self::Rest => measure::rest::measure(setting),
            Self::Hostfs => measure::hostfs::measure(setting),
            Self::Engines => measure::engines::measure(setting),
            Self::Links => measure::links::measure(setting),
            Self::Topologies => measure::topologies::measure(setting),
            Self::Numa => measure::numa::measure(setting),
            Self::Scale => measure::scale::measure(setting),
            Self::Ubd => measure::ubd::measure(setting),
            Self::Net => measure::net::measure(setting),
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.check {
        return check(&cli);
    }
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Says what is to be installed for these groups beside what all need.
fn check(cli: &Cli) -> ExitCode {
    if let Err(error) = plots_directory(cli) {
        eprintln!("bench: {error}");
        return ExitCode::from(error.exit_code());
    }
    if Group::Topologies.is_wanted(cli) {
        println!("{QEMU}");
    }
    ExitCode::SUCCESS
}

/// What `cargo dev bench` knows QEMU and a kernel for it by.
const QEMU: &str = "qemu";

fn plots_directory(cli: &Cli) -> Result<()> {
    match &cli.plots {
        Some(directory) if !directory.is_dir() => Err(Error::Missing(format!(
            "--plots {}: not a directory",
            directory.display()
        ))),
        _ => Ok(()),
    }
}

/// Those that there are figures for.
fn plots(directory: &Path, figures: &[Figure]) -> Result<()> {
    let mut plots = measure::numa::plots(figures)?;
    plots.extend(measure::scale::plot(figures)?.map(|plot| ("scale", plot)));
    for (name, plot) in plots {
        let path = directory.join(format!("{name}.svg"));
        let written = std::fs::write(&path, plot);
        written.map_err(|error| Error::Failed(format!("{}: {error}", path.display())))?;
        eprintln!("{}", path.display());
    }
    Ok(())
}

fn run(cli: &Cli) -> Result<()> {
    plots_directory(cli)?;
    interrupt::watch()?;
    let mut effort = if cli.quick {
        Effort::QUICK
    } else {
        Effort::FULL
    };
    if let Some(repetitions) = cli.repetitions {
        effort.repetitions = repetitions;
    }
    let setting = Setting::new(effort)?;
    let mut report = Report::new(&setting);
    let mut outcome = Ok(());
    for &group in Group::value_variants() {
        if !group.is_wanted(cli) {
            continue;
        }
        match group.measure(&setting) {
            Ok(figures) => report.figures.extend(figures),
            Err(error) => {
                // What has been measured by then took minutes and is as good as before.
                outcome = Err(error);
                break;
            }
        }
    }
    if outcome.is_err() && report.figures.is_empty() {
        return outcome;
    }
    if cli.json {
        println!("{}", report.json()?);
    } else {
        print!("{}", report.table());
    }
    if let Some(directory) = &cli.plots {
        plots(directory, &report.figures)?;
    }
    outcome
}

impl From<span_plot::PlotError> for Error {
    fn from(error: span_plot::PlotError) -> Self {
        Self::Failed(format!("plot: {error}"))
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::Failed(format!("JSON: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked() {
        let parse = |arguments: &[&str]| {
            Cli::try_parse_from(["bench"].iter().chain(arguments)).map_err(|e| e.to_string())
        };
        let cli = parse(&["--quick", "boot", "single"]).unwrap();
        assert!(cli.quick && !cli.json);
        assert_eq!(cli.groups, [Group::Boot, Group::Single]);
        for (arguments, named) in [
            (&["--repetitions", "0"], "1..=100"),
            (&["--repetitions", "many"], "many"),
            (&["boots", "--json"], "counts, kernel, profile, single"),
        ] {
            assert!(parse(arguments).unwrap_err().contains(named));
        }
    }
}
