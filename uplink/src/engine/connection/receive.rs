//! What is received: frames, however they are cut, and what they mean for the connection and its streams.
//!
//! A fault of the connection ends it, one of a stream breaks that stream, and the device is told either way (RFC 9113
//! §5.4). What comes for a stream that is no more counts for windows and header table, and for nothing else.

use super::{Block, Fault, HEADER_LIST_MAX, Received, State};
use crate::EndReason;
use crate::engine::Broken;
use crate::engine::frame::{self, Code, Head};
use crate::engine::hpack::HeaderList;
use crate::engine::stream::Stream;
use crate::flood::Flood;
use http::{HeaderMap, StatusCode};

/// Largest window there is (§6.9.1).
const WINDOW_MAX: i64 = i32::MAX as i64;

/// Longest header block, compressed, and most frames that it may come in.
const BLOCK_MAX: usize = 64 * 1024;
const BLOCK_FRAMES_MAX: usize = 16;

impl State {
    /// Takes what came; a fault is the end.
    pub fn receive(&mut self, mut input: &[u8]) -> Received {
        while !input.is_empty() {
            let Some(head) = self.partial.frame else {
                let have = self.partial.have;
                let taken = (frame::HEAD - have).min(input.len());
                self.partial.head[have..have + taken].copy_from_slice(&input[..taken]);
                self.partial.have += taken;
                input = &input[taken..];
                if self.partial.have == frame::HEAD {
                    self.partial.have = 0;
                    let head = Head::parse(&self.partial.head);
                    self.begin_frame(head)?;
                    if head.length == 0 {
                        self.end_frame(head, &[])?;
                    }
                }
                continue;
            };
            let taken = self.partial.left.min(input.len());
            let (piece, rest) = input.split_at(taken);
            self.partial.left -= taken;
            let is_whole = self.partial.left == 0;
            if is_streamed(head) {
                if let Some(stream) = self.stream(head.stream) {
                    stream.receive(piece, input.len());
                }
                if is_whole {
                    self.end_frame(head, &[])?;
                }
            } else if is_whole && self.partial.payload.is_empty() {
                self.end_frame(head, piece)?;
            } else {
                self.partial.payload.extend_from_slice(piece);
                if is_whole {
                    let payload = std::mem::take(&mut self.partial.payload);
                    self.end_frame(head, &payload)?;
                }
            }
            input = rest;
        }
        Ok(())
    }

    /// What can be judged by a frame's head.
    fn begin_frame(&mut self, head: Head) -> Received {
        // DATA is judged by whether somebody can take it.
        if head.kind != frame::DATA {
            self.allowance.receive(head.kind, head.flags, head.length).map_err(flooded)?;
        }
        if !self.peer.is_known && (head.kind != frame::SETTINGS || head.has(frame::ACK)) {
            return Err(Fault::new(Code::PROTOCOL_ERROR, "what came is no beginning of HTTP/2"));
        }
        if head.length > frame::PAYLOAD_MAX {
            return Err(Fault::new(Code::FRAME_SIZE_ERROR, "a frame is longer than may be"));
        }
        let expected = self.partial.block.as_ref().map(|block| block.stream);
        let comes = (head.kind == frame::CONTINUATION).then_some(head.stream);
        if expected != comes {
            return Err(Fault::new(Code::PROTOCOL_ERROR, "a header block is not continued as it must be"));
        }
        let of_stream = match head.kind {
            frame::DATA | frame::HEADERS | frame::PRIORITY | frame::RST_STREAM | frame::CONTINUATION => {
                Some(true)
            }
            frame::SETTINGS | frame::PING | frame::GOAWAY => Some(false),
            _ => None,
        };
        if of_stream.is_some_and(|of_stream| of_stream != (head.stream != 0)) {
            return Err(Fault::new(Code::PROTOCOL_ERROR, "a frame came for the wrong kind of stream"));
        }
        let is_idle = head.stream >= self.next_stream || (head.stream != 0 && head.stream.is_multiple_of(2));
        if is_idle
            && matches!(head.kind, frame::DATA | frame::HEADERS | frame::RST_STREAM | frame::WINDOW_UPDATE)
        {
            return Err(Fault::new(Code::PROTOCOL_ERROR, "a frame came for a stream that was never opened"));
        }
        if head.kind == frame::DATA {
            self.begin_data(head)?;
        }
        self.partial.left = head.length;
        self.partial.frame = (head.length > 0).then_some(head);
        Ok(())
    }

