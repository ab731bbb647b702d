//! The built-in `process` driver: a VM is a session of ordinary processes.
//!
//! The truth about what runs is the kernel's: every process of a VM carries `DEFIB_RUN_DIR`, `DEFIB_VM` and
//! `DEFIB_INCARNATION` in its environment, and the leader of its session is the VM. So a new agent finds the
//! VMs of its predecessor without any file that could be wrong, and never starts what runs.
#![expect(unsafe_code, reason = "setsid between fork and exec")]

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use defib_model::{HostId, Incarnation, VmId, inventory::Definition};
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

const RUN_DIR: &str = "DEFIB_RUN_DIR";
const VM: &str = "DEFIB_VM";
const INCARNATION: &str = "DEFIB_INCARNATION";
/// What a VM gets of the agent's own environment.
const INHERITED: [&str; 4] = ["PATH", "HOME", "LANG", "TZ"];

/// A VM that runs.
#[derive(Debug)]
pub struct Running {
    /// Which incarnation.
    pub incarnation: Incarnation,
    /// The leader of its session.
    pid: Pid,
    /// Readable once the leader has ended.
    handle: OwnedFd,
    /// Whether its readiness file was seen.
    pub ready: bool,
}

impl Running {
    /// Becomes readable when the VM ends.
    #[must_use]
    pub fn handle(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

/// The VMs of this host.
#[derive(Debug)]
pub struct ProcessDriver {
    host: HostId,
    run_dir: PathBuf,
    /// Variables of our own environment that VMs get.
    inherited: Vec<String>,
    vms: BTreeMap<VmId, Running>,
}

/// A descriptor that becomes readable when the process has ended.
pub(crate) fn pidfd(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The variables of a process that are ours; `None` if it is not of this run directory.
fn marked(pid: i32, run_dir: &Path) -> Option<(VmId, Incarnation)> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut found: BTreeMap<&str, &str> = BTreeMap::new();
    for variable in environment.split(|byte| *byte == 0) {
        if let Some((name, value)) = std::str::from_utf8(variable).ok().and_then(|text| text.split_once('='))
        {
            found.insert(name, value);
        }
    }
    if found.get(RUN_DIR).copied() != run_dir.to_str() {
        return None;
    }
    let vm = VmId::new(found.get(VM)?).ok()?;
    Some((vm, Incarnation(found.get(INCARNATION)?.parse().ok()?)))
}

/// Session and state of a process, from `/proc/PID/stat`; `None` when it is gone.
fn session_of(pid: i32) -> Option<(i32, char)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, so count from behind its last parenthesis.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let session = fields.nth(2)?.parse().ok()?;
    Some((session, state))
}

fn processes() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Every living process of a session.
fn session_members(session: Pid) -> Vec<Pid> {
    processes()
        .into_iter()
        .filter(|pid| {
            session_of(*pid).is_some_and(|(of, state)| of == session.as_raw() && !matches!(state, 'Z' | 'X'))
        })
        .map(Pid::from_raw)
        .collect()
}

impl ProcessDriver {
    /// Finds what runs already. VMs will get the variables of `environment` of our own environment, besides what every
    /// program needs.
    ///
    /// # Errors
    /// When the run directory can't be made.
    pub fn open(host: HostId, run_dir: &Path, environment: &[String]) -> io::Result<Self> {
        fs::create_dir_all(run_dir.join("vms"))?;
        let run_dir = fs::canonicalize(run_dir)?;
        let inherited = INHERITED.iter().map(|name| (*name).to_owned()).chain(environment.iter().cloned());
        let mut driver = Self { host, run_dir, inherited: inherited.collect(), vms: BTreeMap::new() };
        driver.adopt();
        // A predecessor that was killed between fork and exec leaves a child that shows its marks a moment later.
        let _ = nix::poll::poll(&mut [], 100_u8);
        driver.adopt();
        Ok(driver)
    }

    fn adopt(&mut self) {
        for pid in processes() {
            let Some((vm, incarnation)) = marked(pid, &self.run_dir) else { continue };
            let Some((session, state)) = session_of(pid) else { continue };
            if session != pid || matches!(state, 'Z' | 'X') {
                continue;
            }
            let pid = Pid::from_raw(pid);
            if self.vms.get(&vm).is_some_and(|held| held.pid == pid) {
                continue;
            }
            let Ok(handle) = pidfd(pid) else { continue };
            // Two incarnations of one VM can't both be; should they, the older one is ended here and now.
            let newer = self.vms.get(&vm).is_none_or(|held| held.incarnation < incarnation);
            let found = Running { incarnation, pid, handle, ready: false };
            let loser = if newer { self.vms.insert(vm, found) } else { Some(found) };
            if let Some(loser) = loser {
                kill_session(loser.pid);
            }
        }
    }

