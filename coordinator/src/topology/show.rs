//! A topology as text, as JSON, and as a file.

use super::{Node, Numa, Topology};
use crate::links::Uplink;
use crate::links::values::{bandwidth_text, loss_text, time_text};
use crate::numa::cpu_list;
use crate::status::aligned;
use serde_json::{Value, json};
use span_api::guest::Link;
use std::fmt::Write;

const MIB: u64 = 1 << 20;

/// In one line: which one it is, and how large.
pub(super) fn headline(topology: &Topology) -> String {
    let plural = |count: usize, noun: &str| match count {
        1 => format!("1 {noun}"),
        count => format!("{count} {noun}s"),
    };
    format!(
        "{}: {}, {}, {}",
        topology.name,
        plural(topology.nodes.len(), "node"),
        plural(topology.cpus(), "CPU"),
        size(topology.memory_bytes())
    )
}

pub(super) fn size(bytes: u64) -> String {
    match bytes.is_multiple_of(MIB) {
        true => format!("{} MiB", bytes / MIB),
        false => format!("{} KiB", bytes >> 10),
    }
}

pub(super) fn text(topology: &Topology) -> String {
    let mut text = headline(topology) + "\n";
    if let Some(description) = &topology.description {
        let _ = writeln!(text, "{description}");
    }
    text += "\n";
    let header = ["NODE", "ADDRESS", "GROUP", "CPUS", "MEM", "SLOW"];
    let mut rows = vec![header.map(String::from).to_vec()];
    for node in &topology.nodes {
        let or_none = |text: &Option<String>| text.clone().unwrap_or("-".into());
        rows.push(vec![
            node.name.clone(),
            node.address.clone().unwrap_or("local".into()),
            or_none(&node.group),
            cpus(node),
            match node.limit_bytes {
                Some(limit) => format!("{}, holds {}", size(node.memory_bytes), size(limit)),
                None => size(node.memory_bytes),
            },
            node.slow.to_string(),
        ]);
    }
    text += &aligned(&rows, 3);
    if topology.nodes.len() > 1 {
        let header = ["FROM", "TO", "LATENCY", "JITTER", "BANDWIDTH", "LOSS"];
        let mut rows = vec![header.map(String::from).to_vec()];
        for (from, to, link) in directions(topology) {
            let mut row = vec![from.name.clone(), to.name.clone()];
            row.extend([
                time_text(link.latency_ns),
                time_text(link.jitter_ns),
                bandwidth_text(link.bandwidth_bps),
                loss_text(link.loss_ppm),
            ]);
            rows.push(row);
        }
        if !topology.links.uplinks.is_empty() {
            rows[0].push("UPLINK".into());
            for (row, (.., link)) in rows[1..].iter_mut().zip(directions(topology)) {
                let uplink = Uplink::name(&topology.links.uplinks, link);
                row.push(uplink.map_or("-", String::as_str).to_string());
            }
        }
        text += &format!("\n{}", aligned(&rows, 2));
    }
    if !topology.links.uplinks.is_empty() {
        let header = ["UPLINK", "FROM", "TO", "BANDWIDTH"];
        let mut rows = vec![header.map(String::from).to_vec()];
        rows.extend(shared(topology).iter().map(|shared| {
            vec![
                shared.name.clone(),
                shared.from.join(","),
                shared.to.join(","),
                bandwidth_text(shared.bandwidth_bps),
            ]
        }));
        text += &format!("\n{}", aligned(&rows, 3));
    }
    let Numa { nodes, distances } = topology.numa();
    let mut rows = vec![vec![
        "NUMA".to_string(),
        "NODE".into(),
        "CPUS".into(),
        "MEM".into(),
    ]];
    rows[0].extend((0..nodes.len()).map(|index| index.to_string()));
    for (index, (node, row)) in nodes.iter().zip(&distances).enumerate() {
        let cpus: Vec<String> = node.cpus.iter().map(u16::to_string).collect();
        let mut cells = vec![
            index.to_string(),
            topology.names_of(node),
            cpus.join(","),
            size(node.memory_bytes),
        ];
        cells.extend(row.iter().map(u8::to_string));
        rows.push(cells);
    }
    text + "\n" + &aligned(&rows, 2)
}

