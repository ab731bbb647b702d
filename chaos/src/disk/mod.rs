//! A replica's disk that can stall, be slow, and fail: a file system of our own (FUSE) above a directory. What is read
//! comes from there; whoever writes has to pass the disk's health first.

mod files;
mod health;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use fuser::{BackgroundSession, Config, MountOption};
use nix::mount::{MntFlags, umount2};

use self::files::Files;
pub(crate) use self::health::Health;
use self::health::Ward;

/// A disk. It is gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Disk {
    at: PathBuf,
    ward: Arc<Ward>,
    /// Serves it, in a thread of this process, until dropped.
    _session: BackgroundSession,
}

impl Disk {
    /// Mounts a disk at a directory that exists, with what is in another one.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub(crate) fn mount(at: &Path, content: &Path) -> anyhow::Result<Self> {
        let ward = Arc::new(Ward::default());
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("defib-chaos".to_owned())];
        let files = Files::new(content, Arc::clone(&ward));
        let session = fuser::spawn_mount(files, at, &config)
            .with_context(|| format!("no disk can be mounted at {} (is /dev/fuse there?)", at.display()))?;
        Ok(Self { at: at.to_owned(), ward, _session: session })
    }

    /// From now on it is like this.
    pub(crate) fn set(&self, health: Health) {
        self.ward.set(health);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whoever waits for it could not end.
        self.ward.set(Health::Broken);
        // At once, also where somebody still has a file open.
        if let Err(error) = umount2(&self.at, MntFlags::MNT_DETACH) {
            tracing::warn!(at = %self.at.display(), %error, "a disk is not taken away");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write as _;
    use std::time::Duration;

    use super::*;

    /// As root, where the kernel has FUSE; else `None`, loudly.
    fn mounted() -> Option<(tempfile::TempDir, Disk)> {
        let room = tempfile::tempdir().unwrap();
        for name in ["disk", "content"] {
            fs::create_dir(room.path().join(name)).unwrap();
        }
        if !nix::unistd::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            eprintln!("SKIPPED: a disk of our own wants root and /dev/fuse");
            return None;
        }
        let disk = Disk::mount(&room.path().join("disk"), &room.path().join("content")).unwrap();
        Some((room, disk))
    }

    #[test]
    fn files_are_what_they_are_elsewhere() {
        let Some((room, _disk)) = mounted() else { return };
        let at = |name: &str| room.path().join("disk").join(name);
        let mut log = File::options().create_new(true).read(true).write(true).open(at("log")).unwrap();
        log.write_all(&[7; 300_000]).unwrap();
        log.sync_data().unwrap();
        log.set_len(200_000).unwrap();
        assert!(File::options().create_new(true).write(true).open(at("log")).is_err());
        fs::create_dir(at("sub")).unwrap();
        fs::write(at("sub/snapshot.new"), b"content").unwrap();
        fs::rename(at("sub/snapshot.new"), at("sub/snapshot")).unwrap();
        File::open(at("sub")).unwrap().sync_all().unwrap();
        assert_eq!(fs::read(at("log")).unwrap(), vec![7; 200_000]);
        assert_eq!(fs::read(room.path().join("content/sub/snapshot")).unwrap(), b"content");
        // A file that was removed is still there for whoever has it open.
        fs::remove_file(at("log")).unwrap();
        log.write_all(b"more").unwrap();
        let mut names: Vec<_> =
            fs::read_dir(at("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["sub"]);
    }

    #[test]
    fn a_broken_disk_fails_what_is_written_and_a_stalled_one_holds_it_up() {
        let Some((room, disk)) = mounted() else { return };
        let path = room.path().join("disk/log");
        let mut log = File::create(&path).unwrap();
        log.write_all(b"before").unwrap();
        disk.set(Health::Broken);
        assert_eq!(log.write_all(b"x").unwrap_err().raw_os_error(), Some(libc::EIO));
        assert_eq!(log.sync_data().unwrap_err().raw_os_error(), Some(libc::EIO));
        assert_eq!(fs::read(&path).unwrap(), b"before");
        disk.set(Health::Stalled);
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let writer = std::thread::spawn(move || tell.send(log.write_all(b" and after").is_ok()));
        assert!(told.recv_timeout(Duration::from_millis(100)).is_err());
        disk.set(Health::Well);
        assert_eq!(told.recv_timeout(Duration::from_secs(60)), Ok(true));
        writer.join().unwrap().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"before and after");
    }

    #[test]
    fn a_disk_that_stalls_and_is_taken_away_lets_its_writer_go() {
        let Some((room, disk)) = mounted() else { return };
        let mut log = File::create(room.path().join("disk/log")).unwrap();
        disk.set(Health::Stalled);
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let writer = std::thread::spawn(move || tell.send(log.write_all(b"x").is_err()));
        assert!(told.recv_timeout(Duration::from_millis(100)).is_err());
        drop(disk);
        assert_eq!(told.recv_timeout(Duration::from_secs(60)), Ok(true));
        writer.join().unwrap().unwrap();
    }
}
