//! Whether the hosts of a guest's nodes are enough alike ([`span_api::host`] says in what).

use super::Guest;
use super::ending::Cause;
use span_api::host::{FEATURES, Host, XSAVE_PARTS_MAX};

impl Guest {
    /// A node says what its host is like: it must be like the first node's.
    pub(super) fn described(&mut self, node: usize, host: Host) -> Result<(), Cause> {
        let name = self.name(node).to_string();
        if host.xsave.parts.len() > XSAVE_PARTS_MAX || self.nodes[node].host.is_some() {
            return Err(Cause::Failed(format!(
                "node {name}: its runtime did not describe its host as it should"
            )));
        }
        self.nodes[node].host = Some(host);
        let Some(first) = &self.nodes[0].host else {
            return Ok(());
        };
        // The first may have been the last to answer.
        for (index, other) in self.nodes.iter().enumerate().skip(1) {
            if let Some(why) = other.host.as_ref().and_then(|host| difference(host, first)) {
                return Err(Cause::Failed(format!(
                    "node {} cannot be in one guest with node {}: {why}",
                    self.name(index),
                    self.name(0)
                )));
            }
        }
        Ok(())
    }
}

/// The first thing in which `host` differs from the `first` node's, most telling first.
fn difference(host: &Host, first: &Host) -> Option<String> {
    let (lacks, has) = (only(first, host), only(host, first));
    let (ours, theirs) = (&host.xsave, &first.xsave);
    if host.page_bytes != first.page_bytes {
        let (ours, theirs) = (host.page_bytes, first.page_bytes);
        Some(format!("its pages have {ours} bytes, there {theirs}"))
    } else if host.stack_end != first.stack_end {
        let (ours, theirs) = (host.stack_end, first.stack_end);
        Some(format!(
            "its address space ends at {ours:#x}, there at {theirs:#x}"
        ))
    } else if !lacks.is_empty() {
        Some(format!("its CPU lacks {}", lacks.join(", ")))
    } else if !has.is_empty() {
        Some(format!("its CPU has {}, there not", has.join(", ")))
    } else if ours.components != theirs.components {
        let (ours, theirs) = (ours.components, theirs.components);
        Some(format!(
            "its host saves the CPU state {ours:#x}, there {theirs:#x} (XCR0)"
        ))
    } else if ours.bytes != theirs.bytes {
        let (ours, theirs) = (ours.bytes, theirs.bytes);
        Some(format!(
            "its CPU state takes {ours} bytes, there {theirs} (XSAVE)"
        ))
    } else if ours.parts != theirs.parts {
        Some("its CPU state is laid out in another way (XSAVE)".into())
    } else {
        None
    }
}

/// Features that one host has and another does not.
fn only(one: &Host, other: &Host) -> Vec<&'static str> {
    let words = FEATURES
        .iter()
        .zip(one.features.iter().zip(&other.features));
    words
        .flat_map(|(word, (one, other))| {
            let bits = word.bits.iter();
            bits.filter(move |(bit, _)| one & !other & 1 << bit != 0)
        })
        .map(|(_, name)| *name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use span_api::host::{Xsave, XsavePart};

    fn host() -> Host {
        Host {
            page_bytes: 4096,
            stack_end: 0x7fff_ffff_f000,
            features: [0x0f0f_0f0f; FEATURES.len()],
            xsave: Xsave {
                components: 7,
                bytes: 832,
                parts: vec![XsavePart {
                    component: 2,
                    offset: 576,
                    bytes: 256,
                }],
            },
        }
    }

    fn with(change: impl FnOnce(&mut Host)) -> Option<String> {
        let mut changed = host();
        change(&mut changed);
        difference(&changed, &host())
    }

    #[test]
    fn equal_hosts_do_not_differ() {
        assert_eq!(with(|_| {}), None);
    }

    #[test]
    fn each_fact_that_differs_is_told() {
        let told = |change: fn(&mut Host), line: &str| {
            assert_eq!(with(change).as_deref(), Some(line));
        };
        told(
            |host| host.page_bytes = 16384,
            "its pages have 16384 bytes, there 4096",
        );
        told(
            |host| host.stack_end = 0x7ffd_1234_5000,
            "its address space ends at 0x7ffd12345000, there at 0x7ffffffff000",
        );
        // Of leaf 1 in ECX: bit 25 is set there, bit 12 is not.
        told(|host| host.features[1] ^= 1 << 25, "its CPU lacks aes");
        told(
            |host| host.features[1] ^= 1 << 12 | 1 << 13,
            "its CPU has fma, cx16, there not",
        );
        told(
            |host| host.xsave.components |= 0xe0,
            "its host saves the CPU state 0xe7, there 0x7 (XCR0)",
        );
        told(
            |host| host.xsave.bytes = 2696,
            "its CPU state takes 2696 bytes, there 832 (XSAVE)",
        );
        told(
            |host| host.xsave.parts[0].offset = 640,
            "its CPU state is laid out in another way (XSAVE)",
        );
        told(
            |host| host.xsave.parts.clear(),
            "its CPU state is laid out in another way (XSAVE)",
        );
    }
}
