//! What an operator may say.

mod changes;
mod documents;
mod events;
mod found;
mod sinks;
mod views;

pub(crate) use changes::{Change, HostCommand, ReplicaCommand, host, pause, replica};
pub(crate) use documents::{DocumentCommand, InventoryCommand, inventory, policy};
pub(crate) use events::{EventsArguments, events, verify_from};
pub(crate) use sinks::{SinkCommand, sink};
pub(crate) use views::{PlanCommand, RecoveryCommand, VmCommand, plan, recovery, status, vm};
