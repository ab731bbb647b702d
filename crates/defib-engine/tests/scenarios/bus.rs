//! A message bus beside the network: agents write beats to it, every replica reads them, and much can be wrong with it.

use std::collections::{BTreeMap, BTreeSet};

use defib_engine::observer::{BusBeat, Extent, Partition, Place};
use defib_model::{HostId, Instant};

use super::{
    commands::{Answer, Scenario, number},
    world::{Act, World},
};

/// How often agents write, and replicas ask where it ends and read up to there.
const PACE: u64 = 100;
const LANE: Partition = Partition { topic: 0, number: 0 };

#[derive(Debug, Clone)]
enum Record {
    Beat(HostId, BusBeat),
    PowerLost(HostId),
}

/// One partition is enough.
#[derive(Debug, Default)]
pub(crate) struct Bus {
    up: bool,
    records: Vec<Record>,
    /// Where the records begin that were not taken away.
    first: usize,
    /// By replica and its life: what it reads next.
    next: BTreeMap<(usize, u64), usize>,
    /// Hosts that can't reach it.
    cut: BTreeSet<HostId>,
    /// Until when nobody reads.
    lag_until: u64,
    /// By how many records every third answer is late, beside what was handed out already; the one before fails.
    late: usize,
}

impl World {
    pub(crate) fn bus_tick(&mut self) {
        self.later(PACE, Act::BusTick);
        let Some(mut bus) = self.bus.take() else { return };
        if bus.up {
            let now = self.now;
            for machine in self.machines.values().filter(|machine| machine.agent_runs()) {
                if !bus.cut.contains(&machine.id) {
                    // As agents do: by the clock of the boot.
                    let sequence = Instant::from_millis(now).0 / 1000;
                    let beat = BusBeat { boot: machine.boot(), sequence };
                    bus.records.push(Record::Beat(machine.id.clone(), beat));
                }
            }
            for number in 0..self.replicas.len() {
                self.read_bus(number, &mut bus);
            }
        }
        self.bus = Some(bus);
    }

    fn read_bus(&mut self, number: usize, bus: &mut Bus) {
        let now = self.now;
        let replica = &mut self.replicas[number];
        if !replica.alive || replica.paused_until > now {
            return;
        }
        let (clock, end) = (replica.clock(now), bus.records.len());
        let life = (number, replica.session);
        let Some(next) = bus.next.get(&life).copied() else {
            replica.observer.bus_begins(LANE, clock, end as u64);
            bus.next.insert(life, end);
            return;
        };
        let (read_to, first) = (next as u64, bus.first as u64);
        let told = match (bus.late, now / PACE % 3) {
            (0, _) | (_, 0) => Some(end),
            (_, 1) => None,
            (late, _) => Some(next - late),
        };
        let extent = told.map(|told| Extent { asked_at: clock, read_to, first, end: told as u64 });
        if extent.is_some_and(|extent| replica.observer.bus_holds(LANE, &extent)) {
            // What was to be read is gone: it is read on from the end.
            replica.observer.bus_begins(LANE, clock, end as u64);
            bus.next.insert(life, end);
            return;
        }
        if bus.lag_until > now {
            return;
        }
        for (offset, record) in bus.records.iter().enumerate().skip(next) {
            let place = Place { partition: LANE, offset: offset as u64 };
            let (Record::Beat(host, _) | Record::PowerLost(host)) = record;
            let Some(slot) = replica.observer.slot(host) else {
                replica.observer.bus_passes(place);
                continue;
            };
            let _ = match record {
                Record::Beat(_, beat) => replica.observer.bus_beat(clock, slot, place, beat),
                Record::PowerLost(_) => replica.observer.bmc_event(clock, slot, place),
            };
        }
        bus.next.insert(life, end);
    }
}

impl Scenario {
    /// `bus start`, `bus down`, `bus up`, `bus cut h1`, `bus lag 3000`, `bus late 1`, `bus replay h1`,
    /// `bus truncate`, `bus power-lost h1`
    pub(crate) fn bus(&mut self, rest: &[&str]) -> Answer {
        if rest == ["start"] {
            self.world.bus = Some(Bus { up: true, ..Bus::default() });
            self.world.later(0, Act::BusTick);
            return Ok(());
        }
        let host = rest.get(1).filter(|name| name.starts_with('h')).map(|_| self.host_id(rest.get(1)));
        let host = host.transpose()?;
        let now = self.world.now;
        let bus = self.world.bus.as_mut().ok_or("bus start first")?;
        match (rest, host) {
            (["down"], None) => bus.up = false,
            (["up"], None) => bus.up = true,
            (["cut", _], Some(host)) => drop(bus.cut.insert(host)),
            (["lag", span], None) => bus.lag_until = now + number(span)?,
            (["late", records], None) => bus.late = number(records)? as usize,
            (["truncate"], None) => bus.first = bus.records.len(),
            (["replay", _], Some(host)) => {
                let again: Vec<Record> = bus
                    .records
                    .iter()
                    .filter(|record| matches!(record, Record::Beat(of, _) if *of == host))
                    .cloned()
                    .collect();
                bus.records.extend(again);
            }
            (["power-lost", _], Some(host)) => bus.records.push(Record::PowerLost(host)),
            _ => {
                return Err(
                    "a bus can start, be down, up, cut, lag, late, truncate, replay, power-lost".into()
                );
            }
        }
        Ok(())
    }
}
