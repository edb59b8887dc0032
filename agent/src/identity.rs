//! Who this device is: serial number, OAK, key and certificate, made at first start and kept.
//!
//! The key is what the device is known by: a dispatcher binds it to the serial number once the OAK is
//! proved, a tunnel server admits exactly it. Serial number and OAK stay for life, because they stand
//! on the label; [`Identity::reset`] (factory default) makes a new key, and the device goes through
//! step 5 again.
//!
//! Invariant: all four are in one private file, so that they always belong together.

use crate::files;
use anyhow::{Context, bail};
use homing_protocol::{Oak, Secret, SerialNumber};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

const FILE: &str = "identity.json";

/// X.520 `serialNumber`, where IEEE 802.1AR puts a device's.
const OID_SERIAL_NUMBER: [u64; 4] = [2, 5, 4, 5];

/// The device's key, certificate, serial number and OAK.
pub struct Identity {
    /// What stands on the label.
    pub serial: SerialNumber,
    /// What also stands on the label, and never leaves the device but by it.
    pub oak: Oak,
    /// Self-signed; its subject has the serial number.
    pub certificate: CertificateDer<'static>,
    key_pem: Secret,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    serial: SerialNumber,
    oak: Oak,
    certificate_pem: String,
    key_pem: Secret,
}

impl Identity {
    /// Reads the identity, or makes one at first start.
    ///
    /// `serial` and `oak` are what the configuration gives. A given one that differs from the stored is
    /// refused: the label would be wrong.
    pub fn load_or_create(
        data: &Path,
        serial: Option<SerialNumber>,
        oak: Option<&Oak>,
    ) -> anyhow::Result<Identity> {
        files::private_folder(data)?;
        let path = data.join(FILE);
        let Some(text) = files::read(&path)? else {
            let serial = serial.or_else(first_interface).unwrap_or_else(random_serial);
            let oak = oak.cloned().unwrap_or_else(|| Oak::new(random()));
            let identity = Identity::make(serial, oak)?;
            identity.save(&path)?;
            tracing::info!(%serial, folder = %data.display(), "first start: made key, certificate and OAK");
            return Ok(identity);
        };
        let stored: Stored = serde_json::from_str(&text)
            // The parser's message could repeat a part of the key.
            .map_err(|error| anyhow::anyhow!("{} is damaged (line {})", path.display(), error.line()))?;
        if serial.is_some_and(|given| given != stored.serial) {
            bail!(
                "the configuration says serial number {}, {} says {}: correct the configuration, or use \
                 another data folder for another device",
                serial.expect("just looked at"),
                path.display(),
                stored.serial
            );
        }
        if oak.is_some_and(|given| *given != stored.oak) {
            bail!("the configuration gives another OAK than {}; remove the key \"oak\"", path.display());
        }
        let certificate = CertificateDer::from_pem_slice(stored.certificate_pem.as_bytes())
            .with_context(|| format!("{} is damaged (certificate)", path.display()))?;
        let identity =
            Identity { serial: stored.serial, oak: stored.oak, certificate, key_pem: stored.key_pem };
        identity.private_key().with_context(|| format!("{} is damaged (key)", path.display()))?;
        Ok(identity)
    }

    /// Factory default: a new key and certificate; serial number and OAK stay.
    pub fn reset(self, data: &Path) -> anyhow::Result<Identity> {
        let identity = Identity::make(self.serial, self.oak)?;
        identity.save(&data.join(FILE))?;
        Ok(identity)
    }

    /// The private key of [`Identity::certificate`].
    pub fn private_key(&self) -> anyhow::Result<PrivateKeyDer<'static>> {
        Ok(PrivateKeyDer::from_pem_slice(self.key_pem.expose().as_bytes())?)
    }

    fn make(serial: SerialNumber, oak: Oak) -> anyhow::Result<Identity> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("cannot make a key")?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("homing-{}", serial.host()));
        params.distinguished_name.push(DnType::CustomDnType(OID_SERIAL_NUMBER.to_vec()), serial.to_string());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.self_signed(&key).context("cannot make a certificate")?;
        Ok(Identity {
            serial,
            oak,
            certificate: certificate.der().clone(),
            key_pem: Secret::new(key.serialize_pem()),
        })
    }

    fn save(&self, path: &Path) -> anyhow::Result<()> {
        let stored = Stored {
            serial: self.serial,
            oak: self.oak.clone(),
            certificate_pem: pem("CERTIFICATE", &self.certificate),
            key_pem: self.key_pem.clone(),
        };
        files::write(path, &serde_json::to_string_pretty(&stored).expect("plain data"))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("serial", &self.serial).finish_non_exhaustive()
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let base64 = STANDARD.encode(der);
    let lines: Vec<&str> =
        base64.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("ASCII")).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel has random numbers");
    bytes
}

