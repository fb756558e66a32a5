use super::*;
use crate::topology::{Others, find, ready::READY};
use std::path::Path;

const TWO: &str = "[[node]]\nname = \"a\"\n[[node]]\nname = \"b\"\n";

/// Expects one error at a place.
#[track_caller]
fn refused(text: &str, place: &str, part: &str) {
    let failure = parse("f.toml", text).expect_err(text);
    assert_eq!(failure.code, 2);
    let line = failure.line;
    assert!(!line.contains('\n'), "{line}");
    let rest = line.strip_prefix(&format!("f.toml:{place}: "));
    assert!(
        rest.is_some_and(|rest| rest.contains(part)),
        "{line}\nis not {place}: {part}\nin {text}"
    );
}

#[test]
fn each_topology_that_comes_along_is_possible() {
    for (name, text) in READY {
        let topology = parse(&format!("{name}.toml"), text).unwrap();
        assert_eq!(topology.name, *name);
        assert!(topology.description.is_some(), "{name}");
        for spelled in [name.to_string(), format!("{name}.toml")] {
            assert_eq!(find(Path::new(&spelled)).unwrap(), topology);
        }
    }
    let unknown = find(Path::new("five-sockets")).unwrap_err();
    assert!(unknown.line.contains("four-sockets"), "{}", unknown.line);
}

#[test]
fn the_documented_file_is_possible() {
    let page = include_str!("../../../topologies/README.md");
    let lines = page.lines().skip_while(|line| !line.starts_with("    "));
    let example = lines.take_while(|line| line.is_empty() || line.starts_with("    "));
    let example: String = example.flat_map(|line| [line, "\n"]).collect();
    let topology = parse("example", &example).unwrap();
    assert_eq!((topology.cpus(), topology.numa().nodes.len()), (6, 4));
    let link = |from: usize, to: usize| {
        let link = topology.links.get(from, to);
        (link.latency_ns / 1000, link.bandwidth_bps, link.loss_ppm)
    };
    // The slow node makes either way take twice as long.
    assert_eq!(link(0, 1), (400, 5_000_000_000, 1_000));
    assert_eq!(link(1, 0), (2_000, 5_000_000_000, 1_000));
    // What is shared is as wide for it as for the other.
    assert_eq!(link(0, 2), (1_000, 1_000_000_000, 2_000));
    assert_eq!(link(1, 2), (500, 1_000_000_000, 2_000));
    assert_eq!(link(2, 1), (500, 100_000_000, 2_000));
}

/// Two racks of two nodes, linked through what is said here.
fn racks(rest: &str) -> String {
    let node =
        |name: &str, rack: &str| format!("[[node]]\nname = \"{name}\"\ngroup = \"{rack}\"\n");
    let nodes = [("a", "left"), ("b", "left"), ("c", "right"), ("d", "right")];
    let nodes: String = nodes.iter().map(|(name, rack)| node(name, rack)).collect();
    format!("{nodes}{rest}\n")
}

#[test]
fn links_between_racks_stand_in_one_queue_each_way() {
    let text = racks(
        r#"
        [links]
        latency = "10us"
        bandwidth = "10G"
        [[link]]
        between = ["right", "left"]
        uplink = "racks"
        jitter = "1us"
        [[link]]
        between = ["b", "c"]
        latency = "3ms"
        [[uplink]]
        name = "racks"
        latency = "1ms"
        bandwidth = "1G"
        back = { bandwidth = "1M", loss = "1%" }
    "#,
    );
    let topology = parse("x", &text).unwrap();
    assert_eq!(topology.links.uplinks, ["racks"]);
    let link = |from: usize, to: usize| {
        let link = topology.links.get(from, to);
        let us = [link.latency_ns, link.jitter_ns].map(|ns| ns / 1000);
        let mbit = link.bandwidth_bps / 1_000_000;
        (link.queue, us[0], us[1], mbit, link.loss_ppm)
    };
    for (from, to) in [(2, 0), (2, 1), (3, 0), (3, 1)] {
        let latency_us = if (from, to) == (2, 1) { 3_000 } else { 1_000 };
        assert_eq!(link(from, to), (Some(0), latency_us, 1, 1_000, 0));
        assert_eq!(link(to, from), (Some(1), latency_us, 1, 1, 10_000));
    }
    assert_eq!(link(0, 1), (None, 10, 0, 10_000, 0));
    assert_eq!(link(3, 2), (None, 10, 0, 10_000, 0));
    assert_eq!(topology.uplink_of(0).map(String::as_str), Some("racks"));
}

