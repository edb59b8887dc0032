//! The server's end of an uplink that stands: [`Uplink`] to send requests through it, [`UplinkDriver`] to run it.
//!
//! After the upgrade the server is the HTTP/2 *client*. One driver task per uplink moves the bytes; handles are cheap
//! clones that open streams. Windows are large from the first byte: with HTTP/2's default of 64 kB one viewer
//! that stops reading blocks all others of its device, so the connection's window is that of all streams together.
//!
//! Invariant: when [`UplinkDriver::run`] has come back the socket is closed, every stream has failed, and no task is left.
//! Flow steps 5 (dispatch) and 7 (tunnel) run through it.

use crate::body::{Body, BodySender, Chunk, DATA_MAX, describe};
use crate::gate::Gated;
use crate::liveness::{Command, Liveness};
use crate::pace::Pace;
use crate::stream::WebSocketStream;
use crate::transport::{CloseOnDrop, Transport};
use crate::websocket::Role;
use crate::{EndReason, shown};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Poll;
use std::time::{Duration, SystemTime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long to wait for GOAWAY to get out. h2 sends it only when no stream is left; TLS closes in order in any case.
const GOAWAY_DEADLINE: Duration = Duration::from_millis(100);

/// Longest header list that a device may answer with, in bytes.
const HEADER_LIST_MAX: u32 = 32 * 1024;

/// What a server allows one uplink, and when it gives the device up.
#[derive(Clone, Debug)]
pub struct UplinkSettings {
    /// Credit of each stream, in bytes: the most that is buffered for a reader that stops. 1 MB.
    pub stream_window: u32,
    /// Streams at once; more wait, see [`stream_deadline`](Self::stream_deadline). 64.
    pub max_streams: u32,
    /// Bytes queued for sending per stream before its writer waits. 128 kB.
    pub send_buffer: usize,
    /// Time between pings. 10 s; a device closes after 30 s without any.
    pub ping_interval: Duration,
    /// A device that sent nothing for so long is gone. 25 s.
    pub dead_after: Duration,
    /// How long a request waits for a free stream. 10 s.
    pub stream_deadline: Duration,
    /// How long a request waits for the head of its answer. 90 s, as ONVIF PullMessages may take a minute.
    pub response_deadline: Duration,
    /// How fast the device's answers may be taken; none: as they come.
    pub pace: Option<Arc<Pace>>,
}

impl Default for UplinkSettings {
    fn default() -> Self {
        Self {
            stream_window: 1 << 20,
            max_streams: 64,
            send_buffer: 128 << 10,
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
    /// The device did not set SETTINGS_ENABLE_CONNECT_PROTOCOL; RTSP over HTTP may work instead.
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
    /// None once the driver ends, so that nobody opens a stream on a dead connection.
    sender: Mutex<Option<h2::client::SendRequest<Chunk>>>,
    settings: UplinkSettings,
    transport: Transport,
    connected_since: SystemTime,
    /// Microseconds; 0 until the first pong.
    rtt_us: AtomicU64,
    streams: Arc<Semaphore>,
    /// The first pong came, hence the device's SETTINGS.
    settled: CancellationToken,
    closing: CancellationToken,
    close_reason: OnceLock<EndReason>,
    ended: CancellationToken,
    end_reason: OnceLock<EndReason>,
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
        let (response, mut sender, permit) = self.send_head(parts, body.is_empty()).await?;
        if !body.is_empty() {
            let mut rest = body;
            // Without waiting for credit: the bytes are the caller's and already in memory.
            while !rest.is_empty() {
                let piece = rest.split_to(rest.len().min(DATA_MAX));
                let end = rest.is_empty();
                if sender.send_data(Chunk::from(piece), end).is_err() {
                    // The device may have answered without wanting the body: what it said decides.
                    break;
                }
            }
        }
        self.receive_head(response, permit).await
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
        let (response, sender, permit) = self.send_head(parts, at_end).await?;
        if !at_end {
            let ended = self.shared.ended.clone();
            self.shared.uploads.spawn(async move {
                let sending = BodySender::new(sender).send_all(body);
                // The receiver of the answer sees what went wrong; here it is only worth a trace.
                if let Some(Err(error)) = ended.run_until_cancelled(sending).await {
                    tracing::debug!(%error, "request body not sent to its end");
                }
            });
        }
        self.receive_head(response, permit).await
    }

    /// Opens a WebSocket by extended CONNECT (RFC 8441 §5), `path` with query. A device that does not offer it is told by
    /// [`OpenError::NotSupported`].
    pub async fn open_websocket(
        &self,
        path: &str,
        subprotocol: &str,
        headers: HeaderMap,
    ) -> Result<WebSocketStream, OpenError> {
        let deadline = self.shared.settings.response_deadline;
        let settled = self.shared.ended.run_until_cancelled(self.shared.settled.cancelled());
        match timeout(deadline, settled).await {
            Ok(Some(())) => {}
            Ok(None) => return Err(RequestError::Ended(self.end_reason()).into()),
            Err(_) => return Err(RequestError::Timeout { waited: deadline }.into()),
        }
        if !self.sender()?.is_extended_connect_protocol_enabled() {
            return Err(OpenError::NotSupported);
        }
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() =
            path.parse().map_err(|_| RequestError::Invalid(format!("{:?} is not a path", shown(path))))?;
        *request.headers_mut() = headers;
        request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        request.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        let asked = HeaderValue::from_str(subprotocol)
            .map_err(|_| RequestError::Invalid("the subprotocol is not a token".to_owned()))?;
        request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, asked);

        let (response, sender, permit) = self.send_head(request.into_parts().0, false).await?;
        let (parts, body) = self.receive_head(response, permit).await?.into_parts();
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

    /// Ends the uplink; `reason` is what the driver comes back with. Only the first call counts.
    pub fn close(&self, reason: EndReason) {
        // A second reason is dropped on purpose.
        let _ = self.shared.close_reason.set(reason);
        self.shared.closing.cancel();
    }

    /// Waits until the uplink has ended, and says why.
    pub async fn closed(&self) -> EndReason {
        self.shared.ended.cancelled().await;
        self.end_reason()
    }

    /// Whether it has ended.
    pub fn is_closed(&self) -> bool {
        self.shared.ended.is_cancelled()
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
            rtt: (rtt > 0).then(|| Duration::from_micros(rtt)),
            streams: self.shared.settings.max_streams as usize - self.shared.streams.available_permits(),
        }
    }

    /// Takes a stream and sends the head on it.
    async fn send_head(
        &self,
        parts: http::request::Parts,
        end: bool,
    ) -> Result<(h2::client::ResponseFuture, h2::SendStream<Chunk>, OwnedSemaphorePermit), RequestError> {
        let head = request_head(parts)?;
        let waited = self.shared.settings.stream_deadline;
        let taking = async {
            let permit = Arc::clone(&self.shared.streams).acquire_owned().await;
            let permit = permit.map_err(|_| RequestError::Ended(self.end_reason()))?;
            // The device may allow fewer streams than we do.
            let sender = self.sender()?.ready().await.map_err(|error| self.failed(&error))?;
            Ok((permit, sender))
        };
        let Ok(taken) = timeout(waited, taking).await else {
            let limit =
                self.sender()?.current_max_send_streams().min(self.shared.settings.max_streams as usize);
            return Err(RequestError::NoFreeStream { limit, waited });
        };
        let (permit, mut sender) = taken?;
        let (response, stream) =
            sender.send_request(head, end).map_err(|error| match error.is_io() || error.is_go_away() {
                true => self.failed(&error),
                false => RequestError::Invalid(error.to_string()),
            })?;
        Ok((response, stream, permit))
    }

    async fn receive_head(
        &self,
        response: h2::client::ResponseFuture,
        permit: OwnedSemaphorePermit,
    ) -> Result<Response<Body>, RequestError> {
        let waited = self.shared.settings.response_deadline;
        match timeout(waited, response).await {
            Ok(Ok(response)) => {
                let pace = self.shared.settings.pace.clone();
                Ok(response.map(|stream| Body::received(stream, Some(permit)).paced(pace)))
            }
            Ok(Err(error)) => Err(self.failed(&error)),
            Err(_) => Err(RequestError::Timeout { waited }),
        }
    }

    fn sender(&self) -> Result<h2::client::SendRequest<Chunk>, RequestError> {
        let sender = self.shared.sender.lock().unwrap_or_else(PoisonError::into_inner);
        sender.clone().ok_or_else(|| RequestError::Ended(self.end_reason()))
    }

    fn failed(&self, error: &h2::Error) -> RequestError {
        match self.shared.end_reason.get() {
            Some(reason) => RequestError::Ended(reason.clone()),
            None => broken(error),
        }
    }

    fn end_reason(&self) -> EndReason {
        self.shared
            .end_reason
            .get()
            .or(self.shared.close_reason.get())
            .cloned()
            .unwrap_or(EndReason::PeerClosed)
    }
}

impl std::fmt::Debug for Uplink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uplink")
            .field("stats", &self.stats())
            .field("end", &self.shared.end_reason.get())
            .finish()
    }
}

