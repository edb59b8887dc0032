//! A camera that speaks RTSP and sends video as RTP: as many bytes, in as many packets, as the one that only sends.

use crate::devices::{FPS, FRAME_BYTES, PACKET_BYTES, Sending};
use bytes::BytesMut;
use homing_media::{
    rtp::{self, SenderReport},
    rtsp::{Decoder, Interleaved, Message, Method, Response},
};
use std::{io, sync::atomic::Ordering, time::Duration};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const SDP: &str = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=bench\r\nt=0 0\r\na=control:*\r\n\
                   m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:video\r\n";
const SSRC: u32 = 7;
/// Pictures from one key picture to the next: 2 s.
const GROUP: u64 = 2 * FPS;
/// Pictures from one sender report to the next, also while nothing else is sent: who is silent counts as gone.
const REPORT: u64 = 5 * FPS;

/// Answers requests up to and with PLAY.
pub async fn answer_until_play(on: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
    loop {
        while let Some(message) = decoder.decode(&mut input).map_err(io::Error::other)? {
            let Message::Request(request) = message else { continue };
            let answer = Response::new(200, request.headers.cseq()).header("Session", "1;timeout=3600");
            let answer = match request.method {
                Method::Describe => answer.body("application/sdp", SDP),
                Method::Setup => {
                    answer.header("Transport", request.headers.get("Transport").unwrap_or_default())
                }
                _ => answer,
            };
            let mut out = BytesMut::new();
            answer.encode(&mut out);
            on.write_all(&out).await?;
            if request.method == Method::Play {
                return Ok(());
            }
        }
        if on.read_buf(&mut input).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Sends frames, packet by packet, in bursts, while `sending`; ends with the connection.
pub async fn send(mut to: impl AsyncWrite + Unpin, sending: Sending) {
    let mut frames = tokio::time::interval(Duration::from_micros(1_000_000 / FPS));
    let mut sequence = 0;
    for number in 0.. {
        frames.tick().await;
        let time = number as u32 * (90_000 / FPS as u32);
        if number % REPORT == 0 {
            let report = SenderReport { ssrc: SSRC, ntp: 1, rtp: time };
            if put(&mut to, 1, report.encode(0, 0, "bench").to_vec()).await.is_err() {
                return;
            }
        }
        let mut left = if sending.load(Ordering::Relaxed) { FRAME_BYTES } else { 0 };
        while left > 0 {
            let length = left.min(PACKET_BYTES);
            left -= length;
            let mut packet = rtp::header(left == 0, 96, sequence, time, SSRC).to_vec();
            sequence = sequence.wrapping_add(1);
            packet.resize(length.max(20) - 4, 0x24);
            packet[12] = if number % GROUP == 0 { 0x65 } else { 0x41 };
            if put(&mut to, 0, packet).await.is_err() {
                return;
            }
        }
        if to.flush().await.is_err() {
            return;
        }
    }
}

async fn put(to: &mut (impl AsyncWrite + Unpin), channel: u8, payload: Vec<u8>) -> io::Result<()> {
    let mut framed = BytesMut::with_capacity(payload.len() + 4);
    let is_encoded = Interleaved { channel, payload: payload.into() }.encode(&mut framed);
    debug_assert!(is_encoded, "packets are far shorter than 64 kB");
    to.write_all(&framed).await
}
