//! Whole-system tests: real guests on real processes, seen from outside as a user sees them.
//!
//! A test makes a [`World`], runs the `coordinator` in it ([`Up`], [`Detached`], [`Running`]), and ends
//! with [`World::assert_clean`]. A world is everything a guest may leave something in: a runtime
//! directory, a home, a directory for temporary files, the mounts of this machine, and the processes
//! below this one. This process adopts orphans, so a process that outlives its guest is found here
//! whatever it did to its session, group or parent.
//!
//! Tests about nodes show that nodes were crossed: [`Status`] has the counters of each, and
//! [`Status::assert_spread`] that the CPUs are threads of different processes.
//!
//! Every wait has an end. Who waits in vain is told what the guests say of themselves; a test that
//! hangs all the same is ended, by its name, when its [`World`] has lasted too long.
//!
//! Guests fill a small machine and ends are timed: worlds exist one at a time.

mod halfway;
mod held;
mod leftovers;
mod long;
mod management;
mod netns;
mod process;
mod product;
mod report;
mod selftests;
mod status;
mod up;
mod upstream;
mod world;

pub use halfway::Halfway;
pub use held::Held;
pub use leftovers::{Process, descendants, processes_with};
pub use long::number;
pub use management::{Management, uml_mconsole};
pub use netns::{Host, Network, restrict};
pub use process::{Outcome, Spawned, parent, wait_until};
pub use product::{
    PLANTED_MISSING, UPSTREAM_MISSING, find, not_tested, planted, program, upstream_kernel,
};
pub use selftests::Selftests;
pub use status::{Counters, Faults, Node, Status, served};
pub use up::{Detached, Guest, Running, Up, on, python, text};
pub use upstream::{upstream, upstream_with};
pub use world::{Owner, PATH, World};

use std::time::Duration;

/// Longest wait for a guest to boot and run something short, in seconds. Boots take one second on an
/// idle machine; a test that needs this long reports a guest that hangs.
pub const SHORT_S_MAX: u64 = 60;

/// Longest time of a test, in seconds: more than all that its steps may take.
pub const TEST_S_MAX: u64 = 900;

/// What the product promises: a guest is gone this long after the event that ends it.
pub const END_MS_MAX: u64 = 2000;

/// The same of a guest that said this on stderr. Other programs may keep the machine from what it promises: so if it
/// took longer than that to boot, it may take as long to end.
pub fn end_max(said: &str) -> Duration {
    let ready = said.lines().find(|line| line.starts_with("ready "));
    let booted = ready.and_then(|line| line.strip_suffix(" s")?.rsplit(' ').next());
    let booted_s = booted.map_or(0.0, |time| time.parse().expect("a time"));
    Duration::from_millis(END_MS_MAX).max(Duration::from_secs_f64(booted_s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_may_take_as_long_as_a_slow_boot() {
        let ready = |time: &str| format!("boot  Linux  1.00 s\nready  span-1  {time} s\nmore\n");
        for (said, ms) in [
            (ready("0.91"), END_MS_MAX),
            (ready("5.26"), 5260),
            (String::new(), END_MS_MAX),
        ] {
            assert_eq!(end_max(&said), Duration::from_millis(ms));
        }
    }
}
