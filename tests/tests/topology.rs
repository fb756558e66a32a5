//! Topologies: files that describe machines, guests made of them, and what their links cost while they run.

use serde_json::Value;
use span_tests::{END_MS_MAX, Outcome, Spawned, Up, World, wait_until};
use std::time::{Duration, Instant};

const MS: u64 = 1_000_000;

/// What comes with the program: a name, nodes, CPUs.
const READY: [(&str, u64, u64); 6] = [
    ("two-sockets", 2, 4),
    ("four-sockets", 4, 8),
    ("ring-of-8", 8, 8),
    ("two-rack-cluster", 6, 6),
    ("far-memory", 2, 2),
    ("one-slow-node", 4, 4),
];

/// Nodes lose each other this long after the last that they heard.
const IDLE_MS: u64 = 1500;

/// Of 300 MiB of the letter x.
const SHA256: &str = "50b4bbfa815e75067a6279c619606e36f91467c7b2c55b09ce8b5dad19b5f18c";

const PAIR: &str = r#"
[[node]]
name = "a"
cpus = 2
mem = "192M"

[[node]]
name = "b"
mem = "64M"

[[link]]
between = ["a", "b"]
latency = "1ms"
back = { latency = "3ms" }
"#;

#[track_caller]
fn coordinator(world: &World, words: &[&str]) -> Outcome {
    let mut command = world.command("coordinator");
    command.args(words);
    let mut spawned = Spawned::start(&mut command);
    spawned.feed(Vec::new());
    spawned.wait(Duration::from_secs(60))
}

#[track_caller]
fn json(outcome: Outcome) -> Value {
    serde_json::from_slice(&outcome.expect(0).stdout).expect("JSON")
}

/// A number of the direction between two nodes.
#[track_caller]
fn number(links: &Value, from: &str, to: &str, key: &str) -> u64 {
    let links = links["links"].as_array().expect("links");
    let link = links
        .iter()
        .find(|link| link["from"] == from && link["to"] == to);
    let link = link.unwrap_or_else(|| panic!("no link from {from} to {to}: {links:?}"));
    let value = key.split('.').fold(link, |value, key| &value[key]);
    value.as_u64().unwrap_or_else(|| panic!("no {key}: {link}"))
}

#[test]
fn those_that_come_along_are_valid_and_are_drawn() {
    let world = World::new();
    let list = coordinator(&world, &["topology", "list"]).expect(0).text();
    for (name, nodes, cpus) in READY {
        assert!(list.contains(name), "{list}");
        let summary = json(coordinator(
            &world,
            &["topology", "validate", name, "--json"],
        ));
        assert_eq!(
            (&summary["nodes"], &summary["cpus"]),
            (&nodes.into(), &cpus.into())
        );
        let shown = json(coordinator(&world, &["topology", "show", name, "--json"]));
        let svg = world.path("work").join("out.svg");
        let to = svg.to_str().expect("a path");
        let drawn = coordinator(&world, &["topology", "draw", name, "-o", to]).expect(0);
        assert_eq!(drawn.stdout, b"");
        let svg = span_tests::text(&svg);
        assert!(
            svg.starts_with("<svg ") && svg.ends_with("</svg>\n"),
            "{svg}"
        );
        let shared = svg.contains("uplink racks, shared");
        assert_eq!(shared, name == "two-rack-cluster", "{svg}");
        assert_eq!(
            shown["uplinks"].as_array().map(Vec::len),
            Some(2 * usize::from(shared))
        );
        for node in shown["nodes"].as_array().expect("nodes") {
            let word = format!(">{}</text>", node["name"].as_str().expect("a name"));
            assert!(svg.contains(&word), "{word} is not in {svg}");
        }
        let text = coordinator(&world, &["topology", "show", name])
            .expect(0)
            .text();
        assert!(text.contains("LATENCY"), "{text}");
    }
    world.assert_clean();
}

