//! A topology as a picture: nodes as boxes, the links that it names as lines, distances as a matrix.

mod place;
mod svg;

use super::show::size;
use super::{Named, Node, Numa, Others, Topology};
use crate::links::Uplink;
use crate::links::values::{bandwidth_text, loss_text, time_text};
use place::{BOX_HEIGHT, BOX_WIDTH, Picture, Placed, Point};
use span_api::guest::Link;
use svg::Svg;

/// The matrix beside the picture.
const CELL_WIDTH: f64 = 34.0;
const CELL_HEIGHT: f64 = 26.0;
const MARGIN: f64 = 28.0;
const TITLE_HEIGHT: f64 = 66.0;
/// A matrix of more is not shown: `show` has the numbers.
const DISTANCES_MAX: usize = 16;

/// So many pairs of nodes get a line each where all links are alike.
const PAIRS_MAX: usize = 6;

/// CPUs of one row in a box.
const CPUS_PER_ROW: usize = 12;
const CPU_SIZE: f64 = 9.0;

/// As SVG.
pub(super) fn svg(topology: &Topology) -> String {
    let picture = place::place(&topology.nodes);
    let numa = topology.numa();
    let shows_distances = numa.nodes.len() > 1 && numa.nodes.len() <= DISTANCES_MAX;
    let labels = numa_labels(topology, &numa);
    let longest = labels.iter().map(|label| label.chars().count()).max();
    let label_width = 16.0 + 7.0 * longest.unwrap_or(0) as f64;
    let matrix_width = match shows_distances {
        true => MARGIN + label_width + CELL_WIDTH * numa.nodes.len() as f64,
        false => 0.0,
    };
    let matrix_height = CELL_HEIGHT * (numa.nodes.len() + 2) as f64;
    let notes = notes(topology);
    let body_height = match shows_distances {
        true => picture.height.max(matrix_height),
        false => picture.height,
    };
    let width = (2.0 * MARGIN + picture.width + matrix_width).max(560.0);
    let height = TITLE_HEIGHT + body_height + MARGIN + 20.0 * notes.len() as f64;

    let mut svg = Svg::new(width, height);
    title(&mut svg, topology);
    let origin = Point {
        x: MARGIN,
        y: TITLE_HEIGHT + (body_height - picture.height) / 2.0,
    };
    draw_groups(&mut svg, &picture, origin);
    draw_links(&mut svg, topology, &picture, origin);
    for (node, placed) in topology.nodes.iter().zip(&picture.nodes) {
        draw_node(&mut svg, node, placed.moved(origin));
    }
    draw_labels(&mut svg, topology, &picture, origin);
    if shows_distances {
        let at = Point {
            x: MARGIN + picture.width + MARGIN,
            y: TITLE_HEIGHT + (body_height - matrix_height) / 2.0,
        };
        draw_distances(&mut svg, &numa, &labels, label_width, at);
    }
    for (line, note) in notes.iter().enumerate() {
        let y = TITLE_HEIGHT + body_height + 20.0 * (line + 1) as f64;
        svg.text(MARGIN, y, "note", note);
    }
    svg.end()
}

fn title(svg: &mut Svg, topology: &Topology) {
    svg.text(MARGIN, 30.0, "title", &topology.name);
    let description = topology.description.as_deref().unwrap_or_default();
    svg.text(MARGIN, 50.0, "note", description);
}

/// What the picture does not show.
fn notes(topology: &Topology) -> Vec<String> {
    let mut notes = Vec::new();
    if topology.nodes.len() > 1 {
        match topology.others {
            Others::Given if !lines_for_all(topology) => {
                let named = |from: usize, to: usize| names(topology, from, to);
                let count = topology.nodes.len();
                let mut pairs =
                    (0..count).flat_map(|from| (from + 1..count).map(move |to| (from, to)));
                let other = pairs.find(|(from, to)| {
                    let nodes = [&topology.nodes[*from], &topology.nodes[*to]];
                    !named(*from, *to) && nodes.iter().all(|node| node.slow == 1.0)
                });
                if let Some((from, to)) = other {
                    let link = words(topology.links.get(from, to));
                    notes.push(format!("Links without a line: {}.", link.join(", ")));
                }
            }
            Others::Routed => {
                notes.push("What has no line of its own takes the fastest way over lines.".into());
            }
            _ => {}
        }
    }
    let slow = topology.nodes.iter().filter(|node| node.slow != 1.0);
    notes.extend(slow.map(|node| {
        format!(
            "Links of {} take {} times as long as others.",
            node.name, node.slow
        )
    }));
    notes
}

