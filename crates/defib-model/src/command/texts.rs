//! Words of others in commands: whose they are, and that they have an end.

use super::{Command, FenceResult, Operator, PowerOffReading, StartResult, VmReport};
use crate::{
    HostNote,
    text::{cut_all, cut_in_place, cut_to},
};

impl Command {
    /// Who commands it, if it is somebody.
    #[must_use]
    pub const fn operator(&self) -> Option<&Operator> {
        match self {
            Self::LiftQuarantine { operator, .. }
            | Self::ConfirmDead { operator, .. }
            | Self::FenceHost { operator, .. }
            | Self::Pause { operator, .. }
            | Self::SetPolicy { operator, .. }
            | Self::SetInventory { operator, .. }
            | Self::DocumentRead { operator, .. }
            | Self::ReplicasOrdered { operator, .. }
            | Self::GiveUp { operator, .. } => Some(operator),
            Self::ObserverStarted { .. }
            | Self::Opinions { .. }
            | Self::LeasesExpired { .. }
            | Self::HeartbeatsForged { .. }
            | Self::PowerFoundOff { .. }
            | Self::FenceIntended { .. }
            | Self::FenceEnded { .. }
            | Self::FencingTested { .. }
            | Self::Place { .. }
            | Self::StartEnded { .. }
            | Self::AgentReported(_)
            | Self::Readmit { .. }
            | Self::GoodbyeSaid { .. }
            | Self::ReplicasChanged { .. }
            | Self::JoinTokenUsed { .. }
            | Self::LeaderStarted { .. }
            | Self::Delivered { .. }
            | Self::HeadSigned { .. }
            | Self::HostsWitnessed { .. }
            | Self::BmcTold { .. }
            | Self::ClockCompared { .. }
            | Self::Tick => None,
        }
    }

    /// Cuts what BMCs, agents and programs said: see [`crate::text`]. To be called before it is proposed. What
    /// operators say is refused instead, and names are bounded by what takes them.
    pub fn cut_texts(&mut self) {
        match self {
            Self::PowerFoundOff { readings, .. } => cut_readings(readings),
            Self::BmcTold { words, .. } => words.iter_mut().for_each(|(_, word)| {
                let texts = [&mut word.class, &mut word.message_id, &mut word.severity, &mut word.message];
                texts.into_iter().for_each(cut_in_place);
            }),
            Self::FenceEnded { result, .. } => match result {
                FenceResult::Off(readings) => cut_readings(readings),
                FenceResult::StillOn { detail }
                | FenceResult::WrongMachine { detail }
                | FenceResult::Unknown { detail } => cut_in_place(detail),
            },
            Self::FencingTested { tests } => {
                tests.iter_mut().filter_map(|test| test.trouble.as_mut()).for_each(cut_in_place);
            }
            Self::Place { placements, unplaced } => {
                for placement in placements {
                    cut_in_place(&mut placement.because);
                    placement.broken = cut_all(core::mem::take(&mut placement.broken));
                }
                for one in unplaced {
                    one.reasons = cut_all(core::mem::take(&mut one.reasons));
                }
            }
            Self::StartEnded { result, .. } => match result {
                StartResult::NotRunning { detail, .. } => cut_in_place(detail),
                StartResult::Running => {}
            },
            Self::AgentReported(report) => cut_reports(&mut report.vms, &mut report.note),
            Self::Readmit { vms, note, .. } => cut_reports(vms, note),
            Self::ObserverStarted { .. }
            | Self::Opinions { .. }
            | Self::LeasesExpired { .. }
            | Self::HeartbeatsForged { .. }
            | Self::FenceIntended { .. }
            | Self::LiftQuarantine { .. }
            | Self::GoodbyeSaid { .. }
            | Self::ConfirmDead { .. }
            | Self::FenceHost { .. }
            | Self::Pause { .. }
            | Self::SetPolicy { .. }
            | Self::SetInventory { .. }
            | Self::DocumentRead { .. }
            | Self::ReplicasChanged { .. }
            | Self::ReplicasOrdered { .. }
            | Self::JoinTokenUsed { .. }
            | Self::LeaderStarted { .. }
            | Self::Delivered { .. }
            | Self::GiveUp { .. }
            | Self::HeadSigned { .. }
            | Self::HostsWitnessed { .. }
            | Self::ClockCompared { .. }
            | Self::Tick => {}
        }
    }
}

