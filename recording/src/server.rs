//! What the recording server has: hardware and cameras, in the database and alive, and the way to change them.
//!
//! Not here: HTTP (`api.rs`), one camera's life (`camera.rs`).
//!
//! Invariant: while the role runs, a camera that is in the database and not deleted is alive, and the other
//! way round.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use homing_base::Stop;
use homing_base::http::Failure;
use homing_media::time::Ticks;
use homing_protocol::SerialNumber;
use homing_protocol::api::Problem;
use homing_protocol::api::recording::{Camera as CameraView, DeviceAddress, Hardware, NewHardware};
use homing_protocol::secret::Credentials;
use http::StatusCode;
use tokio::sync::Semaphore;

use crate::camera::{Camera, NewCamera, Shared};
use crate::hardware;
use crate::now;
use crate::playback::Playback;
use crate::store::{HardwareRow, NewHardwareRow, Store};

/// A name longer than this is no name.
const LONGEST_NAME: usize = 200;

/// Cheap to clone; all clones are the same server.
#[derive(Clone)]
pub(crate) struct Server {
    pub store: Store,
    pub shared: Arc<Shared>,
    pub playback: Playback,
    pub viewers: Arc<Semaphore>,
    pub stop: Stop,
    inner: Arc<Mutex<Inner>>,
    /// One change at a time.
    changing: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Inner {
    is_running: bool,
    hardware: BTreeMap<i64, HardwareRow>,
    cameras: BTreeMap<i64, Arc<Camera>>,
}

impl Server {
    pub fn new(store: Store, shared: Arc<Shared>, playback: Playback, viewers: usize, stop: Stop) -> Self {
        Self {
            store,
            shared,
            playback,
            viewers: Arc::new(Semaphore::new(viewers)),
            stop,
            inner: Arc::default(),
            changing: Arc::default(),
        }
    }

    /// Takes every camera in the database in. `ends`: what is recorded of each, up to when.
    pub async fn load(&self, ends: &[(i64, Ticks)]) -> anyhow::Result<()> {
        let hardware = self.store.hardware().await?;
        let cameras = self.store.cameras().await?;
        let mut inner = self.lock();
        for row in cameras.into_iter().filter(|row| row.deleted.is_none()) {
            let Some(hardware) = hardware.iter().find(|hardware| hardware.id == row.hardware) else {
                continue;
            };
            let recorded_until = ends.iter().find(|end| end.0 == row.id).map_or(Ticks::MIN, |end| end.1);
            let new = NewCamera {
                id: row.id,
                hardware: row.hardware,
                serial: hardware.serial,
                name: row.name,
                device: hardware.device.clone(),
                stream_url: row.stream_url,
                credentials: hardware.credentials.clone(),
                added: row.added,
                recorded_until,
            };
            inner.take_in(new, self);
        }
        inner.hardware = hardware.into_iter().map(|row| (row.id, row)).collect();
        Ok(())
    }

    /// Brings all cameras to life, and from then on every one that is added.
    pub fn start(&self) {
        let mut inner = self.lock();
        inner.is_running = true;
        inner.cameras.values().for_each(|camera| camera.start(&self.shared));
    }

    /// Step 8.
    pub async fn add(&self, new: NewHardware) -> Result<Hardware, Failure> {
        check_name(&new.name)?;
        let found = hardware::ask(&self.shared.connectors, &new).await?;
        let _change = self.changing.lock().await;
        let now = now();
        let credentials = Credentials::new(new.user, new.password);
        let row = NewHardwareRow {
            name: &new.name,
            device: &new.device,
            serial: found.serial,
            model: &found.model,
            credentials: &credentials,
            channels: &found.channels,
        };
        let Some(id) = self.store.add_hardware(row, now).await? else {
            let message = format!("{} has been added before.", found.serial);
            return Err(Failure::new(StatusCode::CONFLICT, Problem::new("already-added", message)));
        };
        let cameras = self.store.cameras().await?;
        for camera in cameras.iter().filter(|row| row.hardware == id) {
            self.store.connecting_gap(camera.id, now).await?;
        }
        let hardware = HardwareRow {
            id,
            name: new.name,
            device: new.device,
            serial: found.serial,
            model: found.model,
            credentials,
        };
        tracing::info!(step = %homing_protocol::Step::Add, serial = %hardware.serial, hardware = id, "hardware added");
        let mut inner = self.lock();
        for row in cameras.into_iter().filter(|row| row.hardware == id) {
            let new = NewCamera {
                id: row.id,
                hardware: id,
                serial: hardware.serial,
                name: row.name,
                device: hardware.device.clone(),
                stream_url: row.stream_url,
                credentials: hardware.credentials.clone(),
                added: row.added,
                recorded_until: Ticks::MIN,
            };
            inner.take_in(new, self);
        }
        let view = inner.view(&hardware);
        inner.hardware.insert(id, hardware);
        Ok(view)
    }

