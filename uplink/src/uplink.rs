//! The server's end of an uplink that stands: [`Uplink`] to send requests through it, [`UplinkDriver`] to run it.
//!
//! After the upgrade the server is the HTTP/2 *client*. One driver task per uplink moves the bytes; handles are cheap
//! clones that open streams. Windows are large from the first byte: with HTTP/2's default of 64 kB one viewer
//! that stops reading blocks all others of its device, so the connection's window is that of all streams together.
//!
//! Invariant: when [`UplinkDriver::run`] has come back the socket is closed, every stream has failed, and no task is left.
//! Flow steps 5 (dispatch) and 7 (tunnel) run through it.

use crate::body::{Body, BodySender, Chunk};
use crate::engine::{self, Broken, Engine, Fault};
use crate::gate::Gated;
use crate::halves::{Receiver, Sender};
use crate::liveness::{Command, Liveness};
use crate::pace::Pace;
use crate::stream::WebSocketStream;
use crate::transport::{CloseOnDrop, Transport};
use crate::websocket::Role;
use crate::{EndReason, shown};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long to wait for GOAWAY to get out; TLS closes in order in any case.
const GOAWAY_DEADLINE: Duration = Duration::from_millis(100);

/// Received in one go, in bytes; then others on the worker have their turn.
const RECEIVED_MAX: usize = 128 * 1024;

/// What a server allows one uplink, and when it gives the device up.
#[derive(Clone, Debug)]
pub struct UplinkSettings {
    /// Credit of each stream, in bytes: the most that is buffered for a reader that stops. 1 MB.
    pub stream_window: u32,
    /// Streams at once; more wait, see [`stream_deadline`](Self::stream_deadline). 64.
    pub max_streams: u32,
    /// Bytes that wait to be sent before writers wait too. 64 kB.
    pub send_buffer: usize,
    /// Time between pings. 10 s; a device closes after 30 s without any.
    pub ping_interval: Duration,
    /// A device that sent nothing for so long is gone. 25 s.
    pub dead_after: Duration,
    /// How long a request waits for a free stream. 10 s.
    pub stream_deadline: Duration,
    /// How long a request waits for the head of its answer, from when the last piece of its body has gone out. 90 s, as
    /// ONVIF PullMessages may take a minute.
    pub response_deadline: Duration,
    /// How fast the device's answers may be taken; none: as they come.
    pub pace: Option<Arc<Pace>>,
}

impl Default for UplinkSettings {
    fn default() -> Self {
        Self {
            stream_window: 1 << 20,
            max_streams: 64,
            send_buffer: 64 << 10,
            ping_interval: Duration::from_secs(10),
            dead_after: Duration::from_secs(25),
            stream_deadline: Duration::from_secs(10),
            response_deadline: Duration::from_secs(90),
            pace: None,
        }
    }
}

/// The connection's window: all streams together, within HTTP/2's limit of 2^31 - 1.
pub(crate) fn connection_window(streams: u32, stream_window: u32) -> u32 {
    streams.saturating_mul(stream_window).clamp(65_535, i32::MAX as u32)
}

/// Why a request got no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The uplink has ended.
    #[error("the uplink has ended: {0}")]
    Ended(EndReason),
    /// The limit on streams was reached and none became free.
    #[error("all {limit} streams of the uplink are in use, and none became free within {} s", waited.as_secs())]
    NoFreeStream {
        /// [`UplinkSettings::max_streams`], or less if the device allows less.
        limit: usize,
        /// [`UplinkSettings::stream_deadline`].
        waited: Duration,
    },
    /// The head of the answer did not come in time.
    #[error("the device did not answer within {} s", waited.as_secs())]
    Timeout {
        /// [`UplinkSettings::response_deadline`].
        waited: Duration,
    },
    /// The device, or the uplink's end, broke the stream off.
    #[error("the request broke off: {0}")]
    Broken(String),
    /// The request cannot be sent in HTTP/2.
    #[error("the request is not valid: {0}")]
    Invalid(String),
}

/// Why a WebSocket was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// As for any request.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The device did not set SETTINGS_ENABLE_CONNECT_PROTOCOL.
    #[error(
        "the device does not offer WebSocket through its uplink: it did not set SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441)"
    )]
    NotSupported,
    /// The device answered with another status than 200.
    #[error("the device refused the WebSocket with {status}{}", if reason.is_empty() { String::new() } else { format!(": {reason}") })]
    Refused {
        /// Its status.
        status: StatusCode,
        /// Its `WWW-Authenticate` values: how to ask again after 401.
        challenges: Vec<String>,
        /// The beginning of its body, if that is text.
        reason: String,
    },
    /// The device chose another subprotocol than was asked for.
    #[error("the device chose the WebSocket subprotocol {chosen:?}, not {asked:?}")]
    Subprotocol {
        /// What we asked for.
        asked: String,
        /// What it chose.
        chosen: String,
    },
}

