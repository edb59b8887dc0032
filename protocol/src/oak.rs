//! The owner authentication key and its proof (step 5).
//!
//! The OAK never crosses the wire between device and dispatcher. The dispatcher sends a random
//! [`Challenge`]; the device answers with [`Proof`]: an HMAC-SHA-256, under a key that Argon2id makes
//! from the OAK, over the challenge and the TLS exporter value of the very connection (RFC 8446 §7.5).
//! A proof that is replayed has the wrong challenge, one that is relayed by a man in the middle has
//! the wrong exporter value, and guessing the 48 bits of an OAK from a recorded proof costs one
//! Argon2id each.

use crate::serial::{ParseHexError, SerialNumber, twelve_hex_digits};
use argon2::{Algorithm, Argon2, Params, Version};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, Mac};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Sha256;
use std::{fmt, str::FromStr};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The label of the TLS exporter that a proof is bound to; the context is empty.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-homing-oak-proof";

/// Where the dispatcher asks a device for its proof: `POST`, a [`ProofRequest`], answered by a
/// [`ProofAnswer`].
pub const PROOF_PATH: &str = "/.well-known/homing/oak-proof";

/// Argon2id memory in KiB: 8 MiB, so that the smallest camera can afford it once.
const ARGON2_MEMORY_KIB: u32 = 8 * 1024;
const ARGON2_PASSES: u32 = 3;

/// An owner authentication key: twelve hexadecimal digits, printed `XXXX-XXXX-XXXX` on the label.
///
/// Whoever knows it may claim the device, so it is a secret: no `Display`, an empty `Debug`, and
/// comparison in constant time. [`Oak::label`] is the one way to its digits.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String, example = "0123-4567-89AB"))]
pub struct Oak([u8; 6]);

impl Oak {
    /// From its six bytes, as a device draws them at its first start.
    pub const fn new(bytes: [u8; 6]) -> Self {
        Oak(bytes)
    }

    /// `XXXX-XXXX-XXXX`, for the label and for messages to a peer that may know it.
    pub fn label(&self) -> String {
        let hex: String = self.0.iter().map(|byte| format!("{byte:02X}")).collect();
        format!("{}-{}-{}", &hex[..4], &hex[4..8], &hex[8..])
    }

    /// The key under which proofs for this device are made; takes tens of milliseconds and 8 MiB.
    pub fn proof_key(&self, serial: SerialNumber) -> ProofKey {
        let params = Params::new(ARGON2_MEMORY_KIB, ARGON2_PASSES, 1, Some(32))
            .expect("constants within Argon2's limits");
        let mut key = [0u8; 32];
        let salt = format!("homing oak {serial}");
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(&self.0, salt.as_bytes(), &mut key)
            .expect("salt and output lengths within Argon2's limits");
        ProofKey(key)
    }
}

impl fmt::Debug for Oak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(OAK)")
    }
}

impl PartialEq for Oak {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Oak {}

impl FromStr for Oak {
    type Err = ParseHexError;

    fn from_str(text: &str) -> Result<Self, ParseHexError> {
        twelve_hex_digits(text, "OAK").map(Oak)
    }
}

impl Serialize for Oak {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.label())
    }
}

impl<'de> Deserialize<'de> for Oak {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What Argon2id makes of an OAK and a serial number.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ProofKey([u8; 32]);

impl ProofKey {
    /// The device's half: proves knowledge of the OAK on this connection.
    ///
    /// `exporter` is the TLS exporter value for [`EXPORTER_LABEL`] on the connection that carries the
    /// challenge.
    pub fn prove(&self, serial: SerialNumber, challenge: &Challenge, exporter: &[u8; 32]) -> Proof {
        let mac = self.mac(serial, challenge, exporter);
        Proof(mac.finalize().into_bytes().into())
    }

    /// The dispatcher's half: whether the proof was made with this key, for this challenge, on this
    /// connection. Constant time.
    pub fn verify(
        &self,
        serial: SerialNumber,
        challenge: &Challenge,
        exporter: &[u8; 32],
        proof: &Proof,
    ) -> bool {
        self.mac(serial, challenge, exporter).verify_slice(&proof.0).is_ok()
    }

    /// What recognises the OAK later and proves nothing to anybody: one way from the key, so that whoever reads it can
    /// only guess, at one Argon2id each.
    pub fn verifier(&self) -> [u8; 32] {
        let mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.chain_update(b"homing oak verifier 1").finalize().into_bytes().into()
    }

