//! I3 (S13): what is over counts for nothing. A heartbeat counts once, in the order in which it was sent, and no boot
//! counts any more after a later one of the same machine was heard.

use std::collections::BTreeMap;

use super::Common;
use crate::world::Machine;

/// What one life of a replica's observer took of a host: the newest number, by boot and path. A host may have machines
/// beside its own that bear its name, and boots of each.
#[derive(Debug, Clone, Default)]
struct Newest {
    life: u32,
    numbers: BTreeMap<u128, BTreeMap<u8, u64>>,
}

/// A heartbeat as its sender wrote it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) replica: usize,
    pub(crate) life: u32,
    pub(crate) host: usize,
    pub(crate) boot: u128,
    pub(crate) path: u8,
    pub(crate) number: u64,
}

/// By replica and host.
#[derive(Debug)]
pub(super) struct Heartbeats {
    newest: Vec<Vec<Newest>>,
}

impl Heartbeats {
    pub(super) fn new(replicas: usize, hosts: usize) -> Self {
        Self { newest: vec![vec![Newest::default(); hosts]; replicas] }
    }

    /// An observer takes a heartbeat for a new one.
    pub(super) fn taken(&mut self, common: &mut Common, now: u64, beat: Taken) {
        let newest = &mut self.newest[beat.replica][beat.host];
        if newest.life != beat.life {
            *newest = Newest { life: beat.life, ..Newest::default() };
        }
        let (replica, host) = (beat.replica + 1, &common.hosts[beat.host]);
        // Boots of one machine are numbered in their order.
        let machine = Machine::of_boot(beat.boot);
        let late = newest.numbers.keys().any(|boot| *boot > beat.boot && Machine::of_boot(*boot) == machine);
        let held = newest.numbers.entry(beat.boot).or_default().entry(beat.path).or_default();
        let old = beat.number <= *held;
        let why = match (late, old) {
            (true, _) => "a later boot of it was heard".to_owned(),
            (false, true) => format!("{held} was heard"),
            (false, false) => return *held = beat.number,
        };
        *held = beat.number.max(*held);
        let text = format!(
            "replica number {replica} takes heartbeat {} of host {host} for a new one, after {why}",
            beat.number
        );
        common.violated("I3", now, text);
    }
}
