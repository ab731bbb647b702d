//! Reading the log on start: what is whole, what was torn, what is damaged.

use super::frame::{Frame, FrameKind, decode};
use super::segment::{SPARE, SegmentHeader, SegmentInfo, segment_number};
use super::{Log, SEGMENT_HEADER};
use crate::disk::Disk;
use crate::{ConsensusError, NUMBERS_END};

/// What no replica would have written, whatever the checksum says: Raft would panic on it.
fn contradiction(frame: &Frame) -> Option<String> {
    let hard_state = &frame.hard_state;
    if hard_state.term > NUMBERS_END || hard_state.commit > NUMBERS_END {
        let (term, commit) = (hard_state.term, hard_state.commit);
        return Some(format!("it claims term {term} and commits up to {commit}, which no log reaches"));
    }
    let mut before: Option<(u64, u64)> = None;
    for entry in &frame.entries {
        let follows = before
            .is_none_or(|(index, term)| index.checked_add(1) == Some(entry.index) && term <= entry.term);
        if !follows || entry.index > NUMBERS_END || entry.term > hard_state.term {
            return Some(format!("entry {} of term {} is out of order in it", entry.index, entry.term));
        }
        before = Some((entry.index, entry.term));
    }
    let (index, term) = frame.reset?;
    (index > NUMBERS_END || term > hard_state.term)
        .then(|| format!("it begins anew behind entry {index} of term {term}, which can't be"))
}

/// Frames start at multiples of this.
const ALIGNMENT: usize = 8;

impl<D: Disk> Log<D> {
    pub(super) fn recover(&mut self) -> Result<(), ConsensusError> {
        let mut segments = Vec::new();
        for file in self.disk.list()? {
            if file.name == SPARE {
                self.disk.remove(SPARE)?;
            } else if let Some(number) = segment_number(&file.name) {
                segments.push((number, file.name));
            }
        }
        segments.sort();
        let count = segments.len();
        let mut unclosed = None;
        for (position, (number, name)) in segments.into_iter().enumerate() {
            let last = position + 1 == count;
            let closed = self.recover_segment(number, name, last)?;
            if !last {
                unclosed = self.end_of_last_segment().filter(|_| !closed);
            }
        }
        // The process ended between making the last segment and closing the one before. That all of it was read is
        // known by now.
        if let Some(end) = unclosed {
            self.close(&end)?;
        }
        self.make_safe()
    }

    /// What was read may have been written by a process that died before its sync. From now on it counts as
    /// remembered, and peers are told so without another write: it must survive a power cut.
    fn make_safe(&mut self) -> Result<(), ConsensusError> {
        if let Some(last) = self.segments.back() {
            self.disk.sync(&last.name)?;
        }
        self.disk.sync_directory()?;
        Ok(())
    }

