//! `cargo dev bench`: builds both sides, then hands over to `bench`, which measures them.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use crate::emulator;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::prereq;
use crate::product;
use crate::progress::Progress;
use crate::source::Wanted;

const CRATE: &str = "bench";

/// What `bench` says, then, if it wants QEMU as well.
const QEMU: &[u8] = b"qemu";

/// Has `bench` look at its command line, and do nothing.
const CHECK: &str = "--check";

/// Does not return if `bench` can be started.
pub(crate) fn run(
    layout: &Layout,
    progress: &Progress,
    arguments: &[OsString],
) -> Result<ExitCode> {
    let program = layout.release.join(CRATE);
    let spawn_error = |source| Error::Spawn {
        program: CRATE.into(),
        source,
    };
    let help = arguments
        .iter()
        .any(|word| word == "--help" || word == "-h");
    let mut bench = Command::new(&program);
    bench.args(arguments);
    let mut refused = None;
    product::with_builder(layout, progress, &[prereq::BUILD], |builder| {
        let mut command = prereq::cargo();
        command.args(["build", "--release", "--package", CRATE]);
        product::cargo(builder, CRATE, command)?;
        if help {
            return Ok(());
        }
        // Kernels take minutes to build: a wrong option is better told before.
        let mut check = Command::new(&program);
        let checked = check.arg(CHECK).args(arguments).stderr(Stdio::inherit());
        let checked = checked.output().map_err(spawn_error)?;
        if !checked.status.success() {
            refused = Some(checked.status.code().unwrap_or(1));
            return Ok(());
        }
        if checked.stdout.trim_ascii() == QEMU {
            match emulator::prepare(builder) {
                Ok(directory) => {
                    bench.env("SPAN_QEMU", directory);
                }
                // All else can be measured without; the table says what is missing.
                Err(error) => progress.stage(format!("QEMU: {error}")),
            }
        }
        let wanted = Wanted::default();
        let main = product::build(builder, &wanted, &layout.product())?;
        let upstream = product::upstream(builder, &wanted)?;
        bench
            .env("SPAN_BIN", main.dir)
            .env("SPAN_UPSTREAM", upstream);
        Ok(())
    })?;
    match refused {
        Some(code) => Ok(ExitCode::from(code as u8)),
        None => Err(spawn_error(bench.exec())),
    }
}
