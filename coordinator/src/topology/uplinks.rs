//! Uplinks: what links between pairs of nodes go through together, and whose bandwidth they share.

use super::links::{Rule, over};
use super::parse::{Wrong, wrong};
use super::shapes::{self, Cost, File};
use super::{Node, Topology};
use crate::links::Uplink;
use crate::options;
use span_api::guest::Link;
use std::fmt::Display;
use toml::Spanned;

/// Those of a file, each of which some link goes through.
pub(super) struct Uplinks<'f>(&'f [Spanned<shapes::Uplink>]);

/// The uplink that one direction of a link goes through.
pub(super) struct Through<'f> {
    uplink: Uplink,
    raw: &'f shapes::Uplink,
}

impl<'f> Uplinks<'f> {
    pub(super) fn read(file: &'f File, rules: &[Rule<'_>]) -> Result<Self, Wrong> {
        let uplinks = Self(&file.uplinks);
        for (index, raw) in file.uplinks.iter().enumerate() {
            let raw = raw.get_ref();
            let name = raw.name.get_ref();
            options::check_name("name", name)
                .or_else(|failure| wrong(raw.name.span(), failure.line))?;
            if uplinks.numbered(name) != Some(index) {
                return wrong(
                    raw.name.span(),
                    format_args!("uplink {name} is described twice"),
                );
            }
            // Without, there is nothing to share.
            let narrow = |cost: &Cost| cost.bandwidth.as_ref().map(|bits| bits.get_ref().0);
            let back = raw.back.as_ref();
            let spans = [
                (narrow(&raw.cost()), raw.name.span()),
                (
                    back.and_then(|back| narrow(back.get_ref()))
                        .or(narrow(&raw.cost())),
                    back.map_or(raw.name.span(), Spanned::span),
                ),
            ];
            for (bandwidth_bps, span) in spans {
                if bandwidth_bps.is_none_or(|bps| bps == 0) {
                    return wrong(span, format_args!("uplink {name} needs a bandwidth"));
                }
            }
        }
        let mut used = vec![false; file.uplinks.len()];
        for named in rules.iter().filter_map(uplink_of) {
            let Some(number) = uplinks.numbered(named.get_ref()) else {
                return wrong(
                    named.span(),
                    format_args!("there is no uplink {:?}", named.get_ref()),
                );
            };
            used[number] = true;
        }
        let unused = used.iter().position(|used| !used);
        if let Some(raw) = unused.and_then(|number| file.uplinks.get(number)) {
            let name = &raw.get_ref().name;
            return wrong(
                name.span(),
                format_args!("no link goes through uplink {}", name.get_ref()),
            );
        }
        Ok(uplinks)
    }

    pub(super) fn names(&self) -> Vec<String> {
        let names = self.0.iter().map(|raw| raw.get_ref().name.get_ref());
        names.cloned().collect()
    }

    fn numbered(&self, name: &str) -> Option<usize> {
        let mut all = self.0.iter();
        all.position(|raw| raw.get_ref().name.get_ref() == name)
    }

    /// What the link from a node to another goes through.
    pub(super) fn through(
        &self,
        rules: &[Rule<'_>],
        nodes: &[Node],
        from: usize,
        to: usize,
    ) -> Result<Option<Through<'f>>, Wrong> {
        let mut through: Option<Through<'f>> = None;
        for rule in rules {
            let (Some(named), Some(back)) = (uplink_of(rule), rule.covers(nodes, from, to)) else {
                continue;
            };
            if let Some(Through { raw, .. }) = &through {
                let (one, other) = (&nodes[from].name, &nodes[to].name);
                let known = raw.name.get_ref();
                return wrong(
                    named.span(),
                    format_args!("{one} and {other} are linked through uplink {known} already"),
                );
            }
            through = self.numbered(named.get_ref()).map(|number| Through {
                uplink: Uplink { number, back },
                raw: self.0[number].get_ref(),
            });
        }
        Ok(through)
    }

    /// Where no uplink is possible.
    pub(super) fn refuse(&self, why: impl Display) -> Result<(), Wrong> {
        match self.0.first() {
            Some(raw) => wrong(raw.get_ref().name.span(), why),
            None => Ok(()),
        }
    }
}

fn uplink_of<'r>(rule: &Rule<'r>) -> Option<&'r Spanned<String>> {
    rule.raw.get_ref().uplink.as_ref()
}

impl Through<'_> {
    /// What the uplink says of its links, over what is said of all.
    pub(super) fn over(&self, link: Link) -> Result<Link, Wrong> {
        let mut link = over(link, &self.raw.cost(), self.raw.name.span())?;
        if let Some(back) = self.raw.back.as_ref().filter(|_| self.uplink.back) {
            link = over(link, back.get_ref(), back.span())?;
        }
        Ok(Link {
            queue: Some(self.uplink.queue()),
            ..link
        })
    }

    /// A link has no bandwidth of its own there.
    pub(super) fn check(&self, cost: &Cost) -> Result<(), Wrong> {
        match &cost.bandwidth {
            Some(bandwidth) => wrong(
                bandwidth.span(),
                format_args!(
                    "what goes through uplink {} shares its bandwidth",
                    self.raw.name.get_ref()
                ),
            ),
            None => Ok(()),
        }
    }
}

/// Who shares an uplink is on one host: its queues are in memory.
pub(super) fn on_one_host(file: &File, topology: &Topology) -> Result<(), Wrong> {
    for (raw, node) in file.nodes.iter().zip(0..) {
        if let Some(address) = &raw.get_ref().address
            && let Some(uplink) = topology.uplink_of(node)
        {
            return wrong(
                address.span(),
                elsewhere(uplink, &topology.nodes[node].name, address.get_ref()),
            );
        }
    }
    Ok(())
}

/// Why a node cannot be where it is.
pub(crate) fn elsewhere(uplink: &str, node: &str, place: impl Display) -> String {
    format!(
        "node {node} is linked through uplink {uplink}, whose nodes all run on the coordinator's host, not at {place}"
    )
}

impl Topology {
    /// The first uplink that a node has a part in.
    pub(crate) fn uplink_of(&self, node: usize) -> Option<&String> {
        let links = self.links.of_node(node);
        links
            .into_iter()
            .find_map(|link| Uplink::name(&self.links.uplinks, link))
    }
}
