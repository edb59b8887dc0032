//! Whether what devices are told to dial is this server: its names are in the certificate, and it leads back to the
//! external port. Looked at when the server starts and every hour, and by `homing tunnel setup`.
//!
//! Not here: refusing anything. A firewall that does not turn connections from inside around (hairpin NAT) looks from here
//! like one that forwards nothing; so all of this is warnings. Invariant: nothing is said of an address where
//! a device that dials it in the same way is at home, whichever of a name's addresses it takes.

use anyhow::Context;
use homing_base::{
    Ops, Stop,
    tls::{Leaf, look as look_at},
};
use homing_uplink::UplinkAddress;
use rustls::pki_types::CertificateDer;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::net::TcpStream;

/// Names move, certificates are replaced, firewalls are changed.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// For TCP and TLS together.
const DEADLINE: Duration = Duration::from_secs(3);

/// Addresses of one name that are dialled.
const ADDRESSES_MAX: usize = 4;

/// What is wrong with the public addresses, in sentences; none where all are well.
pub(crate) async fn look(public: &[UplinkAddress], external: SocketAddr, leaf: &Leaf) -> Vec<String> {
    let mut warnings = Vec::new();
    for address in public {
        if !leaf.covers(address.host()) {
            warnings.push(format!(
                "the certificate has no name {}, and devices that are told to dial {} will refuse it: have it issued for \
                 that name too, or give in [tunnel] public a name that it has",
                address.host(),
                address.authority()
            ));
        }
        warnings.extend(leads_elsewhere(address, external, leaf).await);
    }
    warnings
}

/// Why a public address is not known to lead to us.
async fn leads_elsewhere(address: &UplinkAddress, external: SocketAddr, leaf: &Leaf) -> Option<String> {
    let authority = address.authority();
    let resolved: Vec<SocketAddr> = match tokio::net::lookup_host((address.host(), address.port())).await {
        Ok(found) => found.take(ADDRESSES_MAX).collect(),
        Err(error) => {
            return Some(format!(
                "the public address {authority} cannot be resolved here ({error}): check the name, and the DNS server that \
                 devices ask"
            ));
        }
    };
    judge(&authority, address.host(), resolved, external, leaf).await
}

/// What is said of a name's addresses. A device may dial any of them, so one that leads elsewhere is told although another
/// is well; one that does not answer is not, as long as another is: there may be no IPv6 here.
async fn judge(
    authority: &str,
    host: &str,
    resolved: Vec<SocketAddr>,
    external: SocketAddr,
    leaf: &Leaf,
) -> Option<String> {
    let (mut is_ours, mut failed) = (false, String::new());
    for one in resolved {
        // Nothing lies between.
        if one == external {
            is_ours = true;
            continue;
        }
        match shown_at(one, host).await {
            Ok(shown) if leaf.is_ours(&shown, host) => is_ours = true,
            Ok(_) => {
                return Some(format!(
                    "the public address {authority} leads to another server ({one} shows a certificate that is not ours): \
                     check that the firewall forwards it to {external}, and what the name's DNS entries are"
                ));
            }
            Err(error) => failed = format!("{one}: {error:#}"),
        }
    }
    let lost = format!(
        "the public address {authority} does not lead back here ({failed}): check that the firewall forwards it to \
         {external}. If it does, and only does not turn around connections from inside (hairpin NAT), all is well; try from \
         outside"
    );
    (!is_ours).then_some(lost)
}

/// The certificate of whoever answers there.
async fn shown_at(address: SocketAddr, host: &str) -> anyhow::Result<CertificateDer<'static>> {
    let looking = async {
        let tcp = TcpStream::connect(address).await.context("no connection")?;
        let shown =
            look_at(tcp, host).await.context("something answers there that does not speak our TLS")?;
        Ok(shown.certificate)
    };
    let late = |_| anyhow::anyhow!("no answer within {} s", DEADLINE.as_secs());
    tokio::time::timeout(DEADLINE, looking).await.map_err(late)?
}

/// Looks at the start and every hour; what is found is in the log once, and in `/healthz`.
pub(crate) async fn watch(
    public: Vec<UplinkAddress>,
    external: SocketAddr,
    leaf: Arc<Leaf>,
    ops: Ops,
    stop: Stop,
) {
    let mut told = Vec::new();
    loop {
        let found = tokio::select! {
            found = look(&public, external, &leaf) => found,
            () = stop.cancelled() => return,
        };
        for warning in found.iter().filter(|warning| !told.contains(*warning)) {
            tracing::warn!("{warning}");
        }
        if found.is_empty() && !told.is_empty() {
            tracing::info!("public addresses are well now");
        }
        ops.warn("tunnel", found.clone());
        told = found;
        tokio::select! {
            () = tokio::time::sleep(LOOK_AGAIN) => (),
            () = stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use homing_base::tls::{PrivateCa, server_config};

    /// Somebody who speaks TLS with that certificate.
    async fn listens(leaf: &Arc<Leaf>) -> (SocketAddr, tokio::task::JoinSet<()>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(server_config(Arc::clone(leaf)).unwrap());
        let mut serving = tokio::task::JoinSet::new();
        serving.spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let _ = acceptor.accept(tcp).await;
            }
        });
        (address, serving)
    }

    fn leaf(folder: &std::path::Path, ca: &str) -> Arc<Leaf> {
        let ca = Arc::new(PrivateCa::open(folder, ca).unwrap());
        Leaf::issued_by(ca, vec!["sts.example".to_owned()], Duration::from_secs(86_400)).unwrap()
    }

    /// Goal: of a name with several addresses, one that leads to another server is told wherever it stands in the list;
    /// one that nothing answers at is not, beside one that is ours.
    #[tokio::test]
    async fn every_address_of_a_name_has_to_lead_here() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, others) = (leaf(folder.path(), "ours"), leaf(folder.path(), "others"));
        let (our, _serving) = listens(&ours).await;
        let (other, _also) = listens(&others).await;
        let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let external = SocketAddr::from(([127, 0, 0, 9], 9));
        let judged = async |resolved: &[SocketAddr]| {
            judge("sts.example:443", "sts.example", resolved.to_vec(), external, &ours).await
        };
        for well in [&[our][..], &[our, dead], &[dead, our], &[external, dead]] {
            assert_eq!(judged(well).await, None, "{well:?}");
        }
        for elsewhere in [&[our, other][..], &[other, our], &[external, other]] {
            let said = judged(elsewhere).await.unwrap();
            assert!(said.contains("leads to another server") && said.contains(&other.to_string()), "{said}");
        }
        assert!(judged(&[dead]).await.unwrap().contains("does not lead back here"));
    }
}
