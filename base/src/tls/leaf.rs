//! The server certificate of one listener, replaced while connections stand.
//!
//! Invariant: a [`Leaf`] always holds a certificate and the key that belongs to it. What cannot be read or does not belong
//! together (half of a renewal on disk) leaves the one before in place, and is tried again.

use super::{PrivateCa, certified, expiry};
use crate::Stop;
use anyhow::Context;
use arc_swap::ArcSwap;
use homing_protocol::api::Expiry;
use rustls::{
    client::{WebPkiServerVerifier, danger::ServerCertVerifier, verify_server_name},
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{ClientHello, ParsedCertificate, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

/// How long a leaf that we issue is valid.
pub const LEAF_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// How often a leaf's age is looked at.
const RENEWAL_CHECK: Duration = Duration::from_secs(3600);

/// How often files are looked at: what has changed there is shown within a minute.
const FILE_CHECK: Duration = Duration::from_secs(30);

/// See the module.
pub struct Leaf {
    current: ArcSwap<CertifiedKey>,
    source: Source,
    changed: ArcSwap<SystemTime>,
    /// PEM of `Source::Files::anchor`.
    anchor: ArcSwap<String>,
}

enum Source {
    Ca { ca: Arc<PrivateCa>, names: Vec<String>, life: Duration },
    Files { chain: PathBuf, key: PathBuf, anchor: Option<PathBuf> },
}

impl Leaf {
    /// A leaf issued by a private CA for these names, renewed by [`Leaf::keep_fresh`].
    ///
    /// # Errors
    /// See [`PrivateCa::issue`].
    pub fn issued_by(ca: Arc<PrivateCa>, names: Vec<String>, life: Duration) -> anyhow::Result<Arc<Leaf>> {
        let current = ca.issue(&names, life)?;
        Ok(Self::new(current, Source::Ca { ca, names, life }, String::new(), SystemTime::now()))
    }

    /// A certificate chain and its key from PEM files, read again by [`Leaf::keep_fresh`] when they change.
    ///
    /// # Errors
    /// When a file cannot be read, or the two do not belong together.
    pub fn from_files(chain: &Path, key: &Path) -> anyhow::Result<Arc<Leaf>> {
        Self::from_files_with_anchor(chain, key, None)
    }

    /// The same with a PEM file of what leads to the chain's end; none: it leads to the public web's anchors.
    ///
    /// # Errors
    /// When a file cannot be read, or chain and key do not belong together.
    pub fn from_files_with_anchor(
        chain: &Path,
        key: &Path,
        anchor: Option<&Path>,
    ) -> anyhow::Result<Arc<Leaf>> {
        let source = Source::Files {
            chain: chain.to_owned(),
            key: key.to_owned(),
            anchor: anchor.map(Path::to_owned),
        };
        let changed = source.changed();
        let (current, anchor) = read(chain, key, anchor)?;
        Ok(Self::new(current, source, anchor, changed))
    }

    fn new(current: Arc<CertifiedKey>, source: Source, anchor: String, changed: SystemTime) -> Arc<Leaf> {
        Arc::new(Leaf {
            current: ArcSwap::new(current),
            source,
            changed: ArcSwap::from_pointee(changed),
            anchor: ArcSwap::from_pointee(anchor),
        })
    }

    /// Replaces the leaf by a fresh one, issued or read.
    ///
    /// # Errors
    /// See [`Leaf::issued_by`], [`Leaf::from_files`]; then the one before stays.
    pub fn renew(&self) -> anyhow::Result<()> {
        match &self.source {
            Source::Ca { ca, names, life } => {
                self.current.store(ca.issue(names, *life)?);
                self.changed.store(Arc::new(SystemTime::now()));
            }
            Source::Files { chain, key, anchor } => {
                // Looked at first: what is written while we read is read again.
                let changed = self.source.changed();
                let (current, anchor) = read(chain, key, anchor.as_deref())?;
                self.current.store(current);
                self.anchor.store(Arc::new(anchor));
                self.changed.store(Arc::new(changed));
            }
        }
        Ok(())
    }

    /// The certificate that is presented now.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.current.load().cert[0].clone()
    }

    /// Whether devices that dial this DNS name or IP address find it in the certificate.
    pub fn covers(&self, host: &str) -> bool {
        let certificate = self.certificate();
        let name = ServerName::try_from(host.to_owned());
        let Ok((parsed, name)) = ParsedCertificate::try_from(&certificate).map(|parsed| (parsed, name))
        else {
            return false;
        };
        name.is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
    }

    /// Whether a certificate that was shown somewhere for `host` is this listener's: the same one, or another that its
    /// own CA has issued for that name.
    pub fn is_ours(&self, shown: &CertificateDer<'_>, host: &str) -> bool {
        if *shown == self.certificate() {
            return true;
        }
        let Source::Ca { ca, .. } = &self.source else { return false };
        let issued = || {
            let provider = Arc::new(aws_lc_rs::default_provider());
            let roots = Arc::new(super::roots(Some(&ca.trust_anchor()))?);
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build()?;
            let name = ServerName::try_from(host.to_owned())?;
            verifier.verify_server_cert(shown, &[], &name, &[], UnixTime::now())?;
            anyhow::Ok(())
        };
        issued().is_ok()
    }

    /// What it shows, in PEM.
    #[cfg(test)]
    pub(super) fn chain_pem(&self) -> String {
        self.current.load().cert.iter().map(|der| expiry::to_pem(der)).collect()
    }

    /// PEM of what a client has to trust; empty: what the public web does.
    pub fn trust_anchor(&self) -> String {
        match &self.source {
            Source::Ca { ca, .. } => ca.trust_anchor(),
            Source::Files { .. } => self.anchor.load().to_string(),
        }
    }

    /// When it ends, and what it leads to; `what` names the listener for people: `the external address`.
    pub fn expiries(&self, what: &str) -> Vec<Expiry> {
        let renews = matches!(self.source, Source::Ca { .. });
        let mut all = Vec::new();
        for (index, certificate) in self.current.load().cert.iter().enumerate() {
            let of = if index == 0 { "certificate" } else { "CA certificate" };
            all.extend(expiry::of(&format!("{of} of {what}"), certificate, renews));
        }
        if !renews {
            all.extend(expiry::of_pem(&format!("trust anchor of {what}"), &self.trust_anchor(), false));
        }
        all
    }

    /// Renews the leaf after two thirds of its life and its CA in time, or reads files that have changed, until the role
    /// stops.
    pub async fn keep_fresh(self: Arc<Self>, stop: Stop) {
        let pause = match &self.source {
            Source::Ca { life, .. } => RENEWAL_CHECK.min(*life / 6),
            Source::Files { .. } => FILE_CHECK,
        };
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => (),
                () = stop.cancelled() => return,
            }
            match self.refresh() {
                Ok(false) => (),
                Ok(true) => tracing::info!("server certificate renewed"),
                Err(error) => tracing::error!(
                    error = format!("{error:#}"),
                    "server certificate not renewed; the one before stays, and this is tried again"
                ),
            }
        }
    }

    /// Renews what is due; `true` if the leaf is another one now.
    ///
    /// # Errors
    /// See [`Leaf::renew`].
    pub fn refresh(&self) -> anyhow::Result<bool> {
        let due = match &self.source {
            Source::Ca { ca, life, .. } => {
                let is_new = ca.renew_if_due(SystemTime::now())?;
                if is_new {
                    tracing::warn!(
                        "a new CA issues certificates from now on. Who was told the one before trusts it until that ends; \
                         give those whom Homing does not tell (agents, browsers) the new trust anchor"
                    );
                }
                is_new || self.changed.load().elapsed().unwrap_or(*life) >= *life * 2 / 3
            }
            Source::Files { .. } => self.source.changed() != **self.changed.load(),
        };
        if due {
            self.renew()?;
        }
        Ok(due)
    }
}

