//! What vCPU threads and other nodes ask of this node, apart from pages.

use super::counters::{self, Touch, Via};
use super::{
    Asker, FIRST, KickJob, KickThen, NOBODY, Pager, Remote, Ticket, Work, wire::Frame,
    wire::PAYLOAD_BYTES_MAX,
};
use crate::control::Question;
use crate::image::{self, NodeImage, PAGE_BYTES};
use crate::ipi::Call;
use crate::slots::{Op, Request};
use crate::view::Protection;
use crate::{clock, control, hostcall, ipi, slots, stub};
use bytes::Bytes;
use dsm::{Access, Engine, PageId};
use span_api::guest::{FromGuest, Stats};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

/// Nothing is asked for ahead where there is no more room than for so many pages: it would drive out what
/// is in use.
const ROOM_AHEAD: u32 = 128;

/// A thread that misses a page this soon after it got another still does the same.
const GOES_ON_NS: u64 = 40_000;

/// Threads for work that may block, host calls of other nodes' and the creation of threads: so many to begin with,
/// then one more than there is work.
const WORKERS: usize = 8;
/// There are fewer threads in a guest that can wait for a host call: its CPUs, and those of its disks on each node.
const WORKERS_MAX: usize = 1280;

/// Waits for stubs to stop. One thread is enough: they have all been told to by then.
pub(super) fn start_kicker() -> mpsc::Sender<KickJob> {
    let (sender, jobs) = mpsc::channel::<KickJob>();
    crate::thread("span-kicker", move || {
        for job in jobs {
            for kick in job.kicks {
                kick.wait();
            }
            super::tell(match job.then {
                KickThen::Released(page) => Remote::Released(page),
                KickThen::Answer(asker) => Remote::Answer(asker, 1),
            });
        }
    });
    sender
}

struct Pool {
    work: Mutex<mpsc::Receiver<Work>>,
    image: NodeImage,
    threads: AtomicUsize,
    /// Those that wait for work.
    idle: AtomicUsize,
}

pub(super) fn start_workers(image: NodeImage) -> mpsc::Sender<Work> {
    let (sender, work) = mpsc::channel::<Work>();
    let pool = Arc::new(Pool {
        work: Mutex::new(work),
        image,
        threads: AtomicUsize::new(0),
        idle: AtomicUsize::new(0),
    });
    for _ in 0..WORKERS {
        start_worker(pool.clone());
    }
    sender
}

fn start_worker(pool: Arc<Pool>) {
    pool.threads.fetch_add(1, Relaxed);
    pool.idle.fetch_add(1, Relaxed);
    crate::thread("span-worker", move || {
        loop {
            let work = pool.work.lock().unwrap_or_else(|e| e.into_inner()).recv();
            let Ok(work) = work else { return };
            // Whatever this one waits for, whoever comes next need not.
            let last = pool.idle.fetch_sub(1, Relaxed) == 1;
            if last && pool.threads.load(Relaxed) < WORKERS_MAX {
                start_worker(pool.clone());
            }
            carry_out(&pool.image, work);
            pool.idle.fetch_add(1, Relaxed);
        }
    });
}

fn carry_out(image: &NodeImage, work: Work) {
    match work {
        Work::CreateCpu { cpu, sigset, asker } => {
            let error = (image.create_cpu)(i32::from(cpu), sigset);
            super::tell(Remote::Answer(asker, error as u64));
        }
        Work::KillStub(slot) => {
            (image.kill_stub)(slot as usize);
            stub::free(slot, 0, 0, 0);
        }
        Work::HostCall {
            node,
            ticket,
            request,
        } => {
            let mut reply = Vec::new();
            hostcall::serve(&request, &mut reply);
            super::tell(Remote::HostReply(node, ticket, reply));
        }
    }
}

/// Changes the protection of a page of kernel virtual memory.
pub(super) fn protect_vm(va: u64, protection: Protection) {
    // SAFETY: `va` was mapped by `map_vm`, in the range that the kernel leaves to the runtime.
    let failed =
        unsafe { libc::mprotect(va as *mut _, PAGE_BYTES, protection.host_flags_vm()) } != 0;
    if failed {
        let error = std::io::Error::last_os_error();
        control::fail(&format!("protecting kernel virtual memory: {error}"));
    }
}

