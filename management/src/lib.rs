//! The management server: web page, users and the JSON API.
//!
//! It owns users, sessions, API tokens and the audit log, and knows of devices and cameras only what
//! tunnel servers and the recording role tell it. It carries out nothing of the connection flow itself
//! but its two ends that a person starts: step 1 (register, passed to a tunnel server) and step 8 (Add
//! Hardware, passed to the recording role).
//!
//! | module | what |
//! |---|---|
//! | [`config`] | what it can be told |
//! | [`gate`] | who is let in: default deny |
//! | `guesses` | who guesses passwords is slowed |
//! | [`accounts`], [`audit`] | users, sessions, tokens; who did what |
//! | [`certificates`] | which end, and when somebody has to do something |
//! | [`world`], [`board`] | what is known of the others, and how browsers see it change |
//! | [`servers`], [`probe`] | which tunnel servers there are; whether one can be used |
//! | [`sites`] | places with one Internet connection, and who knows of them |
//! | [`tunnels`], [`sse`], [`recording`] | where that is known from |
//! | [`api`], [`views`] | the JSON API and its OpenAPI document |
//! | [`plan`] | bandwidth and storage, reckoned |
//! | [`web`] | the page |
//!
//! Not here: roles and organisations, several recording servers, PostgreSQL.

pub mod accounts;
pub mod api;
pub mod audit;
pub mod board;
pub mod certificates;
pub mod config;
pub mod gate;
mod guesses;
pub mod plan;
pub mod probe;
pub mod recording;
pub mod servers;
pub mod sites;
pub mod sse;
pub mod tunnels;
pub mod views;
pub mod web;
pub mod world;

pub use config::{Config, REFERENCE, SimulatedCamera, TunnelServer};

use accounts::{Accounts, Lifetimes};
use anyhow::Context;
use axum::{Router, http::StatusCode, routing::get};
use homing_base::{Ops, Stop, database, http::Failure, listen, password, tls, vault};
use homing_protocol::{Secret, secret::Credentials};
use prometheus_client::metrics::counter::Counter;
use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, sync::Semaphore};

/// The database's schema, in order.
pub(crate) const MIGRATIONS: &[&str] = &[
    include_str!("schema.sql"),
    include_str!("servers.sql"),
    include_str!("sign_ins.sql"),
    include_str!("sites.sql"),
];

/// Password hashes at once; see [`api::account::sign_in`].
const HASHES_AT_ONCE: usize = 2;

/// Characters of a generated password: 116 bits.
const GENERATED_PASSWORD: usize = 20;

/// How often ended sessions and old audit entries are swept away.
const SWEEP: Duration = Duration::from_secs(600);

/// A management server whose socket and database are open.
pub struct Bound {
    app: App,
    listener: TcpListener,
    address: SocketAddr,
    page: String,
    leaf: Option<Arc<tls::Leaf>>,
    audit_days: u32,
    first_start: Option<Credentials>,
    lock: std::fs::File,
}

/// What every handler has. Cheap to clone.
#[derive(Clone)]
pub struct App {
    accounts: Accounts,
    audit: audit::Audit,
    world: world::World,
    certificates: certificates::Certificates,
    recording: recording::Recording,
    servers: servers::Servers,
    sites: sites::Sites,
    simulated: Arc<Vec<config::SimulatedCamera>>,
    guesses: Arc<guesses::Guesses>,
    hashing: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    cookie: Arc<gate::SessionCookie>,
    metrics: Metrics,
    stop: Stop,
}

