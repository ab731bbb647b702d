//! What BMCs tell by themselves, heard by real replicas: it makes them ask sooner, and nothing else.

use std::collections::BTreeSet;

use defib_lab::{
    cluster::{LabHost, wait_until},
    redfish::{EventFault, Faults, Happening},
};
use defib_model::{Event, EventKind, Millis, Opinion, Policy, ReplicaId};

use crate::rig::{AMPLE, Rig, SMALL, quick};

/// Silence alone makes nobody ask before this has passed: so whoever asks earlier was hinted.
const ASK_AFTER: Millis = Millis(8000);

/// Longer than a log is left unread.
pub(crate) const ASK_LATE: Millis = Millis(60_000);

/// Silence alone makes nobody ask before `ask_after`.
pub(crate) fn slow_to_ask(ask_after: Millis) -> Policy {
    let mut policy = quick();
    policy.detection.heartbeat_interval = Millis(200);
    policy.detection.ask_after_beats = u32::try_from(ask_after.0 / 200).unwrap();
    policy.detection.act_after = ask_after.times(2);
    policy.detection.act_after_max = ask_after.times(2);
    policy
}

pub(crate) fn power_off() -> Happening {
    Happening {
        message_id: "ResourceEvent.1.3.0.ResourcePoweredOff".into(),
        message: "The resource has powered off.".into(),
        severity: "OK".into(),
        origin: "/redfish/v1/Systems/1".into(),
    }
}

/// Waits until so many lines of these replicas' logs say this of a host.
pub(crate) async fn wait_for_lines(rig: &Rig, replicas: &[u64], words: &str, host: &str, count: usize) {
    let of_host = format!("host={host}");
    for id in replicas {
        wait_until(&format!("r{id} says {words:?} of {host} {count} times"), AMPLE, || async {
            let log = rig.cluster.replica_log(*id)?;
            let lines = log.lines().filter(|line| line.contains(words) && line.contains(&of_host));
            let found = lines.count();
            anyhow::ensure!(found >= count, "it was said {found} times");
            Ok(())
        })
        .await
        .unwrap();
    }
}

pub(crate) fn host<'a>(rig: &'a Rig, name: &str) -> &'a LabHost {
    rig.cluster.host(name).unwrap()
}

pub(crate) async fn dead(rig: &Rig, host: &str) -> Vec<Event> {
    rig.wait_for(&["events"], &format!("host {host}: death proven")).await;
    rig.events().await
}

/// A quorum asked about the host before silence alone would have made it.
#[track_caller]
pub(crate) fn assert_asked_sooner(events: &[Event], of: &str, ask_after: Millis) {
    let mut sooner: BTreeSet<ReplicaId> = BTreeSet::new();
    for event in events {
        if let EventKind::OpinionChanged { observer, host, to: Opinion::Asks, silent_ms, .. } = &event.kind
            && host.as_str() == of
            && *silent_ms < ask_after.0
        {
            sooner.insert(*observer);
        }
    }
    assert!(sooner.len() >= 2, "a quorum asks sooner than silence alone makes it: {sooner:?} of {events:#?}");
}

/// The first doubt that came after its BMC's word follows from that word.
#[track_caller]
pub(crate) fn assert_begun_by_its_bmc(events: &[Event], of: &str) {
    let told = events
        .iter()
        .find(|event| matches!(&event.kind, EventKind::BmcTold { host, .. } if host.as_str() == of));
    let told = told.unwrap_or_else(|| panic!("its BMC's word is not in the stream: {events:#?}"));
    let doubt = events.iter().find(|event| {
        matches!(&event.kind, EventKind::OpinionChanged { host, to: Opinion::Asks, .. } if host.as_str() == of)
    });
    let doubt = doubt.expect("somebody asked");
    if told.seq < doubt.seq {
        assert_eq!(doubt.cause, Some(told.seq), "{events:#?}");
    }
}

#[tokio::test]
async fn a_bmc_that_tells_of_a_lost_power_is_heard_and_heard_again_after_its_restart_and_a_liar_moves_nobody()
{
    let mut rig = Rig::with(SMALL, slow_to_ask(ASK_AFTER)).await;
    let leader = rig.cluster.operator().status().await.unwrap().leader;
    let all = [1, 2, 3];
    let heard = "the events of its BMC are heard";
    for host in ["h1", "h2"] {
        wait_for_lines(&rig, &[leader], heard, host, 1).await;
    }
    host(&rig, "h1").admin.restart_bmc().await.unwrap();
    wait_for_lines(&rig, &[leader], "its BMC are not heard any more", "h1", 1).await;
    wait_for_lines(&rig, &[leader], heard, "h1", 2).await;

    // It lies, and says it again and again, of a host that beats.
    for _ in 0..100 {
        host(&rig, "h2").admin.tell(&power_off()).await.unwrap();
    }
    wait_for_lines(&rig, &all, "its BMC told that its power goes", "h2", 1).await;
    wait_for_lines(&rig, &[leader], "its BMC tells: ", "h2", 100).await;

    rig.cluster.plug_out("h1", false).await.unwrap();
    let events = dead(&rig, "h1").await;
    assert_asked_sooner(&events, "h1", ASK_AFTER);
    assert_begun_by_its_bmc(&events, "h1");
    // Of a hundred words of one BMC few stand in the stream.
    let of_h2 =
        |event: &&Event| matches!(&event.kind, EventKind::BmcTold { host, .. } if host.as_str() == "h2");
    let told = events.iter().filter(of_h2).count();
    assert!((1..20).contains(&told), "{told}");
    let said: Vec<String> = events.iter().map(|event| event.kind.to_string()).collect();
    // On a busy machine it may miss a beat and be asked about; nothing more.
    let harmed = |event: &String| event.contains("h2: fenc") || event.contains("h2: death proven");
    assert!(!said.iter().any(harmed), "{said:#?}");
    let truth = host(&rig, "h2").admin.truth().await.unwrap();
    assert!(truth.systems.iter().all(|system| system.on), "{truth:?}");
    rig.assert_calm();
}

#[tokio::test]
async fn the_log_of_a_bmc_without_a_stream_is_read_and_its_entries_are_hints() {
    let mut rig = Rig::with(SMALL, slow_to_ask(ASK_LATE)).await;
    let leader = rig.cluster.operator().status().await.unwrap().leader;
    let heard = "the events of its BMC are heard";
    wait_for_lines(&rig, &[leader], heard, "h1", 1).await;
    // Its new firmware has no stream.
    let faults = Faults { events: Some(EventFault::Absent), ..Faults::default() };
    host(&rig, "h1").admin.set_faults(&faults).await.unwrap();
    host(&rig, "h1").admin.restart_bmc().await.unwrap();
    wait_for_lines(&rig, &[leader], heard, "h1", 2).await;

    rig.cluster.plug_out("h1", false).await.unwrap();
    wait_for_lines(&rig, &[1, 2, 3], "its BMC told that its power goes", "h1", 1).await;
    let events = dead(&rig, "h1").await;
    assert_asked_sooner(&events, "h1", ASK_LATE);
    let truth = host(&rig, "h1").admin.truth().await.unwrap();
    assert_eq!(truth.listeners, 0, "it was not heard by a stream");
    rig.assert_calm();
}
