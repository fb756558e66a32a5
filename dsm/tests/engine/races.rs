//! What must happen in which order, and what duplicates, late arrivals and losses do.

use crate::script::{
    HOLD_NS, HOLD_NS_MAX, Node, PAGE, ack, config, done, forward, get, grant, invalidate, message,
    n, request, set,
};
use dsm::{Access, Body, Effect, Initial, Kind, ProtocolError, State};

/// I3: whatever else happens, the answer waits for `protected`.
#[test]
fn nothing_leaves_before_the_mappings_have_changed() {
    for (state, message) in [
        (State::Shared, invalidate(request(2, 1), 2)),
        (
            State::Shared,
            forward(request(2, 1), 2, State::Modified, &[]),
        ),
        (
            State::Exclusive,
            forward(request(2, 1), 2, State::Modified, &[]),
        ),
        (
            State::Modified,
            forward(request(2, 1), 2, State::Shared, &[]),
        ),
        (
            State::Modified,
            forward(request(2, 1), 2, State::Modified, &[]),
        ),
    ] {
        let mut node = Node::holding(state);
        node.tell(1, message.clone()).unwrap();
        let Some(Effect::Protect { state: lower, .. }) = node.next() else {
            panic!("{state:?}")
        };
        assert_eq!(
            node.engine.state(PAGE),
            lower,
            "no new mapping may allow more"
        );
        node.silent();
        node.now_ns += 10 * HOLD_NS_MAX;
        node.tell(1, message).unwrap();
        node.request(Access::Write);
        node.engine.handle_timeout(node.now_ns);
        node.silent();
        node.engine.protected(node.now_ns, PAGE);
        let (to, ..) = node.sent_message();
        assert_eq!(to, 2);
        assert!(matches!(
            node.sent(),
            (
                1,
                Kind::Get {
                    access: Access::Write,
                    ..
                }
            )
        ));
        node.silent();
    }
}

#[test]
#[should_panic(expected = "without Effect::Protect")]
fn a_protection_nobody_asked_for_is_a_bug() {
    let mut node = Node::holding(State::Shared);
    node.engine.protected(0, PAGE);
}

/// I3: the page is filled before it is exposed, and exposed before anyone is told.
#[test]
fn a_grant_fills_then_exposes_then_wakes_then_tells() {
    let mut node = Node::holding(State::Invalid);
    node.request(Access::Write);
    node.sent();
    node.tell(
        3,
        grant(request(0, 1), 5, State::Modified, &[], Body::Full(42)),
    )
    .unwrap();
    assert_eq!(
        node.next(),
        Some(Effect::Fill {
            page: PAGE,
            body: Body::Full(42)
        })
    );
    node.protect(State::Modified);
    assert_eq!(
        node.next(),
        Some(Effect::Granted {
            page: PAGE,
            waiter: 9
        })
    );
    assert_eq!(
        node.sent(),
        (
            1,
            Kind::Done {
                state: State::Modified,
                clean: false
            }
        )
    );
    node.silent();
}

/// I1: a writer waits for every acknowledgement, in whichever order they come.
#[test]
fn a_write_waits_for_every_acknowledgement() {
    for acks_first in [0, 1, 2] {
        let mut node = Node::holding(State::Invalid);
        node.request(Access::Write);
        node.sent();
        let acks = [ack(request(0, 1), 5), ack(request(0, 1), 5)];
        let grant = grant(request(0, 1), 5, State::Modified, &[3, 4], Body::Zero);
        let mut told = [(3, acks[0].clone()), (4, acks[1].clone())].to_vec();
        told.insert(acks_first, (2, grant));
        for (i, (from, message)) in told.iter().enumerate() {
            assert!(
                !matches!(node.next(), Some(Effect::Protect { .. })),
                "after {i} messages"
            );
            node.tell(*from, message.clone()).unwrap();
            node.tell(*from, message.clone()).expect("a duplicate");
        }
        let mut effects = std::iter::from_fn(|| node.next()).collect::<Vec<_>>();
        assert_eq!(
            effects.pop(),
            Some(Effect::Protect {
                page: PAGE,
                state: State::Modified
            })
        );
    }
}