/// Figures of one uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UplinkStats {
    /// When it was accepted.
    pub connected_since: SystemTime,
    /// HTTP/2 bytes received (in `wss:` with WebSocket frames; TLS and TCP not counted).
    pub bytes_in: u64,
    /// HTTP/2 bytes sent.
    pub bytes_out: u64,
    /// Bytes received as the line carries them, with TLS, TCP and IP; estimated from how they were read.
    pub line_in: u64,
    /// Of the last ping; none before the first answer.
    pub rtt: Option<Duration>,
    /// Streams in use now.
    pub streams: usize,
}

/// A handle to one device's uplink; clones share it. Dropping handles does not end it: see [`Uplink::close`].
#[derive(Clone)]
pub struct Uplink {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Engine,
    settings: UplinkSettings,
    transport: Transport,
    connected_since: SystemTime,
    /// Microseconds; 0 until the first pong.
    rtt_us: AtomicU64,
    /// Request bodies on their way.
    uploads: TaskTracker,
}

impl Uplink {
    /// Sends a request and waits for the head of the answer; the body is streamed.
    ///
    /// The URI may be a path alone; then the `Host` header, or else `device`, is the authority. Headers that concern a
    /// connection (RFC 9113 §8.2.2) are left out. Dropping the future or the body cancels the stream.
    pub async fn request(&self, request: Request<Bytes>) -> Result<Response<Body>, RequestError> {
        let (parts, body) = request.into_parts();
        let (receiver, mut sender) = self.send_head(parts, None, body.is_empty()).await?;
        if !body.is_empty() {
            // Without waiting for credit: the bytes are the caller's and already in memory. It fails if the device has
            // answered without wanting the body: what it said decides.
            let _ = sender.send_data(Chunk::from(body), true);
        }
        self.receive_head(receiver, None).await
    }

    /// As [`request`](Self::request), with a body that is sent as it comes, with back-pressure. It goes on after the head
    /// of the answer has come, until it or the uplink ends; an error of the body resets the stream.
    pub async fn request_streaming<B>(&self, request: Request<B>) -> Result<Response<Body>, RequestError>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display + Send,
    {
        let (parts, body) = request.into_parts();
        let at_end = body.is_end_stream();
        let mut upload = None;
        let (receiver, sender) = self.send_head(parts, None, at_end).await?;
        if !at_end {
            let engine = self.shared.engine.clone();
            let (going, goes) = watch::channel(());
            upload = Some(goes);
            self.shared.uploads.spawn(async move {
                let sending = BodySender::new(Sender::Opened(sender))
                    .send_all_telling(body, || going.send_modify(|()| ()));
                tokio::select! {
                    // The receiver of the answer sees what went wrong; here it is only worth a trace.
                    sent = sending => if let Err(error) = sent {
                        tracing::debug!(%error, "request body not sent to its end");
                    },
                    _ = engine.until_ended() => {}
                }
            });
        }
        self.receive_head(receiver, upload).await
    }

    /// Begins a request whose body the caller sends as it comes, and whose answer may never come: it has no deadline.
    /// Dropping the answer cancels the stream.
    pub async fn begin(&self, request: Request<()>) -> Result<(BodySender, PendingAnswer), RequestError> {
        let (receiver, sender) = self.send_head(request.into_parts().0, None, false).await?;
        Ok((BodySender::new(Sender::Opened(sender)), PendingAnswer(receiver)))
    }

    /// Whether the device offers WebSocket: SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441 §3). Waits for its settings.
    pub async fn offers_websocket(&self) -> Result<bool, RequestError> {
        let waited = self.shared.settings.response_deadline;
        match timeout(waited, self.shared.engine.offers_websocket()).await {
            Ok(offered) => offered.map_err(RequestError::Ended),
            Err(_) => Err(RequestError::Timeout { waited }),
        }
    }

