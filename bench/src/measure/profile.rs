//! What it costs to be profiled.

use crate::error::Result;
use crate::figures::{Figure, Unit};
use crate::samples::Samples;
use crate::setting::Setting;

const GROUP: &str = "Two nodes, while they are profiled";

/// A profile may take this much longer.
const RATIO_MAX: f64 = 1.05;

pub(crate) fn measure(setting: &Setting) -> Result<Vec<Figure>> {
    let (pipes, execs) = (setting.effort.pipes, setting.effort.execs);
    [
        ("pipe", "pipe round trip", Unit::Microseconds, pipes),
        ("exec", "fork+exec", Unit::Milliseconds, execs),
    ]
    .into_iter()
    .map(|(gauge, name, unit, rounds)| program(setting, gauge, name, unit, rounds))
    .collect()
}

fn program(setting: &Setting, gauge: &str, name: &str, unit: Unit, rounds: u32) -> Result<Figure> {
    let rounds = rounds.to_string();
    let arguments = [gauge, &setting.khz, &rounds];
    let (mut plain, mut profiled) = (Samples::default(), Samples::default());
    setting.repeat_parts(&format!("{name}, profiled"), || {
        plain.add(setting.span("a,b", 1, &arguments)?.samples(gauge)?);
        profiled.add(setting.span_profiled("a,b", &arguments)?.samples(gauge)?);
        Ok(())
    })?;
    let figure = Figure::compared(GROUP, name, unit, "not profiled", &plain, &profiled);
    Ok(figure.aim(RATIO_MAX))
}
