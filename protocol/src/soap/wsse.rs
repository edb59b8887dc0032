//! WS-Security UsernameToken with a password digest, which older ONVIF clients send instead of HTTP
//! Digest (ONVIF Core §5.9.1; OASIS UsernameToken Profile 1.0).
//!
//! Not as strong as HTTP Digest: the token does not cover the message, and can be replayed while its
//! time stamp is fresh. Accept it only inside TLS.

use super::{Element, Envelope};
use crate::{
    digest::{Refusal, User},
    secret::{Credentials, Secret},
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use jiff::Timestamp;
use sha1::{Digest, Sha1};
use subtle::ConstantTimeEq;

/// Namespace of the `Security` header.
pub const WSSE: &str = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd";
const WSU: &str = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd";
const PASSWORD_DIGEST: &str =
    "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-username-token-profile-1.0#PasswordDigest";

/// How far a token's time may be from ours, either way: clients set it from the device's own clock.
const FRESH_S: i64 = 5 * 60;

/// The header block that authenticates a message.
pub fn username_token(credentials: &Credentials, nonce: [u8; 16], now: Timestamp) -> Element {
    let created = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let digest = password_digest(&nonce, &created, credentials.password.expose());
    Element::new(WSSE, "Security").child(
        Element::new(WSSE, "UsernameToken")
            .child(Element::with_text(WSSE, "Username", &credentials.user))
            .child(
                Element::with_text(WSSE, "Password", BASE64.encode(digest))
                    .attribute("Type", PASSWORD_DIGEST),
            )
            .child(Element::with_text(WSSE, "Nonce", BASE64.encode(nonce)))
            .child(Element::with_text(WSU, "Created", created)),
    )
}

/// Checks the token in a message's header. A password in clear is [`Refusal::Malformed`], whatever it
/// is.
pub fn check(
    envelope: &Envelope,
    passwords: impl Fn(&str) -> Option<Secret>,
    now: Timestamp,
) -> Result<User, Refusal> {
    let token = envelope
        .header
        .iter()
        .find(|block| block.is(WSSE, "Security"))
        .and_then(|security| security.find(WSSE, "UsernameToken"))
        .ok_or(Refusal::Missing)?;
    let text = |namespace: &'static str, name: &'static str| token.text_of(namespace, name);
    let username = text(WSSE, "Username").ok_or(Refusal::Malformed("no Username"))?;
    let password = token.find(WSSE, "Password").ok_or(Refusal::Malformed("no Password"))?;
    if !password.get_attribute("Type").is_some_and(|kind| kind.ends_with("#PasswordDigest")) {
        return Err(Refusal::Malformed("a password that is not digested"));
    }
    let nonce = text(WSSE, "Nonce").and_then(|nonce| BASE64.decode(nonce).ok());
    let nonce = nonce.ok_or(Refusal::Malformed("no Nonce"))?;
    let created = text(WSU, "Created").ok_or(Refusal::Malformed("no Created"))?;
    let digest = BASE64.decode(password.text()).map_err(|_| Refusal::Malformed("not base64"))?;

    let expected = passwords(username);
    let known = expected.is_some();
    let expected = password_digest(&nonce, created, expected.unwrap_or_default().expose());
    if !(bool::from(expected.ct_eq(&digest[..])) && known) {
        return Err(Refusal::Wrong);
    }
    let made: Timestamp = created.parse().map_err(|_| Refusal::Malformed("Created is no time"))?;
    if (now.as_second() - made.as_second()).abs() > FRESH_S {
        return Err(Refusal::Stale);
    }
    Ok(User { name: username.to_owned() })
}

fn password_digest(nonce: &[u8], created: &str, password: &str) -> [u8; 20] {
    Sha1::new().chain_update(nonce).chain_update(created).chain_update(password).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(user: &str) -> Option<Secret> {
        (user == "root").then(|| "sesame".into())
    }

    #[test]
    fn a_fresh_token_with_the_right_password_passes() {
        let now: Timestamp = "2026-01-10T12:45:40Z".parse().unwrap();
        let message = |credentials: &Credentials| {
            let mut envelope = Envelope::new(Element::new("urn:x", "b"));
            envelope.header.push(username_token(credentials, [7; 16], now));
            Envelope::parse(envelope.to_xml().as_bytes()).unwrap()
        };
        let good = message(&Credentials::new("root", "sesame"));
        let later = |seconds: i64| Timestamp::from_second(now.as_second() + seconds).unwrap();
        assert_eq!(check(&good, root, later(0)), Ok(User { name: "root".into() }));
        assert_eq!(check(&good, root, later(300)), Ok(User { name: "root".into() }));
        assert_eq!(check(&good, root, later(301)), Err(Refusal::Stale));
        assert_eq!(check(&good, root, later(-301)), Err(Refusal::Stale));
        for (user, password) in [("root", "Sesame"), ("admin", "sesame"), ("admin", "")] {
            let bad = message(&Credentials::new(user, password));
            assert_eq!(check(&bad, root, now), Err(Refusal::Wrong));
        }
        let none = Envelope::new(Element::new("urn:x", "b"));
        assert_eq!(check(&none, root, now), Err(Refusal::Missing));
    }

    /// The example of ONVIF's Application Programmer's Guide, §6.1.1.3.
    #[test]
    fn the_example_of_the_programmers_guide() {
        let nonce = BASE64.decode("LKqI6G/AikKCQrN0zqZFlg==").unwrap();
        let digest = password_digest(&nonce, "2010-09-16T07:50:45Z", "userpassword");
        assert_eq!(BASE64.encode(digest), "tuOSpGlFlIXsozq4HFNeeGeFLEI=");
    }
}
