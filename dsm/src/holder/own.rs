//! This node's own requests: asked of the home, granted by a supplier, acknowledged by sharers.

use super::{Change, Evict, Granted, Holder, Order, Orders, Part, Pending, Timer, refuse};
use crate::message::{Kind, Message, ProtocolError};
use crate::table::{Action, Event, holder};
use crate::types::{Access, Body, NodeId, NodeSet, PageId, RequestId, State};

impl<const W: usize> Holder<W> {
    /// A `Grant` from the supplier or the home.
    pub(crate) fn grant<B>(
        &mut self,
        from: NodeId,
        message: Message<B, W>,
        out: &mut Orders<B, W>,
    ) -> Result<(), ProtocolError> {
        let Kind::Grant { state, acks, clean } = message.kind else {
            unreachable!("dispatched by kind")
        };
        let page = message.page;
        let home = self.homes.home(page);
        self.check_own(from, &message)?;
        let current = self.held(page);
        let own = self.active.get(&page).and_then(|a| Some((a, a.pending?)));
        let Some((active, pending)) = own.filter(|(_, p)| p.seq == message.request.seq) else {
            if self.outstanding.contains(&message.request.seq) {
                return Err(refuse(&message, from, "that request is for another page"));
            }
            // It is over here; the home asks because our `Done` was lost.
            self.counters.stale += 1;
            out.push_back(self.done(home, page, message.request, message.txn, state, clean));
            return Ok(());
        };
        if pending.grant.is_some() {
            self.counters.stale += 1;
            return Ok(());
        }
        // What this node keeps as the home it need not be sent.
        let has_it = from == self.me && message.body.is_none();
        if let Some(why) = wrong_grant(&pending, current, &message, acks, self.me, has_it) {
            return Err(refuse(&message, from, why));
        }
        if active.change.is_some() || active.job.is_some() {
            return Err(refuse(&message, from, "two transactions on one page"));
        }
        if !pending.acked.is_subset(acks)
            || (pending.acks_txn != 0 && pending.acks_txn != message.txn)
        {
            return Err(refuse(
                &message,
                from,
                "does not match the acknowledgements",
            ));
        }
        self.parts.raise_floor(home, message.floor);
        self.parts.remember(home, page, message.txn, Part::Granted);
        match message.body {
            Body::None => {}
            Body::Zero => self.counters.zeros_in += 1,
            Body::Full(_) => self.counters.bodies_in += 1,
        }
        if !message.body.is_none() {
            out.push_back(Order::Fill {
                page,
                body: message.body,
            });
        }
        let granted = Granted {
            txn: message.txn,
            state,
            acks,
            clean,
        };
        self.pending_mut(page).grant = Some(granted);
        self.raise_if_complete(page, out);
        Ok(())
    }

    /// An `InvalidateAck` from a node that was a sharer.
    pub(crate) fn invalidate_ack<B>(
        &mut self,
        from: NodeId,
        message: &Message<B, W>,
        out: &mut Orders<B, W>,
    ) -> Result<(), ProtocolError> {
        let page = message.page;
        self.check_own(from, message)?;
        let pending = self.active.get(&page).and_then(|a| a.pending);
        let Some(pending) = pending.filter(|p| p.seq == message.request.seq) else {
            if self.outstanding.contains(&message.request.seq) {
                return Err(refuse(message, from, "that request is for another page"));
            }
            self.counters.stale += 1;
            return Ok(());
        };
        let (txn, expected) = match pending.grant {
            Some(granted) => (granted.txn, granted.acks.contains(from)),
            None => (pending.acks_txn, pending.access == Access::Write),
        };
        if !expected || (txn != 0 && txn != message.txn) {
            return Err(refuse(message, from, "nobody asked for it"));
        }
        let pending = self.pending_mut(page);
        pending.acks_txn = message.txn;
        pending.acked = pending.acked.with(from);
        self.raise_if_complete(page, out);
        Ok(())
    }