#[test]
fn what_cannot_be_is_refused_with_its_place() {
    let world = World::new();
    let bad = world.file("bad.toml", "[[node]]\nname = \"a\"\ncolour = 3\n");
    let good = world.file("good.toml", PAIR);
    let (bad, good) = (bad.to_str().expect("text"), good.to_str().expect("text"));
    let place = format!("{bad}:3:1: ");
    let up = |options: &[&'static str]| {
        let up = Up::bare(&world).option("--topology").option(good);
        up.options(options).limit_s(20).run(&["true"])
    };
    for (outcome, parts) in [
        (
            coordinator(&world, &["topology", "validate", bad]),
            [place.as_str(), "colour"],
        ),
        (
            coordinator(&world, &["up", "--topology", bad, "--", "true"]),
            [place.as_str(), "colour"],
        ),
        (
            coordinator(&world, &["topology", "draw", "/no/such.toml"]),
            ["/no/such.toml", "four-sockets"],
        ),
        (up(&["--cpus", "2"]), ["--topology", "--cpus"]),
        (up(&["--mem", "1G"]), ["--topology", "--mem"]),
        (up(&["--latency", "1ms"]), ["--topology", "--latency"]),
        (up(&["--nodes", "a,c"]), ["--nodes a,c", "a,b"]),
        (
            coordinator(&world, &["link", "a-b", "--latency", "2s"]),
            ["--latency 2s", "more than 1s"],
        ),
        (
            coordinator(&world, &["link", "a-b", "--bandwidth", "fast"]),
            ["--bandwidth fast", "K, M, G or T"],
        ),
        (coordinator(&world, &["link", "--cut"]), ["link", "A-B"]),
        (
            coordinator(&world, &["link", "x", "a-b", "--uplink", "u", "--cut"]),
            ["--uplink u", "\"a-b\""],
        ),
        (
            coordinator(
                &world,
                &[
                    "up",
                    "--topology",
                    "two-rack-cluster",
                    "--nodes",
                    "r1n1,r1n2,r1n3,r2n1,r2n2,r2n3=10.0.0.2:7000",
                    "--",
                    "true",
                ],
            ),
            ["node r2n3 is linked through uplink racks", "10.0.0.2:7000"],
        ),
        (
            coordinator(&world, &["link", "x", "a-b", "c"]),
            ["\"c\"", "A-B"],
        ),
    ] {
        let outcome = outcome.expect(2);
        let lines: Vec<&str> = outcome.stderr.lines().collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        for part in parts {
            assert!(lines[0].contains(part), "{part:?} is not in {lines:?}");
        }
    }
    world.assert_clean();
}

#[test]
fn a_guest_is_as_its_topology_says_and_its_links_change_while_it_runs() {
    let world = World::new();
    let path = world.file("pair.toml", PAIR);
    let guest = Up::bare(&world)
        .option("--topology")
        .option(path)
        .detach("described");
    let status = guest.status();
    let nodes: Vec<(&str, usize, u64)> = status
        .nodes
        .iter()
        .map(|node| (node.name.as_str(), node.cpus.len(), node.mem_mib))
        .collect();
    assert_eq!(nodes, [("a", 2, 192), ("b", 1, 64)]);
    status.assert_spread();
    assert_eq!(guest.sh("nproc"), "3");

    // All that goes either way was delayed, by what it is to cost at least but for what the timer may be early.
    let links = guest.links(&[]);
    for (from, to, latency_ms) in [("a", "b", 1), ("b", "a", 3)] {
        let of = |key: &str| number(&links, from, to, key);
        assert_eq!(of("latency_ns"), latency_ms * MS);
        assert!(of("messages") > 100 && of("delayed") > 100, "{links}");
        assert!(of("planned_ns") >= of("delayed") * latency_ms * MS);
        assert!(of("added_ns") >= of("planned_ns") / 100 * 99, "{links}");
    }
    // Faults wait for both ways.
    let stats = guest.stats();
    let wait_ns = stats["nodes"][1]["latency"]["remote"]["p50_ns"].as_u64();
    assert!(wait_ns >= Some(4 * MS), "{stats}");

    // A network that costs nothing delays nothing more.
    let fast = ["a-b", "--latency", "0"];
    let before = guest.links(&fast);
    assert_eq!(number(&before, "a", "b", "latency_ns"), 0);
    let before = (guest.links(&[]), guest.status());
    guest.sh("for c in 0 1 2; do taskset -c $c true; done");
    guest.status().assert_moved(&before.1);
    let after = guest.links(&[]);
    for (from, to) in [("a", "b"), ("b", "a")] {
        let of = |links: &Value, key: &str| number(links, from, to, key);
        assert!(of(&after, "messages") > of(&before.0, "messages"));
        assert_eq!(of(&after, "delayed"), of(&before.0, "delayed"));
    }

    // One way only, with everything that a link may have.
    let mixed = [
        "a-b",
        "--one-way",
        "--latency",
        "500us",
        "--jitter",
        "100us",
        "--bandwidth",
        "100M",
        "--loss",
        "20%",
    ];
    let links = guest.links(&mixed);
    let of = |key: &str| number(&links, "a", "b", key);
    let values = ["latency_ns", "jitter_ns", "bandwidth_bps", "loss_ppm"].map(of);
    assert_eq!(values, [500_000, 100_000, 100_000_000, 200_000]);
    assert_eq!(number(&links, "b", "a", "latency_ns"), 0);
    guest.sh("for c in 0 1 2; do taskset -c $c true; done");
    let later = guest.links(&["a-b"]);
    let more = |key: &str| number(&later, "a", "b", key) - number(&links, "a", "b", key);
    assert!(more("delayed") > 20 && more("lost") > 0, "{later}");
    // Without jitter in the wrong direction and without losses, each message takes 400 µs.
    assert!(more("planned_ns") >= more("delayed") * 400_000, "{later}");

    measured(&world, &guest);
    guest.down().expect(0);
    world.assert_clean();
}

