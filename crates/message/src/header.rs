//! The header section, read once while it streams in.
//!
//! The scan is strict about what a field is, because whoever decides by a field (who wrote this? how many
//! hops?) must see the same fields as every later reader. What it cannot place ends the section, and
//! [`crate::assemble`] then writes the empty line that was missing, so that later readers agree.

use crate::pieces::{self, Pieces};
use bytes::Bytes;
use memchr::{memchr, memchr2};
use smallvec::SmallVec;
use std::borrow::Cow;
use std::ops::Range;

/// Octets of a header section; what is longer is refused.
pub const HEADER_SIZE_MAX: usize = 1 << 20;
/// Fields of a header section; more are refused.
pub const FIELDS_MAX: usize = 1_000;
/// Received fields beyond which a message is taken to loop (RFC 5321 §6.3 asks for at least 100 only of
/// relays that cannot be configured; Postfix and Exim count 50 and 30).
pub const HOPS_MAX: usize = 50;
/// Octets of a field's name; a longer one is no field.
const NAME_SIZE_MAX: usize = 128;
/// What is kept of a line that a piece broke: enough for its name and what tells it apart.
const CARRY_SIZE_MAX: usize = NAME_SIZE_MAX + 32;

macro_rules! kinds {
    ($($kind:ident = $name:literal,)*) => {
        /// The fields that a relay treats in some special way.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        #[expect(missing_docs, reason = "each is named after its field")]
        pub enum FieldKind { $($kind,)* Other }

        impl FieldKind {
            const NAMES: &[(&str, FieldKind)] = &[$(($name, FieldKind::$kind),)*];
            const COUNT: usize = FieldKind::Other as usize + 1;

            fn of(name: &[u8]) -> FieldKind {
                // The length and first letter rule out nearly every candidate before a comparison.
                $(if name.len() == $name.len() && name.eq_ignore_ascii_case($name.as_bytes()) {
                    return FieldKind::$kind;
                })*
                FieldKind::Other
            }
        }
    };
}

kinds! {
    Received = "received",
    From = "from",
    Sender = "sender",
    ReplyTo = "reply-to",
    To = "to",
    Cc = "cc",
    Bcc = "bcc",
    Date = "date",
    MessageId = "message-id",
    Subject = "subject",
    ReturnPath = "return-path",
    MimeVersion = "mime-version",
    ContentType = "content-type",
    ContentTransferEncoding = "content-transfer-encoding",
    DkimSignature = "dkim-signature",
    AutoSubmitted = "auto-submitted",
    References = "references",
    ResentFrom = "resent-from",
    ResentSender = "resent-sender",
    ResentTo = "resent-to",
    ResentCc = "resent-cc",
    ResentBcc = "resent-bcc",
    ResentDate = "resent-date",
    ResentMessageId = "resent-message-id",
}

/// One field: where it stands in the content, folded lines and final line ending included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// First octet of the name.
    pub start: u32,
    /// First octet after the field.
    pub end: u32,
    /// First octet after the colon.
    pub value: u32,
    /// Which.
    pub kind: FieldKind,
}

impl Field {
    /// Where it stands.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// How the header section ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeaderEnd {
    /// With an empty line, which belongs to [`Header::size`].
    EmptyLine,
    /// With a line that is no field and continues none: that line is the body's first, the empty line is
    /// missing (as in Postfix).
    BodyLine,
    /// With the content: there is no body.
    #[default]
    Content,
}

/// What a scan found.
#[derive(Clone, Debug, Default)]
pub struct Header {
    fields: SmallVec<[Field; 32]>,
    counts: [u16; FieldKind::COUNT],
    /// Octets from the content's start to the body, the empty line included.
    pub size: u32,
    /// How it ended.
    pub end: HeaderEnd,
    /// Octets of an mbox `From ` line at the very start, which is no field and is left out by
    /// [`crate::assemble`]; 0 when there is none.
    pub mbox_line_size: u32,
    /// There is a NUL.
    pub nul: bool,
    /// There is a CR that no LF follows.
    pub bare_cr: bool,
    /// There is an LF that follows no CR.
    pub bare_lf: bool,
    /// There is an octet above 127.
    pub eight_bit: bool,
    /// More than [`HEADER_SIZE_MAX`] octets or [`FIELDS_MAX`] fields: the scan gave up, refuse the message.
    pub too_large: bool,
}

impl Header {
    /// All fields, in order.
    #[must_use]
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// How many fields of a kind there are.
    #[must_use]
    pub fn count(&self, kind: FieldKind) -> usize {
        usize::from(self.counts[kind as usize])
    }

