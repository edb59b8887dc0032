//! A device's RTSP over HTTP: GET and POST that a cookie ties together, with a path that one could not guess.

use crate::device::{Door, authenticated, echo};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use homing_protocol::{
    onvif::{MEDIA_NS, Message, device, media},
    soap::{Element, Envelope},
};
use homing_uplink::{Body, Incoming};
use http::{HeaderMap, Method, Response, StatusCode};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Notify, oneshot, watch},
};

pub const PATH: &str = "/axis-media/by-http?profile=live";
/// Where Media1 is.
pub const MEDIA1: &str = "/onvif/media1";
const TYPE: &str = "application/x-rtsp-tunnelled";

/// All clones are the same device's.
#[derive(Clone, Default)]
pub struct OverHttp(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// It has Media1 and no Media2.
    is_media1: AtomicBool,
    /// The path that is named leads nowhere.
    is_gone: AtomicBool,
    /// POST is challenged once more when something of its body has come.
    is_wary: AtomicBool,
    /// GETs that wait for their POST, by cookie.
    waiting: Mutex<HashMap<String, oneshot::Sender<Body>>>,
    asked: Mutex<Vec<(Method, bool)>>,
    hang_up: Notify,
    /// Whether POST is read.
    holds_back: watch::Sender<bool>,
    /// POSTs that ended: whether in order.
    ended: watch::Sender<Vec<bool>>,
}

impl OverHttp {
    /// Of a device that has Media1 alone.
    pub fn with_media1() -> Self {
        let this = Self::default();
        this.0.is_media1.store(true, Ordering::Relaxed);
        this
    }

    /// Is not where the device says that it is.
    pub fn gone() -> Self {
        let this = Self::default();
        this.0.is_gone.store(true, Ordering::Relaxed);
        this
    }

    /// Challenges the next POST when something of its body has come.
    pub fn be_wary(&self) {
        self.0.is_wary.store(true, Ordering::Relaxed);
    }

    /// Ends the answer to GET, in order.
    pub fn hang_up(&self) {
        self.0.hang_up.notify_one();
    }

    /// Whether to leave what is sent unread.
    pub fn hold_back(&self, holds_back: bool) {
        self.0.holds_back.send_replace(holds_back);
    }

    /// The requests that came, and whether they were logged in.
    pub fn asked(&self) -> Vec<(Method, bool)> {
        std::mem::take(&mut self.0.asked.lock().unwrap())
    }

    /// Waits for the end of the next POST; whether it was in order.
    pub async fn post_ended(&self) -> bool {
        let mut ended = self.0.ended.subscribe();
        let ended = crate::world::within(ended.wait_for(|ended| !ended.is_empty())).await.unwrap();
        ended[0]
    }

    pub fn has_media1_alone(&self) -> bool {
        self.0.is_media1.load(Ordering::Relaxed)
    }

    pub fn uri(&self) -> String {
        format!("http://192.168.1.7:8080{PATH}")
    }

    /// Serves GET or POST of [`PATH`].
    pub async fn serve(&self, incoming: Incoming, door: &Door) {
        let method = incoming.request.method().clone();
        let headers = incoming.request.headers().clone();
        if self.0.is_gone.load(Ordering::Relaxed) {
            let _ = incoming.respond(answer(StatusCode::NOT_FOUND));
            return;
        }
        self.0.asked.lock().unwrap().push((method.clone(), headers.contains_key("authorization")));
        let said = |name: &str| headers[name].to_str().unwrap().to_owned();
        let kind = if method == Method::GET { "accept" } else { "content-type" };
        assert_eq!((said(kind).as_str(), said("cache-control").as_str()), (TYPE, "no-cache"));
        assert!(said("pragma") == "no-cache" && !headers.contains_key("content-length"));
        let Some(incoming) = authenticated(incoming, door, method.as_str(), PATH) else { return };
        match method {
            Method::GET => self.get(incoming, door, said("x-sessioncookie")).await,
            _ => self.post(incoming, door, &headers).await,
        }
    }

