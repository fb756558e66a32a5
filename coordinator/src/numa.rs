//! NUMA nodes of a guest and how its CPUs are built together, as the kernel's arguments have them (`numa=`,
//! `numa_dist=`, `cpu_topology=`).

use crate::options::memory_size_text;
use crate::topology::{DISTANCE_NEXT, DISTANCE_SELF, Node, Numa};
use std::fmt::Write;

/// NUMA nodes begin at multiples of it: a section of the kernel's sparse memory.
const SECTION_BYTES: u64 = 16 << 20;

/// Kernel arguments for the NUMA nodes. Where one's memory ends within a section, the next one's begins where the
/// section does.
pub(crate) fn arguments(numa: &Numa) -> Vec<String> {
    let total: u64 = numa.nodes.iter().map(|node| node.memory_bytes).sum();
    let (mut end, mut begin) = (0, 0);
    let mut words = Vec::new();
    for node in &numa.nodes {
        end += node.memory_bytes;
        let border = match end == total {
            true => total,
            false => end / SECTION_BYTES * SECTION_BYTES,
        };
        let mut word = memory_size_text(border - begin);
        begin = border;
        if !node.cpus.is_empty() {
            let _ = write!(word, "@{}", cpu_list(&node.cpus));
        }
        words.push(word);
    }
    let mut arguments = vec![format!("numa={}", words.join(","))];
    if !is_usual(&numa.distances) {
        let numbers: Vec<_> = numa.distances.iter().flatten().map(u8::to_string).collect();
        arguments.push(format!("numa_dist={}", numbers.join(",")));
    }
    arguments
}

/// Whether distances are those that the kernel takes without being told.
fn is_usual(distances: &[Vec<u8>]) -> bool {
    let usual = |from, to| match from == to {
        true => DISTANCE_SELF,
        false => DISTANCE_NEXT,
    };
    distances.iter().enumerate().all(|(from, row)| {
        let mut row = row.iter().enumerate();
        row.all(|(to, distance)| *distance == usual(from, to))
    })
}

/// The kernel argument for sockets, clusters, threads and caches, where they are other than what the kernel takes
/// without being told: each NUMA node is a socket.
pub(crate) fn cpu_topology(nodes: &[Node]) -> Option<String> {
    let usual = |node: &Node| {
        let one = node.sockets == 1 && node.clusters == 1 && node.threads == 1;
        one && node.caches.is_empty() && node.numa.len() == 1 && !node.joins
    };
    if nodes.iter().all(usual) {
        return None;
    }
    let with_cpus = nodes.iter().filter(|node| node.cpus > 0);
    let words: Vec<_> = with_cpus.map(built).collect();
    Some(format!("cpu_topology={}", words.join(",")))
}

fn built(node: &Node) -> String {
    let Node {
        cpus,
        sockets,
        clusters,
        threads,
        ..
    } = node;
    let mut word = format!("{cpus}:{sockets}:{clusters}:{threads}");
    let caches: Vec<_> = node
        .caches
        .iter()
        .map(|&size| memory_size_text(size))
        .collect();
    if !caches.is_empty() {
        let _ = write!(word, ":{}", caches.join("+"));
    }
    word
}

/// Ranges joined by `+`.
pub(crate) fn cpu_list(cpus: &[u16]) -> String {
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
    use crate::topology::{NumaNode, parse};

    const MIB: u64 = 1 << 20;

    fn node(mib: u64, cpus: &[u16]) -> NumaNode {
        NumaNode {
            node: 0,
            more: Vec::new(),
            memory_bytes: mib * MIB,
            cpus: cpus.to_vec(),
        }
    }

    fn flat(nodes: &[NumaNode]) -> Vec<String> {
        let row = |from| {
            (0..nodes.len())
                .map(|to| if to == from { 10 } else { 20 })
                .collect()
        };
        arguments(&Numa {
            nodes: nodes.to_vec(),
            distances: (0..nodes.len()).map(row).collect(),
        })
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
        let far = Numa {
            nodes: nodes.to_vec(),
            distances: vec![vec![10, 30], vec![31, 10]],
        };
        assert_eq!(
            arguments(&far),
            ["numa=64M@0,64M@1", "numa_dist=10,30,31,10"]
        );
    }

    #[test]
    fn how_cpus_are_built_is_told_where_somebody_says_so() {
        let told = |text: &str| cpu_topology(&parse("x", text).unwrap().nodes);
        let plain = "[[node]]\nname = \"a\"\ncpus = 2\n";
        assert_eq!(told(plain), None);
        let plain = format!("{plain}caches = [\"64K\"]\n");
        let shaped = "[[node]]\nname = \"b\"\ncpus = 0\n[[node]]\nname = \"c\"\ncpus = 8\nsockets = 2\nthreads = 2\n\
                      caches = [\"32K\", \"1M\"]\n";
        assert_eq!(
            told(&format!("{plain}{shaped}")).as_deref(),
            Some("cpu_topology=2:1:1:1:64K,8:2:1:2:32K+1M")
        );
    }
}
