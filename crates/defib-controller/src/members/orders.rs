//! What operators want of the replicas: judged, then carried out and waited for.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use defib_consensus::replica::{Membership, MembershipChange};
use defib_model::{ReplicaId, command::ReplicaOrder};
use defib_pki::{CertificateInfo, rfc3339};
use defib_rpc::Unshown;
use defib_wire::v1;
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::Status;

use super::{Members, dial, look::Shown};
use crate::{
    certificates::wall,
    core::{Core, Overloaded},
    proposals::Fate,
};

/// How long a new replica may take to accept a connection.
const DIAL_WAIT: Duration = Duration::from_secs(1);
/// How long it is waited for signs of life. Who lives gives some with every tick, but a machine may stall.
const HEAR_WAIT: Duration = Duration::from_secs(1);
/// How often it is looked whether something has come about.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A replica that lacks no more than so many entries has caught up: the log never stands still for it.
const CAUGHT_UP: u64 = 64;

/// What was judged.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Nothing is left to do.
    pub(crate) done: bool,
    /// What would be done, or is already so.
    pub(crate) words: String,
}

/// What a request wants.
///
/// # Errors
/// When it does not say.
pub(crate) fn order(request: &v1::ReplicaChangeRequest) -> Result<ReplicaOrder, Status> {
    let (id, by, address) = (ReplicaId(request.id), ReplicaId(request.new_id), request.address.clone());
    match request.kind() {
        v1::ReplicaChangeKind::Add => Ok(ReplicaOrder::Add { id, address }),
        v1::ReplicaChangeKind::Remove => Ok(ReplicaOrder::Remove { id }),
        v1::ReplicaChangeKind::Replace => Ok(ReplicaOrder::Replace { id, by, address }),
        v1::ReplicaChangeKind::Unspecified => Err(Status::invalid_argument("name a kind of change")),
    }
}

/// The replica that an order brings in, and its address.
fn newcomer(order: &ReplicaOrder) -> Option<(u64, &str)> {
    match order {
        ReplicaOrder::Add { id, address } | ReplicaOrder::Replace { by: id, address, .. } => {
            Some((id.0, address))
        }
        ReplicaOrder::Remove { .. } | ReplicaOrder::Lead { .. } => None,
    }
}

/// The change of voters that an order ends in; none for the lead.
fn change_of(order: &ReplicaOrder) -> Option<MembershipChange> {
    match order {
        ReplicaOrder::Add { id, .. } => Some(MembershipChange::add_voter(id.0)),
        ReplicaOrder::Remove { id } => Some(MembershipChange::remove(id.0)),
        ReplicaOrder::Replace { id, by, .. } => Some(MembershipChange::replace(id.0, by.0)),
        ReplicaOrder::Lead { .. } => None,
    }
}

/// What an order would do to these members.
fn sense(order: &ReplicaOrder, members: &Membership, leader: u64) -> Result<Verdict, String> {
    let verdict = |words: String| Ok(Verdict { done: false, words });
    if let ReplicaOrder::Lead { id } = order {
        if !members.voters.contains(&id.0) {
            return Err(format!("r{id} does not vote"));
        }
        if id.0 == leader {
            return Ok(Verdict { done: true, words: format!("r{id} leads already") });
        }
        return verdict(format!("r{id} would lead"));
    }
    if !members.outgoing.is_empty() {
        return Err("another change of the replicas is under way; try again in a moment".into());
    }
    if let Some((id, address)) = newcomer(order) {
        if id == 0 {
            return Err("the number of a replica is 1 or more".into());
        }
        if members.voters.contains(&id) {
            return Err(format!(
                "r{id} is a replica already; one that lost its disk comes back under a number that none ever had"
            ));
        }
        if !is_address(address) {
            return Err(format!(
                "{address:?} is no address: give that of the new replica for peers, host:port"
            ));
        }
    }
    match order {
        ReplicaOrder::Remove { id } | ReplicaOrder::Replace { id, .. } if !members.contains(id.0) => {
            Err(format!("r{id} is no replica"))
        }
        ReplicaOrder::Remove { id } if members.voters.iter().eq([&id.0]) => {
            Err("the last replica can't be removed".into())
        }
        ReplicaOrder::Add { id, address } => {
            verdict(format!("r{id} at {address} would learn, and vote once it has caught up"))
        }
        ReplicaOrder::Remove { id } => verdict(format!("r{id} would leave")),
        ReplicaOrder::Replace { id, by, address } => verdict(format!(
            "r{by} at {address} would learn, and take the place of r{id} once it has caught up"
        )),
        // Answered above.
        ReplicaOrder::Lead { id } => verdict(format!("r{id} would lead")),
    }
}

fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-._[]:%".contains(letter);
    !host.is_empty() && host.chars().all(plain) && port.parse::<u16>().is_ok_and(|port| port != 0)
}

/// Why an order can't be carried out by those who are heard.
fn too_quiet(order: &ReplicaOrder, members: &Membership, heard: &BTreeSet<u64>) -> Option<String> {
    match order {
        ReplicaOrder::Lead { id } => (!heard.contains(&id.0))
            .then(|| format!("r{id} can't be heard, so it could not lead; see: defib replica list")),
        ReplicaOrder::Add { .. } | ReplicaOrder::Remove { .. } | ReplicaOrder::Replace { .. } => {
            too_few(order, members, heard)
        }
    }
}

/// Why an order would leave too few living voters to decide anything; `heard` are those who live.
fn too_few(order: &ReplicaOrder, members: &Membership, heard: &BTreeSet<u64>) -> Option<String> {
    let change = change_of(order)?;
    let mut voters = &members.voters | &change.add_voters;
    voters.retain(|id| !change.remove.contains(id));
    // The new one has answered, and won't vote before it has caught up.
    let alive = |id: &&u64| heard.contains(*id) || change.add_voters.contains(*id);
    let silent: Vec<String> = voters.iter().filter(|id| !alive(id)).map(|id| format!("r{id}")).collect();
    let (living, needed) = (voters.len() - silent.len(), voters.len() / 2 + 1);
    (living < needed).then(|| {
        format!(
            "then {} would vote, and only {living} of them can be heard, where decisions need {needed}: nothing could be \
             decided any more, this change taken back least of all. Not heard: {}. Start them, or replace them by: defib \
             replica replace",
            voters.len(),
            silent.join(", ")
        )
    })
}

/// Why a replica must not lead that shows this to whoever comes.
fn unfit(id: ReplicaId, shown: &Shown, now: SystemTime) -> Option<String> {
    let (why, advice) = match shown {
        Ok(info) if info.expires_in(now).is_some() => return None,
        // Connections go by whole seconds.
        Ok(CertificateInfo { not_after: since, .. }) | Err(Unshown::Expired { since }) => (
            format!("its certificate has expired at {}", rfc3339(*since)),
            "put a new one in its place first (defib pki issue)",
        ),
        Err(Unshown::Unreached(why)) => (why.clone(), "look at it and at the network between"),
    };
    Some(format!(
        "r{id} can't be reached in a new connection, and agents and operators need one to its leader: {why}; {advice}"
    ))
}

/// Waits until it is worth looking again; false: no time is left.
async fn a_moment(at: Instant) -> bool {
    let next = Instant::now() + LOOK_EVERY;
    if next > at {
        return false;
    }
    sleep_until(next).await;
    true
}

