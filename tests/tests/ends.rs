//! However a guest ends: the right exit code and cause, in time, and nothing left.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use span_tests::{
    END_MS_MAX, Outcome, Running, Spawned, Up, World, end_max, parent, processes_with, text,
};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);

/// Waits for the end of a guest after `event`, and checks everything about it.
#[track_caller]
fn expect_end(
    world: &World,
    coordinator: Spawned,
    event: Instant,
    code: i32,
    said: &str,
) -> Outcome {
    let outcome = coordinator.wait(LIMIT).expect(code);
    let took = outcome.at.duration_since(event);
    world.assert_clean();
    let lines: Vec<&str> = outcome
        .stderr
        .lines()
        .filter(|line| line.starts_with("coordinator: "))
        .collect();
    assert_eq!(lines.len(), usize::from(!said.is_empty()), "{lines:?}");
    assert!(lines.iter().all(|line| line.contains(said)), "{lines:?}");
    assert!(
        took <= end_max(&outcome.stderr),
        "the guest was there for {took:?} more: {}",
        outcome.stderr
    );
    outcome
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("signalling");
}

/// A guest whose command does `what` once it is told to, on CPU `cpu`.
#[track_caller]
fn end_from_inside(cpu: u32, what: &str, code: i32, said: &str) {
    let world = World::new();
    let mut running = Up::three(&world).start_with(&format!(
        "taskset -pc {cpu} $$ >/dev/null; echo up; read line; {what}; sleep 100"
    ));
    running.guest.status().assert_spread();
    running.coordinator.feed(b"now\n".to_vec());
    expect_end(&world, running.coordinator, Instant::now(), code, said);
}

#[test]
fn poweroff() {
    end_from_inside(1, "poweroff", 0, "powered off");
    end_from_inside(2, "poweroff -f", 0, "powered off");
}

#[test]
fn halt() {
    end_from_inside(2, "halt", 0, "halted");
}

#[test]
fn reboot() {
    end_from_inside(1, "reboot", 0, "restart");
}

#[test]
fn a_panic_on_the_first_node() {
    panic_on(0);
}

#[test]
fn a_panic_on_the_second_node() {
    panic_on(1);
}

#[test]
fn a_panic_on_the_third_node() {
    panic_on(2);
}

#[track_caller]
fn panic_on(cpu: u32) {
    end_from_inside(
        cpu,
        "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger",
        134,
        "sysrq triggered crash",
    );
}

#[test]
fn a_killed_guest_process_is_named() {
    for name in ["a", "b", "c"] {
        let world = World::new();
        let running = Up::three(&world).start();
        let pid = running.guest.status().pid(name);
        let event = Instant::now();
        signal(pid, Signal::SIGKILL);
        let said = format!("node {name} was lost");
        expect_end(&world, running.coordinator, event, 70, &said);
    }
}

#[test]
fn a_stopped_guest_process_is_named() {
    for (nodes, name) in [("a", "a"), ("a,b,c", "a"), ("a,b,c", "c")] {
        let world = World::new();
        let running = Up::on(&world, nodes).start();
        let pid = running.guest.status().pid(name);
        let event = Instant::now();
        signal(pid, Signal::SIGSTOP);
        let said = format!("node {name} was lost: its guest process was stopped");
        expect_end(&world, running.coordinator, event, 70, &said);
    }
}

#[test]
fn a_stopped_agent_is_named() {
    for name in ["a", "c"] {
        let world = World::new();
        let running = Up::three(&world).start();
        let agent = parent(running.guest.status().pid(name));
        let event = Instant::now();
        signal(agent, Signal::SIGSTOP);
        let said = format!("node {name} was lost: nothing was heard");
        expect_end(&world, running.coordinator, event, 70, &said);
    }
}

#[test]
fn a_killed_agent_is_named() {
    for name in ["a", "b", "c"] {
        let world = World::new();
        let running = Up::three(&world).start();
        let guest = running.guest.status().pid(name);
        let agent = parent(guest);
        assert_ne!(agent, running.coordinator.pid());
        let event = Instant::now();
        signal(agent, Signal::SIGKILL);
        let said = format!("node {name} was lost");
        expect_end(&world, running.coordinator, event, 70, &said);
    }
}

#[test]
fn nothing_outlives_a_killed_coordinator() {
    let world = World::new();
    for detached in [false, true] {
        let (pid, keep): (i32, Option<Running<'_>>) = if detached {
            let guest = Up::three(&world).detach("running");
            let pid = text(guest.run_directory().join("pid"));
            (pid.trim().parse().expect("a number"), None)
        } else {
            let running = Up::three(&world).start();
            (running.coordinator.pid(), Some(running))
        };
        signal(pid, Signal::SIGKILL);
        if let Some(running) = keep {
            running.coordinator.wait(LIMIT).expect(137);
        }
        world.assert_clean_within(Duration::from_millis(END_MS_MAX));
    }
}

#[test]
fn signals_end_the_guest() {
    for (number, code) in [
        (Signal::SIGINT, 130),
        (Signal::SIGTERM, 143),
        (Signal::SIGHUP, 129),
    ] {
        let world = World::new();
        let running = Up::three(&world).start();
        let event = Instant::now();
        running.coordinator.signal(number);
        let said = format!("ended by {number}");
        expect_end(&world, running.coordinator, event, code, &said);
    }
}

#[test]
fn a_signal_ends_a_guest_that_boots() {
    // The first words of the lines on progress.
    for stage in ["", "connect", "map memory", "boot"] {
        let world = World::new();
        let mut command = Up::three(&world).command(&["sleep", "100"]);
        let mut coordinator = Spawned::start(&mut command);
        // Once it has begun; a signal before its first instruction is for the system to handle.
        assert!(span_tests::wait_until(LIMIT, || {
            !span_tests::descendants(coordinator.pid()).is_empty()
        }));
        coordinator.wait_for_said(stage, LIMIT);
        let event = Instant::now();
        coordinator.signal(Signal::SIGTERM);
        expect_end(&world, coordinator, event, 143, "SIGTERM");
    }
}

#[test]
fn down_ends_the_guest() {
    let world = World::new();
    let running = Up::three(&world).start();
    let event = Instant::now();
    running.guest.down().expect(0);
    assert!(event.elapsed() <= end_max(&running.coordinator.stderr()));
    expect_end(&world, running.coordinator, event, 143, "coordinator down");
}

#[test]
fn a_busy_guest_ends_as_fast() {
    let world = World::new();
    let mut running = Up::three(&world).start_with(
        "for c in 0 1 2; do taskset -c $c sh -c \"echo busy $c; while :; do :; done\" & done; \
         echo up; wait",
    );
    for cpu in 0..3 {
        running
            .coordinator
            .wait_for(&format!("busy {cpu}\n"), LIMIT);
    }
    assert!(!processes_with(&["linux", "span.name=running"]).is_empty());
    let event = Instant::now();
    running.coordinator.signal(Signal::SIGTERM);
    expect_end(&world, running.coordinator, event, 143, "SIGTERM");
}

#[test]
fn background_processes_end_with_the_command() {
    let world = World::new();
    let event = Instant::now();
    Up::three(&world)
        .sh("for c in 0 1 2; do taskset -c $c sleep 1000 & done; exit 3")
        .expect(3);
    assert!(event.elapsed() < Duration::from_secs(30));
    world.assert_clean();
}
