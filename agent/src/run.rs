//! The agent's life: open everything, then carry out what the state machine decides.
//!
//! 1. [`bind`]: check the configuration, lock the data folder, make or read the identity, read the store,
//!    open the page's socket.
//! 2. [`Bound::run`]: start the page and the look at the cameras; then one loop: what happens goes into
//!    `state.rs`, its commands are carried out here, and what there is to see is published.
//! 3. Stop: every uplink is closed in order, every task awaited.
//!
//! Flow steps: 3 (press), 4 (phone-home), 6 (connect); 5 and 7 are answered by `service.rs`.

use crate::Label;
use crate::camera::Cameras;
use crate::config::{Config, Dispatcher};
use crate::files;
use crate::guesses::Turns;
use crate::identity::{Identity, random};
use crate::onvif::Services;
use crate::page::Page;
use crate::password::LogIn;
use crate::service::Answers;
use crate::state::{Command, Event, Peer, Settings, State};
use crate::status::{Connection, Facts, Status};
use crate::store::Store;
use anyhow::{Context, bail};
use homing_protocol::Step;
use homing_protocol::digest::DigestGuard;
use homing_protocol::oak::ProofKey;
use homing_uplink::{
    BackoffSettings, Dialer, HttpProxy, Keep, ServeSettings, TlsPolicy, UplinkAddress, UplinkState,
    client_tls_config,
};
use rustls::RootCertStore;
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, OnceCell, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What has happened and is not taken in yet. When it is full, whoever has something to tell waits: the
/// loop never waits for any of them.
const EVENTS: usize = 64;

/// An uplink that is down for so long is tried at once when another one goes down, too.
const DOWN_LONG: Duration = Duration::from_secs(10);

/// Where the page's address is written for `homing-agent press` and `status`.
pub const PAGE_FILE: &str = "page";

/// An agent whose files and sockets are open.
pub struct Bound {
    config: Config,
    dispatchers: Vec<Dispatcher>,
    proxy: Option<HttpProxy>,
    services: Arc<Services>,
    status: watch::Sender<Status>,
    events: mpsc::Receiver<Event>,
    page: Page,
    page_addr: SocketAddr,
    /// Held for as long as the agent lives.
    _lock: File,
}

/// Opens everything that an agent needs.
///
/// # Errors
/// Names the key of the configuration, the file or the address that is wrong, and what to do.
pub async fn bind(config: Config) -> anyhow::Result<Bound> {
    let valid = config.validate()?;
    let (data, serial, oak) = (config.data.clone(), config.serial, config.oak.clone());
    // Makes a key and writes to disk at first start.
    let configured = valid.cameras[0].credentials.clone();
    let (lock, identity, store, log_in) = tokio::task::spawn_blocking(move || {
        files::private_folder(&data)?;
        let lock = lock(&data)?;
        let identity = Identity::load_or_create(&data, serial, oak.as_ref())?;
        anyhow::Ok((lock, identity, Store::load(&data)?, LogIn::load(&data, configured)?))
    })
    .await??;
    let listener = TcpListener::bind(config.page.listen).await.with_context(|| {
        format!("cannot listen on {}; choose another address with page.listen", config.page.listen)
    })?;
    let page_addr = listener.local_addr()?;
    files::write(&config.data.join(PAGE_FILE), &page_addr.to_string())?;
    let (status, shown) = watch::channel(Status::default());
    let (events, received) = mpsc::channel(EVENTS);
    let services = Arc::new(Services {
        cameras: Cameras::new(valid.cameras, log_in),
        dispatchers: valid.dispatchers.len(),
        identity,
        store,
        manufacturer: config.manufacturer.clone(),
        model: config.model.clone(),
        guard: DigestGuard::new("homing", random()),
        started: Instant::now(),
        started_at: jiff::Timestamp::now(),
        status: shown,
        events,
    });
    let page = Page::new(listener, page_addr, config.page.host_names.clone(), Arc::clone(&services));
    Ok(Bound {
        dispatchers: valid.dispatchers,
        proxy: valid.proxy,
        config,
        services,
        status,
        events: received,
        page,
        page_addr,
        _lock: lock,
    })
}

