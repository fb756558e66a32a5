//! Nodes in one process, whose sockets are real.

use super::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use span_api::guest::{Link as LinkCost, NodeSpec, Paging};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LONGEST: Duration = Duration::from_secs(20);

/// What the nodes of one guest are given.
fn setups(nodes: u16, latency_ns: u64) -> Vec<Setup> {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let key = KeyPair::generate().expect("a key");
    let authority = params
        .self_signed(&key)
        .expect("an authority")
        .der()
        .to_vec();
    let issuer = Issuer::new(params, key);
    let setup = |node: u16| {
        let params = CertificateParams::new(vec![format!("node-{node}")]).expect("a name");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        Setup {
            node,
            nodes: (0..nodes)
                .map(|node| NodeSpec {
                    name: format!("n{node}"),
                    cpus: vec![node],
                    memory_bytes: 4096,
                    limit_bytes: None,
                })
                .collect(),
            links: vec![
                LinkCost {
                    latency_ns,
                    ..LinkCost::default()
                };
                nodes.into()
            ],
            link_seed: 0,
            exports: Vec::new(),
            any_disk: false,
            patient: false,
            paging: Paging::Auto,
            bind: HERE,
            authority: authority.clone(),
            certificate: certificate.der().to_vec(),
            key: key.serialize_der(),
        }
    };
    (0..nodes).map(setup).collect()
}

/// Nodes that have been told of each other.
fn nodes(setups: &[Setup]) -> Vec<Net> {
    let mut nets: Vec<Net> = setups
        .iter()
        .map(|setup| Net::bind(setup).expect("a socket"))
        .collect();
    let addresses = addresses(&nets);
    for net in &mut nets {
        net.meet(&addresses).expect("connections");
    }
    nets
}

fn addresses(nets: &[Net]) -> Vec<SocketAddr> {
    let address = |net: &Net| SocketAddr::new(net.address, net.port().expect("a port"));
    nets.iter().map(address).collect()
}

/// Lets all work until `done`, and passes on what each hears.
fn work(nets: &mut [Net], mut heard: impl FnMut(usize, News), done: impl Fn(&[Net]) -> bool) {
    let began = Instant::now();
    while !done(nets) {
        assert!(began.elapsed() < LONGEST, "{nets:?}");
        for (node, net) in nets.iter_mut().enumerate() {
            net.receive(None).expect("a socket that works");
            net.handle_timeouts();
            while let Some(news) = net.next() {
                heard(node, news);
            }
            net.transmit();
        }
        std::thread::yield_now();
    }
}

fn unexpected(node: usize, news: News) {
    panic!("node {node} heard {news:?}");
}

fn met(setups: &[Setup]) -> Vec<Net> {
    let mut nets = nodes(setups);
    work(&mut nets, unexpected, |nets| nets.iter().all(Net::complete));
    nets
}

fn call(ticket: u64, bytes: usize) -> Frame {
    Frame::HostCall {
        ticket,
        request: vec![ticket as u8; bytes].into(),
    }
}

#[test]
fn frames_arrive_whole_and_in_order_from_everybody() {
    const FRAMES: u64 = 200;
    let mut nets = met(&setups(3, 0));
    for (node, net) in nets.iter_mut().enumerate() {
        for other in (0..3).filter(|other| *other != node) {
            for ticket in 0..FRAMES {
                // More than a socket's buffer has room for, in all.
                let bytes = wire::PAYLOAD_BYTES_MAX * (ticket as usize % 3) / 2;
                assert!(net.send(other as u16, call(ticket, bytes)) > bytes as u64);
                assert!(net.send(other as u16, Frame::CpuRun { cpu: ticket as u16 }) > 0);
            }
        }
    }
    let mut next = BTreeMap::new();
    let count = Cell::new(0);
    let heard = |to: usize, news: News| {
        let News::Frame { from, received } = news else {
            return unexpected(to, news);
        };
        let (kind, number) = match received.frame {
            Frame::HostCall { ticket, request } => {
                let bytes = wire::PAYLOAD_BYTES_MAX * (ticket as usize % 3) / 2;
                assert_eq!(request, vec![ticket as u8; bytes]);
                (0, ticket)
            }
            Frame::CpuRun { cpu } => (1, u64::from(cpu)),
            other => panic!("{other:?}"),
        };
        let expected = next.entry((from, to, kind)).or_insert(0);
        assert_eq!(number, *expected);
        *expected += 1;
        count.set(count.get() + 1);
    };
    work(&mut nets, heard, |_| count.get() == 3 * 2 * 2 * FRAMES);
}

