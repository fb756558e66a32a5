//! Waiting without sleeping, as long as nobody else wants the processor.
//!
//! What a node waits for while pages move comes within some microseconds, far less than it takes the host to
//! put a processor to sleep and to wake it up again. But the processor may be needed by whoever is to bring it:
//! each look gives way to others, and if somebody else did run, there is no more looking.
//!
//! To somebody who computes, giving way is dear: he has the processor for some milliseconds, the host's turn, even
//! if what is waited for comes at once. Whoever sleeps is woken in time instead. A page takes several looks, on two
//! nodes: three programs that computed on two processors made a guest's boot ten times as long. So nobody here looks
//! while this node's own programs have all its processors; and after one such turn of somebody else's nobody does for
//! a while, the longer the longer it goes on.
//!
//! And whoever sleeps is woken in time only if he has not just run ([`is_crowded`]).

use crate::{clock, sticky};
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

/// Each time that it is not looked for that reason, though, whoever waits sleeps and has to be woken: some 25 µs. When that
/// has cost as much as the turn did, it is looked again: so much shorter is the while without for each. A program that
/// computed for a few milliseconds, between bursts of pages, made all faults take 57 µs instead of 36.
const SHORTER_NS: u64 = TURNS_WITHOUT * 25_000;

/// Whoever still computes when it is looked again goes on, as a rule: then it is not looked for twice as long, and
/// this long in the end. Two threads of a guest that computed on two processors, and asked each other for a page every
/// 3 ms, lost a turn of 4 ms in each of their rounds of 14 ms that began with a look.
const WITHOUT_NS_MAX: u64 = 1_000_000_000;

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

static CROWD: Crowd = Crowd::new();

/// Looks until `ready`, for a moment at most; whether it is.
pub(crate) fn until(ready: impl FnMut() -> bool) -> bool {
    CROWD.look(&Host, ready)
}

/// Somebody computes here: nobody looks.
pub(crate) fn is_crowded() -> bool {
    CROWD.is_there(&Host, clock::host_ns())
}

/// What looking asks of the host.
trait Processor {
    fn now_ns(&self) -> u64;
    /// Lets others run who want to.
    fn give_way(&self);
    /// Programs of this node's own have all processors that it may run on.
    fn is_taken(&self) -> bool;
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

    fn is_taken(&self) -> bool {
        sticky::programs_have_all()
    }
}

/// Those who compute on the processors of this process.
#[derive(Debug)]
struct Crowd {
    /// From when until when they are taken to do so, and for how long they were at first.
    from_ns: AtomicU64,
    until_ns: AtomicU64,
    without_ns: AtomicU64,
}

impl Crowd {
    const fn new() -> Self {
        Self {
            from_ns: AtomicU64::new(0),
            until_ns: AtomicU64::new(0),
            without_ns: AtomicU64::new(0),
        }
    }

    fn is_there(&self, processor: &impl Processor, now_ns: u64) -> bool {
        now_ns < self.until_ns.load(Relaxed) || processor.is_taken()
    }

    /// Somebody had a turn from then to now.
    fn computed(&self, from_ns: u64, now_ns: u64) {
        let (until_ns, before_ns) = (self.until_ns.load(Relaxed), self.without_ns.load(Relaxed));
        if from_ns < self.from_ns.load(Relaxed) {
            // Another thread gave way to the same one, and knows it already.
            return;
        }
        let goes_on = from_ns.saturating_sub(until_ns) < before_ns;
        let least_ns = TURNS_WITHOUT * (now_ns - from_ns);
        let without_ns = match goes_on {
            true => (2 * before_ns).clamp(least_ns, WITHOUT_NS_MAX.max(least_ns)),
            false => least_ns,
        };
        self.without_ns.store(without_ns, Relaxed);
        self.from_ns.store(now_ns, Relaxed);
        self.until_ns.store(now_ns + without_ns, Relaxed);
    }