    /// Opens a WebSocket by extended CONNECT (RFC 8441 §5), `path` with query. A device that does not offer it is told by
    /// [`OpenError::NotSupported`].
    pub async fn open_websocket(
        &self,
        path: &str,
        subprotocol: &str,
        mut headers: HeaderMap,
    ) -> Result<WebSocketStream, OpenError> {
        headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        let asked = HeaderValue::from_str(subprotocol)
            .map_err(|_| RequestError::Invalid("the subprotocol is not a token".to_owned()))?;
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, asked);
        let (response, sender) = self.extended_connect(path, headers).await?;
        let (parts, body) = response.into_parts();
        if parts.status != StatusCode::OK {
            let challenges = parts.headers.get_all(header::WWW_AUTHENTICATE).iter();
            let challenges = challenges.filter_map(|value| value.to_str().ok()).map(str::to_owned).collect();
            return Err(OpenError::Refused {
                status: parts.status,
                challenges,
                reason: beginning(body).await,
            });
        }
        let chosen = parts.headers.get(header::SEC_WEBSOCKET_PROTOCOL).and_then(|value| value.to_str().ok());
        // No subprotocol in the answer is taken as agreement: some devices leave it out.
        if let Some(chosen) = chosen.filter(|chosen| !chosen.eq_ignore_ascii_case(subprotocol)) {
            return Err(OpenError::Subprotocol { asked: subprotocol.to_owned(), chosen: shown(chosen) });
        }
        Ok(WebSocketStream::new(body, sender, Role::Client, Some(subprotocol.to_owned())))
    }

    /// Asks for a WebSocket as [`open_websocket`](Self::open_websocket) does, and hands out its bytes as they are, frames
    /// and all: for a proxy between two who speak WebSocket with each other. It stands if the status is 200; any other
    /// answer is the device's own.
    pub async fn pass_websocket(
        &self,
        path: &str,
        headers: HeaderMap,
    ) -> Result<(Response<Body>, BodySender), OpenError> {
        let (response, sender) = self.extended_connect(path, headers).await?;
        Ok((response, BodySender::new(sender)))
    }

    /// RFC 8441 §4.
    async fn extended_connect(
        &self,
        path: &str,
        headers: HeaderMap,
    ) -> Result<(Response<Body>, Sender), OpenError> {
        if !self.offers_websocket().await? {
            return Err(OpenError::NotSupported);
        }
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() =
            path.parse().map_err(|_| RequestError::Invalid(format!("{:?} is not a path", shown(path))))?;
        *request.headers_mut() = headers;
        let (receiver, sender) = self.send_head(request.into_parts().0, Some("websocket"), false).await?;
        Ok((self.receive_head(receiver, None).await?, Sender::Opened(sender)))
    }

    /// Ends the uplink; `reason` is what the driver comes back with. Only the first call counts.
    pub fn close(&self, reason: EndReason) {
        self.shared.engine.close(reason);
    }

    /// Waits until the uplink has ended, and says why.
    pub async fn closed(&self) -> EndReason {
        self.shared.engine.until_ended().await
    }

    /// Whether it has ended.
    pub fn is_closed(&self) -> bool {
        self.shared.engine.ended().is_some()
    }

    /// Whether both are handles of the same uplink.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Figures as of now.
    pub fn stats(&self) -> UplinkStats {
        let rtt = self.shared.rtt_us.load(Ordering::Relaxed);
        UplinkStats {
            connected_since: self.shared.connected_since,
            bytes_in: self.shared.transport.bytes_in(),
            bytes_out: self.shared.transport.bytes_out(),
            line_in: self.shared.transport.line_in(),
            rtt: (rtt > 0).then(|| Duration::from_micros(rtt)),
            streams: self.shared.engine.streams(),
        }
    }

    /// Takes a stream and sends the head on it.
    async fn send_head(
        &self,
        parts: http::request::Parts,
        protocol: Option<&str>,
        end: bool,
    ) -> Result<(engine::Receiver, engine::Sender), RequestError> {
        let head = request_head(parts)?;
        let waited = self.shared.settings.stream_deadline;
        match timeout(waited, self.shared.engine.open(&head, protocol, end)).await {
            Ok(opened) => opened.map_err(failed),
            Err(_) => Err(RequestError::NoFreeStream { limit: self.shared.engine.streams_max(), waited }),
        }
    }

    /// `upload` changes as long as a body goes out: a device that is still being told does not answer late.
    async fn receive_head(
        &self,
        mut receiver: engine::Receiver,
        mut upload: Option<watch::Receiver<()>>,
    ) -> Result<Response<Body>, RequestError> {
        let waited = self.shared.settings.response_deadline;
        let answered = {
            let mut head = std::pin::pin!(receiver.head());
            loop {
                let goes = async {
                    match &mut upload {
                        Some(upload) => upload.changed().await.is_ok(),
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    answered = &mut head => break answered,
                    goes = goes => if !goes {
                        upload = None;
                    },
                    () = tokio::time::sleep(waited) => return Err(RequestError::Timeout { waited }),
                }
            }
        };
        match answered {
            Ok(response) => {
                let pace = self.shared.settings.pace.clone();
                Ok(response.map(|()| Body::received(Receiver::Opened(receiver, pace))))
            }
            Err(broken) => Err(failed(broken)),
        }
    }
}

