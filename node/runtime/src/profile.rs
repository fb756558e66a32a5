//! For whom vCPU threads fetch pages that user processes need, while somebody profiles the guest.
//!
//! Off, it costs one relaxed load for each such page.

use crate::slots::SLOTS;
use span_api::profile::UserPage;
use std::ffi::{c_char, c_int, c_ulong};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::Relaxed};

static ON: AtomicBool = AtomicBool::new(false);

/// `struct node_user` of the kernel's `node.h`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct NodeUser {
    pub process: c_int,
    pub address: c_ulong,
    pub instruction: c_ulong,
    pub name: [c_char; 16],
}

/// What a slot's thread fetches now. Only that thread writes it, before it takes the pager's lock to ask for
/// the page; the pager reads it while the thread waits.
#[derive(Debug)]
struct Fetch {
    process: AtomicI32,
    address: AtomicU64,
    instruction: AtomicU64,
    name: [AtomicU64; 2],
}

static FETCHES: [Fetch; SLOTS] = [const {
    Fetch {
        process: AtomicI32::new(0),
        address: AtomicU64::new(0),
        instruction: AtomicU64::new(0),
        name: [const { AtomicU64::new(0) }; 2],
    }
}; SLOTS];

pub(crate) fn turn(on: bool) {
    ON.store(on, Relaxed);
}

pub(crate) fn is_on() -> bool {
    ON.load(Relaxed)
}

/// The slot's thread is about to ask for a page.
pub(crate) fn fetch_for(slot: usize, user: NodeUser) {
    let fetch = &FETCHES[slot];
    let name = user.name.map(|letter| letter as u8);
    let (first, second) = name.split_at(8);
    for (to, half) in fetch.name.iter().zip([first, second]) {
        let mut word = [0; 8];
        word.copy_from_slice(half);
        to.store(u64::from_ne_bytes(word), Relaxed);
    }
    fetch.process.store(user.process, Relaxed);
    fetch.address.store(user.address, Relaxed);
    fetch.instruction.store(user.instruction, Relaxed);
}

/// For whom the slot's thread has asked for a page, which it waits for.
pub(crate) fn fetched_for(slot: u32) -> UserPage {
    let fetch = &FETCHES[slot as usize];
    let mut name = [0; 16];
    for (to, word) in name.chunks_exact_mut(8).zip(&fetch.name) {
        to.copy_from_slice(&word.load(Relaxed).to_ne_bytes());
    }
    UserPage {
        process: fetch.process.load(Relaxed),
        name,
        address: fetch.address.load(Relaxed),
        instruction: fetch.instruction.load(Relaxed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_all_its_letters_is_kept() {
        let name = *b"fifteen letters\0";
        let user = NodeUser {
            process: 7,
            address: 0x1234,
            instruction: 0x99,
            name: name.map(|letter| letter as c_char),
        };
        fetch_for(SLOTS - 1, user);
        let fetched = fetched_for(SLOTS as u32 - 1);
        assert_eq!((fetched.process, fetched.name), (7, name));
        assert_eq!((fetched.address, fetched.instruction), (0x1234, 0x99));
    }
}
