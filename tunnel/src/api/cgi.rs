//! The CGI names that existing integrations of this kind of server call, beside the JSON API, which can do more.
//!
//! | request | does |
//! |---|---|
//! | `GET\|POST /admin/dispatch.cgi?action=register&user=&pass=&mac=&oak=&server=` | steps 1 and 2 |
//! | `GET /admin/status.cgi` | a line for each device that is connected |
//! | `GET /admin/redirect.cgi?client=&server=` | a move, see [`Move`] |
//! | `GET /admin/reconnect.cgi?client=`, `GET /admin/restart.cgi?client=` | as in the API |
//!
//! A client is `4.SERIAL` or the serial number. Answers are text; integrations take one that holds the word `error` for a
//! failure, and no other does.
//!
//! Who asks says so by `Authorization`, as everywhere, or by `user` and `pass`, as integrations do: both are looked at by
//! the same guard. Invariant: neither of them, nor an OAK, is in any log or answer.

use super::{Api, devices, is_known_host, to_its_end};
use crate::{
    guard::Denied,
    orders,
    proxy::{CHALLENGE, CLIENT_ID},
};
use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use homing_base::http::Failure;
use homing_protocol::{
    Secret, SerialNumber,
    api::{
        Problem, Target,
        tunnel::{ChangeDevice, Device, Move, NewDevice},
    },
    secret::Credentials,
};
use homing_uplink::UplinkAddress;
use http::{HeaderValue, Method, Request, StatusCode, header};
use std::{collections::HashMap, fmt::Write, net::SocketAddr, sync::Arc};

/// The longest form.
const FORM_MAX_BYTES: usize = 4 * 1024;

/// What browsers say of where a request comes from. Integrations are none.
const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// What was asked, once it is known that whoever asks may.
#[derive(Clone)]
struct Asked {
    parameters: Arc<HashMap<String, Secret>>,
    /// By `user` and `pass`.
    by_parameters: bool,
}

pub(super) fn routes(api: Api) -> Router<Api> {
    Router::new()
        .route("/admin/dispatch.cgi", get(dispatch).post(dispatch))
        .route("/admin/status.cgi", get(status))
        .route("/admin/redirect.cgi", get(redirect).post(redirect))
        .route("/admin/reconnect.cgi", get(reconnect).post(reconnect))
        .route("/admin/restart.cgi", get(restart).post(restart))
        .layer(middleware::from_fn_with_state(api, ask))
}

/// A failure as these integrations take it.
struct Told(Failure);

impl From<Failure> for Told {
    fn from(failure: Failure) -> Self {
        Told(failure)
    }
}

impl IntoResponse for Told {
    fn into_response(self) -> Response {
        let error = self.0.problem.error;
        (self.0.status, format!("error: {}: {}\n", error.code, error.message)).into_response()
    }
}