    /// Somebody sleeps who would have looked.
    fn shorten(&self, now_ns: u64) {
        let shorter =
            |until_ns: u64| (now_ns < until_ns).then(|| until_ns.saturating_sub(SHORTER_NS));
        // Or it is over, and programs of this node's own have all processors: no cause to write.
        let _ = self.until_ns.fetch_update(Relaxed, Relaxed, shorter);
    }

    fn look(&self, processor: &impl Processor, mut ready: impl FnMut() -> bool) -> bool {
        if !PAYS.load(Relaxed) {
            return ready();
        }
        let began_ns = processor.now_ns();
        if self.is_there(processor, began_ns) {
            let is_ready = ready();
            if !is_ready {
                self.shorten(began_ns);
            }
            return is_ready;
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
                self.computed(before_ns, now_ns);
            }
            if away_ns > ALONE_NS {
                return false;
            }
        }
        false
    }
}

/// Looks until `ready`, or until it is that late; whether it is ready. For times so near that whoever sleeps until
/// then is woken later. Gives way to others, and goes on after them, but not to those who compute.
pub(crate) fn up_to(at_ns: u64, mut ready: impl FnMut() -> bool) -> bool {
    loop {
        let now_ns = Host.now_ns();
        if now_ns >= at_ns {
            return false;
        }
        if ready() {
            return true;
        }
        match CROWD.is_there(&Host, now_ns) {
            true => std::hint::spin_loop(),
            false => Host.give_way(),
        }
    }
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
        taken: bool,
    }

    impl Shared {
        fn with(turn_ns: u64) -> Self {
            Self {
                now_ns: Cell::new(1_000_000_000),
                turn_ns,
                turns: Cell::new(0),
                taken: false,
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

        fn is_taken(&self) -> bool {
            self.taken
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
        let share = u64::from(busy.turns.get()) * busy.turn_ns * 100 / (busy.now_ns() - began_ns);
        assert!((1..=7).contains(&share), "{share} %");
        // What is there already is seen all the same.
        assert!(crowd.look(&busy, || true));
    }

    #[test]
    fn nobody_looks_while_programs_have_all_processors() {
        let (crowd, mut own) = (Crowd::new(), Shared::with(1_000));
        own.taken = true;
        assert!(!crowd.look(&own, || false));
        assert!(crowd.look(&own, || true), "it is there already");
        assert_eq!(own.turns.get(), 0);
    }

    #[test]
    fn the_longer_they_compute_the_less_it_is_looked() {
        let (crowd, busy) = (Crowd::new(), Shared::with(4_000_000));
        let looked = |ns: u64| {
            let (before, from_ns) = (busy.turns.get(), busy.now_ns());
            while busy.now_ns() - from_ns < ns {
                crowd.look(&busy, || false);
                busy.pass(10_000_000);
            }
            busy.turns.get() - before
        };
        assert_eq!(looked(80_000_000), 1);
        // 0.16, 0.32, 0.64, and then a second each.
        assert_eq!(looked(1_200_000_000), 4);
        assert!((9..=11).contains(&looked(10_000_000_000)));
        // They are gone for longer than it was not looked.
        busy.pass(2 * WITHOUT_NS_MAX);
        assert_eq!(looked(80_000_000), 1);
        assert_eq!(looked(85_000_000), 1, "as at the beginning");
    }

    #[test]
    fn many_who_sleep_are_worth_a_look() {
        let (crowd, busy) = (Crowd::new(), Shared::with(1_000_000));
        assert!(!crowd.look(&busy, || false));
        let began_ns = busy.now_ns();
        let mut slept = 0;
        // They are gone by then.
        let alone = Shared::with(1_000);
        alone.now_ns.set(began_ns);
        while alone.turns.get() == 0 {
            assert!(!crowd.look(&alone, || false));
            slept += 1;
            alone.pass(60_000);
        }
        // For half of its time 1 ms in all, and the other half is gone by itself.
        assert!((35..=40).contains(&slept), "{slept}");
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
