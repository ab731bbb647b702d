//! Stopping a domain behind the back of a libvirtd that does not answer: by the file in which it keeps the domain's
//! status, and the process that stands there. Used only when the VM must stop and libvirt can't be asked.

use std::{fs, os::fd::AsFd as _, path::Path};

use defib_model::{Incarnation, VmId};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    domains::status::{self, Status},
    process::pidfd,
};

/// How long a killed process is waited for: not for long, because others are to be killed as well. Who asks for the
/// stop asks again.
const GONE_WITHIN_MS: u16 = 50;

/// Whether a process is the QEMU of this domain, by how libvirt starts it.
fn is_domain(pid: i32, vm: &VmId) -> bool {
    let Ok(command) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let wanted = format!("guest={vm},");
    command.split(|byte| *byte == 0).any(|argument| argument.starts_with(wanted.as_bytes()))
}

/// Any process that is a QEMU of this domain.
fn running(vm: &VmId) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers.filter(|pid| *pid > 1 && is_domain(*pid, vm)).collect()
}

/// Kills the domain if it is ours and an incarnation up to `incarnation`. Whether it certainly does not run.
pub(super) fn stop(directory: &Path, vm: &VmId, incarnation: Incarnation) -> bool {
    let text = fs::read_to_string(directory.join(format!("{vm}.xml"))).unwrap_or_default();
    let Some(Status { mark, pid }) = status::read(&text) else {
        // No status: libvirt runs no such domain. Should a process look like one, nobody knows whose it is.
        return running(vm).is_empty();
    };
    match mark {
        Some(mark) if mark.vm == *vm && mark.incarnation <= incarnation => {}
        // Somebody else's, or a newer one: what is meant does not run.
        Some(_) | None => return true,
    }
    for pid in running(vm).into_iter().chain(pid).filter(|pid| is_domain(*pid, vm)) {
        let pid = Pid::from_raw(pid);
        let Ok(handle) = pidfd(pid) else { continue };
        tracing::warn!(%vm, %incarnation, %pid, "libvirt does not end it: its process is killed");
        let _ = kill(pid, Signal::SIGKILL);
        let mut gone = [PollFd::new(handle.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut gone, PollTimeout::from(GONE_WITHIN_MS));
    }
    running(vm).is_empty()
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::CommandExt as _, process::Command};

    use super::*;
    use crate::process::tests::wait_until;

    fn status(directory: &Path, name: &str, pid: u32, incarnation: u64) {
        let text = format!(
            "<domstatus state='running' pid='{pid}'><domain><name>{name}</name><metadata><defib:vm \
             xmlns:defib='https://defib.dev/xmlns/libvirt/1' vm='{name}' incarnation='{incarnation}' epoch='1'/>\
             </metadata></domain></domstatus>"
        );
        fs::write(directory.join(format!("{name}.xml")), text).unwrap();
    }

    #[test]
    fn only_a_process_that_is_this_marked_domain_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let name = format!("status-test-{}", std::process::id());
        let vm = VmId::new(&name).unwrap();
        assert!(stop(directory.path(), &vm, Incarnation(9)), "nothing of that name");
        let qemu = |first: &str| {
            Command::new("sleep").arg0(format!("guest={first},debug-threads=on")).arg("600").spawn().unwrap()
        };
        let mut ours = qemu(&name);
        let mut other = Command::new("sleep").arg("600").spawn().unwrap();
        // The kernel lets the parent go on before it shows the new program's arguments.
        wait_until("the process to be seen", || !running(&vm).is_empty());
        assert!(!stop(directory.path(), &vm, Incarnation(9)), "it runs, and nobody knows whose it is");
        // A status that is older than the boot may name a process that is somebody else's by now.
        status(directory.path(), &name, other.id(), 3);
        assert!(stop(directory.path(), &vm, Incarnation(2)), "a newer one is not meant");
        assert!(ours.try_wait().unwrap().is_none());
        assert!(stop(directory.path(), &vm, Incarnation(3)) || ours.try_wait().unwrap().is_some());
        assert!(!ours.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