/// A node that loses its copy while it waits for the upgrade gets the page again.
#[test]
fn an_upgrade_that_is_overtaken_becomes_a_miss() {
    let mut node = Node::holding(State::Shared);
    node.request(Access::Write);
    let upgrade = Kind::Get {
        access: Access::Write,
        have_copy: true,
        urgency: 0,
    };
    assert_eq!(node.sent(), (1, upgrade));
    node.tell(1, invalidate(request(2, 1), 2)).unwrap();
    node.protect(State::Invalid);
    assert_eq!(node.sent(), (2, Kind::InvalidateAck));
    let nothing = grant(request(0, 2), 3, State::Modified, &[], Body::None);
    assert!(
        node.tell(1, nothing).is_err(),
        "there is no copy to upgrade"
    );
    node.tell(
        2,
        grant(request(0, 2), 3, State::Modified, &[], Body::Full(8)),
    )
    .unwrap();
    assert_eq!(
        node.next(),
        Some(Effect::Fill {
            page: PAGE,
            body: Body::Full(8)
        })
    );
    node.protect(State::Modified);
    assert_eq!(
        node.next(),
        Some(Effect::Granted {
            page: PAGE,
            waiter: 9
        })
    );
}

/// The same at the home: it goes by its directory, not by what the requester once had.
#[test]
fn the_home_forwards_to_a_node_that_no_longer_shares() {
    let mut home = Node::new(config(0, 0, Initial::Owned(n(1))));
    home.tell(3, get(3, 1, Access::Read, false)).unwrap();
    home.tell(3, done(request(3, 1), 1, State::Shared)).unwrap();
    while home.next().is_some() {}
    // Both upgrade; node 1 comes first.
    home.tell(1, get(1, 1, Access::Write, true)).unwrap();
    home.tell(3, get(3, 2, Access::Write, true)).unwrap();
    let upgrade = Kind::Grant {
        state: State::Modified,
        acks: set(&[3]),
        clean: false,
    };
    assert_eq!(home.sent(), (1, upgrade));
    assert_eq!(home.sent(), (3, Kind::Invalidate { urgency: 0 }));
    home.silent();
    home.tell(1, done(request(1, 1), 2, State::Modified))
        .unwrap();
    let kind = Kind::Forward {
        state: State::Modified,
        acks: set(&[]),
        urgency: 0,
    };
    assert_eq!(home.sent(), (1, kind));
}

/// I4: requests wait in order of arrival.
#[test]
fn the_home_serves_one_request_at_a_time_in_order() {
    let mut home = Node::new(config(0, 0, Initial::Untouched));
    for node in [4, 1, 3, 2] {
        home.tell(node, get(node, 1, Access::Write, false)).unwrap();
        home.tell(node, get(node, 1, Access::Write, false))
            .expect("a duplicate");
    }
    let view = home.engine.directory(PAGE).unwrap();
    assert_eq!((view.busy, view.waiting), (Some(request(4, 1)), 3));
    assert!(matches!(home.sent(), (4, Kind::Grant { .. })));
    for (txn, (node, next)) in [(4, 1), (1, 3), (3, 2)].into_iter().enumerate() {
        home.silent();
        home.tell(
            node,
            done(request(node, 1), txn as u64 + 1, State::Modified),
        )
        .unwrap();
        let (to, message, _) = home.sent_message();
        assert_eq!((to, message.request), (node, request(next, 1)));
    }
}

/// The home's own requests and copies take the same way, without messages.
#[test]
fn the_home_asks_itself_without_a_message() {
    let mut home = Node::new(config(0, 0, Initial::Untouched));
    home.request(Access::Write);
    assert_eq!(
        home.next(),
        Some(Effect::Fill {
            page: PAGE,
            body: Body::Zero
        })
    );
    home.protect(State::Modified);
    assert_eq!(
        home.next(),
        Some(Effect::Granted {
            page: PAGE,
            waiter: 9
        })
    );
    home.silent();
    home.resumed();
    home.now_ns += HOLD_NS;
    home.tell(2, get(2, 1, Access::Read, false)).unwrap();
    home.protect(State::Shared);
    let kind = Kind::Grant {
        state: State::Shared,
        acks: set(&[]),
        clean: false,
    };
    assert_eq!(home.supplied(), (2, kind));
    home.tell(2, done(request(2, 1), 2, State::Shared)).unwrap();
    home.request(Access::Write);
    assert_eq!(home.sent(), (2, Kind::Invalidate { urgency: 0 }));
    home.silent();
    home.tell(2, ack(request(0, 2), 3)).unwrap();
    home.protect(State::Modified);
    assert_eq!(
        home.next(),
        Some(Effect::Granted {
            page: PAGE,
            waiter: 9
        })
    );
    home.silent();
    assert_eq!(home.engine.counters().messages_out, 2);
}

