//! The built-in `process` driver: a VM is a session of ordinary processes.
//!
//! The truth about what runs is the kernel's. Which of its processes are a VM, a file tells that the VM's first process
//! has written before it became the VM's program ([`record`]); so a new agent finds the VMs of its predecessor,
//! whatever they have made of their environment, and never starts what runs. To a VM belong its session, all
//! descendants of that, and whatever carries the VM's marks in its environment: a program that leaves its session,
//! outlives its parents and clears its environment can't be found, and is not for this driver.
#![expect(unsafe_code, reason = "setsid between fork and exec")]

mod ending;
mod output;
mod record;
mod table;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use defib_model::{HostId, Incarnation, Millis, VmId, inventory::Definition};
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::Pid,
};

pub use self::ending::Gone;
pub(crate) use self::table::pidfd;
use self::{
    ending::Ending,
    record::Record,
    table::{INCARNATION, RUN_DIR, Stat, VM, marks},
};

/// What a VM gets of the agent's own environment.
const INHERITED: [&str; 4] = ["PATH", "HOME", "LANG", "TZ"];

/// A VM that runs.
#[derive(Debug)]
pub struct Running {
    record: Record,
    /// Readable once its first process has ended; or another one, where the first had ended before.
    handle: OwnedFd,
    /// Whether its readiness file was seen.
    pub ready: bool,
}

impl Running {
    const fn new(record: Record, handle: OwnedFd) -> Self {
        Self { record, handle, ready: false }
    }

    /// Which incarnation.
    #[must_use]
    pub const fn incarnation(&self) -> Incarnation {
        self.record.incarnation
    }
}

/// The VMs of this host.
#[derive(Debug)]
pub struct ProcessDriver {
    host: HostId,
    run_dir: PathBuf,
    /// Variables of our own environment that VMs get.
    inherited: Vec<String>,
    /// The kernel's, not that of the configuration: numbers of processes count anew with it.
    boot: String,
    vms: BTreeMap<VmId, Running>,
    /// Those of them that are to end.
    ending: BTreeMap<VmId, Ending>,
    /// How long to wait before the next look at them.
    pause: Millis,
}

impl ProcessDriver {
    /// Finds what runs already. VMs will get the variables of `environment` of our own environment, besides what every
    /// program needs.
    ///
    /// # Errors
    /// When the run directory can't be made, or it can't be known what runs.
    pub fn open(host: HostId, run_dir: &Path, environment: &[String]) -> io::Result<Self> {
        fs::create_dir_all(run_dir.join("vms"))?;
        let run_dir = fs::canonicalize(run_dir)?;
        let inherited = INHERITED.iter().map(|name| (*name).to_owned()).chain(environment.iter().cloned());
        let (inherited, boot) = (inherited.collect(), record::kernel_boot()?);
        let mut driver = Self {
            host,
            run_dir,
            inherited,
            boot,
            vms: BTreeMap::new(),
            ending: BTreeMap::new(),
            pause: Millis(0),
        };
        driver.adopt()?;
        Ok(driver)
    }

    /// What was recorded as a VM and has a process left is one that runs: if its leader has ended meanwhile,
    /// [`Self::look`] ends the rest and tells so.
    fn adopt(&mut self) -> io::Result<()> {
        for entry in fs::read_dir(self.run_dir.join("vms"))? {
            let path = entry?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            let (Some(vm), true) =
                (stem.and_then(|stem| VmId::new(stem).ok()), path.extension() == Some("run".as_ref()))
            else {
                continue;
            };
            let found = match record::read(&path, &self.boot)? {
                Some(record) => self.found(&vm, record),
                None => None,
            };
            match found {
                Some(running) => drop(self.vms.insert(vm, running)),
                None => fs::remove_file(&path)?,
            }
        }
        self.adopt_marked();
        Ok(())
    }

    /// What is left of a VM that was recorded.
    fn found(&self, vm: &VmId, record: Record) -> Option<Running> {
        loop {
            let first = if record.lives() {
                record.pid
            } else {
                self.table(std::iter::once(record)).belongings(vm, record).first()?.0
            };
            // One that has ended meanwhile has none, and then another look is taken.
            if let Ok(handle) = pidfd(Pid::from_raw(first)) {
                return Some(Running::new(record, handle));
            }
        }
    }

    /// VMs that an agent without records has started: sessions whose leader has marks. Of a VM that is known, another
    /// incarnation than the newest is ended here and now, since two of them can't both be.
    fn adopt_marked(&mut self) {
        for stat in Stat::all() {
            let Some((vm, incarnation)) = marks(stat.pid, &self.run_dir) else { continue };
            // Of the same incarnation it belongs to what was found, in whichever session it is.
            if stat.session != stat.pid
                || self.vms.get(&vm).is_some_and(|held| held.incarnation() == incarnation)
            {
                continue;
            }
            let Ok(handle) = pidfd(Pid::from_raw(stat.pid)) else { continue };
            let newer = self.vms.get(&vm).is_none_or(|held| held.incarnation() < incarnation);
            let found = Running::new(Record { incarnation, pid: stat.pid, start: stat.start }, handle);
            let loser = if newer { self.vms.insert(vm.clone(), found) } else { Some(found) };
            if let Some(loser) = loser {
                tracing::warn!(%vm, incarnation = %loser.incarnation(), "ended: another incarnation of it is newer");
                self.end(&vm, loser.record);
            }
        }
    }

