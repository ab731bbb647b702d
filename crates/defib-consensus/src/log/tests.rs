use super::*;
use crate::disk::{Crash, MemoryDisk};

pub(super) const OWNER: Owner = Owner { cluster: 7, replica: 1 };
pub(super) const SEGMENT: u64 = 4096;

pub(super) fn entry(index: u64, term: u64, size: usize) -> Entry {
    let data = vec![u8::try_from((index + term) % 251).unwrap() + 1; size].into();
    Entry { index, term, data, context: b"context".to_vec().into(), ..Entry::default() }
}

pub(super) fn hard_state(term: u64, vote: u64, commit: u64) -> HardState {
    HardState { term, vote, commit, ..HardState::default() }
}

pub(super) fn open(disk: &MemoryDisk) -> Result<Log<MemoryDisk>, ConsensusError> {
    let mut log = Log::open(disk.clone(), OWNER, SEGMENT)?;
    log.adopt_snapshot(0, 0)?;
    Ok(log)
}

/// Appends entries `first..=last` of about `size` bytes, one batch each.
fn fill(log: &mut Log<MemoryDisk>, first: u64, last: u64, size: usize) {
    for index in first..=last {
        let batch =
            Batch { hard_state: hard_state(1, 1, index - 1), entries: &[entry(index, 1, size)], reset: None };
        log.append(&batch).unwrap();
    }
}

fn contents(log: &Log<MemoryDisk>) -> (HardState, Vec<Entry>) {
    (log.hard_state().clone(), log.entries().iter().cloned().collect())
}

#[test]
fn what_was_appended_is_there_after_a_restart() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk).unwrap();
    fill(&mut log, 1, 50, 300);
    let before = contents(&log);
    drop(log);
    disk.crash(Crash::LoseAll);
    let log = open(&disk).unwrap();
    assert_eq!(contents(&log), before);
    assert_eq!(log.recovery(), Recovery { frames: 50, torn_bytes: 0 });
    assert!(log.segments.len() > 3, "several segments were used");
}

#[test]
fn one_batch_costs_one_sync() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk).unwrap();
    fill(&mut log, 1, 1, 10);
    let before = disk.syncs();
    let entries: Vec<Entry> = (2..=9).map(|index| entry(index, 1, 100)).collect();
    log.append(&Batch { hard_state: hard_state(2, 1, 1), entries: &entries, reset: None }).unwrap();
    assert_eq!(disk.syncs(), before + 1);
}

#[test]
fn a_prepared_segment_makes_the_change_over_cheap() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk).unwrap();
    fill(&mut log, 1, 9, 300);
    assert_eq!(log.segments.len(), 1);
    for _ in 0..10 {
        log.prepare_spare(512).unwrap();
    }
    let before = disk.changes();
    fill(&mut log, 10, 11, 300);
    assert_eq!(log.segments.len(), 2);
    // Twice write and sync; and for the change-over header, sync, rename, directory, and the end of the old one.
    assert_eq!(disk.changes() - before, 9);
    drop(log);
    assert_eq!(open(&disk).unwrap().last_index(), 11);
}

#[test]
fn later_entries_replace_earlier_ones() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk).unwrap();
    fill(&mut log, 1, 10, 50);
    let batch = Batch { hard_state: hard_state(2, 2, 4), entries: &[entry(6, 2, 9)], reset: None };
    log.append(&batch).unwrap();
    let before = contents(&log);
    assert_eq!(log.last_index(), 6);
    drop(log);
    assert_eq!(contents(&open(&disk).unwrap()), before);
}

#[test]
fn compaction_drops_whole_segments_and_keeps_the_rest() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk).unwrap();
    fill(&mut log, 1, 50, 300);
    let segments = log.segments.len();
    log.compact(30).unwrap();
    assert!(log.segments.len() < segments);
    assert_eq!((log.first_index(), log.last_index()), (31, 50));
    assert_eq!(log.term(30), Some(1));
    assert_eq!(log.term(29), None);
    drop(log);
    disk.crash(Crash::LoseAll);
    let mut log = Log::open(disk, OWNER, SEGMENT).unwrap();
    log.adopt_snapshot(30, 1).unwrap();
    assert!(log.first_index() <= 31);
    assert_eq!(log.last_index(), 50);
}

