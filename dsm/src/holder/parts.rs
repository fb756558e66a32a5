//! Which transaction was the last on each page that this node had a part in, and what part, so
//! that a duplicate is answered in the same way again and a late arrival is dropped.
//!
//! A home runs one transaction per page at a time and numbers them upwards. So of one page only
//! the last matters, and that only until the home says that everything up to it is over.

use crate::types::{NodeId, PageId, State};
use std::collections::BTreeMap;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Part {
    /// A job that has not been answered yet.
    Working,
    Supplied {
        state: State,
        clean: bool,
    },
    Acknowledged,
    Returned {
        page: bool,
    },
    Granted,
}

/// What a transaction number says about a message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Seen {
    New,
    /// The last one, in which this node had this part.
    Again(Part),
    /// Over.
    Stale,
}

#[derive(Clone, Hash, Debug)]
pub(super) struct Parts {
    by_page: BTreeMap<PageId, (u64, Part)>,
    by_txn: BTreeMap<(NodeId, u64), PageId>,
    /// Per home: everything below is over.
    floors: Vec<u64>,
}

impl Parts {
    pub(super) fn new(nodes: u16) -> Parts {
        Parts {
            by_page: BTreeMap::new(),
            by_txn: BTreeMap::new(),
            floors: vec![0; nodes as usize],
        }
    }

    pub(super) fn seen(&self, home: NodeId, page: PageId, txn: u64) -> Seen {
        if txn < self.floors[home.0 as usize] {
            return Seen::Stale;
        }
        match self.by_page.get(&page) {
            Some((last, _)) if txn < *last => Seen::Stale,
            Some((last, part)) if txn == *last => Seen::Again(*part),
            _ => Seen::New,
        }
    }

    pub(super) fn remember(&mut self, home: NodeId, page: PageId, txn: u64, part: Part) {
        if let Some((old, _)) = self.by_page.insert(page, (txn, part)) {
            self.by_txn.remove(&(home, old));
        }
        self.by_txn.insert((home, txn), page);
    }

    /// The home says that every transaction below `floor` is over.
    pub(super) fn raise_floor(&mut self, home: NodeId, floor: u64) {
        let known = &mut self.floors[home.0 as usize];
        if floor <= *known {
            return;
        }
        *known = floor;
        while let Some((&(at, txn), &page)) = self.by_txn.range((home, 0)..(home, floor)).next() {
            self.by_txn.remove(&(at, txn));
            self.by_page.remove(&page);
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        assert_eq!(self.by_page.len(), self.by_txn.len());
        self.by_page.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: NodeId = NodeId(1);
    const A: PageId = PageId(3);
    const B: PageId = PageId(4);

    #[test]
    fn only_the_last_of_a_page_is_answered_again() {
        let mut parts = Parts::new(2);
        assert_eq!(parts.seen(HOME, A, 5), Seen::New);
        parts.remember(HOME, A, 5, Part::Working);
        assert_eq!(parts.seen(HOME, A, 5), Seen::Again(Part::Working));
        parts.remember(HOME, A, 5, Part::Acknowledged);
        assert_eq!(parts.seen(HOME, A, 5), Seen::Again(Part::Acknowledged));
        assert_eq!(parts.seen(HOME, A, 4), Seen::Stale);
        assert_eq!(parts.seen(HOME, B, 4), Seen::New);
        parts.remember(HOME, A, 9, Part::Granted);
        assert_eq!(parts.seen(HOME, A, 5), Seen::Stale);
        assert_eq!(parts.len(), 1);
    }

    #[test]
    fn the_floor_forgets_and_still_refuses() {
        let mut parts = Parts::new(2);
        parts.remember(HOME, A, 5, Part::Granted);
        parts.remember(HOME, B, 7, Part::Granted);
        parts.remember(NodeId(0), PageId(0), 1, Part::Granted);
        parts.raise_floor(HOME, 7);
        assert_eq!(parts.len(), 2);
        assert_eq!(parts.seen(HOME, A, 5), Seen::Stale);
        assert_eq!(parts.seen(HOME, B, 7), Seen::Again(Part::Granted));
        assert_eq!(
            parts.seen(NodeId(0), PageId(0), 1),
            Seen::Again(Part::Granted)
        );
        parts.raise_floor(HOME, 6);
        assert_eq!(parts.seen(HOME, A, 6), Seen::Stale, "a floor only rises");
    }
}
