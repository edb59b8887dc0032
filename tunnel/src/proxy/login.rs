//! Logging in to a device in a client's place (`add_credentials`).
//!
//! A device asks for a log-in by answering 401, and then wants the request again. What is short is kept and sent again; of
//! what is long, or of unknown length, the log-in is asked for first, by a HEAD of the same path.
//!
//! Invariant: an `Authorization` of the client's does not reach the device, and a 401 of the device's does not reach the
//! client, who could do nothing about it.

use super::Proxy;
use crate::devices::Connected;
use bytes::Bytes;
use homing_base::http::Failure;
use homing_protocol::{
    SerialNumber, Step,
    api::Problem,
    digest::{BasicPolicy, ClientAuth, ClientError},
    secret::Credentials,
};
use homing_uplink::Body;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use std::{sync::PoisonError, time::Duration};

/// The longest body that is kept until the device has taken it.
const KEPT_BYTES: u64 = 64 * 1024;

/// For a body that is kept to arrive whole.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// A challenge, an expired nonce, and the answer.
const ROUNDS: usize = 3;

impl Proxy {
    pub(super) async fn request_logged_in(
        &self,
        serial: SerialNumber,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Failure> {
        let connected = self.tunnel.connected(serial)?;
        let mut login = LogIn::new(self, serial, &connected).await?;
        let (mut parts, body) = request.into_parts();
        parts.headers.remove(header::AUTHORIZATION);
        if body.size_hint().upper().is_some_and(|length| length <= KEPT_BYTES) {
            let whole = tokio::time::timeout(BODY_DEADLINE, body.collect()).await;
            let whole = whole.ok().and_then(Result::ok);
            let body = whole.ok_or_else(|| Failure::bad_request("The request's body broke off."))?.to_bytes();
            return login.send(parts, body).await;
        }
        let mut probe = Request::new(()).into_parts().0;
        (probe.method, probe.uri) = (Method::HEAD, parts.uri.clone());
        if let Some(host) = parts.headers.get(header::HOST) {
            probe.headers.insert(header::HOST, host.clone());
        }
        // A nonce of now: the body is sent once.
        login.forget();
        login.ask(probe).await?;
        login.authorize(&mut parts)?;
        let response = self.tunnel.request_streaming(serial, Request::from_parts(parts, body)).await?;
        match response.status() {
            StatusCode::UNAUTHORIZED => Err(login.refused()),
            _ => Ok(response),
        }
    }
}

/// One request's log-in.
pub(super) struct LogIn<'a> {
    proxy: &'a Proxy,
    serial: SerialNumber,
    connected: &'a Connected,
    credentials: Credentials,
    auth: ClientAuth,
}

impl<'a> LogIn<'a> {
    /// With the challenge that was answered last, if no other request is at it.
    pub async fn new(
        proxy: &'a Proxy,
        serial: SerialNumber,
        connected: &'a Connected,
    ) -> Result<LogIn<'a>, Failure> {
        let credentials = proxy.tunnel.credentials(serial).await.map_err(anyhow::Error::msg)?;
        let kept = connected.login.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Basic is all that some devices know; it travels inside TLS, to a key that was vouched for.
        let auth = kept.unwrap_or_else(|| ClientAuth::new(BasicPolicy::Allow));
        Ok(LogIn { proxy, serial, connected, credentials, auth })
    }

    async fn send(mut self, parts: Parts, body: Bytes) -> Result<Response<Body>, Failure> {
        for _ in 0..ROUNDS {
            let mut parts = parts.clone();
            self.authorize(&mut parts)?;
            let request = Request::from_parts(parts, body.clone());
            let response = self.proxy.tunnel.request(self.serial, request).await?;
            if response.status() != StatusCode::UNAUTHORIZED {
                self.accepted();
                return Ok(response);
            }
            self.challenged(response.headers())?;
        }
        Err(self.refused())
    }

    /// Has the device ask, if it does.
    async fn ask(&mut self, probe: Parts) -> Result<(), Failure> {
        let request = Request::from_parts(probe, Bytes::new());
        let response = self.proxy.tunnel.request(self.serial, request).await?;
        match response.status() {
            StatusCode::UNAUTHORIZED => self.challenged(response.headers()),
            _ => Ok(()),
        }
    }

    fn authorize(&mut self, parts: &mut Parts) -> Result<(), Failure> {
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        match self.authorization(parts.method.as_str(), path)? {
            Some(value) => drop(parts.headers.insert(header::AUTHORIZATION, value)),
            None => drop(parts.headers.remove(header::AUTHORIZATION)),
        }
        Ok(())
    }

    /// What stands in `Authorization`, once the device has asked.
    pub fn authorization(&mut self, method: &str, path: &str) -> Result<Option<HeaderValue>, Failure> {
        let value =
            self.auth.authorize(method, path, &self.credentials).map_err(|error| self.failed(&error))?;
        let Some(value) = value else { return Ok(None) };
        let mut value = HeaderValue::from_str(&value).map_err(anyhow::Error::from)?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// The device wants a log-in, or another.
    pub fn challenged(&mut self, headers: &HeaderMap) -> Result<(), Failure> {
        let challenges = headers.get_all(header::WWW_AUTHENTICATE).iter();
        let challenges = challenges.filter_map(|value| value.to_str().ok());
        self.auth.handle_challenge(challenges).map_err(|error| self.failed(&error))
    }

    /// Begins anew: what was said to other requests does not count.
    pub fn forget(&mut self) {
        self.auth = ClientAuth::new(BasicPolicy::Allow);
    }

    /// The next request goes on with it.
    pub fn accepted(mut self) {
        self.auth.handle_accepted();
        *self.connected.login.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.auth);
    }

    pub fn refused(&self) -> Failure {
        self.failed(&ClientError::WrongCredentials)
    }

    fn failed(&self, error: &ClientError) -> Failure {
        let message = format!(
            "The device {} does not let the proxy in, which is to log in to it: {error}. Correct its user and password.",
            self.serial
        );
        Failure::new(StatusCode::BAD_GATEWAY, Problem::at(Step::Tunnel, "device-failed", message))
    }
}
