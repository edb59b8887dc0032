//! What a viewer's requests are answered with (RFC 2326), and what it has set up so far.
//!
//! OPTIONS may be asked by anybody; everything else needs a user of the gateway. Live only: PAUSE, recording and playback
//! from the camera's own storage are refused with the status that the standard has for it.
//!
//! Not here: bytes and time; `viewer.rs` carries out what [`Reply`] says.

use super::{
    Shared,
    door::Denied,
    streams::{Refusal, Watching},
    udp::UdpPair,
    url::Target,
};
use homing_media::rtsp::{Method, Request, Response, RtpInfo, SessionId, Transport};
use std::{net::IpAddr, sync::Arc};

/// Wrong passwords on one connection, after which it is closed.
const WRONG_PASSWORDS: u32 = 5;

/// Seconds without a sign of life after which a viewer of UDP, or one that does not play, is given up.
pub(super) const SESSION_TIMEOUT_S: u32 = 60;

const METHODS: &str = "OPTIONS, DESCRIBE, SETUP, PLAY, GET_PARAMETER, SET_PARAMETER, TEARDOWN";

const SERVER: &str = concat!("Homing/", env!("CARGO_PKG_VERSION"));

/// The longest reason in a status line; the whole is in the body.
const REASON_MAX: usize = 200;

/// What to do about a request.
pub(super) enum Reply {
    /// Send this.
    Answer(Response),
    /// Start the stream; send this, with its `Range` and `RTP-Info`, before the first packet.
    Play(Response),
    /// Stop the stream, then send this.
    Stop(Response),
    /// Send this and close the connection.
    Close(Response),
}

/// A track that was set up.
pub(super) struct Delivery {
    pub track: usize,
    /// The URL that SETUP was sent to, which `RTP-Info` repeats.
    url: String,
    pub by: By,
}

/// How its packets travel.
pub(super) enum By {
    /// In the connection, on these channels.
    Tcp { rtp: u8, rtcp: u8 },
    /// Beside it.
    Udp(UdpPair),
}

/// The state of one connection.
pub(super) struct Dialogue {
    shared: Arc<Shared>,
    /// The client's address, and ours that it reached.
    peer: IpAddr,
    local: IpAddr,
    pub user: Option<String>,
    session: Option<String>,
    pub target: Option<Target>,
    pub watching: Option<Watching>,
    pub deliveries: Vec<Delivery>,
    pub is_playing: bool,
    wrong_passwords: u32,
}

impl Dialogue {
    pub fn new(shared: Arc<Shared>, peer: IpAddr, local: IpAddr) -> Self {
        Dialogue {
            shared,
            peer,
            local,
            user: None,
            session: None,
            target: None,
            watching: None,
            deliveries: Vec::new(),
            is_playing: false,
            wrong_passwords: 0,
        }
    }

    /// Answers a request; may wait for the device.
    pub async fn handle(&mut self, request: &Request) -> Reply {
        let cseq = request.headers.cseq();
        if cseq.is_none() {
            return Reply::Close(refuse(None, 400, "a request without CSeq"));
        }
        if request.method == Method::Options {
            return Reply::Answer(self.answer(request).header("Public", METHODS));
        }
        match self.shared.door.check(self.peer, request) {
            Ok(user) => self.user = Some(user),
            Err(denied) => return self.deny(request, denied),
        }
        if let Some(feature) = request.headers.get("Require") {
            let words = format!("the gateway plays what is live; {feature} is not supported");
            return Reply::Answer(refuse(cseq, 551, &words).header("Unsupported", feature));
        }
        if let (Some(given), Some(ours)) = (request.headers.get("Session"), &self.session)
            && SessionId::parse(given).is_none_or(|given| given.id != *ours)
        {
            return Reply::Answer(refuse(cseq, 454, "this connection has another session"));
        }
        match self.carry_out(request).await {
            Ok(reply) => reply,
            Err(Refusal { status, words }) => {
                self.shared.streams.metrics.gateway_refuse(status);
                Reply::Answer(refuse(cseq, status, &words))
            }
        }
    }

    async fn carry_out(&mut self, request: &Request) -> Result<Reply, Refusal> {
        match &request.method {
            Method::Describe => self.describe(request).await.map(Reply::Answer),
            Method::Setup => self.set_up(request).await.map(Reply::Answer),
            Method::Play => self.play(request),
            Method::Teardown => {
                self.in_session(request)?;
                self.forget_session();
                Ok(Reply::Stop(self.answer(request)))
            }
            // Without a body they are a sign of life (RFC 2326 §10.8).
            Method::GetParameter | Method::SetParameter if request.body.is_empty() => {
                Ok(Reply::Answer(self.answer(request)))
            }
            Method::GetParameter | Method::SetParameter => Err(refusal(451, "there are no parameters")),
            Method::Pause | Method::Announce | Method::Record | Method::Redirect => {
                let words = format!("{} is for recordings; here is what is live", request.method);
                let answer = refuse(request.headers.cseq(), 405, &words).header("Allow", METHODS);
                Ok(Reply::Answer(answer))
            }
            Method::Options | Method::Other(_) => Err(refusal(501, "an unknown method")),
        }
    }

