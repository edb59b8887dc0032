//! The server's half: challenges that need no memory, and answers compared in constant time.

use super::{BasicPolicy, MAX_HEADER_BYTES, Rfc2069Policy};
use crate::secret::Secret;
use base64::{
    Engine,
    engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD},
};
use hmac::{Hmac, Mac};
use md5::Md5;
use sha2::{Digest, Sha256};
use std::{fmt, fmt::Write};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// How long a nonce may be answered, unless [`DigestGuard::nonce_lifetime_s`] says otherwise.
const DEFAULT_NONCE_LIFETIME_S: u64 = 5 * 60;

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
        if self.rfc2069 == Rfc2069Policy::Accept {
            // As live555 reads it: these parameters, in this order, in the last header line.
            challenges.push(format!(r#"Digest realm="{}", nonce="{nonce}"{stale}"#, self.realm));
        }
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
        if !(matches && known && self.is_for(&answer.uri, uri)) {
            return Err(Refusal::Wrong);
        }
        // Only now: whoever cannot compute the response learns nothing about the nonce.
        if self.nonce_is_fresh(&answer.nonce, now_s) {
            Ok(User { name: answer.username })
        } else {
            Err(Refusal::Stale)
        }
    }

    /// Whether an answer's `uri` is good for what stands in the request line. live555 answers for the presentation
    /// whatever it asks for, also for one of its tracks.
    fn is_for(&self, answered: &str, requested: &str) -> bool {
        let above = |requested: &str| {
            let (path, query) = requested.split_at(requested.find('?').unwrap_or(requested.len()));
            path.trim_end_matches('/').rsplit_once('/').map(|(above, _track)| format!("{above}{query}"))
        };
        same_resource(answered, requested)
            || self.rfc2069 == Rfc2069Policy::Accept
                && above(requested).is_some_and(|above| same_resource(answered, &above))
    }

    pub(super) fn nonce(&self, made_s: u64) -> String {
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
pub(super) enum Algorithm {
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
pub(super) struct Answer {
    pub(super) username: String,
    pub(super) nonce: String,
    pub(super) uri: String,
    pub(super) response: String,
    pub(super) algorithm: Algorithm,
    pub(super) session: bool,
    pub(super) cnonce: Option<String>,
    /// `nc` of an answer with `qop=auth`, as written.
    pub(super) qop: Option<String>,
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
    pub(super) fn expected_response(&self, method: &str, realm: &str, password: &str) -> String {
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
