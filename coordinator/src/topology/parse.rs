//! From the text of a file to a topology that is possible.

use super::shapes::{self, File};
use super::{DISTANCE_MAX, DISTANCE_SELF, Node, NumaPart, Topology};
use super::{links, uplinks};
use crate::failure::{Failure, one_line};
use crate::options;
use span_api::link::HOST_CPU_MAX;
use span_api::{CPUS_MAX, NODES_MAX};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::Range;
use toml::Spanned;

const MEMORY_DEFAULT_BYTES: u64 = 256 << 20;

/// How many times as long the links of a node may take.
const SLOW: std::ops::RangeInclusive<f64> = 1.0..=1000.0;

/// Where in a file something is wrong, and what.
#[derive(Debug)]
pub(super) struct Wrong {
    span: Range<usize>,
    why: String,
}

pub(super) fn wrong<T>(span: Range<usize>, why: impl Display) -> Result<T, Wrong> {
    let why = why.to_string();
    Err(Wrong { span, why })
}

/// Reads a file. `path` is what it is called in errors.
pub(crate) fn parse(path: &str, text: &str) -> Result<Topology, Failure> {
    read(path, text).map_err(|Wrong { span, why }| {
        let (line, column) = position(text, span.start);
        Failure::usage(format!("{path}:{line}:{column}: {}", one_line(&why)))
    })
}

/// Line and column of a byte, counted from 1, in characters.
fn position(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let last = before.rsplit('\n').next().unwrap_or_default();
    (line, last.chars().count() + 1)
}

fn read(path: &str, text: &str) -> Result<Topology, Wrong> {
    let file: File = toml::from_str(text).map_err(|error| Wrong {
        span: error.span().unwrap_or(0..0),
        why: plain(error.message()),
    })?;
    let nodes = nodes(&file)?;
    let links = links::read(&file, &nodes)?;
    let topology = Topology {
        name: name(path),
        description: file.description.clone(),
        distances: None,
        links: links.all,
        named: links.named,
        others: links.others,
        nodes,
    };
    uplinks::on_one_host(&file, &topology)?;
    let distances = match &file.distances {
        Some(rows) => Some(distances(rows, topology.numa().nodes.len())?),
        None => None,
    };
    Ok(Topology {
        distances,
        ..topology
    })
}

/// Types are called by what people write.
fn plain(message: &str) -> String {
    let kinds = [
        ("i64", "a whole number"),
        ("u64", "a whole number"),
        ("f64", "a number"),
    ];
    let plain = kinds
        .iter()
        .fold(message.to_string(), |message, (kind, plain)| {
            message.replace(&format!("expected {kind}"), &format!("expected {plain}"))
        });
    plain.replace("a sequence", "a list")
}

fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.strip_suffix(".toml").unwrap_or(file).to_string()
}

fn nodes(file: &File) -> Result<Vec<Node>, Wrong> {
    let mut nodes: Vec<Node> = Vec::new();
    for raw in &file.nodes {
        let node = node(raw.get_ref(), nodes.is_empty())?;
        let span = raw.get_ref().name.span();
        if nodes.iter().any(|other| other.name == node.name) {
            return wrong(span, format_args!("node {} is named twice", node.name));
        }
        if let Some(of) = &raw.get_ref().numa_of {
            joined(of, raw.get_ref().numa.as_ref().map(Spanned::span), &nodes)?;
        }
        nodes.push(node);
        if nodes.len() > NODES_MAX {
            return wrong(span, format_args!("a guest has at most {NODES_MAX} nodes"));
        }
        let cpus: usize = nodes.iter().map(|node| node.cpus).sum();
        if cpus > CPUS_MAX {
            return wrong(
                span,
                format_args!("{cpus} CPUs with this node; a guest has at most {CPUS_MAX}"),
            );
        }
    }
    if nodes.is_empty() {
        return wrong(0..0, "there is no [[node]]");
    }
    let cached = nodes.iter().any(|node| !node.caches.is_empty());
    for (raw, node) in file.nodes.iter().zip(&nodes) {
        if cached && node.cpus > 0 && node.caches.is_empty() {
            let why = "caches are said of all nodes that have CPUs, or of none";
            return wrong(raw.get_ref().name.span(), why);
        }
        if let Some(group) = &raw.get_ref().group
            && nodes.iter().any(|other| other.name == *group.get_ref())
        {
            let why = format!(
                "a node has the name of {}'s group, {}",
                node.name,
                group.get_ref()
            );
            return wrong(group.span(), why);
        }
    }
    let memory_bytes = nodes.iter().map(|node| node.memory_bytes).sum();
    if let Err(why) = options::guest_memory(memory_bytes) {
        let last = file
            .nodes
            .last()
            .map_or(0..0, |raw| raw.get_ref().name.span());
        return wrong(last, why);
    }
    limits(file, &nodes)?;
    Ok(nodes)
}

