//! The continuous test of fencing (R21): a wrong password, a moved BMC or a lost right is to be found on a quiet
//! day. It connects, logs in, looks at identity and power, and never switches anything.
//!
//! For Redfish the same keeps a connection warm, so that a question then costs one request; it is done at every
//! call. Other methods start a program each time, so each has its own moment in the policy's interval.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, PoisonError},
    time::Duration,
};

use defib_engine::{controller::PowerQuestion, ledger::Ledger};
use defib_model::{HostId, command::FencingTest, inventory::FenceMethod, text::cut};
use futures_util::{Stream, StreamExt as _, stream};
use tokio::{sync::watch, time::Instant};

use crate::{Client, MethodError, Power, methods};

/// How many connections are tested at once.
const CONNECTIONS_AT_ONCE: usize = 32;
/// How many programs of others run at once for tests.
const PROGRAMS_AT_ONCE: usize = 4;
/// How soon a failed test is repeated: one failure alone is no news.
const AGAIN: Duration = Duration::from_secs(5);
/// So many failures in a row are told.
const FAILURES: u32 = 2;

/// What a test costs, and so how often it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request on a connection that stays open: as often as one looks.
    Connections,
    /// A program of others: once in the policy's interval.
    Programs,
}

impl Kind {
    const fn of(method: &FenceMethod) -> Self {
        match method {
            FenceMethod::Redfish(_) => Self::Connections,
            FenceMethod::Ipmi(_) | FenceMethod::FenceAgent(_) => Self::Programs,
        }
    }
}

/// A method: host, level, and place within the level.
pub(crate) type Key = (HostId, usize, usize);

/// A test that is due.
struct Due {
    key: Key,
    device: String,
    client: Result<Client, Arc<MethodError>>,
}

/// Where the tests of one method stand.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Testing {
    /// `None`: at once.
    due: Option<Instant>,
    failures: u32,
    /// The last trouble, as a number, and how often in a row it was the same.
    trouble: Option<u64>,
    same: u32,
    rounds: u32,
}

impl Testing {
    fn note(&mut self, trouble: Option<&str>) {
        let number = trouble.map(|trouble| {
            let mut hasher = DefaultHasher::new();
            trouble.hash(&mut hasher);
            hasher.finish()
        });
        self.same = if number == self.trouble { self.same.saturating_add(1) } else { 1 };
        self.trouble = number;
        self.failures = if number.is_some() { self.failures.saturating_add(1) } else { 0 };
        self.rounds = self.rounds.wrapping_add(1);
    }
}

/// Whether fencing would work, as far as reachability, login, right and identity tell.
#[derive(Debug, Clone)]
pub struct BmcHealth {
    /// Which host.
    pub host: HostId,
    /// Which level of its fencing topology.
    pub level: usize,
    /// Which method of the level.
    pub method: usize,
    /// What stands against it; `None` if nothing does.
    pub trouble: Option<String>,
    /// It failed for the first time since it worked: to be repeated before it is told.
    pub fresh: bool,
    /// It found the same twice in a row.
    pub steady: bool,
}

/// The tests whose findings differ from what the ledger has recorded.
#[must_use]
pub fn changed(health: &[BmcHealth], ledger: &Ledger) -> Vec<FencingTest> {
    health
        .iter()
        .filter(|one| {
            let record = ledger.hosts().get(&one.host);
            let test = record.and_then(|record| record.fencing_test(one.level, one.method));
            one.is_news(test.map(|test| test.trouble.as_deref()))
        })
        .map(|one| FencingTest {
            host: one.host.clone(),
            level: one.level,
            method: one.method,
            trouble: one.trouble.clone(),
        })
        .collect()
}

impl BmcHealth {
    /// Whether it differs from what was recorded, if anything was, and will not differ again in a moment.
    fn is_news(&self, recorded: Option<Option<&str>>) -> bool {
        match (recorded, self.trouble.as_deref()) {
            // Another trouble: whoever is to mend it would look for the former one.
            (Some(Some(before)), Some(now)) => before != now && self.steady,
            (Some(None), None) => false,
            _ => !self.fresh,
        }
    }
}

/// Spreads the tests of many methods over their interval, each round anew: between three and five quarters of it.
pub(crate) fn jittered(interval: Duration, key: &Key, round: u32) -> Duration {
    let mut hasher = DefaultHasher::new();
    (key, round).hash(&mut hasher);
    let thousandths = u32::try_from(hasher.finish() % 500).unwrap_or(0);
    interval * (750 + thousandths) / 1000
}

/// Devices that are asked, or told to switch, and how often at once.
pub(crate) type Busy = watch::Sender<BTreeMap<String, usize>>;

/// While it lives, no test speaks to these devices.
pub(crate) struct Occupied<'a> {
    busy: &'a Busy,
    devices: Vec<String>,
}

impl Drop for Occupied<'_> {
    fn drop(&mut self) {
        self.busy.send_modify(|busy| {
            for device in &self.devices {
                if let Some(held) = busy.get_mut(device) {
                    *held = held.saturating_sub(1);
                    if *held == 0 {
                        busy.remove(device);
                    }
                }
            }
        });
    }
}

