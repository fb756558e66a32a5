//! What pages of the guest are used for: slab caches, page tables, memory of processes.
//!
//! The guest's kernel is asked when the recording is over, so that asking is not part of it. What is not known then
//! (the guest ends, a page is used for something else) stays without a name.

use super::recording::{Recorded, Recording};
use crate::control::{Ask, Client};
use crate::output::say;
use span_api::profile::Through;
use span_api::session::{Command, DATA_BYTES_MAX, FromInit, ToInit, WINDOW_BYTES};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;

/// Most pages that are asked about: what fits into one window.
const PAGES_MAX: usize = WINDOW_BYTES as usize / 12;

/// Longest answer, and the longest wait for it.
const ANSWER_BYTES_MAX: usize = PAGES_MAX * 128;
const ANSWER_S_MAX: u64 = 10;

/// By page; empty where the guest does not answer.
pub(super) async fn of(
    recording: &Recording,
    name: &str,
    directory: &Path,
) -> BTreeMap<u32, String> {
    let pages = linear(recording);
    if pages.is_empty() {
        return BTreeMap::new();
    }
    let mut text = Vec::new();
    let answer = timeout(
        Duration::from_secs(ANSWER_S_MAX),
        ask(&pages, name, directory, &mut text),
    );
    let failed = match answer.await {
        Ok(Ok(())) => None,
        Ok(Err(line)) => Some(line),
        Err(_) => Some(format!("no more was said within {ANSWER_S_MAX} s")),
    };
    let known = parse(&String::from_utf8_lossy(&text));
    if let Some(why) = failed {
        say(&format!(
            "what {} of {} pages are used for is not known: {}",
            pages.len().saturating_sub(known.len()),
            pages.len(),
            printable(&why)
        ));
    }
    known
}

/// What the guest says, without anything that a terminal takes for a command.
fn printable(text: &str) -> String {
    text.replace(char::is_control, "?")
}

/// Pages of the linear map, those with the most faults first.
fn linear(recording: &Recording) -> BTreeSet<u32> {
    let mut faults: BTreeMap<u32, u64> = BTreeMap::new();
    for Recorded { fault, .. } in &recording.faults {
        if fault.through == Through::Linear {
            *faults.entry(fault.page).or_default() += 1;
        }
    }
    let mut pages: Vec<_> = faults.into_iter().collect();
    pages.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    pages
        .into_iter()
        .take(PAGES_MAX)
        .map(|(page, _)| page)
        .collect()
}

async fn ask(
    pages: &BTreeSet<u32>,
    name: &str,
    directory: &Path,
    text: &mut Vec<u8>,
) -> Result<(), String> {
    let client = Client::connect(name, directory).await;
    let client = client.map_err(|failure| failure.line)?;
    let mut pipe = client
        .session(Ask::Session)
        .await
        .map_err(|failure| failure.line)?;
    let command = Command {
        argv: vec![b"span-pages".to_vec()],
        env: Vec::new(),
        directory: b"/".to_vec(),
        cpus: Vec::new(),
        terminal: None,
    };
    let numbers: Vec<String> = pages.iter().map(u32::to_string).collect();
    let mut messages = vec![ToInit::Start { id: 0, command }];
    messages.extend(
        numbers
            .join(" ")
            .as_bytes()
            .chunks(DATA_BYTES_MAX)
            .map(|data| ToInit::Stdin {
                id: 0,
                data: data.to_vec(),
            }),
    );
    messages.push(ToInit::StdinEnd { id: 0 });
    for message in messages {
        // What the guest says of it is still to be heard.
        let _ = pipe.to_init.send(message).await;
    }
    let mut complaint = Vec::new();
    while let Some(message) = pipe.from_init.recv().await {
        let bytes = match message {
            FromInit::Stdout { data, .. } => {
                text.extend(&data);
                data.len()
            }
            FromInit::Stderr { data, .. } => {
                complaint.extend(&data);
                data.len()
            }
            FromInit::Exited { .. } if complaint.is_empty() => return Ok(()),
            FromInit::Exited { .. } => {
                return Err(String::from_utf8_lossy(&complaint).trim().to_string());
            }
            FromInit::StartFailed { message, .. } => return Err(message),
            _ => continue,
        };
        if text.len() + complaint.len() > ANSWER_BYTES_MAX {
            return Err("the answer is too long".into());
        }
        let credit = ToInit::Credit {
            id: 0,
            bytes: bytes as u32,
        };
        let _ = pipe.to_init.send(credit).await;
    }
    Err("the guest has ended".into())
}

fn parse(text: &str) -> BTreeMap<u32, String> {
    let line = |line: &str| {
        let (page, used) = line.split_once(' ')?;
        Some((page.parse().ok()?, printable(used)))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::super::recording::{example, write};
    use super::*;

    #[test]
    fn an_answer_has_a_line_for_each_page() {
        let known = parse("12 slab dentry\n13 fr\u{1b}[2Jee\nnonsense\n");
        assert_eq!(known[&12], "slab dentry");
        assert_eq!(known[&13], "fr?[2Jee");
        assert_eq!(known.len(), 2);
    }

    #[test]
    fn pages_of_vmalloc_have_names_already() {
        let mut vmalloc = write(0x9000, 0x104);
        vmalloc.through = Through::Vmalloc;
        let faults = [
            (0, write(0x3000, 0x104)),
            (1, write(0x3008, 0x104)),
            (1, vmalloc),
        ];
        assert_eq!(linear(&example(&faults)), BTreeSet::from([3]));
    }
}
