//! Places with one Internet connection: a limit that devices share, and a warning before it is full.

use crate::{
    device::Device,
    world::{World, within},
};
use bytes::Bytes;
use homing_protocol::api::tunnel::{SITE_DEVICES_MAX, Site, SiteState};
use homing_tunnel::Event;
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Quick looks: 100 ms.
async fn quick() -> World {
    World::with(true, |config| {
        config.limits.ping_interval_ms = 200;
        config.bandwidth.warn_after_ms = 500;
    })
    .await
}

/// Takes an endless answer of a device for as long as the test runs; how much, is in the device's figures.
fn take(world: &World, device: &Device) {
    let (handle, serial) = (world.handle.clone(), device.serial);
    world.site.spawn(async move {
        let request = Request::builder().uri("/endless").body(Bytes::new()).unwrap();
        let mut body = handle.request(serial, request).await.unwrap().into_body();
        while body.next().await.is_some_and(|piece| piece.is_ok()) {}
    });
}

impl World {
    async fn site(&self, name: &str, site: Value) {
        let (status, answer) = self.api(Method::PUT, &format!("/api/v1/sites/{name}"), Some(site)).await;
        assert_eq!(status, StatusCode::NO_CONTENT, "{answer}");
    }

    fn received(&self, device: &Device) -> u64 {
        self.handle.device(device.serial).unwrap().bytes_in
    }

    /// Mbit/s of these devices over some seconds.
    async fn rates(&self, devices: &[&Device], over: Duration) -> Vec<f64> {
        let began = Instant::now();
        let before: Vec<u64> = devices.iter().map(|device| self.received(device)).collect();
        let mut ticks = tokio::time::interval(over);
        ticks.tick().await;
        ticks.tick().await;
        let elapsed = began.elapsed().as_secs_f64();
        let after = devices.iter().map(|device| self.received(device));
        after.zip(before).map(|(after, before)| (after - before) as f64 * 8.0 / 1e6 / elapsed).collect()
    }
}

/// Goal: two devices that want more than the limit get half each of what a small one leaves, the small one waits for
/// nothing, a device elsewhere is not slowed, and lifting the limit is felt at once.
#[tokio::test]
async fn a_sites_limit_is_shared_fairly_and_slows_nobody_else() {
    let world = quick().await;
    let (one, _one) = world.ready("00408C000001").await;
    let (two, _two) = world.ready("00408C000002").await;
    let (small, _small) = world.ready("00408C000003").await;
    let (elsewhere, _elsewhere) = world.ready("00408C000004").await;
    let devices = ["00408C000001", "00408C000002", "00408C000003"];
    world.site("Shop", json!({"limit_mbit": 16.0, "devices": devices})).await;
    assert_eq!(world.handle.device(one.serial).unwrap().site.as_deref(), Some("Shop"));
    for device in [&one, &two, &elsewhere] {
        take(&world, device);
    }
    // Until the windows, a megabyte each, are filled: from then on the devices feel the limit.
    within(async {
        let mut ticks = tokio::time::interval(Duration::from_millis(50));
        while [&one, &two].iter().any(|device| world.received(device) < 1_500_000) {
            ticks.tick().await;
        }
    })
    .await;
    let asking = async {
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            let asked = Instant::now();
            let request = Request::builder().uri("/headers").body(Bytes::new()).unwrap();
            let response = within(world.handle.request(small.serial, request)).await.unwrap();
            within(response.into_body().collect(4096)).await.unwrap();
            slowest = slowest.max(asked.elapsed());
        }
        slowest
    };
    let big = [&one, &two, &elsewhere];
    let (rates, slowest) = tokio::join!(world.rates(&big, Duration::from_secs(3)), asking);
    let [first, second, free] = rates[..] else { panic!() };
    assert!((6.0..9.5).contains(&first) && (6.0..9.5).contains(&second), "half of 16 Mbit/s each: {rates:?}");
    assert!((first - second).abs() < 1.0, "fair: {rates:?}");
    assert!(first + second < 17.5, "{rates:?}");
    assert!(free > 50.0, "elsewhere: {rates:?}");
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");

    world.site("Shop", json!({"devices": devices})).await;
    let rates = world.rates(&[&one], Duration::from_secs(1)).await;
    assert!(rates[0] > 30.0, "the limit was lifted: {rates:?}");
}

