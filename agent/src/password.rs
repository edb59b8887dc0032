//! The cameras' user and password, which are the device's: what the configuration says, until a tunnel server replaces a
//! factory default by a password of the device's own (ONVIF SetUser, `onvif.rs`).
//!
//! A new password is written down before a camera is told, and counts once every camera has taken it. A camera that
//! refuses what counts and takes another that is known (`camera.rs` looks) decides: after a crash between the two, when
//! the camera was reset, or when the configuration was corrected.
//!
//! Invariant: whatever a camera may have been told is in the file, readable for the agent alone.

use crate::camera;
use crate::config::{Camera, authority};
use crate::files;
use bytes::Bytes;
use homing_protocol::Secret;
use homing_protocol::digest::{BasicPolicy, ClientAuth};
use homing_protocol::onvif::{
    self, CallError, DEVICE_PATH, Request as _,
    device::{SetUser, SystemReboot},
};
use homing_protocol::secret::Credentials;
use homing_protocol::soap;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::timeout;

const FILE: &str = "password.json";

/// For each exchange with a camera; some write their users to flash first.
const ANSWER_DEADLINE: Duration = Duration::from_secs(8);

/// Longest answer.
const ANSWER_MAX: usize = 64 * 1024;

/// VAPIX: users and their passwords.
const USERS_PATH: &str = "/axis-cgi/pwdgrp.cgi";

/// What is kept beside the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// Whose.
    user: String,
    /// The device's own; counts instead of the configuration's.
    own: Option<Secret>,
    /// Cameras are being told this one.
    new: Option<Secret>,
}

/// The user and password of all cameras.
#[derive(Debug)]
pub struct LogIn {
    configured: Credentials,
    path: PathBuf,
    kept: Mutex<Kept>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
}

impl LogIn {
    /// As it was left.
    pub fn load(data: &Path, configured: Credentials) -> anyhow::Result<LogIn> {
        let path = data.join(FILE);
        let kept: Kept = match files::read(&path)? {
            None => Kept::default(),
            // The parser's message could quote what it read.
            Some(text) => serde_json::from_str(&text)
                .map_err(|_| anyhow::anyhow!("{} is damaged; remove it", path.display()))?,
        };
        let kept = if kept.user == configured.user { kept } else { Kept::default() };
        Ok(LogIn { configured, path, kept: Mutex::new(kept), changing: tokio::sync::Mutex::default() })
    }

    /// What counts.
    pub fn credentials(&self) -> Credentials {
        let own = self.kept().own;
        Credentials::new(
            self.configured.user.clone(),
            own.unwrap_or_else(|| self.configured.password.clone()),
        )
    }

    /// What a camera may have instead.
    pub fn others(&self) -> Vec<Credentials> {
        let (kept, counts) = (self.kept(), self.credentials());
        let known = kept.new.into_iter().chain([self.configured.password.clone()]);
        let known = known.map(|password| Credentials::new(counts.user.clone(), password));
        known.filter(|other| *other != counts).collect()
    }

    /// A camera takes this one and not what counted: it counts from now on.
    pub async fn settle(&self, taken: &Credentials) {
        let _changing = self.changing.lock().await;
        let own = Some(taken.password.clone()).filter(|taken| *taken != self.configured.password);
        tracing::info!(own = own.is_some(), "the camera has another of the known passwords");
        if let Err(error) = self.keep(own, None).await {
            tracing::error!(error = format!("{error:#}"), "cannot keep the camera's password");
        }
    }

