//! Nodes that their host does not run for a while.

use span_tests::{Held, Up, World, text};
use std::thread;
use std::time::Duration;

/// Longer than a node on another host may be silent, and than a node that is asked each second owes two answers.
const HELD: Duration = Duration::from_millis(3500);

#[test]
fn a_node_that_its_host_does_not_run_is_waited_for() {
    let world = World::new();
    let guest = Up::three(&world).detach("starved");
    for (node, cpu) in [("b", "1"), ("a", "0")] {
        let before = guest.status();
        let held = Held::process(before.pid(node));
        thread::sleep(HELD);
        let state = text(format!("/proc/{}/stat", before.pid(node)));
        let meanwhile = guest.status_table();
        drop(held);
        assert!(state.contains(") t "), "{state}");
        let said = format!("node {node} has not answered for ");
        assert_eq!(
            meanwhile.matches("has not answered").count(),
            1,
            "{meanwhile}"
        );
        assert!(meanwhile.contains(&said), "{meanwhile}");
        assert_eq!(guest.sh(&format!("taskset -c {cpu} nproc")), "1");
        assert_eq!(guest.sh("taskset -c 2 nproc"), "1");
        guest.status().assert_moved(&before);
        let log = guest.logs();
        for said in ["s and is waited for", "answers again, after "] {
            let about =
                |line: &str| line.starts_with(&format!("{node}: span: ")) && line.contains(said);
            assert!(log.lines().any(about), "{said}: {log}");
        }
        assert!(!guest.status_table().contains("has not answered"));
    }
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn interrupts_that_have_waited_are_taken_one_by_one() {
    /// More than a signal stack has room for.
    const INTERRUPTS: usize = 200;
    /// The kernel's `UML_IPI_RES`: look whether there is something else to run.
    const RESCHEDULE: usize = 0;

    let world = World::new();
    let guest = Up::three(&world).detach("interrupts");
    let pid = guest.status().pid("b");
    for work in [
        "",
        "taskset -c 1 sh -c 'while :; do :; done' >/dev/null 2>&1 &",
    ] {
        guest.sh(work);
        // The thread of the node's CPU.
        let held = Held::threads(&[pid]);
        for _ in 0..INTERRUPTS {
            held.queue(pid, libc::SIGRTMIN(), RESCHEDULE);
        }
        drop(held);
        assert_eq!(guest.sh("taskset -c 1 nproc"), "1");
    }
    guest.down().expect(0);
    world.assert_clean();
}
