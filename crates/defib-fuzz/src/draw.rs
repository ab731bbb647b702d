//! Draws words of the model from a fuzzer's bytes: mostly such as make sense now, so that stories get far, and now and
//! then such as make none.

use std::collections::{BTreeMap, BTreeSet};

use arbitrary::{Result, Unstructured};
use defib_engine::{
    ledger::{Ledger, Place},
    placement::PlanOptions,
};
use defib_model::{
    BootId, ClusterTime, ClusterVersion, Command, EffectId, Epoch, EventSeq, GroupId, HostId, HostNote,
    Incarnation, Inventory, LogIndex, Millis, Opinion, Policy, RecoveryId, ReplicaId, Resources, SinkId,
    Subject, VmCondition, VmId, VmNote,
    command::{
        AgentReport, BmcWord, Document, ExpiryVote, FenceResult, Goodbye, LifeSign, Operator, OpinionChange,
        Placement, PowerOffReading, StartResult, StoreRevision, Unplaced, VmReport, Witnessed,
    },
    inventory::{
        Definition, FaultDomain, FenceMethod, FencingLevel, Group, Host, Priority, Readiness, RedfishTarget,
        SelfFence, SpreadRule, Vm,
    },
};

use crate::seeds::Dice;

const HOSTS: u8 = 6;
const VMS: u8 = 10;
/// One more than there are, so that strangers speak too.
const STRANGERS: u8 = 1;

pub(crate) fn host_named(number: u8) -> HostId {
    HostId::new(&format!("h{number}")).expect("a name")
}

fn vm_named(number: u8) -> VmId {
    VmId::new(&format!("v{number}")).expect("a name")
}

pub(crate) fn host(u: &mut Unstructured<'_>) -> Result<HostId> {
    Ok(host_named(u.int_in_range(1..=HOSTS + STRANGERS)?))
}

pub(crate) fn vm(u: &mut Unstructured<'_>) -> Result<VmId> {
    Ok(vm_named(u.int_in_range(1..=VMS + STRANGERS)?))
}

pub(crate) fn replica(u: &mut Unstructured<'_>) -> Result<ReplicaId> {
    Ok(ReplicaId(u.int_in_range(1..=4)?))
}

/// True once in so many times.
pub(crate) fn one_in(u: &mut Unstructured<'_>, times: u8) -> Result<bool> {
    Ok(u.int_in_range(1..=times)? == 1)
}

/// What is right, or once in a while what is next to it, or anything.
fn near(u: &mut Unstructured<'_>, right: u64) -> Result<u64> {
    Ok(match u.int_in_range(0..=23_u8)? {
        0 => right.saturating_add(1),
        1 => right.saturating_sub(1),
        2 => u.arbitrary()?,
        _ => right,
    })
}

fn boot(u: &mut Unstructured<'_>) -> Result<BootId> {
    Ok(BootId(u.int_in_range(1..=3)?))
}

pub(crate) fn readiness(u: &mut Unstructured<'_>) -> Result<Option<Readiness>> {
    let all = [
        None,
        Some(Readiness::Placed),
        Some(Readiness::PoweredOn),
        Some(Readiness::GuestAgent),
        Some(Readiness::NodeReady),
    ];
    u.choose(&all).copied()
}

/// A span of time: short, long or absurd.
pub(crate) fn span(u: &mut Unstructured<'_>) -> Result<Millis> {
    Ok(Millis(match u.int_in_range(0..=7_u8)? {
        0 => u.arbitrary()?,
        1 => 0,
        2 => u.int_in_range(0..=10_000_000)?,
        _ => u.int_in_range(0..=20_000)?,
    }))
}

fn amount(u: &mut Unstructured<'_>, usual: u64) -> Result<u64> {
    Ok(if one_in(u, 24)? { u.arbitrary()? } else { u.int_in_range(0..=usual)? })
}

fn resources(u: &mut Unstructured<'_>, cpu: u64, memory: u64) -> Result<Resources> {
    let mut resources = Resources::new(amount(u, cpu)?, amount(u, memory)?);
    if one_in(u, 4)? {
        resources.named.insert("gpu".into(), amount(u, 4)?);
    }
    Ok(resources)
}

