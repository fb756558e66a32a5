//! The live view of `stats --watch` on a terminal.

use super::figures::{Interval, latency, remote_faults};
use super::text::time;
use crate::status::{NodeStatus, headline, silent};
use crate::units::short;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Row, Table};
use ratatui::{DefaultTerminal, Frame};
use std::collections::VecDeque;
use std::io;
use std::time::Duration;
use tokio::sync::mpsc;

/// Intervals in a sparkline.
const HISTORY: usize = 24;

/// Keys that were pressed and not looked at yet.
const KEYS_MAX: usize = 16;

/// What the user wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Quit,
    Up,
    Down,
    /// The terminal has another size.
    Redraw,
}

/// The terminal while the view is on it; as it was before when dropped, and after a panic.
pub(super) struct Screen(DefaultTerminal);

impl Screen {
    pub(super) fn enter() -> io::Result<Self> {
        ratatui::try_init()
            .map(Self)
            .inspect_err(|_| ratatui::restore())
    }

    pub(super) fn draw(&mut self, view: &View, interval: Interval<'_>) -> io::Result<()> {
        self.0.draw(|frame| view.draw(frame, interval)).map(drop)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Keys, from a thread that only reads them and ends with the process.
pub(super) fn keys() -> mpsc::Receiver<Key> {
    let (sender, keys) = mpsc::channel(KEYS_MAX);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            let key = match event {
                Event::Key(key) => meaning(key),
                Event::Resize(..) => Some(Key::Redraw),
                _ => None,
            };
            if let Some(key) = key
                && sender.blocking_send(key).is_err()
            {
                return;
            }
        }
    });
    keys
}

fn meaning(key: KeyEvent) -> Option<Key> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Key::Quit),
        KeyCode::Char('q') | KeyCode::Esc => Some(Key::Quit),
        KeyCode::Up | KeyCode::Char('k') => Some(Key::Up),
        KeyCode::Down | KeyCode::Char('j') => Some(Key::Down),
        _ => None,
    }
}

/// What the view remembers from one interval to the next.
#[derive(Debug)]
pub(super) struct View {
    every: Duration,
    /// Remote faults per second of each node, the newest last.
    history: Vec<VecDeque<f64>>,
    /// Nodes that are scrolled out at the top.
    above: usize,
}

impl View {
    pub(super) fn new(nodes: usize, every: Duration) -> Self {
        Self {
            every,
            history: vec![VecDeque::new(); nodes],
            above: 0,
        }
    }

    pub(super) fn add(&mut self, interval: Interval<'_>) {
        for (history, node) in self.history.iter_mut().zip(interval.nodes()) {
            history.push_back(interval.rate(node, remote_faults));
            if history.len() > HISTORY {
                history.pop_front();
            }
        }
    }

    pub(super) fn scroll(&mut self, key: Key) {
        match key {
            Key::Up => self.above = self.above.saturating_sub(1),
            Key::Down => self.above = (self.above + 1).min(self.history.len().saturating_sub(1)),
            Key::Quit | Key::Redraw => {}
        }
    }

    fn draw(&self, frame: &mut Frame<'_>, interval: Interval<'_>) {
        let nodes = self.history.len().saturating_sub(self.above) as u16;
        let [title, rates, _, totals, help] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(nodes + 1),
            Constraint::Length(1),
            Constraint::Min(0),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let dim = Style::new().add_modifier(Modifier::DIM);
        frame.render_widget(Line::styled(headline(&interval.now.status), bold), title);
        let columns = columns(frame.area().width);
        frame.render_widget(self.rates(interval, columns), rates);
        frame.render_widget(self.totals(interval, columns), totals);
        let line = format!("every {} s   q quit   ↑↓ nodes", self.every.as_secs_f64());
        let silent = silent(&interval.now.status);
        match silent.is_empty() {
            true => frame.render_widget(Line::styled(line, dim), help),
            false => frame.render_widget(
                Line::styled(silent.trim_end().replace('\n', "; "), bold),
                help,
            ),
        }
    }

