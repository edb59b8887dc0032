//! What a viewer's URL means: `rtsp://host:8554/SERIAL[/path…][?query][/trackID=N]`.
//!
//! Pure. URLs are text here as everywhere in RTSP: cameras have some that no URL parser accepts, and what follows the
//! serial number is the camera's own and is passed on as it stands.
//!
//! Invariant: what is written is what the client wrote, without user and password: so a client is led back to us by the
//! same way that it came, through whatever NAT or name.

use homing_protocol::SerialNumber;

/// How a track is called in URLs that we write.
const TRACK: &str = "/trackID=";

/// No URL is longer; the decoder's limit on headers is not far above.
const LENGTH_MAX: usize = 2048;

/// A viewer's URL, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub serial: SerialNumber,
    /// `rtsp://host:8554/SERIAL`, as the client wrote it.
    prefix: String,
    /// What is the camera's: `/axis-media/media.amp?camera=1`; empty for whatever the camera names first.
    pub stream: String,
    /// The track of a SETUP.
    pub track: Option<usize>,
}

impl Target {
    /// `None`: it does not begin with a serial number.
    pub fn parse(url: &str) -> Option<Self> {
        if url.len() > LENGTH_MAX || !fits_a_line(url) {
            return None;
        }
        let (origin, path) = match url.split_once("://") {
            Some((scheme, rest)) => {
                let (authority, path) = rest.split_at(rest.find('/')?);
                let host = authority.rsplit('@').next().unwrap_or_default();
                (format!("{scheme}://{host}"), path)
            }
            None => (String::new(), url),
        };
        let path = path.trim_start_matches('/');
        let (device, rest) = path.split_at(path.find(['/', '?']).unwrap_or(path.len()));
        let serial: SerialNumber = device.parse().ok()?;
        let (stream, track) = split_track(rest);
        let stream = if stream == "/" { "" } else { &stream };
        Some(Self { serial, prefix: format!("{origin}/{device}"), stream: stream.to_owned(), track })
    }

    /// The stream's URL, for PLAY and TEARDOWN.
    pub fn url(&self) -> String {
        format!("{}{}", self.prefix, self.stream)
    }

    /// A track's URL, for SETUP. The track goes before the query, as cameras have it: what clients append to or cut
    /// off a URL is at its end.
    pub fn track_url(&self, track: usize) -> String {
        let (path, query) = self.stream.split_at(self.stream.find('?').unwrap_or(self.stream.len()));
        format!("{}{}{TRACK}{track}{query}", self.prefix, path.trim_end_matches('/'))
    }

    /// The path without its query, in which people put passwords: for logs.
    pub fn shown(&self) -> &str {
        shown(&self.stream)
    }

    /// Whether a request for `other` is about this stream. Clients differ in what they write after it.
    pub fn is_same_stream(&self, other: &Self) -> bool {
        let path = |target: &Self| shown(&target.stream).trim_end_matches('/').to_owned();
        self.serial == other.serial && path(self) == path(other)
    }
}

/// A camera's path without its query.
pub(super) fn shown(stream: &str) -> &str {
    stream.split('?').next().unwrap_or_default()
}

/// The camera's path and query, and our track. We write it at the end of the path; a client that appends it to a base
/// URL writes it at the end of all.
fn split_track(rest: &str) -> (String, Option<usize>) {
    let number = |text: &str| {
        let (before, number) = text.rsplit_once(TRACK)?;
        Some((before.to_owned(), number.trim_end_matches('/').parse().ok()?))
    };
    if let Some((before, track)) = number(rest) {
        return (before, Some(track));
    }
    let (path, query) = rest.split_at(rest.find('?').unwrap_or(rest.len()));
    match number(path) {
        Some((before, track)) => (format!("{before}{query}"), Some(track)),
        None => (rest.to_owned(), None),
    }
}

/// The URL that a camera named itself, without user and password: these go into a header. `None` where it is none, or a
/// line break in it would begin another header.
pub(super) fn bare(told: &str) -> Option<String> {
    let (scheme, rest) = told.trim().split_once("://")?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next()?;
    (scheme.eq_ignore_ascii_case("rtsp") && fits_a_line(rest)).then(|| format!("rtsp://{host}{path}"))
}

