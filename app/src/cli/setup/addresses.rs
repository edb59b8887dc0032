//! Where the server listens, by which names it is known, and what devices dial: each answer tried at once.
//!
//! Not here: whether an address can be used at all ([`homing_tunnel::setup`]).

use super::{
    Options, Refused,
    ask::{Asker, Question},
    machine,
};
use anyhow::{Context, bail, ensure};
use homing_base::tls::Https;
use homing_tunnel::{
    Config,
    setup::{self, Unusable},
};
use std::net::{IpAddr, SocketAddr};

/// Ports where nothing else is said.
const EXTERNAL_PORT: u16 = 8443;
const INTERNAL_PORT: u16 = 8081;
const RTSP_PORT: u16 = 8554;
const RTSPS_PORT: u16 = 8322;

/// External, internal, public.
pub(super) fn ask_addresses(
    asker: &Asker,
    options: &mut Options,
    config: &mut Config,
    before: Option<&Config>,
) -> Result<(), Refused> {
    let ours = machine::addresses();
    let list = listed(&ours);
    // With two adaptors, each has its side.
    let outside = ours.first().filter(|_| ours.iter().filter(|ip| ip.is_ipv4()).count() > 1);
    let suggested = outside
        .map_or(format!("0.0.0.0:{EXTERNAL_PORT}"), |ip| SocketAddr::new(*ip, EXTERNAL_PORT).to_string());
    let external = Question {
        title: "External address",
        flag: "--external",
        explanation: &format!(
            "IP:PORT where devices' connections arrive on this machine, through the firewall or Internet router.\n\
             0.0.0.0 is every IPv4 address, [::] every address. This machine has: {list}"
        ),
        default: Some(before.map_or(suggested, |before| before.external.to_string())),
    };
    let check = |text: &str| usable(address(text, EXTERNAL_PORT)?, before.map(|before| before.external));
    config.external = asker.ask(&external, options.external.take(), check)?;

    let inside = ours.iter().find(|ip| **ip != config.external.ip() && is_of(ip, true));
    let inside = inside.or_else(|| ours.iter().find(|ip| is_of(ip, true)));
    let suggested = inside
        .map_or(format!("127.0.0.1:{INTERNAL_PORT}"), |ip| SocketAddr::new(*ip, INTERNAL_PORT).to_string());
    let internal = Question {
        title: "Internal address",
        flag: "--internal",
        explanation: "IP:PORT where the VMS asks on this machine: to register devices, and for their video. It may be the IP\n\
             address of the external one, with another port that the firewall keeps closed to the Internet.\n\
             127.0.0.1 where the VMS is on this machine.",
        default: Some(before.map_or(suggested, |before| before.internal.to_string())),
    };
    let outer = config.external;
    config.internal = asker.ask(&internal, options.internal.take(), |text| {
        let address = address(text, INTERNAL_PORT)?;
        setup::try_both(outer, address)?;
        usable(address, before.map(|before| before.internal))
    })?;
    ask_name_inside(asker, options, config, inside)?;

    let outer = Some(config.external.ip()).filter(|ip| !ip.is_unspecified()).or(ours.first().copied());
    let dialled = outer.filter(|ip| is_of(ip, false));
    let suggested = dialled.map(|ip| SocketAddr::new(ip, config.external.port()).to_string());
    let public = Question {
        title: "Public address",
        flag: "--public",
        explanation: "HOST:PORT that devices dial: the public IP address of the firewall or Internet router that forwards to\n\
             the external address, or its DNS name. Several with commas, best first.",
        default: before
            .filter(|before| !before.public.is_empty())
            .map(|before| before.public.join(","))
            .or(suggested),
    };
    let given = Some(options.public.join(",")).filter(|given| !given.is_empty());
    let port = config.external.port();
    config.public = asker.ask(&public, given, |text| {
        let all: Vec<String> = text.split(',').map(|one| with_port(one.trim(), port)).collect();
        let checked = Config { public: all.clone(), ..Config::default() };
        setup::check_public(&checked)?;
        Ok(all)
    })?;
    Ok(())
}

/// What the certificate of the internal address names besides that address; asked where that is none.
fn ask_name_inside(
    asker: &Asker,
    options: &mut Options,
    config: &mut Config,
    inside: Option<&IpAddr>,
) -> Result<(), Refused> {
    let given = Some(options.name_inside.join(",")).filter(|given| !given.is_empty());
    let everywhere = config.internal.ip().is_unspecified() && config.vms.tls == Https::Own;
    if given.is_none() && !everywhere {
        return Ok(());
    }
    let known = Some(config.vms.names.join(",")).filter(|known| !known.is_empty());
    let question = Question {
        title: "Name inside",
        flag: "--name-inside",
        explanation: "Name or IP address by which the VMS calls this machine. It goes into the certificate of the internal\n\
             address, which does not say it. Several with commas.",
        // Of several addresses, nobody but the installer knows which the VMS calls.
        default: known.or_else(|| inside.filter(|_| !asker.silent).map(IpAddr::to_string)),
    };
    config.vms.names = asker.ask(&question, given, |text| text.split(',').map(name_inside).collect())?;
    Ok(())
}