/// Two agents with one identity would push each other off every server.
pub(crate) fn lock(data: &Path) -> anyhow::Result<File> {
    let path = data.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("another agent is running with the data folder {}", data.display())
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

impl Bound {
    /// Where the page is.
    pub fn page_addr(&self) -> SocketAddr {
        self.page_addr
    }

    /// Where to `POST` to press the button.
    pub fn press_url(&self) -> String {
        format!("http://{}/press", self.page_addr)
    }

    /// What stands on the label.
    pub fn label(&self) -> Label {
        let identity = &self.services.identity;
        Label { serial: identity.serial, oak: identity.oak.clone() }
    }

    /// What the agent shows, as it changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Runs until told to stop; comes back when everything is closed.
    ///
    /// # Errors
    /// None today: whatever goes wrong while it runs is shown, and tried again.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let Bound { config, dispatchers, proxy, services, status, mut events, page, page_addr, _lock } = self;
        let serial = services.identity.serial;
        tracing::info!(%serial, page = %page_addr, cameras = services.cameras.list().len(), "agent runs");
        let tasks = TaskTracker::new();
        let stopping = stop.child_token();
        tasks.spawn(page.run(stopping.clone()));
        let watching = Arc::clone(&services);
        let watching_stop = stopping.clone();
        tasks.spawn(async move { watching.cameras.watch(watching_stop).await });

        let settings = Settings {
            dispatchers: dispatchers.len(),
            press_window: config.press_window(),
            fallback_after: Duration::from_secs(config.fallback_s),
            backoff: BackoffSettings {
                first: Duration::from_millis(config.retry_first_ms),
                max: Duration::from_millis(config.retry_max_ms),
                ..BackoffSettings::default()
            },
        };
        let stored: Vec<String> =
            services.store.kept().await.uplinks.iter().map(|uplink| uplink.address.clone()).collect();
        let mut runner = Runner {
            state: State::new(settings, u64::from_ne_bytes(random()), stored),
            settings,
            dispatchers,
            proxy,
            proof_key: Arc::default(),
            dispatchers_turns: Arc::new(Turns::new()),
            tasks: tasks.clone(),
            stop: stopping.clone(),
            leave: stopping.child_token(),
            dispatcher_error: None,
            window_missed: false,
            kept: BTreeMap::new(),
            lives: 0,
            news: mpsc::channel(EVENTS),
            services,
            status,
        };
        runner.run(&mut events).await;
        stopping.cancel();
        tasks.close();
        // Who still has something to tell must not wait for a loop that has ended.
        drop((runner, events));
        tasks.wait().await;
        tracing::info!(%serial, "agent stopped");
        Ok(())
    }
}

/// What tasks of this loop tell it beside events.
enum News {
    Event(Event),
    /// An uplink's state has changed; the number says which of its lives it is.
    Uplink {
        address: String,
        life: u64,
        state: UplinkState,
    },
    /// Why a dispatcher was not reached, or let go.
    DispatcherError(Option<String>, Event),
}

/// An uplink that is kept.
struct Kept {
    life: u64,
    stop: CancellationToken,
    state: UplinkState,
    /// When it began to be tried, or went down last.
    since: Instant,
    /// Makes it try at once.
    wake: Arc<Notify>,
}

struct Runner {
    state: State,
    settings: Settings,
    dispatchers: Vec<Dispatcher>,
    proxy: Option<HttpProxy>,
    services: Arc<Services>,
    proof_key: Arc<OnceCell<ProofKey>>,
    /// Of all dispatchers together: they are dialled anew all the time.
    dispatchers_turns: Arc<Turns>,
    status: watch::Sender<Status>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Ends the uplink to the dispatcher.
    leave: CancellationToken,
    dispatcher_error: Option<String>,
    window_missed: bool,
    kept: BTreeMap<String, Kept>,
    /// Counts what was ever kept.
    lives: u64,
    news: (mpsc::Sender<News>, mpsc::Receiver<News>),
}

impl Runner {
    async fn run(&mut self, events: &mut mpsc::Receiver<Event>) {
        let commands = self.state.start(self.now());
        self.carry_out(commands).await;
        loop {
            self.publish();
            let due = self.state.next_timeout().map(|due| self.services.started + due);
            let timer = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let news = tokio::select! {
                () = self.stop.cancelled() => return,
                Some(event) = events.recv() => News::Event(event),
                Some(news) = self.news.1.recv() => news,
                () = self.services.cameras.changed.notified() => continue,
                () = timer => News::Event(Event::Tick),
            };
            self.handle(news).await;
        }
    }

    fn now(&self) -> Duration {
        self.services.started.elapsed()
    }

