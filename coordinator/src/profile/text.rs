//! The findings as tables for the terminal.

use super::findings::{Findings, Named, Tally};
use crate::status::aligned;
use crate::units::duration;
use std::fmt::Write;

/// Rows of a table.
const ROWS_MAX: usize = 15;

/// Names of one page that are listed, and characters of them.
const NAMES_MAX: usize = 4;
const NAME_CHARACTERS_MAX: usize = 48;

pub(super) fn report(findings: &Findings) -> String {
    let total = &findings.total;
    let mut text = format!(
        "{}: {} faults that asked another node in {:.1} s; threads waited {}\n",
        findings.name,
        total.faults,
        findings.seconds,
        duration(total.waited_ns),
    );
    if let Some(line) = dropped(findings) {
        text += &format!("{line}\n");
    }
    if let Some(why) = &findings.no_symbols {
        text += &format!("addresses have no names: {why}\n");
    }
    if total.faults == 0 {
        return text;
    }
    section(&mut text, "Who got pages from whom", &matrix(findings), 1);
    let pages = findings.pages.iter().take(ROWS_MAX).map(|page| {
        let name = format!("{:#x} {}", page.address, names(&page.about));
        row(name, &page.tally)
    });
    section(&mut text, "Hottest pages", &table(findings, pages), 1);
    for (title, list) in [
        ("Hottest data", &findings.places),
        ("Hottest functions", &findings.functions),
        ("Hottest instructions", &findings.instructions),
    ] {
        section(&mut text, title, &table(findings, rows(list)), 1);
    }
    if !findings.false_sharing.is_empty() {
        let _ = writeln!(
            text,
            "\nDifferent things on one page, written to from different nodes"
        );
        for shared in findings.false_sharing.iter().take(ROWS_MAX) {
            let page = u64::from(shared.page) << 12;
            let _ = writeln!(text, "  page {page:#x} {}", names(&shared.about));
            for (part, counts) in &shared.writes {
                let from: Vec<String> = counts
                    .iter()
                    .zip(&findings.nodes)
                    .filter(|(count, _)| **count > 0)
                    .map(|(count, node)| format!("{node} {count}"))
                    .collect();
                let _ = writeln!(text, "    {part}: {}", from.join(", "));
            }
        }
    }
    text
}

/// What is missing, in one line.
pub(super) fn dropped(findings: &Findings) -> Option<String> {
    let nodes = findings.dropped.iter().zip(&findings.nodes);
    let dropped: Vec<String> = nodes
        .filter(|(count, _)| **count > 0)
        .map(|(count, node)| format!("{count} on {node}"))
        .collect();
    (!dropped.is_empty())
        .then(|| format!("not among them, for want of room: {}", dropped.join(", ")))
}

/// Some names of many.
pub(super) fn names(names: &[String]) -> String {
    let mut text = names[..names.len().min(NAMES_MAX)].join(", ");
    if let Some((end, _)) = text.char_indices().nth(NAME_CHARACTERS_MAX) {
        text.truncate(end);
        text.push('…');
    } else if names.len() > NAMES_MAX {
        text += &format!(" and {} more", names.len() - NAMES_MAX);
    }
    text
}

fn section(text: &mut String, title: &str, rows: &[Vec<String>], columns_left: usize) {
    let _ = write!(text, "\n{title}\n{}", aligned(rows, columns_left));
}

fn matrix(findings: &Findings) -> Vec<Vec<String>> {
    let mut header = vec!["asked \\ gave".to_string()];
    header.extend(findings.nodes.iter().cloned());
    header.push("?".into());
    let rows = findings.nodes.iter().zip(&findings.matrix);
    let rows = rows.map(|(node, counts)| {
        let cells = counts.iter().map(u64::to_string);
        std::iter::once(node.clone()).chain(cells).collect()
    });
    std::iter::once(header).chain(rows).collect()
}

fn rows(list: &[Named]) -> impl Iterator<Item = Vec<String>> {
    let list = list.iter().take(ROWS_MAX);
    list.map(|named| row(named.title(), &named.tally))
}

fn row(name: String, tally: &Tally) -> Vec<String> {
    let mut row = vec![
        name,
        tally.faults.to_string(),
        tally.read.to_string(),
        tally.write.to_string(),
        tally.upgrade.to_string(),
        duration(tally.waited_ns),
        duration(tally.waited_ns / tally.faults.max(1)),
    ];
    row.extend(tally.by_node.iter().map(u64::to_string));
    row
}

fn table(findings: &Findings, rows: impl Iterator<Item = Vec<String>>) -> Vec<Vec<String>> {
    let header = ["", "FAULTS", "READ", "WRITE", "UPGRADE", "WAITED", "EACH"];
    let header = header.into_iter().map(String::from);
    let header = header.chain(findings.nodes.iter().map(|node| format!("ON {node}")));
    std::iter::once(header.collect()).chain(rows).collect()
}