/// Whether the nodes can hold the guest's memory between them; at the last limit, if not.
fn limits(file: &File, nodes: &[Node]) -> Result<(), Wrong> {
    let limits: Vec<_> = nodes.iter().map(|node| node.limit_bytes).collect();
    let mut spans = file.nodes.iter().filter_map(|raw| {
        let limit = raw.get_ref().mem_limit.as_ref()?;
        Some(limit.span())
    });
    let Some(span) = spans.next_back() else {
        return Ok(());
    };
    let names: Vec<String> = nodes.iter().map(|node| node.name.clone()).collect();
    let memory: Vec<u64> = nodes.iter().map(|node| node.memory_bytes).collect();
    options::check_limits("mem-limit", &names, &memory, &limits)
        .or_else(|failure| wrong(span, failure.line))
}

fn node(raw: &shapes::Node, first: bool) -> Result<Node, Wrong> {
    let name = raw.name.get_ref();
    let span = || raw.name.span();
    named("name", &raw.name)?;
    if let Some(group) = &raw.group {
        named("group", group)?;
    }
    if let Some(address) = &raw.address
        && !options::is_address(address.get_ref())
    {
        return wrong(
            address.span(),
            format_args!(
                "address {:?}: an address is HOST:PORT with a port from 1 to 65535",
                address.get_ref()
            ),
        );
    }
    let numa = match &raw.numa {
        Some(parts) => Some(numa(parts)?),
        None => None,
    };
    let parts = |of: fn(&NumaPart) -> u64| {
        let parts = numa.as_ref();
        parts.map(|parts| parts.iter().map(of).sum::<u64>())
    };
    let cpus = match (&raw.cpus, parts(|part| part.cpus.len() as u64)) {
        (Some(cpus), parts) => {
            let least = u64::from(first);
            let count = number("cpus", cpus, least, CPUS_MAX as u64)?;
            if parts.is_some_and(|parts| parts != count) {
                return wrong(
                    cpus.span(),
                    format_args!(
                        "cpus = {count}, but those of numa are {}",
                        parts.unwrap_or(0)
                    ),
                );
            }
            count
        }
        (None, Some(parts)) => parts,
        (None, None) => 1,
    };
    let memory_bytes = match (&raw.mem, parts(|part| part.memory_bytes)) {
        (Some(mem), Some(parts)) if mem.get_ref().0 != parts => {
            return wrong(mem.span(), "mem is not the sum of that of numa");
        }
        (Some(mem), _) => mem.get_ref().0,
        (None, Some(parts)) => parts,
        (None, None) => MEMORY_DEFAULT_BYTES,
    };
    let memory_span = raw.mem.as_ref().map_or_else(span, Spanned::span);
    if first && cpus == 0 {
        return wrong(span(), "the first node boots, and needs a CPU");
    }
    if first && memory_bytes == 0 {
        return wrong(memory_span, "the first node boots, and needs memory");
    }
    if cpus == 0 && memory_bytes == 0 {
        return wrong(
            span(),
            format_args!("node {name} has neither CPUs nor memory"),
        );
    }
    let shape = Shape::read(raw, cpus as usize)?;
    if let (Some(raw), Some(parts)) = (&raw.numa, &numa)
        && let Some(cpu) = shape.divided(cpus as usize, parts)
    {
        return wrong(
            raw.span(),
            format_args!("CPU {cpu} is in another NUMA node than one of its core or cluster"),
        );
    }
    let slow = match &raw.slow {
        Some(slow) if !SLOW.contains(slow.get_ref()) => {
            return wrong(
                slow.span(),
                format_args!("slow = {}: from 1 to 1000 is possible", slow.get_ref()),
            );
        }
        Some(slow) => *slow.get_ref(),
        None => 1.0,
    };
    let host_cpus = match &raw.host_cpus {
        Some(list) => host_cpus(list.get_ref()).or_else(|why| wrong(list.span(), why))?,
        None => Vec::new(),
    };
    let all = || NumaPart {
        cpus: (0..cpus as usize).collect(),
        memory_bytes,
    };
    Ok(Node {
        name: name.clone(),
        address: raw.address.as_ref().map(|it| it.get_ref().clone()),
        group: raw.group.as_ref().map(|it| it.get_ref().clone()),
        cpus: cpus as usize,
        memory_bytes,
        limit_bytes: raw.mem_limit.as_ref().map(|limit| limit.get_ref().0),
        host_cpus,
        sockets: shape.sockets,
        clusters: shape.clusters,
        threads: shape.threads,
        caches: shape.caches,
        slow,
        numa: numa.unwrap_or_else(|| vec![all()]),
        joins: raw.numa_of.is_some(),
    })
}

