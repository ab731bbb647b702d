//! What changes something: hosts, pause, replicas.

use clap::{Args, Subcommand};
use defib_wire::v1;
use serde_json::{Value, json};

use super::views::{vm_json, vm_table};
use crate::{
    cluster::{Cluster, Failure, ask, change},
    output::{Output, json, line, table},
};

/// What every change takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Change {
    /// Only say what would be done.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Why, for the event stream.
    #[arg(long, default_value = "")]
    pub(super) reason: String,
}

/// Hosts.
#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// All hosts.
    List,
    /// One host, and why nothing is being done about it.
    Show {
        /// Which.
        host: String,
    },
    /// Cuts a host's power and restarts its VMs elsewhere.
    Fence {
        /// Which.
        host: String,
        /// It is meant, though it is heard.
        #[arg(long)]
        yes: bool,
        /// Refuse if the host is in another epoch than this; without it, than the one that it is in now.
        #[arg(long)]
        epoch: Option<u64>,
        #[command(flatten)]
        change: Change,
    },
    /// Vouches that a host is dead: that it has no power, or can't run or write anything. If it does run, two copies of
    /// its VMs will destroy their data.
    ConfirmDead {
        /// Which.
        host: String,
        /// Somebody stood before it, or has cut it off its storage.
        #[arg(long)]
        yes: bool,
        /// Refuse if the host is in another epoch than this; without it, than the one that it is in now.
        #[arg(long)]
        epoch: Option<u64>,
        #[command(flatten)]
        change: Change,
    },
    /// Trusts a host again that died and came back too often; until then it gets no VMs, and once dead stays out.
    LiftQuarantine {
        /// Which.
        host: String,
        #[command(flatten)]
        change: Change,
    },
}

/// Replicas.
#[derive(Debug, Subcommand)]
pub(crate) enum ReplicaCommand {
    /// All replicas.
    List,
    /// Adds one that is running and empty: it learns, and votes once it has caught up.
    Add {
        /// Its number.
        id: u64,
        /// Its peer address.
        #[arg(long)]
        address: String,
        #[command(flatten)]
        change: Change,
    },
    /// Removes one, unless too few living ones would be left.
    Remove {
        /// Its number.
        id: u64,
        #[command(flatten)]
        change: Change,
    },
    /// Removes one and puts another in its place, in one step, once the other has caught up.
    Replace {
        /// The old one.
        id: u64,
        /// The number of the new one.
        #[arg(long)]
        by: u64,
        /// The peer address of the new one.
        #[arg(long)]
        address: String,
        #[command(flatten)]
        change: Change,
    },
    /// Hands the lead over.
    Transfer {
        /// To which.
        id: u64,
        #[command(flatten)]
        change: Change,
    },
}

pub(super) fn done(answer: v1::ActionResponse, output: Output) -> Result<(), Failure> {
    if !answer.accepted {
        return Err(Failure::Refused(answer.message));
    }
    match output {
        Output::Json => json(&json!({"message": answer.message, "log_index": answer.log_index})),
        Output::Table => line(&answer.message),
    }
    Ok(())
}

fn host_json(host: &v1::HostDetail) -> Value {
    json!({"id": host.id, "domain": host.domain.join("/"), "state": host.state, "epoch": host.epoch,
        "boot_id": host.boot_id, "recovery": host.recovery, "proof": host.proof, "why_not": host.why_not,
        "opinions": host.opinions.iter().map(|one| json!({"replica": one.observer, "opinion": one.opinion,
            "silent_ms": one.silent_ms})).collect::<Vec<_>>(),
        "watchdog_armed": host.watchdog_armed, "self_fence": host.self_fence, "connected": host.connected,
        "agent_version": host.agent_version, "certificate_until": host.certificate_until, "fencing": host.fencing,
        "found": host.found,
        "vms": host.vms.iter().map(vm_json).collect::<Vec<_>>()})
}

fn host_table(hosts: &[v1::HostDetail]) {
    let rows = hosts.iter().map(|host| {
        let opinions = host.opinions.iter().map(|one| format!("r{} {}", one.observer, one.opinion));
        vec![
            host.id.clone(),
            host.domain.join("/"),
            host.state.clone(),
            host.epoch.to_string(),
            host.vms.len().to_string(),
            opinions.collect::<Vec<_>>().join(", "),
        ]
    });
    table(&["host", "domain", "state", "epoch", "VMs", "opinions"], rows.collect());
}

/// The epoch that an order is meant for: one that comes late must not hit the host's next life.
async fn seen_epoch(cluster: &Cluster, host: &str, named: Option<u64>) -> Result<u64, Failure> {
    match named {
        Some(epoch) => Ok(epoch),
        None => Ok(ask!(cluster, get_host, v1::GetHostRequest { host: host.to_owned() })?.epoch),
    }
}

