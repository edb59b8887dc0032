//! Scenarios A and C with the real dispatcher and the real site agent: steps 1 to 7, nothing scripted.
//!
//! Behind the agent stands a camera of a few lines; what it says is the recording server's business.

use crate::world::{code, send_from, within};
use bytes::Bytes;
use homing_agent::{CameraConfig, DispatcherConfig};
use homing_base::{Ops, Stop, Workers, client::basic};
use homing_protocol::{Secret, SerialNumber, Step, api::tunnel::RelayState, secret::Credentials};
use homing_tunnel::{Config, Event, TunnelHandle};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

const SERIAL: &str = "00408C702009";
const OAK: &str = "0A1B-2C3D-4E5F";

/// Everything from the camera to the tunnel server's internal address.
struct Whole {
    _folder: tempfile::TempDir,
    role: Stop,
    internal: SocketAddr,
    handle: TunnelHandle,
    press_url: SocketAddr,
    password: Secret,
    running: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Whole {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (role, ops, workers) = (Stop::new(), Ops::new(), Workers::current());
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));

        let config = homing_dispatcher::Config {
            external: nowhere,
            api: nowhere,
            data: folder.path().join("dispatcher"),
            ..homing_dispatcher::Config::default()
        };
        let account = homing_dispatcher::accounts::create(&config.data, "shop").await.unwrap();
        let dispatcher = homing_dispatcher::bind(config, &ops, &workers).await.unwrap();
        let anchor = dispatcher.trust_anchor().unwrap();

        let agent = homing_agent::bind(homing_agent::Config {
            data: folder.path().join("agent"),
            serial: Some(SERIAL.parse().unwrap()),
            oak: Some(OAK.parse().unwrap()),
            retry_first_ms: 20,
            retry_max_ms: 200,
            dispatchers: vec![DispatcherConfig {
                address: dispatcher.external_addr().to_string(),
                trust_anchor: anchor.clone(),
            }],
            cameras: vec![CameraConfig {
                rtsp: format!("rtsp://root:sesame@{}/stream", camera(&role).await).into(),
                ..CameraConfig::default()
            }],
            page: homing_agent::config::PageConfig { listen: nowhere, ..Default::default() },
            ..homing_agent::Config::default()
        })
        .await
        .unwrap();

        let password = Secret::from("internal-password-5150");
        let config = Config {
            external: nowhere,
            internal: nowhere,
            password: password.clone(),
            data: folder.path().join("tunnel"),
            dispatcher: homing_tunnel::Dispatcher {
                address: format!("https://{}", dispatcher.api_addr()),
                trust_anchor: anchor,
                account: "shop".into(),
                password: account,
            },
            ..Config::default()
        };
        let tunnel = homing_tunnel::bind(config, &ops, &workers).await.unwrap();
        let (internal, handle, press_url) = (tunnel.internal_addr(), tunnel.handle(), agent.page_addr());
        let running = vec![
            role.spawn(dispatcher.run(role.clone())),
            role.spawn(tunnel.run(role.clone())),
            role.spawn(agent.run(role.token().clone())),
        ];
        Whole { _folder: folder, role, internal, handle, press_url, password, running }
    }

    /// Step 1.
    async fn register(&self, oak: &str, device_password: &str) -> (StatusCode, Value) {
        let typed = json!({ "serial": SERIAL, "oak": oak, "user": "root", "password": device_password });
        let request = Request::builder()
            .method(Method::POST)
            .uri("/api/v1/devices")
            .header("authorization", basic(&Credentials::new("vms", self.password.clone())))
            .header("content-type", "application/json")
            .body(Bytes::from(typed.to_string()))
            .unwrap();
        let response = within(send_from([127, 0, 0, 1], self.internal, request)).await;
        let status = response.status();
        let body = within(response.into_body().collect()).await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    /// Step 3.
    async fn press(&self) {
        let mut tcp = TcpStream::connect(self.press_url).await.unwrap();
        let request =
            format!("POST /press HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.press_url);
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within(tcp.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    async fn device_until(&self, condition: impl Fn(&homing_protocol::api::tunnel::Device) -> bool) {
        let mut events = self.handle.subscribe();
        let waiting = async {
            while let Some(event) = events.next().await {
                if matches!(&event, Event::Device(device) if condition(device)) {
                    return;
                }
            }
            panic!("the events ended");
        };
        let found = tokio::time::timeout(crate::world::DEADLINE, waiting).await;
        found.unwrap_or_else(|_| panic!("still {:?}", self.handle.device(serial())));
    }

    /// Step 7 holds: the device is ready, and its camera is reached.
    async fn is_ready(&self) {
        self.device_until(|device| device.connected).await;
        let device = self.handle.device(serial()).unwrap();
        assert_eq!((device.step, device.relay, device.problem), (Step::Tunnel, RelayState::Dispatched, None));
        let mut tcp = TcpStream::connect(self.internal).await.unwrap();
        let authorization = basic(&Credentials::new("vms", self.password.clone()));
        let head = format!("CONNECT {SERIAL}:554 HTTP/1.1\r\nProxy-Authorization: {authorization}\r\n\r\n");
        tcp.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![0; "HTTP/1.1 200 OK".len()];
        within(tcp.read_exact(&mut answer)).await.unwrap();
        assert_eq!(answer, b"HTTP/1.1 200 OK");
        tcp.write_all(b"DESCRIBE rtsp://camera/stream RTSP/1.0\r\nCSeq: 7\r\n\r\n").await.unwrap();
        let mut said = Vec::new();
        while !said.ends_with(b"a camera") {
            let count = within(tcp.read_buf(&mut said)).await.unwrap();
            assert!(count > 0, "{}", String::from_utf8_lossy(&said));
        }
    }

    /// Ends everything, and sees that nothing is left.
    async fn end(self) {
        assert!(self.role.drain(crate::world::DEADLINE).await, "{} tasks are left", self.role.running());
        for running in self.running {
            running.await.unwrap().unwrap();
        }
    }
}

fn serial() -> SerialNumber {
    SERIAL.parse().unwrap()
}

/// Says the same to everybody.
async fn camera(role: &Stop) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = role.clone();
    role.spawn(async move {
        while let Some(Ok((mut tcp, _))) = stop.token().run_until_cancelled(listener.accept()).await {
            stop.spawn(async move {
                let mut request = [0; 1024];
                while matches!(tcp.read(&mut request).await, Ok(1..)) {
                    let answer = b"RTSP/1.0 200 OK\r\nCSeq: 7\r\nContent-Length: 8\r\n\r\na camera";
                    if tcp.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn scenario_a_registered_then_pressed() {
    let whole = Whole::new().await;
    let (status, answer) = whole.register(OAK, "sesame").await;
    assert_eq!((status, &answer["relay"]), (StatusCode::CREATED, &json!("waiting")), "{answer}");
    whole.press().await;
    whole.is_ready().await;
    whole.end().await;
}

#[tokio::test]
async fn scenario_c_pressed_then_registered_after_a_wrong_oak_and_a_wrong_password() {
    let whole = Whole::new().await;
    whole.press().await;
    // Until the device is at the dispatcher a wrong OAK is not known to be wrong: then it is shown later (below).
    let refused = async {
        loop {
            let (status, answer) = whole.register("FFFF-FFFF-FFFF", "sesame").await;
            if status.is_client_error() {
                return answer;
            }
            whole.device_until(|device| device.relay == RelayState::Refused).await;
            let path = format!("/api/v1/devices/{SERIAL}");
            let authorization = basic(&Credentials::new("vms", whole.password.clone()));
            let request =
                Request::delete(path).header("authorization", authorization).body(Bytes::new()).unwrap();
            assert_eq!(
                send_from([127, 0, 0, 1], whole.internal, request).await.status(),
                StatusCode::NO_CONTENT
            );
        }
    };
    let answer = within(refused).await;
    assert_eq!((code(&answer), &answer["error"]["step"]), ("wrong-oak", &json!("dispatch")), "{answer}");
    assert!(whole.handle.device(serial()).is_none(), "nothing is kept");

    let (status, answer) = whole.register(OAK, "not sesame").await;
    assert_eq!((status, code(&answer)), (StatusCode::CONFLICT, "wrong-credentials"), "{answer}");

    let began = tokio::time::Instant::now();
    let (status, answer) = whole.register(OAK, "sesame").await;
    assert_eq!((status, &answer["relay"]), (StatusCode::CREATED, &json!("dispatched")), "{answer}");
    whole.is_ready().await;
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    whole.end().await;
}