    async fn describe(&mut self, request: &Request) -> Result<Response, Refusal> {
        let accepts = request.headers.get("Accept").is_none_or(|types| {
            let kinds = types.split(',').map(|kind| kind.split(';').next().unwrap_or_default().trim());
            kinds.into_iter().any(|kind| matches!(kind, "application/sdp" | "application/*" | "*/*"))
        });
        if !accepts {
            return Err(refusal(406, "streams are described by application/sdp"));
        }
        if self.is_playing {
            return Err(refusal(455, "this session plays already"));
        }
        let target = target(request)?;
        self.watch(&target).await?;
        let Some(watching) = &self.watching else { return Err(refusal(500, "the stream is not there")) };
        let sdp = super::sdp::rewrite(&watching.offer.sdp, &watching.offer.sections, &target);
        Ok(self
            .answer(request)
            .header("Content-Base", format!("{}/", target.url().trim_end_matches('/')))
            .header("Cache-Control", "no-cache")
            .body("application/sdp", sdp))
    }

    async fn set_up(&mut self, request: &Request) -> Result<Response, Refusal> {
        if self.is_playing {
            return Err(refusal(455, "this session plays already"));
        }
        let target = target(request)?;
        self.watch(&target).await?;
        let tracks = self.watching.as_ref().map_or(0, |watching| watching.offer.tracks.len());
        let track = match target.track {
            // The only track is set up by the stream's own URL.
            None if tracks == 1 => 0,
            None => return Err(refusal(459, "each track is set up by its own URL, which DESCRIBE tells")),
            Some(track) if track < tracks => track,
            Some(_) => return Err(refusal(404, "there is no such track")),
        };
        let offered = request.headers.get("Transport").map(Transport::parse_all).unwrap_or_default();
        self.deliveries.retain(|other| other.track != track);
        let (by, transport) = self.choose(&offered, track).await?;
        self.deliveries.push(Delivery { track, url: request.uri.clone(), by });
        self.session.get_or_insert_with(|| format!("{:016X}", rand::random::<u64>()));
        Ok(self.answer(request).header("Transport", transport.to_string()))
    }

    /// TCP where the client offers it at all; else UDP, which it then insists on.
    async fn choose(&self, offered: &[Transport], track: usize) -> Result<(By, Transport), Refusal> {
        let taken = |channel: u8| {
            self.deliveries
                .iter()
                .any(|other| matches!(other.by, By::Tcp { rtp, rtcp } if [rtp, rtcp].contains(&channel)))
        };
        let usual = (2 * track as u8, 2 * track as u8 + 1);
        let tcp = offered.iter().filter(|transport| transport.tcp);
        let mut channels = tcp.map(|transport| transport.interleaved.unwrap_or(usual));
        if let Some((rtp, rtcp)) = channels.find(|&(rtp, rtcp)| rtp != rtcp && !taken(rtp) && !taken(rtcp)) {
            let transport = Transport { interleaved: Some((rtp, rtcp)), ..Transport::interleaved(rtp) };
            return Ok((By::Tcp { rtp, rtcp }, transport));
        }
        let limits = &self.shared.streams.limits;
        let to = offered.iter().filter(|transport| transport.udp).find_map(|transport| transport.client_port);
        let Some(to) = to.filter(|_| limits.udp) else {
            return Err(refusal(461, "RTP/AVP/TCP, and RTP/AVP (UDP) where the gateway allows it"));
        };
        let pair = UdpPair::open(self.local, self.peer, to, limits.udp_ports).await.map_err(|error| {
            tracing::warn!(%error, "no UDP ports for a viewer; check [tunnel.gateway] udp_ports");
            refusal(461, "the gateway has no UDP ports left; use RTP/AVP/TCP")
        })?;
        let ports = (Some(to), Some(pair.ports));
        let transport =
            Transport { udp: true, client_port: ports.0, server_port: ports.1, ..Transport::default() };
        Ok((By::Udp(pair), transport))
    }

    fn play(&mut self, request: &Request) -> Result<Reply, Refusal> {
        self.in_session(request)?;
        if self.deliveries.is_empty() || self.watching.is_none() {
            return Err(refusal(455, "nothing is set up"));
        }
        if let Some(range) = request.headers.get("Range")
            && !is_live(range)
        {
            return Err(refusal(457, "the gateway plays what is live; leave Range away"));
        }
        let answer = self.answer(request);
        // Some clients repeat PLAY as a sign of life.
        Ok(if std::mem::replace(&mut self.is_playing, true) {
            Reply::Answer(answer)
        } else {
            Reply::Play(answer)
        })
    }