/// Asks for what is not here, for nobody in particular.
fn ask_unasked(engine: &mut Engine<Bytes>, stats: &mut Stats, now: u64, pages: &[(u32, Access)]) {
    for (page, access) in pages {
        if counters::kind(engine.state(PageId(*page)), *access).is_some() {
            stats.pages_ahead += 1;
            engine.request(now, PageId(*page), *access, NOBODY);
        }
    }
}

impl Pager {
    pub(super) fn handle_request(&mut self, request: Request) {
        let Request {
            slot,
            op,
            args: [a, b, c, d],
        } = request;
        match op {
            Op::Fault | Op::UserPage => {
                let (instruction, through) = match op {
                    Op::UserPage if c != 0 => (0, Via::User),
                    Op::UserPage => (0, Via::Linear),
                    _ => (c, Via::Linear),
                };
                let touch = Touch {
                    address: a,
                    instruction,
                    through,
                };
                self.fault(slot, image::page_of(a as usize), b != 0, touch);
            }
            Op::VmMap => {
                self.vm_waiting.insert(slot, a);
                let touch = Touch {
                    address: a,
                    instruction: c,
                    through: Via::Vmalloc,
                };
                self.fault(slot, (b >> 1) as u32, b & 1 != 0, touch);
            }
            Op::VmDrop => {
                self.drop_vm(a, b);
                self.ask_all(slot, |ticket| Frame::VmDrop {
                    ticket,
                    start: a,
                    end: b,
                });
            }
            Op::Settle => self.ask_all(slot, |ticket| Frame::Settle { ticket }),
            Op::StartCpu => self.start_cpu(slot, a as u16, b),
            Op::CpuStarted => {
                self.threads.insert(a as u16, b as i32);
                self.cpu_of_slot.insert(slot, a as u16);
                control::send(&FromGuest::CpuOnline {
                    cpu: a as u16,
                    tid: b as i32,
                    variables: c,
                });
                slots::complete(slot, 1);
            }
            Op::CpuWait => match self
                .cpu_released
                .iter()
                .position(|cpu| u64::from(*cpu) == a)
            {
                Some(i) => {
                    self.cpu_released.swap_remove(i);
                    slots::complete(slot, 1);
                }
                None => {
                    self.cpu_waiting.insert(a as u16, slot);
                }
            },
            Op::CpuRun => {
                self.run_cpu(a as u16);
                slots::complete(slot, 1);
            }
            Op::StubKick if a == u64::from(self.me) => self.kick(b, Asker::Slot(slot)),
            Op::StubKick => {
                let ticket = self.ticket(Ticket::Slot(slot));
                self.send(a as u16, Frame::StubKick { ticket, slot: b });
            }
            Op::StubKill => {
                self.send(a as u16, Frame::StubKill { slot: b });
                slots::complete(slot, 1);
            }
            Op::HostCall => self.forward_call(slot, a, b, c, d),
        }
    }

    fn fault(&mut self, slot: u32, page: u32, is_write: bool, touch: Touch) {
        let access = if is_write {
            Access::Write
        } else {
            Access::Read
        };
        let now = clock::host_ns();
        let held = self.engine.state(PageId(page));
        let kind = counters::kind(held, access);
        self.faults.began(slot, now, kind, touch, &mut self.stats);
        self.engine.request(now, PageId(page), access, slot);
        let room = self.engine.room().is_none_or(|free| free > ROOM_AHEAD);
        if held == dsm::State::Invalid && room {
            self.ask_ahead(now, page, access);
        }
        if kind.is_some() && room {
            self.ask_for_chain(now, slot, page, access);
        }
        self.drain_effects();
    }

    fn ask_for_chain(&mut self, now: u64, slot: u32, missed: u32, access: Access) {
        let resumed = slots::resumed_at(slot);
        let goes_on = resumed.is_some_and(|at| now.saturating_sub(at) < GOES_ON_NS);
        let chain = self.chains.missed(slot, missed, access, goes_on);
        ask_unasked(&mut self.engine, &mut self.stats, now, chain);
    }

    fn ask_ahead(&mut self, now: u64, missed: u32, access: Access) {
        let ahead = self.readahead.missed(missed, access, self.memory_pages);
        // Between the image and what the kernel allocates lies memory of each process's own.
        let (start, pages) = (self.image.start, PAGE_BYTES);
        let ahead = ahead.take_while(|page| image::is_shared(start + *page as usize * pages));
        for page in ahead.map(PageId) {
            if self.engine.state(page) == dsm::State::Invalid {
                self.stats.pages_ahead += 1;
                self.engine.request(now, page, access, NOBODY);
            }
        }
    }

