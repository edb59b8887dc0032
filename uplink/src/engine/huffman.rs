//! The Huffman code of HPACK (RFC 7541 §5.2 and appendix B), decoding only: what we send is short and goes plain.
//!
//! The code is canonical: codes of one length are consecutive, in the order of their symbols, so that the lengths
//! alone say everything.

/// Bits of each symbol's code (appendix B); the end-of-string symbol, which no text may hold, is the last one of 30 bits.
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28,
    28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6,
    6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7,
    8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7,
    15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24,
    23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23,
    23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26,
    26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20,
    21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27,
    27, 27, 26,
];

const LONGEST: usize = 30;

/// Codes of each length: the first one, how many there are, and where their symbols begin in `SYMBOLS`.
const CLASSES: [(u32, u32, usize); LONGEST + 1] = classes();

/// All symbols by the length of their code, then by value.
const SYMBOLS: [u8; 256] = symbols();

const fn classes() -> [(u32, u32, usize); LONGEST + 1] {
    let mut classes = [(0, 0, 0); LONGEST + 1];
    let (mut code, mut at, mut length) = (0, 0, 1);
    while length <= LONGEST {
        code <<= 1;
        let (mut count, mut symbol) = (0, 0);
        while symbol < 256 {
            if LENGTHS[symbol] as usize == length {
                count += 1;
            }
            symbol += 1;
        }
        classes[length] = (code, count, at);
        code += count;
        at += count as usize;
        length += 1;
    }
    classes
}

const fn symbols() -> [u8; 256] {
    let mut symbols = [0; 256];
    let (mut at, mut length) = (0, 1);
    while length <= LONGEST {
        let mut symbol = 0;
        while symbol < 256 {
            if LENGTHS[symbol] as usize == length {
                symbols[at] = symbol as u8;
                at += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    symbols
}

/// Appends the text that `coded` stands for; false if it is none, or ends in anything but the beginning of the
/// end-of-string symbol.
pub(super) fn decode(coded: &[u8], text: &mut Vec<u8>) -> bool {
    let (mut code, mut length) = (0_u32, 0_usize);
    for byte in coded {
        for bit in (0..8).rev() {
            code = code << 1 | u32::from(byte >> bit & 1);
            length += 1;
            let (first, count, at) = CLASSES[length];
            if code.wrapping_sub(first) < count {
                text.push(SYMBOLS[at + (code - first) as usize]);
                (code, length) = (0, 0);
            } else if length == LONGEST {
                return false;
            }
        }
    }
    // Padding: fewer than 8 bits, all of them ones.
    length < 8 && code == (1 << length) - 1
}

#[cfg(test)]
pub(super) fn encode(text: &[u8]) -> Vec<u8> {
    let (mut coded, mut bits, mut have) = (Vec::new(), 0_u64, 0);
    for &symbol in text {
        let length = usize::from(LENGTHS[usize::from(symbol)]);
        let (first, _, at) = CLASSES[length];
        let rank = SYMBOLS[at..].iter().position(|&other| other == symbol).expect("every symbol is there");
        bits = bits << length | u64::from(first + rank as u32);
        have += length;
        while have >= 8 {
            have -= 8;
            coded.push((bits >> have) as u8);
        }
    }
    if have > 0 {
        coded.push((bits << (8 - have)) as u8 | (0xFF >> have));
    }
    coded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// Goal: the code is that of the standard; its examples, RFC 7541 C.4 and C.6.
    #[test]
    fn the_examples_of_the_standard_are_decoded() {
        for (coded, text) in [
            ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
            ("a8eb10649cbf", "no-cache"),
            ("25a849e95ba97d7f", "custom-key"),
            ("25a849e95bb8e8b4bf", "custom-value"),
            ("aec3771a4b", "private"),
            ("d07abe941054d444a8200595040b8166e082a62d1bff", "Mon, 21 Oct 2013 20:13:21 GMT"),
            ("9d29ad171863c78f0b97c8e9ae82ae43d3", "https://www.example.com"),
        ] {
            let mut decoded = Vec::new();
            assert!(decode(&hex(coded), &mut decoded), "{text}");
            assert_eq!(String::from_utf8(decoded).unwrap(), text);
        }
    }

    #[test]
    fn wrong_padding_and_the_end_symbol_are_refused() {
        // "0" is 00000; padded with zeros, and with a whole byte of ones.
        for wrong in [vec![0x00], vec![0x07, 0xFF], vec![0xFF; 4], vec![0xFF]] {
            assert!(!decode(&wrong, &mut Vec::new()), "{wrong:?}");
        }
        assert!(decode(&[0x07], &mut Vec::new()));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut decoded = Vec::new();
            prop_assert!(decode(&encode(&text), &mut decoded));
            prop_assert_eq!(decoded, text);
        }

        #[test]
        fn nothing_makes_it_panic_or_grow(coded in prop::collection::vec(any::<u8>(), 0..500)) {
            let mut decoded = Vec::new();
            decode(&coded, &mut decoded);
            prop_assert!(decoded.len() <= coded.len() * 8 / 5);
        }
    }
}
