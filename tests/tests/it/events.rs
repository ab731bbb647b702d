//! What BMCs tell by themselves, from the emulator's stream: heard, heard again after whatever ends a stream, and never
//! believed.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use defib_act::{Heard, Power, Told};
use defib_bmc::{
    Bmc, BmcEvent, CredentialRef, ErrorKind, EventClass, Following, Identity, News, PowerState,
    RedfishClient, RedfishEndpoint, Trust, Way,
};
use defib_lab::redfish::{Answer, EmulatorConfig, EventFault, Faults, Happening, RedfishEmulator, Running};
use defib_model::inventory::{
    FaultDomain, FenceMethod, FencingLevel, Host, Inventory, RedfishTarget, SelfFence,
};
use defib_model::{HostId, Resources};
use tempfile::NamedTempFile;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// Longer than anything takes that is expected to work, on any machine.
const AMPLE: Duration = Duration::from_secs(60);
const UUID: &str = "4C4C4544-0035-3410-8050-C6C04F314733";

struct Rig {
    bmc: Running,
    client: Arc<RedfishClient>,
    credentials: NamedTempFile,
}

async fn rig(config: EmulatorConfig) -> Rig {
    let mut credentials = NamedTempFile::new().unwrap();
    write!(credentials, "{}\n{}\n", config.user, config.password).unwrap();
    let uuid = config.systems[0].uuid.clone();
    let bmc = RedfishEmulator::start(config).await.unwrap();
    let endpoint = RedfishEndpoint::new(
        "h1",
        bmc.base_url(),
        Identity::by_uuid(uuid),
        Trust::Pin(bmc.pin().unwrap().parse().unwrap()),
        CredentialRef::File(credentials.path().to_owned()),
    );
    Rig { bmc, client: Arc::new(RedfishClient::new(endpoint).unwrap()), credentials }
}

async fn flag(faults: Faults) -> Rig {
    rig(EmulatorConfig { faults, ..EmulatorConfig::flag(UUID, "S1") }).await
}

impl Rig {
    /// Follows the BMC once; the task gives back where the stream ended.
    fn follow(&self, mut following: Following) -> (Receiver<News>, JoinSet<Following>) {
        let (news, incoming) = channel(16);
        let (client, mut task) = (Arc::clone(&self.client), JoinSet::new());
        task.spawn(async move {
            let _ = client.follow(&mut following, &news).await;
            following
        });
        (incoming, task)
    }

    fn tell(&self, message_id: &str, message: &str) {
        self.bmc.tell(&Happening {
            message_id: message_id.into(),
            message: message.into(),
            severity: "Warning".into(),
            origin: "/redfish/v1/Systems/1".into(),
        });
    }
}

async fn next<T>(incoming: &mut Receiver<T>) -> T {
    timeout(AMPLE, incoming.recv()).await.expect("something is heard in time").expect("the stream lasts")
}

async fn event(incoming: &mut Receiver<News>) -> BmcEvent {
    match next(incoming).await {
        News::Event(event) => event,
        other => panic!("an event was expected, not {other:?}"),
    }
}

#[tokio::test]
async fn what_a_bmc_tells_is_heard_known_or_not() {
    let rig = flag(Faults::default()).await;
    let (mut incoming, _task) = rig.follow(Following::default());
    assert_eq!(next(&mut incoming).await, News::Opened(Way::Stream));
    rig.bmc.power(false).await.unwrap();
    let off = event(&mut incoming).await;
    assert_eq!((off.class, off.origin.as_deref()), (EventClass::PowerOff, Some("/redfish/v1/Systems/1")));
    rig.tell("Vendor.7.1.NeverSeenBefore", "The flux is low.");
    let unknown = event(&mut incoming).await;
    assert_eq!((unknown.class, unknown.message.as_str()), (EventClass::Unknown, "The flux is low."));
    assert_eq!(unknown.severity, "Warning");
    // Questions go on beside the stream, in the same session.
    let reading = rig.client.read_power(Instant::now() + AMPLE).await.unwrap();
    assert_eq!((reading.state, rig.bmc.truth().await.sessions), (PowerState::Off, 1));
}

