//! The commands that reach guests which run: `status`, `stats`, `list`, `logs`, `console`, `exec`, `cp`, `link`,
//! `topology`, `down`.

use crate::cli::{Command, Target};
use crate::control::{Ask, Client};
use crate::copy;
use crate::environment;
use crate::failure::Failure;
use crate::links;
use crate::output::say;
use crate::rundir::{Base, LOG_FILE, OLD_LOG_FILE, Watched, is_running};
use crate::stats;
use crate::status::{self, NodeStatus, Status};
use crate::stdio::{self, Ended};
use crate::terminal;
use crate::topology;
use serde_json::json;
use span_api::line::Line;
use span_api::session;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a followed log is looked at.
const FOLLOW_INTERVAL_MS: u64 = 100;

pub(crate) async fn run(command: Command) -> Result<u8, Failure> {
    match command {
        Command::Status { target, json } => {
            let status = status(&target).await?;
            match json {
                true => print(&to_json(&status)?),
                false => print(&status::table(&status)),
            }
        }
        Command::Stats {
            target,
            watch,
            interval,
            json,
        } => {
            let (name, directory) = find(&target)?;
            stats::run(name, directory, watch.then_some(interval), json).await
        }
        Command::List { json } => list(json).await,
        Command::Logs {
            target,
            follow,
            json,
        } => logs(&find(&target)?.1, follow, json).await,
        Command::Console {
            target,
            list: true,
            json,
            ..
        } => lines(&target, json).await,
        Command::Console { target, line, .. } => console(&target, line).await,
        Command::Exec {
            target,
            tty,
            cpu,
            node,
            argv,
        } => {
            let argv = argv.into_iter().map(OsStringExt::into_vec).collect();
            let cpus = match (cpu, node) {
                (None, None) => Vec::new(),
                (cpu, node) => cpus(&status(&target).await?, cpu, node.as_deref())?,
            };
            exec(&target, argv, cpus, tty).await
        }
        Command::Link(options) => links::command::run(options).await,
        Command::Topology { command } => topology::command::run(command).await,
        Command::Cp { paths } => copy::run(&paths).await,
        Command::Down { target, json } => {
            let (name, directory) = find(&target)?;
            let watched = Watched::new(&directory);
            Client::connect(&name, &directory).await?.down().await?;
            watched.wait();
            match json {
                true => print(&format!("{}\n", json!({ "name": name, "state": "ended" }))),
                false => Ok(0),
            }
        }
        Command::Up(_) | Command::Profile(_) | Command::Completions { .. } => Ok(0),
    }
}

pub(crate) fn find(target: &Target) -> Result<(String, PathBuf), Failure> {
    Base::of_this_user().find(target.name.as_deref())
}

async fn status(target: &Target) -> Result<Status, Failure> {
    let (name, directory) = find(target)?;
    Client::connect(&name, &directory).await?.status().await
}

pub(crate) fn to_json(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string(value)
        .map(|text| text + "\n")
        .map_err(|error| Failure::cannot("the answer cannot be shown", error))
}

/// Prints to stdout, where the reader may have gone away.
fn print(text: &str) -> Result<u8, Failure> {
    put(text).map(|_| 0)
}

/// Prints to stdout; whether somebody still reads it.
pub(crate) fn put(text: &str) -> Result<bool, Failure> {
    match io::stdout()
        .write_all(text.as_bytes())
        .and_then(|()| io::stdout().flush())
    {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::cannot("stdout", error)),
    }
}

async fn list(json: bool) -> Result<u8, Failure> {
    let mut guests = Vec::new();
    for name in Base::of_this_user().names() {
        let (name, directory) = Base::of_this_user().find(Some(&name))?;
        // One that ends meanwhile is not listed.
        if let Ok(client) = Client::connect(&name, &directory).await
            && let Ok(status) = client.status().await
        {
            guests.push(status);
        }
    }
    if json {
        return print(&to_json(&guests)?);
    }
    let mut text = String::new();
    for guest in guests {
        let nodes: Vec<&str> = guest.nodes.iter().map(|node| node.name.as_str()).collect();
        text += &format!(
            "{:<16} {:<9} {:<24} since {}\n",
            guest.name,
            guest.state,
            nodes.join(","),
            guest.started
        );
    }
    print(&text)
}

/// The CPUs that are meant by one of the options of `exec`.
fn cpus(status: &Status, cpu: Option<u16>, node: Option<&str>) -> Result<Vec<u16>, Failure> {
    let of = |node: &NodeStatus| node.cpus.iter().map(|cpu| cpu.cpu).collect::<Vec<u16>>();
    if let Some(name) = node {
        let names: Vec<&str> = status.nodes.iter().map(|node| node.name.as_str()).collect();
        let node = status.nodes.iter().find(|node| node.name == name);
        return node.map(of).ok_or_else(|| {
            let names = names.join(", ");
            Failure::usage(format!("--node {name}: the guest has the nodes {names}"))
        });
    }
    let all: Vec<u16> = status.nodes.iter().flat_map(of).collect();
    match cpu {
        Some(cpu) if all.contains(&cpu) => Ok(vec![cpu]),
        Some(cpu) => {
            let last = all.iter().max().copied().unwrap_or_default();
            Err(Failure::usage(format!(
                "--cpu {cpu}: the guest has the CPUs 0 to {last}"
            )))
        }
        None => Ok(all),
    }
}

