//! Files written here, judged by ffmpeg: every frame comes out as it went in, and no error is reported.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use super::*;
use crate::g711::Law;
use crate::time::{TICKS_PER_SECOND, Ticks};

const START: Ticks = 1_700_000_000 * TICKS_PER_SECOND + 12_345;

/// A folder that goes away with its test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("homing-media-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; install it with: apt-get install ffmpeg"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Hashes of all decoded frames of a stream, without times.
fn hashes(file: &Path, stream: &str) -> Vec<String> {
    let decoded = run(
        "ffmpeg",
        &["-v", "warning", "-i", file.to_str().unwrap(), "-map", stream, "-f", "framemd5", "-"],
    );
    let frames = decoded.lines().filter(|line| !line.starts_with('#'));
    frames.map(|line| line.rsplit(',').next().unwrap().trim().to_owned()).collect()
}

/// Presentation times of a stream's packets in seconds, as shown (after edit lists), sorted.
fn times(file: &Path, stream: &str) -> Vec<f64> {
    let arguments =
        ["-v", "warning", "-select_streams", stream, "-show_entries", "frame=best_effort_timestamp_time"];
    let printed = run("ffprobe", &[&arguments[..], &["-of", "csv=p=0", file.to_str().unwrap()]].concat());
    printed.lines().filter_map(|line| line.trim_end_matches(',').parse().ok()).collect()
}

struct Media {
    video: SampleEntry,
    audio: SampleEntry,
    /// Description, decode time, bytes.
    samples: [Vec<(Sample, i64, Vec<u8>)>; 2],
    file: PathBuf,
}

/// Ten seconds of moving picture and sound, key frame every second, B frames if asked for, made by ffmpeg.
fn media(folder: &Folder, b_frames: u32) -> Media {
    let file = folder.0.join(format!("source{b_frames}.mp4"));
    let path = file.to_str().unwrap();
    let x264 = format!("bframes={b_frames}:keyint=10:min-keyint=10:scenecut=0");
    #[rustfmt::skip]
    run("ffmpeg", &[
        "-v", "error", "-f", "lavfi", "-i", "testsrc=size=320x240:rate=10:duration=10",
        "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=16000:duration=10",
        "-c:v", "libx264", "-pix_fmt", "yuv420p", "-x264-params", &x264,
        "-c:a", "aac", "-video_track_timescale", "90000", "-use_editlist", "0", "-y", path,
    ]);
    let bytes = std::fs::read(&file).unwrap();
    let content = |kind: &[u8]| {
        let at = bytes.windows(4).position(|window| window == kind).unwrap();
        let size = u32::from_be_bytes(bytes[at - 4..at].try_into().unwrap()) as usize;
        &bytes[at + 4..at - 4 + size]
    };
    let avcc = content(b"avcC");
    let sps_len = usize::from(u16::from_be_bytes([avcc[6], avcc[7]]));
    let sps = &avcc[8..8 + sps_len];
    let pps =
        &avcc[8 + sps_len + 3..][..usize::from(u16::from_be_bytes([avcc[9 + sps_len], avcc[10 + sps_len]]))];
    let sets = ParameterSets::new(sps, &[pps]).unwrap();
    assert_eq!(sets.avcc(), avcc, "our avcC and ffmpeg's");
    // 16 kHz mono AAC-LC, as ffmpeg encodes it.
    let aac = AacFormat::new(&[0x14, 0x08, 0x56, 0xe5, 0x00]).unwrap();

    let read = |stream: &str| {
        let printed = run(
            "ffprobe",
            &["-v", "error", "-select_streams", stream, "-show_packets", "-of", "compact=p=0", path],
        );
        let mut samples: Vec<(Sample, i64, Vec<u8>)> = Vec::new();
        for line in printed.lines() {
            let field = |name: &str| {
                let value =
                    line.split('|').find_map(|field| field.strip_prefix(name)?.strip_prefix('=')).unwrap();
                value.to_owned()
            };
            let number = |name: &str| field(name).parse::<i64>().unwrap();
            let (at, size) = (number("pos") as usize, number("size") as usize);
            let sample = Sample {
                size: size as u32,
                duration: number("duration") as u32,
                offset: (number("pts") - number("dts")) as i32,
                is_key: field("flags").starts_with('K'),
            };
            samples.push((sample, number("dts"), bytes[at..at + size].to_vec()));
        }
        let first = samples[0].1;
        samples.iter_mut().for_each(|sample| sample.1 -= first);
        samples
    };
    Media {
        video: SampleEntry::Avc(Arc::new(sets)),
        audio: SampleEntry::Aac(aac),
        samples: [read("v"), read("a")],
        file,
    }
}

