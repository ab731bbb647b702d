//! Where a lab's cluster runs here: each host and each replica is a machine of its own, in namespaces, on two
//! networks whose switch is this process's own network. Whoever leaves this network leaves nothing behind.
//!
//! | | data network | management network |
//! | --- | --- | --- |
//! | switch | `10.99.1.1` | `10.99.2.1` |
//! | host N | `10.99.1.(10+N)` | `10.99.2.(100+N)` |
//! | BMC of host N | – | `10.99.2.(10+N)` |
//! | replica N | `10.99.1.(200+N)` | `10.99.2.(200+N)` |

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, ensure};
use defib_lab::cluster::layout::{HOSTS_MAX, host_name};
use defib_lab::cluster::site::{Boot, FencedHost, ReplicaAddresses, Site};
use defib_lab::cluster::{Process, Program, REPLICAS};
use defib_lab::ipmi::{self, IpmiConfig};
use defib_lab::needs;
use defib_model::inventory::{
    CipherSuite, Definition, FenceMethod, FencingLevel, IpmiTarget, Readiness, RedfishTarget, SelfFence,
};
use defib_model::{HostId, Inventory};

use crate::linux::{self, Linux};
use crate::replicas::Replicas;
use crate::scenario::Lab;

/// The first two parts of every address.
const PREFIX: &str = "10.99";
/// What a host's BMC starts.
const WIRE: &str = include_str!("host/wire.sh");
/// The first process of a host.
const INIT: &str = include_str!("host/init.sh");
/// Where a host's guests say that they beat.
const PULSE: &str = "/mnt";
/// Programs of others that a lab needs, by Debian's packages.
const NEEDED: [(&str, &str); 12] = [
    ("cc", "gcc"),
    ("ip", "iproute2"),
    ("ipmi_sim", "openipmi"),
    ("ipmitool", "ipmitool"),
    ("libvirtd", "libvirt-daemon"),
    ("mount", "mount"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("readlink", "coreutils"),
    ("unshare", "util-linux"),
    ("virsh", "libvirt-clients"),
];

/// That everything is here.
///
/// # Errors
/// What is missing, and how to get it.
pub(crate) fn check() -> anyhow::Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "a lab of real hosts needs root, for namespaces and networks");
    let missing: Vec<&(&str, &str)> =
        NEEDED.iter().filter(|(program, _)| needs::find(program).is_none()).collect();
    let programs: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
    let packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    ensure!(
        missing.is_empty(),
        "this machine has no {}; on Debian: apt-get install --no-install-recommends {}",
        programs.join(", "),
        packages.join(" ")
    );
    Ok(())
}

/// A host's address on the data network.
fn host_data(number: usize) -> Ipv4Addr {
    address(1, 10 + number)
}

/// A BMC's address on the management network.
pub(crate) fn bmc(number: usize) -> Ipv4Addr {
    address(2, 10 + number)
}

/// A replica's address on one of the networks.
fn replica(network: u8, id: u64) -> Ipv4Addr {
    address(network, 200 + usize::try_from(id).unwrap_or(0))
}

fn address(network: u8, last: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, network, u8::try_from(last).unwrap_or(0))
}

/// The switch, and the machines of replicas, which every lab of this process uses in turn.
#[derive(Debug)]
pub(crate) struct Ground {
    guest: PathBuf,
    cache: PathBuf,
    directory: PathBuf,
    /// Made when the first lab wants it.
    linux: OnceLock<Linux>,
}

