//! I3 (S13): what is over counts for nothing. A heartbeat counts once, in the order in which it was sent, and no boot
//! counts any more after a later one was heard.

use super::Common;
use crate::world::Machine;

/// The newest that one life of a replica's observer took of a host: boot, and number by path.
#[derive(Debug, Clone, Default)]
struct Newest {
    life: u32,
    boot: u128,
    numbers: Vec<(u8, u64)>,
    /// Boots that were heard before this one.
    former: Vec<u128>,
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
        if (newest.life, newest.boot) != (beat.life, beat.boot) {
            let mut former = std::mem::take(&mut newest.former);
            if newest.life != beat.life {
                former.clear();
            }
            // Boots of one machine are numbered in their order; a clone's begin elsewhere.
            let older =
                Machine::of_boot(beat.boot) == Machine::of_boot(newest.boot) && beat.boot < newest.boot;
            let late = former.contains(&beat.boot) || (newest.life == beat.life && older);
            former.push(newest.boot);
            *newest = Newest { life: beat.life, boot: beat.boot, numbers: Vec::new(), former };
            if late {
                let text = format!(
                    "replica number {} takes a heartbeat of a former boot of host {} for a new one",
                    beat.replica + 1,
                    common.hosts[beat.host]
                );
                common.violated("I3", now, text);
            }
        }
        let Some((_, held)) = newest.numbers.iter_mut().find(|(path, _)| *path == beat.path) else {
            return newest.numbers.push((beat.path, beat.number));
        };
        if beat.number <= *held {
            let text = format!(
                "replica number {} takes heartbeat {} of host {} for a new one, after {held}",
                beat.replica + 1,
                beat.number,
                common.hosts[beat.host]
            );
            common.violated("I3", now, text);
        }
        *held = beat.number;
    }
}
