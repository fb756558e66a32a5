//! NUMA nodes that the guest sees, and memory that lies where it is used.

use serde_json::Value;
use span_tests::{Detached, Spawned, Up, World, not_tested, number};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the guest's own tool says of the machine.
const TOOL: &str = "numactl";

/// Pages of a MiB.
const MIB_PAGES: u64 = 256;

fn has_tool() -> bool {
    let found = Path::new("/usr/bin").join(TOOL).exists();
    if !found {
        not_tested("NUMA policies: numactl is not installed");
    }
    found
}

fn touch(world: &World) -> PathBuf {
    world
        .compile("touch", include_str!("../programs/touch.c"))
        .expect("a program")
}

/// Pages by NUMA node, of a line as `7f… default anon=8 dirty=8 N0=3 N1=5 kernelpagesize_kB=4`.
fn pages_by_node(line: &str) -> Vec<u64> {
    let mut pages = vec![0; 8];
    for word in line.split_whitespace() {
        let Some((node, count)) = word.strip_prefix('N').and_then(|w| w.split_once('=')) else {
            continue;
        };
        pages[node.parse::<usize>().expect("a node")] = count.parse().expect("a number");
    }
    pages
}

/// Faults of a node that asked another one.
fn remote_faults(guest: &Detached, name: &str) -> u64 {
    let faults = &guest.status().node(name).faults.clone();
    faults.read + faults.write + faults.upgrade
}

/// `available: 3 nodes (0-2)` and the rest of it, but for what is free.
fn machine(guest: &Detached) -> String {
    let text = guest.sh("numactl -H");
    let lines: Vec<_> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.contains("free:"))
        .collect();
    lines.join("\n")
}

