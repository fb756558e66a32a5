//! What each link costs: from what a file says of all, of groups, and of pairs of nodes, the last said last.

use super::parse::{Wrong, wrong};
use super::shapes::{self, Cost, File};
use super::uplinks::Uplinks;
use super::{Named, Node, Others};
use crate::links::{Links, values};
use span_api::guest::{LINK_BANDWIDTH_BPS_MIN, LINK_LATENCY_NS_MAX, Link};
use std::ops::Range;
use toml::Spanned;

const SEED_DEFAULT: u64 = 1;

/// Links that were read.
pub(super) struct Read {
    pub(super) all: Links,
    pub(super) named: Vec<Named>,
    pub(super) others: Others,
}

/// A link that a file names.
pub(super) struct Rule<'f> {
    named: Named,
    pub(super) raw: &'f Spanned<shapes::Link>,
    /// Where its ends are named.
    span: Range<usize>,
}

pub(super) fn read(file: &File, nodes: &[Node]) -> Result<Read, Wrong> {
    let mut all = Links::free(nodes.len());
    all.seed = file.seed.unwrap_or(SEED_DEFAULT);
    let rules = rules(file, nodes)?;
    let uplinks = Uplinks::read(file, &rules)?;
    all.uplinks = uplinks.names();
    let routed = file
        .links
        .as_ref()
        .and_then(|links| links.get_ref().routed.as_ref());
    let is_routed = routed.is_some_and(|routed| *routed.get_ref());
    let default = match &file.links {
        Some(links) => {
            let cost = links.get_ref().cost();
            if is_routed && !cost.is_empty() {
                return wrong(
                    links.span(),
                    "links that are routed cost what those cost that they go over",
                );
            }
            over(Link::default(), &cost, links.span())?
        }
        None => Link::default(),
    };
    let pairs = || {
        let to = |from: usize| (0..nodes.len()).map(move |to| (from, to));
        (0..nodes.len())
            .flat_map(to)
            .filter(|(from, to)| from != to)
    };
    for (from, to) in pairs() {
        let through = uplinks.through(&rules, nodes, from, to)?;
        let mut link = match &through {
            Some(through) => through.over(default)?,
            None => default,
        };
        for is_group in [true, false] {
            for rule in &rules {
                let back = match rule.covers(nodes, from, to) {
                    Some(back) if matches!(rule.named, Named::Groups(..)) == is_group => back,
                    _ => continue,
                };
                let raw = rule.raw.get_ref();
                let other = raw.back.as_ref().filter(|_| back);
                if let Some(through) = &through {
                    through.check(&raw.cost())?;
                    other.map_or(Ok(()), |other| through.check(other.get_ref()))?;
                }
                link = over(link, &raw.cost(), rule.span.clone())?;
                if let Some(other) = other {
                    link = over(link, other.get_ref(), other.span())?;
                }
            }
        }
        all.set(from, to, slowed(link, from, to, file, nodes)?);
    }
    let linked = |from, to| {
        rules
            .iter()
            .any(|rule| rule.covers(nodes, from, to).is_some())
    };
    if let Some(routed) = routed.filter(|_| is_routed) {
        uplinks.refuse(
            "what is routed goes over links that nobody else is on, and through no uplink",
        )?;
        route(&mut all, nodes, linked, routed.span())?;
    }
    let others = match (is_routed, default == Link::default()) {
        (true, _) => Others::Routed,
        (false, true) => Others::Free,
        (false, false) => Others::Given,
    };
    Ok(Read {
        all,
        named: rules.into_iter().map(|rule| rule.named).collect(),
        others,
    })
}

impl Rule<'_> {
    /// Whether it is about this direction, and whether that is the way back.
    pub(super) fn covers(&self, nodes: &[Node], from: usize, to: usize) -> Option<bool> {
        match &self.named {
            Named::Nodes(one, other) if (from, to) == (*one, *other) => Some(false),
            Named::Nodes(one, other) if (to, from) == (*one, *other) => Some(true),
            Named::Nodes(..) => None,
            Named::Groups(one, other) => {
                let of = |node: usize| nodes[node].group.as_ref();
                if of(from) == Some(one) && of(to) == Some(other) {
                    return Some(false);
                }
                (of(to) == Some(one) && of(from) == Some(other)).then_some(true)
            }
        }
    }
}

