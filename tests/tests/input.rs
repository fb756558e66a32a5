//! What cannot be done is said in one line, before anything is started.

use span_tests::{Up, World};
use std::net::UdpSocket;

#[track_caller]
fn refused(world: &World, up: Up<'_>, code: i32, parts: &[&str]) {
    let outcome = up.limit_s(20).run(&["true"]).expect(code);
    assert_eq!(outcome.stdout, b"");
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in parts {
        assert!(lines[0].contains(part), "{part:?} is not in {lines:?}");
    }
    world.assert_clean();
}

#[test]
fn options_that_cannot_be_used() {
    let world = World::new();
    let three = || Up::three(&world);
    for (up, parts) in [
        (Up::bare(&world), &["--nodes"][..]),
        (Up::on(&world, "a,b,a"), &["--nodes", "a"]),
        (Up::on(&world, "a,,b"), &["--nodes"]),
        (Up::on(&world, "a,b=nowhere"), &["--nodes", "HOST:PORT"]),
        (three().options(&["--cpus", "0"]), &["--cpus", "1 to 64"]),
        (three().options(&["--cpus", "22"]), &["--cpus", "64"]),
        (three().options(&["--cpus", "d=1"]), &["--cpus", "d"]),
        (three().options(&["--mem", "1M"]), &["--mem", "16M"]),
        (three().options(&["--mem", "16M"]), &["--mem", "64M"]),
        (three().options(&["--mem", "900000G"]), &["--mem"]),
        (three().options(&["--mem", "much"]), &["--mem", "much"]),
        (
            three().options(&["--kernel", "/no/such"]),
            &["--kernel", "/no/such"],
        ),
        (
            three().options(&["--kernel", "/bin/true"]),
            &["--kernel", "/bin/true"],
        ),
        (
            three().options(&["--root", "/no/such"]),
            &["--root", "/no/such"],
        ),
        (
            three().options(&["--root", "/dev/null"]),
            &["--root", "/dev/null"],
        ),
        (
            three().options(&["--ubd", "/no/such"]),
            &["--ubd", "/no/such"],
        ),
        (
            three().options(&["--paging", "magic"]),
            &["--paging", "magic", "auto, mprotect, uffd"],
        ),
        (three().options(&["--name", "../x"]), &["--name"]),
        (
            three().options(&["--net", "eth0"]),
            &["--net", "eth0", "tap:"],
        ),
        (three().options(&["--net", "d:user"]), &["--net", "a, b, c"]),
        (
            three().options(&["--net", "user,hostfwd=tcp::0-:1"]),
            &["--net", "hostfwd="],
        ),
        (three().options(&["--net", "tap:"]), &["--net", "interface"]),
        (
            three()
                .options(&["--net", "user"])
                .append("vec0:transport=raw,ifname=x"),
            &["--append", "vec1"],
        ),
        (
            three().append("eth0=tuntap,,,192.168.0.254"),
            &["--append", "eth0", "--net tap:"],
        ),
        (
            three().append("eth0=daemon"),
            &["--append", "eth0", "--net switch:"],
        ),
        (three().option("--no-such-option"), &["--no-such-option"]),
        (
            three().options(&["--token-file", "/no/such"]),
            &["/no/such"],
        ),
    ] {
        refused(&world, up, 2, parts);
    }
}

#[test]
fn a_name_that_is_taken() {
    let world = World::new();
    let guest = Up::on(&world, "a").detach("taken");
    let outcome = Up::on(&world, "a")
        .options(&["--name", "taken"])
        .run(&["true"])
        .expect(2);
    assert!(outcome.stderr.contains("taken"));
    assert_eq!(guest.sh("echo alive"), "alive");
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn a_daemon_that_is_not_there() {
    let world = World::new();
    let token = world.file("token", "0123456789abcdef0123456789abcdef\n");
    span_tests::restrict(&token);
    // A port that is known to be free, and one where somebody says nothing.
    let silent = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let free = UdpSocket::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .expect("a port");
    for address in [free, silent.local_addr().expect("an address")] {
        let up = Up::on(&world, &format!("a,b={address}"))
            .option("--token-file")
            .option(&token);
        let outcome = up.limit_s(30).run(&["true"]).expect(125);
        let lines = outcome.stderr.lines();
        let said: Vec<&str> = lines
            .filter(|line| line.starts_with("coordinator: "))
            .collect();
        assert_eq!(said.len(), 1, "{}", outcome.stderr);
        assert!(said[0].contains('b'), "{said:?}");
        world.assert_clean();
    }
}

#[test]
fn a_daemon_refuses_what_it_cannot_use() {
    let world = World::new();
    let token = world.file("token", "0123456789abcdef0123456789abcdef\n");
    span_tests::restrict(&token);
    let taken = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("an address");
    let state = world.path("work").join("state").display().to_string();
    let token = token.display().to_string();
    for (listen, file, code, part) in [
        (taken.to_string(), token.as_str(), 2..126, "--listen"),
        ("nowhere".into(), &token, 2..3, "--listen"),
        ("127.0.0.1:0".into(), "/no/such", 2..3, "--token-file"),
        ("127.0.0.1:0".into(), "/dev/null", 2..3, "--token-file"),
    ] {
        let mut command = world.command("node");
        command.args([
            "serve",
            "--listen",
            &listen,
            "--token-file",
            file,
            "--state-dir",
            &state,
        ]);
        let outcome =
            span_tests::Spawned::start(&mut command).wait(std::time::Duration::from_secs(10));
        assert!(code.contains(&outcome.code), "{outcome:?}");
        let said = outcome.stderr.lines();
        assert_eq!(
            said.filter(|line| line.contains(part)).count(),
            1,
            "{outcome:?}"
        );
    }
    world.assert_clean();
}
