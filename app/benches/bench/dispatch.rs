//! A thousand devices at one dispatcher: how long until all are dispatched, and what one that waits holds.
//!
//! The dispatcher is `homing dispatcher` as a process; the tunnel server is played here, because it has no
//! part in what is measured. Devices are the scripted ones of the dispatcher's own tests; they prove their
//! OAKs on the same two cores, which is part of the wall time and not of the dispatcher's CPU.
//!
//! Two fleets: the first waits there before anybody has registered it (scenario C, and memory), the second
//! is registered first and presses within a minute (scenario A). Floors: a TLS connection of a bare relay
//! for memory; for CPU a TLS connection and the derivation of one proof key, without which there is no dispatch.

use crate::{
    devices::Camera,
    floor::{Bare, SMALL_BUFFERS},
    harness::{DATA, Folder, Process, homing, output, seconds, wait_for},
    report::Figure,
    scripted::{Device, PASSWORD, Quirks, USER},
    whole::{block_on, cpu_s},
};
use anyhow::{Context, ensure};
use futures_util::StreamExt;
use homing_base::client::{ApiClient, Auth};
use homing_protocol::{
    Oak, Secret, SerialNumber,
    api::dispatcher::{Changes, NewRegistration, Registration, RegistrationState},
    secret::Credentials,
};
use homing_uplink::EndReason;
use http::Method;
use std::{
    collections::HashSet, fs, os::unix::fs::PermissionsExt, process::Command, sync::Arc, time::Duration,
};
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

const DEVICES: u32 = 1000;
/// In which they are pressed, evenly.
const PRESSED_WITHIN: Duration = Duration::from_secs(60);
/// From the first press until the last is dispatched.
const BAR_DISPATCHED_S: f64 = 120.0;
/// What a waiting device may hold, in kB.
const BAR_WAITING_KB: f64 = 50.0;
/// Until allocators have settled.
const SETTLE: Duration = Duration::from_secs(5);
/// A measurement that takes longer has failed.
const DEADLINE: Duration = Duration::from_secs(300);
/// Registrations relayed at once, as a tunnel server does it.
const RELAYED_AT_ONCE: usize = 4;

/// Measures.
pub fn run() -> anyhow::Result<Vec<Figure>> {
    block_on(async {
        let dispatcher = Dispatcher::start().await?;
        let fleet = |first: u32| (first..first + DEVICES).map(scripted).collect::<Vec<_>>();

        let waiting = fleet(0);
        let before = dispatcher.process.memory_kb(DATA);
        let uplinks = dispatcher.phone_home(&waiting, Duration::ZERO).await?;
        tokio::time::sleep(SETTLE).await;
        ensure!(uplinks.iter().all(|uplink| !uplink.is_finished()), "not every device waits");
        let with = dispatcher.process.memory_kb(DATA);
        let (began, cpu) = (Instant::now(), cpu_s(&dispatcher.process));
        let ((), last) =
            tokio::try_join!(dispatcher.relay(&waiting), dispatcher.until_dispatched(0, &waiting))?;
        let registered_s = began.elapsed().as_secs_f64();
        let cpu_waiting = cpu_s(&dispatcher.process) - cpu;

        let pressed = fleet(DEVICES);
        dispatcher.relay(&pressed).await?;
        let (began, cpu) = (Instant::now(), cpu_s(&dispatcher.process));
        tokio::try_join!(
            dispatcher.phone_home(&pressed, PRESSED_WITHIN / DEVICES),
            dispatcher.until_dispatched(last, &pressed)
        )?;
        let pressed_s = began.elapsed().as_secs_f64();
        let cpu_pressed = cpu_s(&dispatcher.process) - cpu;
        dispatcher.end().await;

        let bare = Bare::start(DEVICES, SMALL_BUFFERS, Camera::Video).await?;
        let each = |with: u64, before: u64| (with as f64 - before as f64) / f64::from(DEVICES);
        let bare_kb = each(bare.process.memory_kb(DATA), bare.empty_kb[0]);
        let connection_ms = cpu_s(&bare.process) * 1000.0 / f64::from(DEVICES);
        let floor_ms = connection_ms + derivation_ms();
        let ms = |cpu: f64| cpu * 1000.0 / f64::from(DEVICES);
        Ok(vec![
            Figure::with_bar(
                format!(
                    "{DEVICES} devices pressed within {} s, until all are dispatched",
                    PRESSED_WITHIN.as_secs()
                ),
                pressed_s,
                "s",
                BAR_DISPATCHED_S,
            ),
            Figure::plain("CPU of the dispatcher for each of them", ms(cpu_pressed), "ms")
                .against("a TLS connection and a key derivation", floor_ms),
            Figure::plain(
                format!("{DEVICES} waiting devices registered, until all are dispatched"),
                registered_s,
                "s",
            ),
            Figure::plain("CPU of the dispatcher for each of them", ms(cpu_waiting), "ms")
                .against("a key derivation", derivation_ms()),
            Figure::with_bar("each of the waiting devices", each(with, before), "kB", BAR_WAITING_KB)
                .against("bare tokio-rustls", bare_kb),
        ])
    })
}

