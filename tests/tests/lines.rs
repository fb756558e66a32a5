//! The kernel's management console, disks that come and go through it, and lines that are refused.

use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept, bind, listen, recv,
    send, socket,
};
use nix::unistd::close;
use sha2::{Digest, Sha256};
use span_tests::{
    Guest, Management, SHORT_S_MAX, Up, World, descendants, parent, uml_mconsole, wait_until,
};
use std::fmt::Write;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_secs(SHORT_S_MAX);

#[test]
fn the_management_console_answers() {
    let world = World::new();
    let guest = Up::three(&world).detach("managed");
    let console = Management::new(&world, &guest);
    assert!(
        console
            .ask("version")
            .expect("a version")
            .starts_with("Linux managed ")
    );
    assert_eq!(console.ask("config con0").expect("a channel"), "fd:544");
    assert_eq!(console.ask("config con9").expect("a channel"), "null");
    let span = console.ask("proc span").expect("a file");
    assert_eq!(span.trim(), "cpu node\n0 0\n1 1\n2 2");
    assert!(console.ask("proc nothing").is_err());
    assert!(console.ask("nonsense").is_err());
    // Its text is a matter of the kernel log; it is in the answer, too, if no other CPU writes to the log.
    console.ask("sysrq h").expect("no error");
    let helped = || guest.logs().contains("sysrq: HELP");
    assert!(wait_until(SHORT, helped), "{}", guest.logs());
    console.ask("log said from outside\n").expect("no error");
    let logged = || guest.logs().contains("said from outside");
    assert!(wait_until(SHORT, logged), "{}", guest.logs());
    // As the three keys would: the guest ends.
    console.ask("cad").expect("no error");
    let directory = guest.run_directory();
    assert!(
        wait_until(SHORT, || !directory.exists()),
        "the guest did not end"
    );
    drop(console);
    world.assert_clean();
}

/// What the usual client prints; its exit code says, too, whether that is an error.
#[track_caller]
fn client(world: &World, guest: &Guest<'_>, words: &[&str]) -> String {
    let outcome = uml_mconsole(world, guest, words);
    let text = outcome.text().trim().to_string();
    assert_eq!(text.starts_with("ERR"), outcome.code != 0, "{outcome:?}");
    text
}

#[test]
fn the_usual_client_is_understood() {
    let world = World::new();
    let guest = Up::three(&world).detach("usual");
    let ask = |words: &[&str]| client(&world, &guest, words);
    for (words, said) in [
        (&["version"][..], "OK Linux usual "),
        (&["config", "con0"], "OK fd:544"),
        (&["config", "con8=null"], "OK"),
        (&["remove", "con8"], "OK"),
        (&["config", "con8"], "OK none"),
        (&["remove", "con99"], "ERR Device number out of range"),
        (&["config", "con99=null"], "ERR Device number out of range"),
        (&["remove", "nonsense"], "ERR Bad remove option"),
        (&["proc", "span"], "cpu node\n0 0\n1 1\n2 2"),
        (&["sysrq", "h"], "OK"),
        (&["log", "said by the client"], "OK"),
        (&["go"], "ERR Not stopped"),
    ] {
        let text = ask(words);
        assert!(text.contains(said), "{words:?}: {text}");
    }
    let log = guest.whole_log();
    assert!(log.contains("said by the client"), "{log}");
    // The task sleeps on another node than the one that has the console.
    let sleeper = guest.exec_on(&["--node", "c"], &["sh", "-c", "sleep 1000 & echo $!"]);
    let pid = sleeper.expect(0).text();
    // Once it is not the shell any more.
    let slept = || ask(&["stack", &pid]).contains("nanosleep");
    assert!(wait_until(SHORT, slept), "{}", ask(&["stack", &pid]));
    let logged = || guest.logs().contains("nanosleep");
    assert!(wait_until(SHORT, logged), "{}", guest.logs());
    // More than fits into the client's queue.
    let all = ask(&["sysrq", "t"]);
    assert!(
        all.contains("task:init") && all.lines().count() > 100,
        "{all}"
    );
    assert!(ask(&["stack", "99999"]).contains("ERR Couldn't find that pid"));
    assert!(ask(&["stack", "x"]).contains("ERR Please specify a pid"));
    guest.down().expect(0);
    world.assert_clean();
}