fn cpus(node: &Node) -> String {
    let shape = [
        (node.sockets, "sockets"),
        (node.clusters, "clusters"),
        (node.threads, "threads"),
    ];
    let parts = shape.iter().filter(|(count, _)| *count > 1);
    let mut parts: Vec<String> = parts
        .map(|(count, noun)| format!("{count} {noun}"))
        .collect();
    if !node.caches.is_empty() {
        let sizes: Vec<_> = node.caches.iter().map(|bytes| size(*bytes)).collect();
        parts.push(format!("caches {}", sizes.join(" ")));
    }
    if !node.host_cpus.is_empty() {
        parts.push(format!("on the host's {}", cpu_list(&node.host_cpus)));
    }
    match parts.is_empty() {
        true => node.cpus.to_string(),
        false => format!("{} ({})", node.cpus, parts.join(", ")),
    }
}

fn directions(topology: &Topology) -> impl Iterator<Item = (&Node, &Node, Link)> {
    let nodes = topology.nodes.iter().enumerate();
    nodes.flat_map(move |(from, one)| {
        let others = topology.nodes.iter().enumerate();
        let others = others.filter(move |(to, _)| *to != from);
        others.map(move |(to, other)| (one, other, topology.links.get(from, to)))
    })
}

/// One direction of an uplink, and the nodes that it leads from and to.
struct Shared<'a> {
    name: &'a String,
    from: Vec<&'a str>,
    to: Vec<&'a str>,
    bandwidth_bps: u64,
}

fn shared(topology: &Topology) -> Vec<Shared<'_>> {
    let name = |node: usize| topology.nodes[node].name.as_str();
    let links = &topology.links;
    let direction = |uplink: Uplink| {
        let (from, to) = links.ends(uplink);
        let any = links.through(uplink.number, true);
        let link = any
            .map(|(from, to)| links.get(from, to))
            .find(|link| Uplink::of(*link) == Some(uplink));
        Shared {
            name: &links.uplinks[uplink.number],
            from: from.into_iter().map(name).collect(),
            to: to.into_iter().map(name).collect(),
            bandwidth_bps: link.unwrap_or_default().bandwidth_bps,
        }
    };
    Uplink::all(links.uplinks.len()).map(direction).collect()
}

pub(super) fn json(topology: &Topology) -> Value {
    let node = |node: &Node| {
        let numa = node
            .numa
            .iter()
            .map(|part| json!({ "cpus": part.cpus, "memory_bytes": part.memory_bytes }));
        json!({
            "name": node.name, "address": node.address, "group": node.group, "cpus": node.cpus,
            "memory_bytes": node.memory_bytes, "limit_bytes": node.limit_bytes, "host_cpus": node.host_cpus, "sockets": node.sockets,
            "clusters": node.clusters, "threads": node.threads, "caches_bytes": node.caches, "slow": node.slow,
            "numa": numa.collect::<Vec<_>>(),
        })
    };
    let link = |(from, to, link): (&Node, &Node, Link)| {
        json!({
            "from": from.name, "to": to.name, "latency_ns": link.latency_ns, "jitter_ns": link.jitter_ns,
            "bandwidth_bps": bandwidth_json(link.bandwidth_bps), "loss_ppm": link.loss_ppm,
            "uplink": Uplink::name(&topology.links.uplinks, link),
        })
    };
    let uplink = |shared: Shared<'_>| {
        json!({
            "name": shared.name, "from": shared.from, "to": shared.to,
            "bandwidth_bps": bandwidth_json(shared.bandwidth_bps),
        })
    };
    let numa = topology.numa();
    let numa_nodes = numa.nodes.iter().map(|node| {
        let name = &topology.nodes[node.node].name;
        let more = node.more.iter().map(|index| &topology.nodes[*index].name);
        json!({
            "node": name, "more": more.collect::<Vec<_>>(), "cpus": node.cpus, "memory_bytes": node.memory_bytes,
        })
    });
    json!({
        "name": topology.name,
        "description": topology.description,
        "seed": topology.links.seed,
        "nodes": topology.nodes.iter().map(node).collect::<Vec<_>>(),
        "links": directions(topology).map(link).collect::<Vec<_>>(),
        "uplinks": shared(topology).into_iter().map(uplink).collect::<Vec<_>>(),
        "numa": numa_nodes.collect::<Vec<_>>(),
        "distances": numa.distances,
    })
}

/// Null where the network alone decides.
pub(crate) fn bandwidth_json(bps: u64) -> Option<u64> {
    (bps > 0).then_some(bps)
}
