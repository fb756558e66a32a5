//! Requests as peers may send them, and the list of symbols.

use super::guest;
use crate::hostcall::exec::Op;
use crate::hostcall::serve;
use crate::hostcall::wire::{DATA_MAX, REPLY_HEADER, REQUEST_HEADER, Reply, Request};
use std::collections::BTreeSet;

fn answer(request: &[u8]) -> Reply {
    let mut reply = vec![1, 2, 3];
    serve(request, &mut reply);
    Reply::decode(&reply, DATA_MAX).expect("every reply can be read")
}

fn request(op: Op, args: [i64; 6], input: &[u8], output_cap: usize) -> Vec<u8> {
    let header = Request {
        op,
        args,
        input_len: input.len(),
        output_cap,
    }
    .encode();
    [&header[..], input].concat()
}

#[test]
fn headers_survive_the_wire() {
    for &op in Op::ALL {
        let sent = Request {
            op,
            args: [-1, i64::MAX, i64::MIN, 0, 7, 9],
            input_len: 3,
            output_cap: 5,
        };
        let bytes = [&sent.encode()[..], b"abc"].concat();
        assert_eq!(Request::decode(&bytes), Some((sent, &b"abc"[..])));
        for cut in 0..bytes.len() {
            assert_eq!(Request::decode(&bytes[..cut]), None);
        }
    }
    let reply = Reply {
        result: -1,
        errno: libc::EIO,
        output_len: 2,
    };
    let bytes = [&reply.encode()[..], b"xy"].concat();
    assert_eq!(Reply::decode(&bytes, 2), Some(reply));
    assert_eq!(Reply::decode(&bytes, 1), None);
    assert_eq!(Reply::decode(&bytes[..bytes.len() - 1], 2), None);
    assert_eq!(Reply::decode(&bytes[..REPLY_HEADER - 1], 2), None);
}

#[test]
fn malformed_requests_are_answered() {
    guest::run(0, || {});
    let good = request(Op::PathAccess, [0; 6], b"/nonexistent\0", 0);
    assert_eq!(answer(&good).errno, libc::ENOENT);
    let refused = |request: &[u8]| {
        let reply = answer(request);
        (reply.result, reply.errno, reply.output_len) == (-1, libc::EINVAL, 0)
    };
    for cut in 0..REQUEST_HEADER + 1 {
        assert!(refused(&good[..cut]));
    }
    // No NUL, a NUL in the middle, lengths that are not true, operations that do not exist.
    assert!(refused(&request(
        Op::PathAccess,
        [0; 6],
        b"/nonexistent",
        0
    )));
    assert!(refused(&request(
        Op::PathAccess,
        [0; 6],
        b"/non\0existent\0",
        0
    )));
    assert!(refused(&request(Op::PathAccess, [0; 6], b"", 0)));
    assert!(refused(&request(Op::PathLink, [0; 6], b"/only one\0", 0)));
    for (at, value) in [(0, 0xff), (2, 1), (4, 77), (7, 0x10), (11, 0x10), (12, 1)] {
        let mut bad = good.clone();
        bad[at] = value;
        assert!(refused(&bad), "byte {at}");
    }
    // Structures that are too short, capacities that do not hold the answer.
    assert!(refused(&request(Op::TtySet, [0; 6], &[0; 10], 0)));
    assert!(refused(&request(
        Op::Times,
        [-1, 0, 0, 0, 0, 0],
        &[0; 31],
        0
    )));
    assert!(refused(&request(Op::Stat, [-1, 0, 0, 0, 0, 0], &[], 10)));
    assert!(refused(&request(
        Op::Lock,
        [-1, 6, 0, 0, 0, 0],
        &[0; 10],
        100
    )));
    assert!(refused(&request(Op::Poll, [-1, 0, 0, 0, 0, 0], &[0; 9], 9)));
    assert!(refused(&request(
        Op::PathMkstemp,
        [0; 6],
        b"/tmp/xXXXXXX\0",
        2
    )));
    let most = i64::MAX;
    assert!(refused(&request(
        Op::Receive,
        [-1, 0, most, most, most, 0],
        &[],
        1000
    )));
    assert!(refused(&request(
        Op::Receive,
        [-1, 0, -1, 0, 0, 0],
        &[],
        1000
    )));
    assert!(refused(&request(
        Op::Send,
        [-1, 0, most, 0, 0, 0],
        &[0; 100],
        0
    )));
    assert!(refused(&request(
        Op::Send,
        [-1, 0, 0, -5, 0, 0],
        &[0; 100],
        0
    )));
}

/// Every operation with descriptors and strings that name nothing, in all kinds of sizes.
#[test]
fn no_request_does_harm() {
    guest::run(0, || {});
    for &op in Op::ALL {
        for len in [0, 1, 7, 8, 32, 36, 60, 144, 256, 4096] {
            for cap in [0, 1, 16, 144, 4096] {
                for fill in [0_u8, 0xff] {
                    for arg in [-1, i64::MAX, i64::MIN, 1 << 40] {
                        // Not the calls that make something of nothing, or wait.
                        let made = matches!(op, Op::Socket | Op::Poll | Op::PathGetcwd);
                        if !made {
                            let args = [-1, arg, arg, arg, arg, arg];
                            let reply = answer(&request(op, args, &vec![fill; len], cap));
                            assert!(reply.output_len <= cap);
                            assert!(reply.result <= 0, "{op:?} {len} {cap} {arg}");
                        }
                    }
                }
            }
        }
    }
}

/// `kernel/host-calls.txt` and the wrappers in this module are the same set.
#[test]
fn the_list_is_complete() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../");
    let list = std::fs::read_to_string(format!("{root}kernel/host-calls.txt")).unwrap();
    let listed: BTreeSet<String> = list
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (symbol, class) = (words.next()?, words.next()?);
            matches!(class, "forward" | "bounce").then(|| symbol.to_owned())
        })
        .collect();
    let mut wrapped = BTreeSet::new();
    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/src/hostcall");
    for entry in std::fs::read_dir(sources).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let source = std::fs::read_to_string(path).unwrap();
            for (at, _) in source.match_indices("extern \"C\" fn __wrap_") {
                let name = &source[at + "extern \"C\" fn __wrap_".len()..];
                wrapped.insert(name[..name.find('(').unwrap()].to_owned());
            }
        }
    }
    assert_eq!(listed, wrapped);
}
