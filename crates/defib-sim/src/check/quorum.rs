//! I4 (S5, S6): a quorum decides. One leader per term; a write to a BMC follows a committed intent for a condemned
//! host, and its writer was asked whether it leads after nobody else had begun to.

use std::collections::{BTreeMap, BTreeSet};

use defib_model::{Event, EventKind, HostId};

use super::{Common, Standing, ms};

/// What was committed about leaders and fences.
#[derive(Debug, Default)]
pub(super) struct Quorum {
    leaders: BTreeMap<u64, u64>,
    /// The newest leader by the log, and when that was first applied.
    newest: Option<(u64, u64)>,
    intended: BTreeSet<(HostId, u32)>,
}

impl Quorum {
    pub(super) fn leads(&mut self, common: &mut Common, now: u64, replica: u64, term: u64) {
        let leader = *self.leaders.entry(term).or_insert(replica);
        if leader != replica {
            common.violated("I4", now, format!("r{leader} and r{replica} both lead in term {term}"));
        }
    }

    pub(super) fn event(&mut self, _: &mut Common, now: u64, event: &Event) {
        match &event.kind {
            EventKind::LeaderStarted { leader, .. } => self.newest = Some((leader.0, now)),
            EventKind::FenceIntended { host, attempt, .. } => {
                self.intended.insert((host.clone(), *attempt));
            }
            EventKind::HostReadmitted { host, .. } => self.intended.retain(|(other, _)| other != host),
            _ => {}
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
