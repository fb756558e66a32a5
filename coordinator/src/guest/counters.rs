//! The status of a guest, for which its nodes are asked for their counters.

use super::ending::Cause;
use super::{Guest, Phase};
use crate::links::show::All;
use crate::options::Place;
use crate::status::{Counters, Cpu, Faults, NodeStatus, Status, rfc3339};
use span_api::guest::Stats;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Longest wait for the counters of all nodes; what is known by then is answered.
const STATS_MS_MAX: u64 = 1000;

/// Requests that may wait at one time.
const REQUESTS_MAX: usize = 64;

const PAGES_PER_MIB: u64 = 256;

/// Who wants to know what nodes count, and what of it.
#[derive(Debug)]
pub(super) enum Wanted {
    Status(oneshot::Sender<Status>),
    Links(oneshot::Sender<All>),
}

impl Guest {
    pub(super) fn request_status(&mut self, reply: Wanted) -> Result<(), Cause> {
        // A request dropped is answered with an error at the other end.
        if self.status_requests.len() < REQUESTS_MAX {
            self.status_requests.push(reply);
        }
        if self.phase < Phase::Boot || self.phase == Phase::Ending {
            self.answer_status();
        } else if self.status_deadline.is_none() {
            for node in 0..self.nodes.len() {
                self.ask_anew(node)?;
            }
            self.status_deadline = Some(Instant::now() + Duration::from_millis(STATS_MS_MAX));
        }
        Ok(())
    }

    pub(super) fn counted(&mut self, node: usize, stats: Stats) -> Result<(), Cause> {
        self.nodes[node].stats = Some(stats);
        if self.answered(node)? && self.nodes.iter().all(|node| node.silence.is_over()) {
            self.answer_status();
        }
        Ok(())
    }

    pub(super) fn answer_status(&mut self) {
        self.status_deadline = None;
        if self.status_requests.is_empty() {
            return;
        }
        let (mut status, mut links) = (None, None);
        for reply in std::mem::take(&mut self.status_requests) {
            match reply {
                Wanted::Status(reply) => {
                    _ = reply.send(status.get_or_insert_with(|| self.status()).clone());
                }
                Wanted::Links(reply) => {
                    _ = reply.send(links.get_or_insert_with(|| self.links()).clone());
                }
            }
        }
    }

    fn links(&self) -> All {
        let stats = |node: &super::Node| node.stats.as_ref().map(|stats| stats.links.clone());
        All {
            guest: self.run.name().to_string(),
            names: self
                .plan
                .nodes
                .iter()
                .map(|node| node.name.clone())
                .collect(),
            uplinks: self.plan.links.uplinks.clone(),
            stats: self
                .nodes
                .iter()
                .map(|node| stats(node).unwrap_or_default())
                .collect(),
        }
    }

    fn status(&self) -> Status {
        let nodes = self
            .plan
            .nodes
            .iter()
            .zip(&self.plan.places)
            .zip(&self.nodes);
        Status {
            name: self.run.name().to_string(),
            state: match self.phase {
                Phase::Connect | Phase::Map | Phase::Meet => "starting",
                Phase::Boot => "booting",
                Phase::Running => "running",
                Phase::Ending => "ending",
            }
            .to_string(),
            kernel: self.kernel.clone(),
            pid: std::process::id(),
            started: rfc3339(self.started),
            nodes: nodes
                .map(|((spec, place), node)| {
                    let stats = node.stats.clone().unwrap_or_default();
                    NodeStatus {
                        name: spec.name.clone(),
                        address: match place {
                            Place::Local => "local".to_string(),
                            Place::Remote(address) => address.clone(),
                        },
                        pid: node.pid,
                        cpus: spec
                            .cpus
                            .iter()
                            .map(|cpu| Cpu {
                                cpu: *cpu,
                                tid: node.cpus.get(cpu).copied(),
                            })
                            .collect(),
                        paging: node.paging,
                        silent_ms: node
                            .silence
                            .lasts()
                            .map(|lasts| lasts.as_millis() as u64)
                            .filter(|lasts| *lasts >= STATS_MS_MAX),
                        mem_mib: spec.memory_bytes >> 20,
                        resident_mib: stats.resident_pages / PAGES_PER_MIB,
                        faults: Faults {
                            read: stats.faults_read,
                            write: stats.faults_write,
                            upgrade: stats.faults_upgrade,
                            local: stats.faults_local,
                        },
                        pages_in: stats.pages_in,
                        pages_out: stats.pages_out,
                        counters: Counters {
                            pages_ahead: stats.pages_ahead,
                            invalidations: stats.invalidations,
                            stub_faults: stats.stub_faults,
                            stub_kicks: stats.stub_kicks,
                            ipis_sent: stats.ipis_sent,
                            ipis_received: stats.ipis_received,
                            host_calls_served: stats.host_calls_served,
                            host_calls_forwarded: stats.host_calls_forwarded,
                            bytes_sent: stats.bytes_sent,
                            bytes_received: stats.bytes_received,
                            retries: stats.retries,
                            resident_pages: stats.resident_pages,
                            memory_bytes: stats.memory_bytes,
                            foreign_pages: stats.foreign_pages,
                            foreign_pages_max: stats.foreign_pages_max,
                            evicted_copies: stats.evicted_copies,
                            evicted_pages: stats.evicted_pages,
                            room_waits: stats.room_waits,
                            fault_wait_ns: stats.fault_wait_ns,
                        },
                        latency: stats.waits.into(),
                    }
                })
                .collect(),
        }
    }
}
