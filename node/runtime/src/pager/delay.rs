//! What a link costs on top of what the network takes: a message leaves when its time has come.
//!
//! One direction of a link is a wire behind a queue. A message takes the wire as long as its bits do, behind those
//! sent before it, then the latency, which jitter makes shorter or longer. Messages of one channel stay in order, as on
//! any connection, so what chance delays delays what follows.
//!
//! **Loss** is the time of a retransmission, not a datagram dropped. Under the latency that is added here the real
//! connection still has the round trip of the real network, by which QUIC would notice a real loss as fast as on a fast
//! link. So a lost packet costs what it would on the link as it is meant to be: 9/8 of its round trip until it is
//! missed (RFC 9002, `kTimeThreshold`), and that again, twice as long each time, if the next attempt is lost, too.

use span_api::guest::{Link, LinkStats};
use std::collections::VecDeque;

/// What a packet carries, as QUIC does on a network with datagrams of 1500 bytes.
const PACKET_BYTES: u64 = 1_400;

/// A loss is not noticed sooner than this (RFC 9002, `kGranularity`).
const LOSS_NOTICED_NS_MIN: u64 = 1_000_000;

/// Attempts at one message that are lost, at most.
const LOSSES_MAX: u32 = 8;

/// A message leaves if only so much is missing: setting the timer again would take longer.
const EARLY_NS_MAX: u64 = 2_000;

/// One direction of a link, with what waits for each of `N` channels.
#[derive(Debug)]
pub(super) struct Wire<T, const N: usize> {
    chance: fastrand::Rng,
    /// When the last message is on its way whole.
    free_ns: u64,
    queues: [VecDeque<Waiting<T>>; N],
    stats: LinkStats,
}

#[derive(Debug)]
struct Waiting<T> {
    sent_ns: u64,
    /// 0: it need not wait.
    due_ns: u64,
    entry: T,
}

