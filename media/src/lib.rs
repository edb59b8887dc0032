//! Video and audio as bytes: RTSP messages, SDP, RTP, H.264, AAC, G.711, FLAC, MP4, media time.
//!
//! Pure: no sockets, no files, no tokio, no clock; everything takes bytes and gives values, or the other
//! way round. The recording server and the simulated camera put it to work.

pub mod aac;
pub mod flac;
pub mod g711;
pub mod h264;
pub mod join;
pub mod mp4;
pub mod rtp;
pub mod rtsp;
pub mod sdp;
pub mod time;