/// `defib host`.
pub(crate) async fn host(cluster: &Cluster, command: HostCommand, output: Output) -> Result<(), Failure> {
    match command {
        HostCommand::List => {
            let answer = ask!(cluster, list_hosts, v1::ListHostsRequest::default())?;
            match output {
                Output::Json => json(&Value::Array(answer.hosts.iter().map(host_json).collect())),
                Output::Table => host_table(&answer.hosts),
            }
            Ok(())
        }
        HostCommand::Show { host } => {
            let answer = ask!(cluster, get_host, v1::GetHostRequest { host: host.clone() })?;
            if output == Output::Json {
                json(&host_json(&answer));
                return Ok(());
            }
            host_table(std::slice::from_ref(&answer));
            for why in &answer.why_not {
                line(&format!("why not: {why}"));
            }
            for level in &answer.fencing {
                line(&format!("fencing: {level}"));
            }
            if !answer.certificate_until.is_empty() {
                line(&format!("its certificate ends: {}", answer.certificate_until));
            }
            for found in &answer.found {
                line(&format!("found: {found}"));
            }
            if !answer.proof.is_empty() {
                line(&format!("proof: {}", answer.proof));
            }
            vm_table(&answer.vms);
            Ok(())
        }
        HostCommand::Fence { host, yes, epoch, change } => {
            let Change { dry_run, reason } = change;
            if !yes && !dry_run {
                return Err(Failure::Usage(format!(
                    "this cuts the power of {host} and restarts its VMs elsewhere, however well they run; see what would \
                     happen with --dry-run, then add --yes"
                )));
            }
            let epoch = seen_epoch(cluster, &host, epoch).await?;
            let request = v1::FenceHostRequest { host, reason, dry_run, epoch: Some(epoch) };
            done(change!(cluster, fence_host, request)?, output)
        }
        HostCommand::ConfirmDead { host, yes, epoch, change } => {
            let Change { dry_run, reason } = change;
            if !yes && !dry_run {
                return Err(Failure::Usage(format!(
                    "this restarts the VMs of {host} elsewhere on your word alone; if {host} still runs, two copies of a VM \
                     destroy its data. Make sure that it has no power, then add --yes"
                )));
            }
            let epoch = seen_epoch(cluster, &host, epoch).await?;
            let request = v1::ConfirmDeadRequest { host, epoch: Some(epoch), reason, dry_run };
            done(change!(cluster, confirm_dead, request)?, output)
        }
        HostCommand::LiftQuarantine { host, change } => {
            let Change { dry_run, reason } = change;
            let request = v1::LiftQuarantineRequest { host, reason, dry_run };
            done(change!(cluster, lift_quarantine, request)?, output)
        }
    }
}

/// `defib pause` and `defib resume`.
pub(crate) async fn pause(
    cluster: &Cluster,
    paused: bool,
    change: &Change,
    output: Output,
) -> Result<(), Failure> {
    let request = v1::PauseRequest { paused, reason: change.reason.clone(), dry_run: change.dry_run };
    done(change!(cluster, pause, request)?, output)
}

/// One replica among all: how far its log is, and how far behind the leader's.
fn replica_row(one: &v1::ReplicaStatus, all: &[v1::ReplicaStatus]) -> Vec<String> {
    let newest = all.iter().map(|other| other.matched).max().unwrap_or(0);
    // Without a leader nobody knows how far the others are.
    let (log, behind) = if newest == 0 {
        let own = if one.commit > 0 { one.commit.to_string() } else { "?".into() };
        (own, "?".into())
    } else {
        (one.matched.to_string(), newest.saturating_sub(one.matched).to_string())
    };
    vec![
        one.id.to_string(),
        one.role.clone(),
        if one.voter { "voter" } else { "learner" }.into(),
        one.address.clone(),
        if one.reachable { "yes" } else { "no" }.into(),
        log,
        behind,
        if one.certificate_until.is_empty() { "?".into() } else { one.certificate_until.clone() },
    ]
}

pub(super) fn replica_json(one: &v1::ReplicaStatus) -> Value {
    json!({"id": one.id, "role": one.role, "voter": one.voter, "address": one.address,
        "reachable": one.reachable, "session": one.session, "matched": one.matched, "applied": one.applied,
        "commit": one.commit, "certificate_until": one.certificate_until})
}

/// `defib replica`.
pub(crate) async fn replica(
    cluster: &Cluster,
    command: ReplicaCommand,
    output: Output,
) -> Result<(), Failure> {
    use v1::ReplicaChangeKind as Kind;
    let (kind, id, new_id, address, change) = match command {
        ReplicaCommand::List => {
            let status = ask!(cluster, get_status, v1::GetStatusRequest {})?;
            match output {
                Output::Table => table(
                    &["replica", "role", "part", "address", "answers", "log", "behind", "certificate until"],
                    status.replicas.iter().map(|one| replica_row(one, &status.replicas)).collect(),
                ),
                Output::Json => {
                    json(&Value::Array(status.replicas.iter().map(replica_json).collect()));
                }
            }
            return Ok(());
        }
        ReplicaCommand::Transfer { id, change } => {
            let Change { dry_run, reason } = change;
            let request = v1::TransferLeadershipRequest { to: id, dry_run, reason };
            return done(change!(cluster, transfer_leadership, request)?, output);
        }
        ReplicaCommand::Add { id, address, change } => (Kind::Add, id, 0, address, change),
        ReplicaCommand::Remove { id, change } => (Kind::Remove, id, 0, String::new(), change),
        ReplicaCommand::Replace { id, by, address, change } => (Kind::Replace, id, by, address, change),
    };
    let Change { dry_run, reason } = change;
    let request = v1::ReplicaChangeRequest { kind: kind.into(), id, address, dry_run, reason, new_id };
    done(change!(cluster, replica_change, request)?, output)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(id: u64, matched: u64, commit: u64) -> v1::ReplicaStatus {
        v1::ReplicaStatus { id, matched, commit, role: "follower".into(), ..v1::ReplicaStatus::default() }
    }

    #[test]
    fn followers_show_how_far_they_are_if_anybody_knows() {
        let told_by_the_leader = [status(1, 40, 39), status(2, 38, 0), status(3, 0, 0)];
        let shown = |all: &[v1::ReplicaStatus]| -> Vec<[String; 2]> {
            let rows = all.iter().map(|one| replica_row(one, all));
            rows.map(|row| [row[5].clone(), row[6].clone()]).collect()
        };
        assert_eq!(shown(&told_by_the_leader), [["40", "0"], ["38", "2"], ["0", "40"]]);
        assert_eq!(shown(&[status(1, 0, 39), status(2, 0, 0)]), [["39", "?"], ["?", "?"]]);
    }
}
