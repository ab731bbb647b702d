//! What can go wrong, as a list of timed episodes: drawn from the seed, written by a scenario, shrunk by leaving some
//! out.

use std::fmt;

/// Which way of a link is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Nothing arrives at the first end.
    In,
    /// Nothing leaves the first end.
    Out,
    /// Both.
    Both,
}

/// How a BMC, or an outlet, misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BmcFault {
    /// It takes the connection and never answers.
    Hang,
    /// It answers so many milliseconds late, and obeys as late.
    Slow(u64),
    /// It refuses orders (HTTP 409).
    Conflict,
    /// It answers 503 to everything.
    Busy,
    /// It accepts orders and does nothing.
    Ignores,
    /// It says off, whatever is true, and has the right identity: outside of what anybody can survive.
    LiesOff,
    /// It is another machine's.
    Wrong,
    /// It restarts: no route to it for a while.
    Reboots,
}

/// One thing that goes wrong. Numbers are places in the run's plan: hosts and replicas from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are what their names say: whom it hits, and how hard")]
pub enum Fault {
    /// So many of a thousand datagrams are lost; streams are slowed down instead.
    Loss(u32),
    /// So many of a thousand datagrams come twice.
    Duplicate(u32),
    /// With so many of a thousand datagrams an old one comes again.
    Replay(u32),
    /// With so many of a thousand datagrams a forged one comes along.
    Forge(u32),
    /// So many of a thousand datagrams, and of the messages between replicas, come once more, seconds late.
    Straggle(u32),
    /// Datagrams are late by anything up to so many milliseconds, so they overtake each other.
    Reorder(u64),
    /// Everything is late by so many milliseconds.
    Delay(u64),
    /// A host is cut off from everybody.
    HostCut { host: usize },
    /// A host is cut off from all replicas, not from its neighbours.
    HostFromReplicas { host: usize, way: Way },
    /// A host is cut off from one replica.
    HostFromReplica { host: usize, replica: usize, way: Way },
    /// A host is cut off from its neighbours, not from the replicas.
    HostFromNeighbours { host: usize },
    /// A switch cuts all hosts from all replicas.
    SwitchCut,
    /// A replica is cut off from everybody.
    ReplicaCut { replica: usize },
    /// A replica hears no host, but the other replicas.
    ReplicaDeaf { replica: usize },
    /// Two replicas can't reach each other.
    ReplicaPair { replica: usize, other: usize, way: Way },
    /// A replica reaches no BMC.
    BmcNetCut { replica: usize },
    /// A replica's process stops and goes on.
    ReplicaPause { replica: usize },
    /// A replica's process dies; with `power` what it had not synced is lost or torn.
    ReplicaCrash { replica: usize, power: bool },
    /// A replica dies at one of its next writes.
    ReplicaCrashAtWrite { replica: usize, after: u64, power: bool },
    /// A replica's threads hear of each other so many milliseconds late.
    ReplicaSlowThreads { replica: usize, ms: u64 },
    /// All replicas are dead.
    AllReplicasDown,
    /// A sync of a replica's disk fails.
    FsyncError { replica: usize },
    /// A replica's disk is full.
    DiskFull { replica: usize },
    /// Each sync of a replica takes so many milliseconds.
    SlowDisk { replica: usize, ms: u64 },
    /// What was safe on a stopped replica's disk is altered; it is replaced by a new one.
    DiskCorrupt { replica: usize },
    /// Something that was written to a stopped replica's disk is found at another place of it, over what was there; it
    /// is replaced by a new one.
    DiskMisdirect { replica: usize },
    /// A replica is replaced by a new one.
    ReplicaReplace { replica: usize },
    /// A replica's wall clock jumps by so many milliseconds.
    WallJump { replica: usize, ms: i64 },
    /// The lead is handed over.
    LeaderMove { replica: usize },
    /// An agent's process stops and goes on; its VMs run meanwhile.
    AgentPause { host: usize },
    /// An agent's process dies; VMs run on.
    AgentCrash { host: usize },
    /// An agent dies at one of its next writes, before or after it took effect.
    AgentCrashAtWrite { host: usize, after: u32, written: bool },
    /// Orders that were once sent to a host's agents come again, so many of a thousand times that it looks after its
    /// watchdog.
    OldOrders { host: usize, permille: u32 },
    /// An agent's disk takes nothing.
    AgentDiskFull { host: usize },
    /// An agent says goodbye and is restarted.
    AgentUpgrade { host: usize },
    /// A host shuts down in an orderly way, and comes back when the episode ends.
    HostShutdown { host: usize },
    /// The same, but the shutdown is called off: the agent comes back in the same boot.
    ShutdownCalledOff { host: usize },
    /// A host loses its power; its BMC does not. It comes back when the episode ends.
    PowerCut { host: usize },
    /// A host and its BMC lose their power together.
    MainsCut { host: usize },
    /// All hosts of a fault domain, with their BMCs.
    RackCut { level: usize, domain: String },
    /// A host resets itself.
    HostReset { host: usize },
    /// A host comes and goes.
    Flap { host: usize },
    /// A clone of a host, from a copy of its disk: it boots with the same name and certificate, and lives beside it.
    /// Its number is behind those of all hosts that are declared.
    Twin { twin: usize },
    /// A VM ends by itself.
    VmCrash { vm: usize },
    /// A host's hypervisor fails so many starts.
    StartFails { host: usize },
    /// A host's hypervisor can't stop a VM.
    StopStuck { host: usize },
    /// A BMC, or an outlet, misbehaves.
    Bmc { host: usize, level: usize, method: usize, how: BmcFault },
    /// An operator has a host fenced.
    OperatorFence { host: usize },
    /// An operator stops automatic action until the episode ends.
    OperatorPause,
    /// An operator vouches for the death of a host, if it is dead.
    OperatorConfirm { host: usize },
    /// An operator changes the policy; the number says how.
    OperatorPolicy { how: u64 },
    /// An operator changes the inventory; the number says how.
    OperatorInventory { how: u64 },
}

