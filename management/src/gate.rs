//! Who is let in: one layer around everything that is served. Default deny.
//!
//! Invariant: only what `is_public` names is answered without an [`Identity`]; a request that a
//! browser was made to send by another site changes nothing. Every answer carries the security headers.
//!
//! | a request has | it is |
//! |---|---|
//! | `Authorization: Bearer` | a script's: the token decides, no cookie is looked at |
//! | the session cookie | a browser's: the session decides, and what is not plain reading must come from our own page |
//! | neither | answered 401, or sent to the sign-in page if a person asked for a page |

use crate::{
    App,
    accounts::{Credential, Identity},
};
use axum::{
    extract::{ConnectInfo, FromRequestParts, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Redirect, Response},
};
use homing_base::{Leave, http::Failure};
use homing_protocol::{Secret, api::Problem};
use std::{net::SocketAddr, time::Duration};

/// For clients that have a session but send neither `Sec-Fetch-Site` nor `Origin`: a header that no
/// other site can make a browser send without asking us first, and we never allow it.
pub const OWN_REQUEST_HEADER: &str = "x-homing-request";

/// How often the leave to stay is looked at: sessions end by themselves, too, and by other programs' hands.
const RECHECK: Duration = Duration::from_secs(5);

/// Scripts, styles, pictures and connections from ourselves alone, nothing inline, in no frame.
/// Video comes from memory (`blob:`), snapshots are drawn in memory (`data:` is not needed for that).
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self' blob:; media-src 'self' blob:; connect-src 'self'; manifest-src 'self'; form-action 'self'; \
    base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

const SECURITY_HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()"),
];

/// The cookie that carries a session's secret.
#[derive(Debug)]
pub struct SessionCookie {
    name: String,
    secure: bool,
}

impl SessionCookie {
    /// Browsers keep cookies by host, not by port: two servers on one machine must not take each other's.
    /// Over HTTPS the prefix makes the browser refuse the cookie from anybody but this host.
    pub fn new(secure: bool, address: SocketAddr) -> Self {
        let prefix = if secure { "__Host-" } else { "" };
        SessionCookie { name: format!("{prefix}homing_session_{}", address.port()), secure }
    }

    /// The secret that a request carries.
    pub fn read<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        cookie(headers, &self.name)
    }

    /// `Set-Cookie` for a new session.
    pub fn set(&self, secret: &Secret) -> HeaderValue {
        self.header(secret.expose(), "")
    }

    /// `Set-Cookie` that makes the browser forget it.
    pub fn clear(&self) -> HeaderValue {
        self.header("", "; Max-Age=0")
    }

    fn header(&self, value: &str, more: &str) -> HeaderValue {
        let secure = if self.secure { "; Secure" } else { "" };
        let cookie = format!("{}={value}; Path=/; HttpOnly; SameSite=Strict{secure}{more}", self.name);
        let mut value = HeaderValue::from_str(&cookie).expect("name and value are URL-safe characters");
        value.set_sensitive(true);
        value
    }
}

/// Who sends a request, for handlers. Having one means that the gate let it pass.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The user.
    pub identity: Identity,
    /// The address that the connection comes from.
    pub peer: String,
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        parts.extensions.get::<Caller>().cloned().ok_or_else(unauthorised)
    }
}

/// The layer.
pub async fn gate(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let asked_for_page = request.method() == Method::GET && wants_page(request.headers());
    let api = request.uri().path().starts_with("/api/");
    let admitted = if is_public(request.method(), request.uri().path()) {
        Ok(())
    } else {
        admit(&app, &mut request).await
    };
    let mut response = match admitted {
        Ok(()) => next.run(request).await,
        Err(refused) if refused.status == StatusCode::UNAUTHORIZED && asked_for_page && !api => {
            Redirect::to("/sign-in").into_response()
        }
        Err(refused) => {
            let unauthorised = refused.status == StatusCode::UNAUTHORIZED;
            let mut response = refused.into_response();
            if unauthorised {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            response
        }
    };
    let headers = response.headers_mut();
    for (name, value) in SECURITY_HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // What depends on who asks is not kept by anybody, unless its handler knows better.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// The sign-in page, what it is made of, signing in, and whether the server is well.
fn is_public(method: &Method, path: &str) -> bool {
    match *method {
        Method::GET | Method::HEAD => {
            matches!(path, "/sign-in" | "/healthz" | "/favicon.ico") || path.starts_with("/static/")
        }
        Method::POST => path == "/api/v1/session",
        _ => false,
    }
}

async fn admit(app: &App, request: &mut Request) -> Result<(), Failure> {
    let identity = identify(app, request.headers()).await?.ok_or_else(unauthorised)?;
    let plain_reading = matches!(*request.method(), Method::GET | Method::HEAD)
        && !request.headers().contains_key(header::UPGRADE);
    if matches!(identity.by, Credential::Session(_)) && !plain_reading && !from_own_page(request.headers()) {
        app.metrics.cross_site.inc();
        return Err(cross_site());
    }
    let peer = peer_of(request.extensions().get::<ConnectInfo<SocketAddr>>());
    request.extensions_mut().insert(Caller { identity, peer });
    Ok(())
}

/// The address as it is written down: without the port, which means nothing later.
pub fn peer_of(peer: Option<&ConnectInfo<SocketAddr>>) -> String {
    peer.map_or_else(|| "unknown".to_owned(), |ConnectInfo(peer)| peer.ip().to_canonical().to_string())
}

/// How long whoever sends these headers may stay, for answers that go on for long. An open page counts as use.
pub fn leave(app: &App, headers: &HeaderMap) -> Leave {
    let app_of_watcher = app.clone();
    let shown: HeaderMap = [header::AUTHORIZATION, header::COOKIE]
        .into_iter()
        .flat_map(|name| headers.get_all(&name).iter().map(move |value| (name.clone(), value.clone())))
        .collect();
    Leave::until(&app.stop, async move {
        let mut withdrawals = app_of_watcher.accounts.withdrawals();
        // A database that does not answer ends it as well: deny by default.
        while let Ok(Some(_)) = identify(&app_of_watcher, &shown).await {
            tokio::select! {
                _ = withdrawals.changed() => (),
                () = tokio::time::sleep(RECHECK) => (),
            }
        }
    })
}

async fn identify(app: &App, headers: &HeaderMap) -> Result<Option<Identity>, Failure> {
    let internal = |error: crate::accounts::AccountError| Failure::from(anyhow::Error::new(error));
    if let Some(authorization) = headers.get(header::AUTHORIZATION) {
        let token = authorization.to_str().ok().and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| Secret::new(token.trim()))
        });
        let Some(token) = token else { return Ok(None) };
        return app.accounts.token(token.expose()).await.map_err(internal);
    }
    let Some(secret) = app.cookie.read(headers) else { return Ok(None) };
    app.accounts.session(secret).await.map_err(internal)
}

