//! Waiting without sleeping, as long as nobody else wants the processor.
//!
//! What a node waits for while pages move comes within some microseconds, far less than it takes the host to
//! put a processor to sleep and to wake it up again. But the processor may be needed by whoever is to bring it:
//! each look gives way to others, and if somebody else did run, there is no more looking.
//!
//! To somebody who computes, giving way is dear: he has the processor for some milliseconds, the host's turn, even
//! if what is waited for comes at once. Whoever sleeps is woken in time instead. A page takes several looks, on two
//! nodes: three programs that computed on two processors made a guest's boot ten times as long. So after one such
//! turn nobody here looks for a while.

use crate::clock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Giving way takes longer than this only if somebody else ran meanwhile.
const ALONE_NS: u64 = 4_000;

/// How long it is looked before whoever waits sleeps: as a rule the answer, or the next message, comes sooner.
const MOST_NS: u64 = 200_000;

/// Who runs for longer than this after somebody gave way to him computes: the nodes' own threads do not.
const COMPUTES_NS: u64 = 500_000;

/// So many times as long as such a turn there is no looking then: a twentieth of the time is lost at most. A turn of
/// 5 ms, the longest on many hosts, ends it for 0.1 s; one that was hardly one, of something else than a program that
/// computes, for no more than a few faults.
const TURNS_WITHOUT: u64 = 20;

/// What other nodes send may come that soon.
static PAYS: AtomicBool = AtomicBool::new(true);

/// No other node answers sooner than this: links may be slow on purpose.
pub(crate) fn pays(answer_ns_min: u64) {
    PAYS.store(answer_ns_min < MOST_NS, Relaxed);
}

/// How much later than he did whoever sleeps would, if no link were slow.
pub(crate) fn sleeps_early_ns() -> u64 {
    match PAYS.load(Relaxed) {
        true => 0,
        false => MOST_NS,
    }
}

/// Looks until `ready`, for a moment at most; whether it is.
pub(crate) fn until(ready: impl FnMut() -> bool) -> bool {
    static CROWD: Crowd = Crowd::new();
    CROWD.look(&Host, ready)
}

/// What looking asks of the host.
trait Processor {
    fn now_ns(&self) -> u64;
    /// Lets others run who want to.
    fn give_way(&self);
}

struct Host;

impl Processor for Host {
    fn now_ns(&self) -> u64 {
        clock::host_ns()
    }

    fn give_way(&self) {
        // SAFETY: no arguments.
        unsafe { libc::sched_yield() };
    }
}

/// Those who compute on the processors of this process.
#[derive(Debug)]
struct Crowd {
    /// Until when they are taken to do so.
    until_ns: AtomicU64,
}

impl Crowd {
    const fn new() -> Self {
        Self {
            until_ns: AtomicU64::new(0),
        }
    }

    fn look(&self, processor: &impl Processor, mut ready: impl FnMut() -> bool) -> bool {
        if !PAYS.load(Relaxed) {
            return ready();
        }
        let began_ns = processor.now_ns();
        if began_ns < self.until_ns.load(Relaxed) {
            return ready();
        }
        let mut now_ns = began_ns;
        while now_ns - began_ns < MOST_NS {
            if ready() {
                return true;
            }
            let before_ns = processor.now_ns();
            processor.give_way();
            now_ns = processor.now_ns();
            let away_ns = now_ns - before_ns;
            if away_ns > COMPUTES_NS {
                self.until_ns
                    .store(now_ns + TURNS_WITHOUT * away_ns, Relaxed);
            }
            if away_ns > ALONE_NS {
                return false;
            }
        }
        false
    }
}

/// Looks until `ready`, or until it is that late; whether it is ready. For times so near that whoever sleeps until
/// then is woken later. Gives way to others, and goes on after them.
pub(crate) fn up_to(at_ns: u64, mut ready: impl FnMut() -> bool) -> bool {
    while clock::host_ns() < at_ns {
        if ready() {
            return true;
        }
        // SAFETY: no arguments.
        unsafe { libc::sched_yield() };
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// A processor that others have for `turn_ns` whenever somebody gives way.
    struct Shared {
        now_ns: Cell<u64>,
        turn_ns: u64,
        turns: Cell<u32>,
    }

    impl Shared {
        fn with(turn_ns: u64) -> Self {
            Self {
                now_ns: Cell::new(1_000_000_000),
                turn_ns,
                turns: Cell::new(0),
            }
        }

        fn pass(&self, ns: u64) {
            self.now_ns.set(self.now_ns.get() + ns);
        }
    }

    impl Processor for Shared {
        fn now_ns(&self) -> u64 {
            self.now_ns.get()
        }

        fn give_way(&self) {
            self.turns.set(self.turns.get() + 1);
            self.pass(self.turn_ns);
        }
    }

    #[test]
    fn whoever_is_alone_looks_for_a_moment() {
        let (crowd, alone) = (Crowd::new(), Shared::with(1_000));
        assert!(!crowd.look(&alone, || false));
        assert_eq!(u64::from(alone.turns.get()), MOST_NS / 1_000);
        assert!(crowd.look(&alone, || alone.turns.get() > 250));
    }

    #[test]
    fn one_turn_of_somebody_who_computes_is_enough_for_a_while() {
        let (crowd, busy) = (Crowd::new(), Shared::with(3_000_000));
        // As many faults as a boot has, each a little later than the one before.
        let began_ns = busy.now_ns();
        for _ in 0..2_500 {
            assert!(!crowd.look(&busy, || false), "it sleeps");
            busy.pass(200_000);
        }
        let all_ns = busy.now_ns() - began_ns;
        let whiles = all_ns.div_ceil(TURNS_WITHOUT * busy.turn_ns) as u32;
        assert!(
            (1..=whiles).contains(&busy.turns.get()),
            "{}",
            busy.turns.get()
        );
        // What is there already is seen all the same.
        assert!(crowd.look(&busy, || true));
    }

    #[test]
    fn looking_goes_on_when_they_are_gone() {
        let (crowd, busy) = (Crowd::new(), Shared::with(3_000_000));
        crowd.look(&busy, || false);
        let alone = Shared::with(1_000);
        alone
            .now_ns
            .set(busy.now_ns() + TURNS_WITHOUT * 3_000_000 - 1);
        assert!(!crowd.look(&alone, || false));
        assert_eq!(alone.turns.get(), 0);
        alone.pass(1);
        assert!(crowd.look(&alone, || alone.turns.get() == 3));
    }

    #[test]
    fn short_turns_of_others_end_one_look_only() {
        let (crowd, shared) = (Crowd::new(), Shared::with(50_000));
        for looks in 1..=3 {
            assert!(!crowd.look(&shared, || false));
            assert_eq!(shared.turns.get(), looks);
        }
    }
}
