//! Forward progress of a thread whose next instruction needs several contended pages at once.
//!
//! The hold time alone lets it use *one* page. Two nodes that each have one of two pages and need
//! both can trade them for ever, if their timing is regular enough. So each waiter has a *working
//! set*: the pages it was granted lately and may still need. A request for a page of that set
//! means that the page was lost too early. The order of magnitude of the number of such losses
//! since the waiter last had its whole set at once, made unique by the number of its node, is its
//! *urgency*, and travels with its requests. A node puts off a request for a page in the working
//! set of a waiting thread if that thread's urgency is higher than that of everybody who waits
//! for the page. (Of the plain number the contenders overtake each other with every loss, and
//! nobody stays on top for long enough; that was seen.)
//!
//! Rejected: holding every page while its thread waits for another, which makes every contended
//! page wait for round trips it has nothing to do with; and fixed priorities by node, which
//! starve the last one.

use crate::types::{Access, NODES_MAX_WIDEST, NodeId, PageId};

use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Pages that one instruction is expected to touch: two operands, each across a page border, are
/// four.
const PAGES_MAX: usize = 4;
/// A page belongs to the working set for this many requests of its thread.
const REQUESTS_MAX: u64 = 2 * PAGES_MAX as u64;
/// Losses below this are the ordinary fate of contended pages.
const URGENT: u32 = PAGES_MAX as u32;
/// Tokens from here on are not tracked; each vCPU needs one or a few.
pub const WAITERS_MAX: u32 = 1024;

#[derive(Clone, Copy, Hash, Debug)]
struct Used {
    page: PageId,
    access: Access,
    /// When, counted in requests of the waiter.
    request: u64,
}

#[derive(Clone, Hash, Debug, Default)]
struct Waiter {
    set: Vec<Used>,
    requests: u64,
    losses: u32,
    waits: bool,
}

impl Waiter {
    fn urgency(&self, me: NodeId) -> u16 {
        match self.losses {
            ..URGENT => 0,
            losses => losses.ilog2() as u16 * NODES_MAX_WIDEST + (NODES_MAX_WIDEST - 1 - me.0),
        }
    }
}

/// The waiters of one node by their token.
#[derive(Clone, Hash, Debug, Default)]
pub(crate) struct Progress {
    waiters: BTreeMap<u32, Waiter>,
}

impl Progress {
    /// A thread asks for a page; `here` if the access is allowed already.
    pub(crate) fn requested(&mut self, token: u32, page: PageId, access: Access, here: bool) {
        if token >= WAITERS_MAX {
            return;
        }
        let waiter = self.waiters.entry(token).or_default();
        waiter.waits = true;
        waiter.requests += 1;
        let oldest = waiter.requests.saturating_sub(REQUESTS_MAX);
        waiter.set.retain(|used| used.request >= oldest);
        let had = waiter
            .set
            .iter()
            .any(|u| u.page == page && u.access >= access);
        if had && !here {
            waiter.losses = waiter.losses.saturating_add(1);
        }
        if waiter.set.is_empty() {
            waiter.losses = 0;
        }
    }

    /// The urgency of a waiter at node `me`, 0 if it is not urgent at all.
    pub(crate) fn urgency(&self, me: NodeId, token: u32) -> u16 {
        self.waiters.get(&token).map_or(0, |w| w.urgency(me))
    }

