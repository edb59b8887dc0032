//! The page: the button for everybody who can reach it, everything else for who may know.

use crate::world::{Agent, OAK, SERIAL, Server, camera_credentials, config, http, soon, story};
use homing_agent::control;
use homing_protocol::digest::{BasicPolicy, ClientAuth};
use homing_protocol::secret::Credentials;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A browser that knows a password.
async fn http_as(addr: SocketAddr, path: &str, credentials: &Credentials) -> (u16, String) {
    let (status, answer) = http(addr, "GET", path, &[]).await;
    assert_eq!(status, 401, "{answer}");
    let mut auth = ClientAuth::new(BasicPolicy::Refuse);
    let challenges = answer.lines().filter_map(|line| line.strip_prefix("www-authenticate: "));
    auth.handle_challenge(challenges).unwrap();
    let value = auth.authorize("GET", path, credentials).unwrap().unwrap();
    http(addr, "GET", path, &[("Authorization", &value)]).await
}

/// Goal: on loopback everything is shown but the label, which takes the camera's password.
#[test]
fn on_loopback_all_but_the_label_is_open() {
    story(|folder| async move {
        let mut agent = Agent::start(config(folder.path(), &[])).await;
        agent.shows("Camera not reached").await;
        let (status, answer) = http(agent.page, "POST", "/press", &[]).await;
        assert!(status == 409 && answer.contains("no dispatcher is configured"), "{answer}");
        let (status, page) = http(agent.page, "GET", "/", &[]).await;
        assert_eq!(status, 200);
        assert!(page.contains(SERIAL) && page.contains("127.0.0.1:1") && page.contains("<button"), "{page}");
        assert!(page.contains("content-security-policy: default-src 'none'"), "{page}");
        let (status, json) = http(agent.page, "GET", "/status", &[]).await;
        assert!(status == 200 && json.contains("\"cameras\""), "{json}");
        let (status, faults) = http(agent.page, "GET", "/healthz", &[]).await;
        assert!(status == 503 && faults.contains("not reached at 127.0.0.1:1"), "{faults}");
        for path in ["/", "/status", "/light", "/page.js", "/page.css", "/details", "/metrics"] {
            let (status, body) = http(agent.page, "GET", path, &[]).await;
            assert_eq!(status, 200, "{path}");
            assert!(!body.contains(OAK) && !body.contains("sesame"), "{path}");
        }
        let (status, _) = http_as(agent.page, "/label", &Credentials::new("root", "wrong")).await;
        assert_eq!(status, 401);
        let (status, label) = http_as(agent.page, "/label", &camera_credentials()).await;
        assert_eq!(status, 200);
        assert!(label.contains(OAK) && label.contains("<svg"), "{label}");
        for (method, path, expected) in
            [("GET", "/press", 405), ("POST", "/", 405), ("GET", "/x", 404), ("DELETE", "/status", 405)]
        {
            assert_eq!(http(agent.page, method, path, &[]).await.0, expected, "{method} {path}");
        }
        agent.stop().await;
    });
}

/// Goal: on the network the button and the light are for all, the rest takes the camera's password.
#[test]
fn on_the_network_only_button_and_light_are_open() {
    story(|folder| async move {
        let dispatcher = Server::new().await;
        let mut config = config(folder.path(), &[&dispatcher]);
        config.page.listen = "0.0.0.0:0".parse().unwrap();
        let agent = Agent::start(config.clone()).await;
        let addr = SocketAddr::from(([127, 0, 0, 1], agent.page.port()));
        let (status, page) = http(addr, "GET", "/", &[]).await;
        assert!(status == 200 && page.contains("<button") && !page.contains("127.0.0.1:1"), "{page}");
        let (status, light) = http(addr, "GET", "/light", &[]).await;
        assert!(status == 200 && light.contains("\"word\""), "{light}");
        assert_eq!(http(addr, "POST", "/press", &[]).await.0, 200);
        for path in ["/status", "/details", "/label", "/metrics"] {
            assert_eq!(http(addr, "GET", path, &[]).await.0, 401, "{path}");
            assert_eq!(http_as(addr, path, &Credentials::new("root", "")).await.0, 401, "{path}");
            assert_eq!(http_as(addr, path, &camera_credentials()).await.0, 200, "{path}");
        }
        // With many connections one guesses no faster than with one.
        let guess = Credentials::new("root", "guess");
        let begun = std::time::Instant::now();
        let guess = || http_as(addr, "/label", &guess);
        let answers = tokio::join!(guess(), guess(), guess(), guess());
        assert_eq!([answers.0.0, answers.1.0, answers.2.0, answers.3.0], [401; 4]);
        assert!(begun.elapsed().as_millis() >= 1500, "{:?}", begun.elapsed());
        // The commands of the program know the password from the configuration.
        let status = tokio::task::spawn_blocking(move || {
            control::press(&config).unwrap();
            control::status(&config).unwrap()
        });
        assert_eq!(soon("the commands", status).await.unwrap()["serial"], SERIAL);
        agent.stop().await;
    });
}

/// Goal: a web site that somebody at the site happens to visit can neither press nor read.
#[test]
fn other_sites_are_kept_out() {
    story(|folder| async move {
        let mut config = config(folder.path(), &[]);
        config.page.host_names = vec!["agent.local".into()];
        let agent = Agent::start(config).await;
        let ask = |method, path, headers: &'static [(&'static str, &'static str)]| {
            let page = agent.page;
            async move { http(page, method, path, headers).await.0 }
        };
        assert_eq!(ask("GET", "/status", &[("Host", "rebound.example:8089")]).await, 421);
        assert_eq!(ask("POST", "/press", &[("Host", "rebound.example")]).await, 421);
        assert_eq!(ask("GET", "/status", &[("Host", "agent.local:8089")]).await, 200);
        assert_eq!(ask("GET", "/status", &[("Host", "localhost")]).await, 200);
        assert_eq!(ask("GET", "/status", &[("Host", "[::1]:8089")]).await, 200);
        assert_eq!(ask("POST", "/press", &[("Origin", "http://evil.example")]).await, 403);
        assert_eq!(ask("POST", "/press", &[("Sec-Fetch-Site", "cross-site")]).await, 403);
        agent.stop().await;
    });
}

/// Goal: garbage and silence on the page's port neither stop the agent nor delay the next good request.
#[test]
fn garbage_and_silence_delay_nobody() {
    story(|folder| async move {
        let agent = Agent::start(config(folder.path(), &[])).await;
        let mut silent = Vec::new();
        for _ in 0..100 {
            silent.push(TcpStream::connect(agent.page).await.unwrap());
        }
        for garbage in
            [&b"\x16\x03\x01\x02\x00\x01"[..], b"\0\0\0\0", b"GET", b"GET / HTTP/1.1\r\nHost: \xff\r\n\r\n"]
        {
            let mut tcp = TcpStream::connect(agent.page).await.unwrap();
            tcp.write_all(garbage).await.unwrap();
            tcp.shutdown().await.unwrap();
            let mut answer = Vec::new();
            let _ = soon("an end", tcp.read_to_end(&mut answer)).await;
        }
        let mut endless = TcpStream::connect(agent.page).await.unwrap();
        let flood = vec![b'a'; 1 << 20];
        let _ = endless.write_all(&flood).await;
        let begun = std::time::Instant::now();
        assert_eq!(http(agent.page, "GET", "/light", &[]).await.0, 200);
        assert!(begun.elapsed().as_secs() < 2);
        drop(silent);
        agent.stop().await;
    });
}
