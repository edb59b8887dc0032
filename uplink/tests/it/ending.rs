//! How uplinks end and come back: silence, stops, `Keep`.

use crate::world::*;
use homing_uplink::*;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const PING: Duration = Duration::from_millis(50);
const SILENCE: Duration = Duration::from_millis(250);

/// A device that was admitted, and the server's end; neither runs.
async fn idle_ends(server: &mut Server, carrier: Carrier) -> (DialedUplink, Uplink, UplinkDriver) {
    let dialer = server.dialer(carrier, &Identity::device("00408C702009"));
    let dialing = server.tasks.spawn(async move { dialer.dial().await });
    let settings = UplinkSettings { ping_interval: PING, dead_after: SILENCE, ..Default::default() };
    let (uplink, driver) = server.next().await.accept(settings).await.expect("an uplink");
    (within("an uplink", dialing).await.expect("no panic").expect("an uplink"), uplink, driver)
}

fn serve_settings() -> ServeSettings {
    ServeSettings { silence: SILENCE, ..Default::default() }
}

/// Goal: a device that fell silent is noticed by the server's pings, and its requests fail with the reason.
#[tokio::test]
async fn the_server_notices_a_silent_device() {
    let mut server = Server::start().await;
    for carrier in [Carrier::Native, Carrier::WebSocket] {
        let (silent, uplink, driver) = idle_ends(&mut server, carrier).await;
        let running = server.tasks.spawn(driver.run(CancellationToken::new()));
        let error = within("the end", uplink.request(get("/hello"))).await.expect_err("silence");
        assert_eq!(error, RequestError::Ended(EndReason::Silent { seconds: 0 }));
        assert_eq!(within("the end", uplink.closed()).await, EndReason::Silent { seconds: 0 });
        assert_eq!(running.await.expect("no panic"), EndReason::Silent { seconds: 0 });
        let error = uplink.request(get("/hello")).await.expect_err("ended");
        assert_eq!(error, RequestError::Ended(EndReason::Silent { seconds: 0 }));
        drop(silent);
    }
    server.end().await;
}

/// Goal: a device whose server sends nothing gives it up.
#[tokio::test]
async fn the_device_notices_a_silent_server() {
    let mut server = Server::start().await;
    for carrier in [Carrier::Native, Carrier::WebSocket] {
        let (dialed, _uplink, silent) = idle_ends(&mut server, carrier).await;
        let serving = dialed.serve(Arc::new(answer), serve_settings(), CancellationToken::new());
        assert_eq!(within("the end", serving).await, EndReason::Silent { seconds: 0 });
        drop(silent);
    }
    server.end().await;
}

/// Goal: pings alone keep an idle uplink up, and measure it.
#[tokio::test]
async fn pings_keep_an_idle_uplink_up() {
    let mut server = Server::start().await;
    let (dialed, uplink, driver) = idle_ends(&mut server, Carrier::Native).await;
    let stop = CancellationToken::new();
    let device =
        server.tasks.spawn(dialed.serve(Arc::new(answer), serve_settings(), CancellationToken::new()));
    let running = server.tasks.spawn(driver.run(stop.clone()));
    tokio::time::timeout(SILENCE * 4, uplink.closed()).await.expect_err("it stays up");
    assert!(uplink.stats().rtt.is_some_and(|rtt| rtt < SILENCE));
    stop.cancel();
    assert_eq!(within("the end", running).await.expect("no panic"), EndReason::Stopped);
    assert_eq!(within("the end", device).await.expect("no panic"), EndReason::PeerClosed);
    server.end().await;
}

/// Goal: a device that stops tells its server, and lets running requests finish.
#[tokio::test]
async fn a_device_that_stops_drains() {
    let mut server = Server::start().await;
    let pair = server.default_pair(Carrier::Native).await;
    let response = pair.uplink.request(get("/hello")).await.expect("an answer");
    pair.stop_device.cancel();
    assert_eq!(response.into_body().collect(100).await.expect("a body"), "hello");
    assert_eq!(within("the end", pair.device).await.expect("no panic"), EndReason::Stopped);
    assert_eq!(within("the end", pair.server).await.expect("no panic"), EndReason::PeerClosed);
    server.end().await;
}

/// Goal: requests that never end do not outlive their uplink.
#[tokio::test]
async fn no_task_is_left_when_an_uplink_ends_under_its_requests() {
    let mut server = Server::start().await;
    for carrier in [Carrier::Native, Carrier::WebSocket] {
        let pair = server.default_pair(carrier).await;
        let uplink = pair.uplink.clone();
        let silent = server.tasks.spawn(async move { uplink.request(get("/silent")).await.map(drop) });
        let mut endless = pair.uplink.request(get("/endless")).await.expect("an answer").into_body();
        within("a chunk", endless.next()).await.expect("endless").expect("a chunk");
        pair.end().await;
        let error = within("the end", silent).await.expect("no panic").expect_err("ended");
        assert!(
            matches!(error, RequestError::Ended(EndReason::Stopped) | RequestError::Broken(_)),
            "{error}"
        );
        while let Some(Ok(_)) = within("the end of the body", endless.next()).await {}
    }
    server.end().await;
}

async fn reach(
    states: &mut watch::Receiver<UplinkState>,
    what: &str,
    is: impl Fn(&UplinkState) -> bool,
) -> UplinkState {
    within(what, states.wait_for(|state| is(state))).await.expect("it runs").clone()
}