/// Bytes of what a BMC says that it is, at most: a proof holds that of each method of a level.
const IDENTITY_MAX: usize = 256;

fn cut_readings(readings: &mut [PowerOffReading]) {
    for reading in readings {
        reading.identity = cut_to(core::mem::take(&mut reading.identity), IDENTITY_MAX);
    }
}

fn cut_reports(vms: &mut [VmReport], note: &mut HostNote) {
    vms.iter_mut().for_each(|report| cut_in_place(&mut report.note.detail));
    note.unreachable.values_mut().for_each(cut_in_place);
    note.unprotected.values_mut().for_each(cut_in_place);
    note.machine.iter_mut().for_each(cut_in_place);
}

#[cfg(test)]
mod tests {
    use alloc::{string::String, vec, vec::Vec};

    use super::*;
    use crate::{
        BootId, EffectId, Epoch, HostId, Incarnation, LogIndex, RecoveryId, Subject, VmCondition, VmId,
        VmNote,
        command::{AgentReport, FencingTest, Placement, Unplaced},
        text::{LIST_MAX, TEXT_MAX},
    };

    /// One command of each shape in which others have words, with `text` for each of them.
    fn commands(text: &str) -> Vec<Command> {
        let (host, vm) = (HostId::new("h1").unwrap(), VmId::new("v1").unwrap());
        let said = || String::from(text);
        let reading = || PowerOffReading { level: 0, method: 0, identity: said(), reads: 2 };
        let note = HostNote {
            unprotected: [(String::from("uuid"), said())].into(),
            unreachable: [(String::from("fast"), said())].into(),
            machine: Some(said()),
        };
        let report = || VmReport {
            vm: vm.clone(),
            incarnation: Incarnation(1),
            running: false,
            readiness: None,
            note: VmNote { condition: VmCondition::Crashed, detail: said(), reboots: 0 },
        };
        let ended = |result| Command::FenceEnded { recovery: RecoveryId(1), attempt: 1, result };
        let subject = Subject::Vm(vm.clone());
        vec![
            Command::PowerFoundOff { host: host.clone(), epoch: Epoch(1), readings: vec![reading()] },
            ended(FenceResult::Off(vec![reading()])),
            ended(FenceResult::StillOn { detail: said() }),
            ended(FenceResult::WrongMachine { detail: said() }),
            ended(FenceResult::Unknown { detail: said() }),
            Command::FencingTested {
                tests: vec![FencingTest { host: host.clone(), level: 0, method: 0, trouble: Some(said()) }],
            },
            Command::Place {
                placements: vec![Placement {
                    vm: vm.clone(),
                    incarnation: Incarnation(1),
                    host: host.clone(),
                    host_epoch: Epoch(1),
                    because: said(),
                    broken: vec![said(); 9],
                }],
                unplaced: vec![Unplaced { vm: vm.clone(), reasons: vec![said(); 9] }],
            },
            Command::StartEnded {
                effect: EffectId { cause: LogIndex(1), subject, attempt: 1 },
                vm: vm.clone(),
                incarnation: Incarnation(1),
                host: host.clone(),
                result: StartResult::NotRunning { detail: said(), tried: true },
            },
            Command::AgentReported(AgentReport {
                host: host.clone(),
                boot: BootId(1),
                epoch: Epoch(1),
                watchdog_armed: true,
                vms: vec![report()],
                note: note.clone(),
            }),
            Command::Readmit { host, epoch: Epoch(1), boot: BootId(1), vms: vec![report()], note },
        ]
    }

    #[test]
    fn words_of_any_length_get_an_end_before_the_log_has_them_and_short_ones_stay() {
        for mut command in commands("off") {
            let before = command.clone();
            command.cut_texts();
            assert_eq!(command, before);
        }
        for mut command in commands(&"x".repeat(1 << 20)) {
            command.cut_texts();
            let length = serde_json::to_string(&command).unwrap().len();
            assert!(length < 2 * (TEXT_MAX + LIST_MAX) + 1024, "{length}");
            let once = command.clone();
            command.cut_texts();
            assert_eq!(command, once);
        }
    }
}
