//! `cargo xtask test --only scan`: scanners that are not ours, against a `homing server` that runs.
//!
//! Each scanner is a Python script in `xtask/scan/` that gets the server's description as its one argument (JSON, see
//! [`Server::describe`]), and fails by its exit status. To add one: its packages to `xtask/scan/requirements.txt`, with
//! their versions, its script to [`SCANNERS`].

use crate::root;
use anyhow::{Context, bail, ensure};
use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Scripts in `xtask/scan/`.
const SCANNERS: &[&str] = &["tls.py", "apis.py"];

/// Opens the server's APIs to scanners.
const PASSWORD: &str = "for the scan alone, not a secret";

/// To start the server.
const ATTEMPTS: u32 = 3;

/// For the server to listen on every port, built without optimisation on a busy machine.
const START: Duration = Duration::from_secs(60);

/// Scans a server as it is by default, and one that lets devices speak TLS 1.2.
///
/// # Errors
/// When something cannot be installed or started, or a scanner has found something.
pub fn run() -> anyhow::Result<()> {
    let python = python()?;
    for tls_1_2 in [false, true] {
        // A port that was free may be somebody's when the server takes it.
        let server = (1..ATTEMPTS).find_map(|_| Server::start(tls_1_2).ok());
        let server = server.map_or_else(|| Server::start(tls_1_2), Ok)?;
        for scanner in SCANNERS {
            let script = root().join("xtask/scan").join(scanner);
            let status =
                Command::new(&python).arg(script).arg(server.describe()).stdin(Stdio::null()).status();
            let status = status.with_context(|| format!("cannot start {}", python.display()))?;
            ensure!(status.success(), "{scanner} has found something; the server's log is above it");
        }
    }
    Ok(())
}

/// The interpreter of an environment of our own under the target folder, with the pinned packages.
fn python() -> anyhow::Result<PathBuf> {
    let place = target().join("scan/venv");
    let (python, stamp) = (place.join("bin/python"), place.join("installed.txt"));
    let wanted =
        fs::read_to_string(root().join("xtask/scan/requirements.txt")).context("requirements.txt")?;
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    println!("installing {} into {}", wanted.trim().replace('\n', ", "), place.display());
    let quietly = |command: &mut Command| {
        let output =
            command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?} failed (Debian: python3-venv):\n{said}");
        anyhow::Ok(())
    };
    quietly(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&place))?;
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"];
    quietly(Command::new(&python).args(install).arg(root().join("xtask/scan/requirements.txt")))?;
    fs::write(stamp, wanted).context("scan/venv")?;
    Ok(python)
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A `homing server` with every role, on loopback; ended when it is dropped.
struct Server {
    child: Child,
    folder: PathBuf,
    tls_1_2: bool,
    /// External and API of the dispatcher; external, internal and gateway of the tunnel server; the page.
    ports: [u16; 6],
}

impl Server {
    fn start(tls_1_2: bool) -> anyhow::Result<Server> {
        let folder = target().join("scan/server");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).context("target/scan/server")?;
        let ports = free_ports()?;
        let [dispatcher, api, external, internal, gateway, page] = ports;
        let data = |role: &str| folder.join(role).display().to_string();
        let config = format!(
            "[dispatcher]\nexternal = \"127.0.0.1:{dispatcher}\"\napi = \"127.0.0.1:{api}\"\ntls_1_2 = {tls_1_2}\n\
             operator_token = \"{PASSWORD}\"\ndata = {:?}\n[tunnel]\nexternal = \"127.0.0.1:{external}\"\ninternal = \"127.0.0.1:{internal}\"\n\
             tls_1_2 = {tls_1_2}\ndata = {:?}\npassword = \"{PASSWORD}\"\n[tunnel.gateway]\n\
             rtsps = \"127.0.0.1:{gateway}\"\n[recording]\nretention_gb = 1\n\
             data = {:?}\n[management]\nlisten = \"127.0.0.1:{page}\"\ntls = \"own\"\ndata = {:?}\n",
            data("dispatcher"),
            data("tunnel"),
            data("recording"),
            data("management"),
        );
        let file = folder.join("homing.toml");
        fs::write(&file, config).context("homing.toml")?;
        // The same choice of packages as every other step's, so that nothing is built anew.
        let build = ["test", "--quiet", "--workspace", "--no-run"];
        let built = Command::new("cargo").args(build).current_dir(root()).stdin(Stdio::null()).status();
        ensure!(built.context("cargo")?.success(), "`cargo {}` failed", build.join(" "));
        let log = fs::File::create(folder.join("log.txt")).context("log.txt")?;
        let program = target().join("debug/homing");
        let child = Command::new(&program)
            .args(["server", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("log.txt")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut server = Server { child, folder, tls_1_2, ports };
        server.wait()?;
        Ok(server)
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            if self.ports.iter().all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok()) {
                return Ok(());
            }
            let ended = self.child.try_wait().context("homing server")?;
            if ended.is_some() || began.elapsed() > START {
                let log = fs::read_to_string(self.folder.join("log.txt")).unwrap_or_default();
                bail!("homing server does not listen on {:?}:\n{log}", self.ports);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What a scanner needs to know: its TLS listeners, `devices` for those that devices dial; and its APIs.
    fn describe(&self) -> String {
        let [dispatcher, api, external, internal, gateway, page] = self.ports;
        let ca = self.folder.join("dispatcher/dispatcher-ca.pem");
        let apis = format!(
            "\"dispatcher_api\":{{\"url\":\"https://127.0.0.1:{api}\",\"ca\":{ca:?},\"operator_token\":\"{PASSWORD}\"}},\
             \"tunnel_api\":{{\"url\":\"http://127.0.0.1:{internal}\",\"user\":\"vms\",\"password\":\"{PASSWORD}\"}}"
        );
        let listener = |name: &str, port: u16, role: &str, devices: bool| {
            let ca = self.folder.join(role).join(format!("{role}-ca.pem"));
            format!(
                "{{\"name\":\"{name}\",\"address\":\"127.0.0.1:{port}\",\"ca\":{ca:?},\"devices\":{devices},\"http\":{}}}",
                port != gateway
            )
        };
        format!(
            "{{\"folder\":{:?},\"tls_1_2\":{},{apis},\"listeners\":[{},{},{},{},{},{}]}}",
            self.folder,
            self.tls_1_2,
            listener("dispatcher, for devices", dispatcher, "dispatcher", true),
            listener("dispatcher, API", api, "dispatcher", false),
            listener("tunnel server, for devices", external, "tunnel", true),
            listener("tunnel server, for VMSs", internal, "tunnel", false),
            listener("tunnel server, RTSPS", gateway, "tunnel", false),
            listener("the page", page, "management", false),
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It is ours alone and its folder is thrown away: nothing is lost.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Held until all are known, so that they differ.
fn free_ports() -> anyhow::Result<[u16; 6]> {
    let mut held = Vec::new();
    let mut ports = [0; 6];
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0").context("a free port")?;
        *port = listener.local_addr().context("a free port")?.port();
        held.push(listener);
    }
    Ok(ports)
}
