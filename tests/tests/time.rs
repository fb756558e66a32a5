//! Each node keeps time for itself, and the guest has one time.

use span_tests::{Up, World, python};

/// For how many seconds of its time a program computes, as the guest counts them.
const COMPUTES_S: f64 = 0.5;

/// Runs in the guest: what `command` prints on CPUs of different nodes in turn.
fn in_turn(rounds: usize, command: &str) -> String {
    format!("for i in $(seq {rounds}); do for c in 0 1 2; do taskset -c $c {command}; done; done")
}

#[test]
fn times_do_not_go_backwards_from_node_to_node() {
    let world = World::new();
    let guest = Up::three(&world).detach("ticking");
    // The time of a file is that of the last tick, elsewhere; here it must be the time.
    let script = in_turn(
        8,
        "sh -c 'date +%s.%N; : > /tmp/f; stat -c %.9Y /tmp/f; stat -c %.9Z /tmp/f; date +%s.%N'",
    );
    let outcome = guest.exec(&["sh", "-c", &script]).expect(0);
    let text = outcome.text();
    let times: Vec<f64> = text
        .lines()
        .map(|line| line.parse().expect("a time"))
        .collect();
    assert_eq!(times.len(), 8 * 3 * 4);
    for (before, after) in times.iter().zip(&times[1..]) {
        assert!(before <= after, "{before} and then {after}:\n{text}");
    }
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn time_that_is_set_on_one_node_is_set_on_all() {
    let world = World::new();
    let guest = Up::three(&world).detach("set");
    for (set_on, time) in [
        (0, 2_000_000_000u64),
        (2, 1_900_000_000),
        (1, 2_100_000_000),
    ] {
        let script = format!(
            "taskset -c {set_on} date -s @{time} >/dev/null; {}",
            in_turn(1, "date +%s")
        );
        let text = guest.sh(&script);
        let times: Vec<u64> = text
            .lines()
            .map(|line| line.parse().expect("a time"))
            .collect();
        assert_eq!(times.len(), 3);
        for now in times {
            assert!((time..time + 10).contains(&now), "{now} after {time}");
        }
    }
    // Timers go by it, too: one that is due in the new time fires, on each node.
    guest.sh(&in_turn(1, "sleep 0.2"));
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn what_a_program_computes_is_its_own_time() {
    let world = World::new();
    let guest = Up::three(&world).detach("charged");
    let script = format!(
        "import os, signal
fired = []
signal.signal(signal.SIGVTALRM, lambda *_: fired.append(1))
signal.setitimer(signal.ITIMER_VIRTUAL, {COMPUTES_S} / 4)
begin = now = os.times()
while now.user + now.system < begin.user + begin.system + {COMPUTES_S}:
    sum(range(10000))
    now = os.times()
print(now.user - begin.user, now.system - begin.system, len(fired))"
    );
    for node in ["a", "b", "c"] {
        let text = python(&guest, node, &script);
        let numbers = text.split_whitespace().map(str::parse::<f64>);
        let numbers: Result<Vec<f64>, _> = numbers.collect();
        let [user, system, fired] = numbers.expect("numbers")[..] else {
            panic!("{node}: {text}");
        };
        assert!(user > system, "{node}: {text}");
        assert!(fired == 1.0, "{node}: {text}");
    }
    guest.down().expect(0);
    world.assert_clean();
}
