//! The device's end of a stream: one RTSP session through its uplink, and what comes goes into the hub.
//!
//! 1. RTSP through the uplink, DESCRIBE, SETUP of every track; the state says what there is, or why there is nothing.
//! 2. PLAY when the first viewer does. Until then and after, the session is kept alive by us, with receiver reports.
//! 3. Packets that came together become one [`Unit`]; a picture begins one, so that a viewer can begin there.
//! 4. TEARDOWN when nobody has watched for a while.
//!
//! Invariant: viewers never see the device's session, its address or its password; what they get of it are packets.

use super::{
    hub::{Hub, Unit},
    streams::{Offer, Refusal, State, Stream, Streams},
};
use bytes::{BufMut, BytesMut};
use futures_util::FutureExt as _;
use homing_base::rtsp::{Channels, Event, Session, SessionError};
use homing_media::{
    join::Join,
    rtp::{Packet, Reception},
    rtsp::{Interleaved, interleaved_head},
    sdp::TrackKind,
};
use homing_protocol::Step;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, sleep_until};

/// A unit is passed on at the latest with so many bytes; what comes together is mostly less.
const UNIT_BYTES: usize = 64 * 1024;

/// Events taken in one go, before viewers have their turn.
const BATCH_MAX: usize = 512;

/// For so long a failure stands: players that try again in a loop must not lock us out at the device.
const FAILURE_STANDS: Duration = Duration::from_secs(1);

/// Our own source in receiver reports. Any number will do: we send nothing.
const REPORTER: u32 = 0x484f_4d47;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("nobody watches any more")]
    Idle,
    #[error("the tunnel server stops")]
    Stopped,
    #[error(transparent)]
    Device(#[from] SessionError),
}

/// A stream's task, on the device's worker.
pub(super) async fn run(streams: Arc<Streams>, stream: Arc<Stream>) {
    let (serial, path) = (stream.serial, super::url::shown(&stream.path));
    let opened = tokio::select! {
        opened = Box::pin(open(&streams, &stream)) => opened,
        () = streams.stop.cancelled() => {
            streams.retire(&stream, false);
            return;
        }
    };
    let (mut session, mut pump, offer) = match opened {
        Ok(opened) => opened,
        Err(refusal) => {
            tracing::info!(step = %Step::Tunnel, %serial, path, status = refusal.status, reason = refusal.words, "no stream");
            stream.state.send_replace(State::Failed(refusal));
            tokio::select! {
                () = sleep(FAILURE_STANDS) => (),
                () = streams.stop.cancelled() => (),
            }
            streams.retire(&stream, false);
            return;
        }
    };
    tracing::info!(step = %Step::Tunnel, %serial, path, tracks = offer.tracks.len(), "stream opened for RTSP clients");
    stream.state.send_replace(State::Ready(offer));
    streams.metrics.gateway_streams.inc();
    let ended = tokio::select! {
        ended = carry(&streams, &stream, &mut session, &mut pump) => ended.err().unwrap_or(Ended::Idle),
        () = streams.stop.cancelled() => Ended::Stopped,
    };
    pump.hub.end();
    streams.retire(&stream, false);
    streams.metrics.gateway_streams.dec();
    tracing::info!(step = %Step::Tunnel, %serial, path, reason = %ended, "stream ended");
    if !matches!(ended, Ended::Device(_)) {
        session.close().await;
    }
}

async fn open(streams: &Streams, stream: &Stream) -> Result<(Session, Pump, Arc<Offer>), Refusal> {
    let serial = stream.serial;
    let failed = |error: SessionError| Refusal::by_device(serial, &error);
    let link = streams.tunnel.open_rtsp(serial).await?;
    let credentials = streams.tunnel.credentials(serial).await;
    let credentials = credentials.map_err(|words| Refusal { status: 502, words })?;
    let (mut session, description) =
        Session::describe(Box::new(link.stream), &stream.url, credentials).await.map_err(failed)?;
    let (mut tracks, mut sections, mut refused) = (Vec::new(), Vec::new(), None);
    for track in &description.presentation.tracks {
        let number = tracks.len();
        match session.set_up(track.control.as_deref(), 2 * number as u8).await {
            Ok(channels) => {
                tracks.push(Track {
                    channels,
                    is_video: track.kind == TrackKind::Video,
                    join: Join::of_encoding(&track.encoding),
                    reception: Reception::default(),
                });
                sections.push(Some(number));
            }
            // The others may still be had.
            Err(error @ SessionError::Status { .. }) => {
                tracing::debug!(%serial, %error, "a track is left out");
                refused = Some(error);
                sections.push(None);
            }
            Err(error) => return Err(failed(error)),
        }
    }
    if let (true, Some(error)) = (tracks.is_empty(), refused) {
        return Err(failed(error));
    }
    let hub =
        Hub::new(tracks.len(), streams.limits.kept_bytes).weighed(&streams.metrics.gateway_queued_bytes);
    let hub = Arc::new(hub);
    let offer = Offer {
        sdp: description.sdp,
        sections,
        tracks: tracks.iter().map(|track| track.is_video).collect(),
        hub: Arc::clone(&hub),
    };
    Ok((session, Pump::new(hub, tracks), Arc::new(offer)))
}