/// The oldest segment that is left may begin with what a former leader had not committed, and a later one cut back
/// beyond the segment's beginning.
#[test]
fn entries_that_were_cut_back_are_no_beginning_of_what_is_left() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk).unwrap();
    // Nothing is committed from 4 on, and that goes on in the second segment.
    let mut append = |term, commit, entries: &[Entry]| {
        log.append(&Batch { hard_state: hard_state(term, 1, commit), entries, reset: None }).unwrap();
        log.segments.len()
    };
    let mut last = 0;
    while append(1, last.min(3), &[entry(last + 1, 1, 300)]) == 1 {
        last += 1;
    }
    append(2, last + 1, &(4..=last + 4).map(|index| entry(index, 2, 9)).collect::<Vec<_>>());
    append(2, last + 4, &[entry(last + 5, 2, 9)]);
    log.compact(last + 2).unwrap();
    assert_eq!(log.segments.len(), 1, "the first segment is gone");
    let before = contents(&log);
    drop(log);
    let mut log = Log::open(disk, OWNER, SEGMENT).unwrap();
    log.adopt_snapshot(last + 2, 2).unwrap();
    log.check_commit().unwrap();
    log.compact(last + 2).unwrap();
    assert_eq!(contents(&log), before);
    assert_eq!(log.entry(last + 4).map(|entry| entry.index), Some(last + 4));
}

#[test]
fn a_log_that_starts_behind_the_snapshot_is_refused() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk).unwrap();
    fill(&mut log, 1, 50, 300);
    log.compact(30).unwrap();
    drop(log);
    let mut log = Log::open(disk, OWNER, SEGMENT).unwrap();
    let error = log.adopt_snapshot(5, 1).unwrap_err().to_string();
    assert!(error.contains("what lies between is missing"), "{error}");
}

#[test]
fn a_snapshot_newer_than_the_log_replaces_it_for_good() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk).unwrap();
    fill(&mut log, 1, 5, 50);
    drop(log);
    let mut log = Log::open(disk.clone(), OWNER, SEGMENT).unwrap();
    log.adopt_snapshot(20, 3).unwrap();
    assert_eq!((log.first_index(), log.last_index(), log.hard_state().commit), (21, 20, 20));
    log.append(&Batch { hard_state: hard_state(3, 0, 20), entries: &[entry(21, 3, 5)], reset: None })
        .unwrap();
    drop(log);
    let mut log = Log::open(disk, OWNER, SEGMENT).unwrap();
    log.adopt_snapshot(20, 3).unwrap();
    assert_eq!((log.first_index(), log.last_index()), (21, 21));
}

#[test]
fn a_full_disk_is_a_clear_error_and_the_log_stays_readable() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk).unwrap();
    fill(&mut log, 1, 9, 300);
    disk.set_space(Some(SEGMENT + 1000));
    for _ in 0..10 {
        log.prepare_spare(512).unwrap();
    }
    let batch = Batch { hard_state: hard_state(1, 1, 1), entries: &[entry(10, 1, 3000)], reset: None };
    let error = log.append(&batch).unwrap_err();
    assert!(matches!(error, ConsensusError::DiskFull { .. }), "{error}");
    assert_eq!(log.entries().len(), 9);
    drop(log);
    let mut log = open(&disk).unwrap();
    assert_eq!(log.last_index(), 9);
    disk.set_space(None);
    log.append(&batch).unwrap();
    assert_eq!(open(&disk).unwrap().last_index(), 10);
}

#[test]
fn a_failed_sync_is_final() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk).unwrap();
    fill(&mut log, 1, 3, 30);
    disk.fail_next_sync();
    let batch = Batch { hard_state: hard_state(1, 1, 1), entries: &[entry(4, 1, 30)], reset: None };
    let error = log.append(&batch).unwrap_err();
    assert!(matches!(error, ConsensusError::SyncFailed { .. }), "{error}");
    assert!(log.append(&batch).is_err(), "never again");
    assert!(log.mark(&hard_state(1, 1, 1)).is_err(), "not even a mark");
    drop(log);
    disk.crash(Crash::LoseAll);
    assert_eq!(open(&disk).unwrap().last_index(), 3);
}

