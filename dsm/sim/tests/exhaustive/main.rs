//! Every order of events, for networks small enough: two or three nodes, one or two pages, a few
//! accesses each. Every access needs one page: where one needs two, nodes can trade them as often as
//! time allows, and time has no part in this. That is for the simulator.
//!
//! The short form is part of the ordinary tests; the full one takes minutes:
//!
//!     cargo test --release -p dsm-sim --test exhaustive -- --ignored --nocapture --test-threads=1

mod model;

use dsm::{Access, Initial, NodeId, PageId, Planted};
use dsm_sim::{Plant, Shape, Want};
use model::{HOLD_NS, Network, RETRANSMIT_NS, Setup};
use stateright::{Checker, Model};

use Access::{Read, Write};

/// More steps than this between states, and a configuration is too large to be checked: that fails,
/// it is not passed over.
const STEPS_MAX: usize = 30_000_000;

/// One page, one thread a node.
fn setup(home: u16, owner: Option<u16>, programs: &[&[Access]]) -> Setup {
    let wants = |program: &&[Access]| program.iter().map(|a| vec![(PageId(0), *a)]).collect();
    let programs = (0..).map(NodeId).zip(programs.iter().map(wants));
    Setup {
        shape: shape(&[home], &[owner]),
        network: Network::Unordered,
        programs: programs.map(|(node, wants)| (node, 0, wants)).collect(),
        evictions: Vec::new(),
    }
    .sized()
}

/// Homes and first owners of pages; `None` is untouched.
fn shape(homes: &[u16], owners: &[Option<u16>]) -> Shape {
    let pages = || (0..).map(PageId);
    let initial = |o: &Option<u16>| o.map_or(Initial::Untouched, |n| Initial::Owned(NodeId(n)));
    Shape {
        nodes: 0,
        threads: 0,
        pages: homes.len() as u32,
        homes: pages().zip(homes.iter().map(|h| NodeId(*h))).collect(),
        initial: pages().zip(owners.iter().map(initial)).collect(),
        hold_ns: HOLD_NS,
        hold_ns_max: HOLD_NS,
        retransmit_ns: None,
        migratory: true,
        foreign_max: None,
        keep_bytes: false,
        planted: Planted::NOTHING,
        plant: Plant::Nothing,
        inline_protect: false,
        anonymous: false,
        check_answers: true,
    }
}

/// Two pages: each node's threads, each thread's accesses.
fn two_pages(homes: [u16; 2], owners: [Option<u16>; 2], nodes: &[&[&[Want]]]) -> Setup {
    let mut programs = Vec::new();
    for (node, threads) in (0..).map(NodeId).zip(nodes) {
        for (thread, program) in (0..).zip(*threads) {
            programs.push((node, thread, program.to_vec()));
        }
    }
    Setup {
        shape: shape(&homes, &owners),
        network: Network::Unordered,
        programs,
        evictions: Vec::new(),
    }
    .sized()
}

fn a(access: Access) -> Want {
    vec![(PageId(0), access)]
}

fn b(access: Access) -> Want {
    vec![(PageId(1), access)]
}

impl Setup {
    /// As many nodes and threads as the programs name.
    fn sized(mut self) -> Setup {
        for (node, thread, _) in &self.programs {
            self.shape.nodes = self.shape.nodes.max(node.0 + 1);
            self.shape.threads = self.shape.threads.max(thread + 1);
        }
        self
    }

    /// The nodes give up these pages as well, each at any time.
    fn evicting(mut self, evictions: &[(u16, u32)]) -> Setup {
        let pairs = evictions.iter();
        self.evictions = pairs.map(|e| (NodeId(e.0), PageId(e.1))).collect();
        self
    }

    /// No node may have more pages of others than this.
    fn limited(mut self, foreign_max: u32) -> Setup {
        self.shape.foreign_max = Some(foreign_max);
        self
    }

    fn on(mut self, network: Network) -> Setup {
        self.network = network;
        let lossy = network == Network::Lossy;
        self.shape.keep_bytes = network != Network::Unordered;
        self.shape.retransmit_ns = lossy.then_some((RETRANSMIT_NS, RETRANSMIT_NS));
        self
    }
}

