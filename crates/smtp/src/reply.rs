//! Replies of a remote server (RFC 5321 §4.2), read as bounded data.
//!
//! A remote may send anything. What is not a reply is a [`Violation`] and ends the session; what is one is
//! kept as octets, cleaned only when someone wants to show it, and never interpreted beyond its code, its
//! enhanced code and, after EHLO, its keywords.

use memchr::memchr;
use postrider_model::{EnhancedCode, Reply};
use thiserror::Error;

/// Octets of one line, with its end. RFC 5321 §4.5.3.1.5 says 512; AUTH challenges may have 12,288 (RFC 4954 §4).
pub const REPLY_LINE_SIZE_MAX: usize = 12_290;
/// Lines of one reply. The longest EHLO replies seen in the wild have about thirty.
pub const REPLY_LINES_MAX: usize = 128;
/// Octets of text of one reply, all lines together.
pub const REPLY_SIZE_MAX: usize = 32 << 10;

/// What a server sent that no server may. The session is over: nothing after it can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// A line without an end in sight.
    #[error("a line of the reply is too long")]
    LineTooLong,
    /// A reply without an end in sight.
    #[error("the reply has too many lines")]
    TooManyLines,
    /// A reply larger than we keep.
    #[error("the reply is too large")]
    TooLarge,
    /// Not three digits of 200 to 599 and a space, a hyphen or nothing.
    #[error("this is not an SMTP reply")]
    NotAReply,
    /// Lines of one reply with different codes.
    #[error("the lines of the reply have different codes")]
    CodesDiffer,
    /// Octets in clear after the reply to STARTTLS: someone wants them taken for the protected ones
    /// (CVE-2011-0411's mirror image, "response injection").
    #[error("there was more in clear after the reply to STARTTLS")]
    Injection,
    /// A reply that nothing asked for.
    #[error("a reply came that no command asked for")]
    Unasked,
    /// More than the greeting before we spoke (RFC 5321 §3.1).
    #[error("it spoke on before its turn came")]
    OutOfTurn,
    /// A code that no server may answer this command with.
    #[error("a reply came that makes no sense for its command")]
    Senseless,
}

/// Reads replies from whatever pieces the network makes of them.
#[derive(Debug, Default)]
pub struct ReplyParser {
    /// The start of a line whose end has not come.
    partial: Vec<u8>,
    /// Text of the reply's lines so far, joined by LF.
    text: Vec<u8>,
    code: u16,
    lines: usize,
    complete: bool,
}

impl ReplyParser {
    /// Reads on in `input` and takes from it what it used. Gives the code when a reply is complete; its
    /// text is at [`ReplyParser::reply`] until the next call. `None` needs more input, and then all of
    /// `input` was taken.
    ///
    /// # Errors
    /// When the remote breaks the protocol; the parser must not be used after that.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<u16>, Violation> {
        if self.complete {
            self.text.clear();
            self.lines = 0;
            self.complete = false;
        }
        loop {
            let Some(end) = memchr(b'\n', input) else {
                if self.partial.len() + input.len() > REPLY_LINE_SIZE_MAX {
                    return Err(Violation::LineTooLong);
                }
                self.partial.extend_from_slice(input);
                *input = &[];
                return Ok(None);
            };
            let line = &input[..end];
            *input = &input[end + 1..];
            let last = if self.partial.is_empty() {
                self.line(line)?
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(line);
                let last = self.line(&whole)?;
                whole.clear();
                self.partial = whole;
                last
            };
            if last {
                self.complete = true;
                return Ok(Some(self.code));
            }
        }
    }

    /// The reply that [`ReplyParser::next`] completed.
    #[must_use]
    pub fn reply(&self) -> RawReply<'_> {
        RawReply { code: self.code, text: &self.text }
    }

    /// Nothing of a further reply was read.
    #[must_use]
    pub fn is_between_replies(&self) -> bool {
        self.partial.is_empty() && (self.complete || self.lines == 0)
    }

    /// Takes one line without its LF; true if it is the reply's last.
    fn line(&mut self, line: &[u8]) -> Result<bool, Violation> {
        if line.len() > REPLY_LINE_SIZE_MAX {
            return Err(Violation::LineTooLong);
        }
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let &[a, b, c, ref rest @ ..] = line else { return Err(Violation::NotAReply) };
        if !(b'2'..=b'5').contains(&a) || !b.is_ascii_digit() || !c.is_ascii_digit() {
            return Err(Violation::NotAReply);
        }
        let code = u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0');
        let (last, text) = match rest {
            [] => (true, rest),
            [b' ', text @ ..] => (true, text),
            [b'-', text @ ..] => (false, text),
            _ => return Err(Violation::NotAReply),
        };
        if self.lines == 0 {
            self.code = code;
        } else {
            if code != self.code {
                return Err(Violation::CodesDiffer);
            }
            self.text.push(b'\n');
        }
        self.lines += 1;
        if self.lines > REPLY_LINES_MAX {
            return Err(Violation::TooManyLines);
        }
        if self.text.len() + text.len() > REPLY_SIZE_MAX {
            return Err(Violation::TooLarge);
        }
        self.text.extend_from_slice(text);
        Ok(last)
    }
}

