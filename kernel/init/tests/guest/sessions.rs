//! Commands, streams, credit, terminals, signals.

use crate::harness::{Guest, command, kernel, sh, terminal_command, words};
use sha2::{Digest, Sha256};
use span_api::session::{
    Command, DATA_BYTES_MAX, FromInit, SESSIONS_MAX, ToInit, WINDOW_BYTES, WindowSize,
};
use std::time::{Duration, Instant};

/// What a command may take that has nothing to do: far less than any hang, far more than any load.
const PROMPT: Duration = Duration::from_secs(5);

#[test]
fn commands_run_and_their_ends_are_reported() {
    let Some(kernel) = kernel() else { return };
    let mut guest = Guest::boot(&kernel, &[]);
    eprintln!("boot to Ready with the host's root: {} ms", guest.boot_ms);
    assert_eq!(guest.cpus, 2);

    let outcome = guest.run(words("echo hello world"));
    assert_eq!((outcome.text(), outcome.code), ("hello world\n", 0));
    assert_eq!(guest.run(words("uname -r")).text().trim_end(), guest.kernel);
    assert_eq!(guest.run(words("nproc")).text(), "2\n");
    assert_eq!(guest.run(sh("exit 7")).code, 7);
    assert_eq!(guest.run(sh("kill -KILL $$")).code, 128 + 9);
    assert_eq!(
        guest.run(sh("kill -40 $$")).code,
        128 + 40,
        "a real-time signal"
    );

    let outcome = guest.run(sh("echo out; echo err >&2"));
    assert_eq!(
        (outcome.text(), &outcome.stderr[..]),
        ("out\n", &b"err\n"[..])
    );
    let log = guest.power_off();
    assert!(
        !log.contains("span-init:"),
        "nothing to complain about:\n{log}"
    );
}

#[test]
fn no_console_is_needed() {
    let Some(kernel) = kernel() else { return };
    // With these the kernel has a console for its log and none that can be opened.
    let mut guest = Guest::boot(&kernel, &["stderr=1", "console=stderr0"]);
    let outcome = guest.run(sh("cat; echo err >&2; ls -l /proc/1/fd/0"));
    assert!(
        outcome.text().ends_with("/proc/1/fd/0 -> /dev/null\n"),
        "{outcome:?}"
    );
    assert_eq!(outcome.stderr, b"err\n");
    guest.power_off();
}

#[test]
fn commands_that_cannot_start_say_why() {
    let Some(kernel) = kernel() else { return };
    let mut guest = Guest::boot(&kernel, &[]);
    let outcome = guest.run(words("no-such-program"));
    assert_eq!(outcome.code, 127);
    assert_eq!(outcome.stderr, b"no-such-program: not found");
    let outcome = guest.run(words("/etc/passwd"));
    assert_eq!(outcome.code, 126);
    assert_eq!(outcome.stderr, b"/etc/passwd: Permission denied");
    assert_eq!(guest.run(words("/no/such/program")).code, 127);
    assert_eq!(guest.run(words("/usr")).code, 126);
    assert_eq!(guest.run(vec![b"a\0b".to_vec()]).code, 126);

    let script = "printf 'echo from a script: $1\\n' > /tmp/script; chmod +x /tmp/script";
    assert_eq!(guest.run(sh(script)).code, 0);
    assert_eq!(
        guest.run(words("/tmp/script word")).text(),
        "from a script: word\n"
    );
    guest.power_off();
}

#[test]
fn the_environment_is_what_was_given_and_defaults() {
    let Some(kernel) = kernel() else { return };
    let mut guest = Guest::boot(&kernel, &["span.name=crab"]);
    let given = Command {
        env: vec![
            (b"COLOUR".to_vec(), b"a=b c".to_vec()),
            (b"TERM".to_vec(), b"vt52".to_vec()),
        ],
        directory: b"/usr/bin".to_vec(),
        ..command(words("env"))
    };
    let outcome = guest.run_with(given.clone(), b"");
    let mut variables: Vec<&str> = outcome.text().lines().collect();
    variables.sort_unstable();
    assert_eq!(variables[0], "COLOUR=a=b c");
    assert!(variables[1].starts_with("HOME=/"));
    assert!(variables[2].starts_with("PATH=") && variables[2].ends_with(":/sbin:/bin"));
    assert_eq!(variables[3..], ["TERM=vt52"]);

    let there = Command {
        argv: words("pwd"),
        ..given.clone()
    };
    assert_eq!(guest.run_with(there, b"").text(), "/usr/bin\n");
    let nowhere = Command {
        argv: words("pwd"),
        directory: b"/no/such".to_vec(),
        ..given
    };
    assert_eq!(guest.run_with(nowhere, b"").text(), "/\n");

    assert_eq!(guest.run(words("uname -n")).text(), "crab\n");
    assert_eq!(guest.run(sh("grep -c . /dev/fd/0 < /etc/passwd")).code, 0);
    // Blocked or ignored signals would be inherited by everything.
    let status = guest.run(words("grep -E ^Sig(Blk|Ign) /proc/self/status"));
    assert_eq!(
        status.text(),
        "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"
    );
    let descriptors = guest.run(sh("exec ls /proc/self/fd"));
    assert_eq!(
        descriptors.text(),
        "0\n1\n2\n3\n",
        "3 is the directory itself"
    );
    let loopback = "cat /sys/class/net/lo/flags";
    assert_eq!(guest.run(words(loopback)).text(), "0x9\n", "up");
    guest.power_off();
}

