//! Whatever a peer sends is refused or understood, and never more than that.
//!
//! [`stream`] is what the fuzz target in `fuzz/` feeds, and what the tests below feed a bounded number
//! of frames from one seed. It reads bytes as the pager reads a connection, and goes on with what
//! decodes as the pager does: page messages to the coherence engine, host calls to their own decoder.

use crate::hostcall;
use crate::ipi::Call;
use crate::pager::wire::{self, Frame, HEADER_BYTES};
use bytes::Bytes;
use dsm::{Access, Config, Effect, Engine, Initial, NodeId, PageId};

const NODES: u16 = 3;
const PAGES: u32 = 4;

/// What became of the frames of a stream.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Not a frame.
    pub refused: u64,
    pub decoded: u64,
    /// Page messages that the engine took.
    pub believed: u64,
    /// Host calls that make sense.
    pub calls: u64,
}

/// Reads `bytes` as one peer's stream after the other, until there is no whole frame left. As on a
/// connection, a frame that is refused ends its stream; the next one begins behind it.
///
/// # Panics
/// When something is decoded in two ways, or what decodes it, or takes it, panics.
pub fn stream(mut bytes: &[u8]) -> Tally {
    let mut tally = Tally::default();
    let mut engine = engine();
    while let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() {
        bytes = rest;
        let header = wire::header(header);
        let Ok(len) = header.payload_len() else {
            tally.refused += 1;
            continue;
        };
        let Some((payload, rest)) = bytes.split_at_checked(len) else {
            break;
        };
        bytes = rest;
        match wire::decode(&header, Bytes::copy_from_slice(payload)) {
            Err(_) => tally.refused += 1,
            Ok(frame) => {
                tally.decoded += 1;
                check_encoding(&frame, header.clock_ns());
                take(&mut engine, frame, header.clock_ns(), &mut tally);
            }
        }
    }
    tally
}

/// What was understood is understood in the same way when it is passed on.
fn check_encoding(frame: &Frame, clock_ns: u64) {
    let (header, payload) = wire::encode(frame.clone(), clock_ns);
    let bytes = header.delayed(0);
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>().map(wire::header) else {
        panic!("a frame shorter than its header: {frame:?}")
    };
    let payload = payload.unwrap_or_default();
    assert_eq!(header.clock_ns(), clock_ns);
    assert_eq!(header.payload_len().ok(), Some(payload.len()));
    assert_eq!(wire::decode(&header, payload).ok().as_ref(), Some(frame));
}

fn take(engine: &mut Engine<Bytes>, frame: Frame, now_ns: u64, tally: &mut Tally) {
    match frame {
        Frame::Page(message) => {
            // Often the one node that may say this, sometimes another.
            let from = match now_ns % 4 {
                0 => NodeId((now_ns >> 2) as u16 % NODES),
                _ => message.request.node,
            };
            let taken = engine.handle_message(now_ns >> 8, from, message);
            tally.believed += u64::from(taken.is_ok());
            while let Some(effect) = engine.poll_effect() {
                if let Effect::Protect { page, .. } = effect {
                    engine.protected(now_ns >> 8, page);
                }
            }
        }
        Frame::HostCall { request, .. } => {
            tally.calls += u64::from(hostcall::check_request(&request));
        }
        Frame::HostReply { reply, .. } => hostcall::check_reply(&reply),
        _ => {}
    }
}

