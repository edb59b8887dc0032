//! Where a role's master key comes from.
//!
//! | first that is there | name |
//! |---|---|
//! | a systemd credential | `homing-ROLE-master-key` in `$CREDENTIALS_DIRECTORY` |
//! | the environment, the weakest: whoever may look at the process reads it | `HOMING_ROLE_MASTER_KEY`, in base64 |
//! | a file, made at the first start | `master.key` in the role's folder, mode 0600 |
//!
//! The first two are 32 bytes, or their base64. Where a key is handed in, the one before it may be handed in beside it
//! (`homing-ROLE-master-key-old`, `HOMING_ROLE_MASTER_KEY_OLD`): it is used once, to put the new one in its place.

use super::{KEY_LENGTH, files};
use anyhow::{Context, bail};
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// What a key is known by, in the database and in sealed values. Says nothing about the key.
pub(super) type KeyId = [u8; 8];

/// A key's bytes; wiped when it goes.
pub(super) type KeyBytes = Zeroizing<Vec<u8>>;

/// A master key: wraps data keys, and nothing else.
pub(super) struct Master {
    pub id: KeyId,
    pub bytes: KeyBytes,
    key: LessSafeKey,
}

impl Master {
    pub fn new(bytes: KeyBytes) -> Self {
        let text = [b"homing master key ".as_slice(), &bytes].concat();
        let hash = digest::digest(&digest::SHA256, &Zeroizing::new(text));
        let id = hash.as_ref()[..8].try_into().expect("SHA-256 is longer");
        Master { id, key: aes(&bytes), bytes }
    }

    pub fn generate() -> Self {
        Master::new(random_key())
    }

    pub fn wrap(&self, role: &str, id: KeyId, data_key: &KeyBytes) -> Vec<u8> {
        encrypt(&self.key, &purpose(role, id), data_key)
    }

    /// None: wrapped by another master key, for another role, or changed.
    pub fn unwrap(&self, role: &str, id: KeyId, wrapped: &[u8]) -> Option<KeyBytes> {
        decrypt(&self.key, &purpose(role, id), wrapped).filter(|key| key.len() == KEY_LENGTH)
    }
}

fn purpose(role: &str, id: KeyId) -> String {
    format!("data key {id:02x?} of {role}")
}

pub(super) fn random_key() -> KeyBytes {
    let mut key = Zeroizing::new(vec![0u8; KEY_LENGTH]);
    rand::Rng::fill(&mut rand::rng(), key.as_mut_slice());
    key
}

/// # Panics
/// When the key is not 32 bytes.
pub(super) fn aes(key: &[u8]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("32 bytes are an AES-256 key"))
}

/// `nonce ‖ ciphertext ‖ tag`.
pub(super) fn encrypt(key: &LessSafeKey, purpose: &str, plain: &[u8]) -> Vec<u8> {
    let mut nonce = [0u8; NONCE_LEN];
    rand::Rng::fill(&mut rand::rng(), &mut nonce);
    let mut text = plain.to_vec();
    let tag = key
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(purpose.as_bytes()),
            &mut text,
        )
        .expect("within AES-GCM's limits");
    [&nonce, text.as_slice(), tag.as_ref()].concat()
}

pub(super) fn decrypt(key: &LessSafeKey, purpose: &str, sealed: &[u8]) -> Option<KeyBytes> {
    let (nonce, text) = sealed.split_at_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut text = Zeroizing::new(text.to_vec());
    let length = key.open_in_place(nonce, Aad::from(purpose.as_bytes()), text.as_mut_slice()).ok()?.len();
    text.truncate(length);
    Some(text)
}

/// The master keys that are at hand.
pub(super) struct Masters {
    /// The one that shall wrap; none: there is no file yet, and none was handed in.
    pub current: Option<Master>,
    /// Those that may have wrapped before it.
    pub others: Vec<Master>,
    /// Of the file, where the key is one that we may replace ourselves.
    pub file: Option<PathBuf>,
}

