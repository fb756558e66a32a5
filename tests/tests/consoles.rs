//! Lines of a guest, from every node: who is attached, what is at their other ends, and that nobody there can hold up
//! the guest.

use nix::libc;
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, ttyname};
use sha2::{Digest, Sha256};
use span_tests::{END_MS_MAX, Guest, SHORT_S_MAX, Spawned, Up, World, parent, wait_until};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

/// More than lies between a line and whoever is attached.
const FLOOD_BYTES: usize = 3_000_000;

const STEP: Duration = Duration::from_secs(SHORT_S_MAX);

#[track_caller]
fn expect_seen(reader: &Spawned, word: &str) {
    let seen = || String::from_utf8_lossy(&reader.stdout()).contains(word);
    let shown = || String::from_utf8_lossy(&reader.stdout()).into_owned();
    assert!(wait_until(STEP, seen), "no {word:?} in {:?}", shown());
}

/// Runs a command on a line, whose terminal is then the command's own.
#[track_caller]
fn on_line(guest: &Guest<'_>, node: &str, device: &str, command: &str) {
    let script = format!("setsid -c {command} <{device} >{device} 2>&1 &");
    guest
        .exec_on(&["--node", node], &["sh", "-c", &script])
        .expect(0);
}

fn attached(guest: &Guest<'_>, line: &str) -> u64 {
    let lines = guest.lines();
    let lines = lines.as_array().expect("an array");
    let line = lines.iter().find(|one| one["name"] == line);
    line.expect("the line")["attached"]
        .as_u64()
        .expect("a number")
}

#[test]
fn a_shell_on_a_line_of_each_node_is_shared_by_all_who_attach() {
    let world = World::new();
    let guest = Up::three(&world).detach("lined");
    let before = guest.status();
    for (line, device, node) in [
        ("ssl0", "/dev/ttyS0", "b"),
        ("con1", "/dev/tty1", "c"),
        ("con0", "/dev/tty0", "a"),
    ] {
        let (mut one, two) = (guest.attach(line), guest.attach(line));
        assert_eq!(attached(&guest, line), 2);
        on_line(&guest, node, device, "sh");
        one.write("echo sum $((6 * 7)) on $(cut -d' ' -f1 /proc/span | wc -l)\n");
        for reader in [&one, &two] {
            expect_seen(reader, "sum 42 on 4");
        }
        // Any node writes to it.
        for other in ["a", "b", "c"] {
            let script = format!("echo from {other} > {device}");
            guest
                .exec_on(&["--node", other], &["sh", "-c", &script])
                .expect(0);
            expect_seen(&two, &format!("from {other}\r\n"));
        }
        one.write("\x1d");
        let outcome = one.wait(STEP).expect(0);
        let said = format!("detached from {line} of lined");
        assert!(outcome.stderr.contains(&said), "{}", outcome.stderr);
        assert!(wait_until(STEP, || attached(&guest, line) == 1));
        let killed = guest.attach(line);
        assert_eq!(attached(&guest, line), 2);
        killed.signal(Signal::SIGKILL);
        assert!(wait_until(STEP, || attached(&guest, line) == 1));
        // Who comes later sees what was there, and the shell is still the same.
        let mut late = guest.attach(line);
        expect_seen(&late, "sum 42");
        late.write("echo again $((7 * 7))\n");
        expect_seen(&two, "again 49");
        late.write("exit\n");
    }
    guest.status().assert_moved(&before);
    let refused = guest.console("con9").expect(125);
    assert!(
        refused.stderr.contains("con9=console"),
        "{}",
        refused.stderr
    );
    let refused = guest.console("tty1").expect(2);
    assert!(
        refused.stderr.contains("con0 to con15"),
        "{}",
        refused.stderr
    );
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn a_line_has_the_size_of_whose_terminal_it_is() {
    let world = World::new();
    let guest = Up::three(&world).detach("sized");
    let terminal = openpty(&size(33, 99), None).expect("a terminal");
    let end = || Stdio::from(terminal.slave.try_clone().expect("a copy"));
    let mut command = world.command("coordinator");
    command.args(["console", "sized", "ssl1"]);
    command.stdin(end()).stdout(end()).stderr(end());
    let mut console = command.spawn().expect("a console");
    let mut screen = File::from(terminal.master);
    let mut seen = String::new();
    until(&mut screen, &mut seen, "detaches");
    // Opened only then, and told of what changes while it is open.
    let program = r#"python3 -c "
import os, signal
signal.signal(signal.SIGWINCH, lambda *_: print('now', *os.get_terminal_size(), flush=True))
print('first', *os.get_terminal_size(), flush=True)
while True: signal.pause()
""#;
    on_line(&guest, "c", "/dev/ttyS1", program);
    until(&mut screen, &mut seen, "first 99 33");
    resize(&screen, 50, 120);
    kill(Pid::from_raw(console.id() as i32), Signal::SIGWINCH).expect("a signal");
    until(&mut screen, &mut seen, "now 120 50");
    // It is a matter of the line, not of the session that was there.
    guest.sh("pkill -f '[s]ignal.pause'");
    let program = "sh -c \"until stty size | grep -v ^0; do sleep 0.1; done\"";
    on_line(&guest, "b", "/dev/ttyS1", program);
    until(&mut screen, &mut seen, "50 120");
    screen.write_all(b"\x1d").expect("a key");
    assert!(console.wait().expect("its end").success());
    guest.down().expect(0);
    world.assert_clean();
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn resize(terminal: &File, rows: u16, columns: u16) {
    // SAFETY: the request reads one `Winsize`.
    let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size(rows, columns)) };
    assert_eq!(done, 0);
}