#[tokio::test]
async fn a_stream_goes_on_where_it_ended_and_begins_anew_after_a_restart_of_the_bmc() {
    let rig = flag(Faults::default()).await;
    let (mut incoming, mut task) = rig.follow(Following::default());
    assert_eq!(next(&mut incoming).await, News::Opened(Way::Stream));
    rig.tell("A.1.0.First", "");
    assert_eq!(event(&mut incoming).await.message_id, "A.1.0.First");
    // The BMC forgets us, and closes nothing: the next login shows it.
    rig.bmc.expire_sessions();
    rig.client.read_power(Instant::now() + AMPLE).await.unwrap();
    let following = timeout(AMPLE, task.join_next()).await.expect("it is noticed").unwrap().unwrap();
    rig.tell("A.1.0.Missed", "");
    let (mut incoming, mut task) = rig.follow(following);
    assert_eq!(next(&mut incoming).await, News::Opened(Way::Stream));
    assert_eq!(event(&mut incoming).await.message_id, "A.1.0.Missed");

    rig.bmc.restart_bmc().await;
    let following = timeout(AMPLE, task.join_next()).await.expect("it is noticed").unwrap().unwrap();
    let (mut incoming, _task) = rig.follow(following);
    assert_eq!(next(&mut incoming).await, News::Opened(Way::Stream));
    rig.bmc.power(false).await.unwrap();
    assert_eq!(event(&mut incoming).await.class, EventClass::PowerOff);
}

#[tokio::test]
async fn events_that_are_doubled_or_lost_change_nothing_of_what_is_read() {
    let rig = flag(Faults { events: Some(EventFault::Doubled), ..Faults::default() }).await;
    let (mut incoming, _task) = rig.follow(Following::default());
    assert_eq!(next(&mut incoming).await, News::Opened(Way::Stream));
    // It tells that it is off, twice, and is on.
    rig.tell("ResourceEvent.1.3.0.ResourcePoweredOff", "");
    for _ in 0..2 {
        assert_eq!(event(&mut incoming).await.class, EventClass::PowerOff);
    }
    assert_eq!(rig.client.read_power(Instant::now() + AMPLE).await.unwrap().state, PowerState::On);

    rig.bmc.set_faults(Faults { events: Some(EventFault::Lost), ..Faults::default() });
    rig.bmc.power(false).await.unwrap();
    rig.bmc.set_faults(Faults::default());
    rig.tell("A.1.0.Next", "");
    assert_eq!(event(&mut incoming).await.message_id, "A.1.0.Next", "the one before was lost");
    assert_eq!(rig.client.read_power(Instant::now() + AMPLE).await.unwrap().state, PowerState::Off);
}

#[tokio::test]
async fn the_logs_of_a_bmc_without_a_stream_are_read_and_nothing_new_is_missed_or_told_twice() {
    for fault in [EventFault::Absent, EventFault::Bare] {
        let rig = flag(Faults { events: Some(fault), ..Faults::default() }).await;
        // More than one look reads from the begin of the log.
        for number in 0..200 {
            rig.tell(&format!("A.1.0.History{number}"), "");
        }
        let following = Following::reading_logs_every(Duration::from_millis(5));
        let (mut incoming, _task) = rig.follow(following);
        assert_eq!(next(&mut incoming).await, News::Opened(Way::Log));
        for number in 0..3 {
            rig.bmc.power(number % 2 == 1).await.unwrap();
            let wanted = if number % 2 == 1 { EventClass::PowerOn } else { EventClass::PowerOff };
            assert_eq!(event(&mut incoming).await.class, wanted);
            let message_id = format!("Vendor.7.1.NeverSeen{number}");
            rig.tell(&message_id, "The flux is low.");
            let unknown = event(&mut incoming).await;
            assert_eq!((unknown.class, unknown.message_id), (EventClass::Unknown, message_id));
        }
    }
}

