//! Devices of other makes (steps 4 to 7): `foreign.py`, a camera on Python's TLS and HTTP/2, none of our code in it,
//! is dispatched by standard ONVIF operations alone, with every quirk that cameras are known for; what it lacks is named.

use crate::{
    flow::Tunnel,
    world::{DEADLINE, LOG, Sts, World, account, refusal, world_with_account},
};
use homing_dispatcher::{
    DeviceKeys,
    lists::{self, OnFault},
};
use homing_protocol::{
    Oak, Secret, SerialNumber, Step,
    api::{
        dispatcher::{NewRegistration, Registration, RegistrationState as State},
        tunnel::{self, RelayState},
    },
};
use homing_uplink::Fingerprint;
use http::{Method, Request};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};

const OAK: Oak = Oak::new([0x0A, 0x1B, 0x2C, 0x3D, 0x4E, 0x5F]);
const USER: &str = "admin";
const PASSWORD: &str = "Grünes \"Licht\" 7";

/// Versions of what `foreign.py` needs; hyper's HTTP/2.
const PACKAGES: [&str; 3] = ["h2==4.3.0", "hpack==4.2.0", "hyperframe==6.1.0"];

/// The interpreter of an environment of its own, beside what is built, made when it is first needed.
fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("python-{}", PACKAGES.join("-").replace("==", "-")));
        let python = folder.join("bin/python");
        let run = |program: &Path, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
            let output = output.map_err(|error| error.to_string())?;
            let said = [output.stdout, output.stderr].concat();
            if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&said).into_owned()) }
        };
        if run(&python, &["-c", "import h2"]).is_err() {
            let place = folder.to_str().unwrap();
            let install = [&["-m", "pip", "install", "--quiet"], PACKAGES.as_slice()].concat();
            let made = run(Path::new("/usr/bin/python3"), &["-m", "venv", "--clear", place]);
            if let Err(said) = made.and_then(|()| run(&python, &install)) {
                panic!(
                    "the camera of another make needs {} in {place}: check that the Debian package python3-venv is \
                     installed, and that pip reaches its index\n{said}",
                    PACKAGES.join(", ")
                );
            }
        }
        python
    })
}

/// A maker of cameras: its CA, and the one below that issues to devices.
struct Maker {
    root: String,
    issuing: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Maker {
    fn new() -> Maker {
        let ca = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
        };
        let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let root = ca("Another & Sons Device Root").self_signed(&root_key).unwrap().pem();
        let root_issuer = Issuer::from_ca_cert_pem(&root, root_key).unwrap();
        let issuing = ca("Another & Sons Device CA 7").signed_by(&key, &root_issuer).unwrap().pem();
        let issuer = Issuer::from_ca_cert_pem(&issuing, key).unwrap();
        Maker { root, issuing, issuer }
    }

    /// Where the operator has put the root.
    fn anchor(&self, folder: &Path) -> PathBuf {
        let file = folder.join("another.pem");
        std::fs::write(&file, &self.root).unwrap();
        file
    }
}

/// How a device's key came to be.
enum Born<'a> {
    /// With a certificate of its maker.
    Issued(&'a Maker),
    /// By itself.
    SelfSigned,
}

/// The Python camera; it ends with its standard input.
struct Foreign {
    child: Child,
    told: mpsc::Receiver<Value>,
    seen: Vec<Value>,
    fingerprint: Fingerprint,
}

