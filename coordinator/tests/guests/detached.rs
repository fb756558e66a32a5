//! Guests in the background, and the commands that reach them.

use crate::support::{END_MS_MAX, Place, kill, wait_until};
use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

#[test]
fn a_detached_guest_is_reached_and_taken_down() {
    let place = Place::new();
    let name = place.detached("--nodes a,b --cpus a=2");
    assert_eq!(name, "span-1");
    let ran = place.run(["exec", "--", "sh", "-c", "echo hello; exit 4"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (4, "hello\n"));
    assert_eq!(place.words("exec span-1 -- /nonexistent").code, 127);

    let begin = Instant::now();
    let ran = place.words("down --json");
    assert_eq!(ran.stdout, "{\"name\":\"span-1\",\"state\":\"ended\"}\n");
    assert!(begin.elapsed() < Duration::from_millis(END_MS_MAX));
    // Not later: `down` returns when it is done.
    assert!(place.left().is_empty());
}

#[test]
fn questions_do_not_pile_up_at_a_node_that_is_slow_to_answer() {
    let place = Place::new();
    let answers = place.path("answers");
    let name = place.detached(&format!(
        "--nodes a,b --append fake.answers={}",
        answers.display()
    ));
    let asked = |count: usize| {
        let log = place.words("logs").stdout;
        assert_eq!(log.matches("asked for counters").count(), count, "{log}");
    };
    for _ in 0..3 {
        assert_eq!(place.status(&name)["nodes"][0]["pages_in"], 0);
    }
    asked(2);
    std::fs::write(answers, "").unwrap();
    wait_until("the nodes answer", || {
        let status = place.status(&name);
        status["nodes"][0]["pages_in"] == 5 && status["nodes"][1]["pages_in"] == 6
    });
    assert_eq!(place.words("down").code, 0);
}

#[test]
fn status_says_where_everything_is() {
    let place = Place::new();
    let name = place.detached("--nodes a,b --cpus a=2 --mem a=64M,b=128M --name one");
    let status = place.status(&name);
    assert_eq!(status["name"], "one");
    assert_eq!(status["state"], "running");
    assert_eq!(status["kernel"], "0.0.0-fake");
    let started = status["started"].as_str().unwrap();
    assert!(started.len() == 20 && started.ends_with('Z'), "{started}");
    let (a, b) = (&status["nodes"][0], &status["nodes"][1]);
    assert_eq!((&a["name"], &a["address"]), (&"a".into(), &"local".into()));
    assert_eq!(
        a["cpus"][1],
        serde_json::json!({ "cpu": 1, "tid": a["pid"].as_i64().unwrap() + 1 })
    );
    assert_eq!(b["cpus"][0]["cpu"], 2);
    assert_eq!(b["mem_mib"], 128);
    assert_eq!(b["resident_mib"], 10);
    assert_eq!(
        a["faults"],
        serde_json::json!({ "read": 1, "write": 2, "upgrade": 3, "local": 4 })
    );
    assert_eq!(
        (&a["pages_in"], &b["pages_in"], &b["pages_out"]),
        (&5.into(), &6.into(), &6.into())
    );
    let exe = std::fs::read_link(format!("/proc/{}/exe", a["pid"])).unwrap();
    assert_eq!(exe.file_name().unwrap(), "linux");

    let table = place.words("status").stdout;
    assert!(
        table.contains("128 MiB") && table.contains("0-1"),
        "{table}"
    );
    let list: serde_json::Value = serde_json::from_str(&place.words("list --json").stdout).unwrap();
    assert_eq!(list[0]["name"], "one");
    assert_eq!(place.words("down one").code, 0);
}

#[test]
fn the_log_shows_every_nodes_lines_and_can_be_followed() {
    let place = Place::new();
    place.detached("--nodes a,b");
    let log = place.words("logs").stdout;
    assert!(
        log.lines().any(|line| line.starts_with("a: Linux version")),
        "{log}"
    );
    assert!(
        log.lines().any(|line| line.starts_with("b: Linux version")),
        "{log}"
    );
    let json = place.words("logs --json").stdout;
    let first: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert!(first["line"].as_str().unwrap().starts_with("Linux version"));

    let mut follow = place.coordinator().args(["logs", "-f"]).spawn().unwrap();
    assert_eq!(place.words("exec -- fake-log 3").code, 0);
    let mut text = String::new();
    let mut out = follow.stdout.take().unwrap();
    while !text.contains("a: line 2") {
        let mut buffer = [0; 1024];
        let bytes = out.read(&mut buffer).unwrap();
        assert!(bytes > 0, "{text}");
        text += &String::from_utf8_lossy(&buffer[..bytes]);
    }
    assert_eq!(place.words("down").code, 0);
    assert!(follow.wait().unwrap().success());
}

#[test]
fn several_terminals_share_the_console() {
    let place = Place::new();
    place.detached("--nodes a");
    let attach = || {
        place
            .coordinator()
            .args(["console"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let read_until = |child: &mut std::process::Child, mark: &str| {
        let mut text = String::new();
        while !text.contains(mark) {
            let mut byte = [0];
            assert_eq!(
                child.stdout.as_mut().unwrap().read(&mut byte).unwrap(),
                1,
                "{text}"
            );
            text.push(byte[0] as char);
        }
    };
    let (mut first, mut second) = (attach(), attach());
    first
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"x=from-first; echo \"<$x>\"\n")
        .unwrap();
    read_until(&mut first, "<from-first>");
    read_until(&mut second, "<from-first>");
    second
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"echo \"[$x]\"\n")
        .unwrap();
    read_until(&mut first, "[from-first]");
    read_until(&mut second, "[from-first]");

    // One leaves by key, the shell stays and shows a third what happened last.
    first.stdin.as_mut().unwrap().write_all(b"\x1d").unwrap();
    let left = first.wait_with_output().unwrap();
    assert!(left.status.success());
    let said = String::from_utf8_lossy(&left.stderr).into_owned();
    assert!(
        said.contains("Ctrl-] detaches") && said.contains("detached from"),
        "{said}"
    );
    let mut third = attach();
    read_until(&mut third, "[from-first]");

    // Kept open: the end of its input would detach a terminal.
    let (mut second_stdin, _third_stdin) = (second.stdin.take().unwrap(), third.stdin.take());
    second_stdin.write_all(b"exit 6\n").unwrap();
    assert_eq!(second.wait().unwrap().code(), Some(6));
    assert_eq!(third.wait().unwrap().code(), Some(6));
    assert_eq!(place.words("down").code, 0);
}

#[test]
fn a_session_whose_user_goes_away_is_hung_up_on() {
    let place = Place::new();
    place.detached("--nodes a");
    let mark = place.path("alive");
    let script = format!(
        "trap 'rm {0}; exit' HUP; touch {0}; while :; do sleep 0.01; done",
        mark.display()
    );
    let mut exec = place
        .coordinator()
        .args(["exec", "--", "sh", "-c", &script])
        .spawn()
        .unwrap();
    wait_until("the command runs", || mark.exists());
    kill(exec.id() as i32, libc::SIGKILL);
    exec.wait().unwrap();
    wait_until("the command is hung up on", || !mark.exists());
    assert_eq!(place.words("down").code, 0);
}

#[test]
fn a_failed_start_is_told_to_the_caller() {
    let place = Place::new();
    let ran = place.words("up --detach --nodes a --cpus 2 --append fake.cpus=1");
    assert_eq!((ran.code, ran.stdout.as_str()), (125, ""));
    assert!(
        ran.line().contains("only 1 of 2 CPUs came online"),
        "{ran:?}"
    );
}

#[test]
fn a_caller_that_goes_away_takes_the_start_with_it() {
    let place = Place::new();
    let arguments = [
        "up",
        "--detach",
        "--nodes",
        "a,b",
        "--append",
        "fake.hang=boot",
    ];
    let mut caller = place.coordinator().args(arguments).spawn().unwrap();
    wait_until("guest processes run", || place.processes().len() >= 6);
    let begin = Instant::now();
    kill(caller.id() as i32, libc::SIGINT);
    caller.wait().unwrap();
    place.gone_since(begin);
}

#[test]
fn a_name_is_needed_only_among_several() {
    let place = Place::new();
    let ran = place.words("status");
    assert_eq!((ran.code, ran.line()), (2, "coordinator: no guest runs"));
    place.detached("--nodes a --name one");
    place.detached("--nodes a --name two");
    let ran = place.words("status");
    assert_eq!(ran.code, 2);
    assert!(ran.line().contains("name one: one, two"), "{ran:?}");
    let ran = place.words("exec three -- true");
    assert_eq!(ran.code, 2);
    assert!(ran.line().contains("three"), "{ran:?}");
    let ran = place.words("up --nodes a --name one -- true");
    assert_eq!(ran.code, 2);
    assert!(ran.line().contains("--name one"), "{ran:?}");
    assert_eq!(place.words("down one").code, 0);
    assert_eq!(place.words("down").code, 0);
}