#[tokio::test]
async fn what_a_log_gained_while_it_could_not_be_read_is_told_afterwards() {
    let rig = flag(Faults { events: Some(EventFault::Absent), ..Faults::default() }).await;
    let following = Following::reading_logs_every(Duration::from_millis(5));
    let (mut incoming, mut task) = rig.follow(following);
    assert_eq!(next(&mut incoming).await, News::Opened(Way::Log));
    let get = Some(Answer::always(500));
    rig.bmc.set_faults(Faults { events: Some(EventFault::Absent), get, ..Faults::default() });
    let following = timeout(AMPLE, task.join_next()).await.expect("it is noticed").unwrap().unwrap();
    rig.bmc.power(false).await.unwrap();
    rig.bmc.set_faults(Faults { events: Some(EventFault::Absent), ..Faults::default() });
    let (mut incoming, _task) = rig.follow(following);
    assert_eq!(event(&mut incoming).await.class, EventClass::PowerOff);
    assert_eq!(next(&mut incoming).await, News::Opened(Way::Log));
}

/// At the places where real services have their streams, or say that they have none.
#[tokio::test]
async fn real_services_are_followed_where_they_have_a_stream() {
    let trees = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/redfish");
    for (vendor, has_stream) in [("lenovo", true), ("hpe", false), ("dell", false)] {
        let rig = rig(EmulatorConfig::captured(&trees.join(vendor)).unwrap()).await;
        if has_stream {
            let (mut incoming, _task) = rig.follow(Following::default());
            assert_eq!(next(&mut incoming).await, News::Opened(Way::Stream), "{vendor}");
            rig.bmc.power(false).await.unwrap();
            assert_eq!(event(&mut incoming).await.class, EventClass::PowerOff, "{vendor}");
        } else {
            let (news, _incoming) = channel(1);
            let error = rig.client.follow(&mut Following::default(), &news).await.unwrap_err();
            assert!(matches!(&*error.kind, ErrorKind::Unsupported { .. }), "{vendor}: {}", error.chain());
        }
    }
}

/// As the leader does it, for all BMCs of an inventory.
#[tokio::test]
async fn the_leader_hears_of_a_bmc_again_after_its_restart_until_the_inventory_forgets_it() {
    let rig = flag(Faults::default()).await;
    let target = RedfishTarget {
        address: rig.bmc.base_url(),
        system: None,
        uuid: Some(UUID.into()),
        serial: None,
        pin: Some(rig.bmc.pin().unwrap()),
        credentials: format!("file:{}", rig.credentials.path().display()),
        events: Default::default(),
    };
    let h1 = HostId::new("h1").unwrap();
    let host = Host {
        id: h1.clone(),
        domain: FaultDomain(vec![]),
        capacity: Resources::new(1000, 1024),
        labels: [].into(),
        fencing: vec![FencingLevel(vec![FenceMethod::Redfish(target)])],
        self_fence: SelfFence::None,
        spare: false,
        neighbour_address: None,
        kdump_wait: None,
    };
    let inventory = Inventory { hosts: [(h1.clone(), host)].into(), ..Inventory::default() };
    let power = Arc::new(Power::new(None, None));
    assert!(power.configure(&inventory).is_empty());
    let (sender, mut heard) = channel(16);
    let (followed, mut task) = (Arc::clone(&power), JoinSet::new());
    task.spawn(async move { followed.follow(None, &sender).await });

    for round in 0..2 {
        wait_until_told(&mut heard, &h1, |told| matches!(told, Told::Opened(Way::Stream))).await;
        rig.bmc.power(round > 0).await.unwrap();
        let wanted = if round > 0 { EventClass::PowerOn } else { EventClass::PowerOff };
        let is_wanted = |told: &Told| matches!(told, Told::Event(event) if event.class == wanted);
        wait_until_told(&mut heard, &h1, is_wanted).await;
        if round == 0 {
            rig.bmc.restart_bmc().await;
            wait_until_told(&mut heard, &h1, |told| matches!(told, Told::Ended(_))).await;
        }
    }
    power.configure(&Inventory::default());
    let deadline = Instant::now() + AMPLE;
    while rig.bmc.truth().await.listeners > 0 {
        assert!(Instant::now() < deadline, "the stream of a forgotten BMC was kept");
        tokio::task::yield_now().await;
    }
}

async fn wait_until_told(heard: &mut Receiver<Heard>, host: &HostId, wanted: impl Fn(&Told) -> bool) {
    loop {
        let one = next(heard).await;
        assert_eq!(one.host, *host);
        if wanted(&one.told) {
            return;
        }
    }
}
