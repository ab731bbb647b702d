//! What agents found beside the VMs that are protected: shown to people, and written as an inventory that would
//! protect it. Nothing is decided here: a VM is protected when an operator applies that inventory.

use std::collections::{BTreeMap, BTreeSet};

use defib_engine::ledger::Ledger;
use defib_model::{
    HostId, Inventory, Millis, Resources, VmId,
    inventory::{Definition, Priority, Readiness, Vm},
};
use defib_observe::documents::inventory_to_yaml;
use defib_wire::v1;
use metrics::{describe_gauge, gauge};

/// What agents found, by host.
pub(crate) type Found = BTreeMap<HostId, v1::HostFindings>;

/// What a person may want to know of a host, one line each.
pub(crate) fn lines(found: &v1::HostFindings) -> Vec<String> {
    let mut lines = Vec::new();
    if !found.trouble.is_empty() {
        lines.push(format!("libvirt does not answer ({}): VMs run on, none is started there", found.trouble));
    }
    if !found.watchdog_trouble.is_empty() {
        lines.push(format!(
            "its watchdog is not armed, so no lease proves its death: {}",
            found.watchdog_trouble
        ));
    }
    if !found.insecure.is_empty() {
        lines.push(found.insecure.clone());
    }
    for datastore in &found.datastores {
        let v1::FoundDatastore { name, kind, trouble, .. } = datastore;
        let state = if trouble.is_empty() {
            format!("{} of {} MiB free", datastore.available_mib, datastore.capacity_mib)
        } else {
            format!("NOT REACHED: {trouble}")
        };
        lines.push(format!("datastore {name} ({kind}): {state}"));
    }
    for domain in &found.domains {
        let v1::FoundDomain { name, vcpus, memory_mib, .. } = domain;
        let state = match (domain.marked, domain.running) {
            (true, _) => "is ours, and is defined there as well: somebody may start it a second time",
            (false, true) => "runs and is not protected",
            (false, false) if domain.autostart => "is defined there, and starts with the host",
            (false, false) => "is defined there",
        };
        lines.push(format!("domain {name} ({vcpus} vCPUs, {memory_mib} MiB) {state}"));
    }
    if found.left_out > 0 {
        lines.push(format!("{} more domains", found.left_out));
    }
    lines
}

/// What needs an operator: VMs that may run twice, and hypervisors that don't answer.
pub(crate) fn attention(ledger: &Ledger, found: &Found) -> Vec<String> {
    let declared = &ledger.inventory().vms;
    let mut lines = Vec::new();
    for (host, record) in ledger.hosts() {
        for vm in ledger.index().placer.unprotected_of(&record.note) {
            let runs = ledger.vms().get(&vm).and_then(|record| record.occupied_host());
            lines.push(match runs {
                // It is about to be taken over.
                Some(there) if there == host => continue,
                Some(there) => format!(
                    "vm {vm} runs on host {there}, and a domain of its UUID or name runs on {host} without Defib: if they share a \
                     disk, stop one of them now"
                ),
                None => format!(
                    "vm {vm}: a domain of its UUID or name runs on host {host} without Defib, so it is not started beside it; \
                     see: defib vm show {vm}"
                ),
            });
        }
    }
    // All hosts are configured alike, as a rule.
    let mut insecure = BTreeMap::<&str, Vec<&HostId>>::new();
    for (host, found) in found {
        if !found.insecure.is_empty() {
            insecure.entry(&found.insecure).or_default().push(host);
        }
        if !found.trouble.is_empty() {
            lines.push(format!("host {host}: libvirt does not answer: {}", found.trouble));
        }
        if !found.watchdog_trouble.is_empty() {
            lines.push(format!(
                "host {host}: its watchdog is not armed, so if its BMC is dark as well nothing proves its death: {}",
                found.watchdog_trouble
            ));
        }
        let lying = |domain: &&v1::FoundDomain| {
            let ours = VmId::new(&domain.name).is_ok_and(|vm| declared.contains_key(&vm));
            domain.persistent && ours && (domain.marked || !domain.running)
        };
        for v1::FoundDomain { name, autostart, .. } in found.domains.iter().filter(lying) {
            let who =
                if *autostart { "libvirt starts it when that host boots" } else { "somebody may start it" };
            lines.push(format!(
                "vm {name} is also defined in libvirt on host {host}: {who}, beside the one that runs; remove it there with: \
                 virsh undefine --keep-nvram {name}"
            ));
        }
    }
    lines.extend(insecure.iter().filter_map(|(what, hosts)| {
        let (first, others) = hosts.split_first()?;
        let hosts = match others.len() {
            0 => format!("host {first}"),
            more => format!("host {first} and {more} more"),
        };
        Some(format!("{hosts}: {what}"))
    }));
    lines
}

