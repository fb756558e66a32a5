//! What the runtimes of a guest say to each other: a fixed header, then a payload.
//!
//! The header is the same for every message; which of its words mean something depends on the kind.
//! Everything that arrives is checked here: what passes has a known kind, a payload of the right
//! length, and a page inside guest memory is checked by the engine.

use crate::image::PAGE_BYTES;
use crate::ipi::Call;
use bytes::Bytes;
use dsm::{Access, Body, Kind, Message, NodeId, NodeSet, PageId, RequestId, State};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Longest payload: a host call's data and its header.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 128 * 1024;

pub(crate) const HEADER_BYTES: usize = size_of::<Header>();

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Header {
    payload_len: U32,
    kind: u8,
    body: u8,
    state: u8,
    flags: u8,
    page: U32,
    epoch: U32,
    requester: U32,
    urgency: U32,
    sequence: U64,
    transaction: U64,
    floor: U64,
    nodes: U64,
    clock_ns: U64,
    planned_ns: U64,
}

/// A message between runtimes. `ticket` names a request of the sender's that waits for the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    Page(Message<Bytes>),
    /// First on every connection: who speaks, and the identity of its host's clock.
    Hello {
        node: u16,
        boot: u64,
    },
    Ipi {
        cpu: u16,
        vector: u32,
    },
    /// An interrupt that says what to do.
    Call {
        cpu: u16,
        call: Call,
    },
    StartCpu {
        ticket: u64,
        cpu: u16,
        sigset: u64,
    },
    CpuRun {
        cpu: u16,
    },
    VmDrop {
        ticket: u64,
        start: u64,
        end: u64,
    },
    /// To be answered, behind everything that was sent before.
    Settle {
        ticket: u64,
    },
    StubKick {
        ticket: u64,
        slot: u64,
    },
    StubKill {
        slot: u64,
    },
    HostCall {
        ticket: u64,
        request: Bytes,
    },
    HostReply {
        ticket: u64,
        reply: Bytes,
    },
    /// Answers `StartCpu`, `VmDrop`, `Settle` and `StubKick`.
    Done {
        ticket: u64,
        result: u64,
    },
    ClockPing {
        ticket: u64,
    },
    ClockPong {
        ticket: u64,
        clock_ns: u64,
    },
    /// To see what the link takes; the last of a row is answered.
    Probe {
        ticket: u64,
        last: bool,
        payload: Bytes,
    },
    Probed {
        ticket: u64,
        arrived_ns: u64,
    },
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("message kind {0} is unknown")]
    Kind(u8),
    #[error("message of kind {kind} has {len} bytes of payload")]
    Payload { kind: u8, len: usize },
    #[error("message of kind {kind} has an unknown {what}")]
    Value { kind: u8, what: &'static str },
}

const GET: u8 = 1;
const FORWARD: u8 = 2;
const INVALIDATE: u8 = 3;
const GRANT: u8 = 4;
const INVALIDATE_ACK: u8 = 5;
const PAGE_DONE: u8 = 6;
const HURRY: u8 = 7;
const EVICT: u8 = 8;
const RECALL: u8 = 9;
const HELLO: u8 = 16;
const IPI: u8 = 17;
const START_CPU: u8 = 18;
const CPU_RUN: u8 = 19;
const VM_DROP: u8 = 20;
const STUB_KICK: u8 = 21;
const STUB_KILL: u8 = 22;
const HOST_CALL: u8 = 23;
const HOST_REPLY: u8 = 24;
const DONE: u8 = 25;
const CLOCK_PING: u8 = 26;
const CLOCK_PONG: u8 = 27;
const CALL: u8 = 28;
const SETTLE: u8 = 29;
const PROBE: u8 = 30;
const PROBED: u8 = 31;

const BODY_NONE: u8 = 0;
const BODY_ZERO: u8 = 1;
const BODY_FULL: u8 = 2;

const FLAG_WRITE: u8 = 1;
const FLAG_HAVE_COPY: u8 = 2;
const FLAG_CLEAN: u8 = 4;
const FLAG_PAGE: u8 = 8;

impl Header {
    fn new(kind: u8) -> Header {
        let mut header = Header::read_from_bytes(&[0; HEADER_BYTES]).expect("a header of zeroes");
        header.kind = kind;
        header
    }

    /// Length of the payload that follows.
    pub(crate) fn payload_len(&self) -> Result<usize, WireError> {
        match self.payload_len.get() as usize {
            len if len > PAYLOAD_BYTES_MAX => Err(WireError::Payload {
                kind: self.kind,
                len,
            }),
            len => Ok(len),
        }
    }

