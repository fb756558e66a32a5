//! Links that are made slow, against what they are to cost.

use crate::error::{Error, Result};
use crate::figures::{Figure, Unit};
use crate::samples::{Samples, median};
use crate::setting::Setting;
use serde_json::Value;

const GROUP: &str = "Slow links, two nodes: added by the link, against what was asked for";
const CONFIGURED: &str = "configured";

const US: f64 = 1e3;

/// Latencies, one way, and bandwidths.
const LATENCIES_US: [u32; 5] = [20, 50, 200, 1000, 5000];
const BANDWIDTHS_MBIT: [u32; 4] = [10, 100, 300, 1000];
const JITTER_US: u32 = 100;

/// Latencies with which a program faults on pages that the other node has.
const FAULT_LATENCIES_US: [u32; 3] = [50, 200, 1000];
const FAULT_PAGES: &str = "128";
const FAULT_KIND: &str = "read";

/// What a measured link has of one direction.
const WAYS: [(&str, &str); 2] = [
    ("/links/0/latency_ns", "to a node that waits for it"),
    ("/links/0/asleep_ns", "to a node that sleeps"),
];
const BANDWIDTH: &str = "/links/0/bandwidth_bps";

/// What a link adds is to be within a share of what it is to add, or so much, whichever is more.
const OFF_MAX: f64 = 0.05;
const OFF_NS_MAX: f64 = 5.0 * US;

/// Where the ratio of medians is to be.
pub(super) fn ratio_max(configured: &Samples) -> f64 {
    let configured_ns = configured.summary().map_or(f64::MAX, |of| of.median);
    1.0 + OFF_MAX.max(OFF_NS_MAX / configured_ns)
}

/// What was asked for, and what it was.
#[derive(Debug, Default, Clone)]
struct Pair {
    configured: Samples,
    measured: Samples,
}

impl Pair {
    fn add(&mut self, configured: f64, measured: f64) {
        self.configured.add(vec![configured]);
        self.measured.add(vec![measured]);
    }

    /// A time that is added.
    fn added(&self, name: String) -> Figure {
        self.figure(name, Unit::Microseconds)
            .aim(ratio_max(&self.configured))
    }

    fn figure(&self, name: String, unit: Unit) -> Figure {
        Figure::compared(
            GROUP,
            name,
            unit,
            CONFIGURED,
            &self.configured,
            &self.measured,
        )
    }
}

pub(crate) fn measure(setting: &Setting) -> Result<Vec<Figure>> {
    let mut latencies = vec![WAYS.map(|_| Pair::default()); LATENCIES_US.len()];
    let mut jitter = WAYS.map(|_| Pair::default());
    let mut bandwidths = vec![Pair::default(); BANDWIDTHS_MBIT.len()];
    let mut free = WAYS.map(|_| Samples::default());
    let mut error = Samples::default();
    setting.repeat("slow links", || {
        let guest = setting.guest("a,b", 1, &[])?;
        let at_first_ns = one_way(&guest.measure()?)?;
        for (free, ns) in free.iter_mut().zip(at_first_ns) {
            free.add(vec![ns]);
        }
        for (latency_us, pairs) in LATENCIES_US.iter().zip(&mut latencies) {
            let before_ns = one_way(&guest.measure()?)?;
            guest.set(&["--latency", &format!("{latency_us}us")])?;
            let slow_ns = one_way(&guest.measure()?)?;
            guest.set(&["--latency", "0"])?;
            // What else the machine does changes meanwhile.
            let after_ns = one_way(&guest.measure()?)?;
            for (way, pair) in pairs.iter_mut().enumerate() {
                let fast_ns = f64::midpoint(before_ns[way], after_ns[way]);
                pair.add(f64::from(*latency_us) * US, slow_ns[way] - fast_ns);
            }
        }
        let latency = format!("{}us", 5 * JITTER_US);
        guest.set(&["--latency", &latency, "--jitter", &format!("{JITTER_US}us")])?;
        let slow_ns = one_way(&guest.measure()?)?;
        for (way, pair) in jitter.iter_mut().enumerate() {
            let added_ns = slow_ns[way] - at_first_ns[way];
            pair.add(f64::from(5 * JITTER_US) * US, added_ns);
        }
        error.add(vec![guest.error_ns()?]);
        guest.set(&["--latency", "0", "--jitter", "0"])?;
        for (mbit, pair) in BANDWIDTHS_MBIT.iter().zip(&mut bandwidths) {
            guest.set(&["--bandwidth", &format!("{mbit}M")])?;
            let measured = number(&guest.measure()?, BANDWIDTH)?;
            pair.add(f64::from(*mbit) * 1e6, measured);
        }
        guest.end()
    })?;
    let mut faults = vec![Pair::default(); FAULT_LATENCIES_US.len()];
    setting.repeat("faults over slow links", || {
        let fast_ns = fault_ns(setting, 0)?;
        for (latency_us, pair) in FAULT_LATENCIES_US.iter().zip(&mut faults) {
            let slow_ns = fault_ns(setting, *latency_us)?;
            pair.add(2.0 * f64::from(*latency_us) * US, slow_ns - fast_ns);
        }
        Ok(())
    })?;

    let us = Unit::Microseconds;
    let mut figures = Vec::new();
    for (way, (_, to)) in WAYS.iter().enumerate() {
        let name = format!("one way {to}, as it is");
        figures.push(Figure::alone(GROUP, name, us, &free[way]));
        for (latency_us, pairs) in LATENCIES_US.iter().zip(&latencies) {
            let name = format!("one way {to}, latency {latency_us} µs");
            figures.push(pairs[way].added(name));
        }
        let name = format!("one way {to}, latency {} ± {JITTER_US} µs", 5 * JITTER_US);
        figures.push(jitter[way].added(name));
    }
    figures.push(Figure::alone(
        GROUP,
        "a message is taken in too early or late by",
        us,
        &error,
    ));
    for (mbit, pair) in BANDWIDTHS_MBIT.iter().zip(&bandwidths) {
        figures.push(pair.figure(format!("bandwidth {mbit} Mbit/s"), Unit::Megabits));
    }
    for (latency_us, pair) in FAULT_LATENCIES_US.iter().zip(&faults) {
        let name = format!("read fault, latency {latency_us} µs there and back");
        figures.push(pair.added(name));
    }
    Ok(figures)
}

/// What a message takes each way that is looked at.
fn one_way(measured: &Value) -> Result<[f64; WAYS.len()]> {
    let mut ns = [0.0; WAYS.len()];
    for (ns, (at, _)) in ns.iter_mut().zip(WAYS) {
        *ns = number(measured, at)?;
    }
    Ok(ns)
}

/// A number of what was measured.
fn number(measured: &Value, at: &str) -> Result<f64> {
    let value = measured.pointer(at).and_then(Value::as_f64);
    value.ok_or_else(|| Error::Failed(format!("nothing measured {at}: {measured}")))
}

/// What a program waits for a page that the other node has.
fn fault_ns(setting: &Setting, latency_us: u32) -> Result<f64> {
    let arguments = ["remote", &setting.khz, FAULT_PAGES, "1"];
    let outcome = setting.span_slow("a,b", &format!("{latency_us}us"), &arguments)?;
    let samples = outcome.samples(FAULT_KIND)?;
    median(&samples).ok_or_else(|| Error::Failed("nothing was timed".into()))
}
