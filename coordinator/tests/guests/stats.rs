//! What `stats` shows, of guest processes whose counters are known.

use crate::support::Place;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn once_it_shows_everything_since_the_start() {
    let place = Place::new();
    let name = place.detached("--nodes a,b");
    let ran = place.words(&format!("stats --json {name}"));
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let stats = json(&ran.stdout);
    assert_eq!(stats["name"], name.as_str());
    assert_eq!(stats["state"], "running");
    let b = &stats["nodes"][1];
    assert_eq!(b["name"], "b");
    assert_eq!(b["totals"]["faults_upgrade"], 3);
    assert_eq!(b["totals"]["pages_in"], 6);
    assert_eq!(b["totals"]["retries"], 7);
    assert_eq!(b["resident_pages"], 2560);
    // A fault and a page more each time it is asked, which it is once a second in any case.
    let asked = b["latency"]["read"]["count"].as_u64().unwrap();
    assert!(asked >= 1, "{b}");
    assert_eq!(b["totals"]["bytes_out"], 4096 * asked);
    assert_eq!(b["latency"]["remote"]["p99_ns"], 30_000);
    assert_eq!(b["latency"]["write"]["max_ns"], 0);

    // `status` has the same.
    let status = place.status(&name);
    let b = &status["nodes"][1];
    assert_eq!(b["latency"]["remote"]["max_ns"], 30_000);
    assert_eq!(b["counters"]["retries"], 7);

    let table = place.words("stats").stdout;
    let row = |name: &str| {
        let line = table.lines().find(|line| line.starts_with(name));
        let words = line.unwrap_or_else(|| panic!("{name} in {table}"));
        words[name.len()..]
            .split_whitespace()
            .map(String::from)
            .collect::<Vec<_>>()
    };
    assert_eq!(row("faults write "), ["2", "2", "4"]);
    assert_eq!(row("read p50 "), ["30", "µs", "30", "µs", "30", "µs"]);
    assert_eq!(place.words("down").code, 0);
}

#[test]
fn watched_as_json_it_shows_what_changed_until_the_guest_ends() {
    let place = Place::new();
    let name = place.detached("--nodes a,b");
    let mut watch = place
        .coordinator()
        .args(["stats", "--watch", "--interval", "0.1", "--json"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || json(&lines.next().unwrap().unwrap());
    let (first, second) = (next(), next());
    // It sends another page, and waits once more, each time it is asked.
    let asked = |stats: &Value| {
        let waits = &stats["nodes"][0]["latency_interval"]["remote"];
        waits["count"].as_u64().unwrap()
    };
    for stats in [&first, &second] {
        let seconds = stats["interval_s"].as_f64().unwrap();
        assert!(seconds > 0.0, "{stats}");
        let a = &stats["nodes"][0];
        assert!(asked(stats) >= 1, "{stats}");
        let rate = a["rates"]["bytes_out"].as_f64().unwrap();
        let bytes = 4096.0 * asked(stats) as f64;
        assert!((rate * seconds / bytes - 1.0).abs() < 0.1, "{stats}");
        assert_eq!(a["rates"]["faults_read"], 0.0);
    }
    let sent = |stats: &Value| stats["nodes"][0]["totals"]["bytes_out"].as_u64().unwrap();
    assert_eq!(sent(&second), sent(&first) + 4096 * asked(&second));

    assert_eq!(place.words("down").code, 0);
    drop(lines);
    let ended = watch.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0));
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(said, format!("coordinator: guest {name} ended\n"));
}

#[test]
fn watched_without_a_terminal_it_prints_a_line_for_each_node() {
    let place = Place::new();
    place.detached("--nodes a,b");
    let mut watch = place
        .coordinator()
        .args(["stats", "--watch", "--interval", "0.1"])
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    for node in ["a", "b", "a", "b"] {
        let line = lines.next().unwrap().unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!(words[1], node, "{line}");
        assert!(words.contains(&"faults_read/s=0.0"), "{line}");
        assert!(words.contains(&"resident_pages=2560"), "{line}");
    }
    // Whom nobody reads any more ends.
    drop(lines);
    assert_eq!(watch.wait().unwrap().code(), Some(0));
    assert_eq!(place.words("down").code, 0);
}
