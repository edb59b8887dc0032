//! Whether what devices are told to dial is this server: its names are in the certificate, and it leads back to the
//! external port. Looked at when the server starts and every hour, and by `homing tunnel setup`.
//!
//! Not here: refusing anything. A firewall that does not turn connections from inside around (hairpin NAT) looks from here
//! like one that forwards nothing; so all of this is warnings. Invariant: nothing is said of an address that a device
//! could dial in the same way and would be at home.

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
    let mut failed = String::new();
    for one in resolved {
        // Nothing lies between.
        if one == external {
            return None;
        }
        match shown_at(one, address.host()).await {
            Ok(shown) if leaf.is_ours(&shown, address.host()) => return None,
            Ok(_) => {
                return Some(format!(
                    "the public address {authority} leads to another server ({one} shows a certificate that is not ours): \
                     check that the firewall forwards it to {external}"
                ));
            }
            Err(error) => failed = format!("{one}: {error:#}"),
        }
    }
    Some(format!(
        "the public address {authority} does not lead back here ({failed}): check that the firewall forwards it to \
         {external}. If it does, and only does not turn around connections from inside (hairpin NAT), all is well; try from \
         outside"
    ))
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
