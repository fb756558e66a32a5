//! The command line. What the values mean, and whether they can be used, is decided in [`crate::plan`].

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use span_api::line::Line;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Parser)]
#[command(
    name = "coordinator",
    version,
    about = "Runs one Linux kernel over several node processes",
    after_help = "Exit codes: the guest command's own (128+n when a signal ended it); 2 usage, \
                  125 the coordinator failed, 70 a node was lost, 134 the guest panicked."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Boot a guest, run a command or a shell in it, and take it down
    Up(UpOptions),
    /// Show a guest's nodes, CPUs and counters
    Status {
        #[command(flatten)]
        target: Target,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show what a guest's nodes count: faults and their latency, bytes, interrupts, host calls
    Stats {
        #[command(flatten)]
        target: Target,
        /// Go on until the guest ends: a live view on a terminal, else a line for each node
        #[arg(short, long)]
        watch: bool,
        /// Seconds between two samples, 0.1 to 3600
        #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval, requires = "watch")]
        interval: Duration,
        /// Print JSON: one object, or one object per interval
        #[arg(long)]
        json: bool,
    },
    /// Show where the faults come from that ask another node: pages, symbols, instructions
    #[command(
        after_help = "With a command, a new guest is started for it, with the options of `up`, and profiled \
                      from when the command begins (with --boot: from when the guest begins to boot) until it \
                      ends; what was found is then printed on stderr."
    )]
    Profile(ProfileOptions),
    /// List the guests of this user on this machine
    List {
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show a guest's kernel log
    Logs {
        #[command(flatten)]
        target: Target,
        /// Go on until the guest ends
        #[arg(short, long)]
        follow: bool,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Attach to the guest's shared shell, or to one of its lines; Ctrl-] detaches
    #[command(
        after_help = "Several may be attached to one line: all see what the guest writes, each may type."
    )]
    Console {
        #[command(flatten)]
        target: Target,
        /// Console or serial line of the guest, con0 or ssl0 and so on [default: the shared shell]
        #[arg(value_parser = line)]
        line: Option<Line>,
        /// List the guest's lines instead
        #[arg(long, conflicts_with = "line")]
        list: bool,
        /// Print one JSON array
        #[arg(long, requires = "list")]
        json: bool,
    },
    /// Run a command in a guest
    Exec {
        #[command(flatten)]
        target: Target,
        /// Give the command a terminal
        #[arg(short, long)]
        tty: bool,
        /// Run it on this CPU only
        #[arg(long, value_name = "N", conflicts_with = "node")]
        cpu: Option<u16>,
        /// Run it on the CPUs of this node only
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        /// Command and arguments
        #[arg(last = true, required = true, value_name = "CMD")]
        argv: Vec<OsString>,
    },
    /// Copy files and directories into a guest or out of it
    #[command(
        after_help = "One side is NAME:PATH, in a guest (:PATH: in the only one that runs); - is stdin or stdout, \
                      for one file. Links that are named are followed. Owners are not copied. \
                      What is copied takes its place when all of it has arrived. \
                      Exit code 1: something was not copied."
    )]
    Cp {
        /// What is copied, then where to: a new name, or a directory that is there
        #[arg(required = true, num_args = 2.., value_name = "SRC… DST")]
        paths: Vec<OsString>,
    },
    /// Show what a guest's links cost, or change it
    #[command(
        after_help = "Without options, shows the links; with a pair only its own, with --uplink those that share it. \
                      What is changed holds at once, for what is sent from then on. A link that is cut carries nothing; \
                      unless it is healed within 1.5 s, its nodes lose each other, and the guest ends."
    )]
    Link(LinkOptions),
    /// Check, show and draw files that describe machines and clusters, and measure the links of a guest
    Topology {
        #[command(subcommand)]
        command: TopologyCommand,
    },
    /// Take a guest down
    Down {
        #[command(flatten)]
        target: Target,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print a completion script
    Completions { shell: Shell },
}

