//! Machines and clusters as a file describes them: nodes with their CPUs and memory, and what the links between them
//! cost. `topologies/README.md` says what may be in such a file.
//!
//! [`parse`] reads a file and checks everything about it; what is wrong is one line with file, line and column.
//! [`shapes`] has the tables of a file, [`ready`] the ones that come with the program.

pub(crate) mod command;
mod draw;
mod links;
pub(crate) mod measure;
mod parse;
mod ready;
mod schema;
mod shapes;
pub(crate) mod show;
pub(crate) mod uplinks;

pub(crate) use parse::parse;
pub(crate) use ready::find;

use crate::links::Links;
use span_api::guest::NodeSpec;

/// Distance of a NUMA node to itself, to another of the same node, and to one of a node that costs nothing to reach.
pub(crate) const DISTANCE_SELF: u8 = 10;
const DISTANCE_BESIDE: u8 = 12;
pub(crate) const DISTANCE_NEXT: u8 = 20;
/// The greatest that Linux has; one more means that there is no way.
const DISTANCE_MAX: u8 = 254;

/// Each time that this and the latency of a link double, it is so much further.
const DISTANCE_LATENCY_NS: f64 = 50_000.0;
const DISTANCE_STEP: f64 = 10.0;

/// A file that was found to be possible.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Topology {
    /// Of the file, without `.toml`.
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) links: Links,
    /// Which links the file names, for people.
    pub(crate) named: Vec<Named>,
    /// Links that are not named cost something, too.
    pub(crate) others: Others,
    /// As the file gives them.
    pub(crate) distances: Option<Vec<Vec<u8>>>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: Option<String>,
    /// Nodes of one name here are near each other.
    pub(crate) group: Option<String>,
    pub(crate) cpus: usize,
    pub(crate) memory_bytes: u64,
    /// Most of the guest's memory that it holds.
    pub(crate) limit_bytes: Option<u64>,
    /// CPUs of its host that it runs on; none: all.
    pub(crate) host_cpus: Vec<u16>,
    /// Of the node, of each socket, of each core.
    pub(crate) sockets: usize,
    pub(crate) clusters: usize,
    pub(crate) threads: usize,
    /// Sizes of a core's cache, a cluster's and a socket's, as far as the file says them.
    pub(crate) caches: Vec<u64>,
    /// Its links take this many times as long.
    pub(crate) slow: f64,
    /// At least one.
    pub(crate) numa: Vec<NumaPart>,
    /// It has a single one, which is one with the last of the node before it.
    pub(crate) joins: bool,
}

/// A NUMA node of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NumaPart {
    /// Counted from the first of its node.
    pub(crate) cpus: Vec<usize>,
    pub(crate) memory_bytes: u64,
}

/// A link that a file names: between two nodes, or between nodes of two groups or of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Named {
    Nodes(usize, usize),
    Groups(String, String),
}

/// How links are that no file names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Others {
    /// As fast as the network.
    Free,
    /// `[links]` says what they cost.
    Given,
    /// Over those that are named.
    Routed,
}

/// The NUMA nodes of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Numa {
    /// In the order of their memory, which is that of the guest's nodes.
    pub(crate) nodes: Vec<NumaNode>,
    /// By NUMA node and NUMA node.
    pub(crate) distances: Vec<Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NumaNode {
    /// Index of the guest's node that it is a part of, or the first of those that it is.
    pub(crate) node: usize,
    /// The others of these.
    pub(crate) more: Vec<usize>,
    pub(crate) cpus: Vec<u16>,
    pub(crate) memory_bytes: u64,
}

impl Topology {
    pub(crate) fn cpus(&self) -> usize {
        self.nodes.iter().map(|node| node.cpus).sum()
    }

    pub(crate) fn memory_bytes(&self) -> u64 {
        self.nodes.iter().map(|node| node.memory_bytes).sum()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.name.clone()).collect()
    }

    /// Of the nodes that a NUMA node is, or is a part of.
    pub(crate) fn names_of(&self, numa: &NumaNode) -> String {
        let all = std::iter::once(&numa.node).chain(&numa.more);
        let names: Vec<&str> = all.map(|index| &self.nodes[*index].name[..]).collect();
        names.join("+")
    }

    pub(crate) fn numa(&self) -> Numa {
        let mut first = 0;
        let mut nodes: Vec<NumaNode> = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            for part in &node.numa {
                let cpus = part.cpus.iter().map(|cpu| (first + cpu) as u16);
                match nodes.last_mut() {
                    Some(last) if node.joins => {
                        last.more.push(index);
                        last.cpus.extend(cpus);
                        last.memory_bytes += part.memory_bytes;
                    }
                    _ => nodes.push(NumaNode {
                        node: index,
                        more: Vec::new(),
                        cpus: cpus.collect(),
                        memory_bytes: part.memory_bytes,
                    }),
                }
            }
            first += node.cpus;
        }
        let distances = match &self.distances {
            Some(given) => given.clone(),
            None => distances(&nodes, &self.links),
        };
        Numa { nodes, distances }
    }
}

