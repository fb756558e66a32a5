//! The shape of a run, and the numbers that everything in it follows from.

use crate::step::{Plant, Shape};
use dsm::{Initial, NODES_MAX, NodeId, PageId};
use std::fmt;

const RETRANSMIT_NS: u64 = 1_000_000;
const RETRANSMIT_NS_MAX: u64 = 8_000_000;

/// splitmix64.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// From `low` to `high`, both included.
    pub(crate) fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    pub(crate) fn percent(&mut self, p: u64) -> bool {
        self.below(100) < p
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// Who uses which pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sharing {
    /// All nodes use all pages; homes and owners are drawn.
    Drawn,
    /// Nodes are home of equal parts, in order, which they own; all nodes use all pages.
    Anywhere,
    /// ... a node's pages are used by it and those after it, so many in all.
    Neighbours(u16),
    /// ... and the last node writes what all others read.
    OneWriter,
}

/// All times in virtual nanoseconds.
#[derive(Clone, Debug)]
pub struct Params {
    pub seed: u64,
    pub nodes: u16,
    pub pages: u32,
    pub threads: u32,
    /// Accesses of each thread.
    pub accesses: u32,
    /// No access begins after so many steps.
    pub steps: u64,
    pub write_percent: u64,
    /// Percentage of accesses that go to the first few pages, which all nodes want.
    pub hot_percent: u64,
    /// Which pages those are.
    pub sharing: Sharing,
    /// Of a message, unless it is lost or very late.
    pub delay_ns_min: u64,
    pub delay_ns_max: u64,
    pub protect_ns_max: u64,
    pub resume_ns_max: u64,
    pub think_ns_max: u64,
    /// From the report that a thread runs to its access.
    pub access_ns_max: u64,
    /// Percentage of accesses that need two pages at the same instant.
    pub pair_percent: u64,
    /// Percentage of faults after which the node asks for the next pages as well.
    pub ahead_percent: u64,
    /// Every delay is its maximum: as regular, and as bad, as timing can be.
    pub regular: bool,
    /// Each fault has a token of its own, so that the engine cannot know the thread.
    pub anonymous: bool,
    pub duplicate_percent: u64,
    pub loss_percent: u64,
    /// Messages between two nodes keep their order.
    pub ordered: bool,
    /// Nodes that stop, one after the other.
    pub crashes: u16,
    /// Until another node knows.
    pub lost_ns_max: u64,
    pub hold_ns: u64,
    pub hold_ns_max: u64,
    pub migratory: bool,
    pub untouched: bool,
    /// As in [`dsm::Config`], of every node.
    pub foreign_max: Option<u32>,
    /// Percentage of accesses after which the node evicts some page.
    pub evict_percent: u64,
    /// More steps than this are a livelock.
    pub steps_max: u64,
    pub plant: Plant,
    pub planted: dsm::Planted,
    /// Whether an answer that leaves too early is a breach by itself.
    pub check_answers: bool,
}

impl Params {
    /// A small shape drawn from the seed; faults of the network only if `faults`.
    pub fn from_seed(seed: u64, faults: bool) -> Params {
        let mut rng = Rng::new(seed ^ 0x5eed);
        // Without a hold time that outlasts the way back to the access nothing has to go on.
        let access_ns_max = rng.pick(&[0, 0, 300]);
        let hold_ns = access_ns_max + rng.pick(&[1, 1, 500, 20_000]);
        let mut params = Params {
            seed,
            nodes: rng.range(2, 8) as u16,
            pages: rng.range(1, 4) as u32,
            threads: rng.range(1, 3) as u32,
            accesses: 60,
            steps: u64::MAX,
            write_percent: rng.pick(&[10, 30, 50, 90]),
            hot_percent: 0,
            sharing: Sharing::Drawn,
            delay_ns_min: 0,
            delay_ns_max: rng.pick(&[1, 1_000, 50_000]),
            protect_ns_max: rng.pick(&[0, 1_000, 100_000]),
            resume_ns_max: rng.pick(&[1, 2_000, 50_000]),
            think_ns_max: rng.pick(&[1, 1_000, 30_000]),
            access_ns_max,
            pair_percent: rng.pick(&[0, 20, 100]),
            regular: false,
            anonymous: false,
            duplicate_percent: if faults { rng.pick(&[0, 5, 30]) } else { 0 },
            loss_percent: if faults { rng.pick(&[0, 0, 5, 20]) } else { 0 },
            ordered: !faults || rng.percent(20),
            crashes: 0,
            lost_ns_max: 1_500_000,
            hold_ns,
            hold_ns_max: hold_ns + rng.pick(&[0, 10_000, 200_000]),
            migratory: rng.percent(50),
            untouched: rng.percent(50),
            ahead_percent: rng.pick(&[0, 0, 50]),
            foreign_max: None,
            evict_percent: 0,
            steps_max: 5_000_000,
            plant: Plant::Nothing,
            planted: dsm::Planted::NOTHING,
            check_answers: true,
        };
        params.hold_for_pairs();
        params
    }

