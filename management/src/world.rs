//! What this management server knows of the others: tunnel servers with their devices, the recording
//! server with its hardware; merged into the states that an administrator sees (steps 1 to 8).
//!
//! Invariant: every change goes through a method here, which puts what follows from it on the
//! [`Board`] before it returns; no other module writes to the board.

use crate::{
    board::{Board, Kind},
    config::{Config, TunnelServer},
    views,
};
use homing_base::tls::fingerprint_of_pem;
use homing_protocol::{
    SerialNumber,
    api::{Expiry, ProblemDetail, recording, tunnel},
};
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Cheap to clone; all clones are the same world.
#[derive(Clone)]
pub struct World {
    inner: Arc<Mutex<Inner>>,
    board: Board,
}

struct Inner {
    tunnels: BTreeMap<String, Tunnel>,
    recording_server: String,
    recording_problem: Option<ProblemDetail>,
    hardware: Vec<recording::Hardware>,
    /// Which hardware a device became, by its serial number.
    added: HashMap<SerialNumber, i64>,
}

struct Tunnel {
    facts: Facts,
    reachable: bool,
    since: Timestamp,
    problem: Option<ProblemDetail>,
    server: Option<tunnel::Server>,
    devices: BTreeMap<SerialNumber, tunnel::Device>,
}

/// What was entered about a tunnel server, without its password.
#[derive(Clone, Debug)]
pub struct Facts {
    description: String,
    url: String,
    external: String,
    user: String,
    trusted: Option<String>,
    configured: bool,
}

impl Facts {
    /// Of a tunnel server that stands in the configuration file, or was added on the page.
    pub fn of(server: &TunnelServer, configured: bool) -> Self {
        let anchor = server.trust_anchor_pem().ok().flatten();
        Facts {
            description: server.description.clone(),
            url: server.url.clone(),
            external: server.external.clone(),
            user: server.user.clone(),
            trusted: anchor.and_then(|pem| fingerprint_of_pem(&pem)),
            configured,
        }
    }
}

impl Tunnel {
    fn new(facts: Facts) -> Self {
        Tunnel {
            facts,
            reachable: false,
            since: Timestamp::now(),
            problem: None,
            server: None,
            devices: BTreeMap::new(),
        }
    }
}

impl World {
    /// The configured servers, none of them reached yet.
    pub fn new(config: &Config) -> Self {
        let tunnel = |server: &TunnelServer| (server.name.clone(), Tunnel::new(Facts::of(server, true)));
        let world = World {
            inner: Arc::new(Mutex::new(Inner {
                tunnels: config.tunnel_servers.iter().map(tunnel).collect(),
                recording_server: config.recording_server.clone(),
                recording_problem: None,
                hardware: Vec::new(),
                added: HashMap::new(),
            })),
            board: Board::new(),
        };
        let inner = world.lock();
        for name in inner.tunnels.keys() {
            world.show_tunnel(&inner, name);
        }
        world.show_recording(&inner);
        drop(inner);
        world
    }

    /// Where changes are seen.
    pub fn board(&self) -> &Board {
        &self.board
    }

    // Which tunnel servers there are

    /// One more, or one of which something else was entered.
    pub fn set_tunnel(&self, name: &str, facts: Facts) {
        let mut inner = self.lock();
        match inner.tunnels.get_mut(name) {
            Some(tunnel) => tunnel.facts = facts,
            None => {
                inner.tunnels.insert(name.to_owned(), Tunnel::new(facts));
            }
        }
        self.show_tunnel(&inner, name);
    }

    /// One less. Its devices are not known any more.
    pub fn remove_tunnel(&self, name: &str) {
        let mut inner = self.lock();
        if inner.tunnels.remove(name).is_some() {
            let prefix = format!("{name}/");
            self.board.retain(Kind::Device, |key| !key.starts_with(&prefix));
            self.board.remove(Kind::TunnelServer, name);
        }
    }

    /// Hardware that is reached through a tunnel server.
    pub fn hardware_at(&self, name: &str) -> Vec<i64> {
        let inner = self.lock();
        let at = |hardware: &&recording::Hardware| matches!(&hardware.device, recording::DeviceAddress::Tunnel { server, .. } if server == name);
        inner.hardware.iter().filter(at).map(|hardware| hardware.id).collect()
    }

    // What tunnel servers tell

