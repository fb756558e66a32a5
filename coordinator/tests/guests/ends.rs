//! How guests end: the exit code, the cause in one line, in time, and with nothing left.

use crate::support::{END_MS_MAX, Place, Ran, kill, parent, wait_until};
use std::time::{Duration, Instant};

/// Does something to a running guest and sees how it ends.
fn ends(nodes: &str, command: &str, act: impl FnOnce(&Place, i32)) -> Ran {
    let place = Place::new();
    let up = place.up(&format!("--nodes {nodes} --append fake.stub -- {command}"));
    // The processes that stand for stubs must go too.
    assert!(place.processes().len() >= 4, "{:?}", place.processes());
    let pid = up.pid();
    act(&place, pid);
    let begin = Instant::now();
    let ran = up.wait();
    assert!(
        begin.elapsed() < Duration::from_millis(END_MS_MAX),
        "{:?}",
        begin.elapsed()
    );
    place.gone_since(begin);
    ran
}

fn pid_of_node(place: &Place, index: usize) -> i64 {
    place.status("")["nodes"][index]["pid"].as_i64().unwrap()
}

#[test]
fn a_killed_guest_process_is_a_lost_node() {
    for (index, name) in ["a", "b", "c"].iter().enumerate() {
        let ran = ends("a,b,c", "cat", |place, _| {
            kill(pid_of_node(place, index) as i32, libc::SIGKILL);
        });
        assert_eq!(ran.code, 70, "{ran:?}");
        let line =
            format!("coordinator: node {name} was lost: its guest process was killed by signal 9");
        assert_eq!(ran.line(), line);
    }
}

#[test]
fn a_killed_agent_is_a_lost_node() {
    for (index, name) in ["a", "b"].iter().enumerate() {
        let ran = ends("a,b", "cat", |place, _| {
            kill(parent(pid_of_node(place, index)), libc::SIGKILL);
        });
        assert_eq!(ran.code, 70, "{ran:?}");
        assert!(
            ran.line()
                .starts_with(&format!("coordinator: node {name} was lost: ")),
            "{ran:?}"
        );
    }
}

#[test]
fn a_stopped_agent_is_a_lost_node() {
    let ran = ends("a,b", "cat", |place, _| {
        kill(parent(pid_of_node(place, 1)), libc::SIGSTOP);
    });
    assert_eq!(ran.code, 70, "{ran:?}");
    assert!(
        ran.line().contains("node b was lost: nothing was heard"),
        "{ran:?}"
    );
}

#[test]
fn a_stopped_guest_process_is_a_lost_node() {
    // With no peer that would notice, and with some.
    for (nodes, index, name) in [("a", 0, "a"), ("a,b", 0, "a"), ("a,b,c", 2, "c")] {
        let ran = ends(nodes, "cat", |place, _| {
            kill(pid_of_node(place, index) as i32, libc::SIGSTOP);
        });
        assert_eq!(ran.code, 70, "{ran:?}");
        let line =
            format!("coordinator: node {name} was lost: its guest process was stopped by SIGSTOP");
        assert_eq!(ran.line(), line);
    }
}

#[test]
fn a_guest_process_that_is_continued_in_time_is_not_lost() {
    let place = Place::new();
    let mut up = place.up("--nodes a,b -- cat");
    let pid = pid_of_node(&place, 0) as i32;
    for _ in 0..3 {
        kill(pid, libc::SIGSTOP);
        std::thread::sleep(Duration::from_millis(500));
        kill(pid, libc::SIGCONT);
    }
    up.type_in("still here\n");
    assert_eq!(up.end().stdout, "still here\n");
}

#[test]
fn a_killed_coordinator_leaves_nothing() {
    let ran = ends("a,b,c", "cat", |_, pid| kill(pid, libc::SIGKILL));
    assert_eq!(ran.code, -libc::SIGKILL);
}

#[test]
fn a_coordinator_killed_during_the_start_leaves_nothing() {
    for stage in ["connect", "boot"] {
        let place = Place::new();
        let append = format!("fake.hang={stage}");
        let mut child = place
            .coordinator()
            .args(["up", "--nodes", "a,b", "--append", &append])
            .spawn()
            .unwrap();
        wait_until("guest processes run", || place.processes().len() == 5);
        let begin = Instant::now();
        kill(child.id() as i32, libc::SIGKILL);
        child.wait().unwrap();
        place.gone_since(begin);
    }
}

#[test]
fn a_leftover_directory_is_no_obstacle() {
    let place = Place::new();
    let old = place.path("runtime/span/one");
    std::fs::create_dir_all(&old).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(place.path("runtime/span"), private).unwrap();
    std::fs::create_dir(old.join("node-0")).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(old.join("control.sock")).unwrap();
    drop(socket);
    assert_eq!(place.words("up --nodes a --name one -- true").code, 0);
}

