//! Unmodified programs of this machine, on all nodes at once.

use span_tests::{Up, World, number};
use std::path::Path;

#[test]
fn threads_of_one_process_share_memory_across_nodes() {
    let world = World::new();
    let seconds = number("SPAN_HAMMER_S", 8);
    let guest = Up::three(&world).detach("threads");
    let source = world.file("threads.c", include_str!("../programs/threads.c"));
    // Compiled where it runs.
    guest.sh(&format!(
        "gcc -O2 -pthread -o /tmp/threads {}",
        source.display()
    ));
    let before = guest.status();
    before.assert_spread();
    let outcome = guest
        .exec_within(&["/tmp/threads", "3", &seconds.to_string()], seconds + 60)
        .expect(0);
    guest.status().assert_moved(&before);
    let text = outcome.text();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            [_, have, "of", want] => {
                assert_eq!(have, want, "{text}");
                assert!(
                    have.parse::<u64>().expect("a number") > 10 * seconds,
                    "{text}"
                );
            }
            // Nobody was left out.
            ["least", turns] => assert!(turns.parse::<u64>().expect("a number") > 0, "{text}"),
            _ => panic!("{text}"),
        }
    }
    assert_eq!(text.lines().count(), 4);
    guest.down().expect(0);
    world.assert_clean();
}

/// Wake-ups of other nodes' CPUs are messages, and who changes a thread's affinity has to find them.
#[test]
fn threads_wake_each_other_while_they_are_moved() {
    const PAIRS: u64 = 4;
    const TURNS: u64 = 2_000;
    let world = World::new();
    let program = world
        .compile("wakes", include_str!("../programs/wakes.c"))
        .expect("a program");
    let program = program.display().to_string();
    let guest = Up::three(&world).detach("wakes");
    let (before, log) = (guest.status(), guest.logs());
    before.assert_spread();
    let arguments = ["3", &PAIRS.to_string(), &TURNS.to_string()];
    let outcome = guest
        .exec_within(&[&[program.as_str()], &arguments[..]].concat(), 120)
        .expect(0);
    let text = outcome.text();
    let numbers: Vec<u64> = text
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    let [turns, moves, wrong] = numbers[..] else {
        panic!("{text}")
    };
    assert_eq!((turns, wrong), (2 * PAIRS * TURNS, 0), "{text}");
    assert!(moves > 100, "{text}");
    guest.status().assert_moved(&before);
    guest.assert_quiet_since(&log);
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn processes_talk_across_nodes() {
    all_of_many(&["pipes", "sockets", "tcp", "signals"]);
}

#[test]
fn what_computes_spreads_over_the_nodes() {
    all_of_many(&["hogs"]);
}

#[test]
fn a_storm_of_processes() {
    all_of_many(&["storm"]);
}

#[test]
fn terminals_across_nodes() {
    all_of_many(&["terminals"]);
}

#[test]
fn queues_between_threads_across_nodes() {
    all_of_many(&["threads"]);
}

#[track_caller]
fn all_of_many(parts: &[&str]) {
    let world = World::new();
    let guest = Up::three(&world).detach("many");
    let script = world.file("many.py", include_str!("../programs/many.py"));
    let script = script.display().to_string();
    guest.status().assert_spread();
    for part in parts {
        let before = guest.status();
        let outcome = guest.exec_within(&["/usr/bin/python3", &script, *part], 90);
        assert_eq!(
            outcome.text(),
            format!("{part} ok"),
            "{}\n{}",
            outcome.stderr,
            guest.logs()
        );
        outcome.expect(0);
        guest.status().assert_moved(&before);
    }
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn java_runs_its_threads_on_all_nodes() {
    if !Path::new("/usr/bin/javac").exists() {
        span_tests::not_tested("Java: there is no /usr/bin/javac");
        return;
    }
    let world = World::new();
    let guest = Up::three(&world).options(&["--mem", "384M"]).detach("java");
    let source = world.file("Threads.java", include_str!("../programs/Threads.java"));
    let version = guest
        .exec_within(&["java", "-version"], 120)
        .expect(0)
        .stderr;
    assert!(version.contains("version"), "{version}");
    let before = guest.status();
    let script = format!(
        "cp {} /tmp && cd /tmp && javac Threads.java && java -cp /tmp Threads 6",
        source.display()
    );
    let outcome = guest.exec_within(&["sh", "-c", &script], 300).expect(0);
    assert_eq!(outcome.text(), "48000 48000 24576000");
    guest.status().assert_moved(&before);
    guest.down().expect(0);
    world.assert_clean();
}
