//! What there is to see of each node, and how it changes from one sample to the next.

use crate::status::{Latency, NodeStatus, Status, rfc3339};
use serde_json::{Map, Value, json};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// Something that a node counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Figure {
    /// Its name in JSON and in lines for programs.
    pub(super) key: &'static str,
    pub(super) of: fn(&NodeStatus) -> u64,
}

/// Only ever grow.
pub(super) const FIGURES: [Figure; 21] = [
    figure("faults_read", |node| node.faults.read),
    figure("faults_write", |node| node.faults.write),
    figure("faults_upgrade", |node| node.faults.upgrade),
    figure("faults_local", |node| node.faults.local),
    figure("fault_wait_ns", |node| node.counters.fault_wait_ns),
    figure("pages_in", |node| node.pages_in),
    figure("pages_out", |node| node.pages_out),
    figure("pages_ahead", |node| node.counters.pages_ahead),
    figure("bytes_in", |node| node.counters.bytes_received),
    figure("bytes_out", |node| node.counters.bytes_sent),
    figure("retries", |node| node.counters.retries),
    figure("invalidations", |node| node.counters.invalidations),
    figure("ipis_sent", |node| node.counters.ipis_sent),
    figure("ipis_received", |node| node.counters.ipis_received),
    figure("host_calls_served", |node| node.counters.host_calls_served),
    figure("host_calls_forwarded", |node| {
        node.counters.host_calls_forwarded
    }),
    figure("stub_faults", |node| node.counters.stub_faults),
    figure("stub_kicks", |node| node.counters.stub_kicks),
    figure("evicted_copies", |node| node.counters.evicted_copies),
    figure("evicted_pages", |node| node.counters.evicted_pages),
    figure("room_waits", |node| node.counters.room_waits),
];

const fn figure(key: &'static str, of: fn(&NodeStatus) -> u64) -> Figure {
    Figure { key, of }
}

/// Faults that asked another node.
pub(super) fn remote_faults(node: &NodeStatus) -> u64 {
    let faults = &node.faults;
    faults.read + faults.write + faults.upgrade
}

/// How a guest was at one time.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) status: Status,
    pub(super) time: SystemTime,
    at: Instant,
}

impl Sample {
    pub(super) fn now(status: Status) -> Self {
        Self {
            status,
            time: SystemTime::now(),
            at: Instant::now(),
        }
    }

    /// As JSON, without what takes two samples.
    pub(super) fn json(&self) -> Value {
        let nodes = self.status.nodes.iter().map(|node| node_json(node).into());
        self.with_nodes(nodes.collect())
    }

    fn with_nodes(&self, nodes: Vec<Value>) -> Value {
        json!({
            "name": self.status.name,
            "state": self.status.state,
            "time": rfc3339(self.time),
            "nodes": nodes,
        })
    }
}

fn node_json(node: &NodeStatus) -> Map<String, Value> {
    let totals = FIGURES.map(|figure| (figure.key.to_string(), (figure.of)(node).into()));
    let mut object = Map::new();
    object.insert("name".into(), node.name.clone().into());
    object.insert("totals".into(), Map::from_iter(totals).into());
    object.insert("latency".into(), json!(node.latency));
    object.insert("silent_ms".into(), node.silent_ms.into());
    object.insert("resident_pages".into(), node.counters.resident_pages.into());
    object
}

/// From one sample to the next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Interval<'a> {
    pub(super) then: &'a Sample,
    pub(super) now: &'a Sample,
}

impl Interval<'_> {
    pub(super) fn seconds(&self) -> f64 {
        // Two samples never come in the same instant; a division by zero would still be no number.
        let length = self.now.at.saturating_duration_since(self.then.at);
        length.max(Duration::from_nanos(1)).as_secs_f64()
    }

    /// The nodes as they are, and as they were.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (&NodeStatus, &NodeStatus)> {
        self.now.status.nodes.iter().zip(&self.then.status.nodes)
    }

    /// What was counted per second.
    pub(super) fn rate(
        &self,
        (now, then): (&NodeStatus, &NodeStatus),
        of: fn(&NodeStatus) -> u64,
    ) -> f64 {
        of(now).saturating_sub(of(then)) as f64 / self.seconds()
    }

    pub(super) fn json(&self) -> Value {
        let nodes = self.nodes().map(|(now, then)| {
            let rates = FIGURES.map(|figure| {
                let rate = self.rate((now, then), figure.of);
                (figure.key.to_string(), json!((rate * 10.0).round() / 10.0))
            });
            let mut object = node_json(now);
            object.insert("rates".into(), Map::from_iter(rates).into());
            object.insert("latency_interval".into(), json!(latency(now, then)));
            object.into()
        });
        let mut object = self.now.with_nodes(nodes.collect());
        object["interval_s"] = json!((self.seconds() * 1000.0).round() / 1000.0);
        object
    }
}

