//! Directories that are made up here, listed entry by entry.
//!
//! The guest's kernel opens a directory anew for each part of it and says where it was. So that a part follows the last
//! whatever was removed or added meanwhile, the listings of late are kept: a position names the listing and the entry
//! in it. One that is gone is made anew, and the position counts in that.

use super::super::env::Env;
use super::super::exec::{Done, Op, Work};
use super::directory::owned;
use super::opened::{Held, Opened};
use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) inode: u64,
    /// `DT_…`
    pub(super) kind: u8,
    pub(super) name: Vec<u8>,
}

/// A directory that can be listed, and what else can be asked of its descriptor.
pub(super) trait Source: Debug + Send + Sync {
    /// All entries, with `.` and `..`.
    fn entries(&self) -> Result<Vec<Entry>, i32>;
    fn exec(&self, env: &Env, work: &Work) -> Option<Done>;
}

type Snapshot = (i64, Arc<Vec<Entry>>);

/// Listings that are kept.
const RECENT_MAX: usize = 16;
/// Numbers of listings go round; zero is none.
const NUMBERS: i64 = 1 << 24;
const NUMBER_SHIFT: u32 = 32;

static RECENT: Mutex<(i64, VecDeque<Snapshot>)> = Mutex::new((0, VecDeque::new()));

pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|error| error.into_inner())
}

fn remember(entries: Vec<Entry>) -> Snapshot {
    let mut recent = lock(&RECENT);
    recent.0 = recent.0 % (NUMBERS - 1) + 1;
    let snapshot = (recent.0, Arc::new(entries));
    recent.1.truncate(RECENT_MAX - 1);
    recent.1.push_front(snapshot.clone());
    snapshot
}

fn recall(number: i64) -> Option<Snapshot> {
    let recent = lock(&RECENT);
    recent.1.iter().find(|one| one.0 == number).cloned()
}

#[derive(Debug)]
struct Listing<S> {
    source: S,
    place: Mutex<Place>,
}

#[derive(Debug, Default)]
struct Place {
    snapshot: Option<Snapshot>,
    at: usize,
}

/// A descriptor to list a directory by.
pub(super) fn open(source: impl Source + 'static) -> Result<Opened, i32> {
    // SAFETY: passes a string.
    let fd = owned(unsafe { libc::memfd_create(c"span-list".as_ptr(), libc::MFD_CLOEXEC) }.into())?;
    let listing = Listing {
        source,
        place: Mutex::default(),
    };
    Ok(Opened {
        fd,
        held: Some(Arc::new(listing)),
    })
}

impl<S: Source> Listing<S> {
    fn seek(&self, to: i64, whence: i32) -> Result<Done, i32> {
        if whence != libc::SEEK_SET || to < 0 {
            return Err(libc::EINVAL);
        }
        let mut place = lock(&self.place);
        place.snapshot = recall(to >> NUMBER_SHIFT);
        place.at = (to & ((1 << NUMBER_SHIFT) - 1)) as usize;
        let mut done = Done::of(0);
        done.result = to;
        Ok(done)
    }

    /// As getdents64(2) lays them out.
    fn read(&self, to: &mut [u8]) -> Result<usize, i32> {
        let mut place = lock(&self.place);
        let (number, entries) = match &place.snapshot {
            Some(snapshot) => snapshot.clone(),
            None => remember(self.source.entries()?),
        };
        place.snapshot = Some((number, entries.clone()));
        let mut len = 0;
        while let Some(entry) = entries.get(place.at) {
            let record = (NAME_AT + entry.name.len() + 1).next_multiple_of(8);
            let Some(to) = to.get_mut(len..len + record) else {
                break;
            };
            let next = number << NUMBER_SHIFT | (place.at as i64 + 1);
            to.fill(0);
            to[..8].copy_from_slice(&entry.inode.to_ne_bytes());
            to[8..16].copy_from_slice(&next.to_ne_bytes());
            to[16..18].copy_from_slice(&(record as u16).to_ne_bytes());
            to[18] = entry.kind;
            to[NAME_AT..NAME_AT + entry.name.len()].copy_from_slice(&entry.name);
            len += record;
            place.at += 1;
        }
        match len == 0 && entries.get(place.at).is_some() {
            true => Err(libc::EINVAL),
            false => Ok(len),
        }
    }
}

/// Where an entry's name begins.
pub(super) const NAME_AT: usize = 19;

impl<S: Source> Held for Listing<S> {
    fn exec(&self, env: &Env, work: &Work) -> Option<Done> {
        let done = match work.op {
            Op::Seek => self.seek(work.args[1], work.int(2)),
            Op::Entries => {
                // SAFETY: the maker of the work guarantees that many bytes.
                let to = unsafe { std::slice::from_raw_parts_mut(work.output, work.output_cap) };
                let result = self.read(to);
                result.map(|len| Done::with_output(len as i64, len))
            }
            Op::Sync => Ok(Done::of(0)),
            Op::Read | Op::Pread => Err(libc::EISDIR),
            _ => return self.source.exec(env, work),
        };
        Some(done.unwrap_or_else(Done::error))
    }
}
