//! The Redfish client against the lab's emulator: every fault that field.md 1–6 tells of, and what must come of it.
//!
//! Two things are asserted each time: how the operation ended, and, from the emulator's record of requests, what was
//! and wasn't sent.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use defib_bmc::{
    AlwaysAllowed, Bmc, CredentialRef, ErrorKind, FenceOutcome, Identity, IdentityProblem, PowerState,
    RedfishClient, RedfishEndpoint, ResetOutcome, Trust, fetch_pin, survey,
};
use defib_lab::redfish::{
    Answer, Body, EmulatorConfig, Faults, Hang, Plug, Running, SessionFault, SystemConfig,
};
use defib_tests::bmc::{Closed, ClosesAfter, LateThenClosed, emulated, order};
use tempfile::NamedTempFile;
use tokio::task::JoinSet;
use tokio::time::Instant;

const UUID: &str = "4C4C4544-0035-3410-8050-C6C04F314733";
const SERIAL: &str = "F54P1G3";
/// Longer than anything takes that is expected to work, on any machine.
const AMPLE: Duration = Duration::from_secs(30);

struct Rig {
    bmc: Running,
    endpoint: RedfishEndpoint,
    client: RedfishClient,
    _credentials: NamedTempFile,
}

fn config() -> EmulatorConfig {
    EmulatorConfig::flag(&UUID.to_lowercase(), SERIAL)
}

async fn rig(config: EmulatorConfig) -> Rig {
    let identity = Identity { uuid: Some(UUID.into()), serial: Some(SERIAL.into()) };
    let pause = Duration::from_millis(200);
    let (bmc, endpoint, credentials) = emulated(config, identity, pause).await.unwrap();
    let client = RedfishClient::new(endpoint.clone()).unwrap();
    Rig { bmc, endpoint, client, _credentials: credentials }
}

async fn rig_with(faults: Faults) -> Rig {
    rig(EmulatorConfig { faults, ..config() }).await
}

impl Rig {
    async fn fence(&self, within: Duration) -> FenceOutcome {
        self.client.power_off_and_confirm(order(within, &AlwaysAllowed)).await
    }

    /// `ResetType` of every reset that arrived.
    fn resets(&self) -> Vec<String> {
        self.bmc.requests().into_iter().filter_map(|request| request.reset).collect()
    }

    fn logins(&self) -> usize {
        self.count("POST", "/redfish/v1/SessionService/Sessions")
    }

    fn count(&self, method: &str, path: &str) -> usize {
        self.bmc.requests().iter().filter(|r| r.method == method && r.path == path).count()
    }

    async fn is_on(&self) -> bool {
        self.bmc.truth().await.systems[0].on
    }
}

fn assert_off(outcome: &FenceOutcome) {
    let readings = outcome.readings_off().unwrap_or_else(|| panic!("{outcome}"));
    assert_eq!(readings.len(), 2);
    assert!(readings.iter().all(|reading| reading.state == PowerState::Off));
}

#[tokio::test]
async fn off_is_off_by_two_readings_and_one_request() {
    let rig = rig_with(Faults::default()).await;
    assert_off(&rig.fence(AMPLE).await);
    assert_eq!(rig.resets(), ["ForceOff"]);
    assert!(!rig.is_on().await);
}

#[tokio::test]
async fn a_prepared_question_costs_one_request_and_a_closed_client_leaves_no_session() {
    let rig = rig_with(Faults::default()).await;
    let deadline = Instant::now() + AMPLE;
    rig.client.prepare(deadline).await.unwrap();
    let before = rig.bmc.requests().len();
    let reading = rig.client.read_power(deadline).await.unwrap();
    assert_eq!((reading.state, reading.system.as_str()), (PowerState::On, "/redfish/v1/Systems/1"));
    assert_eq!(rig.bmc.requests().len(), before + 1);
    assert_eq!((rig.logins(), rig.bmc.truth().await.sessions), (1, 1));
    rig.client.close(deadline).await;
    assert_eq!(rig.bmc.truth().await.sessions, 0);
    // And it opens again by itself.
    rig.client.read_power(deadline).await.unwrap();
    assert_eq!(rig.logins(), 2);
}

