//! What the links between nodes cost.

pub(crate) mod command;
pub(crate) mod show;
pub(crate) mod values;

use crate::failure::Failure;
use serde::{Deserialize, Serialize};
use span_api::guest::Link;
use std::collections::BTreeSet;

/// Each pair of nodes, in each direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Links {
    nodes: usize,
    /// By node and node.
    all: Vec<Link>,
    /// What chance decides follows from it.
    pub(crate) seed: u64,
    /// The names of uplinks. Each is two queues: [`Uplink::queue`].
    pub(crate) uplinks: Vec<String>,
}

/// One direction of an uplink, by its number among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Uplink {
    pub(crate) number: usize,
    pub(crate) back: bool,
}

impl Uplink {
    /// Both directions of each.
    pub(crate) fn all(uplinks: usize) -> impl Iterator<Item = Self> {
        (0..uplinks).flat_map(|number| [false, true].map(|back| Self { number, back }))
    }

    /// The one whose queue a link stands in.
    pub(crate) fn of(link: Link) -> Option<Self> {
        link.queue.map(|queue| Self {
            number: usize::from(queue / 2),
            back: queue % 2 == 1,
        })
    }

    pub(crate) fn queue(self) -> u16 {
        2 * self.number as u16 + u16::from(self.back)
    }

    /// The name of the one that a link goes through.
    pub(crate) fn name(uplinks: &[String], link: Link) -> Option<&String> {
        uplinks.get(Self::of(link)?.number)
    }
}

impl Links {
    /// That cost nothing.
    pub(crate) fn free(nodes: usize) -> Self {
        Self {
            nodes,
            all: vec![Link::default(); nodes * nodes],
            seed: 0,
            uplinks: Vec::new(),
        }
    }

    /// From the value of `--latency`.
    pub(crate) fn new(latency: Option<&str>, names: &[String]) -> Result<Self, Failure> {
        let nodes = names.len();
        let mut links = Self::free(nodes);
        let Some(value) = latency else {
            return Ok(links);
        };
        if !value.contains('=') {
            let latency_ns = latency_ns(value, value)?;
            for from in 0..nodes {
                for to in 0..nodes {
                    links.set_both(from, to, latency_ns);
                }
            }
            return Ok(links);
        }
        for item in value.split(',') {
            let Some((pair, time)) = item.split_once('=') else {
                return Err(refused(value, format_args!("{item:?} is not A-B=TIME")));
            };
            let (from, to) =
                ends(pair, names).map_err(|why| refused(value, format_args!("{why}")))?;
            links.set_both(from, to, latency_ns(value, time)?);
        }
        Ok(links)
    }

    fn set_both(&mut self, one: usize, other: usize, latency_ns: u64) {
        for (from, to) in [(one, other), (other, one)] {
            let link = Link {
                latency_ns,
                ..Link::default()
            };
            self.set(from, to, link);
        }
    }

    /// The way from a node to itself costs nothing.
    pub(crate) fn set(&mut self, from: usize, to: usize, link: Link) {
        if from != to {
            self.all[from * self.nodes + to] = link;
        }
    }

    pub(crate) fn get(&self, from: usize, to: usize) -> Link {
        self.all[from * self.nodes + to]
    }

    /// Links that go through an uplink, one way or both: from which node to which.
    pub(crate) fn through(
        &self,
        number: usize,
        both: bool,
    ) -> impl Iterator<Item = (usize, usize)> {
        let ways = (0..self.nodes * self.nodes).map(|at| (at / self.nodes, at % self.nodes));
        ways.filter(move |(from, to)| {
            let uplink = Uplink::of(self.get(*from, *to));
            uplink.is_some_and(|uplink| uplink.number == number && (both || !uplink.back))
        })
    }

    /// Which nodes send through a direction of an uplink, and to which.
    pub(crate) fn ends(&self, uplink: Uplink) -> (BTreeSet<usize>, BTreeSet<usize>) {
        let through = self.through(uplink.number, true);
        through
            .filter(|(from, to)| Uplink::of(self.get(*from, *to)) == Some(uplink))
            .unzip()
    }

    /// From a node to each.
    pub(crate) fn of_node(&self, node: usize) -> Vec<Link> {
        self.all[node * self.nodes..][..self.nodes].to_vec()
    }
}

/// What is to change about a direction of a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Change {
    pub(crate) latency_ns: Option<u64>,
    pub(crate) jitter_ns: Option<u64>,
    pub(crate) bandwidth_bps: Option<u64>,
    pub(crate) loss_ppm: Option<u32>,
    pub(crate) cut: Option<bool>,
}

/// Which links a change is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ways {
    Pair(u16, u16),
    /// All that go through an uplink.
    Uplink(u16),
}

impl Change {
    /// Of one pair of nodes: as [`Self::apply`], but its bandwidth is not its own if it goes through an uplink.
    pub(crate) fn apply_to_pair(self, link: Link, uplinks: &[String]) -> Result<Link, String> {
        match Uplink::name(uplinks, link) {
            Some(name) if self.bandwidth_bps.is_some() => Err(format!(
                "all that goes through the uplink {name} shares its bandwidth: change it with --uplink {name}"
            )),
            _ => self.apply(link),
        }
    }

    /// The link as it is then, or why it cannot be so.
    pub(crate) fn apply(self, link: Link) -> Result<Link, String> {
        let link = Link {
            latency_ns: self.latency_ns.unwrap_or(link.latency_ns),
            jitter_ns: self.jitter_ns.unwrap_or(link.jitter_ns),
            bandwidth_bps: self.bandwidth_bps.unwrap_or(link.bandwidth_bps),
            loss_ppm: self.loss_ppm.unwrap_or(link.loss_ppm),
            cut: self.cut.unwrap_or(link.cut),
            queue: link.queue,
        };
        if link.jitter_ns > link.latency_ns {
            return Err(format!(
                "a jitter of {} is more than the latency of {}",
                values::time_text(link.jitter_ns),
                values::time_text(link.latency_ns)
            ));
        }
        Ok(link)
    }
}

