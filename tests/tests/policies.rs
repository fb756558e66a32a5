//! Memory policies and moved pages, by tests that nobody here wrote: the kernel's own and numactl's. And by one of ours
//! for what others do not ask, on every machine.

use span_tests::{Detached, Selftests, Status, Up, World, not_tested};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where libnuma's own tests were built: its source, for `numademo` and the programs that its tests run are in no package.
const NUMACTL: &str = "SPAN_NUMACTL";

/// How long one of numactl's own tests may take.
const NUMACTL_S_MAX: u64 = 600;

/// Each of the kernel's tests of pages that move takes as long, instead of 20 s.
const MIGRATION_S: &str = "3";

/// That the test writes to at a time.
const PAGES: u64 = 64;

#[test]
fn policies_are_kept_on_every_node() {
    let world = World::new();
    let program = world
        .compile("policies", include_str!("../programs/policies.c"))
        .expect("a program")
        .display()
        .to_string();
    let guest = Up::three(&world).detach("policies");
    for node in ["a", "b", "c"] {
        let before = guest.status();
        let outcome = guest.exec_on(&["--node", node], &[&program, "3"]);
        assert_eq!(outcome.expect(0).text(), "79 checks, 0 failed", "{node}");
        // Pages of the others, which the test has its policies take.
        let came = guest.status().node(node).pages_in - before.node(node).pages_in;
        assert!(came > PAGES, "{node}: {came} pages");
    }
    guest.down().expect(0);
    world.assert_clean();
}

/// Of the kernel's test harness: `ok 1 migrate.anon`, or `… # SKIP why` for what this kernel has not got.
#[track_caller]
fn assert_passed(guest: &Detached, program: &Path, expected: &[&str]) {
    let outcome = guest.exec_within(&[&program.display().to_string()], 120);
    let text = outcome.text();
    assert_eq!(outcome.code, 0, "{text}{}", outcome.stderr);
    let passed: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("ok ") && !line.contains("# SKIP"))
        .filter_map(|line| line.split(' ').nth(2))
        .collect();
    assert_eq!(passed, expected, "{text}");
}

/// Of huge pages the kernel has none.
#[test]
fn the_kernel_finds_nothing_in_pages_that_move() {
    let Some(selftests) = Selftests::find("the kernel's own tests of pages that move") else {
        return;
    };
    let world = World::new();
    let runtime = format!("#define RUNTIME\t\t({MIGRATION_S})");
    // A busy machine is no failure: what ends too late is ended by `assert_passed`.
    let shorter = [
        ("#define RUNTIME\t\t(20)", runtime.as_str()),
        ("2*RUNTIME", "60"),
    ];
    let beside = ["mm/vm_util.c", "mm/hugepage_settings.c"];
    let build = |name, changes| selftests.compile(&world, name, changes, &beside, &[]);
    let migration = build("mm/migration.c", &shorter[..]);
    let rmap = build("mm/rmap.c", &[]);
    // Its threads are two fewer than there are CPUs.
    let guest = Up::three(&world)
        .options(&["--cpus", "b=2,c=2"])
        .detach("kernel-tests");
    let before = guest.status();
    assert_passed(
        &guest,
        &migration,
        &["migration.private_anon", "migration.shared_anon"],
    );
    let between = guest.status();
    between.assert_moved(&before);
    let mut expected = vec!["migrate.anon", "migrate.shm", "migrate.file", "migrate.ksm"];
    // Since 7.3.
    if selftests.text("mm/rmap.c").contains("ksm_and_mremap") {
        expected.push("migrate.ksm_and_mremap");
    }
    assert_passed(&guest, &rmap, &expected);
    // Each moves its page to the first node that it is not on, and its processes are where the scheduler has them: two
    // nodes have a part in it.
    let came = |status: &Status| status.nodes.iter().map(|node| node.pages_in).sum::<u64>();
    let moved = came(&guest.status()) - came(&between);
    assert!(moved >= expected.len() as u64, "{moved} pages moved");
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn numactl_finds_nothing() {
    let found = std::env::var_os(NUMACTL).map(PathBuf::from);
    let Some(directory) = found.filter(|path| path.join("numademo").is_file()) else {
        not_tested(&format!(
            "numademo and numactl's own tests: {NUMACTL} names the directory of its source where `make check` has built them"
        ));
        return;
    };
    let world = World::lasting(Duration::from_secs(2 * NUMACTL_S_MAX));
    // Two nodes of these may have to give 75 MiB to one test.
    let guest = Up::three(&world)
        .options(&["--mem", "384M"])
        .detach("numactl");
    let before = guest.status();
    for test in [
        "numademo 4M memset forward random2",
        "test/checkaffinity",
        "test/checktopology",
        "test/distance",
        "test/move_pages 5",
        "test/migrate_pages 5",
        "test/mbind_mig_pages 3",
        "test/nodemap",
        "test/tbitmap",
        "test/tshared",
        "test/realloc_test",
        "test/bind_range",
        "test/prefered",
        "test/mynode",
        // It looks at counters twice as late as they are gathered, which is once a minute unless this is asked for.
        "test/regress",
    ] {
        let script = format!(
            "sysctl -q vm.stat_interval=1; cd {} && builddir=. srcdir=. exec ./{test}",
            directory.display()
        );
        let outcome = guest.exec_within(&["bash", "-c", &script], NUMACTL_S_MAX);
        assert_eq!(
            outcome.code,
            0,
            "{test}: {}{}",
            outcome.text(),
            outcome.stderr
        );
    }
    guest.status().assert_moved(&before);
    guest.down().expect(0);
    world.assert_clean();
}
