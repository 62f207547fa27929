//! From eight bits to seven, for a peer without 8BITMIME or BINARYMIME (RFC 6152 §3).
//!
//! Each part that holds other than seven-bit lines is encoded again as quoted-printable or base64. What
//! a reader decodes stays the same, octet for octet; what would break a signature is refused.

use crate::header::{FieldKind, Header, HeaderScan};
use crate::lines;
use crate::mime::{MediaType, TransferEncoding, media_type, transfer_encoding};
use crate::pieces::{self, Pieces};
use crate::transfer::{write_base64, write_quoted_printable};
use bytes::Bytes;
use memchr::{memchr, memmem};
use postrider_model::Encoding;
use smallvec::SmallVec;
use thiserror::Error;

/// Octets of a content; the conversion needs about three times as much memory for its time.
pub const DOWNGRADE_SIZE_MAX: usize = 64 << 20;
/// Parts within parts.
const DEPTH_MAX: usize = 16;
/// Parts in all.
const PARTS_MAX: usize = 1_000;
/// Octets of a line without its ending (RFC 5321 §4.5.3.1.6).
const LINE_SIZE_MAX: usize = 998;

/// Why content cannot be sent to a peer that takes seven bits only. The recipient fails with 5.6.3, or
/// 5.6.7 for [`DowngradeError::Header`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DowngradeError {
    /// Raw UTF-8 in a header: only a peer with SMTPUTF8 can take it.
    #[error("a header of the message holds characters beyond ASCII, and the peer does not take them")]
    Header,
    /// A signature covers what would change.
    #[error("the message is signed over eight-bit text, and the peer takes seven-bit text only")]
    Signed,
    /// A structure that cannot be followed, or one that says one thing and holds another.
    #[error("the MIME structure of the message is malformed, so it cannot be turned into seven-bit text")]
    Malformed,
    /// Too deep, too many parts or too large.
    #[error("the message is too large or too deeply nested to be turned into seven-bit text")]
    TooLarge,
}

/// Content in seven-bit lines, in [`Encoding::Stuffed`] form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SevenBit {
    /// The content.
    pub pieces: Pieces,
    /// Octets of its header section, with the empty line.
    pub header_size: u32,
    /// It had a DKIM signature, whose body hash no longer fits. Ours is made after this.
    pub breaks_dkim: bool,
}

/// True if content in [`Encoding::Stuffed`] form can go to any peer as it is: seven-bit lines of bearable length.
#[must_use]
pub fn is_seven_bit(content: &[Bytes]) -> bool {
    // A dot added for transparency does not count (RFC 5321 §4.5.3.1.6).
    fits(&lines::unstuff(&pieces::gather(content, 0..pieces::size(content))))
}

/// Converts a content.
///
/// # Errors
/// When it cannot be converted without loss.
pub fn to_seven_bit(content: &[Bytes], encoding: Encoding) -> Result<SevenBit, DowngradeError> {
    let size = pieces::size(content);
    if size > DOWNGRADE_SIZE_MAX {
        return Err(DowngradeError::TooLarge);
    }
    let whole = pieces::gather(content, 0..size);
    let plain = if encoding == Encoding::Stuffed { lines::unstuff(&whole) } else { whole };
    let plain = Bytes::from(plain.into_owned());
    let mut converter = Converter { out: Vec::with_capacity(plain.len() + plain.len() / 2), parts: 0 };
    converter.entity(&plain, Place::Message, 0)?;
    let out = lines::clean(&converter.out);
    let pieces: Pieces = SmallVec::from_iter([Bytes::from(lines::stuff(&out).into_owned())]);
    let header = HeaderScan::whole(&pieces);
    Ok(SevenBit { header_size: header.size, breaks_dkim: header.has(FieldKind::DkimSignature), pieces })
}

/// Where an entity stands, which says what it is if it does not say so itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A message, the whole or one within it.
    Message,
    /// A part of a multipart.
    Part,
    /// A part of a multipart/digest (RFC 2046 §5.1.5).
    DigestPart,
}

struct Converter {
    out: Vec<u8>,
    parts: usize,
}

