//! What programs on two nodes cost in faults, and in time.

use super::UPSTREAM;
use crate::error::Result;
use crate::figures::{Figure, Unit};
use crate::samples::Samples;
use crate::setting::{NODE_MEMORY_MIB, Setting};
use span_tests::{Node, Status};

const GROUP: &str = "Two nodes, a CPU each";

pub(crate) fn measure(setting: &Setting) -> Result<Vec<Figure>> {
    let (pipes, execs) = (setting.effort.pipes, setting.effort.execs);
    let mut figures = program(
        setting,
        "pipe",
        "pipe round trip",
        Unit::Microseconds,
        pipes,
    )?;
    figures.extend(program(
        setting,
        "exec",
        "fork+exec",
        Unit::Milliseconds,
        execs,
    )?);
    Ok(figures)
}

/// What is counted, in what, and where a node has it.
type Counter = (&'static str, Unit, fn(&Node) -> u64);

/// Faults that ask another node.
pub(super) fn remote_faults(node: &Node) -> u64 {
    node.faults.read + node.faults.write + node.faults.upgrade
}

/// Each is added over all nodes, and divided by the rounds of the program.
const COUNTERS: [Counter; 3] = [
    ("asking another node", Unit::Faults, remote_faults),
    ("within a node", Unit::Faults, |node| node.faults.local),
    ("moved", Unit::Pages, |node| node.pages_in),
];

fn program(
    setting: &Setting,
    gauge: &str,
    name: &str,
    time: Unit,
    rounds: u32,
) -> Result<Vec<Figure>> {
    let count = rounds.to_string();
    let arguments = [gauge, &setting.khz, &count];
    let with_marks = [gauge, &setting.khz, &count, "marks"];
    let (mut upstream, mut span) = (Samples::default(), Samples::default());
    let mut counted = vec![Samples::default(); COUNTERS.len()];
    setting.repeat(name, || {
        let theirs = setting.upstream(2, 2 * NODE_MEMORY_MIB, &arguments)?;
        upstream.add(theirs.samples(gauge)?);
        let ours = setting.span_with_marks("a,b", &[], &with_marks, |_, before, after| {
            for ((_, _, of), samples) in COUNTERS.iter().zip(&mut counted) {
                samples.add(vec![difference(before, after, *of) / f64::from(rounds)]);
            }
        })?;
        span.add(ours.samples(gauge)?);
        Ok(())
    })?;
    let mut figures = vec![Figure::compared(
        GROUP, name, time, UPSTREAM, &upstream, &span,
    )];
    for ((what, unit, _), samples) in COUNTERS.iter().zip(&counted) {
        figures.push(Figure::alone(
            GROUP,
            format!("{name}: {what}"),
            *unit,
            samples,
        ));
    }
    Ok(figures)
}

/// How far a counter has come on all nodes together.
pub(super) fn difference(before: &Status, after: &Status, of: fn(&Node) -> u64) -> f64 {
    let sum = |status: &Status| status.nodes.iter().map(of).sum::<u64>();
    sum(after).saturating_sub(sum(before)) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::sample_node;

    #[test]
    fn counters_are_added_over_nodes() {
        let status = |read: [u64; 2], local: u64, pages_in: u64| -> Status {
            let nodes = read.map(|read| {
                let mut node = sample_node();
                node["pages_in"] = pages_in.into();
                node["faults"] =
                    serde_json::json!({"read": read, "write": 1, "upgrade": 2, "local": local});
                node
            });
            serde_json::from_value(serde_json::json!({
                "name": "x", "state": "running", "kernel": null, "nodes": nodes, "started": "",
            }))
            .unwrap()
        };
        let (before, after) = (status([1, 2], 5, 7), status([11, 32], 6, 9));
        let differences = COUNTERS.map(|(_, _, of)| difference(&before, &after, of));
        assert_eq!(differences, [40.0, 2.0, 4.0]);
    }
}
