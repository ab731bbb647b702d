//! What fuzzers feed: each decoder and each machine of Defib takes any bytes here, and what must hold is asserted.
//!
//! A [`Target`] neither reads a clock nor draws at random, so an input that once failed fails again. It runs in two
//! places: under libFuzzer (`tests/fuzz`, by `cargo xtask fuzz`), and as an ordinary test that replays seeds and old
//! crashes (`crates/defib-fuzz/tests/regressions.rs`). docs/fuzzing.md says how to add one.

mod bus;
mod documents;
mod domains;
mod draw;
mod events;
mod guard;
mod ledger;
mod log_directory;
mod peers;
mod pki;
mod planner;
mod programs;
mod redfish;
mod rpc;
mod seeds;
mod state;
mod stores;
mod streams;
mod wire;

pub use seeds::dictionary;

/// One thing to feed.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// Feeds it. Panics when something does not hold.
    pub run: fn(&[u8]),
    /// What to begin with: inputs that get far, the same ones every time.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets, by name.
pub const TARGETS: &[Target] = &[
    Target { name: "agent_rpc", run: rpc::agent, seeds: rpc::agent_seeds },
    Target { name: "bus", run: bus::bus, seeds: bus::bus_seeds },
    Target { name: "certificate", run: pki::certificate, seeds: pki::certificate_seeds },
    Target { name: "config", run: documents::config, seeds: documents::config_seeds },
    Target { name: "datagram", run: wire::datagram, seeds: wire::datagram_seeds },
    Target { name: "etcd_document", run: stores::etcd_document, seeds: stores::etcd_document_seeds },
    Target { name: "event_file", run: events::event_file, seeds: events::event_file_seeds },
    Target { name: "event_stream", run: streams::event_stream, seeds: streams::event_stream_seeds },
    Target { name: "guard", run: guard::guard, seeds: seeds::noise },
    Target { name: "guard_state", run: state::guard_state, seeds: state::guard_state_seeds },
    Target { name: "inventory", run: documents::inventory, seeds: documents::inventory_seeds },
    Target { name: "join_token", run: pki::join_token, seeds: pki::join_token_seeds },
    Target { name: "ledger", run: ledger::ledger, seeds: seeds::noise },
    Target { name: "libvirt_xml", run: domains::libvirt_xml, seeds: domains::libvirt_xml_seeds },
    Target {
        name: "log_directory",
        run: log_directory::log_directory,
        seeds: log_directory::log_directory_seeds,
    },
    Target { name: "log_entry", run: wire::log_entry, seeds: wire::log_entry_seeds },
    Target { name: "operator_rpc", run: rpc::operator, seeds: rpc::operator_seeds },
    Target { name: "peer_frames", run: peers::frames, seeds: peers::frames_seeds },
    Target { name: "peer_messages", run: peers::messages, seeds: peers::messages_seeds },
    Target { name: "planner", run: planner::planner, seeds: seeds::noise },
    Target { name: "policy", run: documents::policy, seeds: documents::policy_seeds },
    Target { name: "power_programs", run: programs::power_programs, seeds: programs::power_programs_seeds },
    Target { name: "redfish", run: redfish::redfish, seeds: redfish::redfish_seeds },
    Target { name: "snapshot", run: state::snapshot, seeds: state::snapshot_seeds },
];

/// The target of this name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