    /// A tunnel server's event stream is open, and these are all its devices.
    pub fn tunnel_reached(&self, name: &str, server: tunnel::Server, devices: Vec<tunnel::Device>) {
        let mut inner = self.lock();
        let Some(tunnel) = inner.tunnels.get_mut(name) else { return };
        if !tunnel.reachable {
            tunnel.since = Timestamp::now();
        }
        tunnel.reachable = true;
        tunnel.problem = None;
        tunnel.server = Some(server);
        tunnel.devices = devices.into_iter().map(|device| (device.serial, device)).collect();
        let prefix = format!("{name}/");
        let wanted: HashSet<String> =
            tunnel.devices.keys().map(|serial| format!("{prefix}{serial}")).collect();
        self.board.retain(Kind::Device, |key| !key.starts_with(&prefix) || wanted.contains(key));
        let serials: Vec<SerialNumber> = tunnel.devices.keys().copied().collect();
        for serial in serials {
            self.show_device(&inner, name, serial);
        }
        self.show_tunnel(&inner, name);
    }

    /// What a tunnel server says of itself.
    pub fn tunnel_server(&self, name: &str, server: tunnel::Server) {
        let mut inner = self.lock();
        let Some(tunnel) = inner.tunnels.get_mut(name) else { return };
        tunnel.server = Some(server);
        self.show_tunnel(&inner, name);
    }

    /// A tunnel server cannot be reached. Nothing is known of its devices' uplinks then, and nothing
    /// can be done through them: they count as not connected.
    pub fn tunnel_lost(&self, name: &str, problem: ProblemDetail) {
        let mut inner = self.lock();
        let Some(tunnel) = inner.tunnels.get_mut(name) else { return };
        if tunnel.reachable {
            tunnel.since = Timestamp::now();
        }
        tunnel.reachable = false;
        for device in tunnel.devices.values_mut() {
            if device.connected {
                device.connected = false;
                device.since = Some(tunnel.since);
                device.peer = None;
                device.rtt_ms = None;
                (device.bps_in, device.bps_out) = (0, 0);
                device.uplinks.clear();
            }
            device.problem = Some(problem.clone());
        }
        tunnel.problem = Some(problem);
        let serials: Vec<SerialNumber> = tunnel.devices.keys().copied().collect();
        for serial in serials {
            self.show_device(&inner, name, serial);
        }
        self.show_tunnel(&inner, name);
    }

    /// A device is new at a tunnel server, or has changed.
    ///
    /// True if it has a new uplink: it was not connected before, or from another address or port.
    pub fn device(&self, name: &str, device: tunnel::Device) -> bool {
        let mut inner = self.lock();
        let Some(tunnel) = inner.tunnels.get_mut(name) else { return false };
        let (serial, connected, peer) = (device.serial, device.connected, device.peer.clone());
        let before = tunnel.devices.insert(serial, device);
        self.show_device(&inner, name, serial);
        self.show_tunnel(&inner, name);
        connected && before.is_none_or(|before| !before.connected || before.peer != peer)
    }

    /// A device is no longer registered at a tunnel server.
    pub fn device_removed(&self, name: &str, serial: SerialNumber) {
        let mut inner = self.lock();
        let Some(tunnel) = inner.tunnels.get_mut(name) else { return };
        tunnel.devices.remove(&serial);
        self.board.remove(Kind::Device, &format!("{name}/{serial}"));
        self.show_tunnel(&inner, name);
    }

    // What the recording server tells

    /// All hardware, or why it is not known.
    pub fn recording(&self, hardware: Result<Vec<recording::Hardware>, ProblemDetail>) {
        let mut inner = self.lock();
        match hardware {
            Err(problem) => inner.recording_problem = Some(problem),
            Ok(hardware) => {
                inner.recording_problem = None;
                let added: HashMap<SerialNumber, i64> = hardware
                    .iter()
                    .filter(|hardware| matches!(hardware.device, recording::DeviceAddress::Tunnel { .. }))
                    .map(|hardware| (hardware.serial, hardware.id))
                    .collect();
                let before = std::mem::replace(&mut inner.added, added);
                inner.hardware = hardware;
                self.show_hardware(&inner);
                self.show_devices_added_since(&inner, &before);
            }
        }
        self.show_recording(&inner);
    }

    // Questions

