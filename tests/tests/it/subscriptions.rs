//! Subscriptions at the emulator: made, put right, taken away, and done without where the BMC won't have one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use defib_act::{Heard, Power, Pushed, Told};
use defib_bmc::{
    AlwaysAllowed, Bmc, BmcEvent, ErrorKind, EventClass, Following, Identity, News, RedfishClient, Way,
    Webhook, Webhooks, WriteGate,
};
use defib_lab::redfish::{EmulatorConfig, EventFault, Faults, Running, SubscriptionFault, SubscriptionTruth};
use defib_model::inventory::{
    EventSource, FaultDomain, FenceMethod, FencingLevel, Host, Inventory, RedfishTarget, SelfFence,
};
use defib_model::{HostId, Resources};
use defib_tests::bmc::{Closed, emulated};
use tempfile::NamedTempFile;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// Longer than anything takes that is expected to work, on any machine.
const AMPLE: Duration = Duration::from_secs(60);
const UUID: &str = "4C4C4544-0035-3410-8050-C6C04F314733";
/// What we know our own by.
const CONTEXT: &str = "defib/east/h1";

fn webhooks() -> Webhooks {
    Webhooks::new("https://127.0.0.1:9", "east", &"s".repeat(32)).unwrap()
}

fn webhook(gate: impl WriteGate + 'static) -> Webhook {
    webhooks().of(&HostId::new("h1").unwrap(), Arc::new(gate))
}

struct Rig {
    bmc: Running,
    client: Arc<RedfishClient>,
    credentials: NamedTempFile,
}

async fn rig(config: EmulatorConfig) -> Rig {
    let identity = Identity::by_uuid(config.systems[0].uuid.clone());
    let (bmc, endpoint, credentials) = emulated(config, identity, Duration::from_millis(50)).await.unwrap();
    Rig { bmc, client: Arc::new(RedfishClient::new(endpoint).unwrap()), credentials }
}

async fn flag(faults: Faults) -> Rig {
    rig(EmulatorConfig { faults, ..EmulatorConfig::flag(UUID, "S1") }).await
}

/// It can only push.
fn pushing() -> Faults {
    Faults { events: Some(EventFault::Absent), ..Faults::default() }
}

impl Rig {
    /// Follows the BMC once, with its log read again at once.
    fn follow(&self, webhook: Option<Webhook>) -> (Receiver<News>, JoinSet<()>) {
        let (news, incoming) = channel(16);
        let (client, mut task) = (Arc::clone(&self.client), JoinSet::new());
        task.spawn(async move {
            let mut following = Following::reading_logs_every(Duration::from_millis(5)).told_at(webhook);
            let _ = client.follow(&mut following, &news).await;
        });
        (incoming, task)
    }

    async fn subscriptions(&self) -> Vec<SubscriptionTruth> {
        self.bmc.truth().await.subscriptions
    }

    /// How many of its answers were to requests with this method.
    fn requests(&self, method: &str) -> usize {
        self.bmc.requests().iter().filter(|request| request.method == method).count()
    }

    fn subscribe(&self, context: &str, destination: &str) {
        let (context, destination) = (context.to_owned(), destination.to_owned());
        self.bmc.subscribe(&SubscriptionTruth { path: String::new(), destination, context }).unwrap();
    }
}

async fn next<T>(incoming: &mut Receiver<T>) -> T {
    timeout(AMPLE, incoming.recv()).await.expect("something is heard in time").expect("it lasts")
}

async fn event(incoming: &mut Receiver<News>) -> BmcEvent {
    match next(incoming).await {
        News::Event(event) => event,
        other => panic!("an event was expected, not {other:?}"),
    }
}