#[test]
fn another_replicas_segments_are_refused() {
    let disk = MemoryDisk::new();
    fill(&mut open(&disk).unwrap(), 1, 3, 30);
    let error = Log::open(disk, Owner { cluster: 7, replica: 2 }, SEGMENT).unwrap_err();
    assert!(matches!(error, ConsensusError::WrongIdentity { found_replica: 1, .. }), "{error}");
}

#[test]
fn a_missing_segment_is_damage_even_the_last_one() {
    let disk = MemoryDisk::new();
    fill(&mut open(&disk).unwrap(), 1, 50, 300);
    let count = disk.list().unwrap().len() as u64;
    assert!(count > 3);
    // The first one may have been dropped behind a snapshot, which whoever opens the log knows.
    for missing in 2..=count {
        let mut copy = all_of(&disk);
        copy.remove(&segment_name(missing)).unwrap();
        let error = open(&copy).unwrap_err();
        assert!(matches!(error, ConsensusError::Corrupt { .. }), "{missing}: {error}");
    }
}

/// The power goes after the next segment was made, before the one before says so.
#[test]
fn a_segment_that_was_not_closed_is_closed_at_the_next_start() {
    let mut found = 0;
    for crash_at in 0..12 {
        let disk = MemoryDisk::new();
        let mut log = open(&disk).unwrap();
        fill(&mut log, 1, 8, 300);
        disk.crash_after(crash_at);
        let large = Batch { hard_state: hard_state(1, 1, 8), entries: &[entry(9, 1, 3000)], reset: None };
        let _the_power_goes_before_it_ends = log.append(&large);
        drop(log);
        disk.crash(Crash::LoseAll);
        if disk.list().unwrap().iter().any(|file| file.name == segment_name(2)) {
            found += 1;
            drop(open(&disk).unwrap());
            let mut without = all_of(&disk);
            without.remove(&segment_name(2)).unwrap();
            let error = open(&without).unwrap_err();
            assert!(matches!(error, ConsensusError::Corrupt { .. }), "crash {crash_at}: {error}");
        }
    }
    assert!(found > 1, "only {found} crashes left a second segment");
}

/// Every byte of every file: a flipped bit is either harmless or refused; never is anything lost or changed silently.
#[test]
fn any_flipped_bit_is_harmless_or_refused() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk).unwrap();
    fill(&mut log, 1, 14, 300);
    // The mark proves that even the last record had been safe.
    log.mark(&hard_state(1, 1, 14)).unwrap();
    let before = contents(&log);
    drop(log);
    let mut refused = 0;
    let files = disk.list().unwrap();
    for file in &files {
        for offset in 0..file.length {
            let copy = all_of(&disk);
            let bit = u8::try_from(offset % 8).unwrap();
            assert!(copy.flip_bit(&file.name, offset, bit));
            match open(&copy) {
                Ok(log) => assert_eq!(contents(&log), before, "{} byte {offset}", file.name),
                Err(ConsensusError::Corrupt { .. }) => refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!(refused > 14 * 300, "only {refused} were noticed");
}

/// A write whose first sector was lost: the rest of it stands behind the last record until the next start.
#[test]
fn rests_of_a_torn_write_are_gone_for_good_after_the_next_start() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk).unwrap();
    fill(&mut log, 1, 3, 100);
    let before = contents(&log);
    let name = log.last_segment().name.clone();
    let tail = usize::try_from(log.tail).unwrap();
    drop(log);
    let mut other = disk.clone();
    other.write_at(&name, log_sector_after(tail), &[0xa5; 1500]).unwrap();
    disk.crash(Crash::KeepAll);

    let log = open(&disk).unwrap();
    assert!(log.recovery().torn_bytes >= 1500, "{:?}", log.recovery());
    assert_eq!((contents(&log), log.tail), (before.clone(), tail as u64));
    drop(log);
    // Even a power cut right after the start brings nothing of it back.
    disk.crash(Crash::LoseAll);
    let bytes = disk.read(&name).unwrap();
    assert!(bytes[tail..].iter().all(|byte| *byte == 0), "the rest is still on the disk");
    let mut log = open(&disk).unwrap();
    assert_eq!(log.recovery(), Recovery { frames: 3, torn_bytes: 0 }, "nothing was torn this time");
    fill(&mut log, 4, 4, 100);
    drop(log);
    disk.crash(Crash::LoseAll);
    let log = open(&disk).unwrap();
    assert_eq!(log.recovery(), Recovery { frames: 4, torn_bytes: 0 });
    assert_eq!(log.last_index(), 4);
}

