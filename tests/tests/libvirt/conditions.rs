//! What there is to tell of domains beyond whether they run.

use std::fs;

use defib_model::VmCondition;
use defib_tests::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Driver, LibvirtHost, beating, domain, ended, name, running, started, stopped};
use defib_engine::guard::Input;

#[tokio::test]
async fn a_disk_that_fails_pauses_its_vm_which_is_told_with_the_reason_until_it_goes_on() {
    let Some(host) = LibvirtHost::new("a_disk_that_fails_pauses_its_vm_which_is_told") else { return };
    let full = name("full");
    let driver = Driver::start(host.settings());
    driver.hears(Input::HypervisorListed).await;
    let small = host.folder.path().join("small");
    driver.order_start_of(&full, 1, beating(&full, &host, &small.join("disk").display().to_string()));
    driver.hears(started(&full, 1)).await;
    driver.notes(&full, VmCondition::IoError, "enospc").await;
    let note = driver.note(&full, 1);
    assert!(note.detail.contains("ide") && note.detail.contains("small/disk"), "{note:?}");
    assert!(driver.has(&running(&full, 1)) && !driver.has(&ended(&full, 1)), "it is held, and may go on");
    // The next agent finds it so.
    let next = Driver::start(host.settings());
    next.notes(&full, VmCondition::IoError, "a disk of it failed").await;
    let inside = format!("/proc/{}/root{}", host.qemu(&full).unwrap(), small.join("filler").display());
    fs::remove_file(inside).unwrap();
    host.virsh(&["resume", &full]).await;
    driver.notes(&full, VmCondition::Normal, "").await;
    host.virsh(&["suspend", &full]).await;
    driver.notes(&full, VmCondition::Paused, "by somebody").await;
}

#[tokio::test]
async fn reboots_are_counted_and_an_end_is_told_with_how_it_came() {
    let Some(host) = LibvirtHost::new("reboots_are_counted_and_an_end_is_told_with_how_it_came") else {
        return;
    };
    let (reset, destroyed, killed, off) = (name("reset"), name("destroyed"), name("killed"), name("off"));
    let driver = Driver::start(host.settings());
    driver.hears(Input::HypervisorListed).await;
    for vm in [&reset, &destroyed, &killed] {
        driver.order_start(vm, 1);
    }
    // Where a reboot is an end, a guest that reboots ends itself.
    driver.order_start_of(
        &off,
        1,
        domain(&off).replace("<on_crash>", "<on_reboot>destroy</on_reboot><on_crash>"),
    );
    for vm in [&reset, &destroyed, &killed, &off] {
        driver.hears(started(vm, 1)).await;
    }
    host.virsh(&["reset", &reset]).await;
    wait_until("a reboot to be counted", || driver.note(&reset, 1).reboots == 1).await;
    host.virsh(&["destroy", &destroyed]).await;
    kill(Pid::from_raw(host.qemu(&killed).unwrap()), Signal::SIGKILL).unwrap();
    host.virsh(&["reset", &off]).await;
    for (vm, how) in [
        (&destroyed, "somebody destroyed its domain"),
        (&killed, "its QEMU ended or was killed"),
        (&off, "its guest shut itself down"),
    ] {
        driver.hears(ended(vm, 1)).await;
        let note = driver.note(vm, 1);
        assert!(note.detail.contains(how), "{vm}: {note:?}");
    }
    assert!(!driver.has(&ended(&reset, 1)), "a guest that reboots goes on");
}

#[tokio::test]
async fn a_vm_that_somebody_migrates_away_is_not_said_to_have_ended() {
    let test = "a_vm_that_somebody_migrates_away_is_not_said_to_have_ended";
    let (Some(from), Some(to)) = (LibvirtHost::new(test), LibvirtHost::new(test)) else { return };
    let moved = name("moved");
    let driver = Driver::start(from.settings());
    driver.hears(Input::HypervisorListed).await;
    driver.order_start(&moved, 1);
    driver.hears(started(&moved, 1)).await;
    // By sockets, since the two have no network in common.
    let socket = format!("unix://{}", to.folder.path().join("migration").display());
    wait_until("the other libvirtd", || to.socket().exists()).await;
    let said = from
        .virsh(&[
            "migrate",
            &moved,
            &to.settings().uri,
            "--live",
            "--p2p",
            "--unsafe",
            "--migrateuri",
            &socket,
        ])
        .await;
    assert!(to.virsh(&["list", "--name"]).await.contains(&moved), "{said}");
    assert!(!from.virsh(&["list", "--name"]).await.contains(&moved), "{said}");
    driver.notes(&moved, VmCondition::MovedAway, "migrated").await;
    // Looks that find nothing don't change that: whoever heard that it ended would start it a second time.
    driver.order_start(&name("another"), 1);
    driver.hears(started(&name("another"), 1)).await;
    assert!(!driver.has(&ended(&moved, 1)), "{:?}", driver.told);
    assert!(driver.note(&moved, 1).detail.contains("migrated"), "{:?}", driver.note(&moved, 1));
    // On this host it certainly does not run.
    driver.order_stop(&moved, 1);
    driver.hears(stopped(&moved, 1, true)).await;
    assert!(to.virsh(&["list", "--name"]).await.contains(&moved));
}

#[tokio::test]
async fn a_start_that_anothers_lock_on_its_disk_refuses_is_told_with_that_reason() {
    let test = "a_start_that_anothers_lock_on_its_disk_refuses_is_told";
    let (Some(one), Some(other)) = (LibvirtHost::new(test), LibvirtHost::new(test)) else { return };
    let locked = name("locked");
    let disk = one.folder.path().join("disk");
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let xml = beating(&locked, &one, &disk.display().to_string());
    let (here, there) = (Driver::start(one.settings()), Driver::start(other.settings()));
    for driver in [&here, &there] {
        driver.hears(Input::HypervisorListed).await;
    }
    here.order_start_of(&locked, 1, xml.clone());
    here.hears(started(&locked, 1)).await;
    there.order_start_of(&locked, 2, xml.clone());
    let outcome = || {
        there.told.lock().unwrap().iter().find_map(|input| match input {
            Input::StartFinished { result, .. } => Some(result.clone()),
            _ => None,
        })
    };
    wait_until("an end of the start", || outcome().is_some()).await;
    let why = outcome().unwrap().expect_err("its disk is in use");
    assert!(why.contains("lock"), "{why}");
    assert!(!there.has(&running(&locked, 2)));
    // A power cut takes the lock with it.
    kill(Pid::from_raw(one.qemu(&locked).unwrap()), Signal::SIGKILL).unwrap();
    here.hears(ended(&locked, 1)).await;
    there.order_start_of(&locked, 3, xml);
    there.hears(started(&locked, 3)).await;
}