/// A DNS name, or an IP address that another machine could call.
fn name_inside(text: &str) -> anyhow::Result<String> {
    let text = text.trim();
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = bare.parse::<IpAddr>() {
        ensure!(!ip.is_unspecified(), "{ip} is no address that anybody could call");
        return Ok(ip.to_string());
    }
    ensure!(
        rustls::pki_types::DnsName::try_from(text).is_ok(),
        "a name or an IP address is wanted, without a port, such as sts.example or 10.1.1.10"
    );
    Ok(text.to_owned())
}

fn listed(ours: &[IpAddr]) -> String {
    let list: Vec<String> = ours.iter().map(IpAddr::to_string).collect();
    if list.is_empty() { "none but loopback".to_owned() } else { list.join(", ") }
}

/// The address, if this machine could listen there, or the server that runs with this file does so now.
fn usable(address: SocketAddr, in_use_now: Option<SocketAddr>) -> anyhow::Result<SocketAddr> {
    match setup::try_address(address) {
        Ok(()) => Ok(address),
        Err(Unusable::Taken(_)) if in_use_now == Some(address) => Ok(address),
        Err(Unusable::NotOurs(_)) => {
            let list = listed(&machine::addresses());
            bail!("{} is not an address of this machine, which has {list}", address.ip())
        }
        Err(other) => Err(other.into()),
    }
}

/// The RTSP gateway's two addresses.
pub(super) fn ask_gateway(
    asker: &Asker,
    options: &mut Options,
    config: &mut Config,
    before: Option<&Config>,
) -> Result<(), Refused> {
    let before = before.map(|before| &before.gateway);
    let mut others = vec![("external", config.external), ("internal", config.internal)];
    let gateway = &mut config.gateway;
    let rtsp = Question {
        title: "RTSP gateway",
        flag: "--rtsp",
        explanation: "IP:PORT where VLC, ffmpeg and any VMS connect for rtsp://…/SERIAL, usually port 8554 of the internal\n\
             address. Pictures cross the network readably there. `off` where nobody needs it.",
        default: Some(or_off(&gateway.rtsp)),
    };
    let in_use_now = before.and_then(|before| before.rtsp.parse().ok());
    gateway.rtsp = asker
        .ask(&rtsp, options.rtsp.take(), |text| gateway_address(text, RTSP_PORT, &others, in_use_now))?;
    others.extend(gateway.rtsp.parse().ok().map(|address| ("RTSP gateway's", address)));
    let rtsps = Question {
        title: "RTSP gateway inside TLS",
        flag: "--rtsps",
        explanation: "IP:PORT of the same for rtsps://…/SERIAL, encrypted, usually port 8322; or `off`.",
        default: Some(or_off(&gateway.rtsps)),
    };
    let in_use_now = before.and_then(|before| before.rtsps.parse().ok());
    gateway.rtsps = asker
        .ask(&rtsps, options.rtsps.take(), |text| gateway_address(text, RTSPS_PORT, &others, in_use_now))?;
    Ok(())
}

fn or_off(address: &str) -> String {
    if address.is_empty() { "off" } else { address }.to_owned()
}

/// One that nobody of the others has; empty for none.
fn gateway_address(
    text: &str,
    port: u16,
    others: &[(&str, SocketAddr)],
    in_use_now: Option<SocketAddr>,
) -> anyhow::Result<String> {
    if text.is_empty() || text == "off" {
        return Ok(String::new());
    }
    let address = address(text, port)?;
    for (whose, other) in others {
        ensure!(
            setup::try_both(*other, address).is_ok(),
            "the {whose} address is {other}, which is the same IP address and port"
        );
    }
    Ok(usable(address, in_use_now)?.to_string())
}

fn is_of(ip: &IpAddr, private: bool) -> bool {
    machine::is_private(*ip) == private
}

/// `IP:PORT`, or `IP` with the usual port.
fn address(text: &str, port: u16) -> anyhow::Result<SocketAddr> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let alone = || bare.parse().ok().map(|ip: IpAddr| SocketAddr::new(ip, port));
    text.parse()
        .ok()
        .or_else(alone)
        .context("an IP address and a port are wanted, such as 10.1.0.10:8443 or [fd00::10]:8443")
}

/// `HOST:PORT`, or `HOST` with the external port.
pub(super) fn with_port(text: &str, port: u16) -> String {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return SocketAddr::new(ip, port).to_string();
    }
    let has_port = text.rsplit_once(':').is_some_and(|(_, last)| last.parse::<u16>().is_ok());
    if text.is_empty() || has_port { text.to_owned() } else { format!("{text}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_may_be_typed_without_their_usual_port() {
        for (typed, expected) in [
            ("10.1.0.10", "10.1.0.10:8443"),
            ("10.1.0.10:443", "10.1.0.10:443"),
            ("fd00::10", "[fd00::10]:8443"),
            ("[fd00::10]", "[fd00::10]:8443"),
            ("[fd00::10]:443", "[fd00::10]:443"),
        ] {
            assert_eq!(address(typed, 8443).unwrap().to_string(), expected);
            assert_eq!(with_port(typed, 8443), expected);
        }
        assert!(address("sts.example:8443", 8443).is_err());
        assert_eq!(with_port("sts.example", 8443), "sts.example:8443");
        assert_eq!(with_port("sts.example:443", 8443), "sts.example:443");
    }
}
