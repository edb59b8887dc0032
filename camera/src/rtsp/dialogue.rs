//! What a connection's requests are answered with (RFC 2326), and what has been set up so far.
//!
//! Not here: bytes, time, and the stream itself; `rtsp/mod.rs` carries out what [`Reply`] says.
//! OPTIONS may be asked by anybody; everything else needs the camera's user.

use super::sdp;
use crate::{
    camera::Camera,
    source::{Track, usual_channel},
};
use homing_media::rtsp::{Method, Request, Response, RtpInfo, SessionId, Transport};
use homing_protocol::digest::{Refusal, Rfc2069Policy};
use std::{net::IpAddr, sync::Arc};

/// The stream's path; what [`crate::Bound::rtsp_url`] ends in.
pub(crate) const STREAM_PATH: &str = "/live";

/// The path that many recorders have built in.
const VAPIX_STREAM_PATH: &str = "/axis-media/media.amp";

/// Wrong passwords on one connection, after which it is closed: guessing is not to be cheap.
const WRONG_PASSWORDS: u32 = 5;

/// Seconds without a sign of life after which a viewer is given up; told in the `Session` header.
pub(super) const SESSION_TIMEOUT_S: u32 = 60;

const METHODS: &str = "OPTIONS, DESCRIBE, SETUP, PLAY, GET_PARAMETER, SET_PARAMETER, TEARDOWN";

/// What to do about a request.
#[derive(Debug)]
pub(super) enum Reply {
    /// Send this.
    Answer(Response),
    /// Start the stream; send this, with an `RTP-Info` added, before its first packet.
    Play(Response),
    /// Stop the stream, then send this.
    Stop(Response),
    /// Send this and close the connection.
    Close(Response),
}

/// A track that was set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Channel {
    pub track: Track,
    /// The URL that SETUP was sent to, which `RTP-Info` repeats.
    pub url: String,
    pub rtp: u8,
    pub rtcp: u8,
}

/// The state of one connection.
#[derive(Debug)]
pub(super) struct Dialogue {
    camera: Arc<Camera>,
    /// The address that the client reached the camera at.
    host: IpAddr,
    session: Option<String>,
    channels: Vec<Channel>,
    is_playing: bool,
    wrong_passwords: u32,
}

/// What a URL names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resource {
    Stream,
    Track(Track),
}

impl Dialogue {
    pub fn new(camera: Arc<Camera>, host: IpAddr) -> Dialogue {
        Dialogue { camera, host, session: None, channels: Vec::new(), is_playing: false, wrong_passwords: 0 }
    }

    /// The tracks that were set up.
    pub fn channels(&self) -> &[Channel] {
        &self.channels
    }

    /// Answers a request.
    pub fn handle(&mut self, request: &Request) -> Reply {
        let cseq = request.headers.cseq();
        if cseq.is_none() {
            return Reply::Close(Response::new(400, None));
        }
        if request.method == Method::Options {
            return Reply::Answer(self.answer(request, 200).header("Public", METHODS));
        }
        if let Err(refusal) = self.check(request) {
            return self.refuse(request, refusal);
        }
        if let Some(feature) = request.headers.get("Require") {
            return Reply::Answer(self.answer(request, 551).header("Unsupported", feature));
        }
        if let (Some(given), Some(ours)) = (request.headers.get("Session"), &self.session)
            && SessionId::parse(given).is_none_or(|given| given.id != *ours)
        {
            return Reply::Answer(Response::new(454, cseq));
        }
        let Some(resource) = self.resource(&request.uri) else {
            return Reply::Answer(self.answer(request, 404));
        };
        match (&request.method, resource) {
            (Method::Describe, Resource::Stream) => Reply::Answer(self.describe(request)),
            (Method::Describe, Resource::Track(_)) => Reply::Answer(self.answer(request, 404)),
            (Method::Setup, _) => Reply::Answer(self.set_up(request, resource)),
            (Method::Play, _) => self.play(request),
            (Method::Teardown, _) if self.session.is_none() => Reply::Answer(self.answer(request, 454)),
            (Method::Teardown, _) => {
                self.session = None;
                self.channels.clear();
                self.is_playing = false;
                Reply::Stop(Response::new(200, cseq))
            }
            // Without a body they are a sign of life (RFC 2326 §10.8).
            (Method::GetParameter | Method::SetParameter, _) if request.body.is_empty() => {
                Reply::Answer(self.answer(request, 200))
            }
            (Method::GetParameter | Method::SetParameter, _) => Reply::Answer(self.answer(request, 451)),
            (Method::Pause | Method::Announce | Method::Record | Method::Redirect, _) => {
                Reply::Answer(self.answer(request, 405).header("Allow", METHODS))
            }
            (Method::Options | Method::Other(_), _) => Reply::Answer(self.answer(request, 501)),
        }
    }

