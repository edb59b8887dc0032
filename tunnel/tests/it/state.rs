//! What the API says of a device is true now, and what happened to it stays known.

use crate::world::{World, within};
use bytes::Bytes;
use homing_protocol::{SerialNumber, Step, api::tunnel};
use http::{Method, Request, StatusCode};
use std::time::{Duration, Instant};

/// Short keepalive periods: 200 ms, dead after 1 s.
async fn quick() -> World {
    World::with(true, |config| {
        config.limits.ping_interval_ms = 200;
        config.limits.dead_after_ms = 1000;
    })
    .await
}

impl World {
    /// Asks for a device until it is as it should be: figures change without events.
    async fn figures_until(
        &self,
        serial: SerialNumber,
        condition: impl Fn(&tunnel::Device) -> bool,
    ) -> tunnel::Device {
        within(async {
            let mut ticks = tokio::time::interval(Duration::from_millis(10));
            loop {
                ticks.tick().await;
                let device = self.handle.device(serial).unwrap();
                if condition(&device) {
                    return device;
                }
            }
        })
        .await
    }

    async fn history(&self, serial: SerialNumber) -> Vec<tunnel::Connection> {
        let (status, answer) =
            self.api(Method::GET, &format!("/api/v1/devices/{serial}/history"), None).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        serde_json::from_value(answer).unwrap()
    }
}

/// Goal: round-trip time, bytes and rates are there within a keepalive period, and rates fall when nothing moves.
#[tokio::test]
async fn step_7_tunnel_figures_are_true_within_a_keepalive_period() {
    let world = quick().await;
    let (device, _serving) = world.ready("00408C702009").await;
    let began = Instant::now();
    let connected = world.figures_until(device.serial, |device| device.rtt_ms.is_some()).await;
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(connected.uplinks.len(), 1);
    let uplink = &connected.uplinks[0];
    assert_eq!(Some(&uplink.peer), connected.peer.as_ref());
    assert!(uplink.dialled.as_ref().is_some_and(|dialled| *dialled == world.external.to_string()));
    assert!(uplink.rtt_ms.is_some_and(|rtt| (1..1000).contains(&rtt)));

    let request = Request::builder().uri("/endless").body(Bytes::new()).unwrap();
    let mut body = within(world.handle.request(device.serial, request)).await.unwrap().into_body();
    let mut read = 0;
    while read < 1 << 20 {
        read += within(body.next()).await.unwrap().unwrap().len();
    }
    let busy = world.figures_until(device.serial, |device| device.bps_in > 1_000_000).await;
    assert!(busy.bytes_in >= 1 << 20, "{busy:?}");
    assert_eq!(busy.uplinks[0].streams, 1);
    let (_, all) = world.api(Method::GET, "/api/v1/figures", None).await;
    assert_eq!(all.as_array().map(Vec::len), Some(1));
    let figures: tunnel::Figures = serde_json::from_value(all[0].clone()).unwrap();
    assert!(figures.serial == device.serial && figures.bytes_in >= busy.bytes_in && figures.rtt_ms.is_some());

    drop(body);
    let idle = world.figures_until(device.serial, |device| device.bps_in < 100_000).await;
    assert!(idle.connected && idle.uplinks[0].streams == 0);
    assert!(world.metric("homing_tunnel_round_trip_seconds_count") >= 1.0);
}

/// Goal: a peer that goes without a word is noticed, with the reason, and that stays known after it has come back and
/// after a restart.
#[tokio::test]
async fn step_7_tunnel_a_dead_peer_without_fin_is_noticed_and_remembered() {
    let mut world = quick().await;
    let (device, serving) = world.ready("00408C702009").await;
    // A newer uplink whose device never answers: it is dialled, and nobody serves it.
    let silent = within(device.dial(world.external, &world.trust_anchor())).await.unwrap();
    within(serving).await.unwrap();
    let began = Instant::now();
    let gone = world.device_until(device.serial, |device| !device.connected).await;
    let noticed = began.elapsed();
    assert!(noticed < Duration::from_millis(1000 + 500), "{noticed:?}");
    assert_eq!((gone.bps_in, gone.rtt_ms, gone.uplinks.len()), (0, None, 0));
    let lost = gone.last_problem.unwrap();
    assert_eq!((lost.problem.code.as_str(), lost.problem.step), ("uplink-lost", Some(Step::Tunnel)));
    assert!(gone.since.unwrap() <= lost.at);
    drop(silent);

    let _serving = world.connect(&device).await;
    let back = world.handle.device(device.serial).unwrap();
    assert!(back.problem.is_none() && back.last_problem.is_some(), "{back:?}");
    assert_eq!(world.metric("homing_tunnel_uplinks_ended_total{reason=\"silent\"}"), 1.0);

    let told = |history: &[tunnel::Connection]| {
        let code = |connection: &tunnel::Connection| connection.code.clone().unwrap_or_default();
        history.iter().map(code).collect::<Vec<_>>()
    };
    let history = world.history(device.serial).await;
    assert_eq!(told(&history), ["", "silent", "replaced"], "{history:?}");
    assert!(history[1].until.unwrap() >= history[1].since && history[0].until.is_none());
    assert!(history[2].bytes_in > 0 && history[2].bytes_out > 0);

    world.restart().await;
    assert_eq!(told(&world.history(device.serial).await), ["server-stopped", "silent", "replaced"]);
    let known = world.handle.device(device.serial).unwrap();
    assert!(known.since.is_some(), "when it was last connected");
    assert_eq!(known.last_problem, back.last_problem);
}

/// Goal: what nobody has registered has no history, and what is released leaves none.
#[tokio::test]
async fn the_history_goes_with_the_registration() {
    let world = World::new().await;
    let (status, _) = world.api(Method::GET, "/api/v1/devices/00408C702009/history", None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (device, _serving) = world.ready("00408C702009").await;
    assert_eq!(world.history(device.serial).await.len(), 1);
    let path = "/api/v1/devices/00408C702009";
    assert_eq!(world.api(Method::DELETE, path, None).await.0, StatusCode::NO_CONTENT);
    world.register(&device).await;
    assert!(world.history(device.serial).await.is_empty());
}
