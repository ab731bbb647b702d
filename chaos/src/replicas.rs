//! What a replica has of its own in a lab: its network, and, where a scenario wants them, a disk that can be full, one
//! that can stall, be slow and fail, or a wall clock that can jump.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, ensure};
use defib_lab::cluster::Program;
use defib_lab::cluster::site::through;
use defib_lab::needs;

use crate::disk::{Disk, Health};
use crate::linux;
use crate::scenario::Lab;

/// Mounts a disk of its own for a replica's data, once, and becomes the replica.
const WITH_DISK: &str =
    "mountpoint -q \"$1\" || mount -t tmpfs -o \"size=$2\" tmpfs \"$1\"; shift 2; exec \"$@\"";
/// Debian's package of the library that gives a process a wall clock of its own.
const CLOCKS: &str = "libfaketime";

/// The replicas' own things.
#[derive(Debug)]
pub(crate) struct Replicas {
    directory: PathBuf,
    disk_mib: Option<u32>,
    shaky_disks: bool,
    own_clocks: bool,
    disks: Mutex<BTreeMap<u64, Disk>>,
}

/// That everything is here that replicas and guests of this lab want.
///
/// # Errors
/// What is missing, and how to get it.
pub(crate) fn check(lab: &Lab) -> anyhow::Result<()> {
    if lab.own_clocks {
        library()?;
    }
    if lab.linux_guests > 0 {
        linux::find()?;
    }
    ensure!(
        !lab.shaky_disks || Path::new("/dev/fuse").exists(),
        "disks that stall and fail want /dev/fuse, and this kernel has none"
    );
    Ok(())
}

/// The library, in the variant for programs with threads.
fn library() -> anyhow::Result<PathBuf> {
    let places = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let files = places.map(|place| place.path().join("faketime/libfaketimeMT.so.1"));
    files.into_iter().find(|file| file.is_file()).with_context(|| {
        format!("clocks that jump want {CLOCKS}; on Debian: apt-get install --no-install-recommends {CLOCKS}")
    })
}

impl Replicas {
    /// In the directory of their cluster, as the lab wants them.
    pub(crate) fn new(directory: &Path, lab: &Lab) -> Self {
        Self {
            directory: directory.to_owned(),
            disk_mib: lab.disk_mib,
            shaky_disks: lab.shaky_disks,
            own_clocks: lab.own_clocks,
            disks: Mutex::default(),
        }
    }

    fn own(&self, id: u64, name: &str) -> PathBuf {
        self.directory.join(format!("replica-{id}")).join(name)
    }

    /// A replica's program as it is started among its own things.
    ///
    /// # Errors
    /// When it can't have them.
    pub(crate) fn program(&self, id: u64, mut program: Program) -> anyhow::Result<Program> {
        let data = self.own(id, "data");
        if self.own_clocks {
            self.set_clock(id, 0)?;
            let words = [
                format!("LD_PRELOAD={}", library()?.display()),
                format!("FAKETIME_TIMESTAMP_FILE={}", self.own(id, "clock").display()),
                // A clock that jumps is looked at each time.
                "FAKETIME_NO_CACHE=1".to_owned(),
                // What measures time does not jump on any machine.
                "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
            ];
            program = through(Path::new("/usr/bin/env"), &words.each_ref().map(String::as_str), program);
        }
        if self.shaky_disks {
            let content = self.own(id, "content");
            fs::create_dir_all(&content)?;
            let disk = Disk::mount(&data, &content)?;
            self.disks.lock().unwrap_or_else(PoisonError::into_inner).insert(id, disk);
        }
        if let Some(mib) = self.disk_mib {
            let words = ["-c", WITH_DISK, "disk", &data.display().to_string(), &format!("{mib}m")];
            program = through(Path::new("/bin/sh"), &words, program);
        }
        let nsenter = needs::find("nsenter").context("there is no nsenter (util-linux)")?;
        Ok(through(&nsenter, &[&format!("--net=/run/netns/r{id}")], program))
    }

    /// From now on a replica's disk is like this.
    ///
    /// # Errors
    /// When it has no such disk.
    pub(crate) fn set_disk(&self, id: u64, health: Health) -> anyhow::Result<()> {
        let disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        disks.get(&id).with_context(|| format!("replica {id} has no disk of its own"))?.set(health);
        Ok(())
    }

    /// All disks are well.
    pub(crate) fn mend_disks(&self) {
        for disk in self.disks.lock().unwrap_or_else(PoisonError::into_inner).values() {
            disk.set(Health::Well);
        }
    }

    /// From now on a replica's wall clock is so many seconds before the right time.
    ///
    /// # Errors
    /// When that can't be written.
    pub(crate) fn set_clock(&self, id: u64, seconds: i64) -> anyhow::Result<()> {
        let (new, file) = (self.own(id, "clock.new"), self.own(id, "clock"));
        fs::write(&new, format!("{seconds:+}\n")).and_then(|()| fs::rename(&new, &file))?;
        Ok(())
    }
}
