//! `cargo dev test`: formatting, lints, unit tests, then whole-system tests on what was built.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use crate::base::Base;
use crate::error::{Error, Result};
use crate::kernel::Builder;
use crate::layout::Layout;
use crate::prereq;
use crate::process;
use crate::product;
use crate::progress::Progress;
use crate::source::Wanted;

/// The crate with the whole-system tests; everything else is unit tests.
const SYSTEM_TESTS: &str = "span-tests";
/// Those of them that every accepted kernel series has to pass. Another series is the same code on
/// other surroundings: that it works at all is the test.
const BASIC_TESTS: &str = "basics";

/// Unit tests that say nothing for so long hang. Those of whole systems end themselves, and say more.
const UNIT_TESTS_QUIET_MAX: Duration = Duration::from_secs(15 * 60);

#[derive(Debug, Default)]
struct Tally {
    passed: u32,
    failed: u32,
    ignored: u32,
}

pub(crate) fn run(layout: &Layout, progress: &Progress, filters: &[String]) -> Result<ExitCode> {
    let needs: &[&[prereq::Need]] = &[prereq::BUILD, prereq::TEST];
    let mut tally = Tally::default();
    let products = product::with_builder(layout, progress, needs, |builder| {
        // What fails soon comes first.
        if filters.is_empty() {
            prereq::ensure_rust_components(builder)?;
            checks(builder, &mut tally);
        }
        // Tests of one program start the others, which cargo does not build for them.
        product::cargo(builder, "binaries", binaries())?;
        tests(
            builder,
            "unit-tests",
            UNIT_TESTS_QUIET_MAX,
            &mut tally,
            |command| {
                command
                    .args(["--workspace", "--exclude", SYSTEM_TESTS, "--"])
                    .args(filters);
            },
        );
        products(builder, filters.is_empty())
    })?;
    // The build lock is free again: tests may take long, and change nothing that is built.
    let lock = std::fs::File::open("/dev/null").map_err(|source| Error::Spawn {
        program: "/dev/null".into(),
        source,
    })?;
    let builder = Builder {
        layout,
        progress,
        lock: &lock,
    };
    let Products {
        main,
        upstream,
        planted,
        other,
    } = products;
    // They measure times and fill both processors of a small machine: one after the other.
    tests(
        &builder,
        "system-tests",
        Duration::MAX,
        &mut tally,
        |command| {
            command
                .args(["--package", SYSTEM_TESTS, "--", "--test-threads=1"])
                .args(filters);
            command
                .env("SPAN_BIN", main)
                .env("SPAN_UPSTREAM", upstream)
                .env("SPAN_PLANTED", planted);
        },
    );
    if let Some(other) = other {
        tests(
            &builder,
            "system-tests-other-series",
            Duration::MAX,
            &mut tally,
            |command| {
                command.args(["--package", SYSTEM_TESTS, "--test", BASIC_TESTS]);
                command
                    .args(["--", "--test-threads=1"])
                    .args(filters)
                    .env("SPAN_BIN", other);
            },
        );
    }
    if tally.ignored > 0 {
        println!("{} ignored", tally.ignored);
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(if tally.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What whole-system tests are run on.
#[derive(Debug)]
struct Products {
    main: PathBuf,
    /// The same kernel as upstream has it.
    upstream: PathBuf,
    /// The products with a bug planted.
    planted: PathBuf,
    /// The product with the other accepted kernel series, where the mirror has that.
    other: Option<PathBuf>,
}

/// `all`: with the other series too. Whoever asks for a few tests by name does not wait for it.
fn products(builder: &Builder<'_>, all: bool) -> Result<Products> {
    let layout = builder.layout;
    let wanted = Wanted::default();
    let main = product::build(builder, &wanted, &layout.product())?;
    let upstream = product::upstream(builder, &wanted)?;
    let planted = product::planted(builder, &wanted)?;
    let accepted = Base::read(&layout.root)?.accepted;
    let other = accepted
        .into_iter()
        .find(|entry| all && entry.series != main.series);
    let other = match other {
        Some(entry) => other_series(builder, entry.series)?,
        None => None,
    };
    Ok(Products {
        main: main.dir,
        upstream,
        planted,
        other,
    })
}

fn other_series(builder: &Builder<'_>, series: String) -> Result<Option<PathBuf>> {
    let link = builder.layout.target.join(format!("span-{series}"));
    let wanted = Wanted {
        series: Some(series),
        ..Wanted::default()
    };
    match product::build(builder, &wanted, &link) {
        Ok(product) => Ok(Some(product.dir)),
        // An old series leaves the mirror some day; that is no fault of this checkout.
        Err(Error::NotListed(why)) => {
            builder.progress.stage(format!("not tested: {why}"));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn checks(builder: &Builder<'_>, tally: &mut Tally) {
    let mut format = prereq::cargo();
    format.args(["fmt", "--all", "--check"]);
    let mut lint = prereq::cargo();
    lint.args([
        "clippy",
        "--release",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]);
    for (name, command) in [("formatting", format), ("lints", lint)] {
        match product::cargo(builder, name, command) {
            Ok(()) => tally.passed += 1,
            Err(error) => {
                tally.failed += 1;
                eprintln!("{error}");
            }
        }
    }
}

fn binaries() -> Command {
    let mut command = prereq::cargo();
    command.args(["build", "--release", "--workspace", "--exclude"]);
    command.args([SYSTEM_TESTS, "--bins", "--examples"]);
    command
}

fn tests(
    builder: &Builder<'_>,
    name: &str,
    quiet_max: Duration,
    tally: &mut Tally,
    select: impl FnOnce(&mut Command),
) {
    let mut command = prereq::cargo();
    command
        .args(["test", "--release", "--no-fail-fast"])
        .current_dir(&builder.layout.root);
    select(&mut command);
    builder.progress.stage(name.replace('-', " "));
    let before = tally.failed;
    let log = builder.layout.log(name);
    let outcome = process::logged_within(quiet_max, name, command, builder.lock, &log, |line| {
        let Some(line) = line else { return };
        println!("{line}");
        tally.count(line);
    });
    if let Err(error) = outcome {
        eprintln!("{error}");
        // It did not compile, or a test took its whole process down.
        if tally.failed == before {
            tally.failed += 1;
        }
    }
}

impl Tally {
    /// Adds up the closing lines of test programs:
    /// `test result: ok. 12 passed; 0 failed; 1 ignored; …`.
    fn count(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result: ") else {
            return;
        };
        let Some((_, counts)) = rest.split_once(". ") else {
            return;
        };
        for part in counts.split("; ") {
            let Some((number, what)) = part.split_once(' ') else {
                continue;
            };
            let Ok(number) = number.parse::<u32>() else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_add_up() {
        let mut tally = Tally::default();
        tally.count("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out");
        tally.count(
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 1 filtered out",
        );
        tally.count("test a::b ... ok");
        assert_eq!((tally.passed, tally.failed, tally.ignored), (15, 2, 1));
    }
}
