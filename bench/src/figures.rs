//! What is printed: figures, as a table for people or as JSON.

use crate::samples::{Ratio, Samples, Summary};
use crate::setting::Setting;
use serde::Serialize;
use std::fmt::Write;

/// What samples, which are nanoseconds or counts, are shown in.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) enum Unit {
    #[serde(rename = "ms")]
    Milliseconds,
    #[serde(rename = "us")]
    Microseconds,
    #[serde(rename = "faults")]
    Faults,
    #[serde(rename = "pages")]
    Pages,
    #[serde(rename = "%")]
    Percent,
    #[serde(rename = "Mbit/s")]
    Megabits,
    #[serde(rename = "MiB")]
    Mebibytes,
    #[serde(rename = "messages")]
    Messages,
}

impl Unit {
    fn factor(self) -> f64 {
        match self {
            Self::Milliseconds => 1e-6,
            Self::Microseconds => 1e-3,
            Self::Megabits => 1e-6,
            Self::Mebibytes => 1.0 / (1 << 20) as f64,
            Self::Faults | Self::Pages | Self::Percent | Self::Messages => 1.0,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Microseconds => "µs",
            Self::Faults => "faults",
            Self::Pages => "pages",
            Self::Percent => "%",
            Self::Megabits => "Mbit/s",
            Self::Mebibytes => "MiB",
            Self::Messages => "messages",
        }
    }
}

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    group: &'static str,
    name: String,
    unit: Unit,
    /// What Span is compared with, where there is something.
    against: Option<&'static str>,
    reference: Option<Summary>,
    /// None for a floor that is shown beside the others.
    span: Option<Summary>,
    ratio: Option<Ratio>,
    /// Highest ratio that is aimed at.
    aim: Option<f64>,
    /// None where the repetitions do not tell.
    met: Option<bool>,
    /// Why there is nothing to compare with.
    note: Option<String>,
}

impl Figure {
    fn new(group: &'static str, name: impl Into<String>, unit: Unit) -> Self {
        Self {
            group,
            name: name.into(),
            unit,
            against: None,
            reference: None,
            span: None,
            ratio: None,
            aim: None,
            met: None,
            note: None,
        }
    }

    /// Span's samples against others.
    pub(crate) fn compared(
        group: &'static str,
        name: impl Into<String>,
        unit: Unit,
        against: &'static str,
        reference: &Samples,
        span: &Samples,
    ) -> Self {
        Self {
            against: Some(against),
            reference: reference.scaled(unit.factor()).summary(),
            span: span.scaled(unit.factor()).summary(),
            ratio: span.ratio(reference),
            ..Self::new(group, name, unit)
        }
    }

    /// Span's samples, which nothing else has.
    pub(crate) fn alone(
        group: &'static str,
        name: impl Into<String>,
        unit: Unit,
        span: &Samples,
    ) -> Self {
        Self {
            span: span.scaled(unit.factor()).summary(),
            ..Self::new(group, name, unit)
        }
    }

    /// Span's samples beside others that have next to nothing to do with them, and no ratio.
    pub(crate) fn beside(
        group: &'static str,
        name: impl Into<String>,
        unit: Unit,
        against: &'static str,
        reference: &Samples,
        span: &Samples,
    ) -> Self {
        Self {
            ratio: None,
            ..Self::compared(group, name, unit, against, reference, span)
        }
    }

    /// What others have no samples of, and why.
    pub(crate) fn missing(
        group: &'static str,
        name: impl Into<String>,
        unit: Unit,
        against: &'static str,
        why: &str,
    ) -> Self {
        Self {
            against: Some(against),
            note: Some(why.into()),
            ..Self::new(group, name, unit)
        }
    }

    pub(crate) fn group(&self) -> &'static str {
        self.group
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Medians of the other side and of Span.
    pub(crate) fn medians(&self) -> (Option<f64>, Option<f64>) {
        let median = |summary: Option<Summary>| summary.map(|summary| summary.median);
        (median(self.reference), median(self.span))
    }

    /// Samples of the host's, for orientation.
    pub(crate) fn floor(
        group: &'static str,
        name: impl Into<String>,
        unit: Unit,
        floor: &Samples,
    ) -> Self {
        Self {
            reference: floor.scaled(unit.factor()).summary(),
            ..Self::new(group, name, unit)
        }
    }

    /// The ratio is to be at most this.
    pub(crate) fn aim(mut self, ratio_max: f64) -> Self {
        self.aim = Some(ratio_max);
        self.met = match self.ratio {
            Some(ratio) if ratio.confident && ratio.high <= ratio_max => Some(true),
            Some(ratio) if ratio.confident && ratio.low > ratio_max => Some(false),
            _ => None,
        };
        self
    }
}

/// All figures of a run, with what is needed to read them later.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    repetitions: u32,
    host_cpus: usize,
    host_tsc_khz: String,
    /// Of the last minute when the run began: what else the machine does.
    host_load: Option<f64>,
    pub(crate) figures: Vec<Figure>,
}

const HEADER: [&str; 10] = [
    "", "unit", "against", "median", "p99", "Span", "p99", "ratio", "interval", "aim",
];

impl Report {
    pub(crate) fn new(setting: &Setting) -> Self {
        let load = std::fs::read_to_string("/proc/loadavg").ok();
        Self {
            repetitions: setting.effort.repetitions,
            host_cpus: setting.host_cpus,
            host_tsc_khz: setting.khz.clone(),
            host_load: load.and_then(|text| text.split(' ').next()?.parse().ok()),
            figures: Vec::new(),
        }
    }

