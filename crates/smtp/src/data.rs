//! Content as it comes in: DATA up to CRLF.CRLF (RFC 5321 §4.1.1.4), BDAT by count (RFC 3030 §2).
//!
//! The octets leave as they came, dots still doubled, in slices as large as the input allows. What ends DATA
//! is only CRLF, dot, CRLF, whatever the pieces in which it comes; a bare LF or CR never counts as a line's
//! end, or a second message could hide in the first ("SMTP smuggling"). Content that holds bare CR or LF, or
//! NUL, or a line beyond the limit is read to its end, noted, and refused by whoever reads the notes.
//!
//! A listener for old devices may normalise instead: a bare LF becomes CRLF, a bare CR a space (or nothing
//! before another CR), and a dot that thereby comes to stand alone on a line is doubled, so that no content
//! can end the transaction that carries it on.

use memchr::memmem::Finder;
use memchr::{memchr, memrchr};
use std::borrow::Cow;
use std::sync::LazyLock;

const END: &[u8] = b"\r\n.\r\n";
static END_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(END));

/// What was seen of a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentNotes {
    /// Octets handed out.
    pub size_bytes: u64,
    /// A CR without LF or an LF without CR was there and was left as it is.
    pub bare_line_end: bool,
    /// A NUL was there.
    pub nul: bool,
    /// An octet above 127 was there.
    pub eight_bit: bool,
    /// A line was longer than the limit.
    pub line_too_long: bool,
    /// Nothing has come yet, or the last two octets were CRLF.
    pub ends_in_crlf: bool,
}

/// How to read a content.
#[derive(Clone, Copy, Debug)]
pub struct ContentRules {
    /// Octets of a line, CRLF included.
    pub line_size_max_bytes: usize,
    /// Bare CR and LF are normalised.
    pub normalises: bool,
    /// Any octets may come (BINARYMIME): nothing is noted but the size.
    pub binary: bool,
}

/// One step through DATA.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'i> {
    /// Some of the content; empty only where normalising left nothing.
    Content(Cow<'i, [u8]>),
    /// The content is over; the line of the dot is no part of it.
    End,
    /// Nothing can be said before more input is there.
    NeedInput,
}

/// The reader of one content.
#[derive(Clone, Debug)]
pub struct Content {
    rules: ContentRules,
    notes: ContentNotes,
    /// The last octet of the input that was consumed.
    last: u8,
    /// Octets of the line that has not ended.
    line_size: usize,
    /// The line that begins here was made by normalising.
    made_line: bool,
}

impl Content {
    /// At the start of a content.
    #[must_use]
    pub fn new(rules: ContentRules) -> Self {
        let notes = ContentNotes {
            size_bytes: 0,
            bare_line_end: false,
            nul: false,
            eight_bit: false,
            line_too_long: false,
            ends_in_crlf: true,
        };
        Content { rules, notes, last: b'\n', line_size: 0, made_line: false }
    }

    /// What has been seen so far.
    #[must_use]
    pub fn notes(&self) -> &ContentNotes {
        &self.notes
    }

