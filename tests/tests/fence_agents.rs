//! Programs of Debian's `fence-agents` as fencing methods: `fence_ipmilan` against `ipmi_sim`, `fence_dummy`, and a
//! PDU of ours that is written with the collection's own library, so that its dialogue is theirs.

#![expect(clippy::unwrap_used, reason = "helpers of tests may end them by a panic")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use defib_act::{BmcHealth, Kind, Power};
use defib_bmc::{
    AlwaysAllowed, Bmc, CredentialRef, FenceAgentClient, FenceAgentEndpoint, FenceOutcome, PowerState,
};
use defib_engine::controller::{FenceOrder, PowerQuestion};
use defib_lab::ipmi::{IpmiConfig, IpmiSim};
use defib_lab::needs;
use defib_model::command::FenceResult;
use defib_model::inventory::{FaultDomain, FenceAgentTarget, FenceMethod, FencingLevel, Host, SelfFence};
use defib_model::{HostId, Inventory, Millis, RecoveryId, Resources};
use defib_tests::bmc::order;
use defib_tests::skip;
use futures_util::StreamExt as _;
use tempfile::{NamedTempFile, TempDir};
use tokio::time::Instant;

/// Longer than anything takes that is expected to work, on any machine.
const AMPLE: Duration = Duration::from_secs(60);

/// A PDU whose outlets are files. The host, a process, ends when the last of its outlets is off.
const PDU: &str = r#"#!/usr/bin/python3
import fcntl, os, sys, signal, time
sys.path.append("/usr/share/fence")
from fencing import *

def log(options, what):
    with open(options["--folder"] + "/requests", "a") as file:
        file.write(what + "\n")

def outlets(options):
    found = {}
    for plug in sorted(os.listdir(options["--folder"] + "/outlets")):
        name, state = open(options["--folder"] + "/outlets/" + plug).read().split("/")
        found[plug] = (name, state)
    return found

def get_outlets(conn, options):
    return outlets(options)

def get(conn, options):
    log(options, "read " + options["--plug"])
    while os.path.exists(options["--folder"] + "/hangs"):
        time.sleep(1000)
    return outlets(options)[options["--plug"]][1]

def put(conn, options):
    log(options, options["--action"] + " " + options["--plug"])
    if os.path.exists(options["--folder"] + "/deaf-" + options["--plug"]):
        return
    name = outlets(options)[options["--plug"]][0]
    with open(options["--folder"] + "/outlets/" + options["--plug"], "w") as file:
        file.write(name + "/" + options["--action"])
    if all(state == "off" for _, state in outlets(options).values()):
        os.kill(int(open(options["--folder"] + "/host.pid").read()), signal.SIGKILL)

all_opt["folder"] = { "getopt": ":", "longopt": "folder", "help": "--folder=[path]", "required": "1",
                      "shortdesc": "Folder", "order": 1 }
device_opt = ["no_password", "no_login", "folder", "port"]
options = check_input(device_opt, process_input(device_opt))
show_docs(options, { "shortdesc": "PDU", "longdesc": "PDU", "vendorurl": "" })
if os.path.exists(options["--folder"] + "/one-session"):
    session = open(options["--folder"] + "/one-session")
    fcntl.flock(session, fcntl.LOCK_EX)
sys.exit(fence_action(None, options, put, get, get_outlets) or 0)
"#;

/// A host with two power supplies on two outlets of one PDU.
struct Rig {
    folder: TempDir,
    host: Child,
}