/// A reply as its octets came, without the codes' columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawReply<'a> {
    code: u16,
    text: &'a [u8],
}

impl<'a> RawReply<'a> {
    /// The three digits.
    #[must_use]
    pub fn code(self) -> u16 {
        self.code
    }

    /// The text, its lines joined by LF: any octets but LF and the CR before it.
    #[must_use]
    pub fn text(self) -> &'a [u8] {
        self.text
    }

    /// The lines of the text.
    pub fn lines(self) -> impl Iterator<Item = &'a [u8]> {
        self.text.split(|&b| b == b'\n')
    }

    /// The enhanced code, if the reply has one that fits its code (RFC 2034 §4).
    #[must_use]
    pub fn enhanced(self) -> Option<EnhancedCode> {
        let line = self.lines().next().unwrap_or_default();
        let end = memchr(b' ', line).unwrap_or(line.len());
        let word = std::str::from_utf8(&line[..end]).ok()?;
        let (enhanced, _) = EnhancedCode::parse_prefix(word)?;
        (u16::from(enhanced.0) == self.code / 100).then_some(enhanced)
    }

    /// The reply as a value to keep and to show: bounded, without controls, invalid UTF-8 marked, the
    /// enhanced code taken off every line.
    #[must_use]
    pub fn to_reply(self) -> Reply {
        // Twice what a reply keeps is enough to read: the cut is made after cleaning.
        let text = &self.text[..self.text.len().min(2 * Reply::TEXT_SIZE_MAX)];
        let text = String::from_utf8_lossy(text);
        let enhanced = self.enhanced();
        let reply = match enhanced {
            None => Reply::new(self.code, None, &text),
            Some(code) if text.contains('\n') => {
                let lines: Vec<&str> = text.split('\n').map(|line| without(line, code)).collect();
                Reply::new(self.code, enhanced, &lines.join("\n"))
            }
            Some(code) => Reply::new(self.code, enhanced, without(&text, code)),
        };
        // Invariant: the parser lets only 200 to 599 through.
        reply.expect("a parsed reply has a valid code")
    }
}

/// A line without the enhanced code at its front.
fn without(line: &str, code: EnhancedCode) -> &str {
    match EnhancedCode::parse_prefix(line) {
        Some((found, rest)) if found == code => rest,
        _ => line,
    }
}

