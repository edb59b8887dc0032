//! Floods of control frames, at both ends: PING, SETTINGS, PRIORITY, WINDOW_UPDATE, RST_STREAM, CONTINUATION, empty DATA; and,
//! at the server's end, of DATA that no stream takes.
//!
//! `h2` bounds the memory that they take (one answer to a PING or SETTINGS at a time, so many CONTINUATIONs and reset
//! streams), but not the time: a peer that sends nothing else keeps its worker busy, and with it every uplink there.
//! So each uplink has an allowance. What it carries earns some, and so does time: no use comes near its end, a flood is
//! over in milliseconds.
//!
//! Not here: who sends too many *requests*, which is what a device is for. At the device's end, where HTTP/2 is `h2`'s, the heads of
//! frames are read as they pass ([`Watched`]). Cost: a few instructions a frame; no clock, no timer, no wake-up until the allowance is used up.
//! [`FloodGuard`] is the same for whoever else serves HTTP/2 to strangers.
//!
//! Invariant: whatever is earned, an allowance is never more than [`BURST`].

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// A control frame's price; everything else is counted in parts of it.
const FRAME: i64 = 1024;

/// Earned a second: far more than pings, acknowledgements and audio in small pieces on 64 streams take.
const PER_SECOND: i64 = 500 * FRAME;

/// What is there at first, and at most.
const BURST: i64 = 5_000 * FRAME;

/// Price of a DATA frame, from which its payload is taken off: in pieces of more than 128 bytes data earns.
const DATA: i64 = 128;

/// Price of a DATA frame that nobody can take: all windows of an uplink may be on their way in long ones.
const LOST: i64 = FRAME / 2;

/// Earned by a head that we send: its answer's head and end, windows, a reset.
const OUR_HEADERS: i64 = 8 * FRAME;

/// Earned by DATA that we send: two WINDOW_UPDATEs, and some.
const OUR_DATA: i64 = 3 * FRAME;

/// Price of a byte of WebSocket's own frames beyond the payload's bytes: an empty frame of 6 costs a third of a control
/// frame, a payload longer than its head nothing.
const WEBSOCKET_BYTE: i64 = 64;

/// Of a client's connection preface, which comes before its first frame (RFC 9113 §3.4).
pub(crate) const PREFACE: usize = 24;

const HEAD: usize = 9;

/// A flag of DATA (RFC 9113 §6.1).
const PADDED: u8 = 0x8;

/// Longer ones end HTTP/2 by themselves: we allow none (RFC 9113 §4.2).
const FRAME_MAX: i64 = 16_384;

/// The frame that used up an allowance (RFC 9113 §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flood(pub &'static str);

fn name(kind: u8) -> &'static str {
    const NAMES: [&str; 10] = [
        "empty or tiny DATA",
        "HEADERS",
        "PRIORITY",
        "RST_STREAM",
        "SETTINGS",
        "PUSH_PROMISE",
        "PING",
        "GOAWAY",
        "WINDOW_UPDATE",
        "CONTINUATION",
    ];
    NAMES.get(usize::from(kind)).copied().unwrap_or("unknown frames")
}

/// One uplink's allowance.
pub(crate) struct Allowance {
    left: i64,
    counted: Instant,
}

impl Allowance {
    pub fn new() -> Self {
        Self { left: BURST, counted: Instant::now() }
    }

    /// A frame from the peer, with these flags and a payload of so many bytes.
    pub fn receive(&mut self, kind: u8, flags: u8, length: usize) -> Result<(), Flood> {
        let length = (length as i64).min(FRAME_MAX);
        self.left -= match kind {
            // How much of it is padding is not asked: it earns nothing. Video is not padded.
            0 if length > 0 && flags & PADDED != 0 => FRAME / 2,
            0 if length > 0 => DATA - length,
            _ => FRAME + length,
        };
        self.check(name(kind))
    }

    /// DATA of a stream that is no more. Some may have been on its way when that ended; it earns nothing.
    pub fn receive_lost(&mut self) -> Result<(), Flood> {
        self.left -= LOST;
        self.check("DATA of streams that have ended")
    }

