//! What waits to be sent to one peer. Bounded: the oldest ordinary messages go first when it is full, as if
//! the network had lost them.

use std::collections::VecDeque;

use bytes::Bytes;

/// Bytes of ordinary messages that may wait.
const MAX_WAITING: usize = 32 << 20;
/// A snapshot goes in pieces of this size, with ordinary messages between them.
const CHUNK: usize = 64 << 10;

/// Frames: length u32 (of what follows the kind), kind u8, bytes.
pub(crate) const FRAME_HEADER: usize = 5;
/// A whole message.
pub(crate) const KIND_MESSAGE: u8 = 0;
/// A piece of a large message.
pub(crate) const KIND_PIECE: u8 = 1;
/// The last piece.
pub(crate) const KIND_LAST_PIECE: u8 = 2;

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    ordinary: VecDeque<Bytes>,
    waiting: usize,
    snapshot: Option<(Bytes, usize)>,
    /// The last piece was handed to TLS, but may not have left yet.
    snapshot_leaving: bool,
}

impl Outbox {
    /// Queues a message. False if something had to be dropped for it.
    pub(crate) fn push(&mut self, message: Bytes) -> bool {
        self.waiting += message.len();
        self.ordinary.push_back(message);
        let mut whole = true;
        while self.waiting > MAX_WAITING {
            let Some(oldest) = self.ordinary.pop_front() else { break };
            self.waiting -= oldest.len();
            whole = false;
        }
        whole
    }

    /// Queues a snapshot. False if one is already on its way, or it is too large.
    pub(crate) fn push_snapshot(&mut self, message: Bytes) -> bool {
        let free = self.snapshot.is_none() && !self.snapshot_leaving && message.len() <= super::MAX_SNAPSHOT;
        if free {
            self.snapshot = Some((message, 0));
        }
        free
    }

    /// Forgets everything. True if a snapshot was among it.
    pub(crate) fn clear(&mut self) -> bool {
        let had_snapshot = self.snapshot.is_some() || self.snapshot_leaving;
        *self = Self::default();
        had_snapshot
    }

    /// Appends the next frames to `buffer`; ordinary messages first. False if there is nothing.
    pub(crate) fn next_frames(&mut self, buffer: &mut Vec<u8>) -> bool {
        buffer.clear();
        while let Some(message) = self.ordinary.pop_front() {
            self.waiting -= message.len();
            frame(buffer, KIND_MESSAGE, &message);
            if buffer.len() >= CHUNK {
                return true;
            }
        }
        if let Some((snapshot, sent)) = &mut self.snapshot {
            let end = (*sent + CHUNK).min(snapshot.len());
            let last = end == snapshot.len();
            frame(buffer, if last { KIND_LAST_PIECE } else { KIND_PIECE }, &snapshot[*sent..end]);
            *sent = end;
            if last {
                self.snapshot = None;
                self.snapshot_leaving = true;
            }
        }
        !buffer.is_empty()
    }

    /// All that was handed out has left. True if that completes a snapshot.
    pub(crate) fn left(&mut self) -> bool {
        std::mem::take(&mut self.snapshot_leaving)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ordinary.is_empty() && self.snapshot.is_none()
    }
}

fn frame(buffer: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("messages are capped far below 4 GiB");
    buffer.extend_from_slice(&length.to_le_bytes());
    buffer.push(kind);
    buffer.extend_from_slice(bytes);
}
