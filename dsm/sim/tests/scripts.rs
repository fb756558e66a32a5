//! What failed once, and the interesting orders of events, step by step: dsm/tests/scripts.

use dsm_sim::script::{Recorder, Script, Unfit};
use dsm_sim::{Options, Sim, Size};
use std::path::PathBuf;

fn scripts() -> Vec<(String, String)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/scripts");
    let entries = std::fs::read_dir(&folder).expect("the folder of scripts");
    let mut scripts: Vec<(String, String)> = entries
        .map(|entry| entry.expect("an entry").path())
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("a script");
            (path.display().to_string(), text)
        })
        .collect();
    scripts.sort();
    scripts
}

fn parse(text: &str) -> Script {
    Script::parse(text).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_script_ends_as_it_says() {
    let scripts = scripts();
    assert!(scripts.len() >= 6);
    for (path, text) in scripts {
        let script = parse(&text);
        let outcome = script
            .replay(Unfit::Refuse)
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        let rule = outcome.breach.as_ref().map(|breach| breach.rule);
        assert_eq!(rule, script.expect, "{path}: {:?}", outcome.breach);
        assert!(outcome.steps >= 3, "{path} says nothing");
        let sound = script.sound().replay(Unfit::Skip).expect("nothing refused");
        assert_eq!(sound.breach, None, "{path} without its bugs");
        println!("{path}: {} steps, {rule:?}", outcome.steps);
    }
}

#[test]
fn a_script_is_read_as_it_is_written() {
    for (path, text) in scripts() {
        assert_eq!(parse(&text).to_string(), text, "{path}");
    }
}

/// A failing run can be written down, replayed and made shorter, and fails in the same way.
#[test]
fn a_failing_run_becomes_a_short_script() {
    for bug in ["early-ack", "lost-sharer"] {
        let options = Options {
            plant: vec![bug.to_owned()],
            unchecked_answers: true,
            ..Options::new(Size::Small, 5)
        };
        let path = std::env::temp_dir().join(format!("dsm-sim-{}-{bug}", std::process::id()));
        let mut sim: Sim = Sim::recorded(options.params().expect("a bug"), |shape| {
            let file = std::fs::File::create(&path).expect("a file");
            Some(Recorder::new(shape, Box::new(file)).expect("writable"))
        });
        let breach = sim.run().expect_err("a planted bug");
        let written = std::fs::read_to_string(&path).expect("the recording");
        std::fs::remove_file(&path).expect("ours");
        let script = parse(&written);
        let replayed = script.replay(Unfit::Refuse).expect("every step fits");
        assert_eq!(replayed.breach, Some(breach.clone()));
        let short = script.shrunk();
        assert!(short.len() < script.len() / 2, "{} steps", short.len());
        assert_eq!(short.expect, Some(breach.rule));
        let outcome = short.replay(Unfit::Skip).expect("nothing refused");
        assert_eq!(outcome.breach.map(|b| b.rule), Some(breach.rule));
    }
}

#[test]
fn nonsense_is_refused_with_its_line() {
    let head = "nodes 2 threads 1 pages 1\nhomes p0 n0\nhold 1 1\n";
    for (text, line, said) in [
        ("", 0, "ends before"),
        ("nodes 2 threads x pages 1\n", 1, "`x` is no number"),
        ("plant weeds\n", 1, "no bug called `weeds`"),
        ("steps\n0 n2.0 resume\n", 5, "no node n2"),
        ("steps\n0 n0.1 resume\n", 5, "no thread n0.1"),
        ("steps\n0 n0 protected p1\n", 5, "no page p1"),
        ("steps\n0 n0.0 access p0\n", 5, "not pairs"),
        ("steps\n0 n0 dances\n", 5, "not understood"),
    ] {
        let whole = match line {
            0 | 1 => text.to_owned(),
            _ => format!("{head}{text}"),
        };
        let error = Script::parse(&whole).expect_err(text).to_string();
        assert!(error.starts_with(&format!("line {line}: ")), "{error}");
        assert!(error.contains(said), "{error}");
    }
    let unfit = parse(&format!("{head}steps\n0 n0 protected p0\n"));
    let error = unfit.replay(Unfit::Refuse).expect_err("nothing is ordered");
    assert_eq!(
        error.to_string(),
        "step 1, `0 n0 protected p0`, is not possible where it stands"
    );
}
