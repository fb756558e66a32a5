//! Both ways to protect guest memory, in turns.

use super::remote::{self, ByKind, REMOTE};
use crate::error::Result;
use crate::figures::{Figure, Unit};
use crate::samples::Samples;
use crate::setting::Setting;

const GROUP: &str = "Two nodes, userfaultfd against mprotect";
const UNIT: Unit = Unit::Microseconds;

/// What is compared, and with what.
const ENGINES: [&str; 2] = ["mprotect", "uffd"];

/// Pages, and how often they are fetched. In longer runs with mprotect a fifth of the accesses were no faults, for a
/// reason that is not known, and the figures would be of less than they say.
const FAULTS: (u32, u32) = (256, 1);

#[derive(Debug, Default)]
struct Measured {
    faults: ByKind,
    waits: ByKind,
    /// Writes to pages that the other node has, more of them than a process may have mappings.
    board: Samples,
}

pub(crate) fn measure(setting: &Setting) -> Result<Vec<Figure>> {
    let mut measured = [Measured::default(), Measured::default()];
    let pages = setting.effort.board.to_string();
    setting.repeat("engines", || {
        for (engine, of_engine) in ENGINES.into_iter().zip(&mut measured) {
            let paging = ["--paging", engine];
            let Measured {
                faults,
                waits,
                board,
            } = of_engine;
            remote::faults(setting, &paging, FAULTS, faults, waits)?;
            let outcome = setting.span_with(&paging, "a,b", &["board", &setting.khz, &pages])?;
            board.add(outcome.samples("board")?);
        }
        Ok(())
    })?;
    Ok(figures(&measured))
}

fn figures([mprotect, uffd]: &[Measured; 2]) -> Vec<Figure> {
    let compared = |name: String, mprotect: &Samples, uffd: &Samples| {
        Figure::compared(GROUP, name, UNIT, ENGINES[0], mprotect, uffd)
    };
    let mut figures = Vec::new();
    for name in REMOTE.into_iter().chain(["local"]) {
        let of = |map: &ByKind| map.get(name).cloned().unwrap_or_default();
        let title = match name {
            "local" => "fault that asks nobody".to_owned(),
            name => format!("{name} fault"),
        };
        figures.push(compared(
            format!("{title}, mean wait for the pager"),
            &of(&mprotect.waits),
            &of(&uffd.waits),
        ));
        figures.push(compared(title, &of(&mprotect.faults), &of(&uffd.faults)));
    }
    figures.push(compared(
        "write to a checkerboard's page of the other node".to_owned(),
        &mprotect.board,
        &uffd.board,
    ));
    figures
}
