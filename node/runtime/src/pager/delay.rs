//! What a link costs on top of what the network takes, as its sender has it.
//!
//! One direction of a link is a wire behind a queue. A message takes the wire as long as its bits do, behind those
//! sent before it, then the latency, which jitter makes shorter or longer. Messages of one channel stay in order, as on
//! any connection, so what chance delays delays what follows. The queue is the link's own, or that of an uplink, in which
//! links of several nodes stand ([`crate::uplinks`]).
//!
//! A message leaves up to [`AHEAD_NS_MAX`] before its time and says by how much it is to be delayed: the rest it waits at
//! the other end ([`super::arrival`]), which has to be awake by then.
//!
//! **Loss** is the time of a retransmission, not a datagram dropped. Under the latency that is added here the real
//! connection still has the round trip of the real network, by which QUIC would notice a real loss as fast as on a fast
//! link. So a lost packet costs what it would on the link as it is meant to be: 9/8 of its round trip until it is
//! missed (RFC 9002, `kTimeThreshold`), and that again, twice as long each time, if the next attempt is lost, too.

use crate::uplinks::Queue;
use span_api::guest::{Link, LinkStats};
use std::collections::VecDeque;

/// What a packet carries, as QUIC does on a network with datagrams of 1500 bytes.
const PACKET_BYTES: u64 = 1_400;

/// A loss is not noticed sooner than this (RFC 9002, `kGranularity`).
const LOSS_NOTICED_NS_MIN: u64 = 1_000_000;

/// Attempts at one message that are lost, at most.
const LOSSES_MAX: u32 = 8;

/// How much of its delay a message may spend at the other end: longer than it takes to wake whoever waits for it there,
/// and for each byte longer than it is on its way.
const AHEAD_NS_MAX: u64 = 500_000;
const AHEAD_NS_BYTE: u64 = 20;

/// How much of a delay that is.
pub(super) fn ahead_ns(planned_ns: u64, bytes: u64) -> u64 {
    planned_ns.min(AHEAD_NS_MAX + AHEAD_NS_BYTE * bytes)
}

/// One direction of a link, with what waits for each of `N` channels.
#[derive(Debug)]
pub(super) struct Wire<T, const N: usize> {
    chance: fastrand::Rng,
    /// When the last message is on its way whole, and the same of all that stand in an uplink's queue.
    free_ns: u64,
    shared: Option<&'static Queue>,
    /// When the last message of each channel is due.
    last_ns: [u64; N],
    queues: [VecDeque<Waiting<T>>; N],
    stats: LinkStats,
}

