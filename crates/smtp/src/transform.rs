//! From the form in which content is stored to the form in which it goes on the wire.
//!
//! Content comes in pieces, whose borders may fall anywhere. A transform never copies: it says which ranges
//! of a piece stay and what stands between them.

use memchr::{memchr, memchr2};
use postrider_model::Encoding;
use std::ops::Range;

/// A part of what goes on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// This range of the piece, as it is.
    Keep(Range<usize>),
    /// These octets.
    Insert(&'static [u8]),
}

/// Turns one message's content into wire form, piece by piece.
#[derive(Clone, Debug)]
pub struct Transform {
    kind: Kind,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Stays as it is, but DATA's content must end in CRLF.
    AsIs {
        ends_line: bool,
    },
    Stuff,
    Unstuff,
}

/// Where in a line the next octet stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    LineStart,
    InLine,
    /// After a CR. When stuffing, that CR has not been given out yet.
    AfterCr,
}

impl Transform {
    /// For DATA: dots at the start of a line are doubled, lines and the whole end in CRLF. Stored stuffed
    /// content is that already. Binary content cannot go this way; if it does, a lone LF becomes CRLF
    /// and a lone CR a space, as in plain content that breaks its promise.
    #[must_use]
    pub fn for_data(stored: Encoding) -> Self {
        let kind = match stored {
            Encoding::Stuffed => Kind::AsIs { ends_line: true },
            Encoding::Plain | Encoding::Binary => Kind::Stuff,
        };
        Transform { kind, place: Place::LineStart }
    }

    /// For BDAT: the octets of the message itself.
    #[must_use]
    pub fn for_bdat(stored: Encoding) -> Self {
        let kind = match stored {
            Encoding::Stuffed => Kind::Unstuff,
            Encoding::Plain | Encoding::Binary => Kind::AsIs { ends_line: false },
        };
        Transform { kind, place: Place::LineStart }
    }

    /// Takes the next piece and gives its parts in order. What is kept of it is never empty.
    pub fn piece(&mut self, piece: &[u8], mut emit: impl FnMut(Part)) {
        if piece.is_empty() {
            return;
        }
        match self.kind {
            Kind::AsIs { .. } => {
                self.place = place_after(self.place, piece);
                emit(Part::Keep(0..piece.len()));
            }
            Kind::Stuff => self.stuff(piece, &mut emit),
            Kind::Unstuff => self.unstuff(piece, &mut emit),
        }
    }

