//! Who drives the pager: whoever has something for it, and one thread at a time that reads the network.

use super::alarm::Alarm;
use super::net::{Due, Net, NetError};
use super::{Pager, Remote, turns};
use crate::image::NodeImage;
use crate::ipi::Call;
use crate::slots::{self, Awaited};
use crate::view::View;
use crate::{clock, control, spin};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use span_api::guest::Setup;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};

/// None before the nodes meet, and in a guest on one node.
static PAGER: Mutex<Option<Pager>> = Mutex::new(None);

/// A thread that waits for an answer reads the network. Changes under the pager's lock.
static LED: AtomicBool = AtomicBool::new(false);

/// When a message is due that has come before its time, 0 if none is before a timer would wake the pager's thread. Changes
/// under the pager's lock.
static SOON_NS: AtomicU64 = AtomicU64::new(0);

fn lock() -> MutexGuard<'static, Option<Pager>> {
    PAGER.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn fail(error: &NetError) -> ! {
    control::fail(&format!("node-to-node network: {error}"))
}

/// Does something with the pager, and what follows from it.
fn with(work: impl FnOnce(&mut Pager)) {
    if let Some(pager) = lock().as_mut() {
        work(pager);
        pager.settle();
        pager.leave();
    }
}

/// Something for the pager from another thread of the runtime.
pub(crate) fn tell(message: Remote) {
    with(|pager| pager.handle_remote(message));
}

/// An interrupt for a CPU. Context: local stack.
pub(crate) fn interrupt(cpu: u16, vector: u32) {
    with(|pager| pager.send_interrupt(cpu, vector));
}

/// A call of a function on another node's CPU. Context: local stack.
pub(crate) fn call(cpu: u16, call: Call) {
    with(|pager| pager.send_call(cpu, call));
}

/// Takes the request in a slot to the pager and waits until it is answered. Context: local stack, of the
/// slot's thread.
pub(crate) fn ask(slot: u32) {
    let mut guard = lock();
    let Some(pager) = guard.as_mut() else {
        control::die("a request before there is a pager");
    };
    let request = slots::request_in(slot);
    let leads = request.op.is_answered_soon();
    // Whoever asks again has been running; when it is answered, that is forgotten.
    pager.notice_resumed();
    pager.handle_request(request);
    let leads = leads && !LED.load(Relaxed);
    pager.settle_for(leads);
    if slots::is_answered(slot) {
        if leads {
            pager.lead(false);
        }
        return pager.leave();
    }
    if !leads {
        pager.leave();
        slots::will_sleep(slot);
        drop(guard);
        return slots::sleep(slot);
    }
    let socket = pager.net.as_raw_fd();
    pager.lead(true);
    let mut until = pager.next_message();
    loop {
        slots::will_poll(slot);
        drop(guard);
        let slept = slots::poll(socket, until);
        guard = lock();
        let Some(pager) = guard.as_mut() else { return };
        slots::is_awake(slot);
        if let Some(late_ns) = slept.late_ns {
            pager.net.late(late_ns);
        }
        if until.is_some() {
            pager.net.handle_timeouts();
        }
        pager
            .turn(true, slept.since_ns)
            .unwrap_or_else(|error| fail(&error));
        if slots::is_answered(slot) {
            pager.lead(false);
            return pager.leave();
        }
        until = pager.next_message();
    }
}

/// What the main thread and the pager tell each other while the guest comes up.
#[derive(Debug)]
pub(crate) struct Meeting {
    pub(crate) bound: mpsc::Sender<u16>,
    pub(crate) peers: mpsc::Receiver<Vec<SocketAddr>>,
    pub(crate) connected: mpsc::Sender<()>,
}

/// The pager's thread.
pub(crate) fn run(setup: Setup, image: NodeImage, view: View, meeting: Meeting) {
    let error = match meet(&setup, image, view, meeting) {
        Ok(post) => turns::serve(post),
        Err(error) => error,
    };
    fail(&error);
}

fn meet(setup: &Setup, image: NodeImage, view: View, meeting: Meeting) -> Result<Post, NetError> {
    let mut pager = Pager::new(setup, image, view)?;
    let _ = meeting.bound.send(pager.net.port()?);
    let addresses = meeting
        .peers
        .recv()
        .map_err(|_| NetError::Protocol("nobody says where the nodes are"))?;
    pager.net.meet(&addresses)?;
    pager.settle();
    let post = Post {
        epoll: Epoll(pager.watch.epoll.0.try_clone()?),
        connected: Some(meeting.connected),
    };
    *lock() = Some(pager);
    Ok(post)
}

/// What the thread that serves other nodes has.
#[derive(Debug)]
pub(super) struct Post {
    /// To wait on without the lock.
    epoll: Epoll,
    /// Who is still to hear that the nodes are.
    connected: Option<mpsc::Sender<()>>,
}

impl Post {
    /// Waits until there is something to do, and does it; whether it slept.
    pub(super) fn serve(&mut self) -> Result<bool, NetError> {
        let waited = wait(&self.epoll)?;
        let mut guard = lock();
        let Some(pager) = guard.as_mut() else {
            return Ok(false);
        };
        if waited.alarmed
            && let Some(late_ns) = pager.watch.alarm.has_gone_off()
            && waited.asleep
        {
            pager.net.late(late_ns);
        }
        if waited.alarmed || !waited.asleep {
            pager.net.handle_timeouts();
        }
        pager.turn(false, waited.slept_ns)?;
        if pager.net.complete()
            && let Some(connected) = self.connected.take()
        {
            pager.clock_due_ns = pager.net.clock_differs().then(clock::host_ns);
            pager.judge_waiting();
            let _ = connected.send(());
        }
        Ok(waited.slept_ns.is_some())
    }
}

