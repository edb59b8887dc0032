//! Live viewers: at once a picture, then every frame; slow ones skip and are told; states are passed on.

use std::path::PathBuf;

use futures_util::{SinkExt as _, StreamExt as _};
use homing_base::Stop;
use homing_protocol::api::recording::{CameraState, LiveMessage};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::ffmpeg;
use crate::recorder::{PATIENCE, Recorder};
use crate::source::{GROUP, Script, Source, assert_consecutive, clip};

/// A recorder whose router is served on a socket.
struct Served {
    recorder: Recorder,
    address: std::net::SocketAddr,
    stop: Stop,
}

impl Served {
    async fn start() -> Self {
        let recorder = Recorder::start().await;
        let stop = Stop::new();
        let listener = homing_base::listen::bind(([127, 0, 0, 1], 0).into(), "a test").unwrap();
        let address = listener.local_addr().unwrap();
        stop.spawn(homing_base::http::serve(listener, recorder.router.clone(), None, stop.clone()));
        Self { recorder, address, stop }
    }

    async fn watch(&self, camera: i64, receive_buffer: Option<u32>) -> Viewer {
        let socket = TcpSocket::new_v4().unwrap();
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes).unwrap();
        }
        let tcp = socket.connect(self.address).await.unwrap();
        let url = format!("ws://{}/api/v1/cameras/{camera}/live", self.address);
        let (socket, _) = tokio_tungstenite::client_async(url, tcp).await.unwrap();
        Viewer { socket }
    }

    async fn end(self) {
        assert!(self.stop.drain(PATIENCE).await, "a viewer's task is left");
        self.recorder.stop().await;
    }
}

struct Viewer {
    socket: WebSocketStream<TcpStream>,
}

enum Received {
    Text(LiveMessage),
    Data(Vec<u8>),
}

