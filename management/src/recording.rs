//! The recording role, called in process through its HTTP router.
//!
//! What browsers ask of cameras is passed on as it is, WebSocket upgrades included; what this role
//! needs itself (Add Hardware, the list of hardware) are JSON calls. The recording router asks nobody
//! who they are: every way to it leads through `gate`.

use crate::world::World;
use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request},
    http::{Method, StatusCode, header},
    response::Response,
};
use homing_base::{Leave, Stop, http::Failure};
use homing_protocol::{
    SerialNumber,
    api::{
        Problem, ProblemDetail,
        recording::{Hardware, HardwareChange, NewHardware, Way},
    },
};
use http_body_util::{BodyExt, Limited};
use serde::{Serialize, de::DeserializeOwned};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::sync::Notify;
use tower::ServiceExt;

/// The longest JSON answer that is read.
const ANSWER_LIMIT_BYTES: usize = 16 * 1024 * 1024;

/// How often the hardware and its cameras' states are asked for. A change is at most so old on the page.
const POLL: Duration = Duration::from_secs(1);

/// Add Hardware asks the device, through its tunnel; the recording role has deadlines of its own inside.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

/// The recording role. Cheap to clone.
#[derive(Clone)]
pub struct Recording {
    router: Router,
    changed: Arc<Notify>,
}

impl Recording {
    /// `router` serves `/api/v1/hardware…` and `/api/v1/cameras…`.
    pub fn new(router: Router) -> Self {
        Recording { router, changed: Arc::default() }
    }

    /// Passes a request on, and its answer back.
    pub async fn forward(&self, mut request: Request) -> Response {
        // A fresh set of extensions: our router's notes (path parameters before all) would be taken for
        // the inner router's own. What makes an upgrade possible, the peer,
        // and how long the caller may stay are passed on.
        let mut extensions = std::mem::take(request.extensions_mut());
        if let Some(upgrade) = extensions.remove::<hyper::upgrade::OnUpgrade>() {
            request.extensions_mut().insert(upgrade);
        }
        if let Some(peer) = extensions.remove::<ConnectInfo<SocketAddr>>() {
            request.extensions_mut().insert(peer);
        }
        if let Some(leave) = extensions.remove::<Leave>() {
            request.extensions_mut().insert(leave);
        }
        // What admitted the caller here is nothing to anybody behind.
        request.headers_mut().remove(header::COOKIE);
        request.headers_mut().remove(header::AUTHORIZATION);
        let writes = *request.method() != Method::GET && *request.method() != Method::HEAD;
        let Ok(response) = self.router.clone().oneshot(request).await;
        if writes {
            self.changed.notify_one();
        }
        response
    }

    /// Everything that was added.
    ///
    /// # Errors
    /// What the recording role answered instead.
    pub async fn hardware(&self) -> Result<Vec<Hardware>, Failure> {
        self.call(Method::GET, "/api/v1/hardware", &()).await
    }

    /// Step 8.
    ///
    /// # Errors
    /// What the recording role answered instead.
    pub async fn add(&self, hardware: &NewHardware) -> Result<Hardware, Failure> {
        let added = self.call(Method::POST, "/api/v1/hardware", hardware).await;
        self.changed.notify_one();
        added
    }

    /// A device has a new uplink: its cameras need not wait for their next attempt.
    pub async fn connected(&self, serial: SerialNumber) {
        let path = format!("/api/v1/devices/{serial}/connected");
        if let Err(failure) = self.call::<_, ()>(Method::POST, &path, &()).await {
            // Its cameras try again by themselves, later.
            tracing::warn!(%serial, problem = failure.problem.error.message, "recording server not told of an uplink");
        }
    }

    /// A device may have gone elsewhere: that is looked at now, not at the next poll.
    pub fn look(&self) {
        self.changed.notify_one();
    }

    /// Has hardware follow its device to another tunnel server, so that recording goes on there.
    pub async fn follow(&self, id: i64, server: &str) {
        let change = HardwareChange { server: server.to_owned() };
        let path = format!("/api/v1/hardware/{id}");
        match self.call::<_, Hardware>(Method::PATCH, &path, &change).await {
            Ok(_) => tracing::info!(hardware = id, server, "hardware follows its device"),
            Err(failure) => {
                let problem = failure.problem.error.message;
                tracing::warn!(hardware = id, server, problem, "hardware cannot follow its device");
            }
        }
    }

    /// How the devices of a tunnel server are reached from now on.
    ///
    /// # Errors
    /// What the recording role answered instead.
    pub async fn set_way(&self, name: &str, way: &Way) -> Result<(), Failure> {
        self.call(Method::PUT, &way_path(name), way).await
    }

    /// The devices of a tunnel server are not to be reached any more.
    ///
    /// # Errors
    /// What the recording role answered instead.
    pub async fn forget_way(&self, name: &str) -> Result<(), Failure> {
        self.call(Method::DELETE, &way_path(name), &()).await
    }

    /// Keeps [`World`] true about the hardware until the role stops, and hardware where its device is.
    pub async fn watch(self, world: World, stop: Stop) {
        loop {
            world.recording(self.hardware().await.map_err(|failure| failure.problem.error));
            for (hardware, server) in world.gone_elsewhere() {
                self.follow(hardware, &server).await;
            }
            tokio::select! {
                () = tokio::time::sleep(POLL) => (),
                () = self.changed.notified() => (),
                () = stop.cancelled() => return,
            }
        }
    }

    async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &Q,
    ) -> Result<A, Failure> {
        let body = serde_json::to_vec(body).map_err(|error| unexpected(&error.to_string()))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body))
            .map_err(|error| unexpected(&error.to_string()))?;
        let exchange = async {
            let Ok(response) = self.router.clone().oneshot(request).await;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_LIMIT_BYTES).collect().await;
            (status, body.map(http_body_util::Collected::to_bytes))
        };
        let (status, body) = tokio::time::timeout(CALL_DEADLINE, exchange).await.map_err(|_| {
            let message =
                format!("The recording server did not answer within {} s.", CALL_DEADLINE.as_secs());
            Failure::new(StatusCode::GATEWAY_TIMEOUT, Problem::new("recording-server-silent", message))
        })?;
        let body = body.map_err(|error| unexpected(&error.to_string()))?;
        if !status.is_success() {
            let problem = serde_json::from_slice(&body).unwrap_or_else(|_| {
                Problem::new("recording-server-failed", format!("The recording server answered {status}."))
            });
            return Err(Failure::new(status, problem));
        }
        let body: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(body).map_err(|error| unexpected(&error.to_string()))
    }
}

/// Names are people's: whatever is in them, the path has four parts.
fn way_path(name: &str) -> String {
    let escaped: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
    format!("/api/v1/tunnel-servers/{escaped}")
}

fn unexpected(cause: &str) -> Failure {
    let message = format!("The recording server gave an answer that is not of this API: {cause}.");
    let error = ProblemDetail { code: "recording-server-unexpected".into(), message, step: None };
    Failure::new(StatusCode::BAD_GATEWAY, Problem { error })
}