    /// The sender's guest clock when it sent this.
    pub(crate) fn clock_ns(&self) -> u64 {
        self.clock_ns.get()
    }

    /// By how much the link delays it.
    pub(crate) fn planned_ns(&self) -> u64 {
        self.planned_ns.get()
    }

    /// Ready to send.
    pub(crate) fn delayed(mut self, planned_ns: u64) -> Bytes {
        self.planned_ns.set(planned_ns);
        Bytes::copy_from_slice(self.as_bytes())
    }

    fn state(&self) -> Result<State, WireError> {
        match self.state {
            0 => Ok(State::Invalid),
            1 => Ok(State::Shared),
            2 => Ok(State::Exclusive),
            3 => Ok(State::Modified),
            _ => Err(WireError::Value {
                kind: self.kind,
                what: "page state",
            }),
        }
    }
}

/// The header and payload of a frame.
pub(crate) fn encode(frame: Frame, clock_ns: u64) -> (Header, Option<Bytes>) {
    let mut payload = None;
    let mut header = match frame {
        Frame::Page(message) => {
            let (header, body) = encode_page(message);
            payload = body;
            header
        }
        Frame::Hello { node, boot } => words(HELLO, u64::from(node), boot, 0),
        Frame::Ipi { cpu, vector } => words(IPI, u64::from(cpu), u64::from(vector), 0),
        Frame::Call { cpu, call } => {
            let mut header = words(CALL, call.data, call.function, call.info);
            header.page.set(u32::from(cpu));
            header.requester.set(call.from);
            header.epoch.set(call.kind);
            header
        }
        Frame::StartCpu {
            ticket,
            cpu,
            sigset,
        } => words(START_CPU, ticket, u64::from(cpu), sigset),
        Frame::CpuRun { cpu } => words(CPU_RUN, u64::from(cpu), 0, 0),
        Frame::VmDrop { ticket, start, end } => words(VM_DROP, ticket, start, end),
        Frame::Settle { ticket } => words(SETTLE, ticket, 0, 0),
        Frame::StubKick { ticket, slot } => words(STUB_KICK, ticket, slot, 0),
        Frame::StubKill { slot } => words(STUB_KILL, slot, 0, 0),
        Frame::HostCall { ticket, request } => {
            payload = Some(request);
            words(HOST_CALL, ticket, 0, 0)
        }
        Frame::HostReply { ticket, reply } => {
            payload = Some(reply);
            words(HOST_REPLY, ticket, 0, 0)
        }
        Frame::Done { ticket, result } => words(DONE, ticket, result, 0),
        Frame::ClockPing { ticket } => words(CLOCK_PING, ticket, 0, 0),
        Frame::ClockPong { ticket, clock_ns } => words(CLOCK_PONG, ticket, clock_ns, 0),
        Frame::Probe {
            ticket,
            last,
            payload: bytes,
        } => {
            payload = (!bytes.is_empty()).then_some(bytes);
            words(PROBE, ticket, u64::from(last), 0)
        }
        Frame::Probed { ticket, arrived_ns } => words(PROBED, ticket, arrived_ns, 0),
    };
    header.clock_ns.set(clock_ns);
    let len = payload.as_ref().map_or(0, Bytes::len);
    assert!(len <= PAYLOAD_BYTES_MAX);
    header.payload_len.set(len as u32);
    (header, payload)
}

/// The messages with up to three words share these fields.
fn words(kind: u8, a: u64, b: u64, c: u64) -> Header {
    let mut header = Header::new(kind);
    header.sequence.set(a);
    header.transaction.set(b);
    header.floor.set(c);
    header
}

