//! Every transition, as two tables. The code looks its next step up here and nowhere else;
//! PROTOCOL.md shows the same rows and a test keeps the two equal.

use crate::types::State;

/// What can happen to a page at a node that may hold it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Event {
    ReadFault = 0,
    WriteFault = 1,
    ForwardShared = 2,
    ForwardExclusive = 3,
    ForwardModified = 4,
    Invalidate = 5,
    /// `Recall` of a copy that others, or the home, have as well.
    RecallCopy = 6,
    /// `Recall` of the only one.
    RecallPage = 7,
}

/// What the node does about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// The access is allowed already.
    Hit,
    /// Ask the home.
    Get,
    /// Nobody else holds the page: change the mapping, tell nobody.
    Raise,
    /// Lower to the next state, then send the page to the requester in this state.
    Supply { grant: State, clean: bool },
    /// Lower to the next state, then acknowledge to the requester.
    Acknowledge,
    /// Lower to the next state, then tell the home, with the page or without.
    Return { page: bool },
    /// No correct home sends this.
    Refuse,
}

/// One transition of a holder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    pub state: State,
    pub event: Event,
    pub action: Action,
    pub next: State,
}

const fn row(state: State, event: Event, action: Action, next: State) -> Row {
    Row {
        state,
        event,
        action,
        next,
    }
}

const fn supply(grant: State) -> Action {
    Action::Supply {
        grant,
        clean: false,
    }
}

const fn supply_clean(grant: State) -> Action {
    Action::Supply { grant, clean: true }
}

const fn give_back(page: bool) -> Action {
    Action::Return { page }
}

const EVENTS: usize = 8;

use Action::{Acknowledge, Get, Hit, Raise, Refuse};
use Event::{ForwardExclusive, ForwardModified, ForwardShared, Invalidate, ReadFault, WriteFault};
use Event::{RecallCopy, RecallPage};
use State::{Exclusive, Invalid, Modified, Shared};

/// Transitions of a node that holds, or wants, a page; ordered by state, then event.
pub const HOLDER: [Row; 4 * EVENTS] = [
    row(Invalid, ReadFault, Get, Invalid),
    row(Invalid, WriteFault, Get, Invalid),
    row(Invalid, ForwardShared, Refuse, Invalid),
    row(Invalid, ForwardExclusive, Refuse, Invalid),
    row(Invalid, ForwardModified, Refuse, Invalid),
    row(Invalid, Invalidate, Refuse, Invalid),
    // Somebody else's transaction took it before the turn of the eviction came.
    row(Invalid, RecallCopy, give_back(false), Invalid),
    row(Invalid, RecallPage, Refuse, Invalid),
    row(Shared, ReadFault, Hit, Shared),
    row(Shared, WriteFault, Get, Shared),
    row(Shared, ForwardShared, supply(Shared), Shared),
    row(Shared, ForwardExclusive, Refuse, Shared),
    row(Shared, ForwardModified, supply(Modified), Invalid),
    row(Shared, Invalidate, Acknowledge, Invalid),
    row(Shared, RecallCopy, give_back(false), Invalid),
    row(Shared, RecallPage, give_back(true), Invalid),
    row(Exclusive, ReadFault, Hit, Exclusive),
    row(Exclusive, WriteFault, Raise, Modified),
    row(Exclusive, ForwardShared, supply_clean(Shared), Shared),
    // The promise of a write was not kept: stay a reader instead of handing the promise on.
    row(Exclusive, ForwardExclusive, supply_clean(Shared), Shared),
    row(Exclusive, ForwardModified, supply_clean(Modified), Invalid),
    row(Exclusive, Invalidate, Refuse, Exclusive),
    row(Exclusive, RecallCopy, Refuse, Exclusive),
    row(Exclusive, RecallPage, give_back(true), Invalid),
    row(Modified, ReadFault, Hit, Modified),
    row(Modified, WriteFault, Hit, Modified),
    row(Modified, ForwardShared, supply(Shared), Shared),
    row(Modified, ForwardExclusive, supply(Exclusive), Invalid),
    row(Modified, ForwardModified, supply(Modified), Invalid),
    row(Modified, Invalidate, Refuse, Modified),
    row(Modified, RecallCopy, Refuse, Modified),
    row(Modified, RecallPage, give_back(true), Invalid),
];

/// The row for a state and an event.
pub fn holder(state: State, event: Event) -> &'static Row {
    &HOLDER[state as usize * EVENTS + event as usize]
}

