//! What others have told this device: trust anchors, policies and uplinks, kept over a restart.
//!
//! The ONVIF Security and Uplink services write here (step 5), the state machine reads. Certificates and
//! policies are named after their content, so that storing the same twice changes nothing.
//!
//! Invariant: memory and file agree; what could not be written is not in memory either. An uplink's policy
//! and a policy's certificates exist; one without a policy has a DNS name.

use crate::files;
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use homing_protocol::onvif::uplink::{Configuration, fault};
use homing_protocol::soap::Fault;
use homing_uplink::UplinkAddress;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Mutex;

const FILE: &str = "uplinks.json";

/// Uploaded certificates; a dispatch needs one.
pub const MAX_CERTIFICATES: usize = 16;
/// Certification path validation policies.
pub const MAX_POLICIES: usize = 16;
/// Uplinks held in parallel; a tunnel server names at most four addresses, and an old owner's may still be
/// there while a new one's are tried.
pub const MAX_UPLINKS: usize = 8;

/// The key under which the device's own certificate is listed and named in `SetUplink`.
pub const DEVICE_CERTIFICATE_ID: &str = "device";

/// An uploaded certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// Its key.
    pub id: String,
    /// The name that it was given.
    pub alias: Option<String>,
    /// DER in base64.
    der: String,
}

impl Anchor {
    /// The certificate.
    pub fn der(&self) -> CertificateDer<'static> {
        // Stored by us only after it had been parsed; damaged, it is an anchor for nothing.
        CertificateDer::from(BASE64.decode(&self.der).unwrap_or_default())
    }
}

/// A certification path validation policy: which anchors a chain may lead to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Its key.
    pub id: String,
    /// The name that it was given.
    pub alias: Option<String>,
    /// Keys of certificates.
    pub anchors: Vec<String>,
}

/// An uplink to a tunnel server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredUplink {
    /// The key, as it was given.
    pub address: String,
    /// How the server's certificate is validated; empty: as browsers do.
    pub policy: String,
    /// The level that requests through it were meant to have. Kept for who asks; requests need the
    /// camera's user and password all the same.
    pub user_level: Vec<String>,
}

/// Everything that is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// Uploaded certificates.
    pub anchors: Vec<Anchor>,
    /// Policies.
    pub policies: Vec<Policy>,
    /// Uplinks.
    pub uplinks: Vec<StoredUplink>,
}

/// The file and what is in it.
pub struct Store {
    path: PathBuf,
    /// Held while the file is written, so that writes happen in order. No socket waits for it.
    kept: Mutex<Arc<Kept>>,
}

impl Store {
    /// Reads the file, if there is one.
    pub fn load(data: &Path) -> anyhow::Result<Store> {
        let path = data.join(FILE);
        let kept = match files::read(&path)? {
            None => Kept::default(),
            Some(text) => serde_json::from_str(&text)
                .map_err(|error| anyhow::anyhow!("{} is damaged: {error}; remove it", path.display()))?,
        };
        Ok(Store { path, kept: Mutex::new(Arc::new(kept)) })
    }

    /// Forgets everything: factory default.
    pub fn erase(data: &Path) -> anyhow::Result<()> {
        files::write(&data.join(FILE), &serde_json::to_string(&Kept::default()).expect("plain data"))
    }

    /// What is kept now.
    pub async fn kept(&self) -> Arc<Kept> {
        self.kept.lock().await.clone()
    }

    /// Carries out a change, and writes it before it counts.
    pub async fn change<T>(&self, change: impl FnOnce(&mut Kept) -> Result<T, Fault>) -> Result<T, Fault> {
        let mut kept = self.kept.lock().await;
        let mut changed = Kept::clone(&kept);
        let result = change(&mut changed)?;
        if changed != **kept {
            let (path, text) =
                (self.path.clone(), serde_json::to_string_pretty(&changed).expect("plain data"));
            let written = tokio::task::spawn_blocking(move || files::write(&path, &text)).await;
            if let Ok(Err(error)) | Err(error) = written.map_err(anyhow::Error::from) {
                tracing::error!(error = %format!("{error:#}"), "cannot keep what the server has set");
                return Err(Fault::receiver(&["Action"], "the device cannot store this now"));
            }
            *kept = Arc::new(changed);
        }
        Ok(result)
    }
}

