//! Calls to a device: HTTP with Digest, and ONVIF on it, over whatever carries a request there.
//!
//! What carries it (an uplink, a tunnel server's proxy, the LAN) implements [`Carrier`]. Here is what they
//! all need: the challenge answered, the answer bounded and in time, and errors that say what to check.
//!
//! Which calls tell a device where to dial is in [`uplinks`], for the two roles that do; what else makes up a step is
//! in the roles.

pub mod uplinks;

use bytes::Bytes;
use homing_protocol::{
    digest::{BasicPolicy, ClientAuth, ClientError},
    onvif,
    secret::Credentials,
    soap,
};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use std::{future::Future, time::Duration};

/// The longest answer that is read; the XML parser's own limit.
pub const ANSWER_LIMIT_BYTES: usize = soap::xml::MAX_BYTES;

/// A challenge, an expired nonce, and the answer: more rounds than that are a device that plays with us.
const ROUNDS: usize = 3;

/// Takes a request to a device and brings back its whole answer.
pub trait Carrier {
    /// Why it could not; its text names the device's peer and what to check.
    type Error: std::fmt::Display;

    /// Sends one request; the URI is a path. Bodies longer than [`ANSWER_LIMIT_BYTES`] are an error.
    fn carry(
        &self,
        request: Request<Bytes>,
    ) -> impl Future<Output = Result<Response<Bytes>, Self::Error>> + Send;
}

/// Why a call to a device brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError<E: std::fmt::Display> {
    /// It could not be carried there or back.
    #[error("{0}")]
    Carrier(E),
    /// No answer in time.
    #[error("the device did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The device does not take the user's name and password.
    #[error("the device does not accept the user name and password")]
    WrongCredentials,
    /// Its challenge cannot be answered.
    #[error("the device asks for a log-in that is not supported: {0}")]
    Challenge(ClientError),
    /// An HTTP status that is no success, without a SOAP fault in it.
    #[error("the device answers HTTP status {0}")]
    Status(StatusCode),
    /// A fault, or no answer to this question.
    #[error("{0}")]
    Answer(onvif::CallError),
    /// The request cannot be written.
    #[error("the request cannot be written: {0}")]
    Request(http::Error),
}

/// A conversation with one device as one user; remembers the challenge, so that each call after the first
/// takes one round trip.
pub struct Device<C> {
    carrier: C,
    host: String,
    credentials: Credentials,
    auth: ClientAuth,
    challenged: bool,
    deadline: Duration,
}

impl<C: Carrier> Device<C> {
    /// `host` is what stands in the `Host` header; `deadline` is for each call.
    pub fn new(carrier: C, host: impl Into<String>, credentials: Credentials, deadline: Duration) -> Self {
        let auth = ClientAuth::new(BasicPolicy::Refuse);
        Device { carrier, host: host.into(), credentials, auth, challenged: false, deadline }
    }

    /// Shows the password to a device that knows nothing better than Basic: inside TLS, to a key that is trusted.
    #[must_use]
    pub fn allow_basic(mut self) -> Self {
        self.auth = ClientAuth::new(BasicPolicy::Allow);
        self
    }

    /// Whether the device has asked for user and password: one that never does is open to anybody.
    pub fn is_guarded(&self) -> bool {
        self.auth.is_challenged()
    }

    /// Whether it has asked for the password yet.
    pub fn was_challenged(&self) -> bool {
        self.challenged
    }

