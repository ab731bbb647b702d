//! What an event means to a SIEM, before any format: one place that names every kind.
//!
//! Both functions match exhaustively. A new kind does not compile until somebody has said how grave it is, what it is
//! in OCSF and ECS, and whom it is about; all formats follow from that.

use defib_model::{EventKind, HostId, Opinion, ReplicaId, VmCondition, VmId, export::Severity};

/// How what was tried ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It worked, or there was nothing to try.
    Success,
    /// It did not.
    Failure,
    /// It is under way.
    Unknown,
}

impl Outcome {
    /// As ECS, CEF and LEEF have it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Unknown => "unknown",
        }
    }
}

/// Classes of OCSF 1.8.0 that we use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// 1008.
    EventLogActivity,
    /// 2004.
    DetectionFinding,
    /// 2005.
    IncidentFinding,
    /// 3004.
    EntityManagement,
    /// 5019.
    DeviceConfigStateChange,
    /// 6002.
    ApplicationLifecycle,
    /// 6003.
    ApiActivity,
    /// 6008.
    ApplicationError,
    /// 7001.
    RemediationActivity,
}

impl Class {
    /// The class's number; its category is the thousands of it.
    #[must_use]
    pub const fn uid(self) -> u32 {
        match self {
            Self::EventLogActivity => 1008,
            Self::DetectionFinding => 2004,
            Self::IncidentFinding => 2005,
            Self::EntityManagement => 3004,
            Self::DeviceConfigStateChange => 5019,
            Self::ApplicationLifecycle => 6002,
            Self::ApiActivity => 6003,
            Self::ApplicationError => 6008,
            Self::RemediationActivity => 7001,
        }
    }

    /// The class's name.
    #[must_use]
    pub const fn caption(self) -> &'static str {
        match self {
            Self::EventLogActivity => "Event Log Activity",
            Self::DetectionFinding => "Detection Finding",
            Self::IncidentFinding => "Incident Finding",
            Self::EntityManagement => "Entity Management",
            Self::DeviceConfigStateChange => "Device Config State Change",
            Self::ApplicationLifecycle => "Application Lifecycle",
            Self::ApiActivity => "API Activity",
            Self::ApplicationError => "Application Error",
            Self::RemediationActivity => "Remediation Activity",
        }
    }
}

/// What an event is, for formats that classify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The kind's name, as in the native format.
    pub kind: &'static str,
    /// How grave it is.
    pub severity: Severity,
    /// How it ended.
    pub outcome: Outcome,
    /// OCSF: its class.
    pub class: Class,
    /// OCSF: the activity's number in that class, and its name.
    pub activity: (u32, &'static str),
    /// OCSF: the status's number in that class, and its name.
    pub status: (u32, &'static str),
    /// ECS: `event.kind`.
    pub ecs_kind: &'static str,
    /// ECS: `event.category` and `event.type`.
    pub ecs: (&'static [&'static str], &'static [&'static str]),
}

const SUCCESS: (u32, &str) = (1, "Success");
const FAILURE: (u32, &str) = (2, "Failure");
const NEW: (u32, &str) = (1, "New");
const IN_PROGRESS: (u32, &str) = (2, "In Progress");
const RESOLVED: (u32, &str) = (4, "Resolved");
const CLOSED: (u32, &str) = (5, "Closed");
const UNKNOWN: (u32, &str) = (0, "Unknown");

const CREATE: (u32, &str) = (1, "Create");
const UPDATE: (u32, &str) = (2, "Update");
const CLOSE: (u32, &str) = (3, "Close");

const HOST_INFO: (&[&str], &[&str]) = (&["host"], &["info"]);
const HOST_CHANGE: (&[&str], &[&str]) = (&["host"], &["change"]);
const HOST_START: (&[&str], &[&str]) = (&["host"], &["start"]);
const HOST_END: (&[&str], &[&str]) = (&["host"], &["end"]);
const PROCESS_START: (&[&str], &[&str]) = (&["process"], &["start"]);
const PROCESS_END: (&[&str], &[&str]) = (&["process"], &["end"]);
const PROCESS_CHANGE: (&[&str], &[&str]) = (&["process"], &["change"]);
const CONFIGURATION_CHANGE: (&[&str], &[&str]) = (&["configuration"], &["change"]);
const CONFIGURATION_INFO: (&[&str], &[&str]) = (&["configuration"], &["info"]);

