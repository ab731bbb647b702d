//! Hears what BMCs tell by themselves: the leader by following them, every replica what is sent to it. Each event is
//! counted and logged, and those that may mean power make the controller look at once. None is believed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use defib_act::{Heard, Power, Pushed, Told};
use defib_bmc::{BmcFuture, EventClass, Webhooks, WriteGate};
use defib_engine::controller::Input;
use defib_model::HostId;
use metrics::{counter, describe_counter, describe_gauge, gauge};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use crate::{
    bmc_told::Teller,
    core::{Core, Message, Pulse},
    peers::Peers,
};

/// Events that wait for the loop below; a stream waits meanwhile.
const WAITING_MAX: usize = 256;
/// Least time between two hints of one host: a BMC that never stops telling must not keep the core busy.
const HINTS_APART: Duration = Duration::from_millis(20);

/// A subscription at a BMC is made and deleted by whoever leads, and a majority has just confirmed that.
#[derive(Debug)]
struct Gate {
    core: Core,
    election: Duration,
}

impl WriteGate for Gate {
    fn may_write(&self) -> BmcFuture<'_, bool> {
        Box::pin(async { self.core.confirm().await })
    }

    fn counts_for(&self) -> Duration {
        self.election
    }
}

/// Room for what BMCs send.
pub(crate) fn queue() -> (mpsc::Sender<Heard>, mpsc::Receiver<Heard>) {
    mpsc::channel(WAITING_MAX)
}

/// Who is told what BMCs tell.
#[derive(Debug)]
pub(crate) struct Audience {
    /// The observers of all replicas.
    pub(crate) peers: Peers,
    /// Whoever reads the event stream.
    pub(crate) stream: Teller,
}

/// Starts to hear what is `sent`, and to follow BMCs whenever this replica leads. Those without a stream are told to
/// send to `webhooks`. `election`: the log's election timeout.
pub(crate) fn start(
    power: &Arc<Power>,
    webhooks: Option<Arc<Webhooks>>,
    sent: mpsc::Receiver<Heard>,
    audience: Audience,
    core: &Core,
    pulse: &watch::Receiver<Pulse>,
    election: Duration,
) {
    let gate = Arc::new(Gate { core: core.clone(), election });
    let pushed = webhooks.map(|to| Pushed { to, gate });
    tokio::spawn(run(Arc::clone(power), pushed, sent, audience, core.clone(), pulse.clone()));
}

/// Names and explains the metrics, and begins them at nothing.
pub(crate) fn describe() {
    describe_counter!("defib_bmc_events_total", "Events that BMCs told this replica, by class");
    for class in EventClass::ALL {
        let _ = counter!("defib_bmc_events_total", "class" => class.as_str());
    }
    describe_counter!(
        "defib_bmc_hints_total",
        "Events of BMCs, heard here or by the leader, by which this replica's observer asks sooner about a silent host"
    );
    let _ = counter!("defib_bmc_hints_total");
    describe_gauge!(
        "defib_bmc_event_streams",
        "Hosts whose BMC's events this replica hears now, by a stream, by a webhook or from its logs"
    );
    gauge!("defib_bmc_event_streams").set(0.0);
}

async fn run(
    power: Arc<Power>,
    pushed: Option<Pushed>,
    mut sent: mpsc::Receiver<Heard>,
    audience: Audience,
    core: Core,
    mut pulse: watch::Receiver<Pulse>,
) {
    let mut ear = Ear::default();
    loop {
        let leads = pulse.borrow_and_update().leads;
        let (sender, mut heard) = queue();
        let follow = async {
            if leads {
                power.follow(pushed.as_ref(), &sender).await;
            } else {
                std::future::pending().await
            }
        };
        let listen = async {
            loop {
                let heard = tokio::select! {
                    Some(heard) = heard.recv() => heard,
                    Some(heard) = sent.recv() => heard,
                    else => return,
                };
                let host = heard.host.clone();
                if let Told::Event(event) = &heard.told {
                    audience.stream.tell(&host, event);
                }
                let hint = ear.hear(heard, Instant::now());
                if hint == Some(Hint::PowerGoes) {
                    audience.peers.power_goes(&host);
                }
                if hint.is_some() {
                    // What an overloaded loop does not take is asked a moment later anyway.
                    let _ = core.tell(Message::Input(Input::Hinted(host)));
                }
            }
        };
        tokio::select! {
            () = follow => return,
            () = listen => return,
            changed = pulse.wait_for(|pulse| pulse.leads != leads) => if changed.is_err() { return },
        }
        ear.open.clear();
        gauge!("defib_bmc_event_streams").set(0.0);
    }
}

