//! What stands in the replicated log: a protobuf envelope around canonical JSON.

use bytes::Bytes;
use defib_model::{ClusterTime, Entry, EventSeq, ReplicaId, UnixMillis, chain::Head};
use prost::Message as _;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    WireError,
    v1::{LogEntry, Snapshot},
};

/// The newest layout that this release writes and reads.
pub const VERSION: u32 = 1;

fn json<T: Serialize>(field: &'static str, value: &T) -> Result<Vec<u8>, WireError> {
    serde_json::to_vec(value).map_err(|error| WireError::new(field, error.to_string()))
}

fn from_json<T: DeserializeOwned>(field: &'static str, bytes: &[u8]) -> Result<T, WireError> {
    serde_json::from_slice(bytes).map_err(|error| WireError::new(field, error.to_string()))
}

fn check_version(version: u32) -> Result<(), WireError> {
    if version == VERSION {
        return Ok(());
    }
    Err(WireError::new("version", format!("layout {version} is not {VERSION}, which this release reads")))
}

/// Writes an entry, and where the proposer's event stream ends.
///
/// # Errors
/// When a part of the command has no JSON form, which no command of ours has.
pub fn encode_entry(entry: &Entry, end: Head) -> Result<Bytes, WireError> {
    let message = LogEntry {
        version: VERSION,
        at_ms: entry.at.0,
        wall_ms: entry.wall.0,
        proposer: entry.proposer.0,
        command_json: json("command_json", &entry.command)?,
        head_seq: end.seq.0,
        head_hash: end.hash,
    };
    Ok(message.encode_to_vec().into())
}

/// Reads an entry, and where the event stream ended that its proposer had.
///
/// # Errors
/// When it is of another layout, garbled, or holds a command that this release does not know.
pub fn decode_entry(bytes: &[u8]) -> Result<(Entry, Head), WireError> {
    let message = LogEntry::decode(bytes).map_err(|error| WireError::new("entry", error.to_string()))?;
    check_version(message.version)?;
    let entry = Entry {
        at: ClusterTime(message.at_ms),
        wall: UnixMillis(message.wall_ms),
        proposer: ReplicaId(message.proposer),
        command: from_json("command_json", &message.command_json)?,
    };
    Ok((entry, Head { seq: EventSeq(message.head_seq), hash: message.head_hash }))
}

fn digest(bytes: &[u8]) -> Vec<u8> {
    ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().to_vec()
}

/// Writes a ledger as a snapshot.
///
/// # Errors
/// When a part of it has no JSON form.
pub fn encode_snapshot<L: Serialize>(ledger: &L) -> Result<Bytes, WireError> {
    let ledger_json = json("ledger_json", ledger)?;
    let message =
        Snapshot { version: VERSION, applied_index: 0, ledger_sha256: digest(&ledger_json), ledger_json };
    Ok(message.encode_to_vec().into())
}

/// Reads a ledger from a snapshot.
///
/// # Errors
/// When it is of another layout, or damaged.
pub fn decode_snapshot<L: DeserializeOwned>(bytes: &[u8]) -> Result<L, WireError> {
    let message = Snapshot::decode(bytes).map_err(|error| WireError::new("snapshot", error.to_string()))?;
    check_version(message.version)?;
    if digest(&message.ledger_json) != message.ledger_sha256 {
        return Err(WireError::new("ledger_sha256", "does not fit: the snapshot is damaged"));
    }
    from_json("ledger_json", &message.ledger_json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use defib_model::{ClusterVersion, Command};

    fn entry() -> Entry {
        Entry {
            at: ClusterTime(7),
            wall: UnixMillis(8),
            proposer: ReplicaId(2),
            command: Command::ObserverStarted {
                observer: ReplicaId(2),
                session: u64::MAX,
                supports: ClusterVersion::NEWEST,
            },
        }
    }

    #[test]
    fn an_entry_reads_back_as_it_was_written() {
        let end = Head { seq: EventSeq(3), hash: "abc".into() };
        assert_eq!(decode_entry(&encode_entry(&entry(), end.clone()).unwrap()).unwrap(), (entry(), end));
    }

    #[test]
    fn a_damaged_entry_or_snapshot_is_refused_and_never_panics() {
        let good = encode_entry(&entry(), Head { seq: EventSeq(3), hash: "abc".into() }).unwrap();
        for cut in 0..good.len() {
            let _ = decode_entry(&good[..cut]);
        }
        let snapshot = encode_snapshot(&vec![1, 2, 3]).unwrap();
        assert_eq!(decode_snapshot::<Vec<u32>>(&snapshot).unwrap(), [1, 2, 3]);
        for at in 0..snapshot.len() {
            let mut damaged = snapshot.to_vec();
            damaged[at] ^= 0x10;
            assert!(decode_snapshot::<Vec<u32>>(&damaged).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_later_layout_and_an_unknown_command_are_refused_with_a_reason() {
        let later = LogEntry { version: 2, ..LogEntry::default() };
        assert!(decode_entry(&later.encode_to_vec()).unwrap_err().to_string().contains("layout 2 is not 1"));
        let unknown = LogEntry {
            version: 1,
            command_json: br#"{"fly-to-the-moon":{}}"#.to_vec(),
            ..LogEntry::default()
        };
        assert!(decode_entry(&unknown.encode_to_vec()).unwrap_err().to_string().contains("fly-to-the-moon"));
    }
}