impl Source {
    /// When the newest of the files was written.
    fn changed(&self) -> SystemTime {
        let Source::Files { chain, key, anchor } = self else { return SystemTime::UNIX_EPOCH };
        let written = |path: &PathBuf| std::fs::metadata(path).and_then(|file| file.modified()).ok();
        [Some(chain), Some(key), anchor.as_ref()]
            .into_iter()
            .flatten()
            .filter_map(written)
            .max()
            .unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

fn read(chain: &Path, key: &Path, anchor: Option<&Path>) -> anyhow::Result<(Arc<CertifiedKey>, String)> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect)
        .with_context(|| format!("certificate chain {}", chain.display()))?;
    let private =
        PrivateKeyDer::from_pem_file(key).with_context(|| format!("private key {}", key.display()))?;
    let read_anchor = |path: &Path| {
        let pem = std::fs::read_to_string(path);
        let pem = pem.with_context(|| format!("trust_anchor: cannot read {}", path.display()))?;
        super::client_config(Some(&pem)).with_context(|| path.display().to_string())?;
        anyhow::Ok(pem)
    };
    let anchor = anchor.map(read_anchor).transpose()?.unwrap_or_default();
    let current = certified(certificates, private)
        .with_context(|| format!("{} and {}", chain.display(), key.display()))?;
    Ok((current, anchor))
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Leaf")
    }
}

impl ResolvesServerCert for Leaf {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}
