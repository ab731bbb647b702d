//! What only looks.

use clap::Subcommand;
use defib_wire::v1;
use serde_json::{Value, json};

use super::changes::replica_json;
use crate::{
    cluster::{Cluster, Failure, ask},
    output::{Output, json, line, table},
};

/// VMs.
#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// All VMs.
    List {
        /// Only those of this host.
        #[arg(long, default_value = "")]
        host: String,
        /// Instead, the domains that agents found and that are not protected.
        #[arg(long)]
        unprotected: bool,
    },
    /// One VM, and why it does not run.
    Show {
        /// Which.
        vm: String,
    },
}

/// Recoveries.
#[derive(Debug, Subcommand)]
pub(crate) enum RecoveryCommand {
    /// Recoveries, newest first.
    List {
        /// Also those that are over.
        #[arg(long)]
        all: bool,
    },
    /// What happened, and why something is not being done.
    Explain {
        /// Its number, or the host.
        which: String,
    },
}

/// What-if.
#[derive(Debug, Subcommand)]
pub(crate) enum PlanCommand {
    /// What would happen if these hosts failed now.
    FailHost {
        /// Which.
        hosts: Vec<String>,
        /// Also all hosts of a fault domain, as a path such as zone-a/rack-3.
        #[arg(long)]
        domain: Vec<String>,
        /// Also tell of each VM which hosts may not take it, and why.
        #[arg(long)]
        verbose: bool,
    },
}

/// `defib status`.
pub(crate) async fn status(cluster: &Cluster, output: Output) -> Result<(), Failure> {
    let status = ask!(cluster, get_status, v1::GetStatusRequest {})?;
    let hosts = status.hosts.unwrap_or_default();
    let vms = status.vms.unwrap_or_default();
    if output == Output::Json {
        json(&json!({
            "cluster": status.cluster, "leader": status.leader, "term": status.term, "paused": status.paused,
            "paused_by": status.paused_by,
            "disarmed": status.disarmed_reason, "attention": status.attention,
            "hosts": {"total": hosts.total, "in_use": hosts.in_use, "suspected": hosts.suspected,
                "fenced": hosts.fenced, "unconfirmed": hosts.unconfirmed, "never_seen": hosts.never_seen,
                "quarantined": hosts.quarantined, "other": hosts.other, "electorate": hosts.electorate},
            "vms": {"total": vms.total, "running": vms.running, "starting": vms.starting, "down": vms.down,
                "unprotected": vms.unprotected, "disabled": vms.disabled},
            "brakes": status.brakes.iter().map(|brake| json!({"host": brake.host, "detail": brake.detail}))
                .collect::<Vec<_>>(),
            "event_seq": status.event_seq, "event_hash": status.event_hash,
            "policy_version": status.policy_version, "inventory_version": status.inventory_version,
            "cluster_version": status.cluster_version, "etcd": status.etcd,
            "replicas": status.replicas.iter().map(replica_json).collect::<Vec<_>>(),
            "recoveries": status.recoveries.iter().map(recovery_json).collect::<Vec<_>>(),
        }));
        return Ok(());
    }
    let leader =
        if status.leader == 0 { "nobody leads".into() } else { format!("replica {} leads", status.leader) };
    line(&format!("cluster {}: {leader}, term {}", status.cluster, status.term));
    line(&format!(
        "hosts: {} in use of {}; suspected {}, fenced {}, unconfirmed {}, never seen {}; {} vouch for VMs in an outage",
        hosts.in_use,
        hosts.total,
        hosts.suspected,
        hosts.fenced,
        hosts.unconfirmed,
        hosts.never_seen,
        hosts.electorate
    ));
    line(&format!(
        "VMs: {} run of {}; starting {}, down {}, would not all restart if their host failed now: {}",
        vms.running, vms.total, vms.starting, vms.down, vms.unprotected
    ));
    line(&format!(
        "events: {}, the newest with hash {}; cluster version {}",
        status.event_seq, status.event_hash, status.cluster_version
    ));
    if !status.etcd.is_empty() {
        line(&format!("etcd: {}", status.etcd));
    }
    if status.paused {
        let by =
            if status.paused_by.is_empty() { String::new() } else { format!(" by {}", status.paused_by) };
        line(&format!("PAUSED{by}: no automatic action; go on with: defib resume"));
    }
    if !status.disarmed_reason.is_empty() {
        line(&format!("DISARMED: {}", status.disarmed_reason));
    }
    for brake in &status.brakes {
        line(&format!("brake {}: {}", brake.host, brake.detail));
    }
    for attention in &status.attention {
        line(&format!("! {attention}"));
    }
    if !status.recoveries.is_empty() {
        recovery_table(&status.recoveries);
    }
    Ok(())
}