/// Until nobody watches any more, or the session breaks.
async fn carry(
    streams: &Streams,
    stream: &Arc<Stream>,
    session: &mut Session,
    pump: &mut Pump,
) -> Result<(), Ended> {
    let linger = Duration::from_millis(streams.limits.linger_ms);
    let mut is_playing = false;
    let mut idle_until: Option<Instant> = None;
    loop {
        let idle = async {
            match idle_until {
                Some(moment) => sleep_until(moment).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            batch = pump.batch(session) => batch?,
            () = stream.play.notified(), if !is_playing => {
                session.play().await?;
                is_playing = true;
            }
            () = stream.left.notified() => {
                idle_until = streams.is_idle(stream).then(|| Instant::now() + linger);
            }
            () = idle => {
                if streams.retire(stream, true) {
                    return Ok(());
                }
                idle_until = None;
            }
        }
    }
}

struct Track {
    /// The device's.
    channels: Channels,
    is_video: bool,
    join: Join,
    reception: Reception,
}

/// Makes units of packets.
struct Pump {
    hub: Arc<Hub>,
    tracks: Vec<Track>,
    /// The track whose pictures units begin with; none: every unit stands alone.
    video: Option<usize>,
    gathered: BytesMut,
    packets: u32,
    picture: Picture,
}

/// The picture that is on its way.
#[derive(Default)]
struct Picture {
    timestamp: Option<u32>,
    /// The unit that it begins with; none: the one that is gathered now.
    unit: Option<u64>,
    is_key: bool,
}

impl Pump {
    fn new(hub: Arc<Hub>, tracks: Vec<Track>) -> Self {
        let video = tracks.iter().position(|track| track.is_video);
        Pump { hub, tracks, video, gathered: BytesMut::new(), packets: 0, picture: Picture::default() }
    }

    /// Waits for packets, takes all that have come, and passes them on. Dropping the future loses nothing.
    async fn batch(&mut self, session: &mut Session) -> Result<(), SessionError> {
        let mut event = session.next().await?;
        for _ in 0..BATCH_MAX {
            match event {
                Event::Packet(packet) => self.take(&packet),
                Event::Tick => {
                    self.pass_on();
                    return self.report(session).await;
                }
            }
            match session.next().now_or_never() {
                Some(Ok(next)) => event = next,
                Some(Err(error)) => {
                    self.pass_on();
                    return Err(error);
                }
                None => {
                    self.pass_on();
                    return Ok(());
                }
            }
        }
        if let Event::Packet(packet) = event {
            self.take(&packet);
        }
        self.pass_on();
        tokio::task::yield_now().await;
        Ok(())
    }

    fn take(&mut self, packet: &Interleaved) {
        let of = |track: &Track| {
            if packet.channel == track.channels.rtp {
                Some(false)
            } else {
                (packet.channel == track.channels.rtcp).then_some(true)
            }
        };
        let Some((number, is_rtcp)) =
            self.tracks.iter().enumerate().find_map(|(number, track)| Some((number, of(track)?)))
        else {
            return;
        };
        let channel = 2 * number as u8 + u8::from(is_rtcp);
        let Some(head) = interleaved_head(channel, packet.payload.len()) else { return };
        if !is_rtcp {
            // What is no RTP would confuse players more than its absence does.
            let Ok(parsed) = Packet::parse(&packet.payload) else { return };
            self.tracks[number].reception.observe(&parsed);
            if self.video == Some(number) {
                self.follow_pictures(number, &parsed);
            }
        }
        if self.gathered.len() + packet.payload.len() > UNIT_BYTES {
            self.pass_on();
        }
        self.gathered.reserve(4 + packet.payload.len());
        self.gathered.put_slice(&head);
        self.gathered.put_slice(&packet.payload);
        self.packets += 1;
        if is_rtcp {
            let framed = [&head, &packet.payload[..]].concat();
            self.hub.report(number, framed.into());
        }
    }

    /// A picture is what has one timestamp. Whether it is a key picture may be known only by a later packet of it.
    fn follow_pictures(&mut self, video: usize, packet: &Packet) {
        if self.picture.timestamp != Some(packet.timestamp) {
            self.pass_on();
            self.picture = Picture { timestamp: Some(packet.timestamp), ..Picture::default() };
        }
        if !self.picture.is_key && self.tracks[video].join.is_key(&packet.payload) {
            self.picture.is_key = true;
            if let Some(unit) = self.picture.unit {
                self.hub.begin_group(unit);
            }
        }
    }

    fn pass_on(&mut self) {
        if self.gathered.is_empty() {
            return;
        }
        let unit =
            Unit { framed: self.gathered.split().freeze(), packets: std::mem::take(&mut self.packets) };
        let number = self.hub.push(unit);
        match self.video {
            None => self.hub.begin_group(number),
            Some(_) if self.picture.timestamp.is_some() && self.picture.unit.is_none() => {
                self.picture.unit = Some(number);
                if self.picture.is_key {
                    self.hub.begin_group(number);
                }
            }
            Some(_) => (),
        }
    }

    /// Receiver reports: some cameras end sessions that send none.
    async fn report(&mut self, session: &mut Session) -> Result<(), SessionError> {
        for track in &mut self.tracks {
            if let Some(report) = track.reception.receiver_report(REPORTER, "homing", 0) {
                session.send(track.channels.rtcp, report).await?;
            }
        }
        Ok(())
    }
}
