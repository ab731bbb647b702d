//! The IPMI driver against Debian's `ipmi_sim`, whose chassis program kills a real process.
//!
//! Asserted each time: how the operation ended, whether the process runs, and what the simulator was asked to switch.

#![expect(clippy::unwrap_used, reason = "helpers of tests may end them by a panic")]

use std::io::Write;
use std::time::Duration;

use defib_bmc::{
    AlwaysAllowed, Bmc, CredentialRef, ErrorKind, FenceOutcome, Identity, IpmiClient, IpmiEndpoint,
    PowerState,
};
use defib_lab::ipmi::{IpmiConfig, IpmiSim};
use defib_lab::needs;
use defib_model::inventory::CipherSuite;
use defib_tests::bmc::{Closed, order};
use defib_tests::{skip, wait_until};
use tempfile::{NamedTempFile, TempDir};
use tokio::time::Instant;

const UUID: &str = "A1234567-89AB-CDEF-0123-456789ABCDEF";
/// Longer than anything takes that is expected to work, on any machine.
const AMPLE: Duration = Duration::from_secs(60);

struct Rig {
    sim: IpmiSim,
    endpoint: IpmiEndpoint,
    _folder: TempDir,
    _credentials: NamedTempFile,
}

/// `None`, loudly, where the programs are missing.
async fn rig(test: &str) -> Option<Rig> {
    if let Err(why) = needs::all(&["ipmi_sim", "ipmitool"]) {
        skip(test, &why);
        return None;
    }
    let config = IpmiConfig::default();
    let folder = tempfile::tempdir().unwrap();
    let sim = IpmiSim::start(folder.path(), &config).await.unwrap();
    let mut credentials = NamedTempFile::new().unwrap();
    write!(credentials, "{}\n{}\n", config.user, config.password).unwrap();
    let mut endpoint = IpmiEndpoint::new(
        "h1",
        sim.address().to_string(),
        Identity { uuid: Some(UUID.into()), serial: Some(config.serial) },
        CredentialRef::File(credentials.path().to_owned()),
    );
    // All that this simulator knows.
    endpoint.cipher_suite = CipherSuite::Sha1;
    endpoint.limits.request = AMPLE;
    endpoint.limits.resend_after = Duration::from_millis(200);
    endpoint.limits.backoff_min = Duration::from_millis(10);
    endpoint.limits.backoff_max = Duration::from_millis(50);
    Some(Rig { sim, endpoint, _folder: folder, _credentials: credentials })
}

impl Rig {
    fn client(&self) -> IpmiClient {
        IpmiClient::new(self.endpoint.clone()).unwrap()
    }

    async fn fence(&self, within: Duration) -> FenceOutcome {
        self.client().power_off_and_confirm(order(within, &AlwaysAllowed)).await
    }
}

fn ample() -> Instant {
    Instant::now() + AMPLE
}

#[tokio::test]
async fn off_kills_the_process_and_is_read_back_twice_with_the_identity() {
    let Some(mut rig) = rig("off_kills_the_process_and_is_read_back_twice_with_the_identity").await else {
        return;
    };
    let reading = rig.client().read_power(ample()).await.unwrap();
    assert_eq!(reading.state, PowerState::On);
    assert_eq!(reading.identity.serial.as_deref(), Some("SN-1"));
    let outcome = rig.fence(AMPLE).await;
    let readings = outcome.readings_off().unwrap_or_else(|| panic!("{outcome}"));
    assert_eq!(readings.len(), 2);
    assert_eq!(readings[0].identity.uuid.as_deref(), Some(UUID.to_lowercase().as_str()));
    assert!(!rig.sim.host_runs());
    assert_eq!(rig.sim.switched(), ["set power 0"]);
    // What is off already proves as much, and nothing is switched again.
    assert_eq!(rig.fence(AMPLE).await.requests(), 0);
    assert_eq!(rig.sim.switched(), ["set power 0"]);
}

#[tokio::test]
async fn a_controller_of_another_machine_is_asked_and_never_told() {
    let Some(mut rig) = rig("a_controller_of_another_machine_is_asked_and_never_told").await else { return };
    for identity in [
        Identity::by_uuid("a1234567-89ab-cdef-0123-456789abcdee"),
        Identity::by_serial("SN-2"),
        Identity { uuid: Some(UUID.into()), serial: Some("SN-2".into()) },
    ] {
        rig.endpoint.identity = identity.clone();
        let outcome = rig.fence(AMPLE).await;
        assert!(
            matches!(outcome, FenceOutcome::IdentityMismatch { requests: 0, .. }),
            "{identity}: {outcome}"
        );
        assert!(rig.client().read_power(ample()).await.is_err());
    }
    assert!(rig.sim.host_runs());
    assert_eq!(rig.sim.switched(), [""; 0]);
}

