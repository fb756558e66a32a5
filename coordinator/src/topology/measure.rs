//! What the links of a running guest take: its nodes send each other questions and bulk, through the connections that
//! pages move on, one at a time.
//!
//! A question goes to a node that sleeps, and waking it is in what that takes. The answer goes to one that waits for it, as
//! who waits for a page does: that is a link's latency. So both nodes of a pair ask.

use crate::cli::Target;
use crate::control::{Client, Prober};
use crate::failure::Failure;
use crate::links::values::{bandwidth_text, time_text};
use crate::reach::{find, to_json};
use crate::status::{NodeStatus, Status};
use serde_json::json;
use span_api::guest::Probed;
use std::fmt::Write;
use std::time::Duration;

/// Questions of each node to each other, of which the median counts. The first are thrown away.
const QUESTIONS: usize = 61;
const QUESTIONS_FIRST: usize = 10;

/// Before each question, for far longer than nodes look for messages: whether the one that is asked was still awake would
/// be chance otherwise.
const PAUSE: Duration = Duration::from_millis(3);

/// Bulk for each direction, of which the median counts; more of it, until it takes long enough to be timed.
const BULKS: usize = 5;
const BULK_BYTES_MIN: u32 = 256 << 10;
const BULK_BYTES_MAX: u32 = 16 << 20;
const BULK_NS_MIN: u64 = 20_000_000;

/// A direction of a link.
#[derive(Debug, Clone, Copy, Default)]
struct Direction {
    latency_ns: u64,
    /// Half of all take between so much less and so much more: the jitter that a link is given, evenly spread, is twice that.
    spread_ns: u64,
    /// To a node that sleeps.
    asleep_ns: u64,
    bandwidth_bps: u64,
}

impl Direction {
    /// Never more than the latency, as a topology may say.
    fn jitter_ns(self) -> u64 {
        (2 * self.spread_ns).min(self.latency_ns)
    }
}

#[derive(Debug)]
struct Pair {
    one: usize,
    other: usize,
    /// There and back.
    round_trip_ns: u64,
    there: Direction,
    back: Direction,
}

pub(super) async fn run(target: &Target, json: bool) -> Result<String, Failure> {
    let (name, directory) = find(target)?;
    let client = || Client::connect(&name, &directory);
    let status = client().await?.status().await?;
    let links = client().await?.links().await?;
    for (from, stats) in links.stats.iter().enumerate() {
        if let Some(to) = stats.iter().position(|stats| stats.link.cut) {
            let (from, to) = (&links.names[from], &links.names[to]);
            return Err(Failure::failed(format!("the link {from}-{to} is cut")));
        }
    }
    let mut prober = client().await?.prober();
    let mut pairs = Vec::new();
    for one in 0..status.nodes.len() {
        for other in one + 1..status.nodes.len() {
            pairs.push(pair(&mut prober, one, other).await?);
        }
    }
    match json {
        true => to_json(&as_json(&status, &pairs)),
        false => Ok(as_file(&status, &pairs)),
    }
}

async fn pair(prober: &mut Prober, one: usize, other: usize) -> Result<Pair, Failure> {
    let (asked, asked_back) = (
        ask(prober, one, other).await?,
        ask(prober, other, one).await?,
    );
    let mut pair = Pair {
        one,
        other,
        round_trip_ns: median(of(&asked, |it| it.answered_ns.saturating_sub(it.sent_ns))),
        there: direction(&asked, &asked_back),
        back: direction(&asked_back, &asked),
    };
    pair.there.bandwidth_bps = bandwidth(prober, one, other, pair.there.latency_ns).await?;
    pair.back.bandwidth_bps = bandwidth(prober, other, one, pair.back.latency_ns).await?;
    Ok(pair)
}

async fn ask(prober: &mut Prober, from: usize, to: usize) -> Result<Vec<Probed>, Failure> {
    let mut answers = Vec::new();
    for _ in 0..QUESTIONS {
        tokio::time::sleep(PAUSE).await;
        answers.push(prober.probe(from, to, 0).await?);
    }
    Ok(answers.split_off(QUESTIONS_FIRST))
}

