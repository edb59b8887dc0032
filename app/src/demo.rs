//! `homing demo`: every role on loopback, with simulated cameras that press their own buttons.
//!
//! Nothing is short-circuited: each role has its own sockets, files and secrets, the cameras stand
//! behind site agents, and what the demo does by itself (register, press, add) it does as a script
//! would, over the management server's API and the agents' buttons. The last camera is left for the
//! newcomer.
//!
//! With `--data` the folder stays; the next start takes ports and secrets from its `demo.json`, because
//! devices remember the address of their tunnel server.

mod story;

use crate::{cli, server, server::Server};
use anyhow::{Context, ensure};
use clap::Args;
use homing_base::{Ops, Stop, Workers, listen, logging, password, stop, vault};
use homing_protocol::{Oak, Secret, SerialNumber, secret::Credentials};
use serde::{Deserialize, Serialize};
use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// What the first cameras are called; further ones are numbered.
const NAMES: [&str; 4] = ["Front door", "Loading bay", "Car park", "Workshop"];

/// More would need more of a machine than a demo should.
const CAMERAS_MAX: u8 = 32;

const PASSWORD_LENGTH: usize = 16;

#[derive(Args)]
pub(crate) struct Options {
    /// Keeps everything in this folder instead of a temporary one.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Port of the page on 127.0.0.1; 0 takes a free one.
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
    /// How many simulated cameras; the last one is left for you to register.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=i64::from(CAMERAS_MAX)))]
    cameras: u8,
    /// What is logged: a level, or target=level pairs.
    // A slow disk, of which the database warns, is nothing that a newcomer can mend.
    #[arg(long, value_name = "FILTER", default_value = "warn,sqlx=error")]
    log: String,
}

