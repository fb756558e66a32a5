//! What CPUs of two nodes cost each other inside the kernel, by its module `gauge`.

use super::counts::{difference, remote_faults};
use crate::error::{Error, Result};
use crate::figures::{Figure, Unit};
use crate::samples::Samples;
use crate::setting::Setting;
use std::collections::BTreeMap;

const GROUP: &str = "Two nodes, a CPU each, in the kernel";

pub(crate) fn measure(setting: &Setting) -> Result<Vec<Figure>> {
    let (calls, locks) = setting.effort.kernel;
    let rounds = BTreeMap::from([("smp_call", calls), ("spinlock", locks)]);
    let module = setting.module("gauge.ko")?;
    let (calls, locks) = (calls.to_string(), locks.to_string());
    let arguments = ["kernel", &setting.khz, &calls, &locks, &module, "marks"];
    let mut faults: BTreeMap<String, Samples> = BTreeMap::new();
    let mut times: BTreeMap<&str, Samples> = BTreeMap::new();
    let (mut share, mut longest) = (Samples::default(), Samples::default());
    setting.repeat("calls and locks in the kernel", || {
        let outcome = setting.span_with_marks("a,b", &[], &arguments, |name, before, after| {
            if let Some(rounds) = rounds.get(name) {
                let faults_each = difference(before, after, remote_faults) / f64::from(*rounds);
                faults
                    .entry(name.into())
                    .or_default()
                    .add(vec![faults_each]);
            }
        })?;
        for name in rounds.keys() {
            times.entry(name).or_default().add(outcome.samples(name)?);
        }
        share.add(vec![smaller_share(&outcome.samples("taken")?)?]);
        longest.add(outcome.samples("waited")?);
        Ok(())
    })?;
    let mut figures = Vec::new();
    for (name, title) in [
        ("smp_call", "smp_call_function_single, waited for"),
        ("spinlock", "acquisition of a spinlock that both CPUs want"),
    ] {
        figures.push(Figure::alone(
            GROUP,
            title,
            Unit::Microseconds,
            &times[name],
        ));
        let title = format!("{title}: asking another node");
        figures.push(Figure::alone(GROUP, title, Unit::Faults, &faults[name]));
    }
    figures.push(Figure::alone(
        GROUP,
        "share of the CPU that got the lock less often",
        Unit::Percent,
        &share,
    ));
    figures.push(Figure::alone(
        GROUP,
        "longest wait of each CPU for the lock",
        Unit::Milliseconds,
        &longest,
    ));
    Ok(figures)
}

/// In percent.
fn smaller_share(taken: &[f64]) -> Result<f64> {
    let all: f64 = taken.iter().sum();
    let least = taken.iter().copied().reduce(f64::min);
    least
        .filter(|_| all > 0.0)
        .map(|least| least * 100.0 / all)
        .ok_or_else(|| Error::Failed("gauge kernel: nobody took the lock".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_share_is_that_of_who_got_less() {
        assert_eq!(smaller_share(&[30.0, 10.0]).unwrap(), 25.0);
        assert_eq!(smaller_share(&[0.0, 10.0]).unwrap(), 0.0);
        assert!(smaller_share(&[0.0, 0.0]).is_err());
    }
}
