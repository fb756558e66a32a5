//! What a link costs, as its receiver has it: a message that has come before its time waits here until that.
//!
//! Whoever waits for a message sleeps, and would be woken after its time: later the deeper the host's processor sleeps, and
//! it sleeps the deeper the slower a link is made. So messages leave early ([`super::delay`]), wake whoever is to have
//! them, and are taken in when they would have been, had they been sent when their time had come to somebody awake.
//!
//! **When that is** follows from when a message was sent, by how much it is delayed, and what the network takes: the least that a
//! message of this link and of about this length has taken. On hosts with different clocks that is also by how much the clocks differ, and is
//! forgotten again. A message for a node that would have slept without the link's delay, too, has had to wake somebody in any case, and
//! that counts.

use super::delay::ahead_ns;
use super::wire;
use span_api::guest::ArrivalStats;
use std::collections::VecDeque;

/// A message is taken in if only so much is missing: setting the timer again would take longer.
const EARLY_NS_MAX: u64 = 1_000;

/// Where clocks differ, the least that a message has taken is forgotten by so much of the time that goes by.
const FORGOTTEN_PPM: u64 = 20;

/// Lengths of messages, by powers of two: a page takes longer than a request, and what a host call reads far longer.
const LENGTHS: usize = 20;

/// A page with its header, and room for another header. What is longer is bulk, which is on its way for as long as what was
/// sent before it, with a delay and without.
const SHORT_BYTES: usize = 4096 + 2 * wire::HEADER_BYTES;

/// What a message says of itself: when it was sent, on the guest's clock, and by how much it is delayed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamp {
    pub(super) sent_ns: u64,
    pub(super) planned_ns: u64,
    pub(super) bytes: usize,
}

/// When somebody saw a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    /// The host's clock, which the result of [`Arrivals::put`] is on.
    pub(super) host_ns: u64,
    pub(super) guest_ns: u64,
    /// He had been asleep, and would have been without the link's delay.
    pub(super) slept: bool,
}

/// Messages of one direction of a link that wait for their time, for each of `N` channels.
#[derive(Debug)]
pub(super) struct Arrivals<T, const N: usize> {
    clocks_differ: bool,
    transits: [Transit; LENGTHS],
    queues: [VecDeque<Early<T>>; N],
    stats: ArrivalStats,
}

#[derive(Debug)]
struct Early<T> {
    due_ns: u64,
    /// By how much it is delayed then; 0: it has only waited behind others.
    planned_ns: u64,
    /// It is no longer than a page.
    short: bool,
    entry: T,
}

/// The least that the network has taken.
#[derive(Debug, Default, Clone, Copy)]
struct Transit {
    least_ns: Option<u64>,
    at_ns: u64,
}

impl Transit {
    fn least(&mut self, taken_ns: u64, now_ns: u64, clocks_differ: bool) -> u64 {
        let forgotten_ns = match clocks_differ {
            true => now_ns.saturating_sub(self.at_ns) / (1_000_000 / FORGOTTEN_PPM),
            false => 0,
        };
        let least_ns = match self.least_ns {
            Some(least_ns) => taken_ns.min(least_ns.saturating_add(forgotten_ns)),
            None => taken_ns,
        };
        // What is too short to be forgotten is added to what passes until the next time.
        if forgotten_ns > 0 || self.least_ns != Some(least_ns) {
            self.at_ns = now_ns;
        }
        self.least_ns = Some(least_ns);
        least_ns
    }
}

impl<T, const N: usize> Arrivals<T, N> {
    pub(super) fn new() -> Self {
        Self {
            clocks_differ: false,
            transits: [Transit::default(); LENGTHS],
            queues: std::array::from_fn(|_| VecDeque::new()),
            stats: ArrivalStats::default(),
        }
    }

    /// The other side's host has a clock of its own.
    pub(super) fn clocks_differ(&mut self) {
        self.clocks_differ = true;
    }

