//! The groups of figures.

pub(crate) mod boot;
pub(crate) mod counts;
pub(crate) mod engines;
pub(crate) mod hostfs;
pub(crate) mod kernel;
pub(crate) mod links;
pub(crate) mod net;
pub(crate) mod numa;
pub(crate) mod profile;
pub(crate) mod remote;
pub(crate) mod rest;
pub(crate) mod scale;
pub(crate) mod single;
pub(crate) mod topologies;
pub(crate) mod ubd;

const UPSTREAM: &str = "upstream";

/// A node that has counted nothing, as `status --json` shows it.
#[cfg(test)]
fn sample_node() -> serde_json::Value {
    serde_json::json!({
        "name": "a", "address": "local", "pid": 1, "cpus": [], "paging": "uffd", "mem_mib": 1,
        "resident_mib": 1, "pages_in": 0, "pages_out": 0,
        "faults": {"read": 0, "write": 0, "upgrade": 0, "local": 0},
        "counters": {
            "pages_ahead": 0, "fault_wait_ns": 0, "host_calls_served": 0, "memory_bytes": 0,
            "foreign_pages": 0, "foreign_pages_max": 0, "evicted_copies": 0, "evicted_pages": 0,
        },
    })
}