/// `demo.json`: everything a script needs to talk to the demo.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Description {
    /// The page.
    url: String,
    user: String,
    password: Secret,
    /// Bearer token of the API.
    token: Secret,
    tunnel: TunnelDescription,
    dispatcher: DispatcherDescription,
    cameras: Vec<CameraDescription>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct TunnelDescription {
    external: SocketAddr,
    internal: SocketAddr,
    /// Its RTSP gateway: `rtsp://` this `/SERIAL`, with the same user and password.
    rtsp: SocketAddr,
    /// The same inside TLS, with the certificate of the tunnel server's own CA.
    rtsps: Option<SocketAddr>,
    user: String,
    password: Secret,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct DispatcherDescription {
    external: SocketAddr,
    api: SocketAddr,
    /// PEM of its own CA.
    trust_anchor: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct CameraDescription {
    name: String,
    serial: SerialNumber,
    oak: Oak,
    user: String,
    password: Secret,
    /// A POST here is the one-click button.
    press: String,
    rtsp: SocketAddr,
    http: SocketAddr,
}

pub(crate) fn run(options: Options) -> anyhow::Result<()> {
    logging::init(logging::Format::Text, &options.log)?;
    // Removed when it is dropped, also after an error.
    let temporary = match &options.data {
        Some(_) => None,
        None => {
            let mode = std::fs::Permissions::from_mode(0o700);
            let folder = tempfile::Builder::new().prefix("homing-demo-").permissions(mode).tempdir();
            Some(folder.context("cannot make a temporary folder")?)
        }
    };
    let folder = match (&options.data, &temporary) {
        (Some(folder), _) => folder.clone(),
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => unreachable!("one of the two is there"),
    };
    let lock = vault::claim_folder(&folder)?;
    let stop = Stop::new();
    let ended = cli::runtime()?.block_on(async {
        tokio::select! {
            started = demo(&options, &folder, &stop) => started?,
            // Not ready yet, but the temporary folder is there.
            signal = stop::signal() => return Ok(signal?),
        }
        server::end_at_signal(stop.clone()).await
    });
    drop(lock);
    if let Some(temporary) = temporary {
        temporary.close().with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    ended
}

async fn demo(options: &Options, folder: &Path, stop: &Stop) -> anyhow::Result<()> {
    // What is most likely to be in the way, before anything is made; the page itself comes last.
    drop(listen::bind(loopback(options.port), "the page; --port takes another")?);
    let earlier = read_description(folder)?;
    let workers = Workers::start(0).context("cannot start the worker threads")?;
    let ops = Ops::new();

    let mut cameras = Vec::new();
    for index in 0..options.cameras {
        let earlier = earlier.as_ref().and_then(|earlier| earlier.cameras.get(usize::from(index)));
        cameras.push(homing_camera::bind(camera_config(index, earlier)).await?);
    }

    let dispatcher = {
        let earlier = earlier.as_ref().map(|earlier| &earlier.dispatcher);
        let config = homing_dispatcher::Config {
            external: earlier.map_or(loopback(0), |earlier| earlier.external),
            api: earlier.map_or(loopback(0), |earlier| earlier.api),
            data: folder.join("dispatcher"),
            ..homing_dispatcher::Config::default()
        };
        homing_dispatcher::bind(config, &ops, &workers).await?
    };
    let anchor = dispatcher.trust_anchor().context("the demo's dispatcher has a CA of its own")?;

    let mut agents = Vec::new();
    for (index, camera) in cameras.iter().enumerate() {
        let earlier = earlier.as_ref().and_then(|earlier| earlier.cameras.get(index));
        let config = agent_config(camera, dispatcher.external_addr(), &anchor, folder, index, earlier)?;
        agents.push(homing_agent::bind(config).await?);
    }

    let internal = Credentials::new(
        "vms",
        earlier
            .as_ref()
            .map_or_else(|| password::generate(PASSWORD_LENGTH), |earlier| earlier.tunnel.password.clone()),
    );
    let tunnel = {
        let earlier = earlier.as_ref().map(|earlier| &earlier.tunnel);
        let config = homing_tunnel::Config {
            name: "Tunnel server".into(),
            external: earlier.map_or(loopback(0), |earlier| earlier.external),
            internal: earlier.map_or(loopback(0), |earlier| earlier.internal),
            gateway: homing_tunnel::Gateway {
                rtsp: earlier.map_or(loopback(0), |earlier| earlier.rtsp).to_string(),
                rtsps: earlier.and_then(|earlier| earlier.rtsps).unwrap_or(loopback(0)).to_string(),
                ..homing_tunnel::Gateway::default()
            },
            user: internal.user.clone(),
            password: internal.password.clone(),
            data: folder.join("tunnel"),
            dispatcher: server::account_of_our_own(&dispatcher, &folder.join("dispatcher")).await?,
            // Nobody waits for a demo to end.
            limits: homing_tunnel::Limits { drain_s: 0, ..homing_tunnel::Limits::default() },
            ..homing_tunnel::Config::default()
        };
        homing_tunnel::bind(config, &ops, &workers).await?
    };

    let descriptions: Vec<CameraDescription> =
        cameras.iter().zip(&agents).map(|(camera, agent)| describe(camera, agent)).collect();
    let recording = homing_recording::bind(
        homing_recording::Config { data: folder.join("recording"), ..homing_recording::Config::default() },
        homing_recording::Deps {
            connectors: vec![server::in_process(&tunnel)],
            workers: workers.clone(),
            ops: ops.clone(),
        },
    )
    .await?;
    let management = {
        let config = homing_management::Config {
            listen: loopback(options.port),
            data: folder.join("management"),
            tunnel_servers: vec![server::for_management(&tunnel, internal.clone())],
            simulated_cameras: descriptions.iter().map(label).collect(),
            ..homing_management::Config::default()
        };
        homing_management::bind(config, recording.router(), &ops).await?
    };

    let (user, password, token) = match (&earlier, management.first_start()) {
        (_, Some(admin)) => {
            (admin.user.clone(), admin.password.clone(), management.create_token(&admin.user, "demo").await?)
        }
        (Some(earlier), None) => (earlier.user.clone(), earlier.password.clone(), earlier.token.clone()),
        (None, None) => anyhow::bail!(
            "{} was begun by a demo that did not come up; remove the folder, or take another",
            folder.display()
        ),
    };
    let description = Description {
        url: management.url(),
        user,
        password,
        token,
        tunnel: TunnelDescription {
            external: tunnel.external_addr(),
            internal: tunnel.internal_addr(),
            rtsp: tunnel.rtsp_addr().context("the demo's tunnel server has an RTSP gateway")?,
            rtsps: tunnel.rtsps_addr(),
            user: internal.user,
            password: internal.password,
        },
        dispatcher: DispatcherDescription {
            external: dispatcher.external_addr(),
            api: dispatcher.api_addr(),
            trust_anchor: anchor,
        },
        cameras: descriptions,
    };

    for camera in cameras {
        stop.spawn(camera.run(stop.clone()));
    }
    for agent in agents {
        let token = stop.token().clone();
        stop.spawn(async move {
            if let Err(error) = agent.run(token).await {
                tracing::error!(error = format!("{error:#}"), "site agent failed");
            }
        });
    }
    let server = Server {
        dispatcher: Some(dispatcher),
        tunnel: Some(tunnel),
        recording: Some(recording),
        management: Some(management),
        ops,
    };
    server.start(stop);

    // Last: a script that finds the file finds everything listening.
    vault::write_private(&folder.join("demo.json"), &serde_json::to_vec_pretty(&description)?)?;
    cli::print(&welcome(&description, folder, options.data.is_some()));
    stop.spawn(story::tell(description, stop.clone()));
    Ok(())
}

fn camera_config(index: u8, earlier: Option<&CameraDescription>) -> homing_camera::Config {
    let name = NAMES
        .get(usize::from(index))
        .map_or_else(|| format!("Camera {}", u16::from(index) + 1), |name| (*name).to_owned());
    homing_camera::Config {
        name,
        // Locally administered addresses: no manufacturer's.
        serial: SerialNumber::new([0x02, 0x48, 0x4D, 0x00, 0x00, index + 1]),
        rtsp: earlier.map_or(loopback(0), |earlier| earlier.rtsp),
        http: earlier.map_or(loopback(0), |earlier| earlier.http),
        password: earlier
            .map_or_else(|| password::generate(PASSWORD_LENGTH), |earlier| earlier.password.clone()),
        ..homing_camera::Config::default()
    }
}

fn agent_config(
    camera: &homing_camera::Bound,
    dispatcher: SocketAddr,
    anchor: &str,
    folder: &Path,
    index: usize,
    earlier: Option<&CameraDescription>,
) -> anyhow::Result<homing_agent::Config> {
    let credentials = camera.credentials();
    let page = match earlier {
        None => loopback(0),
        Some(earlier) => {
            let authority = earlier.press.split('/').nth(2).context("press address in demo.json")?;
            authority.parse().context("press address in demo.json")?
        }
    };
    Ok(homing_agent::Config {
        data: folder.join("devices").join(format!("{:02}", index + 1)),
        serial: Some(camera.serial()),
        manufacturer: "Homing".into(),
        model: "Simulated camera".into(),
        dispatchers: vec![homing_agent::DispatcherConfig {
            address: dispatcher.to_string(),
            trust_anchor: anchor.to_owned(),
        }],
        cameras: vec![homing_agent::CameraConfig {
            name: camera.name().to_owned(),
            rtsp: camera.rtsp_url().into(),
            user: credentials.user.clone(),
            password: credentials.password.clone(),
            http: format!("http://{}", camera.http_addr()),
            ..homing_agent::CameraConfig::default()
        }],
        page: homing_agent::config::PageConfig {
            listen: page,
            ..homing_agent::config::PageConfig::default()
        },
        ..homing_agent::Config::default()
    })
}

fn describe(camera: &homing_camera::Bound, agent: &homing_agent::Bound) -> CameraDescription {
    let credentials = camera.credentials();
    let label = agent.label();
    CameraDescription {
        name: camera.name().to_owned(),
        serial: label.serial,
        oak: label.oak,
        user: credentials.user.clone(),
        password: credentials.password.clone(),
        press: agent.press_url(),
        rtsp: camera.rtsp_addr(),
        http: camera.http_addr(),
    }
}

fn label(camera: &CameraDescription) -> homing_management::SimulatedCamera {
    homing_management::SimulatedCamera {
        name: camera.name.clone(),
        serial: camera.serial,
        oak: camera.oak.clone(),
        user: camera.user.clone(),
        password: camera.password.clone(),
        press: camera.press.clone(),
    }
}

fn read_description(folder: &Path) -> anyhow::Result<Option<Description>> {
    let path = folder.join("demo.json");
    match std::fs::read(&path) {
        Ok(json) => {
            let description: Description = serde_json::from_slice(&json)
                .with_context(|| format!("{} is not of this version; take another folder", path.display()))?;
            ensure!(!description.cameras.is_empty(), "{} names no camera", path.display());
            Ok(Some(description))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn welcome(demo: &Description, folder: &Path, kept: bool) -> String {
    let spare = demo.cameras.last().expect("at least one camera");
    let others = match demo.cameras.len() - 1 {
        0 => String::new(),
        1 => "One camera presses its own button now: watch it find its tunnel server.\n  ".to_owned(),
        many => {
            format!("{many} cameras press their own buttons now: watch them find their tunnel server.\n  ")
        }
    };
    let kept = if kept { "kept" } else { "removed at the end" };
    format!(
        "\n  Homing demo\n\n  \
         Page       {}\n  \
         Sign in    {}   {}\n  \
         Folder     {} ({kept}); demo.json in it is for scripts\n\n  \
         {others}{:?} is yours: register it with what stands on its label (page, Simulated cameras),\n  \
         press its button, and add it by the wizard.\n\n  \
         Ctrl-C ends everything.\n\n",
        demo.url,
        demo.user,
        demo.password.expose(),
        folder.display(),
        spare.name,
    )
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port)
}
