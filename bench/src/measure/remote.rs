//! Faults on pages that another node has, against what this host takes to move a page at all.

use crate::error::Result;
use crate::figures::{Figure, Unit};
use crate::samples::{Samples, less, median};
use crate::setting::Setting;
use span_tests::{Node, Status};
use std::collections::BTreeMap;

const GROUP: &str = "Remote faults, two nodes";
const UNIT: Unit = Unit::Microseconds;

/// The gauge's floors, and what they are called here.
const FLOORS: [(&str, &str); 2] = [("memory", "shared memory"), ("socket", "unix socket")];

const REMOTE: [&str; 3] = ["read", "write", "upgrade"];
/// A fault with everything but another node.
const LOCAL: &str = "local";

/// The node of CPU 1, which the gauge faults on.
const NODES: &str = "a,b";
const FAULTING: usize = 1;

#[derive(Debug, Default)]
struct Measured {
    floors: BTreeMap<&'static str, Samples>,
    floors_apart: BTreeMap<&'static str, Samples>,
    /// As the program sees them, by name.
    faults: BTreeMap<&'static str, Samples>,
    /// As the node has counted: mean wait, a value for each repetition.
    waits: BTreeMap<&'static str, Samples>,
}

pub(crate) fn measure(setting: &Setting) -> Result<Vec<Figure>> {
    let mut measured = Measured::default();
    setting.repeat("remote faults", || repetition(setting, &mut measured))?;
    Ok(figures(&measured))
}

fn repetition(setting: &Setting, measured: &mut Measured) -> Result<()> {
    let turns = setting.effort.floor.to_string();
    for (floor, _) in FLOORS {
        let outcome = setting.host(&[floor, &setting.khz, &turns])?;
        let samples = measured.floors.entry(floor).or_default();
        samples.add(outcome.samples(floor)?);
        if setting.host_cpus > 1 {
            let outcome = setting.host(&[floor, &setting.khz, &turns, "apart"])?;
            let samples = measured.floors_apart.entry(floor).or_default();
            samples.add(outcome.samples(floor)?);
        }
    }
    let (pages, rounds) = setting.effort.remote;
    let (pages, rounds) = (pages.to_string(), rounds.to_string());
    let mut waits: BTreeMap<String, Waits> = BTreeMap::new();
    let outcome = setting.span_with_marks(
        NODES,
        &["remote", &setting.khz, &pages, &rounds],
        |name, before, after| waits.entry(name.into()).or_default().add(before, after),
    )?;
    // What it takes to time an access that is no fault.
    let resident = median(&outcome.samples("resident")?).unwrap_or(0.0);
    for name in REMOTE.into_iter().chain([LOCAL]) {
        let net = less(&outcome.samples(name)?, resident);
        measured.faults.entry(name).or_default().add(net);
        if let Some(mean_ns) = waits.get(name).and_then(Waits::mean_ns) {
            measured.waits.entry(name).or_default().add(vec![mean_ns]);
        }
    }
    Ok(())
}

/// Faults of a node, and how long its CPUs waited in them.
#[derive(Debug, Default)]
struct Waits {
    faults: u64,
    wait_ns: u64,
}

impl Waits {
    fn add(&mut self, before: &Status, after: &Status) {
        let faults = |node: &Node| {
            node.faults.read + node.faults.write + node.faults.upgrade + node.faults.local
        };
        let (before, after) = (&before.nodes[FAULTING], &after.nodes[FAULTING]);
        self.faults += faults(after).saturating_sub(faults(before));
        let wait_ns = |node: &Node| node.counters.fault_wait_ns;
        self.wait_ns += wait_ns(after).saturating_sub(wait_ns(before));
    }

    fn mean_ns(&self) -> Option<f64> {
        (self.faults > 0).then(|| self.wait_ns as f64 / self.faults as f64)
    }
}

fn figures(measured: &Measured) -> Vec<Figure> {
    let of = |map: &BTreeMap<&str, Samples>, name: &str| map.get(name).cloned().unwrap_or_default();
    let against_floors = |title: String, span: &Samples| {
        FLOORS.map(|(floor, against)| {
            let floor = of(&measured.floors, floor);
            Figure::compared(GROUP, title.clone(), UNIT, against, &floor, span)
        })
    };
    let mut figures = Vec::new();
    for name in REMOTE {
        let span = of(&measured.faults, name);
        figures.extend(against_floors(format!("{name} fault"), &span));
    }
    for name in REMOTE {
        let span = of(&measured.waits, name);
        figures.extend(against_floors(
            format!("{name} fault, mean wait for the pager"),
            &span,
        ));
    }
    let (faults, waits) = (of(&measured.faults, LOCAL), of(&measured.waits, LOCAL));
    figures.push(Figure::alone(
        GROUP,
        "fault that asks nobody",
        UNIT,
        &faults,
    ));
    let name = "fault that asks nobody, mean wait for the pager";
    figures.push(Figure::alone(GROUP, name, UNIT, &waits));
    for (floor, name) in FLOORS {
        let samples = of(&measured.floors_apart, floor);
        let name = format!("floor on two host CPUs: {name}");
        figures.push(Figure::floor(GROUP, name, UNIT, &samples));
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_those_of_the_node_that_faults() {
        let status = |faults: u64, wait_ns: u64| -> Status {
            let node = |factor: u64| {
                serde_json::json!({
                    "name": "a", "address": "local", "pid": 1, "cpus": [], "mem_mib": 1,
                    "resident_mib": 1, "pages_in": 0, "pages_out": 0,
                    "faults": {"read": faults * factor, "write": 0, "upgrade": 0, "local": 0},
                    "counters": {"fault_wait_ns": wait_ns * factor},
                })
            };
            serde_json::from_value(serde_json::json!({
                "name": "x", "state": "running", "kernel": null, "nodes": [node(50), node(1)],
                "started": "",
            }))
            .unwrap()
        };
        let mut waits = Waits::default();
        assert_eq!(waits.mean_ns(), None);
        waits.add(&status(10, 1000), &status(20, 5000));
        waits.add(&status(30, 6000), &status(40, 8000));
        assert_eq!(waits.mean_ns(), Some(300.0));
    }
}
