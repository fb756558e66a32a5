//! What a run measures, with what, and how much.

use crate::error::{Error, Result};
use crate::gauge::{Gauge, Outcome};
use crate::interrupt;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use span_tests::{Status, Up, World};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Memory of each node; upstream has what the nodes have together.
pub(crate) const NODE_MEMORY_MIB: usize = 256;

/// How long the host's time stamp counter is compared with its clock.
const CALIBRATION_MS: &str = "200";

const GAUGE: &str = concat!(
    include_str!("../programs/common.c"),
    include_str!("../programs/floors.c"),
    include_str!("../programs/kernel.c"),
    include_str!("../programs/hostfs.c"),
    include_str!("../programs/ubd.c"),
    include_str!("../programs/net.c"),
    include_str!("../programs/distance.c"),
    include_str!("../programs/stencil.c"),
    include_str!("../programs/gauge.c"),
);

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// Of each side, in turns.
    pub(crate) repetitions: u32,
    /// Where small differences matter, each of them is this many short ones: the load of a machine
    /// changes within seconds.
    pub(crate) parts: u32,
    /// In each: batches of system calls, ...
    pub(crate) call_batches: u32,
    pub(crate) forks: u32,
    /// ... fresh pages, and times that they are taken, ...
    pub(crate) anonymous: (u32, u32),
    /// ... shared pages, and times that they are fetched, ...
    pub(crate) remote: (u32, u32),
    /// ... turns of a floor, ...
    pub(crate) floor: u32,
    /// ... and rounds between which faults are counted.
    pub(crate) pipes: u32,
    pub(crate) execs: u32,
    /// Calls of a function on another CPU, and how often two CPUs take a lock.
    pub(crate) kernel: (u32, u32),
    /// Seconds for which a guest is left alone.
    pub(crate) rest_s: u32,
    /// Files of the host's, and MiB of a large one.
    pub(crate) hostfs: (u32, u32),
    /// Pages that two nodes have in turns.
    pub(crate) board: u32,
    /// MiB of a disk, and reads of a page of it.
    pub(crate) ubd: (u32, u32),
    /// MiB of a stream in either direction.
    pub(crate) net: u32,
    /// Pages that are fetched one after the other, pages that are fetched in order, and rounds.
    pub(crate) distance: (u32, u32, u32),
    /// Pages of a field that is computed on, and how often.
    pub(crate) stencil: (u32, u32),
    /// The same of a field that is as large as those of programs which need several nodes.
    pub(crate) large_stencil: (u32, u32),
}

impl Effort {
    pub(crate) const FULL: Self = Self {
        repetitions: 5,
        parts: 4,
        call_batches: 1000,
        forks: 100,
        anonymous: (1024, 2),
        remote: (512, 4),
        floor: 4000,
        pipes: 1000,
        execs: 100,
        kernel: (1600, 100_000),
        rest_s: 30,
        hostfs: (10_000, 256),
        board: 80_000,
        ubd: (256, 10_000),
        net: 128,
        distance: (256, 2048, 5),
        stencil: (16384, 40),
        large_stencil: (65536, 20),
    };
    pub(crate) const QUICK: Self = Self {
        repetitions: 2,
        parts: 3,
        call_batches: 500,
        forks: 50,
        anonymous: (512, 2),
        remote: (256, 1),
        floor: 1000,
        pipes: 200,
        execs: 20,
        kernel: (320, 20_000),
        rest_s: 10,
        hostfs: (2000, 64),
        board: 8000,
        ubd: (64, 2000),
        net: 32,
        distance: (128, 1024, 2),
        stencil: (8192, 10),
        large_stencil: (65536, 5),
    };
}

#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) effort: Effort,
    /// The host's time stamp counter, in kHz, for the gauge.
    pub(crate) khz: String,
    pub(crate) host_cpus: usize,
    /// Keeps the nodes a and b on a CPU of the host each, where it has so many.
    pub(crate) apart: Option<String>,
    world: World,
    upstream: PathBuf,
    gauge: String,
    start: Instant,
}

