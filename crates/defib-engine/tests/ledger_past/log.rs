//! A log that one leader writes to, over three hosts and one VM.

use defib_engine::ledger::{Ledger, Place, Standing, invariants};
use defib_model::{
    BootId, ClusterTime, ClusterVersion, Command, Entry, Epoch, Host, HostId, HostNote, Inventory, LogIndex,
    Opinion, ReplicaId, Resources, UnixMillis, Vm, VmId, VmNote,
    command::{
        AgentReport, LifeSign, Operator, OpinionChange, Placement, PowerOffReading, VmReport, Witnessed,
    },
    inventory::{
        Definition, FaultDomain, FenceMethod, FencingLevel, Priority, Readiness, RedfishTarget, SelfFence,
    },
};

pub(crate) const A: BootId = BootId(0xa);
pub(crate) const B: BootId = BootId(0xb);

pub(crate) fn host(name: &str) -> HostId {
    HostId::new(name).unwrap()
}

pub(crate) fn vm(name: &str) -> VmId {
    VmId::new(name).unwrap()
}

pub(crate) fn operator() -> Operator {
    Operator { name: "alice".into(), reason: String::new() }
}

pub(crate) fn declared_host(name: &str) -> Host {
    let target = RedfishTarget {
        address: format!("https://{name}.bmc"),
        uuid: Some(format!("uuid-{name}")),
        serial: None,
        system: None,
        pin: None,
        credentials: "env:BMC".into(),
        events: Default::default(),
    };
    Host {
        id: host(name),
        domain: FaultDomain(vec!["rack-a".into()]),
        capacity: Resources::new(8000, 32 * 1024),
        labels: Default::default(),
        fencing: vec![FencingLevel(vec![FenceMethod::Redfish(target)])],
        self_fence: SelfFence::Trusted,
        spare: false,
        neighbour_address: None,
        kdump_wait: None,
    }
}

pub(crate) fn declared_vm(name: &str) -> Vm {
    Vm {
        id: vm(name),
        priority: Priority::Medium,
        resources: Resources::new(1000, 1024),
        requires: Default::default(),
        depends_on: Default::default(),
        readiness: Readiness::PoweredOn,
        readiness_timeout: None,
        datastore: None,
        first_host: None,
        definition: Definition::default(),
    }
}

pub(crate) fn inventory(hosts: &[&str], vms: &[&str]) -> Inventory {
    Inventory {
        levels: vec!["rack".into()],
        hosts: hosts.iter().map(|name| (host(name), declared_host(name))).collect(),
        vms: vms.iter().map(|name| (vm(name), declared_vm(name))).collect(),
        ..Inventory::default()
    }
}

