//! Both ways to protect guest memory: mprotect and userfaultfd.

use span_tests::{Up, World, not_tested, number};
use std::time::Duration;

const ENGINES: [&str; 2] = ["mprotect", "uffd"];

/// Whether this host has the engine; else says that it is not tested.
fn is_there(world: &World, engine: &str) -> bool {
    let outcome = Up::on(world, "a,b")
        .options(&["--paging", engine])
        .run(&["true"]);
    // What the host lacks is found out before anything else.
    let lacks = |text: &str| {
        ["not permitted", "not implemented", "Invalid argument"]
            .iter()
            .any(|why| text.contains(why))
    };
    let said = outcome.stderr.trim();
    let last = said.lines().next_back().unwrap_or_default();
    if engine == "uffd" && last.contains("(--paging Uffd)") && lacks(last) {
        not_tested(last);
        return false;
    }
    outcome.expect(0);
    true
}

/// How many mappings this host lets a process have.
fn mappings_max() -> u64 {
    let text = span_tests::text("/proc/sys/vm/max_map_count");
    text.trim().parse().expect("a number")
}

#[test]
fn programs_run_on_each_node_with_either_engine() {
    let world = World::new();
    for engine in ENGINES {
        if !is_there(&world, engine) {
            continue;
        }
        let guest = Up::three(&world)
            .options(&["--paging", engine])
            .detach("engine");
        let before = guest.status();
        before.assert_spread();
        for node in &before.nodes {
            assert_eq!(node.paging.as_deref(), Some(engine));
        }
        let script =
            "for c in 0 1 2; do taskset -c $c sha256sum /usr/bin/python3; done | sort -u | wc -l";
        assert_eq!(guest.sh(script).trim(), "1");
        guest.status().assert_moved(&before);
        guest.down().expect(0);
    }
    world.assert_clean();
}

#[test]
fn threads_share_memory_with_either_engine() {
    let world = World::new();
    let program = world
        .compile("sharing", include_str!("../programs/sharing.c"))
        .expect("a program");
    let program = program.display().to_string();
    for engine in ENGINES {
        if !is_there(&world, engine) {
            continue;
        }
        let guest = Up::three(&world)
            .options(&["--paging", engine])
            .detach("sharing");
        let before = guest.status();
        guest.exec(&[&program, "3", "200"]).expect(0);
        guest.status().assert_moved(&before);
        guest.down().expect(0);
    }
    world.assert_clean();
}

/// More pages alternate between two nodes than a process may have mappings, in a guest of 4 GB.
#[test]
fn a_checkerboard_of_pages_keeps_running_with_either_engine() {
    let pages = number("SPAN_CHECKERBOARD", 80_000);
    if pages <= mappings_max() {
        not_tested(&format!(
            "{pages} pages need no more mappings than the {} that vm.max_map_count allows",
            mappings_max()
        ));
        return;
    }
    let limit_s = 120 + pages / 500;
    let world = World::lasting(Duration::from_secs(2 * limit_s + 120));
    let program = world
        .compile("checkerboard", include_str!("../programs/checkerboard.c"))
        .expect("a program");
    let program = program.display().to_string();
    for engine in ENGINES {
        if !is_there(&world, engine) {
            continue;
        }
        let guest = Up::on(&world, "a,b")
            .options(&["--paging", engine, "--mem", "2G"])
            .detach("board");
        let before = guest.status();
        let outcome = guest.exec_within(&[&program, &pages.to_string()], limit_s);
        let after = guest.status();
        assert_eq!(outcome.code, 0, "{}{}", outcome.text(), outcome.stderr);
        // Every other page has come to b to be written to, and stayed; in the end b reads all of them.
        let moved = after.node("b").pages_in - before.node("b").pages_in;
        assert!(
            (pages..pages * 3 / 2).contains(&moved),
            "{moved} pages moved"
        );
        let closed = |status: &span_tests::Status| -> u64 {
            status.nodes.iter().map(|node| node.faults.local).sum()
        };
        println!(
            "{engine}: {}; faults that asked nobody: {}",
            outcome.text(),
            closed(&after) - closed(&before)
        );
        guest.down().expect(0);
    }
    world.assert_clean();
}
