//! A profile on a control connection: what is told, and asking for it.

use super::{Answer, Ask, Request};
use crate::guest::{Event, Profiled, Subject};
use span_api::codec::{self, CodecError};
use span_api::profile::{Faults, Profiling};
use std::time::Duration;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

/// How often nodes are asked. They keep what comes in between.
const COLLECT_MS: u64 = 200;

/// Answers that were read and not looked at yet.
const ANSWERS_MAX: usize = 16;

/// Tells faults until whoever asked has enough, or is gone, or the guest ends.
pub(super) async fn serve(
    events: &mpsc::Sender<Event>,
    mut reader: OwnedReadHalf,
    mut writer: OwnedWriteHalf,
) -> Result<(), CodecError> {
    let ask = async |what| {
        // A guest that is gone tells nothing more, which is noticed where its answers end.
        let _ = events.send(Event::Request(what)).await;
    };
    let (reply, begun) = oneshot::channel();
    ask(Request::Profile(reply)).await;
    let Profiled {
        subject,
        mut faults,
    } = match begun.await {
        Ok(Ok(profiled)) => profiled,
        Ok(Err(line)) => return codec::write_async(&mut writer, &Answer::Refused(line)).await,
        Err(_) => {
            let line = "the guest is ending".into();
            return codec::write_async(&mut writer, &Answer::Refused(line)).await;
        }
    };
    let nodes = subject.nodes.len();
    let mut stopped = false;
    let result = async {
        let enough = codec::read_async::<Ask>(&mut reader);
        tokio::pin!(enough);
        codec::write_async(&mut writer, &Answer::Profiling(Box::new(subject))).await?;
        loop {
            let asked = Instant::now();
            let mut more = false;
            for _ in 0..nodes {
                let Some((node, faults)) = faults.recv().await else {
                    return codec::write_async(&mut writer, &Answer::Done).await;
                };
                more |= faults.more;
                let node = node as u16;
                codec::write_async(&mut writer, &Answer::Faults { node, faults }).await?;
            }
            if !more && stopped {
                // CPUs may have come up since.
                let (reply, subject) = oneshot::channel();
                ask(Request::Subject(reply)).await;
                if let Ok(subject) = subject.await {
                    codec::write_async(&mut writer, &Answer::Profiling(Box::new(subject))).await?;
                }
                return codec::write_async(&mut writer, &Answer::Done).await;
            }
            if !more {
                let next = asked + Duration::from_millis(COLLECT_MS);
                tokio::select! {
                    () = sleep_until(next) => {}
                    said = &mut enough => {
                        if said?.is_none() {
                            return Ok(());
                        }
                        stopped = true;
                        ask(Request::Profiling(Profiling::Stop)).await;
                        continue;
                    }
                }
            }
            ask(Request::Profiling(Profiling::Collect)).await;
        }
    }
    .await;
    drop(faults);
    if !stopped {
        // Nothing is to be recorded for one who went away.
        ask(Request::Profiling(Profiling::Stop)).await;
    }
    result
}

/// The other end of it.
#[derive(Debug)]
pub(crate) struct Told {
    answers: mpsc::Receiver<Result<Answer, CodecError>>,
    writer: OwnedWriteHalf,
    subject: Option<Subject>,
}

impl Told {
    pub(super) fn new(mut reader: OwnedReadHalf, writer: OwnedWriteHalf) -> Self {
        let (sender, answers) = mpsc::channel(ANSWERS_MAX);
        tokio::spawn(async move {
            while let Some(answer) = codec::read_async(&mut reader).await.transpose() {
                if sender.send(answer).await.is_err() {
                    return;
                }
            }
        });
        Self {
            answers,
            writer,
            subject: None,
        }
    }

    /// The next faults, and their node; `None` when all have been told.
    pub(crate) async fn next(&mut self) -> Option<(u16, Faults)> {
        loop {
            match self.answers.recv().await {
                Some(Ok(Answer::Faults { node, faults })) => return Some((node, faults)),
                Some(Ok(Answer::Profiling(subject))) => self.subject = Some(*subject),
                // A guest's coordinator that goes away has told what it had.
                _ => return None,
            }
        }
    }

    /// What was known of the guest in the end, when all has been told.
    pub(crate) fn subject(&mut self) -> Option<Subject> {
        self.subject.take()
    }

    /// Asks for the rest.
    pub(crate) async fn enough(&mut self) {
        // One who is gone tells no more.
        let _ = codec::write_async(&mut self.writer, &Ask::Enough).await;
    }
}
