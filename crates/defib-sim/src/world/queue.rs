//! What is going to happen, in the order of time.

use std::{cmp::Reverse, collections::BinaryHeap};

use bytes::Bytes;
use defib_engine::guard::Answer;
use defib_model::{Incarnation, Instant};
use defib_wire::v1::{self, agent_message, controller_message};

use super::{bmc::Step, core::Message, observer::Instruction, probes::Carrier, sessions::Side};

/// A process that can stop and go on, as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Process {
    Replica(usize),
    Agent(usize),
}

/// A message between replicas.
#[derive(Debug)]
pub(crate) struct RaftMessage {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) bytes: Bytes,
}

/// One thing that is going to happen.
#[derive(Debug)]
pub(crate) enum Act {
    Datagram { to: u16, at: u32 },
    Raft(Box<RaftMessage>),
    RaftTick { replica: usize, life: u32 },
    RaftSynced { replica: usize, life: u32 },
    RaftAnnounce { replica: usize, life: u32 },
    CoreDue { replica: usize, life: u32 },
    ObserverDue { replica: usize, life: u32 },
    ToCore { replica: usize, life: u32, message: Box<Message> },
    ToObserver { replica: usize, life: u32, instruction: Box<Instruction> },
    StartReplica { replica: usize, life: u32 },
    Resume(Process),
    Beat { host: usize, life: u32 },
    GuardDue { host: usize, life: u32 },
    Tend { host: usize, life: u32 },
    StartAgent { host: usize, boots: u32 },
    Booted { host: usize, boots: u32 },
    WatchdogDue { host: usize, boots: u32 },
    Hypervisor { host: usize, life: u32, job: u32 },
    GuestReady { host: usize, boots: u32, vm: usize, incarnation: Incarnation },
    VmEnded { host: usize, boots: u32, vm: usize, incarnation: Incarnation },
    Connect { host: usize, life: u32, replica: usize },
    Hello { connection: usize },
    ToAgent { connection: usize, message: Box<controller_message::Message> },
    ToReplica { connection: usize, message: Box<agent_message::Message> },
    CheckConnection { connection: usize, side: Side },
    Question { from: usize, to: usize, life: u32, asked: Instant },
    Answer { from: usize, to: usize, life: u32, asked: Instant, answer: Answer },
    QuestionsOver { host: usize, life: u32, round: u32 },
    Probe { to: usize, carrier: Carrier, probe: u64 },
    ProbeAnswer { carrier: Carrier, answered: Box<v1::ProbeAnswered> },
    Bmc { task: u64, method: usize, step: Step },
    BmcObeys { host: usize, level: usize, method: usize },
    TaskDue { task: u64 },
    Begin(usize),
    End(usize),
    Operator { number: usize, tries: u32 },
    Replace { old: u64, new: u64 },
    Flap { host: usize, left: u32 },
    PowerOn { host: usize, boots: u32 },
}

/// Ends of datagrams below this are replicas; the rest are hosts.
pub(crate) const HOSTS_FROM: u16 = 64;

impl Act {
    /// Which process it happens in; `None`: in the world outside.
    pub(crate) fn process(&self) -> Option<Process> {
        Some(match self {
            Self::Datagram { to, .. } if *to < HOSTS_FROM => Process::Replica(usize::from(*to)),
            Self::Datagram { to, .. } => Process::Agent(usize::from(*to - HOSTS_FROM)),
            Self::Raft(message) => Process::Replica(message.to),
            Self::RaftTick { replica, .. }
            | Self::RaftSynced { replica, .. }
            | Self::RaftAnnounce { replica, .. }
            | Self::CoreDue { replica, .. }
            | Self::ObserverDue { replica, .. }
            | Self::ToCore { replica, .. }
            | Self::ToObserver { replica, .. } => Process::Replica(*replica),
            Self::Beat { host, .. }
            | Self::GuardDue { host, .. }
            | Self::Tend { host, .. }
            | Self::Hypervisor { host, .. }
            | Self::VmEnded { host, .. }
            | Self::GuestReady { host, .. }
            | Self::Connect { host, .. }
            | Self::QuestionsOver { host, .. } => Process::Agent(*host),
            Self::Question { to, .. } | Self::Answer { to, .. } | Self::Probe { to, .. } => {
                Process::Agent(*to)
            }
            Self::ProbeAnswer { carrier, .. } => Process::Agent(carrier.host),
            Self::Hello { .. }
            | Self::ToAgent { .. }
            | Self::ToReplica { .. }
            | Self::CheckConnection { .. }
            | Self::StartReplica { .. }
            | Self::Resume(_)
            | Self::StartAgent { .. }
            | Self::Booted { .. }
            | Self::WatchdogDue { .. }
            | Self::Bmc { .. }
            | Self::BmcObeys { .. }
            | Self::TaskDue { .. }
            | Self::Begin(_)
            | Self::End(_)
            | Self::Operator { .. }
            | Self::Flap { .. }
            | Self::PowerOn { .. }
            | Self::Replace { .. } => return None,
        })
    }

    /// Whether it only says that time has passed.
    pub(crate) const fn is_timer(&self) -> bool {
        matches!(
            self,
            Self::RaftTick { .. }
                | Self::RaftAnnounce { .. }
                | Self::CoreDue { .. }
                | Self::ObserverDue { .. }
                | Self::Beat { .. }
                | Self::GuardDue { .. }
                | Self::Tend { .. }
        )
    }
}

#[derive(Debug)]
struct Scheduled {
    at: u64,
    order: u64,
    act: Act,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// The queue.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
}

impl Queue {
    pub(crate) fn push(&mut self, at: u64, act: Act) {
        self.order += 1;
        self.heap.push(Reverse(Scheduled { at, order: self.order, act }));
    }

    /// The next act, if it is due by `end`.
    pub(crate) fn pop_until(&mut self, end: u64) -> Option<(u64, Act)> {
        if self.heap.peek()?.0.at > end {
            return None;
        }
        self.heap.pop().map(|Reverse(next)| (next.at, next.act))
    }
}