fn rules<'f>(file: &'f File, nodes: &[Node]) -> Result<Vec<Rule<'f>>, Wrong> {
    let mut rules: Vec<Rule<'f>> = Vec::new();
    for raw in &file.named {
        let link = raw.get_ref();
        let (named, span) = match (&link.between, &link.within) {
            (Some(between), None) => (ends(between, nodes)?, between.span()),
            (None, Some(within)) => {
                let group = within.get_ref();
                let members = nodes
                    .iter()
                    .filter(|node| node.group.as_ref() == Some(group));
                if members.count() < 2 {
                    return wrong(
                        within.span(),
                        format_args!("there are no two nodes of a group {group:?}"),
                    );
                }
                if let Some(back) = &link.back {
                    return wrong(back.span(), "within a group no way is the way back");
                }
                if let Some(uplink) = &link.uplink {
                    return wrong(
                        uplink.span(),
                        "within a group there are no two ends of an uplink",
                    );
                }
                (Named::Groups(group.clone(), group.clone()), within.span())
            }
            _ => {
                return wrong(
                    raw.span(),
                    "a link has either between = [\"A\", \"B\"] or within = \"GROUP\"",
                );
            }
        };
        let same = |other: &Rule<'_>| match (&other.named, &named) {
            (Named::Nodes(a, b), Named::Nodes(c, d)) => (a, b) == (c, d) || (b, a) == (c, d),
            (Named::Groups(a, b), Named::Groups(c, d)) => (a, b) == (c, d) || (b, a) == (c, d),
            _ => false,
        };
        if rules.iter().any(same) {
            return wrong(
                span,
                "this link is named twice; `back` is for its other direction",
            );
        }
        rules.push(Rule { named, raw, span });
    }
    Ok(rules)
}

fn ends(between: &Spanned<Vec<Spanned<String>>>, nodes: &[Node]) -> Result<Named, Wrong> {
    let [one, other] = &between.get_ref()[..] else {
        return wrong(between.span(), "a link is between two nodes, or two groups");
    };
    if one.get_ref() == other.get_ref() {
        return wrong(
            other.span(),
            "both ends are the same; links within a group have within = \"GROUP\"",
        );
    }
    let node = |end: &Spanned<String>| nodes.iter().position(|node| node.name == *end.get_ref());
    let is_group = |end: &Spanned<String>| {
        let name = Some(end.get_ref());
        nodes.iter().any(|node| node.group.as_ref() == name)
    };
    for end in [one, other] {
        if node(end).is_none() && !is_group(end) {
            return wrong(
                end.span(),
                format_args!("there is no node or group {:?}", end.get_ref()),
            );
        }
    }
    match (node(one), node(other)) {
        (Some(one), Some(other)) => Ok(Named::Nodes(one, other)),
        (None, None) => Ok(Named::Groups(
            one.get_ref().clone(),
            other.get_ref().clone(),
        )),
        _ => wrong(between.span(), "a link is between two nodes, or two groups"),
    }
}

/// What is said of a link, over what it was before.
pub(super) fn over(link: Link, cost: &Cost, span: Range<usize>) -> Result<Link, Wrong> {
    let link = Link {
        latency_ns: cost.latency.map_or(link.latency_ns, |time| time.0),
        jitter_ns: cost
            .jitter
            .as_ref()
            .map_or(link.jitter_ns, |time| time.get_ref().0),
        bandwidth_bps: cost
            .bandwidth
            .as_ref()
            .map_or(link.bandwidth_bps, |bits| bits.get_ref().0),
        loss_ppm: cost.loss.map_or(link.loss_ppm, |loss| loss.0),
        cut: false,
        queue: link.queue,
    };
    if link.jitter_ns > link.latency_ns {
        let span = cost.jitter.as_ref().map_or(span, Spanned::span);
        return wrong(
            span,
            format_args!(
                "a jitter of {} is more than the latency of {}",
                values::time_text(link.jitter_ns),
                values::time_text(link.latency_ns)
            ),
        );
    }
    Ok(link)
}