fn log_sector_after(offset: usize) -> u64 {
    (offset as u64).next_multiple_of(512)
}

/// The power goes right after the next segment was made and before its first record: nothing but the older segments
/// knows the vote then, so a snapshot must not drop them.
#[test]
fn compaction_behind_an_empty_segment_keeps_the_vote() {
    let voted = hard_state(9, 2, 8);
    let mut found = false;
    for crash_at in 0..12 {
        let disk = MemoryDisk::new();
        let mut log = open(&disk).unwrap();
        fill(&mut log, 1, 8, 300);
        log.append(&Batch { hard_state: voted.clone(), ..Batch::default() }).unwrap();
        assert_eq!(log.segments.len(), 1);
        disk.crash_after(crash_at);
        let large = Batch { hard_state: voted.clone(), entries: &[entry(9, 9, 3000)], reset: None };
        let _the_power_goes_before_it_ends = log.append(&large);
        drop(log);
        disk.crash(Crash::LoseAll);

        let mut log = open(&disk).unwrap();
        if log.segments.back().is_none_or(|last| last.frames > 0) {
            continue;
        }
        found = true;
        log.compact(8).unwrap();
        drop(log);
        disk.crash(Crash::LoseAll);
        let mut log = Log::open(disk.clone(), OWNER, SEGMENT).unwrap();
        log.adopt_snapshot(8, 1).unwrap();
        assert_eq!(*log.hard_state(), voted, "crash {crash_at}");
        // Once a record is there, the older segment may go, and the vote stays.
        log.append(&large).unwrap();
        log.compact(8).unwrap();
        assert_eq!(log.segments.len(), 1);
        drop(log);
        disk.crash(Crash::LoseAll);
        let mut log = Log::open(disk, OWNER, SEGMENT).unwrap();
        log.adopt_snapshot(8, 1).unwrap();
        assert_eq!((log.hard_state().clone(), log.last_index()), (voted.clone(), 9));
    }
    assert!(found, "no crash left an empty segment");
}

/// A copy with unsynced changes included, as after a crash of the process alone.
fn all_of(disk: &MemoryDisk) -> MemoryDisk {
    let mut copy = MemoryDisk::new();
    for file in disk.list().unwrap() {
        copy.create(&file.name).unwrap();
        copy.write_at(&file.name, 0, &disk.read(&file.name).unwrap()).unwrap();
    }
    copy.crash(Crash::KeepAll);
    copy
}

#[test]
fn damage_names_file_offset_index_and_the_way_out() {
    let disk = MemoryDisk::new();
    fill(&mut open(&disk).unwrap(), 1, 5, 100);
    assert!(disk.flip_bit(&segment_name(1), SEGMENT_HEADER + 2 * 224 + 100, 3));
    let error = open(&disk).unwrap_err();
    let ConsensusError::Corrupt { file, offset, index, .. } = &error else { panic!("{error}") };
    assert_eq!((file.as_str(), *index), ("log-0000000000000001.segment", 3));
    assert!(*offset > SEGMENT_HEADER && *offset < SEGMENT_HEADER + 3 * 224, "{offset}");
    assert!(error.to_string().contains("move its directory away"), "{error}");
}

#[test]
fn a_term_that_no_log_reaches_is_damage_whatever_its_checksum_says() {
    let disk = MemoryDisk::new();
    let state = hard_state(u64::MAX, 1, 0);
    let mut log = open(&disk).unwrap();
    log.append(&Batch { hard_state: state, entries: &[entry(1, 1, 10)], reset: None }).unwrap();
    let error = open(&disk).unwrap_err();
    assert!(error.to_string().contains("which no log reaches"), "{error}");
}
