//! The "Test" of a tunnel server's dialog: one step after the other, and what to do about the first that fails.
//!
//! 1. the address can be read;
//! 2. its host name is known;
//! 3. something listens there;
//! 4. TLS, with a certificate that is trusted and is for that name;
//! 5. it is a tunnel server, and takes user and password;
//! 6. it says what it is.
//!
//! Invariant: user and password are sent to nobody whose certificate was not verified, where HTTPS is asked for.

use crate::{config::TunnelServer, tunnels};
use homing_base::{
    client::CallError,
    tls::{self, Shown},
};
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;
use utoipa::ToSchema;

/// For each step.
const STEP_DEADLINE: Duration = Duration::from_secs(5);

/// What became of a test.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Tested {
    /// Whether it can be used as it was entered.
    pub ok: bool,
    /// A word for programs: `ok`, `bad-address`, `unknown-host`, `refused`, `no-answer`, `not-tls`, `not-trusted`,
    /// `wrong-name`, `tls`, `is-tls`, `https-only`, `credentials-wanted`, `wrong-credentials`, `too-many-attempts`,
    /// `not-a-tunnel-server`, `other-external-address`.
    #[schema(example = "wrong-credentials")]
    pub code: String,
    /// What was found, and what to do about it.
    pub message: String,
    /// What the server showed that is not trusted yet: compare the fingerprint, then enter the anchor as
    /// `trust_anchor`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Certificate>,
    /// What it calls itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it tells devices to dial.
    #[serde(default)]
    pub public: Vec<String>,
}

/// What a server showed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Certificate {
    /// SHA-256 of its private CA's certificate, or of its own where it shows no CA.
    pub fingerprint: String,
    /// PEM of that certificate.
    pub trust_anchor: String,
    /// DNS names and IP addresses that its own certificate is for.
    pub names: Vec<String>,
}

impl Tested {
    fn failed(code: &str, message: String) -> Box<Self> {
        Box::new(Tested {
            ok: false,
            code: code.to_owned(),
            message,
            certificate: None,
            name: None,
            public: Vec::new(),
        })
    }

    fn shown(mut self: Box<Self>, shown: Shown) -> Box<Self> {
        let Shown { anchor, fingerprint, names, .. } = shown;
        self.certificate = Some(Certificate { fingerprint, trust_anchor: anchor, names });
        self
    }
}

/// Whether an internal address can be read.
///
/// # Errors
/// How it is written.
pub fn check_address(url: &str) -> Result<(), String> {
    Address::parse(url).map(|_| ()).map_err(|tested| tested.message)
}

/// Tests a tunnel server as it was entered.
pub async fn test(entered: &TunnelServer) -> Tested {
    match find(entered).await {
        Ok(tested) => tested,
        Err(tested) => *tested,
    }
}

async fn find(entered: &TunnelServer) -> Result<Tested, Box<Tested>> {
    let at = Address::parse(&entered.url)?;
    let tcp = at.dial().await?;
    match at.is_https {
        true => at.handshake(tcp, entered).await?,
        false => drop(tcp),
    }
    ask(entered, &at).await
}

/// The internal address, taken apart.
#[derive(Debug)]
struct Address {
    is_https: bool,
    /// Without brackets.
    host: String,
    port: u16,
}

