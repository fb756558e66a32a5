//! gdb on the kernel process of a node.

use span_tests::{SHORT_S_MAX, Spawned, Up, World};
use std::process::Command;
use std::time::Duration;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../kernel/gdb");

const LIMIT: Duration = Duration::from_secs(SHORT_S_MAX);

#[test]
fn gdb_stops_any_nodes_kernel_at_a_breakpoint() {
    let world = World::new();
    let guest = Up::three(&world).option("--debug").detach("debug");
    for (node, cpu) in [("b", 1), ("a", 0)] {
        let pid = guest.status().pid(node).to_string();
        let commands = [
            "break sys_sethostname",
            // Longer than a node that says nothing is lost after, elsewhere.
            "shell sleep 3",
            "echo begin\\n",
            "continue",
            "backtrace 8",
            "info symbol $pc",
            // What the kernel says of itself, in memory that all nodes have.
            "print (char *)&linux_banner",
            "delete",
            "detach",
        ];
        let mut gdb = Command::new("gdb");
        world.surround(&mut gdb);
        gdb.args(["-nx", "-batch", "-x", SCRIPT, "-p", &pid]);
        for command in commands {
            gdb.args(["-ex", command]);
        }
        let mut gdb = Spawned::start(&mut gdb);
        gdb.wait_for("begin\n", LIMIT);
        // Waits for gdb to be done with it.
        let script = format!("hostname by-{node} && hostname");
        let argv = ["taskset", "-c", &cpu.to_string(), "sh", "-c", &script];
        let named = guest.exec(&argv).expect(0).text();
        assert_eq!(named, format!("by-{node}"));
        let said = gdb.wait(LIMIT).expect(0).text();
        for part in [
            "Breakpoint 1, ",
            "sys_sethostname",
            "handle_syscall",
            "Linux version 7.",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
    // It goes on as before.
    let before = guest.status();
    let sums =
        "for c in 0 1 2; do taskset -c $c sha256sum /usr/bin/python3; done | sort -u | wc -l";
    assert_eq!(guest.sh(sums), "1");
    guest.status().assert_moved(&before);
    guest.down().expect(0);
    world.assert_clean();
}
