//! I4 (S5, S6): a quorum decides. One leader per term; a write to a BMC follows a committed intent for a condemned
//! host, and its writer was asked whether it leads after nobody else had begun to.

use std::collections::{BTreeMap, BTreeSet};

use defib_model::{Event, EventKind, HostId, Opinion, ReplicaId, event::ProofKind};

use super::{Common, Standing, ms};

/// What was committed about leaders and fences.
#[derive(Debug)]
pub(super) struct Quorum {
    leaders: BTreeMap<u64, u64>,
    /// The newest leader by the log, and when that was first applied.
    newest: Option<(u64, u64)>,
    intended: BTreeSet<(HostId, u32)>,
    voters: BTreeSet<ReplicaId>,
    /// Who votes each host dead, and who says that its lease has run out.
    dead: BTreeMap<HostId, BTreeSet<ReplicaId>>,
    /// Who misses each host at least.
    missed: BTreeMap<HostId, BTreeSet<ReplicaId>>,
    expired: BTreeMap<HostId, BTreeSet<ReplicaId>>,
}

impl Quorum {
    pub(super) fn new(replicas: usize) -> Self {
        Self {
            leaders: BTreeMap::new(),
            newest: None,
            intended: BTreeSet::new(),
            // The stream tells changes only; the first are known to everybody.
            voters: (1..=replicas as u64).map(ReplicaId).collect(),
            dead: BTreeMap::new(),
            missed: BTreeMap::new(),
            expired: BTreeMap::new(),
        }
    }

    pub(super) fn leads(&mut self, common: &mut Common, now: u64, replica: u64, term: u64) {
        let leader = *self.leaders.entry(term).or_insert(replica);
        if leader != replica {
            common.violated("I4", now, format!("r{leader} and r{replica} both lead in term {term}"));
        }
    }

    /// Fewer than a quorum of the voters of the moment.
    fn too_few(&self, votes: &BTreeMap<HostId, BTreeSet<ReplicaId>>, host: &HostId) -> Option<usize> {
        let count = votes.get(host).map_or(0, |votes| votes.intersection(&self.voters).count());
        (count < self.voters.len() / 2 + 1).then_some(count)
    }

    pub(super) fn event(&mut self, common: &mut Common, now: u64, event: &Event) {
        match &event.kind {
            EventKind::LeaderStarted { leader, .. } => self.newest = Some((leader.0, now)),
            EventKind::FenceIntended { host, attempt, .. } => {
                self.intended.insert((host.clone(), *attempt));
            }
            EventKind::HostReadmitted { host, .. } => {
                self.intended.retain(|(other, _)| other != host);
                self.dead.remove(host);
                self.missed.remove(host);
                self.expired.remove(host);
            }
            EventKind::ReplicasChanged { voters } => self.voters.clone_from(voters),
            EventKind::OpinionChanged { observer, host, to, .. } => {
                let votes = self.dead.entry(host.clone()).or_default();
                if *to == Opinion::Dead {
                    votes.insert(*observer);
                } else {
                    votes.remove(observer);
                }
                let missed = self.missed.entry(host.clone()).or_default();
                if *to == Opinion::Alive {
                    missed.remove(observer);
                } else {
                    missed.insert(*observer);
                }
            }
            EventKind::LeaseExpiryVoted { observer, host, .. } => {
                self.expired.entry(host.clone()).or_default().insert(*observer);
            }
            EventKind::HostConfirmed { host, detail, .. } => {
                self.expired.remove(host);
                if let Some(count) = self.too_few(&self.dead, host)
                    && !detail.starts_with("an operator")
                {
                    let text = format!("host {host} is condemned, and only {count} observers vote it dead");
                    common.violated("I4", now, text);
                }
            }
            EventKind::DeathProven { host, proof: ProofKind::LeaseExpired { .. }, .. } => {
                if let Some(count) = self.too_few(&self.expired, host) {
                    let text = format!("only {count} replicas say that the lease of host {host} has run out");
                    common.violated("I4", now, text);
                }
            }
            EventKind::DeathProven { host, proof: ProofKind::PowerFoundOff { .. }, .. } => {
                if let Some(count) = self.too_few(&self.missed, host) {
                    let text = format!("host {host} is called dead by a reading, and only {count} miss it");
                    common.violated("I4", now, text);
                }
            }
            _ => {}
        }
        if let EventKind::DeathProven { host, .. } = &event.kind {
            // Who hears it after this, hears something new.
            self.missed.insert(host.clone(), self.voters.clone());
        }
    }

    /// Only the newest attempt that was committed may still be under way.
    pub(super) fn let_in_while_fencing(&self, common: &mut Common, now: u64, host: &HostId, attempt: u32) {
        let newest =
            self.intended.iter().filter(|(other, _)| other == host).map(|(_, attempt)| *attempt).max();
        if newest == Some(attempt) {
            let text = format!("host {host} is let in while attempt {attempt} may still switch it off");
            common.violated("I4", now, text);
        }
    }

    pub(super) fn write(
        &self,
        common: &mut Common,
        now: u64,
        writer: u64,
        host: &HostId,
        attempt: u32,
        asked: u64,
    ) {
        if !self.intended.contains(&(host.clone(), attempt)) {
            let text = format!(
                "r{writer} switches host {host} off, and no intent of attempt {attempt} is committed"
            );
            common.violated("I4", now, text);
        }
        let standing = common.host_numbers.get(host).map(|number| common.standing[*number]);
        if !matches!(standing, Some(Standing::Condemned | Standing::Dead)) {
            common.violated("I4", now, format!("r{writer} switches host {host} off, which is {standing:?}"));
        }
        if let Some((leader, since)) = self.newest
            && leader != writer
            && since < asked
        {
            let text = format!(
                "r{writer} was told that it leads {} ms after r{leader} had begun to, and switches host {host} off",
                ms(asked - since)
            );
            common.violated("I4", now, text);
        }
    }
}