impl Ground {
    /// Builds the networks in this process's own network namespace, which nobody else is in, and the guest, in a
    /// directory of ours.
    ///
    /// # Errors
    /// When something is missing or refused.
    pub(crate) fn build(directory: &Path) -> anyhow::Result<Self> {
        // What libvirt finds out about QEMU takes it a second: once for all labs.
        let cache = directory.join("cache");
        std::fs::create_dir_all(&cache).with_context(|| format!("can't create {}", cache.display()))?;
        run("mount", &["-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])?;
        std::fs::create_dir_all("/run/netns")?;
        let mut lines = String::from("link set lo up\n");
        for (network, name) in [(1, "data"), (2, "mgmt")] {
            // With an address of its own: else it takes one of its ports', and changes it when that is unplugged.
            let _ = writeln!(lines, "link add br-{name} address 02:00:00:00:0{network}:fe type bridge");
            let _ = writeln!(lines, "addr add {}/24 dev br-{name}", address(network, 1));
            let _ = writeln!(lines, "link set br-{name} up");
        }
        for number in 1..=HOSTS_MAX {
            let _ = writeln!(lines, "addr add {}/32 dev br-mgmt", bmc(number));
        }
        for id in 1..=REPLICAS {
            let _ = writeln!(lines, "netns add r{id}");
            for (network, name) in [(1, "data"), (2, "mgmt")] {
                let _ = writeln!(
                    lines,
                    "link add r{id}-{name} type veth peer name {name} address 02:00:00:01:0{network}:0{id} netns r{id}"
                );
                let _ = writeln!(lines, "link set r{id}-{name} master br-{name} up");
            }
        }
        feed("ip", &["-batch", "-"], &lines)?;
        for id in 1..=REPLICAS {
            let mut lines = String::from("link set lo up\n");
            for (network, name) in [(1, "data"), (2, "mgmt")] {
                let _ =
                    writeln!(lines, "addr add {}/24 dev {name}\nlink set {name} up", replica(network, id));
            }
            feed("ip", &["-n", &format!("r{id}"), "-batch", "-"], &lines)?;
        }
        Ok(Self {
            guest: build_guest(directory)?,
            cache,
            directory: directory.to_owned(),
            linux: OnceLock::new(),
        })
    }

    /// Room for a cluster in a directory that is its own.
    ///
    /// # Errors
    /// When the directory can't be made.
    pub(crate) fn site(&self, directory: &Path, lab: &Lab) -> anyhow::Result<Machines> {
        // Beside the cluster's own directory, which must not exist yet.
        let shared = directory.with_extension("shared");
        std::fs::create_dir_all(&shared)?;
        if lab.linux_guests > 0 && self.linux.get().is_none() {
            let _ = self.linux.set(Linux::build(&self.directory)?);
        }
        Ok(Machines {
            guest: self.guest.clone(),
            linux: self.linux.get().cloned().map(|linux| (linux, lab.linux_guests)),
            cache: self.cache.clone(),
            shared,
            replicas: Replicas::new(directory, lab),
            trust_self_fence: lab.trust_self_fence,
            ipmi: lab.ipmi,
            simulators: Mutex::default(),
        })
    }
}

/// Room for one cluster.
#[derive(Debug)]
pub(crate) struct Machines {
    guest: PathBuf,
    /// What so many of the first host's VMs boot instead.
    linux: Option<(Linux, usize)>,
    cache: PathBuf,
    shared: PathBuf,
    /// What replicas have of their own.
    pub(crate) replicas: Replicas,
    trust_self_fence: bool,
    ipmi: bool,
    simulators: Mutex<Vec<Process>>,
}

/// The file in which a host's guest says that it beats.
pub(crate) fn pulse(host_directory: &Path, vm: &str) -> PathBuf {
    host_directory.join("pulse").join(vm)
}

impl Site for Machines {
    fn replica(&self, id: u64) -> anyhow::Result<ReplicaAddresses> {
        ensure!((1..=REPLICAS).contains(&id), "there is no machine for replica {id}");
        let at = |port| SocketAddr::new(IpAddr::V4(replica(1, id)), port);
        Ok(ReplicaAddresses {
            peers: at(7001),
            control: at(7002),
            heartbeat: at(7003),
            metrics: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7004),
        })
    }

    fn second_path(&self, id: u64) -> anyhow::Result<SocketAddr> {
        Ok(SocketAddr::new(IpAddr::V4(replica(2, id)), 7003))
    }

    fn webhooks(&self, id: u64) -> anyhow::Result<SocketAddr> {
        Ok(SocketAddr::new(IpAddr::V4(replica(1, id)), 7006))
    }

    fn neighbour(&self, number: usize) -> anyhow::Result<SocketAddr> {
        Ok(SocketAddr::new(IpAddr::V4(host_data(number)), 7005))
    }

    fn bmc(&self, number: usize) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(bmc(number)), 443)
    }

    fn cables(&self, number: usize) -> Vec<String> {
        let host = host_name(number);
        vec![format!("{host}-data"), format!("{host}-mgmt")]
    }

    fn replica_program(&self, id: u64, program: Program) -> anyhow::Result<Program> {
        self.replicas.program(id, program)
    }

    fn boot(&self, boot: &Boot<'_>) -> Vec<OsString> {
        let words: [OsString; 16] = [
            "unshare".into(),
            "--net".into(),
            "/bin/sh".into(),
            "-c".into(),
            WIRE.into(),
            "wire".into(),
            INIT.into(),
            boot.name.into(),
            boot.number.to_string().into(),
            PREFIX.into(),
            boot.directory.into(),
            boot.agent.into(),
            boot.config.into(),
            boot.held.into(),
            self.cache.clone().into(),
            OsString::new(),
        ];
        words.into_iter().filter(|word| !word.is_empty()).collect()
    }

    fn fencing(&self, host: &FencedHost<'_>, redfish: RedfishTarget) -> anyhow::Result<Vec<FencingLevel>> {
        if !self.ipmi {
            return Ok(vec![FencingLevel(vec![FenceMethod::Redfish(redfish)])]);
        }
        let user = std::fs::read_to_string(host.user_file)?;
        let (name, _) = user.split_once('\n').context("a user file has two lines")?;
        // What IPMI 2.0 takes has twenty letters at most.
        let config = IpmiConfig {
            guid: *b"\0\0\0\0\0\0\x40\0\x80\0\0\0\0\0\0\0",
            serial: redfish.serial.clone().context("a lab's host has a serial number")?,
            user: name.to_owned(),
            password: format!("lab-{}", host.number),
        };
        let credentials = host.directory.join("ipmi.user");
        std::fs::write(&credentials, format!("{}\n{}\n", config.user, config.password))?;
        std::fs::set_permissions(&credentials, std::fs::Permissions::from_mode(0o600))?;
        let address = SocketAddr::new(IpAddr::V4(bmc(host.number)), 623);
        let own = std::env::current_exe()?;
        let chassis = format!("{} chassis {}", own.display(), host.admin);
        let program = ipmi::program(&host.directory.join("ipmi"), &config, address, &chassis)?;
        self.simulators.lock().unwrap_or_else(PoisonError::into_inner).push(Process::start(&program)?);
        Ok(vec![FencingLevel(vec![FenceMethod::Ipmi(IpmiTarget {
            address: address.to_string(),
            uuid: None,
            serial: redfish.serial,
            credentials: format!("file:{}", credentials.display()),
            // The only one that the simulator knows.
            cipher_suite: CipherSuite::Sha1,
        })])])
    }

    fn agent(&self) -> String {
        "libvirt: {}\n".to_owned()
    }

    fn define(&self, inventory: &mut Inventory) -> anyhow::Result<()> {
        if !self.trust_self_fence {
            for host in inventory.hosts.values_mut() {
                host.self_fence = SelfFence::None;
            }
        }
        let first = HostId::new(&host_name(1))?;
        let mut left = self.linux.as_ref().map_or(0, |(_, count)| *count);
        for (number, vm) in inventory.vms.values_mut().enumerate() {
            let disk = self.shared.join(vm.id.as_str());
            std::fs::File::create(&disk)?.set_len(1 << 20)?;
            let mut linux = None;
            if vm.first_host.as_ref() == Some(&first) && left > 0 {
                left -= 1;
                linux = self.linux.as_ref().map(|(linux, _)| linux);
            }
            let definition = domain(vm.id.as_str(), number, &self.guest, linux, &disk);
            vm.definition = Definition { driver: "libvirt".to_owned(), arguments: vec![definition] };
            // The guest has no agent.
            vm.readiness = vm.readiness.min(Readiness::PoweredOn);
        }
        Ok(())
    }
}

