//! Links on a control connection: what they cost, changes of it, and probes.

use super::{Answer, Ask, Client, Request};
use crate::failure::Failure;
use crate::guest::Event;
use crate::links::show::All;
use span_api::codec::{self, CodecError};
use span_api::guest::Probed;
use std::time::Duration;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Longest wait for a probe: the most bytes that one may have take less, but on the narrowest of links.
const PROBE_MS_MAX: u64 = 30_000;

const ENDING: &str = "the guest is ending";

/// Tells what all links cost.
pub(super) async fn tell(
    events: &mpsc::Sender<Event>,
    mut writer: OwnedWriteHalf,
) -> Result<(), CodecError> {
    let (reply, links) = oneshot::channel();
    let _ = events.send(Event::Request(Request::Links(reply))).await;
    let Ok(All {
        guest: _,
        names,
        uplinks,
        stats,
    }) = links.await
    else {
        return codec::write_async(&mut writer, &Answer::Refused(ENDING.into())).await;
    };
    codec::write_async(&mut writer, &Answer::Uplinks(uplinks)).await?;
    for (name, stats) in names.into_iter().zip(stats) {
        codec::write_async(&mut writer, &Answer::Links { name, stats }).await?;
    }
    codec::write_async(&mut writer, &Answer::Done).await
}

/// Does what is asked until nothing more is.
pub(super) async fn serve(
    events: &mpsc::Sender<Event>,
    first: Ask,
    mut reader: OwnedReadHalf,
    mut writer: OwnedWriteHalf,
) -> Result<(), CodecError> {
    let mut next = Some(first);
    while let Some(ask) = next {
        let answer = match ask {
            Ask::Link {
                ways,
                one_way,
                change,
            } => {
                let (reply, done) = oneshot::channel();
                let request = Request::Link {
                    ways,
                    one_way,
                    change,
                    reply,
                };
                let _ = events.send(Event::Request(request)).await;
                match done.await {
                    Ok(Ok(())) => Answer::Done,
                    Ok(Err(line)) => Answer::Refused(line),
                    Err(_) => Answer::Refused(ENDING.into()),
                }
            }
            Ask::Probe { from, to, bytes } => {
                let (reply, probed) = oneshot::channel();
                let request = Request::Probe {
                    from: from.into(),
                    to: to.into(),
                    bytes,
                    reply,
                };
                let _ = events.send(Event::Request(request)).await;
                match timeout(Duration::from_millis(PROBE_MS_MAX), probed).await {
                    Ok(Ok(probed)) => Answer::Probed(probed),
                    Ok(Err(_)) => Answer::Refused("the guest cannot measure now".into()),
                    Err(_) => Answer::Refused(format!(
                        "no answer came over a link within {} s",
                        PROBE_MS_MAX / 1000
                    )),
                }
            }
            _ => return Ok(()),
        };
        codec::write_async(&mut writer, &answer).await?;
        next = codec::read_async(&mut reader).await?;
    }
    Ok(())
}

pub(super) async fn told(mut client: Client) -> Result<All, Failure> {
    let mut all = All {
        guest: client.name.clone(),
        names: Vec::new(),
        uplinks: Vec::new(),
        stats: Vec::new(),
    };
    let mut answer = client.ask(Ask::Links).await?;
    loop {
        match answer {
            Answer::Uplinks(uplinks) => all.uplinks = uplinks,
            Answer::Links { name, stats } => {
                all.names.push(name);
                all.stats.push(stats);
            }
            Answer::Done => return Ok(all),
            _ => return Err(Failure::failed("the coordinator gave a wrong answer")),
        }
        answer = client.next().await?;
    }
}

/// Sends probes, one at a time.
#[derive(Debug)]
pub(crate) struct Prober(Client);

impl Prober {
    pub(super) fn new(client: Client) -> Self {
        Self(client)
    }

    pub(crate) async fn probe(
        &mut self,
        from: usize,
        to: usize,
        bytes: u32,
    ) -> Result<Probed, Failure> {
        let (from, to) = (from as u16, to as u16);
        match self.0.ask(Ask::Probe { from, to, bytes }).await? {
            Answer::Probed(probed) => Ok(probed),
            _ => Err(Failure::failed("the coordinator gave a wrong answer")),
        }
    }
}
