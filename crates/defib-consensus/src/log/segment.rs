//! Segment files: their names and headers.

use super::Owner;
use crate::ConsensusError;
use crate::disk::Disk;

/// Bytes before the first frame.
pub(crate) const SEGMENT_HEADER: u64 = 64;
/// The next segment while it is being prepared.
pub(super) const SPARE: &str = "spare.tmp";

const PREFIX: &str = "log-";
const SUFFIX: &str = ".segment";
const MAGIC: &[u8; 8] = b"defiblog";
const VERSION: u32 = 1;

#[derive(Clone, Debug)]
pub(super) struct SegmentInfo {
    pub(super) number: u64,
    pub(super) name: String,
    /// Bytes of the file.
    pub(super) length: u64,
    /// Highest index of any entry or reset in it; 0 if there is none.
    pub(super) newest_index: u64,
    /// Batches in it.
    pub(super) frames: u64,
}

/// Where the frames of a segment end.
#[derive(Clone, Debug)]
pub(super) struct SegmentEnd {
    pub(super) segment: SegmentInfo,
    /// Offset behind the last frame.
    pub(super) tail: u64,
    /// Sequence number of the last frame.
    pub(super) sequence: u64,
}

pub(super) fn segment_name(number: u64) -> String {
    format!("{PREFIX}{number:016x}{SUFFIX}")
}

pub(super) fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    if digits.len() != 16 {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

/// Whether a file is a segment of the log, by its name.
pub(crate) fn is_segment(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Whether a segment is one that a set-up made and that nothing was ever written to.
pub(crate) fn is_unwritten<D: Disk>(disk: &D, owner: Owner, name: &str) -> Result<bool, ConsensusError> {
    let bytes = disk.read(name)?;
    let first = SegmentHeader { owner, number: 1, first_sequence: 1, length: bytes.len() as u64 };
    let frames = bytes.get(first.encode().len()..).unwrap_or_default();
    Ok(SegmentHeader::decode(&bytes) == Ok(first) && frames.iter().all(|byte| *byte == 0))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) owner: Owner,
    pub(super) number: u64,
    /// Sequence number of the first frame in it: proves that the segment before ends where it seems to end.
    pub(super) first_sequence: u64,
    pub(super) length: u64,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[0..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.owner.cluster.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.owner.replica.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.number.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.first_sequence.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.length.to_le_bytes());
        let crc = crc32c::crc32c(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header, or what is wrong with it.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let Some(bytes) = bytes.get(..64).and_then(|bytes| <[u8; 64]>::try_from(bytes).ok()) else {
            return Err("the file is shorter than its header".to_owned());
        };
        let mut unsigned = bytes;
        unsigned[12..16].fill(0);
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let mut cluster = [0; 16];
        cluster.copy_from_slice(&bytes[16..32]);
        if &bytes[0..8] != MAGIC || crc32c::crc32c(&unsigned).to_le_bytes() != bytes[12..16] {
            return Err("the segment header is damaged".to_owned());
        }
        if bytes[8..12] != VERSION.to_le_bytes() {
            return Err("the segment was written by another version".to_owned());
        }
        Ok(Self {
            owner: Owner { cluster: u128::from_le_bytes(cluster), replica: word(32) },
            number: word(40),
            first_sequence: word(48),
            length: word(56),
        })
    }
}
