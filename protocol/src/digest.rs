//! HTTP authentication, both ends, for HTTP and RTSP alike: Basic (RFC 7617) and Digest (RFC 7616,
//! 2617 and, under a policy, 2069).
//!
//! Pure: no clock and no randomness of its own on the server side, the caller passes both in. The
//! client side ([`ClientAuth`]) answers a camera's challenges on the `http-auth` crate; the server
//! side ([`DigestGuard`]) makes challenges and checks answers without remembering anything.
//!
//! Invariant: a password is never written anywhere but into a Basic header that the policy allows, and
//! responses are compared in constant time.

use crate::secret::{Credentials, Secret};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD},
};
use hmac::{Hmac, Mac};
use http_auth::{ChallengeParser, ParamValue, PasswordClient, PasswordParams};
use md5::Md5;
use sha2::{Digest, Sha256};
use std::{fmt, fmt::Write};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Longer header values than this are refused unread.
const MAX_HEADER_BYTES: usize = 8 * 1024;

/// How long a nonce may be answered, unless [`DigestGuard::nonce_lifetime_s`] says otherwise.
const DEFAULT_NONCE_LIFETIME_S: u64 = 5 * 60;

/// Whether Basic, which shows the password to whoever reads the connection, may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BasicPolicy {
    /// Digest or nothing.
    #[default]
    Refuse,
    /// Basic where there is nothing better: inside TLS, or in a site's own network.
    Allow,
}

/// Whether an answer without `qop` (RFC 2069) is accepted. Replaying it is possible as long as the
/// nonce lives; many RTSP clients and cameras know nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rfc2069Policy {
    /// `qop=auth` is required.
    #[default]
    Refuse,
    /// For RTSP.
    Accept,
}

// ---------------------------------------------------------------------------------------- client

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
        let header = scheme
            .respond(&PasswordParams {
                username: &credentials.user,
                password: credentials.password.expose(),
                uri,
                method,
                // `auth-int` would need every body in memory, and nobody requires it.
                body: None,
            })
            .map_err(ClientError::Unanswerable)?;
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

// ---------------------------------------------------------------------------------------- server

/// The server's half: makes challenges and checks answers, and remembers nothing between them.
///
/// A nonce is the time it was made and an HMAC over it, so that it can be recognised without a table.
/// Within its lifetime an answer can therefore be replayed for the same method and URI; what must not
/// be repeated needs TLS around it, which everything in Homing that leaves a site has.
///
/// Times are whole seconds of any clock that does not jump back, the same for
/// [`challenges`](Self::challenges) and [`check`](Self::check).
#[derive(Clone)]
pub struct DigestGuard {
    realm: String,
    key: Zeroizing<[u8; 32]>,
    lifetime_s: u64,
    rfc2069: Rfc2069Policy,
    basic: BasicPolicy,
}

impl fmt::Debug for DigestGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DigestGuard").field("realm", &self.realm).finish_non_exhaustive()
    }
}

/// Who passed the guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user's name, as the password look-up knows it.
    pub name: String,
}

/// Why a request did not pass. Every variant is answered with 401 and
/// [`challenges`](DigestGuard::challenges); only `Wrong` counts as an attempt to guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No `Authorization`, or one of a scheme that is not accepted here.
    #[error("no credentials given")]
    Missing,
    /// User and password are right, the nonce has expired: the client tries again by itself.
    #[error("the login has expired, try again")]
    Stale,
    /// User name or password is wrong (which of the two is not told), or the answer belongs to
    /// another request.
    #[error("user name or password is wrong")]
    Wrong,
    /// Not readable as credentials.
    #[error("unreadable credentials: {0}")]
    Malformed(&'static str),
}

impl DigestGuard {
    /// A guard for one realm. `key` is random and lives as long as the process: after a restart
    /// clients see `stale` once.
    pub fn new(realm: &str, key: [u8; 32]) -> Self {
        // Quotes and control characters would end the quoted string in the challenge.
        let realm = realm.chars().filter(|c| !c.is_control() && !matches!(c, '"' | '\\')).collect();
        DigestGuard {
            realm,
            key: Zeroizing::new(key),
            lifetime_s: DEFAULT_NONCE_LIFETIME_S,
            rfc2069: Rfc2069Policy::default(),
            basic: BasicPolicy::default(),
        }
    }

