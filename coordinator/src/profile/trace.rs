//! Each fault on a time line, in Chrome's trace format: a process for each node, a thread for each
//! virtual CPU, and what a fault was about in its arguments.

use super::findings;
use super::recording::Recording;
use super::symbols::Symbols;
use serde_json::json;
use std::io::{self, Write};

/// Thread number of faults that no virtual CPU had; CPUs have their own numbers.
const HELPERS: u16 = u16::MAX;

pub(super) fn write(
    to: &mut impl Write,
    recording: &Recording,
    symbols: &Symbols,
) -> io::Result<()> {
    let (first_ns, _) = recording.span_ns();
    write!(to, "{{\"displayTimeUnit\":\"ns\",\"traceEvents\":[")?;
    let mut separator = "\n";
    let mut event = |event: serde_json::Value| {
        write!(to, "{}{event}", std::mem::replace(&mut separator, ",\n"))
    };
    for (node, spec) in recording.subject.nodes.iter().enumerate() {
        let name = format!("node {}", spec.name);
        event(json!({ "ph": "M", "name": "process_name", "pid": node, "args": { "name": name } }))?;
        let cpus = spec.cpus.iter().map(|cpu| (*cpu, format!("CPU {cpu}")));
        for (thread, name) in cpus.chain([(HELPERS, "helper threads".into())]) {
            event(json!({
                "ph": "M", "name": "thread_name", "pid": node, "tid": thread, "args": { "name": name },
            }))?;
        }
    }
    for recorded in &recording.faults {
        let fault = &recorded.fault;
        let from = fault
            .from
            .and_then(|from| recording.subject.nodes.get(usize::from(from)));
        event(json!({
            "ph": "X",
            "name": findings::instruction(fault, symbols),
            "cat": fault.kind,
            "pid": recorded.node,
            "tid": fault.cpu.unwrap_or(HELPERS),
            "ts": (fault.began_ns - first_ns) as f64 / 1e3,
            "dur": fault.waited_ns as f64 / 1e3,
            "args": {
                "kind": fault.kind,
                "page": format!("{:#x}", u64::from(fault.page) << 12),
                "address": format!("{:#x}", fault.address),
                "data": symbols.variable(fault.address),
                "instruction": format!("{:#x}", fault.instruction),
                "from": from.map(|node| &node.name),
                "user": fault.user.map(|user| format!("process {} at {:#x}", user.process, user.address)),
            },
        }))?;
    }
    writeln!(to, "\n]}}")
}

#[cfg(test)]
mod tests {
    use super::super::recording::{example, write as fault};
    use super::*;
    use serde_json::Value;

    #[test]
    fn each_fault_is_an_event_on_the_time_line_of_its_cpu() {
        let mut helper = fault(0x3000, 0x99);
        helper.cpu = None;
        let recording = example(&[(0, fault(0x2008, 0x104)), (1, helper)]);
        let symbols = Symbols::known(&[("work", 0x100, 0x20)], &[("lock", 0x2000, 16)]);
        let mut text = Vec::new();
        write(&mut text, &recording, &symbols).unwrap();
        let trace: Value = serde_json::from_slice(&text).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        let named = events.iter().filter(|event| event["ph"] == "M").count();
        assert_eq!(named, 2 * (1 + 2));
        let faults: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
        assert_eq!(faults.len(), 2);
        assert_eq!(faults[0]["name"], "work+0x4");
        assert_eq!(
            (&faults[0]["pid"], &faults[0]["tid"]),
            (&0.into(), &0.into())
        );
        assert_eq!(
            (faults[0]["ts"].as_f64(), faults[0]["dur"].as_f64()),
            (Some(0.0), Some(50.0))
        );
        assert_eq!(faults[0]["args"]["data"], "lock");
        assert_eq!(faults[0]["args"]["from"], "b");
        assert_eq!(faults[0]["cat"], "write");
        assert_eq!(faults[1]["ts"], 1000.0);
        assert_eq!(faults[1]["tid"], 65535);
    }

    #[test]
    fn a_recording_without_faults_is_a_trace_too() {
        let mut text = Vec::new();
        write(&mut text, &example(&[]), &Symbols::default()).unwrap();
        assert!(serde_json::from_slice::<Value>(&text).is_ok());
    }
}
