//! Where an uplink leads: parsing what configuration and ONVIF `SetUplink` say, and the site's HTTP proxy.
//!
//! Pure; names are looked up by the dialer. Flow steps 4 (phone home) and 6 (connect) begin with an
//! [`UplinkAddress`].

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::fmt;
use std::str::FromStr;

/// Longest address accepted; longer ones come from a mistake or an attack.
const ADDRESS_MAX: usize = 2048;

/// How the uplink is carried once TLS stands (ONVIF Uplink 26.06 §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// `Upgrade: h2c-reverse`; addresses that begin with `https:`.
    Native,
    /// A WebSocket with subprotocol `h2c-reverse`; addresses that begin with `wss:`.
    WebSocket,
}

/// The remote address of an uplink: `https://host[:port]/path`, `wss://host[:port]/path` or plain
/// `host[:port]` (which means `https`, path `/`). The port defaults to 443.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UplinkAddress {
    carrier: Carrier,
    host: String,
    port: u16,
    path: String,
}

/// Why an address was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{input:?} is not an uplink address: {reason}; expected https://host[:port]/path, wss://… or host:port"
)]
pub struct AddressError {
    input: String,
    reason: &'static str,
}

impl UplinkAddress {
    /// An address of a native uplink with path `/`. `host` is a name or an IP address without brackets.
    pub fn new(host: &str, port: u16) -> Result<Self, AddressError> {
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }.parse()
    }

    /// How the uplink is carried.
    pub fn carrier(&self) -> Carrier {
        self.carrier
    }

    /// Name or IP address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Path and query, beginning with `/`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `host:port` as in a `Host` header: IPv6 addresses in brackets.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for UplinkAddress {
    type Err = AddressError;

    fn from_str(input: &str) -> Result<Self, AddressError> {
        let fail = |reason| AddressError { input: input.chars().take(80).collect(), reason };
        let text = input.trim();
        if text.len() > ADDRESS_MAX {
            return Err(fail("it is too long"));
        }
        let (carrier, rest) = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (Carrier::Native, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("wss") => (Carrier::WebSocket, rest),
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("ws") => {
                return Err(fail("an uplink always uses TLS"));
            }
            Some(_) => return Err(fail("the scheme is not known")),
            None => (Carrier::Native, text),
        };
        let (authority, path) = match rest.find(['/', '?', '#']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if authority.contains('@') {
            return Err(fail("user and password do not belong into an address"));
        }
        if path.contains('#') {
            return Err(fail("it has a fragment"));
        }
        if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(fail("the path has a character that must be percent-encoded"));
        }
        let path = match path.as_bytes().first() {
            Some(b'/') => path.to_owned(),
            _ => format!("/{path}"),
        };
        let (host, port) = split_host_port(authority).map_err(fail)?;
        Ok(Self { carrier, host, port: port.unwrap_or(443), path })
    }
}

impl fmt::Display for UplinkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.carrier {
            Carrier::Native => "https",
            Carrier::WebSocket => "wss",
        };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

/// Splits `host[:port]`, `1.2.3.4[:port]` or `[::1][:port]`; the host comes back without brackets.
fn split_host_port(authority: &str) -> Result<(String, Option<u16>), &'static str> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or("the bracket of the IPv6 address is not closed")?;
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return Err("what is in brackets is not an IPv6 address");
        }
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => return Err("something follows the bracket of the IPv6 address"),
        }
    } else {
        match authority.split_once(':') {
            Some((_, port)) if port.contains(':') => return Err("an IPv6 address needs brackets"),
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':');
    if host.is_empty() {
        return Err("the host is missing");
    }
    if host.len() > 253 || !host.bytes().all(named) {
        return Err("the host is not a name or an IP address");
    }
    let port = match port {
        None => None,
        Some(text) => match text.parse::<u16>() {
            Ok(port) if port != 0 && text.bytes().all(|byte| byte.is_ascii_digit()) => Some(port),
            _ => return Err("the port is not a number from 1 to 65535"),
        },
    };
    Ok((host.to_ascii_lowercase(), port))
}

