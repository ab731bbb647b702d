//! Authenticated and encrypted heartbeat datagrams.
//!
//! Every datagram has [`DATAGRAM_LEN`] bytes, so its length tells nothing and cutting it is noticed at once:
//!
//! | bytes | what |
//! | --- | --- |
//! | 0–1 | magic `DF 1B` |
//! | 2 | version of this layout, [`VERSION`] |
//! | 3 | kind: 1 a heartbeat to a replica, 2 an acknowledgement to an agent |
//! | 4–11 | session, little-endian: an index into the receiver's table |
//! | 12–19 | counter, little-endian: 1, 2, 3 …; never twice under one key |
//! | 20–127 | ciphertext of: one byte with the payload's length, the payload (protobuf), zeros |
//! | 128–143 | AES-128-GCM tag; bytes 0–19 are authenticated along |
//!
//! The keys, one per direction, come by HKDF-SHA-256 from a 32-byte secret that a replica drew and told the
//! agent over mutually authenticated TLS. The nonce is the kind and the counter. So a datagram can be neither
//! forged, nor reflected, nor carried over to another session; what is repeated falls to the
//! [window](ReplayWindow), which lets paths of different speed overtake each other.
//!
//! Receiving allocates nothing. Rekeying is a new session: agents open one with every connection.

mod keys;
mod replay;
mod session;

pub use keys::SessionSecret;
pub use replay::ReplayWindow;
pub use session::{Opened, OpeningSession, Payload, SealingSession};

/// Length of every datagram.
pub const DATAGRAM_LEN: usize = HEADER_LEN + 1 + PAYLOAD_MAX + TAG_LEN;
/// The longest payload that a datagram can carry.
pub const PAYLOAD_MAX: usize = 107;
/// Version of the layout.
pub const VERSION: u8 = 1;

const HEADER_LEN: usize = 20;
const TAG_LEN: usize = 16;
const MAGIC: [u8; 2] = [0xDF, 0x1B];

/// Where datagrams go, which also tells what they carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Heartbeats, from agents.
    ToReplica,
    /// Acknowledgements, from replicas.
    ToAgent,
}

impl Direction {
    const fn kind(self) -> u8 {
        match self {
            Self::ToReplica => 1,
            Self::ToAgent => 2,
        }
    }
}

/// Why a datagram is dropped, or can't be made. Small and countable: see [`DatagramError::label`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DatagramError {
    /// Shorter than [`DATAGRAM_LEN`]: cut on its way, or not ours.
    #[error("datagram of {0} bytes is shorter than {DATAGRAM_LEN}: cut, or not from Defib")]
    TooShort(usize),
    /// Longer than [`DATAGRAM_LEN`].
    #[error("datagram of {0} bytes is longer than {DATAGRAM_LEN}: not from Defib")]
    TooLong(usize),
    /// It does not begin like one of ours.
    #[error("not a Defib datagram: wrong magic")]
    BadMagic,
    /// Another layout.
    #[error("datagram layout {0} is not {VERSION}: the sender runs another release; upgrade one of the two")]
    Version(u8),
    /// The receiver has no such session: the caller finds that out, by its table.
    #[error("no session {0}: the sender has to connect anew")]
    UnknownSession(u64),
    /// Seen before, or older than the window.
    #[error("replayed: counter {0} was seen before or is older than the window")]
    Replayed(u64),
    /// The tag does not fit: altered, or made without the key, or reflected, or of another session.
    #[error("forged: authentication failed")]
    Forged,
    /// Authentic, but its content can't be read: the sender has a bug.
    #[error("garbled: authentic, but unreadable")]
    Garbled,
    /// The sender used up its counters.
    #[error("the session has used up its counters; open a new one")]
    Exhausted,
}

impl DatagramError {
    /// All labels, in the order of [`DatagramError::index`].
    pub const LABELS: [&'static str; 9] = [
        "too-short",
        "too-long",
        "bad-magic",
        "version",
        "unknown-session",
        "replayed",
        "forged",
        "garbled",
        "exhausted",
    ];

    /// A small number per kind, for arrays of counters.
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::TooShort(_) => 0,
            Self::TooLong(_) => 1,
            Self::BadMagic => 2,
            Self::Version(_) => 3,
            Self::UnknownSession(_) => 4,
            Self::Replayed(_) => 5,
            Self::Forged => 6,
            Self::Garbled => 7,
            Self::Exhausted => 8,
        }
    }

    /// The kind as a metric's label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        Self::LABELS[self.index()]
    }
}

/// The session that a datagram claims, for the look-up in the receiver's table. Nothing is authenticated yet.
///
/// # Errors
/// When it can't be one of our datagrams.
pub fn peek_session(datagram: &[u8]) -> Result<u64, DatagramError> {
    Header::read(datagram).map(|header| header.session)
}

/// The part of a datagram that is readable without a key.
#[derive(Debug, Clone, Copy)]
struct Header {
    kind: u8,
    session: u64,
    counter: u64,
}

impl Header {
    fn read(datagram: &[u8]) -> Result<Self, DatagramError> {
        let length = datagram.len();
        let Some(([magic_0, magic_1, version, kind], rest)) = datagram.split_first_chunk::<4>() else {
            return Err(DatagramError::TooShort(length));
        };
        if [*magic_0, *magic_1] != MAGIC {
            return Err(DatagramError::BadMagic);
        }
        // Before the length: another layout may well have another one.
        if *version != VERSION {
            return Err(DatagramError::Version(*version));
        }
        if length > DATAGRAM_LEN {
            return Err(DatagramError::TooLong(length));
        }
        if length < DATAGRAM_LEN {
            return Err(DatagramError::TooShort(length));
        }
        let number = |bytes: Option<(&[u8; 8], &[u8])>| bytes.map(|(first, _)| u64::from_le_bytes(*first));
        match (number(rest.split_first_chunk()), number(rest.get(8..).and_then(<[u8]>::split_first_chunk))) {
            (Some(session), Some(counter)) => Ok(Self { kind: *kind, session, counter }),
            _ => Err(DatagramError::TooShort(length)),
        }
    }

    fn write(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..2].copy_from_slice(&MAGIC);
        bytes[2] = VERSION;
        bytes[3] = self.kind;
        bytes[4..12].copy_from_slice(&self.session.to_le_bytes());
        bytes[12..].copy_from_slice(&self.counter.to_le_bytes());
        bytes
    }
}
