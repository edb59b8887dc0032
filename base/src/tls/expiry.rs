//! When certificates end, and the warnings before: in the log once a day, as a metric, and for the page.

use crate::{Ops, Stop};
use anyhow::Context;
use homing_protocol::api::Expiry;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Unit,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// What Homing does not renew is warned about for so long before it ends.
pub const WARNING: Duration = Duration::from_secs(30 * 86_400);

/// What Homing renews is renewed long before this; later than that, something is wrong.
const OVERDUE: Duration = Duration::from_secs(3 * 86_400);

const DAY: Duration = Duration::from_secs(86_400);

/// When a certificate ends.
///
/// # Errors
/// When it is none.
pub(super) fn ends(der: &[u8]) -> anyhow::Result<SystemTime> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).context("certificate")?;
    let seconds = certificate.validity().not_after.timestamp();
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default()))
}

/// Its public key, DER SubjectPublicKeyInfo.
///
/// # Errors
/// When it is none.
pub(super) fn public_key(der: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).context("certificate")?;
    Ok(certificate.public_key().raw.to_vec())
}

pub(super) fn to_pem(der: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Whether a CA of Homing has issued it, which renews what it issues; by the name of the issuer.
pub(super) fn is_ours(der: &[u8]) -> bool {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(der) else { return false };
    let issuer = certificate.issuer().iter_common_name().next().and_then(|name| name.as_str().ok());
    issuer.is_some_and(|name| name.starts_with("Homing ") && name.contains(" CA"))
}

/// One certificate's; none for what cannot be read.
pub fn of(what: &str, der: &[u8], renews: bool) -> Option<Expiry> {
    let expires = jiff::Timestamp::try_from(ends(der).ok()?).ok()?;
    Some(Expiry { what: what.to_owned(), expires, renews })
}

/// Those of a PEM text.
pub fn of_pem(what: &str, pem: &str, renews: bool) -> Vec<Expiry> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok);
    certificates.filter_map(|der| of(what, &der, renews)).collect()
}

/// What has to be done about a certificate now, if anything.
pub fn advice(expiry: &Expiry, now: SystemTime) -> Option<&'static str> {
    let ends = SystemTime::from(expiry.expires);
    match expiry.renews {
        false if ends <= now => Some(
            "it has ended, and whoever checks it is refused: replace it; files are read again without a restart",
        ),
        false if ends <= now + WARNING => Some(
            "it does not renew itself: replace it before it ends; files are read again without a restart",
        ),
        true if ends <= now + OVERDUE => {
            Some("it should have been renewed by itself: look for errors in this log, and at the clock")
        }
        _ => None,
    }
}

/// Gives a role's certificates, as they are now.
pub type Certificates = Arc<dyn Fn() -> Vec<Expiry> + Send + Sync>;

/// Watches over a role's certificates until it stops: `homing_ROLE_certificate_expires_seconds` from now on, a warning at
/// once and then once a day.
pub async fn watch(role: &'static str, ops: Ops, certificates: Certificates, stop: Stop) {
    ops.register(role, |registry| registry.register_collector(Box::new(Ends(Arc::clone(&certificates)))));
    warn_daily(role, certificates, stop).await;
}

/// The warnings alone, for a role that has a metric of its own.
pub async fn warn_daily(role: &'static str, certificates: Certificates, stop: Stop) {
    loop {
        warn(role, &certificates(), SystemTime::now());
        tokio::select! {
            () = tokio::time::sleep(DAY) => (),
            () = stop.cancelled() => return,
        }
    }
}

fn warn(role: &str, certificates: &[Expiry], now: SystemTime) {
    for expiry in certificates {
        if let Some(advice) = advice(expiry, now) {
            tracing::warn!(role, what = expiry.what, expires = %expiry.expires, "certificate ends: {advice}");
        }
    }
}

struct Ends(Certificates);

impl fmt::Debug for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ends")
    }
}

impl Collector for Ends {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "When a certificate ends, in seconds since 1970";
        let (unit, kind) = (Some(&Unit::Seconds), MetricType::Gauge);
        let mut metric = encoder.encode_descriptor("certificate_expires", help, unit, kind)?;
        let mut all = (self.0)();
        // Of two with one name, the one that ends first.
        all.sort_by(|a, b| (&a.what, a.expires).cmp(&(&b.what, b.expires)));
        all.dedup_by(|later, first| later.what == first.what);
        for expiry in all {
            let labels = [("what", expiry.what)];
            ConstGauge::new(expiry.expires.as_second()).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
