//! Datagrams of heartbeats, and entries of the log.

use std::collections::BTreeSet;

use defib_engine::ledger::Ledger;
use defib_model::{ClusterTime, Command, Entry, LogIndex, ReplicaId, UnixMillis};
use defib_wire::{
    datagram::{
        DATAGRAM_LEN, DatagramError, Direction, OpeningSession, SealingSession, SessionSecret, peek_session,
    },
    log::{decode_entry, encode_entry},
    v1::{Heartbeat, HeartbeatAck},
};
use prost::Message as _;

use crate::{
    draw,
    ledger::{apply_checked, seen_hosts},
    seeds::tagged,
};

const SESSION: u64 = 9;

fn secret() -> SessionSecret {
    SessionSecret::from_bytes(&[7; 32]).expect("32 bytes")
}

/// First byte 0: a datagram from the network; 1: what stands in an authentic heartbeat; 2: in an acknowledgement.
pub(crate) fn datagram(data: &[u8]) {
    let Some((mode, bytes)) = data.split_first() else { return };
    match mode % 3 {
        0 => received(bytes),
        1 => {
            if let Ok(beat) = Heartbeat::decode(bytes) {
                carried(
                    Direction::ToReplica,
                    |session, buffer| session.seal(&beat, buffer).map(<[u8]>::to_vec),
                    |opened| {
                        assert_eq!(opened.heartbeat().expect("what was sealed"), beat);
                    },
                );
            }
        }
        _ => {
            if let Ok(ack) = HeartbeatAck::decode(bytes) {
                carried(
                    Direction::ToAgent,
                    |session, buffer| session.seal(&ack, buffer).map(<[u8]>::to_vec),
                    |opened| {
                        assert_eq!(opened.ack().expect("what was sealed"), ack);
                    },
                );
            }
        }
    }
}

fn received(bytes: &[u8]) {
    let peeked = peek_session(bytes);
    for direction in [Direction::ToReplica, Direction::ToAgent] {
        let mut session = OpeningSession::new(&secret(), SESSION, direction);
        let mut first = bytes.to_vec();
        match session.open(&mut first) {
            Ok(opened) => {
                assert_eq!(peeked, Ok(SESSION));
                assert_eq!(opened.direction, direction);
                let counter = opened.counter;
                let _ = (opened.heartbeat(), opened.ack());
                assert_eq!(session.open(&mut bytes.to_vec()), Err(DatagramError::Replayed(counter)));
            }
            Err(error) => {
                assert!(DatagramError::LABELS.contains(&error.label()) && !error.to_string().is_empty());
                assert_eq!(
                    session.open(&mut bytes.to_vec()),
                    Err(error),
                    "a refused datagram changed the session"
                );
            }
        }
    }
}

/// Whatever a peer may say fits, and arrives as it was said.
fn carried(
    direction: Direction,
    seal: impl FnOnce(&mut SealingSession, &mut [u8; DATAGRAM_LEN]) -> Result<Vec<u8>, DatagramError>,
    check: impl FnOnce(&defib_wire::datagram::Opened<'_>),
) {
    let mut buffer = [0; DATAGRAM_LEN];
    let mut sealing = SealingSession::new(&secret(), SESSION, direction);
    let mut sealed = seal(&mut sealing, &mut buffer).expect("every message fits");
    let mut opening = OpeningSession::new(&secret(), SESSION, direction);
    check(&opening.open(&mut sealed).expect("authentic"));
}

pub(crate) fn datagram_seeds() -> Vec<Vec<u8>> {
    let beat = Heartbeat {
        boot_hi: 1,
        boot_lo: 2,
        sequence: 3,
        sent_at_ns: 4,
        epoch: 5,
        path: 1,
        ..Heartbeat::default()
    };
    let ack = HeartbeatAck { sequence: 3, epoch: 5, granted: 1, lease_ms: 5000, replica: 2, stamp: 8 };
    let mut buffer = [0; DATAGRAM_LEN];
    let mut to_replica = SealingSession::new(&secret(), SESSION, Direction::ToReplica);
    let mut to_agent = SealingSession::new(&secret(), SESSION, Direction::ToAgent);
    let mut other = SealingSession::new(&secret(), SESSION + 1, Direction::ToReplica);
    let mut seeds = vec![tagged(1, beat.encode_to_vec()), tagged(2, ack.encode_to_vec()), tagged(0, [])];
    for _ in 0..2 {
        seeds.push(tagged(0, to_replica.seal(&beat, &mut buffer).expect("it fits")));
        seeds.push(tagged(0, to_agent.seal(&ack, &mut buffer).expect("it fits")));
    }
    seeds.push(tagged(0, other.seal(&beat, &mut buffer).expect("it fits")));
    seeds.push(tagged(0, &other.seal(&beat, &mut buffer).expect("it fits")[..40]));
    seeds
}

/// An entry that decodes reads back as it was, and any ledger takes it.
pub(crate) fn log_entry(data: &[u8]) {
    let (entry, end) = match decode_entry(data) {
        Ok(decoded) => decoded,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            // The envelope is the easy part: what is in it must get its turn too.
            match serde_json::from_slice::<Command>(data) {
                Ok(command) => (entry_of(command), fresh().events().end()),
                Err(_) => return,
            }
        }
    };
    let written = encode_entry(&entry, end.clone()).expect("every entry has a form");
    let _whatever_end_is_told = seen_hosts().events().continues(&end);
    assert_eq!(decode_entry(&written).expect("what was written"), (entry.clone(), end));
    apply_checked(&mut fresh(), LogIndex(1), &entry);
    let mut lived_in = seen_hosts();
    let next = lived_in.applied().next();
    apply_checked(&mut lived_in, next, &entry);
}

fn fresh() -> Ledger {
    Ledger::new(BTreeSet::from([ReplicaId(1), ReplicaId(2), ReplicaId(3)]))
}

fn entry_of(command: Command) -> Entry {
    Entry { at: ClusterTime(1_000_000), wall: UnixMillis(8), proposer: ReplicaId(1), command }
}

pub(crate) fn log_entry_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for command in draw::one_of_each() {
        seeds.push(serde_json::to_vec(&command).expect("JSON"));
        seeds.push(encode_entry(&entry_of(command), fresh().events().end()).expect("a form").to_vec());
    }
    seeds
}
