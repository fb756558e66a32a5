//! Memory of pages that this node no longer has, where it must not take as much as it likes.
//!
//! The engine keeps the number of pages of other homes below a bound, and says of which pages the bytes
//! are of no use any more. Their memory goes back to the host some at a time, since many of them are
//! neighbours, and some come back at once.

use super::{Pager, homes};
use crate::control;
use crate::image::{NodeImage, PAGE_BYTES};
use dsm::PageId;
use span_api::guest::{NodeSpec, Setup};
use std::collections::BTreeSet;

/// Pages whose memory has yet to go.
const LOOSE_MAX: usize = 256;

/// Less is not worth a node's while: pages would go as fast as they come.
const FOREIGN_MIN: u32 = 1024;

#[derive(Debug, Default)]
pub(super) struct Loose(BTreeSet<u32>);

/// How many pages of other homes this node may have; `None`: any number.
pub(super) fn foreign_max(setup: &Setup, image: &NodeImage) -> Option<u32> {
    let me = setup.node;
    let NodeSpec { limit_bytes, .. } = &setup.nodes[usize::from(me)];
    let limit = ((*limit_bytes)? / PAGE_BYTES as u64) as u32;
    let homes = homes(setup);
    let ends = homes.iter().skip(1).map(|(first, _)| first.0);
    let ends = ends.chain([(image.memory_size / PAGE_BYTES) as u32]);
    let own: u32 = homes
        .iter()
        .zip(ends)
        .filter(|((_, home), _)| home.0 == me)
        .map(|((first, _), end)| end - first.0)
        .sum();
    let taken = own + LOOSE_MAX as u32;
    match limit.checked_sub(taken) {
        Some(foreign) if foreign >= FOREIGN_MIN => Some(foreign),
        _ => control::fail(&format!(
            "--mem-limit: node {me} may hold {limit} pages; {} is the least",
            taken + FOREIGN_MIN
        )),
    }
}

impl Pager {
    pub(super) fn discard(&mut self, page: u32) {
        self.loose.0.insert(page);
        if self.loose.0.len() < LOOSE_MAX {
            return;
        }
        let engine = &self.engine;
        let mut pages = std::mem::take(&mut self.loose.0)
            .into_iter()
            .filter(|page| !engine.keeps(PageId(*page)))
            .peekable();
        while let Some(first) = pages.next() {
            let mut end = first + 1;
            while pages.next_if_eq(&end).is_some() {
                end += 1;
            }
            if let Err(error) = self.view.discard(first..end) {
                control::fail(&format!("giving guest memory back to the host: {error}"));
            }
        }
    }
}