    /// Gives every camera a new password. What is wrong is told for people, without either password.
    pub async fn change(&self, cameras: &[Camera], new: &Credentials) -> Result<(), String> {
        let _changing = self.changing.lock().await;
        let old = self.credentials();
        if new.user != old.user {
            return Err("the device has one user, and this is another".to_owned());
        }
        if new.password.is_empty() {
            return Err("a password is needed".to_owned());
        }
        let (own, not_kept) = (self.kept().own, "the device cannot store this now");
        let keep = async |own, new| {
            self.keep(own, new).await.map_err(|error| {
                tracing::error!(error = format!("{error:#}"), "cannot keep the camera's new password");
                not_kept.to_owned()
            })
        };
        keep(own.clone(), Some(new.password.clone())).await?;
        for (index, camera) in cameras.iter().enumerate() {
            let Err(error) = tell(camera, &old, new).await else { continue };
            for told in &cameras[..index] {
                if let Err(trouble) = tell(told, new, &old).await {
                    tracing::error!(camera = %told.name, error = trouble.text, "this camera keeps its new password");
                    // Both stay known, and the look at it says what is wrong.
                    return Err(error.text);
                }
            }
            // Refused without doubt: what was new is not. Else the camera itself is asked, when it is looked at.
            if error.is_refusal {
                keep(own, None).await?;
            }
            return Err(error.text);
        }
        keep(Some(new.password.clone()), None).await?;
        tracing::info!("the cameras have a new password, as the tunnel server wants it");
        Ok(())
    }

    /// Has every camera restart (ONVIF SystemReboot). What is wrong with the first that does not is told for people.
    pub async fn restart(&self, cameras: &[Camera]) -> Result<(), String> {
        let mut told = Ok(());
        for camera in cameras {
            let restarted = restart(camera, &self.credentials()).await.map_err(|trouble| trouble.text);
            tracing::info!(camera = %camera.name, ?restarted, "told to restart");
            told = told.and(restarted);
        }
        told
    }

    fn kept(&self) -> Kept {
        self.kept.lock().expect("never poisoned: nothing panics while holding it").clone()
    }

    /// On disk first.
    async fn keep(&self, own: Option<Secret>, new: Option<Secret>) -> anyhow::Result<()> {
        let kept = Kept { user: self.configured.user.clone(), own, new };
        let (path, text) = (self.path.clone(), serde_json::to_string(&kept)?);
        tokio::task::spawn_blocking(move || files::write(&path, &text)).await??;
        *self.kept.lock().expect("never poisoned: nothing panics while holding it") = kept;
        Ok(())
    }
}

/// Why a camera has no new password.
struct Trouble {
    /// For people.
    text: String,
    /// It certainly has the old one.
    is_refusal: bool,
}

impl Trouble {
    fn refusal(text: impl Into<String>) -> Trouble {
        Trouble { text: text.into(), is_refusal: true }
    }

    fn unclear(text: impl Into<String>) -> Trouble {
        Trouble { text: text.into(), is_refusal: false }
    }
}

/// Gives one camera a new password: ONVIF SetUser, else VAPIX.
async fn tell(camera: &Camera, old: &Credentials, new: &Credentials) -> Result<(), Trouble> {
    let Some((host, port)) = &camera.http else {
        return Err(Trouble::refusal(format!(
            "no \"http\" address is configured for the camera {:?}, where its password could be changed",
            camera.name
        )));
    };
    let peer = authority(host, *port);
    let request = SetUser { user: new.clone() };
    let onvif = Post { path: DEVICE_PATH, content_type: soap::CONTENT_TYPE, body: request.to_xml().into() };
    let mut answer = post(host, *port, &onvif, old).await?;
    if is_unauthorized(&answer) {
        // Told before, and interrupted?
        answer = post(host, *port, &onvif, new).await?;
        if is_unauthorized(&answer) {
            return Err(Trouble::refusal(format!("the camera at {peer} refuses the user or password")));
        }
    }
    let fault = match SetUser::parse_answer(answer.body()) {
        Ok(_) => return Ok(()),
        Err(CallError::Fault(fault)) => fault.to_string(),
        Err(_) => format!("HTTP status {}", answer.status()),
    };
    let user = percent_encoding::utf8_percent_encode(&new.user, percent_encoding::NON_ALPHANUMERIC);
    let password =
        percent_encoding::utf8_percent_encode(new.password.expose(), percent_encoding::NON_ALPHANUMERIC);
    let vapix = Post {
        path: USERS_PATH,
        content_type: "application/x-www-form-urlencoded",
        body: format!("action=update&user={user}&pwd={password}").into(),
    };
    let answer = post(host, *port, &vapix, old).await?;
    // An error is told with status 200, too. Its text is not passed on: it may repeat what was sent.
    match answer.status() {
        StatusCode::OK | StatusCode::NO_CONTENT
            if !String::from_utf8_lossy(answer.body()).contains("Error") =>
        {
            Ok(())
        }
        status => Err(Trouble::refusal(format!(
            "the camera at {peer} takes no new password: by ONVIF {fault}, by VAPIX HTTP status {status}"
        ))),
    }
}

