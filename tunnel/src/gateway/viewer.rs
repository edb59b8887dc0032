//! One RTSP client: its bytes in and out, and its time.
//!
//! # A connection's life
//!
//! 1. Requests are read and answered ([`super::dialogue`]). Who has not given a user's password within `greeting_ms` is
//!    given up, however busily it talks.
//! 2. With the first request for a device a plain connection moves to the device's worker: from there on its packets
//!    cross no thread.
//! 3. PLAY is answered when there is a key picture to begin with, since `RTP-Info` tells what comes first; then the
//!    device's last sender reports, then the packets. What has come is gathered and written at once.
//! 4. One that takes nothing for `stalled_ms` is dropped; one that is slow goes on at a key picture ([`super::hub`]).
//!    When the stream ends, it is told by RTCP BYE and closed.
//!
//! Invariant: nothing is waited for without a deadline, and no more is kept for a client than [`GATHERED_BYTES`] with a
//! unit, and [`ANSWERS_BYTES`] of answers.

use super::{
    Shared,
    dialogue::{By, Dialogue, Reply, SESSION_TIMEOUT_S},
    hub::{Cursor, Unit},
    url::Target,
};
use crate::outbox::Outbox;
use anyhow::bail;
use bytes::BytesMut;
use homing_base::door::Place;
use homing_media::rtsp::{Decoder, DecoderLimits, Message, Method, Request, Response};
use homing_protocol::{SerialNumber, Step};
use prometheus_client::metrics::gauge::Gauge;
use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    runtime::Handle,
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::io::poll_read_buf;

/// How often time is looked at before PLAY; a timer for each packet would cost more than the packet.
const TICK: Duration = Duration::from_secs(1);

/// The same from PLAY on, when hundreds may share a worker.
const PLAYING_TICK: Duration = Duration::from_secs(4);

/// Until a key picture is there, from PLAY on; then it begins with whatever comes.
const FIRST_KEY: Duration = Duration::from_secs(5);

/// For a last word to leave.
const FAREWELL: Duration = Duration::from_secs(1);

/// Bytes that are taken for a client before it has taken those before.
const GATHERED_BYTES: usize = 64 * 1024;

/// Answers that wait to be taken; a client that asks on without reading them is not read.
const ANSWERS_BYTES: usize = 64 * 1024;

/// Requests within [`TICK`]; nobody needs so many.
const REQUESTS_MAX: u32 = 50;

/// What the kernel keeps for a client that reads slowly: seconds of video, not the minutes that it would grow to.
const SEND_BUFFER_BYTES: usize = 256 * 1024;

/// What a request may be; the longest real ones have 1 kB.
const LIMITS: DecoderLimits = DecoderLimits {
    header_bytes: 8 * 1024,
    header_lines: 64,
    body_bytes: 4 * 1024,
    resync_bytes: 0,
    resync_channels: 4,
};

/// A client's connection over `S`.
pub(super) struct Viewer<S> {
    io: S,
    wire: Wire,
    shared: Arc<Shared>,
    /// Until it has given a user's password.
    place: Arc<Place>,
    peer: SocketAddr,
    dialogue: Dialogue,
    playing: Option<Playing>,
    /// It is on the device's worker, or will not move.
    is_home: bool,
}

/// What does not depend on the transport.
struct Wire {
    input: BytesMut,
    decoder: Decoder,
    output: Outbox,
    weighed: Weighed,
    units: VecDeque<Unit>,
    is_flushed: bool,
    began: Instant,
    /// Last sign of life.
    heard: Instant,
    /// Since when it takes nothing.
    stalled: Option<Instant>,
    requests: u32,
    tick: Pin<Box<Sleep>>,
}

/// A stream that plays.
struct Playing {
    cursor: Cursor,
    /// Everything is wanted, on the channels that units have: they are written as they are.
    as_it_is: bool,
    missed: u64,
    serial: SerialNumber,
    peer: SocketAddr,
    /// Why it ended, if it was not the client.
    reason: &'static str,
    _counted: Counted,
}

impl Drop for Playing {
    fn drop(&mut self) {
        let Playing { serial, peer, missed, reason, .. } = self;
        tracing::info!(step = %Step::Tunnel, %serial, %peer, missed, reason, "RTSP viewer has gone");
    }
}

/// One more in a gauge, for as long as it lives.
pub(super) struct Counted(Gauge);

