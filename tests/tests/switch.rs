//! `--net switch:NAME`: guests that find each other, on one host and on several, and that see nothing else.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use span_tests::{
    Detached, Guest, Spawned, Up, World, parent, processes_with, restrict, wait_until,
};
use std::path::PathBuf;
use std::time::Duration;

const STEP: Duration = Duration::from_secs(30);

const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n";

/// The longest frames of these devices; what is transferred has as many as this at least.
const MTU_BYTES: usize = 16_000;

/// Takes what one client sends, and answers with its checksum.
const RECEIVER: &str = r#"
import hashlib, socket
s = socket.create_server(("", 4000))
print("listening", flush=True)
stream, _ = s.accept()
digest = hashlib.sha256()
while part := stream.recv(1 << 18):
    digest.update(part)
stream.sendall(digest.digest())
"#;

/// Sends: ADDRESS BYTES.
const SENDER: &str = r#"
import hashlib, os, socket, sys
data = os.urandom(int(sys.argv[2]))
s = socket.create_connection((sys.argv[1], 4000), timeout=60)
s.sendall(data)
s.shutdown(socket.SHUT_WR)
assert s.recv(32) == hashlib.sha256(data).digest()
print("sent")
"#;

/// A name that no other switch of this user has.
fn name(suffix: &str) -> String {
    format!("test-{}-{suffix}", std::process::id())
}

fn switches(name: &str) -> usize {
    processes_with(&["node switch", name]).len()
}

fn guest<'w>(world: &'w World, nodes: &str, network: &str, number: u8) -> Detached<'w> {
    let up = Up::on(world, nodes).options(&["--net", network, "--mem", "128M"]);
    let guest = up.detach(&format!("guest-{number}"));
    addressed(&guest, number);
    guest
}

/// Gives its first device 10.9.0.NUMBER.
fn addressed(guest: &Guest<'_>, number: u8) {
    // Without IPv6 it says nothing of its own accord.
    guest.sh(&format!(
        "echo 1 > /proc/sys/net/ipv6/conf/vec0/disable_ipv6; \
         ip address add 10.9.0.{number}/24 dev vec0 && ip link set vec0 up"
    ));
}

#[track_caller]
fn transfer(from: &Guest<'_>, cpu: u16, to: &Guest<'_>, number: u8, bytes: usize) {
    let mut receiver = to.begin(&["python3", "-c", RECEIVER]);
    receiver.wait_for("listening", STEP);
    let address = format!("10.9.0.{number}");
    let argv = ["python3", "-c", SENDER, &address, &bytes.to_string()];
    let outcome = from.exec_on(&["--cpu", &cpu.to_string()], &argv);
    assert_eq!(outcome.expect(0).text(), "sent");
    receiver.wait(STEP).expect(0);
}

fn received(guest: &Guest<'_>) -> usize {
    let count = guest.sh("cat /sys/class/net/vec0/statistics/rx_packets");
    count.parse().expect("a number")
}

