//! Nodes on other hosts: daemons in network, process, mount and clock spaces of their own.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use span_tests::{
    END_MS_MAX, Host, Network, Spawned, Up, World, descendants, end_max, processes_with,
};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n";
const LIMIT: Duration = Duration::from_secs(30);

struct Hosts<'w> {
    world: &'w World,
    a: Host,
    b: Host,
    c: Host,
    daemons: Vec<Spawned>,
    nodes: String,
    token: PathBuf,
    /// Last: it takes everything away.
    _network: Network<'w>,
}

impl<'w> Hosts<'w> {
    fn new(world: &'w World) -> Self {
        Self::exporting(world, &[], &[])
    }

    /// With options of either daemon.
    fn exporting(world: &'w World, at_b: &[&str], at_c: &[&str]) -> Self {
        let mut network = Network::new(world);
        let [a, b, c] = ["a", "b", "c"].map(|name| network.host(name));
        let (one, at_one) = b.serve(world, TOKEN, at_b);
        let (other, at_other) = c.serve(world, TOKEN, at_c);
        let token = world.file("token", TOKEN);
        span_tests::restrict(&token);
        Self {
            world,
            a,
            b,
            c,
            daemons: vec![one, other],
            nodes: format!("a,b={at_one},c={at_other}"),
            token,
            _network: network,
        }
    }

    fn up(&self) -> Up<'w> {
        let words = self.a.coordinator();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Up::on(self.world, &self.nodes)
            .through(&words)
            .option("--token-file")
            .option(&self.token)
    }

    /// Stops the daemons, and looks whether they left anything.
    fn end(mut self) {
        for daemon in &self.daemons {
            for process in descendants(daemon.pid()) {
                if process.command.starts_with("/mnt/node serve") {
                    kill(Pid::from_raw(process.pid), Signal::SIGTERM).expect("signalling");
                }
            }
        }
        for daemon in self.daemons.drain(..) {
            daemon.wait(LIMIT).expect(0);
        }
        for host in [&self.b, &self.c] {
            assert_eq!(host.state(), Vec::<PathBuf>::new());
        }
        let world = self.world;
        drop(self);
        world.assert_clean();
    }
}

#[test]
fn a_guest_runs_on_three_hosts() {
    if skipped() {
        return;
    }
    let world = World::new();
    let hosts = Hosts::new(&world);
    let outcome = hosts
        .up()
        .options(&["--name", "far"])
        .sh("nproc; cat /proc/span; \
             for c in 0 1 2; do taskset -c $c sha256sum /usr/bin/python3; done | sort | uniq -c | wc -l")
        .expect(0);
    assert_eq!(outcome.text(), "3\ncpu node\n0 0\n1 1\n2 2\n1");
    // Kernel and runtime are there by now.
    hosts.up().sh("exit 7").expect(7);
    let input: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
    let outcome = hosts
        .up()
        .input(input.clone())
        .run(&["taskset", "-c", "2", "cat"])
        .expect(0);
    assert!(outcome.stdout == input);
    let outcome = hosts.up().options(&["--cpus", "2"]).run(&["nproc"]);
    assert_eq!(outcome.expect(0).text(), "6");
    hosts.end();
}

#[test]
fn time_is_one_although_clocks_are_not() {
    if skipped() {
        return;
    }
    let world = World::new();
    let hosts = Hosts::new(&world);
    // Never backwards, from CPU to CPU.
    let script = "import os,time\nlast=0\nfor n in range(300):\n \
                  os.sched_setaffinity(0,{n%3})\n now=time.monotonic_ns()\n \
                  assert now>=last,(n,now-last)\n last=now\nprint('forward')";
    let outcome = hosts
        .up()
        .run(&["/usr/bin/python3", "-c", script])
        .expect(0);
    assert_eq!(outcome.text(), "forward");
    hosts.end();
}

#[test]
fn a_wrong_token_is_refused() {
    if skipped() {
        return;
    }
    let world = World::new();
    let mut hosts = Hosts::new(&world);
    hosts.token = world.file("other", TOKEN.replace('0', "f"));
    span_tests::restrict(&hosts.token);
    let outcome = hosts.up().run(&["true"]).expect(125);
    assert!(outcome.stderr.contains("token"), "{}", outcome.stderr);
    assert_eq!(outcome.stdout, b"");
    // The daemons go on.
    hosts.token = world.path("work").join("token");
    hosts.up().run(&["true"]).expect(0);
    hosts.end();
}