#[test]
fn uplinks_that_cannot_be_are_refused() {
    let uplink = "[[uplink]]\nname = \"x\"\nbandwidth = \"1G\"\n";
    let through = "[[link]]\nbetween = [\"left\", \"right\"]\nuplink = \"x\"\n";
    for (rest, place, part) in [
        (uplink.into(), "14:8", "no link goes through uplink x"),
        (through.into(), "15:10", "no uplink \"x\""),
        (format!("{uplink}{uplink}{through}"), "17:8", "twice"),
        (
            format!("{through}[[uplink]]\nname = \"x\"\n"),
            "17:8",
            "needs a bandwidth",
        ),
        (
            format!("{through}[[uplink]]\nname = \"x\"\nbandwidth = \"none\"\n"),
            "17:8",
            "needs a bandwidth",
        ),
        (
            format!("{through}[[uplink]]\nname = \"x\"\nbandwidth = \"0\"\n"),
            "18:13",
            "no bandwidth",
        ),
        (
            format!("{uplink}back = {{ bandwidth = \"none\" }}\n{through}"),
            "16:8",
            "needs a bandwidth",
        ),
        (
            format!("{uplink}jitter = \"1us\"\n{through}"),
            "16:10",
            "more than the latency",
        ),
        (format!("{uplink}speed = 1\n{through}"), "16:1", "speed"),
        (
            format!("{uplink}{through}bandwidth = \"2G\"\n"),
            "19:13",
            "shares its bandwidth",
        ),
        (
            format!("{uplink}{through}[[link]]\nbetween = [\"a\", \"c\"]\nbandwidth = \"2G\"\n"),
            "21:13",
            "shares its bandwidth",
        ),
        (
            format!("{uplink}{through}back = {{ bandwidth = \"2G\" }}\n"),
            "19:22",
            "shares its bandwidth",
        ),
        (
            format!(
                "{uplink}{}{through}[[link]]\nbetween = [\"d\", \"b\"]\nuplink = \"y\"\n",
                uplink.replace("\"x\"", "\"y\"")
            ),
            "24:10",
            "b and d are linked through uplink x already",
        ),
        (
            format!("{uplink}[[link]]\nwithin = \"left\"\nuplink = \"x\"\n"),
            "18:10",
            "no two ends",
        ),
        (
            format!("[links]\nrouted = true\n{uplink}{through}[[link]]\nwithin = \"left\"\n"),
            "16:8",
            "through no uplink",
        ),
    ] {
        refused(&racks(rest.as_str()), place, part);
    }
    let elsewhere = racks(&format!("{uplink}{through}"));
    let elsewhere = elsewhere.replace("\"d\"\n", "\"d\"\naddress = \"10.0.0.2:7000\"\n");
    refused(&elsewhere, "12:11", "node d is linked through uplink x");
}

#[test]
fn what_a_link_costs_is_said_for_all_for_groups_and_for_nodes() {
    let text = r#"
        [links]
        latency = "1ms"
        [[node]]
        name = "a"
        group = "left"
        [[node]]
        name = "b"
        group = "left"
        [[node]]
        name = "c"
        group = "right"
        slow = 2
        [[node]]
        name = "d"
        group = "right"
        [[link]]
        within = "left"
        latency = "10us"
        [[link]]
        between = ["left", "right"]
        bandwidth = "1G"
        [[link]]
        between = ["d", "a"]
        latency = "5ms"
        jitter = "1ms"
        back = { latency = "7ms", loss = "1%" }
    "#;
    let topology = parse("x", text).unwrap();
    let link = |from: usize, to: usize| {
        let link = topology.links.get(from, to);
        let us = [link.latency_ns, link.jitter_ns].map(|ns| ns / 1000);
        (us[0], us[1], link.bandwidth_bps / 1_000_000, link.loss_ppm)
    };
    assert_eq!(link(0, 1), (10, 0, 0, 0));
    assert_eq!(link(1, 3), (1_000, 0, 1_000, 0));
    assert_eq!(link(1, 2), (2_000, 0, 500, 0));
    assert_eq!(link(2, 3), (2_000, 0, 0, 0));
    assert_eq!(link(3, 0), (5_000, 1_000, 1_000, 0));
    assert_eq!(link(0, 3), (7_000, 1_000, 1_000, 10_000));
    assert_eq!(topology.others, Others::Given);
}

