//! What the recording server wants of a camera's RTSP: the first video track that can be recorded, and such an audio
//! track. The session itself is `base/src/rtsp.rs`.

use homing_base::rtsp::{Session, SessionError, Stream};
use homing_media::sdp::{Codec, Presentation, Track, TrackKind};
use homing_protocol::api::ProblemDetail;
use homing_protocol::secret::Credentials;

/// Why nothing plays.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("the camera offers no video that can be recorded: {0}")]
    NoVideo(String),
}

impl OpenError {
    pub fn problem(&self) -> ProblemDetail {
        match self {
            Self::Session(error) => error.problem(),
            Self::NoVideo(_) => {
                ProblemDetail { code: "no-video".to_owned(), message: self.to_string(), step: None }
            }
        }
    }
}

/// A track with the channels of its packets.
#[derive(Clone, Debug)]
pub(crate) struct SetUpTrack {
    pub track: Track,
    pub rtp_channel: u8,
    pub rtcp_channel: u8,
}

/// Sets the stream of that URL up and starts it: the video track first, then the audio track if there is one that can
/// be recorded.
pub(crate) async fn open(
    stream: Box<dyn Stream>,
    url: &str,
    credentials: Credentials,
) -> Result<(Session, Vec<SetUpTrack>), OpenError> {
    let (mut session, description) = Session::describe(stream, url, credentials).await?;
    let mut tracks: Vec<SetUpTrack> = Vec::new();
    for track in choose(&description.presentation)? {
        match session.set_up(track.control.as_deref(), 2 * tracks.len() as u8).await {
            Ok(channels) => tracks.push(SetUpTrack {
                track: track.clone(),
                rtp_channel: channels.rtp,
                rtcp_channel: channels.rtcp,
            }),
            // Sound is not worth losing the picture for.
            Err(SessionError::Status { status, .. }) if track.kind == TrackKind::Audio => {
                tracing::debug!(status, "the camera does not set its audio up");
            }
            Err(error) => return Err(error.into()),
        }
    }
    session.play().await?;
    Ok((session, tracks))
}

/// The tracks to set up: the first video track that can be recorded, then such an audio track.
fn choose(presentation: &Presentation) -> Result<Vec<&Track>, OpenError> {
    let usable = |track: &&Track| !matches!(track.codec, Codec::Unsupported(_));
    let of_kind = |kind: TrackKind| presentation.tracks.iter().filter(move |track| track.kind == kind);
    let Some(video) = of_kind(TrackKind::Video).find(usable) else {
        let reason = of_kind(TrackKind::Video).find_map(|track| match &track.codec {
            Codec::Unsupported(reason) => Some(reason.clone()),
            _ => None,
        });
        return Err(OpenError::NoVideo(reason.unwrap_or_else(|| "no video stream is described".into())));
    };
    Ok([Some(video), of_kind(TrackKind::Audio).find(usable)].into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the first track that can be recorded of each kind, and words where there is none.
    #[test]
    fn tracks_that_can_be_recorded() {
        let parse = |sdp: &str| Presentation::parse(sdp.as_bytes(), "rtsp://camera/").unwrap();
        let offered = parse(
            "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H265/90000\r\nm=video 0 RTP/AVP 97\r\na=rtpmap:97 H264/90000\r\n\
             m=audio 0 RTP/AVP 9\r\nm=audio 0 RTP/AVP 8\r\n",
        );
        let chosen: Vec<u8> = choose(&offered).unwrap().iter().map(|track| track.payload_type).collect();
        assert_eq!(chosen, [97, 8]);
        let error = choose(&parse("m=video 0 RTP/AVP 96\r\na=rtpmap:96 H265/90000\r\n")).unwrap_err();
        assert!(error.to_string().contains("set the camera to H.264"), "{error}");
        assert_eq!(error.problem().code, "no-video");
    }
}
