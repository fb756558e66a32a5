//! Pages of the same content that the kernel merges, of several nodes, by tests that nobody here wrote: the kernel's own.

use span_tests::{Selftests, Up, World};

/// Longest time of one program, in seconds.
const PROGRAM_S_MAX: u64 = 120;

/// Of huge pages User-Mode Linux has none.
const SKIPPED: &str = "-H -s 1";

/// How the kernel's own script calls them, with smaller areas where only time is measured. `-C` only measures time, too,
/// and takes 17 s: between ten pages and the next ten a tick is waited for.
const MERGING: &[&str] = &[
    "-M -p 10",
    "-U",
    "-Z -p 10 -z 0",
    "-Z -p 10 -z 1",
    // Two pages of two nodes: they become one, and they do not.
    "-N -m 1",
    "-N -m 0",
    "-P -s 1",
    "-D -s 1",
    SKIPPED,
];

/// Of each node.
const CPUS: [&str; 3] = ["0", "1-2", "3-4"];

/// Of `ksm_functional_tests`. One more asks for userfaultfd, which this kernel has not got.
const FUNCTIONS: usize = 9;

#[test]
fn the_kernel_finds_nothing_in_pages_that_are_merged() {
    let Some(selftests) = Selftests::find("the kernel's own tests of pages that are merged") else {
        return;
    };
    let world = World::new();
    let beside = ["mm/vm_util.c", "mm/hugepage_settings.c"];
    let build = |name| selftests.compile(&world, name, &[], &beside, &[]);
    let merging = build("mm/ksm_tests.c").display().to_string();
    let functions = build("mm/ksm_functional_tests.c");
    let guest = Up::three(&world)
        .options(&["--cpus", "b=2,c=2"])
        // One writes to its own memory through /proc, past what it may do.
        .append("proc_mem.force_override=always")
        .detach("merged");

    // The test waits for two scans, and a smart one passes over what it has looked at in vain.
    guest.sh("echo 0 > /sys/kernel/mm/ksm/smart_scan");
    let before = guest.status();
    // On each node in turn: where the guest's scheduler puts programs that run for moments is chance.
    for (arguments, cpus) in MERGING.iter().zip(CPUS.iter().cycle()) {
        let argv: Vec<&str> = ["taskset", "-c", cpus, &merging]
            .into_iter()
            .chain(arguments.split(' '))
            .collect();
        let outcome = guest.exec_within(&argv, PROGRAM_S_MAX);
        let text = outcome.text();
        assert_eq!(outcome.code, 0, "{arguments}: {text}");
        let result = text.lines().find(|line| line.starts_with("ok 1 "));
        let skipped = result.expect("a result").contains("# SKIP");
        assert_eq!(skipped, *arguments == SKIPPED, "{arguments}: {text}");
    }
    guest.status().assert_moved(&before);

    // It executes itself by a name in the directory that it is started from.
    let directory = functions.parent().expect("a directory");
    let script = format!("cd {} && exec ./ksm_functional_tests", directory.display());
    let outcome = guest.exec_within(&["sh", "-c", &script], PROGRAM_S_MAX);
    let text = outcome.text();
    let results = text.lines().filter(|line| line.contains("ok "));
    let (skipped, results): (Vec<&str>, Vec<&str>) =
        results.partition(|line| line.contains("# SKIP"));
    assert!(
        outcome.code == 0
            && results.len() == FUNCTIONS
            && results.iter().all(|line| line.starts_with("ok "))
            && skipped.len() == 1
            && skipped[0].contains("userfaultfd"),
        "{}\n{text}",
        outcome.code
    );
    guest.down().expect(0);
    world.assert_clean();
}