#[tokio::test]
async fn one_that_accepts_and_does_nothing_proves_nothing() {
    let Some(mut rig) = rig("one_that_accepts_and_does_nothing_proves_nothing").await else { return };
    rig.sim.deaf(true).unwrap();
    rig.endpoint.limits.accepted_max = 2;
    let outcome = rig.fence(Duration::from_secs(3)).await;
    assert!(matches!(outcome, FenceOutcome::StillOn { last: PowerState::On, .. }), "{outcome}");
    assert!(rig.sim.host_runs());
    rig.sim.deaf(false).unwrap();
    assert!(rig.fence(AMPLE).await.readings_off().is_some());
}

#[tokio::test]
async fn a_wrong_password_a_refused_suite_and_a_dark_controller_are_told_apart() {
    let Some(mut rig) = rig("a_wrong_password_a_refused_suite_and_a_dark_controller_are_told_apart").await
    else {
        return;
    };
    let good = rig.endpoint.clone();
    let mut wrong = NamedTempFile::new().unwrap();
    write!(wrong, "defib\nverkehrt\n").unwrap();
    rig.endpoint.credentials = CredentialRef::File(wrong.path().to_owned());
    let client = rig.client();
    let error = client.prepare(ample()).await.unwrap_err();
    assert!(error.to_string().contains("correct the credentials"), "{error}");
    assert!(!error.is_transient() && !error.chain().contains("verkehrt"));
    // Not tried again at once: accounts get locked. So it is known without the controller.
    rig.sim.slow(Some(30.0)).unwrap();
    assert!(client.prepare(ample()).await.unwrap_err().to_string().contains("correct the credentials"));
    rig.sim.slow(None).unwrap();

    rig.endpoint = IpmiEndpoint { cipher_suite: CipherSuite::Sha256, ..good.clone() };
    let error = rig.client().prepare(ample()).await.unwrap_err();
    assert!(error.to_string().contains("cipher-suite: 3"), "{error}");

    rig.endpoint = IpmiEndpoint { program: "/no/such/ipmitool".into(), ..good.clone() };
    let error = rig.client().prepare(ample()).await.unwrap_err();
    assert!(matches!(*error.kind, ErrorKind::NotInstalled { .. }), "{error}");

    rig.endpoint = good;
    rig.sim.darken();
    let outcome = rig.fence(Duration::from_secs(2)).await;
    assert!(matches!(outcome, FenceOutcome::Unreachable { requests: 0, .. }), "{outcome}");
    assert!(rig.sim.host_runs());
}

#[tokio::test]
async fn a_slow_controller_is_given_up_at_the_deadline_and_leaves_no_program_behind() {
    let Some(rig) = rig("a_slow_controller_is_given_up_at_the_deadline_and_leaves_no_program_behind").await
    else {
        return;
    };
    rig.sim.slow(Some(20.0)).unwrap();
    let outcome = rig.fence(Duration::from_millis(500)).await;
    assert!(outcome.readings_off().is_none(), "{outcome}");
    let port = rig.sim.address().port().to_string();
    let left = || {
        let mut processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let command = std::fs::read(entry.ok()?.path().join("cmdline")).ok()?;
            Some(String::from_utf8_lossy(&command).into_owned())
        });
        processes.any(|command| command.starts_with("ipmitool\0") && command.contains(&port))
    };
    wait_until("the program's end", || !left()).await;
}

#[tokio::test]
async fn a_replica_that_does_not_lead_any_more_switches_nothing() {
    let Some(mut rig) = rig("a_replica_that_does_not_lead_any_more_switches_nothing").await else { return };
    let outcome = rig.client().power_off_and_confirm(order(AMPLE, &Closed)).await;
    assert!(matches!(outcome, FenceOutcome::Revoked { requests: 0 }), "{outcome}");
    assert!(rig.sim.host_runs());
    assert_eq!(rig.sim.switched(), [""; 0]);
}

#[tokio::test]
async fn the_event_log_and_the_sensors_are_read() {
    let Some(rig) = rig("the_event_log_and_the_sensors_are_read").await else { return };
    let log = rig.client().event_log(ample()).await.unwrap();
    assert_eq!(log.len(), 1, "{log:?}");
    assert_eq!((log[0].id.as_str(), log[0].event.as_str()), ("1", "Upper Critical going high"));
    let sensors = rig.client().sensors(ample()).await.unwrap();
    assert_eq!(sensors.len(), 1, "{sensors:?}");
    assert_eq!(
        (sensors[0].name.as_str(), sensors[0].value.as_str(), sensors[0].status.as_str()),
        ("Temp", "60 degrees C", "ok")
    );
}
