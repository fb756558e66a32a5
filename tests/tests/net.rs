//! Network devices: through a helper, of a tap interface, and those that the kernel opens itself.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};
use span_tests::{END_MS_MAX, Owner, Up, World, not_tested, parent, processes_with, wait_until};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

const MIB: usize = 1 << 20;

/// What a program in a guest downloads.
const LONG_BYTES: usize = 100 * MIB;
const SHORT_BYTES: usize = 2 * MIB;

/// Longest wait for what takes a moment.
const STEP: Duration = Duration::from_secs(20);

const HELPER: &str = "slirp4netns";

/// Says how many bytes came from a server and their checksum: ADDRESS PORT BYTES.
const DOWNLOAD: &str = r#"
import hashlib, socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=100)
s.sendall(int(sys.argv[3]).to_bytes(8, "little"))
total, digest = 0, hashlib.sha256()
while part := s.recv(1 << 18):
    total += len(part)
    digest.update(part)
print(total, digest.hexdigest())
"#;

/// Sends datagrams of several lengths to a server that sends them back: ADDRESS PORT.
const ECHO: &str = r#"
import os, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(20)
for length in (1, 1400, 9000):
    sent = os.urandom(length)
    s.sendto(sent, (sys.argv[1], int(sys.argv[2])))
    assert s.recv(1 << 16) == sent, length
print("echoed")
"#;

/// A server on this machine's loopback interface: to a TCP client it sends as many bytes as that asks
/// for, and what comes by UDP it sends back. It ends with the test.
struct Server {
    address: SocketAddr,
    data: Arc<Vec<u8>>,
}

impl Server {
    fn start() -> Self {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = tcp.local_addr().expect("an address");
        let udp = UdpSocket::bind(address).expect("the same port");
        // Whatever is lost, doubled or moved changes the checksum.
        let mut state = 1_u64;
        let data: Arc<Vec<u8>> = Arc::new(
            std::iter::repeat_with(|| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 56) as u8
            })
            .take(LONG_BYTES)
            .collect(),
        );
        let sent = data.clone();
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                let sent = sent.clone();
                std::thread::spawn(move || send(stream, &sent));
            }
        });
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(&buffer[..length], from);
            }
        });
        Self { address, data }
    }

    fn port(&self) -> String {
        self.address.port().to_string()
    }

    /// What a download says.
    fn expected(&self, bytes: usize) -> String {
        let digest = Sha256::digest(&self.data[..bytes]);
        let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{bytes} {digits}")
    }
}

fn send(mut stream: TcpStream, data: &[u8]) {
    let mut wanted = [0; 8];
    if stream.read_exact(&mut wanted).is_ok() {
        let _ = stream.write_all(&data[..u64::from_le_bytes(wanted) as usize]);
    }
}

fn helper_missing() -> bool {
    let missing = !span_tests::PATH
        .split(':')
        .any(|directory| std::path::Path::new(directory).join(HELPER).exists());
    if missing {
        not_tested("--net user: slirp4netns is not installed");
    }
    missing
}

fn not_root(what: &str) -> bool {
    let not = !nix::unistd::geteuid().is_root();
    if not {
        not_tested(&format!("{what}: only root can make network namespaces"));
    }
    not
}

