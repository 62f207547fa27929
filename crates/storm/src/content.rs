//! The text of a message: made once, patched for each message; and its check on arrival.
//!
//! A body ends in a line with the message's id, so that the checksum of what comes before is computed once per
//! run and each message costs only the checksum of that line.

use crate::id::{Id, parse_hex};
use memchr::memmem;

const ID_HEADER: &[u8] = b"\r\nX-Storm-Id: ";
const SUM_HEADER: &[u8] = b"\r\nX-Storm-Sum: ";
const BODY_ID: &[u8] = b"storm-id: ";
/// Longest header block that is looked at on arrival, octets.
const HEADER_MAX: usize = 256 << 10;
/// Different bodies per run, so that a relay that mixes up two of them is seen.
const VARIANTS: u64 = 4;
/// One line in this many begins with a dot, so that dot-stuffing is exercised in every message.
const DOTTED_LINE_EVERY: usize = 16;
const LINE_LEN: usize = 70;

/// A message in wire form whose id and checksum are patched in place.
pub struct Template {
    wire: Vec<u8>,
    /// Places of the id in `wire`.
    ids: Vec<usize>,
    sum_at: usize,
    sum_before_id: u32,
}

impl Template {
    /// The templates of a run: messages of `size` octets (headers and body before stuffing; at least what the
    /// headers need). `stuffed` for DATA, which ends in CRLF.CRLF; otherwise for BDAT.
    #[must_use]
    pub fn set(size: usize, from: &str, date: &str, stuffed: bool) -> Vec<Template> {
        (0..VARIANTS).map(|variant| Template::new(size, from, date, stuffed, variant)).collect()
    }

    fn new(size: usize, from: &str, date: &str, stuffed: bool, variant: u64) -> Template {
        let zero = "0".repeat(Id::HEX_LEN);
        let mut wire = format!(
            "From: storm <{from}>\r\nTo: recipients <storm@example.test>\r\nSubject: storm {zero}\r\n\
             Date: {date}\r\nMessage-ID: <{zero}@storm.example.test>\r\nX-Storm-Id: {zero}\r\n\
             X-Storm-Sum: 00000000\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n"
        )
        .into_bytes();
        let last_line = BODY_ID.len() + Id::HEX_LEN + 2;
        let text = prose(size.saturating_sub(wire.len() + last_line), variant);
        let sum_before_id = crc32c::crc32c_append(crc32c::crc32c(&text), BODY_ID);
        let mut line_start = true;
        for octet in text {
            if stuffed && line_start && octet == b'.' {
                wire.push(b'.');
            }
            line_start = octet == b'\n';
            wire.push(octet);
        }
        wire.extend_from_slice(BODY_ID);
        wire.extend_from_slice(zero.as_bytes());
        wire.extend_from_slice(if stuffed { b"\r\n.\r\n" } else { b"\r\n" });
        let ids = memmem::find_iter(&wire, zero.as_bytes()).collect();
        // Invariant: the header is part of the text above.
        let sum_at = memmem::find(&wire, SUM_HEADER).expect("the sum's header") + SUM_HEADER.len();
        Template { wire, ids, sum_at, sum_before_id }
    }

    /// The message with this id, as it goes over the wire.
    pub fn message(&mut self, id: Id) -> &[u8] {
        let hex = id.hex();
        for at in &self.ids {
            self.wire[*at..*at + Id::HEX_LEN].copy_from_slice(&hex);
        }
        let sum = crc32c::crc32c_append(crc32c::crc32c_append(self.sum_before_id, &hex), b"\r\n");
        let sum = Id(u64::from(sum)).hex();
        self.wire[self.sum_at..self.sum_at + 8].copy_from_slice(&sum[8..]);
        &self.wire
    }

    /// Octets on the wire.
    #[must_use]
    pub fn wire_len(&self) -> usize {
        self.wire.len()
    }
}

/// The template of a set that a message uses.
pub(crate) fn variant_of(set: &mut [Template], id: Id) -> &mut Template {
    let count = set.len() as u64;
    // Invariant: the remainder is below the length of the set, which is not empty.
    &mut set[usize::try_from(id.sequence() % count).expect("a small index")]
}