fn encode_page(message: Message<Bytes>) -> (Header, Option<Bytes>) {
    let mut flags = 0;
    let mut state = State::Invalid;
    let mut nodes = NodeSet::EMPTY;
    let mut urgency = 0;
    let kind = match message.kind {
        Kind::Get {
            access,
            have_copy,
            urgency: u,
        } => {
            urgency = u;
            flags |= if access == Access::Write {
                FLAG_WRITE
            } else {
                0
            };
            flags |= if have_copy { FLAG_HAVE_COPY } else { 0 };
            GET
        }
        Kind::Forward {
            state: to,
            acks,
            urgency: u,
        } => {
            (state, nodes, urgency) = (to, acks, u);
            FORWARD
        }
        Kind::Invalidate { urgency: u } => {
            urgency = u;
            INVALIDATE
        }
        Kind::Hurry { urgency: u } => {
            urgency = u;
            HURRY
        }
        Kind::Grant {
            state: to,
            acks,
            clean,
        } => {
            (state, nodes) = (to, acks);
            flags |= if clean { FLAG_CLEAN } else { 0 };
            GRANT
        }
        Kind::InvalidateAck => INVALIDATE_ACK,
        Kind::Done { state: to, clean } => {
            state = to;
            flags |= if clean { FLAG_CLEAN } else { 0 };
            PAGE_DONE
        }
        Kind::Evict => EVICT,
        Kind::Recall { page, urgency: u } => {
            urgency = u;
            flags |= if page { FLAG_PAGE } else { 0 };
            RECALL
        }
    };
    let mut header = words(kind, message.request.seq, message.txn, message.floor);
    header.flags = flags;
    header.urgency.set(u32::from(urgency));
    header.state = state as u8;
    let [word] = nodes.0;
    header.nodes.set(word);
    header.page.set(message.page.0);
    header.epoch.set(message.epoch);
    header.requester.set(u32::from(message.request.node.0));
    let (body, payload) = match message.body {
        Body::None => (BODY_NONE, None),
        Body::Zero => (BODY_ZERO, None),
        Body::Full(bytes) => (BODY_FULL, Some(bytes)),
    };
    header.body = body;
    (header, payload)
}

/// The header at the start of a message.
pub(crate) fn header(bytes: &[u8; HEADER_BYTES]) -> Header {
    Header::read_from_bytes(bytes).expect("a header's length")
}

/// Decodes a message whose payload has the announced length.
pub(crate) fn decode(header: &Header, payload: Bytes) -> Result<Frame, WireError> {
    let kind = header.kind;
    let len = payload.len();
    let (a, b, c) = (
        header.sequence.get(),
        header.transaction.get(),
        header.floor.get(),
    );
    let small =
        |value: u64, what| u16::try_from(value).map_err(|_| WireError::Value { kind, what });
    if len != 0 && !matches!(kind, GRANT | PAGE_DONE | HOST_CALL | HOST_REPLY | PROBE) {
        return Err(WireError::Payload { kind, len });
    }
    Ok(match kind {
        GET..=RECALL => Frame::Page(decode_page(header, payload)?),
        HELLO => Frame::Hello {
            node: small(a, "node")?,
            boot: b,
        },
        IPI => Frame::Ipi {
            cpu: small(a, "CPU")?,
            vector: u32::from(small(b, "vector")?),
        },
        CALL => Frame::Call {
            cpu: small(header.page.get().into(), "CPU")?,
            call: Call {
                kind: header.epoch.get(),
                from: header.requester.get(),
                data: a,
                function: b,
                info: c,
            },
        },
        START_CPU => Frame::StartCpu {
            ticket: a,
            cpu: small(b, "CPU")?,
            sigset: c,
        },
        CPU_RUN => Frame::CpuRun {
            cpu: small(a, "CPU")?,
        },
        SETTLE => Frame::Settle { ticket: a },
        VM_DROP => Frame::VmDrop {
            ticket: a,
            start: b,
            end: c,
        },
        STUB_KICK => Frame::StubKick { ticket: a, slot: b },
        STUB_KILL => Frame::StubKill { slot: a },
        HOST_CALL => Frame::HostCall {
            ticket: a,
            request: payload,
        },
        HOST_REPLY => Frame::HostReply {
            ticket: a,
            reply: payload,
        },
        DONE => Frame::Done {
            ticket: a,
            result: b,
        },
        CLOCK_PING => Frame::ClockPing { ticket: a },
        CLOCK_PONG => Frame::ClockPong {
            ticket: a,
            clock_ns: b,
        },
        PROBE => Frame::Probe {
            ticket: a,
            last: b != 0,
            payload,
        },
        PROBED => Frame::Probed {
            ticket: a,
            arrived_ns: b,
        },
        _ => return Err(WireError::Kind(kind)),
    })
}

