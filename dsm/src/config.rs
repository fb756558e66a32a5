//! What an engine must be told, and the map from pages to homes.

use crate::planted::Planted;
use crate::types::{NodeId, PageId};

/// Who holds a range of pages when the guest starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Initial {
    /// Modified at this node, whose memory has the contents (zero unless it was loaded with
    /// something, such as the kernel image).
    Owned(NodeId),
    /// Held by nobody and all zero: the first request is answered by the home with
    /// [`crate::Body::Zero`], without asking anyone.
    Untouched,
}

/// Everything an [`crate::Engine`] needs to know. All nodes of a guest get the same values apart
/// from `me` and `foreign_max`.
#[derive(Clone, Debug)]
pub struct Config {
    pub me: NodeId,
    /// Number of nodes, 1 to [`crate::NodeSet::NODES_MAX`] of the engine.
    pub nodes: u16,
    /// Number of pages.
    pub pages: u32,
    /// Refuses messages of another incarnation of the membership.
    pub epoch: u32,
    /// `(first page, home)` of contiguous ranges, ascending, the first starting at page 0; each
    /// range ends where the next begins.
    pub homes: Vec<(PageId, NodeId)>,
    /// `(first page, holder)` in the same form. Empty: every page is owned by its home.
    pub initial: Vec<(PageId, Initial)>,
    /// How long a page stays after its user has resumed, in nanoseconds. It must exceed the time
    /// from [`crate::Engine::resumed`] to the access itself; with 0 nothing has to go on.
    pub hold_ns: u64,
    /// How long a page stays at most: after a grant if its user does not resume, and after the
    /// arrival of a remote request in any case. Nanoseconds. For instructions that touch several
    /// contended pages it should cover three times the number of nodes times (`hold_ns`, four
    /// messages and two changes of protection); PROTOCOL.md, forward progress, says why.
    pub hold_ns_max: u64,
    /// First retransmission after this many nanoseconds, doubling up to `retransmit_ns_max`;
    /// `None` over a transport that neither loses nor forgets.
    pub retransmit_ns: Option<u64>,
    pub retransmit_ns_max: u64,
    /// Grant [`crate::State::Exclusive`] to readers of pages that are read and then written by one
    /// node after the other, and to the first reader of an untouched page.
    pub migratory: bool,
    /// Most pages of other homes that this node holds or asks for at a time; `None`: any number.
    /// Not for pages of its own: there must be room for all of them (I11).
    pub foreign_max: Option<u32>,
    /// For tests of the tests.
    pub planted: Planted,
}

impl Config {
    /// One home for every page, generous defaults elsewhere.
    pub fn new(me: NodeId, nodes: u16, pages: u32) -> Config {
        Config {
            me,
            nodes,
            pages,
            epoch: 0,
            homes: vec![(PageId(0), NodeId(0))],
            initial: Vec::new(),
            hold_ns: 20_000,
            hold_ns_max: 4_000_000,
            retransmit_ns: Some(2_000_000_000),
            retransmit_ns_max: 30_000_000_000,
            migratory: false,
            foreign_max: None,
            planted: Planted::default(),
        }
    }
}

