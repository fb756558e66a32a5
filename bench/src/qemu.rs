//! The same machines as QEMU describes them to a kernel, emulated (TCG): it tells the kernel how far memory is, and
//! takes nothing for it.

use crate::error::{Error, Result};
use crate::gauge::{Gauge, Outcome};
use crate::setting::Setting;
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

const PROGRAM: &str = "qemu-system-x86_64";
const MIB: u64 = 1 << 20;
/// Linux's own, on the kernel's command line, of a machine that has one node.
const FAKE: &str = "numa=fake=";

/// How a machine gets its nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// QEMU's firmware describes them.
    Numa,
    /// The kernel divides what it has.
    Fake,
}

impl Way {
    pub(crate) const ALL: [Way; 2] = [Way::Numa, Way::Fake];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Way::Numa => "QEMU -numa",
            Way::Fake => "numa=fake",
        }
    }
}

/// What came of a machine.
#[derive(Debug)]
pub(crate) enum Ran {
    Measured(Outcome),
    /// QEMU does not make such a machine, or its kernel has ended: why.
    Refused(String),
}

/// QEMU, and what it boots.
#[derive(Debug)]
pub(crate) struct Qemu {
    kernel: PathBuf,
    initramfs: PathBuf,
}

impl Qemu {
    /// `Err` if something is not installed: what.
    pub(crate) fn find(setting: &Setting) -> Result<std::result::Result<Qemu, String>> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|dir| dir.join(PROGRAM).is_file()) {
            return Ok(Err(format!("not installed: {PROGRAM}")));
        }
        let directory = std::env::var_os("SPAN_QEMU").map_or_else(
            || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/span-qemu")),
            PathBuf::from,
        );
        let kernel = directory.join("vmlinuz");
        if !kernel.is_file() {
            return Ok(Err(format!("not installed: {}", kernel.display())));
        }
        let initramfs = setting.work("gauge.cpio");
        let failed = |error| Error::Failed(format!("{}: {error}", initramfs.display()));
        let gauge = std::fs::read(setting.gauge()).map_err(failed)?;
        std::fs::write(&initramfs, archive("gauge", &gauge)).map_err(failed)?;
        Ok(Ok(Qemu { kernel, initramfs }))
    }

    /// The gauge as the first process of a machine that is as `described`.
    pub(crate) fn run(&self, way: Way, described: &Value, arguments: &[String]) -> Result<Ran> {
        let mut append = String::from("console=ttyS0 quiet panic=-1 rdinit=/gauge");
        if way == Way::Fake {
            append += &format!(" {FAKE}{}", parts(described).len());
        }
        append += &format!(" -- {}", arguments.join(" "));
        let mut command = Command::new(PROGRAM);
        command
            // One thread for all CPUs: with several, a CPU was seen to run code that another one was just changing (jump
            // labels), which ended its kernel.
            .args(["-accel", "tcg,thread=single", "-cpu", "max"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio"])
            .args(machine(way, described)?)
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initramfs)
            .args(["-append", &append]);
        let title = format!("gauge {} in {}", arguments[0], way.name());
        match Gauge::run(&title, command) {
            Ok(outcome) => Ok(Ran::Measured(outcome)),
            Err(Error::Failed(said)) => match refusal(&said).or_else(|| panic(&said)) {
                Some(why) => Ok(Ran::Refused(why)),
                None => Err(Error::Failed(said)),
            },
            Err(error) => Err(error),
        }
    }
}

/// What QEMU itself had to say, before there was a machine.
fn refusal(said: &str) -> Option<String> {
    let mut lines = said.lines();
    let line = lines.find_map(|line| line.trim().strip_prefix(PROGRAM)?.strip_prefix(": "))?;
    (!line.starts_with("terminating on signal")).then(|| format!("refused: {line}"))
}

/// What its kernel had to say in the end.
fn panic(said: &str) -> Option<String> {
    let at = said.find("Kernel panic")?;
    let line = said[at..].lines().next()?;
    Some(format!("ended: {line}"))
}

fn parts(described: &Value) -> &[Value] {
    described["numa"].as_array().map_or(&[], Vec::as_slice)
}

/// The options that make the machine.
fn machine(way: Way, described: &Value) -> Result<Vec<String>> {
    let nodes = parts(described);
    let wrong = || Error::Failed("a topology without nodes, CPUs or memory".into());
    let cpus = |node: &Value| node["cpus"].as_array().map_or(0, Vec::len);
    let memory_mib = |node: &Value| node["memory_bytes"].as_u64().unwrap_or(0) / MIB;
    let (count, sum_mib) = (
        nodes.iter().map(cpus).sum::<usize>(),
        nodes.iter().map(memory_mib).sum::<u64>(),
    );
    if count == 0 || sum_mib == 0 {
        return Err(wrong());
    }
    let sockets: Vec<usize> = nodes.iter().map(cpus).filter(|cpus| *cpus > 0).collect();
    // A socket for each node where that is possible, else one for each CPU.
    let even = sockets.iter().all(|cpus| *cpus == sockets[0]);
    let (sockets, cores) = if even {
        (sockets.len(), sockets[0])
    } else {
        (count, 1)
    };
    let mut options = vec![
        "-m".into(),
        format!("{sum_mib}M"),
        "-smp".into(),
        format!("{count},sockets={sockets},cores={cores},threads=1"),
    ];
    if way == Way::Fake {
        return Ok(options);
    }
    let mut option = |name: &str, value: String| options.extend([name.to_owned(), value]);
    let mut socket = 0;
    for (node, it) in nodes.iter().enumerate() {
        let size_mib = memory_mib(it);
        if size_mib > 0 {
            option(
                "-object",
                format!("memory-backend-ram,id=m{node},size={size_mib}M"),
            );
        }
        let memory = if size_mib > 0 {
            format!(",memdev=m{node}")
        } else {
            String::new()
        };
        option("-numa", format!("node,nodeid={node}{memory}"));
        let taken = if even { cpus(it).min(1) } else { cpus(it) };
        for _ in 0..taken {
            option("-numa", format!("cpu,node-id={node},socket-id={socket}"));
            socket += 1;
        }
    }
    for (from, row) in described["distances"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        for (to, far) in row.as_array().into_iter().flatten().enumerate() {
            if from != to {
                option("-numa", format!("dist,src={from},dst={to},val={far}"));
            }
        }
    }
    Ok(options)
}