impl Rig {
    /// `None`, loudly, where the collection is missing.
    fn new(test: &str) -> Option<Self> {
        if let Err(why) = needs::all(&["fence_dummy", "python3"]) {
            skip(test, &why);
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let host = Command::new("sleep").arg("100000").spawn().unwrap();
        fs::write(folder.path().join("host.pid"), host.id().to_string()).unwrap();
        fs::create_dir(folder.path().join("outlets")).unwrap();
        fs::write(folder.path().join("outlets/1"), "h1-a/on").unwrap();
        fs::write(folder.path().join("outlets/2"), "h1-b/on").unwrap();
        let agent = folder.path().join("fence_lab_pdu");
        fs::write(&agent, PDU).unwrap();
        fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
        Some(Self { folder, host })
    }

    fn target(&self, plug: &str, outlet: &str) -> FenceAgentTarget {
        let folder = self.folder.path().display().to_string();
        FenceAgentTarget {
            agent: "fence_lab_pdu".into(),
            options: [("folder".into(), folder), ("plug".into(), plug.into())].into(),
            credentials: None,
            outlet: Some(outlet.into()),
            trust_address: false,
        }
    }

    fn client(&self, target: FenceAgentTarget) -> FenceAgentClient {
        let agent = self.folder.path().join(&target.agent);
        FenceAgentClient::new(FenceAgentEndpoint::new("h1", agent, target.options, target.outlet))
    }

    /// The two outlets as one level.
    fn level(&self) -> FencingLevel {
        let pair = [self.target("1", "h1-a"), self.target("2", "h1-b")];
        FencingLevel(pair.into_iter().map(FenceMethod::FenceAgent).collect())
    }

    fn power(&self) -> Power {
        let power = Power::new(None, Some(self.folder.path().to_owned()));
        let host = Host {
            id: h1(),
            domain: FaultDomain(vec![]),
            capacity: Resources::new(1000, 1024),
            labels: [].into(),
            fencing: vec![self.level()],
            self_fence: SelfFence::None,
            spare: false,
            neighbour_address: None,
            kdump_wait: None,
        };
        let inventory = Inventory { hosts: [(h1(), host)].into(), ..Inventory::default() };
        inventory.validate().unwrap();
        assert!(power.configure(&inventory).is_empty());
        power
    }

    fn requests(&self) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join("requests")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn host_runs(&mut self) -> bool {
        self.host.try_wait().unwrap().is_none()
    }

    fn fence_order(&self, timeout: Duration) -> FenceOrder {
        let timeout = Millis(u64::try_from(timeout.as_millis()).unwrap());
        let question = PowerQuestion {
            recovery: RecoveryId(1),
            host: h1(),
            level: 0,
            methods: self.level(),
            confirm_reads: 2,
            confirm_spacing: Millis(5),
            timeout,
        };
        FenceOrder { question, attempt: 1 }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.host.kill();
        let _ = self.host.wait();
    }
}

fn h1() -> HostId {
    HostId::new("h1").unwrap()
}

fn ample() -> Instant {
    Instant::now() + AMPLE
}

/// All tests by programs that are due, each with longer than anything here takes.
async fn tests(power: &Power, now: Instant) -> Vec<BmcHealth> {
    power.test(Kind::Programs, now, AMPLE * 10).collect().await
}

fn options(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test]
async fn both_outlets_of_a_pair_are_off_before_either_is_proof_and_none_is_switched_on() {
    let Some(mut rig) = Rig::new("both_outlets_of_a_pair_are_off_before_either_is_proof") else { return };
    let power = rig.power();
    let result = power.fence(&rig.fence_order(AMPLE), &AlwaysAllowed, Instant::now()).await;
    let FenceResult::Off(readings) = result else { panic!("{result:?}") };
    assert_eq!(readings.iter().map(|reading| reading.method).collect::<Vec<_>>(), [0, 1]);
    assert!(readings.iter().all(|reading| reading.reads == 2));
    assert_eq!(
        (readings[0].identity.as_str(), readings[1].identity.as_str()),
        ("outlet 1 \"h1-a\"", "outlet 2 \"h1-b\"")
    );
    assert!(!rig.host_runs());
    let requests = rig.requests();
    assert!(!requests.iter().any(|request| request.starts_with("on ")), "{requests:?}");
    let last_off = requests.iter().rposition(|request| request.starts_with("off ")).unwrap();
    for plug in ["1", "2"] {
        let reads = requests[last_off..].iter().filter(|request| **request == format!("read {plug}")).count();
        assert!(
            reads >= 2,
            "outlet {plug} was read {reads} times after the last was switched off: {requests:?}"
        );
    }
}

#[tokio::test]
async fn one_outlet_that_stays_on_spoils_the_proof_of_the_other() {
    let Some(mut rig) = Rig::new("one_outlet_that_stays_on_spoils_the_proof_of_the_other") else { return };
    // The program itself waits for the state to change, for as long as it is told.
    fs::write(rig.folder.path().join("deaf-2"), "").unwrap();
    let power = rig.power();
    let result = power.fence(&rig.fence_order(Duration::from_secs(8)), &AlwaysAllowed, Instant::now()).await;
    assert!(!matches!(result, FenceResult::Off(_)), "{result:?}");
    assert!(rig.host_runs());
    fs::remove_file(rig.folder.path().join("deaf-2")).unwrap();
    let result = power.fence(&rig.fence_order(AMPLE), &AlwaysAllowed, Instant::now()).await;
    assert!(matches!(result, FenceResult::Off(_)), "{result:?}");
    assert!(!rig.host_runs());
}

#[tokio::test]
async fn an_outlet_with_another_name_is_never_switched() {
    let Some(mut rig) = Rig::new("an_outlet_with_another_name_is_never_switched") else { return };
    for target in [rig.target("1", "h7-a"), rig.target("9", "h1-a")] {
        let outcome = rig.client(target).power_off_and_confirm(order(AMPLE, &AlwaysAllowed)).await;
        assert!(matches!(outcome, FenceOutcome::IdentityMismatch { requests: 0, .. }), "{outcome}");
    }
    let error = rig.client(rig.target("1", "h7-a")).read_power(ample()).await.unwrap_err();
    assert!(error.to_string().contains("outlet 1 is called \"h1-a\", not \"h7-a\""), "{error}");
    assert_eq!(rig.requests(), [""; 0]);
    assert!(rig.host_runs());
}

#[tokio::test]
async fn a_misspelt_option_is_found_in_the_metadata_before_anything_is_asked() {
    let Some(mut rig) = Rig::new("a_misspelt_option_is_found_in_the_metadata_before_anything_is_asked")
    else {
        return;
    };
    let mut target = rig.target("1", "h1-a");
    target.options.insert("plgu".into(), "1".into());
    let outcome = rig.client(target).power_off_and_confirm(order(AMPLE, &AlwaysAllowed)).await;
    assert!(matches!(outcome, FenceOutcome::Refused { requests: 0, .. }), "{outcome}");
    assert!(outcome.to_string().contains("no option \"plgu\""), "{outcome}");
    assert_eq!(rig.requests(), [""; 0]);
    assert!(rig.host_runs());
}

#[tokio::test]
async fn a_test_of_the_methods_finds_a_renamed_outlet_and_switches_nothing() {
    let Some(mut rig) = Rig::new("a_test_of_the_methods_finds_a_renamed_outlet_and_switches_nothing") else {
        return;
    };
    let power = rig.power();
    let now = Instant::now();
    let connections: Vec<BmcHealth> = power.test(Kind::Connections, now, AMPLE).collect().await;
    assert!(connections.is_empty());
    let health = tests(&power, now).await;
    assert_eq!(health.len(), 2);
    assert!(health.iter().all(|one| one.trouble.is_none()), "{health:?}");
    assert!(tests(&power, now).await.is_empty(), "not due again yet");
    fs::write(rig.folder.path().join("outlets/2"), "spare/on").unwrap();
    let later = now + Duration::from_secs(100);
    let mut health = tests(&power, later).await;
    health.sort_by_key(|one| one.method);
    assert!(health[0].trouble.is_none() && health[1].fresh, "{health:?}");
    let again = tests(&power, later + Duration::from_secs(6)).await;
    let trouble = again[0].trouble.as_deref().unwrap_or_default();
    assert!(again.len() == 1 && !again[0].fresh && trouble.contains("is called \"spare\""), "{again:?}");
    let requests = rig.requests();
    assert!(requests.iter().all(|request| request.starts_with("read ")), "{requests:?}");
    assert!(rig.host_runs());
}

#[tokio::test]
async fn a_test_that_hangs_gives_way_to_a_fence_by_the_same_device() {
    let Some(mut rig) = Rig::new("a_test_that_hangs_gives_way_to_a_fence_by_the_same_device") else { return };
    let file = |name: &str| rig.folder.path().join(name);
    let (hangs, one_session) = (file("hangs"), file("one-session"));
    for file in [&hangs, &one_session] {
        fs::write(file, "").unwrap();
    }
    let power = rig.power();
    let now = Instant::now();
    let testing = tests(&power, now);
    tokio::pin!(testing);
    let end = ample();
    while rig.requests().is_empty() {
        assert!(Instant::now() < end, "no test has begun");
        let _ = tokio::time::timeout(Duration::from_millis(10), &mut testing).await;
    }
    // From now on the device is well, but for the test's session.
    fs::remove_file(hangs).unwrap();
    let fence = rig.fence_order(AMPLE);
    let (result, health) = tokio::join!(power.fence(&fence, &AlwaysAllowed, Instant::now()), testing);
    assert!(matches!(result, FenceResult::Off(_)), "{result:?}");
    assert!(!rig.host_runs());
    assert!(health.is_empty(), "an interrupted test has found nothing: {health:?}");
    assert_eq!(tests(&power, now).await.len(), 2, "it is still due");
}

#[tokio::test]
async fn fence_ipmilan_kills_the_process_behind_ipmi_sim() {
    let test = "fence_ipmilan_kills_the_process_behind_ipmi_sim";
    if let Err(why) = needs::all(&["fence_ipmilan", "ipmi_sim", "ipmitool"]) {
        skip(test, &why);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let config = IpmiConfig::default();
    let mut sim = IpmiSim::start(folder.path(), &config).await.unwrap();
    let mut credentials = NamedTempFile::new().unwrap();
    write!(credentials, "{}\n{}\n", config.user, config.password).unwrap();
    let port = sim.address().port().to_string();
    let told = options(&[
        ("ip", "127.0.0.1"),
        ("ipport", &port),
        ("lanplus", "1"),
        ("cipher", "3"),
        ("privlvl", "operator"),
    ]);
    let mut endpoint = FenceAgentEndpoint::new("h1", "fence_ipmilan", told, None);
    endpoint.credentials = Some(CredentialRef::File(credentials.path().to_owned()));
    let client = FenceAgentClient::new(endpoint);
    let reading = client.read_power(ample()).await.unwrap();
    assert_eq!(reading.state, PowerState::On);
    assert_eq!(
        reading.identity.outlet.as_deref(),
        Some("fence_ipmilan ip=127.0.0.1, by its operator's word")
    );
    let outcome = client.power_off_and_confirm(order(AMPLE, &AlwaysAllowed)).await;
    assert_eq!(outcome.readings_off().map(<[_]>::len), Some(2), "{outcome}");
    assert!(!sim.host_runs());
}

#[tokio::test]
async fn fence_dummy_is_off_by_its_status_and_a_program_that_breaks_proves_nothing() {
    let test = "fence_dummy_is_off_by_its_status_and_a_program_that_breaks_proves_nothing";
    if let Err(why) = needs::all(&["fence_dummy"]) {
        skip(test, &why);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let write = |text: &str| fs::write(&state, text).unwrap();
    let told = options(&[("status_file", &state.display().to_string())]);
    let client =
        |agent: &Path| FenceAgentClient::new(FenceAgentEndpoint::new("h1", agent, told.clone(), None));
    write("on");
    let dummy = client(Path::new("fence_dummy"));
    assert!(dummy.power_off_and_confirm(order(AMPLE, &AlwaysAllowed)).await.readings_off().is_some());
    assert_eq!(fs::read_to_string(&state).unwrap(), "off");
    // Neither on nor off.
    write("melted");
    assert!(dummy.read_power(ample()).await.unwrap_err().is_transient());
    // What breaks ends with 2 as well: without its word it is no proof.
    let broken = folder.path().join("fence_broken");
    let metadata = "<resource-agent name='x'><parameters><parameter name='status_file'/></parameters><actions>\
                    <action name='off'/><action name='status'/></actions></resource-agent>";
    for body in
        ["exit 2", "echo Status: ON; exit 2", "echo Status: OFF; exit 0", "echo Status: OFFLINE; exit 2"]
    {
        let script =
            format!("#!/bin/sh\n[ \"$2\" = metadata ] && {{ echo \"{metadata}\"; exit 0; }}\n{body}\n");
        fs::write(&broken, script).unwrap();
        fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).unwrap();
        let outcome =
            client(&broken).power_off_and_confirm(order(Duration::from_millis(800), &AlwaysAllowed)).await;
        assert!(outcome.readings_off().is_none() && outcome.requests() == 0, "{body}: {outcome}");
    }
}
