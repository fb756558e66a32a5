//! The findings as one HTML file that needs nothing else: a map of memory over time, who got pages from
//! whom, and tables.

use super::findings::{Findings, Tally};
use super::recording::Recording;
use super::text::{dropped, names};
use crate::units::duration;
use std::collections::BTreeSet;
use std::fmt::{self, Write};

/// Rows of a table.
const ROWS_MAX: usize = 100;

/// Cells of the map, and their size.
const COLUMNS: usize = 120;
const ROWS: usize = 64;
const CELL: usize = 8;

/// Where rows have their addresses, each so many of them.
const MARGIN: usize = 90;
const LABEL_EVERY: usize = 8;

const STYLE: &str = "body{font:14px system-ui,sans-serif;margin:2em;color:#222}\
    table{border-collapse:collapse;margin:.5em 0 2em}\
    td,th{padding:.15em .7em;text-align:right;border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}\
    td:first-child,th:first-child{text-align:left;font-family:ui-monospace,monospace;max-width:50em;overflow-wrap:anywhere}\
    svg{background:#f6f6f6}text{font-size:11px;fill:#555}";

/// Text that may hold anything.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '<' => to.write_str("&lt;"),
            '>' => to.write_str("&gt;"),
            '&' => to.write_str("&amp;"),
            '"' => to.write_str("&quot;"),
            c => to.write_char(c),
        })
    }
}

pub(super) fn report(findings: &Findings, recording: &Recording) -> String {
    let mut html = String::new();
    // Writing to a string cannot fail.
    let _ = page(&mut html, findings, recording);
    html
}

fn page(to: &mut String, findings: &Findings, recording: &Recording) -> fmt::Result {
    let name = Text(&findings.name);
    writeln!(
        to,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Faults of {name}</title>\
         <style>{STYLE}</style><h1>Faults of {name}</h1>\
         <p>{} faults that asked another node in {:.1} s; threads waited {}.",
        findings.total.faults,
        findings.seconds,
        duration(findings.total.waited_ns),
    )?;
    for line in dropped(findings).iter().chain(&findings.no_symbols) {
        writeln!(to, "<p><b>{}</b>", Text(line))?;
    }
    writeln!(to, "<h2>Memory over time</h2>")?;
    map(to, recording)?;
    writeln!(to, "<h2>Who got pages from whom</h2>")?;
    matrix(to, findings)?;
    if !findings.false_sharing.is_empty() {
        writeln!(
            to,
            "<h2>Different things on one page, written to from different nodes</h2>"
        )?;
        sharing(to, findings)?;
    }
    writeln!(to, "<h2>Hottest pages</h2>")?;
    let pages = findings.pages.iter().take(ROWS_MAX).map(|page| {
        let name = format!("{:#x} {}", page.address, names(&page.about));
        (name, &page.tally)
    });
    table(to, findings, pages)?;
    for (title, list) in [
        ("Hottest data", &findings.places),
        ("Hottest functions", &findings.functions),
        ("Hottest instructions", &findings.instructions),
    ] {
        writeln!(to, "<h2>{title}</h2>")?;
        let list = list.iter().take(ROWS_MAX);
        table(
            to,
            findings,
            list.map(|named| (named.title(), &named.tally)),
        )?;
    }
    writeln!(to, "</html>")
}

/// How strong a count is shown, of 0 to 1: each doubling makes the same difference.
fn strength(count: u64, highest: u64) -> f64 {
    match highest {
        0 => 0.0,
        _ => (count as f64 + 1.0).log2() / (highest as f64 + 1.0).log2(),
    }
}

/// From yellow, a few, to red, most.
fn colour(strength: f64) -> String {
    format!(
        "hsl({:.0} 90% {:.0}%)",
        55.0 - 55.0 * strength,
        82.0 - 42.0 * strength
    )
}

/// Faults by time and page: a row for so many pages that had any, in the order of their addresses.
fn map(to: &mut String, recording: &Recording) -> fmt::Result {
    let pages: BTreeSet<u32> = recording.faults.iter().map(|it| it.fault.page).collect();
    let pages: Vec<u32> = pages.into_iter().collect();
    let rows: Vec<&[u32]> = pages.chunks(pages.len().div_ceil(ROWS).max(1)).collect();
    let row_of = |page: u32| rows.partition_point(|row| row[row.len() - 1] < page);
    let (first_ns, last_ns) = recording.span_ns();
    let span_ns = (last_ns - first_ns).max(1);
    let mut cells = vec![[0u64; COLUMNS]; rows.len()];
    for recorded in &recording.faults {
        let fault = &recorded.fault;
        let column = u128::from(fault.began_ns - first_ns) * COLUMNS as u128 / u128::from(span_ns);
        cells[row_of(fault.page)][(column as usize).min(COLUMNS - 1)] += 1;
    }
    let highest = cells.iter().flatten().copied().max().unwrap_or(0);
    let (width, height) = (COLUMNS * CELL, rows.len() * CELL);
    writeln!(
        to,
        "<p>Each row is {} of the pages that had faults, by address.</p>\
         <svg width=\"{}\" height=\"{}\" role=\"img\"><text x=\"{MARGIN}\" y=\"{}\">0 s</text>\
         <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{:.1} s</text>",
        rows.first().map_or(0, |row| row.len()),
        width + MARGIN,
        height + 20,
        height + 15,
        width + MARGIN,
        height + 15,
        span_ns as f64 / 1e9,
    )?;
    for (row, counts) in cells.iter().enumerate() {
        let address = u64::from(rows[row][0]) << 12;
        if row % LABEL_EVERY == 0 {
            writeln!(
                to,
                "<text x=\"0\" y=\"{}\">{address:#x}</text>",
                (row + 1) * CELL
            )?;
        }
        for (column, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            writeln!(
                to,
                "<rect x=\"{}\" y=\"{}\" width=\"{CELL}\" height=\"{CELL}\" fill=\"{}\">\
                 <title>{count} faults from {address:#x} on, {:.2} s</title></rect>",
                column * CELL + MARGIN,
                row * CELL,
                colour(strength(*count, highest)),
                span_ns as f64 / 1e9 * column as f64 / COLUMNS as f64,
            )?;
        }
    }
    writeln!(to, "</svg>")
}

