//! `coordinator link`: what links cost while a guest runs.

use super::{Change, ends, values};
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
        [name, pair] => (Some(name.as_str()), Some(pair.as_str())),
        [word] if !is_change && base.names().contains(word) => (Some(word.as_str()), None),
        [word] => (None, Some(word.as_str())),
        [_, _, word, ..] => {
            return Err(Failure::usage(format!(
                "{word:?}: one guest and one link A-B can be named"
            )));
        }
    };
    if is_change && pair.is_none() {
        return Err(Failure::usage("name the link to change: A-B"));
    }
    if options.one_way && !is_change {
        return Err(Failure::usage("--one-way: there is nothing to change"));
    }
    let (name, directory) = base.find(name)?;
    let all = Client::connect(&name, &directory).await?.links().await?;
    let pair = match pair {
        Some(pair) => Some(ends(pair, &all.names).map_err(Failure::usage)?),
        None => None,
    };
    let Some((from, to)) = pair.filter(|_| is_change) else {
        let text = match options.json {
            true => to_json(&all.json(pair))?,
            false => all.text(pair),
        };
        return put(&text).map(|_| 0);
    };
    // What the guest itself would refuse, but as what it is: a word of the command line.
    let known = |from: usize, to: usize| all.stats.get(from).and_then(|stats| stats.get(to));
    for (from, to) in [(from, to), (to, from)]
        .iter()
        .take(1 + usize::from(!options.one_way))
    {
        if let Some(stats) = known(*from, *to) {
            let _ = change.apply(stats.link).map_err(Failure::usage)?;
        }
    }
    let client = Client::connect(&name, &directory).await?;
    client
        .change_link(from, to, options.one_way, change)
        .await?;
    if options.json {
        let all = Client::connect(&name, &directory).await?.links().await?;
        return put(&to_json(&all.json(pair))?).map(|_| 0);
    }
    Ok(0)
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
