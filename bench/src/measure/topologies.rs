//! The topologies that come with the program: what a guest's programs wait for memory of each kind of neighbour, against
//! what the file says of the link, and beside what the same machine takes in QEMU.

use super::links::ratio_max;
use crate::error::{Error, Result};
use crate::figures::{Figure, Unit};
use crate::qemu::{self, Qemu, Ran, Way};
use crate::samples::{Samples, median};
use crate::setting::Setting;
use serde_json::Value;

const GROUP: &str = "Topologies: memory of another node, against the link that the file describes";
const CONFIGURED: &str = "configured";

const NS_A_SECOND: f64 = 1e9;
const PAGE_BITS: f64 = 4096.0 * 8.0;

/// The topologies, and pairs of nodes that are as far from each other as any there: who reads, and whose memory.
const PAIRS: [(&str, &[(&str, &str)]); 6] = [
    ("two-sockets", &[("s0", "s1")]),
    ("four-sockets", &[("s0", "s1"), ("s0", "s3")]),
    ("ring-of-8", &[("r0", "r1"), ("r0", "r2"), ("r0", "r4")]),
    ("two-rack-cluster", &[("r1n1", "r1n2"), ("r1n1", "r2n1")]),
    ("one-slow-node", &[("a", "b"), ("a", "slow")]),
    ("far-memory", &[("near", "far")]),
];

/// A page whose home is a third node, where a topology has one that is as far as any: who reads, who has written, whose
/// memory it is.
const THIRDS: [(&str, [&str; 3]); 3] = [
    ("four-sockets", ["s0", "s3", "s1"]),
    ("ring-of-8", ["r0", "r4", "r2"]),
    ("two-rack-cluster", ["r1n1", "r1n2", "r2n1"]),
];

/// What a link adds to the fetch of a page, and carries.
#[derive(Debug, Clone, Copy)]
struct Link {
    page_ns: f64,
    bandwidth_bps: Option<f64>,
}

/// What is said of a pair, and what it was, for each repetition.
#[derive(Debug, Default, Clone)]
struct Pair {
    page: Samples,
    fetched: Samples,
    bandwidth: Samples,
    streamed: Samples,
}

/// On links that cost nothing.
#[derive(Debug, Default)]
struct Free {
    local: Samples,
    fetched: Samples,
    fresh: Samples,
    streamed: Samples,
}

/// The CPU of all pairs' first nodes.
const HERE: u32 = 0;

/// Runs of a machine in QEMU, which boots for as long as all of Span's guests together: it has little to tell.
const EMULATED_REPETITIONS: u32 = 2;

/// A topology in QEMU, from a CPU of the node from which Span's is looked at.
#[derive(Debug)]
struct Emulated {
    way: Way,
    nodes: Vec<String>,
    /// Of each node: a page, and pages in order.
    fetched: Vec<Samples>,
    streamed: Vec<Samples>,
    /// Why there is nothing of that.
    why: Option<String>,
}