    pub(super) fn handle_remote(&mut self, message: Remote) {
        match message {
            Remote::Released(page) => {
                self.engine.protected(clock::host_ns(), PageId(page));
                self.drain_effects();
            }
            Remote::Answer(asker, result) => self.answer(asker, result),
            Remote::HostReply(node, ticket, reply) => {
                self.stats.host_calls_served += 1;
                self.send(
                    node,
                    Frame::HostReply {
                        ticket,
                        reply: reply.into(),
                    },
                );
            }
            Remote::Asked(Question::Stats) => self.report_stats(),
            Remote::Asked(Question::Profile(what)) => self.report_faults(what),
            Remote::Asked(Question::Link(node, link)) => self.set_link(node, link),
            Remote::Asked(Question::Probe(node, bytes)) => self.probe(node, bytes),
        }
    }

    /// A message of a peer's; an error is one that no correct peer sends.
    pub(super) fn handle(&mut self, from: u16, frame: Frame) -> Result<(), String> {
        match frame {
            Frame::Page(message) => {
                let now = clock::host_ns();
                self.recorder.heard(from, message.page.0, message.kind);
                let from = dsm::NodeId(from);
                self.engine
                    .handle_message(now, from, message)
                    .map_err(|e| e.to_string())?;
            }
            Frame::Hello { .. } => return Err("introduced itself twice".to_string()),
            Frame::Ipi { cpu, vector } => {
                self.check_cpu(cpu)?;
                self.stats.ipis_received += 1;
                self.interrupt(cpu, vector);
            }
            Frame::Call { cpu, call } => {
                self.check_cpu(cpu)?;
                self.check_call(&call)?;
                self.stats.ipis_received += 1;
                self.bring(cpu, call);
            }
            Frame::StartCpu {
                ticket,
                cpu,
                sigset,
            } => {
                self.check_cpu(cpu)?;
                let asker = Asker::Peer { node: from, ticket };
                let _ = self.workers.send(Work::CreateCpu { cpu, sigset, asker });
            }
            Frame::CpuRun { cpu }
                if self.me == FIRST && usize::from(cpu) < self.placement.len() =>
            {
                self.run_cpu(cpu);
            }
            Frame::CpuRun { cpu } => {
                self.check_cpu(cpu)?;
                self.release_cpu(cpu);
            }
            Frame::VmDrop { start, end, .. } if start > end => {
                return Err(format!("drops {start:#x} to {end:#x}"));
            }
            Frame::VmDrop { ticket, start, end } => {
                self.drop_vm(start, end);
                self.send(from, Frame::Done { ticket, result: 1 });
            }
            Frame::Settle { ticket } => self.send(from, Frame::Done { ticket, result: 1 }),
            Frame::StubKick { ticket, slot } => {
                self.kick(slot, Asker::Peer { node: from, ticket });
            }
            Frame::StubKill { slot } => {
                let _ = self.workers.send(Work::KillStub(slot));
            }
            Frame::HostCall { ticket, request } => {
                let _ = self.workers.send(Work::HostCall {
                    node: from,
                    ticket,
                    request,
                });
            }
            Frame::HostReply { ticket, reply } => return self.finish_call(ticket, &reply),
            Frame::Done { ticket, result } => return self.finish(ticket, result),
            Frame::ClockPing { ticket } => {
                self.send(
                    from,
                    Frame::ClockPong {
                        ticket,
                        clock_ns: clock::guest_ns(),
                    },
                );
            }
            Frame::ClockPong { ticket, clock_ns } => match self.tickets.remove(&ticket) {
                Some(Ticket::Clock { sent_ns }) => {
                    clock::measured(sent_ns, clock_ns, clock::host_ns());
                }
                _ => return Err("answered a clock reading that nobody asked for".to_string()),
            },
            Frame::Probe { ticket, last, .. } => self.probed(from, ticket, last),
            Frame::Probed { ticket, arrived_ns } => return self.finish_probe(ticket, arrived_ns),
        }
        Ok(())
    }

