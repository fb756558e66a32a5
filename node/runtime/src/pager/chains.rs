//! Asks for pages before they are needed, where a thread misses them one after another as it did before.
//!
//! To wake a task on another node the kernel needs the same pages each time, in the same order: the entry in
//! the wait queue, the task, its CPU's queue; and whoever is woken needs them back, and then what was written
//! for it. Each miss is a round trip. Here it is remembered which page was missed after which (a Markov
//! predictor of the first order, as Joseph and Grunwald's, *Prefetching Using Markov Predictors*, 1997); after
//! the first page of such a chain the others are asked for together with it. They are ordinary requests that
//! no thread waits for.
//!
//! A page that is here before it is needed is not missed, so a prediction that holds is not seen to hold. Now
//! and then one is left out, to see.

use dsm::Access;
use std::collections::HashMap;

/// Pages that are asked for behind one that is missed.
const LENGTH_MAX: usize = 8;

/// A page is asked for ahead after it has been missed this often behind the other.
const TRUSTED: u8 = 2;
const TRUST_MAX: u8 = 3;

/// One of as many predictions is left out.
const PROBE_EVERY: u8 = 16;

/// Pages that are remembered: then all is forgotten, and what matters is learnt again soon.
const LINKS_MAX: usize = 1 << 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Link {
    next: u32,
    access: Access,
    trust: u8,
    /// How often it was followed since the last probe.
    followed: u8,
}

/// Where a thread is.
#[derive(Debug, Default)]
struct Trail {
    /// The last page that it missed, or that was asked for ahead.
    last: u32,
    /// The link behind `last` was left out.
    probes: bool,
    /// What was asked for ahead.
    ahead: Vec<(u32, Access)>,
}

#[derive(Debug, Default)]
pub(super) struct Chains {
    links: HashMap<u32, Link>,
    trails: HashMap<u32, Trail>,
}

impl Chains {
    /// A slot's thread misses a page; `goes_on`: soon after it got the one before. Answers what to ask for
    /// besides, if it is not here.
    pub(super) fn missed(
        &mut self,
        slot: u32,
        page: u32,
        access: Access,
        goes_on: bool,
    ) -> &[(u32, Access)] {
        let trail = self.trails.entry(slot).or_default();
        if goes_on && trail.ahead.iter().any(|(ahead, _)| *ahead == page) {
            // On its way, or taken away again.
            return &[];
        }
        let (last, probes) = (trail.last, trail.probes);
        if goes_on {
            self.learn(last, page, access);
        } else if probes {
            self.doubt(last);
        }
        let trail = self.walk(page);
        &self.trails.entry(slot).insert_entry(trail).into_mut().ahead
    }

    /// What has come behind the page so far.
    fn walk(&mut self, page: u32) -> Trail {
        let mut trail = Trail {
            last: page,
            ..Trail::default()
        };
        while trail.ahead.len() < LENGTH_MAX {
            let Some(link) = self.links.get_mut(&trail.last) else {
                break;
            };
            let is_known = |(ahead, _): &(u32, Access)| *ahead == link.next;
            if link.trust < TRUSTED || link.next == page || trail.ahead.iter().any(is_known) {
                break;
            }
            link.followed += 1;
            if link.followed == PROBE_EVERY {
                link.followed = 0;
                trail.probes = true;
                break;
            }
            trail.ahead.push((link.next, link.access));
            trail.last = link.next;
        }
        trail
    }

    /// The slot's thread does something else now.
    pub(super) fn interrupted(&mut self, slot: u32) {
        self.trails.remove(&slot);
    }

    fn learn(&mut self, last: u32, page: u32, access: Access) {
        if last == page {
            // Read first, then written to.
            return;
        }
        if self.links.len() >= LINKS_MAX {
            self.links.clear();
        }
        let new = Link {
            next: page,
            access,
            trust: 1,
            followed: 0,
        };
        let Some(link) = self.links.get_mut(&last) else {
            self.links.insert(last, new);
            return;
        };
        if link.next == page {
            link.access = access;
            link.trust = (link.trust + 1).min(TRUST_MAX);
        } else if link.trust > 0 {
            link.trust -= 1;
        } else {
            *link = new;
        }
    }

