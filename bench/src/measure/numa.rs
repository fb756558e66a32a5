//! What it is good for that the guest knows which memory is near: faults of programs with NUMA nodes and without, and
//! work that stays where its memory is.

use super::counts::{difference, remote_faults};
use crate::error::Result;
use crate::figures::{Figure, Unit};
use crate::samples::Samples;
use crate::setting::{NODE_MEMORY_MIB, Setting};
use span_plot::Bars;

const FAULTS: &str = "NUMA, two nodes with two CPUs each: faults that ask another node, against a guest without NUMA nodes";
const PLACEMENT: &str =
    "NUMA, two nodes with a CPU each: work on memory that is near, against one node with one CPU";
const HOST: &str = "NUMA, the same stencils on the host: two threads, against one";
const OFF: &str = "numa=off";
const ONE: &str = "one node";

/// With and without.
const OPTIONS: [&[&str]; 2] = [&["--append", "numa=off"], &[]];

/// Half the time would be ideal, on two CPUs of the host that are free.
const STENCIL_RATIO_MAX: f64 = 1.0 / 1.8;
const ALONE_RATIO_MAX: f64 = 1.0 / 0.98;

const THREADS: &str = "2";

const PAGES_PER_MIB: u32 = 256;

/// Rows of a database, by processes that lock each other out.
const SERVER: &str = "import os, sqlite3, tempfile
path = os.path.join(tempfile.mkdtemp(dir='/tmp'), 'rows.db')
first = sqlite3.connect(path, timeout=60)
first.execute('create table rows (worker, number, text)')
first.commit()
first.close()
pids = []
for worker in range(4):
    pid = os.fork()
    if not pid:
        database = sqlite3.connect(path, timeout=60)
        for number in range(50):
            database.execute('insert into rows values (?, ?, ?)', (worker, number, 'x' * 200))
            database.commit()
            database.execute('select count(*) from rows where worker = ?', (worker,)).fetchone()
        os._exit(0)
    pids.append(pid)
assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
";

pub(crate) fn measure(setting: &Setting) -> Result<Vec<Figure>> {
    let mut figures = placement(setting)?;
    figures.extend(faults(setting)?);
    Ok(figures)
}

fn placement(setting: &Setting) -> Result<Vec<Figure>> {
    let effort = &setting.effort;
    let mut figures = stencil(setting, effort.stencil)?;
    figures.extend(stencil(setting, effort.large_stencil)?);
    figures.push(alone(setting, effort.large_stencil)?);
    // The host's below the guests'.
    figures.sort_by_key(|figure| figure.group() == HOST);
    Ok(figures)
}

/// Rounds on fields of so many pages.
fn stencil(setting: &Setting, (pages, rounds): (u32, u32)) -> Result<Vec<Figure>> {
    let mib = pages / PAGES_PER_MIB;
    // Both fields on one node, and room for the rest of a guest.
    let memory_mib = 2 * mib as usize + NODE_MEMORY_MIB;
    let (pages, rounds) = (pages.to_string(), rounds.to_string());
    let work = |threads| ["stencil", &setting.khz, threads, &pages, &rounds];
    let (mut one, mut two) = (Samples::default(), Samples::default());
    let mut host = [Samples::default(), Samples::default()];
    // As on hosts of their own; where there is one CPU only, there is nothing to choose.
    let apart = setting.apart.as_deref();
    let apart: Vec<&str> = apart
        .iter()
        .flat_map(|cpus| ["--host-cpus", cpus])
        .collect();
    setting.repeat(&format!("a stencil on {mib} MiB"), || {
        let outcome = setting.span_with_memory(memory_mib, &[], "a", &work("1"))?;
        one.add(outcome.samples("stencil")?);
        let outcome = setting.span_with_memory(memory_mib, &apart, "a,b", &work(THREADS))?;
        two.add(outcome.samples("stencil")?);
        if setting.host_cpus > 1 {
            for (threads, samples) in ["1", THREADS].into_iter().zip(&mut host) {
                samples.add(setting.host(&work(threads))?.samples("stencil")?);
            }
        }
        Ok(())
    })?;
    let ms = Unit::Milliseconds;
    let name = format!("a stencil on {mib} MiB, a thread on each node");
    let mut figures =
        vec![Figure::compared(PLACEMENT, name, ms, ONE, &one, &two).aim(STENCIL_RATIO_MAX)];
    if setting.host_cpus > 1 {
        let name = format!("a stencil on {mib} MiB, two threads");
        let [one, two] = &host;
        figures.push(Figure::compared(HOST, name, ms, "one thread", one, two));
    }
    Ok(figures)
}

