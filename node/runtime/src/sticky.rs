//! A stub on the host's processor that its vCPU is on.
//!
//! A vCPU and the stub that it runs take turns: one sleeps while the other runs. The host's scheduler does not
//! know that, and wakes either on a processor that is idle: each turn then costs an interrupt between processors,
//! and waking one that was put to sleep. So while turns are short both may use one processor only, the one that the
//! vCPU happened to be on. Now and then both are free for a turn, so that the host can spread its work, and they
//! stay free while turns are long: a program that computes goes wherever there is room.
//!
//! Context: any thread of the kernel's, also on a stack in guest memory: what the host is shown lies in this
//! library's own memory.

use crate::clock;
use std::cell::{Cell, UnsafeCell};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Turns that are shorter keep a vCPU and its stub together.
const SHORT_NS: u64 = 500_000;

/// How long they are kept together before the host may choose again.
const TOGETHER_NS: u64 = 20_000_000;

/// Processors that a mask has, as many as the host's kernel can have on x86-64.
const CPUS_MAX: usize = 8192;
const WORDS: usize = CPUS_MAX / 64;
type Mask = [u64; WORDS];

/// Where this process may run at all; none if there is nothing to choose.
static ALL: OnceLock<Option<Box<Mask>>> = OnceLock::new();

/// How many processors these are, as many as there could be before it is known; and stubs that run now.
static PROCESSORS: AtomicU32 = AtomicU32::new(u32::MAX);
static STUBS: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static TURNS: Cell<Turns> = const { Cell::new(Turns::FREE) };
    static ONE: UnsafeCell<Mask> = const { UnsafeCell::new([0; WORDS]) };
    static NOW: UnsafeCell<libc::timespec> =
        const { UnsafeCell::new(libc::timespec { tv_sec: 0, tv_nsec: 0 }) };
}

/// Where a thread may run: anywhere, or on one processor.
type Place = Option<u16>;

/// The turns of a vCPU with its stubs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Turns {
    /// Where the vCPU may run, and until when that is not asked again.
    place: Place,
    until_ns: u64,
    began_ns: u64,
}

impl Turns {
    const FREE: Turns = Turns {
        place: None,
        until_ns: 0,
        began_ns: 0,
    };

    /// A turn begins: where both may run.
    fn begin(&mut self, now_ns: u64) -> Place {
        if now_ns >= self.until_ns {
            self.place = None;
        }
        self.began_ns = now_ns;
        self.place
    }

    /// A turn has ended while the vCPU was on `here`: where it may run now.
    fn end(&mut self, now_ns: u64, here: Place) -> Place {
        if now_ns - self.began_ns >= SHORT_NS {
            self.place = None;
        } else if self.place.is_none() {
            self.place = here;
            self.until_ns = now_ns + TOGETHER_NS;
        }
        self.place
    }
}

/// Finds out whether there is something to choose; before the kernel runs.
pub(crate) fn set_up() {
    let mut mask = Box::new([0u64; WORDS]);
    // SAFETY: passes memory of the length given.
    let bytes = unsafe {
        libc::syscall(
            libc::SYS_sched_getaffinity,
            0,
            size_of::<Mask>(),
            mask.as_mut_ptr(),
        )
    };
    let count: u32 = mask.iter().map(|word| word.count_ones()).sum();
    if count > 0 {
        PROCESSORS.store(count, Relaxed);
    }
    let _ = ALL.set((bytes > 0 && count > 1).then_some(mask));
}

/// As many of the guest's programs run on this node now as it has processors.
pub(crate) fn programs_have_all() -> bool {
    STUBS.load(Relaxed) >= PROCESSORS.load(Relaxed)
}

fn all() -> Option<&'static Mask> {
    ALL.get().and_then(|all| all.as_deref())
}

/// Whether the host has let `thread` (0: the calling one) run there, and only there.
fn allow(thread: i32, place: Place, all: &Mask) -> bool {
    ONE.with(|one| {
        let mask = match place {
            None => std::ptr::from_ref(all),
            Some(cpu) => {
                let cpu = usize::from(cpu);
                // SAFETY: the thread's own, and nothing else refers to it.
                unsafe {
                    *one.get() = [0; WORDS];
                    (*one.get())[cpu / 64] = 1 << (cpu % 64);
                }
                one.get()
            }
        };
        // SAFETY: reads memory of the length given.
        let result =
            unsafe { libc::syscall(libc::SYS_sched_setaffinity, thread, size_of::<Mask>(), mask) };
        result == 0
    })
}

