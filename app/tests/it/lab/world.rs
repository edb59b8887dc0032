//! Every program of the picture, each in its place, configured as an administrator would.

use super::{
    Host,
    camera::{self, Camera, Encoding},
    layout::{
        DISPATCHER, DISPATCHER_API_PORT, DISPATCHER_PORT, EXTERNAL_IPV6, EXTERNAL_PORT, GATEWAY_PORT,
        INTERNAL_PORT, Layout, PUBLIC, UDP_PORTS,
    },
    topology::Lab,
};
use crate::harness::{self, Folder, Http, Process, homing, homing_agent, seconds, wait_for};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{fs, io, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

/// Passwords that this world is built with; none of them may turn up in a log.
pub const SECRETS: [&str; 3] = [camera::PASSWORD, "Lab-Internal-0815", "Lab-Administrator-2342"];
/// How long a program may take to be there, built without optimisation on a busy machine.
const START: Duration = seconds(30);

/// The programs; in the order in which they are to end.
pub struct World {
    /// `homing-agent` in the site.
    pub agent: Process,
    /// The camera in the site, which is not ours.
    pub camera: Camera,
    /// `homing management`: page, API and recording, in the surveillance network.
    pub management: Process,
    /// `homing tunnel`, where the layout has it.
    pub tunnel: Process,
    /// `homing dispatcher`, out in the Internet.
    pub dispatcher: Process,
    /// The API, asked from the surveillance network, with a token of the administrator's.
    pub api: Http,
    /// `host:port` of the RTSP gateway.
    gateway: String,
    central: Host,
    site: Host,
    agent_config: PathBuf,
    /// Serial number and OAK on the label.
    pub label: (String, String),
    folder: Folder,
}

impl World {
    /// Starts everything; nobody is registered and no button is pressed.
    pub fn build(lab: &Lab, encoding: Encoding) -> World {
        let folder = Folder::new();
        let (internet, tunnel_host, central, site) =
            (lab.internet(), lab.tunnel(), lab.central(), lab.site());
        let (external, public) = match lab.ipv6 {
            false => (lab.layout.external().to_owned(), PUBLIC.to_owned()),
            true => (format!("[{EXTERNAL_IPV6}]"), format!("[{EXTERNAL_IPV6}]")),
        };
        let [external, public] = [external, public].map(|host| format!("{host}:{EXTERNAL_PORT}"));
        let internal = format!("{}:{INTERNAL_PORT}", lab.layout.internal());
        let gateway = format!("{}:{GATEWAY_PORT}", lab.layout.internal());
        let dispatcher_api = format!("{DISPATCHER}:{DISPATCHER_API_PORT}");

        let dispatcher_config = write(
            &folder,
            "dispatcher.toml",
            &format!(
                "[dispatcher]\nexternal = '{DISPATCHER}:{DISPATCHER_PORT}'\napi = '{dispatcher_api}'\n\
                 names = ['{DISPATCHER}']\ndata = '{}'\n",
                folder.join("dispatcher").display()
            ),
        );
        let homing = homing();
        let program = homing.to_str().expect("a plain path");
        let account =
            internet.run(program, &["dispatcher", "account", "add", "lab", "--config", &dispatcher_config]);
        let dispatcher = internet.spawn(&homing, &["dispatcher", "--config", &dispatcher_config]);
        wait_until_listening(&internet, &dispatcher_api);
        let anchor = folder.join("dispatcher/dispatcher-ca.pem");
        assert!(anchor.is_file(), "{}: the dispatcher's own CA", anchor.display());

        let [_, internal_password, admin_password] = SECRETS;
        // As an administrator's script would.
        let tunnel_config = folder.join("tunnel.toml").display().to_string();
        let data = folder.join("tunnel").display().to_string();
        let account = write(&folder, "account", account.trim());
        let password = write(&folder, "password", internal_password);
        let turned_around = lab.layout == Layout::OneAdaptor;
        if turned_around {
            lab.load("firewall1", "# Leads back");
        }
        let set_up =
            tunnel_host.run(
                program,
                &[
                    &[
                        "tunnel",
                        "setup",
                        "--yes",
                        "--config",
                        &tunnel_config,
                        "--name",
                        "sts",
                        "--data",
                        &data,
                    ][..],
                    &["--external", &external, "--internal", &internal, "--public", &public],
                    &["--rtsp", &gateway],
                    &["--dispatcher", &dispatcher_api, "--dispatcher-ca", &anchor.display().to_string()],
                    &["--account", "lab", "--account-password-file", &account, "--password-file", &password],
                ]
                .concat(),
            );
        // No firewall of the others turns connections from inside around; with IPv6 there is nothing to turn.
        let leads_back = turned_around || lab.ipv6;
        assert_eq!(set_up.contains("Warning"), !leads_back, "{set_up}");
        assert_eq!(set_up.contains("hairpin NAT"), !leads_back, "{set_up}");
        // What the document wants beside the rules for UDP.
        let written = fs::read_to_string(&tunnel_config).unwrap();
        let udp = format!("[tunnel.gateway]\nudp_ports = {UDP_PORTS:?}\n");
        write(&folder, "tunnel.toml", &written.replace("[tunnel.gateway]\n", &udp));
        let tunnel = tunnel_host.spawn(&homing, &["tunnel", "--config", &tunnel_config]);
        wait_until_listening(&tunnel_host, &internal);

        let central_config = write(
            &folder,
            "central.toml",
            &format!(
                "[recording]\ndata = '{}'\n[management]\nlisten = '127.0.0.1:8080'\ndata = '{}'\n\
                 first_password = '{admin_password}'\n[[management.tunnel_servers]]\nname = 'sts'\n\
                 url = 'https://{internal}'\ntrust_anchor = '{}'\nuser = 'vms'\n\
                 password = '{internal_password}'\n",
                folder.join("recording").display(),
                folder.join("management").display(),
                folder.join("tunnel/tunnel-ca.pem").display(),
            ),
        );
        let management = central.spawn(&homing, &["management", "--config", &central_config]);
        wait_until_listening(&central, "127.0.0.1:8080");
        let api = central.http("http://127.0.0.1:8080").sign_in("admin", admin_password);

        let camera = Camera::start(&site, "127.0.0.1", 8554, encoding);
        let agent_config = write(
            &folder,
            "agent.toml",
            &format!(
                "data = '{}'\n[[dispatchers]]\naddress = '{DISPATCHER}:{DISPATCHER_PORT}'\ntrust_anchor = '{}'\n\
                 [[cameras]]\nname = 'Gate'\nrtsp = '{}'\n",
                folder.join("agent").display(),
                anchor.display(),
                camera.url,
            ),
        );
        let agent = site.spawn(homing_agent(), &["run", "--config", &agent_config]);
        let agent_config = PathBuf::from(agent_config);
        let mut world = World {
            agent,
            camera,
            management,
            tunnel,
            dispatcher,
            api,
            gateway,
            central,
            site,
            agent_config,
            label: Default::default(),
            folder,
        };
        world.label = wait_for("the agent runs", START, || {
            let status: Value = serde_json::from_str(&world.agent("status")?).map_err(io::Error::other)?;
            let serial = status["serial"].as_str().map(str::to_owned);
            serial.ok_or_else(|| io::Error::other(status.to_string()))?;
            harness::label(&world.agent("label")?).ok_or_else(|| io::Error::other("a label without numbers"))
        });
        world
    }

    /// Runs a command of the agent's, in the site.
    ///
    /// # Errors
    /// With what it said.
    pub fn agent(&self, command: &str) -> io::Result<String> {
        let output = self
            .site
            .command(homing_agent())
            .arg("--config")
            .arg(&self.agent_config)
            .arg(command)
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(said);
        }
        Err(io::Error::other(format!("homing-agent {command}: {}", String::from_utf8_lossy(&output.stderr))))
    }

    /// Step 1: registers the device as the administrator would from its label.
    pub fn register(&self) -> io::Result<Value> {
        let (serial, oak) = &self.label;
        let asked = json!({"serial": serial, "oak": oak, "user": camera::USER, "password": camera::PASSWORD,
            "name": "Gate", "description": "In the lab"});
        self.api.post("/api/v1/devices", &asked)
    }

    /// The device as the administrator sees it.
    pub fn device(&self) -> io::Result<Value> {
        self.api.json(&format!("/api/v1/devices/{}", self.label.0))
    }

    /// Waits until the device has this state and has reached this step.
    #[track_caller]
    pub fn wait_for_device(&self, state: &str, step: &str, within: Duration) -> Value {
        wait_for(&format!("the device is {state} at step {step}"), within, || {
            let device = self.device()?;
            let as_wanted = device["state"] == state && device["step"] == step;
            if as_wanted { Ok(device) } else { Err(io::Error::other(device.to_string())) }
        })
    }

    /// Step 8: adds the device as hardware, and gives its one camera.
    #[track_caller]
    pub fn add(&self) -> i64 {
        let hardware = self.api.post("/api/v1/hardware", &json!({"serial": self.label.0})).unwrap();
        self.wait_for_device("green", "add", seconds(10));
        hardware.pointer("/cameras/0/id").and_then(Value::as_i64).expect("one camera")
    }

    /// When the last frame was taken that is recorded.
    pub fn last_frame(&self, camera: i64) -> io::Result<Timestamp> {
        let camera = self.api.json(&format!("/api/v1/cameras/{camera}"))?;
        let at = camera.pointer("/status/last_frame").and_then(|at| at.as_str()?.parse().ok());
        at.ok_or_else(|| io::Error::other(camera.to_string()))
    }

    /// The same, if that was after `moment`.
    pub fn recorded_until(&self, camera: i64, moment: Timestamp) -> io::Result<Timestamp> {
        let last = self.last_frame(camera)?;
        if last > moment { Ok(last) } else { Err(io::Error::other(format!("recorded until {last}"))) }
    }

    /// Saves the recording of a camera between two moments, and gives its place.
    #[track_caller]
    pub fn export(&self, camera: i64, start: Timestamp, end: Timestamp) -> PathBuf {
        let path = format!("/api/v1/cameras/{camera}/recording.mp4?start={start}&end={end}");
        let answer = self.api.get(&path).and_then(crate::harness::http::Answer::success);
        let file = self.folder.join("recording.mp4");
        fs::write(&file, answer.unwrap_or_else(|error| panic!("{path}: {error}")).body).unwrap();
        file
    }

    /// Watches the device in the surveillance network with ffmpeg, through the RTSP gateway over `tcp` or `udp`, and gives
    /// what came: so many access units, as Annex B.
    #[track_caller]
    pub fn watch(&self, transport: &str, units: u32) -> Vec<u8> {
        let url = format!("rtsp://vms:{}@{}/{}", SECRETS[1], self.gateway, self.label.0);
        let mut ffmpeg = self.central.command("ffmpeg");
        ffmpeg.args(["-v", "error", "-xerror", "-timeout", "20000000", "-rtsp_transport", transport]);
        ffmpeg.args(["-i", &url, "-map", "0:v:0", "-c", "copy", "-frames:v", &units.to_string()]);
        harness::output(ffmpeg.args(["-f", "h264", "-"]))
    }

    /// Everything that any program of ours has logged so far.
    pub fn logs(&self) -> Vec<String> {
        [&self.agent, &self.management, &self.tunnel, &self.dispatcher]
            .into_iter()
            .flat_map(Process::logged)
            .collect()
    }

    /// Asks every program of ours to end, from the site inwards.
    #[track_caller]
    pub fn end(&mut self) {
        for process in [&mut self.agent, &mut self.management, &mut self.tunnel, &mut self.dispatcher] {
            let status = process.terminate(seconds(10));
            assert!(status.success(), "{status}");
        }
    }
}

/// A file that only its owner can read, as its secrets want it.
fn write(folder: &Folder, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

#[track_caller]
fn wait_until_listening(host: &Host, address: &str) {
    wait_for(&format!("somebody listens at {address}"), START, || host.connect(address).map(drop));
}