/// A fault, from when, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Episode {
    /// When it begins.
    pub at_ms: u64,
    /// How long it lasts; `u64::MAX`: to the end.
    pub for_ms: u64,
    /// What.
    pub fault: Fault,
}

impl Fault {
    /// The names of all kinds.
    pub const KINDS: [&'static str; 61] = [
        "loss",
        "duplicate",
        "replay",
        "forge",
        "straggle",
        "reorder",
        "delay",
        "host-cut",
        "host-from-replicas",
        "host-from-replica",
        "host-from-neighbours",
        "switch-cut",
        "replica-cut",
        "replica-deaf",
        "replica-pair",
        "bmc-net-cut",
        "replica-pause",
        "replica-crash",
        "replica-power-cut",
        "replica-crash-at-write",
        "replica-power-cut-at-write",
        "replica-slow-threads",
        "all-replicas-down",
        "fsync-error",
        "disk-full",
        "slow-disk",
        "disk-corrupt",
        "disk-misdirect",
        "replica-replace",
        "wall-jump",
        "leader-move",
        "agent-pause",
        "agent-crash",
        "agent-crash-at-write",
        "old-orders",
        "agent-disk-full",
        "agent-upgrade",
        "host-shutdown",
        "shutdown-called-off",
        "power-cut",
        "mains-cut",
        "rack-cut",
        "host-reset",
        "flap",
        "twin",
        "vm-crash",
        "start-fails",
        "stop-stuck",
        "bmc-hang",
        "bmc-slow",
        "bmc-conflict",
        "bmc-busy",
        "bmc-ignores",
        "bmc-lies-off",
        "bmc-wrong",
        "bmc-reboots",
        "operator-fence",
        "operator-pause",
        "operator-confirm",
        "operator-policy",
        "operator-inventory",
    ];

