//! Frames on a TLS stream, with a deadline for every step of progress.

use crate::proto::control::{self, Control, FrameError};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// Bytes moved per deadline: a slow link makes progress on a large frame, a dead one does not.
const STEP: usize = 64 << 10;

/// Reading or writing a frame failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// The network or TLS.
    #[error("{0}")]
    Io(io::Error),
    /// No progress within the limit.
    #[error("no progress within {} ms", .0.as_millis())]
    Silent(Duration),
    /// The other side closed between frames.
    #[error("closed by the other side")]
    Closed,
    /// Bytes that are no frame.
    #[error("{0}")]
    Frame(FrameError),
}

/// Reads one frame; `limit` bounds its length, `patience` every step.
///
/// Not cancel safe: a cancelled read leaves the stream inside a frame.
pub(super) async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
    limit: usize,
    patience: Duration,
) -> Result<(Control, Vec<u8>), WireError> {
    let mut prefix = [0; 4];
    let mut have = 0;
    while have < prefix.len() {
        let n = step(patience, stream.read(&mut prefix[have..])).await?;
        if n == 0 {
            return Err(if have == 0 { WireError::Closed } else { WireError::Frame(FrameError::Short) });
        }
        have += n;
    }
    let length = control::length(prefix, limit).map_err(WireError::Frame)?;
    // Grows with what really arrives: a length alone reserves nothing.
    let mut frame = Vec::with_capacity(length.min(STEP));
    while frame.len() < length {
        let mut part = stream.take((length - frame.len()).min(STEP) as u64);
        if step(patience, part.read_buf(&mut frame)).await? == 0 {
            return Err(WireError::Frame(FrameError::Short));
        }
    }
    let (header, bulk) = control::decode(&frame).map_err(WireError::Frame)?;
    let start = frame.len() - bulk.len();
    frame.drain(..start);
    Ok((header, frame))
}

/// Writes the bytes of a frame and flushes.
pub(super) async fn write_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    frame: &[u8],
    patience: Duration,
) -> Result<(), WireError> {
    for part in frame.chunks(STEP) {
        step(patience, stream.write_all(part)).await?;
    }
    step(patience, stream.flush()).await
}

/// Encodes and writes.
pub(super) async fn say(
    stream: &mut (impl AsyncWrite + Unpin),
    header: &Control,
    bulk: &[u8],
    patience: Duration,
) -> Result<(), WireError> {
    let frame = control::encode(header, bulk).map_err(WireError::Frame)?;
    write_frame(stream, &frame, patience).await
}

async fn step<T>(patience: Duration, work: impl Future<Output = io::Result<T>>) -> Result<T, WireError> {
    match timeout(patience, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Err(WireError::Closed),
        Ok(Err(error)) => Err(WireError::Io(error)),
        Err(_) => Err(WireError::Silent(patience)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_pass_and_oversized_cut_or_silent_ones_fail() {
        let patience = Duration::from_millis(50);
        let (mut near, mut far) = tokio::io::duplex(1 << 20);
        let bulk = vec![7; 300_000];
        say(&mut near, &Control::Message, &bulk, patience).await.unwrap();
        assert_eq!(
            read_frame(&mut far, control::FRAME_MAX, patience).await.unwrap(),
            (Control::Message, bulk.clone())
        );
        say(&mut near, &Control::Message, &bulk, patience).await.unwrap();
        let refused = read_frame(&mut far, 1000, patience).await;
        assert!(matches!(refused, Err(WireError::Frame(FrameError::TooLong { .. }))));

        let (mut near, mut far) = tokio::io::duplex(1 << 20);
        assert!(matches!(read_frame(&mut far, 1000, patience).await, Err(WireError::Silent(_))));
        near.write_all(&[100, 0, 0, 0, 1]).await.unwrap();
        drop(near);
        assert!(matches!(
            read_frame(&mut far, 1000, patience).await,
            Err(WireError::Frame(FrameError::Short))
        ));
        assert!(matches!(read_frame(&mut far, 1000, patience).await, Err(WireError::Closed)));
    }
}