impl Facts {
    const fn new(
        kind: &'static str,
        severity: Severity,
        class: Class,
        activity: (u32, &'static str),
    ) -> Self {
        let status = match class {
            Class::DetectionFinding | Class::IncidentFinding => IN_PROGRESS,
            _ => SUCCESS,
        };
        Self {
            kind,
            severity,
            outcome: Outcome::Success,
            class,
            activity,
            status,
            ecs_kind: "event",
            ecs: HOST_INFO,
        }
    }

    const fn ended(mut self, outcome: Outcome, status: (u32, &'static str)) -> Self {
        self.outcome = outcome;
        self.status = status;
        self
    }

    const fn ecs(mut self, ecs: (&'static [&'static str], &'static [&'static str])) -> Self {
        self.ecs = ecs;
        self
    }

    const fn alert(mut self) -> Self {
        self.ecs_kind = "alert";
        self
    }

    /// What `kind` means.
    #[must_use]
    pub const fn of(kind: &EventKind) -> Self {
        use Class as C;
        use Severity::{Critical, High, Informational, Low, Medium};
        match kind {
            EventKind::LeaderStarted { .. } => {
                Self::new("leader-started", Informational, C::ApplicationLifecycle, (3, "Start"))
                    .ecs(PROCESS_START)
            }
            EventKind::ObserverStarted { .. } => {
                Self::new("observer-started", Informational, C::ApplicationLifecycle, (3, "Start"))
                    .ecs(PROCESS_START)
            }
            EventKind::ReplicasChanged { .. } => {
                Self::new("replicas-changed", Medium, C::ApplicationLifecycle, (8, "Update"))
                    .ecs(PROCESS_CHANGE)
            }
            EventKind::OpinionChanged { to: Opinion::Alive, .. } => {
                Self::new("opinion-changed", Informational, C::DetectionFinding, CLOSE)
                    .ended(Outcome::Success, RESOLVED)
            }
            EventKind::OpinionChanged { to: Opinion::Asks, .. } => {
                Self::new("opinion-changed", Low, C::DetectionFinding, CREATE).ended(Outcome::Unknown, NEW)
            }
            EventKind::OpinionChanged { to: Opinion::Dead, .. } => {
                Self::new("opinion-changed", Medium, C::DetectionFinding, UPDATE)
                    .ended(Outcome::Unknown, IN_PROGRESS)
            }
            EventKind::LeaseExpiryVoted { .. } => {
                Self::new("lease-expiry-voted", Medium, C::DetectionFinding, UPDATE)
                    .ended(Outcome::Unknown, IN_PROGRESS)
            }
            EventKind::HostSuspected { .. } => {
                Self::new("host-suspected", Medium, C::DetectionFinding, CREATE)
                    .ended(Outcome::Unknown, NEW)
                    .alert()
            }
            EventKind::HostConfirmed { .. } => {
                Self::new("host-confirmed", High, C::DetectionFinding, UPDATE).ecs(HOST_CHANGE).alert()
            }
            EventKind::RecoveryAbandoned { .. } => {
                Self::new("recovery-abandoned", Low, C::DetectionFinding, CLOSE)
                    .ended(Outcome::Success, RESOLVED)
            }
            EventKind::BrakeEngaged { .. } => {
                Self::new("brake-engaged", Critical, C::IncidentFinding, CREATE)
                    .ended(Outcome::Failure, NEW)
                    .alert()
            }
            EventKind::BrakeReleased { .. } => {
                Self::new("brake-released", Medium, C::IncidentFinding, CLOSE).ended(Outcome::Success, CLOSED)
            }
            EventKind::BrakeOverridden { .. } => {
                Self::new("brake-overridden", Critical, C::IncidentFinding, CLOSE)
                    .ended(Outcome::Success, CLOSED)
                    .alert()
            }
            EventKind::PathDegraded { .. } => Self::new("path-degraded", Medium, C::DetectionFinding, UPDATE)
                .ended(Outcome::Unknown, IN_PROGRESS)
                .alert(),
            EventKind::HeartbeatsForged { .. } => {
                Self::new("heartbeats-forged", High, C::DetectionFinding, CREATE)
                    .ended(Outcome::Failure, NEW)
                    .alert()
            }
            EventKind::BmcTold { .. } => {
                Self::new("bmc-told", Medium, C::DetectionFinding, CREATE).ended(Outcome::Unknown, NEW)
            }
            EventKind::FenceIntended { .. } => {
                Self::new("fence-intended", High, C::RemediationActivity, (1, "Isolate"))
                    .ended(Outcome::Unknown, UNKNOWN)
                    .ecs(HOST_CHANGE)
            }
            EventKind::FenceFailed { .. } => {
                Self::new("fence-failed", High, C::RemediationActivity, (1, "Isolate"))
                    .ended(Outcome::Failure, FAILURE)
                    .ecs(HOST_CHANGE)
                    .alert()
            }
            EventKind::FencingTested { trouble: Some(_), .. } => {
                Self::new("fencing-tested", High, C::DetectionFinding, CREATE)
                    .ended(Outcome::Failure, NEW)
                    .alert()
            }
            EventKind::FencingTested { trouble: None, .. } => {
                Self::new("fencing-tested", Informational, C::DetectionFinding, CLOSE)
                    .ended(Outcome::Success, RESOLVED)
            }
            EventKind::HostUnconfirmed { .. } => {
                Self::new("host-unconfirmed", Critical, C::IncidentFinding, CREATE)
                    .ended(Outcome::Failure, NEW)
                    .alert()
            }
            EventKind::DeathProven { .. } => {
                Self::new("death-proven", High, C::DetectionFinding, UPDATE).ecs(HOST_END).alert()
            }
            EventKind::VmPlaced { from: None, .. } => {
                Self::new("vm-placed", Informational, C::EntityManagement, CREATE).ecs(HOST_CHANGE)
            }
            EventKind::VmPlaced { from: Some(_), .. } => {
                Self::new("vm-placed", Informational, C::EntityManagement, (5, "Move")).ecs(HOST_CHANGE)
            }
            EventKind::VmUnplaced { .. } => Self::new("vm-unplaced", High, C::EntityManagement, (5, "Move"))
                .ended(Outcome::Failure, FAILURE)
                .alert(),
            EventKind::VmRunning { .. } => {
                Self::new("vm-running", Informational, C::EntityManagement, (10, "Activate")).ecs(HOST_START)
            }
            EventKind::VmReady { .. } => {
                Self::new("vm-ready", Informational, C::EntityManagement, (8, "Enable"))
            }
            EventKind::VmDown { .. } => Self::new("vm-down", Medium, C::EntityManagement, (11, "Deactivate"))
                .ended(Outcome::Failure, FAILURE)
                .ecs(HOST_END),
            EventKind::VmConditionChanged { condition: VmCondition::Normal, .. } => {
                Self::new("vm-condition-changed", Informational, C::EntityManagement, (10, "Activate"))
                    .ecs(HOST_CHANGE)
            }
            EventKind::VmConditionChanged { condition, .. } if condition.is_trouble() => {
                Self::new("vm-condition-changed", High, C::EntityManagement, (12, "Suspend"))
                    .ended(Outcome::Failure, FAILURE)
                    .ecs(HOST_CHANGE)
                    .alert()
            }
            EventKind::VmConditionChanged { .. } => {
                Self::new("vm-condition-changed", Low, C::EntityManagement, (12, "Suspend")).ecs(HOST_CHANGE)
            }
            EventKind::VmRebooted { .. } => {
                Self::new("vm-rebooted", Low, C::EntityManagement, (3, "Update")).ecs(HOST_CHANGE)
            }
            EventKind::UnprotectedChanged { runs: true, .. } => {
                Self::new("unprotected-changed", High, C::DetectionFinding, CREATE)
                    .ended(Outcome::Failure, NEW)
                    .alert()
            }
            EventKind::UnprotectedChanged { runs: false, .. } => {
                Self::new("unprotected-changed", Informational, C::DetectionFinding, CLOSE)
                    .ended(Outcome::Success, RESOLVED)
            }
            EventKind::DatastoreChanged { trouble: Some(_), .. } => {
                Self::new("datastore-changed", High, C::DetectionFinding, CREATE)
                    .ended(Outcome::Failure, NEW)
                    .alert()
            }
            EventKind::DatastoreChanged { trouble: None, .. } => {
                Self::new("datastore-changed", Informational, C::DetectionFinding, CLOSE)
                    .ended(Outcome::Success, RESOLVED)
            }
            EventKind::VmGivenUp { .. } => {
                Self::new("vm-given-up", High, C::EntityManagement, (12, "Suspend"))
                    .ended(Outcome::Failure, FAILURE)
                    .alert()
            }
            EventKind::HostRecovered { left: 0, .. } => {
                Self::new("host-recovered", Low, C::DetectionFinding, CLOSE).ended(Outcome::Success, RESOLVED)
            }
            EventKind::HostRecovered { .. } => Self::new("host-recovered", High, C::DetectionFinding, CLOSE)
                .ended(Outcome::Failure, RESOLVED)
                .alert(),
            EventKind::HostReadmitted { .. } => {
                Self::new("host-readmitted", Low, C::DeviceConfigStateChange, (1, "Log")).ecs(HOST_START)
            }
            EventKind::ProofContradicted { .. } => {
                Self::new("proof-contradicted", Critical, C::IncidentFinding, CREATE)
                    .ended(Outcome::Failure, NEW)
                    .alert()
            }
            EventKind::HostQuarantined { .. } => {
                Self::new("host-quarantined", High, C::DeviceConfigStateChange, (1, "Log"))
                    .ecs(HOST_CHANGE)
                    .alert()
            }
            EventKind::GoodbyeSaid { .. } => {
                Self::new("goodbye-said", Informational, C::ApplicationLifecycle, (4, "Stop"))
                    .ecs(PROCESS_END)
            }
            EventKind::WatchdogChanged { armed: true, .. } => {
                Self::new("watchdog-changed", Informational, C::DeviceConfigStateChange, (1, "Log"))
                    .ecs(CONFIGURATION_CHANGE)
            }
            EventKind::WatchdogChanged { armed: false, .. } => {
                Self::new("watchdog-changed", Medium, C::DeviceConfigStateChange, (1, "Log"))
                    .ecs(CONFIGURATION_CHANGE)
            }
            EventKind::OperatorActed { .. } => {
                Self::new("operator-acted", Medium, C::ApiActivity, (3, "Update")).ecs((&["api"], &["admin"]))
            }
            EventKind::PolicyChanged { .. } => {
                Self::new("policy-changed", Low, C::EntityManagement, (3, "Update")).ecs(CONFIGURATION_CHANGE)
            }
            EventKind::InventoryChanged { .. } => {
                Self::new("inventory-changed", Low, C::EntityManagement, (3, "Update"))
                    .ecs(CONFIGURATION_CHANGE)
            }
            EventKind::JoinTokenUsed { .. } => {
                Self::new("join-token-used", Low, C::EntityManagement, (6, "Enroll"))
                    .ecs((&["authentication"], &["start"]))
            }
            EventKind::CommandRefused { .. } => {
                Self::new("command-refused", Low, C::ApplicationError, (1, "General Error"))
                    .ended(Outcome::Failure, FAILURE)
                    .ecs((&["api"], &["denied"]))
            }
            EventKind::SinkGap { .. } => Self::new("sink-gap", High, C::EventLogActivity, (2, "Delete"))
                .ended(Outcome::Failure, FAILURE)
                .ecs((&["configuration"], &["deletion"]))
                .alert(),
            EventKind::HeadSigned { .. } => {
                Self::new("head-signed", Informational, C::EventLogActivity, (99, "Sign"))
                    .ecs(CONFIGURATION_INFO)
            }
            EventKind::ClusterVersionRaised { .. } => {
                Self::new("cluster-version-raised", Low, C::ApplicationLifecycle, (8, "Update"))
                    .ecs(PROCESS_CHANGE)
            }
            EventKind::ClockSetBack { .. } => {
                Self::new("clock-set-back", Medium, C::DeviceConfigStateChange, (1, "Log"))
                    .ecs(CONFIGURATION_CHANGE)
                    .alert()
            }
            EventKind::ClockCompared { ahead_ms: 0, .. } => {
                Self::new("clock-compared", Informational, C::DetectionFinding, CLOSE)
                    .ended(Outcome::Success, RESOLVED)
            }
            EventKind::ClockCompared { .. } => {
                Self::new("clock-compared", Medium, C::DetectionFinding, CREATE)
                    .ended(Outcome::Failure, NEW)
                    .alert()
            }
            EventKind::Disarmed { .. } => Self::new("disarmed", Critical, C::IncidentFinding, CREATE)
                .ended(Outcome::Failure, NEW)
                .alert(),
        }
    }
}