impl Converter {
    /// Appends an entity, header and body, in seven bits.
    fn entity(&mut self, entity: &Bytes, place: Place, depth: usize) -> Result<(), DowngradeError> {
        self.parts += 1;
        if depth > DEPTH_MAX || self.parts > PARTS_MAX {
            return Err(DowngradeError::TooLarge);
        }
        let content = std::slice::from_ref(entity);
        let header = HeaderScan::whole(content);
        if header.eight_bit {
            return Err(DowngradeError::Header);
        }
        if header.too_large || header.nul || header.bare_cr || header.bare_lf {
            return Err(DowngradeError::Malformed);
        }
        let body = entity.slice(header.size as usize..);
        if fits(&body) {
            self.head(&entity[..header.size as usize]);
            self.out.extend_from_slice(&body);
            return Ok(());
        }
        let media_type = field(&header, content, FieldKind::ContentType, media_type)?;
        let encoding = field(&header, content, FieldKind::ContentTransferEncoding, transfer_encoding)?;
        // An encoding that leaves eight-bit octets is none, and a structure must not be encoded (RFC 2045 §6.4).
        if encoding == Some(TransferEncoding::Encoded) {
            return Err(DowngradeError::Malformed);
        }
        let media_type = media_type.unwrap_or_else(|| default_type(place));
        match &*media_type.kind {
            "multipart" => {
                if matches!(&*media_type.subtype, "signed" | "encrypted") {
                    return Err(DowngradeError::Signed);
                }
                self.header(&header, content, place, "7bit");
                self.multipart(&body, &media_type, depth)
            }
            "message" if media_type.is("message", "rfc822") => {
                self.header(&header, content, place, "7bit");
                self.entity(&body, Place::Message, depth + 1)
            }
            // A form that may not be encoded (RFC 2046 §5.2).
            "message" if !media_type.subtype.starts_with("global") => Err(DowngradeError::Header),
            kind => {
                // Messages with headers in UTF-8 and what reports say of them may be (RFC 6532 §3.7, RFC 6533 §6).
                if matches!(kind, "text" | "message") && is_mostly_ascii(&body) {
                    self.header(&header, content, place, "quoted-printable");
                    write_quoted_printable(&mut self.out, &body);
                } else {
                    self.header(&header, content, place, "base64");
                    write_base64(&mut self.out, &body);
                }
                Ok(())
            }
        }
    }

    /// Appends the header with another transfer encoding, and what makes it MIME if it was not.
    fn header(&mut self, header: &Header, content: &[Bytes], place: Place, encoding: &str) {
        let mut kept = header.mbox_line_size as usize;
        let fields_end = header.fields().last().map_or(kept, |field| field.range().end);
        for field in header.fields().iter().filter(|f| f.kind == FieldKind::ContentTransferEncoding) {
            self.head(&pieces::gather(content, kept..field.range().start));
            kept = field.range().end;
        }
        self.head(&pieces::gather(content, kept..fields_end));
        if place == Place::Message && !header.has(FieldKind::MimeVersion) {
            self.out.extend_from_slice(b"MIME-Version: 1.0\r\n");
            if !header.has(FieldKind::ContentType) {
                // Nobody said what the octets mean (RFC 1428 §3).
                self.out.extend_from_slice(b"Content-Type: text/plain; charset=unknown-8bit\r\n");
            }
        }
        self.out.extend_from_slice(format!("Content-Transfer-Encoding: {encoding}\r\n\r\n").as_bytes());
    }

    /// Appends lines of a header, those too long folded where white space stands (RFC 5322 §2.2.3), or by
    /// force, as Postfix does, where none stands.
    fn head(&mut self, lines: &[u8]) {
        wrap(&mut self.out, lines, |line| {
            let text = line.iter().position(|b| !is_blank(*b)).unwrap_or(0);
            let fold = line.iter().rposition(|b| is_blank(*b)).filter(|at| *at > text);
            fold.map_or((line.len(), &b" "[..]), |at| (at, b""))
        });
    }

    /// Appends the parts between their boundaries. What stands before the first and after the last is for
    /// no reader, so that its eight-bit octets may become `?`.
    fn multipart(
        &mut self,
        body: &Bytes,
        media_type: &MediaType,
        depth: usize,
    ) -> Result<(), DowngradeError> {
        let boundary = media_type.boundary.as_deref().ok_or(DowngradeError::Malformed)?;
        let place = if media_type.subtype == "digest" { Place::DigestPart } else { Place::Part };
        let mut delimiters = Delimiters { body, boundary: boundary.as_bytes(), at: 0 };
        let first = delimiters.next().ok_or(DowngradeError::Malformed)?;
        self.ignored(&body[..first.start]);
        let mut current = first;
        loop {
            let delimiter = &body[current.start..current.end];
            if !fits(delimiter) {
                return Err(DowngradeError::Malformed);
            }
            self.out.extend_from_slice(delimiter);
            if current.is_last {
                self.ignored(&body[current.end..]);
                return Ok(());
            }
            let next = delimiters.next();
            let end = next.as_ref().map_or(body.len(), |next| next.start);
            self.entity(&body.slice(current.end.min(end)..end), place, depth + 1)?;
            // A missing last boundary is tolerated, as every reader does.
            let Some(next) = next else { return Ok(()) };
            current = next;
        }
    }

