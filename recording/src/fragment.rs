//! Frames to fragments: what is written to disk at once, normally one group of pictures with its sound.
//!
//! A fragment ends with the next key frame, or when it has lasted for the configured time, or when the stream
//! is interrupted. Its last picture's duration is known only then, which is why fragments are made here and
//! not as the frames come (live has no time to wait; see `live.rs`).
//!
//! Not here: files. Invariant: the fragments of one camera do not overlap, and a fragment whose
//! `is_continuation` is set begins exactly where the one before it ended.

use std::sync::Arc;

use bytes::Bytes;
use homing_media::h264::ParameterSets;
use homing_media::mp4::{Sample, SampleEntry, init_segment, mime};
use homing_media::time::{TICKS_PER_SECOND, Ticks};
use sha2::{Digest as _, Sha256};

use crate::frames::{AudioFrame, VideoFrame};

/// Pictures further apart than this, and four times further than usual, are an interruption: shown as a gap,
/// not as one picture that stands still.
const INTERRUPTION: Ticks = TICKS_PER_SECOND;

/// How a stream is coded: everything that an initialisation segment says.
#[derive(Debug)]
pub(crate) struct Format {
    /// Names the initialisation segment: the beginning of its SHA-256.
    pub id: String,
    pub mime: String,
    pub init: Bytes,
    /// Video first.
    pub entries: Vec<SampleEntry>,
}

impl Format {
    pub fn new(entries: Vec<SampleEntry>) -> Self {
        let init = init_segment(&entries);
        Self { id: init_id(&init), mime: mime(&entries), init: init.into(), entries }
    }

    /// Samples per second of the audio track.
    pub fn audio_rate(&self) -> Option<u32> {
        self.entries.get(1).map(SampleEntry::timescale)
    }
}

/// The name of an initialisation segment.
pub(crate) fn init_id(init: &[u8]) -> String {
    Sha256::digest(init).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// A piece of a recording.
#[derive(Debug)]
pub(crate) struct Fragment {
    pub format: Arc<Format>,
    /// Time of the first picture in decoding order.
    pub start: Ticks,
    /// Of all pictures together.
    pub duration: Ticks,
    pub is_key: bool,
    /// It begins where the one before it ended, in the same format.
    pub is_continuation: bool,
    pub video: Vec<Sample>,
    /// Time of the first audio sample: unix time × sample rate.
    pub audio_start: i64,
    pub audio: Vec<Sample>,
    /// The samples' bytes: video, then audio.
    pub data: Vec<Bytes>,
}

impl Fragment {
    pub fn end(&self) -> Ticks {
        self.start + self.duration
    }

    pub fn data_len(&self) -> usize {
        self.data.iter().map(Bytes::len).sum()
    }
}

/// Time without pictures inside a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interruption {
    pub start: Ticks,
    pub end: Ticks,
    pub cause: InterruptionCause,
}

/// Why a running session has no pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InterruptionCause {
    PacketsLost,
    ClockJumped,
    NoFrames,
}

/// Collects frames.
#[derive(Debug)]
pub(crate) struct Fragmenter {
    longest: Ticks,
    audio_entry: Option<SampleEntry>,
    format: Option<Arc<Format>>,
    video: Vec<VideoFrame>,
    audio: Vec<AudioFrame>,
    /// Where the last fragment ended, and how it was coded.
    last: Option<(Ticks, Arc<Format>)>,
}

impl Fragmenter {
    /// `longest` fragment; `audio_entry` of the session's audio track.
    pub fn new(longest: Ticks, audio_entry: Option<SampleEntry>) -> Self {
        Self { longest, audio_entry, format: None, video: Vec::new(), audio: Vec::new(), last: None }
    }