async fn restart(camera: &Camera, user: &Credentials) -> Result<(), Trouble> {
    let Some((host, port)) = &camera.http else {
        return Err(Trouble::refusal(format!(
            "no \"http\" address is configured for the camera {:?}, where it could be restarted",
            camera.name
        )));
    };
    let onvif =
        Post { path: DEVICE_PATH, content_type: soap::CONTENT_TYPE, body: SystemReboot.to_xml().into() };
    let answer = post(host, *port, &onvif, user).await?;
    let why = match SystemReboot::parse_answer(answer.body()) {
        Ok(_) => return Ok(()),
        Err(CallError::Fault(fault)) => fault.to_string(),
        Err(_) => format!("HTTP status {}", answer.status()),
    };
    Err(Trouble::refusal(format!("the camera at {} does not restart: {why}", authority(host, *port))))
}

fn is_unauthorized(answer: &Response<Bytes>) -> bool {
    answer.status() == StatusCode::UNAUTHORIZED
        || matches!(
            onvif::device::SetUser::parse_answer(answer.body()),
            Err(CallError::Fault(fault)) if fault.has_subcode("NotAuthorized")
        )
}

struct Post {
    path: &'static str,
    content_type: &'static str,
    body: Bytes,
}

/// One exchange with the camera's HTTP server; a challenge is answered.
async fn post(host: &str, port: u16, what: &Post, user: &Credentials) -> Result<Response<Bytes>, Trouble> {
    let peer = authority(host, port);
    let late = || Trouble::unclear(format!("the camera at {peer} does not answer in time"));
    // Basic too: inside the site, to an address that the owner has written down.
    let mut auth = ClientAuth::new(BasicPolicy::Allow);
    loop {
        let authorization = auth
            .authorize(Method::POST.as_str(), what.path, user)
            .map_err(|error| Trouble::refusal(format!("the camera at {peer}: {error}")))?;
        let exchange = exchange(host, port, &peer, what, authorization);
        let answer = timeout(ANSWER_DEADLINE, exchange).await.map_err(|_| late())??;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let challenges = answer.headers().get_all(header::WWW_AUTHENTICATE);
        let challenges = challenges.iter().filter_map(|value| value.to_str().ok());
        if auth.handle_challenge(challenges).is_err() {
            return Ok(answer);
        }
    }
}

async fn exchange(
    host: &str,
    port: u16,
    peer: &str,
    what: &Post,
    authorization: Option<String>,
) -> Result<Response<Bytes>, Trouble> {
    let tcp = camera::connect(host, port).await.map_err(Trouble::refusal)?;
    let broken = |error: &dyn std::fmt::Display| {
        Trouble::unclear(format!("the camera at {peer} broke HTTP off: {error}"))
    };
    let mut request = Request::post(what.path)
        .header(header::HOST, peer)
        .header(header::CONTENT_TYPE, what.content_type)
        .header(header::CONNECTION, "close");
    if let Some(authorization) = authorization {
        request = request.header(header::AUTHORIZATION, authorization);
    }
    let request = request.body(Full::new(what.body.clone())).map_err(|error| broken(&error))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(tcp)).await.map_err(|error| broken(&error))?;
    let answering = async {
        let (head, body) = sender.send_request(request).await.map_err(|error| broken(&error))?.into_parts();
        let body = Limited::new(body, ANSWER_MAX).collect().await.map_err(|error| broken(&error))?;
        Ok(Response::from_parts(head, body.to_bytes()))
    };
    let mut answering = Box::pin(answering);
    tokio::select! {
        answer = &mut answering => answer,
        // The connection may be over before the last of the body has been read.
        _ = connection => answering.await,
    }
}
