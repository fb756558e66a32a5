//! A disk that is a file of the host's, on the node that has it.

use super::UPSTREAM;
use crate::error::Result;
use crate::figures::{Figure, Unit};
use crate::samples::Samples;
use crate::setting::{NODE_MEMORY_MIB, Setting};

const GROUP: &str = "A disk, one node";
/// Nine tenths of upstream's speed.
const RATIO_MAX: f64 = 1.11;

/// The gauge's names, what they are called here, and whether upstream does the same.
const WHAT: [(&str, &str, bool); 4] = [
    ("write", "write 1 MiB", true),
    ("read", "read 1 MiB", true),
    ("random", "read 4 KiB anywhere", true),
    ("fsync", "make 4 KiB durable", false),
];

pub(crate) fn measure(setting: &Setting) -> Result<Vec<Figure>> {
    let (mib, reads) = setting.effort.ubd;
    let image = setting.image("disk", mib)?;
    let (mib, reads) = (mib.to_string(), reads.to_string());
    let arguments = ["ubd", &setting.khz, &mib, &reads];
    let mut sides = vec![(Samples::default(), Samples::default()); WHAT.len()];
    setting.repeat("a disk", || {
        let theirs = setting.upstream_with_disk(&image, NODE_MEMORY_MIB, &arguments)?;
        let ours = setting.span_with_disk(&image, &arguments)?;
        for ((name, ..), (upstream, span)) in WHAT.iter().zip(&mut sides) {
            upstream.add(theirs.samples(name)?);
            span.add(ours.samples(name)?);
        }
        Ok(())
    })?;
    let figure =
        |((_, title, same), (upstream, span)): (&(&str, &str, bool), &(Samples, Samples))| {
            let figure =
                Figure::compared(GROUP, *title, Unit::Microseconds, UPSTREAM, upstream, span);
            match same {
                true => figure.aim(RATIO_MAX),
                false => figure,
            }
        };
    Ok(WHAT.iter().zip(&sides).map(figure).collect())
}
