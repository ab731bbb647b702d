//! The Redfish client against the answers of real servers of three vendors, and of one that no vendor has built but the
//! standard allows: served over HTTPS by the emulator, with power that can be switched by their own actions and types.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use defib_bmc::{
    AlwaysAllowed, Bmc, FenceOutcome, Identity, PowerState, RedfishClient, RedfishEndpoint, ResetOutcome,
    survey,
};
use defib_lab::redfish::{EmulatorConfig, Faults, Running, SessionFault};
use defib_tests::bmc::{Closed, emulated, order};
use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};
use tokio::time::Instant;

/// Longer than anything takes that is expected to work, on any machine.
const AMPLE: Duration = Duration::from_secs(30);

/// Name, UUID and serial number as an operator may have written them down, and what its BMC is restarted by.
const VENDORS: [(&str, &str, &str, &str); 3] = [
    ("dell", "4C4C4544-0035-3410-8050-C6C04F314733", "cnivc0014m0388", "GracefulRestart"),
    ("hpe", "34383350-3131-584d-5133-303230393953", "MXQ302099S", "GracefulRestart"),
    ("lenovo", "6173ECEC6EF511EE834A0A8FC3A58A71", "J105958B", "GracefulRestart"),
];

fn trees() -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("data/redfish");
    std::env::var_os("DEFIB_REDFISH_TREES").map_or_else(own, PathBuf::from)
}

struct Rig {
    bmc: Running,
    endpoint: RedfishEndpoint,
    client: RedfishClient,
    _credentials: NamedTempFile,
}

async fn rig(tree: &Path, uuid: &str, serial: &str, faults: Faults) -> Rig {
    let config = EmulatorConfig { faults, ..EmulatorConfig::captured(tree).unwrap() };
    let identity = Identity { uuid: Some(uuid.into()), serial: Some(serial.into()) };
    let pause = Duration::from_millis(100);
    let (bmc, endpoint, credentials) = emulated(config, identity, pause).await.unwrap();
    let client = RedfishClient::new(endpoint.clone()).unwrap();
    Rig { bmc, endpoint, client, _credentials: credentials }
}

impl Rig {
    /// Where POSTs went and what `ResetType` they carried, in order.
    fn resets(&self) -> Vec<(String, String)> {
        let requests = self.bmc.requests().into_iter();
        requests.filter_map(|request| Some((request.path, request.reset?))).collect()
    }

    async fn power_becomes(&self, wanted: PowerState) {
        let deadline = Instant::now() + AMPLE;
        while self.client.read_power(deadline).await.unwrap().state != wanted {
            assert!(Instant::now() < deadline, "the power never read {wanted}");
        }
    }
}

/// All that Defib does to a BMC, in the order of a host's life.
async fn lives(name: &str, rig: &Rig, types: [&str; 3]) {
    let deadline = Instant::now() + AMPLE;
    let mut unknown = rig.endpoint.clone();
    unknown.identity = Identity::default();
    let seen = survey(unknown, deadline).await.unwrap();
    assert!(
        matches!(&*seen, [only] if only.identifiable && only.power == PowerState::On),
        "{name}: {seen:?}"
    );

    rig.client.prepare(deadline).await.unwrap_or_else(|error| panic!("{name}: {}", error.chain()));
    let reading = rig.client.read_power(deadline).await.unwrap();
    assert_eq!((reading.state, reading.system), (PowerState::On, seen[0].path.clone()), "{name}");

    let outcome = rig.client.power_off_and_confirm(order(AMPLE, &AlwaysAllowed)).await;
    assert!(outcome.readings_off().is_some_and(|readings| readings.len() == 2), "{name}: {outcome}");
    assert!(!rig.bmc.truth().await.systems[0].on, "{name}");

    let outcome = rig.client.power_on(&AlwaysAllowed, deadline).await;
    assert!(matches!(outcome, ResetOutcome::Accepted { .. }), "{name}: {outcome}");
    rig.power_becomes(PowerState::On).await;

    // Its BMC restarts, forgets us, and the host runs on.
    assert!(matches!(rig.client.restart_bmc(&Closed, deadline).await, ResetOutcome::NotSent(_)), "{name}");
    let outcome = rig.client.restart_bmc(&AlwaysAllowed, deadline).await;
    assert!(matches!(outcome, ResetOutcome::Accepted { .. }), "{name}: {outcome}");
    while rig.bmc.truth().await.sessions > 0 {
        assert!(Instant::now() < deadline, "{name}: its BMC did not restart");
        tokio::task::yield_now().await;
    }
    assert!(rig.bmc.truth().await.systems[0].on, "{name}");
    let outcome = rig.client.power_off_and_confirm(order(AMPLE, &AlwaysAllowed)).await;
    assert!(outcome.readings_off().is_some(), "{name}: {outcome}");

    let asked: Vec<String> = rig.resets().into_iter().map(|(_, kind)| kind).collect();
    assert_eq!(asked, [types[0], types[1], types[2], types[0]], "{name}");
}

#[tokio::test]
async fn real_servers_are_found_switched_off_and_on_and_their_bmcs_restarted() {
    for (name, uuid, serial, restart) in VENDORS {
        let rig = rig(&trees().join(name), uuid, serial, Faults::default()).await;
        lives(name, &rig, ["ForceOff", "On", restart]).await;
    }
}

/// Writes an answer where it is served from.
fn answer(folder: &Path, path: &str, body: &Value) {
    let file = folder.join(path.trim_start_matches('/')).join("index.json");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, body.to_string()).unwrap();
}