    /// Takes what can be taken of DATA's input; gives how many octets were consumed.
    pub fn data<'i>(&mut self, input: &'i [u8]) -> (usize, Step<'i>) {
        if self.notes.ends_in_crlf && input.first() == Some(&b'.') {
            match input.get(1..) {
                Some([b'\r', b'\n', ..]) => return (3, Step::End),
                Some([] | [b'\r']) => return (0, Step::NeedInput),
                _ => {}
            }
        }
        let size = self.sure_size(input);
        if size == 0 {
            return (0, Step::NeedInput);
        }
        let slice = &input[..size];
        if self.rules.normalises {
            return (size, Step::Content(self.normalised(slice, input.get(size))));
        }
        self.note(slice);
        (size, Step::Content(Cow::Borrowed(slice)))
    }

    /// Takes octets of a chunk (BDAT), all of them content.
    pub fn chunk(&mut self, octets: &[u8]) {
        if self.rules.binary {
            self.notes.size_bytes += octets.len() as u64;
            self.advance(octets);
        } else {
            self.note(octets);
        }
    }

    /// Tells that a counted content is over.
    pub fn end_of_chunks(&mut self) {
        self.notes.bare_line_end |= self.last == b'\r' && !self.rules.binary;
    }

    /// How many octets at the front are content for sure: up to the CRLF before the final dot, or all but
    /// what may still turn out to be its line.
    fn sure_size(&self, input: &[u8]) -> usize {
        if self.last == b'\r' && input.starts_with(b"\n.") {
            return 1;
        }
        if let Some(at) = END_FINDER.find(input) {
            return at + 2;
        }
        let mut held = match input {
            [.., b'\r', b'\n', b'.', b'\r'] => 2,
            [.., b'\r', b'\n', b'.'] => 1,
            _ => 0,
        };
        if self.rules.normalises {
            // What a CR or a dot means depends on what follows; deciding it once keeps the rewriting simple.
            held = match input {
                [.., b'.', b'\r'] => 2,
                [.., b'.' | b'\r'] => 1,
                _ => 0,
            };
        }
        input.len() - held
    }

    fn note(&mut self, slice: &[u8]) {
        self.notes.size_bytes += slice.len() as u64;
        self.notes.bare_line_end |= has_bare_line_end(self.last, slice);
        self.notes.nul |= memchr(0, slice).is_some();
        self.notes.eight_bit |= !slice.is_ascii();
        self.measure_lines(slice);
        self.advance(slice);
    }

    fn advance(&mut self, slice: &[u8]) {
        match slice {
            [.., before, last] => {
                self.notes.ends_in_crlf = (*before, *last) == (b'\r', b'\n');
                self.last = *last;
            }
            [only] => {
                self.notes.ends_in_crlf = (self.last, *only) == (b'\r', b'\n');
                self.last = *only;
            }
            [] => {}
        }
    }

    /// Looks for an LF in every stretch as long as a line may be, which is a few looks for a whole buffer.
    fn measure_lines(&mut self, slice: &[u8]) {
        let mut rest = slice;
        let mut open = self.line_size;
        while open + rest.len() > self.rules.line_size_max_bytes {
            let room = (self.rules.line_size_max_bytes - open).min(rest.len());
            let Some(at) = memrchr(b'\n', &rest[..room]) else {
                self.notes.line_too_long = true;
                self.line_size = 0;
                return;
            };
            rest = &rest[at + 1..];
            open = 0;
        }
        self.line_size = match memrchr(b'\n', rest) {
            Some(at) => rest.len() - at - 1,
            None => open + rest.len(),
        };
    }

    fn normalised<'i>(&mut self, slice: &'i [u8], follows: Option<&u8>) -> Cow<'i, [u8]> {
        let dot_at_made_line = self.made_line && slice[0] == b'.';
        if !dot_at_made_line && !slice.ends_with(b"\r") && !has_bare_line_end(self.last, slice) {
            self.made_line = false;
            self.note(slice);
            return Cow::Borrowed(slice);
        }
        let out = self.rewrite(slice, follows);
        let raw_last = slice[slice.len() - 1];
        let raw_ends_in_crlf = slice.ends_with(b"\r\n");
        self.notes.size_bytes += out.len() as u64;
        self.notes.nul |= memchr(0, slice).is_some();
        self.notes.eight_bit |= !slice.is_ascii();
        self.measure_lines(&out);
        self.last = raw_last;
        self.notes.ends_in_crlf = raw_ends_in_crlf;
        Cow::Owned(out)
    }

    /// If `slice` ends in CR or a dot, what follows it is known (see [`Content::sure_size`]).
    fn rewrite(&mut self, slice: &[u8], follows: Option<&u8>) -> Vec<u8> {
        let mut out = Vec::with_capacity(slice.len() + slice.len() / 16 + 2);
        let mut at_line_start = self.notes.ends_in_crlf || self.made_line;
        let mut made = self.made_line;
        let mut before = self.last;
        for (i, &b) in slice.iter().enumerate() {
            let next = slice.get(i + 1).or(follows);
            match b {
                b'\r' if matches!(next, Some(b'\r' | b'\n')) => {}
                b'\r' => out.push(b' '),
                b'\n' => out.extend_from_slice(b"\r\n"),
                // Doubled already, or a dot of a line that the client began and ended with CRLF.
                b'.' if at_line_start => {
                    let alone = if made { next != Some(&b'.') } else { matches!(next, Some(b'\r' | b'\n')) };
                    out.extend_from_slice(if alone { b".." } else { b"." });
                }
                _ => out.push(b),
            }
            let ends_line = b == b'\n';
            made = ends_line && before != b'\r';
            at_line_start = ends_line;
            before = b;
        }
        self.made_line = made;
        out
    }
}

