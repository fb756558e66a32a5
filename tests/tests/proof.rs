//! The memory between nodes, from inside: the kernel's own tests and litmus tests, on all nodes at
//! once. Long forms: `SPAN_TORTURE_S`, `SPAN_LITMUS`.

use span_tests::{PLANTED_MISSING, Up, World, not_tested, number, planted, program};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What locktorture knows, but for what needs BPF and the lock that is broken on purpose.
const LOCKS: &[&str] = &[
    "spin_lock",
    "spin_lock_irq",
    "raw_spin_lock",
    "raw_spin_lock_irq",
    "rw_lock",
    "rw_lock_irq",
    "mutex_lock",
    "ww_mutex_lock",
    "rtmutex_lock",
    "rwsem_lock",
    "percpu_rwsem_lock",
];

/// What rcutorture knows in this configuration, but for what is trivial or broken on purpose.
const RCUS: &[&str] = &["rcu", "srcu", "srcud"];

/// Starting and stopping the threads of a torture test.
const AROUND_S: u64 = 60;

/// How long locks are under load, and how long RCU is: over all of `types`.
fn torture_s(types: &[&str]) -> u64 {
    number("SPAN_TORTURE_S", 3 * types.len() as u64)
}

/// How often each litmus test runs. A round of them is 1,024.
fn iterations() -> u64 {
    number("SPAN_LITMUS", 4_096)
}

/// The product's modules where guests find them: a product may lie in /tmp, of which a guest has one
/// of its own.
fn modules(world: &World) -> PathBuf {
    let product = program("modules/kunit.ko");
    let product = product.parent().expect("a directory");
    let copies = world.path("work").join("modules");
    std::fs::create_dir(&copies).expect("a directory");
    for entry in std::fs::read_dir(product).expect("modules") {
        let entry = entry.expect("a file");
        std::fs::copy(entry.path(), copies.join(entry.file_name())).expect("a copy");
    }
    copies
}

/// Expects one line for each test and memory layout, none of them bad; tells how it went.
#[track_caller]
fn assert_litmus(output: &str, iterations: u64) {
    let mut tests = 0;
    let mut turns = 0;
    for line in output.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [
            state,
            _name,
            _layout,
            _kind,
            "runs",
            runs,
            "turns",
            overtaken,
            "seen",
            _,
            "stale",
            _,
        ] = words[..]
        else {
            panic!("not a test's line: {line}\nin: {output}");
        };
        println!("{line}");
        assert_eq!(state, "ok:", "{output}");
        assert!(
            2 * runs.parse::<u64>().expect("a number") >= iterations,
            "{line}"
        );
        turns += overtaken.parse::<u64>().expect("a number");
        tests += 1;
    }
    // Two layouts of each: some threads must have met, or nothing was tested.
    assert!(
        tests >= 52 && turns > tests,
        "{tests} lines, {turns} turns: {output}"
    );
}

#[test]
fn litmus_tests_in_user_space() {
    let limit = 300 + iterations() / 2_000;
    let world = World::lasting(Duration::from_secs(limit));
    let guest = Up::three(&world).detach("litmus");
    guest.status().assert_spread();
    let source = world.file("litmus.c", include_str!("../programs/litmus.c"));
    world.file("litmus-tests.h", LITMUS_TESTS);
    guest.sh(&format!(
        "gcc -O2 -pthread -o /tmp/litmus {}",
        source.display()
    ));
    let before = guest.status();
    let outcome = guest.exec_within(&["/tmp/litmus", &iterations().to_string()], limit);
    let after = guest.status();
    assert_litmus(&outcome.text(), iterations());
    outcome.expect(0);
    after.assert_moved(&before);
    println!("{}", after.faults_since(&before));
    guest.down().expect(0);
    world.assert_clean();
}

const LITMUS_TESTS: &str = include_str!("../../kernel/linux/arch/um/kernel/litmus-tests.h");

#[test]
fn litmus_tests_in_the_kernel() {
    let limit = 300 + iterations() / 2_000;
    let world = World::lasting(Duration::from_secs(limit));
    let guest = Up::three(&world).detach("litmus");
    guest.status().assert_spread();
    let (before, log) = (guest.status(), guest.logs());
    let load = format!(
        "insmod {}/litmus.ko iterations={}",
        modules(&world).display(),
        iterations()
    );
    let outcome = guest.exec_within(&["sh", "-c", &load], limit);
    let (after, said) = (guest.status(), guest.assert_quiet_since(&log));
    let lines: Vec<&str> = said
        .lines()
        .filter_map(|line| Some(line.split_once("litmus: ")?.1))
        .filter(|line| line.starts_with("ok:") || line.starts_with("FAILED:"))
        .collect();
    assert_litmus(&lines.join("\n"), iterations());
    outcome.expect(0);
    after.assert_moved(&before);
    println!("{}", after.faults_since(&before));
    guest.sh("rmmod litmus");
    guest.down().expect(0);
    world.assert_clean();
}

/// Loads one of the kernel's torture modules, lets it run, and unloads it: then it says how it was.
#[track_caller]
fn torture(kind: &str, types: &[&str], options: &str) {
    let each = torture_s(types).div_ceil(types.len() as u64);
    let world = World::lasting(Duration::from_secs(
        (each + 2 * AROUND_S) * types.len() as u64 + 120,
    ));
    torture_in(&world, Up::three(&world), kind, types, options, each);
}

