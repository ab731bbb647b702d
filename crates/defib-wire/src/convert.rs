//! Between the messages and the model: total in both directions, never a panic.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use defib_model::{
    BootId, EffectId, Epoch, HostId, HostNote, Incarnation, InvalidName, Inventory, LogIndex, Policy,
    ReplicaId, Subject, VmCondition, VmId, VmNote,
    command::{AgentReport, Goodbye, VmReport},
    inventory::{Definition, Readiness, significant},
    text::cut_to,
};

use crate::{WireError, v1};

fn name<T>(field: &'static str, parsed: Result<T, InvalidName>) -> Result<T, WireError> {
    parsed.map_err(|error| WireError::new(field, error.to_string()))
}

impl From<&EffectId> for v1::EffectId {
    fn from(effect: &EffectId) -> Self {
        let subject = match &effect.subject {
            Subject::Host(host) => v1::effect_id::Subject::Host(host.to_string()),
            Subject::Vm(vm) => v1::effect_id::Subject::Vm(vm.to_string()),
        };
        Self { cause: effect.cause.0, subject: Some(subject), attempt: effect.attempt }
    }
}

impl TryFrom<v1::EffectId> for EffectId {
    type Error = WireError;
    fn try_from(effect: v1::EffectId) -> Result<Self, WireError> {
        let subject = match effect.subject.ok_or_else(|| WireError::missing("effect.subject"))? {
            v1::effect_id::Subject::Host(host) => Subject::Host(name("effect.host", HostId::new(&host))?),
            v1::effect_id::Subject::Vm(vm) => Subject::Vm(name("effect.vm", VmId::new(&vm))?),
        };
        Ok(Self { cause: LogIndex(effect.cause), subject, attempt: effect.attempt })
    }
}

impl v1::AgentPolicy {
    /// What agents must know of a policy.
    #[must_use]
    pub fn of(policy: &Policy, version: u64) -> Self {
        Self {
            heartbeat_interval_ms: policy.detection.heartbeat_interval.0,
            lease_ms: policy.lease.lease.0,
            watchdog_ms: policy.lease.watchdog.0,
            answer_freshness_ms: policy.lease.answer_freshness.0,
            drift_ppm: policy.lease.drift_ppm,
            version,
        }
    }
}

impl v1::Electorate {
    /// The electorate `version` of `members`: who may be asked, and whose promises count.
    #[must_use]
    pub fn of(
        version: u64,
        members: &BTreeSet<HostId>,
        inventory: &Inventory,
        voters: &BTreeSet<ReplicaId>,
    ) -> Self {
        let declared = members.iter().filter_map(|host| inventory.hosts.get(host));
        let hosts = declared.map(|host| v1::ElectorateHost {
            host: host.id.to_string(),
            neighbour_address: host.neighbour_address.clone().unwrap_or_default(),
            domain: host.domain.0.clone(),
        });
        let (hosts, replicas) = (hosts.collect(), voters.iter().map(|voter| voter.0).collect());
        Self { version, hosts, replicas }
    }
}

impl From<&Definition> for v1::Definition {
    fn from(definition: &Definition) -> Self {
        Self { driver: definition.driver.clone(), arguments: definition.arguments.clone() }
    }
}

impl From<v1::Definition> for Definition {
    fn from(definition: v1::Definition) -> Self {
        Self { driver: definition.driver, arguments: definition.arguments }
    }
}

impl From<Readiness> for v1::Readiness {
    fn from(readiness: Readiness) -> Self {
        match readiness {
            Readiness::Placed => Self::Placed,
            Readiness::PoweredOn => Self::PoweredOn,
            Readiness::GuestAgent => Self::GuestAgent,
            Readiness::NodeReady => Self::NodeReady,
        }
    }
}

/// A readiness as a message has it; `Unspecified` is none.
///
/// # Errors
/// When it is one that this release does not know.
pub fn readiness(value: i32) -> Result<Option<Readiness>, WireError> {
    match v1::Readiness::try_from(value) {
        Ok(v1::Readiness::Unspecified) => Ok(None),
        Ok(v1::Readiness::Placed) => Ok(Some(Readiness::Placed)),
        Ok(v1::Readiness::PoweredOn) => Ok(Some(Readiness::PoweredOn)),
        Ok(v1::Readiness::GuestAgent) => Ok(Some(Readiness::GuestAgent)),
        Ok(v1::Readiness::NodeReady) => Ok(Some(Readiness::NodeReady)),
        Err(error) => Err(WireError::new("readiness", error.to_string())),
    }
}