// A row out of place would silently be another transition.
const _: () = {
    let mut i = 0;
    while i < HOLDER.len() {
        assert!(HOLDER[i].state as usize == i / EVENTS);
        assert!(HOLDER[i].event as usize == i % EVENTS);
        i += 1;
    }
};

/// What the directory knows of a page, as far as it matters for the next step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holders {
    /// Nobody; all zero.
    Nobody,
    /// Nobody; the home keeps what was given back.
    Kept,
    /// Readers, the requester not among them.
    Others,
    /// Readers, the requester among them, or the requester and what the home keeps.
    OthersAndRequester,
    /// The requester, as the only reader; the home keeps nothing.
    RequesterAlone,
    /// One owner, another node than the requester.
    Owner,
    /// One owner; the page migrates from writer to writer.
    MigratoryOwner,
    /// The requester itself.
    RequesterOwns,
}

/// What a node asks of a home.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Ask {
    Read = 0,
    Write = 1,
    /// The node wants to be rid of the page.
    Evict = 2,
}

/// How the home answers a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The home grants a zero page in this state.
    Zero(State),
    /// The home grants the page that it keeps in this state.
    Keep(State),
    /// The home grants the requester's own copy; every other reader is invalidated.
    Upgrade,
    /// One holder supplies the page in this state and every other reader stays.
    Forward(State),
    /// One holder supplies the page in this state and every other reader is invalidated.
    ForwardAndInvalidate(State),
    /// The requester is to drop its copy, and to give the page back if it has the only one.
    Recall { page: bool },
    /// No correct requester asks this.
    Refuse,
}

/// One transition of a directory entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HomeRow {
    pub holders: Holders,
    pub ask: Ask,
    pub answer: Answer,
}

const fn home_row(holders: Holders, ask: Ask, answer: Answer) -> HomeRow {
    HomeRow {
        holders,
        ask,
        answer,
    }
}

use Answer::{Forward, ForwardAndInvalidate, Keep, Upgrade, Zero};
use Ask::{Evict, Read, Write};
use Holders::{Kept, MigratoryOwner, Nobody, Others, OthersAndRequester, Owner};
use Holders::{RequesterAlone, RequesterOwns};

const DROP: Answer = Answer::Recall { page: false };
const GIVE_BACK: Answer = Answer::Recall { page: true };

const ASKS: usize = 3;

/// Transitions of the directory; ordered by holders, then by what is asked.
pub const HOME: [HomeRow; 8 * ASKS] = [
    home_row(Nobody, Read, Zero(Exclusive)),
    home_row(Nobody, Write, Zero(Modified)),
    // Somebody else's transaction took the page before the turn of the eviction came; so below.
    home_row(Nobody, Evict, DROP),
    // Not Exclusive: as long as nobody writes, what the home keeps need not be given back again.
    home_row(Kept, Read, Keep(Shared)),
    home_row(Kept, Write, Keep(Modified)),
    home_row(Kept, Evict, DROP),
    home_row(Others, Read, Forward(Shared)),
    home_row(Others, Write, ForwardAndInvalidate(Modified)),
    home_row(Others, Evict, DROP),
    home_row(OthersAndRequester, Read, Answer::Refuse),
    home_row(OthersAndRequester, Write, Upgrade),
    home_row(OthersAndRequester, Evict, DROP),
    home_row(RequesterAlone, Read, Answer::Refuse),
    home_row(RequesterAlone, Write, Upgrade),
    home_row(RequesterAlone, Evict, GIVE_BACK),
    home_row(Owner, Read, Forward(Shared)),
    home_row(Owner, Write, Forward(Modified)),
    home_row(Owner, Evict, DROP),
    home_row(MigratoryOwner, Read, Forward(Exclusive)),
    home_row(MigratoryOwner, Write, Forward(Modified)),
    home_row(MigratoryOwner, Evict, DROP),
    home_row(RequesterOwns, Read, Answer::Refuse),
    home_row(RequesterOwns, Write, Answer::Refuse),
    home_row(RequesterOwns, Evict, GIVE_BACK),
];

/// The answer for what the directory knows and what is asked.
pub fn home(holders: Holders, ask: Ask) -> Answer {
    HOME[holders as usize * ASKS + ask as usize].answer
}

const _: () = {
    let mut i = 0;
    while i < HOME.len() {
        assert!(HOME[i].holders as usize == i / ASKS);
        assert!(HOME[i].ask as usize == i % ASKS);
        i += 1;
    }
};
