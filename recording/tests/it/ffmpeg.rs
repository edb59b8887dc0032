//! ffmpeg as the judge: what decodes, and to which pictures.

use std::path::Path;
use std::process::Command;

/// Runs a program that must succeed and report nothing.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; install it with: apt-get install ffmpeg"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.trim().is_empty(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Hashes of all pictures as they are shown.
pub fn pictures(file: &Path) -> Vec<String> {
    let path = file.to_str().unwrap();
    // Passed through: a picture that lasts long is not to be doubled.
    let decoded = run(
        "ffmpeg",
        &["-v", "warning", "-i", path, "-map", "0:v", "-fps_mode", "passthrough", "-f", "framemd5", "-"],
    );
    let frames = decoded.lines().filter(|line| !line.starts_with('#'));
    frames.map(|line| line.rsplit(',').next().unwrap().trim().to_owned()).collect()
}

/// Times at which pictures are shown, in seconds.
pub fn times(file: &Path) -> Vec<f64> {
    let arguments =
        ["-v", "warning", "-select_streams", "v", "-show_entries", "frame=best_effort_timestamp_time"];
    let printed = run("ffprobe", &[&arguments[..], &["-of", "csv=p=0", file.to_str().unwrap()]].concat());
    printed.lines().filter_map(|line| line.trim_end_matches(',').parse().ok()).collect()
}

/// Codec names and durations in seconds of all streams.
pub fn streams(file: &Path) -> Vec<(String, f64)> {
    let arguments = ["-v", "warning", "-show_entries", "stream=codec_name,duration", "-of", "csv=p=0"];
    let printed = run("ffprobe", &[&arguments[..], &[file.to_str().unwrap()]].concat());
    let stream = |line: &str| {
        let (codec, duration) = line.split_once(',')?;
        Some((codec.to_owned(), duration.trim_end_matches(',').parse().ok()?))
    };
    printed.lines().filter_map(stream).collect()
}

/// Decodes everything, sound too, without a word of complaint.
pub fn decodes(file: &Path) {
    // Without frames repeated or dropped to make their rate constant: the recorded times are what they are.
    let path = file.to_str().unwrap();
    let timing = ["-fps_mode", "passthrough", "-enc_time_base", "-1"];
    run("ffmpeg", &[&["-v", "warning", "-xerror", "-i", path][..], &timing, &["-f", "null", "-"]].concat());
}