fn unavailable(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

fn answer(accepted: bool, message: String, log_index: u64) -> v1::ActionResponse {
    v1::ActionResponse { accepted, message, log_index }
}

impl Members {
    async fn membership(&self, core: &Core) -> Result<Membership, Status> {
        core.ask(|view| view.membership.clone()).await.map_err(unavailable)
    }

    /// Whether an order makes sense now and leaves the cluster able to decide.
    ///
    /// # Errors
    /// When this replica can't say. Within: why not.
    pub(crate) async fn judge(
        &self,
        core: &Core,
        order: &ReplicaOrder,
    ) -> Result<Result<Verdict, String>, Status> {
        let leader = core.ask(|view| view.role.leader.unwrap_or(0)).await.map_err(unavailable)?;
        let members = self.membership(core).await?;
        let verdict = match sense(order, &members, leader) {
            Ok(verdict) if !verdict.done => verdict,
            told => return Ok(told),
        };
        if let Some((id, address)) = newcomer(order) {
            if let Some(owner) =
                self.owner_of(address).filter(|owner| *owner != id && members.contains(*owner))
            {
                return Ok(Err(format!("{address} is the peer address of r{owner}")));
            }
            if let Err(why) = dial(address, DIAL_WAIT).await {
                return Ok(Err(format!(
                    "nobody can be reached at {address} ({why}): start replica r{id} with an empty data-dir and `rebuild: \
                     true` first, and give the address of its listen.peers"
                )));
            }
        }
        if let ReplicaOrder::Lead { id } = *order {
            let deafness = core.ask(move |view| view.controller.deafness(id)).await.map_err(unavailable)?;
            if let Some((missed, heard)) = deafness {
                return Ok(Err(format!(
                    "r{id} misses {missed} of {heard} hosts that a quorum hears, and could start nothing there; look whether \
                     their agents' configuration names it, and at the network between them"
                )));
            }
        }
        // From now on: who was heard a moment ago may have ended since.
        let (wait, mut counted) = (Instant::now() + HEAR_WAIT, self.handle.heard());
        loop {
            let heard = self.heard_since(&mut counted);
            let Some(problem) = too_quiet(order, &members, &heard) else { break };
            if !a_moment(wait).await {
                return Ok(Err(problem));
            }
        }
        // One that was added since the files were written is somewhere that they don't say.
        if let ReplicaOrder::Lead { id } = *order
            && self.control_of(id.0).is_some()
            && let Some(why) = unfit(id, &self.look(id.0).await, wall())
        {
            return Ok(Err(why));
        }
        Ok(Ok(verdict))
    }

    /// Does what was judged to make sense, and waits until it is done, or until then.
    ///
    /// # Errors
    /// When it is not known what came of it.
    pub(crate) async fn carry_out(
        &self,
        core: &Core,
        order: &ReplicaOrder,
        at: Instant,
    ) -> Result<v1::ActionResponse, Status> {
        let Some(change) = change_of(order) else { return self.hand_over(core, order, at).await };
        if let Some((id, address)) = newcomer(order)
            && let Some(waits) = self.teach(core, id, address, at).await?
        {
            return Ok(answer(false, waits, 0));
        }
        let index = commit(core, change.clone(), at).await?;
        loop {
            let members = self.membership(core).await?;
            if members.outgoing.is_empty()
                && members.voters.is_superset(&change.add_voters)
                && change.remove.iter().all(|id| !members.contains(*id))
            {
                break;
            }
            if !a_moment(at).await {
                return Err(unknown());
            }
        }
        for gone in &change.remove {
            // Otherwise it is dialled until the next restart, and no more.
            let _ = self.forget(*gone);
        }
        let words = match order {
            ReplicaOrder::Add { id, .. } => format!("r{id} votes"),
            ReplicaOrder::Remove { id } => format!("r{id} has left; stop it"),
            ReplicaOrder::Replace { id, by, .. } => format!("r{by} votes in the place of r{id}; stop r{id}"),
            ReplicaOrder::Lead { id } => format!("r{id} leads"),
        };
        let words = format!("{words}. For two leases from now on an expired lease proves nothing");
        Ok(answer(true, words, index))
    }

    /// Lets a new replica learn until it has caught up; answers what it waits for, if that takes too long.
    async fn teach(
        &self,
        core: &Core,
        id: u64,
        address: &str,
        at: Instant,
    ) -> Result<Option<String>, Status> {
        self.introduce(id, address).map_err(unavailable)?;
        if !self.membership(core).await?.contains(id) {
            commit(core, MembershipChange::add_learner(id), at).await?;
        }
        // Some time is left for the change itself.
        let at = at.checked_sub(Duration::from_secs(2)).unwrap_or(at);
        let state = loop {
            let (log, matched) = self.log();
            let held = matched.get(&id).copied().unwrap_or(0);
            if held > 0 && held.saturating_add(CAUGHT_UP) >= log.commit {
                return Ok(None);
            }
            if !a_moment(at).await {
                break match held {
                    0 => format!(
                        "has taken nothing; is it replica r{id} of this cluster that runs at {address}?"
                    ),
                    held => format!("holds the log up to {held} of {}.", log.commit),
                };
            }
        };
        Ok(Some(format!(
            "r{id} learns, but does not vote yet: it {state} Follow it with: defib replica list. The same command again goes \
             on from here, and this takes it back: defib replica remove {id}"
        )))
    }

    async fn hand_over(
        &self,
        core: &Core,
        order: &ReplicaOrder,
        at: Instant,
    ) -> Result<v1::ActionResponse, Status> {
        let ReplicaOrder::Lead { id } = order else { return Err(Status::internal("no hand-over")) };
        self.handle.transfer_leadership(id.0).map_err(unavailable)?;
        loop {
            let leader = core.ask(|view| view.role.leader).await.map_err(unavailable)?;
            if leader == Some(id.0) {
                return Ok(answer(true, format!("r{id} leads"), 0));
            }
            if !a_moment(at).await {
                break;
            }
        }
        Ok(answer(
            false,
            format!("r{id} was asked to lead, and does not; is it up to date? See: defib replica list"),
            0,
        ))
    }
}

/// Not one that makes the caller ask another replica: it would do it all again.
fn unknown() -> Status {
    Status::aborted(
        "another change is under way, or the leader changed meanwhile, so the outcome is unknown; look at defib replica list \
         before you try again",
    )
}

/// Proposes a change and waits until it is in the log.
async fn commit(core: &Core, change: MembershipChange, at: Instant) -> Result<u64, Status> {
    match timeout_at(at, core.change(change)).await {
        Ok(Ok(Fate::Committed { index, .. })) => Ok(index),
        Ok(Err(Overloaded)) => Err(unavailable(Overloaded)),
        Ok(Ok(Fate::Unknown)) | Err(_) => Err(unknown()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(voters: &[u64]) -> Membership {
        Membership { voters: voters.iter().copied().collect(), ..Membership::default() }
    }

    fn add(id: u64) -> ReplicaOrder {
        ReplicaOrder::Add { id: ReplicaId(id), address: "10.0.0.4:7440".into() }
    }

    fn replace(id: u64, by: u64) -> ReplicaOrder {
        ReplicaOrder::Replace { id: ReplicaId(id), by: ReplicaId(by), address: "10.0.0.4:7440".into() }
    }

    fn remove(id: u64) -> ReplicaOrder {
        ReplicaOrder::Remove { id: ReplicaId(id) }
    }

    #[test]
    fn what_leaves_too_few_living_voters_is_refused() {
        let judge = |order: &ReplicaOrder, voters: &[u64], heard: &[u64]| {
            too_few(order, &members(voters), &heard.iter().copied().collect())
        };
        assert_eq!(judge(&add(4), &[1, 2, 3], &[1, 2, 3]), None);
        assert_eq!(judge(&replace(3, 4), &[1, 2, 3], &[1, 2]), None, "the way out of a loss stays open");
        assert_eq!(judge(&add(4), &[1, 2, 3], &[1, 2]), None, "three of four");
        assert_eq!(judge(&add(6), &[1, 2, 3, 4, 5], &[1, 2, 3]), None, "four of six, with the new one");
        let told = judge(&remove(1), &[1, 2, 3], &[1, 2]).expect("one of two");
        assert!(told.contains("only 1 of them") && told.contains("Not heard: r3"), "{told}");
        assert!(judge(&replace(2, 4), &[1, 2, 3, 5], &[1, 2]).is_some(), "two of four");
        assert_eq!(judge(&ReplicaOrder::Lead { id: ReplicaId(1) }, &[1, 2, 3], &[]), None);
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_a_learner_may_be_promoted() {
        let three = members(&[1, 2, 3]);
        for (order, wanted) in [
            (add(0), "1 or more"),
            (add(2), "r2 is a replica already"),
            (replace(9, 4), "r9 is no replica"),
            (replace(1, 2), "r2 is a replica already"),
            (remove(9), "r9 is no replica"),
            (ReplicaOrder::Lead { id: ReplicaId(9) }, "r9 does not vote"),
        ] {
            let told = sense(&order, &three, 1).expect_err("refused");
            assert!(told.contains(wanted), "{told}");
        }
        assert!(sense(&remove(1), &members(&[1]), 1).is_err());
        let learns = Membership { learners: [4].into(), ..members(&[1, 2, 3]) };
        assert!(sense(&add(4), &learns, 1).is_ok() && sense(&remove(4), &learns, 1).is_ok());
        let joint = Membership { outgoing: [1].into(), ..members(&[1, 2, 3]) };
        assert!(sense(&add(4), &joint, 1).is_err());
        let leads = sense(&ReplicaOrder::Lead { id: ReplicaId(1) }, &three, 1);
        assert_eq!(leads, Ok(Verdict { done: true, words: "r1 leads already".into() }));
    }

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for good in ["10.0.0.4:7440", "r4.example.org:7440", "[fd00::4]:7440"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["", "nonsense", ":7440", "r4:", "r4:0", "r4:70000", "r4 r5:7440", "http://r4:7440"] {
            assert!(!is_address(bad), "{bad:?}");
        }
    }
}
