//! Carries replicas' questions to silent hosts, and their answers back. What is in an answer is no business of who
//! carries it: the replica that asked checks it.

use std::sync::Arc;

use defib_model::{HostId, ReplicaId};
use defib_wire::v1::{self, agent_message, neighbour_client::NeighbourClient};
use futures_util::{StreamExt as _, future::select_ok};
use rustls::ClientConfig;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::{
    neighbours::{Channels, PATIENCE, channel_to},
    sessions::Outbox,
};

/// A replica's question.
pub type Wanted = (ReplicaId, v1::ProbeWanted);

/// Questions that may wait; more are dropped, and a replica asks again.
pub const QUEUE: usize = 64;
/// Questions under way at once.
const AT_ONCE: usize = 64;
/// Networks by which one host is tried.
const ADDRESSES_MAX: usize = 4;
/// Connections that are kept: a silent host is asked several times a second.
const CHANNELS_MAX: usize = 64;

/// Carries until nobody is left who wants it.
pub async fn carry(me: HostId, tls: Arc<ClientConfig>, outbox: Outbox, wanted: mpsc::Receiver<Wanted>) {
    let mut channels = Channels::new();
    ReceiverStream::new(wanted)
        .map(|(replica, wanted)| {
            let Ok(host) = HostId::new(&wanted.host) else { return (replica, wanted.nonce, Vec::new()) };
            if channels.len() >= CHANNELS_MAX {
                channels.clear();
            }
            let addresses = wanted.addresses.into_iter().take(ADDRESSES_MAX);
            let ways = addresses.map(|address| channel_to(&mut channels, &host, address, &tls));
            (replica, wanted.nonce, ways.collect::<Vec<Channel>>())
        })
        .for_each_concurrent(AT_ONCE, |(replica, nonce, ways)| {
            let (asker, outbox) = (me.to_string(), outbox.clone());
            async move {
                let questions = ways.into_iter().map(|way| {
                    let question = v1::ProbeQuestion { asker: asker.clone(), nonce: nonce.clone() };
                    Box::pin(async move { NeighbourClient::new(way).probe(question).await })
                });
                let questions: Vec<_> = questions.collect();
                if questions.is_empty() {
                    return;
                }
                match tokio::time::timeout(PATIENCE, select_ok(questions)).await {
                    Ok(Ok((answer, _))) => {
                        let answer = Some(answer.into_inner());
                        let answered = v1::ProbeAnswered { answer };
                        outbox.to(replica, agent_message::Message::ProbeAnswered(answered));
                    }
                    Ok(Err(error)) => tracing::debug!(%error, "a silent host gives no answer"),
                    Err(_) => tracing::debug!("a silent host gives no answer in time"),
                }
            }
        })
        .await;
}
