//! From what the methods of a level answered to one result: all of them must read off.

use defib_bmc::{BmcError, FenceOutcome, PowerReading};
use defib_model::{
    command::{FenceResult, PowerOffReading},
    inventory::FenceMethod,
};

/// What one method's answer says.
#[derive(Debug)]
pub(crate) enum Judged {
    /// Off, often enough, by the right machine.
    Off(PowerOffReading),
    /// It answered, and the host is on.
    StillOn(String),
    /// The identity is another one.
    WrongMachine(String),
    /// Nothing usable.
    Unknown(String),
}

/// What a method speaks to: one PDU has the outlets of many hosts.
pub(crate) fn device(method: &FenceMethod) -> String {
    match method {
        FenceMethod::Redfish(target) => target.address.clone(),
        FenceMethod::Ipmi(target) => target.address.clone(),
        FenceMethod::FenceAgent(target) => {
            let address = ["ip", "ipaddr"].iter().find_map(|name| target.options.get(*name));
            address.unwrap_or(&target.agent).clone()
        }
    }
}

pub(crate) fn off(readings: &[PowerReading], level: usize, method: usize) -> Judged {
    let identity = readings
        .last()
        .and_then(|reading| {
            let identity = &reading.identity;
            identity.uuid.clone().or_else(|| identity.serial.clone()).or_else(|| identity.outlet.clone())
        })
        .unwrap_or_default();
    let reads = u32::try_from(readings.len()).unwrap_or(u32::MAX);
    Judged::Off(PowerOffReading { level, method, identity, reads })
}

pub(crate) fn judge_error(error: &BmcError) -> Judged {
    if error.identity_problem().is_some() {
        Judged::WrongMachine(error.chain())
    } else {
        Judged::Unknown(error.chain())
    }
}

pub(crate) fn judge(outcome: FenceOutcome, level: usize, method: usize) -> Judged {
    match outcome {
        FenceOutcome::Off { readings, .. } => off(&readings, level, method),
        FenceOutcome::StillOn { last, last_request, requests } => {
            let answer = last_request.map_or_else(String::new, |answer| format!(", last answer: {answer:?}"));
            Judged::StillOn(format!("its BMC reads {last:?} after {requests} requests to power off{answer}"))
        }
        FenceOutcome::Unreachable { cause, requests } => {
            Judged::Unknown(format!("{} ({requests} requests to power off were sent)", cause.chain()))
        }
        FenceOutcome::IdentityMismatch { cause, .. } => Judged::WrongMachine(cause.chain()),
        FenceOutcome::Refused { cause, requests } => {
            Judged::Unknown(format!("{} ({requests} requests to power off were sent)", cause.chain()))
        }
        FenceOutcome::Revoked { requests } => Judged::Unknown(format!(
            "this replica does not lead any more; it stopped after {requests} requests to power off"
        )),
    }
}

/// Every method must have read off; the gravest of the other answers decides.
pub(crate) fn combine(answers: Vec<Result<Judged, String>>) -> FenceResult {
    let mut readings = Vec::with_capacity(answers.len());
    let (mut wrong, mut on, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    for answer in answers {
        match answer {
            Ok(Judged::Off(reading)) => readings.push(reading),
            Ok(Judged::WrongMachine(detail)) => wrong.push(detail),
            Ok(Judged::StillOn(detail)) => on.push(detail),
            Ok(Judged::Unknown(detail)) | Err(detail) => unknown.push(detail),
        }
    }
    if !wrong.is_empty() {
        FenceResult::WrongMachine { detail: wrong.join("; ") }
    } else if !on.is_empty() {
        FenceResult::StillOn { detail: on.join("; ") }
    } else if !unknown.is_empty() || readings.is_empty() {
        FenceResult::Unknown { detail: unknown.join("; ") }
    } else {
        FenceResult::Off(readings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn off(method: usize) -> Result<Judged, String> {
        Ok(Judged::Off(PowerOffReading { level: 0, method, identity: "u".into(), reads: 2 }))
    }

    #[test]
    fn one_method_of_a_level_that_is_not_off_spoils_the_proof() {
        assert!(matches!(combine(vec![off(0), off(1)]), FenceResult::Off(readings) if readings.len() == 2));
        assert!(matches!(
            combine(vec![off(0), Ok(Judged::StillOn("On".into()))]),
            FenceResult::StillOn { .. }
        ));
        assert!(matches!(combine(vec![off(0), Err("no answer".into())]), FenceResult::Unknown { .. }));
        assert!(matches!(
            combine(vec![Err("no answer".into()), Ok(Judged::WrongMachine("x".into()))]),
            FenceResult::WrongMachine { .. }
        ));
    }

    #[test]
    fn no_method_at_all_proves_nothing() {
        assert!(matches!(combine(Vec::new()), FenceResult::Unknown { .. }));
    }
}