    fn mac(&self, serial: SerialNumber, challenge: &Challenge, exporter: &[u8; 32]) -> Hmac<Sha256> {
        // Every part has a fixed length, so that no two inputs run together to the same bytes.
        Hmac::<Sha256>::new_from_slice(&self.0)
            .expect("HMAC takes keys of any length")
            .chain_update(b"homing oak proof 1")
            .chain_update(serial.mac())
            .chain_update(challenge.0)
            .chain_update(exporter)
    }
}

impl fmt::Debug for ProofKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(proof key)")
    }
}

/// 32 random bytes, fresh for every proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge(pub [u8; 32]);

/// The HMAC that a device answers with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof([u8; 32]);

/// The body of the dispatcher's `POST` to [`PROOF_PATH`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProofRequest {
    /// What to prove the OAK over.
    pub challenge: Challenge,
}

/// The device's answer to a [`ProofRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofAnswer {
    /// The device's own serial number; the proof covers it.
    pub serial: SerialNumber,
    /// The proof.
    pub proof: Proof,
}

macro_rules! base64_32 {
    ($type:ident) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&BASE64.encode(self.0))
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                BASE64
                    .decode(text.as_bytes())
                    .ok()
                    .and_then(|bytes| bytes.try_into().ok())
                    .map($type)
                    .ok_or_else(|| serde::de::Error::custom("not 32 bytes in base64"))
            }
        }
    };
}
base64_32!(Challenge);
base64_32!(Proof);

#[cfg(test)]
mod tests {
    use super::*;

    const SERIAL: SerialNumber = SerialNumber::new([0x00, 0x40, 0x8C, 0x70, 0x20, 0x09]);

    #[test]
    fn typed_in_many_ways_and_never_printed() {
        for text in ["0A1B-2C3D-4E5F", "0a1b2c3d4e5f", "0a:1b:2c:3d:4e:5f", " 0A1B 2C3D 4E5F "] {
            assert_eq!(text.parse::<Oak>().unwrap().label(), "0A1B-2C3D-4E5F", "{text:?}");
        }
        let oak: Oak = "0A1B-2C3D-4E5F".parse().unwrap();
        assert_eq!(format!("{oak:?}"), "(OAK)");
        assert_eq!(
            "0A1B-2C3D".parse::<Oak>().unwrap_err().to_string(),
            "OAK: 8 digits where there should be 12"
        );
    }

    #[test]
    fn a_proof_holds_for_one_oak_one_device_one_challenge_and_one_connection() {
        let oak: Oak = "0A1B-2C3D-4E5F".parse().unwrap();
        let key = oak.proof_key(SERIAL);
        let (challenge, exporter) = (Challenge([7; 32]), [9; 32]);
        let proof = key.prove(SERIAL, &challenge, &exporter);
        assert!(key.verify(SERIAL, &challenge, &exporter, &proof));

        let other_oak: Oak = "0A1B-2C3D-4E5E".parse().unwrap();
        let other_serial = SerialNumber::new([0x00, 0x40, 0x8C, 0x70, 0x20, 0x0A]);
        assert!(!other_oak.proof_key(SERIAL).verify(SERIAL, &challenge, &exporter, &proof));
        assert!(!oak.proof_key(other_serial).verify(other_serial, &challenge, &exporter, &proof));
        assert!(!key.verify(other_serial, &challenge, &exporter, &proof));
        assert!(!key.verify(SERIAL, &Challenge([8; 32]), &exporter, &proof));
        assert!(!key.verify(SERIAL, &challenge, &[8; 32], &proof));
        assert_eq!(key.verifier(), oak.proof_key(SERIAL).verifier());
        assert_ne!(key.verifier(), other_oak.proof_key(SERIAL).verifier());
    }

    #[test]
    fn messages_survive_json() {
        let answer = ProofAnswer { serial: SERIAL, proof: Proof([3; 32]) };
        let json = serde_json::to_string(&answer).unwrap();
        assert_eq!(serde_json::from_str::<ProofAnswer>(&json).unwrap(), answer);
        assert!(serde_json::from_str::<ProofRequest>(r#"{"challenge":"AAAA"}"#).is_err());
    }
}
