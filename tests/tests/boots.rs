//! To a program and out again, in a row.

use span_tests::{SHORT_S_MAX, Up, World, number};
use std::time::{Duration, Instant};

/// `SPAN_BOOTS`; the full test is 200.
fn count() -> u32 {
    number("SPAN_BOOTS", 5)
        .try_into()
        .expect("a number of boots")
}

#[test]
fn boots_in_a_row() {
    let world = World::lasting(Duration::from_secs(SHORT_S_MAX) * count());
    let mut times = Vec::new();
    for number in 1..=count() {
        let begin = Instant::now();
        let outcome = Up::three(&world).run(&["sh", "-c", "nproc; exit 3"]);
        assert_eq!(
            (outcome.code, outcome.text().as_str()),
            (3, "3"),
            "boot {number}: {}",
            outcome.stderr
        );
        world.assert_clean();
        times.push(begin.elapsed().as_millis());
    }
    times.sort_unstable();
    println!(
        "{} boots, median {} ms, longest {} ms",
        times.len(),
        times[times.len() / 2],
        times.last().unwrap_or(&0)
    );
}
