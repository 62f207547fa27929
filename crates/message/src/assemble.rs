//! Content as it goes out: additions and slices of the original.

use crate::header::{FieldKind, Header, HeaderEnd};
use crate::pieces::{self, Pieces};
use bytes::Bytes;

/// The fields that submission takes out: Bcc tells recipients of each other (RFC 6409 §8, RFC 5322 §3.6.3),
/// Return-Path is for the final delivery to write (RFC 5321 §4.4).
pub const REMOVED_ON_SUBMISSION: &[FieldKind] =
    &[FieldKind::Bcc, FieldKind::ResentBcc, FieldKind::ReturnPath];
/// The field that a relay takes out (RFC 5321 §4.4).
pub const REMOVED_ON_RELAY: &[FieldKind] = &[FieldKind::ReturnPath];

const EMPTY_LINE: &[u8] = b"\r\n";

/// Content with its changes made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assembled {
    /// Additions and slices of the original, in order.
    pub pieces: Pieces,
    /// Octets of the header section in the pieces, with its empty line.
    pub header_size: u32,
}

/// Puts `prepend` (whole fields, each with its line ending) before the content and leaves out every field
/// of the kinds in `remove`, folded lines included, and an mbox line. Where the scan found the body to begin
/// without an empty line, one is written, so that every later reader sees the header that we judged.
///
/// The content may be longer than what is given, as while it streams in: only the header section must be
/// there, and what follows is sent behind unchanged.
#[must_use]
pub fn assemble(content: &[Bytes], header: &Header, prepend: Bytes, remove: &[FieldKind]) -> Assembled {
    let mut pieces = Pieces::new();
    if !prepend.is_empty() {
        pieces.push(prepend);
    }
    let added = pieces::size(&pieces);
    let mut kept_from = header.mbox_line_size as usize;
    let mut left_out = kept_from;
    if remove.iter().any(|kind| header.has(*kind)) {
        for field in header.fields().iter().filter(|field| remove.contains(&field.kind)) {
            pieces::slice_into(content, kept_from..field.range().start, &mut pieces);
            kept_from = field.range().end;
            left_out += field.range().len();
        }
    }
    let section = header.size as usize;
    let mut header_size = added + section - left_out;
    if header.end == HeaderEnd::BodyLine {
        pieces::slice_into(content, kept_from..section, &mut pieces);
        pieces.push(Bytes::from_static(EMPTY_LINE));
        header_size += EMPTY_LINE.len();
        kept_from = section;
    }
    pieces::slice_into(content, kept_from..usize::MAX, &mut pieces);
    Assembled { pieces, header_size: u32::try_from(header_size).unwrap_or(u32::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HeaderScan;

    fn check(content: &str, prepend: &'static str, expected: &str) {
        for cut in 0..content.len() {
            let content =
                [Bytes::copy_from_slice(&content.as_bytes()[..cut]), Bytes::from(content[cut..].to_owned())];
            let header = HeaderScan::whole(&content);
            let out =
                assemble(&content, &header, Bytes::from_static(prepend.as_bytes()), REMOVED_ON_SUBMISSION);
            assert_eq!(String::from_utf8_lossy(&out.pieces.concat()), expected);
            let again = HeaderScan::whole(&out.pieces);
            assert_eq!(out.header_size, again.size, "{expected}");
            assert!(again.end != HeaderEnd::BodyLine);
        }
    }

    #[test]
    fn bcc_goes_wherever_it_stands() {
        check("To: a\r\n\r\nBcc: body\r\n", "", "To: a\r\n\r\nBcc: body\r\n");
        check("Bcc: x\r\nTo: a\r\n\r\nb\r\n", "R: 1\r\n", "R: 1\r\nTo: a\r\n\r\nb\r\n");
        check("To: a\r\nbCC : x,\r\n y,\r\n\tz\r\nCc: c\r\nBcc:\r\n\r\n", "", "To: a\r\nCc: c\r\n\r\n");
        check("Resent-Bcc: x\r\nReturn-Path: <y>\r\n\r\n", "", "\r\n");
        check("Bcc: x\r\nBcc: y\r\nTo: a\r\n", "", "To: a\r\n");
    }

    #[test]
    fn a_missing_empty_line_is_written() {
        check("To: a\r\nhello\r\nFrom: b\r\n", "R: 1\r\n", "R: 1\r\nTo: a\r\n\r\nhello\r\nFrom: b\r\n");
        check("hello\r\n", "R: 1\r\n", "R: 1\r\n\r\nhello\r\n");
        check("hello\r\n", "", "\r\nhello\r\n");
    }

    #[test]
    fn an_mbox_line_goes() {
        check("From a b\r\nTo: a\r\n\r\nb\r\n", "R: 1\r\n", "R: 1\r\nTo: a\r\n\r\nb\r\n");
    }

    #[test]
    fn an_untouched_content_is_not_copied() {
        let content = [Bytes::from_static(b"To: a\r\n\r\nbody\r\n")];
        let out = assemble(&content, &HeaderScan::whole(&content), Bytes::new(), REMOVED_ON_SUBMISSION);
        assert_eq!(out.pieces[0].as_ptr(), content[0].as_ptr());
        assert_eq!(out.pieces.len(), 1);
    }
}
