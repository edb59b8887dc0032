//! What ties the dispatcher's word about a device's key to the registration that it was given for (steps 2 and 5).
//!
//! Whoever has the password of a dispatcher account can replace its registrations, and have a device of his own making
//! prove the OAK that he registered. So a tunnel server sends a key with each registration that nobody reads back, and
//! believes of a device's key what comes with a voucher: HMAC-SHA-256 under that key, over serial number and fingerprint.

use crate::{Secret, SerialNumber};
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// The voucher for a device's key (hex SHA-256 of its SubjectPublicKeyInfo): 64 hex digits.
pub fn voucher(key: &Secret, serial: SerialNumber, fingerprint: &str) -> String {
    let mac = mac(key, serial, fingerprint).finalize().into_bytes();
    mac.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether `voucher` is one for that device's key; in constant time.
pub fn is_voucher(key: &Secret, serial: SerialNumber, fingerprint: &str, voucher: &str) -> bool {
    Secret::new(self::voucher(key, serial, fingerprint)).matches(voucher)
}

fn mac(key: &Secret, serial: SerialNumber, fingerprint: &str) -> Hmac<Sha256> {
    // The last part alone has no fixed length.
    Hmac::<Sha256>::new_from_slice(key.expose().as_bytes())
        .expect("HMAC takes keys of any length")
        .chain_update(b"homing voucher 1")
        .chain_update(serial.mac())
        .chain_update(fingerprint.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_voucher_is_for_one_key_of_one_device_in_one_registration() {
        let (key, serial) = (Secret::new("k1"), SerialNumber::new([0, 0x40, 0x8C, 1, 2, 3]));
        let given = voucher(&key, serial, "ab");
        assert_eq!(given.len(), 64);
        assert!(is_voucher(&key, serial, "AB", &given));
        assert!(!is_voucher(&key, serial, "ac", &given));
        assert!(!is_voucher(&Secret::new("k2"), serial, "ab", &given));
        assert!(!is_voucher(&key, SerialNumber::new([0; 6]), "ab", &given));
        assert!(!is_voucher(&key, serial, "ab", ""));
    }
}
