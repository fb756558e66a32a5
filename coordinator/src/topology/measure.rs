//! What the links of a running guest take: its nodes send each other questions and bulk, through the connections that
//! pages move on, one at a time.

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

/// Questions for each pair of nodes, of which the median counts. The first are thrown away.
const QUESTIONS: usize = 101;
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
    bandwidth_bps: u64,
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
    let mut answers = Vec::new();
    for _ in 0..QUESTIONS {
        tokio::time::sleep(PAUSE).await;
        answers.push(prober.probe(one, other, 0).await?);
    }
    let answers = &answers[QUESTIONS_FIRST..];
    let of = |of: fn(&Probed) -> u64| median(answers.iter().map(of).collect());
    let mut pair = Pair {
        one,
        other,
        round_trip_ns: of(|it| it.answered_ns.saturating_sub(it.sent_ns)),
        there: Direction {
            latency_ns: of(|it| it.arrived_ns.saturating_sub(it.sent_ns)),
            bandwidth_bps: 0,
        },
        back: Direction {
            latency_ns: of(|it| it.answered_ns.saturating_sub(it.arrived_ns)),
            bandwidth_bps: 0,
        },
    };
    pair.there.bandwidth_bps = bandwidth(prober, one, other, pair.there.latency_ns).await?;
    pair.back.bandwidth_bps = bandwidth(prober, other, one, pair.back.latency_ns).await?;
    Ok(pair)
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
    let pair = |pair: &Pair| {
        json!({
            "from": name(pair.one), "to": name(pair.other), "round_trip_ns": pair.round_trip_ns,
            "latency_ns": pair.there.latency_ns, "bandwidth_bps": pair.there.bandwidth_bps,
            "back": {
                "latency_ns": pair.back.latency_ns, "bandwidth_bps": pair.back.bandwidth_bps,
            },
        })
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
        let values = |direction: &Direction| {
            let latency = time_text(rounded(direction.latency_ns));
            let bandwidth = bandwidth_text(rounded(direction.bandwidth_bps));
            (latency, bandwidth)
        };
        let (latency, bandwidth) = values(&pair.there);
        let _ = write!(
            text,
            "\n[[link]]\nbetween = [\"{one}\", \"{other}\"]\nlatency = \"{latency}\"\nbandwidth = \"{bandwidth}\"\n"
        );
        let (latency, bandwidth) = values(&pair.back);
        let _ = writeln!(
            text,
            "back = {{ latency = \"{latency}\", bandwidth = \"{bandwidth}\" }}"
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
                bandwidth_bps: 1_234_567_890,
            },
            back: Direction {
                latency_ns: 1_000_000,
                bandwidth_bps: 900_000,
            },
        }];
        let topology = parse("measured", &as_file(&status, &pairs)).unwrap();
        let (there, back) = (topology.links.get(0, 1), topology.links.get(1, 0));
        assert_eq!(
            (there.latency_ns, there.bandwidth_bps),
            (43_200, 1_230_000_000)
        );
        assert_eq!((back.latency_ns, back.bandwidth_bps), (1_000_000, 900_000));
        assert_eq!(topology.nodes[1].cpus, 0);
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
