//! What becomes more with the number of nodes, and what does not.

use super::counts::{difference, remote_faults};
use crate::error::{Error, Result};
use crate::figures::{Figure, Unit};
use crate::samples::Samples;
use crate::setting::{Guest, Setting};
use span_tests::Status;
use std::time::Instant;

const GROUP: &str = "Scale: four CPUs and 256 MiB a node";

const NODES: [usize; 4] = [2, 4, 8, 16];
const CPUS: usize = 4;

#[derive(Debug, Default, Clone)]
struct Measured {
    boot: Samples,
    /// Of one node's processes that is not guest memory, in bytes.
    private: Samples,
    messages: Samples,
    fault: Samples,
}

pub(crate) fn measure(setting: &Setting) -> Result<Vec<Figure>> {
    let mut all = vec![Measured::default(); NODES.len()];
    let (few, many, rounds) = setting.effort.distance;
    setting.repeat("nodes", || {
        for (count, measured) in NODES.iter().zip(&mut all) {
            let names: Vec<String> = (0..*count).map(|node| format!("n{node}")).collect();
            let began = Instant::now();
            let guest = setting.guest(&names.join(","), CPUS, &[])?;
            measured.boot.add(vec![began.elapsed().as_nanos() as f64]);
            let before = (setting.status()?, messages(&guest)?);
            // A CPU of the second node and one of the last, neither of which is home of all that they use.
            let (here, there) = (CPUS, (count - 1) * CPUS);
            let there = if there == here { 0 } else { there };
            let numbers = [here, there, few as usize, many as usize, rounds as usize];
            let mut argv = vec![
                setting.gauge().to_string(),
                "distance".into(),
                setting.khz.clone(),
            ];
            argv.extend(numbers.map(|number| number.to_string()));
            guest.exec(&argv)?;
            let after = (setting.status()?, messages(&guest)?);
            let faults = difference(&before.0, &after.0, remote_faults)
                + difference(&before.0, &after.0, |node| node.counters.pages_ahead);
            measured.messages.add(vec![(after.1 - before.1) / faults]);
            let waited = difference(&before.0, &after.0, |node| node.counters.fault_wait_ns);
            let faults = difference(&before.0, &after.0, remote_faults);
            measured.fault.add(vec![waited / faults]);
            measured.private.add(private(&after.0)?);
            guest.end()?;
        }
        Ok(())
    })?;
    let mut figures = Vec::new();
    for (count, measured) in NODES.iter().zip(&all) {
        let (cpus, links) = (count * CPUS, count - 1);
        let name =
            |what: &str| format!("{count} nodes, {cpus} CPUs, {links} connections each: {what}");
        let (ms, us) = (Unit::Milliseconds, Unit::Microseconds);
        let alone = |what, unit, samples| Figure::alone(GROUP, name(what), unit, samples);
        figures.extend([
            alone("boot", ms, &measured.boot),
            alone("a node's own memory", Unit::Mebibytes, &measured.private),
            alone(
                "messages for a page that is asked for",
                Unit::Messages,
                &measured.messages,
            ),
            alone("mean wait in a fault", us, &measured.fault),
        ]);
    }
    Ok(figures)
}

/// Of all links, both ways.
fn messages(guest: &Guest<'_>) -> Result<f64> {
    let links = guest.links()?;
    let links = links["links"].as_array().into_iter().flatten();
    Ok(links.filter_map(|link| link["messages"].as_f64()).sum())
}

/// What each node's process has in memory that is not the guest's.
fn private(status: &Status) -> Result<Vec<f64>> {
    let of = |node: &span_tests::Node| {
        let pid = node.pid.unwrap_or_default();
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| -> Option<f64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Some((field("VmRSS:")? - field("RssShmem:")?) * 1024.0)
    };
    let all: Option<Vec<f64>> = status.nodes.iter().map(of).collect();
    all.ok_or_else(|| Error::Failed("a node's process cannot be looked at".into()))
}