/// The HTTP proxy of a site: uplinks run through it by `CONNECT` (RFC 9110 §9.3.6).
#[derive(Clone, PartialEq, Eq)]
pub struct HttpProxy {
    host: String,
    port: u16,
    credentials: Option<(String, String)>,
}

impl HttpProxy {
    /// A proxy without credentials. `host` is a name or an IP address without brackets.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port, credentials: None }
    }

    /// Adds the user and password for Basic authentication (RFC 7617).
    pub fn with_credentials(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.credentials = Some((user.into(), password.into()));
        self
    }

    /// Name or IP address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The value of `Proxy-Authorization`, if there are credentials.
    pub(crate) fn authorization(&self) -> Option<String> {
        let (user, password) = self.credentials.as_ref()?;
        Some(format!("Basic {}", BASE64.encode(format!("{user}:{password}"))))
    }
}

impl FromStr for HttpProxy {
    type Err = AddressError;

    /// `[http://]host:port`. User and password are given apart, so that they stay out of URLs.
    fn from_str(input: &str) -> Result<Self, AddressError> {
        // The text may hold a password that somebody put there against the rules: it is not repeated.
        let fail = |reason| AddressError { input: "the proxy".to_owned(), reason };
        let text = input.trim();
        let text = text.strip_prefix("http://").unwrap_or(text);
        let text = text.strip_suffix('/').unwrap_or(text);
        if text.contains('@') {
            return Err(fail("user and password do not belong into an address"));
        }
        let (host, port) = split_host_port(text).map_err(fail)?;
        Ok(Self::new(host, port.ok_or_else(|| fail("the port is missing"))?))
    }
}

impl fmt::Debug for HttpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpProxy")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("credentials", &self.credentials.as_ref().map(|_| "…"))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_people_write_are_understood() {
        for (text, printed) in [
            ("sts.example.com:8443", "https://sts.example.com:8443/"),
            ("sts.example.com", "https://sts.example.com:443/"),
            ("https://STS.example.com/a/b?c=d", "https://sts.example.com:443/a/b?c=d"),
            ("WSS://10.0.0.1:9/x", "wss://10.0.0.1:9/x"),
            ("https://[::1]:8443", "https://[::1]:8443/"),
            ("[2001:db8::1]", "https://[2001:db8::1]:443/"),
            ("https://h?token", "https://h:443/?token"),
            (" h:1 ", "https://h:1/"),
        ] {
            let address: UplinkAddress = text.parse().expect(text);
            assert_eq!(address.to_string(), printed);
            assert_eq!(
                address.to_string().parse::<UplinkAddress>(),
                Ok(address),
                "{text} prints as it parses"
            );
        }
        assert_eq!(UplinkAddress::new("::1", 5).expect("an address").to_string(), "https://[::1]:5/");
    }

    #[test]
    fn addresses_that_cannot_be_meant_are_refused_with_the_reason() {
        for (text, reason) in [
            ("", "host is missing"),
            ("http://h/", "always uses TLS"),
            ("ftp://h/", "scheme"),
            ("https://user:pass@h/", "password"),
            ("https://h:0/", "port"),
            ("https://h:65536/", "port"),
            ("https://h:+1/", "port"),
            ("::1:8443", "brackets"),
            ("https://[::1", "bracket"),
            ("https://[h]:1/", "IPv6"),
            ("https://h/#x", "fragment"),
            ("https://h/a b", "percent"),
            ("h\r\nX: y", "host"),
        ] {
            let error = text.parse::<UplinkAddress>().expect_err(text).to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn proxy_credentials_are_sent_but_never_shown() {
        let proxy =
            "http://proxy:3128/".parse::<HttpProxy>().expect("a proxy").with_credentials("u", "geheim");
        assert_eq!(proxy.authorization().as_deref(), Some("Basic dTpnZWhlaW0="));
        assert!(!format!("{proxy:?}").contains("geheim"));
        assert!(
            "http://u:geheim@p:1"
                .parse::<HttpProxy>()
                .is_err_and(|error| !error.to_string().contains("geheim"))
        );
    }
}
