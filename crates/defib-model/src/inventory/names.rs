//! Names that operators choose and nobody else knows: levels, domains, labels, resources, datastores.

use alloc::{
    format,
    string::{String, ToString},
};

use super::{Inventory, InventoryError};

/// Bytes of a name at most, as of those of hosts and VMs: events repeat it.
const NAME_MAX: usize = 128;

/// Refuses a name that looks like another one, or like none, or is no name for its length.
fn check(name: &str) -> Result<(), String> {
    if name.trim().is_empty() {
        return Err(format!("{name:?} is no name; leave it out, or give one"));
    }
    if name.trim() != name {
        return Err(format!(
            "{name:?} has a blank at an end, so it is another name than {:?}; take the blank away",
            name.trim()
        ));
    }
    if name.len() > NAME_MAX {
        let begin: String = name.chars().take(40).collect();
        return Err(format!("{begin:?}… is {} bytes long; a name has {NAME_MAX} at most", name.len()));
    }
    if name.chars().any(char::is_control) {
        return Err(format!("{name:?} has a character that nobody can see; take it away"));
    }
    Ok(())
}

impl Inventory {
    /// Whether every name that is compared with others can be told from them by who reads it.
    pub(super) fn vet_names(&self) -> Result<(), InventoryError> {
        let wrong = |field: String| move |message| InventoryError { field, message };
        for level in &self.levels {
            check(level).map_err(wrong("fault-domain-levels".to_string()))?;
        }
        for (id, host) in &self.hosts {
            let field = |name: &str| format!("hosts.{id}.{name}");
            for name in &host.domain.0 {
                check(name).map_err(wrong(field("domain")))?;
            }
            for name in &host.labels {
                check(name).map_err(wrong(field("labels")))?;
            }
            for name in host.capacity.named.keys() {
                check(name).map_err(wrong(field("capacity.named")))?;
            }
        }
        for (id, vm) in &self.vms {
            let field = |name: &str| format!("vms.{id}.{name}");
            for name in &vm.requires {
                check(name).map_err(wrong(field("requires")))?;
            }
            for name in vm.resources.named.keys() {
                check(name).map_err(wrong(field("resources.named")))?;
            }
            if let Some(name) = &vm.datastore {
                check(name).map_err(wrong(field("datastore")))?;
            }
        }
        Ok(())
    }
}
