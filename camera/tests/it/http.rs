//! ONVIF and VAPIX as a client that is not ours asks for them: curl.

use crate::harness::{Running, config, run};
use homing_camera::Config;
use homing_protocol::onvif::{
    DEVICE_PATH, MEDIA2_NS, MEDIA2_PATH, Request,
    device::{GetDeviceInformation, GetServices, GetSystemDateAndTime, SetUser, SystemReboot, media2_path},
    media2::{GetProfiles, GetServiceCapabilities, GetStreamUri},
};
use homing_protocol::secret::Credentials;

/// Status and body of a request with curl; a password is given by HTTP Digest.
async fn curl(camera: &Running, path: &str, password: Option<&str>, body: Option<String>) -> (u16, Vec<u8>) {
    let mut arguments = vec!["-s".to_owned(), "-w".into(), "\n%{http_code}".into()];
    if let Some(password) = password {
        arguments.extend(["--digest".into(), "-u".into(), format!("root:{password}")]);
    }
    if let Some(body) = body {
        arguments.extend(["-H".into(), "Content-Type: application/soap+xml".into()]);
        arguments.extend(["--data-binary".into(), body]);
    }
    arguments.push(format!("http://{}{path}", camera.http));
    let output = run("curl", "curl", arguments).await.stdout;
    let end = output.iter().rposition(|byte| *byte == b'\n').expect("curl's status line");
    let status = String::from_utf8_lossy(&output[end + 1..]).parse().unwrap();
    (status, output[..end].to_vec())
}

async fn call<R: Request>(camera: &Running, path: &str, password: Option<&str>, request: R) -> R::Answer {
    let (status, answer) = curl(camera, path, password, Some(request.to_xml())).await;
    assert_eq!(status, 200, "{}: {}", R::NAME, String::from_utf8_lossy(&answer));
    R::parse_answer(&answer).unwrap()
}

/// Goal: what dispatcher and recording server ask a camera for is answered, in the order in which they ask.
#[tokio::test(flavor = "multi_thread")]
async fn onvif_from_serial_number_to_stream() {
    let camera =
        Running::start(Config { serial: "02:00:00:c0:ff:ee".parse().unwrap(), ..config("By ONVIF <&>") })
            .await;
    let password = Some("sesame");

    let clock = call(&camera, DEVICE_PATH, None, GetSystemDateAndTime).await.utc.unwrap();
    assert!(jiff::Timestamp::now().duration_since(clock).as_secs().abs() <= 2);
    let information = call(&camera, DEVICE_PATH, password, GetDeviceInformation).await;
    assert_eq!(information.serial_number, "020000C0FFEE");

    let services = call(&camera, DEVICE_PATH, None, GetServices { include_capability: true }).await;
    assert_eq!(media2_path(&services).as_deref(), Some(MEDIA2_PATH));
    assert!(services.find(MEDIA2_NS).unwrap().capabilities.is_some());
    assert!(call(&camera, MEDIA2_PATH, None, GetServiceCapabilities).await.rtp_rtsp_tcp);

    let profiles = call(&camera, MEDIA2_PATH, password, GetProfiles::all()).await.0;
    let [profile] = &profiles[..] else { panic!("{profiles:?}") };
    let video = profile.video_encoder.as_ref().unwrap();
    assert_eq!((video.encoding.as_str(), video.size, video.rate_limit), ("H264", (640, 360), Some((8, 500))));
    assert_eq!(profile.audio_encoder.as_ref().unwrap().encoding, "PCMU");
    assert_eq!(profile.name, "By ONVIF <&>");
    let stream = call(&camera, MEDIA2_PATH, password, GetStreamUri::rtsp(&profile.token)).await.0;
    assert_eq!(stream, camera.url);
    camera.finish().await;
}

