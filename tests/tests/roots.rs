//! What a guest has for a root file system, and that this machine's stays as it is.

use span_tests::{Up, World, text};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

#[test]
fn nothing_changes_on_the_host() {
    let world = World::new();
    let file = world.file("kept", "as it was\n");
    let gone = world.file("removed", "still here\n");
    let directory = world.path("work").display().to_string();
    let outcome = Up::three(&world)
        .sh(&format!(
            "set -e; cd {directory}; for c in 0 1 2; do \
               taskset -c $c sh -c \"echo cpu $c >>kept; echo $c >new$c; mkdir -p dir/$c\"; done; \
             rm removed; mv dir moved; chmod 600 kept; cat kept new2; ls; \
             touch /etc/span-test /span-test; rm -r /usr/share/doc; ls /usr/share/doc 2>&1 || :"
        ))
        .expect(0);
    assert!(
        outcome
            .text()
            .starts_with("as it was\ncpu 0\ncpu 1\ncpu 2\n2\n")
    );
    assert!(!outcome.text().contains("removed"));
    assert_eq!(text(&file), "as it was\n");
    assert_eq!(text(&gone), "still here\n");
    assert_eq!(
        fs::metadata(&file).expect("a file").permissions().mode() & 0o777,
        0o644
    );
    assert_eq!(
        fs::read_dir(world.path("work"))
            .expect("a directory")
            .count(),
        2
    );
    for path in ["/etc/span-test", "/span-test"] {
        assert!(!fs::exists(path).expect("a path"), "{path}");
    }
    assert!(fs::exists("/usr/share/doc").expect("a path"));
    world.assert_clean();
}

/// A directory with a shell in it.
#[test]
fn a_directory_becomes_the_root() {
    let world = World::new();
    let root = world.path("work").join("root");
    for directory in ["bin", "dev", "proc", "sys", "tmp", "lib", "lib64", "etc"] {
        fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    let copy = |from: &str, to: &str| {
        fs::copy(from, root.join(to)).unwrap_or_else(|error| panic!("{from}: {error}"));
    };
    copy("/bin/sh", "bin/sh");
    copy("/bin/cat", "bin/cat");
    copy("/usr/bin/taskset", "bin/taskset");
    copy("/lib64/ld-linux-x86-64.so.2", "lib64/ld-linux-x86-64.so.2");
    copy("/lib/x86_64-linux-gnu/libc.so.6", "lib/libc.so.6");
    symlink("sh", root.join("bin/bash")).expect("a link");
    fs::write(root.join("etc/name"), "of the directory\n").expect("a file");
    let outcome = Up::three(&world)
        .option("--root")
        .option(&root)
        .sh(
            "for c in 0 1 2; do taskset -c $c cat /etc/name; done; echo here >/tmp/x; cat /tmp/x; \
             test ! -e /usr",
        )
        .expect(0);
    assert_eq!(
        outcome.text(),
        format!("{}here", "of the directory\n".repeat(3))
    );
    world.assert_clean();
}

#[test]
fn a_guest_without_root_file_system() {
    let world = World::new();
    let none = || Up::three(&world).options(&["--root", "none"]);
    assert_eq!(none().run(&["nproc"]).expect(0).text(), "3");
    assert_eq!(none().input("in\n").run(&["cat"]).expect(0).text(), "in");
    none().run(&["sh"]).expect(127);
    world.assert_clean();
}

#[test]
fn two_guests_side_by_side() {
    let world = World::new();
    let first = Up::three(&world).detach("first");
    let second = Up::on(&world, "a,b").detach("second");
    let pids = |status: span_tests::Status| -> Vec<_> {
        status.nodes.iter().map(|node| node.pid).collect()
    };
    let (ones, others) = (pids(first.status()), pids(second.status()));
    assert!(ones.iter().all(|pid| !others.contains(pid)));
    first.sh("echo first >/root/who || echo first >/var/who");
    assert_eq!(first.sh("nproc"), "3");
    assert_eq!(
        second.sh("nproc; ls /root/who /var/who 2>/dev/null | wc -l"),
        "2\n0"
    );
    first.down().expect(0);
    assert!(!first.run_directory().exists());
    assert_eq!(second.sh("nproc"), "2");
    second.down().expect(0);
    world.assert_clean();
}