fn numa_labels(topology: &Topology, numa: &Numa) -> Vec<String> {
    let label = |(index, node): (usize, &super::NumaNode)| {
        let of = &topology.nodes[node.node];
        let siblings = numa
            .nodes
            .iter()
            .take(index)
            .filter(|it| it.node == node.node);
        match of.numa.len() {
            1 => topology.names_of(node),
            _ => format!("{}.{}", topology.names_of(node), siblings.count()),
        }
    };
    numa.nodes.iter().enumerate().map(label).collect()
}

/// Whether the file names the link between two nodes, or between their groups.
fn names(topology: &Topology, from: usize, to: usize) -> bool {
    let group = |node: usize| topology.nodes[node].group.as_ref();
    topology.named.iter().any(|named| match named {
        Named::Nodes(one, other) => (*one, *other) == (from, to) || (*one, *other) == (to, from),
        Named::Groups(one, other) => {
            let ends = [(group(from), group(to)), (group(to), group(from))];
            ends.contains(&(Some(one), Some(other)))
        }
    })
}

/// All links are alike, and there are few enough.
fn lines_for_all(topology: &Topology) -> bool {
    let count = topology.nodes.len();
    let given = topology.others == Others::Given;
    given && topology.named.is_empty() && count * (count - 1) / 2 <= PAIRS_MAX
}

/// Lines: which nodes or groups they join, and what they cost in either direction.
fn lines(topology: &Topology) -> Vec<(Ends, Link, Link)> {
    let links =
        |from: usize, to: usize| (topology.links.get(from, to), topology.links.get(to, from));
    let mut lines = Vec::new();
    if lines_for_all(topology) {
        for from in 0..topology.nodes.len() {
            for to in from + 1..topology.nodes.len() {
                let (there, back) = links(from, to);
                lines.push((Ends::Nodes(from, to), there, back));
            }
        }
    }
    for named in &topology.named {
        match named {
            Named::Nodes(from, to) => {
                let (there, back) = links(*from, *to);
                lines.push((Ends::Nodes(*from, *to), there, back));
            }
            Named::Groups(one, other) => {
                let of = |group: &String| {
                    let member = |(index, node): (usize, &Node)| {
                        (node.group.as_ref() == Some(group)).then_some(index)
                    };
                    topology
                        .nodes
                        .iter()
                        .enumerate()
                        .filter_map(member)
                        .collect::<Vec<_>>()
                };
                let (ones, others) = (of(one), of(other));
                let from = ones.first().copied();
                let to = others.iter().copied().find(|node| Some(*node) != from);
                if let (Some(from), Some(to)) = (from, to) {
                    let (there, back) = links(from, to);
                    lines.push((Ends::Groups(one.clone(), other.clone()), there, back));
                }
            }
        }
    }
    lines
}

#[derive(Debug, PartialEq)]
enum Ends {
    Nodes(usize, usize),
    Groups(String, String),
}

/// What a direction costs, in one or two lines.
fn words(link: Link) -> Vec<String> {
    let mut first = vec![match link.latency_ns {
        0 => "no latency".to_string(),
        ns => time_text(ns)
            .replace("us", " µs")
            .replace("ms", " ms")
            .replace("ns", " ns"),
    }];
    if link.jitter_ns > 0 {
        let jitter = time_text(link.jitter_ns);
        first[0] += &format!(" ± {}", jitter.replace("us", " µs").replace("ms", " ms"));
    }
    if link.bandwidth_bps > 0 {
        let bandwidth = bandwidth_text(link.bandwidth_bps);
        let (number, unit) = bandwidth.split_at(bandwidth.len() - 1);
        first.push(format!("{number} {unit}bit/s"));
    }
    if link.loss_ppm > 0 {
        first.push(format!("{} lost", loss_text(link.loss_ppm)));
    }
    first
}

/// The same of both, which may differ, and what they go through.
fn both(topology: &Topology, there: Link, back: Link) -> Vec<String> {
    let uplink = Uplink::name(&topology.links.uplinks, there);
    let mut words = both_ways(there, back);
    if let Some(name) = uplink {
        words.insert(0, format!("uplink {name}, shared"));
    }
    words
}

