//! Every row of both transition tables, carried out by an engine.

use crate::script::{
    Node, PAGE, config, done, evict, forward, get, invalidate, n, recall, request, returned, set,
};
use dsm::table::{Action, Answer, Ask, Event, HOLDER, HOME, Holders, HomeRow, Row};
use dsm::{Access, Body, Effect, Initial, Kind, State};

#[test]
fn the_holder_follows_its_table() {
    for row in &HOLDER {
        println!("{row:?}");
        let recalls = matches!(row.event, Event::RecallCopy | Event::RecallPage);
        let mut node = match row.state {
            // One that was taken before the turn of its eviction came.
            State::Invalid if recalls => Node::holding(State::Shared),
            state => Node::holding(state),
        };
        match row.event {
            Event::ReadFault => fault(&mut node, row, Access::Read),
            Event::WriteFault => fault(&mut node, row, Access::Write),
            Event::ForwardShared => asked(&mut node, row, Some(State::Shared)),
            Event::ForwardExclusive => asked(&mut node, row, Some(State::Exclusive)),
            Event::ForwardModified => asked(&mut node, row, Some(State::Modified)),
            Event::Invalidate => asked(&mut node, row, None),
            Event::RecallCopy => recalled(&mut node, row, false),
            Event::RecallPage => recalled(&mut node, row, true),
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

/// The node evicts the page, and the home recalls it.
fn recalled(node: &mut Node, row: &Row, page: bool) {
    assert!(node.engine.evict(node.now_ns, PAGE));
    let (home, asked, _) = node.sent_message();
    assert_eq!((home, asked.kind), (1, Kind::Evict));
    assert!(!node.engine.evict(node.now_ns, PAGE), "once is enough");
    if row.state == State::Invalid {
        node.tell(1, invalidate(request(2, 1), 2)).unwrap();
        node.protect(State::Invalid);
        assert_eq!(node.sent(), (2, Kind::InvalidateAck));
    }
    let result = node.tell(1, recall(asked.request, 3, page));
    if row.action == Action::Refuse {
        assert!(result.is_err());
        return;
    }
    assert_eq!(result, Ok(()));
    if row.state != State::Invalid {
        node.protect(State::Invalid);
    }
    let end = Kind::Done {
        state: State::Invalid,
        clean: false,
    };
    let answer = if page { node.supplied() } else { node.sent() };
    assert_eq!(answer, (1, end));
}

#[test]
fn the_home_follows_its_table() {
    for row in &HOME {
        println!("{row:?}");
        let (mut home, requester, seq) = home_with(row.holders);
        let have_copy = matches!(
            row.holders,
            Holders::OthersAndRequester | Holders::RequesterAlone
        );
        let asks = match row.ask {
            Ask::Read => get(requester, seq, Access::Read, have_copy),
            Ask::Write => get(requester, seq, Access::Write, have_copy),
            Ask::Evict => evict(requester, seq),
        };
        let asked = home.tell(requester, asks);
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
    let mut transaction = |home: &mut Node, node: u16, seq: u64, access, have_copy, state| {
        txn += 1;
        home.tell(node, get(node, seq, access, have_copy))
            .expect("a request");
        while home.next().is_some() {}
        home.tell(node, done(request(node, seq), txn, state))
            .expect("its end");
    };
    let (requester, seq) = match holders {
        Holders::Nobody | Holders::Owner => (2, 1),
        Holders::Kept => {
            give_up(&mut home, 1, 1, 1, true);
            (2, 1)
        }
        Holders::RequesterAlone => {
            transaction(&mut home, 2, 1, Access::Read, false, State::Shared);
            give_up(&mut home, 1, 1, 2, false);
            (2, 2)
        }
        Holders::RequesterOwns => (1, 1),
        Holders::Others => {
            transaction(&mut home, 3, 1, Access::Read, false, State::Shared);
            (2, 1)
        }
        Holders::OthersAndRequester => {
            transaction(&mut home, 3, 1, Access::Read, false, State::Shared);
            transaction(&mut home, 2, 1, Access::Read, false, State::Shared);
            (2, 2)
        }
        Holders::MigratoryOwner => {
            transaction(&mut home, 3, 1, Access::Read, false, State::Shared);
            transaction(&mut home, 3, 2, Access::Write, true, State::Modified);
            (2, 1)
        }
    };
    (home, requester, seq)
}

/// A node evicts the page, in this transaction.
fn give_up(home: &mut Node, node: u16, seq: u64, txn: u64, page: bool) {
    home.tell(node, evict(node, seq)).expect("a request");
    let recall = Kind::Recall { page, urgency: 0 };
    assert_eq!(home.sent(), (node, recall));
    let body = if page { Body::Full(7) } else { Body::None };
    home.tell(node, returned(request(node, seq), txn, body.clone()))
        .expect("its end");
    if page {
        assert_eq!(home.next(), Some(Effect::Fill { page: PAGE, body }));
    }
    assert_eq!(home.engine.keeps(PAGE), page);
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
        Answer::Keep(state) => {
            let kind = Kind::Grant {
                state,
                acks: set(&[]),
                clean: false,
            };
            assert_eq!(home.supplied(), (requester, kind));
            return;
        }
        Answer::Recall { page } => {
            let recall = Kind::Recall { page, urgency: 0 };
            assert_eq!(home.sent(), (requester, recall));
            return;
        }
        Answer::Upgrade => {
            let others: &[u16] = match row.holders {
                Holders::RequesterAlone => &[],
                _ => &[1, 3],
            };
            let (state, acks) = (State::Modified, set(others));
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
            for sharer in others {
                assert_eq!(home.sent(), (*sharer, Kind::Invalidate { urgency: 0 }));
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
