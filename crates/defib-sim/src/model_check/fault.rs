//! What may go wrong between two ticks: the only freedom that the environment has.

use std::fmt;

/// What travels between parties.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A heartbeat, host to replica.
    Beat,
    /// Its acknowledgement, replica to host.
    Ack,
    /// An agent's report, host to replica.
    Report,
    /// An order, or the news of an epoch, replica to host.
    Order,
    /// "Do you hold a lease?", host to host.
    Question,
    /// Its answer, host to host; `host` is the one that asked.
    Answer,
    /// A BMC's answer to a replica.
    Bmc,
    /// An agent's announcement that it has shut down, host to replica.
    Goodbye,
}

/// One deviation from a world in which every message arrives at once and nothing breaks. Hosts and replicas are
/// numbered from 0. Those that say "or heals" undo themselves when they come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// A host loses its power, or gets it back and boots.
    Power(u8),
    /// The same, and a reboot follows at once.
    Reboot(u8),
    /// A BMC stops answering, or heals.
    Bmc(u8),
    /// An agent dies and is started again; with or without what its former process wrote for it.
    AgentRestart {
        /// Whose.
        host: u8,
        /// Whether the file was found.
        hint: bool,
    },
    /// An agent is frozen, or heals: what was sent to it waits.
    AgentFrozen(u8),
    /// An operator shuts a host down cleanly.
    Shutdown(u8),
    /// A host and all replicas don't hear each other, or heal.
    NoReplicas(u8),
    /// A host and everybody else don't hear each other, or heal.
    Isolated(u8),
    /// A host and one replica don't hear each other, or heal.
    NoReplica(u8, u8),
    /// Two hosts don't hear each other, or heal.
    NoNeighbour(u8, u8),
    /// The switch between all hosts and all replicas fails, or heals.
    Switch,
    /// The same in one direction: what replicas send is lost.
    SwitchDown,
    /// For this tick, messages of one kind between a host and a peer are late.
    Late {
        /// Of which kind.
        kind: Kind,
        /// Which host.
        host: u8,
        /// Which replica, or which other host.
        peer: u8,
        /// By how many ticks.
        ticks: u8,
    },
    /// A replica's process dies and begins anew.
    ReplicaRestart(u8),
    /// A replica applies nothing of the log, or heals; its observer goes on with what it knows.
    ReplicaLags(u8),
    /// A replica is frozen, or heals: what was sent to it waits.
    ReplicaFrozen(u8),
    /// Another replica is elected, and everybody knows.
    Elected(u8),
    /// Another replica is elected; the former leader is cut off from the others and does not know, until it heals.
    ElectedBehind(u8),
    /// The former leader hears the others again.
    Undeceived,
    /// All replicas die, or all begin anew.
    Outage,
}

impl Fault {
    /// Whether it is the controllers' own trouble, which must stop no VM (I11).
    #[must_use]
    pub const fn is_the_controllers(self) -> bool {
        matches!(
            self,
            Self::Switch
                | Self::SwitchDown
                | Self::ReplicaRestart(_)
                | Self::ReplicaLags(_)
                | Self::Elected(_)
                | Self::ElectedBehind(_)
                | Self::Undeceived
                | Self::Outage
        )
    }
}

struct Host(u8);

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "h{}", self.0 + 1)
    }
}

struct Replica(u8);

impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0 + 1)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Power(host) => write!(f, "{} loses its power, or gets it back", Host(host)),
            Self::Reboot(host) => write!(f, "{} is reset and boots", Host(host)),
            Self::Bmc(host) => write!(f, "the BMC of {} stops answering, or answers again", Host(host)),
            Self::AgentRestart { host, hint } => {
                let with = if hint { "with" } else { "without" };
                write!(f, "the agent of {} dies and starts again, {with} its resume hint", Host(host))
            }
            Self::AgentFrozen(host) => write!(f, "the agent of {} freezes, or thaws", Host(host)),
            Self::Shutdown(host) => write!(f, "{} is shut down cleanly", Host(host)),
            Self::NoReplicas(host) => {
                write!(f, "the links of {} to all replicas break, or heal", Host(host))
            }
            Self::Isolated(host) => write!(f, "all links of {} break, or heal", Host(host)),
            Self::NoReplica(host, replica) => {
                write!(f, "the link of {} to {} breaks, or heals", Host(host), Replica(replica))
            }
            Self::NoNeighbour(one, other) => {
                write!(f, "the link of {} to {} breaks, or heals", Host(one), Host(other))
            }
            Self::Switch => f.write_str("the switch between all hosts and all replicas fails, or heals"),
            Self::SwitchDown => f.write_str("that switch loses what replicas send, or heals"),
            Self::Late { kind, host, peer, ticks } => {
                let (host, ticks) = (Host(host), ticks);
                match kind {
                    Kind::Beat => write!(f, "a beat of {host} to {} is", Replica(peer)),
                    Kind::Ack => write!(f, "an acknowledgement of {} to {host} is", Replica(peer)),
                    Kind::Report => write!(f, "reports of {host} to {} are", Replica(peer)),
                    Kind::Order => write!(f, "orders of {} to {host} are", Replica(peer)),
                    Kind::Question => write!(f, "questions of {host} to {} are", Host(peer)),
                    Kind::Answer => write!(f, "answers of {} to {host} are", Host(peer)),
                    Kind::Bmc => write!(f, "answers of the BMC of {host} to {} are", Replica(peer)),
                    Kind::Goodbye => write!(f, "the goodbye of {host} to {} is", Replica(peer)),
                }?;
                write!(f, " {ticks} ticks late")
            }
            Self::ReplicaRestart(replica) => write!(f, "{} dies and begins anew", Replica(replica)),
            Self::ReplicaLags(replica) => {
                write!(f, "{} ceases to apply the log, or catches up", Replica(replica))
            }
            Self::ReplicaFrozen(replica) => write!(f, "{} freezes, or thaws", Replica(replica)),
            Self::Elected(replica) => write!(f, "{} is elected", Replica(replica)),
            Self::ElectedBehind(replica) => {
                write!(f, "{} is elected, and the former leader, cut off, does not know", Replica(replica))
            }
            Self::Undeceived => f.write_str("the former leader hears of its successor"),
            Self::Outage => f.write_str("all replicas die, or all begin anew"),
        }
    }
}