/// Entry point of the fuzz target: `data` as a remote's octets, cut into pieces of `step`.
#[doc(hidden)]
pub fn fuzz_replies(data: &[u8], step: usize) {
    let mut parser = ReplyParser::default();
    for piece in data.chunks(step.max(1)) {
        let mut input = piece;
        loop {
            match parser.next(&mut input) {
                Ok(Some(code)) => {
                    let reply = parser.reply().to_reply();
                    assert_eq!(reply.code(), code);
                    assert!(!reply.text().chars().any(|c| c.is_control() && c != '\n'));
                    let _ = crate::client::Extensions::parse(parser.reply());
                }
                Ok(None) => {
                    assert!(input.is_empty());
                    break;
                }
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All replies of `input`, however it is cut in two, and how it ended.
    fn check(input: &[u8], expected: &[&str], end: Option<Violation>) {
        for cut in 0..=input.len() {
            let mut parser = ReplyParser::default();
            let (mut found, mut fault) = (Vec::new(), None);
            'pieces: for mut piece in [&input[..cut], &input[cut..]] {
                loop {
                    match parser.next(&mut piece) {
                        Ok(Some(_)) => found.push(parser.reply().to_reply().to_string()),
                        Ok(None) => break,
                        Err(violation) => {
                            fault = Some(violation);
                            break 'pieces;
                        }
                    }
                }
            }
            assert_eq!(
                (found, fault),
                (expected.iter().map(ToString::to_string).collect(), end),
                "cut {cut}"
            );
        }
    }

    #[test]
    fn replies_are_read_whatever_the_cut() {
        check(b"250 OK\r\n", &["250 OK"], None);
        check(b"250\r\n", &["250"], None);
        check(b"250 \r\n354 go\r\n", &["250", "354 go"], None);
        check(b"250-a\r\n250-\r\n250 b\r\n", &["250 a b"], None);
        check(b"550 5.1.1 no such user\r\n", &["550 5.1.1 no such user"], None);
        check(b"550-5.7.1 no\r\n550-5.7.1 never\r\n550 5.7.1\r\n", &["550 5.7.1 no never"], None);
        check(b"250 OK\n221 bye\n", &["250 OK", "221 bye"], None);
    }

    #[test]
    fn an_enhanced_code_of_another_class_is_text() {
        check(b"550 2.0.0 fine\r\n", &["550 2.0.0 fine"], None);
        let mut parser = ReplyParser::default();
        assert_eq!(parser.next(&mut &b"550 2.0.0 fine\r\n"[..]), Ok(Some(550)));
        assert_eq!(parser.reply().enhanced(), None);
    }

    #[test]
    fn hostile_octets_are_cleaned() {
        check(b"550 a\x00b\rc\x1b[31m\xff\r\n", &["550 a b c [31m\u{fffd}"], None);
        check("550 5.1.1 Empfänger unbekannt\r\n".as_bytes(), &["550 5.1.1 Empfänger unbekannt"], None);
    }

    #[test]
    fn what_is_no_reply_is_a_violation() {
        for garbage in [
            "\r\n",
            "25\r\n",
            "abc\r\n",
            "250x\r\n",
            "150 a\r\n",
            "600 a\r\n",
            "2500 a\r\n",
            " 250 a\r\n",
            "250\ta\r\n",
        ] {
            check(garbage.as_bytes(), &[], Some(Violation::NotAReply));
        }
        check(b"250-a\r\n251 b\r\n", &[], Some(Violation::CodesDiffer));
        check(b"220 hi\r\nHTTP/1.1 400\r\n", &["220 hi"], Some(Violation::NotAReply));
    }

    #[test]
    fn replies_are_bounded_in_every_direction() {
        let feed = |input: &[u8]| ReplyParser::default().next(&mut &*input);
        assert_eq!(feed(&vec![b'2'; REPLY_LINE_SIZE_MAX + 1]), Err(Violation::LineTooLong));
        let mut line = b"250 ".to_vec();
        line.resize(REPLY_LINE_SIZE_MAX + 1, b'x');
        line.push(b'\n');
        assert_eq!(feed(&line), Err(Violation::LineTooLong));
        assert_eq!(feed(&b"250-x\r\n".repeat(REPLY_LINES_MAX + 1)), Err(Violation::TooManyLines));
        let long = [b"250-".as_slice(), &[b'x'; 10_000], b"\r\n"].concat();
        assert_eq!(feed(&long.repeat(4)), Err(Violation::TooLarge));
        // Octet by octet, too.
        let mut parser = ReplyParser::default();
        let fault = (0..=REPLY_LINE_SIZE_MAX).find_map(|_| parser.next(&mut &b"2"[..]).err());
        assert_eq!(fault, Some(Violation::LineTooLong));
    }

    proptest! {
        #[test]
        fn no_input_makes_the_parser_panic(data: Vec<u8>, step in 1usize..40) {
            fuzz_replies(&data, step);
        }

        #[test]
        fn likely_input_does_not_either(lines in proptest::collection::vec("[2-6][0-9]{2}[- ]?[ -~]{0,20}\r?\n", 0..20),
                                        step in 1usize..40) {
            fuzz_replies(lines.concat().as_bytes(), step);
        }
    }
}
