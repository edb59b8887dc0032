//! The device's end of an uplink that stands: an HTTP/2 server whose requests are given to a [`Service`].
//!
//! Each request runs in a task of its own. The server's pings are the sign of life: nothing for 30 s means that it is
//! gone (ONVIF Uplink 26.06 §5.3).
//!
//! Invariant: when [`DialedUplink::serve`] has come back the socket is closed and no task of a request is left.
//! Flow steps 5 (dispatch) and 7 (tunnel) are answered here.

use crate::EndReason;
use crate::address::UplinkAddress;
use crate::body::{Body, BodySender, Chunk, DATA_MAX};
use crate::dial::DialedUplink;
use crate::gate::Gated;
use crate::halves::{Receiver, Sender, describe};
use crate::liveness::{Command, Liveness};
use crate::stream::WebSocketStream;
use crate::transport::{Exporter, Transport};
use crate::uplink::{connection_window, end_of_io, strip_connection_headers};
use crate::websocket::Role;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long requests may go on after their uplink has ended, to finish what they write to disk, say.
const TASK_GRACE: Duration = Duration::from_secs(1);

/// Longest header list that a server may send, in bytes.
const HEADER_LIST_MAX: u32 = 32 * 1024;

/// What a device allows its server.
#[derive(Clone, Debug)]
pub struct ServeSettings {
    /// Credit of each request body, in bytes. 256 kB.
    pub stream_window: u32,
    /// Requests at once. 64.
    pub max_streams: u32,
    /// Bytes queued for sending per stream before its writer waits. 128 kB.
    pub send_buffer: usize,
    /// A server that sent nothing for so long is gone. 30 s.
    pub silence: Duration,
    /// When told to stop: how long requests may take to finish. 1 s.
    pub drain: Duration,
}

impl Default for ServeSettings {
    fn default() -> Self {
        Self {
            stream_window: 256 << 10,
            max_streams: 64,
            send_buffer: 128 << 10,
            silence: Duration::from_secs(30),
            drain: Duration::from_secs(1),
        }
    }
}

/// What a device does with the requests that come through its uplinks. Implemented by functions
/// `Fn(Incoming) -> impl Future<Output = ()>` too.
pub trait Service: Send + Sync + 'static {
    /// Answers one request. Runs in its own task, which is cancelled a second after the uplink has ended.
    fn call(&self, incoming: Incoming) -> impl Future<Output = ()> + Send;
}

impl<F, R> Service for F
where
    F: Fn(Incoming) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send,
{
    fn call(&self, incoming: Incoming) -> impl Future<Output = ()> + Send {
        self(incoming)
    }
}

/// The uplink that a request came through.
#[derive(Clone, Debug)]
pub struct UplinkInfo {
    /// The TLS exporter of its connection.
    pub exporter: Exporter,
    /// The address that was dialled.
    pub address: Arc<UplinkAddress>,
}

/// One request: answer it with [`respond`](Self::respond), [`respond_streaming`](Self::respond_streaming) or
/// [`accept_websocket`](Self::accept_websocket). Dropped without an answer it is a 500.
#[derive(Debug)]
pub struct Incoming {
    /// The request; its body may be taken out and read while answering.
    pub request: Request<Body>,
    /// Where it came from.
    pub uplink: UplinkInfo,
    answer: Option<h2::server::SendResponse<Chunk>>,
}

impl Incoming {
    /// The `:protocol` of an extended CONNECT (RFC 8441), `websocket` usually.
    pub fn protocol(&self) -> Option<&str> {
        self.request.extensions().get::<h2::ext::Protocol>().map(h2::ext::Protocol::as_str)
    }

