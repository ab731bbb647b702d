//! One level of a host's fencing topology: every method of it must switch off, and then all must read off together.
//!
//! A server with two power supplies on two PDUs runs until both are off, and runs again as soon as one is on. So
//! first every method switches off, and only when all have said so are all of them read, round by round: what
//! proves is a moment at which none had power. Nothing here ever switches on.

use defib_bmc::{PowerOff, PowerReading, WriteGate};
use defib_engine::controller::PowerQuestion;
use defib_model::command::FenceResult;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::{
    Client,
    methods::{self, Judged},
};

/// The clients of a level, or why there is none.
pub(crate) type Clients = [Result<Client, String>];

/// Reads all methods in rounds until enough rounds in a row said off; anything else ends it.
pub(crate) async fn read_off(clients: &Clients, question: &PowerQuestion, deadline: Instant) -> FenceResult {
    let rounds = usize::try_from(question.confirm_reads.max(1)).unwrap_or(usize::MAX);
    let mut readings: Vec<Vec<PowerReading>> = clients.iter().map(|_| Vec::new()).collect();
    loop {
        let round = join_all(clients.iter().map(|client| read_one(client, question, deadline))).await;
        let mut others = Vec::new();
        for (held, answer) in readings.iter_mut().zip(round) {
            match answer {
                Ok(reading) => held.push(reading),
                Err(other) => others.push(other),
            }
        }
        if !others.is_empty() || clients.is_empty() {
            return methods::combine(others);
        }
        if readings.iter().all(|held| held.len() >= rounds) {
            let off = readings.iter().enumerate();
            return methods::combine(
                off.map(|(number, held)| Ok(methods::off(held, question.level, number))).collect(),
            );
        }
        sleep_until(after(question)).await;
    }
}

/// One reading of off; anything else as it is judged.
async fn read_one(
    client: &Result<Client, String>,
    question: &PowerQuestion,
    deadline: Instant,
) -> Result<PowerReading, Result<Judged, String>> {
    let client = client.as_ref().map_err(|why| Err(why.clone()))?;
    match timeout_at(deadline, client.read_power(deadline)).await {
        Ok(Ok(reading)) if reading.is_off() => Ok(reading),
        Ok(Ok(reading)) => Err(Ok(Judged::StillOn(format!("{} reads {}", reading.system, reading.state)))),
        Ok(Err(error)) => Err(Ok(methods::judge_error(&error))),
        Err(_) => Err(Err(format!("host {}: no answer in time", question.host))),
    }
}

/// Switches off by every method, and then reads all of them.
pub(crate) async fn power_off(
    clients: &Clients,
    question: &PowerQuestion,
    gate: &dyn WriteGate,
    deadline: Instant,
) -> FenceResult {
    let each = clients.iter().enumerate().map(|(number, client)| async move {
        let client = client.as_ref().map_err(Clone::clone)?;
        let order = PowerOff {
            confirm_reads: question.confirm_reads,
            spacing: question.confirm_spacing.to_duration(),
            deadline,
            gate,
        };
        Ok(methods::judge(client.power_off_and_confirm(order).await, question.level, number))
    });
    let result = methods::combine(join_all(each).await);
    match result {
        FenceResult::Off(_) if clients.len() > 1 => read_off(clients, question, deadline).await,
        result => result,
    }
}

fn after(question: &PowerQuestion) -> Instant {
    Instant::now() + question.confirm_spacing.to_duration()
}