impl Address {
    fn parse(url: &str) -> Result<Self, Box<Tested>> {
        let bad = || {
            let message = "The internal address is written as https://host:port or http://host:port, such as \
                           https://10.1.2.3:8081.";
            Tested::failed("bad-address", message.to_owned())
        };
        let uri: http::Uri = url.trim_end_matches('/').parse().map_err(|_| bad())?;
        let is_https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad()),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(bad)?;
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) || uri.path() != "/" {
            return Err(bad());
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Address { is_https, host, port: uri.port_u16().unwrap_or(if is_https { 443 } else { 80 }) })
    }

    async fn dial(&self) -> Result<TcpStream, Box<Tested>> {
        let Address { host, port, .. } = self;
        let found = timeout(STEP_DEADLINE, tokio::net::lookup_host((host.as_str(), *port))).await;
        let found: Vec<SocketAddr> = match found {
            Ok(Ok(found)) => found.collect(),
            _ => Vec::new(),
        };
        if found.is_empty() {
            let message = format!(
                "No address is known for the host {host}: check how it is written, and this machine's DNS; or enter \
                 its IP address."
            );
            return Err(Tested::failed("unknown-host", message));
        }
        let mut why = Tested::failed("no-answer", String::new());
        for address in found {
            let ip: IpAddr = address.ip();
            match timeout(STEP_DEADLINE, TcpStream::connect(address)).await {
                Ok(Ok(tcp)) => return Ok(tcp),
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    let message = format!(
                        "{ip} is there, but nothing listens on port {port}: check that the tunnel server runs, and \
                         the port of internal in its [tunnel] (127.0.0.1 there is reached from that machine alone)."
                    );
                    why = Tested::failed("refused", message);
                }
                Ok(Err(error)) => {
                    let message = format!("{address} cannot be reached: {error}; check the network between.");
                    why = Tested::failed("no-answer", message);
                }
                Err(_) => {
                    let message = format!(
                        "{address} does not answer within {} s: check the address, and that the firewall between lets \
                         port {port} through.",
                        STEP_DEADLINE.as_secs()
                    );
                    why = Tested::failed("no-answer", message);
                }
            }
        }
        Err(why)
    }

    async fn handshake(&self, tcp: TcpStream, entered: &TunnelServer) -> Result<(), Box<Tested>> {
        let Address { host, port, .. } = self;
        let trust =
            entered.trust_anchor_pem().map_err(|error| Tested::failed("tls", format!("{error:#}.")))?;
        let config = tls::client_config(trust.as_deref())
            .map_err(|error| Tested::failed("tls", format!("The trust anchor cannot be used: {error:#}.")))?;
        let name = ServerName::try_from(host.clone())
            .map_err(|_| Tested::failed("bad-address", format!("{host} is no host name or IP address.")))?;
        let handshake = TlsConnector::from(Arc::new(config)).connect(name, tcp);
        let error = match timeout(STEP_DEADLINE, handshake).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => {
                let message = format!(
                    "Something listens at {host}:{port}, but it does not speak TLS within {} s: is it http://?",
                    STEP_DEADLINE.as_secs()
                );
                return Err(Tested::failed("not-tls", message));
            }
        };
        let shown = async {
            let tcp = self.dial().await.ok()?;
            timeout(STEP_DEADLINE, tls::look(tcp, host)).await.ok()?.ok()
        };
        let Some(shown) = shown.await else {
            let message = format!(
                "Something listens at {host}:{port}, but it speaks no TLS ({error}): enter the address with http://, \
                 or give the tunnel server a certificate for its internal address."
            );
            return Err(Tested::failed("not-tls", message));
        };
        Err(match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(why)) => untrusted(why, host, shown),
            _ => Tested::failed("tls", format!("TLS with {host}:{port} failed: {error}.")),
        })
    }
}

fn untrusted(why: &rustls::CertificateError, host: &str, shown: Shown) -> Box<Tested> {
    use rustls::CertificateError as Error;
    match why {
        Error::NotValidForName | Error::NotValidForNameContext { .. } => {
            let message = format!(
                "Its certificate is for {}, not for {host}: enter the address with one of these names, or add {host} \
                 to the names in its certificate.",
                if shown.names.is_empty() { "no name at all".to_owned() } else { shown.names.join(", ") }
            );
            Tested::failed("wrong-name", message).shown(shown)
        }
        Error::Expired
        | Error::ExpiredContext { .. }
        | Error::NotValidYet
        | Error::NotValidYetContext { .. } => {
            let message =
                "Its certificate is not valid now: renew it, or set the clock of that machine or of this.";
            Tested::failed("tls", message.to_owned())
        }
        _ => {
            let message =
                "Its certificate is not trusted yet. Compare the fingerprint with the one that the tunnel server's \
                 machine shows for its CA; where both are the same, trust it and test again."
                    .to_owned();
            Tested::failed("not-trusted", message).shown(shown)
        }
    }
}