pub(crate) fn measure(setting: &Setting) -> Result<Vec<Figure>> {
    let mut free = Free::default();
    let mut pairs: Vec<Vec<Pair>> = PAIRS.map(|(_, of)| vec![Pair::default(); of.len()]).into();
    let mut thirds = vec![Pair::default(); THIRDS.len()];
    setting.repeat("topologies", || {
        let two = ["--nodes", "a,b", "--cpus", "1", "--mem", "512M"];
        let three = ["--nodes", "a,b,c", "--cpus", "1", "--mem", "256M"];
        free.local
            .add(setting.span_distance(&two, 0, 0, 0)?.samples("chase")?);
        let remote = setting.span_distance(&two, 0, 1, 1)?;
        let fetched_ns = remote.samples("chase")?;
        let fresh_ns = setting.span_fresh(&two, 0, 1)?.samples("chase")?;
        let (floor_ns, fresh_floor_ns) = (typical(&fetched_ns)?, typical(&fresh_ns)?);
        free.fetched.add(fetched_ns);
        free.fresh.add(fresh_ns);
        free.streamed
            .add(rates(setting, &remote.samples("stream")?));
        for ((topology, names), pairs) in PAIRS.iter().zip(&mut pairs) {
            let described = setting.topology(topology)?;
            let options = ["--topology", topology];
            for ((from, to), pair) in names.iter().zip(pairs) {
                let here = cpu(&described, from)?.ok_or_else(|| no("CPU", from))?;
                let added_ns = match cpu(&described, to)? {
                    Some(there) => {
                        let outcome = setting.span_distance(&options, here, there, there)?;
                        pair.streamed
                            .add(rates(setting, &outcome.samples("stream")?));
                        typical(&outcome.samples("chase")?)? - floor_ns
                    }
                    None => {
                        let node = index(&described, to)?;
                        let outcome = setting.span_fresh(&options, here, node)?;
                        typical(&outcome.samples("chase")?)? - fresh_floor_ns
                    }
                };
                let link = link(&described, from, to)?;
                pair.page.add(vec![link.page_ns]);
                pair.fetched.add(vec![added_ns.max(0.0)]);
                pair.bandwidth.add(link.bandwidth_bps.into_iter().collect());
            }
        }
        let free_ns = typical(&setting.span_distance(&three, 0, 1, 2)?.samples("chase")?)?;
        for ((topology, names), pair) in THIRDS.iter().zip(&mut thirds) {
            let described = setting.topology(topology)?;
            let cpus = names.map(|name| cpu(&described, name)?.ok_or_else(|| no("CPU", name)));
            let [here, there, home] = cpus;
            let outcome = setting.span_distance(&["--topology", topology], here?, there?, home?)?;
            let added_ns = typical(&outcome.samples("chase")?)? - free_ns;
            let [here, there, home] = names.map(|name| name);
            pair.page.add(vec![
                one_way(&described, here, home)?.latency_ns
                    + one_way(&described, home, there)?.latency_ns
                    + one_way(&described, there, here)?.page_ns(),
            ]);
            pair.fetched.add(vec![added_ns.max(0.0)]);
        }
        Ok(())
    })?;
    let emulated: Result<Vec<[Emulated; 2]>> = PAIRS
        .iter()
        .map(|(topology, _)| {
            let [numa, fake] = Way::ALL;
            Ok([
                emulate(setting, numa, topology)?,
                emulate(setting, fake, topology)?,
            ])
        })
        .collect();
    let mut figures = figures(&free, &pairs, &emulated?)?;
    for ((topology, [here, there, home]), pair) in THIRDS.iter().zip(&thirds) {
        let name = format!("{topology}, {here} of {home}, written by {there}: added to a page");
        let (is, of) = (&pair.fetched, &pair.page);
        let added = Figure::compared(GROUP, name, Unit::Microseconds, CONFIGURED, of, is);
        figures.push(added.aim(ratio_max(of)));
    }
    Ok(figures)
}

/// All nodes' memory from the CPU that the pairs begin with.
fn emulate(setting: &Setting, way: Way, topology: &str) -> Result<Emulated> {
    let described = setting.topology(topology)?;
    let nodes = qemu::nodes(&described);
    let mut emulated = Emulated {
        way,
        fetched: vec![Samples::default(); nodes.len()],
        streamed: vec![Samples::default(); nodes.len()],
        nodes,
        why: None,
    };
    let machine = match Qemu::find(setting)? {
        Ok(machine) => machine,
        Err(why) => {
            emulated.why = Some(why);
            return Ok(emulated);
        }
    };
    let (few, many, rounds) = setting.effort.distance;
    let numbers = [HERE, emulated.nodes.len() as u32, few, many, rounds];
    let mut arguments = vec!["placed".to_owned(), setting.khz.clone()];
    arguments.extend(numbers.map(|number| number.to_string()));
    let times = setting.effort.repetitions.min(EMULATED_REPETITIONS);
    setting.repeat_times(&format!("{topology}, {}", way.name()), times, || {
        match machine.run(way, &described, &arguments)? {
            Ran::Refused(why) => emulated.why = Some(why),
            Ran::Measured(outcome) => {
                for node in 0..emulated.nodes.len() {
                    let chased = outcome.samples(&format!("chase{node}"))?;
                    emulated.fetched[node].add(chased);
                    let streamed = outcome.samples(&format!("stream{node}"))?;
                    emulated.streamed[node].add(rates(setting, &streamed));
                }
            }
        }
        Ok(())
    })?;
    Ok(emulated)
}

fn figures(free: &Free, pairs: &[Vec<Pair>], emulated: &[[Emulated; 2]]) -> Result<Vec<Figure>> {
    let (us, mbit) = (Unit::Microseconds, Unit::Megabits);
    let alone = |name, unit, samples| Figure::alone(GROUP, name, unit, samples);
    let mut figures = vec![
        alone("a page of the own node", us, &free.local),
        alone("a page of another, on a free link", us, &free.fetched),
        alone("a fresh page of another, on a free link", us, &free.fresh),
        alone("pages in order, on a free link", mbit, &free.streamed),
    ];
    for (((topology, names), pairs), emulated) in PAIRS.iter().zip(pairs).zip(emulated) {
        for ((from, to), pair) in names.iter().zip(pairs) {
            let name = |what| format!("{topology}, {from} of {to}: {what}");
            let (is, of) = (&pair.fetched, &pair.page);
            let added = Figure::compared(GROUP, name("added to a page"), us, CONFIGURED, of, is);
            figures.push(added.aim(ratio_max(of)));
            if pair.streamed.summary().is_some() {
                let (is, of) = (&pair.streamed, &pair.bandwidth);
                let name = name("pages in order");
                figures.push(Figure::compared(GROUP, name, mbit, CONFIGURED, of, is));
            }
            for emulated in emulated {
                figures.extend(emulated.beside(name, (from, to), pair)?);
            }
        }
        for emulated in emulated {
            figures.extend(emulated.alone(topology, names[0].0)?);
        }
    }
    Ok(figures)
}

