//! Topologies that come with the program, and those of files.

use super::{Topology, parse};
use crate::failure::Failure;
use std::fs;
use std::io::Read;
use std::path::Path;

/// More is no topology.
const FILE_BYTES_MAX: u64 = 1 << 20;

macro_rules! ready {
    ($($name:literal),* $(,)?) => {
        /// Name and text of each.
        pub(super) const READY: &[(&str, &str)] = &[
            $(($name, include_str!(concat!("../../topologies/", $name, ".toml"))),)*
        ];
    };
}

ready!(
    "two-sockets",
    "four-sockets",
    "ring-of-8",
    "two-rack-cluster",
    "far-memory",
    "one-slow-node",
);

/// A topology by the name of a file, or of one that comes with the program.
pub(crate) fn find(name: &Path) -> Result<Topology, Failure> {
    let shown = name.display().to_string();
    let text = match fs::File::open(name) {
        Ok(file) => read(file),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let known = READY
                .iter()
                .find(|(known, _)| shown == *known || shown.strip_suffix(".toml") == Some(known));
            let Some((known, text)) = known else {
                let names: Vec<&str> = READY.iter().map(|(name, _)| *name).collect();
                return Err(Failure::usage(format!(
                    "topology {shown}: no such file, and none of {}",
                    names.join(", ")
                )));
            };
            return parse(&format!("{known}.toml"), text);
        }
        Err(error) => Err(error),
    };
    match text {
        Ok(text) => parse(&shown, &text),
        Err(error) => Err(Failure::usage(format!("topology {shown}: {error}"))),
    }
}

fn read(file: fs::File) -> std::io::Result<String> {
    let mut text = String::new();
    let bytes = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    match bytes as u64 > FILE_BYTES_MAX {
        true => Err(std::io::Error::other("the file is longer than 1 MiB")),
        false => Ok(text),
    }
}
