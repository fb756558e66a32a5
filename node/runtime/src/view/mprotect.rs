//! Protection by `mprotect`: an access that is not allowed is a SIGSEGV.
//!
//! It splits host mappings, of which a process may have `vm.max_map_count`. A page may always be protected
//! more than its state allows, at the price of a local fault, so under pressure whole stretches of the view
//! are closed and opened again page by page as they are used.

use super::{Protection, check};
use crate::image::PAGE_BYTES;
use std::io;

/// Pages closed at a time when the host's mappings run out.
const COLLAPSE_PAGES: usize = 1024;

/// Mappings left to everything else in the process: stacks, libraries, heaps, stub slots.
const OTHER_MAPPINGS: usize = 6000;

#[derive(Debug)]
pub(super) struct Mprotect {
    /// Where the view begins.
    start: usize,
    /// First page of allocatable memory: what lies before it is the image.
    heap_first: usize,
    /// Neighbouring pages with different protection: the mappings the view costs.
    borders: usize,
    borders_max: usize,
    collapse_next: usize,
}

impl Mprotect {
    pub(super) fn new(start: usize, heap_first: usize) -> Self {
        Self {
            start,
            heap_first,
            borders: 0,
            borders_max: max_map_count().saturating_sub(OTHER_MAPPINGS),
            collapse_next: heap_first,
        }
    }

    /// Changes the protection of a page, and of others if there are too many mappings.
    pub(super) fn protect(
        &mut self,
        protections: &mut [Protection],
        page: usize,
        protection: Protection,
    ) -> io::Result<()> {
        if self.borders >= self.borders_max {
            self.collapse(protections)?;
        }
        while let Err(error) = self.set(page, page + 1, protection) {
            // Others in the process may have more mappings than were left to them.
            let before = self.borders;
            self.collapse(protections)?;
            if error.raw_os_error() != Some(libc::ENOMEM) || self.borders == before {
                return Err(error);
            }
        }
        let before = borders_around(protections, page);
        protections[page] = protection;
        self.borders = self.borders + borders_around(protections, page) - before;
        Ok(())
    }

    fn set(&self, from: usize, to: usize, protection: Protection) -> io::Result<()> {
        // SAFETY: the pages lie in the view, and the runtime alone protects it.
        check(unsafe {
            libc::mprotect(
                (self.start + from * PAGE_BYTES) as *mut _,
                (to - from) * PAGE_BYTES,
                protection.host_flags(),
            )
        })
    }

    /// Closes the next stretch that costs more mappings than a closed one.
    fn collapse(&mut self, protections: &mut [Protection]) -> io::Result<()> {
        let first_free = self.collapse_next;
        let mut from = first_free;
        loop {
            let to = (from + COLLAPSE_PAGES).min(protections.len());
            let inside = protections[from..to]
                .windows(2)
                .filter(|pair| pair[0] != pair[1])
                .count();
            let next = if to == protections.len() {
                self.heap_first
            } else {
                to
            };
            if inside > 2 {
                self.set(from, to, Protection::None)?;
                let edges = |protections: &[Protection]| {
                    usize::from(from > 0 && protections[from - 1] != protections[from])
                        + usize::from(
                            to < protections.len() && protections[to - 1] != protections[to],
                        )
                };
                let before = inside + edges(protections);
                protections[from..to].fill(Protection::None);
                self.borders = self.borders + edges(protections) - before;
                self.collapse_next = next;
                return Ok(());
            }
            from = next;
            if from == first_free {
                return Ok(());
            }
        }
    }
}

fn borders_around(protections: &[Protection], page: usize) -> usize {
    let differs = |a: usize, b: usize| {
        matches!(
            (protections.get(a), protections.get(b)),
            (Some(x), Some(y)) if x != y
        )
    };
    usize::from(page > 0 && differs(page - 1, page)) + usize::from(differs(page, page + 1))
}

fn max_map_count() -> usize {
    std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(65530)
}
