//! The pager's threads, which serve one at a time.
//!
//! Linux' scheduler (EEVDF) runs whoever is woken at once, beside a program that computes, if he asks for short turns
//! and has not had more than his share of the processor. To serve a page takes some 50 µs. Whoever has just done that
//! has had more than his share if the program has not computed for as long since, and then waits for the end of its
//! turn: the host's next tick, up to 4 ms (250 Hz). Pages are asked for in bursts, by programs that wait for pages
//! themselves. So while somebody computes here, a thread that has served lets the next one wait for messages, which
//! has rested: to change takes two switches of context, some 5 µs.

use super::drive::{Post, fail};
use super::net::NetError;
use crate::spin;
use std::sync::mpsc::{Receiver, Sender, channel};

/// As many have rested when the first one's turn comes again.
const THREADS: usize = 4;

/// The host gives the pager's threads this much of a processor at a time. They never need more, and who asks
/// for little runs before those who want to compute: else a fault waits for their turns to end.
const SLICE_NS: u64 = 100_000;

/// So much nicer than the pager's threads are all others while somebody computes here, if the host lets this process say so
/// (`CAP_SYS_NICE`, `RLIMIT_NICE`): with nine times the weight hardly anything is more than a thread's share. Whom a message
/// wakes is run before who woke him has done with it, and without this that one waits for the next tick, while a program
/// computes: in a stencil's trace once in every second round of 15 ms.
///
/// But only then. Otherwise whoever waits awake gives way to others all the time, and those hardly get a turn beside
/// somebody with nine times their weight: a node that looked for messages on the processor of the one that was to send
/// them kept it waiting for 200 µs.
const NICER: i32 = 10;

/// Linux' least.
const NICE_MIN: i32 = -20;

/// Serves, on this thread and others.
pub(super) fn serve(post: Post) -> NetError {
    let (to_first, first) = channel();
    let mut receiver = first;
    let mut others = Vec::new();
    for _ in 1..THREADS {
        let (to, next) = channel();
        others.push((std::mem::replace(&mut receiver, next), to));
    }
    // The first waits for the post from the last, who was made last.
    let _ = to_first.send(post);
    for (posts, to) in others {
        crate::thread("span-pager", move || fail(&take_turns(&posts, &to)));
    }
    take_turns(&receiver, &to_first)
}

fn take_turns(posts: &Receiver<Post>, next: &Sender<Post>) -> NetError {
    // Not before it has made threads: they, the CPUs that they make, and their stubs would inherit it.
    let mut turns = Turns::ask();
    loop {
        let Ok(mut post) = posts.recv() else {
            return NetError::Protocol("nobody serves");
        };
        loop {
            turns.press(spin::is_crowded());
            match post.serve() {
                Err(error) => return error,
                Ok(slept) if slept && spin::is_crowded() => break,
                Ok(_) => {}
            }
        }
        let _ = next.send(post);
    }
}

/// What the calling thread has asked of the host's scheduler. Where the host cannot do it, faults wait a little longer on a
/// busy host.
#[derive(Debug)]
struct Turns {
    /// As all others are.
    nice: i32,
    /// Before them; none if the host does not allow it.
    before: Option<i32>,
    presses: bool,
}

impl Turns {
    /// Short ones.
    fn ask() -> Self {
        // SAFETY: no pointers.
        let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        let before = (nice - NICER).max(NICE_MIN);
        let before = ask(before).then_some(before);
        ask(nice);
        Self {
            nice,
            before,
            presses: false,
        }
    }

    /// Before all others, or no longer.
    fn press(&mut self, presses: bool) {
        if let Some(before) = self.before
            && presses != self.presses
        {
            let nice = if presses { before } else { self.nice };
            if ask(nice) {
                self.presses = presses;
            }
        }
    }
}

/// Whether the host gives the calling thread short turns, and lets it be so nice.
fn ask(nice: i32) -> bool {
    /// `struct sched_attr` in its first version.
    #[repr(C)]
    #[derive(Default)]
    struct SchedAttr {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let attributes = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy: libc::SCHED_OTHER as u32,
        nice,
        runtime: SLICE_NS,
        ..SchedAttr::default()
    };
    // SAFETY: passes a local.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) == 0 }
}
