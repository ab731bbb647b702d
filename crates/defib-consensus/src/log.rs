//! The durable log: what Raft asked to remember, in zero-filled segment files.
//!
//! One [`Batch`] is one frame and costs one `fdatasync`. A frame carries a sequence number and a checksum
//! that also covers its place, and is synced before the next one is written. So on start:
//!
//! - a damaged frame with no valid frame after it may be a torn write that nobody was told about: it is cut
//!   off, and counted;
//! - a damaged frame with a valid one after it had been synced: that is corruption, and the replica stops.
//!
//! Since the frame that was synced last has nothing after it to prove so, a small *mark* follows it as soon
//! as the replica has time ([`Log::mark`]). A mark isn't synced itself, and the next frame overwrites it.
//!
//! Nor does a file that is gone leave a gap if it was the last one. So the first segment is there before the directory
//! counts as set up, and each one says at its end, once there is a next one, that it isn't the last.
//!
//! All entries since the last snapshot are also kept in memory: that is where Raft reads them. The log on
//! disk is read on start only.

mod frame;
mod recovery;
mod segment;

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use raft::eraftpb::{Entry, HardState};

pub(crate) use segment::{SEGMENT_HEADER, is_segment, is_unwritten};

use crate::ConsensusError;
use crate::disk::Disk;
use frame::{EMPTY_FRAME, FrameKind};
use segment::{SPARE, SegmentEnd, SegmentHeader, SegmentInfo, segment_name};

/// What must be durable together.
#[derive(Debug, Default)]
pub(crate) struct Batch<'a> {
    /// The newest term, vote and commit index.
    pub(crate) hard_state: HardState,
    /// Entries without gaps; they replace all that the log holds from the first one's index on.
    pub(crate) entries: &'a [Entry],
    /// The log starts anew behind this (index, term): a snapshot took its place.
    pub(crate) reset: Option<(u64, u64)>,
}

/// Whose log this is. Part of every segment, so that files can't be mixed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) cluster: u128,
    pub(crate) replica: u64,
}

/// What was found on start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Frames read.
    pub frames: u64,
    /// Bytes of a torn write that were cut off: never synced, so never acknowledged.
    pub torn_bytes: u64,
}

/// The durable log.
#[derive(Debug)]
pub(crate) struct Log<D> {
    disk: D,
    owner: Owner,
    segment_bytes: u64,
    segments: VecDeque<SegmentInfo>,
    /// Where the next frame goes in the last segment.
    tail: u64,
    /// Sequence number of the last frame.
    sequence: u64,
    hard_state: HardState,
    /// (index, term) right before the first entry.
    base: (u64, u64),
    /// Older segments were dropped and nothing told the base's term yet: only while opening.
    base_unknown: bool,
    /// The log on disk doesn't know yet that it starts anew behind the base: the next frame says so.
    pending_reset: bool,
    entries: VecDeque<Entry>,
    /// How much of the spare segment is written and synced; `None` if there is none yet.
    spare: Option<u64>,
    /// The last thing written was a frame, so a mark would prove something.
    unmarked: bool,
    /// An operation failed half way. Nothing is written any more.
    broken: bool,
    buffer: Vec<u8>,
    recovery: Recovery,
}

impl<D: Disk> Log<D> {
    /// Opens what is there; an empty directory is an empty log.
    ///
    /// # Errors
    /// If the disk fails, or what was synced is damaged.
    pub(crate) fn open(disk: D, owner: Owner, segment_bytes: u64) -> Result<Self, ConsensusError> {
        let mut log = Self {
            disk,
            owner,
            segment_bytes: segment_bytes.max(4096),
            segments: VecDeque::new(),
            tail: 0,
            sequence: 0,
            hard_state: HardState::default(),
            base: (0, 0),
            base_unknown: false,
            pending_reset: false,
            entries: VecDeque::new(),
            spare: None,
            unmarked: false,
            broken: false,
            buffer: Vec::new(),
            recovery: Recovery::default(),
        };
        log.recover()?;
        Ok(log)
    }

