//! The Redfish client against a service that others wrote: sushy-tools from PyPI. It knows no sessions, leaves out what
//! the standard demands (links of its root, serial numbers), and its power changes a second or two after it said so.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use defib_bmc::{
    AlwaysAllowed, Bmc, CredentialRef, ErrorKind, FenceOutcome, Identity, PowerState, RedfishClient,
    RedfishEndpoint, ResetOutcome, Trust, fetch_pin, survey,
};
use defib_tests::bmc::order;
use defib_tests::skip;
use serde_json::json;
use tempfile::{NamedTempFile, TempDir};
use tokio::time::Instant;

/// Longer than anything takes that is expected to work, on any machine.
const AMPLE: Duration = Duration::from_secs(60);
const OURS: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
const OTHER: &str = "11111111-2222-3333-4444-555555555555";

struct Sushy {
    process: Child,
    address: String,
    _folder: TempDir,
}

impl Drop for Sushy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `None`, loudly, where it can't be installed.
fn sushy() -> Option<Sushy> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/sushy");
    let python = match defib_tests::python("sushy", &beside.join("requirements.txt")) {
        Ok(python) => python,
        Err(why) => {
            skip("sushy", &format!("sushy-tools can't be installed from PyPI: {why:#}"));
            return None;
        }
    };
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let system =
        |uuid: &str, name: &str| json!({ "uuid": uuid, "name": name, "power_state": "On", "nics": [] });
    for (name, text) in [
        ("certificate.pem", made.cert.pem()),
        ("key.pem", made.signing_key.serialize_pem()),
        ("systems.json", json!([system(OTHER, "other"), system(OURS, "ours")]).to_string()),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let mut command = Command::new(python);
    command.arg(beside.join("serve.py")).arg(folder.path());
    let mut process =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(process.stderr.take().unwrap()).lines();
    let mut seen = Vec::new();
    let address = loop {
        let Some(Ok(line)) = told.next() else { panic!("sushy-tools ended: {seen:#?}") };
        if let Some((_, address)) = line.split_once("Running on https://") {
            break address.trim().to_owned();
        }
        seen.push(line);
    };
    // What it logs must go somewhere, or it would stand still once the pipe is full.
    std::thread::spawn(move || told.for_each(drop));
    Some(Sushy { process, address, _folder: folder })
}

fn credentials(password: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    write!(file, "defib\n{password}\n").unwrap();
    file
}

#[tokio::test]
async fn a_service_of_others_is_understood() {
    let Some(sushy) = sushy() else { return };
    let deadline = Instant::now() + AMPLE;
    let pin = fetch_pin(&sushy.address, deadline).await.unwrap().spki;
    let endpoint = |password: &NamedTempFile, identity| {
        let reference = CredentialRef::File(password.path().to_owned());
        RedfishEndpoint::new("h1", format!("https://{}", sushy.address), identity, Trust::Pin(pin), reference)
    };
    let (good, bad) = (credentials("sushy-only"), credentials("wrong"));

    // Its one refusal is not repeated.
    let refused = RedfishClient::new(endpoint(&bad, Identity::by_uuid(OURS))).unwrap();
    for _ in 0..3 {
        let error = refused.prepare(deadline).await.unwrap_err();
        assert!(matches!(&*error.kind, ErrorKind::LoginRefused { .. }), "{}", error.chain());
    }
    assert_eq!(refused.logins_refused(), 1);

    let mut systems = survey(endpoint(&good, Identity::default()), deadline).await.unwrap();
    systems.sort_by_key(|system| system.identity.uuid.clone());
    let seen: Vec<_> = systems.iter().map(|one| (one.identity.uuid.as_deref(), one.power.clone())).collect();
    assert_eq!(seen, [(Some(OURS), PowerState::On), (Some(OTHER), PowerState::On)]);

    // Nobody here is this machine: nothing is switched.
    let stranger = RedfishClient::new(endpoint(&good, Identity::by_uuid("9f1e2d3c"))).unwrap();
    let outcome = stranger.power_off_and_confirm(order(AMPLE, &AlwaysAllowed)).await;
    assert!(matches!(outcome, FenceOutcome::IdentityMismatch { requests: 0, .. }), "{outcome}");

    let client = RedfishClient::new(endpoint(&good, Identity::by_uuid(OURS))).unwrap();
    client.prepare(deadline).await.unwrap_or_else(|error| panic!("{}", error.chain()));
    let outcome = client.power_off_and_confirm(order(AMPLE, &AlwaysAllowed)).await;
    assert!(outcome.readings_off().is_some_and(|readings| readings.len() == 2), "{outcome}");
    let other = RedfishClient::new(endpoint(&good, Identity::by_uuid(OTHER))).unwrap();
    assert_eq!(other.read_power(deadline).await.unwrap().state, PowerState::On);

    let outcome = client.power_on(&AlwaysAllowed, deadline).await;
    assert!(matches!(outcome, ResetOutcome::Accepted { .. }), "{outcome}");
    wait_until_on(&client, deadline).await;
}

async fn wait_until_on(client: &RedfishClient, deadline: Instant) {
    while client.read_power(deadline).await.unwrap().state != PowerState::On {
        assert!(Instant::now() < deadline, "it never went on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
