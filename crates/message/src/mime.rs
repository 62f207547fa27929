//! What a part says of itself: its media type, its boundary and its transfer encoding (RFC 2045 §5, §6).

/// A media type with the parameters that structure needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MediaType {
    /// In lower case.
    pub(crate) kind: String,
    /// In lower case.
    pub(crate) subtype: String,
    /// Of a multipart.
    pub(crate) boundary: Option<String>,
}

impl MediaType {
    pub(crate) fn is(&self, kind: &str, subtype: &str) -> bool {
        self.kind == kind && self.subtype == subtype
    }
}

/// Reads the value of a Content-Type field; `None` when it is malformed.
pub(crate) fn media_type(value: &[u8]) -> Option<MediaType> {
    let mut cursor = Cursor { rest: value };
    let kind = cursor.token()?.to_ascii_lowercase();
    cursor.special(b'/')?;
    let subtype = cursor.token()?.to_ascii_lowercase();
    let mut boundary = None;
    while cursor.special(b';').is_some() {
        // A semicolon at the end is common and means nothing.
        let Some(name) = cursor.token() else { break };
        cursor.special(b'=')?;
        let text = cursor.value()?;
        if name.eq_ignore_ascii_case("boundary") {
            // Two boundaries would let two readers see two structures.
            if boundary.is_some() || text.is_empty() || text.len() > 70 {
                return None;
            }
            boundary = Some(text);
        }
    }
    cursor.skip()?;
    if cursor.rest.is_empty() { Some(MediaType { kind, subtype, boundary }) } else { None }
}

/// A content transfer encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransferEncoding {
    /// `7bit`, `8bit`, `binary`, or nothing said.
    Identity,
    /// `quoted-printable` or `base64`.
    Encoded,
}

/// Reads the value of a Content-Transfer-Encoding field; `None` when it is unknown.
pub(crate) fn transfer_encoding(value: &[u8]) -> Option<TransferEncoding> {
    let mut cursor = Cursor { rest: value };
    let token = cursor.token()?.to_ascii_lowercase();
    cursor.skip()?;
    if !cursor.rest.is_empty() {
        return None;
    }
    match &*token {
        "7bit" | "8bit" | "binary" => Some(TransferEncoding::Identity),
        "quoted-printable" | "base64" => Some(TransferEncoding::Encoded),
        _ => None,
    }
}

struct Cursor<'a> {
    rest: &'a [u8],
}

impl Cursor<'_> {
    /// White space, line folds and comments; `None`, and nothing is skipped, when a comment is not closed.
    fn skip(&mut self) -> Option<()> {
        let start = self.rest;
        let mut depth = 0u32;
        loop {
            match (self.rest.first(), depth) {
                (Some(b' ' | b'\t' | b'\r' | b'\n'), _) => self.advance(1),
                (Some(b'('), _) => {
                    depth += 1;
                    self.advance(1);
                }
                (Some(b')'), 1..) => {
                    depth -= 1;
                    self.advance(1);
                }
                (Some(b'\\'), 1..) => self.advance(2),
                (Some(_), 1..) => self.advance(1),
                (None, 1..) => {
                    self.rest = start;
                    return None;
                }
                _ => return Some(()),
            }
        }
    }

    fn advance(&mut self, count: usize) {
        self.rest = self.rest.get(count..).unwrap_or_default();
    }

    fn special(&mut self, special: u8) -> Option<()> {
        self.skip()?;
        self.rest = self.rest.strip_prefix(&[special])?;
        Some(())
    }

    fn token(&mut self) -> Option<String> {
        self.skip()?;
        let in_token = |b: &u8| (0x21..=0x7e).contains(b) && !b"()<>@,;:\\\"/[]?=".contains(b);
        let size = self.rest.iter().take_while(|b| in_token(b)).count();
        let token =
            std::str::from_utf8(&self.rest[..size]).ok().filter(|token| !token.is_empty())?.to_owned();
        self.advance(size);
        Some(token)
    }

    /// A token or a quoted string.
    fn value(&mut self) -> Option<String> {
        self.skip()?;
        if self.rest.first() != Some(&b'"') {
            return self.token();
        }
        self.advance(1);
        let mut out = Vec::new();
        loop {
            match *self.rest.first()? {
                b'"' => {
                    self.advance(1);
                    return String::from_utf8(out).ok();
                }
                b'\\' => {
                    out.push(*self.rest.get(1)?);
                    self.advance(2);
                }
                b'\r' | b'\n' => self.advance(1),
                b => {
                    out.push(b);
                    self.advance(1);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn media_types_are_read() {
        let check = |value: &str, expected: Option<(&str, &str, Option<&str>)>| {
            let found = media_type(value.as_bytes());
            let found = found.as_ref().map(|t| (&*t.kind, &*t.subtype, t.boundary.as_deref()));
            assert_eq!(found, expected, "{value}");
        };
        check(" Text/PLAIN\r\n", Some(("text", "plain", None)));
        check("text/plain; charset=utf-8;", Some(("text", "plain", None)));
        check(
            "multipart/mixed;\r\n\tBoundary=\"a \\\"b\"; x=y (c (d) \\) e)",
            Some(("multipart", "mixed", Some("a \"b"))),
        );
        check("multipart/mixed; boundary=a; boundary=b", None);
        check("multipart/mixed; boundary=", None);
        check("multipart/mixed; boundary=\"a", None);
        check("text", None);
        check("text/plain (", None);
        check("text/plain, text/html", None);
        check("", None);
    }

    #[test]
    fn transfer_encodings_are_read() {
        assert_eq!(transfer_encoding(b" 8BIT (x)\r\n"), Some(TransferEncoding::Identity));
        assert_eq!(transfer_encoding(b"Base64"), Some(TransferEncoding::Encoded));
        assert_eq!(transfer_encoding(b"x-uuencode"), None);
        assert_eq!(transfer_encoding(b"8bit; x"), None);
    }

    proptest! {
        #[test]
        fn any_value_is_read_or_refused_without_a_panic(value: Vec<u8>, text in "[a-z/;=\"\\\\( )]{0,30}") {
            let _ = (media_type(&value), transfer_encoding(&value), media_type(text.as_bytes()));
        }
    }
}
