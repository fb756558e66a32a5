//! `coordinator topology`.

use super::{Topology, draw, find, measure, ready, schema, show};
use crate::cli::{Target, TopologyCommand};
use crate::failure::Failure;
use crate::reach::{put, to_json};
use serde_json::json;
use std::path::Path;

pub(crate) async fn run(command: TopologyCommand) -> Result<u8, Failure> {
    let text = match command {
        TopologyCommand::List { json } => list(json)?,
        TopologyCommand::Validate { file, json } => {
            let topology = find(&file)?;
            match json {
                true => to_json(&summary(&topology))?,
                false => show::headline(&topology) + "\n",
            }
        }
        TopologyCommand::Show { file, json } => {
            let topology = find(&file)?;
            match json {
                true => to_json(&show::json(&topology))?,
                false => show::text(&topology),
            }
        }
        TopologyCommand::Schema => schema::SCHEMA.into(),
        TopologyCommand::Draw { file, output } => {
            let svg = draw::svg(&find(&file)?);
            match output {
                Some(path) if path != Path::new("-") => {
                    std::fs::write(&path, svg)
                        .map_err(|error| Failure::cannot(path.display(), error))?;
                    return Ok(0);
                }
                _ => svg,
            }
        }
        TopologyCommand::Measure { name, json } => measure::run(&Target { name }, json).await?,
    };
    put(&text).map(|_| 0)
}

fn summary(topology: &Topology) -> serde_json::Value {
    json!({
        "name": topology.name,
        "nodes": topology.nodes.len(),
        "cpus": topology.cpus(),
        "memory_bytes": topology.memory_bytes(),
    })
}

fn list(json: bool) -> Result<String, Failure> {
    let all = ready::READY
        .iter()
        .map(|(name, _)| find(Path::new(&format!("{name}.toml"))));
    let all = all.collect::<Result<Vec<Topology>, Failure>>()?;
    if json {
        let all: Vec<_> = all.iter().map(summary).collect();
        return to_json(&all);
    }
    let lines = all.iter().map(|topology| {
        let description = topology.description.as_deref().unwrap_or_default();
        format!("{}. {description}\n", show::headline(topology))
    });
    Ok(lines.collect())
}
