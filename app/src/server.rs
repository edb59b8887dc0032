//! Several roles in one process: opened in the order in which they need each other, run side by side,
//! ended together.
//!
//! Roles that are both here find each other: the tunnel server gets a dispatcher account, management gets the tunnel
//! server, and streams go from the tunnel server to the recording server in process ([`Tunnel`]). The page's own
//! certificate has the names under which devices know this machine. Where one is elsewhere, the configuration says
//! how to reach it.

use crate::{cli, config, config::Config, reload::Reload};
use anyhow::{Context, bail};
use bytes::Bytes;
use homing_base::{Ops, Stop, Workers, logging, onvif::ANSWER_LIMIT_BYTES, password, stop};
use homing_dispatcher::accounts;
use homing_protocol::{SerialNumber, api::recording::DeviceAddress, secret::Credentials};
use homing_recording::connect::{BoxFuture, ConnectError, DeviceConnector, Stream};
use homing_tunnel::{ReachError, TunnelHandle};
use http::{Request, Response};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
};
use tokio::runtime::Handle;

/// The dispatcher account of a tunnel server in the dispatcher's own process.
const ACCOUNT: &str = "this-process";

/// In the dispatcher's certificate whenever a tunnel server is in the same process.
const LOOPBACK: &str = "127.0.0.1";

const PASSWORD_LENGTH: usize = 20;

/// Reads the file, runs the roles that `choose` leaves in it until SIGINT or SIGTERM.
pub(crate) fn run(file: &Path, choose: fn(&mut Config)) -> anyhow::Result<()> {
    let mut config = config::load(file)?;
    choose(&mut config);
    logging::init(config.log.format, &config.log.filter)?;
    let files = raise_open_files();
    tracing::debug!(files, "open files that this process may have");
    cli::runtime()?.block_on(async {
        let server = Server::bind(config.clone()).await?;
        let reload = Reload::new(file.to_owned(), choose, config, &server);
        if let Some(admin) = server.first_start() {
            cli::print(&format!(
                "The page is {}; sign in as {} with the password {}\n",
                server.url().unwrap_or_default(),
                admin.user,
                admin.password.expose()
            ));
        }
        server.run_until_signal(reload).await
    })
}

/// Roles whose sockets and files are open.
pub(crate) struct Server {
    pub dispatcher: Option<homing_dispatcher::Bound>,
    pub tunnel: Option<homing_tunnel::Bound>,
    pub recording: Option<homing_recording::Bound>,
    pub management: Option<homing_management::Bound>,
    pub ops: Ops,
}

impl Server {
    /// Opens every role that the configuration names.
    ///
    /// # Errors
    /// Names the role, the key or the address, and what to check.
    pub async fn bind(mut config: Config) -> anyhow::Result<Server> {
        let ops = Ops::new();
        let workers = Workers::start(config.workers).context("cannot start the worker threads")?;
        let dispatcher_names =
            config.dispatcher.as_ref().map_or_else(Vec::new, |dispatcher| dispatcher.names.clone());
        let dispatcher = match config.dispatcher.take() {
            Some(mut dispatcher) => {
                if config.tunnel.is_some() && !dispatcher.names.iter().any(|name| name == LOOPBACK) {
                    dispatcher.names.push(LOOPBACK.to_owned());
                }
                let data = dispatcher.data.clone();
                Some((homing_dispatcher::bind(dispatcher, &ops, &workers).await?, data))
            }
            None => None,
        };
        if let Some(management) = &mut config.management {
            let dispatcher = dispatcher_names.iter().map(String::as_str);
            let tunnel = config.tunnel.iter().flat_map(|tunnel| &tunnel.public).filter_map(|one| host(one));
            for name in dispatcher.chain(tunnel) {
                if !management.names.iter().any(|known| known == name) {
                    management.names.push(name.to_owned());
                }
            }
        }
        let mut tunnel_server = None;
        let tunnel = match config.tunnel.take() {
            Some(mut tunnel) => {
                if let (Some((dispatcher, data)), true) = (&dispatcher, tunnel.dispatcher.account.is_empty())
                {
                    tunnel.dispatcher = account_of_our_own(dispatcher, data).await?;
                }
                if config.management.is_some() && tunnel.password.is_empty() {
                    // Nobody but management needs it, and that is told in process.
                    tunnel.password = password::generate(PASSWORD_LENGTH);
                }
                let credentials = Credentials::new(tunnel.user.clone(), tunnel.password.clone());
                let bound = homing_tunnel::bind(tunnel, &ops, &workers).await?;
                tunnel_server = Some(for_management(&bound, credentials));
                Some(bound)
            }
            None => None,
        };
        let dispatcher = dispatcher.map(|(bound, _)| bound);
        if config.recording.is_some() != config.management.is_some() {
            bail!(
                "[recording] and [management] go together: the page shows what the recording server records; \
                 give both tables, or neither"
            );
        }
        let (mut recording, mut management) = (None, None);
        if let (Some(for_recording), Some(mut for_management)) =
            (config.recording.take(), config.management.take())
        {
            if for_management.tunnel_servers.is_empty() {
                for_management.tunnel_servers.extend(tunnel_server);
            }
            let deps = homing_recording::Deps {
                connectors: tunnel.iter().map(in_process).collect(),
                workers: workers.clone(),
                ops: ops.clone(),
            };
            let bound = homing_recording::bind(for_recording, deps).await?;
            management = Some(homing_management::bind(for_management, bound.router(), &ops).await?);
            recording = Some(bound);
        }
        if dispatcher.is_none() && tunnel.is_none() && management.is_none() {
            bail!(
                "the configuration names no role: give it a table [dispatcher], [tunnel], or [recording] and [management]"
            );
        }
        Ok(Server { dispatcher, tunnel, recording, management, ops })
    }