    fn check(&self, request: &Request) -> Result<(), Refusal> {
        let authorization = request.headers.get("Authorization");
        self.camera
            .check(Rfc2069Policy::Accept, request.method.as_str(), &request.uri, authorization)
            .map(drop)
    }

    fn refuse(&mut self, request: &Request, refusal: Refusal) -> Reply {
        let mut answer = self.answer(request, 401);
        for challenge in self.camera.challenges(refusal) {
            answer = answer.header("WWW-Authenticate", challenge);
        }
        if matches!(refusal, Refusal::Wrong | Refusal::Malformed(_)) {
            self.wrong_passwords += 1;
        }
        if self.wrong_passwords == WRONG_PASSWORDS { Reply::Close(answer) } else { Reply::Answer(answer) }
    }

    fn describe(&self, request: &Request) -> Response {
        let accepts = request.headers.get("Accept").is_none_or(|types| {
            types
                .split(',')
                .any(|kind| matches!(kind.split(';').next().unwrap_or("").trim(), "application/sdp" | "*/*"))
        });
        if !accepts {
            return self.answer(request, 406);
        }
        let base = request.uri.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
        self.answer(request, 200)
            .header("Content-Base", format!("{base}/"))
            .header("Cache-Control", "no-cache")
            .body("application/sdp", sdp::describe(&self.camera, self.host))
    }

    fn set_up(&mut self, request: &Request, resource: Resource) -> Response {
        if self.is_playing {
            return self.answer(request, 455);
        }
        let Resource::Track(track) = resource else {
            return self.answer(request, 459);
        };
        let offered = request.headers.get("Transport").map(Transport::parse_all).unwrap_or_default();
        let taken = |channel: &u8| {
            self.channels
                .iter()
                .any(|other| other.track != track && [other.rtp, other.rtcp].contains(channel))
        };
        let usual = (usual_channel(track), usual_channel(track) + 1);
        let chosen = offered
            .into_iter()
            .filter(|transport| transport.tcp)
            .map(|transport| transport.interleaved.unwrap_or(usual))
            .find(|(rtp, rtcp)| rtp != rtcp && !taken(rtp) && !taken(rtcp));
        let Some((rtp, rtcp)) = chosen else {
            return self.answer(request, 461);
        };
        self.channels.retain(|other| other.track != track);
        self.channels.push(Channel { track, url: request.uri.clone(), rtp, rtcp });
        self.session.get_or_insert_with(|| format!("{:016X}", rand::random::<u64>()));
        let ssrc = Some(self.camera.source.ssrc(track));
        let transport = Transport { interleaved: Some((rtp, rtcp)), ssrc, ..Transport::interleaved(rtp) };
        self.answer(request, 200).header("Transport", transport.to_string())
    }

    fn play(&mut self, request: &Request) -> Reply {
        if self.session.is_none() || request.headers.get("Session").is_none() {
            return Reply::Answer(self.answer(request, 454));
        }
        let answer = self.answer(request, 200).header("Range", "npt=now-");
        // Some clients repeat PLAY as a sign of life.
        if std::mem::replace(&mut self.is_playing, true) {
            Reply::Answer(answer)
        } else {
            Reply::Play(answer)
        }
    }

    /// An answer with what belongs into every one.
    fn answer(&self, request: &Request, status: u16) -> Response {
        let answer = Response::new(status, request.headers.cseq());
        match &self.session {
            Some(id) => {
                let session = SessionId { id: id.clone(), timeout_s: SESSION_TIMEOUT_S };
                answer.header("Session", session.to_string())
            }
            None => answer,
        }
    }