fn vm_row(vm: &v1::VmSummary) -> Vec<String> {
    let host = if vm.host.is_empty() { "-".into() } else { vm.host.clone() };
    vec![
        vm.id.clone(),
        vm.priority.clone(),
        vm.state.clone(),
        host,
        vm.incarnation.to_string(),
        vm.readiness.clone(),
        vm.condition.clone(),
    ]
}

const VM_HEAD: [&str; 7] = ["vm", "priority", "state", "host", "incarnation", "readiness", "condition"];

pub(super) fn vm_table(vms: &[v1::VmSummary]) {
    table(&VM_HEAD, vms.iter().map(vm_row).collect());
}

pub(super) fn vm_json(vm: &v1::VmSummary) -> Value {
    json!({"id": vm.id, "priority": vm.priority, "state": vm.state, "host": vm.host,
        "incarnation": vm.incarnation, "readiness": vm.readiness, "condition": vm.condition})
}

/// `defib vm`.
pub(crate) async fn vm(cluster: &Cluster, command: VmCommand, output: Output) -> Result<(), Failure> {
    match command {
        VmCommand::List { host, unprotected: true } => {
            return super::found::list(cluster, host, output).await;
        }
        VmCommand::List { host, unprotected: false } => {
            let answer =
                ask!(cluster, list_vms, v1::ListVmsRequest { host: host.clone(), state: String::new() })?;
            match output {
                Output::Json => json(&Value::Array(answer.vms.iter().map(vm_json).collect())),
                Output::Table => vm_table(&answer.vms),
            }
        }
        VmCommand::Show { vm } => {
            let answer = ask!(cluster, get_vm, v1::GetVmRequest { vm: vm.clone() })?;
            let summary = answer.summary.clone().unwrap_or_default();
            if output == Output::Json {
                json(
                    &json!({"vm": vm_json(&summary), "why_not": answer.why_not, "attempts": answer.attempts,
                    "recovery": answer.recovery, "requires": answer.requires, "depends_on": answer.depends_on,
                    "groups": answer.groups, "would_go_to": answer.would_go_to,
                    "would_not_go_because": answer.would_not_go_because,
                    "condition_detail": answer.condition_detail, "reboots": answer.reboots}),
                );
                return Ok(());
            }
            let runs = !summary.condition.is_empty();
            vm_table(&[summary]);
            if !answer.condition_detail.is_empty() {
                let what = if runs { "its hypervisor says" } else { "how it ended" };
                line(&format!("{what}: {}", answer.condition_detail));
            }
            if answer.reboots > 0 {
                line(&format!("its guest rebooted {} times in this incarnation", answer.reboots));
            }
            for why in &answer.why_not {
                line(&format!("why not: {why}"));
            }
            if !answer.would_go_to.is_empty() {
                line(&format!("if its host failed now it would go to {}", answer.would_go_to));
            }
            for why in &answer.would_not_go_because {
                line(&format!("if its host failed now it would have no place: {why}"));
            }
        }
    }
    Ok(())
}

fn recovery_json(one: &v1::RecoverySummary) -> Value {
    json!({"id": one.id, "host": one.host, "phase": one.phase, "epoch": one.epoch,
        "opened_wall_ms": one.opened_wall_ms, "vms_total": one.vms_total, "vms_running": one.vms_running,
        "vms_unplaced": one.vms_unplaced, "proof": one.proof})
}

fn recovery_vm_json(one: &v1::RecoveryVm) -> Value {
    let mut vm = vm_json(&one.vm.clone().unwrap_or_default());
    vm["reasons"] = json!(one.reasons);
    vm
}

fn recovery_table(recoveries: &[v1::RecoverySummary]) {
    let rows = recoveries.iter().map(|one| {
        let vms = format!("{} of {}", one.vms_running, one.vms_total);
        vec![one.id.to_string(), one.host.clone(), one.phase.clone(), vms, one.proof.clone()]
    });
    table(&["recovery", "host", "phase", "VMs running", "proof"], rows.collect());
}