    async fn handle(&mut self, news: News) {
        let event = match news {
            News::Event(event) => event,
            News::DispatcherError(error, event) => {
                self.dispatcher_error = error;
                event
            }
            News::Uplink { address, life, state } => {
                let Some(kept) = self.kept.get_mut(&address).filter(|kept| kept.life == life) else { return };
                let (was, is) = (kept.state.is_connected(), state.is_connected());
                if is && !was {
                    tracing::info!(serial = %self.services.identity.serial, step = %Step::Tunnel, address, "tunnel server reached");
                } else if let Some(error) = state.error().filter(|error| kept.state.error() != Some(*error)) {
                    // Not every attempt that fails in the same way.
                    tracing::warn!(serial = %self.services.identity.serial, step = %Step::Connect, address, error, "tunnel server not reached");
                }
                kept.state = state;
                match (was, is) {
                    (false, true) => Event::UplinkUp { address },
                    (true, false) => {
                        kept.since = Instant::now();
                        // Now another one is needed. What went down together comes back by its own intervals: a server
                        // that has crashed is not to see all its devices in the same moment.
                        self.wake_those_down_for(DOWN_LONG);
                        Event::UplinkDown { address }
                    }
                    _ => return,
                }
            }
        };
        if event == Event::Pressed {
            self.handle_press();
        }
        let window = self.state.window_until();
        let commands = self.state.handle(self.now(), event);
        // Closed by time, not by a dispatch.
        if window.is_some_and(|until| self.state.window_until().is_none() && self.now() >= until) {
            tracing::info!(serial = %self.services.identity.serial, step = %Step::Press, "the button's window has ended");
            self.window_missed = true;
        }
        self.carry_out(commands).await;
    }

    fn handle_press(&mut self) {
        tracing::info!(serial = %self.services.identity.serial, step = %Step::Press, window_s = self.settings.press_window.as_secs(), "button pressed");
        (self.dispatcher_error, self.window_missed) = (None, false);
        self.services.cameras.look_now();
        self.wake_those_down_for(Duration::ZERO);
    }

    fn wake_those_down_for(&self, long: Duration) {
        let is_down = |kept: &&Kept| !kept.state.is_connected() && kept.since.elapsed() >= long;
        self.kept.values().filter(is_down).for_each(|kept| kept.wake.notify_one());
    }