/// A recording file: a fragment per second.
fn recording(media: &Media) -> Vec<u8> {
    let mut file = init_segment(&[media.video.clone(), media.audio.clone()]);
    for second in 0..10 {
        let mut data = Vec::new();
        let runs = [0, 1].map(|track| {
            let scale = if track == 0 { 90_000 } else { 16_000 };
            let samples: Vec<_> = media.samples[track]
                .iter()
                .filter(|sample| sample.1 / scale == second || second == 9 && sample.1 >= 10 * scale)
                .collect();
            samples.iter().for_each(|sample| data.extend_from_slice(&sample.2));
            (samples[0].1, samples.iter().map(|sample| sample.0).collect::<Vec<_>>())
        });
        let runs: Vec<Run<'_>> = runs
            .iter()
            .zip(1..)
            .map(|((start, samples), track)| Run { track, start: *start as u64, samples })
            .collect();
        file.extend(fragment_head(second as u32, Some(START + second * 90_000), &runs));
        file.extend(data);
    }
    file
}

fn scan(file: &[u8]) -> Scan {
    let mut scanner = Scanner::new(file.len() as u64);
    while let Some((at, len)) = scanner.wants() {
        scanner.handle(&file[at as usize..][..len]);
    }
    scanner.finish()
}

/// Goal: a fragmented file decodes to exactly the frames that went in, B frames or not.
#[test]
fn fragmented_file_in_ffmpeg() {
    let folder = Folder::new("fragmented");
    for b_frames in [0, 2] {
        let media = media(&folder, b_frames);
        let file = folder.file("fragmented.mp4", &recording(&media));
        for stream in ["0:v", "0:a"] {
            assert_eq!(hashes(&file, stream), hashes(&media.file, stream), "{stream}, {b_frames} B frames");
        }
        assert_eq!(times(&file, "v").len(), 100);
    }
}

/// Goal: a fragment per frame is as good as a fragment per second.
#[test]
fn fragment_per_frame_in_ffmpeg() {
    let folder = Folder::new("live");
    let media = media(&folder, 0);
    let mut file = init_segment(std::slice::from_ref(&media.video));
    for (number, (sample, start, data)) in media.samples[0].iter().enumerate() {
        let run = Run { track: 1, start: (START + start) as u64, samples: &[*sample] };
        let head = fragment_head(number as u32, None, &[run]);
        assert!(head.len() <= 120, "{} bytes of head per frame", head.len());
        file.extend(head);
        file.extend(data);
    }
    let file = folder.file("live.mp4", &file);
    assert_eq!(hashes(&file, "0:v"), hashes(&media.file, "0:v"));
}

/// Goal: what the scanner reads is what was written, and a file cut off anywhere loses its last fragment only.
#[test]
fn scan_of_whole_and_torn_files() {
    let folder = Folder::new("scan");
    let media = media(&folder, 2);
    let file = recording(&media);
    let whole = scan(&file);
    assert_eq!((whole.fragments.len(), whole.good_len), (10, file.len() as u64));
    let (mut read_back, mut data) = ([vec![], vec![]], [vec![], vec![]]);
    for (second, fragment) in (0..).zip(&whole.fragments) {
        assert_eq!(fragment.clock, Some(START + second * 90_000));
        assert!(fragment.runs[0].samples[0].is_key);
        for run in &fragment.runs {
            let track = run.track as usize - 1;
            let mut at = (fragment.offset + u64::from(fragment.head_len + run.data_offset)) as usize;
            for sample in &run.samples {
                read_back[track].push(*sample);
                data[track].extend_from_slice(&file[at..at + sample.size as usize]);
                at += sample.size as usize;
            }
        }
    }
    for track in [0, 1] {
        assert_eq!(read_back[track], media.samples[track].iter().map(|sample| sample.0).collect::<Vec<_>>());
        assert_eq!(data[track], media.samples[track].concat_data());
    }
    let ends: Vec<u64> =
        whole.fragments.iter().map(|f| f.offset + u64::from(f.head_len + f.data_len)).collect();
    for len in (0..file.len()).step_by(61).chain(file.len() - 40..file.len()) {
        let torn = scan(&file[..len]);
        let expected = ends.iter().filter(|&&end| end <= len as u64).count();
        assert_eq!(torn.fragments, whole.fragments[..expected], "cut at {len}");
        let good = ends[..expected].last().copied().unwrap_or(torn.init_len);
        assert_eq!(torn.good_len, good, "cut at {len}");
    }
}

