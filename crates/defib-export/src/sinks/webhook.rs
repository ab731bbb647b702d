//! Any HTTP server that takes lines by POST. A 2xx means that it has them.

use bytes::Bytes;
use defib_model::export::{Format, SecretRef, SinkTls};
use http::{HeaderName, HeaderValue, header};

use super::{
    Line, SinkError,
    http::{HttpClient, Post, sensitive, split},
    is_json, secret,
};

/// Lets a receiver recognise a request that it has had before.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A receiver.
#[derive(Debug)]
pub(super) struct WebhookSink {
    client: HttpClient,
    path: String,
    token: Option<SecretRef>,
    format: Format,
}

impl WebhookSink {
    pub(super) fn new(url: &str, tls: Option<SinkTls>, token: Option<SecretRef>, format: Format) -> Self {
        let (authority, path) = split(url);
        Self { client: HttpClient::new(authority, tls), path, token, format }
    }

    pub(super) async fn deliver(&mut self, lines: &[Line]) -> Result<(), SinkError> {
        let (Some(first), Some(last)) = (lines.first(), lines.last()) else { return Ok(()) };
        let content = if is_json(self.format) { "application/x-ndjson" } else { "text/plain; charset=utf-8" };
        let key = HeaderValue::from_str(&format!("{}..{}", first.id, last.id))
            .map_err(|_| SinkError::new("the cluster's name fits no header"))?;
        let mut headers =
            vec![(header::CONTENT_TYPE, HeaderValue::from_static(content)), (IDEMPOTENCY_KEY, key)];
        if let Some(token) = &self.token {
            headers
                .push((header::AUTHORIZATION, sensitive(&format!("Bearer {}", &**secret("token", token)?))?));
        }
        let mut body = String::new();
        for line in lines {
            body.push_str(&line.text);
            body.push('\n');
        }
        self.client.post(&Post { path: &self.path, headers, body: Bytes::from(body) }).await.map(|_| ())
    }

    pub(super) fn reset(&mut self) {
        self.client.reset();
    }
}