/// Of the faults that ended between two samples.
pub(super) fn latency(now: &NodeStatus, then: &NodeStatus) -> Latency {
    let (now, then) = (&now.latency, &then.latency);
    Latency {
        remote: now.remote.since(&then.remote),
        read: now.read.since(&then.read),
        write: now.write.since(&then.write),
        upgrade: now.upgrade.since(&then.upgrade),
    }
}

/// Two nodes of a guest, of which the first has done something.
#[cfg(test)]
pub(super) fn example(faults_read: u64, waited_ns: &[u64]) -> Status {
    use crate::status::{Counters, Cpu, Faults};
    let node = |name: &str, faults_read: u64, waited_ns: &[u64]| {
        let mut waits = span_api::guest::Waits::default();
        waited_ns.iter().for_each(|ns| waits.read.record(*ns));
        NodeStatus {
            name: name.into(),
            address: "local".into(),
            pid: Some(1),
            cpus: vec![Cpu { cpu: 0, tid: None }],
            paging: None,
            silent_ms: None,
            mem_mib: 256,
            resident_mib: 1,
            faults: Faults {
                read: faults_read,
                write: 0,
                upgrade: 0,
                local: 0,
            },
            pages_in: faults_read,
            pages_out: 0,
            counters: Counters {
                bytes_received: faults_read * 4096,
                resident_pages: 256,
                ..Counters::default()
            },
            latency: waits.into(),
        }
    };
    Status {
        name: "guest".into(),
        state: "running".into(),
        kernel: Some("7.0".into()),
        pid: 1,
        nodes: vec![node("a", faults_read, waited_ns), node("b", 0, &[])],
        started: "2026-01-01T00:00:00Z".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_seconds_apart() -> (Sample, Sample) {
        let then = Sample::now(example(100, &[1_000_000; 100]));
        let mut now = Sample::now(example(
            160,
            &[[1_000_000; 100].as_slice(), &[9_000; 60]].concat(),
        ));
        now.at = then.at + Duration::from_secs(2);
        (then, now)
    }

    #[test]
    fn rates_and_latencies_are_of_the_interval_and_totals_are_not() {
        let (then, now) = two_seconds_apart();
        let interval = Interval {
            then: &then,
            now: &now,
        };
        let json = interval.json();
        assert_eq!(json["interval_s"], 2.0);
        let a = &json["nodes"][0];
        assert_eq!(a["totals"]["faults_read"], 160);
        assert_eq!(a["rates"]["faults_read"], 30.0);
        assert_eq!(a["rates"]["bytes_in"], 30.0 * 4096.0);
        assert_eq!(a["latency"]["remote"]["count"], 160);
        assert_eq!(a["latency_interval"]["remote"]["count"], 60);
        assert!(a["latency"]["read"]["p50_ns"].as_u64().unwrap() >= 1_000_000);
        assert!(a["latency_interval"]["read"]["p99_ns"].as_u64().unwrap() < 11_000);
        assert_eq!(json["nodes"][1]["rates"]["faults_read"], 0.0);
    }

    #[test]
    fn one_sample_has_no_rates() {
        let json = Sample::now(example(3, &[])).json();
        assert_eq!(json["nodes"][0]["totals"]["faults_read"], 3);
        assert_eq!(json["nodes"][0]["resident_pages"], 256);
        assert!(json["nodes"][0].get("rates").is_none() && json.get("interval_s").is_none());
    }

    #[test]
    fn no_two_figures_have_one_name() {
        let keys: std::collections::BTreeSet<_> = FIGURES.iter().map(|figure| figure.key).collect();
        assert_eq!(keys.len(), FIGURES.len());
    }
}
