//! All server roles in one process, as `homing server` runs them, to be loaded with real agents.

use crate::harness::{Folder, Http, Process, homing, output, seconds, wait_for};
use serde_json::{Value, json};
use std::{fs, io, os::unix::fs::PermissionsExt, path::PathBuf, process::Command, time::Duration};

const PASSWORD: &str = "bench-administrator";

/// `homing server` with everything in one folder; ends with it.
pub struct Server {
    /// The process.
    pub process: Process,
    /// The API, with a token.
    pub api: Http,
    /// Where devices phone first.
    pub dispatcher: String,
    /// PEM file that devices trust there.
    pub anchor: PathBuf,
    /// For whatever belongs to it.
    pub folder: Folder,
}

impl Server {
    /// Starts it, and signs in.
    pub fn start() -> Server {
        let folder = Folder::new();
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let [dispatcher, api, external, internal, page] = std::array::from_fn(|_| free());
        let path = |name: &str| folder.join(name).display().to_string();
        let file = folder.join("homing.toml");
        let config = |account: &str| {
            format!(
                "[log]\nfilter = 'warn'\n\
                 [dispatcher]\nexternal = '{dispatcher}'\napi = '{api}'\nnames = ['127.0.0.1']\ndata = '{}'\n\
                 connections_per_address = 1000\n\
                 [tunnel]\nname = 'sts'\nexternal = '{external}'\ninternal = '{internal}'\npassword = '{PASSWORD}'\n\
                 data = '{}'\n\
                 [tunnel.dispatcher]\naddress = 'https://{api}'\ntrust_anchor = '{}'\naccount = 'bench'\n\
                 password = '{account}'\n\
                 [recording]\ndata = '{}'\n\
                 [management]\nlisten = '{page}'\ndata = '{}'\nfirst_password = '{PASSWORD}'\n\
                 [[management.tunnel_servers]]\nname = 'sts'\nurl = 'http://{internal}'\nuser = 'vms'\n\
                 password = '{PASSWORD}'\n",
                path("dispatcher"),
                path("tunnel"),
                path("dispatcher/dispatcher-ca.pem"),
                path("recording"),
                path("management"),
            )
        };
        let write = |account: &str| {
            fs::write(&file, config(account)).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        };
        write("not known yet");
        let add = ["dispatcher", "account", "add", "bench", "--config"];
        let account = output(Command::new(homing()).args(add).arg(&file));
        write(String::from_utf8(account).unwrap().trim());

        let mut command = Command::new(homing());
        let process = Process::spawn("homing server", command.args(["server", "--config"]).arg(&file));
        let http = Http::new(&format!("http://{page}"));
        wait_for("the page answers", seconds(30), || http.get("/sign-in"));
        let api = http.sign_in("admin", PASSWORD);
        let anchor = folder.join("dispatcher/dispatcher-ca.pem");
        Server { process, api, dispatcher, anchor, folder }
    }

    /// Registers a device.
    pub fn register(&self, serial: &str, oak: &str, user: &str, password: &str) {
        let asked = json!({"serial": serial, "oak": oak, "user": user, "password": password});
        self.api.post("/api/v1/devices", &asked).unwrap();
    }

    /// Waits until so many devices are connected, and adds all of them; gives the number of cameras.
    pub fn add_all(&self, count: usize, within: Duration) -> usize {
        let devices = wait_for(&format!("{count} devices are connected"), within, || {
            let devices = self.api.json("/api/v1/devices")?.as_array().cloned().unwrap_or_default();
            let connected = devices.iter().filter(|device| device["connected"] == true).count();
            if connected == count { Ok(devices) } else { Err(io::Error::other(format!("{connected} are"))) }
        });
        let serials: Vec<&Value> = devices.iter().map(|device| &device["serial"]).collect();
        self.api.post("/api/v1/hardware", &json!({"serials": serials})).unwrap();
        wait_for("all cameras are recorded", seconds(60), || {
            let cameras = self.api.json("/api/v1/cameras")?.as_array().cloned().unwrap_or_default();
            let recorded = |camera: &&Value| camera.pointer("/status/state") == Some(&json!("recording"));
            let recorded = cameras.iter().filter(recorded).count();
            if recorded == count { Ok(recorded) } else { Err(io::Error::other(format!("{recorded} are"))) }
        })
    }
}