fn check(name: &str, setup: Setup) -> usize {
    let checker = setup
        .checker()
        .threads(2)
        .target_state_count(STEPS_MAX)
        .spawn_bfs()
        .join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    println!("{name}: {states} states, {depth} steps deep");
    checker.assert_properties();
    // What the checker calls its state count counts each state as often as it was come to.
    let steps = checker.state_count();
    assert!(
        checker.is_done() && steps < STEPS_MAX,
        "{name} is too large: {steps} steps"
    );
    states
}

const HOMES: [(u16, Option<u16>); 4] = [(0, Some(0)), (0, Some(1)), (1, Some(0)), (0, None)];

/// Messages overtake each other.
#[test]
fn every_order_of_messages_is_coherent() {
    for (home, owner) in HOMES {
        let two: [&[Access]; 2] = [&[Read, Write, Read], &[Read, Write, Write]];
        let three: [&[Access]; 3] = [&[Write], &[Read, Write], &[Read]];
        let name = format!("home {home}, owner {owner:?}");
        check(&format!("two nodes, {name}"), setup(home, owner, &two));
        check(&format!("three nodes, {name}"), setup(home, owner, &three));
    }
}

/// ... and arrive any number of times, at any later moment.
#[test]
fn every_duplicate_is_harmless() {
    let two: [&[Access]; 2] = [&[Read, Write], &[Write, Read]];
    for (home, owner) in [(0, Some(0)), (1, Some(0)), (0, None)] {
        let name = format!("duplicates, home {home}, owner {owner:?}");
        check(&name, setup(home, owner, &two).on(Network::Duplicating));
    }
}

/// ... or not at all, and are repeated.
#[test]
fn every_loss_is_repaired() {
    let two: [&[Access]; 2] = [&[Read, Write], &[Write]];
    for (home, owner) in [(0, Some(0)), (1, Some(0)), (0, None)] {
        let name = format!("losses, home {home}, owner {owner:?}");
        check(&name, setup(home, owner, &two).on(Network::Lossy));
    }
}

/// Transactions on two pages at once, of one home or two, by one thread a node.
#[test]
fn two_pages_do_not_disturb_each_other() {
    let crossing: [&[&[Want]]; 2] = [&[&[a(Write), b(Read)]], &[&[b(Write), a(Read)]]];
    for homes in [[0, 0], [0, 1]] {
        let owners = [Some(0), Some(1)];
        let name = format!("two pages, homes {homes:?}");
        check(&name, two_pages(homes, owners, &crossing));
    }
}

/// Evictions cross everything else that can happen to a page, and each other.
#[test]
fn every_eviction_is_coherent() {
    for (home, owner) in [(0, Some(0)), (0, Some(1)), (1, Some(0)), (0, None)] {
        let two: [&[Access]; 2] = [&[Read, Write], &[Write, Read]];
        let three: [&[Access]; 3] = [&[Write], &[Read], &[Read]];
        let name = format!("evictions, home {home}, owner {owner:?}");
        let one = [(1 - home, 0)];
        let setup_two = setup(home, owner, &two).evicting(&one);
        check(&format!("two nodes, {name}"), setup_two);
        let both = [(1 - home, 0), (2, 0)];
        let setup_three = setup(home, owner, &three).evicting(&both);
        check(&format!("three nodes, {name}"), setup_three);
    }
}

/// ... also where messages of them are repeated or lost.
#[test]
fn every_loss_of_an_eviction_is_repaired() {
    for network in [Network::Duplicating, Network::Lossy] {
        for (home, owner, programs) in [
            (0, Some(0), [&[Write][..], &[Read][..]]),
            (0, Some(1), [&[Read][..], &[Write][..]]),
            (0, None, [&[Write][..], &[Write][..]]),
        ] {
            let name = format!("evictions, {network:?}, home {home}, owner {owner:?}");
            let evicting = setup(home, owner, &programs).evicting(&[(1, 0)]);
            check(&name, evicting.on(network));
        }
    }
}

/// I11: a node that may have one page of others at a time uses two of them; every order ends, also
/// where two nodes have each other's pages and no room.
#[test]
fn every_order_with_little_room_ends() {
    let one: [&[&[Want]]; 2] = [&[&[]], &[&[a(Write), b(Read), a(Read)]]];
    check(
        "a node walks over two pages of another's",
        two_pages([0, 0], [Some(0), Some(0)], &one).limited(1),
    );
    let busy: [&[&[Want]]; 2] = [&[&[a(Read), b(Write)]], &[&[a(Write), b(Write)]]];
    check(
        "... which uses them, too",
        two_pages([0, 0], [Some(0), None], &busy).limited(1),
    );
    let crossing: [&[&[Want]]; 2] = [&[&[b(Write), a(Write)]], &[&[a(Write), b(Read)]]];
    check(
        "two nodes have each other's",
        two_pages([0, 1], [Some(0), Some(1)], &crossing).limited(1),
    );
}

