//! Against GStreamer's RTSP server, which is not ours: AAC and G.711, Basic and Digest.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use homing_protocol::api::recording::CameraState;

use crate::ffmpeg;
use crate::recorder::Recorder;

const SERVER: &str = r#"
import sys, gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gst, GstRtspServer, GLib
Gst.init(None)
sound, login = sys.argv[1], sys.argv[2]
audio = {"aac": "audioresample ! audio/x-raw,rate=16000,channels=1 ! avenc_aac ! rtpmp4gpay name=pay1 pt=97",
         "pcmu": "audioresample ! audio/x-raw,rate=8000,channels=1 ! mulawenc ! rtppcmupay name=pay1",
         "pcma": "audioresample ! audio/x-raw,rate=8000,channels=1 ! alawenc ! rtppcmapay name=pay1"}[sound]
server = GstRtspServer.RTSPServer()
server.set_service("0")
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch("( videotestsrc is-live=true pattern=ball ! video/x-raw,width=320,height=240,framerate=8/1 "
    "! x264enc tune=zerolatency key-int-max=16 bitrate=500 ! video/x-h264,profile=main ! rtph264pay name=pay0 pt=96 config-interval=-1 "
    "audiotestsrc is-live=true ! audioconvert ! " + audio + " )")
factory.set_shared(True)
if login != "none":
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "user")
    role = Gst.Structure.new_from_string("user, media.factory.access=(boolean)true, media.factory.construct=(boolean)true")
    factory.add_role_from_structure(role)
    if login == "digest":
        from gi.repository import GstRtsp
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        auth.add_digest("root", "sesame", token)
    else:
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic("root", "sesame"), token)
    server.set_auth(auth)
server.get_mount_points().add_factory("/stream", factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"#;

struct GStreamer {
    process: Child,
    url: String,
}

impl GStreamer {
    fn start(sound: &str, login: &str) -> Self {
        let mut process = Command::new("/usr/bin/python3")
            .args(["-c", SERVER, sound, login])
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("python3");
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port: u16 = line.trim().parse().unwrap_or_else(|_| {
            panic!(
                "GStreamer's RTSP server does not start; install it with: apt-get install python3-gi \
                 gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly gstreamer1.0-libav"
            )
        });
        Self { process, url: format!("rtsp://127.0.0.1:{port}/stream") }
    }
}

impl Drop for GStreamer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Goal: ten seconds of an independent camera are recorded without a picture missing, with its sound, in step.
#[tokio::test(flavor = "multi_thread")]
async fn gstreamer_is_recorded_whole() {
    for (sound, login, codec) in
        [("aac", "digest", "aac"), ("pcmu", "basic", "flac"), ("pcma", "none", "flac")]
    {
        let camera_server = GStreamer::start(sound, login);
        let recorder = Recorder::start().await;
        if login != "none" {
            let (code, message) = recorder.add(&camera_server.url, ("root", "wrong")).await.unwrap_err();
            assert_eq!(code, "wrong-credentials", "{message}");
        }
        let camera = recorder.add(&camera_server.url, ("root", "sesame")).await.unwrap().cameras[0].id;
        recorder.wait_for_state(camera, CameraState::Recording).await;
        recorder.wait_for_recorded(camera, 10.0).await;
        let timeline = recorder.timeline(camera).await;
        assert_eq!(timeline.ranges.len(), 1, "{timeline:?}");
        let file = recorder.export_all(camera).await;
        ffmpeg::decodes(&file);
        let streams = ffmpeg::streams(&file);
        assert_eq!((streams[0].0.as_str(), streams[1].0.as_str()), ("h264", codec));
        let (video, audio) = (streams[0].1, streams[1].1);
        assert!((video - audio).abs() < 0.5, "{video} s of video, {audio} s of sound");
        let times = ffmpeg::times(&file);
        assert_eq!(times.len(), (video * 8.0).round() as usize);
        for pair in times.windows(2) {
            assert!((pair[1] - pair[0] - 0.125).abs() < 0.002, "{sound}: {pair:?}");
        }
        recorder.stop().await;
    }
}