impl Emulated {
    /// What QEMU's machine adds where Span's link does, and what it carries there.
    fn beside(
        &self,
        name: impl Fn(&'static str) -> String,
        (from, to): (&str, &str),
        pair: &Pair,
    ) -> Result<Vec<Figure>> {
        let (us, mbit, against) = (Unit::Microseconds, Unit::Megabits, self.way.name());
        let added = name("added to a page");
        if let Some(why) = &self.why {
            return Ok(vec![Figure::missing(GROUP, added, us, against, why)]);
        }
        let (own, other) = (self.node(from)?, self.node(to)?);
        let own = own.fetched.summary().map_or(0.0, |summary| summary.median);
        let (of, rate) = (other.fetched.less(own), other.streamed);
        Ok(vec![
            Figure::beside(GROUP, added, us, against, &of, &pair.fetched),
            Figure::beside(
                GROUP,
                name("pages in order"),
                mbit,
                against,
                rate,
                &pair.streamed,
            ),
        ])
    }

    /// The same on its own node.
    fn alone(&self, topology: &str, from: &str) -> Result<Vec<Figure>> {
        if self.why.is_some() {
            return Ok(Vec::new());
        }
        let (own, none) = (self.node(from)?, Samples::default());
        let figure = |what, unit, samples: &Samples| {
            let name = format!("{topology}, {from} alone: {what}");
            Figure::beside(GROUP, name, unit, self.way.name(), samples, &none)
        };
        Ok(vec![
            figure("a page", Unit::Microseconds, own.fetched),
            figure("pages in order", Unit::Megabits, own.streamed),
        ])
    }

    fn node(&self, name: &str) -> Result<Memory<'_>> {
        let at = self.nodes.iter().position(|node| node == name);
        let at = at.ok_or_else(|| no("memory", name))?;
        Ok(Memory {
            fetched: &self.fetched[at],
            streamed: &self.streamed[at],
        })
    }
}

/// What it is like from where it is looked at.
struct Memory<'a> {
    fetched: &'a Samples,
    streamed: &'a Samples,
}

fn typical(samples: &[f64]) -> Result<f64> {
    median(samples).ok_or_else(|| Error::Failed("nothing was timed".into()))
}

/// Bits a second.
fn rates(setting: &Setting, times_ns: &[f64]) -> Vec<f64> {
    let bits = f64::from(setting.effort.distance.1) * PAGE_BITS;
    times_ns.iter().map(|ns| bits / ns * NS_A_SECOND).collect()
}

fn no(what: &str, node: &str) -> Error {
    Error::Failed(format!("a topology has no {what} for {node}"))
}

fn index(described: &Value, node: &str) -> Result<usize> {
    let mut nodes = described["nodes"].as_array().into_iter().flatten();
    let index = nodes.position(|it| it["name"] == node);
    index.ok_or_else(|| no("index", node))
}

/// The first CPU of a node.
fn cpu(described: &Value, node: &str) -> Result<Option<u64>> {
    let index = index(described, node)?;
    let nodes = described["nodes"].as_array().into_iter().flatten();
    let counts: Vec<u64> = nodes.filter_map(|it| it["cpus"].as_u64()).collect();
    match counts.get(index) {
        None => Err(no("CPUs", node)),
        Some(0) => Ok(None),
        Some(_) => Ok(Some(counts[..index].iter().sum())),
    }
}

/// A request goes one way, the page the other.
fn link(described: &Value, from: &str, to: &str) -> Result<Link> {
    let (there, back) = (one_way(described, from, to)?, one_way(described, to, from)?);
    Ok(Link {
        page_ns: there.latency_ns + back.page_ns(),
        bandwidth_bps: back.bandwidth_bps,
    })
}

/// One direction.
#[derive(Debug, Clone, Copy)]
struct OneWay {
    latency_ns: f64,
    bandwidth_bps: Option<f64>,
}

impl OneWay {
    /// Of a page.
    fn page_ns(self) -> f64 {
        let carried = |bps: f64| PAGE_BITS / bps * NS_A_SECOND;
        self.latency_ns + self.bandwidth_bps.map_or(0.0, carried)
    }
}

fn one_way(described: &Value, from: &str, to: &str) -> Result<OneWay> {
    let mut links = described["links"].as_array().into_iter().flatten();
    let link = links.find(|it| it["from"] == from && it["to"] == to);
    let link = link.ok_or_else(|| no("link", to))?;
    let latency = link["latency_ns"].as_f64();
    Ok(OneWay {
        latency_ns: latency.ok_or_else(|| no("latency", to))?,
        bandwidth_bps: link["bandwidth_bps"].as_f64(),
    })
}