/// The gate can fail: what is planted in the engine is found, and so is what comes of it if nobody
/// looks at the answers themselves.
#[test]
fn planted_bugs_are_found() {
    let plant = |early_ack, lost_sharer| {
        let mut planted = Planted::NOTHING;
        (planted.early_ack, planted.lost_sharer) = (early_ack, lost_sharer);
        planted
    };
    let invalidate = "I3, I6: no invalidate is lost";
    for (bug, check_answers, property) in [
        (plant(true, false), true, invalidate),
        (plant(true, false), false, "I1: single writer"),
        (plant(false, true), true, invalidate),
    ] {
        let programs: [&[Access]; 2] = [&[Read, Write], &[Read]];
        let mut setup = setup(0, Some(0), &programs);
        setup.shape.planted = bug;
        setup.shape.check_answers = check_answers;
        let checker = setup.checker().threads(2).spawn_bfs().join();
        let path = checker.discovery(property).expect("a counterexample");
        let steps = path.into_actions().len();
        println!("{bug:?}, answers checked {check_answers}: {property} after {steps} steps");
    }
}

/// The same for a bug of the runtime's part.
#[test]
fn an_early_protected_is_found() {
    let programs: [&[Access]; 2] = [&[Read, Write], &[Write]];
    for (check_answers, property) in [
        (true, "I3, I6: no invalidate is lost"),
        (false, "I1: single writer"),
    ] {
        let mut setup = setup(0, Some(0), &programs);
        setup.shape.plant = Plant::EarlyProtected;
        setup.shape.check_answers = check_answers;
        let checker = setup.checker().threads(2).spawn_bfs().join();
        let path = checker.discovery(property).expect("a counterexample");
        println!("{property} after {} steps", path.into_actions().len());
    }
}

/// A runtime that drops what its node still keeps for others.
#[test]
fn an_early_discard_is_found() {
    let programs: [&[Access]; 2] = [&[Read], &[Write]];
    let mut setup = setup(0, Some(0), &programs).evicting(&[(1, 0)]).limited(1);
    setup.shape.plant = Plant::EarlyDiscard;
    let checker = setup.checker().threads(2).spawn_bfs().join();
    let path = checker
        .discovery("I2: readers see the last write")
        .expect("a counterexample");
    println!("I2 after {} steps", path.into_actions().len());
}

mod full {
    //! More of everything.

    use super::*;

    #[test]
    #[ignore = "minutes: see the head of this file"]
    fn one_page_in_every_order() {
        let mut states = 0;
        for migratory in [false, true] {
            for (home, owner) in HOMES {
                let all: [&[Access]; 3] = [&[Read, Write], &[Read, Write], &[Read, Write]];
                let mut setup = setup(home, owner, &all);
                setup.shape.migratory = migratory;
                let name =
                    format!("three nodes, home {home}, owner {owner:?}, migratory {migratory}");
                states += check(&name, setup);
            }
        }
        println!("{states} states");
    }

    #[test]
    #[ignore = "minutes: see the head of this file"]
    fn one_page_with_duplicates_and_losses() {
        let mut states = 0;
        for network in [Network::Duplicating, Network::Lossy] {
            for (home, owner) in HOMES {
                let two: [&[Access]; 2] = [&[Read, Write], &[Write, Read]];
                let name = format!("two nodes, {network:?}, home {home}, owner {owner:?}");
                states += check(&name, setup(home, owner, &two).on(network));
            }
            for (home, owner) in [(0, Some(0)), (1, Some(0)), (2, Some(0))] {
                let three: [&[Access]; 3] = [&[Write], &[Read], &[Write]];
                let name = format!("three nodes, {network:?}, home {home}, owner {owner:?}");
                states += check(&name, setup(home, owner, &three).on(network));
            }
        }
        println!("{states} states");
    }

