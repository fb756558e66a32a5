//! Deadlines by page and kind, soonest first. Ordered containers only, so that two runs with the
//! same input expire in the same order.

use crate::types::PageId;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Hash, Debug)]
pub(crate) struct Timers<K> {
    by_key: BTreeMap<(PageId, K), u64>,
    by_time: BTreeSet<(u64, PageId, K)>,
}

impl<K: Copy + Ord> Timers<K> {
    pub(crate) fn new() -> Self {
        Timers {
            by_key: BTreeMap::new(),
            by_time: BTreeSet::new(),
        }
    }

    pub(crate) fn set(&mut self, page: PageId, kind: K, at_ns: u64) {
        if let Some(old) = self.by_key.insert((page, kind), at_ns) {
            if old == at_ns {
                return;
            }
            self.by_time.remove(&(old, page, kind));
        }
        self.by_time.insert((at_ns, page, kind));
    }

    pub(crate) fn clear(&mut self, page: PageId, kind: K) {
        if let Some(old) = self.by_key.remove(&(page, kind)) {
            self.by_time.remove(&(old, page, kind));
        }
    }

    pub(crate) fn next(&self) -> Option<u64> {
        self.by_time.first().map(|t| t.0)
    }

    /// Takes what has expired. Taken at once, so that deadlines set meanwhile wait for the next
    /// call, even if they have passed already.
    pub(crate) fn expired(&mut self, now_ns: u64) -> Vec<(PageId, K)> {
        let mut expired = Vec::new();
        while let Some(&(at_ns, page, kind)) = self.by_time.first()
            && at_ns <= now_ns
        {
            self.by_time.pop_first();
            self.by_key.remove(&(page, kind));
            expired.push((page, kind));
        }
        expired
    }
}
