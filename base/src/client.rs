//! JSON calls from one role to another, over HTTP or HTTPS.

use crate::tls::{Seen, seeing_client_config};
use anyhow::Context;
use bytes::Bytes;
use homing_protocol::{
    Secret,
    api::{Expiry, Problem},
    secret::Credentials,
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{self, HeaderValue},
};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{sync::Arc, time::Duration};

/// Connections to a peer that are kept for the next call.
const KEPT: usize = 4;

/// The longest JSON answer that is read.
const ANSWER_LIMIT_BYTES: usize = 16 * 1024 * 1024;

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// For an ordinary call, from the first byte sent to the last received.
const CALL_DEADLINE: Duration = Duration::from_secs(15);

/// How a caller says who it is.
#[derive(Clone, Debug)]
pub enum Auth {
    /// RFC 7617.
    Basic(Credentials),
    /// RFC 6750.
    Bearer(Secret),
    /// Not at all.
    Nobody,
}

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer at all; worth another try later.
    #[error(
        "{peer} cannot be reached: {cause}; check its address, the firewall between, and whether it runs"
    )]
    Unreachable {
        /// The peer's role and address.
        peer: String,
        /// What the network said.
        cause: String,
    },
    /// The peer refused, and said why.
    #[error("{peer}: {}", problem.error.message)]
    Refused {
        /// The peer's role and address.
        peer: String,
        /// Its answer's status.
        status: StatusCode,
        /// Its answer.
        problem: Box<Problem>,
    },
    /// An answer that is not of this API.
    #[error(
        "{peer} gave an answer that is not of this API ({cause}); check that the address is the right one"
    )]
    Unexpected {
        /// The peer's role and address.
        peer: String,
        /// What was wrong with it.
        cause: String,
    },
}

/// A client of one peer; keeps connections and is cheap to clone.
#[derive(Clone)]
pub struct ApiClient {
    peer: String,
    base: String,
    authorization: Option<HeaderValue>,
    seen: Arc<Seen>,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl ApiClient {
    /// `role` names the peer in errors ("dispatcher"), `base` is its URL without a trailing slash.
    /// `trust` is the PEM of the only trust anchor for HTTPS; none means the public web's.
    ///
    /// # Errors
    /// When the URL or the trust anchor cannot be read.
    pub fn new(role: &str, base: &str, auth: &Auth, trust: Option<&str>) -> anyhow::Result<ApiClient> {
        let base = base.trim_end_matches('/').to_owned();
        let uri: Uri = base.parse().with_context(|| format!("address of the {role}: {base}"))?;
        anyhow::ensure!(
            uri.scheme().is_some() && uri.authority().is_some(),
            "address of the {role}: {base} has no scheme or host; write it as https://host:port"
        );
        let authorization = match auth {
            Auth::Basic(credentials) => Some(basic(credentials)),
            Auth::Bearer(token) => Some(format!("Bearer {}", token.expose())),
            Auth::Nobody => None,
        };
        let authorization = authorization
            .map(|text| {
                let mut value = HeaderValue::from_str(&text)?;
                value.set_sensitive(true);
                Ok::<_, header::InvalidHeaderValue>(value)
            })
            .transpose()
            .with_context(|| format!("credentials for the {role} hold characters that a header cannot"))?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(CONNECT_DEADLINE));
        connector.set_nodelay(true);
        let (tls, seen) =
            seeing_client_config(trust).with_context(|| format!("trust anchor of the {role}"))?;
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        Ok(ApiClient {
            peer: format!("{role} at {base}"),
            base,
            authorization,
            seen,
            client: Client::builder(TokioExecutor::new()).pool_max_idle_per_host(KEPT).build(connector),
        })
    }

    /// The peer's role and address, for messages.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// When the certificate ends that the peer showed last, where it speaks HTTPS and was reached.
    pub fn certificate(&self, what: &str) -> Option<Expiry> {
        self.seen.expiry(what)
    }

