//! Certificates that others rely on, and when somebody has to do something about one.
//!
//! They are told by the tunnel servers ([`World`]) and by our own listener; a monitoring system reads the same from
//! `/metrics` as the page shows.

use crate::{views, world::World};
use homing_protocol::api::Expiry;
use jiff::Timestamp;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Unit,
};
use std::time::Duration;

/// What somebody else issued is warned about for so long before it ends.
const WARNING: Duration = Duration::from_secs(30 * 86_400);

/// What Homing renews by itself is renewed long before this.
const OVERDUE: Duration = Duration::from_secs(3 * 86_400);

/// Gives the certificates of the page's own listener, as they are now.
pub type Own = std::sync::Arc<dyn Fn() -> Vec<Expiry> + Send + Sync>;

/// All certificates that are known of.
#[derive(Clone)]
pub struct Certificates {
    world: World,
    own: Own,
}

impl Certificates {
    /// Those of the tunnel servers, and our own.
    pub fn new(world: World, own: Own) -> Self {
        Certificates { world, own }
    }

    /// All of them, the one that ends first before the others.
    pub fn all(&self, now: Timestamp) -> Vec<views::Certificate> {
        let view = |server: String, expiry: Expiry| views::Certificate {
            server,
            advice: advice(&expiry, now),
            what: expiry.what,
            expires: expiry.expires,
            renews: expiry.renews,
        };
        let own = (self.own)().into_iter().map(|expiry| view("management server".to_owned(), expiry));
        let theirs = self.world.certificates().into_iter();
        let theirs = theirs.map(|(name, expiry)| view(format!("tunnel server {name}"), expiry));
        let mut all: Vec<_> = own.chain(theirs).collect();
        all.sort_by_key(|certificate| certificate.expires);
        all
    }
}

/// What has to be done about a certificate now, if anything.
fn advice(expiry: &Expiry, now: Timestamp) -> Option<String> {
    let within = |time: Duration| expiry.expires <= now + time;
    match expiry.renews {
        false if within(Duration::ZERO) => Some(
            "It has ended, and whoever checks it is refused. Put a new certificate and key where the server's \
             configuration names them; it reads them within a minute.",
        ),
        false if within(WARNING) => Some(
            "It does not renew itself. Before it ends, put a new certificate and key where the server's configuration \
             names them; it reads them within a minute.",
        ),
        true if within(OVERDUE) => Some(
            "The server should have renewed it by itself: look at its log and its clock, and restart it.",
        ),
        _ => None,
    }
    .map(str::to_owned)
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Certificates")
    }
}

impl Collector for Certificates {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "When a certificate ends, in seconds since 1970";
        let mut metric = encoder.encode_descriptor(
            "certificate_expires",
            help,
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for certificate in self.all(Timestamp::now()) {
            let labels = [("server", certificate.server), ("what", certificate.what)];
            ConstGauge::new(certificate.expires.as_second()).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_has_to_renew_is_told_30_days_before_and_the_rest_when_it_is_overdue() {
        let now = Timestamp::UNIX_EPOCH;
        let told = |days: i64, renews: bool| {
            let expires = now + jiff::SignedDuration::from_hours(24 * days);
            let advice = advice(&Expiry { what: "certificate".into(), expires, renews }, now);
            advice.map(|advice| {
                advice.split(':').next().unwrap_or_default().chars().take(12).collect::<String>()
            })
        };
        assert_eq!(told(31, false), None);
        assert_eq!(told(29, false).as_deref(), Some("It does not "));
        assert_eq!(told(-1, false).as_deref(), Some("It has ended"));
        assert_eq!(told(10, true), None);
        assert_eq!(told(2, true).as_deref(), Some("The server s"));
    }
}
