//! Content transfer encodings (RFC 2045 §6.7, §6.8): eight-bit octets in seven-bit lines.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use memchr::memmem;

/// Octets of an encoded line, its ending not counted.
const LINE_SIZE: usize = 76;

/// Appends lines that end in CRLF as quoted-printable. A dot at the start of a line is encoded, so that
/// nothing needs stuffing, and a hyphen after a soft line break, so that no new line looks like a boundary.
pub(crate) fn write_quoted_printable(out: &mut Vec<u8>, content: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut rest = content;
    loop {
        let end = memmem::find(rest, b"\r\n");
        let line = &rest[..end.unwrap_or(rest.len())];
        let (mut column, mut soft) = (0, false);
        for (i, &b) in line.iter().enumerate() {
            let last = i + 1 == line.len();
            let plain = match b {
                b' ' | b'\t' => !last,
                b'=' => false,
                33..=126 => true,
                _ => false,
            };
            let size = if plain { 1 } else { 3 };
            // The last octet of a line may take the column that a soft line break would need.
            if column + size + usize::from(!last) > LINE_SIZE {
                out.extend_from_slice(b"=\r\n");
                (column, soft) = (0, true);
            }
            if plain && !(column == 0 && (b == b'.' || b == b'-' && soft)) {
                out.push(b);
                column += 1;
            } else {
                out.extend_from_slice(&[b'=', DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]);
                column += 3;
            }
        }
        let Some(end) = end else { return };
        out.extend_from_slice(b"\r\n");
        rest = &rest[end + 2..];
    }
}

/// Appends octets as base64 in lines, the last one with its ending too.
pub(crate) fn write_base64(out: &mut Vec<u8>, content: &[u8]) {
    let mut line = String::with_capacity(LINE_SIZE);
    for octets in content.chunks(LINE_SIZE / 4 * 3) {
        line.clear();
        STANDARD.encode_string(octets, &mut line);
        out.extend_from_slice(line.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quoted(content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write_quoted_printable(&mut out, content);
        out
    }

    /// By the book, for what the encoder may write.
    fn unquoted(text: &[u8]) -> Vec<u8> {
        let text = String::from_utf8(text.to_vec()).unwrap().replace("=\r\n", "");
        let mut out = Vec::new();
        let mut octets = text.bytes();
        while let Some(b) = octets.next() {
            if b == b'=' {
                let digits = [octets.next().unwrap(), octets.next().unwrap()];
                out.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
            } else {
                out.push(b);
            }
        }
        out
    }

    #[test]
    fn what_a_line_may_not_hold_is_encoded() {
        assert_eq!(quoted("ü=a\r\n.x. \r\nb\t".as_bytes()), b"=C3=BC=3Da\r\n=2Ex.=20\r\nb=09");
        assert_eq!(quoted(b"a\nb\r"), b"a=0Ab=0D");
        assert_eq!(quoted("x".repeat(76).as_bytes()), "x".repeat(76).as_bytes());
        assert_eq!(quoted("x".repeat(77).as_bytes()), format!("{}=\r\nxx", "x".repeat(75)).as_bytes());
    }

    proptest! {
        #[test]
        fn every_content_survives(words in proptest::collection::vec(
            proptest::sample::select(vec!["\r\n", ".", " ", "=", "x", "\n", "\r", "ü", "\0", "xxxxxxxxxxxxxxxxxxxxxxx"]),
            0..60,
        )) {
            let content = words.concat();
            let out = quoted(content.as_bytes());
            prop_assert!(out.split(|b| *b == b'\n').all(|line| line.len() <= LINE_SIZE + 1));
            prop_assert!(out.is_ascii() && !out.starts_with(b"."));
            prop_assert_eq!(memmem::find(&out, b"\r\n."), None);
            prop_assert_eq!(unquoted(&out), content.as_bytes());
            let mut lines = Vec::new();
            write_base64(&mut lines, content.as_bytes());
            prop_assert!(lines.split(|b| *b == b'\n').all(|line| line.len() <= LINE_SIZE + 1));
            lines.retain(|b| !matches!(b, b'\r' | b'\n'));
            prop_assert_eq!(STANDARD.decode(lines).unwrap(), content.as_bytes());
        }
    }
}