#[derive(Debug)]
struct Waiting<T> {
    /// 0: at once.
    leaves_ns: u64,
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
            shared: None,
            last_ns: [0; N],
            queues: std::array::from_fn(|_| VecDeque::new()),
            stats: LinkStats::default(),
        }
    }

    /// What it costs from now on, and whose queue it stands in. Messages that were sent before keep the time at which they
    /// leave.
    pub(super) fn set(&mut self, link: Link, shared: Option<&'static Queue>) {
        self.stats.link = link;
        self.shared = shared;
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
            queue: _,
        } = self.stats.link;
        latency_ns == 0
            && bandwidth_bps == 0
            && loss_ppm == 0
            && self.queues[channel]
                .back()
                .is_none_or(|last| last.leaves_ns == 0)
    }

    /// Takes in a message, which is told by how much it is delayed.
    pub(super) fn push(
        &mut self,
        now_ns: u64,
        channel: usize,
        bytes: u64,
        entry: impl FnOnce(u64) -> T,
    ) {
        self.stats.messages += 1;
        self.stats.bytes += bytes;
        let waiting = match self.is_free(channel) {
            true => Waiting {
                leaves_ns: 0,
                entry: entry(0),
            },
            false => {
                let due_ns = self.due_ns(now_ns, channel, bytes);
                let planned_ns = due_ns - now_ns;
                Waiting {
                    leaves_ns: due_ns - ahead_ns(planned_ns, bytes),
                    entry: entry(planned_ns),
                }
            }
        };
        self.queues[channel].push_back(waiting);
    }

    fn due_ns(&mut self, now_ns: u64, channel: usize, bytes: u64) -> u64 {
        let link = self.stats.link;
        let mut due_ns = now_ns;
        if link.bandwidth_bps > 0 {
            let bits_ns = u128::from(bytes) * 8 * 1_000_000_000;
            let takes_ns = bits_ns.div_ceil(u128::from(link.bandwidth_bps)) as u64;
            due_ns = match self.shared {
                Some(queue) => queue.take(now_ns, takes_ns),
                None => {
                    self.free_ns = self.free_ns.max(now_ns) + takes_ns;
                    self.free_ns
                }
            };
        }
        due_ns += link.latency_ns;
        if link.jitter_ns > 0 {
            due_ns += self.chance.u64(0..=2 * link.jitter_ns);
            due_ns -= link.jitter_ns;
        }
        if link.loss_ppm > 0 {
            due_ns += self.losses_ns(link, bytes);
        }
        self.last_ns[channel] = self.last_ns[channel].max(due_ns);
        self.last_ns[channel]
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

    /// When the next message leaves that has to wait.
    pub(super) fn leaves_ns(&self) -> Option<u64> {
        let next = self.queues.iter().filter_map(VecDeque::front);
        next.map(|waiting| waiting.leaves_ns).min()
    }

    /// The next message of a channel, if it leaves. `now_ns` is asked for only if it matters.
    pub(super) fn take(&mut self, channel: usize, now_ns: impl FnOnce() -> u64) -> Option<T> {
        let leaves_ns = self.queues[channel].front()?.leaves_ns;
        if leaves_ns > 0 && leaves_ns > now_ns() {
            return None;
        }
        self.queues[channel]
            .pop_front()
            .map(|waiting| waiting.entry)
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
        wire.set(link, None);
        wire
    }

    /// When the time of messages of one channel has come that are sent at `sent_ns`, all of which leave in time for that.
    fn leave(wire: &mut Wire<u64, 2>, sent_ns: &[u64], bytes: u64) -> Vec<u64> {
        for sent_ns in sent_ns {
            wire.push(*sent_ns, 0, bytes, |planned_ns| sent_ns + planned_ns);
        }
        let mut due = Vec::new();
        while let Some(leaves_ns) = wire.leaves_ns() {
            if leaves_ns > 0 {
                assert_eq!(wire.take(0, || leaves_ns - 1), None);
            }
            let due_ns = wire.take(0, || leaves_ns).expect("it leaves");
            assert_eq!(
                leaves_ns,
                due_ns - ahead_ns(due_ns - sent_ns[due.len()], bytes)
            );
            due.push(due_ns);
        }
        due
    }

    #[test]
    fn without_a_cost_all_is_due_at_once_and_nobody_looks_at_the_clock() {
        let mut wire = wire(Link::default());
        (0..3).for_each(|entry| wire.push(7, 0, BYTES, |planned_ns| planned_ns + entry));
        let all: Vec<u64> = std::iter::from_fn(|| wire.take(0, || unreachable!())).collect();
        assert_eq!(all, [0, 1, 2]);
        assert_eq!(wire.leaves_ns(), None);
        assert_eq!(wire.stats().messages, 3);
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
        wire.push(MS, 0, BYTES, |planned_ns| planned_ns);
        wire.push(MS, 1, BYTES, |planned_ns| planned_ns);
        assert_eq!(wire.take(1, || 2 * MS), Some(MS + 20 * US));
    }

    #[test]
    fn links_of_an_uplink_stand_in_one_queue() {
        let link = Link {
            bandwidth_bps: 1_000_000_000,
            latency_ns: MS,
            queue: Some(0),
            ..Link::default()
        };
        let queue: &Queue = Box::leak(Box::default());
        let mut wires = [wire(link), wire(link), wire(link)];
        for wire in &mut wires[..2] {
            wire.set(link, Some(queue));
        }
        // 10 µs each: two nodes in turns, and one that has a queue of its own.
        let mut due_us = |wire: usize, sent_ns: u64| {
            let mut due_us = 0;
            wires[wire].push(sent_ns, 0, BYTES, |planned_ns| {
                due_us = (sent_ns + planned_ns) / US;
                0
            });
            due_us
        };
        let together = [0, 1, 1, 0].map(|wire| due_us(wire, 0));
        assert_eq!(together, [1010, 1020, 1030, 1040]);
        assert_eq!(due_us(2, 0), 1010);
        // What was free for a while is not made up for.
        assert_eq!(due_us(1, 100 * US), 1110);
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
        wire.push(MS, 0, BYTES, |planned_ns| MS + planned_ns);
        wire.set(Link::default(), None);
        wire.push(MS + 10, 0, BYTES, |planned_ns| MS + 10 + planned_ns);
        let mut due = || wire.take(0, || 3 * MS).expect("both have left");
        assert!(due() <= due());
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
}