    pub(crate) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }

    pub(crate) fn table(&self) -> String {
        let mut rows = vec![HEADER.map(String::from)];
        rows.extend(self.figures.iter().map(row));
        let width = |column: usize| {
            let widths = rows.iter().map(|row| row[column].chars().count());
            widths.max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..HEADER.len()).map(width).collect();
        let mut text = format!(
            "{} host CPUs, load {} at the start, {} repetitions of each side in turns\n",
            self.host_cpus,
            self.host_load
                .map_or("unknown".into(), |load| load.to_string()),
            self.repetitions,
        );
        let mut group = "";
        for (index, row) in rows.iter().enumerate() {
            if let Some(figure) = index.checked_sub(1).map(|index| &self.figures[index])
                && figure.group != group
            {
                group = figure.group;
                let _ = write!(text, "\n{group}\n");
            }
            let mut line = String::new();
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                // Words to the left, numbers to the right.
                let _ = match column {
                    0..=2 => write!(line, "{cell:width$}  "),
                    _ => write!(line, "{cell:>width$}  "),
                };
            }
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }
}

fn row(figure: &Figure) -> [String; 10] {
    let value = |summary: Option<Summary>, of: fn(Summary) -> f64| {
        summary.map_or("-".into(), |summary| digits(of(summary)))
    };
    let (ratio, interval) = figure.ratio.map_or(("-".into(), String::new()), |ratio| {
        let interval = format!("{:.2}-{:.2}", ratio.low, ratio.high);
        (format!("{:.2}", ratio.median), interval)
    });
    // An aim like 1 / 1.8 is shown as the ratio beside it is.
    let aim = figure.aim.map(|aim| (aim * 100.0).round() / 100.0);
    let aim = match (aim, figure.met) {
        (Some(aim), Some(true)) => format!("≤{aim} met"),
        (Some(aim), Some(false)) => format!("≤{aim} missed"),
        (Some(aim), None) => format!("≤{aim} open"),
        (None, _) => figure.note.clone().unwrap_or_default(),
    };
    [
        format!("  {}", figure.name),
        figure.unit.name().into(),
        figure.against.unwrap_or_default().into(),
        value(figure.reference, |summary| summary.median),
        value(figure.reference, |summary| summary.p99),
        value(figure.span, |summary| summary.median),
        value(figure.span, |summary| summary.p99),
        ratio,
        interval,
        aim,
    ]
}

/// Three digits that mean something.
fn digits(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sample for each repetition.
    fn samples(values: &[f64]) -> Samples {
        let mut samples = Samples::default();
        for value in values {
            samples.add(vec![*value]);
        }
        samples
    }

    fn report() -> Report {
        let (theirs, mine) = (samples(&[8000.0; 5]), samples(&[8400.0; 5]));
        let noisy = samples(&[7000.0, 8300.0, 8400.0, 9000.0, 9000.0]);
        let unit = Unit::Microseconds;
        Report {
            repetitions: 5,
            host_cpus: 2,
            host_tsc_khz: "1".into(),
            host_load: Some(0.5),
            figures: vec![
                Figure::compared("g", "call", unit, "upstream", &theirs, &mine).aim(1.03),
                Figure::compared("g", "fault", unit, "upstream", &mine, &mine).aim(1.03),
                Figure::compared("g", "fork", unit, "upstream", &theirs, &noisy).aim(1.03),
                Figure::alone("h", "moves", Unit::Faults, &samples(&[123.4])),
                Figure::missing("h", "far", unit, "QEMU", "not installed: qemu"),
                Figure::beside("h", "near", unit, "QEMU", &mine, &mine),
            ],
        }
    }

    #[test]
    fn a_table_shows_ratios_and_whether_the_aim_is_met() {
        let table = report().table();
        let line = |name: &str| -> Vec<&str> {
            let found = table.lines().find(|line| line.contains(name)).unwrap();
            found.split_whitespace().collect()
        };
        let call = [
            "call",
            "µs",
            "upstream",
            "8.00",
            "8.00",
            "8.40",
            "8.40",
            "1.05",
            "1.05-1.05",
            "≤1.03",
            "missed",
        ];
        assert_eq!(line("call"), call);
        assert_eq!(line("fault")[9..], ["≤1.03", "met"]);
        assert_eq!(
            line("moves"),
            ["moves", "faults", "-", "-", "123", "123", "-"]
        );
        assert_eq!(
            line("far")[1..],
            [
                "µs",
                "QEMU",
                "-",
                "-",
                "-",
                "-",
                "-",
                "not",
                "installed:",
                "qemu"
            ]
        );
        assert_eq!(line("near")[7..], ["-"]);
        assert!(table.contains("\n\ng\n") && table.contains("\n\nh\n"));
    }

    #[test]
    fn json_has_the_same() {
        let json: serde_json::Value = serde_json::from_str(&report().json().unwrap()).unwrap();
        let call = &json["figures"][0];
        assert_eq!(call["unit"], "us");
        assert_eq!(call["span"]["median"], 8.4);
        assert_eq!(call["ratio"]["median"], 1.05);
        assert_eq!(call["met"], false);
        assert_eq!(json["figures"][2]["met"], serde_json::Value::Null);
        assert_eq!(json["figures"][3]["reference"], serde_json::Value::Null);
    }
}