    /// Kinds that the profile `full` does not draw.
    pub const ELSEWHERE: [&'static str; 4] = ["straggle", "old-orders", "disk-misdirect", "twin"];

    /// The name of its kind.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Loss(_) => "loss",
            Self::Duplicate(_) => "duplicate",
            Self::Replay(_) => "replay",
            Self::Forge(_) => "forge",
            Self::Straggle(_) => "straggle",
            Self::Reorder(_) => "reorder",
            Self::Delay(_) => "delay",
            Self::HostCut { .. } => "host-cut",
            Self::HostFromReplicas { .. } => "host-from-replicas",
            Self::HostFromReplica { .. } => "host-from-replica",
            Self::HostFromNeighbours { .. } => "host-from-neighbours",
            Self::SwitchCut => "switch-cut",
            Self::ReplicaCut { .. } => "replica-cut",
            Self::ReplicaDeaf { .. } => "replica-deaf",
            Self::ReplicaPair { .. } => "replica-pair",
            Self::BmcNetCut { .. } => "bmc-net-cut",
            Self::ReplicaPause { .. } => "replica-pause",
            Self::ReplicaCrash { power: false, .. } => "replica-crash",
            Self::ReplicaCrash { power: true, .. } => "replica-power-cut",
            Self::ReplicaCrashAtWrite { power: false, .. } => "replica-crash-at-write",
            Self::ReplicaCrashAtWrite { power: true, .. } => "replica-power-cut-at-write",
            Self::ReplicaSlowThreads { .. } => "replica-slow-threads",
            Self::AllReplicasDown => "all-replicas-down",
            Self::FsyncError { .. } => "fsync-error",
            Self::DiskFull { .. } => "disk-full",
            Self::SlowDisk { .. } => "slow-disk",
            Self::DiskCorrupt { .. } => "disk-corrupt",
            Self::DiskMisdirect { .. } => "disk-misdirect",
            Self::ReplicaReplace { .. } => "replica-replace",
            Self::WallJump { .. } => "wall-jump",
            Self::LeaderMove { .. } => "leader-move",
            Self::AgentPause { .. } => "agent-pause",
            Self::AgentCrash { .. } => "agent-crash",
            Self::AgentCrashAtWrite { .. } => "agent-crash-at-write",
            Self::OldOrders { .. } => "old-orders",
            Self::AgentDiskFull { .. } => "agent-disk-full",
            Self::AgentUpgrade { .. } => "agent-upgrade",
            Self::HostShutdown { .. } => "host-shutdown",
            Self::ShutdownCalledOff { .. } => "shutdown-called-off",
            Self::PowerCut { .. } => "power-cut",
            Self::MainsCut { .. } => "mains-cut",
            Self::RackCut { .. } => "rack-cut",
            Self::HostReset { .. } => "host-reset",
            Self::Flap { .. } => "flap",
            Self::Twin { .. } => "twin",
            Self::VmCrash { .. } => "vm-crash",
            Self::StartFails { .. } => "start-fails",
            Self::StopStuck { .. } => "stop-stuck",
            Self::Bmc { how, .. } => match how {
                BmcFault::Hang => "bmc-hang",
                BmcFault::Slow(_) => "bmc-slow",
                BmcFault::Conflict => "bmc-conflict",
                BmcFault::Busy => "bmc-busy",
                BmcFault::Ignores => "bmc-ignores",
                BmcFault::LiesOff => "bmc-lies-off",
                BmcFault::Wrong => "bmc-wrong",
                BmcFault::Reboots => "bmc-reboots",
            },
            Self::OperatorFence { .. } => "operator-fence",
            Self::OperatorPause => "operator-pause",
            Self::OperatorConfirm { .. } => "operator-confirm",
            Self::OperatorPolicy { .. } => "operator-policy",
            Self::OperatorInventory { .. } => "operator-inventory",
        }
    }
}

impl fmt::Display for Episode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>7}  {}", self.at_ms, self.fault.kind())?;
        let text = format!("{:?}", self.fault);
        let detail =
            text.split_once(['{', '(']).map_or("", |(_, rest)| rest.trim_end_matches(['}', ')', ' ']));
        if !detail.is_empty() {
            write!(f, " [{}]", detail.trim())?;
        }
        match self.for_ms {
            u64::MAX => f.write_str(" to the end"),
            0 => Ok(()),
            span => write!(f, " for {span} ms"),
        }
    }
}