/// No path and no name in it is what every vendor happens to use; the standard only says where links lead.
fn unusual() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let link = |path: &str| json!({ "@odata.id": path });
    let at = |path: &str, body: Value| answer(folder.path(), path, &body);
    at(
        "/redfish/v1",
        json!({ "Systems": link("/redfish/v1/Nodes/"), "Managers": link("/redfish/v1/Boards"),
                "Links": { "Sessions": link("/redfish/v1/Tickets") } }),
    );
    at("/redfish/v1/Nodes", json!({ "Members": [link("/redfish/v1/Nodes/a/7/")] }));
    at(
        "/redfish/v1/Nodes/a/7",
        json!({ "Id": "7", "UUID": "0F0E0D0C-0B0A-0908-0706-050403020100", "SerialNumber": 12345,
                "Links": { "ManagedBy": [link("/redfish/v1/Boards/none"), link("/redfish/v1/Boards/b")] },
                "Actions": { "#ComputerSystem.Reset": {
                    "target": "/redfish/v1/Nodes/a/7/do/it", "@Redfish.ActionInfo": "/redfish/v1/Infos/1" } } }),
    );
    let types = |allowed: Value| {
        json!({ "Parameters": [
        { "Name": "Other", "AllowableValues": ["On"] }, { "Name": "ResetType", "AllowableValues": allowed } ] })
    };
    at("/redfish/v1/Infos/1", types(json!(["ForceOn", "ForceOff", "PowerCycle"])));
    at(
        "/redfish/v1/Boards",
        json!({ "Members": [link("/redfish/v1/Boards/none"), link("/redfish/v1/Boards/b")] }),
    );
    at("/redfish/v1/Boards/none", json!({ "Id": "none" }));
    at(
        "/redfish/v1/Boards/b",
        json!({ "Actions": { "#Manager.Reset": {
            "target": "/redfish/v1/Boards/b/again", "@Redfish.ActionInfo": "/redfish/v1/Infos/2" } } }),
    );
    at("/redfish/v1/Infos/2", types(json!(["ForceRestart"])));
    folder
}

#[tokio::test]
async fn a_server_that_only_keeps_to_the_standard_works_unseen() {
    let folder = unusual();
    let rig = rig(folder.path(), "0f0e0d0c0b0a09080706050403020100", "12345", Faults::default()).await;
    lives("unusual", &rig, ["ForceOff", "ForceOn", "ForceRestart"]).await;
    let targets: Vec<String> = rig.resets().into_iter().map(|(path, _)| path).collect();
    let (system, manager) = ("/redfish/v1/Nodes/a/7/do/it", "/redfish/v1/Boards/b/again");
    assert_eq!(targets, [system, system, manager, system]);
}

/// Properties that some firmware leaves out, and what must come of it at every vendor.
#[tokio::test]
async fn missing_properties_cost_nothing_or_are_named() {
    type Check = fn(&FenceOutcome) -> bool;
    let off: Check = |outcome| outcome.readings_off().is_some();
    let refused: Check = |outcome| matches!(outcome, FenceOutcome::Refused { requests: 0, .. });
    let unknown: Check = |outcome| {
        let FenceOutcome::StillOn { last, .. } = outcome else { return false };
        *last == PowerState::Unknown(String::new())
    };
    let wrong: Check = |outcome| matches!(outcome, FenceOutcome::IdentityMismatch { requests: 0, .. });
    let (whole, brief) = (AMPLE, Duration::from_millis(300));
    let values = "/Actions/#ComputerSystem.Reset/ResetType@Redfish.AllowableValues";
    let cases: [(&[&str], Check, Duration); 10] = [
        (&[values], off, whole),
        (&[values, "/Actions/#ComputerSystem.Reset/@Redfish.ActionInfo"], off, whole),
        (&["/UUID"], off, whole),
        (&["/SerialNumber"], off, whole),
        (&["/UUID", "/SerialNumber"], wrong, brief),
        (&["/Systems", "/Links/Sessions"], off, whole),
        (&["/Members@odata.count", "/Links", "/Name", "/Id", "/@odata.id", "/@odata.type"], off, whole),
        (&["/PowerState"], unknown, brief),
        (&["/Actions/#ComputerSystem.Reset/target"], refused, brief),
        (&["/Actions"], refused, brief),
    ];
    for (name, uuid, serial, _) in VENDORS {
        for (missing, check, patience) in cases {
            let missing: Vec<String> = missing.iter().map(|&one| one.to_owned()).collect();
            let faults = Faults { missing: missing.clone(), ..Faults::default() };
            let rig = rig(&trees().join(name), uuid, serial, faults).await;
            let outcome = rig.client.power_off_and_confirm(order(patience, &AlwaysAllowed)).await;
            assert!(check(&outcome), "{name} without {missing:?}: {outcome}");
            let asked = rig.resets();
            assert!(
                asked.iter().all(|(_, kind)| kind == "ForceOff"),
                "{name} without {missing:?}: {asked:?}"
            );
        }
        let faults = Faults { session: Some(SessionFault::Absent), ..Faults::default() };
        let rig = rig(&trees().join(name), uuid, serial, faults).await;
        let outcome = rig.client.power_off_and_confirm(order(AMPLE, &AlwaysAllowed)).await;
        assert!(outcome.readings_off().is_some(), "{name} without sessions: {outcome}");
    }
}