impl std::fmt::Debug for Uplink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uplink")
            .field("stats", &self.stats())
            .field("end", &self.shared.engine.ended())
            .finish()
    }
}

/// The answer to a request that was begun ([`Uplink::begin`]). Dropping it cancels the request.
pub struct PendingAnswer(engine::Receiver);

impl PendingAnswer {
    /// Its head, once; an error if the request breaks off, before or after that.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<()>, RequestError>> {
        self.0.poll_head(cx).map_err(failed)
    }
}

impl std::fmt::Debug for PendingAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PendingAnswer")
    }
}

/// Runs one uplink: moves its bytes, pings, notices its end.
///
/// 1. [`run`](Self::run) it in a task of its own.
/// 2. It pings at once and then at the interval.
/// 3. It ends when the device closes, falls silent or breaks the protocol, when a handle closes it, or when told to stop.
/// 4. It closes the connection in order and comes back with the reason.
#[must_use = "an uplink does nothing until its driver runs"]
pub struct UplinkDriver {
    shared: Arc<Shared>,
    end: EndOnDrop,
}

/// Should the driver be dropped instead of run to its end, the handles must know and the socket must close.
struct EndOnDrop(Engine, #[expect(dead_code, reason = "for its Drop")] CloseOnDrop);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end(EndReason::Stopped);
    }
}

/// Why the driver ends, and what HTTP/2 has to say of it.
type End = (EndReason, Option<Fault>);

impl UplinkDriver {
    /// Begins HTTP/2 on a connection whose upgrade is done.
    pub(crate) fn begin(closing: CloseOnDrop, settings: UplinkSettings) -> (Uplink, Self) {
        let window = connection_window(settings.max_streams, settings.stream_window);
        let streams = settings.max_streams as usize;
        let engine = Engine::new(settings.stream_window, window, streams, settings.send_buffer);
        let shared = Arc::new(Shared {
            engine: engine.clone(),
            settings,
            transport: closing.0.clone(),
            connected_since: SystemTime::now(),
            rtt_us: AtomicU64::new(0),
            uploads: TaskTracker::new(),
        });
        let driver = Self { shared: Arc::clone(&shared), end: EndOnDrop(engine, closing) };
        (Uplink { shared }, driver)
    }

    /// Runs the uplink to its end, and says why it ended.
    pub async fn run(self, stop: CancellationToken) -> EndReason {
        let Self { shared, end: _end } = self;
        let (reason, fault) = shared.drive(stop).await;
        shared.engine.end(reason.clone());
        // On the heap, for its short time: the task is as small as its long life needs.
        Box::pin(shared.close(&reason, fault)).await;
        tracing::debug!(%reason, "uplink ended");
        reason
    }
}

impl Shared {
    /// Runs until there is a reason to end.
    async fn drive(self: &Arc<Self>, stop: CancellationToken) -> End {
        let mut control = Gated::new(control(Arc::clone(self), stop));
        std::future::poll_fn(|cx| {
            self.engine.register(cx.waker());
            if let Some(end) = self.poll_receive(cx) {
                return Poll::Ready(end);
            }
            if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                return Poll::Ready((end_of_io(&error), None));
            }
            if let Some(reason) = self.engine.wants_end() {
                return Poll::Ready((reason, None));
            }
            control.poll(cx).map(|reason| (reason, None))
        })
        .await
    }

    /// Receives what there is.
    fn poll_receive(&self, cx: &mut Context<'_>) -> Option<End> {
        let mut received = 0;
        while received < RECEIVED_MAX {
            let mut taken = Ok(());
            let polled = self.transport.poll_receive(cx, &mut |bytes| {
                if taken.is_ok() {
                    taken = self.engine.receive(bytes);
                }
            });
            if let Err(fault) = taken {
                return Some((fault.reason.clone(), Some(fault)));
            }
            match polled {
                Poll::Pending => return None,
                Poll::Ready(Ok(0)) => return Some((EndReason::PeerClosed, None)),
                Poll::Ready(Ok(count)) => received += count,
                Poll::Ready(Err(error)) => {
                    let reason = match self.transport.flood() {
                        Some(flood) => EndReason::Flooded { frames: flood.0 },
                        None => end_of_io(&error),
                    };
                    return Some((reason, None));
                }
            }
        }
        cx.waker().wake_by_ref();
        None
    }

    /// Sends what there is. Ready when everything is on its way.
    fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.transport.poll_send(cx))?;
            let out = self.engine.take_out();
            if out.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.transport.send(out);
        }
    }

    /// Closes the connection, in order if there is somebody to notice.
    async fn close(&self, reason: &EndReason, fault: Option<Fault>) {
        // Who floods is not waited for either.
        let peer_is_gone =
            matches!(reason, EndReason::Silent { .. } | EndReason::Io(_) | EndReason::Flooded { .. });
        if !peer_is_gone && *reason != EndReason::PeerClosed {
            self.engine.say_goodbye(fault.as_ref());
            // If it does not get out the peer does not read, and needs no goodbye.
            let _ = timeout(GOAWAY_DEADLINE, std::future::poll_fn(|cx| self.poll_send(cx))).await;
        }
        self.uploads.close();
        self.uploads.wait().await;
        if peer_is_gone {
            self.transport.abort();
        } else {
            self.transport.close().await;
        }
    }
}