fn scripted(number: u32) -> Arc<Device> {
    let [a, b, c, d] = number.to_be_bytes();
    let serial = SerialNumber::new([2, 0xD1, a, b, c, d]);
    Device::new(serial, Oak::new([0x0A, 0x1B, a, b, c, d]), PASSWORD, Quirks::default())
}

/// CPU of one derivation, here and now.
fn derivation_ms() -> f64 {
    const ROUNDS: u32 = 50;
    let device = scripted(0);
    let own = || rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let began = own();
    for _ in 0..ROUNDS {
        std::hint::black_box(device.oak.proof_key(device.serial));
    }
    let ended = own();
    let ns = (ended.tv_sec - began.tv_sec) * 1_000_000_000 + ended.tv_nsec - began.tv_nsec;
    ns as f64 / 1e6 / f64::from(ROUNDS)
}

struct Dispatcher {
    process: Process,
    external: String,
    trust: String,
    account: ApiClient,
    _folder: Folder,
}

impl Dispatcher {
    async fn start() -> anyhow::Result<Dispatcher> {
        let folder = Folder::new();
        let free = || anyhow::Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string());
        let (external, api) = (free()?, free()?);
        let (file, data) = (folder.join("homing.toml"), folder.join("dispatcher"));
        let config = format!(
            "[log]\nfilter = 'warn'\n[dispatcher]\nexternal = '{external}'\napi = '{api}'\nnames = ['127.0.0.1']\n\
             data = '{}'\nconnections_per_address = {}\n\
             registrations_per_minute = {}\n",
            data.display(),
            2 * DEVICES,
            2 * DEVICES
        );
        fs::write(&file, config)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        let add = ["dispatcher", "account", "add", "bench", "--config"];
        let (password, process, api) = tokio::task::spawn_blocking(move || {
            let password = output(Command::new(homing()).args(add).arg(&file));
            let mut command = Command::new(homing());
            let process =
                Process::spawn("homing dispatcher", command.args(["dispatcher", "--config"]).arg(&file));
            wait_for("the dispatcher listens", seconds(20), || std::net::TcpStream::connect(&api).map(drop));
            (password, process, api)
        })
        .await?;
        let trust = fs::read_to_string(data.join("dispatcher-ca.pem"))?;
        let password = Secret::new(String::from_utf8(password)?.trim());
        let auth = Auth::Basic(Credentials::new("bench", password));
        let account = ApiClient::new("dispatcher", &format!("https://{api}"), &auth, Some(&trust))?;
        Ok(Dispatcher { process, external, trust, account, _folder: folder })
    }

    /// Step 4 for each, one after the other.
    async fn phone_home(
        &self,
        devices: &[Arc<Device>],
        apart: Duration,
    ) -> anyhow::Result<Vec<JoinHandle<EndReason>>> {
        let (address, stop) = (format!("https://{}/", self.external), CancellationToken::new());
        let (mut uplinks, mut presses) =
            (Vec::new(), tokio::time::interval(apart.max(Duration::from_millis(1))));
        for device in devices {
            presses.tick().await;
            uplinks.push(device.dial(&address, &self.trust, &stop).await?);
        }
        Ok(uplinks)
    }

    /// Step 2 for each, a few at a time.
    async fn relay(&self, devices: &[Arc<Device>]) -> anyhow::Result<()> {
        let relay = async |device: &Arc<Device>| {
            let new = NewRegistration {
                oak: device.oak.clone(),
                user: USER.into(),
                password: PASSWORD.into(),
                servers: vec!["127.0.0.1:9".into()],
                trust_anchor: self.trust.clone(),
                voucher_key: Default::default(),
            };
            let path = format!("/api/v1/registrations/{}", device.serial);
            self.account.send::<_, Registration>(Method::PUT, &path, &new).await.map(drop)
        };
        let mut relayed = futures_util::stream::iter(devices).map(relay).buffer_unordered(RELAYED_AT_ONCE);
        while let Some(relayed) = relayed.next().await {
            relayed.context("a registration")?;
        }
        Ok(())
    }

    /// Follows the changes until all are dispatched; the last change's number.
    async fn until_dispatched(&self, after: u64, devices: &[Arc<Device>]) -> anyhow::Result<u64> {
        let mut left: HashSet<SerialNumber> = devices.iter().map(|device| device.serial).collect();
        let (mut last, wait) = (after, Duration::from_secs(25));
        let follow = async {
            while !left.is_empty() {
                let path = format!("/api/v1/changes?after={last}&wait_s={}", wait.as_secs());
                let changes: Changes = self.account.wait(&path, wait).await?;
                last = changes.last;
                for told in changes.changes {
                    ensure!(told.problem.is_none(), "{}: {:?}", told.serial, told.problem);
                    if told.state == RegistrationState::Dispatched {
                        left.remove(&told.serial);
                    }
                }
            }
            Ok(last)
        };
        tokio::time::timeout(DEADLINE, follow).await.context("until all are dispatched")?
    }

    async fn end(mut self) {
        let ended = move || self.process.terminate(Duration::from_secs(15));
        tokio::task::spawn_blocking(ended).await.expect("it ends");
    }
}
