use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use super::{record::Record, *};

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

impl ProcessDriver {
    /// Stops a VM and waits until nothing of it is left. Whether it certainly does not run.
    fn stopped(&mut self, vm: &VmId, incarnation: Incarnation) -> bool {
        if !self.stop(vm, incarnation) {
            return true;
        }
        wait_until("its end", || self.look().iter().any(|gone| gone.vm == *vm));
        !self.vms.contains_key(vm)
    }
}

/// Every living process of a session.
fn members(session: i32) -> Vec<i32> {
    Stat::all().into_iter().filter(|stat| stat.session == session).map(|stat| stat.pid).collect()
}

/// The processes whose command line ends so.
fn called(command: &str) -> Vec<i32> {
    let line =
        |pid: i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ");
    let all = Stat::all().into_iter().map(|stat| stat.pid);
    all.filter(|pid| line(*pid).trim_end().ends_with(command)).collect()
}

/// A number of seconds to sleep that no other test, and no other run of this one, asks for.
fn unique(number: u32) -> String {
    format!("sleep {}.{}", 70_000 + number, std::process::id())
}

#[test]
fn a_new_agent_finds_the_vms_of_its_predecessor_and_does_not_touch_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = driver(dir.path());
    first.start(&vm("a"), Incarnation(3), &definition("sleep 600")).unwrap();
    let pid = first.vms()[&vm("a")].record.pid;
    drop(first);
    // The shell's environment shows only after its exec.
    let mut second = driver(dir.path());
    wait_until("adoption", || {
        second = driver(dir.path());
        second.vms().contains_key(&vm("a"))
    });
    assert_eq!(
        (second.vms()[&vm("a")].record.pid, second.vms()[&vm("a")].incarnation()),
        (pid, Incarnation(3))
    );
    assert!(second.stopped(&vm("a"), Incarnation(3)));
    assert!(members(pid).is_empty());
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
    assert!(driver.stopped(&vm("a"), Incarnation(1)));
}

#[test]
fn stopping_ends_the_whole_session_and_only_incarnations_that_are_meant() {
    let dir = tempfile::tempdir().unwrap();
    let mut driver = driver(dir.path());
    driver.start(&vm("a"), Incarnation(2), &definition("sleep 600 & (sleep 601 &) ; sleep 602")).unwrap();
    let pid = driver.vms()[&vm("a")].record.pid;
    wait_until("grandchildren", || members(pid).len() >= 4);
    assert!(driver.stopped(&vm("a"), Incarnation(1)), "an older one is not meant");
    assert!(driver.vms().contains_key(&vm("a")));
    assert!(driver.stopped(&vm("a"), Incarnation(2)));
    assert!(members(pid).is_empty());
}

#[test]
fn an_incarnation_is_started_once_and_another_one_not_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut driver = driver(dir.path());
    driver.start(&vm("a"), Incarnation(1), &definition("sleep 600")).unwrap();
    let pid = driver.vms()[&vm("a")].record.pid;
    driver.start(&vm("a"), Incarnation(1), &definition("sleep 600")).unwrap();
    assert_eq!(driver.vms()[&vm("a")].record.pid, pid);
    assert!(driver.start(&vm("a"), Incarnation(2), &definition("sleep 600")).is_err());
    assert!(driver.stopped(&vm("a"), Incarnation(1)));
}

#[test]
fn an_end_is_noticed_and_what_it_left_behind_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut driver = driver(dir.path());
    driver.start(&vm("a"), Incarnation(1), &definition("sleep 600 & exit 0")).unwrap();
    let pid = driver.vms()[&vm("a")].record.pid;
    let mut gone = Vec::new();
    wait_until("the end", || {
        gone = driver.look();
        !gone.is_empty()
    });
    assert_eq!(gone, [Gone { vm: vm("a"), incarnation: Incarnation(1), by_itself: true }]);
    assert_eq!(driver.look_again(), None);
    assert!(members(pid).is_empty());
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
    assert!(driver.stopped(&vm("a"), Incarnation(7)));
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
    assert!(driver.start(&vm("a"), Incarnation(1), &other).unwrap_err().contains("no driver \"libvirt\""));
}