    /// The waiter's request has been granted. Returns the pages that it must not lose before it
    /// runs, apart from the one granted; `here` tells which are allowed.
    pub(crate) fn granted(
        &mut self,
        token: u32,
        page: PageId,
        access: Access,
        here: impl Fn(PageId, Access) -> bool,
    ) -> Vec<PageId> {
        let Some(waiter) = self.waiters.get_mut(&token) else {
            return Vec::new();
        };
        waiter.waits = false;
        let request = waiter.requests;
        match waiter.set.iter_mut().find(|u| u.page == page) {
            Some(used) => {
                used.access = used.access.max(access);
                used.request = request;
            }
            None => {
                if waiter.set.len() == PAGES_MAX {
                    waiter.set.sort_by_key(|u| Reverse(u.request));
                    waiter.set.pop();
                }
                waiter.set.push(Used {
                    page,
                    access,
                    request,
                });
            }
        }
        let urgent = waiter.losses >= URGENT;
        if waiter.set.iter().all(|u| here(u.page, u.access)) {
            waiter.losses = 0;
        }
        if !urgent {
            return Vec::new();
        }
        let others = waiter
            .set
            .iter()
            .filter(|u| u.page != page && here(u.page, u.access));
        others.map(|u| u.page).collect()
    }

    /// Whether a thread of this node that waits needs the page more urgently than `urgency`.
    pub(crate) fn outranks(&self, me: NodeId, page: PageId, urgency: u16) -> bool {
        self.waiters
            .values()
            .any(|w| w.waits && w.urgency(me) > urgency && w.set.iter().any(|u| u.page == page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PageId = PageId(1);
    const B: PageId = PageId(2);

    /// One round in which the waiter gets each page after having lost the other.
    fn lose_both(progress: &mut Progress) {
        for page in [A, B] {
            progress.requested(7, page, Access::Write, false);
            progress.granted(7, page, Access::Write, |p, _| p == page);
        }
    }

    #[test]
    fn losses_make_urgent_and_the_whole_set_ends_it() {
        let mut progress = Progress::default();
        for _ in 0..4 {
            lose_both(&mut progress);
        }
        let at = |node: u16, losses: u32| losses.ilog2() as u16 * 1024 + 1023 - node;
        assert_eq!(
            progress.urgency(NodeId(1), 7),
            at(1, 6),
            "the first round loses nothing"
        );
        progress.requested(7, A, Access::Write, false);
        assert!(
            progress.outranks(NodeId(1), B, 0),
            "waits, and needs B as well"
        );

        assert!(
            !progress.outranks(NodeId(1), B, at(0, 4)),
            "lower number among equals"
        );
        assert!(progress.outranks(NodeId(1), B, at(2, 7)));
        assert!(
            !progress.outranks(NodeId(1), B, at(2, 8)),
            "another order of magnitude"
        );
        assert!(!progress.outranks(NodeId(1), PageId(9), 0));
        let keep = progress.granted(7, A, Access::Write, |_, _| true);
        assert_eq!(keep, [B]);
        assert_eq!(progress.urgency(NodeId(0), 7), 0);
    }

    #[test]
    fn one_contended_page_is_no_reason_for_urgency() {
        let mut progress = Progress::default();
        for _ in 0..100 {
            progress.requested(7, A, Access::Write, false);
            progress.granted(7, A, Access::Write, |p, _| p == A);
        }
        assert_eq!(progress.urgency(NodeId(0), 7), 0);
    }

    #[test]
    fn reading_and_then_writing_loses_nothing() {
        let mut progress = Progress::default();
        for page in (0..100).map(PageId) {
            progress.requested(7, page, Access::Read, false);
            progress.granted(7, page, Access::Read, |_, _| false);
            progress.requested(7, page, Access::Write, false);
            progress.granted(7, page, Access::Write, |_, _| false);
        }
        assert_eq!(progress.urgency(NodeId(0), 7), 0);
    }

    #[test]
    fn pages_of_the_past_leave_the_set() {
        let mut progress = Progress::default();
        progress.requested(7, PageId(9), Access::Write, false);
        progress.granted(7, PageId(9), Access::Write, |_, _| true);
        for _ in 0..10 {
            lose_both(&mut progress);
        }
        progress.requested(7, A, Access::Write, false);
        progress.granted(7, A, Access::Write, |p, _| p == A || p == B);
        assert_eq!(
            progress.urgency(NodeId(0), 7),
            0,
            "page 9 is not waited for"
        );
    }
}
