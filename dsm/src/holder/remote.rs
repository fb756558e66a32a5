//! What the homes ask this node to give up, and the answers.

use super::{Active, Change, Holder, Job, Order, Orders, Part, Seen, Timer, refuse};
use crate::message::{Kind, Message, ProtocolError};
use crate::table::{Action, Event, Row, holder};
use crate::types::{Body, NodeId, NodeSet, PageId, State};

impl<const W: usize> Holder<W> {
    /// A `Forward`, an `Invalidate` or a `Recall` from the home of the page.
    pub(crate) fn job<B>(
        &mut self,
        now_ns: u64,
        from: NodeId,
        message: &Message<B, W>,
        out: &mut Orders<B, W>,
    ) -> Result<(), ProtocolError> {
        let page = message.page;
        let (event, acks, urgency) = match message.kind {
            Kind::Forward {
                state,
                acks,
                urgency,
            } => {
                let event = match state {
                    State::Shared => Event::ForwardShared,
                    State::Exclusive => Event::ForwardExclusive,
                    State::Modified => Event::ForwardModified,
                    State::Invalid => return Err(refuse(message, from, "grants nothing")),
                };
                (event, acks, urgency)
            }
            Kind::Invalidate { urgency } => (Event::Invalidate, NodeSet::EMPTY, urgency),
            Kind::Recall { page, urgency } => {
                let event = match page {
                    false => Event::RecallCopy,
                    true => Event::RecallPage,
                };
                (event, NodeSet::EMPTY, urgency)
            }
            _ => unreachable!("dispatched by kind"),
        };
        if from != self.homes.home(page) {
            return Err(refuse(message, from, "not the home of the page"));
        }
        let recalls = matches!(message.kind, Kind::Recall { .. });
        if (message.request.node == self.me) != recalls || message.txn == 0 {
            return Err(refuse(message, from, "names no request of this kind"));
        }
        let job = Job {
            event,
            request: message.request,
            txn: message.txn,
            floor: message.floor,
            acks,
            urgency,
            arrived_ns: now_ns,
        };
        self.parts.raise_floor(from, message.floor);
        match self.parts.seen(from, page, message.txn) {
            Seen::New => {}
            Seen::Stale => {
                self.counters.stale += 1;
                return Ok(());
            }
            Seen::Again(part) => {
                self.raise_urgency(now_ns, page, message.txn, urgency, out);
                self.counters.stale += 1;
                return self.answer_again(from, message, &job, part, out);
            }
        }
        let evicts =
            |active: &Active<W>| active.evict.is_some_and(|e| e.seq == message.request.seq);
        if recalls && !self.active.get(&page).is_some_and(evicts) {
            return Err(refuse(message, from, "this node does not evict the page"));
        }
        if holder(self.held(page), event).action == Action::Refuse {
            return Err(refuse(message, from, "this node's state does not allow it"));
        }
        let active = self.active.entry(page).or_default();
        // A first write to an exclusive page is the one change that is no transaction.
        let changes = !matches!(active.change, None | Some(Change::Raise { done: None, .. }));
        let granted = active.pending.is_some_and(|p| p.grant.is_some());
        if active.job.is_some() || granted || changes {
            return Err(refuse(message, from, "two transactions on one page"));
        }
        active.job = Some(job);
        self.parts.remember(from, page, message.txn, Part::Working);
        if self.planted.early_ack() && event == Event::Invalidate {
            self.send_answer(page, &job, Part::Acknowledged, out);
        }
        self.advance(now_ns, page, out);
        if self.active.get(&page).is_some_and(|a| a.job.is_some()) {
            self.counters.deferred += 1;
        }
        Ok(())
    }

    /// A `Hurry` from the home of the page. It may come late, twice or never.
    pub(crate) fn hurry<B>(
        &mut self,
        now_ns: u64,
        from: NodeId,
        message: &Message<B, W>,
        urgency: u16,
        out: &mut Orders<B, W>,
    ) -> Result<(), ProtocolError> {
        if from != self.homes.home(message.page) {
            return Err(refuse(message, from, "not the home of the page"));
        }
        self.raise_urgency(now_ns, message.page, message.txn, urgency, out);
        Ok(())
    }

    fn raise_urgency<B>(
        &mut self,
        now_ns: u64,
        page: PageId,
        txn: u64,
        urgency: u16,
        out: &mut Orders<B, W>,
    ) {
        let job = self.active.get_mut(&page).and_then(|a| a.job.as_mut());
        if let Some(job) = job.filter(|j| j.txn == txn && j.urgency < urgency) {
            job.urgency = urgency;
            self.advance(now_ns, page, out);
        }
    }

