//! What the faults of a guest have in common: pages, symbols, instructions, nodes.

use super::recording::{Recorded, Recording};
use super::symbols::Symbols;
use serde::Serialize;
use span_api::profile::{Fault, FaultKind, Through, UserPage};
use std::collections::{BTreeMap, BTreeSet};

/// What cannot be told apart any more when it is written to from two nodes.
const LINE_BYTES: u64 = 64;

/// Faults that have something in common.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Tally {
    pub(super) faults: u64,
    pub(super) read: u64,
    pub(super) write: u64,
    pub(super) upgrade: u64,
    pub(super) waited_ns: u64,
    /// By the node that asked, in the order of the nodes.
    pub(super) by_node: Vec<u64>,
}

impl Tally {
    fn new(nodes: usize) -> Self {
        Self {
            by_node: vec![0; nodes],
            ..Self::default()
        }
    }

    fn add(&mut self, node: usize, fault: &Fault) {
        self.faults += 1;
        *match fault.kind {
            FaultKind::Read => &mut self.read,
            FaultKind::Write => &mut self.write,
            FaultKind::Upgrade => &mut self.upgrade,
        } += 1;
        self.waited_ns += fault.waited_ns;
        self.by_node[node] += 1;
    }
}

/// Something with a name that faults are about.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Named {
    pub(super) name: String,
    /// Source file and line, where the kernel's file has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) line: Option<String>,
    #[serde(flatten)]
    pub(super) tally: Tally,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Page {
    /// Number of the page in guest memory, and its physical address.
    pub(super) page: u32,
    pub(super) address: u64,
    /// What faults were about, most of them first.
    pub(super) about: Vec<String>,
    /// Everything that lies in it, as far as it can be known.
    pub(super) holds: Vec<String>,
    #[serde(flatten)]
    pub(super) tally: Tally,
}

impl Named {
    /// For people.
    pub(super) fn title(&self) -> String {
        match &self.line {
            Some(line) => format!("{} {line}", self.name),
            None => self.name.clone(),
        }
    }
}

/// A page of which nodes write to different parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Shared {
    pub(super) page: u32,
    /// What faults on the page were about, most of them first.
    pub(super) about: Vec<String>,
    /// What is written to, and how often from each node.
    pub(super) writes: BTreeMap<String, Vec<u64>>,
}

impl Shared {
    fn total(&self) -> u64 {
        self.writes.values().flatten().sum()
    }
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Cpu {
    pub(super) cpu: u16,
    pub(super) node: String,
    pub(super) faults: u64,
    pub(super) waited_ns: u64,
}

/// All of it, the hottest first.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Findings {
    pub(super) name: String,
    pub(super) seconds: f64,
    pub(super) nodes: Vec<String>,
    /// Why addresses have no names.
    pub(super) no_symbols: Option<String>,
    pub(super) total: Tally,
    /// Faults that happened and are not in here, by node.
    pub(super) dropped: Vec<u64>,
    /// Pages that the node of a row got from the node of a column. The last column: from none that is
    /// known.
    pub(super) matrix: Vec<Vec<u64>>,
    pub(super) cpus: Vec<Cpu>,
    pub(super) pages: Vec<Page>,
    /// Variables, and kinds of memory that has none.
    pub(super) places: Vec<Named>,
    pub(super) functions: Vec<Named>,
    pub(super) instructions: Vec<Named>,
    pub(super) false_sharing: Vec<Shared>,
}

/// What a fault was about.
fn place(fault: &Fault, symbols: &Symbols, uses: &BTreeMap<u32, String>) -> String {
    if let Some(user) = fault.user {
        return format!("process {} {}", user.process, name(&user));
    }
    match fault.through {
        Through::Vmalloc => "vmalloc".into(),
        Through::Linear => match symbols.variable(fault.address) {
            Some(name) => name,
            None if symbols.is_static(fault.address) => "static data without a name".into(),
            None => match uses.get(&fault.page) {
                Some(used) => used.clone(),
                None => "linear map".into(),
            },
        },
    }
}

