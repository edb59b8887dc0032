//! The client's half: which of the offered schemes to take, and what to answer, on the `http-auth` crate.

use super::{BasicPolicy, MAX_HEADER_BYTES};
use crate::secret::Credentials;
use http_auth::{ChallengeParser, ParamValue, PasswordClient, PasswordParams};

/// The client's half: keeps the challenge that a peer made and answers it request by request.
///
/// 1. Send a request with [`authorize`](Self::authorize)'s header, if it gives one.
/// 2. On 401 pass every `WWW-Authenticate` value to [`handle_challenge`](Self::handle_challenge): `Ok`
///    means send the request again (with a new header), an error means give up and say so.
/// 3. On any other status call [`handle_accepted`](Self::handle_accepted), so that a nonce that
///    expires later is told apart from a wrong password.
#[derive(Debug, Default)]
pub struct ClientAuth {
    basic: BasicPolicy,
    scheme: Option<PasswordClient>,
    answered: bool,
    accepted: bool,
    /// A nonce was renewed and nothing has been accepted since: no second time, or a peer that always
    /// says `stale` would keep us going for ever.
    renewed: bool,
}

/// Why a challenge cannot be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The peer was given the credentials and did not take them.
    #[error("user name or password refused")]
    WrongCredentials,
    /// No challenge that this client can answer; says what was offered.
    #[error("no usable authentication scheme offered ({offered})")]
    NoScheme {
        /// The schemes that were offered, or "nothing".
        offered: String,
    },
    /// Basic is all that the peer offers, and the policy forbids it.
    #[error("the peer offers only Basic authentication, which would show it the password")]
    OnlyBasic,
    /// The answer cannot be written, such as for a URI with control characters.
    #[error("cannot answer the authentication challenge: {0}")]
    Unanswerable(String),
}

impl ClientAuth {
    /// A client that has not been challenged yet.
    pub fn new(basic: BasicPolicy) -> Self {
        ClientAuth { basic, ..ClientAuth::default() }
    }

    /// Whether the peer has asked for credentials at all.
    pub fn is_challenged(&self) -> bool {
        self.scheme.is_some()
    }

    /// The `Authorization` value for one request, or `None` before the first challenge.
    ///
    /// `uri` is what stands in the request line. Counts the nonce up.
    pub fn authorize(
        &mut self,
        method: &str,
        uri: &str,
        credentials: &Credentials,
    ) -> Result<Option<String>, ClientError> {
        let Some(scheme) = &mut self.scheme else { return Ok(None) };
        let mut header = scheme
            .respond(&PasswordParams {
                username: &credentials.user,
                password: credentials.password.expose(),
                uri,
                method,
                // `auth-int` would need every body in memory, and nobody requires it.
                body: None,
            })
            .map_err(ClientError::Unanswerable)?;
        if let PasswordClient::Digest(digest) = scheme
            && digest.rfc2069_compat()
            && digest.algorithm() == http_auth::digest::Algorithm::Sha256
        {
            // A challenge without `qop` for something newer than MD5: the answer must say so.
            header.push_str(", algorithm=SHA-256");
        }
        self.answered = true;
        Ok(Some(header))
    }

    /// Takes a 401's `WWW-Authenticate` values. `Ok`: send the request again.
    pub fn handle_challenge<'a>(
        &mut self,
        values: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), ClientError> {
        let best = best_scheme(values, self.basic)?;
        let fresh = match (&self.scheme, &best) {
            // Cameras that let a nonce expire without saying `stale`: a nonce that worked before may
            // be replaced by another one, once.
            (Some(PasswordClient::Digest(old)), PasswordClient::Digest(new)) => {
                new.stale() || (self.accepted && old.nonce() != new.nonce())
            }
            (_, _) => false,
        };
        let renew = fresh && !self.renewed;
        let refused = self.answered && !renew;
        self.renewed = renew;
        self.scheme = Some(best);
        self.accepted = false;
        if refused { Err(ClientError::WrongCredentials) } else { Ok(()) }
    }

    /// The last answer was taken.
    pub fn handle_accepted(&mut self) {
        self.accepted = self.answered;
        self.renewed = false;
    }
}

/// Digest SHA-512/256 or SHA-256 before Digest MD5 before Basic; among equals the first.
fn best_scheme<'a>(
    values: impl IntoIterator<Item = &'a str>,
    basic: BasicPolicy,
) -> Result<PasswordClient, ClientError> {
    let mut best: Option<(u8, PasswordClient)> = None;
    let mut offered = Vec::new();
    let mut basic_refused = false;
    for value in values {
        if value.len() > MAX_HEADER_BYTES {
            continue;
        }
        // A syntax error ends this value; what came before it counts.
        for mut challenge in ChallengeParser::new(value).map_while(Result::ok) {
            if offered.len() < 8 {
                offered.push(challenge.scheme.chars().take(16).collect::<String>());
            }
            // Some cameras write the algorithm's name in lower case.
            let algorithm = challenge
                .params
                .iter()
                .find(|(key, _)| key.eq_ignore_ascii_case("algorithm"))
                .map(|(_, value)| value.as_escaped().to_ascii_uppercase().replace("-SESS", "-sess"));
            if let Some(algorithm) = algorithm
                && let Some(canonical) =
                    ["MD5", "MD5-sess", "SHA-256", "SHA-256-sess", "SHA-512-256", "SHA-512-256-sess"]
                        .into_iter()
                        .find(|known| *known == algorithm)
            {
                for (key, value) in &mut challenge.params {
                    if key.eq_ignore_ascii_case("algorithm") {
                        *value = ParamValue::try_from_escaped(canonical).expect("a plain token");
                    }
                }
            }
            let Ok(client) = PasswordClient::try_from(&challenge) else { continue };
            let rank = match &client {
                PasswordClient::Digest(digest) => match digest.algorithm() {
                    http_auth::digest::Algorithm::Md5 => 2,
                    _ => 3,
                },
                _ if basic == BasicPolicy::Allow => 1,
                _ => {
                    basic_refused = true;
                    continue;
                }
            };
            if best.as_ref().is_none_or(|(best_rank, _)| rank > *best_rank) {
                best = Some((rank, client));
            }
        }
    }
    match best {
        Some((_, client)) => Ok(client),
        None if basic_refused => Err(ClientError::OnlyBasic),
        None if offered.is_empty() => Err(ClientError::NoScheme { offered: "nothing".into() }),
        None => Err(ClientError::NoScheme { offered: offered.join(", ") }),
    }
}
