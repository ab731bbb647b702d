//! Follows what BMCs tell by themselves, for as long as we lead.

use std::{collections::BTreeMap, pin::pin, sync::Arc, sync::PoisonError, time::Duration};

use defib_bmc::{BmcError, BmcEvent, Following, News, Way, Webhook, Webhooks, WriteGate};
use defib_model::{HostId, inventory::FenceMethod};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    Client, Power,
    warm::{Key, jittered},
};

/// Pauses before a stream is opened again: after one that was open; then ever longer, while it can't be reached.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// A BMC that restarts is back within a minute or two, and is to be heard soon after.
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// One that has no stream, or refuses us, is asked again after this: its firmware or its settings may be others then.
const PAUSE_REFUSED: Duration = Duration::from_secs(300);
/// How long a BMC whose host left the inventory may take to forget our subscription.
const UNSUBSCRIBE_WITHIN: Duration = Duration::from_secs(10);
/// News of one BMC that wait for whoever hears them; its stream waits meanwhile.
const WAITING_MAX: usize = 64;

/// What was heard of the BMC of a host. Hints to look; none of it proves anything.
#[derive(Debug)]
pub struct Heard {
    /// Whose BMC.
    pub host: HostId,
    /// What.
    pub told: Told,
}

/// What comes of following a BMC.
#[derive(Debug)]
pub enum Told {
    /// It is heard now; something may have happened before.
    Opened(Way),
    /// It takes no subscription; why. Its logs are read.
    NotSubscribed(String),
    /// Something happened.
    Event(BmcEvent),
    /// It is not heard any more, or can't be.
    Ended(Option<BmcError>),
}

/// Where BMCs without a stream send what they tell.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// The addresses, at this replica.
    pub to: Arc<Webhooks>,
    /// Asked before a subscription is made or deleted.
    pub gate: Arc<dyn WriteGate>,
}

impl Pushed {
    fn of(&self, host: &HostId) -> Webhook {
        self.to.of(host, Arc::clone(&self.gate))
    }
}

fn pause(failures: u32, refused: bool) -> Duration {
    if refused {
        return PAUSE_REFUSED;
    }
    PAUSE_MIN.saturating_mul(1 << failures.min(16)).min(PAUSE_MAX)
}

impl Power {
    /// Follows every BMC of the inventory that tells of events, until dropped: the replica that leads holds one stream
    /// or one subscription per BMC, of which they have few.
    pub async fn follow(&self, pushed: Option<&Pushed>, heard: &mpsc::Sender<Heard>) {
        let mut changes = self.changes();
        // Dropping a set ends its task, and so the stream.
        let mut followed: BTreeMap<Key, (Client, JoinSet<()>)> = BTreeMap::new();
        let mut farewells = JoinSet::new();
        loop {
            let clients = self.tellers();
            for (key, (held, mut task)) in std::mem::take(&mut followed) {
                if clients.get(&key).is_some_and(|now| Arc::ptr_eq(now, &held)) {
                    followed.insert(key, (held, task));
                    continue;
                }
                task.abort_all();
                let is_followed_still = clients.keys().any(|(host, ..)| *host == key.0);
                if let Some(pushed) = pushed.filter(|_| !is_followed_still) {
                    farewells.spawn(unfollow(held, pushed.of(&key.0)));
                }
            }
            for (key, client) in clients {
                let begin = || {
                    let mut task = JoinSet::new();
                    let webhook = pushed.map(|pushed| pushed.of(&key.0));
                    task.spawn(follow_one(key.clone(), Arc::clone(&client), webhook, heard.clone()));
                    (Arc::clone(&client), task)
                };
                followed.entry(key.clone()).or_insert_with(begin);
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                Some(_) = farewells.join_next() => {}
            }
        }
    }

    fn tellers(&self) -> BTreeMap<Key, Client> {
        let bmcs = self.bmcs.lock().unwrap_or_else(PoisonError::into_inner);
        let tells = bmcs.iter().filter(|(_, held)| matches!(held.method, FenceMethod::Redfish(_)));
        tells.filter_map(|(key, held)| Some((key.clone(), Arc::clone(held.client.as_ref().ok()?)))).collect()
    }
}

/// Takes our subscription away from a BMC that nobody asks about any more.
async fn unfollow(client: Client, webhook: Webhook) {
    if let Err(error) = client.unfollow(&webhook, Instant::now() + UNSUBSCRIBE_WITHIN).await {
        let (host, error) = (client.host(), error.chain());
        tracing::warn!(host, error, "its BMC may keep our subscription; delete it there if it does");
    }
}

async fn follow_one(key: Key, client: Client, webhook: Option<Webhook>, heard: mpsc::Sender<Heard>) {
    let (news, mut incoming) = mpsc::channel(WAITING_MAX);
    let mut following = Following::default().told_at(webhook);
    let (mut failures, mut round) = (0_u32, 0_u32);
    loop {
        let mut was_open = false;
        let ended = {
            let mut stream = pin!(client.follow(&mut following, &news));
            loop {
                tokio::select! {
                    biased;
                    Some(item) = incoming.recv() => {
                        was_open = true;
                        if pass(&key.0, item, &heard).await.is_err() {
                            return;
                        }
                    }
                    ended = &mut stream => break ended.err(),
                }
            }
        };
        while let Ok(item) = incoming.try_recv() {
            was_open = true;
            if pass(&key.0, item, &heard).await.is_err() {
                return;
            }
        }
        failures = if was_open { 0 } else { failures.saturating_add(1) };
        round = round.wrapping_add(1);
        let refused = !was_open && ended.as_ref().is_some_and(|error| !error.is_transient());
        if heard.send(Heard { host: key.0.clone(), told: Told::Ended(ended) }).await.is_err() {
            return;
        }
        sleep(jittered(pause(failures, refused), &key, round)).await;
    }
}

/// Nobody listens any more.
struct Deaf;

async fn pass(host: &HostId, news: News, heard: &mpsc::Sender<Heard>) -> Result<(), Deaf> {
    let told = match news {
        News::Opened(way) => Told::Opened(way),
        News::NotSubscribed(why) => Told::NotSubscribed(why),
        News::Event(event) => Told::Event(event),
    };
    heard.send(Heard { host: host.clone(), told }).await.map_err(|_| Deaf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bmc_that_restarts_is_heard_soon_and_one_without_a_stream_is_left_alone() {
        assert_eq!(pause(0, false), PAUSE_MIN);
        assert!((0..40).all(|failures| pause(failures, false) <= pause(failures + 1, false)));
        assert_eq!(pause(u32::MAX, false), PAUSE_MAX);
        assert_eq!(pause(1, true), PAUSE_REFUSED);
    }
}