#[test]
fn fifty_megabytes_come_back_unchanged() {
    let Some(kernel) = kernel() else { return };
    let mut guest = Guest::boot(&kernel, &[]);
    let mut state = 1u64;
    let input: Vec<u8> = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 56) as u8
    })
    .take(50_000_000)
    .collect();
    let started = Instant::now();
    let outcome = guest.run_with(command(words("cat")), &input);
    eprintln!("50 MB through cat: {} ms", started.elapsed().as_millis());
    assert_eq!(outcome.code, 0);
    assert_eq!(outcome.stdout.len(), input.len());
    assert_eq!(Sha256::digest(&outcome.stdout), Sha256::digest(&input));
    // A command that reads nothing takes no harm from what it is sent, nor does the sender.
    assert_eq!(
        guest
            .run_with(command(words("true")), &input[..5_000_000])
            .code,
        0
    );
    guest.power_off();
}

#[test]
fn a_session_nobody_reads_holds_up_no_other() {
    let Some(kernel) = kernel() else { return };
    let mut guest = Guest::boot(&kernel, &[]);
    let total = 8_000_000;
    let slow = guest.begin(command(words(&format!("head -c {total} /dev/zero"))));
    let mut received = 0;
    while received < WINDOW_BYTES as usize {
        match guest.next().expect("the guest still runs") {
            FromInit::Stdout { id, data } if id == slow => received += data.len(),
            other => panic!("expected output, not {other:?}"),
        }
    }
    assert_eq!(
        received, WINDOW_BYTES as usize,
        "the window is used up, not more"
    );

    // One that does not read its input does not matter either.
    let deaf = guest.begin(command(words("sleep 1000")));
    for _ in 0..WINDOW_BYTES as usize / DATA_BYTES_MAX {
        guest.send(&ToInit::Stdin {
            id: deaf,
            data: vec![0; DATA_BYTES_MAX],
        });
    }
    let started = Instant::now();
    let second = guest.begin(command(words("echo second")));
    let mut answered = false;
    while !answered {
        match guest.next().expect("the guest still runs") {
            FromInit::Stdout { id, data } if id == second => assert_eq!(data, b"second\n"),
            FromInit::Exited { id, .. } if id == second => answered = true,
            FromInit::Credit { id, bytes } if id == deaf => assert!(bytes < WINDOW_BYTES),
            other => panic!("expected the second session, not {other:?}"),
        }
    }
    assert!(started.elapsed() < PROMPT);

    let mut acknowledged = 0;
    while acknowledged < received {
        let bytes = (received - acknowledged).min(10_000);
        guest.send(&ToInit::Credit {
            id: slow,
            bytes: bytes as u32,
        });
        acknowledged += bytes;
        while received < total && received - acknowledged < WINDOW_BYTES as usize {
            match guest.next().expect("the guest still runs") {
                FromInit::Stdout { id, data } if id == slow => received += data.len(),
                other => panic!("expected output, not {other:?}"),
            }
        }
    }
    assert_eq!(received, total);
    assert_eq!(guest.expect_exit(slow), 0);
    guest.power_off();
}