fn labels(u: &mut Unstructured<'_>, times: u8) -> Result<BTreeSet<String>> {
    let mut labels = BTreeSet::new();
    for label in ["cpu-v3", "ssd"] {
        if one_in(u, times)? {
            labels.insert(label.to_owned());
        }
    }
    Ok(labels)
}

pub(crate) fn uuid(host: &HostId) -> String {
    format!("00000000-0000-4000-8000-0000000000{host}")
}

fn fencing(u: &mut Unstructured<'_>, host: &HostId) -> Result<Vec<FencingLevel>> {
    let method = |system: Option<String>| {
        FenceMethod::Redfish(RedfishTarget {
            address: "https://127.0.0.1".into(),
            uuid: Some(uuid(host)),
            serial: None,
            system,
            pin: None,
            credentials: "env:BMC".into(),
            events: Default::default(),
        })
    };
    let levels = u.int_in_range(0..=2_usize)?;
    (0..levels)
        .map(|_| {
            let methods = u.int_in_range(1..=2_usize)?;
            Ok(FencingLevel((0..methods).map(|at| method(Some(format!("/{at}")))).collect()))
        })
        .collect()
}

/// An inventory that is often, not always, valid.
pub(crate) fn inventory(u: &mut Unstructured<'_>) -> Result<Inventory> {
    let levels: Vec<String> =
        ["zone", "rack"].into_iter().take(u.int_in_range(0..=2)?).map(Into::into).collect();
    let mut hosts = BTreeMap::new();
    for number in 1..=u.int_in_range(0..=HOSTS)? {
        let id = host_named(number);
        let mut domain = Vec::new();
        for level in &levels {
            domain.push(format!("{level}{}", u.int_in_range(1..=3_u8)?));
        }
        if one_in(u, 64)? {
            domain.push("deeper".into());
        }
        let self_fence = *u.choose(&[SelfFence::None, SelfFence::Watchdog, SelfFence::Trusted])?;
        let host = Host {
            id: id.clone(),
            domain: FaultDomain(domain),
            capacity: resources(u, 16_000, 65_536)?,
            labels: labels(u, 2)?,
            fencing: fencing(u, &id)?,
            self_fence,
            spare: one_in(u, 5)?,
            neighbour_address: u.arbitrary::<bool>()?.then(|| "127.0.0.1:1".into()),
            kdump_wait: None,
        };
        hosts.insert(id, host);
    }
    let mut vms = BTreeMap::new();
    let number_of_vms = u.int_in_range(0..=VMS)?;
    for number in 1..=number_of_vms {
        let id = vm_named(number);
        let priorities = [
            Priority::Critical,
            Priority::High,
            Priority::Medium,
            Priority::Low,
            Priority::Lowest,
            Priority::Disabled,
        ];
        let mut depends_on = BTreeSet::new();
        if one_in(u, 4)? {
            // Upwards is a cycle sooner or later.
            let other =
                if one_in(u, 16)? { u.int_in_range(1..=number_of_vms)? } else { u.int_in_range(1..=number)? };
            if other != number || one_in(u, 16)? {
                depends_on.insert(vm_named(other));
            }
        }
        let declared = Vm {
            id: id.clone(),
            priority: *u.choose(&priorities)?,
            resources: resources(u, 4_000, 8_192)?,
            requires: labels(u, 8)?,
            depends_on,
            readiness: readiness(u)?.unwrap_or_default(),
            readiness_timeout: if one_in(u, 4)? { Some(span(u)?) } else { None },
            datastore: one_in(u, 3)?.then(|| "ds".into()),
            first_host: if one_in(u, 4)? { Some(host(u)?) } else { None },
            definition: Definition { driver: "process".into(), arguments: vec!["true".into()] },
        };
        vms.insert(id, declared);
    }
    let mut groups = BTreeMap::new();
    for name in ["cp", "etcd"] {
        if !one_in(u, 3)? {
            continue;
        }
        let id = GroupId::new(name).expect("a name");
        let mut members = BTreeSet::new();
        for _ in 0..u.int_in_range(0..=4_u8)? {
            members.insert(vm_named(u.int_in_range(1..=number_of_vms.max(1))?));
        }
        let mut rules = Vec::new();
        for _ in 0..u.int_in_range(0..=2_u8)? {
            let deepest = levels.len() + usize::from(one_in(u, 32)?);
            rules.push(SpreadRule {
                level: u.int_in_range(0..=deepest)?,
                limit: u.int_in_range(0..=3)?,
                hard: u.arbitrary()?,
            });
        }
        groups.insert(id.clone(), Group { id, members, rules });
    }
    Ok(Inventory { levels, hosts, vms, groups })
}

