//! Whose key is believed without an OAK proof (step 5): devices of other makes, which have none.
//!
//! Such a device is the registered one when its owner gave the OAK that the manufacturer's list has for it, and when
//! the manufacturer vouches for its key: by a certificate that one of his CAs issued (an IEEE 802.1AR IDevID), or by
//! the key's fingerprint on the list. See `docs/decisions/016-devices-of-other-makes.md`.
//!
//! Invariant: nothing of a registration is shown to a device before this module or the OAK proof has said yes.

use crate::{config::DeviceKeys, lists::Listed};
use anyhow::{Context, bail};
use homing_protocol::Oak;
use homing_uplink::{Fingerprint, PeerIdentity, crypto_provider};
use rustls::{
    CertificateError, RootCertStore,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use std::{path::PathBuf, sync::Arc};

/// The CAs that manufacturers issue their devices' certificates with, as the operator has imported them.
pub(crate) struct Manufacturers(Option<Arc<dyn ClientCertVerifier>>);

impl Manufacturers {
    /// Reads `device_anchors`.
    pub fn open(files: &[PathBuf]) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for file in files {
            let name = || format!("[dispatcher] device_anchors: {}", file.display());
            let before = roots.len();
            for certificate in CertificateDer::pem_file_iter(file).with_context(name)? {
                roots.add(certificate.with_context(name)?).with_context(name)?;
            }
            if roots.len() == before {
                bail!("{}: there is no certificate in it", name());
            }
        }
        if roots.is_empty() {
            return Ok(Manufacturers(None));
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto_provider());
        Ok(Manufacturers(Some(verifier.build().context("[dispatcher] device_anchors")?)))
    }

    /// Whether one of them issued the certificate that a device has shown; or why it does not count.
    pub fn check(&self, identity: &PeerIdentity) -> Result<(), &'static str> {
        let verifier = self.0.as_ref().ok_or("no manufacturer's CA is imported")?;
        let certificate = CertificateDer::from_slice(&identity.certificate_der);
        let behind: Vec<_> =
            identity.intermediates_der.iter().map(|der| CertificateDer::from_slice(der)).collect();
        match verifier.verify_client_cert(&certificate, &behind, UnixTime::now()) {
            Ok(_) => Ok(()),
            Err(rustls::Error::InvalidCertificate(error)) => Err(match error {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    "none of the imported CAs has issued its certificate"
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "its certificate has expired"
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    "its certificate is not valid yet"
                }
                CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                    "its certificate is not for a client's use"
                }
                _ => "its certificate is not in order",
            }),
            Err(_) => Err("its certificate is not in order"),
        }
    }
}

/// Why a device without a proof is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// Devices without a proof are not dispatched here.
    ProofRequired,
    /// It is on no manufacturer's list.
    Unlisted,
    /// The list has another OAK than the registration.
    WrongOak,
    /// Nobody vouches for its key; why not.
    Key(&'static str),
}

/// What a device without a proof brings.
pub(crate) struct Claim<'a> {
    pub key: Fingerprint,
    /// See [`Manufacturers::check`].
    pub issued: Result<(), &'static str>,
    /// Of the registration.
    pub oak: &'a Oak,
    /// The key that this registration was bound to before.
    pub bound: Option<&'a str>,
}

/// Whether a device without a proof is the registered one, and who says so.
pub(crate) fn vouch(
    keys: DeviceKeys,
    listed: Option<&Listed>,
    claim: &Claim<'_>,
) -> Result<&'static str, Doubt> {
    if keys == DeviceKeys::Proven {
        return Err(Doubt::ProofRequired);
    }
    let listed = listed.ok_or(Doubt::Unlisted)?;
    if listed.oak != *claim.oak {
        return Err(Doubt::WrongOak);
    }
    match (listed.key, claim.issued) {
        (Some(key), _) if key == claim.key => Ok("manufacturer's list"),
        (Some(_), _) => Err(Doubt::Key("the manufacturer's list has another key for it")),
        (None, Ok(())) => Ok("manufacturer's CA"),
        (None, Err(_)) if keys == DeviceKeys::FirstUse => match claim.bound {
            Some(bound) if bound != claim.key.to_string() => Err(Doubt::Key(
                "it came with another key before: if it was replaced or reset, delete its registration and register it anew",
            )),
            _ => Ok("first use"),
        },
        (None, Err(why)) => Err(Doubt::Key(why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OAK: Oak = Oak::new([1; 6]);
    const KEY: Fingerprint = Fingerprint([7; 32]);

    /// Goal: a file that holds no CA is named at the start.
    #[test]
    fn a_file_without_a_ca_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("maker.pem");
        for text in ["", "-----BEGIN CERTIFICATE-----\nbm90aGluZw==\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&file, text).unwrap();
            let error = Manufacturers::open(std::slice::from_ref(&file)).err().unwrap();
            assert!(format!("{error:#}").contains("maker.pem"), "{error:#}");
        }
        assert!(Manufacturers::open(&["/nowhere/maker.pem".into()]).is_err());
    }

    /// Goal: only list and vouched key together do, and each way of vouching counts where it should.
    #[test]
    fn step_5_whose_key_is_believed() {
        let listed = |key| Some(Listed { oak: OAK, key });
        let other = Fingerprint([8; 32]).to_string();
        let not_issued = Err("not issued");
        let believed = |keys, listed: Option<Listed>, issued, bound: Option<&str>| {
            vouch(keys, listed.as_ref(), &Claim { key: KEY, issued, oak: &OAK, bound })
        };
        use DeviceKeys::{FirstUse, Proven, Vouched};
        assert_eq!(believed(Proven, listed(Some(KEY)), Ok(()), None), Err(Doubt::ProofRequired));
        for keys in [Vouched, FirstUse] {
            assert_eq!(believed(keys, None, Ok(()), None), Err(Doubt::Unlisted));
            let wrong = Some(Listed { oak: Oak::new([2; 6]), key: Some(KEY) });
            assert_eq!(believed(keys, wrong, Ok(()), None), Err(Doubt::WrongOak));
            assert_eq!(believed(keys, listed(None), Ok(()), Some(&other)), Ok("manufacturer's CA"));
            assert_eq!(believed(keys, listed(Some(KEY)), not_issued, None), Ok("manufacturer's list"));
            let another = listed(Some(Fingerprint([8; 32])));
            assert!(matches!(believed(keys, another, Ok(()), None), Err(Doubt::Key(_))));
        }
        assert_eq!(believed(Vouched, listed(None), not_issued, None), Err(Doubt::Key("not issued")));
        assert_eq!(believed(FirstUse, listed(None), not_issued, None), Ok("first use"));
        assert_eq!(believed(FirstUse, listed(None), not_issued, Some(&KEY.to_string())), Ok("first use"));
        assert!(matches!(believed(FirstUse, listed(None), not_issued, Some(&other)), Err(Doubt::Key(_))));
    }
}
