//! An event in a sentence, for people.

use core::fmt;

use alloc::{format, string::String, vec::Vec};

use super::EventKind;
use crate::{Millis, Opinion, VmCondition};

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeaderStarted { leader, term } => write!(f, "replica r{leader} leads in term {term}"),
            Self::ObserverStarted { observer } => write!(f, "replica r{observer} observes"),
            Self::ReplicasChanged { voters } => {
                let voters: Vec<String> = voters.iter().map(|voter| format!("r{voter}")).collect();
                write!(f, "replicas are {}", voters.join(", "))
            }
            Self::OpinionChanged { observer, host, from, to, silent_ms } => {
                let word = match to {
                    Opinion::Alive => "hears it again",
                    Opinion::Asks => "asks",
                    Opinion::Dead if *from == Opinion::Dead => "repeats dead",
                    Opinion::Dead => "votes dead",
                };
                write!(f, "host {host}: r{observer} {word} (silent {silent_ms} ms)")
            }
            Self::LeaseExpiryVoted { observer, host, epoch } => {
                write!(f, "host {host}: r{observer} votes that the lease of epoch {epoch} has run out")
            }
            Self::PathDegraded { observer, host, neighbour } => {
                write!(
                    f,
                    "host {host}: path degraded: r{observer} does not hear it, but host {neighbour} reached it"
                )
            }
            Self::HeartbeatsForged { observer, host, count } => {
                write!(f, "host {host}: r{observer} dropped {count} forged heartbeats in its name")
            }
            Self::BmcTold { observer, host, told } => {
                write!(f, "host {host}: its BMC tells r{observer} ({told})")
            }
            Self::HostSuspected { host } => write!(f, "host {host}: suspected by a quorum"),
            Self::HostConfirmed { host, epoch, detail } => {
                write!(f, "host {host}: confirmed down, epoch {epoch}: {detail}")
            }
            Self::RecoveryAbandoned { host, detail } => {
                write!(f, "host {host}: recovery abandoned: {detail}")
            }
            Self::BrakeEngaged { host, detail } => write!(f, "host {host}: brake engaged: {detail}"),
            Self::BrakeReleased { host } => write!(f, "host {host}: brake released"),
            Self::BrakeOverridden { host, operator, detail } => {
                write!(f, "host {host}: operator {} fences it over the brake: {detail}", operator.name)
            }
            Self::FenceIntended { host, attempt, level } => {
                write!(f, "host {host}: fence intended, attempt {attempt}, level {level}")
            }
            Self::FenceFailed { host, attempt, detail } => {
                write!(f, "host {host}: fence attempt {attempt} brought no proof: {detail}")
            }
            Self::FencingTested { host, level, method, trouble: None } => {
                write!(f, "host {host}: its fencing level {level} ({method}) would work again")
            }
            Self::FencingTested { host, level, method, trouble: Some(trouble) } => {
                write!(f, "host {host}: its fencing level {level} ({method}) would fail: {trouble}")
            }
            Self::HostUnconfirmed { host, detail } => write!(f, "host {host}: unconfirmed: {detail}"),
            Self::DeathProven { host, epoch, proof } => {
                write!(f, "host {host}: death proven for epoch {epoch}: {proof}")
            }
            Self::VmPlaced { vm, host, incarnation, from, because, broken } => {
                write!(f, "vm {vm}: placed on {host} as incarnation {incarnation}")?;
                if let Some(from) = from {
                    write!(f, " (was on {from})")?;
                }
                if !because.is_empty() {
                    write!(f, ": {because}")?;
                }
                if !broken.is_empty() {
                    write!(f, ", breaking {}", broken.join("; "))?;
                }
                Ok(())
            }
            Self::VmUnplaced { vm, reasons } => write!(f, "vm {vm}: no place: {}", reasons.join("; ")),
            Self::VmRunning { vm, host, incarnation } => {
                write!(f, "vm {vm}: running on {host} as incarnation {incarnation}")
            }
            Self::VmReady { vm, readiness } => write!(f, "vm {vm}: {readiness}"),
            Self::VmDown { vm, host, incarnation, detail } => {
                write!(f, "vm {vm}: incarnation {incarnation} does not run on {host}: {detail}")
            }
            Self::VmConditionChanged { vm, host, incarnation, condition, detail } => {
                match condition {
                    VmCondition::Normal => write!(f, "vm {vm}: incarnation {incarnation} on {host} goes on")?,
                    VmCondition::MovedAway => {
                        write!(f, "vm {vm}: incarnation {incarnation} has left {host}, not on our order")?;
                    }
                    other => write!(f, "vm {vm}: incarnation {incarnation} on {host} is {other}")?,
                }
                if detail.is_empty() { Ok(()) } else { write!(f, ": {detail}") }
            }
            Self::VmRebooted { vm, host, incarnation, reboots } => {
                write!(
                    f,
                    "vm {vm}: its guest on {host} rebooted ({reboots} times as incarnation {incarnation})"
                )
            }
            Self::UnprotectedChanged { vm, host, runs: true } => {
                write!(
                    f,
                    "vm {vm}: a domain of its UUID or name runs on {host} unprotected; it is not started beside it"
                )
            }
            Self::UnprotectedChanged { vm, host, runs: false } => {
                write!(f, "vm {vm}: no domain of its UUID or name runs on {host} unprotected any more")
            }
            Self::DatastoreChanged { host, datastore, trouble: None } => {
                write!(f, "host {host}: datastore {datastore} is reached again")
            }
            Self::DatastoreChanged { host, datastore, trouble: Some(trouble) } => {
                write!(
                    f,
                    "host {host}: datastore {datastore} is not reached, so no VM of it starts there: {trouble}"
                )
            }
            Self::VmGivenUp { vm, attempts } => {
                write!(
                    f,
                    "vm {vm}: does not start, {attempts} attempts in a row failed; the next one comes after restart.retry-after, or at once if its definition changes"
                )
            }
            Self::HostRecovered { host, restarted, left, passed_on } => {
                write!(f, "host {host}: recovered: {restarted} VMs run again, {left} do not start")?;
                if *passed_on == 0 {
                    Ok(())
                } else {
                    write!(f, ", {passed_on} went down with their new host and belong to its recovery")
                }
            }
            Self::HostReadmitted { host, epoch, boot } => {
                write!(f, "host {host}: in use, epoch {epoch}, boot {boot}")
            }
            Self::ProofContradicted { host, boot, proof } => {
                write!(
                    f,
                    "host {host}: PROOF CONTRADICTED: boot {boot} speaks though its end was proven ({proof}); the host stays out of use until it has a new boot: cut its power by hand, then find out why it read as off"
                )
            }
            Self::HostQuarantined { host, returns } => {
                write!(
                    f,
                    "host {host}: quarantined after {returns} returns; trusted again by: defib host lift-quarantine {host}"
                )
            }
            Self::GoodbyeSaid { host, detail } => write!(f, "host {host}: says goodbye: {detail}"),
            Self::WatchdogChanged { host, armed } => {
                write!(f, "host {host}: watchdog {}", if *armed { "armed" } else { "not armed" })
            }
            Self::OperatorActed { operator, action } => {
                write!(f, "operator {}: {action}", operator.name)?;
                if operator.reason.is_empty() { Ok(()) } else { write!(f, " ({})", operator.reason) }
            }
            Self::PolicyChanged { version } => write!(f, "policy version {version} is in force"),
            Self::InventoryChanged { version } => write!(f, "inventory version {version} is in force"),
            Self::JoinTokenUsed { identity } => write!(f, "{identity} joined by token"),
            Self::CommandRefused { command, detail } => write!(f, "command {command} refused: {detail}"),
            Self::SinkGap { sink, from, to } => {
                write!(f, "sink {sink}: events {from} to {to} are given up: it did not take them in time")
            }
            Self::HeadSigned { upto, key, .. } => {
                write!(f, "the stream up to event {upto} is signed with key {key}")
            }
            Self::ClusterVersionRaised { version } => {
                write!(f, "cluster version {version} is in force: the releases of all replicas support it")
            }
            Self::ClockSetBack { leader, by_ms } => {
                let by = Millis(*by_ms);
                write!(
                    f,
                    "times of events go back by {by} from here on: events are dated by the clock of the leader, and that \
                     of r{leader} is behind what was used until now; order them by their numbers, and look at the time \
                     synchronisation of all replicas"
                )
            }
            Self::ClockCompared { replica, ahead_ms: 0 } => {
                write!(f, "replica r{replica}: its clock agrees with the leader's again")
            }
            Self::ClockCompared { replica, ahead_ms } => {
                let (apart, side) =
                    (Millis(ahead_ms.unsigned_abs()), if *ahead_ms > 0 { "ahead of" } else { "behind" });
                write!(
                    f,
                    "replica r{replica}: its clock is {apart} {side} the leader's; what it says is dated by the leader's \
                     clock; look at the time synchronisation of both"
                )
            }
            Self::Disarmed { detail } => write!(f, "DISARMED: {detail}"),
        }
    }
}
