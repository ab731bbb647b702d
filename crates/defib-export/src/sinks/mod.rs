//! Sinks: where lines go. Each tells apart what was handed over from what can't be lost any more.
//!
//! A sink holds no events. When it fails, everything that is not settled is read from the ledger again, so a receiver
//! may see events twice, but never a gap.

mod file;
mod hec;
mod http;
#[cfg(feature = "kafka")]
mod kafka;
mod syslog;
mod tls;
mod webhook;

use std::time::Duration;

#[cfg(feature = "kafka")]
use defib_kafka::Brokers;
use defib_model::{
    Event, EventSeq,
    export::{SecretRef, SinkPolicy, Target},
};
use tokio::io::AsyncWriteExt as _;
use zeroize::Zeroizing;

use crate::formats::{Context, is_json};

/// An event and how it reads.
#[derive(Debug, Clone)]
pub struct Line {
    /// The event.
    pub event: Event,
    /// Its id.
    pub id: String,
    /// Its recovery's name.
    pub correlation: Option<String>,
    /// Hash of the event before.
    pub previous: String,
    /// The event in the sink's format, without a line's end.
    pub text: String,
}

/// Why a sink did not take lines. Nothing is lost by it: they are tried again.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SinkError {
    message: String,
    /// When the receiver wants to be asked again.
    pub retry_after: Option<Duration>,
    /// Whether it was too much.
    pub too_large: TooLarge,
}

/// Whether a receiver, or our client for it, found something to be too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TooLarge {
    /// That was not it.
    #[default]
    No,
    /// There were too many lines at once.
    Together,
    /// The message, or one of them, is longer than it ever takes. It took none of them.
    Message,
}

impl SinkError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), retry_after: None, too_large: TooLarge::No }
    }
}

/// How much of what was handed over is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// All of it.
    All,
    /// Up to and with this event.
    UpTo(EventSeq),
}

/// Who delivers: it stands in lines where receivers expect a host.
#[derive(Debug, Clone)]
pub struct Origin {
    /// What is the same in all lines.
    pub context: Context,
    /// Such as `r1.demo`.
    pub host: String,
}

/// A sink that is served.
#[derive(Debug)]
pub struct Sink {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    File(file::FileSink),
    Stdout,
    Syslog(Box<syslog::SyslogSink>),
    Hec(Box<hec::HecSink>),
    Webhook(Box<webhook::WebhookSink>),
    #[cfg(feature = "kafka")]
    Kafka(Box<kafka::KafkaSink>),
    /// What this program was built without.
    #[cfg(not(feature = "kafka"))]
    Absent(&'static str),
}

impl Sink {
    /// A sink that has not been reached yet.
    #[must_use]
    pub fn new(policy: &SinkPolicy, origin: &Origin) -> Self {
        let kind = match policy.to.clone() {
            Target::File { path, rotate_bytes, keep } => {
                Kind::File(file::FileSink::new(path.into(), rotate_bytes, keep))
            }
            Target::Stdout => Kind::Stdout,
            Target::Syslog { address, tls, facility, insecure: _ } => {
                Kind::Syslog(Box::new(syslog::SyslogSink::new(address, tls, facility, origin.clone())))
            }
            Target::SplunkHec { url, token, tls, index, acknowledged } => {
                let options = hec::Options { token, index, acknowledged, format: policy.format };
                Kind::Hec(Box::new(hec::HecSink::new(&url, tls, options, origin.host.clone())))
            }
            Target::Webhook { url, token, tls, insecure: _ } => {
                Kind::Webhook(Box::new(webhook::WebhookSink::new(&url, tls, token, policy.format)))
            }
            #[cfg(feature = "kafka")]
            Target::Kafka { brokers, topic, mode, tls, insecure, sasl } => {
                let brokers = Brokers { brokers, tls, insecure, sasl };
                let options = kafka::Options { brokers, topic, mode, format: policy.format };
                Kind::Kafka(Box::new(kafka::KafkaSink::new(options, origin.clone())))
            }
            #[cfg(not(feature = "kafka"))]
            Target::Kafka { .. } => Kind::Absent("kafka"),
        };
        Self { kind }
    }