/// Runs one uplink: moves its bytes, pings, notices its end.
///
/// 1. [`run`](Self::run) it in a task of its own.
/// 2. It pings at once and then at the interval; the first answer means that the device's settings are known.
/// 3. It ends when the device closes, falls silent or breaks the protocol, when a handle closes it, or when told to stop.
/// 4. It closes the connection in order and comes back with the reason.
#[must_use = "an uplink does nothing until its driver runs"]
pub struct UplinkDriver {
    shared: Arc<Shared>,
    /// On the heap, so that the driver's task does not hold it twice, while it runs and while it ends.
    connection: Box<h2::client::Connection<Transport, Chunk>>,
    end: EndOnDrop,
}

/// Should the driver be dropped instead of run to its end, the handles must know and the socket must close.
struct EndOnDrop(Arc<Shared>, #[expect(dead_code, reason = "for its Drop")] CloseOnDrop);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.handle_end(EndReason::Stopped);
    }
}

impl Shared {
    /// From here every request fails with this reason; the first counts.
    fn handle_end(&self, reason: EndReason) {
        // A second reason is dropped on purpose.
        let _ = self.end_reason.set(reason);
        *self.sender.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.streams.close();
        self.ended.cancel();
    }
}

impl UplinkDriver {
    /// Begins HTTP/2 on a connection whose upgrade is done.
    pub(crate) async fn begin(
        closing: CloseOnDrop,
        settings: UplinkSettings,
    ) -> Result<(Uplink, Self), h2::Error> {
        let transport = closing.0.clone();
        let window = connection_window(settings.max_streams, settings.stream_window);
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(settings.stream_window)
            .initial_connection_window_size(window)
            .max_send_buffer_size(settings.send_buffer)
            .max_header_list_size(HEADER_LIST_MAX)
            .enable_push(false)
            // Audio and RTCP come in small frames; h2's default budget would end the tunnel when one viewer stalls.
            .data_frame_budget(window as usize)
            .handshake(transport.clone())
            .await?;
        let shared = Arc::new(Shared {
            sender: Mutex::new(Some(sender)),
            streams: Arc::new(Semaphore::new(settings.max_streams as usize)),
            settings,
            transport,
            connected_since: SystemTime::now(),
            rtt_us: AtomicU64::new(0),
            settled: CancellationToken::new(),
            closing: CancellationToken::new(),
            close_reason: OnceLock::new(),
            ended: CancellationToken::new(),
            end_reason: OnceLock::new(),
            uploads: TaskTracker::new(),
        });
        let driver = Self {
            connection: Box::new(connection),
            end: EndOnDrop(Arc::clone(&shared), closing),
            shared: Arc::clone(&shared),
        };
        Ok((Uplink { shared }, driver))
    }