/// A policy that is often, not always, valid.
pub(crate) fn policy(u: &mut Unstructured<'_>) -> Result<Policy> {
    let mut policy = if u.arbitrary()? { Policy::fast() } else { Policy::default() };
    for _ in 0..u.int_in_range(0..=4_u8)? {
        let span = span(u)?;
        match u.int_in_range(0..=14_u8)? {
            0 => policy.detection.act_after = span,
            1 => policy.detection.act_after_max = span,
            2 => policy.detection.upgrade_grace = span,
            3 => policy.lease.lease = span,
            4 => policy.lease.watchdog = span,
            5 => policy.fencing.retry_pause = span,
            6 => policy.restart.tier_timeout = span,
            7 => policy.restart.start_timeout = span,
            8 => policy.restart.retry_after = span,
            9 => policy.brakes.window = span,
            10 => policy.brakes.hosts = u.int_in_range(0..=6)?,
            11 => policy.brakes.percent = u.int_in_range(0..=101)?,
            12 => policy.brakes.hosts_per_domain = u.int_in_range(0..=6)?,
            13 => policy.restart.attempts = u.int_in_range(0..=3)?,
            _ => policy.lease.drift_ppm = u.arbitrary()?,
        }
    }
    Ok(policy)
}

fn operator(u: &mut Unstructured<'_>) -> Result<Operator> {
    let reason = if u.arbitrary()? { "because" } else { "" };
    Ok(Operator { name: "anna".into(), reason: reason.into() })
}

fn epoch(u: &mut Unstructured<'_>, ledger: &Ledger, host: &HostId) -> Result<Epoch> {
    let right = ledger.hosts().get(host).map_or(0, |record| record.epoch.0);
    near(u, right).map(Epoch)
}

fn session(u: &mut Unstructured<'_>, ledger: &Ledger, observer: ReplicaId) -> Result<u64> {
    let right = ledger.session_of(observer).unwrap_or(1);
    near(u, right)
}

fn recovery(u: &mut Unstructured<'_>, ledger: &Ledger) -> Result<RecoveryId> {
    let open: Vec<RecoveryId> = ledger.open_recoveries().map(|(id, _)| id).collect();
    if open.is_empty() || one_in(u, 24)? {
        return Ok(RecoveryId(u.int_in_range(0..=8)?));
    }
    u.choose(&open).copied()
}

fn readings(
    u: &mut Unstructured<'_>,
    ledger: &Ledger,
    host: &HostId,
    level: usize,
) -> Result<Vec<PowerOffReading>> {
    let methods = ledger
        .inventory()
        .hosts
        .get(host)
        .and_then(|host| host.fencing.get(level))
        .map_or(1, |level| level.0.len());
    let mut readings = Vec::new();
    for method in 0..methods {
        if one_in(u, 16)? {
            continue;
        }
        let identity = if one_in(u, 16)? { "other".into() } else { uuid(host) };
        let least = if one_in(u, 8)? { 0 } else { 2 };
        let reads = u.int_in_range(least..=3)?;
        readings.push(PowerOffReading { level, method, identity, reads });
    }
    Ok(readings)
}

