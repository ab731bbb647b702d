//! The bytes of one frame.
//!
//! ```text
//! magic u32 | body length u32 | sequence u64 | kind u32 | crc32c u32 | reserved u64        (32 bytes)
//! term u64 | vote u64 | commit u64 | flags u32 | entries u32 [| reset index u64 | reset term u64]
//! per entry: type u8, 7 bytes zero | index u64 | term u64 | context length u32 | data length u32 | context | data
//! zeros up to a multiple of 8
//! ```
//! All integers are little endian. The checksum covers everything else, and the segment's number and the
//! frame's offset.

use protobuf::ProtobufEnum;
use raft::eraftpb::{Entry, EntryType, HardState};

use super::Batch;

pub(super) const FRAME_HEADER: usize = 32;
/// Bytes of a frame without entries: a mark's, or that of what closes a segment.
pub(super) const EMPTY_FRAME: u64 = 64;
const MAGIC: u32 = 0x4d52_4644;
const FLAG_RESET: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameKind {
    Batch = 1,
    Mark = 2,
    /// Another segment follows this one.
    Close = 3,
}

#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: FrameKind,
    pub(super) sequence: u64,
    /// Bytes in the file, with header and padding.
    pub(super) length: usize,
    pub(super) hard_state: HardState,
    pub(super) entries: Vec<Entry>,
    pub(super) reset: Option<(u64, u64)>,
}

/// Leaves room for the header, which [`seal`] fills in.
pub(super) fn encode_body(buffer: &mut Vec<u8>, batch: &Batch<'_>) {
    buffer.clear();
    buffer.resize(FRAME_HEADER, 0);
    let hard_state = &batch.hard_state;
    for value in [hard_state.term, hard_state.vote, hard_state.commit] {
        buffer.extend_from_slice(&value.to_le_bytes());
    }
    let flags = if batch.reset.is_some() { FLAG_RESET } else { 0 };
    buffer.extend_from_slice(&flags.to_le_bytes());
    buffer.extend_from_slice(&length_u32(batch.entries.len()));
    if let Some((index, term)) = batch.reset {
        buffer.extend_from_slice(&index.to_le_bytes());
        buffer.extend_from_slice(&term.to_le_bytes());
    }
    for entry in batch.entries {
        buffer.extend_from_slice(&(entry.get_entry_type() as u64).to_le_bytes());
        buffer.extend_from_slice(&entry.index.to_le_bytes());
        buffer.extend_from_slice(&entry.term.to_le_bytes());
        buffer.extend_from_slice(&length_u32(entry.context.len()));
        buffer.extend_from_slice(&length_u32(entry.data.len()));
        buffer.extend_from_slice(&entry.context);
        buffer.extend_from_slice(&entry.data);
    }
    buffer.resize(buffer.len().next_multiple_of(8), 0);
}

fn length_u32(length: usize) -> [u8; 4] {
    u32::try_from(length)
        .expect("a batch is far below 4 GiB: proposals and messages are capped")
        .to_le_bytes()
}

/// Writes the header for exactly this place.
pub(super) fn seal(buffer: &mut [u8], kind: FrameKind, sequence: u64, segment: u64, offset: u64) {
    let body = length_u32(buffer.len() - FRAME_HEADER);
    buffer[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    buffer[4..8].copy_from_slice(&body);
    buffer[8..16].copy_from_slice(&sequence.to_le_bytes());
    buffer[16..20].copy_from_slice(&(kind as u32).to_le_bytes());
    buffer[20..24].fill(0);
    let crc = checksum(buffer, segment, offset);
    buffer[20..24].copy_from_slice(&crc.to_le_bytes());
}

fn checksum(frame: &[u8], segment: u64, offset: u64) -> u32 {
    let mut crc = crc32c::crc32c(&segment.to_le_bytes());
    crc = crc32c::crc32c_append(crc, &offset.to_le_bytes());
    crc = crc32c::crc32c_append(crc, &frame[..20]);
    crc32c::crc32c_append(crc, &frame[24..])
}

/// Reads the frame at `offset` of a segment, if there is a whole and undamaged one.
pub(super) fn decode(segment_bytes: &[u8], offset: usize, segment: u64) -> Option<Frame> {
    let rest = segment_bytes.get(offset..)?;
    let mut header = Reader(rest);
    if header.u32()? != MAGIC {
        return None;
    }
    let length = FRAME_HEADER + usize::try_from(header.u32()?).ok()?;
    let sequence = header.u64()?;
    let kind = match header.u32()? {
        1 => FrameKind::Batch,
        2 => FrameKind::Mark,
        3 => FrameKind::Close,
        _ => return None,
    };
    let crc = header.u32()?;
    let frame = rest.get(..length)?;
    if checksum(frame, segment, offset as u64) != crc {
        return None;
    }
    let mut body = Reader(&frame[FRAME_HEADER..]);
    let hard_state =
        HardState { term: body.u64()?, vote: body.u64()?, commit: body.u64()?, ..HardState::default() };
    let flags = body.u32()?;
    let count = body.u32()?;
    let reset = if flags & FLAG_RESET != 0 { Some((body.u64()?, body.u64()?)) } else { None };
    let mut entries = Vec::new();
    for _ in 0..count {
        let mut entry = Entry::default();
        entry.set_entry_type(EntryType::from_i32(i32::try_from(body.u64()?).ok()?)?);
        entry.index = body.u64()?;
        entry.term = body.u64()?;
        let context = usize::try_from(body.u32()?).ok()?;
        let data = usize::try_from(body.u32()?).ok()?;
        entry.context = body.bytes(context)?.to_vec().into();
        entry.data = body.bytes(data)?.to_vec().into();
        entries.push(entry);
    }
    Some(Frame { kind, sequence, length, hard_state, entries, reset })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(8)?.try_into().ok()?))
    }
}
