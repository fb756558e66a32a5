//! What can be seen of a guest while it runs.

use serde_json::Value;
use span_tests::{Up, World};
use std::time::Duration;

fn total(node: &Value, key: &str) -> u64 {
    node["totals"][key]
        .as_u64()
        .unwrap_or_else(|| panic!("no {key} in {node}"))
}

fn remote_faults(node: &Value) -> u64 {
    ["faults_read", "faults_write", "faults_upgrade"]
        .map(|key| total(node, key))
        .iter()
        .sum()
}

#[test]
fn counters_rise_while_a_program_moves_pages() {
    let world = World::new();
    let program = world
        .compile("sharing", include_str!("../programs/sharing.c"))
        .expect("a program");
    let guest = Up::three(&world).detach("seen");
    let before = guest.stats();
    let program = program.display().to_string();
    guest.exec(&[&program, "3", "20"]).expect(0);
    let after = guest.stats();
    let status = guest.status();

    let nodes = |stats: &Value| stats["nodes"].as_array().expect("nodes").clone();
    for (now, then) in nodes(&after).iter().zip(&nodes(&before)) {
        for key in [
            "pages_in",
            "pages_out",
            "bytes_in",
            "bytes_out",
            "invalidations",
            "ipis_sent",
            "fault_wait_ns",
        ] {
            assert!(total(now, key) > total(then, key), "{key}: {then}\n{now}");
        }
        let faults = remote_faults(now) - remote_faults(then);
        assert!(faults > 0, "{then}\n{now}");
        // Each fault waited, and is in the histogram once it has been answered: all but those that
        // wait at this moment, of which a CPU has one.
        let waits = &now["latency"]["remote"];
        let answered = waits["count"].as_u64().expect("a number");
        assert!((0..=8).contains(&(remote_faults(now) - answered)), "{now}");
        let percentiles = ["p50_ns", "p90_ns", "p99_ns", "max_ns"]
            .map(|key| waits[key].as_u64().expect("a number"));
        assert!(percentiles.is_sorted() && percentiles[0] > 1000, "{waits}");
    }
    // Whatever one node sent, another has got: within what is on its way, and what came since.
    let sum = |key| {
        nodes(&after)
            .iter()
            .map(|node| total(node, key))
            .sum::<u64>()
    };
    let (sent, received) = (sum("bytes_out"), sum("bytes_in"));
    assert!(
        sent.abs_diff(received) < sent / 10,
        "{sent} sent, {received} received"
    );
    for (node, stats) in status.nodes.iter().zip(nodes(&after)) {
        assert!(node.faults.read >= total(&stats, "faults_read"));
    }
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn watching_a_guest_ends_with_it() {
    let world = World::new();
    let guest = Up::three(&world).detach("watched");
    let mut command = world.command("coordinator");
    command.args(["stats", "watched", "--watch", "--json", "--interval", "0.2"]);
    let mut watch = span_tests::Spawned::start(&mut command);
    watch.wait_for("\n", Duration::from_secs(10));
    guest.sh("for i in $(seq 50); do /bin/true; done");
    guest.down().expect(0);
    let outcome = watch.wait(Duration::from_secs(5)).expect(0);
    assert_eq!(outcome.stderr, "coordinator: guest watched ended\n");
    let rates = outcome.text().lines().any(|line| {
        let stats: Value = serde_json::from_str(line).expect("JSON");
        stats["nodes"][1]["rates"]["pages_in"].as_f64() > Some(0.0)
    });
    assert!(rates, "no pages moved: {}", outcome.text());
    world.assert_clean();
}
