//! What operators command. Each command also has a dry run: [`Ledger::judge`] says what it would do.

use alloc::{
    collections::BTreeSet,
    format,
    string::{String, ToString},
    vec::Vec,
};

use defib_model::{
    Command, Epoch, EventKind, HostId, Inventory, Opinion, Policy, VmId,
    command::{DocumentKind, Operator, ReplicaOrder},
    event::{Phase, ProofKind},
};

use super::{
    Index, Ledger,
    records::{HostRecord, Place, Standing, VmRecord},
};

/// What the event says of an operator who stops automatic action.
pub const PAUSES: &str = "stops automatic action";

impl Ledger {
    /// What an operator's command would do now, in words.
    ///
    /// # Errors
    /// Why it would be refused, and what to do instead.
    pub fn judge(&self, command: &Command) -> Result<String, String> {
        match command {
            Command::ConfirmDead { host, epoch, .. } => {
                let record = self.judge_epoch(host, *epoch)?;
                if record.standing == Standing::Dead {
                    return Err(format!("host {host} is proven dead already"));
                }
                let asks = record.opinions_at_least(Opinion::Asks, &self.voters);
                if asks < self.quorum() {
                    return Err(format!(
                        "host {host} is heard: only {asks} of {} observers miss it; to take it out of service use: defib host fence {host}",
                        self.voters.len()
                    ));
                }
                let vms = self.index.on_host.get(host).map_or(0, BTreeSet::len);
                Ok(format!("host {host} is taken as dead on your word; {vms} VMs restart elsewhere"))
            }
            Command::FenceHost { host, epoch, .. } => {
                let record = self.judge_epoch(host, *epoch)?;
                let recovery = record.recovery.and_then(|id| self.recoveries.get(&id));
                let waits = record.recovery.and_then(|id| self.kdump_waits(id, self.at)).is_some();
                let again = waits || recovery.is_some_and(|recovery| recovery.phase == Phase::Unconfirmed);
                if record.standing != Standing::Active && !again {
                    return Err(format!("host {host} is being fenced, or is fenced, already"));
                }
                if !self.may_act() {
                    return Err("automatic action is stopped; resume it first".into());
                }
                let levels = self.inventory.hosts.get(host).map_or(0, |host| host.fencing.len());
                if levels == 0 {
                    return Err(format!("host {host} has no fencing method"));
                }
                if again {
                    return Ok(format!(
                        "the next attempt to power host {host} off begins now, and it is let in again only after that"
                    ));
                }
                let vms = self.index.on_host.get(host).map_or(0, BTreeSet::len);
                Ok(format!("host {host} is powered off; {vms} VMs restart elsewhere when that is proven"))
            }
            Command::SetPolicy { policy, replaces, .. } => {
                self.judge_version(DocumentKind::Policy, *replaces)?;
                self.judge_policy(policy)
            }
            Command::SetInventory { inventory, replaces, .. } => {
                self.judge_version(DocumentKind::Inventory, *replaces)?;
                self.judge_inventory(inventory)
            }
            Command::DocumentRead { document, replaces, at, .. } => {
                self.judge_document(document, *replaces, at)
            }
            Command::LiftQuarantine { host, .. } => {
                let record = self
                    .hosts
                    .get(host)
                    .ok_or_else(|| format!("there is no host {host} in the inventory"))?;
                if !record.quarantined {
                    return Err(format!("host {host} is not quarantined"));
                }
                Ok(format!("host {host} is trusted again; it comes into use when its agent reports"))
            }
            Command::GiveUp { sink, upto, .. } => self.judge_give_up(sink, *upto),
            Command::Pause { paused: true, .. } => Ok("no new verdict, fence or placement begins".into()),
            Command::Pause { paused: false, .. } => Ok("automatic action goes on".into()),
            Command::JoinTokenUsed { nonce, .. } if self.used_tokens.contains(nonce) => {
                Err("this join token was used before; make a new one".into())
            }
            other => Ok(format!("{other:?}")),
        }
    }

