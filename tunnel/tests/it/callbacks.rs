//! Call-backs: a VMS that is asked and told, and one that is away.

use crate::{
    device::Device,
    world::{World, within},
};
use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
};
use homing_base::Stop;
use homing_tunnel::Unanswered;
use http::{Request, StatusCode};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use tokio::sync::watch;

/// The VMS.
#[derive(Clone)]
struct Vms {
    address: SocketAddr,
    /// `METHOD query server-id`, in the order in which they came.
    calls: Arc<watch::Sender<Vec<String>>>,
    /// What client_hello is answered with.
    hello: Arc<Mutex<(StatusCode, &'static str)>>,
}

impl Vms {
    /// It has an address, and does not listen yet.
    async fn new() -> Vms {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        Vms {
            address: listener.local_addr().unwrap(),
            calls: Arc::default(),
            hello: Arc::new(Mutex::new((StatusCode::NO_CONTENT, ""))),
        }
    }

    fn start(&self) -> Stop {
        let stop = Stop::new();
        let listener = homing_base::listen::bind(self.address, "the test's VMS").unwrap();
        let router = Router::new().fallback(called).with_state(self.clone());
        stop.spawn(homing_base::http::serve(listener, router, None, stop.clone()));
        stop
    }

    /// A tunnel server that calls it.
    async fn world(&self, unanswered: Unanswered) -> World {
        let url = format!("http://{}/api/notify?tenant=shop", self.address);
        World::with(true, move |config| {
            config.callbacks.urls = vec![url.clone()];
            config.callbacks.unanswered = unanswered;
            config.callbacks.retry_first_ms = 50;
            config.callbacks.retry_longest_ms = 200;
        })
        .await
    }

    async fn until(&self, what: &str) -> Vec<String> {
        let mut calls = self.calls.subscribe();
        let found = within(calls.wait_for(|calls| calls.iter().any(|call| call.contains(what)))).await;
        found.unwrap().clone()
    }
}

async fn called(State(vms): State<Vms>, request: Request<axum::body::Body>) -> Response {
    let id = request.headers()["x-stserver-id"].to_str().unwrap();
    let query = request.uri().query().unwrap();
    assert!(request.uri().path() == "/api/notify" && query.starts_with("tenant=shop&"), "{query}");
    let call = format!("{} {} {id}", request.method(), query.trim_start_matches("tenant=shop&"));
    let is_hello = call.contains("client_hello");
    vms.calls.send_modify(|calls| calls.push(call));
    let (status, location) = match is_hello {
        true => *vms.hello.lock().unwrap(),
        false => (StatusCode::OK, ""),
    };
    (status, [("location", location)]).into_response()
}

/// Goal: the whole story of a device as a VMS hears it, in order, each call with the server's name.
#[tokio::test]
async fn a_vms_is_asked_and_told() {
    let vms = Vms::new().await;
    let stop = vms.start();
    let mut world = vms.world(Unanswered::Accept).await;
    vms.until("server_up").await;
    world.ready("00408C702009").await;
    let calls = vms.until("client_connect").await;
    assert_eq!(calls[0], "PUT action=server_up sts-1");
    assert_eq!(calls[1], "HEAD action=client_hello&client_id=4.00408c702009 sts-1");
    let connect = calls.last().unwrap();
    let begin = "PUT action=client_connect&client_id=4.00408c702009&client_srcaddr=127.0.0.1%3A";
    assert!(connect.starts_with(begin) && connect.ends_with(" sts-1"), "{connect}");
    world.site.stop();
    let calls = vms.until("client_disconnect").await;
    assert_eq!(calls.last().unwrap(), "DELETE action=client_disconnect&client_id=4.00408c702009 sts-1");
    world.stop_tunnel().await;
    assert_eq!(vms.until("server_down").await.last().unwrap(), "DELETE action=server_down sts-1");
    stop.stop();
}

/// Goal: what the VMS says about a device that comes is done.
#[tokio::test]
async fn the_vms_decides_who_is_let_in_and_where_it_goes() {
    let vms = Vms::new().await;
    let stop = vms.start();
    let world = vms.world(Unanswered::Accept).await;
    let device = Device::new("00408C702009");
    world.register(&device).await;
    world.dispatcher.vouch(device.serial, device.fingerprint).await;
    *vms.hello.lock().unwrap() = (StatusCode::FORBIDDEN, "");
    let refused = within(device.dial(world.external, &world.trust_anchor())).await.unwrap_err();
    assert!(refused.to_string().contains("VMS"), "{refused}");
    assert!(!world.handle.device(device.serial).unwrap().connected);
    assert_eq!(world.metric("homing_tunnel_refused_total{reason=\"by-the-vms\"}"), 1.0);

    *vms.hello.lock().unwrap() = (StatusCode::FOUND, "sts2.example:8443");
    world.connect(&device).await;
    let sent = world.device_until(device.serial, |device| device.moving.is_some()).await;
    assert_eq!(sent.moving.unwrap().servers, ["sts2.example:8443"]);
    assert!(sent.connected, "until it is there");
    stop.stop();
}

/// Goal: a VMS that is away keeps no device out, unless it is to, and hears what is when it is back.
#[tokio::test]
async fn a_vms_that_is_away_hears_how_things_are_when_it_is_back() {
    let vms = Vms::new().await;
    let world = vms.world(Unanswered::Accept).await;
    world.ready("00408C702009").await;
    let (_, gone) = world.ready("00408C702010").await;
    world.api(http::Method::DELETE, "/api/v1/devices/00408C702010", None).await;
    within(gone).await.unwrap();
    let stop = vms.start();
    let calls = vms.until("client_connect").await;
    assert_eq!(calls[0], "PUT action=server_up sts-1");
    assert!(!calls.iter().any(|call| call.contains("00408c702010")), "{calls:?}");
    // Away for a moment: it may have forgotten, and is told again that the server is up.
    assert!(stop.drain(crate::world::DEADLINE).await);
    world.site.stop();
    vms.calls.send_modify(Vec::clear);
    world.device_until("00408C702009".parse().unwrap(), |device| !device.connected).await;
    let stop = vms.start();
    let calls = vms.until("client_disconnect").await;
    assert!(calls[0].contains("server_up") || calls.len() == 1, "{calls:?}");
    stop.stop();

    let strict = Vms::new().await;
    let world = strict.world(Unanswered::Refuse).await;
    let device = Device::new("00408C702009");
    world.register(&device).await;
    world.dispatcher.vouch(device.serial, device.fingerprint).await;
    within(device.dial(world.external, &world.trust_anchor())).await.expect_err("nobody has said yes");
}
