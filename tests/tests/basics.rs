//! What everybody does first: commands, their exit codes, and their streams.

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};
use span_tests::{Up, World, descendants, on};
use std::fmt::Write;

#[test]
fn a_command_runs_on_three_nodes() {
    let world = World::new();
    let outcome = Up::three(&world).run(&["nproc"]).expect(0);
    assert_eq!(outcome.stdout, b"3\n");
    for stage in ["connect", "map memory", "boot", "cpus online", "ready"] {
        let lines = outcome.stderr.lines();
        assert_eq!(lines.filter(|line| line.starts_with(stage)).count(), 1);
    }
    world.assert_clean();
}

#[test]
fn six_cpus_run_on_one() {
    let world = World::new();
    let outcome = Up::three(&world)
        .options(&["--cpus", "2"])
        .through(&["taskset", "-c", "0"])
        .sh("nproc; cat /proc/span")
        .expect(0);
    assert_eq!(
        outcome.text(),
        "6\ncpu node\n0 0\n1 0\n2 1\n3 1\n4 2\n5 2",
        "{}",
        outcome.stderr
    );
    world.assert_clean();
}

#[test]
fn nodes_run_on_the_hosts_cpus_that_they_are_given() {
    let world = World::new();
    let host = host_cpus(0).expect("this process");
    let (first, last) = (host[0], host[host.len() - 1]);
    let guest = Up::on(&world, "a,b,c")
        .options(&["--host-cpus", &format!("a={first},b={last}")])
        .detach("apart");
    let status = guest.status();
    // Where short turns of a CPU and a program keep both together, that is undone again. The program stays.
    let turns =
        "for n in $(seq 100); do stat /; done; i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done";
    for node in ["a", "b", "c"] {
        let script = format!(
            "({turns}; touch /tmp/done; while sleep 100; do :; done) </dev/null >/dev/null 2>&1 & \
             until [ -e /tmp/done ]; do sleep 0.1; done; rm /tmp/done"
        );
        on(&guest, node, &script);
    }
    for (node, expected) in [("a", vec![first]), ("b", vec![last]), ("c", host.clone())] {
        let pid = status.pid(node);
        // The guest's programs.
        let processes = descendants(pid);
        assert!(!processes.is_empty());
        let pids = processes.iter().map(|process| process.pid);
        for task in pids.chain([pid]).flat_map(tasks) {
            let Some(cpus) = host_cpus(task) else {
                continue;
            };
            match node {
                "c" => assert!(cpus == expected || cpus.len() == 1, "{node}: {cpus:?}"),
                _ => assert_eq!(cpus, expected, "{node}"),
            }
        }
    }
    guest.down().expect(0);

    let none = Up::on(&world, "a,b").options(&["--host-cpus", "b=1023"]);
    let outcome = none.run(&["true"]).expect(125);
    let line = "coordinator: node b: CPU 1023 of the host is none that it may run on; those are ";
    assert!(outcome.stderr.contains(line), "{}", outcome.stderr);
    world.assert_clean();
}

fn tasks(pid: i32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    let tasks = tasks.into_iter().flatten().flatten();
    let number = |task: std::fs::DirEntry| task.file_name().to_str()?.parse().ok();
    tasks.filter_map(number).collect()
}

/// Those that a task may run on, unless it has ended.
fn host_cpus(task: i32) -> Option<Vec<usize>> {
    let cpus = sched_getaffinity(Pid::from_raw(task)).ok()?;
    let all = 0..CpuSet::count();
    Some(all.filter(|cpu| cpus.is_set(*cpu) == Ok(true)).collect())
}

#[test]
fn a_guest_of_one_node_and_one_of_unequal_ones() {
    let world = World::new();
    let outcome = Up::on(&world, "only").run(&["nproc"]).expect(0);
    assert_eq!(outcome.text(), "1");
    let outcome = Up::on(&world, "a,b")
        .options(&["--cpus", "b=3", "--mem", "a=192M,b=64M"])
        .sh("nproc; sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")
        .expect(0);
    let text = outcome.text();
    let (cpus, memory) = text.split_once('\n').expect("two lines");
    assert_eq!(cpus, "4");
    let memory_kib: u64 = memory.parse().expect("a number");
    assert!((200 << 10..256 << 10).contains(&memory_kib), "{memory_kib}");
    world.assert_clean();
}