/// True if some CR is not followed by LF or some LF does not follow CR; a CR at the very end is judged with
/// the next octets. Without branches in the loop, so that it is compiled to vector instructions.
fn has_bare_line_end(last: u8, slice: &[u8]) -> bool {
    let Some(first) = slice.first() else { return false };
    let mut odd = u8::from((last == b'\r') != (*first == b'\n'));
    for (before, after) in slice.iter().zip(&slice[1..]) {
        odd |= u8::from(*before == b'\r') ^ u8::from(*after == b'\n');
    }
    odd != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STRICT: ContentRules = ContentRules { line_size_max_bytes: 1000, normalises: false, binary: false };
    const NORMALISING: ContentRules = ContentRules { normalises: true, ..STRICT };

    /// Feeds `input` in the given pieces; gives the content, what is left after its end, and the notes.
    fn read(rules: ContentRules, pieces: &[&[u8]]) -> (Vec<u8>, Option<Vec<u8>>, ContentNotes) {
        let mut content = Content::new(rules);
        let (mut out, mut buffered, mut ended) = (Vec::new(), Vec::new(), false);
        for piece in pieces {
            buffered.extend_from_slice(piece);
            while !ended {
                let (consumed, step) = content.data(&buffered);
                match step {
                    Step::Content(slice) => {
                        assert!(!slice.is_empty() || rules.normalises);
                        out.extend_from_slice(&slice);
                    }
                    Step::End => ended = true,
                    Step::NeedInput => break,
                }
                buffered.drain(..consumed);
                if buffered.is_empty() {
                    break;
                }
            }
        }
        assert!(ended || buffered.len() <= 3, "{buffered:?} held back");
        (out, ended.then_some(buffered), *content.notes())
    }

    /// Reads the input whole, split once at every octet, and octet by octet.
    fn check(rules: ContentRules, input: &[u8], content: &[u8], rest: Option<&[u8]>) -> ContentNotes {
        let (out, left, notes) = read(rules, &[input]);
        assert_eq!((&*out, left.as_deref()), (content, rest), "{:?}", String::from_utf8_lossy(input));
        for cut in 0..=input.len() {
            let (head, tail) = input.split_at(cut);
            let (split_out, split_left, split_notes) = read(rules, &[head, tail]);
            assert_eq!((&split_out, split_left.as_ref()), (&out, left.as_ref()), "cut at {cut}");
            assert_eq!(split_notes, notes, "cut at {cut}");
        }
        let octets: Vec<&[u8]> = input.chunks(1).collect();
        let single = read(rules, &octets);
        assert_eq!((single.0, single.1, single.2), (out, left, notes), "octet by octet");
        notes
    }

    #[test]
    fn only_crlf_dot_crlf_ends_the_data() {
        check(STRICT, b".\r\n", b"", Some(b""));
        check(STRICT, b".\r\nQUIT\r\n", b"", Some(b"QUIT\r\n"));
        check(STRICT, b"a\r\n.\r\nMAIL", b"a\r\n", Some(b"MAIL"));
        check(STRICT, b"a\r\n..\r\n.\r\n", b"a\r\n..\r\n", Some(b""));
        check(STRICT, b"a\r\n.b\r\n\r\n.\r\n.\r\n", b"a\r\n.b\r\n\r\n", Some(b".\r\n"));
        check(STRICT, b".\r\r\n.\r\n", b".\r\r\n", Some(b""));
        for fake in [
            "\n.\n",
            "\n.\r\n",
            "\r\n.\n",
            "\r.\r",
            "\r.\r\n",
            "\r\n.\r",
            "\n\n.\r\n",
            "\r\n\0.\r\n",
            "\r\n.\0\r\n",
            "\n.\r",
            "\r\r.\r\r\n",
            "\r\n .\r\n",
            "\r\n. \r\n",
        ] {
            let content = format!("a{fake}b\r\n");
            check(STRICT, format!("{content}.\r\nz").as_bytes(), content.as_bytes(), Some(b"z"));
        }
        check(STRICT, b"a\r\n.", b"a\r\n", None);
        check(STRICT, b"a\r\n.\r", b"a\r\n", None);
        check(STRICT, b"a\r\n.\rb", b"a\r\n.\rb", None);
    }

    #[test]
    fn bare_line_ends_are_noted() {
        let bare = |input: &[u8]| {
            let content = input.strip_suffix(b".\r\n").unwrap();
            check(STRICT, input, content, Some(b"")).bare_line_end
        };
        assert!(!bare(b"a\r\nb\r\n\r\n.\r\n"));
        assert!(bare(b"\na\r\n.\r\n"));
        assert!(bare(b"a\nb\r\n.\r\n"));
        assert!(bare(b"a\rb\r\n.\r\n"));
        assert!(bare(b"a\r\r\n.\r\n"));
        assert!(bare(b"a\n\r\n.\r\n"));
        assert!(bare(b"\ra\r\n.\r\n"));
    }

    #[test]
    fn nul_eight_bit_and_long_lines_are_noted() {
        let notes = check(STRICT, b"a\r\n.\r\n", b"a\r\n", Some(b""));
        assert!(!notes.nul && !notes.eight_bit && !notes.line_too_long && notes.size_bytes == 3);
        assert!(check(STRICT, b"a\0\r\n.\r\n", b"a\0\r\n", Some(b"")).nul);
        assert!(check(STRICT, b"\xfc\r\n.\r\n", b"\xfc\r\n", Some(b"")).eight_bit);
        for (size, too_long) in [(6, false), (7, true), (30, true)] {
            let rules = ContentRules { line_size_max_bytes: 8, ..STRICT };
            for lead in ["", "x\r\n", "123456\r\n1\r\n"] {
                let content = format!("{lead}{}\r\n12\r\n", "y".repeat(size));
                let input = format!("{content}.\r\n");
                let notes = check(rules, input.as_bytes(), content.as_bytes(), Some(b""));
                assert_eq!(notes.line_too_long, too_long, "{content:?}");
            }
        }
    }

    #[test]
    fn normalised_content_never_ends_a_transaction() {
        let check = |input: &str, content: &str| {
            let notes = check(NORMALISING, input.as_bytes(), content.as_bytes(), Some(b""));
            assert!(!notes.bare_line_end && notes.size_bytes == content.len() as u64);
        };
        check("a\r\n..b\r\n.\r\n", "a\r\n..b\r\n");
        check("a\nb\r\n.\r\n", "a\r\nb\r\n");
        check("a\rb\r\n.\r\n", "a b\r\n");
        check("a\r\r\n\r\r\n.\r\n", "a\r\n\r\n");
        check("a\n.\nMAIL\r\n.\r\n", "a\r\n..\r\nMAIL\r\n");
        check("a\n.\r\nMAIL\r\n.\r\n", "a\r\n..\r\nMAIL\r\n");
        check("a\r\n.\nMAIL\r\n.\r\n", "a\r\n..\r\nMAIL\r\n");
        check("a\r\n.\r\r\nMAIL\r\n.\r\n", "a\r\n..\r\nMAIL\r\n");
        check("a\r\n.\rb\r\n.\r\n", "a\r\n.. b\r\n");
        check("a\n..\nb\r\n.\r\n", "a\r\n..\r\nb\r\n");
        check("a\n.b\r\n.\r\n", "a\r\n..b\r\n");
        check("\n\n.\r\n\r\n.\r\n", "\r\n\r\n..\r\n\r\n");
    }

    #[test]
    fn a_chunk_is_noted_like_data_unless_it_is_binary() {
        let notes = |binary, octets: &[u8]| {
            let mut content = Content::new(ContentRules { binary, ..STRICT });
            octets.chunks(1).for_each(|octet| content.chunk(octet));
            content.end_of_chunks();
            *content.notes()
        };
        assert!(notes(false, b"a\nb\r\n").bare_line_end);
        assert!(notes(false, b"a\r").bare_line_end);
        assert!(!notes(false, b"a\r\n.\r\nb").bare_line_end);
        assert!(!notes(false, b"a\r\nb").ends_in_crlf && notes(false, b"a\r\n").ends_in_crlf);
        let binary = notes(true, b"\0\n\r\xff");
        assert!(!binary.bare_line_end && !binary.nul && binary.size_bytes == 4);
    }

    fn pieces_of_content() -> impl Strategy<Value = Vec<&'static str>> {
        let words = vec!["\r\n", "\r", "\n", ".", "a", "\r\n.", "\n.", ".\r\n", "bc", "\0", "ü"];
        proptest::collection::vec(proptest::sample::select(words), 0..24)
    }

    proptest! {
        #[test]
        fn the_cuts_change_nothing(words in pieces_of_content(), normalises: bool) {
            let rules = ContentRules { line_size_max_bytes: 6, normalises, ..STRICT };
            let input = words.concat() + "\r\n.\r\n";
            let (content, _, notes) = read(rules, &[input.as_bytes()]);
            prop_assert!(!content.windows(5).any(|w| w == END) && !content.starts_with(b".\r\n"));
            let (pieces_content, _, pieces_notes) =
                read(rules, &words.iter().map(|w| w.as_bytes()).chain([&b"\r\n.\r\n"[..]]).collect::<Vec<_>>());
            prop_assert_eq!(&content, &pieces_content);
            prop_assert_eq!(notes, pieces_notes);
            check(rules, input.as_bytes(), &content, read(rules, &[input.as_bytes()]).1.as_deref());
            if normalises {
                prop_assert!(!has_bare_line_end(b'\n', &content));
            }
        }
    }
}