/// Lines of word-like text of about `len` octets, by a fixed generator: neither constant nor incompressible.
fn prose(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut out = Vec::with_capacity(len + LINE_LEN + 2);
    let mut line = 0;
    while out.len() < len {
        let width = LINE_LEN.min(len - out.len()).saturating_sub(2);
        let start = out.len();
        if line % DOTTED_LINE_EVERY == 3 && width > 0 {
            out.push(b'.');
        }
        while out.len() < start + width {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let octet = state.to_le_bytes()[5];
            out.push(if octet < 40 { b' ' } else { b'a' + octet % 26 });
        }
        out.extend_from_slice(b"\r\n");
        line += 1;
    }
    out
}

/// What became of a message's content on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// The body is what was sent.
    Whole(Id),
    /// Ours by its header, but the body or its sum is not what was sent.
    Damaged(Id),
    /// Carries no header of ours.
    Foreign,
}

/// Checks a message as its unstuffed octets come in. Keeps no body.
#[derive(Default)]
pub struct Reader {
    header: Vec<u8>,
    found: Option<(Option<Id>, Option<u32>)>,
    sum: u32,
}

impl Reader {
    /// Takes the next octets.
    pub fn feed(&mut self, octets: &[u8]) {
        if self.found.is_some() {
            self.sum = crc32c::crc32c_append(self.sum, octets);
            return;
        }
        if self.header.is_empty() {
            // The common case: the whole header block came at once and is read where it lies.
            match memmem::find(octets, b"\r\n\r\n") {
                Some(end) => self.end_of_header(&octets[..end + 2], &octets[end + 4..]),
                None => self.header.extend_from_slice(octets),
            }
            return;
        }
        let searched = self.header.len().saturating_sub(3);
        self.header.extend_from_slice(octets);
        if let Some(end) = memmem::find(&self.header[searched..], b"\r\n\r\n") {
            let header = std::mem::take(&mut self.header);
            self.end_of_header(&header[..searched + end + 2], &header[searched + end + 4..]);
        } else if self.header.len() > HEADER_MAX {
            self.found = Some((None, None));
        }
    }

    fn end_of_header(&mut self, header: &[u8], body: &[u8]) {
        let id = field(header, ID_HEADER, Id::HEX_LEN).and_then(Id::parse);
        let sum = field(header, SUM_HEADER, 8).and_then(parse_hex).and_then(|sum| u32::try_from(sum).ok());
        self.found = Some((id, sum));
        self.sum = crc32c::crc32c(body);
    }

    /// The end of the message; the reader is ready for the next.
    pub fn finish(&mut self) -> Arrived {
        let found = self.found.take();
        let sum = std::mem::take(&mut self.sum);
        self.header.clear();
        match found {
            Some((Some(id), Some(expected))) if expected == sum => Arrived::Whole(id),
            Some((Some(id), _)) => Arrived::Damaged(id),
            Some((None, _)) | None => Arrived::Foreign,
        }
    }
}

/// The value of a header field of fixed length; `name` begins with the CRLF before it.
fn field<'a>(header: &'a [u8], name: &[u8], len: usize) -> Option<&'a [u8]> {
    let at = match header.strip_prefix(&name[2..]) {
        Some(_) => name.len() - 2,
        None => memmem::find(header, name)? + name.len(),
    };
    header.get(at..at + len)
}

/// Finds the end of DATA (CRLF.CRLF) and takes the stuffed dots out, over any split of the octets.
#[derive(Default)]
pub struct Unstuffer {
    inside: bool,
}

/// How far [`Unstuffer::take`] came.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// So many octets used; give the rest again with more.
    Part(usize),
    /// The message ended after so many octets.
    All(usize),
}