/// The processor that this thread is on, if a mask has it.
fn here() -> Place {
    // SAFETY: no arguments.
    let cpu = unsafe { libc::sched_getcpu() };
    u16::try_from(cpu)
        .ok()
        .filter(|cpu| usize::from(*cpu) < CPUS_MAX)
}

fn now_ns() -> u64 {
    // SAFETY: the thread's own, and no signal handler comes here.
    NOW.with(|now| unsafe { clock::host_ns_by(now.get()) })
}

/// How the kernel keeps a place with a stub: 0 is anywhere.
fn number(place: Place) -> i32 {
    place.map_or(0, |cpu| i32::from(cpu) + 1)
}

/// Follows a change of where the vCPU itself may run; a host that refuses leaves it as it is.
fn change(change: impl FnOnce(&mut Turns) -> Place, all: &Mask) -> Place {
    let before = TURNS.get();
    let mut turns = before;
    let place = change(&mut turns);
    if place != before.place && !allow(0, place, all) {
        turns.place = before.place;
    }
    TURNS.set(turns);
    turns.place
}

/// A vCPU is about to run a stub, which may run where `stub` says. Answers what it says now.
pub(crate) fn turn_begins(pid: i32, stub: i32) -> i32 {
    STUBS.fetch_add(1, Relaxed);
    let Some(all) = all() else { return stub };
    let now_ns = now_ns();
    let place = change(|turns| turns.begin(now_ns), all);
    if stub == number(place) || allow(pid, place, all) {
        number(place)
    } else {
        stub
    }
}

/// The stub has stopped.
pub(crate) fn turn_ends() {
    STUBS.fetch_sub(1, Relaxed);
    let Some(all) = all() else { return };
    let now_ns = now_ns();
    change(|turns| turns.end(now_ns, here()), all);
}

/// Whoever wakes the vCPU next is not its stub, or it is about to start somebody who would be kept with it.
pub(crate) fn free() {
    let Some(all) = all() else { return };
    if TURNS.get().place.is_some() {
        change(
            |turns| {
                *turns = Turns::FREE;
                None
            },
            all,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_turns_keep_both_together_for_a_while() {
        let mut turns = Turns::FREE;
        assert_eq!(turns.begin(1_000), None);
        assert_eq!(turns.end(5_000, Some(3)), Some(3));
        assert_eq!(turns.begin(6_000), Some(3));
        // Where the vCPU was does not matter while it is kept.
        assert_eq!(turns.end(7_000, Some(1)), Some(3));

        let until_ns = 5_000 + TOGETHER_NS;
        assert_eq!(turns.begin(until_ns - 1), Some(3));
        assert_eq!(turns.end(until_ns, Some(3)), Some(3));
        assert_eq!(turns.begin(until_ns), None, "the host may choose again");
        assert_eq!(turns.end(until_ns + 1, Some(1)), Some(1));
    }

    #[test]
    fn long_turns_set_both_free() {
        let mut turns = Turns::FREE;
        turns.begin(0);
        assert_eq!(turns.end(1, Some(0)), Some(0));
        turns.begin(2);
        assert_eq!(turns.end(2 + SHORT_NS, Some(0)), None);
        assert_eq!(turns.begin(3 + SHORT_NS), None);
        assert_eq!(turns.end(3 + 2 * SHORT_NS, Some(0)), None, "and still long");
    }

    #[test]
    fn a_thread_is_kept_and_set_free() {
        // Of a thread of its own: tests share none.
        let kept = std::thread::spawn(|| {
            set_up();
            let all = all()?;
            let place = here();
            assert!(allow(0, place, all));
            let allowed = allowed_now();
            assert!(allow(0, None, all));
            Some((place, allowed, allowed_now()))
        })
        .join()
        .expect("no panic");
        match kept {
            None => println!("not tested: this process may use one processor only"),
            Some((place, kept, free)) => {
                let cpu = usize::from(place.expect("a processor"));
                assert_eq!(kept, [cpu]);
                assert!(free.len() > 1, "{free:?}");
            }
        }
    }

    fn allowed_now() -> Vec<usize> {
        let mut mask = Box::new([0u64; WORDS]);
        // SAFETY: passes memory of the length given.
        let bytes = unsafe {
            libc::syscall(
                libc::SYS_sched_getaffinity,
                0,
                size_of::<Mask>(),
                mask.as_mut_ptr(),
            )
        };
        assert!(bytes > 0);
        (0..CPUS_MAX)
            .filter(|cpu| mask[cpu / 64] & (1 << (cpu % 64)) != 0)
            .collect()
    }
}
