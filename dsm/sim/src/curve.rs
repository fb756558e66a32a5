//! What a fault costs as nodes become more: the same work in networks of any number of nodes, with all checks on.
//!
//! Guests have at most [`dsm::NODES_MAX`] nodes, whose sets are one word. Beyond that the same engines run with sets
//! of more words.

use crate::ledger::Ledger;
use crate::params::{Params, Sharing};
use crate::sim::Sim;
use crate::step::Breach;
use dsm::{NODES_MAX_WIDEST, NodeSet};
use serde::Serialize;
use span_plot::{Panel, PlotError, Series};
use std::fmt::Write as _;

/// One way of a message, whatever its size: the unit of latencies.
pub const LINK_NS: u64 = 100_000;
/// Pages that each node is home of.
pub const PAGES_A_NODE: u32 = 4;
/// Nodes that use a page of a neighbourhood.
pub const NEIGHBOURS: u16 = 4;
/// Accesses of each node, one after the other ...
pub const ACCESSES: u32 = 100;
/// ... and where all of them want the same page.
pub const ACCESSES_OF_ONE_PAGE: u32 = 20;
pub const WRITE_PERCENT: u64 = 20;
/// Until the next access, at most ...
const THINK_NS_MAX: u64 = 2 * LINK_NS;
/// ... and where all want the same page, for each node: about as long as it takes until all others have had it, so that
/// there is something new to read.
const THINK_OF_ONE_PAGE_NS_MAX: u64 = 2 * LINK_NS;
/// From a grant to the access.
const RESUME_NS_MAX: u64 = 5_000;
/// As the runtime has them.
const HOLD_NS: u64 = 20_000;
const HOLD_NS_MAX: u64 = 4_000_000;
/// What a directory is shown for.
const PAGES_A_GIB: f64 = (1 << 18) as f64;
const BYTES_A_MIB: f64 = (1 << 20) as f64;

/// What the nodes do. README.md in `bench` says it in words.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Nodes share pages with their neighbours.
    Neighbours,
    /// Nodes use all pages that there are.
    Anywhere,
    /// One node writes to a page that all others read.
    OneWriter,
}

impl Work {
    pub const ALL: [Work; 3] = [Work::Neighbours, Work::Anywhere, Work::OneWriter];

    pub fn name(self) -> &'static str {
        match self {
            Work::Neighbours => "4 neighbours share",
            Work::Anywhere => "any node, any page",
            Work::OneWriter => "one writes, all read",
        }
    }

    fn params(self, seed: u64, nodes: u16) -> Params {
        let (sharing, pages, accesses) = match self {
            Work::Neighbours => (Sharing::Neighbours(NEIGHBOURS), PAGES_A_NODE, ACCESSES),
            Work::Anywhere => (Sharing::Anywhere, PAGES_A_NODE, ACCESSES),
            Work::OneWriter => (Sharing::OneWriter, 0, ACCESSES_OF_ONE_PAGE),
        };
        let think_ns_max = match self {
            Work::Neighbours | Work::Anywhere => THINK_NS_MAX,
            Work::OneWriter => THINK_OF_ONE_PAGE_NS_MAX * u64::from(nodes),
        };
        Params {
            nodes,
            pages: (pages * u32::from(nodes)).max(1),
            threads: 1,
            accesses,
            write_percent: WRITE_PERCENT,
            sharing,
            delay_ns_min: LINK_NS,
            delay_ns_max: LINK_NS,
            protect_ns_max: 0,
            resume_ns_max: RESUME_NS_MAX,
            think_ns_max,
            access_ns_max: 0,
            pair_percent: 0,
            ahead_percent: 0,
            ordered: true,
            hold_ns: HOLD_NS,
            hold_ns_max: HOLD_NS_MAX,
            migratory: true,
            steps_max: u64::MAX,
            ..Params::from_seed(seed, false)
        }
    }
}

/// What one network did. Latencies are in delays of a link.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    pub work: Work,
    pub nodes: u16,
    pub accesses: u64,
    /// Those that another node had a part in.
    pub faults: usize,
    pub messages_a_fault: f64,
    pub messages_max: u32,
    pub bytes_a_fault: f64,
    pub latency_median: f64,
    pub latency_p99: f64,
    pub latency_max: f64,
    /// Nodes that a node has sent something.
    pub peers: f64,
    pub directory_bytes_a_page: usize,
    /// What a directory has beside its pages.
    pub directory_bytes_a_node: f64,
    pub steps: u64,
}