#[test]
fn a_killed_daemon_is_named() {
    if skipped() {
        return;
    }
    let world = World::new();
    let hosts = Hosts::new(&world);
    let running = hosts.up().start();
    let daemon = descendants(hosts.daemons[0].pid())
        .into_iter()
        .find(|process| process.command.starts_with("/mnt/node serve"))
        .expect("a daemon");
    let event = Instant::now();
    kill(Pid::from_raw(daemon.pid), Signal::SIGKILL).expect("signalling");
    let outcome = running.coordinator.wait(LIMIT).expect(70);
    let took = outcome.at.duration_since(event);
    assert!(
        outcome.stderr.contains("node b was lost"),
        "{}",
        outcome.stderr
    );
    assert!(took <= end_max(&outcome.stderr), "{took:?}");
    // Its guest process too, and the other host's.
    assert!(span_tests::wait_until(
        Duration::from_millis(END_MS_MAX),
        || { processes_with(&["linux", "span.name=running"]).is_empty() }
    ));
    drop(hosts);
    world.assert_clean();
}

#[test]
fn a_killed_coordinator_ends_the_others_guest_processes() {
    if skipped() {
        return;
    }
    let world = World::new();
    let hosts = Hosts::new(&world);
    let running = hosts.up().start();
    let program = format!("{} up", span_tests::program("coordinator").display());
    let coordinator = descendants(running.coordinator.pid())
        .into_iter()
        .find(|process| process.command.starts_with(&program))
        .expect("a coordinator");
    assert_eq!(processes_with(&["linux", "span.name=running"]).len(), 3);
    kill(Pid::from_raw(coordinator.pid), Signal::SIGKILL).expect("signalling");
    // The other hosts learn of it only by its silence.
    let gone = span_tests::wait_until(Duration::from_millis(END_MS_MAX), || {
        processes_with(&["linux", "span.name=running"]).is_empty()
    });
    assert!(
        gone,
        "{:?}",
        processes_with(&["linux", "span.name=running"])
    );
    running.coordinator.wait(LIMIT).expect(137);
    hosts.end();
}

/// What a host exports is up to its daemon.
#[test]
fn directories_of_other_hosts_are_mounted() {
    if skipped() {
        return;
    }
    let world = World::new();
    // A host finds its own files in /mnt.
    let [shared, ..] = ["b/shared", "b/constant", "c/shared"].map(|name| {
        let path = world.path("work").join(name);
        std::fs::create_dir_all(&path).expect("a directory");
        path
    });
    std::fs::write(shared.join("name"), "of b\n").expect("a file");
    let exported = ["--export", "/mnt/shared", "--export", "/mnt/constant,ro"];
    let hosts = Hosts::exporting(&world, &exported, &[]);
    let script = "set -e; cat /h/name; for c in 0 1 2; do taskset -c $c sh -c \"echo $c >>/h/made\"; done; \
        cat /h/made; ls -A /k; for o in b:/mnt c:/mnt/shared b:/etc c:/; do \
        mount -t hostfs none /mnt -o $o 2>&1 && exit 1; done; \
        mount -o remount,rw /k; echo >/k/new && exit 1; exit 0";
    // The user of the guest may ask for more than the daemon gives.
    let mounts = [
        "--hostfs",
        "b:/mnt/shared=/h",
        "--hostfs",
        "b:/mnt/constant=/k",
    ];
    let outcome = hosts.up().options(&mounts).sh(script).expect(0);
    let denied = "mount: /mnt: permission denied.";
    assert!(
        outcome.text().starts_with("of b\n0\n1\n2\n"),
        "{}",
        outcome.text()
    );
    assert_eq!(
        outcome.text().matches(denied).count(),
        4,
        "{}",
        outcome.text()
    );
    assert!(
        outcome.stderr.contains("Read-only file system"),
        "{}",
        outcome.stderr
    );
    assert_eq!(span_tests::text(shared.join("made")), "0\n1\n2\n");
    let refused = hosts
        .up()
        .options(&["--hostfs", "c:/mnt/shared=/h"])
        .run(&["true"]);
    let stderr = &refused.expect(125).stderr;
    assert!(
        stderr.contains("mounting c:/mnt/shared on /h failed"),
        "{stderr}"
    );
    hosts.end();
}

fn skipped() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        span_tests::not_tested("other hosts: only root can make network namespaces");
    }
    !root
}