/// Reads what is asked, and by whom.
async fn ask(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: axum::extract::Request,
    next: Next,
) -> Response {
    let mut response = match asked(&api, peer, request).await {
        Ok(request) => next.run(request).await,
        Err(response) => response,
    };
    // Addresses hold passwords here.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn asked(
    api: &Api,
    peer: SocketAddr,
    request: axum::extract::Request,
) -> Result<axum::extract::Request, Response> {
    let refuse = |status, code: &str, message: &str| {
        Told(Failure::new(status, Problem::new(code, message))).into_response()
    };
    // An image in a page from elsewhere would be enough to have a browser that knows the password do any of this.
    let by_page = request.headers().contains_key(header::ORIGIN)
        || request.headers().get(SEC_FETCH_SITE).is_some_and(|site| site != "same-origin" && site != "none");
    if by_page || (!api.guard.asks() && !is_known_host(&request, &api.known_as)) {
        return Err(refuse(
            StatusCode::FORBIDDEN,
            "forbidden",
            "This is for integrations, not for web pages.",
        ));
    }
    let (parts, body) = request.into_parts();
    let mut parameters = HashMap::new();
    let mut read = |text: &[u8]| {
        for (name, value) in url::form_urlencoded::parse(text) {
            parameters.entry(name.into_owned()).or_insert_with(|| Secret::new(value.into_owned()));
        }
    };
    read(parts.uri.query().unwrap_or_default().as_bytes());
    if parts.method == Method::POST {
        let form = axum::body::to_bytes(body, FORM_MAX_BYTES).await;
        let form =
            form.map_err(|_| refuse(StatusCode::BAD_REQUEST, "bad-request", "The form is too long."))?;
        read(&form);
    }
    let given = |name: &str| parameters.get(name).filter(|value| !value.is_empty());
    let pair = given("user").zip(given("pass"));
    let pair = pair.map(|(user, pass)| Credentials::new(user.expose(), pass.clone()));
    let authorization = parts.headers.get(header::AUTHORIZATION);
    let (admitted, by_parameters) = match pair {
        Some(pair) if authorization.is_none() && api.guard.asks() => {
            (api.guard.check_pair(peer.ip(), &pair), true)
        }
        // The same twice is no device's password.
        Some(pair) => (api.guard.check(peer.ip(), authorization), api.guard.is(&pair)),
        None => (api.guard.check(peer.ip(), authorization), false),
    };
    if let Err(denied) = admitted {
        let (status, code, message) = match denied {
            Denied::TooMany(_) => (
                StatusCode::TOO_MANY_REQUESTS,
                "too-many-attempts",
                "Too many wrong passwords; try again in a while.",
            ),
            Denied::Missing | Denied::Wrong => (
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "The tunnel server's user and password are wanted.",
            ),
        };
        let mut response = refuse(status, code, message);
        match denied {
            Denied::TooMany(wait) => {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1))
            }
            _ => response.headers_mut().insert(header::WWW_AUTHENTICATE, CHALLENGE),
        };
        return Err(response);
    }
    let mut request = Request::from_parts(parts, Body::empty());
    request.extensions_mut().insert(Asked { parameters: Arc::new(parameters), by_parameters });
    Ok(request)
}

impl Asked {
    fn get(&self, name: &str) -> Option<&Secret> {
        self.parameters.get(name).filter(|value| !value.is_empty())
    }

    /// The device that is meant.
    fn client(&self) -> Result<SerialNumber, Failure> {
        let client = self.get("client").ok_or_else(|| missing("client"))?.expose();
        devices::serial_number(client.strip_prefix(CLIENT_ID).unwrap_or(client))
    }

    fn servers(&self) -> Result<Vec<String>, Failure> {
        let Some(servers) = self.get("server") else { return Ok(Vec::new()) };
        let servers = servers.expose().split(',').map(str::trim).filter(|server| !server.is_empty());
        let authority = |server: &str| match server.parse::<UplinkAddress>() {
            Ok(address) => Ok(address.authority()),
            Err(error) => Err(Failure::bad_request(format!("server: {error}"))),
        };
        servers.map(authority).collect()
    }

    /// The device's own user and password, where they were sent. What opened the door is not it.
    fn device_credentials(&self) -> Option<Credentials> {
        let pair = |user, pass| Some(Credentials::new(self.get(user)?.expose(), self.get(pass)?.clone()));
        pair("device_user", "device_pass").or_else(|| pair("user", "pass").filter(|_| !self.by_parameters))
    }
}

fn missing(name: &str) -> Failure {
    Failure::bad_request(format!("The parameter {name} is missing."))
}