/// Everything that a BMC may do wrong on the way while the host goes off in the end: it is proven, whatever
/// was answered.
#[tokio::test]
async fn what_ends_in_off_is_proven() {
    let answer = |status, count| Some(Answer::times(status, count));
    let cases: Vec<(&str, Faults)> = vec![
        ("slow", Faults { latency_ms: 60, ..Faults::default() }),
        ("reset 503, then ok", Faults { reset: answer(503, 3), ..Faults::default() }),
        ("reset 500, then ok", Faults { reset: answer(500, 1), ..Faults::default() }),
        ("reset 400, then ok", Faults { reset: answer(400, 2), ..Faults::default() }),
        ("reset 409, then ok", Faults { reset: answer(409, 2), ..Faults::default() }),
        ("read 503, then ok", Faults { get: answer(503, 4), ..Faults::default() }),
        ("read 500, then ok", Faults { get: answer(500, 2), ..Faults::default() }),
        ("read 404, then ok", Faults { get: answer(404, 2), ..Faults::default() }),
        ("state lags", Faults { lag_off_ms: 150, ..Faults::default() }),
        ("powering off for a while", Faults { powering_off_ms: 150, ..Faults::default() }),
        ("done, but never answered", Faults { hang: Hang::ResetDone, ..Faults::default() }),
        ("done, but connection broken", Faults { drop_after_reset: true, ..Faults::default() }),
        (
            "no sessions, basic authentication",
            Faults { session: Some(SessionFault::Absent), ..Faults::default() },
        ),
        ("action info", Faults { action_info: true, ..Faults::default() }),
        ("conflict when already off", Faults { already_is_conflict: true, ..Faults::default() }),
    ];
    for (name, faults) in cases {
        let mut rig = rig_with(faults).await;
        rig.endpoint.limits.request = Duration::from_millis(300);
        rig.client = RedfishClient::new(rig.endpoint.clone()).unwrap();
        let outcome = rig.fence(AMPLE).await;
        assert!(outcome.readings_off().is_some_and(|readings| readings.len() == 2), "{name}: {outcome}");
        assert!(!rig.is_on().await, "{name}");
        assert!(rig.resets().iter().all(|kind| kind == "ForceOff"), "{name}");
    }
}

#[tokio::test]
async fn a_host_that_is_off_already_is_only_looked_at() {
    let rig = rig_with(Faults { already_is_conflict: true, ..Faults::default() }).await;
    rig.bmc.power(false).await.unwrap();
    let outcome = rig.fence(AMPLE).await;
    assert_off(&outcome);
    assert_eq!((outcome.requests(), rig.resets().len()), (0, 0));
}

/// The host goes off by itself between our look and our request, and the request is answered with 409.
#[tokio::test]
async fn a_conflict_because_it_went_off_meanwhile_is_judged_by_reading() {
    // The state lags, so the first look says On, and the request meets a host that is off.
    let rig = rig_with(Faults { already_is_conflict: true, lag_off_ms: 300, ..Faults::default() }).await;
    rig.bmc.power(false).await.unwrap();
    let outcome = rig.fence(AMPLE).await;
    assert_off(&outcome);
    let statuses: Vec<u16> =
        rig.bmc.requests().iter().filter(|r| r.reset.is_some()).map(|r| r.status).collect();
    assert!(statuses.iter().all(|status| *status == 409), "{statuses:?}");
}