    /// An ONVIF call to the service at `path`.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub async fn call<Q: onvif::Request>(
        &mut self,
        path: &str,
        question: &Q,
    ) -> Result<Q::Answer, DeviceError<C::Error>> {
        let content_type = format!("{}; action=\"{}\"", soap::CONTENT_TYPE, Q::action());
        let response = self.send(Method::POST, path, &content_type, question.to_xml().into()).await?;
        let status = response.status();
        match Q::parse_answer(response.body()) {
            // A fault explains more than its status does.
            Err(onvif::CallError::Fault(fault)) if fault.has_subcode("NotAuthorized") => {
                Err(match self.is_guarded() {
                    true => DeviceError::WrongCredentials,
                    // WS-Security's own way, say.
                    false => DeviceError::Challenge(ClientError::NoScheme { offered: "nothing".to_owned() }),
                })
            }
            Err(onvif::CallError::Soap(_)) if !status.is_success() => Err(DeviceError::Status(status)),
            answer => answer.map_err(DeviceError::Answer),
        }
    }

    /// The paths of the device's services.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub async fn services(&mut self) -> Result<onvif::device::Services, DeviceError<C::Error>> {
        self.call(onvif::DEVICE_PATH, &onvif::device::GetServices { include_capability: true }).await
    }

    /// Any HTTP request; a challenge is answered.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<Response<Bytes>, DeviceError<C::Error>> {
        let deadline = self.deadline;
        tokio::time::timeout(deadline, self.send_unhurried(method, path, content_type, body))
            .await
            .unwrap_or(Err(DeviceError::Timeout(deadline)))
    }

    async fn send_unhurried(
        &mut self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<Response<Bytes>, DeviceError<C::Error>> {
        for _ in 0..ROUNDS {
            let mut request = Request::builder()
                .method(method.clone())
                .uri(path)
                .header(header::HOST, &self.host)
                .header(header::CONTENT_LENGTH, body.len());
            if !content_type.is_empty() {
                request = request.header(header::CONTENT_TYPE, content_type);
            }
            let answer = self.auth.authorize(method.as_str(), path, &self.credentials);
            if let Some(answer) = answer.map_err(DeviceError::Challenge)? {
                let answer = HeaderValue::try_from(answer);
                let mut answer = answer.map_err(|error| DeviceError::Request(error.into()))?;
                answer.set_sensitive(true);
                request = request.header(header::AUTHORIZATION, answer);
            }
            let request = request.body(body.clone()).map_err(DeviceError::Request)?;
            let response = self.carrier.carry(request).await.map_err(DeviceError::Carrier)?;
            if response.status() != StatusCode::UNAUTHORIZED {
                self.auth.handle_accepted();
                return Ok(response);
            }
            self.challenged = true;
            let challenges = response.headers().get_all(header::WWW_AUTHENTICATE);
            let challenges = challenges.iter().filter_map(|value| value.to_str().ok());
            self.auth.handle_challenge(challenges).map_err(|error| match error {
                ClientError::WrongCredentials => DeviceError::WrongCredentials,
                other => DeviceError::Challenge(other),
            })?;
        }
        Err(DeviceError::WrongCredentials)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use homing_protocol::{
        digest::DigestGuard,
        onvif::device::{DeviceInformation, GetDeviceInformation},
        soap::{Envelope, Fault, SoapVersion},
    };
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Camera {
        guard: DigestGuard,
        asked: AtomicUsize,
    }

    impl Carrier for &Camera {
        type Error = std::convert::Infallible;

        async fn carry(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Self::Error> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let authorization =
                request.headers().get(header::AUTHORIZATION).map(|value| value.to_str().unwrap());
            let password = |user: &str| (user == "root").then(|| "sesame".into());
            let (method, uri) = (request.method().as_str(), request.uri().path());
            let mut response = Response::builder();
            if self.guard.check(method, uri, authorization, password, 0).is_err() {
                for challenge in self.guard.challenges(0, false) {
                    response = response.header(header::WWW_AUTHENTICATE, challenge);
                }
                return Ok(response.status(401).body(Bytes::new()).unwrap());
            }
            Ok(match uri {
                onvif::DEVICE_PATH => {
                    let information =
                        DeviceInformation { serial_number: "00408C702009".into(), ..Default::default() };
                    use onvif::Message as _;
                    response.body(Envelope::new(information.to_element()).to_xml().into()).unwrap()
                }
                "/fault" => {
                    let fault = Fault::receiver(&["ActionNotSupported"], "not here");
                    response.status(500).body(fault.to_xml(SoapVersion::V12).into()).unwrap()
                }
                _ => response.status(404).body("no such page".into()).unwrap(),
            })
        }
    }

    fn device<'a>(camera: &'a Camera, password: &str) -> Device<&'a Camera> {
        Device::new(camera, "camera", Credentials::new("root", password), Duration::from_secs(1))
    }

    #[tokio::test]
    async fn a_challenge_is_answered_once_and_a_wrong_password_is_told() {
        let camera = Camera { guard: DigestGuard::new("camera", [7; 32]), asked: AtomicUsize::new(0) };
        let mut right = device(&camera, "sesame");
        for expected in [2, 3] {
            let information = right.call(onvif::DEVICE_PATH, &GetDeviceInformation).await.unwrap();
            assert_eq!(information.serial_number, "00408C702009");
            assert_eq!(camera.asked.load(Ordering::Relaxed), expected);
        }
        let fault = right.call("/fault", &GetDeviceInformation).await.unwrap_err().to_string();
        assert!(fault.contains("not here"), "{fault}");
        let missing = right.call("/missing", &GetDeviceInformation).await.unwrap_err();
        assert!(matches!(missing, DeviceError::Status(StatusCode::NOT_FOUND)), "{missing}");

        let wrong = device(&camera, "wrong").call(onvif::DEVICE_PATH, &GetDeviceInformation).await;
        assert!(matches!(wrong, Err(DeviceError::WrongCredentials)));
    }
}