fn both_ways(there: Link, back: Link) -> Vec<String> {
    // Each way has its own queue.
    let cost = |link| Link {
        queue: None,
        ..link
    };
    if cost(there) == cost(back) {
        return words(there);
    }
    let line = |arrow: &str, link| format!("{arrow} {}", words(link).join(", "));
    vec![line("→", there), line("←", back)]
}

fn draw_groups(svg: &mut Svg, picture: &Picture, origin: Point) {
    for group in &picture.groups {
        let area = group.area.moved(origin);
        svg.rectangle(area, 14.0, "group");
        svg.text(area.x + 14.0, area.y + 24.0, "groupname", &group.name);
    }
}

/// Slow links are thin.
fn stroke(link: Link) -> f64 {
    match link.bandwidth_bps {
        0 => 2.5,
        bps => ((bps as f64).log10() - 6.0).clamp(1.5, 5.0),
    }
}

fn ends(picture: &Picture, ends: &Ends, origin: Point) -> Option<(Point, Point)> {
    match ends {
        Ends::Nodes(from, to) => {
            let centre = |node: usize| picture.nodes[node].moved(origin).centre();
            Some((centre(*from), centre(*to)))
        }
        Ends::Groups(one, other) if one != other => {
            let area = |name: &str| {
                let group = picture.groups.iter().find(|group| group.name == name)?;
                Some(group.area.moved(origin))
            };
            let (one, other) = (area(one)?, area(other)?);
            let y = (one.centre().y + other.centre().y) / 2.0;
            let (left, right) = if one.x < other.x {
                (one, other)
            } else {
                (other, one)
            };
            Some((
                Point {
                    x: left.x + left.width,
                    y,
                },
                Point { x: right.x, y },
            ))
        }
        Ends::Groups(..) => None,
    }
}

fn draw_links(svg: &mut Svg, topology: &Topology, picture: &Picture, origin: Point) {
    for (which, there, back) in lines(topology) {
        if let Some((from, to)) = ends(picture, &which, origin) {
            let class = match there.queue {
                Some(_) => "uplink",
                None => "link",
            };
            svg.line(from, to, stroke(there).min(stroke(back)), class);
        }
    }
}

/// What lines cost, where it covers no box, no other label and no other line.
fn draw_labels(svg: &mut Svg, topology: &Topology, picture: &Picture, origin: Point) {
    let mut taken: Vec<Placed> = picture
        .nodes
        .iter()
        .map(|node| node.moved(origin))
        .collect();
    let lines = lines(topology);
    let drawn = lines
        .iter()
        .filter_map(|(which, ..)| ends(picture, which, origin));
    let drawn: Vec<(Point, Point)> = drawn.collect();
    for (which, there, back) in lines {
        let words = both(topology, there, back);
        if let Ends::Groups(one, other) = &which
            && one == other
            && let Some(group) = picture.groups.iter().find(|group| group.name == *one)
        {
            let area = group.area.moved(origin);
            let name_width = 10.0 * one.chars().count() as f64 + 24.0;
            let text = format!("each to each {}", words.join(", "));
            svg.text(area.x + name_width.max(70.0), area.y + 24.0, "cost", &text);
            continue;
        }
        let Some((from, to)) = ends(picture, &which, origin) else {
            continue;
        };
        let longest = words.iter().map(|word| word.chars().count()).max();
        let (width, height) = (
            12.0 + 6.3 * longest.unwrap_or(0) as f64,
            6.0 + 14.0 * words.len() as f64,
        );
        let at = |part: f64| Placed {
            x: from.x + (to.x - from.x) * part - width / 2.0,
            y: from.y + (to.y - from.y) * part - height / 2.0,
            width,
            height,
        };
        let parts = [0.5, 0.4, 0.6, 0.33, 0.67, 0.27, 0.73, 0.22, 0.78];
        let others = drawn.iter().filter(|other| **other != (from, to));
        let others: Vec<&(Point, Point)> = others.collect();
        let is_free = |area: &Placed| {
            !taken.iter().any(|other| other.meets(*area))
                && !others.iter().any(|(from, to)| area.is_on(*from, *to))
        };
        let area = parts.iter().map(|part| at(*part)).find(is_free);
        let area = area.unwrap_or(at(0.5));
        svg.rectangle(area, 6.0, "label");
        for (line, word) in words.iter().enumerate() {
            let y = area.y + 15.0 + 14.0 * line as f64;
            svg.text(area.x + width / 2.0, y, "cost middle", word);
        }
        taken.push(area);
    }
}