impl Counted {
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Counted(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Bytes in a gauge, for as long as it lives.
#[derive(Default)]
pub(super) struct Weighed {
    gauge: Gauge,
    bytes: usize,
}

impl Weighed {
    pub fn new(gauge: &Gauge) -> Self {
        Weighed { gauge: gauge.clone(), bytes: 0 }
    }

    /// So many now.
    pub fn set(&mut self, bytes: usize) {
        if bytes != self.bytes {
            self.gauge.inc_by(bytes as i64 - self.bytes as i64);
            self.bytes = bytes;
        }
    }
}

impl Drop for Weighed {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// What comes of a connection.
pub(super) enum Outcome {
    /// It is over.
    Ended,
    /// It is to go on there, with this request.
    Move(Handle, Request),
}

enum Happened {
    Message(Message),
    StreamEnded,
    Closed,
}

impl<S> Viewer<S> {
    /// Its socket after `change`, such as a move to another runtime.
    pub fn map<T>(self, change: impl FnOnce(S) -> io::Result<T>) -> io::Result<Viewer<T>> {
        let Viewer { io, mut wire, shared, place, peer, dialogue, playing, is_home: _ } = self;
        // It belongs to the runtime that it was made on.
        wire.tick = Box::pin(sleep_until(next_tick(Instant::now(), TICK)));
        Ok(Viewer { io: change(io)?, wire, shared, place, peer, dialogue, playing, is_home: true })
    }

    /// Where it waits while it is a stranger.
    pub fn place(&self) -> Arc<Place> {
        Arc::clone(&self.place)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Viewer<S> {
    pub fn new(
        io: S,
        shared: Arc<Shared>,
        place: Arc<Place>,
        peer: SocketAddr,
        local: SocketAddr,
        may_move: bool,
    ) -> Self {
        let now = Instant::now();
        let wire = Wire {
            input: BytesMut::with_capacity(1024),
            decoder: Decoder::new(LIMITS),
            output: Outbox::default(),
            weighed: Weighed::new(&shared.streams.metrics.gateway_queued_bytes),
            units: VecDeque::new(),
            is_flushed: true,
            began: now,
            heard: now,
            stalled: None,
            requests: 0,
            tick: Box::pin(sleep_until(next_tick(now, TICK))),
        };
        let dialogue = Dialogue::new(Arc::clone(&shared), peer.ip(), local.ip());
        Viewer { io, wire, shared, place, peer, dialogue, playing: None, is_home: !may_move }
    }

    /// Goes on, with this request first.
    pub async fn run(&mut self, mut first: Option<Request>) -> Outcome {
        loop {
            let served = match first.take() {
                Some(request) => self.handle(&request).await,
                None => self.next().await,
            };
            match served {
                Ok(None) => (),
                Ok(Some(outcome)) => return outcome,
                Err(error) => {
                    let serial = self.dialogue.target.as_ref().map(|target| target.serial.to_string());
                    let error = format!("{error:#}");
                    tracing::info!(peer = %self.peer, serial, error, "RTSP client dropped");
                    return Outcome::Ended;
                }
            }
        }
    }

    async fn next(&mut self) -> anyhow::Result<Option<Outcome>> {
        match poll_fn(|cx| self.poll_happened(cx)).await? {
            Happened::Message(Message::Request(request)) => {
                self.wire.heard = Instant::now();
                self.wire.requests += 1;
                if self.wire.requests > REQUESTS_MAX {
                    bail!("more than {REQUESTS_MAX} requests in {} s", TICK.as_secs());
                }
                if let Some(worker) = self.home(&request) {
                    return Ok(Some(Outcome::Move(worker, request)));
                }
                self.handle(&request).await
            }
            Happened::Message(_) => Ok(None),
            Happened::Closed => Ok(Some(Outcome::Ended)),
            Happened::StreamEnded => {
                self.say_bye();
                self.farewell().await;
                Ok(Some(Outcome::Ended))
            }
        }
    }

    /// Where this connection belongs, with a request for a device.
    fn home(&mut self, request: &Request) -> Option<Handle> {
        let asks = matches!(request.method, Method::Describe | Method::Setup);
        if self.is_home || !asks || request.headers.get("Authorization").is_none() {
            return None;
        }
        self.shared.streams.tunnel.worker(Target::parse(&request.uri)?.serial)
    }

    async fn handle(&mut self, request: &Request) -> anyhow::Result<Option<Outcome>> {
        let reply = self.dialogue.handle(request).await;
        if self.dialogue.user.is_some() {
            self.place.leave();
        }
        match reply {
            Reply::Answer(answer) => self.wire.answer(answer),
            Reply::Play(answer) => self.play(answer).await,
            Reply::Stop(answer) => {
                self.playing = None;
                self.wire.answer(answer);
            }
            Reply::Close(answer) => {
                self.wire.answer(answer);
                self.farewell().await;
                return Ok(Some(Outcome::Ended));
            }
        }
        Ok(None)
    }

    async fn play(&mut self, answer: Response) {
        let (Some(watching), Some(target)) = (&self.dialogue.watching, &self.dialogue.target) else { return };
        watching.play();
        let (serial, path) = (target.serial, target.shown().to_owned());
        let offer = Arc::clone(&watching.offer);
        let mut cursor = offer.hub.join();
        let wants_video = self.dialogue.deliveries.iter().any(|delivery| offer.tracks[delivery.track]);
        let has_key =
            wants_video && tokio::time::timeout(FIRST_KEY, poll_fn(|cx| cursor.poll_key(cx))).await.is_ok();
        if !has_key {
            cursor.go_live();
        }
        let (beginning, reports) = cursor.beginning();
        let info = self.dialogue.rtp_info(&beginning);
        self.wire.answer(answer.header("Range", "npt=now-").header("RTP-Info", info));
        let usual = |delivery: &super::dialogue::Delivery| {
            let channel = 2 * delivery.track as u8;
            matches!(delivery.by, By::Tcp { rtp, rtcp } if (rtp, rtcp) == (channel, channel + 1))
        };
        let as_it_is = self.dialogue.deliveries.len() == offer.tracks.len()
            && self.dialogue.deliveries.iter().all(usual);
        self.playing = Some(Playing {
            cursor,
            as_it_is,
            missed: 0,
            serial,
            peer: self.peer,
            reason: "the client has gone",
            _counted: Counted::new(&self.shared.streams.metrics.gateway_viewers),
        });
        for report in reports.into_iter().flatten() {
            self.deliver(&Unit { framed: report, packets: 1 });
        }
        let user = self.dialogue.user.as_deref();
        let udp = self.dialogue.deliveries.iter().any(|delivery| matches!(delivery.by, By::Udp(_)));
        tracing::info!(step = %Step::Tunnel, %serial, peer = %self.peer, user, path, udp, "RTSP viewer");
    }

    /// Sends a unit, as far as it is wanted and in the way that it is wanted.
    fn deliver(&mut self, unit: &Unit) {
        let mut sent = 0;
        if self.playing.as_ref().is_some_and(|playing| playing.as_it_is) {
            sent = unit.framed.len();
            self.wire.output.push(unit.framed.clone());
        } else {
            let mut framed = BytesMut::new();
            let mut lost = 0;
            for (channel, packet) in unit.packets() {
                let is_rtcp = channel % 2 == 1;
                let wanted =
                    self.dialogue.deliveries.iter().find(|wanted| wanted.track == usize::from(channel / 2));
                match wanted.map(|wanted| &wanted.by) {
                    Some(By::Tcp { rtp, rtcp }) => {
                        framed.reserve(unit.framed.len());
                        framed.extend_from_slice(&[b'$', if is_rtcp { *rtcp } else { *rtp }]);
                        framed.extend_from_slice(&packet[2..]);
                    }
                    Some(By::Udp(pair)) if pair.send(is_rtcp, &packet[4..]) => sent += packet.len() - 4,
                    Some(By::Udp(_)) => lost += 1,
                    None => (),
                }
            }
            sent += framed.len();
            self.wire.output.push(framed.freeze());
            if lost > 0 {
                self.count_missed(lost);
            }
        }
        self.shared.streams.metrics.gateway_sent_bytes.inc_by(sent as u64);
    }

    fn count_missed(&mut self, packets: u64) {
        if let Some(playing) = &mut self.playing {
            playing.missed += packets;
            self.shared.streams.metrics.gateway_dropped_packets.inc_by(packets);
        }
    }

    fn say_bye(&mut self) {
        let Some(watching) = &self.dialogue.watching else { return };
        for framed in watching.offer.hub.goodbyes() {
            self.deliver(&Unit { framed, packets: 1 });
        }
        if let Some(mut playing) = self.playing.take() {
            playing.reason = "the stream ended";
        }
    }

    /// Has what is still to be said leave, if it can.
    async fn farewell(&mut self) {
        let leaving = poll_fn(|cx| {
            ready!(self.wire.poll_write(cx, &mut self.io))?;
            Pin::new(&mut self.io).poll_shutdown(cx)
        });
        let _ = tokio::time::timeout(FAREWELL, leaving).await;
    }

    fn poll_happened(&mut self, cx: &mut Context<'_>) -> Poll<anyhow::Result<Happened>> {
        // Out: until the socket takes no more, or there is no more.
        while let Poll::Ready(written) = self.wire.poll_write(cx, &mut self.io) {
            if let Err(error) = written {
                return Poll::Ready(Ok(self.lost(&error)));
            }
            let Some(playing) = &mut self.playing else { break };
            let mut units = std::mem::take(&mut self.wire.units);
            let taken = playing.cursor.poll_next(cx, GATHERED_BYTES, &mut units);
            let Poll::Ready(taken) = taken else {
                self.wire.units = units;
                break;
            };
            let Some(missed) = taken else { return Poll::Ready(Ok(Happened::StreamEnded)) };
            if missed > 0 {
                self.count_missed(missed);
            }
            for unit in units.drain(..) {
                self.deliver(&unit);
            }
            self.wire.units = units;
        }
        // In: unless it asks on without reading the answers.
        while self.wire.output.bytes() < GATHERED_BYTES + ANSWERS_BYTES {
            match self.wire.decoder.decode(&mut self.wire.input)? {
                // Receiver reports: signs of life.
                Some(Message::Interleaved(_)) => self.wire.heard = Instant::now(),
                Some(message) => return Poll::Ready(Ok(Happened::Message(message))),
                None => match poll_read_buf(Pin::new(&mut self.io), cx, &mut self.wire.input) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Ok(Happened::Closed)),
                    Poll::Ready(Ok(_)) => (),
                    Poll::Ready(Err(error)) => return Poll::Ready(Ok(self.lost(&error))),
                    Poll::Pending => break,
                },
            }
        }
        for delivery in &self.dialogue.deliveries {
            if let By::Udp(pair) = &delivery.by
                && pair.poll_heard(cx)
            {
                self.wire.heard = Instant::now();
            }
        }
        while self.wire.tick.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let every = if self.playing.is_some() { PLAYING_TICK } else { TICK };
            self.wire.tick.as_mut().reset(next_tick(now, every));
            self.wire.requests = 0;
            self.check_time(now)?;
        }
        Poll::Pending
    }

    /// Most players end so: without TEARDOWN, in the middle of what they are sent.
    fn lost(&self, error: &io::Error) -> Happened {
        tracing::debug!(peer = %self.peer, %error, "RTSP connection broke");
        Happened::Closed
    }

    fn check_time(&self, now: Instant) -> anyhow::Result<()> {
        let stalled = Duration::from_millis(self.shared.streams.limits.stalled_ms);
        if self.wire.stalled.is_some_and(|since| now - since >= stalled) {
            bail!("takes nothing for {} s", stalled.as_secs_f32());
        }
        let greeting = Duration::from_millis(self.shared.streams.limits.greeting_ms);
        if self.dialogue.user.is_none() && now - self.wire.began >= greeting {
            bail!("no user and password in {} s", greeting.as_secs_f32());
        }
        // What plays over TCP lives as long as its connection does: not all players say anything.
        let by_tcp = |by: &By| matches!(by, By::Tcp { .. });
        let by_connection =
            self.playing.is_some() && self.dialogue.deliveries.iter().all(|delivery| by_tcp(&delivery.by));
        if !by_connection && now - self.wire.heard >= Duration::from_secs(SESSION_TIMEOUT_S.into()) {
            bail!("silent for {SESSION_TIMEOUT_S} s");
        }
        Ok(())
    }
}

impl Wire {
    fn answer(&mut self, answer: Response) {
        let mut bytes = BytesMut::with_capacity(512);
        answer.encode(&mut bytes);
        self.output.push(bytes.freeze());
    }

    /// Ready when everything is written.
    fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut S,
    ) -> Poll<io::Result<()>> {
        let written = self.poll_write_all(cx, io);
        self.weighed.set(self.output.bytes());
        written
    }

    fn poll_write_all<S: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut S,
    ) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            if self.output.poll_write(cx, io)?.is_pending() {
                self.stalled.get_or_insert_with(Instant::now);
                return Poll::Pending;
            }
            (self.stalled, self.is_flushed) = (None, false);
        }
        if !self.is_flushed {
            if Pin::new(io).poll_flush(cx)?.is_pending() {
                self.stalled.get_or_insert_with(Instant::now);
                return Poll::Pending;
            }
            (self.is_flushed, self.stalled) = (true, None);
        }
        Poll::Ready(Ok(()))
    }
}

/// The next of the moments that are so far apart, the same ones for all viewers: hundreds look at time by one wake-up of
/// their worker.
fn next_tick(now: Instant, every: Duration) -> Instant {
    static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);
    let ticks = now.saturating_duration_since(*EPOCH).as_millis() / every.as_millis() + 1;
    *EPOCH + every * u32::try_from(ticks).unwrap_or(u32::MAX)
}

/// Bounds what the kernel keeps for a client, and notices one that has silently gone.
pub(super) fn prepare(tcp: &tokio::net::TcpStream) {
    let socket = socket2::SockRef::from(tcp);
    let keepalive = socket2::TcpKeepalive::new().with_time(Duration::from_secs(SESSION_TIMEOUT_S.into()));
    // Where the system refuses, its own limits hold.
    let _ = socket.set_send_buffer_size(SEND_BUFFER_BYTES);
    let _ = socket.set_tcp_keepalive(&keepalive);
}
