//! What runs on a host beside the guest: the agent that starts and supervises one node's guest process
//! (`node agent`, started by the coordinator on its own machine), and the daemon that does the same for
//! coordinators elsewhere (`node serve`).
//!
//! Mechanism: an agent is a conversation ([`span_api::link`]) that owns at most one guest process
//! ([`process`]). It relays, and it cleans up: whatever ends the conversation ends the guest process,
//! every process that came from it, and the directory it worked in. A daemon is any number of such
//! conversations in one process, behind QUIC and a token ([`serve`]), with a cache of the artefacts it
//! was given ([`artefacts`]).
//!
//! Everything runs on the main thread: a guest process asks to be killed when the *thread* that made
//! it ends, and that thread must therefore live exactly as long as the process.

mod agent;
mod artefacts;
mod directory;
mod lines;
mod link;
mod network;
mod process;
mod serve;
mod supervise;
mod switch;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "node", version, about = "The per-host part of Span")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve guests of coordinators on other machines
    Serve(serve::Options),
    /// Supervise one guest process for the coordinator that started this
    #[command(hide = true)]
    Agent {
        /// Inherited socket to the coordinator
        #[arg(long)]
        link_fd: i32,
        /// Inherited socket that becomes the guest's session channel
        #[arg(long)]
        session_fd: Option<i32>,
        /// Inherited memory with the queues of uplinks
        #[arg(long)]
        uplinks_fd: Option<i32>,
    },
    /// Remove the run directory of a guest whose coordinator died
    #[command(hide = true)]
    Janitor {
        /// Inherited socket whose end tells the coordinator's
        #[arg(long)]
        link_fd: i32,
        #[arg(long)]
        run_directory: PathBuf,
    },
    /// Switch frames between guests of this user, as long as there are any
    #[command(hide = true)]
    Switch {
        name: String,
        /// Inherited socket at which agents connect
        #[arg(long)]
        listen_fd: i32,
    },
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            eprintln!("node: {}", line.trim_start_matches("error: "));
            return ExitCode::from(2);
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("SPAN_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("node: the event loop cannot be set up: {error}");
            return ExitCode::from(125);
        }
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Serve(options) => serve::run(options).await,
            Command::Agent {
                link_fd,
                session_fd,
                uplinks_fd,
            } => agent::run(link_fd, session_fd, uplinks_fd).await,
            Command::Janitor {
                link_fd,
                run_directory,
            } => agent::janitor(link_fd, &run_directory).await,
            Command::Switch { name, listen_fd } => switch::process::run(&name, listen_fd).await,
        }
    });
    // Reading threads of the runtime may still be blocked; nothing is left for them to do.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("node: {}", failure.line);
            ExitCode::from(failure.code)
        }
    }
}

/// How the program fails: one line and an exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) line: String,
}

impl Failure {
    /// An option that cannot be used.
    pub(crate) fn usage(line: impl Into<String>) -> Self {
        Self {
            code: 2,
            line: line.into(),
        }
    }

    /// Anything else.
    pub(crate) fn failed(line: impl Into<String>) -> Self {
        Self {
            code: 125,
            line: line.into(),
        }
    }
}
