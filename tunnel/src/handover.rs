//! Sending a device to another tunnel server: what the VMS asks, and what the dispatcher is told of it.
//!
//! What the device itself is told, and when, is in `errands.rs`; how far it is, in `moves.rs`. A move needs no
//! dispatcher: what that is to know of it is told when it can be reached.

use crate::{
    dispatcher::Failed,
    passwords::Password,
    relay::{Relay, not_registered},
};
use homing_base::{Stop, http::Failure};
use homing_protocol::{
    SerialNumber, Step,
    api::{
        Problem, Target,
        dispatcher::Offer,
        tunnel::{Device, Move, NewDevice},
    },
};
use homing_uplink::UplinkAddress;
use http::StatusCode;
use jiff::Timestamp;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::time::Duration;

/// A dispatcher's limit as well.
const SERVERS_MAX: usize = 4;

/// Who orders a move waits so long for a dispatcher that may be away, and no longer than a caller has patience.
const OFFER_DEADLINE: Duration = Duration::from_secs(10);

impl Relay {
    /// Sends a device to another tunnel server, and offers its claim to that one's account.
    ///
    /// # Errors
    /// A target that no device could dial; a device that is at another server already; an account that the dispatcher
    /// refuses. Nothing is changed then.
    pub async fn send(&self, serial: SerialNumber, order: Move, stop: &Stop) -> Result<Device, Failure> {
        let _lock = self.lock(serial).await;
        let standing = self.devices().standing(serial).ok_or_else(|| not_registered(serial))?;
        let target = self.check(order.target)?;
        if standing.errand.is_moved()
            && let Some(moving) = standing.errand.moving.filter(|moving| moving.target != target)
        {
            let message = format!(
                "{serial} is at {} already; that tunnel server can send it on, or back.",
                moving.target.servers.join(", ")
            );
            let problem = Problem::new("already-moved", message);
            return Err(Failure::new(StatusCode::CONFLICT, problem));
        }
        let account = order.account.filter(|account| *account != self.dispatcher().account());
        if order.keep && account.is_some() {
            let message = "A device is kept by two tunnel servers of one dispatcher account only: its claim is one \
                           account's.";
            return Err(Failure::new(StatusCode::CONFLICT, Problem::new("other-account", message)));
        }
        // A dispatcher that is away learns of it later; one that says no is heard before anything is done. It is asked
        // even if it was away a moment ago: the other account is refused until it knows of the offer.
        let offered = match &account {
            Some(to) => match tokio::time::timeout(OFFER_DEADLINE, self.tell_offer(serial, to, stop)).await {
                Ok(Ok(())) => true,
                Err(_) | Ok(Err(Failed::Later(_))) => false,
                Ok(Err(Failed::Refused(status, problem))) => return Err(Failure::new(status, problem)),
            },
            None => false,
        };
        let servers = target.servers.join(", ");
        self.devices()
            .change(serial, |standing| {
                standing.errand.send(target.clone(), account.clone(), order.keep, Timestamp::now());
                standing.errand.with(&target, |moving| moving.offered |= offered);
            })
            .await?;
        tracing::info!(%serial, servers, "to be sent to another tunnel server");
        self.devices().for_dispatcher.notify_one();
        self.devices().get(serial).ok_or_else(|| not_registered(serial))
    }

    /// Calls a device back, or expects it back.
    ///
    /// # Errors
    /// When it is not registered.
    pub async fn call_back(&self, serial: SerialNumber, stop: &Stop) -> Result<Device, Failure> {
        let _lock = self.lock(serial).await;
        let standing = self.devices().standing(serial).ok_or_else(|| not_registered(serial))?;
        self.devices().change(serial, |standing| standing.call_back()).await?;
        let offered = standing.errand.moving.filter(|moving| moving.offered && moving.account.is_some());
        if offered.is_some()
            && let Err(error) = self.tell_withdrawal(serial, stop).await
        {
            // It ends by itself after some days.
            tracing::warn!(%serial, ?error, "the offer of its claim stands");
        }
        tracing::info!(%serial, "stays at this tunnel server");
        self.devices().for_dispatcher.notify_one();
        self.devices().get(serial).ok_or_else(|| not_registered(serial))
    }

    /// Lets another account take a device over, at the dispatcher.
    ///
    /// # Errors
    /// What the dispatcher refuses; when it cannot be reached.
    pub async fn offer(&self, serial: SerialNumber, offer: Offer, stop: &Stop) -> Result<(), Failure> {
        self.devices().record(serial).ok_or_else(|| not_registered(serial))?;
        // Before it can be taken: who hears of a transfer asks whether it was offered here.
        let offered_to = Some(offer.to.clone());
        self.devices().change(serial, |standing| standing.errand.offered_to = offered_to.clone()).await?;
        self.tell_offer(serial, &offer.to, stop).await.map_err(passed_on)
    }

    /// Withdraws the offer.
    ///
    /// # Errors
    /// As [`Relay::offer`].
    pub async fn withdraw(&self, serial: SerialNumber, stop: &Stop) -> Result<(), Failure> {
        self.devices().record(serial).ok_or_else(|| not_registered(serial))?;
        self.tell_withdrawal(serial, stop).await.map_err(passed_on)?;
        Ok(self.devices().change(serial, |standing| standing.errand.offered_to = None).await?)
    }

