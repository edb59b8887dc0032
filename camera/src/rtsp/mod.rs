//! The RTSP listener: RTP and RTCP interleaved in the connection (RFC 2326 §10.12), nothing else.
//!
//! # A connection's life
//!
//! 1. Requests are read and answered ([`dialogue`]) until PLAY; a client that is silent for
//!    [`GREETING_DEADLINE`] before that is given up.
//! 2. PLAY is answered once the first key frame is there, since `RTP-Info` must tell what comes
//!    first. Then a sender report for each track, so that the receiver knows the wall-clock time of
//!    the very first packet, then the packets.
//! 3. From then on packets are written as they come, a sender report every [`REPORT_EVERY_US`], and
//!    requests answered between them. The viewer must give a sign of life, a request or a receiver
//!    report, within the session's timeout.
//! 4. A viewer that falls behind the source's queue, or takes no byte for [`WRITE_DEADLINE`], is cut
//!    with a line in the log; nobody else notices.

mod dialogue;
mod sdp;

pub(crate) use dialogue::STREAM_PATH;

use crate::{
    camera::{Camera, Session},
    source::{Lagged, Track, Unit, Watch},
};
use anyhow::{Context, bail, ensure};
use bytes::{Bytes, BytesMut};
use dialogue::{Channel, Dialogue, Reply, SESSION_TIMEOUT_S};
use homing_base::{Stop, listen};
use homing_media::{
    rtp::SenderReport,
    rtsp::{Decoder, DecoderLimits, Interleaved, Message, Response},
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    time::{Instant, sleep_until, timeout},
};

/// Connections at once; more wait in the kernel.
const CONNECTION_LIMIT: usize = 256;

/// For each request until PLAY.
const GREETING_DEADLINE: Duration = Duration::from_secs(10);

/// For a viewer's socket to take what is written.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);

/// What the kernel keeps for a viewer that reads slowly: seconds of video, not the minutes that it
/// would grow to by itself.
const SEND_BUFFER_BYTES: usize = 256 * 1024;

/// For the first key frame after PLAY: one frame's time, or a second if others have just asked, too.
const START_DEADLINE: Duration = Duration::from_secs(5);

/// From one sender report to the next, by the stream's own time (RFC 3550 §6.2 suggests 5 s).
const REPORT_EVERY_US: i64 = 5_000_000;

/// What a request may be; the longest real ones have 1 kB.
const LIMITS: DecoderLimits = DecoderLimits {
    header_bytes: 8 * 1024,
    header_lines: 64,
    body_bytes: 4 * 1024,
    resync_bytes: 0,
    resync_channels: 4,
};

/// Seconds from the NTP era's start (1900) to Unix time's.
const NTP_TO_UNIX_S: u64 = 2_208_988_800;

/// Serves until the role stops.
pub(crate) async fn serve(listener: TcpListener, camera: Arc<Camera>, stop: Stop) {
    let limit_stop = stop.clone();
    listen::accept_loop(listener, CONNECTION_LIMIT, limit_stop, move |tcp, peer| {
        let (camera, stop) = (camera.clone(), stop.clone());
        async move {
            let cut = camera.cut_token();
            let ended = tokio::select! {
                ended = connection(tcp, peer, camera.clone()) => ended,
                () = cut.cancelled() => Ok(()),
                () = stop.cancelled() => Ok(()),
            };
            if let Err(error) = ended {
                tracing::info!(camera = camera.name, %peer, error = format!("{error:#}"), "RTSP connection ended");
            }
        }
    })
    .await;
}

async fn connection(mut tcp: TcpStream, peer: SocketAddr, camera: Arc<Camera>) -> anyhow::Result<()> {
    let host = tcp.local_addr().context("no address of our own")?.ip();
    socket2::SockRef::from(&tcp).set_send_buffer_size(SEND_BUFFER_BYTES).context("send buffer")?;
    let (reader, writer) = tcp.split();
    let mut connection = Connection {
        peer,
        dialogue: Dialogue::new(camera.clone(), host),
        camera,
        reader,
        writer,
        decoder: Decoder::new(LIMITS),
        input: BytesMut::with_capacity(2048),
        playing: None,
    };
    connection.run().await
}

struct Connection<'a> {
    camera: Arc<Camera>,
    peer: SocketAddr,
    reader: ReadHalf<'a>,
    writer: WriteHalf<'a>,
    decoder: Decoder,
    input: BytesMut,
    dialogue: Dialogue,
    playing: Option<Playing>,
}

/// A viewer's stream.
struct Playing {
    watch: Watch,
    channels: Vec<ChannelState>,
    session: Arc<Session>,
    /// Nothing of a picture is sent before the next key frame.
    needs_key: bool,
}

struct ChannelState {
    channel: Channel,
    ssrc: u32,
    packets: u32,
    octets: u32,
    next_report_us: i64,
}

impl Drop for Playing {
    fn drop(&mut self) {
        self.session.end();
    }
}

