//! A replica's directory after something else than the replica has written to it: bits that rotted, files that were
//! lost, swapped or copied from elsewhere; with checksums that fit or not.

use std::sync::OnceLock;

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use defib_consensus::{
    disk::{Disk as _, MemoryDisk},
    replica::{ProposalId, Replica, Role},
};

use crate::peers::{open, replica_config, work};

const SEGMENT_HEADER: usize = 64;
const FRAME_HEADER: usize = 32;

/// Whatever stands there, a replica begins with it and keeps what it promises from then on, or says why not.
pub(crate) fn log_directory(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let Ok(disk) = damaged(&mut u) else { return };
    let mut replica = match open(replica_config(1, &[1]), disk.clone()) {
        Ok(replica) => replica,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    replica.campaign();
    if work(&mut replica, drop).is_none() || replica.role().role != Role::Leader {
        return;
    }
    let mut committed = Vec::new();
    replica.propose([(ProposalId(77), Bytes::from_static(b"after the damage"))]);
    if work(&mut replica, |output| committed.extend(output.committed)).is_none() {
        return;
    }
    let Some(entry) = committed.into_iter().find(|entry| entry.proposal == Some(ProposalId(77))) else {
        return;
    };
    drop(replica);
    let mut again = open(replica_config(1, &[1]), disk).expect("what it wrote itself can be read");
    let mut found = Vec::new();
    again.campaign();
    work(&mut again, |output| found.extend(output.committed)).expect("the disk is good");
    assert!(
        found.iter().any(|one| one.index == entry.index && one.data == entry.data),
        "an acknowledged entry was lost"
    );
}

/// Some good directories: a short log, one with many segments, one with a snapshot in the middle.
fn good(which: usize) -> MemoryDisk {
    static GOOD: OnceLock<Vec<MemoryDisk>> = OnceLock::new();
    let disks = GOOD.get_or_init(|| {
        [(3, None), (60, None), (60, Some(20))].map(|(entries, snapshot)| lived_in(entries, snapshot)).into()
    });
    disks[which % disks.len()].durable_copy()
}

fn lived_in(entries: u64, snapshot_at: Option<u64>) -> MemoryDisk {
    let disk = MemoryDisk::new();
    let mut replica = open(replica_config(1, &[1]), disk.clone()).expect("an empty directory");
    replica.campaign();
    let drive = |replica: &mut Replica<MemoryDisk>| work(replica, drop).expect("the disk is good");
    drive(&mut replica);
    for id in 1..=entries {
        replica
            .propose([(ProposalId(id), Bytes::from(vec![b'x'; 40 + usize::try_from(id % 50).unwrap_or(0)]))]);
        drive(&mut replica);
        if snapshot_at == Some(id) {
            let index = replica.delivered_index();
            assert!(replica.save_snapshot(index, b"the state").expect("the disk is good"));
        }
    }
    replica.maintain().expect("the disk is good");
    drop(replica);
    disk.durable_copy()
}

fn damaged(u: &mut Unstructured<'_>) -> Result<MemoryDisk> {
    let mut disk = good(u.int_in_range(0..=2)?);
    for _ in 0..u.int_in_range(0..=4_u8)? {
        let files = disk.list().expect("it is up");
        if files.is_empty() {
            break;
        }
        let file = u.choose(&files)?.clone();
        let length = usize::try_from(file.length).unwrap_or(0);
        match u.int_in_range(0..=11_u8)? {
            0 => disk.truncate(&file.name, u.int_in_range(0..=file.length)?),
            1 => disk.remove(&file.name),
            2 => {
                let other = u.choose(&files)?.name.clone();
                let bytes = disk.read(&file.name).expect("it is there");
                disk.truncate(&other, 0).and_then(|()| disk.write_at(&other, 0, &bytes))
            }
            3 => {
                let name = format!("log-{:016x}.segment", near(u, 1, 3)?);
                if name == file.name { Ok(()) } else { disk.rename(&file.name, &name) }
            }
            4 => {
                let size = u.int_in_range(0..=200)?;
                let bytes = u.bytes(size)?.to_vec();
                disk.truncate(&file.name, 0).and_then(|()| disk.write_at(&file.name, 0, &bytes))
            }
            // A frame that was written to another place.
            5 if length > 256 => {
                let bytes = disk.read(&file.name).expect("it is there");
                let from = u.int_in_range(0..=length / 8 - 9)? * 8;
                let to = u.int_in_range(0..=length / 8 - 9)? * 8;
                disk.write_at(&file.name, to as u64, &bytes[from..from + 64])
            }
            _ if length > 0 => {
                // Where the numbers are: headers, the first frames; or anywhere.
                let limit = *u.choose(&[16, 80, 200, length])?;
                let at = u.int_in_range(0..=limit.min(length) - 1)?;
                let bytes = match u.int_in_range(0..=3_u8)? {
                    0 => u.arbitrary::<u64>()?.to_le_bytes().to_vec(),
                    1 => vec![0xff; 8],
                    2 => u64::from(u.arbitrary::<u8>()?).to_le_bytes().to_vec(),
                    _ => vec![u.arbitrary()?],
                };
                let end = (at + bytes.len()).min(length);
                disk.write_at(&file.name, at as u64, &bytes[..end - at])
            }
            _ => Ok(()),
        }
        .expect("it is up");
    }
    if u.int_in_range(0..=3_u8)? > 0 {
        for file in disk.list().expect("it is up") {
            let mut bytes = disk.read(&file.name).expect("it is there");
            reseal(&file.name, &mut bytes);
            disk.write_at(&file.name, 0, &bytes).expect("it is up");
        }
    }
    Ok(disk)
}

fn near(u: &mut Unstructured<'_>, from: u64, to: u64) -> Result<u64> {
    if u.int_in_range(0..=7_u8)? == 0 { u.arbitrary() } else { u.int_in_range(from..=to) }
}

/// Makes the checksums fit, as in docs of the log's and the snapshot's modules, so that what they cover is read too.
fn reseal(name: &str, bytes: &mut [u8]) {
    if name == "identity" && bytes.len() == 36 {
        let crc = crc32c::crc32c(&bytes[..32]);
        bytes[32..].copy_from_slice(&crc.to_le_bytes());
    } else if name.starts_with("snapshot-") && bytes.len() >= 16 {
        bytes[12..16].fill(0);
        let crc = crc32c::crc32c(bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    } else if name.starts_with("log-") && bytes.len() >= SEGMENT_HEADER {
        bytes[12..16].fill(0);
        let crc = crc32c::crc32c(&bytes[..SEGMENT_HEADER]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        let number = word(bytes, 40);
        let mut offset = SEGMENT_HEADER;
        while bytes.len() >= offset + FRAME_HEADER && bytes[offset..offset + 4] == *b"DFRM" {
            let body = u32::from_le_bytes([
                bytes[offset + 4],
                bytes[offset + 5],
                bytes[offset + 6],
                bytes[offset + 7],
            ]);
            let Some(end) =
                usize::try_from(body).ok().and_then(|body| (offset + FRAME_HEADER).checked_add(body))
            else {
                return;
            };
            let Some(frame) = bytes.get(offset..end) else { return };
            let mut crc = crc32c::crc32c(&number.to_le_bytes());
            crc = crc32c::crc32c_append(crc, &(offset as u64).to_le_bytes());
            crc = crc32c::crc32c_append(crc, &frame[..20]);
            crc = crc32c::crc32c_append(crc, &frame[24..]);
            bytes[offset + 20..offset + 24].copy_from_slice(&crc.to_le_bytes());
            offset = end;
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

pub(crate) fn log_directory_seeds() -> Vec<Vec<u8>> {
    let mut seeds = crate::seeds::noise();
    seeds.extend((0..3).map(|which| vec![which]));
    seeds
}