    /// Starts the job that waits for the page, unless a local user still has a right to it.
    pub(super) fn start_job<B>(&mut self, now_ns: u64, page: PageId, out: &mut Orders<B, W>) {
        let state = self.held(page);
        let hold_ns_max = self.hold_ns_max;
        let Some(active) = self.active.get_mut(&page) else {
            return;
        };
        let Some(job) = active.job.filter(|_| active.change.is_none()) else {
            return;
        };
        let row = holder(state, job.event);
        // Exclusive and Shared are mapped alike: that step takes nothing away from a local user.
        let unmaps = row.next != state && (state, row.next) != (State::Exclusive, State::Shared);
        // I7: no longer than hold_ns_max, whatever happens here.
        let bound_ns = job.arrived_ns.saturating_add(hold_ns_max);
        let outranked = self.progress.outranks(self.me, page, job.urgency);
        let late = self.planted.early_ack() && job.event == Event::Invalidate;
        let until_ns = if outranked || late {
            bound_ns
        } else {
            active.hold_until_ns.min(bound_ns)
        };

        if unmaps && until_ns > now_ns {
            self.timers.set(page, Timer::Job, until_ns);
            return;
        }
        active.job = None;
        if unmaps {
            active.change = Some(Change::Lower(job));
            out.push_back(Order::Protect {
                page,
                state: row.next,
            });
        } else {
            self.answer(page, row, &job, out);
        }
        self.timers.clear(page, Timer::Job);
    }

    /// The page has been lowered as the row says: now, and only now, the answer may leave.
    pub(super) fn answer<B>(
        &mut self,
        page: PageId,
        row: &Row,
        job: &Job<W>,
        out: &mut Orders<B, W>,
    ) {
        let before = std::mem::replace(&mut self.states[page.0 as usize], row.next);
        let part = match row.action {
            Action::Supply { grant, clean } => Part::Supplied {
                state: grant,
                clean,
            },
            Action::Acknowledge => {
                self.counters.invalidated += 1;
                Part::Acknowledged
            }
            Action::Return { page: gives_back } => {
                self.end_evict(page, job.request.seq);
                self.counters.evicted_pages += u64::from(gives_back);
                self.counters.evicted_copies += u64::from(!gives_back);
                Part::Returned { page: gives_back }
            }
            Action::Hit | Action::Get | Action::Raise | Action::Refuse => {
                unreachable!("refused on arrival")
            }
        };
        self.parts
            .remember(self.homes.home(page), page, job.txn, part);
        self.send_answer(page, job, part, out);
        if before != State::Invalid && row.next == State::Invalid {
            self.leave_room(page);
            if self.room.is_some() {
                out.push_back(Order::Discard { page });
            }
        }
    }

    fn end_evict(&mut self, page: PageId, seq: u64) {
        self.outstanding.remove(&seq);
        self.timers.clear(page, Timer::Retry);
        if let Some(active) = self.active.get_mut(&page) {
            active.evict = None;
        }
        self.evicted();
    }

    fn send_answer<B>(&mut self, page: PageId, job: &Job<W>, part: Part, out: &mut Orders<B, W>) {
        let (kind, floor) = match part {
            Part::Supplied { state, clean } => {
                self.counters.pages_out += 1;
                (
                    Kind::Grant {
                        state,
                        acks: job.acks,
                        clean,
                    },
                    job.floor,
                )
            }
            Part::Acknowledged => (Kind::InvalidateAck, 0),
            Part::Returned { .. } => (
                Kind::Done {
                    state: State::Invalid,
                    clean: false,
                },
                self.floor(),
            ),
            Part::Working | Part::Granted => unreachable!("not an answer"),
        };
        let message = Message {
            epoch: self.epoch,
            page,
            request: job.request,
            txn: job.txn,
            floor,
            kind,
            body: Body::None,
        };
        let (to, attach_page) = match part {
            Part::Returned { page: gives_back } => (self.homes.home(page), gives_back),
            Part::Supplied { .. } => (job.request.node, true),
            _ => (job.request.node, false),
        };
        out.push_back(Order::Send {
            to,
            message,
            attach_page,
        });
    }

    /// A duplicate of the last transaction on this page: the home may have missed the outcome.
    fn answer_again<B>(
        &mut self,
        from: NodeId,
        message: &Message<B, W>,
        job: &Job<W>,
        part: Part,
        out: &mut Orders<B, W>,
    ) -> Result<(), ProtocolError> {
        match (part, job.event) {
            (Part::Working, _) => Ok(()),
            (Part::Supplied { .. }, Event::Invalidate)
            | (Part::Acknowledged, Event::ForwardShared)
            | (Part::Acknowledged, Event::ForwardExclusive)
            | (Part::Acknowledged, Event::ForwardModified)
            | (Part::Granted, _)
            | (Part::Supplied { .. } | Part::Acknowledged, Event::RecallCopy | Event::RecallPage) => {
                Err(refuse(message, from, "another role in this transaction"))
            }
            (Part::Returned { page }, event) if page != (event == Event::RecallPage) => {
                Err(refuse(message, from, "another role in this transaction"))
            }
            (Part::Supplied { .. } | Part::Acknowledged | Part::Returned { .. }, _) => {
                self.send_answer(message.page, job, part, out);
                Ok(())
            }
        }
    }
}
