//! Secrets at rest: AES-256-GCM under one master key per role.
//!
//! The master key is a file of 32 random bytes, mode 0600, made at the first start. A sealed value is
//! `version ‖ nonce ‖ ciphertext ‖ tag` and bound to a purpose (`"registration 00408C702009"`), so
//! that one row's secret cannot be moved into another's.

use anyhow::{Context, bail};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use homing_protocol::Secret;
use std::{
    fs::{File, TryLockError},
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::Arc,
};
use zeroize::Zeroizing;

const VERSION: u8 = 1;
const KEY_LENGTH: usize = 32;

/// Cheap to clone; holds the key in memory.
#[derive(Clone)]
pub struct Vault {
    key: Arc<LessSafeKey>,
}

impl Vault {
    /// Opens the key file, or makes it.
    ///
    /// # Errors
    /// When the file cannot be read or made, has another length, or can be read by others.
    pub fn open(path: &Path) -> anyhow::Result<Vault> {
        let key = match std::fs::read(path) {
            Ok(key) => {
                refuse_readable_by_others(path)?;
                Zeroizing::new(key)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut key = Zeroizing::new(vec![0u8; KEY_LENGTH]);
                rand::Rng::fill(&mut rand::rng(), key.as_mut_slice());
                write_private(path, &key)?;
                key
            }
            Err(error) => return Err(error).with_context(|| format!("master key {}", path.display())),
        };
        if key.len() != KEY_LENGTH {
            bail!("master key {}: {} bytes where there should be {KEY_LENGTH}", path.display(), key.len());
        }
        let key = UnboundKey::new(&AES_256_GCM, &key).expect("32 bytes are an AES-256 key");
        Ok(Vault { key: Arc::new(LessSafeKey::new(key)) })
    }

    /// Encrypts a secret for a purpose.
    pub fn seal(&self, purpose: &str, secret: &Secret) -> Vec<u8> {
        let mut nonce = [0u8; NONCE_LEN];
        rand::Rng::fill(&mut rand::rng(), &mut nonce);
        let mut text = secret.expose().as_bytes().to_vec();
        let tag = self
            .key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(purpose.as_bytes()),
                &mut text,
            )
            .expect("within AES-GCM's limits");
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + text.len() + tag.as_ref().len());
        sealed.push(VERSION);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&text);
        sealed.extend_from_slice(tag.as_ref());
        sealed
    }

    /// Decrypts what [`Vault::seal`] made for the same purpose.
    ///
    /// # Errors
    /// When the value was made with another key or for another purpose, or was changed.
    pub fn open_sealed(&self, purpose: &str, sealed: &[u8]) -> anyhow::Result<Secret> {
        let unreadable = || {
            anyhow::anyhow!(
                "the stored secret of {purpose} cannot be decrypted: was the master key replaced, \
                 or the database restored without it?"
            )
        };
        let (&version, rest) = sealed.split_first().ok_or_else(unreadable)?;
        if version != VERSION || rest.len() < NONCE_LEN {
            return Err(unreadable());
        }
        let (nonce, text) = rest.split_at(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| unreadable())?;
        let mut text = Zeroizing::new(text.to_vec());
        let plain = self
            .key
            .open_in_place(nonce, Aad::from(purpose.as_bytes()), text.as_mut_slice())
            .map_err(|_| unreadable())?;
        let plain = std::str::from_utf8(plain).map_err(|_| unreadable())?;
        Ok(Secret::new(plain))
    }
}

/// Writes a file that only its owner can read, whole or not at all.
///
/// # Errors
/// When the folder cannot be written to.
pub fn write_private(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let partial = path.with_extension("partial");
        let _ = std::fs::remove_file(&partial);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&partial, path)?;
        std::fs::File::open(folder)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Makes a folder that only its owner can enter, with its parents.
///
/// # Errors
/// When it cannot be made.
pub fn private_folder(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the folder {}", path.display()))
}

/// Makes a role's data folder where it is missing, and keeps a second process out of it for as long as the
/// returned file is open: two would repair each other's files.
///
/// # Errors
/// When it cannot be made or written to, or another process has it.
pub fn claim_folder(path: &Path) -> anyhow::Result<File> {
    private_folder(path)?;
    let lock = path.join("lock");
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock);
    let file = file.with_context(|| format!("cannot write to the folder {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!(
                "another process is running on the folder {}; end it first, or give another",
                path.display()
            )
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", lock.display()))
        }
    }
}

/// # Errors
/// When group or others may read the file; says what to do.
pub fn refuse_readable_by_others(path: &Path) -> anyhow::Result<()> {
    let mode = std::fs::metadata(path)
        .with_context(|| format!("cannot read {}", path.display()))?
        .permissions()
        .mode();
    if mode & 0o077 != 0 {
        bail!(
            "{} can be read by others (mode {:03o}): chmod 600 it, and replace what was in it",
            path.display(),
            mode & 0o777
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_for_one_purpose_under_one_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        let vault = Vault::open(&path).unwrap();
        let sealed = vault.seal("device 1", &"sesame".into());
        assert!(!sealed.windows(6).any(|window| window == b"sesame"));

        let again = Vault::open(&path).unwrap();
        assert!(again.open_sealed("device 1", &sealed).unwrap().matches("sesame"));
        assert!(again.open_sealed("device 2", &sealed).is_err());
        for index in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[index] ^= 1;
            assert!(again.open_sealed("device 1", &changed).is_err(), "byte {index}");
            assert!(again.open_sealed("device 1", &sealed[..index]).is_err(), "cut at {index}");
        }
        let other = Vault::open(&folder.path().join("other.key")).unwrap();
        assert!(other.open_sealed("device 1", &sealed).is_err());
    }

    #[test]
    fn a_folder_serves_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("role");
        let first = claim_folder(&data).unwrap();
        let error = claim_folder(&data).unwrap_err().to_string();
        assert!(error.contains("another process") && error.contains(&data.display().to_string()), "{error}");
        drop(first);
        claim_folder(&data).unwrap();
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        Vault::open(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = Vault::open(&path).err().unwrap().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }
}
