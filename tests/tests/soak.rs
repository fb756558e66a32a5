//! All nodes under load for as long as one likes: `SPAN_SOAK_S`; half an hour is the full test.

use span_tests::{Up, World, number};
use std::time::Duration;

/// Starting and stopping the stressors.
const AROUND_S: u64 = 120;

#[test]
fn stress_that_checks_itself() {
    let seconds = number("SPAN_SOAK_S", 20);
    let world = World::lasting(Duration::from_secs(seconds + 3 * AROUND_S));
    let guest = Up::three(&world).detach("soak");
    guest.status().assert_spread();
    let (before, log) = (guest.status(), guest.logs());
    let stress = format!(
        "stress-ng --cpu 0 --vm 2 --vm-bytes 64M --fork 2 --futex 2 --pipe 2 --switch 2 \
         --verify --timeout {seconds} --metrics-brief 2>&1"
    );
    let outcome = guest
        .exec_within(&["sh", "-c", &stress], seconds + AROUND_S)
        .expect(0);
    let after = guest.status();
    println!("{}\n{}", outcome.text(), after.faults_since(&before));
    assert!(outcome.text().contains("successful run completed"));
    after.assert_moved(&before);
    guest.assert_quiet_since(&log);
    guest.down().expect(0);
    world.assert_clean();
}