    /// Recording of its cameras ends; their footage stays until it expires.
    pub async fn delete(&self, id: i64) -> Result<(), Failure> {
        let _change = self.changing.lock().await;
        if !self.lock().hardware.contains_key(&id) {
            return Err(Failure::not_found(format!("There is no hardware {id}.")));
        }
        self.store.delete_hardware(id, now()).await?;
        let mut inner = self.lock();
        inner.hardware.remove(&id);
        inner.cameras.retain(|_, camera| {
            let is_kept = camera.hardware != id;
            if !is_kept {
                camera.end();
            }
            is_kept
        });
        tracing::info!(hardware = id, "hardware deleted");
        Ok(())
    }

    /// Its device is at another tunnel server now: its cameras look for it there from the next attempt on.
    pub async fn follow(&self, id: i64, server: &str) -> Result<Hardware, Failure> {
        let _change = self.changing.lock().await;
        let known = self.lock().hardware.get(&id).map(|row| (row.serial, row.device.clone()));
        let Some((serial, before)) = known else {
            return Err(Failure::not_found(format!("There is no hardware {id}.")));
        };
        let DeviceAddress::Tunnel { serial: behind, .. } = before else {
            return Err(Failure::bad_request(format!(
                "Hardware {id} is not reached through a tunnel server."
            )));
        };
        let device = DeviceAddress::Tunnel { server: server.to_owned(), serial: behind };
        self.shared.connectors.check(&device)?;
        self.store.move_hardware(id, &device).await?;
        tracing::info!(%serial, hardware = id, server, "hardware is at another tunnel server");
        let mut inner = self.lock();
        inner.cameras.values().filter(|camera| camera.hardware == id).for_each(|camera| {
            camera.follow(device.clone());
            camera.try_now();
        });
        let Some(row) = inner.hardware.get_mut(&id) else {
            return Err(Failure::not_found(format!("There is no hardware {id}.")));
        };
        row.device = device;
        let row = row.clone();
        Ok(inner.view(&row))
    }

    pub async fn rename(&self, id: i64, name: &str) -> Result<CameraView, Failure> {
        check_name(name)?;
        let _change = self.changing.lock().await;
        let camera = self.camera(id)?;
        self.store.rename_camera(id, name).await?;
        camera.rename(name);
        Ok(camera.view())
    }

    pub fn hardware(&self) -> Vec<Hardware> {
        let inner = self.lock();
        inner.hardware.values().map(|row| inner.view(row)).collect()
    }

    pub fn cameras(&self) -> Vec<CameraView> {
        self.lock().cameras.values().map(|camera| camera.view()).collect()
    }

    /// A camera that lives.
    pub fn camera(&self, id: i64) -> Result<Arc<Camera>, Failure> {
        let camera = self.lock().cameras.get(&id).cloned();
        camera.ok_or_else(|| Failure::not_found(format!("There is no camera {id}.")))
    }

    /// The time in which a camera should have been recorded; also of one that was deleted, while it has footage.
    pub async fn existence(&self, id: i64) -> Result<(Ticks, Ticks), Failure> {
        if let Ok(camera) = self.camera(id) {
            return Ok((camera.added, Ticks::MAX));
        }
        let cameras = self.store.cameras().await?;
        let row = cameras.into_iter().find(|row| row.id == id);
        let row = row.ok_or_else(|| Failure::not_found(format!("There is no camera {id}.")))?;
        Ok((row.added, row.deleted.unwrap_or(Ticks::MAX)))
    }

    /// MIME type and bytes of an initialisation segment.
    pub async fn init(&self, camera: i64, id: &str) -> Result<Option<(String, Bytes)>, Failure> {
        if let Some(format) = self.shared.catalog.format(camera, id) {
            return Ok(Some((format.mime.clone(), format.init.clone())));
        }
        let stored = self.store.init(camera, id).await?;
        Ok(stored.map(|(mime, data)| (mime, data.into())))
    }

    /// The device is connected (again): its cameras are tried at once.
    pub fn device_connected(&self, serial: SerialNumber) {
        let inner = self.lock();
        inner.cameras.values().filter(|camera| camera.serial == serial).for_each(|camera| camera.try_now());
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn take_in(&mut self, new: NewCamera, server: &Server) {
        let camera = Camera::new(new, &server.stop, &server.shared.metrics);
        if self.is_running {
            camera.start(&server.shared);
        }
        self.cameras.insert(camera.id, camera);
    }

    fn view(&self, row: &HardwareRow) -> Hardware {
        let of_this = self.cameras.values().filter(|camera| camera.hardware == row.id);
        Hardware {
            id: row.id,
            name: row.name.clone(),
            device: row.device.clone(),
            serial: row.serial,
            model: row.model.clone(),
            cameras: of_this.map(|camera| camera.view()).collect(),
        }
    }
}

fn check_name(name: &str) -> Result<(), Failure> {
    if name.trim().is_empty() || name.chars().count() > LONGEST_NAME || name.chars().any(char::is_control) {
        let message = format!("A name has 1 to {LONGEST_NAME} characters, none of them a control character.");
        return Err(Failure::bad_request(message));
    }
    Ok(())
}
