//! What other replicas send: frames, and the messages of Raft within.

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use defib_consensus::{
    disk::MemoryDisk,
    replica::{Output, ProposalId, Replica, ReplicaConfig, Role},
    transport::FrameReader,
};
use prost::Message as _;

use crate::seeds::tagged;

/// The same bytes are the same messages, however the network cuts them.
pub(crate) fn frames(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else { return };
    let mut whole = Vec::new();
    let at_once = FrameReader::default().read(bytes, &mut whole);
    let (mut pieces, mut reader) = (Vec::new(), FrameReader::default());
    let mut in_pieces = Ok(());
    for piece in bytes.chunks(usize::from(*cut).max(1)) {
        in_pieces = reader.read(piece, &mut pieces);
        if in_pieces.is_err() {
            break;
        }
    }
    assert_eq!((at_once, whole), (in_pieces, pieces));
}

pub(crate) fn frames_seeds() -> Vec<Vec<u8>> {
    let frame = |kind: u8, body: &[u8]| {
        let length = u32::try_from(body.len()).expect("short");
        [length.to_le_bytes().as_slice(), &[kind], body].concat()
    };
    let (message, piece, last) = (frame(0, b"message"), frame(1, b"first "), frame(2, b"last"));
    vec![
        tagged(255, &message),
        tagged(1, [message.clone(), message.clone()].concat()),
        tagged(7, [piece.clone(), message.clone(), piece, last, frame(0, &[])].concat()),
        tagged(3, &message[..8]),
        tagged(9, frame(9, b"unknown")),
        tagged(9, u32::MAX.to_le_bytes()),
    ]
}

