//! Guests with more memory than a node may hold.

use span_tests::{Guest, Node, Outcome, Spawned, Up, World, number};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a node's memory file has beside guest memory: data of its stubs.
const SLACK_BYTES: u64 = 8 << 20;

const MIB: u64 = 1 << 20;

/// What `walk` says at the end, of so many pages and rounds.
fn checksum(mib: u64, rounds: u64) -> String {
    let words = mib * MIB / 8;
    let mut sum = 0u64;
    for round in 0..rounds {
        for word in 1..=words {
            sum = sum
                .wrapping_add(word.wrapping_mul(0x9e37_79b9_7f4a_7c15))
                .wrapping_add(round);
        }
    }
    format!("{sum:016x}")
}

/// What the memory file of a guest process takes, as its host says.
fn file_bytes(pid: i32) -> u64 {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a guest process");
    let is_memory = |path: &Path| {
        std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("span-memory"))
    };
    let file = files
        .map(|entry| entry.expect("a descriptor").path())
        .find(|path| is_memory(path))
        .expect("a memory file");
    std::fs::metadata(file).expect("ours").blocks() * 512
}

/// Runs the program in the guest, and looks again and again at what nodes take meanwhile; the greatest of each.
#[track_caller]
fn watch(guest: &Guest, command: &[&str], limit_bytes: u64, seconds: u64) -> (String, Vec<u64>) {
    let mut program = guest.begin(command);
    program.feed(Vec::new());
    let mut program: Result<Outcome, Spawned> = Err(program);
    let began = Instant::now();
    let mut most = Vec::new();
    loop {
        let status = guest.status();
        most.resize(status.nodes.len(), 0);
        for (node, most) in status.nodes.iter().zip(&mut most) {
            let counted = node.counters.memory_bytes;
            let pages = node.counters.foreign_pages;
            let taken = file_bytes(node.pid.expect("a guest process"));
            assert!(pages <= node.counters.foreign_pages_max, "{node:?}");
            for bytes in [counted, taken] {
                assert!(
                    bytes <= limit_bytes + SLACK_BYTES,
                    "{bytes} bytes of {limit_bytes}: {node:?}"
                );
            }
            *most = taken.max(*most);
        }
        // Also when it is over: what the nodes took they keep.
        program = match program {
            Ok(outcome) => return (outcome.expect(0).text(), most),
            Err(running) => running
                .try_wait(Duration::from_millis(100))
                .map_err(|running| *running),
        };
        assert!(began.elapsed().as_secs() < seconds, "no end");
    }
}

fn evicted(node: &Node) -> u64 {
    node.counters.evicted_copies + node.counters.evicted_pages
}

/// One CPU's node has to do with more memory than it may hold.
#[test]
fn a_process_uses_more_memory_than_its_node_may_hold() {
    let gib = std::env::var_os("SPAN_WALK_GIB").map(|_| number("SPAN_WALK_GIB", 4));
    let (nodes, mem, limit, mib) = match gib {
        // More nodes than are needed for the memory alone: each has others' pages as well.
        Some(gib) => {
            let names: Vec<String> = (0..=gib).map(|n| format!("n{n}")).collect();
            (names.join(","), 960, 1024, gib * 1024)
        }
        None => ("a,b,c".to_string(), 168, 256, 384),
    };
    let seconds = 120 + mib / 2;
    let world = World::lasting(Duration::from_secs(seconds + 120));
    let program = world
        .compile("walk", include_str!("../programs/walk.c"))
        .expect("a program");
    let guest = Up::on(&world, &nodes)
        .options(&["--mem", &format!("{mem}M")])
        .options(&["--mem-limit", &format!("{limit}M")])
        .limit_s(120)
        .detach("walk");
    let before = guest.status();
    before.assert_spread();
    let program = program.display().to_string();
    let command = [&program, &mib.to_string(), "1", "0"];
    let (said, most) = watch(&guest, &command, limit * MIB, seconds);
    assert_eq!(said, checksum(mib, 1));
    let (after, first) = (guest.status(), before.nodes[0].name.clone());
    let node = after.node(&first);
    println!(
        "{mib} MiB walked over, at most {:?} MiB on a node of {limit}; {:?}; {}",
        most.iter().map(|bytes| bytes / MIB).collect::<Vec<_>>(),
        node.counters,
        after.faults_since(&before)
    );
    // What it could not hold went to other nodes, and came back to be read.
    let over = (mib - limit) * MIB / 4096;
    assert!(evicted(node) > 2 * over, "{node:?}");
    assert!(node.counters.evicted_pages > over, "{node:?}");
    assert!(node.pages_in - before.nodes[0].pages_in > over, "{node:?}");
    assert!(
        most[0] > limit * MIB * 3 / 4,
        "it has not used its limit: {most:?}"
    );
    guest.assert_quiet_since("");
    guest.down().expect(0);
    world.assert_clean();
}

