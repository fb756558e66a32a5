//! Files into a guest and out of it.

use nix::sys::signal::Signal;
use span_tests::{Halfway, Outcome, SHORT_S_MAX, Spawned, Up, World, wait_until};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

const SHORT: Duration = Duration::from_secs(SHORT_S_MAX);

/// Nothing that anybody compresses or guesses.
fn noise(bytes: usize) -> Vec<u8> {
    let numbers = (0..bytes as u64 / 8).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    numbers
        .flat_map(|n| (n ^ (n >> 29)).to_le_bytes())
        .collect()
}

fn begin(world: &World, paths: &[&str]) -> Spawned {
    let mut command = world.command("coordinator");
    command.arg("cp").args(paths);
    Spawned::start(&mut command)
}

#[track_caller]
fn cp(world: &World, paths: &[&str]) -> Outcome {
    begin(world, paths).wait(SHORT)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of the tests")
}

#[test]
fn a_tree_goes_in_is_changed_on_another_node_and_comes_out() {
    let world = World::new();
    let guest = Up::three(&world).detach("copies");
    let before = guest.status();
    let tree = world.path("tmp").join("tree");
    fs::create_dir_all(tree.join("inner")).expect("a directory");
    let data = noise(3_000_000);
    fs::write(tree.join("inner/data"), &data).expect("a file");
    fs::write(tree.join("program"), "#!/bin/sh\necho run on $1\n").expect("a file");
    fs::set_permissions(tree.join("program"), Permissions::from_mode(0o751)).expect("its mode");
    symlink("inner/data", tree.join("link")).expect("a link");
    let time = fs::metadata(tree.join("inner/data"))
        .expect("a file")
        .mtime();

    let outcome = cp(&world, &[text(&tree), "copies:/tmp"]).expect(0);
    assert_eq!(
        (outcome.text(), outcome.stderr),
        (String::new(), String::new())
    );
    for node in ["a", "b", "c"] {
        let script = "cd /tmp/tree && ./program $0 && cmp link inner/data && \
                      stat -c '%a %s %Y' inner/data program && readlink link && \
                      cat inner/data | wc -c > wc.$0";
        let outcome = guest.exec_on(&["--node", node], &["sh", "-c", script, node]);
        let said = outcome.expect(0).text();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[0], format!("run on {node}"));
        let data_line = format!(" {} {time}", data.len());
        assert!(lines[1].ends_with(&data_line), "{said}");
        assert!(lines[2].starts_with("751 25 "), "{said}");
        assert_eq!(lines[3], "inner/data");
    }
    guest
        .exec_on(
            &["--node", "c"],
            &["sh", "-c", "echo more >> /tmp/tree/inner/data"],
        )
        .expect(0);

    let back = world.path("tmp").join("back");
    cp(&world, &["copies:/tmp/tree", text(&back)]).expect(0);
    let changed = [data.as_slice(), b"more\n"].concat();
    assert!(fs::read(back.join("inner/data")).expect("a file") == changed);
    assert_eq!(
        fs::read_link(back.join("link")).expect("a link"),
        Path::new("inner/data")
    );
    let mode = fs::metadata(back.join("program")).expect("a file").mode();
    assert_eq!(mode & 0o7777, 0o751);
    for node in ["a", "b", "c"] {
        let count = fs::read_to_string(back.join(format!("wc.{node}"))).expect("a file");
        assert_eq!(count.trim(), data.len().to_string());
    }
    guest.status().assert_moved(&before);
    guest.down().expect(0);
    fs::remove_dir_all(&tree).expect("removing it");
    fs::remove_dir_all(&back).expect("removing it");
    world.assert_clean();
}

#[test]
fn one_file_comes_from_stdin_and_goes_to_stdout() {
    let world = World::new();
    let guest = Up::three(&world).detach("streams");
    let data = noise(1_000_000);
    let mut copy = begin(&world, &["-", "streams:/tmp/file"]);
    copy.feed(data.clone());
    copy.wait(SHORT).expect(0);
    assert_eq!(guest.sh("stat -c %s /tmp/file"), data.len().to_string());
    // The only guest that runs need not be named.
    let outcome = cp(&world, &[":/tmp/file", "-"]).expect(0);
    assert!(outcome.stdout == data, "{} bytes", outcome.stdout.len());
    let outcome = cp(&world, &["streams:/proc/span", "-"]).expect(0);
    assert_eq!(outcome.text(), "cpu node\n0 0\n1 1\n2 2");
    guest.down().expect(0);
    world.assert_clean();
}