/// Opens the database (made at the first start, with a user `admin`) and the listening socket.
///
/// `recording` is the recording role's router, called in process.
///
/// # Errors
/// Names what cannot be opened, and what to check.
pub async fn bind(config: Config, recording: Router, ops: &Ops) -> anyhow::Result<Bound> {
    config.check()?;
    let lock = vault::claim_folder(&config.data)?;
    // Before the first user is made: a start that fails here must not use up the password that is shown once.
    let listener = listen::bind(config.listen, "[management] listen, for browsers")?;
    let address = listener.local_addr().context("address of the web page")?;
    let page = page_host(&config, address);
    let leaf = config.leaf()?;
    let database = open_database(&config.data).await?;
    let lifetimes = Lifetimes {
        idle: Duration::from_secs(u64::from(config.session_idle_min) * 60),
        absolute: Duration::from_secs(u64::from(config.session_hours) * 3600),
    };
    let accounts = Accounts::new(database.clone(), lifetimes);
    let first_start = first_user(&accounts, &config.first_password).await?;
    let world = world::World::new(&config);
    let recording = recording::Recording::new(recording);
    let sites = sites::Sites::open(database.clone()).await?;
    let servers = servers::Servers::open(
        &config.data,
        database.clone(),
        &config.tunnel_servers,
        world.clone(),
        recording.clone(),
        sites.clone(),
    )
    .await?;
    let certificates = certificates::Certificates::new(world.clone(), own_certificates(leaf.clone()));
    let audit = audit::Audit::new(database);
    let app = App {
        accounts,
        audit: audit.clone(),
        world,
        certificates: certificates.clone(),
        recording,
        servers,
        sites,
        simulated: Arc::new(config.simulated_cameras),
        guesses: Arc::new(guesses::Guesses::new(audit.clone())),
        hashing: Arc::new(Semaphore::new(HASHES_AT_ONCE)),
        streams: Arc::new(Semaphore::new(api::events::STREAMS)),
        cookie: Arc::new(gate::SessionCookie::new(leaf.is_some(), address)),
        metrics: Metrics::register(ops, certificates),
        stop: Stop::new(),
    };
    Ok(Bound { app, listener, address, page, leaf, audit_days: config.audit_days, first_start, lock })
}

impl Bound {
    /// Where the page is; the port is the real one where 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// The page's address for a person.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.leaf.is_some() { "https" } else { "http" }, self.page)
    }

    /// At the first start: the user that was made, for whoever started the program. It is in no log.
    pub fn first_start(&self) -> Option<&Credentials> {
        self.first_start.as_ref()
    }

    /// Makes an API token for a user, for scripts that the caller starts.
    ///
    /// # Errors
    /// When there is no such user, or the database cannot be written.
    pub async fn create_token(&self, user: &str, name: &str) -> anyhow::Result<Secret> {
        let users = self.app.accounts.users().await?;
        let user = users
            .iter()
            .find(|known| known.name.eq_ignore_ascii_case(user))
            .with_context(|| format!("there is no user called {user:?}"))?;
        let (_, secret) = self.app.accounts.add_token(user.id, name).await?;
        self.app.audit.record(&user.name, "this machine", "add-token", name, "").await?;
        Ok(secret)
    }

    /// Serves until the role stops.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub async fn run(self, stop: Stop, ops: Ops) -> anyhow::Result<()> {
        // The lock is held until the role has ended.
        let Bound { mut app, listener, leaf, audit_days, lock: _lock, .. } = self;
        app.stop = stop.clone();
        app.servers.start(&stop);
        stop.spawn(app.servers.vault().keep(stop.clone()));
        stop.spawn(app.recording.clone().watch(app.world.clone(), stop.clone()));
        stop.spawn(sweep(app.clone(), audit_days));
        let tls = match leaf {
            None => None,
            Some(leaf) => {
                stop.spawn(leaf.clone().keep_fresh(stop.clone()));
                let own = own_certificates(Some(leaf.clone()));
                stop.spawn(tls::expiry::warn_daily("management", own, stop.clone()));
                Some(tls::server_config(leaf)?)
            }
        };
        tracing::info!(address = %listener.local_addr()?, tls = tls.is_some(), "management server ready");
        homing_base::http::serve(listener, router(app, &ops), tls, stop).await;
        Ok(())
    }
}

/// Gives a user a new random password, for who has lost it and can reach the data folder.
///
/// # Errors
/// When there is no such user, or the database cannot be opened.
pub async fn reset_password(config: &Config, user: &str) -> anyhow::Result<Secret> {
    let file = config.data.join("management.sqlite");
    anyhow::ensure!(file.is_file(), "there is no {}: the server has not run yet", file.display());
    let database = open_database(&config.data).await?;
    let nothing = Lifetimes { idle: Duration::ZERO, absolute: Duration::ZERO };
    let accounts = Accounts::new(database.clone(), nothing);
    let users = accounts.users().await?;
    let found = users
        .iter()
        .find(|known| known.name.eq_ignore_ascii_case(user))
        .with_context(|| format!("there is no user called {user:?}"))?;
    let password = password::generate(GENERATED_PASSWORD);
    accounts.set_password(found.id, password.clone(), None).await?;
    audit::Audit::new(database)
        .record(&found.name, "this machine", "reset-password", &found.name, "")
        .await?;
    Ok(password)
}

