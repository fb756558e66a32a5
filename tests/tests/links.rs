//! Links between nodes that are slower than the network is. Long form: `SPAN_LATENCY_MS`.

use serde_json::{Value, json};
use span_tests::{Guest, Up, World, number, text};
use std::time::{Duration, Instant};

const MS: u64 = 1_000_000;

/// Longest time for a guest on slow links to boot, and to run three programs, for each millisecond.
const STEP_S_PER_MS: u64 = 60;

fn waits(node: &Value, percentile: &str) -> u64 {
    let value = &node["latency"]["remote"][percentile];
    value
        .as_u64()
        .unwrap_or_else(|| panic!("no {percentile} in {node}"))
}

/// Seconds for which a process has had a processor, of which there are 100 ticks each.
fn processor_s(pid: i32) -> f64 {
    let stat = text(format!("/proc/{pid}/stat"));
    let (_, fields) = stat.rsplit_once(") ").expect("a process");
    let ticks = fields.split(' ').skip(11).take(2);
    let ticks = ticks.map(|ticks| ticks.parse::<f64>().expect("a number"));
    ticks.sum::<f64>() / 100.0
}

#[test]
fn a_guest_boots_runs_and_shuts_down_although_each_message_takes_long() {
    let latency_ms = number("SPAN_LATENCY_MS", 1);
    let step_s = STEP_S_PER_MS * latency_ms;
    let world = World::lasting(Duration::from_secs(3 * step_s));
    let began = Instant::now();
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
    // Who waits for a link does so asleep: what nodes do beside is little.
    let elapsed_s = began.elapsed().as_secs_f64();
    let status = guest.status();
    for node in ["a", "b", "c"] {
        let busy_s = processor_s(status.pid(node));
        println!("{node}: {busy_s} s of a processor in {elapsed_s:.1} s");
        assert!(
            busy_s < elapsed_s / 4.0,
            "{node}: {busy_s} s of {elapsed_s:.1} s"
        );
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

/// Two racks, and links between them that share an uplink. It is narrow only while something is measured.
const RACKS: &str = r#"
[[node]]
name = "a1"
group = "a"
mem = "256M"

[[node]]
name = "a2"
group = "a"
mem = "256M"

[[node]]
name = "b1"
group = "b"
mem = "64M"

[[node]]
name = "b2"
group = "b"
mem = "64M"

[[link]]
between = ["a", "b"]
uplink = "racks"

[[uplink]]
name = "racks"
bandwidth = "10G"
"#;

const STREAMS: &str = include_str!("../programs/streams.py");

/// What an uplink carries, and what each stream reads: for a second, alone.
const UPLINK: &str = "32M";
const UPLINK_BYTES_A_SECOND: f64 = 4e6;
const STREAM_BYTES: u64 = 4 << 20;

/// What a stream has of an uplink that nobody else uses: more than the half that it would have if each had its part. It
/// never has more than all. What is missing are headers, and the time until the next request is there while nothing is in
/// the queue: little, but longer on a host that is busy.
const ALONE: std::ops::RangeInclusive<f64> = 0.6..=1.0;

/// Reads of disks, each by a CPU, all begun at the same time: when they began and ended, on the guest's clock.
fn streams(guest: &Guest<'_>, round: u64, ways: &[(u32, &str)]) -> Vec<(u64, u64)> {
    let size = STREAM_BYTES.to_string();
    let offset = round * STREAM_BYTES;
    let words = ways
        .iter()
        .map(|(cpu, disk)| format!("{cpu}:{disk}:{offset}"));
    let words: Vec<String> = words.collect();
    let mut command = vec!["python3", "-c", STREAMS, &size];
    command.extend(words.iter().map(String::as_str));
    let text = guest.exec_on(&["--node", "a1"], &command).expect(0).text();
    let times = text.lines().map(|line| {
        let (began, ended) = line.split_once(' ').expect("two numbers");
        let ns = |text: &str| text.parse::<u64>().expect("a number");
        (ns(began), ns(ended))
    });
    let times: Vec<(u64, u64)> = times.collect();
    assert_eq!(times.len(), ways.len(), "{text}");
    times
}

/// What streams have carried together, of what an uplink does.
fn carried(times: &[(u64, u64)]) -> f64 {
    let began = times.iter().map(|took| took.0).min().expect("a stream");
    let ended = times.iter().map(|took| took.1).max().expect("a stream");
    let bytes = STREAM_BYTES * times.len() as u64;
    bytes as f64 * 1e9 / (ended - began) as f64 / UPLINK_BYTES_A_SECOND
}

/// Bytes that were sent from a node to another.
fn sent(links: &Value, from: &str, to: &str) -> u64 {
    let links = links["links"].as_array().expect("links");
    let link = links
        .iter()
        .find(|link| link["from"] == from && link["to"] == to);
    let bytes = link.and_then(|link| link["bytes"].as_u64());
    bytes.unwrap_or_else(|| panic!("no link from {from} to {to}: {links:?}"))
}

#[test]
fn pairs_share_the_uplink_that_they_go_through() {
    let world = World::new();
    let topology = world.file("racks.toml", RACKS);
    let mut up = Up::bare(&world).option("--topology").option(topology);
    for node in ["a1", "b1", "b2"] {
        let file = world.file(&format!("{node}.img"), "");
        let opened = std::fs::File::options().write(true).open(&file);
        let sized = opened.and_then(|opened| opened.set_len(4 * STREAM_BYTES));
        sized.expect("room");
        let disk = format!("{node}:{}", file.display());
        up = up.option("--ubd").option(disk);
    }
    let guest = up.detach("racks");
    // CPU 0 is a1's, CPU 1 a2's. What programs need is here once they have run.
    let across = [(0, "/dev/ubdb"), (1, "/dev/ubdc")];
    let beside = (1, "/dev/ubda");
    let ways = [across[0], across[1], beside];
    streams(&guest, 0, &ways);
    let narrow = guest.links(&["--uplink", "racks", "--bandwidth", UPLINK]);
    let uplinks = narrow["uplinks"].as_array().expect("uplinks");
    let ends = |at: usize| (uplinks[at]["from"].clone(), uplinks[at]["to"].clone());
    let (a, b) = (json!(["a1", "a2"]), json!(["b1", "b2"]));
    assert_eq!([ends(0), ends(1)], [(a.clone(), b.clone()), (b, a)]);
    let links = narrow["links"].as_array().expect("links");
    assert_eq!(links.len(), 8);
    for link in links {
        assert_eq!(link["uplink"], "racks");
        assert_eq!(link["bandwidth_bps"], 32_000_000);
    }

    // Each pair alone has all of it ...
    for (round, way) in [(1, across[0]), (2, across[1])] {
        let carried = carried(&streams(&guest, round, &[way]));
        assert!(ALONE.contains(&carried), "{way:?}: {carried}");
    }
    // ... and both at once have no more, while a link beside it is as fast as ever.
    let before = guest.links(&[]);
    let times = streams(&guest, 3, &ways);
    let after = guest.links(&[]);
    let shared = carried(&times[..2]);
    assert!(ALONE.contains(&shared), "both: {shared}, {times:?}");
    let unshared = carried(&times[2..]);
    assert!(unshared > 2.0, "beside: {unshared}, {times:?}");
    let [one, other] = [("b1", "a1"), ("b2", "a2")].map(|(from, to)| {
        let bytes = sent(&after, from, to) - sent(&before, from, to);
        assert!(bytes >= STREAM_BYTES, "{from} to {to}: {bytes}");
        bytes
    });
    let total = |links: &Value| links["uplinks"][1]["bytes"].as_u64().expect("bytes");
    assert!(total(&after) - total(&before) >= one + other, "{after}");

    // What is shared is changed for all, or not at all.
    let refused = |words: &[&str], parts: [&str; 2]| {
        let outcome = guest.link(words).expect(2);
        for part in parts {
            assert!(outcome.stderr.contains(part), "{}", outcome.stderr);
        }
    };
    refused(
        &["a1-b1", "--bandwidth", "1G"],
        ["--uplink racks", "shares"],
    );
    refused(
        &["--uplink", "other", "--cut"],
        ["--uplink other", "it has racks"],
    );
    let wide = ["--bandwidth", "none", "--latency", "1ms", "--one-way"];
    let wide = guest.links(&[&["--uplink", "racks"], &wide[..]].concat());
    for link in wide["links"].as_array().expect("links") {
        let there = link["from"] == "a1" || link["from"] == "a2";
        assert_eq!(link["bandwidth_bps"].is_null(), there, "{link}");
        assert_eq!(link["latency_ns"] == MS, there, "{link}");
    }
    guest.down().expect(0);
    world.assert_clean();
}