    /// The WebSocket subprotocols that the server offers.
    pub fn subprotocols(&self) -> impl Iterator<Item = &str> {
        let values = self.request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
        values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',').map(str::trim))
    }

    /// Answers with a whole body. What is queued is sent as the server takes it; an error means that it has gone.
    pub fn respond(mut self, response: Response<Bytes>) -> Result<(), RespondError> {
        let (parts, mut body) = response.into_parts();
        let mut stream = self.send_head(Response::from_parts(parts, ()), body.is_empty())?;
        // Without waiting for credit: the bytes are in memory already, and h2 does not copy them.
        while !body.is_empty() {
            let piece = body.split_to(body.len().min(DATA_MAX));
            stream.send_data(Chunk::from(piece), body.is_empty())?;
        }
        Ok(())
    }

    /// Sends the head, and gives back what sends the body with back-pressure.
    pub fn respond_streaming(mut self, response: Response<()>) -> Result<BodySender, RespondError> {
        Ok(BodySender::new(Sender::Served(self.send_head(response, false)?)))
    }

    /// Accepts a WebSocket with this subprotocol (none: an empty text); an error if it is no extended CONNECT for one.
    pub fn accept_websocket(mut self, subprotocol: &str) -> Result<WebSocketStream, RespondError> {
        if self.protocol() != Some("websocket") {
            return Err(RespondError::NotWebSocket);
        }
        let mut response = Response::new(());
        let mut chosen = None;
        if !subprotocol.is_empty() {
            let value = HeaderValue::from_str(subprotocol)
                .map_err(|error| RespondError::Invalid(error.to_string()))?;
            response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, value);
            chosen = Some(subprotocol.to_owned());
        }
        let stream = self.send_head(response, false)?;
        let body = std::mem::take(self.request.body_mut());
        Ok(WebSocketStream::new(body, Sender::Served(stream), Role::Server, chosen))
    }

    fn send_head(
        &mut self,
        mut response: Response<()>,
        end: bool,
    ) -> Result<h2::SendStream<Chunk>, RespondError> {
        strip_connection_headers(response.headers_mut());
        let answer = self.answer.as_mut().expect("taken only by answering, which consumes");
        let stream = answer.send_response(response, end)?;
        self.answer = None;
        Ok(stream)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(mut answer) = self.answer.take() {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            // It fails if the server has cancelled the request, which needs no answer then.
            let _ = answer.send_response(response, true);
        }
    }
}

/// Why a request was not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RespondError {
    /// The server has cancelled the request, or the uplink has ended.
    #[error("the answer was not sent: {0}")]
    Gone(String),
    /// A WebSocket was to be accepted where none was asked for.
    #[error("the request does not ask for a WebSocket")]
    NotWebSocket,
    /// The answer cannot be sent in HTTP/2.
    #[error("the answer is not valid: {0}")]
    Invalid(String),
}

impl From<h2::Error> for RespondError {
    fn from(error: h2::Error) -> Self {
        Self::Gone(describe(&error))
    }
}

impl DialedUplink {
    /// Serves requests until the server closes or falls silent, or until told to stop; says why it ended.
    ///
    /// 1. Answers the server's HTTP/2 preface, with SETTINGS_ENABLE_CONNECT_PROTOCOL.
    /// 2. Gives each request to `service` in a task of its own.
    /// 3. On `stop` sends GOAWAY and lets running requests finish for [`ServeSettings::drain`].
    /// 4. Closes the connection and waits for the tasks.
    pub async fn serve(
        self,
        service: Arc<impl Service>,
        settings: ServeSettings,
        stop: CancellationToken,
    ) -> EndReason {
        let Self { transport: connection, address, .. } = self;
        let transport = &connection.0;
        let tasks = TaskTracker::new();
        let ended = CancellationToken::new();
        // Should this future be dropped before its end.
        let _cancel_tasks = ended.clone().drop_guard();
        let uplink = UplinkInfo { exporter: transport.exporter(), address: Arc::new(address) };
        let spawn = |incoming: Incoming| {
            let (service, ended) = (Arc::clone(&service), ended.clone());
            // Boxed, so that a task is as large as its service's future needs, once.
            tasks.spawn(async move { ended.run_until_cancelled(service.call(incoming)).await });
        };
        let reason = drive(transport, &uplink, &settings, &stop, spawn).await;
        match reason {
            EndReason::Silent { .. } | EndReason::Io(_) | EndReason::Flooded { .. } => transport.abort(),
            _ => transport.close().await,
        }
        tasks.close();
        if timeout(TASK_GRACE, tasks.wait()).await.is_err() {
            ended.cancel();
            tasks.wait().await;
        }
        tracing::debug!(address = %uplink.address, %reason, "uplink ended");
        reason
    }
}

