//! The shape of a run, and the numbers that everything in it follows from.

use std::fmt;

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

/// A bug planted on purpose, to see the checks fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Plant {
    Nothing,
    /// `protected` is called before the mappings of a page to be given up have changed.
    EarlyProtected,
    /// The bytes are read when a change of protection is ordered instead of when it is complete.
    EarlyBytes,
    /// A fill after the first one for a page is skipped.
    SkipFill,
}

/// The shape of one run. All times in virtual nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    pub seed: u64,
    pub nodes: u16,
    pub pages: u32,
    pub threads: u32,
    /// Accesses of each thread.
    pub accesses: u32,
    pub write_percent: u64,
    pub delay_ns_max: u64,
    pub protect_ns_max: u64,
    pub resume_ns_max: u64,
    pub think_ns_max: u64,
    /// From the report that a thread runs to its access.
    pub access_ns_max: u64,
    /// Percentage of accesses that need two pages at the same instant.
    pub pair_percent: u64,
    /// Every delay is its maximum: as regular, and as bad, as timing can be.
    pub regular: bool,
    /// Each fault has a token of its own, so that the engine cannot know the thread.
    pub anonymous: bool,

    pub duplicate_percent: u64,
    pub loss_percent: u64,
    /// Messages between two nodes keep their order.
    pub ordered: bool,
    pub hold_ns: u64,
    pub hold_ns_max: u64,
    pub migratory: bool,
    pub untouched: bool,
    /// More events than this are a livelock.
    pub events_max: u64,
    pub plant: Plant,
}

impl Params {
    /// A shape drawn from the seed; faults of the network only if `faults`.
    pub(crate) fn from_seed(seed: u64, faults: bool) -> Params {
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
            write_percent: rng.pick(&[10, 30, 50, 90]),
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
            hold_ns,
            hold_ns_max: hold_ns + rng.pick(&[0, 10_000, 200_000]),
            migratory: rng.percent(50),
            untouched: rng.percent(50),
            events_max: 5_000_000,
            plant: Plant::Nothing,
        };
        if params.pair_percent > 0 {
            params.hold_ns_max = params.hold_ns_max.max(params.gather_ns());
        }
        params
    }
}

impl Params {
    /// How long it takes at most to gather the pages of one access while others wait for them;
    /// see PROTOCOL.md, forward progress.
    pub(crate) fn gather_ns(&self) -> u64 {
        let turn_ns = self.hold_ns
            + self.access_ns_max
            + self.resume_ns_max
            + 2 * self.protect_ns_max
            + 4 * self.delay_ns_max;
        3 * u64::from(self.nodes) * turn_ns
    }
}

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}
