//! `coordinator status --json`, as documented.

use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::Path;

#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    pub name: String,
    pub state: String,
    pub kernel: Option<String>,
    pub nodes: Vec<Node>,
    pub started: String,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Node {
    pub name: String,
    pub address: String,
    pub pid: Option<i32>,
    pub cpus: Vec<Cpu>,
    /// How its pages are protected.
    pub paging: Option<String>,
    pub mem_mib: u64,
    pub resident_mib: u64,
    pub faults: Faults,
    pub pages_in: u64,
    pub pages_out: u64,
    pub counters: Counters,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Cpu {
    pub cpu: u16,
    pub tid: Option<i32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Faults {
    pub read: u64,
    pub write: u64,
    pub upgrade: u64,
    pub local: u64,
}

impl Faults {
    /// Those that asked another node.
    pub fn remote(&self) -> u64 {
        self.read + self.write + self.upgrade
    }
}

/// Of the rest, what somebody here looks at.
#[derive(Debug, Clone, Deserialize)]
pub struct Counters {
    /// Pages that were asked for before anybody missed them.
    pub pages_ahead: u64,
    /// Time that virtual CPUs waited in faults.
    pub fault_wait_ns: u64,
    /// Host calls that were executed here for another node.
    pub host_calls_served: u64,
    /// What the node's memory file takes of its host's memory.
    pub memory_bytes: u64,
    /// Pages that are other nodes' own, and how many there may be, if that is limited.
    pub foreign_pages: u64,
    pub foreign_pages_max: u64,
    pub evicted_copies: u64,
    pub evicted_pages: u64,
}

impl Status {
    pub fn node(&self, name: &str) -> &Node {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .unwrap_or_else(|| panic!("no node {name} in {self:?}"))
    }

    /// The guest process of a node.
    pub fn pid(&self, name: &str) -> i32 {
        self.node(name).pid.expect("a guest process")
    }

    /// Expects that every node is a process of its own, and that each CPU is a thread of its node's.
    /// Only where the numbers are those of this machine and namespace.
    #[track_caller]
    pub fn assert_spread(&self) {
        let pids: BTreeSet<_> = self.nodes.iter().map(|node| node.pid).collect();
        assert_eq!(pids.len(), self.nodes.len(), "{self:?}");
        let mut next = 0;
        for node in &self.nodes {
            assert!(!node.cpus.is_empty(), "{self:?}");
            for cpu in &node.cpus {
                assert_eq!(cpu.cpu, next, "{self:?}");
                next += 1;
                let (pid, tid) = (node.pid.expect("a pid"), cpu.tid.expect("a thread"));
                let task = format!("/proc/{pid}/task/{tid}");
                assert!(Path::new(&task).exists(), "{task} is not there: {self:?}");
            }
        }
    }

    /// A line with the faults that asked another node since `before`, by node.
    pub fn faults_since(&self, before: &Status) -> String {
        let mut line = String::from("faults that asked another node:");
        for (now, then) in self.nodes.iter().zip(&before.nodes) {
            let count = now.faults.remote() - then.faults.remote();
            line += &format!(" {} {count}", now.name);
        }
        line
    }

    /// Expects that since `before` every node fetched pages from others and gave some away.
    #[track_caller]
    pub fn assert_moved(&self, before: &Status) {
        for (now, then) in self.nodes.iter().zip(&before.nodes) {
            assert!(
                now.pages_in > then.pages_in && now.pages_out > then.pages_out,
                "no pages moved to and from {}:\n{then:?}\n{now:?}",
                now.name
            );
            assert!(
                now.faults.remote() > then.faults.remote(),
                "no faults on {}",
                now.name
            );
        }
    }
}

/// Host calls that a node has executed for others.
pub fn served(status: &Status, node: &str) -> u64 {
    status.node(node).counters.host_calls_served
}
