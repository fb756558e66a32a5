//! The NUMA nodes of a guest, as the kernel's arguments have them (`numa=`, `numa_dist=`).

use crate::options;
use std::fmt::Write;

/// NUMA nodes begin at multiples of it: a section of the kernel's sparse memory.
const SECTION_BYTES: u64 = 16 << 20;

const DISTANCE_LOCAL: u8 = 10;
const DISTANCE_REMOTE: u8 = 20;

/// What belongs together. Either may be nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NumaNode {
    pub(crate) memory_bytes: u64,
    /// Ascending.
    pub(crate) cpus: Vec<u16>,
}

/// Distances where nobody says more than what is local.
pub(crate) fn flat_distances(nodes: usize) -> Vec<Vec<u8>> {
    let row = |from| {
        let distance = move |to| match to == from {
            true => DISTANCE_LOCAL,
            false => DISTANCE_REMOTE,
        };
        (0..nodes).map(distance).collect()
    };
    (0..nodes).map(row).collect()
}

/// Kernel arguments for the nodes, in the order of their memory and numbers. `distances` is a square matrix.
/// Where a node's memory ends within a section, the next one's begins where the section does.
pub(crate) fn arguments(nodes: &[NumaNode], distances: &[Vec<u8>]) -> Vec<String> {
    let total: u64 = nodes.iter().map(|node| node.memory_bytes).sum();
    let (mut end, mut begin) = (0, 0);
    let mut words = Vec::new();
    for node in nodes {
        end += node.memory_bytes;
        let border = match end == total {
            true => total,
            false => end / SECTION_BYTES * SECTION_BYTES,
        };
        let mut word = options::memory_size_text(border - begin);
        begin = border;
        if !node.cpus.is_empty() {
            let _ = write!(word, "@{}", cpu_list(&node.cpus));
        }
        words.push(word);
    }
    let mut arguments = vec![format!("numa={}", words.join(","))];
    if distances != flat_distances(nodes.len()) {
        let numbers: Vec<_> = distances.iter().flatten().map(u8::to_string).collect();
        arguments.push(format!("numa_dist={}", numbers.join(",")));
    }
    arguments
}

/// Ranges joined by `+`.
fn cpu_list(cpus: &[u16]) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for &cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let texts: Vec<_> = ranges
        .into_iter()
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        })
        .collect();
    texts.join("+")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn node(mib: u64, cpus: &[u16]) -> NumaNode {
        NumaNode {
            memory_bytes: mib * MIB,
            cpus: cpus.to_vec(),
        }
    }

    fn flat(nodes: &[NumaNode]) -> Vec<String> {
        arguments(nodes, &flat_distances(nodes.len()))
    }

    #[test]
    fn nodes_have_memory_and_cpus() {
        let nodes = [
            node(128, &[0, 1, 4]),
            node(128, &[2, 3]),
            node(64, &[]),
            node(0, &[5]),
        ];
        assert_eq!(flat(&nodes), ["numa=128M@0-1+4,128M@2-3,64M,0@5"]);
    }

    #[test]
    fn nodes_begin_where_sections_do() {
        let nodes = [node(24, &[0]), node(16, &[1]), node(101, &[2])];
        assert_eq!(flat(&nodes), ["numa=16M@0,16M@1,109M@2"]);
        let last_empty = [node(24, &[0]), node(26, &[1]), node(0, &[2])];
        assert_eq!(flat(&last_empty), ["numa=16M@0,34M@1,0@2"]);
    }

    #[test]
    fn distances_are_given_where_they_are_not_the_usual_ones() {
        let nodes = [node(64, &[0]), node(64, &[1])];
        let far = vec![vec![10, 30], vec![31, 10]];
        assert_eq!(
            arguments(&nodes, &far),
            ["numa=64M@0,64M@1", "numa_dist=10,30,31,10"]
        );
    }
}
