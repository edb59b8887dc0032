//! The WebSocket frame format (RFC 6455 §5), pure: bytes in, steps out; nothing is buffered but a frame's head
//! and the at most 125 bytes of a control frame.
//!
//! Messages are not assembled: an uplink uses WebSocket as a byte pipe, so that the payload of every
//! binary frame and its continuations is passed on as it comes. What a frame's head claims about its length
//! therefore costs no memory; lengths over [`FRAME_MAX`] are refused all the same.
//!
//! Not here: the opening handshake (`upgrade.rs`), streams (`stream.rs`, `transport.rs`).
//!
//! Invariant: however the input is cut, the sequence of payload bytes and control frames is the same.

use std::fmt;

/// No frame may claim a longer payload, in bytes.
pub const FRAME_MAX: u64 = 16 << 20;

/// Longest head of a frame: 2 bytes, 8 of length, 4 of mask.
pub const HEAD_MAX: usize = 14;

/// Longest payload of a control frame (§5.5).
pub const CONTROL_MAX: usize = 125;

/// What a frame is (§5.2). Text is parsed, so that it can be refused by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// More of the message before.
    Continuation,
    /// Text; a byte pipe has no use for it.
    Text,
    /// The bytes of the pipe.
    Binary,
    /// The end; the payload holds a code and a reason.
    Close,
    /// To be answered with the same payload.
    Ping,
    /// Answer to a ping.
    Pong,
}

impl Opcode {
    fn from_bits(bits: u8) -> Result<Self, FrameError> {
        Ok(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            other => return Err(FrameError::UnknownOpcode(other)),
        })
    }

    fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0x0,
            Self::Text => 0x1,
            Self::Binary => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xA,
        }
    }

    fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// Which end of the WebSocket we are: the client masks what it sends, the server does not (§5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Opened the WebSocket; masks.
    Client,
    /// Accepted it; does not mask.
    Server,
}

/// Why what the peer sent is not WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A reserved bit without an extension that gives it a meaning.
    #[error("a WebSocket frame has a reserved bit set")]
    ReservedBit,
    /// A reserved opcode.
    #[error("a WebSocket frame has the unknown opcode {0:#x}")]
    UnknownOpcode(u8),
    /// A client that does not mask, or a server that does.
    #[error("a WebSocket frame is {}", if *.0 { "masked, which only a client may do" } else { "not masked, as a client must" })]
    Masking(bool),
    /// The claimed length is over [`FRAME_MAX`].
    #[error("a WebSocket frame claims {0} bytes; the limit is {FRAME_MAX}")]
    TooLong(u64),
    /// A control frame that is fragmented or longer than [`CONTROL_MAX`].
    #[error("a WebSocket control frame is fragmented or longer than {CONTROL_MAX} bytes")]
    BadControl,
    /// Continuation without a beginning, or a beginning within a message.
    #[error("WebSocket fragments come out of order")]
    BadFragment,
    /// A text frame.
    #[error("a WebSocket text frame came where only binary ones are allowed")]
    Text,
}

impl FrameError {
    /// The status code of the close frame that answers it (§7.4.1).
    pub fn close_code(self) -> u16 {
        match self {
            Self::Text => 1003,
            Self::TooLong(_) => 1009,
            _ => 1002,
        }
    }
}

/// A frame's mask: the key, and how far into it the payload is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mask {
    key: [u8; 4],
}

impl Mask {
    /// A mask that starts with the first byte of `key`.
    pub fn new(key: [u8; 4]) -> Self {
        Self { key }
    }

    /// Masks or unmasks `bytes`, and moves on by their number. Eight bytes at a time (§5.3).
    pub fn apply(&mut self, bytes: &mut [u8]) {
        let word = u32::from_ne_bytes(self.key);
        let double = (u64::from(word) << 32) | u64::from(word);
        let (words, rest) = bytes.as_chunks_mut::<8>();
        for chunk in words {
            *chunk = (u64::from_ne_bytes(*chunk) ^ double).to_ne_bytes();
        }
        for (byte, key) in rest.iter_mut().zip(self.key.iter().cycle()) {
            *byte ^= key;
        }
        self.advance(bytes.len());
    }

