//! What one run is asked to be, on a command line: enough to have it again.

use crate::params::Params;
use crate::script::plant;
use clap::{Args, ValueEnum};
use dsm::NODES_MAX;
use std::fmt::Write as _;
use std::process::Command;

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Size {
    /// 2 to 8 nodes that fight over 1 to 4 pages.
    Small,
    /// Up to 64 nodes and thousands of pages.
    Large,
}

/// Whatever is not given is drawn from the seed.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Everything that happens follows from it.
    #[arg(long)]
    pub seed: u64,
    #[arg(long, value_enum, default_value_t = Size::Large)]
    pub size: Size,
    /// The network neither loses, repeats nor reorders.
    #[arg(long)]
    pub reliable: bool,
    /// Large runs: no access begins after so many steps.
    #[arg(long, default_value_t = 1_000_000)]
    pub steps: u64,
    #[arg(long, value_parser = clap::value_parser!(u16).range(2..=i64::from(NODES_MAX)))]
    pub nodes: Option<u16>,
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub pages: Option<u32>,
    /// Nodes that stop, one after the other.
    #[arg(long, default_value_t = 0)]
    pub crashes: u16,
    /// Most pages of other homes that a node holds.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub foreign: Option<u32>,
    /// Percentage of accesses after which the node evicts some page.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=100))]
    pub evict: u64,
    /// A bug to plant: early-ack, lost-sharer, early-protected, early-bytes, skip-fill,
    /// early-discard.
    #[arg(long)]
    pub plant: Vec<String>,
    /// Answers that leave too early are no breach by themselves: what comes of them has to be
    /// noticed.
    #[arg(long)]
    pub unchecked_answers: bool,
}

impl Options {
    /// Everything from the seed.
    pub fn new(size: Size, seed: u64) -> Options {
        Options {
            seed,
            size,
            reliable: false,
            steps: 1_000_000,
            nodes: None,
            pages: None,
            crashes: 0,
            foreign: None,
            evict: 0,
            plant: Vec::new(),
            unchecked_answers: false,
        }
    }

    /// # Errors
    /// When there is no such bug.
    pub fn params(&self) -> Result<Params, String> {
        let faults = !self.reliable;
        let mut params = match self.size {
            Size::Small => Params::from_seed(self.seed, faults),
            Size::Large => Params::large(self.seed, faults, self.steps),
        };
        params.nodes = self.nodes.unwrap_or(params.nodes);
        params.pages = self.pages.unwrap_or(params.pages);
        params.crashes = self.crashes;
        params.foreign_max = self.foreign;
        params.evict_percent = self.evict;
        params.check_answers = !self.unchecked_answers;
        for name in &self.plant {
            plant(&mut params.plant, &mut params.planted, name)?;
        }
        params.hold_for_pairs();
        Ok(params)
    }

    /// The command that does the same again.
    pub fn command(&self) -> String {
        let mut text = format!("cargo run --release -p dsm-sim -- run --seed {}", self.seed);
        let mut put = |word: &str, value: Option<u64>| {
            text += word;
            if let Some(value) = value {
                let Ok(()) = write!(text, " {value}") else {
                    unreachable!("a String takes everything")
                };
            }
        };
        match self.size {
            Size::Small => put(" --size small", None),
            Size::Large => put(" --steps", Some(self.steps)),
        }
        if self.reliable {
            put(" --reliable", None);
        }
        if let Some(nodes) = self.nodes {
            put(" --nodes", Some(nodes.into()));
        }
        if let Some(pages) = self.pages {
            put(" --pages", Some(pages.into()));
        }
        if self.crashes > 0 {
            put(" --crashes", Some(self.crashes.into()));
        }
        if let Some(foreign) = self.foreign {
            put(" --foreign", Some(foreign.into()));
        }
        if self.evict > 0 {
            put(" --evict", Some(self.evict));
        }
        for name in &self.plant {
            put(&format!(" --plant {name}"), None);
        }
        if self.unchecked_answers {
            put(" --unchecked-answers", None);
        }
        text
    }

    /// What comes first in what a run prints: seed, commit, parameters.
    ///
    /// # Errors
    /// When there is no such bug.
    pub fn headline(&self) -> Result<String, String> {
        let (seed, commit, params) = (self.seed, commit(), self.params()?);
        Ok(format!("seed {seed}, commit {commit}, {params}"))
    }
}

/// The commit of the checkout that this was built in.
pub fn commit() -> String {
    let described = Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR")])
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .output();
    match described {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown (no git checkout)".to_owned(),
    }
}
