//! What becomes more with the number of nodes, and what does not.

use super::counts::{difference, remote_faults};
use crate::error::{Error, Result};
use crate::figures::{Figure, Unit};
use crate::samples::Samples;
use crate::setting::{Guest, Setting};
use span_plot::{Panel, Series};
use span_tests::Status;
use std::time::Instant;

const GROUP: &str = "Scale: 256 MiB a node";

const NODES: [usize; 5] = [1, 2, 4, 8, 16];
/// Of each node.
const CPUS: usize = 4;

/// What is looked at, as its figure is called.
const BOOT: &str = "boot";
const OWN_MEMORY: &str = "a node's own memory";
const MESSAGES: &str = "messages for a page that is asked for";
const WAIT: &str = "mean wait in a fault";

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
            if *count == 1 {
                // Nobody to ask.
                measured.private.add(private(&setting.status()?)?);
                guest.end()?;
                continue;
            }
            let before = (setting.status()?, messages(&guest)?);
            // A CPU of the second node and one of the last; where there are three, the first is home of what they use.
            let (here, there) = (CPUS, (count - 1) * CPUS);
            let there = if there == here { 0 } else { there };
            let home = 0;
            let numbers = [
                here,
                there,
                home,
                few as usize,
                many as usize,
                rounds as usize,
            ];
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
        let (ms, us) = (Unit::Milliseconds, Unit::Microseconds);
        let alone = |what, unit, samples| Figure::alone(GROUP, name(*count, what), unit, samples);
        figures.extend([
            alone(BOOT, ms, &measured.boot),
            alone(OWN_MEMORY, Unit::Mebibytes, &measured.private),
        ]);
        if *count > 1 {
            figures.push(alone(MESSAGES, Unit::Messages, &measured.messages));
            figures.push(alone(WAIT, us, &measured.fault));
        }
    }
    Ok(figures)
}

fn name(count: usize, what: &str) -> String {
    let (cpus, links) = (count * CPUS, count - 1);
    let nodes = if count == 1 { "node" } else { "nodes" };
    format!("{count} {nodes}, CPUs: {cpus}, connections of each: {links}; {what}")
}

/// A plot of these figures, over the number of nodes; `None` if there are none.
pub(crate) fn plot(figures: &[Figure]) -> Result<Option<String>> {
    let measured = |what: &str| {
        let point = |count: &usize| {
            let name = name(*count, what);
            let mut all = figures.iter();
            let figure = all.find(|figure| figure.group() == GROUP && figure.name() == name)?;
            Some((*count as f64, figure.medians().1?))
        };
        NODES.iter().filter_map(point).collect::<Vec<_>>()
    };
    if measured(BOOT).is_empty() {
        return Ok(None);
    }
    let panels = [
        (BOOT, Unit::Milliseconds),
        (OWN_MEMORY, Unit::Mebibytes),
        (MESSAGES, Unit::Messages),
        (WAIT, Unit::Microseconds),
    ]
    .map(|(what, unit)| Panel {
        title: match unit {
            Unit::Messages => what.into(),
            unit => format!("{what} ({})", unit.name()),
        },
        series: vec![Series {
            name: "measured".into(),
            points: measured(what),
        }],
    });
    let title = format!("{GROUP}, CPUs of each: {CPUS}");
    Ok(Some(span_plot::lines(&title, "nodes", &panels)?))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_is_plotted() {
        let samples = |value: f64| {
            let mut samples = Samples::default();
            samples.add(vec![value]);
            samples
        };
        let mut figures = Vec::new();
        assert!(plot(&figures).unwrap().is_none());
        for count in NODES {
            for (what, unit) in [
                (BOOT, Unit::Milliseconds),
                (OWN_MEMORY, Unit::Mebibytes),
                (MESSAGES, Unit::Messages),
                (WAIT, Unit::Microseconds),
            ] {
                let samples = samples(count as f64 * 1e9);
                figures.push(Figure::alone(GROUP, name(count, what), unit, &samples));
            }
        }
        let plot = plot(&figures).unwrap().unwrap();
        assert_eq!(plot.matches("<circle").count(), 4 * NODES.len());
        assert!(plot.contains("boot (ms)"), "{plot}");
    }
}