/// Who it is, asked as it will be asked from now on.
async fn ask(entered: &TunnelServer, at: &Address) -> Result<Tested, Box<Tested>> {
    let Address { host, port, .. } = at;
    let server = tunnels::TunnelServer::new(entered)
        .map_err(|error| Tested::failed("bad-address", format!("{error:#}.")))?;
    let told = server.server().await.map_err(|error| match error {
        CallError::Refused { problem, .. } if problem.error.code == "https-only" => {
            let message = format!(
                "It takes no plain HTTP from here: enter its internal address with https://, {}.",
                entered.url.replacen("http://", "https://", 1)
            );
            Tested::failed("https-only", message)
        }
        CallError::Refused { status, problem, .. } => match status.as_u16() {
            401 if entered.user.is_empty() => {
                let message = "It wants a user and a password: use credentials, those of [tunnel] in its \
                               configuration.";
                Tested::failed("credentials-wanted", message.to_owned())
            }
            401 | 403 => {
                let message = "It does not take this user and password: compare them with user and password in its \
                               [tunnel].";
                Tested::failed("wrong-credentials", message.to_owned())
            }
            429 => Tested::failed("too-many-attempts", problem.error.message),
            _ => {
                let message = format!(
                    "Something answers at {host}:{port}, but not as a tunnel server's internal address does \
                     ({status}): is it the address of another program, or of the page?"
                );
                Tested::failed("not-a-tunnel-server", message)
            }
        },
        CallError::Unexpected { cause, .. } => {
            let message = format!(
                "Something answers at {host}:{port}, but it is not a tunnel server's internal address ({cause})."
            );
            Tested::failed("not-a-tunnel-server", message)
        }
        CallError::Unreachable { cause, .. } if !at.is_https => {
            let message = format!(
                "Something listens at {host}:{port}, but does not speak HTTP ({cause}): is it the external address, \
                 which devices dial, or does it want https://?"
            );
            Tested::failed("is-tls", message)
        }
        CallError::Unreachable { cause, .. } => {
            Tested::failed("no-answer", format!("{host}:{port} broke off: {cause}."))
        }
    })?;
    let public = told.public.join(", ");
    let entered_external = entered.external.trim();
    let is_other = !entered_external.is_empty()
        && !told.public.iter().any(|address| address.eq_ignore_ascii_case(entered_external));
    let (code, message) = match (is_other, &told.dispatcher_problem) {
        (true, _) => (
            "other-external-address",
            format!(
                "It answers, but it tells devices to dial {public}, not {entered_external}: correct the external \
                 address here, or public in its [tunnel]."
            ),
        ),
        (false, Some(problem)) => {
            ("ok", format!("It answers; but between it and its dispatcher: {}", problem.message))
        }
        (false, None) => ("ok", format!("It answers, is called {:?}, and devices dial {public}.", told.name)),
    };
    Ok(Tested {
        ok: code == "ok",
        code: code.to_owned(),
        message,
        certificate: None,
        name: Some(told.name),
        public: told.public,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart_or_refused_with_an_example() {
        let parsed = |url: &str| Address::parse(url).map(|at| (at.is_https, at.host, at.port));
        assert_eq!(parsed("http://10.1.2.3:8081").unwrap(), (false, "10.1.2.3".into(), 8081));
        assert_eq!(parsed("https://[2001:db8::1]:8081/").unwrap(), (true, "2001:db8::1".into(), 8081));
        assert_eq!(parsed("https://sts.example").unwrap(), (true, "sts.example".into(), 443));
        for bad in ["", "10.1.2.3:8081", "ftp://sts:1", "http://", "http://u:p@sts:1", "http://sts:1/admin"] {
            let tested = parsed(bad).unwrap_err();
            assert_eq!(tested.code, "bad-address", "{bad}");
            assert!(tested.message.contains("https://10.1.2.3:8081"));
        }
    }
}