/// Host and port under which a person reaches the page: behind 0.0.0.0, a name of the certificate that means
/// something on other machines.
fn page_host(config: &Config, address: SocketAddr) -> String {
    if !address.ip().is_unspecified() {
        return address.to_string();
    }
    let beyond = |name: &&String| {
        *name != "localhost" && !name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    let name = config.names.iter().find(beyond).map_or("localhost", String::as_str);
    match name.parse::<Ipv6Addr>() {
        Ok(ip) => format!("[{ip}]:{}", address.port()),
        Err(_) => format!("{name}:{}", address.port()),
    }
}

async fn open_database(folder: &Path) -> anyhow::Result<sqlx::SqlitePool> {
    database::open(&folder.join("management.sqlite"), MIGRATIONS).await
}

async fn first_user(accounts: &Accounts, given: &Secret) -> anyhow::Result<Option<Credentials>> {
    if !accounts.is_empty().await? {
        return Ok(None);
    }
    let password = if given.is_empty() { password::generate(GENERATED_PASSWORD) } else { given.clone() };
    accounts.add_user("admin", password.clone()).await?;
    tracing::info!("first start: user \"admin\" made");
    Ok(Some(Credentials::new("admin", password)))
}

/// What the page itself is served with.
fn own_certificates(leaf: Option<Arc<tls::Leaf>>) -> certificates::Own {
    Arc::new(move || leaf.as_ref().map_or_else(Vec::new, |leaf| leaf.expiries("the page")))
}

/// Everything that is served, behind the gate.
fn router(app: App, ops: &Ops) -> Router {
    let (api, document) = api::routes();
    let document: Arc<str> =
        document.to_json().expect("a document of plain values can be written as JSON").into();
    let document = async move || ([(http::header::CONTENT_TYPE, "application/json")], document.to_string());
    // The gate lets nobody to the metrics without a token or a session, and everybody to the health.
    let monitoring = ops.router("Bearer", |request| request.extensions().get::<gate::Caller>().is_some());
    Router::new()
        .merge(web::router())
        .merge(api)
        .route("/api/openapi.json", get(document))
        .merge(monitoring.with_state(()))
        .fallback(async || Failure::not_found("There is nothing at this address."))
        .method_not_allowed_fallback(async || {
            let problem = homing_protocol::api::Problem::new("method-not-allowed", "Not with this method.");
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, problem)
        })
        .layer(axum::middleware::from_fn_with_state(app.clone(), gate::gate))
        .with_state(app)
}

async fn sweep(app: App, audit_days: u32) {
    let keep = Duration::from_secs(u64::from(audit_days) * 86_400);
    loop {
        if let Err(error) = app.accounts.sweep().await {
            tracing::error!(error = format!("{error:#}"), "ended sessions not swept");
        }
        if let Err(error) = app.audit.sweep(keep).await {
            tracing::error!(error = format!("{error:#}"), "audit log not swept");
        }
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => (),
            () = app.stop.cancelled() => return,
        }
    }
}

impl App {
    /// Writes into the audit log on behalf of the caller.
    async fn record(
        &self,
        caller: &gate::Caller,
        action: &str,
        object: &str,
        detail: &str,
    ) -> anyhow::Result<()> {
        self.audit.record(&caller.identity.name, &caller.peer, action, object, detail).await
    }

    /// Makes [`world::World`] true about the hardware now, not at the next poll: whoever changed it
    /// shall see it in the next answer.
    async fn refresh_hardware(&self) {
        let hardware = self.recording.hardware().await;
        self.world.recording(hardware.map_err(|failure| failure.problem.error));
    }
}

#[derive(Clone, Default)]
struct Metrics {
    sign_ins_refused: Counter,
    cross_site: Counter,
}

impl Metrics {
    fn register(ops: &Ops, certificates: certificates::Certificates) -> Self {
        let metrics = Metrics::default();
        ops.register("management", |registry| {
            registry.register(
                "sign_ins_refused",
                "Sign-ins with a wrong user name or password",
                metrics.sign_ins_refused.clone(),
            );
            registry.register(
                "cross_site_requests_refused",
                "Requests with a session that came from another site",
                metrics.cross_site.clone(),
            );
            registry.register_collector(Box::new(certificates));
        });
        metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behind_every_address_the_page_has_one_that_a_browser_can_open() {
        let host = |names: &[&str], address: &str| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            page_host(&Config { names, ..Config::default() }, address.parse().unwrap())
        };
        assert_eq!(host(&["localhost", "127.0.0.1", "203.0.113.5"], "0.0.0.0:8080"), "203.0.113.5:8080");
        assert_eq!(host(&["localhost", "2001:db8::1"], "[::]:80"), "[2001:db8::1]:80");
        assert_eq!(host(&["localhost", "127.0.0.1"], "0.0.0.0:8080"), "localhost:8080");
        assert_eq!(host(&["vms.example"], "10.0.0.1:443"), "10.0.0.1:443");
    }
}