    /// The page's address, where this process serves it.
    pub fn url(&self) -> Option<String> {
        self.management.as_ref().map(homing_management::Bound::url)
    }

    /// The administrator, if this is the first start.
    pub fn first_start(&self) -> Option<&Credentials> {
        self.management.as_ref().and_then(homing_management::Bound::first_start)
    }

    /// Runs every role as a task of `stop`'s; one that fails ends all. When they are asked to leave, the tunnel server's
    /// users elsewhere are given time; the other roles end first, and with them the streams in this process.
    pub fn start(self, stop: &Stop) {
        let Server { dispatcher, tunnel, recording, management, ops } = self;
        let first = stop.first();
        if let Some(role) = dispatcher {
            start("dispatcher", role.run(first.clone()), stop);
        }
        if let Some(role) = tunnel {
            start("tunnel", role.run(stop.clone()), stop);
        }
        if let Some(role) = recording {
            start("recording", role.run(first.clone()), stop);
        }
        if let Some(role) = management {
            start("management", role.run(first, ops), stop);
        }
    }

    async fn run_until_signal(self, reload: Reload) -> anyhow::Result<()> {
        let stop = Stop::new();
        self.start(&stop);
        stop.spawn(reload.at_hangups(stop.clone()));
        end_at_signal(stop).await
    }
}

/// A dispatcher account for the tunnel server of the same process, with a new password at every start: it is kept
/// nowhere.
///
/// # Errors
/// When the dispatcher's certificate is not its own CA's: then nobody here knows what to trust.
pub(crate) async fn account_of_our_own(
    dispatcher: &homing_dispatcher::Bound,
    data: &Path,
) -> anyhow::Result<homing_tunnel::Dispatcher> {
    let trust_anchor = dispatcher.trust_anchor().context(
        "[tunnel.dispatcher] address, account and password are needed, as the dispatcher has a certificate of yours",
    )?;
    let known = accounts::list(data).await?.iter().any(|account| account.name == ACCOUNT);
    let password = match known {
        true => accounts::set_password(data, ACCOUNT).await?,
        false => accounts::create(data, ACCOUNT).await?,
    };
    Ok(homing_tunnel::Dispatcher {
        address: format!("https://{}", reachable(dispatcher.api_addr())),
        trust_anchor,
        account: ACCOUNT.to_owned(),
        password,
    })
}

/// The tunnel server of the same process, as management reaches it.
pub(crate) fn for_management(
    tunnel: &homing_tunnel::Bound,
    credentials: Credentials,
) -> homing_management::TunnelServer {
    let (url, trust_anchor) = tunnel.internal_url();
    homing_management::TunnelServer {
        name: tunnel.handle().name().to_owned(),
        url,
        trust_anchor,
        user: credentials.user,
        password: credentials.password,
        ..homing_management::TunnelServer::default()
    }
}

/// The host of a `host:port` or `https://host:port/…`.
fn host(address: &str) -> Option<&str> {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let authority = rest.split('/').next()?;
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    Some(host.trim_start_matches('[').trim_end_matches(']')).filter(|host| !host.is_empty())
}

/// A listening address as one dials it from the same machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        ip if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
        _ => address,
    }
}

/// Waits for SIGINT or SIGTERM (or for a role that failed), then leaves in order and drains. A second signal waits for
/// nobody, and another ends at once.
pub(crate) async fn end_at_signal(stop: Stop) -> anyhow::Result<()> {
    let failed = tokio::select! {
        signal = stop::signal() => { signal?; false }
        () = stop.cancelled() => true,
    };
    if !failed {
        tokio::select! {
            () = stop.leave() => (),
            signal = stop::signal() => signal?,
        }
    }
    tokio::select! {
        drained = stop.drain(stop::DRAIN_DEADLINE) => if !drained {
            tracing::warn!(tasks = stop.running(), "ended with tasks that did not finish in time");
        },
        signal = stop::signal() => signal?,
    }
    if failed {
        bail!("a role failed; the log says which and why");
    }
    Ok(())
}