    /// What runs, or is not gone yet.
    #[must_use]
    pub const fn vms(&self) -> &BTreeMap<VmId, Running> {
        &self.vms
    }

    /// Starts an incarnation. One that runs already is a success.
    ///
    /// # Errors
    /// Why it does not run; nothing of it does then.
    pub fn start(
        &mut self,
        vm: &VmId,
        incarnation: Incarnation,
        definition: &Definition,
    ) -> Result<(), String> {
        if let Some(running) = self.vms.get(vm) {
            return if running.incarnation() == incarnation {
                Ok(())
            } else {
                Err(format!("incarnation {} runs", running.incarnation()))
            };
        }
        if definition.driver != "process" {
            return Err(format!(
                "this host has no driver {:?}: its agent was built or configured without it",
                definition.driver
            ));
        }
        let Some((program, arguments)) = definition.arguments.split_first() else {
            return Err("its definition names no command".into());
        };
        let _ = fs::remove_file(self.ready_file(vm, incarnation));
        let log = |kind: &str| -> io::Result<File> {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(self.run_dir.join("vms").join(format!("{vm}.{kind}")))
        };
        let mut command = Command::new(program);
        // What the agent's environment holds (credentials of BMCs, perhaps) is none of a VM's business.
        command
            .args(arguments)
            .env_clear()
            .envs(self.inherited.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .env(RUN_DIR, &self.run_dir)
            .env(VM, vm.as_str())
            .env(INCARNATION, incarnation.to_string())
            .env("DEFIB_HOST", self.host.as_str())
            .current_dir(&self.run_dir)
            .stdin(Stdio::null());
        let mut spawn = || -> io::Result<Pid> {
            let record = record::begin(&self.record_file(vm), incarnation, &self.boot)?;
            let [out, err] = output::KINDS;
            command.stdout(log(out)?).stderr(log(err)?);
            let file = record.descriptor();
            // SAFETY: between fork and exec only calls happen that are async-signal-safe, and the descriptor is open
            // until `spawn` has returned, since `record` lives as long.
            unsafe {
                command.pre_exec(move || {
                    if libc::setsid() < 0 {
                        return Err(io::Error::last_os_error());
                    }
                    record::complete(BorrowedFd::borrow_raw(file))
                });
            }
            let child = command.spawn();
            drop(record);
            i32::try_from(child?.id()).map(Pid::from_raw).map_err(io::Error::other)
        };
        let pid = match spawn() {
            Ok(pid) => pid,
            Err(error) => {
                let _ = fs::remove_file(self.record_file(vm));
                return Err(format!("{program}: {error}"));
            }
        };
        // It is there until it is waited for, even if it has ended.
        let watched = pidfd(pid).and_then(|handle| {
            let stat = Stat::of(pid.as_raw()).ok_or(io::ErrorKind::NotFound)?;
            Ok(Running::new(Record { incarnation, pid: stat.pid, start: stat.start }, handle))
        });
        match watched {
            Ok(running) => {
                self.vms.insert(vm.clone(), running);
                Ok(())
            }
            Err(error) => {
                let _ = kill(Pid::from_raw(-pid.as_raw()), Signal::SIGKILL);
                while matches!(waitpid(pid, None), Err(Errno::EINTR)) {}
                Err(format!("{program}: started, but it can't be watched: {error}"))
            }
        }
    }

    fn record_file(&self, vm: &VmId) -> PathBuf {
        self.run_dir.join("vms").join(format!("{vm}.run"))
    }

    fn ready_file(&self, vm: &VmId, incarnation: Incarnation) -> PathBuf {
        self.run_dir.join("vms").join(format!("{vm}.{incarnation}.ready"))
    }

    /// VMs whose guest has written its readiness file since the last look.
    pub fn newly_ready(&mut self) -> Vec<(VmId, Incarnation)> {
        let directory = self.run_dir.join("vms");
        let mut ready = Vec::new();
        for (vm, running) in self.vms.iter_mut().filter(|(_, running)| !running.ready) {
            if directory.join(format!("{vm}.{}.ready", running.incarnation())).exists() {
                running.ready = true;
                ready.push((vm.clone(), running.incarnation()));
            }
        }
        ready
    }

    /// Shortens what VMs have printed where it has become too long.
    pub fn shorten_output(&self) {
        output::shorten_all(&self.run_dir.join("vms"), output::BYTES_MAX, output::KEPT);
    }

    /// What becomes readable when something ends of which nobody knows that it is to.
    pub fn handles(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let staying = self.vms.iter().filter(|(vm, _)| !self.ending.contains_key(*vm));
        staying.map(|(_, running)| running.handle.as_fd())
    }

    /// Whether some VM is not ready yet.
    #[must_use]
    pub fn waits_for_readiness(&self) -> bool {
        self.vms.values().any(|running| !running.ready)
    }
}

#[cfg(test)]
pub(crate) mod tests;
