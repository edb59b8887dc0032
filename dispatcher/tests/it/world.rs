//! A dispatcher, its tunnel servers and everything that was logged.

use crate::device::{Device, PASSWORD, Quirks, USER};
use homing_base::{
    Ops, Stop, Workers,
    client::{ApiClient, Auth, CallError},
    stop::DRAIN_DEADLINE,
};
use homing_dispatcher::{Config, accounts};
use homing_protocol::{
    Oak, Secret, SerialNumber,
    api::dispatcher::{Changes, NewRegistration, Registration, RegistrationState},
    secret::Credentials,
};
use homing_uplink::{DialError, EndReason};
use http::Method;
use std::{
    io::Write,
    net::SocketAddr,
    path::Path,
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const SERIAL: SerialNumber = SerialNumber::new([0x00, 0x40, 0x8C, 0x70, 0x20, 0x09]);
pub const OAK: Oak = Oak::new([0x0A, 0x1B, 0x2C, 0x3D, 0x4E, 0x5F]);
pub const OTHER_OAK: Oak = Oak::new([0xFF, 0x1B, 0x2C, 0x3D, 0x4E, 0x5F]);

/// Whatever is not there by then will not come.
pub const DEADLINE: Duration = Duration::from_secs(30);

pub struct World {
    pub external: SocketAddr,
    pub api: SocketAddr,
    pub trust: String,
    pub ops: Ops,
    pub stop: Stop,
    running: JoinHandle<anyhow::Result<()>>,
    workers: Workers,
}

impl World {
    pub async fn start(data: &Path) -> World {
        World::start_with(data, |_| ()).await
    }

    pub async fn start_with(data: &Path, change: impl FnOnce(&mut Config)) -> World {
        LazyLock::force(&LOG);
        let mut config = Config {
            external: "127.0.0.1:0".parse().unwrap(),
            api: "127.0.0.1:0".parse().unwrap(),
            names: vec!["127.0.0.1".into()],
            data: data.to_owned(),
            ..Config::default()
        };
        change(&mut config);
        let (ops, workers) = (Ops::new(), Workers::start(2).unwrap());
        let bound = homing_dispatcher::bind(config, &ops, &workers).await.unwrap();
        let (external, api) = (bound.external_addr(), bound.api_addr());
        let trust = bound.trust_anchor().unwrap();
        let stop = Stop::new();
        #[expect(clippy::disallowed_methods, reason = "awaited in World::stop")]
        let running = tokio::spawn(bound.run(stop.clone()));
        World { external, api, trust, ops, stop, running, workers }
    }

    /// Ends it; nothing may be left.
    pub async fn stop(self) {
        assert!(self.stop.drain(DRAIN_DEADLINE).await, "{} tasks left", self.stop.running());
        self.running.await.unwrap().unwrap();
        let workers = self.workers;
        tokio::task::spawn_blocking(move || drop(workers)).await.unwrap();
    }

    /// Waits for a line of the metrics, without `homing_dispatcher_`.
    pub async fn until_metric(&self, line: &str) {
        let line = format!("homing_dispatcher_{line}\n");
        let counting = async {
            while !self.ops.metrics().contains(&line) {
                tokio::task::yield_now().await;
            }
        };
        let counted = tokio::time::timeout(DEADLINE, counting).await;
        counted.unwrap_or_else(|_| panic!("no {line} in {}", self.ops.metrics()));
    }

    /// A tunnel server with this account's password.
    pub fn sts(&self, name: &str, password: &Secret) -> Sts {
        let auth = Auth::Basic(Credentials::new(name, password.clone()));
        let base = format!("https://{}", self.api);
        Sts {
            api: ApiClient::new("dispatcher", &base, &auth, Some(&self.trust)).unwrap(),
            seen: Arc::default(),
        }
    }

    /// The operator's API, with this token.
    pub fn operator(&self, token: &str) -> ApiClient {
        let base = format!("https://{}", self.api);
        ApiClient::new("dispatcher", &base, &Auth::Bearer(token.into()), Some(&self.trust)).unwrap()
    }

    /// Step 4.
    pub async fn phone_home(&self, device: &Arc<Device>) -> Result<JoinHandle<EndReason>, DialError> {
        let never = CancellationToken::new();
        device.dial(&format!("https://{}/", self.external), &self.trust, &never).await
    }
}

pub fn device(oak: Oak) -> Arc<Device> {
    Device::new(SERIAL, oak, PASSWORD, Quirks::default())
}

/// A dispatcher with one account, and that account's tunnel server; the folder goes when it is dropped.
pub async fn world_with_account() -> (tempfile::TempDir, World, Sts) {
    let folder = tempfile::tempdir().unwrap();
    let password = account(folder.path(), "shop").await;
    let world = World::start(folder.path()).await;
    let sts = world.sts("shop", &password);
    (folder, world, sts)
}

pub async fn account(data: &Path, name: &str) -> Secret {
    accounts::create(data, name).await.unwrap()
}

/// What a tunnel server does: relays, and listens for changes.
#[derive(Clone)]
pub struct Sts {
    pub api: ApiClient,
    seen: Arc<Mutex<Vec<Registration>>>,
}

impl Sts {
    pub fn registration(oak: Oak, password: &str, trust: &str) -> NewRegistration {
        NewRegistration {
            oak,
            user: USER.into(),
            password: password.into(),
            servers: vec!["127.0.0.1:9".into(), "127.0.0.2:9".into()],
            trust_anchor: trust.to_owned(),
            voucher_key: Default::default(),
        }
    }

    pub async fn put(&self, new: &NewRegistration) -> Result<Registration, CallError> {
        self.api.send(Method::PUT, &format!("/api/v1/registrations/{SERIAL}"), new).await
    }

    pub async fn get(&self) -> Result<Registration, CallError> {
        self.api.get(&format!("/api/v1/registrations/{SERIAL}")).await
    }

    pub async fn delete(&self) -> Result<(), CallError> {
        self.api.send(Method::DELETE, &format!("/api/v1/registrations/{SERIAL}"), &()).await
    }

    /// Listens for changes, acknowledging them, until one is as wanted.
    pub async fn until(&self, wanted: impl Fn(&Registration) -> bool) -> Registration {
        let listening = async {
            let mut after = 0;
            loop {
                let path = format!("/api/v1/changes?after={after}&wait_s=10");
                let changes: Changes = self.api.wait(&path, Duration::from_secs(10)).await.unwrap();
                self.seen.lock().unwrap().extend(changes.changes.iter().cloned());
                if let Some(found) = changes.changes.into_iter().find(&wanted) {
                    // Acknowledged, too.
                    let path = format!("/api/v1/changes?after={}", changes.last);
                    let _: Changes = self.api.get(&path).await.unwrap();
                    return found;
                }
                after = changes.last;
            }
        };
        let waited = tokio::time::timeout(DEADLINE, listening).await;
        waited.unwrap_or_else(|_| panic!("did not come; seen: {:#?}", self.seen.lock().unwrap()))
    }

    pub async fn until_state(&self, state: RegistrationState) -> Registration {
        self.until(|registration| registration.state == state).await
    }
}

/// The status and code of a refusal.
pub fn refusal<T: std::fmt::Debug>(result: Result<T, CallError>) -> (u16, String, String) {
    match result {
        Err(CallError::Refused { status, problem, .. }) => {
            (status.as_u16(), problem.error.code, problem.error.message)
        }
        other => panic!("not refused: {other:?}"),
    }
}

/// Everything that any test of this program has logged, at TRACE.
pub static LOG: LazyLock<Log> = LazyLock::new(|| {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    log
});

#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// The first line that holds this text.
    pub fn find(&self, needle: &str) -> Option<String> {
        let text = self.0.lock().unwrap();
        text.split(|byte| *byte == b'\n')
            .map(String::from_utf8_lossy)
            .find(|line| line.contains(needle))
            .map(Into::into)
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