/// The value of a cookie; RFC 6265 §5.4.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .find_map(|pair| pair.trim().split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value))
}

/// Whether a browser sent this on behalf of our own page, or whatever sent it is no browser.
fn from_own_page(headers: &HeaderMap) -> bool {
    says_own_page(headers).unwrap_or_else(|| headers.contains_key(OWN_REQUEST_HEADER))
}

/// Whether a browser says that another site sent this. Signing in asks only this much: a script that
/// signs in sends no such header.
pub fn from_another_site(headers: &HeaderMap) -> bool {
    says_own_page(headers) == Some(false)
}

/// What the browser says about where a request comes from; `None` if it says nothing.
fn says_own_page(headers: &HeaderMap) -> Option<bool> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    // Sent by every present browser over HTTPS and on loopback, and no script can set it.
    if let Some(site) = text("sec-fetch-site") {
        return Some(site == "same-origin");
    }
    let origin = text("origin")?;
    let authority = origin.split_once("://").map(|(_, authority)| authority);
    Some(authority.is_some() && authority == text("host"))
}

fn wants_page(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/html"))
}

fn unauthorised() -> Failure {
    let message = "Sign in first, or send an API token as \"Authorization: Bearer …\".";
    Failure::new(StatusCode::UNAUTHORIZED, Problem::new("unauthorised", message))
}

/// The answer to a request that another site made a browser send.
pub fn cross_site() -> Failure {
    let message = "This request did not come from Homing's own page.";
    Failure::new(StatusCode::FORBIDDEN, Problem::new("cross-site", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn only_our_own_page_may_use_a_browsers_session() {
        for (pairs, own) in [
            (&[("sec-fetch-site", "same-origin")][..], true),
            (&[("sec-fetch-site", "same-site"), ("x-homing-request", "1")], false),
            (&[("sec-fetch-site", "cross-site"), ("origin", "http://a:1"), ("host", "a:1")], false),
            (&[("origin", "http://a:1"), ("host", "a:1")], true),
            (&[("origin", "http://a:2"), ("host", "a:1"), ("x-homing-request", "1")], false),
            (&[("origin", "null"), ("host", "null")], false),
            (&[("host", "a:1")], false),
            (&[("host", "a:1"), ("x-homing-request", "1")], true),
        ] {
            assert_eq!(from_own_page(&headers(pairs)), own, "{pairs:?}");
        }
        assert!(!from_another_site(&headers(&[("host", "a:1")])));
        assert!(from_another_site(&headers(&[("origin", "http://b"), ("host", "a:1")])));
    }

    #[test]
    fn a_cookie_is_found_among_others_by_its_whole_name() {
        let headers = headers(&[("cookie", "a=1; homing=x=y; homing2=z")]);
        assert_eq!(cookie(&headers, "homing"), Some("x=y"));
        assert_eq!(cookie(&headers, "oming"), None);
    }

    #[test]
    fn over_https_a_session_is_bound_to_this_host_and_to_https() {
        let address = SocketAddr::from(([127, 0, 0, 1], 8443));
        let secret = Secret::new("s3cret");
        let plain = SessionCookie::new(false, address).set(&secret);
        assert_eq!(plain, "homing_session_8443=s3cret; Path=/; HttpOnly; SameSite=Strict");
        let secure = SessionCookie::new(true, address);
        let set = secure.set(&secret);
        assert_eq!(set, "__Host-homing_session_8443=s3cret; Path=/; HttpOnly; SameSite=Strict; Secure");
        assert!(!format!("{set:?}").contains("s3cret"));
        assert!(secure.clear().to_str().unwrap().ends_with("; Secure; Max-Age=0"));
        assert_eq!(secure.read(&headers(&[("cookie", "__Host-homing_session_8443=x")])), Some("x"));
    }

    #[test]
    fn nothing_but_signing_in_is_public() {
        for (method, path, public) in [
            (Method::GET, "/sign-in", true),
            (Method::HEAD, "/healthz", true),
            (Method::POST, "/api/v1/session", true),
            (Method::GET, "/static/1/js/main.js", true),
            (Method::GET, "/", false),
            (Method::GET, "/metrics", false),
            (Method::GET, "/api/openapi.json", false),
            (Method::GET, "/api/v1/session", false),
            (Method::DELETE, "/api/v1/session", false),
            (Method::POST, "/static/x", false),
            (Method::GET, "/nothing", false),
        ] {
            assert_eq!(is_public(&method, path), public, "{method} {path}");
        }
    }
}