    async fn carry_out(&mut self, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::DialDispatcher(number) => self.dial_dispatcher(number),
                Command::LeaveDispatcher => self.leave.cancel(),
                Command::Keep(address) => self.keep(address).await,
                Command::Drop(address) => self.drop_uplink(&address),
                Command::Forget(address) => {
                    tracing::info!(serial = %self.services.identity.serial, step = %Step::Connect, address, "old tunnel server forgotten");
                    self.drop_uplink(&address);
                    // What cannot be removed now is dialled again after a restart, and deleted by its owner then.
                    if let Err(fault) = self.services.store.change(|kept| kept.delete_uplink(&address)).await
                    {
                        tracing::warn!(serial = %self.services.identity.serial, address, %fault, "cannot forget an uplink");
                    }
                }
            }
        }
    }

    /// Step 4.
    fn dial_dispatcher(&mut self, number: usize) {
        let serial = self.services.identity.serial;
        self.leave = self.stop.child_token();
        let dispatcher = &self.dispatchers[number];
        let dialer = self.dialer(dispatcher.address.clone(), dispatcher.roots.clone());
        let service = self.answers(Peer::Dispatcher);
        let (news, leave) = (self.news.0.clone(), self.leave.clone());
        self.tasks.spawn(async move {
            let address = dispatcher_address(&dialer);
            let dialed = match dialer {
                Ok(dialer) => {
                    leave.run_until_cancelled(dialer.dial()).await.map(|d| d.map_err(|e| e.to_string()))
                }
                Err(error) => Some(Err(error)),
            };
            let tell = async |error: Option<String>, event| {
                // The loop ends only with the agent.
                let _ = news.send(News::DispatcherError(error, event)).await;
            };
            match dialed {
                None => tell(None, Event::DispatcherFailed).await,
                Some(Err(error)) => {
                    tracing::warn!(%serial, step = %Step::PhoneHome, address, error, "dispatcher not reached");
                    tell(Some(error), Event::DispatcherFailed).await;
                }
                Some(Ok(dialed)) => {
                    tracing::info!(%serial, step = %Step::PhoneHome, address, "waiting at the dispatcher");
                    tell(None, Event::DispatcherConnected).await;
                    let reason = dialed.serve(service, ServeSettings::default(), leave.clone()).await;
                    tracing::info!(%serial, step = %Step::Connect, address, %reason, "left the dispatcher");
                    let error = (!leave.is_cancelled()).then(|| format!("{address}: {reason}"));
                    tell(error, Event::DispatcherEnded).await;
                }
            }
        });
    }

    /// Step 6.
    async fn keep(&mut self, address: String) {
        self.drop_uplink(&address);
        self.lives += 1;
        let life = self.lives;
        let kept = self.services.store.kept().await;
        let stop = self.stop.child_token();
        let wake = Arc::new(Notify::new());
        let mut state = UplinkState::Offline { error: None, retry_in: None };
        let dialer = address
            .parse::<UplinkAddress>()
            .map_err(|error| error.to_string())
            .and_then(|parsed| self.dialer(parsed, kept.roots(&address)));
        match dialer {
            // Only a damaged store can make this happen.
            Err(error) => state = UplinkState::Offline { error: Some(error), retry_in: None },
            Ok(dialer) => {
                tracing::info!(serial = %self.services.identity.serial, step = %Step::Connect, address, "dialling the tunnel server");
                let (mut keep, states) = Keep::new(dialer, self.answers(Peer::TunnelServer(address.clone())));
                keep.backoff = self.settings.backoff;
                keep.wake = Arc::clone(&wake);
                self.tasks.spawn(keep.run(stop.clone()));
                let (news, address) = (self.news.0.clone(), address.clone());
                self.tasks.spawn(tell_states(news, address, life, states));
            }
        }
        self.kept.insert(address, Kept { life, stop, state, since: Instant::now(), wake });
    }

    fn drop_uplink(&mut self, address: &str) {
        if let Some(kept) = self.kept.remove(address) {
            kept.stop.cancel();
        }
    }

    fn answers(&self, peer: Peer) -> Arc<Answers> {
        let turns = match peer {
            Peer::Dispatcher => Arc::clone(&self.dispatchers_turns),
            Peer::TunnelServer(_) => Arc::new(Turns::new()),
        };
        Arc::new(Answers::new(Arc::clone(&self.services), Arc::clone(&self.proof_key), peer, turns))
    }

    fn dialer(&self, address: UplinkAddress, roots: RootCertStore) -> Result<Dialer, String> {
        let identity = &self.services.identity;
        let key = identity.private_key().map_err(|error| format!("the device's key: {error}"))?;
        let chain = vec![identity.certificate.clone()];
        let tls = client_tls_config(roots, chain, key, TlsPolicy::Tls13)
            .map_err(|error| format!("the device's certificate: {error}"))?;
        let mut dialer = Dialer::new(address, Arc::new(tls));
        dialer.proxy = self.proxy.clone();
        dialer.user_agent = concat!("homing-agent/", env!("CARGO_PKG_VERSION")).into();
        Ok(dialer)
    }

    fn publish(&self) {
        let dispatcher =
            self.dispatchers.get(self.state.dispatcher()).map(|dispatcher| dispatcher.address.to_string());
        let status = Status::of(Facts {
            serial: self.services.identity.serial,
            phase: self.state.phase(),
            dispatcher: dispatcher.as_deref(),
            dispatcher_error: self.dispatcher_error.as_deref(),
            window_until: self.state.window_until().map(|until| self.services.started_at + until),
            window_missed: self.window_missed,
            falling_back: self.state.is_falling_back(),
            uplinks: self.kept.iter().map(|(address, kept)| Connection::of(address, &kept.state)).collect(),
            cameras: self.services.cameras.status(),
        });
        self.status.send_if_modified(|shown| {
            let changed = *shown != status;
            *shown = status;
            changed
        });
    }
}

fn dispatcher_address(dialer: &Result<Dialer, String>) -> String {
    dialer.as_ref().map_or_else(|_| String::new(), |dialer| dialer.address.to_string())
}

/// Passes an uplink's states on until its keeper has ended.
async fn tell_states(
    news: mpsc::Sender<News>,
    address: String,
    life: u64,
    mut states: watch::Receiver<UplinkState>,
) {
    loop {
        let state = states.borrow_and_update().clone();
        if news.send(News::Uplink { address: address.clone(), life, state }).await.is_err() {
            return;
        }
        if states.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Agents run on any runtime, many in one process: `homing demo` spawns them.
    #[test]
    fn an_agent_can_be_spawned() {
        fn is_send<T: Send>(_: impl FnOnce(Bound, CancellationToken) -> T) {}
        is_send(Bound::run);
        is_send(|_, _| bind(Config::default()));
    }
}
