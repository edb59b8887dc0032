//! The description of the stream that DESCRIBE is answered with (RFC 8866, RFC 6184 §8.2).

use crate::{
    camera::Camera,
    source::{AUDIO_PAYLOAD_TYPE, Track, VIDEO_CLOCK_HZ, VIDEO_PAYLOAD_TYPE},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use std::fmt::Write;

/// The part of a URL that names a track, below the stream's.
pub(super) const fn control(track: Track) -> &'static str {
    match track {
        Track::Video => "video",
        Track::Audio => "audio",
    }
}

/// The description; `host` is the camera's address, which RFC 8866 wants to see.
pub(super) fn describe(camera: &Camera, host: std::net::IpAddr) -> String {
    let settings = camera.source.settings();
    let sets = camera.source.parameter_sets();
    let family = if host.is_ipv4() { "IP4" } else { "IP6" };
    let session = camera.source.ssrc(Track::Video);
    let sps = sets.sps();
    let profile = sps.get(1..4).unwrap_or_default().iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02X}").expect("writing to a string");
        hex
    });
    let sprop: Vec<String> = std::iter::once(sps).chain(sets.pps()).map(|set| STANDARD.encode(set)).collect();
    let mut sdp = format!(
        "v=0\r\n\
         o=- {session} 1 IN {family} {host}\r\n\
         s={name}\r\n\
         c=IN {family} {host}\r\n\
         t=0 0\r\n\
         a=control:*\r\n\
         a=range:npt=now-\r\n\
         m=video 0 RTP/AVP {VIDEO_PAYLOAD_TYPE}\r\n\
         b=AS:{kbps}\r\n\
         a=rtpmap:{VIDEO_PAYLOAD_TYPE} H264/{VIDEO_CLOCK_HZ}\r\n\
         a=fmtp:{VIDEO_PAYLOAD_TYPE} packetization-mode=1;profile-level-id={profile};\
         sprop-parameter-sets={sprop}\r\n\
         a=framerate:{fps}\r\n\
         a=control:{control}\r\n",
        name = camera.name,
        kbps = settings.bitrate_bps.div_ceil(1000),
        sprop = sprop.join(","),
        fps = settings.fps,
        control = control(Track::Video),
    );
    if settings.audio {
        sdp += &format!(
            "m=audio 0 RTP/AVP {AUDIO_PAYLOAD_TYPE}\r\n\
             b=AS:64\r\n\
             a=rtpmap:{AUDIO_PAYLOAD_TYPE} PCMU/8000\r\n\
             a=ptime:40\r\n\
             a=control:{}\r\n",
            control(Track::Audio),
        );
    }
    sdp
}
