//! The agent's libvirt driver against a real libvirtd with real QEMU guests, in namespaces of their own.
//!
//! The guests have no disk: they come up to their BIOS and stay there, which is all that a driver can see of a
//! guest without an agent. Needs root.

#![cfg(feature = "libvirt")]
#![expect(clippy::unwrap_used, reason = "helpers of tests may end them by a panic")]

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use defib_agent::hypervisor::{DriverHandle, Hypervisor, Job, Listing, StartOrder, Tell};
use defib_agent::libvirt::{self, Settings};
use defib_engine::guard::{Input, VmObserved};
use defib_lab::needs;
use defib_model::inventory::{Definition, Readiness};
use defib_model::{Epoch, HostId, Incarnation, VmId};
use defib_tests::{skip, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Longer than anything takes that is expected to work, on any machine.
const AMPLE: Duration = Duration::from_secs(60);

/// Binds folders of its own over libvirt's and becomes libvirtd. When the first process of the namespace is killed,
/// all go.
const INIT: &str = r#"
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
mkdir -p sock
# The first process of the namespace outlives the daemon, so that the daemon alone can be restarted.
while :; do
  /usr/sbin/libvirtd -f etc/libvirtd.conf -p "$1/pid" > "$1/daemon.log" 2>&1 &
  wait $! || :
  sleep 0.2
done
"#;

struct LibvirtHost {
    folder: TempDir,
    namespace: Child,
}

impl LibvirtHost {
    /// `None`, loudly, where something is missing.
    fn new(test: &str) -> Option<Self> {
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

    fn socket(&self) -> PathBuf {
        self.folder.path().join("sock/libvirt-sock")
    }

    fn settings(&self) -> Settings {
        Settings {
            host: HostId::new("h1").unwrap(),
            uri: format!("qemu+unix:///system?socket={}", self.socket().display()),
            status_dir: self.folder.path().join("run/qemu"),
        }
    }

    /// The daemon, by the number that this namespace knows it by.
    fn daemon(&self) -> Pid {
        let marker = self.folder.path().join("pid").display().to_string();
        Pid::from_raw(
            find(|command| command.starts_with("/usr/sbin/libvirtd") && command.contains(&marker)).unwrap(),
        )
    }

    /// The QEMU of a domain, if it runs.
    fn qemu(&self, name: &str) -> Option<i32> {
        let guest = format!("guest={name},");
        find(|command| command.contains(&guest))
    }

    async fn virsh(&self, arguments: &[&str]) -> String {
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
fn find(wanted: impl Fn(&str) -> bool) -> Option<i32> {
    fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).find(
        |pid: &i32| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            wanted(&String::from_utf8_lossy(&command).replace('\0', " "))
        },
    )
}

/// A driver and all that it told.
struct Driver {
    hypervisor: Hypervisor,
    told: Arc<Mutex<Vec<Input>>>,
}

impl Driver {
    fn start(settings: Settings) -> Self {
        let told: Arc<Mutex<Vec<Input>>> = Arc::default();
        let into = Arc::clone(&told);
        let tell: Tell = Arc::new(move |input| into.lock().unwrap().push(input));
        let handle: DriverHandle =
            libvirt::start(settings, Box::new(|| Epoch(4)), tell, Listing::of(1)).unwrap();
        Self { hypervisor: Hypervisor::new(vec![handle]), told }
    }

    fn has(&self, wanted: &Input) -> bool {
        self.told.lock().unwrap().contains(wanted)
    }

    async fn hears(&self, wanted: Input) {
        wait_until(&format!("{wanted:?} in {:?}", self.told), || self.has(&wanted)).await;
    }

    fn forget(&self) {
        self.told.lock().unwrap().clear();
    }

    fn order_start(&self, name: &str, incarnation: u64) {
        let definition = Definition { driver: "libvirt".into(), arguments: vec![domain(name)] };
        self.hypervisor.tell(Job::Start(StartOrder {
            vm: vm(name),
            incarnation: Incarnation(incarnation),
            definition,
            not_after: late(),
        }));
    }

    fn order_stop(&self, name: &str, incarnation: u64) {
        self.hypervisor.tell(Job::Stop { vm: vm(name), incarnation: Incarnation(incarnation) });
    }
}

/// No lease ends before it.
fn late() -> defib_model::Instant {
    defib_agent::clock::now().plus(defib_model::Millis(3_600_000))
}

fn vm(name: &str) -> VmId {
    VmId::new(name).unwrap()
}

/// Names are unique on the machine, because processes are looked for by them.
fn name(of: &str) -> String {
    format!("{of}-{}", std::process::id())
}

fn domain(name: &str) -> String {
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

fn running(name: &str, incarnation: u64) -> Input {
    let readiness = Some(Readiness::PoweredOn);
    Input::Hypervisor(VmObserved {
        vm: vm(name),
        incarnation: Incarnation(incarnation),
        running: true,
        readiness,
    })
}

fn ended(name: &str, incarnation: u64) -> Input {
    Input::Hypervisor(VmObserved {
        vm: vm(name),
        incarnation: Incarnation(incarnation),
        running: false,
        readiness: None,
    })
}

fn started(name: &str, incarnation: u64) -> Input {
    Input::StartFinished { vm: vm(name), incarnation: Incarnation(incarnation), result: Ok(()) }
}

fn stopped(name: &str, incarnation: u64, ok: bool) -> Input {
    Input::StopFinished { vm: vm(name), incarnation: Incarnation(incarnation), ok }
}

#[tokio::test]
async fn a_domain_is_started_with_its_mark_found_again_and_stopped_and_a_foreign_one_is_never_touched() {
    let Some(host) = LibvirtHost::new("a_domain_is_started_with_its_mark_found_again_and_stopped") else {
        return;
    };
    let (ours, foreign) = (name("ours"), name("foreign"));
    let driver = Driver::start(host.settings());
    driver.hears(Input::HypervisorListed).await;
    let file = host.folder.path().join("foreign.xml");
    fs::write(&file, domain(&foreign)).unwrap();
    assert!(host.virsh(&["create", &file.display().to_string()]).await.contains("created"));

    driver.order_start(&ours, 3);
    driver.hears(started(&ours, 3)).await;
    let metadata = host.virsh(&["metadata", &ours, "https://defib.dev/xmlns/libvirt/1"]).await;
    assert!(metadata.contains("incarnation=\"3\"") && metadata.contains("epoch=\"4\""), "{metadata}");
    // A second order for the same is a success, one for another incarnation is none.
    let first = host.qemu(&ours).unwrap();
    driver.forget();
    driver.order_start(&ours, 3);
    driver.hears(started(&ours, 3)).await;
    driver.order_start(&ours, 4);
    let why = Err("incarnation 3 runs".to_owned());
    driver.hears(Input::StartFinished { vm: vm(&ours), incarnation: Incarnation(4), result: why }).await;
    assert_eq!(host.qemu(&ours), Some(first));

    // The next agent finds it, with its incarnation, and touches nothing.
    let next = Driver::start(host.settings());
    next.hears(Input::HypervisorListed).await;
    assert!(next.has(&running(&ours, 3)), "{:?}", next.told);
    assert!(!format!("{:?}", next.told).contains(&foreign));
    next.order_stop(&ours, 2);
    next.hears(stopped(&ours, 2, true)).await;
    assert_eq!(host.qemu(&ours), Some(first), "an older incarnation was meant");
    next.order_stop(&foreign, 9);
    next.hears(stopped(&foreign, 9, true)).await;
    assert!(host.qemu(&foreign).is_some(), "nobody's business");
    next.order_stop(&ours, 3);
    next.hears(stopped(&ours, 3, true)).await;
    assert_eq!(host.qemu(&ours), None);
    // The other driver hears of it by an event.
    driver.hears(ended(&ours, 3)).await;
    assert!(
        host.virsh(&["list", "--all", "--name"]).await.trim() == foreign,
        "transient: nothing stays behind"
    );
}

#[tokio::test]
async fn a_guest_that_crashes_is_told_and_one_that_cant_start_is_explained() {
    let Some(host) = LibvirtHost::new("a_guest_that_crashes_is_told_and_one_that_cant_start_is_explained")
    else {
        return;
    };
    let (crashing, odd) = (name("crashing"), name("odd"));
    let driver = Driver::start(host.settings());
    driver.hears(Input::HypervisorListed).await;
    driver.order_start(&crashing, 1);
    driver.hears(started(&crashing, 1)).await;
    kill(Pid::from_raw(host.qemu(&crashing).unwrap()), Signal::SIGKILL).unwrap();
    driver.hears(ended(&crashing, 1)).await;
    let definition = Definition {
        driver: "libvirt".into(),
        arguments: vec![domain(&odd).replace("machine='pc'", "machine='toaster'")],
    };
    driver.hypervisor.tell(Job::Start(StartOrder {
        vm: vm(&odd),
        incarnation: Incarnation(1),
        definition,
        not_after: late(),
    }));
    wait_until("the refusal", || {
        driver.told.lock().unwrap().iter().any(
            |input| matches!(input, Input::StartFinished { result: Err(why), .. } if why.contains("toaster")),
        )
    })
    .await;
    assert_eq!(host.qemu(&odd), None);
}

#[tokio::test]
async fn a_libvirtd_that_restarts_costs_no_vm_and_no_word() {
    let Some(host) = LibvirtHost::new("a_libvirtd_that_restarts_costs_no_vm_and_no_word") else { return };
    let (first, second) = (name("stays"), name("comes"));
    let driver = Driver::start(host.settings());
    driver.hears(Input::HypervisorListed).await;
    driver.order_start(&first, 1);
    driver.hears(started(&first, 1)).await;
    let qemu = host.qemu(&first);
    let daemon = host.daemon();
    kill(daemon, Signal::SIGKILL).unwrap();
    // The next one answers: a start works again.
    wait_until("the next daemon", || {
        driver.order_start(&second, 2);
        driver.has(&started(&second, 2))
    })
    .await;
    assert_ne!(host.daemon(), daemon);
    assert_eq!(host.qemu(&first), qemu);
    assert!(!driver.has(&ended(&first, 1)), "{:?}", driver.told);
}

#[tokio::test]
async fn a_libvirtd_that_hangs_leaves_vms_alone_until_one_must_stop_and_then_it_stops() {
    let Some(host) = LibvirtHost::new("a_libvirtd_that_hangs_leaves_vms_alone_until_one_must_stop") else {
        return;
    };
    let (kept, doomed, late, refused) = (name("kept"), name("doomed"), name("late"), name("refused"));
    let driver = Driver::start(host.settings());
    driver.hears(Input::HypervisorListed).await;
    for vm in [&kept, &doomed] {
        driver.order_start(vm, 1);
        driver.hears(started(vm, 1)).await;
    }
    driver.forget();
    let hold = host.folder.path().join(format!("hold-{late}"));
    fs::write(&hold, "").unwrap();
    driver.order_start(&late, 1);
    let held = host.folder.path().join("held");
    wait_until("the start that is held up", || held.exists()).await;
    kill(host.daemon(), Signal::SIGSTOP).unwrap();
    driver.order_stop(&doomed, 1);
    driver.hears(stopped(&doomed, 1, true)).await;
    assert_eq!(host.qemu(&doomed), None);
    // Starts fail instead of hanging, and say why.
    driver.order_start(&refused, 1);
    wait_until("a refusal", || {
        driver.told.lock().unwrap().iter().any(
            |input| matches!(input, Input::StartFinished { result: Err(why), .. } if why.contains("libvirt does not answer")),
        )
    })
    .await;
    assert!(host.qemu(&kept).is_some());
    assert!(!driver.has(&ended(&kept, 1)), "{:?}", driver.told);
    // The daemon may make the start when it goes on, so nobody says before that it does not run.
    driver.order_stop(&late, 1);
    driver.hears(stopped(&late, 1, false)).await;
    // Nor does an agent that knows nothing of that start.
    let next = Driver::start(host.settings());
    next.order_stop(&late, 1);
    next.hears(stopped(&late, 1, false)).await;
    kill(host.daemon(), Signal::SIGCONT).unwrap();
    fs::remove_file(&hold).unwrap();
    for driver in [&driver, &next] {
        wait_until("a certain stop", || {
            driver.order_stop(&late, 1);
            driver.has(&stopped(&late, 1, true))
        })
        .await;
        assert_eq!(host.qemu(&late), None);
    }
    driver.hears(ended(&doomed, 1)).await;
    assert!(!driver.has(&ended(&kept, 1)));
    driver.order_stop(&kept, 1);
    driver.hears(stopped(&kept, 1, true)).await;
    assert_eq!(host.qemu(&kept), None);
    assert_eq!(host.virsh(&["list", "--all", "--name"]).await.trim(), "", "no start came late");
}