#[test]
fn the_far_side_of_a_ring_is_as_far_as_the_way_there() {
    let ring = find(Path::new("ring-of-8")).unwrap();
    let latency_us = |to: usize| ring.links.get(0, to).latency_ns / 1000;
    let all: Vec<u64> = (0..8).map(latency_us).collect();
    assert_eq!(all, [0, 40, 80, 120, 160, 120, 80, 40]);
    assert_eq!(ring.links.get(0, 4).bandwidth_bps, 10_000_000_000);
}

#[test]
fn what_is_no_topology_is_refused_where_it_is_wrong() {
    refused("", "1:1", "[[node]]");
    refused("[[node]\n", "1:8", "");
    refused("[[node]]\nname = \"a\"\ncolour = 1\n", "3:1", "colour");
    refused("size = 3\n", "1:1", "size");
    refused("[[node]]\ncpus = 1\n", "1:1", "name");
    refused("[[node]]\nname = \"a b\"\n", "2:8", "a b");
    refused(
        "[[node]]\nname = \"a\"\n[[node]]\nname = \"a\"\n",
        "4:8",
        "twice",
    );
    refused(
        "[[node]]\nname = \"a\"\naddress = \"x\"\n",
        "3:11",
        "HOST:PORT",
    );
}

#[test]
fn nodes_that_cannot_be_are_refused() {
    let node = |rest: &str| format!("[[node]]\nname = \"a\"\n{rest}\n");
    let after = |rest: &str| format!("{}{}", node(""), node(rest).replace("\"a\"", "\"b\""));
    for (text, place, part) in [
        (node("cpus = 0"), "3:8", "from 1 to 64"),
        (node("cpus = -1"), "3:8", "from 1 to 64"),
        (node("cpus = \"2\""), "3:8", "expected a whole number"),
        (node("mem = 256"), "3:7", "a size"),
        (node("mem = \"much\""), "3:7", "K, M or G"),
        (node("mem = \"1M\""), "3:7", "16M"),
        (node("mem = \"32M\""), "2:8", "64M"),
        (node("mem-limit = 1"), "3:13", "a size"),
        (
            node("host-cpus = \"0+1\""),
            "3:13",
            "listed as \"0-3,7\", from 0 to 1023",
        ),
        (
            node("host-cpus = \"1-2,2\""),
            "3:13",
            "CPU 2 is given twice",
        ),
        (
            node("mem-limit = \"64M\""),
            "3:13",
            "272M in all are the least",
        ),
        (node("cpus = 4\nsockets = 3"), "4:11", "divided"),
        (
            node("cpus = 4\nsockets = 2\nthreads = 4"),
            "5:11",
            "divided",
        ),
        (
            node(
                "cpus = 2\nthreads = 2\nnuma = [{ cpus = \"0\", mem = \"32M\" }, { cpus = \"1\", mem = \"32M\" }]",
            ),
            "5:8",
            "CPU 1 is in another NUMA node",
        ),
        (node("caches = [\"32\"]"), "3:11", "K, M or G"),
        (node("caches = [\"5K\"]"), "3:11", "multiple of 4K"),
        (
            node("caches = [\"32K\", \"1M\", \"8M\", \"1G\"]"),
            "3:30",
            "three at most",
        ),
        (
            format!(
                "{}{}",
                node("caches = [\"32K\"]"),
                node("").replace("\"a\"", "\"b\"")
            ),
            "5:8",
            "or of none",
        ),
        (node("slow = 0.5"), "3:8", "from 1 to 1000"),
        (after("cpus = 64"), "5:8", "65 CPUs"),
        (after("cpus = 0\nmem = \"0\""), "5:8", "neither"),
        (
            node("cpus = 2\nnuma = [{ cpus = \"0\", mem = \"64M\" }]"),
            "3:8",
            "of numa are 1",
        ),
        (
            node("numa = [{ cpus = \"1\", mem = \"64M\" }]"),
            "3:8",
            "CPU 0 is in no",
        ),
        (node("numa = [{ cpus = \"0-x\" }]"), "3:18", "0-3,7"),
        (
            node("numa = [{ cpus = \"0\" }, { cpus = \"0\" }]"),
            "3:34",
            "two NUMA nodes",
        ),
        (node("numa = [{}]"), "3:9", "or both"),
        (
            node("mem = \"64M\"\nnuma = [{ cpus = \"0\", mem = \"32M\" }]"),
            "3:7",
            "sum",
        ),
        (node("numa-of = \"a\""), "3:11", "first node begins"),
        (
            after("numa-of = \"x\""),
            "6:11",
            "those before this one are of a",
        ),
        (
            after("numa-of = \"a\"\nnuma = [{ cpus = \"0\", mem = \"32M\" }]"),
            "7:8",
            "none of its own",
        ),
    ] {
        refused(&text, place, part);
    }
}

