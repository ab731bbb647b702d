//! A whole cluster, one host of which has a libvirtd of its own: from what its agent finds to a VM that is protected.

use std::fs;
use std::io::Write as _;
use std::time::Duration;

use defib_lab::cluster::{Cluster, Options, Profile, Size, wait_until};
use defib_model::EventKind;
use defib_wire::v1;
use nix::sys::signal::Signal;

use crate::harness::{LibvirtHost, domain, name};

/// Longer than anything takes that is expected to work, on any machine.
const AMPLE: Duration = Duration::from_secs(120);

/// What agents found, as the leader tells it.
async fn discover(cluster: &Cluster) -> v1::DiscoverResponse {
    let leader = cluster.operator().status().await.unwrap().leader;
    let mut client = cluster.operator().replica(leader).unwrap();
    client.discover(v1::DiscoverRequest::default()).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_domain_that_runs_is_discovered_declared_and_protected_without_a_second_start() {
    let Some(libvirt) = LibvirtHost::new("a_domain_that_runs_is_discovered_declared_and_protected") else {
        return;
    };
    let theirs = name("protected");
    defib_tests::wait_until("the daemon", || libvirt.socket().exists()).await;
    let file = libvirt.folder.path().join("theirs.xml");
    fs::write(&file, domain(&theirs)).unwrap();
    libvirt.virsh(&["define", &file.display().to_string()]).await;
    libvirt.virsh(&["start", &theirs]).await;
    let qemu = libvirt.qemu(&theirs).unwrap();

    let directory = tempfile::tempdir().unwrap();
    let mut options = Options::new(directory.path().join("lab"), Profile::Default);
    options.size = Size { hosts: 4, victim_vms: 1, other_vms: 1 };
    let cluster = Cluster::start(options).await.unwrap();
    cluster.settle(AMPLE).await.unwrap();
    let config = cluster.directory().join("hosts/h2/agent.yaml");
    let mut config = fs::OpenOptions::new().append(true).open(config).unwrap();
    let settings = libvirt.settings();
    let (uri, status) = (settings.uri, settings.status_dir.display().to_string());
    writeln!(config, "libvirt: {{ uri: {uri:?}, status-dir: {status:?} }}").unwrap();
    cluster.signal_agent("h2", Signal::SIGTERM).await.unwrap();

    wait_until("the domain to be found", AMPLE, || async {
        let found = discover(&cluster).await;
        anyhow::ensure!(found.yaml.contains(&theirs), "{:?}", found.hosts);
        Ok(())
    })
    .await
    .unwrap();
    let found = discover(&cluster).await;
    assert!(found.yaml.contains("first-host: h2"), "{}", found.yaml);
    assert!(
        found.notes.iter().any(|note| note.contains("its definition is removed from libvirt")),
        "{:?}",
        found.notes
    );
    let host = cluster.operator().hosts().await.unwrap().into_iter().find(|host| host.id == "h2").unwrap();
    assert!(host.found.iter().any(|line| line.contains(&format!("domain {theirs}"))), "{:?}", host.found);

    cluster.operator().apply_inventory(&found.yaml).await.unwrap();
    let summary = || async { cluster.operator().vm(&theirs).await.map(|vm| vm.summary.unwrap_or_default()) };
    wait_until("the VM to be protected", AMPLE, || async {
        let vm = cluster.operator().vm(&theirs).await?;
        let summary = vm.summary.clone().unwrap_or_default();
        anyhow::ensure!((summary.state.as_str(), summary.host.as_str()) == ("running", "h2"), "{vm:?}");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(libvirt.qemu(&theirs), Some(qemu), "it was not started again");
    assert!(libvirt.virsh(&["list", "--persistent", "--name"]).await.trim().is_empty());

    // And what its hypervisor says of it is seen.
    libvirt.virsh(&["suspend", &theirs]).await;
    for condition in ["paused", "normal"] {
        wait_until(condition, AMPLE, || async {
            let summary = summary().await?;
            anyhow::ensure!(summary.condition == condition, "{summary:?}");
            Ok(())
        })
        .await
        .unwrap();
        libvirt.virsh(&["resume", &theirs]).await;
    }
    let events = cluster.follow();
    wait_until("its event", AMPLE, || async {
        let told =
            events.all().iter().any(|seen| matches!(seen.event.kind, EventKind::VmConditionChanged { .. }));
        anyhow::ensure!(told, "no event of its condition");
        Ok(())
    })
    .await
    .unwrap();
}