    fn judge_epoch(&self, host: &HostId, epoch: Epoch) -> Result<&HostRecord, String> {
        let record =
            self.hosts.get(host).ok_or_else(|| format!("there is no host {host} in the inventory"))?;
        if record.standing == Standing::NeverSeen {
            return Err(format!("host {host} was never seen, so nothing of ours runs there"));
        }
        if record.epoch != epoch {
            return Err(format!("host {host} is in epoch {} now, not {epoch}; look again", record.epoch));
        }
        Ok(record)
    }

    pub(super) fn judge_version(&self, kind: DocumentKind, replaces: u64) -> Result<(), String> {
        let version = self.version_of(kind);
        if replaces == version {
            return Ok(());
        }
        Err(format!("{kind} version {version} is in force, not {replaces}; read it again"))
    }

    pub(super) fn judge_policy(&self, policy: &Policy) -> Result<String, String> {
        policy.validate().map_err(|(field, message)| format!("{field}: {message}"))?;
        Ok(format!("policy version {} comes into force", self.policy_version.saturating_add(1)))
    }

    pub(super) fn judge_inventory(&self, inventory: &Inventory) -> Result<String, String> {
        inventory.validate().map_err(|error| error.to_string())?;
        for (id, record) in &self.hosts {
            if inventory.hosts.contains_key(id) {
                continue;
            }
            if let Some(vm) = self.index.on_host.get(id).and_then(BTreeSet::first) {
                return Err(format!(
                    "hosts.{id}: is missing, but VMs run there ({vm} among them, in the inventory or not); move or stop them first"
                ));
            }
            if record.recovery.is_some_and(|id| self.index.open.contains(&id)) {
                return Err(format!("hosts.{id}: is missing, but its recovery is open"));
            }
        }
        for (id, record) in &self.vms {
            if inventory.vms.contains_key(id) {
                continue;
            }
            if record.recovery.is_some() {
                return Err(format!("vms.{id}: is missing, but it is being recovered"));
            }
        }
        self.judge_renamed(inventory)?;
        Ok(format!("inventory version {} comes into force", self.inventory_version.saturating_add(1)))
    }

    /// A VM that leaves while it runs, and comes with the same definition under another name, would be started beside
    /// itself: nobody can know that it is the same disk but by that.
    fn judge_renamed(&self, inventory: &Inventory) -> Result<(), String> {
        let declared = &self.inventory.vms;
        let runs = |id: &VmId| self.vms.get(id).and_then(VmRecord::occupied_host);
        let leaving = declared.iter().filter(|(id, _)| !inventory.vms.contains_key(*id));
        let leaving: Vec<_> = leaving.filter_map(|(id, vm)| Some((id, &vm.definition, runs(id)?))).collect();
        if leaving.is_empty() {
            return Ok(());
        }
        for (id, vm) in inventory.vms.iter().filter(|(id, _)| !declared.contains_key(*id)) {
            let same =
                leaving.iter().find(|(_, held, _)| !held.arguments.is_empty() && **held == vm.definition);
            if let Some((former, _, host)) = same {
                return Err(format!(
                    "vms.{id}: has the definition of vm {former}, which is missing and runs on host {host}: two copies would write to one disk; set the priority of {former} to disabled and shut it down before it gets another name"
                ));
            }
        }
        Ok(())
    }

    pub(super) fn confirm_dead(&mut self, host: &HostId, epoch: Epoch, operator: &Operator) {
        let command = Command::ConfirmDead { host: host.clone(), epoch, operator: operator.clone() };
        if let Err(why) = self.judge(&command) {
            return self.refuse("confirm-dead", why);
        }
        let id = match self.hosts.get(host).and_then(|record| record.recovery) {
            Some(id) => id,
            None => self.open_recovery(host),
        };
        let action = format!("confirms that host {host} is dead");
        self.event(Some(id), EventKind::OperatorActed { operator: operator.clone(), action });
        let kind =
            ProofKind::OperatorWord { operator: operator.name.clone(), reason: operator.reason.clone() };
        self.prove(id, kind);
    }

