//! The cameras behind the agent: reaching them, and looking whether they take user and password.
//!
//! The agent passes RTSP through without logging in, so that a wrong password would show up only in the
//! recording server. The look ([`look`]) is for the installer: the page says it while somebody stands there.

use crate::config::Camera;
use crate::password::LogIn;
use crate::status::{CameraHealth, CameraStatus};
use bytes::BytesMut;
use homing_protocol::digest::{ClientAuth, ClientError};
use homing_protocol::secret::Credentials;
use std::io;
use std::sync::Mutex;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// For TCP; a camera is on the same network.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// For a whole look.
const LOOK_DEADLINE: Duration = Duration::from_secs(10);

/// While a camera is not good it is looked at again after this time.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Longest head of an RTSP answer, and longest body that is skipped.
const ANSWER_MAX: usize = 64 * 1024;

/// The cameras and what is known of them.
#[derive(Debug)]
pub struct Cameras {
    list: Vec<Camera>,
    /// Their one user and password.
    pub log_in: LogIn,
    health: Mutex<Vec<CameraHealth>>,
    /// To look now.
    wake: Notify,
    /// Something has changed.
    pub changed: Notify,
}

impl Cameras {
    /// At least one camera, none looked at.
    pub fn new(list: Vec<Camera>, log_in: LogIn) -> Self {
        let health = Mutex::new(vec![CameraHealth::Unknown; list.len()]);
        Cameras { list, log_in, health, wake: Notify::new(), changed: Notify::new() }
    }

    /// The cameras in the order of the configuration; never empty.
    pub fn list(&self) -> &[Camera] {
        &self.list
    }

    /// What is shown of them.
    pub fn status(&self) -> Vec<CameraStatus> {
        let health = self.health.lock().expect("never poisoned: nothing panics while holding it");
        let status = |(camera, health): (&Camera, &CameraHealth)| CameraStatus {
            name: camera.name.clone(),
            address: camera.rtsp_authority(),
            health: health.clone(),
        };
        self.list.iter().zip(health.iter()).map(status).collect()
    }

    /// Look at all of them now.
    pub fn look_now(&self) {
        self.wake.notify_one();
    }

    /// Connects to a camera's RTSP server; a failure is remembered for the page. The error is for people.
    pub async fn connect(&self, camera: &Camera) -> Result<TcpStream, String> {
        let connected = connect(&camera.host, camera.port).await;
        if let Err(error) = &connected {
            self.set(camera.index, CameraHealth::Bad(error.clone()));
            self.look_now();
        }
        connected
    }

    /// Looks at the cameras at start, when told, and again while one is not good.
    pub async fn watch(&self, stop: CancellationToken) {
        loop {
            for camera in &self.list {
                let Some(health) = stop.run_until_cancelled(self.look(camera)).await else { return };
                self.set(camera.index, health);
            }
            let all_good = self
                .health
                .lock()
                .expect("never poisoned: nothing panics while holding it")
                .iter()
                .all(|health| *health == CameraHealth::Good);
            let again = async {
                if all_good { std::future::pending().await } else { tokio::time::sleep(LOOK_AGAIN).await }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                () = again => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// With what counts; where that is refused, with what else the camera may have, which counts then.
    async fn look(&self, camera: &Camera) -> CameraHealth {
        let trouble = match look(camera, &self.log_in.credentials()).await {
            Ok(_) => return CameraHealth::Good,
            Err(Trouble::Other(text)) => return CameraHealth::Bad(text),
            Err(Trouble::WrongCredentials(text)) => CameraHealth::Bad(text),
        };
        for other in self.log_in.others() {
            // One that does not ask says nothing about the password.
            if look(camera, &other).await == Ok(LogInAsked::Yes) {
                self.log_in.settle(&other).await;
                return CameraHealth::Good;
            }
        }
        if let Some(configured) = self.log_in.replaced()
            && look(camera, &configured).await == Ok(LogInAsked::Yes)
        {
            let peer = camera.rtsp_authority();
            return CameraHealth::Bad(format!(
                "Camera at {peer} refuses its own password and takes that of the agent's configuration. If somebody \
                 has reset it, remove {} and restart the agent; if nobody has, something else answers in its place",
                self.log_in.file().display()
            ));
        }
        trouble
    }

    /// Gives every camera a new password; the error is for people.
    pub async fn change_password(&self, new: &Credentials) -> Result<(), String> {
        let changed = self.log_in.change(&self.list, new).await;
        self.look_now();
        changed
    }

    /// Restarts every camera; the error is for people.
    pub async fn restart(&self) -> Result<(), String> {
        self.log_in.restart(&self.list).await
    }

    fn set(&self, index: usize, new: CameraHealth) {
        let mut health = self.health.lock().expect("never poisoned: nothing panics while holding it");
        if health[index] != new {
            if let CameraHealth::Bad(error) = &new {
                tracing::warn!(camera = %self.list[index].name, %error, "camera");
            }
            health[index] = new;
            self.changed.notify_one();
        }
    }
}

/// TCP to a camera. The error names the address and what to check.
pub async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let peer = crate::config::authority(host, port);
    match timeout(CONNECT_DEADLINE, TcpStream::connect((host, port))).await {
        Ok(Ok(tcp)) => {
            // Failure costs latency, not function.
            let _ = tcp.set_nodelay(true);
            Ok(tcp)
        }
        Ok(Err(error)) => {
            Err(format!("Camera not reached at {peer}: {error}; check that it has power and this address"))
        }
        Err(_) => Err(format!(
            "Camera not reached at {peer}: no answer within {} s; check that it has power and this address",
            CONNECT_DEADLINE.as_secs()
        )),
    }
}

/// What a look at a camera found wrong.
#[derive(Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It does not take the user or password.
    WrongCredentials(String),
    /// Anything else.
    Other(String),
}

impl From<String> for Trouble {
    fn from(text: String) -> Self {
        Trouble::Other(text)
    }
}

/// Asks a camera for its stream's description, with this user and password.
pub async fn look(camera: &Camera, credentials: &Credentials) -> Result<LogInAsked, Trouble> {
    let peer = camera.rtsp_authority();
    match timeout(LOOK_DEADLINE, describe(camera, credentials)).await {
        Err(_) => Err(format!("Camera at {peer} does not answer RTSP; check the address").into()),
        Ok(found) => found,
    }
}

/// What a password counts for at a camera that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogInAsked {
    /// It asked for user and password, and took them.
    Yes,
    /// It answers anybody.
    No,
}