    /// Asks for what the remaining waiters need, one request per page at a time.
    pub(super) fn start_request<B>(&mut self, now_ns: u64, page: PageId, out: &mut Orders<B, W>) {
        let state = self.held(page);
        let Some(active) = self.active.get_mut(&page) else {
            return;
        };
        if active.change.is_some() || active.pending.is_some() || active.evict.is_some() {
            return;
        }
        let Some(access) = active.waiters.iter().map(|w| w.0).max() else {
            return;
        };
        let event = match access {
            Access::Read => Event::ReadFault,
            Access::Write => Event::WriteFault,
        };
        let row = holder(state, event);
        match row.action {
            Action::Raise => {
                self.counters.local_upgrades += 1;
                active.change = Some(Change::Raise {
                    to: row.next,
                    done: None,
                });
                out.push_back(Order::Protect {
                    page,
                    state: row.next,
                });
            }
            Action::Get => {
                if !self.take_room(page) {
                    return;
                }
                let seq = self.next_seq;
                self.next_seq += 1;
                let retry_ns = self.retransmit_ns.unwrap_or(0);
                self.active.entry(page).or_default().pending = Some(Pending {
                    seq,
                    access,
                    grant: None,
                    acks_txn: 0,
                    acked: NodeSet::EMPTY,
                    retry_ns,
                });
                self.outstanding.insert(seq);
                match state {
                    State::Invalid => self.counters.misses += 1,
                    _ => self.counters.upgrades += 1,
                }
                if self.retransmit_ns.is_some() {
                    self.timers
                        .set(page, Timer::Retry, now_ns.saturating_add(retry_ns));
                }
                self.send_get(page, out);
            }
            Action::Hit
            | Action::Supply { .. }
            | Action::Acknowledge
            | Action::Return { .. }
            | Action::Refuse => {
                unreachable!("a waiter that a hit satisfies was granted before")
            }
        }
    }

    pub(super) fn ask_again<B>(&mut self, now_ns: u64, page: PageId, out: &mut Orders<B, W>) {
        let max_ns = self.retransmit_ns_max;
        if self.evict_again(now_ns, page, out) {
            return;
        }
        let Some(pending) = self.active.get_mut(&page).and_then(|a| a.pending.as_mut()) else {
            return;
        };
        pending.retry_ns = pending.retry_ns.saturating_mul(2).min(max_ns);
        let at_ns = now_ns.saturating_add(pending.retry_ns);
        // With the grant here the home knows of the request, and repeats what is missing itself.
        let home_knows = pending.grant.is_some();
        self.timers.set(page, Timer::Retry, at_ns);
        if !home_knows {
            self.counters.retransmits += 1;
            self.send_get(page, out);
        }
    }

    /// Whether it is an eviction that the timer is about; asks for it again, if so.
    fn evict_again<B>(&mut self, now_ns: u64, page: PageId, out: &mut Orders<B, W>) -> bool {
        let max_ns = self.retransmit_ns_max;
        let Some(active) = self.active.get_mut(&page) else {
            return false;
        };
        // With the recall here the home knows of it.
        let recalls = |event| matches!(event, Event::RecallCopy | Event::RecallPage);
        let recalled = active.job.is_some_and(|job| recalls(job.event))
            || matches!(active.change, Some(Change::Lower(job)) if recalls(job.event));
        let Some(evict) = &mut active.evict else {
            return false;
        };
        evict.retry_ns = evict.retry_ns.saturating_mul(2).min(max_ns);
        let Evict { seq, retry_ns } = *evict;
        self.timers
            .set(page, Timer::Retry, now_ns.saturating_add(retry_ns));
        if !recalled {
            self.counters.retransmits += 1;
            self.send_evict(page, seq, out);
        }
        true
    }

