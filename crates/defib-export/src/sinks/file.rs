//! A file, one event per line, put aside when it is large.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::{Line, SinkError};

/// A file that is written to.
#[derive(Debug)]
pub(super) struct FileSink {
    place: Place,
    open: Option<Open>,
    /// The last line of a failed batch that stands in a file which was put aside: the batch comes again, the lines up
    /// to this one must not.
    passed: Option<String>,
}

#[derive(Debug, Clone)]
struct Place {
    path: PathBuf,
    rotate_bytes: u64,
    keep: u32,
}

#[derive(Debug)]
struct Open {
    file: File,
    bytes: u64,
}

impl FileSink {
    pub(super) const fn new(path: PathBuf, rotate_bytes: u64, keep: u32) -> Self {
        Self { place: Place { path, rotate_bytes, keep }, open: None, passed: None }
    }

    /// When it returns, the lines are on the disk.
    pub(super) async fn deliver(&mut self, lines: &[Line]) -> Result<(), SinkError> {
        let mut texts: Vec<String> = lines.iter().map(|line| line.text.clone()).collect();
        if let Some(at) =
            self.passed.as_ref().and_then(|passed| texts.iter().rposition(|text| text == passed))
        {
            texts.drain(..=at);
        }
        let (place, open) = (self.place.clone(), self.open.take());
        let written = tokio::task::spawn_blocking(move || {
            let mut aside = 0;
            place.write(open, &texts, &mut aside).map_err(|error| (error, texts.drain(..aside).next_back()))
        })
        .await;
        match written {
            Ok(Ok(open)) => {
                self.open = Some(open);
                self.passed = None;
                Ok(())
            }
            Ok(Err((error, passed))) => {
                if passed.is_some() {
                    self.passed = passed;
                }
                Err(self.place.failed(&error))
            }
            Err(error) => Err(SinkError::new(format!("{}: {error}", self.place.path.display()))),
        }
    }

    pub(super) fn reset(&mut self) {
        self.open = None;
    }
}