#[derive(Debug)]
struct Waited {
    /// The alarm went off.
    alarmed: bool,
    /// There was no message that was due too soon to sleep.
    asleep: bool,
    /// Since when it slept, if it did.
    slept_ns: Option<u64>,
}

/// Waits until there is something to do.
fn wait(epoll: &Epoll) -> io::Result<Waited> {
    let mut events = [EpollEvent::empty(); 2];
    let mut count = Ok(0);
    let mut slept_ns = None;
    let soon_ns = SOON_NS.load(Relaxed);
    if soon_ns > 0 {
        spin::up_to(soon_ns, || {
            count = epoll.wait(&mut events, EpollTimeout::ZERO);
            count != Ok(0)
        });
    } else {
        // While pages move, the next message comes soon.
        spin::until(|| {
            count = epoll.wait(&mut events, EpollTimeout::ZERO);
            count != Ok(0) || LED.load(Relaxed)
        });
        if count == Ok(0) {
            slept_ns = Some(clock::host_ns());
            count = epoll.wait(&mut events, EpollTimeout::NONE);
        }
    }
    let count = match count {
        Ok(count) => count,
        Err(nix::Error::EINTR) => 0,
        Err(error) => return Err(error.into()),
    };
    Ok(Waited {
        alarmed: events[..count].iter().any(|event| event.data() == ALARM),
        asleep: soon_ns == 0,
        slept_ns,
    })
}

const SOCKET: u64 = 0;
const ALARM: u64 = 1;

/// What the pager's thread waits for.
#[derive(Debug)]
pub(super) struct Watch {
    epoll: Epoll,
    alarm: Alarm,
    /// Of the socket.
    interest: EpollFlags,
    /// When the next message is due for which whoever leads wakes; later than ever if there is none.
    leader_ns: u64,
}

impl Watch {
    pub(super) fn new(net: &Net) -> io::Result<Self> {
        let watch = Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            alarm: Alarm::new()?,
            interest: EpollFlags::EPOLLIN,
            leader_ns: u64::MAX,
        };
        // For edges: each time the timer goes off is an event of its own, so that nothing need be read
        // from it.
        let expiry = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        let (socket, alarm) = (borrow(net), borrow(&watch.alarm));
        watch
            .epoll
            .add(socket, EpollEvent::new(watch.interest, SOCKET))?;
        watch.epoll.add(alarm, EpollEvent::new(expiry, ALARM))?;
        Ok(watch)
    }

    fn socket(&mut self, net: &Net) {
        let mut interest = EpollFlags::empty();
        interest.set(EpollFlags::EPOLLIN, !LED.load(Relaxed));
        interest.set(EpollFlags::EPOLLOUT, net.is_blocked());
        if interest != self.interest {
            self.interest = interest;
            let mut event = EpollEvent::new(interest, SOCKET);
            if let Err(error) = self.epoll.modify(borrow(net), &mut event) {
                fail(&io::Error::from(error).into());
            }
        }
    }
}

fn borrow(file: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is the file's, which is borrowed as long.
    unsafe { BorrowedFd::borrow_raw(file.as_raw_fd()) }
}

impl Pager {
    /// Does what has come in by the network.
    fn turn(&mut self, leads: bool, slept_ns: Option<u64>) -> Result<(), NetError> {
        self.net.receive(slept_ns)?;
        self.settle_for(leads);
        Ok(())
    }

    fn settle(&mut self) {
        self.settle_for(false);
    }

    /// Does what follows from what has been done, and sends it. Whoever leads waits for the next message himself.
    fn settle_for(&mut self, leads: bool) {
        self.notice_resumed();
        while let Some(news) = self.net.next() {
            self.hear(news);
        }
        let next = self.do_what_is_due();
        self.net.transmit();
        self.wait_for_next(next, leads);
        self.watch.socket(&self.net);
    }

    /// Has somebody run when there is something to do again.
    fn wait_for_next(&mut self, next: Option<u64>, leads: bool) {
        let Due {
            timer_ns,
            message_ns,
        } = self.net.due();
        if leads {
            self.watch.leader_ns = message_ns.unwrap_or(u64::MAX);
        }
        // Unless the thread that reads the network wakes for it.
        let leader_ns = match leads || LED.load(Relaxed) {
            true => self.watch.leader_ns,
            false => u64::MAX,
        };
        let message_ns = message_ns.filter(|at_ns| *at_ns < leader_ns);
        let wakes_ns = message_ns.and_then(|at_ns| self.net.wakes_ns(at_ns));
        let soon_ns = message_ns.filter(|_| wakes_ns.is_none());
        SOON_NS.store(soon_ns.unwrap_or(0), Relaxed);
        let due = [next, timer_ns, wakes_ns];
        self.watch.alarm.set(due.into_iter().flatten().min());
    }

    /// When the next message is due that whoever leads waits for.
    fn next_message(&self) -> Option<Awaited> {
        let due_ns = self.watch.leader_ns;
        (due_ns < u64::MAX).then(|| Awaited {
            due_ns,
            wakes_ns: self.net.wakes_ns(due_ns),
        })
    }

    /// Whoever has done something does not wait for what follows: the pager's thread has to, awake if it is soon.
    fn leave(&mut self) {
        if SOON_NS.load(Relaxed) > 0 {
            self.watch.alarm.set(Some(clock::host_ns()));
        }
    }

    fn lead(&mut self, led: bool) {
        LED.store(led, Relaxed);
        // Without a message that he would have woken for, the alarm is set already.
        if !led && self.watch.leader_ns < u64::MAX {
            self.wait_for_next(None, false);
        }
        self.watch.socket(&self.net);
    }
}
