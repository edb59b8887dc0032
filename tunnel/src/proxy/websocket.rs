//! A WebSocket to a device, passed on: what the two say to each other is theirs, frames and extensions included.
//!
//! A client asks by `Upgrade: websocket` (RFC 6455 §4.1) or, in HTTP/2, by extended CONNECT (RFC 8441 §4), which is also
//! how the device is asked.

use super::{Proxy, login::LogIn, strip};
use crate::devices::Connected;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use homing_base::http::Failure;
use homing_protocol::{
    SerialNumber, Step,
    api::{Problem, tunnel::Access},
};
use homing_uplink::{BodySender, OpenError, RequestError, websocket_accept};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

/// Between our answer and the connection being ours.
const UPGRADE_DEADLINE: Duration = Duration::from_secs(10);

/// For the other end to close, once one has.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

/// What one read from the client takes at most.
const READ_BYTES: usize = 16 * 1024;

type Client = TokioIo<hyper::upgrade::Upgraded>;

/// Whether a request is for a WebSocket.
pub(super) fn is_asked(request: &Request<Incoming>) -> bool {
    let by_2 = request.extensions().get::<hyper::ext::Protocol>();
    if let Some(protocol) = by_2 {
        return protocol.as_str() == "websocket";
    }
    let upgrade = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok());
    request.method() == Method::GET && upgrade.is_some_and(|value| value.eq_ignore_ascii_case("websocket"))
}

impl Proxy {
    pub(super) async fn pass_websocket(
        &self,
        serial: SerialNumber,
        access: &Access,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Failure> {
        let connected = self.tunnel.connected(serial)?;
        let key = request.headers_mut().remove(header::SEC_WEBSOCKET_KEY);
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let mut headers = std::mem::take(request.headers_mut());
        strip(&mut headers);
        headers.remove(header::HOST);
        let asked = self.ask_for_websocket(serial, access, &connected, &path, headers).await?;
        let (response, sender) = asked;
        let (mut parts, body) = response.into_parts();
        strip(&mut parts.headers);
        if parts.status != StatusCode::OK {
            return Ok(Response::from_parts(parts, Body::new(body)));
        }
        let upgrade = hyper::upgrade::on(&mut request);
        let stop = self.stop.clone();
        let passing = async move {
            tokio::select! {
                () = pass(upgrade, body, sender) => (),
                () = stop.cancelled() => (),
            }
        };
        self.stop.spawn_on(passing, &connected.worker);
        let mut answer = Response::new(Body::empty());
        *answer.headers_mut() = parts.headers;
        answer.headers_mut().remove(header::CONTENT_LENGTH);
        // In HTTP/2 there is none, and 200 is the answer.
        if let Some(key) = key {
            let accept = websocket_accept(key.to_str().unwrap_or_default());
            *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = answer.headers_mut();
            headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            let accept = HeaderValue::from_str(&accept).map_err(anyhow::Error::from)?;
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        Ok(answer)
    }

    async fn ask_for_websocket(
        &self,
        serial: SerialNumber,
        access: &Access,
        connected: &Connected,
        path: &str,
        mut headers: HeaderMap,
    ) -> Result<(Response<homing_uplink::Body>, BodySender), Failure> {
        let open = async |headers: HeaderMap| {
            connected.uplink.pass_websocket(path, headers).await.map_err(|error| failed(serial, &error))
        };
        if !access.add_credentials {
            return open(headers).await;
        }
        headers.remove(header::AUTHORIZATION);
        let mut asked = open(headers.clone()).await?;
        let mut login = LogIn::new(self, serial, connected).await?;
        // Digest covers the method: a device may check it as GET, which its WebSocket server of HTTP/1.1 sees.
        for method in ["CONNECT", "GET"] {
            if asked.0.status() != StatusCode::UNAUTHORIZED {
                return Ok(asked);
            }
            login.forget();
            login.challenged(asked.0.headers())?;
            if let Some(value) = login.authorization(method, path)? {
                headers.insert(header::AUTHORIZATION, value);
            }
            asked = open(headers.clone()).await?;
        }
        match asked.0.status() {
            StatusCode::UNAUTHORIZED => Err(login.refused()),
            _ => Ok(asked),
        }
    }
}

fn failed(serial: SerialNumber, error: &OpenError) -> Failure {
    let (status, code) = match error {
        OpenError::Request(RequestError::Timeout { .. } | RequestError::NoFreeStream { .. }) => {
            (StatusCode::GATEWAY_TIMEOUT, "device-timeout")
        }
        _ => (StatusCode::BAD_GATEWAY, "device-failed"),
    };
    let message = format!("The device {serial} is connected, but opens no WebSocket: {error}.");
    Failure::new(status, Problem::at(Step::Tunnel, code, message))
}

/// Bytes both ways until both have closed, or one has gone.
async fn pass(upgrade: OnUpgrade, device: homing_uplink::Body, sender: BodySender) {
    let Ok(Ok(client)) = tokio::time::timeout(UPGRADE_DEADLINE, upgrade).await else { return };
    let (reader, writer) = tokio::io::split(TokioIo::new(client));
    let (up, down) = (to_device(reader, sender), to_client(device, writer));
    tokio::pin!(up, down);
    tokio::select! {
        () = &mut up => drop(tokio::time::timeout(CLOSE_DEADLINE, down).await),
        () = &mut down => drop(tokio::time::timeout(CLOSE_DEADLINE, up).await),
    }
}

async fn to_device(mut client: ReadHalf<Client>, mut sender: BodySender) {
    loop {
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        match client.read_buf(&mut buffer).await {
            Ok(0) => return drop(sender.finish()),
            Ok(_) if sender.send(buffer.freeze()).await.is_ok() => (),
            _ => return,
        }
    }
}

async fn to_client(mut device: homing_uplink::Body, mut client: WriteHalf<Client>) {
    while let Some(Ok(chunk)) = device.next().await {
        let chunk: Bytes = chunk;
        if client.write_all(&chunk).await.is_err() || client.flush().await.is_err() {
            return;
        }
    }
    let _ = client.shutdown().await;
}
