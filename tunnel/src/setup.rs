//! What `homing tunnel setup` tries before a server runs: addresses, certificate, dispatcher.
//!
//! Not here: questions and files. Invariant: nothing is changed but the private CA, which is made where there is none.

use crate::{
    config::{Config, refuse_one_address_for_both},
    guard::PASSWORD_MIN,
    public,
    server::certificate,
};
use anyhow::{Context, bail, ensure};
use homing_base::{
    Stop,
    client::{ApiClient, Auth, CallError},
    listen,
    tls::{self, PrivateCa},
    vault,
};
use homing_protocol::{Secret, api::dispatcher::Changes, secret::Credentials};
use http::StatusCode;
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
};

/// For a connection that asks who we are.
const SHOWING: Duration = Duration::from_secs(5);

/// Connections at once that are shown the certificate.
const SHOWING_AT_ONCE: usize = 16;

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It is another machine's, or nobody's.
    #[error("{0} is not an address of this machine")]
    NotOurs(SocketAddr),
    /// Somebody listens there.
    #[error("port {port} of {ip} is taken by another program", ip = .0.ip(), port = .0.port())]
    Taken(SocketAddr),
    /// Ports below 1024.
    #[error("port {} needs the right to listen on it: root, or CAP_NET_BIND_SERVICE", .0.port())]
    NotAllowed(SocketAddr),
    /// Something else.
    #[error("cannot listen on {0}: {1}")]
    Other(SocketAddr, String),
}

/// Whether this machine could listen there.
///
/// # Errors
/// See [`Unusable`].
pub fn try_address(address: SocketAddr) -> Result<(), Unusable> {
    let failed = |error: &io::Error| match error.kind() {
        io::ErrorKind::AddrNotAvailable => Unusable::NotOurs(address),
        io::ErrorKind::AddrInUse => Unusable::Taken(address),
        io::ErrorKind::PermissionDenied => Unusable::NotAllowed(address),
        _ => Unusable::Other(address, error.to_string()),
    };
    std::net::TcpListener::bind(address).map(drop).map_err(|error| failed(&error))
}

/// Whether external and internal address can be those of one server.
///
/// # Errors
/// When they are the same IP address and port, with what to do.
pub fn try_both(external: SocketAddr, internal: SocketAddr) -> anyhow::Result<()> {
    refuse_one_address_for_both(external, internal)
}

/// Whether the internal address could be kept by this password.
///
/// # Errors
/// When it is too short.
pub fn check_password(password: &Secret) -> anyhow::Result<()> {
    ensure!(
        password.expose().chars().count() >= PASSWORD_MIN,
        "whoever knows it reaches every device, so it has at least {PASSWORD_MIN} characters"
    );
    Ok(())
}

/// Whether devices could be told the public addresses.
///
/// # Errors
/// When one cannot be read, or there are too many.
pub fn check_public(config: &Config) -> anyhow::Result<()> {
    config.check_public_count()?;
    config.public_addresses(config.external).map(drop)
}

/// Whether a server would start with this configuration, as far as that can be told without starting it.
///
/// # Errors
/// What is wrong with it.
pub fn check(config: &Config) -> anyhow::Result<()> {
    config.check()?;
    config.public_addresses(config.external).map(drop)
}

/// Makes the private CA.
///
/// # Errors
/// What is wrong with the public addresses, the files or the data folder.
pub fn prepare(config: &Config) -> anyhow::Result<()> {
    vault::private_folder(&config.data)?;
    certificate(config, &config.public_addresses(config.external)?, &private_ca(config)?)?;
    Ok(())
}

fn private_ca(config: &Config) -> anyhow::Result<Arc<PrivateCa>> {
    PrivateCa::open(&config.data, "tunnel").map(Arc::new)
}

/// What is wrong with the public addresses, in sentences. While it looks, it answers at the external address, unless a
/// server runs there already.
///
/// # Errors
/// When there is no certificate to be compared with.
pub async fn look_at_public(config: &Config) -> anyhow::Result<Vec<String>> {
    let public = config.public_addresses(config.external)?;
    let leaf = certificate(config, &public, &private_ca(config)?)?;
    let stop = Stop::new();
    if let Ok(listener) = listen::bind(config.external, "[tunnel] external") {
        let tls = tokio_rustls::TlsAcceptor::from(tls::server_config(leaf.clone())?);
        stop.spawn(show(listener, tls, stop.clone()));
    }
    let warnings = public::look(&public, config.external, &leaf).await;
    stop.drain(SHOWING).await;
    Ok(warnings)
}

/// Shows the certificate to whoever comes.
async fn show(listener: TcpListener, tls: tokio_rustls::TlsAcceptor, stop: Stop) {
    let shown = stop.clone();
    let handle = move |tcp: TcpStream, _| {
        let (tls, stop) = (tls.clone(), shown.clone());
        async move {
            let showing = async {
                if let Ok(mut connection) = tls.accept(tcp).await {
                    // Until the other end has seen enough.
                    let _ = connection.read_u8().await;
                }
            };
            tokio::select! {
                _ = tokio::time::timeout(SHOWING, showing) => (),
                () = stop.cancelled() => (),
            }
        }
    };
    listen::accept_loop(listener, SHOWING_AT_ONCE, stop, handle).await;
}

/// Whether the dispatcher can be reached and knows the account. `Ok` with a sentence: it cannot be told now.
///
/// # Errors
/// When the dispatcher refuses the account, or the address or the trust anchor cannot be meant.
pub async fn try_dispatcher(config: &crate::Dispatcher) -> anyhow::Result<Option<String>> {
    if !config.address.starts_with("https://") {
        bail!("the dispatcher's address must begin with https://, since passwords and OAKs go there");
    }
    let account = Credentials::new(config.account.clone(), config.password.clone());
    let trust = config.trust_anchor_pem()?;
    let client = ApiClient::new("dispatcher", &config.address, &Auth::Basic(account), trust.as_deref())?;
    match client.get::<Changes>("/api/v1/changes?after=0&wait_s=0").await {
        Ok(_) => Ok(None),
        Err(CallError::Refused { status: StatusCode::UNAUTHORIZED, .. }) => {
            Err(anyhow::anyhow!("it does not know this account and password"))
                .context(client.peer().to_owned())
        }
        Err(error) => Ok(Some(error.to_string())),
    }
}