/// What to do where a camera knows nothing better than Basic.
pub fn only_basic(name: &str) -> String {
    format!(
        "the camera {name:?} offers only Basic authentication, which shows the password to the site's network; if that \
         is all it can, set allow_basic = true in its [[cameras]] table of the agent's configuration"
    )
}

async fn describe(camera: &Camera, credentials: &Credentials) -> Result<LogInAsked, Trouble> {
    let peer = camera.rtsp_authority();
    let mut tcp = connect(&camera.host, camera.port).await?;
    let broken = |error: io::Error| format!("Camera at {peer} does not speak RTSP: {error}; check the port");
    let mut auth = ClientAuth::new(camera.basic_policy());
    let uri = camera.rtsp.as_str();
    for sequence in 1..=3 {
        let authorization = auth
            .authorize("DESCRIBE", uri, credentials)
            .map_err(|error| format!("Camera at {peer}: {error}"))?
            .map_or(String::new(), |value| format!("Authorization: {value}\r\n"));
        let request = format!(
            "DESCRIBE {uri} RTSP/1.0\r\nCSeq: {sequence}\r\nAccept: application/sdp\r\n\
             User-Agent: homing-agent\r\n{authorization}\r\n"
        );
        tcp.write_all(request.as_bytes()).await.map_err(broken)?;
        let answer = read_answer(&mut tcp).await.map_err(broken)?;
        match answer.status {
            200..=299 if auth.is_challenged() => return Ok(LogInAsked::Yes),
            200..=299 => return Ok(LogInAsked::No),
            401 => match auth.handle_challenge(answer.challenges.iter().map(String::as_str)) {
                Ok(()) => {}
                Err(ClientError::WrongCredentials) => {
                    return Err(Trouble::WrongCredentials(format!(
                        "Camera at {peer} refuses the user or password in the agent's configuration"
                    )));
                }
                Err(ClientError::OnlyBasic) => {
                    return Err(format!("Camera at {peer}: {}", only_basic(&camera.name)).into());
                }
                Err(error) => return Err(format!("Camera at {peer}: {error}").into()),
            },
            404 => {
                let text = format!("Camera at {peer} has no stream {}; check the path", camera.rtsp.path());
                return Err(text.into());
            }
            status => return Err(format!("Camera at {peer} answers DESCRIBE with {status}").into()),
        }
    }
    Err(format!("Camera at {peer} asks for the password again and again").into())
}

struct Answer {
    status: u16,
    challenges: Vec<String>,
}