    /// Everything that another tunnel server needs to admit a device: its key and its secrets.
    ///
    /// # Errors
    /// When it is not registered.
    pub async fn handover(&self, serial: SerialNumber) -> Result<NewDevice, Failure> {
        let secrets = self.secrets(serial).await?;
        let record = self.devices().record(serial).ok_or_else(|| not_registered(serial))?;
        Ok(NewDevice {
            serial,
            oak: secrets.oak,
            user: secrets.credentials.user,
            password: secrets.credentials.password,
            name: record.name,
            description: record.description,
            access: record.access,
            fingerprint: record.standing.fingerprint.map(|fingerprint| fingerprint.to_string()),
            own_password: record.standing.password == Password::Own,
            proposed_password: self.devices().store().proposed_password(serial).await?,
        })
    }

    async fn tell_offer(&self, serial: SerialNumber, to: &str, stop: &Stop) -> Result<(), Failed> {
        tokio::select! {
            told = self.dispatcher().offer(serial, to) => told,
            () = stop.cancelled() => Err(stopping()),
        }
    }

    async fn tell_withdrawal(&self, serial: SerialNumber, stop: &Stop) -> Result<(), Failed> {
        tokio::select! {
            told = self.dispatcher().withdraw(serial) => told,
            () = stop.cancelled() => Err(stopping()),
        }
    }

    /// Offers a claim that is still to be; `false` if it is to be tried again.
    pub async fn offer_later(&self, serial: SerialNumber, to: &str, stop: &Stop) -> anyhow::Result<bool> {
        let refused = match self.tell_offer(serial, to, stop).await {
            Ok(()) => None,
            Err(Failed::Later(_)) => return Ok(false),
            // Not ours any more: it has been taken over already.
            Err(Failed::Refused(StatusCode::NOT_FOUND, _)) => None,
            Err(Failed::Refused(status, problem)) => {
                tracing::warn!(%serial, %status, code = problem.error.code, "claim not offered");
                Some(problem.error)
            }
        };
        let offered = |standing: &mut crate::record::Standing| {
            if let Some(moving) = &mut standing.errand.moving {
                moving.offered = true;
                moving.problem = refused.clone().or_else(|| moving.problem.take());
            }
        };
        self.devices().change(serial, offered).await?;
        Ok(true)
    }

    /// Tells the dispatcher that a device has come with the key that another tunnel server vouched for; `false` if it
    /// is to be tried again.
    pub async fn report_arrival(&self, serial: SerialNumber, stop: &Stop) -> anyhow::Result<bool> {
        let Some(key) = self.devices().standing(serial).and_then(|standing| standing.fingerprint) else {
            return Ok(true);
        };
        let told = tokio::select! {
            told = self.dispatcher().arrived(serial, key) => told,
            () = stop.cancelled() => return Ok(false),
        };
        match told {
            Ok(told) => self.devices().hear(&told).await?,
            Err(Failed::Later(_)) => return Ok(false),
            Err(Failed::Refused(status, problem)) => {
                tracing::warn!(
                    step = %Step::Tunnel, %serial, %status, code = problem.error.code,
                    "the dispatcher does not believe that it came"
                );
            }
        }
        self.devices().change(serial, |standing| standing.adopted = false).await?;
        Ok(true)
    }

    /// Whether a device could dial there.
    fn check(&self, target: Target) -> Result<Target, Failure> {
        let refuse = |message: String| Err(Failure::bad_request(message));
        if !(1..=SERVERS_MAX).contains(&target.servers.len()) {
            return refuse(format!("A target has 1 to {SERVERS_MAX} servers."));
        }
        let mut servers = Vec::new();
        for server in &target.servers {
            let Ok(address) = server.parse::<UplinkAddress>() else {
                return refuse(format!("{server:?} is not host:port."));
            };
            let authority = address.authority();
            if server.contains('/') || self.dispatcher().servers().contains(&authority) {
                return refuse(format!("{server:?} is no address of another tunnel server (host:port)."));
            }
            let by_name = address.host().parse::<std::net::IpAddr>().is_err();
            if target.trust_anchor.trim().is_empty() && !by_name {
                return refuse(format!(
                    "{authority} needs a trust_anchor: browsers' certificates are for DNS names."
                ));
            }
            servers.push(authority);
        }
        let anchors = CertificateDer::pem_slice_iter(target.trust_anchor.as_bytes());
        let read: Result<Vec<_>, _> = anchors.collect();
        if !target.trust_anchor.trim().is_empty() && !read.is_ok_and(|read| !read.is_empty()) {
            return refuse("The trust_anchor is not a certificate in PEM.".to_owned());
        }
        Ok(Target { servers, trust_anchor: target.trust_anchor })
    }
}

fn stopping() -> Failed {
    Failed::Later(Problem::new("stopping", "This tunnel server is being stopped.").error)
}

fn passed_on(failed: Failed) -> Failure {
    match failed {
        Failed::Refused(status, problem) => Failure::new(status, problem),
        Failed::Later(problem) => Failure::new(StatusCode::BAD_GATEWAY, Problem { error: problem }),
    }
}
