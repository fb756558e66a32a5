//! One node: what Span costs where nothing is shared.

use super::UPSTREAM;
use crate::error::Result;
use crate::figures::{Figure, Unit};
use crate::samples::Samples;
use crate::setting::{NODE_MEMORY_MIB, Setting};

const GROUP: &str = "One node";
const RATIO_MAX: f64 = 1.03;

/// The gauge's names, what they are called here, and what they are shown in.
const WHAT: [(&str, &str, Unit); 3] = [
    ("getppid", "getppid", Unit::Microseconds),
    ("fork", "fork+exit+wait", Unit::Microseconds),
    ("anonymous", "anonymous write fault", Unit::Microseconds),
];

pub(crate) fn measure(setting: &Setting) -> Result<Vec<Figure>> {
    let effort = setting.effort;
    let numbers = [
        effort.call_batches,
        effort.forks,
        effort.anonymous.0,
        effort.anonymous.1,
    ]
    .map(|number| number.to_string());
    let mut arguments = vec!["single", &setting.khz];
    arguments.extend(numbers.iter().map(String::as_str));

    let mut figures = Vec::new();
    for (cpus, noun) in [(1, "CPU"), (2, "CPUs")] {
        let mut sides = vec![(Samples::default(), Samples::default()); WHAT.len()];
        setting.repeat_parts(&format!("one node, {cpus} {noun}"), || {
            let theirs = setting.upstream(cpus, NODE_MEMORY_MIB, &arguments)?;
            let ours = setting.span("a", cpus, &arguments)?;
            for ((name, ..), (upstream, span)) in WHAT.iter().zip(&mut sides) {
                upstream.add(theirs.samples(name)?);
                span.add(ours.samples(name)?);
            }
            Ok(())
        })?;
        for ((_, name, unit), (upstream, span)) in WHAT.iter().zip(&sides) {
            let name = format!("{name}, {cpus} {noun}");
            let figure = Figure::compared(GROUP, name, *unit, UPSTREAM, upstream, span);
            figures.push(figure.aim(RATIO_MAX));
        }
    }
    Ok(figures)
}