async fn exec(
    target: &Target,
    argv: Vec<Vec<u8>>,
    cpus: Vec<u16>,
    tty: bool,
) -> Result<u8, Failure> {
    let (name, directory) = find(target)?;
    let pipe = Client::connect(&name, &directory)
        .await?
        .session(Ask::Session)
        .await?;
    let terminal = tty && terminal::interactive();
    let command = session::Command {
        argv,
        env: environment::for_command(),
        directory: std::env::current_dir()
            .map_or(b"/".to_vec(), |path| path.into_os_string().into_vec()),
        cpus,
        terminal: terminal.then(terminal::size),
    };
    let options = stdio::Options {
        raw: terminal,
        detach_key: false,
        leave_at_end: false,
    };
    ended(&name, stdio::run(pipe, Some(command), options).await)
}

async fn lines(target: &Target, json: bool) -> Result<u8, Failure> {
    let (name, directory) = find(target)?;
    let lines = Client::connect(&name, &directory).await?.lines().await?;
    if json {
        return print(&to_json(&lines)?);
    }
    let mut text = format!(
        "{:<6} {:<12} {:>8}  {}\n",
        "line", "in the guest", "attached", "channel"
    );
    for line in lines {
        let (name, device, channel) = (line.name, line.device, line.channel);
        text += &format!("{name:<6} {device:<12} {:>8}  {channel}\n", line.attached);
    }
    print(&text)
}

async fn console(target: &Target, line: Option<Line>) -> Result<u8, Failure> {
    let (name, directory) = find(target)?;
    let ask = match line {
        None => Ask::Console {
            size: terminal::size(),
        },
        // Who has no terminal leaves the size as it is.
        Some(line) => Ask::Line {
            line,
            size: terminal::interactive().then(terminal::size),
        },
    };
    let pipe = Client::connect(&name, &directory)
        .await?
        .session(ask)
        .await?;
    let raw = terminal::interactive();
    let name = match line {
        None => name,
        Some(line) => format!("{line} of {name}"),
    };
    say(&format!("attached to {name}; Ctrl-] detaches"));
    let options = stdio::Options {
        raw,
        detach_key: true,
        leave_at_end: true,
    };
    let ended_how = stdio::run(pipe, None, options).await;
    if ended_how == Ended::Detached {
        say(&format!("detached from {name}"));
    }
    ended(&name, ended_how)
}

fn ended(name: &str, ended: Ended) -> Result<u8, Failure> {
    match ended {
        Ended::Code(code) => Ok(code),
        Ended::NotStarted(code, line) => {
            say(&crate::failure::one_line(&line));
            Ok(code)
        }
        Ended::Detached => Ok(0),
        Ended::Lost => Err(Failure::failed(format!(
            "the session ended with guest {name}"
        ))),
    }
}

async fn logs(directory: &Path, follow: bool, json: bool) -> Result<u8, Failure> {
    let failed = |error: io::Error| Failure::cannot(directory.join(LOG_FILE).display(), error);
    if let Ok(old) = File::open(directory.join(OLD_LOG_FILE)) {
        show(&mut BufReader::new(old), json)?;
    }
    let mut log = BufReader::new(File::open(directory.join(LOG_FILE)).map_err(failed)?);
    loop {
        // Looked at first: what was logged before the end is shown.
        let running = is_running(directory);
        show(&mut log, json)?;
        if !follow || !running {
            return Ok(0);
        }
        tokio::time::sleep(Duration::from_millis(FOLLOW_INTERVAL_MS)).await;
        if set_aside(&log, directory) {
            show(&mut log, json)?;
            if let Ok(next) = File::open(directory.join(LOG_FILE)) {
                log = BufReader::new(next);
            }
        }
    }
}

/// Whether the log has gone on in a new file.
fn set_aside(log: &BufReader<File>, directory: &Path) -> bool {
    let now = std::fs::metadata(directory.join(LOG_FILE)).map(|metadata| metadata.ino());
    let open = log.get_ref().metadata().map(|metadata| metadata.ino());
    matches!((now, open), (Ok(now), Ok(open)) if now != open)
}

fn show(log: &mut impl BufRead, json: bool) -> Result<(), Failure> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let bytes = log
            .read_until(b'\n', &mut line)
            .map_err(|error| Failure::cannot("the log cannot be read", error))?;
        if bytes == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line);
        if !json {
            print(&text)?;
            continue;
        }
        let (node, line) = text
            .trim_end()
            .split_once(": ")
            .unwrap_or(("", text.trim_end()));
        print(&format!("{}\n", json!({ "node": node, "line": line })))?;
    }
}