#[test]
fn programs_on_all_nodes_reach_the_host_by_way_of_any_node() {
    if helper_missing() {
        return;
    }
    let server = Server::start();
    for (network, owner) in [("user", 0), ("b:user", 1)] {
        let world = World::lasting(Duration::from_secs(300));
        let guest = Up::three(&world)
            .options(&["--net", network, "--mem", "384M"])
            .detach("net");
        let before = guest.status();
        before.assert_spread();
        for cpu in 0..3 {
            let bytes = if cpu == owner {
                LONG_BYTES
            } else {
                SHORT_BYTES
            };
            let pin = ["taskset", "-c", &cpu.to_string()].map(String::from);
            let run = |program: &str, more: &[&str]| {
                let port = server.port();
                let words = ["python3", "-c", program, "10.0.2.2", &port];
                let argv: Vec<&str> = pin
                    .iter()
                    .map(String::as_str)
                    .chain(words)
                    .chain(more.iter().copied())
                    .collect();
                guest.exec_within(&argv, 120).expect(0).text()
            };
            assert_eq!(run(DOWNLOAD, &[&bytes.to_string()]), server.expected(bytes));
            assert_eq!(run(ECHO, &[]), "echoed");
        }
        guest.status().assert_moved(&before);
        // Its interrupts are raised on the node that has it, and nowhere else.
        let script = "grep -w vec0 /proc/interrupts | awk '{ for (i = 2; i < 5; i++) n[i] += $i } \
                      END { print (n[2] > 0), (n[3] > 0), (n[4] > 0) }'";
        let counts: Vec<String> = (0..3)
            .map(|cpu| i32::from(cpu == owner).to_string())
            .collect();
        assert_eq!(guest.sh(script), counts.join(" "));
        // It can go down, and up again.
        let again = format!(
            "ip link set vec0 down && ip link set vec0 up && ip route add default via 10.0.2.2 && \
             python3 -c '{DOWNLOAD}' 10.0.2.2 {} 9",
            server.port()
        );
        assert_eq!(guest.sh(&again), server.expected(9));
        let log = guest.whole_log();
        for word in [
            "BUG",
            "WARNING",
            "Call Trace",
            "Budget exhausted",
            "epollctl",
        ] {
            assert!(!log.contains(word), "{log}");
        }
        guest.down().expect(0);
        world.assert_clean();
    }
}

#[test]
fn the_helper_answers_dhcp() {
    if helper_missing() {
        return;
    }
    let world = World::new();
    let script = r#"
import socket, struct
mac = bytes.fromhex(open("/sys/class/net/vec0/address").read().strip().replace(":", ""))
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"vec0")
s.bind(("", 68))
s.settimeout(20)
head = struct.pack("!BBBBIHH16x", 1, 1, 6, 0, 0x5350414e, 0, 0x8000)
head += mac + bytes(10 + 192)
s.sendto(head + b"\x63\x82\x53\x63" + b"\x35\x01\x01\xff" + bytes(300), ("255.255.255.255", 67))
offer = s.recv(2000)
assert offer[4:8] == head[4:8]
options, at = {}, 240
while offer[at] != 255:
    options[offer[at]] = offer[at + 2:at + 2 + offer[at + 1]]
    at += 2 + offer[at + 1]
print(*map(socket.inet_ntoa, (offer[16:20], options[3], options[6])))
"#;
    let outcome = Up::three(&world)
        .options(&["--net", "user"])
        .run(&["python3", "-c", script])
        .expect(0);
    assert_eq!(outcome.text(), "10.0.2.15 10.0.2.2 10.0.2.3");
    world.assert_clean();
}

#[test]
fn names_are_looked_up_where_the_host_does() {
    if helper_missing() || not_root("names") {
        return;
    }
    let world = World::new();
    let resolv = world.file("resolv.conf", "nameserver 127.0.0.1\n");
    // Answers one question, with 192.0.2.7.
    let server = r#"
import os, socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("127.0.0.1", 53))
s.settimeout(60)
# The guest begins once this process is there.
if os.fork():
    os._exit(0)
