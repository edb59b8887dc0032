//! A camera with a factory default password behind a real site agent: its own password is changed, at the camera.

use crate::{
    flow::{Agent, Tunnel},
    world::*,
};
use homing_base::Stop;
use homing_protocol::{
    digest::{BasicPolicy, ClientAuth},
    secret::Credentials,
};
use http::{Request, StatusCode};
use std::{net::SocketAddr, path::Path};

/// A simulated camera that runs.
struct Camera {
    rtsp: String,
    http: SocketAddr,
    stop: Stop,
}

impl Camera {
    async fn start(password: &str) -> Camera {
        let config = homing_camera::Config {
            password: password.into(),
            rtsp: "127.0.0.1:0".parse().unwrap(),
            http: "127.0.0.1:0".parse().unwrap(),
            ..homing_camera::Config::default()
        };
        let bound = homing_camera::bind(config).await.unwrap();
        let (rtsp, http, stop) = (bound.rtsp_url(), bound.http_addr(), Stop::new());
        stop.spawn(bound.run(stop.clone()));
        Camera { rtsp, http, stop }
    }

    async fn stop(self) {
        assert!(self.stop.drain(homing_base::stop::DRAIN_DEADLINE).await);
    }
}

impl Agent {
    async fn before(data: &Path, world: &World, camera: &Camera, password: &str) -> Agent {
        Agent::start_with(data, world, OAK, |config| {
            config.cameras[0].rtsp = camera.rtsp.as_str().into();
            config.cameras[0].http = format!("http://{}", camera.http);
            config.cameras[0].password = password.into();
        })
        .await
    }

    /// Waits for what the last look at the camera found.
    async fn until_camera(&self, state: &str) {
        let looking = async {
            while self.status().await["cameras"][0]["state"] != state {
                tokio::task::yield_now().await;
            }
        };
        let looked = tokio::time::timeout(DEADLINE, looking).await;
        assert!(looked.is_ok(), "not {state}: {:#}", self.status().await);
    }
}

impl Tunnel {
    async fn credentials(&self) -> Credentials {
        self.api.get(&format!("/api/v1/devices/{SERIAL}/credentials")).await.unwrap()
    }

    /// The camera's own page, through the tunnel, as this user.
    async fn page(&self, user: &Credentials) -> StatusCode {
        let mut auth = ClientAuth::new(BasicPolicy::Refuse);
        loop {
            let mut request = Request::get("/");
            if let Some(value) = auth.authorize("GET", "/", user).unwrap() {
                request = request.header("authorization", value);
            }
            let request = request.body(bytes::Bytes::new()).unwrap();
            let answer = self.handle.request(SERIAL, request).await.unwrap();
            let challenges = answer.headers().get_all("www-authenticate");
            let challenges: Vec<_> = challenges.iter().map(|value| value.to_str().unwrap()).collect();
            if answer.status() != StatusCode::UNAUTHORIZED || auth.handle_challenge(challenges).is_err() {
                return answer.status();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn step_7_tunnel_a_default_password_is_replaced_at_the_camera_behind_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let password = account(folder.path(), "shop").await;
    let world = World::start(folder.path()).await;
    let tunnel = Tunnel::start(folder.path(), &world, "shop", &password).await;
    let (camera, data) = (Camera::start("pass").await, folder.path().join("agent"));
    let agent = Agent::before(&data, &world, &camera, "pass").await;
    agent.until_camera("good").await;
    tunnel.register(SERIAL, OAK, "pass").await.unwrap();
    agent.press().await;
    tunnel.until("with a password of its own", |device| device.own_password).await;
    let own = tunnel.credentials().await;
    assert_ne!(own, Credentials::new("root", "pass"));
    assert_eq!(tunnel.page(&own).await, StatusCode::OK);
    assert_eq!(tunnel.page(&Credentials::new("root", "pass")).await, StatusCode::UNAUTHORIZED);
    agent.until_camera("good").await;

    // The configuration still says the old one; the agent has written down the new one, for itself alone.
    agent.stop().await;
    let file = data.join("password.json");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let agent = Agent::before(&data, &world, &camera, "pass").await;
    agent.until_camera("good").await;
    agent.press().await;
    tunnel.until_ready().await;

    // A camera that was reset has what the configuration says. That counts again when a person says so: what answers
    // there could be anything.
    agent.stop().await;
    camera.stop().await;
    let camera = Camera::start("pass").await;
    let agent = Agent::before(&data, &world, &camera, "pass").await;
    agent.until_camera("bad").await;
    assert!(std::fs::read_to_string(&file).unwrap().contains(own.password.expose()));
    agent.stop().await;
    std::fs::remove_file(&file).unwrap();
    let agent = Agent::before(&data, &world, &camera, "pass").await;
    agent.until_camera("good").await;
    let correction = serde_json::json!({ "password": "pass" });
    tunnel.until("back", |device| device.connected).await;
    tunnel.correct(correction).await.unwrap();
    tunnel.until("with another of its own", |device| device.own_password).await;
    assert_ne!(tunnel.credentials().await, own);
    agent.stop().await;
    camera.stop().await;
    tunnel.stop().await;
    world.stop().await;
}

/// Where the agent cannot reach the camera's HTTP server, the password stays, and both know it.
#[tokio::test(flavor = "multi_thread")]
async fn step_7_tunnel_a_camera_whose_password_cannot_be_changed_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let password = account(folder.path(), "shop").await;
    let world = World::start(folder.path()).await;
    let tunnel = Tunnel::start(folder.path(), &world, "shop", &password).await;
    let agent = Agent::start_with(&folder.path().join("agent"), &world, OAK, |config| {
        config.cameras[0].password = "pass".into();
    })
    .await;
    tunnel.register(SERIAL, OAK, "pass").await.unwrap();
    agent.press().await;
    let left = tunnel.until("warned of", |device| device.connected && device.problem.is_some()).await;
    let problem = left.problem.unwrap();
    assert_eq!(problem.code, "default-password");
    assert!(problem.message.contains("no \"http\" address"), "{}", problem.message);
    assert!(tunnel.credentials().await.password.matches("pass"));
    agent.stop().await;
    tunnel.stop().await;
    world.stop().await;
}