    /// Every registered device, by tunnel server and serial number.
    pub fn devices(&self) -> Vec<views::Device> {
        let inner = self.lock();
        let of_tunnel = |(name, tunnel): (&String, &Tunnel)| {
            tunnel.devices.values().map(|device| inner.view(name, device)).collect::<Vec<_>>()
        };
        inner.tunnels.iter().flat_map(of_tunnel).collect()
    }

    /// One registered device. While it moves it is registered at two tunnel servers: what counts is where it is, or
    /// where it has not gone away from.
    pub fn find(&self, serial: SerialNumber) -> Option<views::Device> {
        self.registrations(serial).into_iter().max_by_key(|device| (device.connected, !device.moved()))
    }

    /// Every registration of a device: one, or two while it moves and until the move is done with.
    pub fn registrations(&self, serial: SerialNumber) -> Vec<views::Device> {
        let inner = self.lock();
        let at = |(name, tunnel): (&String, &Tunnel)| {
            tunnel.devices.get(&serial).map(|device| inner.view(name, device))
        };
        inner.tunnels.iter().filter_map(at).collect()
    }

    /// Hardware whose device is not connected where the recording server looks for it, but at another tunnel server.
    pub fn gone_elsewhere(&self) -> Vec<(i64, String)> {
        let inner = self.lock();
        let is_at = |tunnel: &Tunnel, serial: &SerialNumber| {
            tunnel.devices.get(serial).is_some_and(|device| device.connected)
        };
        let elsewhere = |hardware: &recording::Hardware| {
            let recording::DeviceAddress::Tunnel { server, serial } = &hardware.device else { return None };
            if inner.tunnels.get(server).is_some_and(|tunnel| is_at(tunnel, serial)) {
                return None;
            }
            let (name, _) = inner.tunnels.iter().find(|(_, tunnel)| is_at(tunnel, serial))?;
            Some((hardware.id, name.clone()))
        };
        inner.hardware.iter().filter_map(elsewhere).collect()
    }

    /// Every certificate that tunnel servers have told of.
    pub fn certificates(&self) -> Vec<(String, Expiry)> {
        let inner = self.lock();
        let of_tunnel = |(name, tunnel): (&String, &Tunnel)| {
            let certificates = tunnel.server.iter().flat_map(|server| server.certificates.clone());
            certificates.map(|expiry| (name.clone(), expiry)).collect::<Vec<_>>()
        };
        inner.tunnels.iter().flat_map(of_tunnel).collect()
    }

    /// A device of a tunnel server, as people see it.
    pub fn view(&self, name: &str, device: &tunnel::Device) -> views::Device {
        self.lock().view(name, device)
    }

    /// Every tunnel server.
    pub fn tunnel_servers(&self) -> Vec<views::TunnelServer> {
        let inner = self.lock();
        inner.tunnels.iter().map(|(name, tunnel)| tunnel.view(name)).collect()
    }

    /// Every recording server.
    pub fn recording_servers(&self) -> Vec<views::RecordingServer> {
        vec![self.lock().recording_view()]
    }

    // To the board

    fn show_tunnel(&self, inner: &Inner, name: &str) {
        if let Some(tunnel) = inner.tunnels.get(name) {
            self.board.put(Kind::TunnelServer, name, &tunnel.view(name));
        }
    }

    fn show_device(&self, inner: &Inner, name: &str, serial: SerialNumber) {
        if let Some(device) = inner.tunnels.get(name).and_then(|tunnel| tunnel.devices.get(&serial)) {
            self.board.put(Kind::Device, &format!("{name}/{serial}"), &inner.view(name, device));
        }
    }

    fn show_devices_added_since(&self, inner: &Inner, before: &HashMap<SerialNumber, i64>) {
        for (name, tunnel) in &inner.tunnels {
            for serial in tunnel.devices.keys() {
                if inner.added.get(serial) != before.get(serial) {
                    self.show_device(inner, name, *serial);
                }
            }
        }
    }

    fn show_recording(&self, inner: &Inner) {
        self.board.put(Kind::RecordingServer, &inner.recording_server, &inner.recording_view());
    }

