//! The cameras' user and password, which are the device's: what the configuration says, until a tunnel server replaces a
//! factory default by a password of the device's own (ONVIF SetUser, `onvif.rs`).
//!
//! A new password is written down before a camera is told, and counts once every camera has taken it. A camera that
//! refuses what counts and takes another that is known, having asked for it (`camera.rs` looks), decides: after a crash
//! between the two, for instance. Whoever answers in the camera's place can do the same, so that what counted before
//! stays known, and the configuration's password comes back only when a person has changed it there.
//!
//! Invariants: whatever a camera may have been told is in the file, readable for the agent alone. No answer of a camera
//! makes the agent forget a password of the device's own, nor return to a factory default.

use crate::camera;
use crate::config::{Camera, authority};
use crate::files;
use bytes::Bytes;
use homing_protocol::Secret;
use homing_protocol::digest::{ClientAuth, ClientError};
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
    /// What counted before.
    #[serde(default)]
    former: Option<Secret>,
    /// The configuration's, when this was written: another one there is a person's doing.
    #[serde(default)]
    configured: Option<Secret>,
}

/// The user and password of all cameras.
#[derive(Debug)]
pub struct LogIn {
    configured: Credentials,
    /// A person has changed the configuration's password since the device has had its own.
    corrected: bool,
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
        let mut kept = if kept.user == configured.user { kept } else { Kept::default() };
        if kept.own.is_some() && kept.configured.is_none() {
            // Written by an earlier version.
            kept.configured = Some(configured.password.clone());
            files::write(&path, &serde_json::to_string(&kept)?)?;
        }
        let corrected = kept.configured.as_ref().is_some_and(|before| *before != configured.password);
        let changing = tokio::sync::Mutex::default();
        Ok(LogIn { configured, corrected, path, kept: Mutex::new(kept), changing })
    }

    /// Where the device's own password is.
    pub fn file(&self) -> &Path {
        &self.path
    }

    /// What counts.
    pub fn credentials(&self) -> Credentials {
        let own = self.kept().own;
        Credentials::new(
            self.configured.user.clone(),
            own.unwrap_or_else(|| self.configured.password.clone()),
        )
    }

    /// What a camera may have instead, and may be believed to have.
    pub fn others(&self) -> Vec<Credentials> {
        let (kept, counts) = (self.kept(), self.credentials());
        let configured = Some(self.configured.password.clone()).filter(|_| self.corrected);
        let known = kept.new.into_iter().chain(kept.former).chain(configured);
        let known = known.map(|password| Credentials::new(counts.user.clone(), password));
        known.filter(|other| *other != counts).collect()
    }

    /// The configuration's, where the device has one of its own instead.
    pub fn replaced(&self) -> Option<Credentials> {
        let counts = self.credentials();
        Some(self.configured.clone()).filter(|configured| *configured != counts && !self.corrected)
    }

    /// A camera takes this one and not what counted: it counts from now on. What counted stays known.
    pub async fn settle(&self, taken: &Credentials) {
        let _changing = self.changing.lock().await;
        let before = self.kept();
        let own = Some(taken.password.clone()).filter(|taken| *taken != self.configured.password);
        tracing::info!(own = own.is_some(), "the camera has another of the known passwords");
        let new = before.new.filter(|new| *new != taken.password);
        let former = before.own.or(before.former).filter(|former| *former != taken.password);
        if let Err(error) = self.keep(Kept { own, new, former, ..Kept::default() }).await {
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
        let (before, not_kept) = (self.kept(), "the device cannot store this now");
        let keep = async |own: Option<Secret>, new, former| {
            self.keep(Kept { own, new, former, ..Kept::default() }).await.map_err(|error| {
                tracing::error!(error = format!("{error:#}"), "cannot keep the camera's new password");
                not_kept.to_owned()
            })
        };
        keep(before.own.clone(), Some(new.password.clone()), before.former.clone()).await?;
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
                keep(before.own, None, before.former).await?;
            }
            return Err(error.text);
        }
        // What counted stays known: something else may have answered in a camera's place.
        keep(Some(new.password.clone()), None, before.own).await?;
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

    /// On disk first. Whose it is, and beside which configuration, is put in here.
    async fn keep(&self, kept: Kept) -> anyhow::Result<()> {
        let configured = match self.kept().configured {
            // Until the corrected one has been taken, it remains a person's doing after a restart, too.
            Some(before) if self.corrected && kept.own.is_some() => before,
            _ => self.configured.password.clone(),
        };
        let kept = Kept { user: self.configured.user.clone(), configured: Some(configured), ..kept };
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
    let (host, port) = http_of(camera)?;
    let peer = authority(host, port);
    let request = SetUser { user: new.clone() };
    let onvif = Post { path: DEVICE_PATH, content_type: soap::CONTENT_TYPE, body: request.to_xml().into() };
    let mut answer = post(camera, &onvif, old).await?;
    if is_unauthorized(&answer) {
        // Told before, and interrupted?
        answer = post(camera, &onvif, new).await?;
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
    let answer = post(camera, &vapix, old).await?;
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
    let (host, port) = http_of(camera)?;
    let onvif =
        Post { path: DEVICE_PATH, content_type: soap::CONTENT_TYPE, body: SystemReboot.to_xml().into() };
    let answer = post(camera, &onvif, user).await?;
    let why = match SystemReboot::parse_answer(answer.body()) {
        Ok(_) => return Ok(()),
        Err(CallError::Fault(fault)) => fault.to_string(),
        Err(_) => format!("HTTP status {}", answer.status()),
    };
    Err(Trouble::refusal(format!("the camera at {} does not restart: {why}", authority(host, port))))
}

fn http_of(camera: &Camera) -> Result<(&str, u16), Trouble> {
    let (host, port) = camera.http.as_ref().ok_or_else(|| {
        Trouble::refusal(format!(
            "no \"http\" address is configured for the camera {:?}, where it could be told",
            camera.name
        ))
    })?;
    Ok((host, *port))
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
async fn post(camera: &Camera, what: &Post, user: &Credentials) -> Result<Response<Bytes>, Trouble> {
    let (host, port) = http_of(camera)?;
    let peer = authority(host, port);
    let late = || Trouble::unclear(format!("the camera at {peer} does not answer in time"));
    let mut auth = ClientAuth::new(camera.basic_policy());
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
        match auth.handle_challenge(challenges) {
            Ok(()) => (),
            Err(ClientError::OnlyBasic) => return Err(Trouble::refusal(camera::only_basic(&camera.name))),
            Err(_) => return Ok(answer),
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
