//! Files of the host's, on the node that has them.

use super::UPSTREAM;
use crate::error::Result;
use crate::figures::{Figure, Unit};
use crate::samples::Samples;
use crate::setting::{NODE_MEMORY_MIB, Setting};

const GROUP: &str = "Files of the host's, one node";
/// Nine tenths of upstream's speed.
const RATIO_MAX: f64 = 1.11;

/// The gauge's names, and what they are called here.
const WHAT: [(&str, &str); 5] = [
    ("create", "create a file"),
    ("stat", "stat a file"),
    ("unlink", "unlink a file"),
    ("write", "write 1 MiB"),
    ("read", "read 1 MiB"),
];

pub(crate) fn measure(setting: &Setting) -> Result<Vec<Figure>> {
    let (files, mib) = setting.effort.hostfs;
    let directory = setting.directory("files")?;
    let (files, mib) = (files.to_string(), mib.to_string());
    let arguments = ["hostfs", &setting.khz, &files, &mib, &directory];
    let mut sides = vec![(Samples::default(), Samples::default()); WHAT.len()];
    setting.repeat("files of the host's", || {
        let theirs = setting.upstream(1, NODE_MEMORY_MIB, &arguments)?;
        let ours = setting.span_exporting(&directory, &arguments)?;
        for ((name, _), (upstream, span)) in WHAT.iter().zip(&mut sides) {
            upstream.add(theirs.samples(name)?);
            span.add(ours.samples(name)?);
        }
        Ok(())
    })?;
    let figure = |((_, title), (upstream, span)): (&(&str, &str), &(Samples, Samples))| {
        let unit = Unit::Microseconds;
        Figure::compared(GROUP, *title, unit, UPSTREAM, upstream, span).aim(RATIO_MAX)
    };
    Ok(WHAT.iter().zip(&sides).map(figure).collect())
}