impl Viewer {
    async fn next(&mut self) -> Received {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.socket.next())
                .await
                .expect("a message")
                .unwrap()
                .unwrap();
            match message {
                Message::Text(text) => return Received::Text(serde_json::from_str(&text).unwrap()),
                Message::Binary(data) => return Received::Data(data.into()),
                _ => {}
            }
        }
    }

    async fn text(&mut self) -> LiveMessage {
        match self.next().await {
            Received::Text(message) => message,
            Received::Data(_) => panic!("binary where text was expected"),
        }
    }

    async fn data(&mut self) -> Vec<u8> {
        match self.next().await {
            Received::Data(data) => data,
            Received::Text(message) => panic!("{message:?} where binary was expected"),
        }
    }

    /// The `start` message's MIME type.
    async fn start(&mut self) -> String {
        loop {
            match self.text().await {
                LiveMessage::Start { mime, .. } => return mime,
                LiveMessage::Waiting { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

fn save(recorder: &Recorder, name: &str, data: &[u8]) -> PathBuf {
    let path = recorder.folder.path().join(name);
    std::fs::write(&path, data).unwrap();
    path
}

/// Goal: a viewer gets the current group of pictures at once and then each picture as it comes, complete and in
/// order, whether it came before the camera or in the middle of a group; with sound.
#[tokio::test(flavor = "multi_thread")]
async fn every_picture_from_the_first_moment_on() {
    let source = Source::start(Script { sound: true, speed: 5, ..Script::default() }).await;
    let served = Served::start().await;
    let camera = served.recorder.add_camera(&source.url).await;
    let mut early = served.watch(camera, None).await;
    let mime = early.start().await;
    assert_eq!(mime, format!("video/mp4; codecs=\"{},flac\"", clip().codec));
    let mut file = early.data().await;
    for _ in 0..60 {
        file.extend(early.data().await);
    }
    let path = save(&served.recorder, "early.mp4", &file);
    ffmpeg::decodes(&path);
    assert!(assert_consecutive(&path) >= 30);
    let codecs: Vec<String> = ffmpeg::streams(&path).into_iter().map(|stream| stream.0).collect();
    assert_eq!(codecs, ["h264", "flac"]);

    // In the middle of a group: the group comes at once, without waiting for the next key frame.
    let mut late = served.watch(camera, None).await;
    late.start().await;
    let mut file = late.data().await;
    for _ in 0..GROUP {
        file.extend(late.data().await);
    }
    assert_consecutive(&save(&served.recorder, "late.mp4", &file));
    assert_eq!(served.recorder.metric("homing_recording_viewers"), 2.0);
    late.socket.close(None).await.unwrap();
    drop(late);
    crate::recorder::wait_for(|| async {
        (served.recorder.metric("homing_recording_viewers") == 1.0).then_some(())
    })
    .await;
    early.socket.send(Message::Close(None)).await.unwrap();
    served.end().await;
    source.end().await;
}

/// Goal: a camera that goes away is told to its viewers with the reason, and its return brings a new start.
#[tokio::test(flavor = "multi_thread")]
async fn viewers_are_told_when_the_camera_goes() {
    let source = Source::start(Script { speed: 5, ..Script::default() }).await;
    let url = source.url.clone();
    let served = Served::start().await;
    let camera = served.recorder.add_camera(&url).await;
    let view = served.recorder.wait_for_state(camera, CameraState::Recording).await;
    let mut viewer = served.watch(camera, None).await;
    viewer.start().await;
    source.end().await;
    let reason = loop {
        if let Received::Text(message) = viewer.next().await {
            break message;
        }
    };
    let LiveMessage::Waiting { code, reason } = reason else { panic!("{reason:?}") };
    assert!(code == "connection-lost" && reason.contains("check"), "{code}: {reason}");
    let source = Source::restart(&url, Script { speed: 5, is_added: true, ..Script::default() }).await;
    served.recorder.device_connected(view.serial).await;
    viewer.start().await;
    assert!(viewer.data().await.starts_with(b"\0\0\0\x18ftyp") || !viewer.data().await.is_empty());
    served.end().await;
    source.end().await;
}

/// More than the 4 MiB that the kernel keeps for a TCP connection at most, and the queue.
const MORE_THAN_BUFFERS: usize = 5 * 1024 * 1024;

/// Goal: a viewer that stops reading holds up nobody; when it reads again it is told what it has missed, and goes
/// on with a key frame.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_viewer_skips() {
    let source = Source::start(Script { sound: true, speed: 50, ..Script::default() }).await;
    let served = Served::start().await;
    let camera = served.recorder.add_camera(&source.url).await;
    served.recorder.wait_for_state(camera, CameraState::Recording).await;
    let mut slow = served.watch(camera, Some(4096)).await;
    slow.start().await;
    let mut file = slow.data().await;
    // It reads nothing while the other one sees more than any buffer on the way holds.
    let mut quick = served.watch(camera, None).await;
    quick.start().await;
    let mut seen = quick.data().await;
    while seen.len() < MORE_THAN_BUFFERS {
        seen.extend(quick.data().await);
    }
    assert!(assert_consecutive(&save(&served.recorder, "quick.mp4", &seen)) > 80);
    let mut skipped = 0;
    let mut after = 0;
    while after < 100 {
        match slow.next().await {
            Received::Text(LiveMessage::Skipped { frames }) => skipped += frames,
            Received::Text(other) => panic!("{other:?}"),
            Received::Data(data) => {
                file.extend(data);
                after += u64::from(skipped > 0);
            }
        }
    }
    assert!(skipped > 0);
    let path = save(&served.recorder, "slow.mp4", &file);
    let pictures = ffmpeg::pictures(&path);
    assert!(
        pictures.iter().all(|picture| clip().pictures.contains(picture)),
        "a picture without its references"
    );
    assert!(served.recorder.metric("homing_recording_viewer_skipped_frames_total") >= skipped as f64);
    drop(slow);
    served.end().await;
    source.end().await;
}