question, peer = s.recvfrom(512)
end = question.index(0, 12) + 5
s.sendto(question[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + question[12:end]
         + b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc0\0\2\7", peer)
"#;
    let server = world.file("names.py", server);
    let prepare = format!(
        "ip link set lo up && mount --bind {} /etc/resolv.conf && python3 {} && exec \"$@\"",
        resolv.display(),
        server.display()
    );
    let outcome = Up::three(&world)
        .through(&["unshare", "--net", "--mount", "sh", "-c", &prepare, "sh"])
        .options(&["--net", "user"])
        .run(&[
            "python3",
            "-c",
            "import socket; print(socket.gethostbyname('a.test'))",
        ])
        .expect(0);
    assert_eq!(outcome.text(), "192.0.2.7");
    world.assert_clean();
}

/// A port that nobody uses now.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}

#[test]
fn ports_of_the_host_lead_into_the_guest() {
    if helper_missing() {
        return;
    }
    let world = World::new();
    let (tcp, udp) = (free_port(), free_port());
    let forwards = format!("c:user,hostfwd=tcp::{tcp}-:80,hostfwd=udp:127.0.0.1:{udp}-:81");
    let guest = Up::three(&world)
        .options(&["--net", &forwards])
        .detach("served");
    let script = r#"
import socket
t = socket.create_server(("", 80))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.bind(("", 81))
print("listening", flush=True)
stream, _ = t.accept()
stream.sendall(stream.recv(100).upper())
stream.close()
data, peer = u.recvfrom(100)
u.sendto(data.upper(), peer)
"#;
    let mut served = guest.begin(&["taskset", "-c", "1", "python3", "-c", script]);
    served.wait_for("listening", STEP);

    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, tcp)).expect("a connection");
    stream.set_read_timeout(Some(STEP)).expect("a limit");
    stream.write_all(b"by tcp").expect("sending");
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"BY TCP");

    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    socket.set_read_timeout(Some(STEP)).expect("a limit");
    socket
        .send_to(b"by udp", (Ipv4Addr::LOCALHOST, udp))
        .expect("sending");
    let length = socket.recv(&mut answer).expect("an answer");
    assert_eq!(&answer[..length], b"BY UDP");
    served.wait(STEP).expect(0);

    // A port that is taken is named.
    let outcome = Up::on(&world, "a")
        .options(&["--net", &format!("user,hostfwd=tcp::{tcp}-:80")])
        .run(&["true"])
        .expect(125);
    let named = format!("hostfwd=tcp:127.0.0.1:{tcp}-:80");
    assert!(outcome.stderr.contains(&named), "{}", outcome.stderr);

    guest.down().expect(0);
    world.assert_clean();
    TcpListener::bind((Ipv4Addr::LOCALHOST, tcp)).expect("the port is free again");
}

/// Helpers of guests of this world: their directory is in their environment, not their arguments, so they
/// are told by their parents.
fn helpers() -> Vec<span_tests::Process> {
    let below = span_tests::descendants(std::process::id() as i32);
    let all = processes_with(&[HELPER, "--target-type=bess"]);
    all.into_iter().filter(|one| below.contains(one)).collect()
}

#[test]
fn a_helper_ends_with_its_guest_however_that_ends() {
    if helper_missing() {
        return;
    }
    for victim in ["coordinator", "agent", "a", "b"] {
        let world = World::new();
        let port = free_port();
        let network = format!("b:user,hostfwd=tcp::{port}-:80");
        let running = Up::three(&world).options(&["--net", &network]).start();
        assert_eq!(helpers().len(), 1);
        let pid = match victim {
            "coordinator" => running.coordinator.pid(),
            "agent" => parent(running.guest.status().pid("b")),
            name => running.guest.status().pid(name),
        };
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("killing");
        running.coordinator.wait(STEP);
        // Of a coordinator that is killed the others have yet to hear.
        world.assert_clean_within(Duration::from_millis(END_MS_MAX));
        assert!(helpers().is_empty(), "{victim}");
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("the port is free again");
    }
}