    fn end_frame(&mut self, head: Head, payload: &[u8]) -> Received {
        self.partial.frame = None;
        match head.kind {
            frame::DATA => self.end_data(head, payload),
            frame::HEADERS => self.receive_headers(head, payload),
            frame::RST_STREAM => self.receive_reset(head, payload),
            frame::SETTINGS => self.receive_settings(head, payload),
            frame::PUSH_PROMISE => {
                Err(Fault::new(Code::PROTOCOL_ERROR, "the peer pushes, which it was told not to"))
            }
            frame::PING => self.receive_ping(head, payload),
            frame::GOAWAY => self.receive_goaway(payload),
            frame::WINDOW_UPDATE => self.receive_window_update(head, payload),
            frame::CONTINUATION => self.receive_continuation(head, payload),
            // PRIORITY, and kinds that are not known (§4.1): ignored.
            _ => Ok(()),
        }
    }

    /// Windows count the whole payload, padding included (§6.1).
    fn begin_data(&mut self, head: Head) -> Received {
        let length = head.length as i64;
        self.receive_window -= length;
        if self.receive_window < 0 {
            return Err(Fault::new(
                Code::FLOW_CONTROL_ERROR,
                "the peer sends more than the window of the uplink",
            ));
        }
        if self.receive_window < self.connection_window / 2 {
            let more = (self.connection_window - self.receive_window) as u32;
            self.receive_window = self.connection_window;
            self.answer(frame::WINDOW_UPDATE, 0, 0, &more.to_be_bytes())?;
        }
        // One that broke may be held by its reader for as long as that likes.
        let Some(stream) = self.stream(head.stream).filter(|stream| stream.broken.is_none()) else {
            return self.allowance.receive_lost().map_err(flooded);
        };
        stream.receive_window -= length;
        let is_over = stream.receive_window < 0;
        // Padded data is looked at as a whole.
        let is_malformed = !head.has(frame::PADDED) && !stream.expects(length as u64);
        self.allowance.receive(head.kind, head.flags, head.length).map_err(flooded)?;
        if is_over {
            self.break_stream(
                head.stream,
                Code::FLOW_CONTROL_ERROR,
                "the device sends more than the stream's window",
            )
        } else if is_malformed {
            self.break_stream(
                head.stream,
                Code::PROTOCOL_ERROR,
                "its body is not as long, or not where, it should be",
            )
        } else {
            Ok(())
        }
    }

    fn end_data(&mut self, head: Head, payload: &[u8]) -> Received {
        if head.has(frame::PADDED) {
            let data = unpadded(payload)?;
            let length = payload.len();
            if let Some(stream) = self.stream(head.stream) {
                if !stream.expects(data.len() as u64) {
                    let what = "its body is not as long, or not where, it should be";
                    return self.break_stream(head.stream, Code::PROTOCOL_ERROR, what);
                }
                stream.receive(data, data.len());
                self.taken(head.stream, length - data.len());
            }
        }
        if head.has(frame::END_STREAM) { self.end_receiving(head.stream) } else { Ok(()) }
    }

    fn end_receiving(&mut self, id: u32) -> Received {
        let Some(stream) = self.stream(id) else { return Ok(()) };
        if !stream.end_receiving() {
            return self.break_stream(id, Code::PROTOCOL_ERROR, "its body is not as long as it should be");
        }
        self.remove_done();
        Ok(())
    }

    fn receive_headers(&mut self, head: Head, payload: &[u8]) -> Received {
        let mut block = if head.has(frame::PADDED) { unpadded(payload)? } else { payload };
        if head.has(frame::WITH_PRIORITY) {
            block =
                block.get(5..).ok_or_else(|| Fault::new(Code::FRAME_SIZE_ERROR, "a head is too short"))?;
        }
        if head.has(frame::END_HEADERS) {
            return self.receive_block(head.stream, head.has(frame::END_STREAM), block);
        }
        let (stream, end_stream, bytes) = (head.stream, head.has(frame::END_STREAM), block.to_vec());
        self.partial.block = Some(Box::new(Block { stream, end_stream, bytes, frames: 1 }));
        Ok(())
    }