    fn advance(&mut self, count: usize) {
        self.key.rotate_left(count % 4);
    }
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mask")
    }
}

/// Writes the head of an unfragmented frame into `head`; returns its length.
pub fn write_head(head: &mut [u8; HEAD_MAX], opcode: Opcode, length: usize, mask: Option<[u8; 4]>) -> usize {
    head[0] = 0x80 | opcode.bits();
    let masked = if mask.is_some() { 0x80 } else { 0 };
    let mut at = match length {
        0..=125 => {
            head[1] = masked | length as u8;
            2
        }
        126..=0xFFFF => {
            head[1] = masked | 126;
            head[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            4
        }
        _ => {
            head[1] = masked | 127;
            head[2..10].copy_from_slice(&(length as u64).to_be_bytes());
            10
        }
    };
    if let Some(key) = mask {
        head[at..at + 4].copy_from_slice(&key);
        at += 4;
    }
    at
}

/// Writes a whole control frame, head and payload cut to [`CONTROL_MAX`], as `role` sends it.
pub fn control_frame(role: Role, opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let payload = &payload[..payload.len().min(CONTROL_MAX)];
    let key = mask_key(role);
    let mut head = [0; HEAD_MAX];
    let length = write_head(&mut head, opcode, payload.len(), key);
    let mut frame = Vec::with_capacity(length + payload.len());
    frame.extend_from_slice(&head[..length]);
    frame.extend_from_slice(payload);
    if let Some(key) = key {
        Mask::new(key).apply(&mut frame[length..]);
    }
    frame
}

/// A fresh mask key for a frame that `role` sends; none for a server (§5.3: unpredictable).
pub fn mask_key(role: Role) -> Option<[u8; 4]> {
    match role {
        Role::Client => Some(rand::random()),
        Role::Server => None,
    }
}

/// What the first bytes of the input were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A part of a head or of a control frame; nothing to do.
    Head,
    /// Bytes of the pipe; to be unmasked with the mask, if there is one.
    Payload(Option<Mask>),
    /// A ping came to its end; its payload is [`Decoder::control`].
    Ping,
    /// A pong came to its end.
    Pong,
    /// A close frame came to its end; code and reason are in [`Decoder::control`].
    Close,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Collecting a head.
    Head,
    /// `remaining` bytes of pipe to come.
    Payload { remaining: u64, mask: Option<Mask> },
    /// `remaining` bytes of a control frame to come.
    Control { opcode: Opcode, remaining: usize, mask: Option<Mask> },
}

/// Cuts a stream of bytes into steps; see the module's invariant.
#[derive(Debug)]
pub struct Decoder {
    role: Role,
    state: State,
    in_message: bool,
    head: [u8; HEAD_MAX],
    head_length: usize,
    control: Vec<u8>,
}

impl Decoder {
    /// A decoder for what the *peer* of `role` sends.
    pub fn new(role: Role) -> Self {
        Self {
            role,
            state: State::Head,
            in_message: false,
            head: [0; HEAD_MAX],
            head_length: 0,
            control: Vec::new(),
        }
    }

    /// Takes one step into `input`, which must not be empty: how many bytes it took (at least one), and what they were.
    pub fn step(&mut self, input: &[u8]) -> Result<(usize, Step), FrameError> {
        match self.state {
            State::Head => self.step_head(input),
            State::Payload { remaining, mask } => {
                let taken = usize::try_from(remaining).unwrap_or(usize::MAX).min(input.len());
                let remaining = remaining - taken as u64;
                let mut rest = mask;
                if let Some(rest) = &mut rest {
                    rest.advance(taken);
                }
                self.state =
                    if remaining == 0 { State::Head } else { State::Payload { remaining, mask: rest } };
                Ok((taken, Step::Payload(mask)))
            }
            State::Control { opcode, remaining, mask } => {
                let taken = remaining.min(input.len());
                self.control.extend_from_slice(&input[..taken]);
                if taken < remaining {
                    self.state = State::Control { opcode, remaining: remaining - taken, mask };
                    return Ok((taken, Step::Head));
                }
                if let Some(mut mask) = mask {
                    mask.apply(&mut self.control);
                }
                Ok((taken, self.end_control(opcode)))
            }
        }
    }

