//! How long something took, many times over: a fixed logarithmic histogram.
//!
//! Each power of two from a microsecond to a minute has eight buckets, so that a percentile is right to an
//! eighth. Recording is an addition, and histograms of several nodes add up, which their percentiles do not.

use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

/// Everything below 2^10 ns is in the first bucket, everything from 2^36 ns on in the last.
const SHIFT_MIN: u32 = 10;
const SHIFT_MAX: u32 = 36;

/// Buckets of one power of two, as a power of two.
const PARTS_SHIFT: u32 = 3;

const BUCKETS: usize = 2 + (((SHIFT_MAX - SHIFT_MIN) as usize) << PARTS_SHIFT);

/// In formats for people it is written as its percentiles, and cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Raw")]
pub struct Histogram {
    /// How often, by bucket: `BUCKETS` of them.
    counts: Vec<u64>,
    max_ns: u64,
}

/// As it travels.
#[derive(Serialize, Deserialize)]
struct Raw {
    counts: Vec<u64>,
    max_ns: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("a histogram has {BUCKETS} buckets, not {0}")]
struct WrongLength(usize);

impl TryFrom<Raw> for Histogram {
    type Error = WrongLength;

    fn try_from(Raw { counts, max_ns }: Raw) -> Result<Self, WrongLength> {
        match counts.len() {
            BUCKETS => Ok(Self { counts, max_ns }),
            other => Err(WrongLength(other)),
        }
    }
}

impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !serializer.is_human_readable() {
            let (counts, max_ns) = (self.counts.clone(), self.max_ns);
            return Raw { counts, max_ns }.serialize(serializer);
        }
        let mut summary = serializer.serialize_struct("Histogram", 5)?;
        summary.serialize_field("count", &self.count())?;
        summary.serialize_field("p50_ns", &self.percentile_ns(50))?;
        summary.serialize_field("p90_ns", &self.percentile_ns(90))?;
        summary.serialize_field("p99_ns", &self.percentile_ns(99))?;
        summary.serialize_field("max_ns", &self.max_ns)?;
        summary.end()
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            max_ns: 0,
        }
    }
}

impl Histogram {
    pub fn record(&mut self, ns: u64) {
        self.counts[bucket(ns)] += 1;
        self.max_ns = self.max_ns.max(ns);
    }

    pub fn count(&self) -> u64 {
        self.counts
            .iter()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }

    pub fn max_ns(&self) -> u64 {
        self.max_ns
    }

    /// What `percent` of all took at most, to an eighth; 0 if there was nothing.
    pub fn percentile_ns(&self, percent: u64) -> u64 {
        let rank = u128::from(self.count()) * u128::from(percent.min(100));
        let rank = rank.div_ceil(100).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if seen >= rank {
                return last_ns(bucket).min(self.max_ns);
            }
        }
        0
    }

    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    /// What has come since `earlier`, a former state of the same. Its longest is known to an eighth.
    pub fn since(&self, earlier: &Self) -> Self {
        let counts: Vec<u64> = self
            .counts
            .iter()
            .zip(&earlier.counts)
            .map(|(now, then)| now.saturating_sub(*then))
            .collect();
        let longest = counts.iter().rposition(|count| *count > 0);
        Self {
            max_ns: longest.map_or(0, |bucket| last_ns(bucket).min(self.max_ns)),
            counts,
        }
    }
}

fn bucket(ns: u64) -> usize {
    match ns.checked_ilog2() {
        None | Some(..SHIFT_MIN) => 0,
        Some(SHIFT_MAX..) => BUCKETS - 1,
        Some(shift) => {
            let part = (ns >> (shift - PARTS_SHIFT)) as usize & ((1 << PARTS_SHIFT) - 1);
            1 + (((shift - SHIFT_MIN) as usize) << PARTS_SHIFT) + part
        }
    }
}

/// The longest time in a bucket.
fn last_ns(bucket: usize) -> u64 {
    match bucket {
        0 => (1 << SHIFT_MIN) - 1,
        _ if bucket == BUCKETS - 1 => u64::MAX,
        _ => {
            let (shift, part) = (
                (bucket - 1) >> PARTS_SHIFT,
                (bucket - 1) % (1 << PARTS_SHIFT),
            );
            let unit = 1u64 << (shift as u32 + SHIFT_MIN - PARTS_SHIFT);
            unit * ((1 << PARTS_SHIFT) + part as u64 + 1) - 1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn buckets_follow_each_other_and_hold_what_is_put_into_them() {
        for this in 0..BUCKETS - 1 {
            let last = last_ns(this);
            assert_eq!(bucket(last), this, "{last} ns");
            assert_eq!(bucket(last + 1), this + 1, "{} ns", last + 1);
        }
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_right_to_an_eighth() {
        let mut all = Histogram::default();
        assert_eq!((all.percentile_ns(50), all.max_ns()), (0, 0));
        // In an order that has nothing to do with their size.
        for n in 0..1000u64 {
            all.record((n * 617 % 1000 + 1) * 10_000);
        }
        assert_eq!(all.count(), 1000);
        for (percent, exact) in [
            (1, 100_000),
            (50, 5_000_000),
            (90, 9_000_000),
            (99, 9_900_000),
        ] {
            let found = all.percentile_ns(percent);
            assert!(
                (exact..=exact + exact / 8).contains(&found),
                "p{percent}: {found}, exactly {exact}"
            );
        }
        assert_eq!(
            (all.percentile_ns(100), all.max_ns()),
            (10_000_000, 10_000_000)
        );
    }

    #[test]
    fn one_of_many_is_seen_only_by_the_last_percentile() {
        let mut all = Histogram::default();
        (0..99).for_each(|_| all.record(2000));
        all.record(1_000_000_000_000);
        assert!(all.percentile_ns(99) < 2300);
        assert_eq!(all.percentile_ns(100), 1_000_000_000_000);
    }

    #[test]
    fn histograms_add_up_and_can_be_taken_apart() {
        let (mut a, mut b) = (Histogram::default(), Histogram::default());
        (0..10).for_each(|_| a.record(5_000));
        let before = a.clone();
        (0..30).for_each(|_| b.record(70_000));
        a.add(&b);
        assert_eq!((a.count(), a.max_ns()), (40, 70_000));
        assert!((5_000..6_000).contains(&a.percentile_ns(25)));
        assert!((70_000..80_000).contains(&a.percentile_ns(26)));
        let since = a.since(&before);
        assert_eq!((since.count(), since.max_ns()), (30, 70_000));
        assert_eq!(since.percentile_ns(1), since.percentile_ns(99));
        assert_eq!(before.since(&before), Histogram::default());
    }

    #[test]
    fn it_travels_whole_and_one_of_another_length_is_refused() {
        let mut sent = Histogram::default();
        sent.record(123_456);
        let frame = codec::encode(&sent).unwrap();
        assert_eq!(codec::decode::<Histogram>(&frame[4..]).unwrap(), sent);
        let short = codec::encode(&Raw {
            counts: vec![1; BUCKETS - 1],
            max_ns: 1,
        });
        assert!(codec::decode::<Histogram>(&short.unwrap()[4..]).is_err());
    }
}