/// ... in this guest, each for so many seconds.
#[track_caller]
fn torture_in(world: &World, up: Up, kind: &str, types: &[&str], options: &str, each: u64) {
    let guest = up.detach("torture");
    guest.status().assert_spread();
    let modules = modules(world);
    let modules = modules.display();
    guest.sh(&format!("insmod {modules}/torture.ko"));
    for name in types {
        let (before, log) = (guest.status(), guest.logs());
        let script = format!(
            "insmod {modules}/{kind}.ko torture_type={name} stat_interval={} verbose=0 {options} && sleep {each} && \
             rmmod {kind}",
            each.clamp(1, 60),
        );
        let outcome = guest.exec_within(&["sh", "-c", &script], each + 2 * AROUND_S);
        let (after, said) = (guest.status(), guest.assert_quiet_since(&log));
        assert_eq!(outcome.code, 0, "{name}: {}\n{said}", outcome.stderr);
        assert!(said.contains("End of test: SUCCESS"), "{name}: {said}");
        after.assert_moved(&before);
        // The last statistics before the end.
        let told = |line: &&str| line.contains("Writes:") || line.contains("rtc:");
        let last = said.lines().rfind(told).unwrap_or_default();
        println!(
            "{name} {each} s: SUCCESS; {}; {last}",
            after.faults_since(&before)
        );
    }
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn locks_under_torture() {
    torture("locktorture", LOCKS, "");
}

/// Nothing may rely on nodes that run at the same time.
#[test]
fn locks_under_torture_on_a_single_processor() {
    let types = ["spin_lock", "mutex_lock"];
    let each = torture_s(LOCKS).div_ceil(LOCKS.len() as u64);
    let world = World::lasting(Duration::from_secs(
        (each + 2 * AROUND_S) * types.len() as u64 + 120,
    ));
    let one = Up::on(&world, "a,b,c,d,e,f,g,h").options(&["--mem", "64M"]);
    let one = one.through(&["taskset", "-c", "0"]).limit_s(120);
    torture_in(&world, one, "locktorture", &types, "", each);
}

#[test]
fn rcu_under_torture() {
    torture("rcutorture", RCUS, "");
}

/// Modules with tests for KUnit.
fn kunit_modules(directory: &Path) -> Vec<PathBuf> {
    let mut suites: Vec<PathBuf> = std::fs::read_dir(directory)
        .expect("modules")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| {
            let mut command = Command::new("modinfo");
            let out = command.args(["-F", "depends"]).arg(path).output();
            let depends = String::from_utf8(out.expect("modinfo").stdout).expect("text");
            depends.trim().split(',').any(|name| name == "kunit")
        })
        .collect();
    suites.sort();
    suites
}

#[test]
fn the_kernels_own_unit_tests() {
    let world = World::new();
    let modules = modules(&world);
    let suites = kunit_modules(&modules);
    assert!(suites.len() > 40, "{suites:?}");
    let guest = Up::three(&world).detach("kunit");
    guest.status().assert_spread();
    let before = guest.status();
    let mut script = format!(
        "mount -t debugfs none /sys/kernel/debug && insmod {}/kunit.ko || exit 1\n",
        modules.display()
    );
    for (number, suite) in suites.iter().enumerate() {
        // By each node in turn.
        let _ = writeln!(
            script,
            "taskset -c {} insmod {} || echo 'not loaded: {}'",
            number % 3,
            suite.display(),
            suite.display()
        );
    }
    script += "cat /sys/kernel/debug/kunit/*/results";
    let outcome = guest.exec_within(&["sh", "-c", &script], 600).expect(0);
    let (mut passed, mut skipped, mut failed) = (0, 0, Vec::new());
    for line in outcome.text().lines() {
        assert!(!line.starts_with("not loaded"), "{}", outcome.text());
        // Cases; suites are the lines without indentation.
        match line.trim_start() {
            case if case.len() == line.len() => {}
            case if case.starts_with("not ok ") => failed.push(case.to_string()),
            case if case.starts_with("ok ") && case.contains("# SKIP") => skipped += 1,
            case if case.starts_with("ok ") => passed += 1,
            _ => {}
        }
    }
    println!(
        "{} suites: {passed} cases passed, {skipped} skipped, {} failed",
        suites.len(),
        failed.len()
    );
    assert!(failed.is_empty(), "{failed:?}\n{}", guest.logs());
    assert!(passed > 300, "{}", outcome.text());
    guest.status().assert_moved(&before);
    guest.down().expect(0);
    world.assert_clean();
}

/// The tests above must be able to fail. With a bug in the protocol a guest does not get as far as
/// to run one: the nodes notice that they disagree about a page, and the guest ends.
#[test]
fn planted_bugs_are_found() {
    for bug in ["fault-early-ack", "fault-lost-sharer"] {
        let Some(product) = planted(bug) else {
            not_tested(PLANTED_MISSING);
            return;
        };
        let world = World::new();
        let source = world.file("litmus.c", include_str!("../programs/litmus.c"));
        world.file("litmus-tests.h", LITMUS_TESTS);
        let script = format!(
            "gcc -O2 -pthread -o /tmp/litmus {} && /tmp/litmus {}",
            source.display(),
            iterations()
        );
        let outcome = Up::three(&world).product(&product).option("-v").sh(&script);
        let said = outcome.stderr.trim_end();
        let last = said.lines().next_back().unwrap_or_default();
        println!("{bug}: exit code {}: {last}", outcome.code);
        assert!(said.contains(bug), "not this product: {said}");
        // A lost node, a panic, or a litmus test: not, say, a compiler that is missing.
        let found = matches!(outcome.code, 70 | 134) || outcome.text().contains("FAILED: ");
        assert!(found, "{}", outcome.text());
        world.assert_clean();
    }
}