#[test]
fn a_program_that_clears_its_environment_is_found_by_the_next_agent() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = driver(dir.path());
    let arguments = ["/usr/bin/env", "-i", "/bin/sh", "-c", "sleep 600; true"].map(String::from).into();
    first.start(&vm("a"), Incarnation(3), &Definition { driver: "process".into(), arguments }).unwrap();
    let record = first.vms()[&vm("a")].record;
    wait_until("the clean environment", || {
        fs::read(format!("/proc/{}/environ", record.pid)).is_ok_and(|environment| environment.is_empty())
    });
    drop(first);
    let mut second = driver(dir.path());
    assert_eq!(second.vms()[&vm("a")].record, record);
    assert!(second.stopped(&vm("a"), Incarnation(3)));
    assert!(members(record.pid).is_empty());
    assert!(driver(dir.path()).vms().is_empty());
}

#[test]
fn what_is_left_of_a_vm_whose_leader_ended_without_an_agent_is_ended_before_that_is_told() {
    for (number, script) in [(1, "{} & wait"), (2, "exec env -i sh -c '{} & wait'"), (3, "setsid {} & wait")]
    {
        let dir = tempfile::tempdir().unwrap();
        let mut first = driver(dir.path());
        let sleep = unique(number);
        first.start(&vm("a"), Incarnation(2), &definition(&script.replace("{}", &sleep))).unwrap();
        let leader = first.vms()[&vm("a")].record.pid;
        wait_until("its child", || called(&sleep).iter().any(|pid| *pid != leader));
        drop(first);
        kill(Pid::from_raw(leader), Signal::SIGKILL).unwrap();
        let mut second = driver(dir.path());
        let mut gone = second.look();
        wait_until("the end", || {
            gone.extend(second.look());
            !gone.is_empty()
        });
        assert_eq!(gone, [Gone { vm: vm("a"), incarnation: Incarnation(2), by_itself: true }], "{script}");
        assert_eq!(called(&sleep), [0; 0], "{script}");
        assert!(driver(dir.path()).vms().is_empty());
    }
}

#[test]
fn a_process_of_a_vm_with_a_session_of_its_own_lives_as_long_as_the_vm() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = driver(dir.path());
    let (own, inner) = (unique(4), unique(5));
    let script = format!("setsid {own} & {inner} & wait");
    first.start(&vm("a"), Incarnation(1), &definition(&script)).unwrap();
    let record = first.vms()[&vm("a")].record;
    let all = || called(&own).len() == 1 && called(&inner).len() == 1 && members(called(&own)[0]).len() == 1;
    wait_until("both", all);
    drop(first);
    let mut second = driver(dir.path());
    assert_eq!(second.vms().len(), 1);
    assert_eq!(second.vms()[&vm("a")].record, record);
    assert!(all(), "a new agent touches nothing");
    assert!(second.stopped(&vm("a"), Incarnation(1)));
    assert_eq!((called(&own).len(), called(&inner).len()), (0, 0));
}

#[test]
fn nobody_elses_process_is_taken_for_a_vm_whose_number_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let boot = record::kernel_boot().unwrap();
    let own = Stat::of(i32::try_from(std::process::id()).unwrap()).unwrap();
    fs::create_dir_all(dir.path().join("vms")).unwrap();
    let path = dir.path().join("vms/a.run");
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let earlier = stat.replace(&format!(" {} ", own.start), &format!(" {} ", own.start - 1));
    assert_ne!(stat, earlier);
    // Of another start, of another boot, of a start that came to nothing.
    for text in
        [format!("1 {boot}\n{earlier}"), format!("1 other\n{stat}"), format!("1 {boot}\n"), String::new()]
    {
        fs::write(&path, &text).unwrap();
        assert!(driver(dir.path()).vms().is_empty(), "{text}");
        assert!(!path.exists(), "it says nothing any more");
    }
    for text in [format!("x {boot}\n{stat}"), format!("1 {boot}\n7 (sh"), "1\n".to_owned()] {
        fs::write(&path, &text).unwrap();
        let error = ProcessDriver::open(HostId::new("h1").unwrap(), dir.path(), &[]).unwrap_err().to_string();
        assert!(error.contains("a.run") && error.contains("make sure that it does not"), "{error}");
    }
}

