//! Secrets stay where they belong: not in the database in clear, not in any log at any level, not in errors.

use crate::{
    device,
    dispatcher::{self, Mode},
    world::{self, World, form, password},
};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use std::{
    io::Write,
    sync::{Arc, Mutex},
};
use tracing_subscriber::fmt::MakeWriter;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

/// The test's runtime has one thread, so its subscriber sees everything that happens in this world, and nothing of
/// other tests.
#[tokio::test]
async fn no_secret_is_on_disk_in_clear_or_in_a_log_at_any_level() {
    // With a single subscriber in the process, an event that another test's thread meets first is taken to interest
    // nobody, for ever. A second one prevents that.
    let _second = tracing::Dispatch::new(tracing_subscriber::fmt().with_writer(std::io::sink).finish());
    let log = Log::default();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(log.clone()).finish();
    let quiet = tracing::subscriber::set_default(subscriber);

    let mut world = World::new().await;
    let (device, _) = world.ready("00408C702009").await;
    world.dispatcher.answer_with(Mode::Refuse(StatusCode::FORBIDDEN, "wrong-oak", "The OAK is wrong."));
    world.api(Method::POST, "/api/v1/devices", Some(form("00408C702010", device::OAK))).await;
    world.api(Method::POST, "/api/v1/devices", Some(form("nonsense", device::OAK))).await;
    world.api(Method::GET, "/api/v1/devices/00408C702009/credentials", None).await;
    // A password in an address, right or wrong, is nobody's to read later.
    let internal = world::PASSWORD;
    for (query, oak) in [("user=vms&pass=", device::OAK), ("user=root&pass=", "nonsense")] {
        let path = format!(
            "/admin/dispatch.cgi?action=register&{query}{internal}&mac=00408C702012&oak={oak}&device_user=root&device_pass={}",
            device::PASSWORD
        );
        let request = Request::builder().uri(path).header("host", "127.0.0.1").body(Bytes::new()).unwrap();
        world.send(request).await;
    }
    world.handle.open_rtsp(device.serial).await.unwrap();
    let request =
        Request::builder().uri("http://00408c702009/headers").header("proxy-authorization", password());
    world.send(request.body(Bytes::new()).unwrap()).await;
    world.stop_dispatcher().await;
    world.api(Method::POST, "/api/v1/devices", Some(form("00408C702011", device::OAK))).await;
    world.restart().await;
    world.stop_tunnel().await;
    drop(quiet);

    let logged = log.0.lock().unwrap().clone();
    for expected in ["00408C702009", "homing_tunnel::relay", "homing_tunnel::uplinks", "TRACE"] {
        let found = logged.windows(expected.len()).any(|window| window == expected.as_bytes());
        assert!(found, "the log was not captured: no {expected}");
    }
    let oak = device::OAK.replace('-', "");
    let basic_internal = password();
    let secrets = [
        device::PASSWORD,
        device::OAK,
        &oak,
        world::PASSWORD,
        dispatcher::PASSWORD,
        basic_internal.trim_start_matches("Basic "),
    ];
    let holds = |bytes: &[u8], secret: &str| {
        bytes.windows(secret.len()).any(|window| window.eq_ignore_ascii_case(secret.as_bytes()))
    };
    for secret in secrets {
        if holds(&logged, secret) {
            let text = String::from_utf8_lossy(&logged);
            let line = text.lines().find(|line| line.to_lowercase().contains(&secret.to_lowercase()));
            panic!("{secret:?} was logged: {line:?}");
        }
        for entry in std::fs::read_dir(world.folder.path().join("tunnel")).unwrap() {
            let path = entry.unwrap().path();
            assert!(!holds(&std::fs::read(&path).unwrap(), secret), "{secret:?} in {}", path.display());
        }
    }
}
