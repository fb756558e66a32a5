//! Every row of both transition tables, carried out by an engine.

use crate::script::{Node, PAGE, config, done, forward, get, invalidate, n, request, set};
use dsm::table::{Action, Answer, Event, HOLDER, HOME, Holders, HomeRow, Row};
use dsm::{Access, Effect, Initial, Kind, State};

#[test]
fn the_holder_follows_its_table() {
    for row in &HOLDER {
        println!("{row:?}");
        let mut node = Node::holding(row.state);
        match row.event {
            Event::ReadFault => fault(&mut node, row, Access::Read),
            Event::WriteFault => fault(&mut node, row, Access::Write),
            Event::ForwardShared => asked(&mut node, row, Some(State::Shared)),
            Event::ForwardExclusive => asked(&mut node, row, Some(State::Exclusive)),
            Event::ForwardModified => asked(&mut node, row, Some(State::Modified)),
            Event::Invalidate => asked(&mut node, row, None),
        }
        node.silent();
        assert_eq!(node.engine.state(PAGE), row.next);
    }
}

fn fault(node: &mut Node, row: &Row, access: Access) {
    node.request(access);
    match row.action {
        Action::Hit => {}
        Action::Raise => node.protect(row.next),
        Action::Get => {
            let have_copy = row.state == State::Shared;
            assert_eq!(
                node.sent(),
                (
                    1,
                    Kind::Get {
                        access,
                        have_copy,
                        urgency: 0
                    }
                )
            );
            return;
        }
        other => panic!("{other:?} for a fault"),
    }
    assert_eq!(
        node.next(),
        Some(Effect::Granted {
            page: PAGE,
            waiter: 9
        })
    );
}

/// The home asks for the page on behalf of node 2.
fn asked(node: &mut Node, row: &Row, state: Option<State>) {
    let message = match state {
        Some(state) => forward(request(2, 1), 2, state, &[]),
        None => invalidate(request(2, 1), 2),
    };
    let result = node.tell(1, message);
    if row.action == Action::Refuse {
        assert!(result.is_err());
        return;
    }
    assert_eq!(result, Ok(()));
    let unmapped = row.next == State::Invalid;
    let write_protected = row.state == State::Modified && row.next == State::Shared;
    if unmapped || write_protected {
        node.protect(row.next);
    }
    match row.action {
        Action::Supply { grant, clean } => {
            let kind = Kind::Grant {
                state: grant,
                acks: set(&[]),
                clean,
            };
            assert_eq!(node.supplied(), (2, kind));
        }
        Action::Acknowledge => assert_eq!(node.sent(), (2, Kind::InvalidateAck)),
        other => panic!("{other:?} for a message"),
    }
}

#[test]
fn the_home_follows_its_table() {
    for row in &HOME {
        println!("{row:?}");
        let (mut home, requester, seq) = home_with(row.holders);
        let have_copy = row.holders == Holders::OthersAndRequester;
        let asked = home.tell(requester, get(requester, seq, row.access, have_copy));
        match row.answer {
            Answer::Refuse => assert!(asked.is_err()),
            _ => assert_eq!(asked, Ok(())),
        }
        answers(&mut home, row, requester);
        home.silent();
    }
}

/// Node 0 as the home of a page that node 1, or nobody, owned at first. Returns it with the node
/// that makes the request of the row, and its next sequence number.
fn home_with(holders: Holders) -> (Node, u16, u64) {
    let initial = match holders {
        Holders::Nobody => Initial::Untouched,
        _ => Initial::Owned(n(1)),
    };
    let mut home = Node::new(config(0, 0, initial));
    let mut txn = 0;
    let mut transaction = |node: u16, seq: u64, access, have_copy, state| {
        txn += 1;
        home.tell(node, get(node, seq, access, have_copy))
            .expect("a request");
        while home.next().is_some() {}
        home.tell(node, done(request(node, seq), txn, state))
            .expect("its end");
    };
    let (requester, seq) = match holders {
        Holders::Nobody | Holders::Owner => (2, 1),
        Holders::RequesterOwns => (1, 1),
        Holders::Others => {
            transaction(3, 1, Access::Read, false, State::Shared);
            (2, 1)
        }
        Holders::OthersAndRequester => {
            transaction(3, 1, Access::Read, false, State::Shared);
            transaction(2, 1, Access::Read, false, State::Shared);
            (2, 2)
        }
        Holders::MigratoryOwner => {
            transaction(3, 1, Access::Read, false, State::Shared);
            transaction(3, 2, Access::Write, true, State::Modified);
            (2, 1)
        }
    };
    (home, requester, seq)
}

