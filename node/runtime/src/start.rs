//! From the start of the process to the start of the kernel.

use crate::image::NodeImage;
use crate::pager::{self, Meeting, Remote};
use crate::view::View;
use crate::{clock, control, host, hostcall, image, network, slots, sticky, stub, uplinks};
use span_api::guest::{FromGuest, Paging, Setup};
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU16, Ordering::Relaxed};
use std::sync::{Mutex, mpsc};

static SETUP: Mutex<Option<Setup>> = Mutex::new(None);
static MEMORY_FD: AtomicI32 = AtomicI32::new(-1);
static NODE: AtomicU16 = AtomicU16::new(0);
static PLACEMENT: [AtomicU8; span_api::CPUS_MAX] = [const { AtomicU8::new(0) }; span_api::CPUS_MAX];

static ENV: hostcall::Env = hostcall::Env {
    node: || NODE.load(Relaxed),
    is_guest: image::touches_guest,
    forward: forward_call,
    clock_offset_ns: clock::offset_ns,
    log: |line| {
        eprintln!("span: {line}");
    },
};

fn forward_call(node: u16, request: &[u8], reply: &mut [u8]) -> usize {
    use crate::slots::{Op, request4};
    let node_and_len = u64::from(node) << 32 | request.len() as u64;
    request4(
        Op::HostCall,
        node_and_len,
        request.as_ptr() as u64,
        reply.as_mut_ptr() as u64,
        reply.len() as u64,
    ) as usize
}

/// The set-up, if an agent has started this process; plain UML has none.
pub(crate) fn join() -> Option<Setup> {
    if !control::connect() {
        return None;
    }
    if let Err(line) = network::place() {
        control::fail(&line);
    }
    if let Err(line) = uplinks::map() {
        control::fail(&line);
    }
    match host::describe() {
        Ok(host) => control::send(&FromGuest::Host(Box::new(host))),
        Err(line) => control::fail(&line),
    }
    let setup = control::receive_setup();
    if let Some(bugs) = dsm::Planted::in_this_build() {
        eprintln!("span: built with {bugs}: memory will not be coherent");
    }
    NODE.store(setup.node, Relaxed);
    for (node, spec) in setup.nodes.iter().enumerate() {
        for cpu in &spec.cpus {
            PLACEMENT[usize::from(*cpu)].store(node as u8, Relaxed);
        }
    }
    sticky::set_up();
    *SETUP.lock().expect("nobody has panicked yet") = Some(setup.clone());
    let names = setup
        .nodes
        .iter()
        .map(|node| node.name.clone().into_bytes());
    hostcall::take_umask();
    if let Err(line) = hostcall::export(&setup.exports, setup.any_disk, names.collect()) {
        control::fail(&line);
    }
    let several = setup.nodes.len() > 1;
    let install = match several {
        true => hostcall::install,
        false => hostcall::install_for_hostfs,
    };
    if let Err(error) = install(&ENV) {
        control::fail(&format!("host calls: {error}"));
    }
    // Until the kernel runs, this process sets up its own host half.
    hostcall::set_paths_local(several);
    Some(setup)
}

pub(crate) fn node_of_cpu(cpu: i32) -> i32 {
    PLACEMENT
        .get(cpu as usize)
        .map_or(0, |node| i32::from(node.load(Relaxed)))
}

pub(crate) fn memory_fd() -> i32 {
    MEMORY_FD.load(Relaxed)
}

/// Makes memory coherent, meets the other nodes, and waits for the start.
pub(crate) fn map(image: NodeImage) {
    let setup = SETUP
        .lock()
        .expect("nobody has panicked yet")
        .take()
        .expect("joined before");
    if setup.nodes.len() == 1 {
        return meet_nobody();
    }
    image::set(&image);
    let own = pager::owned(&pager::owners(&setup, &image), setup.node);
    let file_bytes = image.memory_size + stub::file_bytes(image.stub_data_size);
    let view = match View::new(&image, file_bytes, &own, setup.paging) {
        Ok(view) => view,
        Err(error) => control::fail(&format!(
            "mapping {} MiB of guest memory (--paging {:?}): {error}",
            image.memory_size >> 20,
            setup.paging
        )),
    };
    MEMORY_FD.store(view.fd(), Relaxed);
    let paging = view.paging();
    if !hostcall::share_fd(view.fd()) {
        control::fail("too many descriptors are open at the start");
    }
    let pages = (0..(image.memory_size / image::PAGE_BYTES) as u32).map(|p| view.protection(p));
    let stubs = stub::set_up(
        view.fd(),
        image.memory_size,
        image.stub_data_size,
        image.stub_futex,
        pages,
    );
    if let Err(error) = stubs {
        control::fail(&format!("memory for stub processes: {error}"));
    }

    if let Err(error) = slots::set_up() {
        control::fail(&format!("an event descriptor: {error}"));
    }
    let (bound_sender, bound) = mpsc::channel();
    let (peers, peers_receiver) = mpsc::channel();
    let (connected_sender, connected) = mpsc::channel();
    let meeting = Meeting {
        bound: bound_sender,
        peers: peers_receiver,
        connected: connected_sender,
    };
    let nodes = setup.nodes.len();
    crate::thread("span-pager", move || {
        pager::run(setup, image, view, meeting)
    });

    let Ok(port) = bound.recv() else {
        control::fail("the pager has ended")
    };
    control::send(&FromGuest::Bound { port, paging });
    let _ = peers.send(control::receive_peers(nodes));
    let Ok(()) = connected.recv() else {
        control::fail("the pager has ended")
    };
    control::send(&FromGuest::Connected);
    let ask = |question| pager::tell(Remote::Asked(question));
    control::receive_start(ask);
    control::serve(nodes, ask);
    hostcall::set_paths_local(false);
}

/// A guest on one node is plain UML, but for its ends.
fn meet_nobody() {
    control::send(&FromGuest::Bound {
        port: 0,
        paging: Paging::Auto,
    });
    control::receive_peers(1);
    control::send(&FromGuest::Connected);
    control::receive_start(control::answer_nothing);
    control::serve(1, control::answer_nothing);
}