fn draw_node(svg: &mut Svg, node: &Node, area: Placed) {
    let kind = match (node.cpus, node.memory_bytes) {
        _ if node.slow != 1.0 => "slow",
        (0, _) => "memory",
        (_, 0) => "cpuonly",
        _ => "node",
    };
    svg.rectangle(area, 10.0, &format!("box {kind}"));
    svg.text(area.x + 12.0, area.y + 22.0, "name", &node.name);
    let memory = match node.memory_bytes {
        0 => "no memory".into(),
        bytes => size(bytes),
    };
    svg.text(
        area.x + area.width - 12.0,
        area.y + 22.0,
        "size end",
        &memory,
    );
    let cpus = match node.cpus {
        0 => "no CPUs".into(),
        1 => "1 CPU".into(),
        count => format!("{count} CPUs"),
    };
    svg.text(area.x + 12.0, area.y + 42.0, "size", &cpus);
    let note = node.address.clone().or_else(|| {
        let parts = node.numa.len();
        (parts > 1).then(|| format!("{parts} NUMA nodes"))
    });
    if let Some(note) = note {
        svg.text(area.x + area.width - 12.0, area.y + 42.0, "size end", &note);
    }
    draw_cpus(svg, node, area);
    let bar = Placed {
        x: area.x + 12.0,
        y: area.y + BOX_HEIGHT - 16.0,
        width: BOX_WIDTH - 24.0,
        height: 6.0,
    };
    if node.memory_bytes > 0 {
        // Parts of several NUMA nodes beside each other.
        let mut x = bar.x;
        for part in &node.numa {
            let width = bar.width * part.memory_bytes as f64 / node.memory_bytes as f64;
            if width > 3.0 {
                let area = Placed {
                    x,
                    width: width - 2.0,
                    ..bar
                };
                svg.rectangle(area, 3.0, "bar");
            }
            x += width;
        }
    }
}

/// A square for each CPU, with a gap between sockets.
fn draw_cpus(svg: &mut Svg, node: &Node, area: Placed) {
    let per_socket = node.cpus.div_ceil(node.sockets).max(1);
    for cpu in 0..node.cpus.min(2 * CPUS_PER_ROW) {
        let (row, column) = (cpu / CPUS_PER_ROW, cpu % CPUS_PER_ROW);
        let gap = (cpu / per_socket) as f64 * 4.0;
        let square = Placed {
            x: area.x + 12.0 + column as f64 * (CPU_SIZE + 2.5) + gap,
            y: area.y + 50.0 + row as f64 * (CPU_SIZE + 2.5),
            width: CPU_SIZE,
            height: CPU_SIZE,
        };
        svg.rectangle(square, 2.0, "cpu");
    }
}

fn draw_distances(svg: &mut Svg, numa: &Numa, labels: &[String], label_width: f64, at: Point) {
    svg.text(at.x, at.y + 16.0, "groupname", "Distances");
    let cell = |row: usize, column: usize| Placed {
        x: at.x + label_width + CELL_WIDTH * column as f64,
        y: at.y + CELL_HEIGHT * (row + 2) as f64,
        width: CELL_WIDTH - 2.0,
        height: CELL_HEIGHT - 2.0,
    };
    let furthest = numa.distances.iter().flatten().max().copied().unwrap_or(10);
    for (index, label) in labels.iter().enumerate() {
        let area = cell(index, 0);
        svg.text(at.x, area.y + 17.0, "size", &format!("{index}  {label}"));
        let area = cell(0, index);
        svg.text(
            area.centre().x,
            area.y - 8.0,
            "size middle",
            &index.to_string(),
        );
    }
    for (row, distances) in numa.distances.iter().enumerate() {
        for (column, distance) in distances.iter().enumerate() {
            let area = cell(row, column);
            let far = f64::from(distance - 10) / f64::from((furthest - 10).max(1));
            svg.shade(area, far);
            svg.text(
                area.centre().x,
                area.y + 17.0,
                if far > 0.5 {
                    "far middle"
                } else {
                    "size middle"
                },
                &distance.to_string(),
            );
        }
    }
}
