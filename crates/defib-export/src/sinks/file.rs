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
        Self { place: Place { path, rotate_bytes, keep }, open: None }
    }

    /// When it returns, the lines are on the disk.
    pub(super) async fn deliver(&mut self, lines: &[Line]) -> Result<(), SinkError> {
        let texts: Vec<String> = lines.iter().map(|line| line.text.clone()).collect();
        let (place, open) = (self.place.clone(), self.open.take());
        let written = tokio::task::spawn_blocking(move || place.write(open, &texts)).await;
        let failed = |error: &dyn std::fmt::Display| {
            SinkError::new(format!("{} can't be written: {error}", self.place.path.display()))
        };
        match written {
            Ok(Ok(open)) => {
                self.open = Some(open);
                Ok(())
            }
            Ok(Err(error)) => Err(failed(&error)),
            Err(error) => Err(failed(&error)),
        }
    }

    pub(super) fn reset(&mut self) {
        self.open = None;
    }
}

impl Place {
    fn write(&self, open: Option<Open>, texts: &[String]) -> io::Result<Open> {
        // Others may have moved the file away: then a new one is begun.
        let mut open = match open.filter(|open| self.is_still(&open.file)) {
            Some(open) => open,
            None => self.open()?,
        };
        let mut buffer = String::new();
        for text in texts {
            let due = open.bytes.saturating_add((buffer.len() + text.len() + 1) as u64);
            if due > self.rotate_bytes && (open.bytes > 0 || !buffer.is_empty()) {
                open.append(&mut buffer)?;
                open.file.sync_data()?;
                self.rotate()?;
                open = self.open()?;
            }
            buffer.push_str(text);
            buffer.push('\n');
        }
        open.append(&mut buffer)?;
        open.file.sync_data()?;
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
    fn append(&mut self, buffer: &mut String) -> io::Result<()> {
        self.file.write_all(buffer.as_bytes())?;
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