#[test]
fn signals_end_the_guest_in_order() {
    for (signal, name) in [
        (libc::SIGINT, "SIGINT"),
        (libc::SIGTERM, "SIGTERM"),
        (libc::SIGHUP, "SIGHUP"),
    ] {
        let ran = ends("a,b", "cat", |_, pid| kill(pid, signal));
        assert_eq!(ran.code, 128 + signal, "{ran:?}");
        assert_eq!(ran.line(), format!("coordinator: ended by {name}"));
    }
}

#[test]
fn a_signal_ends_a_guest_that_hangs_in_its_start() {
    for stage in ["connect", "boot"] {
        let place = Place::new();
        let append = format!("fake.hang={stage}");
        let child = place
            .coordinator()
            .args(["up", "--nodes", "a,b", "--append", &append])
            .spawn()
            .unwrap();
        wait_until("guest processes run", || place.processes().len() == 5);
        let begin = Instant::now();
        kill(child.id() as i32, libc::SIGTERM);
        let ran = Ran::from(child.wait_with_output().unwrap());
        assert_eq!(ran.code, 143, "{ran:?}");
        place.gone_since(begin);
    }
}

#[test]
fn ctrl_z_does_not_stop_the_coordinator() {
    let place = Place::new();
    let mut up = place.up("--nodes a,b -- cat");
    kill(up.pid(), libc::SIGTSTP);
    up.type_in("still here\n");
    assert_eq!(up.end().stdout, "still here\n");
}

#[test]
fn down_ends_a_guest_in_the_foreground() {
    let ran = ends("a,b", "cat", |place, _| {
        assert_eq!(place.words("down").code, 0)
    });
    assert_eq!(ran.code, 143);
    assert_eq!(ran.line(), "coordinator: taken down by `coordinator down`");
}

#[test]
fn a_panic_is_told_with_its_message() {
    let place = Place::new();
    for how in ["fake-panic", "fake-silent-panic"] {
        let ran = place.run(["up", "--nodes", "a,b", "--", how, "not today"]);
        assert_eq!(ran.code, 134, "{ran:?}");
        assert!(ran.line().contains("the guest panicked"), "{ran:?}");
        assert!(ran.line().ends_with(": not today"), "{ran:?}");
    }
}

#[test]
fn a_guest_that_ends_itself_ends_well() {
    let place = Place::new();
    for (kind, line) in [
        ("poweroff", "the guest powered off"),
        ("halt", "the guest halted"),
        ("restart", "the guest asked for a restart"),
    ] {
        let ran = place.run(["up", "--nodes", "a,b", "--", "fake-halt", kind]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(ran.line().contains(line), "{ran:?}");
    }
}

#[test]
fn commands_that_end_with_the_guest_are_not_the_cause() {
    for how in ["halts", "stuck"] {
        let place = Place::new();
        let up = place.up("--nodes a,b -- cat");
        let begin = Instant::now();
        place.words(&format!("exec -- fake-ending {how}"));
        let ran = up.wait();
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(
            ran.line().contains("the guest asked for a restart"),
            "{ran:?}"
        );
        assert!(begin.elapsed() < Duration::from_millis(END_MS_MAX));
    }
}

#[test]
fn what_a_runtime_or_init_does_wrong_ends_the_guest_with_a_line() {
    let place = Place::new();
    for (command, code, part) in [
        ("fake-fail out-of-stubs", 125, "node a: out-of-stubs"),
        (
            "fake-garbage",
            125,
            "node a: the guest process sent a bad message",
        ),
        (
            "fake-init-garbage",
            125,
            "bad message from the guest's init",
        ),
        (
            "fake-peer-lost 1",
            70,
            "node b was lost: node a reports: no answer",
        ),
        ("fake-peer-lost 9", 125, "node a lost nobody"),
    ] {
        let ran = place.words(&format!("up --nodes a,b -- {command}"));
        assert_eq!(ran.code, code, "{ran:?}");
        assert!(ran.line().contains(part), "{ran:?}");
    }
}

#[test]
fn a_second_signal_does_not_wait_for_the_guest() {
    // A guest process that is stopped cannot power off.
    let place = Place::new();
    let up = place.up("--nodes a -- cat");
    kill(pid_of_node(&place, 0) as i32, libc::SIGSTOP);
    let begin = Instant::now();
    kill(up.pid(), libc::SIGINT);
    // One signal may take another's place before it is seen.
    wait_until("the first is seen", || {
        place.status("")["state"] == "ending"
    });
    kill(up.pid(), libc::SIGINT);
    assert_eq!(up.wait().code, 130);
    assert!(
        begin.elapsed() < Duration::from_millis(900),
        "{:?}",
        begin.elapsed()
    );
}

#[test]
fn a_guest_that_does_not_power_off_is_ended_in_time() {
    let place = Place::new();
    let up = place.up("--nodes a -- cat");
    kill(pid_of_node(&place, 0) as i32, libc::SIGSTOP);
    let begin = Instant::now();
    kill(up.pid(), libc::SIGTERM);
    assert_eq!(up.wait().code, 143);
    place.gone_since(begin);
}