impl From<VmCondition> for v1::VmCondition {
    fn from(condition: VmCondition) -> Self {
        match condition {
            VmCondition::Normal => Self::Unspecified,
            VmCondition::Paused => Self::Paused,
            VmCondition::IoError => Self::IoError,
            VmCondition::Crashed => Self::Crashed,
            VmCondition::Suspended => Self::Suspended,
            VmCondition::MovedAway => Self::MovedAway,
            VmCondition::Other => Self::Other,
        }
    }
}

/// A condition as a message has it. No decision hangs on it, so one of a newer release is only another one.
fn condition(value: i32) -> VmCondition {
    match v1::VmCondition::try_from(value) {
        Ok(v1::VmCondition::Unspecified) => VmCondition::Normal,
        Ok(v1::VmCondition::Paused) => VmCondition::Paused,
        Ok(v1::VmCondition::IoError) => VmCondition::IoError,
        Ok(v1::VmCondition::Crashed) => VmCondition::Crashed,
        Ok(v1::VmCondition::Suspended) => VmCondition::Suspended,
        Ok(v1::VmCondition::MovedAway) => VmCondition::MovedAway,
        Ok(v1::VmCondition::Other) | Err(_) => VmCondition::Other,
    }
}

/// Bytes of a host's words that go to the log at most.
const WORDS: usize = 300;

fn shortened(text: String) -> String {
    cut_to(text, WORDS)
}

fn shortened_all(words: HashMap<String, String>) -> BTreeMap<String, String> {
    words.into_iter().map(|(what, word)| (shortened(what), shortened(word))).collect()
}

impl From<&VmReport> for v1::VmReport {
    fn from(report: &VmReport) -> Self {
        Self {
            vm: report.vm.to_string(),
            incarnation: report.incarnation.0,
            running: report.running,
            readiness: report.readiness.map_or(v1::Readiness::Unspecified, Into::into).into(),
            condition: v1::VmCondition::from(report.note.condition).into(),
            detail: report.note.detail.clone(),
            reboots: report.note.reboots,
        }
    }
}

impl TryFrom<v1::VmReport> for VmReport {
    type Error = WireError;
    fn try_from(report: v1::VmReport) -> Result<Self, WireError> {
        Ok(Self {
            vm: name("vm", VmId::new(&report.vm))?,
            incarnation: Incarnation(report.incarnation),
            running: report.running,
            readiness: readiness(report.readiness)?,
            note: VmNote {
                condition: condition(report.condition),
                detail: shortened(report.detail),
                reboots: report.reboots,
            },
        })
    }
}

