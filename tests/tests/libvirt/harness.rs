//! A libvirtd of its own with real QEMU guests, and a driver that serves it.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use defib_agent::hypervisor::{DriverHandle, Hypervisor, Job, Listing, StartOrder, Tell};
use defib_agent::libvirt::{self, Settings};
use defib_agent::notes::Notes;
use defib_engine::guard::{Input, VmObserved};
use defib_lab::needs;
use defib_model::command::{AgentReport, VmReport};
use defib_model::inventory::{Definition, Readiness};
use defib_model::{BootId, Epoch, HostId, HostNote, Incarnation, VmCondition, VmId, VmNote};
use defib_tests::{skip, wait_until};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Longer than anything takes that is expected to work, on any machine.
pub(crate) const AMPLE: Duration = Duration::from_secs(60);

/// Binds folders of its own over libvirt's and becomes libvirtd. When the first process of the namespace is killed,
/// all go.
pub(crate) const INIT: &str = r#"
set -eu
cd "$1"
mount --make-rprivate /
mount -t proc proc /proc
for d in etc/hooks lib log run; do mkdir -p $d; done
# Holds up the start of a domain, for as long as a test wants.
cat > etc/hooks/qemu <<EOF
#!/bin/sh
[ "\$2" = prepare ] && [ -e "$1/hold-\$1" ] || exit 0
touch "$1/held"
while [ -e "$1/hold-\$1" ]; do sleep 0.02; done
EOF
chmod 755 etc/hooks/qemu
mkdir -p /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt /run/libvirt
mount --bind etc /etc/libvirt
mount --bind lib /var/lib/libvirt
mount --bind log /var/log/libvirt
mount --bind "$2" /var/cache/libvirt
mount --bind run /run/libvirt
# Its users come with a package that wants more than we do.
cp /etc/passwd /etc/group .
grep -q ^libvirt-qemu: passwd || echo 'libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin' >> passwd
grep -q ^libvirt-qemu: group || echo 'libvirt-qemu:x:64055:' >> group
grep -q ^kvm: group || echo 'kvm:x:64056:' >> group
mount --bind passwd /etc/passwd
mount --bind group /etc/group
cat > etc/libvirtd.conf <<EOF
unix_sock_dir = "$1/sock"
auth_unix_rw = "none"
auth_unix_ro = "none"
listen_tls = 0
host_uuid = "$(cat /proc/sys/kernel/random/uuid)"
EOF
cat > etc/qemu.conf <<EOF
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
EOF
mkdir -p sock small
# A disk that has no room: what is written to it fails until the filler goes.
mount -t tmpfs -o size=64k none small
truncate -s 1M small/disk
dd if=/dev/zero of=small/filler bs=4k count=64 2>/dev/null || :
# The first process of the namespace outlives the daemon, so that the daemon alone can be restarted.
while :; do
  /usr/sbin/libvirtd -f etc/libvirtd.conf -p "$1/pid" > "$1/daemon.log" 2>&1 &
  wait $! || :
  sleep 0.2
done
"#;

pub(crate) struct LibvirtHost {
    pub(crate) folder: TempDir,
    namespace: Child,
}

