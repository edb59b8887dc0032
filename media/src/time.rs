//! Media time and wall-clock time, kept apart.
//!
//! A camera's RTP clock runs evenly but starts anywhere and drifts; the server's wall clock is right but
//! is seen through the network's jitter. [`WallClock`] ties the two together: frames keep the camera's
//! spacing, and the whole is moved towards the wall clock by at most [`MAX_SLEW_PPM`]. Wall time here is in
//! ticks of 1/90,000 s since 1970 ([`Ticks`]), so that a recording is `unix time × 90,000` everywhere.
//!
//! Not here: reading a clock; every "now" comes from the caller.
//!
//! Invariants: within one session times rise as the camera's timestamps rise; a session never begins before
//! what was recorded earlier ([`WallClock::new`]'s `not_before`); a jump of either clock moves time forward
//! and is reported, never hidden.

/// 1/90,000 s, the RTP clock of video; as wall time: since 1970-01-01T00:00:00Z.
pub type Ticks = i64;

/// Ticks in a second.
pub const TICKS_PER_SECOND: Ticks = 90_000;

/// How fast recorded time may be drawn towards the wall clock: half a millisecond a second, which no
/// player and no ear notices, and five times the drift of a bad quartz.
pub const MAX_SLEW_PPM: i64 = 500;

/// A deviation below this is not worth correcting: 20 ms.
const DEAD_ZONE: Ticks = TICKS_PER_SECOND / 50;

/// A step of the media clock against the wall clock larger than this is a jump, not jitter: 10 s.
const JUMP: Ticks = 10 * TICKS_PER_SECOND;

/// A timestamp may lie before its predecessor by so much where frames are reordered: 2 s.
const REORDERING: Ticks = 2 * TICKS_PER_SECOND;

/// The deviation is judged by the least delayed frame of so long a window: 20 s.
const WINDOW: Ticks = 20 * TICKS_PER_SECOND;

/// Ticks of a Unix time in nanoseconds.
pub fn ticks_from_nanos(unix_ns: i128) -> Ticks {
    (unix_ns * i128::from(TICKS_PER_SECOND)).div_euclid(1_000_000_000) as Ticks
}

/// Nanoseconds of Unix time, rounded up so that [`ticks_from_nanos`] gives the same ticks again.
pub fn nanos_from_ticks(ticks: Ticks) -> i128 {
    -(-i128::from(ticks) * 1_000_000_000).div_euclid(i128::from(TICKS_PER_SECOND))
}

/// Converts between clock rates, rounding down.
pub fn rescale(value: i64, from_hz: u32, to_hz: u32) -> i64 {
    if from_hz == to_hz {
        return value;
    }
    (i128::from(value) * i128::from(to_hz)).div_euclid(i128::from(from_hz.max(1))) as i64
}

/// Ticks as NTP time, 32.32 fixed point seconds since 1900, for the `prft` box.
pub fn ntp_from_ticks(ticks: Ticks) -> u64 {
    let seconds = ticks.div_euclid(TICKS_PER_SECOND) + NTP_TO_UNIX_S;
    let fraction = (ticks.rem_euclid(TICKS_PER_SECOND) << 32) / TICKS_PER_SECOND;
    (seconds as u64) << 32 | fraction as u64
}

/// The ticks that [`ntp_from_ticks`] was given; of other NTP times the nearest.
pub fn ticks_from_ntp(ntp: u64) -> Ticks {
    let seconds = (ntp >> 32) as i64 - NTP_TO_UNIX_S;
    let fraction = ((ntp & 0xffff_ffff) as i64 * TICKS_PER_SECOND + (1 << 31)) >> 32;
    seconds * TICKS_PER_SECOND + fraction
}

/// Seconds from 1900 to 1970.
const NTP_TO_UNIX_S: i64 = 2_208_988_800;

/// Makes a 32-bit RTP timestamp that wraps into one that does not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwrapper {
    last: Option<(u32, i64)>,
}

impl Unwrapper {
    /// The timestamp without wrapping; the first one is itself. A step of more than half the range counts
    /// as one backwards.
    pub fn unwrap(&mut self, timestamp: u32) -> i64 {
        let whole = match self.last {
            None => i64::from(timestamp),
            Some((last, whole)) => whole + i64::from(timestamp.wrapping_sub(last).cast_signed()),
        };
        self.last = Some((timestamp, whole));
        whole
    }

    /// As [`Unwrapper::unwrap`] for a timestamp that is no sample's: a sender report's. `None` before the
    /// first sample.
    pub fn peek(&self, timestamp: u32) -> Option<i64> {
        self.last.map(|(last, whole)| whole + i64::from(timestamp.wrapping_sub(last).cast_signed()))
    }
}

/// Wall time of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// When it was taken, as far as can be known.
    pub time: Ticks,
    /// One of the clocks jumped just before this frame; what came before does not connect to it.
    pub is_jump: bool,
}