impl Kept {
    /// Stores a certificate; returns its key.
    pub fn upload(&mut self, der: &[u8], alias: Option<String>) -> Result<String, Fault> {
        let certificate = CertificateDer::from(der.to_vec());
        RootCertStore::empty().add(certificate).map_err(|_| {
            Fault::sender(&["InvalidArgVal", "Certificate"], "not an X.509 certificate that can be an anchor")
        })?;
        let id = format!("anchor-{}", name_of(der));
        if !self.anchors.iter().any(|anchor| anchor.id == id) {
            if self.anchors.len() >= MAX_CERTIFICATES {
                return Err(full("MaximumNumberOfCertificatesReached"));
            }
            self.anchors.push(Anchor { id: id.clone(), alias, der: BASE64.encode(der) });
        }
        Ok(id)
    }

    /// Removes a certificate that no policy needs.
    pub fn delete_certificate(&mut self, id: &str) -> Result<(), Fault> {
        if self.policies.iter().any(|policy| policy.anchors.iter().any(|anchor| anchor == id)) {
            return Err(referenced(id));
        }
        remove(&mut self.anchors, |anchor| anchor.id == id).ok_or_else(|| fault::unknown_certificate(id))
    }

    /// Makes a policy of certificates; returns its key.
    pub fn create_policy(&mut self, anchors: Vec<String>, alias: Option<String>) -> Result<String, Fault> {
        if let Some(unknown) = anchors.iter().find(|id| !self.anchors.iter().any(|anchor| anchor.id == **id))
        {
            return Err(fault::unknown_certificate(unknown));
        }
        let mut sorted = anchors;
        sorted.sort();
        sorted.dedup();
        let id = format!("policy-{}", name_of(sorted.join(" ").as_bytes()));
        if !self.policies.iter().any(|policy| policy.id == id) {
            if self.policies.len() >= MAX_POLICIES {
                return Err(full("MaximumNumberOfCertPathValidationPoliciesReached"));
            }
            self.policies.push(Policy { id: id.clone(), alias, anchors: sorted });
        }
        Ok(id)
    }

    /// Removes a policy that no uplink needs.
    pub fn delete_policy(&mut self, id: &str) -> Result<(), Fault> {
        if self.uplinks.iter().any(|uplink| uplink.policy == id) {
            return Err(referenced(id));
        }
        remove(&mut self.policies, |policy| policy.id == id).ok_or_else(|| fault::unknown_policy(id))
    }

    /// Adds or changes an uplink; returns its key and whether anything is different now.
    pub fn set_uplink(&mut self, uplink: Configuration) -> Result<(String, bool), Fault> {
        // What is dialled decides what is the same: `sts:8443` and `https://sts:8443/` are one uplink.
        let address = match uplink.remote_address.parse::<UplinkAddress>() {
            Ok(address) => address.to_string(),
            Err(error) if uplink.remote_address.contains("://") => {
                let mut fault = fault::protocol_not_supported();
                fault.reason = error.to_string();
                return Err(fault);
            }
            Err(error) => return Err(Fault::sender(&["InvalidArgVal", "Address"], error.to_string())),
        };
        if uplink.authorization_server.is_some() && uplink.certificate_id.is_some() {
            return Err(fault::ambiguous_authentication());
        }
        if let Some(token) = uplink.authorization_server {
            return Err(fault::unknown_authorization_server(&token));
        }
        // A device with one certificate needs no choice; the specification has a fault for it.
        if let Some(id) = uplink.certificate_id.filter(|id| id != DEVICE_CERTIFICATE_ID) {
            return Err(fault::unknown_certificate(&id));
        }
        // The specification leaves open what happens without: here it is what browsers trust, which is for names.
        let policy = uplink.cert_path_validation_policy_id.unwrap_or_default();
        let by_name = is_dns_name(&address);
        if !(policy.is_empty() && by_name || self.policies.iter().any(|known| known.id == policy)) {
            return Err(fault::unknown_policy(&policy));
        }
        let new = StoredUplink { address: address.clone(), policy, user_level: uplink.user_level };
        let count = self.uplinks.len();
        match self.uplinks.iter_mut().find(|known| known.address == address) {
            Some(known) => {
                let changed = known.policy != new.policy;
                *known = new;
                Ok((address, changed))
            }
            None if count >= MAX_UPLINKS => Err(full("MaximumNumberOfUplinksReached")),
            None => {
                self.uplinks.push(new);
                Ok((address, true))
            }
        }
    }

