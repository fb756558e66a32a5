//! Networks of more nodes than a guest may have: the same engines, with sets of more words.

use dsm::NodeSet;
use dsm::{Engine, NODES_MAX, NODES_MAX_WIDEST, NodeId};
use dsm_sim::curve::{Point, Work, plot, point, table};
use dsm_sim::{Options, Params, Sim, Size};

fn at(work: Work, nodes: u16) -> Point {
    point(work, 1, nodes).unwrap_or_else(|breach| panic!("{work:?}, {nodes} nodes: {breach}"))
}

#[test]
fn what_a_fault_costs_among_neighbours_does_not_depend_on_the_others() {
    let few = at(Work::Neighbours, 16);
    assert!(few.faults > 500, "proves too little: {few:?}");
    for nodes in [64, 65, 200] {
        let more = at(Work::Neighbours, nodes);
        let ratio = more.messages_a_fault / few.messages_a_fault;
        assert!((0.9..1.1).contains(&ratio), "{few:?}\n{more:?}");
        assert!((0.9..1.1).contains(&(more.latency_median / few.latency_median)));
        assert!(more.messages_max <= 10, "{more:?}");
    }
    // Sets of one word, of two, and of four.
    let bytes = [64, 65, 200].map(|nodes| at(Work::Neighbours, nodes).directory_bytes_a_page);
    assert_eq!(bytes, [16, 24, 40]);
}

/// A write to a page that all others have tells each of them, and waits for all.
#[test]
fn the_worst_case_grows_with_the_number_of_nodes() {
    let (few, many) = (at(Work::OneWriter, 32), at(Work::OneWriter, 320));
    for point in [&few, &many] {
        let others = u32::from(point.nodes) - 2;
        assert!(point.messages_max >= others * 3 / 2, "{point:?}");
    }
    assert!(
        many.latency_median > 5.0 * few.latency_median,
        "{few:?}\n{many:?}"
    );
}

#[test]
fn the_largest_network_stays_coherent() {
    let point = at(Work::OneWriter, NODES_MAX_WIDEST);
    assert!(point.faults > 1_000, "proves too little: {point:?}");
}

#[test]
fn the_same_seed_makes_the_same_curve() {
    let curve = |seed| {
        let points = [2, 70].map(|nodes| point(Work::Anywhere, seed, nodes).expect("no breach"));
        (table(&points), plot(&points).map_err(|e| e.to_string()))
    };
    assert_eq!(curve(1), curve(1));
    assert_ne!(curve(1).0, curve(2).0);
}

/// The checks see nodes beyond the first word of a set, too.
#[test]
fn planted_bugs_are_caught_in_wide_networks() {
    for bug in ["early-ack", "lost-sharer"] {
        let options = Options {
            reliable: true,
            nodes: Some(100),
            plant: vec![bug.to_owned()],
            unchecked_answers: true,
            ..Options::new(Size::Small, 3)
        };
        let params = Params {
            write_percent: 30,
            ..options.params().expect("a bug")
        };
        let breach = Sim::<2>::new(params.clone()).run().expect_err(bug);
        println!("{bug}: {breach}");
        let sound = Params {
            plant: Default::default(),
            planted: dsm::Planted::NOTHING,
            ..params
        };
        Sim::<2>::new(sound)
            .run()
            .unwrap_or_else(|breach| panic!("{breach}"));
    }
}

#[test]
fn sets_of_many_words_are_sets() {
    let nodes = [0, 63, 64, 65, 127, 128, 1023].map(NodeId);
    let all = nodes
        .iter()
        .fold(NodeSet::<16>::EMPTY, |set, node| set.with(*node));
    assert_eq!(all.iter().collect::<Vec<_>>(), nodes);
    assert_eq!((all.len(), all.first()), (7, Some(NodeId(0))));
    assert!(nodes.iter().all(|node| all.contains(*node)));
    assert!(!all.contains(NodeId(1)) && !all.contains(NodeId(1024)));
    let fewer = all.without(NodeId(0)).without(NodeId(127));
    assert_eq!(fewer.first(), Some(NodeId(63)));
    assert!(fewer.is_subset(all) && !all.is_subset(fewer));
    let none = nodes.iter().fold(all, |set, node| set.without(*node));
    assert!(none.is_empty() && none.first().is_none());
}

#[test]
fn an_engine_takes_as_many_nodes_as_its_sets() {
    let config = |nodes| dsm::Config::new(NodeId(0), nodes, 1);
    assert!(Engine::<u64>::new(config(NODES_MAX)).is_ok());
    let refused = Engine::<u64>::new(config(NODES_MAX + 1)).expect_err("too many");
    assert_eq!(refused.to_string(), "65 nodes, allowed are 1 to 64");
    assert!(Engine::<u64, 16>::new(config(NODES_MAX_WIDEST)).is_ok());
    assert!(Engine::<u64, 16>::new(config(NODES_MAX_WIDEST + 1)).is_err());
}
