//! What `status` shows: as JSON, and as a table.

use serde::{Deserialize, Serialize};
use span_api::guest::{Paging, Waits};
use span_api::histogram::Histogram;
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) name: String,
    /// starting, booting, running or ending.
    pub(crate) state: String,
    pub(crate) kernel: Option<String>,
    /// The coordinator's process.
    pub(crate) pid: u32,
    pub(crate) nodes: Vec<NodeStatus>,
    /// RFC 3339, UTC.
    pub(crate) started: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeStatus {
    pub(crate) name: String,
    pub(crate) address: String,
    /// The guest process, in the numbering of its own machine.
    pub(crate) pid: Option<i32>,
    pub(crate) cpus: Vec<Cpu>,
    /// How the pages of guest memory are protected; null until it is known.
    pub(crate) paging: Option<Paging>,
    /// For how long the node has not answered; null if it has.
    pub(crate) silent_ms: Option<u64>,
    pub(crate) mem_mib: u64,
    pub(crate) resident_mib: u64,
    pub(crate) faults: Faults,
    pub(crate) pages_in: u64,
    pub(crate) pages_out: u64,
    pub(crate) counters: Counters,
    pub(crate) latency: Latency,
}

/// How long faults waited for other nodes, since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// All of them.
    pub(crate) remote: Histogram,
    pub(crate) read: Histogram,
    pub(crate) write: Histogram,
    pub(crate) upgrade: Histogram,
}

impl From<Waits> for Latency {
    fn from(waits: Waits) -> Self {
        Self {
            remote: waits.remote(),
            read: waits.read,
            write: waits.write,
            upgrade: waits.upgrade,
        }
    }
}

impl Latency {
    /// Each kind under its name in JSON.
    pub(crate) fn kinds(&self) -> [(&'static str, &Histogram); 4] {
        [
            ("remote", &self.remote),
            ("read", &self.read),
            ("write", &self.write),
            ("upgrade", &self.upgrade),
        ]
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cpu {
    pub(crate) cpu: u16,
    pub(crate) tid: Option<i32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Faults {
    pub(crate) read: u64,
    pub(crate) write: u64,
    pub(crate) upgrade: u64,
    pub(crate) local: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counters {
    pub(crate) pages_ahead: u64,
    pub(crate) invalidations: u64,
    pub(crate) stub_faults: u64,
    pub(crate) stub_kicks: u64,
    pub(crate) ipis_sent: u64,
    pub(crate) ipis_received: u64,
    pub(crate) host_calls_served: u64,
    pub(crate) host_calls_forwarded: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) retries: u64,
    pub(crate) resident_pages: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) foreign_pages: u64,
    pub(crate) foreign_pages_max: u64,
    pub(crate) evicted_copies: u64,
    pub(crate) evicted_pages: u64,
    pub(crate) room_waits: u64,
    pub(crate) fault_wait_ns: u64,
}

/// The table for people.
pub(crate) fn table(status: &Status) -> String {
    let header = [
        "NODE",
        "ADDRESS",
        "PID",
        "CPUS",
        "MEM",
        "RESIDENT",
        "READ",
        "WRITE",
        "UPGRADE",
        "LOCAL",
        "PAGES IN",
        "PAGES OUT",
    ];
    let mut rows = vec![header.map(String::from).to_vec()];
    for node in &status.nodes {
        let cpus: Vec<u16> = node.cpus.iter().map(|cpu| cpu.cpu).collect();
        rows.push(vec![
            node.name.clone(),
            node.address.clone(),
            node.pid.map_or("-".into(), |pid| pid.to_string()),
            ranges(&cpus),
            format!("{} MiB", node.mem_mib),
            format!("{} MiB", node.resident_mib),
            node.faults.read.to_string(),
            node.faults.write.to_string(),
            node.faults.upgrade.to_string(),
            node.faults.local.to_string(),
            node.pages_in.to_string(),
            node.pages_out.to_string(),
        ]);
    }
    format!(
        "{}\n{}{}",
        headline(status),
        aligned(&rows, 2),
        silent(status)
    )
}

/// A line for each node that does not answer.
pub(crate) fn silent(status: &Status) -> String {
    let mut text = String::new();
    for node in &status.nodes {
        if let Some(silent_ms) = node.silent_ms {
            let (name, seconds) = (&node.name, silent_ms as f64 / 1000.0);
            let _ = writeln!(
                text,
                "node {name} has not answered for {seconds:.1} s: its counters are from before"
            );
        }
    }
    text
}

/// Which guest this is, and how it is.
pub(crate) fn headline(status: &Status) -> String {
    let kernel = status.kernel.as_deref().unwrap_or("not booted");
    format!(
        "{}  {}  Linux {kernel}  since {}",
        status.name, status.state, status.started
    )
}

/// Rows below each other, the first columns aligned at their left side and numbers at their right.
pub(crate) fn aligned(rows: &[Vec<String>], columns_left: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| match column < columns_left {
                true => format!("{cell:<width$}"),
                false => format!("{cell:>width$}"),
            })
            .collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}

/// Ascending numbers as in `0-3,7`.
fn ranges(numbers: &[u16]) -> String {
    let mut parts: Vec<(u16, u16)> = Vec::new();
    for &number in numbers {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => parts.push((number, number)),
        }
    }
    let shown = parts.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    shown.collect::<Vec<_>>().join(",")
}

/// A time in RFC 3339, in UTC, to the second.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01: the leap day is the last of its year, 400 years repeat.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_what_date_says() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn cpus_are_shown_as_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        assert_eq!(ranges(&[]), "");
    }
}