#[derive(Debug, clap::Args)]
pub(crate) struct LinkOptions {
    /// Guest, which may be left out when exactly one runs, and the link as two of its nodes, A-B
    #[arg(value_name = "NAME|A-B")]
    pub(crate) words: Vec<String>,
    /// All links that share this uplink of the guest's topology
    #[arg(long, value_name = "UPLINK")]
    pub(crate) uplink: Option<String>,
    /// Time that each message takes longer, up to 1s
    #[arg(long, value_name = "TIME")]
    pub(crate) latency: Option<String>,
    /// By how much that time may vary, either way
    #[arg(long, value_name = "TIME")]
    pub(crate) jitter: Option<String>,
    /// Bits per second, as 10G or 2.5G, or none for as many as there can be
    #[arg(long, value_name = "BITS")]
    pub(crate) bandwidth: Option<String>,
    /// Packets that are lost and sent again, as 0.1%
    #[arg(long, value_name = "PERCENT")]
    pub(crate) loss: Option<String>,
    /// Let nothing through
    #[arg(long)]
    pub(crate) cut: bool,
    /// Let everything through again
    #[arg(long, conflicts_with = "cut")]
    pub(crate) heal: bool,
    /// Change only the direction from A to B; of an uplink, from the first of `between` to the second
    #[arg(long)]
    pub(crate) one_way: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TopologyCommand {
    /// List the topologies that come with this program
    List {
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Check a topology: errors have file, line and column
    Validate {
        /// A file, or the name of a topology that comes with this program
        #[arg(value_name = "FILE|NAME")]
        file: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show a topology: nodes, the links of every pair, distances
    Show {
        /// A file, or the name of a topology that comes with this program
        #[arg(value_name = "FILE|NAME")]
        file: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print the JSON Schema of topology files, for editors that check and complete them
    Schema,
    /// Draw a topology as SVG
    Draw {
        /// A file, or the name of a topology that comes with this program
        #[arg(value_name = "FILE|NAME")]
        file: PathBuf,
        /// Where to write it to [default: stdout]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Measure latency and bandwidth between the nodes of a guest that runs, and print them as a topology
    Measure {
        /// Guest; may be left out when exactly one runs
        name: Option<String>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// Guest; may be left out when exactly one runs
    pub(crate) name: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct UpOptions {
    /// Nodes: a name is a process here, NAME=HOST:PORT a `node serve` daemon there
    #[arg(long, value_name = "NAME[=HOST:PORT],…")]
    pub(crate) nodes: Option<String>,
    /// Nodes, CPUs, memory and links from a file, or from a topology that comes with this program
    /// (`coordinator topology list`); --nodes may then say where its nodes run
    #[arg(long, value_name = "FILE|NAME", conflicts_with_all = ["cpus", "mem", "latency"])]
    pub(crate) topology: Option<PathBuf>,
    /// Virtual CPUs, for every node (2) or by name (a=2,b=1) [default: 1]
    #[arg(long, value_name = "N|NAME=N,…")]
    pub(crate) cpus: Option<String>,
    /// Memory, for every node (512M) or by name (a=1G,b=256M); the guest has the sum [default: 256M]
    #[arg(long, value_name = "SIZE|NAME=SIZE,…")]
    pub(crate) mem: Option<String>,
    /// CPUs of its host that a node runs on, for every node (0-3) or by name (a=0-3+8,b=4-7): all its
    /// threads, and the guest's programs there [default: all]
    #[arg(long, value_name = "CPUS|NAME=CPUS,…")]
    pub(crate) host_cpus: Option<String>,
    /// Most of the guest's memory that a node holds at a time, for every node (1G) or by name
    /// (a=4G,b=1G): its own part, and at least 16M for pages of others. Without --mem by name, the
    /// guest's memory is shared out to fit [default: no limit]
    #[arg(long, value_name = "SIZE|NAME=SIZE,…")]
    pub(crate) mem_limit: Option<String>,
    /// Latency added to every message between nodes, one way: for all links (200us) or by names
    /// (a-b=200us,b-c=1ms) [default: none]
    #[arg(long, value_name = "TIME|A-B=TIME,…")]
    pub(crate) latency: Option<String>,
    /// Root file system: host (this machine's, changes are thrown away), a directory (DIR[,owners=mapped]) or an
    /// image of a node's host, none
    #[arg(long, value_name = "host|[NODE:]PATH|none", default_value = "host")]
    pub(crate) root: OsString,
    /// File of a node's host, the first node's if none is named, that becomes a disk, ubda and so on; up to 16.
    /// cow=FILE: what is written goes to this file beside it, which is made if need be; ro: is only read; sync: each
    /// write waits for the host's disk; shared: others use the file, too
    #[arg(long, value_name = "[NODE:]FILE[,OPTION]…")]
    pub(crate) ubd: Vec<OsString>,
    /// Network device of the guest, vec0 and so on; its other end is on the first node, or on NODE.
    /// user[,hostfwd=…]: what this user may reach; tap:NAME: an interface of the node's host; switch:NAME: other
    /// guests
    #[arg(long, value_name = "[NODE:]user|tap:…|switch:…")]
    pub(crate) net: Vec<String>,
    /// Kernel to run [default: `linux` beside this program]
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// More kernel arguments, separated by white space
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    pub(crate) append: Option<String>,
    /// Name of the guest [default: span-1, span-2, …]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Mount a directory of a node's host in the guest, the first node's if none is named
    /// (DIR=MOUNTPOINT[,ro][,owners=mapped]), a SQLite database there (sqlite:FILE=MOUNTPOINT), or several
    /// directories at once (union:[NODE:]DIR+[NODE:]DIR=MOUNTPOINT); as often as wanted. With owners=mapped, owners,
    /// modes and kinds of files are the guest's and kept beside them
    #[arg(long, value_name = "[NODE:]WHAT=MOUNTPOINT[,OPTION]…")]
    pub(crate) hostfs: Vec<OsString>,
    /// How guest pages are protected
    #[arg(long, value_enum, default_value_t = PagingOption::Auto)]
    pub(crate) paging: PagingOption,
    /// Wait for guest processes that do not answer, however long: a debugger may have stopped them. Without, a
    /// node that was stopped by a signal is lost, and so is one on another host of which nothing is heard for 1.5 s
    #[arg(long)]
    pub(crate) debug: bool,
    /// File with the token that the daemons know
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Return when the guest is ready, and print its name
    #[arg(long)]
    pub(crate) detach: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Show the kernel log on stderr
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Command and arguments; without, a shell
    #[arg(last = true, value_name = "CMD")]
    pub(crate) argv: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum PagingOption {
    Auto,
    Mprotect,
    Uffd,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ProfileOptions {
    /// Guest; may be left out when exactly one runs
    #[arg(conflicts_with_all = ["nodes", "topology"])]
    pub(crate) guest: Option<String>,
    /// How long, 0.1 to 3600 [default: 10]; Ctrl-C ends it earlier
    #[arg(long, value_name = "SECONDS", value_parser = interval, conflicts_with_all = ["nodes", "topology"])]
    pub(crate) seconds: Option<Duration>,
    /// Begin with the boot of the new guest, and not with its command
    #[arg(long, conflicts_with_all = ["guest", "seconds"])]
    pub(crate) boot: bool,
    /// File for everything that was found, as one JSON object
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// File for each fault on a time line, as Chrome's trace format: Perfetto shows it
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// File for a report with a map of memory over time
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Options of a new guest")]
    pub(crate) up: Option<UpOptions>,
}

fn line(value: &str) -> Result<Line, String> {
    Line::parse(value).ok_or_else(|| "lines are con0 to con15 and ssl0 to ssl63".into())
}

fn interval(value: &str) -> Result<Duration, String> {
    match value.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("0.1 to 3600 seconds are possible".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::CommandFactory;

    /// What options mean stands beside the longest of them: with one of 100 characters, a word a line.
    #[test]
    fn the_help_leaves_room_for_what_options_mean() {
        let mut program = Cli::command();
        program.build();
        for command in program.get_subcommands() {
            for option in command.get_arguments() {
                let option = option.to_string();
                let length = option.chars().count();
                assert!(
                    length <= 45,
                    "{}: {option} has {length} characters",
                    command.get_name()
                );
            }
        }
    }
}