/// A viewer's path, as a URL at the device.
pub(super) fn at_device(serial: SerialNumber, stream: &str) -> String {
    format!("rtsp://{}{stream}", serial.host())
}

fn fits_a_line(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() || c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: every form in which players write these URLs is understood, and what is the camera's is left alone.
    #[test]
    fn urls_of_players() {
        let table = [
            ("rtsp://sts:8554/00408C702009", "rtsp://sts:8554/00408C702009", "", None),
            ("rtsp://sts:8554/00408c702009/", "rtsp://sts:8554/00408c702009", "", None),
            (
                "RTSPS://u:p@[::1]/00408C702009/a/b.amp?x=1&y=2",
                "RTSPS://[::1]/00408C702009",
                "/a/b.amp?x=1&y=2",
                None,
            ),
            ("rtsp://h/00408C702009/a/trackID=1?x=1", "rtsp://h/00408C702009", "/a?x=1", Some(1)),
            ("rtsp://h/00408C702009/a?x=1/trackID=0", "rtsp://h/00408C702009", "/a?x=1", Some(0)),
            ("rtsp://h/00408C702009/trackID=2/", "rtsp://h/00408C702009", "", Some(2)),
            ("rtsp://h/00408C702009?camera=2", "rtsp://h/00408C702009", "?camera=2", None),
            ("rtsp://h/00408C702009/cam/trackID=x", "rtsp://h/00408C702009", "/cam/trackID=x", None),
            ("/00408C702009/a", "/00408C702009", "/a", None),
        ];
        for (url, prefix, stream, track) in table {
            let target = Target::parse(url).unwrap_or_else(|| panic!("{url}"));
            assert_eq!(
                (target.prefix.as_str(), target.stream.as_str(), target.track),
                (prefix, stream, track),
                "{url}"
            );
        }
        for none in [
            "*",
            "rtsp://h",
            "rtsp://h/",
            "rtsp://h/cam/00408C702009",
            "rtsp://h/00408C70200",
            &"a".repeat(3000),
        ] {
            assert_eq!(Target::parse(none), None, "{none}");
        }
    }

    /// Goal: what we write into an SDP leads back to the same track.
    #[test]
    fn tracks_lead_back() {
        for url in ["rtsp://h/00408C702009", "rtsp://h/00408C702009/a/", "rtsp://h/00408C702009/a?b=/c"] {
            let target = Target::parse(url).unwrap();
            let track = Target::parse(&target.track_url(3)).unwrap();
            assert_eq!(track.track, Some(3), "{url}");
            assert!(track.is_same_stream(&target), "{url}: {track:?}");
            assert!(target.track_url(3).starts_with(url.split('?').next().unwrap().trim_end_matches('/')));
        }
        let other = Target::parse("rtsp://h/00408C70200A").unwrap();
        assert!(!other.is_same_stream(&Target::parse("rtsp://h/00408C702009").unwrap()));
        assert_eq!(Target::parse("rtsp://h/00408C702009/a?pwd=x").unwrap().shown(), "/a");
    }

    /// Goal: the camera gets its own URL, never a password or a second line.
    #[test]
    fn what_the_camera_is_asked_for() {
        assert_eq!(bare("rtsp://root:p@ss@10.0.0.1:554/live?a=b").unwrap(), "rtsp://10.0.0.1:554/live?a=b");
        assert_eq!(bare("rtsp://cam").unwrap(), "rtsp://cam");
        for bad in ["http://cam/live", "/live", "rtsp://cam/live RTSP/1.0\r\nX: y"] {
            assert_eq!(bare(bad), None, "{bad}");
        }
        assert_eq!(Target::parse("rtsp://h/00408C702009/a b\r\nX: y"), None);
        let serial: SerialNumber = "00408C702009".parse().unwrap();
        assert_eq!(at_device(serial, "/live?a=b"), "rtsp://00408c702009/live?a=b");
    }
}