    fn ignored(&mut self, octets: &[u8]) {
        let plain = |b: &u8| if b.is_ascii() && *b != 0 { *b } else { b'?' };
        let octets: Vec<u8> = octets.iter().map(plain).collect();
        wrap(&mut self.out, &octets, |line| (line.len(), b""));
    }
}

/// A boundary line, from the line ending before it to its own.
struct Delimiter {
    start: usize,
    end: usize,
    is_last: bool,
}

struct Delimiters<'a> {
    body: &'a [u8],
    boundary: &'a [u8],
    at: usize,
}

impl Iterator for Delimiters<'_> {
    type Item = Delimiter;

    fn next(&mut self) -> Option<Delimiter> {
        let dashes = b"--";
        loop {
            let found = self.at + memmem::find(&self.body[self.at..], dashes)?;
            self.at = found + 1;
            let line_begins = found == 0 || self.body[..found].ends_with(b"\r\n");
            let Some(after) = self.body[found + dashes.len()..].strip_prefix(self.boundary) else { continue };
            if !line_begins {
                continue;
            }
            let is_last = after.starts_with(dashes);
            let rest = if is_last { &after[dashes.len()..] } else { after };
            let padding = rest.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
            let rest = &rest[padding..];
            if !rest.is_empty() && !rest.starts_with(b"\r\n") {
                continue;
            }
            let line_end = self.body.len() - rest.len();
            // The ending of the last boundary belongs to what follows, so that it is written once.
            let end = if is_last || rest.is_empty() { line_end } else { line_end + 2 };
            // The line ending before a boundary belongs to it (RFC 2046 §5.1.1); between two boundaries in a
            // row it ends the first.
            let start = if found == 0 { 0 } else { found - 2 };
            self.at = line_end;
            return Some(Delimiter { start, end, is_last });
        }
    }
}

/// The only field of a kind, read; `None` if there is none.
fn field<T>(
    header: &Header,
    content: &[Bytes],
    kind: FieldKind,
    read: impl Fn(&[u8]) -> Option<T>,
) -> Result<Option<T>, DowngradeError> {
    match header.count(kind) {
        0 => Ok(None),
        1 => {
            let value = header.first(kind).map(|field| header.value(field, content)).unwrap_or_default();
            read(&value).map(Some).ok_or(DowngradeError::Malformed)
        }
        _ => Err(DowngradeError::Malformed),
    }
}

fn default_type(place: Place) -> MediaType {
    let (kind, subtype) = if place == Place::DigestPart { ("message", "rfc822") } else { ("text", "plain") };
    MediaType { kind: kind.into(), subtype: subtype.into(), boundary: None }
}