impl Setting {
    pub(crate) fn new(effort: Effort) -> Result<Self> {
        for name in [
            "coordinator",
            "node",
            "linux",
            "libnode.so",
            "initramfs.cpio",
        ] {
            span_tests::find(name).map_err(Error::Missing)?;
        }
        let upstream = span_tests::upstream_kernel()
            .ok_or_else(|| Error::Missing(span_tests::UPSTREAM_MISSING.into()))?;
        let world = World::new();
        let gauge = world
            .compile("gauge", GAUGE)
            .map_err(Error::Missing)?
            .display()
            .to_string();
        let mut setting = Self {
            effort,
            khz: String::new(),
            apart: apart(),
            host_cpus: std::thread::available_parallelism().map_or(1, |count| count.get()),
            world,
            upstream,
            gauge,
            start: Instant::now(),
        };
        let calibration = setting.host(&["calibrate", CALIBRATION_MS])?;
        let khz = calibration.samples("khz")?[0];
        setting.khz = format!("{khz:.0}");
        Ok(setting)
    }

    /// One line for whoever waits.
    pub(crate) fn say(&self, what: &str) {
        eprintln!("[{:6.1}s] {what}", self.start.elapsed().as_secs_f32());
    }

    /// Does `work` as often as there are repetitions.
    pub(crate) fn repeat(&self, what: &str, work: impl FnMut() -> Result<()>) -> Result<()> {
        self.repeat_times(what, self.effort.repetitions, work)
    }

    /// The same, each in parts.
    pub(crate) fn repeat_parts(&self, what: &str, work: impl FnMut() -> Result<()>) -> Result<()> {
        self.repeat_times(what, self.effort.repetitions * self.effort.parts, work)
    }

    /// Does `work` so often.
    pub(crate) fn repeat_times(
        &self,
        what: &str,
        times: u32,
        mut work: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        for time in 1..=times {
            interrupt::check()?;
            self.say(&format!("{what}: {time} of {times}"));
            work()?;
        }
        Ok(())
    }

