//! The links of a guest, as text and as JSON.

use super::values::{bandwidth_text, loss_text, time_text};
use super::{Uplink, Ways};
use crate::status::aligned;
use crate::topology::show::bandwidth_json;
use crate::units;
use serde_json::{Value, json};
use span_api::guest::{ArrivalStats, Link, LinkStats};
use span_api::histogram::Histogram;
use std::collections::BTreeSet;

/// All links of a guest, as its nodes count.
#[derive(Debug, Clone)]
pub(crate) struct All {
    pub(crate) guest: String,
    pub(crate) names: Vec<String>,
    pub(crate) uplinks: Vec<String>,
    /// By node and node; empty while its node has not answered.
    pub(crate) stats: Vec<Vec<LinkStats>>,
}

/// Which links are shown.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shown {
    All,
    /// Both directions between two nodes.
    Pair(usize, usize),
    /// What goes through an uplink.
    Uplink(usize),
}

/// One direction of a link, as both ends count.
struct Direction<'a> {
    from: &'a str,
    to: &'a str,
    uplink: Option<&'a String>,
    stats: &'a LinkStats,
    arrived: ArrivalStats,
}

impl All {
    fn directions(&self, shown: Shown) -> Vec<Direction<'_>> {
        let mut all = Vec::new();
        for (from, stats) in self.stats.iter().enumerate() {
            for (to, stats) in stats.iter().enumerate().filter(|(to, _)| *to != from) {
                let is_shown = match shown {
                    Shown::All => true,
                    Shown::Pair(one, other) => [(one, other), (other, one)].contains(&(from, to)),
                    Shown::Uplink(number) => {
                        Uplink::of(stats.link).is_some_and(|uplink| uplink.number == number)
                    }
                };
                if is_shown {
                    all.push(Direction {
                        from: &self.names[from],
                        to: &self.names[to],
                        uplink: Uplink::name(&self.uplinks, stats.link),
                        stats,
                        arrived: self.arrived(from, to),
                    });
                }
            }
        }
        all
    }

    /// What has come that way: nothing while the node that it comes to has not answered.
    fn arrived(&self, from: usize, to: usize) -> ArrivalStats {
        let stats = self.stats.get(to).and_then(|stats| stats.get(from));
        stats.map(|stats| stats.arrived.clone()).unwrap_or_default()
    }

    /// Links that a change is about, as far as their nodes have answered.
    pub(super) fn changed(&self, ways: Ways, one_way: bool) -> Vec<Link> {
        let mut all = Vec::new();
        for (from, stats) in self.stats.iter().enumerate() {
            for (to, stats) in stats.iter().enumerate() {
                let there = match ways {
                    Ways::Pair(one, other) => match (usize::from(one), usize::from(other)) {
                        pair if pair == (from, to) => Some(true),
                        pair if pair == (to, from) => Some(false),
                        _ => None,
                    },
                    Ways::Uplink(number) => Uplink::of(stats.link)
                        .filter(|uplink| uplink.number == usize::from(number))
                        .map(|uplink| !uplink.back),
                };
                if there.is_some_and(|there| there || !one_way) {
                    all.push(stats.link);
                }
            }
        }
        all
    }

    pub(super) fn text(&self, shown: Shown) -> String {
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
        let directions = self.directions(shown);
        rows.extend(directions.iter().map(|direction| direction.cells().into()));
        if !self.uplinks.is_empty() {
            rows[0].push("UPLINK".into());
            for (row, direction) in rows[1..].iter_mut().zip(&directions) {
                row.push(direction.uplink.map_or("-", String::as_str).to_string());
            }
        }
        let mut text = aligned(&rows, 3);
        let totals = self.totals(shown);
        if !totals.is_empty() {
            let header = ["UPLINK", "FROM", "TO", "BANDWIDTH", "MESSAGES", "BYTES"];
            let mut rows = vec![header.map(String::from).to_vec()];
            rows.extend(totals.iter().map(|total| {
                vec![
                    total.name.clone(),
                    total.from.join(","),
                    total.to.join(","),
                    bandwidth_text(total.bandwidth_bps),
                    total.messages.to_string(),
                    units::bytes(total.bytes as f64),
                ]
            }));
            text += &format!("\n{}", aligned(&rows, 3));
        }
        text
    }

    pub(super) fn json(&self, shown: Shown) -> Value {
        let links = self.directions(shown);
        let links: Vec<Value> = links.iter().map(Direction::json).collect();
        let uplinks: Vec<Value> = self.totals(shown).iter().map(Total::json).collect();
        json!({ "name": self.guest, "links": links, "uplinks": uplinks })
    }

    /// Both directions of the uplinks that are shown.
    fn totals(&self, shown: Shown) -> Vec<Total<'_>> {
        let uplinks = Uplink::all(self.uplinks.len()).filter(|uplink| match shown {
            Shown::All => true,
            Shown::Pair(..) => false,
            Shown::Uplink(number) => uplink.number == number,
        });
        uplinks.map(|uplink| self.total(uplink)).collect()
    }

    fn total(&self, uplink: Uplink) -> Total<'_> {
        let (mut from, mut to) = (BTreeSet::new(), BTreeSet::new());
        let mut total = Total {
            name: &self.uplinks[uplink.number],
            from: Vec::new(),
            to: Vec::new(),
            bandwidth_bps: 0,
            messages: 0,
            bytes: 0,
        };
        for (one, stats) in self.stats.iter().enumerate() {
            for (other, stats) in stats.iter().enumerate() {
                if Uplink::of(stats.link) == Some(uplink) {
                    from.insert(one);
                    to.insert(other);
                    total.bandwidth_bps = stats.link.bandwidth_bps;
                    total.messages += stats.messages;
                    total.bytes += stats.bytes;
                }
            }
        }
        let name = |node: usize| self.names[node].as_str();
        total.from.extend(from.into_iter().map(name));
        total.to.extend(to.into_iter().map(name));
        total
    }
}