#[test]
fn a_helper_that_ends_is_named() {
    if helper_missing() {
        return;
    }
    let world = World::new();
    let guest = Up::three(&world).options(&["--net", "user"]).detach("lost");
    // This guest is detached, so nobody here is its parent: its agent is told by the guest process.
    let agent = parent(guest.status().pid("a"));
    let helper = processes_with(&[HELPER, "--target-type=bess"])
        .into_iter()
        .find(|process| parent(process.pid) == agent)
        .expect("a helper");
    kill(Pid::from_raw(helper.pid), Signal::SIGKILL).expect("killing");
    let said = || guest.logs().contains("slirp4netns ended");
    assert!(wait_until(STEP, said), "{}", guest.logs());
    // What is sent now goes nowhere, and keeps no CPU.
    let send = "until grep -q 0 /sys/class/net/vec0/carrier; do echo > /dev/udp/10.0.2.2/9; done 2>/dev/null";
    guest.exec(&["bash", "-c", send]).expect(0);
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn a_host_without_the_helper_says_so() {
    let world = World::new();
    let outcome = Up::three(&world)
        .through(&["env", "PATH=/nonexistent"])
        .options(&["--net", "b:user"])
        .run(&["true"])
        .expect(125);
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in ["node b", "--net user", HELPER, "PATH"] {
        assert!(lines[0].contains(part), "{part:?} is not in {lines:?}");
    }
    world.assert_clean();
}

#[test]
fn an_ordinary_user_has_a_network() {
    if helper_missing() || not_root("another user") {
        return;
    }
    let server = Server::start();
    let world = World::of(Owner::User(65534));
    let outcome = Up::three(&world)
        .options(&["--net", "user"])
        .run(&[
            "python3",
            "-c",
            DOWNLOAD,
            "10.0.2.2",
            &server.port(),
            "1000",
        ])
        .expect(0);
    assert_eq!(outcome.text(), server.expected(1000));

    let outcome = Up::three(&world)
        .options(&["--net", "tap:span-none"])
        .run(&["true"])
        .expect(125);
    // What is not permitted depends on the host: the device, or a new interface.
    let said = "--net tap:span-none cannot be opened: ";
    assert!(outcome.stderr.contains(said), "{}", outcome.stderr);
    world.assert_clean();
}

/// Runs a guest in a network namespace that `prepare` sets up and in which 192.168.77.1 is a host, and
/// compares what each CPU downloads from it.
#[track_caller]
fn downloads_from_interface(prepare: &str, options: &[&str]) {
    let world = World::lasting(Duration::from_secs(300));
    // Serves as many clients as there are CPUs.
    let server = r#"
import os, socket
s = socket.create_server(("192.168.77.1", 4000))
s.settimeout(100)
# The guest begins once this process is there.
if os.fork():
    os._exit(0)
for _ in range(3):
    stream, _ = s.accept()
    length = int.from_bytes(stream.recv(8), "little")
    stream.sendall((b"0123456789abcdef" * 65536 * 2)[:length])
    stream.close()
"#;
    let server = world.file("server.py", server);
    let prepare = format!(
        "set -e; ip link set lo up; {prepare}; python3 {}; exec \"$@\"",
        server.display()
    );
    let program = world.file("download.py", DOWNLOAD);
    let script = format!(
        "ip address add 192.168.77.2/24 dev vec0 && \
         for i in 1 2 3; do ip link set vec0 up && ip link set vec0 down; done; ip link set vec0 up; \
         for c in 0 1 2; do \
         taskset -c $c timeout 100 python3 {} 192.168.77.1 4000 {SHORT_BYTES}; done; \
         dmesg | grep -E 'BUG|WARNING|Call Trace|Budget exhausted'",
        program.display()
    );
    let outcome = Up::three(&world)
        .through(&["unshare", "--net", "sh", "-c", &prepare, "sh"])
        .options(&["--mem", "384M"])
        .options(options)
        .limit_s(120)
        // grep has found nothing.
        .sh(&script)
        .expect(1);
    let data = b"0123456789abcdef".repeat(SHORT_BYTES / 16);
    let digest = Sha256::digest(data);
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let line = format!("{SHORT_BYTES} {digits}");
    assert_eq!(outcome.text(), [&*line; 3].join("\n"), "{}", outcome.stderr);
    world.assert_clean();
}

const TAP: &str = "ip tuntap add dev span0 mode tap; ip address add 192.168.77.1/24 dev span0; \
                   ip link set span0 up";

#[test]
fn a_tap_interface_of_any_node() {
    if not_root("tap") {
        return;
    }
    downloads_from_interface(TAP, &["--net", "tap:span0"]);
    downloads_from_interface(TAP, &["--net", "c:tap:span0"]);
}

#[test]
fn transports_that_the_kernel_opens_itself() {
    if not_root("tap, hybrid and raw") {
        return;
    }
    for transport in ["tap", "hybrid"] {
        let device = format!("vec0:transport={transport},ifname=span0,mtu=1500,gro=1");
        downloads_from_interface(TAP, &["--append", &device]);
    }
    let pair = "ip link add span0 type veth peer name span1; ip address add 192.168.77.1/24 dev span1; \
                ip link set span0 up; ip link set span1 up";
    let device = "vec0:transport=raw,ifname=span0,mtu=1500,gro=1";
    downloads_from_interface(pair, &["--append", device]);
}
