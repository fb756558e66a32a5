//! Samples, and what is said about them.

use serde::Serialize;

/// Samples of one side: a group for each repetition, so that two sides can be compared repetition by
/// repetition.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<Vec<f64>>);

/// What a table shows of them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) p99: f64,
    pub(crate) samples: usize,
}

/// Of medians, repetition by repetition.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Ratio {
    /// The median of all repetitions' ratios.
    pub(crate) median: f64,
    /// Where the true median is, as far as the repetitions tell: [`CONFIDENCE`], or the lowest and the
    /// highest where they are too few for that.
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// Whether they are enough.
    pub(crate) confident: bool,
    pub(crate) repetitions: usize,
}

/// How often, at least, an interval of a ratio covers the true median.
const CONFIDENCE: f64 = 0.9;

impl Samples {
    /// Adds a repetition; one without samples says nothing and is left out.
    pub(crate) fn add(&mut self, repetition: Vec<f64>) {
        if !repetition.is_empty() {
            self.0.push(repetition);
        }
    }

    pub(crate) fn scaled(&self, factor: f64) -> Self {
        let scaled = |group: &Vec<f64>| group.iter().map(|value| value * factor).collect();
        Self(self.0.iter().map(scaled).collect())
    }

    /// ... less what something else takes; none becomes negative.
    pub(crate) fn less(&self, cost: f64) -> Self {
        Self(self.0.iter().map(|group| less(group, cost)).collect())
    }

    /// Of the samples of all repetitions together; `None` if there are none.
    pub(crate) fn summary(&self) -> Option<Summary> {
        let all: Vec<f64> = self.0.iter().flatten().copied().collect();
        Some(Summary {
            median: median(&all)?,
            p99: percentile(&all, 99)?,
            samples: all.len(),
        })
    }

    /// How many times as large as `reference` these are.
    pub(crate) fn ratio(&self, reference: &Self) -> Option<Ratio> {
        let ratios: Vec<f64> = self
            .0
            .iter()
            .zip(&reference.0)
            .filter_map(|(mine, theirs)| {
                let theirs = median(theirs)?;
                (theirs > 0.0).then_some(median(mine)? / theirs)
            })
            .collect();
        let ratios = sorted(&ratios);
        let margin = margin(ratios.len());
        let outer = margin.unwrap_or(0);
        Some(Ratio {
            median: median(&ratios)?,
            low: *ratios.get(outer)?,
            high: *ratios.get(ratios.len() - 1 - outer)?,
            confident: margin.is_some(),
            repetitions: ratios.len(),
        })
    }
}

/// How many values at either end of `count` sorted ones can be left out so that the rest still covers
/// the true median with [`CONFIDENCE`], whatever the distribution: each value is on either side of it
/// with even chances. `None` if even all of them do not.
fn margin(count: usize) -> Option<usize> {
    // Of `count` values, exactly `below` are lower than the true median.
    let mut chance = 0.5_f64.powi(i32::try_from(count).unwrap_or(i32::MAX));
    let mut missed = 0.0;
    for below in 0..count.div_ceil(2) {
        missed += 2.0 * chance;
        if 1.0 - missed < CONFIDENCE {
            return below.checked_sub(1);
        }
        chance *= (count - below) as f64 / (below + 1) as f64;
    }
    (count / 2).checked_sub(1)
}

/// Each value less what measuring itself takes; none becomes negative.
pub(crate) fn less(values: &[f64], cost: f64) -> Vec<f64> {
    values.iter().map(|value| (value - cost).max(0.0)).collect()
}

pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        count if count % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// The nearest rank: a value that occurred, and the highest where there are too few for more.
fn percentile(values: &[f64], percent: usize) -> Option<f64> {
    let sorted = sorted(values);
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(groups: &[&[f64]]) -> Samples {
        let mut samples = Samples::default();
        for group in groups {
            samples.add(group.to_vec());
        }
        samples
    }

    #[test]
    fn medians_and_percentiles_are_of_all_samples() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let summary = samples(&[&hundred[..50], &hundred[50..]])
            .summary()
            .unwrap();
        assert_eq!((summary.median, summary.p99), (50.5, 99.0));
        assert_eq!(summary.samples, 100);
        // One more and the rank moves on; few samples have their highest there.
        let hundred_one: Vec<f64> = (1..=101).map(f64::from).collect();
        assert_eq!(percentile(&hundred_one, 99), Some(100.0));
        assert_eq!(samples(&[&[3.0, 1.0, 2.0]]).summary().unwrap().p99, 3.0);
        assert_eq!(samples(&[&[]]).summary(), None);
    }

    #[test]
    fn a_ratio_is_taken_within_repetitions() {
        // The machine was ten times as slow in the second repetition, for both.
        let reference = samples(&[&[1.0, 1.0, 9.0], &[10.0], &[1.0]]);
        let mine = samples(&[&[2.0, 2.0, 0.0], &[30.0], &[4.0]]);
        let ratio = mine.ratio(&reference).unwrap();
        assert_eq!((ratio.low, ratio.median, ratio.high), (2.0, 3.0, 4.0));
        assert!(!ratio.confident);
        assert_eq!(mine.ratio(&samples(&[])), None);
        assert_eq!(mine.ratio(&samples(&[&[0.0]])), None);
    }

    #[test]
    fn intervals_leave_outliers_out_where_there_are_enough_others() {
        // 1 - 2 / 2^n: 0.875 for four, 0.9375 for five; 1 - 2 * (1 + n) / 2^n: 0.93 for eight.
        assert_eq!(
            [0, 1, 4, 5, 7, 8].map(margin),
            [None, None, None, Some(0), Some(0), Some(1)]
        );
        assert_eq!(margin(15), Some(3));
        let ones: Vec<Vec<f64>> = vec![vec![1.0]; 8];
        let reference = Samples(ones.clone());
        let mut mine = Samples(ones);
        mine.0[3] = vec![50.0];
        let ratio = mine.ratio(&reference).unwrap();
        assert_eq!((ratio.low, ratio.high), (1.0, 1.0));
        assert!(ratio.confident && ratio.repetitions == 8);
    }

    #[test]
    fn the_cost_of_measuring_is_taken_off() {
        assert_eq!(less(&[10.0, 3.0], 4.0), [6.0, 0.0]);
    }
}