    /// True if there is a field of this kind.
    #[must_use]
    pub fn has(&self, kind: FieldKind) -> bool {
        self.counts[kind as usize] > 0
    }

    /// The first field of a kind.
    #[must_use]
    pub fn first(&self, kind: FieldKind) -> Option<&Field> {
        if self.has(kind) { self.fields.iter().find(|field| field.kind == kind) } else { None }
    }

    /// How many relays the message has passed: its Received fields (RFC 5321 §6.3).
    #[must_use]
    pub fn hops(&self) -> usize {
        self.count(FieldKind::Received)
    }

    /// The message has passed [`HOPS_MAX`] relays or more.
    #[must_use]
    pub fn loops(&self) -> bool {
        self.hops() >= HOPS_MAX
    }

    /// The octets of a field's value, after the colon, with folding and final line ending.
    #[must_use]
    pub fn value<'a>(&self, field: &Field, content: &'a [Bytes]) -> Cow<'a, [u8]> {
        pieces::gather(content, field.value as usize..field.end as usize)
    }

    /// The value of the first field of a kind as one line of text: unfolded, trimmed, controls and what is
    /// no UTF-8 replaced, at most `size_max` octets.
    #[must_use]
    pub fn text(&self, kind: FieldKind, content: &[Bytes], size_max: usize) -> Option<String> {
        let value = self.value(self.first(kind)?, content);
        let cut = &value[..value.len().min(size_max.saturating_mul(2))];
        let mut text = String::with_capacity(cut.len().min(size_max));
        for word in String::from_utf8_lossy(cut).split_ascii_whitespace() {
            let space = usize::from(!text.is_empty());
            if text.len() + space + word.len() > size_max {
                break;
            }
            if space == 1 {
                text.push(' ');
            }
            text.extend(word.chars().map(|c| if c.is_control() { '?' } else { c }));
        }
        Some(text)
    }

    /// The header section as slices of the content, without its empty line.
    #[must_use]
    pub fn slices(&self, content: &[Bytes]) -> Pieces {
        let start = self.mbox_line_size as usize;
        let end = self.fields.last().map_or(start, |field| field.end as usize);
        pieces::slice(content, start..end)
    }

    fn push(&mut self, field: Field) {
        self.counts[field.kind as usize] += 1;
        self.fields.push(field);
    }
}

/// What a line of a header section is.
enum Line {
    Empty,
    /// Folded: it begins with white space.
    Continuation,
    /// Its kind and the octets up to and including the colon.
    Field(FieldKind, u32),
    Other,
}

/// A scan in progress. Feed it the content's pieces until [`HeaderScan::feed`] says that the section is
/// complete, or [`HeaderScan::finish`] it where the content ends.
///
/// Costs about a microsecond for a usual header; allocates only beyond 32 fields. One scan serves many
/// messages, with [`HeaderScan::reset`] between them.
#[derive(Clone, Debug, Default)]
pub struct HeaderScan {
    header: Header,
    complete: bool,
    /// Octets of the pieces before.
    seen: usize,
    /// Where the current line begins.
    line_start: usize,
    /// The current line's first octets, if they came in an earlier piece.
    carry: SmallVec<[u8; CARRY_SIZE_MAX]>,
    ends_in_cr: bool,
    /// What is odd in the current line so far; it counts only if the line is not the body's first.
    line_odd: Odd,
}

/// Octets that should not be there.
#[derive(Clone, Copy, Debug, Default)]
struct Odd {
    nul: bool,
    bare_cr: bool,
    bare_lf: bool,
    eight_bit: bool,
}

impl HeaderScan {
    /// A scan at the content's start.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Scans a whole content.
    #[must_use]
    pub fn whole(content: &[Bytes]) -> Header {
        let mut scan = Self::new();
        for piece in content {
            if scan.feed(piece) {
                break;
            }
        }
        scan.finish()
    }

    /// Begins anew, for the next message.
    pub fn reset(&mut self) {
        let mut fields = std::mem::take(&mut self.header.fields);
        fields.clear();
        *self = Self { header: Header { fields, ..Header::default() }, ..Self::default() };
    }