    fn check_cpu(&self, cpu: u16) -> Result<(), String> {
        match self.placement.get(usize::from(cpu)) {
            Some(node) if *node == self.me => Ok(()),
            _ => Err(format!("asked for CPU {cpu}, which is not on this node")),
        }
    }

    fn node_of(&self, cpu: u64) -> u16 {
        match self.placement.get(cpu as usize) {
            Some(node) => *node,
            None => control::fail(&format!("the kernel named CPU {cpu}, which has no node")),
        }
    }

    fn answer(&mut self, asker: Asker, result: u64) {
        match asker {
            Asker::Slot(slot) => slots::complete(slot, result),
            Asker::Peer { node, ticket } => self.send(node, Frame::Done { ticket, result }),
        }
    }

    fn finish(&mut self, ticket: u64, result: u64) -> Result<(), String> {
        match self.tickets.remove(&ticket) {
            Some(Ticket::Slot(slot)) => slots::complete(slot, result),
            Some(Ticket::All { slot, missing: 1 }) => slots::complete(slot, 1),
            Some(Ticket::All { slot, missing }) => {
                self.tickets.insert(
                    ticket,
                    Ticket::All {
                        slot,
                        missing: missing - 1,
                    },
                );
            }
            _ => return Err("answered something that nobody asked for".to_string()),
        }
        Ok(())
    }

    /// Asks all other nodes that have run a CPU something that each answers with [`Frame::Done`]. Those that have not have
    /// neither mapped anything nor sent a call.
    fn ask_all(&mut self, slot: u32, frame: impl Fn(u64) -> Frame) {
        let me = self.me;
        let runs = |node: &u16| *node != me && self.runs[usize::from(*node)];
        let nodes: Vec<u16> = (0..self.nodes).filter(runs).collect();
        if nodes.is_empty() {
            return slots::complete(slot, 1);
        }
        let missing = nodes.len();
        let ticket = self.ticket(Ticket::All { slot, missing });
        for node in nodes {
            self.send(node, frame(ticket));
        }
    }

    // CPUs

    fn start_cpu(&mut self, slot: u32, cpu: u16, sigset: u64) {
        match self.node_of(u64::from(cpu)) {
            node if node == self.me => {
                let asker = Asker::Slot(slot);
                let _ = self.workers.send(Work::CreateCpu { cpu, sigset, asker });
            }
            node => {
                let ticket = self.ticket(Ticket::Slot(slot));
                self.send(
                    node,
                    Frame::StartCpu {
                        ticket,
                        cpu,
                        sigset,
                    },
                );
            }
        }
    }

    /// Lets a CPU run, whose thread waits for that. The first node has to know which nodes do, before they do.
    fn run_cpu(&mut self, cpu: u16) {
        match self.node_of(u64::from(cpu)) {
            node if node == self.me => self.release_cpu(cpu),
            node => {
                self.runs[usize::from(node)] = true;
                let through = if self.me == FIRST { node } else { FIRST };
                self.send(through, Frame::CpuRun { cpu });
            }
        }
    }

    fn release_cpu(&mut self, cpu: u16) {
        match self.cpu_waiting.remove(&cpu) {
            Some(slot) => slots::complete(slot, 1),
            None => self.cpu_released.push(cpu),
        }
    }

    pub(super) fn send_interrupt(&mut self, cpu: u16, vector: u32) {
        let node = self.node_of(u64::from(cpu));
        self.stats.ipis_sent += 1;
        if node == self.me {
            self.interrupt(cpu, vector);
        } else {
            self.send(node, Frame::Ipi { cpu, vector });
        }
    }

    pub(super) fn send_call(&mut self, cpu: u16, call: Call) {
        let node = self.node_of(u64::from(cpu));
        self.stats.ipis_sent += 1;
        if node == self.me {
            self.bring(cpu, call);
        } else {
            self.send(node, Frame::Call { cpu, call });
        }
    }

    /// Nothing but the kernel's own code is called.
    fn check_call(&self, call: &Call) -> Result<(), String> {
        if call.function != 0 && !self.image.is_code(call.function) {
            return Err(format!("calls {:#x}, which is no code", call.function));
        }
        if usize::try_from(call.from).is_ok_and(|from| from >= self.placement.len()) {
            return Err(format!("calls for CPU {}, which there is not", call.from));
        }
        if call.kind > ipi::CALL_KIND_MAX {
            return Err(format!("calls in a way {} that there is not", call.kind));
        }
        if !self.image.is_data(call.data) {
            return Err(format!("calls with {:#x}, which is no data", call.data));
        }
        Ok(())
    }