trait ConcatData {
    fn concat_data(&self) -> Vec<u8>;
}

impl ConcatData for Vec<(Sample, i64, Vec<u8>)> {
    fn concat_data(&self) -> Vec<u8> {
        self.iter().flat_map(|sample| sample.2.clone()).collect()
    }
}

/// Goal: garbage in a file never panics the scanner, and what it reports lies within the file.
#[test]
fn scan_of_damaged_files() {
    let folder = Folder::new("damaged");
    let file = recording(&media(&folder, 0));
    let mut seed = 1u32;
    for _ in 0..3_000 {
        let mut damaged = file.clone();
        for _ in 0..3 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = seed as usize % 8_000;
            damaged[at] = (seed >> 24) as u8;
        }
        let scan = scan(&damaged);
        for fragment in &scan.fragments {
            let end = fragment.offset + u64::from(fragment.head_len) + u64::from(fragment.data_len);
            assert!(end <= file.len() as u64);
        }
    }
}

/// Goal: a plain file made from slices of a recording shows the same frames; an edit list hides what lies
/// before the asked-for time; a gap stretches the sample before it.
#[test]
fn plain_file_in_ffmpeg() {
    let folder = Folder::new("plain");
    for b_frames in [0, 2] {
        let media = media(&folder, b_frames);
        let file = recording(&media);
        let scan = scan(&file);
        // Everything; then from the middle of second 3 on, with second 6 missing.
        for (skip, gap) in [(0, None), (35, Some(6))] {
            let entries = [&media.video, &media.audio];
            let mut builder = PlainBuilder::new(2);
            let mut data = Vec::new();
            let mut due: Vec<i64> = media.samples[0].iter().map(|s| s.1 + i64::from(s.0.offset)).collect();
            due.sort_unstable();
            let from = START + due[skip as usize];
            for (second, fragment) in (0..).zip(&scan.fragments) {
                if second < skip / 10 || Some(second) == gap {
                    continue;
                }
                for run in &fragment.runs {
                    let track = run.track as usize - 1;
                    let scale = entries[track].timescale();
                    let start = crate::time::rescale(START, 90_000, scale) + run.start as i64;
                    builder.chunk(track, entries[track], start, &run.samples);
                }
                let at = fragment.offset as usize + fragment.head_len as usize;
                data.extend_from_slice(&file[at..at + fragment.data_len as usize]);
            }
            assert_eq!(builder.data_len(), data.len() as u64);
            let plain = folder.file("plain.mp4", &[builder.finish(from), data].concat());
            let original = hashes(&media.file, "0:v");
            let expected: Vec<String> = (0..100)
                .filter(|&n| n >= skip && Some(n / 10) != gap)
                .map(|n| original[n as usize].clone())
                .collect();
            assert_eq!(hashes(&plain, "0:v"), expected, "{b_frames} B frames, from {skip}");
            let shown = times(&plain, "v");
            let due: Vec<f64> = (0..100)
                .filter(|&n| n >= skip && Some(n / 10) != gap)
                .map(|n| (START + due[n as usize] - from) as f64 / 90_000.0)
                .collect();
            assert_eq!(shown.len(), due.len());
            for (shown, due) in shown.iter().zip(due) {
                assert!((shown - due).abs() < 0.001, "{shown} for {due}, {b_frames} B frames, from {skip}");
            }
        }
    }
}