/// An initramfs with one program (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).
fn archive(name: &str, program: &[u8]) -> Vec<u8> {
    const PROGRAM_MODE: u32 = 0o100_755;
    let mut archive = Vec::new();
    for (name, mode, data) in [(name, PROGRAM_MODE, program), ("TRAILER!!!", 0, &[])] {
        // Inode, mode, owner, group, links, time; size; devices; length of the name; a sum that is not used.
        let fields = [
            1,
            mode,
            0,
            0,
            1,
            0,
            data.len() as u32,
            0,
            0,
            0,
            0,
            name.len() as u32 + 1,
            0,
        ];
        archive.extend(b"070701");
        for field in fields {
            archive.extend(format!("{field:08x}").bytes());
        }
        archive.extend(name.bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

/// The nodes that a machine has, called as the host nodes that have their memory and CPUs.
pub(crate) fn nodes(described: &Value) -> Vec<String> {
    let name = |node: &Value| node["node"].as_str().unwrap_or_default().to_owned();
    parts(described).iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn described(nodes: &[(usize, u64)]) -> Value {
        let far = |from, to| if from == to { 10 } else { 20 + from + to };
        let all = 0..nodes.len();
        json!({
            "numa": nodes.iter().map(|(cpus, mib)| json!({
                "node": "x", "cpus": vec![0; *cpus], "memory_bytes": mib * MIB,
            })).collect::<Vec<_>>(),
            "distances": all.clone().map(|from| all.clone().map(|to| far(from, to)).collect())
                .collect::<Vec<Vec<usize>>>(),
        })
    }

    fn options(way: Way, nodes: &[(usize, u64)]) -> String {
        machine(way, &described(nodes)).unwrap().join(" ")
    }

    #[test]
    fn a_machine_is_made_as_it_is_described() {
        assert_eq!(
            options(Way::Numa, &[(2, 512), (2, 256)]),
            "-m 768M -smp 4,sockets=2,cores=2,threads=1 \
             -object memory-backend-ram,id=m0,size=512M -numa node,nodeid=0,memdev=m0 \
             -numa cpu,node-id=0,socket-id=0 \
             -object memory-backend-ram,id=m1,size=256M -numa node,nodeid=1,memdev=m1 \
             -numa cpu,node-id=1,socket-id=1 -numa dist,src=0,dst=1,val=21 -numa dist,src=1,dst=0,val=21"
        );
        let uneven = options(Way::Numa, &[(1, 64), (2, 64), (0, 64), (1, 0)]);
        for part in [
            "-smp 4,sockets=4,cores=1,threads=1",
            "-numa cpu,node-id=1,socket-id=2",
            "-numa node,nodeid=2,memdev=m2 -numa node,nodeid=3 -numa cpu,node-id=3,socket-id=3",
        ] {
            assert!(uneven.contains(part), "{uneven}");
        }
        assert!(!uneven.contains("node-id=2"), "{uneven}");
        assert_eq!(
            options(Way::Fake, &[(2, 512), (2, 256)]),
            "-m 768M -smp 4,sockets=2,cores=2,threads=1"
        );
        assert!(machine(Way::Numa, &described(&[(0, 64)])).is_err());
    }

    #[test]
    fn what_qemu_refuses_is_told_from_what_fails() {
        let said = "gauge placed in QEMU -numa: it ended early, with exit code 1\n  \
                    qemu-system-x86_64: -numa dist,src=0: no such node";
        let why = refusal(said).unwrap();
        assert_eq!(why, "refused: -numa dist,src=0: no such node");
        for other in ["panic", "qemu-system-x86_64: terminating on signal 15"] {
            assert_eq!(refusal(other), None);
        }
    }

    #[test]
    fn a_kernel_that_ends_says_why() {
        let said = "gauge placed in numa=fake: it ended early, with exit code 0\n  \
                    [    1.9] PKRU: 55555554\n  [    1.9] Kernel panic - not syncing: Fatal exception\n";
        let why = panic(said).unwrap();
        assert_eq!(why, "ended: Kernel panic - not syncing: Fatal exception");
        assert_eq!(panic("it ended early"), None);
    }

    #[test]
    fn an_archive_is_aligned_and_ends() {
        let archive = archive("gauge", b"12345");
        assert!(archive.starts_with(b"070701"));
        assert_eq!(&archive[110..116], b"gauge\0");
        assert_eq!(&archive[116..121], b"12345");
        assert_eq!(&archive[124..130], b"070701");
        assert!(archive.len().is_multiple_of(4));
    }
}
