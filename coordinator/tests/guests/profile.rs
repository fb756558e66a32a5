//! Profiles of guest processes that tell one fault each time they are asked.

use crate::support::{Place, wait_until};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Child;

fn json(place: &Place, name: &str) -> Value {
    serde_json::from_slice(&fs::read(place.path(name)).unwrap()).unwrap()
}

/// A profile of a minute that has begun.
fn begun(place: &Place, options: &[&str]) -> Child {
    let mut command = place.coordinator();
    let mut child = command
        .args(["profile", "--seconds", "60"])
        .args(options)
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stderr = BufReader::new(child.stderr.as_mut().unwrap());
    stderr.read_line(&mut line).unwrap();
    assert!(line.starts_with("coordinator: profiling"), "{line}");
    child
}

#[test]
fn a_guest_that_runs_is_profiled_for_some_time() {
    let place = Place::new();
    let name = place.detached("--nodes a,b");
    let ran = place.words(&format!(
        "profile {name} --seconds 0.5 --json p.json --trace p.trace --html p.html"
    ));
    let said = format!("coordinator: profiling {name} for 0.5 s; Ctrl-C ends it earlier\n");
    assert_eq!((ran.code, ran.stderr), (0, said), "{}", ran.stdout);
    let found = json(&place, "p.json");
    assert_eq!(found["name"], name.as_str());
    assert_eq!(found["nodes"], serde_json::json!(["a", "b"]));
    // One when it begins, one each time it is asked, one at the end: from both.
    let faults = found["total"]["faults"].as_u64().unwrap();
    assert!(faults >= 4 && faults.is_multiple_of(2), "{found}");
    assert_eq!(found["dropped"], serde_json::json!([1, 1]));
    let half = faults / 2;
    assert_eq!(
        found["matrix"],
        serde_json::json!([[0, half, 0], [half, 0, 0]])
    );
    assert_eq!(found["cpus"][1]["faults"], half);
    assert_eq!(found["false_sharing"][0]["page"], 5);
    // What the guest says of it.
    assert_eq!(found["pages"][0]["about"][0], "slab fake");
    // The kernel of these guests is another program.
    assert_eq!(found["no_symbols"], Value::Null);

    let trace = json(&place, "p.trace");
    let events = trace["traceEvents"].as_array().unwrap();
    let told = events.iter().filter(|event| event["ph"] == "X").count();
    assert_eq!(told as u64, faults);
    assert!(
        fs::read_to_string(place.path("p.html"))
            .unwrap()
            .contains("<svg")
    );

    for part in [
        &format!("{faults} faults that asked another node"),
        "not among them, for want of room: 1 on a, 1 on b",
        "0x5000 slab fake",
        "+0x40: b",
    ] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
    // A second one finds nothing of the first.
    let again = place.words("profile --seconds 0.1");
    assert_eq!(again.code, 0, "{again:?}");
    assert_eq!(place.words("down").code, 0);
}

#[test]
fn two_profiles_at_a_time_are_refused_and_the_end_of_the_guest_ends_one() {
    let place = Place::new();
    place.detached("--nodes a,b");
    let first = begun(&place, &["--json", "p.json"]);
    let second = place.words("profile --seconds 0.1");
    assert_eq!(second.code, 125, "{second:?}");
    assert_eq!(
        second.line(),
        "coordinator: the guest is being profiled already"
    );
    assert_eq!(place.words("down").code, 0);
    let first = first.wait_with_output().unwrap();
    assert_eq!(first.status.code(), Some(0));
    assert!(json(&place, "p.json")["total"]["faults"].as_u64().unwrap() >= 2);
}

#[test]
fn one_that_is_killed_is_out_of_the_way() {
    let place = Place::new();
    place.detached("--nodes a,b");
    let mut first = begun(&place, &[]);
    assert_eq!(place.words("profile --seconds 0.1").code, 125);
    first.kill().unwrap();
    first.wait().unwrap();
    wait_until("another one can", || {
        place.words("profile --seconds 0.1").code == 0
    });
    assert_eq!(place.words("down").code, 0);
}

#[test]
fn a_command_is_profiled_in_a_guest_of_its_own() {
    let place = Place::new();
    let ran = place.run([
        "profile",
        "--nodes",
        "a,b",
        "--json",
        "p.json",
        "--",
        "sh",
        "-c",
        "echo out; exit 7",
    ]);
    assert_eq!((ran.code, ran.stdout.as_str()), (7, "out\n"), "{ran:?}");
    assert!(
        ran.stderr.contains("faults that asked another node"),
        "{ran:?}"
    );
    assert!(ran.lines().is_empty(), "{ran:?}");
    assert!(json(&place, "p.json")["total"]["faults"].as_u64().unwrap() >= 4);

    let ran = place.words("profile --nodes a -- /nonexistent");
    assert_eq!(ran.code, 127, "{ran:?}");
    assert!(ran.line().contains("/nonexistent"), "{ran:?}");
    // What ends the guest is told as ever.
    let ran = place.words("profile --nodes a,b -- fake-panic words");
    assert_eq!(ran.code, 134, "{ran:?}");
}
