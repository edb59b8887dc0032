//! What is done to a device that is registered: released, moved, offered; and its password.

use super::{Failure, register::secret, server::Server, terminal, usage};
use crate::cli::print;
use clap::Args;
use homing_management::views::Device;
use homing_protocol::{Secret, SerialNumber};
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Args)]
pub(in crate::cli) struct Release {
    /// Their serial numbers.
    #[arg(required = true)]
    serials: Vec<SerialNumber>,
    /// Only what a device left behind at this tunnel server when it moved; or, of one that two keep, at this one.
    #[arg(long, value_name = "NAME")]
    left_at: Option<String>,
    #[command(flatten)]
    at: Server,
}

#[derive(Args)]
pub(in crate::cli) struct Move {
    /// Its serial number.
    serial: SerialNumber,
    /// Name of the tunnel server that it shall go to.
    #[arg(required_unless_present = "undo", conflicts_with = "undo")]
    to: Option<String>,
    /// It stays where it is as well, and holds a tunnel to both. To end that, unregister it with --left-at.
    #[arg(long, conflicts_with = "undo")]
    keep: bool,
    /// It stays, or comes back.
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    at: Server,
}

#[derive(Args)]
pub(in crate::cli) struct Password {
    /// Its serial number.
    serial: SerialNumber,
    /// Why, for the audit log.
    #[arg(long)]
    reason: String,
    /// A file with your own password, or - for standard input; asked for otherwise. The token alone shows nothing.
    #[arg(long, value_name = "FILE")]
    own_password_file: Option<PathBuf>,
    /// As one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: Server,
}

#[derive(Args)]
pub(in crate::cli) struct Offer {
    /// Its serial number.
    serial: SerialNumber,
    /// The other owner's account at the dispatcher.
    #[arg(required_unless_present = "withdraw", conflicts_with = "withdraw")]
    account: Option<String>,
    /// No longer offers it.
    #[arg(long)]
    withdraw: bool,
    #[command(flatten)]
    at: Server,
}

pub(super) async fn release(options: Release) -> Result<(), Failure> {
    let client = options.at.client()?;
    let place =
        options.left_at.as_ref().map_or(String::new(), |server| format!("?tunnel_server={}", escape(server)));
    let mut failures = Vec::new();
    for serial in &options.serials {
        let path = format!("/api/v1/devices/{serial}{place}");
        match client.send::<(), Value>(Method::DELETE, &path, &()).await {
            Ok(_) => print(&format!("{serial} is released\n")),
            Err(error) => failures.push((serial, Failure::from(error))),
        }
    }
    let all = failures.len() == options.serials.len();
    match failures.pop() {
        None => Ok(()),
        Some((_, failure)) if options.serials.len() == 1 => Err(failure),
        Some(last) => {
            failures.push(last);
            for (serial, failure) in &failures {
                terminal::say(&format!("{serial}: {failure}"));
            }
            let message = format!("{} of {} not released", failures.len(), options.serials.len());
            Err(match failures.pop() {
                Some((_, Failure::Unreachable(_))) if all => Failure::Unreachable(message),
                Some((_, Failure::NotAuthorised(_))) if all => Failure::NotAuthorised(message),
                _ if all => Failure::Refused(message),
                _ => Failure::Partly(message),
            })
        }
    }
}

/// What a management server of before does not know is left out where it is not meant.
fn order(to: &str, keep: bool) -> Value {
    match keep {
        true => json!({ "tunnel_server": to, "keep": true }),
        false => json!({ "tunnel_server": to }),
    }
}

pub(super) async fn send(options: Move) -> Result<(), Failure> {
    let client = options.at.client()?;
    let path = format!("/api/v1/devices/{}/move", options.serial);
    let device: Device = match &options.to {
        Some(to) => client.send(Method::PUT, &path, &order(to, options.keep)).await?,
        None => client.send(Method::DELETE, &path, &()).await?,
    };
    let told = match &options.to {
        Some(to) if options.keep && device.connected => format!("goes to {to} as well"),
        // A device is quick where nothing is in its way.
        Some(to) if device.tunnel_server == *to && device.connected => format!("is at {to}"),
        Some(to) if device.connected => {
            format!("goes from {} to {to}; its tunnel stands until it is there", device.tunnel_server)
        }
        Some(to) => format!("is offline, and goes to {to} when it comes back"),
        None if device.moving.is_some() => format!("is sent back from {}", device.tunnel_server),
        None => format!("is at {}", device.tunnel_server),
    };
    print(&format!("{} {told}\n", options.serial));
    Ok(())
}

/// As the API has it.
#[derive(Deserialize, Serialize)]
struct Shown {
    user: String,
    password: Secret,
    own: bool,
}

pub(super) async fn password(options: Password) -> Result<(), Failure> {
    let client = options.at.client()?;
    let path = format!("/api/v1/devices/{}/password", options.serial);
    let own = secret(options.own_password_file.as_deref(), "Your own password", "--own-password-file");
    let asked = json!({ "reason": options.reason, "current": own.map_err(usage)? });
    let shown: Shown = client.send(Method::POST, &path, &asked).await?;
    print(&match options.json {
        true => format!("{}\n", serde_json::to_string(&shown).map_err(|error| usage(error.into()))?),
        false => format!("{} {}\n", shown.user, shown.password.expose()),
    });
    Ok(())
}

pub(super) async fn offer(options: Offer) -> Result<(), Failure> {
    let client = options.at.client()?;
    let path = format!("/api/v1/devices/{}/offer", options.serial);
    let told = match &options.account {
        Some(account) => {
            client.send::<_, Value>(Method::PUT, &path, &json!({ "account": account })).await?;
            format!("is offered to {account:?} for seven days: it is theirs when they register it")
        }
        None => {
            client.send::<(), Value>(Method::DELETE, &path, &()).await?;
            "is no longer offered".to_owned()
        }
    };
    print(&format!("{} {told}\n", options.serial));
    Ok(())
}

/// A name as a value in a query (RFC 3986 §2.1).
fn escape(name: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    name.bytes().map(byte).collect()
}
