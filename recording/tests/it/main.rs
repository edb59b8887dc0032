//! The recording server against cameras: a scripted one that says exactly what it sent, and GStreamer's RTSP
//! server, which is not ours. What comes out is judged by ffmpeg.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod child;
mod crash;
mod faults;
mod ffmpeg;
mod live;
mod onvif;
mod peers;
mod playback;
mod recorder;
mod source;