fn answers(home: &mut Node, row: &HomeRow, requester: u16) {
    let owner = if row.holders == Holders::MigratoryOwner {
        3
    } else {
        1
    };
    let (supplier, state, acks): (u16, State, &[u16]) = match row.answer {
        Answer::Refuse => return,
        Answer::Zero(state) => {
            let kind = Kind::Grant {
                state,
                acks: set(&[]),
                clean: false,
            };
            assert_eq!(home.sent(), (requester, kind));
            return;
        }
        Answer::Upgrade => {
            let (state, acks) = (State::Modified, set(&[1, 3]));
            assert_eq!(
                home.sent(),
                (
                    requester,
                    Kind::Grant {
                        state,
                        acks,
                        clean: false
                    }
                )
            );
            for sharer in [1, 3] {
                assert_eq!(home.sent(), (sharer, Kind::Invalidate { urgency: 0 }));
            }
            return;
        }
        Answer::Forward(state) => (owner, state, &[]),
        Answer::ForwardAndInvalidate(state) => (owner, state, &[3]),
    };
    let kind = Kind::Forward {
        state,
        acks: set(acks),
        urgency: 0,
    };
    assert_eq!(home.sent(), (supplier, kind));
    for sharer in acks {
        assert_eq!(home.sent(), (*sharer, Kind::Invalidate { urgency: 0 }));
    }
}

/// A page that is read and then written is granted exclusively
/// to the next reader, and a reader that does not write ends that.
#[test]
fn a_page_that_migrates_is_classified_and_declassified() {
    let (mut home, ..) = home_with(Holders::MigratoryOwner);
    assert_eq!(home.engine.counters().home.classified, 1);
    home.tell(2, get(2, 1, Access::Read, false)).unwrap();
    let exclusive = |acks| Kind::Forward {
        state: State::Exclusive,
        acks,
        urgency: 0,
    };
    assert_eq!(home.sent(), (3, exclusive(set(&[]))));
    home.tell(2, done(request(2, 1), 3, State::Exclusive))
        .unwrap();

    // Node 2 has not written: the next reader gets a shared copy, and so does every later one.
    home.tell(4, get(4, 1, Access::Read, false)).unwrap();
    assert_eq!(home.sent(), (2, exclusive(set(&[]))));
    let mut clean = done(request(4, 1), 4, State::Shared);
    clean.kind = Kind::Done {
        state: State::Shared,
        clean: true,
    };
    home.tell(4, clean).unwrap();
    assert_eq!(home.engine.counters().home.declassified, 1);
    home.tell(3, get(3, 3, Access::Read, false)).unwrap();
    let (to, kind) = home.sent();
    assert!([2, 4].contains(&to));
    assert!(matches!(
        kind,
        Kind::Forward {
            state: State::Shared,
            ..
        }
    ));
}

#[test]
fn without_the_option_nothing_is_classified() {
    let mut config = config(0, 0, Initial::Owned(n(1)));
    config.migratory = false;
    let mut home = Node::new(config);
    home.tell(3, get(3, 1, Access::Read, false)).unwrap();
    home.tell(3, done(request(3, 1), 1, State::Shared)).unwrap();
    home.tell(3, get(3, 2, Access::Write, true)).unwrap();
    home.tell(3, done(request(3, 2), 2, State::Modified))
        .unwrap();
    while home.next().is_some() {}
    home.tell(2, get(2, 1, Access::Read, false)).unwrap();
    assert!(matches!(
        home.sent(),
        (
            3,
            Kind::Forward {
                state: State::Shared,
                ..
            }
        )
    ));
}
