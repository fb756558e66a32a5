//! Asks for pages before they are needed, where a thread goes through memory in order.
//!
//! A miss that asks another node costs the thread a round trip and two switches of context, many
//! times what the page itself costs. Fresh memory is handed out in runs of neighbouring pages, and
//! files are read in order: after a few misses one behind the other the next pages are asked for
//! together with the one that is needed. They are ordinary requests that no thread waits for. Runs
//! double from [`PAGES_MIN`] to [`PAGES_MAX`] as long as each is used up, as Linux reads files ahead.

use dsm::Access;
use std::ops::Range;

/// Misses in order before the next pages are asked for unasked.
const MISSES_MIN: u32 = 3;

const PAGES_MIN: u32 = 4;
const PAGES_MAX: u32 = 32;

/// Between the pages of one run lie misses elsewhere: page tables, counters, other CPUs' work.
const STREAMS: usize = 16;

#[derive(Debug, Clone, Copy)]
struct Stream {
    access: Access,
    /// Start of the last run.
    first: u32,
    /// Its end, where the next miss is expected.
    next: u32,
    misses: u32,
    /// Length of the last run, 0 before the first.
    pages: u32,
    /// When it was last used, in misses.
    used: u64,
}

#[derive(Debug, Default)]
pub(super) struct Readahead {
    streams: Vec<Stream>,
    misses: u64,
}

impl Readahead {
    /// A page that another node has to give is missed here; the pages to ask for besides, of as
    /// many as there are in `memory_pages`.
    pub(super) fn missed(&mut self, page: u32, access: Access, memory_pages: u32) -> Range<u32> {
        self.misses += 1;
        let used = self.misses;
        let known = |stream: &&mut Stream| {
            (stream.first..=stream.next).contains(&page) && stream.access == access
        };
        let Some(stream) = self.streams.iter_mut().find(known) else {
            self.begin(Stream {
                access,
                first: page + 1,
                next: page + 1,
                misses: 1,
                pages: 0,
                used,
            });
            return 0..0;
        };
        stream.used = used;
        if page < stream.next {
            // Asked for and not here yet.
            return 0..0;
        }
        stream.misses += 1;
        let first = page + 1;
        if stream.misses >= MISSES_MIN {
            stream.pages = (stream.pages * 2).clamp(PAGES_MIN, PAGES_MAX);
        }
        let end = first.saturating_add(stream.pages).min(memory_pages);
        (stream.first, stream.next) = (first, end.max(first));
        first..stream.next
    }

    fn begin(&mut self, stream: Stream) {
        if self.streams.len() < STREAMS {
            self.streams.push(stream);
        } else if let Some(oldest) = self.streams.iter_mut().min_by_key(|stream| stream.used) {
            *oldest = stream;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u32 = 1 << 20;

    fn missed(readahead: &mut Readahead, page: u32) -> Range<u32> {
        readahead.missed(page, Access::Write, MEMORY)
    }

    #[test]
    fn runs_grow_while_they_are_used_up() {
        let mut readahead = Readahead::default();
        let mut page = 100;
        let mut lengths = Vec::new();
        for _ in 0..8 {
            let ahead = missed(&mut readahead, page);
            assert!(ahead.is_empty() || ahead.start == page + 1);
            lengths.push(ahead.len());
            page = ahead.end.max(page + 1);
        }
        assert_eq!(lengths, [0, 0, 4, 8, 16, 32, 32, 32]);
    }

    #[test]
    fn scattered_misses_ask_for_nothing_more() {
        let mut readahead = Readahead::default();
        for i in 0..1000 {
            assert!(missed(&mut readahead, i * 7919 % 10_007).is_empty());
        }
    }

    #[test]
    fn a_run_goes_on_between_other_misses() {
        let mut readahead = Readahead::default();
        for page in 100..102 {
            assert!(missed(&mut readahead, page).is_empty());
            for other in 1..STREAMS as u32 {
                assert!(missed(&mut readahead, page * 1000 + other * 2).is_empty());
            }
        }
        assert_eq!(missed(&mut readahead, 102), 103..107);
    }

    #[test]
    fn reading_and_writing_are_apart() {
        let mut readahead = Readahead::default();
        for page in 100..110 {
            let access = [Access::Read, Access::Write][page as usize % 2];
            assert!(readahead.missed(page, access, MEMORY).is_empty());
        }
    }

    #[test]
    fn a_page_on_its_way_is_not_asked_for_again() {
        let mut readahead = Readahead::default();
        for page in 100..102 {
            assert!(missed(&mut readahead, page).is_empty());
        }
        assert_eq!(missed(&mut readahead, 102), 103..107);
        for page in 103..107 {
            assert!(missed(&mut readahead, page).is_empty());
        }
        assert_eq!(missed(&mut readahead, 107), 108..116);
    }

    #[test]
    fn memory_ends() {
        let mut readahead = Readahead::default();
        for page in MEMORY - 4..MEMORY - 2 {
            assert!(missed(&mut readahead, page).is_empty());
        }
        assert_eq!(missed(&mut readahead, MEMORY - 2), MEMORY - 1..MEMORY);
        assert!(missed(&mut readahead, MEMORY - 1).is_empty());
        assert!(missed(&mut readahead, MEMORY - 1).is_empty());
    }
}
