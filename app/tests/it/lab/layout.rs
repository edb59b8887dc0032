//! The three places of a tunnel server, as docs/network.md describes them, with the very rules that stand there.
//!
//! Not here: building them ([`super::topology`]). Invariant: every firewall of the centre has rules of the document, and
//! no others.

use super::topology::Lab;
use crate::harness::root;
use std::fs;

/// What the world knows of the centre: the outer firewall.
pub const PUBLIC: &str = "198.51.100.2";
/// The dispatcher's host, out in the Internet.
pub const DISPATCHER: &str = "198.51.100.1";
/// The surveillance network's host.
pub const CENTRAL: &str = "10.2.0.10";
/// The tunnel server's external and public address where it has one of IPv6, with two adaptors.
pub const EXTERNAL_IPV6: &str = "2001:db8:d::10";
/// The dispatcher's host there.
pub const DISPATCHER_IPV6: &str = "2001:db8:19::1";
/// The dispatcher's port for devices.
pub const DISPATCHER_PORT: u16 = 7443;
/// The dispatcher's port for tunnel servers.
pub const DISPATCHER_API_PORT: u16 = 7444;
/// The tunnel server's external port; forwarded.
pub const EXTERNAL_PORT: u16 = 8443;
/// The tunnel server's internal port; open from the surveillance network only.
pub const INTERNAL_PORT: u16 = 8081;
/// The port of its RTSP gateway; likewise.
pub const GATEWAY_PORT: u16 = 8554;
/// First and last port that it sends UDP from.
pub const UDP_PORTS: [u16; 2] = [50000, 50999];

/// One end of a cable: box, name there, address there (a switch has none).
pub type End = (&'static str, &'static str, &'static str);

/// Where the tunnel server stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Between two firewalls, with an adaptor towards each.
    TwoAdaptors,
    /// Between two firewalls, with one adaptor: one address, two ports.
    OneAdaptor,
    /// Beside the recording server, behind one firewall.
    SameNetwork,
}

impl Layout {
    pub const ALL: [Layout; 3] = [Layout::TwoAdaptors, Layout::OneAdaptor, Layout::SameNetwork];