    /// What runs.
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
            return if running.incarnation == incarnation {
                Ok(())
            } else {
                Err(format!("incarnation {} runs", running.incarnation))
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
        let spawn =
            || -> io::Result<Pid> {
                command.stdout(log("out")?).stderr(log("err")?);
                // SAFETY: setsid is async-signal-safe, and nothing else happens between fork and exec.
                unsafe {
                    command.pre_exec(|| {
                        if libc::setsid() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
                    });
                }
                let child = command.spawn()?;
                i32::try_from(child.id()).map(Pid::from_raw).map_err(io::Error::other)
            };
        let mut spawn = spawn;
        let pid = spawn().map_err(|error| format!("{program}: {error}"))?;
        match pidfd(pid) {
            Ok(handle) => {
                self.vms.insert(vm.clone(), Running { incarnation, pid, handle, ready: false });
                Ok(())
            }
            Err(error) => {
                kill_session(pid);
                Err(format!("{program}: started, but it can't be watched: {error}"))
            }
        }
    }

    /// Kills a VM and all that it has started, if an incarnation up to `incarnation` runs, and makes sure of it.
    ///
    /// Whether it certainly does not run.
    pub fn stop(&mut self, vm: &VmId, incarnation: Incarnation) -> bool {
        let Some(running) = self.vms.get(vm).filter(|running| running.incarnation <= incarnation) else {
            return true;
        };
        let gone = kill_session(running.pid);
        if gone {
            self.vms.remove(vm);
        }
        gone
    }

    /// The VMs whose leader has ended; what is left of their sessions is killed.
    pub fn reap(&mut self) -> Vec<(VmId, Incarnation)> {
        let ended: Vec<VmId> = self
            .vms
            .iter()
            .filter(|(_, running)| {
                let state = session_of(running.pid.as_raw()).map(|(_, state)| state);
                matches!(state, None | Some('Z' | 'X'))
            })
            .map(|(vm, _)| vm.clone())
            .collect();
        let mut reaped = Vec::new();
        for vm in ended {
            if let Some(running) = self.vms.get(&vm)
                && kill_session(running.pid)
                && let Some(running) = self.vms.remove(&vm)
            {
                reaped.push((vm, running.incarnation));
            }
        }
        reaped
    }

    fn ready_file(&self, vm: &VmId, incarnation: Incarnation) -> PathBuf {
        self.run_dir.join("vms").join(format!("{vm}.{incarnation}.ready"))
    }

    /// VMs whose guest has written its readiness file since the last look.
    pub fn newly_ready(&mut self) -> Vec<(VmId, Incarnation)> {
        let directory = self.run_dir.join("vms");
        let mut ready = Vec::new();
        for (vm, running) in self.vms.iter_mut().filter(|(_, running)| !running.ready) {
            if directory.join(format!("{vm}.{}.ready", running.incarnation)).exists() {
                running.ready = true;
                ready.push((vm.clone(), running.incarnation));
            }
        }
        ready
    }

    /// Whether some VM is not ready yet.
    #[must_use]
    pub fn waits_for_readiness(&self) -> bool {
        self.vms.values().any(|running| !running.ready)
    }
}

/// Kills every process of a session; `true` when none is left. A process that forks meanwhile is found by the
/// next look.
fn kill_session(session: Pid) -> bool {
    for _ in 0..200 {
        // The whole group at once first: that is nearly always all.
        let _ = kill(Pid::from_raw(-session.as_raw()), Signal::SIGKILL);
        // Ours to bury, if it was our child.
        while matches!(waitpid(session, Some(WaitPidFlag::WNOHANG)), Err(Errno::EINTR)) {}
        let left = session_members(session);
        if left.is_empty() {
            return true;
        }
        for pid in left {
            let _ = kill(pid, Signal::SIGKILL);
        }
        // The kernel takes a moment; a VM's end is waited for, not assumed.
        let _ = nix::poll::poll(&mut [], 5_u8);
    }
    false
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn definition(script: &str) -> Definition {
        Definition { driver: "process".into(), arguments: vec!["/bin/sh".into(), "-c".into(), script.into()] }
    }

    fn driver(dir: &Path) -> ProcessDriver {
        ProcessDriver::open(HostId::new("h1").unwrap(), dir, &[]).unwrap()
    }

    fn vm(name: &str) -> VmId {
        VmId::new(name).unwrap()
    }

    pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
        for _ in 0..2000 {
            if condition() {
                return;
            }
            let _ = nix::poll::poll(&mut [], 5_u8);
        }
        panic!("waited in vain for {what}");
    }

