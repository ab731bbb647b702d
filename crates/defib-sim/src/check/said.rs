//! I4: what counts as a replica's vote is what its observer said of the host's present epoch, in the life that the log
//! knows of.

use std::collections::{BTreeMap, BTreeSet};

use defib_engine::{ledger::Ledger, observer::Proposal};
use defib_model::{Epoch, Event, EventKind, HostId, Opinion, ReplicaId};

use super::Common;

/// `None`: that the lease has run out.
type Word = (ReplicaId, u64, HostId, Epoch, Option<Opinion>);

/// All that observers ever said, and the epochs by the stream.
#[derive(Debug, Default)]
pub(super) struct Said {
    words: BTreeSet<Word>,
    epochs: BTreeMap<HostId, Epoch>,
}

impl Said {
    pub(super) fn says(&mut self, (me, session): (ReplicaId, u64), proposal: &Proposal) {
        match proposal {
            Proposal::Opinions(changes) => self.words.extend(
                changes
                    .iter()
                    .map(|change| (me, session, change.host.clone(), change.epoch, Some(change.opinion))),
            ),
            Proposal::LeasesExpired(votes) => {
                self.words
                    .extend(votes.iter().map(|vote| (me, session, vote.host.clone(), vote.epoch, None)));
            }
            // Neither is a vote.
            Proposal::Witnessed(_) | Proposal::Probe(_) => {}
        }
    }

    pub(super) fn event(&mut self, common: &mut Common, now: u64, event: &Event, ledger: &Ledger) {
        let (observer, host, word) = match &event.kind {
            EventKind::OpinionChanged { observer, host, to, .. } => (observer, host, Some(*to)),
            EventKind::LeaseExpiryVoted { observer, host, .. } => (observer, host, None),
            EventKind::HostReadmitted { host, epoch, .. }
            | EventKind::HostConfirmed { host, epoch, .. }
            | EventKind::DeathProven { host, epoch, .. } => {
                self.epochs.insert(host.clone(), *epoch);
                return;
            }
            _ => return,
        };
        let Some(session) = ledger.session_of(*observer) else { return };
        let epoch = self.epochs.get(host).copied().unwrap_or_default();
        if !self.words.contains(&(*observer, session, host.clone(), epoch, word)) {
            let what = word
                .map_or_else(|| "that the lease has run out".to_string(), |opinion| format!("{opinion:?}"));
            let text = format!(
                "{what} of host {host} counts as said by {observer}, whose present life said no such thing in epoch {epoch}"
            );
            common.violated("I4", now, text);
        }
    }
}