/// Whether a node can be in one NUMA node with `of`, which is, or begins, what is `before` it: memory of one NUMA node is
/// in one piece.
fn joined(of: &Spanned<String>, numa: Option<Range<usize>>, before: &[Node]) -> Result<(), Wrong> {
    if let Some(span) = numa {
        return wrong(
            span,
            "a node with numa-of is a part of one NUMA node and has none of its own",
        );
    }
    let name = of.get_ref();
    let first = before.iter().rfind(|node| !node.joins);
    match (first, before.last()) {
        (Some(first), _) if first.name == *name => Ok(()),
        (Some(_), Some(last)) if last.name == *name => Ok(()),
        (Some(first), _) => wrong(
            of.span(),
            format_args!(
                "numa-of = {name:?}: nodes of one NUMA node follow each other, and those before this one are of {}",
                first.name
            ),
        ),
        (None, _) => wrong(of.span(), "the first node begins a NUMA node"),
    }
}

fn named(key: &str, name: &Spanned<String>) -> Result<(), Wrong> {
    options::check_name(key, name.get_ref()).or_else(|failure| wrong(name.span(), failure.line))
}

fn number(key: &str, value: &Spanned<i64>, least: u64, most: u64) -> Result<u64, Wrong> {
    match u64::try_from(*value.get_ref()) {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => wrong(
            value.span(),
            format_args!(
                "{key} = {}: from {least} to {most} is possible",
                value.get_ref()
            ),
        ),
    }
}

/// How the CPUs of a node are built together.
struct Shape {
    sockets: usize,
    clusters: usize,
    threads: usize,
    caches: Vec<u64>,
}

/// Those of a core, a cluster, a socket.
const CACHES_MAX: usize = 3;

impl Shape {
    fn read(raw: &shapes::Node, cpus: usize) -> Result<Self, Wrong> {
        let mut product = 1;
        let mut one = |key: &str, value: &Option<Spanned<i64>>| {
            let Some(value) = value else { return Ok(1) };
            let count = number(key, value, 1, CPUS_MAX as u64)? as usize;
            product *= count;
            if !cpus.is_multiple_of(product) {
                return wrong(
                    value.span(),
                    format_args!("{key} = {count}: {cpus} CPUs cannot be divided into {product}"),
                );
            }
            Ok(count)
        };
        Ok(Self {
            sockets: one("sockets", &raw.sockets)?,
            clusters: one("clusters", &raw.clusters)?,
            threads: one("threads", &raw.threads)?,
            caches: caches(raw.caches.as_ref())?,
        })
    }

    /// A CPU that is with others of its core, or its cluster, but in another NUMA node.
    fn divided(&self, cpus: usize, parts: &[NumaPart]) -> Option<usize> {
        let together = match self.clusters {
            1 => self.threads,
            clusters => cpus / self.sockets / clusters,
        };
        let part = |cpu: usize| parts.iter().position(|part| part.cpus.contains(&cpu));
        (0..cpus).find(|cpu| part(*cpu) != part(cpu - cpu % together))
    }
}

fn caches(raw: Option<&Spanned<Vec<Spanned<shapes::Cache>>>>) -> Result<Vec<u64>, Wrong> {
    let Some(raw) = raw else {
        return Ok(Vec::new());
    };
    match raw.get_ref().get(CACHES_MAX) {
        Some(more) => wrong(
            more.span(),
            "caches are those of a core, of a cluster and of a socket: three at most",
        ),
        None => Ok(raw.get_ref().iter().map(|size| size.get_ref().0).collect()),
    }
}