fn of(answers: &[Probed], of: fn(&Probed) -> u64) -> Vec<u64> {
    answers.iter().map(of).collect()
}

/// What questions took that went this way, and answers to those that went the other way.
fn direction(asked: &[Probed], asked_back: &[Probed]) -> Direction {
    let answers = of(asked_back, |it| {
        it.answered_ns.saturating_sub(it.arrived_ns)
    });
    let latency_ns = median(answers.clone());
    let off = |ns: &u64| ns.abs_diff(latency_ns);
    Direction {
        latency_ns,
        spread_ns: median(answers.iter().map(off).collect()),
        asleep_ns: median(of(asked, |it| it.arrived_ns.saturating_sub(it.sent_ns))),
        bandwidth_bps: 0,
    }
}

async fn bandwidth(
    prober: &mut Prober,
    from: usize,
    to: usize,
    latency_ns: u64,
) -> Result<u64, Failure> {
    let mut bytes = BULK_BYTES_MIN;
    let took_ns = async |prober: &mut Prober, bytes| {
        let probed = prober.probe(from, to, bytes).await?;
        let took_ns = probed.arrived_ns.saturating_sub(probed.sent_ns);
        Ok::<u64, Failure>(took_ns.saturating_sub(latency_ns).max(1))
    };
    // It also makes the connection ready for bulk.
    while took_ns(prober, bytes).await? < BULK_NS_MIN && bytes < BULK_BYTES_MAX {
        bytes *= 2;
    }
    let mut rates = Vec::new();
    for _ in 0..BULKS {
        let took_ns = took_ns(prober, bytes).await?;
        rates.push((u128::from(bytes) * 8 * 1_000_000_000 / u128::from(took_ns)) as u64);
    }
    Ok(median(rates))
}

fn median(mut numbers: Vec<u64>) -> u64 {
    numbers.sort_unstable();
    numbers.get(numbers.len() / 2).copied().unwrap_or(0)
}

fn as_json(status: &Status, pairs: &[Pair]) -> serde_json::Value {
    let name = |node: usize| &status.nodes[node].name;
    let direction = |it: &Direction| {
        json!({
            "latency_ns": it.latency_ns, "jitter_ns": it.jitter_ns(), "asleep_ns": it.asleep_ns,
            "bandwidth_bps": it.bandwidth_bps,
        })
    };
    let pair = |pair: &Pair| {
        let mut link = direction(&pair.there);
        link["from"] = json!(name(pair.one));
        link["to"] = json!(name(pair.other));
        link["round_trip_ns"] = json!(pair.round_trip_ns);
        link["back"] = direction(&pair.back);
        link
    };
    let node = |node: &NodeStatus| {
        json!({
            "name": node.name, "address": node.address, "cpus": node.cpus.len(), "mem_mib": node.mem_mib,
        })
    };
    json!({
        "name": status.name,
        "nodes": status.nodes.iter().map(node).collect::<Vec<_>>(),
        "links": pairs.iter().map(pair).collect::<Vec<_>>(),
    })
}

/// As a topology, which says how that guest's links are.
fn as_file(status: &Status, pairs: &[Pair]) -> String {
    let mut text = format!("description = \"Measured in guest {}\"\n", status.name);
    for node in &status.nodes {
        let _ = write!(text, "\n[[node]]\nname = \"{}\"\n", node.name);
        if node.address != "local" {
            let _ = writeln!(text, "address = \"{}\"", node.address);
        }
        let memory = match node.mem_mib {
            0 => "0".into(),
            mib => format!("{mib}M"),
        };
        let _ = writeln!(text, "cpus = {}\nmem = \"{memory}\"", node.cpus.len());
    }
    for pair in pairs {
        let (one, other) = (&status.nodes[pair.one].name, &status.nodes[pair.other].name);
        let values = |it: &Direction, separator: &str| {
            let latency = time_text(rounded(it.latency_ns));
            let jitter = time_text(rounded(it.jitter_ns()));
            let bandwidth = bandwidth_text(rounded(it.bandwidth_bps));
            // All of it: what is not said of the way back is as on the way there.
            let values = [
                format!("latency = \"{latency}\""),
                format!("jitter = \"{jitter}\""),
                format!("bandwidth = \"{bandwidth}\""),
            ];
            values.join(separator)
        };
        let (there, back) = (values(&pair.there, "\n"), values(&pair.back, ", "));
        let _ = writeln!(
            text,
            "\n[[link]]\nbetween = [\"{one}\", \"{other}\"]\n{there}\nback = {{ {back} }}"
        );
    }
    text
}