impl Connection<'_> {
    async fn run(&mut self) -> anyhow::Result<()> {
        let mut heard = Instant::now();
        loop {
            let patience = match self.playing {
                None => GREETING_DEADLINE,
                Some(_) => Duration::from_secs(SESSION_TIMEOUT_S.into()),
            };
            tokio::select! {
                read = self.reader.read_buf(&mut self.input) => {
                    if read.context("cannot read")? == 0 {
                        ensure!(!self.decoder.is_mid_message(&self.input), "closed within a request");
                        return Ok(());
                    }
                    while let Some(message) = self.decoder.decode(&mut self.input)? {
                        heard = Instant::now();
                        if !self.handle(message).await? {
                            return Ok(());
                        }
                    }
                }
                unit = next_unit(&mut self.playing) => {
                    let unit = unit?;
                    self.send(&unit).await?;
                }
                () = sleep_until(heard + patience) => {
                    bail!("silent for {} s", patience.as_secs());
                }
            }
        }
    }

    /// Answers a message. `false`: the connection is to be closed.
    async fn handle(&mut self, message: Message) -> anyhow::Result<bool> {
        let request = match message {
            Message::Request(request) => request,
            // Receiver reports, and answers to requests that were never made: signs of life.
            Message::Interleaved(_) | Message::Response(_) => return Ok(true),
        };
        match self.dialogue.handle(&request) {
            Reply::Answer(response) => self.answer(response).await?,
            Reply::Play(response) => self.play(response).await?,
            Reply::Stop(response) => {
                self.playing = None;
                self.answer(response).await?;
            }
            Reply::Close(response) => {
                self.answer(response).await?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Starts the stream at a key frame that is made for this viewer.
    async fn play(&mut self, response: Response) -> anyhow::Result<()> {
        let channels: Vec<ChannelState> = self
            .dialogue
            .channels()
            .iter()
            .map(|channel| ChannelState {
                channel: channel.clone(),
                ssrc: self.camera.source.ssrc(channel.track),
                packets: 0,
                octets: 0,
                next_report_us: i64::MIN,
            })
            .collect();
        let wants_video = channels.iter().any(|state| state.channel.track == Track::Video);
        let mut watch = self.camera.source.watch();
        watch.ask_for_key();
        let first = timeout(START_DEADLINE, async {
            loop {
                let unit = watch.next().await?;
                if unit.is_key && (unit.track == Track::Video) == wants_video {
                    return Ok::<_, Lagged>(unit);
                }
            }
        });
        let first = first.await.context("no key frame in time")??;

        let info: Vec<String> = channels
            .iter()
            .map(|ChannelState { channel, .. }| {
                let (sequence, rtp_time) = match channel.track {
                    track if track == first.track => (first.sequence, first.rtp_time),
                    _ => first.next_audio,
                };
                dialogue::rtp_info(channel, sequence, rtp_time).to_string()
            })
            .collect();
        self.answer(response.header("RTP-Info", info.join(","))).await?;
        let session = self.camera.begin_session(self.peer);
        tracing::info!(camera = self.camera.name, peer = %self.peer, frame = first.frame, "viewer");
        self.playing = Some(Playing { watch, channels, session, needs_key: wants_video });
        self.send(&first).await
    }

    /// Sends a unit, if this viewer is to have it.
    async fn send(&mut self, unit: &Unit) -> anyhow::Result<()> {
        let Some(playing) = &mut self.playing else { return Ok(()) };
        let Some(state) = playing.channels.iter_mut().find(|state| state.channel.track == unit.track) else {
            return Ok(());
        };
        if self.camera.is_silent() {
            playing.needs_key = unit.track == Track::Video || playing.needs_key;
            return Ok(());
        }
        if unit.track == Track::Video && playing.needs_key {
            if !unit.is_key {
                playing.watch.ask_for_key();
                return Ok(());
            }
            playing.needs_key = false;
        }
        if unit.taken_us >= state.next_report_us {
            state.next_report_us = unit.taken_us + REPORT_EVERY_US;
            let report = state.report(unit, &self.camera.serial.to_string());
            write(&mut self.writer, report).await?;
        }
        state.packets = state.packets.wrapping_add(unit.packets);
        state.octets = state.octets.wrapping_add(unit.octets);
        write(&mut self.writer, unit.framed(state.channel.rtp)).await?;
        playing.session.sent(unit);
        Ok(())
    }

    async fn answer(&mut self, response: Response) -> anyhow::Result<()> {
        let mut bytes = BytesMut::new();
        response.header("Server", concat!("Homing camera/", env!("CARGO_PKG_VERSION"))).encode(&mut bytes);
        write(&mut self.writer, bytes.freeze()).await
    }
}

impl ChannelState {
    /// The sender report that ties this unit's RTP time to wall-clock time.
    fn report(&self, unit: &Unit, name: &str) -> Bytes {
        let unix_us = unit.taken_us as u64;
        let fraction = ((unix_us % 1_000_000) << 32) / 1_000_000;
        let ntp = (unix_us / 1_000_000 + NTP_TO_UNIX_S) << 32 | fraction;
        let report = SenderReport { ssrc: self.ssrc, ntp, rtp: unit.rtp_time };
        let payload = report.encode(self.packets, self.octets, name);
        let mut framed = BytesMut::with_capacity(payload.len() + 4);
        let is_encoded = Interleaved { channel: self.channel.rtcp, payload }.encode(&mut framed);
        debug_assert!(is_encoded, "a sender report is far shorter than 64 kB");
        framed.freeze()
    }
}

/// The next unit of the stream, if there is one; else waits for ever.
async fn next_unit(playing: &mut Option<Playing>) -> anyhow::Result<Arc<Unit>> {
    match playing {
        Some(playing) => playing.watch.next().await.context("too slow a viewer, cut"),
        None => std::future::pending().await,
    }
}

async fn write(writer: &mut WriteHalf<'_>, bytes: Bytes) -> anyhow::Result<()> {
    match timeout(WRITE_DEADLINE, writer.write_all(&bytes)).await {
        Ok(written) => written.context("cannot write"),
        Err(_) => bail!("takes nothing for {} s, cut", WRITE_DEADLINE.as_secs()),
    }
}