    fn argv<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        [&[self.gauge.as_str()], arguments].concat()
    }

    /// The gauge on the host.
    pub(crate) fn host(&self, arguments: &[&str]) -> Result<Outcome> {
        let argv = self.argv(arguments);
        let mut command = Command::new(argv[0]);
        self.world.surround(&mut command);
        command.args(&argv[1..]);
        Gauge::run(&format!("gauge {} here", arguments[0]), command)
    }

    /// The gauge as the first process of upstream's kernel.
    pub(crate) fn upstream(
        &self,
        cpus: usize,
        memory_mib: usize,
        arguments: &[&str],
    ) -> Result<Outcome> {
        let argv = self.argv(arguments);
        let command = span_tests::upstream(&self.world, &self.upstream, cpus, memory_mib, &argv);
        Gauge::run(
            &format!("gauge {} in upstream's kernel", arguments[0]),
            command,
        )
    }

    /// The same on one CPU with a disk.
    pub(crate) fn upstream_with_disk(
        &self,
        image: &str,
        memory_mib: usize,
        arguments: &[&str],
    ) -> Result<Outcome> {
        let (argv, disk) = (self.argv(arguments), format!("ubd0={image}"));
        let (world, kernel) = (&self.world, &self.upstream);
        let command = span_tests::upstream_with(world, kernel, 1, memory_mib, &[&disk], &argv);
        let title = format!("gauge {} in upstream's kernel", arguments[0]);
        Gauge::run(&title, command)
    }

    /// The gauge as the first process of upstream's kernel, whose device is that of a helper as `--net user` starts it.
    pub(crate) fn upstream_networked(&self, arguments: &[&str]) -> Result<Outcome> {
        let (helper, socket) = Helper::start(&self.world)?;
        let device = format!(
            "vec0:transport=bess,dst={},mtu={HELPER_MTU}",
            socket.display()
        );
        let argv = self.argv(arguments);
        let (world, kernel) = (&self.world, &self.upstream);
        let command =
            span_tests::upstream_with(world, kernel, 1, NODE_MEMORY_MIB, &[&device], &argv);
        let title = format!("gauge {} in upstream's kernel", arguments[0]);
        let outcome = Gauge::run(&title, command);
        drop(helper);
        outcome
    }

    /// The gauge as the command of a guest of Span's, on one node with a network.
    pub(crate) fn span_networked(&self, arguments: &[&str]) -> Result<Outcome> {
        let up = self.span_up("a", 1).options(&["--net", "user"]);
        Gauge::run(
            &self.span_title(arguments),
            up.command(&self.argv(arguments)),
        )
    }

    /// A file of this run's own.
    pub(crate) fn work(&self, name: &str) -> PathBuf {
        self.world.path("work").join(name)
    }

    /// A module of Span's kernel where guests find it: a product may lie in /tmp, of which a guest has
    /// its own.
    pub(crate) fn module(&self, name: &str) -> Result<String> {
        let module = span_tests::find(&format!("modules/{name}")).map_err(Error::Missing)?;
        let copy = self.world.path("work").join(name);
        std::fs::copy(&module, &copy)
            .map_err(|error| Error::Failed(format!("{}: {error}", module.display())))?;
        Ok(copy.display().to_string())
    }

    /// The gauge as the command of a guest of Span's.
    pub(crate) fn span(&self, nodes: &str, cpus: usize, arguments: &[&str]) -> Result<Outcome> {
        Gauge::run(
            &self.span_title(arguments),
            self.span_up(nodes, cpus).command(&self.argv(arguments)),
        )
    }

    /// The same with more options of `up`, a CPU on each node.
    pub(crate) fn span_with(
        &self,
        options: &[&str],
        nodes: &str,
        arguments: &[&str],
    ) -> Result<Outcome> {
        Gauge::run(
            &self.span_title(arguments),
            self.span_up(nodes, 1)
                .options(options)
                .command(&self.argv(arguments)),
        )
    }

    /// The same where each node has so much memory.
    pub(crate) fn span_with_memory(
        &self,
        memory_mib: usize,
        options: &[&str],
        nodes: &str,
        arguments: &[&str],
    ) -> Result<Outcome> {
        let up = self.span_up_with_memory(nodes, 1, memory_mib);
        Gauge::run(
            &self.span_title(arguments),
            up.options(options).command(&self.argv(arguments)),
        )
    }

    /// The gauge on one node that has as much as several: so many CPUs, and the memory of as many nodes.
    pub(crate) fn span_on_one(&self, cpus: usize, arguments: &[&str]) -> Result<Outcome> {
        let up = self.span_up_with_memory("a", cpus, cpus * NODE_MEMORY_MIB);
        Gauge::run(
            &self.span_title(arguments),
            up.command(&self.argv(arguments)),
        )
    }

    /// The gauge on one node, which exports `directory`.
    pub(crate) fn span_exporting(&self, directory: &str, arguments: &[&str]) -> Result<Outcome> {
        let mount = format!("{directory}=/media");
        self.span_with(&["--hostfs", &mount], "a", arguments)
    }

    /// The gauge on one node with a disk.
    pub(crate) fn span_with_disk(&self, image: &str, arguments: &[&str]) -> Result<Outcome> {
        self.span_with(&["--ubd", image], "a", arguments)
    }

    /// Makes a file for a disk of both sides, with all its space.
    pub(crate) fn image(&self, name: &str, mib: u32) -> Result<String> {
        let path = self.world.path("work").join(name);
        let contents = vec![1; (mib as usize) << 20];
        std::fs::write(&path, contents)
            .map_err(|error| Error::Failed(format!("{}: {error}", path.display())))?;
        Ok(path.display().to_string())
    }

    /// Makes a directory for files of both sides.
    pub(crate) fn directory(&self, name: &str) -> Result<String> {
        let path = self.world.path("work").join(name);
        std::fs::create_dir(&path)
            .map_err(|error| Error::Failed(format!("{}: {error}", path.display())))?;
        Ok(path.display().to_string())
    }

    /// The same, while the guest is profiled.
    pub(crate) fn span_profiled(&self, nodes: &str, arguments: &[&str]) -> Result<Outcome> {
        let up = self.span_up(nodes, 1).profiled();
        let title = format!("{}, profiled", self.span_title(arguments));
        Gauge::run(&title, up.command(&self.argv(arguments)))
    }

    /// The same, with more options of `up`; `look` gets what the guest's nodes have counted between the marks of each name.
    pub(crate) fn span_with_marks(
        &self,
        nodes: &str,
        options: &[&str],
        arguments: &[&str],
        mut look: impl FnMut(&str, &Status, &Status),
    ) -> Result<Outcome> {
        let mut begun: Option<Status> = None;
        Gauge::run_with_marks(
            &self.span_title(arguments),
            self.span_up(nodes, 1)
                .options(options)
                .command(&self.argv(arguments)),
            |mark| {
                let now = self.status()?;
                match (mark.split_once(' '), begun.take()) {
                    (Some(("begin", _)), None) => begun = Some(now),
                    (Some(("end", name)), Some(before)) => look(name, &before, &now),
                    _ => return Err(Error::Failed(format!("gauge: unexpected mark: {mark}"))),
                }
                Ok(())
            },
        )
    }

    /// The same on links of this latency; what the nodes count is not looked at.
    pub(crate) fn span_slow(
        &self,
        nodes: &str,
        latency: &str,
        arguments: &[&str],
    ) -> Result<Outcome> {
        let up = self.span_up(nodes, 1).options(&["--latency", latency]);
        let command = up.command(&self.argv(arguments));
        Gauge::run_with_marks(&self.span_title(arguments), command, |_| Ok(()))
    }

    /// The gauge in a guest with these options, on the CPU `here` with memory that `there` has written, of the node of
    /// the CPU `home`.
    pub(crate) fn span_distance(
        &self,
        options: &[&str],
        here: u64,
        there: u64,
        home: u64,
    ) -> Result<Outcome> {
        let (few, many, rounds) = self.effort.distance;
        let numbers = [here, there, home, few.into(), many.into(), rounds.into()];
        self.span_far("distance", options, &numbers)
    }

    /// The same with memory of a NUMA node that nobody has used.
    pub(crate) fn span_fresh(&self, options: &[&str], here: u64, node: usize) -> Result<Outcome> {
        let (few, _, rounds) = self.effort.distance;
        self.span_far(
            "fresh",
            options,
            &[here, node as u64, few.into(), rounds.into()],
        )
    }

    fn span_far(&self, what: &str, options: &[&str], numbers: &[u64]) -> Result<Outcome> {
        let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
        let mut arguments = vec![what, &self.khz];
        arguments.extend(numbers.iter().map(String::as_str));
        let up = Up::bare(&self.world).options(options);
        let up = up.options(&["--name", GUEST]);
        Gauge::run(
            &self.span_title(&arguments),
            up.command(&self.argv(&arguments)),
        )
    }

    /// What a topology says.
    pub(crate) fn topology(&self, name: &str) -> Result<serde_json::Value> {
        let mut command = self.world.command("coordinator");
        command.args(["topology", "show", name, "--json"]);
        let text = succeed("coordinator topology show", &mut command)?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// A guest that runs nothing by itself.
    pub(crate) fn guest(&self, nodes: &str, cpus: usize, options: &[&str]) -> Result<Guest<'_>> {
        let up = self.span_up(nodes, cpus).options(&["--detach"]);
        let mut command = up.options(options).command(&[]);
        succeed("coordinator up", &mut command)?;
        Ok(Guest {
            setting: self,
            runs: true,
        })
    }

    /// The gauge's program, and its source.
    pub(crate) fn gauge(&self) -> &str {
        &self.gauge
    }

    pub(crate) fn source(&self) -> Result<String> {
        let path = self.world.path("work").join("source.c");
        std::fs::write(&path, GAUGE)
            .map_err(|error| Error::Failed(format!("{}: {error}", path.display())))?;
        Ok(path.display().to_string())
    }

    fn span_title(&self, arguments: &[&str]) -> String {
        format!("gauge {} in a guest", arguments[0])
    }

    fn span_up(&self, nodes: &str, cpus: usize) -> Up<'_> {
        self.span_up_with_memory(nodes, cpus, NODE_MEMORY_MIB)
    }

    /// Memory for every node.
    fn span_up_with_memory(&self, nodes: &str, cpus: usize, memory_mib: usize) -> Up<'_> {
        let memory = format!("{memory_mib}M");
        Up::on(&self.world, nodes)
            .options(&["--cpus", &cpus.to_string(), "--mem", &memory])
            .options(&["--name", GUEST])
    }

    pub(crate) fn status(&self) -> Result<Status> {
        let mut command = self.world.command("coordinator");
        command.args(["status", GUEST, "--json"]);
        let out = command
            .output()
            .map_err(|error| Error::Failed(format!("coordinator status: {error}")))?;
        serde_json::from_slice(&out.stdout).map_err(|error| {
            let said = String::from_utf8_lossy(&out.stderr);
            Error::Failed(format!("coordinator status: {error}: {}", said.trim()))
        })
    }
}

