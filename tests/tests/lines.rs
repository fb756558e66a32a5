//! The kernel's management console, disks that come and go through it, and lines that are refused.

use sha2::{Digest, Sha256};
use span_tests::{Guest, SHORT_S_MAX, Up, World, wait_until};
use std::fmt::Write;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

const SHORT: Duration = Duration::from_secs(SHORT_S_MAX);

/// A client of a guest's management console, as `uml_mconsole` is one.
struct Management {
    socket: UnixDatagram,
    own: PathBuf,
}

impl Management {
    const MAGIC: u32 = 0xcafe_babe;
    const VERSION: u32 = 2;
    const DATA_BYTES: usize = 512;

    fn new(world: &World, guest: &Guest<'_>) -> Self {
        let own = world.path("tmp").join("client");
        let socket = UnixDatagram::bind(&own).expect("a socket");
        let server = guest.run_directory().join("node-0/uml/mconsole");
        socket.connect(&server).expect("the console's socket");
        socket.set_read_timeout(Some(SHORT)).expect("a time limit");
        Self { socket, own }
    }

    /// What is answered, and whether it is an error.
    fn ask(&self, command: &str) -> Result<String, String> {
        let mut request = Vec::new();
        for number in [Self::MAGIC, Self::VERSION, command.len() as u32] {
            request.extend(number.to_ne_bytes());
        }
        request.extend(command.as_bytes());
        request.resize(12 + Self::DATA_BYTES, 0);
        self.socket.send(&request).expect("sending a request");
        let (mut text, mut reply) = (String::new(), [0; 1024]);
        loop {
            let bytes = self.socket.recv(&mut reply).expect("an answer");
            let number =
                |at: usize| u32::from_ne_bytes(reply[at..at + 4].try_into().expect("4 bytes"));
            let part = String::from_utf8_lossy(&reply[12..bytes]).into_owned();
            text += part.trim_end_matches('\0');
            let (error, more) = (number(0), number(4));
            if more == 0 {
                return if error == 0 { Ok(text) } else { Err(text) };
            }
        }
    }
}

impl Drop for Management {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.own);
    }
}

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
