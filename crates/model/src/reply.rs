//! SMTP replies as values: what we answer and what remotes answered.

use crate::codec::{DecodeError, Reader, Write};
use std::fmt;
use thiserror::Error;

/// An enhanced status code (RFC 3463): class, subject, detail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EnhancedCode(pub u8, pub u16, pub u16);

impl fmt::Display for EnhancedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl EnhancedCode {
    /// Reads `class.subject.detail` at the front of `text`; gives the code and what follows it.
    #[must_use]
    pub fn parse_prefix(text: &str) -> Option<(EnhancedCode, &str)> {
        let end = text.find(' ').unwrap_or(text.len());
        let mut parts = text[..end].split('.');
        let class = parts.next()?;
        if !matches!(class, "2" | "4" | "5") {
            return None;
        }
        let mut number = |max: usize| {
            let part = parts.next()?;
            let fits = (1..=max).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
            if fits { part.parse().ok() } else { None }
        };
        let (subject, detail) = (number(3)?, number(3)?);
        if parts.next().is_some() {
            return None;
        }
        let class = class.as_bytes()[0] - b'0';
        Some((EnhancedCode(class, subject, detail), text[end..].trim_start()))
    }
}

/// A reply: a code of three digits, an enhanced code where there is one, and bounded, printable text.
///
/// The text holds neither CR nor LF nor other controls; lines of a multi-line reply are joined by `\n`,
/// the one exception. Text of a remote is data: it is never interpreted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reply {
    code: u16,
    enhanced: Option<EnhancedCode>,
    text: Box<str>,
}

/// Why three digits are no reply code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{0} is not an SMTP reply code (200 to 599)")]
pub struct ReplyError(pub u16);

impl Reply {
    /// Bytes of text kept of a remote's reply; what is longer is cut at a character and marked with `…`.
    pub const TEXT_SIZE_MAX: usize = 1_024;

    /// A reply with cleaned text: controls become spaces, what is too long is cut.
    ///
    /// # Errors
    /// When `code` is not 200 to 599.
    pub fn new(code: u16, enhanced: Option<EnhancedCode>, text: &str) -> Result<Self, ReplyError> {
        if !(200..=599).contains(&code) {
            return Err(ReplyError(code));
        }
        Ok(Reply { code, enhanced, text: clean(text) })
    }

    /// A reply of our own making. Codes outside 200 to 599 become 451.
    #[must_use]
    pub fn ours(code: u16, enhanced: EnhancedCode, text: &str) -> Self {
        let code = if (200..=599).contains(&code) { code } else { 451 };
        Reply { code, enhanced: Some(enhanced), text: clean(text) }
    }

    /// The three digits.
    #[must_use]
    pub fn code(&self) -> u16 {
        self.code
    }

    /// The enhanced status code, if the reply had one.
    #[must_use]
    pub fn enhanced(&self) -> Option<EnhancedCode> {
        self.enhanced
    }

    /// The text without codes; lines are separated by `\n`.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// 2xx.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.code / 100 == 2
    }

    /// 4xx.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.code / 100 == 4
    }

    /// 5xx.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        self.code / 100 == 5
    }

    /// Appends the reply as it goes on the wire: `250-5.1.1 text\r\n…250 5.1.1 text\r\n` (RFC 2034 §4: the
    /// enhanced code stands on every line).
    pub fn write_wire(&self, out: &mut Vec<u8>) {
        let mut lines = self.text.split('\n').peekable();
        while let Some(line) = lines.next() {
            let separator = if lines.peek().is_some() { b'-' } else { b' ' };
            out.extend_from_slice(self.code.to_string().as_bytes());
            out.push(separator);
            if let Some(enhanced) = self.enhanced {
                out.extend_from_slice(enhanced.to_string().as_bytes());
                out.push(b' ');
            }
            out.extend_from_slice(line.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Appends the log's form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_uint(u64::from(self.code));
        match self.enhanced {
            None => out.put_byte(0),
            Some(EnhancedCode(class, subject, detail)) => {
                out.put_byte(class);
                out.put_uint(u64::from(subject));
                out.put_uint(u64::from(detail));
            }
        }
        out.put_str(&self.text);
    }

    /// Reads the log's form.
    ///
    /// # Errors
    /// When the bytes are damaged.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let code = reader.uint16("reply code")?;
        let enhanced = match reader.byte("enhanced class")? {
            0 => None,
            class => Some(EnhancedCode(
                class,
                reader.uint16("enhanced subject")?,
                reader.uint16("enhanced detail")?,
            )),
        };
        let text = reader.str("reply text")?;
        Reply::new(code, enhanced, text).map_err(|_| DecodeError::Invalid("reply code"))
    }
}

/// `550 5.1.1 No such user` on one line.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(enhanced) = self.enhanced {
            write!(f, " {enhanced}")?;
        }
        for line in self.text.split('\n').filter(|line| !line.is_empty()) {
            write!(f, " {line}")?;
        }
        Ok(())
    }
}

impl serde::Serialize for Reply {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn clean(text: &str) -> Box<str> {
    if text.len() <= Reply::TEXT_SIZE_MAX && !text.chars().any(|c| c.is_control() && c != '\n') {
        return text.into();
    }
    let mut out = String::with_capacity(text.len().min(Reply::TEXT_SIZE_MAX + 4));
    for c in text.chars() {
        if out.len() + c.len_utf8() > Reply::TEXT_SIZE_MAX {
            out.push('…');
            break;
        }
        out.push(if c.is_control() && c != '\n' { ' ' } else { c });
    }
    out.into_boxed_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_carries_both_codes() {
        let mut out = Vec::new();
        Reply::ours(550, EnhancedCode(5, 7, 1), "Not allowed.\nSee the manual.").write_wire(&mut out);
        assert_eq!(out, b"550-5.7.1 Not allowed.\r\n550 5.7.1 See the manual.\r\n");
    }

    #[test]
    fn hostile_text_is_bounded_and_printable() {
        let reply = Reply::new(451, None, &format!("a\r\x00b{}", "ü".repeat(4000))).unwrap();
        assert!(reply.text().starts_with("a  b") && reply.text().ends_with('…'));
        assert!(reply.text().len() <= Reply::TEXT_SIZE_MAX + '…'.len_utf8());
    }

    #[test]
    fn the_enhanced_code_is_split_from_the_text() {
        let check = |text, expected| assert_eq!(EnhancedCode::parse_prefix(text), expected);
        check("5.1.1 No such user", Some((EnhancedCode(5, 1, 1), "No such user")));
        check("4.7.28", Some((EnhancedCode(4, 7, 28), "")));
        check("3.1.1 odd", None);
        check("5.1 odd", None);
        check("5.1.1.1 odd", None);
        check("5.1.1000 odd", None);
        check("", None);
    }

    #[test]
    fn a_reply_survives_the_log() {
        for reply in
            [Reply::new(250, None, "").unwrap(), Reply::ours(550, EnhancedCode(5, 7, 509), "Zwei\nZeilen ü")]
        {
            let mut out = Vec::new();
            reply.encode(&mut out);
            assert_eq!(Reply::decode(&mut Reader::new(&out)).unwrap(), reply);
            for cut in 0..out.len() {
                assert!(Reply::decode(&mut Reader::new(&out[..cut])).is_err());
            }
        }
    }
}