    /// The payload of the ping, pong or close frame that the last step completed.
    pub fn control(&self) -> &[u8] {
        &self.control
    }

    /// Whether the input may end here: between frames, not within one.
    pub fn is_at_boundary(&self) -> bool {
        matches!(self.state, State::Head) && self.head_length == 0
    }

    /// Unmasks and moves all payload in `buffer` to its front, and returns its length. Calls `control` for each
    /// complete control frame; stops after a close frame, dropping what follows, and at an error, before which payload
    /// may have come.
    pub fn decode_in_place(
        &mut self,
        buffer: &mut [u8],
        mut control: impl FnMut(Step, &[u8]),
    ) -> (usize, Result<(), FrameError>) {
        let (mut from, mut to) = (0, 0);
        while from < buffer.len() {
            let (taken, step) = match self.step(&buffer[from..]) {
                Ok(step) => step,
                Err(error) => return (to, Err(error)),
            };
            match step {
                Step::Head => {}
                Step::Payload(mask) => {
                    if from != to {
                        buffer.copy_within(from..from + taken, to);
                    }
                    if let Some(mut mask) = mask {
                        mask.apply(&mut buffer[to..to + taken]);
                    }
                    to += taken;
                }
                Step::Ping | Step::Pong | Step::Close => {
                    control(step, &self.control);
                    if step == Step::Close {
                        break;
                    }
                }
            }
            from += taken;
        }
        (to, Ok(()))
    }

    fn step_head(&mut self, input: &[u8]) -> Result<(usize, Step), FrameError> {
        let before = self.head_length;
        let taken = input.len().min(HEAD_MAX - before);
        self.head[before..before + taken].copy_from_slice(&input[..taken]);
        let Some(head) = Head::parse(&self.head[..before + taken])? else {
            self.head_length += taken;
            return Ok((taken, Step::Head));
        };
        self.head_length = 0;
        let taken = head.size - before;
        if head.mask.is_some() != (self.role == Role::Server) {
            return Err(FrameError::Masking(head.mask.is_some()));
        }
        if head.opcode.is_control() {
            self.control.clear();
            let remaining = head.length as usize;
            if remaining == 0 {
                return Ok((taken, self.end_control(head.opcode)));
            }
            self.state = State::Control { opcode: head.opcode, remaining, mask: head.mask };
            return Ok((taken, Step::Head));
        }
        if head.opcode == Opcode::Text {
            return Err(FrameError::Text);
        }
        if (head.opcode == Opcode::Continuation) != self.in_message {
            return Err(FrameError::BadFragment);
        }
        self.in_message = !head.fin;
        if head.length > 0 {
            self.state = State::Payload { remaining: head.length, mask: head.mask };
        }
        Ok((taken, Step::Head))
    }

    fn end_control(&mut self, opcode: Opcode) -> Step {
        self.state = State::Head;
        match opcode {
            Opcode::Ping => Step::Ping,
            Opcode::Close => Step::Close,
            _ => Step::Pong,
        }
    }
}

struct Head {
    size: usize,
    fin: bool,
    opcode: Opcode,
    mask: Option<Mask>,
    length: u64,
}