/// Everything after which nothing is known: it must never be called off.
#[tokio::test]
async fn what_proves_nothing_is_not_off() {
    type Check = fn(&FenceOutcome) -> bool;
    let unreachable: Check = |outcome| matches!(outcome, FenceOutcome::Unreachable { .. });
    let still_on: Check = |outcome| matches!(outcome, FenceOutcome::StillOn { last: PowerState::On, .. });
    let refused: Check = |outcome| matches!(outcome, FenceOutcome::Refused { .. });
    let cases: Vec<(&str, Faults, Check)> = vec![
        ("accepted, nothing done", Faults { lie_accepted: true, ..Faults::default() }, still_on),
        ("reset 503 for ever", Faults { reset: Some(Answer::always(503)), ..Faults::default() }, still_on),
        ("reset 409 for ever", Faults { reset: Some(Answer::always(409)), ..Faults::default() }, still_on),
        ("reset 403", Faults { reset: Some(Answer::always(403)), ..Faults::default() }, refused),
        ("reads hang", Faults { hang: Hang::Get, ..Faults::default() }, unreachable),
        ("everything hangs", Faults { hang: Hang::All, ..Faults::default() }, unreachable),
        ("slower than the deadline", Faults { latency_ms: 60_000, ..Faults::default() }, unreachable),
        ("reads 503", Faults { get: Some(Answer::always(503)), ..Faults::default() }, unreachable),
        ("reads 401", Faults { get: Some(Answer::always(401)), ..Faults::default() }, refused),
        ("reads 403", Faults { get: Some(Answer::always(403)), ..Faults::default() }, refused),
        ("reads redirect", Faults { get: Some(Answer::always(308)), ..Faults::default() }, unreachable),
        ("garbage", Faults { body: Some(Body::Garbage), ..Faults::default() }, unreachable),
        ("cut off", Faults { body: Some(Body::CutOff), ..Faults::default() }, unreachable),
        ("too large", Faults { body: Some(Body::Huge), ..Faults::default() }, unreachable),
        ("no session", Faults { session: Some(SessionFault::Unavailable), ..Faults::default() }, unreachable),
        ("wrong password", Faults { session: Some(SessionFault::Refused), ..Faults::default() }, refused),
        ("cannot force off", Faults { no_force_off: true, ..Faults::default() }, refused),
        ("lags longer than we wait", Faults { lag_off_ms: 600_000, ..Faults::default() }, still_on),
    ];
    let mut running = JoinSet::new();
    for (name, faults, check) in cases {
        running.spawn(async move {
            let rig = rig_with(faults).await;
            let outcome = rig.fence(Duration::from_secs(2)).await;
            assert!(check(&outcome), "{name}: {outcome}");
            assert!(outcome.readings_off().is_none());
            let text = format!("{outcome} {outcome:?}");
            assert!(!text.contains("lab-only"), "{name}: a password in {text}");
        });
    }
    while let Some(case) = running.join_next().await {
        case.unwrap();
    }
}

#[tokio::test]
async fn a_lying_bmc_is_asked_again_but_not_for_ever() {
    let mut rig = rig_with(Faults { lie_accepted: true, ..Faults::default() }).await;
    rig.endpoint.limits.resend_after = Duration::from_millis(20);
    rig.endpoint.limits.accepted_max = 3;
    rig.client = RedfishClient::new(rig.endpoint.clone()).unwrap();
    let outcome = rig.fence(Duration::from_secs(2)).await;
    assert!(matches!(outcome, FenceOutcome::StillOn { requests: 3, .. }), "{outcome}");
    assert_eq!(rig.resets().len(), 3);
    assert!(rig.is_on().await);
}

#[tokio::test]
async fn a_lying_bmc_that_comes_to_its_senses_is_believed() {
    let rig = rig_with(Faults { lie_accepted: true, ..Faults::default() }).await;
    let fencing = rig.fence(AMPLE);
    let mending = async {
        let deadline = Instant::now() + AMPLE;
        while rig.resets().is_empty() {
            assert!(Instant::now() < deadline, "no reset came");
            tokio::task::yield_now().await;
        }
        rig.bmc.set_faults(Faults::default());
    };
    let (outcome, ()) = tokio::join!(fencing, mending);
    assert_off(&outcome);
    assert!(outcome.requests() >= 2);
}

