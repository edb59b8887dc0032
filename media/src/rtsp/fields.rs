//! The RTSP headers whose value has parts: `Transport`, `Session`, `RTP-Info`.
//!
//! Read leniently, since cameras are careless here; written strictly. Not here: `Range`, which the
//! client only ever sends as `npt=now-` or `npt=0.000-`.

use std::fmt;

/// The `Transport` header (RFC 2326 §12.39): RTP over the RTSP connection, or unicast over UDP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transport {
    /// `RTP/AVP/TCP`. A server that answers with plain `RTP/AVP` has chosen UDP.
    pub tcp: bool,
    /// `RTP/AVP` or `RTP/AVP/UDP`, to one receiver. Neither this nor `tcp`: a profile that is not known here.
    pub udp: bool,
    /// `interleaved=0-1`: channel for RTP, channel for RTCP (the next one when only one is named).
    pub interleaved: Option<(u8, u8)>,
    /// `client_port=5000-5001`: where a client of UDP receives RTP and RTCP (the next one when only one is named).
    pub client_port: Option<(u16, u16)>,
    /// `server_port`, where the server sends from.
    pub server_port: Option<(u16, u16)>,
    /// `ssrc`, hexadecimal; absent or unreadable is `None`, and so is the `0` of servers that do not know it.
    pub ssrc: Option<u32>,
}

impl Transport {
    /// RTP on `rtp_channel`, RTCP on the next one. `rtp_channel` must be below 255.
    pub fn interleaved(rtp_channel: u8) -> Self {
        let interleaved = Some((rtp_channel, rtp_channel.saturating_add(1)));
        Self { tcp: true, interleaved, ..Self::default() }
    }

    /// The alternatives of a header value, in order of preference (a client may offer several).
    pub fn parse_all(value: &str) -> Vec<Self> {
        value.split(',').map(Self::parse).collect()
    }

    /// One alternative. Unknown parameters are skipped: there is nothing a reader could do about them.
    pub fn parse(value: &str) -> Self {
        let mut parts = value.split(';').map(str::trim);
        let profile = parts.next().unwrap_or_default();
        let is_one_of = |names: &[&str]| names.iter().any(|name| profile.eq_ignore_ascii_case(name));
        let mut transport = Self {
            tcp: is_one_of(&["RTP/AVP/TCP", "RTP/AVPF/TCP"]),
            udp: is_one_of(&["RTP/AVP", "RTP/AVP/UDP", "RTP/AVPF"]),
            ..Self::default()
        };
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let value = value.trim().trim_matches('"');
            if name.trim().eq_ignore_ascii_case("multicast") {
                transport.udp = false;
            } else if name.trim().eq_ignore_ascii_case("client_port") {
                transport.client_port = ports(value);
            } else if name.trim().eq_ignore_ascii_case("server_port") {
                transport.server_port = ports(value);
            } else if name.trim().eq_ignore_ascii_case("interleaved") {
                let (rtp, rtcp) = value.split_once('-').unwrap_or((value, ""));
                if let Ok(rtp) = rtp.trim().parse::<u8>() {
                    let rtcp = rtcp.trim().parse().unwrap_or(rtp.saturating_add(1));
                    transport.interleaved = Some((rtp, rtcp));
                }
            } else if name.trim().eq_ignore_ascii_case("ssrc") {
                transport.ssrc = u32::from_str_radix(value, 16).ok().filter(|&ssrc| ssrc != 0);
            }
        }
        transport
    }
}

/// `5000-5001`, or the first of them alone.
fn ports(value: &str) -> Option<(u16, u16)> {
    let (rtp, rtcp) = value.split_once('-').unwrap_or((value, ""));
    let rtp = rtp.trim().parse().ok().filter(|&port: &u16| port > 0)?;
    Some((rtp, rtcp.trim().parse().unwrap_or(rtp.saturating_add(1))))
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tcp { "RTP/AVP/TCP;unicast" } else { "RTP/AVP;unicast" })?;
        if let Some((rtp, rtcp)) = self.interleaved {
            write!(f, ";interleaved={rtp}-{rtcp}")?;
        }
        for (name, ports) in [("client_port", self.client_port), ("server_port", self.server_port)] {
            if let Some((rtp, rtcp)) = ports {
                write!(f, ";{name}={rtp}-{rtcp}")?;
            }
        }
        if let Some(ssrc) = self.ssrc {
            write!(f, ";ssrc={ssrc:08X}")?;
        }
        Ok(())
    }
}

/// The `Session` header (RFC 2326 §12.37).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionId {
    /// To be sent back as it came.
    pub id: String,
    /// Seconds without a request after which the server ends the session; 60 when it does not say.
    pub timeout_s: u32,
}

