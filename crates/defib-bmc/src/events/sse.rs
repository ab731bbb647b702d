//! Server-sent events: bytes in, messages out. No I/O.

/// Longest line that is kept; of a longer one the rest is dropped. The largest events of real servers are a few KiB.
const LINE_BYTES_MAX: usize = 256 * 1024;
/// Most data of one message; what comes beyond is dropped with the message.
const DATA_BYTES_MAX: usize = 512 * 1024;
/// Longest identifier.
const ID_BYTES_MAX: usize = 1024;

/// One message of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SseMessage {
    /// The last identifier that the stream gave; with it a new stream can go on where this one ended.
    pub id: Option<String>,
    /// The data, its lines joined.
    pub data: String,
}

/// Takes a stream apart, wherever its bytes are cut.
#[derive(Debug, Default)]
pub struct SseParser {
    line: Vec<u8>,
    /// The last byte ended a line by CR: an LF that follows belongs to it.
    after_cr: bool,
    started: bool,
    data: String,
    has_data: bool,
    too_large: bool,
    id: Option<String>,
    dropped: u64,
}

impl SseParser {
    /// Takes the next bytes; the messages that are complete with them.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<SseMessage> {
        let mut messages = Vec::new();
        for &byte in bytes {
            let ends = match byte {
                b'\n' if self.after_cr => {
                    self.after_cr = false;
                    continue;
                }
                b'\n' | b'\r' => true,
                _ => false,
            };
            self.after_cr = byte == b'\r';
            if ends {
                let line = std::mem::take(&mut self.line);
                messages.extend(self.end_line(&line));
            } else if self.line.len() < LINE_BYTES_MAX {
                self.line.push(byte);
            } else {
                self.too_large = true;
            }
        }
        messages
    }

    /// How many messages were dropped because they were too large.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn end_line(&mut self, line: &[u8]) -> Option<SseMessage> {
        let text = String::from_utf8_lossy(line);
        let first = !std::mem::replace(&mut self.started, true);
        let text = if first { text.strip_prefix('\u{feff}').unwrap_or(&text) } else { &text };
        if text.is_empty() {
            return self.end_message();
        }
        let (field, value) = text.split_once(':').unwrap_or((text, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if self.data.len() + value.len() < DATA_BYTES_MAX {
                    if self.has_data {
                        self.data.push('\n');
                    }
                    self.data.push_str(value);
                } else {
                    self.too_large = true;
                }
                self.has_data = true;
            }
            // What goes into a header must be fit for one.
            "id" if value.len() <= ID_BYTES_MAX && value.bytes().all(|b| (b' '..0x7f).contains(&b)) => {
                self.id = (!value.is_empty()).then(|| value.to_owned());
            }
            // Comments keep the stream alive; kinds and pauses say nothing to us.
            _ => {}
        }
        None
    }

    fn end_message(&mut self) -> Option<SseMessage> {
        let data = std::mem::take(&mut self.data);
        let (has_data, too_large) = (std::mem::take(&mut self.has_data), std::mem::take(&mut self.too_large));
        if too_large {
            self.dropped += 1;
            return None;
        }
        has_data.then(|| SseMessage { id: self.id.clone(), data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "\u{feff}: hello\n\nid: 7\ndata: {\"a\":\r\ndata:1}\r\n\r\nevent: x\rdata\r\rretry: 5\nid\ndata: last\n\n\
                          data: cut off";

    fn expected() -> Vec<SseMessage> {
        let message = |id: Option<&str>, data: &str| SseMessage { id: id.map(Into::into), data: data.into() };
        vec![message(Some("7"), "{\"a\":\n1}"), message(Some("7"), ""), message(None, "last")]
    }

    #[test]
    fn a_stream_is_understood_wherever_it_is_cut() {
        for size in 1..STREAM.len() {
            let mut parser = SseParser::default();
            let messages: Vec<_> =
                STREAM.as_bytes().chunks(size).flat_map(|bytes| parser.push(bytes)).collect();
            assert_eq!(messages, expected(), "cut every {size} bytes");
        }
    }

    #[test]
    fn what_is_too_large_is_dropped_and_counted_and_the_next_is_heard() {
        let mut parser = SseParser::default();
        let long = format!("data: {}\n\n", "x".repeat(LINE_BYTES_MAX + 10));
        let many = format!("{}\n", format!("data: {}\n", "y".repeat(100_000)).repeat(9));
        for large in [long, many] {
            assert_eq!(parser.push(large.as_bytes()), []);
        }
        assert_eq!(parser.dropped(), 2);
        assert_eq!(parser.push(b"data: small\n\n")[0].data, "small");
    }

    #[test]
    fn an_identifier_that_could_break_a_header_is_none() {
        let mut parser = SseParser::default();
        let messages = parser.push("id: a\u{0}b\nid: ü\ndata: x\n\n".as_bytes());
        assert_eq!(messages[0].id, None);
    }
}