/// A guest with a disk that it shares with whoever has it, too: a lock there would hide that a VM runs twice.
fn domain(name: &str, number: usize, pulse: &Path, linux: Option<&Linux>, disk: &Path) -> String {
    let (mib, boot, bus, device) = match linux {
        None => (8, format!("<kernel>{}</kernel>", pulse.display()), "ide", "hda"),
        Some(Linux { kernel, files }) => {
            let (kernel, files) = (kernel.display(), files.display());
            let boot = format!(
                "<kernel>{kernel}</kernel><initrd>{files}</initrd><cmdline>{}</cmdline>",
                linux::WORDS
            );
            (96, boot, "virtio", "vda")
        }
    };
    let disk = disk.display();
    format!(
        "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\
         <name>{name}</name><uuid>00000000-0000-4000-a000-{number:012x}</uuid>\
         <memory unit='MiB'>{mib}</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='pc'>hvm</type>{boot}</os>\
         <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>\
         <devices><disk type='file' device='disk'><driver name='qemu' type='raw' cache='writeback'/>\
         <source file='{disk}'/><target dev='{device}' bus='{bus}'/><shareable/></disk>\
         <controller type='usb' model='none'/>\
         <serial type='file'><source path='{PULSE}/{name}' append='on'/><target port='0'/></serial>\
         <memballoon model='none'/><video><model type='none'/></video></devices>\
         <qemu:commandline><qemu:arg value='-accel'/><qemu:arg value='tcg,tb-size=16'/></qemu:commandline>\
         </domain>"
    )
}