    /// Takes a picture. Gives the fragment that it ends, if it ends one, and the interruption before it.
    pub fn push_video(&mut self, frame: VideoFrame) -> (Option<Fragment>, Option<Interruption>) {
        let mut done = (None, None);
        if let Some(last) = self.video.last() {
            let interval = frame.time - last.time;
            let is_interrupted = frame.is_jump
                || interval > INTERRUPTION.max(4 * last.likely_duration)
                || interval < -TICKS_PER_SECOND;
            let lasts_too_long = frame.time - self.video[0].time >= self.longest && interval > 0;
            if is_interrupted {
                done.0 = self.finish(None);
                if let Some(fragment) = &done.0
                    && fragment.end() < frame.time
                {
                    let cause = match (frame.is_jump, frame.after_loss) {
                        (true, _) => InterruptionCause::ClockJumped,
                        (_, true) => InterruptionCause::PacketsLost,
                        _ => InterruptionCause::NoFrames,
                    };
                    done.1 = Some(Interruption { start: fragment.end(), end: frame.time, cause });
                }
            } else if frame.is_key || lasts_too_long {
                done.0 = self.finish(Some(frame.time));
            }
        }
        if let Some(sets) = &frame.parameter_sets {
            self.set_format(sets);
        }
        self.video.push(frame);
        done
    }

    /// Takes sound. What comes before the first picture is not kept.
    pub fn push_audio(&mut self, frame: AudioFrame) {
        if !self.video.is_empty() {
            self.audio.push(frame);
        }
    }

    /// Ends the fragment that is being collected: at the next picture's time, or when its last picture has
    /// been shown for as long as the others.
    pub fn finish(&mut self, next: Option<Ticks>) -> Option<Fragment> {
        let format = self.format.clone()?;
        let first = self.video.first()?;
        let is_key = first.is_key;
        // Decoding order is as they came; decoding times are the times of showing, sorted.
        let mut times: Vec<Ticks> = self.video.iter().map(|frame| frame.time).collect();
        times.sort_unstable();
        let earliest = match &self.last {
            Some((end, _)) => times[0].max(*end),
            None => times[0],
        };
        let mut floor = earliest;
        for time in &mut times {
            *time = (*time).max(floor);
            floor = *time + 1;
        }
        let likely = self.video.last().map_or(1, |frame| frame.likely_duration);
        let last = times[times.len() - 1];
        let end = next.unwrap_or(last + likely).max(last + 1);
        let start = times[0];
        times.push(end);
        let mut data = Vec::with_capacity(self.video.len() + self.audio.len());
        let mut video = Vec::with_capacity(self.video.len());
        for (frame, dts) in self.video.drain(..).zip(times.windows(2)) {
            video.push(Sample {
                size: frame.data.len() as u32,
                duration: (dts[1] - dts[0]) as u32,
                offset: (frame.time - dts[0]) as i32,
                is_key: frame.is_key,
            });
            data.push(frame.data);
        }
        let audio_start = self.audio.first().map_or(0, |frame| frame.start);
        let mut audio: Vec<Sample> = Vec::with_capacity(self.audio.len());
        let mut frames = self.audio.drain(..).peekable();
        while let Some(frame) = frames.next() {
            // A gap in the sound lengthens the frame before it: the rest stays in time.
            let duration =
                frames.peek().map_or(i64::from(frame.samples), |next| (next.start - frame.start).max(1));
            audio.push(Sample {
                size: frame.data.len() as u32,
                duration: u32::try_from(duration).unwrap_or(frame.samples),
                offset: 0,
                is_key: true,
            });
            data.push(frame.data);
        }
        drop(frames);
        let is_continuation =
            self.last.as_ref().is_some_and(|(end, before)| *end == start && before.id == format.id);
        self.last = Some((end, format.clone()));
        Some(Fragment {
            format,
            start,
            duration: end - start,
            is_key,
            is_continuation,
            video,
            audio_start,
            audio,
            data,
        })
    }