/// Lets the process have as many files open as the system lets it: every uplink is one. How many that is.
fn raise_open_files() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // A limit that cannot be raised is met, and named, when it is reached.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
    getrlimit(Resource::Nofile).current
}

fn start(name: &'static str, role: impl Future<Output = anyhow::Result<()>> + Send + 'static, stop: &Stop) {
    let all = stop.clone();
    stop.spawn(async move {
        if let Err(error) = role.await {
            tracing::error!(role = name, error = format!("{error:#}"), "role failed");
            all.stop();
        }
    });
}

/// The way from the recording server to the tunnel server of the same process: no socket between.
pub(crate) fn in_process(tunnel: &homing_tunnel::Bound) -> Arc<dyn DeviceConnector> {
    Arc::new(Tunnel(tunnel.handle()))
}

struct Tunnel(TunnelHandle);

impl Tunnel {
    fn serial(&self, device: &DeviceAddress) -> Result<SerialNumber, ConnectError> {
        match device {
            DeviceAddress::Tunnel { server, serial } if server == self.0.name() => Ok(*serial),
            _ => Err(ConnectError::UnknownServer(self.0.name().to_owned())),
        }
    }

    fn failed(error: &ReachError) -> ConnectError {
        ConnectError::Reported(error.problem().error)
    }
}

impl DeviceConnector for Tunnel {
    fn serves(&self, device: &DeviceAddress) -> bool {
        self.serial(device).is_ok()
    }

    fn connect<'a>(
        &'a self,
        device: &'a DeviceAddress,
        _port: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Stream>, ConnectError>> {
        Box::pin(async move {
            let serial = self.serial(device)?;
            let link = self.0.open_rtsp(serial).await.map_err(|error| Self::failed(&error))?;
            Ok(Box::new(link.stream) as Box<dyn Stream>)
        })
    }

    fn request<'a>(
        &'a self,
        device: &'a DeviceAddress,
        request: Request<Bytes>,
    ) -> BoxFuture<'a, Result<Response<Bytes>, ConnectError>> {
        Box::pin(async move {
            let serial = self.serial(device)?;
            let answer = self.0.request(serial, request).await.map_err(|error| Self::failed(&error))?;
            let (head, body) = answer.into_parts();
            let body = body.collect(ANSWER_LIMIT_BYTES).await.map_err(|error| ConnectError::Unexpected {
                peer: serial.to_string(),
                cause: error.to_string(),
            })?;
            Ok(Response::from_parts(head, body))
        })
    }

    fn credentials<'a>(&'a self, device: &'a DeviceAddress) -> BoxFuture<'a, Option<Credentials>> {
        Box::pin(async move { self.0.credentials(self.serial(device).ok()?).await.ok() })
    }

    fn runtime(&self, device: &DeviceAddress) -> Option<Handle> {
        self.0.worker(self.serial(device).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The minimal file of docs/operations.md, on free ports: what is printed can be opened in a browser.
    #[tokio::test]
    async fn the_page_is_known_under_the_names_that_devices_use() {
        let folder = tempfile::tempdir().unwrap();
        let mut config: Config = toml::from_str(
            "dispatcher.names = ['203.0.113.5']\ntunnel.public = ['203.0.113.5:8443', '[2001:db8::1]:8443']\n\
             recording.retention_gb = 500\nmanagement = { listen = '0.0.0.0:0', tls = 'own' }",
        )
        .unwrap();
        let free: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let dispatcher = config.dispatcher.as_mut().unwrap();
        (dispatcher.external, dispatcher.api) = (free, free);
        dispatcher.data = folder.path().join("dispatcher");
        let tunnel = config.tunnel.as_mut().unwrap();
        (tunnel.external, tunnel.internal) = (free, free);
        tunnel.data = folder.path().join("tunnel");
        config.recording.as_mut().unwrap().data = folder.path().join("recording");
        config.management.as_mut().unwrap().data = folder.path().join("management");
        let server = Server::bind(config).await.unwrap();
        let url = server.url().unwrap();
        assert!(url.starts_with("https://203.0.113.5:"), "{url}");
    }

    #[test]
    fn hosts_of_addresses_as_they_are_written_in_the_configuration() {
        for (address, expected) in [
            ("203.0.113.5:8443", Some("203.0.113.5")),
            ("[2001:db8::1]:8443", Some("2001:db8::1")),
            ("wss://sts.example:443/uplink", Some("sts.example")),
            ("https://sts.example/", Some("sts.example")),
            ("", None),
        ] {
            assert_eq!(host(address), expected, "{address}");
        }
    }
}