#[test]
fn every_waiter_is_granted_once_and_writers_make_it_one_request() {
    let mut node = Node::holding(State::Invalid);
    node.engine.request(0, PAGE, Access::Read, 1);
    assert!(matches!(
        node.sent(),
        (
            1,
            Kind::Get {
                access: Access::Read,
                ..
            }
        )
    ));
    for waiter in 2..5 {
        let access = if waiter == 3 {
            Access::Write
        } else {
            Access::Read
        };
        node.engine.request(0, PAGE, access, waiter);
    }
    node.silent();
    node.tell(2, grant(request(0, 1), 1, State::Shared, &[], Body::Zero))
        .unwrap();
    node.next();
    node.protect(State::Shared);
    for waiter in [1, 2, 4] {
        assert_eq!(node.next(), Some(Effect::Granted { page: PAGE, waiter }));
    }
    assert!(matches!(node.sent(), (1, Kind::Done { .. })));
    let upgrade = Kind::Get {
        access: Access::Write,
        have_copy: true,
        urgency: 0,
    };
    assert_eq!(node.sent(), (1, upgrade));
    node.tell(1, grant(request(0, 2), 2, State::Modified, &[], Body::None))
        .unwrap();
    node.protect(State::Modified);
    assert_eq!(
        node.next(),
        Some(Effect::Granted {
            page: PAGE,
            waiter: 3
        })
    );
}

/// I7: after a grant the page stays until its user has run and `hold_ns` longer.
#[test]
fn a_page_stays_until_its_user_has_run() {
    let mut node = Node::holding(State::Modified);
    node.request(Access::Write);
    node.next();
    node.now_ns += HOLD_NS_MAX / 2;
    let asked_ns = node.now_ns;
    node.tell(1, forward(request(2, 1), 2, State::Modified, &[]))
        .unwrap();
    node.silent();
    assert_eq!(node.engine.poll_timeout(), Some(asked_ns + HOLD_NS_MAX / 2));
    node.now_ns += 100;
    node.resumed();
    node.silent();
    assert_eq!(node.engine.poll_timeout(), Some(asked_ns + 100 + HOLD_NS));
    node.engine.handle_timeout(node.now_ns + HOLD_NS - 1);
    node.silent();
    node.timeout();
    node.protect(State::Invalid);
    node.supplied();
    assert_eq!(node.engine.poll_timeout(), None);
    assert_eq!(node.engine.counters().holder.deferred, 1);
}

/// I7: local users cannot keep a page for ever, whatever they do.
#[test]
fn a_page_leaves_at_the_bound() {
    let mut node = Node::holding(State::Modified);
    node.request(Access::Write);
    node.next();
    node.now_ns += HOLD_NS_MAX - 1;
    let asked_ns = node.now_ns;
    node.tell(1, forward(request(2, 1), 2, State::Shared, &[]))
        .unwrap();
    let mut left = false;
    for _ in 0..1_000 {
        node.now_ns += 1_000;
        node.request(Access::Write);
        node.engine.handle_timeout(node.now_ns);
        left = std::iter::from_fn(|| node.next()).any(|e| matches!(e, Effect::Protect { .. }));
        if left {
            break;
        }
    }
    assert!(left);
    assert!(node.now_ns <= asked_ns + HOLD_NS_MAX + 1_000);
}

/// A reader is not in the way of another reader.
#[test]
fn a_held_shared_page_is_supplied_at_once() {
    let mut node = Node::holding(State::Shared);
    node.request(Access::Read);
    node.next();
    node.tell(1, forward(request(2, 1), 2, State::Shared, &[]))
        .unwrap();
    node.supplied();
}

/// I5: each message again, at every later moment, changes nothing but answers.
#[test]
fn duplicates_are_answered_but_not_carried_out() {
    let mut node = Node::holding(State::Modified);
    let first = forward(request(2, 1), 2, State::Modified, &[]);
    node.tell(1, first.clone()).unwrap();
    node.protect(State::Invalid);
    let answer = node.supplied();
    node.tell(1, first.clone()).unwrap();
    assert_eq!(node.supplied(), answer, "the grant may have been lost");

    // Once the page has come back, it must not leave on the old order.
    node.request(Access::Write);
    node.sent();
    node.tell(
        2,
        grant(request(0, 1), 3, State::Modified, &[], Body::Full(1)),
    )
    .unwrap();
    node.next();
    node.protect(State::Modified);
    node.next();
    node.sent();
    node.resumed();
    node.now_ns += HOLD_NS_MAX;
    node.tell(1, first).unwrap();
    node.silent();
    assert_eq!(node.engine.state(PAGE), State::Modified);

    // The grant again: the home has missed the `Done`.
    node.tell(
        2,
        grant(request(0, 1), 3, State::Modified, &[], Body::Full(1)),
    )
    .unwrap();
    assert_eq!(
        node.sent(),
        (
            1,
            Kind::Done {
                state: State::Modified,
                clean: false
            }
        )
    );
    node.silent();
    assert_eq!(node.engine.counters().holder.stale, 3);
}