/// Two nodes write and read the same memory, with room for a part of it each.
#[test]
fn two_nodes_share_more_than_they_may_hold() {
    let world = World::lasting(Duration::from_secs(400));
    let program = world
        .compile("walk", include_str!("../programs/walk.c"))
        .expect("a program");
    for paging in ["auto", "mprotect"] {
        let guest = Up::three(&world)
            .options(&["--mem", "64M", "--mem-limit", "88M", "--paging", paging])
            .detach("share");
        let before = guest.status();
        let program = program.display().to_string();
        let command = [&program, "96", "2", "0", "1"];
        let (said, most) = watch(&guest, &command, 88 * MIB, 120);
        let sum = checksum(96, 2);
        assert_eq!(said, format!("{sum}\n{sum}"));
        let after = guest.status();
        for name in ["a", "b"] {
            let node = after.node(name);
            println!("{paging}, {name}: {:?}", node.counters);
            assert!(node.counters.evicted_copies > 1000, "{node:?}");
            assert!(node.counters.evicted_pages > 1000, "{node:?}");
        }
        println!(
            "{paging}: {most:?} bytes at most; {}",
            after.faults_since(&before)
        );
        guest.down().expect(0);
    }
    world.assert_clean();
}

#[test]
fn limits_that_cannot_hold_the_guest_are_refused() {
    let world = World::new();
    for (options, said) in [
        (
            &["--mem-limit", "256M"][..],
            "--mem-limit: 768M in all; the guest has 768M, and each node needs 16M for pages of others: 816M in all \
             are the least",
        ),
        (
            &["--mem-limit", "b=256M"],
            "--mem-limit b=256M: 256M of the guest's memory are this node's own, and it needs 16M for pages of \
             others: 272M are the least",
        ),
        (&["--mem-limit", "x"], "--mem-limit x: a size is a number"),
        (
            &["--mem-limit", "d=1G"],
            "--mem-limit d=1G: there is no node d",
        ),
    ] {
        let outcome = Up::three(&world).options(options).run(&["true"]).expect(2);
        assert!(outcome.stderr.contains(said), "{}", outcome.stderr);
        assert_eq!(
            outcome.stderr.trim_end().lines().count(),
            1,
            "{}",
            outcome.stderr
        );
    }
    world.assert_clean();
}

/// Memory of a node that may hold little is elsewhere.
#[test]
fn memory_is_where_there_is_room() {
    let world = World::new();
    let guest = Up::three(&world)
        .options(&["--mem-limit", "a=400M,b=64M,c=400M"])
        .detach("uneven");
    let status = guest.status();
    let mem: Vec<u64> = status.nodes.iter().map(|node| node.mem_mib).collect();
    assert_eq!(mem.iter().sum::<u64>(), 768, "{mem:?}");
    assert!(mem[1] <= 48, "{mem:?}");
    guest.sh("head -c 200M /dev/zero > /tmp/zeroes && cmp -n 200M /tmp/zeroes /dev/zero");
    guest.down().expect(0);
    world.assert_clean();
}