/// The wrong machine answers: nothing is ever sent to it, whatever it reads.
#[tokio::test]
async fn a_wrong_machine_gets_no_request() {
    let cases = [
        Faults { uuid: Some("00112233-4455-6677-8899-aabbccddeeff".into()), ..Faults::default() },
        Faults { serial: Some("OTHER1".into()), ..Faults::default() },
        Faults { uuid: Some("1".into()), serial: Some("OTHER1".into()), ..Faults::default() },
        Faults { identity_missing: true, ..Faults::default() },
    ];
    for faults in cases {
        for is_on in [true, false] {
            let mut rig = rig_with(faults.clone()).await;
            rig.bmc.power(is_on).await.unwrap();
            for pinned in [None, Some("/redfish/v1/Systems/1".to_owned())] {
                rig.endpoint.system = pinned;
                rig.client = RedfishClient::new(rig.endpoint.clone()).unwrap();
                // One that tells no identity may still come to tell it, and is asked until the end.
                let time = if faults.identity_missing { Duration::from_secs(3) } else { AMPLE };
                let outcome = rig.fence(time).await;
                assert!(
                    matches!(outcome, FenceOutcome::IdentityMismatch { requests: 0, .. }),
                    "{faults:?}: {outcome}"
                );
                let on = rig.client.power_on(&AlwaysAllowed, Instant::now() + AMPLE).await;
                assert!(matches!(on, ResetOutcome::NotSent(_)), "{on}");
                assert!(
                    rig.client
                        .read_power(Instant::now() + AMPLE)
                        .await
                        .unwrap_err()
                        .identity_problem()
                        .is_some()
                );
            }
            assert_eq!(rig.resets(), Vec::<String>::new(), "{faults:?}");
        }
    }
}

/// The machine behind the BMC is exchanged while we fence: readings of the other one count for nothing.
#[tokio::test]
async fn an_identity_that_changes_midway_ends_it() {
    let rig = rig_with(Faults { lie_accepted: true, ..Faults::default() }).await;
    let fencing = rig.fence(AMPLE);
    let exchange = async {
        while rig.resets().is_empty() {
            tokio::task::yield_now().await;
        }
        rig.bmc.set_faults(Faults { uuid: Some("1234".into()), ..Faults::default() });
        rig.bmc.power(false).await.unwrap();
    };
    let (outcome, ()) = tokio::join!(fencing, exchange);
    assert!(matches!(outcome, FenceOutcome::IdentityMismatch { requests: 1.., .. }), "{outcome}");
}

fn system(id: &str, uuid: &str, serial: &str) -> SystemConfig {
    SystemConfig { id: id.into(), uuid: uuid.into(), serial: serial.into(), host: None, power_on: true }
}

#[tokio::test]
async fn of_several_systems_the_one_with_the_identity_is_taken() {
    let systems = vec![system("a", "1111", "A1"), system("b", UUID, SERIAL), system("c", "3333", "C1")];
    let rig = rig(EmulatorConfig { systems, ..config() }).await;
    assert_off(&rig.fence(AMPLE).await);
    let on: Vec<bool> = rig.bmc.truth().await.systems.iter().map(|system| system.on).collect();
    assert_eq!(on, [true, false, true]);
}

#[tokio::test]
async fn none_or_two_systems_with_the_identity_are_no_system() {
    for (systems, ambiguous) in [
        (vec![system("a", "1111", "A1"), system("b", "2222", "B1")], false),
        (vec![system("a", UUID, SERIAL), system("b", UUID, SERIAL)], true),
        (vec![system("a", UUID, "A1"), system("b", "2222", SERIAL)], false),
    ] {
        let rig = rig(EmulatorConfig { systems, ..config() }).await;
        let FenceOutcome::IdentityMismatch { cause, requests: 0 } = rig.fence(AMPLE).await else {
            panic!("mismatch expected");
        };
        let is_ambiguous = matches!(cause.identity_problem(), Some(IdentityProblem::Ambiguous { .. }));
        assert_eq!(is_ambiguous, ambiguous, "{cause}");
        assert_eq!(rig.resets().len(), 0);
    }
}