/// Goal: the password can be changed by ONVIF and by VAPIX; from then on the new one is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn the_password_can_be_changed() {
    let camera = Running::start(config("changed")).await;
    let set = |user: &str, password: &str| SetUser { user: Credentials::new(user, password) };
    call(&camera, DEVICE_PATH, Some("sesame"), set("root", "s&me<where>")).await;
    assert_eq!(curl(&camera, "/", Some("sesame"), None).await.0, 401);
    assert_eq!(curl(&camera, "/", Some("s&me<where>"), None).await.0, 200);
    let fault = curl(&camera, DEVICE_PATH, Some("s&me<where>"), Some(set("guest", "x").to_xml())).await;
    assert_eq!(fault.0, 400);

    let form = |form: &str| Some(form.to_owned());
    let users = "/axis-cgi/pwdgrp.cgi";
    let stranger = curl(&camera, users, Some("sesame"), form("action=update&user=root&pwd=x")).await;
    assert_eq!(stranger.0, 401);
    let mistaken = curl(&camera, users, Some("s&me<where>"), form("action=update&user=guest&pwd=x")).await.1;
    assert!(String::from_utf8_lossy(&mistaken).contains("Error"));
    let changed = curl(&camera, users, Some("s&me<where>"), form("action=update&user=root&pwd=a%26b")).await;
    assert!(String::from_utf8_lossy(&changed.1).contains("Modified"));
    assert_eq!(curl(&camera, "/", Some("a&b"), None).await.0, 200);
    camera.finish().await;
}

/// Goal: who may change things may have it restart, and nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn it_takes_the_order_to_restart() {
    let camera = Running::start(config("restarted")).await;
    assert_eq!(curl(&camera, DEVICE_PATH, None, Some(SystemReboot.to_xml())).await.0, 401);
    call(&camera, DEVICE_PATH, Some("sesame"), SystemReboot).await;
    camera.finish().await;
}

/// Goal: nobody is let in; a wrong password, none, and an unknown page look the same.
#[tokio::test(flavor = "multi_thread")]
async fn http_asks_for_the_password() {
    let camera = Running::start(config("closed")).await;
    let question = || Some(GetDeviceInformation.to_xml());
    for password in [None, Some("sesam"), Some("")] {
        assert_eq!(curl(&camera, DEVICE_PATH, password, question()).await.0, 401);
        for path in ["/", "/axis-cgi/param.cgi?action=list", "/metrics", "/healthz", "/no-such-page"] {
            assert_eq!(curl(&camera, path, password, None).await.0, 401, "{path}");
        }
    }
    assert_eq!(curl(&camera, "/no-such-page", Some("sesame"), None).await.0, 404);
    let (status, page) = curl(&camera, "/", Some("sesame"), None).await;
    assert_eq!(status, 200);
    assert!(String::from_utf8(page).unwrap().contains("020000000001"));
    assert_eq!(curl(&camera, "/healthz", Some("sesame"), None).await, (200, b"ok\n".to_vec()));
    let (status, metrics) = curl(&camera, "/metrics", Some("sesame"), None).await;
    assert_eq!(status, 200);
    assert!(String::from_utf8(metrics).unwrap().contains("\nhoming_camera_viewers 0\n"));
    camera.finish().await;
}

/// Goal: recorders that speak VAPIX find the serial number.
#[tokio::test(flavor = "multi_thread")]
async fn vapix_parameters() {
    let camera = Running::start(config("By VAPIX")).await;
    let path = "/axis-cgi/param.cgi?action=list&group=root.Brand.Brand,root.Properties.System.SerialNumber";
    let (status, answer) = curl(&camera, path, Some("sesame"), None).await;
    let answer = String::from_utf8(answer).unwrap();
    assert_eq!(
        (status, answer.trim_end()),
        (200, "root.Brand.Brand=Homing\nroot.Properties.System.SerialNumber=020000000001")
    );
    camera.finish().await;
}

/// Goal: what is not SOAP, not known, too long, or asks for what there is not, is answered with a fault.
#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_faults() {
    let camera = Running::start(config("asked badly")).await;
    let fault = async |body: String| curl(&camera, MEDIA2_PATH, Some("sesame"), Some(body)).await;
    assert_eq!(fault("not XML at all".into()).await.0, 400);
    let (status, answer) = fault(GetStreamUri::rtsp("another").to_xml()).await;
    assert_eq!(status, 400);
    assert!(String::from_utf8_lossy(&answer).contains("NoProfile"));
    let unknown = r#"<Envelope xmlns="http://www.w3.org/2003/05/soap-envelope"><Body><Reboot xmlns="x"/></Body></Envelope>"#;
    let (status, answer) = fault(unknown.into()).await;
    assert_eq!(status, 500);
    assert!(String::from_utf8_lossy(&answer).contains("ActionNotSupported"));
    assert_eq!(
        curl(&camera, MEDIA2_PATH, None, Some(unknown.into())).await.0,
        401,
        "strangers learn nothing"
    );
    assert_eq!(fault("x".repeat(100_000)).await.0, 413);
    camera.finish().await;
}