    pub(super) fn stats(&self) -> &ArrivalStats {
        &self.stats
    }

    /// A message that was not delayed may be taken in at once: nothing sent before it waits.
    pub(super) fn is_empty(&self, channel: usize) -> bool {
        self.queues[channel].is_empty()
    }

    /// Takes a message that has come.
    pub(super) fn put(&mut self, channel: usize, stamp: Stamp, seen: Seen, entry: T) {
        let Stamp {
            sent_ns,
            planned_ns,
            bytes,
        } = stamp;
        let since_ns = seen.guest_ns.saturating_sub(sent_ns);
        let left_ns = planned_ns - ahead_ns(planned_ns, bytes as u64);
        let taken_ns = since_ns.saturating_sub(left_ns);
        let length = bytes.max(1).ilog2() as usize;
        let transit = &mut self.transits[length.min(LENGTHS - 1)];
        let least_ns = transit.least(taken_ns, seen.host_ns, self.clocks_differ);
        let transit_ns = match seen.slept {
            true => taken_ns,
            false => least_ns,
        };
        // In the past for what has come too late. However wrong clocks may be, nothing waits for longer than it is delayed by.
        // No sum overflows, whatever the other side says.
        let latest_ns = seen.host_ns.saturating_add(planned_ns);
        let due_ns = latest_ns.saturating_add(transit_ns);
        let due_ns = due_ns.saturating_sub(since_ns).min(latest_ns);
        let before_ns = self.queues[channel].back().map(|last| last.due_ns);
        self.queues[channel].push_back(Early {
            due_ns: due_ns.max(before_ns.unwrap_or(0)),
            planned_ns,
            short: bytes <= SHORT_BYTES,
            entry,
        });
    }

    /// When the time of the next message has come.
    pub(super) fn due_ns(&self) -> Option<u64> {
        let next = self.queues.iter().filter_map(VecDeque::front);
        next.map(|early| early.due_ns).min()
    }

    /// A message whose time has come.
    pub(super) fn take(&mut self, now_ns: u64) -> Option<T> {
        let is_due = |queue: &&mut VecDeque<Early<T>>| {
            let front = queue.front();
            front.is_some_and(|early| early.due_ns <= now_ns.saturating_add(EARLY_NS_MAX))
        };
        let early = self.queues.iter_mut().find(is_due)?.pop_front()?;
        if early.planned_ns > 0 {
            let added_ns = early.planned_ns.saturating_add(now_ns);
            let added_ns = added_ns.saturating_sub(early.due_ns);
            let stats = &mut self.stats;
            stats.delayed += 1;
            stats.planned_ns = stats.planned_ns.saturating_add(early.planned_ns);
            stats.added_ns = stats.added_ns.saturating_add(added_ns);
            stats.added.record(added_ns);
            if early.short {
                stats.error.record(added_ns.abs_diff(early.planned_ns));
            }
        }
        Some(early.entry)
    }
}

/// By how much to set a timer ahead, so that whoever waits for it runs in time nine times of ten. What is left then is
/// too short to sleep, and is waited for awake.
#[derive(Debug, Default)]
pub(super) struct Lead(u64);

/// Longest time that a timer is set ahead, and that is waited for awake.
const LEAD_NS_MAX: u64 = 100_000;

const LEAD_STEP_NS: u64 = 250;

/// So many more times is the timer early than late.
const EARLY_TO_LATE: u64 = 9;

impl Lead {
    /// When to set the timer to; none if it is too late for that.
    pub(super) fn before(&self, due_ns: u64, now_ns: u64) -> Option<u64> {
        (due_ns > now_ns + self.0).then(|| due_ns - self.0)
    }

