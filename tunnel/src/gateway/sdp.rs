//! A camera's description as viewers get it: its control URLs lead here, and it tells nothing of the camera's network.
//!
//! Pure. Line by line, as descriptions are read: what is not understood is passed on.
//!
//! Invariant: no address of the site is in it, and each control URL is one that [`Target::parse`] takes.

use super::url::Target;
use std::fmt::Write as _;

/// Attributes that name addresses or ports of the camera.
const OF_ITS_NETWORK: [&str; 4] = ["control", "source-filter", "rtcp", "candidate"];

/// Rewrites a description. `tracks` says of each `m=` section which track it is here; `None`: it could not be set up,
/// and is left out.
pub(super) fn rewrite(sdp: &[u8], tracks: &[Option<usize>], target: &Target) -> String {
    let text = String::from_utf8_lossy(sdp);
    let mut out = String::with_capacity(text.len() + 256);
    // What the section at hand ends with; none: it is left out.
    let mut control = Some(target.url());
    let mut section = 0;
    for line in text.lines().map(str::trim).filter(|line| line.as_bytes().get(1) == Some(&b'=')) {
        if let Some(media) = line.strip_prefix("m=") {
            end_section(&mut out, control.take());
            control = tracks.get(section).copied().flatten().map(|track| target.track_url(track));
            section += 1;
            if control.is_some() {
                let _ = write!(out, "m={}\r\n", without_port(media));
            }
        } else if control.is_some() {
            put_line(&mut out, line);
        }
    }
    end_section(&mut out, control);
    out
}

fn end_section(out: &mut String, control: Option<String>) {
    if let Some(url) = control {
        let _ = write!(out, "a=control:{url}\r\n");
    }
}

fn put_line(out: &mut String, line: &str) {
    if let Some(attribute) = line.strip_prefix("a=") {
        let name = attribute.split(':').next().unwrap_or_default().trim();
        if !OF_ITS_NETWORK.contains(&name) {
            let _ = write!(out, "{line}\r\n");
        }
    } else if line.starts_with("c=") {
        out.push_str("c=IN IP4 0.0.0.0\r\n");
    } else if let Some(origin) = line.strip_prefix("o=") {
        // User name, session number and version are kept; then network type, address type, address.
        let known: Vec<&str> = origin.split_ascii_whitespace().take(3).collect();
        let _ = write!(out, "o={} IN IP4 0.0.0.0\r\n", known.join(" "));
    } else if !line.starts_with("k=") {
        let _ = write!(out, "{line}\r\n");
    }
}

/// `video 5000/2 RTP/AVP 96`: SETUP says the port.
fn without_port(media: &str) -> String {
    let mut words = media.splitn(3, ' ');
    match (words.next(), words.next(), words.next()) {
        (Some(kind), Some(_port), Some(rest)) => format!("{kind} 0 {rest}"),
        _ => media.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use homing_media::sdp::Presentation;

    fn target() -> Target {
        Target::parse("rtsp://sts:8554/00408C702009/live?camera=1").unwrap()
    }

    /// Goal: all controls lead here, the camera's addresses are gone, a refused track is left out, the rest is untouched.
    #[test]
    fn a_description_leads_here() {
        let sdp = "v=0\r\no=- 7 1 IN IP4 192.168.1.90\r\ns=Door\r\nc=IN IP4 192.168.1.90\r\nt=0 0\r\n\
                   a=control:rtsp://192.168.1.90/live\r\na=range:npt=now-\r\n\
                   m=video 5000 RTP/AVP 96\r\nc=IN IP4 192.168.1.90\r\na=rtpmap:96 H264/90000\r\n\
                   a=fmtp:96 packetization-mode=1\r\na=control:rtsp://192.168.1.90/live/video\r\n\
                   m=audio 0 RTP/AVP 0\r\na=control:audio\r\n\
                   m=application 0 RTP/AVP 107\r\na=rtpmap:107 vnd.onvif.metadata/90000\r\na=control:meta\r\n\r\n";
        let written = rewrite(sdp.as_bytes(), &[Some(0), None, Some(1)], &target());
        assert_eq!(
            written,
            "v=0\r\no=- 7 1 IN IP4 0.0.0.0\r\ns=Door\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\na=range:npt=now-\r\n\
             a=control:rtsp://sts:8554/00408C702009/live?camera=1\r\n\
             m=video 0 RTP/AVP 96\r\nc=IN IP4 0.0.0.0\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\n\
             a=control:rtsp://sts:8554/00408C702009/live/trackID=0?camera=1\r\n\
             m=application 0 RTP/AVP 107\r\na=rtpmap:107 vnd.onvif.metadata/90000\r\n\
             a=control:rtsp://sts:8554/00408C702009/live/trackID=1?camera=1\r\n"
        );
    }

    /// Goal: what real cameras write, rewritten, is still read, with as many tracks, all of them here.
    #[test]
    fn descriptions_of_real_cameras() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../media/testdata/rtsp");
        let mut seen = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let raw = std::fs::read(&path).unwrap();
            let Some(at) = raw.windows(4).position(|four| four == b"v=0\r" || four == b"v=0\n") else {
                continue;
            };
            let before = Presentation::parse(&raw[at..], "rtsp://camera/").unwrap();
            let tracks: Vec<Option<usize>> = (0..before.tracks.len()).map(Some).collect();
            let written = rewrite(&raw[at..], &tracks, &target());
            let after = Presentation::parse(written.as_bytes(), "rtsp://elsewhere/").unwrap();
            assert_eq!(after.control, target().url(), "{}", path.display());
            assert_eq!(after.tracks.len(), before.tracks.len(), "{}", path.display());
            for (number, (before, after)) in before.tracks.iter().zip(&after.tracks).enumerate() {
                assert_eq!(after.control.as_deref(), Some(target().track_url(number).as_str()));
                assert_eq!((&after.codec, after.clock_rate), (&before.codec, before.clock_rate));
            }
            seen += 1;
        }
        assert!(seen >= 5, "only {seen} descriptions");
    }
}