    /// Runs the uplink to its end, and says why it ended.
    pub async fn run(mut self, stop: CancellationToken) -> EndReason {
        let reason = self.drive(&stop).await;
        let Self { shared, connection, end: _end } = self;
        shared.handle_end(reason.clone());
        // On the heap, for its short time: the task is as small as its long life needs.
        Box::pin(Self::end(&shared, connection, &reason)).await;
        tracing::debug!(%reason, "uplink ended");
        reason
    }

    /// Closes the connection, in order if there is somebody to notice.
    async fn end(
        shared: &Shared,
        connection: Box<h2::client::Connection<Transport, Chunk>>,
        reason: &EndReason,
    ) {
        // Who floods is not waited for either.
        let peer_is_gone =
            matches!(reason, EndReason::Silent { .. } | EndReason::Io(_) | EndReason::Flooded { .. });
        if peer_is_gone || *reason == EndReason::PeerClosed {
            drop(connection);
        } else {
            let _ = timeout(GOAWAY_DEADLINE, connection).await;
        }
        shared.uploads.close();
        shared.uploads.wait().await;
        if peer_is_gone {
            shared.transport.abort();
        } else {
            shared.transport.close().await;
        }
    }

    /// Runs until there is a reason to end.
    async fn drive(&mut self, stop: &CancellationToken) -> EndReason {
        let pings = self.connection.ping_pong().expect("taken once, here");
        let mut control = Gated::new(control(Arc::clone(&self.shared), pings, stop.clone()));
        let Self { shared, connection, .. } = self;
        std::future::poll_fn(|cx| {
            if let Poll::Ready(ended) = Pin::new(&mut **connection).poll(cx) {
                return Poll::Ready(end_of_transport(&shared.transport, ended));
            }
            if let Poll::Ready(Err(error)) = shared.transport.poll_send(cx) {
                return Poll::Ready(EndReason::Io(error.to_string()));
            }
            control.poll(cx)
        })
        .await
    }
}

