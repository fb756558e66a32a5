//! What waits for somebody who may read it slowly or not at all: bounded in bytes, and no sender waits.
//!
//! Not in messages: as a rule these are lines, and a guest writes thousands of them before a busy host lets the reader
//! have a turn.

use crate::session::output_bytes;
use span_api::session::FromInit;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tokio::sync::mpsc;

/// Of one backlog.
const BYTES_MAX: usize = 2 << 20;

/// What a message takes besides its data, about.
const MESSAGE_BYTES: usize = 64;

/// How long the pipe is that a backlog is read through, in messages.
const PIPE_MESSAGES: usize = 16;

pub(crate) trait Message {
    fn data_bytes(&self) -> usize;
}

impl Message for Vec<u8> {
    fn data_bytes(&self) -> usize {
        self.len()
    }
}

impl Message for FromInit {
    fn data_bytes(&self) -> usize {
        output_bytes(self) as usize
    }
}

/// Why a message does not wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// So much waits already.
    Full,
    /// Nobody reads any more.
    Closed,
}

/// Clones add to the same backlog. Who reads it sees its end when all of them are gone.
#[derive(Debug)]
pub(crate) struct Sender<T> {
    messages: mpsc::UnboundedSender<T>,
    bytes: Arc<AtomicUsize>,
}

/// Keeps no backlog open.
#[derive(Debug)]
pub(crate) struct WeakSender<T> {
    messages: mpsc::WeakUnboundedSender<T>,
    bytes: Arc<AtomicUsize>,
}

#[derive(Debug)]
pub(crate) struct Receiver<T> {
    messages: mpsc::UnboundedReceiver<T>,
    bytes: Arc<AtomicUsize>,
    /// Of the message that was received last: it counts until the next one is asked for.
    taken: usize,
}

pub(crate) fn new<T>() -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let bytes = Arc::new(AtomicUsize::new(0));
    let sender = Sender {
        messages: sender,
        bytes: bytes.clone(),
    };
    let receiver = Receiver {
        messages: receiver,
        bytes,
        taken: 0,
    };
    (sender, receiver)
}

fn bytes(message: &impl Message) -> usize {
    MESSAGE_BYTES + message.data_bytes()
}

impl<T: Message> Sender<T> {
    pub(crate) fn send(&self, message: T) -> Result<(), Refused> {
        if self.messages.is_closed() {
            return Err(Refused::Closed);
        }
        let bytes = bytes(&message);
        if self.bytes.fetch_add(bytes, Relaxed) + bytes > BYTES_MAX {
            self.bytes.fetch_sub(bytes, Relaxed);
            return Err(Refused::Full);
        }
        self.messages.send(message).map_err(|_| Refused::Closed)
    }
}

impl<T> Sender<T> {
    pub(crate) fn is_closed(&self) -> bool {
        self.messages.is_closed()
    }

    pub(crate) fn same_backlog(&self, other: &Self) -> bool {
        self.messages.same_channel(&other.messages)
    }

    pub(crate) fn downgrade(&self) -> WeakSender<T> {
        WeakSender {
            messages: self.messages.downgrade(),
            bytes: self.bytes.clone(),
        }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self {
            messages: self.messages.clone(),
            bytes: self.bytes.clone(),
        }
    }
}

impl<T> WeakSender<T> {
    pub(crate) fn upgrade(&self) -> Option<Sender<T>> {
        Some(Sender {
            messages: self.messages.upgrade()?,
            bytes: self.bytes.clone(),
        })
    }
}

impl<T: Message> Receiver<T> {
    /// The next message, when the one before is dealt with; none when there will be no more.
    pub(crate) async fn recv(&mut self) -> Option<T> {
        self.give_back();
        let message = self.messages.recv().await;
        self.took(message)
    }

    /// The same, for a thread.
    pub(crate) fn blocking_recv(&mut self) -> Option<T> {
        self.give_back();
        let message = self.messages.blocking_recv();
        self.took(message)
    }

    fn give_back(&mut self) {
        self.bytes.fetch_sub(self.taken, Relaxed);
        self.taken = 0;
    }

    fn took(&mut self, message: Option<T>) -> Option<T> {
        self.taken = message.as_ref().map_or(0, bytes);
        message
    }
}

impl<T: Message + Send + 'static> Receiver<T> {
    /// Has it read through a pipe.
    pub(crate) fn into_pipe(mut self) -> mpsc::Receiver<T> {
        let (pipe, messages) = mpsc::channel(PIPE_MESSAGES);
        tokio::spawn(async move {
            loop {
                let message = tokio::select! {
                    message = self.recv() => message,
                    () = pipe.closed() => None,
                };
                let Some(message) = message else {
                    return;
                };
                if pipe.send(message).await.is_err() {
                    return;
                }
            }
        });
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] = b"3999\r\n";

    #[test]
    fn so_many_bytes_wait_however_short_the_messages_are() {
        let (sender, mut receiver) = new();
        let lines = BYTES_MAX / (MESSAGE_BYTES + LINE.len());
        for _ in 0..lines {
            assert_eq!(sender.send(LINE.to_vec()), Ok(()));
        }
        assert_eq!(sender.send(LINE.to_vec()), Err(Refused::Full));
        assert_eq!(receiver.blocking_recv().as_deref(), Some(LINE));
        // It is still being dealt with.
        assert_eq!(sender.send(LINE.to_vec()), Err(Refused::Full));
        assert_eq!(receiver.blocking_recv().as_deref(), Some(LINE));
        assert_eq!(sender.clone().send(LINE.to_vec()), Ok(()));
        // The rest comes although nobody sends any more.
        let gone = sender.downgrade();
        drop(sender);
        assert!(gone.upgrade().is_none());
        let rest = std::iter::from_fn(|| receiver.blocking_recv());
        assert_eq!(rest.count(), lines - 1);
    }

    #[test]
    fn nothing_waits_for_who_is_gone() {
        let (sender, receiver) = new();
        drop(receiver);
        assert!(sender.is_closed());
        for _ in 0..2 {
            assert_eq!(sender.send(vec![0; BYTES_MAX]), Err(Refused::Closed));
        }
    }

    #[tokio::test]
    async fn a_pipe_passes_all_on_and_ends_with_either_end() {
        let (sender, receiver) = new();
        let mut pipe = receiver.into_pipe();
        for round in 0..100_u8 {
            assert_eq!(sender.send(vec![round]), Ok(()));
        }
        for round in 0..100_u8 {
            assert_eq!(pipe.recv().await, Some(vec![round]));
        }
        let other = sender.downgrade();
        drop(pipe);
        while !sender.is_closed() {
            tokio::task::yield_now().await;
        }
        drop(sender);
        assert!(other.upgrade().is_none());

        let (sender, receiver) = new();
        let mut pipe = receiver.into_pipe();
        assert_eq!(sender.send(LINE.to_vec()), Ok(()));
        drop(sender);
        assert_eq!(pipe.recv().await.as_deref(), Some(LINE));
        assert_eq!(pipe.recv().await, None);
    }
}
