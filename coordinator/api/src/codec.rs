//! Framing and encoding: the one place that names bincode.
//!
//! bincode 3 is published only as a compile error and 2.0.1 is the last release, so the version is
//! pinned and everything that knows about it is here.

use serde::{Serialize, de::DeserializeOwned};
use std::io::{self, Read, Write};

/// Longest frame body that is accepted or sent.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// Why a frame was refused.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("frame of {0} bytes is longer than the {FRAME_BYTES_MAX} allowed")]
    TooLong(usize),
    #[error("frame does not decode")]
    Decode(#[source] bincode::error::DecodeError),
    #[error("frame has {0} bytes after its message")]
    Trailing(usize),
    #[error("message does not encode")]
    Encode(#[source] bincode::error::EncodeError),
    #[error("frame could not be transferred")]
    Io(#[source] io::Error),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<FRAME_BYTES_MAX>()
}

/// Encodes `message` as one frame: length prefix and body.
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, CodecError> {
    let mut frame = vec![0; 4];
    bincode::serde::encode_into_std_write(message, &mut frame, config())
        .map_err(CodecError::Encode)?;
    let body_len = frame.len() - 4;
    if body_len > FRAME_BYTES_MAX {
        return Err(CodecError::TooLong(body_len));
    }
    frame[..4].copy_from_slice(&(body_len as u32).to_le_bytes());
    Ok(frame)
}

/// Decodes a frame's body (without its length prefix).
pub fn decode<M: DeserializeOwned>(body: &[u8]) -> Result<M, CodecError> {
    let (message, used) =
        bincode::serde::decode_from_slice(body, config()).map_err(CodecError::Decode)?;
    if used != body.len() {
        return Err(CodecError::Trailing(body.len() - used));
    }
    Ok(message)
}

/// The body length a frame's prefix announces, checked against [`FRAME_BYTES_MAX`].
pub fn body_len(prefix: [u8; 4]) -> Result<usize, CodecError> {
    match u32::from_le_bytes(prefix) as usize {
        len if len > FRAME_BYTES_MAX => Err(CodecError::TooLong(len)),
        len => Ok(len),
    }
}

/// Writes one frame to a blocking stream.
pub fn write<M: Serialize>(stream: &mut impl Write, message: &M) -> Result<(), CodecError> {
    stream.write_all(&encode(message)?).map_err(CodecError::Io)
}

/// Reads one frame from a blocking stream; `None` at its orderly end between two frames.
pub fn read<M: DeserializeOwned>(stream: &mut impl Read) -> Result<Option<M>, CodecError> {
    let mut prefix = [0; 4];
    match stream.read(&mut prefix[..1]).map_err(CodecError::Io)? {
        0 => return Ok(None),
        _ => stream
            .read_exact(&mut prefix[1..])
            .map_err(CodecError::Io)?,
    }
    let mut body = vec![0; body_len(prefix)?];
    stream.read_exact(&mut body).map_err(CodecError::Io)?;
    decode(&body).map(Some)
}

/// [`write()`] for an asynchronous stream.
#[cfg(feature = "async")]
pub async fn write_async<M: Serialize>(
    stream: &mut (impl tokio::io::AsyncWrite + Unpin),
    message: &M,
) -> Result<(), CodecError> {
    use tokio::io::AsyncWriteExt;
    stream
        .write_all(&encode(message)?)
        .await
        .map_err(CodecError::Io)
}

/// [`read()`] for an asynchronous stream. Not to be cancelled: a frame read in part is lost.
#[cfg(feature = "async")]
pub async fn read_async<M: DeserializeOwned>(
    stream: &mut (impl tokio::io::AsyncRead + Unpin),
) -> Result<Option<M>, CodecError> {
    use tokio::io::AsyncReadExt;
    let mut prefix = [0; 4];
    match stream
        .read(&mut prefix[..1])
        .await
        .map_err(CodecError::Io)?
    {
        0 => return Ok(None),
        _ => stream
            .read_exact(&mut prefix[1..])
            .await
            .map_err(CodecError::Io)?,
    };
    let mut body = vec![0; body_len(prefix)?];
    stream.read_exact(&mut body).await.map_err(CodecError::Io)?;
    decode(&body).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_survives_the_round_trip() {
        let frame = encode(&("name", 7u32, vec![1u8, 2, 3])).unwrap();
        let message: (String, u32, Vec<u8>) = read(&mut frame.as_slice()).unwrap().unwrap();
        assert_eq!(message, ("name".to_string(), 7, vec![1, 2, 3]));
    }

    #[test]
    fn an_oversized_frame_is_refused_before_it_is_read() {
        let prefix = (FRAME_BYTES_MAX as u32 + 1).to_le_bytes();
        assert!(matches!(
            read::<u8>(&mut prefix.as_slice()),
            Err(CodecError::TooLong(_))
        ));
    }

    #[test]
    fn a_truncated_frame_is_an_error_and_a_clean_end_is_not() {
        let frame = encode(&"text").unwrap();
        assert!(matches!(
            read::<String>(&mut &frame[..frame.len() - 1]),
            Err(CodecError::Io(_))
        ));
        assert!(matches!(read::<String>(&mut [].as_slice()), Ok(None)));
    }

    #[test]
    fn bytes_after_the_message_are_refused() {
        assert!(matches!(
            decode::<u8>(&[1, 2]),
            Err(CodecError::Trailing(1))
        ));
    }
}