/// A domain as a VM of the inventory, with what its owner should know; or why it can't be one.
fn draft(host: &HostId, domain: &v1::FoundDomain) -> Result<(Vm, Vec<String>), String> {
    let id = VmId::new(&domain.name).map_err(|error| error.to_string())?;
    if domain.definition.is_empty() {
        return Err("its definition is too big to be sent; take it from: virsh dumpxml --inactive".into());
    }
    let mut notes = Vec::new();
    let memory = Resources::new(u64::from(domain.vcpus) * 1000, domain.memory_mib);
    let mut vm = Vm {
        id,
        priority: Priority::default(),
        resources: memory,
        requires: BTreeSet::new(),
        depends_on: BTreeSet::new(),
        readiness: Readiness::default(),
        readiness_timeout: None,
        datastore: Some(domain.datastore.clone()).filter(|name| !name.is_empty()),
        first_host: Some(host.clone()),
        definition: Definition { driver: domain.driver.clone(), arguments: vec![domain.definition.clone()] },
    };
    for (key, value) in &domain.policy {
        let words = || value.split([' ', ',']).filter(|word| !word.is_empty());
        let taken = match key.as_str() {
            "priority" => {
                let all = Priority::TIERS.into_iter().chain([Priority::Disabled]);
                all.into_iter().find(|one| one.to_string() == *value).map(|one| vm.priority = one)
            }
            "readiness" => [Readiness::Placed, Readiness::PoweredOn, Readiness::GuestAgent]
                .into_iter()
                .find(|one| one.to_string() == *value)
                .map(|one| vm.readiness = one),
            "readiness-timeout" => {
                let seconds = value.strip_suffix('s').and_then(|number| number.parse::<u64>().ok());
                let seconds = seconds.filter(|seconds| *seconds > 0 && *seconds <= 86_400);
                seconds.map(|seconds| vm.readiness_timeout = Some(Millis(seconds * 1000)))
            }
            "datastore" => {
                vm.datastore = Some(value.clone());
                Some(())
            }
            "requires" => {
                vm.requires = words().map(str::to_owned).collect();
                Some(())
            }
            "depends-on" => {
                words().map(VmId::new).collect::<Result<_, _>>().ok().map(|others| vm.depends_on = others)
            }
            "protect" => Some(()),
            _ => None,
        };
        if taken.is_none() {
            notes.push(format!("its metadata says {key}={value:?}, which is not understood and left out"));
        }
    }
    for file in &domain.files {
        let of_the_host = file.what == "loader" || file.sharing != v1::FileSharing::Local as i32;
        if !of_the_host {
            let v1::FoundFile { what, path, .. } = file;
            notes.push(format!(
                "its {what} ({path}) lies on a file system of host {host} alone: it can't start elsewhere before that is shared"
            ));
        }
    }
    if domain.persistent {
        notes.push(format!(
            "when it is taken over, its definition is removed from libvirt on host {host} (NVRAM and TPM stay); the inventory has it"
        ));
    }
    Ok((vm, notes))
}

/// The inventory as it would be with what was found, of one host or of all.
pub(crate) fn discovered(
    inventory: &Inventory,
    found: &Found,
    message: &v1::DiscoverRequest,
) -> (String, Vec<String>) {
    let mut with = inventory.clone();
    let mut notes = Vec::new();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let wanted = |domain: &&v1::FoundDomain| {
        !domain.marked
            && (domain.running || message.stopped)
            && domain.policy.get("protect").is_none_or(|word| word != "no")
            && VmId::new(&domain.name).map_or(true, |vm| !inventory.vms.contains_key(&vm))
    };
    for domain in found.values().flat_map(|found| found.domains.iter().filter(wanted)) {
        *counts.entry(domain.name.as_str()).or_default() += 1;
    }
    for (host, found) in
        found.iter().filter(|(host, _)| message.host.is_empty() || message.host == host.as_str())
    {
        for domain in found.domains.iter().filter(wanted) {
            let name = &domain.name;
            let drafted = if counts.get(name.as_str()).is_some_and(|count| *count > 1) {
                Err("several hosts have a domain of this name: which one is meant must be decided by hand"
                    .into())
            } else {
                draft(host, domain)
            };
            match drafted {
                Ok((vm, said)) => {
                    notes.extend(said.into_iter().map(|note| format!("vm {name}: {note}")));
                    with.vms.insert(vm.id.clone(), vm);
                }
                Err(why) => notes.push(format!("domain {name} on host {host} is left out: {why}")),
            }
        }
        if found.left_out > 0 {
            notes.push(format!("host {host} has {} more domains than are told", found.left_out));
        }
    }
    if let Err(error) = with.validate() {
        notes.push(format!("as it stands it would be refused: {error}"));
    }
    (inventory_to_yaml(&with), notes)
}

