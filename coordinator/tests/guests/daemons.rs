//! Nodes elsewhere: daemons, here on the loopback interface.

use crate::support::{Daemon, END_MS_MAX, Place, TOKEN, kill, wait_until};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn run(place: &Place, token: &Path, nodes: &str, argv: &[&str]) -> crate::support::Ran {
    let token = token.to_str().unwrap();
    let options = ["up", "--token-file", token, "--nodes", nodes, "--"];
    place.run(options.iter().chain(argv))
}

/// Files of a daemon's cache, and directories of guests that it serves.
fn state(place: &Place, name: &str) -> (usize, usize) {
    let directory = place.path(&format!("{name}.state"));
    let count = |path: PathBuf| fs::read_dir(path).map_or(0, Iterator::count);
    let runs = fs::read_dir(&directory).unwrap().flatten();
    let work = runs.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"run-"));
    (
        count(directory.join("artefacts")),
        work.map(|entry| count(entry.path())).sum(),
    )
}

#[test]
fn a_guest_spans_daemons_and_this_machine() {
    let place = Place::new();
    let token = place.secret("token", TOKEN);
    let (b, c) = (
        Daemon::start(&place, "b", &token),
        Daemon::start(&place, "c", &token),
    );
    let nodes = format!("a,b={},c={}", b.address, c.address);
    let ran = run(&place, &token, &nodes, &["sh", "-c", "cat; exit 5"]);
    assert_eq!(ran.code, 5, "{ran:?}");
    // Only what a node needs was sent, once.
    assert_eq!((state(&place, "b"), state(&place, "c")), ((2, 0), (2, 0)));
    let modified = |name: &str| {
        let files = fs::read_dir(place.path(name).join("artefacts"))
            .unwrap()
            .flatten();
        files
            .map(|entry| std::os::unix::fs::MetadataExt::ino(&entry.metadata().unwrap()))
            .collect::<Vec<_>>()
    };
    let before = modified("b.state");
    assert_eq!(run(&place, &token, &nodes, &["true"]).code, 0);
    assert_eq!(modified("b.state"), before);
    b.stop();
    c.stop();
}

