//! xtext, the encoding of DSN parameters (RFC 3461 §4): printable ASCII, with `+` and two upper-case
//! hexadecimal digits for everything else.

use thiserror::Error;

/// A text that is no xtext.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "not xtext: + and two upper-case hexadecimal digits stand for what is not printable, for + and for ="
)]
pub struct XtextError;

/// Encodes octets.
#[must_use]
pub fn encode(octets: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(octets.len());
    for &b in octets {
        if matches!(b, 0x21..=0x7e) && b != b'+' && b != b'=' {
            out.push(char::from(b));
        } else {
            out.push('+');
            out.push(char::from(DIGITS[usize::from(b >> 4)]));
            out.push(char::from(DIGITS[usize::from(b & 15)]));
        }
    }
    out
}

/// Decodes to octets, which may be anything: bound and clean them before they are printed.
///
/// # Errors
/// When the text is no xtext.
pub fn decode(text: &str) -> Result<Vec<u8>, XtextError> {
    let mut out = Vec::with_capacity(text.len());
    let mut octets = text.bytes();
    while let Some(b) = octets.next() {
        match b {
            b'+' => {
                let high = digit(octets.next()).ok_or(XtextError)?;
                let low = digit(octets.next()).ok_or(XtextError)?;
                out.push(high << 4 | low);
            }
            b'=' => return Err(XtextError),
            0x21..=0x7e => out.push(b),
            _ => return Err(XtextError),
        }
    }
    Ok(out)
}

fn digit(b: Option<u8>) -> Option<u8> {
    match b? {
        b @ b'0'..=b'9' => Some(b - b'0'),
        b @ b'A'..=b'F' => Some(b - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_xtext_is_refused() {
        for text in ["a=b", "a b", "+2b", "+2", "+", "+G0", "ü"] {
            assert_eq!(decode(text), Err(XtextError), "{text}");
        }
        assert_eq!(decode("a+2Bb+3D").unwrap(), b"a+b=");
        assert_eq!(encode(b"a+b= "), "a+2Bb+3D+20");
    }

    proptest! {
        #[test]
        fn every_octet_survives(octets: Vec<u8>) {
            prop_assert_eq!(decode(&encode(&octets)).unwrap(), octets);
        }
    }
}
