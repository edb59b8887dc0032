//! A device that still has its factory default password gets a strong one of its own.
//!
//! 1. The new password is made and stored, sealed, beside the old one.
//! 2. The device is told: ONVIF SetUser, else VAPIX `pwdgrp.cgi` by POST, so that it stands in no URL.
//! 3. The device takes it in a log-in: it replaces the old one on disk, and in what is told of the device.
//!
//! Invariant: between 1 and 3 both are kept. Whoever is interrupted, at any instant, finds out by a log-in which of them
//! the device has.

use crate::{devices::Devices, rtsp::Through};
use homing_base::onvif::{Device, DeviceError};
use homing_protocol::{
    Secret, SerialNumber, Step,
    api::{Problem, ProblemDetail},
    onvif::{
        self,
        device::{GetDeviceInformation, SetUser},
    },
    secret::Credentials,
};
use homing_uplink::Uplink;
use http::{Method, StatusCode};
use std::time::Duration;

/// For each question to the device.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Of letters and digits, which every device takes and no form has to escape: 116 bits.
const LENGTH: usize = 20;

/// VAPIX: users and their passwords.
const USERS_PATH: &str = "/axis-cgi/pwdgrp.cgi";
const FORM: &str = "application/x-www-form-urlencoded";

/// What became of a look at a device's password.
pub(crate) enum Outcome {
    /// It is as it should be, now or before.
    Done,
    /// The device cannot be helped; to be shown.
    Left(ProblemDetail),
    /// The connection did not hold: later.
    Later(String),
}

/// Replaces a device's password if it is one of `defaults` (`user:password`).
///
/// # Errors
/// Our own disk.
pub(crate) async fn replace(
    devices: &Devices,
    serial: SerialNumber,
    uplink: &Uplink,
    defaults: &[String],
) -> anyhow::Result<Outcome> {
    let store = devices.store();
    let Some(secrets) = store.secrets(serial).await? else { return Ok(Outcome::Done) };
    let (given, proposed) = (secrets.credentials, store.proposed_password(serial).await?);
    let is_default = is_default(&given, defaults);
    let session = |credentials: &Credentials| {
        // Basic is all that some devices know; it travels inside TLS, to a key that was vouched for.
        Device::new(Through(uplink), serial.host(), credentials.clone(), ANSWER_DEADLINE).allow_basic()
    };
    let own = |password| Credentials::new(given.user.clone(), password);
    let new = match proposed {
        // Interrupted: the device may have been told.
        Some(password) => match logs_in(&mut session(&own(password.clone()))).await {
            LogIn::Taken => return adopt(devices, serial, &password).await,
            LogIn::Failed(reason) => return Ok(Outcome::Later(reason)),
            LogIn::Wrong | LogIn::Open => password,
        },
        None => random_password(),
    };
    if !is_default {
        let _lock = devices.locks.lock(serial).await;
        let now = store.secrets(serial).await?.map(|secrets| secrets.credentials);
        if now.is_some_and(|now| now != given) {
            // It was corrected meanwhile, and is looked at again.
            return Ok(Outcome::Done);
        }
        store.forget_proposed(serial).await?;
        devices.change(serial, |standing| standing.password = Password::Given).await?;
        return Ok(Outcome::Done);
    }
    match logs_in(&mut session(&given)).await {
        LogIn::Taken => (),
        LogIn::Failed(reason) => return Ok(Outcome::Later(reason)),
        LogIn::Wrong => return Ok(left("it does not accept the registered password any more")),
        LogIn::Open => return Ok(left("it answers without asking for a password")),
    }
    store.propose_password(serial, &new).await?;
    match tell(&mut session(&given), &own(new.clone())).await {
        Ok(()) => (),
        Err(DeviceError::Carrier(reason)) => return Ok(Outcome::Later(reason)),
        Err(error @ DeviceError::Timeout(_)) => return Ok(Outcome::Later(error.to_string())),
        Err(error) => return Ok(left(&error.to_string())),
    }
    match logs_in(&mut session(&own(new.clone()))).await {
        LogIn::Taken => adopt(devices, serial, &new).await,
        LogIn::Failed(reason) => Ok(Outcome::Later(reason)),
        LogIn::Wrong | LogIn::Open => Ok(left("it says that it took the new one, and does not take it")),
    }
}