/// The guest's kernel, compiled in a directory of ours.
fn build_guest(directory: &Path) -> anyhow::Result<PathBuf> {
    let (source, script, kernel) =
        (directory.join("pulse.c"), directory.join("link.ld"), directory.join("pulse"));
    std::fs::write(&source, include_str!("../guest/pulse.c"))?;
    std::fs::write(&script, include_str!("../guest/link.ld"))?;
    let words = "-m32 -Os -ffreestanding -fno-pic -no-pie -fno-stack-protector -mno-sse -mno-mmx -nostdlib \
                 -fno-asynchronous-unwind-tables -fno-strict-aliasing -Wall -Wextra -Werror -Wl,--build-id=none,--no-warn-rwx-segments";
    let mut words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
    words.push(format!("-Wl,-T,{}", script.display()));
    words.extend(["-o".to_owned(), kernel.display().to_string(), source.display().to_string()]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    run("cc", &words).context("the guest can't be compiled")?;
    Ok(kernel)
}

/// Runs a program to its end.
///
/// # Errors
/// What it says when it fails.
pub(crate) fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    feed(program, arguments, "")
}

/// Runs a program to its end, with this as its input.
///
/// # Errors
/// What it says when it fails.
pub(crate) fn feed(program: &str, arguments: &[&str], input: &str) -> anyhow::Result<String> {
    let path = needs::find(program).with_context(|| format!("there is no {program}"))?;
    let mut child = Command::new(path)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program} can't be started"))?;
    // One that ends without reading says why; and what is fed here fits into a pipe.
    let _ = child.stdin.take().context("its input is open")?.write_all(input.as_bytes());
    let output = child.wait_with_output()?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), told.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_named_after_its_vm_and_its_disk_hides_nothing() {
        let linux = Linux { kernel: "/vmlinuz".into(), files: "/initrd".into() };
        let of = |linux| domain("cp-1", 7, Path::new("/pulse"), linux, Path::new("/d/cp-1"));
        assert!(of(None).contains("<kernel>/pulse</kernel></os>"));
        let text = of(Some(&linux));
        assert!(text.contains("<kernel>/vmlinuz</kernel><initrd>/initrd</initrd><cmdline>"));
        assert!(text.contains("<name>cp-1</name><uuid>00000000-0000-4000-a000-000000000007</uuid>"));
        assert!(text.contains("<shareable/>") && text.contains("<source path='/mnt/cp-1' append='on'/>"));
    }
}