/// Whom an event is about, and who did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Subjects<'a> {
    /// A host.
    pub host: Option<&'a HostId>,
    /// A VM.
    pub vm: Option<&'a VmId>,
    /// A person.
    pub user: Option<&'a str>,
    /// A replica.
    pub replica: Option<ReplicaId>,
}

impl<'a> Subjects<'a> {
    const fn host(host: &'a HostId) -> Self {
        Self { host: Some(host), vm: None, user: None, replica: None }
    }

    const fn vm(vm: &'a VmId, host: Option<&'a HostId>) -> Self {
        Self { host, vm: Some(vm), user: None, replica: None }
    }

    const fn replica(replica: ReplicaId) -> Self {
        Self { host: None, vm: None, user: None, replica: Some(replica) }
    }

    const NOBODY: Self = Self { host: None, vm: None, user: None, replica: None };

    /// Whom `kind` is about.
    #[must_use]
    pub fn of(kind: &'a EventKind) -> Self {
        match kind {
            EventKind::LeaderStarted { leader: replica, .. }
            | EventKind::ClockSetBack { leader: replica, .. }
            | EventKind::ClockCompared { replica, .. }
            | EventKind::ObserverStarted { observer: replica } => Self::replica(*replica),
            EventKind::OpinionChanged { observer, host, .. }
            | EventKind::LeaseExpiryVoted { observer, host, .. }
            | EventKind::PathDegraded { observer, host, .. }
            | EventKind::BmcTold { observer, host, .. }
            | EventKind::HeartbeatsForged { observer, host, .. } => {
                Self { replica: Some(*observer), ..Self::host(host) }
            }
            EventKind::HostSuspected { host }
            | EventKind::HostConfirmed { host, .. }
            | EventKind::RecoveryAbandoned { host, .. }
            | EventKind::BrakeEngaged { host, .. }
            | EventKind::BrakeReleased { host }
            | EventKind::FenceIntended { host, .. }
            | EventKind::FenceFailed { host, .. }
            | EventKind::FencingTested { host, .. }
            | EventKind::HostUnconfirmed { host, .. }
            | EventKind::HostRecovered { host, .. }
            | EventKind::HostReadmitted { host, .. }
            | EventKind::ProofContradicted { host, .. }
            | EventKind::HostQuarantined { host, .. }
            | EventKind::GoodbyeSaid { host, .. }
            | EventKind::DatastoreChanged { host, .. }
            | EventKind::WatchdogChanged { host, .. } => Self::host(host),
            EventKind::BrakeOverridden { host, operator, .. } => {
                Self { user: Some(&operator.name), ..Self::host(host) }
            }
            EventKind::DeathProven { host, proof, .. } => {
                let user = match proof {
                    defib_model::event::ProofKind::OperatorWord { operator, .. } => Some(operator.as_str()),
                    _ => None,
                };
                Self { user, ..Self::host(host) }
            }
            EventKind::VmPlaced { vm, host, .. }
            | EventKind::VmRunning { vm, host, .. }
            | EventKind::VmDown { vm, host, .. }
            | EventKind::VmConditionChanged { vm, host, .. }
            | EventKind::UnprotectedChanged { vm, host, .. }
            | EventKind::VmRebooted { vm, host, .. } => Self::vm(vm, Some(host)),
            EventKind::VmUnplaced { vm, .. }
            | EventKind::VmReady { vm, .. }
            | EventKind::VmGivenUp { vm, .. } => Self::vm(vm, None),
            EventKind::OperatorActed { operator, .. } => Self { user: Some(&operator.name), ..Self::NOBODY },
            EventKind::ReplicasChanged { .. }
            | EventKind::PolicyChanged { .. }
            | EventKind::InventoryChanged { .. }
            | EventKind::JoinTokenUsed { .. }
            | EventKind::CommandRefused { .. }
            | EventKind::ClusterVersionRaised { .. }
            | EventKind::SinkGap { .. }
            | EventKind::HeadSigned { .. }
            | EventKind::Disarmed { .. } => Self::NOBODY,
        }
    }
}
