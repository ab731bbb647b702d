//! Whole messages out of a peer's bytes.

use bytes::{Buf, Bytes, BytesMut};

use super::outbox::{FRAME_HEADER, KIND_LAST_PIECE, KIND_MESSAGE, KIND_PIECE};
use super::{MAX_MESSAGE, MAX_SNAPSHOT};

/// Why a peer's bytes are no frames; its connection is at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than any message.
    #[error("the peer sent a frame above the limit")]
    FrameTooLong,
    /// Its pieces add up to more than any snapshot.
    #[error("the peer sent a snapshot above the limit")]
    SnapshotTooLong,
    /// Of a kind that this release does not know.
    #[error("the peer sent a frame of an unknown kind")]
    UnknownKind,
}

/// Cuts one connection's bytes, however they arrive, into messages. Holds at most one frame and one snapshot.
#[derive(Debug, Default)]
pub struct FrameReader {
    received: BytesMut,
    pieces: Vec<u8>,
}

impl FrameReader {
    /// Takes the next bytes and appends what they complete to `messages`.
    ///
    /// # Errors
    /// When they are no frames. Nothing more can be read from the connection then.
    pub fn read(&mut self, bytes: &[u8], messages: &mut Vec<Bytes>) -> Result<(), FrameError> {
        self.received.extend_from_slice(bytes);
        while self.received.len() >= FRAME_HEADER {
            let length =
                u32::from_le_bytes([self.received[0], self.received[1], self.received[2], self.received[3]]);
            let kind = self.received[4];
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if length > MAX_MESSAGE {
                return Err(FrameError::FrameTooLong);
            }
            if self.received.len() < FRAME_HEADER + length {
                break;
            }
            self.received.advance(FRAME_HEADER);
            let frame = self.received.split_to(length).freeze();
            match kind {
                KIND_MESSAGE => messages.push(frame),
                KIND_PIECE | KIND_LAST_PIECE => {
                    if self.pieces.len() + frame.len() > MAX_SNAPSHOT {
                        return Err(FrameError::SnapshotTooLong);
                    }
                    self.pieces.extend_from_slice(&frame);
                    if kind == KIND_LAST_PIECE {
                        messages.push(std::mem::take(&mut self.pieces).into());
                    }
                }
                _ => return Err(FrameError::UnknownKind),
            }
        }
        Ok(())
    }
}
