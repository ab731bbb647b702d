//! Splunk's HTTP event collector. A 200 means *accepted*; with acknowledgement, events count as safe only once the
//! indexers say that they have them.

use std::{collections::VecDeque, fmt::Write as _, time::Duration};

use bytes::Bytes;
use defib_model::{
    EventSeq,
    export::{Format, SecretRef, SinkTls},
};
use http::{HeaderName, HeaderValue, header};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Line, Settled, SinkError,
    http::{HttpClient, Post, sensitive, split},
    is_json, now, secret,
};

const CHANNEL: HeaderName = HeaderName::from_static("x-splunk-request-channel");
/// How often indexers are asked.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// In place of a batch's number, once it was acknowledged.
const SAFE: u64 = u64::MAX;
/// After which what was not acknowledged is sent again: Splunk says that it may be lost then.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(super) struct Options {
    pub(super) token: SecretRef,
    pub(super) index: Option<String>,
    pub(super) acknowledged: bool,
    pub(super) format: Format,
}

/// A collector.
#[derive(Debug)]
pub(super) struct HecSink {
    client: HttpClient,
    base: String,
    options: Options,
    host: String,
    /// Acknowledgements are counted per channel; ours is drawn anew with each connection that was reset.
    channel: Option<String>,
    /// Batches that indexers have not confirmed: their number, their last event, since when.
    waiting: VecDeque<(u64, EventSeq, Instant)>,
    settled: EventSeq,
    asked: Option<Instant>,
}

impl HecSink {
    pub(super) fn new(url: &str, tls: Option<SinkTls>, options: Options, host: String) -> Self {
        let (authority, path) = split(url);
        Self {
            client: HttpClient::new(authority, tls),
            base: path.trim_end_matches('/').to_owned(),
            options,
            host,
            channel: None,
            waiting: VecDeque::new(),
            settled: EventSeq(0),
            asked: None,
        }
    }

    fn headers(&mut self) -> Result<Vec<(HeaderName, HeaderValue)>, SinkError> {
        let token = secret("token", &self.options.token)?;
        let mut headers = vec![
            (header::AUTHORIZATION, sensitive(&format!("Splunk {}", &**token))?),
            (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        ];
        if self.options.acknowledged {
            let channel = match &self.channel {
                Some(channel) => channel.clone(),
                None => self.channel.insert(guid()?).clone(),
            };
            let value = HeaderValue::from_str(&channel).map_err(|error| SinkError::new(error.to_string()))?;
            headers.push((CHANNEL, value));
        }
        Ok(headers)
    }

    pub(super) async fn deliver(&mut self, lines: &[Line]) -> Result<(), SinkError> {
        let Some(last) = lines.last().map(|line| line.event.seq) else { return Ok(()) };
        let headers = self.headers()?;
        let mut body = String::new();
        for line in lines {
            let mut envelope = json!({
                "time": format!("{}.{:03}", line.event.wall.0 / 1000, line.event.wall.0 % 1000),
                "host": self.host, "source": "defib", "sourcetype": sourcetype(self.options.format),
            });
            if let (Some(index), Some(fields)) = (&self.options.index, envelope.as_object_mut()) {
                fields.insert("index".into(), index.as_str().into());
            }
            // The event goes in as the very bytes that were rendered: a verifier may be fed from Splunk.
            let event = if is_json(self.options.format) {
                line.text.clone()
            } else {
                Value::from(line.text.as_str()).to_string()
            };
            let mut text = envelope.to_string();
            text.truncate(text.len().saturating_sub(1));
            let _ = write!(body, "{text},\"event\":{event}}}");
        }
        let path = format!("{}/services/collector/event", self.base);
        let answer = self.client.post(&Post { path: &path, headers, body: Bytes::from(body) }).await?;
        if self.options.acknowledged {
            let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
            let Some(number) = answer["ackId"].as_u64() else {
                return Err(SinkError::new(
                    "the collector gave no ackId: enable indexer acknowledgement for the token, or leave out acknowledged",
                ));
            };
            self.waiting.push_back((number, last, now()));
        }
        Ok(())
    }

    pub(super) async fn settle(&mut self) -> Result<Settled, SinkError> {
        if self.waiting.is_empty() {
            return Ok(Settled::All);
        }
        if self.asked.is_some_and(|asked| asked.elapsed() < ASK_EVERY) {
            return Ok(Settled::UpTo(self.settled));
        }
        self.asked = Some(now());
        let headers = self.headers()?;
        let channel = self.channel.clone().unwrap_or_default();
        let path = format!("{}/services/collector/ack?channel={channel}", self.base);
        let numbers: Vec<u64> =
            self.waiting.iter().map(|(number, ..)| *number).filter(|number| *number != SAFE).collect();
        let body = Bytes::from(json!({ "acks": numbers }).to_string());
        let answer = self.client.post(&Post { path: &path, headers, body }).await?;
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        // In order only: a later batch that is safe does not make an earlier one so. An acknowledgement is told once.
        for (number, ..) in &mut self.waiting {
            if answer["acks"][number.to_string()].as_bool() == Some(true) {
                *number = SAFE;
            }
        }
        while let Some((SAFE, seq, _)) = self.waiting.front() {
            self.settled = *seq;
            self.waiting.pop_front();
        }
        match self.waiting.front() {
            None => Ok(Settled::All),
            Some((_, _, since)) if since.elapsed() > ACKNOWLEDGED_WITHIN => {
                Err(SinkError::new("the indexers acknowledged nothing in 5 minutes; it is sent again"))
            }
            Some(_) => Ok(Settled::UpTo(self.settled)),
        }
    }

    pub(super) fn reset(&mut self) {
        self.client.reset();
        self.channel = None;
        self.waiting.clear();
        self.asked = None;
    }
}

const fn sourcetype(format: Format) -> &'static str {
    match format {
        Format::Ocsf => "defib:ocsf",
        Format::Ecs => "defib:ecs",
        Format::Cef => "defib:cef",
        Format::Leef => "defib:leef",
        Format::Native => "defib:native",
    }
}

fn guid() -> Result<String, SinkError> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| SinkError::new("the system gives no random numbers"))?;
    let number = u128::from_be_bytes(bytes);
    Ok(defib_model::BootId(number).to_string())
}