    fn doubt(&mut self, page: u32) {
        if let Some(link) = self.links.get_mut(&page) {
            link.trust = link.trust.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Access::{Read, Write};

    /// Misses all of them in order, the first after a pause; what was asked for at each.
    fn run(chains: &mut Chains, slot: u32, pages: &[(u32, Access)]) -> Vec<Vec<(u32, Access)>> {
        let misses = pages.iter().enumerate();
        misses
            .map(|(i, (page, access))| chains.missed(slot, *page, *access, i > 0).to_vec())
            .collect()
    }

    const CHAIN: [(u32, Access); 3] = [(10, Read), (70, Write), (30, Read)];

    #[test]
    fn what_has_come_behind_a_page_twice_is_asked_for_with_it() {
        let mut chains = Chains::default();
        for _ in 0..2 {
            assert_eq!(run(&mut chains, 0, &CHAIN), [vec![], vec![], vec![]]);
        }
        // By any thread, from any page of the chain on.
        assert_eq!(run(&mut chains, 1, &CHAIN[..1]), [CHAIN[1..].to_vec()]);
        assert_eq!(run(&mut chains, 2, &CHAIN[1..2]), [CHAIN[2..].to_vec()]);
        // What is missed although it was asked for asks for nothing again, and teaches nothing.
        assert_eq!(chains.missed(1, 30, Read, true), []);
        assert_eq!(run(&mut chains, 3, &CHAIN[..1]), [CHAIN[1..].to_vec()]);
    }

    #[test]
    fn a_pause_and_an_interrupt_end_a_chain() {
        let mut chains = Chains::default();
        for _ in 0..4 {
            chains.missed(0, 10, Read, false);
            chains.missed(0, 20, Read, false);
            chains.interrupted(0);
        }
        assert_eq!(chains.missed(0, 10, Read, false), []);
        assert_eq!(chains.links, HashMap::new());
    }

    #[test]
    fn a_chain_grows_behind_what_was_asked_for() {
        let mut chains = Chains::default();
        for _ in 0..2 {
            run(&mut chains, 0, &CHAIN);
        }
        // 70 and 30 are there in time; 90 is missed next.
        for _ in 0..2 {
            assert_eq!(chains.missed(0, 10, Read, false), &CHAIN[1..]);
            assert_eq!(chains.missed(0, 90, Write, true), []);
        }
        let longer = [CHAIN[1], CHAIN[2], (90, Write)];
        assert_eq!(chains.missed(0, 10, Read, false), longer);
    }

    #[test]
    fn a_ring_of_pages_is_asked_for_once() {
        let mut chains = Chains::default();
        let ring: Vec<_> = (0..3 * 40).map(|i| (i % 40, Read)).collect();
        run(&mut chains, 0, &ring);
        let ahead = chains.missed(1, 5, Read, false);
        assert_eq!(ahead.len(), LENGTH_MAX);
        let small: Vec<_> = (0..30).map(|i| (100 + i % 3, Read)).collect();
        run(&mut chains, 0, &small);
        assert_eq!(
            chains.missed(1, 100, Read, false),
            [(101, Read), (102, Read)]
        );
    }

    #[test]
    fn what_no_longer_follows_is_found_out() {
        let mut chains = Chains::default();
        for _ in 0..2 {
            run(&mut chains, 0, &CHAIN[..2]);
        }
        let rounds = 4 * usize::from(PROBE_EVERY);
        let followed = |chains: &mut Chains| {
            (0..rounds)
                .filter(|_| !chains.missed(0, 10, Read, false).is_empty())
                .count()
        };
        let before = followed(&mut chains);
        assert!(
            before >= usize::from(PROBE_EVERY) - 1 && before < rounds / 2,
            "{before}"
        );
        assert_eq!(followed(&mut chains), 0);
        // What holds is left out now and then only.
        let mut chains = Chains::default();
        let mut asked = 0;
        for _ in 0..rounds {
            if chains.missed(0, 10, Read, false).is_empty() {
                chains.missed(0, 70, Write, true);
            } else {
                asked += 1;
            }
        }
        assert!(asked > rounds * 9 / 10, "{asked}");
    }

    #[test]
    fn memory_is_bounded() {
        let mut chains = Chains::default();
        for page in 0..3 * LINKS_MAX as u32 {
            chains.missed(0, page, Read, true);
        }
        assert!(chains.links.len() <= LINKS_MAX);
        assert_eq!(chains.trails.len(), 1);
    }
}