impl SessionId {
    /// What the server gave in the answer to SETUP. `None`: there is no identifier.
    pub fn parse(value: &str) -> Option<Self> {
        let mut parts = value.split(';').map(str::trim);
        let id = parts.next().filter(|id| !id.is_empty())?.to_owned();
        let timeout_s = parts
            .filter_map(|part| part.split_once('='))
            .find(|(name, _)| name.trim().eq_ignore_ascii_case("timeout"))
            .and_then(|(_, value)| value.trim().parse().ok())
            .filter(|&seconds| seconds > 0)
            .unwrap_or(60);
        Some(Self { id, timeout_s })
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{};timeout={}", self.id, self.timeout_s)
    }
}

/// One stream of an `RTP-Info` header (RFC 2326 §12.33), in the answer to PLAY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RtpInfo {
    /// As the server wrote it: absolute, relative, or not at all like the SETUP URL.
    pub url: String,
    /// Sequence number of the first packet.
    pub seq: Option<u16>,
    /// RTP time of the first packet; `None` also for the `-1` that some servers send.
    pub rtptime: Option<u32>,
}

impl RtpInfo {
    /// All streams of a header value.
    pub fn parse_all(value: &str) -> Vec<Self> {
        value
            .split(',')
            .filter_map(|stream| {
                let mut info = Self { url: String::new(), seq: None, rtptime: None };
                for (name, value) in stream.split(';').filter_map(|part| part.split_once('=')) {
                    match name.trim().to_ascii_lowercase().as_str() {
                        "url" => info.url = value.trim().to_owned(),
                        "seq" => info.seq = value.trim().parse().ok(),
                        "rtptime" => info.rtptime = value.trim().parse().ok(),
                        _ => {}
                    }
                }
                (!info.url.is_empty()).then_some(info)
            })
            .collect()
    }
}

impl fmt::Display for RtpInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "url={}", self.url)?;
        if let Some(seq) = self.seq {
            write!(f, ";seq={seq}")?;
        }
        if let Some(rtptime) = self.rtptime {
            write!(f, ";rtptime={rtptime}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what real servers put into these headers is understood.
    #[test]
    fn headers_of_real_servers() {
        let transport = Transport::parse("RTP/AVP/TCP;unicast;interleaved=0-1;ssrc=30A98EE7");
        assert_eq!(transport, Transport { ssrc: Some(0x30A9_8EE7), ..Transport::interleaved(0) });
        let udp = Transport::parse(
            "RTP/AVP;unicast;mode=PLAY;source=127.0.0.1;client_port=18714-18715;server_port=40004-40005;ssrc=0",
        );
        let (client_port, server_port) = (Some((18_714, 18_715)), Some((40_004, 40_005)));
        assert_eq!(udp, Transport { udp: true, client_port, server_port, ..Transport::default() });
        assert!(!Transport::parse("RTP/AVP;multicast;port=5000-5001;ttl=1").udp, "to many");
        assert_eq!(Transport::parse("RTP/SAVP;unicast;client_port=0").client_port, None);
        let far = "RTP/AVP/TCP;unicast;destination=192.168.1.210;source=192.168.1.110;interleaved=2-3";
        assert_eq!(Transport::parse(far).interleaved, Some((2, 3)));
        assert_eq!(Transport::parse("RTP/AVP/TCP;interleaved=6").interleaved, Some((6, 7)));
        assert_eq!(Transport::parse("RTP/AVP/TCP;interleaved=300-301").interleaved, None);
        assert_eq!(Transport::parse_all("RTP/AVP;client_port=1-2, RTP/AVP/TCP;interleaved=0-1").len(), 2);

        let session = SessionId::parse("9a90de54; timeout=120").unwrap();
        assert_eq!(session, SessionId { id: "9a90de54".into(), timeout_s: 120 });
        assert_eq!(SessionId::parse("231970").unwrap().timeout_s, 60);
        assert_eq!(SessionId::parse(";timeout=3"), None);

        let info =
            RtpInfo::parse_all("url=trackID=1;seq=1;rtptime=-1,url=rtsp://h/a:b/trackID=2;seq=7;rtptime=9;");
        assert_eq!(info[0], RtpInfo { url: "trackID=1".into(), seq: Some(1), rtptime: None });
        assert_eq!(info[1], RtpInfo { url: "rtsp://h/a:b/trackID=2".into(), seq: Some(7), rtptime: Some(9) });
    }

    /// Goal: what we write we read.
    #[test]
    fn round_trip() {
        let transport = Transport { ssrc: Some(0xAB), ..Transport::interleaved(4) };
        assert_eq!(transport.to_string(), "RTP/AVP/TCP;unicast;interleaved=4-5;ssrc=000000AB");
        assert_eq!(Transport::parse(&transport.to_string()), transport);
        let udp = Transport { udp: true, client_port: Some((6, 7)), ..Transport::default() };
        assert_eq!(Transport::parse(&udp.to_string()), udp);
        let session = SessionId { id: "x1".into(), timeout_s: 30 };
        assert_eq!(SessionId::parse(&session.to_string()), Some(session));
        let info = RtpInfo { url: "rtsp://h/x/track1".into(), seq: Some(2), rtptime: Some(3) };
        assert_eq!(RtpInfo::parse_all(&format!("{info},{info}")), [info.clone(), info]);
    }
}