/// Ties one track's media time to wall time. See the module's documentation.
#[derive(Clone, Debug)]
pub struct WallClock {
    not_before: Ticks,
    /// Wall time minus media time, as used.
    offset: Option<Ticks>,
    last_media: Ticks,
    last_arrival: Ticks,
    /// The least delay seen, in the window before this one and in this one.
    windows: [Option<Ticks>; 2],
    window_from: Ticks,
    is_slewing: bool,
    /// What may be corrected but was not yet, in millionths of a tick: at 60 frames a second 500 ppm is
    /// less than a tick per frame.
    allowance: i64,
}

impl WallClock {
    /// A new session. Its first frame is placed when it arrives, but not before `not_before`, the end of
    /// what is recorded already.
    pub fn new(not_before: Ticks) -> Self {
        Self {
            not_before,
            offset: None,
            last_media: 0,
            last_arrival: 0,
            windows: [None; 2],
            window_from: 0,
            is_slewing: false,
            allowance: 0,
        }
    }

    /// Wall time minus media time, once a frame was placed.
    pub fn offset(&self) -> Option<Ticks> {
        self.offset
    }

    /// Places a frame with that media time (unwrapped, 90 kHz), which arrived at that wall time.
    pub fn place(&mut self, media: Ticks, arrival: Ticks) -> Placed {
        let Some(offset) = self.offset else {
            return self.start(media, arrival.max(self.not_before), arrival, false);
        };
        let (media_step, arrival_step) = (media - self.last_media, arrival - self.last_arrival);
        // A frame that is late says nothing: the network may have stalled. A timestamp that runs ahead of
        // the wall clock, or back, says that the camera's clock was set.
        if media_step < -REORDERING || media_step > arrival_step.max(0) + JUMP {
            let earliest = self.last_media + offset + 1;
            return self.start(media, arrival.max(earliest), arrival, true);
        }
        let delay = arrival - media;
        self.windows[1] = Some(self.windows[1].map_or(delay, |least| least.min(delay)));
        if media - self.window_from >= WINDOW {
            self.windows = [self.windows[1], None];
            self.window_from = media;
        }
        let least = self.windows.iter().flatten().min().copied();
        // For a whole window everything was late by more than a jump: the wall clock was set forward, or
        // the camera stood still without telling.
        if let [Some(before), _] = self.windows
            && before.min(delay) - offset > JUMP
        {
            return self.start(media, arrival, arrival, true);
        }
        if media_step > 0 {
            self.slew(least, media_step);
            self.last_media = media;
        }
        self.last_arrival = arrival;
        Placed { time: media + self.offset.unwrap_or(offset), is_jump: false }
    }

    fn start(&mut self, media: Ticks, time: Ticks, arrival: Ticks, is_jump: bool) -> Placed {
        self.offset = Some(time - media);
        (self.last_media, self.last_arrival) = (media, arrival);
        (self.windows, self.window_from) = ([None; 2], media);
        self.is_slewing = false;
        Placed { time, is_jump }
    }