    #[test]
    #[ignore = "minutes: see the head of this file"]
    fn two_pages_in_every_order() {
        let mut states = 0;
        let crossing: [&[&[Want]]; 3] = [
            &[&[a(Write), b(Read)]],
            &[&[b(Write), a(Read)]],
            &[&[a(Read)]],
        ];
        // Two requests of each node under way at once.
        let threads: [&[&[Want]]; 2] = [
            &[&[a(Write)], &[b(Read), b(Write)]],
            &[&[a(Read), a(Write)], &[b(Write)]],
        ];
        let owners = [Some(0), Some(1)];
        for homes in [[0, 0], [0, 1], [1, 0]] {
            let name = |what| format!("two pages, {what}, homes {homes:?}");
            let crossed = two_pages(homes, owners, &crossing);
            states += check(&name("three nodes"), crossed);
            let at_once = two_pages(homes, owners, &threads);
            states += check(&name("two threads a node"), at_once);
        }
        println!("{states} states");
    }

    #[test]
    #[ignore = "minutes: see the head of this file"]
    fn two_pages_with_duplicates_and_losses() {
        let mut states = 0;
        let crossing: [&[&[Want]]; 2] = [&[&[a(Write), b(Read)]], &[&[b(Write), a(Read)]]];
        let three: [&[&[Want]]; 3] = [&[&[a(Write)]], &[&[b(Write), a(Read)]], &[&[a(Read)]]];
        let owners = [Some(0), Some(1)];
        for network in [Network::Duplicating, Network::Lossy] {
            for homes in [[0, 1], [1, 0], [0, 0]] {
                let name = format!("two pages, two nodes, {network:?}, homes {homes:?}");
                let crossed = two_pages(homes, owners, &crossing).on(network);
                states += check(&name, crossed);
            }
            for homes in [[0, 1], [1, 0]] {
                let name = format!("two pages, three nodes, {network:?}, homes {homes:?}");
                states += check(&name, two_pages(homes, owners, &three).on(network));
            }
        }
        println!("{states} states");
    }

    #[test]
    #[ignore = "minutes: see the head of this file"]
    fn evictions_in_every_order() {
        let mut states = 0;
        for (home, owner) in HOMES {
            let three: [&[Access]; 3] = [&[Read, Write], &[Write, Read], &[Read]];
            let evictions = [(1 - home, 0), (2, 0)];
            let name = format!("three nodes, evictions, home {home}, owner {owner:?}");
            states += check(&name, setup(home, owner, &three).evicting(&evictions));
        }
        println!("{states} states");
    }

    #[test]
    #[ignore = "minutes: see the head of this file"]
    fn evictions_with_duplicates_and_losses() {
        let mut states = 0;
        for network in [Network::Duplicating, Network::Lossy] {
            for (home, owner) in [(0, Some(0)), (0, Some(1)), (0, None)] {
                let two: [&[Access]; 2] = [&[Read, Write], &[Write]];
                let name = format!("evictions, {network:?}, home {home}, owner {owner:?}");
                let evicting = setup(home, owner, &two).evicting(&[(1 - home, 0)]);
                states += check(&name, evicting.on(network));
            }
        }
        println!("{states} states");
    }

    #[test]
    #[ignore = "minutes: see the head of this file"]
    fn little_room_in_every_order() {
        let mut states = 0;
        let crossing: [&[&[Want]]; 3] = [
            &[&[b(Write), a(Read)]],
            &[&[a(Write), b(Read)]],
            &[&[a(Read), b(Read)]],
        ];
        let owners = [Some(0), Some(1)];
        let name = |what| format!("little room, {what}");
        let three = two_pages([0, 1], owners, &crossing).limited(1);
        states += check(&name("three nodes"), three);
        let threads: [&[&[Want]]; 2] = [
            &[&[b(Write)]],
            &[&[a(Write), b(Write)], &[b(Read), a(Read)]],
        ];
        let two = two_pages([0, 0], [Some(0), None], &threads).limited(1);
        states += check(&name("two threads"), two);
        for network in [Network::Duplicating, Network::Lossy] {
            let two: [&[&[Want]]; 2] = [&[&[]], &[&[a(Write), b(Read)]]];
            let two = two_pages([0, 0], [Some(0), Some(0)], &two).limited(1);
            states += check(&name("two nodes, faults"), two.on(network));
        }
        println!("{states} states");
    }
}