#[test]
fn guests_meet_at_a_switch_and_see_only_what_is_theirs() {
    let world = World::new();
    let (lan, other) = (name("lan"), name("other"));
    let one = guest(&world, "a", &format!("switch:{lan}"), 1);
    let two = guest(&world, "a,b", &format!("b:switch:{lan}"), 2);
    let three = guest(&world, "a", &format!("switch:{lan}"), 3);
    let far = guest(&world, "a", &format!("switch:{other}"), 4);
    assert_eq!((switches(&lan), switches(&other)), (1, 1));
    // All have been heard of, and know each other's addresses.
    transfer(&three, 0, &one, 1, 1);
    transfer(&three, 0, &two, 2, 1);
    transfer(&one, 0, &two, 2, 1);

    let (seen_by_three, seen_by_far, seen_by_two) =
        (received(&three), received(&far), received(&two));
    let before = two.status();
    transfer(&one, 0, &two, 2, 16 << 20);
    transfer(&two, 1, &one, 1, 16 << 20);
    // From a CPU of a node that has not got the device.
    transfer(&two, 0, &one, 1, 1 << 20);
    two.status().assert_moved(&before);
    assert!(received(&two) - seen_by_two >= (16 << 20) / MTU_BYTES);
    // Perhaps they have asked all for an address once more.
    assert!(received(&three) - seen_by_three < 8);
    assert_eq!(received(&far), seen_by_far);

    // What is meant for all does reach all: the count can go up.
    let call = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); \
                s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1); \
                [s.sendto(b'x', ('10.9.0.255', 9)) for _ in range(20)]";
    one.exec(&["python3", "-c", call]).expect(0);
    let called = || received(&three) >= seen_by_three + 20;
    assert!(wait_until(STEP, called));
    assert_eq!(received(&far), seen_by_far);

    for guest in [one, far, three] {
        guest.down().expect(0);
    }
    assert_eq!((switches(&lan), switches(&other)), (1, 0));
    two.down().expect(0);
    // Its process is gone before the guest is.
    assert_eq!(switches(&lan), 0);
    world.assert_clean();
}

#[test]
fn guests_that_end_in_any_way_leave_no_switch_and_disturb_nobody() {
    let world = World::new();
    let lan = name("ends");
    let network = format!("switch:{lan}");
    // Begins the switch, and goes first.
    let first = Up::on(&world, "a")
        .options(&["--net", &network, "--mem", "128M"])
        .start();
    let one = guest(&world, "a", &network, 1);
    let two = guest(&world, "a", &network, 2);
    let agent = parent(first.guest.status().pid("a"));
    kill(Pid::from_raw(agent), Signal::SIGKILL).expect("killing");
    first.coordinator.wait(STEP);
    transfer(&one, 0, &two, 2, 1 << 20);
    assert_eq!(switches(&lan), 1);
    let third = Up::on(&world, "a")
        .options(&["--net", &network, "--mem", "128M"])
        .start();
    third.coordinator.signal(Signal::SIGKILL);
    third.coordinator.wait(STEP);
    transfer(&one, 0, &two, 2, 1 << 20);
    assert_eq!(switches(&lan), 1);
    one.down().expect(0);
    let pid = two.status().pid("a");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("killing");
    assert!(wait_until(STEP, || switches(&lan) == 0));
    world.assert_clean();
}

/// A guest that takes nothing of what it is sent is the only one that notices.
#[test]
fn a_guest_that_stands_still_is_not_waited_for() {
    let world = World::new();
    let lan = name("still");
    let network = format!("switch:{lan}");
    let one = guest(&world, "a", &network, 1);
    let two = guest(&world, "a", &network, 2);
    // One that stays stopped is lost, elsewhere.
    let up = Up::on(&world, "a").options(&["--net", &network, "--mem", "128M", "--debug"]);
    let three = up.detach("guest-3");
    addressed(&three, 3);
    transfer(&three, 0, &one, 1, 1);
    let flood = r#"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
data = bytes(15000)
for _ in range(2000):
    s.sendto(data, ("10.9.0.255", 9))
print("flooded")
"#;
    let pid = Pid::from_raw(three.status().pid("a"));
    kill(pid, Signal::SIGSTOP).expect("stopping");
    one.exec(&["python3", "-c", flood]).expect(0);
    transfer(&one, 0, &two, 2, 1 << 20);
    kill(pid, Signal::SIGCONT).expect("continuing");
    let told = || three.logs().contains("had to drop");
    assert!(wait_until(STEP, told), "nothing was dropped");
    transfer(&one, 0, &three, 3, 1 << 20);
    for guest in [one, two, three] {
        guest.down().expect(0);
    }
    world.assert_clean();
}

/// A daemon on this machine.
struct Daemon {
    process: Spawned,
    address: String,
}

