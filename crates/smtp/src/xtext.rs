//! xtext (RFC 3461 §4): printable ASCII in which `+`, `=` and all else stand as `+` and two hexadecimal digits.

/// True if every octet may stand in xtext and every `+` is followed by two upper-case hexadecimal digits.
#[must_use]
pub fn is_valid(text: &str) -> bool {
    check(text, |b| (b'!'..=b'~').contains(&b))
}

/// The same with UTF-8 as it is, or as `\x{…}` (utf-8-addr-xtext and utf-8-addr-unitext, RFC 6533 §3).
#[must_use]
pub fn is_valid_utf8(text: &str) -> bool {
    check(text, |b| (b'!'..=b'~').contains(&b) || b >= 0x80)
}

/// The text that xtext stands for; `None` if it is none, or holds controls or broken UTF-8.
#[must_use]
pub fn decode(text: &str) -> Option<String> {
    if !is_valid(text) {
        return None;
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b == b'+' {
            let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
            out.push(high << 4 | low);
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).ok().filter(|text| !text.chars().any(char::is_control))
}

fn check(text: &str, stands: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    let mut i = 0;
    while let Some(&b) = bytes.get(i) {
        if b == b'+' {
            let hex = |at: usize| bytes.get(at).is_some_and(|&b| digit(b).is_some());
            if !(hex(i + 1) && hex(i + 2)) {
                return false;
            }
            i += 3;
        } else if b == b'=' || !stands(b) {
            return false;
        } else {
            i += 1;
        }
    }
    true
}

fn digit(b: u8) -> Option<u8> {
    match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'A'..=b'F' => Some(b - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xtext_is_checked_and_decoded() {
        let check =
            |text: &str, decoded: Option<&str>| assert_eq!(decode(text).as_deref(), decoded, "{text}");
        check("QQ314159", Some("QQ314159"));
        check("a+2Bb+3D", Some("a+b="));
        check("+C3+BC", Some("ü"));
        check("", Some(""));
        check("a=b", None);
        check("a+2", None);
        check("a+2b", None);
        check("a b", None);
        check("+0D+0A", None);
        check("+FF", None);
        assert!(is_valid_utf8("jürgen@example.com") && !is_valid("jürgen@example.com"));
    }
}
