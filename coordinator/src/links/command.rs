//! `coordinator link`: what links cost while a guest runs.

use super::show::{All, Shown};
use super::{Change, Ways, ends, values};
use crate::cli::LinkOptions;
use crate::control::Client;
use crate::failure::Failure;
use crate::reach::{put, to_json};
use crate::rundir::Base;

pub(crate) async fn run(options: LinkOptions) -> Result<u8, Failure> {
    let change = change(&options)?;
    let is_change = change != Change::default();
    let base = Base::of_this_user();
    let (name, pair) = match &options.words[..] {
        [] => (None, None),
        [name] if options.uplink.is_some() => (Some(name.as_str()), None),
        [name, pair] => (Some(name.as_str()), Some(pair.as_str())),
        [word] if !is_change && base.names().contains(word) => (Some(word.as_str()), None),
        [word] => (None, Some(word.as_str())),
        [_, _, word, ..] => {
            return Err(Failure::usage(format!(
                "{word:?}: one guest and one link A-B can be named"
            )));
        }
    };
    if let (Some(uplink), Some(pair)) = (&options.uplink, pair) {
        return Err(Failure::usage(format!(
            "--uplink {uplink}: all links through it are meant, not {pair:?} alone"
        )));
    }
    if is_change && pair.is_none() && options.uplink.is_none() {
        return Err(Failure::usage(
            "name the link to change, A-B, or --uplink UPLINK",
        ));
    }
    if options.one_way && !is_change {
        return Err(Failure::usage("--one-way: there is nothing to change"));
    }
    let (name, directory) = base.find(name)?;
    let all = Client::connect(&name, &directory).await?.links().await?;
    let shown = match (&options.uplink, pair) {
        (Some(uplink), _) => Shown::Uplink(numbered(uplink, &all)?),
        (None, Some(pair)) => {
            let (from, to) = ends(pair, &all.names).map_err(Failure::usage)?;
            Shown::Pair(from, to)
        }
        (None, None) => Shown::All,
    };
    let ways = match shown {
        _ if !is_change => None,
        Shown::All => None,
        Shown::Pair(from, to) => Some(Ways::Pair(from as u16, to as u16)),
        Shown::Uplink(number) => Some(Ways::Uplink(number as u16)),
    };
    let Some(ways) = ways else {
        let text = match options.json {
            true => to_json(&all.json(shown))?,
            false => all.text(shown),
        };
        return put(&text).map(|_| 0);
    };
    // What the guest itself would refuse, but as what it is: a word of the command line.
    for link in all.changed(ways, options.one_way) {
        let changed = match ways {
            Ways::Pair(..) => change.apply_to_pair(link, &all.uplinks),
            Ways::Uplink(_) => change.apply(link),
        };
        let _ = changed.map_err(Failure::usage)?;
    }
    let client = Client::connect(&name, &directory).await?;
    client.change_links(ways, options.one_way, change).await?;
    if options.json {
        let all = Client::connect(&name, &directory).await?.links().await?;
        return put(&to_json(&all.json(shown))?).map(|_| 0);
    }
    Ok(0)
}

fn numbered(uplink: &str, all: &All) -> Result<usize, Failure> {
    let number = all.uplinks.iter().position(|name| name == uplink);
    number.ok_or_else(|| {
        let known = match all.uplinks.is_empty() {
            true => "it has none".into(),
            false => format!("it has {}", all.uplinks.join(", ")),
        };
        Failure::usage(format!(
            "--uplink {uplink}: guest {} has no such uplink; {known}",
            all.guest
        ))
    })
}

fn change(options: &LinkOptions) -> Result<Change, Failure> {
    fn read<T>(
        option: &str,
        text: Option<&String>,
        read: fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Failure> {
        let Some(text) = text else { return Ok(None) };
        let value = read(text).map_err(|why| Failure::usage(format!("{option} {text}: {why}")))?;
        Ok(Some(value))
    }
    Ok(Change {
        latency_ns: read("--latency", options.latency.as_ref(), values::time_ns)?,
        jitter_ns: read("--jitter", options.jitter.as_ref(), values::time_ns)?,
        bandwidth_bps: read(
            "--bandwidth",
            options.bandwidth.as_ref(),
            values::bandwidth_bps,
        )?,
        loss_ppm: read("--loss", options.loss.as_ref(), values::loss_ppm)?,
        cut: match (options.cut, options.heal) {
            (true, _) => Some(true),
            (false, true) => Some(false),
            (false, false) => None,
        },
    })
}
