//! What travels. Each message carries the process of the agent or the session of the replica that it is for, because
//! what was sent to a dead process is lost.

use defib_engine::{
    controller::OrderOutcome,
    guard::{Answer, Order},
    observer::{Ack, Beat},
};
use defib_model::{
    BootId, EffectId, Entry, Epoch, Incarnation, Instant, RecoveryId, VmId,
    command::{AgentReport, FenceResult},
};

use super::fault::Kind;

#[derive(Debug, Clone)]
pub(super) enum Message {
    Beat {
        host: u8,
        process: u32,
        replica: u8,
        session: u64,
        sent_at: Instant,
        beat: Beat,
    },
    Ack {
        host: u8,
        process: u32,
        replica: u8,
        sent_at: Instant,
        ack: Ack,
    },
    Question {
        host: u8,
        process: u32,
        to: u8,
        asked_at: Instant,
    },
    Answer {
        host: u8,
        process: u32,
        by: u8,
        asked_at: Instant,
        answer: Answer,
    },
    Report {
        host: u8,
        replica: u8,
        session: u64,
        report: AgentReport,
    },
    Goodbye {
        host: u8,
        replica: u8,
        session: u64,
        boot: BootId,
        epoch: Epoch,
    },
    Left {
        host: u8,
        replica: u8,
        session: u64,
    },
    Order {
        host: u8,
        process: u32,
        replica: u8,
        session: u64,
        order: Order,
    },
    Epoch {
        host: u8,
        process: u32,
        replica: u8,
        epoch: Epoch,
    },
    Outcome {
        host: u8,
        replica: u8,
        session: u64,
        effect: EffectId,
        vm: VmId,
        incarnation: Incarnation,
        outcome: OrderOutcome,
    },
    Stopped {
        host: u8,
        process: u32,
        vm: VmId,
        incarnation: Incarnation,
    },
    Power {
        host: u8,
        replica: u8,
        session: u64,
        recovery: RecoveryId,
        attempt: Option<u32>,
        result: FenceResult,
    },
    Propose {
        replica: u8,
        session: u64,
        entry: Box<Entry>,
    },
}

/// Which way a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// From a host to a replica.
    Up(u8, u8),
    /// From a replica to a host.
    Down(u8, u8),
    /// Between two hosts.
    Across(u8, u8),
    /// Not over the network of the hosts.
    Inside,
}

impl Message {
    pub(super) const fn way(&self) -> Way {
        match *self {
            Self::Beat { host, replica, .. }
            | Self::Report { host, replica, .. }
            | Self::Goodbye { host, replica, .. }
            | Self::Left { host, replica, .. }
            | Self::Outcome { host, replica, .. } => Way::Up(host, replica),
            Self::Ack { host, replica, .. }
            | Self::Order { host, replica, .. }
            | Self::Epoch { host, replica, .. } => Way::Down(host, replica),
            Self::Question { host, to, .. } => Way::Across(host, to),
            Self::Answer { host, by, .. } => Way::Across(host, by),
            Self::Stopped { .. } | Self::Power { .. } | Self::Propose { .. } => Way::Inside,
        }
    }

    /// By which fault it can be late.
    pub(super) const fn lateness(&self) -> Option<(Kind, u8, u8)> {
        Some(match *self {
            Self::Beat { host, replica, .. } => (Kind::Beat, host, replica),
            Self::Ack { host, replica, .. } => (Kind::Ack, host, replica),
            Self::Question { host, to, .. } => (Kind::Question, host, to),
            Self::Answer { host, by, .. } => (Kind::Answer, host, by),
            Self::Report { host, replica, .. } | Self::Outcome { host, replica, .. } => {
                (Kind::Report, host, replica)
            }
            Self::Goodbye { host, replica, .. } => (Kind::Goodbye, host, replica),
            Self::Order { host, replica, .. } | Self::Epoch { host, replica, .. } => {
                (Kind::Order, host, replica)
            }
            Self::Power { host, replica, .. } => (Kind::Bmc, host, replica),
            Self::Left { .. } | Self::Stopped { .. } | Self::Propose { .. } => return None,
        })
    }

    /// The agent's process that it is for.
    pub(super) const fn process(&self) -> Option<(u8, u32)> {
        match *self {
            Self::Ack { host, process, .. }
            | Self::Order { host, process, .. }
            | Self::Epoch { host, process, .. }
            | Self::Answer { host, process, .. }
            | Self::Stopped { host, process, .. } => Some((host, process)),
            _ => None,
        }
    }

    /// The life of the replica that it is for.
    pub(super) const fn session(&self) -> Option<(u8, u64)> {
        match *self {
            Self::Beat { replica, session, .. }
            | Self::Report { replica, session, .. }
            | Self::Goodbye { replica, session, .. }
            | Self::Left { replica, session, .. }
            | Self::Outcome { replica, session, .. }
            | Self::Power { replica, session, .. }
            | Self::Propose { replica, session, .. } => Some((replica, session)),
            _ => None,
        }
    }
}