/// A process that asks nobody for anything, on one node and on the second of two.
fn alone(setting: &Setting, (pages, rounds): (u32, u32)) -> Result<Figure> {
    let memory_mib = (pages / PAGES_PER_MIB) as usize + NODE_MEMORY_MIB;
    let (pages, rounds) = (pages.to_string(), rounds.to_string());
    let (mut one, mut second) = (Samples::default(), Samples::default());
    setting.repeat("work near its memory", || {
        for (nodes, cpu, samples) in [("a", "0", &mut one), ("a,b", "1", &mut second)] {
            let work = ["alone", &setting.khz, cpu, &pages, &rounds];
            let outcome = setting.span_with_memory(memory_mib, &[], nodes, &work)?;
            samples.add(outcome.samples("alone")?);
        }
        Ok(())
    })?;
    let (name, ms) = ("a process on the second node", Unit::Milliseconds);
    Ok(Figure::compared(PLACEMENT, name, ms, ONE, &one, &second).aim(ALONE_RATIO_MAX))
}

/// A name, and what is run.
fn workloads(setting: &Setting) -> Result<[(&'static str, Vec<String>); 5]> {
    let source = setting.source()?;
    let shell = |script: String| ["sh", "-c", &script].map(String::from).to_vec();
    let (khz, gauge) = (&setting.khz, setting.gauge());
    let (pages, rounds) = setting.effort.stencil;
    Ok([
        (
            "compiling, four at a time",
            shell(format!(
                "for n in 1 2 3 4; do echo $n; done | xargs -P4 -I{{}} gcc -O1 -c {source} -o /tmp/{{}}.o"
            )),
        ),
        (
            "messages of ten pairs",
            shell(format!("exec {gauge} messages {khz} 10 200")),
        ),
        (
            "a stencil of four threads",
            shell(format!("exec {gauge} stencil {khz} 4 {pages} {rounds}")),
        ),
        (
            "a database of four processes",
            ["python3", "-c", SERVER].map(String::from).to_vec(),
        ),
        (
            "fork and exec on four CPUs",
            shell(format!(
                "for c in 0 1 2 3; do taskset -c $c sh -c 'for i in $(seq 15); do {gauge} nothing; done' & done; wait"
            )),
        ),
    ])
}

/// Plots of these figures, by name: faults with NUMA nodes and without, times near the memory and on one node.
pub(crate) fn plots(figures: &[Figure]) -> Result<Vec<(&'static str, String)>> {
    let of = |group: &str| -> Vec<Bars> {
        let figures = figures.iter().filter(|figure| figure.group() == group);
        let bars = figures.filter_map(|figure| {
            let (theirs, span) = figure.medians();
            Some(Bars {
                name: figure.name().into(),
                values: vec![theirs?, span?],
            })
        });
        bars.collect()
    };
    let mut plots = Vec::new();
    for (file, group, title, unit, sides) in [
        (
            "numa-faults",
            FAULTS,
            "Faults that ask the other of two nodes",
            Unit::Faults,
            [OFF, "NUMA nodes"],
        ),
        (
            "numa-placement",
            PLACEMENT,
            "Work on memory that is near",
            Unit::Milliseconds,
            [ONE, "two nodes"],
        ),
    ] {
        let groups = of(group);
        if !groups.is_empty() {
            plots.push((file, span_plot::bars(title, unit.name(), &sides, &groups)?));
        }
    }
    Ok(plots)
}

fn faults(setting: &Setting) -> Result<Vec<Figure>> {
    let workloads = workloads(setting)?;
    let none = [Samples::default(), Samples::default()];
    let mut counted = vec![none; workloads.len()];
    setting.repeat("faults with NUMA nodes and without", || {
        for (which, options) in OPTIONS.iter().enumerate() {
            let guest = setting.guest("a,b", 2, options)?;
            for ((_, argv), counted) in workloads.iter().zip(&mut counted) {
                // Once for files that nobody has read yet.
                guest.exec(argv)?;
                let before = setting.status()?;
                guest.exec(argv)?;
                let after = setting.status()?;
                counted[which].add(vec![difference(&before, &after, remote_faults)]);
            }
            guest.end()?;
        }
        Ok(())
    })?;
    let figure = |((name, _), [off, on]): (&(&'static str, _), &[Samples; 2])| {
        Figure::compared(FAULTS, *name, Unit::Faults, OFF, off, on).aim(1.0)
    };
    Ok(workloads.iter().zip(&counted).map(figure).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_group_that_was_measured_has_a_plot() {
        let mut samples = Samples::default();
        samples.add(vec![3.0]);
        let figure =
            |group, unit| Figure::compared(group, "messages", unit, OFF, &samples, &samples);
        assert!(plots(&[]).unwrap().is_empty());
        let figures = [
            figure(FAULTS, Unit::Faults),
            figure(PLACEMENT, Unit::Milliseconds),
        ];
        let plots = plots(&figures).unwrap();
        assert_eq!(plots.len(), 2);
        assert!(plots[0].1.contains("numa=off") && plots[1].1.contains("one node"));
    }
}