/// Node 0: home of half of the pages, with a request for one of the others under way.
fn engine() -> Engine<Bytes> {
    let mut config = Config::new(NodeId(0), NODES, PAGES);
    config.homes = vec![(PageId(0), NodeId(0)), (PageId(PAGES / 2), NodeId(1))];
    config.initial = vec![(PageId(0), Initial::Owned(NodeId(0)))];
    config.retransmit_ns = None;
    config.migratory = true;
    let engine = Engine::new(config);
    let Ok(mut engine) = engine else {
        panic!("a valid configuration")
    };
    engine.request(0, PageId(PAGES - 1), Access::Write, 1);
    engine
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::PAGE_BYTES;
    use dsm::{Body, Kind, Message, NodeSet, RequestId, State};
    use fastrand::Rng;

    /// Streams, of up to [`FRAMES`] frames each.
    const STREAMS: u64 = 20_000;
    const FRAMES: usize = 12;

    fn message(rng: &mut Rng) -> Message<Bytes> {
        let states = [
            State::Invalid,
            State::Shared,
            State::Exclusive,
            State::Modified,
        ];
        let (state, urgency) = (states[rng.usize(..4)], rng.u16(..));
        let acks = NodeSet([rng.u64(..8)]);
        let kind = match rng.u8(..7) {
            0 => Kind::Get {
                access: [Access::Read, Access::Write][rng.usize(..2)],
                have_copy: rng.bool(),
                urgency,
            },
            1 => Kind::Forward {
                state,
                acks,
                urgency,
            },
            2 => Kind::Invalidate { urgency },
            3 => Kind::Hurry { urgency },
            4 => Kind::Grant {
                state,
                acks,
                clean: rng.bool(),
            },
            5 => Kind::InvalidateAck,
            _ => Kind::Done {
                state,
                clean: rng.bool(),
            },
        };
        Message {
            epoch: 0,
            page: PageId(rng.u32(..PAGES)),
            request: RequestId {
                node: NodeId(rng.u16(..NODES)),
                seq: rng.u64(..6),
            },
            txn: rng.u64(..6),
            floor: rng.u64(..3),
            body: match (&kind, rng.u8(..3)) {
                (Kind::Grant { .. }, 0) => Body::Full(Bytes::from(vec![rng.u8(..); PAGE_BYTES])),
                (Kind::Grant { .. }, 1) => Body::Zero,
                _ => Body::None,
            },
            kind,
        }
    }

    fn frame(rng: &mut Rng) -> Frame {
        let (a, b, c) = (rng.u64(..), rng.u64(..), rng.u64(..));
        match rng.u8(..24) {
            0 => Frame::Hello {
                node: a as u16,
                boot: b,
            },
            1 => Frame::Ipi {
                cpu: a as u16,
                vector: u32::from(b as u16),
            },
            2 => Frame::StartCpu {
                ticket: a,
                cpu: b as u16,
                sigset: c,
            },
            3 => Frame::CpuRun { cpu: a as u16 },
            4 => Frame::VmDrop {
                ticket: a,
                start: b,
                end: c,
            },
            5 => Frame::StubKick { ticket: a, slot: b },
            6 => Frame::StubKill { slot: a },
            7 => Frame::HostCall {
                ticket: a,
                request: hostcall::a_request(b as u16, &[1; 40][..(c % 40) as usize]).into(),
            },
            8 => Frame::HostReply {
                ticket: a,
                reply: Bytes::from(vec![0; (c % 40) as usize]),
            },
            9 => Frame::Done {
                ticket: a,
                result: b,
            },
            10 => Frame::ClockPing { ticket: a },
            11 => Frame::ClockPong {
                ticket: a,
                clock_ns: b,
            },
            13 => Frame::Settle { ticket: a },
            12 => Frame::Call {
                cpu: a as u16,
                call: Call {
                    kind: a as u32,
                    from: b as u32,
                    data: a,
                    function: b,
                    info: c,
                },
            },
            _ => Frame::Page(message(rng)),
        }
    }

    fn encoded(rng: &mut Rng) -> Vec<u8> {
        let (header, payload) = wire::encode(frame(rng), rng.u64(..));
        let header = header.delayed(rng.u64(..));
        [&header[..], &payload.unwrap_or_default()].concat()
    }

    fn sum(streams: impl Iterator<Item = Vec<u8>>) -> Tally {
        let mut sum = Tally::default();
        for bytes in streams {
            let tally = stream(&bytes);
            sum.refused += tally.refused;
            sum.decoded += tally.decoded;
            sum.believed += tally.believed;
            sum.calls += tally.calls;
        }
        println!("{sum:?}");
        sum
    }

    #[test]
    fn noise_is_refused_or_understood() {
        let mut rng = Rng::with_seed(1);
        let noise = (0..STREAMS).map(|_| {
            let mut bytes = vec![0; rng.usize(..FRAMES * HEADER_BYTES)];
            rng.fill(&mut bytes);
            for frame in bytes.chunks_mut(HEADER_BYTES) {
                // Else the length alone gets nearly everything refused.
                if frame.len() > 4 && rng.bool() {
                    frame[..4].fill(0);
                    frame[4] = rng.u8(..32);
                }
            }
            bytes
        });
        let tally = sum(noise);
        assert!(
            tally.refused > 10_000 && tally.decoded > 10_000,
            "proves too little"
        );
    }

    #[test]
    fn damaged_frames_are_refused_or_understood() {
        let mut rng = Rng::with_seed(2);
        let damaged = (0..STREAMS).map(|_| {
            let mut bytes = Vec::new();
            for _ in 0..rng.usize(1..=FRAMES) {
                bytes.extend(encoded(&mut rng));
            }
            for _ in 0..rng.usize(..4) {
                let at = rng.usize(..bytes.len());
                match rng.u8(..4) {
                    0 => bytes[at] = rng.u8(..),
                    1 => bytes[at] ^= 1 << rng.u8(..8),
                    2 => bytes.truncate(at + 1),
                    _ => drop(bytes.drain(at..(at + rng.usize(1..9)).min(bytes.len()))),
                }
                if bytes.is_empty() {
                    break;
                }
            }
            bytes
        });
        let tally = sum(damaged);
        assert!(
            tally.refused > 1_000 && tally.decoded > 50_000,
            "proves too little"
        );
        assert!(
            tally.believed > 1_000 && tally.calls > 100,
            "proves too little"
        );
    }
}