/// Goal: a site that sends nearly all that its connection carries is told once, by an event, in the API and as a metric,
/// and again when it has room; sites outlast a restart and go where their devices are told to be.
#[tokio::test]
async fn a_site_that_is_nearly_full_is_told_and_so_is_one_that_has_room_again() {
    let mut world = quick().await;
    let (device, _serving) = world.ready("00408C000001").await;
    let site = json!({"upstream_mbit": 2.0, "limit_mbit": 2.0, "devices": ["00408C000001", "00408C0000FF"]});
    world.site("Shop", site.clone()).await;
    let mut events = world.handle.subscribe();
    let mut until = async |state: SiteState| -> Site {
        within(async {
            loop {
                if let Some(Event::Site(site)) = events.next().await
                    && site.state == state
                {
                    return (*site).clone();
                }
            }
        })
        .await
    };
    take(&world, &device);
    let full = until(SiteState::Full).await;
    assert!(full.minute_bps >= 1_600_000, "{full:?}");
    assert_eq!(world.metric("homing_tunnel_sites_full"), 1.0);
    let (_, all) = world.api(Method::GET, "/api/v1/sites", None).await;
    assert_eq!((&all[0]["state"], &all[0]["warn_percent"]), (&json!("full"), &json!(80)));
    // A better contract.
    world.site("Shop", json!({"upstream_mbit": 50.0, "limit_mbit": 2.0, "devices": ["00408C000001"]})).await;
    until(SiteState::Room).await;
    assert_eq!(world.metric("homing_tunnel_sites_full"), 0.0);

    // One device, one site.
    world.site("Depot", json!({"devices": ["00408C000001"]})).await;
    world.restart().await;
    let (_, all) = world.api(Method::GET, "/api/v1/sites", None).await;
    assert_eq!((&all[0]["name"], &all[0]["devices"]), (&json!("Depot"), &json!(["00408C000001"])));
    assert_eq!(
        (&all[1]["name"], &all[1]["devices"], &all[1]["limit_mbit"]),
        (&json!("Shop"), &json!([]), &json!(2.0))
    );
    for (name, site) in [("Shop", json!({"limit_mbit": 0.0})), ("%0A", json!({}))] {
        let (status, _) = world.api(Method::PUT, &format!("/api/v1/sites/{name}"), Some(site)).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
    }
    assert_eq!(world.api(Method::DELETE, "/api/v1/sites/Depot", None).await.0, StatusCode::NO_CONTENT);
    assert_eq!(world.api(Method::DELETE, "/api/v1/sites/Depot", None).await.0, StatusCode::NOT_FOUND);
    assert_eq!(world.handle.device(device.serial).unwrap().site, None);
}

/// Goal: the largest site that may be entered can be entered, and a larger one is refused in words.
#[tokio::test]
async fn a_site_may_be_as_large_as_is_said() {
    let world = World::new().await;
    let site = |count: usize| {
        let serials: Vec<String> = (0..count).map(|number| format!("00408C{number:06X}")).collect();
        json!({"upstream_mbit": 10_000.0, "limit_mbit": 8_000.0, "devices": serials})
    };
    world.site("Stadium", site(SITE_DEVICES_MAX)).await;
    let (_, all) = world.api(Method::GET, "/api/v1/sites", None).await;
    assert_eq!(all[0]["devices"].as_array().unwrap().len(), SITE_DEVICES_MAX);
    let more = Some(site(SITE_DEVICES_MAX + 1));
    let (status, answer) = world.api(Method::PUT, "/api/v1/sites/Stadium", more).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer["error"]["message"].as_str().unwrap().contains("4,000 devices at most"), "{answer}");
}