fn is_default(credentials: &Credentials, defaults: &[String]) -> bool {
    let text = Secret::new(format!("{}:{}", credentials.user, credentials.password.expose()));
    defaults.iter().any(|known| text.matches(known))
}

/// Whose a device's password is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Password {
    /// Not looked at yet.
    #[default]
    Unknown,
    /// No default: whoever registered the device has chosen it.
    Given,
    /// Its own, made here.
    Own,
}

impl Password {
    /// Of a device that is registered with these: only what may be a factory default is looked at when it comes.
    pub fn registered(credentials: &Credentials, defaults: &[String]) -> Self {
        if is_default(credentials, defaults) { Password::Unknown } else { Password::Given }
    }

    /// The word in the database.
    pub fn word(self) -> &'static str {
        match self {
            Password::Unknown => "unknown",
            Password::Given => "given",
            Password::Own => "own",
        }
    }

    /// Reads the word; what nobody wrote is looked at.
    pub fn from_word(word: &str) -> Self {
        [Password::Given, Password::Own].into_iter().find(|known| known.word() == word).unwrap_or_default()
    }
}

enum LogIn {
    Taken,
    Wrong,
    /// It does not ask for a password, so that nothing can be said of it.
    Open,
    Failed(String),
}

async fn logs_in(device: &mut Device<Through<'_>>) -> LogIn {
    match device.call(onvif::DEVICE_PATH, &GetDeviceInformation).await {
        Ok(_) if device.was_challenged() => LogIn::Taken,
        Ok(_) => LogIn::Open,
        Err(DeviceError::WrongCredentials) => LogIn::Wrong,
        Err(error) => LogIn::Failed(error.to_string()),
    }
}

/// Step 2 of the module's.
async fn tell(device: &mut Device<Through<'_>>, new: &Credentials) -> Result<(), DeviceError<String>> {
    let by_onvif = device.call(onvif::DEVICE_PATH, &SetUser { user: new.clone() }).await;
    let Err(refused @ (DeviceError::Answer(_) | DeviceError::Status(_))) = by_onvif else {
        return by_onvif.map(drop);
    };
    let user: String = url::form_urlencoded::byte_serialize(new.user.as_bytes()).collect();
    let form = format!("action=update&user={user}&pwd={}", new.password.expose());
    let answer = device.send(Method::POST, USERS_PATH, FORM, form.into()).await?;
    let said = String::from_utf8_lossy(answer.body());
    // An error is told with status 200, too. Its text is not passed on: it may repeat what was sent.
    match answer.status() {
        StatusCode::OK | StatusCode::NO_CONTENT if !said.contains("Error") => Ok(()),
        _ => Err(refused),
    }
}

async fn adopt(devices: &Devices, serial: SerialNumber, new: &Secret) -> anyhow::Result<Outcome> {
    devices.store().adopt_password(serial, new).await?;
    devices.change(serial, |standing| standing.password = Password::Own).await?;
    tracing::info!(%serial, "the device has a password of its own instead of the factory default");
    Ok(Outcome::Done)
}

fn left(why: &str) -> Outcome {
    let why: String = why.chars().filter(|character| !character.is_control()).take(200).collect();
    let message = format!(
        "The device is registered with a factory default password, which could not be replaced: {why}. Change it at the device, then \
         here."
    );
    Outcome::Left(Problem::at(Step::Tunnel, "default-password", message).error)
}

fn random_password() -> Secret {
    loop {
        let password = homing_base::password::generate(LENGTH);
        // Devices with rules want one of each.
        let has = |kind: fn(&char) -> bool| password.expose().chars().any(|letter| kind(&letter));
        if has(char::is_ascii_uppercase) && has(char::is_ascii_lowercase) && has(char::is_ascii_digit) {
            return password;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_strong_and_none_is_like_another() {
        let (one, two) = (random_password(), random_password());
        assert_eq!(one.expose().len(), LENGTH);
        assert!(one.expose().chars().all(|letter| letter.is_ascii_alphanumeric()));
        assert!(!one.matches(two.expose()));
    }
}