impl LibvirtHost {
    /// `None`, loudly, where something is missing.
    pub(crate) fn new(test: &str) -> Option<Self> {
        if let Err(why) = needs::all(&["libvirtd", "qemu-system-x86_64", "setpriv", "unshare"]) {
            skip(test, &why);
            return None;
        }
        if !nix::unistd::geteuid().is_root() {
            skip(test, "it needs root for namespaces");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let cache = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("libvirt-cache");
        fs::create_dir_all(&cache).unwrap();
        // A test that is killed has no time to end it.
        let namespace = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--mount",
                "--pid",
                "--net",
                "--fork",
                "--kill-child",
                "sh",
                "-c",
                INIT,
                "init",
            ])
            .arg(folder.path())
            // What libvirt found out about QEMU, which takes seconds, is kept for the next of these hosts.
            .arg(cache)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self { folder, namespace })
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("sock/libvirt-sock")
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings {
            host: HostId::new("h1").unwrap(),
            uri: format!("qemu+unix:///system?socket={}", self.socket().display()),
            status_dir: self.folder.path().join("run/qemu"),
        }
    }

    /// The daemon, by the number that this namespace knows it by.
    pub(crate) fn daemon(&self) -> Pid {
        let marker = self.folder.path().join("pid").display().to_string();
        Pid::from_raw(
            find(|command| command.starts_with("/usr/sbin/libvirtd") && command.contains(&marker)).unwrap(),
        )
    }

    /// The QEMU of a domain, if it runs.
    pub(crate) fn qemu(&self, name: &str) -> Option<i32> {
        let guest = format!("guest={name},");
        find(|command| command.contains(&guest))
    }

    pub(crate) async fn virsh(&self, arguments: &[&str]) -> String {
        let mut command = tokio::process::Command::new("virsh");
        command.arg("-c").arg(self.settings().uri).args(arguments);
        let output = tokio::time::timeout(AMPLE, command.output()).await.unwrap().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }
}

impl Drop for LibvirtHost {
    fn drop(&mut self) {
        // SIGKILL to `unshare` ends its child, the first process of the namespace, and with it everything there.
        let _ = self.namespace.kill();
        let _ = self.namespace.wait();
    }
}

/// The first process whose command line, with spaces, is as wanted.
pub(crate) fn find(wanted: impl Fn(&str) -> bool) -> Option<i32> {
    fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).find(
        |pid: &i32| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            wanted(&String::from_utf8_lossy(&command).replace('\0', " "))
        },
    )
}

/// A driver and all that it told.
pub(crate) struct Driver {
    pub(crate) hypervisor: Hypervisor,
    pub(crate) told: Arc<Mutex<Vec<Input>>>,
    pub(crate) notes: Notes,
}

impl Driver {
    pub(crate) fn start(settings: Settings) -> Self {
        let (told, notes): (Arc<Mutex<Vec<Input>>>, Notes) = Default::default();
        let into = Arc::clone(&told);
        let tell: Tell = Arc::new(move |input| into.lock().unwrap().push(input));
        let handle: DriverHandle =
            libvirt::start(settings, Box::new(|| Epoch(4)), tell, notes.clone(), Listing::of(1)).unwrap();
        Self { hypervisor: Hypervisor::new(vec![handle]), told, notes }
    }

    pub(crate) fn has(&self, wanted: &Input) -> bool {
        self.told.lock().unwrap().contains(wanted)
    }

    pub(crate) async fn hears(&self, wanted: Input) {
        wait_until(&format!("{wanted:?} in {:?}", self.told), || self.has(&wanted)).await;
    }

    pub(crate) fn forget(&self) {
        self.told.lock().unwrap().clear();
    }

    /// What goes into a report about an incarnation.
    pub(crate) fn note(&self, name: &str, incarnation: u64) -> VmNote {
        let one = VmReport {
            vm: vm(name),
            incarnation: Incarnation(incarnation),
            running: true,
            readiness: None,
            note: VmNote::default(),
        };
        self.report(vec![one]).vms.remove(0).note
    }

    /// What goes into a report about the host.
    pub(crate) fn host_note(&self) -> HostNote {
        self.report(Vec::new()).note
    }

    fn report(&self, vms: Vec<VmReport>) -> AgentReport {
        let (host, note) = (HostId::new("h1").unwrap(), HostNote::default());
        let mut report =
            AgentReport { host, boot: BootId(1), epoch: Epoch(4), watchdog_armed: false, vms, note };
        self.notes.add_to(&mut report);
        report
    }

    /// Waits until the report about incarnation 1 has this condition, and these words.
    pub(crate) async fn notes(&self, name: &str, condition: VmCondition, words: &str) {
        wait_until(&format!("{name} to be {condition} ({words}), not {:?}", self.note(name, 1)), || {
            let note = self.note(name, 1);
            note.condition == condition && note.detail.contains(words)
        })
        .await;
    }

    pub(crate) fn order_start(&self, name: &str, incarnation: u64) {
        self.order_start_of(name, incarnation, domain(name));
    }

