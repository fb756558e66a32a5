//! Several nodes, by tests that nobody here wrote: the kernel's own of CPU sets, futexes and memory barriers, from the
//! source package that each build has; and the Linux Test Project's of NUMA. Whatever does not pass is named here, with
//! the reason: what fails or passes otherwise is an error.

use span_tests::{Detached, Selftests, Up, World, not_tested, number};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the Linux Test Project was installed.
const LTP: &str = "SPAN_LTP";

/// Longest time of one program, in seconds.
const PROGRAM_S_MAX: u64 = 120;

/// The same of a script: all rows of the tables of CPU sets took nine minutes on a busy machine.
const SCRIPT_S_MAX: u64 = 1200;

/// Why something does not pass.
type Exception<'a> = (&'a str, &'a str);

const NO_HUGE_PAGES: &str = "User-Mode Linux has no huge pages";
const NO_HOTPLUG: &str = "User-Mode Linux takes no CPU and no memory away";

/// Four nodes with two CPUs each. Some tests fill a file of 256 MiB with pages of one node.
fn four<'w>(world: &'w World, name: &str) -> Detached<'w> {
    let guest = Up::on(world, "a,b,c,d")
        .options(&["--cpus", "2", "--mem", "384M"])
        .detach(name);
    guest.status().assert_spread();
    guest
}

/// Runs a program that says `ok 1 name`, `not ok 2 name` or `ok 3 name # SKIP why`: as many as these pass, and there
/// are no others.
#[track_caller]
fn assert_passes(guest: &Detached, argv: &[&str], passed: usize) {
    let outcome = guest.exec_within(argv, PROGRAM_S_MAX);
    let text = outcome.text();
    let results = text.lines().filter(|line| {
        let line = line.strip_prefix("not ").unwrap_or(line);
        line.starts_with("ok ")
    });
    let (good, bad): (Vec<_>, Vec<_>) =
        results.partition(|line| line.starts_with("ok ") && !line.contains("# SKIP"));
    assert!(
        outcome.code == 0 && good.len() == passed && bad.is_empty(),
        "{argv:?}: {}\n{text}{}",
        outcome.code,
        outcome.stderr
    );
}

/// A script of theirs that says in the end how it went.
#[track_caller]
fn assert_script(guest: &Detached, script: &Path, code: i32, said: &str) {
    let line = format!("exec bash {} 2>&1", script.display());
    let outcome = guest.exec_within(&["sh", "-c", &line], SCRIPT_S_MAX);
    let text = outcome.text();
    assert!(
        outcome.code == code && text.contains(said),
        "{line}: {}\n{text}",
        outcome.code
    );
}

#[test]
fn the_kernel_finds_nothing_in_futexes_and_barriers() {
    let Some(tests) = Selftests::find("the kernel's own tests of futexes and barriers") else {
        return;
    };
    let world = World::new();
    let build = |name: &str, options: &[&str]| {
        let program = tests.compile(&world, name, &[], &[], options);
        program.display().to_string()
    };
    // libnuma has had this function since 2.0.18.
    let home = "-Dnuma_set_mempolicy_home_node(p,s,n,f)=syscall(450,p,s,n,f)";
    let policies = build(
        "futex/functional/futex_numa_mpol.c",
        &["-DLIBNUMA_VER_SUFFICIENT", home],
    );
    let futex = build("futex/functional/futex_numa.c", &[]);
    let barriers = [
        build("membarrier/membarrier_test_single_thread.c", &[]),
        build("membarrier/membarrier_test_multi_thread.c", &[]),
    ];
    let guest = four(&world, "futexes");
    let before = guest.status();

    // Futexes of each NUMA node, found by the policy of the memory.
    assert_passes(&guest, &[&policies], 1);
    // Twice the CPUs, and those that wait in vain: a lock that does not exclude fails an assertion.
    let script = format!("{futex} -s 1 -t 16 -N -c 4 && {futex} -s 1 -t 16 -N1 -c 4");
    let counts = guest.sh(&script);
    let taken = counts
        .lines()
        .filter_map(|line| line.strip_prefix("total: "));
    let taken: Vec<u64> = taken.map(|count| count.parse().expect("a count")).collect();
    // Each thread had it; how often in a second is up to how busy the host is: its owners sleep.
    assert!(
        taken.len() == 2 && taken.iter().all(|count| *count >= 16),
        "{counts}"
    );

    assert_passes(&guest, &[&barriers[0]], 14);
    assert_passes(&guest, &[&barriers[1]], 12);
    guest.status().assert_moved(&before);
    guest.down().expect(0);
    world.assert_clean();
}

/// The rows of the tables of `test_cpuset_prs.sh`, in lines: what this kernel cannot do is left out, and of the others
/// as many are taken as asked for. What is left, and how many rows that is in each table.
fn rows(script: &str, wanted: u64) -> (String, Vec<u64>) {
    let mut tables: Vec<Vec<String>> = Vec::new();
    let mut row = String::new();
    let mut lines = Vec::new();
    let mut inside = false;
    for line in script.lines() {
        if line.ends_with("MATRIX=(") {
            inside = true;
            tables.push(Vec::new());
        } else if line == ")" && inside {
            inside = false;
            lines.push(format!("TABLE {}", tables.len() - 1));
        } else if inside && !line.trim_start().starts_with('#') {
            row = format!("{row}{line}\n");
            if row.matches('"').count().is_multiple_of(2) {
                let row = std::mem::take(&mut row);
                let hotplug = (0..8).any(|cpu| row.contains(&format!("O{cpu}=")));
                if row.contains('"') && !hotplug {
                    tables.last_mut().expect("a table").push(row);
                }
            }
            continue;
        }
        lines.push(line.to_owned());
    }
    let mut counts = Vec::new();
    for (index, table) in tables.iter().enumerate() {
        let (len, mut taken) = (table.len() as u64, String::new());
        let count = wanted.min(len);
        for number in 0..count {
            let which = usize::try_from(number * len / count).expect("a row");
            taken.push_str(&table[which]);
        }
        let place = lines
            .iter()
            .position(|line| *line == format!("TABLE {index}"));
        lines[place.expect("a table")] = taken;
        counts.push(count);
    }
    (lines.join("\n") + "\n", counts)
}

