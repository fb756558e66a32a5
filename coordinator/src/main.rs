//! The Span command line: boots one Linux kernel over several nodes, and reaches guests that run.
//!
//! `up` checks everything it can ([`plan`]), takes a name ([`rundir`]), reaches an agent for every node
//! ([`link`]: a child process here, or a daemon elsewhere), and then is the one place that knows how the
//! guest stands ([`guest`]). What runs in the guest is talked to over one channel ([`session`]), which is
//! shared by the user of `up` ([`stdio`]) and by further invocations ([`control`], [`console`],
//! [`mod@copy`]); its lines end in the first node's agent ([`lines`]). What its nodes
//! count and record is asked for in the same way ([`stats`], [`profile`]).
//!
//! The program has one thread that decides, and threads that only read stdin and write stdout. It leaves
//! nothing: guest processes end with their agents, agents with their stream to this process, and the run
//! directory with its lock.

mod artefacts;
mod backlog;
mod certificates;
mod cli;
mod console;
mod control;
mod copy;
mod detach;
mod disk;
mod echo;
mod environment;
mod failure;
mod guest;
mod lines;
mod link;
mod links;
mod local;
mod network;
mod numa;
mod options;
mod output;
mod plan;
mod profile;
mod reach;
mod remote;
mod rundir;
mod session;
mod stats;
mod status;
mod stdio;
mod terminal;
mod topology;
mod units;
mod up;

use clap::{CommandFactory, Parser};
use cli::{Cli, Command, ProfileOptions, UpOptions};
use detach::{Side, Waiting};
use failure::{EXIT_USAGE, Failure};
use std::future::Future;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let result = match cli.command {
        Command::Up(options) => up(options),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "coordinator", &mut script);
            // Nobody to tell when the reader went away.
            let _ = std::io::stdout().write_all(&script);
            Ok(0)
        }
        Command::Profile(options) => profile(options),
        command => block_on(reach::run(command)),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            output::say(&failure.line);
            ExitCode::from(failure.code)
        }
    }
}

fn up(options: UpOptions) -> Result<u8, Failure> {
    let plan = plan::Plan::new(&options)?;
    let waiting: Option<Waiting> = match options.detach {
        false => None,
        true => match detach::split().map_err(|error| Failure::cannot("--detach", error))? {
            Side::Caller(code) => return Ok(code),
            Side::Child(waiting) => Some(waiting),
        },
    };
    let run = up::prepare(&plan)?;
    block_on(up::run(options, plan, run, waiting))
}

fn profile(options: ProfileOptions) -> Result<u8, Failure> {
    let files = profile::Files::create(&options)?;
    let Some(up) = options.up else {
        if options.boot {
            return Err(profile::no_boot());
        }
        return block_on(profile::running(options.guest, options.seconds, files));
    };
    profile::check(&up)?;
    let plan = plan::Plan::new(&up)?;
    let run = up::prepare(&plan)?;
    block_on(profile::command(up, options.boot, plan, run, files))
}

fn block_on(future: impl Future<Output = Result<u8, Failure>>) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::cannot("the event loop cannot be set up", error))?;
    let result = runtime.block_on(future);
    // Threads of the runtime may still look up a name; nobody waits for it any more.
    runtime.shutdown_background();
    result
}

/// Says in one line what is wrong with the command line, or prints the help that was asked for.
fn usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(EXIT_USAGE);
    }
    let text = error.to_string();
    // The rest of the first paragraph names what is missing, one a line.
    let paragraph: Vec<&str> = text
        .lines()
        .take_while(|line| !line.trim().is_empty())
        .map(str::trim)
        .collect();
    let line = paragraph.join(" ");
    output::say(&format!(
        "{} (see --help)",
        line.trim_start_matches("error: ")
    ));
    ExitCode::from(EXIT_USAGE)
}