/// I5 at the home: a request that is over does not start again.
#[test]
fn a_late_request_is_dropped() {
    let mut home = Node::new(config(0, 0, Initial::Untouched));
    let first = get(2, 1, Access::Write, false);
    home.tell(2, first.clone()).unwrap();
    home.next();
    let end = done(request(2, 1), 1, State::Modified);
    home.tell(2, end.clone()).unwrap();
    home.tell(2, first.clone()).unwrap();
    home.tell(2, end.clone()).unwrap();
    home.silent();

    // Also if an earlier request of that node is still open, so that the floor stays low.
    home.tell(3, get(3, 2, Access::Write, false)).unwrap();
    home.next();
    let mut end = done(request(3, 2), 2, State::Modified);
    end.floor = 1;
    home.tell(3, end).unwrap();
    let mut late = get(3, 2, Access::Write, false);
    late.floor = 1;
    home.tell(3, late).unwrap();
    home.silent();
    assert_eq!(home.engine.counters().home.stale, 3);
}

/// The requester's next request can overtake the end of its last one.
#[test]
fn a_request_may_overtake_the_end_of_the_one_before() {
    let mut home = Node::new(config(0, 0, Initial::Untouched));
    home.tell(2, get(2, 1, Access::Read, false)).unwrap();
    home.next();
    home.tell(2, get(2, 2, Access::Write, true)).unwrap();
    home.silent();
    home.tell(2, done(request(2, 1), 1, State::Shared))
        .expect_err("exclusive was granted");
    home.tell(2, done(request(2, 1), 1, State::Exclusive))
        .expect_err("an owner asks for more");
    assert!(home.engine.is_idle());
}

#[test]
fn lost_messages_are_sent_again_ever_more_slowly() {
    let mut config = config(0, 1, Initial::Owned(n(1)));
    (config.retransmit_ns, config.retransmit_ns_max) = (Some(1_000), 5_000);
    let mut node = Node::new(config.clone());
    node.request(Access::Read);
    let (_, first, _) = node.sent_message();
    let mut gaps = Vec::new();
    for _ in 0..5 {
        let before_ns = node.now_ns;
        node.timeout();
        gaps.push(node.now_ns - before_ns);
        assert_eq!(node.sent_message().1, first);
        node.silent();
    }
    assert_eq!(gaps, [1_000, 2_000, 4_000, 5_000, 5_000]);

    (config.me, config.homes) = (n(1), vec![(PAGE, n(1))]);
    config.initial = vec![(PAGE, Initial::Owned(n(2)))];
    let mut home = Node::new(config);
    home.tell(3, get(3, 1, Access::Write, false)).unwrap();
    let (to, first, _) = home.sent_message();
    home.timeout();
    assert_eq!(home.sent_message(), (to, first, false));
    home.tell(3, done(request(3, 1), 1, State::Modified))
        .unwrap();
    assert_eq!(home.engine.poll_timeout(), None);
}

/// Somebody urgent behind the current request: those who put it off are told, once.
#[test]
fn the_home_hurries_those_who_put_off_an_urgent_request() {
    let mut home = Node::new(config(0, 0, Initial::Owned(n(1))));
    home.tell(2, get(2, 1, Access::Write, false)).unwrap();
    home.sent();
    let mut urgent = get(3, 1, Access::Write, false);
    urgent.kind = Kind::Get {
        access: Access::Write,
        have_copy: false,
        urgency: 200,
    };
    home.tell(3, urgent.clone()).unwrap();
    assert_eq!(home.sent(), (1, Kind::Hurry { urgency: 200 }));
    home.tell(3, urgent).unwrap();
    home.silent();
}

#[test]
fn a_lost_node_is_neither_heard_nor_told() {
    let mut home = Node::new(config(0, 0, Initial::Untouched));
    home.engine.node_lost(n(2));
    home.engine.node_lost(n(63));
    let result = home.tell(2, get(2, 1, Access::Read, false));
    assert_eq!(result, Err(ProtocolError::LostNode(n(2))));
    home.tell(3, get(3, 1, Access::Write, false)).unwrap();
    home.next();
    home.tell(3, done(request(3, 1), 1, State::Modified))
        .unwrap();
    home.engine.node_lost(n(3));
    home.tell(4, get(4, 1, Access::Read, false)).unwrap();
    home.silent();
}

#[test]
fn another_epoch_is_refused() {
    let mut home = Node::new(config(0, 0, Initial::Untouched));
    let mut late = get(2, 1, Access::Read, false);
    late.epoch = 3;
    assert_eq!(
        home.tell(2, late),
        Err(ProtocolError::WrongEpoch { got: 3, want: 0 })
    );
    let hurry = message(request(2, 1), 1, Kind::Hurry { urgency: 1 });
    assert!(home.tell(3, hurry).is_err(), "node 3 is not the home");
    assert_eq!(home.engine.counters().refused, 2);
}