#[tokio::test]
async fn a_changed_certificate_is_refused_until_its_pin_is_recorded() {
    let mut rig = rig_with(Faults::default()).await;
    rig.client.prepare(Instant::now() + AMPLE).await.unwrap();
    let new_pin = rig.bmc.change_certificate().unwrap();
    let before = rig.bmc.requests().len();
    let FenceOutcome::Refused { cause, requests: 0 } = rig.fence(AMPLE).await else {
        panic!("refusal expected")
    };
    let text = cause.chain();
    assert!(matches!(&*cause.kind, ErrorKind::PinMismatch { .. }) && text.contains(&new_pin), "{text}");
    assert_eq!(rig.bmc.requests().len(), before, "something was sent to a BMC that is not ours");

    // What an operator does: look, compare, record.
    let address = rig.bmc.address.to_string();
    let observed = fetch_pin(&address, Instant::now() + AMPLE).await.unwrap();
    assert_eq!(observed.spki.to_string(), new_pin);
    for pin in [observed.spki, observed.certificate] {
        rig.endpoint.trust = Trust::Pin(pin);
        rig.client = RedfishClient::new(rig.endpoint.clone()).unwrap();
        assert_eq!(rig.client.read_power(Instant::now() + AMPLE).await.unwrap().state, PowerState::On);
    }
}

#[tokio::test]
async fn a_survey_shows_every_system_and_sends_the_password_to_nobody_but_the_owner_of_the_pin() {
    let second = SystemConfig {
        id: "2".to_owned(),
        uuid: "00000000-0000-0000-0000-000000000000".to_owned(),
        serial: "To be filled by O.E.M.".to_owned(),
        host: None,
        power_on: false,
    };
    let mut config = config();
    config.systems.push(second);
    let mut rig = rig(config).await;
    rig.endpoint.identity = Identity::default();
    let systems = survey(rig.endpoint.clone(), Instant::now() + AMPLE).await.unwrap();
    let shown: Vec<_> =
        systems.iter().map(|one| (one.path.as_str(), one.power.clone(), one.identifiable)).collect();
    let paths = ("/redfish/v1/Systems/1", "/redfish/v1/Systems/2");
    assert_eq!(shown, [(paths.0, PowerState::On, true), (paths.1, PowerState::Off, false)]);
    assert_eq!(systems[0].identity.serial.as_deref(), Some(SERIAL));
    assert!(rig.resets().is_empty());
    assert_eq!(rig.bmc.truth().await.sessions, 0, "the session was closed");

    let before = rig.bmc.requests().len();
    rig.bmc.change_certificate().unwrap();
    let error = survey(rig.endpoint.clone(), Instant::now() + AMPLE).await.unwrap_err();
    assert!(matches!(&*error.kind, ErrorKind::PinMismatch { .. }), "{}", error.chain());
    assert_eq!(rig.bmc.requests().len(), before, "something was sent to a BMC that is not ours");
}

#[tokio::test]
async fn an_authority_must_have_issued_the_certificate_for_the_address() {
    let mut rig = rig_with(Faults::default()).await;
    let pem = rig.bmc.certificate_pem();
    rig.endpoint.trust = Trust::ca_from_pem(pem.as_bytes()).unwrap();
    let client = RedfishClient::new(rig.endpoint.clone()).unwrap();
    client.prepare(Instant::now() + AMPLE).await.unwrap();

    rig.bmc.change_certificate().unwrap();
    let error = client.read_power(Instant::now() + AMPLE).await.unwrap_err();
    assert!(matches!(&*error.kind, ErrorKind::Untrusted { .. }), "{}", error.chain());
}

#[tokio::test]
async fn a_forgotten_session_is_opened_again_once() {
    let rig = rig_with(Faults::default()).await;
    let deadline = Instant::now() + AMPLE;
    rig.client.prepare(deadline).await.unwrap();
    rig.bmc.expire_sessions();
    rig.client.read_power(deadline).await.unwrap();
    assert_eq!(rig.logins(), 2);

    rig.bmc.set_faults(Faults { get: Some(Answer::always(401)), ..Faults::default() });
    let error = rig.client.read_power(deadline).await.unwrap_err();
    assert!(matches!(&*error.kind, ErrorKind::Status { status, .. } if status.as_u16() == 401), "{error}");
    assert_eq!(rig.logins(), 3);
}

