//! Every way a guest ends, from inside and from outside.

use crate::harness::{Guest, command, kernel, sh, terminal_command, words};
use span_api::guest::HaltKind;
use span_api::{
    codec,
    session::{FromInit, ToInit, WINDOW_BYTES},
};
use std::time::Duration;

const END: Duration = Duration::from_secs(2);

#[test]
fn poweroff_and_halt_work_without_an_init_system() {
    let Some(kernel) = kernel() else { return };
    for line in [
        "poweroff",
        "halt",
        "shutdown -h now",
        "halt -f",
        "poweroff -f",
    ] {
        let mut guest = Guest::boot(&kernel, &[]);
        let id = guest.begin(command(words(line)));
        let mut exit = None;
        while let Some(message) = guest.next() {
            if let FromInit::Exited {
                id: from,
                exit: how,
            } = message
            {
                assert_eq!(from, id);
                exit = Some(how);
            }
        }
        assert!(guest.expect_end(END).success(), "{line}");
        if !line.ends_with("-f") {
            assert_eq!(exit, Some(span_api::session::Exit::Code(0)), "{line}");
        }
        let kind = if line.starts_with("halt") {
            "System halted"
        } else {
            "Power down"
        };
        assert!(guest.log().contains(kind), "{line}");
    }
}

#[test]
fn what_is_written_last_arrives() {
    let Some(kernel) = kernel() else { return };
    let mut guest = Guest::boot(&kernel, &[]);
    let script = "trap 'echo told; exit 4' TERM; echo last words; poweroff; \
                  while :; do :; done";
    let id = guest.begin(command(sh(script)));
    let mut output = Vec::new();
    let (mut code, mut announced) = (None, false);
    while let Some(message) = guest.next() {
        match message {
            FromInit::Stdout { data, .. } => output.extend_from_slice(&data),
            FromInit::Exited { id: from, exit } if from == id => {
                code = Some(crate::harness::code(exit));
            }
            // Said before anything that follows from it.
            FromInit::Ending(kind) => {
                assert_eq!((kind, code), (HaltKind::PowerOff, None));
                assert!(!output.ends_with(b"told\n"));
                announced = true;
            }
            other => panic!("expected the session's, not {other:?}"),
        }
    }
    assert!(announced);
    assert_eq!(String::from_utf8_lossy(&output), "last words\ntold\n");
    assert_eq!(code, Some(4));
    assert!(guest.expect_end(END).success());
}

#[test]
fn processes_that_do_not_want_to_end_are_killed() {
    let Some(kernel) = kernel() else { return };
    let mut guest = Guest::boot(&kernel, &[]);
    let id = guest.begin(command(sh(
        "trap '' TERM HUP; echo up; while :; do sleep 1; done",
    )));
    guest.expect_output(id, "up");
    let shell = guest.begin(terminal_command(words("bash --norc -i"), 24, 80));
    guest.send(&ToInit::Stdin {
        id: shell,
        data: b"echo $((40+2))\n".to_vec(),
    });
    guest.expect_output(shell, "42\r\n");
    guest.power_off();
}

#[test]
fn the_end_of_the_channel_ends_the_guest() {
    let Some(kernel) = kernel() else { return };
    let mut guest = Guest::boot(&kernel, &[]);
    guest.begin(command(words("sleep 1000")));
    guest.close_channel();
    assert!(guest.expect_end(END).success());
}

#[test]
fn a_peer_that_breaks_the_protocol_ends_the_guest() {
    let Some(kernel) = kernel() else { return };
    let too_long = vec![0xff; 4];
    let unknown = {
        let mut frame = codec::encode(&ToInit::PowerOff).unwrap();
        *frame.last_mut().unwrap() = 200;
        frame
    };
    let truncated = codec::encode(&ToInit::StdinEnd { id: 1 }).unwrap()[..5].to_vec();
    let start = |id| {
        codec::encode(&ToInit::Start {
            id,
            command: command(words("cat")),
        })
        .unwrap()
    };
    let twice = [start(7), start(7)].concat();
    let credit = codec::encode(&ToInit::Credit { id: 7, bytes: 1 }).unwrap();
    let unsent = [start(7), credit].concat();
    let data = codec::encode(&ToInit::Stdin {
        id: 7,
        data: vec![0; 40_000],
    })
    .unwrap();
    let excess = [start(7), data].concat();
    let cases = [
        (
            too_long,
            "malformed frame: frame of 4294967295 bytes is longer",
        ),
        (unknown, "malformed frame: frame does not decode"),
        (truncated, "the channel ended inside a frame"),
        (twice, "session 7: started twice"),
        (unsent, "session 7: credit for output that was not sent"),
        (excess, "session 7: input beyond the window"),
    ];
    for (bytes, complaint) in cases {
        let mut guest = Guest::boot(&kernel, &["span.root=none"]);
        guest.send_raw(&bytes);
        if complaint.contains("ended inside") {
            guest.close_channel();
        }
        assert!(guest.expect_end(END).success(), "{complaint}");
        let log = guest.log();
        assert!(log.contains(complaint), "{complaint}:\n{log}");
        assert!(log.contains("Power down"), "{complaint}");
    }
}

#[test]
fn an_end_does_not_wait_for_a_reader_that_is_away() {
    let Some(kernel) = kernel() else { return };
    let mut guest = Guest::boot(&kernel, &[]);
    let id = guest.begin(command(words("head -c 9000000 /dev/zero")));
    let mut received = 0;
    while received < WINDOW_BYTES as usize {
        if let Some(FromInit::Stdout { id: from, data }) = guest.next() {
            assert_eq!(from, id);
            received += data.len();
        }
    }
    guest.power_off();
}