    /// `GET`, answered in JSON.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, CallError> {
        self.call::<(), A>(Method::GET, path, None, CALL_DEADLINE).await
    }

    /// Any method with a JSON body; an empty answer is read as JSON `null`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn send<Q: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &Q,
    ) -> Result<A, CallError> {
        self.call(method, path, Some(body), CALL_DEADLINE).await
    }

    /// As [`ApiClient::get`] for an answer that the peer holds back for up to `wait` (long poll).
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn wait<A: DeserializeOwned>(&self, path: &str, wait: Duration) -> Result<A, CallError> {
        self.call::<(), A>(Method::GET, path, None, wait + CALL_DEADLINE).await
    }

    /// `GET` of an endless answer (server-sent events): the caller reads the body.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn stream(&self, path: &str) -> Result<Response<Incoming>, CallError> {
        let answered = tokio::time::timeout(CALL_DEADLINE, self.answer::<()>(Method::GET, path, None));
        let response = answered.await.map_err(|_| self.unreachable("no answer in time"))??;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refused(response).await)
    }

    /// A request without a body, of whose answer only status and headers count; a redirect is an answer and not followed.
    /// `path` may be a query alone, for a base with a path.
    ///
    /// # Errors
    /// [`CallError::Unreachable`].
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        deadline: Duration,
    ) -> Result<(StatusCode, HeaderMap), CallError> {
        let mut request = self.request::<()>(method, path, None)?;
        request.headers_mut().extend(headers);
        let answered = tokio::time::timeout(deadline, self.client.request(request)).await;
        let response = answered
            .map_err(|_| self.unreachable("no answer in time"))?
            .map_err(|error| self.unreachable(&chain(&error)))?;
        let (head, body) = response.into_parts();
        // Read to its end, so that the connection can be used again.
        let _ = tokio::time::timeout(deadline, Limited::new(body, ANSWER_LIMIT_BYTES).collect()).await;
        Ok((head.status, head.headers))
    }

    async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Q>,
        deadline: Duration,
    ) -> Result<A, CallError> {
        let exchange = async {
            let response = self.answer(method, path, body).await?;
            if !response.status().is_success() {
                return Err(self.refused(response).await);
            }
            self.body(response).await
        };
        let body = tokio::time::timeout(deadline, exchange)
            .await
            .map_err(|_| self.unreachable(&format!("no answer within {} s", deadline.as_secs())))??;
        let json: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(json).map_err(|error| self.unexpected(&error.to_string()))
    }

    /// The head of the answer. A kept connection that breaks under the request most likely belongs to a peer that has
    /// restarted meanwhile: what may be repeated is asked once more (RFC 9110 §9.2.2).
    async fn answer<Q: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Q>,
    ) -> Result<Response<Incoming>, CallError> {
        let ask = async || {
            let request = self.request(method.clone(), path, body)?;
            Ok(self.client.request(request).await)
        };
        let mut answered = ask().await?;
        for _ in 0..KEPT {
            // A peer that has restarted has broken every connection that was kept, not one alone.
            if !(method.is_idempotent() && answered.as_ref().is_err_and(|error| !error.is_connect())) {
                break;
            }
            answered = ask().await?;
        }
        answered.map_err(|error| self.unreachable(&chain(&error)))
    }

    fn request<Q: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Q>,
    ) -> Result<Request<Full<Bytes>>, CallError> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization.clone());
        }
        let mut bytes = Bytes::new();
        if let Some(body) = body {
            request = request.header(header::CONTENT_TYPE, "application/json");
            bytes = serde_json::to_vec(body).map_err(|error| self.unexpected(&error.to_string()))?.into();
        }
        request.body(Full::new(bytes)).map_err(|error| self.unexpected(&error.to_string()))
    }

    async fn body(&self, response: Response<Incoming>) -> Result<Bytes, CallError> {
        let limited = Limited::new(response.into_body(), ANSWER_LIMIT_BYTES);
        let body = limited.collect().await.map_err(|error| self.unreachable(&error.to_string()))?;
        Ok(body.to_bytes())
    }

    async fn refused(&self, response: Response<Incoming>) -> CallError {
        let status = response.status();
        let Ok(body) = self.body(response).await else {
            return self.unexpected(&format!("status {status}"));
        };
        let problem = serde_json::from_slice(&body).unwrap_or_else(|_| {
            let text = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
            Problem::new("unexpected", format!("status {status}: {text}"))
        });
        CallError::Refused { peer: self.peer.clone(), status, problem: Box::new(problem) }
    }

    fn unreachable(&self, cause: &str) -> CallError {
        CallError::Unreachable { peer: self.peer.clone(), cause: cause.to_owned() }
    }

    fn unexpected(&self, cause: &str) -> CallError {
        CallError::Unexpected { peer: self.peer.clone(), cause: cause.to_owned() }
    }
}

/// The value of an `Authorization` (or `Proxy-Authorization`) header for Basic authentication.
pub fn basic(credentials: &Credentials) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let pair = format!("{}:{}", credentials.user, credentials.password.expose());
    format!("Basic {}", STANDARD.encode(pair))
}

/// Reads the value of a Basic `Authorization` header; `None` if it is none.
pub fn parse_basic(value: &str) -> Option<Credentials> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") || encoded.len() > 2048 {
        return None;
    }
    let pair = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (user, password) = pair.split_once(':')?;
    Some(Credentials::new(user, password))
}

/// An error and its causes in one line: hyper hides what matters in the last.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Goal: a peer that has restarted since the last call is no failure of this one; what may not be repeated is.
    #[tokio::test]
    async fn a_kept_connection_that_broke_is_no_failure_of_what_may_be_repeated() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        // Each connection answers once, and breaks under the second request; the first three do so together.
        let together = Arc::new(tokio::sync::Barrier::new(3));
        let connection = |mut tcp: tokio::net::TcpStream, together: Option<Arc<tokio::sync::Barrier>>| async move {
            let mut head = [0; 1024];
            assert!(tcp.read(&mut head).await.unwrap() > 0);
            if let Some(together) = together {
                together.wait().await;
            }
            tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n42").await.unwrap();
            let _ = tcp.read(&mut head).await;
        };
        let peer = async {
            let mut open = tokio::task::JoinSet::new();
            for count in 0.. {
                let (tcp, _) = listener.accept().await.unwrap();
                open.spawn(connection(tcp, (count < 3).then(|| together.clone())));
            }
        };
        let client = ApiClient::new("peer", &url, &Auth::Nobody, None).unwrap();
        let calls = async {
            let three = tokio::join!(client.get::<u8>("/"), client.get::<u8>("/"), client.get::<u8>("/"));
            assert_eq!((three.0.unwrap(), three.1.unwrap(), three.2.unwrap()), (42, 42, 42));
            assert_eq!(client.send::<_, u8>(Method::PUT, "/", &1).await.unwrap(), 42);
            let posted = client.send::<_, u8>(Method::POST, "/", &1).await.unwrap_err();
            assert!(matches!(posted, CallError::Unreachable { .. }), "{posted}");
        };
        tokio::select! {
            () = calls => (),
            () = peer => (),
        }
    }
}
