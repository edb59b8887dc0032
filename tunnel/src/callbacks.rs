//! Call-backs: the VMS is asked about devices that come, and told of those that came and went, as existing integrations
//! expect it.
//!
//! | call | when | answer |
//! |---|---|---|
//! | `HEAD URL?action=client_hello&client_id=4.SERIAL` | a device has proven its key (step 7) | 2xx: it is let in; 302 with `Location: host:port`: it is let in and sent there; 403: it is refused |
//! | `PUT URL?action=client_connect&client_id=…&client_srcaddr=…` | it is connected | any |
//! | `DELETE URL?action=client_disconnect&client_id=…` | it is not any more | any |
//! | `PUT URL?action=server_up`, `DELETE URL?action=server_down` | the tunnel server runs, or ends in order | any |
//!
//! Each with `X-Stserver-Id`, the tunnel server's name. Any answer to the last four counts as heard.
//!
//! Invariant: what a VMS has been told is never older than what it is told next; of what it has not been told, only how it
//! stands now is kept, so that memory is bounded by the number of devices however long the VMS is away. After an outage it
//! is told `server_up` again, and then whatever has changed. Only the configured addresses are called; where a 302 leads is
//! told to the device and not followed.

use crate::{config, devices::Devices, events::Event, proxy::CLIENT_ID, relay::Relay};
use anyhow::{Context, ensure};
use homing_base::{
    Stop,
    client::{ApiClient, Auth, CallError},
    tls,
};
use homing_protocol::{
    SerialNumber, Step,
    api::{
        Target,
        tunnel::{Device, Move},
    },
};
use homing_uplink::{Backoff, BackoffSettings, UplinkAddress};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

const SERVER_ID: HeaderName = HeaderName::from_static("x-stserver-id");

/// A VMS that did not answer is not asked about the next devices for so long: thousands come back at once.
const NOT_ASKED: Duration = Duration::from_secs(5);

/// For the last call, when the role stops.
const FAREWELL: Duration = Duration::from_secs(1);

/// What the VMS says to a device that comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Let in.
    Accept,
    /// Let in, and sent to this address, `host:port`.
    Redirect(String),
    /// Not let in.
    Refuse,
}

/// The call-backs of one tunnel server.
pub(crate) struct Callbacks {
    devices: Arc<Devices>,
    relay: Arc<Relay>,
    hooks: Vec<Arc<Hook>>,
    /// What counts when nobody answers.
    unanswered: config::Unanswered,
    retry: BackoffSettings,
    /// Our public addresses.
    public: Vec<String>,
    /// PEM of whom devices are to trust where they are sent.
    neighbours: Arc<str>,
}

/// One address that is called.
struct Hook {
    client: ApiClient,
    /// `?` or `&`: what the parameters begin with.
    begin: char,
    /// For logs: without what follows the path, which may be a secret.
    shown: String,
    headers: HeaderMap,
    deadline: Duration,
    /// Until when it is not asked about devices.
    silent_until: Mutex<Option<Instant>>,
}

impl Callbacks {
    /// As configured.
    ///
    /// # Errors
    /// When an address or the trust anchor cannot be used.
    pub fn new(
        config: &config::Callbacks,
        name: &str,
        devices: Arc<Devices>,
        relay: Arc<Relay>,
        public: Vec<String>,
        neighbours: Arc<str>,
    ) -> anyhow::Result<Self> {
        let hooks = config.urls.iter().map(|url| Hook::new(config, name, url).map(Arc::new));
        let hooks = hooks.collect::<anyhow::Result<_>>().context("[tunnel.callbacks]")?;
        let retry = BackoffSettings {
            first: Duration::from_millis(config.retry_first_ms),
            max: Duration::from_millis(config.retry_longest_ms),
            ..BackoffSettings::default()
        };
        Ok(Callbacks { devices, relay, hooks, unanswered: config.unanswered, retry, public, neighbours })
    }

    /// Asks about a device that has proven its key. The first address that answers decides.
    pub async fn hello(&self, serial: SerialNumber) -> Verdict {
        for hook in &self.hooks {
            match hook.hello(serial).await {
                Some(Verdict::Redirect(server)) if self.public.contains(&server) => return Verdict::Accept,
                Some(verdict) => return verdict,
                None => (),
            }
        }
        match self.unanswered {
            config::Unanswered::Refuse if !self.hooks.is_empty() => Verdict::Refuse,
            _ => Verdict::Accept,
        }
    }

