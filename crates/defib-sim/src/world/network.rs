//! Who reaches whom, how fast, and what becomes of datagrams on their way.

use defib_wire::datagram::DATAGRAM_LEN;

use super::{Act, World, queue::HOSTS_FROM};
use crate::{clock::MS, plan::Conditions};

/// An end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Replica(usize),
    Host(usize),
    Bmc(usize),
}

/// A datagram's place.
type Datagram = [u8; DATAGRAM_LEN];

/// After which a connection whose data nobody confirms is given up, so that what comes next goes over a new one: no
/// loss that is over delays anything longer. The transport of the log and the sessions' keepalive do as much.
pub(crate) const GIVEN_UP_AFTER: u64 = 3000 * MS;

/// How many old datagrams are remembered, to come again.
const OLD: usize = 512;

/// All links.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) usual: Conditions,
    pub(crate) now: Conditions,
    replicas: usize,
    ends: usize,
    /// How many reasons there are that nothing gets from one end to another.
    cuts: Vec<u8>,
    /// Datagrams on their way, in places that are used again.
    flying: Vec<Datagram>,
    free: Vec<u32>,
    old: Vec<(u16, Datagram)>,
    next_old: usize,
    /// When the last message between two replicas arrives: connections keep their order.
    pub(crate) last_raft: Vec<u64>,
}

impl Network {
    pub(crate) fn new(usual: Conditions, replicas: usize, hosts: usize) -> Self {
        let ends = replicas + 2 * hosts;
        Self {
            usual,
            now: usual,
            replicas,
            ends,
            cuts: vec![0; ends * ends],
            flying: Vec::new(),
            free: Vec::new(),
            old: Vec::new(),
            next_old: 0,
            last_raft: vec![0; replicas * replicas],
        }
    }

    const fn place(&self, end: End) -> usize {
        match end {
            End::Replica(replica) => replica,
            End::Host(host) => self.replicas + host,
            End::Bmc(host) => self.replicas + (self.ends - self.replicas) / 2 + host,
        }
    }

    /// Cuts one way of a link once more, or once less.
    pub(crate) fn cut(&mut self, from: End, to: End, cut: bool) {
        let at = self.place(from) * self.ends + self.place(to);
        self.cuts[at] = if cut { self.cuts[at] + 1 } else { self.cuts[at].saturating_sub(1) };
    }

    pub(crate) fn reaches(&self, from: End, to: End) -> bool {
        self.cuts[self.place(from) * self.ends + self.place(to)] == 0
    }

    pub(crate) fn both_ways(&self, one: End, other: End) -> bool {
        self.reaches(one, other) && self.reaches(other, one)
    }

    pub(crate) fn heal_all(&mut self) {
        self.cuts.fill(0);
        self.now = self.usual;
    }

    pub(crate) const fn raft_link(&self, from: usize, to: usize) -> usize {
        from * self.replicas + to
    }

    fn keep(&mut self, datagram: &Datagram) -> u32 {
        if let Some(at) = self.free.pop() {
            self.flying[at as usize] = *datagram;
            return at;
        }
        self.flying.push(*datagram);
        self.flying.len() as u32 - 1
    }

    /// Takes a datagram off its way.
    pub(crate) fn take(&mut self, at: u32) -> Datagram {
        self.free.push(at);
        self.flying[at as usize]
    }

    fn remember(&mut self, to: u16, datagram: &Datagram) {
        if self.old.len() < OLD {
            self.old.push((to, *datagram));
        } else {
            self.old[self.next_old] = (to, *datagram);
            self.next_old = (self.next_old + 1) % OLD;
        }
    }
}

impl World {
    /// How long something is on its way, if no more goes wrong.
    pub(crate) fn transit(&mut self) -> u64 {
        let now = &self.network.now;
        let jitter = if now.jitter_us > 0 { self.chance.network.below(now.jitter_us * 1000) } else { 0 };
        now.delay_us * 1000 + jitter
    }

    /// The same for a connection that repeats what is lost: loss shows as delay, until the connection is given up.
    pub(crate) fn stream_transit(&mut self) -> u64 {
        let mut span = self.transit();
        let loss = self.network.now.loss;
        let mut wait = 2_000_000;
        while span < GIVEN_UP_AFTER && self.chance.network.permille(loss) {
            span += wait;
            wait *= 2;
        }
        span.min(GIVEN_UP_AFTER)
    }

    /// A datagram leaves.
    pub(crate) fn send_datagram(&mut self, from: End, to: End, datagram: &Datagram) {
        let target = match to {
            End::Replica(replica) => replica as u16,
            End::Host(host) => HOSTS_FROM + host as u16,
            End::Bmc(_) => return,
        };
        let now = self.network.now;
        if now.replay > 0 {
            self.network.remember(target, datagram);
            if self.chance.network.permille(now.replay)
                && let Some((to, old)) = self.chance.network.pick(&self.network.old).copied()
            {
                self.counts.replayed += 1;
                let (span, at) = (self.transit(), self.network.keep(&old));
                self.later(span, Act::Datagram { to, at });
            }
        }
        if self.chance.network.permille(now.forge) {
            self.counts.forged += 1;
            let mut forged = *datagram;
            let byte = self.chance.network.index(forged.len());
            forged[byte] ^= 1 << self.chance.network.below(8);
            let (span, at) = (self.transit(), self.network.keep(&forged));
            self.later(span, Act::Datagram { to: target, at });
        }
        if now.straggle > 0 && self.chance.network.permille(now.straggle) {
            let (late, at) = (self.chance.network.between(300, 4000) * MS, self.network.keep(datagram));
            self.later(late, Act::Datagram { to: target, at });
        }
        if !self.network.reaches(from, to) {
            return;
        }
        if self.chance.network.permille(now.loss) {
            self.counts.lost += 1;
            return;
        }
        let copies = if self.chance.network.permille(now.duplicate) { 2 } else { 1 };
        self.counts.duplicated += copies - 1;
        for _ in 0..copies {
            let mut span = self.transit();
            if now.reorder_us > 0 {
                span += self.chance.network.below(now.reorder_us * 1000);
            }
            let at = self.network.keep(datagram);
            self.later(span, Act::Datagram { to: target, at });
        }
    }

    pub(crate) fn datagram_arrives(&mut self, to: u16, at: u32) {
        let datagram = self.network.take(at);
        if to < HOSTS_FROM {
            self.beat_arrives(usize::from(to), datagram);
        } else {
            self.ack_arrives(usize::from(to - HOSTS_FROM), datagram);
        }
    }
}