#[test]
fn a_new_agent_waits_for_a_start_of_its_predecessor_to_end() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("vms")).unwrap();
    let path = dir.path().join("vms/a.run");
    let boot = record::kernel_boot().unwrap();
    let begun = record::begin(&path, Incarnation(4), &boot).unwrap();
    let (began, wait) = std::sync::mpsc::sync_channel(1);
    let directory = dir.path().to_owned();
    let next = std::thread::spawn(move || {
        began.send(()).unwrap();
        driver(&directory)
    });
    wait.recv().unwrap();
    // SAFETY: it is open as long as `begun` is.
    record::complete(unsafe { BorrowedFd::borrow_raw(begun.descriptor()) }).unwrap();
    drop(begun);
    let found = next.join().unwrap();
    assert_eq!(found.vms()[&vm("a")].incarnation(), Incarnation(4), "this test is what it takes for the VM");
}

#[test]
fn a_vm_that_prints_without_end_fills_no_disk_and_the_end_of_it_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut driver = driver(dir.path());
    let script = "i=0; while :; do i=$((i + 1)); echo line $i; echo complaint $i >&2; done";
    driver.start(&vm("a"), Incarnation(1), &definition(script)).unwrap();
    let directory = dir.path().join("vms");
    let (bytes_max, kept) = (64 << 10, 4 << 10);
    for kind in output::KINDS {
        let file = directory.join(format!("a.{kind}"));
        let length = || fs::metadata(&file).map_or(0, |metadata| metadata.len());
        wait_until("much output", || length() > bytes_max);
    }
    output::shorten_all(&directory, bytes_max, kept);
    for kind in output::KINDS {
        let end = fs::read_to_string(directory.join(format!("a.{kind}.old"))).unwrap();
        assert_eq!(end.len() as u64, kept);
        assert!(end.ends_with(|letter: char| letter == '\n' || letter.is_ascii_digit()), "{end}");
        let file = directory.join(format!("a.{kind}"));
        // It goes on, at the beginning: what was cut leaves no hole.
        wait_until("more output", || fs::metadata(&file).unwrap().len() > 0);
        assert_ne!(fs::read(&file).unwrap()[0], 0);
    }
    // What is short enough is left alone.
    assert!(driver.stopped(&vm("a"), Incarnation(1)));
    output::shorten_all(&directory, bytes_max, kept);
    let old = || fs::metadata(directory.join("a.out.old")).unwrap().modified().unwrap();
    let (before, long) = (old(), fs::metadata(directory.join("a.out")).unwrap().len());
    output::shorten_all(&directory, long, kept);
    assert_eq!(old(), before);
}

/// Whoever has lost a lease has little time, for all its VMs together.
#[test]
fn all_vms_that_are_to_end_are_killed_before_the_end_of_any_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut driver = driver(dir.path());
    let all: Vec<VmId> = (0..20).map(|number| vm(&format!("a{number}"))).collect();
    for vm in &all {
        driver.start(vm, Incarnation(1), &definition("sleep 600")).unwrap();
    }
    let records: Vec<Record> = driver.vms().values().map(|running| running.record).collect();
    assert!(all.iter().all(|vm| driver.stop(vm, Incarnation(1))));
    let gone = driver.look();
    // Nobody looks again, and yet all of them end.
    wait_until("the ends", || !records.iter().any(|record| record.lives()));
    assert_eq!(gone, []);
    let mut gone = Vec::new();
    wait_until("all to be gone", || {
        gone.extend(driver.look());
        gone.len() == all.len()
    });
    assert!(driver.vms().is_empty() && driver.look_again().is_none());
    assert!(!driver.stop(&all[0], Incarnation(1)), "nothing is left of it");
}