    /// WebSocket bytes from the peer: `heads` that were not payload, `payload` that was.
    pub fn receive_framing(&mut self, heads: usize, payload: usize) -> Result<(), Flood> {
        self.left -= heads.saturating_sub(payload) as i64 * WEBSOCKET_BYTE;
        self.check("WebSocket frames without payload")
    }

    /// A head of ours.
    pub fn send_headers(&mut self) {
        self.left = BURST.min(self.left + OUR_HEADERS);
    }

    /// DATA of ours.
    pub fn send_data(&mut self) {
        self.left = BURST.min(self.left + OUR_DATA);
    }

    fn check(&mut self, frame: &'static str) -> Result<(), Flood> {
        if self.left < 0 {
            let now = Instant::now();
            let earned = now.duration_since(self.counted).as_millis().min(60_000) as i64 * PER_SECOND / 1000;
            (self.left, self.counted) = (self.left + earned, now);
        }
        self.left = BURST.min(self.left);
        if self.left < 0 { Err(Flood(frame)) } else { Ok(()) }
    }
}

/// An allowance for a codec that does not count by itself: frames are found in the bytes that pass.
pub(crate) struct Watched {
    allowance: Allowance,
    incoming: Frames,
    outgoing: Frames,
}

impl Watched {
    /// Of the server of HTTP/2: the client's preface comes first.
    pub fn server() -> Self {
        let incoming = Frames { to_skip: PREFACE, ..Frames::default() };
        Self { allowance: Allowance::new(), incoming, outgoing: Frames::default() }
    }

    /// HTTP/2 bytes from the peer.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), Flood> {
        let Self { allowance, incoming, .. } = self;
        let mut flood = Ok(());
        incoming.pass(bytes, |kind, flags, length| {
            let counted = allowance.receive(kind, flags, length);
            if flood.is_ok() {
                flood = counted;
            }
        });
        flood
    }

    /// HTTP/2 bytes of ours.
    pub fn send(&mut self, bytes: &[u8]) {
        let Self { allowance, outgoing, .. } = self;
        outgoing.pass(bytes, |kind, _, _| match kind {
            0 => allowance.send_data(),
            1 => allowance.send_headers(),
            _ => {}
        });
    }
}

/// The bytes under any server's HTTP/2. A client that floods it with control frames is not read any more: reading fails
/// with [`io::ErrorKind::InvalidData`], and the error names the frames.
pub struct FloodGuard<I> {
    io: I,
    watched: Watched,
}

