//! What the links between nodes cost.

use crate::failure::Failure;
use span_api::guest::{LINK_LATENCY_NS_MAX, Link};

/// Units of time and how many nanoseconds each has, longest names first.
const UNITS: [(&str, u64); 4] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
];

/// Each pair of nodes, the same in both directions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Links {
    nodes: usize,
    /// By node and node.
    all: Vec<Link>,
}

impl Links {
    /// From the value of `--latency`.
    pub(crate) fn new(latency: Option<&str>, names: &[String]) -> Result<Self, Failure> {
        let nodes = names.len();
        let mut links = Self {
            nodes,
            all: vec![Link::default(); nodes * nodes],
        };
        let Some(value) = latency else {
            return Ok(links);
        };
        if !value.contains('=') {
            let latency_ns = time_ns(value, value)?;
            for from in 0..nodes {
                for to in 0..nodes {
                    links.set(from, to, latency_ns);
                }
            }
            return Ok(links);
        }
        for item in value.split(',') {
            let Some((pair, time)) = item.split_once('=') else {
                return Err(refused(value, format_args!("{item:?} is not A-B=TIME")));
            };
            let (from, to) = ends(value, pair, names)?;
            links.set(from, to, time_ns(value, time)?);
        }
        Ok(links)
    }

    fn set(&mut self, one: usize, other: usize, latency_ns: u64) {
        if one != other {
            self.all[one * self.nodes + other].latency_ns = latency_ns;
            self.all[other * self.nodes + one].latency_ns = latency_ns;
        }
    }

    /// From a node to each.
    pub(crate) fn of_node(&self, node: usize) -> Vec<Link> {
        self.all[node * self.nodes..][..self.nodes].to_vec()
    }
}

fn refused(value: &str, why: std::fmt::Arguments<'_>) -> Failure {
    Failure::usage(format!("--latency {value}: {why}"))
}

/// The two nodes of `A-B`. Names may have a `-` themselves.
fn ends(value: &str, pair: &str, names: &[String]) -> Result<(usize, usize), Failure> {
    let index = |name: &str| names.iter().position(|other| other == name);
    let mut found = pair
        .match_indices('-')
        .filter_map(|(at, _)| Some((index(&pair[..at])?, index(&pair[at + 1..])?)));
    match (found.next(), found.next()) {
        (Some((from, to)), None) if from != to => Ok((from, to)),
        (Some(_), None) => Err(refused(value, format_args!("{pair} is one node"))),
        (Some(_), Some(_)) => Err(refused(
            value,
            format_args!("{pair} can be read as more than one pair of nodes"),
        )),
        (None, _) => Err(refused(
            value,
            format_args!("{pair:?} is no pair A-B of the nodes {}", names.join(", ")),
        )),
    }
}

fn time_ns(value: &str, time: &str) -> Result<u64, Failure> {
    let parsed = UNITS.iter().find_map(|(unit, ns)| {
        let number = time.strip_suffix(unit)?;
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        number
            .parse::<u64>()
            .ok()
            .filter(|_| digits)?
            .checked_mul(*ns)
    });
    match parsed {
        Some(ns) if ns <= LINK_LATENCY_NS_MAX => Ok(ns),
        Some(_) => Err(refused(value, format_args!("{time} is more than 1s"))),
        None => Err(refused(
            value,
            format_args!("{time:?} is no time: a whole number with ns, us, ms or s"),
        )),
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
}