    /// Ends the content. Gives what it lacks of a line's end; the final dot is not part of it.
    pub fn finish(&mut self, mut emit: impl FnMut(Part)) {
        let missing: &'static [u8] = match (self.kind, self.place) {
            (Kind::Unstuff | Kind::AsIs { ends_line: false }, _) | (_, Place::LineStart) => b"",
            (Kind::AsIs { .. }, Place::AfterCr) => b"\n",
            (Kind::AsIs { .. }, Place::InLine) | (Kind::Stuff, _) => b"\r\n",
        };
        if !missing.is_empty() {
            emit(Part::Insert(missing));
        }
        self.place = Place::LineStart;
    }

    fn stuff(&mut self, piece: &[u8], emit: &mut impl FnMut(Part)) {
        let mut at = 0; // The next octet to look at.
        let mut from = 0; // The first octet not given out.
        while at < piece.len() {
            match self.place {
                Place::LineStart => {
                    if piece[at] == b'.' {
                        keep(emit, from..at);
                        emit(Part::Insert(b"."));
                        from = at;
                        at += 1;
                    }
                    self.place = Place::InLine;
                }
                Place::AfterCr => {
                    // The CR stood at the end of an earlier piece.
                    if piece[at] == b'\n' {
                        emit(Part::Insert(b"\r\n"));
                        at += 1;
                        from = at;
                        self.place = Place::LineStart;
                    } else {
                        emit(Part::Insert(b" "));
                        self.place = Place::InLine;
                    }
                }
                Place::InLine => {
                    let Some(found) = memchr2(b'\r', b'\n', &piece[at..]) else { break };
                    let found = at + found;
                    match (piece[found], piece.get(found + 1)) {
                        (b'\r', Some(b'\n')) => {
                            at = found + 2;
                            self.place = Place::LineStart;
                        }
                        (b'\r', Some(_)) => {
                            keep(emit, from..found);
                            emit(Part::Insert(b" "));
                            at = found + 1;
                            from = at;
                        }
                        (b'\r', None) => {
                            keep(emit, from..found);
                            self.place = Place::AfterCr;
                            return;
                        }
                        _ => {
                            keep(emit, from..found);
                            emit(Part::Insert(b"\r\n"));
                            at = found + 1;
                            from = at;
                            self.place = Place::LineStart;
                        }
                    }
                }
            }
        }
        keep(emit, from..piece.len());
    }

    fn unstuff(&mut self, piece: &[u8], emit: &mut impl FnMut(Part)) {
        let mut at = 0;
        let mut from = 0;
        while at < piece.len() {
            match self.place {
                Place::LineStart => {
                    if piece[at] == b'.' {
                        keep(emit, from..at);
                        at += 1;
                        from = at;
                    }
                    self.place = Place::InLine;
                }
                Place::AfterCr => {
                    self.place = if piece[at] == b'\n' { Place::LineStart } else { Place::InLine };
                    at += usize::from(piece[at] == b'\n');
                }
                Place::InLine => {
                    let Some(found) = memchr(b'\r', &piece[at..]) else { break };
                    at += found + 1;
                    self.place = Place::AfterCr;
                }
            }
        }
        keep(emit, from..piece.len());
    }
}

fn keep(emit: &mut impl FnMut(Part), range: Range<usize>) {
    if !range.is_empty() {
        emit(Part::Keep(range));
    }
}

