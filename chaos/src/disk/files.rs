//! Files as they are in a directory, but for the health of the disk.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::health::Ward;

/// So long the kernel may believe what it was told: nobody else changes these files.
const BELIEVED: Duration = Duration::from_secs(1);

/// Which number stands for which file, and what is open.
#[derive(Debug, Default)]
struct Known {
    paths: BTreeMap<u64, PathBuf>,
    numbers: BTreeMap<PathBuf, u64>,
    last_number: u64,
    open: BTreeMap<u64, Arc<File>>,
    last_open: u64,
}

impl Known {
    fn number(&mut self, path: PathBuf) -> u64 {
        if let Some(number) = self.numbers.get(&path) {
            return *number;
        }
        self.last_number += 1;
        self.paths.insert(self.last_number, path.clone());
        self.numbers.insert(path, self.last_number);
        self.last_number
    }

    /// The name means another file from now on.
    fn forget(&mut self, path: &Path) {
        self.numbers.remove(path);
    }

    /// With all that is below it.
    fn rename(&mut self, from: &Path, to: &Path) {
        self.forget(to);
        let below: Vec<(PathBuf, u64)> = self
            .numbers
            .iter()
            .filter(|(path, _)| path.starts_with(from))
            .map(|(path, number)| (path.clone(), *number))
            .collect();
        for (path, number) in below {
            self.numbers.remove(&path);
            let new = match path.strip_prefix(from) {
                Ok(rest) if !rest.as_os_str().is_empty() => to.join(rest),
                _ => to.to_owned(),
            };
            self.paths.insert(number, new.clone());
            self.numbers.insert(new, number);
        }
    }

    fn keep(&mut self, file: File) -> FileHandle {
        self.last_open += 1;
        self.open.insert(self.last_open, Arc::new(file));
        FileHandle(self.last_open)
    }
}

/// The files of a directory.
#[derive(Debug)]
pub(super) struct Files {
    ward: Arc<Ward>,
    known: Mutex<Known>,
}

impl Files {
    /// Those of this one.
    pub(super) fn new(content: &Path, ward: Arc<Ward>) -> Self {
        let mut known = Known::default();
        // The first number is the kernel's for the root.
        known.number(content.to_owned());
        Self { ward, known: Mutex::new(known) }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, number: INodeNo) -> io::Result<PathBuf> {
        self.known().paths.get(&number.0).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn below(&self, parent: INodeNo, name: &OsStr) -> io::Result<PathBuf> {
        Ok(self.path(parent)?.join(name))
    }

    fn file(&self, handle: FileHandle) -> io::Result<Arc<File>> {
        let bad = || io::Error::from_raw_os_error(libc::EBADF);
        self.known().open.get(&handle.0).map(Arc::clone).ok_or_else(bad)
    }

    /// What changes something waits for the disk, and fails with it.
    fn changes<T>(&self, change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if !self.ward.admits() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        change()
    }

    fn entry(&self, path: PathBuf) -> io::Result<FileAttr> {
        let metadata = fs::symlink_metadata(&path)?;
        Ok(attributes(INodeNo(self.known().number(path)), &metadata))
    }

    fn attributes(&self, number: INodeNo, handle: Option<FileHandle>) -> io::Result<FileAttr> {
        // An open file has them also when it has no name any more.
        let open = handle.and_then(|handle| self.file(handle).ok());
        let metadata = match open {
            Some(file) => file.metadata()?,
            None => fs::symlink_metadata(self.path(number)?)?,
        };
        Ok(attributes(number, &metadata))
    }

    fn open_file(&self, path: &Path, options: &OpenOptions) -> io::Result<FileHandle> {
        let file = options.open(path)?;
        Ok(self.known().keep(file))
    }

    fn list(&self, number: INodeNo, offset: u64, reply: &mut ReplyDirectory) -> io::Result<()> {
        let path = self.path(number)?;
        let mut entries = vec![(path.clone(), ".".into()), (path.clone(), "..".into())];
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            entries.push((entry.path(), entry.file_name()));
        }
        // In one order, so that a place in it means the same again.
        entries[2..].sort();
        for (place, (path, name)) in
            entries.into_iter().enumerate().skip(usize::try_from(offset).unwrap_or(0))
        {
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let number = self.known().number(path);
            if reply.add(INodeNo(number), place as u64 + 1, kind(&metadata), name) {
                break;
            }
        }
        Ok(())
    }
}

fn kind(metadata: &Metadata) -> FileType {
    FileType::from_std(metadata.file_type()).unwrap_or(FileType::RegularFile)
}

