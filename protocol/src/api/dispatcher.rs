//! What a tunnel server asks a dispatcher (steps 2 and 5).
//!
//! HTTPS, Basic authentication with a dispatcher account.
//!
//! | request | answer |
//! |---|---|
//! | `PUT /api/v1/registrations/{serial}` [`NewRegistration`] | [`Registration`]; waits a few seconds for a device that is already there, so that a wrong OAK is told at once |
//! | `GET /api/v1/registrations/{serial}` | [`Registration`] |
//! | `DELETE /api/v1/registrations/{serial}` | nothing; the claim is released |
//! | `PUT /api/v1/registrations/{serial}/offer` [`Offer`] | nothing; that account may take the device over, by registering it |
//! | `DELETE /api/v1/registrations/{serial}/offer` | nothing; the offer is withdrawn |
//! | `PUT /api/v1/registrations/{serial}/arrived` [`Arrived`] | [`Registration`], dispatched: the device came by another way, and its secrets are forgotten |
//! | `GET /api/v1/changes?after=SEQ&wait_s=25` | [`Changes`]; held back until there is one |
//!
//! A tunnel server always has one `changes` request open. Asking `after=N` acknowledges everything up
//! to `N`: the dispatcher sends a device on its way only after the tunnel server has acknowledged the
//! device's key (or did not within a few seconds), so that the device does not arrive as a stranger.
//!
//! A registration is the account's claim once its OAK is proven, by a manufacturer's list at once or by the device.
//! Until then other accounts may register the same device; [`Registration::contested`] tells of them.
//!
//! One account belongs to one tunnel server. Asking after more than there is (the dispatcher's database was
//! set back) is answered with everything, and a `last` that is smaller.
//!
//! | problem code | status, or in [`Registration::problem`] | who can mend it |
//! |---|---|---|
//! | `bad-request` | 400 | the tunnel server |
//! | `unknown-account` | 401 | the administrators: name, password, or a disabled account |
//! | `too-many-registrations` | 403 | the dispatcher's administrator |
//! | `server-not-allowed` | 403: the account may not send devices to one of these `servers` | the dispatcher's operator |
//! | `not-found` | 404 | nobody: not registered by this account |
//! | `claimed-by-another-account` | 409; problem, `refused`, when the other account has proven the OAK meanwhile | the other owner; the message has the date |
//! | `contested` | 409; problem, `refused`, when it gave way | time: many accounts have registered it, and none has proven its OAK |
//! | `unproven` | 409 to an offer: the device has not proven its OAK yet | time: offer it when it has been dispatched |
//! | `other-key` | 409 to `arrived`: the claim is bound to another key, or to none | the tunnel server |
//! | `wrong-oak`, `unknown-serial` | 422: not what a manufacturer's list says | whoever registered: the label |
//! | `slow-down` | 429 with `Retry-After` | time: too many wrong passwords or OAKs |
//! | `wrong-oak`, `wrong-serial`, `wrong-credentials` | problem, `refused` | whoever registered: relay a corrected registration |
//! | `no-oak-proof`, `key-not-vouched` | problem, `refused` | the dispatcher's administrator: the manufacturer's list, or CA |
//! | `device-lacks-service`, `device-key-unknown`, `device-refused` | problem, `refused` | the device's firmware |
//! | `released-by-operator` | problem, `refused` | whoever holds the label: register it again |
//! | `another-key` | problem, `returned` | the device's owner: reset, or somebody uses its serial number |
//! | `device-gone`, `timeout` | problem, `waiting` | time: tried again when the device comes back |

use super::Target;
use crate::{Oak, Secret, SerialNumber, Step};
use serde::{Deserialize, Serialize};

/// The problem code of who has [`RegistrationState::Returned`] with another key than was dispatched.
pub const ANOTHER_KEY: &str = "another-key";

/// A registration as a tunnel server relays it. Repeating it replaces the earlier one.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewRegistration {
    /// The OAK on the device's label.
    pub oak: Oak,
    /// The device's own user, for the log-in of step 5.
    pub user: String,
    /// That user's password.
    pub password: Secret,
    /// The tunnel server's public addresses, `host:port`, best first; 1 to 4.
    pub servers: Vec<String>,
    /// PEM of the certificate that the device shall trust there.
    pub trust_anchor: String,
    /// What the dispatcher shall sign its word about the device's key with ([`crate::voucher`]): known to the tunnel
    /// server alone, and read back by nobody. Without one there is no voucher.
    #[serde(default)]
    pub voucher_key: Secret,
}

/// How far a registration has come at the dispatcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum RegistrationState {
    /// Nobody has pressed the device's button since.
    Waiting,
    /// The device is here and step 5 is under way.
    Dispatching,
    /// The device was sent to the tunnel server; credentials are forgotten here.
    Dispatched,
    /// Step 5 failed; `problem` says why. The device waits for a corrected registration. Another key that
    /// claims the same serial number is still tried when it arrives, so that a stranger's failure is not
    /// the device's.
    Refused,
    /// The device came back after it had been dispatched (factory reset, or it could not reach its
    /// tunnel server): relay the registration again, for the credentials. With the problem [`ANOTHER_KEY`] it
    /// may be somebody else, and a tunnel server to which the device is connected keeps the credentials. When it
    /// leaves, the state is dispatched as before.
    Returned,
    /// The account that it was offered to has taken it over: send the device there (`next`), then forget it. The
    /// registration is no longer this account's, and is told for 30 days at most.
    Transferred,
}

/// What the dispatcher knows of one registration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Registration {
    /// Whose.
    pub serial: SerialNumber,
    /// How far.
    pub state: RegistrationState,
    /// Hex SHA-256 of the device's SubjectPublicKeyInfo, once the OAK proof and the log-in held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// For that fingerprint, under the registration's `voucher_key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voucher: Option<String>,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<super::ProblemDetail>,
    /// The last step that was carried out.
    pub step: Step,
    /// When the state was entered.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub since: jiff::Timestamp,
    /// Its place in the account's sequence of changes.
    pub seq: u64,
    /// Where the device belongs now; with [`RegistrationState::Transferred`] alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Target>,
    /// Other accounts have tried to register this device, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contested: Option<Contested>,
}

/// What a registration's owner is told of others who tried to register its device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Contested {
    /// How often, since this account registered it.
    pub attempts: u32,
    /// When last.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub last: jiff::Timestamp,
}

/// Offers a device to another account, which takes it over when it registers the device with the right OAK.
/// Until then nothing changes. An offer ends after seven days.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// Name of the other account.
    pub to: String,
}

/// The device has its tunnel to this account's tunnel server, whichever way it came (a move).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Arrived {
    /// Hex SHA-256 of the key that it came with: the one that the claim is bound to.
    pub fingerprint: String,
}

/// What has changed for an account since it last asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Changes {
    /// The latest state of every registration that changed, in order.
    pub changes: Vec<Registration>,
    /// Ask for what comes after this.
    pub last: u64,
}