    /// Takes the next octets of the content; true when the header section is complete, after which
    /// further octets are ignored.
    pub fn feed(&mut self, piece: &[u8]) -> bool {
        if self.complete || piece.is_empty() {
            return self.complete;
        }
        self.line_odd.bare_cr |= self.ends_in_cr && piece[0] != b'\n';
        let base = self.seen;
        let mut line = 0;
        let mut from = 0;
        while let Some(found) = memchr2(b'\r', b'\n', &piece[from..]) {
            let at = from + found;
            let next = piece.get(at + 1);
            if piece[at] == b'\r' && next != Some(&b'\n') {
                self.line_odd.bare_cr |= next.is_some();
                from = at + 1;
                continue;
            }
            let end = if piece[at] == b'\r' { at + 2 } else { at + 1 };
            self.line_odd.bare_lf |= piece[at] == b'\n' && !(at == 0 && self.ends_in_cr);
            self.line(&piece[line..end], base + end);
            (line, from) = (end, end);
            if self.complete {
                let section = (self.header.size as usize).saturating_sub(base);
                self.note_octets(&piece[..section.min(piece.len())]);
                return true;
            }
        }
        let (lines, broken) = piece.split_at(line);
        self.note_octets(lines);
        self.line_odd.eight_bit |= !broken.is_ascii();
        self.line_odd.nul |= memchr(0, broken).is_some();
        self.seen += piece.len();
        self.ends_in_cr = piece.last() == Some(&b'\r');
        let room = CARRY_SIZE_MAX - self.carry.len();
        self.carry.extend_from_slice(&broken[..broken.len().min(room)]);
        if self.seen > HEADER_SIZE_MAX {
            self.give_up();
        }
        self.complete
    }

    /// What was found, when the section is complete.
    #[must_use]
    pub fn header(&self) -> Option<&Header> {
        self.complete.then_some(&self.header)
    }

    /// Ends the scan where the content ends; gives what was found.
    #[must_use]
    pub fn finish(mut self) -> Header {
        self.end();
        self.header
    }

    /// Ends the scan where the content ends, if the section is not complete by then, and keeps the scan
    /// for the next message.
    pub fn end(&mut self) -> &Header {
        if !self.complete {
            self.line_odd.bare_cr |= self.ends_in_cr;
            if self.line_start < self.seen {
                self.line(&[], self.seen);
            }
            if !self.complete {
                self.complete(self.seen, self.seen, HeaderEnd::Content);
            }
        }
        &self.header
    }

    /// A line is complete; `rest` is what of it came in the current piece, `end` where it ends.
    fn line(&mut self, rest: &[u8], end: usize) {
        let start = self.line_start;
        let line = if self.carry.is_empty() {
            classify(rest)
        } else {
            let room = CARRY_SIZE_MAX - self.carry.len();
            self.carry.extend_from_slice(&rest[..rest.len().min(room)]);
            classify(&self.carry)
        };
        match line {
            Line::Field(kind, value) => {
                self.close_field(start);
                if self.header.fields.len() == FIELDS_MAX {
                    return self.give_up();
                }
                let start = offset(start);
                self.header.push(Field { start, end: start, value: start + value, kind });
            }
            Line::Continuation if !self.header.fields.is_empty() => {}
            Line::Empty => {
                self.keep_odd();
                return self.complete(start, end, HeaderEnd::EmptyLine);
            }
            Line::Other
                if start == 0 && is_mbox_line(if self.carry.is_empty() { rest } else { &self.carry }) =>
            {
                self.header.mbox_line_size = offset(end);
            }
            Line::Other | Line::Continuation => return self.complete(start, start, HeaderEnd::BodyLine),
        }
        self.keep_odd();
        self.line_start = end;
        self.carry.clear();
        if end > HEADER_SIZE_MAX {
            self.give_up();
        }
    }

    fn keep_odd(&mut self) {
        let odd = std::mem::take(&mut self.line_odd);
        self.header.nul |= odd.nul;
        self.header.bare_cr |= odd.bare_cr;
        self.header.bare_lf |= odd.bare_lf;
        self.header.eight_bit |= odd.eight_bit;
    }

    fn close_field(&mut self, end: usize) {
        if let Some(field) = self.header.fields.last_mut() {
            field.end = offset(end);
        }
    }

    fn complete(&mut self, fields_end: usize, size: usize, end: HeaderEnd) {
        self.close_field(fields_end);
        self.header.size = offset(size);
        self.header.end = end;
        self.complete = true;
    }

    fn give_up(&mut self) {
        self.header.too_large = true;
        self.complete(self.line_start, self.line_start, HeaderEnd::BodyLine);
    }

    fn note_octets(&mut self, octets: &[u8]) {
        self.header.eight_bit |= !octets.is_ascii();
        self.header.nul |= memchr(0, octets).is_some();
    }
}

