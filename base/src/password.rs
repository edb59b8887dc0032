//! Passwords of people and of accounts: argon2id, off the async threads.

use argon2::{Argon2, PasswordHash, PasswordHasher, PasswordVerifier, password_hash::SaltString};
use homing_protocol::Secret;
use rand::Rng;

/// Letters and digits that are not mistaken for each other when read aloud or typed.
const ALPHABET: &[u8] = b"abcdefghijkmnpqrstuvwxyz23456789ABCDEFGHJKLMNPQRSTUVWXYZ";

/// The longest password that is hashed; a longer one is refused before any work is done.
const LONGEST: usize = 1024;

/// A random password of `length` unmistakable characters (5.8 bits each).
pub fn generate(length: usize) -> Secret {
    let mut random = rand::rng();
    let text: String =
        (0..length).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect();
    Secret::new(text)
}

/// The PHC string to store for a password.
///
/// # Errors
/// When the password is too long.
pub async fn hash(password: Secret) -> anyhow::Result<String> {
    anyhow::ensure!(password.expose().len() <= LONGEST, "a password has at most {LONGEST} bytes");
    let mut salt = [0u8; 16];
    rand::rng().fill(&mut salt);
    tokio::task::spawn_blocking(move || {
        let salt = SaltString::encode_b64(&salt).map_err(|error| anyhow::anyhow!("salt: {error}"))?;
        let hash = Argon2::default()
            .hash_password(password.expose().as_bytes(), &salt)
            .map_err(|error| anyhow::anyhow!("argon2: {error}"))?;
        Ok(hash.to_string())
    })
    .await?
}

/// Whether the password belongs to the stored PHC string. Give `None` for a user that does not exist:
/// it takes as long and is never true, so that names cannot be told by time.
pub async fn verify(password: Secret, stored: Option<String>) -> bool {
    /// Of a password that nobody has, with Argon2's default parameters.
    const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$\
                          AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    if password.expose().len() > LONGEST {
        return false;
    }
    tokio::task::spawn_blocking(move || {
        let known = stored.is_some();
        let stored = stored.unwrap_or_else(|| NOBODY.to_owned());
        let Ok(hash) = PasswordHash::new(&stored) else { return false };
        let matches = Argon2::default().verify_password(password.expose().as_bytes(), &hash).is_ok();
        matches && known
    })
    .await
    .unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hash_admits_its_password_alone() {
        let stored = hash("sesame".into()).await.unwrap();
        assert!(stored.starts_with("$argon2id$"));
        assert!(verify("sesame".into(), Some(stored.clone())).await);
        assert!(!verify("Sesame".into(), Some(stored)).await);
        assert!(!verify("sesame".into(), None).await);
        assert!(!verify("x".into(), Some("not a hash".into())).await);
        assert!(hash(Secret::new("x".repeat(2000))).await.is_err());
    }

    #[test]
    fn generated_passwords_differ() {
        assert_ne!(generate(20), generate(20));
        assert_eq!(generate(20).expose().len(), 20);
    }
}