impl Masters {
    /// Looks for a role's keys.
    pub fn find(role: &str, folder: &Path) -> anyhow::Result<Masters> {
        let file = folder.join("master.key");
        let [current, old] = handed_in(role, std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from))?;
        match current {
            Some(current) => {
                let others = [old, read_file(&file)?];
                Ok(Masters {
                    current: Some(current),
                    others: others.into_iter().flatten().collect(),
                    file: None,
                })
            }
            None => Ok(Masters {
                current: read_file(&file)?,
                others: read_file(&next(&file))?.into_iter().collect(),
                file: Some(file),
            }),
        }
    }

    /// The one with that name.
    pub fn get(&self, id: KeyId) -> Option<&Master> {
        self.current.iter().chain(&self.others).find(|master| master.id == id)
    }
}

/// The file of a key that is about to take the place of another.
pub(super) fn next(file: &Path) -> PathBuf {
    file.with_extension("key.next")
}

fn read_file(path: &Path) -> anyhow::Result<Option<Master>> {
    match std::fs::read(path) {
        Ok(key) => {
            files::refuse_readable_by_others(path)?;
            let key = Zeroizing::new(key);
            if key.len() != KEY_LENGTH {
                bail!(
                    "master key {}: {} bytes where there should be {KEY_LENGTH}",
                    path.display(),
                    key.len()
                );
            }
            Ok(Some(Master::new(key)))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("master key {}", path.display())),
    }
}

/// Whether an environment variable of this name hands in a master key.
pub fn is_master_key(variable: &str) -> bool {
    let name = variable.strip_suffix("_OLD").unwrap_or(variable);
    name.starts_with("HOMING_") && name.ends_with("_MASTER_KEY")
}

/// The key and the one before it, as credentials of systemd or in the environment.
fn handed_in(role: &str, credentials: Option<PathBuf>) -> anyhow::Result<[Option<Master>; 2]> {
    let find = |suffix: &str| -> anyhow::Result<Option<Master>> {
        let name = format!("homing-{role}-master-key{suffix}");
        if let Some(path) = credentials.as_ref().map(|folder| folder.join(&name)) {
            match std::fs::read(&path) {
                Ok(given) => return Ok(Some(parse(&format!("credential {name}"), Zeroizing::new(given))?)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => (),
                Err(error) => return Err(error).with_context(|| format!("credential {}", path.display())),
            }
        }
        let name = name.replace('-', "_").to_uppercase();
        let given = std::env::var(&name).ok();
        given.map(|given| parse(&name, Zeroizing::new(given.into_bytes()))).transpose()
    };
    Ok([find("")?, find("-old")?])
}

fn parse(name: &str, given: KeyBytes) -> anyhow::Result<Master> {
    if given.len() == KEY_LENGTH {
        return Ok(Master::new(given));
    }
    let decoded = STANDARD.decode(given.trim_ascii()).map(Zeroizing::new);
    match decoded {
        Ok(key) if key.len() == KEY_LENGTH => Ok(Master::new(key)),
        _ => bail!(
            "{name} is no master key: give {KEY_LENGTH} random bytes, or their base64 (`head -c {KEY_LENGTH} /dev/urandom | base64`)"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a credential counts in both notations, and what is none is refused without being shown.
    #[test]
    fn a_key_is_handed_in_as_a_systemd_credential() {
        let folder = tempfile::tempdir().unwrap();
        let raw = [7u8; KEY_LENGTH];
        let credential = |suffix: &str| folder.path().join(format!("homing-tunnel-master-key{suffix}"));
        std::fs::write(credential(""), raw).unwrap();
        std::fs::write(credential("-old"), format!("{}\n", STANDARD.encode([8u8; KEY_LENGTH]))).unwrap();
        let [current, old] = handed_in("tunnel", Some(folder.path().to_owned())).unwrap();
        assert_eq!(current.unwrap().bytes.as_slice(), raw);
        assert_eq!(old.unwrap().bytes.as_slice(), [8u8; KEY_LENGTH]);
        let [none, _] = handed_in("dispatcher", Some(folder.path().to_owned())).unwrap();
        assert!(none.is_none(), "another role's");

        std::fs::write(credential(""), "open sesame").unwrap();
        let error = handed_in("tunnel", Some(folder.path().to_owned())).err().unwrap().to_string();
        assert!(is_master_key("HOMING_TUNNEL_MASTER_KEY_OLD") && !is_master_key("HOMING_TUNNEL__DATA"));
        assert!(error.contains("homing-tunnel-master-key is no master key") && !error.contains("sesame"));
    }
}
