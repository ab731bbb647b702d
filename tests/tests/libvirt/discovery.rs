//! What else there is on a host: domains that are not ours, definitions, storage pools.

use std::fs;

use defib_engine::guard::Input;
use defib_model::Incarnation;
use defib_tests::wait_until;
use defib_wire::v1;

use crate::harness::{Driver, LibvirtHost, domain, name, running, started, stopped};

/// What the driver found, as it tells the replicas.
fn found(driver: &Driver) -> v1::HostFindings {
    driver.notes.found_since(0).map(|(_, found)| found).unwrap_or_default()
}

fn of(driver: &Driver, name: &str) -> Option<v1::FoundDomain> {
    found(driver).domains.into_iter().find(|domain| domain.name == name)
}

impl LibvirtHost {
    /// Hands a document to libvirt by a command of virsh's.
    async fn gives(&self, command: &str, xml: &str) {
        let file = self.folder.path().join("document.xml");
        fs::write(&file, xml).unwrap();
        let said = self.virsh(&[command, &file.display().to_string()]).await;
        assert!(!said.contains("error"), "{said}");
    }
}

#[tokio::test]
async fn a_persistent_domain_that_runs_is_found_and_taken_over_without_being_started_again() {
    let Some(host) = LibvirtHost::new("a_persistent_domain_that_runs_is_found_and_taken_over") else {
        return;
    };
    let (theirs, off) = (name("theirs"), name("off"));
    let xml = domain(&theirs).replace(
        "</uuid>",
        "</uuid><metadata><p:policy xmlns:p='https://defib.dev/xmlns/libvirt/policy/1' priority='high'/></metadata>",
    );
    wait_until("the daemon", || host.socket().exists()).await;
    host.gives("define", &xml).await;
    host.virsh(&["autostart", &theirs]).await;
    host.virsh(&["start", &theirs]).await;
    host.gives("define", &domain(&off)).await;
    let qemu = host.qemu(&theirs).unwrap();

    let driver = Driver::start(host.settings());
    driver.hears(Input::HypervisorListed).await;
    // With the very first report, so that nobody starts it elsewhere; what is only defined is nobody's double.
    let unprotected = driver.host_note().unprotected;
    assert_eq!(unprotected.values().collect::<Vec<_>>(), [&theirs]);
    assert!(domain(&theirs).contains(unprotected.keys().next().unwrap()), "{unprotected:?}");
    wait_until("both to be found", || of(&driver, &off).is_some()).await;
    let one = of(&driver, &theirs).unwrap();
    assert!(one.running && one.persistent && one.autostart && !one.marked, "{one:?}");
    assert_eq!((one.memory_mib, one.vcpus, one.policy["priority"].as_str()), (16, 1, "high"));
    assert!(!of(&driver, &off).unwrap().running);

    // Another machine of that name is left alone.
    let other = xml.replace("00000000-0000-4000-8000", "00000000-0000-4000-9000");
    driver.order_start_of(&theirs, 1, other);
    wait_until("a refusal", || {
        driver.told.lock().unwrap().iter().any(
            |input| matches!(input, Input::StartFinished { result: Err(why), .. } if why.contains("it is another machine")),
        )
    })
    .await;
    assert_eq!(of(&driver, &theirs), Some(one.clone()));

    driver.order_start_of(&theirs, 2, one.definition.clone());
    driver.hears(started(&theirs, 2)).await;
    assert_eq!(host.qemu(&theirs), Some(qemu), "the same one");
    let metadata = host.virsh(&["metadata", &theirs, "https://defib.dev/xmlns/libvirt/1"]).await;
    assert!(metadata.contains("incarnation=\"2\""), "{metadata}");
    assert!(
        host.virsh(&["list", "--persistent", "--name"]).await.trim().is_empty(),
        "no libvirt starts it any more"
    );
    assert!(driver.host_note().unprotected.is_empty());
    wait_until("it to be no find any more", || of(&driver, &theirs).is_none()).await;
    // The next agent knows it by its mark, and it is stopped like any other.
    let next = Driver::start(host.settings());
    next.hears(running(&theirs, 2)).await;
    next.order_stop(&theirs, 2);
    next.hears(stopped(&theirs, 2, true)).await;
    assert_eq!(host.qemu(&theirs), None);
    assert_eq!(host.virsh(&["list", "--all", "--name"]).await.trim(), off);
}

#[tokio::test]
async fn a_definition_that_libvirt_starts_by_itself_keeps_a_vm_from_being_started_beside_it() {
    let Some(host) = LibvirtHost::new("a_definition_that_libvirt_starts_by_itself_keeps_a_vm") else {
        return;
    };
    let twice = name("twice");
    wait_until("the daemon", || host.socket().exists()).await;
    host.gives("define", &domain(&twice)).await;
    host.virsh(&["autostart", &twice]).await;
    let driver = Driver::start(host.settings());
    driver.hears(Input::HypervisorListed).await;
    driver.order_start(&twice, 1);
    wait_until("a refusal", || {
        driver.told.lock().unwrap().iter().any(|input| {
            matches!(input, Input::StartFinished { incarnation: Incarnation(1), result: Err(why), .. }
                if why.contains("virsh undefine"))
        })
    })
    .await;
    assert_eq!(host.qemu(&twice), None);
    host.virsh(&["undefine", &twice]).await;
    driver.order_start(&twice, 2);
    driver.hears(started(&twice, 2)).await;
}

#[tokio::test]
async fn a_storage_pool_that_is_not_reached_is_told_until_it_is() {
    let Some(host) = LibvirtHost::new("a_storage_pool_that_is_not_reached_is_told_until_it_is") else {
        return;
    };
    let directory = host.folder.path().join("pool");
    fs::create_dir(&directory).unwrap();
    wait_until("the daemon", || host.socket().exists()).await;
    let pool = |name: &str, path: &str| {
        format!("<pool type='dir'><name>{name}</name><target><path>{path}</path></target></pool>")
    };
    host.gives("pool-define", &pool("fast", &directory.display().to_string())).await;
    let driver = Driver::start(host.settings());
    driver.hears(Input::HypervisorListed).await;
    let trouble = || driver.host_note().unreachable.get("fast").cloned();
    wait_until("an inactive pool", || trouble().is_some_and(|why| why.contains("not active"))).await;
    host.virsh(&["pool-start", "fast"]).await;
    wait_until("an active pool", || trouble().is_none()).await;
    let datastore = found(&driver).datastores.remove(0);
    assert_eq!((datastore.kind.as_str(), datastore.target), ("dir", directory.display().to_string()));
    // Libvirt itself does not notice.
    fs::remove_dir(&directory).unwrap();
    wait_until("a lost directory", || trouble().is_some_and(|why| why.contains("No such file"))).await;
    assert!(host.virsh(&["pool-list"]).await.contains("active"));
}
