//! Line endings and dots of content in memory: for what this room writes or rewrites. The octets of a
//! session are stuffed and unstuffed by `smtp`.

use memchr::{memchr2, memmem};
use std::borrow::Cow;

/// Doubles every dot at the start of a line (RFC 5321 §4.5.2); borrows when there is none.
#[must_use]
pub fn stuff(content: &[u8]) -> Cow<'_, [u8]> {
    if content.first() != Some(&b'.') && memmem::find(content, b"\r\n.").is_none() {
        return Cow::Borrowed(content);
    }
    let mut out = Vec::with_capacity(content.len() + 16);
    let mut rest = content;
    if rest.first() == Some(&b'.') {
        out.push(b'.');
    }
    while let Some(at) = memmem::find(rest, b"\r\n.") {
        out.extend_from_slice(&rest[..at + 3]);
        out.push(b'.');
        rest = &rest[at + 3..];
    }
    out.extend_from_slice(rest);
    Cow::Owned(out)
}

/// Takes the doubled dot at the start of a line back; borrows when there is none.
#[must_use]
pub fn unstuff(content: &[u8]) -> Cow<'_, [u8]> {
    if content.first() != Some(&b'.') && memmem::find(content, b"\r\n.").is_none() {
        return Cow::Borrowed(content);
    }
    let mut out = Vec::with_capacity(content.len());
    let mut rest = content.strip_prefix(b".").unwrap_or(content);
    while let Some(at) = memmem::find(rest, b"\r\n.") {
        out.extend_from_slice(&rest[..at + 2]);
        rest = &rest[at + 3..];
    }
    out.extend_from_slice(rest);
    Cow::Owned(out)
}

/// Makes every line end in CRLF: a bare CR and a bare LF end a line too, and so does the content's end.
/// Borrows when that is so already.
#[must_use]
pub fn clean(content: &[u8]) -> Cow<'_, [u8]> {
    let mut out = Vec::new();
    let mut kept = 0;
    let mut from = 0;
    while let Some(found) = memchr2(b'\r', b'\n', &content[from..]) {
        let at = from + found;
        from = at + 1;
        if content[at] == b'\r' && content.get(from) == Some(&b'\n') {
            from += 1;
            continue;
        }
        out.extend_from_slice(&content[kept..at]);
        out.extend_from_slice(b"\r\n");
        kept = from;
    }
    let unfinished = !content.is_empty() && !matches!(content.last(), Some(b'\r' | b'\n'));
    if kept == 0 && !unfinished {
        return Cow::Borrowed(content);
    }
    out.extend_from_slice(&content[kept..]);
    if unfinished {
        out.extend_from_slice(b"\r\n");
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dots_are_doubled_and_taken_back() {
        let check = |plain: &[u8], stuffed: &[u8]| {
            assert_eq!(&*stuff(plain), stuffed);
            assert_eq!(&*unstuff(stuffed), plain);
        };
        check(b"", b"");
        check(b".", b"..");
        check(b"a\r\n.\r\n..b\r\n.", b"a\r\n..\r\n...b\r\n..");
        check(b"a.\n.\r.", b"a.\n.\r.");
        assert!(matches!(stuff(b"a.b\r\n"), Cow::Borrowed(_)));
    }

    #[test]
    fn every_line_ends_in_crlf() {
        let check = |content: &[u8], cleaned: &[u8]| assert_eq!(&*clean(content), cleaned);
        check(b"", b"");
        check(b"a\r\nb\r\n", b"a\r\nb\r\n");
        check(b"a\nb\rc", b"a\r\nb\r\nc\r\n");
        check(b"\n", b"\r\n");
        check(b"\r", b"\r\n");
        check(b"\r\r\n\n", b"\r\n\r\n\r\n");
        assert!(matches!(clean(b"a\r\n\r\n"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn cleaned_and_stuffed_content_survives(
            words in proptest::collection::vec(proptest::sample::select(vec!["\r", "\n", ".", "\r\n", "x", "\0"]), 0..30)
        ) {
            let words = words.concat();
            let cleaned = clean(words.as_bytes()).into_owned();
            prop_assert_eq!(&*clean(&cleaned), &cleaned[..]);
            let stuffed = stuff(&cleaned).into_owned();
            prop_assert_eq!(memmem::find(&stuffed, b"\r\n.\r\n"), None);
            prop_assert!(!stuffed.starts_with(b".\r\n"));
            prop_assert_eq!(&*unstuff(&stuffed), &cleaned[..]);
        }
    }
}
