//! RFC 5424 messages over TCP or TLS, framed by octet counts (RFC 6587, RFC 5425).
//!
//! The protocol has no acknowledgement: what was written may be lost when the connection breaks. So a message counts
//! as safe only after the connection has outlived it by [`SETTLE`]. The kernel ends a connection whose peer leaves
//! data unconfirmed for [`UNCONFIRMED_MAX`], which is shorter: so the receiver's machine has it by then. What is left
//! is a receiver that reads nothing for so long and then dies.

use std::{collections::VecDeque, fmt::Write as _, io, time::Duration};

use defib_model::{EventSeq, export::SinkTls};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    task::AbortHandle,
    time::Instant,
};

use super::{Line, Origin, Settled, SinkError, now, tls, within};
use crate::{
    facts::Facts,
    formats::{severity_of_syslog, timestamp},
};

/// How long a connection must outlive a message.
pub(super) const SETTLE: Duration = Duration::from_secs(8);
/// How long the peer's kernel may leave data unconfirmed.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(5);
const CONNECT: Duration = Duration::from_secs(5);
const WRITE: Duration = Duration::from_secs(15);
/// Ours to give our structured data a name: the number that IANA reserves for examples, since we have none.
const STRUCTURED: &str = "defib@32473";

/// A receiver of syslog messages.
#[derive(Debug)]
pub(super) struct SyslogSink {
    address: String,
    tls: Option<SinkTls>,
    facility: u8,
    origin: Origin,
    connection: Option<Connection>,
    /// What was written when, oldest first.
    written: VecDeque<(Instant, EventSeq)>,
    settled: EventSeq,
}

struct Connection {
    writer: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    /// Ends when the peer closes or breaks the connection.
    reader: tokio::task::JoinHandle<String>,
    abort: AbortHandle,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

impl SyslogSink {
    pub(super) const fn new(address: String, tls: Option<SinkTls>, facility: u8, origin: Origin) -> Self {
        Self {
            address,
            tls,
            facility,
            origin,
            connection: None,
            written: VecDeque::new(),
            settled: EventSeq(0),
        }
    }

    pub(super) async fn deliver(&mut self, lines: &[Line]) -> Result<(), SinkError> {
        let mut frames = String::new();
        for line in lines {
            let message = message(line, self.facility, &self.origin);
            let _ = write!(frames, "{} {message}", message.len());
        }
        // A receiver that left when it had everything may just have been restarted.
        let is_over = |connection: &Connection| connection.reader.is_finished() && self.written.is_empty();
        let connection = match self.connection.take() {
            Some(connection) if !is_over(&connection) => connection,
            _ => within(CONNECT, "connecting", connect(&self.address, self.tls.as_ref())).await??,
        };
        let connection = self.connection.insert(connection);
        if connection.reader.is_finished() {
            return Err(self.broken());
        }
        let address = &self.address;
        let written = async {
            connection.writer.write_all(frames.as_bytes()).await?;
            connection.writer.flush().await
        };
        within(WRITE, "writing", written)
            .await?
            .map_err(|error| SinkError::new(format!("{address} takes nothing more: {error}")))?;
        if let Some(last) = lines.last() {
            self.written.push_back((now(), last.event.seq));
        }
        Ok(())
    }

    fn broken(&self) -> SinkError {
        SinkError::new(format!("{} closed the connection", self.address))
    }

    pub(super) fn settle(&mut self) -> Result<Settled, SinkError> {
        if self.written.is_empty() {
            return Ok(Settled::All);
        }
        if self.connection.as_ref().is_none_or(|connection| connection.reader.is_finished()) {
            return Err(self.broken());
        }
        while let Some((at, seq)) = self.written.front() {
            if at.elapsed() < SETTLE {
                return Ok(Settled::UpTo(self.settled));
            }
            self.settled = *seq;
            self.written.pop_front();
        }
        Ok(Settled::All)
    }

    pub(super) fn reset(&mut self) {
        self.connection = None;
        self.written.clear();
    }
}

async fn connect(address: &str, tls: Option<&SinkTls>) -> Result<Connection, SinkError> {
    let failed = |error: io::Error| SinkError::new(format!("{address} can't be reached: {error}"));
    let stream = TcpStream::connect(address).await.map_err(failed)?;
    let socket = SockRef::from(&stream);
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(2)).with_interval(Duration::from_secs(1));
    socket.set_tcp_keepalive(&keepalive).map_err(failed)?;
    socket.set_tcp_user_timeout(Some(UNCONFIRMED_MAX)).map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let Some(tls) = tls else {
        let (reader, writer) = stream.into_split();
        return Ok(watch(reader, writer));
    };
    let (reader, writer) = tokio::io::split(tls::connect(tls, address, stream).await?);
    Ok(watch(reader, writer))
}

/// A receiver says nothing. Reading is how its end is noticed, and what lets TLS do its own talk.
fn watch(
    mut reader: impl AsyncRead + Send + Unpin + 'static,
    writer: impl AsyncWrite + Send + Sync + Unpin + 'static,
) -> Connection {
    let reader = tokio::spawn(async move {
        let mut nothing = [0; 512];
        loop {
            match reader.read(&mut nothing).await {
                Ok(0) => return String::from("closed"),
                Ok(_) => {}
                Err(error) => return error.to_string(),
            }
        }
    });
    Connection { writer: Box::new(writer), abort: reader.abort_handle(), reader }
}

fn quoted(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '"' | '\\' | ']') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// One message, without its frame.
fn message(line: &Line, facility: u8, origin: &Origin) -> String {
    let event = &line.event;
    let facts = Facts::of(&event.kind);
    let priority = u32::from(facility) * 8 + u32::from(severity_of_syslog(facts.severity));
    let mut text = format!(
        "<{priority}>1 {} {} defibd - {} [{STRUCTURED}",
        timestamp(event.wall),
        origin.host,
        facts.kind
    );
    let mut put = |name: &str, value: &str| {
        let _ = write!(text, " {name}=\"{}\"", quoted(value));
    };
    put("cluster", &origin.context.cluster);
    put("id", &line.id);
    put("sequence", &event.seq.to_string());
    put("hash", &event.hash);
    put("previous", &line.previous);
    if let Some(cause) = event.cause {
        put("cause", &cause.to_string());
    }
    if let Some(correlation) = &line.correlation {
        put("correlationUid", correlation);
    }
    text.push_str("] ");
    text.push_str(&line.text);
    text
}
