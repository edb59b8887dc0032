//! The recording server: records, replays and streams cameras, tunnelled or local alike (step 8 of the
//! connection flow, and everything after it).
//!
//! | module | what |
//! |---|---|
//! | `server`, `hardware` | what was added, and Add Hardware |
//! | [`connect`] | the way to a device |
//! | `camera` | one camera's life |
//! | `rtsp`, `frames`, `fragment` | session → packets → frames → fragments |
//! | `writer`, `catalog`, `index`, `store` | fragments → files → index |
//! | `recovery`, `retention` | what a crash left; what has expired |
//! | `live` | viewers |
//! | `playback`, `export` | what was recorded |
//! | `api` | HTTP |
//!
//! Invariants: a camera's session, live stream and recording share each frame's bytes; nobody who is slow (the
//! disk, the database, a viewer) makes a camera wait; what is shown as recorded is secured on disk.

mod api;
mod camera;
mod catalog;
mod config;
pub mod connect;
mod export;
mod fragment;
mod frames;
mod hardware;
mod index;
mod live;
mod metrics;
mod playback;
mod recovery;
mod retention;
mod rtsp;
mod server;
mod store;
mod writer;

pub use config::{Config, REFERENCE, TunnelServer};

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use axum::Router;
use homing_base::{Ops, Stop, Workers, vault};
use homing_media::time::{TICKS_PER_SECOND, Ticks, ticks_from_nanos};

use catalog::Catalog;
use connect::{Connectors, DeviceConnector};
use metrics::Metrics;
use playback::Playback;
use retention::{Retention, Usage};
use server::Server;
use store::Store;
use writer::Writer;

/// What a recording server shares with the other roles of its process.
pub struct Deps {
    /// Ways to devices that only this process has; asked before the configured ones.
    pub connectors: Vec<Arc<dyn DeviceConnector>>,
    /// Where cameras live whose connector does not say.
    pub workers: Workers,
    /// Metrics and health.
    pub ops: Ops,
}

/// A recording server whose footage is repaired and whose files are open; no camera is connected yet.
pub struct Bound {
    server: Server,
    retention: Retention,
    writer_thread: std::thread::JoinHandle<()>,
    indexer: tokio::task::JoinHandle<()>,
    lock: std::fs::File,
}

/// Opens everything, and repairs what a crash left.
///
/// # Errors
/// When the configuration is impossible, or a folder, file or the database cannot be opened.
pub async fn bind(config: Config, deps: Deps) -> anyhow::Result<Bound> {
    config.check()?;
    let lock = vault::claim_folder(&config.data)?;
    let footage = config.data.join("footage");
    vault::private_folder(&footage)?;
    let store = Store::open(&config.data).await?;
    let metrics = Arc::new(Metrics::register(&deps.ops));
    let usage = Usage::default();

    let cameras = store.cameras().await?;
    let ends = recovery::run(&footage, &store, &cameras, &usage).await.context("repairing footage")?;
    for camera in cameras.iter().filter(|camera| camera.deleted.is_none()) {
        // Where the last process ended in order, a gap is open already.
        let end = ends.iter().find(|end| end.0 == camera.id).map(|end| end.1);
        if let Some(end) = end {
            let message = "The recording server ended without being stopped: power failure or crash.";
            store.open_gap(camera.id, end, "server-crashed", message).await?;
        }
        // Where the wall clock was set back, not before the footage's end.
        store.connecting_gap(camera.id, now().max(end.unwrap_or(Ticks::MIN))).await?;
    }

    let (notes, reports) = tokio::sync::mpsc::channel(index::QUEUE);
    let catalog = Catalog::default();
    let settings = writer::Settings {
        footage: footage.clone(),
        file_length: Ticks::from(config.file_s) * TICKS_PER_SECOND,
        sync_interval: Duration::from_millis(config.sync_ms),
        queue_bytes: config.queue_mb * 1_000_000,
    };
    let (writer, writer_thread) =
        Writer::start(settings, catalog.clone(), notes.clone(), metrics.clone(), deps.ops.clone())?;
    deps.ops.report("recording", Ok(()));
    // Outside the role's tracker: it ends when everybody who reports to it has, and is awaited by `run`.
    let indexer =
        deps.workers.next().spawn(index::run(reports, store.clone(), catalog.clone(), usage.clone()));

    let shared = Arc::new(camera::Shared {
        connectors: Connectors::new(deps.connectors, &config.tunnel_servers)?,
        workers: deps.workers,
        writer,
        catalog: catalog.clone(),
        notes,
        metrics: metrics.clone(),
        fragment_length: Ticks::from(config.fragment_s) * TICKS_PER_SECOND,
    });
    let playback = Playback { store: store.clone(), catalog, footage: footage.clone() };
    let retention = Retention::new(&config, store.clone(), footage, usage, metrics);
    let server = Server::new(store, shared, playback, config.viewers, Stop::new());
    server.load(&ends).await?;
    Ok(Bound { server, retention, writer_thread, indexer, lock })
}

impl Bound {
    /// The API, to be mounted behind whatever decides who may ask.
    pub fn router(&self) -> Router {
        api::router(self.server.clone())
    }

    /// Connects to every camera, and records until the role is stopped; then everything is secured and indexed.
    ///
    /// Routers and handles may still be around; they find the database closed.
    ///
    /// # Errors
    /// When the database cannot be read, or something could not be ended.
    pub async fn run(self, stop: Stop) -> anyhow::Result<()> {
        // The lock is held until the last file is closed.
        let Bound { server, retention, writer_thread, indexer, lock: _lock } = self;
        // Everything that this role spawns, on whatever runtime, is counted here.
        let own = server.stop.clone();
        server.start();
        own.spawn(retention.run(own.clone()));
        own.spawn(server.store.vault().keep(own.clone()));
        stop.cancelled().await;
        // The order matters: no more fragments, then no more files, then no more notes.
        if !own.drain(DRAIN_DEADLINE).await {
            tracing::warn!(tasks = own.running(), "cameras or viewers did not end in time");
        }
        server.shared.writer.stop();
        let joined = tokio::task::spawn_blocking(move || writer_thread.join()).await?;
        let _ = server.shared.notes.send(index::Note::End).await;
        indexer.await?;
        server.store.close().await;
        anyhow::ensure!(joined.is_ok(), "the footage writer has crashed");
        Ok(())
    }
}

/// For cameras and viewers to end. What they leave still has to be secured after that.
const DRAIN_DEADLINE: Duration = Duration::from_millis(700);

/// The wall clock.
pub(crate) fn now() -> Ticks {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    ticks_from_nanos(since_1970.as_nanos().cast_signed())
}