fn refused(value: &str, why: std::fmt::Arguments<'_>) -> Failure {
    Failure::usage(format!("--latency {value}: {why}"))
}

fn latency_ns(value: &str, time: &str) -> Result<u64, Failure> {
    values::time_ns(time).map_err(|why| refused(value, format_args!("{why}")))
}

/// The two nodes of `A-B`. Names may have a `-` themselves.
pub(crate) fn ends(pair: &str, names: &[impl AsRef<str>]) -> Result<(usize, usize), String> {
    let index = |name: &str| names.iter().position(|other| other.as_ref() == name);
    let mut found = pair
        .match_indices('-')
        .filter_map(|(at, _)| Some((index(&pair[..at])?, index(&pair[at + 1..])?)));
    match (found.next(), found.next()) {
        (Some((from, to)), None) if from != to => Ok((from, to)),
        (Some(_), None) => Err(format!("{pair} is one node")),
        (Some(_), Some(_)) => Err(format!("{pair} can be read as more than one pair of nodes")),
        (None, _) => {
            let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
            let names = names.join(", ");
            Err(format!("{pair:?} is no pair A-B of the nodes {names}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &str) -> Vec<String> {
        list.split(',').map(str::to_owned).collect()
    }

    fn latencies(value: &str, nodes: &str) -> Vec<Vec<u64>> {
        let names = names(nodes);
        let links = Links::new(Some(value), &names).expect("valid");
        let from = |node| {
            links
                .of_node(node)
                .iter()
                .map(|link| link.latency_ns)
                .collect()
        };
        (0..names.len()).map(from).collect()
    }

    #[test]
    fn one_value_is_for_all_links_but_those_to_oneself() {
        assert_eq!(latencies("200us", "a,b"), [[0, 200_000], [200_000, 0]]);
    }

    #[test]
    fn links_have_two_directions_and_the_rest_costs_nothing() {
        let expected = [[0, 1_500_000, 0], [1_500_000, 0, 7], [0, 7, 0]];
        assert_eq!(latencies("a-b=1500us,c-b=7ns", "a,b,c"), expected);
    }

    #[test]
    fn a_dash_in_a_name_is_no_trouble() {
        assert_eq!(latencies("r-1-b=1s", "r-1,b")[0][1], 1_000_000_000);
        let names = names("a,a-a");
        assert!(Links::new(Some("a-a-a=1ms"), &names).is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        for value in [
            "",
            "1",
            "ms",
            "1.5ms",
            "-1ms",
            "+1ms",
            "2s",
            "99999999999999999999s",
            "a-b",
            "a-b=",
            "a-b=1ms,",
            "a-a=1ms",
            "a-x=1ms",
            "a=1ms",
            "1ms,2ms",
        ] {
            assert!(Links::new(Some(value), &names("a,b")).is_err(), "{value}");
        }
    }

    #[test]
    fn a_change_keeps_what_it_does_not_name() {
        let link = Link {
            latency_ns: 100,
            jitter_ns: 50,
            bandwidth_bps: 7,
            loss_ppm: 3,
            cut: true,
            queue: Some(1),
        };
        let change = Change {
            cut: Some(false),
            bandwidth_bps: Some(0),
            ..Change::default()
        };
        let expected = Link {
            bandwidth_bps: 0,
            cut: false,
            ..link
        };
        assert_eq!(change.apply(link), Ok(expected));
        let change = Change {
            latency_ns: Some(49),
            ..Change::default()
        };
        assert!(change.apply(link).is_err_and(|why| why.contains("jitter")));
    }

    #[test]
    fn what_is_shared_is_not_changed_for_one() {
        let uplinks = ["x", "racks"].map(String::from);
        let link = Link {
            queue: Some(
                Uplink {
                    number: 1,
                    back: true,
                }
                .queue(),
            ),
            bandwidth_bps: 7,
            ..Link::default()
        };
        let wider = Change {
            bandwidth_bps: Some(8),
            ..Change::default()
        };
        let why = wider.apply_to_pair(link, &uplinks).unwrap_err();
        assert!(why.contains("--uplink racks"), "{why}");
        assert_eq!(wider.apply(link).map(|link| link.bandwidth_bps), Ok(8));
        let alone = Link {
            queue: None,
            ..link
        };
        assert!(wider.apply_to_pair(alone, &uplinks).is_ok());
        let cut = Change {
            cut: Some(true),
            ..Change::default()
        };
        assert!(cut.apply_to_pair(link, &uplinks).is_ok_and(|link| link.cut));
    }

    #[test]
    fn what_goes_through_an_uplink_is_found() {
        let mut links = Links::free(3);
        links.uplinks = vec!["one".into(), "two".into()];
        for uplink in Uplink::all(2) {
            let Uplink { number, back } = uplink;
            let link = Link {
                queue: Some(uplink.queue()),
                ..Link::default()
            };
            assert_eq!(Uplink::of(link), Some(uplink));
            let (from, to) = if back { (2, number) } else { (number, 2) };
            links.set(from, to, link);
        }
        let through = |number, both| links.through(number, both).collect::<Vec<_>>();
        assert_eq!(through(0, true), [(0, 2), (2, 0)]);
        assert_eq!(through(1, false), [(1, 2)]);
    }
}