    /// Sets what happens with answers without `qop`.
    pub fn rfc2069(mut self, policy: Rfc2069Policy) -> Self {
        self.rfc2069 = policy;
        self
    }

    /// Sets whether Basic is offered and accepted.
    pub fn basic(mut self, policy: BasicPolicy) -> Self {
        self.basic = policy;
        self
    }

    /// Sets how many seconds a nonce may be answered.
    pub fn nonce_lifetime_s(mut self, seconds: u64) -> Self {
        self.lifetime_s = seconds;
        self
    }

    /// The realm, as challenges carry it.
    pub fn realm(&self) -> &str {
        &self.realm
    }

    /// One `WWW-Authenticate` value per scheme, best first; each goes into a header line of its own.
    /// `stale` after [`Refusal::Stale`].
    pub fn challenges(&self, now_s: u64, stale: bool) -> Vec<String> {
        let nonce = self.nonce(now_s);
        let stale = if stale { ", stale=true" } else { "" };
        let mut challenges: Vec<String> = ["SHA-256", "MD5"]
            .into_iter()
            .map(|algorithm| {
                format!(
                    r#"Digest realm="{}", qop="auth", algorithm={algorithm}, nonce="{nonce}"{stale}"#,
                    self.realm
                )
            })
            .collect();
        if self.basic == BasicPolicy::Allow {
            challenges.push(format!(r#"Basic realm="{}", charset="UTF-8""#, self.realm));
        }
        challenges
    }

    /// Checks one request's `Authorization` value.
    ///
    /// `uri` is what stands in the request line. `passwords` looks a user's password up; it is asked
    /// once, and an unknown user takes as long as a wrong password.
    pub fn check(
        &self,
        method: &str,
        uri: &str,
        authorization: Option<&str>,
        passwords: impl Fn(&str) -> Option<Secret>,
        now_s: u64,
    ) -> Result<User, Refusal> {
        let header = authorization.ok_or(Refusal::Missing)?.trim();
        if header.len() > MAX_HEADER_BYTES {
            return Err(Refusal::Malformed("too long"));
        }
        let (scheme, rest) = header.split_once(' ').unwrap_or((header, ""));
        if scheme.eq_ignore_ascii_case("Digest") {
            self.check_digest(method, uri, rest, passwords, now_s)
        } else if scheme.eq_ignore_ascii_case("Basic") && self.basic == BasicPolicy::Allow {
            check_basic(rest, passwords)
        } else {
            Err(Refusal::Missing)
        }
    }

    fn check_digest(
        &self,
        method: &str,
        uri: &str,
        params: &str,
        passwords: impl Fn(&str) -> Option<Secret>,
        now_s: u64,
    ) -> Result<User, Refusal> {
        let answer = Answer::parse(params)?;
        if answer.qop.is_none() && self.rfc2069 == Rfc2069Policy::Refuse {
            return Err(Refusal::Malformed("qop=auth is required"));
        }
        let password = passwords(&answer.username);
        let known = password.is_some();
        let password = password.unwrap_or_default();
        let expected = answer.expected_response(method, &self.realm, password.expose());
        let matches = bool::from(expected.as_bytes().ct_eq(answer.response.as_bytes()));
        if !(matches && known && same_resource(&answer.uri, uri)) {
            return Err(Refusal::Wrong);
        }
        // Only now: whoever cannot compute the response learns nothing about the nonce.
        if self.nonce_is_fresh(&answer.nonce, now_s) {
            Ok(User { name: answer.username })
        } else {
            Err(Refusal::Stale)
        }
    }

    fn nonce(&self, made_s: u64) -> String {
        let mut bytes = [0u8; 24];
        bytes[..8].copy_from_slice(&made_s.to_be_bytes());
        bytes[8..].copy_from_slice(&self.nonce_mac(made_s)[..16]);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn nonce_is_fresh(&self, nonce: &str, now_s: u64) -> bool {
        let Ok(bytes) = URL_SAFE_NO_PAD.decode(nonce) else { return false };
        let Ok(bytes) = <[u8; 24]>::try_from(bytes) else { return false };
        let made_s = u64::from_be_bytes(bytes[..8].try_into().expect("eight bytes"));
        let genuine: bool = self.nonce_mac(made_s)[..16].ct_eq(&bytes[8..]).into();
        genuine && made_s <= now_s && now_s - made_s <= self.lifetime_s
    }

    fn nonce_mac(&self, made_s: u64) -> [u8; 32] {
        Hmac::<Sha256>::new_from_slice(&self.key[..])
            .expect("HMAC takes keys of any length")
            .chain_update(b"homing digest nonce 1")
            .chain_update(made_s.to_be_bytes())
            .chain_update(self.realm.as_bytes())
            .finalize()
            .into_bytes()
            .into()
    }
}

fn check_basic(token: &str, passwords: impl Fn(&str) -> Option<Secret>) -> Result<User, Refusal> {
    let decoded = BASE64.decode(token.trim()).map_err(|_| Refusal::Malformed("not base64"))?;
    let decoded = String::from_utf8(decoded).map_err(|_| Refusal::Malformed("not UTF-8"))?;
    let decoded = Zeroizing::new(decoded);
    let (user, password) = decoded.split_once(':').ok_or(Refusal::Malformed("no colon"))?;
    let expected = passwords(user);
    let known = expected.is_some();
    let matches = expected.unwrap_or_default().matches(password);
    if known && matches { Ok(User { name: user.to_owned() }) } else { Err(Refusal::Wrong) }
}

/// Whether the `uri` parameter of an answer means the resource of the request line: some clients
/// write one absolute and the other as a path, and RTSP clients differ in a trailing slash.
fn same_resource(answered: &str, requested: &str) -> bool {
    fn path(uri: &str) -> &str {
        let path = match uri.split_once("://") {
            Some((_, rest)) => rest.find(['/', '?']).map_or("", |start| &rest[start..]),
            None => uri,
        };
        path.strip_suffix('/').unwrap_or(path)
    }
    answered == requested || path(answered) == path(requested)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Md5,
    Sha256,
}

impl Algorithm {
    fn hex(self, parts: &[&str]) -> String {
        fn digest<D: Digest>(parts: &[&str]) -> Vec<u8> {
            let mut digest = D::new();
            for (index, part) in parts.iter().enumerate() {
                if index > 0 {
                    digest.update(b":");
                }
                digest.update(part.as_bytes());
            }
            digest.finalize().to_vec()
        }
        let bytes = match self {
            Algorithm::Md5 => digest::<Md5>(parts),
            Algorithm::Sha256 => digest::<Sha256>(parts),
        };
        let mut hex = String::with_capacity(bytes.len() * 2);
        for byte in bytes {
            write!(hex, "{byte:02x}").expect("writing to a string");
        }
        hex
    }
}

/// The parameters of an `Authorization: Digest` value.
struct Answer {
    username: String,
    nonce: String,
    uri: String,
    response: String,
    algorithm: Algorithm,
    session: bool,
    cnonce: Option<String>,
    /// `nc` of an answer with `qop=auth`, as written.
    qop: Option<String>,
}

impl Answer {
    fn parse(params: &str) -> Result<Self, Refusal> {
        let mut params = parse_params(params)?;
        let mut take = |key: &str| {
            let index = params.iter().position(|(k, _)| k.eq_ignore_ascii_case(key))?;
            Some(params.swap_remove(index).1)
        };
        if take("userhash").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Err(Refusal::Malformed("userhash was not offered"));
        }
        let username = match (take("username"), take("username*")) {
            (Some(name), None) => name,
            (None, Some(extended)) => decode_extended(&extended)?,
            _ => return Err(Refusal::Malformed("needs one username")),
        };
        let (algorithm, session) =
            match take("algorithm").as_deref().unwrap_or("MD5").to_ascii_uppercase().as_str() {
                "MD5" => (Algorithm::Md5, false),
                "MD5-SESS" => (Algorithm::Md5, true),
                "SHA-256" => (Algorithm::Sha256, false),
                "SHA-256-SESS" => (Algorithm::Sha256, true),
                _ => return Err(Refusal::Malformed("algorithm was not offered")),
            };
        let cnonce = take("cnonce");
        let qop = match take("qop") {
            None => None,
            Some(qop) if qop.eq_ignore_ascii_case("auth") => {
                let nc = take("nc").unwrap_or_default();
                if nc.len() != 8 || !nc.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(Refusal::Malformed("nc is not eight digits"));
                }
                Some(nc)
            }
            Some(_) => return Err(Refusal::Malformed("qop was not offered")),
        };
        if cnonce.is_none() && (session || qop.is_some()) {
            return Err(Refusal::Malformed("no cnonce"));
        }
        Ok(Answer {
            username,
            nonce: take("nonce").ok_or(Refusal::Malformed("no nonce"))?,
            uri: take("uri").ok_or(Refusal::Malformed("no uri"))?,
            response: take("response").ok_or(Refusal::Malformed("no response"))?.to_ascii_lowercase(),
            algorithm,
            session,
            cnonce,
            qop,
        })
    }

    /// RFC 7616 §3.4.1 to 3.4.3, RFC 2069 without `qop`.
    fn expected_response(&self, method: &str, realm: &str, password: &str) -> String {
        let algorithm = self.algorithm;
        let cnonce = self.cnonce.as_deref().unwrap_or_default();
        let mut a1 = algorithm.hex(&[&self.username, realm, password]);
        if self.session {
            a1 = algorithm.hex(&[&a1, &self.nonce, cnonce]);
        }
        let a2 = algorithm.hex(&[method, &self.uri]);
        match &self.qop {
            Some(nc) => algorithm.hex(&[&a1, &self.nonce, nc, cnonce, "auth", &a2]),
            None => algorithm.hex(&[&a1, &self.nonce, &a2]),
        }
    }
}

/// `key=token, key="quoted \" string", …`. Unlike the grammar it takes any character but control
/// characters in a quoted string: user names with umlauts are sent so.
fn parse_params(text: &str) -> Result<Vec<(String, String)>, Refusal> {
    const MAX_PARAMS: usize = 24;
    let mut params: Vec<(String, String)> = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').ok_or(Refusal::Malformed("a parameter without ="))?;
        let key = key.trim();
        let is_token = |c: char| c.is_ascii_graphic() && !r#"(),/:;<=>?@[\]{}""#.contains(c);
        if key.is_empty() || !key.chars().all(is_token) {
            return Err(Refusal::Malformed("a parameter's name"));
        }
        if params.len() == MAX_PARAMS || params.iter().any(|(k, _)| k.eq_ignore_ascii_case(key)) {
            return Err(Refusal::Malformed("too many or repeated parameters"));
        }
        let after = after.trim_start();
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let (token, after) = after.split_at(after.find(',').unwrap_or(after.len()));
                (token.trim_end().to_owned(), after)
            }
        };
        params.push((key.to_owned(), value));
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(next) => next.trim_start(),
            None if after.is_empty() => after,
            None => return Err(Refusal::Malformed("no comma between parameters")),
        };
    }
    Ok(params)
}