/// A serial number that no maker's range contains: locally administered, not a group address.
fn random_serial() -> SerialNumber {
    let mut mac: [u8; 6] = random();
    mac[0] = mac[0] & 0b1111_1100 | 0b10;
    SerialNumber::new(mac)
}

/// The MAC address of the first network interface, hardware before virtual, as Linux numbers them.
fn first_interface() -> Option<SerialNumber> {
    let read = |path: PathBuf| std::fs::read_to_string(path).ok();
    std::fs::read_dir("/sys/class/net")
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let folder = entry.path();
            let serial: SerialNumber = read(folder.join("address"))?.trim().parse().ok()?;
            let number: u32 = read(folder.join("ifindex"))?.trim().parse().ok()?;
            Some((!folder.join("device").exists(), number, serial))
        })
        .min()
        .map(|(_, _, serial)| serial)
}

#[cfg(test)]
mod tests {
    use super::*;
    use homing_uplink::PeerIdentity;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn made_once_kept_and_named_in_the_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let first = Identity::load_or_create(folder.path(), None, None).unwrap();
        let second = Identity::load_or_create(folder.path(), None, None).unwrap();
        assert_eq!((first.serial, &first.oak), (second.serial, &second.oak));
        assert_eq!(first.certificate, second.certificate);
        let subject = PeerIdentity::from_certificate(&first.certificate).unwrap();
        assert_eq!(subject.serial_number, Some(first.serial.to_string()));
        assert_eq!(subject.common_name, Some(format!("homing-{}", first.serial.host())));
        let mode = std::fs::metadata(folder.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!format!("{first:?}").contains("KEY"));
    }

    #[test]
    fn a_given_label_is_taken_and_a_different_one_later_refused() {
        let folder = tempfile::tempdir().unwrap();
        let serial: SerialNumber = "00408C702009".parse().unwrap();
        let oak: Oak = "0A1B-2C3D-4E5F".parse().unwrap();
        let identity = Identity::load_or_create(folder.path(), Some(serial), Some(&oak)).unwrap();
        assert_eq!((identity.serial, &identity.oak), (serial, &oak));
        Identity::load_or_create(folder.path(), Some(serial), None).unwrap();
        let other = "00408C70200A".parse().unwrap();
        let message = Identity::load_or_create(folder.path(), Some(other), None).unwrap_err().to_string();
        assert!(message.contains("00408C70200A") && message.contains("00408C702009"), "{message}");
        let other: Oak = "0A1B-2C3D-4E5E".parse().unwrap();
        let message = Identity::load_or_create(folder.path(), None, Some(&other)).unwrap_err().to_string();
        assert!(message.contains("another OAK") && !message.contains("4E5"), "{message}");
    }

    #[test]
    fn factory_default_makes_a_new_key_and_keeps_the_label() {
        let folder = tempfile::tempdir().unwrap();
        let before = Identity::load_or_create(folder.path(), None, None).unwrap();
        let (serial, oak, certificate) = (before.serial, before.oak.clone(), before.certificate.clone());
        before.reset(folder.path()).unwrap();
        let after = Identity::load_or_create(folder.path(), None, None).unwrap();
        assert_eq!((after.serial, after.oak), (serial, oak));
        assert_ne!(after.certificate, certificate);
    }

    #[test]
    fn a_damaged_file_is_named_and_its_content_is_not() {
        let folder = tempfile::tempdir().unwrap();
        Identity::load_or_create(folder.path(), None, None).unwrap();
        let path = folder.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        files::write(&path, &text.replace("PRIVATE KEY", "geheim")).unwrap();
        let message = format!("{:#}", Identity::load_or_create(folder.path(), None, None).unwrap_err());
        assert!(message.contains("identity.json is damaged") && !message.contains("geheim"), "{message}");
        files::write(&path, "{\"serial\": \"geheim\"}").unwrap();
        let message = format!("{:#}", Identity::load_or_create(folder.path(), None, None).unwrap_err());
        assert!(!message.contains("geheim"), "{message}");
    }

    #[test]
    fn random_serial_numbers_are_locally_administered() {
        for _ in 0..100 {
            let first = random_serial().mac()[0];
            assert_eq!(first & 0b11, 0b10);
        }
    }
}