    fn receive_continuation(&mut self, head: Head, payload: &[u8]) -> Received {
        let Some(mut block) = self.partial.block.take() else { return Ok(()) };
        block.bytes.extend_from_slice(payload);
        block.frames += 1;
        if block.bytes.len() > BLOCK_MAX || block.frames > BLOCK_FRAMES_MAX {
            return Err(Fault::new(Code::ENHANCE_YOUR_CALM, "a header block has no end"));
        }
        if head.has(frame::END_HEADERS) {
            return self.receive_block(block.stream, block.end_stream, &block.bytes);
        }
        self.partial.block = Some(block);
        Ok(())
    }

    /// A head, trailers, or news of a stream that is no more, which are decoded for the sake of the table.
    fn receive_block(&mut self, id: u32, end_stream: bool, block: &[u8]) -> Received {
        let list = self.decoder.decode(block, HEADER_LIST_MAX);
        let list =
            list.map_err(|_| Fault::new(Code::COMPRESSION_ERROR, "a header block cannot be decoded"))?;
        let Some(stream) = self.stream(id).filter(|stream| stream.broken.is_none()) else { return Ok(()) };
        let HeaderList { status, headers, malformed, .. } = list;
        let put = match malformed {
            Some(what) => Err(what),
            None => put_head(stream, status, headers, end_stream),
        };
        match put {
            Err(what) => self.break_stream(id, Code::PROTOCOL_ERROR, what),
            Ok(()) if end_stream => self.end_receiving(id),
            Ok(()) => Ok(()),
        }
    }

    fn receive_reset(&mut self, head: Head, payload: &[u8]) -> Received {
        let code = whole_number(payload)?;
        if let Some(stream) = self.stream(head.stream) {
            stream.break_off(Broken::Reset { by_peer: true, code: Code(code) });
            self.remove_done();
        }
        Ok(())
    }

    fn receive_settings(&mut self, head: Head, payload: &[u8]) -> Received {
        if head.has(frame::ACK) && payload.is_empty() {
            return Ok(());
        }
        if head.has(frame::ACK) || !payload.len().is_multiple_of(6) {
            return Err(Fault::new(Code::FRAME_SIZE_ERROR, "SETTINGS have a wrong size"));
        }
        for setting in payload.chunks_exact(6) {
            let name = u16::from_be_bytes([setting[0], setting[1]]);
            self.receive_setting(name, frame::number(&setting[2..]).unwrap_or_default())?;
        }
        self.peer.is_known = true;
        self.is_changed = true;
        self.answer(frame::SETTINGS, frame::ACK, 0, &[])
    }

    fn receive_setting(&mut self, name: u16, value: u32) -> Received {
        let wrong = |code| Err(Fault::new(code, "a setting is out of its range"));
        match name {
            frame::HEADER_TABLE_SIZE => self.tell_no_table = true,
            // For a server there is nothing to enable, §6.5.2.
            frame::ENABLE_PUSH if value != 0 => return wrong(Code::PROTOCOL_ERROR),
            frame::MAX_CONCURRENT_STREAMS => self.peer.streams_max = value as usize,
            frame::INITIAL_WINDOW_SIZE => {
                let window = i64::from(value);
                if window > WINDOW_MAX {
                    return wrong(Code::FLOW_CONTROL_ERROR);
                }
                let more = window - std::mem::replace(&mut self.peer.window, window);
                for stream in &mut self.streams {
                    stream.send_window += more;
                    if stream.send_window > WINDOW_MAX {
                        return wrong(Code::FLOW_CONTROL_ERROR);
                    }
                }
            }
            frame::MAX_FRAME_SIZE if !(16_384..=16_777_215).contains(&value) => {
                return wrong(Code::PROTOCOL_ERROR);
            }
            frame::MAX_FRAME_SIZE => self.peer.frame_max = value as usize,
            frame::ENABLE_CONNECT_PROTOCOL if value > 1 => return wrong(Code::PROTOCOL_ERROR),
            frame::ENABLE_CONNECT_PROTOCOL => self.peer.offers_websocket = value == 1,
            _ => {}
        }
        Ok(())
    }

