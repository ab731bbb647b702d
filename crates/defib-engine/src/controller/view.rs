//! What the replica's own observer must know of each host.

use alloc::{collections::BTreeSet, vec::Vec};

use defib_model::HostId;

use super::{Controller, Effect};
use crate::{ledger::Standing, observer::HostView};

impl Controller {
    /// Tells the observer about hosts that changed; about all of them if `whole`.
    pub(super) fn watch(&mut self, whole: bool, effects: &mut Vec<Effect>) {
        let touched = self.ledger.take_touched();
        self.look_at.extend(self.ledger.take_to_compare());
        self.look_at.extend(touched.iter().cloned());
        let hosts: BTreeSet<HostId> =
            if whole { self.ledger.hosts().keys().cloned().collect() } else { touched };
        if whole {
            for gone in self.known_hosts.difference(&hosts) {
                self.words.forget(gone);
                effects.push(Effect::Forget { host: gone.clone() });
            }
            self.known_hosts.clone_from(&hosts);
            self.look_at.extend(self.reports.keys().cloned());
            self.left_at.retain(|host, _| hosts.contains(host));
        }
        for host in hosts {
            let Some(record) = self.ledger.hosts().get(&host) else { continue };
            let opinion = record.opinions.get(&self.me).copied().unwrap_or_default();
            let view = HostView {
                epoch: record.epoch,
                watched: matches!(record.standing, Standing::Active | Standing::Condemned),
                grantable: record.standing == Standing::Active,
                boot: record.boot,
                over: record.newest_over_boots(),
                condemned: record.standing == Standing::Condemned,
                dead: record.standing == Standing::Dead,
                muted_for: record.expected_silent_until.map(|until| until.since(self.ledger.at())),
                recorded: opinion.opinion,
                vote_recorded: record.expiry_votes.contains(&self.me),
                sign_recorded: record.life_signs.contains_key(&self.me),
            };
            // A host that just got its epoch hears of it at once, not with its next heartbeat.
            if record.standing == Standing::Active
                && self.reports.get(&host).is_some_and(|report| report.epoch < record.epoch)
            {
                effects.push(Effect::Admit { host: host.clone(), epoch: record.epoch });
            }
            effects.push(Effect::Watch { host, view });
        }
    }
}