    pub(super) fn fence_host(&mut self, host: &HostId, epoch: Epoch, operator: &Operator) {
        let command = Command::FenceHost { host: host.clone(), epoch, operator: operator.clone() };
        if let Err(why) = self.judge(&command) {
            return self.refuse("fence-host", why);
        }
        let id = match self.hosts.get(host).and_then(|record| record.recovery) {
            Some(id) => id,
            None => self.open_recovery(host),
        };
        let mut overridden = None;
        if let Some(recovery) = self.recoveries.get_mut(&id) {
            recovery.by_operator = true;
            overridden = recovery.brake.take();
        }
        let action = format!("fences host {host}");
        self.event(Some(id), EventKind::OperatorActed { operator: operator.clone(), action });
        self.fence_was_ordered(id);
        if let Some(detail) = overridden {
            let (host, operator) = (host.clone(), operator.clone());
            self.event(Some(id), EventKind::BrakeOverridden { host, operator, detail });
        }
        self.retry_fences(Some(host));
        if self.recoveries.get(&id).is_some_and(|recovery| recovery.phase == Phase::Suspected) {
            self.condemn(id, "an operator ordered it");
        }
    }

    pub(super) fn lift_quarantine(&mut self, host: &HostId, operator: &Operator) {
        let command = Command::LiftQuarantine { host: host.clone(), operator: operator.clone() };
        if let Err(why) = self.judge(&command) {
            return self.refuse("lift-quarantine", why);
        }
        if let Some(record) = self.hosts.get_mut(host) {
            record.quarantined = false;
            record.returns.clear();
        }
        let action = format!("lifts the quarantine of host {host}");
        let quarantined = self.hosts.get(host).and_then(|record| record.told);
        let lifted = EventKind::OperatorActed { operator: operator.clone(), action };
        let lifted = self.event_after(quarantined, None, lifted);
        if quarantined.is_some() {
            self.told_of_host(host, Some(lifted));
        }
        self.host_changed(host);
    }

    pub(super) fn pause(&mut self, paused: bool, operator: &Operator) {
        self.paused = paused;
        let action = if paused { PAUSES } else { "resumes automatic action" };
        if !paused {
            self.disarmed = None;
            self.retry_fences(None);
        }
        self.event(None, EventKind::OperatorActed { operator: operator.clone(), action: action.to_string() });
        self.index.room_changes = self.index.room_changes.saturating_add(1);
    }

    /// Who votes is the log's business, and it tells when that has changed: here it is only told who wanted it.
    pub(super) fn replicas_ordered(&mut self, order: &ReplicaOrder, operator: &Operator) {
        let action = match order {
            ReplicaOrder::Add { id, address } => format!("adds replica r{id} at {address}"),
            ReplicaOrder::Remove { id } => format!("removes replica r{id}"),
            ReplicaOrder::Replace { id, by, address } => {
                format!("puts replica r{by} at {address} in the place of r{id}")
            }
            ReplicaOrder::Lead { id } => format!("hands the lead to replica r{id}"),
        };
        let ordered = self.event(None, EventKind::OperatorActed { operator: operator.clone(), action });
        if !matches!(order, ReplicaOrder::Lead { .. }) {
            self.replicas_ordered = Some(ordered);
        }
    }

    pub(super) fn set_policy(&mut self, policy: &Policy, replaces: u64, operator: &Operator) {
        let command = Command::SetPolicy { policy: policy.clone(), replaces, operator: operator.clone() };
        if let Err(why) = self.judge(&command) {
            return self.refuse("set-policy", why);
        }
        self.replace_policy(policy, operator);
    }

