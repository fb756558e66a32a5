//! The kernel's management console, disks that come and go through it, and lines that are refused.

use sha2::{Digest, Sha256};
use span_tests::{Management, SHORT_S_MAX, Up, World, wait_until};
use std::fmt::Write;
use std::fs;
use std::time::Duration;

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
    assert_eq!(console.ask("config con0").expect("a channel"), "null");
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
    assert_eq!(console.ask("stop").expect("no error"), "stopped");
    console.ask("go").expect("no error");
    assert_eq!(guest.sh("nproc"), "3");
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

#[test]
fn channels_that_cannot_work_are_refused() {
    let world = World::new();
    for (argument, said) in [
        ("con1=xterm", "the kernel is built without it"),
        ("ssl0=pts", "terminal is closed"),
        ("ssl=fd:3", "no descriptors of yours"),
        ("con0=null,fd:1", "no descriptors of yours"),
    ] {
        let outcome = Up::three(&world).append(argument).run(&["true"]).expect(2);
        assert!(outcome.stderr.contains(said), "{}", outcome.stderr);
        assert_eq!(outcome.stderr.lines().count(), 1);
    }
    world.assert_clean();
}
