//! Links while the guest runs: what they are made to cost, and what they take.

use super::wire::{Frame, PAYLOAD_BYTES_MAX};
use super::{Pager, Ticket};
use crate::{clock, control, spin};
use bytes::Bytes;
use span_api::guest::{FromGuest, Link, Probed};

impl Pager {
    pub(super) fn set_link(&mut self, node: u16, link: Link) {
        self.net.set_cost(node, link);
        self.judge_waiting();
        control::send(&FromGuest::LinkSet);
    }

    /// Whether it pays to wait awake for what other nodes send.
    pub(super) fn judge_waiting(&self) {
        spin::pays(self.net.answer_ns_min());
    }

    /// Sends so many bytes to a node, which says when it has all of them.
    pub(super) fn probe(&mut self, node: u16, bytes: u32) {
        let sent_ns = clock::guest_ns();
        if node == self.me {
            return report(node, sent_ns, sent_ns);
        }
        let ticket = self.ticket(Ticket::Probe { node, sent_ns });
        let mut missing = bytes as usize;
        let zeroes = Bytes::from(vec![0; missing.min(PAYLOAD_BYTES_MAX)]);
        loop {
            let now = missing.min(PAYLOAD_BYTES_MAX);
            missing -= now;
            let frame = Frame::Probe {
                ticket,
                last: missing == 0,
                payload: zeroes.slice(..now),
            };
            self.send(node, frame);
            if missing == 0 {
                return;
            }
        }
    }

    /// A part of another node's probe has come.
    pub(super) fn probed(&mut self, from: u16, ticket: u64, last: bool) {
        if last {
            let arrived_ns = clock::guest_ns();
            self.send(from, Frame::Probed { ticket, arrived_ns });
        }
    }

    pub(super) fn finish_probe(&mut self, ticket: u64, arrived_ns: u64) -> Result<(), String> {
        match self.tickets.remove(&ticket) {
            Some(Ticket::Probe { node, sent_ns }) => report(node, sent_ns, arrived_ns),
            _ => return Err("answered a probe that nobody sent".to_string()),
        }
        Ok(())
    }
}

fn report(node: u16, sent_ns: u64, arrived_ns: u64) {
    control::send(&FromGuest::Probed(Probed {
        node,
        sent_ns,
        arrived_ns,
        answered_ns: clock::guest_ns(),
    }));
}
