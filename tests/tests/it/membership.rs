//! The replicas change while the cluster works: added, removed, replaced, killed, damaged.

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use defib_lab::cluster::wait_until;
use defib_lab::measure::{power_cut, restore};
use nix::sys::signal::Signal;

use crate::rig::{AMPLE, Rig, run};

/// Waits until these replicas vote, and each of them tells so.
async fn wait_for_voters(rig: &Rig, wanted: &[u64]) {
    wait_until(&format!("{wanted:?} vote"), AMPLE, || async {
        for asked in wanted {
            let status = rig.cluster.operator().status_of(*asked).await?;
            let voters: Vec<u64> = status.replicas.iter().filter(|one| one.voter).map(|one| one.id).collect();
            ensure!(voters == wanted, "replica {asked} says {voters:?}");
        }
        Ok(())
    })
    .await
    .unwrap();
}

/// Starts a replica, and waits until it takes part.
async fn restart(rig: &mut Rig, id: u64) {
    rig.cluster.restart_replica(id).unwrap();
    wait_until("it answers", AMPLE, || async {
        let status = rig.cluster.operator().status_of(id).await?;
        ensure!(status.leader != 0, "it knows of no leader");
        Ok(())
    })
    .await
    .unwrap();
}

/// Restarts every replica and agent, one after the other, so that each reads its file again.
async fn restart_all(rig: &mut Rig, replicas: &[u64]) {
    for id in replicas {
        restart(rig, *id).await;
    }
    for host in rig.cluster.host_names() {
        rig.cluster.signal_agent(&host, Signal::SIGTERM).await.unwrap();
    }
}

async fn settle(rig: &Rig) {
    rig.cluster.settle(AMPLE).await.unwrap_or_else(|error| panic!("{error:#}"));
}