/// Goal: G.711 sound comes back from FLAC in MP4 to the last bit.
#[test]
fn flac_is_lossless_in_ffmpeg() {
    let folder = Folder::new("flac");
    for law in [Law::Mu, Law::A] {
        let mut seed = 7u32;
        // A tone, silence, noise, and a constant, in blocks of the sizes that cameras send.
        let bytes: Vec<u8> = (0..16_000u32)
            .map(|n| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                match n / 4_000 {
                    0 => law.encode(((f64::from(n) * 0.2).sin() * 9_000.0) as i16),
                    1 => law.encode(0),
                    2 => (seed >> 24) as u8,
                    _ => 0x13,
                }
            })
            .collect();
        let entry = SampleEntry::Flac { sample_rate: 8_000 };
        let mut encoder = FlacEncoder::new(8_000);
        let mut file = init_segment(std::slice::from_ref(&entry));
        let (mut expected, mut at, mut coded) = (Vec::new(), 0, 0);
        for len in [160, 320, 1024, 17, 4096].into_iter().cycle() {
            let block = &bytes[at..bytes.len().min(at + len)];
            if block.is_empty() {
                break;
            }
            let mut samples = Vec::new();
            law.decode_into(block, &mut samples);
            let frame = encoder.encode(&samples);
            let sample =
                Sample { size: frame.len() as u32, duration: block.len() as u32, offset: 0, is_key: true };
            file.extend(fragment_head(1, None, &[Run { track: 1, start: at as u64, samples: &[sample] }]));
            coded += frame.len();
            file.extend(frame);
            expected.extend(samples.iter().flat_map(|sample| sample.to_le_bytes()));
            at += block.len();
        }
        assert!(coded < bytes.len(), "{coded} bytes of FLAC for {} of G.711", bytes.len());
        let file = folder.file("flac.mp4", &file);
        let pcm = folder.0.join("out.raw");
        let arguments =
            ["-v", "warning", "-i", file.to_str().unwrap(), "-f", "s16le", "-y", pcm.to_str().unwrap()];
        run("ffmpeg", &arguments);
        assert!(std::fs::read(pcm).unwrap() == expected, "{law:?}: decoded samples differ");
    }
}

/// Goal: MIME types as browsers want them.
#[test]
fn mime_types() {
    let sets = ParameterSets::from_sprop("Z00AH5WoFAFuQA==,aO48gA==").unwrap();
    let video = SampleEntry::Avc(Arc::new(sets));
    assert_eq!(
        mime(&[video.clone(), SampleEntry::Flac { sample_rate: 8_000 }]),
        "video/mp4; codecs=\"avc1.4D001F,flac\""
    );
    let aac = SampleEntry::Aac(AacFormat::new(&[0x14, 0x08]).unwrap());
    assert_eq!(mime(&[video, aac]), "video/mp4; codecs=\"avc1.4D001F,mp4a.40.2\"");
}

/// Goal: an initialisation segment tells what it was made of; cut or damaged it is refused.
#[test]
fn init_segments_are_read_back() {
    let sets = ParameterSets::from_sprop("Z2QAHqwsaoLA9puCgIKgAAADACAAAAMD0IAA,aO4xshsA").unwrap();
    let video = SampleEntry::Avc(Arc::new(sets));
    let aac = SampleEntry::Aac(AacFormat::new(&[0x11, 0x90, 0x56, 0xe5, 0x00]).unwrap());
    for entries in
        [vec![video.clone()], vec![video.clone(), aac], vec![video, SampleEntry::Flac { sample_rate: 8_000 }]]
    {
        let init = init_segment(&entries);
        assert_eq!(parse_init_segment(&init).unwrap(), entries);
        for len in 0..init.len() {
            assert!(parse_init_segment(&init[..len]).is_err());
        }
        for at in 0..init.len() {
            let mut damaged = init.clone();
            damaged[at] ^= 0xff;
            let _ = parse_init_segment(&damaged);
        }
    }
}
