//! The links of a guest, as text and as JSON.

use super::values::{bandwidth_text, loss_text, time_text};
use crate::status::aligned;
use crate::units;
use serde_json::{Value, json};
use span_api::guest::{ArrivalStats, Link, LinkStats};

/// All links of a guest, as its nodes count.
#[derive(Debug, Clone)]
pub(crate) struct All {
    pub(crate) guest: String,
    pub(crate) names: Vec<String>,
    /// By node and node; empty while its node has not answered.
    pub(crate) stats: Vec<Vec<LinkStats>>,
}

/// One direction of a link, as both ends count.
struct Direction<'a> {
    from: usize,
    to: usize,
    stats: &'a LinkStats,
    arrived: ArrivalStats,
}

impl All {
    /// Those in both directions between the nodes of a pair, or all.
    fn directions(&self, pair: Option<(usize, usize)>) -> Vec<Direction<'_>> {
        let mut all = Vec::new();
        for (from, stats) in self.stats.iter().enumerate() {
            all.extend(stats.iter().enumerate().map(|(to, stats)| Direction {
                from,
                to,
                stats,
                arrived: self.arrived(from, to),
            }));
        }
        all.retain(|Direction { from, to, .. }| {
            from != to && pair.is_none_or(|pair| pair == (*from, *to) || pair == (*to, *from))
        });
        all
    }

    /// What has come that way: nothing while the node that it comes to has not answered.
    fn arrived(&self, from: usize, to: usize) -> ArrivalStats {
        let stats = self.stats.get(to).and_then(|stats| stats.get(from));
        stats.map(|stats| stats.arrived.clone()).unwrap_or_default()
    }

    pub(super) fn text(&self, pair: Option<(usize, usize)>) -> String {
        let header = [
            "FROM",
            "TO",
            "STATE",
            "LATENCY",
            "JITTER",
            "BANDWIDTH",
            "LOSS",
            "MESSAGES",
            "BYTES",
            "ADDED P50",
            "ERROR P50",
            "LOST",
            "DROPPED",
        ];
        let mut rows = vec![header.map(String::from).to_vec()];
        for direction in self.directions(pair) {
            let Direction {
                from,
                to,
                stats,
                arrived,
            } = direction;
            let Link {
                latency_ns,
                jitter_ns,
                bandwidth_bps,
                loss_ppm,
                cut,
            } = stats.link;
            let time = |histogram: &span_api::histogram::Histogram| match histogram.count() {
                0 => "-".to_string(),
                _ => units::duration(histogram.percentile_ns(50)),
            };
            rows.push(vec![
                self.names[from].clone(),
                self.names[to].clone(),
                if cut { "cut" } else { "up" }.into(),
                time_text(latency_ns),
                time_text(jitter_ns),
                bandwidth_text(bandwidth_bps),
                loss_text(loss_ppm),
                stats.messages.to_string(),
                units::bytes(stats.bytes as f64),
                time(&arrived.added),
                time(&arrived.error),
                stats.lost.to_string(),
                stats.dropped.to_string(),
            ]);
        }
        aligned(&rows, 3)
    }

    pub(super) fn json(&self, pair: Option<(usize, usize)>) -> Value {
        let link = |direction: Direction<'_>| {
            let Direction {
                from,
                to,
                stats,
                arrived,
            } = direction;
            let link = stats.link;
            json!({
                "from": self.names[from], "to": self.names[to], "cut": link.cut,
                "latency_ns": link.latency_ns, "jitter_ns": link.jitter_ns,
                "bandwidth_bps": crate::topology::show::bandwidth_json(link.bandwidth_bps),
                "loss_ppm": link.loss_ppm,
                "messages": stats.messages, "bytes": stats.bytes, "delayed": arrived.delayed,
                "planned_ns": arrived.planned_ns, "added_ns": arrived.added_ns,
                "added": arrived.added, "error": arrived.error,
                "lost": stats.lost, "dropped": stats.dropped,
            })
        };
        let links: Vec<Value> = self.directions(pair).into_iter().map(link).collect();
        json!({ "name": self.guest, "links": links })
    }
}
