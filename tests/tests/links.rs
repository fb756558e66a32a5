//! Links between nodes that are slower than the network is. Long form: `SPAN_LATENCY_MS`.

use serde_json::Value;
use span_tests::{Up, World, number};
use std::time::Duration;

const MS: u64 = 1_000_000;

/// Longest time for a guest on slow links to boot, and to run three programs, for each millisecond.
const STEP_S_PER_MS: u64 = 60;

fn waits(node: &Value, percentile: &str) -> u64 {
    let value = &node["latency"]["remote"][percentile];
    value
        .as_u64()
        .unwrap_or_else(|| panic!("no {percentile} in {node}"))
}

#[test]
fn a_guest_boots_runs_and_shuts_down_although_each_message_takes_long() {
    let latency_ms = number("SPAN_LATENCY_MS", 1);
    let step_s = STEP_S_PER_MS * latency_ms;
    let world = World::lasting(Duration::from_secs(3 * step_s));
    let guest = Up::three(&world)
        .options(&["--latency", &format!("{latency_ms}ms")])
        .limit_s(step_s)
        .detach("slow");
    // The CPU that the program which reads it runs on.
    let script = "for c in 0 1 2; do taskset -c $c cut -d' ' -f39 /proc/self/stat; done";
    let outcome = guest.exec_within(&["sh", "-c", script], step_s).expect(0);
    assert_eq!(outcome.text(), "0\n1\n2");
    for node in guest.stats()["nodes"].as_array().expect("nodes") {
        // A request and its answer.
        assert!(waits(node, "p50_ns") >= 2 * latency_ms * MS, "{node}");
    }
    let log = guest.whole_log();
    for word in [" stall", "BUG", "WARNING", "Call Trace"] {
        assert!(!log.contains(word), "{log}");
    }
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn only_the_links_that_are_named_are_slow() {
    let world = World::new();
    let guest = Up::three(&world)
        .options(&["--latency", "a-c=1ms"])
        .limit_s(60)
        .detach("bent");
    guest.sh("taskset -c 1 true; taskset -c 2 true");
    let links = guest.links(&[]);
    let links = links["links"].as_array().expect("links");
    assert_eq!(links.len(), 6);
    for link in links {
        let number = |key: &str| link[key].as_u64().expect("a number");
        assert!(number("messages") > 0, "{link}");
        let slow = link["from"] != "b" && link["to"] != "b";
        match slow {
            true => assert!(number("planned_ns") >= number("delayed") * MS, "{link}"),
            false => assert_eq!(number("planned_ns"), 0, "{link}"),
        }
        assert_eq!(number("delayed") > 0, slow, "{link}");
    }
    // Who waits for the other end of it waits twice as long.
    let stats = guest.stats();
    let c = &stats["nodes"][2];
    assert!(waits(c, "max_ns") >= 2 * MS, "{c}");
    guest.down().expect(0);
    world.assert_clean();
}