/// A file system whose server answers nothing: whoever opens a file there can't even be killed, as on a dead NFS.
struct DeadFileSystem {
    place: PathBuf,
    /// Who waits for an answer.
    asking: Arc<Mutex<BTreeSet<i32>>>,
    _server: File,
}

impl DeadFileSystem {
    /// `None` where this may not be done.
    fn mount(place: &Path) -> Option<Self> {
        use std::io::{Read as _, Write as _};
        use std::os::fd::AsRawFd as _;

        let mut server = OpenOptions::new().read(true).write(true).open("/dev/fuse").ok()?;
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0\0", server.as_raw_fd());
        let path = format!("{}\0", place.display());
        // SAFETY: all four strings end with a zero, and live until the call has returned.
        let mounted = unsafe {
            libc::mount(c"dead".as_ptr(), path.as_ptr().cast(), c"fuse".as_ptr(), 0, data.as_ptr().cast())
        };
        if mounted != 0 {
            return None;
        }
        let kept = server.try_clone().ok()?;
        let asking: Arc<Mutex<BTreeSet<i32>>> = Arc::default();
        let asked = Arc::clone(&asking);
        std::thread::spawn(move || {
            let mut request = [0_u8; 1 << 17];
            // Of what `fuse(4)` asks only the first question is answered: which version, and so on.
            while let Ok(read) = server.read(&mut request) {
                if read >= 40 && request[4..8] == 26_u32.to_ne_bytes() {
                    let mut answer = [0_u8; 80];
                    answer[..4].copy_from_slice(&80_u32.to_ne_bytes());
                    answer[8..16].copy_from_slice(&request[8..16]);
                    answer[16..20].copy_from_slice(&7_u32.to_ne_bytes());
                    answer[20..24].copy_from_slice(&31_u32.to_ne_bytes());
                    answer[36..40].copy_from_slice(&(1_u32 << 16).to_ne_bytes());
                    let _ = server.write(&answer);
                } else if let Ok(pid) = request[32..36].try_into() {
                    asked.lock().unwrap().insert(i32::from_ne_bytes(pid));
                }
            }
        });
        Some(Self { place: place.to_owned(), asking, _server: kept })
    }

    /// Whoever hangs goes on, and dies.
    fn unmount(&self) {
        let path = format!("{}\0", self.place.display());
        // SAFETY: the string ends with a zero, and lives until the call has returned.
        unsafe { libc::umount2(path.as_ptr().cast(), libc::MNT_FORCE | libc::MNT_DETACH) };
    }
}

impl Drop for DeadFileSystem {
    fn drop(&mut self) {
        self.unmount();
    }
}

#[test]
fn a_vm_that_hangs_in_the_kernel_keeps_no_other_one_alive() {
    let (dir, dead) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(file_system) = DeadFileSystem::mount(dead.path()) else {
        eprintln!("SKIPPED: only root may mount a file system here");
        return;
    };
    let mut driver = driver(dir.path());
    let hangs = definition(&format!("exec cat {}/x", dead.path().display()));
    driver.start(&vm("a"), Incarnation(1), &hangs).unwrap();
    let pid = driver.vms()[&vm("a")].record.pid;
    wait_until("it to ask for its file", || file_system.asking.lock().unwrap().contains(&pid));
    driver.start(&vm("z"), Incarnation(1), &definition("sleep 600")).unwrap();
    assert!(driver.stop(&vm("a"), Incarnation(1)) && driver.stop(&vm("z"), Incarnation(1)));
    let mut gone = Vec::new();
    wait_until("the end of the one that does not hang", || {
        gone.extend(driver.look().into_iter().map(|gone| gone.vm));
        gone.contains(&vm("z"))
    });
    assert!(driver.vms().contains_key(&vm("a")), "it is not said to be gone while it hangs");
    file_system.unmount();
    wait_until("the end of the other", || {
        gone.extend(driver.look().into_iter().map(|gone| gone.vm));
        gone.len() == 2
    });
}
