//! Every transition, as two tables. The code looks its next step up here and nowhere else;
//! PROTOCOL.md shows the same rows and a test keeps the two equal.

use crate::types::{Access, State};

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

const EVENTS: usize = 6;

use Action::{Acknowledge, Get, Hit, Raise, Refuse};
use Event::{ForwardExclusive, ForwardModified, ForwardShared, Invalidate, ReadFault, WriteFault};
use State::{Exclusive, Invalid, Modified, Shared};

/// Transitions of a node that holds, or wants, a page; ordered by state, then event.
pub const HOLDER: [Row; 4 * EVENTS] = [
    row(Invalid, ReadFault, Get, Invalid),
    row(Invalid, WriteFault, Get, Invalid),
    row(Invalid, ForwardShared, Refuse, Invalid),
    row(Invalid, ForwardExclusive, Refuse, Invalid),
    row(Invalid, ForwardModified, Refuse, Invalid),
    row(Invalid, Invalidate, Refuse, Invalid),
    row(Shared, ReadFault, Hit, Shared),
    row(Shared, WriteFault, Get, Shared),
    row(Shared, ForwardShared, supply(Shared), Shared),
    row(Shared, ForwardExclusive, Refuse, Shared),
    row(Shared, ForwardModified, supply(Modified), Invalid),
    row(Shared, Invalidate, Acknowledge, Invalid),
    row(Exclusive, ReadFault, Hit, Exclusive),
    row(Exclusive, WriteFault, Raise, Modified),
    row(Exclusive, ForwardShared, supply_clean(Shared), Shared),
    // The promise of a write was not kept: stay a reader instead of handing the promise on.
    row(Exclusive, ForwardExclusive, supply_clean(Shared), Shared),
    row(Exclusive, ForwardModified, supply_clean(Modified), Invalid),
    row(Exclusive, Invalidate, Refuse, Exclusive),
    row(Modified, ReadFault, Hit, Modified),
    row(Modified, WriteFault, Hit, Modified),
    row(Modified, ForwardShared, supply(Shared), Shared),
    row(Modified, ForwardExclusive, supply(Exclusive), Invalid),
    row(Modified, ForwardModified, supply(Modified), Invalid),
    row(Modified, Invalidate, Refuse, Modified),
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
    /// Readers, the requester not among them.
    Others,
    /// Readers, the requester among them.
    OthersAndRequester,
    /// One owner, another node than the requester.
    Owner,
    /// One owner; the page migrates from writer to writer.
    MigratoryOwner,
    /// The requester itself.
    RequesterOwns,
}

/// How the home answers a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The home grants a zero page in this state.
    Zero(State),
    /// The home grants the requester's own copy; every other reader is invalidated.
    Upgrade,
    /// One holder supplies the page in this state and every other reader stays.
    Forward(State),
    /// One holder supplies the page in this state and every other reader is invalidated.
    ForwardAndInvalidate(State),
    /// No correct requester asks this.
    Refuse,
}

/// One transition of a directory entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HomeRow {
    pub holders: Holders,
    pub access: Access,
    pub answer: Answer,
}

const fn home_row(holders: Holders, access: Access, answer: Answer) -> HomeRow {
    HomeRow {
        holders,
        access,
        answer,
    }
}

use Access::{Read, Write};
use Answer::{Forward, ForwardAndInvalidate, Upgrade, Zero};
use Holders::{MigratoryOwner, Nobody, Others, OthersAndRequester, Owner, RequesterOwns};

/// Transitions of the directory; ordered by holders, then access.
pub const HOME: [HomeRow; 12] = [
    home_row(Nobody, Read, Zero(Exclusive)),
    home_row(Nobody, Write, Zero(Modified)),
    home_row(Others, Read, Forward(Shared)),
    home_row(Others, Write, ForwardAndInvalidate(Modified)),
    home_row(OthersAndRequester, Read, Answer::Refuse),
    home_row(OthersAndRequester, Write, Upgrade),
    home_row(Owner, Read, Forward(Shared)),
    home_row(Owner, Write, Forward(Modified)),
    home_row(MigratoryOwner, Read, Forward(Exclusive)),
    home_row(MigratoryOwner, Write, Forward(Modified)),
    home_row(RequesterOwns, Read, Answer::Refuse),
    home_row(RequesterOwns, Write, Answer::Refuse),
];

/// The answer for what the directory knows and what is asked.
pub fn home(holders: Holders, access: Access) -> Answer {
    HOME[holders as usize * 2 + access as usize].answer
}

const _: () = {
    let mut i = 0;
    while i < HOME.len() {
        assert!(HOME[i].holders as usize == i / 2);
        assert!(HOME[i].access as usize == i % 2);
        i += 1;
    }
};
