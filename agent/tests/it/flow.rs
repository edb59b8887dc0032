//! The device's side of the connection flow: steps 3 to 7, and what must not happen.

use crate::world::{
    Agent, Device, OAK, SERIAL, Server, camera_credentials, config, good_camera, soon, story,
};
use bytes::Bytes;
use homing_agent::control;
use homing_agent::status::Colour;
use homing_protocol::oak::{Challenge, EXPORTER_LABEL, PROOF_PATH, ProofAnswer, ProofRequest};
use homing_protocol::onvif::{
    DEVICE_PATH, Message as _, Request as _, SECURITY_PATH, UPLINK_PATH, device, media2, security, uplink,
};
use homing_protocol::secret::Credentials;
use homing_protocol::soap::{Envelope, wsse};
use homing_protocol::{Oak, Step};
use http::{Request, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

fn proof_request() -> Request<Bytes> {
    let body = serde_json::to_vec(&ProofRequest { challenge: Challenge([7; 32]) }).unwrap();
    Request::post(PROOF_PATH).body(Bytes::from(body)).unwrap()
}

/// Goal: press, phone home, be dispatched, connect, tunnel; and after a restart straight to the tunnel server.
#[test]
fn step_3_press_4_phone_home_5_dispatch_6_connect_7_tunnel() {
    story(|folder| async move {
        let (dispatcher, sts) = (Server::new().await, Server::new().await);
        let mut config = config(folder.path(), &[&dispatcher]);
        config.cameras = vec![good_camera().await];
        let mut agent = Agent::start(config.clone()).await;

        // Before the button nothing is dialled at all.
        agent.shows("Idle").await;
        dispatcher.expect_silence().await;

        // 3 press, 4 phone-home: the certificate claims the serial number.
        agent.press().await;
        let device = dispatcher.accept().await;
        assert_eq!(device.identity.serial_number.as_deref(), Some(SERIAL));
        agent.shows("Waiting for registration").await;
        assert_eq!(agent.status.borrow().light.colour, Colour::Amber);
        assert_eq!(agent.status.borrow().step, Some(Step::PhoneHome));

        // 5 dispatch: the OAK proof holds on this connection.
        let (status, body) = device.request(proof_request()).await;
        assert_eq!(status, StatusCode::OK);
        let answer: ProofAnswer = serde_json::from_str(&body).unwrap();
        let exporter = device.exporter.export(EXPORTER_LABEL, &[]).unwrap();
        let key = OAK.parse::<Oak>().unwrap().proof_key(answer.serial);
        assert!(key.verify(answer.serial, &Challenge([7; 32]), &exporter, &answer.proof));
        assert!(!body.contains("0A1B") && !body.contains("0a1b"));

        // Log-in: a wrong password is refused, the right one tells the serial number.
        let wrong = Credentials::new("root", "wrong");
        let refused = device.call(DEVICE_PATH, &device::GetDeviceInformation, &wrong).await.unwrap_err();
        assert_eq!(refused, "user name or password refused");
        let information =
            device.call(DEVICE_PATH, &device::GetDeviceInformation, &camera_credentials()).await.unwrap();
        assert_eq!(information.serial_number, SERIAL);

        // Trust anchor and address; 6 connect, 7 tunnel: with the key that the dispatcher has seen.
        device.send_to(&sts).await.unwrap();
        let at_sts = sts.accept().await;
        let fingerprint = device.identity.fingerprint;
        assert_eq!(at_sts.identity.fingerprint, fingerprint);
        device.gone().await;
        agent.shows("Connected").await;
        assert_eq!(agent.status.borrow().light.colour, Colour::Green);
        assert_eq!(agent.status.borrow().step, Some(Step::Tunnel));

        // The OAK is proved to dispatchers only.
        let (status, _) = at_sts.request(proof_request()).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        let uplinks = at_sts.call(UPLINK_PATH, &uplink::GetUplinks, &camera_credentials()).await.unwrap();
        assert_eq!(uplinks.0.len(), 1);
        assert_eq!(uplinks.0[0].status, Some(uplink::ConnectionStatus::Connected));

        // After a restart it goes straight to its tunnel server.
        agent.stop().await;
        at_sts.gone().await;
        let agent = Agent::start(config).await;
        let again = sts.accept().await;
        assert_eq!(again.identity.fingerprint, fingerprint);
        dispatcher.expect_silence().await;
        agent.stop().await;
    });
}

/// Goal: without the camera's password nothing is told and nothing changed, at a dispatcher or anywhere.
#[test]
fn step_5_dispatch_needs_the_cameras_password() {
    story(|folder| async move {
        let (dispatcher, sts) = (Server::new().await, Server::new().await);
        let agent = Agent::start(config(folder.path(), &[&dispatcher])).await;
        agent.press().await;
        let device = dispatcher.accept().await;
        for user in [Credentials::new("root", "wrong"), Credentials::new("admin", "sesame")] {
            let anchor =
                security::UploadCertificate { certificate: sts.authority.der(), ..Default::default() };
            device.call(SECURITY_PATH, &anchor, &user).await.unwrap_err();
            let set = uplink::SetUplink(uplink::Configuration {
                remote_address: sts.address(),
                ..Default::default()
            });
            device.call(UPLINK_PATH, &set, &user).await.unwrap_err();
            device.call(UPLINK_PATH, &uplink::GetUplinks, &user).await.unwrap_err();
            let profiles = media2::GetProfiles::all();
            device.call("/onvif/media2_service", &profiles, &user).await.unwrap_err();
        }
        // Older clients put the password into the SOAP header.
        for (password, expected) in [("sesame", StatusCode::OK), ("wrong", StatusCode::UNAUTHORIZED)] {
            let mut envelope = Envelope::new(device::GetDeviceInformation.to_element());
            let user = Credentials::new("root", password);
            envelope.header.push(wsse::username_token(&user, [3; 16], jiff::Timestamp::now()));
            let request = Request::post(DEVICE_PATH).body(Bytes::from(envelope.to_xml())).unwrap();
            assert_eq!(device.request(request).await.0, expected);
        }
        // What ONVIF leaves open is open.
        let nobody = Credentials::new("", "");
        let services = device
            .call(DEVICE_PATH, &device::GetServices { include_capability: true }, &nobody)
            .await
            .unwrap();
        assert_eq!(services.0.len(), 4);
        device.call(DEVICE_PATH, &device::GetSystemDateAndTime, &nobody).await.unwrap();
        sts.expect_silence().await;
        agent.stop().await;
    });
}

/// Goal: guessing the password through an uplink is slow, with however many requests at once.
#[test]
fn passwords_are_guessed_slowly_through_an_uplink() {
    story(|folder| async move {
        let dispatcher = Server::new().await;
        let agent = Agent::start(config(folder.path(), &[&dispatcher])).await;
        agent.press().await;
        let device = dispatcher.accept().await;
        let begun = std::time::Instant::now();
        let guess = |number: usize| {
            let mut envelope = Envelope::new(device::GetDeviceInformation.to_element());
            let user = Credentials::new("root", format!("guess {number}"));
            envelope.header.push(wsse::username_token(&user, [3; 16], jiff::Timestamp::now()));
            Request::post(DEVICE_PATH).body(Bytes::from(envelope.to_xml())).unwrap()
        };
        let (first, second, third) =
            tokio::join!(device.request(guess(0)), device.request(guess(1)), device.request(guess(2)));
        assert_eq!([first.0, second.0, third.0], [StatusCode::UNAUTHORIZED; 3]);
        assert!(begun.elapsed() >= std::time::Duration::from_millis(1000), "{:?}", begun.elapsed());
        // Its own owner gets in all the same.
        device.call(DEVICE_PATH, &device::GetDeviceInformation, &camera_credentials()).await.unwrap();
        agent.stop().await;
    });
}

/// Goal: what ONVIF clients need to find a picture; several cameras are several channels.
#[test]
fn step_8_add_finds_a_profile_per_camera_and_no_password() {
    story(|folder| async move {
        let dispatcher = Server::new().await;
        let mut config = config(folder.path(), &[&dispatcher]);
        config.cameras.push(crate::world::camera_at("127.0.0.2:8554".parse().unwrap()));
        config.cameras[1].name = "Gate".into();
        let agent = Agent::start(config).await;
        agent.press().await;
        let device = dispatcher.accept().await;
        let user = camera_credentials();
        let services =
            device.call(DEVICE_PATH, &device::GetServices { include_capability: true }, &user).await.unwrap();
        let path = device::media2_path(&services).unwrap();
        let capabilities = device.call(&path, &media2::GetServiceCapabilities, &user).await.unwrap();
        assert_eq!(capabilities.rtsp_web_socket_uri.as_deref(), Some("/rtsp"));
        let profiles = device.call(&path, &media2::GetProfiles::all(), &user).await.unwrap().0;
        let names: Vec<&str> = profiles.iter().map(|profile| profile.name.as_str()).collect();
        assert_eq!(names, ["Camera", "Gate"]);
        let mut uris = Vec::new();
        for profile in &profiles {
            let ask = media2::GetStreamUri::rtsp(&profile.token);
            uris.push(device.call(&path, &ask, &user).await.unwrap().0);
        }
        assert_eq!(uris, ["rtsp://127.0.0.1:1/stream", "rtsp://127.0.0.2:8554/stream"]);
        let missing = media2::GetStreamUri::rtsp("profile-3");
        let fault = device.call(&path, &missing, &user).await.unwrap_err();
        assert!(fault.contains("NoProfile"), "{fault}");
        agent.stop().await;
    });
}

/// Goal: hostile SOAP is answered with a fault, and the next request is served as ever.
#[test]
fn hostile_soap_is_answered_with_a_fault() {
    story(|folder| async move {
        let dispatcher = Server::new().await;
        let agent = Agent::start(config(folder.path(), &[&dispatcher])).await;
        agent.press().await;
        let device = dispatcher.accept().await;
        let bomb = r#"<!DOCTYPE a [<!ENTITY x "xxxx">]><a>&x;</a>"#.to_owned();
        for (body, expected) in [
            (bomb, StatusCode::BAD_REQUEST),
            (String::new(), StatusCode::BAD_REQUEST),
            ("<a>".repeat(10_000), StatusCode::BAD_REQUEST),
            (" ".repeat(300_000), StatusCode::PAYLOAD_TOO_LARGE),
            (security::UploadCertificate::default().to_xml(), StatusCode::UNAUTHORIZED),
        ] {
            let request = Request::post(DEVICE_PATH).body(Bytes::from(body)).unwrap();
            let (status, body) = device.request(request).await;
            assert_eq!(status, expected, "{body}");
        }
        let not_der = security::UploadCertificate { certificate: vec![1; 1000], ..Default::default() };
        let fault = device.call(SECURITY_PATH, &not_der, &camera_credentials()).await.unwrap_err();
        assert!(fault.contains("not an X.509 certificate"), "{fault}");
        let get = Request::get(DEVICE_PATH).body(Bytes::new()).unwrap();
        assert_eq!(device.request(get).await.0, StatusCode::METHOD_NOT_ALLOWED);
        device.call(DEVICE_PATH, &device::GetDeviceInformation, &camera_credentials()).await.unwrap();
        agent.stop().await;
    });
}

/// Goal: the device trusts exactly the anchor that it was given, for the address that it was given.
#[test]
fn step_6_connect_trusts_the_uploaded_anchor_and_nobody_else() {
    story(|folder| async move {
        let dispatcher = Server::new().await;
        let right = Server::new().await;
        let elsewhere = Server::at("127.0.0.1:0".parse().unwrap(), "127.0.0.2").await;
        let mut agent = Agent::start(config(folder.path(), &[&dispatcher])).await;
        agent.press().await;
        let device = dispatcher.accept().await;

        let other = crate::world::Authority::new();
        device.send_to_trusting(&right.address(), other.der()).await.unwrap();
        right.is_not_trusted().await;
        agent
            .shows_that("an untrusted certificate", |status| {
                let error = status.uplinks.first().and_then(|uplink| uplink.error.as_deref());
                error.is_some_and(|error| error.contains("is not trusted"))
            })
            .await;
        device.send_to_trusting(&elsewhere.address(), elsewhere.authority.der()).await.unwrap();
        elsewhere.is_not_trusted().await;
        let address = elsewhere.address();
        agent
            .shows_that("a certificate for another name", |status| {
                let uplink = status.uplinks.iter().find(|uplink| uplink.address == address);
                uplink.and_then(|uplink| uplink.error.as_deref()).is_some_and(|e| e.contains("another name"))
            })
            .await;
        assert!(!device.uplink.is_closed(), "and it stays with the dispatcher meanwhile");
        // The same address with the right anchor.
        device.send_to(&right).await.unwrap();
        right.accept().await;
        agent.stop().await;
    });
}

/// Goal: a tunnel server that does not know the key says so, the installer reads it, and it is tried again.
#[test]
fn step_7_tunnel_refused_with_the_reason() {
    story(|folder| async move {
        let (dispatcher, sts) = (Server::new().await, Server::new().await);
        let mut agent = Agent::start(config(folder.path(), &[&dispatcher])).await;
        agent.press().await;
        let device = dispatcher.accept().await;
        device.send_to(&sts).await.unwrap();
        sts.refuse("this key is not known here: press the button again").await;
        agent
            .shows_that("the refusal", |status| {
                let error = status.uplinks.first().and_then(|uplink| uplink.error.as_deref());
                error.is_some_and(|error| error.contains("403: this key is not known here"))
            })
            .await;
        sts.accept().await;
        device.gone().await;
        agent.stop().await;
    });
}

/// Goal: two tunnel servers are held in parallel, and losing one loses nothing.
#[test]
fn step_7_tunnel_to_two_servers_at_once() {
    story(|folder| async move {
        let dispatcher = Server::new().await;
        let (one, two) = (Server::new().await, Server::new().await);
        let mut config = config(folder.path(), &[&dispatcher]);
        config.cameras = vec![good_camera().await];
        let mut agent = Agent::start(config).await;
        agent.press().await;
        let device = dispatcher.accept().await;
        device.send_to(&one).await.unwrap();
        let at_one = one.accept().await;
        device.send_to(&two).await.unwrap();
        let at_two = two.accept().await;
        device.gone().await;
        at_one.close();
        let again = one.accept().await;
        assert!(!at_two.uplink.is_closed());
        agent.shows("Connected").await;
        drop(again);
        agent.stop().await;
    });
}

/// Goal: a new address is tried before the old one is forgotten.
#[test]
fn step_6_connect_to_a_new_owner_before_leaving_the_old_one() {
    story(|folder| async move {
        let dispatcher = Server::new().await;
        let (old, new) = (Server::new().await, Server::new().await);
        let agent = Agent::start(config(folder.path(), &[&dispatcher])).await;
        agent.press().await;
        let device = dispatcher.accept().await;
        device.send_to(&old).await.unwrap();
        let at_old = old.accept().await;
        device.gone().await;

        agent.press().await;
        let device = dispatcher.accept().await;
        device.send_to(&new).await.unwrap();
        new.refuse("not yet").await;
        assert!(!at_old.uplink.is_closed(), "the new one does not want it yet");
        let at_new = new.accept().await;
        at_old.gone().await;
        device.gone().await;
        let uplinks = at_new.call(UPLINK_PATH, &uplink::GetUplinks, &camera_credentials()).await.unwrap();
        let addresses: Vec<&str> = uplinks.0.iter().map(|uplink| uplink.remote_address.as_str()).collect();
        assert_eq!(addresses, [new.address()]);

        // The owner releases the device: it forgets, and stays away.
        let delete = uplink::DeleteUplink { remote_address: new.address() };
        at_new.call(UPLINK_PATH, &delete, &camera_credentials()).await.unwrap();
        at_new.gone().await;
        new.expect_silence().await;
        agent.stop().await;
    });
}

/// Goal: no device is ever stranded: without its tunnel servers it goes back to its dispatchers.
#[test]
fn step_4_phone_home_again_when_every_tunnel_server_is_lost() {
    story(|folder| async move {
        let dead = Server::new().await;
        let dispatcher = Server::new().await;
        let (sts, other) = (Server::new().await, Server::new().await);
        let mut config = config(folder.path(), &[&dead, &dispatcher]);
        config.fallback_s = 1;
        drop(dead);
        let mut agent = Agent::start(config).await;
        agent.press().await;
        // The first on the list does not answer: the second is tried.
        let device = dispatcher.accept().await;
        device.send_to(&sts).await.unwrap();
        let at_sts = sts.accept().await;
        device.gone().await;

        at_sts.close();
        drop(sts);
        let device = dispatcher.accept().await;
        agent.shows("No tunnel server reached").await;
        assert!(agent.status.borrow().warnings.iter().any(|w| w.contains("asking the dispatchers")));
        device.send_to(&other).await.unwrap();
        other.accept().await;
        device.gone().await;
        agent.stop().await;
    });
}

/// Goal: the window ends by itself, and says so.
#[test]
fn step_3_press_opens_a_window_that_ends() {
    story(|folder| async move {
        let dispatcher = Server::new().await;
        let mut config = config(folder.path(), &[&dispatcher]);
        config.press_window_s = 1;
        config.cameras = vec![good_camera().await];
        let mut agent = Agent::start(config).await;
        agent.press().await;
        let device = dispatcher.accept().await;
        device.gone().await;
        agent
            .shows_that("the end of the window", |status| {
                status.light.message.contains("Nobody registered this device in time")
            })
            .await;
        dispatcher.expect_silence().await;
        agent.stop().await;
    });
}

/// Goal: a dispatcher that is not the configured one is not trusted, and the installer is told.
#[test]
fn step_4_phone_home_trusts_the_configured_anchor_only() {
    story(|folder| async move {
        let (dispatcher, other) = (Server::new().await, Server::new().await);
        let mut config = config(folder.path(), &[&dispatcher]);
        config.dispatchers[0].trust_anchor = other.authority.pem();
        let mut agent = Agent::start(config).await;
        agent.press().await;
        dispatcher.is_not_trusted().await;
        agent
            .shows_that("an untrusted dispatcher", |status| {
                status.light.colour == Colour::Red && status.light.message.contains("is not trusted")
            })
            .await;
        agent.stop().await;
    });
}

/// Goal: at a site that lets out nothing but its HTTP proxy, and where no name can be looked up, dispatcher and
/// tunnel server are reached through that.
#[test]
fn step_4_phone_home_and_6_connect_through_the_sites_proxy() {
    story(|folder| async move {
        let on = |name: &'static str| Server::at("127.0.0.1:0".parse().unwrap(), name);
        let (dispatcher, sts) = (on("dispatcher.example").await, on("sts.example").await);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = listener.local_addr().unwrap();
        let behind = [("dispatcher.example:7443", dispatcher.addr), ("sts.example:8443", sts.addr)];
        tokio::task::spawn_local(async move {
            loop {
                let (mut tcp, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(tcp.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                assert!(head.contains("\r\nProxy-Authorization: Basic c2l0ZTpzZXNhbWU=\r\n"), "{head}");
                let asked = head.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap();
                let (_, addr) = behind.iter().find(|(name, _)| *name == asked).unwrap();
                let mut out = TcpStream::connect(addr).await.unwrap();
                tcp.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
                tokio::task::spawn_local(async move {
                    let _ = tokio::io::copy_bidirectional(&mut tcp, &mut out).await;
                });
            }
        });

        let mut config = config(folder.path(), &[&dispatcher]);
        config.dispatchers[0].address = "dispatcher.example:7443".into();
        config.proxy.address = proxy.to_string();
        config.proxy.user = "site".into();
        config.proxy.password = "sesame".into();
        let mut agent = Agent::start(config).await;
        agent.press().await;
        let device = dispatcher.accept().await;
        device.send_to_trusting("https://sts.example:8443/", sts.authority.der()).await.unwrap();
        sts.accept().await;
        agent.shows_that("the tunnel", |status| status.step == Some(Step::Tunnel)).await;
        agent.stop().await;
    });
}

/// Goal: who has the camera's password gets the OAK through the tunnel when the label is lost; nobody else does,
/// and no dispatcher.
#[test]
fn the_oak_is_shown_to_the_cameras_administrator_only() {
    story(|folder| async move {
        let (dispatcher, sts) = (Server::new().await, Server::new().await);
        let agent = Agent::start(config(folder.path(), &[&dispatcher])).await;
        agent.press().await;
        let at_dispatcher = dispatcher.accept().await;
        const PATH: &str = "/axis-cgi/oak.cgi";
        let ask = |method: &str| format!(r#"{{"apiVersion":"1.0","context":"7","method":"{method}"}}"#);
        let post = async |device: &Device, body: String, credentials: &Credentials| {
            device.post(PATH, "application/json", body, credentials).await
        };
        let (status, body) = post(&at_dispatcher, ask("getOAK"), &camera_credentials()).await.unwrap();
        assert_eq!((status, body.as_ref()), (StatusCode::FORBIDDEN, &b"dispatchers ask for a proof"[..]));

        at_dispatcher.send_to(&sts).await.unwrap();
        let at_sts = sts.accept().await;
        let plain = Request::post(PATH).body(Bytes::from(ask("getOAK"))).unwrap();
        let (status, body) = at_sts.request(plain).await;
        assert!(status == StatusCode::UNAUTHORIZED && !body.contains(OAK), "{body}");
        let wrong = Credentials::new("root", "wrong");
        assert_eq!(post(&at_sts, ask("getOAK"), &wrong).await.unwrap_err(), "user name or password refused");

        let answer = async |body: String| -> serde_json::Value {
            let (status, body) = post(&at_sts, body, &camera_credentials()).await.unwrap();
            assert_eq!(status, StatusCode::OK);
            serde_json::from_slice(&body).unwrap()
        };
        let shown = serde_json::json!(
            {"apiVersion": "1.0", "context": "7", "method": "getOAK", "data": {"oak": OAK}}
        );
        assert_eq!(answer(ask("getOAK")).await, shown);
        assert_eq!(answer(ask("getSupportedVersions")).await["data"]["apiVersions"][0], "1.0");
        assert_eq!(answer(ask("setOAK")).await["error"]["code"], 2004);
        assert_eq!(answer("{}".into()).await["error"]["code"], 4000);
        agent.stop().await;
    });
}

/// Goal: factory default makes a new key and forgets the tunnel server; the label stays.
#[test]
fn reset_makes_a_stranger_with_the_same_label() {
    story(|folder| async move {
        let (dispatcher, sts) = (Server::new().await, Server::new().await);
        let config = config(folder.path(), &[&dispatcher]);
        let agent = Agent::start(config.clone()).await;
        agent.press().await;
        let device = dispatcher.accept().await;
        let fingerprint = device.identity.fingerprint;
        device.send_to(&sts).await.unwrap();
        sts.accept().await;
        let running = control::reset(&config).unwrap_err().to_string();
        assert!(running.contains("another agent is running"), "{running}");
        agent.stop().await;

        control::reset(&config).unwrap();
        assert_eq!(control::label(&config).unwrap().code(), format!("homing:{SERIAL};{OAK}"));
        let agent = Agent::start(config).await;
        sts.expect_silence().await;
        agent.press().await;
        let device = soon("a call", dispatcher.accept()).await;
        assert_ne!(device.identity.fingerprint, fingerprint);
        assert_eq!(device.identity.serial_number.as_deref(), Some(SERIAL));
        agent.stop().await;
    });
}

/// Goal: two agents never use one identity at once.
#[test]
fn a_data_folder_belongs_to_one_agent() {
    story(|folder| async move {
        let config = config(folder.path(), &[]);
        let agent = Agent::start(config.clone()).await;
        let error = homing_agent::bind(config.clone()).await.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("another agent is running with the data folder"), "{error}");
        agent.stop().await;
        let path = config.data.join("identity.json");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        let error = homing_agent::bind(config).await.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    });
}