impl Foreign {
    /// Starts it in a folder, phoning home at once (step 4).
    fn start(folder: &Path, world: &World, serial: SerialNumber, born: &Born<'_>, quirks: Value) -> Foreign {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let subject = quirks["subject"].as_str().map_or_else(|| serial.to_string(), str::to_owned);
        let attribute = match quirks["subject"] {
            Value::Null => DnType::CustomDnType(vec![2, 5, 4, 5]),
            _ => DnType::CommonName,
        };
        params.distinguished_name.push(attribute, subject);
        let (certificate, behind) = match born {
            Born::Issued(maker) => (params.signed_by(&key, &maker.issuer).unwrap(), maker.issuing.as_str()),
            Born::SelfSigned => (params.self_signed(&key).unwrap(), ""),
        };
        let folder = folder.join(format!("camera-{serial}-{}", rand::random::<u32>()));
        std::fs::create_dir(&folder).unwrap();
        let write = |name: &str, text: &str| {
            let file = folder.join(name);
            std::fs::write(&file, text).unwrap();
            file
        };
        let scheme = quirks["scheme"].as_str().unwrap_or("https");
        let config = json!({
            "serial": serial.to_string(), "user": USER, "password": PASSWORD,
            "dispatcher": format!("{scheme}://{}/", world.external),
            "dispatcher_trust": write("dispatcher.pem", &world.trust),
            "certificate": write("certificate.pem", &(certificate.pem() + behind)),
            "key": write("key.pem", &key.serialize_pem()),
            "quirks": quirks,
        });
        let mut child = Command::new(python())
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/foreign.py"))
            .arg(write("config.json", &config.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (tell, told) = mpsc::channel(1000);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = tell.blocking_send(serde_json::from_str(&line).unwrap());
            }
        });
        let fingerprint = Fingerprint::of_certificate(certificate.der()).unwrap();
        Foreign { child, told, seen: Vec::new(), fingerprint }
    }

    /// Waits until it tells of this.
    async fn until(&mut self, event: &str) -> Value {
        loop {
            if let Some(found) = self.seen.iter().find(|seen| seen["event"] == event) {
                return found.clone();
            }
            let told = tokio::time::timeout(DEADLINE, self.told.recv()).await;
            let told = told.unwrap_or_else(|_| panic!("no {event:?}: {:#?}", self.seen));
            let told = told.unwrap_or_else(|| panic!("it ended before {event:?}: {:#?}", self.seen));
            self.seen.push(told);
        }
    }

    /// What it was asked, in order, by ONVIF.
    fn calls(&self) -> Vec<&str> {
        self.seen
            .iter()
            .filter(|seen| seen["event"] == "call")
            .filter_map(|seen| seen["name"].as_str())
            .collect()
    }

    /// Ends it; nothing may have gone wrong in it. All that it told is in `seen`.
    async fn stop(mut self) -> Vec<Value> {
        drop(self.child.stdin.take());
        while let Some(told) = self.told.recv().await {
            self.seen.push(told);
        }
        assert!(self.child.wait().unwrap().success(), "{:#?}", self.seen);
        std::mem::take(&mut self.seen)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serial(index: usize) -> SerialNumber {
    SerialNumber::new([0xB8, 0xA4, 0x4F, 0, 0, index as u8 + 1])
}

/// The operator takes a manufacturer's list: these serial numbers, all with one OAK.
async fn import(data: &Path, lines: impl Iterator<Item = String>) {
    let list: String = ["serial number,OAK,model,key\n".to_owned()].into_iter().chain(lines).collect();
    let imported = lists::import(data, "another.csv", list.as_bytes(), OnFault::Stop).await.unwrap();
    assert_eq!(imported.faulty, 0, "{imported:?}");
}

async fn import_serials(data: &Path, count: usize) {
    import(data, (0..count).map(|index| format!("{},{},Dome,\n", serial(index), OAK.label()))).await;
}

/// A dispatcher whose operator has brought the maker in, and a tunnel server.
async fn start(folder: &Path, maker: &Maker, devices: usize, tls_1_2: bool) -> (World, Tunnel, Secret) {
    let password = account(folder, "shop").await;
    import_serials(folder, devices).await;
    let anchor = maker.anchor(folder);
    let change = |config: &mut homing_dispatcher::Config| {
        (config.device_anchors, config.tls_1_2) = (vec![anchor], tls_1_2);
    };
    let world = World::start_with(folder, change).await;
    let tunnel =
        Tunnel::start_with(folder, &world, "shop", &password, |config| config.tls_1_2 = tls_1_2).await;
    (world, tunnel, password)
}

async fn register(tunnel: &Tunnel, serial: SerialNumber) -> tunnel::Device {
    let new =
        tunnel::NewDevice { name: serial.to_string(), ..tunnel::NewDevice::new(serial, OAK, USER, PASSWORD) };
    tunnel.api.send(Method::POST, "/api/v1/devices", &new).await.unwrap()
}

async fn until(
    tunnel: &Tunnel,
    serial: SerialNumber,
    what: &str,
    wanted: impl Fn(&tunnel::Device) -> bool,
) -> tunnel::Device {
    let mut changes = tunnel.handle.subscribe();
    let watching = async {
        loop {
            if let Some(device) = tunnel.handle.device(serial).filter(&wanted) {
                return device;
            }
            changes.next().await;
        }
    };
    let watched = tokio::time::timeout(DEADLINE, watching).await;
    watched.unwrap_or_else(|_| panic!("{what}: {:#?}", tunnel.handle.device(serial)))
}

/// Step 7: a request through the tunnel reaches it.
async fn assert_reachable(tunnel: &Tunnel, serial: SerialNumber, what: &str) {
    until(tunnel, serial, what, |device| device.connected && device.step == Step::Tunnel).await;
    let request = Request::get("/hello").body(bytes::Bytes::new()).unwrap();
    let answer = tokio::time::timeout(DEADLINE, tunnel.handle.request(serial, request)).await.unwrap();
    let answer = answer.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(answer.into_body().collect(100).await.unwrap(), "hello from another make", "{what}");
}

/// Goal: from its first call to pictures, with nothing but what the standards say: OAK from the list, key from the
/// certificate, natively and by WebSocket. RTSP over WebSocket answers through the tunnel.
#[tokio::test]
async fn steps_4_phone_home_to_7_tunnel_a_camera_of_another_make_by_onvif_alone() {
    let (folder, maker) = (tempfile::tempdir().unwrap(), Maker::new());
    let (world, tunnel, _) = start(folder.path(), &maker, 2, false).await;
    let only_wss = json!({ "scheme": "wss", "uplink_capabilities": { "Protocols": "wss", "AuthorizationModes": "mTLS" } });
    for (index, (quirks, scheme)) in [(json!({}), "https"), (only_wss, "wss")].into_iter().enumerate() {
        let serial = serial(index);
        let mut camera = Foreign::start(folder.path(), &world, serial, &Born::Issued(&maker), quirks);
        camera.until("connected").await;
        register(&tunnel, serial).await;
        assert_reachable(&tunnel, serial, scheme).await;
        let device = tunnel.handle.device(serial).unwrap();
        assert_eq!((device.relay, &device.problem), (RelayState::Dispatched, &None));

        let mut rtsp = tunnel.handle.open_rtsp(serial).await.unwrap().stream;
        rtsp.write_all(b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n").await.unwrap();
        let mut answer = [0; 15];
        tokio::time::timeout(DEADLINE, rtsp.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"RTSP/1.0 200 OK");
        drop(rtsp);

        let address = camera.until("uplink-set").await["address"].as_str().unwrap().to_owned();
        assert_eq!(address, format!("{scheme}://{}/", tunnel.external));
        let asked = camera.calls();
        let before = asked.iter().position(|call| *call == "SetUplink").unwrap();
        let first: Vec<_> =
            asked[..before].iter().filter(|call| **call != "GetServiceCapabilities").copied().collect();
        assert_eq!(
            first,
            [
                "GetDeviceInformation",
                "GetSystemDateAndTime",
                "GetServices",
                "GetAllCertificates",
                "UploadCertificate",
                "GetAllCertPathValidationPolicies",
                "CreateCertPathValidationPolicy",
            ]
        );
        let seen = camera.stop().await;
        assert!(seen.iter().all(|seen| seen["event"] != "wrong-password"), "{seen:#?}");
    }
    tunnel.stop().await;
    world.stop().await;
}

/// Goal: everything that cameras are known for and that can be put up with is.
#[tokio::test]
async fn step_5_dispatch_a_camera_of_another_make_may_be_odd() {
    let digest = |digest: Value| json!({ "digest": digest });
    let odd = [
        ("namespaces declared at every element", json!({ "soap": "nested" })),
        ("prefixes that mean something else", json!({ "soap": "crossed" })),
        ("SOAP 1.1", json!({ "soap_1_1": true, "soap": "nested" })),
        ("small pieces", json!({ "piece": 7 })),
        ("MD5 alone", digest(json!({ "algorithms": ["MD5"] }))),
        ("MD5 unsaid", digest(json!({ "algorithms": ["MD5"], "style": "silent" }))),
        ("SHA-256 alone", digest(json!({ "algorithms": ["SHA-256"] }))),
        ("MD5 first", digest(json!({ "algorithms": ["MD5", "SHA-256"] }))),
        ("both in one line", digest(json!({ "one_header": true, "qop": "auth-int,auth" }))),
        ("qop list", digest(json!({ "qop": "auth,auth-int", "algorithms": ["MD5"] }))),
        ("RFC 2069", digest(json!({ "qop": "", "algorithms": ["MD5"] }))),
        ("SHA-256 without qop", digest(json!({ "qop": "", "algorithms": ["SHA-256"] }))),
        ("a nonce for each request", digest(json!({ "once": true }))),
        ("quotes where none belong", digest(json!({ "style": "quoted" }))),
        ("no quotes where they belong", digest(json!({ "style": "unquoted", "algorithms": ["MD5"] }))),
        ("hashed user names", digest(json!({ "userhash": true }))),
        ("a long realm", digest(json!({ "realm": "Camera, Hall 3 = north; \u{27}7\u{27}" }))),
        ("addresses of its site", json!({ "xaddr": "own-host" })),
        ("paths for addresses", json!({ "xaddr": "path" })),
        ("paths without a slash", json!({ "xaddr": "bare" })),
        ("small letters", json!({ "tells_serial": "b8a44f000015" })),
        ("colons", json!({ "tells_serial": "B8:A4:4F:00:00:16", "subject": "b8:a4:4f:00:00:16" })),
        ("its maker's way to write a serial number", json!({ "subject": "axis-b8a44f000017-eccp256-1" })),
        ("405 for a proof", json!({ "proof": "405" })),
        ("401 for a proof", json!({ "proof": "401" })),
        ("a page for a proof", json!({ "proof": "page" })),
        ("a fault for a proof", json!({ "proof": "soap" })),
        ("a clock that is slow", json!({ "clock_offset_s": -18_000 })),
        ("a slow clock that cannot be set", json!({ "clock_offset_s": -18_000, "clock_locked": true })),
        ("no password", json!({ "open": true })),
        ("no RTSP over WebSocket", json!({ "no_rtsp": true })),
        ("no Media2", json!({ "lacks": ["http://www.onvif.org/ver20/media/wsdl"] })),
    ];
    let (folder, maker) = (tempfile::tempdir().unwrap(), Maker::new());
    let (world, tunnel, _) = start(folder.path(), &maker, odd.len(), false).await;
    let mut cameras = Vec::new();
    for (index, (_, quirks)) in odd.iter().enumerate() {
        register(&tunnel, serial(index)).await;
        cameras.push(Foreign::start(
            folder.path(),
            &world,
            serial(index),
            &Born::Issued(&maker),
            quirks.clone(),
        ));
    }
    for (index, (what, _)) in odd.iter().enumerate() {
        assert_reachable(&tunnel, serial(index), what).await;
    }
    for (index, what) in [(30, "does not offer RTSP over WebSocket"), (31, "has no Media2 service")] {
        let refused = tunnel.handle.open_rtsp(serial(index)).await.err().unwrap().to_string();
        assert!(refused.contains(what) && refused.contains("RTSP over WebSocket"), "{refused}");
    }
    assert_eq!(cameras[27].until("clock-set").await["by"], "Manual");
    for noted in ["open", "clock-set", "clock-wrong"] {
        world.until_metric(&format!(r#"noted_total{{what="{noted}"}} 1"#)).await;
    }
    for (camera, (what, _)) in cameras.into_iter().zip(&odd) {
        let seen = camera.stop().await;
        assert!(seen.iter().all(|seen| seen["event"] != "wrong-password"), "{what}: {seen:#?}");
    }
    tunnel.stop().await;
    world.stop().await;
}

/// Goal: without a battery a camera begins in 1970: it finds our certificates valid all the same, and is told the time;
/// one that does not take it is not stranded.
#[tokio::test]
async fn steps_4_phone_home_to_7_tunnel_a_camera_that_believes_it_is_1970() {
    let (folder, maker) = (tempfile::tempdir().unwrap(), Maker::new());
    let (world, tunnel, _) = start(folder.path(), &maker, 2, false).await;
    let offset = 60 - jiff::Timestamp::now().as_second();
    for (index, locked) in [false, true].into_iter().enumerate() {
        let quirks = json!({ "clock_offset_s": offset, "clock_locked": locked });
        register(&tunnel, serial(index)).await;
        let mut camera = Foreign::start(folder.path(), &world, serial(index), &Born::Issued(&maker), quirks);
        assert_reachable(&tunnel, serial(index), "1970").await;
        if !locked {
            let set = camera.until("clock-set").await;
            assert_eq!(
                (&set["by"], &set["summer"]),
                (&json!("Manual"), &json!("true")),
                "its summer time stays"
            );
        }
        let noted = if locked { "clock-wrong" } else { "clock-set" };
        world.until_metric(&format!(r#"noted_total{{what="{noted}"}} 1"#)).await;
        assert!(camera.stop().await.iter().all(|seen| seen["event"] != "failed"));
    }
    tunnel.stop().await;
    world.stop().await;
}

/// A registration at the dispatcher itself, and what became of it.
async fn put(sts: &Sts, serial: SerialNumber, world: &World, password: &str) -> Registration {
    let new = NewRegistration { user: USER.into(), ..Sts::registration(OAK, password, &world.trust) };
    sts.api.send(Method::PUT, &format!("/api/v1/registrations/{serial}"), &new).await.unwrap()
}

/// Goal: what it lacks is named, to the owner, and nothing is set; before its key is vouched for it is not even asked
/// for its name.
#[tokio::test]
async fn step_5_dispatch_what_a_camera_of_another_make_lacks_is_named() {
    let lacks = |service: &str| json!({ "lacks": [format!("http://www.onvif.org/ver10/{service}/wsdl")] });
    let capabilities = |protocols: &str, modes: &str| json!({ "uplink_capabilities": { "Protocols": protocols, "AuthorizationModes": modes } });
    let faulty = [
        (lacks("advancedsecurity"), "device-lacks-service", "no ONVIF Security service"),
        (lacks("uplink"), "device-lacks-service", "no ONVIF Uplink service"),
        (capabilities("https", "AccessToken"), "device-lacks-service", "client certificate (mTLS)"),
        (capabilities("quic", "mTLS"), "device-lacks-service", "uplink by https or wss"),
        (json!({ "max_uplinks": 0 }), "device-refused", "no room for another uplink (Action/MaxUplinks)"),
        (
            json!({ "username_token": true }),
            "device-refused",
            "no usable authentication scheme offered (nothing)",
        ),
        (json!({ "tells_serial": "ACCC8E000001" }), "wrong-serial", "ACCC8E000001"),
        (json!({ "tells_serial": "DS-2CD2042-I" }), "wrong-serial", "DS-2CD2042-I"),
        (json!({ "digest": { "algorithms": ["SHA-3"] } }), "device-refused", "offered (Digest)"),
        (json!({ "proof": "wrong" }), "wrong-oak", "OAK on its label"),
    ];
    let (folder, maker) = (tempfile::tempdir().unwrap(), Maker::new());
    let (world, tunnel, password) = start(folder.path(), &maker, faulty.len(), false).await;
    let sts = world.sts("shop", &password);
    let mut cameras = Vec::new();
    for (index, (quirks, ..)) in faulty.iter().enumerate() {
        let camera =
            Foreign::start(folder.path(), &world, serial(index), &Born::Issued(&maker), quirks.clone());
        cameras.push(camera);
    }
    for (index, (mut camera, (_, code, says))) in cameras.into_iter().zip(faulty).enumerate() {
        camera.until("connected").await;
        let told = put(&sts, serial(index), &world, PASSWORD).await;
        let problem = told.problem.unwrap_or_else(|| panic!("{says}: dispatched, or not tried"));
        assert_eq!((told.state, problem.code.as_str()), (State::Refused, code), "{}", problem.message);
        assert!(problem.message.contains(says), "{says}: {}", problem.message);
        assert!(problem.message.contains(&serial(index).to_string()), "{}", problem.message);
        if code == "wrong-oak" {
            assert_eq!(camera.calls(), Vec::<&str>::new(), "it was asked for more than a proof");
        }
        let seen = camera.stop().await;
        assert!(seen.iter().all(|seen| seen["event"] != "uplink-set"), "{says}: {seen:#?}");
    }
    tunnel.stop().await;
    world.stop().await;
}

/// Goal: of two addresses it takes what it has room for, and is dispatched.
#[tokio::test]
async fn step_5_dispatch_a_camera_with_room_for_one_uplink_takes_the_first_address() {
    let (folder, maker) = (tempfile::tempdir().unwrap(), Maker::new());
    let (world, tunnel, password) = start(folder.path(), &maker, 1, false).await;
    tunnel.stop().await;
    let sts = world.sts("shop", &password);
    let quirks = json!({ "max_uplinks": 1 });
    let mut camera = Foreign::start(folder.path(), &world, serial(0), &Born::Issued(&maker), quirks);
    camera.until("connected").await;
    assert_eq!(put(&sts, serial(0), &world, PASSWORD).await.state, State::Dispatched);
    assert_eq!(camera.until("uplink-set").await["address"], "https://127.0.0.1:9/");
    camera.until("fault").await;
    assert!(LOG.find("device takes no further address").is_some());
    camera.stop().await;
    world.stop().await;
}

/// Goal: a key that nobody vouches for is refused, and shown nothing: no log-in, no address. Who is on no list is.
#[tokio::test]
async fn step_5_dispatch_a_key_that_no_manufacturer_vouches_for_is_refused() {
    let (folder, maker, other) = (tempfile::tempdir().unwrap(), Maker::new(), Maker::new());
    let (world, tunnel, password) = start(folder.path(), &maker, 3, false).await;
    let sts = world.sts("shop", &password);
    for (index, born, code, says) in [
        (0, Born::SelfSigned, "key-not-vouched", "none of the imported CAs has issued its certificate"),
        (1, Born::Issued(&other), "key-not-vouched", "none of the imported CAs has issued its certificate"),
        // The third is on no list.
        (
            3,
            Born::Issued(&maker),
            "no-oak-proof",
            "HTTP status 404 Not Found), and it is on no manufacturer's list",
        ),
    ] {
        let mut camera = Foreign::start(folder.path(), &world, serial(index), &born, json!({}));
        camera.until("connected").await;
        let told = put(&sts, serial(index), &world, PASSWORD).await;
        let problem = told.problem.expect("refused");
        assert_eq!((told.state, problem.code.as_str()), (State::Refused, code), "{}", problem.message);
        assert!(problem.message.contains(says), "{}", problem.message);
        let seen = camera.stop().await;
        let asked: Vec<_> = seen.iter().filter(|seen| seen["event"] == "call").collect();
        assert!(asked.is_empty(), "{asked:?}");
    }
    // Another OAK than the list's does not even get a claim.
    let wrong = Sts::registration(Oak::new([9; 6]), PASSWORD, &world.trust);
    let path = format!("/api/v1/registrations/{}", serial(2));
    let refused = refusal(sts.api.send::<_, Registration>(Method::PUT, &path, &wrong).await);
    assert_eq!(refused.1, "wrong-oak");
    tunnel.stop().await;
    world.stop().await;
}

/// Goal: a manufacturer without a CA vouches by the list; a key that is not the listed one is refused.
#[tokio::test]
async fn step_5_dispatch_a_key_on_the_manufacturer_s_list_is_vouched_for() {
    let (folder, world, sts) = world_with_account().await;
    let line = |key: Fingerprint| format!("{},{},Dome,{key}\n", serial(0), OAK.label()).to_uppercase();
    import(folder.path(), [line(Fingerprint([7; 32]))].into_iter()).await;
    let mut camera = Foreign::start(folder.path(), &world, serial(0), &Born::SelfSigned, json!({}));
    camera.until("connected").await;
    let refused = put(&sts, serial(0), &world, PASSWORD).await.problem.unwrap();
    assert_eq!(refused.code, "key-not-vouched");
    assert!(refused.message.contains("another key"), "{}", refused.message);

    import(folder.path(), [line(camera.fingerprint)].into_iter()).await;
    assert_eq!(put(&sts, serial(0), &world, PASSWORD).await.state, State::Dispatched);
    camera.until("uplink-set").await;
    camera.stop().await;
    world.stop().await;
}

/// Goal: where the operator says so, a self-signed key is believed the first time, and no other key after it.
#[tokio::test]
async fn step_5_dispatch_a_self_signed_key_is_believed_at_first_use_alone() {
    let folder = tempfile::tempdir().unwrap();
    let password = account(folder.path(), "shop").await;
    import_serials(folder.path(), 1).await;
    let world = World::start_with(folder.path(), |config| config.device_keys = DeviceKeys::FirstUse).await;
    let sts = world.sts("shop", &password);
    let start = || Foreign::start(folder.path(), &world, serial(0), &Born::SelfSigned, json!({}));
    let mut camera = start();
    camera.until("connected").await;
    assert_eq!(put(&sts, serial(0), &world, PASSWORD).await.state, State::Dispatched);
    camera.until("uplink-set").await;
    camera.stop().await;

    let mut impostor = start();
    impostor.until("connected").await;
    sts.until_state(State::Returned).await;
    let refused = put(&sts, serial(0), &world, PASSWORD).await.problem.unwrap();
    assert_eq!(refused.code, "key-not-vouched");
    assert!(refused.message.contains("register it anew"), "{}", refused.message);
    assert!(impostor.stop().await.iter().all(|seen| seen["event"] != "call"));
    world.stop().await;
}

/// Goal: a camera of before TLS 1.3 is told apart in log and metrics, and let in where the operator says so.
#[tokio::test]
async fn step_4_phone_home_with_tls_1_2_alone_is_refused_by_name_or_let_in() {
    for let_in in [false, true] {
        let (folder, maker) = (tempfile::tempdir().unwrap(), Maker::new());
        let (world, tunnel, _) = start(folder.path(), &maker, 1, let_in).await;
        register(&tunnel, serial(0)).await;
        let quirks = json!({ "tls_1_2": true });
        let mut camera = Foreign::start(folder.path(), &world, serial(0), &Born::Issued(&maker), quirks);
        if let_in {
            assert_reachable(&tunnel, serial(0), "TLS 1.2").await;
            assert_eq!(camera.until("connected").await["tls"], "TLSv1.2");
        } else {
            camera.until("failed").await;
            world.until_metric(r#"refused_total{reason="tls-too-old"} 1"#).await;
            let line = LOG.find("refused: it knows no TLS 1.3");
            assert!(line.is_some_and(|line| line.contains("INFO")));
        }
        camera.stop().await;
        tunnel.stop().await;
        world.stop().await;
    }
}
