//! The framed, non-blocking byte stream to the coordinator.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use span_api::{
    codec::{self, CodecError},
    session::{FromInit, ToInit},
};
use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Bytes asked of the device at a time.
const READ_BYTES: usize = 64 * 1024;

/// Output beyond which sessions' output is not read: it only has to keep the device busy.
const QUEUE_BYTES: usize = 256 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ChannelError {
    #[error("{0} could not be opened")]
    Open(PathBuf, #[source] io::Error),
    #[error("the channel to the coordinator failed")]
    Io(#[source] io::Error),
    #[error("the coordinator sent a malformed frame")]
    Malformed(#[source] CodecError),
    #[error("the channel ended inside a frame")]
    Truncated,
}

#[derive(Debug)]
pub(crate) struct Channel {
    device: File,
    /// Received bytes; those before `parsed` are used up.
    input: Vec<u8>,
    parsed: usize,
    /// Frames to send; the bytes before `written` are gone.
    output: Vec<u8>,
    written: usize,
    /// Nobody listens any more: output is discarded.
    closed: bool,
}

impl Channel {
    pub(crate) fn open(path: &Path) -> Result<Channel, ChannelError> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map(Channel::over)
            .map_err(|error| ChannelError::Open(path.to_path_buf(), error))
    }

    fn over(device: File) -> Channel {
        Channel {
            device,
            input: Vec::new(),
            parsed: 0,
            output: Vec::new(),
            written: 0,
            closed: false,
        }
    }

    /// Reads once. `false` at the end of the stream.
    pub(crate) fn receive(&mut self) -> Result<bool, ChannelError> {
        self.input.drain(..self.parsed);
        self.parsed = 0;
        let len = self.input.len();
        self.input.resize(len + READ_BYTES, 0);
        let result = self.device.read(&mut self.input[len..]);
        self.input.truncate(len + *result.as_ref().unwrap_or(&0));
        match result {
            Ok(0) if len > 0 => Err(ChannelError::Truncated),
            Ok(n) => Ok(n > 0),
            Err(error) if is_transient(&error) => Ok(true),
            Err(error) => Err(ChannelError::Io(error)),
        }
    }

    /// The next message that has been received completely.
    pub(crate) fn next(&mut self) -> Result<Option<ToInit>, ChannelError> {
        let rest = &self.input[self.parsed..];
        let Some((prefix, rest)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let len = codec::body_len(*prefix).map_err(ChannelError::Malformed)?;
        let Some(body) = rest.get(..len) else {
            return Ok(None);
        };
        let message = codec::decode(body).map_err(ChannelError::Malformed)?;
        self.parsed += prefix.len() + len;
        Ok(Some(message))
    }

    /// Queues a message; [`Channel::flush`] sends it.
    pub(crate) fn send(&mut self, message: &FromInit) {
        if self.closed {
            return;
        }
        match codec::encode(message) {
            Ok(frame) => self.output.extend_from_slice(&frame),
            // Every message is bounded well below the longest frame.
            Err(error) => crate::kmsg::error(&crate::chain(&error)),
        }
    }

    /// Sends what the device takes now.
    pub(crate) fn flush(&mut self) -> Result<(), ChannelError> {
        while self.has_output() {
            match self.device.write(&self.output[self.written..]) {
                Ok(n) => self.written += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(ChannelError::Io(error)),
            }
        }
        // Moving the rest to the front is paid for by at least as many bytes sent.
        if self.written >= self.output.len() - self.written {
            self.output.drain(..self.written);
            self.written = 0;
        }
        Ok(())
    }

    /// Sends everything, waiting at most `limit_ms` milliseconds.
    pub(crate) fn flush_within(&mut self, limit_ms: u64) {
        let deadline = Instant::now() + Duration::from_millis(limit_ms);
        while self.flush().is_ok() && self.has_output() {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(left_ms @ 1..) = u16::try_from(left.as_millis()) else {
                return;
            };
            let mut fds = [PollFd::new(self.device.as_fd(), PollFlags::POLLOUT)];
            if poll(&mut fds, PollTimeout::from(left_ms)).is_err() {
                return;
            }
        }
    }

    /// Discards all output from now on.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.output.clear();
        self.written = 0;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(crate) fn has_output(&self) -> bool {
        self.written < self.output.len()
    }

    /// Whether sessions should hold back their output.
    pub(crate) fn is_full(&self) -> bool {
        self.output.len() - self.written >= QUEUE_BYTES
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::{fd::OwnedFd, unix::net::UnixStream};

    fn pair() -> (Channel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Channel::over(File::from(OwnedFd::from(ours))), theirs)
    }

    #[test]
    fn frames_are_put_together_from_pieces() {
        let (mut channel, mut peer) = pair();
        let frame = codec::encode(&ToInit::StdinEnd { id: 9 }).unwrap();
        for byte in &frame {
            assert!(channel.next().unwrap().is_none());
            peer.write_all(&[*byte]).unwrap();
            assert!(channel.receive().unwrap());
        }
        assert!(matches!(
            channel.next().unwrap(),
            Some(ToInit::StdinEnd { id: 9 })
        ));
        assert!(channel.next().unwrap().is_none());
        assert!(channel.receive().unwrap(), "nothing to read is not the end");
        drop(peer);
        assert!(!channel.receive().unwrap());
    }

    #[test]
    fn a_stream_that_ends_inside_a_frame_is_an_error() {
        let (mut channel, mut peer) = pair();
        peer.write_all(&[5, 0]).unwrap();
        assert!(channel.receive().unwrap());
        drop(peer);
        assert!(matches!(channel.receive(), Err(ChannelError::Truncated)));
    }

    #[test]
    fn an_oversized_length_is_refused_at_once() {
        let (mut channel, mut peer) = pair();
        peer.write_all(&[0xff; 4]).unwrap();
        assert!(channel.receive().unwrap());
        assert!(matches!(channel.next(), Err(ChannelError::Malformed(_))));
    }

    #[test]
    fn output_survives_a_peer_that_reads_late() {
        let (mut channel, peer) = pair();
        let data = vec![7; span_api::session::DATA_BYTES_MAX];
        while !channel.is_full() {
            channel.send(&FromInit::Stdout {
                id: 1,
                data: data.clone(),
            });
            channel.flush().unwrap();
        }
        channel.send(&FromInit::Credit { id: 1, bytes: 3 });
        let reader = std::thread::spawn(move || {
            let mut peer = peer;
            let mut total = 0;
            loop {
                match codec::read::<FromInit>(&mut peer).unwrap() {
                    Some(FromInit::Stdout { data, .. }) => total += data.len(),
                    Some(FromInit::Credit { bytes: 3, .. }) => return total,
                    other => panic!("{other:?}"),
                }
            }
        });
        channel.flush_within(10_000);
        assert!(!channel.has_output());
        assert!(reader.join().unwrap() >= QUEUE_BYTES);
    }
}