    fn show_hardware(&self, inner: &Inner) {
        let cameras = || inner.hardware.iter().flat_map(|hardware| &hardware.cameras);
        let wanted: HashSet<String> = cameras().map(|camera| camera.id.to_string()).collect();
        self.board.retain(Kind::Camera, |key| wanted.contains(key));
        let wanted: HashSet<String> = inner.hardware.iter().map(|hardware| hardware.id.to_string()).collect();
        self.board.retain(Kind::Hardware, |key| wanted.contains(key));
        for hardware in &inner.hardware {
            self.board.put(Kind::Hardware, &hardware.id.to_string(), &views::Hardware::calm(hardware));
        }
        for camera in cameras() {
            self.board.put(Kind::Camera, &camera.id.to_string(), &views::Camera::calm(camera));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn view(&self, tunnel: &str, device: &tunnel::Device) -> views::Device {
        let mut view = views::Device::new(tunnel, device, self.added.get(&device.serial).copied());
        if let Some(moving) = &mut view.moving {
            moving.tunnel_server = self.dialled_at(&moving.servers);
        }
        view
    }

    /// The tunnel server that devices reach under one of these addresses.
    fn dialled_at(&self, addresses: &[String]) -> Option<String> {
        let is_it = |tunnel: &Tunnel| {
            let public = tunnel.server.iter().flat_map(|server| &server.public);
            public.into_iter().any(|address| addresses.contains(address))
        };
        self.tunnels.iter().find(|(_, tunnel)| is_it(tunnel)).map(|(name, _)| name.clone())
    }

    fn recording_view(&self) -> views::RecordingServer {
        views::RecordingServer {
            name: self.recording_server.clone(),
            reachable: self.recording_problem.is_none(),
            problem: self.recording_problem.clone().map(Into::into),
            hardware: self.hardware.len(),
            cameras: self.hardware.iter().map(|hardware| hardware.cameras.len()).sum(),
        }
    }
}

impl Tunnel {
    /// What was entered as external address is not what devices are told.
    fn elsewhere(&self) -> Option<ProblemDetail> {
        let public = &self.server.as_ref()?.public;
        let entered = &self.facts.external;
        if entered.is_empty() || public.iter().any(|address| address.eq_ignore_ascii_case(entered)) {
            return None;
        }
        let message = format!(
            "Devices are told to dial {}, not the external address {entered} that was entered here: correct one of \
             them (public in [tunnel], or Edit)",
            public.join(", ")
        );
        Some(ProblemDetail { code: "other-external-address".into(), message, step: None })
    }

    fn view(&self, name: &str) -> views::TunnelServer {
        let server = self.server.as_ref();
        let dispatcher_problem = server.and_then(|server| server.dispatcher_problem.clone());
        let Facts { description, url, external, user, trusted, configured } = self.facts.clone();
        views::TunnelServer {
            name: name.to_owned(),
            url,
            description,
            external_address: external,
            user,
            trusted,
            configured,
            reachable: self.reachable,
            since: self.since,
            external: server.map(|server| server.external.clone()),
            public: server.map(|server| server.public.clone()).unwrap_or_default(),
            dispatcher: server.map(|server| server.dispatcher.clone()),
            problem: self.problem.clone().or(dispatcher_problem).or_else(|| self.elsewhere()).map(Into::into),
            devices: self.devices.len(),
            connected: self.devices.values().filter(|device| device.connected).count(),
            account: server.map(|server| server.account.clone()).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use homing_protocol::Step;

    fn config() -> Config {
        let server = crate::config::TunnelServer {
            name: "sts".into(),
            url: "http://127.0.0.1:1".into(),
            user: "vms".into(),
            password: "sesame".into(),
            ..TunnelServer::default()
        };
        Config { tunnel_servers: vec![server], ..Config::default() }
    }

    fn server() -> tunnel::Server {
        tunnel::Server {
            name: "sts".into(),
            external: "0.0.0.0:8443".into(),
            public: vec!["sts.example:8443".into()],
            dispatcher: "https://dispatcher.example".into(),
            dispatcher_problem: None,
            account: String::new(),
            trust_anchor: String::new(),
            certificates: Vec::new(),
        }
    }

    fn device(last: u8, connected: bool) -> tunnel::Device {
        tunnel::Device {
            serial: SerialNumber::new([0, 0x40, 0x8C, 0, 0, last]),
            name: format!("Camera {last}"),
            description: String::new(),
            site: None,
            user: "root".into(),
            step: if connected { Step::Tunnel } else { Step::Relay },
            relay: tunnel::RelayState::Dispatched,
            connected,
            since: None,
            peer: connected.then(|| "192.0.2.1:4000".into()),
            rtt_ms: connected.then_some(12),
            bytes_in: 0,
            bytes_out: 0,
            problem: None,
            moving: None,
            contested: None,
            own_password: false,
            access: Default::default(),
            bps_in: 0,
            bps_out: 0,
            uplinks: Vec::new(),
            last_problem: None,
        }
    }

    fn hardware(id: i64, last: u8) -> recording::Hardware {
        let serial = SerialNumber::new([0, 0x40, 0x8C, 0, 0, last]);
        recording::Hardware {
            id,
            name: format!("Camera {last}"),
            device: recording::DeviceAddress::Tunnel { server: "sts".into(), serial },
            serial,
            model: "Test".into(),
            cameras: vec![recording::Camera {
                id: id * 10,
                hardware: id,
                serial,
                name: format!("Camera {last}"),
                status: recording::CameraStatus {
                    state: recording::CameraState::Recording,
                    since: Timestamp::UNIX_EPOCH,
                    problem: None,
                    bitrate_bps: u64::from(last) * 1000,
                    last_frame: Some(Timestamp::now()),
                },
            }],
        }
    }

    fn states(world: &World) -> Vec<(String, String, bool)> {
        world.devices().into_iter().map(|device| (device.state, device.word, device.connected)).collect()
    }

    #[test]
    fn uplinks_and_hardware_merge_into_states_whatever_comes_first() {
        for hardware_first in [true, false] {
            let world = World::new(&config());
            if hardware_first {
                world.recording(Ok(vec![hardware(1, 1)]));
            }
            world.tunnel_reached("sts", server(), vec![device(1, true), device(2, true), device(3, false)]);
            if !hardware_first {
                world.recording(Ok(vec![hardware(1, 1)]));
            }
            assert_eq!(
                states(&world),
                [
                    ("green".into(), "Connected".into(), true),
                    ("yellow".into(), "Ready to add".into(), true),
                    ("red".into(), "Not connected".into(), false),
                ]
            );
            world.device("sts", device(1, false));
            assert_eq!(states(&world)[0], ("green".into(), "Offline".into(), false));
            world.recording(Ok(Vec::new()));
            assert_eq!(states(&world)[0], ("red".into(), "Not connected".into(), false));
        }
    }

    #[test]
    fn devices_of_an_unreachable_tunnel_server_are_not_shown_as_connected() {
        let world = World::new(&config());
        world.tunnel_reached("sts", server(), vec![device(1, true)]);
        let problem = ProblemDetail { code: "unreachable".into(), message: "refused".into(), step: None };
        world.tunnel_lost("sts", problem);
        assert_eq!(states(&world), [("red".into(), "Not connected".into(), false)]);
        let view = &world.tunnel_servers()[0];
        assert!(
            !view.reachable && view.problem.as_ref().is_some_and(|problem| problem.code == "unreachable")
        );
        assert_eq!((view.devices, view.connected), (1, 0));

        // Removed while we could not see it: gone after the reconnect, from the board as well.
        world.tunnel_reached("sts", server(), vec![device(2, true)]);
        let devices = |world: &World| {
            let (snapshot, _) = world.board().subscribe();
            let keys = snapshot.into_iter().filter(|change| change.kind == Kind::Device);
            keys.map(|change| change.key).collect::<Vec<_>>()
        };
        assert_eq!(devices(&world), ["sts/00408C000002"]);
        world.device_removed("sts", SerialNumber::new([0, 0x40, 0x8C, 0, 0, 2]));
        assert!(devices(&world).is_empty());
    }

    #[test]
    fn frames_and_bitrates_alone_are_no_news() {
        let world = World::new(&config());
        world.recording(Ok(vec![hardware(1, 1)]));
        let (_, mut changes) = world.board().subscribe();
        let mut again = hardware(1, 1);
        again.cameras[0].status.bitrate_bps += 1;
        again.cameras[0].status.last_frame = Some(Timestamp::now());
        world.recording(Ok(vec![again.clone()]));
        assert!(changes.try_recv().is_err());
        again.cameras[0].status.state = recording::CameraState::Error;
        world.recording(Ok(vec![again]));
        assert_eq!(changes.try_recv().unwrap().kind, Kind::Camera);
        world.recording(Ok(Vec::new()));
        let gone: Vec<_> = std::iter::from_fn(|| changes.try_recv().ok())
            .filter(|change| change.json.is_none())
            .map(|change| change.kind)
            .collect();
        assert_eq!(gone, [Kind::Camera, Kind::Hardware]);
    }
}