    /// Sends a device on that has been let in.
    pub async fn redirect(&self, serial: SerialNumber, server: String, stop: &Stop) {
        let target = Target { servers: vec![server.clone()], trust_anchor: self.neighbours.to_string() };
        match self.relay.send(serial, Move { target, account: None, keep: false }, stop).await {
            Ok(_) => tracing::info!(step = %Step::Tunnel, %serial, server, "the VMS sends it on"),
            Err(failure) => {
                let problem = failure.problem.error.message;
                tracing::warn!(step = %Step::Tunnel, %serial, server, problem, "the VMS sends it on, in vain");
            }
        }
    }

    /// Tells every address of devices until the role stops.
    pub async fn run(&self, stop: &Stop) {
        let all = self.hooks.iter().map(|hook| self.tell(Arc::clone(hook), stop));
        futures_util::future::join_all(all).await;
    }

    async fn tell(&self, hook: Arc<Hook>, stop: &Stop) {
        let mut ledger = Ledger::default();
        let mut events = self.devices.subscribe();
        let mut backoff = Backoff::new(self.retry);
        let mut pause = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        type Calling = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;
        let mut calling: Option<(Call, Calling)> = None;
        loop {
            if calling.is_none() && pause.is_elapsed() {
                calling = ledger.next().map(|call| {
                    let (hook, told) = (Arc::clone(&hook), call.clone());
                    let telling: Calling = Box::pin(async move { hook.tell(&told).await });
                    (call, telling)
                });
            }
            let answered = async {
                match &mut calling {
                    Some((_, telling)) => telling.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = events.next() => match event {
                    Some(Event::Device(device)) => ledger.see(&device),
                    Some(Event::Removed(serial)) => ledger.gone(serial),
                    Some(Event::Site(_)) => (),
                    None => {
                        // Too many at once: what counts is how it is now.
                        events = self.devices.subscribe();
                        ledger.anew(&self.devices.all());
                    }
                },
                answered = answered => {
                    let Some((call, _)) = calling.take() else { continue };
                    match answered {
                        Ok(()) => {
                            backoff.reset();
                            ledger.told(&call);
                        }
                        Err(cause) => {
                            let interval = backoff.next_interval();
                            tracing::warn!(
                                url = hook.shown, cause, again_s = interval.as_secs(), "the VMS does not hear a call-back"
                            );
                            ledger.not_told(&call);
                            pause.as_mut().reset(Instant::now() + interval);
                        }
                    }
                }
                () = pause.as_mut(), if !pause.is_elapsed() => (),
                () = stop.cancelled() => break,
            }
        }
        if ledger.is_up {
            // Nobody waits for a VMS that is away.
            let _ = tokio::time::timeout(FAREWELL, hook.tell(&Call::ServerDown)).await;
        }
    }
}

impl Hook {
    fn new(config: &config::Callbacks, name: &str, url: &str) -> anyhow::Result<Hook> {
        let parsed = url::Url::parse(url).with_context(|| format!("urls: {url} is no URL"))?;
        ensure!(
            matches!(parsed.scheme(), "http" | "https") && parsed.host_str().is_some(),
            "urls: write http://host:port/path or https://host:port/path"
        );
        ensure!(
            parsed.username().is_empty() && parsed.password().is_none(),
            "urls: user and password have keys of their own"
        );
        let auth = match config.user.is_empty() {
            true => Auth::Nobody,
            false => Auth::Basic(homing_protocol::secret::Credentials::new(
                config.user.clone(),
                config.password.clone(),
            )),
        };
        let trust = tls::pem_or_file(&config.trust_anchor).context("trust_anchor")?;
        let mut headers = HeaderMap::new();
        let id = HeaderValue::from_str(name).context("[tunnel] name cannot stand in X-Stserver-Id")?;
        headers.insert(SERVER_ID, id);
        Ok(Hook {
            client: ApiClient::new("VMS", url, &auth, trust.as_deref())?,
            begin: if parsed.query().is_some() { '&' } else { '?' },
            shown: format!("{}{}", parsed.origin().ascii_serialization(), parsed.path()),
            headers,
            deadline: Duration::from_millis(config.timeout_ms),
            silent_until: Mutex::default(),
        })
    }