/// What the frames of `--net user` are.
const HELPER_MTU: &str = "16000";

/// Longest wait for a helper to listen.
const HELPER_MAX: Duration = Duration::from_secs(5);

/// A helper for upstream's kernel; ended when dropped.
struct Helper(Child);

impl Helper {
    fn start(world: &World) -> Result<(Self, PathBuf)> {
        let failed = |error: std::io::Error| match error.kind() {
            ErrorKind::NotFound => Error::Missing("slirp4netns is not installed".into()),
            _ => Error::Failed(format!("slirp4netns: {error}")),
        };
        let socket = world.path("work").join("frames");
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new("slirp4netns");
        world.surround(&mut command);
        command
            .arg("--target-type=bess")
            .arg(&socket)
            .args(["--cidr=10.0.2.0/24", "--mtu", HELPER_MTU])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let helper = Self(command.spawn().map_err(failed)?);
        if !span_tests::wait_until(HELPER_MAX, || socket.exists()) {
            return Err(Error::Failed("slirp4netns does not listen".into()));
        }
        Ok((helper, socket))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// There is one guest at a time, in a runtime directory of this run's own.
const GUEST: &str = "bench";

/// Longest time a gauge may take; all figures together take less on a slow machine.
pub(crate) const GAUGE_MAX: Duration = Duration::from_secs(180);

fn succeed(title: &str, command: &mut Command) -> Result<Vec<u8>> {
    let out = command
        .output()
        .map_err(|error| Error::Failed(format!("{title}: {error}")))?;
    match out.status.success() {
        true => Ok(out.stdout),
        false => {
            let said = String::from_utf8_lossy(&out.stderr);
            Err(Error::Failed(format!("{title}: {}", said.trim())))
        }
    }
}

/// A guest that runs until it is ended.
#[derive(Debug)]
pub(crate) struct Guest<'s> {
    setting: &'s Setting,
    runs: bool,
}

impl Guest<'_> {
    fn ask(&self, words: &[&str]) -> Result<Vec<u8>> {
        interrupt::check()?;
        let mut command = self.setting.world.command("coordinator");
        command.args(words);
        succeed(&format!("coordinator {}", words.join(" ")), &mut command)
    }

