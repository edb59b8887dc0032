//! Who answers what comes through an uplink: the OAK proof, the ONVIF services, RTSP, or the camera.
//!
//! | request | answered by |
//! |---|---|
//! | `POST` [`PROOF_PATH`] | here, and to dispatchers only |
//! | `/onvif/device_service`, `media2_service`, `uplink_service`, `security_service` | `onvif.rs`; wrong log-ins are slowed by uplink |
//! | `POST` [`OAK_PATH`] | `vapix.rs`, and to tunnel servers only |
//! | extended CONNECT to [`rtsp::PATH`] | `rtsp.rs`, the camera's RTSP port, and to tunnel servers only |
//! | anything else | `proxy.rs`, the camera's HTTP port, and to tunnel servers only |
//!
//! A dispatcher may be somebody else's: it gets what step 5 needs, and nothing of the site behind the agent.

use crate::guesses::Turns;
use crate::onvif::{Services, is_service};
use crate::state::Peer;
use crate::vapix::{self, OAK_PATH};
use crate::{proxy, rtsp};
use bytes::Bytes;
use homing_protocol::Step;
use homing_protocol::oak::{EXPORTER_LABEL, PROOF_PATH, ProofAnswer, ProofKey, ProofRequest};
use homing_protocol::soap::xml::MAX_BYTES;
use homing_uplink::{BodyError, Incoming, Service};
use http::{Method, Response, StatusCode, header};
use std::sync::Arc;
use tokio::sync::OnceCell;

/// Longest body of a proof request; a challenge is 32 bytes.
const PROOF_MAX: usize = 4 * 1024;

/// The device as one peer sees it.
pub struct Answers {
    services: Arc<Services>,
    proof_key: Arc<OnceCell<ProofKey>>,
    peer: Peer,
    turns: Arc<Turns>,
}

impl Answers {
    /// `proof_key` is shared by all uplinks: making it takes 8 MiB and tens of milliseconds, once. `turns` are shared by
    /// whoever must not guess faster by dialling again.
    pub fn new(
        services: Arc<Services>,
        proof_key: Arc<OnceCell<ProofKey>>,
        peer: Peer,
        turns: Arc<Turns>,
    ) -> Self {
        Answers { services, proof_key, peer, turns }
    }

    async fn prove(&self, incoming: &mut Incoming) -> Response<Bytes> {
        if self.peer != Peer::Dispatcher {
            return text(StatusCode::FORBIDDEN, "the OAK is proved to dispatchers only");
        }
        if incoming.request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "POST a challenge");
        }
        let body = std::mem::take(incoming.request.body_mut()).collect(PROOF_MAX).await;
        let ask: ProofRequest =
            match body.map_err(|_| ()).and_then(|b| serde_json::from_slice(&b).map_err(|_| ())) {
                Ok(ask) => ask,
                Err(()) => return text(StatusCode::BAD_REQUEST, "not a proof request"),
            };
        let Ok(exporter) = incoming.uplink.exporter.export(EXPORTER_LABEL, &[]) else {
            return text(StatusCode::INTERNAL_SERVER_ERROR, "the connection is closing");
        };
        let (serial, oak) = (self.services.identity.serial, self.services.identity.oak.clone());
        let made =
            self.proof_key.get_or_try_init(|| tokio::task::spawn_blocking(move || oak.proof_key(serial)));
        let Ok(key) = made.await else {
            return text(StatusCode::INTERNAL_SERVER_ERROR, "the proof could not be made");
        };
        tracing::info!(step = %Step::Dispatch, dispatcher = %incoming.uplink.address, "proving the OAK");
        let answer = ProofAnswer { serial, proof: key.prove(serial, &ask.challenge, &exporter) };
        let json = serde_json::to_vec(&answer).expect("plain data");
        let builder = Response::builder().header(header::CONTENT_TYPE, "application/json");
        builder.body(Bytes::from(json)).expect("constants")
    }

    async fn show_oak(&self, incoming: &mut Incoming) -> Response<Bytes> {
        if self.peer == Peer::Dispatcher {
            return text(StatusCode::FORBIDDEN, "dispatchers ask for a proof");
        }
        let (head, body) = std::mem::take(&mut incoming.request).into_parts();
        match body.collect(vapix::REQUEST_MAX).await {
            Ok(body) => vapix::answer(&self.services, &head, &body, &self.turns).await,
            Err(_) => text(StatusCode::BAD_REQUEST, "the request is too long, or broke off"),
        }
    }

    async fn answer_soap(&self, incoming: &mut Incoming) -> Response<Bytes> {
        let (head, body) = std::mem::take(&mut incoming.request).into_parts();
        match body.collect(MAX_BYTES).await {
            Ok(body) => self.services.answer(&head, &body, &self.peer, &self.turns).await,
            Err(BodyError::TooLong { .. }) => text(StatusCode::PAYLOAD_TOO_LARGE, "at most 256 kB"),
            Err(BodyError::Broken(_)) => text(StatusCode::BAD_REQUEST, "the request broke off"),
        }
    }
}

impl Service for Answers {
    async fn call(&self, mut incoming: Incoming) {
        let path = incoming.request.uri().path();
        tracing::debug!(method = %incoming.request.method(), path, peer = ?self.peer, "request");
        let cameras = &self.services.cameras;
        let answer = if let Some(protocol) = incoming.protocol() {
            if protocol == "websocket" && path == rtsp::PATH {
                if self.peer != Peer::Dispatcher {
                    return rtsp::serve(cameras, incoming).await;
                }
                not_the_dispatchers()
            } else {
                text(StatusCode::NOT_IMPLEMENTED, "no WebSocket but RTSP's is passed on")
            }
        } else if path == PROOF_PATH {
            self.prove(&mut incoming).await
        } else if path == OAK_PATH {
            self.show_oak(&mut incoming).await
        } else if is_service(path) {
            self.answer_soap(&mut incoming).await
        } else if self.peer == Peer::Dispatcher {
            not_the_dispatchers()
        } else {
            return proxy::serve(&cameras.list()[0], incoming).await;
        };
        // It fails if the server has gone away, who then needs no answer.
        let _ = incoming.respond(answer);
    }
}

fn not_the_dispatchers() -> Response<Bytes> {
    text(StatusCode::FORBIDDEN, "the camera is reached through tunnel servers only, not by a dispatcher")
}

fn text(status: StatusCode, text: &'static str) -> Response<Bytes> {
    let builder =
        Response::builder().status(status).header(header::CONTENT_TYPE, "text/plain; charset=utf-8");
    builder.body(Bytes::from_static(text.as_bytes())).expect("constants")
}
