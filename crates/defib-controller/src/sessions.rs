//! The number of this replica's life as an observer: larger than that of every life before, whatever the wall
//! clock says.
//!
//! The newest number is kept in a small file beside the log and grows by one with every start. Should the file be lost
//! or unreadable, a number is guessed from the wall clock; and should the ledger hold a larger one nevertheless, it is
//! written down and the process ends, so that its next start takes a number behind that.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use defib_model::ReplicaId;

const FILE: &str = "observer-session";

/// This life of a replica as an observer.
#[derive(Debug, Clone)]
pub struct Session {
    /// Whose.
    pub replica: ReplicaId,
    /// Its number.
    pub number: u64,
    file: PathBuf,
}

impl Session {
    /// Takes the next number. The caller holds the directory's lock, and the number is on the disk when this returns.
    ///
    /// # Errors
    /// When the disk does not take it: without it the next life might come again with the same number.
    pub fn begin(replica: ReplicaId, directory: &Path, wall: SystemTime) -> anyhow::Result<Self> {
        let file = directory.join(FILE);
        let last = match fs::read_to_string(&file) {
            Ok(text) => text.trim().parse::<u64>().ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "the number of the last session can't be read");
                None
            }
        };
        let number = last.map_or_else(|| guess(wall), |last| last.saturating_add(1));
        write(&file, number)?;
        Ok(Self { replica, number, file })
    }

    /// What the ledger holds for this replica.
    ///
    /// # Errors
    /// When that is a later life than this one, which then can never observe: the process must end, and start anew.
    pub fn check(&self, held: Option<u64>) -> anyhow::Result<()> {
        let Some(held) = held.filter(|held| *held > self.number) else { return Ok(()) };
        write(&self.file, held)?;
        anyhow::bail!(
            "r{} begins session {}, but the log already holds session {held} of it: {} was lost, or its data directory \
             was put back from a copy. The next start takes a later number and goes on",
            self.replica,
            self.number,
            self.file.display()
        )
    }
}

/// Where no number is known: later than those of earlier lives if the clock never went back.
fn guess(wall: SystemTime) -> u64 {
    let millis = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    u64::try_from(millis).unwrap_or(u64::MAX >> 16) << 16
}

fn write(file: &Path, number: u64) -> anyhow::Result<()> {
    let temporary = file.with_extension("new");
    let attempt = || -> io::Result<()> {
        let mut new = File::create(&temporary)?;
        new.write_all(format!("{number}\n").as_bytes())?;
        new.sync_all()?;
        fs::rename(&temporary, file)?;
        file.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    };
    attempt().map_err(|error| {
        anyhow::anyhow!(
            "{}: {error}; the replica must remember its session there: mend the disk or its permissions",
            file.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ME: ReplicaId = ReplicaId(2);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn numbers_grow_even_if_the_clock_jumps_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut last = 0;
        for wall in [2_000_000_000, 1_000_000_000, 0, 3_000_000_000] {
            let session = Session::begin(ME, directory.path(), at(wall)).expect("the disk takes it");
            assert!(session.number > last, "{} after {last}", session.number);
            last = session.number;
        }
        assert_eq!(last, (2_000_000_000_000 << 16) + 3, "the clock counts once only");
    }

    #[test]
    fn a_lost_or_garbled_number_is_made_good_for_by_the_log() {
        let directory = tempfile::tempdir().expect("a directory");
        let before = Session::begin(ME, directory.path(), at(2_000_000_000)).expect("the disk takes it");
        for garbage in [None, Some("?"), Some("")] {
            let file = directory.path().join(FILE);
            match garbage {
                None => fs::remove_file(&file).expect("it is there"),
                Some(garbage) => fs::write(&file, garbage).expect("the disk takes it"),
            }
            // The clock went back meanwhile, so the guess is too small.
            let lost = Session::begin(ME, directory.path(), at(1)).expect("the disk takes it");
            assert!(lost.check(None).is_ok() && lost.check(Some(lost.number)).is_ok());
            let error = lost.check(Some(before.number)).expect_err("it can't observe").to_string();
            assert!(error.contains("next start takes a later number"), "{error}");
            let healed = Session::begin(ME, directory.path(), at(1)).expect("the disk takes it");
            assert_eq!(healed.number, before.number + 1);
            assert!(healed.check(Some(before.number)).is_ok());
        }
    }

    #[test]
    fn a_disk_that_keeps_nothing_is_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("observer-session.new")).expect("it is in the way");
        let error = Session::begin(ME, directory.path(), at(1)).expect_err("nothing was kept").to_string();
        assert!(error.contains("observer-session") && error.contains("mend the disk"), "{error}");
    }
}