    fn json(&self, words: &[&str]) -> Result<serde_json::Value> {
        let text = self.ask(words)?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Runs a program to its end.
    pub(crate) fn exec(&self, argv: &[String]) -> Result<()> {
        let argv = argv.iter().map(String::as_str);
        let words: Vec<&str> = ["exec", GUEST, "--"].into_iter().chain(argv).collect();
        self.ask(&words).map(drop)
    }

    /// What the links take.
    pub(crate) fn measure(&self) -> Result<serde_json::Value> {
        self.json(&["topology", "measure", GUEST, "--json"])
    }

    /// Changes the link.
    pub(crate) fn set(&self, options: &[&str]) -> Result<()> {
        self.ask(&[&["link", GUEST, "a-b"], options].concat())
            .map(drop)
    }

    /// What the nodes have counted of them.
    pub(crate) fn links(&self) -> Result<serde_json::Value> {
        self.json(&["link", GUEST, "--json"])
    }

    /// How far off the median of the messages left that were delayed, on the first direction.
    pub(crate) fn error_ns(&self) -> Result<f64> {
        let links = self.links()?;
        let error = links["links"][0]["error"]["p50_ns"].as_f64();
        error.ok_or_else(|| Error::Failed(format!("no error is counted: {links}")))
    }

    pub(crate) fn end(mut self) -> Result<()> {
        self.runs = false;
        self.ask(&["down", GUEST]).map(drop)
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        if self.runs {
            let mut command = self.setting.world.command("coordinator");
            let _ = command.args(["down", GUEST]).output();
        }
    }
}

/// The first two CPUs that this process may run on, for the nodes a and b.
fn apart() -> Option<String> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let mut cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu) == Ok(true));
    Some(format!("a={},b={}", cpus.next()?, cpus.next()?))
}
