//! Text in header fields: encoded words (RFC 2047), folding, and the cleaning of other people's words.

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};

/// Octets of a line that we write (RFC 5322 §2.1.1), its ending not counted.
pub(crate) const LINE_SIZE: usize = 78;
/// Octets of an encoded word (RFC 2047 §2).
const WORD_SIZE_MAX: usize = 75;
/// Base64 as others write it, with or without its padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// One line of text: controls and line endings become spaces, what is longer than `size_max` octets is cut.
/// With `ascii`, everything else becomes `?`.
pub(crate) fn clean(text: &str, size_max: usize, ascii: bool) -> String {
    let mut out = String::with_capacity(text.len().min(size_max));
    for c in text.chars() {
        let c = match c {
            c if c.is_control() => ' ',
            c if ascii && !c.is_ascii() => '?',
            c => c,
        };
        if out.len() + c.len_utf8() > size_max {
            break;
        }
        out.push(c);
    }
    out
}

/// The text as it may stand in an unstructured field: as it is if it is printable ASCII, else as encoded
/// words with spaces between.
pub(crate) fn encode(text: &str) -> String {
    if text.bytes().all(|b| (0x20..=0x7e).contains(&b)) { text.into() } else { encode_always(text) }
}

/// The text as encoded words, also where it is ASCII: what looks like an encoded word, or has a word longer
/// than a line.
pub(crate) fn encode_always(text: &str) -> String {
    const OPEN: &str = "=?utf-8?b?";
    // Base64 makes four characters of three octets; a character must not be cut.
    let octets_max = (WORD_SIZE_MAX - OPEN.len() - 2) / 4 * 3;
    let mut out = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut end = rest.len().min(octets_max);
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(OPEN);
        STANDARD.encode_string(&rest[..end], &mut out);
        out.push_str("?=");
        rest = &rest[end..];
    }
    out
}

/// The text of a header field for a person to read: encoded words (RFC 2047) decoded as far as they are in
/// UTF-8, ASCII or ISO 8859-1, controls replaced, at most `size_max` octets. Nothing may be decided by it.
#[must_use]
pub fn decode_words(text: &str, size_max: usize) -> String {
    clean(&decode(text), size_max, false)
}

/// The text with its encoded words decoded, as far as they are in UTF-8, ASCII or ISO 8859-1; for a person
/// to read, not to decide by.
pub(crate) fn decode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut after_encoded = false;
    for word in text.split_ascii_whitespace() {
        let decoded = decode_word(word);
        // The space between two encoded words belongs to neither (RFC 2047 §6.2).
        if !(out.is_empty() || after_encoded && decoded.is_some()) {
            out.push(' ');
        }
        after_encoded = decoded.is_some();
        match decoded {
            Some(decoded) => out.push_str(&decoded),
            None => out.push_str(word),
        }
    }
    out
}

fn decode_word(word: &str) -> Option<String> {
    let mut parts = word.strip_prefix("=?")?.strip_suffix("?=")?.split('?');
    let (charset, encoding, text) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let octets = match encoding {
        "b" | "B" => LENIENT.decode(text).ok()?,
        "q" | "Q" => decode_q(text)?,
        _ => return None,
    };
    let charset = charset.split('*').next()?;
    if charset.eq_ignore_ascii_case("utf-8") || charset.eq_ignore_ascii_case("us-ascii") {
        String::from_utf8(octets).ok()
    } else if charset.eq_ignore_ascii_case("iso-8859-1") {
        Some(octets.into_iter().map(char::from).collect())
    } else {
        None
    }
}

fn decode_q(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut octets = text.bytes();
    while let Some(b) = octets.next() {
        out.push(match b {
            b'_' => b' ',
            b'=' => {
                let high = char::from(octets.next()?).to_digit(16)?;
                let low = char::from(octets.next()?).to_digit(16)?;
                u8::try_from(high << 4 | low).ok()?
            }
            b => b,
        });
    }
    Some(out)
}

/// Appends a field of words, folded where they would not fit the line. The text must be clean; spaces in a
/// row stay, as they may stand in a quoted local part.
pub(crate) fn write_field(out: &mut Vec<u8>, name: &str, text: &str) {
    out.extend_from_slice(name.as_bytes());
    out.push(b':');
    let mut column = name.len() + 1;
    for word in text.trim().split(' ') {
        if !word.is_empty() && column + 1 + word.len() > LINE_SIZE && column > name.len() + 1 {
            out.extend_from_slice(b"\r\n");
            column = 0;
        }
        out.push(b' ');
        out.extend_from_slice(word.as_bytes());
        column += 1 + word.len();
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends text as lines of at most 72 octets where words allow it, each after `indent` spaces. A word
/// longer than a line may be is cut.
pub(crate) fn write_wrapped(out: &mut Vec<u8>, indent: usize, text: &str) {
    const WIDTH: usize = 72;
    const CUT: usize = 900;
    let mut column = 0;
    for word in text.split_ascii_whitespace() {
        let mut word = word;
        while !word.is_empty() {
            let mut end = word.len().min(CUT);
            while !word.is_char_boundary(end) {
                end -= 1;
            }
            if column > indent && column + 1 + end > WIDTH {
                out.extend_from_slice(b"\r\n");
                column = 0;
            }
            if column == 0 {
                out.extend(std::iter::repeat_n(b' ', indent));
                column = indent;
            } else {
                out.push(b' ');
                column += 1;
            }
            out.extend_from_slice(&word.as_bytes()[..end]);
            column += end;
            word = &word[end..];
        }
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn encoded_words_are_decoded_for_people() {
        assert_eq!(decode("=?utf-8?q?J=C3=BCr?= =?UTF-8?B?Z2Vu?= x"), "Jürgen x");
        assert_eq!(decode("a =?iso-8859-1?Q?=FCb_er?= b"), "a üb er b");
        assert_eq!(decode("=?koi8-r?q?x?= =?utf-8?x?y?="), "=?koi8-r?q?x?= =?utf-8?x?y?=");
        assert_eq!(decode("=?utf-8?q?=4?= =?utf-8?q?=FF?="), "=?utf-8?q?=4?= =?utf-8?q?=FF?=");
    }

    #[test]
    fn fields_are_folded_between_words() {
        let mut out = Vec::new();
        write_field(&mut out, "X", &"word ".repeat(40));
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("X: word word"));
        assert!(text.split("\r\n").all(|line| line.len() <= LINE_SIZE));
        assert!(text.split("\r\n").skip(1).all(|line| line.is_empty() || line.starts_with(" word")));
    }

    proptest! {
        #[test]
        fn text_survives_as_encoded_words(text in "[^\\s\\p{C}]{0,60}") {
            let encoded = encode(&format!("ü{text}"));
            prop_assert!(encoded.split(' ').all(|word| word.len() <= WORD_SIZE_MAX));
            prop_assert!(encoded.is_ascii());
            prop_assert_eq!(decode(&encoded), format!("ü{text}"));
        }

        #[test]
        fn wrapped_text_has_no_long_lines(text in ".{0,2000}") {
            let mut out = Vec::new();
            write_wrapped(&mut out, 4, &clean(&text, 2000, false));
            prop_assert!(out.split(|b| *b == b'\n').all(|line| line.len() <= 998));
            prop_assert!(!out.starts_with(b"."));
        }
    }
}
