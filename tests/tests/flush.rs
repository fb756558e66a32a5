//! A page that is taken away is gone from every CPU before that is said to be done.

use span_tests::{Spawned, UPSTREAM_MISSING, Up, World, upstream, upstream_kernel};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

const SECONDS: &str = "3";
/// As threads of one process, then as two processes.
const MODES: &str = "protect,move,fork,replace,punch,pageout";
/// Fewer in the given time would prove nothing.
const MOVES_MIN: u64 = 3;

#[derive(Debug, Default, Clone, Copy)]
struct Result {
    moves: u64,
    writes: u64,
    lost: u64,
}

fn mover(world: &World) -> PathBuf {
    world
        .compile("mover", include_str!("../programs/mover.c"))
        .expect("a program")
}

/// A disk to swap to.
fn swap(world: &World) -> PathBuf {
    world.file("swap", vec![0; 8 << 20])
}

/// Lines as `punch: 3769 moves, 81127168 writes, 3687 lost`.
fn results(text: &str) -> BTreeMap<String, Result> {
    let mut results = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.trim().split([' ', ',']).collect();
        if let [mode, moves, "moves", "", writes, "writes", "", lost, "lost"] = words[..] {
            let number = |word: &str| word.parse().expect("a number");
            let result = Result {
                moves: number(moves),
                writes: number(writes),
                lost: number(lost),
            };
            results.insert(mode.trim_end_matches(':').to_string(), result);
        }
    }
    results
}

fn nothing_is_lost(nodes: &str, cpus: &str) {
    let world = World::new();
    let program = mover(&world);
    let guest = Up::on(&world, nodes)
        .options(&["--cpus", cpus, "--ubd"])
        .option(swap(&world))
        .detach("flush");
    guest.status().assert_spread();
    let before = guest.status();
    let program = program.display().to_string();
    let outcome = guest
        .exec_within(&[&program, MODES, SECONDS, "1", "0", "/dev/ubda"], 120)
        .expect(0);
    if nodes.contains(',') {
        guest.status().assert_moved(&before);
    }
    let results = results(&outcome.text());
    assert_eq!(
        results.len(),
        MODES.split(',').count(),
        "{}",
        outcome.text()
    );
    for (mode, result) in &results {
        assert_eq!(result.lost, 0, "{mode}: {results:?}");
        assert!(result.moves >= MOVES_MIN, "{mode}: {results:?}");
        assert!(result.writes > result.moves, "{mode}: {results:?}");
    }
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn no_write_is_lost_on_one_node() {
    nothing_is_lost("a", "2");
}

#[test]
fn no_write_is_lost_across_nodes() {
    nothing_is_lost("a,b", "1");
}

/// The test can fail: upstream's kernel fails it.
#[test]
fn upstream_loses_writes() {
    let Some(kernel) = upstream_kernel() else {
        span_tests::not_tested(UPSTREAM_MISSING);
        return;
    };
    let world = World::new();
    let program = mover(&world);
    let program = program.display().to_string();
    let argv = [&program, "punch", SECONDS, "1", "0"];
    let mut command = upstream(&world, &kernel, 2, 128, &argv);
    let outcome = Spawned::start(&mut command).wait(Duration::from_secs(60));
    let results = results(&outcome.text());
    let punch = results.get("punch").copied().unwrap_or_default();
    assert!(
        punch.moves > MOVES_MIN && punch.lost > 0,
        "{results:?}\n{}\n{}",
        outcome.text(),
        outcome.stderr
    );
    world.assert_clean();
}

/// Pages that should be empty, and how many of them show what lay there before; of both kinds, unless the first has some.
fn replaced(text: &str) -> Vec<(&str, u64)> {
    let line = |line| -> Option<_> {
        let (kind, counts) = str::split_once(line, ": 511 pages, ")?;
        Some((kind, counts.strip_suffix(" stale")?.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

fn replacing(world: &World) -> String {
    let source = include_str!("../programs/replaced.c");
    let program = world.compile("replaced", source).expect("a program");
    program.display().to_string()
}

#[test]
fn what_lay_below_a_replaced_page_table_is_gone() {
    let world = World::new();
    let program = replacing(&world);
    for nodes in ["a", "a,b"] {
        let outcome = Up::on(&world, nodes).run(&[&program]).expect(0);
        let text = outcome.text();
        let expected = [("moved", 0), ("populated", 0)];
        assert_eq!(replaced(&text), expected, "{nodes}: {text}");
    }
    world.assert_clean();
}

/// The test can fail: upstream's kernel fails it, with one CPU and one thread.
#[test]
fn upstream_shows_what_lay_below_a_replaced_page_table() {
    let Some(kernel) = upstream_kernel() else {
        span_tests::not_tested(UPSTREAM_MISSING);
        return;
    };
    let world = World::new();
    let program = replacing(&world);
    let mut command = upstream(&world, &kernel, 1, 128, &[&program]);
    let outcome = Spawned::start(&mut command).wait(Duration::from_secs(60));
    let text = outcome.text();
    assert_eq!(
        replaced(&text),
        [("moved", 511)],
        "{text}\n{}",
        outcome.stderr
    );
    world.assert_clean();
}