/// The content of a quoted string whose opening quote is gone, and what follows it.
fn unquote(text: &str) -> Result<(String, &str), Refusal> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Ok((value, &text[index + 1..])),
            '\\' => match characters.next() {
                Some((_, escaped)) if !escaped.is_control() => value.push(escaped),
                _ => break,
            },
            control if control.is_control() => break,
            plain => value.push(plain),
        }
    }
    Err(Refusal::Malformed("an unfinished quoted string"))
}

/// `UTF-8''%C3%BC…`, RFC 5987 §3.2.
fn decode_extended(value: &str) -> Result<String, Refusal> {
    const MALFORMED: Refusal = Refusal::Malformed("an extended user name");
    let mut parts = value.splitn(3, '\'');
    let charset = parts.next().ok_or(MALFORMED)?;
    let encoded = parts.nth(1).ok_or(MALFORMED)?;
    if !charset.eq_ignore_ascii_case("UTF-8") {
        return Err(MALFORMED);
    }
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut input = encoded.bytes();
    while let Some(byte) = input.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || input.next().and_then(|b| (b as char).to_digit(16));
        let (high, low) = (digit().ok_or(MALFORMED)?, digit().ok_or(MALFORMED)?);
        bytes.push((high << 4 | low) as u8);
    }
    String::from_utf8(bytes).map_err(|_| MALFORMED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW_S: u64 = 1_000_000;

    fn guard() -> DigestGuard {
        DigestGuard::new("homing", [7; 32])
    }

    fn root(user: &str) -> Option<Secret> {
        (user == "root").then(|| "sesame".into())
    }

    fn answer(challenges: &[String], method: &str, uri: &str, credentials: &Credentials) -> String {
        let mut client = ClientAuth::new(BasicPolicy::Allow);
        client.handle_challenge(challenges.iter().map(String::as_str)).unwrap();
        client.authorize(method, uri, credentials).unwrap().unwrap()
    }

    /// The vectors of RFC 7616 §3.9.1 and RFC 2617 §3.5 are right in user, password and response; their
    /// nonce is not ours, so that the guard says `Stale`, and with any other password `Wrong`.
    #[test]
    fn the_examples_of_the_standards() {
        let rfc7616 = |algorithm: &str, response: &str| {
            format!(
                r#"Digest username="Mufasa", realm="http-auth@example.org", uri="/dir/index.html",
                algorithm={algorithm}, nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", nc=00000001,
                cnonce="f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ", qop=auth, response="{response}",
                opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS""#
            )
        };
        let rfc2617 = r#"Digest username="Mufasa", realm="testrealm@host.com",
            nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093", uri="/dir/index.html", qop=auth, nc=00000001,
            cnonce="0a4f113b", response="6629fae49393a05397450978507c4ef1""#;
        let sha256 = "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1";
        for (realm, password, header) in [
            ("http-auth@example.org", "Circle of Life", rfc7616("MD5", "8ca523f5e9506fed4657c9700eebdbec")),
            ("http-auth@example.org", "Circle of Life", rfc7616("SHA-256", sha256)),
            ("testrealm@host.com", "Circle Of Life", rfc2617.to_owned()),
        ] {
            let guard = DigestGuard::new(realm, [0; 32]);
            let check = |method: &str, password: &'static str| {
                guard.check(method, "/dir/index.html", Some(&header), |_| Some(password.into()), NOW_S)
            };
            assert_eq!(check("GET", password), Err(Refusal::Stale), "{header}");
            assert_eq!(check("GET", "Circle of life"), Err(Refusal::Wrong), "{header}");
            assert_eq!(check("POST", password), Err(Refusal::Wrong), "{header}");
        }
    }

    #[test]
    fn a_client_with_the_right_password_passes_and_nobody_else() {
        let guard = guard();
        let challenges = guard.challenges(NOW_S, false);
        assert_eq!(challenges.len(), 2);
        let check = |method, uri, header: &str, now_s| guard.check(method, uri, Some(header), root, now_s);

        let good = answer(&challenges, "POST", "/onvif", &Credentials::new("root", "sesame"));
        assert!(good.contains("algorithm=SHA-256"), "the best scheme is chosen: {good}");
        assert_eq!(check("POST", "/onvif", &good, NOW_S), Ok(User { name: "root".into() }));
        assert_eq!(check("POST", "http://00408c702009/onvif", &good, NOW_S + 300).unwrap().name, "root");
        assert_eq!(check("POST", "/onvif", &good, NOW_S + 301), Err(Refusal::Stale));
        assert_eq!(check("POST", "/onvif", &good, NOW_S - 1), Err(Refusal::Stale), "a nonce of tomorrow");
        assert_eq!(check("GET", "/onvif", &good, NOW_S), Err(Refusal::Wrong));
        assert_eq!(check("POST", "/other", &good, NOW_S), Err(Refusal::Wrong));

        let md5 = answer(&challenges[1..], "POST", "/onvif", &Credentials::new("root", "sesame"));
        assert!(md5.contains("algorithm=MD5"));
        assert!(check("POST", "/onvif", &md5, NOW_S).is_ok());
        for (user, password) in [("root", "Sesame"), ("admin", "sesame"), ("admin", ""), ("", "")] {
            let bad = answer(&challenges, "POST", "/onvif", &Credentials::new(user, password));
            assert_eq!(check("POST", "/onvif", &bad, NOW_S), Err(Refusal::Wrong), "{user} {password}");
        }
        assert_eq!(guard.check("GET", "/", None, root, NOW_S), Err(Refusal::Missing));
        assert_eq!(check("GET", "/", "Bearer abc", NOW_S), Err(Refusal::Missing));
    }

    #[test]
    fn basic_and_rfc_2069_only_where_the_policy_says_so() {
        let basic = "Basic cm9vdDpzZXNhbWU="; // root:sesame
        let strict = guard();
        assert_eq!(strict.check("GET", "/", Some(basic), root, NOW_S), Err(Refusal::Missing));
        let open = guard().basic(BasicPolicy::Allow).rfc2069(Rfc2069Policy::Accept);
        assert_eq!(open.check("GET", "/", Some(basic), root, NOW_S).unwrap().name, "root");
        let wrong = "Basic cm9vdDpzZXNhbQ==";
        assert_eq!(open.check("GET", "/", Some(wrong), root, NOW_S), Err(Refusal::Wrong));
        assert_eq!(open.challenges(NOW_S, false).len(), 3);

        // An RTSP client that ignores qop, as many do.
        let nonce = strict.nonce(NOW_S);
        let challenge = format!(r#"Digest realm="homing", nonce="{nonce}""#);
        let old = answer(&[challenge], "DESCRIBE", "rtsp://cam/1/", &Credentials::new("root", "sesame"));
        assert!(!old.contains("qop"));
        let check = |guard: &DigestGuard| guard.check("DESCRIBE", "rtsp://cam/1", Some(&old), root, NOW_S);
        assert!(matches!(check(&strict), Err(Refusal::Malformed(_))));
        assert!(check(&open).is_ok());
    }

    #[test]
    fn user_names_beyond_ascii_in_both_spellings() {
        let guard = guard().rfc2069(Rfc2069Policy::Accept);
        let passwords = |user: &str| (user == "jürgen \"j\"").then(|| Secret::from("sesame"));
        let nonce = guard.nonce(NOW_S);
        let answer = Answer {
            username: "jürgen \"j\"".into(),
            nonce: nonce.clone(),
            uri: "/".into(),
            response: String::new(),
            algorithm: Algorithm::Md5,
            session: false,
            cnonce: None,
            qop: None,
        };
        let response = answer.expected_response("GET", "homing", "sesame");
        for username in [r#"username="jürgen \"j\"""#, "username*=utf-8''j%C3%BCrgen%20%22j%22"] {
            let header = format!(r#"Digest {username}, nonce="{nonce}", uri="/", response="{response}""#);
            assert!(guard.check("GET", "/", Some(&header), passwords, NOW_S).is_ok(), "{header}");
        }
    }

    #[test]
    fn the_client_tells_an_expired_nonce_from_a_wrong_password() {
        let credentials = Credentials::new("root", "sesame");
        let first = r#"Digest realm="cam", nonce="1""#;
        let second = r#"Digest realm="cam", nonce="2""#;
        let stale = r#"Digest realm="cam", nonce="3", stale=true"#;

        let mut client = ClientAuth::new(BasicPolicy::Refuse);
        assert_eq!(client.authorize("GET", "/", &credentials), Ok(None));
        client.handle_challenge([first]).unwrap();
        client.authorize("GET", "/", &credentials).unwrap().unwrap();
        client.handle_challenge([stale]).expect("stale: try again");
        client.authorize("GET", "/", &credentials).unwrap().unwrap();
        assert_eq!(client.handle_challenge([second]), Err(ClientError::WrongCredentials));

        let mut client = ClientAuth::new(BasicPolicy::Refuse);
        client.handle_challenge([first]).unwrap();
        client.authorize("GET", "/", &credentials).unwrap().unwrap();
        client.handle_accepted();
        client.handle_challenge([second]).expect("a nonce that worked has expired unsaid");
        client.authorize("GET", "/", &credentials).unwrap().unwrap();
        assert_eq!(client.handle_challenge([first]), Err(ClientError::WrongCredentials));

        let mut client = ClientAuth::new(BasicPolicy::Refuse);
        client.handle_challenge([first]).unwrap();
        client.authorize("GET", "/", &credentials).unwrap().unwrap();
        client.handle_challenge([stale]).expect("once");
        assert_eq!(client.handle_challenge([stale]), Err(ClientError::WrongCredentials), "not for ever");
    }

    #[test]
    fn the_client_takes_the_best_scheme_that_its_policy_allows() {
        let basic = r#"Basic realm="cam""#;
        let md5 = r#"Digest realm="cam", nonce="1", qop="auth", algorithm=md5"#;
        let sha = r#"Digest realm="cam", nonce="2", qop="auth", algorithm="SHA-256""#;
        let credentials = Credentials::new("root", "sesame");
        for (values, policy, begins, contains) in [
            (vec![basic, md5, sha], BasicPolicy::Allow, "Digest", "SHA-256"),
            (vec![basic, md5], BasicPolicy::Allow, "Digest", "algorithm=MD5"),
            (vec![basic], BasicPolicy::Allow, "Basic", "cm9vdDpzZXNhbWU="),
            (vec!["Negotiate, Digest realm=\"cam\", nonce=\"1\""], BasicPolicy::Refuse, "Digest", "cam"),
        ] {
            let mut client = ClientAuth::new(policy);
            client.handle_challenge(values.iter().copied()).unwrap();
            let header = client.authorize("GET", "/", &credentials).unwrap().unwrap();
            assert!(header.starts_with(begins) && header.contains(contains), "{header}");
        }
        let refused = |values: &[&str]| {
            ClientAuth::new(BasicPolicy::Refuse).handle_challenge(values.iter().copied()).unwrap_err()
        };
        assert_eq!(refused(&[basic]), ClientError::OnlyBasic);
        assert_eq!(refused(&["Bearer"]), ClientError::NoScheme { offered: "Bearer".into() });
        assert_eq!(refused(&[]), ClientError::NoScheme { offered: "nothing".into() });
    }

    #[test]
    fn secrets_do_not_show() {
        let guard = DigestGuard::new("a\"b\\c\r\n", [0xAB; 32]);
        assert_eq!(guard.realm(), "abc");
        assert!(!format!("{guard:?}").contains("171"));
    }

    proptest! {
        #[test]
        fn hostile_headers_are_refused_in_peace(header in "(Digest |Basic )?[ -~üß\\t\"\\\\,=]{0,300}") {
            let guard = guard().basic(BasicPolicy::Allow).rfc2069(Rfc2069Policy::Accept);
            prop_assert!(guard.check("GET", "/", Some(&header), root, NOW_S).is_err());
            let _ = ClientAuth::new(BasicPolicy::Allow).handle_challenge([header.as_str()]);
        }

        #[test]
        fn a_good_header_that_is_cut_or_altered_never_passes(at in 0usize..400, with in any::<char>()) {
            let guard = guard();
            let credentials = Credentials::new("root", "sesame");
            let good = answer(&guard.challenges(NOW_S, false), "GET", "/a", &credentials);
            let boundaries: Vec<usize> = good.char_indices().map(|(index, _)| index).collect();
            let at = boundaries[at % boundaries.len()];
            prop_assert!(guard.check("GET", "/a", Some(&good[..at]), root, NOW_S).is_err());
            let mut altered = good.clone();
            altered.replace_range(at..=at, &with.to_string());
            // Spacing, the letter case of names and the realm (which is not ours to be told) may change.
            if let Ok(user) = guard.check("GET", "/a", Some(&altered), root, NOW_S) {
                prop_assert_eq!(user.name, "root");
            }
        }

        #[test]
        fn every_user_and_password_passes(user in "[^\\x00-\\x1f\\x7f-\\x9f]{1,20}", password in ".{0,20}") {
            let guard = guard();
            let credentials = Credentials::new(user.clone(), password.clone());
            let header = answer(&guard.challenges(NOW_S, false), "GET", "/a", &credentials);
            let known = |name: &str| (name == user).then(|| Secret::from(password.as_str()));
            prop_assert_eq!(guard.check("GET", "/a", Some(&header), known, NOW_S).unwrap().name, user.clone());
        }
    }
}