/// A process's name, with what a terminal might take for something else replaced.
fn name(user: &UserPage) -> String {
    let letters = user
        .name
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    let name = String::from_utf8_lossy(letters);
    name.replace(|c: char| c.is_control() || c == ' ', "?")
}

/// The function that made a fault; programs of the guest's are not looked into.
fn function(fault: &Fault, symbols: &Symbols) -> String {
    match fault.user {
        Some(user) => format!("program {}", name(&user)),
        None => symbols.function_name(fault.instruction),
    }
}

pub(super) fn instruction(fault: &Fault, symbols: &Symbols) -> String {
    match fault.user {
        Some(user) => format!("program {} {:#x}", name(&user), user.instruction),
        None => symbols.instruction(fault.instruction),
    }
}

/// What in a page was written to, as far as the address says it.
fn part(fault: &Fault, symbols: &Symbols) -> String {
    let named = match fault.through {
        Through::Linear => symbols.variable(fault.address),
        Through::Vmalloc => None,
    };
    let line = fault.address % 4096 / LINE_BYTES * LINE_BYTES;
    named.unwrap_or_else(|| format!("+{line:#x}"))
}

/// Parts of one page that different nodes have written to.
fn shared(page: u32, about: &[String], writes: BTreeMap<String, Vec<u64>>) -> Option<Shared> {
    let writers = |counts: &[u64]| -> BTreeSet<usize> {
        let nodes = counts.iter().enumerate().filter(|(_, count)| **count > 0);
        nodes.map(|(node, _)| node).collect()
    };
    let parts: Vec<_> = writes.values().map(|counts| writers(counts)).collect();
    let apart = parts.iter().enumerate().any(|(i, some)| {
        let others = parts[i + 1..].iter();
        others
            .into_iter()
            .any(|other| some.union(other).count() > 1)
    });
    apart.then(|| Shared {
        page,
        about: about.to_vec(),
        writes,
    })
}

/// Collects under names.
struct Tallies {
    nodes: usize,
    named: BTreeMap<String, (Option<u64>, Tally)>,
}

impl Tallies {
    fn new(nodes: usize) -> Self {
        Self {
            nodes,
            named: BTreeMap::new(),
        }
    }

    fn add(&mut self, name: String, node: usize, fault: &Fault) {
        // A program's are not the kernel's.
        let instruction = fault.user.is_none().then_some(fault.instruction);
        let new = || (instruction, Tally::new(self.nodes));
        let (_, tally) = self.named.entry(name).or_insert_with(new);
        tally.add(node, fault);
    }

    /// `line` says where an instruction that has the name comes from.
    fn hottest_first(self, line: impl Fn(u64) -> Option<String>) -> Vec<Named> {
        let named = self.named.into_iter();
        let named = named.map(|(name, (instruction, tally))| Named {
            name,
            line: instruction.and_then(&line),
            tally,
        });
        let mut all: Vec<_> = named.collect();
        all.sort_by_key(|named| std::cmp::Reverse(named.tally.waited_ns));
        all
    }
}

#[derive(Debug)]
struct PageSeen {
    tally: Tally,
    about: BTreeMap<String, u64>,
    holds: BTreeSet<String>,
    writes: BTreeMap<String, Vec<u64>>,
}