    /// Removes an uplink, and its policy and certificates if nothing else needs them; returns its key.
    pub fn delete_uplink(&mut self, address: &str) -> Result<String, Fault> {
        let key = address.parse::<UplinkAddress>().map_or_else(|_| address.to_owned(), |a| a.to_string());
        remove(&mut self.uplinks, |uplink| uplink.address == key)
            .ok_or_else(|| fault::unknown_address(address))?;
        self.policies.retain(|policy| self.uplinks.iter().any(|uplink| uplink.policy == policy.id));
        let policies = &self.policies;
        self.anchors.retain(|anchor| policies.iter().any(|policy| policy.anchors.contains(&anchor.id)));
        Ok(key)
    }

    /// The anchors that a chain from this uplink's server may lead to; without a policy, what browsers trust.
    pub fn roots(&self, address: &str) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        let Some(uplink) = self.uplinks.iter().find(|uplink| uplink.address == address) else { return roots };
        if uplink.policy.is_empty() && is_dns_name(address) {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        let policy = self.policies.iter().find(|policy| policy.id == uplink.policy);
        for anchor in policy.iter().flat_map(|policy| &policy.anchors) {
            if let Some(anchor) = self.anchors.iter().find(|known| known.id == *anchor) {
                // One that does not parse any more trusts nobody, which is what the dialler then reports.
                let _ = roots.add(anchor.der());
            }
        }
        roots
    }
}

/// What browsers trust is issued for names; an IP address needs a policy.
fn is_dns_name(address: &str) -> bool {
    let host = address.parse::<UplinkAddress>().map(|address| address.host().to_owned());
    host.is_ok_and(|host| host.parse::<std::net::IpAddr>().is_err())
}

fn remove<T>(list: &mut Vec<T>, which: impl Fn(&T) -> bool) -> Option<()> {
    let index = list.iter().position(which)?;
    list.remove(index);
    Some(())
}

fn full(subcode: &str) -> Fault {
    Fault::receiver(&["Action", subcode], "the device holds as many as it can; delete one first")
}

fn referenced(id: &str) -> Fault {
    Fault::sender(&["InvalidArgVal", "ReferenceExists"], format!("{id} is in use"))
}