impl Power {
    /// Tells whenever the inventory was configured anew: there may be methods that were never tested.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Tests every method of a kind that is due at `now`, each within `patience` from its begin, and tells of each as
    /// it ends; call it every few seconds on the leader. A test gives way to questions and fences by the same device,
    /// and is then due as before.
    pub fn test(
        &self,
        kind: Kind,
        now: Instant,
        patience: Duration,
    ) -> impl Stream<Item = BmcHealth> + Send + '_ {
        let due: Vec<Due> = {
            let bmcs = self.bmcs.lock().unwrap_or_else(PoisonError::into_inner);
            let due = bmcs.iter().filter(|(_, held)| {
                Kind::of(&held.method) == kind && held.testing.due.is_none_or(|due| due <= now)
            });
            due.map(|(key, held)| {
                let (device, client) = (methods::device(&held.method), held.client.clone());
                Due { key: key.clone(), device, client }
            })
            .collect()
        };
        let at_once = match kind {
            Kind::Connections => CONNECTIONS_AT_ONCE,
            Kind::Programs => PROGRAMS_AT_ONCE,
        };
        stream::iter(due)
            .map(move |due| self.test_one(due, now, patience))
            .buffer_unordered(at_once)
            .filter_map(std::future::ready)
    }

    async fn test_one(&self, due: Due, now: Instant, patience: Duration) -> Option<BmcHealth> {
        let deadline = Instant::now() + patience;
        let mut busy = self.busy.subscribe();
        let test = async {
            match due.client {
                Ok(client) => client.prepare(deadline).await.err().map(|error| error.chain()),
                Err(error) => Some(error.to_string()),
            }
        };
        // Some devices take one session at a time, and a login that hangs holds up the next one.
        tokio::select! {
            biased;
            _ = busy.wait_for(|busy| busy.contains_key(&due.device)) => None,
            trouble = test => {
                let (host, level, method) = due.key;
                // As it will be recorded, or it would differ from that for ever.
                let trouble = trouble.map(cut);
                let mut health = BmcHealth { host, level, method, trouble, fresh: false, steady: false };
                self.note(now, &mut health);
                Some(health)
            }
        }
    }

    /// Counts failures, and sets when the method is due again.
    fn note(&self, now: Instant, health: &mut BmcHealth) {
        let interval = *self.test_every.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bmcs = self.bmcs.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (health.host.clone(), health.level, health.method);
        let Some(held) = bmcs.get_mut(&key) else { return };
        let testing = &mut held.testing;
        testing.note(health.trouble.as_deref());
        health.fresh = (1..FAILURES).contains(&testing.failures);
        health.steady = testing.same >= FAILURES;
        let pause = match Kind::of(&held.method) {
            Kind::Connections => Duration::ZERO,
            Kind::Programs if health.fresh => AGAIN.min(interval),
            Kind::Programs => jittered(interval, &key, testing.rounds),
        };
        testing.due = Some(now + pause);
    }

    /// Keeps tests away from the devices of a question or a fence for as long as the answer is held.
    pub(crate) fn occupy(&self, question: &PowerQuestion) -> Occupied<'_> {
        let devices: Vec<String> = question.methods.0.iter().map(methods::device).collect();
        self.busy.send_modify(|busy| {
            for device in &devices {
                *busy.entry(device.clone()).or_default() += 1;
            }
        });
        Occupied { busy: &self.busy, devices }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_of_many_hosts_are_spread_and_none_is_forgotten() {
        let interval = Duration::from_secs(60);
        let pauses: std::collections::BTreeSet<Duration> = (0..200)
            .map(|number| jittered(interval, &(HostId::new(&format!("h{number}")).unwrap(), 0, 0), 1))
            .collect();
        assert!(pauses.len() > 100, "{}", pauses.len());
        assert!(pauses.iter().all(|pause| (interval * 3 / 4..interval * 5 / 4).contains(pause)));
    }

    #[test]
    fn another_trouble_is_news_once_it_was_found_twice_and_one_that_changes_each_time_is_not() {
        let mut testing = Testing::default();
        let mut find = |trouble: Option<&str>| {
            testing.note(trouble);
            BmcHealth {
                host: HostId::new("h1").unwrap(),
                level: 0,
                method: 0,
                trouble: trouble.map(str::to_owned),
                fresh: (1..FAILURES).contains(&testing.failures),
                steady: testing.same >= FAILURES,
            }
        };
        assert!(find(None).is_news(None));
        assert!(!find(None).is_news(Some(None)));
        assert!(!find(Some("refused")).is_news(Some(None)));
        assert!(find(Some("refused")).is_news(Some(None)));
        assert!(!find(Some("refused")).is_news(Some(Some("refused"))));
        for trouble in ["silent", "refused", "silent", "no login"] {
            assert!(!find(Some(trouble)).is_news(Some(Some("refused"))), "{trouble}");
        }
        assert!(find(Some("no login")).is_news(Some(Some("refused"))));
        assert!(find(None).is_news(Some(Some("no login"))));
    }
}