    /// Makes the first segment of a new directory.
    ///
    /// # Errors
    /// If the disk fails.
    pub(crate) fn begin(&mut self) -> Result<(), ConsensusError> {
        self.write(|log| log.roll(0))
    }

    /// There is a segment, as in every directory that was set up.
    ///
    /// # Errors
    /// If there is none: whatever it held, votes included, is lost.
    pub(crate) fn check_begun(&self) -> Result<(), ConsensusError> {
        if !self.segments.is_empty() {
            return Ok(());
        }
        Err(ConsensusError::Corrupt {
            file: segment_name(1),
            offset: 0,
            index: 1,
            what: "the directory was set up, but it holds no segment of the log: all of them are missing"
                .to_owned(),
        })
    }

    pub(crate) fn disk(&self) -> &D {
        &self.disk
    }

    pub(crate) fn disk_mut(&mut self) -> &mut D {
        &mut self.disk
    }

    pub(crate) fn recovery(&self) -> Recovery {
        self.recovery
    }

    pub(crate) fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    /// Index of the first entry; one more than the last if there is none.
    pub(crate) fn first_index(&self) -> u64 {
        self.base.0 + 1
    }

    pub(crate) fn last_index(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    /// The term at `index`, from right before the first entry up to the last.
    pub(crate) fn term(&self, index: u64) -> Option<u64> {
        if index == self.base.0 {
            return Some(self.base.1);
        }
        self.entry(index).map(|entry| entry.term)
    }

    pub(crate) fn entry(&self, index: u64) -> Option<&Entry> {
        let position = index.checked_sub(self.first_index())?;
        self.entries.get(usize::try_from(position).ok()?)
    }

    /// Writes one batch and syncs it. When this returns, it survives a power cut.
    ///
    /// # Errors
    /// After any error the log refuses all further writes: the process must end.
    pub(crate) fn append(&mut self, batch: &Batch<'_>) -> Result<(), ConsensusError> {
        let reset = batch.reset.or_else(|| self.pending_reset.then_some(self.base));
        let batch = &Batch { hard_state: batch.hard_state.clone(), entries: batch.entries, reset };
        let last = reset.map_or_else(|| self.last_index(), |(index, _)| index);
        if let Some(first) = batch.entries.first() {
            assert!(first.index <= last + 1, "raft appends without gaps: {} after {last}", first.index);
        }
        self.write(|log| {
            let mut buffer = std::mem::take(&mut log.buffer);
            frame::encode_body(&mut buffer, batch);
            let length = buffer.len() as u64;
            if log.segments.is_empty() || log.tail + length + EMPTY_FRAME > log.last_segment().length {
                log.roll(length)?;
            }
            let last = log.segments.back().expect("a segment with room was made if there was none");
            frame::seal(&mut buffer, FrameKind::Batch, log.sequence + 1, last.number, log.tail);
            log.disk.write_at(&last.name, log.tail, &buffer)?;
            log.disk.sync(&last.name)?;
            log.tail += length;
            log.sequence += 1;
            log.buffer = buffer;
            Ok(())
        })?;
        self.remember(batch.hard_state.clone(), batch.entries.to_vec(), reset);
        self.pending_reset = false;
        self.unmarked = true;
        Ok(())
    }

    /// Leaves a proof that the last frame had been synced, once. Cheap: no sync.
    pub(crate) fn mark(&mut self, hard_state: &HardState) -> Result<(), ConsensusError> {
        if !self.unmarked {
            return Ok(());
        }
        self.unmarked = false;
        self.write(|log| {
            let mut buffer = std::mem::take(&mut log.buffer);
            frame::encode_body(&mut buffer, &Batch { hard_state: hard_state.clone(), ..Batch::default() });
            let last = log.last_segment();
            if log.tail + buffer.len() as u64 <= last.length {
                frame::seal(&mut buffer, FrameKind::Mark, log.sequence + 1, last.number, log.tail);
                let name = last.name.clone();
                log.disk.write_at(&name, log.tail, &buffer)?;
            }
            log.buffer = buffer;
            Ok(())
        })
    }

    /// Drops entries up to `index` from memory, and the segments that hold nothing newer.
    ///
    /// # Errors
    /// If a segment can't be removed.
    pub(crate) fn compact(&mut self, index: u64) -> Result<(), ConsensusError> {
        let index = index.min(self.last_index());
        while self.base.0 < index {
            let Some(entry) = self.entries.pop_front() else { break };
            self.base = (entry.index, entry.term);
        }
        // The last segment stays, and it must hold a frame: each one carries the hard state.
        if self.segments.back().is_none_or(|last| last.frames == 0) {
            return Ok(());
        }
        let mut removed = false;
        while self.segments.len() > 1
            && self.segments.front().is_some_and(|first| first.newest_index <= index)
        {
            let Some(first) = self.segments.pop_front() else { break };
            self.write(|log| log.disk.remove(&first.name).map_err(Into::into))?;
            removed = true;
        }
        if removed {
            self.write(|log| log.disk.sync_directory().map_err(Into::into))?;
        }
        Ok(())
    }

    /// Prepares the next segment ahead of need, at most `bytes` of it per call, so that changing over costs
    /// no more than a rename. A full disk is no error here: it is one when the segment is needed.
    pub(crate) fn prepare_spare(&mut self, bytes: u64) -> Result<(), ConsensusError> {
        let done = match self.spare {
            Some(done) if done >= self.segment_bytes => return Ok(()),
            Some(done) => done,
            None if self.segments.back().is_some_and(|last| self.tail > last.length / 2) => {
                match self.disk.create(SPARE) {
                    Ok(()) => 0,
                    Err(error) if error.is_full() => return Ok(()),
                    Err(error) => {
                        self.broken = true;
                        return Err(error.into());
                    }
                }
            }
            None => return Ok(()),
        };
        let step = bytes.min(self.segment_bytes - done);
        let zeros = vec![0; usize::try_from(step).unwrap_or(0)];
        let written = self.disk.write_at(SPARE, done, &zeros).and_then(|()| self.disk.sync(SPARE));
        match written {
            Ok(()) => self.spare = Some(done + step),
            Err(error) if error.is_full() => {
                self.spare = None;
                self.write(|log| log.disk.remove(SPARE).map_err(Into::into))?;
            }
            Err(error) => {
                self.broken = true;
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Starts the next segment, large enough for a frame of `frame_bytes`.
    fn roll(&mut self, frame_bytes: u64) -> Result<(), ConsensusError> {
        let length = self.segment_bytes.max(SEGMENT_HEADER + frame_bytes + EMPTY_FRAME);
        let done = self.spare.take();
        let mut fill = || -> Result<(), ConsensusError> {
            if done.is_none() {
                self.disk.create(SPARE)?;
            }
            let mut done = done.unwrap_or(0);
            let zeros = vec![0; usize::try_from(length.min(1 << 20)).unwrap_or(0)];
            while done < length {
                let step = (length - done).min(zeros.len() as u64);
                self.disk.write_at(SPARE, done, &zeros[..usize::try_from(step).unwrap_or(0)])?;
                done += step;
            }
            Ok(())
        };
        if let Err(error) = fill() {
            if matches!(error, ConsensusError::DiskFull { .. }) {
                // Nothing of the log was touched; give back what the attempt took.
                self.disk.remove(SPARE)?;
            }
            return Err(error);
        }
        let number = self.segments.back().map_or(1, |last| last.number + 1);
        let header =
            SegmentHeader { owner: self.owner, number, first_sequence: self.sequence + 1, length }.encode();
        self.disk.write_at(SPARE, 0, &header)?;
        self.disk.sync(SPARE)?;
        let name = segment_name(number);
        self.disk.rename(SPARE, &name)?;
        self.disk.sync_directory()?;
        if let Some(end) = self.end_of_last_segment() {
            self.close(&end)?;
        }
        self.segments.push_back(SegmentInfo { number, name, length, newest_index: 0, frames: 0 });
        self.tail = SEGMENT_HEADER;
        Ok(())
    }

    /// Leaves word at the end of a segment that another one follows, which is durably there. No sync: if the power goes
    /// before it is safe, the next start writes it again.
    fn close(&mut self, end: &SegmentEnd) -> Result<(), ConsensusError> {
        let SegmentEnd { segment, tail, sequence } = end;
        if tail + EMPTY_FRAME > segment.length {
            return Ok(());
        }
        let mut buffer = Vec::new();
        frame::encode_body(&mut buffer, &Batch::default());
        frame::seal(&mut buffer, FrameKind::Close, sequence + 1, segment.number, *tail);
        self.disk.write_at(&segment.name, *tail, &buffer)?;
        Ok(())
    }

    fn end_of_last_segment(&self) -> Option<SegmentEnd> {
        let segment = self.segments.back()?.clone();
        Some(SegmentEnd { segment, tail: self.tail, sequence: self.sequence })
    }

    fn last_segment(&self) -> &SegmentInfo {
        self.segments.back().expect("a frame is written into a segment that exists")
    }

    /// Runs a write, unless one failed before.
    fn write(
        &mut self,
        write: impl FnOnce(&mut Self) -> Result<(), ConsensusError>,
    ) -> Result<(), ConsensusError> {
        if self.broken {
            let source = std::io::Error::other("an earlier write failed");
            return Err(ConsensusError::Disk { operation: "write", file: "log".to_owned(), source });
        }
        let result = write(self);
        self.broken = result.is_err();
        result
    }

    /// Takes a batch that is durable into memory.
    fn remember(&mut self, hard_state: HardState, entries: Vec<Entry>, reset: Option<(u64, u64)>) {
        self.hard_state = hard_state;
        if let Some(base) = reset {
            self.entries.clear();
            self.base = base;
        }
        if let Some(first) = entries.first() {
            self.truncate_from(first.index);
        }
        let newest = entries.last().map_or(0, |entry| entry.index).max(reset.map_or(0, |(index, _)| index));
        for entry in entries {
            self.entries.push_back(entry);
        }
        if let Some(last) = self.segments.back_mut() {
            last.newest_index = last.newest_index.max(newest);
            last.frames += 1;
        }
    }

    fn truncate_from(&mut self, index: u64) {
        let keep = usize::try_from(index.saturating_sub(self.first_index())).unwrap_or(usize::MAX);
        self.entries.truncate(keep);
    }

    /// Brings the log in line with a snapshot that was read on start: it may be newer than the log, if the
    /// process ended between.
    pub(crate) fn adopt_snapshot(&mut self, index: u64, term: u64) -> Result<(), ConsensusError> {
        if self.first_index() > index + 1 {
            return Err(ConsensusError::Corrupt {
                file: self.segments.front().map_or_else(String::new, |first| first.name.clone()),
                offset: 0,
                index: index + 1,
                what: format!(
                    "the log starts at index {} but the newest snapshot ends at {index}: what lies between is missing",
                    self.first_index()
                ),
            });
        }
        if self.base_unknown {
            self.base_unknown = false;
            if self.base.0 == index {
                self.base.1 = term;
            } else if let Some(entry) = self.entries.pop_front() {
                self.base = (entry.index, entry.term);
            }
        }
        if self.term(index) != Some(term) {
            self.entries.clear();
            self.base = (index, term);
            self.pending_reset = true;
        }
        if self.hard_state.term < term {
            self.hard_state.term = term;
            self.hard_state.vote = 0;
        }
        self.hard_state.commit = self.hard_state.commit.max(index);
        Ok(())
    }

    /// What was committed is there.
    pub(crate) fn check_commit(&self) -> Result<(), ConsensusError> {
        let (commit, last) = (self.hard_state.commit, self.last_index());
        if commit <= last {
            return Ok(());
        }
        Err(ConsensusError::Corrupt {
            file: self.segments.back().map_or_else(String::new, |last| last.name.clone()),
            offset: 0,
            index: last + 1,
            what: format!("entries up to {commit} were committed, but the log ends at {last}"),
        })
    }

    #[cfg(test)]
    pub(crate) fn entries(&self) -> &VecDeque<Entry> {
        &self.entries
    }
}

pub(crate) fn entry_size(entry: &Entry) -> u64 {
    (entry.data.len() + entry.context.len()) as u64 + 32
}
