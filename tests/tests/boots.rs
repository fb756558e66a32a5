//! To a program and out again, in a row; what that asks of other nodes, and how a guest shares the host's
//! processors.

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use span_tests::{SHORT_S_MAX, Up, World, not_tested, number, wait_until};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

/// `SPAN_BOOTS`; the full test is 200.
fn count() -> u32 {
    number("SPAN_BOOTS", 5)
        .try_into()
        .expect("a number of boots")
}

#[test]
fn boots_in_a_row() {
    let world = World::lasting(Duration::from_secs(SHORT_S_MAX) * count());
    let mut times = Vec::new();
    for number in 1..=count() {
        let begin = Instant::now();
        let outcome = Up::three(&world).run(&["sh", "-c", "nproc; exit 3"]);
        assert_eq!(
            (outcome.code, outcome.text().as_str()),
            (3, "3"),
            "boot {number}: {}",
            outcome.stderr
        );
        world.assert_clean();
        times.push(begin.elapsed().as_millis());
    }
    times.sort_unstable();
    println!(
        "{} boots, median {} ms, longest {} ms",
        times.len(),
        times[times.len() / 2],
        times.last().unwrap_or(&0)
    );
}

/// Some 500 to 750, the longer a busy machine takes the more, and 1,250 at least when each new CPU looked at
/// what the first one had made. Each takes a round trip.
const BOOT_FAULTS_MAX: u64 = 1000;

/// Some 4 MB, and 14 when each node had a copy of the kernel's text.
const BOOT_BYTES_MAX: u64 = 8_000_000;

#[test]
fn sixteen_nodes_have_64_cpus() {
    let world = World::new();
    let names: Vec<String> = ('a'..='p').map(String::from).collect();
    let guest = Up::on(&world, &names.join(","))
        .options(&["--cpus", "4", "--mem", "64M"])
        .limit_s(120)
        .detach("sixteen");
    let before = guest.status();
    before.assert_spread();
    assert_eq!(guest.sh("nproc"), "64");
    // The CPU that the program which reads it runs on, of each node.
    let script = "for c in $(seq 0 4 63); do taskset -c $c cut -d' ' -f39 /proc/self/stat; done";
    let cpus: Vec<String> = (0..64).step_by(4).map(|cpu: u16| cpu.to_string()).collect();
    let outcome = guest.exec_within(&["sh", "-c", script], 120).expect(0);
    assert_eq!(outcome.text(), cpus.join("\n"));
    guest.status().assert_moved(&before);
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn a_boot_asks_other_nodes_for_little() {
    let world = World::new();
    let guest = Up::three(&world).detach("little");
    let status = guest.status();
    guest.down().expect(0);
    world.assert_clean();

    let mut sum = 0;
    for node in &status.nodes {
        let count = node.faults.read + node.faults.write + node.faults.upgrade;
        assert!(count > 0, "{node:?}");
        println!(
            "{}: {count} faults that asked another node, {} bytes of memory",
            node.name, node.counters.memory_bytes
        );
        sum += count;
    }
    assert!(sum <= BOOT_FAULTS_MAX, "{sum}: {status:?}");
    for name in ["b", "c"] {
        let bytes = status.node(name).counters.memory_bytes;
        assert!(bytes <= BOOT_BYTES_MAX, "{name}: {bytes}");
    }
}

/// What the host's scheduler goes by.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Turn {
    /// How long a thread runs at a time: what it asked for, or the host's own choice.
    slice_ns: u64,
    nice: i32,
}

/// None of a thread that has ended.
fn turn(tid: i32) -> Option<Turn> {
    let mut attributes = [0u64; 7];
    // SAFETY: fills in a local of the length given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_getattr,
            tid,
            attributes.as_mut_ptr(),
            size_of_val(&attributes),
            0,
        )
    };
    // `sched_runtime` and `sched_nice` of `struct sched_attr`.
    (result == 0).then_some(Turn {
        slice_ns: attributes[3],
        nice: attributes[2] as i32,
    })
}

/// Turns of the threads of a process and of all that it has started, by name.
fn turns(pid: i32, into: &mut BTreeMap<String, BTreeSet<Turn>>) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    for task in tasks.into_iter().flatten().flatten() {
        let tid = task.file_name().into_string().expect("a number");
        let read = |what| fs::read_to_string(task.path().join(what)).unwrap_or_default();
        let (name, children) = (read("comm"), read("children"));
        if let Some(turn) = turn(tid.parse().expect("a number")) {
            into.entry(name.trim().to_string())
                .or_default()
                .insert(turn);
        }
        for child in children.split_whitespace() {
            turns(child.parse().expect("a number"), into);
        }
    }
}

#[test]
fn only_pagers_ask_for_a_little_of_a_processor_at_a_time() {
    let world = World::new();
    let guest = Up::three(&world).detach("turns");
    // A stub on each node, made by its CPU.
    guest
        .exec(&[
            "sh",
            "-c",
            "for n in 0 1 2; do taskset -c $n sh -c 'echo; exec sleep 60' & done | sed 3q",
        ])
        .expect(0);
    let status = guest.status();
    let mut by_name = BTreeMap::new();
    for node in ["a", "b", "c"] {
        turns(status.pid(node), &mut by_name);
    }
    guest.down().expect(0);

    let usual = turn(0).expect("this thread");
    for name in ["linux", "span-worker", "span-kicker", "uml-userspace"] {
        let usual = BTreeSet::from([usual]);
        assert_eq!(by_name.get(name), Some(&usual), "{name}: {by_name:?}");
    }
    let pagers = by_name.remove("span-pager").expect("pagers");
    let slices: BTreeSet<u64> = pagers.iter().map(|pager| pager.slice_ns).collect();
    let [slice_ns] = Vec::from_iter(slices)[..] else {
        panic!("pagers differ: {pagers:?}");
    };
    if slice_ns == usual.slice_ns {
        world.assert_clean();
        return not_tested("turns: this host's kernel lets nobody choose");
    }
    assert!(slice_ns < usual.slice_ns, "{pagers:?} {usual:?}");

    // And they come first while somebody computes, here on the only processor of both nodes.
    let guest = Up::on(&world, "a,b")
        .options(&["--host-cpus", &first_processor()])
        .detach("pressed");
    let busy = "for n in 0 1; do taskset -c $n sh -c 'while :; do :; done' & done; wait";
    let busy = guest.begin(&["sh", "-c", busy]);
    let status = guest.status();
    let first = match nix::unistd::geteuid().is_root() {
        true => (usual.nice - 10).max(-20),
        // Who may not say so has no other choice.
        false => usual.nice,
    };
    let come_first = wait_until(Duration::from_secs(20), || {
        ["a", "b"].iter().all(|node| {
            let mut by_name = BTreeMap::new();
            turns(status.pid(node), &mut by_name);
            let mut pagers = by_name["span-pager"].iter();
            pagers.any(|pager| pager.nice <= first)
        })
    });
    assert!(come_first, "{first}");
    guest.down().expect(0);
    busy.wait(Duration::from_secs(10));
    world.assert_clean();
}

/// The first that this process may run on.
fn first_processor() -> String {
    let allowed = sched_getaffinity(Pid::from_raw(0)).expect("processors");
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    first.expect("one at least").to_string()
}