/// `defib recovery`.
pub(crate) async fn recovery(
    cluster: &Cluster,
    command: RecoveryCommand,
    output: Output,
) -> Result<(), Failure> {
    match command {
        RecoveryCommand::List { all } => {
            let answer = ask!(cluster, list_recoveries, v1::ListRecoveriesRequest { all, limit: 0 })?;
            match output {
                Output::Json => json(&Value::Array(answer.recoveries.iter().map(recovery_json).collect())),
                Output::Table => recovery_table(&answer.recoveries),
            }
        }
        RecoveryCommand::Explain { which } => {
            use v1::explain_recovery_request::Which;
            let which = match which.parse() {
                Ok(id) => Which::Id(id),
                Err(_) => Which::Host(which),
            };
            let request = v1::ExplainRecoveryRequest { which: Some(which) };
            let answer = ask!(cluster, explain_recovery, request)?;
            let summary = answer.summary.clone().unwrap_or_default();
            if output == Output::Json {
                let timeline = answer.timeline.iter().map(|step| {
                    json!({"since_start_ms": step.since_start_ms, "event_seq": step.event_seq,
                        "kind": step.kind, "text": step.text})
                });
                json(&json!({"recovery": recovery_json(&summary), "timeline": timeline.collect::<Vec<_>>(),
                    "waiting_on": answer.waiting_on, "vms": answer.vms.iter().map(recovery_vm_json).collect::<Vec<_>>()}));
                return Ok(());
            }
            recovery_table(&[summary]);
            for step in &answer.timeline {
                line(&format!("{:>+8} ms  {}", step.since_start_ms, step.text));
            }
            for waits in &answer.waiting_on {
                line(&format!("waits for: {waits}"));
            }
            for vm in &answer.vms {
                let id = vm.vm.as_ref().map(|vm| vm.id.clone()).unwrap_or_default();
                for reason in &vm.reasons {
                    line(&format!("vm {id}: {reason}"));
                }
            }
        }
    }
    Ok(())
}

fn excluded_json(excluded: &[v1::ExcludedHosts]) -> Value {
    let each = excluded
        .iter()
        .map(|one| json!({"kind": one.kind, "constraint": one.constraint, "hosts": one.hosts}));
    each.collect()
}

/// `defib plan`.
pub(crate) async fn plan(cluster: &Cluster, command: PlanCommand, output: Output) -> Result<(), Failure> {
    let PlanCommand::FailHost { hosts, domain, verbose } = command;
    if hosts.is_empty() && domain.is_empty() {
        return Err(Failure::Usage("name a host, or a fault domain with --domain".into()));
    }
    let request = v1::PlanFailHostRequest { hosts, domains: domain, verbose };
    let plan = ask!(cluster, plan_fail_host, request)?;
    if output == Output::Json {
        let placements = plan.placements.iter().map(|one| {
            let mut placement = json!({"vm": one.vm, "priority": one.priority, "from": one.from, "to": one.to,
                "because": one.because, "broken": one.broken});
            if verbose {
                placement["excluded"] = excluded_json(&one.excluded);
            }
            placement
        });
        let unplaced = plan.unplaced.iter().map(|one| {
            let mut left = json!({"vm": one.vm, "priority": one.priority, "reasons": one.reasons});
            if verbose {
                left["excluded"] = excluded_json(&one.excluded);
            }
            left
        });
        json(&json!({"hosts": plan.hosts, "placements": placements.collect::<Vec<_>>(),
            "unplaced": unplaced.collect::<Vec<_>>(), "took_us": plan.took_us}));
        return Ok(());
    }
    let rows = plan.placements.iter().map(|one| {
        let (vm, priority, from, to) = (&one.vm, &one.priority, &one.from, &one.to);
        vec![
            vm.clone(),
            priority.clone(),
            from.clone(),
            to.clone(),
            one.because.clone(),
            one.broken.join("; "),
        ]
    });
    table(&["vm", "priority", "from", "to", "because", "soft rules broken"], rows.collect());
    for one in &plan.unplaced {
        line(&format!("NO PLACE for {} ({}): {}", one.vm, one.priority, one.reasons.join("; ")));
    }
    let of_placed = plan.placements.iter().map(|one| (&one.vm, &one.excluded));
    for (vm, excluded) in of_placed.chain(plan.unplaced.iter().map(|one| (&one.vm, &one.excluded))) {
        for one in excluded {
            line(&format!("{vm} not on {}: {}", one.hosts.join(", "), one.constraint));
        }
    }
    line(&format!("{} VMs would have a place, {} would not", plan.placements.len(), plan.unplaced.len()));
    Ok(())
}
