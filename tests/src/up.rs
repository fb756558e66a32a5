//! Guests: `coordinator up`, and what can be asked of a running one.

use crate::SHORT_S_MAX;
use crate::process::{Outcome, Spawned, wait_until};
use crate::status::Status;
use crate::world::World;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// Options of `coordinator up`.
#[derive(Debug)]
pub struct Up<'w> {
    world: &'w World,
    coordinator: PathBuf,
    verb: &'static str,
    options: Vec<OsString>,
    append: String,
    wrapper: Vec<OsString>,
    input: Vec<u8>,
    limit: Duration,
}

impl<'w> Up<'w> {
    /// On three local nodes, one CPU each.
    pub fn three(world: &'w World) -> Self {
        Self::on(world, "a,b,c")
    }

    pub fn on(world: &'w World, nodes: &str) -> Self {
        Self::bare(world).option("--nodes").option(nodes)
    }

    /// Without `--nodes`.
    pub fn bare(world: &'w World) -> Self {
        Self {
            world,
            coordinator: crate::product::program("coordinator"),
            verb: "up",
            options: Vec::new(),
            // For kernels and settings that are tried out.
            append: std::env::var("SPAN_TEST_APPEND").unwrap_or_default(),
            wrapper: Vec::new(),
            input: Vec::new(),
            limit: Duration::from_secs(SHORT_S_MAX),
        }
    }

    /// `coordinator profile` instead, which takes the same options.
    pub fn profiled(mut self) -> Self {
        self.verb = "profile";
        self
    }

    /// With the files of another product.
    pub fn product(mut self, directory: &Path) -> Self {
        self.coordinator = directory.join("coordinator");
        self
    }

    pub fn option(mut self, option: impl AsRef<OsStr>) -> Self {
        self.options.push(option.as_ref().to_owned());
        self
    }

    pub fn options(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(OsString::from));
        self
    }

    pub fn append(mut self, arguments: &str) -> Self {
        self.append = format!("{} {arguments}", self.append);
        self
    }

    /// Runs the coordinator by way of another program, as `taskset -c 0`.
    pub fn through(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(OsString::from).collect();
        self
    }

    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    pub fn limit_s(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// Runs a command and takes the guest down.
    #[track_caller]
    pub fn run(mut self, command: &[&str]) -> Outcome {
        let input = std::mem::take(&mut self.input);
        let limit = self.limit;
        let mut spawned = Spawned::start(&mut self.command(command));
        spawned.feed(input);
        spawned.wait(limit)
    }

    #[track_caller]
    pub fn sh(self, script: &str) -> Outcome {
        self.run(&["sh", "-c", script])
    }

    /// Starts a guest that stays until it is ended, at the coordinator's other end.
    #[track_caller]
    pub fn start(self) -> Running<'w> {
        self.start_with("echo up; exec sleep 1000")
    }

    /// Starts a guest with a script that says `up` once it runs.
    #[track_caller]
    pub fn start_with(self, script: &str) -> Running<'w> {
        let name = "running";
        let (world, limit) = (self.world, self.limit);
        let up = self.options(&["--name", name]);
        let mut coordinator = Spawned::start(&mut up.command(&["sh", "-c", script]));
        coordinator.wait_for("up\n", limit);
        Running {
            guest: Guest {
                world,
                name: name.into(),
            },
            coordinator,
        }
    }

    /// Starts a guest under this name in the background.
    #[track_caller]
    pub fn detach(self, name: &str) -> Detached<'w> {
        let (world, limit) = (self.world, self.limit);
        let up = self.options(&["--detach", "--name", name]);
        let outcome = Spawned::start(&mut up.command(&[])).wait(limit).expect(0);
        assert_eq!(outcome.text(), name);
        Detached(Guest {
            world,
            name: name.into(),
        })
    }

    /// The coordinator's command line.
    pub fn command(self, guest_command: &[&str]) -> Command {
        let mut line = self.wrapper;
        line.push(self.coordinator.into_os_string());
        line.push(self.verb.into());
        line.extend(self.options);
        if !self.append.trim().is_empty() {
            line.extend(["--append".into(), self.append.trim().into()]);
        }
        if !guest_command.is_empty() {
            line.push("--".into());
            line.extend(guest_command.iter().map(OsString::from));
        }
        let mut command = Command::new(&line[0]);
        self.world.surround(&mut command);
        command.args(&line[1..]);
        command
    }
}

/// A guest that runs, by its name.
#[derive(Debug)]
pub struct Guest<'w> {
    world: &'w World,
    name: String,
}