/// Appends lines, those too long broken: `cut` tells, for as much as a line may hold, where it ends and what
/// the next one begins with.
fn wrap(out: &mut Vec<u8>, lines: &[u8], cut: impl Fn(&[u8]) -> (usize, &'static [u8])) {
    for line in lines.split_inclusive(|b| *b == b'\n') {
        let text = line.strip_suffix(b"\r\n").unwrap_or(line);
        let (mut rest, mut room) = (text, LINE_SIZE_MAX);
        while rest.len() > room {
            let (end, begin) = cut(&rest[..room]);
            out.extend_from_slice(&rest[..end]);
            out.extend_from_slice(b"\r\n");
            out.extend_from_slice(begin);
            rest = &rest[end..];
            room = LINE_SIZE_MAX - begin.len();
        }
        out.extend_from_slice(rest);
        out.extend_from_slice(&line[text.len()..]);
    }
}

fn is_blank(octet: u8) -> bool {
    matches!(octet, b' ' | b'\t')
}

/// Seven-bit lines: no octet above 127, no NUL, CR and LF only together, no line too long.
fn fits(body: &[u8]) -> bool {
    if !body.is_ascii() || memchr(0, body).is_some() {
        return false;
    }
    let mut rest = body;
    while let Some(at) = memchr(b'\n', rest) {
        let Some(line) = rest[..at].strip_suffix(b"\r") else { return false };
        if line.len() > LINE_SIZE_MAX || memchr(b'\r', line).is_some() {
            return false;
        }
        rest = &rest[at + 1..];
    }
    rest.len() <= LINE_SIZE_MAX && memchr(b'\r', rest).is_none()
}

/// Quoted-printable is shorter than base64 and legible while at most one octet in six needs encoding.
fn is_mostly_ascii(body: &[u8]) -> bool {
    let plain =
        body.iter().filter(|b| matches!(b, b' '..=b'<' | b'>'..=b'~' | b'\r' | b'\n' | b'\t')).count();
    (body.len() - plain) * 6 <= body.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn convert(content: &[u8], encoding: Encoding) -> Result<Vec<u8>, DowngradeError> {
        let out = to_seven_bit(&[Bytes::copy_from_slice(content)], encoding)?;
        assert!(is_seven_bit(&out.pieces), "{:?}", out.pieces);
        let out = out.pieces.concat();
        assert_eq!(lines::clean(&out), out);
        Ok(out)
    }

    fn check(content: &str, expected: Result<&str, DowngradeError>) {
        let found = convert(content.as_bytes(), Encoding::Stuffed).map(|out| String::from_utf8(out).unwrap());
        assert_eq!(found.as_deref(), expected.as_deref(), "{content}");
    }

    #[test]
    fn seven_bits_stay_as_they_are() {
        let content = "From: a\r\nContent-Transfer-Encoding: 8bit\r\n\r\n..x\r\n";
        check(content, Ok(content));
    }

    #[test]
    fn text_becomes_quoted_printable_and_other_octets_base64() {
        check(
            "MIME-Version: 1.0\r\nContent-Transfer-Encoding: 8bit\r\nTo: b\r\n\r\nmany words, one ü\r\n..\r\n",
            Ok("MIME-Version: 1.0\r\nTo: b\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n\
                many words, one =C3=BC\r\n=2E\r\n"),
        );
        check(
            "MIME-Version: 1.0\r\nContent-Type: image/x\r\n\r\nü\r\n",
            Ok(
                "MIME-Version: 1.0\r\nContent-Type: image/x\r\nContent-Transfer-Encoding: base64\r\n\r\nw7wNCg==\r\n",
            ),
        );
    }

    #[test]
    fn what_was_no_mime_says_that_its_charset_is_unknown() {
        check(
            "To: b\r\n\r\nmany words, one ü\r\n",
            Ok("To: b\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=unknown-8bit\r\n\
                Content-Transfer-Encoding: quoted-printable\r\n\r\nmany words, one =C3=BC\r\n"),
        );
    }

    #[test]
    fn only_the_parts_that_need_it_are_encoded() {
        let head = "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n";
        let inner = "--b\r\n\r\nplain\r\n--b\r\nContent-Type: message/rfc822\r\n\r\nTo: x\r\n\r\n";
        check(
            &format!("{head}\r\nprä\r\n{inner}many words, one ü\r\n--b--\r\nepü\r\n"),
            Ok(&format!(
                "{head}Content-Transfer-Encoding: 7bit\r\n\r\npr??\r\n\
                 --b\r\n\r\nplain\r\n--b\r\nContent-Type: message/rfc822\r\nContent-Transfer-Encoding: 7bit\r\n\r\n\
                 To: x\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=unknown-8bit\r\n\
                 Content-Transfer-Encoding: quoted-printable\r\n\r\nmany words, one =C3=BC\r\n--b--\r\nep??\r\n"
            )),
        );
    }

    #[test]
    fn a_report_on_addresses_in_utf8_can_be_encoded() {
        let head = "MIME-Version: 1.0\r\nContent-Type: message/global-delivery-status\r\n";
        check(
            &format!(
                "{head}\r\nReporting-MTA: dns; a.example\r\n\r\nFinal-Recipient: utf-8; ü@b.example\r\n"
            ),
            Ok(&format!(
                "{head}Content-Transfer-Encoding: quoted-printable\r\n\r\nReporting-MTA: dns; a.example\r\n\r\n\
                 Final-Recipient: utf-8; =C3=BC@b.example\r\n"
            )),
        );
    }

    #[test]
    fn what_cannot_be_converted_without_loss_is_refused() {
        let mime = |fields: &str, body: &str| format!("MIME-Version: 1.0\r\n{fields}\r\n\r\n{body}\r\n");
        let refused = |content: String, error| check(&content, Err(error));
        refused("Subject: ü\r\n\r\nx\r\n".into(), DowngradeError::Header);
        refused(
            mime("Content-Type: multipart/signed; boundary=b", "--b\r\n\r\nü\r\n--b--"),
            DowngradeError::Signed,
        );
        refused(mime("Content-Type: multipart/mixed", "ü"), DowngradeError::Malformed);
        refused(mime("Content-Type: multipart/mixed; boundary=b", "ü"), DowngradeError::Malformed);
        refused(mime("Content-Transfer-Encoding: base64", "ü"), DowngradeError::Malformed);
        refused(mime("Content-Transfer-Encoding: x-odd", "ü"), DowngradeError::Malformed);
        refused(mime("Content-Type: a/b\r\nContent-Type: c/d", "ü"), DowngradeError::Malformed);
        refused(mime("Content-Type: message/partial", "ü"), DowngradeError::Header);
        refused(mime("Content-Type: message/rfc822", "Subject: ü\r\n\r\n"), DowngradeError::Header);
    }

    #[test]
    fn nesting_and_parts_are_bounded() {
        let mut nested = String::from("MIME-Version: 1.0\r\n");
        for depth in 0..=DEPTH_MAX + 1 {
            nested += &format!("Content-Type: multipart/mixed; boundary=b{depth}\r\n\r\n--b{depth}\r\n");
        }
        check(&format!("{nested}\r\nü\r\n"), Err(DowngradeError::TooLarge));
        let many = "--b\r\n\r\nü\r\n".repeat(PARTS_MAX + 1);
        check(
            &format!("Content-Type: multipart/mixed; boundary=b\r\n\r\n{many}"),
            Err(DowngradeError::TooLarge),
        );
    }

    #[test]
    fn binary_octets_and_long_lines_are_encoded() {
        let content =
            b"MIME-Version: 1.0\r\nContent-Type: a/b\r\nContent-Transfer-Encoding: binary\r\n\r\n\0\n\r\xff";
        let out = convert(content, Encoding::Binary).unwrap();
        assert!(out.ends_with(b"Content-Transfer-Encoding: base64\r\n\r\nAAoN/w==\r\n"));
        let long = format!("MIME-Version: 1.0\r\n\r\n{}\r\n", "x".repeat(2_000));
        let out = convert(long.as_bytes(), Encoding::Stuffed).unwrap();
        assert!(out.split(|b| *b == b'\n').all(|line| line.len() < 80));
    }

    #[test]
    fn long_lines_of_a_header_and_around_parts_are_broken() {
        let x = |count| "x".repeat(count);
        check(
            &format!("Subject: {} {}\r\nX: {}\r\n\r\ny\r\n", x(700), x(700), x(1_995)),
            Ok(&format!(
                "Subject: {}\r\n {}\r\nX:\r\n {}\r\n {}\r\n x\r\n\r\ny\r\n",
                x(700),
                x(700),
                x(997),
                x(997)
            )),
        );
        let head = "Content-Type: multipart/mixed; boundary=b\r\n";
        check(
            &format!("{head}\r\n{}\r\n--b\r\n\r\ny\r\n--b--\r\n", x(1_000)),
            Ok(&format!(
                "{head}MIME-Version: 1.0\r\nContent-Transfer-Encoding: 7bit\r\n\r\n\
                 {}\r\nxx\r\n--b\r\n\r\ny\r\n--b--\r\n",
                x(998)
            )),
        );
    }

    #[test]
    fn a_broken_dkim_signature_is_told() {
        let content = [Bytes::from("DKIM-Signature: x\r\n\r\nü\r\n")];
        assert!(to_seven_bit(&content, Encoding::Stuffed).unwrap().breaks_dkim);
    }

    proptest! {
        #[test]
        fn any_structure_is_converted_or_refused_without_a_panic(
            words in proptest::collection::vec(proptest::sample::select(vec![
                "Content-Type: multipart/mixed; boundary=b\r\n", "Content-Type: message/rfc822\r\n", "\r\n", "--b",
                "--b\r\n", "--b--\r\n", "ü", "x", ".", "\n", " ", "Content-Transfer-Encoding: 8bit\r\n", "--",
            ]), 0..30)
        ) {
            let content = words.concat();
            for encoding in [Encoding::Stuffed, Encoding::Plain, Encoding::Binary] {
                let _ = convert(content.as_bytes(), encoding);
            }
        }
    }
}
