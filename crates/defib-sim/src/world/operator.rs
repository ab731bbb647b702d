//! What operators do, at the worst moment. They talk to the leader, and try again when nobody answers.

use defib_model::{Command, Epoch, Millis, Policy, command::Operator, policy::LeasePolicy};

use super::{Act, World, core::Message};
use crate::{clock::MS, fault::Fault, rng::Rng};

/// How often an operator tries.
const TRIES: u32 = 20;
/// How long between two tries.
const AGAIN: u64 = 500 * MS;
/// Numbers of operators' commands that are no episodes.
pub(crate) const SET_POLICY: usize = 1 << 32;
pub(crate) const SET_INVENTORY: usize = SET_POLICY + 1;
pub(crate) const RESUME: usize = SET_POLICY + 2;

fn ada() -> Operator {
    Operator { name: "ada".into(), reason: "the simulation".into() }
}

impl World {
    /// An operator's command, by the number of its episode.
    pub(crate) fn operator_acts(&mut self, number: usize, tries: u32) {
        if number < SET_POLICY && (tries >= TRIES || self.healing) {
            return;
        }
        let Some(leader) = self.awake_leader() else {
            return self.later(AGAIN, Act::Operator { number, tries: tries + 1 });
        };
        let Some(command) = self.operator_command(leader, number) else { return };
        self.tell_core(leader, Message::Propose(command, number));
    }

    pub(crate) fn operator_unheard(&mut self, number: usize) {
        self.later(AGAIN, Act::Operator { number, tries: 1 });
    }

    /// It is acknowledged: it must be in the log for ever.
    pub(crate) fn operator_heard(&mut self, _number: usize, index: u64) {
        self.counts.operator_commands += 1;
        self.checks.acknowledged(index);
    }

    fn operator_command(&mut self, leader: usize, number: usize) -> Option<Command> {
        let ledger = self.replicas[leader].ledger()?;
        match number {
            SET_POLICY => {
                let (policy, replaces) = (self.plan.policy.clone(), ledger.policy_version());
                return (*ledger.policy() != policy).then(|| Command::SetPolicy {
                    policy,
                    replaces,
                    operator: ada(),
                });
            }
            SET_INVENTORY => {
                let (inventory, replaces) = (self.plan.inventory.clone(), ledger.inventory_version());
                return (*ledger.inventory() != inventory).then(|| Command::SetInventory {
                    inventory,
                    replaces,
                    operator: ada(),
                });
            }
            RESUME => return Some(Command::Pause { paused: false, operator: ada() }),
            _ => {}
        }
        let epoch_of = |host: usize| {
            let id = self.machines[host].id.clone();
            let epoch = ledger.hosts().get(&id).map_or(Epoch(0), |record| record.epoch);
            (id, epoch)
        };
        let episode = self.plan.episodes.get(number)?;
        Some(match &episode.fault {
            Fault::OperatorFence { host } => {
                let (host, epoch) = epoch_of(*host);
                Command::FenceHost { host, epoch, operator: ada() }
            }
            Fault::OperatorConfirm { host } => {
                // Who vouches for a host that runs breaks any system: this operator went there and looked.
                if self.machines[*host].powered {
                    return None;
                }
                let (host, epoch) = epoch_of(*host);
                Command::ConfirmDead { host, epoch, operator: ada() }
            }
            Fault::OperatorPause => Command::Pause { paused: true, operator: ada() },
            Fault::OperatorPolicy { how } => {
                let policy = changed_policy(ledger.policy(), *how);
                // An old version now and then: it must be refused.
                let replaces =
                    ledger.policy_version() - u64::from(how % 7 == 0 && ledger.policy_version() > 0);
                Command::SetPolicy { policy, replaces, operator: ada() }
            }
            Fault::OperatorInventory { how } => {
                let mut inventory = ledger.inventory().clone();
                let mut rng = Rng::new(*how, "inventory");
                let hosts = inventory.hosts.len();
                match rng.below(3) {
                    0 => {
                        if let Some(host) = inventory.hosts.values_mut().nth(rng.index(hosts)) {
                            host.capacity.cpu_millis = 500 * rng.between(8, 20);
                        }
                    }
                    1 => {
                        if let Some(host) = inventory.hosts.values_mut().nth(rng.index(hosts)) {
                            host.spare = !host.spare;
                        }
                    }
                    _ => {
                        let vms = inventory.vms.len();
                        if let Some(vm) = inventory.vms.values_mut().nth(rng.index(vms)) {
                            vm.priority = defib_model::inventory::Priority::TIERS[rng.index(5)];
                        }
                    }
                }
                let replaces = ledger.inventory_version();
                Command::SetInventory { inventory, replaces, operator: ada() }
            }
            _ => return None,
        })
    }
}

/// Another policy, still within what is allowed.
fn changed_policy(policy: &Policy, how: u64) -> Policy {
    let mut rng = Rng::new(how, "policy");
    let mut changed = policy.clone();
    match rng.below(6) {
        0 => changed.detection.act_after = Millis(policy.detection.act_after_max.0),
        1 => changed.lease.lease = Millis(rng.between(policy.detection.heartbeat_interval.0 * 10, 6000)),
        2 => {
            changed.lease.watchdog = Millis(1000 * rng.between(1, 5)).max(LeasePolicy::WATCHDOG_MIN);
            changed.lease.answer_freshness =
                Millis(changed.lease.answer_freshness.0.min(changed.lease.watchdog.0));
        }
        3 => changed.lease.answer_freshness = Millis(rng.between(200, policy.lease.watchdog.0)),
        4 => changed.brakes.hosts = rng.between(1, 4) as u32,
        _ => {
            changed.detection.heartbeat_interval =
                Millis(rng.between(20, policy.detection.heartbeat_interval.0))
        }
    }
    if changed.validate().is_ok() { changed } else { policy.clone() }
}
