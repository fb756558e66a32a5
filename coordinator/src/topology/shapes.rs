//! The tables of a topology file, before anything is known but that each value is of its kind.

use crate::links::values;
use crate::options;
use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize};
use std::fmt;
use toml::Spanned;

const CACHE_BYTES_MIN: u64 = 4 << 10;
const CACHE_BYTES_MAX: u64 = 1 << 30;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) description: Option<String>,
    pub(super) seed: Option<u64>,
    #[serde(rename = "node", default)]
    pub(super) nodes: Vec<Spanned<Node>>,
    pub(super) links: Option<Spanned<Others>>,
    #[serde(rename = "link", default)]
    pub(super) named: Vec<Spanned<Link>>,
    #[serde(rename = "uplink", default)]
    pub(super) uplinks: Vec<Spanned<Uplink>>,
    pub(super) distances: Option<Spanned<Matrix>>,
}

pub(super) type Matrix = Vec<Spanned<Vec<Spanned<i64>>>>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Node {
    pub(super) name: Spanned<String>,
    pub(super) address: Option<Spanned<String>>,
    pub(super) group: Option<Spanned<String>>,
    pub(super) cpus: Option<Spanned<i64>>,
    pub(super) mem: Option<Spanned<Size>>,
    #[serde(rename = "mem-limit")]
    pub(super) mem_limit: Option<Spanned<Size>>,
    #[serde(rename = "host-cpus")]
    pub(super) host_cpus: Option<Spanned<String>>,
    pub(super) sockets: Option<Spanned<i64>>,
    pub(super) clusters: Option<Spanned<i64>>,
    pub(super) threads: Option<Spanned<i64>>,
    pub(super) caches: Option<Spanned<Vec<Spanned<Cache>>>>,
    pub(super) slow: Option<Spanned<f64>>,
    pub(super) numa: Option<Spanned<Vec<Spanned<NumaPart>>>>,
    #[serde(rename = "numa-of")]
    pub(super) numa_of: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NumaPart {
    pub(super) cpus: Option<Spanned<String>>,
    pub(super) mem: Option<Size>,
}

/// `[links]`: what those cost that are not named.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Others {
    pub(super) routed: Option<Spanned<bool>>,
    latency: Option<Time>,
    jitter: Option<Spanned<Time>>,
    bandwidth: Option<Spanned<Bandwidth>>,
    loss: Option<Loss>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Link {
    pub(super) between: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) within: Option<Spanned<String>>,
    pub(super) uplink: Option<Spanned<String>>,
    latency: Option<Time>,
    jitter: Option<Spanned<Time>>,
    bandwidth: Option<Spanned<Bandwidth>>,
    loss: Option<Loss>,
    pub(super) back: Option<Spanned<Cost>>,
}

/// `[[uplink]]`: what links have in common, and cost where they do not say it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Uplink {
    pub(super) name: Spanned<String>,
    latency: Option<Time>,
    jitter: Option<Spanned<Time>>,
    bandwidth: Option<Spanned<Bandwidth>>,
    loss: Option<Loss>,
    pub(super) back: Option<Spanned<Cost>>,
}

/// What a direction of a link costs, as far as it is said.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cost {
    pub(super) latency: Option<Time>,
    pub(super) jitter: Option<Spanned<Time>>,
    pub(super) bandwidth: Option<Spanned<Bandwidth>>,
    pub(super) loss: Option<Loss>,
}

impl Others {
    pub(super) fn cost(&self) -> Cost {
        Cost {
            latency: self.latency,
            jitter: self.jitter.clone(),
            bandwidth: self.bandwidth.clone(),
            loss: self.loss,
        }
    }
}

impl Link {
    pub(super) fn cost(&self) -> Cost {
        Cost {
            latency: self.latency,
            jitter: self.jitter.clone(),
            bandwidth: self.bandwidth.clone(),
            loss: self.loss,
        }
    }
}

impl Uplink {
    pub(super) fn cost(&self) -> Cost {
        Cost {
            latency: self.latency,
            jitter: self.jitter.clone(),
            bandwidth: self.bandwidth.clone(),
            loss: self.loss,
        }
    }
}

impl Cost {
    pub(super) fn is_empty(&self) -> bool {
        self.latency.is_none()
            && self.jitter.is_none()
            && self.bandwidth.is_none()
            && self.loss.is_none()
    }
}

/// Values that are written as text, read when they are come to: an error then has their place.
macro_rules! written {
    ($name:ident, $number:ty, $read:path, $expected:literal) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
        pub(super) struct $name(pub(super) $number);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }

                    fn visit_str<E: Error>(self, text: &str) -> Result<$name, E> {
                        $read(text).map($name).map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}

written!(Time, u64, values::time_ns, "a time as \"200us\"");
written!(
    Bandwidth,
    u64,
    values::bandwidth_bps,
    "a bandwidth as \"10G\""
);
written!(Loss, u32, values::loss_ppm, "a loss as \"0.1%\"");
written!(Size, u64, size, "a size as \"256M\"");
written!(Cache, u64, cache, "a size as \"32K\"");

/// Of a node's memory, or a part of it, which may have none.
fn size(text: &str) -> Result<u64, String> {
    match text {
        "0" => Ok(0),
        _ => options::memory_bytes(text),
    }
}

/// Of a cache: what the kernel can be told.
fn cache(text: &str) -> Result<u64, String> {
    let bytes = options::size_bytes(text)?;
    match (CACHE_BYTES_MIN..=CACHE_BYTES_MAX).contains(&bytes) && bytes % CACHE_BYTES_MIN == 0 {
        true => Ok(bytes),
        false => Err("a cache has a multiple of 4K, up to 1G".into()),
    }
}