/// All replicas tell the same events with the same hashes, and as many.
async fn assert_same_stream(rig: &Rig, replicas: &[u64]) {
    wait_until("all tell the same", AMPLE, || async {
        let mut heads = Vec::new();
        for id in replicas {
            let mut client = rig.cluster.operator().replica(*id)?;
            let request = defib_wire::v1::StreamEventsRequest { from_seq: 0, follow: false, limit: 0 };
            let mut stream = client.stream_events(request).await?.into_inner();
            let mut last = None;
            while let Some(record) = stream.message().await? {
                last = Some((record.seq, record.hash));
            }
            heads.push(last.context("no event")?);
        }
        ensure!(heads.iter().all(|head| *head == heads[0]), "they end with {heads:?}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_replica_is_added_and_another_removed_while_the_cluster_works() {
    let mut rig = Rig::small().await;
    // Nobody is there, or somebody else: whatever is typed, however often, those who vote stay able to decide.
    for address in ["127.0.0.1:1", "nonsense", "127.0.0.1:0", &rig.cluster.ports()[1].peers.to_string()] {
        for dry_run in [&["--dry-run"][..], &[]] {
            let add = [&["replica", "add", "7", "--address", address][..], dry_run].concat();
            let told = rig.defib_list(&add).await.failed(1);
            assert!(
                ["nobody can be reached at", "is no address", "is the peer address of r2"]
                    .iter()
                    .any(|why| told.contains(why)),
                "{told}"
            );
        }
    }
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let stranger = stranger.local_addr().unwrap().to_string();
    let told = rig.defib(["replica", "add", "7", "--address", &stranger]).await.failed(1);
    assert!(told.contains("r7 learns, but does not vote yet: it has taken nothing"), "{told}");
    wait_for_voters(&rig, &[1, 2, 3]).await;
    rig.defib(["replica", "remove", "7", "--reason", "never came up"]).await.done();
    assert!(!rig.defib(["replica", "list"]).await.done().contains("learner"));
    // Only its number was wrong, perhaps: the address is free again.
    rig.defib(["replica", "add", "8", "--address", &stranger, "--dry-run"]).await.done();
    let own = rig.cluster.new_replica(4).unwrap();
    // As docs/operations/replicas.md says: into every file first, then in.
    restart_all(&mut rig, &[1, 2, 3]).await;
    settle(&rig).await;
    assert_same_stream(&rig, &[1, 2, 3]).await;
    let address = own.peers.to_string();
    let add = ["replica", "add", "4", "--address", &address, "--reason", "room for a loss"];
    let told = rig.json(&add).await;
    // It was waited for: by now it votes, and the answer says where that stands.
    assert!(told["message"].as_str().unwrap().contains("r4 votes"), "{told}");
    assert!(told["log_index"].as_u64().unwrap() > 0, "{told}");
    let listed = rig.json(&["replica", "list"]).await;
    assert!(listed.as_array().unwrap().iter().any(|one| one["id"] == 4 && one["voter"] == true), "{listed}");
    wait_for_voters(&rig, &[1, 2, 3, 4]).await;
    assert!(rig.defib(add).await.failed(1).contains("r4 is a replica already"));
    settle(&rig).await;
    assert_same_stream(&rig, &[1, 2, 3, 4]).await;

    // Two of four may not be lost, so the fourth stands for the first from here on.
    rig.defib(["replica", "remove", "1", "--reason", "an odd number"]).await.done();
    wait_for_voters(&rig, &[2, 3, 4]).await;
    rig.cluster.kill_replica(1);
    let acted = rig.acted().await;
    for (action, reason) in [
        (format!("adds replica r7 at {stranger}"), ""),
        ("removes replica r7".to_owned(), "never came up"),
        (format!("adds replica r4 at {address}"), "room for a loss"),
        ("removes replica r1".to_owned(), "an odd number"),
    ] {
        let wanted = ("demo".to_owned(), action, reason.to_owned());
        assert!(acted.contains(&wanted), "{wanted:?} is not in {acted:?}");
    }
    settle(&rig).await;
    rig.cluster.kill_replica(2);
    let mut follower = rig.cluster.follow();
    wait_until("the other two lead", AMPLE, || async {
        let leader = rig.cluster.operator().status().await?.leader;
        ensure!(leader == 3 || leader == 4, "{leader} leads");
        Ok(())
    })
    .await
    .unwrap();
    // One of the two would be left of two voters, and the other is dead.
    let told = rig.defib(["replica", "remove", "3"]).await.failed(1);
    assert!(told.contains("Not heard: r2") && told.contains("decisions need 2"), "{told}");
    let told = rig.defib(["replica", "transfer", "2"]).await.failed(1);
    assert!(told.contains("r2 can't be heard"), "{told}");
    // A host dies meanwhile: the new replica's ears and vote count.
    power_cut(&rig.cluster, &mut follower, "h1", AMPLE).await.unwrap();
    rig.cluster.restart_replica(2).unwrap();
    restore(&rig.cluster, "h1", AMPLE).await.unwrap();
    assert_same_stream(&rig, &[2, 3, 4]).await;
    rig.assert_calm();
}

/// The log's segments, the newest last.
fn segments(data: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(data)
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("log-"))
        .collect();
    all.sort();
    assert!(!all.is_empty(), "no log in {}", data.display());
    all
}

#[tokio::test]
async fn a_replica_whose_log_is_damaged_in_the_middle_never_guesses_and_is_rebuilt_from_its_peers() {
    let mut rig = Rig::small().await;
    // Long enough that damage in its middle is not its end.
    for _ in 0..5 {
        rig.defib(["pause"]).await.done();
        rig.defib(["resume"]).await.done();
    }
    rig.cluster.kill_replica(3);
    let data = rig.path("replica-3/data");
    let segment = segments(&data).remove(0);
    let bytes = fs::read(&segment).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    let at = used / 2;
    let mut file = fs::File::options().write(true).open(&segment).unwrap();
    file.seek(SeekFrom::Start(at as u64)).unwrap();
    file.write_all(&bytes[at..at + 64].iter().map(|byte| !byte).collect::<Vec<_>>()).unwrap();
    drop(file);
    let damaged = fs::read(&segment).unwrap();
    let config = rig.path("replica-3/replica.yaml").display().to_string();
    for _ in 0..2 {
        let told = run("defibd", ["--config", &config]).await.failed(1);
        for word in ["is damaged at byte", "rebuilt from its peers", "new replica id", "`rebuild: true`"] {
            assert!(told.contains(word), "no {word:?} in: {told}");
        }
        assert!(told.contains(segment.file_name().unwrap().to_str().unwrap()), "{told}");
        assert_eq!(fs::read(&segment).unwrap(), damaged, "what is damaged is left as it is");
    }
    let listed = rig.defib(["replica", "list"]).await.done();
    assert!(listed.contains("voter"), "{listed}");

    // As the message and docs/operations/replicas.md say: a new number, an empty directory, and `replace`.
    let own = rig.cluster.new_replica(4).unwrap();
    restart_all(&mut rig, &[1, 2]).await;
    let address = own.peers.to_string();
    let told = rig.defib(["replica", "replace", "3", "--by", "4", "--address", &address]).await.done();
    assert!(told.contains("r4 votes in the place of r3"), "{told}");
    wait_for_voters(&rig, &[1, 2, 4]).await;
    settle(&rig).await;
    assert_same_stream(&rig, &[1, 2, 4]).await;
    // It may lead, and then acts.
    rig.defib(["replica", "transfer", "4"]).await.done();
    let mut follower = rig.cluster.follow();
    wait_until("it leads", AMPLE, || async {
        let leader = rig.cluster.operator().status().await?.leader;
        ensure!(leader == 4, "{leader} leads");
        Ok(())
    })
    .await
    .unwrap();
    power_cut(&rig.cluster, &mut follower, "h2", AMPLE).await.unwrap();
    restore(&rig.cluster, "h2", AMPLE).await.unwrap();
    rig.assert_calm();
}

#[tokio::test]
async fn a_replica_that_lost_its_directory_does_not_pretend_and_one_that_was_killed_comes_back() {
    let mut rig = Rig::small().await;
    for id in [1, 2, 3, 1] {
        rig.cluster.kill_replica(id);
        rig.cluster.restart_replica(id).unwrap();
        settle(&rig).await;
    }
    assert_same_stream(&rig, &[1, 2, 3]).await;
    // Torn in its last record, as by a power cut: it goes on without it.
    rig.cluster.kill_replica(2);
    let segment = segments(&rig.path("replica-2/data")).pop().unwrap();
    let bytes = fs::read(&segment).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    let mut file = fs::File::options().write(true).open(&segment).unwrap();
    file.seek(SeekFrom::Start((used as u64 + 8) & !7)).unwrap();
    file.write_all(&[0xa5; 300]).unwrap();
    drop(file);
    rig.cluster.restart_replica(2).unwrap();
    settle(&rig).await;
    assert_same_stream(&rig, &[1, 2, 3]).await;
    // Emptied: what it had acknowledged is gone, so it must not vote as the one that it was.
    rig.cluster.kill_replica(2);
    let data = rig.path("replica-2/data");
    fs::rename(&data, rig.path("aside")).unwrap();
    let config = rig.path("replica-2/replica.yaml").display().to_string();
    let told = run("defibd", ["--config", &config]).await.failed(1);
    assert!(
        told.contains("knows replica 2 by another data directory") && told.contains("rebuilt from its peers"),
        "{told}"
    );
    // Nor when no leader is left that could remember how far it had been.
    rig.cluster.kill_replica(1);
    rig.cluster.restart_replica(3).unwrap();
    let told = run("defibd", ["--config", &config]).await.failed(1);
    assert!(told.contains("replica 3 knows replica 2 by another data directory"), "{told}");
    // Two that were emptied are a majority, but found no cluster of their own without the third one's word.
    rig.cluster.kill_replica(3);
    fs::rename(rig.path("replica-1/data"), rig.path("aside-1")).unwrap();
    fs::remove_dir_all(&data).unwrap();
    for id in [1, 2] {
        rig.cluster.restart_replica(id).unwrap();
    }
    wait_until("both say what they wait for", AMPLE, || async {
        for id in [1, 2] {
            let status = rig.cluster.operator().status_of(id).await?;
            let waits = status.attention.iter().any(|line| line.contains("replica 3 was never heard"));
            ensure!(waits && status.leader == 0, "{:?}", status.attention);
        }
        Ok(())
    })
    .await
    .unwrap();
    rig.cluster.restart_replica(3).unwrap();
    wait_until("both end", AMPLE, || {
        let fallen = rig.cluster.fallen_replicas();
        async move {
            ensure!(fallen.len() == 2, "ended are {fallen:?}");
            Ok(())
        }
    })
    .await
    .unwrap();
    rig.cluster.kill_replica(2);
    fs::remove_dir_all(rig.path("replica-1/data")).unwrap();
    fs::rename(rig.path("aside-1"), rig.path("replica-1/data")).unwrap();
    restart(&mut rig, 1).await;
    settle(&rig).await;
    // With another's directory neither.
    fs::remove_dir_all(&data).unwrap();
    fs::create_dir(&data).unwrap();
    for entry in fs::read_dir(rig.path("replica-1/data")).unwrap().flatten() {
        fs::copy(entry.path(), data.join(entry.file_name())).unwrap();
    }
    let told = run("defibd", ["--config", &config]).await.failed(1);
    assert!(told.contains("belongs to replica 1"), "{told}");
    fs::remove_dir_all(&data).unwrap();
    fs::rename(rig.path("aside"), &data).unwrap();
    restart(&mut rig, 2).await;
    settle(&rig).await;
    // Twice with one directory: the second is refused, and the first does not mind.
    let second = fs::read_to_string(&config).unwrap();
    let ports = rig.cluster.ports()[1].clone();
    let listed = [ports.peers, ports.control, ports.heartbeat, ports.metrics];
    let elsewhere =
        listed.iter().fold(second, |text, address| text.replacen(&address.to_string(), "127.0.0.1:0", 1));
    let file = rig.write("second.yaml", &elsewhere);
    let told = run("defibd", ["--config", file.to_str().unwrap()]).await.failed(1);
    assert!(told.contains("is in use by another process"), "{told}");
    settle(&rig).await;
    rig.assert_calm();
}