/// As the leader does it.
#[tokio::test]
async fn ours_is_put_right_others_are_left_alone_and_a_host_that_leaves_is_unsubscribed() {
    let rig = flag(pushing()).await;
    let good = webhook(AlwaysAllowed).destination().to_owned();
    rig.subscribe("another tool", "https://127.0.0.1:9/other");
    rig.subscribe("another tool", &good);
    rig.subscribe("defib/east/h11", "https://127.0.0.1:9/h11");
    let others = rig.subscriptions().await;
    // That of a leader before us, and one that works but is there twice.
    rig.subscribe(CONTEXT, "https://127.0.0.2:9/former");
    rig.subscribe(CONTEXT, &good);
    rig.subscribe(CONTEXT, &good);

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
    let power = Arc::new(Power::new(None, None));
    power.configure(&Inventory { hosts: [(h1, host)].into(), ..Inventory::default() });
    let (sender, mut heard) = channel(16);
    let pushed = Pushed { to: Arc::new(webhooks()), gate: Arc::new(AlwaysAllowed) };
    let (followed, mut task) = (Arc::clone(&power), JoinSet::new());
    task.spawn(async move { followed.follow(Some(&pushed), &sender).await });
    let Heard { told, .. } = next(&mut heard).await;
    assert!(matches!(told, Told::Opened(Way::Webhook)), "{told:?}");
    let now = rig.subscriptions().await;
    let (ours, left): (Vec<_>, Vec<_>) = now.into_iter().partition(|one| one.context == CONTEXT);
    assert_eq!(left, others);
    assert_eq!(ours.iter().map(|one| one.destination.as_str()).collect::<Vec<_>>(), [good.as_str()]);

    power.configure(&Inventory::default());
    let deadline = Instant::now() + AMPLE;
    while rig.subscriptions().await != others {
        assert!(Instant::now() < deadline, "{:?}", rig.subscriptions().await);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_is_lost_on_the_way_is_found_in_the_log() {
    let rig = flag(Faults { subscriptions: Some(SubscriptionFault::Lost), ..pushing() }).await;
    let (mut incoming, _task) = rig.follow(Some(webhook(AlwaysAllowed)));
    assert_eq!(next(&mut incoming).await, News::Opened(Way::Webhook));
    // What is in the log when it is read first is history.
    let deadline = Instant::now() + AMPLE;
    while !rig.bmc.requests().iter().any(|one| one.path.ends_with("/Entries") && one.status == 200) {
        assert!(Instant::now() < deadline, "the log is not read: {:?}", rig.bmc.requests());
        tokio::task::yield_now().await;
    }
    rig.bmc.power(false).await.unwrap();
    assert_eq!(event(&mut incoming).await.class, EventClass::PowerOff);
}

#[tokio::test]
async fn a_bmc_that_refuses_is_told_of_without_the_secret_and_its_log_is_read() {
    let rig = flag(Faults { subscriptions: Some(SubscriptionFault::Refused), ..pushing() }).await;
    let webhook = webhook(AlwaysAllowed);
    let secret = webhook.destination().rsplit('/').next().unwrap().to_owned();
    let (mut incoming, _task) = rig.follow(Some(webhook));
    let News::NotSubscribed(why) = next(&mut incoming).await else { panic!("it was refused") };
    assert!(why.contains("no place for https://127.0.0.1:9/redfish-events/h1/…"), "{why}");
    assert!(!why.contains(&secret[..8]), "{why}");
    assert_eq!(next(&mut incoming).await, News::Opened(Way::Log));
    rig.bmc.power(false).await.unwrap();
    assert_eq!(event(&mut incoming).await.class, EventClass::PowerOff);
}

#[tokio::test]
async fn a_replica_that_does_not_lead_any_more_writes_nothing() {
    let rig = flag(pushing()).await;
    rig.subscribe(CONTEXT, "https://127.0.0.2:9/of-the-new-leader");
    let before = rig.subscriptions().await;
    let mut following = Following::default().told_at(Some(webhook(Closed)));
    let (news, _incoming) = channel(1);
    let error = rig.client.follow(&mut following, &news).await.unwrap_err();
    assert!(matches!(&*error.kind, ErrorKind::Revoked), "{}", error.chain());
    assert_eq!((rig.subscriptions().await, rig.requests("DELETE")), (before, 0));
}

#[tokio::test]
async fn a_stream_that_is_denied_is_done_without() {
    let rig = flag(Faults { events: Some(EventFault::Denied), ..Faults::default() }).await;
    let (mut incoming, task) = rig.follow(Some(webhook(AlwaysAllowed)));
    assert_eq!(next(&mut incoming).await, News::Opened(Way::Webhook));
    drop(task);
    let (mut incoming, _task) = rig.follow(None);
    assert_eq!(next(&mut incoming).await, News::Opened(Way::Log));
    rig.bmc.power(false).await.unwrap();
    assert_eq!(event(&mut incoming).await.class, EventClass::PowerOff);
}

#[tokio::test]
async fn a_stream_is_left_alone_where_the_entry_says_so_and_nothing_is_written_where_it_says_log() {
    for (events, way) in [(EventSource::Webhook, Way::Webhook), (EventSource::Log, Way::Log)] {
        let config = EmulatorConfig::flag(UUID, "S1");
        let identity = Identity::by_uuid(UUID);
        let (bmc, mut endpoint, _credentials) =
            emulated(config, identity, Duration::from_millis(50)).await.unwrap();
        endpoint.events = events;
        let client = RedfishClient::new(endpoint).unwrap();
        let (news, mut incoming) = channel(16);
        let mut following = Following::default().told_at(Some(webhook(AlwaysAllowed)));
        tokio::select! {
            ended = client.follow(&mut following, &news) => panic!("it ended: {ended:?}"),
            opened = next(&mut incoming) => assert_eq!(opened, News::Opened(way)),
        }
        let truth = bmc.truth().await;
        let is_subscribed = events == EventSource::Webhook;
        assert_eq!(
            (truth.listeners, truth.subscriptions.len()),
            (0, usize::from(is_subscribed)),
            "{truth:?}"
        );
    }
}

/// At the places where real services have their subscriptions.
#[tokio::test]
async fn real_services_without_a_stream_are_subscribed_to() {
    let trees = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/redfish");
    let rig = rig(EmulatorConfig::captured(&trees.join("hpe")).unwrap()).await;
    let (mut incoming, _task) = rig.follow(Some(webhook(AlwaysAllowed)));
    assert_eq!(next(&mut incoming).await, News::Opened(Way::Webhook));
    let subscriptions = rig.subscriptions().await;
    assert_eq!(subscriptions.len(), 1, "{subscriptions:?}");
    assert_eq!(subscriptions[0].context, CONTEXT);
}