#[test]
fn a_terminal_has_a_size_and_job_control() {
    let Some(kernel) = kernel() else { return };
    let mut guest = Guest::boot(&kernel, &[]);
    let script = "trap 'stty size' WINCH; tty; stty size; while :; do sleep 0.1; done";
    let id = guest.begin(terminal_command(sh(script), 24, 80));
    let output = guest.expect_output(id, "24 80");
    assert!(output.starts_with("/dev/pts/"), "{output}");
    guest.send(&ToInit::Resize {
        id,
        size: WindowSize {
            rows: 50,
            columns: 132,
        },
    });
    guest.expect_output(id, "50 132");
    guest.send(&ToInit::Stdin {
        id,
        data: b"\x03".to_vec(),
    });
    assert_eq!(
        guest.expect_exit(id),
        128 + 2,
        "Ctrl-C reaches the foreground"
    );

    let outcome = guest.run_with(terminal_command(words("cat"), 24, 80), b"line\nrest");
    assert_eq!(
        outcome.code, 0,
        "the end of input ends it, even within a line"
    );
    assert_eq!(
        outcome.text(),
        "line\r\nrestline\r\nrest",
        "echo, then output"
    );

    // What is written last must not be lost with the terminal.
    let outcome = guest.run_with(terminal_command(words("seq 20000"), 24, 80), b"");
    assert!(outcome.text().ends_with("\r\n19999\r\n20000\r\n"));
    guest.power_off();
}

#[test]
fn a_login_shell_is_the_default_command() {
    let Some(kernel) = kernel() else { return };
    let mut guest = Guest::boot(&kernel, &[]);
    let input = b"echo shell $0 $((6 * 7))\nexit 3\n";
    let outcome = guest.run_with(command(Vec::new()), input);
    assert_eq!(outcome.code, 3);
    let text = outcome.text();
    assert!(
        text.starts_with("shell -") && text.ends_with("sh 42\n"),
        "{text}"
    );
    guest.power_off();
}

#[test]
fn signals_reach_the_whole_process_group() {
    let Some(kernel) = kernel() else { return };
    let mut guest = Guest::boot(&kernel, &[]);
    let id = guest.begin(command(words("sleep 1000")));
    guest.send(&ToInit::Signal {
        id,
        signal: libc::SIGTERM,
    });
    assert_eq!(guest.expect_exit(id), 128 + 15);

    let script = "trap 'exit 9' TERM; sh -c 'trap \"echo inner; exit\" TERM; echo up; \
                  while :; do sleep 0.1; done' & wait; wait";
    let id = guest.begin(command(sh(script)));
    guest.expect_output(id, "up");
    guest.send(&ToInit::Signal {
        id,
        signal: libc::SIGTERM,
    });
    assert_eq!(guest.expect_exit(id), 9);
    // For a session that is gone, or a number that is no signal: nothing.
    guest.send(&ToInit::Signal {
        id,
        signal: libc::SIGTERM,
    });
    let id = guest.begin(command(words("cat")));
    guest.send(&ToInit::Signal { id, signal: 1000 });
    guest.send(&ToInit::Signal { id, signal: -1 });
    guest.send(&ToInit::StdinEnd { id });
    assert_eq!(guest.expect_exit(id), 0);
    guest.power_off();
}

#[test]
fn processes_left_behind_hold_up_nothing() {
    let Some(kernel) = kernel() else { return };
    let mut guest = Guest::boot(&kernel, &[]);
    for terminal in [false, true] {
        let script = "trap '' HUP; (while :; do echo noise; done) & sleep 1000 & \
                      echo started; exit 5";
        let command = match terminal {
            true => terminal_command(sh(script), 24, 80),
            false => command(sh(script)),
        };
        let started = Instant::now();
        let outcome = guest.run_with(command, b"");
        assert!(started.elapsed() < PROMPT);
        assert_eq!(outcome.code, 5);
        assert!(outcome.text().contains("started"), "terminal: {terminal}");
    }
    // Orphans are reaped, whoever started them.
    assert_eq!(
        guest
            .run(sh("for i in 1 2 3 4 5; do (sleep 0.2 &); done"))
            .code,
        0
    );
    let zombies = "sleep 0.6; cat /proc/[0-9]*/stat | grep -c ') Z '";
    assert_eq!(guest.run(sh(zombies)).text(), "0\n");
    guest.power_off();
}

#[test]
fn there_is_a_limit_to_sessions() {
    let Some(kernel) = kernel() else { return };
    let mut guest = Guest::boot(&kernel, &[]);
    let ids: Vec<u32> = (0..SESSIONS_MAX)
        .map(|_| guest.begin(command(words("cat"))))
        .collect();
    let outcome = guest.run(words("true"));
    assert_eq!(outcome.code, 126);
    assert_eq!(outcome.stderr, b"there are 64 sessions already");
    for id in &ids {
        guest.send(&ToInit::StdinEnd { id: *id });
    }
    let mut left = ids.len();
    while left > 0 {
        match guest.next().expect("the guest still runs") {
            FromInit::Exited { .. } => left -= 1,
            other => panic!("expected ends, not {other:?}"),
        }
    }
    assert_eq!(guest.run(words("true")).code, 0);
    guest.power_off();
}