/// Counts, and says in the end for how long it has not: the longest time, in ms.
const COUNTS: &str = r#"
import os, time
last, longest = time.monotonic(), 0
print("counts", flush=True)
while not os.path.exists("/tmp/enough"):
    now = time.monotonic()
    last, longest = now, max(longest, now - last)
print(int(longest * 1000))
"#;

#[test]
fn a_guest_that_is_stopped_stands_still_on_all_nodes() {
    const STOPPED_MS: u64 = 4000;
    let world = World::new();
    let guest = Up::three(&world).detach("stopped");
    let console = Management::new(&world, &guest);
    let before = guest.status();
    before.assert_spread();
    let mut counting: Vec<_> = ["0", "1", "2"]
        .iter()
        .map(|cpu| guest.begin(&["taskset", "-c", cpu, "python3", "-c", COUNTS]))
        .collect();
    for program in &mut counting {
        program.wait_for("counts", SHORT);
    }
    assert_eq!(console.ask("stop").expect("no error"), "stopped");
    let since = Instant::now();
    assert!(console.ask("version").expect("it").starts_with("Linux "));
    assert_eq!(console.ask("stop").unwrap_err(), "Already stopped");
    let refused = "Stopped; say go first";
    assert_eq!(console.ask("proc span").unwrap_err(), refused);
    assert_eq!(console.ask("config con8=null").unwrap_err(), refused);
    console.ask("sysrq h").expect("no error");
    // Its nodes are there all the time.
    assert_eq!(guest.status().nodes.len(), 3);
    let mut late = guest.begin(&["echo", "late"]);
    std::thread::sleep(Duration::from_millis(STOPPED_MS).saturating_sub(since.elapsed()));
    assert!(late.stdout().is_empty());
    console.ask("go").expect("no error");
    late.wait_for("late", SHORT);
    guest.sh("touch /tmp/enough");
    for program in counting {
        let outcome = program.wait(SHORT).expect(0);
        let text = outcome.text();
        let longest = text.lines().last().expect("a line");
        let longest: u64 = longest.parse().expect("a number");
        assert!(longest >= STOPPED_MS, "it stood still for {longest} ms");
    }
    let log = guest.whole_log();
    for word in ["BUG", "WARNING", "detected stall", "lockup"] {
        assert!(!log.contains(word), "{word} in {log}");
    }
    // One that is stopped ends all the same.
    assert_eq!(console.ask("stop").expect("no error"), "stopped");
    guest.down().expect(0);
    drop(console);
    world.assert_clean();
}

#[test]
fn a_disk_comes_while_the_guest_runs_and_each_node_reads_it() {
    let world = World::new();
    let disk = world.path("tmp").join("disk");
    let data: Vec<u8> = (0..300_000u32)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes())
        .collect();
    let data = &data[..data.len() / 4096 * 4096];
    fs::write(&disk, data).expect("a file");
    let mut sum = String::new();
    for byte in Sha256::digest(data) {
        let _ = write!(sum, "{byte:02x}");
    }
    let guest = Up::three(&world).detach("plugged");
    let before = guest.status();
    let console = Management::new(&world, &guest);
    assert_eq!(guest.sh("test -b /dev/ubdb; echo $?"), "1");
    let plug = format!("config ubdb={}", disk.display());
    console.ask(&plug).expect("no error");
    for node in ["c", "a", "b"] {
        let outcome = guest.exec_on(&["--node", node], &["sha256sum", "/dev/ubdb"]);
        assert_eq!(
            outcome.expect(0).text(),
            format!("{sum}  /dev/ubdb"),
            "{node}"
        );
    }
    guest
        .exec_on(
            &["--node", "b"],
            &[
                "sh",
                "-c",
                "echo written | dd of=/dev/ubdb conv=notrunc,fsync 2>&1",
            ],
        )
        .expect(0);
    console.ask("remove ubdb").expect("no error");
    assert_eq!(guest.sh("test -b /dev/ubdb; echo $?"), "1");
    assert!(fs::read(&disk).expect("a file").starts_with(b"written\n"));
    guest.status().assert_moved(&before);
    guest.down().expect(0);
    fs::remove_file(&disk).expect("removing it");
    drop(console);
    world.assert_clean();
}