/// Offsets within a header section fit: [`HEADER_SIZE_MAX`] bounds it, but for the last piece.
fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// What the line that begins with `head` is. Its name is of printable ASCII without a colon (RFC 5322 §2.2);
/// white space before the colon is obsolete (§4.5) and still names the same field. A name never begins
/// with a dot here: in dot-stuffed content it could not be told from the body.
///
/// Only as much of the line counts as is kept of one that comes in pieces, so that the cuts change nothing.
fn classify(head: &[u8]) -> Line {
    let head = &head[..head.len().min(CARRY_SIZE_MAX)];
    match head.first() {
        Some(b' ' | b'\t') => return Line::Continuation,
        Some(b'\n') => return Line::Empty,
        Some(b'\r') if head.get(1) == Some(&b'\n') => return Line::Empty,
        None | Some(b'.' | b':') => return Line::Other,
        Some(_) => {}
    }
    let name = head.iter().take(NAME_SIZE_MAX).take_while(|b| (33..=126).contains(*b) && **b != b':').count();
    let space = head[name..].iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
    match head.get(name + space) {
        Some(b':') if name > 0 => Line::Field(FieldKind::of(&head[..name]), offset(name + space + 1)),
        _ => Line::Other,
    }
}

/// `From ada@example.com Tue Nov 24 …`: the line that separates messages in an mbox file.
fn is_mbox_line(line: &[u8]) -> bool {
    line.strip_prefix(b">").unwrap_or(line).starts_with(b"From ")
}