/// Also where there are no sessions, so that the password goes with each request. A corrected one is tried at once.
#[tokio::test]
async fn wrong_credentials_are_not_tried_over_and_over() {
    for session in [None, Some(SessionFault::Absent)] {
        let mut rig = rig_with(Faults { session, ..Faults::default() }).await;
        let mut file = NamedTempFile::new().unwrap();
        write!(file, "defib\nwrong-secret\n").unwrap();
        rig.endpoint.credentials = CredentialRef::File(file.path().to_owned());
        let client = RedfishClient::new(rig.endpoint.clone()).unwrap();
        for _ in 0..5 {
            let error = client.read_power(Instant::now() + AMPLE).await.unwrap_err();
            assert!(matches!(&*error.kind, ErrorKind::LoginRefused { .. }), "{error}");
            assert!(!format!("{error:?} {}", error.chain()).contains("wrong-secret"));
        }
        let refused = rig.bmc.requests().iter().filter(|request| request.status == 401).count();
        assert_eq!((refused, client.logins_refused()), (1, 1), "repeated logins lock accounts");

        std::fs::write(file.path(), "defib\nlab-only\n").unwrap();
        let reading = client.read_power(Instant::now() + AMPLE).await.unwrap();
        assert_eq!((reading.state, client.logins_refused()), (PowerState::On, 1));
    }
}

#[tokio::test]
async fn sessions_are_reused_so_that_few_are_enough() {
    let rig = rig(EmulatorConfig { session_limit: 1, ..config() }).await;
    let deadline = Instant::now() + AMPLE;
    let client = Arc::new(RedfishClient::new(rig.endpoint.clone()).unwrap());
    let questions: Vec<_> = (0..16)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.read_power(deadline).await.map(|reading| reading.state) })
        })
        .collect();
    for question in questions {
        assert_eq!(question.await.unwrap().unwrap(), PowerState::On);
    }
    assert_eq!((rig.logins(), rig.bmc.truth().await.sessions), (1, 1));

    // Somebody else finds no place, and is told so; it is no matter of credentials.
    let error = rig.client.read_power(deadline).await.unwrap_err();
    assert!(matches!(&*error.kind, ErrorKind::SessionUnavailable { .. }) && error.is_transient(), "{error}");
    client.close(deadline).await;
    rig.client.read_power(deadline).await.unwrap();
}

#[tokio::test]
async fn a_question_that_hangs_does_not_hold_up_the_power_off() {
    let rig = rig_with(Faults::default()).await;
    rig.client.prepare(Instant::now() + AMPLE).await.unwrap();
    rig.bmc.set_faults(Faults { latency_ms: 600_000, ..Faults::default() });
    let hung = rig.client.read_power(Instant::now() + AMPLE);
    let fencing = async {
        // The question is on its way once it is in the record.
        let before = rig.bmc.requests().len();
        let deadline = Instant::now() + AMPLE;
        while rig.bmc.requests().len() == before {
            assert!(Instant::now() < deadline, "the question did not arrive");
            tokio::task::yield_now().await;
        }
        rig.bmc.set_faults(Faults::default());
        rig.fence(AMPLE).await
    };
    tokio::select! {
        biased;
        _ = hung => panic!("the question was answered"),
        outcome = fencing => assert_off(&outcome),
    }
}

#[tokio::test]
async fn a_dark_bmc_is_unreachable_and_works_again_afterwards() {
    let rig = rig_with(Faults::default()).await;
    rig.client.prepare(Instant::now() + AMPLE).await.unwrap();
    rig.bmc.plug(Plug { pulled: true, bmc_dark: true, power_on: false }).await.unwrap();
    let outcome = rig.fence(Duration::from_millis(500)).await;
    assert!(matches!(outcome, FenceOutcome::Unreachable { .. }), "{outcome}");
    // Proven off only once the BMC tells so.
    rig.bmc.plug(Plug { pulled: false, ..Plug::default() }).await.unwrap();
    let outcome = rig.fence(AMPLE).await;
    assert_off(&outcome);
    assert_eq!(outcome.requests(), 0);
}

