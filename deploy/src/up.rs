//! `cargo dev up`: a guest over three nodes of this machine. With a terminal it is a shell; without
//! one it is a tour that shows what there is to see and ends.
//!
//! The tour's script in the guest and this process take turns over the guest's stdin and stdout, so
//! that each figure is read at a known point of the guest's life.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};

use serde_json::Value;

use crate::error::{Error, Result, broken, invalid};
use crate::process;

const NODES: &str = "a,b,c";

/// Says when it is ready for its host to look, and goes on when it gets a line.
const TOUR: &str = r#"
echo "Linux $(uname -r), $(nproc) CPUs, $(sed -n 's/^MemTotal: *//p' /proc/meminfo) of memory"
echo @look
read -r _
for cpu in $(seq 0 $(($(nproc) - 1))); do
    printf 'CPU %2d: ' "$cpu"
    taskset -c "$cpu" sha256sum /bin/sh || exit 1
done
echo @look
read -r _
"#;

/// Runs the guest from the files in `product`; `arguments` go to `coordinator up`.
pub(crate) fn run(product: &Path, arguments: &[OsString]) -> Result<ExitCode> {
    let options = || arguments.iter().take_while(|argument| *argument != "--");
    let is = |argument: &OsStr, name: &str| {
        argument == name
            || argument
                .to_str()
                .is_some_and(|a| a.starts_with(&format!("{name}=")))
    };
    let given = |name: &str| options().any(|argument| is(argument, name));
    let mut command = Command::new(product.join("coordinator"));
    // cargo run points it at its own directories, where there is another libnode.so.
    command.env_remove("LD_LIBRARY_PATH").arg("up");
    if !given("--nodes") {
        command.args(["--nodes", NODES]);
    }
    let has_command = arguments.iter().any(|argument| argument == "--");
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if terminal || has_command || given("--detach") || given("--help") || given("-h") {
        command.args(arguments);
        let source = command.exec();
        return Err(Error::Spawn {
            program: "coordinator".into(),
            source,
        });
    }
    if given("--name") {
        return Err(invalid(
            "--name: the tour names its guest itself; give a command after --",
        ));
    }
    let name = format!("tour-{}", std::process::id());
    command.args(["--name", &name]).args(arguments);
    command.args(["--", "sh", "-c", TOUR]);
    tour(product, &name, command)
}

fn tour(product: &Path, name: &str, mut command: Command) -> Result<ExitCode> {
    let spawn_error = |source| Error::Spawn {
        program: "coordinator".into(),
        source,
    };
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut guest = command.spawn().map_err(spawn_error)?;
    let shown = show(product, name, &mut guest);
    // Its stdin is closed by now: the guest's script ends, whatever became of the tour.
    let status = guest.wait().map_err(spawn_error)?;
    match (shown, status.code()) {
        (Ok(()), Some(code)) => Ok(ExitCode::from(code as u8)),
        (Ok(()), None) => Err(broken(format!("coordinator up ended by {status}"))),
        // The guest's own end explains a tour that broke off; its message is on stderr already.
        (Err(_), Some(code)) if code != 0 => Ok(ExitCode::from(code as u8)),
        (Err(error), _) => Err(error),
    }
}

fn show(product: &Path, name: &str, guest: &mut Child) -> Result<()> {
    let (Some(stdout), Some(mut stdin)) = (guest.stdout.take(), guest.stdin.take()) else {
        return Err(broken("coordinator up has no pipes"));
    };
    let mut looks = [cpus as fn(&Value) -> Option<String>, pages].into_iter();
    for line in BufReader::new(stdout).lines() {
        let line = line.map_err(|error| broken(format!("reading from the guest: {error}")))?;
        if line.trim_end() != "@look" {
            println!("{line}");
            continue;
        }
        let status = status(product, name)?;
        let table = looks.next().and_then(|look| look(&status));
        let Some(table) = table else {
            return Err(broken(format!(
                "coordinator status: unexpected answer: {status}"
            )));
        };
        print!("{table}");
        proceed(&mut stdin)?;
    }
    match looks.next() {
        None => Ok(()),
        Some(_) => Err(broken("the guest ended before the tour did")),
    }
}

fn proceed(stdin: &mut ChildStdin) -> Result<()> {
    writeln!(stdin).map_err(|error| broken(format!("writing to the guest: {error}")))
}