/// What is measured is what was asked for and more, and is a topology.
fn measured(world: &World, guest: &span_tests::Guest<'_>) {
    let slow = [
        "a-b",
        "--latency",
        "2ms",
        "--jitter",
        "0",
        "--bandwidth",
        "none",
        "--loss",
        "0",
    ];
    guest.links(&slow);
    let measured = json(coordinator(
        world,
        &["topology", "measure", "described", "--json"],
    ));
    let link = &measured["links"][0];
    let at_least = |value: &Value, least: u64| {
        assert!(value.as_u64() >= Some(least), "{measured}");
    };
    at_least(&link["round_trip_ns"], 4 * MS - 8_000);
    at_least(&link["latency_ns"], 2 * MS - 4_000);
    at_least(&link["back"]["latency_ns"], 2 * MS - 4_000);
    at_least(&link["bandwidth_bps"], 1_000_000);
    let text = coordinator(world, &["topology", "measure"])
        .expect(0)
        .text();
    let path = world.file("measured.toml", &text);
    let path = path.to_str().expect("text");
    let summary = json(coordinator(
        world,
        &["topology", "validate", path, "--json"],
    ));
    assert_eq!(
        (&summary["nodes"], &summary["cpus"]),
        (&2.into(), &3.into())
    );
}

#[test]
fn what_a_cut_holds_up_goes_on_when_it_is_healed() {
    let world = World::new();
    // However long it takes to look and to heal it, nobody is lost meanwhile.
    let guest = Up::on(&world, "a,b").option("--debug").detach("cut");
    let before = guest.links(&["a-b", "--cut"]);
    assert_eq!(before["links"][0]["cut"], true);
    // It cannot so much as begin on the other node.
    let mut held_up = guest.begin(&["taskset", "-c", "1", "echo", "here"]);
    held_up.feed(Vec::new());
    let dropped = || number(&guest.links(&[]), "a", "b", "dropped");
    assert!(wait_until(Duration::from_secs(60), || dropped() > 0));
    assert_eq!(held_up.stdout(), b"");
    let after = guest.links(&["a-b", "--heal"]);
    assert_eq!(after["links"][0]["cut"], false);
    let outcome = held_up.wait(Duration::from_secs(60)).expect(0);
    assert_eq!(outcome.text(), "here");
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn a_cut_that_lasts_ends_the_guest() {
    let world = World::new();
    let running = Up::on(&world, "a,b").start();
    // It comes between these.
    let before = Instant::now();
    running.guest.links(&["a-b", "--cut"]);
    let cut = Instant::now();
    let outcome = running.coordinator.wait(Duration::from_secs(20)).expect(70);
    assert!(outcome.stderr.contains("lost"), "{}", outcome.stderr);
    // Not at once: it could have been healed.
    let lasted = outcome.at - before;
    assert!(lasted >= Duration::from_millis(IDLE_MS / 2), "{lasted:?}");
    let lasted = outcome.at - cut;
    assert!(
        lasted <= Duration::from_millis(IDLE_MS + END_MS_MAX),
        "{lasted:?}"
    );
    world.assert_clean();
}

#[test]
fn memory_without_cpus_is_memory() {
    let world = World::new();
    let guest = Up::bare(&world)
        .options(&["--topology", "far-memory"])
        .detach("far");
    assert_eq!(guest.sh("nproc"), "2");
    let kib: u64 = guest
        .sh("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")
        .parse()
        .expect("a number");
    // Both nodes' memory, but for what the kernel takes.
    assert!((640 << 10..=768 << 10).contains(&kib), "{kib}");
    let status = guest.status();
    let far = status.node("far");
    assert_eq!((far.cpus.len(), far.mem_mib), (0, 512));
    // Its process is there, and had something to say when the guest booted.
    assert!(number(&guest.links(&[]), "far", "near", "messages") > 0);
    // More than the near node has. In a file, for there a page costs no fault of a program.
    let script = "import hashlib\npart=b'x'*(1<<20)\nf=open('/tmp/f','w+b',0)\n\
        for n in range(300): assert f.write(part)==len(part)\n\
        f.seek(0)\nh=hashlib.sha256()\nwhile part:=f.read(1<<20): h.update(part)\nprint(h.hexdigest())";
    let outcome = guest.exec(&["python3", "-c", script]).expect(0);
    assert_eq!(outcome.text(), SHA256);
    guest.down().expect(0);
    world.assert_clean();
}