    fn receive_ping(&mut self, head: Head, payload: &[u8]) -> Received {
        if payload.len() != 8 {
            return Err(Fault::new(Code::FRAME_SIZE_ERROR, "a PING has a wrong size"));
        }
        if !head.has(frame::ACK) {
            return self.answer(frame::PING, frame::ACK, 0, payload);
        }
        if std::mem::take(&mut self.is_pinging) {
            self.is_ponged = true;
            self.is_changed |= !std::mem::replace(&mut self.is_settled, true);
        }
        Ok(())
    }

    fn receive_goaway(&mut self, payload: &[u8]) -> Received {
        let (last, code) = (frame::number(payload), payload.get(4..).and_then(frame::number));
        let (Some(last), Some(code)) = (last, code) else {
            return Err(Fault::new(Code::FRAME_SIZE_ERROR, "a GOAWAY has a wrong size"));
        };
        if code != Code::NO_ERROR.0 {
            let reason = EndReason::Protocol(format!("the peer ended the uplink: {}", Code(code)));
            return Err(Fault { reason, code: None });
        }
        self.is_going_away = true;
        self.is_changed = true;
        for stream in self.streams.iter_mut().filter(|stream| stream.id > last & 0x7FFF_FFFF) {
            stream.break_off(Broken::Ended(EndReason::PeerClosed));
        }
        self.remove_done();
        Ok(())
    }

    fn receive_window_update(&mut self, head: Head, payload: &[u8]) -> Received {
        let more = i64::from(whole_number(payload)? & 0x7FFF_FFFF);
        let is_wrong = |window: i64| more == 0 || window + more > WINDOW_MAX;
        if head.stream == 0 {
            if is_wrong(self.send_window) {
                return Err(Fault::new(
                    Code::FLOW_CONTROL_ERROR,
                    "a window of the uplink is out of its range",
                ));
            }
            self.send_window += more;
            return Ok(());
        }
        let Some(stream) = self.stream(head.stream) else { return Ok(()) };
        if is_wrong(stream.send_window) {
            return self.break_stream(
                head.stream,
                Code::FLOW_CONTROL_ERROR,
                "its window is out of its range",
            );
        }
        stream.send_window += more;
        Ok(())
    }

    /// Breaks a stream off for what the device did wrong on it.
    fn break_stream(&mut self, id: u32, code: Code, what: &'static str) -> Received {
        let Some(stream) = self.stream(id) else { return Ok(()) };
        let was_closed = stream.is_closed();
        stream.break_off(Broken::Malformed(what));
        self.remove_done();
        if was_closed { Ok(()) } else { self.answer(frame::RST_STREAM, 0, id, &code.0.to_be_bytes()) }
    }
}

/// Whether a frame's payload is passed on as it comes.
fn is_streamed(head: Head) -> bool {
    head.kind == frame::DATA && !head.has(frame::PADDED)
}

fn put_head(
    stream: &mut Stream,
    status: Option<StatusCode>,
    headers: HeaderMap,
    end_stream: bool,
) -> Result<(), &'static str> {
    match (stream.has_head, status) {
        // Trailers, of which nobody here makes use.
        (true, None) if end_stream => Ok(()),
        (true, _) => Err("it has a second head"),
        (false, None) => Err("its head has no :status"),
        // On the way to the answer (RFC 9110 §15.2).
        (false, Some(status)) if status.is_informational() => {
            if end_stream || status == StatusCode::SWITCHING_PROTOCOLS {
                return Err("its head is not one that ends an answer");
            }
            Ok(())
        }
        (false, Some(status)) => stream.put_head(status, headers),
    }
}

fn flooded(flood: Flood) -> Fault {
    Fault { reason: EndReason::Flooded { frames: flood.0 }, code: None }
}

/// A payload without its padding (§6.1).
fn unpadded(payload: &[u8]) -> Result<&[u8], Fault> {
    let padded = payload.split_first().and_then(|(padding, rest)| {
        let length = rest.len().checked_sub(usize::from(*padding))?;
        rest.get(..length)
    });
    padded.ok_or_else(|| Fault::new(Code::PROTOCOL_ERROR, "a frame has more padding than payload"))
}

fn whole_number(payload: &[u8]) -> Result<u32, Fault> {
    let is_whole = payload.len() == 4;
    let number = frame::number(payload).filter(|_| is_whole);
    number.ok_or_else(|| Fault::new(Code::FRAME_SIZE_ERROR, "a frame has a wrong size"))
}
