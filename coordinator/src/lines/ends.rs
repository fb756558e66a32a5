//! The other ends of lines that this process has itself.

use super::descriptors::Served;
use super::wanted::{Other, Wanted};
use super::{Hub, window};
use crate::session::Sessions;
use std::fs::File;
use std::io;
use tokio::sync::watch;
use tokio::task::JoinSet;

#[derive(Debug)]
pub(crate) struct Ends {
    served: Vec<Served>,
    windows: JoinSet<()>,
    /// Windows are there as long as this is.
    _shown: watch::Sender<()>,
}

impl Ends {
    /// Serves what there is, windows from when the guest is ready.
    pub(crate) fn start(
        wanted: &Wanted,
        hub: &Hub,
        guest: &str,
        ready: &watch::Receiver<Option<Sessions>>,
        log: &File,
    ) -> io::Result<Self> {
        let (shown, ending) = watch::channel(());
        let mut ends = Self {
            served: Vec::new(),
            windows: JoinSet::new(),
            _shown: shown,
        };
        for (line, other) in &wanted.lines {
            match other {
                Other::Agent(_) => {}
                Other::Descriptors(descriptors) => {
                    let served = Served::start(hub.clone(), *line, *descriptors, log.try_clone()?)?;
                    ends.served.push(served);
                }
                Other::Window => {
                    let (mut ready, mut ending) = (ready.clone(), ending.clone());
                    let shown = window::show(
                        wanted.emulator.clone(),
                        guest.to_string(),
                        *line,
                        log.try_clone()?,
                        ending.clone(),
                    );
                    ends.windows.spawn(async move {
                        let is_ready = tokio::select! {
                            ready = ready.wait_for(Option::is_some) => ready.is_ok(),
                            _ = ending.changed() => false,
                        };
                        if is_ready {
                            shown.await;
                        }
                    });
                }
            }
        }
        Ok(ends)
    }

    /// Ends them with the guest.
    pub(crate) async fn end(self) {
        drop(self._shown);
        self.windows.join_all().await;
        for served in self.served {
            served.end().await;
        }
    }
}