/// One direction of an uplink, and what all have sent through it.
struct Total<'a> {
    name: &'a String,
    from: Vec<&'a str>,
    to: Vec<&'a str>,
    bandwidth_bps: u64,
    messages: u64,
    bytes: u64,
}

impl Total<'_> {
    fn json(&self) -> Value {
        json!({
            "name": self.name, "from": self.from, "to": self.to,
            "bandwidth_bps": bandwidth_json(self.bandwidth_bps),
            "messages": self.messages, "bytes": self.bytes,
        })
    }
}

impl Direction<'_> {
    /// Of the table, in the order of its header.
    fn cells(&self) -> [String; 13] {
        let (stats, link) = (self.stats, self.stats.link);
        let time = |histogram: &Histogram| match histogram.count() {
            0 => "-".to_string(),
            _ => units::duration(histogram.percentile_ns(50)),
        };
        [
            self.from.to_string(),
            self.to.to_string(),
            if link.cut { "cut" } else { "up" }.into(),
            time_text(link.latency_ns),
            time_text(link.jitter_ns),
            bandwidth_text(link.bandwidth_bps),
            loss_text(link.loss_ppm),
            stats.messages.to_string(),
            units::bytes(stats.bytes as f64),
            time(&self.arrived.added),
            time(&self.arrived.error),
            stats.lost.to_string(),
            stats.dropped.to_string(),
        ]
    }

    fn json(&self) -> Value {
        let (stats, arrived, link) = (self.stats, &self.arrived, self.stats.link);
        json!({
            "from": self.from, "to": self.to, "cut": link.cut, "uplink": self.uplink,
            "latency_ns": link.latency_ns, "jitter_ns": link.jitter_ns,
            "bandwidth_bps": bandwidth_json(link.bandwidth_bps), "loss_ppm": link.loss_ppm,
            "messages": stats.messages, "bytes": stats.bytes, "delayed": arrived.delayed,
            "planned_ns": arrived.planned_ns, "added_ns": arrived.added_ns,
            "added": arrived.added, "error": arrived.error,
            "lost": stats.lost, "dropped": stats.dropped,
        })
    }
}
