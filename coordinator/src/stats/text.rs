//! Figures as text: a table of everything, and a line for each node and interval.

use super::figures::{FIGURES, Interval, Sample, latency};
use crate::status::{Latency, NodeStatus, aligned, headline, rfc3339, silent};
use crate::units::duration;
use span_api::histogram::Histogram;
use std::fmt::Write;

/// Percentiles that are shown, and how they are called.
const PERCENTILES: [(&str, u64); 4] = [("p50", 50), ("p90", 90), ("p99", 99), ("max", 100)];

/// Everything since the start: a row for each figure, a column for each node, and all together.
pub(super) fn table(sample: &Sample) -> String {
    let nodes = &sample.status.nodes;
    let mut header = vec![String::new()];
    header.extend(nodes.iter().map(|node| node.name.clone()));
    header.push("ALL".into());
    let mut rows = vec![header];
    let mut row = |name: String, cells: Vec<String>| {
        rows.push(std::iter::once(name).chain(cells).collect());
    };
    let resident = |node: &NodeStatus| node.counters.resident_pages;
    let figures = FIGURES.iter().map(|figure| (figure.key, figure.of));
    for (key, of) in figures.chain([("resident_pages", resident as fn(&NodeStatus) -> u64)]) {
        let counts: Vec<u64> = nodes.iter().map(of).collect();
        let all = counts.iter().fold(0, |sum: u64, n| sum.saturating_add(*n));
        let cells = counts.into_iter().chain([all]);
        row(
            key.replace('_', " "),
            cells.map(|n| n.to_string()).collect(),
        );
    }
    let mut all = Latency::default();
    for node in nodes {
        all.remote.add(&node.latency.remote);
        all.read.add(&node.latency.read);
        all.write.add(&node.latency.write);
        all.upgrade.add(&node.latency.upgrade);
    }
    for (kind, (name, _)) in all.kinds().iter().enumerate() {
        for (percentile, percent) in PERCENTILES {
            let latencies = nodes.iter().map(|node| &node.latency).chain([&all]);
            let cells = latencies.map(|latency| time(latency.kinds()[kind].1, percent));
            row(format!("{name} {percentile}"), cells.collect());
        }
    }
    let (head, rows) = (headline(&sample.status), aligned(&rows, 1));
    format!("{head}\n{rows}{}", silent(&sample.status))
}

/// A line for each node, with everything that `--json` has about the interval.
pub(super) fn lines(interval: Interval<'_>) -> String {
    let mut text = String::new();
    let time = rfc3339(interval.now.time);
    for (now, then) in interval.nodes() {
        let _ = write!(text, "{time} {}", now.name);
        for figure in FIGURES {
            let rate = interval.rate((now, then), figure.of);
            let _ = write!(text, " {}/s={rate:.1}", figure.key);
        }
        let remote = latency(now, then).remote;
        for (name, percent) in PERCENTILES {
            let us = remote.percentile_ns(percent) as f64 / 1000.0;
            let _ = write!(text, " {name}_us={us:.1}");
        }
        let _ = writeln!(text, " resident_pages={}", now.counters.resident_pages);
    }
    text
}

/// A percentile, for people.
pub(super) fn time(waits: &Histogram, percent: u64) -> String {
    match waits.count() {
        0 => "-".into(),
        _ => duration(waits.percentile_ns(percent)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::example;
    use super::*;

    #[test]
    fn the_table_has_all_figures_of_each_node_and_together() {
        let sample = Sample::now(example(7, &[30_000; 7]));
        let text = table(&sample);
        let words = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.unwrap_or_else(|| panic!("{name} in {text}"))[name.len()..]
                .trim()
                .to_string()
        };
        assert_eq!(
            words("faults read ").split_whitespace().collect::<Vec<_>>(),
            ["7", "0", "7"]
        );
        assert!(words("remote p99").contains("30 µs"));
        assert_eq!(
            words("upgrade max").split_whitespace().collect::<Vec<_>>(),
            ["-", "-", "-"]
        );
        for figure in FIGURES {
            words(&figure.key.replace('_', " "));
        }
    }

    #[test]
    fn a_line_is_made_of_names_and_numbers() {
        let sample = Sample::now(example(7, &[30_000; 7]));
        let text = lines(Interval {
            then: &sample,
            now: &sample,
        });
        assert_eq!(text.lines().count(), 2);
        for line in text.lines() {
            let mut words = line.split(' ').skip(2);
            assert!(
                words.all(|word| {
                    word.split_once('=')
                        .is_some_and(|(_, number)| number.parse::<f64>().is_ok())
                }),
                "{line}"
            );
        }
    }
}
