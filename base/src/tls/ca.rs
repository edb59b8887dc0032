//! A private certificate authority that renews itself.
//!
//! | file in the role's folder | what |
//! |---|---|
//! | `NAME-ca.pem` | the trust anchors to hand out: the CA, and for an overlap the one before it |
//! | `NAME-ca.key` (0600) | the key of the one that issues |
//! | `NAME-ca.cross.pem` | the CA's key, certified by the one before it |
//!
//! After two thirds of its life a CA makes its successor, which issues from then on. The old one has certified the
//! successor's key, and servers show that certificate behind their own: who trusts only the old anchor goes on doing so
//! until that ends, more than three years later, and who is told anew trusts both. So nobody has to be reached before the
//! change, and nobody is locked out by it. A device that was away for all of these years falls back to its dispatcher and
//! is dispatched anew, with the anchors of that day.
//!
//! Certificates begin in 1970: a beginning protects nobody where the one who relies on the certificate is the one who has
//! issued it, and a device whose clock has lost its battery must be able to connect.
//!
//! Invariant: whatever is cut short, the key on disk is that of a certificate in `NAME-ca.pem`, and every leaf that was ever
//! issued leads to an anchor that was handed out with it.

use super::{certified, expiry};
use crate::vault::{refuse_readable_by_others, write_private};
use anyhow::Context;
use arc_swap::ArcSwap;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use time::OffsetDateTime;

/// Ten years.
const CA_LIFE: Duration = Duration::from_secs(3650 * 24 * 3600);

/// A private certificate authority.
pub struct PrivateCa {
    folder: PathBuf,
    name: String,
    state: ArcSwap<Authority>,
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    /// Behind each leaf: what leads to the anchor before.
    cross: Option<CertificateDer<'static>>,
    /// PEM, the one that issues first.
    anchors: String,
    ends: SystemTime,
}

impl PrivateCa {
    /// Opens the CA, or makes it.
    ///
    /// # Errors
    /// When its files cannot be read or made, or the key can be read by others.
    pub fn open(folder: &Path, name: &str) -> anyhow::Result<PrivateCa> {
        let files = Files { folder, name };
        if !files.key().exists() {
            let key = KeyPair::generate().context("CA key")?;
            let pem =
                params(&format!("Homing {name} CA"), CA_LIFE).self_signed(&key).context("CA certificate")?;
            // The key last: a CA whose making was cut short is made again, not half used.
            write_private(&files.anchors(), pem.pem().as_bytes())?;
            write_private(&files.key(), key.serialize_pem().as_bytes())?;
        }
        let state = ArcSwap::from_pointee(files.read()?);
        Ok(PrivateCa { folder: folder.to_owned(), name: name.to_owned(), state })
    }

    /// The trust anchors (PEM), for those who shall trust what this CA issues: two during an overlap.
    pub fn trust_anchor(&self) -> String {
        self.state.load().anchors.clone()
    }

    /// When the CA that issues ends.
    pub fn ends(&self) -> SystemTime {
        self.state.load().ends
    }

    /// Makes the successor when two thirds of the life are over; `true` if it did.
    ///
    /// # Errors
    /// See [`PrivateCa::renew`].
    pub fn renew_if_due(&self, now: SystemTime) -> anyhow::Result<bool> {
        let due = self.ends() < now + CA_LIFE / 3;
        if due {
            self.renew()?;
        }
        Ok(due)
    }

    /// Makes the successor: it issues from now on, and the old one stays an anchor until it ends.
    ///
    /// # Errors
    /// When the files cannot be written; then the old one goes on.
    pub fn renew(&self) -> anyhow::Result<()> {
        let old = self.state.load();
        let files = Files { folder: &self.folder, name: &self.name };
        let key = KeyPair::generate().context("CA key")?;
        // Another name than the old one's, for those who find issuers by name.
        let subject = format!("Homing {} CA {}", self.name, jiff::Timestamp::now());
        let new = params(&subject, CA_LIFE).self_signed(&key).context("CA certificate")?;
        let left = old.ends.duration_since(SystemTime::now()).unwrap_or_default();
        let cross = params(&subject, left).signed_by(&key, &old.issuer).context("CA cross certificate")?;
        write_private(&files.cross(), cross.pem().as_bytes())?;
        // The old key still issues if it ends here, and has its certificate.
        let anchors = format!("{}{}", new.pem(), expiry::to_pem(&old.certificate));
        write_private(&files.anchors(), anchors.as_bytes())?;
        write_private(&files.key(), key.serialize_pem().as_bytes())?;
        self.state.store(Arc::new(files.read()?));
        Ok(())
    }

    /// Issues a server certificate for these DNS names and IP addresses.
    ///
    /// # Errors
    /// When a name is no DNS name.
    pub fn issue(&self, names: &[String], life: Duration) -> anyhow::Result<Arc<CertifiedKey>> {
        let state = self.state.load();
        let key = KeyPair::generate().context("leaf key")?;
        let mut params = CertificateParams::new(names).context("names in the certificate")?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        let common_name = names.first().map_or("homing", String::as_str);
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = OffsetDateTime::UNIX_EPOCH;
        params.not_after = OffsetDateTime::now_utc() + life;
        let leaf = params.signed_by(&key, &state.issuer).context("leaf certificate")?;
        let behind = state.cross.as_ref().unwrap_or(&state.certificate);
        let chain = vec![leaf.der().clone(), behind.clone()];
        certified(chain, PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?)
    }
}

struct Files<'a> {
    folder: &'a Path,
    name: &'a str,
}

impl Files<'_> {
    fn anchors(&self) -> PathBuf {
        self.folder.join(format!("{}-ca.pem", self.name))
    }

    fn key(&self) -> PathBuf {
        self.folder.join(format!("{}-ca.key", self.name))
    }

    fn cross(&self) -> PathBuf {
        self.folder.join(format!("{}-ca.cross.pem", self.name))
    }

    fn read(&self) -> anyhow::Result<Authority> {
        let (path, key_path) = (self.anchors(), self.key());
        refuse_readable_by_others(&key_path)?;
        let read = |path: &Path| {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let anchors = read(&path)?;
        let key = zeroize::Zeroizing::new(read(&key_path)?);
        let key = KeyPair::from_pem(&key).with_context(|| key_path.display().to_string())?;
        let public = key.subject_public_key_info();
        let belongs = |der: &CertificateDer<'_>| expiry::public_key(der).is_ok_and(|known| known == public);
        let certificate = certificates(&anchors)
            .with_context(|| path.display().to_string())?
            .into_iter()
            .find(belongs)
            .with_context(|| {
                format!("{} and {} do not belong together", path.display(), key_path.display())
            })?;
        let cross = std::fs::read_to_string(self.cross()).ok().and_then(|pem| certificates(&pem).ok());
        let cross = cross.into_iter().flatten().find(belongs);
        let ends = expiry::ends(&certificate)?;
        let issuer =
            Issuer::from_ca_cert_der(&certificate, key).with_context(|| path.display().to_string())?;
        // Once the one before has ended, it only makes the chain longer.
        let cross = cross.filter(|cross| expiry::ends(cross).is_ok_and(|ends| ends > SystemTime::now()));
        Ok(Authority { issuer, certificate, cross, anchors, ends })
    }
}

fn certificates(pem: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    Ok(CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>()?)
}

fn params(subject: &str, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    // One below: its successor.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.not_before = OffsetDateTime::UNIX_EPOCH;
    params.not_after = OffsetDateTime::now_utc() + life;
    params
}