    /// The tunnel server's IP address for devices.
    pub fn external(self) -> &'static str {
        match self {
            Layout::TwoAdaptors | Layout::OneAdaptor => "10.1.0.10",
            Layout::SameNetwork => "10.2.0.20",
        }
    }

    /// The tunnel server's IP address for the VMS.
    pub fn internal(self) -> &'static str {
        match self {
            Layout::TwoAdaptors => "10.1.1.10",
            Layout::OneAdaptor => "10.1.0.10",
            Layout::SameNetwork => "10.2.0.20",
        }
    }

    /// The centre's cables.
    pub fn cables(self) -> &'static [[End; 2]] {
        match self {
            Layout::TwoAdaptors => &[
                [("firewall1", "dmz", "10.1.0.1/24"), ("tunnel", "outer", "10.1.0.10/24")],
                [("tunnel", "inner", "10.1.1.10/24"), ("firewall2", "dmz", "10.1.1.1/24")],
                [("firewall2", "lan", "10.2.0.1/24"), ("central", "lan", "10.2.0.10/24")],
            ],
            Layout::OneAdaptor => &[
                [("firewall1", "dmz", "10.1.0.1/24"), ("switch", "one", "")],
                [("tunnel", "dmz", "10.1.0.10/24"), ("switch", "two", "")],
                [("firewall2", "dmz", "10.1.0.2/24"), ("switch", "three", "")],
                [("firewall2", "lan", "10.2.0.1/24"), ("central", "lan", "10.2.0.10/24")],
            ],
            Layout::SameNetwork => &[
                [("firewall1", "lan", "10.2.0.1/24"), ("switch", "one", "")],
                [("tunnel", "lan", "10.2.0.20/24"), ("switch", "two", "")],
                [("central", "lan", "10.2.0.10/24"), ("switch", "three", "")],
            ],
        }
    }

    /// The centre's routes: box and route.
    pub fn routes(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Layout::TwoAdaptors => &[
                ("tunnel", "default via 10.1.0.1"),
                ("tunnel", "10.2.0.0/24 via 10.1.1.1"),
                ("central", "default via 10.2.0.1"),
            ],
            Layout::OneAdaptor => &[
                ("tunnel", "default via 10.1.0.1"),
                ("tunnel", "10.2.0.0/24 via 10.1.0.2"),
                ("central", "default via 10.2.0.1"),
            ],
            Layout::SameNetwork => &[("tunnel", "default via 10.2.0.1"), ("central", "default via 10.2.0.1")],
        }
    }

    /// The centre's firewalls: box, and the first line of its rules in the document.
    pub fn rules(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Layout::TwoAdaptors => &[
                ("firewall1", "# Firewall 1, before a DMZ"),
                ("firewall2", "# Firewall 2, DMZ with two adaptors"),
            ],
            Layout::OneAdaptor => &[
                ("firewall1", "# Firewall 1, before a DMZ"),
                ("firewall2", "# Firewall 2, DMZ with one adaptor"),
            ],
            Layout::SameNetwork => &[("firewall1", "# Firewall, same network")],
        }
    }

    /// Lets UDP of the RTSP gateway through to the VMS, where a firewall stands between.
    pub fn let_udp_through(self, lab: &Lab) {
        let of_two_adaptors = documented_rules("# RTSP over UDP");
        match self {
            Layout::TwoAdaptors => lab.load_rules("firewall2", &of_two_adaptors),
            // As the document says beside them.
            Layout::OneAdaptor => lab.load_rules(
                "firewall2",
                &of_two_adaptors.replace(Layout::TwoAdaptors.internal(), self.internal()),
            ),
            Layout::SameNetwork => (),
        }
    }

    /// What must not be possible: who, and where to.
    pub fn walls(self, lab: &Lab) -> Vec<(super::Host, &'static str, String)> {
        let (external, internal) = (self.external(), self.internal());
        let mut walls = Vec::new();
        for port in [INTERNAL_PORT, GATEWAY_PORT, 22, 8080] {
            walls.push((lab.site(), "site", format!("{PUBLIC}:{port}")));
            // As if somebody on the Internet had a route to the inside.
            walls.push((lab.internet(), "internet", format!("{internal}:{port}")));
        }
        walls.push((lab.internet(), "internet", format!("{CENTRAL}:8080")));
        walls.push((lab.internet(), "internet", format!("{external}:22")));
        walls.push((lab.tunnel(), "tunnel", format!("{DISPATCHER}:{DISPATCHER_PORT}")));
        walls.push((lab.tunnel(), "tunnel", format!("{}:554", super::topology::SITE_PUBLIC)));
        walls.push((lab.central(), "central", format!("{DISPATCHER}:{DISPATCHER_API_PORT}")));
        if self != Layout::SameNetwork {
            walls.push((lab.tunnel(), "tunnel", format!("{CENTRAL}:8080")));
            walls.push((lab.central(), "central", format!("{internal}:22")));
            walls.push((lab.central(), "central", format!("{external}:{EXTERNAL_PORT}")));
            walls.push((lab.central(), "central", format!("{PUBLIC}:{EXTERNAL_PORT}")));
        }
        walls
    }
}

/// The fenced block of docs/network.md that begins with this line.
///
/// # Panics
/// When the document has none, or several.
pub fn documented_rules(first_line: &str) -> String {
    let document = fs::read_to_string(root().join("docs/network.md")).unwrap();
    let blocks = document.split("```nft\n").skip(1).filter_map(|rest| rest.split("```").next());
    let found: Vec<&str> = blocks.filter(|block| block.lines().next() == Some(first_line)).collect();
    let [block] = found[..] else { panic!("docs/network.md has {} blocks {first_line:?}", found.len()) };
    block.to_owned()
}