/// 16 hex digits of SHA-256: enough to tell apart the few that are kept.
fn name_of(content: &[u8]) -> String {
    Sha256::digest(content).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate() -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&key).unwrap().der().to_vec()
    }

    fn uplink(address: &str, policy: &str) -> Configuration {
        Configuration {
            remote_address: address.into(),
            certificate_id: Some(DEVICE_CERTIFICATE_ID.into()),
            cert_path_validation_policy_id: Some(policy.into()),
            ..Configuration::default()
        }
    }

    #[tokio::test]
    async fn what_a_dispatcher_sets_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::load(folder.path()).unwrap();
        let der = certificate();
        let (address, changed) = store
            .change(|kept| {
                let anchor = kept.upload(&der, Some("sts".into()))?;
                assert_eq!(kept.upload(&der, None)?, anchor, "the same again changes nothing");
                let policy = kept.create_policy(vec![anchor], None)?;
                kept.set_uplink(uplink("sts.example:8443", &policy))
            })
            .await
            .unwrap();
        assert_eq!((address.as_str(), changed), ("https://sts.example:8443/", true));
        let again = Store::load(folder.path()).unwrap().kept().await;
        assert_eq!(again, store.kept().await);
        assert_eq!(again.roots(&address).len(), 1);
        assert_eq!(again.roots("https://other.example/").len(), 0);
        let policy = again.policies[0].id.clone();
        let set = |address: &str| Kept::clone(&again).set_uplink(uplink(address, &policy)).unwrap();
        assert!(!set("https://STS.example:8443/").1, "the same uplink, written differently");
        assert!(set("wss://sts.example:8443/").1);
    }

    /// Goal: a tunnel server with a certificate of the public web is trusted as browsers do; by its name alone.
    #[tokio::test]
    async fn without_a_policy_a_name_is_trusted_as_browsers_do() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::load(folder.path()).unwrap();
        let unsaid = Configuration { cert_path_validation_policy_id: None, ..uplink("sts.example:8443", "") };
        let (address, _) = store.change(|kept| kept.set_uplink(unsaid)).await.unwrap();
        let kept = Store::load(folder.path()).unwrap().kept().await;
        assert_eq!(kept.roots(&address).len(), webpki_roots::TLS_SERVER_ROOTS.len());
        assert_eq!(kept.roots("https://other.example/").len(), 0);
    }

    #[tokio::test]
    async fn what_cannot_be_honoured_is_a_fault_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::load(folder.path()).unwrap();
        let policy = store
            .change(|kept| {
                let anchor = kept.upload(&certificate(), None)?;
                kept.create_policy(vec![anchor], None)
            })
            .await
            .unwrap();
        let before = store.kept().await;
        let reject =
            |configuration: Configuration| Kept::clone(&before).set_uplink(configuration).unwrap_err();
        let good = uplink("https://sts/", &policy);
        for (configuration, subcode) in [
            (Configuration { remote_address: "http://sts/".into(), ..good.clone() }, "ProtocolNotSupported"),
            (Configuration { remote_address: "a b".into(), ..good.clone() }, "Address"),
            (Configuration { certificate_id: Some("x".into()), ..good.clone() }, "CertificateID"),
            (
                Configuration { authorization_server: Some("x".into()), ..good.clone() },
                "AmbiguousAuthentication",
            ),
            (
                Configuration {
                    remote_address: "https://192.0.2.1/".into(),
                    cert_path_validation_policy_id: None,
                    ..good.clone()
                },
                "CertPathValidationPolicyID",
            ),
        ] {
            let fault = reject(configuration);
            assert!(fault.has_subcode(subcode), "{fault}");
        }
        assert!(Kept::default().upload(b"no certificate", None).unwrap_err().has_subcode("Certificate"));
        let missing = store.change(|kept| kept.create_policy(vec!["x".into()], None)).await.unwrap_err();
        assert!(missing.has_subcode("CertificateID"));
        let fault = store.change(|kept| kept.delete_uplink("https://nowhere/")).await.unwrap_err();
        assert!(fault.has_subcode("Address"));
        assert_eq!(store.kept().await, before);
    }

    #[tokio::test]
    async fn everything_has_a_limit_and_nothing_in_use_goes() {
        let mut kept = Kept::default();
        let anchor = kept.upload(&certificate(), None).unwrap();
        let policy = kept.create_policy(vec![anchor.clone()], None).unwrap();
        for number in 0..MAX_UPLINKS {
            kept.set_uplink(uplink(&format!("https://s{number}/"), &policy)).unwrap();
        }
        assert!(kept.set_uplink(uplink("https://more/", &policy)).is_err());
        assert!(kept.delete_certificate(&anchor).unwrap_err().has_subcode("ReferenceExists"));
        assert!(kept.delete_policy(&policy).unwrap_err().has_subcode("ReferenceExists"));
        for number in 0..MAX_UPLINKS {
            kept.delete_uplink(&format!("https://s{number}/")).unwrap();
        }
        assert_eq!(kept, Kept::default(), "what only they needed is gone with them");
        for _ in 0..MAX_CERTIFICATES {
            kept.upload(&certificate(), None).unwrap();
        }
        assert!(kept.upload(&certificate(), None).is_err());
    }
}