impl Guest<'_> {
    #[track_caller]
    fn ask(&self, what: &str, options: &[&str]) -> Outcome {
        let mut command = self.world.command("coordinator");
        command.arg(what).arg(&self.name).args(options);
        let mut spawned = Spawned::start(&mut command);
        spawned.feed(Vec::new());
        spawned.wait(Duration::from_secs(SHORT_S_MAX))
    }

    /// Runs a command in the guest.
    #[track_caller]
    pub fn exec(&self, command: &[&str]) -> Outcome {
        self.exec_within(command, SHORT_S_MAX)
    }

    /// Runs a command on the CPUs that an option of `exec` names.
    #[track_caller]
    pub fn exec_on(&self, place: &[&str], command: &[&str]) -> Outcome {
        self.ask("exec", &[place, &["--"], command].concat())
    }

    #[track_caller]
    pub fn exec_within(&self, argv: &[&str], seconds: u64) -> Outcome {
        let mut spawned = self.begin(argv);
        spawned.feed(Vec::new());
        spawned.wait(Duration::from_secs(seconds))
    }

    /// Starts a command in the guest.
    pub fn begin(&self, argv: &[&str]) -> Spawned {
        let mut command = self.world.command("coordinator");
        command.arg("exec").arg(&self.name).arg("--").args(argv);
        Spawned::start(&mut command)
    }

    /// `console` with a line that cannot be attached to.
    #[track_caller]
    pub fn console(&self, line: &str) -> Outcome {
        self.ask("console", &[line])
    }

    /// `console --list`.
    #[track_caller]
    pub fn lines(&self) -> serde_json::Value {
        let outcome = self.ask("console", &["--list", "--json"]).expect(0);
        serde_json::from_slice(&outcome.stdout).expect("one JSON array")
    }

    /// Attaches to a line; returns once that is so.
    #[track_caller]
    pub fn attach(&self, line: &str) -> Spawned {
        let mut command = self.world.command("coordinator");
        command.args(["console", &self.name, line]);
        let mut attached = Spawned::start(&mut command);
        attached.wait_for_said("Ctrl-] detaches", Duration::from_secs(SHORT_S_MAX));
        attached
    }

    /// Runs a script in the guest, which must succeed; its output.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        self.exec(&["sh", "-c", script]).expect(0).text()
    }

    #[track_caller]
    pub fn status(&self) -> Status {
        let outcome = self.ask("status", &["--json"]).expect(0);
        serde_json::from_slice(&outcome.stdout).expect("one JSON object")
    }

    /// `status`, for people.
    #[track_caller]
    pub fn status_table(&self) -> String {
        self.ask("status", &[]).expect(0).text()
    }

    /// `stats`, once.
    #[track_caller]
    pub fn stats(&self) -> serde_json::Value {
        let outcome = self.ask("stats", &["--json"]).expect(0);
        serde_json::from_slice(&outcome.stdout).expect("one JSON object")
    }

    /// `link` of this guest.
    #[track_caller]
    pub fn link(&self, options: &[&str]) -> Outcome {
        self.ask("link", options)
    }

    /// The same, with JSON.
    #[track_caller]
    pub fn links(&self, options: &[&str]) -> serde_json::Value {
        let outcome = self.link(&[options, &["--json"]].concat()).expect(0);
        serde_json::from_slice(&outcome.stdout).expect("one JSON object")
    }

    #[track_caller]
    pub fn logs(&self) -> String {
        self.ask("logs", &[]).expect(0).text()
    }

    /// The kernel log with all that was said until now. It takes another way than what commands say, and from each node
    /// one of its own: so each is passed by a mark that the node itself wrote.
    #[track_caller]
    pub fn whole_log(&self) -> String {
        static MARKS: AtomicU32 = AtomicU32::new(0);
        let nodes = self.status().nodes;
        let nodes = nodes.iter().filter(|node| !node.cpus.is_empty());
        let mut missing: Vec<_> = nodes.map(|node| (&node.name, node.cpus[0].cpu)).collect();
        let mut log = String::new();
        let whole = wait_until(Duration::from_secs(SHORT_S_MAX), || {
            // A CPU that logs just now may write others' marks, too: then there is another.
            let mark = format!("span-tests: mark {}", MARKS.fetch_add(1, Relaxed));
            let marks: String = missing
                .iter()
                .map(|(_, cpu)| {
                    format!("taskset -c {cpu} sh -c 'echo \"<3>{mark}.\" >/dev/kmsg'\n")
                })
                .collect();
            self.sh(&marks);
            let all_here = || {
                log = self.logs();
                log.matches(&format!("{mark}.")).count() == missing.len()
            };
            assert!(
                wait_until(Duration::from_secs(SHORT_S_MAX), all_here),
                "{mark} is not in: {log}"
            );
            let wrote = |name: &str| {
                let own =
                    |line: &str| line.starts_with(&format!("{name}: ")) && line.contains(&mark);
                log.lines().any(own)
            };
            missing.retain(|(name, _)| !wrote(name));
            missing.is_empty()
        });
        assert!(whole, "{missing:?} have not logged: {log}");
        log
    }

    /// What the kernel has logged since its log was `before`. Expects that it had nothing to complain
    /// about.
    #[track_caller]
    pub fn assert_quiet_since(&self, before: &str) -> String {
        let log = self.whole_log();
        let Some(since) = log.strip_prefix(before) else {
            panic!("the log has lost its beginning: {log}");
        };
        for word in ["BUG:", "WARNING:", "Oops", "detected stall", "Call Trace"] {
            assert!(!since.contains(word), "{word} in: {since}");
        }
        since.to_string()
    }

    #[track_caller]
    pub fn down(&self) -> Outcome {
        self.ask("down", &["--json"])
    }

    pub fn run_directory(&self) -> PathBuf {
        self.world.path("run").join("span").join(&self.name)
    }
}

/// A guest in the background.
#[derive(Debug)]
pub struct Detached<'w>(Guest<'w>);

impl<'w> std::ops::Deref for Detached<'w> {
    type Target = Guest<'w>;

    fn deref(&self) -> &Guest<'w> {
        &self.0
    }
}

/// A guest whose `coordinator up` is still there.
#[derive(Debug)]
pub struct Running<'w> {
    pub guest: Guest<'w>,
    pub coordinator: Spawned,
}

/// A file's contents as text.
#[track_caller]
pub fn text(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Runs a script on a node's CPU.
#[track_caller]
pub fn on(guest: &Detached<'_>, node: &str, script: &str) -> String {
    let outcome = guest.exec_on(&["--node", node], &["sh", "-c", script]);
    outcome.expect(0).text()
}

/// Runs a script of Python's on a node's CPU.
#[track_caller]
pub fn python(guest: &Detached<'_>, node: &str, script: &str) -> String {
    let outcome = guest.exec_on(&["--node", node], &["/usr/bin/python3", "-c", script]);
    outcome.expect(0).text()
}