impl From<&AgentReport> for v1::AgentReport {
    fn from(report: &AgentReport) -> Self {
        Self {
            host: report.host.to_string(),
            boot_id: report.boot.to_string(),
            epoch: report.epoch.0,
            watchdog_armed: report.watchdog_armed,
            vms: report.vms.iter().map(Into::into).collect(),
            unprotected: report.note.unprotected.clone().into_iter().collect(),
            unreachable: report.note.unreachable.clone().into_iter().collect(),
            machine: report.note.machine.clone().unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::AgentReport> for AgentReport {
    type Error = WireError;
    fn try_from(report: v1::AgentReport) -> Result<Self, WireError> {
        let vms = report
            .vms
            .into_iter()
            .enumerate()
            .map(|(at, vm)| {
                vm.try_into().map_err(|error: WireError| error.within(&format!("report.vms[{at}]")))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            host: name("report.host", HostId::new(&report.host))?,
            boot: name("report.boot_id", BootId::parse(&report.boot_id))?,
            epoch: Epoch(report.epoch),
            watchdog_armed: report.watchdog_armed,
            vms,
            note: HostNote {
                unprotected: shortened_all(report.unprotected),
                unreachable: shortened_all(report.unreachable),
                machine: machine(&report.machine),
            },
        })
    }
}

/// The machine that an agent names, in a comparable form; `None`: it names none.
#[must_use]
pub fn machine(named: &str) -> Option<String> {
    significant(named).map(shortened)
}

impl From<Goodbye> for v1::GoodbyeKind {
    fn from(goodbye: Goodbye) -> Self {
        match goodbye {
            Goodbye::AgentRestart => Self::AgentRestart,
            Goodbye::Shutdown => Self::Shutdown,
        }
    }
}

impl TryFrom<v1::GoodbyeKind> for Goodbye {
    type Error = WireError;
    fn try_from(kind: v1::GoodbyeKind) -> Result<Self, WireError> {
        match kind {
            v1::GoodbyeKind::AgentRestart => Ok(Self::AgentRestart),
            v1::GoodbyeKind::Shutdown => Ok(Self::Shutdown),
            v1::GoodbyeKind::Unspecified => Err(WireError::missing("goodbye.kind")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn report() -> impl Strategy<Value = AgentReport> {
        let readiness = prop_oneof![
            Just(None),
            Just(Some(Readiness::Placed)),
            Just(Some(Readiness::PoweredOn)),
            Just(Some(Readiness::GuestAgent)),
            Just(Some(Readiness::NodeReady))
        ];
        let note = (0..VmCondition::ALL.len(), "[ -~ü]{0,20}", any::<u32>()).prop_map(
            |(condition, detail, reboots)| VmNote { condition: VmCondition::ALL[condition], detail, reboots },
        );
        let vm = ("[a-z][a-z0-9-]{0,20}", any::<u64>(), any::<bool>(), readiness, note).prop_map(
            |(vm, at, running, ready, note)| VmReport {
                vm: VmId::new(&vm).unwrap(),
                incarnation: Incarnation(at),
                running,
                readiness: ready,
                note,
            },
        );
        ("[a-z][a-z0-9-]{0,20}", any::<u128>(), any::<u64>(), any::<bool>(), prop::collection::vec(vm, 0..8))
            .prop_map(|(host, boot, epoch, watchdog_armed, vms)| AgentReport {
                host: HostId::new(&host).unwrap(),
                boot: BootId(boot),
                epoch: Epoch(epoch),
                watchdog_armed,
                note: HostNote {
                    unprotected: vms
                        .iter()
                        .map(|one| (one.incarnation.to_string(), one.vm.to_string()))
                        .collect(),
                    unreachable: vms.iter().map(|one| (one.note.detail.clone(), "gone".into())).collect(),
                    machine: significant(&BootId(boot).to_string()),
                },
                vms,
            })
    }

    proptest! {
        #[test]
        fn a_report_reads_back_as_it_was_written(report in report()) {
            prop_assert_eq!(AgentReport::try_from(v1::AgentReport::from(&report)).unwrap(), report);
        }

        #[test]
        fn any_strings_and_numbers_are_taken_or_refused_without_a_panic(
            host in ".{0,40}", boot in ".{0,40}", vm in ".{0,40}", kind in any::<i32>()
        ) {
            let condition = kind;
            let report = v1::VmReport { vm, running: true, readiness: kind, condition, ..v1::VmReport::default() };
            let vms = vec![report];
            let report = v1::AgentReport { host, boot_id: boot, epoch: 1, vms, ..v1::AgentReport::default() };
            let _ = AgentReport::try_from(report);
        }
    }

    #[test]
    fn a_condition_of_a_newer_release_is_some_other_one_and_words_have_an_end() {
        let said = v1::VmReport {
            vm: "v".into(),
            condition: 4711,
            detail: "ü".repeat(WORDS + 9),
            ..v1::VmReport::default()
        };
        let note = VmReport::try_from(said).unwrap().note;
        assert_eq!(note.condition, VmCondition::Other);
        assert!(note.detail.len() <= WORDS && note.detail.len() + 4 > WORDS, "{}", note.detail);
        assert!(note.detail.ends_with("ü… (cut: 618 bytes)"), "{}", note.detail);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        let vms = vec![v1::VmReport { vm: "a b".into(), ..v1::VmReport::default() }];
        let boot_id = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0".into();
        let report = v1::AgentReport { host: "h".into(), boot_id, vms, ..v1::AgentReport::default() };
        let error = AgentReport::try_from(report).unwrap_err();
        assert!(error.to_string().starts_with("report.vms[0].vm: the name \"a b\""), "{error}");
    }
}