/// Where the octet after `piece` stands, judged by its last two octets.
fn place_after(before: Place, piece: &[u8]) -> Place {
    match piece {
        [] => before,
        [.., b'\r', b'\n'] => Place::LineStart,
        [b'\n'] if before == Place::AfterCr => Place::LineStart,
        [.., b'\r'] => Place::AfterCr,
        _ => Place::InLine,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn apply(mut transform: Transform, pieces: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in pieces {
            transform.piece(piece, |part| match part {
                Part::Keep(range) => out.extend_from_slice(&piece[range]),
                Part::Insert(bytes) => out.extend_from_slice(bytes),
            });
        }
        transform.finish(|part| match part {
            Part::Keep(_) => panic!("nothing is left to keep"),
            Part::Insert(bytes) => out.extend_from_slice(bytes),
        });
        out
    }

    /// The same result for every split in three.
    fn check(transform: &Transform, input: &str, expected: &str) {
        let bytes = input.as_bytes();
        for i in 0..=bytes.len() {
            for j in i..=bytes.len() {
                let found = apply(transform.clone(), &[&bytes[..i], &bytes[i..j], &bytes[j..]]);
                assert_eq!(String::from_utf8_lossy(&found), expected, "{input:?} split at {i}, {j}");
            }
        }
    }

    #[test]
    fn plain_content_is_stuffed_for_data() {
        let t = Transform::for_data(Encoding::Plain);
        check(&t, "", "");
        check(&t, "a\r\n", "a\r\n");
        check(&t, "a", "a\r\n");
        check(&t, ".", "..\r\n");
        check(&t, ".\r\n", "..\r\n");
        check(&t, "..\r\n.a\r\na.\r\n", "...\r\n..a\r\na.\r\n");
        check(&t, "\r\n.\r\n", "\r\n..\r\n");
    }

    #[test]
    fn lone_cr_and_lf_never_reach_the_wire() {
        let t = Transform::for_data(Encoding::Plain);
        check(&t, "a\n.\nb\n", "a\r\n..\r\nb\r\n");
        check(&t, "a\r.\r\nb", "a .\r\nb\r\n");
        check(&t, "a\r", "a\r\n");
        check(&t, "a\r\r\n", "a \r\n");
        check(&t, "\n\n.", "\r\n\r\n..\r\n");
        check(&t, "\r.\r.\n.", " . .\r\n..\r\n");
    }

    #[test]
    fn stuffed_content_goes_to_data_untouched_and_ends_its_last_line() {
        let t = Transform::for_data(Encoding::Stuffed);
        check(&t, "..a\r\nb\r\n", "..a\r\nb\r\n");
        check(&t, "a", "a\r\n");
        check(&t, "a\r", "a\r\n");
        check(&t, "", "");
    }

    #[test]
    fn stuffed_content_is_unstuffed_for_bdat() {
        let t = Transform::for_bdat(Encoding::Stuffed);
        check(&t, "..\r\n...a\r\nb.\r\n", ".\r\n..a\r\nb.\r\n");
        check(&t, "a\r..\r\n", "a\r..\r\n");
        check(&t, "a\r\r\n..\r\n", "a\r\r\n.\r\n");
        check(&Transform::for_bdat(Encoding::Binary), "\r.\n.\0", "\r.\n.\0");
        check(&Transform::for_bdat(Encoding::Plain), ".a\r\n", ".a\r\n");
    }

    /// A strict reader of DATA: every LF after a CR, every CR before an LF, no line a lone dot; gives the
    /// content without the stuffing.
    fn strict_decode(wire: &[u8]) -> Vec<u8> {
        let text = wire.strip_suffix(b".\r\n").expect("the final dot");
        assert!(text.is_empty() || text.ends_with(b"\r\n"));
        let mut out = Vec::new();
        for line in text.split_inclusive(|&b| b == b'\n') {
            let body = line.strip_suffix(b"\r\n").expect("CRLF");
            assert!(!body.contains(&b'\r') && body != b".");
            let body = body.strip_prefix(b".").unwrap_or(body);
            assert!(!line.starts_with(b".") || line.starts_with(b".."));
            out.extend_from_slice(body);
            out.extend_from_slice(b"\r\n");
        }
        out
    }

    /// What plain content means, written for clarity.
    fn normalise(content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut i = 0;
        while i < content.len() {
            match content[i] {
                b'\r' if content.get(i + 1) == Some(&b'\n') => {
                    out.extend_from_slice(b"\r\n");
                    i += 1;
                }
                b'\r' if i + 1 == content.len() => out.extend_from_slice(b"\r\n"),
                b'\r' => out.push(b' '),
                b'\n' => out.extend_from_slice(b"\r\n"),
                other => out.push(other),
            }
            i += 1;
        }
        if !out.is_empty() && !out.ends_with(b"\r\n") {
            out.extend_from_slice(b"\r\n");
        }
        out
    }

    fn pieces<'a>(content: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (content.len() + 1)).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for cut in cuts {
            pieces.push(&content[from..cut]);
            from = cut;
        }
        pieces.push(&content[from..]);
        pieces
    }

    proptest! {
        #[test]
        fn a_strict_reader_gets_any_content_back(content in "[a.\r\n\\x00é]{0,40}", cuts: [usize; 4]) {
            let content = content.as_bytes();
            let mut wire = apply(Transform::for_data(Encoding::Plain), &pieces(content, &cuts));
            wire.extend_from_slice(b".\r\n");
            prop_assert_eq!(strict_decode(&wire), normalise(content));
            // What was stuffed once is stored so and goes out the same.
            wire.truncate(wire.len() - 3);
            let again = apply(Transform::for_data(Encoding::Stuffed), &pieces(&wire, &cuts));
            prop_assert_eq!(&again, &wire);
            let plain = apply(Transform::for_bdat(Encoding::Stuffed), &pieces(&wire, &cuts));
            prop_assert_eq!(plain, normalise(content));
        }
    }
}