impl FieldKind {
    /// The field's name in lower case; empty for [`FieldKind::Other`].
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES.get(self as usize).map_or("", |(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scan(content: &str) -> Header {
        HeaderScan::whole(&[Bytes::copy_from_slice(content.as_bytes())])
    }

    /// Fields as `kind:start..end`, the size and the end.
    fn check(content: &str, fields: &[(FieldKind, &str)], size: usize, end: HeaderEnd) {
        let header = scan(content);
        let found: Vec<_> = header.fields().iter().map(|f| (f.kind, &content[f.range()])).collect();
        assert_eq!(found, fields, "{content:?}");
        assert_eq!((header.size as usize, header.end), (size, end), "{content:?}");
    }

    #[test]
    fn fields_are_found_with_their_folded_lines() {
        use FieldKind::{From, Other, Subject, To};
        check("\r\nbody", &[], 2, HeaderEnd::EmptyLine);
        check("", &[], 0, HeaderEnd::Content);
        check("From: a\r\n\r\n", &[(From, "From: a\r\n")], 11, HeaderEnd::EmptyLine);
        check(
            "fRoM : a\r\nX-y:\r\n z\r\n\tt\r\nsubject:s\r\n\r\nTo: x\r\n",
            &[(From, "fRoM : a\r\n"), (Other, "X-y:\r\n z\r\n\tt\r\n"), (Subject, "subject:s\r\n")],
            37,
            HeaderEnd::EmptyLine,
        );
        check("To: a\r\n", &[(To, "To: a\r\n")], 7, HeaderEnd::Content);
        check("To: a", &[(To, "To: a")], 5, HeaderEnd::Content);
        check("To: a\r\n b", &[(To, "To: a\r\n b")], 9, HeaderEnd::Content);
    }

    #[test]
    fn a_line_that_is_no_field_begins_the_body() {
        use FieldKind::{From, To};
        check("hello\r\nFrom: a\r\n", &[], 0, HeaderEnd::BodyLine);
        check(" folded\r\nFrom: a\r\n", &[], 0, HeaderEnd::BodyLine);
        check("From: a\r\nFr om: b\r\n", &[(From, "From: a\r\n")], 9, HeaderEnd::BodyLine);
        check("From: a\r\n: b\r\n", &[(From, "From: a\r\n")], 9, HeaderEnd::BodyLine);
        check("From: a\r\n..To: b\r\n", &[(From, "From: a\r\n")], 9, HeaderEnd::BodyLine);
        check("From: a\r\nJürgen: b\r\n", &[(From, "From: a\r\n")], 9, HeaderEnd::BodyLine);
        check("To: a\r\nFrom b@c Tue: x\r\n", &[(To, "To: a\r\n")], 7, HeaderEnd::BodyLine);
        let long = format!("{}: x\r\n", "n".repeat(NAME_SIZE_MAX + 1));
        check(&long, &[], 0, HeaderEnd::BodyLine);
    }

    #[test]
    fn an_mbox_line_is_tolerated_at_the_very_start_only() {
        let header = scan("From ada Tue Nov 24 13:20:26 2026\r\nTo: a\r\n\r\n");
        assert_eq!((header.mbox_line_size, header.hops(), header.has(FieldKind::To)), (35, 0, true));
        assert_eq!(scan(">From ada\r\nTo: a\r\n\r\n").mbox_line_size, 11);
    }

    #[test]
    fn odd_octets_are_noted_in_the_header_only() {
        let clean = scan("To: a\r\n\r\nb\0\r\u{fc}\n");
        assert!(!(clean.nul || clean.bare_cr || clean.bare_lf || clean.eight_bit));
        assert!(scan("To: a\0\r\n\r\n").nul);
        assert!(scan("To: a\rb\r\n\r\n").bare_cr);
        assert!(scan("To: a\r").bare_cr);
        assert!(scan("To: a\nb: c\r\n\r\n").bare_lf);
        assert!(scan("To: a\r\n\n").bare_lf);
        assert!(scan("To: ü\r\n\r\n").eight_bit);
    }

    #[test]
    fn a_bare_lf_hides_no_field() {
        let header = scan("Subject: x\nFrom: evil\r\n\r\n");
        assert!(header.bare_lf && header.has(FieldKind::From));
    }

    #[test]
    fn hops_are_counted() {
        let header = scan(&format!("{}To: a\r\n\r\n", "Received: from x\r\n\tby y; z\r\n".repeat(50)));
        assert!(header.loops());
        assert!(!scan(&format!("{}\r\n", "Received: x\r\n".repeat(49))).loops());
    }

    #[test]
    fn too_many_fields_and_too_many_octets_are_given_up() {
        assert!(!scan(&format!("{}\r\n", "X: y\r\n".repeat(FIELDS_MAX))).too_large);
        assert!(scan(&format!("{}\r\n", "X: y\r\n".repeat(FIELDS_MAX + 1))).too_large);
        assert!(scan(&format!("X: {}\r\n\r\n", "y".repeat(HEADER_SIZE_MAX))).too_large);
        let mut scan = HeaderScan::new();
        let piece = [b'x'; 4096];
        let fed = (0..1_000).take_while(|_| !scan.feed(&piece)).count();
        assert!(fed * 4096 <= HEADER_SIZE_MAX);
    }

    #[test]
    fn a_scan_begins_anew_for_the_next_message() {
        let mut scan = HeaderScan::new();
        assert!(!scan.feed(b"From: a\r"));
        scan.reset();
        assert!(scan.feed(b"To: b\r\n\r\n"));
        let header = scan.header().unwrap();
        assert!(header.has(FieldKind::To) && !header.has(FieldKind::From) && !header.bare_cr);
    }

    #[test]
    fn text_is_unfolded_and_bounded() {
        let content = [Bytes::from_static(b"Subject:  a\r\n b\x01 \xff\r\n\r\n")];
        let header = HeaderScan::whole(&content);
        assert_eq!(header.text(FieldKind::Subject, &content, 100).unwrap(), "a b? \u{fffd}");
        assert_eq!(header.text(FieldKind::Subject, &content, 2).unwrap(), "a");
        assert_eq!(header.text(FieldKind::Date, &content, 100), None);
    }

    fn summary(header: &Header) -> impl PartialEq + std::fmt::Debug + use<> {
        (
            header.fields().to_vec(),
            (header.size, header.end, header.mbox_line_size),
            (header.nul, header.bare_cr, header.bare_lf, header.eight_bit, header.too_large),
        )
    }

    proptest! {
        #[test]
        fn the_cuts_between_pieces_change_nothing(
            words in proptest::collection::vec(
                proptest::sample::select(vec!["From", "X", ":", " ", "\r\n", "\r", "\n", ".", "\t", "\0", "ü", "To: a\r\n"]),
                0..40,
            ),
            cuts in proptest::collection::vec(1usize..7, 0..60),
        ) {
            let content = words.concat();
            let whole = HeaderScan::whole(&[Bytes::from(content.clone())]);
            let mut pieces = Vec::new();
            let mut rest = content.as_bytes();
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(Bytes::copy_from_slice(piece));
                rest = after;
            }
            pieces.push(Bytes::copy_from_slice(rest));
            prop_assert_eq!(summary(&HeaderScan::whole(&pieces)), summary(&whole));
        }

        #[test]
        fn any_octets_are_scanned_without_a_panic(content: Vec<u8>) {
            let size = content.len();
            let header = HeaderScan::whole(&[Bytes::from(content)]);
            prop_assert!(header.size as usize <= size);
        }
    }
}