/// Goal: an uplink comes back by itself after a refusal and after a cut, and says why it was away.
#[tokio::test]
async fn keep_comes_back_after_a_refusal_and_after_a_cut() {
    let mut server = Server::start().await;
    let device = Identity::device("00408C702009");
    let (mut keep, mut states) = Keep::new(server.dialer(Carrier::Native, &device), Arc::new(answer));
    let millisecond = Duration::from_millis(1);
    keep.backoff = BackoffSettings { first: millisecond, max: 10 * millisecond, ..Default::default() };
    let stop = CancellationToken::new();
    let running = server.tasks.spawn(keep.run(stop.clone()));

    server.next().await.refuse(403, "not yet").await;
    let state = reach(&mut states, "the refusal", |state| state.error().is_some()).await;
    assert!(state.error().is_some_and(|error| error.contains("not yet")), "{state:?}");

    for _ in 0..2 {
        let (uplink, driver) = server.next().await.accept(Default::default()).await.expect("an uplink");
        let driving = server.tasks.spawn(driver.run(CancellationToken::new()));
        reach(&mut states, "the uplink", UplinkState::is_connected).await;
        within("an answer", uplink.request(get("/hello"))).await.expect("an answer");
        uplink.close(EndReason::Replaced);
        assert_eq!(driving.await.expect("no panic"), EndReason::Replaced);
        let state = reach(&mut states, "the cut", |state| state.error().is_some()).await;
        assert!(state.error().is_some_and(|error| error.contains("closed")), "{state:?}");
    }
    stop.cancel();
    within("the end", running).await.expect("no panic");
    server.end().await;
}

/// Goal: a long wait is cut short by a wake-up and by a stop.
#[tokio::test]
async fn a_waiting_keep_can_be_woken_and_stopped() {
    let mut server = Server::start().await;
    let device = Identity::device("00408C702009");
    let (mut keep, mut states) = Keep::new(server.dialer(Carrier::Native, &device), Arc::new(answer));
    let hour = Duration::from_secs(3600);
    keep.backoff = BackoffSettings { first: hour, max: hour, ..Default::default() };
    let (wake, stop) = (Arc::clone(&keep.wake), CancellationToken::new());
    let running = server.tasks.spawn(keep.run(stop.clone()));
    for _ in 0..2 {
        server.next().await.refuse(503, "busy").await;
        reach(&mut states, "the wait", |state| {
            matches!(state, UplinkState::Offline { retry_in: Some(_), .. })
        })
        .await;
        wake.notify_one();
    }
    server.next().await.refuse(503, "busy").await;
    reach(&mut states, "the wait", |state| matches!(state, UplinkState::Offline { retry_in: Some(_), .. }))
        .await;
    stop.cancel();
    within("the end", running).await.expect("no panic");
    server.end().await;
}

/// Goal: a server that asks for time gets it, and not more than the longest interval whatever it asks for.
#[tokio::test]
async fn keep_comes_back_when_the_server_wants_it_to() {
    let mut server = Server::start().await;
    let device = Identity::device("00408C702009");
    let (mut keep, mut states) = Keep::new(server.dialer(Carrier::Native, &device), Arc::new(answer));
    let (millisecond, longest) = (Duration::from_millis(1), Duration::from_secs(30));
    keep.backoff = BackoffSettings { first: millisecond, max: longest, ..Default::default() };
    let (wake, stop) = (Arc::clone(&keep.wake), CancellationToken::new());
    let running = server.tasks.spawn(keep.run(stop.clone()));
    for (asked, least, most) in [(4, 4, 8), (100_000, 15, 30)] {
        let later = Later { retry_after: Duration::from_secs(asked), elsewhere: vec!["b:1".to_owned()] };
        server.next().await.refuse_for_now("about to stop", &later).await;
        let waits = |state: &UplinkState| matches!(state, UplinkState::Offline { retry_in: Some(_), .. });
        let UplinkState::Offline { retry_in: Some(waits), error } =
            reach(&mut states, "the wait", waits).await
        else {
            unreachable!("it waits")
        };
        assert!((least..=most).contains(&waits.as_secs()), "{waits:?} where {asked} s were asked for");
        assert!(error.is_some_and(|error| error.contains("503") && error.contains("about to stop")));
        wake.notify_one();
    }
    stop.cancel();
    within("the end", running).await.expect("no panic");
    server.end().await;
}

/// Goal: two uplinks in parallel; losing one server loses nothing of the other.
#[tokio::test]
async fn parallel_uplinks_do_not_know_of_each_other() {
    let (mut first, mut second) = (Server::start().await, Server::start().await);
    let device = Identity::device("00408C702009");
    let (stop, mut uplinks) = (CancellationToken::new(), Vec::new());
    for server in [&mut first, &mut second] {
        let (keep, _) = Keep::new(server.dialer(Carrier::WebSocket, &device), Arc::new(answer));
        server.tasks.spawn(keep.run(stop.clone()));
        let (uplink, driver) = server.next().await.accept(Default::default()).await.expect("an uplink");
        server.tasks.spawn(driver.run(stop.clone()));
        uplinks.push(uplink);
    }
    uplinks[0].close(EndReason::Stopped);
    within("the end", uplinks[0].closed()).await;
    within("an answer", uplinks[1].request(get("/hello"))).await.expect("an answer");
    stop.cancel();
    first.end().await;
    second.end().await;
}