#[test]
fn the_first_node_may_be_elsewhere() {
    let place = Place::new();
    let token = place.secret("token", TOKEN);
    let daemon = Daemon::start(&place, "d", &token);
    let nodes = format!("a={0},b={0}", daemon.address);
    let ran = run(&place, &token, &nodes, &["sh", "-c", "pwd; exit 8"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (8, "/\n"), "{ran:?}");
    assert_eq!(state(&place, "d"), (3, 0));

    let mut child = place
        .coordinator()
        .args([
            "up",
            "--nodes",
            &nodes,
            "--token-file",
            token.to_str().unwrap(),
            "--",
            "cat",
        ])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let data = vec![b'z'; 3_000_000];
    let (mut stdin, sent) = (child.stdin.take().unwrap(), data.clone());
    let writer = std::thread::spawn(move || {
        std::io::Write::write_all(&mut stdin, &sent).unwrap();
    });
    let output = child.wait_with_output();
    writer.join().unwrap();
    assert!(output.unwrap().stdout == data);
    daemon.stop();
}

#[test]
fn a_wrong_token_is_refused_and_logged() {
    let place = Place::new();
    let token = place.secret("token", TOKEN);
    let other = place.secret("other", "something else that is long enough");
    let daemon = Daemon::start(&place, "d", &token);
    let nodes = format!("a,b={}", daemon.address);
    let ran = run(&place, &other, &nodes, &["true"]);
    assert_eq!(ran.code, 125, "{ran:?}");
    assert!(ran.line().contains("node b (127.0.0.1:"), "{ran:?}");
    assert!(ran.line().contains("refused the token"), "{ran:?}");
    assert!(
        daemon.log().contains("dropped: wrong token"),
        "{}",
        daemon.log()
    );
    assert_eq!(run(&place, &token, &nodes, &["true"]).code, 0);
    daemon.stop();
}

#[test]
fn a_daemon_that_is_not_there_is_named() {
    let place = Place::new();
    let token = place.secret("token", TOKEN);
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let nodes = format!("a,b={}", socket.local_addr().unwrap());
    let ran = run(&place, &token, &nodes, &["true"]);
    assert_eq!(ran.code, 125);
    assert!(ran.line().contains("node b (127.0.0.1:") && ran.line().contains("does not answer"));
    let ran = run(&place, &token, "a,b=nowhere.invalid:1", &["true"]);
    assert_eq!(ran.code, 125);
    assert!(ran.line().contains("node b (nowhere.invalid:1)"), "{ran:?}");
}

/// A guest on this machine and two daemons, to which something happens.
fn ends(act: impl FnOnce(&Place, i32, &Daemon, &Daemon)) -> (Place, crate::support::Ran) {
    let place = Place::new();
    let token = place.secret("token", TOKEN);
    let (b, c) = (
        Daemon::start(&place, "b", &token),
        Daemon::start(&place, "c", &token),
    );
    let (b_nodes, c_node) = (&b.address, &c.address);
    let up = place.up(&format!(
        "--nodes a,b={b_nodes},b2={b_nodes},c={c_node} --append fake.stub --token-file {} -- cat",
        token.display()
    ));
    let begin = Instant::now();
    act(&place, up.pid(), &b, &c);
    let ran = up.wait();
    assert!(
        begin.elapsed() < Duration::from_millis(END_MS_MAX),
        "{:?}",
        begin.elapsed()
    );
    wait_until("the daemons have nothing left", || {
        // A killed one is swept by the next.
        let killed = |daemon: &Daemon| kill_would_fail(daemon.pid());
        (killed(&b) || state(&place, "b").1 == 0) && (killed(&c) || state(&place, "c").1 == 0)
    });
    assert!(
        begin.elapsed() < Duration::from_millis(END_MS_MAX),
        "{:?}",
        begin.elapsed()
    );
    let left = place
        .processes()
        .into_iter()
        .filter(|pid| ![b.pid(), c.pid()].contains(pid));
    let left: Vec<i32> = left.collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(place.left().is_empty());
    drop((b, c));
    (place, ran)
}

/// Whether the process is gone, or waits only to be reaped.
fn kill_would_fail(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

#[test]
fn a_killed_daemon_is_a_lost_node() {
    let (place, ran) = ends(|_, _, _, c| kill(c.pid(), libc::SIGKILL));
    assert_eq!(ran.code, 70, "{ran:?}");
    assert!(ran.line().contains("node c was lost"), "{ran:?}");
    // The next daemon of that state removes what the killed one left.
    let token = place.secret("token", TOKEN);
    Daemon::start(&place, "c", &token).stop();
    let left = fs::read_dir(place.path("c.state")).unwrap().count();
    assert_eq!(left, 1, "the cache only");
}

#[test]
fn a_stopped_daemon_says_so_and_ends_its_guests() {
    let (_, ran) = ends(|_, _, b, _| kill(b.pid(), libc::SIGTERM));
    assert_eq!(ran.code, 70, "{ran:?}");
    assert!(
        ran.line().contains("was lost: its daemon was stopped"),
        "{ran:?}"
    );
}

#[test]
fn a_frozen_daemon_is_a_lost_node() {
    let (_, ran) = ends(|_, coordinator, _, c| {
        kill(c.pid(), libc::SIGSTOP);
        let pid = c.pid();
        std::thread::spawn(move || {
            // Thawed once it was given up, to find out for itself.
            wait_until("the coordinator ends", || kill_would_fail(coordinator));
            kill(pid, libc::SIGCONT);
        });
    });
    assert_eq!(ran.code, 70, "{ran:?}");
    assert!(
        ran.line().contains("node c was lost: nothing was heard"),
        "{ran:?}"
    );
}

#[test]
fn a_daemon_that_pauses_loses_nothing() {
    const COMMANDS: usize = 40;
    let place = Place::new();
    let token = place.secret("token", TOKEN);
    let daemon = Daemon::start(&place, "d", &token);
    let up = place.up(&format!(
        "--nodes a={0},b={0} --token-file {1} -- cat",
        daemon.address,
        token.display()
    ));
    let pid = daemon.pid();
    let pause = std::thread::spawn(move || {
        kill(pid, libc::SIGSTOP);
        // Much less than the silence that is taken for its end.
        std::thread::sleep(Duration::from_millis(600));
        kill(pid, libc::SIGCONT);
    });
    // Everything that a guest can be asked, by many at once.
    let data = vec![b'x'; 200_000];
    let commands: Vec<_> = (0..COMMANDS)
        .map(|_| {
            let mut child = place
                .coordinator()
                .args(["exec", "--", "sh", "-c", "cat; exit 7"])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            let (mut stdin, sent) = (child.stdin.take().unwrap(), data.clone());
            let writer = std::thread::spawn(move || {
                std::io::Write::write_all(&mut stdin, &sent).unwrap();
            });
            (child, writer)
        })
        .collect();
    let questions: Vec<_> = (0..COMMANDS)
        .map(|_| place.coordinator().arg("status").spawn().unwrap())
        .collect();
    pause.join().unwrap();
    for (child, writer) in commands {
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        assert_eq!(output.status.code(), Some(7));
        assert!(output.stdout == data, "{} bytes", output.stdout.len());
    }
    for child in questions {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    assert_eq!(up.end().code, 0);
    daemon.stop();
}

#[test]
fn a_killed_coordinator_ends_its_guests_elsewhere() {
    let (_, ran) = ends(|_, pid, _, _| kill(pid, libc::SIGKILL));
    assert_eq!(ran.code, -libc::SIGKILL);
}

#[test]
fn a_killed_coordinator_without_local_nodes_leaves_nothing() {
    let place = Place::new();
    let token = place.secret("token", TOKEN);
    let daemon = Daemon::start(&place, "d", &token);
    let words = format!(
        "--nodes a={} --token-file {} -- cat",
        daemon.address,
        token.display()
    );
    let up = place.up(&words);
    let begin = Instant::now();
    kill(up.pid(), libc::SIGKILL);
    up.wait();
    wait_until("the run directory is gone", || place.left().is_empty());
    wait_until("the daemon's guest is gone", || {
        place.processes() == [daemon.pid()]
    });
    assert!(begin.elapsed() < Duration::from_millis(END_MS_MAX));
    daemon.stop();
}

#[test]
fn one_daemon_serves_guests_side_by_side() {
    let place = Place::new();
    let token = place.secret("token", TOKEN);
    let daemon = Daemon::start(&place, "d", &token);
    let words = format!(
        "--nodes a,b={} --token-file {} -- cat",
        daemon.address,
        token.display()
    );
    let (mut first, second) = (place.up(&words), place.up(&words));
    kill(second.pid(), libc::SIGKILL);
    assert_eq!(second.wait().code, -libc::SIGKILL);
    first.type_in("alive\n");
    assert_eq!(first.end().stdout, "alive\n");
    daemon.stop();
}

#[test]
fn a_damaged_cache_is_filled_again() {
    let place = Place::new();
    let token = place.secret("token", TOKEN);
    let daemon = Daemon::start(&place, "d", &token);
    let nodes = format!("a,b={}", daemon.address);
    assert_eq!(run(&place, &token, &nodes, &["true"]).code, 0);
    for entry in fs::read_dir(place.path("d.state/artefacts"))
        .unwrap()
        .flatten()
    {
        fs::write(entry.path(), "damaged").unwrap();
    }
    assert_eq!(run(&place, &token, &nodes, &["true"]).code, 0);
    assert!(daemon.log().contains("damaged"));
    daemon.stop();
}

#[test]
fn an_unreadable_root_elsewhere_is_named() {
    let place = Place::new();
    let token = place.secret("token", TOKEN);
    let daemon = Daemon::start(&place, "d", &token);
    let nodes = format!("a={}", daemon.address);
    let token = token.to_str().unwrap();
    let ran = place.run([
        "up",
        "--nodes",
        &nodes,
        "--token-file",
        token,
        "--root",
        "/none/such",
        "--",
        "true",
    ]);
    assert_eq!(ran.code, 125);
    assert!(
        ran.line().contains("node a: /none/such cannot be read"),
        "{ran:?}"
    );
    daemon.stop();
}

#[test]
fn a_daemon_checks_its_options() {
    let place = Place::new();
    let token = place.secret("token", TOKEN);
    let token = token.to_str().unwrap();
    let open = place.path("open");
    fs::write(&open, TOKEN).unwrap();
    fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let serve = |listen: &str, token: &str| {
        let output = Command::new(place.path("node"))
            .args([
                "serve",
                "--listen",
                listen,
                "--token-file",
                token,
                "--state-dir",
            ])
            .arg(place.path("state"))
            .output()
            .unwrap();
        crate::support::Ran::from(output)
    };
    for (listen, token, code, part) in [
        ("7000", token, 2, "--listen 7000: must be IP:PORT"),
        (
            "127.0.0.1:0",
            "/none",
            2,
            "--token-file /none: cannot be read: No such file",
        ),
        ("127.0.0.1:0", open.to_str().unwrap(), 2, "chmod 600"),
        (&taken, token, 125, "Address already in use"),
        ("192.0.2.1:7000", token, 125, "--listen 192.0.2.1:7000"),
    ] {
        let ran = serve(listen, token);
        assert_eq!(ran.code, code, "{ran:?}");
        assert!(ran.line().contains(part), "{ran:?}");
    }
    let left = fs::read_dir(place.path("state")).unwrap().count();
    assert_eq!(left, 1, "the cache only");
}