    fn set_format(&mut self, sets: &Arc<ParameterSets>) {
        let mut entries = vec![SampleEntry::Avc(sets.clone())];
        entries.extend(self.audio_entry.clone());
        self.format = Some(Arc::new(Format::new(entries)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Ticks = 1_700_000_000 * TICKS_PER_SECOND;

    fn frame(time: Ticks, is_key: bool) -> VideoFrame {
        let sets = ParameterSets::from_sprop("Z00AH5WoFAFuQA==,aO48gA==").unwrap();
        VideoFrame {
            time: START + time,
            likely_duration: 9_000,
            is_key,
            has_b_slices: false,
            is_jump: false,
            after_loss: false,
            parameter_sets: is_key.then(|| Arc::new(sets)),
            data: Bytes::from_static(b"frame"),
        }
    }

    fn fragmenter() -> Fragmenter {
        Fragmenter::new(4 * TICKS_PER_SECOND, None)
    }

    /// Goal: a group of pictures is one fragment, its last picture lasts until the next key frame.
    #[test]
    fn a_group_of_pictures_is_a_fragment() {
        let mut fragmenter = fragmenter();
        let mut fragments = Vec::new();
        for n in 0..30 {
            let (done, interruption) = fragmenter.push_video(frame(n * 9_000 + n % 3, n % 10 == 0));
            assert_eq!(interruption, None);
            fragments.extend(done);
        }
        fragments.extend(fragmenter.finish(None));
        assert_eq!(fragments.len(), 3);
        for (n, fragment) in (0..).zip(&fragments) {
            assert!(fragment.is_key && fragment.video.len() == 10);
            assert_eq!(fragment.is_continuation, n > 0);
            assert_eq!(fragment.start, START + n * 90_000 + 10 * n % 3);
        }
        assert!(fragments.windows(2).all(|pair| pair[0].end() == pair[1].start));
    }

    /// Goal: a stream with rare key frames is written at least every so often.
    #[test]
    fn long_groups_are_cut() {
        let mut fragmenter = fragmenter();
        let lengths: Vec<_> = (0..100)
            .filter_map(|n| fragmenter.push_video(frame(n * 9_000, n == 0)).0)
            .map(|f| (f.is_key, f.duration))
            .collect();
        assert_eq!(lengths, [(true, 360_000), (false, 360_000)]);
    }

    /// Goal: an interruption is a gap with its cause, not a picture that stands still.
    #[test]
    fn interruptions() {
        for (after_loss, is_jump, cause) in [
            (true, false, InterruptionCause::PacketsLost),
            (false, true, InterruptionCause::ClockJumped),
            (false, false, InterruptionCause::NoFrames),
        ] {
            let mut fragmenter = fragmenter();
            fragmenter.push_video(frame(0, true));
            fragmenter.push_video(frame(9_000, false));
            let late = VideoFrame { after_loss, is_jump, ..frame(900_000, true) };
            let (done, interruption) = fragmenter.push_video(late);
            assert_eq!(done.unwrap().end(), START + 18_000);
            assert_eq!(
                interruption,
                Some(Interruption { start: START + 18_000, end: START + 900_000, cause })
            );
            assert!(!fragmenter.finish(None).unwrap().is_continuation);
        }
    }

    /// Goal: reordered pictures get decoding times that rise, and keep their times of showing.
    #[test]
    fn reordered_pictures() {
        let mut fragmenter = fragmenter();
        for (time, is_key) in [
            (0, true),
            (27_000, false),
            (9_000, false),
            (18_000, false),
            (54_000, false),
            (36_000, false),
            (45_000, false),
        ] {
            fragmenter.push_video(frame(time, is_key));
        }
        let (done, _) = fragmenter.push_video(frame(63_000, true));
        let fragment = done.unwrap();
        let mut dts = 0;
        let shown: Vec<Ticks> = fragment
            .video
            .iter()
            .map(|sample| {
                let shown = dts + i64::from(sample.offset);
                dts += i64::from(sample.duration);
                shown
            })
            .collect();
        assert_eq!(shown, [0, 27_000, 9_000, 18_000, 54_000, 36_000, 45_000]);
        assert_eq!((fragment.duration, fragment.video.iter().all(|s| s.duration == 9_000)), (63_000, true));
    }

    /// Goal: sound before the first picture is left out; a gap in the sound does not move what follows.
    #[test]
    fn sound() {
        let mut fragmenter = Fragmenter::new(360_000, Some(SampleEntry::Flac { sample_rate: 8_000 }));
        let sound = |start: i64| AudioFrame { start, samples: 320, data: Bytes::from_static(b"s") };
        fragmenter.push_audio(sound(0));
        fragmenter.push_video(frame(0, true));
        for start in [1_000, 1_320, 2_000, 2_319] {
            fragmenter.push_audio(sound(start));
        }
        let fragment = fragmenter.finish(None).unwrap();
        assert_eq!(fragment.audio_start, 1_000);
        assert_eq!(fragment.audio.iter().map(|s| s.duration).collect::<Vec<_>>(), [320, 680, 319, 320]);
        assert_eq!(fragment.format.mime, "video/mp4; codecs=\"avc1.4D001F,flac\"");
    }
}