fn vm_reports(u: &mut Unstructured<'_>, ledger: &Ledger, host: &HostId) -> Result<Vec<VmReport>> {
    let mut reports = Vec::new();
    for (id, record) in ledger.vms() {
        let here = record.occupied_host() == Some(host);
        if here != one_in(u, 12)? {
            reports.push(VmReport {
                vm: id.clone(),
                incarnation: Incarnation(near(u, record.incarnation.0)?),
                running: !one_in(u, 3)?,
                readiness: readiness(u)?,
                note: note(u)?,
            });
        }
    }
    if one_in(u, 24)? {
        reports.push(VmReport {
            vm: vm(u)?,
            incarnation: Incarnation(u.arbitrary()?),
            running: u.arbitrary()?,
            readiness: None,
            note: note(u)?,
        });
    }
    Ok(reports)
}

fn host_note(u: &mut Unstructured<'_>, ledger: &Ledger) -> Result<HostNote> {
    let mut note = HostNote::default();
    for vm in ledger.inventory().vms.keys() {
        if one_in(u, 24)? {
            // By its name, since its definition has no UUID.
            note.unprotected.insert("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0".into(), vm.to_string());
        }
    }
    if one_in(u, 8)? {
        note.unreachable.insert("fast".into(), "its pool is not active".into());
    }
    note.machine = u.choose(&[None, Some("here"), Some("there")])?.map(str::to_owned);
    Ok(note)
}

fn note(u: &mut Unstructured<'_>) -> Result<VmNote> {
    if !one_in(u, 8)? {
        return Ok(VmNote::default());
    }
    let condition = *u.choose(&VmCondition::ALL)?;
    Ok(VmNote { condition, detail: String::new(), reboots: u.int_in_range(0..=3)? })
}

/// What the planner would propose, and now and then something else.
fn place(u: &mut Unstructured<'_>, ledger: &Ledger) -> Result<Command> {
    let wanted: Vec<VmId> = ledger.index().waiting.iter().cloned().collect();
    let plan = ledger.index().placer.plan(&wanted, &PlanOptions::default());
    let mut placements = Vec::new();
    for planned in plan.placements {
        if one_in(u, 8)? {
            continue;
        }
        let at = if one_in(u, 8)? { host(u)? } else { planned.host };
        let incarnation = ledger.vms().get(&planned.vm).map_or(0, |record| record.incarnation.next().0);
        placements.push(Placement {
            incarnation: Incarnation(near(u, incarnation)?),
            host_epoch: epoch(u, ledger, &at)?,
            vm: planned.vm,
            host: at,
            because: planned.because.to_string(),
            broken: planned.broken.iter().map(ToString::to_string).collect(),
        });
    }
    if one_in(u, 8)? {
        let (vm, host) = (vm(u)?, host(u)?);
        let (incarnation, host_epoch) = (Incarnation(u.int_in_range(0..=4)?), epoch(u, ledger, &host)?);
        placements.push(Placement {
            vm,
            incarnation,
            host,
            host_epoch,
            because: String::new(),
            broken: Vec::new(),
        });
    }
    let reasons = |exclusions: Vec<defib_engine::placement::Exclusion>| {
        exclusions.iter().map(ToString::to_string).collect()
    };
    let unplaced = plan
        .unplaced
        .into_iter()
        .map(|left| Unplaced { vm: left.vm, reasons: reasons(left.exclusions) })
        .collect();
    Ok(Command::Place { placements, unplaced })
}

/// How many kinds of commands there are; see [`command`].
pub(crate) const KINDS: u8 = 22;

