//! Faults, one by one: what a node tells of each that asked another node, while it is asked to.

use serde::{Deserialize, Serialize};

/// Faults of one answer: it fits into a frame however long its numbers are.
pub const BATCH_FAULTS_MAX: usize = 8192;

/// What a node is asked for. Each is answered by one [`Faults`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Profiling {
    /// Begin, with nothing from before.
    Start,
    /// Tell what has come since the last answer.
    Collect,
    /// End. What is not told with this answer can still be collected.
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FaultKind {
    Read,
    Write,
    Upgrade,
}

/// By which address the kernel came to the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Through {
    /// That of its image and of physical memory.
    Linear,
    Vmalloc,
}

/// What a user process accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserPage {
    /// Its number and name in the guest; the name ends at the first zero.
    pub process: i32,
    pub name: [u8; 16],
    /// The process's own.
    pub address: u64,
    pub instruction: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// On the guest's clock, which all nodes have in common.
    pub began_ns: u64,
    pub waited_ns: u64,
    pub kind: FaultKind,
    /// Number of the page in guest memory.
    pub page: u32,
    /// What the kernel accessed, and the instruction that did.
    pub address: u64,
    pub through: Through,
    pub instruction: u64,
    /// `None`: a helper thread of the kernel's.
    pub cpu: Option<u16>,
    /// The node that gave the page, or was the first to let go of it.
    pub from: Option<u16>,
    /// The user process that the kernel fetched the page for; `address` has the same place in the page then.
    pub user: Option<UserPage>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    pub faults: Vec<Fault>,
    /// How many there was no room for, since the last answer.
    pub dropped: u64,
    /// There are more than fit into an answer.
    pub more: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_answer_fits_into_a_frame() {
        let fault = Fault {
            began_ns: u64::MAX,
            waited_ns: u64::MAX,
            kind: FaultKind::Upgrade,
            page: u32::MAX,
            address: u64::MAX,
            through: Through::Vmalloc,
            instruction: u64::MAX,
            cpu: Some(u16::MAX),
            from: Some(u16::MAX),
            user: Some(UserPage {
                process: i32::MIN,
                name: [u8::MAX; 16],
                address: u64::MAX,
                instruction: u64::MAX,
            }),
        };
        let faults = Faults {
            faults: vec![fault; BATCH_FAULTS_MAX],
            dropped: u64::MAX,
            more: true,
        };
        let message = crate::link::FromAgent::Guest(crate::guest::FromGuest::Faults(faults));
        crate::codec::encode(&message).unwrap();
    }
}
