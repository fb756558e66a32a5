//! PROTOCOL.md says what the code does. `DSM_BLESS=1` writes the generated parts anew.

use dsm::State;
use dsm::table::{Action, Answer, Event, HOLDER, HOME, HomeRow, Row};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn the_generated_parts_are_current() {
    let path = root().join("PROTOCOL.md");
    let old = read(&path);
    let mut new = old.clone();
    for (name, text) in [
        ("holder", holder()),
        ("diagram", diagram()),
        ("home", home()),
    ] {
        let (start, end) = (format!("<!-- generated: {name} -->\n"), "<!-- end -->");
        let (before, rest) = new.split_once(&start).expect("a marker");
        let (_, after) = rest.split_once(end).expect("its end");
        new = format!("{before}{start}{text}{end}{after}");
    }
    if std::env::var_os("DSM_BLESS").is_some() {
        std::fs::write(&path, &new).expect("writable");
        return;
    }
    assert!(
        new == old,
        "PROTOCOL.md is out of date; write it anew with DSM_BLESS=1"
    );
}

fn event(event: Event) -> &'static str {
    match event {
        Event::ReadFault => "read fault",
        Event::WriteFault => "write fault",
        Event::ForwardShared => "Forward(Shared)",
        Event::ForwardExclusive => "Forward(Exclusive)",
        Event::ForwardModified => "Forward(Modified)",
        Event::Invalidate => "Invalidate",
        Event::RecallCopy => "Recall(copy)",
        Event::RecallPage => "Recall(page)",
    }
}

fn action(action: Action) -> String {
    match action {
        Action::Hit => "go on".into(),
        Action::Get => "Get".into(),
        Action::Raise => "raise".into(),
        Action::Supply {
            grant,
            clean: false,
        } => format!("supply {grant:?}"),
        Action::Supply { grant, clean: true } => format!("supply {grant:?}, clean"),
        Action::Acknowledge => "acknowledge".into(),
        Action::Return { page: false } => "Done".into(),
        Action::Return { page: true } => "Done, page".into(),
        Action::Refuse => "error".into(),
    }
}

/// One line per event, one column per state.
fn holder() -> String {
    let states = [
        State::Invalid,
        State::Shared,
        State::Exclusive,
        State::Modified,
    ];
    let mut text = String::from("\n| |");
    for state in states {
        write!(text, " {state:?} |").unwrap();
    }
    text += "\n|---|---|---|---|---|\n";
    let events = HOLDER
        .iter()
        .filter(|r| r.state == State::Invalid)
        .map(|r| r.event);
    for on in events {
        write!(text, "| {} |", event(on)).unwrap();
        for row in HOLDER.iter().filter(|r| r.event == on) {
            let cell = match row {
                Row {
                    action: Action::Refuse,
                    ..
                } => "error".into(),
                row if row.next == row.state => action(row.action),
                row => format!("{} → {:?}", action(row.action), row.next),
            };
            write!(text, " {cell} |").unwrap();
        }
        text += "\n";
    }
    text + "\n"
}

fn diagram() -> String {
    let mut edges: BTreeMap<(State, State), Vec<String>> = BTreeMap::new();
    for row in HOLDER.iter().filter(|r| r.next != r.state) {
        edges
            .entry((row.state, row.next))
            .or_default()
            .push(event(row.event).into());
    }
    // What a Get leads to is the grant's, not the table's, to say.
    for (from, to, on) in [
        (State::Invalid, State::Shared, "Grant(Shared)"),
        (State::Invalid, State::Exclusive, "Grant(Exclusive)"),
        (State::Invalid, State::Modified, "Grant(Modified)"),
        (State::Shared, State::Modified, "Grant(Modified)"),
    ] {
        edges.entry((from, to)).or_default().push(on.into());
    }
    let mut text = String::from("\n```mermaid\nstateDiagram-v2\n");
    for ((from, to), on) in edges {
        writeln!(text, "    {from:?} --> {to:?}: {}", on.join(", ")).unwrap();
    }
    text + "```\n\n"
}

fn home() -> String {
    let mut text = String::from("\n| held by | read | write | evict |\n|---|---|---|---|\n");
    for rows in HOME.chunks(3) {
        let name = match format!("{:?}", rows[0].holders).as_str() {
            "Nobody" => "nobody",
            "Kept" => "nobody, home keeps it",
            "Others" => "others",
            "OthersAndRequester" => "requester, and others or what the home keeps",
            "RequesterAlone" => "requester alone",
            "Owner" => "owner",
            "MigratoryOwner" => "migratory owner",
            "RequesterOwns" => "requester as owner",
            other => panic!("{other} needs a name"),
        }
        .to_owned();
        let cell = |row: &HomeRow| match row.answer {
            Answer::Zero(state) => format!("grant zero, {state:?}"),
            Answer::Keep(state) => format!("grant the home's page, {state:?}"),
            Answer::Recall { page: false } => "Recall(copy)".into(),
            Answer::Recall { page: true } => "Recall(page)".into(),
            Answer::Upgrade => {
                "grant the requester's copy, Modified; Invalidate to the others".into()
            }
            Answer::Forward(state) => format!("Forward({state:?})"),
            Answer::ForwardAndInvalidate(state) => {
                format!("Forward({state:?}) to one, Invalidate to the others")
            }
            Answer::Refuse => "error".into(),
        };
        let cells: Vec<String> = rows.iter().map(cell).collect();
        writeln!(text, "| {name} | {} |", cells.join(" | ")).unwrap();
    }
    text + "\n"
}

/// Every invariant that code or tests cite exists, and every one is cited.
#[test]
fn the_invariants_that_are_cited_exist() {
    let document = read(&root().join("PROTOCOL.md"));
    let defined: BTreeSet<u32> = (1..100)
        .filter(|i| document.contains(&format!("- **I{i}** ")))
        .collect();
    assert_eq!(defined, (1..=11).collect());
    let mut cited = BTreeSet::new();
    let mut folders = ["src", "tests", "sim"].map(|f| root().join(f)).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                cited.extend(citations(&read(&path)));
            }
        }
    }
    assert!(cited.is_subset(&defined), "{cited:?}");
    assert_eq!(
        defined.difference(&cited).collect::<Vec<_>>(),
        Vec::<&u32>::new()
    );
}

/// The numbers after a word that starts with I.
fn citations(text: &str) -> impl Iterator<Item = u32> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter_map(|word| word.strip_prefix('I')?.parse().ok())
}
