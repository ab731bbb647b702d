//! RFC 5424 messages over TCP or TLS, framed by octet counts (RFC 6587, RFC 5425).
//!
//! The protocol has no acknowledgement, and that the receiver's kernel confirms bytes says nothing of its process: what
//! lies unread in a socket goes with whoever dies. So what was written counts as safe only when both is known:
//!
//! - It was **read**. Now and then we end a connection in order and go on with the next one. A peer that closes it in
//!   order, too, has read everything on it: a kernel that has unread bytes, or a peer that is gone, resets it instead.
//! - The receiver has **outlived** it by [`SETTLE`]: no connection to it broke meanwhile. So it had that time to get
//!   what it read out of its memory.
//!
//! Whatever breaks before is sent again, from behind the last event that is safe. What is left is a receiver that keeps
//! what it has read in its memory for longer, and dies.

use std::{collections::VecDeque, fmt::Write as _, io, time::Duration};

use defib_model::{EventSeq, export::SinkTls};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    task::{AbortHandle, JoinHandle},
    time::Instant,
};

use super::{Line, Origin, Settled, SinkError, now, tls, within};
use crate::{
    facts::Facts,
    formats::{severity_of_syslog, timestamp},
};

/// How long a receiver must outlive a message, and how old the oldest one on a connection gets before that is ended.
const SETTLE: Duration = Duration::from_secs(8);
/// How long a receiver may take to read what is left and to close a connection that we ended.
const READ_WITHIN: Duration = Duration::from_secs(30);
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
    /// The connection that we ended and the receiver has not closed yet. Nothing is written meanwhile, or what comes on
    /// the next one might be read first.
    ended: Option<Ended>,
    /// What was written when and is not safe, oldest first.
    written: VecDeque<(Instant, EventSeq)>,
    /// The last event that the receiver has read for certain.
    read: EventSeq,
    settled: EventSeq,
}

/// A connection that we ended.
#[derive(Debug)]
struct Ended {
    connection: Connection,
    since: Instant,
    /// The last event that was written to it.
    last: EventSeq,
}

struct Connection {
    writer: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    /// Ends when the peer closes the connection in order, or with how it broke.
    reader: JoinHandle<Result<(), String>>,
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
            ended: None,
            written: VecDeque::new(),
            read: EventSeq(0),
            settled: EventSeq(0),
        }
    }

    pub(super) async fn deliver(&mut self, lines: &[Line]) -> Result<(), SinkError> {
        let mut frames = String::new();
        for line in lines {
            let message = message(line, self.facility, &self.origin);
            let _ = write!(frames, "{} {message}", message.len());
        }
        self.wait_until_read().await?;
        // A receiver that left when it had everything may just have been restarted.
        let is_over = |connection: &Connection| connection.reader.is_finished() && self.written.is_empty();
        let connection = match self.connection.take() {
            Some(connection) if !is_over(&connection) => connection,
            _ => self.connect().await?,
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

    async fn connect(&self) -> Result<Connection, SinkError> {
        within(CONNECT, "connecting", connect(&self.address, self.tls.as_ref())).await?
    }

    fn broken(&self) -> SinkError {
        SinkError::new(format!("{} closed the connection", self.address))
    }

    pub(super) async fn settle(&mut self) -> Result<Settled, SinkError> {
        if self.written.is_empty() {
            return Ok(Settled::All);
        }
        if self.connection.as_ref().is_none_or(|connection| connection.reader.is_finished()) {
            return Err(self.broken());
        }
        if self.ended.as_ref().is_some_and(|ended| ended.is_answered()) {
            self.wait_until_read().await?;
        }
        let is_old = |(at, seq): &&(Instant, EventSeq)| *seq > self.read && at.elapsed() >= SETTLE;
        if self.ended.is_none() && self.written.iter().find(is_old).is_some() {
            self.end_connection().await?;
        }
        while let Some((at, seq)) = self.written.front() {
            if *seq > self.read || at.elapsed() < SETTLE {
                return Ok(Settled::UpTo(self.settled));
            }
            self.settled = *seq;
            self.written.pop_front();
        }
        Ok(Settled::All)
    }

    /// Ends the connection in order and makes the next one, whose end tells if the receiver dies meanwhile.
    async fn end_connection(&mut self) -> Result<(), SinkError> {
        let (Some(mut connection), Some((_, last))) = (self.connection.take(), self.written.back().copied())
        else {
            return Ok(());
        };
        let address = &self.address;
        within(WRITE, "ending a connection", connection.writer.shutdown())
            .await?
            .map_err(|error| SinkError::new(format!("{address} takes nothing more: {error}")))?;
        self.ended = Some(Ended { connection, since: now(), last });
        self.connection = Some(self.connect().await?);
        Ok(())
    }

    /// Waits until the receiver has read all that was written to a connection that we ended, if there is one.
    async fn wait_until_read(&mut self) -> Result<(), SinkError> {
        let Some(mut ended) = self.ended.take() else { return Ok(()) };
        let left = READ_WITHIN.saturating_sub(ended.since.elapsed());
        let address = &self.address;
        let unread = |why: &str| {
            SinkError::new(format!("{address} did not read all that was written, so it is sent again: {why}"))
        };
        match tokio::time::timeout(left, &mut ended.connection.reader).await {
            Ok(Ok(Ok(()))) => {
                self.read = self.read.max(ended.last);
                Ok(())
            }
            Ok(Ok(Err(why))) => Err(unread(&why)),
            Ok(Err(error)) => Err(unread(&error.to_string())),
            Err(_) => {
                let limit = READ_WITHIN.as_secs();
                Err(unread(&format!("it did not close a connection within {limit}s after we ended it")))
            }
        }
    }

    pub(super) fn reset(&mut self) {
        self.connection = None;
        self.ended = None;
        self.written.clear();
        self.read = self.settled;
    }
}

impl Ended {
    /// Whether there is no more to wait for.
    fn is_answered(&self) -> bool {
        self.connection.reader.is_finished() || self.since.elapsed() >= READ_WITHIN
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
                Ok(0) => return Ok(()),
                Ok(_) => {}
                // RFC 5425 wants TLS to say goodbye, and not every receiver does: that the connection was not reset is
                // what counts.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error.to_string()),
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
