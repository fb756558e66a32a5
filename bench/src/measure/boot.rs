//! From the command line to the first line of the first program.

use super::UPSTREAM;
use crate::error::Result;
use crate::figures::{Figure, Unit};
use crate::gauge::Outcome;
use crate::samples::Samples;
use crate::setting::{NODE_MEMORY_MIB, Setting};

const GROUP: &str = "Boot to the first program";

/// Three nodes of a CPU each, against one node.
const NODES: &str = "a,b,c";
const COUNT: usize = 3;
const RATIO_MAX: f64 = 1.5;

pub(crate) fn measure(setting: &Setting) -> Result<Vec<Figure>> {
    let mut times: [Samples; 5] = Default::default();
    setting.repeat("boot", || {
        let hello = &["hello"];
        let boots = [
            setting.upstream(1, NODE_MEMORY_MIB, hello)?,
            setting.upstream(COUNT, COUNT * NODE_MEMORY_MIB, hello)?,
            setting.span("a", 1, hello)?,
            setting.span_on_one(COUNT, hello)?,
            setting.span(NODES, 1, hello)?,
        ];
        for (times, boot) in times.iter_mut().zip(&boots) {
            times.add(vec![nanoseconds(boot)]);
        }
        Ok(())
    })?;
    let [upstream, upstream_of_three, one, one_of_three, three] = &times;
    let ms = Unit::Milliseconds;
    let figure = |name, against, reference, span| {
        Figure::compared(GROUP, name, ms, against, reference, span)
    };
    Ok(vec![
        figure("one node, a CPU", UPSTREAM, upstream, one),
        figure(
            "one node, three CPUs",
            UPSTREAM,
            upstream_of_three,
            one_of_three,
        ),
        figure(
            "three nodes, a CPU each",
            UPSTREAM,
            upstream_of_three,
            three,
        ),
        figure(
            "three nodes, a CPU each",
            "one node, three CPUs",
            one_of_three,
            three,
        )
        .aim(RATIO_MAX),
        figure("three nodes, a CPU each", "one node, a CPU", one, three).aim(RATIO_MAX),
    ])
}

fn nanoseconds(boot: &Outcome) -> f64 {
    boot.up.as_nanos() as f64
}
