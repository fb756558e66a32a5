//! Where nodes are in a picture: on a ring, or below each other in their groups.

use crate::topology::Node;
use std::f64::consts::PI;

pub(super) const BOX_WIDTH: f64 = 176.0;
pub(super) const BOX_HEIGHT: f64 = 96.0;

/// Between neighbours on a ring, for what their link costs.
const RING_STEP: f64 = 250.0;
const RING_RADIUS_MIN: f64 = 200.0;

/// Within a group, and between groups.
const GROUP_PADDING: f64 = 20.0;
const GROUP_TITLE: f64 = 38.0;
const GROUP_GAP: f64 = 190.0;
const GROUP_WIDTH_MIN: f64 = 330.0;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Placed {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) area: Placed,
}

#[derive(Debug)]
pub(super) struct Picture {
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) nodes: Vec<Placed>,
    pub(super) groups: Vec<Group>,
}

impl Placed {
    pub(super) fn moved(self, by: Point) -> Self {
        Self {
            x: self.x + by.x,
            y: self.y + by.y,
            ..self
        }
    }

    pub(super) fn centre(self) -> Point {
        Point {
            x: self.x + self.width / 2.0,
            y: self.y + self.height / 2.0,
        }
    }

    pub(super) fn meets(self, other: Self) -> bool {
        self.x < other.x + other.width
            && other.x < self.x + self.width
            && self.y < other.y + other.height
            && other.y < self.y + self.height
    }

    /// Whether a line leads over it.
    pub(super) fn is_on(self, from: Point, to: Point) -> bool {
        const STEPS: u32 = 100;
        (0..=STEPS).any(|step| {
            let part = f64::from(step) / f64::from(STEPS);
            let x = from.x + (to.x - from.x) * part;
            let y = from.y + (to.y - from.y) * part;
            (self.x..self.x + self.width).contains(&x)
                && (self.y..self.y + self.height).contains(&y)
        })
    }

    fn of_node(x: f64, y: f64) -> Self {
        Self {
            x,
            y,
            width: BOX_WIDTH,
            height: BOX_HEIGHT,
        }
    }
}

pub(super) fn place(nodes: &[Node]) -> Picture {
    match nodes.iter().all(|node| node.group.is_some()) {
        true => columns(nodes),
        false => ring(nodes),
    }
}

fn ring(nodes: &[Node]) -> Picture {
    let count = nodes.len();
    let centres: Vec<Point> = match count {
        1 => vec![Point { x: 0.0, y: 0.0 }],
        2 => [0.0, BOX_WIDTH + 190.0]
            .map(|x| Point { x, y: 0.0 })
            .to_vec(),
        _ => {
            let step = 2.0 * PI / count as f64;
            let radius = (RING_STEP / 2.0 / (step / 2.0).sin()).max(RING_RADIUS_MIN);
            // Four are the corners of a square.
            let first = if count == 4 { -0.75 * PI } else { -PI / 2.0 };
            let at = |index: usize| {
                let angle = first + step * index as f64;
                // Boxes are wider than high, and so is a screen.
                Point {
                    x: 1.15 * radius * angle.cos(),
                    y: 0.85 * radius * angle.sin(),
                }
            };
            (0..count).map(at).collect()
        }
    };
    let least = |of: fn(&Point) -> f64| centres.iter().map(of).fold(f64::MAX, f64::min);
    let (left, top) = (least(|point| point.x), least(|point| point.y));
    let place = |point: &Point| Placed::of_node(point.x - left, point.y - top);
    let nodes: Vec<Placed> = centres.iter().map(place).collect();
    let most = |of: fn(&Placed) -> f64| nodes.iter().map(of).fold(0.0, f64::max);
    Picture {
        width: most(|node| node.x + node.width),
        height: most(|node| node.y + node.height),
        groups: Vec::new(),
        nodes,
    }
}

fn columns(nodes: &[Node]) -> Picture {
    let mut names: Vec<&String> = Vec::new();
    for group in nodes.iter().filter_map(|node| node.group.as_ref()) {
        if !names.contains(&group) {
            names.push(group);
        }
    }
    let width = GROUP_WIDTH_MIN.max(BOX_WIDTH + 2.0 * GROUP_PADDING);
    let mut placed = vec![Placed::of_node(0.0, 0.0); nodes.len()];
    let mut groups = Vec::new();
    for (column, name) in names.iter().enumerate() {
        let x = column as f64 * (width + GROUP_GAP);
        let mut y = GROUP_TITLE;
        let members = nodes.iter().zip(&mut placed);
        for (_, place) in members.filter(|(node, _)| node.group.as_ref() == Some(name)) {
            *place = Placed::of_node(x + (width - BOX_WIDTH) / 2.0, y);
            y += BOX_HEIGHT + GROUP_PADDING;
        }
        groups.push(Group {
            name: name.to_string(),
            area: Placed {
                x,
                y: 0.0,
                width,
                height: y,
            },
        });
    }
    let height = groups
        .iter()
        .map(|group| group.area.height)
        .fold(0.0, f64::max);
    Picture {
        width: names.len() as f64 * (width + GROUP_GAP) - GROUP_GAP,
        height,
        nodes: placed,
        groups,
    }
}
