//! How others reach the loop.

use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError};
use defib_consensus::replica::MembershipChange;
use defib_model::Command;
use tokio::sync::oneshot;

use super::{Message, View};
use crate::proposals::Fate;

/// How soon a full queue is tried again.
const FULL_WAIT: Duration = Duration::from_millis(10);

/// The loop is overloaded or has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this replica has more to do than it can take, or is stopping; try again, or another replica")]
pub struct Overloaded;

/// How others reach the loop.
#[derive(Debug, Clone)]
pub struct Core {
    messages: Sender<Message>,
}

impl Core {
    /// Over the sending end of the loop's queue.
    #[must_use]
    pub const fn new(messages: Sender<Message>) -> Self {
        Self { messages }
    }

    /// Sends without waiting.
    ///
    /// # Errors
    /// When the queue is full or the loop has ended.
    pub fn tell(&self, message: Message) -> Result<(), Overloaded> {
        self.messages.try_send(message).map_err(|error| match error {
            TrySendError::Full(_) | TrySendError::Disconnected(_) => Overloaded,
        })
    }

    /// Sends what must not be lost, and waits while the queue is full. Of one caller all comes in the order in which it
    /// was said. If the loop has ended there is nobody left to tell.
    pub async fn insist(&self, mut message: Message) {
        while let Err(TrySendError::Full(back)) = self.messages.try_send(message) {
            message = back;
            tokio::time::sleep(FULL_WAIT).await;
        }
    }

    /// Asks a question and waits for its answer.
    ///
    /// # Errors
    /// When the loop does not answer.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&View<'_>) -> T + Send + 'static,
    ) -> Result<T, Overloaded> {
        let (sender, receiver) = oneshot::channel();
        self.tell(Message::Query(Box::new(move |view| {
            let _ = sender.send(question(view));
        })))?;
        receiver.await.map_err(|_| Overloaded)
    }

    /// Proposes a command and waits for its fate.
    ///
    /// # Errors
    /// When the loop does not answer.
    pub async fn propose(&self, command: Command) -> Result<Fate, Overloaded> {
        let (waiter, receiver) = oneshot::channel();
        self.tell(Message::Propose { command, waiter })?;
        receiver.await.map_err(|_| Overloaded)
    }

    /// Proposes a change of the replica set and waits for its fate. The membership itself changes a moment later.
    ///
    /// # Errors
    /// When the loop does not answer.
    pub async fn change(&self, change: MembershipChange) -> Result<Fate, Overloaded> {
        let (waiter, receiver) = oneshot::channel();
        self.tell(Message::Change { change, waiter })?;
        receiver.await.map_err(|_| Overloaded)
    }

    /// Whether a majority confirms, now, that this replica's log is current: on a leader, that it still leads.
    pub async fn confirm(&self) -> bool {
        let (waiter, receiver) = oneshot::channel();
        self.tell(Message::Confirm(waiter)).is_ok() && receiver.await.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use defib_engine::controller::Input;
    use defib_model::HostId;

    use super::*;

    fn left(host: &str) -> Message {
        Message::Input(Input::AgentLeft(HostId::new(host).expect("a good name")))
    }

    /// A session that ended while the loop had much to do, and was never told of, would get orders for ever.
    #[tokio::test]
    async fn what_must_not_be_lost_waits_for_room_and_nothing_waits_for_a_loop_that_has_ended() {
        let (messages, queue) = crossbeam_channel::bounded(1);
        let core = Core::new(messages);
        core.tell(left("h1")).expect("there is room");
        assert_eq!(core.tell(left("h2")), Err(Overloaded));
        let (insisting, waiting) = oneshot::channel();
        let teller = core.clone();
        let told = tokio::spawn(async move {
            let _ = insisting.send(());
            teller.insist(left("h2")).await;
        });
        waiting.await.expect("it begins");
        let names = tokio::task::spawn_blocking(move || {
            let next = || match queue.recv_timeout(Duration::from_secs(60)) {
                Ok(Message::Input(Input::AgentLeft(host))) => host.to_string(),
                other => panic!("{other:?}"),
            };
            [next(), next()]
        });
        assert_eq!(names.await.expect("both come"), ["h1", "h2"]);
        told.await.expect("it was told");
        core.insist(left("h3")).await;
    }
}