/// Sends a frame of a protocol that nobody speaks, and waits for it to come back.
const FRAME: &str = r#"
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88b5))
s.bind((sys.argv[1], 0x88b5))
s.settimeout(30)
frame = b"\xff" * 6 + b"\x02" * 6 + b"\x88\xb5" + sys.argv[2].encode() * 500
s.send(frame)
while True:
    back, (_, _, kind, *_) = s.recvfrom(4096)
    if kind != socket.PACKET_OUTGOING:
        break
print(back == frame)
"#;

/// Sends back what comes, to all who connect one after the other; how many frames in all.
fn echo_frames(path: &Path, connections: usize) -> JoinHandle<usize> {
    let kind = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
    let listener = socket(AddressFamily::Unix, kind.0, kind.1, None).expect("a socket");
    let address = UnixAddr::new(path).expect("an address");
    bind(listener.as_raw_fd(), &address).expect("binding it");
    listen(&listener, Backlog::new(1).expect("one")).expect("listening");
    std::thread::spawn(move || {
        let (mut frames, mut buffer) = (0, [0; 1 << 16]);
        for _ in 0..connections {
            let connection = accept(listener.as_raw_fd()).expect("a connection");
            while let Ok(bytes @ 1..) = recv(connection, &mut buffer, MsgFlags::empty()) {
                frames += 1;
                send(connection, &buffer[..bytes], MsgFlags::empty()).expect("sending back");
            }
            close(connection).expect("closing it");
        }
        frames
    })
}

#[test]
fn a_network_device_comes_while_the_guest_runs_and_goes() {
    let world = World::new();
    let path = world.path("tmp").join("frames");
    let echo = echo_frames(&path, 2);
    let guest = Up::three(&world).detach("wired");
    let before = guest.status();
    let ask = |command: &str| client(&world, &guest, &[command]);
    let device = format!(
        "config vec1:transport=bess,dst={},vec=0,mtu=1500",
        path.display()
    );
    for command in ["config vec1:transport=nonsense", "config vec1:mtu=1500"] {
        assert!(ask(command).starts_with("ERR Expected transport="));
    }
    assert_eq!(ask("remove vec1"), "ERR Device doesn't exist");
    for round in ["x", "y"] {
        assert_eq!(ask(&device), "OK");
        assert_eq!(ask(&device), "ERR Device already configured");
        guest.sh("ip link set vec1 up");
        for node in ["a", "b", "c"] {
            let argv = ["python3", "-c", FRAME, "vec1", &format!("{node}{round}")];
            let outcome = guest.exec_on(&["--node", node], &argv).expect(0);
            assert_eq!(outcome.text(), "True");
        }
        assert_eq!(ask("remove vec1"), "ERR Device is currently open");
        guest.sh("ip link set vec1 down");
        assert_eq!(ask("remove vec1"), "OK");
        assert_eq!(guest.sh("test -e /sys/class/net/vec1; echo $?"), "1");
    }
    guest.status().assert_moved(&before);
    let log = guest.whole_log();
    for word in ["BUG", "WARNING", "Call Trace"] {
        assert!(!log.contains(word), "{log}");
    }
    guest.down().expect(0);
    assert!(echo.join().expect("no panic") >= 6);
    fs::remove_file(&path).expect("removing it");
    world.assert_clean();
}

