//! The kinds of root file system.

use crate::{
    harness::{Guest, command, kernel, sh, words},
    initramfs,
};
use span_api::session::FromInit;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

#[test]
fn the_host_stays_untouched_below_the_overlay() {
    let Some(kernel) = kernel() else { return };
    // Not below /tmp, which is the guest's own.
    let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = directory.path().display();
    fs::write(directory.path().join("changed"), "original").unwrap();
    fs::write(directory.path().join("removed"), "original").unwrap();
    let poweroff = fs::symlink_metadata("/usr/sbin/poweroff")
        .and_then(|file| file.modified())
        .ok();

    let mut guest = Guest::boot(&kernel, &["span.root=host"]);
    let script = format!(
        "cd {path} && cat changed && echo new > changed && rm removed && mkdir d && echo x > d/f \
         && mv d e && cat changed e/f && ls"
    );
    let outcome = guest.run(sh(&script));
    assert_eq!(
        outcome.text(),
        "originalnew\nx\nchanged\ne\n",
        "{outcome:?}"
    );
    let mounts = guest.run(words("cat /proc/mounts"));
    for mount in [
        "host / overlay rw",
        "proc /proc proc rw",
        "sysfs /sys sysfs rw",
        "devtmpfs /dev devtmpfs rw",
        "devpts /dev/pts devpts rw",
        "shm /dev/shm tmpfs rw",
        "run /run tmpfs rw",
        "tmp /tmp tmpfs rw",
        "cgroup2 /sys/fs/cgroup cgroup2 rw",
    ] {
        assert!(
            mounts.text().lines().any(|line| line.starts_with(mount)),
            "{mount}: {mounts:?}"
        );
    }
    guest.power_off();

    assert_eq!(
        fs::read_to_string(directory.path().join("changed")).unwrap(),
        "original"
    );
    assert_eq!(
        fs::read_to_string(directory.path().join("removed")).unwrap(),
        "original"
    );
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    let after = fs::symlink_metadata("/usr/sbin/poweroff")
        .and_then(|file| file.modified())
        .ok();
    assert_eq!(after, poweroff);
}

#[test]
fn without_a_root_there_are_a_few_programs() {
    let Some(kernel) = kernel() else { return };
    let mut guest = Guest::boot(&kernel, &["span.root=none"]);
    eprintln!("boot to Ready without a root: {} ms", guest.boot_ms);
    assert_eq!(guest.run(words("echo a  b")).text(), "a b\n");
    assert_eq!(guest.run(words("nproc")).text(), "2\n");
    assert_eq!(
        guest.run(words("uname -sr")).text(),
        format!("Linux {}\n", guest.kernel)
    );
    assert_eq!(guest.run(words("true")).code, 0);
    assert_eq!(guest.run(words("false")).code, 1);
    assert_eq!(guest.run(words("sleep 0.01")).code, 0);
    assert_eq!(guest.run(words("sleep long")).code, 1);
    assert_eq!(
        guest.run_with(command(words("cat")), b"input").text(),
        "input"
    );
    assert_eq!(
        guest.run(words("cat /proc/sys/kernel/hostname")).text(),
        "span\n"
    );
    assert_eq!(guest.run(words("sh")).code, 127);
    assert_eq!(guest.run(Vec::new()).code, 127);
    assert_eq!(guest.run(words("poweroff")).code, 0);
    while guest.next().is_some() {}
    assert!(guest.expect_end(Duration::from_secs(2)).success());
}

#[test]
fn a_directory_of_the_host_is_a_root_that_keeps_changes() {
    let Some(kernel) = kernel() else { return };
    let directory = tempfile::Builder::new()
        .prefix("a root ")
        .tempdir()
        .unwrap();
    install_shell(directory.path());
    fs::write(directory.path().join("file"), "before").unwrap();
    let option = format!("\"span.root=hostfs:{}\"", directory.path().display());
    let mut guest = Guest::boot(&kernel, &[&option]);
    let script = "read line < /file; echo $line; echo after > /file; echo $$ > /run/pid; poweroff";
    let outcome = guest.run(sh(script));
    assert_eq!(outcome.text(), "before\n", "{outcome:?}");
    while guest.next().is_some() {}
    assert!(guest.expect_end(Duration::from_secs(2)).success());
    assert_eq!(
        fs::read_to_string(directory.path().join("file")).unwrap(),
        "after\n"
    );
    assert_eq!(
        fs::read_dir(directory.path().join("run")).unwrap().count(),
        0
    );
}

#[test]
fn a_block_device_is_a_root_that_is_left_clean() {
    let Some(kernel) = kernel() else { return };
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    fs::create_dir(&tree).unwrap();
    install_shell(&tree);
    let image = directory.path().join("image");
    let made = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .args([&tree, &image])
        .arg("64M")
        .output()
        .expect("mke2fs runs");
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let disk = format!("ubd0={}", image.display());
    for (option, word) in [
        ("block:/dev/ubda,ext4", "typed"),
        ("block:/dev/ubda", "untyped"),
    ] {
        let mut guest = Guest::boot(&kernel, &[&disk, &format!("span.root={option}")]);
        assert_eq!(guest.run(sh(&format!("echo {word} >> /file"))).code, 0);
        guest.power_off();
    }
    let checked = Command::new("e2fsck")
        .arg("-fn")
        .arg(&image)
        .output()
        .expect("e2fsck runs");
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stdout)
    );
    let file = Command::new("debugfs")
        .args(["-R", "cat /file"])
        .arg(&image)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&file.stdout), "typed\nuntyped\n");
}

#[test]
fn a_root_that_cannot_be_had_is_named() {
    let Some(kernel) = kernel() else { return };
    let cases = [
        (
            "hostfs:/no/such",
            "mounting the host's directory /no/such failed: No such file",
        ),
        (
            "hostfs:/etc/passwd",
            "mounting the host's directory /etc/passwd failed: Not a directory",
        ),
        ("block:/dev/none", "mounting /dev/none failed: "),
        ("floppy", "span.root=floppy is none of host, hostfs:"),
    ];
    for (root, message) in cases {
        let mut guest = Guest::start(&kernel, &[&format!("span.root={root}")]);
        match guest.next() {
            Some(FromInit::Failed(line)) => assert!(line.starts_with(message), "{line}"),
            other => panic!("expected Failed, not {other:?}"),
        }
        assert!(guest.next().is_none());
        assert!(guest.expect_end(Duration::from_secs(2)).success());
    }
}

/// Copies the host's shell and what it is linked with.
fn install_shell(root: &Path) {
    let libraries = Command::new("ldd")
        .arg("/bin/sh")
        .output()
        .expect("ldd runs");
    let text = String::from_utf8_lossy(&libraries.stdout);
    let linked = text
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from);
    for file in linked.chain([PathBuf::from("/bin/sh")]) {
        let target = root.join(file.strip_prefix("/").unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&file, &target).unwrap();
    }
    // What a guest without a shell could run still has to be there to be found.
    fs::copy(initramfs::build_program(), root.join("bin/cat")).unwrap();
}