/// What an event is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Hint {
    /// The power of the host may be other than it was: a question that is open anyway is asked now.
    Look,
    /// It is going: whoever observes the host asks as soon as it is silent, too.
    PowerGoes,
}

/// What is known of the streams.
#[derive(Default)]
struct Ear {
    open: BTreeSet<HostId>,
    hinted: BTreeMap<(HostId, Hint), Instant>,
}

impl Ear {
    /// Counts and logs; what it is good for, if anything.
    fn hear(&mut self, heard: Heard, now: Instant) -> Option<Hint> {
        let Heard { host, told } = heard;
        let hint = match told {
            Told::Opened(way) => {
                tracing::info!(%host, by = %way, "the events of its BMC are heard");
                self.open.insert(host.clone());
                Some(Hint::Look)
            }
            Told::NotSubscribed(why) => {
                tracing::warn!(
                    %host, why, "its BMC takes no subscription; its log is read until it does. Look at its user's \
                     privilege and at how many subscriptions it has"
                );
                None
            }
            Told::Event(event) => {
                counter!("defib_bmc_events_total", "class" => event.class.as_str()).increment(1);
                tracing::info!(
                    %host, class = %event.class, id = event.message_id, severity = event.severity, at = event.at,
                    origin = event.origin, "its BMC tells: {}", event.message
                );
                if event.class.power_goes() {
                    Some(Hint::PowerGoes)
                } else {
                    event.class.may_mean_power().then_some(Hint::Look)
                }
            }
            Told::Ended(why) => {
                let why = why.map(|error| error.chain());
                if self.open.remove(&host) {
                    tracing::info!(%host, why, "the events of its BMC are not heard any more; they are asked for again");
                } else {
                    tracing::debug!(%host, why, "the events of its BMC can't be heard");
                }
                None
            }
        };
        gauge!("defib_bmc_event_streams").set(self.open.len() as f64);
        // A hint that says less must not be in the way of one that says more.
        let key = (host, hint?);
        self.hinted.retain(|_, last| now < *last + HINTS_APART);
        if self.hinted.contains_key(&key) {
            return None;
        }
        self.hinted.insert(key, now);
        hint
    }
}

#[cfg(test)]
mod tests {
    use defib_bmc::{BmcEvent, Way};
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn what_may_mean_power_is_looked_at_and_a_chatterer_not_all_the_time() {
        let host = HostId::new("h1").unwrap();
        let mut ear = Ear::default();
        let now = Instant::now();
        let event = |id: &str| Told::Event(BmcEvent::parse(&json!({ "MessageId": id })));
        let mut hear = |told, at| ear.hear(Heard { host: host.clone(), told }, at);
        let off = || event("ResourceEvent.1.3.ResourcePoweredOff");
        assert_eq!(hear(Told::Opened(Way::Stream), now), Some(Hint::Look), "something may have been missed");
        assert_eq!(hear(off(), now), Some(Hint::PowerGoes), "though another hint was just given");
        assert_eq!(hear(off(), now + HINTS_APART / 2), None);
        assert_eq!(hear(off(), now + HINTS_APART), Some(Hint::PowerGoes));
        assert_eq!(hear(event("Nobody.1.0.KnowsThis"), now + HINTS_APART * 2), Some(Hint::Look));
        assert_eq!(hear(event("IDRAC.2.7.USR0030"), now + HINTS_APART * 4), None, "our own login");
        assert_eq!(hear(Told::Ended(None), now + HINTS_APART * 8), None);
    }
}