#[test]
fn a_link_that_is_slow_delays_what_is_sent_on_it() {
    const LATENCY_NS: u64 = 30_000_000;
    let mut nets = met(&setups(2, LATENCY_NS));
    let began = Instant::now();
    nets[0].send(1, Frame::CpuRun { cpu: 0 });
    let arrived = Cell::new(None);
    work(
        &mut nets,
        |_, _| arrived.set(Some(began.elapsed())),
        |_| arrived.get().is_some(),
    );
    assert!(arrived.get() >= Some(Duration::from_nanos(LATENCY_NS)));
}

#[test]
fn who_has_no_certificate_of_this_guests_is_turned_away() {
    let mut nets = met(&setups(2, 0));
    let strangers = setups(3, 0);
    let mut stranger = Net::bind(&strangers[2]).expect("a socket");
    // Takes both for nodes of its own guest.
    stranger.meet(&addresses(&nets)).expect("connections");
    nets.push(stranger);
    let lost = Cell::new(0);
    let heard = |node: usize, news: News| match news {
        News::Lost { .. } if node == 2 => lost.set(lost.get() + 1),
        news => unexpected(node, news),
    };
    work(&mut nets, heard, |_| lost.get() == 2);
    nets[0].send(1, Frame::CpuRun { cpu: 1 });
    let heard = |node: usize, news: News| match news {
        News::Frame { from: 0, .. } if node == 1 => lost.set(0),
        News::Lost { .. } if node == 2 => {}
        news => unexpected(node, news),
    };
    work(&mut nets, heard, |_| lost.get() == 0);
}

#[test]
fn nobody_joins_once_all_are_here() {
    let setups = setups(2, 0);
    let mut nets = met(&setups);
    // As node 1 once more.
    let mut again = Net::bind(&setups[1]).expect("a socket");
    again.meet(&addresses(&nets)).expect("connections");
    nets.push(again);
    let refused = Cell::new(false);
    let heard = |node: usize, news: News| match news {
        News::Lost { node: 0, reason } if node == 2 => {
            // When it is noticed depends on how much of what it says comes at once.
            let known = ["all nodes are here", "this node is here"];
            assert!(known.iter().any(|why| reason.contains(why)), "{reason}");
            refused.set(true);
        }
        news => unexpected(node, news),
    };
    work(&mut nets, heard, |_| refused.get());
}

#[test]
fn a_silent_node_is_lost_by_all_on_other_hosts() {
    let mut setups = setups(3, 0);
    // By its address. All of this network's are this host's.
    setups[1].bind = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
    let mut nets = met(&setups);
    // It is on the first one's host, where its end would be seen.
    nets.truncate(2);
    let lost = Cell::new(0);
    let heard = |node, news: News| match news {
        News::Lost { node: 2, .. } if node == 1 => lost.set(lost.get() + 1),
        news => unexpected(node, news),
    };
    work(&mut nets, heard, |_| lost.get() == 1);
    let until = Instant::now() + tls::IDLE / 2;
    work(&mut nets, unexpected, |_| Instant::now() > until);
}

#[test]
fn whoever_did_not_run_has_lost_nobody() {
    let mut setups = setups(2, 0);
    setups[1].bind = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
    let mut nets = met(&setups);
    // The second one goes on for a while, and says something.
    let until = Instant::now() + 2 * tls::IDLE / 3;
    work(&mut nets[1..], unexpected, |_| Instant::now() > until);
    nets[1].send(0, Frame::CpuRun { cpu: 0 });
    nets[1].transmit();
    std::thread::sleep(2 * tls::IDLE / 3);
    let arrived = Cell::new(false);
    let heard = |node: usize, news: News| match news {
        News::Frame { from: 1, .. } if node == 0 => arrived.set(true),
        news => unexpected(node, news),
    };
    // As a pager does when it runs again, to an alarm: its timers first.
    nets[0].handle_timeouts();
    work(&mut nets[..1], heard, |_| arrived.get());
}

#[test]
fn a_cut_that_lasts_is_a_loss_on_one_host_too() {
    let mut nets = met(&setups(2, 0));
    let cut = LinkCost {
        cut: true,
        ..LinkCost::default()
    };
    let began = Instant::now();
    nets[0].set_cost(1, cut);
    nets[1].set_cost(0, cut);
    let lost = Cell::new(0);
    let heard = |_, news: News| match news {
        News::Lost { .. } => lost.set(lost.get() + 1),
        news => panic!("{news:?}"),
    };
    work(&mut nets, heard, |_| lost.get() == 2);
    assert!(began.elapsed() >= tls::IDLE);
}
