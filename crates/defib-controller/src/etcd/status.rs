//! What is published: pure functions from the loop's view to keys and values.

use std::collections::BTreeMap;

use defib_etcd::{Keys, Write};
use serde::Serialize;

use crate::{core::View, views};

/// Recoveries that are published at least while there are so many, closed ones too: the newest.
const RECOVERIES_SHOWN: usize = 32;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct LeaderStatus {
    cluster: String,
    replica: u64,
    term: u64,
    policy_version: u64,
    inventory_version: u64,
    paused: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    disarmed: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct HostStatus {
    id: String,
    state: &'static str,
    epoch: u64,
    domain: Vec<String>,
    /// VMs that it runs, or may run.
    vms: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct RecoveryStatus {
    id: u64,
    host: String,
    phase: String,
    epoch: u64,
    opened_wall_ms: u64,
    vms_total: u32,
    vms_running: u32,
    vms_unplaced: u32,
    /// What proved the host's death; empty before.
    proof: String,
}

/// All that is published, read at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    leader: LeaderStatus,
    hosts: Vec<HostStatus>,
    recoveries: Vec<RecoveryStatus>,
}

impl Report {
    /// Reads it. Runs on the loop's thread, and so only copies.
    #[must_use]
    pub fn read(view: &View<'_>, cluster: &str, replica: u64, term: u64) -> Self {
        let ledger = view.controller.ledger();
        let hosts = ledger.hosts().iter().map(|(id, record)| HostStatus {
            id: id.to_string(),
            state: views::host_state(ledger, record),
            epoch: record.epoch.0,
            domain: ledger.inventory().hosts.get(id).map(|host| host.domain.0.clone()).unwrap_or_default(),
            vms: ledger.index().on_host.get(id).map_or(0, std::collections::BTreeSet::len),
            recovery: record.recovery.map(|id| id.0),
        });
        let newest = ledger.recoveries().iter().rev().enumerate();
        let shown =
            newest.filter(|(age, (_, recovery))| *age < RECOVERIES_SHOWN || !recovery.phase.is_over());
        let recoveries = shown.map(|(_, (id, recovery))| {
            let summary = views::recovery_summary(ledger, *id, recovery);
            RecoveryStatus {
                id: summary.id,
                host: summary.host,
                phase: summary.phase,
                epoch: summary.epoch,
                opened_wall_ms: summary.opened_wall_ms,
                vms_total: summary.vms_total,
                vms_running: summary.vms_running,
                vms_unplaced: summary.vms_unplaced,
                proof: summary.proof,
            }
        });
        Self {
            leader: LeaderStatus {
                cluster: cluster.to_owned(),
                replica,
                term,
                policy_version: ledger.policy_version(),
                inventory_version: ledger.inventory_version(),
                paused: ledger.paused(),
                disarmed: ledger.disarmed().map(str::to_owned),
            },
            hosts: hosts.collect(),
            recoveries: recoveries.collect(),
        }
    }

    /// Keys and their values.
    #[must_use]
    pub fn entries(&self, keys: &Keys) -> BTreeMap<String, Vec<u8>> {
        let (hosts, recoveries) = (keys.hosts(), keys.recoveries());
        let hosts = self.hosts.iter().map(|host| (format!("{hosts}{}", host.id), json(host)));
        let recoveries =
            self.recoveries.iter().map(|recovery| (format!("{recoveries}{}", recovery.id), json(recovery)));
        [(keys.leader(), json(&self.leader))].into_iter().chain(hosts).chain(recoveries).collect()
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_else(|error| error.to_string().into_bytes())
}

/// What stands in etcd by our own account; `None`: something that somebody else published.
pub(super) type Published = BTreeMap<String, Option<Vec<u8>>>;

/// What to write so that exactly what is wanted stands there.
pub(super) fn writes(published: &Published, wanted: &BTreeMap<String, Vec<u8>>) -> Vec<Write> {
    let changed =
        wanted.iter().filter(|(key, value)| published.get(*key).and_then(Option::as_ref) != Some(value));
    let gone = published.keys().filter(|key| !wanted.contains_key(*key));
    changed
        .map(|(key, value)| Write::Publish { key: key.clone(), value: value.clone() })
        .chain(gone.map(|key| Write::Remove { key: key.clone() }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written_and_what_a_predecessor_left_is_removed_or_made_ours() {
        let wanted: BTreeMap<String, Vec<u8>> =
            [("a", "1"), ("b", "2"), ("c", "3")].map(|(key, value)| (key.into(), value.into())).into();
        let published: Published =
            [("a", Some("1")), ("b", Some("1")), ("c", None), ("d", None), ("e", Some("5"))]
                .map(|(key, value)| (key.to_owned(), value.map(Into::into)))
                .into();
        let publish = |key: &str, value: &str| Write::Publish { key: key.into(), value: value.into() };
        let remove = |key: &str| Write::Remove { key: key.into() };
        assert_eq!(
            writes(&published, &wanted),
            [publish("b", "2"), publish("c", "3"), remove("d"), remove("e")],
            "c hangs on the lease of somebody else"
        );
        let published = wanted.into_iter().map(|(key, value)| (key, Some(value))).collect();
        assert_eq!(
            writes(&published, &BTreeMap::from([("a".into(), "1".into())])),
            [remove("b"), remove("c")]
        );
    }
}