    /// How the stream begins, for the answer to PLAY.
    pub fn rtp_info(&self, beginning: &[Option<(u16, u32)>]) -> String {
        let info = self.deliveries.iter().map(|delivery| {
            let known = beginning.get(delivery.track).copied().flatten();
            let (seq, rtptime) = (known.map(|(seq, _)| seq), known.map(|(_, time)| time));
            RtpInfo { url: delivery.url.clone(), seq, rtptime }.to_string()
        });
        info.collect::<Vec<_>>().join(",")
    }

    /// The session did not come to play, or is over.
    pub fn forget_session(&mut self) {
        self.deliveries.clear();
        (self.session, self.watching, self.target, self.is_playing) = (None, None, None, false);
    }

    /// Joins the stream that is meant, unless it is the one already.
    async fn watch(&mut self, target: &Target) -> Result<(), Refusal> {
        if self.watching.is_some() && self.target.as_ref().is_some_and(|ours| ours.is_same_stream(target)) {
            return Ok(());
        }
        if !self.deliveries.is_empty() {
            return Err(refusal(459, "tracks of one session are of one stream"));
        }
        // A stream that has ended is found out by opening it anew.
        self.watching = None;
        self.watching = Some(self.shared.streams.watch(target.serial, &target.stream).await?);
        self.target = Some(target.clone());
        Ok(())
    }

    fn in_session(&self, request: &Request) -> Result<(), Refusal> {
        match (&self.session, request.headers.get("Session")) {
            (Some(_), Some(_)) => Ok(()),
            _ => Err(refusal(454, "there is no such session")),
        }
    }

    fn deny(&mut self, request: &Request, denied: Denied) -> Reply {
        let cseq = request.headers.cseq();
        match denied {
            Denied::Challenged { challenges, is_wrong } => {
                let mut answer = Response::new(401, cseq).header("Server", SERVER);
                for challenge in challenges {
                    answer = answer.header("WWW-Authenticate", challenge);
                }
                if is_wrong {
                    self.wrong_passwords += 1;
                    self.shared.streams.metrics.gateway_refuse(401);
                    tracing::info!(peer = %self.peer, "an RTSP client gave a wrong user or password");
                }
                if self.wrong_passwords >= WRONG_PASSWORDS {
                    Reply::Close(answer)
                } else {
                    Reply::Answer(answer)
                }
            }
            Denied::TooMany(wait) => {
                self.shared.streams.metrics.gateway_refuse(403);
                let words = "too many wrong passwords from this address; try again in a while";
                let after = (wait.as_secs() + 1).to_string();
                Reply::Close(refuse(cseq, 403, words).header("Retry-After", after))
            }
        }
    }

    /// An answer with what belongs into every one.
    fn answer(&self, request: &Request) -> Response {
        let answer = Response::new(200, request.headers.cseq()).header("Server", SERVER);
        match &self.session {
            Some(id) => {
                let session = SessionId { id: id.clone(), timeout_s: SESSION_TIMEOUT_S };
                answer.header("Session", session.to_string())
            }
            None => answer,
        }
    }
}

fn target(request: &Request) -> Result<Target, Refusal> {
    let words = "the URL names no device; it is rtsp://host:port/SERIAL, with the device's serial number";
    Target::parse(&request.uri).ok_or_else(|| refusal(404, words))
}

/// From now on, in one of the ways in which players say it.
fn is_live(range: &str) -> bool {
    let Some(npt) = range.trim().strip_prefix("npt=") else { return false };
    let start = npt.split([';', '-']).next().unwrap_or_default().trim();
    matches!(start, "now" | "") || start.parse::<f64>() == Ok(0.0)
}

fn refusal(status: u16, words: &str) -> Refusal {
    Refusal { status, words: words.to_owned() }
}

/// An answer that says what is wrong: players show the status line, so that it is there, too.
pub(super) fn refuse(cseq: Option<u32>, status: u16, words: &str) -> Response {
    let mut answer = Response::new(status, cseq).header("Server", SERVER);
    let printable = words.chars().map(|c| if c.is_ascii_graphic() { c } else { ' ' });
    answer.reason = format!("{} - {}", answer.reason, printable.take(REASON_MAX).collect::<String>());
    answer.body("text/plain; charset=utf-8", format!("{words}\r\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: every way in which players ask for what is live is taken, and everything that is not is refused.
    #[test]
    fn ranges() {
        for live in ["npt=0.000-", "npt=0-", "npt=now-", "npt=-", "npt=0.000000-;time=x"] {
            assert!(is_live(live), "{live}");
        }
        for recorded in ["npt=30-", "clock=20261122T070000Z-", "smpte=0:10:00-", "npt=1.5-3"] {
            assert!(!is_live(recorded), "{recorded}");
        }
    }

    /// Goal: words of a refusal fit a status line, whatever is in them.
    #[test]
    fn words_fit_a_line() {
        let answer = refuse(Some(3), 503, &"é\r\nX: y ".repeat(100));
        assert!(answer.reason.starts_with("Service Unavailable - ") && answer.reason.len() < 250);
        assert!(!answer.reason.contains(['\r', '\n']));
    }
}
