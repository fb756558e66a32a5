//! The developer tool behind `cargo dev`: from a fresh Debian machine to a running guest.
//!
//! It fetches the kernel source by package name, applies overlay and series, configures and builds
//! the kernel, builds the workspace, and gathers what a guest needs below `target/span`. Every step
//! leaves a content stamp, so that a second run does only what has changed. Nothing outside of
//! cargo's target directory is written, except for packages that root lets it install and the
//! download cache that `SPAN_CACHE` or `XDG_CACHE_HOME` name.
//!
//! Exit codes: 0 done, 1 a step failed, 2 the command line or the machine has to change first.

mod apt;
mod base;
mod bench;
mod config;
mod emulator;
mod error;
mod initramfs;
mod kernel;
mod layout;
mod patch;
mod prereq;
mod process;
mod product;
mod progress;
mod source;
mod stamp;
mod testing;
mod tree;
mod up;

use std::error::Error as _;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use error::Result;
use kernel::Variant;
use layout::Layout;
use progress::Progress;
use source::Wanted;

#[derive(Debug, Parser)]
#[command(
    name = "cargo dev",
    about = "Builds, runs and tests Span from a checkout"
)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Build the kernel only and print where it is
    Kernel {
        #[command(flatten)]
        wanted: Wanted,
        /// Leave out overlay, patches and our own configuration: the kernel as upstream has it
        #[arg(long)]
        upstream: bool,
    },
    /// Build everything a guest needs into target/span
    Build {
        #[command(flatten)]
        wanted: Wanted,
        /// With a kernel that counts how often lines below these directories of its source are executed, into
        /// target/span-gcov
        #[arg(long, value_name = "DIRECTORY,...", value_delimiter = ',')]
        gcov: Vec<String>,
    },
    /// Build everything, then run a guest over three nodes: a shell, or a tour without a terminal
    Up {
        /// Passed on to `coordinator up`
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        arguments: Vec<OsString>,
    },
    /// Build everything and upstream's kernel, then measure one against the other
    #[command(disable_help_flag = true)]
    Bench {
        /// Passed on to `bench`; --help has them
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        arguments: Vec<OsString>,
    },
    /// Build everything, then run all tests, or those whose names contain a filter
    Test {
        #[arg(value_name = "FILTER")]
        filters: Vec<String>,
    },
}

fn main() -> ExitCode {
    let progress = Progress::new();
    // Under the name that people type, in usage and errors.
    let arguments = std::iter::once("cargo dev".into()).chain(std::env::args_os().skip(1));
    match run(Cli::parse_from(arguments).command, &progress) {
        Ok(code) => code,
        Err(error) => {
            eprint!("cargo dev: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprint!(": {cause}");
                source = cause.source();
            }
            eprintln!();
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(action: Action, progress: &Progress) -> Result<ExitCode> {
    let layout = Layout::find()?;
    let build_only: &[&[prereq::Need]] = &[prereq::BUILD];
    match action {
        Action::Kernel { wanted, upstream } => {
            wanted.check(&layout)?;
            let linux = product::with_builder(&layout, progress, build_only, |builder| {
                if upstream {
                    return Ok(product::upstream(builder, &wanted)?.join("linux"));
                }
                product::workspace(builder)?;
                Ok(builder.kernel(&wanted, &Variant::Span)?.linux)
            })?;
            println!("{}", linux.display());
        }
        Action::Build { wanted, gcov } => {
            wanted.check(&layout)?;
            let product = product::with_builder(&layout, progress, build_only, |builder| {
                if !gcov.is_empty() {
                    return product::counting(builder, &wanted, gcov);
                }
                product::build(builder, &wanted, &layout.product())
            })?;
            progress.stage(format!("done: {}", product.dir.display()));
        }
        Action::Up { .. } => {
            // Verbatim: clap would swallow a "--" in front of the guest's command.
            let arguments: Vec<OsString> = std::env::args_os()
                .skip_while(|argument| argument != "up")
                .skip(1)
                .collect();
            let product = product::with_builder(&layout, progress, build_only, |builder| {
                product::build(builder, &Wanted::default(), &layout.product())
            })?;
            return up::run(&product.dir, &arguments);
        }
        Action::Bench { arguments } => return bench::run(&layout, progress, &arguments),
        Action::Test { filters } => return testing::run(&layout, progress, &filters),
    }
    Ok(ExitCode::SUCCESS)
}
