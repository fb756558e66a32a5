//! Peers that lie: whatever they say, the engine answers with an error or believes them, and
//! never panics.

use crate::script::{Node, PAGE, config, n, request};
use dsm::{
    Access, Body, ConfigError, Effect, Initial, Kind, Message, NodeSet, PageId, ProtocolError,
    State,
};

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % n
    }

    fn state(&mut self) -> State {
        [
            State::Invalid,
            State::Shared,
            State::Exclusive,
            State::Modified,
        ][self.below(4) as usize]
    }

    fn access(&mut self) -> Access {
        [Access::Read, Access::Write][self.below(2) as usize]
    }

    /// Anything, often fitting what is going on: `seen` is the last message the engine has sent,
    /// `txn` a number that the home of the page could have come to.
    fn message(&mut self, seen: &Message<u64>, txn: u64) -> Message<u64> {
        let (state, flag) = (self.state(), self.below(2) == 0);
        let acks = NodeSet([if self.below(4) > 0 { 0 } else { self.below(64) }]);
        let urgency = if self.below(4) == 0 {
            self.below(1 << 16) as u16
        } else {
            0
        };
        let kind = match self.below(9) {
            0 => Kind::Get {
                access: self.access(),
                have_copy: flag,
                urgency,
            },
            1 => Kind::Forward {
                state,
                acks,
                urgency,
            },
            2 => Kind::Invalidate { urgency },
            3 => Kind::Grant {
                state,
                acks,
                clean: flag,
            },
            4 => Kind::InvalidateAck,
            5 => Kind::Done { state, clean: flag },
            6 => Kind::Evict,
            7 => Kind::Recall {
                page: flag,
                urgency,
            },
            _ => Kind::Hurry { urgency },
        };
        let body = match self.below(4) {
            0 => [Body::None, Body::Zero][self.below(2) as usize].clone(),
            _ if matches!(kind, Kind::Grant { .. } | Kind::Done { .. }) => Body::Full(1),
            _ => Body::None,
        };
        Message {
            epoch: u32::from(self.below(50) == 0),
            page: PageId(u32::from(self.below(50) == 0)),
            request: match self.below(3) {
                0 => request(self.below(5) as u16, self.below(100)),
                1 => request(self.below(5) as u16, txn),
                _ => seen.request,
            },
            txn: match self.below(100) {
                0 => u64::MAX - 1,
                1..20 => self.below(12),
                20..50 => seen.txn,
                _ => txn,
            },
            floor: if self.below(2_000) == 0 {
                u64::MAX
            } else {
                self.below(3)
            },
            kind,
            body,
        }
    }
}

fn first() -> Message<u64> {
    crate::script::get(2, 1, Access::Read, false)
}

/// I9. Local users, time and the completion of protections go on meanwhile, as they would.
#[test]
fn lies_never_panic() {
    let (mut refused, mut believed, mut failed) = (0_u64, 0_u64, 0_u64);
    for seed in 0..3_000 {
        let mut rng = Rng(seed * 77 + 1);
        let home = rng.below(2) as u16;
        let initial = match rng.below(3) {
            0 => Initial::Untouched,
            owner => Initial::Owned(n(owner as u16 - 1)),
        };
        let mut config = config(0, home, initial);
        config.retransmit_ns = Some(5_000);
        let mut node = Node::new(config);
        let (mut protecting, mut seen) = (false, first());
        for txn in 1..200 {
            node.now_ns += rng.below(2_000);
            match rng.below(10) {
                0 => node.request(rng.access()),
                1 => node.resumed(),
                2 => node.engine.handle_timeout(node.now_ns),
                3 if protecting => {
                    protecting = false;
                    node.engine.protected(node.now_ns, PAGE);
                }
                _ => {
                    let before = node.engine.state(PAGE);
                    let message = rng.message(&seen, txn);
                    let from = match rng.below(3) {
                        0 => rng.below(6) as u16,
                        1 => home,
                        _ => message.request.node.0,
                    };
                    match node.tell(from, message) {
                        Ok(()) => believed += 1,
                        Err(_) => {
                            refused += 1;
                            // At the home others that wait for the page may have moved on.
                            assert!(home == 0 || node.engine.state(PAGE) == before);
                        }
                    }
                }
            }
            let mut effects = 0;
            while let Some(effect) = node.next() {
                effects += 1;
                assert!(effects < 1_000);
                match effect {
                    Effect::Protect { .. } => protecting = true,
                    Effect::Failed { .. } => failed += 1,
                    Effect::Send { message, .. } => seen = message,
                    _ => {}
                }
            }
        }
    }
    println!("{refused} refused, {believed} believed, {failed} contradictions");
    assert!(
        refused > 100_000 && believed > 10_000 && failed > 0,
        "proves too little"
    );
}