    #[test]
    fn a_new_agent_finds_the_vms_of_its_predecessor_and_does_not_touch_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = driver(dir.path());
        first.start(&vm("a"), Incarnation(3), &definition("sleep 600")).unwrap();
        let pid = first.vms()[&vm("a")].pid;
        drop(first);
        // The shell's environment shows only after its exec.
        let mut second = driver(dir.path());
        wait_until("adoption", || {
            second = driver(dir.path());
            second.vms().contains_key(&vm("a"))
        });
        assert_eq!((second.vms()[&vm("a")].pid, second.vms()[&vm("a")].incarnation), (pid, Incarnation(3)));
        assert!(second.stop(&vm("a"), Incarnation(3)));
        assert!(session_members(pid).is_empty());
    }

    #[test]
    fn a_vm_does_not_get_the_environment_of_its_agent() {
        let dir = tempfile::tempdir().unwrap();
        let mut driver = driver(dir.path());
        driver.inherited.push("CARGO_PKG_NAME".into());
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some(), "there is something not to get");
        let seen = dir.path().join("seen");
        let script = format!("/usr/bin/env > {0}.new && mv {0}.new {0}; sleep 600", seen.display());
        driver.start(&vm("a"), Incarnation(1), &definition(&script)).unwrap();
        wait_until("its environment", || seen.exists());
        let seen = fs::read_to_string(seen).unwrap();
        for wanted in ["DEFIB_VM=a", "PATH=", "CARGO_PKG_NAME=defib-agent"] {
            assert!(seen.contains(wanted), "{wanted}: {seen}");
        }
        assert!(!seen.contains("CARGO_MANIFEST_DIR"), "{seen}");
        assert!(driver.stop(&vm("a"), Incarnation(1)));
    }

    #[test]
    fn stopping_ends_the_whole_session_and_only_incarnations_that_are_meant() {
        let dir = tempfile::tempdir().unwrap();
        let mut driver = driver(dir.path());
        driver.start(&vm("a"), Incarnation(2), &definition("sleep 600 & (sleep 601 &) ; sleep 602")).unwrap();
        let pid = driver.vms()[&vm("a")].pid;
        wait_until("grandchildren", || session_members(pid).len() >= 4);
        assert!(driver.stop(&vm("a"), Incarnation(1)), "an older one is not meant");
        assert!(driver.vms().contains_key(&vm("a")));
        assert!(driver.stop(&vm("a"), Incarnation(2)));
        assert!(session_members(pid).is_empty());
    }

    #[test]
    fn an_incarnation_is_started_once_and_another_one_not_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut driver = driver(dir.path());
        driver.start(&vm("a"), Incarnation(1), &definition("sleep 600")).unwrap();
        let pid = driver.vms()[&vm("a")].pid;
        driver.start(&vm("a"), Incarnation(1), &definition("sleep 600")).unwrap();
        assert_eq!(driver.vms()[&vm("a")].pid, pid);
        assert!(driver.start(&vm("a"), Incarnation(2), &definition("sleep 600")).is_err());
        assert!(driver.stop(&vm("a"), Incarnation(1)));
    }

    #[test]
    fn an_end_is_noticed_and_what_it_left_behind_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let mut driver = driver(dir.path());
        driver.start(&vm("a"), Incarnation(1), &definition("sleep 600 & exit 0")).unwrap();
        let pid = driver.vms()[&vm("a")].pid;
        let mut reaped = Vec::new();
        wait_until("the end", || {
            reaped = driver.reap();
            !reaped.is_empty()
        });
        assert_eq!(reaped, [(vm("a"), Incarnation(1))]);
        assert!(session_members(pid).is_empty());
    }

    #[test]
    fn a_guest_tells_its_readiness_by_a_file_of_its_own_incarnation() {
        let dir = tempfile::tempdir().unwrap();
        let mut driver = driver(dir.path());
        let script = "touch $DEFIB_RUN_DIR/vms/$DEFIB_VM.$DEFIB_INCARNATION.ready; sleep 600";
        driver.start(&vm("a"), Incarnation(7), &definition(script)).unwrap();
        let mut ready = Vec::new();
        wait_until("readiness", || {
            ready = driver.newly_ready();
            !ready.is_empty()
        });
        assert_eq!(ready, [(vm("a"), Incarnation(7))]);
        assert!(driver.newly_ready().is_empty(), "told once");
        assert!(driver.stop(&vm("a"), Incarnation(7)));
    }

    #[test]
    fn a_command_that_does_not_exist_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        let mut driver = driver(dir.path());
        let missing = Definition { driver: "process".into(), arguments: vec!["/no/such/program".into()] };
        assert!(
            driver
                .start(&vm("a"), Incarnation(1), &missing)
                .unwrap_err()
                .contains("/no/such/program: No such file")
        );
        let other = Definition { driver: "libvirt".into(), arguments: vec![] };
        assert!(
            driver.start(&vm("a"), Incarnation(1), &other).unwrap_err().contains("no driver \"libvirt\"")
        );
    }
}