/// Raft's message, as `eraftpb.proto` of raft-proto 0.7 has it.
#[derive(Clone, PartialEq, prost::Message)]
struct RaftMessage {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(uint64, tag = "2")]
    to: u64,
    #[prost(uint64, tag = "3")]
    from: u64,
    #[prost(uint64, tag = "4")]
    term: u64,
    #[prost(uint64, tag = "5")]
    log_term: u64,
    #[prost(uint64, tag = "6")]
    index: u64,
    #[prost(message, repeated, tag = "7")]
    entries: Vec<RaftEntry>,
    #[prost(uint64, tag = "8")]
    commit: u64,
    #[prost(message, optional, tag = "9")]
    snapshot: Option<RaftSnapshot>,
    #[prost(bool, tag = "10")]
    reject: bool,
    #[prost(uint64, tag = "11")]
    reject_hint: u64,
    #[prost(bytes = "vec", tag = "12")]
    context: Vec<u8>,
    #[prost(uint64, tag = "13")]
    request_snapshot: u64,
    #[prost(uint64, tag = "15")]
    commit_term: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RaftEntry {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(uint64, tag = "2")]
    term: u64,
    #[prost(uint64, tag = "3")]
    index: u64,
    #[prost(bytes = "vec", tag = "4")]
    data: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RaftSnapshot {
    #[prost(bytes = "vec", tag = "1")]
    data: Vec<u8>,
    #[prost(message, optional, tag = "2")]
    metadata: Option<RaftSnapshotMetadata>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RaftSnapshotMetadata {
    #[prost(message, optional, tag = "1")]
    members: Option<RaftMembers>,
    #[prost(uint64, tag = "2")]
    index: u64,
    #[prost(uint64, tag = "3")]
    term: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RaftMembers {
    #[prost(uint64, repeated, tag = "1")]
    voters: Vec<u64>,
    #[prost(uint64, repeated, tag = "2")]
    learners: Vec<u64>,
    #[prost(uint64, repeated, tag = "3")]
    voters_outgoing: Vec<u64>,
    #[prost(uint64, repeated, tag = "4")]
    learners_next: Vec<u64>,
    #[prost(bool, tag = "5")]
    auto_leave: bool,
}

/// Small disks, so that each run begins in microseconds.
pub(crate) fn replica_config(replica: u64, voters: &[u64]) -> ReplicaConfig {
    let mut config = ReplicaConfig::new(9, replica, voters.to_vec());
    config.segment_bytes = 2048;
    config.keep_entries = 3;
    config.snapshot_every_entries = 1_000_000;
    config
}

pub(crate) fn open(
    config: ReplicaConfig,
    disk: MemoryDisk,
) -> core::result::Result<Replica<MemoryDisk>, defib_consensus::ConsensusError> {
    let quiet = slog::Logger::root(slog::Discard, slog::o!());
    Replica::open(config, disk, &quiet).map(|(replica, _)| replica)
}

/// Does what the replica asks for until it asks for nothing. `None`: it ended itself, as it may.
pub(crate) fn work(replica: &mut Replica<MemoryDisk>, mut take: impl FnMut(Output)) -> Option<()> {
    while let Some(output) = replica.ready() {
        take(output);
        take(replica.persist().ok()?);
    }
    Some(())
}

/// Replica 1 of three, and a peer with a good certificate that says anything.
pub(crate) fn messages(data: &[u8]) {
    // Too few bytes are a shorter story.
    let _ = story(&mut Unstructured::new(data));
}

fn story(u: &mut Unstructured<'_>) -> Result<()> {
    let Ok(mut replica) = open(replica_config(1, &[1, 2, 3]), MemoryDisk::new()) else { return Ok(()) };
    let mut term = 1;
    let mut next_id = 1;
    for _ in 0..60 {
        if u.is_empty() {
            break;
        }
        match u.int_in_range(0..=15_u8)? {
            0 => replica.tick(),
            1 => replica.campaign(),
            2 => {
                next_id += 1;
                replica.propose([(ProposalId(next_id), Bytes::from_static(b"proposal"))]);
            }
            3 => replica.read_index(u.arbitrary()?),
            4 => replica.transfer_leader(u.int_in_range(1..=4)?),
            5 => {
                let index = replica.delivered_index();
                if replica.save_snapshot(index, b"state").is_err() {
                    return Ok(());
                }
            }
            6 => {
                let length = u.int_in_range(0..=64)?;
                let bytes = Bytes::copy_from_slice(u.bytes(length)?);
                if replica.receive(2, &bytes).is_err() {
                    return Ok(());
                }
            }
            _ => {
                let from = u.int_in_range(2..=3)?;
                let mut bytes = envelope(u, from)?;
                bytes.extend(message(u, &replica, from, &mut term)?.encode_to_vec());
                let bytes = bytes.into();
                // The news that this replica's directory is an old copy ends it, as it should.
                if replica.receive(from, &bytes).is_err() {
                    return Ok(());
                }
            }
        }
        if work(&mut replica, |output| term = output.role.map_or(term, |role| role.term.max(term))).is_none()
        {
            return Ok(());
        }
        if replica.role().role == Role::Leader {
            replica.announce_commit();
        }
    }
    Ok(())
}

/// Whose message it is, and how the sender knows others; mostly what is right.
fn envelope(u: &mut Unstructured<'_>, from: u64) -> Result<Vec<u8>> {
    let odd = |u: &mut Unstructured<'_>, right: u64| -> Result<u128> {
        if u.int_in_range(0..=63_u8)? == 0 { u.arbitrary() } else { Ok(right.into()) }
    };
    let mut bytes = odd(u, from)?.to_le_bytes().to_vec();
    let count = u.int_in_range(0..=3_u8)?;
    bytes.push(if u.int_in_range(0..=63_u8)? == 0 { u.arbitrary()? } else { count });
    for replica in 1..=u64::from(count) {
        bytes.extend(replica.to_le_bytes());
        bytes.extend(odd(u, replica)?.to_le_bytes());
    }
    Ok(bytes)
}

/// Mostly what could come now.
fn message(
    u: &mut Unstructured<'_>,
    replica: &Replica<MemoryDisk>,
    from: u64,
    term: &mut u64,
) -> Result<RaftMessage> {
    let near = |u: &mut Unstructured<'_>, right: u64| -> Result<u64> {
        Ok(match u.int_in_range(0..=15_u8)? {
            0 => right.saturating_add(1),
            1 => right.saturating_sub(1),
            2 => u.int_in_range(0..=12)?,
            3 => u.arbitrary()?,
            _ => right,
        })
    };
    // Of those that leave a replica, and now and then any.
    let kinds = [3, 3, 3, 4, 4, 5, 6, 6, 7, 8, 8, 9, 13, 14, 15, 16, 17, 18, 18];
    let kind = if u.int_in_range(0..=31_u8)? == 0 { u.int_in_range(0..=19)? } else { *u.choose(&kinds)? };
    if u.int_in_range(0..=15_u8)? == 0 {
        *term = term.saturating_add(1);
    }
    let forwarded = matches!(kind, 2 | 15);
    let mut said = RaftMessage {
        kind,
        to: 1,
        from,
        term: if forwarded { 0 } else { near(u, *term)? },
        log_term: near(u, replica.role().term.min(*term))?,
        index: near(u, replica.last_index())?,
        commit: near(u, replica.commit_index())?,
        reject: u.int_in_range(0..=3_u8)? == 0,
        ..RaftMessage::default()
    };
    if u.int_in_range(0..=3_u8)? == 0 {
        said.reject_hint = near(u, replica.last_index())?;
        said.commit_term = near(u, *term)?;
        said.request_snapshot = near(u, 0)?;
    }
    if u.int_in_range(0..=7_u8)? == 0 {
        said.log_term = 1;
        said.index = u.int_in_range(0..=2)?;
    }
    for at in 0..u.int_in_range(0..=3_u64)? {
        said.entries.push(RaftEntry {
            kind: if u.int_in_range(0..=7_u8)? == 0 { u.int_in_range(0..=3)? } else { 0 },
            term: near(u, said.term)?,
            index: near(u, said.index.saturating_add(at).saturating_add(1))?,
            data: entry_data(u)?,
        });
    }
    if kind == 7 {
        let mut members = RaftMembers { voters: vec![1, 2, 3], ..RaftMembers::default() };
        for list in [
            &mut members.voters,
            &mut members.learners,
            &mut members.voters_outgoing,
            &mut members.learners_next,
        ] {
            if u.int_in_range(0..=5_u8)? == 0 {
                list.push(u.int_in_range(0..=5)?);
            }
        }
        members.auto_leave = u.int_in_range(0..=7_u8)? == 0;
        let metadata = RaftSnapshotMetadata {
            members: Some(members),
            index: near(u, replica.last_index() + 3)?,
            term: near(u, *term)?,
        };
        said.snapshot = Some(RaftSnapshot { data: b"state".to_vec(), metadata: Some(metadata) });
    }
    Ok(said)
}

/// Plain data, or a change of the replica set: `ConfChangeV2 { changes: [{ kind, replica }] }`.
fn entry_data(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    Ok(match u.int_in_range(0..=3_u8)? {
        0 => vec![0x12, 4, 0x08, u.int_in_range(0..=3)?, 0x10, u.int_in_range(0..=6)?],
        1 => {
            let length = u.int_in_range(0..=8)?;
            u.bytes(length)?.to_vec()
        }
        _ => b"data".to_vec(),
    })
}

pub(crate) fn messages_seeds() -> Vec<Vec<u8>> {
    crate::seeds::noise()
}