impl Numa {
    /// One NUMA node for each node.
    pub(crate) fn of_nodes(nodes: &[NodeSpec], links: &Links) -> Self {
        let nodes = nodes.iter().enumerate().map(|(index, node)| NumaNode {
            node: index,
            more: Vec::new(),
            cpus: node.cpus.clone(),
            memory_bytes: node.memory_bytes,
        });
        let nodes: Vec<NumaNode> = nodes.collect();
        let distances = distances(&nodes, links);
        Self { nodes, distances }
    }
}

/// From the latencies of the links.
fn distances(nodes: &[NumaNode], links: &Links) -> Vec<Vec<u8>> {
    let row = |(index, one): (usize, &NumaNode)| {
        let to = |(other_index, other): (usize, &NumaNode)| match (index, one.node) {
            (index, _) if index == other_index => DISTANCE_SELF,
            (_, node) if node == other.node => DISTANCE_BESIDE,
            _ => {
                let there_ns = links.get(one.node, other.node).latency_ns;
                let back_ns = links.get(other.node, one.node).latency_ns;
                distance((there_ns + back_ns) / 2)
            }
        };
        nodes.iter().enumerate().map(to).collect()
    };
    nodes.iter().enumerate().map(row).collect()
}

/// A true ratio of access times would be thousands, of which Linux could tell none from another.
fn distance(latency_ns: u64) -> u8 {
    let doublings = (1.0 + latency_ns as f64 / DISTANCE_LATENCY_NS).log2();
    let distance = f64::from(DISTANCE_NEXT) + DISTANCE_STEP * doublings;
    distance.round().min(f64::from(DISTANCE_MAX)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_slower_to_reach_is_further() {
        let latencies_us = [0, 50, 200, 1_000, 10_000, 1_000_000];
        let distances = latencies_us.map(|us| distance(us * 1_000));
        assert_eq!(distances, [20, 30, 43, 64, 97, 163]);
    }

    #[test]
    fn numa_nodes_have_numbers_of_the_whole_guest() {
        let text = r#"
            [links]
            latency = "50us"
            [[node]]
            name = "a"
            numa = [{ cpus = "0,2", mem = "64M" }, { cpus = "1", mem = "32M" }]
            [[node]]
            name = "b"
            cpus = 2
            mem = "64M"
        "#;
        let numa = parse("x", text).unwrap().numa();
        let cpus: Vec<&[u16]> = numa.nodes.iter().map(|node| &node.cpus[..]).collect();
        assert_eq!(cpus, [&[0, 2][..], &[1], &[3, 4]]);
        assert_eq!(numa.nodes[2].node, 1);
        assert_eq!(numa.distances, [[10, 12, 30], [12, 10, 30], [30, 30, 10]]);
    }

    #[test]
    fn a_numa_node_may_be_of_several_nodes() {
        let text = r#"
            [links]
            latency = "50us"
            [[node]]
            name = "a"
            numa = [{ cpus = "0", mem = "64M" }, { cpus = "1", mem = "32M" }]
            [[node]]
            name = "b"
            mem = "64M"
            numa-of = "a"
            [[node]]
            name = "c"
            cpus = 0
            mem = "16M"
            numa-of = "a"
            [[node]]
            name = "d"
            mem = "16M"
        "#;
        let numa = parse("x", text).unwrap().numa();
        let cpus: Vec<&[u16]> = numa.nodes.iter().map(|node| &node.cpus[..]).collect();
        assert_eq!(cpus, [&[0][..], &[1, 2], &[3]]);
        let mib: Vec<u64> = numa.nodes.iter().map(|it| it.memory_bytes >> 20).collect();
        assert_eq!(mib, [64, 112, 16]);
        assert_eq!(numa.nodes[1].more, [1, 2]);
        assert_eq!(numa.distances, [[10, 12, 30], [12, 10, 30], [30, 30, 10]]);
    }

    #[test]
    fn without_a_file_each_node_is_one() {
        let nodes = [("a", 0..2), ("b", 2..3)].map(|(name, cpus)| NodeSpec {
            name: name.into(),
            cpus: cpus.collect(),
            memory_bytes: 1 << 27,
            limit_bytes: None,
        });
        let names = ["a", "b"].map(String::from);
        let links = Links::new(Some("200us"), &names).unwrap();
        let numa = Numa::of_nodes(&nodes, &links);
        assert_eq!(numa.nodes[1].cpus, [2]);
        assert_eq!(numa.distances, [[10, 43], [43, 10]]);
    }
}