#[tokio::test]
async fn without_the_right_to_write_nothing_is_written() {
    let rig = rig_with(Faults::default()).await;
    let outcome = rig.client.power_off_and_confirm(order(AMPLE, &Closed)).await;
    assert!(matches!(outcome, FenceOutcome::Revoked { requests: 0 }), "{outcome}");
    let on = rig.client.power_on(&Closed, Instant::now() + AMPLE).await;
    assert!(matches!(on, ResetOutcome::NotSent(_)));
    assert_eq!(rig.resets().len(), 0);
}

/// The BMC has taken it, perhaps: whoever does not lead any more must not send it again, seconds later.
#[tokio::test]
async fn a_reset_that_was_not_answered_is_not_sent_again_without_leave() {
    let rig = rig_with(Faults { hang: Hang::Reset, ..Faults::default() }).await;
    let mut endpoint = rig.endpoint.clone();
    endpoint.limits.request = Duration::from_millis(300);
    let client = RedfishClient::new(endpoint).unwrap();
    // Its connection was used before, so it may be taken for one that has died.
    client.prepare(Instant::now() + AMPLE).await.unwrap();
    let outcome = client.power_off_and_confirm(order(AMPLE, &ClosesAfter::asked(1))).await;
    assert!(matches!(outcome, FenceOutcome::Revoked { requests: 1 }), "{outcome}");
    assert_eq!(rig.resets(), ["ForceOff"]);
    let on = client.power_on(&ClosesAfter::asked(0), Instant::now() + AMPLE).await;
    assert!(matches!(on, ResetOutcome::NotSent(_)), "{on}");
    assert_eq!(rig.resets(), ["ForceOff"]);
}

/// Nor is it after a new login.
#[tokio::test]
async fn a_reset_that_was_refused_for_its_session_is_not_sent_again_without_leave() {
    let rig = rig_with(Faults { reset: Some(Answer::times(401, 1)), ..Faults::default() }).await;
    rig.client.prepare(Instant::now() + AMPLE).await.unwrap();
    let outcome = rig.client.power_off_and_confirm(order(AMPLE, &ClosesAfter::asked(1))).await;
    assert!(matches!(outcome, FenceOutcome::Revoked { requests: 0 }), "{outcome}");
    assert_eq!((rig.resets().len(), rig.logins()), (1, 2), "it was refused, and a new session was made");
    assert!(rig.is_on().await);
}

#[tokio::test]
async fn a_leave_to_switch_on_or_to_restart_that_was_long_on_its_way_is_asked_for_again() {
    let rig = rig(config()).await;
    rig.bmc.power(false).await.unwrap();
    let deadline = Instant::now() + AMPLE;
    for restart in [false, true] {
        let gate = LateThenClosed::by(Duration::from_millis(1200));
        let outcome = match restart {
            false => rig.client.power_on(&gate, deadline).await,
            true => rig.client.restart_bmc(&gate, deadline).await,
        };
        let ResetOutcome::NotSent(error) = &outcome else { panic!("{outcome:?}") };
        assert!(matches!(&*error.kind, ErrorKind::Revoked), "{error}");
    }
    assert_eq!(rig.resets(), [""; 0]);
}

#[tokio::test]
async fn power_on_is_asked_once_and_judged_by_reading() {
    let rig = rig_with(Faults::default()).await;
    rig.bmc.power(false).await.unwrap();
    let deadline = Instant::now() + AMPLE;
    let outcome = rig.client.power_on(&AlwaysAllowed, deadline).await;
    assert!(matches!(outcome, ResetOutcome::Accepted { .. }), "{outcome}");
    while rig.client.read_power(deadline).await.unwrap().state != PowerState::On {
        assert!(Instant::now() < deadline);
    }
    assert_eq!(rig.resets(), ["On"]);
}