impl<I> FloodGuard<I> {
    /// Of a connection whose preface has not been read.
    pub fn new(io: I) -> Self {
        Self { io, watched: Watched::server() }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for FloodGuard<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        let received = self.watched.receive(&buffer.filled()[before..]);
        Poll::Ready(
            received.map_err(|flood| {
                io::Error::new(io::ErrorKind::InvalidData, format!("flooded with {}", flood.0))
            }),
        )
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for FloodGuard<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, bytes))?;
        self.watched.send(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, slices))?;
        let mut left = written;
        for slice in slices {
            let taken = left.min(slice.len());
            self.watched.send(&slice[..taken]);
            left -= taken;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Finds the heads of frames in a stream of bytes, however it is cut.
#[derive(Default)]
struct Frames {
    /// Payload of the frame under way, or the preface.
    to_skip: usize,
    head: [u8; HEAD],
    have: usize,
}

impl Frames {
    fn pass(&mut self, mut bytes: &[u8], mut each: impl FnMut(u8, u8, usize)) {
        loop {
            let skipped = self.to_skip.min(bytes.len());
            self.to_skip -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return;
            }
            let taken = (HEAD - self.have).min(bytes.len());
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == HEAD {
                let [a, b, c, kind, flags, ..] = self.head;
                let length = u32::from_be_bytes([0, a, b, c]) as usize;
                (self.have, self.to_skip) = (0, length);
                each(kind, flags, length);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let mut frame = vec![0; HEAD + length];
        frame[..3].copy_from_slice(&(length as u32).to_be_bytes()[1..]);
        frame[3] = kind;
        frame
    }

    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        let stream = [vec![7; PREFACE], frame(4, 12), frame(0, 3000), frame(6, 8), frame(0, 0)].concat();
        for piece in [1, 2, 8, 9, 10, 1000, stream.len()] {
            let (mut frames, mut seen) = (Frames { to_skip: PREFACE, ..Frames::default() }, Vec::new());
            stream
                .chunks(piece)
                .for_each(|bytes| frames.pass(bytes, |kind, _, length| seen.push((kind, length))));
            assert_eq!(seen, [(4, 12), (0, 3000), (6, 8), (0, 0)], "in pieces of {piece}");
        }
    }

    /// Goal: the busiest uplinks there are stay far from the end; see also the tests over sockets.
    #[tokio::test(start_paused = true)]
    async fn no_use_is_taken_for_a_flood() {
        let mut device = Allowance::new();
        for _second in 0..100 {
            // 64 viewers with sound in 160-byte pieces and sender reports, all at once.
            for _ in 0..64 * 50 {
                device.receive(0, 0, 160).unwrap();
            }
            for _ in 0..64 * 2 {
                device.receive(0, 0, 60).unwrap();
            }
            // A thousand small requests.
            for _ in 0..1000 {
                device.send_headers();
                for kind in [1, 8, 8, 0] {
                    device.receive(kind, 0, if kind == 1 { 200 } else { 4 }).unwrap();
                }
            }
            // An upload in small pieces, acknowledged piece by piece.
            for _ in 0..1000 {
                device.send_data();
                device.receive(8, 0, 4).unwrap();
                device.receive(8, 0, 4).unwrap();
            }
            device.receive(6, 0, 8).unwrap();
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_over_within_ten_thousand_frames_even_after_a_long_quiet() {
        for kind in [0, 1, 2, 3, 4, 6, 7, 8, 9, 200] {
            let mut device = Allowance::new();
            tokio::time::advance(Duration::from_secs(3600)).await;
            let flood = (0..10_002).find_map(|_| device.receive(kind, 0, 0).err());
            assert_eq!(flood, Some(Flood(name(kind))));
        }
        let mut device = Allowance::new();
        assert!((0..100_000).any(|_| device.receive(0, 0, 1).is_err()), "data byte by byte");
        let mut device = Allowance::new();
        assert!((0..100_000).any(|_| device.receive(0, PADDED, 256).is_err()), "padding");
        let mut device = Allowance::new();
        assert!((0..100_000).any(|_| device.receive_framing(6, 0).is_err()), "WebSocket");
    }

    /// Goal: a server that reads through the guard is rid of a flood, and of nobody who is answered.
    #[tokio::test]
    async fn a_guarded_server_stops_reading_a_flood() {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let mut guarded = FloodGuard::new(server);
        client.write_all(&[7; PREFACE]).await.unwrap();
        let mut away = [0; 4096];
        assert_eq!(guarded.read(&mut away).await.unwrap(), PREFACE);
        for _ in 0..20_000 {
            client.write_all(&frame(1, 20)).await.unwrap();
            assert_eq!(guarded.read(&mut away).await.unwrap(), HEAD + 20, "requests that are answered");
            let answer = [frame(1, 20), frame(0, 5)].concat();
            let slices = [io::IoSlice::new(&answer[..10]), io::IoSlice::new(&answer[10..])];
            assert_eq!(guarded.write_vectored(&slices).await.unwrap(), answer.len());
            client.read_exact(&mut away[..answer.len()]).await.unwrap();
        }
        client.write_all(&frame(6, 8).repeat(10_002)).await.unwrap();
        let flood = async {
            while guarded.read(&mut away).await? > 0 {}
            io::Result::Ok(())
        }
        .await
        .unwrap_err();
        assert_eq!(
            (flood.kind(), flood.to_string()),
            (io::ErrorKind::InvalidData, "flooded with PING".to_owned())
        );
    }
}