/// A [`Config`] that makes no sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{nodes} nodes, allowed are 1 to {max}")]
    Nodes { nodes: u16, max: u16 },
    #[error("{me} is not one of {nodes} nodes")]
    Me { me: NodeId, nodes: u16 },
    #[error("no pages")]
    Pages,
    #[error("the {map} map does not start at page 0")]
    MapStart { map: &'static str },
    #[error("the {map} map is not ascending at {page}, or leaves guest memory there")]
    MapOrder { map: &'static str, page: PageId },
    #[error("the {map} map names {node}, which does not exist")]
    MapNode { map: &'static str, node: NodeId },
    #[error("hold time of {hold_ns} ns exceeds its bound of {hold_ns_max} ns")]
    Hold { hold_ns: u64, hold_ns_max: u64 },
    #[error("no room for any page of another home")]
    Room,
    #[error("retransmission after {first} ns, at most {max} ns")]
    Retransmit { first: u64, max: u64 },
}

/// A contiguous range of pages with one home.
#[derive(Clone, Copy, Hash, Debug)]
struct Range {
    first: u32,
    home: NodeId,
    /// Home pages of the same node in earlier ranges.
    before: u32,
}

/// Page to home, and page to position in the home's own directory.
#[derive(Clone, Hash, Debug)]
pub(crate) struct HomeMap {
    ranges: Vec<Range>,
    pages: u32,
}

impl HomeMap {
    fn new(homes: &[(PageId, NodeId)], nodes: u16, pages: u32) -> HomeMap {
        let mut counts = vec![0u32; nodes as usize];
        let mut ranges = Vec::with_capacity(homes.len());
        for (i, (first, home)) in homes.iter().enumerate() {
            let end = homes.get(i + 1).map_or(pages, |next| next.0.0);
            let before = counts[home.0 as usize];
            ranges.push(Range {
                first: first.0,
                home: *home,
                before,
            });
            counts[home.0 as usize] += end - first.0;
        }
        HomeMap { ranges, pages }
    }

    fn range(&self, page: PageId) -> &Range {
        let after = self.ranges.partition_point(|r| r.first <= page.0);
        &self.ranges[after - 1]
    }

    pub(crate) fn contains(&self, page: PageId) -> bool {
        page.0 < self.pages
    }

    pub(crate) fn home(&self, page: PageId) -> NodeId {
        self.range(page).home
    }

    /// Position of the page in its home's directory.
    pub(crate) fn slot(&self, page: PageId) -> usize {
        let range = self.range(page);
        (range.before + page.0 - range.first) as usize
    }

    /// The pages of one home, in the order of their slots.
    pub(crate) fn pages_of(&self, home: NodeId) -> impl Iterator<Item = PageId> {
        let pages = self.pages;
        let ends = self.ranges.iter().skip(1).map(|r| r.first).chain([pages]);
        self.ranges
            .iter()
            .zip(ends)
            .filter(move |(r, _)| r.home == home)
            .flat_map(|(r, end)| (r.first..end).map(PageId))
    }
}

/// Checks a configuration and works out its home map.
pub(crate) fn validate(config: &Config, nodes_max: u16) -> Result<HomeMap, ConfigError> {
    if config.nodes == 0 || config.nodes > nodes_max {
        return Err(ConfigError::Nodes {
            nodes: config.nodes,
            max: nodes_max,
        });
    }
    if config.me.0 >= config.nodes {
        return Err(ConfigError::Me {
            me: config.me,
            nodes: config.nodes,
        });
    }
    if config.pages == 0 {
        return Err(ConfigError::Pages);
    }
    if config.foreign_max == Some(0) {
        return Err(ConfigError::Room);
    }
    if config.hold_ns > config.hold_ns_max {
        return Err(ConfigError::Hold {
            hold_ns: config.hold_ns,
            hold_ns_max: config.hold_ns_max,
        });
    }
    if let Some(first) = config.retransmit_ns
        && (first == 0 || first > config.retransmit_ns_max)
    {
        return Err(ConfigError::Retransmit {
            first,
            max: config.retransmit_ns_max,
        });
    }
    check_map(
        "home",
        config,
        config.homes.iter().map(|(p, n)| (*p, Some(*n))),
    )?;
    if !config.initial.is_empty() {
        let owners = config.initial.iter().map(|(page, initial)| match initial {
            Initial::Owned(node) => (*page, Some(*node)),
            Initial::Untouched => (*page, None),
        });
        check_map("initial owner", config, owners)?;
    }
    Ok(HomeMap::new(&config.homes, config.nodes, config.pages))
}

fn check_map(
    map: &'static str,
    config: &Config,
    entries: impl Iterator<Item = (PageId, Option<NodeId>)>,
) -> Result<(), ConfigError> {
    let mut previous = None;
    for (page, node) in entries {
        match previous {
            None if page.0 != 0 => return Err(ConfigError::MapStart { map }),
            Some(before) if page <= before => return Err(ConfigError::MapOrder { map, page }),
            _ => {}
        }
        if page.0 >= config.pages {
            return Err(ConfigError::MapOrder { map, page });
        }
        if let Some(node) = node
            && node.0 >= config.nodes
        {
            return Err(ConfigError::MapNode { map, node });
        }
        previous = Some(page);
    }
    if previous.is_none() {
        return Err(ConfigError::MapStart { map });
    }
    Ok(())
}

/// The initial holder of a page.
pub(crate) fn initial(config: &Config, homes: &HomeMap, page: PageId) -> Initial {
    let after = config.initial.partition_point(|(first, _)| *first <= page);
    match after {
        0 => Initial::Owned(homes.home(page)),
        _ => config.initial[after - 1].1,
    }
}