impl Daemon {
    fn start(world: &World, number: u8, options: &[&str]) -> Self {
        let token = token(world);
        let state = world.path("work").join(format!("state-{number}"));
        let mut command = world.command("node");
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--token-file"])
            .arg(token)
            .arg("--state-dir")
            .arg(state)
            .args(options);
        let mut process = Spawned::start(&mut command);
        process.wait_for("listening on ", STEP);
        let said = String::from_utf8_lossy(&process.stdout()).into_owned();
        let address = said.trim_end().trim_start_matches("listening on ").into();
        Self { process, address }
    }
}

fn token(world: &World) -> PathBuf {
    let token = world.file("token", TOKEN);
    restrict(&token);
    token
}

#[test]
fn switches_of_daemons_that_are_linked_are_one() {
    let world = World::lasting(Duration::from_secs(180));
    let one = Daemon::start(&world, 1, &[]);
    let mut two = Daemon::start(&world, 2, &["--switch-peer", &one.address]);
    two.process.wait_for_said("switches are linked", STEP);
    // Each links with the others: nothing goes round in circles, nor twice.
    let peers = ["--switch-peer", &one.address, "--switch-peer", &two.address];
    let three = Daemon::start(&world, 3, &peers);
    let linked = || {
        three
            .process
            .stderr()
            .matches("switches are linked")
            .count()
            == 2
    };
    assert!(wait_until(STEP, linked), "{}", three.process.stderr());

    let at = |daemon: &Daemon, number: u8| {
        let token = token(&world);
        // The first node is local: the device is not.
        let nodes = format!("a,b={}", daemon.address);
        let up = Up::on(&world, &nodes)
            .options(&["--net", "b:switch:lan", "--mem", "128M", "--token-file"])
            .option(token);
        let guest = up.detach(&format!("guest-{number}"));
        addressed(&guest, number);
        guest
    };
    let (first, second, third) = (at(&one, 1), at(&two, 2), at(&three, 3));
    transfer(&third, 1, &first, 1, 1);
    transfer(&third, 1, &second, 2, 1);
    let (before, seen) = (first.status(), received(&third));
    transfer(&first, 1, &second, 2, 4 << 20);
    transfer(&second, 1, &first, 1, 4 << 20);
    transfer(&second, 0, &first, 1, 100_000);
    first.status().assert_moved(&before);
    assert!(received(&third) - seen < 8);
    // Local guests have switches of their own.
    let local = guest(&world, "a", "switch:lan", 4);
    let outcome = local.exec(&["python3", "-c", SENDER, "10.9.0.1", "1"]);
    let said = &outcome.expect(1).stderr;
    assert!(said.contains("No route to host"), "{said}");
    local.down().expect(0);

    // Without one daemon the other two go on.
    two.process.signal(Signal::SIGTERM);
    two.process.wait(STEP).expect(0);
    transfer(&first, 1, &third, 3, 1 << 20);
    for guest in [first, third] {
        guest.down().expect(0);
    }
    for daemon in [one, three] {
        daemon.process.signal(Signal::SIGTERM);
        daemon.process.wait(STEP).expect(0);
    }
    // What second had here went with its node.
    drop(second);
    world.assert_clean();
}

#[test]
fn a_peer_that_cannot_be_is_named() {
    let world = World::new();
    let token = token(&world);
    for bad in ["", "host", "host:0", "host:x", ":7000"] {
        let mut command = world.command("node");
        command.args(["serve", "--listen", "127.0.0.1:0", "--switch-peer", bad]);
        command.arg("--token-file").arg(&token);
        let outcome = Spawned::start(&mut command).wait(STEP).expect(2);
        let said = format!("--switch-peer {bad:?}: must be HOST:PORT");
        assert!(outcome.stderr.contains(&said), "{}", outcome.stderr);
    }
    // One that is not there is said.
    let one = Daemon::start(&world, 1, &["--switch-peer", "127.0.0.1:1"]);
    let said = || one.process.stderr().contains("--switch-peer 127.0.0.1:1: ");
    assert!(wait_until(STEP, said), "{}", one.process.stderr());
    one.process.signal(Signal::SIGTERM);
    one.process.wait(STEP).expect(0);
    world.assert_clean();
}
