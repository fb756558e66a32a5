//! Python's own tests give on three nodes what they give on upstream's kernel.

use span_tests::{Spawned, UPSTREAM_MISSING, Up, World, not_tested, upstream, upstream_kernel};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// One module, on either kernel.
const MODULE_S_MAX: u64 = 900;

/// `SPAN_PYTHON`; the full test is `test_threading test_queue test_socket test_subprocess`.
fn modules() -> Vec<String> {
    let chosen = std::env::var("SPAN_PYTHON").unwrap_or_else(|_| "test_queue".into());
    chosen.split_whitespace().map(str::to_owned).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Result {
    Passed,
    Failed,
    Skipped,
}

/// What each test of a module gave, by name.
type Results = BTreeMap<String, Result>;

/// From the output of `module.sh`.
#[track_caller]
fn results(output: &str) -> Results {
    // A console ends lines as terminals want it.
    let output = output.replace('\r', "");
    let (_, report) = output
        .split_once("\nreport\n")
        .unwrap_or_else(|| panic!("no report in: {output}"));
    let mut results = Results::new();
    for line in report.lines() {
        let (result, name) = match line.split_once(' ') {
            Some(("passed", name)) => (Result::Passed, name),
            Some(("failed", name)) => (Result::Failed, name),
            Some(("skipped", name)) => (Result::Skipped, name),
            _ => continue,
        };
        // A test in parts has a line for each that failed or was skipped.
        let whole = results.entry(name.to_string()).or_insert(result);
        *whole = match (*whole, result) {
            (Result::Failed, _) | (_, Result::Failed) => Result::Failed,
            (_, latest) => latest,
        };
    }
    assert!(!results.is_empty(), "no tests in: {output}");
    results
}

/// One line for each test that does worse here than there.
fn worse(here: &Results, there: &Results) -> String {
    let mut lines = String::new();
    for (name, expected) in there {
        let found = here.get(name);
        if found == Some(expected) || (*expected == Result::Failed && found.is_some()) {
            continue;
        }
        let _ = writeln!(lines, "{name}: {found:?}, upstream {expected:?}");
    }
    lines
}

fn on_upstream(world: &World, kernel: &Path, script: &Path, module: &str) -> Results {
    let script = script.display().to_string();
    // One CPU: what upstream's kernel does with more is another test's matter.
    let mut command = upstream(world, kernel, 1, 512, &[&script, module]);
    let outcome = Spawned::start(&mut command).wait(Duration::from_secs(MODULE_S_MAX));
    results(&outcome.text())
}

fn script(world: &World) -> PathBuf {
    let script = world.file("module.sh", include_str!("../programs/module.sh"));
    world.file("module.py", include_str!("../programs/module.py"));
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("permissions");
    script
}

#[test]
fn python_finds_no_difference_to_upstream() {
    let Some(kernel) = upstream_kernel() else {
        not_tested(UPSTREAM_MISSING);
        return;
    };
    let modules = modules();
    let world = World::lasting(Duration::from_secs(MODULE_S_MAX) * 2 * modules.len() as u32);
    let script = script(&world);
    let mut differences = String::new();
    for module in &modules {
        let guest = Up::three(&world)
            .options(&["--mem", "512M"])
            .detach("python");
        guest.status().assert_spread();
        let before = guest.status();
        let path = script.display().to_string();
        let begin = Instant::now();
        let outcome = guest.exec_within(&[&path, module], MODULE_S_MAX).expect(0);
        let here_s = begin.elapsed().as_secs();
        guest.status().assert_moved(&before);
        guest.down().expect(0);
        world.assert_clean();
        let here = results(&outcome.text());
        let begin = Instant::now();
        let there = on_upstream(&world, &kernel, &script, module);
        let there_s = begin.elapsed().as_secs();
        println!(
            "{module}: {} tests, {} passed in {here_s} s; upstream: {} passed in {there_s} s",
            here.len(),
            count(&here, Result::Passed),
            count(&there, Result::Passed)
        );
        let worse = worse(&here, &there);
        if !worse.is_empty() {
            let _ = writeln!(differences, "{worse}{}", outcome.text());
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

fn count(results: &Results, result: Result) -> usize {
    results.values().filter(|found| **found == result).count()
}