    /// Brings a policy that was judged into force.
    pub(super) fn replace_policy(&mut self, policy: &Policy, operator: &Operator) {
        if policy.lease != self.policy.lease {
            self.settle_leases(policy.lease.expiry_wait().max(self.policy.lease.expiry_wait()));
        }
        self.policy = policy.clone();
        self.retry_fences(None);
        self.policy_version = self.policy_version.saturating_add(1);
        self.sinks_changed();
        let action = String::from("applies a policy");
        self.event(None, EventKind::OperatorActed { operator: operator.clone(), action });
        self.event(None, EventKind::PolicyChanged { version: self.policy_version });
    }

    pub(super) fn set_inventory(&mut self, inventory: &Inventory, replaces: u64, operator: &Operator) {
        let command =
            Command::SetInventory { inventory: inventory.clone(), replaces, operator: operator.clone() };
        if let Err(why) = self.judge(&command) {
            return self.refuse("set-inventory", why);
        }
        self.replace_inventory(inventory, operator);
    }

    /// Brings an inventory that was judged into force.
    pub(super) fn replace_inventory(&mut self, inventory: &Inventory, operator: &Operator) {
        let electorate = |inventory: &Inventory| {
            let hosts = inventory.hosts.values();
            hosts.map(|host| (host.id.clone(), host.neighbour_address.clone(), host.domain.clone())).collect()
        };
        let (before, after): (Vec<_>, Vec<_>) = (electorate(&self.inventory), electorate(inventory));
        for (id, record) in &mut self.hosts {
            // What was found out about a method says nothing of the one that takes its place.
            if inventory.hosts.get(id).map(|host| &host.fencing)
                != self.inventory.hosts.get(id).map(|host| &host.fencing)
            {
                record.fencing_tests.clear();
            }
        }
        self.inventory = inventory.clone();
        self.inventory_version = self.inventory_version.saturating_add(1);
        for (id, record) in &self.hosts {
            if !inventory.hosts.contains_key(id) && record.epoch > Epoch(0) {
                self.retired_hosts.insert(id.clone(), record.retired());
            }
        }
        self.hosts.retain(|id, _| inventory.hosts.contains_key(id));
        for id in inventory.hosts.keys() {
            let retired = self.retired_hosts.remove(id).unwrap_or_default();
            self.hosts.entry(id.clone()).or_insert(retired);
        }
        // Records of VMs stay: one that left the inventory may run on, and its incarnations are known to agents
        // for ever. It is not protected any more, and nothing of ours starts or stops it.
        for id in inventory.vms.keys() {
            self.vms.entry(id.clone()).or_default();
        }
        for recovery in self.recoveries.values_mut() {
            recovery.vms.retain(|vm: &VmId| inventory.vms.contains_key(vm));
        }
        // What was given up has a new definition, perhaps a better one.
        let mut anew: Vec<VmId> = Vec::new();
        for (id, record) in &mut self.vms {
            if let Place::GivenUp { host } = &record.place {
                record.place = Place::Down { host: host.clone() };
                record.attempts = 0;
                anew.push(id.clone());
            }
        }
        let room = self.index.room_changes.saturating_add(1);
        self.index = Index::build(&self.inventory, &self.hosts, &self.vms, &self.recoveries);
        self.index.room_changes = room;
        if before != after {
            self.new_electorate();
        }
        self.retry_fences(None);
        let action = String::from("applies an inventory");
        self.event(None, EventKind::OperatorActed { operator: operator.clone(), action });
        let changed = self.event(None, EventKind::InventoryChanged { version: self.inventory_version });
        // Those that are new in it, and those that it gives another chance.
        for record in self.vms.values_mut() {
            if record.told.is_none() && record.place == Place::Never {
                record.told = Some(changed);
            }
        }
        for vm in anew {
            self.told_of_vm(&vm, changed);
        }
    }
}
