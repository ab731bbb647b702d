//! Words for what is seen: status, VMs, what is waited for, plans.

use defib_engine::ledger::Standing;
use defib_model::{EventKind, EventSeq, VmId};

use super::commands::{Answer, Scenario};

impl Scenario {
    pub(crate) fn show(&mut self, command: &str, rest: &[&str]) -> Answer {
        let mut lines = Vec::new();
        match command {
            "status" => {
                let ledger = self.world.newest().ledger();
                if ledger.paused() {
                    lines.push("paused".to_string());
                }
                for (host, record) in ledger.hosts() {
                    let standing = match record.standing {
                        Standing::NeverSeen => "never seen",
                        Standing::Active => "in use",
                        Standing::Condemned => "condemned",
                        Standing::Dead => "dead",
                    };
                    let quarantined = if record.quarantined { ", quarantined" } else { "" };
                    lines.push(format!("host {host}: {standing}, epoch {}{quarantined}", record.epoch));
                }
                for (id, recovery) in ledger.open_recoveries() {
                    lines.push(format!("recovery {id} of host {}: {}", recovery.host, recovery.phase));
                }
            }
            "vms" => {
                for (vm, record) in self.world.newest().ledger().vms() {
                    let truth: Vec<&str> = self
                        .world
                        .machines
                        .values()
                        .filter(|machine| machine.vms.get(vm).is_some_and(|instance| instance.running))
                        .map(|machine| machine.id.as_str())
                        .collect();
                    let truth = if truth.is_empty() {
                        "runs nowhere".into()
                    } else {
                        format!("runs on {}", truth.join(" and "))
                    };
                    let held = record
                        .occupied_host()
                        .map_or_else(|| "recorded nowhere".into(), |host| format!("recorded on {host}"));
                    lines.push(format!("vm {vm}: incarnation {}, {held}, {truth}", record.incarnation));
                }
            }
            // `story vm cp-1`, `story host h1`: from what began it to the newest event of the VM, or to the suspicion.
            "story" => lines.extend(self.story(rest)?),
            "explain" => {
                let host = self.host_id(rest.first())?;
                let now = self.world.now;
                let controller = match self.world.leader {
                    Some(leader) => &self.world.replicas[leader],
                    None => return Err("there is no leader".into()),
                };
                let recovery =
                    controller.controller.ledger().hosts().get(&host).and_then(|record| record.recovery);
                let Some(recovery) = recovery else { return Err("it has no recovery".into()) };
                let waits = controller.controller.explain(controller.clock(now), recovery);
                if waits.is_empty() {
                    lines.push("waits for nothing".into());
                }
                lines.extend(waits.into_iter().map(|line| format!("waits for {line}")));
            }
            "why" => {
                let vm =
                    VmId::new(rest.first().ok_or("name a VM")?).map_err(|error| error.reason.to_string())?;
                let leader = self.world.leader.ok_or("there is no leader")?;
                let leader = &self.world.replicas[leader];
                let waits = leader.controller.explain_vm(leader.clock(self.world.now), &vm);
                if waits.is_empty() {
                    lines.push("waits for nothing".into());
                }
                lines.extend(waits.into_iter().map(|line| format!("waits for {line}")));
            }
            "plan" => {
                let lost = self.hosts(rest.get(1))?.into_iter().collect();
                let plan = self.world.newest().ledger().index().placer.what_if_hosts(&lost);
                for planned in plan.placements {
                    let broken: Vec<String> = planned.broken.iter().map(ToString::to_string).collect();
                    let broken = if broken.is_empty() {
                        String::new()
                    } else {
                        format!(", breaking {}", broken.join("; "))
                    };
                    lines.push(format!("vm {} would restart on {}{broken}", planned.vm, planned.host));
                }
                for left in plan.unplaced {
                    let why: Vec<String> = left.exclusions.iter().map(ToString::to_string).collect();
                    lines.push(format!("vm {} would have no place: {}", left.vm, why.join("; ")));
                }
            }
            "count" => {
                let running = self
                    .world
                    .machines
                    .values()
                    .flat_map(|machine| machine.vms.values())
                    .filter(|instance| instance.running)
                    .count();
                lines.push(format!("{running} VMs run"));
            }
            _ => {
                let checked = defib_engine::ledger::invariants::check(self.world.newest().ledger());
                lines.push(
                    checked.map_or_else(|detail| format!("VIOLATION {detail}"), |()| "all hold".into()),
                );
            }
        }
        self.world.lines.extend(lines);
        Ok(())
    }

    fn story(&self, rest: &[&str]) -> Result<Vec<String>, String> {
        let events = self.world.newest().ledger().events();
        let last = match rest {
            ["vm", vm] => events.since(EventSeq(1)).filter(|event| {
                event.kind.protected_vm().is_some_and(|about| about.as_str() == *vm)
            }).last(),
            ["host", host] => events.since(EventSeq(1)).filter(|event| {
                matches!(&event.kind, EventKind::HostSuspected { host: about } if about.as_str() == *host)
            }).last(),
            _ => return Err("of which VM or host?".into()),
        };
        let mut way = Vec::new();
        let mut at = last;
        while let Some(event) = at {
            way.push(format!("  because: {}", event.kind));
            at = event.cause.and_then(|seq| events.since(seq).next());
        }
        Ok(way)
    }
}