#[test]
fn each_host_is_a_node() {
    let world = World::new();
    let guest = Up::three(&world)
        .options(&["--cpus", "b=2", "--mem", "a=256M,b=128M,c=192M"])
        .detach("hosts");
    let sys = guest.sh(
        "cd /sys/devices/system/node; cat online; cat node*/cpulist; cat node*/distance; \
         sed -n 's/.*MemTotal: *//p' node*/meminfo",
    );
    let lines: Vec<_> = sys.lines().collect();
    assert_eq!(lines[0], "0-2");
    assert_eq!(lines[1..4], ["0", "1-2", "3"]);
    assert_eq!(lines[4..7], ["10 20 20", "20 10 20", "20 20 10"]);
    for (line, mib) in lines[7..].iter().zip([256, 128, 192]) {
        let kib: u64 = line.trim_end_matches(" kB").parse().expect("a number");
        // What the kernel needs for itself is missing, most of it on the first node.
        assert!(kib > (mib - 32) << 10 && kib <= mib << 10, "{sys}");
    }
    if has_tool() {
        let shown = machine(&guest);
        for line in [
            "available: 3 nodes (0-2)",
            "node 0 cpus: 0",
            "node 1 cpus: 1 2",
            "node 2 cpus: 3",
            "  1:  20  10  20",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
        }
    }
    let lscpu =
        guest.sh("lscpu | sed -n 's/^NUMA node[s0-9]*(*s*)* *CPU(s): *//p;s/^NUMA node(s): *//p'");
    assert_eq!(lscpu, "3\n0\n1,2\n3");
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn fresh_memory_comes_from_the_own_node() {
    const MIB: u64 = 32;
    let world = World::new();
    let program = touch(&world).display().to_string();
    let guest = Up::three(&world).detach("first-touch");
    for (node, name) in ["a", "b", "c"].into_iter().enumerate() {
        let command = [program.as_str(), &MIB.to_string()];
        // Once for the program's own pages.
        guest.exec_on(&["--node", name], &command).expect(0);
        let before = remote_faults(&guest, name);
        let line = guest.exec_on(&["--node", name], &command).expect(0).text();
        let asked = remote_faults(&guest, name) - before;
        let pages = pages_by_node(&line);
        assert_eq!(pages[node], MIB * MIB_PAGES, "{name}: {line}");
        assert!(asked < MIB * MIB_PAGES / 8, "{name}: {asked} faults");
    }
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn memory_of_another_node_crosses() {
    const MIB: u64 = 16;
    if !has_tool() {
        return;
    }
    let world = World::new();
    let program = touch(&world).display().to_string();
    let guest = Up::three(&world).detach("bound");
    let before = guest.status();
    let line = guest
        .exec_on(
            &["--node", "b"],
            &[TOOL, "--membind=2", &program, &MIB.to_string()],
        )
        .expect(0)
        .text();
    let after = guest.status();
    assert_eq!(pages_by_node(&line)[2], MIB * MIB_PAGES, "{line}");
    let given = after.node("c").pages_out - before.node("c").pages_out;
    // Others may have some of c's pages from before.
    assert!(given >= MIB * MIB_PAGES * 3 / 4, "{given} pages of c's");

    let line = guest.sh(&format!("numactl --interleave=0,1,2 {program} 3"));
    assert_eq!(pages_by_node(&line)[..3], [MIB_PAGES; 3], "{line}");
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn no_write_is_lost_while_pages_move_between_nodes() {
    let moves = number("SPAN_MOVES", 3000);
    let world = World::new();
    let program = world
        .compile("migrate", include_str!("../programs/migrate.c"))
        .expect("a program");
    let guest = Up::three(&world).detach("migrated");
    let before = guest.status();
    let program = program.display().to_string();
    let outcome = guest
        .exec_within(&[&program, &moves.to_string(), "3"], 90 + moves / 50)
        .expect(0);
    guest.status().assert_moved(&before);
    let text = outcome.text();
    println!("{text}");
    let words: Vec<&str> = text.split([' ', ',']).collect();
    let [moved, "moves", "", writes, "writes", "", lost, "lost"] = words[..] else {
        panic!("{text}");
    };
    let count = |word: &str| -> u64 { word.parse().expect("a number") };
    assert_eq!(count(lost), 0, "{text}");
    assert!(count(moved) >= moves && count(writes) > moves, "{text}");
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn balancing_moves_pages_to_who_uses_them() {
    let world = World::new();
    let program = world
        .compile("balance", include_str!("../programs/balance.c"))
        .expect("a program");
    let guest = Up::on(&world, "a,b").detach("balanced");
    let moved = || -> u64 {
        let text = guest.sh("sed -n 's/^numa_pages_migrated //p' /proc/vmstat");
        text.parse().expect("a number")
    };
    let program = program.display().to_string();
    assert_eq!(moved(), 0);
    guest.sh("echo 1 >/proc/sys/kernel/numa_balancing");
    let before = guest.status();
    let line = guest.exec(&[&program, "4", "60"]).expect(0).text();
    let pages = pages_by_node(&line);
    assert!(pages[1] > 3 * MIB_PAGES, "{line}");
    assert!(moved() >= pages[1], "{line}");
    guest.status().assert_moved(&before);
    // Off again, pages go where somebody sends them.
    guest.sh("echo 0 >/proc/sys/kernel/numa_balancing");
    if has_tool() {
        let script = "taskset -c 0 sleep 60 & sleep=$!; until grep -q '(sleep) S' /proc/$sleep/stat; do :; done
            migratepages $sleep 0 1 && numastat -p $sleep; kill $sleep";
        let table = guest.sh(script);
        let total = table.lines().find(|line| line.starts_with("Total "));
        let total: Vec<f64> = total
            .unwrap_or_default()
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        // What it has of pages that others have, too, stays.
        assert!(total.len() == 3 && total[1] > 10.0 * total[0], "{table}");
    }
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn nodes_may_have_memory_only_or_cpus_only() {
    let world = World::new();
    let guest = Up::three(&world)
        .append(
            "numa=256M@0,448M,0@1-2,64M numa_dist=10,15,20,30,15,10,20,30,20,20,10,30,30,30,30,10",
        )
        .detach("odd");
    let sys = guest.sh(
        "cd /sys/devices/system/node; cat online has_cpu has_memory; cat node*/cpulist; cat node1/distance",
    );
    assert_eq!(sys, "0-3\n0,2\n0-1,3\n0\n\n1-2\n\n15 10 20 30");
    let program = touch(&world).display().to_string();
    let line = guest
        .exec_on(&["--node", "b"], &[&program, "8"])
        .expect(0)
        .text();
    // The nearest memory, of two nodes as near as each other.
    let pages = pages_by_node(&line);
    assert_eq!(pages[0] + pages[1], 8 * MIB_PAGES, "{line}");
    guest.down().expect(0);

    let one = Up::three(&world)
        .append("numa=off")
        .sh("cat /sys/devices/system/node/online /sys/devices/system/node/node0/cpulist");
    assert_eq!(one.expect(0).text(), "0\n0-2");
    world.assert_clean();
}

/// Two nodes of the guest's that are one for Linux, beside one that is two.
const SHARED: &str = r#"
[[node]]
name = "a"
mem = "128M"
[[node]]
name = "b"
cpus = 2
mem = "64M"
numa-of = "a"
[[node]]
name = "c"
numa = [{ cpus = "0", mem = "64M" }, { cpus = "1", mem = "64M" }]
"#;

#[test]
fn numa_nodes_may_be_of_several_nodes_and_several_of_one() {
    let world = World::new();
    let guest = Up::bare(&world)
        .option("--topology")
        .option(world.file("shared.toml", SHARED))
        .detach("shared");
    guest.status().assert_spread();
    let sys = guest.sh("cd /sys/devices/system/node; cat online node*/cpulist node1/distance");
    assert_eq!(sys, "0-2\n0-2\n3\n4\n20 10 12");
    let program = touch(&world).display().to_string();
    let before = guest.status();
    for (node, pages) in [("a", 0), ("b", 0), ("c", 1)] {
        let line = guest
            .exec_on(&["--node", node], &[&program, "4"])
            .expect(0)
            .text();
        let by_node = pages_by_node(&line);
        assert_eq!(by_node[pages], 4 * MIB_PAGES, "{node}: {line}");
    }
    guest.status().assert_moved(&before);
    guest.down().expect(0);
    world.assert_clean();
}

/// The kernel has room for the variables of few namespaces where those of the image are. Further ones lie in
/// kernel virtual memory, as far apart as the nodes.
#[test]
fn variables_of_cpus_are_added_on_every_node() {
    let world = World::new();
    let guest = Up::three(&world).detach("variables");
    let areas = guest.sh("for n in $(seq 24); do ip netns add n$n || exit 1; done; \
         grep -c pcpu_get_vm_areas /proc/vmallocinfo");
    assert_eq!(areas, "3");
    for name in ["a", "b", "c"] {
        let command = ["ip", "netns", "exec", "n24", "cat", "/proc/net/dev"];
        let outcome = guest.exec_on(&["--node", name], &command).expect(0);
        assert!(outcome.text().contains("lo:"), "{}", outcome.text());
    }
    guest.down().expect(0);
    world.assert_clean();
}

/// What is done for a CPU is done on it, also by the worker that initialised its node's pages.
#[test]
fn a_cpus_workers_stay_on_it() {
    let world = World::new();
    let guest = Up::on(&world, "a,b")
        .options(&["--cpus", "2"])
        .detach("workers");
    let workers = guest.sh(
        "for p in /proc/[0-9]*; do read name <$p/comm && case $name in kworker/[0-9]*) \
         echo $name $(sed -n 's/^Cpus_allowed_list://p' $p/status);; esac; done 2>/dev/null; true",
    );
    let mut seen = [0; 4];
    for line in workers.lines() {
        let (name, allowed) = line.split_once(' ').expect("a list of CPUs");
        let cpu = name.trim_start_matches("kworker/").split(':').next();
        assert_eq!(cpu, Some(allowed), "{workers}");
        seen[allowed.parse::<usize>().expect("a CPU")] += 1;
    }
    assert!(seen.iter().all(|count| *count > 0), "{workers}");
    guest.down().expect(0);
    world.assert_clean();
}

/// Two sockets of two cores with two threads each, and one socket of two clusters.
const BUILT: &str = r#"
[[node]]
name = "a"
cpus = 8
mem = "256M"
sockets = 2
threads = 2
caches = ["32K", "1M", "32M"]

[[node]]
name = "b"
cpus = 4
mem = "64M"
clusters = 2
caches = ["64K", "2M"]
"#;

#[test]
fn cpus_are_built_together_as_a_topology_says() {
    let world = World::new();
    let guest = Up::bare(&world)
        .option("--topology")
        .option(world.file("built.toml", BUILT))
        .detach("built");
    guest.status().assert_spread();
    let of_cpus = |file: &str| {
        let text = guest.sh(&format!(
            "cd /sys/devices/system/cpu; for c in $(seq 0 11); do cat cpu$c/{file}; done"
        ));
        text.lines().map(str::to_string).collect::<Vec<_>>()
    };
    for (file, values) in [
        ("topology/physical_package_id", "0 0 0 0 1 1 1 1 2 2 2 2"),
        ("topology/core_id", "0 0 1 1 0 0 1 1 0 1 2 3"),
        ("topology/cluster_id", "-1 -1 -1 -1 -1 -1 -1 -1 0 0 1 1"),
        (
            "topology/thread_siblings_list",
            "0-1 0-1 2-3 2-3 4-5 4-5 6-7 6-7 8 9 10 11",
        ),
        (
            "topology/package_cpus_list",
            "0-3 0-3 0-3 0-3 4-7 4-7 4-7 4-7 8-11 8-11 8-11 8-11",
        ),
    ] {
        let values: Vec<&str> = values.split(' ').collect();
        assert_eq!(of_cpus(file), values, "{file}");
    }
    let clusters = of_cpus("topology/cluster_cpus_list");
    assert_eq!(clusters[8..], ["8-9", "8-9", "10-11", "10-11"]);
    let caches = guest.sh(
        "cd /sys/devices/system/cpu; for c in cpu6/cache/index* cpu9/cache/index*; do \
         echo $(cd $c; cat level type size shared_cpu_list); done",
    );
    assert_eq!(
        caches.lines().collect::<Vec<_>>(),
        [
            "1 Data 32K 6-7",
            "2 Unified 1024K 6-7",
            "3 Unified 32768K 4-7",
            "1 Data 64K 9",
            "2 Unified 2048K 8-9",
        ]
    );
    // A program that puts all of it together.
    match Path::new("/usr/bin/lstopo-no-graphics").exists() {
        false => not_tested("lstopo: hwloc is not installed"),
        true => {
            let kinds = ["Package", "NUMANode", "L3", "L2", "L1d", "Core", "PU"];
            let script: Vec<_> = kinds
                .iter()
                .map(|kind| format!("lstopo-no-graphics --only {kind} | wc -l"))
                .collect();
            let counts = guest.sh(&script.join("; "));
            assert_eq!(counts, "3\n2\n2\n6\n8\n8\n12");
        }
    }
    // What the scheduler goes by, from the smallest group to the largest.
    let domains = guest.sh(
        "mount -t debugfs none /sys/kernel/debug; cd /sys/kernel/debug/sched; echo Y > verbose; cd domains; \
         for c in 0 8; do cat cpu$c/domain*/name; echo; done",
    );
    assert_eq!(domains, "SMT\nMC\nHOST\nNUMA\n\nCLS\nMC\nNUMA");
    guest.down().expect(0);

    for (append, said) in [
        ("cpu_topology=12:5", "12 CPUs cannot be divided into 5"),
        ("cpu_topology=8", "8 CPUs of 12"),
        ("cpu_topology=8,5", "5: from 1 to 4 is allowed"),
        ("cpu_topology=12:1:1:1:3K", "a cache of 3072 bytes"),
        (
            "cpu_topology=8:1:1:1:32K,4",
            "CPU 0 has caches, but CPU 8 has none",
        ),
        ("cpu_topology=12:2:1:6", "CPU 6 is in another NUMA node"),
    ] {
        let outcome = Up::bare(&world)
            .option("--topology")
            .option(world.file("built.toml", BUILT))
            .append(append)
            .run(&["true"]);
        assert_ne!(outcome.code, 0, "{append} boots");
        let lines = outcome.stderr.lines().filter(|line| line.contains(said));
        assert_eq!(lines.count(), 1, "{append}: {}", outcome.stderr);
    }
    world.assert_clean();
}

/// Those that come with the program.
#[test]
fn the_machine_is_the_one_that_a_topology_describes() {
    if !has_tool() {
        return;
    }
    let world = World::new();
    let names = topology(&world, &["list", "--json"]);
    for listed in names.as_array().expect("a list") {
        let name = listed["name"].as_str().expect("a name");
        let described = topology(&world, &["show", name, "--json"]);
        let outcome = Up::bare(&world)
            .option("--topology")
            .option(name)
            .run(&[TOOL, "-H"])
            .expect(0);
        let text = outcome.text();
        let value = |key: String| -> Vec<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(&key));
            let line = line.unwrap_or_else(|| panic!("{name}: no {key:?}: {text}"));
            let words = line.split_whitespace().filter(|word| *word != "MB");
            words.map(|word| word.parse().expect("a number")).collect()
        };
        let numbers = |value: &Value| -> Vec<u64> {
            let numbers = value.as_array().expect("a list").iter();
            numbers.map(|it| it.as_u64().expect("a number")).collect()
        };
        let nodes = described["numa"].as_array().expect("NUMA nodes");
        let headline = format!("available: {} nodes (0-{})", nodes.len(), nodes.len() - 1);
        assert_eq!(text.lines().next(), Some(&headline[..]), "{name}");
        for (index, node) in nodes.iter().enumerate() {
            let cpus = value(format!("node {index} cpus:"));
            assert_eq!(cpus, numbers(&node["cpus"]), "{name}: {text}");
            // What the kernel needs for itself is missing.
            let mib = node["memory_bytes"].as_u64().expect("a size") >> 20;
            let size = value(format!("node {index} size:"))[0];
            assert!(size > mib - 48 && size <= mib, "{name}: {text}");
            let distances = value(format!("{index:3}:"));
            let given = numbers(&described["distances"][index]);
            assert_eq!(distances, given, "{name}: {text}");
        }
    }
    world.assert_clean();
}

#[track_caller]
fn topology(world: &World, words: &[&str]) -> Value {
    let mut command = world.command("coordinator");
    command.arg("topology").args(words);
    let mut spawned = Spawned::start(&mut command);
    spawned.feed(Vec::new());
    let outcome = spawned.wait(Duration::from_secs(60)).expect(0);
    serde_json::from_slice(&outcome.stdout).expect("JSON")
}

#[test]
fn nonsense_does_not_boot() {
    let world = World::new();
    for (append, said) in [
        ("numa=256M@0,256M@1", "524288K, but the memory is 786432K"),
        ("numa=256M@0,512M@1", "CPU 2 belongs to no node"),
        ("numa=256M@0-1,512M@1-2", "CPU 1 belongs to two nodes"),
        (
            "numa=250M@0,518M@1-2",
            "node 1 does not begin at a multiple of 16M",
        ),
        ("numa=768M@0-3", "3 is too large, 2 is allowed"),
        ("numa=lots", "a size is missing at 'lots'"),
        ("numa_dist=10,20,20", "3 numbers, but 3 nodes need 9"),
        (
            "numa=768M@0-2 numa_dist=11",
            "11 from node 0 to 0; 10 to itself and 11 to 254 to others are allowed",
        ),
    ] {
        let outcome = Up::three(&world).append(append).run(&["true"]);
        assert_ne!(outcome.code, 0, "{append} boots");
        let lines = outcome.stderr.lines().filter(|line| line.contains(said));
        assert_eq!(lines.count(), 1, "{append}: {}", outcome.stderr);
    }
    world.assert_clean();
}