/// What chance decides on a direction of a link follows from the guest's seed and the nodes.
pub(super) fn seed(guest: u64, from: u16, to: u16) -> u64 {
    let direction = u64::from(from) << 16 | u64::from(to);
    // The golden ratio: neighbours begin far from each other.
    guest ^ (direction + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl<T, const N: usize> Wire<T, N> {
    /// One that costs nothing.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            chance: fastrand::Rng::with_seed(seed),
            free_ns: 0,
            queues: std::array::from_fn(|_| VecDeque::new()),
            stats: LinkStats::default(),
        }
    }

    /// What it costs from now on. Messages that were sent before keep the time at which they leave.
    pub(super) fn set(&mut self, link: Link) {
        self.stats.link = link;
    }

    pub(super) fn link(&self) -> Link {
        self.stats.link
    }

    pub(super) fn stats(&self) -> &LinkStats {
        &self.stats
    }

    pub(super) fn dropped(&mut self, datagrams: u64) {
        self.stats.dropped += datagrams;
    }

    /// What is sent on a channel now need not wait: nobody need look at the clock.
    pub(super) fn is_free(&self, channel: usize) -> bool {
        let Link {
            latency_ns,
            jitter_ns: _,
            bandwidth_bps,
            loss_ppm,
            cut: _,
        } = self.stats.link;
        latency_ns == 0
            && bandwidth_bps == 0
            && loss_ppm == 0
            && self.queues[channel]
                .back()
                .is_none_or(|last| last.due_ns == 0)
    }

    pub(super) fn push(&mut self, now_ns: u64, channel: usize, bytes: u64, entry: T) {
        self.stats.messages += 1;
        self.stats.bytes += bytes;
        let due_ns = match self.is_free(channel) {
            true => 0,
            false => self.leaves_ns(now_ns, channel, bytes),
        };
        self.queues[channel].push_back(Waiting {
            sent_ns: now_ns,
            due_ns,
            entry,
        });
    }

    fn leaves_ns(&mut self, now_ns: u64, channel: usize, bytes: u64) -> u64 {
        let link = self.stats.link;
        let mut due_ns = now_ns;
        if link.bandwidth_bps > 0 {
            let bits_ns = u128::from(bytes) * 8 * 1_000_000_000;
            let takes_ns = bits_ns.div_ceil(u128::from(link.bandwidth_bps)) as u64;
            self.free_ns = self.free_ns.max(now_ns) + takes_ns;
            due_ns = self.free_ns;
        }
        due_ns += link.latency_ns;
        if link.jitter_ns > 0 {
            due_ns += self.chance.u64(0..=2 * link.jitter_ns);
            due_ns -= link.jitter_ns;
        }
        if link.loss_ppm > 0 {
            due_ns += self.losses_ns(link, bytes);
        }
        let before_ns = self.queues[channel].back().map(|last| last.due_ns);
        due_ns.max(before_ns.unwrap_or(0))
    }

    /// What the retransmissions of a message take.
    fn losses_ns(&mut self, link: Link, bytes: u64) -> u64 {
        let arrives = 1.0 - f64::from(link.loss_ppm) / 1e6;
        let packets = bytes.div_ceil(PACKET_BYTES).max(1);
        // Of the packets of a message, the one that is lost most often counts.
        let noticed_ns = (2 * link.latency_ns * 9 / 8).max(LOSS_NOTICED_NS_MIN);
        let mut attempts = 0;
        let mut missing = packets;
        while missing > 0 && attempts <= LOSSES_MAX {
            let lost = (0..missing).filter(|_| self.chance.f64() >= arrives);
            missing = lost.count() as u64;
            attempts += 1;
        }
        let losses = attempts - 1;
        self.stats.lost += u64::from(losses > 0);
        noticed_ns * ((1 << losses) - 1)
    }

    /// When the next message is due that has to wait.
    pub(super) fn due_ns(&self) -> Option<u64> {
        let next = self.queues.iter().filter_map(VecDeque::front);
        next.map(|waiting| waiting.due_ns).min()
    }

    pub(super) fn is_due(&self, now_ns: u64) -> bool {
        self.due_ns()
            .is_some_and(|due_ns| due_ns <= now_ns + EARLY_NS_MAX)
    }

    /// The next message of a channel, if it is due. `now_ns` is asked for only if it matters.
    pub(super) fn take(&mut self, channel: usize, now_ns: impl FnOnce() -> u64) -> Option<T> {
        let Waiting {
            sent_ns, due_ns, ..
        } = *self.queues[channel].front()?;
        if due_ns > 0 {
            let now_ns = now_ns();
            if due_ns > now_ns + EARLY_NS_MAX {
                return None;
            }
            let (planned_ns, added_ns) = (due_ns - sent_ns, now_ns.saturating_sub(sent_ns));
            let stats = &mut self.stats;
            stats.delayed += 1;
            stats.planned_ns += planned_ns;
            stats.added_ns += added_ns;
            stats.added.record(added_ns);
            stats.error.record(added_ns.abs_diff(planned_ns));
        }
        self.queues[channel]
            .pop_front()
            .map(|waiting| waiting.entry)
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
    const BYTES: u64 = 1_250;

    fn wire(link: Link) -> Wire<u64, 2> {
        let mut wire = Wire::new(7);
        wire.set(link);
        wire
    }

    /// When messages of one channel leave that are sent at `sent_ns`, on a clock that goes from one to the next.
    fn leave(wire: &mut Wire<u64, 2>, sent_ns: &[u64], bytes: u64) -> Vec<u64> {
        for (number, sent_ns) in sent_ns.iter().enumerate() {
            wire.push(*sent_ns, 0, bytes, number as u64);
        }
        let mut left = Vec::new();
        while let Some(due_ns) = wire.due_ns() {
            assert_eq!(wire.take(0, || due_ns - EARLY_NS_MAX - 1), None);
            assert_eq!(wire.take(0, || due_ns), Some(left.len() as u64));
            left.push(due_ns);
        }
        left
    }

    #[test]
    fn without_a_cost_all_is_due_at_once_and_nobody_looks_at_the_clock() {
        let mut wire = wire(Link::default());
        (0..3).for_each(|entry| wire.push(0, 0, BYTES, entry));
        let all: Vec<u64> = std::iter::from_fn(|| wire.take(0, || unreachable!())).collect();
        assert_eq!(all, [0, 1, 2]);
        assert_eq!(wire.due_ns(), None);
        assert_eq!((wire.stats().messages, wire.stats().delayed), (3, 0));
    }

    #[test]
    fn latency_is_the_same_for_all() {
        let mut wire = wire(Link {
            latency_ns: 3 * MS,
            ..Link::default()
        });
        assert_eq!(
            leave(&mut wire, &[0, 10, 2 * MS], BYTES),
            [3 * MS, 3 * MS + 10, 5 * MS]
        );
        let stats = wire.stats();
        assert_eq!((stats.delayed, stats.planned_ns), (3, 9 * MS));
        assert_eq!(stats.added_ns, stats.planned_ns);
        assert_eq!(stats.error.max_ns(), 0);
    }

    #[test]
    fn bits_take_their_time_one_after_the_other() {
        // 10,000 bits: 10 µs each.
        let mut wire = wire(Link {
            bandwidth_bps: 1_000_000_000,
            latency_ns: MS,
            ..Link::default()
        });
        let sent = [0, 0, 0, 100 * US];
        let left = leave(&mut wire, &sent, BYTES).into_iter();
        let left_us: Vec<u64> = left.map(|ns| ns / US).collect();
        assert_eq!(left_us, [1010, 1020, 1030, 1110]);
        // Both channels are one wire.
        wire.push(MS, 0, BYTES, 0);
        wire.push(MS, 1, BYTES, 1);
        assert_eq!(wire.take(1, || 2 * MS + 19 * US - EARLY_NS_MAX - US), None);
        assert_eq!(wire.take(1, || 2 * MS + 20 * US), Some(1));
    }

    #[test]
    fn jitter_is_around_the_latency_and_its_seed_repeats_it() {
        let link = Link {
            latency_ns: 10 * MS,
            jitter_ns: 4 * MS,
            ..Link::default()
        };
        // Far enough from each other that none waits for the one before.
        let sent: Vec<u64> = (0..1001).map(|n| n * 100 * MS).collect();
        let added = || {
            let left = leave(&mut wire(link), &sent, BYTES);
            let added = left.iter().zip(&sent).map(|(left, sent)| left - sent);
            added.collect::<Vec<u64>>()
        };
        let mut once = added();
        assert_eq!(once, added());
        once.sort_unstable();
        assert!(once[0] >= 6 * MS && once[1000] <= 14 * MS);
        assert!(
            (95 * MS..=105 * MS).contains(&(10 * once[500])),
            "{}",
            once[500]
        );
        assert!(once[1000] - once[0] > 7 * MS);
    }

    #[test]
    fn what_is_late_is_not_overtaken() {
        let mut wire = wire(Link {
            latency_ns: MS,
            jitter_ns: MS,
            ..Link::default()
        });
        let sent: Vec<u64> = (0..100).map(|n| n * US).collect();
        assert!(leave(&mut wire, &sent, BYTES).is_sorted());
        // Nor after the link has become faster.
        wire.push(0, 0, BYTES, 0);
        wire.set(Link::default());
        wire.push(10, 0, BYTES, 1);
        let first_ns = wire.due_ns().expect("something waits");
        assert_eq!(wire.take(0, || first_ns), Some(0));
        assert_eq!(wire.take(0, || first_ns), Some(1));
        assert!(wire.is_free(0));
    }

    #[test]
    fn a_loss_costs_a_retransmission() {
        let link = |loss_ppm| Link {
            latency_ns: 4 * MS,
            loss_ppm,
            ..Link::default()
        };
        let sent: Vec<u64> = (0..10_000).map(|n| n * 1_000 * MS).collect();
        let mut lossy = wire(link(100_000));
        let left = leave(&mut lossy, &sent, BYTES);
        let mut losses = [0; 3];
        for (left, sent) in left.iter().zip(&sent) {
            match (left - sent) / MS {
                4 => losses[0] += 1,
                // 9/8 of 8 ms more, then twice that again.
                13 => losses[1] += 1,
                31 => losses[2] += 1,
                more => assert!(more > 31, "{more}"),
            }
        }
        assert!((8_800..=9_200).contains(&losses[0]), "{losses:?}");
        assert!((800..=1_000).contains(&losses[1]), "{losses:?}");
        assert!((50..=130).contains(&losses[2]), "{losses:?}");
        assert_eq!(lossy.stats().lost, 10_000 - losses[0]);
        // A page is three packets, one of which is lost more often.
        let mut pages = wire(link(100_000));
        leave(&mut pages, &sent, 4_096);
        assert!((2_500..=2_900).contains(&pages.stats().lost));
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