fn decode_page(header: &Header, payload: Bytes) -> Result<Message<Bytes>, WireError> {
    let kind = header.kind;
    let flag = |flag| header.flags & flag != 0;
    let acks = NodeSet([header.nodes.get()]);
    let urgency = u16::try_from(header.urgency.get()).map_err(|_| WireError::Value {
        kind,
        what: "urgency",
    })?;
    let body = match (header.body, payload.len()) {
        (BODY_NONE, 0) => Body::None,
        (BODY_ZERO, 0) => Body::Zero,
        (BODY_FULL, PAGE_BYTES) => Body::Full(payload),
        (BODY_NONE..=BODY_FULL, len) => return Err(WireError::Payload { kind, len }),
        _ => return Err(WireError::Value { kind, what: "body" }),
    };
    let node = u16::try_from(header.requester.get()).map_err(|_| WireError::Value {
        kind,
        what: "requester",
    })?;
    Ok(Message {
        epoch: header.epoch.get(),
        page: PageId(header.page.get()),
        request: RequestId {
            node: NodeId(node),
            seq: header.sequence.get(),
        },
        txn: header.transaction.get(),
        floor: header.floor.get(),
        kind: match kind {
            GET => Kind::Get {
                access: if flag(FLAG_WRITE) {
                    Access::Write
                } else {
                    Access::Read
                },
                have_copy: flag(FLAG_HAVE_COPY),
                urgency,
            },
            FORWARD => Kind::Forward {
                state: header.state()?,
                acks,
                urgency,
            },
            INVALIDATE => Kind::Invalidate { urgency },
            HURRY => Kind::Hurry { urgency },
            GRANT => Kind::Grant {
                state: header.state()?,
                acks,
                clean: flag(FLAG_CLEAN),
            },
            INVALIDATE_ACK => Kind::InvalidateAck,
            PAGE_DONE => Kind::Done {
                state: header.state()?,
                clean: flag(FLAG_CLEAN),
            },
            EVICT => Kind::Evict,
            RECALL => Kind::Recall {
                page: flag(FLAG_PAGE),
                urgency,
            },
            _ => return Err(WireError::Kind(kind)),
        },
        body,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(frame: Frame) -> Frame {
        let (encoded, payload) = encode(frame, 99);
        let bytes = encoded.delayed(7);
        let header = header(bytes.as_ref().try_into().unwrap());
        assert_eq!((header.clock_ns(), header.planned_ns()), (99, 7));
        let payload = payload.unwrap_or_default();
        assert_eq!(header.payload_len().unwrap(), payload.len());
        decode(&header, payload).unwrap()
    }

    #[test]
    fn a_page_message_survives_the_wire() {
        let message = Message {
            epoch: 3,
            page: PageId(77),
            request: RequestId {
                node: NodeId(2),
                seq: 1 << 40,
            },
            txn: 5,
            floor: 4,
            kind: Kind::Grant {
                state: State::Modified,
                acks: NodeSet([6]),
                clean: true,
            },
            body: Body::Full(Bytes::from(vec![7; PAGE_BYTES])),
        };
        match round_trip(Frame::Page(message.clone())) {
            Frame::Page(back) => assert_eq!(back, message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_eviction_survives_the_wire() {
        let end = Kind::Done {
            state: State::Invalid,
            clean: false,
        };
        let recall = |page| Kind::Recall { page, urgency: 7 };
        let full = Body::Full(Bytes::from(vec![7; PAGE_BYTES]));
        for (kind, body) in [
            (Kind::Evict, Body::None),
            (recall(false), Body::None),
            (recall(true), Body::None),
            (end, Body::None),
            (end, Body::Zero),
            (end, full),
        ] {
            let message = Message {
                epoch: 0,
                page: PageId(77),
                request: RequestId {
                    node: NodeId(2),
                    seq: 9,
                },
                txn: 5,
                floor: 4,
                kind,
                body,
            };
            let frame = Frame::Page(message);
            assert_eq!(round_trip(frame.clone()), frame);
        }
    }

    #[test]
    fn a_call_survives_the_wire() {
        let call = Call {
            kind: 1,
            from: 63,
            data: u64::MAX,
            function: 1 << 40,
            info: 3,
        };
        let frame = Frame::Call { cpu: 62, call };
        assert_eq!(round_trip(frame.clone()), frame);
    }

    #[test]
    fn every_unknown_byte_is_refused() {
        for kind in (0..=255u8).filter(|k| !(1..=9).contains(k) && !(16..=31).contains(k)) {
            let header = Header::new(kind);
            assert!(
                matches!(decode(&header, Bytes::new()), Err(WireError::Kind(_))),
                "{kind}"
            );
        }
        let mut header = Header::new(GRANT);
        header.state = 9;
        assert!(decode(&header, Bytes::new()).is_err());
        header.state = 1;
        header.body = BODY_FULL;
        assert!(decode(&header, Bytes::from_static(b"short")).is_err());
        header.payload_len.set(u32::MAX);
        assert!(header.payload_len().is_err());
    }
}
