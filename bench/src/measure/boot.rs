//! From the command line to the first line of the first program.

use super::UPSTREAM;
use crate::error::Result;
use crate::figures::{Figure, Unit};
use crate::samples::Samples;
use crate::setting::{NODE_MEMORY_MIB, Setting};

const GROUP: &str = "Boot to the first program";

pub(crate) fn measure(setting: &Setting) -> Result<Vec<Figure>> {
    [("one node", "a", 1), ("three nodes", "a,b,c", 3)]
        .into_iter()
        .map(|(name, nodes, count)| boots(setting, name, nodes, count))
        .collect()
}

fn boots(setting: &Setting, name: &str, nodes: &str, count: usize) -> Result<Figure> {
    let (mut upstream, mut span) = (Samples::default(), Samples::default());
    setting.repeat(&format!("boot, {name}"), || {
        let booted = setting.upstream(count, count * NODE_MEMORY_MIB, &["hello"])?;
        upstream.add(vec![booted.up.as_nanos() as f64]);
        let booted = setting.span(nodes, 1, &["hello"])?;
        span.add(vec![booted.up.as_nanos() as f64]);
        Ok(())
    })?;
    let unit = Unit::Milliseconds;
    Ok(Figure::compared(
        GROUP, name, unit, UPSTREAM, &upstream, &span,
    ))
}
