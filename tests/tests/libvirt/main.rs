//! The agent's libvirt driver against a real libvirtd with real QEMU guests, in namespaces of their own.
//!
//! The guests have no disk: they come up to their BIOS and stay there, which is all that a driver can see of a
//! guest without an agent. Needs root.

#![cfg(feature = "libvirt")]
#![expect(clippy::unwrap_used, reason = "helpers of tests may end them by a panic")]

mod cluster;
mod conditions;
mod discovery;
mod harness;

use std::fs;

use defib_agent::hypervisor::{Job, StartOrder};
use defib_engine::guard::Input;
use defib_model::Incarnation;
use defib_model::inventory::Definition;
use defib_tests::wait_until;
use harness::{Driver, LibvirtHost, domain, ended, late, name, running, started, stopped, vm};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

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
    driver.order(Job::Start(StartOrder {
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
    // As the guard does, which asks again.
    wait_until("a certain stop", || {
        driver.order_stop(&doomed, 1);
        driver.has(&stopped(&doomed, 1, true))
    })
    .await;
    assert_eq!(host.qemu(&doomed), None);
    // Once it is known, starts fail instead of hanging, and say why.
    wait_until("its silence to be noticed", || {
        driver.notes.found_since(u64::MAX).is_some_and(|(_, found)| !found.trouble.is_empty())
    })
    .await;
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