    async fn get(&self, incoming: Incoming, door: &Door, cookie: String) {
        let (post, posted) = oneshot::channel();
        assert!(self.0.waiting.lock().unwrap().insert(cookie, post).is_none());
        let response = Response::builder().header("content-type", TYPE).body(()).unwrap();
        let mut sender = incoming.respond_streaming(response).unwrap();
        let Ok(mut body) = posted.await else { return };
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (mut sent, mut received) = tokio::io::split(near);
        let serving = async {
            match door.camera.is_on() {
                true => door.camera.serve(far).await,
                false => echo(far).await,
            }
        };
        let up = async {
            let mut rest = BytesMut::new();
            let in_order = loop {
                let mut held = self.0.holds_back.subscribe();
                held.wait_for(|held| !held).await.unwrap();
                match body.next().await {
                    Some(Ok(chunk)) => rest.extend_from_slice(&chunk),
                    Some(Err(_)) => break false,
                    None => break true,
                }
                let whole = rest.split_to(rest.len() / 4 * 4);
                let decoded: Vec<u8> =
                    whole.chunks(4).flat_map(|four| STANDARD.decode(four).unwrap()).collect();
                if received.write_all(&decoded).await.is_err() {
                    break true;
                }
            };
            assert!(!in_order || rest.is_empty(), "{rest:?} waits for more");
            self.0.ended.send_modify(|ended| ended.push(in_order));
            let _ = received.shutdown().await;
        };
        let down = async {
            let mut buffer = vec![0; 16 * 1024];
            loop {
                let count = tokio::select! {
                    count = sent.read(&mut buffer) => count.unwrap(),
                    () = self.0.hang_up.notified() => 0,
                };
                if count == 0 {
                    let _ = sender.finish();
                    return;
                }
                if sender.send(Bytes::copy_from_slice(&buffer[..count])).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = down => (),
            _ = async { tokio::join!(serving, up, std::future::pending::<()>()) } => (),
        }
        door.streams_ended.send_modify(|ended| *ended += 1);
    }

    /// It is never answered.
    async fn post(&self, mut incoming: Incoming, door: &Door, headers: &HeaderMap) {
        let mut body = std::mem::take(incoming.request.body_mut());
        if self.0.is_wary.swap(false, Ordering::Relaxed) {
            body.next().await.unwrap().unwrap();
            let mut refusal = answer(StatusCode::UNAUTHORIZED);
            for challenge in door.guard.challenges(jiff::Timestamp::now().as_second() as u64, true) {
                refusal.headers_mut().append("www-authenticate", challenge.parse().unwrap());
            }
            let _ = incoming.respond(refusal);
            return;
        }
        let cookie = headers["x-sessioncookie"].to_str().unwrap();
        let get = self.0.waiting.lock().unwrap().remove(cookie).expect("GET came first");
        let _ = get.send(body);
        std::future::pending::<()>().await;
    }
}

fn answer(status: StatusCode) -> Response<Bytes> {
    Response::builder().status(status).body(Bytes::new()).unwrap()
}

/// What is asked of Media1.
pub fn media1(envelope: &Envelope, over_http: &OverHttp) -> Option<Element> {
    if envelope.body.is(MEDIA_NS, media::GetProfiles::NAME) {
        return Some(media::Profiles(vec!["live".into()]).to_element());
    }
    let asked = envelope.body.is(MEDIA_NS, media::GetStreamUri::NAME).then_some(&envelope.body)?;
    assert_eq!(
        media::GetStreamUri::from_element(asked).unwrap(),
        media::GetStreamUri { protocol: "HTTP".into(), profile_token: "live".into() }
    );
    Some(media::StreamUri(over_http.uri()).to_element())
}

/// The services of a device that has Media1 alone.
pub fn services() -> device::Services {
    device::Services(vec![device::Service {
        namespace: MEDIA_NS.to_owned(),
        xaddr: format!("http://192.168.1.7{MEDIA1}"),
        capabilities: None,
        version: (2, 6),
    }])
}