fn numa(raw: &Spanned<Vec<Spanned<shapes::NumaPart>>>) -> Result<Vec<NumaPart>, Wrong> {
    let mut parts = Vec::new();
    let mut taken = BTreeSet::new();
    for part in raw.get_ref() {
        let shapes::NumaPart { cpus, mem } = part.get_ref();
        let memory_bytes = mem.map_or(0, |size| size.0);
        let numbers = match cpus {
            None => Vec::new(),
            Some(list) => match cpu_list(list.get_ref()) {
                Ok(numbers) => numbers,
                Err(why) => return wrong(list.span(), why),
            },
        };
        if numbers.is_empty() && memory_bytes == 0 {
            return wrong(part.span(), "a NUMA node has CPUs, or memory, or both");
        }
        for cpu in &numbers {
            if !taken.insert(*cpu) {
                let span = cpus.as_ref().map_or(part.span(), Spanned::span);
                return wrong(span, format_args!("CPU {cpu} is in two NUMA nodes"));
            }
        }
        parts.push(NumaPart {
            cpus: numbers,
            memory_bytes,
        });
    }
    if parts.is_empty() {
        return wrong(raw.span(), "numa is a list of at least one NUMA node");
    }
    if let Some(missing) = (0..taken.len()).find(|cpu| !taken.contains(cpu)) {
        return wrong(
            raw.span(),
            format_args!("CPUs are counted from 0 on each node; CPU {missing} is in no NUMA node"),
        );
    }
    Ok(parts)
}

/// CPUs of a host, as `0-3,7`.
fn host_cpus(text: &str) -> Result<Vec<u16>, String> {
    let cpus = options::cpu_ranges(text.split(','), HOST_CPU_MAX).ok_or_else(|| {
        format!(
            "host-cpus {text:?}: a host's CPUs are listed as \"0-3,7\", from 0 to {HOST_CPU_MAX}"
        )
    })?;
    options::distinct(cpus).map_err(|why| format!("host-cpus {text:?}: {why}"))
}

/// Numbers as `0-3,7`.
fn cpu_list(text: &str) -> Result<Vec<usize>, String> {
    let cpus = options::cpu_ranges(text.split(','), CPUS_MAX as u16 - 1)
        .ok_or_else(|| format!("cpus {text:?}: CPUs are listed as \"0-3,7\""))?;
    Ok(cpus.into_iter().map(usize::from).collect())
}

fn distances(rows: &Spanned<shapes::Matrix>, count: usize) -> Result<Vec<Vec<u8>>, Wrong> {
    if rows.get_ref().len() != count {
        let has = rows.get_ref().len();
        return wrong(
            rows.span(),
            format_args!("distances has {has} rows; there are {count} NUMA nodes"),
        );
    }
    let mut matrix: Vec<Vec<u8>> = Vec::new();
    for (from, row) in rows.get_ref().iter().enumerate() {
        if row.get_ref().len() != count {
            let has = row.get_ref().len();
            return wrong(
                row.span(),
                format_args!("a row of {has} distances; there are {count} NUMA nodes"),
            );
        }
        let mut distances = Vec::new();
        for (to, value) in row.get_ref().iter().enumerate() {
            let distance = match u8::try_from(*value.get_ref()) {
                Ok(DISTANCE_SELF) if from == to => DISTANCE_SELF,
                _ if from == to => {
                    return wrong(
                        value.span(),
                        format_args!("a NUMA node's distance to itself is {DISTANCE_SELF}"),
                    );
                }
                Ok(distance) if distance > DISTANCE_SELF && distance <= DISTANCE_MAX => distance,
                _ => {
                    return wrong(
                        value.span(),
                        format_args!(
                            "distance {}: from {} to {DISTANCE_MAX} is possible",
                            value.get_ref(),
                            DISTANCE_SELF + 1
                        ),
                    );
                }
            };
            if let Some(other) = matrix.get(to).map(|row| row[from])
                && other != distance
            {
                return wrong(
                    value.span(),
                    format_args!(
                        "the distance from {from} to {to} is {distance}, but from {to} to {from} {other}"
                    ),
                );
            }
            distances.push(distance);
        }
        matrix.push(distances);
    }
    Ok(matrix)
}

#[cfg(test)]
mod tests;