fn attributes(ino: INodeNo, metadata: &Metadata) -> FileAttr {
    let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    FileAttr {
        ino,
        size: metadata.size(),
        blocks: metadata.blocks(),
        atime: metadata.accessed().unwrap_or(SystemTime::UNIX_EPOCH),
        mtime: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        ctime: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        crtime: SystemTime::UNIX_EPOCH,
        kind: kind(metadata),
        perm: (metadata.mode() & 0o7777) as u16,
        nlink: small(metadata.nlink()),
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: small(metadata.rdev()),
        blksize: small(metadata.blksize()),
        flags: 0,
    }
}

fn how(flags: OpenFlags) -> OpenOptions {
    let mut options = OpenOptions::new();
    let mode = flags.acc_mode();
    options.read(mode != OpenAccMode::O_WRONLY).write(mode != OpenAccMode::O_RDONLY);
    options
}

/// Answers as it went.
macro_rules! answer {
    ($reply:ident, $outcome:expr, $value:pat => $good:expr) => {
        match $outcome {
            Ok($value) => $good,
            Err(error) => $reply.error(Errno::from(error)),
        }
    };
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.below(parent, name).and_then(|path| self.entry(path));
        answer!(reply, found, entry => reply.entry(&BELIEVED, &entry, Generation(0)));
    }

    fn getattr(&self, _: &Request, number: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        answer!(reply, self.attributes(number, handle), found => reply.attr(&BELIEVED, &found));
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let outcome = self.changes(|| {
            if let Some(size) = size {
                match handle.map(|handle| self.file(handle)) {
                    Some(file) => file?.set_len(size)?,
                    None => OpenOptions::new().write(true).open(self.path(number)?)?.set_len(size)?,
                }
            }
            if let Some(mode) = mode {
                fs::set_permissions(self.path(number)?, Permissions::from_mode(mode & 0o7777))?;
            }
            self.attributes(number, handle)
        });
        answer!(reply, outcome, now => reply.attr(&BELIEVED, &now));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let outcome = self.changes(|| {
            let path = self.below(parent, name)?;
            fs::DirBuilder::new().mode(mode & !umask).create(&path)?;
            self.entry(path)
        });
        answer!(reply, outcome, entry => reply.entry(&BELIEVED, &entry, Generation(0)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let outcome = self.changes(|| {
            let path = self.below(parent, name)?;
            fs::remove_file(&path)?;
            self.known().forget(&path);
            Ok(())
        });
        answer!(reply, outcome, () => reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let outcome = self.changes(|| {
            let path = self.below(parent, name)?;
            fs::remove_dir(&path)?;
            self.known().forget(&path);
            Ok(())
        });
        answer!(reply, outcome, () => reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let outcome = self.changes(|| {
            let (from, to) = (self.below(parent, name)?, self.below(new_parent, new_name)?);
            fs::rename(&from, &to)?;
            self.known().rename(&from, &to);
            Ok(())
        });
        answer!(reply, outcome, () => reply.ok());
    }

    fn open(&self, _: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let outcome = self.path(number).and_then(|path| self.open_file(&path, &how(flags)));
        answer!(reply, outcome, handle => reply.opened(handle, FopenFlags::empty()));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let outcome = self.changes(|| {
            let path = self.below(parent, name)?;
            let mut options = how(OpenFlags(flags));
            options.mode(mode & !umask & 0o7777).truncate(flags & libc::O_TRUNC != 0);
            if flags & libc::O_EXCL != 0 {
                options.create_new(true)
            } else {
                options.create(true)
            };
            let handle = self.open_file(&path, &options)?;
            Ok((self.entry(path)?, handle))
        });
        answer!(reply, outcome, (entry, handle) =>
            reply.created(&BELIEVED, &entry, Generation(0), handle, FopenFlags::empty()));
    }

    fn read(
        &self,
        _: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let outcome = self.file(handle).and_then(|file| {
            let mut bytes = vec![0; size as usize];
            let mut had = 0;
            while had < bytes.len() {
                match file.read_at(&mut bytes[had..], offset + had as u64)? {
                    0 => break,
                    more => had += more,
                }
            }
            bytes.truncate(had);
            Ok(bytes)
        });
        answer!(reply, outcome, bytes => reply.data(&bytes));
    }

    fn write(
        &self,
        _: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let outcome = self.changes(|| self.file(handle)?.write_all_at(data, offset));
        // No request is larger than 16 MiB.
        answer!(reply, outcome, () => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.known().open.remove(&handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let outcome = self.changes(|| self.file(handle)?.sync_data());
        answer!(reply, outcome, () => reply.ok());
    }

    fn fsyncdir(&self, _: &Request, number: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let outcome = self.changes(|| File::open(self.path(number)?)?.sync_all());
        answer!(reply, outcome, () => reply.ok());
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        answer!(reply, self.list(number, offset, &mut reply), () => reply.ok());
    }
}