    /// What a URL names. Its host is of no interest: behind a gateway or an uplink it is any.
    fn resource(&self, uri: &str) -> Option<Resource> {
        let path = match uri.split_once("://") {
            Some((_, rest)) => rest.find('/').map_or("/", |start| &rest[start..]),
            None => uri,
        };
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let below = path.strip_prefix(STREAM_PATH).or_else(|| path.strip_prefix(VAPIX_STREAM_PATH))?;
        match below.trim_end_matches('/') {
            "" => Some(Resource::Stream),
            "/video" => Some(Resource::Track(Track::Video)),
            "/audio" if self.camera.source.settings().audio => Some(Resource::Track(Track::Audio)),
            _ => None,
        }
    }
}

/// Where a track begins, for the answer to PLAY.
pub(super) fn rtp_info(channel: &Channel, sequence: u16, rtp_time: u32) -> RtpInfo {
    RtpInfo { url: channel.url.clone(), seq: Some(sequence), rtptime: Some(rtp_time) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, source::Source};
    use homing_media::sdp::{Codec, Presentation};
    use homing_protocol::{
        digest::{BasicPolicy, ClientAuth},
        secret::Credentials,
    };

    const STREAM: &str = "rtsp://any.host:1/live";

    /// A client that knows the password, and the connection's other end.
    struct Client {
        dialogue: Dialogue,
        auth: ClientAuth,
        credentials: Credentials,
        cseq: u32,
    }

    impl Client {
        fn new() -> Client {
            let config = Config { width: 160, height: 120, ..Config::default() };
            let credentials = Credentials::new("root", "sesame");
            let source = Source::shared(&config.settings().unwrap()).unwrap();
            let camera = Arc::new(Camera::new(&config, credentials.clone(), source));
            let dialogue = Dialogue::new(camera, IpAddr::from([192, 0, 2, 1]));
            Client { dialogue, auth: ClientAuth::new(BasicPolicy::Refuse), credentials, cseq: 0 }
        }

        /// A client that has been challenged already.
        fn known() -> Client {
            let mut client = Client::new();
            let reply = client.ask(Method::Describe, STREAM, &[]);
            let challenge = response(&reply);
            assert_eq!(challenge.status, 401);
            client.auth.handle_challenge(challenge.headers.get_all("WWW-Authenticate")).unwrap();
            client
        }

        fn ask(&mut self, method: Method, uri: &str, headers: &[(&str, &str)]) -> Reply {
            self.cseq += 1;
            let authorization = self.auth.authorize(method.as_str(), uri, &self.credentials).unwrap();
            let mut request = Request::new(method, uri, self.cseq);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            if let Some(authorization) = authorization {
                request = request.header("Authorization", authorization);
            }
            let reply = self.dialogue.handle(&request);
            assert_eq!(response(&reply).headers.cseq(), Some(self.cseq));
            reply
        }

        fn status(&mut self, method: Method, path: &str, headers: &[(&str, &str)]) -> u16 {
            response(&self.ask(method, &format!("{STREAM}{path}"), headers)).status
        }
    }

    fn response(reply: &Reply) -> &Response {
        match reply {
            Reply::Answer(response)
            | Reply::Play(response)
            | Reply::Stop(response)
            | Reply::Close(response) => response,
        }
    }

    const TCP: (&str, &str) = ("Transport", "RTP/AVP/TCP;unicast;interleaved=0-1");

    /// Goal: the way of every client, with what each answer must carry.
    #[test]
    fn from_options_to_teardown() {
        let mut client = Client::new();
        let reply = client.ask(Method::Options, "*", &[]);
        assert!(response(&reply).headers.get("Public").unwrap().contains("DESCRIBE"));

        let mut client = Client::known();
        let reply =
            client.ask(Method::Describe, &format!("{STREAM}?camera=1"), &[("Accept", "application/sdp")]);
        let described = response(&reply);
        assert_eq!(described.headers.get("Content-Base"), Some("rtsp://any.host:1/live/"));
        let presentation = Presentation::from_response(STREAM, described).unwrap();
        let [video, audio] = &presentation.tracks[..] else { panic!("{presentation:?}") };
        assert!(
            matches!(&video.codec, Codec::H264(Some(sets)) if (sets.width(), sets.height()) == (160, 120))
        );
        assert_eq!(video.control.as_deref(), Some("rtsp://any.host:1/live/video"));
        assert_eq!((audio.encoding.as_str(), audio.clock_rate), ("PCMU", 8000));

        let reply = client.ask(Method::Setup, &format!("{STREAM}/video"), &[TCP]);
        let set_up = response(&reply);
        let session = SessionId::parse(set_up.headers.get("Session").unwrap()).unwrap();
        assert_eq!(session.timeout_s, SESSION_TIMEOUT_S);
        let transport = Transport::parse(set_up.headers.get("Transport").unwrap());
        assert_eq!((transport.tcp, transport.interleaved), (true, Some((0, 1))));
        assert!(transport.ssrc.is_some());

        let session = [("Session", session.id.as_str())];
        let with_session = [("Transport", "RTP/AVP/TCP;unicast;interleaved=6-7"), session[0]];
        assert_eq!(client.status(Method::Setup, "/audio", &with_session), 200);
        assert_eq!(
            client.dialogue.channels().iter().map(|c| (c.rtp, c.rtcp)).collect::<Vec<_>>(),
            [(0, 1), (6, 7)]
        );

        assert!(matches!(client.ask(Method::Play, STREAM, &session), Reply::Play(_)));
        assert!(matches!(client.ask(Method::Play, STREAM, &session), Reply::Answer(_)), "a sign of life");
        assert_eq!(client.status(Method::Setup, "/video", &with_session), 455);
        assert_eq!(client.status(Method::GetParameter, "", &session), 200);
        assert!(matches!(client.ask(Method::Teardown, STREAM, &session), Reply::Stop(_)));
        assert_eq!(client.status(Method::Play, "", &session), 454);
    }

    /// Goal: nothing but OPTIONS without the password, and guessing ends the connection.
    #[test]
    fn nobody_is_let_in() {
        for method in [Method::Describe, Method::Setup, Method::Play, Method::Teardown, Method::GetParameter]
        {
            assert_eq!(Client::new().status(method.clone(), "", &[TCP]), 401, "{method}");
            assert_eq!(Client::new().status(method.clone(), "/no-such-thing", &[]), 401, "{method}");
        }
        let mut guesser = Client::known();
        guesser.credentials = Credentials::new("root", "sesam");
        for _ in 1..WRONG_PASSWORDS {
            assert!(
                matches!(guesser.ask(Method::Describe, STREAM, &[]), Reply::Answer(r) if r.status == 401)
            );
        }
        assert!(matches!(guesser.ask(Method::Describe, STREAM, &[]), Reply::Close(r) if r.status == 401));
    }

    #[test]
    fn what_is_not_done_is_refused_by_its_number() {
        let mut client = Client::known();
        let udp = [("Transport", "RTP/AVP;unicast;client_port=4588-4589")];
        for (status, method, path, headers) in [
            (404, Method::Describe, "-and-more", &[][..]),
            (404, Method::Describe, "/video", &[]),
            (406, Method::Describe, "", &[("Accept", "text/html")]),
            (461, Method::Setup, "/video", &udp),
            (461, Method::Setup, "/video", &[]),
            (461, Method::Setup, "/video", &[("Transport", "RTP/AVP/TCP;interleaved=3-3")]),
            (459, Method::Setup, "", &[TCP]),
            (454, Method::Play, "", &[]),
            (454, Method::Play, "", &[("Session", "1234")]),
            (454, Method::Teardown, "", &[]),
            (551, Method::Describe, "", &[("Require", "onvif-replay")]),
            (405, Method::Record, "", &[]),
            (501, Method::Other("MAKE_TEA".into()), "", &[]),
        ] {
            assert_eq!(client.status(method.clone(), path, headers), status, "{method} {path} {headers:?}");
        }
        assert_eq!(client.status(Method::Setup, "/video", &[TCP]), 200);
        assert_eq!(client.status(Method::Setup, "/audio", &[TCP]), 461, "the channels are taken");
        assert_eq!(client.status(Method::Play, "", &[("Session", "1234")]), 454);
        let nameless = Request { headers: Default::default(), ..Request::new(Method::Options, "*", 1) };
        assert!(matches!(client.dialogue.handle(&nameless), Reply::Close(r) if r.status == 400));
    }
}
