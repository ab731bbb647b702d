//! Sealing and opening.

use core::fmt;

use prost::Message;
use ring::aead::{Aad, LessSafeKey, Tag};

use super::{
    DATAGRAM_LEN, DatagramError, Direction, HEADER_LEN, Header, PAYLOAD_MAX, ReplayWindow, SessionSecret,
    TAG_LEN, keys::nonce,
};
use crate::v1::{Heartbeat, HeartbeatAck};

mod closed {
    pub trait Closed {}
    impl Closed for crate::v1::Heartbeat {}
    impl Closed for crate::v1::HeartbeatAck {}
}

/// What a datagram may carry. Only for messages whose largest encoding fits; a test holds them to it.
pub trait Payload: Message + Default + closed::Closed {
    /// The way that it goes.
    const DIRECTION: Direction;
}

impl Payload for Heartbeat {
    const DIRECTION: Direction = Direction::ToReplica;
}

impl Payload for HeartbeatAck {
    const DIRECTION: Direction = Direction::ToAgent;
}

/// The sender's side of a session in one direction. One per session, whatever the number of paths:
/// two of them with the same secret would use counters twice, which breaks the cipher.
pub struct SealingSession {
    key: LessSafeKey,
    session: u64,
    direction: Direction,
    last_counter: u64,
}

impl fmt::Debug for SealingSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealingSession")
            .field("session", &self.session)
            .field("direction", &self.direction)
            .field("last_counter", &self.last_counter)
            .finish_non_exhaustive()
    }
}

impl SealingSession {
    /// The first datagram will carry counter 1, so a secret must serve one such session only.
    #[must_use]
    pub fn new(secret: &SessionSecret, session: u64, direction: Direction) -> Self {
        Self { key: secret.key(session, direction), session, direction, last_counter: 0 }
    }

    /// The session's number, as the receiver knows it.
    #[must_use]
    pub const fn session(&self) -> u64 {
        self.session
    }

    /// Writes the datagram that carries `payload` into `buffer` and returns all of it.
    ///
    /// # Errors
    /// [`DatagramError::Garbled`] if the payload belongs to the other direction, and
    /// [`DatagramError::Exhausted`] after 2⁶⁴ − 1 datagrams.
    pub fn seal<'a, P: Payload>(
        &mut self,
        payload: &P,
        buffer: &'a mut [u8; DATAGRAM_LEN],
    ) -> Result<&'a [u8], DatagramError> {
        let length = payload.encoded_len();
        if P::DIRECTION != self.direction || length > PAYLOAD_MAX {
            return Err(DatagramError::Garbled);
        }
        self.last_counter = self.last_counter.checked_add(1).ok_or(DatagramError::Exhausted)?;
        let counter = self.last_counter;
        let header = Header { kind: self.direction.kind(), session: self.session, counter }.write();

        let (head, rest) = buffer.split_at_mut(HEADER_LEN);
        let (plain, tag_place) = rest.split_at_mut(1 + PAYLOAD_MAX);
        head.copy_from_slice(&header);
        plain.fill(0);
        // At most PAYLOAD_MAX, as checked above.
        plain[0] = length as u8;
        let mut place = &mut plain[1..];
        payload.encode(&mut place).map_err(|_| DatagramError::Garbled)?;
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(self.direction, counter), Aad::from(header), plain)
            .map_err(|_| DatagramError::Garbled)?;
        tag_place.copy_from_slice(tag.as_ref());
        Ok(buffer)
    }
}

/// The receiver's side of a session in one direction, with its replay window.
pub struct OpeningSession {
    key: LessSafeKey,
    session: u64,
    direction: Direction,
    window: ReplayWindow,
}

impl fmt::Debug for OpeningSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpeningSession")
            .field("session", &self.session)
            .field("direction", &self.direction)
            .field("newest", &self.window.newest())
            .finish_non_exhaustive()
    }
}

/// An authentic datagram, not seen before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened<'a> {
    /// Its counter.
    pub counter: u64,
    /// What it carries.
    pub payload: &'a [u8],
    /// The way that it came.
    pub direction: Direction,
}

impl Opened<'_> {
    fn decode<P: Payload>(&self) -> Result<P, DatagramError> {
        if self.direction != P::DIRECTION {
            return Err(DatagramError::Garbled);
        }
        P::decode(self.payload).map_err(|_| DatagramError::Garbled)
    }

    /// The heartbeat that it carries. Allocates nothing.
    ///
    /// # Errors
    /// [`DatagramError::Garbled`] when it carries none.
    pub fn heartbeat(&self) -> Result<Heartbeat, DatagramError> {
        self.decode()
    }

    /// The acknowledgement that it carries. Allocates nothing.
    ///
    /// # Errors
    /// [`DatagramError::Garbled`] when it carries none.
    pub fn ack(&self) -> Result<HeartbeatAck, DatagramError> {
        self.decode()
    }
}

impl OpeningSession {
    /// A receiver that has seen nothing yet.
    #[must_use]
    pub fn new(secret: &SessionSecret, session: u64, direction: Direction) -> Self {
        Self { key: secret.key(session, direction), session, direction, window: ReplayWindow::new() }
    }

    /// The session's number.
    #[must_use]
    pub const fn session(&self) -> u64 {
        self.session
    }

    /// Decrypts `datagram` in place. What is refused leaves the session as it was, so a forger can't move
    /// the window; the content of a refused datagram is undefined.
    ///
    /// # Errors
    /// Why it has to be dropped.
    pub fn open<'a>(&mut self, datagram: &'a mut [u8]) -> Result<Opened<'a>, DatagramError> {
        let header = Header::read(datagram)?;
        if header.session != self.session {
            return Err(DatagramError::UnknownSession(header.session));
        }
        if header.kind != self.direction.kind() {
            return Err(DatagramError::Forged);
        }
        // Before the cipher, so that a flood of replays is cheap to drop.
        if !self.window.is_fresh(header.counter) {
            return Err(DatagramError::Replayed(header.counter));
        }
        let (head, rest) = datagram.split_at_mut(HEADER_LEN);
        let (sealed, tag) = rest.split_at_mut(1 + PAYLOAD_MAX);
        let mut tag_bytes = [0; TAG_LEN];
        tag_bytes.copy_from_slice(tag);
        let plain = self
            .key
            .open_in_place_separate_tag(
                nonce(self.direction, header.counter),
                Aad::from(&*head),
                Tag::from(tag_bytes),
                sealed,
                0..,
            )
            .map_err(|_| DatagramError::Forged)?;
        self.window.accept(header.counter);
        let (length, rest) = plain.split_first().ok_or(DatagramError::Garbled)?;
        let payload = rest.get(..usize::from(*length)).ok_or(DatagramError::Garbled)?;
        Ok(Opened { counter: header.counter, payload, direction: self.direction })
    }
}
