//! I9 (S11): without positive proof no more than the allowed share of hosts is condemned in a window, counted from the
//! stream alone; and an observer that truly heard less than half of the hosts of late votes nobody dead.

use defib_engine::{ledger::Ledger, observer::Proposal};
use defib_model::{ClusterTime, Event, EventKind, HostId, Opinion};

use super::{Common, Standing};
use crate::clock::MS;

/// Verdicts within the window, and who heard whom when.
#[derive(Debug)]
pub(super) struct Brakes {
    verdicts: Vec<(ClusterTime, HostId)>,
    heard: Vec<Vec<u64>>,
    /// The longest silence that any policy so far lets pass without a question.
    patience: u64,
}

impl Brakes {
    pub(super) fn new(replicas: usize, hosts: usize) -> Self {
        Self { verdicts: Vec::new(), heard: vec![vec![0; hosts]; replicas], patience: 5_000 * MS }
    }

    pub(super) fn heard(&mut self, now: u64, replica: usize, host: usize) {
        self.heard[replica][host] = now;
    }

    pub(super) fn event(&mut self, common: &mut Common, now: u64, event: &Event, ledger: &Ledger) {
        let policy = ledger.policy();
        self.patience = self.patience.max(policy.detection.act_after_max.as_nanos());
        self.verdicts.retain(|(at, _)| event.at.since(*at) < policy.brakes.window);
        let EventKind::HostConfirmed { host, detail, .. } = &event.kind else { return };
        if detail.starts_with("an operator") {
            return;
        }
        let inventory = ledger.inventory();
        let share = inventory.hosts.len() as u64 * u64::from(policy.brakes.percent) / 100;
        let allowed = share.max(u64::from(policy.brakes.hosts));
        if self.verdicts.len() as u64 >= allowed {
            let text = format!(
                "host {host} is condemned without proof, after {} of {allowed} allowed",
                self.verdicts.len()
            );
            common.violated("I9", now, text);
        }
        let domain = inventory.hosts.get(host).map(|host| &host.domain);
        let same = self.verdicts.iter().filter(|(_, other)| {
            domain.is_some_and(|domain| {
                !domain.0.is_empty()
                    && inventory.hosts.get(other).is_some_and(|other| other.domain == *domain)
            })
        });
        let same = same.count() as u64;
        if same > 0 && same >= u64::from(policy.brakes.hosts_per_domain) {
            let text = format!("host {host} is condemned without proof, after {same} of its fault domain");
            common.violated("I9", now, text);
        }
        self.verdicts.push((event.at, host.clone()));
    }

    pub(super) fn observer_says(&self, common: &mut Common, now: u64, replica: usize, proposal: &Proposal) {
        let Proposal::Opinions(changes) = proposal else { return };
        if !changes.iter().any(|change| change.opinion == Opinion::Dead) {
            return;
        }
        let patience = self.patience + 1_000 * MS;
        let in_use: Vec<usize> = (0..common.hosts.len())
            .filter(|host| matches!(common.standing[*host], Standing::InUse | Standing::Condemned))
            .collect();
        // Of all hosts: the log may be ahead of what this observer knows of who is in use.
        let heard = self.heard[replica].iter().filter(|last| **last > 0 && now - **last <= patience);
        let heard = heard.count();
        if heard == 0 && in_use.len() > 1 {
            let host = &changes[0].host;
            let text = format!(
                "replica number {} votes host {host} dead and heard none of {} hosts of late",
                replica + 1,
                in_use.len()
            );
            common.violated("I9", now, text);
        }
    }
}