/// Reads the head of an RTSP answer, and skips its body.
async fn read_answer(tcp: &mut TcpStream) -> io::Result<Answer> {
    let mut bytes = BytesMut::with_capacity(1024);
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if bytes.len() >= ANSWER_MAX {
            return Err(io::Error::other("an endless head"));
        }
        if tcp.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let (answer, length) = parse_head(&bytes[..end]).ok_or_else(|| io::Error::other("not an RTSP answer"))?;
    let mut left = (end + 4 + length).saturating_sub(bytes.len());
    let mut scratch = [0; 1024];
    while left > 0 {
        let part = left.min(scratch.len());
        left -= tcp.read_exact(&mut scratch[..part]).await?;
    }
    Ok(answer)
}

/// The status, the challenges and the length of the body.
fn parse_head(head: &[u8]) -> Option<(Answer, usize)> {
    let head = String::from_utf8_lossy(head);
    let mut lines = head.split("\r\n");
    let mut status_line = lines.next()?.splitn(3, ' ');
    if !status_line.next()?.starts_with("RTSP/1.") {
        return None;
    }
    let status = status_line.next()?.parse().ok()?;
    let (mut challenges, mut length) = (Vec::new(), 0);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("WWW-Authenticate") {
            challenges.push(value.trim().to_owned());
        } else if name.eq_ignore_ascii_case("Content-Length") {
            length = value.trim().parse().ok().filter(|length| *length <= ANSWER_MAX)?;
        }
    }
    Some((Answer { status, challenges }, length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CameraConfig, Config};
    use homing_protocol::digest::{DigestGuard, Refusal};
    use proptest::prelude::*;
    use tokio::net::TcpListener;

    fn camera(port: u16, password: &str) -> Camera {
        let rtsp = format!("rtsp://root:{password}@127.0.0.1:{port}/stream").as_str().into();
        let config =
            Config { cameras: vec![CameraConfig { rtsp, ..CameraConfig::default() }], ..Config::default() };
        config.validate().unwrap().cameras.remove(0)
    }

    /// What a camera takes, a connection after the other; the last for all that follow. Without a password it answers
    /// anybody.
    type Script = Mutex<Vec<Option<&'static str>>>;

    /// A camera that wants Digest, with a body behind its 401 as some have.
    async fn camera_with_password(listener: TcpListener, script: &Script) {
        let guard = DigestGuard::new("camera", [1; 32]);
        while let Ok((mut tcp, _)) = listener.accept().await {
            let takes = {
                let mut script = script.lock().unwrap();
                if script.len() > 1 { script.remove(0) } else { script[0] }
            };
            let mut bytes = BytesMut::new();
            while tcp.read_buf(&mut bytes).await.is_ok_and(|count| count > 0) {
                let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
                let head = String::from_utf8(bytes.split_to(end + 4).to_vec()).unwrap();
                let field = |name: &str| {
                    head.lines().find_map(|line| line.strip_prefix(name).map(|value| value.trim().to_owned()))
                };
                let uri = head.split(' ').nth(1).unwrap();
                let passwords = |user: &str| (user == "root").then(|| takes.unwrap_or_default().into());
                let checked =
                    guard.check("DESCRIBE", uri, field("Authorization:").as_deref(), passwords, 1000);
                let answer = match checked {
                    _ if takes.is_none() => "RTSP/1.0 200 OK\r\n\r\n".to_owned(),
                    Ok(_) => "RTSP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nv=0\n".to_owned(),
                    Err(Refusal::Missing | Refusal::Wrong) => {
                        let challenges: String = guard
                            .challenges(1000, false)
                            .iter()
                            .map(|challenge| format!("WWW-Authenticate: {challenge}\r\n"))
                            .collect();
                        format!("RTSP/1.0 401 Unauthorized\r\n{challenges}Content-Length: 2\r\n\r\nno")
                    }
                    Err(other) => panic!("{other}"),
                };
                if tcp.write_all(answer.as_bytes()).await.is_err() {
                    break;
                }
            }
        }
    }

    #[tokio::test]
    async fn the_installer_is_told_whether_the_camera_answers_and_takes_the_password() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let script = Mutex::new(vec![Some("sesame")]);
        tokio::select! {
            () = camera_with_password(listener, &script) => unreachable!("it serves for ever"),
            () = async {
                let look = async |camera: Camera| look(&camera, &camera.credentials).await;
                assert_eq!(look(camera(port, "sesame")).await, Ok(LogInAsked::Yes));
                let Err(Trouble::WrongCredentials(error)) = look(camera(port, "wrong")).await else { panic!() };
                assert!(error.contains("refuses the user or password"), "{error}");
            } => {}
        }
        let gone = camera(port, "sesame");
        let Err(Trouble::Other(error)) = look(&gone, &gone.credentials).await else { panic!() };
        assert!(error.starts_with(&format!("Camera not reached at 127.0.0.1:{port}: ")), "{error}");
    }

    /// Goal: whoever answers in the camera's place takes no password away: when it has gone, the camera is good again. What
    /// a person changes in the configuration counts.
    #[tokio::test]
    async fn who_answers_in_the_cameras_place_takes_no_password_away() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password.json");
        crate::files::write(&file, r#"{"user": "root", "own": "generated", "new": null}"#).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let script = Mutex::new(vec![Some("generated")]);
        let started = |configured: &'static str| {
            let camera = camera(port, configured);
            Cameras::new(vec![camera.clone()], LogIn::load(folder.path(), camera.credentials).unwrap())
        };
        let looked = async |cameras: &Cameras, takes: &[Option<&'static str>]| {
            *script.lock().unwrap() = takes.to_vec();
            let health = cameras.look(&cameras.list()[0]).await;
            (health, cameras.log_in.credentials().password.expose().to_owned())
        };
        let good = |password: &str| (CameraHealth::Good, password.to_owned());
        tokio::select! {
            () = camera_with_password(listener, &script) => unreachable!("it serves for ever"),
            () = async {
                let cameras = started("pass");
                // It refuses what counts, and takes the factory default, with a log-in or without.
                let (health, password) = looked(&cameras, &[Some("pass")]).await;
                assert_eq!(password, "generated");
                let CameraHealth::Bad(text) = health else { panic!("{health:?}") };
                assert!(text.contains("password.json") && text.contains("reset"), "{text}");
                let (health, password) = looked(&cameras, &[Some(""), None]).await;
                assert!(matches!(health, CameraHealth::Bad(_)), "{health:?}");
                assert_eq!(password, "generated");
                assert_eq!(looked(&cameras, &[Some("generated")]).await, good("generated"));
                assert_eq!(looked(&started("pass"), &[Some("generated")]).await, good("generated"));

                // A person corrects the configuration; and even then nothing is forgotten.
                let corrected = started("chosen");
                assert_eq!(looked(&corrected, &[Some("generated")]).await, good("generated"));
                let (health, password) = looked(&corrected, &[Some(""), None]).await;
                assert!(matches!(health, CameraHealth::Bad(_)) && password == "generated", "{health:?}");
                assert_eq!(looked(&corrected, &[Some("chosen")]).await, good("chosen"));
                assert_eq!(looked(&started("chosen"), &[Some("chosen")]).await, good("chosen"));
                assert_eq!(looked(&started("chosen"), &[Some("generated")]).await, good("generated"));

                // As the file's removal does, after a reset.
                std::fs::remove_file(&file).unwrap();
                assert_eq!(looked(&started("pass"), &[Some("pass")]).await, good("pass"));
            } => {}
        }
    }

    /// Goal: a camera, or who answers in its place, is not shown the password in clear, unless the configuration says so.
    #[tokio::test]
    async fn basic_is_answered_only_where_the_configuration_allows_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shown = Mutex::new(false);
        let basic = async {
            while let Ok((mut tcp, _)) = listener.accept().await {
                let mut request = [0; 1024];
                while let Ok(count @ 1..) = tcp.read(&mut request).await {
                    let in_clear =
                        String::from_utf8_lossy(&request[..count]).contains("Authorization: Basic ");
                    *shown.lock().unwrap() |= in_clear;
                    let status = if in_clear {
                        "200 OK"
                    } else {
                        "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\""
                    };
                    tcp.write_all(format!("RTSP/1.0 {status}\r\n\r\n").as_bytes()).await.unwrap();
                }
            }
        };
        tokio::select! {
            () = basic => unreachable!("it serves for ever"),
            () = async {
                let mut camera = camera(port, "sesame");
                let Err(Trouble::Other(text)) = look(&camera, &camera.credentials).await else { panic!() };
                assert!(text.contains("allow_basic = true"), "{text}");
                assert!(!*shown.lock().unwrap());
                camera.allow_basic = true;
                assert_eq!(look(&camera, &camera.credentials).await, Ok(LogInAsked::Yes));
                assert!(*shown.lock().unwrap());
            } => {}
        }
    }

    proptest! {
        #[test]
        fn hostile_answers_are_read_or_refused(head in "(RTSP/1.0 [0-9]{0,5} ?)?[ -~\\r\\n]{0,200}") {
            if let Some((_, length)) = parse_head(head.as_bytes()) {
                prop_assert!(length <= ANSWER_MAX);
            }
        }
    }
}
