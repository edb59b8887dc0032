//! Where an account may send devices (step 2).

use std::net::IpAddr;

/// Where devices may be sent at all. A dispatcher makes devices dial and trust what an account says: nothing of it
/// may mean the device itself, or whatever is on the same wire.
///
/// # Errors
/// What kind of address it is.
pub(crate) fn check_destination(host: &str, may_be_loopback: bool) -> Result<(), &'static str> {
    let Ok(ip) = host.parse::<IpAddr>() else { return check_name(host, may_be_loopback) };
    let ip = ip.to_canonical();
    let is_link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    match ip {
        _ if ip.is_unspecified() || matches!(ip, IpAddr::V4(v4) if v4.octets()[0] == 0) => {
            Err("an unspecified address")
        }
        _ if ip.is_multicast() => Err("a multicast address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Err("a broadcast address"),
        _ if is_link_local => Err("a link-local address"),
        _ if ip.is_loopback() && !may_be_loopback => Err("a loopback address"),
        _ => Ok(()),
    }
}

fn check_name(host: &str, may_be_loopback: bool) -> Result<(), &'static str> {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let last = host.rsplit('.').next().unwrap_or_default();
    // `127.1`, `0x7f000001`: resolvers take them for addresses.
    if last.starts_with("0x") || last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("neither a name nor an address as four numbers");
    }
    match last {
        "localhost" if !may_be_loopback => Err("a loopback address"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::AccountId;
    use homing_base::rate::{Pace, Rate};
    use std::time::Duration;
    use tokio::time::Instant;

    #[test]
    fn step_2_devices_are_not_sent_to_themselves_nor_onto_their_own_wire() {
        for (host, said) in [
            ("0.0.0.0", "unspecified"),
            ("0.1.2.3", "unspecified"),
            ("::", "unspecified"),
            ("224.0.0.1", "multicast"),
            ("ff02::1", "multicast"),
            ("255.255.255.255", "broadcast"),
            ("169.254.1.1", "link-local"),
            ("fe80::1", "link-local"),
            ("::ffff:169.254.1.1", "link-local"),
            ("127.0.0.1", "loopback"),
            ("::1", "loopback"),
            ("::ffff:127.0.0.1", "loopback"),
            ("localhost", "loopback"),
            ("a.LOCALHOST.", "loopback"),
            ("127.1", "four numbers"),
            ("2130706433", "four numbers"),
            ("0x7f.1", "four numbers"),
            ("sts.0x7f000001", "four numbers"),
        ] {
            let refused = check_destination(host, false).unwrap_err();
            assert!(refused.contains(said), "{host}: {refused}");
        }
        for host in ["203.0.113.5", "10.0.0.5", "2001:db8::1", "sts.example", "sts.example.", "3com.example"]
        {
            assert_eq!(check_destination(host, false), Ok(()), "{host}");
        }
        assert_eq!(check_destination("127.0.0.1", true), Ok(()));
        assert_eq!(check_destination("localhost", true), Ok(()));
    }

    #[test]
    fn step_2_a_table_of_hundreds_passes_and_a_flood_does_not() {
        let (rate, account, begin) = (Rate::default(), AccountId(1), Instant::now());
        let pace = Pace::per_minute(600);
        let admitted = |account, after_s| {
            let now = begin + Duration::from_secs(after_s);
            (0..1000).map_while(|_| rate.admit(&account, pace, now).ok()).count()
        };
        assert_eq!(admitted(account, 0), 600);
        let wait = rate.admit(&account, pace, begin).unwrap_err();
        assert!(wait <= Duration::from_millis(100), "{wait:?}");
        assert_eq!(admitted(AccountId(2), 0), 600, "another account is not touched");
        assert_eq!(admitted(account, 1), 10);
        assert_eq!(admitted(account, 3600), 600, "a minute's worth at most");
    }
}