async fn drive(
    transport: &Transport,
    uplink: &UplinkInfo,
    settings: &ServeSettings,
    stop: &CancellationToken,
    spawn: impl Fn(Incoming),
) -> EndReason {
    let window = connection_window(settings.max_streams, settings.stream_window);
    let handshake = h2::server::Builder::new()
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(window)
        .max_concurrent_streams(settings.max_streams)
        .max_send_buffer_size(settings.send_buffer)
        .max_header_list_size(HEADER_LIST_MAX)
        .data_frame_budget(window as usize)
        .enable_connect_protocol()
        .handshake::<_, Chunk>(transport.clone());
    let mut connection = tokio::select! {
        shaken = timeout(settings.silence, handshake) => match shaken {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return end_of_connection(Err(error)),
            Err(_) => return EndReason::Silent { seconds: settings.silence.as_secs() },
        },
        () = stop.cancelled() => return EndReason::Stopped,
    };
    let draining = Arc::new(AtomicBool::new(false));
    let control = control(transport.clone(), settings.clone(), stop.clone(), Arc::clone(&draining));
    let mut control = Gated::new(control);
    let mut told = false;
    std::future::poll_fn(|cx| {
        loop {
            while let Poll::Ready(accepted) = connection.poll_accept(cx) {
                match accepted {
                    Some(Ok((request, mut answer))) if is_malformed(&request) => {
                        answer.send_reset(h2::Reason::PROTOCOL_ERROR);
                    }
                    Some(Ok((request, answer))) => {
                        let request = request.map(|stream| Body::received(Receiver::Served(stream)));
                        spawn(Incoming { request, uplink: uplink.clone(), answer: Some(answer) });
                    }
                    Some(Err(error)) => return Poll::Ready(end_of_transport(transport, Err(error))),
                    None if transport.flood().is_some() => {
                        return Poll::Ready(end_of_transport(transport, Ok(())));
                    }
                    None if told => return Poll::Ready(EndReason::Stopped),
                    None => return Poll::Ready(EndReason::PeerClosed),
                }
            }
            if let Poll::Ready(Err(error)) = transport.poll_send(cx) {
                return Poll::Ready(EndReason::Io(error.to_string()));
            }
            if let Poll::Ready(reason) = control.poll(cx) {
                return Poll::Ready(reason);
            }
            if told || !draining.load(Ordering::Relaxed) {
                return Poll::Pending;
            }
            told = true;
            connection.graceful_shutdown();
        }
    })
    .await
}

/// What is malformed (RFC 9113 §8.2.1) and yet passes `h2`: space around a field's value.
fn is_malformed<B>(request: &Request<B>) -> bool {
    let mut values = request.headers().values().map(HeaderValue::as_bytes);
    values.any(|value| matches!(value, [b' ' | b'\t', ..] | [.., b' ' | b'\t']))
}

/// What the end of HTTP/2 on this transport means.
fn end_of_transport(transport: &Transport, ended: Result<(), h2::Error>) -> EndReason {
    match transport.flood() {
        Some(flood) => EndReason::Flooded { frames: flood.0 },
        None => end_of_connection(ended),
    }
}

/// What the end of an HTTP/2 connection means.
fn end_of_connection(ended: Result<(), h2::Error>) -> EndReason {
    match ended {
        Ok(()) => EndReason::PeerClosed,
        Err(error) if error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR) => {
            EndReason::PeerClosed
        }
        Err(error) if error.is_io() => match error.get_io() {
            Some(error) => end_of_io(error),
            None => EndReason::Io(error.to_string()),
        },
        Err(error) => EndReason::Protocol(describe(&error)),
    }
}

/// What is rare beside the bytes of an uplink: silence, a stop and the draining after it.
async fn control(
    transport: Transport,
    settings: ServeSettings,
    stop: CancellationToken,
    draining: Arc<AtomicBool>,
) -> EndReason {
    let mut liveness = Liveness::listening(Instant::now(), settings.silence);
    loop {
        match liveness.next(Instant::now(), transport.last_received()) {
            Command::Dead { silent } => return EndReason::Silent { seconds: silent.as_secs() },
            Command::WaitUntil(time) => tokio::select! {
                () = tokio::time::sleep_until(time) => {}
                () = stop.cancelled() => break,
            },
            Command::Ping => unreachable!("a device does not ping"),
        }
    }
    draining.store(true, Ordering::Relaxed);
    tokio::time::sleep(settings.drain).await;
    EndReason::Stopped
}