    /// True if the segment says that another one follows it.
    fn recover_segment(&mut self, number: u64, name: String, last: bool) -> Result<bool, ConsensusError> {
        let bytes = self.disk.read(&name)?;
        let damaged = |log: &Self, offset: usize, what: String| ConsensusError::Corrupt {
            file: name.clone(),
            offset: offset as u64,
            index: log.last_index() + 1,
            what,
        };
        let header = SegmentHeader::decode(&bytes).map_err(|what| damaged(self, 0, what))?;
        if header.owner != self.owner {
            return Err(ConsensusError::WrongIdentity {
                cluster: self.owner.cluster,
                replica: self.owner.replica,
                found_cluster: header.owner.cluster,
                found_replica: header.owner.replica,
            });
        }
        if header.number != number || header.length != bytes.len() as u64 {
            return Err(damaged(self, 0, "the file was renamed or its length was changed".to_owned()));
        }
        match self.segments.back() {
            None => self.sequence = header.first_sequence.saturating_sub(1),
            Some(before) if before.number.checked_add(1) != Some(number) => {
                return Err(damaged(self, 0, format!("the segment that follows {} is missing", before.name)));
            }
            Some(before) if self.sequence.checked_add(1) != Some(header.first_sequence) => {
                let what = format!(
                    "{} ends at record {} but should end at record {}: records at its end are damaged",
                    before.name,
                    self.sequence,
                    header.first_sequence.saturating_sub(1)
                );
                return Err(damaged(self, 0, what));
            }
            Some(_) => {}
        }
        let length = header.length;
        self.segments.push_back(SegmentInfo {
            number,
            name: name.clone(),
            length,
            newest_index: 0,
            frames: 0,
        });

        let mut closed = false;
        let mut offset = usize::try_from(SEGMENT_HEADER).unwrap_or(64);
        while let Some(frame) = decode(&bytes, offset, number) {
            if self.sequence.checked_add(1) != Some(frame.sequence) {
                let what = format!("record {} follows record {}", frame.sequence, self.sequence);
                return Err(damaged(self, offset, what));
            }
            if frame.kind != FrameKind::Batch {
                closed = frame.kind == FrameKind::Close;
                break;
            }
            if let Some(what) = contradiction(&frame) {
                return Err(damaged(self, offset, what));
            }
            let start = frame.entries.first().map(|entry| entry.index);
            if let Some(start) = start {
                let begins = self.last_index() == 0 && start > 1;
                // What this segment began with was never committed: a later leader has cut all of it back, and more.
                let begins_before = self.base_unknown && start <= self.base.0;
                if frame.reset.is_none() && (begins || begins_before) {
                    // Older segments were dropped, though perhaps not all that could have been: one may be left that
                    // holds votes only. The term before the first entry is not known, so that entry
                    // becomes the base, unless a snapshot tells the term later; see `adopt_snapshot`.
                    self.entries.clear();
                    self.base = (start.saturating_sub(1), 0);
                    self.base_unknown = start > 1;
                }
                let (base, before) =
                    frame.reset.map_or_else(|| (self.base.0, self.last_index()), |(index, _)| (index, index));
                if start <= base || start > before + 1 {
                    let what =
                        format!("entry {start} follows entry {before}, in a log that begins behind {base}");
                    return Err(damaged(self, offset, what));
                }
            }
            if frame.reset.is_some() {
                self.base_unknown = false;
            }
            self.remember(frame.hard_state, frame.entries, frame.reset);
            self.sequence = frame.sequence;
            self.recovery.frames += 1;
            offset += frame.length;
        }
        self.tail = offset as u64;
        if !last {
            return Ok(closed);
        }
        if closed {
            let what = "another segment followed this one, and is missing".to_owned();
            return Err(damaged(self, offset, what));
        }
        self.cut_torn_tail(&name, number, &bytes, offset)?;
        Ok(false)
    }

    /// Nothing valid follows at `offset`. Either this is the end, or a torn write, or damage.
    fn cut_torn_tail(
        &mut self,
        name: &str,
        number: u64,
        bytes: &[u8],
        offset: usize,
    ) -> Result<(), ConsensusError> {
        let Some(end) = bytes[offset..].iter().rposition(|byte| *byte != 0).map(|last| offset + last + 1)
        else {
            return Ok(());
        };
        let later = (offset..end)
            .step_by(ALIGNMENT)
            .skip(1)
            .find_map(|at| decode(bytes, at, number).map(|frame| (at, frame)));
        if let Some((at, frame)) = later {
            return Err(ConsensusError::Corrupt {
                file: name.to_owned(),
                offset: offset as u64,
                index: self.last_index() + 1,
                what: format!(
                    "the record after {} is unreadable, but record {} at byte {at} is whole, so the damaged one had been safe on the disk",
                    self.sequence, frame.sequence
                ),
            });
        }
        if decode(bytes, offset, number).is_none() {
            self.recovery.torn_bytes = (end - offset) as u64;
        }
        self.unmarked = true;
        // Zeros again before anything is written here: rests of the torn write must never look like a record,
        // and are not to be reported at the next start. `make_safe` syncs them.
        self.disk.write_at(name, offset as u64, &vec![0; end - offset])?;
        Ok(())
    }
}