    /// The timer was waited for, and woke somebody so much later than it was set to.
    pub(super) fn learn(&mut self, late_ns: u64) {
        self.0 = match late_ns > self.0 {
            true => (self.0 + EARLY_TO_LATE * LEAD_STEP_NS).min(LEAD_NS_MAX),
            false => self.0.saturating_sub(LEAD_STEP_NS),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: u64 = 1_000;
    const MS: u64 = 1_000_000;

    /// What the network takes, if whoever waits is awake.
    const TRANSIT_NS: u64 = 12 * US;

    /// Sent at `sent_ns`, seen so much later, on clocks of which the guest's is a second ahead.
    fn put(arrivals: &mut Arrivals<u64, 2>, planned_ns: u64, sent_ns: u64, seen_ns: u64) {
        let stamp = Stamp {
            sent_ns: sent_ns + 1_000 * MS,
            planned_ns,
            bytes: 88,
        };
        let host_ns = sent_ns + seen_ns;
        let seen = Seen {
            host_ns,
            guest_ns: host_ns + 1_000 * MS,
            slept: false,
        };
        arrivals.put(0, stamp, seen, sent_ns);
    }

    fn due(arrivals: &mut Arrivals<u64, 2>) -> u64 {
        let due_ns = arrivals.due_ns().expect("something waits");
        assert_eq!(arrivals.take(due_ns - EARLY_NS_MAX - 1), None);
        assert!(arrivals.take(due_ns).is_some());
        due_ns
    }

    #[test]
    fn what_it_takes_to_wake_is_not_added_to_the_delay() {
        let mut arrivals = Arrivals::new();
        put(&mut arrivals, 200 * US, 10 * MS, TRANSIT_NS);
        assert_eq!(due(&mut arrivals), 10 * MS + 200 * US + TRANSIT_NS);
        // Somebody slept, the second time too long.
        put(&mut arrivals, 200 * US, 20 * MS, 90 * US);
        assert_eq!(due(&mut arrivals), 20 * MS + 200 * US + TRANSIT_NS);
        assert_eq!(arrivals.stats().error.max_ns(), 0);
        put(&mut arrivals, 200 * US, 30 * MS, 300 * US);
        assert!(arrivals.take(30 * MS + 300 * US).is_some());
        let stats = arrivals.stats();
        assert_eq!((stats.delayed, stats.planned_ns), (3, 600 * US));
        assert_eq!(stats.added_ns, 600 * US + 100 * US - TRANSIT_NS);
        assert_eq!(stats.error.max_ns(), 100 * US - TRANSIT_NS);
    }

    #[test]
    fn of_a_long_delay_only_the_end_is_waited_for_here() {
        let mut arrivals = Arrivals::new();
        // It left late, then in time.
        let left_ns = 5 * MS - ahead_ns(5 * MS, 88);
        put(&mut arrivals, 5 * MS, 10 * MS, left_ns + 80 * US);
        assert_eq!(due(&mut arrivals), 15 * MS + 80 * US);
        put(&mut arrivals, 5 * MS, 20 * MS, left_ns + TRANSIT_NS);
        assert_eq!(due(&mut arrivals), 25 * MS + TRANSIT_NS);
        put(&mut arrivals, 5 * MS, 30 * MS, left_ns + 80 * US);
        assert_eq!(due(&mut arrivals), 35 * MS + TRANSIT_NS);
    }

    #[test]
    fn who_would_have_slept_anyway_is_woken_as_slowly_as_without_the_delay() {
        let mut arrivals: Arrivals<u64, 2> = Arrivals::new();
        put(&mut arrivals, 200 * US, 10 * MS, TRANSIT_NS);
        due(&mut arrivals);
        let stamp = Stamp {
            sent_ns: 20 * MS,
            planned_ns: 200 * US,
            bytes: 88,
        };
        let seen = Seen {
            host_ns: 20 * MS + 50 * US,
            guest_ns: 20 * MS + 50 * US,
            slept: true,
        };
        arrivals.put(0, stamp, seen, 0);
        assert_eq!(due(&mut arrivals), 20 * MS + 200 * US + 50 * US);
    }

    #[test]
    fn a_long_message_takes_longer() {
        let mut arrivals: Arrivals<u64, 2> = Arrivals::new();
        for (bytes, takes_ns) in [(88, 12 * US), (4184, 20 * US), (100_000, 700 * US)] {
            let stamp = Stamp {
                sent_ns: 10 * MS,
                planned_ns: 50 * US,
                bytes,
            };
            let seen_ns = 10 * MS + takes_ns;
            let seen = Seen {
                host_ns: seen_ns,
                guest_ns: seen_ns,
                slept: false,
            };
            arrivals.put(0, stamp, seen, 0);
            assert_eq!(due(&mut arrivals), seen_ns + 50 * US);
        }
        assert_eq!(arrivals.stats().error.max_ns(), 0);
    }

    #[test]
    fn nothing_overtakes_what_waits() {
        let mut arrivals = Arrivals::new();
        put(&mut arrivals, 200 * US, 10 * MS, TRANSIT_NS);
        assert!(!arrivals.is_empty(0) && arrivals.is_empty(1));
        // Sent later, when the link cost nothing any more.
        put(&mut arrivals, 0, 10 * MS + 20 * US, TRANSIT_NS);
        let due_ns = 10 * MS + 200 * US + TRANSIT_NS;
        assert_eq!(arrivals.take(due_ns - 20 * US), None);
        assert_eq!(arrivals.take(due_ns), Some(10 * MS));
        assert_eq!(arrivals.take(due_ns), Some(10 * MS + 20 * US));
        assert_eq!(arrivals.stats().delayed, 1);
        assert!(arrivals.is_empty(0));
    }

    #[test]
    fn clocks_that_differ_are_only_trusted_for_a_while() {
        let mut arrivals = Arrivals::new();
        arrivals.clocks_differ();
        // By 100 µs, of which it is then found that they are none.
        put(&mut arrivals, 500 * US, 10 * MS, TRANSIT_NS + 100 * US);
        assert_eq!(due(&mut arrivals), 10 * MS + 600 * US + TRANSIT_NS);
        put(&mut arrivals, 500 * US, 20 * MS, TRANSIT_NS);
        assert_eq!(due(&mut arrivals), 20 * MS + 500 * US + TRANSIT_NS);
        // Until they differ again.
        let later_ns = 20 * MS + 2_000 * MS;
        put(&mut arrivals, 500 * US, later_ns, TRANSIT_NS + 100 * US);
        let forgotten_ns = 2_000 * MS / 1_000_000 * FORGOTTEN_PPM;
        let expected_ns = later_ns + 500 * US + TRANSIT_NS + forgotten_ns;
        assert!(due(&mut arrivals).abs_diff(expected_ns) < US);
        // Whatever they say, nothing waits for longer than it is delayed by.
        put(&mut arrivals, MS, 5_000 * MS, 0);
        assert!(due(&mut arrivals) <= 5_001 * MS);
        put(&mut arrivals, u64::MAX, 6_000 * MS, 0);
        put(&mut arrivals, u64::MAX, 6_000 * MS, 0);
        assert!(arrivals.take(u64::MAX).is_some() && arrivals.take(u64::MAX).is_some());
    }

    #[test]
    fn a_timer_is_set_ahead_by_what_it_is_late() {
        let mut lead = Lead::default();
        for late_us in (20..40).cycle().take(20_000) {
            lead.learn(late_us * US);
        }
        assert!((35 * US..=40 * US).contains(&lead.0), "{lead:?}");
        (0..1000).for_each(|_| lead.learn(u64::MAX));
        assert_eq!(lead.0, LEAD_NS_MAX);
        assert_eq!(lead.before(3 * MS, MS), Some(3 * MS - LEAD_NS_MAX));
        assert_eq!(lead.before(MS + 80 * US, MS), None);
        assert_eq!(lead.before(MS, 2 * MS), None);
        (0..1000).for_each(|_| lead.learn(0));
        assert_eq!(lead.before(3 * MS, MS), Some(3 * MS));
    }
}