impl Findings {
    pub(super) fn new(recording: &Recording, symbols: Result<&Symbols, String>) -> Self {
        let nodes = recording.subject.nodes.len();
        let none = Symbols::default();
        let (symbols, no_symbols) = match symbols {
            Ok(symbols) => (symbols, None),
            Err(why) => (&none, Some(why)),
        };
        let mut total = Tally::new(nodes);
        let mut matrix = vec![vec![0; nodes + 1]; nodes];
        let mut cpus: Vec<Cpu> = Vec::new();
        for node in &recording.subject.nodes {
            cpus.extend(node.cpus.iter().map(|cpu| Cpu {
                cpu: *cpu,
                node: node.name.clone(),
                faults: 0,
                waited_ns: 0,
            }));
        }
        let mut pages: BTreeMap<u32, PageSeen> = BTreeMap::new();
        let mut places = Tallies::new(nodes);
        let mut functions = Tallies::new(nodes);
        let mut instructions = Tallies::new(nodes);
        for Recorded { node, fault } in &recording.faults {
            let node = usize::from(*node);
            total.add(node, fault);
            let from = fault
                .from
                .map_or(nodes, |from| usize::from(from).min(nodes));
            matrix[node][from] += 1;
            if let Some(cpu) = cpus.iter_mut().find(|cpu| Some(cpu.cpu) == fault.cpu) {
                cpu.faults += 1;
                cpu.waited_ns += fault.waited_ns;
            }
            functions.add(function(fault, symbols), node, fault);
            instructions.add(instruction(fault, symbols), node, fault);
            let place = place(fault, symbols, &recording.uses);
            let page = pages.entry(fault.page).or_insert_with(|| PageSeen {
                tally: Tally::new(nodes),
                about: BTreeMap::new(),
                holds: BTreeSet::new(),
                writes: BTreeMap::new(),
            });
            page.tally.add(node, fault);
            *page.about.entry(place.clone()).or_default() += 1;
            match (fault.user, fault.through) {
                (Some(user), _) => {
                    let at = user.address & !0xfff;
                    page.holds.insert(format!("{place} {at:#x}"));
                }
                (None, Through::Linear) if symbols.is_static(fault.address) => {
                    page.holds.extend(symbols.on_page(fault.address));
                }
                (None, Through::Vmalloc) => {
                    page.holds
                        .insert(format!("vmalloc {:#x}", fault.address & !0xfff));
                }
                (None, Through::Linear) => _ = page.holds.insert(place.clone()),
            }
            if fault.kind != FaultKind::Read {
                let part = page.writes.entry(part(fault, symbols));
                part.or_insert_with(|| vec![0; nodes])[node] += 1;
            }
            places.add(place, node, fault);
        }
        let mut false_sharing = Vec::new();
        let mut hottest = Vec::new();
        for (page, seen) in pages {
            let mut about: Vec<_> = seen.about.into_iter().collect();
            about.sort_by_key(|(_, faults)| std::cmp::Reverse(*faults));
            let about: Vec<String> = about.into_iter().map(|(name, _)| name).collect();
            false_sharing.extend(shared(page, &about, seen.writes));
            hottest.push(Page {
                about,
                page,
                address: u64::from(page) << 12,
                holds: seen.holds.into_iter().collect(),
                tally: seen.tally,
            });
        }
        hottest.sort_by_key(|page| std::cmp::Reverse(page.tally.waited_ns));
        false_sharing.sort_by_key(|shared| std::cmp::Reverse(shared.total()));
        Self {
            name: recording.subject.name.clone(),
            seconds: recording.seconds,
            nodes: recording.node_names(),
            no_symbols,
            total,
            dropped: recording.dropped.clone(),
            matrix,
            cpus,
            pages: hottest,
            places: places.hottest_first(|_| None),
            functions: functions.hottest_first(|_| None),
            instructions: instructions.hottest_first(|instruction| symbols.line(instruction)),
            false_sharing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::recording::{example, write};
    use super::*;

    fn symbols() -> Symbols {
        Symbols::known(
            &[("work", 0x100, 0x20)],
            &[
                ("lock", 0x2000, 8),
                ("count", 0x2008, 8),
                ("far", 0x3000, 8),
            ],
        )
    }

    #[test]
    fn two_things_on_one_page_written_from_two_nodes_are_shared_falsely() {
        let written = |faults: &[(u16, u64)]| {
            let faults: Vec<_> = faults
                .iter()
                .map(|(node, address)| (*node, write(*address, 0x104)))
                .collect();
            Findings::new(&example(&faults), Ok(&symbols())).false_sharing
        };
        let found = written(&[(0, 0x2000), (1, 0x2008), (0, 0x2000)]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].page, 2);
        assert_eq!(found[0].writes["lock"], [2, 0]);
        assert_eq!(found[0].writes["count"], [0, 1]);
        // One of them from both.
        assert_eq!(written(&[(0, 0x2000), (0, 0x2008), (1, 0x2008)]).len(), 1);
        // One node only, one thing only, another page.
        assert_eq!(written(&[(0, 0x2000), (0, 0x2008)]), []);
        assert_eq!(written(&[(0, 0x2000), (1, 0x2004)]), []);
        assert_eq!(written(&[(0, 0x2000), (1, 0x3000)]), []);
        // Memory without names: by the line.
        let found = written(&[(0, 0x9000), (1, 0x9080)]);
        assert_eq!(
            found[0].writes.keys().collect::<Vec<_>>(),
            ["+0x0", "+0x80"]
        );
        assert_eq!(written(&[(0, 0x9000), (1, 0x9030)]), []);
    }

    #[test]
    fn reading_shares_nothing() {
        let mut read = write(0x2000, 0x104);
        read.kind = FaultKind::Read;
        let faults = [(0, read), (1, write(0x2008, 0x104))];
        let findings = Findings::new(&example(&faults), Ok(&symbols()));
        assert_eq!(findings.false_sharing, []);
    }

    fn of_process(address: u64) -> Fault {
        let mut name = [0; 16];
        name[..4].copy_from_slice(b"a\nb ");
        let mut fault = write(0x9000 + address % 4096, 0x40_1234);
        fault.user = Some(UserPage {
            process: 77,
            name,
            address,
            instruction: 0x40_1234,
        });
        fault
    }

    #[test]
    fn processes_share_pages_falsely_too() {
        let faults = [(0, of_process(0x7f_0010)), (1, of_process(0x7f_0090))];
        let findings = Findings::new(&example(&faults), Ok(&symbols()));
        let writes = &findings.false_sharing[0].writes;
        assert_eq!(writes.keys().collect::<Vec<_>>(), ["+0x0", "+0x80"]);
        assert_eq!(findings.pages[0].holds, ["process 77 a?b? 0x7f0000"]);
        assert_eq!(findings.functions[0].name, "program a?b?");
        assert_eq!(findings.instructions[0].name, "program a?b? 0x401234");
    }

    #[test]
    fn faults_are_told_apart_by_what_they_are_about() {
        let mut vmalloc = write(0x9000, 0x104);
        vmalloc.through = Through::Vmalloc;
        vmalloc.from = None;
        let mut slow = write(0x3000, 0x108);
        slow.waited_ns = 1_000_000;
        let faults = [
            (0, write(0x2000, 0x104)),
            (1, write(0x2001, 0x104)),
            (0, slow),
            (0, of_process(0x40_0000)),
            (1, vmalloc),
            (1, write(0x9000, 0x999)),
            (1, write(0x2500, 0x104)),
        ];
        let findings = Findings::new(&example(&faults), Ok(&symbols()));
        let count = |list: &[Named], name: &str| {
            let found = list.iter().find(|named| named.name == name);
            found.map_or(0, |named| named.tally.faults)
        };
        for (name, faults) in [
            ("lock", 2),
            ("far", 1),
            ("process 77 a?b?", 1),
            ("vmalloc", 1),
            ("linear map", 1),
            ("static data without a name", 1),
        ] {
            assert_eq!(count(&findings.places, name), faults, "{name}");
        }
        assert_eq!(findings.places[0].name, "far", "the one that took longest");
        assert_eq!(count(&findings.functions, "work"), 5);
        assert_eq!(count(&findings.instructions, "work+0x4"), 4);
        assert_eq!(count(&findings.instructions, "host code 0x999"), 1);
        assert_eq!(findings.matrix, [[0, 3, 0], [0, 3, 1]]);
        assert_eq!(findings.total.by_node, [3, 4]);
        let static_page = findings.pages.iter().find(|page| page.page == 2).unwrap();
        assert_eq!(static_page.holds, ["count", "lock"]);
        assert_eq!(static_page.about, ["lock", "static data without a name"]);
        assert_eq!(static_page.tally.faults, 3);
        let cpus: Vec<_> = findings
            .cpus
            .iter()
            .map(|cpu| (cpu.cpu, cpu.faults))
            .collect();
        assert_eq!(cpus, [(0, 7), (1, 0)]);
    }
}