    /// Whether it says by itself that it waited for too long: with more words than others could find.
    pub(crate) const fn gives_up(&self) -> bool {
        !matches!(self.kind, Kind::File(_) | Kind::Stdout)
    }

    /// Hands lines over, in order. Connects first where that is needed.
    ///
    /// # Errors
    /// Why the receiver did not take them all; it may have taken some.
    pub async fn deliver(&mut self, lines: &[Line]) -> Result<(), SinkError> {
        match &mut self.kind {
            Kind::File(sink) => sink.deliver(lines).await,
            Kind::Stdout => to_stdout(lines).await,
            Kind::Syslog(sink) => sink.deliver(lines).await,
            Kind::Hec(sink) => sink.deliver(lines).await,
            Kind::Webhook(sink) => sink.deliver(lines).await,
            #[cfg(feature = "kafka")]
            Kind::Kafka(sink) => sink.deliver(lines).await,
            #[cfg(not(feature = "kafka"))]
            Kind::Absent(feature) => Err(SinkError::new(format!(
                "this defibd was built without it: build defib-controller with --features {feature}"
            ))),
        }
    }

    /// What is safe by now.
    ///
    /// # Errors
    /// Why some of it must be taken as lost.
    pub async fn settle(&mut self) -> Result<Settled, SinkError> {
        match &mut self.kind {
            Kind::File(_) | Kind::Stdout | Kind::Webhook(_) => Ok(Settled::All),
            #[cfg(feature = "kafka")]
            Kind::Kafka(_) => Ok(Settled::All),
            #[cfg(not(feature = "kafka"))]
            Kind::Absent(_) => Ok(Settled::All),
            Kind::Syslog(sink) => sink.settle().await,
            Kind::Hec(sink) => sink.settle().await,
        }
    }

    /// After lines were refused as too large: what was handed over before them is on its way as it was.
    pub fn refused(&mut self) {
        match &mut self.kind {
            Kind::File(_) | Kind::Stdout | Kind::Syslog(_) | Kind::Hec(_) | Kind::Webhook(_) => {}
            // A producer that lost a message in the middle takes no more; and nothing was on its way before.
            #[cfg(feature = "kafka")]
            Kind::Kafka(sink) => sink.reset(),
            #[cfg(not(feature = "kafka"))]
            Kind::Absent(_) => {}
        }
    }

    /// Gives up connections and what was handed over and is not settled.
    pub fn reset(&mut self) {
        match &mut self.kind {
            Kind::File(sink) => sink.reset(),
            Kind::Stdout => {}
            Kind::Syslog(sink) => sink.reset(),
            Kind::Hec(sink) => sink.reset(),
            Kind::Webhook(sink) => sink.reset(),
            #[cfg(feature = "kafka")]
            Kind::Kafka(sink) => sink.reset(),
            #[cfg(not(feature = "kafka"))]
            Kind::Absent(_) => {}
        }
    }
}

async fn to_stdout(lines: &[Line]) -> Result<(), SinkError> {
    let mut text = String::new();
    for line in lines {
        text.push_str(&line.text);
        text.push('\n');
    }
    let mut out = tokio::io::stdout();
    let written = async {
        out.write_all(text.as_bytes()).await?;
        out.flush().await
    };
    written.await.map_err(|error| SinkError::new(format!("standard output takes nothing: {error}")))
}

/// Reads the secret of a field each time it is needed, so that it can be replaced without a restart.
fn secret(field: &str, from: &SecretRef) -> Result<Zeroizing<String>, SinkError> {
    defib_process::secret(field, from).map_err(|error| SinkError::new(error.to_string()))
}

fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// Waits at most `limit`.
async fn within<T>(limit: Duration, what: &str, work: impl Future<Output = T>) -> Result<T, SinkError> {
    tokio::time::timeout(limit, work)
        .await
        .map_err(|_| SinkError::new(format!("{what} took longer than {}s", limit.as_secs())))
}