    pub(crate) fn order_start_of(&self, name: &str, incarnation: u64, xml: String) {
        let definition = Definition { driver: "libvirt".into(), arguments: vec![xml] };
        self.order(Job::Start(StartOrder {
            vm: vm(name),
            incarnation: Incarnation(incarnation),
            definition,
            not_after: late(),
        }));
    }

    pub(crate) fn order_stop(&self, name: &str, incarnation: u64) {
        self.order(Job::Stop { vm: vm(name), incarnation: Incarnation(incarnation) });
    }

    pub(crate) fn order(&self, job: Job) {
        assert_eq!(self.hypervisor.tell(job), None, "its driver is stuck");
    }
}

/// No lease ends before it.
pub(crate) fn late() -> defib_model::Instant {
    defib_agent::clock::now().plus(defib_model::Millis(3_600_000))
}

pub(crate) fn vm(name: &str) -> VmId {
    VmId::new(name).unwrap()
}

/// Names are unique on the machine, because processes are looked for by them.
pub(crate) fn name(of: &str) -> String {
    format!("{of}-{}", std::process::id())
}

pub(crate) fn domain(name: &str) -> String {
    let number =
        u64::from_str_radix(&name.bytes().map(|byte| format!("{:x}", byte % 16)).collect::<String>(), 16);
    let number = number.unwrap_or(7) & 0xffff_ffff_ffff;
    format!(
        "<domain type='qemu'><name>{name}</name><uuid>00000000-0000-4000-8000-{number:012x}</uuid>\
         <memory unit='MiB'>16</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os>\
         <on_poweroff>destroy</on_poweroff><on_crash>destroy</on_crash>\
         <devices><controller type='usb' model='none'/><memballoon model='none'/>\
         <video><model type='none'/></video></devices></domain>"
    )
}

pub(crate) fn running(name: &str, incarnation: u64) -> Input {
    let readiness = Some(Readiness::PoweredOn);
    Input::Hypervisor(VmObserved {
        vm: vm(name),
        incarnation: Incarnation(incarnation),
        running: true,
        readiness,
    })
}

pub(crate) fn ended(name: &str, incarnation: u64) -> Input {
    Input::Hypervisor(VmObserved {
        vm: vm(name),
        incarnation: Incarnation(incarnation),
        running: false,
        readiness: None,
    })
}

pub(crate) fn started(name: &str, incarnation: u64) -> Input {
    Input::StartFinished { vm: vm(name), incarnation: Incarnation(incarnation), result: Ok(()) }
}

pub(crate) fn stopped(name: &str, incarnation: u64, ok: bool) -> Input {
    Input::StopFinished { vm: vm(name), incarnation: Incarnation(incarnation), ok }
}

/// A domain with a guest that beats into its disk twenty times a second, and obeys the power button.
pub(crate) fn beating(name: &str, host: &LibvirtHost, disk: &str) -> String {
    let here = host.folder.path();
    let guest = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../chaos/guest");
    let kernel = here.join("pulse");
    let words = "-m32 -Os -ffreestanding -fno-pic -no-pie -fno-stack-protector -mno-sse -mno-mmx -nostdlib \
                 -fno-asynchronous-unwind-tables -fno-strict-aliasing -Wl,--build-id=none,--no-warn-rwx-segments";
    let built = Command::new("cc")
        .args(words.split_whitespace())
        .arg(format!("-Wl,-T,{}", guest.join("link.ld").display()))
        .arg("-o")
        .args([&kernel, &guest.join("pulse.c")])
        .status();
    assert!(built.unwrap().success(), "the guest can't be compiled");
    domain(name)
        .replace("</os>", &format!("<kernel>{}</kernel></os><features><acpi/></features>", kernel.display()))
        .replace(
            "<devices>",
            &format!(
                "<devices><disk type='file' device='disk'><driver name='qemu' type='raw' cache='writeback' \
                 error_policy='stop'/><source file='{disk}'/><target dev='hda' bus='ide'/></disk>"
            ),
        )
}