impl Point {
    /// Of a node that is home of a GiB.
    pub fn directory_mib_a_gib(&self) -> f64 {
        let pages = self.directory_bytes_a_page as f64 * PAGES_A_GIB;
        (pages + self.directory_bytes_a_node) / BYTES_A_MIB
    }
}

/// One network.
///
/// # Errors
/// At the first broken promise.
///
/// # Panics
/// With more than [`NODES_MAX_WIDEST`] nodes.
pub fn point(work: Work, seed: u64, nodes: u16) -> Result<Point, Breach> {
    // The narrowest sets that do: what they take is part of the curve.
    match nodes {
        0..=64 => run::<1>(work, seed, nodes),
        65..=128 => run::<2>(work, seed, nodes),
        129..=256 => run::<4>(work, seed, nodes),
        257..=512 => run::<8>(work, seed, nodes),
        513..=NODES_MAX_WIDEST => run::<16>(work, seed, nodes),
        _ => panic!("{nodes} nodes, at most {NODES_MAX_WIDEST}"),
    }
}

fn run<const W: usize>(work: Work, seed: u64, nodes: u16) -> Result<Point, Breach> {
    assert!(nodes <= NodeSet::<W>::NODES_MAX);
    let params = work.params(seed, nodes);
    let pages = params.pages as usize;
    let mut sim = Sim::<W>::new(params);
    sim.ledger = Some(Ledger::new(nodes));
    sim.run()?;
    let (totals, (entries, requesters)) = (sim.totals(), sim.directory_bytes());
    let Some(ledger) = sim.ledger else {
        unreachable!("given above")
    };
    let waits = ledger.waits_ns();
    let latency = |percent: usize| {
        let at = (waits.len() * percent / 100).min(waits.len().saturating_sub(1));
        waits.get(at).map_or(0.0, |ns| *ns as f64 / LINK_NS as f64)
    };
    let faults = ledger.faults().max(1) as f64;
    Ok(Point {
        work,
        nodes,
        accesses: totals.accesses,
        faults: ledger.faults(),
        messages_a_fault: ledger.messages() as f64 / faults,
        messages_max: ledger.messages_max(),
        bytes_a_fault: ledger.bytes() as f64 / faults,
        latency_median: latency(50),
        latency_p99: latency(99),
        latency_max: latency(100),
        peers: ledger.peers(),
        directory_bytes_a_page: entries / pages,
        directory_bytes_a_node: requesters as f64 / f64::from(nodes),
        steps: totals.steps,
    })
}

const HEADER: [&str; 12] = [
    "", "nodes", "faults", "messages", "most", "bytes", "median", "p99", "longest", "peers",
    "B/page", "MiB/GiB",
];

/// For people.
pub fn table(points: &[Point]) -> String {
    let mut text = String::new();
    let mut line = |cells: [String; 12]| {
        let [work, rest @ ..] = cells;
        let mut line = format!("{work:20}");
        for cell in rest {
            let Ok(()) = write!(line, " {cell:>8}") else {
                unreachable!("a String takes everything")
            };
        }
        text += line.trim_end();
        text.push('\n');
    };
    line(HEADER.map(String::from));
    for point in points {
        line([
            point.work.name().into(),
            point.nodes.to_string(),
            point.faults.to_string(),
            format!("{:.2}", point.messages_a_fault),
            point.messages_max.to_string(),
            format!("{:.0}", point.bytes_a_fault),
            format!("{:.2}", point.latency_median),
            format!("{:.2}", point.latency_p99),
            format!("{:.2}", point.latency_max),
            format!("{:.1}", point.peers),
            point.directory_bytes_a_page.to_string(),
            format!("{:.2}", point.directory_mib_a_gib()),
        ]);
    }
    text
}

/// An SVG.
///
/// # Errors
/// When there is nothing to show.
pub fn plot(points: &[Point]) -> Result<String, PlotError> {
    let panel = |title: &str, of: &dyn Fn(&Point) -> f64| Panel {
        title: title.into(),
        series: Work::ALL
            .map(|work| {
                let points = points.iter().filter(|point| point.work == work);
                let points = points.map(|point| (f64::from(point.nodes), of(point)));
                Series {
                    name: work.name().into(),
                    points: points.collect(),
                }
            })
            .into(),
    };
    span_plot::lines(
        "What a fault costs, simulated",
        "nodes",
        &[
            panel("messages for a fault", &|point| point.messages_a_fault),
            panel("bytes for a fault", &|point| point.bytes_a_fault),
            panel("median wait, in delays of a link", &|point| {
                point.latency_median
            }),
            panel(
                "directory of a node that is home of 1 GiB, in MiB",
                &Point::directory_mib_a_gib,
            ),
        ],
    )
}