/// What is rare beside the bytes of an uplink: stops, pings, silence.
async fn control(shared: Arc<Shared>, stop: CancellationToken) -> EndReason {
    let settings = &shared.settings;
    let mut liveness = Liveness::pinging(Instant::now(), settings.ping_interval, settings.dead_after);
    let mut wake = std::pin::pin!(tokio::time::sleep_until(Instant::now()));
    loop {
        match liveness.next(Instant::now(), shared.transport.last_received()) {
            Command::Ping => {
                shared.engine.ping();
                continue;
            }
            Command::WaitUntil(time) => wake.as_mut().reset(time),
            Command::Dead { silent } => return EndReason::Silent { seconds: silent.as_secs() },
        }
        tokio::select! {
            () = stop.cancelled() => return EndReason::Stopped,
            () = shared.engine.ponged(), if liveness.is_waiting() => {
                if let Some(rtt) = liveness.handle_pong(Instant::now()) {
                    shared.rtt_us.store((rtt.as_micros() as u64).max(1), Ordering::Relaxed);
                }
            }
            () = wake.as_mut() => {}
        }
    }
}

/// What the end of the connection under HTTP/2 means.
pub(crate) fn end_of_io(error: &io::Error) -> EndReason {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => EndReason::PeerClosed,
        _ => EndReason::Io(error.to_string()),
    }
}

fn failed(broken: Broken) -> RequestError {
    match broken {
        Broken::Ended(reason) => RequestError::Ended(reason),
        broken => RequestError::Broken(broken.to_string()),
    }
}

/// The head as HTTP/2 has it: an absolute URI, no headers that concern a connection.
fn request_head(mut parts: http::request::Parts) -> Result<Request<()>, RequestError> {
    let host = parts.headers.remove(header::HOST);
    if parts.uri.authority().is_none() || parts.uri.scheme().is_none() {
        let authority = match (parts.uri.authority(), &host) {
            (Some(authority), _) => authority.as_str(),
            (None, Some(host)) => host.to_str().unwrap_or("device"),
            (None, None) => "device",
        };
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        parts.uri = Uri::builder()
            .scheme("http")
            .authority(authority)
            .path_and_query(path)
            .build()
            .map_err(|error| RequestError::Invalid(error.to_string()))?;
    }
    strip_connection_headers(&mut parts.headers);
    parts.version = Version::HTTP_2;
    Ok(Request::from_parts(parts, ()))
}

/// Removes what concerns one connection only (RFC 9110 §7.6.1, RFC 9113 §8.2.2).
pub(crate) fn strip_connection_headers(headers: &mut HeaderMap) {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(|name| name.trim().to_ascii_lowercase()))
        .collect();
    for name in named {
        headers.remove(name.as_str());
    }
    for name in
        ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "http2-settings"]
    {
        headers.remove(name);
    }
    if headers.get(header::TE).is_some_and(|value| value != "trailers") {
        headers.remove(header::TE);
    }
}

/// The beginning of a refusal's body, for an error text; gives up on what is slow or long.
async fn beginning(body: Body) -> String {
    match timeout(Duration::from_secs(2), body.collect(4096)).await {
        Ok(Ok(bytes)) => shown(&String::from_utf8_lossy(&bytes)),
        _ => String::new(),
    }
}