    fn send_get<B>(&mut self, page: PageId, out: &mut Orders<B, W>) {
        let have_copy = self.held(page) == State::Shared;
        let Pending { seq, access, .. } = *self.pending_mut(page);
        let waiters = self.active.get(&page).into_iter().flat_map(|a| &a.waiters);
        let urgency = waiters
            .map(|w| self.progress.urgency(self.me, w.1))
            .max()
            .unwrap_or(0);

        let message = Message {
            epoch: self.epoch,
            page,
            request: RequestId { node: self.me, seq },
            txn: 0,
            floor: self.floor(),
            kind: Kind::Get {
                access,
                have_copy,
                urgency,
            },
            body: Body::None,
        };
        out.push_back(Order::Send {
            to: self.homes.home(page),
            message,
            attach_page: false,
        });
    }

    /// With the page and every acknowledgement here, exposes the page.
    fn raise_if_complete<B>(&mut self, page: PageId, out: &mut Orders<B, W>) {
        let current = self.held(page);
        let Some(active) = self.active.get_mut(&page) else {
            return;
        };
        let Some(pending) = active.pending else {
            return;
        };
        let Some(granted) = pending.grant.filter(|g| g.acks.is_subset(pending.acked)) else {
            return;
        };
        if active.change.is_some() {
            return;
        }
        assert!(granted.state > current, "I3: a grant raises");
        active.change = Some(Change::Raise {
            to: granted.state,
            done: Some(granted),
        });
        out.push_back(Order::Protect {
            page,
            state: granted.state,
        });
    }

    /// The page is exposed: the request is over.
    pub(super) fn finish<B>(&mut self, page: PageId, granted: &Granted<W>, out: &mut Orders<B, W>) {
        let seq = self.pending_mut(page).seq;
        self.outstanding.remove(&seq);
        self.timers.clear(page, Timer::Retry);
        if let Some(active) = self.active.get_mut(&page) {
            active.pending = None;
        }
        let request = RequestId { node: self.me, seq };
        let home = self.homes.home(page);
        out.push_back(self.done(
            home,
            page,
            request,
            granted.txn,
            granted.state,
            granted.clean,
        ));
    }

    fn done<B>(
        &self,
        home: NodeId,
        page: PageId,
        request: RequestId,
        txn: u64,
        state: State,
        clean: bool,
    ) -> Order<B, W> {
        let message = Message {
            epoch: self.epoch,
            page,
            request,
            txn,
            floor: self.floor(),
            kind: Kind::Done { state, clean },
            body: Body::None,
        };
        Order::Send {
            to: home,
            message,
            attach_page: false,
        }
    }

    fn check_own<B>(&self, from: NodeId, message: &Message<B, W>) -> Result<(), ProtocolError> {
        let seq = message.request.seq;
        if message.request.node != self.me || seq == 0 || seq >= self.next_seq || message.txn == 0 {
            return Err(refuse(message, from, "names no request of this node"));
        }
        Ok(())
    }

    fn pending_mut(&mut self, page: PageId) -> &mut Pending<W> {
        let pending = self.active.get_mut(&page).and_then(|a| a.pending.as_mut());
        match pending {
            Some(pending) => pending,
            None => unreachable!("the caller has seen the request"),
        }
    }

    pub(super) fn floor(&self) -> u64 {
        self.outstanding.first().copied().unwrap_or(self.next_seq)
    }
}

/// Why a grant cannot be what the home meant, if so.
fn wrong_grant<B, const W: usize>(
    pending: &Pending<W>,
    current: State,
    message: &Message<B, W>,
    acks: NodeSet<W>,
    me: NodeId,
    has_it: bool,
) -> Option<&'static str> {
    let Kind::Grant { state, .. } = message.kind else {
        return Some("not a grant");
    };
    if !state.allows(pending.access) {
        return Some("grants less than was asked for");
    }
    if pending.access == Access::Read && state == State::Modified {
        return Some("grants more than was asked for");
    }
    if acks.contains(me) {
        return Some("expects an acknowledgement from the requester");
    }
    if !acks.is_empty() && state != State::Modified {
        return Some("expects acknowledgements for a read");
    }
    if message.body.is_none() != (has_it || current == State::Shared) {
        return Some("a body where the copy is current, or none where there is no copy");
    }
    None
}
