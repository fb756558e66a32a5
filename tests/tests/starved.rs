//! Nodes that their host does not run for a while.

use span_tests::{Held, Up, World, text};
use std::thread;
use std::time::Duration;

/// Longer than a node on another host may be silent.
const HELD: Duration = Duration::from_millis(2500);

#[test]
fn a_node_that_its_host_does_not_run_is_waited_for() {
    let world = World::new();
    let guest = Up::three(&world).detach("starved");
    for (node, cpu) in [("b", "1"), ("a", "0")] {
        let before = guest.status();
        let held = Held::process(before.pid(node));
        thread::sleep(HELD);
        let state = text(format!("/proc/{}/stat", before.pid(node)));
        drop(held);
        assert!(state.contains(") t "), "{state}");
        assert_eq!(guest.sh(&format!("taskset -c {cpu} nproc")), "1");
        assert_eq!(guest.sh("taskset -c 2 nproc"), "1");
        guest.status().assert_moved(&before);
    }
    guest.down().expect(0);
    world.assert_clean();
}