/// What is rare beside the bytes of an uplink: stops, pings, silence.
async fn control(shared: Arc<Shared>, mut pings: h2::PingPong, stop: CancellationToken) -> EndReason {
    let settings = &shared.settings;
    let mut liveness = Liveness::pinging(Instant::now(), settings.ping_interval, settings.dead_after);
    let mut wake = std::pin::pin!(tokio::time::sleep_until(Instant::now()));
    loop {
        match liveness.next(Instant::now(), shared.transport.last_received()) {
            Command::Ping => {
                // It fails only if one is out already, or if the connection is closed, which its own poll notices.
                let _ = pings.send_ping(h2::Ping::opaque());
                continue;
            }
            Command::WaitUntil(time) => wake.as_mut().reset(time),
            Command::Dead { silent } => return EndReason::Silent { seconds: silent.as_secs() },
        }
        tokio::select! {
            () = stop.cancelled() => return EndReason::Stopped,
            () = shared.closing.cancelled() => {
                return shared.close_reason.get().cloned().unwrap_or(EndReason::Stopped);
            }
            pong = std::future::poll_fn(|cx| pings.poll_pong(cx)), if liveness.is_waiting() => {
                if let (Ok(_), Some(rtt)) = (pong, liveness.handle_pong(Instant::now())) {
                    shared.rtt_us.store((rtt.as_micros() as u64).max(1), Ordering::Relaxed);
                    shared.settled.cancel();
                }
            }
            () = wake.as_mut() => {}
        }
    }
}

/// What the end of HTTP/2 on this transport means.
pub(crate) fn end_of_transport(transport: &Transport, ended: Result<(), h2::Error>) -> EndReason {
    match transport.flood() {
        Some(flood) => EndReason::Flooded { frames: flood.0 },
        None => end_of_connection(ended),
    }
}

/// What the end of an HTTP/2 connection means.
pub(crate) fn end_of_connection(ended: Result<(), h2::Error>) -> EndReason {
    match ended {
        Ok(()) => EndReason::PeerClosed,
        Err(error) if error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR) => {
            EndReason::PeerClosed
        }
        Err(error) if error.is_io() => match error.get_io() {
            Some(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => EndReason::PeerClosed,
            Some(error) => EndReason::Io(error.to_string()),
            None => EndReason::Io(error.to_string()),
        },
        Err(error) => EndReason::Protocol(describe(&error)),
    }
}

fn broken(error: &h2::Error) -> RequestError {
    RequestError::Broken(describe(error))
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