    /// Moves the offset a little towards the least delay, over `step` ticks of media time.
    fn slew(&mut self, least: Option<Ticks>, step: Ticks) {
        // The first window has to be complete: a connection often begins with a burst of old frames.
        let (Some(offset), Some(least), true) = (&mut self.offset, least, self.windows[0].is_some()) else {
            return;
        };
        let deviation = least - *offset;
        self.is_slewing = deviation != 0 && (self.is_slewing || deviation.abs() > DEAD_ZONE);
        if self.is_slewing {
            self.allowance += step.min(TICKS_PER_SECOND) * MAX_SLEW_PPM;
            let most = self.allowance / 1_000_000;
            self.allowance %= 1_000_000;
            *offset += deviation.clamp(-most, most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: Ticks = TICKS_PER_SECOND;
    const START: Ticks = 1_700_000_000 * S;

    /// Goal: conversions come back to where they began.
    #[test]
    fn conversions() {
        for ticks in [0, 1, 89_999, -1, START + 12_345, 4_000_000_000 * S] {
            assert_eq!(ticks_from_nanos(nanos_from_ticks(ticks)), ticks);
        }
        for ticks in (START..START + 200).chain([START + S - 1, START + S]) {
            assert_eq!(ticks_from_ntp(ntp_from_ticks(ticks)), ticks);
        }
        assert_eq!(rescale(START, 90_000, 48_000), 1_700_000_000 * 48_000);
        assert_eq!(rescale(-1, 90_000, 8_000), -1);
    }

    /// Goal: RTP time goes on over the wrap, and back for reordered frames.
    #[test]
    fn unwraps() {
        let mut unwrapper = Unwrapper::default();
        assert_eq!(unwrapper.peek(3), None);
        let times: Vec<i64> = [u32::MAX - 1, 2, u32::MAX, 5].map(|t| unwrapper.unwrap(t)).to_vec();
        let base = i64::from(u32::MAX);
        assert_eq!(times, [base - 1, base + 3, base, base + 6]);
        assert_eq!(unwrapper.peek(4), Some(base + 5));
    }

    /// Goal: network jitter does not reach the recording: spacing stays the camera's.
    #[test]
    fn jitter_leaves_spacing_alone() {
        let mut clock = WallClock::new(0);
        let mut last = None;
        for n in 0..2_000i64 {
            let media = 777 + n * 3_000;
            let jitter = (n * 7_919 % 1_000) * 9;
            let placed = clock.place(media, START + n * 3_000 + jitter);
            assert!(!placed.is_jump);
            if let Some(last) = last {
                assert_eq!(placed.time - last, 3_000);
            }
            last = Some(placed.time);
        }
    }

    /// Goal: a camera clock that drifts by 200 ppm is followed: never off by more than the dead zone and a
    /// little, never faster than 500 ppm.
    #[test]
    fn drift_is_followed() {
        for ppm in [-200, 200] {
            let mut clock = WallClock::new(0);
            let mut last: Option<Ticks> = None;
            for n in 0..80_000i64 {
                let media = n * 11_250;
                let arrival = START + media + media * ppm / 1_000_000;
                let placed = clock.place(media, arrival);
                assert!((placed.time - arrival).abs() < 2 * DEAD_ZONE, "{ppm} ppm, frame {n}");
                if let Some(last) = last {
                    assert!((placed.time - last - 11_250).abs() <= 11_250 * MAX_SLEW_PPM / 1_000_000 + 1);
                }
                last = Some(placed.time);
            }
        }
    }

    /// Goal: a stalled network moves nothing; a clock that was set is reported and time goes forward.
    #[test]
    fn stalls_and_jumps() {
        let mut clock = WallClock::new(0);
        let first = clock.place(0, START).time;
        // Fifteen seconds of silence, then everything at once.
        for n in 1..150 {
            let placed = clock.place(n * 9_000, START + 15 * S + n);
            assert_eq!(placed, Placed { time: first + n * 9_000, is_jump: false });
        }
        let end = first + 149 * 9_000;
        // The camera's clock is set an hour back: not a second time the same hour.
        let placed = clock.place(149 * 9_000 - 3_600 * S, START + 15 * S + 200);
        assert!(placed.is_jump && placed.time > end, "{placed:?}");
        // And an hour forward: the recording does not run into the future.
        let again = clock.place(150 * 9_000, START + 15 * S + 9_200);
        assert!(again.is_jump && again.time <= START + 16 * S, "{again:?}");
        // A pause of an hour on both clocks is a pause.
        let pause = clock.place(150 * 9_000 + 3_600 * S, START + 15 * S + 9_200 + 3_600 * S);
        assert_eq!(pause, Placed { time: again.time + 3_600 * S, is_jump: false });
    }

    /// Goal: the server's clock is set forward by an hour: after a window the recording follows, visibly.
    #[test]
    fn wall_clock_set_forward() {
        let mut clock = WallClock::new(0);
        let mut jumps = 0;
        let mut last = Placed { time: 0, is_jump: false };
        for n in 0..2_000i64 {
            let set = if n > 500 { 3_600 * S } else { 0 };
            last = clock.place(n * 9_000, START + n * 9_000 + set);
            jumps += i64::from(last.is_jump);
        }
        assert_eq!((jumps, last.time), (1, START + 1_999 * 9_000 + 3_600 * S));
    }

    /// Goal: a new session never overlaps what is recorded, even if the wall clock was set back.
    #[test]
    fn sessions_do_not_overlap() {
        let end = START + 60 * S;
        let mut clock = WallClock::new(end);
        assert_eq!(clock.place(5, START).time, end);
        assert_eq!(clock.place(9_005, START + 9_000).time, end + 9_000);
    }

    proptest! {
        /// Goal: whatever the clocks do, time rises with every frame that is newer.
        #[test]
        fn time_rises(steps in proptest::collection::vec((-400_000i64..2_000_000, -50_000i64..2_000_000), 1..200)) {
            let mut clock = WallClock::new(START);
            let (mut media, mut arrival, mut highest) = (0, START, None::<(Ticks, Ticks)>);
            for (media_step, arrival_step) in steps {
                media += media_step;
                arrival += arrival_step;
                let placed = clock.place(media, arrival);
                prop_assert!(placed.time >= START - REORDERING);
                if let Some((newest, time)) = highest {
                    prop_assert!(placed.time > time || media <= newest && !placed.is_jump, "{placed:?} after {time}");
                }
                if placed.is_jump || highest.is_none_or(|(newest, _)| media > newest) {
                    highest = Some((media, placed.time));
                }
            }
        }
    }
}
