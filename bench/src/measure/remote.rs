//! Faults on pages that another node has, against what this host takes to move a page at all.

use crate::error::{Error, Result};
use crate::figures::{Figure, Unit};
use crate::samples::{Samples, less, median};
use crate::setting::Setting;
use span_tests::{Faults, Node, Status};
use std::collections::BTreeMap;

const GROUP: &str = "Remote faults, two nodes";
const UNIT: Unit = Unit::Microseconds;

/// The gauge's floors, and what they are called here: a page that is handed over, and one that is missed.
const FLOORS: [(&str, &str); 2] = [("memory", "shared memory"), ("socket", "unix socket")];
const FAULT_FLOOR: (&str, &str) = ("fault", "unix socket in a fault handler");
/// Of a fault that asks another node, against the same by a unix socket.
const RATIO_MAX: f64 = 1.3;

/// What the kernel itself reads.
const KERNEL: &str = "kernel";

/// The gauge's kinds of faults, and how a node counts them.
type Kind = (&'static str, fn(&Faults) -> u64);

const KINDS: [Kind; 4] = [
    ("read", |faults| faults.read),
    ("write", |faults| faults.write),
    ("upgrade", |faults| faults.upgrade),
    LOCAL,
];
/// Those that ask another node.
pub(super) const REMOTE: [&str; 3] = ["read", "write", "upgrade"];
/// A fault with everything but another node.
const LOCAL: Kind = ("local", |faults| faults.local);

/// Of the accesses that are timed, so many at least must have been what they are shown as.
const OF_KIND_MIN: f64 = 0.95;

/// The node of CPU 1, which the gauge faults on.
const NODES: &str = "a,b";
const FAULTING: usize = 1;

#[derive(Debug, Default)]
struct Measured {
    floors: ByKind,
    floors_apart: ByKind,
    /// As the program sees them.
    faults: ByKind,
    /// As the node has counted: mean wait, a value for each repetition.
    waits: ByKind,
}

pub(super) type ByKind = BTreeMap<&'static str, Samples>;

pub(crate) fn measure(setting: &Setting) -> Result<Vec<Figure>> {
    let mut measured = Measured::default();
    setting.repeat("remote faults", || repetition(setting, &mut measured))?;
    Ok(figures(&measured))
}

fn repetition(setting: &Setting, measured: &mut Measured) -> Result<()> {
    let effort = setting.effort.remote;
    let (pages, rounds) = (effort.0.to_string(), effort.1.to_string());
    let turns = setting.effort.floor.to_string();
    let work: [&[&str]; 3] = [
        &["memory", &setting.khz, &turns],
        &["socket", &setting.khz, &turns],
        &["fault", &setting.khz, &pages, &rounds],
    ];
    for ((floor, _), arguments) in all_floors().into_iter().zip(work) {
        let outcome = setting.host(arguments)?;
        let samples = measured.floors.entry(floor).or_default();
        samples.add(outcome.samples(floor)?);
        if setting.host_cpus > 1 {
            let outcome = setting.host(&[arguments, &["apart"]].concat())?;
            let samples = measured.floors_apart.entry(floor).or_default();
            samples.add(outcome.samples(floor)?);
        }
    }
    faults(
        setting,
        &[],
        effort,
        &mut measured.faults,
        &mut measured.waits,
    )?;
    let module = setting.module("gauge.ko")?;
    let work = ["kernel-faults", &setting.khz, &pages, &rounds, &module];
    let mut counted = Waits::default();
    let outcome = setting.span_with_marks(NODES, &[], &work, |_, before, after| {
        counted.add(before, after);
    })?;
    let samples = outcome.samples(KERNEL)?;
    counted.check(KERNEL, |faults| faults.read, samples.len())?;
    measured.faults.entry(KERNEL).or_default().add(samples);
    Ok(())
}

fn all_floors() -> [(&'static str, &'static str); 3] {
    [FLOORS[0], FLOORS[1], FAULT_FLOOR]
}

/// The faults of each kind on so many pages, as often, in a guest with these options.
pub(super) fn faults(
    setting: &Setting,
    options: &[&str],
    (pages, rounds): (u32, u32),
    faults: &mut ByKind,
    waits: &mut ByKind,
) -> Result<()> {
    let (pages, rounds) = (pages.to_string(), rounds.to_string());
    let mut counted: BTreeMap<String, Waits> = BTreeMap::new();
    let outcome = setting.span_with_marks(
        NODES,
        options,
        &["remote", &setting.khz, &pages, &rounds],
        |name, before, after| counted.entry(name.into()).or_default().add(before, after),
    )?;
    // What it takes to time an access that is no fault.
    let resident = median(&outcome.samples("resident")?).unwrap_or(0.0);
    for (name, of_kind) in KINDS {
        let samples = outcome.samples(name)?;
        let counted = counted.remove(name).unwrap_or_default();
        counted.check(name, of_kind, samples.len())?;
        let net = less(&samples, resident);
        faults.entry(name).or_default().add(net);
        if let Some(mean_ns) = counted.mean_ns() {
            waits.entry(name).or_default().add(vec![mean_ns]);
        }
    }
    Ok(())
}

/// Faults of a node, and how long its CPUs waited in them.
#[derive(Debug, Default)]
struct Waits {
    faults: Faults,
    wait_ns: u64,
}

impl Waits {
    fn add(&mut self, before: &Status, after: &Status) {
        let (before, after) = (&before.nodes[FAULTING], &after.nodes[FAULTING]);
        let more = |of: fn(&Node) -> u64| of(after).saturating_sub(of(before));
        self.faults.read += more(|node| node.faults.read);
        self.faults.write += more(|node| node.faults.write);
        self.faults.upgrade += more(|node| node.faults.upgrade);
        self.faults.local += more(|node| node.faults.local);
        self.wait_ns += more(|node| node.counters.fault_wait_ns);
    }

    /// Times are worth something only if they are of the faults that they are named after.
    fn check(&self, name: &str, of_kind: fn(&Faults) -> u64, timed: usize) -> Result<()> {
        let counted = of_kind(&self.faults);
        if counted as f64 >= timed as f64 * OF_KIND_MIN {
            return Ok(());
        }
        Err(Error::Failed(format!(
            "{timed} {name} faults were timed, but the node counted {counted}: {:?}",
            self.faults
        )))
    }

    fn mean_ns(&self) -> Option<f64> {
        let Faults {
            read,
            write,
            upgrade,
            local,
        } = self.faults;
        let faults = read + write + upgrade + local;
        (faults > 0).then(|| self.wait_ns as f64 / faults as f64)
    }
}

fn figures(measured: &Measured) -> Vec<Figure> {
    let of = |map: &ByKind, name: &str| map.get(name).cloned().unwrap_or_default();
    let against_floors = |title: String, span: &Samples| {
        FLOORS.map(|(floor, against)| {
            let floor = of(&measured.floors, floor);
            Figure::compared(GROUP, title.clone(), UNIT, against, &floor, span)
        })
    };
    let mut figures = Vec::new();
    let against_fault = |title: String, span: &Samples| {
        let (floor, against) = FAULT_FLOOR;
        let floor = of(&measured.floors, floor);
        Figure::compared(GROUP, title, UNIT, against, &floor, span)
    };
    let kernel = of(&measured.faults, KERNEL);
    let title = "read fault in the kernel".to_string();
    figures.push(against_fault(title, &kernel).aim(RATIO_MAX));
    for name in REMOTE {
        let (title, span) = (format!("{name} fault"), of(&measured.faults, name));
        let figure = against_fault(title.clone(), &span);
        figures.push(match name {
            "read" => figure.aim(RATIO_MAX),
            _ => figure,
        });
        figures.extend(against_floors(title, &span));
    }
    for name in REMOTE {
        let span = of(&measured.waits, name);
        figures.extend(against_floors(
            format!("{name} fault, mean wait for the pager"),
            &span,
        ));
    }
    let (local, _) = LOCAL;
    let (faults, waits) = (of(&measured.faults, local), of(&measured.waits, local));
    figures.push(Figure::alone(
        GROUP,
        "fault that asks nobody",
        UNIT,
        &faults,
    ));
    let name = "fault that asks nobody, mean wait for the pager";
    figures.push(Figure::alone(GROUP, name, UNIT, &waits));
    for (floor, name) in all_floors() {
        let samples = of(&measured.floors_apart, floor);
        let name = format!("floor on two host CPUs: {name}");
        figures.push(Figure::floor(GROUP, name, UNIT, &samples));
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::sample_node;

    #[test]
    fn waits_are_those_of_the_node_that_faults() {
        let status = |faults: u64, wait_ns: u64| -> Status {
            let node = |factor: u64| {
                let mut node = sample_node();
                node["faults"]["read"] = (faults * factor).into();
                node["counters"]["fault_wait_ns"] = (wait_ns * factor).into();
                node
            };
            serde_json::from_value(serde_json::json!({
                "name": "x", "state": "running", "kernel": null, "nodes": [node(50), node(1)],
                "started": "",
            }))
            .unwrap()
        };
        let mut waits = Waits::default();
        assert_eq!(waits.mean_ns(), None);
        waits.add(&status(10, 1000), &status(20, 5000));
        waits.add(&status(30, 6000), &status(40, 8000));
        assert_eq!(waits.mean_ns(), Some(300.0));
        let (name, of_kind) = KINDS[0];
        assert!(waits.check(name, of_kind, 21).is_ok());
        assert!(waits.check(name, of_kind, 22).is_err());
        let (name, of_kind) = LOCAL;
        let error = waits.check(name, of_kind, 20).unwrap_err().to_string();
        assert!(error.starts_with("20 local faults were timed, but the node counted 0"));
    }
}