impl Unstuffer {
    /// Hands the content in `octets` to `reader`. The last up to four octets may be left for the next call.
    pub fn take(&mut self, octets: &[u8], reader: &mut Reader) -> Taken {
        let mut from = 0;
        if !self.inside {
            // A dot at the very start begins a line without a CRLF before it in these octets.
            match octets {
                [b'.', b'\r', b'\n', ..] => {
                    self.inside = false;
                    return Taken::All(3);
                }
                [] | [b'.'] | [b'.', b'\r'] => return Taken::Part(0),
                [b'.', ..] => from = 1,
                _ => {}
            }
            self.inside = true;
        }
        let mut search = from;
        while let Some(found) = memmem::find(&octets[search..], b"\r\n.") {
            let at = search + found;
            match &octets[at + 3..] {
                [b'\r', b'\n', ..] => {
                    reader.feed(&octets[from..at + 2]);
                    self.inside = false;
                    return Taken::All(at + 5);
                }
                [] | [b'\r'] => {
                    if at > from {
                        reader.feed(&octets[from..at]);
                    }
                    return Taken::Part(at);
                }
                _ => {
                    reader.feed(&octets[from..at + 2]);
                    from = at + 3;
                    search = from;
                }
            }
        }
        let kept = match octets {
            [.., b'\r', b'\n'] => 2,
            [.., b'\r'] => 1,
            _ => 0,
        };
        let end = (octets.len() - kept).max(from);
        if end > from {
            reader.feed(&octets[from..end]);
        }
        Taken::Part(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn arrived(wire: &[u8], cuts: &[usize]) -> Option<(Arrived, usize)> {
        let mut reader = Reader::default();
        let mut unstuffer = Unstuffer::default();
        let mut held = Vec::new();
        let mut used = 0;
        let mut start = 0;
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (wire.len() + 1)).collect();
        cuts.push(wire.len());
        cuts.sort_unstable();
        for cut in cuts {
            held.extend_from_slice(&wire[start..cut]);
            start = cut;
            match unstuffer.take(&held, &mut reader) {
                Taken::Part(count) => {
                    held.drain(..count);
                    used += count;
                }
                Taken::All(count) => return Some((reader.finish(), used + count)),
            }
        }
        None
    }

    fn message(size: usize, id: Id) -> Vec<u8> {
        let mut set = Template::set(size, "a@example.test", "Tue, 24 Nov 2026 13:00:00 +0000", true);
        variant_of(&mut set, id).message(id).to_vec()
    }

    #[test]
    fn a_message_is_as_long_as_asked() {
        for size in [1000, 4096, 100_000] {
            let mut set = Template::set(size, "a@example.test", "Tue, 24 Nov 2026 13:00:00 +0000", false);
            assert_eq!(set[0].message(Id(1)).len(), size);
        }
    }

    #[test]
    fn the_body_has_lines_that_begin_with_a_dot() {
        assert!(memmem::find(&message(4096, Id(1)), b"\r\n..").is_some());
    }

    #[test]
    fn a_changed_octet_in_the_body_is_damage() {
        let id = Id::new(9, 5);
        let mut wire = message(4096, id);
        assert_eq!(arrived(&wire, &[]), Some((Arrived::Whole(id), wire.len())));
        let at = wire.len() - 100;
        wire[at] ^= 1;
        assert_eq!(arrived(&wire, &[]).map(|(arrived, _)| arrived), Some(Arrived::Damaged(id)));
    }

    #[test]
    fn a_stuffed_dot_that_stays_is_damage() {
        let id = Id::new(9, 5);
        let wire = message(4096, id);
        let at = memmem::find(&wire, b"\r\n..").unwrap();
        let mut thrice = wire.clone();
        thrice.insert(at + 2, b'.');
        assert_eq!(arrived(&thrice, &[]).map(|(arrived, _)| arrived), Some(Arrived::Damaged(id)));
    }

    #[test]
    fn headers_added_in_front_do_no_harm() {
        let id = Id::new(9, 6);
        let mut wire = b"Received: by relay\r\n\twith ESMTP\r\n".to_vec();
        wire.extend_from_slice(&message(2000, id));
        assert_eq!(arrived(&wire, &[1, 40]).map(|(arrived, _)| arrived), Some(Arrived::Whole(id)));
    }

    #[test]
    fn an_empty_message_ends_at_its_dot() {
        assert_eq!(arrived(b".\r\nMAIL", &[]), Some((Arrived::Foreign, 3)));
        assert_eq!(arrived(b"\r\n.\r\nMAIL", &[]), Some((Arrived::Foreign, 5)));
        assert_eq!(arrived(b"a\n.\n\r.\r\n", &[]), None);
    }

    proptest! {
        #[test]
        fn any_split_of_the_octets_reads_the_same(size in 600usize..3000, cuts in prop::collection::vec(any::<usize>(), 0..12)) {
            let id = Id::new(3, size as u64);
            let wire = message(size, id);
            prop_assert_eq!(arrived(&wire, &cuts), Some((Arrived::Whole(id), wire.len())));
        }
    }
}