/// To three digits: there is no more in it.
fn rounded(number: u64) -> u64 {
    let unit = 10u64.pow(number.checked_ilog10().unwrap_or(0).saturating_sub(2));
    (number + unit / 2) / unit * unit
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::parse;

    #[test]
    fn what_was_measured_is_a_topology() {
        let node = |name: &str| NodeStatus {
            name: name.into(),
            address: "local".into(),
            pid: None,
            cpus: Vec::new(),
            paging: None,
            silent_ms: None,
            mem_mib: 128,
            resident_mib: 0,
            faults: crate::status::Faults {
                read: 0,
                write: 0,
                upgrade: 0,
                local: 0,
            },
            pages_in: 0,
            pages_out: 0,
            counters: Default::default(),
            latency: Default::default(),
        };
        let mut first = node("a");
        first.cpus.push(crate::status::Cpu { cpu: 0, tid: None });
        let status = Status {
            name: "x".into(),
            state: "running".into(),
            kernel: None,
            pid: 1,
            nodes: vec![first, node("b")],
            started: String::new(),
        };
        let pairs = [Pair {
            one: 0,
            other: 1,
            round_trip_ns: 3,
            there: Direction {
                latency_ns: 43_219,
                spread_ns: 2_004,
                asleep_ns: 70_000,
                bandwidth_bps: 1_234_567_890,
            },
            back: Direction {
                latency_ns: 1_000_000,
                spread_ns: 0,
                asleep_ns: 1_000_000,
                bandwidth_bps: 900_000,
            },
        }];
        let topology = parse("measured", &as_file(&status, &pairs)).unwrap();
        let (there, back) = (topology.links.get(0, 1), topology.links.get(1, 0));
        assert_eq!(
            (there.latency_ns, there.jitter_ns, there.bandwidth_bps),
            (43_200, 4_010, 1_230_000_000)
        );
        assert_eq!((back.latency_ns, back.jitter_ns), (1_000_000, 0));
        assert_eq!(back.bandwidth_bps, 900_000);
        assert_eq!(topology.nodes[1].cpus, 0);
    }

    #[test]
    fn answers_say_what_a_link_takes_and_questions_what_sleepers_do() {
        let probed = |arrived_ns: u64, answered_ns: u64| Probed {
            node: 0,
            sent_ns: 1_000,
            arrived_ns: 1_000 + arrived_ns,
            answered_ns: 1_000 + arrived_ns + answered_ns,
        };
        let asked: Vec<Probed> = (0..51).map(|_| probed(40, 900)).collect();
        // Between 80 and 120, evenly.
        let asked_back: Vec<Probed> = (0..41).map(|off| probed(7, 80 + off)).collect();
        let there = direction(&asked, &asked_back);
        assert_eq!((there.latency_ns, there.asleep_ns), (100, 40));
        assert_eq!(there.jitter_ns(), 20);
        // A topology may not have more jitter than latency.
        let (spread_ns, latency_ns) = (9, 10);
        let wild = Direction {
            latency_ns,
            spread_ns,
            ..Direction::default()
        };
        assert_eq!(wild.jitter_ns(), latency_ns);
    }

    #[test]
    fn numbers_are_rounded_to_three_digits() {
        for (number, expected) in [
            (0, 0),
            (7, 7),
            (123, 123),
            (1_236, 1_240),
            (99_951, 100_000),
        ] {
            assert_eq!(rounded(number), expected);
        }
    }
}