/// A ledger that one leader writes to.
pub(crate) struct Log {
    pub(crate) ledger: Ledger,
    pub(crate) index: u64,
    pub(crate) at: u64,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self::of_release(ClusterVersion::NEWEST)
    }

    /// Of a cluster whose replicas' release supports this.
    pub(crate) fn of_release(supports: ClusterVersion) -> Self {
        let mut log = Self { ledger: Ledger::new([1, 2, 3].map(ReplicaId).into()), index: 0, at: 1000 };
        log.apply(Command::LeaderStarted { term: 1 });
        for replica in 1..=3 {
            log.apply(Command::ObserverStarted { observer: ReplicaId(replica), session: 1, supports });
        }
        log.inventory(&["h1", "h2", "h3"], &["v"]);
        for name in ["h1", "h2", "h3"] {
            log.readmit(name, A, &[]);
        }
        log
    }

    pub(crate) fn apply(&mut self, command: Command) {
        self.index += 1;
        self.at += 1;
        let entry = Entry { at: ClusterTime(self.at), wall: UnixMillis(0), proposer: ReplicaId(1), command };
        self.ledger.apply(LogIndex(self.index), &entry);
        assert_eq!(self.ledger.disarmed(), None);
        invariants::check(&self.ledger).unwrap();
    }

    pub(crate) fn inventory(&mut self, hosts: &[&str], vms: &[&str]) {
        let replaces = self.ledger.inventory_version();
        self.apply(Command::SetInventory {
            inventory: inventory(hosts, vms),
            replaces,
            operator: operator(),
        });
        assert_eq!(self.ledger.inventory_version(), replaces + 1, "{:?}", self.last_event());
    }

    /// A quorum hears the host, and it is clean.
    pub(crate) fn readmit(&mut self, name: &str, boot: BootId, vms: &[VmReport]) {
        self.opinions(name, Opinion::Alive);
        self.readmit_unheard(name, boot, vms);
    }

    pub(crate) fn readmit_unheard(&mut self, name: &str, boot: BootId, vms: &[VmReport]) {
        let epoch = self.epoch(name);
        self.apply(Command::Readmit {
            host: host(name),
            epoch,
            boot,
            vms: vms.to_vec(),
            note: HostNote::default(),
        });
    }

    pub(crate) fn report(&mut self, name: &str, boot: BootId, vms: &[VmReport]) {
        self.report_noting(name, boot, vms, HostNote::default());
    }

    pub(crate) fn report_noting(&mut self, name: &str, boot: BootId, vms: &[VmReport], note: HostNote) {
        let (host, epoch, vms) = (host(name), self.epoch(name), vms.to_vec());
        self.apply(Command::AgentReported(AgentReport {
            host,
            boot,
            epoch,
            watchdog_armed: false,
            vms,
            note,
        }));
    }

    pub(crate) fn opinions(&mut self, name: &str, opinion: Opinion) {
        for observer in 1..=3 {
            let change =
                OpinionChange { host: host(name), epoch: self.epoch(name), opinion, silent_ms: 1000 };
            let observer = ReplicaId(observer);
            self.apply(Command::Opinions { observer, session: 1, changes: vec![change] });
        }
    }

    pub(crate) fn life_sign(&mut self, observer: u64, name: &str, sign: LifeSign) {
        let hosts = vec![Witnessed { host: host(name), epoch: self.epoch(name), sign }];
        self.apply(Command::HostsWitnessed { observer: ReplicaId(observer), session: 1, hosts });
    }

    pub(crate) fn wait_for_act_after(&mut self) {
        self.at += self.ledger.policy().detection.act_after.0;
        self.apply(Command::Tick);
    }

    pub(crate) fn found_off(&mut self, name: &str) {
        let reading = PowerOffReading { level: 0, method: 0, identity: format!("uuid-{name}"), reads: 2 };
        let epoch = self.epoch(name);
        self.apply(Command::PowerFoundOff { host: host(name), epoch, readings: vec![reading] });
        assert_eq!(self.standing(name), Standing::Dead, "{:?}", self.last_event());
    }

    /// `v` runs on a host.
    pub(crate) fn run(&mut self, name: &str) -> VmReport {
        let incarnation = self.ledger.vms()[&vm("v")].incarnation.next();
        let placement = Placement {
            vm: vm("v"),
            host: host(name),
            host_epoch: self.epoch(name),
            incarnation,
            because: String::new(),
            broken: Vec::new(),
        };
        self.apply(Command::Place { placements: vec![placement], unplaced: Vec::new() });
        let report = VmReport {
            vm: vm("v"),
            incarnation,
            running: true,
            readiness: Some(Readiness::PoweredOn),
            note: VmNote::default(),
        };
        self.report(name, A, std::slice::from_ref(&report));
        assert_eq!(self.place(), Place::Running { host: host(name) }, "{:?}", self.last_event());
        report
    }

    pub(crate) fn epoch(&self, name: &str) -> Epoch {
        self.ledger.hosts()[&host(name)].epoch
    }

    pub(crate) fn standing(&self, name: &str) -> Standing {
        self.ledger.hosts()[&host(name)].standing
    }

    pub(crate) fn place(&self) -> Place {
        self.ledger.vms()[&vm("v")].place.clone()
    }

    pub(crate) fn last_event(&self) -> String {
        let head = self.ledger.events().head();
        self.ledger.events().since(head).next().unwrap().kind.to_string()
    }
}