fn status(product: &Path, name: &str) -> Result<Value> {
    let mut command = Command::new(product.join("coordinator"));
    command.args(["status", name, "--json"]);
    let out = process::output(&mut command)?;
    let text = String::from_utf8_lossy(&out.stdout);
    serde_json::from_str(&text).map_err(|error| {
        let said = String::from_utf8_lossy(&out.stderr);
        broken(format!(
            "coordinator status {name}: {error}; {}",
            said.trim()
        ))
    })
}

/// Each virtual CPU with the node and the host thread that runs it.
fn cpus(status: &Value) -> Option<String> {
    let mut rows = Vec::new();
    for node in status["nodes"].as_array()? {
        for cpu in node["cpus"].as_array()? {
            rows.push((
                cpu["cpu"].as_u64()?,
                node["name"].as_str()?,
                node["pid"].as_u64()?,
                cpu["tid"].as_u64()?,
            ));
        }
    }
    rows.sort_unstable();
    let mut table = String::from("CPU  node          process    thread\n");
    for (cpu, node, pid, tid) in rows {
        table.push_str(&format!("{cpu:3}  {node:12} {pid:8}  {tid:8}\n"));
    }
    Some(table)
}

/// How many pages moved to and from each node, and how much memory it has of the guest's.
fn pages(status: &Value) -> Option<String> {
    let mut table = String::from("node          pages in  pages out  resident MiB\n");
    for node in status["nodes"].as_array()? {
        table.push_str(&format!(
            "{:12} {:9}  {:9}  {:12}\n",
            node["name"].as_str()?,
            node["pages_in"].as_u64()?,
            node["pages_out"].as_u64()?,
            node["resident_mib"].as_f64()?,
        ));
    }
    Some(table)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    /// A coordinator that runs the guest's command on this machine.
    fn fake_product(name: &str, status: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let script = format!(
            "#!/bin/sh\nif [ $1 = status ]; then echo '{status}'; exit; fi\n\
             while [ \"$1\" != -- ]; do shift; done; shift; \"$@\" || exit; exit 5\n"
        );
        // A file that is open for writing in a process just forked cannot be executed: let a shell
        // write it.
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg("cat >\"$0\" <<'E'\n".to_owned() + &script + "E\nchmod +x \"$0\"");
        assert!(
            command
                .arg(dir.join("coordinator"))
                .status()
                .unwrap()
                .success()
        );
        dir
    }

    #[test]
    fn the_tour_looks_twice_and_returns_the_guests_code() {
        let status = r#"{"nodes": [{"name": "a", "pid": 1, "cpus": [], "pages_in": 0,
            "pages_out": 0, "resident_mib": 0}]}"#;
        let product = fake_product("span-tour", status);
        let mut command = Command::new(product.join("coordinator"));
        command.args(["up", "--", "sh", "-c", TOUR]);
        let code = tour(&product, "x", command);
        fs::remove_dir_all(&product).unwrap();
        assert_eq!(code.unwrap(), ExitCode::from(5));
    }

    #[test]
    fn a_tour_without_figures_fails() {
        let product = fake_product("span-no-tour", "{}");
        let mut command = Command::new(product.join("coordinator"));
        command.args(["up", "--", "sh", "-c", "echo @look; read -r _; kill -9 $$"]);
        let code = tour(&product, "x", command);
        fs::remove_dir_all(&product).unwrap();
        assert_ne!(code.unwrap(), ExitCode::SUCCESS);
        let product = fake_product("span-short-tour", "{}");
        let mut command = Command::new(product.join("coordinator"));
        command.args(["up", "--", "false"]);
        let code = tour(&product, "x", command);
        fs::remove_dir_all(&product).unwrap();
        assert_eq!(code.unwrap(), ExitCode::from(1));
    }

    #[test]
    fn tables_come_from_status() {
        let status = serde_json::json!({"nodes": [
            {"name": "b", "pid": 20, "cpus": [{"cpu": 1, "tid": 22}], "pages_in": 5,
             "pages_out": 6, "resident_mib": 7},
            {"name": "a", "pid": 10, "cpus": [{"cpu": 0, "tid": 11}], "pages_in": 1,
             "pages_out": 2, "resident_mib": 3},
        ]});
        let table = cpus(&status).unwrap();
        let rows: Vec<Vec<&str>> = table
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(rows, [["0", "a", "10", "11"], ["1", "b", "20", "22"]]);
        assert!(pages(&status).unwrap().contains(" 5          6"));
        assert_eq!(cpus(&serde_json::json!({"state": "gone"})), None);
    }
}