async fn dispatch(State(api): State<Api>, request: axum::extract::Request) -> Result<String, Told> {
    let asked = extension(&request)?;
    match asked.get("action").map(Secret::expose) {
        Some("register") => (),
        Some(_) => return Err(Failure::bad_request("The action is not known; it is register.").into()),
        None => return Err(missing("action").into()),
    }
    let mac = asked.get("mac").ok_or_else(|| missing("mac"))?.expose();
    let serial = devices::serial_number(mac.strip_prefix(CLIENT_ID).unwrap_or(mac))?;
    let oak = devices::oak(asked.get("oak").ok_or_else(|| missing("oak"))?)?;
    // Internal and external addresses are easily mixed up: better said now than when the device does not come.
    let (servers, ours) = (asked.servers()?, &api.server.public);
    if !servers.is_empty() && !servers.iter().any(|server| ours.contains(server)) {
        let message = format!(
            "Devices are registered for this tunnel server alone, whose public addresses are {}; server= names {}.",
            ours.join(", "),
            servers.join(", ")
        );
        return Err(Failure::bad_request(message).into());
    }
    let known = asked.device_credentials();
    let stop = api.stop.clone();
    let registered = async move {
        if api.devices.record(serial).is_none() {
            let Credentials { user, password } = known.clone().unwrap_or_else(|| api.factory.clone());
            let new = NewDevice::new(serial, oak.clone(), user, password);
            match api.relay.register(new, &api.stop).await {
                // By somebody else, meanwhile.
                Err(failure) if failure.problem.error.code == "already-registered" => (),
                registered => return registered.map(|(_, relayed)| relayed),
            }
        }
        // Integrations register again whatever they are not sure of: what they send counts.
        let (user, password) = known.map(|known| (known.user, known.password)).unzip();
        let change = ChangeDevice { oak: Some(oak), user, password, ..ChangeDevice::default() };
        api.relay.change(serial, change, &api.stop).await.map(|_| true)
    };
    Ok(match to_its_end(&stop, registered).await? {
        true => format!("{} registered\n", serial.host()),
        false => format!("{} registered, and relayed as soon as the dispatcher is reached\n", serial.host()),
    })
}

async fn status(State(api): State<Api>) -> String {
    let devices = api.devices.all();
    let connected: Vec<&Device> = devices.iter().filter(|device| device.connected).collect();
    let mut text = String::new();
    for device in &connected {
        let (id, peer) = (device.serial.host(), device.peer.as_deref().unwrap_or_default());
        let since = device.since.unwrap_or_default();
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "id={CLIENT_ID}{id} srcaddr={peer} accepted=1 v=2 rx={} tx={} connected={since:.6}",
            device.bytes_in, device.bytes_out
        );
    }
    let _ = writeln!(text, "\nTotal number of clients: {}", connected.len());
    text
}

async fn redirect(State(api): State<Api>, request: axum::extract::Request) -> Result<String, Told> {
    let asked = extension(&request)?;
    let (serial, servers) = (asked.client()?, asked.servers()?);
    if servers.is_empty() {
        return Err(missing("server").into());
    }
    let stop = api.stop.clone();
    let is_home = servers.iter().any(|server| api.server.public.contains(server));
    to_its_end(&stop, async move {
        if is_home {
            return api.relay.call_back(serial, &api.stop).await.map(drop);
        }
        let order = Move {
            target: Target { servers, trust_anchor: api.neighbours.to_string() },
            account: None,
            keep: false,
        };
        api.relay.send(serial, order, &api.stop).await.map(drop)
    })
    .await?;
    Ok(format!("{} redirected\n", serial.host()))
}

async fn reconnect(State(api): State<Api>, request: axum::extract::Request) -> Result<String, Told> {
    let serial = extension(&request)?.client()?;
    orders::reconnect(&api.tunnel, &api.devices, serial)?;
    Ok(format!("{} reconnects\n", serial.host()))
}

async fn restart(State(api): State<Api>, request: axum::extract::Request) -> Result<String, Told> {
    let serial = extension(&request)?.client()?;
    let stop = api.stop.clone();
    to_its_end(&stop, async move { orders::restart(&api.tunnel, &api.devices, serial).await }).await?;
    Ok(format!("{} restarts\n", serial.host()))
}

fn extension(request: &axum::extract::Request) -> Result<Asked, Failure> {
    let asked = request.extensions().get::<Asked>().cloned();
    asked.ok_or_else(|| anyhow::anyhow!("a CGI without its layer").into())
}
