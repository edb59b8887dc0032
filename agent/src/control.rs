//! What `homing-agent label`, `reset`, `press` and `status` do: the first two with the data folder, the
//! others with the page of the agent that is running.

use crate::Label;
use crate::config::Config;
use crate::files;
use crate::identity::Identity;
use crate::password::LogIn;
use crate::run::{PAGE_FILE, lock};
use crate::store::Store;
use anyhow::{Context, bail};
use homing_protocol::digest::{BasicPolicy, ClientAuth};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(5);

/// More than this is no answer of an agent.
const ANSWER_MAX: u64 = 1 << 20;

/// The label; made, with the key, if this is the first start.
pub fn label(config: &Config) -> anyhow::Result<Label> {
    let identity = Identity::load_or_create(&config.data, config.serial, config.oak.as_ref())?;
    Ok(Label { serial: identity.serial, oak: identity.oak })
}

/// Factory default: a new key, every uplink forgotten; the label stays. The agent must not be running.
pub fn reset(config: &Config) -> anyhow::Result<()> {
    files::private_folder(&config.data)?;
    let _lock = lock(&config.data)?;
    let identity = Identity::load_or_create(&config.data, config.serial, config.oak.as_ref())?;
    Store::erase(&config.data)?;
    identity.reset(&config.data)?;
    Ok(())
}

/// Step 3: presses the button of the agent that is running.
pub fn press(config: &Config) -> anyhow::Result<()> {
    call(config, "POST", "/press").map(|_| ())
}

/// What the agent that is running shows, as JSON.
pub fn status(config: &Config) -> anyhow::Result<serde_json::Value> {
    let body = call(config, "GET", "/status")?;
    serde_json::from_slice(&body).context("what answers there is no agent")
}

fn call(config: &Config, method: &str, path: &str) -> anyhow::Result<Vec<u8>> {
    let file = config.data.join(PAGE_FILE);
    let not_running = "the agent is not running; start it with \"homing-agent run\"";
    let text = files::read(&file)?.context(not_running)?;
    let mut addr: SocketAddr =
        text.trim().parse().with_context(|| format!("{} is damaged", file.display()))?;
    match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => addr.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => addr.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    let configured = config.validate()?.cameras.remove(0).credentials;
    let credentials = LogIn::load(&config.data, configured)?.credentials();
    let mut auth = ClientAuth::new(BasicPolicy::Refuse);
    loop {
        let authorization = auth.authorize(method, path, &credentials)?;
        let authorization =
            authorization.map_or(String::new(), |value| format!("Authorization: {value}\r\n"));
        let mut tcp = TcpStream::connect_timeout(&addr, DEADLINE).context(not_running)?;
        tcp.set_read_timeout(Some(DEADLINE))?;
        write!(
            tcp,
            "{method} {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\nContent-Length: 0\r\n{authorization}\r\n"
        )?;
        let mut answer = Vec::new();
        tcp.take(ANSWER_MAX).read_to_end(&mut answer)?;
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").context("no HTTP answer")?;
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let body = answer.split_off(end + 4);
        match head.split(' ').nth(1) {
            Some("200") => return Ok(body),
            Some("401") => {
                let challenges = head
                    .split("\r\n")
                    .filter_map(|line| line.split_once(':'))
                    .filter(|(name, _)| name.eq_ignore_ascii_case("www-authenticate"))
                    .map(|(_, value)| value.trim());
                auth.handle_challenge(challenges)?;
            }
            _ => bail!("the agent answers: {}", String::from_utf8_lossy(&body)),
        }
    }
}
