//! Words for what an operator commands.

use std::collections::BTreeSet;

use defib_model::{Command, Epoch, HostId, ReplicaId};

use super::commands::{Answer, Scenario, number, operator, option};

impl Scenario {
    pub(crate) fn operator(&mut self, rest: &[&str]) -> Answer {
        let epoch_of = |host: &HostId| {
            let held = self.world.newest().ledger().hosts().get(host).map_or(Epoch(0), |record| record.epoch);
            option(rest, "epoch").map_or(Ok(held), |epoch| number(epoch).map(Epoch))
        };
        let reason = option(rest, "reason").unwrap_or_default();
        let command = match rest {
            ["confirm-dead", host, ..] => {
                let host = self.host_id(Some(host))?;
                Command::ConfirmDead { epoch: epoch_of(&host)?, host, operator: operator(reason) }
            }
            ["fence", host, ..] => {
                let host = self.host_id(Some(host))?;
                Command::FenceHost { epoch: epoch_of(&host)?, host, operator: operator(reason) }
            }
            ["lift-quarantine", host, ..] => {
                let host = self.host_id(Some(host))?;
                Command::LiftQuarantine { host, operator: operator(reason) }
            }
            ["pause", ..] => Command::Pause { paused: true, operator: operator(reason) },
            ["resume", ..] => Command::Pause { paused: false, operator: operator(reason) },
            ["token", nonce, identity, ..] => {
                Command::JoinTokenUsed { nonce: (*nonce).into(), identity: (*identity).into() }
            }
            ["voters", voters, ..] => {
                let mut all = BTreeSet::new();
                for voter in voters.split(',') {
                    all.insert(ReplicaId(Self::replica(Some(&voter))? as u64 + 1));
                }
                Command::ReplicasChanged { voters: all }
            }
            ["policy", ..] => {
                let held = self.world.newest().ledger().policy_version();
                let replaces = option(rest, "replaces").map_or(Ok(held), number)?;
                Command::SetPolicy { policy: self.world.policy.clone(), replaces, operator: operator(reason) }
            }
            ["inventory", change @ ..] => {
                let replaces = self.world.newest().ledger().inventory_version();
                let mut inventory = self.world.inventory.clone();
                for one in change {
                    match one.split_once('=') {
                        Some(("without-host", host)) => inventory.hosts.retain(|id, _| id.as_str() != host),
                        Some(("without-vm", vm)) => {
                            inventory.vms.retain(|id, _| id.as_str() != vm);
                            for group in inventory.groups.values_mut() {
                                group.members.retain(|id| id.as_str() != vm);
                            }
                        }
                        _ => {}
                    }
                }
                Command::SetInventory { inventory, replaces, operator: operator(reason) }
            }
            _ => return Err("an operator can't".into()),
        };
        let judged = self.world.newest().ledger().judge(&command);
        match (&judged, rest.contains(&"unjudged")) {
            (Ok(text), _)
                if !matches!(command, Command::ReplicasChanged { .. } | Command::JoinTokenUsed { .. }) =>
            {
                self.world.lines.push(format!("to the operator: {text}"));
            }
            (Ok(_), _) | (Err(_), true) => {}
            (Err(why), false) => {
                self.world.lines.push(format!("to the operator: refused: {why}"));
                return Ok(());
            }
        }
        if let Command::SetInventory { inventory, .. } = &command {
            self.world.inventory = inventory.clone();
        }
        self.world.propose(command);
        // Until it is in the log.
        self.world.run(1, |_| false);
        Ok(())
    }
}