#[test]
fn the_exit_code_is_the_commands() {
    let world = World::new();
    // By way of `up`, which ends its guest, and by way of `exec`, which does not.
    Up::three(&world).sh("exit 7").expect(7);
    Up::three(&world).sh("kill -KILL $$").expect(137);
    let outcome = Up::three(&world).run(&["no-such-program"]).expect(127);
    assert!(outcome.stderr.contains("no-such-program"));
    let guest = Up::three(&world).detach("codes");
    guest.exec(&["sh", "-c", "exit 255"]).expect(255);
    guest.exec(&["sh", "-c", "kill -SEGV $$"]).expect(139);
    guest.exec(&["no-such-program"]).expect(127);
    guest.exec(&["/etc/passwd"]).expect(126);
    guest.exec(&["true"]).expect(0);
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn exec_runs_on_the_cpu_or_the_node_that_is_named() {
    let world = World::new();
    let guest = Up::three(&world).options(&["--cpus", "2"]).detach("places");
    // What a process says of itself: where it may run, and where it does.
    let script = "taskset -pc $$ | sed 's/.*: //'; cut -d ' ' -f 39 /proc/self/stat";
    let place = |option: &str, value: &str| {
        let outcome = guest.exec_on(&[option, value], &["sh", "-c", script]);
        outcome.expect(0).text()
    };
    let before = guest.status();
    for cpu in 0..6 {
        assert_eq!(place("--cpu", &cpu.to_string()), format!("{cpu}\n{cpu}"));
    }
    for (node, first) in [("a", 0), ("b", 2), ("c", 4)] {
        let text = place("--node", node);
        let (may, does) = text.split_once('\n').expect("two lines");
        assert_eq!(may, format!("{first},{}", first + 1));
        let does: u32 = does.parse().expect("a number");
        assert!((first..first + 2).contains(&does), "{text}");
    }
    guest.status().assert_moved(&before);
    for (option, value, said) in [
        (
            "--cpu",
            "6",
            "coordinator: --cpu 6: the guest has the CPUs 0 to 5",
        ),
        (
            "--node",
            "d",
            "coordinator: --node d: the guest has the nodes a, b, c",
        ),
    ] {
        let outcome = guest.exec_on(&[option, value], &["true"]).expect(2);
        assert_eq!(outcome.stderr.trim(), said);
    }
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn streams_are_copied_to_the_byte() {
    let world = World::new();
    let input: Vec<u8> = (0u32..2_000_000)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[1..].to_vec())
        .collect();
    let outcome = Up::three(&world)
        .input(input.clone())
        .sh("taskset -pc 1 $$ >/dev/null; tee /dev/stderr | taskset -c 2 cat")
        .expect(0);
    assert_eq!(outcome.stdout.len(), input.len());
    assert!(outcome.stdout == input, "stdout differs from stdin");
    world.assert_clean();

    let outcome = Up::three(&world)
        .sh("echo one; echo two >&2; cat; echo three")
        .expect(0);
    assert_eq!(outcome.stdout, b"one\nthree\n");
    assert!(outcome.stderr.contains("two\n"));
    assert!(!outcome.stderr.contains("three"));
    world.assert_clean();
}

#[test]
fn every_cpu_is_on_another_node_and_reads_the_same_file() {
    let world = World::new();
    let guest = Up::three(&world).detach("sums");
    let before = guest.status();
    before.assert_spread();
    assert_eq!(guest.sh("cat /proc/span"), "cpu node\n0 0\n1 1\n2 2");

    let file = std::fs::read("/usr/bin/python3").expect("a file to read");
    let mut sum = String::new();
    for byte in Sha256::digest(&file) {
        let _ = write!(sum, "{byte:02x}");
    }
    let expected = format!("{sum}  /usr/bin/python3\n").repeat(3);
    let printed = guest.sh("for c in 0 1 2; do taskset -c $c sha256sum /usr/bin/python3; done");
    assert_eq!(printed, expected.trim_end());

    let after = guest.status();
    after.assert_moved(&before);
    // The data crossed twice, however it got there.
    let pages = (file.len() / 4096) as u64;
    for name in ["b", "c"] {
        let moved = after.node(name).pages_in - before.node(name).pages_in;
        assert!(moved >= pages / 4, "{name}: {moved} of {pages} pages");
    }
    guest.down().expect(0);
    world.assert_clean();
}
