//! The event stream of the internal address: everything, every change, and going on after a cut.

use crate::{
    device::Device,
    world::{World, new_device, password, within},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use std::collections::HashMap;

/// A reader of the stream.
struct Reader {
    body: Incoming,
    text: String,
}

#[derive(Debug)]
struct Told {
    name: String,
    data: Value,
    id: Option<String>,
}

impl Reader {
    /// With an id in the header, in the query, or none.
    async fn open(world: &World, query: &str, header: Option<&str>) -> Reader {
        let mut request = Request::builder()
            .uri(format!("/api/v1/events{query}"))
            .header("host", "x")
            .header("authorization", password());
        if let Some(id) = header {
            request = request.header("last-event-id", id);
        }
        let response = world.send(request.body(Bytes::new()).unwrap()).await;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Reader { body: response.into_body(), text: String::new() }
    }

    async fn next(&mut self) -> Told {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let line = event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                    line.map(str::to_owned)
                };
                let told = field("event").map(|name| Told {
                    name,
                    data: serde_json::from_str(&field("data").unwrap()).unwrap(),
                    id: field("id"),
                });
                self.text = rest.to_owned();
                match told {
                    Some(told) => return told,
                    None => continue,
                }
            }
            let frame = within(self.body.frame()).await.expect("the stream ended").unwrap();
            self.text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
        }
    }

    async fn until(&mut self, name: &str, wanted: impl Fn(&Value) -> bool) -> Told {
        loop {
            let told = self.next().await;
            if told.name == name && wanted(&told.data) {
                return told;
            }
        }
    }
}

#[tokio::test]
async fn the_event_stream_begins_with_every_device_and_then_tells_changes() {
    let world = World::new().await;
    let (device, serving) = world.ready("00408C702009").await;
    let mut reader = Reader::open(&world, "", None).await;
    let reset = reader.next().await;
    assert_eq!((reset.name.as_str(), &reset.data["missed"]), ("reset", &Value::from(false)));
    let there = reader.next().await;
    assert_eq!((there.name.as_str(), &there.data["serial"]), ("device", &"00408C702009".into()));
    assert_eq!(there.id, None, "the snapshot is not whole yet");
    let ready = reader.next().await;
    assert!(ready.name == "ready" && ready.id.is_some(), "{ready:?}");
    world.register(&Device::new("00408C702010")).await;
    reader.until("device", |device| device["serial"] == "00408C702010").await;
    world.site.stop();
    within(serving).await.unwrap();
    reader.until("device", |device| device["connected"] == false).await;
    let path = format!("/api/v1/devices/{}", device.serial);
    world.api(Method::DELETE, &path, None).await;
    reader.until("removed", |gone| gone["serial"] == "00408C702009").await;
    // The server's end is the stream's.
    world.role.stop();
    within(async { while let Some(Ok(_)) = reader.body.frame().await {} }).await;
}

/// Goal: a client that was away is told every change of that time, once and in order; one that cannot be told them is
/// told so, and everything.
#[tokio::test]
async fn a_client_that_was_away_misses_nothing_or_is_told_that_it_has() {
    let mut world = World::new().await;
    let (device, _) = world.ready("00408C702009").await;
    let path = format!("/api/v1/devices/{}", device.serial);
    let rename = async |world: &World, name: &str| {
        world.api(Method::PATCH, &path, Some(serde_json::json!({ "name": name }))).await;
    };
    let mut reader = Reader::open(&world, "", None).await;
    let mut last = reader.until("ready", |_| true).await.id;
    drop(reader);
    for (round, by_header) in [(0, true), (1, false)] {
        let names = [format!("A{round}"), format!("B{round}"), format!("C{round}")];
        for name in &names {
            rename(&world, name).await;
        }
        let id = last.unwrap();
        let mut reader = match by_header {
            // What stands in the address is from before; the browser's own header counts.
            true => Reader::open(&world, "?after=0-0", Some(&id)).await,
            false => Reader::open(&world, &format!("?after={id}"), None).await,
        };
        assert_eq!(reader.next().await.name, "resumed");
        let mut told = Vec::new();
        while told.last() != names.last() {
            let event = reader.next().await;
            told.push(event.data["name"].as_str().unwrap().to_owned());
        }
        // Something else may have changed beside the name.
        told.dedup();
        assert!(told.ends_with(&names), "{told:?}");
        // And what happens from now on.
        rename(&world, "now").await;
        last = reader.until("device", |device| device["name"] == "now").await.id;
    }

    let old = last.unwrap();
    world.restart().await;
    for unknown in [old.as_str(), "0-0", "ffffffffffffffff-1", "nonsense"] {
        let mut reader = Reader::open(&world, &format!("?after={unknown}"), None).await;
        let reset = reader.next().await;
        assert_eq!((reset.name.as_str(), &reset.data["missed"]), ("reset", &Value::from(true)), "{unknown}");
        reader.until("device", |there| there["serial"] == "00408C702009").await;
        reader.until("ready", |_| true).await;
    }
}

/// Goal: a client that is away while each of a crowd comes and goes is told all of that, by resuming: more than a small
/// server keeps.
#[tokio::test]
async fn a_client_that_was_away_while_a_crowd_came_and_went_misses_nothing() {
    const CROWD: usize = 1600;
    /// At once, so that it is no crowd of memory.
    const AT_ONCE: usize = 16;
    let world = World::with(true, |config| config.replace_default_passwords = false).await;
    let crowd: Vec<Device> = (0..CROWD).map(|number| Device::new(&format!("00408C80{number:04}"))).collect();
    let registering = stream::iter(&crowd).for_each_concurrent(AT_ONCE, async |device| {
        // Its key is vouched for at once, so that it may come without a dispatcher.
        let mut new = new_device(device);
        new.fingerprint = Some(device.fingerprint.to_string());
        let new = serde_json::to_value(&new).unwrap();
        let (status, answer) = world.api(Method::POST, "/api/v1/devices", Some(new)).await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
    });
    registering.await;
    let mut reader = Reader::open(&world, "", None).await;
    let last = reader.until("ready", |_| true).await.id.unwrap();
    drop(reader);

    let anchor = world.trust_anchor();
    let coming_and_going = stream::iter(&crowd).for_each_concurrent(AT_ONCE, async |device| {
        let uplink = within(device.dial(world.external, &anchor)).await.unwrap();
        let serving = device.serve(uplink, &world.site);
        device.cut();
        within(serving).await.unwrap();
    });
    coming_and_going.await;
    let all_gone = async {
        while world.metric("homing_tunnel_uplinks_admitted_total") < CROWD as f64
            || world.api(Method::GET, "/api/v1/statistics", None).await.1["connected"] != 0
        {
            tokio::task::yield_now().await;
        }
    };
    within(all_gone).await;

    let mut reader = Reader::open(&world, "", Some(&last)).await;
    assert_eq!(reader.next().await.name, "resumed");
    let mut told: HashMap<String, Vec<bool>> = HashMap::new();
    let (mut gone, mut events) = (0, 0);
    let reading = async {
        while gone < CROWD {
            let event = reader.next().await;
            assert_eq!(event.name, "device");
            events += 1;
            let states = told.entry(event.data["serial"].as_str().unwrap().to_owned()).or_default();
            let connected = event.data["connected"].as_bool().unwrap();
            if states.last() != Some(&connected) {
                states.push(connected);
                gone += usize::from(states.ends_with(&[true, false]));
            }
        }
    };
    within(reading).await;
    assert!(events > 4096, "{events}: so much a small server keeps, too");
}