impl Head {
    /// The head at the beginning of `bytes`; none if it is not complete. What is wrong is said as soon as it is seen.
    fn parse(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err(FrameError::ReservedBit);
        }
        let opcode = Opcode::from_bits(first & 0x0F)?;
        let fin = first & 0x80 != 0;
        let Some(&second) = bytes.get(1) else { return Ok(None) };
        let short = second & 0x7F;
        if opcode.is_control() && (!fin || usize::from(short) > CONTROL_MAX) {
            return Err(FrameError::BadControl);
        }
        let (length, at) = match short {
            126 => match bytes.get(2..).and_then(|rest| rest.first_chunk()) {
                Some(long) => (u64::from(u16::from_be_bytes(*long)), 4),
                None => return Ok(None),
            },
            127 => match bytes.get(2..).and_then(|rest| rest.first_chunk()) {
                Some(long) => (u64::from_be_bytes(*long), 10),
                None => return Ok(None),
            },
            short => (u64::from(short), 2),
        };
        if length > FRAME_MAX {
            return Err(FrameError::TooLong(length));
        }
        if second & 0x80 == 0 {
            return Ok(Some(Self { size: at, fin, opcode, mask: None, length }));
        }
        let Some(key) = bytes.get(at..).and_then(|rest| rest.first_chunk()) else { return Ok(None) };
        Ok(Some(Self { size: at + 4, fin, opcode, mask: Some(Mask::new(*key)), length }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A frame as `role` sends it.
    fn frame(role: Role, fin: bool, opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        let key = mask_key(role);
        let mut head = [0; HEAD_MAX];
        let size = write_head(&mut head, opcode, payload.len(), key);
        if !fin {
            head[0] &= 0x7F;
        }
        let mut bytes = head[..size].to_vec();
        bytes.extend_from_slice(payload);
        if let Some(key) = key {
            Mask::new(key).apply(&mut bytes[size..]);
        }
        bytes
    }

    /// Payload, control frames, and whether the end is between frames.
    type Decoded = (Vec<u8>, Vec<(Step, Vec<u8>)>, bool);

    /// All that a decoder for the peer of `role` makes of `pieces`.
    fn decode(role: Role, pieces: &[&[u8]]) -> Result<Decoded, FrameError> {
        let mut decoder = Decoder::new(role);
        let (mut payload, mut controls) = (Vec::new(), Vec::new());
        for piece in pieces {
            let mut piece = piece.to_vec();
            let (length, decoded) =
                decoder.decode_in_place(&mut piece, |step, body| controls.push((step, body.to_vec())));
            decoded?;
            payload.extend_from_slice(&piece[..length]);
        }
        Ok((payload, controls, decoder.is_at_boundary()))
    }

    fn peer(role: Role) -> Role {
        match role {
            Role::Client => Role::Server,
            Role::Server => Role::Client,
        }
    }

    #[test]
    fn the_examples_of_rfc_6455_section_5_7_are_understood() {
        let mut masked_hello = [0x82, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        let decoded = decode(Role::Server, &[&masked_hello]).expect("a frame");
        assert_eq!(decoded, (b"Hello".to_vec(), vec![], true));
        masked_hello[0] = 0x81;
        assert_eq!(decode(Role::Server, &[&masked_hello]), Err(FrameError::Text));
        let fragments = [0x02, 0x03, 0x48, 0x65, 0x6c, 0x89, 0x01, 0x21, 0x80, 0x02, 0x6c, 0x6f];
        let decoded = decode(Role::Client, &[&fragments]).expect("fragments with a ping between");
        assert_eq!(decoded, (b"Hello".to_vec(), vec![(Step::Ping, b"!".to_vec())], true));
    }

    #[test]
    fn hostile_heads_are_refused_by_name() {
        let refused = |bytes: &[u8]| decode(Role::Client, &[bytes]).expect_err("hostile");
        assert_eq!(refused(&[0xC2, 0x00]), FrameError::ReservedBit);
        assert_eq!(refused(&[0x83, 0x00]), FrameError::UnknownOpcode(3));
        assert_eq!(refused(&[0x82, 0x80, 1, 2, 3, 4]), FrameError::Masking(true));
        assert_eq!(decode(Role::Server, &[&[0x82, 0x01, 0]]), Err(FrameError::Masking(false)));
        assert_eq!(refused(&[0x09, 0x00]), FrameError::BadControl);
        assert_eq!(refused(&[0x89, 126, 0, 126]), FrameError::BadControl);
        assert_eq!(refused(&[0x80, 0x00]), FrameError::BadFragment);
        assert_eq!(refused(&[0x02, 0x00, 0x82, 0x00]), FrameError::BadFragment);
        let mut lie = vec![0x82, 127];
        lie.extend_from_slice(&u64::MAX.to_be_bytes());
        assert_eq!(refused(&lie), FrameError::TooLong(u64::MAX));
        lie[2..].copy_from_slice(&(FRAME_MAX + 1).to_be_bytes());
        assert_eq!(refused(&lie), FrameError::TooLong(FRAME_MAX + 1));
    }

    #[test]
    fn a_length_that_lies_costs_no_memory_and_shows_at_the_end() {
        let mut bytes = vec![0x82, 127];
        bytes.extend_from_slice(&FRAME_MAX.to_be_bytes());
        bytes.extend_from_slice(b"that was all");
        assert_eq!(decode(Role::Client, &[&bytes]), Ok((b"that was all".to_vec(), vec![], false)));
    }

    #[test]
    fn masks_apply_the_same_in_one_piece_and_byte_by_byte() {
        let mut whole: Vec<u8> = (0..100).collect();
        let mut single = whole.clone();
        let mut by_hand = whole.clone();
        let key = [1, 2, 4, 8];
        Mask::new(key).apply(&mut whole);
        let mut mask = Mask::new(key);
        single.iter_mut().for_each(|byte| mask.apply(std::slice::from_mut(byte)));
        by_hand.iter_mut().enumerate().for_each(|(at, byte)| *byte ^= key[at % 4]);
        assert_eq!(whole, by_hand);
        assert_eq!(single, by_hand);
    }

    fn role() -> impl Strategy<Value = Role> {
        prop_oneof![Just(Role::Client), Just(Role::Server)]
    }

    proptest! {
        #[test]
        fn every_cut_of_the_input_decodes_the_same(
            role in role(),
            messages in proptest::collection::vec(
                (proptest::collection::vec(any::<u8>(), 0..300), any::<bool>(), proptest::option::of(0..126_usize)), 1..4),
        ) {
            let (mut wire, mut payload, mut controls) = (Vec::new(), Vec::new(), Vec::new());
            for (message, split, ping) in &messages {
                let middle = message.len() / 2;
                wire.extend(frame(role, !split, Opcode::Binary, if *split { &message[..middle] } else { message }));
                if let Some(length) = ping {
                    wire.extend(control_frame(role, Opcode::Ping, &vec![7; *length]));
                    controls.push((Step::Ping, vec![7; *length]));
                }
                if *split {
                    wire.extend(frame(role, true, Opcode::Continuation, &message[middle..]));
                }
                payload.extend_from_slice(message);
            }
            wire.extend(control_frame(role, Opcode::Close, &1000_u16.to_be_bytes()));
            controls.push((Step::Close, 1000_u16.to_be_bytes().to_vec()));
            let expected = (payload, controls, true);
            for cut in 0..=wire.len() {
                let (head, tail) = wire.split_at(cut);
                prop_assert_eq!(&decode(peer(role), &[head, tail]).expect("valid frames"), &expected);
            }
            let bytes: Vec<&[u8]> = wire.chunks(1).collect();
            prop_assert_eq!(&decode(peer(role), &bytes).expect("valid frames"), &expected);
        }

        #[test]
        fn no_input_panics_and_every_step_moves_on(role in role(), input in proptest::collection::vec(any::<u8>(), 1..200)) {
            let mut decoder = Decoder::new(role);
            let mut rest = &input[..];
            while !rest.is_empty() {
                let Ok((taken, _)) = decoder.step(rest) else { break };
                prop_assert!(taken > 0 && taken <= rest.len());
                rest = &rest[taken..];
            }
        }
    }
}
