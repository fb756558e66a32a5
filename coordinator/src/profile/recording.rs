//! The faults of a guest, as its nodes tell them.

use crate::control::Told;
use crate::guest::Subject;
use span_api::profile::Fault;
use std::collections::BTreeMap;

/// Most faults that are kept: 600 MB of them. Later ones are counted as dropped.
const FAULTS_MAX: usize = 6_000_000;

#[derive(Debug, Clone)]
pub(super) struct Recorded {
    pub(super) node: u16,
    pub(super) fault: Fault,
}

#[derive(Debug)]
pub(super) struct Recording {
    pub(super) subject: Subject,
    pub(super) faults: Vec<Recorded>,
    /// By node: faults that nodes or this program had no room for.
    pub(super) dropped: Vec<u64>,
    pub(super) seconds: f64,
    /// What pages without names of their own were used for in the end, as the guest's kernel says it.
    pub(super) uses: BTreeMap<u32, String>,
}

impl Recording {
    pub(super) fn new(subject: Subject) -> Self {
        Self {
            dropped: vec![0; subject.nodes.len()],
            subject,
            faults: Vec::new(),
            seconds: 0.0,
            uses: BTreeMap::new(),
        }
    }

    /// Takes what is told next; false when all has been told.
    pub(super) async fn take(&mut self, told: &mut Told) -> bool {
        let Some((node, batch)) = told.next().await else {
            return false;
        };
        let Some(dropped) = self.dropped.get_mut(usize::from(node)) else {
            return false;
        };
        let room = FAULTS_MAX - self.faults.len();
        *dropped += batch.dropped + batch.faults.len().saturating_sub(room) as u64;
        let faults = batch.faults.into_iter().take(room);
        self.faults
            .extend(faults.map(|fault| Recorded { node, fault }));
        true
    }

    pub(super) fn node_names(&self) -> Vec<String> {
        let nodes = self.subject.nodes.iter();
        nodes.map(|node| node.name.clone()).collect()
    }

    /// When the first fault began and the last ended, on the guest's clock.
    pub(super) fn span_ns(&self) -> (u64, u64) {
        let faults = || self.faults.iter().map(|recorded| &recorded.fault);
        let first = faults().map(|fault| fault.began_ns).min().unwrap_or(0);
        let ends = faults().map(|fault| fault.began_ns.saturating_add(fault.waited_ns));
        (first, ends.max().unwrap_or(0))
    }
}

/// A recording for tests: two nodes with two CPUs, and these faults, a millisecond apart.
#[cfg(test)]
pub(super) fn example(faults: &[(u16, Fault)]) -> Recording {
    use crate::artefacts::FileId;
    use span_api::guest::NodeSpec;
    let node = |name: &str, cpus| NodeSpec {
        name: name.into(),
        cpus,
        memory_bytes: 1 << 20,
        limit_bytes: None,
    };
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let mut recording = Recording::new(Subject {
        name: "guest".into(),
        nodes: vec![node("a", vec![0]), node("b", vec![1])],
        kernel: b"/kernel".to_vec(),
        kernel_id: FileId::of(&file).unwrap(),
        variables: Default::default(),
    });
    recording.seconds = 1.0;
    let faults = faults.iter().enumerate().map(|(n, (node, fault))| {
        let mut fault = fault.clone();
        fault.began_ns += n as u64 * 1_000_000;
        Recorded { node: *node, fault }
    });
    recording.faults = faults.collect();
    recording
}

/// A write of 50 µs to an address of the linear map, at address 0x1000 and upwards.
#[cfg(test)]
pub(super) fn write(address: u64, instruction: u64) -> Fault {
    use span_api::profile::{FaultKind, Through};
    Fault {
        began_ns: 1_000_000_000,
        waited_ns: 50_000,
        kind: FaultKind::Write,
        page: (address >> 12) as u32,
        address,
        through: Through::Linear,
        instruction,
        cpu: Some(0),
        from: Some(1),
        user: None,
    }
}
