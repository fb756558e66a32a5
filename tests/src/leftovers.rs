//! What a guest could leave behind: processes, files, sockets, mounts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Lets this process become the parent of every orphan below it.
pub(crate) fn adopt_orphans() {
    nix::sys::prctl::set_child_subreaper(true).expect("adopting orphans");
}

/// A process, and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub command: String,
}

/// All processes below `root`, at any depth; orphans that ended are reaped.
pub fn descendants(root: i32) -> Vec<Process> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for (pid, stat) in stats() {
        // Behind the name, which may contain anything: state and parent.
        let mut fields = stat
            .rsplit_once(") ")
            .map_or("", |(_, rest)| rest)
            .split(' ');
        let state = fields.next().unwrap_or_default();
        let parent = fields.next().and_then(|field| field.parse().ok());
        if let Some(parent) = parent {
            let own = std::process::id() as i32;
            if state == "Z" && parent == own {
                // Children that a test waits for are not left to be zombies when this is called.
                let pid = nix::unistd::Pid::from_raw(pid);
                let _ = nix::sys::wait::waitpid(pid, None);
                continue;
            }
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut pending = vec![root];
    while let Some(parent) = pending.pop() {
        for &pid in children.get(&parent).into_iter().flatten() {
            found.push(Process {
                pid,
                command: command(pid),
            });
            pending.push(pid);
        }
    }
    found
}

/// Processes anywhere whose command line contains all of `parts`.
pub fn processes_with(parts: &[&str]) -> Vec<Process> {
    stats()
        .into_iter()
        .map(|(pid, _)| Process {
            pid,
            command: command(pid),
        })
        .filter(|process| parts.iter().all(|part| process.command.contains(part)))
        .collect()
}

fn stats() -> Vec<(i32, String)> {
    let entries = fs::read_dir("/proc").expect("/proc");
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| Some((pid, fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)))
        .collect()
}

fn command(pid: i32) -> String {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&arguments)
        .replace('\0', " ")
        .trim_end()
        .to_string()
}

/// Everything below a directory.
pub(crate) fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files_below(&path));
        }
        found.push(path);
    }
    found
}

/// Mount points of this process.
pub(crate) fn mounts() -> BTreeSet<String> {
    fs::read_to_string("/proc/self/mountinfo")
        .expect("mounts")
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(String::from)
        .collect()
}

/// Listening and connected unix sockets whose path is below `directory`.
pub(crate) fn sockets_below(directory: &Path) -> Vec<String> {
    let directory = directory.display().to_string();
    fs::read_to_string("/proc/net/unix")
        .expect("unix sockets")
        .lines()
        .filter(|line| line.contains(&directory))
        .map(String::from)
        .collect()
}