#[test]
fn what_cannot_be_copied_is_said_in_one_line() {
    let world = World::new();
    let guest = Up::three(&world).detach("refuses");
    let host = world.path("tmp");
    let (file, large) = (host.join("file"), host.join("large"));
    fs::write(&file, "text").expect("a file");
    fs::write(&large, noise(4 << 20)).expect("a file");
    let missing = host.join("missing");
    guest.sh(
        "mkdir /tmp/small /tmp/fixed /tmp/target; echo old > /tmp/small/large; \
              mount -t tmpfs -o size=1m none /tmp/small; echo old > /tmp/small/large; \
              mount -t tmpfs -o ro none /tmp/fixed",
    );
    for (from, to, code, said) in [
        (
            text(&missing),
            "refuses:/tmp/x",
            1,
            format!("{}: No such file or directory", text(&missing)),
        ),
        (
            "refuses:/missing",
            text(&missing),
            1,
            "refuses:/missing: No such file or directory".into(),
        ),
        (
            text(&file),
            "refuses:/tmp/no/x",
            1,
            "refuses:/tmp/no/x: No such file or directory".into(),
        ),
        (
            text(&file),
            "refuses:/tmp/fixed/",
            1,
            "refuses:/tmp/fixed/: Read-only file system".into(),
        ),
        (
            text(&file),
            "refuses:/dev/null",
            1,
            "refuses:/dev/null: is neither a file nor a directory".into(),
        ),
        (
            text(&large),
            "refuses:/tmp/small/",
            1,
            "refuses:large: No space left on device".into(),
        ),
        (
            "refuses:/proc/version",
            "/proc/version",
            1,
            "/proc/version: ".into(),
        ),
        ("refuses:/tmp", "-", 1, "is a directory".into()),
        (
            text(&file),
            "nobody:/tmp",
            2,
            "\"nobody\": no guest of that name runs".into(),
        ),
        (
            "refuses:/a",
            "refuses:/b",
            2,
            "one side of a copy is here".into(),
        ),
    ] {
        let outcome = cp(&world, &[from, to]).expect(code);
        assert!(
            outcome.stderr.starts_with("coordinator: "),
            "{from} {to}: {}",
            outcome.stderr
        );
        assert!(
            outcome.stderr.contains(&said),
            "{from} {to}: {}",
            outcome.stderr
        );
        assert_eq!(
            outcome.stderr.lines().count(),
            1,
            "{from} {to}: {}",
            outcome.stderr
        );
    }
    assert!(!missing.exists());
    assert_eq!(
        guest.sh("ls -A /tmp/small; cat /tmp/small/large"),
        "large\nold"
    );
    // What can be copied is, beside what cannot.
    let outcome = cp(
        &world,
        &[text(&missing), text(&file), "refuses:/tmp/target"],
    )
    .expect(1);
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    assert_eq!(guest.sh("ls -A /tmp/target"), "file");
    guest.down().expect(0);
    for path in [file, large] {
        fs::remove_file(path).expect("removing it");
    }
    world.assert_clean();
}

/// More than is on its way at any time, and than one that comes halfway sends.
const LARGE_BYTES: usize = 1 << 20;

/// A copy that cannot end by itself, once `begun`.
#[track_caller]
fn begin_halfway(
    halfway: &Halfway,
    world: &World,
    paths: &[&str],
    begun: impl Fn() -> bool,
) -> Spawned {
    let mut command = halfway.command(world);
    let copy = Spawned::start(command.arg("cp").args(paths));
    if !wait_until(SHORT, begun) {
        panic!(
            "the copy did not begin: {:?}",
            copy.try_wait(Duration::ZERO)
        );
    }
    copy
}

#[test]
fn an_interrupted_copy_leaves_nothing() {
    let world = World::new();
    let guest = Up::three(&world).detach("stops");
    let host = world.path("tmp");
    let (large, there) = (host.join("large"), host.join("there"));
    fs::write(&large, noise(LARGE_BYTES)).expect("a file");
    fs::create_dir(&there).expect("a directory");
    guest.sh("mkdir /tmp/there; echo old > /tmp/there/large");
    let in_guest = || guest.sh("ls -A /tmp/there | grep -c span-copy || true") != "0";
    let into = [text(&large), "stops:/tmp/there/"];

    let halfway = Halfway::to(&world, &guest);
    let copy = begin_halfway(&halfway, &world, &into, in_guest);
    copy.signal(Signal::SIGINT);
    let said = copy.wait(SHORT).expect(130).stderr;
    halfway.end();
    // A guest that has no time to clear up at once is not waited for, and that is said.
    match said.as_str() {
        "coordinator: interrupted; nothing was copied\n" => {}
        "coordinator: interrupted; the guest has not cleared the copy away yet\n" => {
            assert!(wait_until(SHORT, || !in_guest()), "it has not cleared up");
        }
        _ => panic!("{said}"),
    }
    assert_eq!(
        guest.sh("ls -A /tmp/there; cat /tmp/there/large"),
        "large\nold"
    );

    // One that has no time to say anything.
    let halfway = Halfway::to(&world, &guest);
    let copy = begin_halfway(&halfway, &world, &into, in_guest);
    copy.signal(Signal::SIGKILL);
    copy.wait(SHORT).expect(137);
    halfway.end();
    assert!(
        wait_until(SHORT, || !in_guest()),
        "the guest has not cleared up"
    );
    assert_eq!(guest.sh("cat /tmp/there/large"), "old");

    guest.sh(&format!(
        "head -c {LARGE_BYTES} /dev/urandom > /tmp/there/large"
    ));
    let entries = || fs::read_dir(&there).expect("a directory").count();
    let out = ["stops:/tmp/there/large", text(&there)];
    let halfway = Halfway::to(&world, &guest);
    let copy = begin_halfway(&halfway, &world, &out, || entries() > 0);
    copy.signal(Signal::SIGTERM);
    let outcome = copy.wait(SHORT).expect(143);
    assert_eq!(
        outcome.stderr,
        "coordinator: interrupted; nothing was copied\n"
    );
    halfway.end();
    assert_eq!(entries(), 0);
    let idle = || guest.sh("pgrep -c span-copy || true") == "0";
    assert!(wait_until(SHORT, idle), "the guest goes on to send");

    // A guest that ends.
    let halfway = Halfway::to(&world, &guest);
    let copy = begin_halfway(&halfway, &world, &out, || entries() > 0);
    guest.down().expect(0);
    let outcome = copy.wait(SHORT);
    assert_ne!(outcome.code, 0);
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    halfway.end();
    assert_eq!(entries(), 0);
    fs::remove_file(&large).expect("removing it");
    fs::remove_dir(&there).expect("removing it");
    world.assert_clean();
}