#[test]
fn the_kernel_finds_nothing_in_cpu_sets() {
    let Some(tests) = Selftests::find("the kernel's own tests of CPU sets") else {
        return;
    };
    let world = World::lasting(Duration::from_secs(2 * SCRIPT_S_MAX));
    let beside = ["cgroup/lib/cgroup_util.c"];
    let program = tests.compile(&world, "cgroup/test_cpuset.c", &[], &beside, &[]);
    let wanted = number("SPAN_CPUSET_ROWS", 2);
    let (script, counts) = rows(&tests.text("cgroup/test_cpuset_prs.sh"), wanted);
    // It waits for a CPU that is taken away: NO_HOTPLUG.
    let script = script.replace("\ntest_inotify\n", "\n");
    let partitions = world.file("test_cpuset_prs.sh", script);

    let guest = four(&world, "cpusets");
    // 7.2 has one less.
    let passed = tests
        .text("cgroup/test_cpuset.c")
        .matches("\tT(test_")
        .count();
    assert_passes(&guest, &[&program.display().to_string()], passed);
    let before = guest.status();
    let tables = ["TEST_MATRIX", "REMOTE_TEST_MATRIX"];
    assert_eq!(counts.len(), tables.len());
    for (count, table) in counts.iter().zip(tables) {
        println!("{count} rows of {table}");
    }
    assert_script(&guest, &partitions, 0, "\nAll tests PASSED.");
    guest.status().assert_moved(&before);
    guest.down().expect(0);

    // The older ones, whose hierarchy is one of its own, and what would take CPUs or memory away.
    let guest = four(&world, "cpusets-v1");
    guest.sh("mkdir /tmp/v1 && mount -t cgroup -o cpuset none /tmp/v1");
    for (name, code, said) in [
        ("cgroup/test_cpuset_v1_base.sh", 0, "Test PASSED"),
        ("cgroup/test_cpuset_v1_hp.sh", 1, "test FAILED!"),
        (
            "cpu-hotplug/cpu-on-off-test.sh",
            4,
            "cpu hotplug is not supported",
        ),
        (
            "memory-hotplug/mem-on-off-test.sh",
            4,
            "memory hotplug is not supported",
        ),
    ] {
        if code != 0 {
            println!("{name}: {NO_HOTPLUG}");
        }
        let script = tests.changed(&world, name, &[]);
        assert_script(&guest, &script, code, said);
    }
    guest.down().expect(0);
    world.assert_clean();
}

/// Of the Linux Test Project: what is about NUMA and CPU sets, with exit codes of its own: 32 is what does
/// not apply.
const NOT_APPLICABLE: i32 = 32;

const PROJECT: &[&str] = &[
    "get_mempolicy01",
    "get_mempolicy02",
    "mbind01",
    "mbind02",
    "mbind03",
    "mbind04",
    "set_mempolicy01",
    "set_mempolicy02",
    "set_mempolicy03",
    "set_mempolicy04",
    "migrate_pages01",
    "migrate_pages02",
    "migrate_pages03",
    "move_pages01",
    "move_pages02",
    "move_pages03",
    "move_pages04",
    "move_pages05",
    "move_pages06",
    "move_pages07",
    "move_pages09",
    "move_pages10",
    "move_pages11",
    "getcpu01",
    "getcpu02",
    "membarrier01",
    "sched_getaffinity01",
    "sched_setaffinity01",
    "cpuset01",
    "numa01.sh",
];

const PROJECT_EXCEPTIONS: &[Exception] = &[
    ("move_pages12", NO_HUGE_PAGES),
    ("cpuset02", NO_HUGE_PAGES),
    ("set_mempolicy05", "it is for programs of 32 bits"),
];

#[test]
fn the_linux_test_project_finds_nothing() {
    let found = std::env::var_os(LTP).map(|root| PathBuf::from(root).join("testcases/bin"));
    let Some(programs) = found.filter(|path| path.join("mbind01").is_file()) else {
        not_tested(&format!(
            "the Linux Test Project's tests of NUMA: {LTP} names the directory that it was installed into"
        ));
        return;
    };
    let world = World::new();
    let guest = four(&world, "ltp");
    let before = guest.status();
    let expected = PROJECT.iter().map(|name| (*name, 0));
    let exceptions = PROJECT_EXCEPTIONS.iter().map(|(name, why)| {
        println!("{name}: {why}");
        (*name, NOT_APPLICABLE)
    });
    for (name, code) in expected.chain(exceptions) {
        let line = format!(
            "export LTPROOT={0}/../.. PATH=$PATH:{0} TMPDIR=/tmp LTP_TIMEOUT_MUL=4; exec {name} 2>&1",
            programs.display()
        );
        let outcome = guest.exec_within(&["sh", "-c", &line], 4 * PROGRAM_S_MAX);
        assert_eq!(outcome.code, code, "{name}: {}", outcome.text());
    }
    guest.status().assert_moved(&before);
    guest.down().expect(0);
    world.assert_clean();
}