/// Names and explains the metrics.
pub(crate) fn describe() {
    for (name, text) in [
        ("defib_domains_unprotected", "Domains that run on hosts and are not protected"),
        ("defib_datastores_unreached", "Datastores that hosts don't reach, each counted once per host"),
        ("defib_hypervisors_silent", "Hosts with a session here whose libvirt does not answer"),
    ] {
        describe_gauge!(name, text);
        let _ = gauge!(name);
    }
}

/// Gauges that follow from the ledger.
pub(crate) fn gather(ledger: &Ledger) {
    let notes = || ledger.hosts().values().map(|record| &record.note);
    gauge!("defib_domains_unprotected").set(notes().map(|note| note.unprotected.len()).sum::<usize>() as f64);
    gauge!("defib_datastores_unreached")
        .set(notes().map(|note| note.unreachable.len()).sum::<usize>() as f64);
}

/// The gauge that follows from what agents say.
pub(crate) fn count(found: &Found) {
    let silent = found.values().filter(|found| !found.trouble.is_empty()).count();
    gauge!("defib_hypervisors_silent").set(silent as f64);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(name: &str) -> v1::FoundDomain {
        v1::FoundDomain {
            name: name.into(),
            driver: "libvirt".into(),
            running: true,
            memory_mib: 2048,
            vcpus: 2,
            definition: format!("<domain><name>{name}</name></domain>"),
            ..v1::FoundDomain::default()
        }
    }

    fn found(host: &str, domains: Vec<v1::FoundDomain>) -> (HostId, v1::HostFindings) {
        (HostId::new(host).unwrap(), v1::HostFindings { domains, ..v1::HostFindings::default() })
    }

    #[test]
    fn what_runs_is_written_with_its_owners_wishes_and_what_stands_against_it_is_said() {
        let mut wished = domain("web-1");
        let wishes =
            [("priority", "high"), ("requires", "ssd avx"), ("readiness", "guest-agent"), ("colour", "red")];
        wished.policy = wishes.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let local = v1::FileSharing::Local as i32;
        let file =
            |what: &str| v1::FoundFile { what: what.into(), path: format!("/x/{what}"), sharing: local };
        wished.files = vec![file("loader"), file("nvram")];
        let mut off = domain("resting");
        off.running = false;
        let mut unwanted = domain("unwanted");
        unwanted.policy.insert("protect".into(), "no".into());
        let all: Found = [
            found("h1", vec![wished, domain("twin"), unwanted, domain("no name")]),
            found("h2", vec![off, domain("twin")]),
        ]
        .into();
        let (yaml, notes) = discovered(&Inventory::default(), &all, &v1::DiscoverRequest::default());
        let notes = notes.join("\n");
        for wanted in
            ["id: web-1", "priority: high", "- ssd", "first-host: h1", "readiness: guest-agent", "2GiB"]
        {
            assert!(yaml.contains(wanted), "{wanted}: {yaml}");
        }
        for missing in ["twin", "unwanted", "id: resting"] {
            assert!(!yaml.contains(missing), "{missing}: {yaml}");
        }
        for told in [
            "vm web-1: its metadata says colour=\"red\"",
            "vm web-1: its nvram (/x/nvram) lies on a file system of host h1 alone",
            "domain twin on host h2 is left out: several hosts",
            "domain no name on host h1 is left out",
            "as it stands it would be refused",
        ] {
            assert!(notes.contains(told), "{told}: {notes}");
        }
        assert!(!notes.contains("loader"), "{notes}");
        let stopped = v1::DiscoverRequest { host: "h2".into(), stopped: true };
        let (yaml, _) = discovered(&Inventory::default(), &all, &stopped);
        assert!(yaml.contains("id: resting") && !yaml.contains("web-1"), "{yaml}");
    }
    #[test]
    fn what_agents_reach_without_tls_needs_an_operator_who_is_told_once_of_all_that_are_alike() {
        let reaching = |host: &str, what: &str| {
            let (host, found) = found(host, Vec::new());
            (host, v1::HostFindings { insecure: what.into(), ..found })
        };
        let (one, other) = ("insecure: bus: k1:1 is reached", "insecure: bus: k2:1 is reached");
        let all: Found =
            [reaching("h1", one), reaching("h2", ""), reaching("h3", one), reaching("h4", other)].into();
        let told = attention(&Ledger::new([defib_model::ReplicaId(1)].into()), &all);
        assert_eq!(told, [format!("host h1 and 1 more: {one}"), format!("host h4: {other}")]);
        assert_eq!(lines(&all[&HostId::new("h4").unwrap()]), [other]);
    }
}
