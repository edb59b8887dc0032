//! Everything else that comes through the uplink: passed on to the camera's HTTP server, as if the asker
//! were on its network.
//!
//! The camera guards itself: `Authorization` and `WWW-Authenticate` pass, except for Basic, which would show the password
//! to the site's network and passes only where the configuration allows it for this camera. Bodies are streamed
//! both ways, so that MJPEG, event streams and RTSP over HTTP work.

use crate::camera::{self, only_basic};
use crate::clear::is_basic;
use crate::config::{Camera, authority};
use bytes::Bytes;
use homing_uplink::{Body, Incoming, strip_hop_by_hop};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode, Uri, Version};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::time::timeout;

/// How long a camera may take until the head of its answer; some restart something first.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// Passes one request on, and its answer back.
pub async fn serve(camera: &Camera, mut incoming: Incoming) {
    let Some((host, port)) = &camera.http else {
        let text = "this device has no web page: no \"http\" address is configured for its camera";
        return respond(incoming, StatusCode::NOT_FOUND, text.to_owned());
    };
    let shows_password = incoming.request.headers().get_all(header::AUTHORIZATION).iter();
    if !camera.allow_basic && shows_password.map(HeaderValue::as_bytes).any(is_basic) {
        return respond(incoming, StatusCode::FORBIDDEN, only_basic(&camera.name));
    }
    let tcp = match camera::connect(host, *port).await {
        Ok(tcp) => tcp,
        Err(reason) => return respond(incoming, StatusCode::BAD_GATEWAY, reason),
    };
    let peer = authority(host, *port);
    let broken = |error: &dyn std::fmt::Display| format!("Camera at {peer} broke HTTP off: {error}");
    let request = rewrite(std::mem::take(&mut incoming.request), &peer);
    let (mut sender, connection) = match http1::handshake::<_, Body>(TokioIo::new(tcp)).await {
        Ok(both) => both,
        Err(error) => return respond(incoming, StatusCode::BAD_GATEWAY, broken(&error)),
    };
    let exchange = async {
        let answer = match timeout(ANSWER_DEADLINE, sender.send_request(request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return respond(incoming, StatusCode::BAD_GATEWAY, broken(&error)),
            Err(_) => {
                let text = format!("Camera at {peer} did not answer within {} s", ANSWER_DEADLINE.as_secs());
                return respond(incoming, StatusCode::GATEWAY_TIMEOUT, text);
            }
        };
        let (mut head, body) = answer.into_parts();
        strip_hop_by_hop(&mut head.headers);
        if !camera.allow_basic
            && head.status == StatusCode::UNAUTHORIZED
            && !keep_safe_challenges(&mut head.headers)
        {
            return respond(incoming, StatusCode::BAD_GATEWAY, only_basic(&camera.name));
        }
        head.version = Version::HTTP_2;
        // What fails from here on resets the stream, which is how the asker learns of it.
        let sent = match incoming.respond_streaming(Response::from_parts(head, ())) {
            Ok(answer) => answer.send_all(body).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = sent {
            tracing::debug!(camera = %peer, error, "HTTP answer broke off");
        }
    };
    let mut exchange = Box::pin(exchange);
    tokio::select! {
        () = &mut exchange => {}
        // The connection may be over before the last of the body has been passed on.
        _ = connection => exchange.await,
    }
}

/// Takes away challenges for Basic; `false` if there was nothing else.
fn keep_safe_challenges(headers: &mut HeaderMap) -> bool {
    let all: Vec<HeaderValue> = headers.get_all(header::WWW_AUTHENTICATE).iter().cloned().collect();
    let safe: Vec<&HeaderValue> = all.iter().filter(|value| !is_basic(value.as_bytes())).collect();
    if safe.is_empty() && !all.is_empty() {
        return false;
    }
    headers.remove(header::WWW_AUTHENTICATE);
    for value in safe {
        headers.append(header::WWW_AUTHENTICATE, value.clone());
    }
    true
}

fn respond(incoming: Incoming, status: StatusCode, text: String) {
    let mut response = Response::new(Bytes::from(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    // It fails if the server has gone away, who then needs no answer.
    let _ = incoming.respond(response);
}

/// From HTTP/2 to HTTP/1.1 (RFC 9113 §8.3.1, §8.2.3), addressed to the camera.
fn rewrite<B>(request: Request<B>, peer: &str) -> Request<B> {
    let (mut head, body) = request.into_parts();
    head.version = Version::HTTP_11;
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    head.uri = path.parse().unwrap_or_else(|_| Uri::from_static("/"));
    strip_hop_by_hop(&mut head.headers);
    head.headers.insert(header::HOST, HeaderValue::from_str(peer).expect("host and port are printable"));
    let cookies: Vec<&[u8]> = head.headers.get_all(header::COOKIE).iter().map(|c| c.as_bytes()).collect();
    if cookies.len() > 1 {
        let joined = HeaderValue::from_bytes(&cookies.join(&b"; "[..])).expect("made of header values");
        head.headers.insert(header::COOKIE, joined);
    }
    head.extensions.clear();
    Request::from_parts(head, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_becomes_one_of_the_cameras_own_network() {
        let request = Request::builder()
            .method("POST")
            .uri("https://00408c702009/axis-cgi/x.cgi?a=1")
            .version(Version::HTTP_2)
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .header("connection", "x-hop, close")
            .header("x-hop", "1")
            .header("te", "trailers")
            .header("authorization", "Digest x")
            .body(())
            .unwrap();
        let request = rewrite(request, "10.0.0.9:80");
        assert_eq!(request.uri(), "/axis-cgi/x.cgi?a=1");
        assert_eq!(request.version(), Version::HTTP_11);
        let mut headers: Vec<_> =
            request.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        headers.sort_unstable();
        assert_eq!(headers, [("authorization", "Digest x"), ("cookie", "a=1; b=2"), ("host", "10.0.0.9:80")]);
    }
}
