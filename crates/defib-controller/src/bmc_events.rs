//! On the leader, hears what BMCs tell by themselves: each event is counted and logged, and those that may mean power
//! make the controller look at once. None is believed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use defib_act::{Heard, Power, Told};
use defib_bmc::EventClass;
use defib_engine::controller::Input;
use defib_model::HostId;
use metrics::{counter, describe_counter, describe_gauge, gauge};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use crate::{
    core::{Core, Message, Pulse},
    peers::Peers,
};

/// Events that wait for the loop below; a stream waits meanwhile.
const WAITING_MAX: usize = 256;
/// Least time between two hints of one host: a BMC that never stops telling must not keep the core busy.
const HINTS_APART: Duration = Duration::from_millis(20);

/// Starts to listen whenever this replica leads.
pub(crate) fn start(power: &Arc<Power>, peers: Peers, core: &Core, pulse: &watch::Receiver<Pulse>) {
    tokio::spawn(run(Arc::clone(power), peers, core.clone(), pulse.clone()));
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
        "Hosts whose BMC's events this replica hears now, by a stream or from its logs"
    );
    gauge!("defib_bmc_event_streams").set(0.0);
}

async fn run(power: Arc<Power>, peers: Peers, core: Core, mut pulse: watch::Receiver<Pulse>) {
    loop {
        if pulse.wait_for(|pulse| pulse.leads).await.is_err() {
            return;
        }
        let (sender, mut heard) = mpsc::channel::<Heard>(WAITING_MAX);
        let mut ear = Ear::default();
        let listen = async {
            while let Some(heard) = heard.recv().await {
                let host = heard.host.clone();
                let hint = ear.hear(heard, Instant::now());
                if hint == Some(Hint::PowerGoes) {
                    peers.power_goes(&host);
                }
                if hint.is_some() {
                    // What an overloaded loop does not take is asked a moment later anyway.
                    let _ = core.tell(Message::Input(Input::Hinted(host)));
                }
            }
        };
        tokio::select! {
            () = power.follow(&sender) => return,
            () = listen => return,
            lost = pulse.wait_for(|pulse| !pulse.leads) => if lost.is_err() { return },
        }
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
            Told::Opened => {
                tracing::info!(%host, "the events of its BMC are heard");
                self.open.insert(host.clone());
                Some(Hint::Look)
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
    use defib_bmc::BmcEvent;
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
        assert_eq!(hear(Told::Opened, now), Some(Hint::Look), "something may have been missed");
        assert_eq!(hear(off(), now), Some(Hint::PowerGoes), "though another hint was just given");
        assert_eq!(hear(off(), now + HINTS_APART / 2), None);
        assert_eq!(hear(off(), now + HINTS_APART), Some(Hint::PowerGoes));
        assert_eq!(hear(event("Nobody.1.0.KnowsThis"), now + HINTS_APART * 2), Some(Hint::Look));
        assert_eq!(hear(event("IDRAC.2.7.USR0030"), now + HINTS_APART * 4), None, "our own login");
        assert_eq!(hear(Told::Ended(None), now + HINTS_APART * 8), None);
    }
}