/// A command of this kind that might be proposed when the ledger looks so.
pub(crate) fn command(u: &mut Unstructured<'_>, kind: u8, ledger: &Ledger) -> Result<Command> {
    Ok(match kind % KINDS {
        0 => {
            let observer = replica(u)?;
            Command::ObserverStarted {
                observer,
                session: near(u, ledger.session_of(observer).map_or(1, |held| held + 1))?,
                supports: ClusterVersion(u.int_in_range(1..=3_u32)?),
            }
        }
        1 | 2 => {
            let observer = replica(u)?;
            let mut changes = Vec::new();
            for _ in 0..u.int_in_range(1..=3_u8)? {
                let host = host(u)?;
                let epoch = epoch(u, ledger, &host)?;
                let opinion = *u.choose(&[Opinion::Dead, Opinion::Asks, Opinion::Alive])?;
                changes.push(OpinionChange { host, epoch, opinion, silent_ms: u.arbitrary::<u16>()?.into() });
            }
            Command::Opinions { observer, session: session(u, ledger, observer)?, changes }
        }
        3 => {
            let observer = replica(u)?;
            let host = host(u)?;
            let votes = vec![ExpiryVote {
                epoch: epoch(u, ledger, &host)?,
                electorate: u.int_in_range(0..=ledger.applied().0)?,
                host,
            }];
            Command::LeasesExpired { observer, session: session(u, ledger, observer)?, votes }
        }
        4 => {
            let host = host(u)?;
            let readings = readings(u, ledger, &host, 0)?;
            Command::PowerFoundOff { epoch: epoch(u, ledger, &host)?, host, readings }
        }
        5 => {
            let recovery = recovery(u, ledger)?;
            let last = ledger.recoveries().get(&recovery).and_then(|recovery| recovery.fence.as_ref());
            let next = last.map_or(0, |fence| fence.attempt).saturating_add(1);
            let level = if one_in(u, 32)? { u.arbitrary()? } else { u.int_in_range(0..=2)? };
            let attempt = if one_in(u, 16)? { u.arbitrary()? } else { next };
            Command::FenceIntended { recovery, attempt, level }
        }
        6 => {
            let recovery = recovery(u, ledger)?;
            let held = ledger.recoveries().get(&recovery);
            let fence = held.and_then(|recovery| recovery.fence.as_ref());
            let (attempt, level) = fence.map_or((0, 0), |fence| (fence.attempt, fence.level));
            let detail = "no answer".to_owned();
            let result = match u.int_in_range(0..=5_u8)? {
                0 => FenceResult::StillOn { detail },
                1 => FenceResult::WrongMachine { detail },
                2 => FenceResult::Unknown { detail },
                _ => {
                    let host = held.map_or_else(|| host_named(1), |recovery| recovery.host.clone());
                    FenceResult::Off(readings(u, ledger, &host, level)?)
                }
            };
            Command::FenceEnded { recovery, attempt, result }
        }
        7 => place(u, ledger)?,
        8 | 9 => {
            let intended: Vec<VmId> = ledger
                .vms()
                .iter()
                .filter(|(_, record)| matches!(record.place, Place::Intended { .. }))
                .map(|(id, _)| id.clone())
                .collect();
            let vm = if intended.is_empty() { vm(u)? } else { u.choose(&intended)?.clone() };
            let record = ledger.vms().get(&vm);
            let host = match record.and_then(|record| record.occupied_host()) {
                Some(host) if !one_in(u, 16)? => host.clone(),
                _ => host(u)?,
            };
            let incarnation = Incarnation(near(u, record.map_or(0, |record| record.incarnation.0))?);
            let effect = EffectId { cause: LogIndex(1), subject: Subject::Vm(vm.clone()), attempt: 1 };
            let result = if one_in(u, 3)? {
                StartResult::NotRunning { detail: "it ended".into(), tried: u.arbitrary()? }
            } else {
                StartResult::Running
            };
            Command::StartEnded { effect, vm, incarnation, host, result }
        }
        10 => {
            let host = host(u)?;
            let record = ledger.hosts().get(&host);
            let boot = match record.and_then(|record| record.boot) {
                Some(held) if !one_in(u, 6)? => held,
                _ => boot(u)?,
            };
            let vms = vm_reports(u, ledger, &host)?;
            let epoch = epoch(u, ledger, &host)?;
            let (watchdog_armed, note) = (u.arbitrary()?, host_note(u, ledger)?);
            Command::AgentReported(AgentReport { host, boot, epoch, watchdog_armed, vms, note })
        }
        11 | 12 => {
            let host = host(u)?;
            let vms = vm_reports(u, ledger, &host)?;
            let note = host_note(u, ledger)?;
            Command::Readmit { epoch: epoch(u, ledger, &host)?, host, boot: boot(u)?, vms, note }
        }
        13 => {
            let goodbye = if u.arbitrary()? { Goodbye::Shutdown } else { Goodbye::AgentRestart };
            let host = host(u)?;
            let held = ledger.hosts().get(&host).and_then(|record| record.boot);
            let boot = match held {
                Some(held) if !one_in(u, 6)? => held,
                _ => boot(u)?,
            };
            Command::GoodbyeSaid { epoch: epoch(u, ledger, &host)?, host, boot, goodbye }
        }
        14 => {
            let host = host(u)?;
            let (epoch, operator) = (epoch(u, ledger, &host)?, operator(u)?);
            if u.arbitrary()? {
                Command::ConfirmDead { host, epoch, operator }
            } else {
                Command::FenceHost { host, epoch, operator }
            }
        }
        15 => Command::Pause { paused: one_in(u, 3)?, operator: operator(u)? },
        16 => {
            let replaces = near(u, ledger.policy_version())?;
            Command::SetPolicy { policy: policy(u)?, replaces, operator: operator(u)? }
        }
        17 => {
            let replaces = near(u, ledger.inventory_version())?;
            Command::SetInventory { inventory: inventory(u)?, replaces, operator: operator(u)? }
        }
        18 => match u.int_in_range(0..=6_u8)? {
            0 => {
                let mut voters = BTreeSet::new();
                for _ in 0..u.int_in_range(0..=4_u8)? {
                    voters.insert(replica(u)?);
                }
                Command::ReplicasChanged { voters }
            }
            1 => Command::JoinTokenUsed {
                nonce: u.int_in_range(0..=3_u8)?.to_string(),
                identity: "host/h1".into(),
            },
            number @ (2 | 3) => {
                let document = match number {
                    2 => Document::Policy(policy(u)?),
                    _ => Document::Inventory(inventory(u)?),
                };
                let replaces = near(u, ledger.version_of(document.kind()))?;
                let taken = ledger.document(document.kind()).map_or(0, |record| record.at.revision);
                let at = StoreRevision {
                    store: u.int_in_range(0..=1_u8)?.to_string(),
                    revision: near(u, taken.saturating_add(1))?,
                };
                Command::DocumentRead { document: Box::new(document), replaces, at, operator: operator(u)? }
            }
            5 => Command::ClockCompared { replica: replica(u)?, ahead_ms: i64::from(u.arbitrary::<i32>()?) },
            4 => {
                let sinks: Vec<&SinkId> = ledger.sinks().keys().collect();
                let sink = match sinks.is_empty() {
                    true => SinkId::new("siem").expect("a name"),
                    false => (*u.choose(&sinks)?).clone(),
                };
                let upto = EventSeq(near(u, ledger.events().head().0)?);
                Command::GiveUp { sink, upto, operator: operator(u)? }
            }
            _ => Command::LeaderStarted { term: near(u, ledger.term().saturating_add(1))? },
        },
        19 => {
            let observer = replica(u)?;
            let (host, neighbour) = (host(u)?, host(u)?);
            let sign = match u.int_in_range(0..=2_u8)? {
                0 => LifeSign::Heard,
                1 => LifeSign::Nothing,
                _ => LifeSign::Reached { neighbour },
            };
            let hosts = vec![Witnessed { epoch: epoch(u, ledger, &host)?, host, sign }];
            Command::HostsWitnessed { observer, session: session(u, ledger, observer)?, hosts }
        }
        20 => {
            let word = BmcWord { class: "power-off".into(), more: u.arbitrary()?, ..BmcWord::default() };
            Command::BmcTold { observer: replica(u)?, words: vec![(host(u)?, word)] }
        }
        _ => Command::Tick,
    })
}

/// A cluster time from now on.
pub(crate) fn later(u: &mut Unstructured<'_>, at: ClusterTime) -> Result<ClusterTime> {
    Ok(at.plus(span(u)?))
}

/// Different commands of every kind, the same ones every time.
pub(crate) fn one_of_each() -> Vec<Command> {
    let mut dice = Dice(7);
    let ledger = crate::ledger::seen_hosts();
    let mut commands = Vec::new();
    for kind in 0..KINDS * 2 {
        let bytes: Vec<u8> = (0..512).flat_map(|_| dice.next().to_le_bytes()).collect();
        let command = command(&mut Unstructured::new(&bytes), kind, &ledger).expect("enough bytes");
        if !commands.contains(&command) {
            commands.push(command);
        }
    }
    commands
}
