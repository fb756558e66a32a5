//! Every order of events, for configurations small enough: one page, two or three nodes with a
//! thread each that makes a few accesses.

mod model;

use dsm::{Access, Initial, NodeId};
use model::{Network, Setup};
use stateright::{Checker, Model};

use Access::{Read, Write};

fn setup(home: u16, owner: Option<u16>, programs: &[&[Access]]) -> Setup {
    Setup {
        home,
        initial: owner.map_or(Initial::Untouched, |node| Initial::Owned(NodeId(node))),
        programs: programs.iter().map(|p| p.to_vec()).collect(),
        migratory: true,
        network: Network::Unordered,
        early: false,
    }
}

fn on(network: Network, setup: Setup) -> Setup {
    Setup { network, ..setup }
}

fn check(name: &str, setup: Setup) {
    let checker = setup.checker().threads(2).spawn_bfs().join();
    checker.assert_properties();
    let states = checker.unique_state_count();
    println!(
        "{name}: {states} states, {} steps deep",
        checker.max_depth()
    );
}

/// Messages overtake each other.
#[test]
fn every_order_of_messages_is_coherent() {
    for (home, owner) in [(0, Some(0)), (0, Some(1)), (1, Some(0)), (0, None)] {
        let two: [&[Access]; 2] = [&[Read, Write, Read], &[Read, Write, Write]];
        let three: [&[Access]; 3] = [&[Write], &[Read, Write], &[Read]];
        let name = format!("home {home}, owner {owner:?}");
        check(&format!("two nodes, {name}"), setup(home, owner, &two));
        check(&format!("three nodes, {name}"), setup(home, owner, &three));
    }
    let all: [&[Access]; 3] = [&[Read, Write], &[Read, Write], &[Read, Write]];
    for migratory in [false, true] {
        let setup = Setup {
            migratory,
            ..setup(0, Some(0), &all)
        };
        check(
            &format!("three nodes that upgrade, migratory {migratory}"),
            setup,
        );
    }
}

/// ... and arrive any number of times, at any later moment.
#[test]
fn every_duplicate_is_harmless() {
    let two: [&[Access]; 2] = [&[Read, Write], &[Write, Read]];
    for (home, owner) in [(0, Some(0)), (1, Some(0)), (0, None)] {
        let name = format!("duplicates, home {home}, owner {owner:?}");
        check(&name, on(Network::Duplicating, setup(home, owner, &two)));
    }
    let three = setup(0, Some(0), &[&[Write], &[Read], &[Write]]);
    check("duplicates, three nodes", on(Network::Duplicating, three));
}

/// ... or not at all, and are repeated.
#[test]
fn every_loss_is_repaired() {
    let two: [&[Access]; 2] = [&[Read, Write], &[Write]];
    for (home, owner) in [(0, Some(0)), (1, Some(0)), (0, None)] {
        let name = format!("losses, home {home}, owner {owner:?}");
        check(&name, on(Network::Lossy, setup(home, owner, &two)));
    }
    let both = setup(0, Some(0), &[&[Read, Write], &[Write, Read]]);
    check("losses, two nodes", on(Network::Lossy, both));
    let three = setup(0, Some(0), &[&[Write], &[Read], &[Write]]);
    check("losses, three nodes", on(Network::Lossy, three));
}

/// The checker sees an invalidate that is acknowledged too early.
#[test]
fn an_early_acknowledgement_is_found() {
    let mut setup = setup(0, Some(0), &[&[Read, Write], &[Write]]);
    setup.early = true;
    let checker = setup.checker().threads(2).spawn_bfs().join();
    let path = checker.discovery("coherent").expect("a counterexample");
    println!("found after {} steps", path.into_actions().len());
}