/// A link as it is with what its nodes make of it.
fn slowed(link: Link, from: usize, to: usize, file: &File, nodes: &[Node]) -> Result<Link, Wrong> {
    let factor = nodes[from].slow * nodes[to].slow;
    if factor == 1.0 {
        return Ok(link);
    }
    let slower = Link {
        latency_ns: (link.latency_ns as f64 * factor).round() as u64,
        jitter_ns: (link.jitter_ns as f64 * factor).round() as u64,
        bandwidth_bps: match link.queue {
            // An uplink is as fast for a slow node as for those that share it.
            Some(_) => link.bandwidth_bps,
            None => (link.bandwidth_bps as f64 / factor).round() as u64,
        },
        ..link
    };
    let too_slow = slower.bandwidth_bps < LINK_BANDWIDTH_BPS_MIN && link.bandwidth_bps > 0;
    if slower.latency_ns > LINK_LATENCY_NS_MAX || too_slow {
        let slowest = match nodes[from].slow > nodes[to].slow {
            true => from,
            false => to,
        };
        let raw = &file.nodes[slowest].get_ref().slow;
        let span = raw.as_ref().map_or(0..0, Spanned::span);
        let (one, other) = (&nodes[from].name, &nodes[to].name);
        return wrong(
            span,
            format_args!("the link from {one} to {other} becomes slower than one can be"),
        );
    }
    // What rounding has made of the two.
    Ok(Link {
        jitter_ns: slower.jitter_ns.min(slower.latency_ns),
        ..slower
    })
}

/// Gives links that are not named the cost of the fastest way over those that are.
fn route(
    links: &mut Links,
    nodes: &[Node],
    linked: impl Fn(usize, usize) -> bool,
    span: Range<usize>,
) -> Result<(), Wrong> {
    let count = nodes.len();
    let mut ways: Vec<Vec<Option<Link>>> = (0..count)
        .map(|from| {
            let to = |to| linked(from, to).then(|| links.get(from, to));
            (0..count).map(to).collect()
        })
        .collect();
    for by in 0..count {
        for from in 0..count {
            for to in (0..count).filter(|to| *to != from) {
                let (Some(first), Some(second)) = (ways[from][by], ways[by][to]) else {
                    continue;
                };
                let both = joined(first, second);
                if !linked(from, to)
                    && ways[from][to].is_none_or(|way| both.latency_ns < way.latency_ns)
                {
                    ways[from][to] = Some(both);
                }
            }
        }
    }
    for from in 0..count {
        for to in (0..count).filter(|to| *to != from) {
            let (one, other) = (&nodes[from].name, &nodes[to].name);
            match ways[from][to] {
                Some(way) if way.latency_ns <= LINK_LATENCY_NS_MAX => links.set(from, to, way),
                Some(_) => {
                    return wrong(
                        span,
                        format_args!("the way from {one} to {other} takes more than 1s"),
                    );
                }
                None => {
                    return wrong(span, format_args!("no links lead from {one} to {other}"));
                }
            }
        }
    }
    Ok(())
}

/// One link after the other.
fn joined(first: Link, second: Link) -> Link {
    let bandwidths = [first.bandwidth_bps, second.bandwidth_bps];
    let narrowest = bandwidths.into_iter().filter(|bps| *bps > 0).min();
    let (one, two) = (u64::from(first.loss_ppm), u64::from(second.loss_ppm));
    let most = u64::from(span_api::guest::LINK_LOSS_PPM_MAX);
    Link {
        latency_ns: first.latency_ns + second.latency_ns,
        jitter_ns: first.jitter_ns + second.jitter_ns,
        bandwidth_bps: narrowest.unwrap_or(0),
        loss_ppm: (one + two - one * two / 1_000_000).min(most) as u32,
        cut: false,
        queue: None,
    }
}