fn matrix(to: &mut String, findings: &Findings) -> fmt::Result {
    let highest = findings.matrix.iter().flatten().copied().max().unwrap_or(0);
    write!(to, "<table><tr><th>asked \\ gave")?;
    for node in &findings.nodes {
        write!(to, "<th>{}", Text(node))?;
    }
    writeln!(to, "<th>?")?;
    for (node, counts) in findings.nodes.iter().zip(&findings.matrix) {
        write!(to, "<tr><td>{}", Text(node))?;
        for count in counts {
            match count {
                0 => write!(to, "<td>0")?,
                _ => {
                    let colour = colour(strength(*count, highest));
                    write!(to, "<td style=\"background:{colour}\">{count}")?;
                }
            }
        }
        writeln!(to)?;
    }
    writeln!(to, "</table>")
}

fn sharing(to: &mut String, findings: &Findings) -> fmt::Result {
    write!(
        to,
        "<table><tr><th>page<th style=\"text-align:left\">written to"
    )?;
    for node in &findings.nodes {
        write!(to, "<th>from {}", Text(node))?;
    }
    writeln!(to)?;
    for shared in findings.false_sharing.iter().take(ROWS_MAX) {
        let page = format!(
            "{:#x} {}",
            u64::from(shared.page) << 12,
            names(&shared.about)
        );
        for (part, counts) in &shared.writes {
            write!(
                to,
                "<tr><td>{}<td style=\"text-align:left\">{}",
                Text(&page),
                Text(part)
            )?;
            counts
                .iter()
                .try_for_each(|count| write!(to, "<td>{count}"))?;
            writeln!(to)?;
        }
    }
    writeln!(to, "</table>")
}

fn table<'a>(
    to: &mut String,
    findings: &Findings,
    rows: impl Iterator<Item = (String, &'a Tally)>,
) -> fmt::Result {
    write!(
        to,
        "<table><tr><th><th>faults<th>read<th>write<th>upgrade<th>waited<th>each"
    )?;
    for node in &findings.nodes {
        write!(to, "<th>on {}", Text(node))?;
    }
    writeln!(to)?;
    for (name, tally) in rows {
        write!(
            to,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}",
            Text(&name),
            tally.faults,
            tally.read,
            tally.write,
            tally.upgrade,
            duration(tally.waited_ns),
            duration(tally.waited_ns / tally.faults.max(1)),
        )?;
        tally
            .by_node
            .iter()
            .try_for_each(|count| write!(to, "<td>{count}"))?;
        writeln!(to)?;
    }
    writeln!(to, "</table>")
}

#[cfg(test)]
mod tests {
    use super::super::recording::{example, write as fault};
    use super::super::symbols::Symbols;
    use super::*;

    #[test]
    fn the_report_has_a_map_a_matrix_and_names_and_needs_nothing_else() {
        let recording = example(&[(0, fault(0x2008, 0x104)), (1, fault(0x2010, 0x108))]);
        let symbols = Symbols::known(
            &[("<work>&", 0x100, 0x20)],
            &[("lock", 0x2008, 8), ("count", 0x2010, 8)],
        );
        let findings = Findings::new(&recording, Ok(&symbols));
        let html = report(&findings, &recording);
        assert_eq!(html.matches("<rect ").count(), 2, "{html}");
        assert!(
            html.contains("&lt;work&gt;&amp;+0x4") && !html.contains("<work>"),
            "{html}"
        );
        assert!(html.contains("Different things on one page") && html.contains("<td>0x2000"));
        assert!(!html.contains("http") && !html.contains("src="), "{html}");
        for tag in ["svg", "table", "html"] {
            let (opened, closed) = (format!("<{tag}"), format!("</{tag}>"));
            assert_eq!(
                html.matches(&opened).count(),
                html.matches(&closed).count(),
                "{tag}"
            );
        }
    }

    #[test]
    fn a_page_behind_memory_and_no_faults_at_all_have_a_map() {
        for recording in [example(&[]), example(&[(0, fault(0xffff_f000, 1))])] {
            let findings = Findings::new(&recording, Err("no file".into()));
            assert!(report(&findings, &recording).contains("<b>no file</b>"));
        }
    }
}
