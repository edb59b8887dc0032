//! The internal address as programs of others speak to it, which integrations use: curl, ffmpeg and GStreamer. (The RTSP
//! gateway and players: `app/tests/it/players.rs`.)

use crate::world::{PASSWORD, USER, World, within};
use std::process::{Command, Output};

async fn run(mut command: Command) -> Output {
    let run = tokio::task::spawn_blocking(move || {
        command
            .output()
            .unwrap_or_else(|error| panic!("{command:?}: {error} (cargo xtask test --only tools)"))
    });
    within(run).await.unwrap()
}

/// Runs curl with what is always wanted.
async fn curl(arguments: &[&str]) -> Output {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--noproxy", "", "--max-time", "15"]).args(arguments);
    run(command).await
}

async fn text(arguments: &[&str]) -> String {
    let output = curl(arguments).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "curl {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Goal: every way through the proxy that curl knows.
#[tokio::test]
async fn curl_reaches_a_device_every_way() {
    let world = World::new().await;
    world.ready("00408C702009").await;
    let ca = world.folder.path().join("tunnel/tunnel-ca.pem").display().to_string();
    let proxy = format!("http://{USER}:{PASSWORD}@{}", world.internal);
    let by_tls = format!("https://{USER}:{PASSWORD}@{}", world.internal);
    let url = "http://00408c702009/headers";
    let sees = |what: &str, seen: String| {
        assert!(seen.contains("user-agent: curl"), "{what}: {seen}");
        assert!(!seen.contains("proxy-"), "{what}: {seen}");
    };
    sees("absolute form", text(&["--proxy", &proxy, url]).await);
    sees("CONNECT 80", text(&["--proxy", &proxy, "--proxytunnel", url]).await);
    let https = "https://00408c702009/headers";
    sees("CONNECT 443", text(&["--proxy", &proxy, "--cacert", &ca, https]).await);
    sees("HTTPS proxy", text(&["--proxy", &by_tls, "--proxy-cacert", &ca, url]).await);
    let both = ["--proxy", &by_tls, "--proxy-cacert", &ca, "--cacert", &ca, https];
    sees("CONNECT 443 by HTTPS", text(&both).await);
    sees("as integrations name it", text(&["--proxy", &proxy, "4.00408c702009/headers"]).await);
    // Whoever does not trust the tunnel server's CA is shown no device.
    assert!(!curl(&["--proxy", &proxy, https]).await.status.success());

    let upload = world.folder.path().join("upload");
    std::fs::write(&upload, vec![b'u'; 20_000_000]).unwrap();
    let data = format!("@{}", upload.display());
    let count = "http://00408c702009/count";
    for extra in [&["--header", "Transfer-Encoding: chunked"][..], &["--header", "Expect: 100-continue"], &[]]
    {
        let arguments = [&["--proxy", &proxy, "--data-binary", &data, count], extra].concat();
        assert_eq!(text(&arguments).await, "20000000", "{extra:?}");
    }
    // An answer without an end is there from its first byte.
    let endless = "http://00408c702009/endless";
    let output = curl(&["--proxy", &proxy, "--no-buffer", "--max-time", "1", endless]).await;
    assert_eq!(output.status.code(), Some(28), "ended by its own deadline");
    assert!(output.stdout.len() > 100_000, "{} bytes", output.stdout.len());
}

/// Goal: the API and the event stream, by HTTP/1.1 and HTTP/2, plain and by TLS.
#[tokio::test]
async fn curl_speaks_to_the_api() {
    let world = World::new().await;
    world.ready("00408C702009").await;
    let ca = world.folder.path().join("tunnel/tunnel-ca.pem").display().to_string();
    let user = format!("{USER}:{PASSWORD}");
    let show = ["--user", &user, "--cacert", &ca, "--write-out", " by %{http_version}"];
    for (scheme, how, version) in [
        ("http", "--http1.1", "1.1"),
        ("http", "--http2-prior-knowledge", "2"),
        ("https", "--http1.1", "1.1"),
        ("https", "--http2", "2"),
    ] {
        let url = format!("{scheme}://{}/api/v1/devices/00408C702009", world.internal);
        let answer = text(&[&show[..], &[how, &url]].concat()).await;
        assert!(answer.contains("\"connected\":true"), "{answer}");
        assert!(answer.ends_with(&format!(" by {version}")), "{scheme} {how}: {answer}");
    }
    let events = format!("http://{}/api/v1/events", world.internal);
    let output = curl(&["--user", &user, "--no-buffer", "--max-time", "1", &events]).await;
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("event: reset") && told.contains("event: ready"), "{told}");
}

/// Goal: what media programs take by HTTP they take through the proxy, too: by CONNECT as ffmpeg does it, and in absolute
/// form as GStreamer does it; with a wrong password neither gets anything.
#[tokio::test]
async fn media_programs_reach_a_device() {
    let world = World::new().await;
    world.ready("00408C702009").await;
    let (host, http) = (world.internal, "http://00408c702009/headers");
    let https = http.replace("http:", "https:");
    let ffmpeg = async |password: &str| {
        let mut command = Command::new("ffmpeg");
        command.args(["-v", "error", "-http_proxy", &format!("http://{USER}:{password}@{host}")]);
        command.args(["-f", "data", "-i", &https, "-map", "0", "-c", "copy", "-f", "data", "-"]);
        run(command).await
    };
    let gstreamer = async |password: &str| {
        let mut command = Command::new("gst-launch-1.0");
        command.args(["-q", "souphttpsrc", &format!("proxy=http://{host}"), &format!("location={http}")]);
        command.args([&format!("proxy-id={USER}"), &format!("proxy-pw={password}")]);
        command.args(["!", "fdsink", "fd=1"]);
        run(command).await
    };
    for (name, output, refused) in [
        ("Lavf", ffmpeg(PASSWORD).await, ffmpeg("guess").await),
        ("GStreamer", gstreamer(PASSWORD).await, gstreamer("guess").await),
    ] {
        let seen = String::from_utf8_lossy(&output.stdout);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && seen.contains(&format!("user-agent: {name}")), "{seen}{said}");
        assert!(!seen.contains("proxy-"), "{name}: {seen}");
        // GStreamer takes the refusal's words for the answer.
        let refused = String::from_utf8_lossy(&refused.stdout);
        assert!(refused.is_empty() || refused.contains("unauthorized"), "{name}: {refused}");
    }
}