#[test]
fn links_that_cannot_be_are_refused() {
    let link = |rest: &str| format!("{TWO}[[link]]\n{rest}\n");
    let ends = |rest: &str| link(&format!("between = [\"a\", \"b\"]\n{rest}"));
    for (text, place, part) in [
        (ends("latency = \"2s\""), "7:11", "more than 1s"),
        (ends("latency = \"1.5ms\""), "7:11", "no time"),
        (ends("latency = 200"), "7:11", "200us"),
        (ends("bandwidth = \"10\""), "7:13", "K, M, G or T"),
        (ends("loss = \"99%\""), "7:8", "50%"),
        (ends("jitter = \"1ms\""), "7:10", "more than the latency"),
        (ends("back = { speed = \"1G\" }"), "7:10", "speed"),
        (link("between = [\"a\"]"), "6:11", "two"),
        (link("between = [\"a\", \"a\"]"), "6:17", "same"),
        (link("between = [\"a\", \"x\"]"), "6:17", "\"x\""),
        (link("within = \"g\""), "6:10", "\"g\""),
        (link("latency = \"1ms\""), "5:1", "between"),
        (ends("[[link]]\nbetween = [\"b\", \"a\"]"), "8:11", "twice"),
        (
            format!("[links]\nrouted = true\n{TWO}"),
            "2:10",
            "no links lead",
        ),
    ] {
        refused(&text, place, part);
    }
    refused(
        &format!("[links]\nrouted = true\nlatency = \"1us\"\n{TWO}"),
        "1:1",
        "routed",
    );
    let slow = format!("[links]\nlatency = \"1s\"\n{TWO}slow = 2\n");
    refused(&slow, "7:8", "slower than one can be");
}

#[test]
fn distances_that_cannot_be_are_refused() {
    let with = |matrix: &str| format!("distances = {matrix}\n{TWO}");
    for (matrix, place, part) in [
        ("[[10, 20]]", "1:13", "1 rows"),
        ("[[10, 20], [20]]", "1:24", "a row of 1"),
        ("[[10, 20], [20, 11]]", "1:29", "itself is 10"),
        ("[[10, 10], [20, 10]]", "1:19", "from 11 to 254"),
        ("[[10, 255], [20, 10]]", "1:19", "from 11 to 254"),
        ("[[10, 20], [30, 10]]", "1:25", "from 1 to 0 is 30"),
    ] {
        refused(&with(matrix), place, part);
    }
    let topology = parse("x", &with("[[10, 20], [20, 10]]")).unwrap();
    assert_eq!(topology.numa().distances, [[10, 20], [20, 10]]);
}
