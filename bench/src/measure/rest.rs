//! What nodes ask of each other when no program makes them.

use super::counts::{difference, remote_faults};
use crate::error::Result;
use crate::figures::{Figure, Unit};
use crate::samples::Samples;
use crate::setting::Setting;
use std::collections::BTreeMap;

const GROUP: &str = "Three nodes, a CPU each, left alone (faults a second that ask another node)";

pub(crate) fn measure(setting: &Setting) -> Result<Vec<Figure>> {
    let seconds = setting.effort.rest_s.to_string();
    let arguments = ["rest", &setting.khz, "3", &seconds, "marks"];
    let mut counted: BTreeMap<String, Samples> = BTreeMap::new();
    setting.repeat("three nodes, left alone", || {
        setting.span_with_marks("a,b,c", &[], &arguments, |name, before, after| {
            let faults = difference(before, after, remote_faults);
            counted
                .entry(name.into())
                .or_default()
                .add(vec![faults / f64::from(setting.effort.rest_s)]);
        })?;
        Ok(())
    })?;
    let names = [
        ("idle", "all CPUs idle"),
        ("busy", "all CPUs computing in user space"),
    ];
    let figures =
        names.map(|(name, title)| Figure::alone(GROUP, title, Unit::Faults, &counted[name]));
    Ok(figures.into())
}