    /// What it says; `None` if nothing that counts.
    async fn hello(&self, serial: SerialNumber) -> Option<Verdict> {
        let now = Instant::now();
        if self.silent().is_some_and(|until| now < until) {
            return None;
        }
        let path = format!("{}action=client_hello&client_id={CLIENT_ID}{}", self.begin, serial.host());
        let answered = self.client.ask(Method::HEAD, &path, self.headers.clone(), self.deadline).await;
        let (status, headers) = match answered {
            Ok(answered) => answered,
            Err(error) => {
                let cause = cause(error);
                tracing::warn!(step = %Step::Tunnel, %serial, url = self.shown, cause, "the VMS does not answer client_hello");
                *self.silent() = Some(now + NOT_ASKED);
                return None;
            }
        };
        let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
        let server = location.and_then(server_of);
        match (status, server) {
            (status, _) if status.is_success() => Some(Verdict::Accept),
            (StatusCode::FORBIDDEN, _) => Some(Verdict::Refuse),
            (status, Some(server)) if status.is_redirection() => Some(Verdict::Redirect(server)),
            (status, _) => {
                tracing::warn!(step = %Step::Tunnel, %serial, url = self.shown, %status, "client_hello: an answer that says nothing");
                None
            }
        }
    }

    /// Any answer is one, but that it cannot be answered now.
    async fn tell(&self, call: &Call) -> Result<(), String> {
        let (method, parameters) = call.request();
        let path = format!("{}{parameters}", self.begin);
        let answered = self.client.ask(method, &path, self.headers.clone(), self.deadline).await;
        match answered {
            Ok((status, _)) if status.is_server_error() => Err(format!("status {status}")),
            Ok((status, _)) => {
                if !status.is_success() {
                    tracing::warn!(url = self.shown, %status, ?call, "the VMS does not like a call-back");
                }
                Ok(())
            }
            Err(error) => Err(cause(error)),
        }
    }

