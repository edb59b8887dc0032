//! Server-sent events as they arrive (WHATWG HTML §9.2.6): bytes in, events out. Pure.
//!
//! `event`, `data` and `id` are of interest; retry times are not used by tunnel servers.
//! Limits: a line and an event have at most [`LIMIT_BYTES`]; more is an error, not memory.

/// The longest event that is kept.
pub const LIMIT_BYTES: usize = 256 * 1024;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its name; `message` where it has none.
    pub name: String,
    /// Its data, lines joined by `\n`.
    pub data: String,
    /// Its id, where it has one.
    pub id: Option<String>,
}

/// The peer sends more without an end than anything of this API could be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event is longer than {LIMIT_BYTES} bytes")]
pub struct TooLong;

/// What has arrived of the next event.
#[derive(Default)]
pub struct Parser {
    line: Vec<u8>,
    after_cr: bool,
    name: String,
    data: Option<String>,
    id: Option<String>,
}

impl Parser {
    /// Takes the next bytes and gives the events that they complete.
    ///
    /// # Errors
    /// [`TooLong`]; the stream cannot be read further.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        for &byte in bytes {
            // A line ends with CR, LF or CR LF.
            let second_half_of_crlf = std::mem::replace(&mut self.after_cr, byte == b'\r') && byte == b'\n';
            match byte {
                b'\n' if second_half_of_crlf => (),
                b'\r' | b'\n' => {
                    let line = std::mem::take(&mut self.line);
                    events.extend(self.line_ended(&String::from_utf8_lossy(&line))?);
                }
                byte if self.line.len() < LIMIT_BYTES => self.line.push(byte),
                _ => return Err(TooLong),
            }
        }
        Ok(events)
    }

    fn line_ended(&mut self, line: &str) -> Result<Option<Event>, TooLong> {
        if line.is_empty() {
            let (name, id) = (std::mem::take(&mut self.name), self.id.take());
            return Ok(self.data.take().map(|data| Event {
                name: if name.is_empty() { "message".to_owned() } else { name },
                data,
                id,
            }));
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "id" => self.id = Some(value.to_owned()),
            "data" => {
                let data = match &mut self.data {
                    Some(data) => {
                        data.push('\n');
                        data
                    }
                    none => none.insert(String::new()),
                };
                if data.len() + value.len() > LIMIT_BYTES {
                    return Err(TooLong);
                }
                data.push_str(value);
            }
            // Comments (an empty field name) keep the connection open; others are not for us.
            _ => (),
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, data: &str) -> Event {
        Event { name: name.into(), data: data.into(), id: None }
    }

    #[test]
    fn events_are_the_same_however_the_bytes_are_cut() {
        let text = "event: device\ndata: {\"a\": 1}\n\n: keep-alive\n\nevent:removed\r\ndata:x\r\ndata: y\r\n\r\n\
                    id: 3\rdata\r\rdata: é\n\nevent: dropped\n\ndata: unfinished\n";
        let expected = [
            event("device", "{\"a\": 1}"),
            event("removed", "x\ny"),
            Event { id: Some("3".into()), ..event("message", "") },
            event("message", "é"),
        ];
        for cut in 0..=text.len() {
            let (head, tail) = text.as_bytes().split_at(cut);
            let mut parser = Parser::default();
            let mut events = parser.feed(head).unwrap();
            events.extend(parser.feed(tail).unwrap());
            assert_eq!(events, expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_peer_without_line_ends_or_without_empty_lines_is_an_error() {
        let mut parser = Parser::default();
        assert_eq!(parser.feed(&vec![b'x'; LIMIT_BYTES + 1]), Err(TooLong));
        let mut parser = Parser::default();
        let lines = "data: 0123456789\n".repeat(LIMIT_BYTES / 10);
        assert_eq!(parser.feed(lines.as_bytes()), Err(TooLong));
    }
}