/// Reads what comes until it has `word` in it. The deadline of the test bounds it.
#[track_caller]
fn until(from: &mut impl Read, seen: &mut String, word: &str) {
    let mut buffer = [0; 4096];
    while !seen.contains(word) {
        match from.read(&mut buffer) {
            Ok(bytes @ 1..) => *seen += &String::from_utf8_lossy(&buffer[..bytes]),
            end => panic!("{end:?} instead of {word:?} after {seen:?}"),
        }
    }
}

#[test]
fn nobody_at_a_line_holds_up_the_guest() {
    let world = World::new();
    let guest = Up::three(&world)
        .append("con2=pty con3=console")
        .detach("flooded");
    let mut stopped = guest.attach("ssl2");
    let reader = guest.attach("ssl2");
    stopped.signal(Signal::SIGSTOP);
    // One that goes on, but whose own output nobody takes.
    let mut command = world.command("coordinator");
    command.args(["console", "flooded", "ssl2"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut stuck = command.spawn().expect("a console");
    assert!(wait_until(STEP, || attached(&guest, "ssl2") == 3));
    let channel = guest.lines()[2]["channel"]
        .as_str()
        .expect("text")
        .to_string();
    let path = channel.strip_prefix("pty:").expect("a terminal");
    assert!(path.starts_with("/dev/pts/"), "{path}");
    // A terminal where nobody is, readers that do not read, and nobody at all.
    for device in ["/dev/tty2", "/dev/ttyS2", "/dev/tty3"] {
        let script = format!(
            "stty raw <{device}; head -c {FLOOD_BYTES} /dev/zero | tr '\\0' x >{device}; echo end >{device}"
        );
        guest
            .exec_on(&["--node", "b"], &["timeout", "60", "sh", "-c", &script])
            .expect(0);
    }
    expect_seen(&reader, "xend");
    assert_eq!(
        reader.stdout().iter().filter(|byte| **byte == b'x').count(),
        FLOOD_BYTES
    );
    assert!(wait_until(STEP, || attached(&guest, "ssl2") == 1));
    // What nobody reads, either: more than fits into all buffers.
    let mut typing = guest.attach("ssl3");
    for _ in 0..200 {
        typing.write(&"y".repeat(10_000));
    }
    assert_eq!(guest.sh("echo alive"), "alive");
    stopped.signal(Signal::SIGCONT);
    stopped.wait_for_said("the session ended", STEP);
    stopped.wait(STEP).expect(125);
    stuck.kill().expect("a signal");
    stuck.wait().expect("its end");
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn lines_end_at_sockets_and_terminals_of_the_host() {
    let world = World::new();
    let socket = world.path("tmp").join("line");
    let port = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        listener.local_addr().expect("an address").port()
    };
    let channels = format!("con1=unix:{} ssl1=port:{port} con2=pts", socket.display());
    for victim in ["", "agent", "coordinator"] {
        let running = Up::three(&world).append(&channels).start();
        let guest = &running.guest;
        let mut one = UnixStream::connect(&socket).expect("a connection");
        let two = UnixStream::connect(&socket).expect("another");
        let tcp = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("a connection");
        let name = guest.lines()[2]["channel"]
            .as_str()
            .expect("text")
            .to_string();
        let path = name.strip_prefix("pty:").expect("a terminal").to_string();
        let mut host = File::options()
            .read(true)
            .write(true)
            .open(path)
            .expect("it");
        two.set_read_timeout(Some(STEP)).expect("a limit");
        tcp.set_read_timeout(Some(STEP)).expect("a limit");
        let (mut two, mut tcp) = (two, tcp);
        // Both at the socket see what either has typed, and `console` does.
        let reader = guest.attach("con1");
        on_line(guest, "b", "/dev/tty1", "sh");
        one.write_all(b"echo unix $((6 * 7))\n").expect("typing");
        until(&mut two, &mut String::new(), "unix 42");
        expect_seen(&reader, "unix 42");
        on_line(guest, "c", "/dev/ttyS1", "sh");
        tcp.write_all(b"echo tcp $((6 * 7))\n").expect("typing");
        until(&mut tcp, &mut String::new(), "tcp 42");
        on_line(guest, "a", "/dev/tty2", "sh");
        host.write_all(b"echo host $((6 * 7))\n").expect("typing");
        until(&mut host, &mut String::new(), "host 42");
        drop((one, two, tcp, host));
        let pid = match victim {
            "" => {
                guest.down().expect(0);
                None
            }
            "agent" => Some(parent(guest.status().pid("a"))),
            _ => Some(running.coordinator.pid()),
        };
        if let Some(pid) = pid {
            kill(Pid::from_raw(pid), Signal::SIGKILL).expect("killing");
        }
        running.coordinator.wait(STEP);
        let outcome = reader.wait(STEP).expect(125);
        assert_eq!(outcome.stderr.lines().count(), 2, "{}", outcome.stderr);
        world.assert_clean_within(Duration::from_millis(END_MS_MAX));
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("the port is free again");
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let world = World::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let outcome = Up::on(&world, "a")
        .append(&format!("ssl0=port:{port}"))
        .run(&["true"])
        .expect(125);
    let named = format!("ssl0=port:127.0.0.1:{port}");
    assert!(outcome.stderr.contains(&named), "{}", outcome.stderr);
    world.assert_clean();
}

#[test]
fn what_is_pasted_into_a_line_arrives_however_slow_its_reader_is() {
    let world = World::new();
    let guest = Up::three(&world).detach("pasted");
    let mut console = guest.attach("ssl4");
    let before = guest.status();
    for cpu in ["2", "0", "1"] {
        let text: String = (0..4000).map(|n| format!("{n:04} ")).collect();
        let sum = sha256(text.as_bytes());
        // Typed before somebody listens.
        let (first, rest) = text.split_at(3000);
        console.write(first);
        let bytes = text.len();
        let program =
            format!("stty raw -echo; echo ready {cpu}; sleep 0.5; head -c {bytes} | sha256sum");
        let script = format!("setsid -w -c sh -c '{program}' <$0 >$0 2>&1");
        let reader = guest.begin(&["taskset", "-c", cpu, "sh", "-c", &script, "/dev/ttyS4"]);
        expect_seen(&console, &format!("ready {cpu}"));
        console.write(rest);
        expect_seen(&console, &sum);
        // Its end takes what was typed meanwhile with it.
        reader.wait(STEP).expect(0);
    }
    guest.status().assert_moved(&before);
    console.write("\x1d");
    console.wait(STEP).expect(0);
    guest.down().expect(0);
    world.assert_clean();
}

fn sha256(data: &[u8]) -> String {
    let digest = Sha256::digest(data);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_terminal_that_is_there_is_a_line() {
    let world = World::new();
    let terminal = openpty(&size(24, 80), None).expect("a terminal");
    let path = ttyname(&terminal.slave).expect("its name");
    let guest = Up::three(&world)
        .append(&format!("con3=tty:{} con4=null,null", path.display()))
        .detach("wired");
    let mut screen = File::from(terminal.master);
    let mut seen = String::new();
    on_line(&guest, "c", "/dev/tty3", "sh");
    screen.write_all(b"echo tty $((6 * 7))\n").expect("typing");
    until(&mut screen, &mut seen, "tty 42");
    let lines = guest.lines();
    let names: Vec<&str> = lines
        .as_array()
        .expect("an array")
        .iter()
        .filter_map(|line| line["name"].as_str())
        .collect();
    assert!(!names.contains(&"con3") && !names.contains(&"con4"));
    assert_eq!(names.len(), 14);
    guest.sh("echo lost >/dev/tty4");
    guest.console("con3").expect(125);
    guest.down().expect(0);
    world.assert_clean();
}
