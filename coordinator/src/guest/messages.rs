//! What agents and runtimes say.

use super::ending::Cause;
use super::{Guest, Phase};
use crate::failure::one_line;
use span_api::guest::FromGuest;
use span_api::link::FromAgent;

impl Guest {
    pub(super) fn agent(&mut self, node: usize, message: FromAgent) -> Result<(), Cause> {
        match message {
            FromAgent::Heartbeat | FromAgent::Need(_) => Ok(()),
            FromAgent::Spawned { pid } => {
                self.nodes[node].pid = Some(pid);
                Ok(())
            }
            FromAgent::Log(data) => {
                self.log.add(node, &data);
                Ok(())
            }
            FromAgent::Line { line, data } => {
                self.lines.output(line, data);
                Ok(())
            }
            FromAgent::LineTerminal { line, path } => {
                self.lines.terminal(line, &path);
                Ok(())
            }
            FromAgent::Exited(end) => {
                self.log.finish(node);
                Err(self.lost(node, format!("its guest process {end}")))
            }
            FromAgent::Failed(line) if self.phase < Phase::Boot => Err(Cause::Failed(format!(
                "node {}: {}",
                self.name(node),
                one_line(&line)
            ))),
            FromAgent::Failed(line) => Err(self.lost(node, one_line(&line))),
            FromAgent::Ended => {
                self.nodes[node].ended = true;
                Err(self.lost(node, "its agent ended".into()))
            }
            FromAgent::Guest(message) => self.runtime(node, message),
        }
    }

    fn runtime(&mut self, node: usize, message: FromGuest) -> Result<(), Cause> {
        match message {
            FromGuest::Host(host) => self.described(node, *host)?,
            FromGuest::Bound { port, paging } => {
                self.nodes[node].port = Some(port);
                self.nodes[node].paging = Some(paging);
            }
            FromGuest::Connected => self.nodes[node].connected = true,
            FromGuest::CpuOnline {
                cpu,
                tid,
                variables,
            } => {
                if !self.plan.nodes[node].cpus.contains(&cpu) {
                    let name = self.name(node);
                    return Err(Cause::Failed(format!(
                        "node {name} was not given CPU {cpu}"
                    )));
                }
                self.nodes[node].cpus.insert(cpu, tid);
                self.variables.insert(cpu, variables);
            }
            FromGuest::Stats(stats) => self.counted(node, *stats)?,
            FromGuest::LinkSet => self.link_set(),
            FromGuest::Probed(probed) => self.probed(node, probed),
            FromGuest::Faults(faults) => self.told_faults(node, faults),
            FromGuest::Halted(kind) => return Err(Cause::Halted(kind)),
            FromGuest::Panicked(text) => {
                let (node, text) = (self.name(node).to_string(), one_line(&text));
                return Err(Cause::Panicked {
                    node: Some(node),
                    text,
                });
            }
            FromGuest::PeerLost { node: peer, reason } => {
                let Some(spec) = self.plan.nodes.get(usize::from(peer)) else {
                    return Err(Cause::Failed(format!(
                        "node {} lost nobody",
                        self.name(node)
                    )));
                };
                let reason = format!("node {} reports: {}", self.name(node), one_line(&reason));
                return Err(Cause::PeerLost {
                    node: spec.name.clone(),
                    reason,
                });
            }
            FromGuest::Failed(line) => {
                let name = self.name(node);
                return Err(Cause::Failed(format!("node {name}: {}", one_line(&line))));
            }
        }
        Ok(())
    }
}