    fn rates(&self, interval: Interval<'_>, columns: usize) -> Table<'static> {
        let rows = interval.nodes().zip(&self.history).skip(self.above);
        let rows = rows.map(|((now, then), history)| {
            let waits = latency(now, then).remote;
            let cells = COLUMNS[..columns].iter().map(|column| match column.shows {
                Shows::Count(of) => short(interval.rate((now, then), of)),
                Shows::Percentile(percent) => time(&waits, percent),
            });
            row(now.name.clone(), cells, sparkline(history))
        });
        let header = COLUMNS[..columns].iter().map(|column| match column.shows {
            Shows::Count(_) => format!("{}/s", column.name),
            Shows::Percentile(_) => column.name.into(),
        });
        table(
            rows.collect(),
            row("NODE".into(), header, "FAULTS/s, LATELY".into()),
            columns,
        )
    }

    fn totals(&self, interval: Interval<'_>, columns: usize) -> Table<'static> {
        let rows = interval.nodes().skip(self.above).map(|(node, _)| {
            let cells = COLUMNS[..columns].iter().map(|column| match column.shows {
                Shows::Count(of) => short(of(node) as f64),
                Shows::Percentile(percent) => time(&node.latency.remote, percent),
            });
            let counters = &node.counters;
            let last = format!(
                "{} pages here, {} retries",
                counters.resident_pages, counters.retries
            );
            row(node.name.clone(), cells, last)
        });
        let header = COLUMNS[..columns].iter().map(|column| column.name.into());
        table(
            rows.collect(),
            row("NODE".into(), header, "SINCE THE START".into()),
            columns,
        )
    }
}

/// What a column shows of each node.
#[derive(Debug, Clone, Copy)]
enum Shows {
    Count(fn(&NodeStatus) -> u64),
    /// Of the time that remote faults waited.
    Percentile(u64),
}

#[derive(Debug, Clone, Copy)]
struct Column {
    name: &'static str,
    shows: Shows,
}

const fn column(name: &'static str, shows: Shows) -> Column {
    Column { name, shows }
}

/// What is wanted most comes first: a narrow terminal shows as many as it can.
const COLUMNS: [Column; 12] = [
    column("FAULTS", Shows::Count(remote_faults)),
    column("P50", Shows::Percentile(50)),
    column("P99", Shows::Percentile(99)),
    column("B IN", Shows::Count(|node| node.counters.bytes_received)),
    column("B OUT", Shows::Count(|node| node.counters.bytes_sent)),
    column("READ", Shows::Count(|node| node.faults.read)),
    column("WRITE", Shows::Count(|node| node.faults.write)),
    column("UPGR", Shows::Count(|node| node.faults.upgrade)),
    column("LOCAL", Shows::Count(|node| node.faults.local)),
    column("INVAL", Shows::Count(|node| node.counters.invalidations)),
    column("IPIS", Shows::Count(|node| node.counters.ipis_sent)),
    column(
        "CALLS",
        Shows::Count(|node| node.counters.host_calls_forwarded),
    ),
];

const NAME_WIDTH: u16 = 8;
const COLUMN_WIDTH: u16 = 8;
const LAST_WIDTH: u16 = 26;

/// How many columns a terminal has room for, each with a space before it.
fn columns(width: u16) -> usize {
    let room = width.saturating_sub(NAME_WIDTH + LAST_WIDTH + 1);
    usize::from(room / (COLUMN_WIDTH + 1)).min(COLUMNS.len())
}

fn row(name: String, cells: impl Iterator<Item = String>, last: String) -> Row<'static> {
    let cells = cells.map(|cell| Cell::from(Text::from(cell).right_aligned()));
    let first = std::iter::once(Cell::from(name));
    Row::new(
        first
            .chain(cells)
            .chain([Cell::from(last)])
            .collect::<Vec<_>>(),
    )
}

fn table(rows: Vec<Row<'static>>, header: Row<'static>, columns: usize) -> Table<'static> {
    let widths = [Constraint::Length(NAME_WIDTH)]
        .into_iter()
        .chain(std::iter::repeat_n(
            Constraint::Length(COLUMN_WIDTH),
            columns,
        ))
        .chain([Constraint::Length(LAST_WIDTH)]);
    let header = header.style(Style::new().add_modifier(Modifier::DIM));
    Table::new(rows, widths).header(header)
}

/// Bars as high as their share of the highest.
fn sparkline(history: &VecDeque<f64>) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let highest = history.iter().copied().fold(0.0, f64::max);
    let bar = |value: &f64| match value / highest {
        share if share > 0.0 => BARS[((share * 8.0).ceil() as usize - 1).min(7)],
        _ => ' ',
    };
    history.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::super::figures::{Sample, example};
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn screen(width: u16, height: u16, view: &View, interval: Interval<'_>) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame, interval)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let lines = buffer.content().chunks(width.into());
        let line =
            |cells: &[ratatui::buffer::Cell]| cells.iter().map(|cell| cell.symbol()).collect();
        lines.map(line).collect::<Vec<String>>().join("\n")
    }

    #[test]
    fn each_node_has_its_rates_and_its_totals() {
        let then = Sample::now(example(1000, &[]));
        let now = Sample::now(example(51_000, &[30_000; 50]));
        let interval = Interval {
            then: &then,
            now: &now,
        };
        let mut view = View::new(2, Duration::from_secs(1));
        view.add(interval);
        let shown = screen(160, 12, &view, interval);
        assert_eq!(
            shown.lines().filter(|line| line.starts_with("a ")).count(),
            2,
            "{shown}"
        );
        assert!(
            shown.contains("guest  running") && shown.contains("30 µs"),
            "{shown}"
        );
        assert!(
            shown.contains("51k") && shown.contains('█') && shown.contains("q quit"),
            "{shown}"
        );

        view.scroll(Key::Down);
        view.scroll(Key::Down);
        let shown = screen(160, 12, &view, interval);
        assert!(!shown.lines().any(|line| line.starts_with("a ")), "{shown}");
        assert!(
            shown.lines().any(|line| line.starts_with("b ")),
            "one always stays: {shown}"
        );
    }

    #[test]
    fn a_terminal_may_be_tiny() {
        let sample = Sample::now(example(1, &[]));
        let interval = Interval {
            then: &sample,
            now: &sample,
        };
        let mut view = View::new(2, Duration::from_secs(1));
        view.add(interval);
        for (width, height) in [(1, 1), (5, 2), (20, 3), (300, 100)] {
            screen(width, height, &view, interval);
        }
    }

    #[test]
    fn bars_are_shares_of_the_highest() {
        assert_eq!(sparkline(&VecDeque::from([0.0, 1.0, 4.0, 8.0])), " ▁▄█");
        assert_eq!(sparkline(&VecDeque::from([0.0, 0.0])), "  ");
    }

    #[test]
    fn ctrl_c_and_q_quit_and_a_c_alone_does_not() {
        let key = |code, modifiers| meaning(KeyEvent::new(code, modifiers));
        assert_eq!(
            key(KeyCode::Char('c'), KeyModifiers::CONTROL),
            Some(Key::Quit)
        );
        assert_eq!(key(KeyCode::Char('q'), KeyModifiers::NONE), Some(Key::Quit));
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::NONE), None);
    }
}