#[test]
fn errors_name_what_is_wrong() {
    let mut node = Node::holding(State::Invalid);
    let mut message = first();
    message.page = PageId(1);
    assert_eq!(
        node.tell(1, message.clone()),
        Err(ProtocolError::UnknownPage(PageId(1)))
    );
    message.page = PAGE;
    assert_eq!(
        node.tell(5, message.clone()),
        Err(ProtocolError::UnknownNode(n(5)))
    );
    assert_eq!(
        node.tell(0, message.clone()),
        Err(ProtocolError::UnknownNode(n(0)))
    );
    message.request.node = n(64);
    assert_eq!(
        node.tell(1, message.clone()),
        Err(ProtocolError::UnknownNode(n(64)))
    );
    message.request.node = n(2);
    let error = node.tell(2, message).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Get for p0x0 from n2: this is not its home"
    );
}

#[test]
fn configurations_that_make_no_sense_are_refused() {
    let good = || config(0, 0, Initial::Untouched);
    let refused = |change: &dyn Fn(&mut dsm::Config)| {
        let mut config = good();
        change(&mut config);
        dsm::Engine::<u64>::new(config).err()
    };
    assert_eq!(refused(&|_| {}), None);
    let nodes = |nodes| Some(ConfigError::Nodes { nodes, max: 64 });
    assert_eq!(refused(&|c| c.nodes = 0), nodes(0));
    assert_eq!(refused(&|c| c.nodes = 65), nodes(65));
    assert_eq!(
        refused(&|c| c.me = n(5)),
        Some(ConfigError::Me { me: n(5), nodes: 5 })
    );
    assert_eq!(refused(&|c| c.pages = 0), Some(ConfigError::Pages));
    assert_eq!(
        refused(&|c| c.homes.clear()),
        Some(ConfigError::MapStart { map: "home" })
    );
    assert_eq!(
        refused(&|c| c.homes[0].0 = PageId(1)),
        Some(ConfigError::MapStart { map: "home" })
    );
    assert_eq!(
        refused(&|c| c.homes.push((PageId(0), n(1)))),
        Some(ConfigError::MapOrder {
            map: "home",
            page: PageId(0)
        })
    );
    assert_eq!(
        refused(&|c| c.initial.push((PageId(1), Initial::Untouched))),
        Some(ConfigError::MapOrder {
            map: "initial owner",
            page: PageId(1)
        })
    );
    assert_eq!(
        refused(&|c| c.homes[0].1 = n(5)),
        Some(ConfigError::MapNode {
            map: "home",
            node: n(5)
        })
    );
    assert_eq!(
        refused(&|c| c.hold_ns = c.hold_ns_max + 1),
        Some(ConfigError::Hold {
            hold_ns: 100_001,
            hold_ns_max: 100_000
        })
    );
    assert_eq!(
        refused(&|c| c.retransmit_ns = Some(0)),
        Some(ConfigError::Retransmit {
            first: 0,
            max: 30_000_000_000
        })
    );
}

/// Homes and first owners by range, at both ends of each range.
#[test]
fn the_maps_go_by_range() {
    let mut config = config(1, 0, Initial::Untouched);
    config.pages = 100;
    config.homes = vec![
        (PageId(0), n(0)),
        (PageId(10), n(1)),
        (PageId(50), n(0)),
        (PageId(99), n(1)),
    ];
    config.initial = vec![
        (PageId(0), Initial::Owned(n(1))),
        (PageId(1), Initial::Untouched),
    ];
    let engine = dsm::Engine::<u64>::new(config).unwrap();
    for (page, home) in [(0, 0), (9, 0), (10, 1), (49, 1), (50, 0), (98, 0), (99, 1)] {
        assert_eq!(engine.home(PageId(page)), n(home));
        assert_eq!(engine.directory(PageId(page)).is_some(), home == 1);
        let expected = if page == 0 {
            State::Modified
        } else {
            State::Invalid
        };
        assert_eq!(engine.state(PageId(page)), expected);
    }
}
