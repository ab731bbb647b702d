//! What is published: pure functions from the loop's view to keys and values.

use std::collections::BTreeMap;

use defib_etcd::{Keys, Write};
use defib_model::HostId;
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
    id: HostId,
    state: &'static str,
    epoch: u64,
    /// VMs that it runs, or may run.
    vms: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery: Option<u64>,
}

/// With what does not change unless the inventory does.
#[derive(Debug, Serialize)]
struct WholeHost<'a> {
    #[serde(flatten)]
    host: &'a HostStatus,
    domain: &'a [String],
}

/// Where hosts are, by one version of the inventory. It is read once for each, for it is most of what is published.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Domains {
    version: u64,
    of: BTreeMap<HostId, Vec<String>>,
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
    /// Where hosts are, if that is news to whoever asks.
    domains: Option<Domains>,
}

impl Domains {
    /// Of which inventory; 0: none is known yet.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }
}

impl Report {
    /// Reads it for whoever knows where hosts are by the inventory of version `known`. Runs on the loop's thread, and
    /// so only copies, and as little as it can.
    #[must_use]
    pub fn read(view: &View<'_>, cluster: &str, replica: u64, term: u64, known: u64) -> Self {
        let ledger = view.controller.ledger();
        let version = ledger.inventory_version();
        let domains = || {
            let hosts = ledger.inventory().hosts.iter();
            Domains { version, of: hosts.map(|(id, host)| (id.clone(), host.domain.0.clone())).collect() }
        };
        // Both are in the order of hosts: side by side, instead of a look-up for each.
        let mut on_host = ledger.index().on_host.iter().peekable();
        let mut vms = |id: &HostId| {
            while on_host.next_if(|(other, _)| *other < id).is_some() {}
            on_host.next_if(|(other, _)| *other == id).map_or(0, |(_, vms)| vms.len())
        };
        let hosts = ledger.hosts().iter().map(|(id, record)| HostStatus {
            id: id.clone(),
            state: views::host_state(ledger, record),
            epoch: record.epoch.0,
            vms: vms(id),
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
            domains: (version != known).then(domains),
        }
    }

    /// Keys and their values; `domains` are brought up to date first.
    #[must_use]
    pub fn entries(self, keys: &Keys, domains: &mut Domains) -> BTreeMap<String, Vec<u8>> {
        if let Some(news) = self.domains {
            *domains = news;
        }
        let (hosts, recoveries) = (keys.hosts(), keys.recoveries());
        let hosts = self.hosts.iter().map(|host| {
            let domain = domains.of.get(&host.id).map(Vec::as_slice).unwrap_or_default();
            (format!("{hosts}{}", host.id), json(&WholeHost { host, domain }))
        });
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
    use std::collections::BTreeSet;

    use defib_consensus::replica::{Membership, RoleChange};
    use defib_engine::{controller::Controller, ledger::Ledger};
    use defib_model::{
        ClusterTime, Command, Entry, Instant, Inventory, ReplicaId, Resources, UnixMillis,
        command::Operator,
        inventory::{FaultDomain, Host, SelfFence},
    };

    use super::*;

    /// What a loop tells whose inventory was replaced once for each of these domains.
    fn read(domains: &[&str], known: u64) -> Report {
        let mut ledger = Ledger::new(BTreeSet::from([ReplicaId(1)]));
        for (replaces, domain) in (0..).zip(domains) {
            let id = HostId::new("h1").unwrap();
            let host = Host {
                id: id.clone(),
                domain: FaultDomain(vec![(*domain).to_owned()]),
                capacity: Resources::new(1000, 1024),
                labels: BTreeSet::new(),
                fencing: Vec::new(),
                self_fence: SelfFence::None,
                spare: false,
                neighbour_address: None,
                kdump_wait: None,
            };
            let levels = vec!["rack".to_owned()];
            let inventory = Inventory { levels, hosts: [(id, host)].into(), ..Inventory::default() };
            let operator = Operator { name: "anna".into(), reason: String::new() };
            let command = Command::SetInventory { inventory, replaces, operator };
            let (at, wall, proposer) = (ClusterTime(0), UnixMillis(0), ReplicaId(1));
            ledger.apply(ledger.applied().next(), &Entry { at, wall, proposer, command });
        }
        let controller = Controller::new(ReplicaId(1), 1, ledger);
        let (now, role, membership) = (Instant(0), RoleChange::default(), Membership::default());
        let view = View { controller: &controller, now, role, unled_since: None, membership: &membership };
        Report::read(&view, "demo", 1, 1, known)
    }

    #[test]
    fn where_hosts_are_is_read_once_for_each_inventory_and_published_always() {
        let keys = Keys::new("/p".into(), "/s".into());
        let mut domains = Domains::default();
        for (inventories, wanted, is_news) in
            [(&["r1"][..], "r1", true), (&["r1"], "r1", false), (&["r1", "r2"], "r2", true)]
        {
            let report = read(inventories, domains.version());
            assert_eq!(report.domains.is_some(), is_news, "{inventories:?}");
            let entries = report.entries(&keys, &mut domains);
            let host: serde_json::Value = serde_json::from_slice(&entries["/s/hosts/h1"]).unwrap();
            assert_eq!((&host["domain"][0], &host["state"]), (&wanted.into(), &"never-seen".into()));
            assert_eq!(domains.version(), inventories.len() as u64);
        }
    }

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