    fn silent(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.silent_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Without the address, which may hold a secret.
fn cause(error: CallError) -> String {
    match error {
        CallError::Unreachable { cause, .. } | CallError::Unexpected { cause, .. } => cause,
        CallError::Refused { status, .. } => format!("status {status}"),
    }
}

/// `host:port` of a `Location`, which some write as a URL.
fn server_of(location: &str) -> Option<String> {
    let rest = location.split_once("://").map_or(location, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next()?;
    authority.parse::<UplinkAddress>().ok().map(|address| address.authority())
}

/// Something that is told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    ServerUp,
    ServerDown,
    Connect(SerialNumber, String),
    Disconnect(SerialNumber),
}

impl Call {
    fn request(&self) -> (Method, String) {
        let client = |serial: &SerialNumber| format!("client_id={CLIENT_ID}{}", serial.host());
        match self {
            Call::ServerUp => (Method::PUT, "action=server_up".to_owned()),
            Call::ServerDown => (Method::DELETE, "action=server_down".to_owned()),
            Call::Connect(serial, peer) => {
                let from: String = url::form_urlencoded::byte_serialize(peer.as_bytes()).collect();
                (Method::PUT, format!("action=client_connect&{}&client_srcaddr={from}", client(serial)))
            }
            Call::Disconnect(serial) => {
                (Method::DELETE, format!("action=client_disconnect&{}", client(serial)))
            }
        }
    }
}

/// What a VMS has been told, and what is. Pure.
#[derive(Default)]
struct Ledger {
    is_up: bool,
    /// Connected devices and where from.
    now: BTreeMap<SerialNumber, String>,
    told: BTreeMap<SerialNumber, String>,
    /// Of which something is still to be told.
    due: BTreeSet<SerialNumber>,
}

impl Ledger {
    fn see(&mut self, device: &Device) {
        match device.peer.as_ref().filter(|_| device.connected) {
            Some(peer) => drop(self.now.insert(device.serial, peer.clone())),
            None => drop(self.now.remove(&device.serial)),
        }
        self.check(device.serial);
    }

    fn gone(&mut self, serial: SerialNumber) {
        self.now.remove(&serial);
        self.check(serial);
    }

    /// Everything as it is now.
    fn anew(&mut self, devices: &[Device]) {
        let before = std::mem::take(&mut self.now);
        devices.iter().for_each(|device| self.see(device));
        before.into_keys().for_each(|serial| self.check(serial));
    }

    fn check(&mut self, serial: SerialNumber) {
        match self.now.get(&serial) == self.told.get(&serial) {
            true => self.due.remove(&serial),
            false => self.due.insert(serial),
        };
    }

    fn next(&self) -> Option<Call> {
        if !self.is_up {
            return Some(Call::ServerUp);
        }
        let serial = *self.due.first()?;
        Some(match self.now.get(&serial) {
            Some(peer) => Call::Connect(serial, peer.clone()),
            None => Call::Disconnect(serial),
        })
    }

    fn told(&mut self, call: &Call) {
        match call {
            Call::ServerUp => self.is_up = true,
            Call::ServerDown => (),
            Call::Connect(serial, peer) => {
                self.told.insert(*serial, peer.clone());
                self.check(*serial);
            }
            Call::Disconnect(serial) => {
                self.told.remove(serial);
                self.check(*serial);
            }
        }
    }

    /// It was not reached: it may have begun anew.
    fn not_told(&mut self, _: &Call) {
        self.is_up = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERIAL: SerialNumber = SerialNumber::new([0, 0x40, 0x8C, 0x70, 0x20, 9]);
    const OTHER: SerialNumber = SerialNumber::new([0, 0x40, 0x8C, 0x70, 0x20, 10]);

    impl Ledger {
        fn put(&mut self, serial: SerialNumber, peer: Option<&str>) {
            match peer {
                Some(peer) => drop(self.now.insert(serial, peer.to_owned())),
                None => drop(self.now.remove(&serial)),
            }
            self.check(serial);
        }

        /// Everything that is told now.
        fn tell_all(&mut self) -> Vec<Call> {
            let mut calls = Vec::new();
            while let Some(call) = self.next() {
                self.told(&call);
                calls.push(call);
            }
            calls
        }
    }

    /// Goal: a VMS that was away hears that the server is up, and how things are, once; what came and went meanwhile it
    /// does not.
    #[test]
    fn what_is_told_is_how_it_is() {
        let mut ledger = Ledger::default();
        ledger.put(SERIAL, Some("192.0.2.1:1"));
        let connect = |serial, peer: &str| Call::Connect(serial, peer.to_owned());
        assert_eq!(ledger.tell_all(), [Call::ServerUp, connect(SERIAL, "192.0.2.1:1")]);
        ledger.put(SERIAL, Some("192.0.2.1:1"));
        assert_eq!(ledger.tell_all(), []);
        ledger.put(SERIAL, Some("192.0.2.1:2"));
        let again = ledger.next().unwrap();
        ledger.not_told(&again);
        ledger.put(OTHER, Some("192.0.2.3:1"));
        ledger.put(OTHER, None);
        ledger.put(SERIAL, None);
        assert_eq!(ledger.tell_all(), [Call::ServerUp, Call::Disconnect(SERIAL)]);
        // It changed while it was being told.
        ledger.put(SERIAL, Some("192.0.2.1:3"));
        let telling = ledger.next().unwrap();
        ledger.put(SERIAL, None);
        ledger.told(&telling);
        assert_eq!(ledger.tell_all(), [Call::Disconnect(SERIAL)]);
        assert!(ledger.due.is_empty() && ledger.told.is_empty());
    }

    #[test]
    fn where_a_redirect_leads_is_read_as_integrations_write_it() {
        for (location, expected) in [
            ("sts.example:8443", Some("sts.example:8443")),
            ("http://192.0.2.7:8443/", Some("192.0.2.7:8443")),
            ("[2001:db8::1]:443", Some("[2001:db8::1]:443")),
            ("https://sts.example:443/a?b", Some("sts.example:443")),
            ("/elsewhere", None),
            ("", None),
        ] {
            assert_eq!(server_of(location).as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn the_calls_are_as_integrations_know_them() {
        let request = |call: Call| {
            let (method, parameters) = call.request();
            format!("{method} {parameters}")
        };
        assert_eq!(
            request(Call::Connect(SERIAL, "192.0.2.1:34148".into())),
            "PUT action=client_connect&client_id=4.00408c702009&client_srcaddr=192.0.2.1%3A34148"
        );
        assert_eq!(
            request(Call::Disconnect(SERIAL)),
            "DELETE action=client_disconnect&client_id=4.00408c702009"
        );
        assert_eq!(request(Call::ServerUp), "PUT action=server_up");
        assert_eq!(request(Call::ServerDown), "DELETE action=server_down");
    }
}