    /// As many nodes and pages as a guest may have, for `steps` steps.
    pub fn large(seed: u64, faults: bool, steps: u64) -> Params {
        let mut rng = Rng::new(seed ^ 0xb16);
        let mut params = Params {
            nodes: rng.range(2, u64::from(NODES_MAX)) as u16,
            pages: rng.range(1, 8) as u32 * 1_000,
            accesses: u32::MAX,
            steps,
            hot_percent: rng.pick(&[0, 50, 90]),
            steps_max: steps.saturating_mul(10).saturating_add(50_000_000),
            ..Params::from_seed(seed, faults)
        };
        params.hold_for_pairs();
        params
    }

    pub(crate) fn hold_for_pairs(&mut self) {
        if self.pair_percent > 0 {
            self.hold_ns_max = self.hold_ns_max.max(self.gather_ns());
        }
    }

    /// How long it takes at most to gather the pages of one access while others wait for them;
    /// see PROTOCOL.md, forward progress.
    pub fn gather_ns(&self) -> u64 {
        let turn_ns = self.hold_ns
            + self.access_ns_max
            + self.resume_ns_max
            + 2 * self.protect_ns_max
            + 4 * self.delay_ns_max;
        3 * u64::from(self.nodes) * turn_ns
    }

    /// No request waits longer: every thread can be in front of it, and with 20 % loss each turn
    /// can need many rounds.
    pub(crate) fn grant_ns_max(&self) -> u64 {
        let rounds_ns = if self.loss_percent > 0 {
            40 * RETRANSMIT_NS_MAX
        } else {
            0
        };
        // Late messages, see `Sim::arrivals_ns`.
        let turn_ns = self.hold_ns_max + self.gather_ns() + 2_000 * self.delay_ns_max + rounds_ns;
        // Where room is scarce, a request waits for evictions, which wait for their turns as well.
        let turns = if self.foreign_max.is_some() { 8 } else { 1 };
        turns * u64::from(self.nodes) * u64::from(self.threads) * turn_ns
    }

    /// Each message arrives once.
    fn is_exact(&self) -> bool {
        self.loss_percent == 0 && self.duplicate_percent == 0
    }

    pub(crate) fn shape(&self, rng: &mut Rng) -> Shape {
        if self.sharing != Sharing::Drawn {
            return self.even_shape();
        }
        let node = |rng: &mut Rng| NodeId(rng.below(u64::from(self.nodes)) as u16);
        let homes: Vec<_> = (0..self.pages).map(|p| (PageId(p), node(rng))).collect();
        let initial = (0..self.pages).map(|p| {
            let drawn = node(rng);
            // Nodes start within their limits.
            let owner = match self.foreign_max {
                Some(_) => homes[p as usize].1,
                None => drawn,
            };
            let untouched = self.untouched && rng.percent(70);
            let initial = if untouched {
                Initial::Untouched
            } else {
                Initial::Owned(owner)
            };
            (PageId(p), initial)
        });
        let initial = initial.collect();
        self.shape_of(homes, initial)
    }

    fn even_shape(&self) -> Shape {
        let homes = (0..self.nodes).map(|node| (PageId(self.first_page(node)), NodeId(node)));
        let homes = homes.filter(|(first, node)| first.0 < self.first_page(node.0 + 1));
        self.shape_of(homes.collect(), Vec::new())
    }

    /// Of an equal part of all.
    pub(crate) fn first_page(&self, node: u16) -> u32 {
        let part = u64::from(self.pages) * u64::from(node) / u64::from(self.nodes);
        part as u32
    }

    fn shape_of(&self, homes: Vec<(PageId, NodeId)>, initial: Vec<(PageId, Initial)>) -> Shape {
        Shape {
            nodes: self.nodes,
            threads: self.threads,
            pages: self.pages,
            initial,
            homes,
            hold_ns: self.hold_ns,
            hold_ns_max: self.hold_ns_max,
            retransmit_ns: (self.loss_percent > 0).then_some((RETRANSMIT_NS, RETRANSMIT_NS_MAX)),
            migratory: self.migratory,
            foreign_max: self.foreign_max,
            keep_bytes: self.foreign_max.is_some() && !self.is_exact(),
            planted: self.planted,
            plant: self.plant,
            inline_protect: self.protect_ns_max == 0,
            anonymous: self.anonymous,
            check_answers: self.check_answers,
        }
    }
}

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}
