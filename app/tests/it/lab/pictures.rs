//! What a recording holds, read by ffmpeg: every picture's slices and its time.
//!
//! Nothing of the project reads here, so that a fault in its own MP4 code shows.

use super::camera::Sent;
use crate::harness::output;
use sha2::{Digest, Sha256};
use std::{path::Path, process::Command};

/// One picture of a recording.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// SHA-256 of its slices, first 16 hex digits.
    pub sha256: String,
    /// Presentation time in seconds, from the file's own clock.
    pub time: f64,
}

/// The pictures of a recording's first video track, in order.
///
/// # Panics
/// When ffmpeg finds the least error in the file while decoding all of it.
pub fn pictures(file: &Path) -> Vec<Picture> {
    let file = file.to_str().expect("a plain path");
    // Every stream decoded to its end; any complaint is an error.
    let mut decode = Command::new("ffmpeg");
    decode.args(["-v", "error", "-xerror", "-err_detect", "explode", "-i", file, "-f", "null", "-"]);
    let decoded = decode.output().unwrap();
    let complaints = String::from_utf8_lossy(&decoded.stderr).into_owned();
    assert!(decoded.status.success() && complaints.is_empty(), "ffmpeg on {file}:\n{complaints}");

    let annex_b = output(Command::new("ffmpeg").args([
        "-v",
        "error",
        "-i",
        file,
        "-map",
        "0:v:0",
        "-c",
        "copy",
        "-bsf:v",
        "h264_mp4toannexb",
        "-f",
        "h264",
        "-",
    ]));
    let times = output(Command::new("ffprobe").args([
        "-v",
        "error",
        "-select_streams",
        "v:0",
        "-show_entries",
        "packet=pts_time",
        "-of",
        "csv=p=0",
        file,
    ]));
    let times = String::from_utf8(times).unwrap();
    let times: Vec<f64> =
        times.split_whitespace().map(|time| time.trim_end_matches(',').parse().unwrap()).collect();
    let slices = slices(&annex_b);
    assert_eq!(slices.len(), times.len(), "{file}: one slice a picture");
    slices.into_iter().zip(times).map(|(sha256, time)| Picture { sha256, time }).collect()
}

/// Hashes of the VCL NAL units of an Annex B stream.
pub fn slices(stream: &[u8]) -> Vec<String> {
    let mut hashes = Vec::new();
    let mut rest = stream;
    while let Some(start) = rest.windows(3).position(|three| three == [0, 0, 1]) {
        rest = &rest[start + 3..];
        let end = rest.windows(3).position(|three| three == [0, 0, 1]).unwrap_or(rest.len());
        let trailing_zeros = rest[..end].iter().rev().take_while(|byte| **byte == 0).count();
        let nal = &rest[..end - trailing_zeros];
        if nal.first().is_some_and(|head| [1, 5].contains(&(head & 0x1F))) {
            let hash = Sha256::digest(nal);
            hashes.push(hash[..8].iter().map(|byte| format!("{byte:02x}")).collect());
        }
    }
    hashes
}

/// Holds a recording against what the camera says it sent: every picture, in order, unchanged, none
/// missing between the first and the last, and the same time between any two.
///
/// `tolerance_s` is how far a picture's time may be from the camera's own clock, which a recorder
/// slews towards its own. Gives the place of the first one in `sent`.
#[track_caller]
pub fn assert_as_sent(recorded: &[Picture], sent: &[Sent], tolerance_s: f64) -> usize {
    let first = recorded.first().expect("the recording holds no picture");
    let start = sent.iter().position(|sent| sent.sha256 == first.sha256);
    let start = start.expect("the recording's first picture was never sent");
    for (index, picture) in recorded.iter().enumerate() {
        let Some(original) = sent.get(start + index) else {
            panic!("picture {index} was recorded and never sent");
        };
        assert_eq!(
            picture.sha256,
            original.sha256,
            "picture {index} should be the camera's frame {}; it is {:?}",
            original.frame,
            sent.iter().find(|sent| sent.sha256 == picture.sha256),
        );
        let recorded_s = picture.time - first.time;
        let sent_s = f64::from(original.rtp.wrapping_sub(sent[start].rtp)) / 90_000.0;
        assert!(
            (recorded_s - sent_s).abs() <= tolerance_s,
            "picture {index} is at {recorded_s:.4} s and was sent at {sent_s:.4} s"
        );
    }
    start
}

/// Holds slices that somebody has seen against what the camera says it sent: none missing between the first and the last.
#[track_caller]
pub fn assert_none_missing(seen: &[String], sent: &[Sent]) {
    let first = seen.first().expect("nothing was seen");
    let start = sent.iter().position(|sent| sent.sha256 == *first).expect("the first one was never sent");
    let originals: Vec<&String> = sent[start..].iter().take(seen.len()).map(|sent| &sent.sha256).collect();
    assert_eq!(seen.iter().collect::<Vec<_>>(), originals);
}