#[test]
fn channels_that_cannot_work_are_refused() {
    let world = World::new();
    for (argument, said) in [
        ("con1=xterm", "DISPLAY does not say"),
        ("con=xterm", "one window cannot be that of all lines"),
        ("xterm=a,b", "PROGRAM[,TITLE-OPTION,EXEC-OPTION]"),
        ("ssl=fd:9", "one descriptor cannot be that of all lines"),
        ("ssl0=fd:77", "descriptor 77 is not open"),
        // Which the shell below opens to read only.
        ("ssl0=fd:9", "descriptor 9 is not open for writing"),
        ("con0=null,fd:1", "this command's own"),
        ("con0=pty,null", "null, tty:PATH or fd:N"),
        ("con3=tty:/no/such", "/no/such: No such file"),
        ("ssl3=tty:/proc/version", "/proc/version is no terminal"),
        ("ssl3=tty:/dev/null", "/dev/null is no terminal"),
        ("con0=unix:/proc/version", "already"),
        ("ssl0=port:99999", "1 to 65535"),
    ] {
        let script = "exec \"$@\" 9</dev/null";
        let up = Up::three(&world).append(argument);
        let outcome = up.through(&["sh", "-c", script, "sh"]).run(&["true"]);
        assert!(outcome.stderr.contains(said), "{}", outcome.stderr);
        assert_eq!(outcome.expect(2).stderr.lines().count(), 1);
    }
    world.assert_clean();
}

#[test]
fn a_line_can_be_descriptors_of_the_command() {
    const NUMBERS: usize = 4_000;
    let world = World::new();
    let (typed, written) = (world.file("typed", "a word\n"), world.file("written", ""));
    let script = format!("exec \"$@\" 7<{} 9>>{}", typed.display(), written.display());
    // Read and written on the node that does not have the line.
    let command = format!(
        "taskset -c 2 sh -c 'read word </dev/ttyS1; echo \"got $word\" >/dev/ttyS1; seq {NUMBERS} >/dev/ttyS1'; \
         cat /proc/span"
    );
    let up = Up::three(&world).append("ssl1=fd:7,9").append("con2=null");
    let running = up.through(&["sh", "-c", &script, "sh"]);
    let outcome = running.run(&["sh", "-c", &command]).expect(0);
    assert!(outcome.text().contains("2 2"), "{outcome:?}");
    let text = fs::read_to_string(&written).expect("what was written");
    let mut lines = text.lines().skip_while(|line| *line != "got a word");
    assert_eq!(lines.next(), Some("got a word"), "{text}");
    let numbers: Vec<&str> = lines.collect();
    assert_eq!(numbers.len(), NUMBERS);
    assert_eq!(numbers.last(), Some(&NUMBERS.to_string().as_str()));
    world.assert_clean();
}

#[test]
fn no_process_of_a_guest_has_the_descriptors_of_its_lines() {
    let world = World::new();
    let mark = world.file("mark", "");
    let script = format!("exec \"$@\" 7<>{}", mark.display());
    let up = Up::three(&world).append("ssl1=fd:7");
    let guest = up.through(&["sh", "-c", &script, "sh"]).detach("handed");
    let has = |pid: i32| {
        let Ok(all) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            return false;
        };
        let mut targets = all.filter_map(|one| fs::read_link(one.ok()?.path()).ok());
        targets.any(|target| target == mark)
    };
    let nodes = guest.status();
    let guests: Vec<i32> = ["a", "b", "c"].map(|node| nodes.pid(node)).to_vec();
    let agents: Vec<i32> = guests.iter().map(|pid| parent(*pid)).collect();
    let up = parent(agents[0]);
    assert!(has(up), "the descriptor is not where it should be");
    for pid in guests.into_iter().chain(agents) {
        assert!(!has(pid), "process {pid} has it");
        for process in descendants(pid) {
            assert!(!has(process.pid), "{process:?} has it");
        }
    }
    guest.down().expect(0);
    world.assert_clean();
}
