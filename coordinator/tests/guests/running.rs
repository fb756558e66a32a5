//! Commands in a guest: exit codes, standard streams, and what they get.

use crate::support::Place;
use std::io::{Read, Write};
use std::process::Stdio;

#[test]
fn the_exit_code_is_the_commands() {
    let place = Place::new();
    for (argv, code) in [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "exit 255"], 255),
        (&["sh", "-c", "kill -9 $$"], 137),
        (&["sh", "-c", "kill -15 $$"], 143),
        (&["/nonexistent"], 127),
    ] {
        let ran = place.run(["up", "--nodes", "a,b,c", "--"].iter().chain(argv));
        assert_eq!(ran.code, code, "{ran:?}");
    }
}

#[test]
fn progress_is_one_line_a_stage_on_stderr() {
    let place = Place::new();
    let ran = place.words("up --nodes a,b,c --cpus a=2 --mem 64M -- echo out");
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "out\n"));
    let stages: Vec<&str> = ran.stderr.lines().map(|line| line[..12].trim()).collect();
    assert_eq!(
        stages,
        ["connect", "map memory", "boot", "cpus online", "ready"],
        "{ran:?}"
    );
    assert!(
        ran.stderr.contains("192 MiB") && ran.stderr.contains("4/4"),
        "{ran:?}"
    );
    assert!(!ran.stderr.contains('\u{1b}'));
}

#[test]
fn stderr_and_stdout_stay_apart_and_a_missing_program_is_named() {
    let place = Place::new();
    let ran = place.run([
        "up",
        "--nodes",
        "a",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2",
    ]);
    assert_eq!(ran.stdout, "out\n");
    assert!(ran.stderr.ends_with("\nerr\n"), "{ran:?}");
    assert!(
        place
            .words("up --nodes a -- /nonexistent")
            .line()
            .contains("/nonexistent")
    );
}

#[test]
fn stdin_is_copied_to_stdout_whole() {
    let place = Place::new();
    let mut child = place
        .coordinator()
        .args(["up", "--nodes", "a,b", "--", "cat"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    // More than all windows and pipes together, in a pattern that shows loss and disorder.
    let data: Vec<u8> = (0..8_000_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let (mut stdin, sent) = (child.stdin.take().unwrap(), data.clone());
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let mut received = Vec::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut received)
        .unwrap();
    writer.join().unwrap();
    assert!(child.wait().unwrap().success());
    assert!(
        received == data,
        "{} of {} bytes",
        received.len(),
        data.len()
    );
}

#[test]
fn a_command_that_does_not_read_holds_nothing_up() {
    let place = Place::new();
    let mut child = place
        .coordinator()
        .args(["up", "--nodes", "a", "--", "sh", "-c", "exit 3"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        // Ends when the coordinator is gone.
        while stdin.write_all(&[0; 65536]).is_ok() {}
    });
    assert_eq!(child.wait().unwrap().code(), Some(3));
    writer.join().unwrap();
}

#[test]
fn a_reader_that_goes_away_ends_the_command() {
    let place = Place::new();
    let mut child = place
        .coordinator()
        .args(["up", "--nodes", "a", "--", "yes"])
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 1000]).unwrap();
    drop(stdout);
    assert_eq!(child.wait().unwrap().code(), Some(128 + libc::SIGPIPE));
}

#[test]
fn without_a_command_stdin_is_a_script() {
    let place = Place::new();
    let mut child = place
        .coordinator()
        .args(["up", "--nodes", "a"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"echo script $((6 * 7))\nexit 9\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(9));
    assert_eq!(output.stdout, b"script 42\n");
}

#[test]
fn a_command_runs_where_the_user_is_with_the_users_terminal_type() {
    let place = Place::new();
    let mut command = place.coordinator();
    command
        .env("TERM", "vt52")
        .env("SECRET", "x")
        .current_dir("/usr/bin");
    let script = "pwd; echo $TERM; echo \"secret: $SECRET\"";
    let output = command
        .args(["up", "--nodes", "a", "--", "sh", "-c", script])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "/usr/bin\nvt52\nsecret: \n"
    );
    let mut command = place.coordinator();
    command.current_dir("/usr/bin");
    let output = command
        .args(["up", "--nodes", "a", "--root", "none", "--", "pwd"])
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"/\n");
}

#[test]
fn the_kernel_gets_its_arguments_in_order() {
    let place = Place::new();
    std::fs::write(place.path("disk.img"), "disk").unwrap();
    let ran = place.run([
        "up",
        "--nodes",
        "a,b",
        "--cpus",
        "3",
        "--mem",
        "a=64M,b=65540K",
        "--root",
        ".",
        "--ubd",
        "disk.img",
        "--name",
        "named",
        "--append",
        "one two=3",
        "-v",
        "--",
        "true",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let here = std::fs::canonicalize(place.path(".")).unwrap();
    let here = here.display();
    let start = ran
        .stderr
        .lines()
        .find(|line| line.starts_with("a: Linux version"))
        .unwrap();
    for part in [
        "\"mem=131076K\", \"ncpus=6\", \"seccomp=on\"",
        "\"numa=64M@0-2,65540K@3-5\"",
        &format!("\"span.root=hostfs:a:{here}\", \"ubd0={here}/disk.img\""),
        "\"span.name=named\"",
        "\"one\", \"two=3\"]",
        &format!("\"initrd={here}/initramfs.cpio\""),
        "\"span.chan=",
    ] {
        assert!(start.contains(part), "{part} in {start}");
    }
    let other = ran
        .stderr
        .lines()
        .find(|line| line.starts_with("b: Linux version"))
        .unwrap();
    assert!(
        !other.contains("span.chan") && other.contains("ncpus=6"),
        "{other}"
    );
}

#[test]
fn a_library_need_not_be_beside_the_kernel() {
    let place = Place::new();
    std::fs::create_dir(place.path("elsewhere")).unwrap();
    std::fs::rename(place.path("linux"), place.path("elsewhere/kernel")).unwrap();
    let ran = place.words("up --nodes a,b --kernel elsewhere/kernel -- true");
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[test]
fn guests_run_side_by_side() {
    let place = Place::new();
    let mut first = place.up("--nodes a,b -- cat");
    let mut second = place.up("--nodes a,b -- cat");
    let third = place.words("up --nodes a,b -- echo third");
    assert_eq!((third.code, third.stdout.as_str()), (0, "third\n"));
    first.type_in("first\n");
    second.type_in("second\n");
    assert_eq!(place.words("list").stdout.lines().count(), 2);
    assert_eq!(first.end().stdout, "first\n");
    assert_eq!(second.end().stdout, "second\n");
}

#[test]
fn much_kernel_log_holds_nothing_up() {
    let place = Place::new();
    let ran = place.words("up --nodes a -v -- fake-log 20000");
    assert_eq!(ran.code, 0);
    assert_eq!(ran.stderr.matches("a: line ").count(), 20_000);
}
