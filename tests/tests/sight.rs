//! What can be seen of a guest while it runs.

use serde_json::Value;
use span_tests::{Up, World};
use std::time::Duration;

fn total(node: &Value, key: &str) -> u64 {
    node["totals"][key]
        .as_u64()
        .unwrap_or_else(|| panic!("no {key} in {node}"))
}

fn remote_faults(node: &Value) -> u64 {
    ["faults_read", "faults_write", "faults_upgrade"]
        .map(|key| total(node, key))
        .iter()
        .sum()
}

#[test]
fn counters_rise_while_a_program_moves_pages() {
    let world = World::new();
    let program = world
        .compile("sharing", include_str!("../programs/sharing.c"))
        .expect("a program");
    let guest = Up::three(&world).detach("seen");
    let before = guest.stats();
    let program = program.display().to_string();
    guest.exec(&[&program, "3", "20"]).expect(0);
    let after = guest.stats();
    let status = guest.status();

    let nodes = |stats: &Value| stats["nodes"].as_array().expect("nodes").clone();
    for (now, then) in nodes(&after).iter().zip(&nodes(&before)) {
        for key in [
            "pages_in",
            "pages_out",
            "bytes_in",
            "bytes_out",
            "invalidations",
            "ipis_sent",
            "fault_wait_ns",
        ] {
            assert!(total(now, key) > total(then, key), "{key}: {then}\n{now}");
        }
        let faults = remote_faults(now) - remote_faults(then);
        assert!(faults > 0, "{then}\n{now}");
        // Each fault waited, and is in the histogram once it has been answered: all but those that
        // wait at this moment, of which a CPU has one.
        let waits = &now["latency"]["remote"];
        let answered = waits["count"].as_u64().expect("a number");
        assert!((0..=8).contains(&(remote_faults(now) - answered)), "{now}");
        let percentiles = ["p50_ns", "p90_ns", "p99_ns", "max_ns"]
            .map(|key| waits[key].as_u64().expect("a number"));
        assert!(percentiles.is_sorted() && percentiles[0] > 1000, "{waits}");
    }
    // Whatever one node sent, another has got: within what is on its way, and what came since.
    let sum = |key| {
        nodes(&after)
            .iter()
            .map(|node| total(node, key))
            .sum::<u64>()
    };
    let (sent, received) = (sum("bytes_out"), sum("bytes_in"));
    assert!(
        sent.abs_diff(received) < sent / 10,
        "{sent} sent, {received} received"
    );
    for (node, stats) in status.nodes.iter().zip(nodes(&after)) {
        assert!(node.faults.read >= total(&stats, "faults_read"));
    }
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn watching_a_guest_ends_with_it() {
    let world = World::new();
    let guest = Up::three(&world).detach("watched");
    let mut command = world.command("coordinator");
    command.args(["stats", "watched", "--watch", "--json", "--interval", "0.2"]);
    let mut watch = span_tests::Spawned::start(&mut command);
    watch.wait_for("\n", Duration::from_secs(10));
    guest.sh("for i in $(seq 50); do taskset -c $((i % 3)) /bin/true; done");
    // The second node has been given pages, whatever the guest's scheduler thinks.
    let moved = span_tests::wait_until(Duration::from_secs(10), || {
        let shown = String::from_utf8(watch.stdout()).expect("text");
        let whole = shown.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().any(|line| {
            let stats: Value = serde_json::from_str(line).expect("JSON");
            stats["nodes"][1]["rates"]["pages_in"].as_f64() > Some(0.0)
        })
    });
    guest.down().expect(0);
    let outcome = watch.wait(Duration::from_secs(5)).expect(0);
    assert_eq!(outcome.stderr, "coordinator: guest watched ended\n");
    assert!(moved, "no pages moved: {}", outcome.text());
    world.assert_clean();
}

/// The findings of a profile.
#[track_caller]
fn findings(path: &std::path::Path) -> Value {
    serde_json::from_str(&span_tests::text(path)).expect("one JSON object")
}

#[test]
fn a_profile_finds_who_shares_what() {
    let world = World::new();
    let program = world
        .compile("sharing", include_str!("../programs/sharing.c"))
        .expect("a program");
    let program = program.display().to_string();
    let guest = Up::three(&world).detach("profiled");
    let file = |name: &str| world.path("work").join(name);
    let before = guest.stats();
    let mut command = world.command("coordinator");
    command
        .args(["profile", "profiled", "--seconds", "600", "--json"])
        .arg(file("p.json"))
        .arg("--trace")
        .arg(file("p.trace"))
        .arg("--html")
        .arg(file("p.html"));
    let mut profile = span_tests::Spawned::start(&mut command);
    profile.feed(Vec::new());
    profile.wait_for_said("profiling profiled", Duration::from_secs(10));
    let middle = guest.stats();
    guest.exec(&[&program, "3", "20"]).expect(0);
    let done = guest.stats();
    profile.signal(nix::sys::signal::Signal::SIGINT);
    let outcome = profile.wait(Duration::from_secs(30)).expect(0);
    let after = guest.stats();
    guest.down().expect(0);

    let found = findings(&file("p.json"));
    let count = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{value}"));
    assert_eq!(found["no_symbols"], Value::Null);
    // All that the counters say happened meanwhile, and no more than happened around it.
    let sum = |stats: &Value| -> u64 {
        let nodes = stats["nodes"].as_array().expect("nodes");
        nodes.iter().map(remote_faults).sum()
    };
    let dropped: u64 = found["dropped"]
        .as_array()
        .expect("nodes")
        .iter()
        .map(count)
        .sum();
    let told = count(&found["total"]["faults"]) + dropped;
    let (least, most) = (sum(&done) - sum(&middle), sum(&after) - sum(&before));
    assert!(
        (least..=most).contains(&told),
        "{told}, not {least} to {most}"
    );
    // Every CPU faulted, and is on its node.
    let cpus = found["cpus"].as_array().expect("CPUs");
    let nodes: Vec<_> = cpus
        .iter()
        .map(|cpu| cpu["node"].as_str().expect("a name"))
        .collect();
    assert_eq!(nodes, ["a", "b", "c"]);
    assert!(cpus.iter().all(|cpu| count(&cpu["faults"]) > 0), "{cpus:?}");
    // Pages went between all nodes, and it is known from which.
    let matrix = found["matrix"].as_array().expect("rows");
    for (row, counts) in matrix.iter().enumerate() {
        for column in (0..3).filter(|column| *column != row) {
            assert!(count(&counts[column]) > 0, "{matrix:?}");
        }
        assert_eq!(counts[row], 0, "{matrix:?}");
        assert!(count(&counts[3]) * 20 < told, "{matrix:?}");
    }
    let names = |list: &str| -> Vec<String> {
        let list = found[list].as_array().expect("a list");
        list.iter()
            .map(|named| named["name"].as_str().expect("a name").into())
            .collect()
    };
    let (places, functions) = (names("places"), names("functions"));
    // The program's page, by the program's name, and by whom it was written to.
    let of_program = |place: &&Value| {
        let name = place["name"].as_str().expect("a name");
        name.starts_with("process ") && name.ends_with(" sharing")
    };
    let program = found["places"].as_array().expect("a list").iter();
    let by_node: Vec<u64> = program
        .filter(of_program)
        .flat_map(|place| place["by_node"].as_array().expect("nodes"))
        .map(count)
        .collect();
    assert!(
        by_node.len() == 3 && by_node.iter().all(|n| *n > 0),
        "{places:?}"
    );
    assert!(
        functions.contains(&"program sharing".to_string()),
        "{functions:?}"
    );
    // It shares that page falsely: each node writes to a line of its own.
    let lines = |shared: &&Value| {
        let writes = shared["writes"].as_object().expect("by name");
        ["+0x0", "+0x40", "+0x80"]
            .iter()
            .enumerate()
            .all(|(node, line)| {
                let by_node = writes.get(*line).and_then(Value::as_array);
                by_node.is_some_and(|counts| {
                    // The kernel may have cleared the page elsewhere.
                    let own = count(&counts[node]);
                    let all: u64 = counts.iter().map(count).sum();
                    own > 0 && own * 10 >= all * 9
                })
            })
    };
    let shared = found["false_sharing"].as_array().expect("a list");
    assert!(shared.iter().find(lines).is_some(), "{shared:?}");
    // Of the kernel's memory: variables of the image, those of one CPU, slab caches.
    let is_variable = |name: &&String| !name.contains(' ') && *name != "vmalloc";
    assert!(places.iter().any(|name| is_variable(&name)), "{places:?}");
    let has = |what: &str| places.iter().any(|name| name.contains(what));
    assert!(has("runqueues of CPU "), "{places:?}");
    assert!(has("slab task_struct"), "{places:?}");
    assert!(!has("linear map"), "{places:?}");
    // Instructions have a name with few exceptions.
    let unnamed = functions
        .iter()
        .filter(|name| name.starts_with("0x"))
        .count();
    assert_eq!(unnamed, 0, "{functions:?}");

    let trace: Value = serde_json::from_str(&span_tests::text(file("p.trace"))).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("events");
    let faults = events.iter().filter(|event| event["ph"] == "X").count() as u64;
    assert_eq!(faults + dropped, told);
    assert!(span_tests::text(file("p.html")).contains("<svg"));
    assert!(outcome.text().contains("Hottest pages"));
    world.assert_clean();
}

#[test]
fn a_command_is_profiled_from_its_start_to_its_end() {
    let world = World::new();
    let program = world
        .compile("sharing", include_str!("../programs/sharing.c"))
        .expect("a program");
    let json = world.path("work").join("p.json");
    let mut command = world.command("coordinator");
    command
        .args(["profile", "--nodes", "a,b,c", "--json"])
        .arg(&json)
        .args(["--", "sh", "-c"])
        .arg(format!("{} 3 20; echo said; exit 3", program.display()));
    let mut profile = span_tests::Spawned::start(&mut command);
    profile.feed(Vec::new());
    let outcome = profile.wait(Duration::from_secs(60)).expect(3);
    assert_eq!(outcome.text(), "said");
    assert!(
        outcome.stderr.contains("Hottest instructions"),
        "{}",
        outcome.stderr
    );
    let found = findings(&json);
    // The program has a thread on each.
    let cpus = found["cpus"].as_array().expect("CPUs");
    let all = cpus.iter().all(|cpu| cpu["faults"].as_u64() > Some(0));
    assert!(cpus.len() == 3 && all, "{cpus:?}");
    // The kernel says where in its source an instruction is.
    let instructions = found["instructions"].as_array().expect("instructions");
    let of_the_kernel = |line: &str| {
        let directories = ["fs/", "kernel/", "mm/"];
        let directory = directories.iter().any(|name| line.starts_with(name));
        directory && line.contains(".c:")
    };
    assert!(
        instructions
            .iter()
            .filter_map(|instruction| instruction["line"].as_str())
            .any(of_the_kernel),
        "{instructions:?}"
    );
    world.assert_clean();
}

/// What the kernel does when a node or a CPU comes up, and never again.
const ONCE: [&str; 3] = [
    "__init_single_page",
    "deferred_init_node",
    "uml_start_secondary",
];

#[test]
fn a_boot_is_profiled_from_its_first_fault_on() {
    let world = World::new();
    let json = world.path("work").join("p.json");
    let profile = |options: &[&str]| {
        let mut command = world.command("coordinator");
        command.arg("profile").args(options).arg(&json);
        command.args(["--", "true"]);
        let mut profile = span_tests::Spawned::start(&mut command);
        profile.feed(Vec::new());
        profile.wait(Duration::from_secs(60)).expect(0);
        findings(&json)
    };
    let names = |found: &Value, list: &str| -> Vec<String> {
        let list = found[list].as_array().expect("a list");
        list.iter()
            .map(|named| named["name"].as_str().expect("a name").into())
            .collect()
    };
    let boots = |found: &Value| {
        let functions = names(found, "functions");
        functions.iter().any(|name| ONCE.contains(&name.as_str()))
    };
    let command = profile(&["--nodes", "a,b,c", "--json"]);
    assert!(!boots(&command), "{command}");
    let boot = profile(&["--boot", "--nodes", "a,b,c", "--json"]);
    assert!(boots(&boot), "{boot}");
    // Variables of a CPU that was not there when it began.
    let places = names(&boot, "places");
    let of_last = |name: &String| name.ends_with(" of CPU 2");
    assert!(places.iter().any(of_last), "{places:?}");
    world.assert_clean();
}