impl Place {
    fn failed(&self, error: &io::Error) -> SinkError {
        let remedy = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                "make room on its file system"
            }
            _ => "mend the path, its permissions or the disk",
        };
        let path = self.path.display();
        SinkError::new(format!(
            "{path} can't be written: {error}; {remedy}: the events are kept, and it is tried again"
        ))
    }

    /// Appends `texts`; `aside` is how many of them stand in files that were put aside, also when it fails. Of the
    /// others nothing stands then.
    fn write(&self, open: Option<Open>, texts: &[String], aside: &mut usize) -> io::Result<Open> {
        // Others may have moved the file away: then a new one is begun.
        let mut open = match open.filter(|open| self.is_still(&open.file)) {
            Some(open) => open,
            None => self.open()?,
        };
        let mut buffer = String::new();
        for (at, text) in texts.iter().enumerate() {
            let due = open.bytes.saturating_add((buffer.len() + text.len() + 1) as u64);
            if due > self.rotate_bytes && (open.bytes > 0 || !buffer.is_empty()) {
                open.append(&mut buffer)?;
                self.rotate()?;
                *aside = at;
                open = self.open()?;
            }
            buffer.push_str(text);
            buffer.push('\n');
        }
        open.append(&mut buffer)?;
        Ok(open)
    }

    fn is_still(&self, file: &File) -> bool {
        match (fs::metadata(&self.path), file.metadata()) {
            (Ok(there), Ok(held)) => (there.dev(), there.ino()) == (held.dev(), held.ino()),
            _ => false,
        }
    }

    /// Opens to append. A last line without an end was cut by a crash and never reported as delivered: it goes.
    fn open(&self) -> io::Result<Open> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file =
            OpenOptions::new().create(true).read(true).append(true).mode(0o640).open(&self.path)?;
        let bytes = file.metadata()?.len();
        let whole = end_of_last_line(&mut file, bytes)?;
        if whole < bytes {
            tracing::warn!(path = %self.path.display(), bytes = bytes - whole, "a line that was cut is taken away");
            file.set_len(whole)?;
        }
        sync_folder(&self.path)?;
        Ok(Open { file, bytes: whole })
    }

    /// `path` becomes `path.1`, that becomes `path.2`, and so on.
    fn rotate(&self) -> io::Result<()> {
        let aside = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        if self.keep == 0 {
            fs::remove_file(&self.path)?;
            return sync_folder(&self.path);
        }
        for number in (1..self.keep).rev() {
            match fs::rename(aside(number), aside(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        fs::rename(&self.path, aside(1))?;
        sync_folder(&self.path)
    }
}

impl Open {
    /// When it returns, all of it is on the disk, or nothing of it is in the file: it comes again from its beginning.
    fn append(&mut self, buffer: &mut String) -> io::Result<()> {
        if let Err(error) = self.file.write_all(buffer.as_bytes()).and_then(|()| self.file.sync_data()) {
            self.file.set_len(self.bytes)?;
            return Err(error);
        }
        self.bytes = self.bytes.saturating_add(buffer.len() as u64);
        buffer.clear();
        Ok(())
    }
}

/// How many bytes of the file are whole lines.
fn end_of_last_line(file: &mut File, bytes: u64) -> io::Result<u64> {
    const STEP: u64 = 64 << 10;
    let mut end = bytes;
    while end > 0 {
        let begin = end.saturating_sub(STEP);
        let mut block = vec![0; usize::try_from(end - begin).unwrap_or(0)];
        file.seek(SeekFrom::Start(begin))?;
        file.read_exact(&mut block)?;
        if let Some(at) = block.iter().rposition(|byte| *byte == b'\n') {
            return Ok(begin + at as u64 + 1);
        }
        end = begin;
    }
    Ok(0)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if folder != Path::new("") => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigHandler, Signal, signal},
    };

    use super::*;

    /// A limit on the size of files stands for a disk that is full: the kernel takes a part, then nothing more.
    #[test]
    fn of_a_batch_that_does_not_fit_nothing_stands_twice() {
        const ROOM: u64 = 1 << 20;
        #[expect(
            unsafe_code,
            reason = "the process must be told of the limit instead of being killed for it"
        )]
        // SAFETY: the signal is ignored, no handler runs.
        unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.json");
        let place = Place { path: path.clone(), rotate_bytes: 1 << 30, keep: 1 };
        let texts: Vec<String> = (0..2048).map(|number| format!("{number:01023}")).collect();
        let open = place.write(None, &texts[..10], &mut 0).unwrap();

        let (soft, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        setrlimit(Resource::RLIMIT_FSIZE, ROOM, hard).unwrap();
        let error = place.write(Some(open), &texts[10..], &mut 0).unwrap_err();
        let again = place.write(None, &texts[10..], &mut 0);
        // The last line is larger than the room, those before it fill files that are put aside.
        let turned = Place { path: directory.path().join("turned.json"), rotate_bytes: 200 << 10, keep: 9 };
        let (mut many, mut aside) = (texts[..250].to_vec(), 0);
        many.push("x".repeat(2 << 20));
        let too_large = turned.write(None, &many, &mut aside);
        setrlimit(Resource::RLIMIT_FSIZE, soft, hard).unwrap();
        assert!(again.is_err());
        assert!(too_large.is_err());
        assert_eq!((aside, fs::metadata(&turned.path).unwrap().len()), (250, 0));
        let said = place.failed(&error).to_string();
        assert!(said.contains("events.json") && said.contains("make room"), "{said}");
        assert_eq!(fs::metadata(&path).unwrap().len(), 10 << 10, "nothing of what failed");

        place.write(None, &texts[10..], &mut 0).unwrap();
        let lines: Vec<String> = fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
        assert_eq!(lines, texts);
    }
}
