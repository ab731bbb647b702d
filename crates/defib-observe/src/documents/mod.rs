//! Documents that people write: YAML with durations such as `100ms` and sizes such as `16GiB`.
//!
//! Every problem names file, line, column and field; unknown fields are refused.

mod diff;
mod fencing;
mod inventory;
mod policy;
mod scalar;

use defib_process::{DocumentError, fields_of, from_yaml, place_of, place_within};
pub use diff::diff;
pub use inventory::{inventory_from_yaml, inventory_to_yaml};
pub use policy::{policy_from_yaml, policy_to_yaml};