    fn bring(&mut self, cpu: u16, call: Call) {
        ipi::bring_call(cpu, call);
        self.interrupt(cpu, self.image.call_vector as u32);
    }

    fn interrupt(&mut self, cpu: u16, vector: u32) {
        let of_cpu = |(slot, of): (&u32, &u16)| (*of == cpu).then_some(*slot);
        if let Some(slot) = self.cpu_of_slot.iter().find_map(of_cpu) {
            self.chains.interrupted(slot);
        }
        if let Some(thread) = self.threads.get(&cpu) {
            ipi::queue_signal(self.sender, *thread, self.image.ipi_signal, vector);
        }
    }

    // Stubs

    fn kick(&mut self, slot: u64, asker: Asker) {
        match stub::kick(slot) {
            None => self.answer(asker, 1),
            Some(kick) => {
                let job = KickJob {
                    kicks: vec![kick],
                    then: KickThen::Answer(asker),
                };
                let _ = self.kicker.send(job);
            }
        }
    }

    // Kernel virtual memory

    /// Maps a page of kernel virtual memory; 1, or 0 if the host can't.
    pub(super) fn map_vm(&mut self, va: u64, page: u32, protection: Protection) -> u64 {
        self.forget_vm(va);
        // SAFETY: replaces a page of the range that the kernel leaves to the runtime; the offset
        // is the page's in the memory file.
        let at = unsafe {
            libc::mmap(
                va as *mut _,
                PAGE_BYTES,
                protection.host_flags_vm(),
                libc::MAP_SHARED | libc::MAP_FIXED,
                self.view.fd(),
                i64::from(page) * PAGE_BYTES as i64,
            )
        };
        if at == libc::MAP_FAILED {
            let error = std::io::Error::last_os_error();
            control::fail(&format!("mapping kernel virtual memory: {error}"));
        }
        self.vm.insert(va, page);
        self.vm_of_page.entry(page).or_default().push(va);
        1
    }

    fn forget_vm(&mut self, va: u64) {
        if let Some(page) = self.vm.remove(&va)
            && let Some(users) = self.vm_of_page.get_mut(&page)
        {
            users.retain(|user| *user != va);
            if users.is_empty() {
                self.vm_of_page.remove(&page);
            }
        }
    }

    fn drop_vm(&mut self, start: u64, end: u64) {
        let gone: Vec<u64> = self.vm.range(start..end).map(|(va, _)| *va).collect();
        for va in gone {
            self.forget_vm(va);
            // SAFETY: mapped by `map_vm`, and in no use: the kernel has removed its page table entry.
            unsafe { libc::munmap(va as *mut _, PAGE_BYTES) };
        }
    }

    // Host calls

    fn forward_call(
        &mut self,
        slot: u32,
        node_and_len: u64,
        request: u64,
        reply: u64,
        capacity: u64,
    ) {
        let (node, len) = ((node_and_len >> 32) as u16, node_and_len as u32 as usize);
        if node >= self.nodes || len > PAYLOAD_BYTES_MAX {
            slots::complete(slot, 0);
            return;
        }
        // SAFETY: the calling thread waits until the slot is completed, and keeps the buffer, which
        // is not guest memory.
        let bytes = unsafe { std::slice::from_raw_parts(request as *const u8, len) };
        let request = Bytes::copy_from_slice(bytes);
        self.stats.host_calls_forwarded += 1;
        let capacity = capacity as usize;
        let ticket = self.ticket(Ticket::HostCall {
            slot,
            reply,
            capacity,
        });
        self.send(node, Frame::HostCall { ticket, request });
    }

    fn finish_call(&mut self, ticket: u64, bytes: &[u8]) -> Result<(), String> {
        match self.tickets.remove(&ticket) {
            Some(Ticket::HostCall {
                slot,
                reply,
                capacity,
            }) if bytes.len() <= capacity => {
                // SAFETY: as in `forward_call`; the length has been checked.
                unsafe {
                    std::ptr::copy_nonoverlapping(bytes.as_ptr(), reply as *mut u8, bytes.len())
                };
                slots::complete(slot, bytes.len() as u64);
                Ok(())
            }
            _ => Err("answered a host call wrongly".to_string()),
        }
    }
}
